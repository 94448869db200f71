package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonlimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// limitFilter is a rate limit of a filter chain, which routes may replace.
type limitFilter struct {
	name string
	// limit is nil where the filter limits nothing until a route configures it.
	limit *resilience.RateLimit
}

func (a *access) rateLimit(name string, m *ratelimitv3.LocalRateLimit, disabled bool) *fault {
	if f := a.reach(stageLimits, false); f != nil {
		return f
	}
	filter := limitFilter{name: name}
	if m.GetTokenBucket() != nil || len(m.GetDescriptors()) > 0 {
		limit, f := rateLimit(name, m)
		if f != nil {
			return f
		}
		if !disabled {
			filter.limit = limit
		}
	}
	a.limits = append(a.limits, filter)
	return nil
}

// rateLimit compiles the limit of a filter or of a route, which has been checked against the lists.
func rateLimit(filter string, m *ratelimitv3.LocalRateLimit) (*resilience.RateLimit, *fault) {
	c := resilience.RateLimitConfig{
		Name:              m.GetStatPrefix(),
		OnlyUnmatched:     m.GetAlwaysConsumeDefaultTokenBucket() != nil && !m.GetAlwaysConsumeDefaultTokenBucket().GetValue(),
		MaxDynamic:        m.GetMaxDynamicDescriptors().GetValue(),
		Status:            int(m.GetStatus().GetCode()),
		ResourceExhausted: m.GetRateLimitedAsResourceExhausted(),
		RetryAfter:        m.GetEnableRetryAfterHeader(),
	}
	var f *fault
	if c.Identity, f = limitIdentity(filter, m); f != nil {
		return nil, f
	}
	switch v := m.GetEnableXRatelimitHeaders(); v {
	case commonlimitv3.XRateLimitHeadersRFCVersion_OFF:
	case commonlimitv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03:
		c.Headers = true
	default:
		return nil, faultf("enable_x_ratelimit_headers", "value %d is not known", v)
	}
	for _, share := range []struct {
		field string
		m     *corev3.RuntimeFractionalPercent
		out   *routing.Fraction
	}{{"filter_enabled", m.GetFilterEnabled(), &c.Enabled}, {"filter_enforced", m.GetFilterEnforced(), &c.Enforced}} {
		if share.m == nil {
			continue
		}
		if share.out.PerMillion, f = runtimeFraction(share.m); f != nil {
			return nil, f.under(share.field)
		}
	}
	if m.GetTokenBucket() != nil {
		b, f := tokenBucket(m.GetTokenBucket())
		if f != nil {
			return nil, f.under("token_bucket")
		}
		c.Bucket = &b
	}
	if c.Descriptors, f = each("descriptors", m.GetDescriptors(), limitDescriptor); f != nil {
		return nil, f
	}
	if c.Actions, f = each("rate_limits", m.GetRateLimits(), limitActions); f != nil {
		return nil, f
	}
	if c.ResponseHeaders, f = each("response_headers_to_add", m.GetResponseHeadersToAdd(), limitHeader); f != nil {
		return nil, f
	}
	if c.RequestHeaders, f = each("request_headers_to_add_when_not_enforced", m.GetRequestHeadersToAddWhenNotEnforced(), limitHeader); f != nil {
		return nil, f
	}
	limit, err := resilience.NewRateLimit(c)
	if err != nil {
		return nil, invalid(err)
	}
	return limit, nil
}

// limitIdentity is the same for equal configurations of one filter, so that
// its buckets keep their levels when the listener changes elsewhere.
func limitIdentity(filter string, m proto.Message) (string, *fault) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "", faultf("", "%v", err)
	}
	h := sha256.New()
	h.Write([]byte(filter))
	h.Write([]byte{0})
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil)), nil
}

func tokenBucket(m *typev3.TokenBucket) (b resilience.TokenBucket, f *fault) {
	b.MaxTokens, b.TokensPerFill = m.GetMaxTokens(), 1
	if m.GetTokensPerFill() != nil {
		if b.TokensPerFill = m.GetTokensPerFill().GetValue(); b.TokensPerFill == 0 {
			return b, faultf("tokens_per_fill", "must be more than 0")
		}
	}
	if m.GetFillInterval() == nil {
		return b, faultf("fill_interval", "missing")
	}
	b.FillInterval, f = positive("fill_interval", m.GetFillInterval(), 0)
	return b, f
}

func limitDescriptor(m *commonlimitv3.LocalRateLimitDescriptor) (d resilience.LimitDescriptor, f *fault) {
	d.Shadow = m.GetShadowMode()
	for _, e := range m.GetEntries() {
		d.Entries = append(d.Entries, resilience.LimitEntry{Key: e.GetKey(), Value: e.GetValue()})
	}
	if m.GetTokenBucket() == nil {
		return d, faultf("token_bucket", "missing")
	}
	d.Bucket, f = tokenBucket(m.GetTokenBucket())
	return d, f.under("token_bucket")
}

func limitActions(m *routev3.RateLimit) (out resilience.LimitActions, f *fault) {
	if h := m.GetHitsAddend(); h != nil {
		n := h.GetNumber().GetValue()
		if h.GetNumber() == nil || n == 0 || n > math.MaxUint32 {
			return out, faultf("hits_addend.number", "%d is not between 1 and %d", n, uint32(math.MaxUint32))
		}
		out.Hits = uint32(n)
	}
	out.Actions, f = each("actions", m.GetActions(), limitAction)
	return out, f
}

func limitAction(m *routev3.RateLimit_Action) (a resilience.LimitAction, f *fault) {
	switch s := m.GetActionSpecifier().(type) {
	case *routev3.RateLimit_Action_GenericKey_:
		return resilience.LimitAction{Kind: resilience.LimitGenericKey, Key: s.GenericKey.GetDescriptorKey(), Value: s.GenericKey.GetDescriptorValue()}, nil
	case *routev3.RateLimit_Action_RequestHeaders_:
		h := s.RequestHeaders
		return resilience.LimitAction{
			Kind: resilience.LimitRequestHeader, Key: h.GetDescriptorKey(),
			Header: routing.NewHeaderName(h.GetHeaderName()), SkipIfAbsent: h.GetSkipIfAbsent(),
		}, nil
	case *routev3.RateLimit_Action_QueryParameters_:
		q := s.QueryParameters
		return resilience.LimitAction{
			Kind: resilience.LimitQueryParameter, Key: q.GetDescriptorKey(), Parameter: q.GetQueryParameterName(), SkipIfAbsent: q.GetSkipIfAbsent(),
		}, nil
	case *routev3.RateLimit_Action_RemoteAddress_:
		return resilience.LimitAction{Kind: resilience.LimitRemoteAddress}, nil
	case *routev3.RateLimit_Action_MaskedRemoteAddress_:
		bits4, bits6 := uint32(32), uint32(128)
		number(&bits4, s.MaskedRemoteAddress.GetV4PrefixMaskLen())
		number(&bits6, s.MaskedRemoteAddress.GetV6PrefixMaskLen())
		return resilience.LimitAction{Kind: resilience.LimitMaskedAddress, Bits4: int(min(bits4, 1000)), Bits6: int(min(bits6, 1000))}, nil
	case *routev3.RateLimit_Action_HeaderValueMatch_:
		h := s.HeaderValueMatch
		a = resilience.LimitAction{
			Kind: resilience.LimitHeaderMatch, Key: h.GetDescriptorKey(), Value: h.GetDescriptorValue(),
			Invert: h.GetExpectMatch() != nil && !h.GetExpectMatch().GetValue(),
		}
		a.Headers, f = each("headers", h.GetHeaders(), headerMatch)
		return a, f.under("header_value_match")
	case *routev3.RateLimit_Action_QueryParameterValueMatch_:
		q := s.QueryParameterValueMatch
		a = resilience.LimitAction{
			Kind: resilience.LimitQueryMatch, Key: q.GetDescriptorKey(), Value: q.GetDescriptorValue(),
			Invert: q.GetExpectMatch() != nil && !q.GetExpectMatch().GetValue(),
		}
		a.Query, f = each("query_parameters", q.GetQueryParameters(), queryMatch)
		return a, f.under("query_parameter_value_match")
	case *routev3.RateLimit_Action_RemoteAddressMatch_:
		r := s.RemoteAddressMatch
		a = resilience.LimitAction{
			Kind: resilience.LimitAddressMatch, Key: r.GetDescriptorKey(), Value: r.GetDescriptorValue(),
			Invert: r.GetAddressMatcher().GetInvertMatch(),
		}
		a.Ranges, f = each("ranges", r.GetAddressMatcher().GetRanges(), cidr)
		return a, f.under("address_matcher").under("remote_address_match")
	default:
		return a, faultf("", "there is no action that is known")
	}
}

func limitHeader(m *corev3.HeaderValueOption) (h resilience.LimitHeader, f *fault) {
	h = resilience.LimitHeader{Name: m.GetHeader().GetKey(), Value: m.GetHeader().GetValue()}
	switch action := m.GetAppendAction(); {
	case m.GetAppend() != nil && action != corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		return h, faultf("append", "not supported beside append_action")
	case action == corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		h.Replace = m.GetAppend() != nil && !m.GetAppend().GetValue()
	case action == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		h.Replace = true
	default:
		return h, faultf("append_action", "%v is not supported", action)
	}
	if !canSet(h.Name) {
		return h, faultf("header.key", "%q is not the name of a header that can be set", h.Name)
	}
	if strings.Contains(h.Value, "%") || strings.ContainsFunc(h.Value, isControl) {
		return h, faultf("header.value", "a format or a control character is not supported")
	}
	return h, nil
}
