package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/routing"
)

// corsPolicy is the message in the routes' own fields and the one for the filter.
type corsPolicy interface {
	comparable
	GetAllowOriginStringMatch() []*matcherv3.StringMatcher
	GetAllowMethods() string
	GetAllowHeaders() string
	GetExposeHeaders() string
	GetMaxAge() string
	GetAllowCredentials() *wrapperspb.BoolValue
	GetFilterEnabled() *corev3.RuntimeFractionalPercent
	GetAllowPrivateNetworkAccess() *wrapperspb.BoolValue
	GetForwardNotMatchingPreflights() *wrapperspb.BoolValue
}

// cors is the policy of one level. What it leaves out the levels above it say.
type cors struct {
	routing.CORS
	credentials, private, forward *wrapperspb.BoolValue
}

// corsOf reads a policy; nil gives nil.
func corsOf[M corsPolicy](m M) (*cors, *fault) {
	var none M
	if m == none {
		return nil, nil
	}
	c := &cors{credentials: m.GetAllowCredentials(), private: m.GetAllowPrivateNetworkAccess(), forward: m.GetForwardNotMatchingPreflights()}
	var f *fault
	if c.Origins, f = each("allow_origin_string_match", m.GetAllowOriginStringMatch(), origin); f != nil {
		return nil, f
	}
	for _, field := range []struct {
		name, value string
		to          *string
	}{
		{"allow_methods", m.GetAllowMethods(), &c.Methods},
		{"allow_headers", m.GetAllowHeaders(), &c.Headers},
		{"expose_headers", m.GetExposeHeaders(), &c.Expose},
		{"max_age", m.GetMaxAge(), &c.MaxAge},
	} {
		if strings.ContainsAny(field.value, "\r\n\x00") {
			return nil, faultf(field.name, "has a line break or a zero byte")
		}
		*field.to = field.value
	}
	if m.GetFilterEnabled() != nil {
		c.Enabled = &routing.Fraction{}
		if c.Enabled.PerMillion, f = runtimeFraction(m.GetFilterEnabled()); f != nil {
			return nil, f.under("filter_enabled")
		}
	}
	return c, nil
}

// origin reads a condition on the origin. One that matches "*" allows all, as in Envoy.
func origin(m *matcherv3.StringMatcher) (routing.StringMatch, *fault) {
	s, f := stringMatch(m)
	if f == nil && s.Matches("*") {
		return routing.Prefix("", false), nil
	}
	return s, f
}

// merged is what the levels, the most specific first, say together: each field
// is that of the first level that has it, but whether the rules apply at all is
// the first level's alone (Envoy). None gives nil.
func merged(levels []*cors) *routing.CORS {
	if len(levels) == 0 {
		return nil
	}
	out := routing.CORS{Enabled: levels[0].Enabled}
	var credentials, private, forward *wrapperspb.BoolValue
	for _, level := range levels {
		if len(out.Origins) == 0 {
			out.Origins = level.Origins
		}
		for _, text := range []struct{ to, from *string }{
			{&out.Methods, &level.Methods}, {&out.Headers, &level.Headers}, {&out.Expose, &level.Expose}, {&out.MaxAge, &level.MaxAge},
		} {
			if *text.to == "" {
				*text.to = *text.from
			}
		}
		for _, flag := range []struct {
			to   **wrapperspb.BoolValue
			from *wrapperspb.BoolValue
		}{{&credentials, level.credentials}, {&private, level.private}, {&forward, level.forward}} {
			if *flag.to == nil {
				*flag.to = flag.from
			}
		}
	}
	out.Credentials, out.PrivateNetwork = credentials.GetValue(), private.GetValue()
	out.RefuseUnmatched = forward != nil && !forward.GetValue()
	return &out
}
