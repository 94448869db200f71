package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"math"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
)

const (
	// DefaultPanicThreshold is the percentage of a cluster that does not set one
	// (envoy.config.cluster.v3.Cluster.CommonLbConfig.healthy_panic_threshold).
	DefaultPanicThreshold = 50
	// DefaultChoices is how many endpoints least request compares where the
	// cluster does not say (envoy.config.cluster.v3.Cluster.LeastRequestLbConfig.choice_count).
	DefaultChoices = 2
)

// balancing reads how to choose among endpoints: load_balancing_policy where
// it is set, else lb_policy and the fields that belong to it.
func balancing(m *clusterv3.Cluster, where snapshot.Discovery) (lb.Policy, *fault) {
	var p lb.Policy
	var f *fault
	switch {
	case where == snapshot.Aggregate:
		p.Kind = lb.RoundRobin // of the aggregate itself, which has no endpoints
		f = clusterProvided(m)
	case m.GetLoadBalancingPolicy() != nil:
		if f = notBeside(m); f == nil {
			p, f = policyOf(m.GetLoadBalancingPolicy(), 0)
			f = f.under("load_balancing_policy")
		}
	default:
		if m.GetCommonLbConfig().GetConsistentHashingLbConfig().GetUseHostnameForHashing() && where != snapshot.StrictDNS {
			// As in Envoy, which asks it of this field only, whatever lb_policy is.
			f = faultf("common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing", "needs a cluster of type STRICT_DNS")
		} else if p, f = oldPolicy(m); f == nil && m.GetLbSubsetConfig() != nil {
			f = oldSubsets(m.GetLbSubsetConfig(), &p).under("lb_subset_config")
		}
	}
	if f != nil {
		return lb.Policy{}, f
	}
	p.PanicThreshold = DefaultPanicThreshold
	if f := percent("healthy_panic_threshold", m.GetCommonLbConfig().GetHealthyPanicThreshold(), &p.PanicThreshold); f != nil {
		return lb.Policy{}, f.under("common_lb_config")
	}
	if m.GetCommonLbConfig().GetIgnoreNewHostsUntilFirstHc() && len(m.GetHealthChecks()) > 0 {
		return lb.Policy{}, faultf("common_lb_config.ignore_new_hosts_until_first_hc", notSupported)
	}
	return p, nil
}

// notBeside refuses what load_balancing_policy does not go together with, as Envoy does.
func notBeside(m *clusterv3.Cluster) *fault {
	common := m.GetCommonLbConfig()
	for _, old := range []struct {
		name string
		set  bool
	}{
		{"lb_subset_config", m.GetLbSubsetConfig() != nil},
		{"common_lb_config.zone_aware_lb_config", common.GetZoneAwareLbConfig() != nil},
		{"common_lb_config.locality_weighted_lb_config", common.GetLocalityWeightedLbConfig() != nil},
		{"common_lb_config.consistent_hashing_lb_config", common.GetConsistentHashingLbConfig() != nil},
	} {
		if old.set {
			return faultf(old.name, "not supported beside load_balancing_policy")
		}
	}
	return nil
}

// oldPolicy reads lb_policy.
func oldPolicy(m *clusterv3.Cluster) (lb.Policy, *fault) {
	policy := m.GetLbPolicy()
	for _, config := range []struct {
		name string
		set  bool
		of   clusterv3.Cluster_LbPolicy
	}{
		{"least_request_lb_config", m.GetLeastRequestLbConfig() != nil, clusterv3.Cluster_LEAST_REQUEST},
		{"round_robin_lb_config", m.GetRoundRobinLbConfig() != nil, clusterv3.Cluster_ROUND_ROBIN},
		{"ring_hash_lb_config", m.GetRingHashLbConfig() != nil, clusterv3.Cluster_RING_HASH},
		{"maglev_lb_config", m.GetMaglevLbConfig() != nil, clusterv3.Cluster_MAGLEV},
	} {
		if config.set && policy != config.of {
			return lb.Policy{}, faultf(config.name, "does not fit lb_policy, which is %v", policy)
		}
	}
	var p lb.Policy
	var f *fault
	switch policy {
	case clusterv3.Cluster_ROUND_ROBIN:
		p.Kind = lb.RoundRobin
		p.SlowStart, f = slowStart(m.GetRoundRobinLbConfig().GetSlowStartConfig())
		f = f.under("slow_start_config").under("round_robin_lb_config")
	case clusterv3.Cluster_RANDOM:
		p.Kind = lb.Random
	case clusterv3.Cluster_LEAST_REQUEST:
		c := m.GetLeastRequestLbConfig()
		if p, f = leastRequest(c.GetChoiceCount(), c.GetActiveRequestBias()); f == nil {
			p.SlowStart, f = slowStart(c.GetSlowStartConfig())
			f = f.under("slow_start_config")
		}
		f = f.under("least_request_lb_config")
	case clusterv3.Cluster_RING_HASH:
		c := m.GetRingHashLbConfig()
		function := lb.XXHash
		switch c.GetHashFunction() {
		case clusterv3.Cluster_RingHashLbConfig_XX_HASH:
		case clusterv3.Cluster_RingHashLbConfig_MURMUR_HASH_2:
			function = lb.MurmurHash2
		default:
			f = faultf("hash_function", "value %d is not known", c.GetHashFunction())
		}
		if f == nil {
			p, f = ringHash(function, c.GetMinimumRingSize(), c.GetMaximumRingSize())
		}
		f = f.under("ring_hash_lb_config")
	case clusterv3.Cluster_MAGLEV:
		p, f = maglev(m.GetMaglevLbConfig().GetTableSize())
		f = f.under("maglev_lb_config")
	case clusterv3.Cluster_LOAD_BALANCING_POLICY_CONFIG:
		f = faultf("load_balancing_policy", "missing, though lb_policy is %v", policy)
	default:
		f = faultf("lb_policy", "%v is not supported", policy)
	}
	if f != nil {
		return lb.Policy{}, f
	}
	f = oldCommon(m.GetCommonLbConfig(), &p).under("common_lb_config")
	return p, f
}

// oldCommon reads what common_lb_config says about localities and hashing.
func oldCommon(c *clusterv3.Cluster_CommonLbConfig, p *lb.Policy) *fault {
	p.LocalityWeighted = c.GetLocalityWeightedLbConfig() != nil
	if z := c.GetZoneAwareLbConfig(); z != nil {
		if isHash(p.Kind) {
			return faultf("zone_aware_lb_config", "not supported for a policy by hash")
		}
		var f *fault
		if p.ZoneAware, f = zoneAware(z.GetRoutingEnabled(), z.GetMinClusterSize(), z.GetFailTrafficOnPanic()); f != nil {
			return f.under("zone_aware_lb_config")
		}
	}
	// Hashing is of no effect without a policy by hash, as in Envoy, but never wrong.
	h := c.GetConsistentHashingLbConfig()
	o, f := hashOptions(h.GetUseHostnameForHashing(), h.GetHashBalanceFactor())
	if f != nil {
		return f.under("consistent_hashing_lb_config")
	}
	switch p.Kind {
	case lb.RingHash:
		p.Ring.Options = o
	case lb.Maglev:
		p.Table.Options = o
	}
	return nil
}

func isHash(k lb.Kind) bool { return k == lb.RingHash || k == lb.Maglev }

func leastRequest(choices *wrapperspb.UInt32Value, bias *corev3.RuntimeDouble) (lb.Policy, *fault) {
	p := lb.Policy{Kind: lb.LeastRequest, Choices: DefaultChoices}
	number(&p.Choices, choices)
	if p.Choices < 2 {
		return lb.Policy{}, faultf("choice_count", "%d is less than 2", p.Choices)
	}
	if bias != nil {
		v := bias.GetDefaultValue()
		if !(v >= 0) || math.IsInf(v, 0) {
			return lb.Policy{}, faultf("active_request_bias.default_value", "%v is not a number from 0", v)
		}
		p.ActiveBias = &v
	}
	return p, nil
}

func ringHash(function lb.HashFunction, least, most *wrapperspb.UInt64Value) (lb.Policy, *fault) {
	ring := lb.Ring{MinSize: lb.DefaultMinRing, MaxSize: lb.DefaultMaxRing, Function: function}
	if least != nil {
		ring.MinSize = least.GetValue()
	}
	if most != nil {
		ring.MaxSize = most.GetValue()
	}
	switch {
	case ring.MinSize == 0:
		return lb.Policy{}, faultf("minimum_ring_size", "must be more than 0")
	case ring.MaxSize == 0:
		return lb.Policy{}, faultf("maximum_ring_size", "must be more than 0")
	}
	if err := ring.Validate(); err != nil {
		return lb.Policy{}, invalid(err)
	}
	return lb.Policy{Kind: lb.RingHash, Ring: ring}, nil
}

func maglev(size *wrapperspb.UInt64Value) (lb.Policy, *fault) {
	table := lb.Table{Size: lb.DefaultTableSize}
	if size != nil {
		table.Size = size.GetValue()
	}
	if table.Size == 0 {
		return lb.Policy{}, faultf("table_size", "must be more than 0")
	}
	if err := table.Validate(); err != nil {
		return lb.Policy{}, invalid(err)
	}
	return lb.Policy{Kind: lb.Maglev, Table: table}, nil
}

func hashOptions(byName bool, factor *wrapperspb.UInt32Value) (lb.HashOptions, *fault) {
	o := lb.HashOptions{UseHostname: byName}
	if factor != nil {
		if o.BalanceFactor = factor.GetValue(); o.BalanceFactor < 100 {
			return o, faultf("hash_balance_factor", "%d is less than 100", o.BalanceFactor)
		}
	}
	return o, nil
}

// percent sets v where the field is set.
func percent(field string, p *typev3.Percent, v *float64) *fault {
	if p == nil {
		return nil
	}
	if !isPercent(p.GetValue()) {
		return faultf(field+".value", "%v is not between 0 and 100", p.GetValue())
	}
	*v = p.GetValue()
	return nil
}
