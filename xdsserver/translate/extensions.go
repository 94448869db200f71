package translate

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// Where a cluster says what Envoy has no field for, and the keys there.
const (
	ownMetadata = "sinew"
	accrualKey  = "failure_accrual"
	ewmaKey     = "peak_ewma"
	ewmaDecay   = "10s" // Linkerd's
)

// extensions sets what annotations ask for: the breaker of each endpoint, and peak EWMA
// where no DestinationRule names an algorithm. Only Sinew's own client has them.
func (b *builder) extensions(c *clusterv3.Cluster, of *target, tp *networking.TrafficPolicy) {
	fields := map[string]*structpb.Value{}
	service := of.service.Kind + " " + of.service.Namespace + "/" + of.service.Name + " metadata.annotations"
	if a := of.service.Accrual; a != nil {
		fields[accrualKey] = structpb.NewStructValue(accrual(a))
		if b.client.Agent != Sinew {
			b.note(service, "this client has no failure accrual: no endpoint is put out of use by it")
		}
	}
	lb := tp.GetLoadBalancer()
	ewma, at := of.service.PeakEWMA(), service
	if of.rule != nil && of.rule.PeakEWMA() {
		ewma, at = true, about(&of.rule.Meta)+" metadata.annotations"
	}
	if ewma && lb.GetConsistentHash() == nil && lb.GetSimple() == networking.LoadBalancerSettings_UNSPECIFIED {
		fields[ewmaKey] = structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"decay": structpb.NewStringValue(ewmaDecay)}})
		if b.client.Agent != Sinew {
			b.note(at, "this client has no peak EWMA: it uses LEAST_REQUEST")
		}
	}
	if len(fields) == 0 || b.client.Agent != Sinew {
		return
	}
	c.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{ownMetadata: {Fields: fields}}}
}

// accrual writes every value, so that defaults are those of the annotations.
func accrual(a *policy.FailureAccrual) *structpb.Struct {
	mode := "consecutive"
	if a.MaxFailures == 0 {
		mode = "success-rate"
	}
	fields := map[string]*structpb.Value{
		"mode":        structpb.NewStringValue(mode),
		"min_penalty": structpb.NewStringValue(a.MinPenalty.String()),
		"max_penalty": structpb.NewStringValue(a.MaxPenalty.String()),
		"jitter":      structpb.NewNumberValue(a.Jitter),
	}
	if a.MaxFailures > 0 {
		fields["max_failures"] = structpb.NewNumberValue(float64(a.MaxFailures))
	}
	if a.SuccessRate > 0 {
		fields["success_rate"] = structpb.NewNumberValue(a.SuccessRate)
		fields["window"] = structpb.NewStringValue(a.Window.String())
		fields["min_requests"] = structpb.NewNumberValue(float64(a.MinRequests))
	}
	return &structpb.Struct{Fields: fields}
}
