package meshgrpc

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"

	"github.com/sinew-mesh/sinew/transport/inbound"
)

// ServerConfig configures ServerOptions.
type ServerConfig struct {
	// Inbound admits RPCs. Required.
	Inbound *inbound.Engine
	// Log is told of each RPC that is refused, with the control plane's reason,
	// which the caller is not. Default: slog.Default().
	Log *slog.Logger

	// StatsHandlers see every RPC, refused ones too, in this order.
	StatsHandlers []stats.Handler
	// UnaryInterceptors and StreamInterceptors run before admission, so that
	// they see what is refused.
	UnaryInterceptors  []grpc.UnaryServerInterceptor
	StreamInterceptors []grpc.StreamServerInterceptor
	// MeterProvider receives gRPC's own server metrics (gRFC A66). nil records none.
	MeterProvider metric.MeterProvider
}

// ServerOptions returns the options for grpc.NewServer. They hold for every
// RPC of the server, health and reflection included: the policy of the listener
// that its connection came in on must let it in, else the caller gets
// codes.Unavailable and the handler does not run. An RPC whose policy has not
// come yet waits, up to its deadline or the engine's PolicyWait.
//
// The order is: ServerConfig's interceptors, admission, then the chained
// interceptors of the options that follow these. Two things gRPC runs earlier:
// the single interceptor of grpc.UnaryInterceptor or grpc.StreamInterceptor,
// which precedes all chained ones, and the decoding of a unary RPC's message,
// which precedes all interceptors; a stream's messages are decoded only after
// it was admitted. What must not reach even the decoder belongs into the one
// grpc.InTapHandle, which is left to the caller, as are keepalive enforcement,
// message size limits and credentials.
//
// A method without a handler is answered with codes.Unimplemented without asking for admission.
func ServerOptions(c ServerConfig) []grpc.ServerOption {
	a := &admission{engine: c.Inbound, log: c.Log}
	if a.log == nil {
		a.log = slog.Default()
	}
	var options []grpc.ServerOption
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

// admission asks the engine about each RPC.
type admission struct {
	engine *inbound.Engine
	log    *slog.Logger
}

func (a *admission) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := a.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (a *admission) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := a.admit(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, ss)
}

// admit returns nil or the status error for the caller.
func (a *admission) admit(ctx context.Context, method string) error {
	var r inbound.Request
	// gRPC sets LocalAddr both where it owns the connection and under net/http (Server.ServeHTTP).
	if p, ok := peer.FromContext(ctx); ok {
		r.Local = p.LocalAddr
	}
	err := a.engine.Admit(ctx, &r)
	if err == nil {
		return nil
	}
	a.log.Warn("request refused", "method", method, "listener", r.Local, "error", err)
	return Refusal(err).Err()
}
