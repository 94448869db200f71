package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"math"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// DefaultRouteTimeout is the limit of a route that does not set one
// (envoy.config.route.v3.RouteAction.timeout).
const DefaultRouteTimeout = 15 * time.Second

// RouteConfig compiles a RouteConfiguration. name is set where it could be
// read, even with an error.
func RouteConfig(resource *anypb.Any) (name string, rc *snapshot.RouteConfig, err error) {
	var m routev3.RouteConfiguration
	wrapper, f := open(resource, &m)
	name = named(m.GetName(), wrapper)
	if f == nil {
		f = unlisted(m.ProtoReflect())
	}
	if f == nil && m.GetName() == "" {
		f = faultf("name", "is empty")
	}
	if f == nil {
		rc, f = routeConfig(&m)
	}
	if f != nil {
		return name, nil, f.of("RouteConfiguration", name)
	}
	return name, rc, nil
}

// routeConfig compiles a route configuration that has been checked against the lists.
func routeConfig(m *routev3.RouteConfiguration) (*snapshot.RouteConfig, *fault) {
	if f := perFilterConfig(m.GetTypedPerFilterConfig(), clientSide); f != nil {
		return nil, f
	}
	rc := &snapshot.RouteConfig{Name: m.GetName(), VirtualHosts: make([]snapshot.VirtualHost, len(m.GetVirtualHosts()))}
	domains := make([][]string, len(m.GetVirtualHosts()))
	for i, vh := range m.GetVirtualHosts() {
		domains[i] = vh.GetDomains()
		if f := virtualHost(vh, &rc.VirtualHosts[i]); f != nil {
			return nil, f.underIndex("virtual_hosts", i)
		}
	}
	var err error
	if rc.Domains, err = routing.NewDomains(domains); err != nil {
		return nil, invalid(err)
	}
	return rc, nil
}

func virtualHost(m *routev3.VirtualHost, vh *snapshot.VirtualHost) *fault {
	if f := perFilterConfig(m.GetTypedPerFilterConfig(), clientSide); f != nil {
		return f
	}
	inherited, f := retryPolicy(m.GetRetryPolicy())
	if f != nil {
		return f.under("retry_policy")
	}
	*vh = snapshot.VirtualHost{Name: m.GetName(), Routes: make([]snapshot.Route, len(m.GetRoutes()))}
	for i, r := range m.GetRoutes() {
		if f := route(r, &vh.Routes[i], inherited); f != nil {
			return f.underIndex("routes", i)
		}
	}
	return nil
}

func route(m *routev3.Route, r *snapshot.Route, inherited *resilience.RetryPolicy) *fault {
	if f := perFilterConfig(m.GetTypedPerFilterConfig(), clientSide); f != nil {
		return f
	}
	r.Name = m.GetName()
	if f := match(m.GetMatch(), &r.Match); f != nil {
		return f.under("match")
	}
	switch {
	case m.GetRoute() != nil:
		return action(m.GetRoute(), r, inherited).under("route")
	case m.GetNonForwardingAction() != nil:
		return faultf("non_forwarding_action", "not supported in routes for outbound requests")
	default:
		return faultf("", "there is no action")
	}
}

func action(m *routev3.RouteAction, r *snapshot.Route, inherited *resilience.RetryPolicy) *fault {
	var f *fault
	switch spec := m.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		if spec.Cluster == "" {
			return faultf("cluster", "is empty")
		}
		r.Clusters, f = weighted([]routing.WeightedCluster{{Name: spec.Cluster, Weight: 1}})
	case *routev3.RouteAction_WeightedClusters:
		r.Clusters, f = weightedClusters(spec.WeightedClusters)
		f = f.under("weighted_clusters")
	default:
		f = faultf("", "neither cluster nor weighted_clusters is set")
	}
	if f != nil {
		return f
	}
	if r.Timeout, f = duration("timeout", m.GetTimeout(), DefaultRouteTimeout); f != nil {
		return f
	}
	// With max_grpc_timeout, Envoy limits a gRPC request by its grpc-timeout header
	// and by this maximum in place of timeout. The header is the caller's own
	// deadline here, so the field says nothing more where it equals timeout, as Istio sets it.
	if limit, f := duration("max_grpc_timeout", m.GetMaxGrpcTimeout(), r.Timeout); f != nil {
		return f
	} else if limit != r.Timeout {
		return faultf("max_grpc_timeout", "%v differs from timeout, which is %v: not supported", limit, r.Timeout)
	}
	if r.MaxStreamDuration, f = maxStreamDuration(m.GetMaxStreamDuration()); f != nil {
		return f.under("max_stream_duration")
	}
	for i, u := range m.GetUpgradeConfigs() {
		if f := upgrade(u.GetUpgradeType(), u.GetEnabled()); f != nil {
			return f.underIndex("upgrade_configs", i)
		}
	}
	r.Retry = inherited
	if m.GetRetryPolicy() != nil {
		if r.Retry, f = retryPolicy(m.GetRetryPolicy()); f != nil {
			return f.under("retry_policy")
		}
	}
	return nil
}

// maxStreamDuration reads a route's own limit: zero where it has none, and
// forever where it switches the listener's off.
func maxStreamDuration(m *routev3.RouteAction_MaxStreamDuration) (time.Duration, *fault) {
	limit, f := duration("max_stream_duration", m.GetMaxStreamDuration(), 0)
	if f != nil {
		return 0, f
	}
	if m.GetMaxStreamDuration() != nil && limit == 0 {
		limit = forever
	}
	if m.GetGrpcTimeoutHeaderMax() != nil {
		// A maximum for the deadlines of gRPC requests alone. It says nothing
		// more where it equals the limit for all requests.
		maximum, f := duration("grpc_timeout_header_max", m.GetGrpcTimeoutHeaderMax(), 0)
		if f != nil {
			return 0, f
		}
		if maximum == 0 {
			maximum = forever // the header counts without a maximum
		}
		if maximum != limit {
			return 0, faultf("grpc_timeout_header_max", "differs from max_stream_duration: not supported")
		}
	}
	return limit, nil
}

func weightedClusters(m *routev3.WeightedCluster) (routing.Weighted, *fault) {
	var clusters []routing.WeightedCluster
	sum := uint64(0)
	for i, c := range m.GetClusters() {
		var f *fault
		switch {
		case c.GetName() == "":
			f = faultf("name", "is empty")
		case c.GetWeight() == nil:
			f = faultf("weight", "missing")
		default:
			f = perFilterConfig(c.GetTypedPerFilterConfig(), clientSide)
		}
		if f != nil {
			return routing.Weighted{}, f.underIndex("clusters", i)
		}
		if weight := c.GetWeight().GetValue(); weight > 0 { // one without weight is never chosen
			clusters = append(clusters, routing.WeightedCluster{Name: c.GetName(), Weight: weight})
			sum += uint64(weight)
		}
	}
	switch {
	case len(m.GetClusters()) == 0:
		return routing.Weighted{}, faultf("clusters", "there is none")
	case sum == 0:
		return routing.Weighted{}, faultf("clusters", "the sum of the weights is 0")
	case sum > math.MaxUint32:
		return routing.Weighted{}, faultf("clusters", "the sum of the weights exceeds %d", uint32(math.MaxUint32))
	}
	return weighted(clusters)
}

func weighted(clusters []routing.WeightedCluster) (routing.Weighted, *fault) {
	w, err := routing.NewWeighted(clusters)
	if err != nil {
		return routing.Weighted{}, faultf("", "%v", err)
	}
	return w, nil
}
