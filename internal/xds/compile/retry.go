package compile

import (
	"maps"
	"math"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	omitcanaryv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/omit_canary_hosts/v3"
	omitmetadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/omit_host_metadata/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	prioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// The names of predicates, for those that come without a configuration.
const (
	previousHostsName = "envoy.retry_host_predicates.previous_hosts"
	omitCanaryName    = "envoy.retry_host_predicates.omit_canary_hosts"
)

// retryPolicy reads a retry policy; nil where there is none. One without a
// condition, or of no retries, retries nothing by itself, but limits attempts
// all the same, and requests may ask for more by their headers.
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
	if p.PerTryIdleTimeout, f = duration("per_try_idle_timeout", m.GetPerTryIdleTimeout(), 0); f != nil {
		return nil, f
	}
	if m.GetRetryPriority() != nil {
		if p.PreviousPriorities, f = previousPriorities(m.GetRetryPriority()); f != nil {
			return nil, f.under("retry_priority")
		}
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
	return &p, nil
}

// hostSelection reads the predicates on endpoints.
func hostSelection(m *routev3.RetryPolicy, p *resilience.RetryPolicy) *fault {
	for i, predicate := range m.GetRetryHostPredicate() {
		if f := hostPredicate(predicate, p); f != nil {
			return f.underIndex("retry_host_predicate", i)
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

func hostPredicate(m *routev3.RetryPolicy_RetryHostPredicate, p *resilience.RetryPolicy) (f *fault) {
	config := m.GetTypedConfig()
	omit := map[string]string(nil)
	switch {
	case config == nil && m.GetName() == previousHostsName, config.MessageIs((*previoushostsv3.PreviousHostsPredicate)(nil)):
		p.AvoidPrevious = true
		if config != nil {
			f = extension(config, &previoushostsv3.PreviousHostsPredicate{})
		}
		return f.under("typed_config")
	case config == nil && m.GetName() == omitCanaryName, config.MessageIs((*omitcanaryv3.OmitCanaryHostsPredicate)(nil)):
		omit = map[string]string{"canary": "true"}
		if config != nil {
			f = extension(config, &omitcanaryv3.OmitCanaryHostsPredicate{})
		}
	case config.MessageIs((*omitmetadatav3.OmitHostMetadataConfig)(nil)):
		var metadata omitmetadatav3.OmitHostMetadataConfig
		if f = extension(config, &metadata); f == nil {
			omit, f = subset(metadata.GetMetadataMatch())
			f = f.under("metadata_match")
		}
	default:
		return faultf("", "predicate %q of type %q is not supported", m.GetName(), typeName(config))
	}
	switch {
	case f != nil:
		return f.under("typed_config")
	case len(omit) == 0:
		return nil // Envoy's leaves out nothing then
	case p.OmitMetadata != nil && !maps.Equal(p.OmitMetadata, omit):
		return faultf("", "leaves out other endpoints than the one before: not supported")
	}
	p.OmitMetadata = omit
	return nil
}

// previousPriorities reads after how many attempts the priorities that were tried are left out.
func previousPriorities(m *routev3.RetryPolicy_RetryPriority) (uint32, *fault) {
	var config prioritiesv3.PreviousPrioritiesConfig
	if !m.GetTypedConfig().MessageIs(&config) {
		return 0, faultf("", "%q of type %q is not supported", m.GetName(), typeName(m.GetTypedConfig()))
	}
	f := extension(m.GetTypedConfig(), &config)
	if f == nil && config.GetUpdateFrequency() <= 0 {
		f = faultf("update_frequency", "must be more than 0")
	}
	if f != nil {
		return 0, f.under("typed_config")
	}
	return uint32(config.GetUpdateFrequency()), nil
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
