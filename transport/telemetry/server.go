package telemetry

import (
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// version is network.protocol.version.
type version uint8

const noVersion version = 0

var versions = [...]string{noVersion: "", "1.0", "1.1", "2", "3"}

func versionOf(r *http.Request) version {
	switch {
	case r.ProtoMajor == 1 && r.ProtoMinor == 0:
		return 1
	case r.ProtoMajor == 1:
		return 2
	case r.ProtoMajor == 2:
		return 3
	case r.ProtoMajor == 3:
		return 4
	}
	return noVersion
}

func scheme(tls bool) string {
	if tls {
		return "https"
	}
	return "http"
}

// Handler returns a handler that reads the trace context that a request
// brings, makes its SERVER span and counts it, around next.
//
// The route is the path of the pattern that http.ServeMux set in the request.
// A middleware between that gives the mux a request of its own, as
// Request.WithContext makes it, hides the route unless it copies the Pattern back.
//
// A handler that panics counts as having answered 500, if it had not yet
// answered; the panic goes on.
func (t *Telemetry) Handler(next http.Handler) http.Handler {
	return &handler{t: t, next: next}
}

type handler struct {
	t    *Telemetry
	next http.Handler
}

var serverKind = trace.WithSpanKind(trace.SpanKindServer)

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := h.t
	spans := t.spans()
	var x *writer
	var with *traced
	if spans == nil {
		x = new(writer)
	} else {
		with = new(traced)
		x = &with.writer
	}
	x.ResponseWriter, x.began = w, time.Now()
	ctx := t.Extract(r.Context(), r.Header)
	m := methodOf(r.Method)
	var span trace.Span
	if spans != nil {
		// What a sampler may decide by.
		with.start = [...]attribute.KeyValue{m.attribute(), semconv.URLPath(r.URL.Path), semconv.URLScheme(scheme(r.TLS != nil))}
		parent := trace.SpanContextFromContext(ctx)
		ctx, span = spans.tracer.Start(ctx, m.spanName(), serverKind, trace.WithAttributes(with.start[:]...))
		if !span.IsRecording() {
			t.heard(spans, parent, span.SpanContext())
			span = nil
		}
	}
	if ctx != r.Context() {
		r = r.WithContext(ctx)
	}
	if span != nil {
		describeRequest(span, r, m)
	}
	aborted := true
	defer func() { t.served(x, r, m, span, aborted) }()
	h.next.ServeHTTP(x.as(), r)
	aborted = false
}

// describeRequest sets what is known of a request at its start.
func describeRequest(span trace.Span, r *http.Request, m method) {
	var kv [9]attribute.KeyValue
	some := kv[:0]
	if r.URL.RawQuery != "" {
		some = append(some, semconv.URLQuery(redactQuery(r.URL.RawQuery)))
	}
	if m == otherMethod {
		some = append(some, semconv.HTTPRequestMethodOriginal(r.Method))
	}
	if host, port := splitAddress(r.Host); host != "" {
		if port == 0 {
			port = defaultPort(scheme(r.TLS != nil))
		}
		some = append(some, semconv.ServerAddress(host), semconv.ServerPort(port))
	}
	before := len(some)
	if some = appendPeer(some, r.RemoteAddr); len(some) > before {
		some = append(some, semconv.ClientAddress(some[before].Value.AsString()))
	}
	if agent := r.UserAgent(); agent != "" {
		some = append(some, semconv.UserAgentOriginal(agent))
	}
	if v := versionOf(r); v != noVersion {
		some = append(some, semconv.NetworkProtocolVersion(versions[v]))
	}
	span.SetAttributes(some...)
}

// served ends a request: r is the one that the handler was given.
func (t *Telemetry) served(x *writer, r *http.Request, m method, span trace.Span, aborted bool) {
	status, f := x.status, noFault
	if status == 0 && !x.hijacked {
		status = http.StatusOK
		if aborted {
			status = http.StatusInternalServerError
		}
	}
	switch {
	case status >= 500:
		f = statusFault
	case aborted:
		f = abortedFault
	}
	route := routeOf(r.Pattern)
	ctx := r.Context()
	if t.requests.Enabled(ctx) {
		t.requests.Record(ctx, time.Since(x.began).Seconds(), t.server.options(serverKey{
			route: route, status: uint16(status), method: m, fault: f, tls: r.TLS != nil, version: versionOf(r),
		})...)
	}
	if span == nil {
		return
	}
	if route != "" {
		span.SetName(m.spanName() + " " + route)
		span.SetAttributes(semconv.HTTPRoute(route))
	}
	if status != 0 {
		span.SetAttributes(semconv.HTTPResponseStatusCode(status))
	}
	if word := f.word(status); word != "" {
		span.SetAttributes(semconv.ErrorTypeKey.String(word))
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// routeOf is the path of a pattern of http.ServeMux, "[METHOD ][HOST]/[PATH]".
func routeOf(pattern string) string {
	if i := strings.IndexByte(pattern, '/'); i >= 0 {
		return pattern[i:]
	}
	return ""
}
