package compile

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/resilience"
)

// outlier reads the detection of failures in a row. The kinds that compare
// endpoints by their share of successes must be switched off, and because
// Envoy has that by success rate on where the field is not set, it must be set
// to 0, as Istio does.
func outlier(m *clusterv3.OutlierDetection) (*resilience.Outlier, *fault) {
	split := m.GetSplitExternalLocalOriginErrors()
	for _, kind := range []struct {
		name  string
		value *wrapperspb.UInt32Value
		def   uint32
	}{
		{"enforcing_success_rate", m.GetEnforcingSuccessRate(), 100},
		{"enforcing_failure_percentage", m.GetEnforcingFailurePercentage(), 0},
		{"enforcing_local_origin_success_rate", m.GetEnforcingLocalOriginSuccessRate(), onlyIf(split, 100)},
		{"enforcing_failure_percentage_local_origin", m.GetEnforcingFailurePercentageLocalOrigin(), 0},
	} {
		percent := kind.def
		number(&percent, kind.value)
		switch {
		case percent == 0:
		case kind.value == nil:
			return nil, faultf(kind.name, "is %d where it is not set, which is not supported: only 0 is", percent)
		default:
			return nil, faultf(kind.name, "%d is not supported: only 0 is", percent)
		}
	}
	o := resilience.DefaultOutlier
	o.SplitLocalOrigin = split
	o.AlwaysEjectOneEndpoint = m.GetAlwaysEjectOneHost().GetValue()
	number(&o.Consecutive5xx, m.GetConsecutive_5Xx())
	number(&o.EnforcingConsecutive5xx, m.GetEnforcingConsecutive_5Xx())
	number(&o.ConsecutiveGatewayFailure, m.GetConsecutiveGatewayFailure())
	number(&o.EnforcingConsecutiveGatewayFailure, m.GetEnforcingConsecutiveGatewayFailure())
	number(&o.ConsecutiveLocalOriginFailure, m.GetConsecutiveLocalOriginFailure())
	number(&o.EnforcingConsecutiveLocalOriginFailure, m.GetEnforcingConsecutiveLocalOriginFailure())
	number(&o.MaxEjectionPercent, m.GetMaxEjectionPercent())
	var f *fault
	if o.Interval, f = positive("interval", m.GetInterval(), o.Interval); f != nil {
		return nil, f
	}
	if o.BaseEjectionTime, f = positive("base_ejection_time", m.GetBaseEjectionTime(), o.BaseEjectionTime); f != nil {
		return nil, f
	}
	if o.MaxEjectionTime, f = positive("max_ejection_time", m.GetMaxEjectionTime(), max(o.MaxEjectionTime, o.BaseEjectionTime)); f != nil {
		return nil, f
	}
	if o.MaxEjectionTimeJitter, f = duration("max_ejection_time_jitter", m.GetMaxEjectionTimeJitter(), 0); f != nil {
		return nil, f
	}
	if o.Consecutive5xx > resilience.MaxConsecutive {
		o.Consecutive5xx = 0 // so many failures in a row never come: none is detected
	}
	if o.ConsecutiveGatewayFailure > resilience.MaxConsecutive {
		o.ConsecutiveGatewayFailure = 0
	}
	if o.ConsecutiveLocalOriginFailure > resilience.MaxConsecutive {
		o.ConsecutiveLocalOriginFailure = 0
	}
	if err := o.Validate(); err != nil {
		return nil, invalid(err)
	}
	if !ejects(&o) {
		return nil, nil
	}
	return &o, nil
}

// ejects reports whether there is a kind of failure for which an endpoint is taken out of use.
func ejects(o *resilience.Outlier) bool {
	return o.Consecutive5xx > 0 && o.EnforcingConsecutive5xx > 0 ||
		o.ConsecutiveGatewayFailure > 0 && o.EnforcingConsecutiveGatewayFailure > 0 ||
		o.SplitLocalOrigin && o.ConsecutiveLocalOriginFailure > 0 && o.EnforcingConsecutiveLocalOriginFailure > 0
}

func onlyIf(condition bool, v uint32) uint32 {
	if condition {
		return v
	}
	return 0
}
