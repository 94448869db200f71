package meshhttp

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
	"github.com/sinew-mesh/sinew/transport/telemetry"
)

// stub answers every request at once with an empty body that is not http.NoBody.
type stub struct{ resp http.Response }

type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyBody) Close() error             { return nil }

func (s *stub) CloseIdleConnections() {}

func (s *stub) RoundTrip(*http.Request) (*http.Response, error) {
	resp := s.resp
	resp.Body = emptyBody{}
	return &resp, nil
}

// routed returns a snapshot with one host, "reviews:9080", of two subsets on
// the addresses, as bookinfo has it: a header route, then a weighted one.
func routed(timeout time.Duration, addresses ...string) *snapshot.Snapshot {
	var endpoints []lb.Endpoint
	for _, a := range addresses {
		endpoints = append(endpoints, lb.Endpoint{Address: a, Weight: 1})
	}
	cluster := func(name string) *snapshot.Cluster {
		return &snapshot.Cluster{
			Name: name, Service: "reviews.default.svc.cluster.local", ConnectTimeout: time.Second,
			LB: lb.Policy{Kind: lb.LeastRequest, Choices: 2}, Limits: unlimited, Endpoints: lb.NewEndpoints(endpoints, nil),
		}
	}
	weighted, err := routing.NewWeighted([]routing.WeightedCluster{{Name: "v1", Weight: 90}, {Name: "v2", Weight: 10}})
	if err != nil {
		panic(err)
	}
	only, err := routing.NewWeighted([]routing.WeightedCluster{{Name: "v2", Weight: 1}})
	if err != nil {
		panic(err)
	}
	all := routing.PathMatch{Kind: routing.PathPrefix, Value: "/"}
	on, _ := resilience.ParseRetryOn("connect-failure,refused-stream")
	retry := resilience.DefaultRetryPolicy(on)
	vh := &snapshot.VirtualHost{Routes: []snapshot.Route{
		{Name: "user", Match: routing.Match{Path: all, Headers: []routing.HeaderMatch{{
			Name: routing.NewHeaderName("user"), Kind: routing.HeaderString, String: routing.Exact("test-user", false),
		}}}, Clusters: only, Timeout: timeout, Retry: &retry},
		{Name: "split", Match: routing.Match{Path: all}, Clusters: weighted, Timeout: timeout, Retry: &retry},
	}}
	return &snapshot.Snapshot{
		Hosts:    map[string]*snapshot.Host{"reviews:9080": {Name: "reviews:9080", VirtualHost: vh}},
		Clusters: map[string]*snapshot.Cluster{"v1": cluster("v1"), "v2": cluster("v2")},
	}
}

var unlimited = resilience.Limits{
	MaxConnections: resilience.NoLimit, MaxPendingRequests: resilience.NoLimit,
	MaxRequests: resilience.NoLimit, MaxRetries: resilience.NoLimit,
}

func roundTrips(b *testing.B, rt http.RoundTripper) {
	b.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://reviews:9080/reviews/0", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = resp.Body.Read(nil)
		resp.Body.Close()
	}
}

// instrumented returns telemetry with metrics on and the given tracing.
func instrumented(b *testing.B, tracer trace.TracerProvider) *telemetry.Telemetry {
	b.Helper()
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	t, err := telemetry.New(telemetry.Options{TracerProvider: tracer, MeterProvider: meters})
	if err != nil {
		b.Fatal(err)
	}
	return t
}

func neverSampled() trace.TracerProvider {
	return sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
}

// BenchmarkRoundTripper shows what the client side costs beside a transport
// that does nothing: subtract the stub's own figures.
func BenchmarkRoundTripper(b *testing.B) {
	base := &stub{resp: http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/plain"}}}}
	b.Run("stub", func(b *testing.B) { roundTrips(b, base) })
	for _, c := range []struct {
		name      string
		timeout   time.Duration
		telemetry *telemetry.Telemetry
		arm       func(*snapshot.Snapshot)
	}{
		{"mesh", 0, nil, nil},
		{"mesh+timeout", time.Minute, nil, nil},
		{"mesh+timeout+metrics", time.Minute, instrumented(b, noop.NewTracerProvider()), nil},
		{"mesh+timeout+metrics+never-sampled", time.Minute, instrumented(b, neverSampled()), nil},
		{"armed+metrics", time.Minute, instrumented(b, noop.NewTracerProvider()), everyRule},
		{"armed+metrics+never-sampled", time.Minute, instrumented(b, neverSampled()), everyRule},
	} {
		b.Run(c.name, func(b *testing.B) {
			o := outbound.Options{
				Subscribe: func(string) {},
				NewWire:   func(c *snapshot.Cluster) outbound.Wire { return &wire{config: c, plain: base} },
			}
			var client ClientOptions
			if c.telemetry != nil {
				o.Observer = c.telemetry.Observer()
				client = ClientOptions{Observer: o.Observer, Inject: c.telemetry.Inject}
			}
			e := outbound.New(o)
			s := routed(c.timeout, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
			if c.arm != nil {
				c.arm(s)
			}
			e.Install(s)
			roundTrips(b, NewRoundTripper(e, client))
		})
	}
	b.Run("otelhttp", func(b *testing.B) {
		meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
		roundTrips(b, otelhttp.NewTransport(base, otelhttp.WithTracerProvider(neverSampled()), otelhttp.WithMeterProvider(meters)))
	})
}

// everyRule arms what policy can ask for, and none of it acts on the requests.
func everyRule(s *snapshot.Snapshot) {
	set := func(name, value string) routing.HeaderChange {
		c, err := routing.NewHeaderChange(name, value, routing.OverwriteOrAdd, false)
		if err != nil {
			panic(err)
		}
		return c
	}
	for _, c := range s.Clusters {
		c.LB = lb.Policy{Kind: lb.PeakEWMA, Decay: 10 * time.Second}
		c.Limits = resilience.Limits{MaxConnections: 100, MaxPendingRequests: 100, MaxRequests: 1000, MaxRetries: 10}
		c.RetryBudget = &resilience.RetryBudget{Percent: 20, MinConcurrency: 3}
		c.Outlier = &resilience.Outlier{Interval: 10 * time.Second, BaseEjectionTime: 30 * time.Second, MaxEjectionTime: time.Minute, MaxEjectionPercent: 50, Consecutive5xx: 5}
	}
	routes := s.Hosts["reviews:9080"].VirtualHost.Routes
	for i := range routes {
		r := &routes[i]
		r.Retry.PerTryTimeout = 5 * time.Second
		r.Rewrite = routing.Rewrite{HasPrefix: true, Prefix: "/v2/"}
		r.RequestHeaders = []routing.HeaderChanges{{Remove: []routing.HeaderName{routing.NewHeaderName("x-debug")}, Set: []routing.HeaderChange{set("x-region", "eu"), set("x-team", "shop")}}}
		r.ResponseHeaders = []routing.HeaderChanges{{Remove: []routing.HeaderName{routing.NewHeaderName("server")}, Set: []routing.HeaderChange{set("x-served", "mesh")}}}
		r.Mirrors = []routing.Mirror{{Cluster: "v1"}}
		r.Fault = &resilience.Fault{Delay: &resilience.FaultDelay{Fixed: time.Second}, Abort: &resilience.FaultAbort{Status: 503, GRPC: -1}}
		r.CORS = &routing.CORS{Origins: []routing.StringMatch{routing.Exact("https://shop.example", false)}, Methods: "GET"}
		r.AttemptCount = true
	}
}

// BenchmarkRules compares, over loopback in the same run, net/http alone with a
// route without rules and with a route that has every rule armed and none in action.
func BenchmarkRules(b *testing.B) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()
	address := server.Listener.Addr().String()
	never := routing.Fraction{}
	armed := func(r *snapshot.Route) {
		r.Retry.PerTryTimeout, r.Retry.PerTryIdleTimeout = time.Minute, time.Minute
		r.Timeout, r.IdleTimeout = time.Minute, time.Minute
		r.Rewrite = routing.Rewrite{HasPrefix: true, Prefix: "/v2/"}
		r.Mirrors = []routing.Mirror{{Cluster: "v1", Fraction: never}}
		r.Fault = &resilience.Fault{Delay: &resilience.FaultDelay{Fixed: time.Second, Fraction: never}}
		r.AttemptCount = true
	}
	hedged := func(r *snapshot.Route) {
		armed(r)
		r.Hedge = &resilience.Hedge{Initial: 1, OnPerTryTimeout: true}
	}
	for _, http2 := range []bool{false, true} {
		protocol := map[bool]string{false: "HTTP1", true: "HTTP2"}[http2]
		b.Run(protocol+"/bare", func(b *testing.B) {
			t := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: maxIdlePerEndpoint}
			t.Protocols.SetHTTP1(!http2)
			t.Protocols.SetUnencryptedHTTP2(http2)
			defer t.CloseIdleConnections()
			oneByOne(b, t, "http://"+address+"/reviews/0")
		})
		for _, c := range []struct {
			name string
			arm  func(*snapshot.Route)
		}{{"plain", nil}, {"armed", armed}, {"armed+hedge", hedged}} {
			b.Run(protocol+"/"+c.name, func(b *testing.B) {
				e := outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: NewWire(nil)})
				defer e.Close()
				snap := routed(0, address)
				for _, cluster := range snap.Clusters {
					cluster.HTTP2 = http2
				}
				vh := snap.Hosts["reviews:9080"].VirtualHost
				for i := range vh.Routes {
					if c.arm != nil {
						c.arm(&vh.Routes[i])
					}
				}
				e.Install(snap)
				rt := NewRoundTripper(e, ClientOptions{})
				defer rt.Close()
				oneByOne(b, rt, "http://reviews:9080/reviews/0")
			})
		}
	}
}

// BenchmarkHandler shows what the server middleware costs beside the handler alone.
func BenchmarkHandler(b *testing.B) {
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9080}
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	e.Install(&snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{"127.0.0.1:9080": {Plain: &snapshot.FilterChain{}}}})
	ours := func(t *telemetry.Telemetry) http.Handler {
		return t.Handler(Handler(e, slog.New(slog.DiscardHandler), next))
	}
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	for _, c := range []struct {
		name    string
		handler http.Handler
	}{
		{"bare", next},
		{"mesh", Handler(e, slog.New(slog.DiscardHandler), next)},
		{"mesh+metrics", ours(instrumented(b, noop.NewTracerProvider()))},
		{"mesh+metrics+never-sampled", ours(instrumented(b, neverSampled()))},
		{"otelhttp", otelhttp.NewHandler(next, "server", otelhttp.WithTracerProvider(neverSampled()), otelhttp.WithMeterProvider(meters))},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := httptest.NewRequest(http.MethodGet, "/reviews/0", strings.NewReader(""))
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(local)))
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				c.handler.ServeHTTP(w, r)
			}
		})
	}
}
