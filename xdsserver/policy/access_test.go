package policy

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

func authz(name, namespace, app, rest string) string {
	selector := ""
	if app != "" {
		selector = "  selector: {matchLabels: {app: " + app + "}}\n"
	}
	return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: %s}\nspec:\n%s  %s\n", name, namespace, selector, rest)
}

func peers(name, namespace, app, mode string) string {
	selector := ""
	if app != "" {
		selector = ", selector: {matchLabels: {app: " + app + "}}"
	}
	return fmt.Sprintf("apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: %s, namespace: %s}\nspec: {mtls: {mode: %s}%s}\n", name, namespace, mode, selector)
}

const (
	goodRule = "rules: [{from: [{source: {namespaces: [a]}}]}]"
	badRule  = "rules: [{from: [{sauce: {namespaces: [a]}}]}]"
)

// accessInForce lists the access objects of a set with what tells their versions apart.
func accessInForce(s *Set) []string {
	var out []string
	for _, p := range s.PeerAuthentications {
		out = append(out, "peer "+p.Name+" "+p.Spec.GetMtls().GetMode().String())
	}
	for _, p := range s.AuthorizationPolicies {
		text := "authz " + p.Name
		for _, r := range p.Spec.GetRules() {
			for _, f := range r.GetFrom() {
				text += " " + strings.Join(f.GetSource().GetNamespaces(), ",")
			}
		}
		out = append(out, text)
	}
	for _, p := range s.RequestAuthentications {
		out = append(out, "request "+p.Name)
	}
	for _, p := range s.Servers {
		out = append(out, fmt.Sprintf("server %s %d%s", p.Name, p.Spec.Port, p.Spec.PortName))
	}
	for _, p := range s.RateLimits {
		out = append(out, fmt.Sprintf("limit %s %d", p.Name, p.Spec.Total))
	}
	if s.MeshConfig != nil {
		out = append(out, "mesh "+s.MeshConfig.TrustDomain())
	}
	slices.Sort(out)
	return out
}

// withheldOf lists the workloads, of a few, that are withheld: "namespace/app".
func withheldOf(s *Set) []string {
	var out []string
	for _, ns := range []string{"default", "prod"} {
		for _, app := range []string{"pay", "web"} {
			if reason, withheld := s.Withheld(map[string]string{"app": app, "v": "1"}, ns); withheld {
				if reason == "" {
					reason = "no reason"
				}
				out = append(out, ns+"/"+app)
			} else if reason != "" {
				out = append(out, "a reason without effect: "+reason)
			}
		}
	}
	return out
}

func parseAll(texts map[string]string) []*File {
	var out []*File
	for name, text := range texts {
		if text == "unreadable" {
			out = append(out, Unreadable(name, os.ErrPermission))
			continue
		}
		out = append(out, Parse(name, []byte(text)))
	}
	return out
}

// TestOtherAccess: what restricts access in a way that is not enforced is refused, and
// withholds the workloads of its namespace.
func TestOtherAccess(t *testing.T) {
	in := map[string]string{
		"a.yaml": "apiVersion: security.istio.io/v1\nkind: Else\nmetadata: {nmae: x}\n",
		"b.yaml": "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: l, namespace: prod}\n",
		"c.yaml": "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {name: t}\n",
		// Not the Linkerd object of the same kind and name.
		"d.yaml": authz("l", "prod", "pay", goodRule),
	}
	r := Build(parseAll(in), nil)
	const withheld = "notice: restricts access in a way that is not known: every workload of namespace "
	wantTexts(t, r.Problems,
		"a.yaml:2: Else default/(no name): kind: security.istio.io/v1 Else: this kind of object is not known",
		"a.yaml:3: Else default/(no name): metadata.nmae: unknown field; did you mean name?",
		"a.yaml:3: Else default/(no name): metadata.name: required",
		"a.yaml:1: Else default/(no name): "+withheld+"default is not served its inbound listener",
		"b.yaml:2: AuthorizationPolicy prod/l: kind: policy.linkerd.io/v1alpha1 AuthorizationPolicy: the mesh does not enforce this kind of object: use an AuthorizationPolicy of security.istio.io",
		"b.yaml:1: AuthorizationPolicy prod/l: "+withheld+"prod is not served its inbound listener",
		"c.yaml:2: TrafficTarget default/t: kind: access.smi-spec.io/v1alpha3 TrafficTarget: the mesh does not enforce this kind of object: use an AuthorizationPolicy of security.istio.io",
		"c.yaml:1: TrafficTarget default/t: "+withheld+"default is not served its inbound listener",
	)
	if got := accessInForce(r.Set); !slices.Equal(got, []string{"authz l a"}) {
		t.Errorf("in force: %q", got)
	}
}

func TestAccessAccepted(t *testing.T) {
	for _, in := range []string{
		`apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: payment-policy
  namespace: default
spec:
  selector:
    matchLabels:
      app: payment-service
  rules:
    - from:
        - source:
            principals:
              - "cluster.local/ns/default/sa/checkout-service"
              - "cluster.local/ns/default/sa/refund-service"
`,
		peers("default", "istio-system", "", "PERMISSIVE"),
		peers("default", "istio-system", "", "STRICT"),
		"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec: {selector: {matchLabels: {app: pay}}, portLevelMtls: {8080: {mode: DISABLE}, '9090': {mode: STRICT}, 7070: null}}\n",
		authz("nothing", "default", "", "{}"),
		authz("audit", "default", "", "action: AUDIT"),
		authz("all", "default", "", "{action: DENY, rules: [{}]}"),
		`apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt}
spec:
  jwtRules:
  - issuer: https://issuer.example
    jwksUri: https://issuer.example/keys
    audiences: [a, b]
    fromHeaders: [{name: x-token, prefix: "Token "}]
    fromParams: [token]
    fromCookies: [session]
    forwardOriginalToken: true
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{header: x-sub, claim: sub}]
    timeout: 5s
    spaceDelimitedClaims: [roles]
  - issuer: inline
    jwks: '{"keys": []}'
`,
	} {
		r := Build(files(map[string]string{"f.yaml": in}), nil)
		wantTexts(t, r.Problems)
		if len(accessInForce(r.Set)) != 1 || r.Set.Broken != nil {
			t.Errorf("%s: in force %q, broken %v", in, accessInForce(r.Set), r.Set.Broken)
		}
	}
}

func TestAccessProblems(t *testing.T) {
	ap := func(spec string) string { return authz("x", "default", "", spec) }
	ra := func(r string) string {
		return "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: x}\nspec:\n  jwtRules: [{issuer: i, " + r + "}]\n"
	}
	pa := func(spec string) string {
		return "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec:\n  " + spec + "\n"
	}
	when := func(c string) string { return ap("rules: [{when: [{" + c + "}]}]") }
	to := func(op string) string { return ap("rules: [{to: [{operation: {" + op + "}}]}]") }
	const rsa = `{"kty": "RSA", "e": "AQAB", "n": "xAE7eB6qugXyCAG3yhh7pkDkT65pHymX"`
	for _, tt := range []struct{ in, field, text string }{ // of one of at most two errors; "" = none
		{ap("rules: [{from: [{source: {principals: [a, '']}}]}]"), "spec.rules[0].from[0].source.principals[1]", "must not be empty"},
		{ap("rules: [{from: [{source: {serviceAccounts: ['a/b/c']}}]}]"), "spec.rules[0].from[0].source.serviceAccounts[0]", "neither"},
		{ap("rules: [{from: [{source: {serviceAccounts: ['a/*']}}]}]"), "spec.rules[0].from[0].source.serviceAccounts[0]", "no wildcard"},
		{ap("rules: [{from: [{source: {serviceAccounts: ['/b']}}]}]"), "spec.rules[0].from[0].source.serviceAccounts[0]", "neither"},
		{ap("rules: [{from: [{source: {serviceAccounts: ['b/']}}]}]"), "spec.rules[0].from[0].source.serviceAccounts[0]", "neither"},
		{ap("rules: [{from: [{source: {serviceAccounts: [" + strings.Repeat("a,", 17) + "]}}]}]"), "spec.rules[0].from[0].source.serviceAccounts", "at most 16"},
		{ap("rules: [{from: [{source: {serviceAccounts: [a], notNamespaces: [b]}}]}]"), "spec.rules[0].from[0].source", "together"},
		{ap("rules: [{from: [{source: {serviceAccounts: [a], trustDomains: [b]}}]}]"), "", ""},
		{ap("rules: [{from: [{source: {notRemoteIpBlocks: [10.0.0.0/33]}}]}]"), "spec.rules[0].from[0].source.notRemoteIpBlocks[0]", "not a block"},
		{ap("rules: [null]"), "spec.rules[0]", "must have a value"},
		{ap("{action: DENY}"), "spec.rules", "never applies"},
		{ap("{action: DENIED, rules: [{}]}"), "spec.action", "ALLOW, DENY, AUDIT, CUSTOM"},
		{ap("{action: 7}"), "spec.action", "not an action"},
		{ap("{action: CUSTOM, rules: [{}]}"), "spec.provider.name", "required"},
		{ap("targetRef: {kind: Service, name: x}"), "spec.targetRef", "mesh does not enforce"},
		{ap("targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: x}]"), "spec.targetRefs", "mesh does not enforce"},
		{to("paths: ['/a/{*}/{**}', '/{*}', 'plain*', '*plain', '/a*b']"), "", ""},
		{to("paths: ['/{**}/a']"), "", ""},
		{to("paths: ['/{**}/a/{*}']"), "spec.rules[0].to[0].operation.paths[0]", "last operator"},
		{to("paths: ['/{name}']"), "spec.rules[0].to[0].operation.paths[0]", "braces"},
		{to("notPaths: ['/a{*}']"), "spec.rules[0].to[0].operation.notPaths[0]", "braces"},
		{to("notPaths: ['/{*}/a*']"), "spec.rules[0].to[0].operation.notPaths[0]", "in a template"},
		{to("ports: ['65536']"), "spec.rules[0].to[0].operation.ports[0]", "not a port"},
		{to("ports: [80]"), "spec.rules[0].to[0].operation.ports[0]", "quotes"},
		{to("hostz: [a]"), "spec.rules[0].to[0].operation.hostz", "did you mean hosts?"},
		{when("key: 'request.headers[x]', values: [a]"), "", ""},
		{when("key: 'request.auth.claims[a][b]', notValues: [a]"), "", ""},
		{when("key: source.trustDomain, notValues: [a]"), "", ""},
		{when("key: 'request.headers', values: [a]"), "spec.rules[0].when[0].key", "not an attribute"},
		{when("key: 'request.headers[]', values: [a]"), "spec.rules[0].when[0].key", "not an attribute"},
		{when("key: 'request.headersx[a]', values: [a]"), "spec.rules[0].when[0].key", "not an attribute"},
		{when("key: destination.user, values: [a]"), "spec.rules[0].when[0].key", "not an attribute"},
		{when("key: 'source.ip[a]', values: [10.0.0.1]"), "spec.rules[0].when[0].key", "not an attribute"},
		{when("values: [a]"), "spec.rules[0].when[0].key", "required"},
		{when("key: source.principal"), "spec.rules[0].when[0]", "values or notValues"},
		{when("key: destination.port, values: [http]"), "spec.rules[0].when[0].values[0]", "not a port"},
		{when("key: source.serviceAccount, values: ['*']"), "spec.rules[0].when[0].values[0]", "no wildcard"},
		{when("key: 'experimental.envoy.filters.a[b]', values: [a]"), "spec.rules[0].when[0].key", "mesh does not enforce"},
		{when("key: 'request.experimental.inline.headers[b]', values: [a]"), "spec.rules[0].when[0].key", "mesh does not enforce"},
		{strings.Replace(ap(goodRule), "metadata: {", "metadata: {annotations: {istio.io/dry-run: 'yes'}, ", 1), "metadata.annotations[istio.io/dry-run]", "neither"},
		{strings.Replace(ap("{action: AUDIT}"), "metadata: {", "metadata: {annotations: {istio.io/dry-run: 'true'}, ", 1), "metadata.annotations[istio.io/dry-run]", "AUDIT"},
		{strings.Replace(pa("mtls: {mode: STRICT}"), "metadata: {", "metadata: {annotations: {istio.io/dry-run: 'yes'}, ", 1), "metadata.annotations[istio.io/dry-run]", "neither"},
		{strings.Replace(ra("jwksUri: 'https://a/'"), "metadata: {", "metadata: {annotations: {istio.io/dry-run: 'true'}, ", 1), "metadata.annotations[istio.io/dry-run]", "only an AuthorizationPolicy"},
		{ap("{action: CUSTOM, provider: {name: ext}, rules: [{}]}"), "spec.provider.name", "no extensionProvider \"ext\""},
		{strings.Replace(ap(goodRule), "/v1", "/v1alpha1", 1), "apiVersion", "use v1 or v1beta1"},
		{pa("mtls: {mode: STRICKT}"), "spec.mtls.mode", "UNSET, DISABLE, PERMISSIVE, STRICT"},
		{pa("mtls: {mode: 9}"), "spec.mtls.mode", "not a mode"},
		{pa("{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: STRICT}}}"), "spec.portLevelMtls[0]", "between 1 and 65535"},
		{pa("{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: STRICT}, 080: {mode: DISABLE}}}"), "spec.portLevelMtls[080]", "given twice"},
		{pa("portLevelMtls: {80: {mode: STRICT}}"), "spec.portLevelMtls", "needs a selector"},
		{pa("selector: {matchLabels: {a: 'b*'}}"), "spec.selector.matchLabels[a]", "no wildcard"},
		{ra("jwksUri: 'ftp://a'"), "spec.jwtRules[0].jwksUri", "http"},
		{ra("jwksUri: 'https://user:secret@a/'"), "spec.jwtRules[0].jwksUri", "without a user name"},
		{ra("jwksUri: 'https:///keys'"), "spec.jwtRules[0].jwksUri", "a host"},
		{ra("jwks: 'secret'"), "spec.jwtRules[0].jwks", "not a set"},
		{ra("jwks: '{\"keys\": [{\"kty\": \"XYZ\", \"d\": \"secret\"}]}'"), "spec.jwtRules[0].jwks", "index 0"},
		{ra("jwks: '" + rsa + "}'"), "spec.jwtRules[0].jwks", "a set of keys"},
		{ra("jwks: '{\"keys\": [" + rsa + "}]}'"), "", ""},
		{ra("jwks: '{\"keys\": [" + rsa + "}]}', jwksUri: 'https://a/'"), "spec.jwtRules[0].jwks", "together with jwksUri"},
		{ra("fromHeaders: [{name: 'a b'}]"), "spec.jwtRules[0].fromHeaders[0].name", "name of a header"},
		{ra("outputPayloadToHeader: ':path'"), "spec.jwtRules[0].outputPayloadToHeader", "name of a header"},
		{ra("outputClaimToHeaders: [{header: ':path', claim: sub}]"), "spec.jwtRules[0].outputClaimToHeaders[0].header", "name of a header"},
		{ra("fromCookies: ['']"), "spec.jwtRules[0].fromCookies[0]", "must not be empty"},
		{ra("timeout: 10us"), "spec.jwtRules[0].timeout", "1ms"},
		{ra("presence: MANDATORY"), "spec.jwtRules[0].presence", "unknown field"},
	} {
		in := tt.in
		r := Build(files(map[string]string{"f.yaml": in}), nil)
		var found []Problem
		for _, p := range r.Problems {
			if p.Severity == Error {
				found = append(found, p)
			}
			if strings.Contains(p.String(), "secret") {
				t.Errorf("%s: repeats what may be a secret: %s", in, p)
			}
		}
		at := slices.IndexFunc(found, func(p Problem) bool {
			return p.Field == tt.field && strings.Contains(p.Message, tt.text) && p.At.Line > 0
		})
		if tt.field == "" && len(found) > 0 || tt.field != "" && at < 0 || len(found) > 2 {
			t.Errorf("%s: %q, want %s: %s", in, texts(found), tt.field, tt.text)
		}
		// What is refused is withheld, what is not is in force.
		if (len(r.Set.Broken) > 0) != (tt.field != "") || (len(accessInForce(r.Set)) == 0) != (tt.field != "") {
			t.Errorf("%s: in force %q, broken %v", in, accessInForce(r.Set), r.Set.Broken)
		}
	}
}

// TestHollowFields: protobuf does not tell an empty list from none, but in a rule that
// is the difference between nobody and everybody.
func TestHollowFields(t *testing.T) {
	for _, tt := range []struct {
		spec     string
		field    string
		severity Severity
	}{
		{"rules: [{to: []}]", "spec.rules[0].to", Error},
		{"rules: [{from: []}]", "spec.rules[0].from", Error},
		{"rules: [{from: null}]", "spec.rules[0].from", Warning},
		{"rules: [{when: []}]", "spec.rules[0].when", Warning},
		{"rules: [{from: [{source: {principals: [], namespaces: [a]}}]}]", "spec.rules[0].from[0].source.principals", Warning},
		{"rules: [{from: [{source: {principals: []}}]}]", "spec.rules[0].from[0].source", Error},
	} {
		r := Build(files(map[string]string{"f.yaml": authz("x", "default", "", tt.spec)}), nil)
		if !slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Field == tt.field && p.Severity == tt.severity && p.At.Line == 5 }) {
			t.Errorf("%s: %q, want %s of %s", tt.spec, texts(r.Problems), tt.severity, tt.field)
		}
	}
	in := "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec: {selector: {matchLabels: {foo: bar}}, portLevelMtls: {}}\n"
	wantTexts(t, Build(files(map[string]string{"f.yaml": in}), nil).Problems,
		"f.yaml:4: PeerAuthentication default/x: spec.portLevelMtls: must not be empty",
		"f.yaml:1: PeerAuthentication default/x: notice: restricts access in a way that is not known: every workload of namespace default with the labels foo=bar is not served its inbound listener")
}

// TestWithheld runs steps over the files of a folder, each also after a restart with
// the stored state: what is in force, and whose inbound listeners are withheld.
func TestWithheld(t *testing.T) {
	type step struct {
		files    map[string]string
		want     []string
		withheld []string
	}
	all := []string{"default/pay", "default/web", "prod/pay", "prod/web"}
	one := func(text string) map[string]string { return map[string]string{"a.yaml": text} }
	good := authz("p", "default", "pay", goodRule)
	bad := authz("p", "default", "pay", badRule)
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"broken from the start, by labels", []step{
			{one(bad), nil, []string{"default/pay"}},
			{one(good), []string{"authz p a"}, nil},
			{one(bad), []string{"authz p a"}, nil},
			{one("# gone\n"), nil, nil},
			{one(bad), nil, []string{"default/pay"}},
		}},
		{"its siblings move on", []step{
			{one(bad + "---\n" + peers("m", "prod", "", "STRICT")), []string{"peer m STRICT"}, []string{"default/pay"}},
			{one(bad + "---\n" + peers("m", "prod", "", "DISABLE")), []string{"peer m DISABLE"}, []string{"default/pay"}},
		}},
		{"by namespace", []step{{one(authz("p", "prod", "", badRule)), nil, []string{"prod/pay", "prod/web"}}}},
		{"a selector that can not be read", []step{{one(strings.Replace(bad, "matchLabels:", "matchLables:", 1)), nil, []string{"default/pay", "default/web"}}}},
		{"a label that can not be read", []step{{one(strings.Replace(bad, "app: pay", "app: 1", 1)), nil, []string{"default/pay", "default/web"}}}},
		{"a label with a wildcard", []step{{one(authz("p", "default", "'pay*'", goodRule)), nil, []string{"default/pay", "default/web"}}}},
		{"two selectors", []step{{one(authz("p", "default", "x}, match_labels: {app: web", goodRule)), nil, []string{"default/pay", "default/web"}}}},
		{"a selector that is misspelt", []step{{one(strings.Replace(bad, "selector:", "selctor:", 1)), nil, []string{"default/pay", "default/web"}}}},
		{"a target beside the selector", []step{{one(authz("p", "default", "pay", "targetRef: {kind: Service, name: web}")), nil, []string{"default/pay", "default/web"}}}},
		{"a namespace that can not be read", []step{{one(strings.Replace(bad, "namespace: default", "namespace: [x]", 1)), nil, []string{"default/pay", "prod/pay"}}}},
		{"the mesh's namespace, by labels", []step{{one(authz("p", RootNamespace, "pay", badRule)), nil, []string{"default/pay", "prod/pay"}}}},
		{"the mesh's namespace", []step{{one(peers("p", RootNamespace, "", "STRIKT")), nil, all}}},
		{"what has no effect anyway", []step{{one(peers("p", RootNamespace, "pay", "STRIKT")), nil, nil}}},
		{"no name", []step{
			{one(strings.Replace(bad, "name: p, ", "", 1)), nil, []string{"default/pay"}},
			{one(good), []string{"authz p a"}, nil},
			{one(strings.Replace(good, "name: p, ", "", 1)), []string{"authz p a"}, nil},
			{one(good + "---\n" + strings.Replace(authz("", "prod", "web", goodRule), "name: , ", "", 1)), []string{"authz p a"}, []string{"prod/web"}},
		}},
		{"no kind", []step{
			{one(strings.Replace(good, "kind: AuthorizationPolicy\n", "", 1)), nil, []string{"default/pay", "default/web"}},
			{one(good), []string{"authz p a"}, nil},
			{one(strings.Replace(good, "kind: AuthorizationPolicy\n", "", 1)), []string{"authz p a"}, nil},
		}},
		{"no version", []step{{one(strings.Replace(good, "apiVersion: security.istio.io/v1\n", "", 1)), nil, []string{"default/pay", "default/web"}}}},
		{"a kind that is not known", []step{
			{one(strings.Replace(good, "kind: AuthorizationPolicy", "kind: AuthorisationPolicy", 1)), nil, []string{"default/pay", "default/web"}},
			{one(good), []string{"authz p a"}, nil},
			{one(strings.Replace(good, "kind: AuthorizationPolicy", "kind: AuthorisationPolicy", 1)), []string{"authz p a"}, nil},
		}},
		{"a group that is not known", []step{
			{one(strings.Replace(good, "security.istio.io", "security.istio.oi", 1)), nil, []string{"default/pay", "default/web"}},
			{one(good), []string{"authz p a"}, nil},
			{one(strings.Replace(good, "security.istio.io", "security.istio.oi", 1)), []string{"authz p a"}, nil},
		}},
		{"text that can not be read", []step{
			{one(strings.Replace(good, "rules: [{", "rules: [[{", 1)), nil, all},
			{one(good), []string{"authz p a"}, nil},
			{one(strings.Replace(good, "rules: [{", "rules: [[{", 1)), []string{"authz p a"}, nil},
			{one(good + "---\n" + strings.Replace(good, "rules: [{", "rules: [[{", 1)), []string{"authz p a"}, all},
			{one(strings.Repeat("---\n"+strings.Replace(good, "rules: [{", "rules: [[{", 1), 2)), []string{"authz p a"}, all},
		}},
		{"text that can not be read, of one namespace", []step{
			{one("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: prod\nspec: [\n"), nil, []string{"prod/pay", "prod/web"}},
		}},
		{"text that can not be read, of the mesh's namespace", []step{
			{one("apiVersion: security.istio.io/v1\nmetadata:\n  namespace: istio-system\nspec: [\n"), nil, all},
		}},
		{"text that can not be read, of more than one namespace", []step{
			{one("apiVersion: security.istio.io/v1\nmetadata:\n  namespace: prod\nspec: [\n---\n"), nil, []string{"prod/pay", "prod/web"}},
			{one("apiVersion: security.istio.io/v1\nmetadata:\n  namespace: prod\n  labels: {namespace: x}\nspec: [\n"), nil, all},
			{one("- apiVersion: security.istio.io/v1\n  metadata:\n    namespace: prod\n- apiVersion: security.istio.io/v1\n  metadata: {name: x}\n"), nil, all},
		}},
		{"text that can not be read, and does not restrict", []step{{one("apiVersion: v1\nkind: Service\nspec: [\n"), nil, nil}}},
		{"a list that can not be read", []step{{one("apiVersion: v1\nkind: List\nitems: {apiVersion: security.istio.io/v1}\n"), nil, all}}},
		{"in a list", []step{{one("apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(bad), "\n", "\n  ") + "\n"), nil, []string{"default/pay"}}}},
		{"what is broken stays so while its file can not be read", []step{
			{one(bad), nil, []string{"default/pay"}},
			{one(""), nil, []string{"default/pay"}},
			{one("{["), nil, []string{"default/pay"}},
			{one(authz("q", "default", "pay", goodRule) + "---\n{["), []string{"authz q a"}, []string{"default/pay"}},
			{one(good + "---\n{["), []string{"authz p a", "authz q a"}, nil},
			{one("# gone\n"), nil, nil},
			{one(""), nil, nil},
		}},
		{"an empty file says nothing, and loses nothing", []step{
			{one(""), nil, nil},
			{one(good), []string{"authz p a"}, nil},
			{one(""), []string{"authz p a"}, nil},
		}},
		{"a file that never could be read", []step{
			{map[string]string{"a.yaml": good, "dir": "unreadable"}, []string{"authz p a"}, all},
			{map[string]string{"a.yaml": good, "dir": "unreadable"}, []string{"authz p a"}, all},
			{map[string]string{"a.yaml": good, "dir/x.yaml": kubeService("x")}, []string{"authz p a"}, nil},
			{map[string]string{"a.yaml": good, "dir": "unreadable"}, []string{"authz p a"}, nil},
		}},
		{"a file that can not be read any more, and a new one", []step{
			{map[string]string{"dir/a.yaml": good}, []string{"authz p a"}, nil},
			{map[string]string{"dir/a.yaml": "unreadable", "b.yaml": "unreadable"}, []string{"authz p a"}, nil},
			{map[string]string{"dir": "unreadable"}, []string{"authz p a"}, nil},
			{nil, nil, nil},
		}},
		{"given twice", []step{
			{map[string]string{"a.yaml": good, "b.yaml": good}, []string{"authz p a"}, nil},
			{map[string]string{"a.yaml": good, "b.yaml": strings.Replace(good, "[a]", "[b]", 1)}, []string{"authz p a"}, nil},
			{map[string]string{"a.yaml": strings.Replace(good, "[a]", "[c]", 1), "b.yaml": strings.Replace(good, "[a]", "[b]", 1)}, []string{"authz p a"}, nil},
			{map[string]string{"b.yaml": strings.Replace(good, "[a]", "[b]", 1)}, []string{"authz p b"}, nil},
		}},
		{"given twice from the start", []step{
			{map[string]string{"a.yaml": good, "b.yaml": authz("p", "default", "web", goodRule)}, nil, []string{"default/pay", "default/web"}},
			{map[string]string{"a.yaml": good, "b.yaml": strings.Replace(good, "metadata: {", "metadata: {annotations: {istio.io/dry-run: 'true'}, ", 1)}, nil, []string{"default/pay"}},
		}},
		{"the settings of the mesh", []step{
			{one(settings("trustDomian: a")), nil, all},
			{one(settings("trustDomain: a")), []string{"mesh a"}, nil},
			{one(settings("trustDomian: b")), []string{"mesh a"}, nil},
			{one(settings("trustDomain: [")), []string{"mesh a"}, nil},
			{one(strings.Replace(settings("trustDomain: b"), "data:", "data: [", 1)), []string{"mesh a"}, nil},
			{map[string]string{"a.yaml": settings("trustDomain: a"), "b.yaml": settings("trustDomain: b")}, []string{"mesh a"}, nil},
			{one("# gone\n"), nil, nil},
			{map[string]string{"a.yaml": settings("trustDomain: a"), "b.yaml": settings("trustDomain: b")}, nil, all},
		}},
		{"limits", []step{
			{one(limit("l", "web", "total: {rps: 1}")), nil, []string{"default/pay", "default/web"}},
			{one(limit("l", "web", "total: {requestsPerSecond: 1}")), []string{"limit l 1"}, nil},
			{one(limit("l", "web", "total: {rps: 1}")), []string{"limit l 1"}, nil},
			{one(limit("l", "web", "total: {requestsPerSecond: 2}")), []string{"limit l 2"}, nil},
			{one(strings.Replace(limit("l", "web", "total: {requestsPerSecond: 2}"), "name: l", "nmae: l", 1)), []string{"limit l 2"}, nil},
			{one("# gone\n"), nil, nil},
		}},
		{"a server", []step{
			{one(server("s", "{podSelector: {matchLabels: {app: pay}}, port: 80}")), nil, []string{"default/pay"}},
			{one(server("s", "{accessPolicy: all-unauthenticated, podSelector: {matchLabels: {app: pay}}, port: 80}")), []string{"server s 80"}, nil},
			{one(server("s", "{podSelector: {matchLabels: {app: pay}}, port: 80}")), []string{"server s 80"}, nil},
		}},
		{"a Linkerd object without a kind", []step{{one("apiVersion: policy.linkerd.io/v1beta3\nmetadata: {name: s, namespace: prod}\n"), nil, []string{"prod/pay", "prod/web"}}}},
		{"a custom authorizer that is not there", []step{
			{one(authz("p", "default", "pay", "action: CUSTOM\n  provider: {name: x}\n  rules: [{}]")), nil, []string{"default/pay"}},
			{one(authz("p", "default", "pay", goodRule)), []string{"authz p a"}, nil},
			{one(authz("p", "default", "pay", "action: CUSTOM\n  provider: {name: x}\n  rules: [{}]")), []string{"authz p a"}, nil},
		}},
		{"what is accepted does not count while its group is not enforced", []step{
			{one("apiVersion: networking.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n"), nil, []string{"default/pay", "default/web"}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r *Result
			for i, s := range tt.steps {
				before := r
				for _, restarted := range []bool{true, false} {
					previous := before
					if restarted && before != nil {
						state, err := before.AccessState()
						if err != nil {
							t.Fatal(err)
						}
						if previous, err = RestoreAccess(state); err != nil {
							t.Fatal(err)
						}
					}
					r = Build(parseAll(s.files), previous)
					if got := accessInForce(r.Set); !slices.Equal(got, s.want) {
						t.Errorf("step %d, restarted %v: in force %q, want %q\n%q", i, restarted, got, s.want, texts(r.Problems))
					}
					if got := withheldOf(r.Set); !slices.Equal(got, s.withheld) {
						t.Errorf("step %d, restarted %v: withheld %q, want %q\n%q", i, restarted, got, s.withheld, texts(r.Problems))
					}
					for _, b := range r.Set.Broken {
						if b.At.File == "" || !strings.Contains(b.Reason, b.At.File) {
							t.Errorf("step %d: %+v does not say where", i, b)
						}
					}
				}
			}
		})
	}
}

func TestSelects(t *testing.T) {
	for _, tt := range []struct {
		broken    Broken
		labels    map[string]string
		namespace string
		want      bool
	}{
		{Broken{}, nil, "x", true},
		{Broken{Namespace: "x"}, nil, "x", true},
		{Broken{Namespace: "x"}, nil, "y", false},
		{Broken{Labels: map[string]string{"a": "1"}}, map[string]string{"a": "1", "b": "2"}, "x", true},
		{Broken{Labels: map[string]string{"a": "1"}}, map[string]string{"a": "2"}, "x", false},
		{Broken{Labels: map[string]string{"a": ""}}, nil, "x", false},
		{Broken{Namespace: "x", Labels: map[string]string{"a": "1", "b": "2"}}, map[string]string{"a": "1"}, "x", false},
	} {
		if got := tt.broken.Selects(tt.labels, tt.namespace); got != tt.want {
			t.Errorf("%+v selects %v in %s: %v", tt.broken, tt.labels, tt.namespace, got)
		}
	}
}

func TestAccessState(t *testing.T) {
	in := strings.Replace(authz("p", "prod", "pay", "rules: [{to: [{operation: {paths: ['/a\"<']}}], when: [{key: 'request.headers[x]', notValues: [y]}]}]"),
		"metadata: {", "metadata: {creationTimestamp: 2026-01-31T12:00:00Z, labels: {l: m}, annotations: {istio.io/dry-run: 'true'}, ", 1) +
		"---\n" + peers("m", RootNamespace, "", "STRICT") + "---\n" + kubeService("web")
	first := Build(files(map[string]string{"f.yaml": in}), nil)
	state, err := first.AccessState()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := Build(files(map[string]string{"f.yaml": in}), first).AccessState(); string(again) != string(state) {
		t.Errorf("equal states differ:\n%s\n%s", state, again)
	}
	restored, err := RestoreAccess(state)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := restored.AccessState(); string(got) != string(state) {
		t.Errorf("a restored state differs:\n%s\n%s", got, state)
	}
	if p, q := first.Set.AuthorizationPolicies[0], restored.Set.AuthorizationPolicies[0]; !slices.Equal(
		[]string{p.At.String(), fmt.Sprint(p.Created), p.Spec.String()}, []string{q.At.String(), fmt.Sprint(q.Created), q.Spec.String()}) ||
		!maps.Equal(p.Labels, q.Labels) || !q.DryRun() || p.Ref() != q.Ref() || p.APIVersion != q.APIVersion {
		t.Errorf("restored %+v, want %+v", q, p)
	}
	if len(restored.Set.Services) != 0 {
		t.Error("more than access policy is stored")
	}
	empty, err := Build(nil, nil).AccessState()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreAccess(empty); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]string{
		"torn":           string(state[:len(state)/2]),
		"nothing":        "",
		"version":        strings.Replace(string(state), `"version":1`, `"version":2`, 1),
		"kind":           strings.Replace(string(state), `"kind":"Peer`, `"kind":"Poor`, 1),
		"unknown field":  strings.Replace(string(state), `"mtls":{`, `"mtls":{"x":1,`, 1),
		"invalid":        strings.Replace(string(state), "request.headers[x]", "request.header[x]", 1),
		"name":           strings.Replace(string(state), `"name":"m"`, `"name":""`, 1),
		"twice":          strings.Replace(string(state), `"objects":[`, `"objects":[{"kind":"PeerAuthentication","namespace":"istio-system","name":"m","spec":{}},`, 1),
		"not restricted": strings.Replace(string(state), `"kind":"PeerAuthentication"`, `"kind":"VirtualService"`, 1),
	} {
		if bad == string(state) {
			t.Fatalf("%s: nothing is changed", name)
		}
		if r, err := RestoreAccess([]byte(bad)); err == nil || r != nil {
			t.Errorf("%s: is accepted", name)
		}
	}
}
