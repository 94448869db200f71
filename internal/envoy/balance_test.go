package envoy_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/envoy"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const (
	balanced   = 160 // clusters
	perCluster = 30  // requests to each
)

// TestChoosesAsEnvoy sends requests with a number of hashes to generated
// clusters, through Envoy and through the engine: each goes to the same
// endpoints, attempt by attempt, or to none on both sides.
func TestChoosesAsEnvoy(t *testing.T) {
	envoy.Binary(t)
	up := newUpstream()
	g := newGenerator(*seedFlag + 99)
	ports := make([]int, portsOfHashed)
	for i := range ports {
		ports[i] = up.listen(t, "")
	}
	var clusters []*clusterv3.Cluster
	compiled := make(map[string]*snapshot.Cluster)
	bootstrap := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{}}
	for i, name := range numbered("ring", balanced) {
		c := g.hashedCluster(name, ports, g.chance(65))
		if i == 0 {
			c = unevenCluster(name, ports)
		}
		clusters = append(clusters, c)
		bootstrap.StaticResources.Clusters = append(bootstrap.StaticResources.Clusters, forEnvoy(c))
		_, cc, err := forMesh(c)
		if err != nil {
			t.Errorf("Envoy takes the cluster, the mesh refuses it: %v\n%s", err, packedJSON(c))
		}
		compiled[name] = cc
	}
	hcm := manager(g.anyCluster())
	bootstrap.StaticResources.Listeners = []*listenerv3.Listener{socketListener("all", hcm)}
	proxy := envoy.Start(t, bootstrap)
	address := fmt.Sprintf("127.0.0.1:%d", proxy.Port(t, "all"))
	ours, hosts, err := newClient(hcm, compiled)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.close()
	theirs := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 8}
	defer theirs.CloseIdleConnections()
	if !strings.Contains(differencesSection(t), "| A ring's places that do not divide evenly |") {
		t.Error("docs/traffic.md does not explain rings")
	}
	var compared, reached, repeated, rounded atomic.Int64
	var group sync.WaitGroup
	gate := make(chan struct{}, 8)
	for i, c := range clusters {
		group.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			g := newGenerator(*seedFlag<<32 + uint64(i) + 1<<30)
			wrong := 0
			for j := range perCluster {
				r := &request{
					id: fmt.Sprintf("lb-%d-%d", i, j), method: "POST", authority: authorities[0], target: pick(g, wants),
					header: map[string][]string{"x-cluster": {c.GetName()}, "x-id-class": {fmt.Sprint(j, "-", g.IntN(1000))}},
				}
				if g.chance(25) {
					r.header["x-script"] = []string{"503,503,200"}
				}
				p := pair{r: r}
				p.observe(ours, up, hosts, theirs, address)
				compared.Add(1)
				if len(p.real.Ports) > 0 {
					reached.Add(1)
				}
				if len(p.real.Ports) > 1 {
					repeated.Add(1)
				}
				if fmt.Sprint(p.mine.Status, p.mine.Ports) == fmt.Sprint(p.real.Status, p.real.Ports) {
					continue
				}
				if uneven(c) && fmt.Sprint(p.mine.Status, len(p.mine.Ports)) == fmt.Sprint(p.real.Status, len(p.real.Ports)) {
					rounded.Add(1)
					continue
				}
				if wrong++; wrong <= 3 {
					t.Errorf("%s %s %v: mesh %d at %v (%s), Envoy %d at %v\n%s", c.GetName(), r.target, r.header["x-id-class"],
						p.mine.Status, p.mine.Ports, p.mine.Err, p.real.Status, p.real.Ports, packedJSON(c))
				}
			}
		})
	}
	group.Wait()
	t.Logf("%d clusters, %d requests, %d of them to endpoints and %d to more than one", balanced, compared.Load(), reached.Load(), repeated.Load())
	if n := rounded.Load(); n == 0 || n > compared.Load()/50 {
		t.Errorf("%d differ by how a ring's places are rounded", n)
	}
	if reached.Load() < compared.Load()/2 || repeated.Load() == 0 {
		t.Error("too few requests got anywhere")
	}
}

// unevenCluster has a ring of few places, whose shares are rounded.
func unevenCluster(name string, ports []int) *clusterv3.Cluster {
	ports = slices.SortedFunc(slices.Values(ports[:5]), func(a, b int) int { return strings.Compare(fmt.Sprint(b), fmt.Sprint(a)) })
	c := cluster(name, ports...)
	for i, e := range c.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints() {
		e.LoadBalancingWeight = wrapperspb.UInt32(uint32(2 + 3*min(i, 1)))
	}
	c.LbPolicy = clusterv3.Cluster_RING_HASH
	c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(1)}}
	return c
}

// uneven reports whether the shares of a ring's endpoints may be rounded, and
// the endpoints stand in another order than their names.
func uneven(c *clusterv3.Cluster) bool {
	if c.GetLbPolicy() != clusterv3.Cluster_RING_HASH {
		return false
	}
	var names []string
	for _, l := range c.GetLoadAssignment().GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			name := fmt.Sprint(l.GetPriority(), " ", e.GetEndpoint().GetAddress().GetSocketAddress().GetPortValue())
			if key := e.GetMetadata().GetFilterMetadata()["envoy.lb"].GetFields()["hash_key"].GetStringValue(); key != "" {
				name = fmt.Sprint(l.GetPriority(), " ", key)
			} else if c.GetCommonLbConfig().GetConsistentHashingLbConfig().GetUseHostnameForHashing() {
				name = fmt.Sprint(l.GetPriority(), " ", e.GetEndpoint().GetHostname())
			}
			names = append(names, name)
		}
	}
	return !slices.IsSorted(names)
}

// wants are the paths of anyCluster's routes: what they want of endpoints.
var wants = []string{"/", "/", "/v1", "/v2", "/v3", "/v1/prod", "/v2/test", "/prod"}

// anyCluster sends requests to the cluster that they name.
func (g *generator) anyCluster() *routev3.RouteConfiguration {
	vh := &routev3.VirtualHost{Name: "all", Domains: []string{"*"}}
	for _, path := range wants[1:] {
		fields := map[string]any{}
		for _, v := range []string{"v1", "v2", "v3"} {
			if len(path) >= 3 && path[1:3] == v {
				fields["version"] = v
			}
		}
		for _, s := range []string{"prod", "test"} {
			if len(path) >= 5 && path[len(path)-4:] == s {
				fields["stage"] = s
			}
		}
		vh.Routes = append(vh.Routes, &routev3.Route{
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: path}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_ClusterHeader{ClusterHeader: "x-cluster"},
				MetadataMatch:    balancerMetadata(fields),
				HashPolicy: []*routev3.RouteAction_HashPolicy{{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
					Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: "x-id-class"}}}},
				RetryPolicy: &routev3.RetryPolicy{
					RetryOn: "5xx", NumRetries: wrapperspb.UInt32(2),
					RetryBackOff: &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(time.Millisecond), MaxInterval: durationpb.New(2 * time.Millisecond)},
					RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
						Name:       "envoy.retry_host_predicates.previous_hosts",
						ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: packed(&previoushostsv3.PreviousHostsPredicate{})},
					}},
					HostSelectionRetryMaxAttempts: 5,
				},
			}},
		})
	}
	return &routev3.RouteConfiguration{Name: "all", VirtualHosts: []*routev3.VirtualHost{vh}}
}
