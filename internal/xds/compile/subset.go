package compile

import (
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	subsetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/subset/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// subsetConfig is what the old and the new message say alike. Enums have the
// same numbers in both.
type subsetConfig struct {
	fallback  int32
	byDefault *structpb.Struct
	selectors []subsetSelector
	// localityAware keeps the weights of localities inside of subsets.
	localityAware bool
}

type subsetSelector struct {
	keys     []string
	fallback int32
}

func oldSubsets(m *clusterv3.Cluster_LbSubsetConfig, p *lb.Policy) *fault {
	c := subsetConfig{int32(m.GetFallbackPolicy()), m.GetDefaultSubset(), nil, m.GetLocalityWeightAware()}
	for _, s := range m.GetSubsetSelectors() {
		c.selectors = append(c.selectors, subsetSelector{s.GetKeys(), int32(s.GetFallbackPolicy())})
	}
	if len(c.selectors) == 0 {
		// It is read, and used for nothing: all endpoints are, whatever the fallback (Envoy).
		unused := *p
		return subsets(&c, &unused)
	}
	return subsets(&c, p)
}

func newSubsets(m *subsetv3.Subset, p *lb.Policy) *fault {
	c := subsetConfig{int32(m.GetFallbackPolicy()), m.GetDefaultSubset(), nil, m.GetLocalityWeightAware()}
	for _, s := range m.GetSubsetSelectors() {
		c.selectors = append(c.selectors, subsetSelector{s.GetKeys(), int32(s.GetFallbackPolicy())})
	}
	return subsets(&c, p)
}

// subsets reads a subset configuration into the policy that chooses inside of subsets.
// Without selectors there are none but the fallback's, as in Envoy.
func subsets(c *subsetConfig, p *lb.Policy) *fault {
	out := &lb.Subsets{}
	switch clusterv3.Cluster_LbSubsetConfig_LbSubsetFallbackPolicy(c.fallback) {
	case clusterv3.Cluster_LbSubsetConfig_NO_FALLBACK:
		out.Fallback = lb.NoFallback
	case clusterv3.Cluster_LbSubsetConfig_ANY_ENDPOINT:
		out.Fallback = lb.AnyEndpoint
	case clusterv3.Cluster_LbSubsetConfig_DEFAULT_SUBSET:
		out.Fallback = lb.DefaultSubset
	default:
		return faultf("fallback_policy", "value %d is not known", c.fallback)
	}
	fields := c.byDefault.GetFields()
	for _, key := range sortedKeys(fields) {
		text, ok := textOf(fields[key])
		if !ok {
			return faultf("", "must be a text, true or false").underKey("default_subset.fields", key)
		}
		if out.Default == nil {
			out.Default = make(map[string]string, len(fields))
		}
		out.Default[key] = text
	}
	seen := make(map[string]lb.SubsetFallback, len(c.selectors))
	for i, s := range c.selectors {
		selector, f := selectorOf(s)
		if f == nil {
			// Two selectors of the same keys are one, if they say the same.
			key := strings.Join(selector.Keys, "\x00")
			fallback, twice := seen[key]
			if twice && fallback == selector.Fallback {
				continue
			}
			if twice {
				f = faultf("fallback_policy", "differs from that of another selector with the same keys")
			}
			seen[key] = selector.Fallback
		}
		if f != nil {
			return f.underIndex("subset_selectors", i)
		}
		out.Selectors = append(out.Selectors, selector)
	}
	if c.localityAware && !p.LocalityWeighted {
		return faultf("locality_weight_aware", "needs locality_weighted_lb_config")
	}
	p.LocalityWeighted = p.LocalityWeighted && c.localityAware
	p.Subsets = out
	return nil
}

func selectorOf(s subsetSelector) (lb.SubsetSelector, *fault) {
	if len(s.keys) == 0 {
		return lb.SubsetSelector{}, faultf("keys", "there is none")
	}
	out := lb.SubsetSelector{Keys: slices.Clone(s.keys)}
	slices.Sort(out.Keys)
	out.Keys = slices.Compact(out.Keys)
	switch fallback := clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_LbSubsetSelectorFallbackPolicy(s.fallback); fallback {
	case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_NOT_DEFINED:
		out.Fallback = lb.UseClusterFallback
	case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_NO_FALLBACK:
		out.Fallback = lb.NoFallback
	case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_ANY_ENDPOINT:
		out.Fallback = lb.AnyEndpoint
	case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_DEFAULT_SUBSET:
		out.Fallback = lb.DefaultSubset
	default:
		return out, faultf("fallback_policy", "%v is not supported", fallback)
	}
	return out, nil
}
