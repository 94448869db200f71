package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"math"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// localities reads how load is spread over localities.
func localities(m *commonv3.LocalityLbConfig, p *lb.Policy) *fault {
	p.LocalityWeighted = p.LocalityWeighted || m.GetLocalityWeightedLbConfig() != nil
	z := m.GetZoneAwareLbConfig()
	if z == nil {
		return nil
	}
	const field = "zone_aware_lb_config"
	if b := z.GetLocalityBasis(); b != commonv3.LocalityLbConfig_ZoneAwareLbConfig_HEALTHY_HOSTS_NUM {
		return faultf(field+".locality_basis", "%v is not supported", b)
	}
	var f *fault
	if p.ZoneAware, f = zoneAware(z.GetRoutingEnabled(), z.GetMinClusterSize(), z.GetFailTrafficOnPanic()); f != nil {
		return f.under(field)
	}
	// force_locality_direct_routing is what force_local_zone was called before it had a minimum.
	p.ZoneAware.ForceLocal = z.GetForceLocalZone() != nil || z.GetForceLocalityDirectRouting()
	if p.ZoneAware.ForceLocal {
		p.ZoneAware.ForceMinimum = 1
		number(&p.ZoneAware.ForceMinimum, z.GetForceLocalZone().GetMinSize())
	}
	return nil
}

func zoneAware(enabled *typev3.Percent, least *wrapperspb.UInt64Value, failOnPanic bool) (*lb.ZoneAware, *fault) {
	z := &lb.ZoneAware{Enabled: 100, MinCluster: 6, FailOnPanic: failOnPanic}
	if f := percent("routing_enabled", enabled, &z.Enabled); f != nil {
		return nil, f
	}
	if least != nil {
		z.MinCluster = least.GetValue()
	}
	return z, nil
}

// slowStartConfig is a slow start, of old and of new.
type slowStartConfig interface {
	comparable
	GetSlowStartWindow() *durationpb.Duration
	GetAggression() *corev3.RuntimeDouble
	GetMinWeightPercent() *typev3.Percent
}

// slowStart reads a slow start; one whose window is not set, or zero, is none.
func slowStart[C slowStartConfig](m C) (*lb.SlowStart, *fault) {
	var none C
	if m == none {
		return nil, nil
	}
	s := &lb.SlowStart{Aggression: 1, MinWeight: 10}
	var f *fault
	if s.Window, f = duration("slow_start_window", m.GetSlowStartWindow(), 0); f != nil {
		return nil, f
	}
	if a := m.GetAggression(); a != nil {
		if s.Aggression = a.GetDefaultValue(); !(s.Aggression > 0) || math.IsInf(s.Aggression, 0) {
			return nil, faultf("aggression.default_value", "%v is not a number above 0", s.Aggression)
		}
	}
	if f := percent("min_weight_percent", m.GetMinWeightPercent(), &s.MinWeight); f != nil {
		return nil, f
	}
	if s.Window == 0 {
		return nil, nil
	}
	return s, nil
}
