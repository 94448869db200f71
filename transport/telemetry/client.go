package telemetry

import (
	"context"
	"net"
	"strconv"
	"sync"
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

// call is what is kept for one call with a span that is recorded, in
// outbound.Call.Telemetry. Of another call that has its *destination.
type call struct {
	leg    *leg // nil where there is no route
	to     *destination
	method method
	span   trace.Span // nil once it has ended
	tracer trace.Tracer
	first  attempt
	// more are the attempts after the first; they may run side by side.
	mu   sync.Mutex
	more []*attempt
}

// attempt is what is kept for one attempt, in outbound.Try.Telemetry: nil for a
// call's first one without a span.
type attempt struct {
	span  trace.Span // nil without one, and once it has ended
	began time.Time
	ended time.Time // zero while it is under way
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
	l, _ := c.Leg().(*leg)
	var to *destination
	switch {
	case l == nil:
		to = o.t.client.external(c.Request.Authority, c.Request.Scheme, "")
	case l.to == nil:
		to = o.t.client.external(c.Request.Authority, c.Request.Scheme, l.cluster)
	default:
		to = l.to
	}
	c.Telemetry = to
	spans := o.t.spans()
	if spans == nil {
		return ctx
	}
	parent := trace.SpanFromContext(ctx)
	if dropped(parent) {
		return ctx
	}
	method := methodOf(c.Request.Method)
	start := strayStarts
	if l != nil {
		start = l.options(method)
	}
	with, span := spans.tracer.Start(ctx, method.spanName(), start.call...)
	if !span.IsRecording() {
		o.t.heard(spans, parent.SpanContext(), span.SpanContext())
		return with
	}
	s := &call{leg: l, to: to, method: method, tracer: spans.tracer, span: span}
	c.Telemetry = s
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
func (o observer) TryStart(ctx context.Context, t *outbound.Try, e *outbound.Endpoint) context.Context {
	c := t.Call()
	s, _ := c.Telemetry.(*call)
	if s == nil {
		if t.N() > 1 && c.Telemetry != nil {
			t.Telemetry = &attempt{began: time.Now()}
		}
		return ctx
	}
	a := &s.first
	a.began = c.Ready()
	if t.N() > 1 {
		a = &attempt{began: time.Now()}
		s.mu.Lock()
		s.more = append(s.more, a)
		s.mu.Unlock()
	}
	t.Telemetry = a
	start := strayStarts
	if s.leg != nil {
		start = s.leg.options(s.method)
	}
	ctx, span := s.tracer.Start(ctx, s.method.spanName(), start.try...)
	a.span = span
	if !span.IsRecording() {
		return ctx
	}
	s.describe(span, c, start)
	var kv [3]attribute.KeyValue
	some := kv[:0]
	if t.N() > 1 {
		some = append(some, semconv.HTTPRequestResendCount(t.N()-1))
	}
	// The engine has no address for a host outside the mesh, which the transport resolves.
	if e != nil && !c.Passes() {
		some = appendPeer(some, e.Address)
	}
	span.SetAttributes(some...)
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
func (o observer) TryEnd(ctx context.Context, t *outbound.Try, out *resilience.Outcome, now time.Time) {
	c := t.Call()
	to, _ := recorded(c)
	a, _ := t.Telemetry.(*attempt)
	enabled := o.t.attempts.Enabled(ctx)
	if to == nil || a == nil && !enabled {
		return
	}
	if now.IsZero() {
		now = time.Now()
	}
	began := c.Ready()
	if a != nil {
		began, a.ended = a.began, now
	}
	if enabled {
		o.t.attempts.Record(ctx, now.Sub(began).Seconds(), o.t.client.options(to, outcomeKey(c, out)).attempt...)
	}
	if a != nil && a.span != nil {
		setOutcome(a.span, out)
	}
}

// recorded returns what CallStart has kept: where the call goes, nil if it was
// not called, and its span, nil where none is recorded.
func recorded(c *outbound.Call) (*destination, *call) {
	switch kept := c.Telemetry.(type) {
	case *destination:
		return kept, nil
	case *call:
		return kept.to, kept
	}
	return nil, nil
}

func outcomeKey(c *outbound.Call, out *resilience.Outcome) setKey {
	return setKey{status: uint16(out.Status), method: methodOf(c.Request.Method), fault: clientFault(out)}
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

// end ends the attempt's span at the time when its headers came. It is not
// ended then, because a body that breaks shows on it as well.
func (a *attempt) end() {
	if a.span == nil {
		return
	}
	if a.ended.IsZero() {
		a.span.End()
	} else {
		a.span.End(trace.WithTimestamp(a.ended))
	}
	a.span = nil
}

// CallEnd implements outbound.Observer.
func (o observer) CallEnd(c *outbound.Call, out *resilience.Outcome, took time.Duration) {
	to, s := recorded(c)
	if to == nil {
		return
	}
	ctx := context.Background()
	if s != nil && s.span != nil {
		// For the exemplar.
		ctx = trace.ContextWithSpan(ctx, s.span)
	}
	if o.t.calls.Enabled(ctx) {
		o.t.calls.Record(ctx, took.Seconds(), o.t.client.options(to, outcomeKey(c, out)).call...)
	}
	if s == nil || s.span == nil {
		return
	}
	s.mu.Lock()
	last := &s.first
	if n := len(s.more); n > 0 {
		last = s.more[n-1]
	}
	if last.span != nil && out.Status != 0 && out.Failure != resilience.NoFailure {
		setOutcome(last.span, out)
	}
	s.first.end()
	for _, a := range s.more {
		a.end()
	}
	s.mu.Unlock()
	setOutcome(s.span, out)
	s.span.SetAttributes(keyAttempts.Int(c.Attempts()))
	s.span.End()
	s.span = nil
}

// Retry implements outbound.Observer.
func (o observer) Retry(c *outbound.Call, refused string) {
	ctx := context.Background()
	to, _ := recorded(c)
	if to == nil {
		if l, _ := c.Leg().(*leg); l != nil {
			to = l.to
		}
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
