package telemetry

import (
	"context"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// Observer returns what the outbound engine tells of HTTP calls. An adapter that does not
// call its CallStart, as gRPC's, gets from it the metrics of retries,
// ejections and breakers, and neither spans nor durations.
func (t *Telemetry) Observer() outbound.Observer { return observer{t} }

type observer struct{ t *Telemetry }

// leg is what is ready for requests that take one route to one cluster.
type leg struct {
	// to is nil where the host is known only with the request.
	to      *destination
	cluster string // as metrics name it
	address string
	port    int
	route   string
	name    string // the cluster's full name
	starts  [len(methods)]atomic.Pointer[starts]
}

// starts are the options of spans of one leg and method: kind, and the few
// attributes that a sampler decides by; the SDK copies them for every span,
// recorded or not. rest is what recorded spans get beside them.
type starts struct {
	call, try []trace.SpanStartOption
	rest      []attribute.KeyValue
}

// call is what is kept for one call, in outbound.Call.Telemetry.
type call struct {
	leg    *leg // nil where there is no route
	to     *destination
	method method
	span   trace.Span // nil where it is not recorded
	try    trace.Span // likewise; ended or not
	began  time.Time  // of the present attempt; zero where nobody asks for it
	ended  time.Time  // of the present attempt; zero while it is under way
	tracer trace.Tracer
}

// Leg implements outbound.Observer.
func (o observer) Leg(info outbound.LegInfo) any {
	l := &leg{cluster: info.Cluster, route: info.Route, name: info.Cluster}
	l.address, l.port = splitAddress(info.Host)
	outside := passes(info.Cluster)
	if outside {
		l.cluster, l.route, l.name = passthrough, "", passthrough
	}
	if info.Host != "" {
		l.to = o.t.client.destination(destinationName{l.address, l.port, l.route, l.cluster}, !outside)
	}
	return l
}

// options returns the options of the leg's spans; it makes them once for each method.
func (l *leg) options(m method) *starts {
	if s := l.starts[m].Load(); s != nil {
		return s
	}
	kv := append(destinationName{address: l.address, port: l.port}.attributes(), m.attribute())
	with := trace.WithAttributes(kv...)
	s := &starts{
		rest: destinationName{route: l.route, cluster: l.name}.mesh(),
		call: []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindInternal), with},
		try:  []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), with},
	}
	l.starts[m].Store(s)
	return s
}

// strayStarts are the options of spans of calls without a route.
var strayStarts = &starts{call: []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindInternal)}}

// CallStart implements outbound.Observer.
func (o observer) CallStart(ctx context.Context, c *outbound.Call) context.Context {
	s := &call{method: methodOf(c.Request.Method)}
	c.Telemetry = s
	s.leg, _ = c.Leg().(*leg)
	switch {
	case s.leg == nil:
		s.to = o.t.client.external(c.Request.Authority, c.Request.Scheme, "")
	case s.leg.to == nil:
		s.to = o.t.client.external(c.Request.Authority, c.Request.Scheme, s.leg.cluster)
	default:
		s.to = s.leg.to
	}
	spans := o.t.spans()
	if spans == nil {
		return ctx
	}
	parent := trace.SpanFromContext(ctx)
	if dropped(parent) {
		return ctx
	}
	start := strayStarts
	if s.leg != nil {
		start = s.leg.options(s.method)
	}
	with, span := spans.tracer.Start(ctx, s.method.spanName(), start.call...)
	if !span.IsRecording() {
		o.t.heard(spans, parent.SpanContext(), span.SpanContext())
		return with
	}
	s.tracer, s.span = spans.tracer, span
	s.describe(span, c, start)
	return with
}

// describe sets what is known of the request and not among the span's options.
func (s *call) describe(span trace.Span, c *outbound.Call, start *starts) {
	r := &c.Request
	var kv [8]attribute.KeyValue
	some := append(kv[:0], semconv.URLFull(fullURL(r.Scheme, r.Authority, r.Path, r.RawQuery)))
	some = append(some, start.rest...)
	if s.leg == nil {
		some = append(some, s.method.attribute())
	}
	if s.leg == nil || s.leg.address == "" {
		address, port := splitAddress(r.Authority)
		if port == 0 {
			port = defaultPort(r.Scheme)
		}
		some = append(some, semconv.ServerAddress(address), semconv.ServerPort(port))
	}
	if s.method == otherMethod {
		some = append(some, semconv.HTTPRequestMethodOriginal(r.Method))
	}
	span.SetAttributes(some...)
}

// TryStart implements outbound.Observer.
func (o observer) TryStart(ctx context.Context, c *outbound.Call, n int, e *outbound.Endpoint) context.Context {
	s, _ := c.Telemetry.(*call)
	if s == nil {
		return ctx
	}
	s.endTry()
	s.began, s.ended = time.Time{}, time.Time{}
	if s.span != nil || o.t.attempts.Enabled(ctx) {
		if s.began = c.Ready(); n > 1 || s.began.IsZero() {
			s.began = time.Now()
		}
	}
	if s.span == nil {
		return ctx
	}
	start := strayStarts
	if s.leg != nil {
		start = s.leg.options(s.method)
	}
	ctx, s.try = s.tracer.Start(ctx, s.method.spanName(), start.try...)
	if !s.try.IsRecording() {
		return ctx
	}
	s.describe(s.try, c, start)
	var kv [3]attribute.KeyValue
	some := kv[:0]
	if n > 1 {
		some = append(some, semconv.HTTPRequestResendCount(n-1))
	}
	// The engine has no address for a host outside the mesh, which the transport resolves.
	if e != nil && !c.Passes() {
		some = appendPeer(some, e.Address)
	}
	s.try.SetAttributes(some...)
	return ctx
}

// appendPeer adds network.peer.* of "ip:port".
func appendPeer(kv []attribute.KeyValue, address string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return kv
	}
	kv = append(kv, semconv.NetworkPeerAddress(host))
	if n, err := strconv.Atoi(port); err == nil {
		kv = append(kv, semconv.NetworkPeerPort(n))
	}
	return kv
}

// TryEnd implements outbound.Observer.
func (o observer) TryEnd(ctx context.Context, c *outbound.Call, n int, out *resilience.Outcome) {
	s, _ := c.Telemetry.(*call)
	if s == nil || s.began.IsZero() {
		return
	}
	s.ended = time.Now()
	if o.t.attempts.Enabled(ctx) {
		o.t.attempts.Record(ctx, s.ended.Sub(s.began).Seconds(), o.t.client.options(s.to, s.key(out)).attempt...)
	}
	if s.try != nil {
		setOutcome(s.try, out)
	}
}

func (s *call) key(out *resilience.Outcome) setKey {
	return setKey{status: uint16(out.Status), method: s.method, fault: clientFault(out)}
}

// setOutcome sets status code, error.type and the span's status.
func setOutcome(span trace.Span, out *resilience.Outcome) {
	if out.Status != 0 {
		span.SetAttributes(semconv.HTTPResponseStatusCode(out.Status))
	}
	if word := clientFault(out).word(out.Status); word != "" {
		span.SetAttributes(semconv.ErrorTypeKey.String(word))
		span.SetStatus(codes.Error, "")
	}
}

// endTry ends the span of the last attempt at the time when its headers came.
// It is not ended then, because a body that breaks shows on it as well.
func (s *call) endTry() {
	if s.try == nil {
		return
	}
	if s.ended.IsZero() {
		s.try.End()
	} else {
		s.try.End(trace.WithTimestamp(s.ended))
	}
	s.try = nil
}

// CallEnd implements outbound.Observer.
func (o observer) CallEnd(c *outbound.Call, out *resilience.Outcome, took time.Duration) {
	s, _ := c.Telemetry.(*call)
	if s == nil {
		return
	}
	ctx := context.Background()
	if s.span != nil {
		// For the exemplar.
		ctx = trace.ContextWithSpan(ctx, s.span)
	}
	if o.t.calls.Enabled(ctx) {
		o.t.calls.Record(ctx, took.Seconds(), o.t.client.options(s.to, s.key(out)).call...)
	}
	if s.span == nil {
		return
	}
	if s.try != nil && out.Status != 0 && out.Failure != resilience.NoFailure {
		setOutcome(s.try, out)
	}
	s.endTry()
	setOutcome(s.span, out)
	s.span.SetAttributes(keyAttempts.Int(c.Attempts()))
	s.span.End()
	s.span = nil
}

// Retry implements outbound.Observer.
func (o observer) Retry(c *outbound.Call, refused string) {
	ctx := context.Background()
	to := (*destination)(nil)
	if s, _ := c.Telemetry.(*call); s != nil {
		to = s.to
	} else if l, _ := c.Leg().(*leg); l != nil {
		to = l.to
	}
	if to == nil {
		to = o.t.client.external(c.Request.Authority, c.Request.Scheme, passthrough)
	}
	o.t.retries.Add(ctx, 1, to.retry(refused)...)
}

// Ejection implements outbound.Observer.
func (o observer) Ejection(cluster, _, reason string, ejected bool) {
	ctx := context.Background()
	name := keyCluster.String(o.t.client.cluster(cluster))
	if !ejected {
		o.t.ejected.Add(ctx, -1, metric.WithAttributes(name))
		return
	}
	o.t.ejected.Add(ctx, 1, metric.WithAttributes(name))
	// Reasons are words of the engine's.
	o.t.ejections.Add(ctx, 1, metric.WithAttributes(name, keyReason.String(reason)))
}

// Breaker implements outbound.Observer. The engine calls it under the
// breaker's lock.
func (o observer) Breaker(cluster, state string) {
	o.t.breaker.Add(context.Background(), 1, metric.WithAttributes(
		keyCluster.String(o.t.client.cluster(cluster)), keyState.String(state)))
}
