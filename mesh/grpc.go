package mesh

import (
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	// Its client is what WithGRPCHealth needs.
	_ "google.golang.org/grpc/health"

	"github.com/sinew-mesh/sinew/transport/meshgrpc"
)

// DialOptions makes a gRPC channel part of the mesh: W3C trace context, spans
// of calls and attempts, gRPC's own metrics, and policy.
//
// A target "mesh:///reviews:9080" has all the policy that HTTP has, by the same
// decisions. One of "xds:///reviews:9080" takes its policy from the control plane
// through grpc-go's own xDS client, which enforces a subset (see the table in
// the README). Where the bootstrap is not the one of the environment, each
// channel of that kind has an ADS stream of its own. Other targets have the part of the
// default policy that gRPC knows. Connections are plaintext where policy does
// not ask for TLS. Options that follow win, but for "mesh:///" a service config
// or resolver of theirs has no effect.
func (m *Mesh) DialOptions() []grpc.DialOption {
	o := meshgrpc.ClientOptions{
		Default:            m.config.policy.grpc(),
		StatsHandlers:      []stats.Handler{m.telemetry.ClientStats()},
		UnaryInterceptors:  []grpc.UnaryClientInterceptor{m.telemetry.UnaryClientInterceptor()},
		StreamInterceptors: []grpc.StreamClientInterceptor{m.telemetry.StreamClientInterceptor()},
		MeterProvider:      m.config.meters(),
		Outbound:           m.outbound,
		Sources:            m.identity.source,
		Health:             m.config.grpcHealth,
	}
	o.Bootstrap = m.identity.document
	return meshgrpc.DialOptions(o)
}

// ServerOptions makes a *grpc.Server part of the mesh: spans of calls, and the
// policy of the listener that they came in on. Serve it on a listener of
// Listen. The interceptors come before those of options that follow.
func (m *Mesh) ServerOptions() []grpc.ServerOption {
	return meshgrpc.ServerOptions(meshgrpc.ServerConfig{
		Inbound:       m.inbound,
		Log:           m.log,
		StatsHandlers: []stats.Handler{m.telemetry.ServerStats()},
		MeterProvider: m.config.meters(),
	})
}

// grpc is the part of the policy that a gRPC channel can enforce by itself.
func (p *Policy) grpc() *meshgrpc.DefaultPolicy {
	return &meshgrpc.DefaultPolicy{
		Timeout: p.Timeout, Retries: p.Retries, RetryPercent: p.RetryPercent, RetryMin: p.RetryMin,
	}
}

// meters returns the provider for gRPC's own metrics, which takes no nil for the global one.
func (c *config) meters() metric.MeterProvider {
	if c.meterProvider == nil {
		return otel.GetMeterProvider()
	}
	return c.meterProvider
}
