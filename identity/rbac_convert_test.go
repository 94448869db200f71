package identity

//lint:file-ignore SA1019 recorded cases use Envoy's deprecated fields.

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/routing"
)

// This file turns Envoy's messages into rules, for tests on recorded cases.

func unmarshalProto(raw json.RawMessage, m proto.Message) error {
	return protojson.Unmarshal([]byte(strings.ReplaceAll(string(raw), "envoy::extensions::", "type.googleapis.com/envoy.extensions.")), m)
}

func protoText(m *matcherv3.StringMatcher) (routing.StringMatch, error) {
	fold := m.GetIgnoreCase()
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return routing.Exact(p.Exact, fold), nil
	case *matcherv3.StringMatcher_Prefix:
		return routing.Prefix(p.Prefix, fold), nil
	case *matcherv3.StringMatcher_Suffix:
		return routing.Suffix(p.Suffix, fold), nil
	case *matcherv3.StringMatcher_Contains:
		return routing.Contains(p.Contains, fold), nil
	case *matcherv3.StringMatcher_SafeRegex:
		return routing.Regex(p.SafeRegex.GetRegex())
	}
	return routing.StringMatch{}, fmt.Errorf("%T is not supported", m.GetMatchPattern())
}

func protoHeader(m *routev3.HeaderMatcher) (Condition, error) {
	out := routing.HeaderMatch{Name: routing.NewHeaderName(m.GetName()), Invert: m.GetInvertMatch(), MissingAsEmpty: m.GetTreatMissingHeaderAsEmpty()}
	var err error
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_StringMatch:
		out.String, err = protoText(s.StringMatch)
	case *routev3.HeaderMatcher_PresentMatch:
		out.Kind, out.Present = routing.HeaderPresent, s.PresentMatch
	case *routev3.HeaderMatcher_ExactMatch:
		out.String = routing.Exact(s.ExactMatch, false)
	case *routev3.HeaderMatcher_PrefixMatch:
		out.String = routing.Prefix(s.PrefixMatch, false)
	case *routev3.HeaderMatcher_SuffixMatch:
		out.String = routing.Suffix(s.SuffixMatch, false)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		out.String, err = routing.Regex(s.SafeRegexMatch.GetRegex())
	case *routev3.HeaderMatcher_RangeMatch:
		out.Kind, out.Start, out.End = routing.HeaderRange, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()
	default:
		err = fmt.Errorf("%T is not supported", s)
	}
	if err != nil {
		return Condition{}, err
	}
	return HeaderIs(out)
}

func protoPath(m *matcherv3.PathMatcher) (Condition, error) {
	switch p := m.GetPath().GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		if !m.GetPath().GetIgnoreCase() {
			return PathIs(p.Exact), nil
		}
	case *matcherv3.StringMatcher_Prefix:
		if !m.GetPath().GetIgnoreCase() {
			return PathBegins(p.Prefix), nil
		}
	}
	text, err := protoText(m.GetPath())
	return PathMatches(text), err
}

func protoValue(m *matcherv3.ValueMatcher) (ValueMatch, error) {
	switch p := m.GetMatchPattern().(type) {
	case nil:
		// gRPC accepts a metadata matcher without a value: there never is one.
		return ValuePresent(false), nil
	case *matcherv3.ValueMatcher_NullMatch_:
		return ValueNull(), nil
	case *matcherv3.ValueMatcher_StringMatch:
		text, err := protoText(p.StringMatch)
		return ValueText(text), err
	case *matcherv3.ValueMatcher_BoolMatch:
		return ValueBool(p.BoolMatch), nil
	case *matcherv3.ValueMatcher_PresentMatch:
		return ValuePresent(p.PresentMatch), nil
	case *matcherv3.ValueMatcher_DoubleMatch:
		if r := p.DoubleMatch.GetRange(); r != nil {
			return ValueNumber(r.GetStart(), r.GetEnd()), nil
		}
		return ValueNumber(p.DoubleMatch.GetExact(), p.DoubleMatch.GetExact()), nil
	case *matcherv3.ValueMatcher_ListMatch:
		element, err := protoValue(p.ListMatch.GetOneOf())
		return ValueInList(element), err
	case *matcherv3.ValueMatcher_OrMatch:
		var among []ValueMatch
		for _, m := range p.OrMatch.GetValueMatchers() {
			v, err := protoValue(m)
			if err != nil {
				return v, err
			}
			among = append(among, v)
		}
		return ValueOneOf(among...), nil
	}
	return ValueMatch{}, fmt.Errorf("%T is not supported", m.GetMatchPattern())
}

func protoMetadata(m *matcherv3.MetadataMatcher) (Condition, error) {
	path := []string{m.GetFilter()}
	for _, s := range m.GetPath() {
		path = append(path, s.GetKey())
	}
	value, err := protoValue(m.GetValue())
	if err != nil {
		return Condition{}, err
	}
	return ClaimIs(path, value, m.GetInvert())
}

func protoRange(m *corev3.CidrRange, make func(netip.Prefix) (Condition, error)) (Condition, error) {
	p, err := CIDR(m.GetAddressPrefix(), int(m.GetPrefixLen().GetValue()))
	if err != nil {
		return Condition{}, err
	}
	return make(p)
}

func protoList[M any](list []M, one func(M) (Condition, error)) ([]Condition, error) {
	var out []Condition
	for _, m := range list {
		c, err := one(m)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func protoCombined[M any](list []M, one func(M) (Condition, error), combine func(...Condition) (Condition, error)) (Condition, error) {
	parts, err := protoList(list, one)
	if err != nil {
		return Condition{}, err
	}
	return combine(parts...)
}

func protoNot(c Condition, err error) (Condition, error) {
	if err != nil {
		return Condition{}, err
	}
	return Not(c)
}

func protoPermission(m *rbacv3.Permission) (Condition, error) {
	switch p := m.GetRule().(type) {
	case *rbacv3.Permission_AndRules:
		return protoCombined(p.AndRules.GetRules(), protoPermission, AllOf)
	case *rbacv3.Permission_OrRules:
		return protoCombined(p.OrRules.GetRules(), protoPermission, AnyOf)
	case *rbacv3.Permission_NotRule:
		return protoNot(protoPermission(p.NotRule))
	case *rbacv3.Permission_Any:
		return Any(), nil
	case *rbacv3.Permission_Header:
		return protoHeader(p.Header)
	case *rbacv3.Permission_UrlPath:
		return protoPath(p.UrlPath)
	case *rbacv3.Permission_DestinationIp:
		return protoRange(p.DestinationIp, DestinationIPIn)
	case *rbacv3.Permission_DestinationPort:
		return DestinationPortIs(p.DestinationPort)
	case *rbacv3.Permission_DestinationPortRange:
		return DestinationPortIn(int64(p.DestinationPortRange.GetStart()), int64(p.DestinationPortRange.GetEnd()))
	case *rbacv3.Permission_Metadata:
		return protoMetadata(p.Metadata)
	case *rbacv3.Permission_RequestedServerName:
		text, err := protoText(p.RequestedServerName)
		return ServerNameMatches(text), err
	case *rbacv3.Permission_UriTemplate:
		var config uritemplatev3.UriTemplateMatchConfig
		if err := p.UriTemplate.GetTypedConfig().UnmarshalTo(&config); err != nil {
			return Condition{}, err
		}
		t, err := routing.ParseTemplate(config.GetPathTemplate())
		if err != nil {
			return Condition{}, err
		}
		return PathFits(t)
	}
	return Condition{}, fmt.Errorf("%T is not supported", m.GetRule())
}

func protoPrincipal(m *rbacv3.Principal) (Condition, error) {
	switch p := m.GetIdentifier().(type) {
	case *rbacv3.Principal_AndIds:
		return protoCombined(p.AndIds.GetIds(), protoPrincipal, AllOf)
	case *rbacv3.Principal_OrIds:
		return protoCombined(p.OrIds.GetIds(), protoPrincipal, AnyOf)
	case *rbacv3.Principal_NotId:
		return protoNot(protoPrincipal(p.NotId))
	case *rbacv3.Principal_Any:
		return Any(), nil
	case *rbacv3.Principal_Authenticated_:
		name := p.Authenticated.GetPrincipalName()
		if name == nil {
			return Authenticated(), nil
		}
		if exact, ok := name.GetMatchPattern().(*matcherv3.StringMatcher_Exact); ok && !name.GetIgnoreCase() && exact.Exact != "" {
			return PrincipalIs(exact.Exact)
		}
		text, err := protoText(name)
		return PrincipalMatches(text), err
	case *rbacv3.Principal_SourceIp:
		return protoRange(p.SourceIp, PeerIPIn)
	case *rbacv3.Principal_DirectRemoteIp:
		return protoRange(p.DirectRemoteIp, PeerIPIn)
	case *rbacv3.Principal_RemoteIp:
		return protoRange(p.RemoteIp, RemoteIPIn)
	case *rbacv3.Principal_Header:
		return protoHeader(p.Header)
	case *rbacv3.Principal_UrlPath:
		return protoPath(p.UrlPath)
	case *rbacv3.Principal_Metadata:
		return protoMetadata(p.Metadata)
	}
	return Condition{}, fmt.Errorf("%T is not supported", m.GetIdentifier())
}

func protoRuleSet(m *rbacv3.RBAC) (*RuleSet, error) {
	action, ok := map[rbacv3.RBAC_Action]Action{rbacv3.RBAC_ALLOW: Allow, rbacv3.RBAC_DENY: Deny, rbacv3.RBAC_LOG: Audit}[m.GetAction()]
	if !ok {
		return nil, fmt.Errorf("action %v is not supported", m.GetAction())
	}
	var rules []Rule
	for name, p := range m.GetPolicies() {
		if p.GetCondition() != nil || p.GetCheckedCondition() != nil {
			return nil, fmt.Errorf("rule %q: condition is not supported", name)
		}
		permissions, err := protoList(p.GetPermissions(), protoPermission)
		if err != nil {
			return nil, err
		}
		principals, err := protoList(p.GetPrincipals(), protoPrincipal)
		if err != nil {
			return nil, err
		}
		rules = append(rules, Rule{Name: name, Permissions: permissions, Principals: principals})
	}
	return NewRuleSet(action, false, rules)
}

func ruleSet(t testing.TB, action Action, rules ...Rule) *RuleSet {
	t.Helper()
	s, err := NewRuleSet(action, false, rules)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func authorizer(t testing.TB, sets ...*RuleSet) *Authorizer {
	t.Helper()
	a, err := NewAuthorizer(sets...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// must returns a condition that is known to be good.
func must(c Condition, err error) Condition {
	if err != nil {
		panic(err)
	}
	return c
}
