package telemetry

import (
	"context"
	"maps"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

// Header names as net/http spells them. gRPC metadata has them in lower case.
const (
	headerTraceparent = "Traceparent"
	headerTracestate  = "Tracestate"
	headerBaggage     = "Baggage"

	keyTraceparent = "traceparent"
	keyTracestate  = "tracestate"
	keyBaggage     = "baggage"
)

// Extract returns ctx with the trace context and baggage that a request's
// header brought. What is invalid counts as absent (W3C Trace Context, section 4).
func (t *Telemetry) Extract(ctx context.Context, h http.Header) context.Context {
	if t.propagator != nil {
		return t.propagator.Extract(ctx, propagation.HeaderCarrier(h))
	}
	return extract(ctx, h[headerTraceparent], h[headerTracestate], h[headerBaggage])
}

func extract(ctx context.Context, traceparent, tracestate, bag []string) context.Context {
	if len(bag) > 0 {
		ctx = propagation.Baggage{}.Extract(ctx, baggageFields(bag))
	}
	// A second traceparent makes both invalid.
	if len(traceparent) != 1 {
		return ctx
	}
	c, ok := parseTraceparent(traceparent[0])
	if !ok {
		return ctx
	}
	c.Remote = true
	held, all := parseTracestate(tracestate)
	c.TraceState = held
	if all != nil {
		ctx = context.WithValue(ctx, carriedKey{}, &carried{trace: c.TraceID, members: all, held: held.String()})
	}
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(c))
}

// baggageFields lets OpenTelemetry's reader see the fields of a baggage header.
type baggageFields []string

func (f baggageFields) Get(string) string      { return strings.Join(f, ",") }
func (f baggageFields) Values(string) []string { return f }
func (f baggageFields) Set(string, string)     {}
func (f baggageFields) Keys() []string         { return nil }

// outgoing is the trace context of a context in the form that headers have.
type outgoing struct{ traceparent, tracestate, baggage string }

func outgoingOf(ctx context.Context) (out outgoing, some bool) {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		out.traceparent = formatTraceparent(sc)
		out.tracestate = formatTracestate(ctx, sc)
	}
	if bag := baggage.FromContext(ctx); bag.Len() > 0 {
		out.baggage = bag.String()
	}
	return out, out.traceparent != "" || out.baggage != ""
}

// Inject returns h with the context's trace context and baggage. Where own says
// that h is the caller's to change, they are set in it. Otherwise h stays as it
// is: where there is something to add, the result is a copy that shares its
// values. A context without either returns h itself, so that what the caller
// has set by hand goes out.
func (t *Telemetry) Inject(ctx context.Context, h http.Header, own bool) http.Header {
	if t.propagator != nil {
		out := h
		if !own {
			out = maps.Clone(h)
		}
		if out == nil {
			out = make(http.Header)
		}
		t.propagator.Inject(ctx, propagation.HeaderCarrier(out))
		return out
	}
	add, some := outgoingOf(ctx)
	if !some {
		return h
	}
	out := h
	if !own || h == nil {
		out = make(http.Header, len(h)+3)
		maps.Copy(out, h)
	}
	n := 0
	for _, value := range [...]string{add.traceparent, add.tracestate, add.baggage} {
		if value != "" {
			n++
		}
	}
	values := make([]string, 0, n)
	set := func(name, value string) {
		if value != "" {
			values = append(values, value)
			n := len(values)
			out[name] = values[n-1 : n : n]
		}
	}
	if add.traceparent != "" {
		// A tracestate of another traceparent means nothing to this one.
		delete(out, headerTracestate)
	}
	set(headerTraceparent, add.traceparent)
	set(headerTracestate, add.tracestate)
	set(headerBaggage, add.baggage)
	return out
}

// extractMetadata is Extract for the metadata of an incoming RPC.
func (t *Telemetry) extractMetadata(ctx context.Context) context.Context {
	if t.propagator != nil {
		md, _ := metadata.FromIncomingContext(ctx)
		return t.propagator.Extract(ctx, metadataCarrier(md))
	}
	return extract(ctx, metadata.ValueFromIncomingContext(ctx, keyTraceparent),
		metadata.ValueFromIncomingContext(ctx, keyTracestate), metadata.ValueFromIncomingContext(ctx, keyBaggage))
}

// injectMetadata is Inject for the metadata of an outgoing RPC.
func (t *Telemetry) injectMetadata(ctx context.Context) context.Context {
	if t.propagator != nil {
		md, _ := metadata.FromOutgoingContext(ctx) // a copy
		if md == nil {
			md = make(metadata.MD)
		}
		t.propagator.Inject(ctx, metadataCarrier(md))
		return metadata.NewOutgoingContext(ctx, md)
	}
	add, some := outgoingOf(ctx)
	if !some {
		return ctx
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	if md == nil {
		md = make(metadata.MD, 3)
	}
	if add.traceparent != "" {
		delete(md, keyTracestate)
		md[keyTraceparent] = []string{add.traceparent}
	}
	if add.tracestate != "" {
		md[keyTracestate] = []string{add.tracestate}
	}
	if add.baggage != "" {
		md[keyBaggage] = []string{add.baggage}
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// metadataCarrier lets a propagator of the program's read and write metadata.
type metadataCarrier metadata.MD

// Get implements propagation.TextMapCarrier.
func (c metadataCarrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Values implements propagation.ValuesGetter.
func (c metadataCarrier) Values(key string) []string { return metadata.MD(c).Get(key) }

// Set implements propagation.TextMapCarrier.
func (c metadataCarrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (c metadataCarrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}
