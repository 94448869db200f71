package meshgrpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// ServerConfig configures ServerOptions.
type ServerConfig struct {
	// Inbound admits RPCs. Required.
	Inbound *inbound.Engine
	// Log is told of each RPC that is refused, with reasons that the caller is
	// not told. Default: slog.Default().
	Log *slog.Logger
	// CloseGrace is how long the connection of a peer that policy no longer
	// accepts stays open for the RPCs in flight on it. Default: 10 s.
	CloseGrace time.Duration

	// StatsHandlers see every RPC, refused ones too, in this order.
	StatsHandlers []stats.Handler
	// UnaryInterceptors and StreamInterceptors run before admission, so that
	// they see what is refused.
	UnaryInterceptors  []grpc.UnaryServerInterceptor
	StreamInterceptors []grpc.StreamServerInterceptor
	// MeterProvider receives gRPC's own server metrics (gRFC A66). nil records none.
	MeterProvider metric.MeterProvider
}

const defaultCloseGrace = 10 * time.Second

// ServerOptions returns the options for grpc.NewServer. They hold for every
// RPC of the server, health and reflection and methods without a handler
// included: the policy of the listener that its connection came in on must let
// it in, else the handler does not run. See Refusal for the codes. An RPC whose
// policy has not come yet waits, up to its deadline or the engine's PolicyWait.
//
// Rules see an RPC as the HTTP/2 request that it is: the method POST, the full
// method name as the path, metadata as headers with lower-case names, those in
// "-bin" in base64 without padding, which is how gRPC sends them. The handler
// finds the caller with identity.PeerFromContext, the claims of a verified token
// with identity.ClaimsFromContext, and in its metadata what policy has set.
//
// The options set transport credentials. On a listener of the mesh the
// connection has been secured before; on every other one they do it: mutual TLS where
// policy says so, plaintext where it allows it. Credentials among the options
// that follow replace them, and then every peer is one without an identity.
//
// When policy or certificates change, the next RPC on each connection is held
// to what is in force then. Where its peer is no longer acceptable, the client
// is asked to make no more RPCs there (GOAWAY), and the connection is closed
// after CloseGrace with all that is in flight. Where only the certificates that
// it was made with are old, it is asked the same and nothing is cut off.
//
// The order is: ServerConfig's interceptors, admission, then the chained
// interceptors of the options that follow these. Two things gRPC runs earlier:
// the single interceptor of grpc.UnaryInterceptor or grpc.StreamInterceptor,
// which precedes all chained ones, and the decoding of a unary RPC's message,
// which precedes all interceptors; a stream's messages are decoded only after
// it was admitted. What must not reach even the decoder belongs into the one
// grpc.InTapHandle, which is left to the caller, as are keepalive enforcement
// and message size limits. So an external authorizer is not sent the message.
func ServerOptions(c ServerConfig) []grpc.ServerOption {
	a := &admission{engine: c.Inbound, log: c.Log, grace: c.CloseGrace}
	if a.log == nil {
		a.log = slog.Default()
	}
	if a.grace <= 0 {
		a.grace = defaultCloseGrace
	}
	options := []grpc.ServerOption{
		grpc.Creds(&serverCredentials{engine: a.engine, log: a.log, conns: &a.conns}),
		// With a handler for unknown methods the interceptors see those too:
		// what the server has and has not is told to those who may call it.
		grpc.UnknownServiceHandler(unknownMethod),
	}
	if c.MeterProvider != nil {
		options = append(options, serverMetrics(c.MeterProvider))
	}
	for _, h := range c.StatsHandlers {
		options = append(options, grpc.StatsHandler(h))
	}
	if len(c.UnaryInterceptors) > 0 {
		options = append(options, grpc.ChainUnaryInterceptor(c.UnaryInterceptors...))
	}
	if len(c.StreamInterceptors) > 0 {
		options = append(options, grpc.ChainStreamInterceptor(c.StreamInterceptors...))
	}
	return append(options, grpc.ChainUnaryInterceptor(a.unary), grpc.ChainStreamInterceptor(a.stream))
}

func unknownMethod(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	return status.Errorf(codes.Unimplemented, "unknown method %s", method)
}

// admission asks the engine about each RPC.
type admission struct {
	engine *inbound.Engine
	log    *slog.Logger
	grace  time.Duration
	conns  sync.Map // see serverCredentials
}

func (a *admission) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, hold, err := a.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if hold != nil {
		defer release(hold, ctx)()
	}
	return handler(ctx, req)
}

// release returns what ends a hold when the handler returns. A caller that had
// gone by then, or whose time had passed, has not been given the answer.
func release(hold *inbound.Hold, ctx context.Context) func() {
	return func() { hold.Release(ctx.Err() == nil) }
}

func (a *admission) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, hold, err := a.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if hold != nil {
		defer release(hold, ctx)()
	}
	return handler(srv, &admittedStream{ss, ctx})
}

// admittedStream is a stream with the context that admission has made.
type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *admittedStream) Context() context.Context { return s.ctx }

// admit returns the handler's context and what to release after it, or the status error for the caller.
func (a *admission) admit(ctx context.Context, method string) (context.Context, *inbound.Hold, error) {
	r := inbound.Request{Access: identity.AccessRequest{Request: routing.Request{
		Method: http.MethodPost, Scheme: "http", Path: method, Form: routing.LowerHeaders,
	}}}
	// gRPC sets LocalAddr both where it owns the connection and under net/http (Server.ServeHTTP).
	if p, ok := peer.FromContext(ctx); ok {
		r.Local = p.LocalAddr
		if tcp, ok := p.Addr.(*net.TCPAddr); ok {
			r.Remote = tcp.AddrPort()
		}
		if p.AuthInfo != nil && p.AuthInfo.AuthType() == "tls" {
			r.Encrypted, r.Access.Scheme = true, "https"
		}
	}
	r.Conn = a.engine.Conn(r.Local)
	md, _ := metadata.FromIncomingContext(ctx) // a copy
	wire := onTheWire(md)
	r.Access.Header = wire
	if authority := md[":authority"]; len(authority) > 0 {
		r.Access.Authority = authority[0]
	}
	var admitted inbound.Admission
	err := a.verdict(ctx, &r, &admitted)
	if admitted.CloseConnection {
		a.close(&r, err != nil)
	}
	if err != nil {
		level := slog.LevelWarn
		var denied *inbound.DeniedError
		var notReady *inbound.NotReadyError
		if errors.As(err, &denied) {
			setHeaders(ctx, denied.Header)
			switch {
			case errors.As(denied.Err, &notReady): // and the caller could not wait for it
			case denied.Reason == inbound.ReasonRateLimit, denied.Reason == inbound.ReasonDeadline, denied.Reason == inbound.ReasonOverload:
				level = slog.LevelDebug // there are many of them by nature
			}
		}
		a.log.Log(ctx, level, "request refused", "method", method, "listener", r.Local, "error", err)
		return nil, nil, Refusal(err).Err()
	}
	setHeaders(ctx, admitted.Response)
	if admitted.HostChanged {
		md.Set(":authority", r.Access.Authority)
	}
	switch {
	case admitted.HeaderChanged:
		ctx = metadata.NewIncomingContext(ctx, offTheWire(r.Access.Header, wire, md))
	case admitted.HostChanged:
		ctx = metadata.NewIncomingContext(ctx, md)
	}
	ctx = identity.ContextWithPeer(ctx, admitted.Peer)
	if admitted.Claims != nil {
		ctx = identity.ContextWithClaims(ctx, admitted.Claims)
	}
	return admitted.Hold.Context(ctx), admitted.Hold, nil
}

// errMethod says that policy would be asked about another method than gRPC runs.
var errMethod = &inbound.DeniedError{Reason: inbound.ReasonPath, HTTPStatus: http.StatusBadRequest, Message: "the method's name has no safe reading"}

// verdict asks the engine. gRPC has chosen the handler by the name as it came,
// so a name that policy would read in another way is refused.
func (a *admission) verdict(ctx context.Context, r *inbound.Request, admitted *inbound.Admission) error {
	if !strings.HasPrefix(r.Access.Path, "/") {
		return errMethod
	}
	if err := a.engine.Admit(ctx, r, admitted); err != nil {
		return err
	}
	if admitted.PathChanged || admitted.QueryChanged {
		admitted.Hold.Release(true)
		return errMethod
	}
	return nil
}

// close has the connection of a request take no more of them, and ends it where its peer is refused.
func (a *admission) close(r *inbound.Request, refused bool) {
	if d, ok := a.conns.Load(r.Local); ok {
		d.(*drainable).drain()
	}
	if refused && r.Conn != nil {
		r.Conn.CloseAfter(a.grace)
	}
}

// setHeaders adds to the answer's header; there is none to add to in a context of a test.
func setHeaders(ctx context.Context, list []inbound.Header) {
	if len(list) == 0 {
		return
	}
	md := make(metadata.MD, len(list))
	for _, h := range list {
		name := strings.ToLower(h.Name)
		switch {
		case name == "location" || name == "content-type" || name == "content-length" || name == "connection" || strings.HasPrefix(name, ":"):
			// They are about an HTTP answer, which this is not.
		default:
			md[name] = append(md[name], h.Value)
		}
	}
	_ = grpc.SetHeader(ctx, md)
}
