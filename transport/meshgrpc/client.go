// Package meshgrpc carries gRPC through the mesh: dial options for clients and
// server options for ordinary *grpc.Servers.
//
// On the client side a "mesh:///" target has all the policy that HTTP has, by
// the same engine. An "xds:///" target uses gRPC's own xDS client, with the
// subset of policy that gRPC has (routes by path and header, weights, retries
// by status code, max_stream_duration, max_requests); other targets resolve as
// gRPC does without a mesh and have the default policy. On the server side
// every RPC is admitted by the policy of the listener that it came in on.
package meshgrpc

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/stats"

	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// ClientOptions configure DialOptions. The zero value gives options that add
// nothing but the credentials: a channel to any target behaves as gRPC's own.
type ClientOptions struct {
	// Bootstrap is the xDS bootstrap document for "xds:///" targets. Default:
	// the one that gRPC itself reads from $GRPC_XDS_BOOTSTRAP or
	// $GRPC_XDS_BOOTSTRAP_CONFIG.
	//
	// gRPC reads those variables when its packages initialise, before main, and
	// then has one ADS stream for each "xds:///" target. A document that
	// differs from the environment's is given to each channel by itself (an
	// interface that gRPC marks as experimental and for tests): every channel
	// has its own ADS stream, and gRPC's CSDS service does not show them.
	Bootstrap []byte
	// Outbound carries "mesh:///" targets. Default: none, and gRPC does not know the scheme.
	Outbound *outbound.Engine
	// Sources opens the identity sources that policy names for "mesh:///"
	// targets. Default: none, and RPCs that policy wants secured fail.
	Sources outbound.Sources
	// Health has the connections of "mesh:///" targets watched by gRPC's health
	// service, under this name of a service ("" for the whole server). The program
	// imports google.golang.org/grpc/health. Default: nil, which watches none.
	Health *string
	// Default applies to targets that get no policy from xDS ("dns:///",
	// "passthrough:///" and so on); nil applies none, which leaves gRPC's
	// pick_first without retries.
	Default *DefaultPolicy
	// Credentials secure connections for which policy asks no TLS, and those
	// of targets other than "xds:///". Default: none, which is plaintext.
	Credentials credentials.TransportCredentials

	// StatsHandlers see every attempt, in this order.
	StatsHandlers []stats.Handler
	// UnaryInterceptors and StreamInterceptors run once for each call, before
	// those of the dial options that follow.
	UnaryInterceptors  []grpc.UnaryClientInterceptor
	StreamInterceptors []grpc.StreamClientInterceptor
	// MeterProvider receives gRPC's own client metrics (gRFCs A66, A78 and A94;
	// see Metrics). nil records none.
	MeterProvider metric.MeterProvider
}

// DialOptions returns the options for grpc.NewClient. The caller's own options
// go after them:
//
//   - WithTransportCredentials, WithDefaultServiceConfig, WithIdleTimeout and
//     WithMaxCallAttempts replace what is set here. With credentials other than
//     those of google.golang.org/grpc/credentials/xds, TLS that policy asks for
//     does not happen. WithCredentialsBundle can not be combined with the
//     credentials set here: grpc.NewClient refuses it.
//   - Chained interceptors and stats handlers are added behind those given
//     here; WithUnaryInterceptor and WithStreamInterceptor, of which a channel
//     has one each, run before all chained ones.
//   - WithResolvers for the schemes "xds" and "mesh" has no effect: gRPC takes the first resolver of a scheme.
//
// For "mesh:///host:port" (port 80 where there is none) a service config of the
// caller's has no effect, so that gRPC's own retries do not multiply those of
// policy, and WithDisableServiceConfig fails every RPC. With other transport credentials
// than these, endpoints that policy wants secured get no connection. What a call
// holds of messages to send a stream again is below 64 KiB; where more was sent, a
// message is none of protocol buffers, or a header has come, a stream is not sent
// again. While it is sent again, SendMsg may wait for the pause between the attempts.
// Hedged calls and copies to mirrors are encoded once: interceptors behind
// these see frames in place of messages. Interceptors and stats handlers of the
// caller see each attempt. An interceptor derives the context that it passes on
// from the one that it is given: with another an RPC has lost its policy, and fails
// with codes.Internal. max_stream_duration, route and per-try timeouts,
// faults, header changes, rewrites and limits are those of the route.
//
// A bootstrap that gRPC can not use fails each call with codes.Unavailable, and
// so does a target without policy, with the reason from the first call on.
// Calls that policy sends to a cluster at the moment at which it first names it
// wait for the cluster, where gRPC alone fails some of them. So do calls that
// wait for readiness (grpc.WaitForReady) from a time without any policy: they are
// made once more when it comes, and the interceptors behind these see that.
//
// Where policy asks for TLS, the server's certificate is held to the rules for
// X509-SVIDs as over HTTP, beyond what gRPC verifies by itself. When policy begins
// to ask for TLS, or ceases to, connections of the other kind are replaced, each
// when its RPCs have ended.
//
// Channels of a process with a control plane never become idle, where gRPC's
// default is 30 minutes without a call. An idle channel forgets its policy, and
// the next call would need the control plane; so they keep the last policy
// instead, and their connections.
func DialOptions(o ClientOptions) []grpc.DialOption {
	connections := newFollowing()
	resolvers := []resolver.Builder{channelResolver(o.Bootstrap, connections.changed)}
	var mesh *meshClient
	if o.Outbound != nil {
		mesh = newMeshClient(o.Outbound, o.Sources, o.Health)
		resolvers = append(resolvers, meshResolver{mesh})
	}
	options := []grpc.DialOption{grpc.WithResolvers(resolvers...)}
	if o.Bootstrap != nil || environment.isSet() {
		options = append(options, grpc.WithIdleTimeout(0))
	}
	var creds credentials.TransportCredentials = &followingCredentials{
		transportCredentials(o.Credentials, bootstrapProviders(o.Bootstrap)), connections}
	if mesh != nil {
		fallback := o.Credentials
		if fallback == nil {
			fallback = insecure.NewCredentials()
		}
		creds = &meshCredentials{creds, fallback}
	}
	options = append(options, grpc.WithTransportCredentials(creds))

	// Telemetry comes first, so that it measures what the rest does.
	if o.MeterProvider != nil {
		options = append(options, clientMetrics(o.MeterProvider))
	}
	for _, h := range o.StatsHandlers {
		options = append(options, grpc.WithStatsHandler(h))
	}
	if len(o.UnaryInterceptors) > 0 {
		options = append(options, grpc.WithChainUnaryInterceptor(o.UnaryInterceptors...))
	}
	if len(o.StreamInterceptors) > 0 {
		options = append(options, grpc.WithChainStreamInterceptor(o.StreamInterceptors...))
	}
	if mesh != nil {
		options = append(options, grpc.WithChainUnaryInterceptor(mesh.unaryInterceptor), grpc.WithChainStreamInterceptor(mesh.streamInterceptor))
	} else {
		options = append(options, grpc.WithChainUnaryInterceptor(againUnary), grpc.WithChainStreamInterceptor(againStream))
	}
	if o.Default != nil {
		options = append(options, o.Default.dialOptions()...)
	}
	return options
}

// transportCredentials lets policy decide about TLS for each cluster.
func transportCredentials(fallback credentials.TransportCredentials, providers func() map[string]bootstrap.CertificateProvider) credentials.TransportCredentials {
	if fallback == nil {
		fallback = insecure.NewCredentials()
	}
	c, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: kindCredentials{fallback}})
	if err != nil {
		panic(err) // only for want of a fallback
	}
	return &strictCredentials{c, providers}
}

// limitUnary gives calls on channels without xDS a deadline. It is an
// interceptor because the timeout of a service config would end streams too.
func limitUnary(limit time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if target := cc.CanonicalTarget(); strings.HasPrefix(target, "xds:") || strings.HasPrefix(target, meshScheme+":") {
			return invoker(ctx, method, req, reply, cc, opts...)
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return invoker(ctx, method, req, reply, cc, opts...)
	}
}
