package translate

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestIstioLocality holds priorities and weights against those that istiod gives.
func TestIstioLocality(t *testing.T) {
	var file struct {
		Cases []struct {
			Before, After  json.RawMessage
			Locality       json.RawMessage `json:"proxy_locality"`
			Setting        json.RawMessage `json:"locality_lb_setting"`
			EnableFailover bool            `json:"enable_failover"`
			From           string
		}
	}
	conformance.Load(t, "istio/locality_lb.json", &file)
	tally := conformance.Deciding(t, "istio/locality_lb.json")
	for i, c := range file.Cases {
		setting, from := &networking.LocalityLoadBalancerSetting{}, &corev3.Locality{}
		before, after := &endpointv3.ClusterLoadAssignment{}, &endpointv3.ClusterLoadAssignment{}
		readJSON(t, c.Setting, setting)
		readJSON(t, c.Locality, from)
		readJSON(t, c.Before, before)
		readJSON(t, c.After, after)
		switch {
		case len(setting.FailoverPriority) > 0 && len(c.Before) > 0:
			tally.Differs(t, fmt.Sprintf("%s [%d]", recordedTest(c.From), i)) // TestFailoverPriority has such
			continue
		case len(c.Setting) == 0 && string(c.Before) == string(c.After) && len(before.Endpoints) > 1 && from.Region != "":
			tally.Differs(t, fmt.Sprintf("%s [%d]", recordedTest(c.From), i))
			continue
		}
		for _, g := range before.Endpoints {
			if g.LoadBalancingWeight == nil {
				g.LoadBalancingWeight = wrapperspb.UInt32(1)
			}
		}
		n := &nearness{setting: setting, from: from, failing: c.EnableFailover}
		n.apply(before)
		var want []string
		for _, g := range after.Endpoints {
			if len(setting.Distribute) == 0 || g.LoadBalancingWeight != nil { // others have lost their endpoints
				want = append(want, writeGroup(g))
			}
		}
		var got []string
		for _, g := range before.Endpoints {
			got = append(got, writeGroup(g))
		}
		if strings.Join(got, "; ") != strings.Join(want, "; ") {
			tally.Fail(t, "case %d:\n got %q\nwant %q", i, got, want)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "istio/locality_lb.json", 14, 6)
}

func writeGroup(g *endpointv3.LocalityLbEndpoints) string {
	return fmt.Sprintf("%s p%d w%d", localityKey(g.Locality), g.Priority, max(g.LoadBalancingWeight.GetValue(), 1))
}

// placed is a service with an endpoint in each of some places, and a rule for it.
func placed(t testing.TB, rule string, workloads ...*policy.Workload) *policy.Set {
	set := &policy.Set{Services: []*policy.Service{service("default", "a", http(80))}, Workloads: workloads}
	if rule != "" {
		set.DestinationRules = []*policy.DestinationRule{destinationRule(t, "default", "a", "{host: a, trafficPolicy: {"+rule+"}}")}
	}
	return set
}

func at(address, place string, labels ...string) *policy.Workload {
	w := workload("default", "a", "v", address)
	w.Locality = place
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		w.Labels[k] = v
	}
	return w
}

func in(agent Agent, place string, labels ...string) *Client {
	c := client(agent)
	c.Labels = map[string]string{"app": "web"}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		c.Labels[k] = v
	}
	c.Locality = placeOf(locality(place), c.Labels)
	c.class = c.buildClass()
	return c
}

// TestEndpointsByPlace has the endpoints that clients in different places get.
func TestEndpointsByPlace(t *testing.T) {
	const detects = "outlierDetection: {}"
	four := []*policy.Workload{at("10.0.0.1", "r1/z1/s1"), at("10.0.0.2", "r1/z1/s2"), at("10.0.0.3", "r1/z2/s1"), at("10.0.0.4", "r2/z1/s1")}
	for name, test := range map[string]struct {
		rule string
		mesh string
		from string
		want string
	}{
		"without outlier detection nobody takes over": {from: "r1/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p0 w1; r1/z2/s1 p0 w1; r2/z1/s1 p0 w1"},
		"nearest first":         {rule: detects, from: "r1/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p1 w1; r1/z2/s1 p2 w1; r2/z1/s1 p3 w1"},
		"from elsewhere":        {rule: detects, from: "r3/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p0 w1; r1/z2/s1 p0 w1; r2/z1/s1 p0 w1"},
		"switched off":          {rule: detects + ", loadBalancer: {localityLbSetting: {enabled: false}}", from: "r1/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p0 w1; r1/z2/s1 p0 w1; r2/z1/s1 p0 w1"},
		"the mesh says off":     {rule: detects, mesh: "localityLbSetting: {enabled: false}", from: "r1/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p0 w1; r1/z2/s1 p0 w1; r2/z1/s1 p0 w1"},
		"a rule says on":        {rule: detects + ", loadBalancer: {localityLbSetting: {enabled: true}}", mesh: "localityLbSetting: {enabled: false}", from: "r2/z1/s1", want: "r1/z1/s1 p1 w1; r1/z1/s2 p1 w1; r1/z2/s1 p1 w1; r2/z1/s1 p0 w1"},
		"the mesh distributes":  {mesh: "localityLbSetting: {distribute: [{from: r1/*, to: {r2: 100}}]}", from: "r1/z9/s1", want: "r2/z1/s1 p0 w100"},
		"distribute":            {rule: "loadBalancer: {localityLbSetting: {distribute: [{from: r1/z1/*, to: {r1/z1/*: 70, r1/z2/*: 30}}]}}", from: "r1/z1/s1", want: "r1/z1/s1 p0 w35; r1/z1/s2 p0 w35; r1/z2/s1 p0 w30"},
		"distribute for others": {rule: "loadBalancer: {localityLbSetting: {distribute: [{from: r1/z1/*, to: {r1/z1/*: 70, r1/z2/*: 30}}]}}", from: "r2/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p0 w1; r1/z2/s1 p0 w1; r2/z1/s1 p0 w1"},
		"failover":              {rule: detects + ", loadBalancer: {localityLbSetting: {failover: [{from: r3, to: r2}]}}", from: "r3/z1/s1", want: "r1/z1/s1 p1 w1; r1/z1/s2 p1 w1; r1/z2/s1 p1 w1; r2/z1/s1 p0 w1"},
		"zones":                 {rule: "loadBalancer: {zoneAwareLbSetting: {enabled: true}}", from: "r1/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p0 w1; r1/z2/s1 p0 w1; r2/z1/s1 p1 w1"},
		"zones of the mesh":     {mesh: "zoneAwareLbSetting: {enabled: true, failover: [{from: r3, to: r2}]}", from: "r3/z1/s1", want: "r1/z1/s1 p1 w1; r1/z1/s2 p1 w1; r1/z2/s1 p1 w1; r2/z1/s1 p0 w1"},
		"zones of the mesh, with a rule by locality": {rule: detects + ", loadBalancer: {localityLbSetting: {enabled: true}}", mesh: "zoneAwareLbSetting: {enabled: true}", from: "r1/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p1 w1; r1/z2/s1 p2 w1; r2/z1/s1 p3 w1"},
		"zones are off":               {rule: detects + ", loadBalancer: {zoneAwareLbSetting: {enabled: false}, localityLbSetting: {enabled: false}}", mesh: "zoneAwareLbSetting: {enabled: true}", from: "r1/z1/s1", want: "r1/z1/s1 p0 w1; r1/z1/s2 p0 w1; r1/z2/s1 p0 w1; r2/z1/s1 p0 w1"},
		"zones with labels of places": {rule: "loadBalancer: {zoneAwareLbSetting: {failoverPriority: [version=w]}}", from: "r2/z1/s1", want: "r1/z1/s1 p1 w1; r1/z1/s2 p1 w1; r1/z2/s1 p1 w1; r2/z1/s1 p0 w1"},
		"the mesh detects":            {mesh: "defaultTrafficPolicy: {outlierDetection: {}}", from: "r2/z1/s1", want: "r1/z1/s1 p1 w1; r1/z1/s2 p1 w1; r1/z2/s1 p1 w1; r2/z1/s1 p0 w1"},
	} {
		set := placed(t, test.rule, four...)
		if test.mesh != "" {
			set.MeshConfig = meshConfig(t, test.mesh)
		}
		for _, agent := range []Agent{Sinew, Other, GRPC} {
			v, c := NewView(set), in(agent, test.from)
			a, _ := get(t, v, EndpointType, "outbound|80||a.default.svc.cluster.local", c, &endpointv3.ClusterLoadAssignment{})
			var got []string
			for _, g := range a.GetEndpoints() {
				got = append(got, writeGroup(g))
			}
			if strings.Join(got, "; ") != test.want {
				t.Errorf("%s for %v:\n got %q\nwant %s", name, agent, got, test.want)
			}
			cluster, _ := get(t, v, ClusterType, "outbound|80||a.default.svc.cluster.local", c, &clusterv3.Cluster{})
			zones := strings.HasPrefix(name, "zones") && !strings.HasSuffix(name, "off") && !strings.HasSuffix(name, "locality") && agent != GRPC
			if (cluster.GetCommonLbConfig().GetZoneAwareLbConfig() != nil) != zones {
				t.Errorf("%s for %v: %v", name, agent, cluster.GetCommonLbConfig())
			}
			off := strings.Contains(name, "off") || agent == GRPC || zones
			if (cluster.GetCommonLbConfig().GetLocalityWeightedLbConfig() == nil) != off {
				t.Errorf("%s for %v: %v", name, agent, cluster.GetCommonLbConfig())
			}
		}
	}
}

// TestFailoverPriority orders endpoints by labels: those of places for every client of
// the place, others in sets of their own, one for each set of labels.
func TestFailoverPriority(t *testing.T) {
	rule := func(list string) string {
		return "outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: [" + list + "]}}"
	}
	const region, zone = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"
	three := []*policy.Workload{at("10.0.0.1", "r1/z1", "rack=1", "row=1"), at("10.0.0.2", "r1/z2", "rack=2", "row=1"), at("10.0.0.3", "r2/z1", "rack=1", "row=2")}
	for _, test := range []struct {
		list   string
		client []string // place, and labels
		own    bool     // the set is one by labels
		want   string
	}{
		{region + ", " + zone, []string{"r1/z1"}, false, "r1/z1/ p0 w1; r1/z2/ p1 w1; r2/z1/ p2 w1"},
		{zone + ", " + region, []string{"r1/z1"}, false, "r1/z1/ p0 w1; r1/z2/ p2 w1; r2/z1/ p1 w1"},
		{region + "=r2", []string{"r1/z1"}, false, "r1/z1/ p1 w1; r1/z2/ p1 w1; r2/z1/ p0 w1"},
		{"rack", []string{"r1/z1", "rack=2"}, true, "r1/z1/ p1 w1; r1/z2/ p0 w1; r2/z1/ p1 w1"},
		{"rack=1", []string{"r1/z1", "rack=2"}, false, "r1/z1/ p0 w1; r1/z2/ p1 w1; r2/z1/ p0 w1"},
		{"rack, row", []string{"", "rack=1", "row=1"}, true, "r1/z1/ p0 w1; r1/z2/ p2 w1; r2/z1/ p1 w1"},
		{"rack", []string{"r1/z1"}, true, "r1/z1/ p0 w1; r1/z2/ p0 w1; r2/z1/ p0 w1"}, // none has the client's (no) label: no gaps
	} {
		v := NewView(placed(t, rule(test.list), three...))
		c := in(Sinew, test.client[0], test.client[1:]...)
		cluster, _ := get(t, v, ClusterType, "outbound|80||a.default.svc.cluster.local", c, &clusterv3.Cluster{})
		name := cluster.GetEdsClusterConfig().GetServiceName()
		if strings.HasSuffix(name, "|labels") != test.own {
			t.Errorf("%s: endpoints %q", test.list, name)
		}
		a, _ := get(t, v, EndpointType, name, c, &endpointv3.ClusterLoadAssignment{})
		var got []string
		for _, g := range a.GetEndpoints() {
			got = append(got, writeGroup(g))
		}
		if strings.Join(got, "; ") != test.want || a.GetClusterName() != name {
			t.Errorf("%s: got %q, want %s", test.list, got, test.want)
		}
		other := in(Sinew, test.client[0], "other=1")
		if (Variant(EndpointType, name, c) == Variant(EndpointType, name, other)) == test.own {
			t.Errorf("%s: the variant of %s differs with labels: %v", test.list, name, !test.own)
		}
		if Variant(EndpointType, name, c) == Variant(EndpointType, name, in(Sinew, "elsewhere", test.client[1:]...)) {
			t.Errorf("%s: the variant does not differ by place", test.list)
		}
	}
	if r, err := NewView(placed(t, "", three...)).Resource(ClusterType, "outbound|80||a.default.svc.cluster.local|labels", client(Sinew)); r != nil || err != nil {
		t.Errorf("a cluster has the name of endpoints: %v %v", r, err)
	}
}

func TestPlaceOfClient(t *testing.T) {
	labels := func(pairs map[string]any) *structpb.Struct {
		s, err := structpb.NewStruct(map[string]any{"LABELS": pairs})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, test := range []struct {
		node *corev3.Node
		want string
	}{
		{&corev3.Node{Id: "x"}, "//"},
		{&corev3.Node{Id: "x", Locality: &corev3.Locality{Region: "r", SubZone: "s"}}, "r//s"},
		{&corev3.Node{Id: "x", Locality: &corev3.Locality{Region: "r"}, Metadata: labels(map[string]any{localityLabel: "a.b.c"})}, "a/b/c"},
		{&corev3.Node{Id: "x", Metadata: labels(map[string]any{localityLabel: "a/b.c"})}, "a/b.c/"},
		{&corev3.Node{Id: "x", Metadata: labels(map[string]any{regionLabel: "a", zoneLabel: "b", subzoneLabel: "c"})}, "a/b/c"},
		{&corev3.Node{Id: "x", Locality: &corev3.Locality{Zone: "z"}, Metadata: labels(map[string]any{regionLabel: "a"})}, "/z/"},
	} {
		c, err := ClientOf(test.node)
		if err != nil || localityKey(c.Locality) != test.want {
			t.Errorf("%v: %v %v, want %s", test.node, c.Locality, err, test.want)
		}
	}
}

func readJSON(t testing.TB, text json.RawMessage, m proto.Message) {
	t.Helper()
	if len(text) == 0 {
		return
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, m); err != nil {
		t.Fatal(err)
	}
}
