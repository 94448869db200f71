package translate

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// maxAlternatives bounds how many routes one match becomes for gRPC.
const maxAlternatives = 16

// match translates the conditions on a request. All clients but gRPC get one
// RouteMatch. A gRPC client may get several, to be tried in turn, where one can
// not say it; or none, with a note, where nothing that gRPC reads can: then the
// request goes on to the next route, as it would where the match fails.
func (b *builder) match(m *networking.HTTPMatchRequest, at string) ([]*routev3.RouteMatch, error) {
	rm := everything()
	if uri := m.GetUri(); uri != nil {
		switch u := uri.GetMatchType().(type) {
		case *networking.StringMatch_Exact:
			rm.PathSpecifier = &routev3.RouteMatch_Path{Path: u.Exact}
		case *networking.StringMatch_Prefix:
			// A prefix of the string, not of segments: "/v2" also covers "/v2x".
			rm.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: u.Prefix}
		case *networking.StringMatch_Regex:
			rm.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: fullMatch(u.Regex)}
		}
		if m.GetIgnoreUriCase() && rm.GetSafeRegex() == nil {
			rm.CaseSensitive = wrapperspb.Bool(false)
		}
	}
	sets := [][]*routev3.HeaderMatcher{nil}
	and := func(h ...*routev3.HeaderMatcher) {
		for i := range sets {
			sets[i] = append(sets[i], h...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetHeaders())) {
		if strings.HasPrefix(name, "@") {
			c, err := b.claim(name, m.GetHeaders()[name], at+".headers."+name)
			if c == nil {
				return nil, err
			}
			rm.DynamicMetadata = append(rm.DynamicMetadata, c)
			continue
		}
		and(header(name, m.GetHeaders()[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetWithoutHeaders())) {
		if strings.HasPrefix(name, "@") {
			c, err := b.claim(name, m.GetWithoutHeaders()[name], at+".withoutHeaders."+name)
			if c == nil {
				return nil, err
			}
			c.Invert = true
			rm.DynamicMetadata = append(rm.DynamicMetadata, c)
			continue
		}
		h := header(name, m.GetWithoutHeaders()[name])
		h.InvertMatch = true
		if _, present := h.HeaderMatchSpecifier.(*routev3.HeaderMatcher_PresentMatch); present {
			and(h)
			continue
		}
		if b.client.Agent != GRPC {
			// Without this an absent header fails the inverted match too.
			h.TreatMissingHeaderAsEmpty = true
			and(h)
			continue
		}
		// gRPC does not read treat_missing_header_as_empty and fails an inverted
		// match on an absent header, so "absent" becomes a route of its own.
		if emptyMatches(m.GetWithoutHeaders()[name]) {
			and(h) // an absent header counts as empty, which the rule excludes
			continue
		}
		if 2*len(sets) > maxAlternatives {
			b.note(at+".withoutHeaders", "gRPC would need more than %d routes to say this: the match is left out and the next routes apply", maxAlternatives)
			return nil, nil
		}
		absent := &routev3.HeaderMatcher{Name: h.Name, InvertMatch: true,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
		more := make([][]*routev3.HeaderMatcher, 0, 2*len(sets))
		for _, set := range sets {
			more = append(more, append(slices.Clone(set), absent), append(slices.Clone(set), h))
		}
		sets = more
	}
	for _, pseudo := range []struct {
		name, field string
		match       *networking.StringMatch
	}{{":method", "method", m.GetMethod()}, {":scheme", "scheme", m.GetScheme()}, {":authority", "authority", m.GetAuthority()}} {
		if pseudo.match == nil {
			continue
		}
		if b.client.Agent != GRPC {
			and(header(pseudo.name, pseudo.match))
			continue
		}
		// gRPC's matchers see metadata only. Its method is always POST.
		if pseudo.name == ":method" {
			if !matchesString(pseudo.match, "POST") {
				return nil, nil
			}
			continue
		}
		b.note(at+"."+pseudo.field, "gRPC can not match it: the match is left out and the next routes apply")
		return nil, nil
	}
	if len(m.GetQueryParams()) > 0 && b.client.Agent == GRPC {
		b.note(at+".queryParams", "gRPC requests have no query: the match is left out and the next routes apply")
		return nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetQueryParams())) {
		q := &routev3.QueryParameterMatcher{Name: name}
		if s := stringMatcher(m.GetQueryParams()[name]); s != nil {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: s}
		} else {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		}
		rm.QueryParameters = append(rm.QueryParameters, q)
	}
	if len(sets) == 1 {
		rm.Headers = sets[0]
		return []*routev3.RouteMatch{rm}, nil
	}
	out := make([]*routev3.RouteMatch, len(sets))
	for i, set := range sets {
		out[i] = &routev3.RouteMatch{PathSpecifier: rm.PathSpecifier, CaseSensitive: rm.CaseSensitive, Headers: set}
	}
	return out, nil
}

// claim matches a claim of the token of the request that the client is serving: text, or
// a list that has it. The metadata is that of Envoy's filter for tokens, as Istio writes
// it for gateways. gRPC has no such matches: then it is nil, with a note.
func (b *builder) claim(name string, m *networking.StringMatch, at string) (*matcherv3.MetadataMatcher, error) {
	path, ok := policy.ClaimPath(name)
	if !ok {
		return nil, fmt.Errorf("%s: names no claim", at)
	}
	if b.client.Agent == GRPC {
		b.note(at, "gRPC can not match claims: the match is left out and the next routes apply")
		return nil, nil
	}
	out := &matcherv3.MetadataMatcher{
		Filter: "envoy.filters.http.jwt_authn",
		Path:   []*matcherv3.MetadataMatcher_PathSegment{metadataKey("payload")},
	}
	for _, key := range path {
		out.Path = append(out.Path, metadataKey(key))
	}
	s := stringMatcher(m)
	if s == nil {
		out.Value = &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
		return out, nil
	}
	text := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: s}}
	list := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
		MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: text},
	}}}
	out.Value = &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{
		ValueMatchers: []*matcherv3.ValueMatcher{list, text},
	}}}
	return out, nil
}

func metadataKey(key string) *matcherv3.MetadataMatcher_PathSegment {
	return &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}}
}

// header matches one header. Names go out in lower case: gRPC before 1.85 never
// matched others. An empty condition asks only that the header is there.
func header(name string, m *networking.StringMatch) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: strings.ToLower(name)}
	if s := stringMatcher(m); s != nil {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: s}
	} else {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	}
	return h
}

// stringMatcher is nil where the condition is mere presence: {} or the regex "*",
// which is not an expression but Istio's old way to say so.
func stringMatcher(m *networking.StringMatch) *matcherv3.StringMatcher {
	switch s := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s.Exact}}
	case *networking.StringMatch_Prefix:
		if s.Prefix == "" {
			return nil // every value has it, and Envoy refuses an empty prefix
		}
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s.Prefix}}
	case *networking.StringMatch_Regex:
		if s.Regex == "*" {
			return nil
		}
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: fullMatch(s.Regex)}}
	}
	return nil
}

// fullMatch is a regular expression over the whole value, as Envoy and gRPC read every safe_regex.
func fullMatch(expr string) *matcherv3.RegexMatcher {
	return &matcherv3.RegexMatcher{Regex: expr}
}

// matchesString decides a condition on a value that is known here.
func matchesString(m *networking.StringMatch, value string) bool {
	switch s := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return value == s.Exact
	case *networking.StringMatch_Prefix:
		return strings.HasPrefix(value, s.Prefix)
	case *networking.StringMatch_Regex:
		if s.Regex == "*" {
			return true
		}
		re, err := regexp.Compile("^(?:" + s.Regex + ")$")
		return err == nil && re.MatchString(value)
	}
	return true
}

// emptyMatches reports whether the empty string satisfies the condition.
func emptyMatches(m *networking.StringMatch) bool { return matchesString(m, "") }
