package translate

//lint:file-ignore SA1019 gRPC and older clients read the cluster's own fields; Istio's deprecated ones are still written.

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// defaultRingSize is Envoy's and Istio's.
const defaultRingSize = 1024

// consistentHash is what the DestinationRule of a destination says of it, or nil.
func (b *builder) consistentHash(n TrafficName) *networking.LoadBalancerSettings_ConsistentHashLB {
	rule := b.view.set.DestinationRuleFor(n.Host, b.client.Namespace)
	if rule == nil {
		return nil
	}
	var subset *networking.Subset
	for _, s := range rule.Spec.GetSubsets() {
		if n.Subset != "" && s.GetName() == n.Subset {
			subset = s
		}
	}
	return effectivePolicy(rule.Spec.GetTrafficPolicy(), subset, n.Port).GetLoadBalancer().GetConsistentHash()
}

// hashPolicies say what of a request decides which endpoint of the destination it belongs
// to. They are the route's, and the algorithm that they are for is the cluster's.
func (b *builder) hashPolicies(n TrafficName, at string) []*routev3.RouteAction_HashPolicy {
	h := b.consistentHash(n)
	out := &routev3.RouteAction_HashPolicy{}
	switch key := h.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: key.HttpHeaderName}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		cookie := &routev3.RouteAction_HashPolicy_Cookie{Name: key.HttpCookie.GetName(), Path: key.HttpCookie.GetPath(), Ttl: key.HttpCookie.GetTtl()}
		for _, a := range key.HttpCookie.GetAttributes() {
			cookie.Attributes = append(cookie.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: key.UseSourceIp},
		}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: key.HttpQueryParameterName},
		}
	default:
		return nil
	}
	if b.client.Agent == GRPC && out.GetHeader() == nil {
		b.note(at, "gRPC chooses an endpoint by the hash of a header only: %s gets the default algorithm", n)
		return nil
	}
	return []*routev3.RouteAction_HashPolicy{out}
}

// hashBalancer sets the algorithm that chooses by a hash: a ring unless maglev is asked for.
func (b *builder) hashBalancer(c *clusterv3.Cluster, h *networking.LoadBalancerSettings_ConsistentHashLB, at string) {
	if b.client.Agent == GRPC {
		if h.GetHttpHeaderName() == "" {
			b.note(at, "gRPC chooses an endpoint by the hash of a header only: it uses LEAST_REQUEST")
			c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
			return
		}
		if h.GetMaglev() != nil {
			b.note(at+".maglev", "gRPC has no maglev: it uses a ring")
			h = nil
		}
	}
	if m := h.GetMaglev(); m != nil {
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		if m.GetTableSize() != 0 {
			c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(m.GetTableSize())}}
		}
		return
	}
	size := uint64(defaultRingSize)
	if n := h.GetMinimumRingSize(); n != 0 {
		size = n
	}
	if n := h.GetRingHash().GetMinimumRingSize(); n != 0 {
		size = n
	}
	c.LbPolicy = clusterv3.Cluster_RING_HASH
	c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(size)}}
}
