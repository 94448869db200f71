package translate

import (
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestRules writes each field of a rule, for the clients that differ in it.
func TestRules(t *testing.T) {
	for _, test := range []struct{ name, action, rule, sinew, grpc, other string }{
		{name: "everything", rule: "{}", sinew: "any <- any"},
		{name: "principals", rule: `from: [{source: {principals: [td/ns/a/sa/b, "*", "*/sa/c", td/ns/d/*], notPrincipals: [cluster.local/ns/a/sa/e]}}]`,
			sinew: `any <- ((id=spiffe://td/ns/a/sa/b | id~.+ | id~spiffe://.*/sa/c | id^spiffe://td/ns/d/) & !id=spiffe://cluster.local/ns/a/sa/e)`},
		{name: "text in an expression", rule: `from: [{source: {principals: ["*.b"], namespaces: ["a.b*"]}}]`,
			sinew: `any <- (id~spiffe://.*\.b & id~.*/ns/a\.b.*/.*)`},
		{name: "namespaces", rule: `from: [{source: {namespaces: [a, "b*"], notNamespaces: [c]}}, {source: {namespaces: [d]}}]`,
			sinew: `any <- ((id~.*/ns/a/.* | id~.*/ns/b.*/.*) & !id~.*/ns/c/.*) or id~.*/ns/d/.*`},
		{name: "service accounts", rule: `from: [{source: {serviceAccounts: [x, a/y]}}]`,
			sinew: `any <- ((id~.*/ns/default/.* & id~spiffe://.+/ns/default/(.+/|)sa/x(/.+)?) | (id~.*/ns/a/.* & id~spiffe://.+/ns/a/(.+/|)sa/y(/.+)?))`,
			grpc:  `any <- (id~spiffe://.+/ns/default/(.+/|)sa/x(/.+)? | id~spiffe://.+/ns/a/(.+/|)sa/y(/.+)?)`},
		{name: "trust domains", rule: `from: [{source: {trustDomains: [td, "*.org"], notTrustDomains: [x.org]}}]`,
			sinew: `any <- ((id^spiffe://td/ | id~spiffe://[^/]*\.org/.*) & !id^spiffe://x.org/)`},
		{name: "addresses", rule: `from: [{source: {ipBlocks: [10.0.0.0/8, 192.0.2.1], notIpBlocks: ["fd00::/8"], remoteIpBlocks: [198.51.100.0/24], notRemoteIpBlocks: ["::1"]}}]`,
			sinew: `any <- ((from 10.0.0.0/8 | from 192.0.2.1/32) & !from fd00::/8 & for 198.51.100.0/24 & !for ::1/128)`},
		{name: "request principals", rule: `from: [{source: {requestPrincipals: ["*", "https://a/b", "https://a/*", "*.org/b", "x*", "*y"], notRequestPrincipals: ["a/b*"]}}]`,
			sinew: `any <- (((payload.iss~.+ & payload.sub~.+) | (payload.iss=https://a & payload.sub=b) | (payload.iss=https://a & payload.sub~.+) | ` +
				`(payload.iss$.org & payload.sub=b) | (payload.iss^x & payload.sub~.+) | (payload.iss~.+ & payload.sub$y)) & !(payload.iss=a & payload.sub^b))`, grpc: "-"},
		{name: "hosts allowed", rule: `to: [{operation: {hosts: [A.example.com, "*.b.com", "c*", "*", "d.com:80"]}}]`,
			sinew: `(:authority=A.example.com(fold) | :authority$.b.com(fold) | :authority^c(fold) | :authority present | :authority=d.com:80(fold)) <- any`},
		{name: "hosts denied", action: "DENY", rule: `to: [{operation: {hosts: [a.com, "*.b.com", "c*", "d.com:80"]}}]`,
			sinew: `(:authority=a.com(fold) | :authority$.b.com(fold) | :authority^c(fold) | :authority=d.com:80(fold)) <- any`,
			grpc: `((:authority=a.com(fold) | :authority~(?i)a\.com\.?(:[0-9]*)?) | (:authority$.b.com(fold) | :authority~(?i).*\.b\.com\.?(:[0-9]*)?) | ` +
				`:authority^c(fold) | :authority=d.com:80(fold)) <- any`},
		{name: "hosts excepted", rule: `to: [{operation: {notHosts: [a.com]}}]`,
			sinew: `!:authority=a.com(fold) <- any`, grpc: `!(:authority=a.com(fold) | :authority~(?i)a\.com\.?(:[0-9]*)?) <- any`},
		{name: "hosts excepted from a refusal", action: "DENY", rule: `to: [{operation: {notHosts: [a.com]}}]`, sinew: `!:authority=a.com(fold) <- any`},
		{name: "ports and methods", rule: `to: [{operation: {ports: ["80", "81"], notPorts: ["82"], methods: [GET, "P*"], notMethods: ["*T"]}}]`,
			sinew: `((port 80 | port 81) & !port 82 & (:method=GET | :method^P) & !:method$T) <- any`},
		{name: "paths", rule: `to: [{operation: {paths: [/a, "/b*", "*c", "*"], notPaths: [/d]}}, {operation: {paths: [/e]}}]`,
			sinew: `((path=/a | path^/b | path$c | path~.+) & !path=/d) or path=/e <- any`},
		{name: "path templates", rule: `to: [{operation: {paths: ["/a/{*}/b", "/c/{**}"]}}]`, sinew: `(template /a/*/b | template /c/**) <- any`, grpc: "-"},
		{name: "when, who", rule: `when: [{key: source.ip, values: [10.0.0.1]}, {key: remote.ip, notValues: [10.0.0.2]}, {key: source.namespace, values: [a]}, ` +
			`{key: source.principal, values: [td/ns/a/sa/b]}, {key: source.trustDomain, values: [td]}]`,
			sinew: `any <- (from 10.0.0.1/32 & !for 10.0.0.2/32 & id~.*/ns/a/.* & id=spiffe://td/ns/a/sa/b & id^spiffe://td/)`},
		{name: "when, account", rule: `when: [{key: source.serviceAccount, notValues: [a/y]}]`,
			sinew: `any <- !(id~.*/ns/a/.* & id~spiffe://.+/ns/a/(.+/|)sa/y(/.+)?)`, grpc: `any <- !id~spiffe://.+/ns/a/(.+/|)sa/y(/.+)?`},
		{name: "when, what", rule: `{from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}], to: [{operation: {methods: [GET]}}], ` +
			`when: [{key: destination.ip, values: [10.0.0.0/8]}, {key: destination.port, notValues: ["80"]}, {key: "request.headers[Who]", values: ["*"]}]}`,
			sinew: `(:method=GET & at 10.0.0.0/8 & !port 80) <- (id~.*/ns/a/.* & who present) or (id~.*/ns/b/.* & who present)`},
		{name: "sni", rule: `when: [{key: connection.sni, values: ["*.example.com"]}]`, sinew: `sni$.example.com <- any`, grpc: "-"},
		{name: "claims", rule: `when: [{key: "request.auth.claims[a][b]", values: [x, "y*"]}, {key: request.auth.audiences, values: [z]}, {key: request.auth.presenter, notValues: [w]}, {key: request.auth.principal, values: [i/s]}]`,
			sinew: `any <- ((payload.a.b(=x | [=x]) | payload.a.b(^y | [^y])) & payload.aud(=z | [=z]) & !payload.azp(=w | [=w]) & (payload.iss=i & payload.sub=s))`, grpc: "-"},
		{name: "headers allowed", rule: `when: [{key: "request.headers[X]", values: [a, "b*", "*c"]}]`,
			sinew: `any <- (x=a | x^b | x$c)`, grpc: `any <- (x~a | x~b[^,]* | x~[^,]*c)`},
		{name: "headers denied", action: "DENY", rule: `when: [{key: "request.headers[x]", values: [a.b, "b*", "*c"]}]`,
			sinew: `any <- (x=a.b | x^b | x$c)`, grpc: `any <- (x~(.*, *)?a\.b( *,.*)? | x~(.*, *)?b.* | x~.*c( *,.*)?)`},
		{name: "headers excepted", rule: `when: [{key: "request.headers[x]", notValues: [a]}]`, sinew: `any <- !x=a`, grpc: `any <- !x~(.*, *)?a( *,.*)?`},
		{name: "headers gRPC hides", rule: `when: [{key: "request.headers[grpc-timeout]", values: [a]}]`, sinew: `any <- grpc-timeout=a`, grpc: "-"},
		{name: "headers gRPC decodes", rule: `when: [{key: "request.headers[x-bin]", values: [a]}]`, sinew: `any <- x-bin=a`, grpc: "-"},
	} {
		action := test.action
		if action == "" {
			action = "ALLOW"
		}
		text := strings.ReplaceAll(test.rule, "\n", " ")
		if !strings.HasPrefix(text, "{") {
			text = "{" + text + "}"
		}
		v := NewView(&policy.Set{AuthorizationPolicies: []*policy.AuthorizationPolicy{authorizationPolicy(t, "default", "p", "{action: "+action+", rules: ["+text+"]}")}})
		for agent, want := range map[Agent]string{Sinew: test.sinew, GRPC: test.grpc, Other: test.other} {
			if want == "" && agent == Other && test.grpc != "-" && !strings.Contains(test.name, "headers") {
				want = test.grpc
			}
			if want == "" {
				want = test.sinew
			}
			if want == "-" {
				_, err := v.Resource(ListenerType, webListener, client(agent))
				if err == nil || !strings.Contains(err.Error(), "AuthorizationPolicy default/p spec.rules[0]") {
					t.Errorf("%s for %v: error %v", test.name, agent, err)
				}
				continue
			}
			_, hcm, r := inboundOf(t, v, webListener, client(agent))
			if agent == Sinew {
				if _, err := compiled(ListenerType, r.Body); err != nil {
					t.Errorf("%s: our client refuses it: %v", test.name, err)
				}
			}
			if err := rulesOf(t, hcm, action).ValidateAll(); err != nil {
				t.Errorf("%s for %v: %v", test.name, agent, err)
			}
			want = action + " ns[default]-policy[p]-rule[0]: " + want
			if got := writeRBAC(rulesOf(t, hcm, action).GetRules()); got != want {
				t.Errorf("%s for %v:\n got %s\nwant %s", test.name, agent, got, want)
			}
		}
	}
}

// TestRulesRefused holds that nothing of a rule is left out: what can not be
// translated withholds the listener.
func TestRulesRefused(t *testing.T) {
	for name, rule := range map[string]string{
		"from[0].source: is empty":                        "from: [{source: {}}]",
		"from[1].source: is empty":                        "from: [{source: {namespaces: [a]}}, {}]",
		"to[0].operation: is empty":                       "to: [{operation: {}}]",
		"when[0]: has neither values nor notValues":       "when: [{key: source.ip}]",
		"when[0] key source.port: not enforced":           "when: [{key: source.port, values: [a]}]",
		"when[0] key experimental.envoy.filters.a[b]":     `when: [{key: "experimental.envoy.filters.a[b]", values: [a]}]`,
		`when[0].key: "request.headers[]"`:                `when: [{key: "request.headers[]", values: [a]}]`,
		`when[0].key: "request.headers[a][b]"`:            `when: [{key: "request.headers[a][b]", values: [a]}]`,
		`when[0].key: "request.auth.claims[a"`:            `when: [{key: "request.auth.claims[a", values: [a]}]`,
		`from[0].source.ipBlocks[0]: "x"`:                 "from: [{source: {ipBlocks: [x]}}]",
		`from[0].source.namespaces[0]: is empty`:          `from: [{source: {namespaces: [""]}}]`,
		`from[0].source.serviceAccounts[0]: "a/b/c"`:      `from: [{source: {serviceAccounts: [a/b/c]}}]`,
		`from[0].source.requestPrincipals[0]: "nothing"`:  `from: [{source: {requestPrincipals: [nothing]}}]`,
		`from[0].source.requestPrincipals[0]: "https://"`: `from: [{source: {requestPrincipals: ["https://"]}}]`,
		`to[0].operation.ports[0]: "http"`:                `to: [{operation: {ports: [http]}}]`,
		`to[0].operation.paths[0]: path template`:         `to: [{operation: {paths: ["/a{*}b/{**}/{*}"]}}]`,
	} {
		for _, action := range []string{"ALLOW", "DENY", "AUDIT"} {
			v := NewView(&policy.Set{AuthorizationPolicies: []*policy.AuthorizationPolicy{authorizationPolicy(t, "default", "p", "{action: "+action+", rules: [{}, {"+rule+"}]}")}})
			_, err := v.Resource(ListenerType, webListener, client(Sinew))
			if !isWithheld(err) || !strings.Contains(err.Error(), "AuthorizationPolicy default/p spec.rules[1]") || !strings.Contains(err.Error(), name) {
				t.Errorf("%s of %s: error %v", name, action, err)
			}
		}
	}
}

func TestTrustDomainAliases(t *testing.T) {
	for _, test := range []struct{ domain, principal, want string }{
		{"td1", "td1/ns/a/sa/b", "td1/ns/a/sa/b old/ns/a/sa/b older/ns/a/sa/b"},
		{"td1", "old/ns/a/sa/b", "td1/ns/a/sa/b old/ns/a/sa/b older/ns/a/sa/b"},
		// "cluster.local" stands for the mesh's own trust domain.
		{"td1", "cluster.local/ns/a/sa/b", "td1/ns/a/sa/b old/ns/a/sa/b older/ns/a/sa/b"},
		{"td1", "other/ns/a/sa/b", "other/ns/a/sa/b"},
		{"td1", "td1/ns/a/*", "td1/ns/a/*"}, // not the whole identity
		{"td1", "td1/ns/a/sa/*", "td1/ns/a/sa/* old/ns/a/sa/* older/ns/a/sa/*"},
		{"td1", "*/ns/a/sa/b", "*/ns/a/sa/b"},
		{"td1", "*d1/ns/a/sa/b", "*d1/ns/a/sa/b old/ns/a/sa/b older/ns/a/sa/b"},
		{"td1", "*old/ns/a/sa/b", "td1/ns/a/sa/b *old/ns/a/sa/b older/ns/a/sa/b"},
		{"td1", "*/sa/b", "*/sa/b"},
		{"td1", "*", "*"},
	} {
		b := &builder{view: NewView(&policy.Set{MeshConfig: meshConfig(t, "{trustDomain: "+test.domain+", trustDomainAliases: [old, older]}")})}
		if got := strings.Join(b.aliases([]string{test.principal}), " "); got != test.want {
			t.Errorf("%s: %s, want %s", test.principal, got, test.want)
		}
	}
	v := NewView(&policy.Set{
		MeshConfig: meshConfig(t, "{trustDomain: td1, trustDomainAliases: [td2]}"),
		AuthorizationPolicies: []*policy.AuthorizationPolicy{
			authorizationPolicy(t, "default", "p", `{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b], notPrincipals: [td2/ns/a/sa/c]}}], when: [{key: source.principal, values: [td1/ns/a/sa/b]}]}]}`)},
	})
	_, hcm, _ := inboundOf(t, v, webListener, client(Sinew))
	want := "ALLOW ns[default]-policy[p]-rule[0]: any <- ((id=spiffe://td1/ns/a/sa/b | id=spiffe://td2/ns/a/sa/b) & " +
		"!(id=spiffe://td1/ns/a/sa/c | id=spiffe://td2/ns/a/sa/c) & (id=spiffe://td1/ns/a/sa/b | id=spiffe://td2/ns/a/sa/b))"
	if got := writeRBAC(rulesOf(t, hcm, "ALLOW").GetRules()); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
