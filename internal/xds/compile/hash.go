package compile

import (
	"errors"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/sinew-mesh/sinew/routing"
)

// channelID is the filter state that stands for the gRPC channel (gRFC A42).
const channelID = "io.grpc.channel_id"

// hashPolicies reads what the hash is made of. A filter state other than the
// channel's is left out: nothing here sets it, and one that is not set gives no
// hash in Envoy either.
func hashPolicies(list []*routev3.RouteAction_HashPolicy) ([]routing.HashPolicy, *fault) {
	var out []routing.HashPolicy
	for i, m := range list {
		p, skip, f := hashPolicy(m)
		if f != nil {
			return nil, f.underIndex("hash_policy", i)
		}
		if skip {
			continue
		}
		p.Terminal = m.GetTerminal()
		out = append(out, p)
		if err := routing.CheckHash(out[len(out)-1:]); err != nil {
			_, why, _ := strings.Cut(err.Error(), "]: ") // after its place in this list of one
			return nil, invalid(errors.New(why)).underIndex("hash_policy", i)
		}
	}
	if err := routing.CheckHash(out); err != nil { // what they are not together
		return nil, faultf("hash_policy", "%v", err)
	}
	return out, nil
}

func hashPolicy(m *routev3.RouteAction_HashPolicy) (p routing.HashPolicy, skip bool, f *fault) {
	switch spec := m.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_Header_:
		p.Kind = routing.HashHeader
		if p.Header, f = headerName("header_name", spec.Header.GetHeaderName()); f == nil && spec.Header.GetRegexRewrite() != nil {
			p.Regex, f = regexRewrite(spec.Header.GetRegexRewrite())
			f = f.under("regex_rewrite")
		}
		return p, false, f.under("header")
	case *routev3.RouteAction_HashPolicy_Cookie_:
		p.Kind = routing.HashCookie
		p.Cookie, f = hashCookie(spec.Cookie)
		return p, false, f.under("cookie")
	case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
		p.Kind = routing.HashSource
		return p, !spec.ConnectionProperties.GetSourceIp(), nil
	case *routev3.RouteAction_HashPolicy_QueryParameter_:
		if spec.QueryParameter.GetName() == "" {
			return p, false, faultf("query_parameter.name", "is empty")
		}
		p.Kind, p.Query = routing.HashQuery, spec.QueryParameter.GetName()
		return p, false, nil
	case *routev3.RouteAction_HashPolicy_FilterState_:
		p.Kind = routing.HashChannel
		return p, spec.FilterState.GetKey() != channelID, nil
	default:
		return p, false, faultf("", "says nothing of what is hashed")
	}
}

func hashCookie(m *routev3.RouteAction_HashPolicy_Cookie) (c routing.HashCookieSpec, f *fault) {
	c = routing.HashCookieSpec{Name: m.GetName(), Path: m.GetPath(), Issue: m.GetTtl() != nil}
	if c.TTL, f = duration("ttl", m.GetTtl(), 0); f != nil {
		return c, f
	}
	c.TTL = c.TTL.Truncate(time.Second) // Max-Age counts seconds
	for _, a := range m.GetAttributes() {
		c.Attributes = append(c.Attributes, routing.CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
	}
	return c, nil
}
