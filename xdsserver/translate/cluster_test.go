package translate

import (
	"fmt"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

func TestClusters(t *testing.T) {
	set := bookinfo(t)
	set.DestinationRules = append(set.DestinationRules, destinationRule(t, "default", "ratings", `
host: ratings
trafficPolicy:
  connectionPool:
    tcp: {maxConnections: 1, connectTimeout: 2s, idleTimeout: 60s}
    http: {http1MaxPendingRequests: 2, http2MaxRequests: 3, maxRetries: 4, maxRequestsPerConnection: 5}
  retryBudget: {percent: 10}
  outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 2, interval: 1s, baseEjectionTime: 3s, maxEjectionPercent: 50, minHealthPercent: 30}
  portLevelSettings:
  - {port: {number: 9090}, loadBalancer: {simple: RANDOM}}
subsets:
- name: v1
  labels: {version: v1}
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}
`))
	v := NewView(set)
	const ratings = "ratings.default.svc.cluster.local"
	for _, test := range []struct {
		name  string
		agent Agent
		want  string
		notes int
	}{
		{"outbound|9080||" + reviews, Sinew, "EDS ROUND_ROBIN panic=0 max=all/all/all/all connect=10s h2", 0},
		{"outbound|9080|v1|" + reviews, Other, "EDS ROUND_ROBIN panic=0 max=all/all/all/all connect=10s h2", 0},
		{"outbound|9080|v1|" + reviews, GRPC, "EDS ROUND_ROBIN panic=0 max=all/all/all/all connect=10s", 0},
		{"outbound|80||" + ratings, Sinew, "EDS LEAST_REQUEST panic=30 max=1/2/3/4 budget=10%/3 connect=2s outlier=unset/0,2/100 1s 3s 50% h1 per=5 idle=1m0s", 0},
		{"outbound|80||" + ratings, GRPC, "EDS LEAST_REQUEST panic=30 max=1/2/3/4 budget=10%/3 connect=2s outlier=unset/0,2/100 1s 3s 50%", 9},
		// An entry for a port replaces everything, retry budget included.
		{"outbound|9090||" + ratings, Sinew, "EDS RANDOM panic=0 max=all/all/all/all connect=10s h2", 0},
		{"outbound|9090||" + ratings, GRPC, "EDS ROUND_ROBIN panic=0 max=all/all/all/all connect=10s", 1},
		// A subset replaces whole blocks.
		{"outbound|80|v1|" + ratings, Sinew, "EDS LEAST_REQUEST panic=30 max=7/all/all/all budget=10%/3 connect=10s outlier=unset/0,2/100 1s 3s 50%", 0},
	} {
		c, r := get(t, v, ClusterType, test.name, client(test.agent), &clusterv3.Cluster{})
		if c.GetEdsClusterConfig().GetServiceName() != test.name || c.GetEdsClusterConfig().GetEdsConfig().GetAds() == nil {
			t.Errorf("%s: endpoints from %v", test.name, c.GetEdsClusterConfig())
		}
		if got := strings.ReplaceAll(writeCluster(t, c), "outlier=0/0", "outlier=unset/0"); got != test.want {
			t.Errorf("%s for %v:\n got %s\nwant %s", test.name, test.agent, got, test.want)
		}
		if len(r.Notes) != test.notes {
			t.Errorf("%s for %v: notes %v, want %d", test.name, test.agent, r.Notes, test.notes)
		}
	}
	for _, name := range []string{"outbound|9080|v9|" + reviews, "outbound|81||" + reviews, "outbound|80||missing", "inbound|80||x", "x", "outbound|x||" + reviews, "outbound|80||"} {
		for _, typeURL := range []string{ClusterType, EndpointType, RouteType} {
			if r, err := v.Resource(typeURL, name, client(Other)); r != nil || err != nil {
				t.Errorf("%s %s: %v, %v; want none", typeURL, name, r, err)
			}
		}
	}
}

func writeCluster(t *testing.T, c *clusterv3.Cluster) string {
	limit := func(n uint32) string {
		if n == 1<<32-1 {
			return "all"
		}
		return fmt.Sprint(n)
	}
	th := c.GetCircuitBreakers().GetThresholds()[0]
	out := fmt.Sprintf("%v %v panic=%v max=%s/%s/%s/%s", c.GetType(), c.GetLbPolicy(), c.GetCommonLbConfig().GetHealthyPanicThreshold().GetValue(),
		limit(th.GetMaxConnections().GetValue()), limit(th.GetMaxPendingRequests().GetValue()), limit(th.GetMaxRequests().GetValue()), limit(th.GetMaxRetries().GetValue()))
	if b := th.GetRetryBudget(); b != nil {
		out += fmt.Sprintf(" budget=%v%%/%d", b.GetBudgetPercent().GetValue(), b.GetMinRetryConcurrency().GetValue())
	}
	out += fmt.Sprintf(" connect=%v", c.GetConnectTimeout().AsDuration())
	if o := c.GetOutlierDetection(); o != nil {
		out += fmt.Sprintf(" outlier=%d/%d,%d/%d %v %v %d%%", o.GetConsecutive_5Xx().GetValue(), o.GetEnforcingConsecutive_5Xx().GetValue(),
			o.GetConsecutiveGatewayFailure().GetValue(), o.GetEnforcingConsecutiveGatewayFailure().GetValue(),
			o.GetInterval().AsDuration(), o.GetBaseEjectionTime().AsDuration(), o.GetMaxEjectionPercent().GetValue())
		if o.GetEnforcingSuccessRate() == nil || o.GetEnforcingSuccessRate().GetValue() != 0 {
			out += " success rate"
		}
	}
	for _, a := range c.GetTypedExtensionProtocolOptions() {
		opts := &upstreamv3.HttpProtocolOptions{}
		if err := a.UnmarshalTo(opts); err != nil {
			t.Fatal(err)
		}
		if opts.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil {
			out += " h2"
		} else if opts.GetExplicitHttpConfig().GetHttpProtocolOptions() != nil {
			out += " h1"
		}
		if n := opts.GetCommonHttpProtocolOptions().GetMaxRequestsPerConnection(); n != nil {
			out += fmt.Sprintf(" per=%d", n.GetValue())
		}
		if d := opts.GetCommonHttpProtocolOptions().GetIdleTimeout(); d != nil {
			out += fmt.Sprintf(" idle=%v", d.AsDuration())
		}
	}
	return out
}

func TestTrafficPolicyRefused(t *testing.T) {
	for field, text := range map[string]string{
		"trafficPolicy.tls insecureSkipVerify":                    "{tls: {mode: SIMPLE, insecureSkipVerify: true}}",
		"trafficPolicy.tls credentialName":                        "{tls: {mode: SIMPLE, credentialName: x}}",
		"trafficPolicy.tls clientCertificate":                     "{tls: {mode: ISTIO_MUTUAL, clientCertificate: x}}",
		"trafficPolicy.loadBalancer warmup (with this algorithm)": "{loadBalancer: {simple: RANDOM, warmup: {duration: 1s}}}",
		"trafficPolicy.loadBalancer simple PASSTHROUGH":           "{loadBalancer: {simple: PASSTHROUGH}}",
		"trafficPolicy.connectionPool.tcp.maxConnectionDuration":  "{connectionPool: {tcp: {maxConnectionDuration: 1s}}}",
		"trafficPolicy.outlierDetection.consecutiveErrors":        "{outlierDetection: {consecutiveErrors: 1}}",
		"trafficPolicy.retryBudget.budgetInterval":                "{retryBudget: {budgetInterval: 1s}}",
		"trafficPolicy.tunnel":                                    "{tunnel: {targetHost: a, targetPort: 1}}",
	} {
		set := bookinfo(t)
		set.DestinationRules = []*policy.DestinationRule{destinationRule(t, "default", "reviews", "{host: reviews, trafficPolicy: "+text+"}")}
		_, err := NewView(set).Resource(ClusterType, "outbound|9080||"+reviews, client(Other))
		if err == nil || !strings.Contains(err.Error(), "DestinationRule default/reviews spec") || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s: error %v", field, err)
		}
	}
}

// TestPolicyThatIsLetIn translates what validation lets through although it
// stands in the neighbourhood of what it refuses.
func TestPolicyThatIsLetIn(t *testing.T) {
	for _, text := range []string{
		"{tls: {mode: DISABLE}}",
		"{loadBalancer: {localityLbSetting: {enabled: false}}}",
		"{loadBalancer: {zoneAwareLbSetting: {enabled: false}}}",
		"{connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}",
		"{outlierDetection: {}}",
		"{retryBudget: {}}",
		"{portLevelSettings: [{port: {number: 1}, loadBalancer: {simple: RANDOM}}]}",
	} {
		set := bookinfo(t)
		dr := destinationRule(t, "default", "reviews", "{host: reviews, trafficPolicy: "+text+"}")
		set.DestinationRules = []*policy.DestinationRule{dr}
		if f := policy.Unenforced(dr.Meta, dr.Spec); len(f) > 0 {
			t.Errorf("%s is not let in: %v", text, f)
		}
		get(t, NewView(set), ClusterType, "outbound|9080||"+reviews, client(Sinew), &clusterv3.Cluster{})
	}
	vs := virtualService(t, "default", "reviews", "hosts: [reviews]\nhttp: [{retries: {attempts: 1, retryRemoteLocalities: false}, route: [{destination: {host: reviews}}]}]")
	if f := policy.Unenforced(vs.Meta, vs.Spec); len(f) > 0 {
		t.Errorf("not let in: %v", f)
	}
	get(t, NewView(bookinfo(t, vs)), RouteType, "outbound|9080||"+reviews, client(Sinew), &routev3.RouteConfiguration{})
}

func TestHostsOutsideThatPass(t *testing.T) {
	v := NewView(&policy.Set{
		Services: []*policy.Service{{Meta: policy.Meta{Kind: "ServiceEntry", Namespace: "default", Name: "x"}, Host: "*.example.com",
			Ports: []policy.Port{http(443)}, Resolution: networking.ServiceEntry_NONE, External: true}},
		VirtualServices: []*policy.VirtualService{virtualService(t, "default", "x", "{hosts: [a.example.com], http: [{route: [{destination: {host: a.example.com}}]}]}")},
	})
	for typeURL, name := range map[string]string{ListenerType: "a.example.com:443", RouteType: "outbound|443||a.example.com", ClusterType: "outbound|443||a.example.com", EndpointType: "outbound|443||a.example.com"} {
		if r, err := v.Resource(typeURL, name, client(Sinew)); r != nil || err != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

func TestEndpoints(t *testing.T) {
	set := bookinfo(t)
	set.Workloads[1].Weight, set.Workloads[1].Locality = 3, "r1/z1/s1"
	set.Workloads[2].Locality = "r1/z1"
	set.Workloads = append(set.Workloads, workload("default", "reviews", "v1", "10.0.0.1")) // the same address again
	v := NewView(set)
	write := func(a *endpointv3.ClusterLoadAssignment) string {
		var out []string
		for _, g := range a.GetEndpoints() {
			s := fmt.Sprintf("%s w%d p%d:", localityKey(g.GetLocality()), g.GetLoadBalancingWeight().GetValue(), g.GetPriority())
			for _, e := range g.GetLbEndpoints() {
				sa := e.GetEndpoint().GetAddress().GetSocketAddress()
				s += fmt.Sprintf(" %s:%d*%d", sa.GetAddress(), sa.GetPortValue(), e.GetLoadBalancingWeight().GetValue())
			}
			out = append(out, s)
		}
		return strings.Join(out, "; ")
	}
	for _, test := range []struct{ name, want string }{
		{"outbound|9080||" + reviews, "// w1 p0: 10.0.0.1:9080*1; r1/z1/ w1 p0: 10.0.0.3:9080*1; r1/z1/s1 w3 p0: 10.0.0.2:9080*3"},
		{"outbound|9080|v1|" + reviews, "// w1 p0: 10.0.0.1:9080*1"},
		{"outbound|80||ratings.default.svc.cluster.local", ""},
	} {
		a, r := get(t, v, EndpointType, test.name, client(GRPC), &endpointv3.ClusterLoadAssignment{})
		if got := write(a); got != test.want || a.GetClusterName() != test.name {
			t.Errorf("%s: %s\nwant %s", test.name, got, test.want)
		}
		if weights := strings.Contains(test.want, "*3"); weights != (len(r.Notes) == 1) {
			t.Errorf("%s: notes %v", test.name, r.Notes)
		}
	}
}

// TestNamedEndpoints covers endpoints that are DNS names, which clients of each kind get in their own way.
func TestNamedEndpoints(t *testing.T) {
	entry := func(host string, endpoints ...string) *policy.Service {
		s := &policy.Service{Meta: policy.Meta{Kind: "ServiceEntry", Namespace: "default", Name: "x"}, Host: host, Ports: []policy.Port{http(443)}, Resolution: networking.ServiceEntry_DNS, External: true}
		for _, e := range endpoints {
			s.Static = append(s.Static, &policy.Workload{Address: e, Weight: 1})
		}
		return s
	}
	v := NewView(&policy.Set{Services: []*policy.Service{entry("one.example.com"), entry("two.example.com", "a.example.com", "b.example.com"), entry("*.wild.com"), entry("ip.example.com", "192.0.2.1")}})
	for _, test := range []struct {
		host  string
		agent Agent
		kind  clusterv3.Cluster_DiscoveryType
		want  string
	}{
		{"one.example.com", Sinew, clusterv3.Cluster_STRICT_DNS, "one.example.com:443"},
		{"one.example.com", GRPC, clusterv3.Cluster_LOGICAL_DNS, "one.example.com:443"},
		{"one.example.com", Other, clusterv3.Cluster_STRICT_DNS, "one.example.com:443"},
		{"two.example.com", Sinew, clusterv3.Cluster_STRICT_DNS, "a.example.com:443 b.example.com:443"},
		{"two.example.com", GRPC, clusterv3.Cluster_EDS, "a.example.com:443 b.example.com:443"},
		{"two.example.com", Other, clusterv3.Cluster_STRICT_DNS, "a.example.com:443 b.example.com:443"},
		{"x.wild.com", Sinew, clusterv3.Cluster_STRICT_DNS, "x.wild.com:443"},
		{"ip.example.com", Other, clusterv3.Cluster_EDS, "192.0.2.1:443"},
	} {
		name := "outbound|443||" + test.host
		c, _ := get(t, v, ClusterType, name, client(test.agent), &clusterv3.Cluster{})
		a := c.GetLoadAssignment()
		if test.kind == clusterv3.Cluster_EDS {
			a, _ = get(t, v, EndpointType, name, client(test.agent), &endpointv3.ClusterLoadAssignment{})
		}
		var got []string
		for _, g := range a.GetEndpoints() {
			for _, e := range g.GetLbEndpoints() {
				sa := e.GetEndpoint().GetAddress().GetSocketAddress()
				got = append(got, fmt.Sprintf("%s:%d", sa.GetAddress(), sa.GetPortValue()))
			}
		}
		if c.GetType() != test.kind || strings.Join(got, " ") != test.want {
			t.Errorf("%s for %v: %v %v, want %v %s", test.host, test.agent, c.GetType(), got, test.kind, test.want)
		}
	}
}
