package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func server(name, spec string) string {
	return fmt.Sprintf("apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: %s}\nspec:\n  %s\n", name, spec)
}

func limit(name, server, rest string) string {
	return fmt.Sprintf("apiVersion: policy.linkerd.io/v1alpha1\nkind: HTTPLocalRateLimitPolicy\nmetadata: {name: %s}\nspec:\n  targetRef: {group: policy.linkerd.io, kind: Server, name: %s}\n  %s\n",
		name, server, rest)
}

const open = "accessPolicy: all-unauthenticated, "

func TestRateLimitFor(t *testing.T) {
	in := server("web", "{"+open+"podSelector: {matchLabels: {app: web}}, port: 8080, proxyProtocol: HTTP/1}") + "---\n" +
		server("named", "{"+open+"podSelector: {matchExpressions: [{key: app, operator: In, values: [pay, cart]}]}, port: http}") + "---\n" +
		server("all", "{"+open+"podSelector: {}, port: 7070}") + "---\n" +
		limit("web", "web", `total: {requestsPerSecond: 100}
  identity: {requestsPerSecond: 20}
  overrides:
  - requestsPerSecond: 25
    clientRefs: [{kind: ServiceAccount, name: special}, {kind: ServiceAccount, group: core, namespace: other, name: more}]`) + "---\n" +
		limit("younger", "web", "total: {requestsPerSecond: 1}") + "---\n" +
		limit("named", "named", "total: {requestsPerSecond: 5}") + "---\n" +
		limit("all", "all", "identity: {requestsPerSecond: 7}") + "---\n" +
		limit("nobody", "missing", "total: {requestsPerSecond: 7}") + "---\n" +
		"apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: pay}\nspec: {address: 10.0.0.1, labels: {app: pay, v: '1'}, ports: {http: 9000}}\n---\n" +
		"apiVersion: v1\nkind: Service\nmetadata: {name: cart}\nspec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 9100}]}\n"
	r := Build([]*File{Parse("f.yaml", []byte(in))}, nil)
	wantTexts(t, r.Problems,
		"f.yaml:33: HTTPLocalRateLimitPolicy default/younger: spec: warning: has no effect: HTTPLocalRateLimitPolicy default/web (f.yaml:19) is older, or first by name, and decides",
		"f.yaml:55: HTTPLocalRateLimitPolicy default/nobody: spec.targetRef.name: warning: has no effect: there is no Server default/missing",
		"f.yaml:61: WorkloadEntry default/pay: spec.labels: warning: no Service or ServiceEntry of namespace default selects this workload: no request is sent to it",
	)
	for _, tt := range []struct {
		app, namespace string
		port           uint32
		want           string
	}{
		{"web", "default", 8080, "web"},
		{"web", "default", 8081, ""},
		{"web", "prod", 8080, ""},
		{"pay", "default", 9000, "named"},
		{"pay", "default", 9100, ""},
		{"pay", "default", 8080, ""},
		{"cart", "default", 9100, "named"},
		{"cart", "default", 80, ""},
		{"cart", "default", 7070, "all"},
		{"web", "default", 7070, "all"},
	} {
		labels := map[string]string{"app": tt.app}
		if tt.app == "pay" {
			labels["v"] = "1"
		}
		got := ""
		if p := r.Set.RateLimitFor(labels, tt.namespace, tt.port); p != nil {
			got = p.Name
		}
		if got != tt.want {
			t.Errorf("%s of %s at %d: %q, want %q", tt.app, tt.namespace, tt.port, got, tt.want)
		}
	}
	spec := r.Set.RateLimitFor(map[string]string{"app": "web"}, "default", 8080).Spec
	if spec.Total != 100 || spec.Identity != 20 || len(spec.Overrides) != 1 || spec.Overrides[0].RequestsPerSecond != 25 ||
		!slices.Equal(spec.Overrides[0].Clients, []ServiceAccount{{"default", "special"}, {"other", "more"}}) {
		t.Errorf("limits %+v", spec)
	}
	// The limits are stored in full.
	state, err := r.AccessState()
	if err != nil {
		t.Fatal(err)
	}
	restored, err := RestoreAccess(state)
	if err != nil {
		t.Fatal(err)
	}
	if got := restored.Set.RateLimitFor(map[string]string{"app": "web"}, "default", 8080); got == nil || fmt.Sprint(*got.Spec) != fmt.Sprint(*spec) {
		t.Errorf("restored %+v, want %+v", got, spec)
	}
	if len(restored.Set.Servers) != 3 || restored.Set.Servers[1].Spec.PortName != "http" || len(restored.Set.Servers[1].Spec.PodSelector.MatchExpressions[0].Values) != 2 {
		t.Errorf("restored %+v", restored.Set.Servers)
	}
	for name, bad := range map[string]string{
		"field": strings.Replace(string(state), `"total":100`, `"totel":100`, 1),
		"limit": strings.Replace(string(state), `"identity":20`, `"identity":200`, 1),
		"port":  strings.Replace(string(state), `"port":8080`, `"port":0`, 1),
	} {
		if bad == string(state) {
			t.Fatalf("%s: nothing is changed", name)
		}
		if _, err := RestoreAccess([]byte(bad)); err == nil {
			t.Errorf("%s: is accepted", name)
		}
	}
}

// TestLabelSelector holds the selector against Kubernetes' rules for each operator.
func TestLabelSelector(t *testing.T) {
	for _, tt := range []struct {
		operator string
		values   []string
		want     [3]bool // without the label, with the value "a", with "b"
	}{
		{"In", []string{"a"}, [3]bool{false, true, false}},
		{"In", []string{"a", ""}, [3]bool{false, true, false}},
		{"NotIn", []string{"a"}, [3]bool{true, false, true}},
		{"Exists", nil, [3]bool{false, true, true}},
		{"DoesNotExist", nil, [3]bool{true, false, false}},
	} {
		s := LabelSelector{MatchExpressions: []LabelExpression{{"k", tt.operator, tt.values}}}
		for i, labels := range []map[string]string{nil, {"k": "a"}, {"k": "b"}} {
			if got := s.Selects(labels); got != tt.want[i] {
				t.Errorf("%s %q selects %v: %v", tt.operator, tt.values, labels, got)
			}
			// What it says beside must hold as well.
			and := LabelSelector{MatchLabels: map[string]string{"x": "1"}, MatchExpressions: s.MatchExpressions}
			if and.Selects(labels) {
				t.Errorf("%s %q and x=1 select %v", tt.operator, tt.values, labels)
			}
			both := maps.Clone(labels)
			if both == nil {
				both = map[string]string{}
			}
			both["x"] = "1"
			if got := and.Selects(both); got != tt.want[i] {
				t.Errorf("%s %q and x=1 select %v: %v", tt.operator, tt.values, both, got)
			}
		}
	}
}

func TestLinkerdProblems(t *testing.T) {
	selector := "podSelector: {matchLabels: {app: pay}}, port: 80"
	s := func(rest string) string { return server("x", "{"+open+rest+"}") }
	l := func(rest string) string { return limit("x", "y", rest) }
	override := func(rest string) string { return l("overrides: [{" + rest + "}]") }
	const client = "clientRefs: [{kind: ServiceAccount, name: a}]"
	pay, all := []string{"default/pay"}, []string{"default/pay", "default/web"}
	for _, tt := range []struct {
		in, field, want string
		withheld        []string
	}{
		{s(selector), "", "", nil},
		{s(selector + ", proxyProtocol: gRPC"), "", "", nil},
		{server("x", "{"+selector+"}"), "spec.accessPolicy", "deny, which is the default,", pay},
		{server("x", "{"+selector+", accessPolicy: all-authenticated}"), "spec.accessPolicy", "does not enforce", pay},
		{server("x", "{"+selector+", accessPolicy: audit}"), "spec.accessPolicy", "does not enforce", pay},
		{server("x", "{"+selector+", accessPolicy: all}"), "spec.accessPolicy", "not an access policy", pay},
		{s(selector + ", proxyProtocol: opaque"), "spec.proxyProtocol", "does not enforce", pay},
		{s(selector + ", proxyProtocol: http"), "spec.proxyProtocol", "not one of", pay},
		{s("podSelector: {matchLabels: {app: pay}}"), "spec.port", "required", pay},
		{s("podSelector: {matchLabels: {app: pay}}, port: 70000"), "spec.port", "port number", pay},
		{s("podSelector: {matchLabels: {app: pay}}, port: 'a b'"), "spec.port", "name of a port", pay},
		{s("port: 80"), "spec.podSelector", "required", all},
		{s("port: 80, podSelector: {matchLabels: {app: 1}}"), "spec.podSelector.matchLabels[app]", "text", all},
		{s("port: 80, podSelector: {matchLables: {app: pay}}"), "spec.podSelector.matchLables", "did you mean matchLabels?", all},
		{s("port: 80, podSelector: {matchExpressions: [{key: app, operator: In}]}"), "spec.podSelector.matchExpressions[0].values", "required", all},
		{s("port: 80, podSelector: {matchExpressions: [{operator: Exists, values: [a]}]}"), "spec.podSelector.matchExpressions[0].values", "must not", all},
		{s("port: 80, podSelector: {matchExpressions: [{key: a, operator: Equals}]}"), "spec.podSelector.matchExpressions[0].operator", "not one of", all},
		{s("port: 80, externalWorkloadSelector: {}"), "spec.externalWorkloadSelector", "does not enforce", all},
		{strings.Replace(s(selector), "v1beta3", "v1beta1", 1), "apiVersion", "use v1beta3", pay},
		{strings.Replace(s(selector), "spec:", "spce:", 1), "spce", "did you mean spec?", all},

		{l("total: {requestsPerSecond: 2}"), "", "", nil},
		{l("{}"), "", "", nil}, // see below
		{l("total: {requestsPerSecond: 0}"), "spec.total.requestsPerSecond", "between 1", all},
		{l("total: {requestsPerSecond: -1}"), "spec.total.requestsPerSecond", "between 1", all},
		{l("total: {requestsPerSecond: 4294967296}"), "spec.total.requestsPerSecond", "between 1", all},
		{l("total: {requestsPerSecond: 1.5}"), "spec.total.requestsPerSecond", "between 1", all},
		{l("total: {requestsPerSecond: '5'}"), "spec.total.requestsPerSecond", "between 1", all},
		{l("total: {rps: 5}"), "spec.total.rps", "unknown field", all},
		{l("identity: {}"), "spec.identity.requestsPerSecond", "required", all},
		{l("total: {requestsPerSecond: 5}\n  identity: {requestsPerSecond: 6}"), "spec.identity.requestsPerSecond", "more than total", all},
		{override("requestsPerSecond: 5, " + client), "", "", nil},
		{override(client), "spec.overrides[0].requestsPerSecond", "required", all},
		{override("requestsPerSecond: 5"), "spec.overrides[0].clientRefs", "required", all},
		{override("requestsPerSecond: 5, clientRefs: [{kind: Service, name: a}]"), "spec.overrides[0].clientRefs[0].kind", "ServiceAccount", all},
		{override("requestsPerSecond: 5, clientRefs: [{kind: ServiceAccount}]"), "spec.overrides[0].clientRefs[0].name", "required", all},
		{override("requestsPerSecond: 5, clientRefs: [{kind: ServiceAccount, name: a, namespace: 'b/c'}]"), "spec.overrides[0].clientRefs[0].namespace", "not a valid", all},
		{l("total: {requestsPerSecond: 5}\n  overrides: [{requestsPerSecond: 6, " + client + "}]"), "spec.overrides[0].requestsPerSecond", "more than total", all},
		{strings.Replace(l("total: {requestsPerSecond: 2}"), "kind: Server", "kind: Service", 1), "spec.targetRef", "must be a Server", all},
		{strings.Replace(l("total: {requestsPerSecond: 2}"), "group: policy.linkerd.io, ", "", 1), "spec.targetRef", "must be a Server", all},
		{strings.Replace(l("total: {requestsPerSecond: 2}"), "targetRef:", "target:", 1), "spec.targetRef.name", "required", all},
	} {
		if strings.HasSuffix(tt.in, "{}\n") {
			tt.in = strings.TrimSuffix(tt.in, "  {}\n")
		}
		r := Build([]*File{Parse("f.yaml", []byte(tt.in))}, nil)
		var found []Problem
		for _, p := range r.Problems {
			if p.Severity == Error {
				found = append(found, p)
			}
		}
		at := slices.IndexFunc(found, func(p Problem) bool {
			return p.Field == tt.field && strings.Contains(p.Message, tt.want) && p.At.Line > 0
		})
		if (tt.field != "") != (at >= 0) || tt.field == "" && len(found) > 0 {
			t.Errorf("%s: %q, want %s: %s", tt.in, texts(found), tt.field, tt.want)
		}
		if got := withheldOf(r.Set); !slices.Equal(got, tt.withheld) || (len(accessInForce(r.Set)) > 0) != (tt.field == "") {
			t.Errorf("%s: withheld %q, want %q; in force %q", tt.in, got, tt.withheld, accessInForce(r.Set))
		}
	}
}
