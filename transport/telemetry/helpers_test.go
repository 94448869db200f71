package telemetry

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/meshhttp"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// rig is a Telemetry on an SDK that keeps everything in memory.
type rig struct {
	*Telemetry
	spans  *tracetest.SpanRecorder
	reader *sdkmetric.ManualReader
	end    chan struct{} // has one element if a span has ended since it was last read
}

// signal is a span processor that says when a span has ended.
type signal chan struct{}

func (s signal) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (s signal) OnEnd(sdktrace.ReadOnlySpan) {
	select {
	case s <- struct{}{}:
	default:
	}
}
func (s signal) Shutdown(context.Context) error   { return nil }
func (s signal) ForceFlush(context.Context) error { return nil }

func newRig(t testing.TB, sampler sdktrace.Sampler) *rig {
	t.Helper()
	r := &rig{spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader(), end: make(chan struct{}, 1)}
	tp := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSpanProcessor(r.spans), sdktrace.WithSpanProcessor(signal(r.end)))
	mp := sdkmetric.NewMeterProvider(sdkmetric.WithReader(r.reader))
	t.Cleanup(func() {
		_ = tp.Shutdown(context.Background())
		_ = mp.Shutdown(context.Background())
	})
	var err error
	if r.Telemetry, err = New(Options{TracerProvider: tp, MeterProvider: mp}); err != nil {
		t.Fatal(err)
	}
	return r
}

// point is one series of a metric.
type point struct {
	attrs map[attribute.Key]attribute.Value
	count uint64  // of a histogram
	sum   float64 // of a histogram
	value int64   // of anything else
}

func (r *rig) metrics(t testing.TB) map[string]metricdata.Metrics {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := r.reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]metricdata.Metrics)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			byName[m.Name] = m
		}
	}
	return byName
}

func (r *rig) points(t testing.TB, name string) []point {
	t.Helper()
	return pointsOf(r.metrics(t)[name])
}

func pointsOf(m metricdata.Metrics) []point {
	var out []point
	switch data := m.Data.(type) {
	case metricdata.Histogram[float64]:
		for _, p := range data.DataPoints {
			out = append(out, point{attrs: attrsOf(p.Attributes.ToSlice()), count: p.Count, sum: p.Sum})
		}
	case metricdata.Sum[int64]:
		for _, p := range data.DataPoints {
			out = append(out, point{attrs: attrsOf(p.Attributes.ToSlice()), value: p.Value})
		}
	case metricdata.Gauge[int64]:
		for _, p := range data.DataPoints {
			out = append(out, point{attrs: attrsOf(p.Attributes.ToSlice()), value: p.Value})
		}
	}
	return out
}

func attrsOf(kv []attribute.KeyValue) map[attribute.Key]attribute.Value {
	m := make(map[attribute.Key]attribute.Value, len(kv))
	for _, a := range kv {
		m[a.Key] = a.Value
	}
	return m
}

// only returns the single series of a metric.
func (r *rig) only(t testing.TB, name string) point {
	t.Helper()
	p := r.points(t, name)
	if len(p) != 1 {
		t.Fatalf("%s has %d series, want 1: %v", name, len(p), p)
	}
	return p[0]
}

// check compares attributes; "" wants an attribute to be absent.
func check(t testing.TB, what string, got map[attribute.Key]attribute.Value, want map[string]string) {
	t.Helper()
	for key, value := range want {
		v, ok := got[attribute.Key(key)]
		if (value == "") == ok || (ok && v.String() != value) {
			t.Errorf("%s: %s = %q (present %v), want %q", what, key, v.String(), ok, value)
		}
	}
}

func (r *rig) ended(kind trace.SpanKind) []sdktrace.ReadOnlySpan {
	var out []sdktrace.ReadOnlySpan
	for _, s := range r.spans.Ended() {
		if s.SpanKind() == kind {
			out = append(out, s)
		}
	}
	return out
}

// transport is an http.RoundTripper made of a function.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("ok"))}
}

var unlimited = resilience.Limits{
	MaxConnections: resilience.NoLimit, MaxPendingRequests: resilience.NoLimit,
	MaxRequests: resilience.NoLimit, MaxRetries: resilience.NoLimit,
}

// policy returns what passes hosts through, with retries as asked.
func policy(retry *resilience.RetryPolicy, timeout time.Duration) func(host string) (*snapshot.Host, *snapshot.Cluster) {
	return func(host string) (*snapshot.Host, *snapshot.Cluster) {
		name := passthrough + "|" + host
		weighted, err := routing.NewWeighted([]routing.WeightedCluster{{Name: name, Weight: 1}})
		if err != nil {
			panic(err)
		}
		h := &snapshot.Host{Name: host, VirtualHost: &snapshot.VirtualHost{Routes: []snapshot.Route{{
			Name: "default", Match: routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix, Value: "/"}},
			Clusters: weighted, Retry: retry, Timeout: timeout,
		}}}}
		return h, &snapshot.Cluster{
			Name: name, Service: host, Limits: unlimited,
			Endpoints: lb.NewEndpoints([]lb.Endpoint{{Address: host, Weight: 1}}, nil),
		}
	}
}

// client returns a RoundTripper that passes every host through to base.
func client(t testing.TB, tel *Telemetry, retry *resilience.RetryPolicy, timeout time.Duration, base http.RoundTripper) *meshhttp.RoundTripper {
	t.Helper()
	e := outbound.New(outbound.Options{External: policy(retry, timeout), Observer: tel.Observer()})
	t.Cleanup(e.Close)
	return meshhttp.NewRoundTripper(e, meshhttp.ClientOptions{Observer: tel.Observer(), Inject: tel.Inject, External: base})
}

// send sends a request and reads its response to the end.
func send(t testing.TB, rt http.RoundTripper, req *http.Request) (int, error) {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode, err
}

func request(t testing.TB, ctx context.Context, method, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func retryOn(t testing.TB, on string, times uint32) *resilience.RetryPolicy {
	t.Helper()
	bits, unknown := resilience.ParseRetryOn(on)
	if len(unknown) > 0 {
		t.Fatal(unknown)
	}
	p := resilience.DefaultRetryPolicy(bits)
	p.NumRetries = times
	return &p
}
