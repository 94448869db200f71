package policy

import (
	"slices"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
)

func TestResolveHost(t *testing.T) {
	s := &Set{Services: []*Service{
		{Meta: Meta{Namespace: "default"}, Host: "reviews.default.svc.cluster.local"},
		{Meta: Meta{Namespace: "prod"}, Host: "reviews.prod.svc.cluster.local"},
		{Meta: Meta{Namespace: "prod"}, Host: "api.example.com"},
		{Meta: Meta{Namespace: "prod"}, Host: "*.example.com"},
		{Meta: Meta{Namespace: "prod"}, Host: "*.eu.example.com"},
		{Meta: Meta{Namespace: "prod"}, Host: "plain"},
	}}
	for _, tt := range []struct{ host, ns, want, service string }{
		{"reviews", "default", "reviews.default.svc.cluster.local", "reviews.default.svc.cluster.local"},
		{"reviews", "prod", "reviews.prod.svc.cluster.local", "reviews.prod.svc.cluster.local"},
		{"Reviews.PROD", "default", "reviews.prod.svc.cluster.local", "reviews.prod.svc.cluster.local"},
		{"reviews.prod.svc", "default", "reviews.prod.svc.cluster.local", "reviews.prod.svc.cluster.local"},
		{"reviews.prod.svc.cluster.local.", "x", "reviews.prod.svc.cluster.local", "reviews.prod.svc.cluster.local"},
		{"reviews", "", "reviews.default.svc.cluster.local", "reviews.default.svc.cluster.local"},
		{"nobody", "prod", "nobody.prod.svc.cluster.local", ""},
		{"nobody.prod", "default", "nobody.prod", ""},
		{"api.example.com", "default", "api.example.com", "api.example.com"},
		{"www.example.com", "default", "www.example.com", "*.example.com"},
		{"a.eu.example.com", "default", "a.eu.example.com", "*.eu.example.com"},
		{"example.com", "default", "example.com", ""},
		{"plain", "default", "plain", "plain"},
		{"10.0.0.1", "default", "10.0.0.1", ""},
		{"::1", "default", "::1", ""},
	} {
		got := s.ResolveHost(tt.host, tt.ns)
		name := ""
		if svc := s.ServiceByHost(got); svc != nil {
			name = svc.Host
		}
		if got != tt.want || name != tt.service {
			t.Errorf("ResolveHost(%q, %q) = %q of service %q, want %q of %q", tt.host, tt.ns, got, name, tt.want, tt.service)
		}
	}
}

func TestEndpointsOf(t *testing.T) {
	w := func(name, ns, address string, ports map[string]uint32, labels ...string) *Workload {
		m := map[string]string{}
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			m[k] = v
		}
		return &Workload{Meta: Meta{Name: name, Namespace: ns, Labels: m}, Address: address, Ports: ports}
	}
	s := &Set{Workloads: []*Workload{
		w("a", "default", "10.0.0.1", nil, "app=x", "v=1"),
		w("b", "default", "fd00::1", map[string]uint32{"http": 81, "main": 82}, "app=x", "v=2"),
		w("c", "default", "10.0.0.3", nil, "app=y"),
		w("d", "other", "10.0.0.4", nil, "app=x"),
	}}
	in := func(sel map[string]string) *Service { return &Service{Meta: Meta{Namespace: "default"}, Selector: sel} }
	app := map[string]string{"app": "x"}
	for _, tt := range []struct {
		name string
		svc  *Service
		port Port
		want []string
	}{
		{"target port, and the workload's own", in(app), Port{Name: "http", Number: 80, Target: 8080}, []string{"10.0.0.1:8080", "[fd00::1]:81"}},
		{"named target port", in(app), Port{Name: "http", Number: 80, TargetName: "main"}, []string{"10.0.0.1:80", "[fd00::1]:82"}},
		{"two labels", in(map[string]string{"app": "x", "v": "2"}), Port{Number: 80, Target: 80}, []string{"[fd00::1]:80"}},
		{"no such label", in(map[string]string{"app": "x", "v": "3"}), Port{Number: 80}, nil},
		{"the whole namespace", in(map[string]string{}), Port{Number: 80}, []string{"10.0.0.1:80", "[fd00::1]:80", "10.0.0.3:80"}},
		{"no selector", in(nil), Port{Number: 80}, nil},
		{"static", &Service{Static: []*Workload{{Address: "10.1.0.1"}}, Meta: Meta{Namespace: "default"}}, Port{Number: 80}, []string{"10.1.0.1:80"}},
	} {
		var got []string
		for _, e := range s.EndpointsOf(tt.svc, tt.port) {
			got = append(got, e.Address)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func rule(ns, name, host string, policy bool, exportTo []string, subsets ...string) *DestinationRule {
	spec := &networking.DestinationRule{Host: host, ExportTo: exportTo}
	if policy {
		spec.TrafficPolicy = &networking.TrafficPolicy{OutlierDetection: &networking.OutlierDetection{MaxEjectionPercent: int32(len(name))}}
	}
	for _, s := range subsets {
		spec.Subsets = append(spec.Subsets, &networking.Subset{Name: s, Labels: map[string]string{"rule": name}})
	}
	return &DestinationRule{Meta{Kind: "DestinationRule", Namespace: ns, Name: name}, spec}
}

func TestDestinationRuleFor(t *testing.T) {
	const host = "reviews.prod.svc.cluster.local"
	services := []*Service{{Meta: Meta{Namespace: "prod"}, Host: host}}
	for _, tt := range []struct {
		name   string
		rules  []*DestinationRule
		client string
		want   string
	}{
		{"the client's namespace first", []*DestinationRule{rule("prod", "p", "reviews", true, nil), rule("c", "c", host, true, nil), rule("istio-system", "root", host, true, nil)}, "c", "c"},
		{"then the service's", []*DestinationRule{rule("prod", "p", "reviews", true, nil), rule("istio-system", "root", host, true, nil)}, "c", "p"},
		{"then the root's", []*DestinationRule{rule("x", "p", host, true, nil), rule("istio-system", "root", "*.cluster.local", true, nil)}, "c", "root"},
		{"not another's", []*DestinationRule{rule("x", "p", host, true, nil)}, "c", ""},
		{"private", []*DestinationRule{rule("prod", "p", "reviews", true, []string{"."})}, "c", ""},
		{"private, at home", []*DestinationRule{rule("prod", "p", "reviews", true, []string{"."})}, "prod", "p"},
		{"exported", []*DestinationRule{rule("prod", "p", "reviews", true, []string{"c"})}, "c", "p"},
		{"the most specific host", []*DestinationRule{rule("prod", "w", "*.prod.svc.cluster.local", true, nil), rule("prod", "ww", "*.local", true, nil), rule("prod", "p", "reviews", true, nil)}, "c", "p"},
		{"the longest wildcard", []*DestinationRule{rule("prod", "ww", "*.local", true, nil), rule("prod", "w", "*.prod.svc.cluster.local", true, nil)}, "c", "w"},
		{"a specific one that is hidden does not hide a wildcard", []*DestinationRule{rule("prod", "p", "reviews", true, []string{"."}), rule("prod", "w", "*.prod.svc.cluster.local", true, nil)}, "c", "w"},
	} {
		s := &Set{Services: services, DestinationRules: tt.rules}
		got := ""
		if dr := s.DestinationRuleFor(host, tt.client); dr != nil {
			got = dr.Name
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}

	// Oldest first: its policy wins, and its subsets; those it has not are appended.
	older, younger := rule("prod", "a", "reviews", false, nil, "v1"), rule("prod", "bb", host, true, nil, "v1", "v2")
	s := &Set{Services: services, DestinationRules: []*DestinationRule{older, younger, rule("prod", "ccc", host, true, nil, "v3")}}
	dr := s.DestinationRuleFor(host, "c")
	var subsets []string
	for _, sub := range dr.Spec.Subsets {
		subsets = append(subsets, sub.Name+" of "+sub.Labels["rule"])
	}
	if want := []string{"v1 of a", "v2 of bb", "v3 of ccc"}; dr.Name != "a" || dr.Spec.TrafficPolicy.OutlierDetection.MaxEjectionPercent != 2 || !slices.Equal(subsets, want) {
		t.Errorf("merged %v, policy %v, subsets %q, want %q", dr.Name, dr.Spec.TrafficPolicy, subsets, want)
	}
	if len(older.Spec.Subsets) != 1 {
		t.Error("merging changed the rule itself")
	}
}

func TestVirtualServiceFor(t *testing.T) {
	vs := func(ns, name string, exportTo []string, hosts ...string) *VirtualService {
		return &VirtualService{Meta{Kind: "VirtualService", Namespace: ns, Name: name}, &networking.VirtualService{Hosts: hosts, ExportTo: exportTo}}
	}
	s := &Set{VirtualServices: []*VirtualService{
		vs("prod", "wild", nil, "*.example.com"),
		vs("prod", "wilder", nil, "*.com"),
		vs("prod", "first", []string{"."}, "reviews", "api.example.com"),
		vs("prod", "second", nil, "reviews"),
	}}
	for _, tt := range []struct{ host, client, want string }{
		{"reviews.prod.svc.cluster.local", "prod", "first"},
		{"reviews.prod.svc.cluster.local", "c", "second"},
		{"reviews.c.svc.cluster.local", "c", ""},
		{"api.example.com", "prod", "first"},
		{"api.example.com", "c", "wild"},
		{"API.Example.com", "c", "wild"},
		{"api.other.com", "c", "wilder"},
		{"com", "c", ""},
	} {
		got := ""
		if v := s.VirtualServiceFor(tt.host, tt.client); v != nil {
			got = v.Name
		}
		if got != tt.want {
			t.Errorf("VirtualServiceFor(%q, %q) = %q, want %q", tt.host, tt.client, got, tt.want)
		}
	}
}
