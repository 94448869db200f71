package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"math"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	weightedv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/client_side_weighted_round_robin/v3"
	providedv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/cluster_provided/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	maglevv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	subsettingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random_subsetting/v3"
	ringhashv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	roundrobinv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	subsetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/subset/v3"
	localityv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/wrr_locality/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/routing/lb"
)

const lbPolicies = "envoy.extensions.load_balancing_policies."

// nesting says inside of which policies a policy is.
type nesting uint8

const (
	inSubsetting nesting = 1 << iota // random_subsetting
	inSubset
	inLocality // wrr_locality
)

// readPolicy reads the configuration of one policy.
type readPolicy func(config *anypb.Any, in nesting) (lb.Policy, *fault)

// known are the policies by the type of their configuration.
var known map[string]readPolicy

func init() { // known and policyOf name each other
	known = map[string]readPolicy{
		lbPolicies + "round_robin.v3.RoundRobin":                                        roundRobinPolicy,
		lbPolicies + "random.v3.Random":                                                 randomPolicy,
		lbPolicies + "least_request.v3.LeastRequest":                                    leastRequestPolicy,
		lbPolicies + "ring_hash.v3.RingHash":                                            ringHashPolicy,
		lbPolicies + "maglev.v3.Maglev":                                                 maglevPolicy,
		lbPolicies + "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin": weightedPolicy,
		lbPolicies + "wrr_locality.v3.WrrLocality":                                      localityPolicy,
		lbPolicies + "subset.v3.Subset":                                                 subsetPolicy,
		lbPolicies + "random_subsetting.v3.RandomSubsetting":                            subsettingPolicy,
	}
}

// policyOf reads the first policy in the list that is known (gRFC A52). Its own
// configuration has to be enforced; no later policy stands in for it.
func policyOf(m *clusterv3.LoadBalancingPolicy, in nesting) (lb.Policy, *fault) {
	var names []string
	for i, policy := range m.GetPolicies() {
		config := policy.GetTypedExtensionConfig().GetTypedConfig()
		read, ok := known[typeName(config)]
		if !ok {
			names = append(names, typeName(config))
			continue
		}
		p, f := read(config, in)
		return p, f.under("typed_config").under("typed_extension_config").underIndex("policies", i)
	}
	return lb.Policy{}, faultf("policies", "none of these is supported: %s", strings.Join(names, ", "))
}

func roundRobinPolicy(config *anypb.Any, _ nesting) (lb.Policy, *fault) {
	var m roundrobinv3.RoundRobin
	if f := extension(config, &m); f != nil {
		return lb.Policy{}, f
	}
	p := lb.Policy{Kind: lb.RoundRobin}
	f := spread(&p, m.GetSlowStartConfig(), m.GetLocalityLbConfig())
	return p, f
}

func randomPolicy(config *anypb.Any, _ nesting) (lb.Policy, *fault) {
	var m randomv3.Random
	if f := extension(config, &m); f != nil {
		return lb.Policy{}, f
	}
	p := lb.Policy{Kind: lb.Random}
	f := spread(&p, nil, m.GetLocalityLbConfig())
	return p, f
}

func leastRequestPolicy(config *anypb.Any, _ nesting) (lb.Policy, *fault) {
	var m leastrequestv3.LeastRequest
	if f := extension(config, &m); f != nil {
		return lb.Policy{}, f
	}
	p, f := leastRequest(m.GetChoiceCount(), m.GetActiveRequestBias())
	if f != nil {
		return lb.Policy{}, f
	}
	switch method := m.GetSelectionMethod(); method {
	case leastrequestv3.LeastRequest_N_CHOICES:
	case leastrequestv3.LeastRequest_FULL_SCAN:
		p.FullScan = true
	default:
		return lb.Policy{}, faultf("selection_method", "value %d is not known", method)
	}
	f = spread(&p, m.GetSlowStartConfig(), m.GetLocalityLbConfig())
	return p, f
}

// spread reads the slow start and the localities of a policy.
func spread(p *lb.Policy, slow *commonv3.SlowStartConfig, where *commonv3.LocalityLbConfig) (f *fault) {
	if p.SlowStart, f = slowStart(slow); f != nil {
		return f.under("slow_start_config")
	}
	return localities(where, p).under("locality_lb_config")
}

func ringHashPolicy(config *anypb.Any, _ nesting) (lb.Policy, *fault) {
	var m ringhashv3.RingHash
	if f := extension(config, &m); f != nil {
		return lb.Policy{}, f
	}
	function := lb.XXHash
	switch m.GetHashFunction() {
	case ringhashv3.RingHash_DEFAULT_HASH, ringhashv3.RingHash_XX_HASH:
	case ringhashv3.RingHash_MURMUR_HASH_2:
		function = lb.MurmurHash2
	default:
		return lb.Policy{}, faultf("hash_function", "value %d is not known", m.GetHashFunction())
	}
	p, f := ringHash(function, m.GetMinimumRingSize(), m.GetMaximumRingSize())
	if f != nil {
		return lb.Policy{}, f
	}
	p.LocalityWeighted = m.GetLocalityWeightedLbConfig() != nil
	if m.GetConsistentHashingLbConfig() == nil {
		p.Ring.Options, f = hashOptions(m.GetUseHostnameForHashing(), m.GetHashBalanceFactor())
		return p, f
	}
	p.Ring.Options, f = consistent(m.GetConsistentHashingLbConfig())
	return p, f
}

func maglevPolicy(config *anypb.Any, _ nesting) (lb.Policy, *fault) {
	var m maglevv3.Maglev
	if f := extension(config, &m); f != nil {
		return lb.Policy{}, f
	}
	p, f := maglev(m.GetTableSize())
	if f != nil {
		return lb.Policy{}, f
	}
	p.LocalityWeighted = m.GetLocalityWeightedLbConfig() != nil
	p.Table.Options, f = consistent(m.GetConsistentHashingLbConfig())
	return p, f
}

func consistent(m *commonv3.ConsistentHashingLbConfig) (lb.HashOptions, *fault) {
	o, f := hashOptions(m.GetUseHostnameForHashing(), m.GetHashBalanceFactor())
	return o, f.under("consistent_hashing_lb_config")
}

// minUpdate is the least interval between two computations of weights (gRFC A58).
const minUpdate = 100 * time.Millisecond

func weightedPolicy(config *anypb.Any, _ nesting) (lb.Policy, *fault) {
	var m weightedv3.ClientSideWeightedRoundRobin
	f := extension(config, &m)
	if f == nil && m.GetEnableOobLoadReport().GetValue() {
		f = faultf("enable_oob_load_report", "not supported: endpoints report in their responses")
	}
	if f != nil {
		return lb.Policy{}, f
	}
	w := lb.ClientWeights{ErrorPenalty: 1, Metrics: m.GetMetricNamesForComputingUtilization()}
	if w.Blackout, f = duration("blackout_period", m.GetBlackoutPeriod(), 10*time.Second); f != nil {
		return lb.Policy{}, f
	}
	if w.Expiration, f = duration("weight_expiration_period", m.GetWeightExpirationPeriod(), 3*time.Minute); f != nil {
		return lb.Policy{}, f
	}
	if w.Update, f = duration("weight_update_period", m.GetWeightUpdatePeriod(), time.Second); f != nil {
		return lb.Policy{}, f
	}
	w.Update = max(w.Update, minUpdate)
	if v := m.GetErrorUtilizationPenalty(); v != nil {
		if w.ErrorPenalty = float64(v.GetValue()); !(w.ErrorPenalty >= 0) || math.IsInf(w.ErrorPenalty, 0) {
			return lb.Policy{}, faultf("error_utilization_penalty", "%v is not a number from 0", w.ErrorPenalty)
		}
	}
	p := lb.Policy{Kind: lb.ClientWeighted, Client: w}
	p.SlowStart, f = slowStart(m.GetSlowStartConfig())
	return p, f.under("slow_start_config")
}

func localityPolicy(config *anypb.Any, in nesting) (lb.Policy, *fault) {
	var m localityv3.WrrLocality
	f := extension(config, &m)
	if f == nil && in&inLocality != 0 {
		f = faultf("", "not supported inside of itself")
	}
	if f != nil {
		return lb.Policy{}, f
	}
	p, f := policyOf(m.GetEndpointPickingPolicy(), in|inLocality)
	if f == nil && p.ZoneAware != nil {
		f = faultf("", "zone aware routing is not supported inside of wrr_locality")
	}
	p.LocalityWeighted = true
	return p, f.under("endpoint_picking_policy")
}

func subsetPolicy(config *anypb.Any, in nesting) (lb.Policy, *fault) {
	var m subsetv3.Subset
	f := extension(config, &m)
	if f == nil && in != 0 {
		f = faultf("", "not supported inside of another policy")
	}
	if f != nil {
		return lb.Policy{}, f
	}
	p, f := policyOf(m.GetSubsetLbPolicy(), in|inSubset)
	if f != nil {
		return lb.Policy{}, f.under("subset_lb_policy")
	}
	f = newSubsets(&m, &p)
	return p, f
}

// subsettingPolicy reads random_subsetting (gRFC A68), which must be the outermost:
// each client keeps to a part of all endpoints.
func subsettingPolicy(config *anypb.Any, in nesting) (lb.Policy, *fault) {
	var m subsettingv3.RandomSubsetting
	f := extension(config, &m)
	switch {
	case f != nil:
	case in != 0:
		f = faultf("", "not supported inside of another policy")
	case m.GetSubsetSize().GetValue() == 0:
		f = faultf("subset_size", "must be more than 0")
	}
	if f != nil {
		return lb.Policy{}, f
	}
	p, f := policyOf(m.GetChildPolicy(), in|inSubsetting)
	if f == nil && isHash(p.Kind) {
		f = faultf("", "a policy by hash, which uses all endpoints")
	}
	p.Subset = m.GetSubsetSize().GetValue()
	return p, f.under("child_policy")
}

// clusterProvided accepts the policy of a cluster that has none of its own. An
// lb_policy that is not set is ROUND_ROBIN in the message: servers for gRPC leave it so.
func clusterProvided(m *clusterv3.Cluster) *fault {
	policy := m.GetLbPolicy()
	switch {
	case m.GetLbSubsetConfig() != nil:
		return faultf("lb_subset_config", "not supported in an aggregate cluster")
	case m.GetLoadBalancingPolicy() == nil:
		if policy != clusterv3.Cluster_CLUSTER_PROVIDED && policy != clusterv3.Cluster_ROUND_ROBIN {
			return faultf("lb_policy", "%v is not supported in an aggregate cluster, whose own clusters have policies", policy)
		}
		return nil
	}
	for i, policy := range m.GetLoadBalancingPolicy().GetPolicies() {
		config := policy.GetTypedExtensionConfig().GetTypedConfig()
		if config.MessageIs((*providedv3.ClusterProvided)(nil)) {
			f := extension(config, &providedv3.ClusterProvided{})
			return f.under("typed_config").under("typed_extension_config").underIndex("policies", i).under("load_balancing_policy")
		}
	}
	return faultf("load_balancing_policy.policies", "an aggregate cluster takes cluster_provided only")
}
