package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/routing"
)

func match(m *routev3.RouteMatch, out *routing.Match) *fault {
	if f := pathMatch(m, &out.Path); f != nil {
		return f
	}
	return conditionsBesidePath(m, out)
}

func conditionsBesidePath(m *routev3.RouteMatch, out *routing.Match) *fault {
	out.GRPC = m.GetGrpc() != nil
	headers, f := each("headers", m.GetHeaders(), headerMatch)
	if f != nil {
		return f
	}
	out.Headers = append(out.Headers, headers...)
	if out.Query, f = each("query_parameters", m.GetQueryParameters(), queryMatch); f != nil {
		return f
	}
	if out.Cookies, f = each("cookies", m.GetCookies(), cookieMatch); f != nil {
		return f
	}
	if out.Claims, f = each("dynamic_metadata", m.GetDynamicMetadata(), claimMatch); f != nil {
		return f
	}
	if m.GetRuntimeFraction() != nil {
		perMillion, f := runtimeFraction(m.GetRuntimeFraction())
		if f != nil {
			return f.under("runtime_fraction")
		}
		out.Fraction = &routing.Fraction{PerMillion: perMillion}
	}
	return nil
}

func pathMatch(m *routev3.RouteMatch, out *routing.PathMatch) *fault {
	// Envoy leaves case_sensitive out of account for an expression, which says itself what it means.
	out.IgnoreCase = m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.Kind, out.Value = routing.PathPrefix, p.Prefix
	case *routev3.RouteMatch_Path:
		out.Kind, out.Value = routing.PathExact, p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		if p.PathSeparatedPrefix == "" || strings.HasSuffix(p.PathSeparatedPrefix, "/") || strings.ContainsAny(p.PathSeparatedPrefix, "?#") {
			return faultf("path_separated_prefix", "%q is empty, ends in a slash or has a query or fragment", p.PathSeparatedPrefix)
		}
		out.Kind, out.Value = routing.PathSeparatedPrefix, p.PathSeparatedPrefix
	case *routev3.RouteMatch_SafeRegex:
		re, f := regex(p.SafeRegex)
		if f != nil {
			return f.under("safe_regex")
		}
		*out = routing.PathMatch{Kind: routing.PathRegex, Regex: re}
	case *routev3.RouteMatch_PathMatchPolicy:
		t, f := pathTemplate(p.PathMatchPolicy)
		if f != nil {
			return f.under("path_match_policy")
		}
		*out = routing.PathMatch{Kind: routing.PathTemplate, Template: t}
	case *routev3.RouteMatch_ConnectMatcher_:
		return faultf("connect_matcher", notSupported)
	default:
		return faultf("", "there is no condition on the path")
	}
	return nil
}

func pathTemplate(m *corev3.TypedExtensionConfig) (*routing.Template, *fault) {
	var config uritemplatev3.UriTemplateMatchConfig
	if f := extension(m.GetTypedConfig(), &config); f != nil {
		return nil, f.under("typed_config")
	}
	t, err := routing.ParseTemplate(config.GetPathTemplate())
	if err != nil {
		return nil, faultf("typed_config.path_template", "%v", err)
	}
	return t, nil
}

// claimMatch reads a condition on the claims of the request that is being
// served, as Istio writes them: a text is compared with the claim, or with each
// of its elements where it is a list.
func claimMatch(m *matcherv3.MetadataMatcher) (c routing.ClaimMatch, f *fault) {
	if m.GetFilter() != tokenFilter {
		return c, faultf("filter", "%q is not supported: only %q has metadata", m.GetFilter(), tokenFilter)
	}
	if len(m.GetPath()) < 2 || m.GetPath()[0].GetKey() != tokenPayload {
		return c, faultf("path", "must be %q and the path of a claim", tokenPayload)
	}
	for i, segment := range m.GetPath()[1:] {
		if segment.GetKey() == "" {
			return c, faultf("key", "is empty").underIndex("path", i+1)
		}
		c.Path = append(c.Path, segment.GetKey())
	}
	c.Invert = m.GetInvert()
	text, f := claimText(m.GetValue(), &c.Present)
	switch {
	case f != nil:
		return c, f.under("value")
	case c.Present:
		return c, nil
	}
	c.Value, f = stringMatch(text)
	return c, f.under("value")
}

// tokenPayload is the name that Istio gives the claims in the metadata of tokenFilter.
const tokenPayload = "payload"

// claimText is the one text that the value is compared with.
func claimText(m *matcherv3.ValueMatcher, present *bool) (*matcherv3.StringMatcher, *fault) {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_PresentMatch:
		if !p.PresentMatch {
			return nil, faultf("present_match", "false matches nothing in Envoy, least of all what it seems to: not supported")
		}
		*present = true
		return nil, nil
	case *matcherv3.ValueMatcher_StringMatch:
		return p.StringMatch, nil
	case *matcherv3.ValueMatcher_ListMatch:
		one, ok := p.ListMatch.GetOneOf().GetMatchPattern().(*matcherv3.ValueMatcher_StringMatch)
		if !ok {
			return nil, faultf("list_match.one_of", "must be a string_match")
		}
		return one.StringMatch, nil
	case *matcherv3.ValueMatcher_OrMatch:
		var first *matcherv3.StringMatcher
		for i, v := range p.OrMatch.GetValueMatchers() {
			text, f := claimText(v, present)
			switch {
			case f != nil:
			case *present || text == nil:
				f = faultf("", "must be a string_match or a list_match")
			case first == nil:
				first = text
			case !proto.Equal(first, text):
				f = faultf("", "differs from the first: not supported")
			}
			if f != nil {
				return nil, f.underIndex("value_matchers", i).under("or_match")
			}
		}
		if first == nil {
			return nil, faultf("or_match.value_matchers", "there is none")
		}
		return first, nil
	default:
		return nil, faultf("", "the condition is not supported")
	}
}

// headerMatch reads one condition on a header. Without any it asks that the
// header is there (Envoy).
func headerMatch(m *routev3.HeaderMatcher) (routing.HeaderMatch, *fault) {
	h := routing.HeaderMatch{
		Name:           routing.NewHeaderName(m.GetName()),
		Invert:         m.GetInvertMatch(),
		MissingAsEmpty: m.GetTreatMissingHeaderAsEmpty(),
	}
	if m.GetName() == "" {
		return h, faultf("name", "is empty")
	}
	if strings.ContainsAny(m.GetName(), "\r\n\x00") {
		return h, faultf("name", "%q has a control character", m.GetName())
	}
	var f *fault
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case nil:
		h.Kind, h.Present = routing.HeaderPresent, true
	case *routev3.HeaderMatcher_PresentMatch:
		h.Kind, h.Present = routing.HeaderPresent, s.PresentMatch
	case *routev3.HeaderMatcher_RangeMatch:
		h.Kind, h.Start, h.End = routing.HeaderRange, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_StringMatch:
		h.String, f = stringMatch(s.StringMatch)
		f = f.under("string_match")
	case *routev3.HeaderMatcher_ExactMatch:
		h.String = routing.Exact(s.ExactMatch, false)
	case *routev3.HeaderMatcher_PrefixMatch:
		h.String, f = part("prefix_match", s.PrefixMatch, false, routing.Prefix)
	case *routev3.HeaderMatcher_SuffixMatch:
		h.String, f = part("suffix_match", s.SuffixMatch, false, routing.Suffix)
	case *routev3.HeaderMatcher_ContainsMatch:
		h.String, f = part("contains_match", s.ContainsMatch, false, routing.Contains)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		h.String, f = regex(s.SafeRegexMatch)
		f = f.under("safe_regex_match")
	default:
		f = faultf("", "the condition is not known")
	}
	return h, f
}

// queryMatch reads one condition on a query parameter. Without any it asks
// that the parameter is there (Envoy).
func queryMatch(m *routev3.QueryParameterMatcher) (routing.QueryMatch, *fault) {
	q := routing.QueryMatch{Name: m.GetName()}
	if q.Name == "" {
		return q, faultf("name", "is empty")
	}
	var f *fault
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case nil:
		q.Kind, q.Present = routing.QueryPresent, true
	case *routev3.QueryParameterMatcher_PresentMatch:
		q.Kind, q.Present = routing.QueryPresent, s.PresentMatch
	case *routev3.QueryParameterMatcher_StringMatch:
		q.Kind = routing.QueryString
		q.String, f = stringMatch(s.StringMatch)
		f = f.under("string_match")
	default:
		f = faultf("", "the condition is not known")
	}
	return q, f
}

func cookieMatch(m *routev3.CookieMatcher) (c routing.CookieMatch, f *fault) {
	if m.GetName() == "" {
		return c, faultf("name", "is empty")
	}
	c.Name, c.Invert = m.GetName(), m.GetInvertMatch()
	c.Value, f = stringMatch(m.GetStringMatch())
	return c, f.under("string_match")
}

func stringMatch(m *matcherv3.StringMatcher) (routing.StringMatch, *fault) {
	ignoreCase := m.GetIgnoreCase() // without effect on safe_regex
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return routing.Exact(p.Exact, ignoreCase), nil
	case *matcherv3.StringMatcher_Prefix:
		return part("prefix", p.Prefix, ignoreCase, routing.Prefix)
	case *matcherv3.StringMatcher_Suffix:
		return part("suffix", p.Suffix, ignoreCase, routing.Suffix)
	case *matcherv3.StringMatcher_Contains:
		return part("contains", p.Contains, ignoreCase, routing.Contains)
	case *matcherv3.StringMatcher_SafeRegex:
		re, f := regex(p.SafeRegex)
		return re, f.under("safe_regex")
	default:
		return routing.StringMatch{}, faultf("", "there is no pattern")
	}
}

// part is a match of a part of a string, which must not be empty: it would match everything.
func part(field, value string, ignoreCase bool, match func(string, bool) routing.StringMatch) (routing.StringMatch, *fault) {
	if value == "" {
		return routing.StringMatch{}, faultf(field, "is empty")
	}
	return match(value, ignoreCase), nil
}

func regex(m *matcherv3.RegexMatcher) (routing.StringMatch, *fault) {
	if m.GetRegex() == "" {
		return routing.StringMatch{}, faultf("regex", "is empty")
	}
	re, err := routing.Regex(m.GetRegex())
	if err != nil {
		return routing.StringMatch{}, faultf("regex", "%v", err)
	}
	return re, nil
}

func runtimeFraction(m *corev3.RuntimeFractionalPercent) (perMillion uint32, f *fault) {
	if m.GetDefaultValue() == nil {
		return 0, faultf("default_value", "missing")
	}
	perMillion, f = fraction(m.GetDefaultValue())
	return perMillion, f.under("default_value")
}

// fraction is a share in millionths, at most all.
func fraction(m *typev3.FractionalPercent) (perMillion uint32, f *fault) {
	var factor uint64
	switch m.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		factor = 10_000
	case typev3.FractionalPercent_TEN_THOUSAND:
		factor = 100
	case typev3.FractionalPercent_MILLION:
		factor = 1
	default:
		return 0, faultf("denominator", "value %d is not known", m.GetDenominator())
	}
	return uint32(min(uint64(m.GetNumerator())*factor, 1_000_000)), nil
}
