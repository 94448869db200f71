package meshhttp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// policies is a snapshot with inbound listeners.
func policies(listeners map[string]*snapshot.Inbound) *snapshot.Snapshot {
	return &snapshot.Snapshot{Inbound: listeners}
}

// letIn is a policy that lets everything in.
func letIn() *snapshot.Inbound {
	return &snapshot.Inbound{Plain: &snapshot.FilterChain{}}
}

// arriveAt is a request that came in at a local address; nil leaves the address out.
func arriveAt(t *testing.T, local net.Addr) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/x", nil)
	if local == nil {
		return r
	}
	return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
}

func TestHandlerAdmitsAndRefuses(t *testing.T) {
	secret := errors.New(`Listener "internal-name": filter_chains[0]: a detail of the control plane at 10.9.8.7`)
	good := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9080}
	for _, c := range []struct {
		name    string
		local   net.Addr
		inbound map[string]*snapshot.Inbound
		want    Refusal // zero: admitted
	}{
		{"admitted", good, map[string]*snapshot.Inbound{"127.0.0.1:9080": letIn()}, Refusal{}},
		{"admitted, the address as IPv6 has it", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1).To16(), Port: 9080}, map[string]*snapshot.Inbound{"127.0.0.1:9080": letIn()}, Refusal{}},
		{"policy in error", good, map[string]*snapshot.Inbound{"127.0.0.1:9080": {Err: secret}}, Refusal{Code: "not_ready", Listener: "127.0.0.1:9080"}},
		{"none for this address", good, map[string]*snapshot.Inbound{"127.0.0.1:9080": {Absent: true}}, Refusal{Code: "not_ready", Listener: "127.0.0.1:9080"}},
		{"policy for another port", good, map[string]*snapshot.Inbound{"127.0.0.1:9081": letIn()}, Refusal{Code: "not_ready", Listener: "127.0.0.1:9080"}},
		{"no local address", nil, map[string]*snapshot.Inbound{"127.0.0.1:9080": letIn()}, Refusal{Code: "not_ready", Listener: "<nil>"}},
		{"not TCP", &net.UnixAddr{Name: "/run/x", Net: "unix"}, map[string]*snapshot.Inbound{"127.0.0.1:9080": letIn()}, Refusal{Code: "not_ready", Listener: "/run/x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := inbound.New(inbound.Options{Subscribe: func(string) {}, Trouble: func() error { return secret }})
				e.Install(policies(c.inbound))
				var log bytes.Buffer
				reached := false
				h := Handler(e, slog.New(slog.NewTextHandler(&log, nil)), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached = true }))
				w := httptest.NewRecorder()
				h.ServeHTTP(w, arriveAt(t, c.local))
				if reached != (c.want == Refusal{}) {
					t.Fatalf("the handler was reached: %v", reached)
				}
				if reached {
					if w.Code != 200 || log.Len() > 0 {
						t.Errorf("%d, log %s", w.Code, &log)
					}
					return
				}
				var got Refusal
				body := w.Body.String()
				if err := json.Unmarshal([]byte(body), &got); err != nil || got != c.want || w.Code != 503 || w.Header().Get("Content-Type") != "application/json" {
					t.Errorf("%d %v %s, want 503 and %+v", w.Code, w.Header(), body, c.want)
				}
				if strings.Contains(body, "control plane") || strings.Contains(body, "10.9.8.7") || strings.Contains(body, "internal-name") {
					t.Errorf("the caller is told of the control plane: %s", body)
				}
				if !strings.Contains(log.String(), "request refused") {
					t.Errorf("log %q", &log)
				}
			})
		})
	}
}

// TestHandlerWaitsForPolicy: a request that is too early is held until the
// policy is there, its own time is over, or the wait is.
func TestHandlerWaitsForPolicy(t *testing.T) {
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9080}
	for _, c := range []struct {
		name     string
		arrives  time.Duration // the policy; zero: never
		deadline time.Duration // the request's; zero: none
		code     int
		after    time.Duration
	}{
		{"comes in time", 3 * time.Second, 0, 200, 3 * time.Second},
		{"never comes", 0, 0, 503, 15 * time.Second},
		{"comes too late for the request", 3 * time.Second, 2 * time.Second, 504, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked []string
				e := inbound.New(inbound.Options{Subscribe: func(a string) { asked = append(asked, a) }})
				h := Handler(e, slog.New(slog.DiscardHandler), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
				if c.arrives > 0 {
					// What has nothing to do with the listener wakes nobody for good.
					time.AfterFunc(time.Second, func() { e.Install(policies(map[string]*snapshot.Inbound{"127.0.0.1:1": letIn()})) })
					time.AfterFunc(c.arrives, func() { e.Install(policies(map[string]*snapshot.Inbound{"127.0.0.1:9080": letIn()})) })
				}
				r := arriveAt(t, local)
				if c.deadline > 0 {
					ctx, cancel := context.WithTimeout(r.Context(), c.deadline)
					defer cancel()
					r = r.WithContext(ctx)
				}
				w := httptest.NewRecorder()
				began := time.Now()
				h.ServeHTTP(w, r)
				if took := time.Since(began); w.Code != c.code || took != c.after {
					t.Errorf("%d after %s, want %d after %s", w.Code, took, c.code, c.after)
				}
				if len(asked) != 1 || asked[0] != "127.0.0.1:9080" {
					t.Errorf("asked the control plane for %v", asked)
				}
				time.Sleep(c.arrives) // timers end before the bubble does
			})
		})
	}
}

// TestWildcardListener: whatever address a connection came in at, the listener
// on all addresses has one policy, under the name it listens at.
func TestWildcardListener(t *testing.T) {
	leak.Check(t)
	var mu sync.Mutex
	var asked []string
	e := inbound.New(inbound.Options{Subscribe: func(a string) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, a)
	}})
	defer e.Close()
	lis, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	e.Listening(lis.Addr())
	server := &http.Server{Handler: Handler(e, slog.New(slog.DiscardHandler), status(200, "in"))}
	go func() { _ = server.Serve(lis) }()
	defer server.Close()
	_, port, _ := net.SplitHostPort(lis.Addr().String())
	name := lis.Addr().String() // "[::]:port" where the system's sockets carry both IPv4 and IPv6
	e.Install(policies(map[string]*snapshot.Inbound{name: letIn()}))
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for _, host := range []string{"127.0.0.1", "127.0.0.2"} {
		code, body, err := get(t, &http.Client{Transport: transport}, request(t, "GET", "http://"+net.JoinHostPort(host, port)+"/", nil))
		if err != nil {
			t.Skipf("this machine has no %s: %v", host, err)
		}
		if code != 200 || body != "in" {
			t.Errorf("at %s: %d %q", host, code, body)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 1 || asked[0] != name {
		t.Errorf("asked the control plane for %v", asked)
	}
}

// serving runs Serve and returns its address, what stops it, and its error.
func serving(t *testing.T, drain time.Duration, handler http.Handler) (address string, stop func(), served <-chan error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- Serve(ctx, lis, handler, drain) }()
	t.Cleanup(cancel)
	return lis.Addr().String(), cancel, result
}

func protocolClient(t *testing.T, h2 bool) *http.Client {
	p := new(http.Protocols)
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	transport := &http.Transport{Protocols: p}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestServeOnePortForBothProtocols(t *testing.T) {
	leak.Check(t)
	address, stop, served := serving(t, 5*time.Second, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	for h2, want := range map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"} {
		if _, body, err := get(t, protocolClient(t, h2), request(t, "GET", "http://"+address+"/", nil)); err != nil || body != want {
			t.Errorf("%q %v, want %s", body, err, want)
		}
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServeDrains(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP/1.1", true: "HTTP/2"}[h2], func(t *testing.T) {
			leak.Check(t)
			entered, leave := make(chan struct{}), make(chan struct{})
			address, stop, served := serving(t, time.Minute, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				<-leave
				if r.Context().Err() != nil {
					t.Error("the request in flight was cancelled")
				}
				_, _ = io.WriteString(w, "whole")
			}))
			answer := make(chan string, 1)
			client := protocolClient(t, h2)
			go func() {
				_, body, err := get(t, client, request(t, "GET", "http://"+address+"/", nil))
				if err != nil {
					body = err.Error()
				}
				answer <- body
			}()
			<-entered
			stop()
			// Nobody new is let in.
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					break
				}
				conn.Close()
				if time.Now().After(deadline) {
					t.Fatal("connections are still accepted")
				}
			}
			select {
			case err := <-served:
				t.Fatalf("Serve returned %v with a request in flight", err)
			default:
			}
			close(leave)
			if got := <-answer; got != "whole" {
				t.Errorf("the request in flight got %q", got)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServeCutsOff(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP/1.1", true: "HTTP/2"}[h2], func(t *testing.T) {
			leak.Check(t)
			entered, ended := make(chan struct{}), make(chan struct{})
			address, stop, served := serving(t, 20*time.Millisecond, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				<-r.Context().Done()
				close(ended)
			}))
			client := protocolClient(t, h2)
			failed := make(chan error, 1)
			go func() {
				_, _, err := get(t, client, request(t, "GET", "http://"+address+"/", nil))
				failed <- err
			}()
			<-entered
			stop()
			if err := <-served; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Serve returned %v, want that the drain time has passed", err)
			}
			if err := <-failed; err == nil {
				t.Error("the request that was cut off succeeded")
			}
			<-ended // the handler is told
		})
	}
}

func TestServeFails(t *testing.T) {
	leak.Check(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lis.Close()
	if err := Serve(t.Context(), lis, http.NotFoundHandler(), time.Second); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want the listener's", err)
	}
}

// TestSlowHeader: a client that does not finish its header is cut off, and one
// that sends its body slowly is not.
func TestSlowHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lis := newPipeListener()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- Serve(ctx, lis, status(200, "ok"), time.Second) }()

		slow := lis.dial()
		began := time.Now()
		_, _ = io.WriteString(slow, "GET / HTTP/1.1\r\nHost: a\r\nX-A: ")
		answer, _ := io.ReadAll(slow)
		if took := time.Since(began); took != 10*time.Second || strings.Contains(string(answer), " 200 ") {
			t.Errorf("closed after %s with %q, want 10 s and no success", took, answer)
		}
		slow.Close()

		patient := lis.dial()
		_, _ = io.WriteString(patient, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
		for range 2 {
			time.Sleep(30 * time.Second)
			_, _ = io.WriteString(patient, "x")
		}
		if resp, err := http.ReadResponse(bufio.NewReader(patient), nil); err != nil || resp.StatusCode != 200 {
			t.Errorf("a slow body: %v %v", resp, err)
		}
		patient.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// pipeListener accepts connections in memory, so that time can be synctest's.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	return ours
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
