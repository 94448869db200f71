package telemetry

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// Attributes of attempts, as gRFC A72 names them.
const (
	keyPreviousAttempts = attribute.Key("previous-rpc-attempts")
	keyTransparentRetry = attribute.Key("transparent-retry")
)

// rpcStatus are the names of gRPC's status codes on the wire, which
// rpc.response.status_code has.
var rpcStatus = [...]string{
	codes.OK:                 "OK",
	codes.Canceled:           "CANCELLED",
	codes.Unknown:            "UNKNOWN",
	codes.InvalidArgument:    "INVALID_ARGUMENT",
	codes.DeadlineExceeded:   "DEADLINE_EXCEEDED",
	codes.NotFound:           "NOT_FOUND",
	codes.AlreadyExists:      "ALREADY_EXISTS",
	codes.PermissionDenied:   "PERMISSION_DENIED",
	codes.ResourceExhausted:  "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Aborted:            "ABORTED",
	codes.OutOfRange:         "OUT_OF_RANGE",
	codes.Unimplemented:      "UNIMPLEMENTED",
	codes.Internal:           "INTERNAL",
	codes.Unavailable:        "UNAVAILABLE",
	codes.DataLoss:           "DATA_LOSS",
	codes.Unauthenticated:    "UNAUTHENTICATED",
}

// rpcCode returns the code that the peer of an RPC sees for err.
func rpcCode(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	s, ok := status.FromError(err)
	switch {
	case ok:
		return s.Code()
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	default:
		return codes.Unknown
	}
}

func rpcWord(c codes.Code) string {
	if int(c) < len(rpcStatus) {
		return rpcStatus[c]
	}
	return strconv.FormatUint(uint64(c), 10)
}

// serverError reports whether a code is the server's failure, not its
// answer to the client's (semantic conventions for gRPC).
func serverError(c codes.Code) bool {
	switch c {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}

// endRPC ends the span of an RPC or attempt.
func endRPC(span trace.Span, err error, server bool) {
	code := rpcCode(err)
	word := rpcWord(code)
	span.SetAttributes(semconv.RPCResponseStatusCode(word))
	if code != codes.OK && (!server || serverError(code)) {
		span.SetAttributes(semconv.ErrorTypeKey.String(word))
		span.SetStatus(otelcodes.Error, "")
	}
	span.End()
}

// rpcName is the name of an RPC without gRPC's leading slash: name of span and rpc.method.
func rpcName(fullMethod string) string { return strings.TrimPrefix(fullMethod, "/") }

// rpcCall is what the call's interceptor tells its attempts. It is in their
// context only where the call's span is recorded.
type rpcCall struct {
	target   []attribute.KeyValue
	attempts atomic.Int64
}

type rpcCallKey struct{}

// startCall starts the span of a call; nil where it is not recorded.
func (t *Telemetry) startCall(ctx context.Context, method string, cc *grpc.ClientConn) (context.Context, trace.Span) {
	spans := t.spans()
	if spans == nil {
		return ctx, nil
	}
	parent := trace.SpanFromContext(ctx)
	if dropped(parent) {
		return ctx, nil
	}
	target := targetAttributes(cc.Target())
	name := rpcName(method)
	ctx, span := spans.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(append(target, semconv.RPCSystemNameGRPC, semconv.RPCMethod(name))...))
	if !span.IsRecording() {
		t.heard(spans, parent.SpanContext(), span.SpanContext())
		return ctx, nil
	}
	return context.WithValue(ctx, rpcCallKey{}, &rpcCall{target: target}), span
}

// targetAttributes are server.address and server.port of a gRPC target, "scheme://authority/host:port" or "host:port".
func targetAttributes(target string) []attribute.KeyValue {
	if i := strings.Index(target, "://"); i >= 0 {
		target = target[i+3:]
		if j := strings.IndexByte(target, '/'); j >= 0 {
			target = target[j+1:]
		}
	} else if scheme, rest, ok := strings.Cut(target, ":"); ok && (scheme == "unix" || scheme == "dns" || scheme == "passthrough") {
		target = rest
	}
	host, port := splitAddress(target)
	kv := make([]attribute.KeyValue, 0, 4)
	kv = append(kv, semconv.ServerAddress(host))
	if port != 0 {
		kv = append(kv, semconv.ServerPort(port))
	}
	return kv[:len(kv):len(kv)]
}

// UnaryClientInterceptor makes the span of each unary call. It comes before
// every interceptor that sends an RPC again, and needs ClientStats beside it.
func (t *Telemetry) UnaryClientInterceptor() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		ctx, span := t.startCall(ctx, method, cc)
		if span == nil {
			return invoke(ctx, method, req, reply, cc, opts...)
		}
		ended := false
		defer func() {
			if !ended { // a panic is on its way
				span.End()
			}
		}()
		err := invoke(ctx, method, req, reply, cc, opts...)
		ended = true
		endRPC(span, err, false)
		return err
	}
}

// StreamClientInterceptor makes the span of each streaming call; see
// UnaryClientInterceptor. The span ends with the stream.
func (t *Telemetry) StreamClientInterceptor() grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		ctx, span := t.startCall(ctx, method, cc)
		if span == nil {
			return open(ctx, desc, cc, method, opts...)
		}
		var once sync.Once
		end := func(err error) { once.Do(func() { endRPC(span, err, false) }) }
		stream, err := open(ctx, desc, cc, method, append([]grpc.CallOption{grpc.OnFinish(end)}, opts...)...)
		if err != nil {
			end(err)
		}
		return stream, err
	}
}

// ClientStats makes the span of each attempt of an RPC, and gives the RPC's
// metadata its trace context. Without the interceptors an attempt's span is of
// kind CLIENT and stands alone.
func (t *Telemetry) ClientStats() stats.Handler { return clientStats{t: t} }

// ServerStats reads the trace context that an RPC brings and makes its SERVER span.
func (t *Telemetry) ServerStats() stats.Handler { return serverStats{t: t} }

// rpcSpan is the span of one attempt, or of one RPC served, in its context.
type rpcSpan struct{ span trace.Span }

// rpcSpanKey says whose span it is: a server's handler makes calls of its own
// with the context that it was given.
type rpcSpanKey struct{ server bool }

// withSpan keeps an attempt's span, or that there is none, in its context, so
// that events of one RPC never reach the span of another.
func withSpan(ctx context.Context, span trace.Span, server bool) context.Context {
	key := rpcSpanKey{server}
	if span != nil {
		return context.WithValue(ctx, key, &rpcSpan{span})
	}
	if ctx.Value(key) != nil {
		return context.WithValue(ctx, key, (*rpcSpan)(nil))
	}
	return ctx
}

type clientStats struct {
	connStats
	t *Telemetry
}

// TagRPC implements stats.Handler; grpc-go calls it for each attempt.
func (s clientStats) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	ctx, span := s.t.startAttempt(ctx, info.FullMethodName)
	return s.t.injectMetadata(withSpan(ctx, span, false))
}

// startAttempt starts the span of an attempt; nil where it is not recorded.
func (t *Telemetry) startAttempt(ctx context.Context, fullMethod string) (context.Context, trace.Span) {
	spans := t.spans()
	if spans == nil {
		return ctx, nil
	}
	parent := trace.SpanFromContext(ctx)
	if dropped(parent) {
		return ctx, nil
	}
	name := rpcName(fullMethod)
	kv := [5]attribute.KeyValue{semconv.RPCSystemNameGRPC, semconv.RPCMethod(name)}
	some := kv[:2]
	kind := trace.SpanKindClient
	if c, _ := ctx.Value(rpcCallKey{}).(*rpcCall); c != nil {
		kind = trace.SpanKindInternal
		some = append(some, c.target...)
		if n := c.attempts.Add(1) - 1; n > 0 {
			some = append(some, keyPreviousAttempts.Int64(n))
		}
	}
	ctx, span := spans.tracer.Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(some...))
	if !span.IsRecording() {
		t.heard(spans, parent.SpanContext(), span.SpanContext())
		return ctx, nil
	}
	return ctx, span
}

// HandleRPC implements stats.Handler.
func (clientStats) HandleRPC(ctx context.Context, event stats.RPCStats) {
	handleRPC(ctx, event, false)
}

type serverStats struct {
	connStats
	t *Telemetry
}

// TagRPC implements stats.Handler.
func (s serverStats) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	ctx = s.t.extractMetadata(ctx)
	spans := s.t.spans()
	if spans == nil {
		return ctx
	}
	parent := trace.SpanContextFromContext(ctx)
	name := rpcName(info.FullMethodName)
	ctx, span := spans.tracer.Start(ctx, name, serverKind, trace.WithAttributes(semconv.RPCSystemNameGRPC, semconv.RPCMethod(name)))
	if !span.IsRecording() {
		s.t.heard(spans, parent, span.SpanContext())
		return ctx
	}
	return withSpan(ctx, span, true)
}

// HandleRPC implements stats.Handler.
func (serverStats) HandleRPC(ctx context.Context, event stats.RPCStats) {
	handleRPC(ctx, event, true)
}

func handleRPC(ctx context.Context, event stats.RPCStats, server bool) {
	switch event.(type) {
	case *stats.Begin, *stats.OutHeader, *stats.InHeader, *stats.End:
	default:
		return // a message: nothing to look up
	}
	s, _ := ctx.Value(rpcSpanKey{server}).(*rpcSpan)
	if s == nil {
		return
	}
	switch e := event.(type) {
	case *stats.Begin:
		if e.IsTransparentRetryAttempt {
			s.span.SetAttributes(keyTransparentRetry.Bool(true))
		}
	case *stats.OutHeader:
		if !server {
			setPeer(s.span, e.RemoteAddr)
		}
	case *stats.InHeader:
		if server {
			setPeer(s.span, e.RemoteAddr)
			if e.LocalAddr != nil {
				host, port := splitAddress(e.LocalAddr.String())
				s.span.SetAttributes(semconv.ServerAddress(host), semconv.ServerPort(port))
			}
		}
	case *stats.End:
		endRPC(s.span, e.Error, server)
	}
}

func setPeer(span trace.Span, address net.Addr) {
	if address == nil {
		return
	}
	var kv [2]attribute.KeyValue
	span.SetAttributes(appendPeer(kv[:0], address.String())...)
}

// connStats ignores what stats.Handler tells of connections.
type connStats struct{}

// TagConn implements stats.Handler.
func (connStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (connStats) HandleConn(context.Context, stats.ConnStats) {}
