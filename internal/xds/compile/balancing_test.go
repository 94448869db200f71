package compile

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/pick_first/v3"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// inside is a policy as a field of another.
func inside(field, config string) string {
	return fmt.Sprintf(`, %q: {"policies": [{"typed_extension_config": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.%s}}}]}`, field, config)
}

func TestPolicies(t *testing.T) {
	bias := 0.5
	const slow = `"slow_start_config": {"slow_start_window": "60s", "aggression": {"default_value": 2, "runtime_key": "x"}, "min_weight_percent": {"value": 20}}`
	ramp := &lb.SlowStart{Window: time.Minute, Aggression: 2, MinWeight: 20}
	const zone = `"zone_aware_lb_config": {"routing_enabled": {"value": 90}, "min_cluster_size": "3", "fail_traffic_on_panic": true}`
	zones := &lb.ZoneAware{Enabled: 90, MinCluster: 3, FailOnPanic: true}
	ring := lb.Ring{MinSize: 1024, MaxSize: 8 << 20}
	for _, tt := range []struct {
		name, old, config string // the same, told in the old and the new way
		want              lb.Policy
	}{
		{"nothing is said", ``, ``, lb.Policy{Kind: lb.RoundRobin}},
		{"round robin", `"lb_policy": "ROUND_ROBIN", "round_robin_lb_config": {` + slow + `}`, `round_robin.v3.RoundRobin", ` + slow, lb.Policy{Kind: lb.RoundRobin, SlowStart: ramp}},
		{"defaults of slow start", `"round_robin_lb_config": {"slow_start_config": {"slow_start_window": "1s"}}`, `round_robin.v3.RoundRobin", "slow_start_config": {"slow_start_window": "1s"}`,
			lb.Policy{Kind: lb.RoundRobin, SlowStart: &lb.SlowStart{Window: time.Second, Aggression: 1, MinWeight: 10}}},
		{"slow start without a window", `"round_robin_lb_config": {"slow_start_config": {"aggression": {"default_value": 3}}}`, `round_robin.v3.RoundRobin", "slow_start_config": {}`, lb.Policy{Kind: lb.RoundRobin}},
		{"random", `"lb_policy": "RANDOM"`, `random.v3.Random"`, lb.Policy{Kind: lb.Random}},
		{"least request", `"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 5, "active_request_bias": {"default_value": 0.5}, ` + slow + `}`,
			`least_request.v3.LeastRequest", "choice_count": 5, "active_request_bias": {"default_value": 0.5}, ` + slow, lb.Policy{Kind: lb.LeastRequest, Choices: 5, ActiveBias: &bias, SlowStart: ramp}},
		{"full scan", ``, `least_request.v3.LeastRequest", "selection_method": "FULL_SCAN"`, lb.Policy{Kind: lb.LeastRequest, Choices: 2, FullScan: true}},
		{"ring hash", `"lb_policy": "RING_HASH"`, `ring_hash.v3.RingHash"`, lb.Policy{Kind: lb.RingHash, Ring: ring}},
		{"ring hash with all", `"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": "7", "maximum_ring_size": "9", "hash_function": "MURMUR_HASH_2"},
			"common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 150}, "locality_weighted_lb_config": {}}`,
			`ring_hash.v3.RingHash", "minimum_ring_size": "7", "maximum_ring_size": "9", "hash_function": "MURMUR_HASH_2", "locality_weighted_lb_config": {}, "use_hostname_for_hashing": false,
				"consistent_hashing_lb_config": {"hash_balance_factor": 150}`,
			lb.Policy{Kind: lb.RingHash, LocalityWeighted: true, Ring: lb.Ring{MinSize: 7, MaxSize: 9, Function: lb.MurmurHash2, Options: lb.HashOptions{BalanceFactor: 150}}}},
		{"ring hash by names", ``, `ring_hash.v3.RingHash", "consistent_hashing_lb_config": {"use_hostname_for_hashing": true}`,
			lb.Policy{Kind: lb.RingHash, Ring: lb.Ring{MinSize: 1024, MaxSize: 8 << 20, Options: lb.HashOptions{UseHostname: true}}}},
		{"ring hash, its former fields", ``, `ring_hash.v3.RingHash", "hash_function": "XX_HASH", "use_hostname_for_hashing": true, "hash_balance_factor": 101`,
			lb.Policy{Kind: lb.RingHash, Ring: lb.Ring{MinSize: 1024, MaxSize: 8 << 20, Options: lb.HashOptions{UseHostname: true, BalanceFactor: 101}}}},
		{"maglev", `"lb_policy": "MAGLEV"`, `maglev.v3.Maglev"`, lb.Policy{Kind: lb.Maglev, Table: lb.Table{Size: 65537}}},
		{"maglev with all", `"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": "101"}, "common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 100}, "locality_weighted_lb_config": {}}`,
			`maglev.v3.Maglev", "table_size": "101", "consistent_hashing_lb_config": {"hash_balance_factor": 100}, "locality_weighted_lb_config": {}`,
			lb.Policy{Kind: lb.Maglev, LocalityWeighted: true, Table: lb.Table{Size: 101, Options: lb.HashOptions{BalanceFactor: 100}}}},
		{"localities by weight", `"common_lb_config": {"locality_weighted_lb_config": {}, "update_merge_window": "1s", "override_host_status": {}}`,
			`round_robin.v3.RoundRobin", "locality_lb_config": {"locality_weighted_lb_config": {}}`, lb.Policy{Kind: lb.RoundRobin, LocalityWeighted: true}},
		{"zones", `"lb_policy": "RANDOM", "common_lb_config": {` + zone + `}`, `random.v3.Random", "locality_lb_config": {` + zone + `}`, lb.Policy{Kind: lb.Random, ZoneAware: zones}},
		{"zones by default", `"common_lb_config": {"zone_aware_lb_config": {}}`, `round_robin.v3.RoundRobin", "locality_lb_config": {"zone_aware_lb_config": {}}`,
			lb.Policy{Kind: lb.RoundRobin, ZoneAware: &lb.ZoneAware{Enabled: 100, MinCluster: 6}}},
		{"the own zone", ``, `round_robin.v3.RoundRobin", "locality_lb_config": {"zone_aware_lb_config": {"force_local_zone": {"min_size": 4}}}`,
			lb.Policy{Kind: lb.RoundRobin, ZoneAware: &lb.ZoneAware{Enabled: 100, MinCluster: 6, ForceLocal: true, ForceMinimum: 4}}},
		{"the own zone, as it was called", ``, `round_robin.v3.RoundRobin", "locality_lb_config": {"zone_aware_lb_config": {"force_locality_direct_routing": true}}`,
			lb.Policy{Kind: lb.RoundRobin, ZoneAware: &lb.ZoneAware{Enabled: 100, MinCluster: 6, ForceLocal: true, ForceMinimum: 1}}},
		{"wrr_locality", ``, `wrr_locality.v3.WrrLocality"` + inside("endpoint_picking_policy", `least_request.v3.LeastRequest"`), lb.Policy{Kind: lb.LeastRequest, Choices: 2, LocalityWeighted: true}},
		{"by reported load", ``, `client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin", ` + slow, lb.Policy{Kind: lb.ClientWeighted, SlowStart: ramp,
			Client: lb.ClientWeights{Blackout: 10 * time.Second, Expiration: 3 * time.Minute, Update: time.Second, ErrorPenalty: 1}}},
		{"by reported load with all", ``, `client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin", "blackout_period": "0s", "weight_expiration_period": "4s", "weight_update_period": "0.01s",
			"error_utilization_penalty": 0.5, "metric_names_for_computing_utilization": ["named_metrics.x"], "enable_oob_load_report": false, "oob_reporting_period": "1s"`,
			lb.Policy{Kind: lb.ClientWeighted, Client: lb.ClientWeights{Expiration: 4 * time.Second, Update: 100 * time.Millisecond, ErrorPenalty: 0.5, Metrics: []string{"named_metrics.x"}}}},
		{"a part of the endpoints", ``, `random_subsetting.v3.RandomSubsetting", "subset_size": 9` + inside("child_policy", `wrr_locality.v3.WrrLocality"`+inside("endpoint_picking_policy", `round_robin.v3.RoundRobin"`)),
			lb.Policy{Kind: lb.RoundRobin, Subset: 9, LocalityWeighted: true}},
		{"subsets", `"lb_subset_config": {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": ["b", "a", "b"]}, {"keys": ["c"], "fallback_policy": "DEFAULT_SUBSET"}, {"keys": ["a", "b"]}], "default_subset": {"v": "1", "x": true}}`,
			`subset.v3.Subset", "fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": ["b", "a"]}, {"keys": ["c"], "fallback_policy": "DEFAULT_SUBSET"}], "default_subset": {"v": "1", "x": true}` + inside("subset_lb_policy", `round_robin.v3.RoundRobin"`),
			lb.Policy{Kind: lb.RoundRobin, Subsets: &lb.Subsets{Fallback: lb.AnyEndpoint, Default: map[string]string{"v": "1", "x": "true"},
				Selectors: []lb.SubsetSelector{{Keys: []string{"a", "b"}, Fallback: lb.UseClusterFallback}, {Keys: []string{"c"}, Fallback: lb.DefaultSubset}}}}},
		{"subsets that know no localities", `"lb_policy": "RING_HASH", "common_lb_config": {"locality_weighted_lb_config": {}}, "lb_subset_config": {"subset_selectors": [{"keys": ["v"], "fallback_policy": "NO_FALLBACK"}]}`,
			`subset.v3.Subset", "subset_selectors": [{"keys": ["v"], "fallback_policy": "NO_FALLBACK"}]` + inside("subset_lb_policy", `ring_hash.v3.RingHash", "locality_weighted_lb_config": {}`),
			lb.Policy{Kind: lb.RingHash, Ring: ring, Subsets: &lb.Subsets{Selectors: []lb.SubsetSelector{{Keys: []string{"v"}, Fallback: lb.NoFallback}}}}},
		{"subsets with localities", `"common_lb_config": {"locality_weighted_lb_config": {}}, "lb_subset_config": {"locality_weight_aware": true, "fallback_policy": "DEFAULT_SUBSET", "subset_selectors": [{"keys": ["v"], "fallback_policy": "ANY_ENDPOINT"}]}`,
			`subset.v3.Subset", "locality_weight_aware": true, "fallback_policy": "DEFAULT_SUBSET", "subset_selectors": [{"keys": ["v"], "fallback_policy": "ANY_ENDPOINT"}]` + inside("subset_lb_policy", `wrr_locality.v3.WrrLocality"`+inside("endpoint_picking_policy", `round_robin.v3.RoundRobin"`)),
			lb.Policy{Kind: lb.RoundRobin, LocalityWeighted: true, Subsets: &lb.Subsets{Fallback: lb.DefaultSubset, Selectors: []lb.SubsetSelector{{Keys: []string{"v"}, Fallback: lb.AnyEndpoint}}}}},
	} {
		tt.want.PanicThreshold = 50
		var ways []string
		if tt.old != "" || tt.config == "" {
			ways = append(ways, eds+", "+tt.old)
		}
		if tt.config != "" {
			ways = append(ways, withPolicy(tt.config))
		}
		for _, fields := range ways {
			if tt.old == "" && tt.config == "" {
				fields = eds
			}
			c, err := oneCluster(t, fields)
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			} else if !reflect.DeepEqual(c.LB, tt.want) {
				t.Errorf("%s: %s\n%+v\nwant %+v", tt.name, fields, c.LB, tt.want)
			}
		}
	}
	c, err := oneCluster(t, withPolicy(`random.v3.Random"`)+`, "common_lb_config": {"healthy_panic_threshold": {"value": 7}}`)
	if err != nil || c.LB.PanicThreshold != 7 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestPolicyErrorsNameTheField(t *testing.T) {
	const wrr = `wrr_locality.v3.WrrLocality"`
	const cswrr = `client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin", `
	inner := func(field, path string) string {
		return lbPath + "." + field + ".policies[0].typed_extension_config.typed_config" + path
	}
	for _, tt := range []struct{ fields, path string }{
		{eds + `, "lb_policy": "RANDOM", "ring_hash_lb_config": {}`, "ring_hash_lb_config"},
		{eds + `, "lb_policy": "RING_HASH", "maglev_lb_config": {}`, "maglev_lb_config"},
		{eds + `, "lb_policy": "LOAD_BALANCING_POLICY_CONFIG"`, "load_balancing_policy"},
		{eds + `, "lb_policy": "RING_HASH", "ring_hash_lb_config": {"hash_function": 7}`, "ring_hash_lb_config.hash_function"},
		{eds + `, "lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 8388609}`, "ring_hash_lb_config.minimum_ring_size"},
		{eds + `, "lb_policy": "RING_HASH", "ring_hash_lb_config": {"maximum_ring_size": 8388609}`, "ring_hash_lb_config.maximum_ring_size"},
		{eds + `, "lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 0}`, "ring_hash_lb_config.minimum_ring_size"},
		{eds + `, "lb_policy": "RING_HASH", "common_lb_config": {"zone_aware_lb_config": {}}`, "common_lb_config.zone_aware_lb_config"},
		{eds + `, "lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 5000012}`, "maglev_lb_config.table_size"},
		{eds + `, "lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 0}`, "maglev_lb_config.table_size"},
		{eds + `, "common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 99}}`, "common_lb_config.consistent_hashing_lb_config.hash_balance_factor"},
		{eds + `, "common_lb_config": {"consistent_hashing_lb_config": {"use_hostname_for_hashing": true}}`, "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing"},
		{eds + `, "common_lb_config": {"zone_aware_lb_config": {"routing_enabled": {"value": 101}}}`, "common_lb_config.zone_aware_lb_config.routing_enabled.value"},
		{eds + `, "common_lb_config": {"close_connections_on_host_set_change": true}`, "common_lb_config.close_connections_on_host_set_change"},
		{eds + `, "round_robin_lb_config": {"slow_start_config": {"slow_start_window": "-1s"}}`, "round_robin_lb_config.slow_start_config.slow_start_window"},
		{eds + `, "round_robin_lb_config": {"slow_start_config": {"aggression": {}}}`, "round_robin_lb_config.slow_start_config.aggression.default_value"},
		{eds + `, "round_robin_lb_config": {"slow_start_config": {"min_weight_percent": {"value": 101}}}`, "round_robin_lb_config.slow_start_config.min_weight_percent.value"},
		{eds + `, "lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"active_request_bias": {"default_value": -1}}`, "least_request_lb_config.active_request_bias.default_value"},
		{eds + `, "lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"active_request_bias": {"default_value": "Infinity"}}`, "least_request_lb_config.active_request_bias.default_value"},
		{eds + `, "lb_subset_config": {"subset_selectors": [{}]}`, "lb_subset_config.subset_selectors[0].keys"},
		{eds + `, "lb_subset_config": {"subset_selectors": [{"keys": ["a"]}, {"keys": ["a"], "fallback_policy": "ANY_ENDPOINT"}]}`, "lb_subset_config.subset_selectors[1].fallback_policy"},
		{eds + `, "lb_subset_config": {"subset_selectors": [{"keys": ["a"], "fallback_policy": "KEYS_SUBSET"}]}`, "lb_subset_config.subset_selectors[0].fallback_policy"},
		{eds + `, "lb_subset_config": {"subset_selectors": [{"keys": ["a"], "single_host_per_subset": true}]}`, "lb_subset_config.subset_selectors[0].single_host_per_subset"},
		{eds + `, "lb_subset_config": {"fallback_policy": 9}`, "lb_subset_config.fallback_policy"},
		{eds + `, "lb_subset_config": {"default_subset": {"v": 1}}`, `lb_subset_config.default_subset.fields["v"]`},
		{eds + `, "lb_subset_config": {"locality_weight_aware": true}`, "lb_subset_config.locality_weight_aware"},
		{eds + `, "lb_subset_config": {"panic_mode_any": true}`, "lb_subset_config.panic_mode_any"},
		{eds + `, "lb_subset_config": {"metadata_fallback_policy": "FALLBACK_LIST"}`, "lb_subset_config.metadata_fallback_policy"},
		{withPolicy(`random.v3.Random"`) + `, "lb_subset_config": {}`, "lb_subset_config"},
		{withPolicy(`random.v3.Random"`) + `, "common_lb_config": {"zone_aware_lb_config": {}}`, "common_lb_config.zone_aware_lb_config"},
		{withPolicy(`random.v3.Random"`) + `, "common_lb_config": {"locality_weighted_lb_config": {}}`, "common_lb_config.locality_weighted_lb_config"},
		{withPolicy(`random.v3.Random"`) + `, "common_lb_config": {"consistent_hashing_lb_config": {}}`, "common_lb_config.consistent_hashing_lb_config"},
		{withPolicy(`cluster_provided.v3.ClusterProvided"`), "load_balancing_policy.policies"},
		{withPolicy(`pick_first.v3.PickFirst"`), "load_balancing_policy.policies"},
		{withPolicy(`least_request.v3.LeastRequest", "selection_method": 7`), lbPath + ".selection_method"},
		{withPolicy(`least_request.v3.LeastRequest", "enable_full_scan": true`), lbPath + ".enable_full_scan"},
		{withPolicy(`ring_hash.v3.RingHash", "hash_function": 7`), lbPath + ".hash_function"},
		{withPolicy(`ring_hash.v3.RingHash", "hash_balance_factor": 1`), lbPath + ".hash_balance_factor"},
		{withPolicy(`ring_hash.v3.RingHash", "consistent_hashing_lb_config": {"hash_balance_factor": 1}`), lbPath + ".consistent_hashing_lb_config.hash_balance_factor"},
		{withPolicy(`ring_hash.v3.RingHash", "consistent_hashing_lb_config": {"hash_policy": [{}]}`), lbPath + ".consistent_hashing_lb_config.hash_policy"},
		{withPolicy(`random.v3.Random", "locality_lb_config": {"zone_aware_lb_config": {"locality_basis": "HEALTHY_HOSTS_WEIGHT"}}`), lbPath + ".locality_lb_config.zone_aware_lb_config.locality_basis"},
		{withPolicy(cswrr + `"enable_oob_load_report": true`), lbPath + ".enable_oob_load_report"},
		{withPolicy(cswrr + `"blackout_period": "-1s"`), lbPath + ".blackout_period"},
		{withPolicy(cswrr + `"weight_expiration_period": "-1s"`), lbPath + ".weight_expiration_period"},
		{withPolicy(cswrr + `"weight_update_period": "-1s"`), lbPath + ".weight_update_period"},
		{withPolicy(cswrr + `"error_utilization_penalty": -1`), lbPath + ".error_utilization_penalty"},
		{withPolicy(wrr), lbPath + ".endpoint_picking_policy.policies"},
		{withPolicy(wrr + inside("endpoint_picking_policy", wrr)), inner("endpoint_picking_policy", "")},
		{withPolicy(wrr + inside("endpoint_picking_policy", `subset.v3.Subset"`)), inner("endpoint_picking_policy", "")},
		{withPolicy(wrr + inside("endpoint_picking_policy", `random.v3.Random", "locality_lb_config": {"zone_aware_lb_config": {}}`)), lbPath + ".endpoint_picking_policy"},
		{withPolicy(`subset.v3.Subset"`), lbPath + ".subset_lb_policy.policies"},
		{withPolicy(`random_subsetting.v3.RandomSubsetting"`), lbPath + ".subset_size"},
		{withPolicy(`random_subsetting.v3.RandomSubsetting", "subset_size": 1`), lbPath + ".child_policy.policies"},
		{withPolicy(`random_subsetting.v3.RandomSubsetting", "subset_size": 1` + inside("child_policy", `maglev.v3.Maglev"`)), lbPath + ".child_policy"},
		{withPolicy(`random_subsetting.v3.RandomSubsetting", "subset_size": 1` + inside("child_policy", `random_subsetting.v3.RandomSubsetting", "subset_size": 1`)), inner("child_policy", "")},
	} {
		_, err := oneCluster(t, tt.fields)
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}
