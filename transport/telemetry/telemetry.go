// Package telemetry gives the mesh's OpenTelemetry spans and metrics, and
// carries trace context from one service to the next.
//
// It uses OpenTelemetry's API alone: which spans are sampled and where they and
// the metrics go is decided by the SDK that the program installs. Without one
// it costs next to nothing, and trace context that comes in still goes out.
//
// # Spans
//
// Names and attributes follow OpenTelemetry's semantic conventions 1.43.0,
// which are stable for HTTP and a release candidate for RPC.
//
//   - HTTP client: one INTERNAL span for the call, which lasts until the
//     response's body has ended, with one CLIENT span for each attempt under it.
//     The conventions want a CLIENT span for each time that a request is sent,
//     and none around them.
//   - HTTP server: one SERVER span, named after the route that http.ServeMux chose.
//   - gRPC client: one CLIENT span for the RPC, as the conventions ask, with one
//     INTERNAL span for each attempt under it, as gRFC A72 has them.
//   - gRPC server: one SERVER span.
//
// Nothing is asked of the sampler where the caller's span is not sampled: a
// client's spans follow their parent. A server asks once for each request.
//
// # Metrics
//
//	http.client.request.duration  each attempt, until its response's headers came (stable)
//	http.server.request.duration  each request, until the handler has returned (stable)
//	mesh.client.call.duration     each call with all its attempts, until its response's body has ended
//	mesh.client.retries           retries made, and retries that a limit forbade
//	mesh.client.ejections         endpoints ejected by outlier detection
//	mesh.client.ejected           endpoints that are ejected now
//	mesh.client.breaker           changes of state of clusters' breakers
//	mesh.server.decisions         requests that policy let in or refused, by reason, rule and kind of connection
//	mesh.server.audited           requests that an AUDIT rule matched
//	mesh.server.dry_run           requests that policy in dry run would have refused
//	mesh.server.authorizer_failures  requests about which an external authorizer gave no answer
//	mesh.server.handshake_failures   TLS handshakes that failed, by the rule that refused
//	mesh.xds.updates              accepted resources
//	mesh.xds.nacks                refused responses of the control plane
//	mesh.xds.connected            1 while there is a stream to the control plane
//
// gRPC's metrics are grpc-go's own and are not repeated here.
//
// # Secrets
//
// No header is recorded but User-Agent. User information in URLs and the values of
// query parameters that carry credentials are replaced by REDACTED. Messages of
// errors are not recorded; error.type has one of a fixed list of words.
package telemetry

import (
	"fmt"
	"reflect"
	"sync/atomic"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// scope is the name of the instrumentation scope.
const scope = "github.com/sinew-mesh/sinew/transport/telemetry"

// Options configure a Telemetry.
type Options struct {
	// TracerProvider makes the spans. nil means OpenTelemetry's global one,
	// also if it is installed after New.
	TracerProvider trace.TracerProvider
	// MeterProvider makes the metrics. nil means OpenTelemetry's global one,
	// also if it is installed after New.
	MeterProvider metric.MeterProvider
	// Propagator carries trace context in headers and gRPC metadata. nil means
	// W3C Trace Context and W3C Baggage, which are carried whether or not
	// anything is sampled or recorded here.
	Propagator propagation.TextMapPropagator
}

// Telemetry makes the spans and metrics of one mesh. It is safe for concurrent use.
type Telemetry struct {
	provider   trace.TracerProvider // nil: the global one
	tracing    atomic.Pointer[tracing]
	propagator propagation.TextMapPropagator // nil: W3C

	attempts   metric.Float64Histogram
	requests   metric.Float64Histogram
	calls      metric.Float64Histogram
	retries    metric.Int64Counter
	ejections  metric.Int64Counter
	ejected    metric.Int64UpDownCounter
	breaker    metric.Int64Counter
	updates    metric.Int64Counter
	nacks      metric.Int64Counter
	connection metric.Int64Gauge

	client clientSeries
	server serverSeries
	access access
}

// durationBuckets are the boundaries, in seconds, that the conventions advise for HTTP durations.
var durationBuckets = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}

// New returns a Telemetry. The error is the meter's, where it refuses an instrument.
func New(o Options) (*Telemetry, error) {
	t := &Telemetry{provider: o.TracerProvider, propagator: o.Propagator}
	if o.TracerProvider != nil {
		t.tracing.Store(newTracing(o.TracerProvider))
	} else {
		t.tracing.Store(newTracing(otel.GetTracerProvider()))
	}
	provider := o.MeterProvider
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	meter := provider.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	var err error
	keep := func(e error) {
		if err == nil && e != nil {
			err = fmt.Errorf("telemetry: %w", e)
		}
	}
	histogram := func(name, text string) metric.Float64Histogram {
		h, e := meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(text), metric.WithExplicitBucketBoundaries(durationBuckets...))
		keep(e)
		return h
	}
	counter := func(name, unit, text string) metric.Int64Counter {
		c, e := meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(text))
		keep(e)
		return c
	}
	t.attempts = histogram("http.client.request.duration", "Duration of HTTP client requests.")
	t.requests = histogram("http.server.request.duration", "Duration of HTTP server requests.")
	t.calls = histogram("mesh.client.call.duration", "Duration of calls with all their attempts and the response's body.")
	t.retries = counter("mesh.client.retries", "{retry}", "Retries made, or forbidden by a limit.")
	t.ejections = counter("mesh.client.ejections", "{ejection}", "Endpoints ejected by outlier detection.")
	t.breaker = counter("mesh.client.breaker", "{change}", "Changes of state of clusters' breakers.")
	t.updates = counter("mesh.xds.updates", "{resource}", "Resources accepted from the control plane.")
	t.nacks = counter("mesh.xds.nacks", "{response}", "Responses of the control plane that were refused in whole or in part.")
	t.access = newAccess(counter)
	var e error
	t.ejected, e = meter.Int64UpDownCounter("mesh.client.ejected", metric.WithUnit("{endpoint}"), metric.WithDescription("Endpoints that are ejected at present."))
	keep(e)
	t.connection, e = meter.Int64Gauge("mesh.xds.connected", metric.WithDescription("1 while there is a stream to the control plane, else 0."))
	keep(e)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// tracing is a provider's tracer.
type tracing struct {
	provider trace.TracerProvider
	// alike compares providers; a provider need not be a comparable value.
	alike  func(trace.TracerProvider) bool
	tracer trace.Tracer
	// silent is set when the provider has been seen to make no spans at all.
	silent atomic.Bool
}

func newTracing(p trace.TracerProvider) *tracing {
	s := &tracing{provider: p, tracer: p.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL))}
	kind := reflect.TypeOf(p)
	s.alike = func(other trace.TracerProvider) bool { return reflect.TypeOf(other) == kind }
	if kind.Comparable() {
		s.alike = func(other trace.TracerProvider) bool { return other == p }
	}
	if _, ok := p.(noop.TracerProvider); ok {
		s.silent.Store(true)
	}
	return s
}

// spans returns what makes spans, or nil where none would be made.
func (t *Telemetry) spans() *tracing {
	s := t.tracing.Load()
	if t.provider == nil {
		// The global provider is another one after it has been installed.
		if p := otel.GetTracerProvider(); !s.alike(p) {
			s = newTracing(p)
			t.tracing.Store(s)
		}
	}
	if s.silent.Load() {
		return nil
	}
	return s
}

// heard notes a span that is not recorded. A provider that gives a span the
// very identity of its parent, or none, makes no spans. That stays so for the
// global provider until another is installed; a provider that the program
// named may be one that waits for its own, and is asked each time.
func (t *Telemetry) heard(s *tracing, parent, made trace.SpanContext) {
	if t.provider == nil && made.SpanID() == parent.SpanID() {
		s.silent.Store(true)
	}
}

// dropped reports whether the caller has decided that its trace is not sampled.
func dropped(parent trace.Span) bool {
	sc := parent.SpanContext()
	return sc.IsValid() && !sc.IsSampled() && !parent.IsRecording()
}
