package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// files parses "name" -> "text" pairs.
func files(m map[string]string) []*File {
	var out []*File
	for name, text := range m {
		out = append(out, Parse(name, []byte(text)))
	}
	return out
}

func errorsOf(r *Result) []string {
	var out []string
	for _, p := range r.Problems {
		if p.Severity == Error {
			out = append(out, p.String())
		}
	}
	return out
}

// inForce lists a set's objects with what tells one version from another.
func inForce(s *Set) []string {
	var out []string
	for _, vs := range s.VirtualServices {
		text := vs.Kind + " " + vs.Name
		for _, r := range vs.Spec.Http {
			for _, d := range r.Route {
				text += " " + d.Destination.Host + "/" + d.Destination.Subset
			}
		}
		out = append(out, text)
	}
	for _, dr := range s.DestinationRules {
		text := "DestinationRule " + dr.Name
		for _, sub := range dr.Spec.Subsets {
			text += " " + sub.Name
		}
		out = append(out, text)
	}
	for _, svc := range s.Services {
		out = append(out, "Service "+svc.Host)
	}
	for _, w := range s.Workloads {
		out = append(out, "Workload "+w.Name+" "+w.Address)
	}
	slices.Sort(out)
	return out
}

func virtualService(name, host, subset string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: %s}\nspec:\n  hosts: [%s]\n  http: [{route: [{destination: {host: %s, subset: %q}}]}]\n", name, host, host, subset)
}

func destinationRule(name, host string, subsets ...string) string {
	text := fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %s}\nspec:\n  host: %s\n  subsets:\n", name, host)
	for _, s := range subsets {
		text += fmt.Sprintf("  - {name: %s, labels: {version: %s}}\n", s, s)
	}
	return text
}

func kubeService(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {selector: {app: %s}, ports: [{port: 80, name: http}]}\n", name, name)
}

func workloadEntry(name, address string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %s}\nspec: {address: %s}\n", name, address)
}

// TestLastGood runs steps over the files of a folder; after each, the objects in
// force and the number of errors are compared.
func TestLastGood(t *testing.T) {
	type step struct {
		files  map[string]string
		want   []string
		errors int
	}
	v := virtualService
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"an invalid object keeps its state, its siblings move on", []step{
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.1") + "---\n" + workloadEntry("b", "10.0.0.2")}, []string{"Workload a 10.0.0.1", "Workload b 10.0.0.2"}, 0},
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.1:80") + "---\n" + workloadEntry("b", "10.0.0.3")}, []string{"Workload a 10.0.0.1", "Workload b 10.0.0.3"}, 1},
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.4")}, []string{"Workload a 10.0.0.4"}, 0},
		}},
		{"an invalid object without a state is not in force", []step{
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.1:80")}, nil, 1},
		}},
		{"half a file loses nothing, and a later document still counts", []step{
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.1") + "---\n" + workloadEntry("b", "10.0.0.2")}, []string{"Workload a 10.0.0.1", "Workload b 10.0.0.2"}, 0},
			{map[string]string{"a.yaml": "apiVersion: networking.istio.io/v1\nkind: [\n---\n" + workloadEntry("c", "10.0.0.3")}, []string{"Workload a 10.0.0.1", "Workload b 10.0.0.2", "Workload c 10.0.0.3"}, 1},
			{map[string]string{"a.yaml": ""}, []string{"Workload a 10.0.0.1", "Workload b 10.0.0.2", "Workload c 10.0.0.3"}, 0},
			{map[string]string{"a.yaml": "# nothing any more\n"}, nil, 0},
		}},
		{"a document that lost its name keeps everything of its file", []step{
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.1")}, []string{"Workload a 10.0.0.1"}, 0},
			{map[string]string{"a.yaml": strings.Replace(workloadEntry("a", "10.0.0.9"), "name: a", "nam: a", 1)}, []string{"Workload a 10.0.0.1"}, 2},
		}},
		{"a deleted file is said for good, an unreadable one is not", []step{
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.1"), "b.yaml": workloadEntry("b", "10.0.0.2")}, []string{"Workload a 10.0.0.1", "Workload b 10.0.0.2"}, 0},
			{map[string]string{"a.yaml": "unreadable"}, []string{"Workload a 10.0.0.1"}, 1},
		}},
		{"an object moves to another file while its own is broken", []step{
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.1")}, []string{"Workload a 10.0.0.1"}, 0},
			{map[string]string{"a.yaml": "kind: [", "b.yaml": workloadEntry("a", "10.0.0.2")}, []string{"Workload a 10.0.0.2"}, 1},
		}},
		{"given twice", []step{
			{map[string]string{"a.yaml": workloadEntry("a", "10.0.0.1"), "b.yaml": workloadEntry("a", "10.0.0.2")}, []string{"Workload a 10.0.0.1"}, 1},
		}},
		{"a route to a subset that never was", []step{
			{map[string]string{"a.yaml": v("r", "reviews", "v1")}, nil, 1},
			{map[string]string{"a.yaml": v("r", "reviews", "v1"), "b.yaml": destinationRule("r", "reviews", "v1")}, []string{"DestinationRule r v1", "VirtualService r reviews/v1"}, 0},
			{map[string]string{"a.yaml": v("r", "reviews", "v2"), "b.yaml": destinationRule("r", "reviews", "v1")}, []string{"DestinationRule r v1", "VirtualService r reviews/v1"}, 1},
		}},
		{"a rule that loses a subset in use keeps it, until the route lets go", []step{
			{map[string]string{"a.yaml": v("r", "reviews", "v1"), "b.yaml": destinationRule("r", "reviews", "v1")}, []string{"DestinationRule r v1", "VirtualService r reviews/v1"}, 0},
			{map[string]string{"a.yaml": v("r", "reviews", "v1"), "b.yaml": destinationRule("r", "reviews", "v2")}, []string{"DestinationRule r v1", "VirtualService r reviews/v1"}, 1},
			{map[string]string{"a.yaml": v("r", "reviews", "v2"), "b.yaml": destinationRule("r", "reviews", "v2")}, []string{"DestinationRule r v2", "VirtualService r reviews/v2"}, 0},
			{map[string]string{"a.yaml": v("r", "reviews", "v2")}, []string{"DestinationRule r v2", "VirtualService r reviews/v2"}, 1},
			{map[string]string{"a.yaml": v("r", "reviews", "")}, []string{"VirtualService r reviews/"}, 0},
		}},
		{"both change, and do not fit", []step{
			{map[string]string{"a.yaml": v("r", "reviews", "v1"), "b.yaml": destinationRule("r", "reviews", "v1", "v2")}, []string{"DestinationRule r v1 v2", "VirtualService r reviews/v1"}, 0},
			{map[string]string{"a.yaml": v("r", "reviews", "v2"), "b.yaml": destinationRule("r", "reviews", "v3")}, []string{"DestinationRule r v1 v2", "VirtualService r reviews/v2"}, 1},
		}},
		{"two routes pull at one rule", []step{
			{map[string]string{"a.yaml": v("r", "reviews", "v1"), "b.yaml": destinationRule("r", "reviews", "v1")}, []string{"DestinationRule r v1", "VirtualService r reviews/v1"}, 0},
			{map[string]string{"a.yaml": v("r", "reviews", "v1"), "b.yaml": destinationRule("r", "reviews", "v2"), "c.yaml": strings.Replace(v("s", "other", "v2"), "host: other", "host: reviews", 1)},
				[]string{"DestinationRule r v1", "VirtualService r reviews/v1"}, 2},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r *Result
			for i, s := range tt.steps {
				fs := files(s.files)
				for j, f := range fs {
					if s.files[f.Name] == "unreadable" {
						fs[j] = Unreadable(f.Name, os.ErrPermission)
					}
				}
				r = Build(fs, r)
				if got := inForce(r.Set); !slices.Equal(got, s.want) {
					t.Errorf("step %d: in force %q, want %q", i, got, s.want)
				}
				if got := errorsOf(r); len(got) != s.errors {
					t.Errorf("step %d: errors %q, want %d", i, got, s.errors)
				}
			}
		})
	}
}

func TestBuildWarnings(t *testing.T) {
	split := "apiVersion: split.smi-spec.io/v1alpha1\nkind: TrafficSplit\nmetadata: {name: a-split, creationTimestamp: 2020-01-01T00:00:00Z}\nspec: {service: reviews, backends: [{service: reviews, weight: 1}]}\n"
	younger := strings.Replace(virtualService("a", "reviews", ""), "name: a", "name: a, creationTimestamp: 2026-01-01T00:00:00Z", 1)
	older := strings.Replace(virtualService("z", "reviews.default.svc.cluster.local", ""), "name: z", "name: z, creationTimestamp: 2025-01-01T00:00:00Z", 1)
	edge := strings.Replace(virtualService("edge", "reviews", ""), "hosts:", "gateways: [edge]\n  hosts:", 1)
	unknown := virtualService("u", "nobody", "")
	entry := "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: {hosts: [reviews.default.svc.cluster.local], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}]}\n"
	r := Build(files(map[string]string{
		"a.yaml": split, "b.yaml": younger, "c.yaml": older, "d.yaml": kubeService("reviews"), "e.yaml": edge, "f.yaml": unknown, "g.yaml": entry,
	}), nil)
	wantTexts(t, r.Problems,
		"a.yaml:4: TrafficSplit default/a-split: spec.service: warning: reviews.default.svc.cluster.local is decided by VirtualService default/z (c.yaml:1), not by this TrafficSplit",
		"b.yaml:5: VirtualService default/a: spec.hosts[0]: warning: reviews.default.svc.cluster.local is decided by VirtualService default/z (c.yaml:1), not by this VirtualService",
		"e.yaml:5: VirtualService default/edge: spec.gateways: notice: is for gateways only and does not apply to the mesh",
		"f.yaml:6: VirtualService default/u: spec.http[0].route[0].destination.host: warning: no Service or ServiceEntry has the host nobody.default.svc.cluster.local",
		"g.yaml:4: ServiceEntry default/e: spec.hosts[0]: warning: host reviews.default.svc.cluster.local is already that of Service default/reviews (d.yaml:1), which decides",
	)
	if vs := r.Set.VirtualServiceFor("reviews.default.svc.cluster.local", "default"); vs == nil || vs.Name != "z" {
		t.Errorf("the host is decided by %v, want z, the oldest", vs)
	}
	if got := len(r.Set.Services); got != 1 {
		t.Errorf("%d services, want 1", got)
	}
}

func TestPassThroughTakesNoPolicy(t *testing.T) {
	entry := "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: {hosts: [api.example.com], ports: [{number: 80, name: http, protocol: HTTP}]}\n"
	r := Build(files(map[string]string{
		"a.yaml": entry, "b.yaml": virtualService("v", "api.example.com", ""), "c.yaml": destinationRule("d", "api.example.com", "v1"),
	}), nil)
	if got, want := inForce(r.Set), []string{"Service api.example.com"}; !slices.Equal(got, want) {
		t.Errorf("in force %q, want %q", got, want)
	}
	if got := errorsOf(r); len(got) != 3 || !strings.Contains(strings.Join(got, "\n"), "resolution NONE") {
		t.Errorf("errors %q, want one for each field that names the host", got)
	}
}

// TestSamples reads a team's manifests as they are: Services beside the Deployments
// that Kubernetes runs, routes, rules, a gateway, and the workloads of the machines.
func TestSamples(t *testing.T) {
	var fs []*File
	paths, err := filepath.Glob("testdata/shop/*.yaml")
	if err != nil || len(paths) < 4 {
		t.Fatal(paths, err)
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		fs = append(fs, Parse(p, data))
	}
	r := Build(fs, nil)
	for _, p := range r.Problems {
		if p.Severity != Notice {
			t.Error(p)
		}
	}
	svc := r.Set.ServiceByHost("cart.default.svc.cluster.local")
	if svc == nil {
		t.Fatal("no service cart")
	}
	var got []string
	for _, e := range r.Set.EndpointsOf(svc, svc.Ports[0]) {
		got = append(got, e.Address)
	}
	if want := []string{"10.0.0.1:8080", "10.0.0.2:9090"}; !slices.Equal(got, want) {
		t.Errorf("endpoints %q, want %q", got, want)
	}
	if vs := r.Set.VirtualServiceFor(svc.Host, "default"); vs == nil || vs.Spec.Http[0].Route[0].Weight != 90 {
		t.Errorf("virtual service %v", vs)
	}
}

// TestManyRulesGone deletes the rules of many routes at once: all of them stay.
func TestManyRulesGone(t *testing.T) {
	var routes, rules, services strings.Builder
	const n = 300
	for i := range n {
		name := fmt.Sprintf("svc%d", i)
		routes.WriteString("---\n" + virtualService(name, name, "v1"))
		rules.WriteString("---\n" + destinationRule(name, name, "v1"))
		services.WriteString("---\n" + kubeService(name))
	}
	all := map[string]string{"a.yaml": routes.String(), "b.yaml": rules.String(), "c.yaml": services.String()}
	first := Build(files(all), nil)
	if first.Failed() {
		t.Fatal(errorsOf(first))
	}
	delete(all, "b.yaml")
	second := Build(files(all), first)
	if got := inForce(second.Set); !slices.Equal(got, inForce(first.Set)) || len(errorsOf(second)) != n {
		t.Errorf("%d objects in force and %d errors, want %d and %d", len(got), len(errorsOf(second)), 3*n, n)
	}
	if third := Build(files(all), second); !slices.Equal(inForce(third.Set), inForce(first.Set)) {
		t.Error("what was put back is lost at the next change")
	}
	if cold := Build(files(all), nil); len(cold.Set.VirtualServices) != 0 || len(errorsOf(cold)) != n {
		t.Errorf("without a past, %d routes are in force, with %d errors", len(cold.Set.VirtualServices), len(errorsOf(cold)))
	}
}
