package compile

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/resilience"
)

// outlier reads the detection of endpoints that fail, with Envoy's defaults
// where a field is not set. One that can not eject anything is nil.
func outlier(m *clusterv3.OutlierDetection) (*resilience.Outlier, *fault) {
	o := resilience.DefaultOutlier
	o.SplitLocalOrigin = m.GetSplitExternalLocalOriginErrors()
	o.AlwaysEjectOneEndpoint = m.GetAlwaysEjectOneHost().GetValue()
	if v := m.GetSuccessfulActiveHealthCheckUnejectHost(); v != nil {
		o.KeepWhenChecked = !v.GetValue()
	}
	number(&o.Consecutive5xx, m.GetConsecutive_5Xx())
	number(&o.ConsecutiveGatewayFailure, m.GetConsecutiveGatewayFailure())
	number(&o.ConsecutiveLocalOriginFailure, m.GetConsecutiveLocalOriginFailure())
	number(&o.SuccessRateMinimumHosts, m.GetSuccessRateMinimumHosts())
	number(&o.SuccessRateRequestVolume, m.GetSuccessRateRequestVolume())
	number(&o.SuccessRateStdevFactor, m.GetSuccessRateStdevFactor())
	number(&o.FailurePercentageMinimumHosts, m.GetFailurePercentageMinimumHosts())
	number(&o.FailurePercentageRequestVolume, m.GetFailurePercentageRequestVolume())
	for _, share := range []struct {
		name  string
		field *wrapperspb.UInt32Value
		value *uint32
	}{
		{"max_ejection_percent", m.GetMaxEjectionPercent(), &o.MaxEjectionPercent},
		{"enforcing_consecutive_5xx", m.GetEnforcingConsecutive_5Xx(), &o.EnforcingConsecutive5xx},
		{"enforcing_success_rate", m.GetEnforcingSuccessRate(), &o.EnforcingSuccessRate},
		{"enforcing_consecutive_gateway_failure", m.GetEnforcingConsecutiveGatewayFailure(), &o.EnforcingConsecutiveGatewayFailure},
		{"enforcing_consecutive_local_origin_failure", m.GetEnforcingConsecutiveLocalOriginFailure(), &o.EnforcingConsecutiveLocalOriginFailure},
		{"enforcing_local_origin_success_rate", m.GetEnforcingLocalOriginSuccessRate(), &o.EnforcingLocalOriginSuccessRate},
		{"failure_percentage_threshold", m.GetFailurePercentageThreshold(), &o.FailurePercentageThreshold},
		{"enforcing_failure_percentage", m.GetEnforcingFailurePercentage(), &o.EnforcingFailurePercentage},
		{"enforcing_failure_percentage_local_origin", m.GetEnforcingFailurePercentageLocalOrigin(), &o.EnforcingFailurePercentageLocalOrigin},
	} {
		if number(share.value, share.field); *share.value > 100 {
			return nil, faultf(share.name, "%d is more than 100", *share.value)
		}
	}
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
	for _, n := range []*uint32{&o.Consecutive5xx, &o.ConsecutiveGatewayFailure, &o.ConsecutiveLocalOriginFailure} {
		if *n > resilience.MaxConsecutive {
			*n = 0 // so many failures in a row never come: none is detected
		}
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
		o.EnforcingSuccessRate > 0 || o.EnforcingFailurePercentage > 0 ||
		o.SplitLocalOrigin && (o.ConsecutiveLocalOriginFailure > 0 && o.EnforcingConsecutiveLocalOriginFailure > 0 ||
			o.EnforcingLocalOriginSuccessRate > 0 || o.EnforcingFailurePercentageLocalOrigin > 0)
}
