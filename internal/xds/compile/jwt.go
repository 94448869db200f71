package compile

import (
	"net"
	"net/url"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// The defaults of keys that are fetched (envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks).
const (
	DefaultKeysTimeout       = 5 * time.Second
	DefaultKeysCacheDuration = 10 * time.Minute
)

// tokens reads the verification of JSON web tokens.
func (a *access) tokens(m *jwtv3.JwtAuthentication) *fault {
	if f := a.reach(stageTokens, true); f != nil {
		return f
	}
	out := &snapshot.Tokens{Remote: make(map[string]snapshot.RemoteKeys)}
	config := identity.JWTConfig{BypassPreflight: m.GetBypassCorsPreflight()}
	for i, name := range sortedKeys(m.GetProviders()) {
		p := m.GetProviders()[name]
		provider, remote, f := tokenProvider(p)
		if f == nil && name == "" {
			f = faultf("", "a provider has no name")
		}
		if f != nil {
			return f.underKey("providers", name)
		}
		provider.Name = name
		config.Providers = append(config.Providers, provider)
		if remote != nil {
			out.Remote[name] = *remote
		}
		if i == 0 {
			a.rules.payload = p.GetPayloadInMetadata()
		} else if a.rules.payload != p.GetPayloadInMetadata() {
			a.rules.payload = ""
		}
	}
	a.rules.tokens = true
	var f *fault
	config.Rules, f = each("rules", m.GetRules(), func(r *jwtv3.RequirementRule) (identity.JWTRule, *fault) { return tokenRule(m, r) })
	if f != nil {
		return f
	}
	for _, name := range sortedKeys(m.GetRequirementMap()) {
		// Those that no rule names must hold up as well.
		if _, f := requirement(m, m.GetRequirementMap()[name]); f != nil {
			return f.underKey("requirement_map", name)
		}
	}
	var err error
	if out.Authenticator, err = identity.NewJWTAuthenticator(config); err != nil {
		return faultf("", "%v", err)
	}
	a.chain.Tokens = out
	return nil
}

func tokenProvider(m *jwtv3.JwtProvider) (identity.JWTProvider, *snapshot.RemoteKeys, *fault) {
	p := identity.JWTProvider{
		Issuer: m.GetIssuer(), Audiences: m.GetAudiences(), RequireExpiration: m.GetRequireExpiration(),
		ClockSkew: time.Duration(m.GetClockSkewSeconds()) * time.Second,
		Params:    m.GetFromParams(), Cookies: m.GetFromCookies(), Forward: m.GetForward(),
		PayloadHeader: m.GetForwardPayloadHeader(), PadPayload: m.GetPadForwardPayloadHeader(),
		SpaceDelimited: m.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims(),
	}
	var f *fault
	if m.GetSubjects() != nil {
		text, f := stringMatch(m.GetSubjects())
		if f != nil {
			return p, nil, f.under("subjects")
		}
		p.Subject = &text
	}
	if p.MaxLifetime, f = positive("max_lifetime", m.GetMaxLifetime(), 0); f != nil {
		return p, nil, f
	}
	if h := m.GetForwardPayloadHeader(); h != "" && !canSet(h) {
		return p, nil, faultf("forward_payload_header", "%q is not the name of a header that can be set", h)
	}
	for i, h := range m.GetFromHeaders() {
		if !isToken(h.GetName()) {
			return p, nil, faultf("name", "%q is not the name of a header", h.GetName()).underIndex("from_headers", i)
		}
		p.Headers = append(p.Headers, identity.TokenHeader{Name: h.GetName(), Prefix: h.GetValuePrefix()})
	}
	for i, h := range m.GetClaimToHeaders() {
		switch {
		case h.GetClaimName() == "":
			return p, nil, faultf("claim_name", "is empty").underIndex("claim_to_headers", i)
		case !canSet(h.GetHeaderName()):
			return p, nil, faultf("header_name", "%q is not the name of a header that can be set", h.GetHeaderName()).underIndex("claim_to_headers", i)
		}
		p.ClaimHeaders = append(p.ClaimHeaders, identity.ClaimHeader{Header: h.GetHeaderName(), Claim: h.GetClaimName()})
	}
	if in := m.GetPayloadInMetadata(); in != "" && (in == m.GetHeaderInMetadata() || in == m.GetFailedStatusInMetadata()) {
		return p, nil, faultf("payload_in_metadata", "%q is the place of something else too", in)
	}
	switch s := m.GetJwksSourceSpecifier().(type) {
	case *jwtv3.JwtProvider_LocalJwks:
		p.Keys, f = localKeys(s.LocalJwks)
		return p, nil, f.under("local_jwks")
	case *jwtv3.JwtProvider_RemoteJwks:
		remote, f := remoteKeys(s.RemoteJwks)
		return p, remote, f.under("remote_jwks")
	default:
		return p, nil, faultf("", "neither local_jwks nor remote_jwks is set")
	}
}

// localKeys reads keys that came with the resource. A document that can not be
// used, such as Istio sends where it could not fetch one, has no keys: as in
// Envoy, every token is refused then, and the rest of the listener is in force.
func localKeys(m *corev3.DataSource) (*identity.KeySet, *fault) {
	var document []byte
	switch s := m.GetSpecifier().(type) {
	case *corev3.DataSource_InlineString:
		document = []byte(s.InlineString)
	case *corev3.DataSource_InlineBytes:
		document = s.InlineBytes
	default:
		return nil, faultf("", "must be inline_string or inline_bytes: other sources are not supported")
	}
	keys, err := identity.ParseKeySet(document)
	if err != nil {
		keys = &identity.KeySet{}
	}
	return keys, nil
}

// remoteKeys reads where keys are fetched: from the URI's host, through the mesh
// as any other request. A cluster of another host would be the place in Envoy.
func remoteKeys(m *jwtv3.RemoteJwks) (*snapshot.RemoteKeys, *fault) {
	out := &snapshot.RemoteKeys{URI: m.GetHttpUri().GetUri()}
	u, err := url.Parse(out.URI)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, faultf("http_uri.uri", "is not a URL of http or https without user and fragment")
	}
	at, f := clusterHost(m.GetHttpUri().GetCluster())
	if f != nil {
		return nil, f.under("cluster").under("http_uri")
	}
	if !sameHost(u, at) {
		return nil, faultf("http_uri.cluster", "%q is not the host in the URI, from which keys are fetched", m.GetHttpUri().GetCluster())
	}
	if out.Timeout, f = positive("timeout", m.GetHttpUri().GetTimeout(), DefaultKeysTimeout); f != nil {
		return nil, f.under("http_uri")
	}
	out.CacheDuration, f = positive("cache_duration", m.GetCacheDuration(), DefaultKeysCacheDuration)
	return out, f
}

// sameHost reports whether a URL is of a "host:port", which may have the full
// name where the URL has a short one.
func sameHost(u *url.URL, at string) bool {
	host, port, err := net.SplitHostPort(at)
	ofURL := u.Port()
	if ofURL == "" {
		ofURL = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	name := strings.ToLower(u.Hostname())
	host = strings.ToLower(host)
	return err == nil && ofURL == port && name != "" && (host == name || strings.HasPrefix(host, name+"."))
}

func tokenRule(m *jwtv3.JwtAuthentication, r *jwtv3.RequirementRule) (rule identity.JWTRule, f *fault) {
	if rule.Match, rule.Template, f = tokenMatch(r.GetMatch()); f != nil {
		return rule, f.under("match")
	}
	var requires identity.Requirement
	switch t := r.GetRequirementType().(type) {
	case nil:
		return rule, nil // nothing is asked for
	case *jwtv3.RequirementRule_Requires:
		requires, f = requirement(m, t.Requires)
		f = f.under("requires")
	case *jwtv3.RequirementRule_RequirementName:
		named, ok := m.GetRequirementMap()[t.RequirementName]
		if !ok {
			return rule, faultf("requirement_name", "%q is not in requirement_map", t.RequirementName)
		}
		requires, f = requirement(m, named)
		f = f.under("requirement_name")
	default:
		f = faultf("", "the requirement is not known")
	}
	rule.Requires = &requires
	return rule, f
}

func tokenMatch(m *routev3.RouteMatch) (out routing.Match, t *routing.Template, f *fault) {
	if f := outboundOnly(m.ProtoReflect()); f != nil {
		return out, nil, f
	}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_PathMatchPolicy:
		if t, f = pathTemplate(p.PathMatchPolicy); f != nil {
			return out, nil, f.under("path_match_policy")
		}
		out.Path = routing.PathMatch{Kind: routing.PathPrefix}
	case *routev3.RouteMatch_ConnectMatcher_:
		out.Path = routing.PathMatch{Kind: routing.PathPrefix}
		out.Headers = append(out.Headers, routing.HeaderMatch{Name: routing.NewHeaderName(":method"), String: routing.Exact("CONNECT", false)})
	default:
		f = match(m, &out)
		return out, nil, f
	}
	return out, t, conditionsBesidePath(m, &out)
}

func requirement(m *jwtv3.JwtAuthentication, r *jwtv3.JwtRequirement) (q identity.Requirement, f *fault) {
	switch t := r.GetRequiresType().(type) {
	case *jwtv3.JwtRequirement_ProviderName:
		return identity.RequireProvider(t.ProviderName), knownProvider(m, t.ProviderName)
	case *jwtv3.JwtRequirement_ProviderAndAudiences:
		p := t.ProviderAndAudiences
		return identity.RequireProvider(p.GetProviderName(), p.GetAudiences()...), knownProvider(m, p.GetProviderName()).under("provider_and_audiences")
	case *jwtv3.JwtRequirement_RequiresAny:
		parts, f := requirements(m, t.RequiresAny.GetRequirements())
		return identity.RequireAny(parts...), f.under("requires_any")
	case *jwtv3.JwtRequirement_RequiresAll:
		parts, f := requirements(m, t.RequiresAll.GetRequirements())
		return identity.RequireAll(parts...), f.under("requires_all")
	case *jwtv3.JwtRequirement_AllowMissingOrFailed:
		return identity.AllowMissingOrFailed(), nil
	case *jwtv3.JwtRequirement_AllowMissing:
		return identity.AllowMissing(), nil
	default:
		return q, faultf("", "there is no requirement that is known")
	}
}

func requirements(m *jwtv3.JwtAuthentication, list []*jwtv3.JwtRequirement) ([]identity.Requirement, *fault) {
	return some("requirements", list, func(r *jwtv3.JwtRequirement) (identity.Requirement, *fault) { return requirement(m, r) })
}

func knownProvider(m *jwtv3.JwtAuthentication, name string) *fault {
	if m.GetProviders()[name] == nil {
		return faultf("provider_name", "there is no provider %q", name)
	}
	return nil
}
