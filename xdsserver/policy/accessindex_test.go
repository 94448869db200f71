package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	security "istio.io/api/security/v1beta1"
	selectors "istio.io/api/type/v1beta1"
)

const (
	unset      = security.PeerAuthentication_MutualTLS_UNSET
	disable    = security.PeerAuthentication_MutualTLS_DISABLE
	permissive = security.PeerAuthentication_MutualTLS_PERMISSIVE
	strict     = security.PeerAuthentication_MutualTLS_STRICT
)

func selecting(app string) *selectors.WorkloadSelector {
	if app == "" {
		return nil
	}
	return &selectors.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
}

// peer makes a policy; ports are "port mode" pairs.
func peer(name, namespace, app string, mode Mode, ports map[uint32]Mode) *PeerAuthentication {
	spec := &security.PeerAuthentication{Selector: selecting(app)}
	if mode != unset {
		spec.Mtls = &security.PeerAuthentication_MutualTLS{Mode: mode}
	}
	for port, m := range ports {
		if spec.PortLevelMtls == nil {
			spec.PortLevelMtls = make(map[uint32]*security.PeerAuthentication_MutualTLS)
		}
		spec.PortLevelMtls[port] = &security.PeerAuthentication_MutualTLS{Mode: m}
	}
	return &PeerAuthentication{Meta{Kind: "PeerAuthentication", Name: name, Namespace: namespace}, spec}
}

func TestPeerAuthenticationFor(t *testing.T) {
	const root = RootNamespace
	for _, tt := range []struct {
		name  string
		in    []*PeerAuthentication
		mode  Mode // of app pay in default, port 80
		by    string
		other Mode // of app web in prod
	}{
		{"nothing is permissive", nil, permissive, "", permissive},
		{"the mesh's", []*PeerAuthentication{peer("m", root, "", strict, nil)}, strict, "m", strict},
		{"the namespace's before the mesh's", []*PeerAuthentication{peer("m", root, "", strict, nil), peer("n", "default", "", disable, nil)}, disable, "n", strict},
		{"the workload's before the namespace's", []*PeerAuthentication{peer("n", "default", "", disable, nil), peer("w", "default", "pay", strict, nil)}, strict, "w", permissive},
		{"another workload's", []*PeerAuthentication{peer("w", "default", "web", strict, nil), peer("v", "prod", "pay", strict, nil)}, permissive, "", permissive},
		{"unset takes the next", []*PeerAuthentication{peer("m", root, "", strict, nil), peer("n", "default", "", unset, nil), peer("w", "default", "pay", unset, nil)}, strict, "m", strict},
		{"unset everywhere", []*PeerAuthentication{peer("m", root, "", unset, nil), peer("n", "default", "", unset, nil)}, permissive, "", permissive},
		{"the port's before the workload's", []*PeerAuthentication{peer("w", "default", "pay", strict, map[uint32]Mode{80: disable})}, disable, "w", permissive},
		{"another port's", []*PeerAuthentication{peer("w", "default", "pay", strict, map[uint32]Mode{81: disable})}, strict, "w", permissive},
		{"a port's unset takes the workload's", []*PeerAuthentication{peer("w", "default", "pay", strict, map[uint32]Mode{80: unset})}, strict, "w", permissive},
		{"a port's unset takes the namespace's", []*PeerAuthentication{peer("n", "default", "", strict, nil), peer("w", "default", "pay", unset, map[uint32]Mode{80: unset})}, strict, "n", permissive},
		{"the mesh takes no selector", []*PeerAuthentication{peer("w", root, "pay", strict, map[uint32]Mode{80: strict})}, permissive, "", permissive},
		{"an empty selector is none", []*PeerAuthentication{{Meta{Name: "n", Namespace: "default"}, &security.PeerAuthentication{
			Selector: &selectors.WorkloadSelector{}, Mtls: &security.PeerAuthentication_MutualTLS{Mode: strict}}}}, strict, "n", permissive},
		{"the first counts, and no other", []*PeerAuthentication{peer("w", "default", "pay", unset, nil), peer("x", "default", "pay", strict, map[uint32]Mode{80: strict})}, permissive, "", permissive},
		{"the first of the mesh counts", []*PeerAuthentication{peer("m", root, "", disable, nil), peer("n", root, "", strict, nil)}, disable, "m", disable},
	} {
		s := &Set{PeerAuthentications: tt.in}
		mode, by := s.PeerAuthenticationFor(map[string]string{"app": "pay", "v": "1"}, "default", 80)
		name := ""
		if by != nil {
			name = by.Name
		}
		if mode != tt.mode || name != tt.by {
			t.Errorf("%s: %v by %q, want %v by %q", tt.name, mode, name, tt.mode, tt.by)
		}
		if mode, _ := s.PeerAuthenticationFor(map[string]string{"app": "web"}, "prod", 80); mode != tt.other {
			t.Errorf("%s: elsewhere %v, want %v", tt.name, mode, tt.other)
		}
	}
	s := &Set{PeerAuthentications: []*PeerAuthentication{peer("w", root, "pay", disable, map[uint32]Mode{80: disable}), peer("m", root, "", strict, nil)}}
	if mode, by := s.PeerAuthenticationFor(map[string]string{"app": "pay"}, root, 80); mode != strict || by.Name != "m" {
		t.Errorf("in the mesh's namespace: %v by %v", mode, by)
	}
}

// composed is the effective mode as Istio's documentation describes it, step by step
// and for unsorted policies.
func composed(all []*PeerAuthentication, labels map[string]string, namespace string, port uint32) Mode {
	older := func(p, q *PeerAuthentication) *PeerAuthentication {
		if p == nil || q.Created.Before(p.Created) {
			return q
		}
		return p
	}
	var mesh, own, workload *PeerAuthentication
	for _, p := range all {
		labelled := len(p.Spec.GetSelector().GetMatchLabels()) > 0
		switch {
		case !labelled && p.Namespace == RootNamespace:
			mesh = older(mesh, p)
		case !labelled && p.Namespace == namespace:
			own = older(own, p)
		case labelled && p.Namespace != RootNamespace && p.Namespace == namespace && labels["app"] == p.Spec.Selector.MatchLabels["app"]:
			workload = older(workload, p)
		}
	}
	mode := permissive
	for _, p := range []*PeerAuthentication{mesh, own, workload} {
		if p != nil && p.Spec.GetMtls().GetMode() != unset {
			mode = p.Spec.GetMtls().GetMode()
		}
	}
	if workload != nil {
		if m, ok := workload.Spec.PortLevelMtls[port]; ok && m.GetMode() != unset {
			mode = m.GetMode()
		}
	}
	return mode
}

func TestPeerAuthenticationAgainstOracle(t *testing.T) {
	draw := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[draw.IntN(len(from))] }
	modes := make(map[Mode]int)
	for range 3000 {
		good := make(map[Ref]*Object)
		var all []*PeerAuthentication
		for i := range draw.IntN(6) {
			p := peer(fmt.Sprintf("p%d", i), pick("default", "prod", RootNamespace), pick("", "", "pay", "web"), Mode(draw.IntN(4)),
				map[uint32]Mode{80: Mode(draw.IntN(4)), 81: Mode(draw.IntN(4))})
			// No two of one age: which comes first then is a matter of names.
			p.Created = time.Unix(int64(draw.IntN(1000)*10+i), 0)
			all = append(all, p)
			good[p.Ref()] = &Object{Meta: p.Meta, Spec: p.Spec}
		}
		set, _ := (&build{good: good}).assemble()
		for _, ns := range []string{"default", "prod", RootNamespace} {
			for _, app := range []string{"pay", "web"} {
				for _, port := range []uint32{80, 82} {
					labels := map[string]string{"app": app}
					got, _ := set.PeerAuthenticationFor(labels, ns, port)
					if want := composed(all, labels, ns, port); got != want {
						t.Fatalf("%s/%s:%d: %v, want %v, of %v", ns, app, port, got, want, all)
					}
					modes[got]++
				}
			}
		}
	}
	if modes[disable] < 100 || modes[strict] < 100 || modes[permissive] < 100 || len(modes) != 3 {
		t.Errorf("modes: %v", modes)
	}
}

func TestAuthorizationPoliciesFor(t *testing.T) {
	policy := func(name, namespace, app string, action security.AuthorizationPolicy_Action, dryRun string) *AuthorizationPolicy {
		m := Meta{Name: name, Namespace: namespace}
		if dryRun != "" {
			m.Annotations = map[string]string{dryRunAnnotation: dryRun}
		}
		return &AuthorizationPolicy{m, &security.AuthorizationPolicy{Selector: selecting(app), Action: action}}
	}
	const (
		allow, deny   = security.AuthorizationPolicy_ALLOW, security.AuthorizationPolicy_DENY
		audit, custom = security.AuthorizationPolicy_AUDIT, security.AuthorizationPolicy_CUSTOM
	)
	s := &Set{AuthorizationPolicies: []*AuthorizationPolicy{
		policy("a", "default", "", allow, ""), policy("b", "default", "pay", deny, "false"), policy("c", RootNamespace, "", allow, ""),
		policy("d", RootNamespace, "pay", deny, ""), policy("e", "prod", "", deny, ""), policy("f", "default", "web", custom, ""),
		policy("g", "default", "pay", audit, ""), policy("h", "default", "", custom, ""), policy("i", "default", "", allow, "true"),
		policy("j", RootNamespace, "", deny, "1"), policy("k", "default", "", deny, "perhaps"),
	}}
	show := func(a Authorization) string {
		var out []string
		for _, list := range [][]*AuthorizationPolicy{a.Custom, a.Audit, a.Deny, a.Allow, a.DryRunDeny, a.DryRunAllow} {
			text := ""
			for _, p := range list {
				text += p.Name
			}
			out = append(out, text)
		}
		return strings.Join(out, "|")
	}
	for _, tt := range []struct{ app, namespace, want string }{
		{"pay", "default", "h|g|dbk|ca|j|i"}, // a dry run that says neither true nor false is none
		{"web", "default", "fh||k|ca|j|i"},
		{"pay", "prod", "||de|c|j|"},
		{"pay", RootNamespace, "||d|c|j|"},
		{"", "elsewhere", "|||c|j|"},
	} {
		if got := show(s.AuthorizationPoliciesFor(map[string]string{"app": tt.app}, tt.namespace)); got != tt.want {
			t.Errorf("%s/%s: %s, want %s", tt.namespace, tt.app, got, tt.want)
		}
	}
	if got := show((&Set{}).AuthorizationPoliciesFor(nil, "default")); got != "|||||" {
		t.Errorf("without policy: %s", got)
	}
}

func TestRequestAuthenticationsFor(t *testing.T) {
	policy := func(name, namespace, app string, issuers ...string) *RequestAuthentication {
		spec := &security.RequestAuthentication{Selector: selecting(app)}
		for i, issuer := range issuers {
			spec.JwtRules = append(spec.JwtRules, &security.JWTRule{Issuer: issuer, JwksUri: fmt.Sprint(i)})
		}
		return &RequestAuthentication{Meta{Name: name, Namespace: namespace}, spec}
	}
	s := &Set{RequestAuthentications: []*RequestAuthentication{
		policy("a", "default", "pay", "z", "b", "b"), policy("b", RootNamespace, "", "b", "y"), policy("c", "prod", "", "a"), policy("d", "default", "web", "c"), policy("e", "default", ""),
	}}
	for _, tt := range []struct{ app, namespace, want string }{
		{"pay", "default", "b/b0 a/b1 a/b2 b/y1 a/z0"},
		{"web", "default", "b/b0 d/c0 b/y1"},
		{"pay", "prod", "c/a0 b/b0 b/y1"},
		{"", RootNamespace, "b/b0 b/y1"},
	} {
		var got []string
		for _, r := range s.RequestAuthenticationsFor(map[string]string{"app": tt.app}, tt.namespace) {
			got = append(got, r.Policy.Name+"/"+r.Rule.Issuer+r.Rule.JwksUri)
		}
		if want := strings.Fields(tt.want); !slices.Equal(got, want) {
			t.Errorf("%s/%s: %q, want %q", tt.namespace, tt.app, got, want)
		}
	}
}

func TestAccessWarnings(t *testing.T) {
	older := strings.Replace(peers("z", "prod", "pay", "STRICT"), "name: z", "name: z, creationTimestamp: 2025-01-01T00:00:00Z", 1)
	younger := strings.Replace(peers("a", "prod", "pay", "DISABLE"), "name: a", "name: a, creationTimestamp: 2026-01-01T00:00:00Z", 1)
	dry := strings.Replace(authz("d", "prod", "", goodRule), "name: d", "name: d, annotations: {istio.io/dry-run: 'true'}", 1)
	r := Build(files(map[string]string{
		"a.yaml": younger, "b.yaml": older, "c.yaml": peers("m", RootNamespace, "pay", "STRICT"), "d.yaml": peers("o", "prod", "", "STRICT"), "e.yaml": dry,
	}), nil)
	wantTexts(t, r.Problems,
		"a.yaml:4: PeerAuthentication prod/a: spec: warning: has no effect: PeerAuthentication prod/z (b.yaml:1) is older, or first by name, and decides",
		"c.yaml:4: PeerAuthentication istio-system/m: spec.selector: warning: has no effect: a PeerAuthentication of namespace istio-system takes no selector",
		"e.yaml:3: AuthorizationPolicy prod/d: metadata.annotations[istio.io/dry-run]: notice: is evaluated, but refuses nothing")
	if mode, by := r.Set.PeerAuthenticationFor(map[string]string{"app": "pay"}, "prod", 1); mode != strict || by.Name != "z" {
		t.Errorf("%v by %v, want STRICT by the older one", mode, by)
	}
}

// TestStrictWithoutLabel: who takes only mutual TLS must say so, or callers speak plaintext to it.
func TestStrictWithoutLabel(t *testing.T) {
	entry := func(name, labels string) string {
		return "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: " + name + ", namespace: prod}\nspec: {address: 10.0.0.1, labels: {" + labels + "}}\n---\n"
	}
	const labelled = ", security.istio.io/tlsMode: istio"
	mesh := map[string]string{
		"a.yaml": strings.Replace(kubeService("pay"), "name: pay", "name: pay, namespace: prod", 1),
		"b.yaml": entry("one", "app: pay") + entry("two", "app: pay"+labelled) + entry("other", "app: web"),
	}
	const text = "callers in the mesh send plaintext, which STRICT refuses, to workloads without the label security.istio.io/tlsMode=istio: "
	for _, tt := range []struct {
		name, policy string
		more         map[string]string
		want         string // "" for no warning
	}{
		{"strict", peers("p", "prod", "", "STRICT"), nil, "p.yaml:4: PeerAuthentication prod/p: spec.mtls.mode: warning: " + text + "prod/one"},
		{"strict for the workload", peers("p", "prod", "pay", "STRICT"), nil, "p.yaml:4: PeerAuthentication prod/p: spec.mtls.mode: warning: " + text + "prod/one"},
		{"strict for the mesh", peers("p", RootNamespace, "", "STRICT"), nil, "p.yaml:4: PeerAuthentication istio-system/p: spec.mtls.mode: warning: " + text + "prod/one"},
		{"strict at a port", strings.Replace(peers("p", "prod", "pay", "DISABLE"), "spec: {", "spec: {portLevelMtls: {80: {mode: STRICT}}, ", 1), nil,
			"p.yaml:4: PeerAuthentication prod/p: spec.portLevelMtls: warning: " + text + "prod/one"},
		{"strict at another port", strings.Replace(peers("p", "prod", "pay", "DISABLE"), "spec: {", "spec: {portLevelMtls: {81: {mode: STRICT}}, ", 1), nil, ""},
		{"for a workload that nobody calls", peers("p", "prod", "web", "STRICT"), nil, ""},
		{"permissive", peers("p", "prod", "", "PERMISSIVE"), nil, ""},
		{"elsewhere", peers("p", "default", "", "STRICT"), nil, ""},
		{"a dry run", strings.Replace(peers("p", "prod", "", "STRICT"), "name: p", "name: p, annotations: {istio.io/dry-run: 'true'}", 1), nil, ""},
		{"a rule that says how to call", peers("p", "prod", "", "STRICT"),
			map[string]string{"c.yaml": "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: prod}\nspec: {host: pay, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n"}, ""},
		{"a rule that says it of another port", peers("p", "prod", "", "STRICT"),
			map[string]string{"c.yaml": "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: prod}\nspec: {host: pay, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}}]}}\n"},
			"p.yaml:4: PeerAuthentication prod/p: spec.mtls.mode: warning: " + text + "prod/one"},
		{"many workloads", peers("p", "prod", "", "STRICT"),
			map[string]string{"c.yaml": entry("w3", "app: pay") + entry("w4", "app: pay") + entry("w5", "app: pay")},
			"p.yaml:4: PeerAuthentication prod/p: spec.mtls.mode: warning: " + text + "prod/one, prod/w3, prod/w4 and 1 more"},
		{"an endpoint of a ServiceEntry", peers("p", "prod", "", "STRICT"), map[string]string{"b.yaml": "# none\n",
			"c.yaml": "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: prod}\nspec: {hosts: [e.mesh], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.0.0.7}]}\n"},
			"p.yaml:4: PeerAuthentication prod/p: spec.mtls.mode: warning: " + text + "10.0.0.7 of e.mesh"},
		{"an endpoint outside the mesh", peers("p", "prod", "", "STRICT"), map[string]string{"b.yaml": "# none\n",
			"c.yaml": "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: prod}\nspec: {hosts: [e.mesh], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.0.0.7}]}\n"}, ""},
	} {
		in := maps.Clone(mesh)
		in["p.yaml"] = tt.policy
		maps.Copy(in, tt.more)
		r := Build(parseAll(in), nil)
		got := ""
		for _, p := range r.Problems {
			switch {
			case p.Severity == Error:
				t.Errorf("%s: %s", tt.name, p)
			case strings.Contains(p.Message, "plaintext"):
				got += p.String()
			}
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestIssuerWithoutKeys: nobody asks an issuer where its keys are.
func TestIssuerWithoutKeys(t *testing.T) {
	const head = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: x}\nspec:\n  jwtRules:\n  - issuer: good\n    jwksUri: https://a.example/keys\n"
	r := Build(parseAll(map[string]string{"a.yaml": head + "  - forwardOriginalToken: true\n    issuer: https://issuer.example\n"}), nil)
	wantTexts(t, r.Problems,
		"a.yaml:1: RequestAuthentication default/x: notice: restricts access in a way that is not known: every workload of namespace default is not served its inbound listener",
		"a.yaml:9: RequestAuthentication default/x: spec.jwtRules[1].issuer: has no keys: Istio would fetch the issuer's OpenID Connect discovery document to find them, the mesh does not: give jwksUri")
	if r := Build(parseAll(map[string]string{"a.yaml": head}), nil); len(r.Problems) > 0 {
		t.Errorf("%q", texts(r.Problems))
	}
}
