package compile

import (
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	roundrobinv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// DefaultChoices is how many endpoints least request compares where the
// cluster does not say (envoy.config.cluster.v3.Cluster.LeastRequestLbConfig.choice_count).
const DefaultChoices = 2

// balancing reads how to choose among endpoints: load_balancing_policy where
// it is set, else lb_policy.
func balancing(m *clusterv3.Cluster) (lb.Policy, *fault) {
	if m.GetLoadBalancingPolicy() != nil {
		p, f := firstPolicy(m.GetLoadBalancingPolicy())
		return p, f.under("load_balancing_policy")
	}
	leastRequest, roundRobin := m.GetLeastRequestLbConfig(), m.GetRoundRobinLbConfig()
	switch policy := m.GetLbPolicy(); {
	case leastRequest != nil && policy != clusterv3.Cluster_LEAST_REQUEST:
		return lb.Policy{}, faultf("least_request_lb_config", "does not fit lb_policy, which is %v", policy)
	case roundRobin != nil && policy != clusterv3.Cluster_ROUND_ROBIN:
		return lb.Policy{}, faultf("round_robin_lb_config", "does not fit lb_policy, which is %v", policy)
	}
	switch policy := m.GetLbPolicy(); policy {
	case clusterv3.Cluster_ROUND_ROBIN:
		return lb.Policy{Kind: lb.RoundRobin}, nil
	case clusterv3.Cluster_RANDOM:
		return lb.Policy{Kind: lb.Random}, nil
	case clusterv3.Cluster_LEAST_REQUEST:
		p, f := leastRequestPolicy(leastRequest.GetChoiceCount())
		return p, f.under("least_request_lb_config")
	default:
		return lb.Policy{}, faultf("lb_policy", "%v is not supported", policy)
	}
}

func leastRequestPolicy(choices *wrapperspb.UInt32Value) (lb.Policy, *fault) {
	p := lb.Policy{Kind: lb.LeastRequest, Choices: DefaultChoices}
	number(&p.Choices, choices)
	if p.Choices < 2 {
		return lb.Policy{}, faultf("choice_count", "%d is less than 2", p.Choices)
	}
	return p, nil
}

// firstPolicy reads the first policy in the list that is known (gRFC A52). Its
// own configuration has to be enforced; no later policy stands in for it.
//
// wrr_locality counts as not known: it chooses a locality by weight first.
func firstPolicy(m *clusterv3.LoadBalancingPolicy) (lb.Policy, *fault) {
	var names []string
	for i, policy := range m.GetPolicies() {
		config := policy.GetTypedExtensionConfig().GetTypedConfig()
		var p lb.Policy
		var f *fault
		switch kind := typeName(config); kind {
		case "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin":
			p.Kind = lb.RoundRobin
			f = extension(config, &roundrobinv3.RoundRobin{})
		case "envoy.extensions.load_balancing_policies.random.v3.Random":
			p.Kind = lb.Random
			f = extension(config, &randomv3.Random{})
		case "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest":
			var lr leastrequestv3.LeastRequest
			if f = extension(config, &lr); f == nil {
				p, f = leastRequestPolicy(lr.GetChoiceCount())
			}
		default:
			names = append(names, kind)
			continue
		}
		return p, f.under("typed_config").under("typed_extension_config").underIndex("policies", i)
	}
	return lb.Policy{}, faultf("policies", "none of these is supported: %s", strings.Join(names, ", "))
}
