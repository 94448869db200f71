package compile

import (
	"math"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

const (
	previousHosts     = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
	previousHostsName = "envoy.retry_host_predicates.previous_hosts"
)

// retryPolicy reads a retry policy. It is nil where nothing is retried: there
// is no policy, no condition, or no retry.
//
// Names in retry_on that Envoy does not know either are skipped, as Envoy and
// gRPC do; the one that it does know and that is skipped is about HTTP/3.
func retryPolicy(m *routev3.RetryPolicy) (*resilience.RetryPolicy, *fault) {
	if m == nil {
		return nil, nil
	}
	on, _ := resilience.ParseRetryOn(m.GetRetryOn())
	p := resilience.DefaultRetryPolicy(on)
	if m.GetNumRetries() != nil {
		p.NumRetries = m.GetNumRetries().GetValue()
	}
	p.StatusCodes = m.GetRetriableStatusCodes()
	for i, code := range p.StatusCodes {
		if code < 100 || code > 599 {
			return nil, faultf("", "%d is not an HTTP status", code).underIndex("retriable_status_codes", i)
		}
	}
	var f *fault
	if p.PerTryTimeout, f = duration("per_try_timeout", m.GetPerTryTimeout(), 0); f != nil {
		return nil, f
	}
	if f := hostSelection(m, &p); f != nil {
		return nil, f
	}
	if m.GetRetryBackOff() != nil {
		if f := backOff(m.GetRetryBackOff(), &p); f != nil {
			return nil, f.under("retry_back_off")
		}
	}
	if m.GetRateLimitedRetryBackOff() != nil {
		if p.RateLimited, f = rateLimitedBackOff(m.GetRateLimitedRetryBackOff()); f != nil {
			return nil, f.under("rate_limited_retry_back_off")
		}
	}
	if p.Headers, f = each("retriable_headers", m.GetRetriableHeaders(), headerMatch); f != nil {
		return nil, f
	}
	if p.RequestHeaders, f = each("retriable_request_headers", m.GetRetriableRequestHeaders(), headerMatch); f != nil {
		return nil, f
	}
	if err := p.Validate(); err != nil {
		return nil, invalid(err)
	}
	if p.On == 0 || p.NumRetries == 0 {
		return nil, nil
	}
	return &p, nil
}

// hostSelection reads the predicates on endpoints. The only one that is known
// prefers endpoints that have not been tried.
func hostSelection(m *routev3.RetryPolicy, p *resilience.RetryPolicy) *fault {
	for i, predicate := range m.GetRetryHostPredicate() {
		config := predicate.GetTypedConfig()
		switch kind := typeName(config); {
		case kind == previousHosts && len(config.GetValue()) == 0,
			config == nil && predicate.GetName() == previousHostsName:
			p.AvoidPrevious = true
		default:
			return faultf("", "predicate %q of type %q is not supported", predicate.GetName(), kind).underIndex("retry_host_predicate", i)
		}
	}
	switch attempts := m.GetHostSelectionRetryMaxAttempts(); {
	case attempts < 0:
		return faultf("host_selection_retry_max_attempts", "%d is negative", attempts)
	case attempts > 0:
		p.SelectAttempts = uint32(min(attempts, math.MaxUint32))
	}
	return nil
}

func backOff(m *routev3.RetryPolicy_RetryBackOff, p *resilience.RetryPolicy) *fault {
	var f *fault
	if m.GetBaseInterval() == nil {
		return faultf("base_interval", "missing")
	}
	if p.BaseInterval, f = positive("base_interval", m.GetBaseInterval(), 0); f != nil {
		return f
	}
	p.BaseInterval = max(p.BaseInterval, time.Millisecond) // Envoy counts in milliseconds
	p.MaxInterval, f = positive("max_interval", m.GetMaxInterval(), 0)
	switch {
	case f != nil:
		return f
	case m.GetMaxInterval() == nil && p.BaseInterval > forever/resilience.DefaultMaxFactor:
		p.MaxInterval = forever
	case m.GetMaxInterval() == nil:
		p.MaxInterval = resilience.DefaultMaxFactor * p.BaseInterval
	default:
		p.MaxInterval = max(p.MaxInterval, time.Millisecond)
	}
	if p.MaxInterval < p.BaseInterval {
		return faultf("max_interval", "%v is less than base_interval, which is %v", p.MaxInterval, p.BaseInterval)
	}
	return nil
}

func rateLimitedBackOff(m *routev3.RetryPolicy_RateLimitedRetryBackOff) (*resilience.RateLimitedBackoff, *fault) {
	b := &resilience.RateLimitedBackoff{}
	var f *fault
	if b.Headers, f = some("reset_headers", m.GetResetHeaders(), resetHeader); f != nil {
		return nil, f
	}
	b.MaxInterval, f = positive("max_interval", m.GetMaxInterval(), resilience.DefaultRateLimitedMax)
	return b, f
}

func resetHeader(m *routev3.RetryPolicy_ResetHeader) (h resilience.ResetHeader, f *fault) {
	if m.GetName() == "" {
		return h, faultf("name", "is empty")
	}
	h.Name = routing.NewHeaderName(m.GetName())
	switch m.GetFormat() {
	case routev3.RetryPolicy_SECONDS:
		h.Format = resilience.ResetSeconds
	case routev3.RetryPolicy_UNIX_TIMESTAMP:
		h.Format = resilience.ResetUnixTimestamp
	default:
		f = faultf("format", "value %d is not known", m.GetFormat())
	}
	return h, f
}
