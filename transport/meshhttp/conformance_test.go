package meshhttp

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// delivered is what a handler saw of a request.
type delivered struct {
	Method           string
	Host             string
	URLPath          string `json:"url_path"`
	RawPath          string `json:"raw_path"`
	RawQuery         string `json:"raw_query"`
	RequestURI       string `json:"request_uri"`
	Headers          map[string][]string
	TransferEncoding []string `json:"transfer_encoding"`
	ContentLength    int64    `json:"content_length"`
	Body             string
	BodyError        string `json:"body_error"`
}

type edgeCase struct {
	Group, Name string
	Raw         *string
	RawBase64   string      `json:"raw_base64"`
	RawNote     string      `json:"raw_note"`
	Status      []int       `json:"go_status"`
	Delivered   []delivered `json:"go_delivered"`
}

// bytes returns what is sent.
func (c *edgeCase) bytes(t *testing.T) []byte {
	switch {
	case c.RawBase64 != "":
		b, err := base64.StdEncoding.DecodeString(c.RawBase64)
		if err != nil {
			t.Fatal(err)
		}
		return b
	case c.Raw != nil:
		return []byte(*c.Raw)
	case strings.Contains(c.RawNote, "2000 × \"X-A: 1\""):
		return []byte("GET / HTTP/1.1\r\nHost: a.example\r\n" + strings.Repeat("X-A: 1\r\n", 2000) + "Connection: close\r\n\r\n")
	}
	return nil
}

// see reads a request as the recording did.
func see(r *http.Request) delivered {
	body, err := io.ReadAll(r.Body)
	d := delivered{
		Method: r.Method, Host: r.Host, URLPath: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, RequestURI: r.RequestURI,
		Headers: maps.Clone(r.Header), TransferEncoding: r.TransferEncoding, ContentLength: r.ContentLength, Body: string(body),
	}
	if err != nil {
		d.BodyError = err.Error()
	}
	return d
}

// exchangeRaw sends the bytes and returns all statuses that come back until the server hangs up.
func exchangeRaw(t *testing.T, address string, raw []byte) []int {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(raw); err != nil {
		t.Fatal(err)
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	answer, _ := io.ReadAll(conn)
	var statuses []int
	for rest := answer; ; {
		i := bytes.Index(rest, []byte("HTTP/1."))
		if i < 0 {
			return statuses
		}
		var code int
		if _, err := fmt.Fscanf(bytes.NewReader(rest[i+len("HTTP/1.x "):]), "%d", &code); err == nil {
			statuses = append(statuses, code)
		}
		rest = rest[i+1:]
	}
}

// edgeServer is a server whose handler keeps what it sees.
type edgeServer struct {
	*httptest.Server
	mu   sync.Mutex
	seen []delivered
}

func newEdgeServer(t *testing.T, wrap func(http.Handler) http.Handler) *edgeServer {
	s := &edgeServer{}
	s.Server = httptest.NewUnstartedServer(wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := see(r)
		s.mu.Lock()
		s.seen = append(s.seen, d)
		s.mu.Unlock()
	})))
	s.Config.ErrorLog = discardLog
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *edgeServer) take() []delivered {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

// TestHTTPEdgeCases: a handler behind the mesh gets what net/http delivers,
// neither more nor less, and the client gets the same statuses.
func TestHTTPEdgeCases(t *testing.T) {
	leak.Check(t)
	var file struct{ Cases []edgeCase }
	conformance.Load(t, "otel/http_edge_cases.json", &file)
	e := inbound.New(inbound.Options{}) // no control plane
	bare := newEdgeServer(t, func(h http.Handler) http.Handler { return h })
	meshed := newEdgeServer(t, func(h http.Handler) http.Handler { return Handler(e, slog.New(slog.DiscardHandler), h) })
	var tally conformance.Tally
	for i := range file.Cases {
		c := &file.Cases[i]
		raw := c.bytes(t)
		if raw == nil {
			tally.SetAside("the bytes are only described")
			continue
		}
		statuses, wantStatuses := exchangeRaw(t, meshed.Listener.Addr().String(), raw), exchangeRaw(t, bare.Listener.Addr().String(), raw)
		seen, wantSeen := meshed.take(), bare.take()
		if !slices.Equal(statuses, c.Status) || !slices.Equal(statuses, wantStatuses) {
			tally.Fail(t, "%s/%s: statuses %v, want %v; net/http alone %v", c.Group, c.Name, statuses, c.Status, wantStatuses)
			continue
		}
		if !reflect.DeepEqual(seen, wantSeen) {
			tally.Fail(t, "%s/%s: delivered %+v, net/http alone %+v", c.Group, c.Name, seen, wantSeen)
			continue
		}
		if why := asRecorded(seen, c.Delivered); why != "" {
			tally.Fail(t, "%s/%s: %s", c.Group, c.Name, why)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "http_edge_cases", 74, 0)
}

// asRecorded compares what the handler saw with the record, which leaves out
// what is empty, and headers that say nothing here.
func asRecorded(seen, want []delivered) string {
	if len(seen) != len(want) {
		return fmt.Sprintf("%d requests delivered, want %d", len(seen), len(want))
	}
	for i := range seen {
		s, w := seen[i], want[i]
		for name, values := range w.Headers {
			// The record is in UTF-8, so bytes that are none are replaced in it.
			var got []string
			for _, v := range s.Headers[name] {
				got = append(got, string([]rune(v)))
			}
			if !slices.Equal(got, values) {
				return fmt.Sprintf("%s: %q, want %q", name, got, values)
			}
		}
		s.Headers, w.Headers = nil, nil
		if !reflect.DeepEqual(s, w) {
			return fmt.Sprintf("delivered %+v, want %+v", s, w)
		}
	}
	return ""
}

// TestHTTPSemantics: which failures are retried under the conditions that mean
// "the server has certainly not seen it", and under all of them.
func TestHTTPSemantics(t *testing.T) {
	var file struct {
		RetryRules []struct {
			Event     string
			GET, POST any
		} `json:"retry_rules"`
		RetryPrinciples   []string `json:"retry_principles"`
		RequestReplayable []struct {
			Name, Method, Body string
			Headers            map[string]string
			Replayable         bool
		} `json:"go_request_replayable"`
	}
	conformance.Load(t, "otel/http_semantics.json", &file)

	t.Run("retry rules", func(t *testing.T) {
		// What each event is to the engine. TestClassify and TestTLSFailures show
		// that the wire's errors come to these failures.
		certain := func(f resilience.Failure) func(*testing.T, *conformance.Tally, string) {
			return func(t *testing.T, tally *conformance.Tally, event string) {
				safe := retryOn(t, "connect-failure,refused-stream", 1)
				if o := (resilience.Outcome{GRPC: -1, Failure: f}); !safe.Retriable(&o) {
					tally.Fail(t, "%s: not retried, though the server has not seen it", event)
					return
				}
				tally.Pass()
			}
		}
		uncertain := func(f resilience.Failure) func(*testing.T, *conformance.Tally, string) {
			return func(t *testing.T, tally *conformance.Tally, event string) {
				o := resilience.Outcome{GRPC: -1, Failure: f}
				if safe := retryOn(t, "connect-failure,refused-stream", 1); safe.Retriable(&o) {
					tally.Fail(t, "%s: retried under the conditions that are safe for any request", event)
					return
				}
				// Where policy asks for more, it is the policy's word for which requests.
				policy := retryOn(t, "reset", 1)
				policy.RequestHeaders = idempotentOnly(t)
				get, post := routing.Request{Method: "GET"}, routing.Request{Method: "POST"}
				keyed := routing.Request{Method: "POST", Header: http.Header{"Idempotency-Key": {"1"}}}
				if !policy.Retriable(&o) || !policy.AllowsRequest(&get) || policy.AllowsRequest(&post) || !policy.AllowsRequest(&keyed) {
					tally.Fail(t, "%s: a policy for idempotent requests retries GET %v, POST %v, POST with a key %v", event,
						policy.AllowsRequest(&get), policy.AllowsRequest(&post), policy.AllowsRequest(&keyed))
					return
				}
				tally.Pass()
			}
		}
		never := func(f resilience.Failure) func(*testing.T, *conformance.Tally, string) {
			return func(t *testing.T, tally *conformance.Tally, event string) {
				every := retryOn(t, "5xx,gateway-error,reset,reset-before-request,connect-failure,refused-stream", 1)
				if o := (resilience.Outcome{GRPC: -1, Failure: f}); every.Retriable(&o) {
					tally.Fail(t, "%s: retried", event)
					return
				}
				tally.Pass()
			}
		}
		byStatus := func(code uint32) func(*testing.T, *conformance.Tally, string) {
			return func(t *testing.T, tally *conformance.Tally, event string) {
				o := resilience.Outcome{Status: int(code), GRPC: -1}
				named := retryOn(t, "retriable-status-codes", 1)
				named.StatusCodes = []uint32{code}
				if safe := retryOn(t, "connect-failure,refused-stream", 1); safe.Retriable(&o) || !named.Retriable(&o) {
					tally.Fail(t, "%s: retried without or not retried with policy's word", event)
					return
				}
				tally.Pass()
			}
		}
		rules := []struct {
			event string
			check func(*testing.T, *conformance.Tally, string)
			aside string
		}{
			{"connection refused / DNS / TLS", certain(resilience.ConnectFailure), ""},
			{"reused connection closed before any response byte", uncertain(resilience.Reset), ""},
			{"connection closed in the middle of the response", func(t *testing.T, tally *conformance.Tally, event string) {
				brokenBody(t, tally, event)
			}, ""},
			{"timeout waiting for response headers", uncertain(resilience.PerTryTimeout), ""},
			{"HTTP/2 GOAWAY", certain(resilience.RefusedStream), ""},
			{"HTTP/2 RST_STREAM REFUSED_STREAM", certain(resilience.RefusedStream), ""},
			{"HTTP/2 RST_STREAM other", uncertain(resilience.Reset), ""},
			{"HTTP/3", nil, "HTTP/3 is not spoken"},
			{"408", byStatus(408), ""},
			{"421", byStatus(421), ""},
			{"425", byStatus(425), ""},
			{"429 / 503 with Retry-After", byStatus(429), ""},
			{"any attempt after the request context is done", never(resilience.Cancelled), ""},
			{"request body not replayable", func(t *testing.T, tally *conformance.Tally, event string) {
				req := httptest.NewRequest("POST", "http://svc/", once(strings.Repeat("x", 100)))
				var b bodies
				b.begin(req, req.Body, true, false, 10)
				body, err := b.next()
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, body)
				if b.again() {
					tally.Fail(t, "%s: another attempt would be made", event)
					return
				}
				tally.Pass()
			}, ""},
		}
		var tally conformance.Tally
		for i, rule := range file.RetryRules {
			switch r := rules[min(i, len(rules)-1)]; {
			case !strings.HasPrefix(rule.Event, r.event):
				tally.Fail(t, "%q: no check for it", rule.Event)
			case r.check == nil:
				tally.SetAside(r.aside)
			default:
				r.check(t, &tally, rule.Event)
			}
		}
		tally.Check(t, "retry_rules", 13, 1)
	})

	t.Run("retry principles", func(t *testing.T) {
		var tally conformance.Tally
		for _, p := range file.RetryPrinciples {
			switch {
			case strings.Contains(p, "already retries by itself"):
				tally.SetAside("TestNetHTTPRetriesByItself shows it")
			default:
				tally.SetAside("advice for policy, which decides what is retried")
			}
		}
		tally.Check(t, "retry_principles", 0, 4)
	})

	// net/http calls a request replayable by its method and its body. To the
	// engine the body alone counts, because the method is policy's business, and
	// a body without GetBody is kept up to a limit.
	t.Run("replayable", func(t *testing.T) {
		var tally conformance.Tally
		for _, c := range file.RequestReplayable {
			var body io.Reader
			if c.Body != "none" {
				body = once("body")
			}
			req, err := http.NewRequestWithContext(context.Background(), c.Method, "http://svc/", body)
			if err != nil {
				t.Fatal(err)
			}
			for name, value := range c.Headers {
				req.Header.Set(name, value)
			}
			var b bodies
			b.begin(req, req.Body, true, false, -1) // nothing is kept, as net/http keeps nothing
			if _, err := b.next(); err != nil {
				t.Fatal(err)
			}
			policy := retryOn(t, "reset", 1)
			policy.RequestHeaders = idempotentOnly(t)
			view := routing.Request{Method: req.Method, Header: req.Header}
			if req.Header.Get("X-Idempotency-Key") != "" {
				tally.SetAside("X-Idempotency-Key is net/http's own; no policy of ours names it")
				continue
			}
			if got := b.again() && policy.AllowsRequest(&view); got != c.Replayable {
				tally.Fail(t, "%s: replayable %v, want %v", c.Name, got, c.Replayable)
				continue
			}
			tally.Pass()
		}
		tally.Check(t, "go_request_replayable", 6, 1)
	})
}

// idempotentOnly is the condition on requests of a policy for idempotent ones (RFC 9110 section 9.2.2).
func idempotentOnly(t *testing.T) []routing.HeaderMatch {
	t.Helper()
	methods, err := routing.Regex("GET|HEAD|OPTIONS|TRACE|PUT|DELETE")
	if err != nil {
		t.Fatal(err)
	}
	return []routing.HeaderMatch{
		{Name: routing.NewHeaderName(":method"), Kind: routing.HeaderString, String: methods},
		{Name: routing.NewHeaderName("idempotency-key"), Kind: routing.HeaderPresent, Present: true},
	}
}

// brokenBody: a response whose header the caller has is never asked for again.
func brokenBody(t *testing.T, tally *conformance.Tally, event string) {
	rec := &recorder{}
	w := newWorld(t, ClientOptions{Observer: rec}, func(w *world) {
		w.route.Retry = retryOn(t, "5xx,reset", 3)
		only(rawServer(t, thenSay("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart")))(w)
	})
	_, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
	if f := rec.failures(); !errors.Is(err, io.ErrUnexpectedEOF) || body != "part" || len(f) != 1 {
		tally.Fail(t, "%s: %q %v after %d attempts", event, body, err, len(f))
		return
	}
	tally.Pass()
}
