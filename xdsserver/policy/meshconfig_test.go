package policy

import (
	"slices"
	"strings"
	"testing"

	mesh "istio.io/api/mesh/v1alpha1"
)

// settings is the ConfigMap with MeshConfig; the text begins on line 7.
func settings(text string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  meshNetworks: 'networks: {}'\n  mesh: |-\n    " +
		strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
}

const authorizers = `
extensionProviders:
- name: ext-http
  envoyExtAuthzHttp:
    service: ext.default.svc.cluster.local
    port: "8000"
    timeout: 1s
    pathPrefix: /check
    failOpen: true
    statusOnError: "503"
    includeRequestHeadersInCheck: [x-token, "x-a-*"]
    includeAdditionalHeadersInCheck: {x-from: mesh}
    includeRequestBodyInCheck: {maxRequestBytes: 1024, allowPartialMessage: true}
    headersToUpstreamOnAllow: [x-user]
    headersToDownstreamOnAllow: ["*-id"]
    headersToDownstreamOnDeny: ["*"]
- name: ext-grpc
  envoyExtAuthzGrpc: {service: other/ext.other.svc.cluster.local, port: 9000}
- name: traces
  zipkin: {service: zipkin.default.svc.cluster.local, port: 9411}
`

func TestMeshConfig(t *testing.T) {
	// As Istio's installer writes it, and what is enforced beside.
	in := settings(`
# comment
accessLogFile: /dev/stdout
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  proxyMetadata: {A: b}
  tracing: {zipkin: {address: zipkin:9411}}
  gatewayTopology: {numTrustedProxies: 2}
defaultProviders:
  metrics: [prometheus]
enablePrometheusMerge: true
rootNamespace: istio-system
trustDomain: example.org
trustDomainAliases: [old.example.org]
meshMTLS: {minProtocolVersion: TLSV1_2}
pathNormalization: {normalization: MERGE_SLASHES}
outboundTrafficPolicy: {mode: ALLOW_ANY}
enableAutoMtls: true` + authorizers)
	r := Build(parseAll(map[string]string{"f.yaml": in + "---\n" + kubeService("ext") + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: other, namespace: istio-system}\n"}), nil)
	wantTexts(t, r.Problems, "f.yaml:49: ConfigMap istio-system/other: notice: v1 ConfigMap has no meaning for the mesh and is left out")
	m := r.Set.MeshConfig
	if m.TrustDomain() != "example.org" || !slices.Equal(m.TrustDomainAliases(), []string{"old.example.org"}) || !m.TLS12() ||
		m.PathNormalization() != mesh.MeshConfig_ProxyPathNormalization_MERGE_SLASHES || m.TrustedProxies() != 2 {
		t.Errorf("settings: %v", m.Spec)
	}
	for name, want := range map[string]string{"ext-http": "ext.default.svc.cluster.local:8000", "ext-grpc": "ext.other.svc.cluster.local:9000"} {
		if p := m.Authorizer(name); p == nil || r.Set.AuthorizerAddress(p) != want {
			t.Errorf("%s: %v, want %s", name, p, want)
		}
	}
	if m.Authorizer("traces") != nil || m.Authorizer("") != nil {
		t.Error("what is no authorizer is taken for one")
	}

	// Without any, and with an empty one.
	for _, in := range []string{"# nothing\n", settings(""), settings("{}"),
		settings("pathNormalization: {normalization: DEFAULT}\nmeshMTLS: {minProtocolVersion: TLS_AUTO}\ndefaultConfig: {gatewayTopology: {}}")} {
		r := Build(parseAll(map[string]string{"f.yaml": in}), nil)
		wantTexts(t, r.Problems)
		if m := r.Set.MeshConfig; m.TrustDomain() != "cluster.local" || m.TrustDomainAliases() != nil || m.TLS12() ||
			m.PathNormalization() != mesh.MeshConfig_ProxyPathNormalization_BASE || m.TrustedProxies() != 0 || m.Authorizer("a") != nil {
			t.Errorf("%q: defaults of %v", in, m)
		}
	}
}

func TestMeshConfigProblems(t *testing.T) {
	provider := func(kind, rest string) string {
		return "extensionProviders:\n- name: a\n  " + kind + ": {service: a.b, port: 1, " + rest + "}"
	}
	for _, tt := range []struct {
		text, field, want string
		line              int
	}{
		{"trustDomian: a", "data.mesh.trustDomian", "did you mean trustDomain?", 7},
		{"accessLogFile: x\ntrustDomain: A.b", "data.mesh.trustDomain", "not the name of a trust domain", 8},
		{"trustDomain: a/b", "data.mesh.trustDomain", "not the name of a trust domain", 7},
		{"trustDomainAliases:\n- ok\n- '*'", "data.mesh.trustDomainAliases[1]", "not the name of a trust domain", 9},
		{"a: [\nb: c", "data.mesh", "did not find", 8},
		{"trustDomain: a\n---\ntrustDomain: b", "data.mesh", "must be one document", 6},
		{"meshMTLS: {minProtocolVersion: TLSV1_1}", "data.mesh.meshMTLS.minProtocolVersion", "TLSV1_2", 7},
		{"meshMTLS: {cipherSuites: [a]}", "data.mesh.meshMTLS.cipherSuites", "does not enforce", 7},
		{"pathNormalization: {normalization: 7}", "data.mesh.pathNormalization.normalization", "not a kind", 7},
		{"outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "data.mesh.outboundTrafficPolicy", "only mode ALLOW_ANY", 7},
		{"inboundTrafficPolicy: {mode: LOCALHOST}", "data.mesh.inboundTrafficPolicy", "does not enforce", 7},
		{"enableAutoMtls: false", "data.mesh.enableAutoMtls", "false", 7},
		{"rootNamespace: mesh", "data.mesh.rootNamespace", "istio-system", 7},
		{"connectTimeout: 3us", "data.mesh.connectTimeout", "1ms", 7},
		{"connectTimeout: 3s\nh2UpgradePolicy: UPGRADE\ntcpKeepalive: {time: 10s}\ndnsRefreshRate: 5s\ndefaultHttpRetryPolicy: {attempts: 3}", "", "", 0},
		{"defaultHttpRetryPolicy: {attempts: 0, retryOn: 5xx}", "data.mesh.defaultHttpRetryPolicy.attempts", "is 0", 7},
		{"localityLbSetting: {failover: [{from: a, to: a}]}", "data.mesh.localityLbSetting.failover[0]", "same region", 7},
		{"defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}", "data.mesh.defaultTrafficPolicy.connectionPool.tcp.maxConnections", "negative", 7},
		{"defaultTrafficPolicy: {outlierDetection: {consecutiveErrors: 1}}", "data.mesh.defaultTrafficPolicy.outlierDetection.consecutiveErrors", "does not enforce", 7},
		{"connectTimeout: 10s\ndefaultServiceExportTo: ['*']", "", "", 0},
		{"defaultServiceExportTo: ['.']", "data.mesh.defaultServiceExportTo", "exportTo", 7},
		{"localityLbSetting: {enabled: false}", "", "", 0},
		{"discoverySelectors: [{matchLabels: {a: b}}]", "data.mesh.discoverySelectors", "does not enforce", 7},
		{"defaultConfig:\n  gatewayTopology: {numTrustedProxies: 1}", "", "", 0},
		{"defaultConfig:\n  gatewayTopology: {numTrustedProxies: -1}", "data.mesh.defaultConfig.gatewayTopology.numTrustedProxies", "-1", 8},
		{"defaultConfig:\n  gatewayTopology: {numTrustedProxies: 1.5}", "data.mesh.defaultConfig.gatewayTopology.numTrustedProxies", "1.5", 8},
		{"defaultConfig:\n  gatewayTopology: {numTrustedProxy: 1}", "data.mesh.defaultConfig.gatewayTopology.numTrustedProxy", "unknown field", 8},
		{"defaultConfig:\n  gatewayTopology: {forwardClientCertDetails: FORWARD_ONLY}", "data.mesh.defaultConfig.gatewayTopology.forwardClientCertDetails", "does not enforce", 8},
		{"defaultConfig:\n  gatewayTopology: {proxyProtocol: {}}", "data.mesh.defaultConfig.gatewayTopology.proxyProtocol", "does not enforce", 8},
		{"defaultConfig: {runtimeValues: {a: b}}", "data.mesh.defaultConfig.runtimeValues", "does not enforce", 7},
		{provider("envoyExtAuthzGrpc", "timeout: 1s, failOpen: true"), "", "", 0},
		{provider("envoyExtAuthzGrpc", "statusOnError: '99'"), "data.mesh.extensionProviders[0].envoyExtAuthzGrpc.statusOnError", "status", 9},
		{provider("envoyExtAuthzGrpc", "includeRequestBodyInCheck: {packAsBytes: true}"), "data.mesh.extensionProviders[0].envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes", "required", 9},
		{provider("envoyExtAuthzGrpc", "clearRouteCache: true"), "data.mesh.extensionProviders[0].envoyExtAuthzGrpc.clearRouteCache", "does not enforce", 9},
		{provider("envoyExtAuthzHttp", "pathPrefix: check"), "data.mesh.extensionProviders[0].envoyExtAuthzHttp.pathPrefix", "begins with", 9},
		{provider("envoyExtAuthzHttp", "timeout: 1us"), "data.mesh.extensionProviders[0].envoyExtAuthzHttp.timeout", "1ms", 9},
		{provider("envoyExtAuthzHttp", "headersToUpstreamOnAllow: ['a*b']"), "data.mesh.extensionProviders[0].envoyExtAuthzHttp.headersToUpstreamOnAllow[0]", "header", 9},
		{provider("envoyExtAuthzHttp", "includeAdditionalHeadersInCheck: {a: \"secret\\nb\"}"), "data.mesh.extensionProviders[0].envoyExtAuthzHttp.includeAdditionalHeadersInCheck[a]", "not the value", 9},
		{provider("envoyExtAuthzHttp", "includeAdditionalHeadersInCheck: {a: 424242}"), "data.mesh.extensionProviders[0].envoyExtAuthzHttp.includeAdditionalHeadersInCheck[a]", "quotes", 9},
		{"extensionProviders: [{name: a, envoyExtAuthzHttp: {}}]", "data.mesh.extensionProviders[0].envoyExtAuthzHttp.service", "required", 7},
		{"extensionProviders: [{name: a, envoyExtAuthzHttp: {service: 'a b', port: 1}}]", "data.mesh.extensionProviders[0].envoyExtAuthzHttp.service", "neither", 7},
		{"extensionProviders: [{name: a}]", "data.mesh.extensionProviders[0]", "what kind", 7},
		{"extensionProviders: [{prometheus: {}}]", "data.mesh.extensionProviders[0].name", "required", 7},
		{"extensionProviders: [{name: a, prometheus: {}}, {name: a, prometheus: {}}]", "data.mesh.extensionProviders[1].name", "given twice", 7},
		{"extensionProviders: [{name: a, sds: {name: b}}]", "data.mesh.extensionProviders[0].sds", "does not enforce", 7},
	} {
		r := Build([]*File{Parse("f.yaml", []byte(settings(tt.text)))}, nil)
		var found []Problem
		for _, p := range r.Problems {
			if p.Severity == Error {
				found = append(found, p)
			}
			if strings.Contains(p.String(), "secret") || strings.Contains(p.String(), "424242") {
				t.Errorf("%s: repeats what may be a secret: %s", tt.text, p)
			}
		}
		at := slices.IndexFunc(found, func(p Problem) bool {
			return p.Field == tt.field && strings.Contains(p.Message, tt.want) && p.At.Line == tt.line
		})
		if (tt.field != "") != (at >= 0) || len(found) > 2 {
			t.Errorf("%s: %q, want %s on line %d: %s", tt.text, texts(found), tt.field, tt.line, tt.want)
		}
		if all := []string{"default/pay", "default/web", "prod/pay", "prod/web"}; tt.field != "" && !slices.Equal(withheldOf(r.Set), all) {
			t.Errorf("%s: withheld %q", tt.text, withheldOf(r.Set))
		}
	}
}

// TestMeshConfigForms: the text may be written in other ways, and what is around it counts too.
func TestMeshConfigForms(t *testing.T) {
	head := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n"
	for _, tt := range []struct{ name, in, want string }{
		{"a.yaml", head + "data: {mesh: 'trustDomain: a'}\n", ""},
		{"a.yaml", head + "data:\n  mesh: \"trustDomain: a\\nx: y\\n\"\n", "a.yaml:5: ConfigMap istio-system/istio: data.mesh.x: unknown field"},
		{"a.yaml", head + "data:\n  mesh: \"a: [\\n\\n\"\n", "a.yaml:5: ConfigMap istio-system/istio: data.mesh: did not find"},
		{"a.json", `{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": "{\"trustDomain\": \"a\"}"}}`, ""},
		{"a.yaml", head + "data: {mesh: {trustDomain: a}}\n", "a.yaml:4: ConfigMap istio-system/istio: data.mesh: must be a single value, is a mapping"},
		{"a.yaml", head + "data: {mesh: 1}\n", "a.yaml:4: ConfigMap istio-system/istio: data.mesh: must be text: put it in quotes"},
		{"a.yaml", head + "data: {mehs: ''}\n", "a.yaml:4: ConfigMap istio-system/istio: data.mehs: unknown field; did you mean mesh?"},
		{"a.yaml", head, "a.yaml:1: ConfigMap istio-system/istio: data.mesh: required"},
		{"a.yaml", head + "binaryData: {}\ndata: {mesh: ''}\n", "a.yaml:4: ConfigMap istio-system/istio: binaryData: unknown field"},
		{"a.yaml", head + "data: {mesh: '', meshNetworks: 'networks: {n: {endpoints: []}}'}\n", "a.yaml:4: ConfigMap istio-system/istio: data.meshNetworks: is valid in Istio"},
		{"a.yaml", strings.Replace(head, "v1", "v2", 1) + "data: {mesh: ''}\n", "a.yaml:1: ConfigMap istio-system/istio: apiVersion: a ConfigMap has apiVersion v1"},
		{"a.yaml", strings.Replace(head, "name:", "nmae:", 1) + "data: {mesh: ''}\n", "a.yaml:3: ConfigMap istio-system/(no name): metadata.nmae: unknown field"},
		{"a.yaml", strings.Replace(head, "namespace:", "namepsace:", 1) + "data: {mesh: ''}\n", "a.yaml:3: ConfigMap default/istio: metadata.namepsace: unknown field"},
		{"a.yaml", strings.Replace(head, "ConfigMap", "ConfgMap", 1) + "data: {mesh: ''}\n", "a.yaml:2: ConfgMap istio-system/istio: kind: v1 ConfgMap: this kind of object is not known; did you mean ConfigMap?"},
		{"a.yaml", strings.Replace(head, "kind: ConfigMap\n", "", 1) + "data: {mesh: ''}\n", "a.yaml:1: kind: required"},
		{"a.yaml", head + "data: {mesh: ''}\nx: [\n", "a.yaml:5: did not find"},
	} {
		r := Build([]*File{Parse(tt.name, []byte(tt.in))}, nil)
		if tt.want == "" {
			wantTexts(t, r.Problems)
			if r.Set.MeshConfig.TrustDomain() != "a" {
				t.Errorf("%s: trust domain %s", tt.in, r.Set.MeshConfig.TrustDomain())
			}
			continue
		}
		if !slices.ContainsFunc(texts(r.Problems), func(s string) bool { return strings.HasPrefix(s, tt.want) }) || r.Set.MeshConfig != nil || len(withheldOf(r.Set)) != 4 {
			t.Errorf("%s: %q, want %s; withheld %q", tt.in, texts(r.Problems), tt.want, withheldOf(r.Set))
		}
	}
	// In another namespace it is another ConfigMap.
	r := Build([]*File{Parse("a.yaml", []byte(strings.Replace(settings("trustDomain: a"), "istio-system", "prod", 1)))}, nil)
	wantTexts(t, r.Problems, "a.yaml:1: ConfigMap prod/istio: warning: is left out: the settings of the mesh are read in namespace istio-system only")
}

// TestProviders: an authorizer that a policy asks for must be there, or nobody gets in.
func TestProviders(t *testing.T) {
	custom := authz("c", "default", "pay", "action: CUSTOM\n  provider: {name: ext-http}\n  rules: [{}]")
	with, without := settings(authorizers), settings("trustDomain: a")
	missing := `a.yaml:7: AuthorizationPolicy default/c: spec.provider.name: MeshConfig has no extensionProvider "ext-http" of type envoyExtAuthzHttp or envoyExtAuthzGrpc`
	files := func(mesh string) []*File {
		return parseAll(map[string]string{"a.yaml": custom, "m.yaml": mesh, "s.yaml": kubeService("ext")})
	}
	good := Build(files(with), nil)
	if len(good.Set.AuthorizationPolicies) != 1 || good.Set.Broken != nil {
		t.Fatalf("in force %q: %q", accessInForce(good.Set), texts(good.Problems))
	}
	for name, r := range map[string]*Result{
		"from the start": Build(files(without), nil), "without any": Build(files("# none"), nil), "taken away": Build(files(without), good),
	} {
		if !slices.Contains(texts(r.Problems), missing) || len(r.Set.AuthorizationPolicies) != 0 || !slices.Equal(withheldOf(r.Set), []string{"default/pay"}) {
			t.Errorf("%s: in force %q, withheld %q: %q", name, accessInForce(r.Set), withheldOf(r.Set), texts(r.Problems))
		}
	}
	// The settings are broken later: those before stay in force, and the policy with them.
	if r := Build(files(settings("trustDomian: b")), good); len(r.Set.AuthorizationPolicies) != 1 || r.Set.MeshConfig.Authorizer("ext-http") == nil || r.Set.Broken != nil {
		t.Errorf("in force %q: %q", accessInForce(r.Set), texts(r.Problems))
	}
	// The policy names another provider: the version before stays in force.
	other := parseAll(map[string]string{"a.yaml": strings.Replace(custom, "ext-http", "x", 1), "m.yaml": with, "s.yaml": kubeService("ext")})
	if r := Build(other, good); len(r.Set.AuthorizationPolicies) != 1 || r.Set.AuthorizationPolicies[0].Spec.GetProvider().GetName() != "ext-http" || r.Set.Broken != nil {
		t.Errorf("in force %q: %q", accessInForce(r.Set), texts(r.Problems))
	}
	r := Build(parseAll(map[string]string{"a.yaml": custom, "m.yaml": with}), nil)
	wantTexts(t, r.Problems, `a.yaml:7: AuthorizationPolicy default/c: spec.provider.name: warning: no Service or ServiceEntry has ext.default.svc.cluster.local:8000, where external authorizer "ext-http" is`)
}
