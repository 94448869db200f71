package translate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestChangesCoverEveryDifference edits a policy at random and holds Diff
// against translating everything again: a resource that differs must be named.
func TestChangesCoverEveryDifference(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	clients := []*Client{client(Sinew), client(GRPC)}
	clients[1].Namespace = "other"
	clients[1].class = clients[1].buildClass()
	clients[0].Locality = locality("r1/z1/s1")
	type key struct{ typeURL, name string }
	var keys []key
	for _, host := range []string{"a", "b", "c", "a.default", "a.other", "x.wild.com", "ext.com", "shop.internal"} {
		keys = append(keys, key{ListenerType, host + ":80"}, key{ListenerType, host})
	}
	for _, host := range []string{"a.default.svc.cluster.local", "b.default.svc.cluster.local", "c.other.svc.cluster.local", "x.wild.com", "ext.com", "shop.internal"} {
		for _, port := range []uint32{80, 81} {
			keys = append(keys, key{RouteType, TrafficName{Port: port, Host: host}.String()})
			for _, subset := range []string{"", "v1", "v2"} {
				n := TrafficName{Port: port, Subset: subset, Host: host}.String()
				keys = append(keys, key{ClusterType, n}, key{EndpointType, n}, key{EndpointType, n + labelsSuffix})
			}
		}
	}
	for _, addr := range []string{"10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:81", "192.0.2.0:80", "0.0.0.0:80", "[::]:81", "10.9.9.9:80"} {
		keys = append(keys, key{ListenerType, InboundPrefix + addr})
	}
	clients[0].IPs, clients[1].IPs = []string{"10.0.0.1", "10.0.0.3"}, []string{"10.0.0.2", "192.0.2.1"}
	everything := func(v *View) map[string]string {
		out := map[string]string{}
		for _, k := range keys {
			for i, c := range clients {
				r, err := v.Resource(k.typeURL, k.name, c)
				switch {
				case err != nil:
					out[fmt.Sprint(k, i)] = err.Error()
				case r != nil:
					out[fmt.Sprint(k, i)] = r.Version + fmt.Sprint(r.Notes)
				}
			}
		}
		return out
	}
	pick := func(all ...string) string { return all[rng.IntN(len(all))] }
	random := func() *policy.Set {
		set := &policy.Set{}
		for _, s := range []struct{ ns, name string }{{"default", "a"}, {"default", "b"}, {"other", "c"}} {
			if rng.IntN(4) > 0 {
				svc := service(s.ns, s.name, http(80))
				if rng.IntN(3) == 0 {
					svc.Ports = append(svc.Ports, http(81))
				}
				if rng.IntN(4) == 0 {
					svc.ExportTo = []string{pick(".", "*", "other")}
				}
				if rng.IntN(4) == 0 {
					svc.Accrual = &policy.FailureAccrual{MaxFailures: uint32(1 + rng.IntN(2)), MinPenalty: 1, MaxPenalty: 1}
				}
				if rng.IntN(4) == 0 {
					svc.Annotations = map[string]string{policy.BalancerAnnotation: pick("", policy.PeakEWMA)}
				}
				if rng.IntN(4) == 0 {
					svc.Default = &networking.HTTPRoute{Retries: &networking.HTTPRetry{Attempts: int32(rng.IntN(2))}}
				}
				set.Services = append(set.Services, svc)
			}
		}
		for _, host := range []string{"*.wild.com", "ext.com"} {
			if rng.IntN(3) > 0 {
				svc := &policy.Service{Meta: policy.Meta{Kind: "ServiceEntry", Namespace: "default", Name: host}, Host: host, Ports: []policy.Port{http(80)}, Resolution: networking.ServiceEntry_STATIC}
				for i := range rng.IntN(3) {
					svc.Static = append(svc.Static, &policy.Workload{Address: fmt.Sprintf("192.0.2.%d", i), Weight: uint32(1 + rng.IntN(2))})
				}
				if rng.IntN(3) == 0 {
					svc.Resolution = networking.ServiceEntry_DNS
				}
				set.Services = append(set.Services, svc)
			}
		}
		for i := range 4 {
			if rng.IntN(3) > 0 {
				w := workload(pick("default", "other"), pick("a", "b", "c"), pick("v1", "v2"), fmt.Sprintf("10.0.0.%d", i))
				w.Name = fmt.Sprint("w", i)
				w.Weight = uint32(1 + rng.IntN(2))
				w.ServiceAccount = pick("", "x", "y")
				w.Locality = pick("", "r1/z1/s1", "r1/z2/s1", "r2/z1/s1")
				if rng.IntN(2) == 0 {
					w.Labels[policy.TLSModeLabel] = "istio"
				}
				if rng.IntN(3) == 0 {
					w.Ports = map[string]uint32{"http": uint32(80 + rng.IntN(2))}
				}
				set.Workloads = append(set.Workloads, w)
			}
		}
		for i := range 2 {
			if rng.IntN(3) > 0 {
				set.VirtualServices = append(set.VirtualServices, virtualService(t, pick("default", "other"), fmt.Sprint("vs", i), fmt.Sprintf(
					"hosts: [%s]\nexportTo: [%q]\nhttp: [{match: [{sourceLabels: {app: %s}, uri: {prefix: /p}}], route: [{destination: {host: b}}]}, {timeout: %ds, route: [{destination: {host: %s}}]}]",
					pick("a", "b", "x.wild.com", `"*.wild.com"`, "shop.internal", "c.other.svc.cluster.local"), pick("*", "."), pick("web", "x"), 1+rng.IntN(2), pick("a", "b", "c", "ext.com"))))
			}
			if rng.IntN(3) > 0 {
				set.DestinationRules = append(set.DestinationRules, destinationRule(t, pick("default", "other"), fmt.Sprint("dr", i), fmt.Sprintf(
					"host: %s\ntrafficPolicy: {%s, loadBalancer: {%s}}\nsubsets: [{name: %s, labels: {version: %s}}]",
					pick("a", "b", "c", `"*.default.svc.cluster.local"`, "ext.com"), pick("connectionPool: {tcp: {maxConnections: 1}}", "outlierDetection: {}"),
					pick("simple: RANDOM", "simple: ROUND_ROBIN, warmup: {duration: 1s}", "consistentHash: {httpHeaderName: x}", "consistentHash: {httpCookie: {name: y}}",
						"localityLbSetting: {distribute: [{from: r1, to: {r2: 100}}]}", "localityLbSetting: {failoverPriority: [app]}", "localityLbSetting: {enabled: false}"),
					pick("v1", "v2"), pick("v1", "v2"))))
				if rng.IntN(4) == 0 {
					set.DestinationRules[len(set.DestinationRules)-1].Annotations = map[string]string{policy.BalancerAnnotation: policy.PeakEWMA}
				}
			}
		}
		for i := range 2 {
			meta := func() string { return fmt.Sprint("x", i) }
			where := func() string { return pick("default", "other", policy.RootNamespace) }
			selector := pick("", "selector: {matchLabels: {app: a}}, ", "selector: {matchLabels: {version: v1}}, ")
			if rng.IntN(3) == 0 {
				set.PeerAuthentications = append(set.PeerAuthentications, peerAuthentication(t, where(), meta(), "{"+selector+"mtls: {mode: "+pick("STRICT", "DISABLE")+"}}"))
				if rng.IntN(2) == 0 {
					dryRun(&set.PeerAuthentications[len(set.PeerAuthentications)-1].Meta)
				}
			}
			if rng.IntN(2) == 0 {
				set.AuthorizationPolicies = append(set.AuthorizationPolicies, authorizationPolicy(t, where(), meta(),
					"{"+selector+"action: "+pick("ALLOW", "DENY")+", rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/"+pick("x", "y")+"]}}]}]}"))
				if rng.IntN(3) == 0 {
					dryRun(&set.AuthorizationPolicies[len(set.AuthorizationPolicies)-1].Meta)
				}
			}
			if rng.IntN(4) == 0 {
				set.RequestAuthentications = append(set.RequestAuthentications, requestAuthentication(t, where(), meta(),
					"{"+selector+"jwtRules: [{issuer: "+pick("i", "j")+", jwksUri: \"http://"+pick("a.default", "ext.com")+"/k\"}]}"))
			}
		}
		if rng.IntN(3) == 0 {
			set.Servers = []*policy.Server{{Meta: policy.Meta{Kind: "Server", Namespace: pick("default", "other"), Name: "s"}, Spec: &policy.ServerSpec{Port: uint32(80 + rng.IntN(2))}}}
			set.RateLimits = []*policy.RateLimitPolicy{{Meta: policy.Meta{Kind: "HTTPLocalRateLimitPolicy", Namespace: pick("default", "other"), Name: "r"}, Spec: &policy.RateLimitSpec{Server: "s", Total: uint32(1 + rng.IntN(2))}}}
		}
		if rng.IntN(3) == 0 {
			set.MeshConfig = meshConfig(t, "{trustDomain: "+pick("cluster.local", "td")+", trustDomainAliases: ["+pick("", "old")+"]"+
				pick("", ", defaultHttpRetryPolicy: {attempts: 3}", ", localityLbSetting: {enabled: false}", ", connectTimeout: 1s, dnsRefreshRate: 9s", ", defaultTrafficPolicy: {outlierDetection: {}}")+"}")
		}
		if rng.IntN(5) == 0 {
			set.Broken = []policy.Broken{{Namespace: pick("", "default"), Reason: pick("broken", "torn")}}
		}
		if rng.IntN(2) == 0 && len(set.VirtualServices) == 2 {
			set.VirtualServices[0], set.VirtualServices[1] = set.VirtualServices[1], set.VirtualServices[0]
		}
		if rng.IntN(2) == 0 && len(set.DestinationRules) == 2 {
			set.DestinationRules[0], set.DestinationRules[1] = set.DestinationRules[1], set.DestinationRules[0]
		}
		return set
	}
	// merge takes each list from the old set or the new one, so that single edits occur too.
	merge := func(old, new *policy.Set) *policy.Set {
		out := &policy.Set{
			VirtualServices: old.VirtualServices, DestinationRules: old.DestinationRules, Services: old.Services, Workloads: old.Workloads,
			PeerAuthentications: old.PeerAuthentications, AuthorizationPolicies: old.AuthorizationPolicies, RequestAuthentications: old.RequestAuthentications,
			Servers: old.Servers, RateLimits: old.RateLimits, MeshConfig: old.MeshConfig, Broken: old.Broken,
		}
		switch rng.IntN(12) {
		case 11: // only what annotations of one Service say
			out.Services = slices.Clone(old.Services)
			if len(out.Services) == 0 {
				return new
			}
			i := rng.IntN(len(out.Services))
			svc := *out.Services[i]
			switch rng.IntN(3) {
			case 0:
				svc.Accrual = &policy.FailureAccrual{MaxFailures: uint32(1 + rng.IntN(3)), MinPenalty: 1, MaxPenalty: 1}
			case 1:
				svc.Annotations = map[string]string{policy.BalancerAnnotation: pick("", policy.PeakEWMA)}
			case 2:
				svc.Default = &networking.HTTPRoute{Retries: &networking.HTTPRetry{Attempts: int32(1 + rng.IntN(3))}}
			}
			out.Services[i] = &svc
		case 5:
			out.PeerAuthentications = new.PeerAuthentications
		case 6:
			out.AuthorizationPolicies = new.AuthorizationPolicies
		case 7:
			out.RequestAuthentications = new.RequestAuthentications
		case 8:
			out.Servers, out.RateLimits = new.Servers, new.RateLimits
		case 9:
			out.MeshConfig = new.MeshConfig
		case 10:
			out.Broken = new.Broken
		case 0:
			out.VirtualServices = new.VirtualServices
		case 1:
			out.DestinationRules = new.DestinationRules
		case 2:
			out.Services = new.Services
		case 3:
			out.Workloads = new.Workloads
		default:
			return new
		}
		return out
	}
	set := random()
	view := NewView(set)
	before := everything(view)
	differed, spared := 0, 0
	for step := range 600 {
		next := merge(set, random())
		nextView := NewView(next)
		after := everything(nextView)
		changes := Diff(view, nextView)
		for _, k := range keys {
			for i := range clients {
				id := fmt.Sprint(k, i)
				if before[id] != after[id] {
					differed++
					if !changes.Affects(k.typeURL, k.name) || changes.Empty() {
						t.Fatalf("step %d: %v differs and is not named (%+v)", step, k, changes)
					}
				} else if !changes.Affects(k.typeURL, k.name) {
					spared++
				}
			}
		}
		set, view, before = next, nextView, after
	}
	if differed == 0 || spared == 0 {
		t.Errorf("the edits tested nothing: %d differences, %d spared", differed, spared)
	}
}

func TestSameContentIsNoChange(t *testing.T) {
	vs := "hosts: [reviews]\nhttp: [{route: [{destination: {host: reviews}}]}]"
	old, new := bookinfo(t, virtualService(t, "default", "x", vs)), bookinfo(t, virtualService(t, "default", "x", vs))
	new.VirtualServices[0].At.Line = 17
	if c := Diff(NewView(old), NewView(new)); !c.Empty() {
		t.Errorf("policy that was read again is a change: %+v", c)
	}
	new.Workloads[0] = workload("default", "reviews", "v1", "10.0.0.9")
	c := Diff(NewView(old), NewView(new))
	for _, test := range []struct {
		typeURL, name string
		want          bool
	}{
		{EndpointType, "outbound|9080||" + reviews, true},
		{EndpointType, "outbound|80||ratings.default.svc.cluster.local", false},
		{RouteType, "outbound|9080||" + reviews, false},
		{ListenerType, "reviews:9080", false},
		{ListenerType, InboundPrefix + "10.0.0.9:9080", true},  // where it is now
		{ListenerType, InboundPrefix + "10.0.0.1:9080", true},  // where it was
		{ListenerType, InboundPrefix + "0.0.0.0:9080", true},   // may be where it is
		{ListenerType, InboundPrefix + "10.0.0.2:9080", false}, // of another
	} {
		if got := c.Affects(test.typeURL, test.name); got != test.want {
			t.Errorf("an endpoint of reviews moved: %s %s affected %v, want %v", short(test.typeURL), test.name, got, test.want)
		}
	}
}

func short(s string) string { return s[len("type.googleapis.com/envoy.config."):] }
