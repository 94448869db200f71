package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// DefaultRouteTimeout is the limit of a route that does not set one
// (envoy.config.route.v3.RouteAction.timeout).
const DefaultRouteTimeout = 15 * time.Second

// timeouts reads the time limits of a route. Where max_stream_duration is set,
// with whatever in it, timeout and the older limits of gRPC requests do not
// count (Envoy).
func timeouts(m *routev3.RouteAction, r *snapshot.Route) (f *fault) {
	if r.Timeout, f = duration("timeout", m.GetTimeout(), DefaultRouteTimeout); f != nil {
		return f
	}
	if r.IdleTimeout, f = duration("idle_timeout", m.GetIdleTimeout(), 0); f != nil {
		return f
	}
	r.OwnIdleTimeout = m.GetIdleTimeout() != nil
	limit, f := optionalDuration("max_grpc_timeout", m.GetMaxGrpcTimeout())
	if f != nil {
		return f
	}
	offset, f := duration("grpc_timeout_offset", m.GetGrpcTimeoutOffset(), 0)
	if f != nil {
		return f
	}
	if m.GetMaxStreamDuration() != nil {
		r.Timeout = 0
		return streamDuration(m.GetMaxStreamDuration(), r).under("max_stream_duration")
	}
	// A caller's own deadline ends the request in any case. So the maximum says
	// nothing more where it equals timeout, as Istio sets it.
	if limit != nil && (*limit != r.Timeout || offset > 0) {
		r.GRPCTimeout, r.GRPCTimeoutOffset, r.GRPCTimeoutAlways = limit, offset, true
	}
	return nil
}

// streamDuration reads a route's own limit: zero where it has none, and
// forever where it switches the listener's off.
func streamDuration(m *routev3.RouteAction_MaxStreamDuration, r *snapshot.Route) (f *fault) {
	if r.MaxStreamDuration, f = duration("max_stream_duration", m.GetMaxStreamDuration(), 0); f != nil {
		return f
	}
	if m.GetMaxStreamDuration() != nil && r.MaxStreamDuration == 0 {
		r.MaxStreamDuration = forever
	}
	if r.GRPCTimeout, f = optionalDuration("grpc_timeout_header_max", m.GetGrpcTimeoutHeaderMax()); f != nil {
		return f
	}
	offset, f := duration("grpc_timeout_header_offset", m.GetGrpcTimeoutHeaderOffset(), 0)
	if r.GRPCTimeout != nil { // alone it has no effect
		r.GRPCTimeoutOffset = offset
	}
	return f
}

// optionalDuration is duration for a field whose absence is not the same as any value.
func optionalDuration(field string, d *durationpb.Duration) (*time.Duration, *fault) {
	if d == nil {
		return nil, nil
	}
	v, f := duration(field, d, 0)
	return &v, f
}
