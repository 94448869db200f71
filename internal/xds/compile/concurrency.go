package compile

import (
	"time"

	concurrencyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/adaptive_concurrency/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/resilience"
)

// adaptiveConcurrency reads the filter's configuration, with Envoy's defaults.
func adaptiveConcurrency(m *concurrencyv3.AdaptiveConcurrency) (*resilience.AdaptiveConcurrency, *fault) {
	out := &resilience.AdaptiveConcurrency{Enabled: true, Status: 503}
	if m.GetEnabled() != nil {
		if m.GetEnabled().GetDefaultValue() == nil {
			return nil, faultf("enabled.default_value", "missing")
		}
		out.Enabled = m.GetEnabled().GetDefaultValue().GetValue()
	}
	if code := m.GetConcurrencyLimitExceededStatus().GetCode(); code >= 400 { // Envoy takes 503 for all others
		if code > 599 {
			return nil, faultf("concurrency_limit_exceeded_status.code", "%d is not an HTTP status", code)
		}
		out.Status = int(code)
	}
	const field = "gradient_controller_config"
	if m.GetGradientControllerConfig() == nil {
		return nil, faultf(field, "missing")
	}
	return out, gradient(m.GetGradientControllerConfig(), out).under(field)
}

func gradient(m *concurrencyv3.GradientControllerConfig, out *resilience.AdaptiveConcurrency) *fault {
	out.SamplePercentile = 50
	f := percent("sample_aggregate_percentile", m.GetSampleAggregatePercentile(), &out.SamplePercentile)
	if f != nil {
		return f
	}
	limits := m.GetConcurrencyLimitParams()
	if limits == nil {
		return faultf("concurrency_limit_params", "missing")
	}
	if out.MaxLimit, f = count("max_concurrency_limit", limits.GetMaxConcurrencyLimit(), 1000); f != nil {
		return f.under("concurrency_limit_params")
	}
	if limits.GetConcurrencyUpdateInterval() == nil {
		return faultf("concurrency_limit_params.concurrency_update_interval", "missing")
	}
	if out.UpdateInterval, f = positive("concurrency_update_interval", limits.GetConcurrencyUpdateInterval(), 0); f != nil {
		return f.under("concurrency_limit_params")
	}
	if m.GetMinRttCalcParams() == nil {
		return faultf("min_rtt_calc_params", "missing")
	}
	return minRTT(m.GetMinRttCalcParams(), out).under("min_rtt_calc_params")
}

func minRTT(m *concurrencyv3.GradientControllerConfig_MinimumRTTCalculationParams, out *resilience.AdaptiveConcurrency) *fault {
	var f *fault
	if out.FixedMinRTT, f = positive("fixed_value", m.GetFixedValue(), 0); f != nil {
		return f
	}
	if out.MinRTTInterval, f = positive("interval", m.GetInterval(), 0); f != nil {
		return f
	}
	switch {
	case m.GetInterval() == nil && m.GetFixedValue() == nil:
		return faultf("", "neither interval nor fixed_value is set")
	case m.GetInterval() != nil && out.MinRTTInterval < time.Millisecond:
		return faultf("interval", "%v is less than 1ms", out.MinRTTInterval)
	case m.GetFixedValue() != nil && out.FixedMinRTT < time.Millisecond:
		return faultf("fixed_value", "%v is less than 1ms", out.FixedMinRTT)
	}
	if out.MinRTTRequests, f = count("request_count", m.GetRequestCount(), 50); f != nil {
		return f
	}
	out.MinRTTJitter, out.MinRTTBuffer = 15, 25
	if f = percent("jitter", m.GetJitter(), &out.MinRTTJitter); f != nil {
		return f
	}
	if out.MinConcurrency, f = count("min_concurrency", m.GetMinConcurrency(), 3); f != nil {
		return f
	}
	return percent("buffer", m.GetBuffer(), &out.MinRTTBuffer)
}

// count reads a number that must not be 0.
func count(field string, v *wrapperspb.UInt32Value, def uint32) (uint32, *fault) {
	switch {
	case v == nil:
		return def, nil
	case v.GetValue() == 0:
		return 0, faultf(field, "must be more than 0")
	}
	return v.GetValue(), nil
}
