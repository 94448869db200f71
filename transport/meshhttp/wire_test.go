package meshhttp

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

func TestGate(t *testing.T) {
	at := outbound.Place{Host: "svc:80"}
	synctest.Test(t, func(t *testing.T) {
		g := newGate(resilience.Limits{MaxConnections: 1, MaxPendingRequests: 2})
		ctx, cancel := context.WithCancel(t.Context())
		if limit := g.enter(ctx); limit != "" {
			t.Fatalf("the first is refused by %s", limit)
		}
		type entry struct {
			name, limit string
			err         error
		}
		entries := make(chan entry, 2)
		wait := func(name string, ctx context.Context) {
			limit := g.enter(ctx)
			e := entry{name: name, limit: limit}
			if limit != "" {
				e.err = g.refusal(ctx, limit, at)
			}
			entries <- e
		}
		go wait("patient", t.Context())
		go wait("impatient", ctx)
		synctest.Wait() // both wait now

		var over *outbound.LimitError
		if limit := g.enter(t.Context()); limit != "max_pending_requests" {
			t.Errorf("a third that would wait: %q", limit)
		} else if err := g.refusal(t.Context(), limit, at); !errors.As(err, &over) || over.Max != 2 || over.Host != "svc:80" {
			t.Errorf("refusal %v", err)
		}
		cancel()
		if e := <-entries; e.name != "impatient" || !errors.Is(e.err, context.Canceled) {
			t.Errorf("after the cancellation: %+v", e)
		}
		g.leave()
		if e := <-entries; e.name != "patient" || e.limit != "" {
			t.Errorf("after the first has left: %+v", e)
		}
		g.leave()
		if g.waiting.Load() != 0 || len(g.busy) != 0 {
			t.Errorf("%d waiting, %d busy at the end", g.waiting.Load(), len(g.busy))
		}
	})
	t.Run("nobody may wait", func(t *testing.T) {
		g := newGate(resilience.Limits{MaxConnections: 2, MaxPendingRequests: 0})
		for i, want := range []string{"", "", "max_pending_requests"} {
			if got := g.enter(t.Context()); got != want {
				t.Errorf("request %d: %q, want %q", i+1, got, want)
			}
		}
		g.leave()
		if got := g.enter(t.Context()); got != "" {
			t.Errorf("a place that was given back: %q", got)
		}
	})
	t.Run("the time limit of the attempt", func(t *testing.T) {
		g := newGate(resilience.Limits{MaxConnections: 1, MaxPendingRequests: 1})
		g.enter(t.Context())
		limited := new(try)
		limited.begin(new(clock), nil, t.Context(), time.Now(), time.Millisecond, 0)
		defer limited.end()
		limit := g.enter(&limited.ctx)
		if err := g.refusal(&limited.ctx, limit, at); !errors.Is(err, context.Canceled) || !limited.passed.Load() {
			t.Errorf("%q, refusal %v", limit, err)
		}
	})
}

// recorder is an observer that keeps the attempts' outcomes and the call's.
type recorder struct {
	mu       sync.Mutex
	attempts []resilience.Outcome
	calls    []resilience.Outcome
}

func (*recorder) Leg(outbound.LegInfo) any { return nil }
func (*recorder) CallStart(ctx context.Context, _ *outbound.Call) context.Context {
	return ctx
}
func (*recorder) TryStart(ctx context.Context, _ *outbound.Try, _ *outbound.Endpoint) context.Context {
	return ctx
}
func (r *recorder) TryEnd(_ context.Context, _ *outbound.Try, o *resilience.Outcome, _ time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attempts = append(r.attempts, *o)
}
func (r *recorder) CallEnd(_ *outbound.Call, o *resilience.Outcome, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, *o)
}
func (*recorder) Retry(*outbound.Call, string)          {}
func (*recorder) Ejection(string, string, string, bool) {}
func (*recorder) Breaker(string, string)                {}

// failures are how the attempts ended.
func (r *recorder) failures() []resilience.Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []resilience.Failure
	for i := range r.attempts {
		all = append(all, r.attempts[i].Failure)
	}
	return all
}

// rawServer accepts connections and gives each, with its number from 0, to serve.
func rawServer(t *testing.T, serve func(n int, conn net.Conn)) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	t.Cleanup(func() {
		lis.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	running.Go(func() {
		for n := 0; ; n++ {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			running.Go(func() {
				defer func() {
					mu.Lock()
					delete(open, conn)
					mu.Unlock()
					conn.Close()
				}()
				serve(n, conn)
			})
		}
	})
	return lis.Addr().String()
}

// only makes an address the cluster's only endpoint.
func only(address string) func(*world) {
	return func(w *world) {
		w.cluster.Endpoints = lb.NewEndpoints([]lb.Endpoint{{Address: address, Weight: 1}}, nil)
	}
}

// trusting lets the wires of a world trust httptest's certificate, which is for example.com.
func trusting(secure *httptest.Server, names ...string) func(*snapshot.Cluster) outbound.Wire {
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	return func(c *snapshot.Cluster) outbound.Wire {
		w := NewWire(nil)(c).(*wire)
		for _, name := range names {
			w.transport(&url.URL{Scheme: "https", Host: name}, false).(*http.Transport).TLSClientConfig.RootCAs = roots
		}
		return w
	}
}

// newSecureWorld is newWorld for "https://host/" with one endpoint.
func newSecureWorld(t *testing.T, host string, rec *recorder, newWire func(*snapshot.Cluster) outbound.Wire, address string) *world {
	t.Helper()
	w := newWorld(t, ClientOptions{Observer: rec}, only(address))
	w.snap.Hosts[host+":443"] = &snapshot.Host{Name: host + ":443", VirtualHost: w.snap.Hosts["svc:80"].VirtualHost}
	w.rebuild(t, rec, newWire)
	return w
}

// rebuild gives the world an engine that has the observer and the wires.
func (w *world) rebuild(t *testing.T, rec *recorder, newWire func(*snapshot.Cluster) outbound.Wire) {
	t.Helper()
	w.engine.Close()
	w.engine = outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: newWire, PolicyWait: 20 * time.Second, Observer: rec})
	w.engine.Install(w.snap)
	rt := NewRoundTripper(w.engine, ClientOptions{Observer: rec})
	w.client = &http.Client{Transport: rt}
	t.Cleanup(w.engine.Close)
	t.Cleanup(rt.Close)
}

// TestTLSToAnEndpoint: the endpoint is dialled by its address, while name
// indication, verification and Host are the URL's.
func TestTLSToAnEndpoint(t *testing.T) {
	for _, c := range []struct {
		name  string
		h2    bool
		proto string
	}{{"HTTP/1.1", false, "HTTP/1.1"}, {"HTTP/2", true, "HTTP/2.0"}} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{}
			secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, strings.Join([]string{r.Proto, r.TLS.ServerName, r.Host, r.RequestURI}, " "))
			}))
			secure.EnableHTTP2 = c.h2
			secure.StartTLS()
			defer secure.Close()
			w := newSecureWorld(t, "example.com", rec, trusting(secure, "example.com"), secure.Listener.Addr().String())
			for range 2 {
				code, body, err := get(t, w.client, request(t, "GET", "https://example.com/x?y", nil))
				if err != nil || code != 200 || body != c.proto+" example.com example.com /x?y" {
					t.Fatalf("%d %q %v", code, body, err)
				}
			}
		})
	}
}

func TestTLSFailures(t *testing.T) {
	secure := httptest.NewUnstartedServer(status(200, ""))
	secure.Config.ErrorLog = discardLog
	secure.StartTLS()
	defer secure.Close()
	old := httptest.NewUnstartedServer(status(200, ""))
	old.Config.ErrorLog = discardLog
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.StartTLS()
	defer old.Close()
	plain := httptest.NewUnstartedServer(status(200, ""))
	plain.Config.ErrorLog = discardLog
	plain.Start()
	defer plain.Close()
	hangUp := rawServer(t, func(_ int, conn net.Conn) { _, _ = bufio.NewReader(conn).Peek(1) })
	for _, c := range []struct {
		name, host, address string
		newWire             func(*snapshot.Cluster) outbound.Wire
		want                func(error) bool
	}{
		{"certificate for another name", "other.test", secure.Listener.Addr().String(), trusting(secure, "other.test"), func(err error) bool {
			var name x509.HostnameError
			return errors.As(err, &name) && name.Host == "other.test"
		}},
		{"unknown authority", "example.com", secure.Listener.Addr().String(), NewWire(nil), func(err error) bool {
			var unknown *tls.CertificateVerificationError
			return errors.As(err, &unknown)
		}},
		{"no TLS there", "example.com", plain.Listener.Addr().String(), NewWire(nil), func(err error) bool {
			return strings.Contains(err.Error(), "HTTP response to HTTPS client") || errors.As(err, new(tls.RecordHeaderError))
		}},
		{"too old a version", "example.com", old.Listener.Addr().String(), NewWire(nil), func(err error) bool {
			return strings.Contains(err.Error(), "protocol version not supported")
		}},
		{"hung up in the handshake", "example.com", hangUp, NewWire(nil), func(err error) bool { return err != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{}
			w := newSecureWorld(t, c.host, rec, c.newWire, c.address)
			_, _, err := get(t, w.client, request(t, "POST", "https://"+c.host+"/", strings.NewReader("body")))
			if err == nil || !c.want(err) {
				t.Errorf("error %v", err)
			}
			// Nothing of the request was sent, so any request may be sent elsewhere.
			if f := rec.failures(); len(f) != 1 || f[0] != resilience.ConnectFailure {
				t.Errorf("attempts ended with %v, want a connect failure", f)
			}
		})
	}
}

// connections counts a server's connections as they come and go.
type connections struct {
	mu   sync.Mutex
	open int
	ever int
}

func (c *connections) state(_ net.Conn, s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s {
	case http.StateNew:
		c.open++
		c.ever++
	case http.StateClosed, http.StateHijacked:
		c.open--
	}
}

func (c *connections) wait(t *testing.T, open int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		n := c.open
		c.mu.Unlock()
		if n == open {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are open, want %d", n, open)
		}
	}
}

// TestRetire: when a cluster is gone, or its connection settings have changed,
// idle connections close at once and busy ones when their request is done.
func TestRetire(t *testing.T) {
	for _, c := range []struct {
		name   string
		h2     bool
		change func(*world) *snapshot.Snapshot
	}{
		{"cluster gone", false, func(w *world) *snapshot.Snapshot { return &snapshot.Snapshot{} }},
		{"cluster gone, HTTP/2", true, func(w *world) *snapshot.Snapshot { return &snapshot.Snapshot{} }},
		{"other settings", false, func(w *world) *snapshot.Snapshot {
			changed := *w.cluster
			changed.ConnectTimeout = time.Minute
			return &snapshot.Snapshot{Hosts: w.snap.Hosts, Clusters: map[string]*snapshot.Cluster{"c": &changed}}
		}},
		{"other protocol", false, func(w *world) *snapshot.Snapshot {
			changed := *w.cluster
			changed.HTTP2 = true
			return &snapshot.Snapshot{Hosts: w.snap.Hosts, Clusters: map[string]*snapshot.Cluster{"c": &changed}}
		}},
	} {
		for _, busy := range []bool{false, true} {
			t.Run(c.name+map[bool]string{false: ", idle", true: ", busy"}[busy], func(t *testing.T) {
				w := newWorld(t, ClientOptions{}, func(w *world) {
					w.cluster.HTTP2 = c.h2
				})
				count := &connections{}
				server := httptest.NewUnstartedServer(status(200, "ok"))
				server.Config.Protocols = new(http.Protocols)
				server.Config.Protocols.SetHTTP1(true)
				server.Config.Protocols.SetUnencryptedHTTP2(true)
				server.Config.ConnState = count.state
				hold := make(chan struct{})
				if busy {
					server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						w.WriteHeader(200)
						_ = http.NewResponseController(w).Flush()
						<-hold
						_, _ = io.WriteString(w, "ok")
					})
				}
				server.Start()
				defer server.Close()
				only(server.Listener.Addr().String())(w)
				// A cluster that the engine has seen is never changed in place.
				first := *w.cluster
				w.cluster = &first
				w.snap = &snapshot.Snapshot{Hosts: w.snap.Hosts, Clusters: map[string]*snapshot.Cluster{"c": &first}}
				w.engine.Install(w.snap)
				resp, err := w.client.Do(request(t, "GET", "http://svc/", nil))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				finish := func() {
					if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ok" {
						t.Errorf("%q, %v", b, err)
					}
				}
				if !busy {
					finish()
					close(hold)
				}
				count.wait(t, 1)
				w.engine.Install(c.change(w))
				if busy {
					close(hold)
					finish() // the response in flight is not cut off
				}
				count.wait(t, 0)
			})
		}
	}
}

var discardLog = log.New(io.Discard, "", 0)
