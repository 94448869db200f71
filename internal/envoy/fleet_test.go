package envoy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
)

// The names of the clusters. Each of the single ones has one endpoint; the
// others choose among several by hash, so that two that choose alike choose the
// same; copies go to the mirrors' alone, where they are counted.
var (
	single  = []string{"c0", "c1", "c2", "c3"}
	hashed  = numbered("ring", 36)
	steady  = numbered("steady", 4) // of hashed ones: all endpoints are alike
	mirrors = []string{"m0", "m1", "m2"}
)

func numbered(prefix string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint(prefix, i))
	}
	return out
}

const portsOfHashed = 10

// forEnvoy is the cluster as Envoy takes it: it hashes names of endpoints only
// in clusters that it asks DNS for.
func forEnvoy(c *clusterv3.Cluster) *clusterv3.Cluster {
	if !c.GetCommonLbConfig().GetConsistentHashingLbConfig().GetUseHostnameForHashing() {
		return c
	}
	c = proto.Clone(c).(*clusterv3.Cluster)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	return c
}

// forMesh compiles the cluster with the addresses as they are: the names are hashed all the same.
func forMesh(c *clusterv3.Cluster) (string, *snapshot.Cluster, error) {
	byName := c.GetCommonLbConfig().GetConsistentHashingLbConfig()
	if !byName.GetUseHostnameForHashing() {
		return compile.Cluster(packed(c))
	}
	c = proto.Clone(c).(*clusterv3.Cluster)
	c.CommonLbConfig.ConsistentHashingLbConfig.UseHostnameForHashing = false
	name, out, err := compile.Cluster(packed(c))
	if err == nil {
		out.LB.Ring.Options.UseHostname, out.LB.Table.Options.UseHostname = true, true
	}
	return name, out, err
}

// listener opens ports for endpoints; see upstream.listen.
type listener interface {
	listen(t *testing.T, mirror string) int
}

// fleet makes the clusters, with endpoints that listen.
func (g *generator) fleet(t *testing.T, up listener) (out []*clusterv3.Cluster) {
	for _, name := range single {
		out = append(out, cluster(name, up.listen(t, "")))
	}
	for _, name := range mirrors {
		out = append(out, cluster(name, up.listen(t, name)))
	}
	ports := make([]int, portsOfHashed)
	for i := range ports {
		ports[i] = up.listen(t, "")
	}
	for _, name := range hashed {
		out = append(out, g.hashedCluster(name, ports, true))
	}
	for i, name := range steady {
		c := cluster(name, ports...)
		if c.LbPolicy = clusterv3.Cluster_RING_HASH; i%2 == 1 {
			c.LbPolicy = clusterv3.Cluster_MAGLEV
		}
		out = append(out, c)
	}
	return out
}

// hashedCluster is a cluster that chooses by hash among some of the ports: over
// priorities, localities, endpoints in ill health, subsets.
func (g *generator) hashedCluster(name string, ports []int, inOrder bool) *clusterv3.Cluster {
	ports = append([]int(nil), ports...)
	g.Shuffle(len(ports), func(i, j int) { ports[i], ports[j] = ports[j], ports[i] })
	c := cluster(name)
	c.LoadAssignment.Endpoints = nil
	common := &clusterv3.Cluster_CommonLbConfig{}
	if g.chance(40) {
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		if g.chance(40) {
			c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(pick(g, []uint64{101, 1009}))}}
		}
	} else {
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		ring := &clusterv3.Cluster_RingHashLbConfig{}
		if g.chance(40) {
			ring.MinimumRingSize = wrapperspb.UInt64(pick(g, []uint64{1, 16, 300}))
		}
		if g.chance(30) {
			ring.MaximumRingSize = wrapperspb.UInt64(pick(g, []uint64{1024, 2000}))
		}
		if g.chance(30) {
			ring.HashFunction = clusterv3.Cluster_RingHashLbConfig_MURMUR_HASH_2
		}
		c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: ring}
	}
	unhealthy := 0
	if g.chance(50) {
		unhealthy = pick(g, []int{20, 50, 80, 100})
	}
	names, weights := g.chance(30), g.chance(40)
	// Places of a ring that do not divide evenly go round in the order of the
	// endpoints in Envoy, and in that of their names here: inOrder they are the same.
	if inOrder {
		slices.SortFunc(ports, func(a, b int) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	priorities := 1
	if g.chance(45) {
		priorities += 1 + g.IntN(2)
	}
	for priority := range priorities {
		for region := range 1 + g.IntN(2) {
			l := &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{Region: fmt.Sprint("r", region)}, Priority: uint32(priority)}
			for range 1 + g.IntN(3) {
				if len(ports) == 0 {
					break
				}
				e := &endpointv3.Endpoint{Address: address(ports[0])}
				if names {
					e.Hostname = fmt.Sprintf("host-%d.example", g.IntN(1000))
					if inOrder {
						e.Hostname = fmt.Sprintf("host-%03d.example", 100-len(ports))
					}
				}
				lbe := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: e}, Metadata: g.endpointMetadata(inOrder)}
				if g.chance(unhealthy) {
					lbe.HealthStatus = pick(g, []corev3.HealthStatus{
						corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_DRAINING, corev3.HealthStatus_TIMEOUT, corev3.HealthStatus_DEGRADED,
					})
				} else if g.chance(30) {
					lbe.HealthStatus = corev3.HealthStatus_HEALTHY
				}
				if weights {
					lbe.LoadBalancingWeight = wrapperspb.UInt32(uint32(1 + g.IntN(5)))
				}
				l.LbEndpoints = append(l.LbEndpoints, lbe)
				ports = ports[1:]
			}
			c.LoadAssignment.Endpoints = append(c.LoadAssignment.Endpoints, l)
		}
	}
	if g.chance(25) {
		common.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{}}
		for _, l := range c.LoadAssignment.Endpoints {
			l.LoadBalancingWeight = wrapperspb.UInt32(pick(g, []uint32{1, 3, 100}))
		}
	}
	if names && g.chance(60) {
		common.ConsistentHashingLbConfig = &clusterv3.Cluster_CommonLbConfig_ConsistentHashingLbConfig{UseHostnameForHashing: true}
	}
	if g.chance(30) {
		common.HealthyPanicThreshold = &typev3.Percent{Value: pick(g, []float64{0, 30, 80})}
	}
	c.CommonLbConfig = common
	if g.chance(15) {
		c.LoadAssignment.Policy = &endpointv3.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(pick(g, []uint32{100, 200}))}
	}
	if g.chance(40) {
		c.LbSubsetConfig = g.subsets(common.GetLocalityWeightedLbConfig() != nil)
	}
	return c
}

func (g *generator) endpointMetadata(inOrder bool) *corev3.Metadata {
	fields := map[string]any{}
	if g.chance(85) {
		fields["version"] = pick(g, []string{"v1", "v2"})
	}
	if g.chance(60) {
		fields["stage"] = pick(g, []string{"prod", "test"})
	}
	if !inOrder && g.chance(30) {
		fields["hash_key"] = fmt.Sprint("key-", g.IntN(1000))
	}
	if g.chance(10) {
		fields["canary"] = true
	}
	return balancerMetadata(fields)
}

func balancerMetadata(fields map[string]any) *corev3.Metadata {
	s, err := structpb.NewStruct(fields)
	if err != nil {
		panic(err)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.lb": s}}
}

func (g *generator) subsets(weighted bool) *clusterv3.Cluster_LbSubsetConfig {
	s := &clusterv3.Cluster_LbSubsetConfig{
		FallbackPolicy: pick(g, []clusterv3.Cluster_LbSubsetConfig_LbSubsetFallbackPolicy{
			clusterv3.Cluster_LbSubsetConfig_NO_FALLBACK, clusterv3.Cluster_LbSubsetConfig_ANY_ENDPOINT, clusterv3.Cluster_LbSubsetConfig_DEFAULT_SUBSET,
		}),
		LocalityWeightAware: weighted && g.chance(50),
	}
	if s.FallbackPolicy == clusterv3.Cluster_LbSubsetConfig_DEFAULT_SUBSET || g.chance(30) {
		s.DefaultSubset = balancerMetadata(map[string]any{"version": pick(g, []string{"v1", "v2", "v3"})}).FilterMetadata["envoy.lb"]
	}
	for _, keys := range [][]string{{"version"}, {"version", "stage"}} {
		if g.chance(80) {
			selector := &clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector{Keys: keys}
			if g.chance(50) {
				selector.FallbackPolicy = pick(g, []clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_LbSubsetSelectorFallbackPolicy{
					clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_NO_FALLBACK, clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_ANY_ENDPOINT,
					clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_DEFAULT_SUBSET,
				})
			}
			s.SubsetSelectors = append(s.SubsetSelectors, selector)
		}
	}
	return s
}

// wanted is what a route wants of its endpoints.
func (g *generator) wanted() *corev3.Metadata {
	fields := map[string]any{}
	if g.chance(80) {
		fields["version"] = pick(g, []string{"v1", "v2", "v3"})
	}
	if g.chance(40) {
		fields["stage"] = pick(g, []string{"prod", "test"})
	}
	return balancerMetadata(fields)
}
