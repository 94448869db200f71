package telemetry

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/sinew-mesh/sinew/transport/meshhttp"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// setups are what a program may have installed.
var setups = []struct {
	name   string
	tracer func() trace.TracerProvider
	meter  func() metric.MeterProvider
}{
	{"nothing", noTracer, func() metric.MeterProvider { return metricnoop.NewMeterProvider() }},
	{"metrics", noTracer, meter},
	{"metrics,never", func() trace.TracerProvider {
		return sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
	}, meter},
	{"metrics,always", func() trace.TracerProvider { return sdktrace.NewTracerProvider() }, meter},
}

func noTracer() trace.TracerProvider { return tracenoop.NewTracerProvider() }
func meter() metric.MeterProvider {
	return sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
}

var okBody = &emptyBody{}

type emptyBody struct{}

func (*emptyBody) Read([]byte) (int, error) { return 0, context.Canceled }
func (*emptyBody) Close() error             { return nil }

func stub(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: okBody}, nil
}

func roundTrips(b testing.TB, rt http.RoundTripper) func() {
	req, err := http.NewRequest(http.MethodGet, "http://reviews:9080/reviews/0", nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Accept", "*/*")
	return func() {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}

func meshClient(observer outbound.Observer, inject func(context.Context, http.Header, bool) http.Header) http.RoundTripper {
	e := outbound.New(outbound.Options{External: policy(nil, time.Minute), Observer: observer})
	return meshhttp.NewRoundTripper(e, meshhttp.ClientOptions{Observer: observer, Inject: inject, External: transport(stub)})
}

// BenchmarkClient shows a call over a transport that does nothing. The route
// has a timeout. "mesh" has no telemetry at all: the rest less it is this package's.
func BenchmarkClient(b *testing.B) {
	run := func(name string, rt http.RoundTripper) {
		b.Run(name, func(b *testing.B) {
			send := roundTrips(b, rt)
			b.ReportAllocs()
			for b.Loop() {
				send()
			}
		})
	}
	run("stub", transport(stub))
	run("mesh", meshClient(nil, nil))
	for _, s := range setups {
		tp, mp := s.tracer(), s.meter()
		tel, err := New(Options{TracerProvider: tp, MeterProvider: mp})
		if err != nil {
			b.Fatal(err)
		}
		run("telemetry/"+s.name, meshClient(tel.Observer(), tel.Inject))
		run("otelhttp/"+s.name, otelhttp.NewTransport(transport(stub), otelhttp.WithTracerProvider(tp), otelhttp.WithMeterProvider(mp),
			otelhttp.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))))
	}
}

type nullWriter struct{ h http.Header }

func (w nullWriter) Header() http.Header         { return w.h }
func (w nullWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w nullWriter) WriteHeader(int)             {}
func (w nullWriter) Flush()                      {}

// BenchmarkServer shows the middleware around a handler that only answers 200.
func BenchmarkServer(b *testing.B) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /items/{id}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	run := func(name, traceparent string, h http.Handler) {
		b.Run(name, func(b *testing.B) {
			req := httptest.NewRequest("GET", "/items/7", nil)
			if traceparent != "" {
				req.Header.Set("Traceparent", traceparent)
			}
			w := nullWriter{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, req)
			}
		})
	}
	run("handler", "", mux)
	for _, s := range setups {
		tp, mp := s.tracer(), s.meter()
		tel, err := New(Options{TracerProvider: tp, MeterProvider: mp})
		if err != nil {
			b.Fatal(err)
		}
		h := tel.Handler(mux)
		o := otelhttp.NewHandler(mux, "", otelhttp.WithTracerProvider(tp), otelhttp.WithMeterProvider(mp),
			otelhttp.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})))
		run("telemetry/"+s.name, "", h)
		run("otelhttp/"+s.name, "", o)
		run("telemetry/"+s.name+",traceparent", unsampled, h)
		run("otelhttp/"+s.name+",traceparent", unsampled, o)
	}
}

// TestAllocations holds the package to what it adds to a request.
func TestAllocations(t *testing.T) {
	base := testing.AllocsPerRun(500, roundTrips(t, meshClient(nil, nil)))
	wantClient := map[string]float64{"nothing": 0, "metrics": 0, "metrics,never": 7}
	wantServer := map[string]float64{"nothing": 1, "metrics": 1, "metrics,never": 8}
	for _, s := range setups {
		tel, err := New(Options{TracerProvider: s.tracer(), MeterProvider: s.meter()})
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := wantClient[s.name]; ok {
			send := roundTrips(t, meshClient(tel.Observer(), tel.Inject))
			send()
			if got := testing.AllocsPerRun(500, send) - base; got > want {
				t.Errorf("client, %s: %v allocations, want %v", s.name, got, want)
			}
		}
		if want, ok := wantServer[s.name]; ok {
			h := tel.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }))
			req := httptest.NewRequest("GET", "/items/7", nil)
			w := nullWriter{http.Header{}}
			serve := func() { h.ServeHTTP(w, req) }
			serve()
			if got := testing.AllocsPerRun(500, serve); got > want {
				t.Errorf("server, %s: %v allocations, want %v", s.name, got, want)
			}
		}
	}
}
