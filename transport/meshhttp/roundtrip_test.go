package meshhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// world is an engine with one host, "svc:80", whose single route goes to the
// handlers' servers in turn. A test changes route and cluster before use.
type world struct {
	engine  *outbound.Engine
	client  *http.Client
	servers []*httptest.Server
	route   *snapshot.Route
	cluster *snapshot.Cluster
	snap    *snapshot.Snapshot
	wire    *wire         // of the cluster "c"
	step    chan struct{} // for handlers that go on only when the test says so
}

func newWorld(t *testing.T, options ClientOptions, change func(*world), handlers ...http.HandlerFunc) *world {
	t.Helper()
	leak.Check(t)
	return build(t, nil, options, change, handlers)
}

// inBubble is newWorld without a network and with a clock that moves only when
// all wait: what comes of a limit in time does not depend on the machine.
func inBubble(t *testing.T, options ClientOptions, change func(*world), handlers []http.HandlerFunc, test func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		leak.Check(t)
		test(t, build(t, make(map[string]*memory), options, change, handlers))
	})
}

// build makes a world, whose servers are in memory where there is a map for them.
func build(t *testing.T, network map[string]*memory, options ClientOptions, change func(*world), handlers []http.HandlerFunc) *world {
	t.Helper()
	w := &world{}
	var endpoints []lb.Endpoint
	for _, h := range handlers {
		s := httptest.NewUnstartedServer(h)
		if network != nil {
			s.Listener.Close()
			lis := &memory{bufconn.Listen(64 << 10), &net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(len(network)+1)), Port: 80}}
			s.Listener, network[lis.Addr().String()] = lis, lis
		}
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetHTTP1(true)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
		t.Cleanup(s.Close)
		w.servers = append(w.servers, s)
		endpoints = append(endpoints, lb.Endpoint{Address: s.Listener.Addr().String(), Weight: 1})
	}
	weighted, err := routing.NewWeighted([]routing.WeightedCluster{{Name: "c", Weight: 1}})
	if err != nil {
		t.Fatal(err)
	}
	vh := &snapshot.VirtualHost{Routes: []snapshot.Route{{
		Name: "r", Match: routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix, Value: "/"}}, Clusters: weighted,
	}}}
	w.route = &vh.Routes[0]
	w.cluster = &snapshot.Cluster{
		Name: "c", ConnectTimeout: 5 * time.Second, LB: lb.Policy{Kind: lb.RoundRobin}, Limits: unlimited,
		Endpoints: lb.NewEndpoints(endpoints, nil),
	}
	w.snap = &snapshot.Snapshot{
		Hosts:    map[string]*snapshot.Host{"svc:80": {Name: "svc:80", VirtualHost: vh}},
		Clusters: map[string]*snapshot.Cluster{"c": w.cluster},
	}
	if change != nil {
		change(w)
	}
	with := &connecting{identities: outbound.NewIdentities(nil)}
	if network != nil {
		with.network = func(ctx context.Context, _, address string) (net.Conn, error) {
			return network[address].DialContext(ctx)
		}
	}
	w.engine = outbound.New(outbound.Options{Subscribe: func(string) {}, PolicyWait: time.Second, NewWire: func(c *snapshot.Cluster) outbound.Wire {
		home := newWire(c, with)
		if c.Name == "c" {
			w.wire = home
		}
		return home
	}})
	w.engine.Install(w.snap)
	rt := NewRoundTripper(w.engine, options)
	w.client = &http.Client{Transport: rt}
	t.Cleanup(func() {
		// Every count must be back at zero when all bodies are closed: at once, but
		// for attempts that have lost a race and are told so at this moment, and copies.
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			left := w.counted()
			if left == "" {
				break
			}
			if w.route.Hedge == nil && w.route.Mirrors == nil || time.Now().After(deadline) {
				t.Errorf("still counted: %s", left)
				break
			}
		}
		w.engine.Close()
		rt.Close()
	})
	return w
}

// counted names what the engine still counts as in flight.
func (w *world) counted() string {
	var left []string
	for _, c := range w.engine.Status().Clusters {
		if c.Requests != 0 || c.Retries != 0 {
			left = append(left, fmt.Sprintf("%s: %d requests, %d retries", c.Name, c.Requests, c.Retries))
		}
		for _, e := range c.Endpoints {
			if e.Active != 0 {
				left = append(left, fmt.Sprintf("%s: %d active", e.Address, e.Active))
			}
		}
	}
	return strings.Join(left, "; ")
}

func retryOn(t testing.TB, conditions string, n uint32) *resilience.RetryPolicy {
	t.Helper()
	on, unknown := resilience.ParseRetryOn(conditions)
	if len(unknown) > 0 {
		t.Fatal(unknown)
	}
	p := resilience.DefaultRetryPolicy(on)
	p.NumRetries, p.BaseInterval, p.MaxInterval = n, time.Millisecond, 2*time.Millisecond
	return &p
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// get reads a whole response and returns its status and body.
func get(t testing.TB, c *http.Client, req *http.Request) (int, string, error) {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func request(t testing.TB, method, target string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestHostIsKeptAndEndpointsAlternate(t *testing.T) {
	echo := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s %s", name, r.Host, r.RequestURI)
		}
	}
	w := newWorld(t, ClientOptions{}, nil, echo("a"), echo("b"))
	seen := map[string]int{}
	for range 10 {
		_, body, err := get(t, w.client, request(t, "GET", "http://svc/a%2Fb?q=1", nil))
		if err != nil {
			t.Fatal(err)
		}
		seen[body]++
	}
	if seen["a svc /a%2Fb?q=1"] != 5 || seen["b svc /a%2Fb?q=1"] != 5 {
		t.Errorf("answers %v", seen)
	}
}

func TestRetryHidesFailures(t *testing.T) {
	for _, c := range []struct {
		name, conditions, method string
		body                     func() io.Reader
		want                     int
	}{
		{"5xx", "5xx", "GET", nil, 200},
		{"not asked for", "connect-failure", "GET", nil, 503},
		{"body with GetBody", "5xx", "POST", func() io.Reader { return strings.NewReader("payload") }, 200},
		{"body that is kept", "5xx", "POST", func() io.Reader { return io.MultiReader(strings.NewReader("pay"), strings.NewReader("load")) }, 200},
		{"body over the limit", "5xx", "POST", func() io.Reader { return io.MultiReader(bytes.NewReader(make([]byte, 100<<10))) }, 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			var bodies sync.Map
			good := func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				bodies.Store("good", string(b))
			}
			w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Retry = retryOn(t, c.conditions, 1) }, status(503, "no"), good)
			// Round robin begins at one of them: the second call begins at the other.
			var codes []int
			for range 2 {
				var body io.Reader
				if c.body != nil {
					body = c.body()
				}
				code, _, err := get(t, w.client, request(t, c.method, "http://svc/", body))
				if err != nil {
					t.Fatal(err)
				}
				codes = append(codes, code)
			}
			if max(codes[0], codes[1]) != c.want {
				t.Errorf("statuses %v, want none over %d", codes, c.want)
			}
			if b, ok := bodies.Load("good"); c.method == "POST" && c.want == 200 && (!ok || b != "payload") {
				t.Errorf("the good server read %q", b)
			}
		})
	}
}

// deadAddress is one at which nobody listens: a port that was open and is
// closed may be another test's at any moment, and this one the kernel gives to nobody.
const deadAddress = "127.0.0.1:1"

func TestDeadEndpoint(t *testing.T) {
	w := newWorld(t, ClientOptions{}, func(w *world) {
		w.route.Retry = retryOn(t, "connect-failure", 2)
		alive := w.servers[0].Listener.Addr().String()
		w.cluster.Endpoints = lb.NewEndpoints([]lb.Endpoint{{Address: deadAddress, Weight: 1}, {Address: alive, Weight: 1}}, nil)
	}, status(200, "alive"))
	for range 10 {
		if code, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || code != 200 || body != "alive" {
			t.Fatalf("%d %q %v", code, body, err)
		}
	}
}

func TestResetBeforeRequest(t *testing.T) {
	abort := func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
	w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Retry = retryOn(t, "reset-before-request", 3) }, abort)
	req := request(t, "POST", "http://svc/", strings.NewReader("x"))
	if _, _, err := get(t, w.client, req); err == nil {
		t.Fatal("no error")
	}
	if n := w.engine.Status().Clusters[0].Endpoints[0].Requests; n != 1 {
		t.Errorf("%d attempts, want 1: the request had been sent", n)
	}
}

func TestRetriesEnd(t *testing.T) {
	var attempts atomic.Int32
	w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Retry = retryOn(t, "5xx", 3) }, func(w http.ResponseWriter, r *http.Request) {
		attempts.Add(1)
		w.WriteHeader(500)
		_, _ = io.WriteString(w, "last")
	})
	code, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
	if err != nil || code != 500 || body != "last" || attempts.Load() != 4 {
		t.Errorf("%d %q %v after %d attempts, want the last 500 after 4", code, body, err, attempts.Load())
	}
}

func TestTimeouts(t *testing.T) {
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	half := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	wants := func(limit string) func(error) bool {
		return func(err error) bool {
			var timeout *outbound.TimeoutError
			return errors.As(err, &timeout) && timeout.Limit == limit && errors.Is(err, context.DeadlineExceeded) && timeout.Cluster == "c"
		}
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		change  func(*world)
		want    func(error) bool
	}{
		{"route, before the headers", hang, func(w *world) { w.route.Timeout = 50 * time.Millisecond }, wants("timeout")},
		{"route, in the body", half, func(w *world) { w.route.Timeout = 100 * time.Millisecond }, wants("timeout")},
		{"per try", hang, func(w *world) {
			w.route.Retry = retryOn(t, "reset", 1)
			w.route.Retry.PerTryTimeout = 30 * time.Millisecond
		}, wants("per_try_timeout")},
		{"max stream duration", hang, func(w *world) { w.route.MaxStreamDuration = 50 * time.Millisecond }, wants("timeout")},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, ClientOptions{}, c.change, []http.HandlerFunc{c.handler}, func(t *testing.T, w *world) {
				_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
				if !c.want(err) {
					t.Errorf("error %v", err)
				}
				var u *url.Error
				if errors.As(err, &u) && !u.Timeout() {
					t.Errorf("%v does not say that it is a timeout", err)
				}
			})
		})
	}
	t.Run("per try ends with the headers", func(t *testing.T) {
		slowBody := func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Hour)
			_, _ = io.WriteString(w, "done")
		}
		inBubble(t, ClientOptions{}, func(w *world) {
			w.route.Retry = retryOn(t, "reset", 1)
			w.route.Retry.PerTryTimeout = 500 * time.Millisecond
		}, []http.HandlerFunc{slowBody}, func(t *testing.T, w *world) {
			if _, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || body != "done" {
				t.Errorf("%q %v", body, err)
			}
		})
	})
	t.Run("the caller's own", func(t *testing.T) {
		w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Timeout = time.Minute }, hang)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil).WithContext(ctx))
		var timeout *outbound.TimeoutError
		if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) {
			t.Errorf("error %v, want the plain deadline", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Retry = retryOn(t, "reset", 3) }, hang)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestConnectionLimits(t *testing.T) {
	entered, leave := make(chan struct{}, 8), make(chan struct{})
	w := newWorld(t, ClientOptions{}, func(w *world) {
		w.cluster.Limits.MaxConnections, w.cluster.Limits.MaxPendingRequests = 1, 1
	}, func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-leave
	})
	results := make(chan error, 3)
	do := func() {
		_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
		results <- err
	}
	go do()
	<-entered
	// One of two more may wait, the other is refused at once.
	go do()
	go do()
	var limit *outbound.LimitError
	if err := <-results; !errors.As(err, &limit) || limit.Limit != "max_pending_requests" {
		t.Errorf("error %v, want max_pending_requests", err)
	}
	close(leave)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

func TestMaxRequestsPerConnection(t *testing.T) {
	for _, c := range []struct {
		name string
		max  uint32
		h2   bool
		want int // connections for 7 requests
	}{
		{"no limit", 0, false, 1},
		{"one", 1, false, 7},
		{"three", 3, false, 3},
		{"three, HTTP/2", 3, true, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, ClientOptions{}, func(w *world) {
				w.cluster.MaxRequestsPerConnection, w.cluster.HTTP2 = c.max, c.h2
			}, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, r.RemoteAddr)
			})
			seen := map[string]bool{}
			for range 7 {
				_, remote, err := get(t, w.client, request(t, "POST", "http://svc/", strings.NewReader("body")))
				if err != nil {
					t.Fatal(err)
				}
				seen[remote] = true
			}
			if len(seen) != c.want {
				t.Errorf("%d connections, want %d", len(seen), c.want)
			}
		})
	}
}

// TestDiscardedResponsesFreeTheirConnections: what a retry throws away does not
// cost a connection.
func TestDiscardedResponsesFreeTheirConnections(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Retry = retryOn(t, "5xx", 2) }, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.RemoteAddr] = true
		mu.Unlock()
		w.WriteHeader(503)
		_, _ = w.Write(make([]byte, 8<<10))
	})
	for range 5 {
		if code, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || code != 503 {
			t.Fatal(code, err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 1 {
		t.Errorf("%d connections for requests one after another, want 1", len(seen))
	}
}

func TestHostOfARequestWithoutOne(t *testing.T) {
	w := newWorld(t, ClientOptions{}, nil, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) })
	req := (&http.Request{Method: "GET", URL: &url.URL{Scheme: "http", Host: "svc", Path: "/"}, Header: http.Header{}}).WithContext(t.Context())
	if _, host, err := get(t, w.client, req); err != nil || host != "svc" {
		t.Errorf("the server saw host %q, %v", host, err)
	}
}

func TestHTTP2(t *testing.T) {
	w := newWorld(t, ClientOptions{}, func(w *world) { w.cluster.HTTP2 = true }, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
		w.Header().Set(http.TrailerPrefix+"X-End", "yes")
	})
	resp, err := w.client.Do(request(t, "GET", "http://svc/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "HTTP/2.0" || resp.Trailer.Get("X-End") != "yes" {
		t.Errorf("%q, trailer %v, %v", b, resp.Trailer, err)
	}
}

func TestCloseDuringRead(t *testing.T) {
	w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Timeout = time.Minute }, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "start")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	for range 20 {
		resp, err := w.client.Do(request(t, "GET", "http://svc/", nil))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			_, err := io.ReadAll(resp.Body)
			done <- err
		}()
		resp.Body.Close()
		if err := <-done; err == nil {
			t.Fatal("a body that was closed read to its end")
		}
	}
}

func TestResetInBody(t *testing.T) {
	w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Retry = retryOn(t, "reset,5xx", 3) }, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "short")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	resp, err := w.client.Do(request(t, "GET", "http://svc/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "short" {
		t.Errorf("%q, %v: want what came and an error", b, err)
	}
	if n := w.engine.Status().Clusters[0].Endpoints[0].Requests; n != 1 {
		t.Errorf("%d attempts, want 1: a response that the caller has is never tried again", n)
	}
}

func TestExternalHost(t *testing.T) {
	leak.Check(t)
	plain := httptest.NewServer(status(200, "plain"))
	defer plain.Close()
	secure := httptest.NewTLSServer(status(200, "secure"))
	defer secure.Close()
	base := secure.Client().Transport.(*http.Transport)
	defer base.CloseIdleConnections()
	weighted, err := routing.NewWeighted([]routing.WeightedCluster{{Name: "passthrough", Weight: 1}})
	if err != nil {
		t.Fatal(err)
	}
	e := outbound.New(outbound.Options{External: func(host string) (*snapshot.Host, *snapshot.Cluster) {
		vh := &snapshot.VirtualHost{Routes: []snapshot.Route{{Match: routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix}}, Clusters: weighted}}}
		return &snapshot.Host{Name: host, VirtualHost: vh}, &snapshot.Cluster{
			Name: "passthrough", Limits: unlimited, Endpoints: lb.NewEndpoints([]lb.Endpoint{{Address: host, Weight: 1}}, nil),
		}
	}})
	defer e.Close()
	client := &http.Client{Transport: NewRoundTripper(e, ClientOptions{External: base})}
	for target, want := range map[string]string{plain.URL: "plain", secure.URL: "secure"} {
		if code, body, err := get(t, client, request(t, "GET", target, nil)); err != nil || code != 200 || body != want {
			t.Errorf("%s: %d %q %v", target, code, body, err)
		}
	}
}

func TestCallersRequestIsUnchanged(t *testing.T) {
	w := newWorld(t, ClientOptions{Inject: func(_ context.Context, h http.Header, _ bool) http.Header {
		h = h.Clone()
		h.Set("Traceparent", "00-1-2-01")
		return h
	}}, nil, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Header.Get("Traceparent")) })
	req := request(t, "GET", "http://svc/x", nil)
	req.Header.Set("User", "u")
	resp, err := w.client.Transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if string(b) != "00-1-2-01" {
		t.Errorf("the server saw traceparent %q", b)
	}
	if req.URL.Host != "svc" || req.Host != "svc" || len(req.Header) != 1 || resp.Request != req {
		t.Errorf("request is now %v %v %v", req.URL, req.Host, req.Header)
	}
}
