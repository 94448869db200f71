package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestWorkloadsAt(t *testing.T) {
	we := func(name, address, rest string) string {
		return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %s}\nspec: {address: %s, %s}\n---\n", name, address, rest)
	}
	in := we("alone", "10.0.0.1", "labels: {app: alone, security.istio.io/tlsMode: istio}, serviceAccount: alone") +
		// One machine, several programs.
		we("a", "127.0.0.1", "labels: {app: a}, ports: {http: 8001}") +
		we("b", "127.0.0.1", "labels: {app: b}, serviceAccount: b") +
		we("c1", "127.0.0.1", "labels: {app: c}, ports: {http: 8003}") +
		we("c2", "127.0.0.1", "labels: {app: c}, ports: {http: 8003, grpc: 8004}") +
		we("d", "127.0.0.1", "labels: {app: d}, ports: {http: 8004}") +
		we("six", "'::1'", "labels: {app: six}") +
		"apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {selector: {app: b}, ports: [{port: 80, targetPort: 8002}]}\n---\n" +
		"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: {hosts: [e.example], resolution: STATIC, ports: [{name: http, number: 80, targetPort: 8005}], endpoints: [{address: 127.0.0.1, labels: {app: e}}, {address: 10.0.0.5, serviceAccount: e}]}\n"
	r := Build([]*File{Parse("f.yaml", []byte(in))}, nil)
	var unselected []string
	for line, name := range map[int]string{4: "alone", 9: "a", 19: "c1", 24: "c2", 29: "d", 34: "six"} {
		unselected = append(unselected, fmt.Sprintf("f.yaml:%d: WorkloadEntry default/%s: spec.labels: warning: no Service or ServiceEntry of namespace default selects this workload: no request is sent to it", line, name))
	}
	wantTexts(t, r.Problems, unselected...)
	for _, tt := range []struct {
		namespace, address string
		port               uint32
		want               string // labels app
	}{
		{"default", "10.0.0.1", 1, "alone"},
		{"default", "::ffff:10.0.0.1", 1, "alone"},
		{"prod", "10.0.0.1", 1, ""},
		{"default", "10.0.0.2", 1, ""},
		{"default", "127.0.0.1", 8001, "a"},
		{"default", "127.0.0.1", 8002, "b"},
		{"default", "127.0.0.1", 80, ""},
		{"default", "127.0.0.1", 8003, "c"},
		{"default", "127.0.0.1", 8004, "c d"},
		{"default", "127.0.0.1", 8005, "e"},
		{"default", "127.0.0.1", 9, ""},
		{"default", "10.0.0.5", 8005, ""}, // it has no label
		{"default", "0:0:0:0:0:0:0:1", 8005, "six"},
	} {
		var apps []string
		for _, w := range r.Set.WorkloadsAt(tt.namespace, tt.address, tt.port) {
			apps = append(apps, w.Labels["app"])
		}
		if got := strings.Join(apps, " "); got != tt.want {
			t.Errorf("%s %s %d: %q, want %q", tt.namespace, tt.address, tt.port, got, tt.want)
		}
	}
	w := r.Set.WorkloadsAt("default", "10.0.0.1", 1)[0]
	if account, known := w.Account(); !w.TakesMutualTLS() || !known || account.SPIFFEID("td") != "spiffe://td/ns/default/sa/alone" {
		t.Errorf("%v %v %v", w.TakesMutualTLS(), known, account)
	}
	w = r.Set.WorkloadsAt("default", "127.0.0.1", 8001)[0]
	if _, known := w.Account(); w.TakesMutualTLS() || known {
		t.Error("takes mutual TLS, or has an account, without saying so")
	}
	if w := r.Set.WorkloadsAt("default", "10.0.0.5", 1); len(w) != 1 || w[0].ServiceAccount != "e" {
		t.Errorf("%v", w)
	}
	accounts, all := r.Set.ServiceAccountsOf(r.Set.ServiceByHost("e.example"))
	if all || !slices.Equal(accounts, []ServiceAccount{{"default", "e"}}) {
		t.Errorf("accounts %v, all %v", accounts, all)
	}
	accounts, all = r.Set.ServiceAccountsOf(r.Set.ServiceByHost("b.default.svc.cluster.local"))
	if !all || !slices.Equal(accounts, []ServiceAccount{{"default", "b"}}) {
		t.Errorf("accounts %v, all %v", accounts, all)
	}
	accounts, all = r.Set.ServiceAccountsOf(&Service{})
	if !all || accounts != nil {
		t.Errorf("accounts %v, all %v", accounts, all)
	}
}

func TestServiceAccountsOf(t *testing.T) {
	s := &Set{}
	for _, name := range []string{"b", "a", "b"} {
		s.Workloads = append(s.Workloads, &Workload{Meta: Meta{Namespace: "n", Labels: map[string]string{"app": "x"}}, ServiceAccount: name})
	}
	got, all := s.ServiceAccountsOf(&Service{Meta: Meta{Namespace: "n"}, Selector: map[string]string{"app": "x"}})
	if !all || !slices.Equal(got, []ServiceAccount{{"n", "a"}, {"n", "b"}}) {
		t.Errorf("%v, all %v", got, all)
	}
}

// TestPeerAuthenticationDryRun: a dry run decides nothing, but shows what it would.
func TestPeerAuthenticationDryRun(t *testing.T) {
	dry := func(text string) string {
		return strings.Replace(text, "metadata: {", "metadata: {annotations: {istio.io/dry-run: 'true'}, ", 1)
	}
	for _, tt := range []struct {
		in             string
		mode, dry      string
		policy, dryPol string
	}{
		{dry(peers("d", "default", "", "STRICT")), "PERMISSIVE", "STRICT", "", "d"},
		{dry(peers("d", RootNamespace, "", "STRICT")), "PERMISSIVE", "STRICT", "", "d"},
		{peers("a", "default", "", "PERMISSIVE") + "---\n" + dry(peers("d", "default", "", "STRICT")), "PERMISSIVE", "STRICT", "a", "d"},
		{peers("a", "default", "pay", "DISABLE") + "---\n" + dry(peers("d", "default", "", "STRICT")), "DISABLE", "DISABLE", "a", "a"},
		{peers("a", "default", "pay", "DISABLE") + "---\n" + dry(peers("d", "default", "pay", "STRICT")), "DISABLE", "STRICT", "a", "d"},
		{peers("a", RootNamespace, "", "STRICT") + "---\n" + dry(peers("d", "default", "", "UNSET")), "STRICT", "STRICT", "a", "a"},
		{peers("a", "default", "", "STRICT") + "---\n" + dry(peers("d", "default", "pay", "DISABLE")), "STRICT", "DISABLE", "a", "d"},
		{strings.Replace(dry(peers("d", "default", "", "STRICT")), "'true'", "'false'", 1), "STRICT", "STRICT", "d", "d"},
	} {
		r := Build([]*File{Parse("f.yaml", []byte(tt.in))}, nil)
		name := func(p *PeerAuthentication) string {
			if p == nil {
				return ""
			}
			return p.Name
		}
		labels := map[string]string{"app": "pay"}
		mode, p := r.Set.PeerAuthenticationFor(labels, "default", 80)
		dryMode, dryP := r.Set.PeerAuthenticationDryRunFor(labels, "default", 80)
		if mode.String() != tt.mode || dryMode.String() != tt.dry || name(p) != tt.policy || name(dryP) != tt.dryPol {
			t.Errorf("%s: %v by %q, dry run %v by %q", tt.in, mode, name(p), dryMode, name(dryP))
		}
		said := slices.ContainsFunc(texts(r.Problems), func(s string) bool { return strings.Contains(s, "is evaluated, but refuses nothing") })
		if said != strings.Contains(tt.in, "'true'") || len(r.Problems) > 1 {
			t.Errorf("%s: %q", tt.in, texts(r.Problems))
		}
	}
}
