package translate

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

const (
	jwtFilter  = "envoy.filters.http.jwt_authn"
	payloadKey = "payload" // under which a token's claims are found in the metadata
)

// Istio's times for fetching an issuer's keys.
const (
	keysTimeout = 5 * time.Second
	keysFresh   = 5 * time.Minute
)

// jwtRuleFields are the fields of a JWTRule that are enforced.
var jwtRuleFields = []string{
	"issuer", "audiences", "jwksUri", "jwks", "fromHeaders", "fromParams", "fromCookies", "outputPayloadToHeader",
	"forwardOriginalToken", "outputClaimToHeaders", "timeout", "spaceDelimitedClaims",
}

// tokenFilters are the RequestAuthentications of a workload: a request without a
// token passes, and one with a token that is not good is refused. AuthorizationPolicies
// say who needs one.
// https://istio.io/latest/docs/reference/config/security/request_authentication/
func (b *builder) tokenFilters(s *server) ([]*hcmv3.HttpFilter, error) {
	rules := b.view.set.RequestAuthenticationsFor(s.labels, s.namespace)
	if len(rules) == 0 {
		return nil, nil
	}
	if err := b.can(about(&rules[0].Policy.Meta), "spec.jwtRules"); err != nil {
		return nil, err
	}
	config, err := b.tokens(rules)
	if err != nil {
		return nil, err
	}
	return []*hcmv3.HttpFilter{httpFilter(jwtFilter, config)}, nil
}

// tokens puts rules together, which come by issuer. One rule asks for its token or
// none. Several ask for one good token of any of them; or that each place where one
// of them looks holds a good token or none.
func (b *builder) tokens(rules []policy.JWTRule) (*jwtv3.JwtAuthentication, error) {
	out := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{}, BypassCorsPreflight: true}
	missing := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
	var each, eachOrMissing []*jwtv3.JwtRequirement
	for i, r := range rules {
		provider, err := b.provider(r.Rule, fmt.Sprintf("%s spec.jwtRules (issuer %q)", about(&r.Policy.Meta), r.Rule.GetIssuer()), r.Policy.Namespace)
		if err != nil {
			return nil, err
		}
		name := "origins-" + strconv.Itoa(i)
		out.Providers[name] = provider
		one := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: name}}
		each = append(each, one)
		eachOrMissing = append(eachOrMissing, anyOf(one, missing))
	}
	requires := eachOrMissing[0]
	if len(rules) > 1 {
		requires = anyOf(append(each, &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{
			RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: eachOrMissing},
		}})...)
	}
	out.Rules = []*jwtv3.RequirementRule{{
		Match:           everything(),
		RequirementType: &jwtv3.RequirementRule_Requires{Requires: requires},
	}}
	return out, nil
}

func anyOf(some ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: some}}}
}

// provider is one issuer whose tokens are taken.
func (b *builder) provider(r *security.JWTRule, at, namespace string) (*jwtv3.JwtProvider, error) {
	if field := unknownField(r, jwtRuleFields); field != "" {
		return nil, unsupported(at, field)
	}
	out := &jwtv3.JwtProvider{
		Issuer:               r.GetIssuer(),
		Audiences:            r.GetAudiences(),
		Forward:              r.GetForwardOriginalToken(),
		ForwardPayloadHeader: r.GetOutputPayloadToHeader(),
		FromParams:           r.GetFromParams(),
		FromCookies:          r.GetFromCookies(),
		PayloadInMetadata:    payloadKey,
		NormalizePayloadInMetadata: &jwtv3.JwtProvider_NormalizePayload{
			SpaceDelimitedClaims: spaceDelimited(r.GetSpaceDelimitedClaims()),
		},
	}
	for _, h := range r.GetFromHeaders() {
		out.FromHeaders = append(out.FromHeaders, &jwtv3.JwtHeader{Name: h.GetName(), ValuePrefix: h.GetPrefix()})
	}
	for _, c := range r.GetOutputClaimToHeaders() {
		out.ClaimToHeaders = append(out.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: c.GetHeader(), ClaimName: c.GetClaim()})
	}
	switch {
	case r.GetJwks() != "" && r.GetJwksUri() != "":
		return nil, fmt.Errorf("%s: has both jwks and jwksUri", at)
	case r.GetJwks() != "":
		out.JwksSourceSpecifier = &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: publicKeys(r.GetJwks())},
		}}
	case r.GetJwksUri() == "":
		// Istio asks the issuer where its keys are. Whoever answers there in its place
		// would choose the keys.
		return nil, fmt.Errorf("%s jwksUri: required where there is no jwks, because nobody asks the issuer where its keys are", at)
	default:
		cluster, err := b.keysCluster(r.GetJwksUri(), namespace)
		if err != nil {
			return nil, fmt.Errorf("%s jwksUri: %w", at, err)
		}
		timeout := durationpb.New(keysTimeout)
		if r.GetTimeout() != nil {
			timeout = r.GetTimeout()
		}
		out.JwksSourceSpecifier = &jwtv3.JwtProvider_RemoteJwks{RemoteJwks: &jwtv3.RemoteJwks{
			HttpUri:       &corev3.HttpUri{Uri: r.GetJwksUri(), HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster}, Timeout: timeout},
			CacheDuration: durationpb.New(keysFresh),
		}}
	}
	return out, nil
}

// spaceDelimited are the claims whose text is a list of words: OAuth's, and those that a rule names.
func spaceDelimited(more []string) []string {
	out := append([]string{"permission", "scope"}, more...)
	slices.Sort(out)
	return slices.Compact(out)
}

// keysCluster names the cluster behind a URL, in the mesh or outside.
func (b *builder) keysCluster(uri, namespace string) (string, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return "", fmt.Errorf("is not a URL with a host and without a user") // without the URL: it may hold a password
	}
	port := uint64(80)
	switch u.Scheme {
	case "http":
	case "https":
		port = 443
	default:
		return "", fmt.Errorf("has a scheme other than http and https")
	}
	if p := u.Port(); p != "" {
		if port, err = strconv.ParseUint(p, 10, 16); err != nil {
			return "", fmt.Errorf("%q is not a port", p)
		}
	}
	return TrafficName{Port: uint32(port), Host: b.view.set.ResolveHost(strings.ToLower(u.Hostname()), namespace)}.String(), nil
}

// privateMembers are the members of a JSON web key that only its owner may know (RFC 7518, 6).
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// publicKeys is a set of keys without what is private in it: a private key that
// stands in a policy by mistake goes to no client. What is no set of keys stays as it is.
func publicKeys(set string) string {
	var document map[string]json.RawMessage
	var keys []map[string]json.RawMessage
	if json.Unmarshal([]byte(set), &document) != nil || json.Unmarshal(document["keys"], &keys) != nil {
		return set
	}
	changed := false
	for _, key := range keys {
		for _, name := range privateMembers {
			if _, ok := key[name]; ok {
				delete(key, name)
				changed = true
			}
		}
	}
	if !changed {
		return set
	}
	b, err := json.Marshal(keys)
	if err != nil {
		return set
	}
	document["keys"] = b
	if b, err = json.Marshal(document); err != nil {
		return set
	}
	return string(b)
}
