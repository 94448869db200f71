package translate

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

func isWithheld(err error) bool { return errors.Is(err, ErrWithheld) }

// writeChains writes which connections a listener takes.
func writeChains(t testing.TB, l *listenerv3.Listener) string {
	var out []string
	for _, c := range l.GetFilterChains() {
		s := c.GetFilterChainMatch().GetTransportProtocol()
		if s == "" {
			s = "all"
		}
		if socket := c.GetTransportSocket(); socket != nil {
			tls := &tlsv3.DownstreamTlsContext{}
			if err := socket.GetTypedConfig().UnmarshalTo(tls); err != nil {
				t.Fatal(err)
			}
			s += "=mtls"
			if !tls.GetRequireClientCertificate().GetValue() {
				s += " without a client certificate"
			}
		} else {
			s += "=plain"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestPeerAuthenticationModes(t *testing.T) {
	for _, test := range []struct {
		name, mesh, namespace, own string
		labels                     map[string]string
		agent                      Agent
		want                       string
		notes                      int
	}{
		{name: "default", agent: Sinew, want: "tls=mtls raw_buffer=plain"},
		{name: "default", agent: Other, want: "tls=mtls raw_buffer=plain"},
		{name: "default", agent: GRPC, want: "all=plain", notes: 1},
		{name: "default, labelled", agent: GRPC, labels: map[string]string{policy.TLSModeLabel: "istio"}, want: "all=mtls", notes: 1},
		{name: "strict mesh", mesh: "{mtls: {mode: STRICT}}", agent: Sinew, want: "all=mtls"},
		{name: "strict mesh", mesh: "{mtls: {mode: STRICT}}", agent: GRPC, want: "all=mtls"},
		{name: "strict mesh", mesh: "{mtls: {mode: STRICT}}", agent: Other, want: "all=mtls"},
		{name: "namespace over mesh", mesh: "{mtls: {mode: STRICT}}", namespace: "{mtls: {mode: DISABLE}}", agent: Sinew, want: "all=plain"},
		{name: "workload over namespace", namespace: "{mtls: {mode: DISABLE}}", own: "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}", agent: Sinew, want: "all=mtls"},
		{name: "another workload", namespace: "{mtls: {mode: DISABLE}}", own: "{selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}}", agent: Sinew, want: "all=plain"},
		{name: "port", own: `{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {"8080": {mode: PERMISSIVE}}}`, agent: Sinew, want: "tls=mtls raw_buffer=plain"},
		{name: "another port", own: `{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {"8081": {mode: DISABLE}}}`, agent: Sinew, want: "all=mtls"},
	} {
		set := &policy.Set{}
		for ns, text := range map[string]string{policy.RootNamespace: test.mesh, "default": test.namespace} {
			if text != "" {
				set.PeerAuthentications = append(set.PeerAuthentications, peerAuthentication(t, ns, "wide", text))
			}
		}
		if test.own != "" {
			set.PeerAuthentications = append(set.PeerAuthentications, peerAuthentication(t, "default", "own", test.own))
		}
		c := client(test.agent)
		if test.labels != nil {
			c.Labels = test.labels
		}
		l, _, r := inboundOf(t, NewView(set), webListener, c)
		if got := writeChains(t, l); got != test.want || len(r.Notes) != test.notes {
			t.Errorf("%s for %v: %s with notes %v, want %s", test.name, test.agent, got, r.Notes, test.want)
		}
		if inspects := len(l.GetListenerFilters()) > 0; inspects != (test.agent == Other && len(l.GetFilterChains()) > 1) {
			t.Errorf("%s for %v: listener filters %v", test.name, test.agent, l.GetListenerFilters())
		}
	}
}

// TestServerCertificates looks at where both ends' certificates come from.
func TestServerCertificates(t *testing.T) {
	strict := []*policy.PeerAuthentication{peerAuthentication(t, "default", "x", "{mtls: {mode: STRICT}}")}
	const secrets = `"sdsConfig":{"apiConfigSource":{"apiType":"GRPC","grpcServices":[{"envoyGrpc":{"clusterName":"sds-grpc"}}],"setNodeOnFirstMessageOnly":true,"transportApiVersion":"V3"},"initialFetchTimeout":"0s","resourceApiVersion":"V3"}`
	for _, test := range []struct {
		mesh  string
		agent Agent
		want  string
	}{
		{"", Sinew, `{"tlsCertificateProviderInstance":{"certificateName":"default","instanceName":"default"},"tlsParams":{"tlsMaximumProtocolVersion":"TLSv1_3","tlsMinimumProtocolVersion":"TLSv1_3"},` +
			`"validationContext":{"caCertificateProviderInstance":{"certificateName":"ROOTCA","instanceName":"default"}}}`},
		{"{trustDomain: td, trustDomainAliases: [old], meshMTLS: {minProtocolVersion: TLSV1_2}}", Sinew,
			`{"tlsCertificateProviderInstance":{"certificateName":"default","instanceName":"default"},"tlsParams":{"tlsMaximumProtocolVersion":"TLSv1_3","tlsMinimumProtocolVersion":"TLSv1_2"},` +
				`"validationContext":{"caCertificateProviderInstance":{"certificateName":"ROOTCA","instanceName":"default"},` +
				`"matchTypedSubjectAltNames":[{"matcher":{"prefix":"spiffe://td/"},"sanType":"URI"},{"matcher":{"prefix":"spiffe://old/"},"sanType":"URI"}]}}`},
		{"{trustDomain: td}", GRPC, `{"combinedValidationContext":{"defaultValidationContext":{"caCertificateProviderInstance":{"certificateName":"ROOTCA","instanceName":"default"}},` +
			`"validationContextCertificateProviderInstance":{"certificateName":"ROOTCA","instanceName":"default"}},` +
			`"tlsCertificateCertificateProviderInstance":{"certificateName":"default","instanceName":"default"},"tlsCertificateProviderInstance":{"certificateName":"default","instanceName":"default"}}`},
		{"", Other, `{"alpnProtocols":["h2","http/1.1"],"combinedValidationContext":{"defaultValidationContext":{},"validationContextSdsSecretConfig":{"name":"ROOTCA",` + secrets + `}},` +
			`"tlsCertificateSdsSecretConfigs":[{"name":"default",` + secrets + `}],"tlsParams":{"tlsMaximumProtocolVersion":"TLSv1_3","tlsMinimumProtocolVersion":"TLSv1_3"}}`},
	} {
		set := &policy.Set{PeerAuthentications: strict}
		if test.mesh != "" {
			set.MeshConfig = meshConfig(t, test.mesh)
		}
		l, _, r := inboundOf(t, NewView(set), webListener, client(test.agent))
		tls := &tlsv3.DownstreamTlsContext{}
		if err := l.GetFilterChains()[0].GetTransportSocket().GetTypedConfig().UnmarshalTo(tls); err != nil {
			t.Fatal(err)
		}
		if got := plainJSON(t, tls.GetCommonTlsContext()); got != test.want {
			t.Errorf("%s for %v:\n got %s\nwant %s", test.mesh, test.agent, got, test.want)
		}
		if noted := len(r.Notes) > 0; noted != (test.agent == GRPC) {
			t.Errorf("%s for %v: notes %v", test.mesh, test.agent, r.Notes)
		}
	}
}

// TestFilterOrder puts all kinds of access policy together.
func TestFilterOrder(t *testing.T) {
	set := accessSet(t)
	for _, agent := range []Agent{Sinew, Other} {
		_, hcm, r := inboundOf(t, NewView(set), webListener, client(agent))
		if got, want := filtersOf(hcm), "rbac.CUSTOM ext_authz jwt_authn rbac.AUDIT rbac.DENY rbac.ALLOW local_ratelimit router"; got != want {
			t.Errorf("%v: filters %s, want %s", agent, got, want)
		}
		if len(r.Notes) > 0 && agent == Sinew {
			t.Errorf("notes %v", r.Notes)
		}
		deny, allow := rulesOf(t, hcm, "DENY"), rulesOf(t, hcm, "ALLOW")
		if deny.GetShadowRulesStatPrefix() != "istio_dry_run_deny_" || allow.GetShadowRulesStatPrefix() != "istio_dry_run_allow_" {
			t.Errorf("dry runs under %q and %q", deny.GetShadowRulesStatPrefix(), allow.GetShadowRulesStatPrefix())
		}
		for what, got := range map[string][2]string{
			"custom":    {writeRBAC(rulesOf(t, hcm, "CUSTOM").GetShadowRules()), "DENY istio-ext-authz-opa-ns[default]-policy[custom]-rule[0]: path^/admin <- any"},
			"audit":     {writeRBAC(rulesOf(t, hcm, "AUDIT").GetRules()), "LOG ns[default]-policy[audit]-rule[0]: any <- any"},
			"deny":      {writeRBAC(deny.GetRules()), "DENY ns[default]-policy[deny]-rule[0]: any <- id~.*/ns/evil/.*; ns[istio-system]-policy[mesh]-rule[0]: path=/debug <- any"},
			"dry deny":  {writeRBAC(deny.GetShadowRules()), "DENY ns[default]-policy[dry-deny]-rule[0]: any <- !id~.+"},
			"allow":     {writeRBAC(allow.GetRules()), "ALLOW ns[default]-policy[allow]-rule[0]: any <- id~.+; ns[default]-policy[allow]-rule[1]: any <- (payload.iss~.+ & payload.sub~.+)"},
			"dry allow": {writeRBAC(allow.GetShadowRules()), "ALLOW ns[default]-policy[dry-allow]-rule[0]: !any <- !any"},
		} {
			if got[0] != got[1] {
				t.Errorf("%v, %s:\n got %s\nwant %s", agent, what, got[0], got[1])
			}
		}
	}
}

// TestAllowNothing holds that an ALLOW policy without rules is a filter that lets
// nobody through, for every client, and a policy of another action without rules none that refuses.
func TestAllowNothing(t *testing.T) {
	for _, agent := range []Agent{Sinew, GRPC, Other} {
		v := NewView(&policy.Set{AuthorizationPolicies: []*policy.AuthorizationPolicy{authorizationPolicy(t, "default", "nothing", "{}")}})
		_, hcm, _ := inboundOf(t, v, webListener, client(agent))
		if got, want := writeRBAC(rulesOf(t, hcm, "ALLOW").GetRules()), "ALLOW ns[default]-policy[nothing]-rule[0]: !any <- !any"; got != want {
			t.Errorf("%v: %s, want %s", agent, got, want)
		}
		dry := authorizationPolicy(t, "default", "nothing", "{}")
		dryRun(&dry.Meta)
		_, hcm, r := inboundOf(t, NewView(&policy.Set{AuthorizationPolicies: []*policy.AuthorizationPolicy{dry}}), webListener, client(agent))
		if agent == GRPC {
			if got := filtersOf(hcm); got != "router" || len(r.Notes) != 2 {
				t.Errorf("a dry run for gRPC: filters %s, notes %v", got, r.Notes)
			}
			continue
		}
		if f := rulesOf(t, hcm, "ALLOW"); f.GetRules() != nil || f.GetShadowRules() == nil {
			t.Errorf("%v: a dry run is %v", agent, f)
		}
	}
}

func TestGRPCIsNotServedWhatItCanNotEnforce(t *testing.T) {
	server := &policy.Server{Meta: policy.Meta{Kind: "Server", Namespace: "default", Name: "web"}, Spec: &policy.ServerSpec{Port: 8080}}
	for what, set := range map[string]*policy.Set{
		"RequestAuthentication default/tokens": {RequestAuthentications: []*policy.RequestAuthentication{requestAuthentication(t, "default", "tokens", `{jwtRules: [{issuer: a, jwks: '{"keys": []}'}]}`)}},
		"AuthorizationPolicy default/custom": {
			MeshConfig: meshConfig(t, "{extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.default, port: 80}}]}"), Services: []*policy.Service{service("default", "opa", http(80))},
			AuthorizationPolicies: []*policy.AuthorizationPolicy{authorizationPolicy(t, "default", "custom", "{action: CUSTOM, provider: {name: opa}, rules: [{}]}")}},
		"HTTPLocalRateLimitPolicy default/total": {Servers: []*policy.Server{server},
			RateLimits: []*policy.RateLimitPolicy{{Meta: policy.Meta{Kind: "HTTPLocalRateLimitPolicy", Namespace: "default", Name: "total"}, Spec: &policy.RateLimitSpec{Server: "web", Total: 1}}}},
		"HTTPLocalRateLimitPolicy default/each": {Servers: []*policy.Server{server},
			RateLimits: []*policy.RateLimitPolicy{{Meta: policy.Meta{Kind: "HTTPLocalRateLimitPolicy", Namespace: "default", Name: "each"}, Spec: &policy.RateLimitSpec{Server: "web", Identity: 1}}}},
	} {
		if _, err := NewView(set).Resource(ListenerType, webListener, client(GRPC)); !isWithheld(err) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: error %v", what, err)
		}
		if _, _, r := inboundOf(t, NewView(set), webListener, client(Sinew)); len(r.Notes) > 0 {
			t.Errorf("%s: notes for Sinew: %v", what, r.Notes)
		}
		_, err := NewView(set).Resource(ListenerType, webListener, client(Other))
		if each := strings.HasSuffix(what, "each"); each != isWithheld(err) {
			t.Errorf("%s for Envoy: error %v", what, err)
		}
	}
	audit := NewView(&policy.Set{AuthorizationPolicies: []*policy.AuthorizationPolicy{authorizationPolicy(t, "default", "audit", "{action: AUDIT, rules: [{}]}")}})
	if _, hcm, r := inboundOf(t, audit, webListener, client(GRPC)); filtersOf(hcm) != "router" || len(r.Notes) != 2 {
		t.Errorf("AUDIT: filters %s, notes %v", filtersOf(hcm), r.Notes)
	}
}

// TestWhoseListener looks at how a listener's workload is found.
func TestWhoseListener(t *testing.T) {
	web := workload("default", "web", "v1", "10.0.0.9")
	web.ServiceAccount = "web"
	local1, local2 := workload("default", "one", "v1", "127.0.0.1"), workload("default", "two", "v1", "127.0.0.1")
	local1.Ports, local2.Ports = map[string]uint32{"http": 8081}, map[string]uint32{"http": 8082}
	// One program under two names, for which the same policy is in force.
	twin1, twin2 := workload("default", "twin", "v1", "127.0.0.1"), workload("default", "twin", "v2", "127.0.0.1")
	twin1.Ports, twin2.Ports = map[string]uint32{"http": 8084}, map[string]uint32{"http": 8084}
	v := NewView(&policy.Set{
		Workloads: []*policy.Workload{web, local1, local2, twin1, twin2},
		AuthorizationPolicies: []*policy.AuthorizationPolicy{
			authorizationPolicy(t, "default", "web", "{selector: {matchLabels: {app: web}}}"),
			authorizationPolicy(t, "default", "one", "{selector: {matchLabels: {app: one}}}"),
			authorizationPolicy(t, "default", "two", "{selector: {matchLabels: {app: two}}}"),
			authorizationPolicy(t, "default", "twin", "{selector: {matchLabels: {app: twin}}}"),
			authorizationPolicy(t, "default", "other", "{selector: {matchLabels: {app: other}}}"),
		},
	})
	for _, test := range []struct {
		name, addr string
		change     func(*Client)
		want       string // policies in force, or an error
	}{
		{"registry", "10.0.0.9:8080", func(c *Client) { c.Labels = map[string]string{"app": "other"} }, "web"},
		{"registry by all addresses", "0.0.0.0:8080", func(c *Client) { c.Labels, c.IPs = nil, []string{"192.0.2.1", "10.0.0.9"} }, "web"},
		{"registry by all addresses of IPv6", "[::]:8080", func(c *Client) { c.Labels, c.IPs = nil, []string{"::ffff:10.0.0.9"} }, "web"},
		{"metadata", "10.0.0.10:8080", func(c *Client) { c.Labels = map[string]string{"app": "other"} }, "other"},
		{"another namespace", "10.0.0.9:8080", func(c *Client) { c.Namespace = "shop" }, ""},
		{"loopback", "127.0.0.1:8081", func(c *Client) { c.Labels = nil }, "one"},
		{"loopback", "127.0.0.1:8082", func(c *Client) { c.Labels = nil }, "two"},
		{"loopback, a port of nobody", "127.0.0.1:8083", func(c *Client) { c.Labels = map[string]string{"app": "other"} }, "other"},
		{"proved", "10.0.0.9:8080", func(c *Client) { c.Verified = policy.ServiceAccount{Namespace: "default", Name: "web"} }, "web"},
		{"proved to be another", "10.0.0.9:8080", func(c *Client) { c.Verified = policy.ServiceAccount{Namespace: "default", Name: "thief"} },
			`error: WorkloadEntry default/web-v1-10.0.0.9 () runs as service account "web", and the client has proved to be "thief"`},
		{"proved to be elsewhere", "10.0.0.9:8080", func(c *Client) { c.Verified = policy.ServiceAccount{Namespace: "shop", Name: "web"} },
			`error: the client says that it is in namespace "default" and has proved to be in "shop"`},
		{"account unknown", "127.0.0.1:8081", func(c *Client) { c.Verified = policy.ServiceAccount{Namespace: "default", Name: "any"} }, "one"},
		{"several with one policy", "127.0.0.1:8084", func(c *Client) { c.Labels = nil }, "twin"},
		{"several at all addresses", "0.0.0.0:8081", func(c *Client) { c.IPs = []string{"10.0.0.9", "127.0.0.1"} }, "error: WorkloadEntry default/web-v1-10.0.0.9 ()"},
	} {
		c := client(Sinew)
		test.change(c)
		r, err := v.Resource(ListenerType, InboundPrefix+test.addr, c)
		if message, fails := strings.CutPrefix(test.want, "error: "); fails {
			if !isWithheld(err) || !strings.HasPrefix(err.Error(), message) {
				t.Errorf("%s %s: %v, error %v", test.name, test.addr, r, err)
			}
			continue
		}
		_, hcm, _ := inboundOf(t, v, InboundPrefix+test.addr, c)
		if test.want == "" {
			if filtersOf(hcm) != "router" {
				t.Errorf("%s %s: filters %s", test.name, test.addr, filtersOf(hcm))
			}
			continue
		}
		if got, want := writeRBAC(rulesOf(t, hcm, "ALLOW").GetRules()), "ALLOW ns[default]-policy["+test.want+"]-rule[0]: !any <- !any"; got != want {
			t.Errorf("%s %s: %s, want %s", test.name, test.addr, got, want)
		}
	}
}

func TestWithheld(t *testing.T) {
	v := NewView(&policy.Set{Broken: []policy.Broken{{Namespace: "default", Labels: map[string]string{"app": "web"}, Reason: "x.yaml:3: AuthorizationPolicy default/x: spec.rules: nonsense"}}})
	for _, agent := range []Agent{Sinew, GRPC, Other} {
		_, err := v.Resource(ListenerType, webListener, client(agent))
		if !isWithheld(err) || !strings.Contains(err.Error(), "AuthorizationPolicy default/x") {
			t.Errorf("%v: error %v", agent, err)
		}
		c := client(agent)
		c.Labels = map[string]string{"app": "db"}
		inboundOf(t, v, webListener, c)
	}
}

func TestPathNormalization(t *testing.T) {
	for setting, want := range map[string]string{
		"":                         `true`,
		"BASE":                     `true`,
		"NONE":                     `false`,
		"MERGE_SLASHES":            `true merge`,
		"DECODE_AND_MERGE_SLASHES": `true merge UNESCAPE_AND_FORWARD`,
	} {
		set := &policy.Set{}
		if setting != "" {
			set.MeshConfig = meshConfig(t, "{pathNormalization: {normalization: "+setting+"}}")
		}
		for _, agent := range []Agent{Sinew, Other, GRPC} {
			_, hcm, _ := inboundOf(t, NewView(set), webListener, client(agent))
			got := fmt.Sprint(hcm.GetNormalizePath().GetValue())
			if hcm.GetMergeSlashes() {
				got += " merge"
			}
			if a := hcm.GetPathWithEscapedSlashesAction(); a != hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT {
				got += " " + a.String()
			}
			if agent == GRPC {
				if hcm.GetNormalizePath() != nil || got != "false" {
					t.Errorf("%s for gRPC: %s", setting, got)
				}
			} else if got != want {
				t.Errorf("%s for %v: %s, want %s", setting, agent, got, want)
			}
		}
	}
}

func TestRateLimits(t *testing.T) {
	set := &policy.Set{
		MeshConfig: meshConfig(t, "{trustDomain: td, trustDomainAliases: [old]}"),
		Servers:    []*policy.Server{{Meta: policy.Meta{Kind: "Server", Namespace: "default", Name: "web"}, Spec: &policy.ServerSpec{Port: 8080}}},
		RateLimits: []*policy.RateLimitPolicy{{Meta: policy.Meta{Kind: "HTTPLocalRateLimitPolicy", Namespace: "default", Name: "x"}, Spec: &policy.RateLimitSpec{
			Server: "web", Total: 100, Identity: 10, Overrides: []policy.RateLimitOverride{{RequestsPerSecond: 50, Clients: []policy.ServiceAccount{{Namespace: "a", Name: "b"}}}}}}},
	}
	l, hcm, r := inboundOf(t, NewView(set), webListener, client(Sinew))
	if got, want := plainJSON(t, filterOf(t, hcm, "local_ratelimit", &limitv3.LocalRateLimit{})),
		`{"filterEnabled":{"defaultValue":{"numerator":100}},"filterEnforced":{"defaultValue":{"numerator":100}},"rateLimitedAsResourceExhausted":true,"statPrefix":"inbound","tokenBucket":{"fillInterval":"1s","maxTokens":100,"tokensPerFill":100}}`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got, want := plainJSON(t, l.GetMetadata()),
		`{"filterMetadata":{"sinew":{"identity_rate_limit":{"overrides":[{"principals":["spiffe://old/ns/a/sa/b","spiffe://td/ns/a/sa/b"],"requests_per_second":50}],"requests_per_second":10}}}}`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if _, in, err := compile.Inbound(r.Body); err != nil || len(in.Plain.RateLimits) != 2 || len(in.TLS.RateLimits) != 2 {
		t.Errorf("our client reads %+v, %v", in, err)
	}
	// Clients that are named may have limits of their own where nobody else has one.
	set = &policy.Set{Servers: set.Servers, RateLimits: []*policy.RateLimitPolicy{{Meta: set.RateLimits[0].Meta,
		Spec: &policy.RateLimitSpec{Server: "web", Overrides: set.RateLimits[0].Spec.Overrides}}}}
	_, _, r = inboundOf(t, NewView(set), webListener, client(Sinew))
	if _, in, err := compile.Inbound(r.Body); err != nil || len(in.Plain.RateLimits) != 1 {
		t.Errorf("our client reads %+v, %v", in, err)
	}
	// Another port has no limit.
	l, hcm, _ = inboundOf(t, NewView(set), InboundPrefix+"10.0.0.9:8081", client(Sinew))
	if l.GetMetadata() != nil || filtersOf(hcm) != "router" {
		t.Errorf("another port: %v, %s", l.GetMetadata(), filtersOf(hcm))
	}
}

func TestDryRunOfPeerAuthentication(t *testing.T) {
	dry := peerAuthentication(t, "default", "soon", "{mtls: {mode: STRICT}}")
	dryRun(&dry.Meta)
	for _, test := range []struct {
		also, want string
	}{
		{"", "PeerAuthentication default/soon"},
		{"{mtls: {mode: DISABLE}}", "PeerAuthentication default/soon"},
		{"{mtls: {mode: STRICT}}", ""}, // it would change nothing
	} {
		set := &policy.Set{PeerAuthentications: []*policy.PeerAuthentication{dry}}
		if test.also != "" {
			set.PeerAuthentications = append(set.PeerAuthentications, peerAuthentication(t, "default", "now", test.also))
		}
		l, _, _ := inboundOf(t, NewView(set), webListener, client(Sinew))
		if got := l.GetMetadata().GetFilterMetadata()["sinew"].GetFields()["mtls_dry_run"].GetStringValue(); got != test.want {
			t.Errorf("%s: dry run of %q, want %q", test.also, got, test.want)
		}
		strict := strings.Contains(test.also, "STRICT")
		if got := writeChains(t, l); strings.Contains(got, "plain") == strict {
			t.Errorf("%s: takes %s", test.also, got)
		}
		l, _, r := inboundOf(t, NewView(set), webListener, client(Other))
		if l.GetMetadata() != nil || (len(r.Notes) > 0) != (test.want != "") {
			t.Errorf("for Envoy: metadata %v, notes %v", l.GetMetadata(), r.Notes)
		}
	}
}

func TestExternalAuthorizers(t *testing.T) {
	const custom = "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [/x]}}]}]}"
	for _, test := range []struct{ provider, want string }{
		{"envoyExtAuthzGrpc: {service: default/opa.default.svc.cluster.local, port: 9191, timeout: 1s, failOpen: true, statusOnError: '503', includeRequestBodyInCheck: {maxRequestBytes: 10, packAsBytes: true}}",
			`{"failureModeAllow":true,"grpcService":{"envoyGrpc":{"authority":"opa.default.svc.cluster.local","clusterName":"outbound|9191||opa.default.svc.cluster.local"},"timeout":"1s"},` +
				`"statusOnError":{"code":"ServiceUnavailable"},"transportApiVersion":"V3","withRequestBody":{"maxRequestBytes":10,"packAsBytes":true}}`},
		{"envoyExtAuthzHttp: {service: opa.default.svc.cluster.local, port: 80, pathPrefix: /check, includeRequestHeadersInCheck: [X-Ext, 'y-*'], includeAdditionalHeadersInCheck: {b: '2', a: '1'}, " +
			"headersToUpstreamOnAllow: [u], headersToDownstreamOnDeny: [d], headersToDownstreamOnAllow: [o], includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}}",
			`{"allowedHeaders":{"patterns":[{"exact":"X-Ext","ignoreCase":true},{"ignoreCase":true,"prefix":"y-"}]},` +
				`"httpService":{"authorizationRequest":{"headersToAdd":[{"key":"a","value":"1"},{"key":"b","value":"2"}]},` +
				`"authorizationResponse":{"allowedClientHeaders":{"patterns":[{"exact":"d","ignoreCase":true}]},"allowedClientHeadersOnSuccess":{"patterns":[{"exact":"o","ignoreCase":true}]},"allowedUpstreamHeaders":{"patterns":[{"exact":"u","ignoreCase":true}]}},` +
				`"pathPrefix":"/check","serverUri":{"cluster":"outbound|80||opa.default.svc.cluster.local","timeout":"600s","uri":"http://opa.default.svc.cluster.local"}},` +
				`"transportApiVersion":"V3","withRequestBody":{"allowPartialMessage":true,"maxRequestBytes":10}}`},
		{"envoyExtAuthzGrpc: {service: nobody, port: 9191}", `error: MeshConfig extensionProviders[opa]: envoyExtAuthzGrpc.service: no service "nobody" is known`},
		{"envoyExtAuthzGrpc: {service: other/opa.default.svc.cluster.local, port: 9191}", `error: MeshConfig extensionProviders[opa]: envoyExtAuthzGrpc.service: no service`},
		{"envoyExtAuthzGrpc: {service: opa.default, port: 1}", `error: MeshConfig extensionProviders[opa]: envoyExtAuthzGrpc.port: service "opa.default" has no port 1`},
		{"envoyExtAuthzHttp: {service: opa.default, port: 80, statusOnError: '200'}", `error: MeshConfig extensionProviders[opa]: envoyExtAuthzHttp.statusOnError`},
		{"envoyExtAuthzHttp: {service: opa.default, port: 80, pathPrefix: check}", `error: MeshConfig extensionProviders[opa]: envoyExtAuthzHttp.pathPrefix`},
		{"envoyExtAuthzHttp: {service: opa.default, port: 80, clearRouteCache: true}", `error: envoyExtAuthzHttp clearRouteCache`},
		{"envoyExtAuthzHttp: {service: opa.default, port: 80, includeRequestBodyInCheck: {}}", `error: MeshConfig extensionProviders[opa]: envoyExtAuthzHttp.includeRequestBodyInCheck`},
		{"zipkin: {service: opa.default, port: 80}", `error: AuthorizationPolicy default/custom spec.provider: MeshConfig has no extensionProviders entry "opa"`},
	} {
		set := &policy.Set{
			MeshConfig:            meshConfig(t, "{extensionProviders: [{name: opa, "+test.provider+"}]}"),
			Services:              []*policy.Service{service("default", "opa", http(80), http(9191))},
			AuthorizationPolicies: []*policy.AuthorizationPolicy{authorizationPolicy(t, "default", "custom", custom)},
		}
		if message, fails := strings.CutPrefix(test.want, "error: "); fails {
			if _, err := NewView(set).Resource(ListenerType, webListener, client(Sinew)); !isWithheld(err) || !strings.Contains(err.Error(), message) {
				t.Errorf("%s: error %v, want %s", test.provider, err, message)
			}
			continue
		}
		_, hcm, r := inboundOf(t, NewView(set), webListener, client(Sinew))
		config := filterOf(t, hcm, "ext_authz", &extauthzv3.ExtAuthz{})
		if got, want := plainJSON(t, config.GetFilterEnabledMetadata()),
			`{"filter":"envoy.filters.http.rbac","path":[{"key":"istio_ext_authz_shadow_effective_policy_id"}],"value":{"stringMatch":{"prefix":"istio-ext-authz"}}}`; got != want {
			t.Errorf("enabled by %s, want %s", got, want)
		}
		config.FilterEnabledMetadata = nil
		if got := plainJSON(t, config); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.provider, got, test.want)
		}
		if _, err := compiled(ListenerType, r.Body); err != nil {
			t.Errorf("%s: our client refuses it: %v", test.provider, err)
		}
	}
	two := NewView(&policy.Set{AuthorizationPolicies: []*policy.AuthorizationPolicy{
		authorizationPolicy(t, "default", "a", custom), authorizationPolicy(t, "default", "b", "{action: CUSTOM, provider: {name: other}, rules: [{}]}")}})
	if _, err := two.Resource(ListenerType, webListener, client(Sinew)); !isWithheld(err) || !strings.Contains(err.Error(), "AuthorizationPolicy default/b") {
		t.Errorf("two authorizers: %v", err)
	}
}

// TestInboundVariants holds that clients which get different listeners do not share one.
func TestInboundVariants(t *testing.T) {
	base := client(Sinew)
	same := client(Sinew)
	same.ID, same.Name = "another", "another"
	if Variant(ListenerType, webListener, base) != Variant(ListenerType, webListener, same) {
		t.Error("two clients of one workload do not share their listener")
	}
	for name, change := range map[string]func(*Client){
		"labels":    func(c *Client) { c.Labels = map[string]string{"app": "x"} },
		"namespace": func(c *Client) { c.Namespace = "x" },
		"account":   func(c *Client) { c.ServiceAccount = "x" },
		"agent":     func(c *Client) { c.Agent = GRPC },
		"addresses": func(c *Client) { c.IPs = []string{"192.0.2.7"} },
		"proof":     func(c *Client) { c.Verified = policy.ServiceAccount{Namespace: "default", Name: "x"} },
	} {
		c := client(Sinew)
		change(c)
		c.class = c.buildClass()
		if Variant(ListenerType, webListener, base) == Variant(ListenerType, webListener, c) {
			t.Errorf("%s: clients share a listener", name)
		}
	}
	proved := client(Sinew)
	proved.Verified = policy.ServiceAccount{Namespace: "default", Name: "x"}
	if Variant(ClusterType, "x", base) != Variant(ClusterType, "x", proved) || Variant(ListenerType, "a:80", base) != Variant(ListenerType, "a:80", proved) {
		t.Error("what is the same for all is not shared")
	}
}

// plainJSON writes a message with its fields in order.
func plainJSON(t testing.TB, m proto.Message) string {
	t.Helper()
	b, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
