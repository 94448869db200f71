package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/identity"
)

// rulesReader turns envoy.config.rbac.v3 into rules of access. What is not
// understood is an error: a rule is never narrowed, widened or left out.
type rulesReader struct {
	// payload is the name under which every token's payload is found in the
	// metadata of envoy.filters.http.jwt_authn; "" if there is none that all have.
	payload string
	// tokens reports whether tokens are verified before the rules are asked.
	tokens bool
}

// ruleSet reads the rules of one filter. The names of policies are in their
// order, as Envoy tries them.
func (r *rulesReader) ruleSet(m *rbacv3.RBAC, action identity.Action, dryRun bool) (*identity.RuleSet, *fault) {
	rules := make([]identity.Rule, 0, len(m.GetPolicies()))
	for _, name := range sortedKeys(m.GetPolicies()) {
		rule, f := r.rule(m.GetPolicies()[name])
		if f != nil {
			return nil, f.underKey("policies", name)
		}
		rule.Name = name
		rules = append(rules, rule)
	}
	set, err := identity.NewRuleSet(action, dryRun, rules)
	if err != nil {
		return nil, faultf("", "%v", err)
	}
	return set, nil
}

func (r *rulesReader) rule(m *rbacv3.Policy) (out identity.Rule, f *fault) {
	// Without any, a policy would match nothing in Envoy.
	if out.Permissions, f = some("permissions", m.GetPermissions(), r.permission); f != nil {
		return out, f
	}
	out.Principals, f = some("principals", m.GetPrincipals(), r.principal)
	return out, f
}

func combined[M any](field string, list []M, one func(M) (identity.Condition, *fault), combine func(...identity.Condition) (identity.Condition, error)) (identity.Condition, *fault) {
	parts, f := some(field, list, one)
	if f != nil {
		return identity.Condition{}, f
	}
	return made(combine(parts...))
}

// made is the result of a constructor of identity.
func made(c identity.Condition, err error) (identity.Condition, *fault) {
	if err != nil {
		return identity.Condition{}, faultf("", "%v", err)
	}
	return c, nil
}

func (r *rulesReader) permission(m *rbacv3.Permission) (c identity.Condition, f *fault) {
	switch p := m.GetRule().(type) {
	case *rbacv3.Permission_AndRules:
		c, f = combined("rules", p.AndRules.GetRules(), r.permission, identity.AllOf)
		return c, f.under("and_rules")
	case *rbacv3.Permission_OrRules:
		c, f = combined("rules", p.OrRules.GetRules(), r.permission, identity.AnyOf)
		return c, f.under("or_rules")
	case *rbacv3.Permission_NotRule:
		if c, f = r.permission(p.NotRule); f == nil {
			c, f = made(identity.Not(c))
		}
		return c, f.under("not_rule")
	case *rbacv3.Permission_Any:
		return always(p.Any)
	case *rbacv3.Permission_Header:
		c, f = headerCondition(m.GetHeader())
		return c, f.under("header")
	case *rbacv3.Permission_UrlPath:
		c, f = pathCondition(p.UrlPath)
		return c, f.under("url_path")
	case *rbacv3.Permission_UriTemplate:
		c, f = templateCondition(p.UriTemplate)
		return c, f.under("uri_template")
	case *rbacv3.Permission_DestinationIp:
		c, f = rangeCondition(p.DestinationIp, identity.DestinationIPIn)
		return c, f.under("destination_ip")
	case *rbacv3.Permission_DestinationPort:
		c, f = made(identity.DestinationPortIs(p.DestinationPort))
		return c, f.under("destination_port")
	case *rbacv3.Permission_DestinationPortRange:
		c, f = made(identity.DestinationPortIn(int64(p.DestinationPortRange.GetStart()), int64(p.DestinationPortRange.GetEnd())))
		return c, f.under("destination_port_range")
	case *rbacv3.Permission_Metadata:
		c, f = r.claimCondition(p.Metadata)
		return c, f.under("metadata")
	case *rbacv3.Permission_SourcedMetadata:
		c, f = r.sourcedCondition(p.SourcedMetadata)
		return c, f.under("sourced_metadata")
	case *rbacv3.Permission_RequestedServerName:
		text, f := stringMatch(p.RequestedServerName)
		return identity.ServerNameMatches(text), f.under("requested_server_name")
	default:
		return c, faultf("", "there is no condition that is known")
	}
}

func (r *rulesReader) principal(m *rbacv3.Principal) (c identity.Condition, f *fault) {
	switch p := m.GetIdentifier().(type) {
	case *rbacv3.Principal_AndIds:
		c, f = combined("ids", p.AndIds.GetIds(), r.principal, identity.AllOf)
		return c, f.under("and_ids")
	case *rbacv3.Principal_OrIds:
		c, f = combined("ids", p.OrIds.GetIds(), r.principal, identity.AnyOf)
		return c, f.under("or_ids")
	case *rbacv3.Principal_NotId:
		if c, f = r.principal(p.NotId); f == nil {
			c, f = made(identity.Not(c))
		}
		return c, f.under("not_id")
	case *rbacv3.Principal_Any:
		return always(p.Any)
	case *rbacv3.Principal_Authenticated_:
		if p.Authenticated.GetPrincipalName() == nil {
			return identity.Authenticated(), nil
		}
		c, f = peerCondition(p.Authenticated.GetPrincipalName())
		return c, f.under("principal_name").under("authenticated")
	case *rbacv3.Principal_SourceIp:
		// The address of the connection: only the proxy protocol, which is not
		// spoken here, would make it another than direct_remote_ip.
		c, f = rangeCondition(p.SourceIp, identity.PeerIPIn)
		return c, f.under("source_ip")
	case *rbacv3.Principal_DirectRemoteIp:
		c, f = rangeCondition(p.DirectRemoteIp, identity.PeerIPIn)
		return c, f.under("direct_remote_ip")
	case *rbacv3.Principal_RemoteIp:
		c, f = rangeCondition(p.RemoteIp, identity.RemoteIPIn)
		return c, f.under("remote_ip")
	case *rbacv3.Principal_Header:
		c, f = headerCondition(m.GetHeader())
		return c, f.under("header")
	case *rbacv3.Principal_UrlPath:
		c, f = pathCondition(p.UrlPath)
		return c, f.under("url_path")
	case *rbacv3.Principal_Metadata:
		c, f = r.claimCondition(p.Metadata)
		return c, f.under("metadata")
	case *rbacv3.Principal_SourcedMetadata:
		c, f = r.sourcedCondition(p.SourcedMetadata)
		return c, f.under("sourced_metadata")
	default:
		return c, faultf("", "there is no condition that is known")
	}
}

func always(any bool) (identity.Condition, *fault) {
	if !any {
		return identity.Condition{}, faultf("any", "false is not a condition")
	}
	return identity.Any(), nil
}

// peerCondition reads a condition on the peer's principal. Exact IDs and
// Istio's form for a namespace are those that rules are indexed by.
func peerCondition(m *matcherv3.StringMatcher) (identity.Condition, *fault) {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		if m.GetIgnoreCase() {
			break
		}
		c, f := made(identity.PrincipalIs(p.Exact))
		return c, f.under("exact")
	case *matcherv3.StringMatcher_SafeRegex:
		if namespace, ok := istioNamespace(p.SafeRegex.GetRegex()); ok {
			return made(identity.NamespaceIs(namespace))
		}
	}
	text, f := stringMatch(m)
	if f != nil {
		return identity.Condition{}, f
	}
	return identity.PrincipalMatches(text), nil
}

// istioNamespace reads the expression that Istio writes for a namespace,
// ".*/ns/<namespace>/.*", if there is nothing special in the name.
func istioNamespace(expression string) (string, bool) {
	name, begins := strings.CutPrefix(expression, ".*/ns/")
	name, ends := strings.CutSuffix(name, "/.*")
	return name, begins && ends && name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-')
	})
}

func headerCondition(m *routev3.HeaderMatcher) (identity.Condition, *fault) {
	h, f := headerMatch(m)
	if f != nil {
		return identity.Condition{}, f
	}
	return made(identity.HeaderIs(h))
}

func pathCondition(m *matcherv3.PathMatcher) (identity.Condition, *fault) {
	text, f := stringMatch(m.GetPath())
	if f != nil {
		return identity.Condition{}, f.under("path")
	}
	if !m.GetPath().GetIgnoreCase() {
		switch p := m.GetPath().GetMatchPattern().(type) {
		case *matcherv3.StringMatcher_Exact:
			return identity.PathIs(p.Exact), nil
		case *matcherv3.StringMatcher_Prefix:
			return identity.PathBegins(p.Prefix), nil
		}
	}
	return identity.PathMatches(text), nil
}

func templateCondition(m *corev3.TypedExtensionConfig) (identity.Condition, *fault) {
	t, f := pathTemplate(m)
	if f != nil {
		return identity.Condition{}, f
	}
	return made(identity.PathFits(t))
}

func rangeCondition(m *corev3.CidrRange, in func(netip.Prefix) (identity.Condition, error)) (identity.Condition, *fault) {
	p, f := cidr(m)
	if f != nil {
		return identity.Condition{}, f
	}
	return made(in(p))
}

// cidr reads a range, of Envoy's or of xDS' own message.
func cidr[M interface {
	GetAddressPrefix() string
	GetPrefixLen() *wrapperspb.UInt32Value
}](m M) (netip.Prefix, *fault) {
	p, err := identity.CIDR(m.GetAddressPrefix(), int(m.GetPrefixLen().GetValue()))
	if err != nil {
		return p, faultf("", "%v", err)
	}
	return p, nil
}

// tokenFilter is the filter that verified tokens leave their claims under.
const tokenFilter = "envoy.filters.http.jwt_authn"

func (r *rulesReader) sourcedCondition(m *rbacv3.SourcedMetadata) (identity.Condition, *fault) {
	if m.GetMetadataSource() != rbacv3.MetadataSource_DYNAMIC {
		return identity.Condition{}, faultf("metadata_source", "%v is not supported", m.GetMetadataSource())
	}
	c, f := r.claimCondition(m.GetMetadataMatcher())
	return c, f.under("metadata_matcher")
}

// claimCondition reads a condition on dynamic metadata. The only one that
// there is are the claims of the request's token.
func (r *rulesReader) claimCondition(m *matcherv3.MetadataMatcher) (identity.Condition, *fault) {
	if m.GetFilter() != tokenFilter {
		return identity.Condition{}, faultf("filter", "%q is not supported: only %q has metadata", m.GetFilter(), tokenFilter)
	}
	if len(m.GetPath()) < 2 {
		return identity.Condition{}, faultf("path", "names no claim")
	}
	path := make([]string, len(m.GetPath()))
	for i, s := range m.GetPath() {
		if path[i] = s.GetKey(); path[i] == "" {
			return identity.Condition{}, faultf("key", "is empty").underIndex("path", i)
		}
	}
	if r.tokens && path[0] != r.payload {
		return identity.Condition{}, faultf("path[0].key", "%q is not the payload_in_metadata of every provider of %s", path[0], tokenFilter)
	}
	value, f := valueMatch(m.GetValue())
	if f != nil {
		return identity.Condition{}, f.under("value")
	}
	return made(identity.ClaimIs(path[1:], value, m.GetInvert()))
}

func valueMatch(m *matcherv3.ValueMatcher) (identity.ValueMatch, *fault) {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_NullMatch_:
		return identity.ValueNull(), nil
	case *matcherv3.ValueMatcher_StringMatch:
		text, f := stringMatch(p.StringMatch)
		return identity.ValueText(text), f.under("string_match")
	case *matcherv3.ValueMatcher_BoolMatch:
		return identity.ValueBool(p.BoolMatch), nil
	case *matcherv3.ValueMatcher_PresentMatch:
		if !p.PresentMatch {
			return identity.ValueMatch{}, faultf("present_match", "false matches nothing in Envoy, least of all what it seems to: not supported")
		}
		return identity.ValuePresent(true), nil
	case *matcherv3.ValueMatcher_DoubleMatch:
		v, f := numberMatch(p.DoubleMatch)
		return v, f.under("double_match")
	case *matcherv3.ValueMatcher_ListMatch:
		element, f := valueMatch(p.ListMatch.GetOneOf())
		return identity.ValueInList(element), f.under("one_of").under("list_match")
	case *matcherv3.ValueMatcher_OrMatch:
		if len(p.OrMatch.GetValueMatchers()) < 2 {
			return identity.ValueMatch{}, faultf("or_match.value_matchers", "there are fewer than two")
		}
		among, f := each("value_matchers", p.OrMatch.GetValueMatchers(), valueMatch)
		return identity.ValueOneOf(among...), f.under("or_match")
	default:
		return identity.ValueMatch{}, faultf("", "there is no condition that is known")
	}
}

func numberMatch(m *matcherv3.DoubleMatcher) (identity.ValueMatch, *fault) {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.DoubleMatcher_Range:
		return identity.ValueNumber(p.Range.GetStart(), p.Range.GetEnd()), nil
	case *matcherv3.DoubleMatcher_Exact:
		return identity.ValueNumber(p.Exact, p.Exact), nil
	default:
		return identity.ValueMatch{}, faultf("", "there is no condition that is known")
	}
}
