package translate

//lint:file-ignore SA1019 deprecated fields are still written, and read here.

import (
	"fmt"
	"sort"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	mesh "istio.io/api/mesh/v1alpha1"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

func peerAuthentication(t testing.TB, ns, name, text string) *policy.PeerAuthentication {
	return &policy.PeerAuthentication{Meta: policy.Meta{Kind: "PeerAuthentication", Namespace: ns, Name: name}, Spec: read(t, &security.PeerAuthentication{}, text)}
}

func authorizationPolicy(t testing.TB, ns, name, text string) *policy.AuthorizationPolicy {
	return &policy.AuthorizationPolicy{Meta: policy.Meta{Kind: "AuthorizationPolicy", Namespace: ns, Name: name}, Spec: read(t, &security.AuthorizationPolicy{}, text)}
}

func requestAuthentication(t testing.TB, ns, name, text string) *policy.RequestAuthentication {
	return &policy.RequestAuthentication{Meta: policy.Meta{Kind: "RequestAuthentication", Namespace: ns, Name: name}, Spec: read(t, &security.RequestAuthentication{}, text)}
}

func meshConfig(t testing.TB, text string) *policy.MeshConfig {
	return &policy.MeshConfig{Meta: policy.Meta{Kind: "MeshConfig", Namespace: policy.RootNamespace, Name: policy.MeshConfigName}, Spec: read(t, &mesh.MeshConfig{}, text)}
}

func dryRun(m *policy.Meta) { m.Annotations = map[string]string{"istio.io/dry-run": "true"} }

const webListener = InboundPrefix + "10.0.0.9:8080"

// inboundOf translates a listener and returns the HTTP connection manager of its first chain too.
func inboundOf(t testing.TB, v *View, name string, c *Client) (*listenerv3.Listener, *hcmv3.HttpConnectionManager, *Resource) {
	t.Helper()
	l, r := get(t, v, ListenerType, name, c, &listenerv3.Listener{})
	var first *hcmv3.HttpConnectionManager
	for _, chain := range l.GetFilterChains() {
		m := &hcmv3.HttpConnectionManager{}
		if err := chain.GetFilters()[0].GetTypedConfig().UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = m
		} else if !proto.Equal(first, m) {
			t.Fatalf("%s: the filter chains of one listener hold requests to different rules", name)
		}
	}
	return l, first, r
}

// filtersOf writes the filters' names.
func filtersOf(m *hcmv3.HttpConnectionManager) string {
	var out []string
	for _, f := range m.GetHttpFilters() {
		out = append(out, strings.TrimPrefix(f.GetName(), "envoy.filters.http."))
	}
	return strings.Join(out, " ")
}

// filterOf reads the configuration of a filter into m.
func filterOf[M proto.Message](t testing.TB, hcm *hcmv3.HttpConnectionManager, name string, m M) M {
	t.Helper()
	for _, f := range hcm.GetHttpFilters() {
		if f.GetName() == "envoy.filters.http."+name {
			if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			return m
		}
	}
	t.Fatalf("there is no filter %s among %s", name, filtersOf(hcm))
	return m
}

// writeRBAC writes rules in one line: "name: permissions <- principals".
func writeRBAC(m *rbacv3.RBAC) string {
	var out []string
	for name, p := range m.GetPolicies() {
		var what, who []string
		for _, x := range p.GetPermissions() {
			what = append(what, writePermission(x))
		}
		for _, x := range p.GetPrincipals() {
			who = append(who, writePrincipal(x))
		}
		out = append(out, fmt.Sprintf("%s: %s <- %s", name, strings.Join(what, " or "), strings.Join(who, " or ")))
	}
	sort.Strings(out)
	return m.GetAction().String() + " " + strings.Join(out, "; ")
}

func writeText(m *matcherv3.StringMatcher) string {
	fold := ""
	if m.GetIgnoreCase() {
		fold = "(fold)"
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return "=" + p.Exact + fold
	case *matcherv3.StringMatcher_Prefix:
		return "^" + p.Prefix + fold
	case *matcherv3.StringMatcher_Suffix:
		return "$" + p.Suffix + fold
	case *matcherv3.StringMatcher_SafeRegex:
		return "~" + p.SafeRegex.GetRegex()
	}
	return "?"
}

func writeHeader(m *routev3.HeaderMatcher) string {
	if m.GetPresentMatch() {
		return m.GetName() + " present"
	}
	return m.GetName() + writeText(m.GetStringMatch())
}

func writeList[M any](op string, list []M, one func(M) string) string {
	var out []string
	for _, m := range list {
		out = append(out, one(m))
	}
	return "(" + strings.Join(out, op) + ")"
}

func writePermission(m *rbacv3.Permission) string {
	switch p := m.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return "any"
	case *rbacv3.Permission_AndRules:
		return writeList(" & ", p.AndRules.GetRules(), writePermission)
	case *rbacv3.Permission_OrRules:
		return writeList(" | ", p.OrRules.GetRules(), writePermission)
	case *rbacv3.Permission_NotRule:
		return "!" + writePermission(p.NotRule)
	case *rbacv3.Permission_Header:
		return writeHeader(p.Header)
	case *rbacv3.Permission_UrlPath:
		return "path" + writeText(p.UrlPath.GetPath())
	case *rbacv3.Permission_UriTemplate:
		c := &uritemplatev3.UriTemplateMatchConfig{}
		if err := p.UriTemplate.GetTypedConfig().UnmarshalTo(c); err != nil {
			return err.Error()
		}
		return "template " + c.GetPathTemplate()
	case *rbacv3.Permission_DestinationPort:
		return fmt.Sprint("port ", p.DestinationPort)
	case *rbacv3.Permission_DestinationIp:
		return fmt.Sprintf("at %s/%d", p.DestinationIp.GetAddressPrefix(), p.DestinationIp.GetPrefixLen().GetValue())
	case *rbacv3.Permission_RequestedServerName:
		return "sni" + writeText(p.RequestedServerName)
	}
	return fmt.Sprintf("%T", m.GetRule())
}

func writePrincipal(m *rbacv3.Principal) string {
	switch p := m.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return "any"
	case *rbacv3.Principal_AndIds:
		return writeList(" & ", p.AndIds.GetIds(), writePrincipal)
	case *rbacv3.Principal_OrIds:
		return writeList(" | ", p.OrIds.GetIds(), writePrincipal)
	case *rbacv3.Principal_NotId:
		return "!" + writePrincipal(p.NotId)
	case *rbacv3.Principal_Header:
		return writeHeader(p.Header)
	case *rbacv3.Principal_Authenticated_:
		return "id" + writeText(p.Authenticated.GetPrincipalName())
	case *rbacv3.Principal_DirectRemoteIp:
		return fmt.Sprintf("from %s/%d", p.DirectRemoteIp.GetAddressPrefix(), p.DirectRemoteIp.GetPrefixLen().GetValue())
	case *rbacv3.Principal_RemoteIp:
		return fmt.Sprintf("for %s/%d", p.RemoteIp.GetAddressPrefix(), p.RemoteIp.GetPrefixLen().GetValue())
	case *rbacv3.Principal_Metadata:
		var path []string
		for _, s := range p.Metadata.GetPath() {
			path = append(path, s.GetKey())
		}
		return strings.Join(path, ".") + writeValue(p.Metadata.GetValue())
	}
	return fmt.Sprintf("%T", m.GetIdentifier())
}

func writeValue(m *matcherv3.ValueMatcher) string {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_StringMatch:
		return writeText(p.StringMatch)
	case *matcherv3.ValueMatcher_ListMatch:
		return "[" + writeValue(p.ListMatch.GetOneOf()) + "]"
	case *matcherv3.ValueMatcher_OrMatch:
		return writeList(" | ", p.OrMatch.GetValueMatchers(), writeValue)
	}
	return fmt.Sprintf("%T", m.GetMatchPattern())
}

// rulesOf are the rules of a filter.
func rulesOf(t testing.TB, hcm *hcmv3.HttpConnectionManager, action string) *rbacfilterv3.RBAC {
	t.Helper()
	return filterOf(t, hcm, "rbac."+action, &rbacfilterv3.RBAC{})
}

// accessSet has access policy of every kind.
func accessSet(t testing.TB) *policy.Set {
	dryDeny := authorizationPolicy(t, "default", "dry-deny", `{action: DENY, rules: [{from: [{source: {notPrincipals: ["*"]}}]}]}`)
	dryAllow := authorizationPolicy(t, "default", "dry-allow", `{}`)
	dryStrict := peerAuthentication(t, "default", "dry-strict", `{mtls: {mode: STRICT}}`)
	dryRun(&dryDeny.Meta)
	dryRun(&dryAllow.Meta)
	dryRun(&dryStrict.Meta)
	return &policy.Set{
		MeshConfig: meshConfig(t, `
trustDomain: td
trustDomainAliases: [old]
extensionProviders: [{name: opa, envoyExtAuthzHttp: {service: opa.default.svc.cluster.local, port: 80, includeRequestHeadersInCheck: [x-ext]}}]
pathNormalization: {normalization: MERGE_SLASHES}
`),
		Services:            []*policy.Service{service("default", "opa", http(80))},
		PeerAuthentications: []*policy.PeerAuthentication{dryStrict},
		AuthorizationPolicies: []*policy.AuthorizationPolicy{
			authorizationPolicy(t, "default", "allow", `{rules: [{from: [{source: {principals: ["*"]}}]}, {from: [{source: {requestPrincipals: ["*"]}}]}]}`),
			authorizationPolicy(t, "default", "audit", `{action: AUDIT, rules: [{}]}`),
			authorizationPolicy(t, "default", "custom", `{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: ["/admin*"]}}]}]}`),
			authorizationPolicy(t, "default", "deny", `{action: DENY, rules: [{from: [{source: {namespaces: [evil]}}]}]}`),
			authorizationPolicy(t, "default", "elsewhere", `{selector: {matchLabels: {app: elsewhere}}, action: DENY, rules: [{}]}`),
			authorizationPolicy(t, policy.RootNamespace, "mesh", `{action: DENY, rules: [{to: [{operation: {paths: [/debug]}}]}]}`),
			dryAllow, dryDeny,
		},
		RequestAuthentications: []*policy.RequestAuthentication{
			requestAuthentication(t, "default", "tokens", `{jwtRules: [{issuer: b, jwksUri: "https://b.example.com/keys"}, {issuer: a, jwks: '{"keys": []}', audiences: [x], fromHeaders: [{name: x-token, prefix: "T "}]}]}`),
		},
		Servers:    []*policy.Server{{Meta: policy.Meta{Kind: "Server", Namespace: "default", Name: "web"}, Spec: &policy.ServerSpec{Port: 8080}}},
		RateLimits: []*policy.RateLimitPolicy{{Meta: policy.Meta{Kind: "HTTPLocalRateLimitPolicy", Namespace: "default", Name: "x"}, Spec: &policy.RateLimitSpec{Server: "web", Total: 100}}},
	}
}
