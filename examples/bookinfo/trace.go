package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// span is what the tour needs of an OpenTelemetry span. Services send spans to
// the parent process as lines of JSON; a real shop would use an OTLP exporter.
type span struct {
	Trace   string        `json:"trace"`
	ID      string        `json:"id"`
	Parent  string        `json:"parent,omitempty"`
	Name    string        `json:"name"`
	Kind    string        `json:"kind"`
	Process string        `json:"process"`
	PID     int           `json:"pid"`
	To      string        `json:"to,omitempty"` // what a client's span calls
	Start   time.Time     `json:"start"`
	Took    time.Duration `json:"took"`
}

// exporter sends a process's spans to the collector.
type exporter struct {
	process, url string
	client       http.Client
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	for _, s := range spans {
		out := span{
			Trace: s.SpanContext().TraceID().String(), ID: s.SpanContext().SpanID().String(),
			Name: s.Name(), Kind: strings.ToUpper(s.SpanKind().String()), Process: e.process, PID: os.Getpid(),
			Start: s.StartTime(), Took: s.EndTime().Sub(s.StartTime()),
		}
		if s.Parent().IsValid() {
			out.Parent = s.Parent().SpanID().String()
		}
		if s.SpanKind() != trace.SpanKindServer {
			for _, kv := range s.Attributes() {
				if kv.Key == "server.address" {
					out.To = kv.Value.AsString()
				}
			}
		}
		if err := encoder.Encode(out); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, &lines)
	if err != nil {
		return err
	}
	resp, err := e.client.Do(r)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Shutdown implements sdktrace.SpanExporter.
func (e *exporter) Shutdown(context.Context) error {
	e.client.CloseIdleConnections()
	return nil
}

// The collector keeps the latest traces, and so many spans of each.
const (
	maxTraces = 200
	maxSpans  = 1000
)

// collector receives the spans of all processes.
type collector struct {
	listener net.Listener
	server   *http.Server

	mu     sync.Mutex
	traces map[string][]span
	order  []string // of first arrival
}

func newCollector() (*collector, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &collector{listener: lis, traces: map[string][]span{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /spans", func(w http.ResponseWriter, r *http.Request) {
		if err := c.receive(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("GET /trace", func(w http.ResponseWriter, _ *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.order) == 0 {
			fmt.Fprintln(w, "no trace yet: send a request first")
			return
		}
		fmt.Fprint(w, tree(c.traces[c.order[len(c.order)-1]]))
	})
	c.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = c.server.Serve(lis) }() // ends with close
	return c, nil
}

func (c *collector) address() string { return c.listener.Addr().String() }
func (c *collector) url() string     { return "http://" + c.address() + "/spans" }
func (c *collector) close()          { c.server.Close() }

func (c *collector) receive(lines io.Reader) error {
	for decoder := json.NewDecoder(lines); ; {
		var s span
		if err := decoder.Decode(&s); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		c.mu.Lock()
		if _, known := c.traces[s.Trace]; !known {
			if len(c.order) == maxTraces {
				delete(c.traces, c.order[0])
				c.order = c.order[1:]
			}
			c.order = append(c.order, s.Trace)
		}
		if len(c.traces[s.Trace]) < maxSpans {
			c.traces[s.Trace] = append(c.traces[s.Trace], s)
		}
		c.mu.Unlock()
	}
}

// spans returns what has come of a trace so far.
func (c *collector) spans(id string) []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.traces[id])
}

// tree draws a trace's spans as a tree, one line each.
func tree(spans []span) string {
	children := map[string][]span{}
	known := map[string]bool{}
	for _, s := range spans {
		known[s.ID] = true
	}
	for _, s := range spans {
		parent := s.Parent
		if !known[parent] {
			parent = "" // the root, or a span whose parent has not come
		}
		children[parent] = append(children[parent], s)
	}
	var b strings.Builder
	var origin time.Time
	var draw func(parent string, depth int)
	draw = func(parent string, depth int) {
		list := children[parent]
		slices.SortFunc(list, func(a, b span) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.ID, b.ID)) })
		for _, s := range list {
			if origin.IsZero() {
				origin = s.Start
			}
			what := strings.Repeat("  ", depth) + s.Kind + " " + s.Name
			if s.To != "" {
				what += " to " + s.To
			}
			fmt.Fprintf(&b, "     %-18s %-55s at %6.2f ms  took %6.2f ms\n", s.Process, what, ms(s.Start.Sub(origin)), ms(s.Took))
			draw(s.ID, depth+1)
		}
	}
	draw("", 0)
	return b.String()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// hop is one request from one process to another. Processes are named by their service.
type hop struct{ from, to string }

// checkTrace reports what is wrong with the spans of one request: they must be
// one tree, whose SERVER spans hang, over the client's own spans, under the
// SERVER span of the process that called, for just these hops.
func checkTrace(spans []span, root string, hops []hop) error {
	byID := map[string]span{}
	for _, s := range spans {
		byID[s.ID] = s
	}
	found := map[hop]int{}
	roots := 0
	for _, s := range spans {
		if s.Parent == "" {
			roots++
			if s.Kind != "SERVER" || !serves(s, root) {
				return fmt.Errorf("the root is %s %s in %s", s.Kind, s.Name, s.Process)
			}
			continue
		}
		parent, ok := byID[s.Parent]
		if !ok {
			return fmt.Errorf("%s %s in %s has the parent %s, which did not come", s.Kind, s.Name, s.Process, s.Parent)
		}
		if s.Kind != "SERVER" {
			if s.PID != parent.PID {
				return fmt.Errorf("%s %s in %s has a parent in %s", s.Kind, s.Name, s.Process, parent.Process)
			}
			continue
		}
		// A server's span hangs under an attempt of the caller.
		if parent.Kind == "SERVER" || s.PID == parent.PID {
			return fmt.Errorf("%s %s in %s has the parent %s %s in %s", s.Kind, s.Name, s.Process, parent.Kind, parent.Name, parent.Process)
		}
		for _, h := range hops {
			if serves(s, h.to) && serves(parent, h.from) {
				found[h]++
			}
		}
	}
	if roots != 1 {
		return fmt.Errorf("%d spans are roots", roots)
	}
	for _, h := range hops {
		if found[h] != 1 {
			return fmt.Errorf("%d requests from %s to %s", found[h], h.from, h.to)
		}
	}
	return nil
}

// serves reports whether a span is of an instance of a service.
func serves(s span, service string) bool { return strings.HasPrefix(s.Process, service+"-v") }

// processesOf counts the processes that a trace went through.
func processesOf(spans []span) int {
	pids := map[int]bool{}
	for _, s := range spans {
		pids[s.PID] = true
	}
	return len(pids)
}
