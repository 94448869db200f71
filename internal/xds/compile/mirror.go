package compile

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/sinew-mesh/sinew/routing"
)

// mirrors reads where copies of requests go. The policies of a level take the
// place of all those above it.
func mirrors(list []*routev3.RouteAction_RequestMirrorPolicy, inherited []routing.Mirror) ([]routing.Mirror, *fault) {
	if len(list) == 0 {
		return inherited, nil
	}
	return each("request_mirror_policies", list, mirror)
}

func mirror(m *routev3.RouteAction_RequestMirrorPolicy) (out routing.Mirror, f *fault) {
	out = routing.Mirror{Cluster: m.GetCluster(), Fraction: routing.Fraction{PerMillion: 1_000_000}, KeepHost: m.GetDisableShadowHostSuffixAppend()}
	switch {
	case m.GetCluster() != "" && m.GetClusterHeader() != "":
		f = faultf("cluster_header", "can not be set beside cluster")
	case m.GetClusterHeader() != "":
		out.ClusterHeader, f = headerName("cluster_header", m.GetClusterHeader())
	case m.GetCluster() == "":
		f = faultf("cluster", "is empty")
	}
	if f != nil {
		return out, f
	}
	if m.GetRuntimeFraction() != nil {
		if out.Fraction.PerMillion, f = runtimeFraction(m.GetRuntimeFraction()); f != nil {
			return out, f.under("runtime_fraction")
		}
	}
	if out.Host, f = authority("host_rewrite_literal", m.GetHostRewriteLiteral()); f != nil {
		return out, f
	}
	out.Changes, f = mutations(m.GetRequestHeadersMutations())
	return out, f
}
