package translate

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const limitFilter = "envoy.filters.http.local_ratelimit"

// limitFilters is the limit of all callers together at a workload's port: a bucket
// that holds the requests of one second and is filled every second.
// https://linkerd.io/2/reference/rate-limiting/
func (b *builder) limitFilters(s *server) ([]*hcmv3.HttpFilter, error) {
	p := b.view.set.RateLimitFor(s.labels, s.namespace, s.port)
	if p == nil {
		return nil, nil
	}
	if err := b.can(about(&p.Meta), "spec"); err != nil {
		return nil, err
	}
	if p.Spec.Total == 0 {
		return nil, nil
	}
	always := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100, Denominator: typev3.FractionalPercent_HUNDRED}}
	return []*hcmv3.HttpFilter{httpFilter(limitFilter, &limitv3.LocalRateLimit{
		StatPrefix: "inbound",
		TokenBucket: &typev3.TokenBucket{
			MaxTokens:     p.Spec.Total,
			TokensPerFill: wrapperspb.UInt32(p.Spec.Total),
			FillInterval:  durationpb.New(time.Second),
		},
		FilterEnabled:  always,
		FilterEnforced: always,
		// As Linkerd answers. Clients repeat what is UNAVAILABLE, Envoy's default, which a limit is not to invite.
		RateLimitedAsResourceExhausted: true,
	})}, nil
}

// identityLimit is the limit of each caller, for which only Sinew has a field.
func (b *builder) identityLimit(s *server) (*structpb.Value, error) {
	p := b.view.set.RateLimitFor(s.labels, s.namespace, s.port)
	if p == nil || p.Spec.Identity == 0 && len(p.Spec.Overrides) == 0 {
		return nil, nil
	}
	if b.client.Agent != Sinew {
		return nil, unsupported(about(&p.Meta), "spec.identity (by this client)")
	}
	fields := map[string]*structpb.Value{}
	if p.Spec.Identity > 0 {
		fields["requests_per_second"] = structpb.NewNumberValue(float64(p.Spec.Identity))
	}
	var overrides []*structpb.Value
	for _, o := range p.Spec.Overrides {
		var ids []*structpb.Value
		for _, account := range o.Clients {
			for _, id := range b.identities([]string{account.SPIFFEID(b.view.set.MeshConfig.TrustDomain())}) {
				ids = append(ids, structpb.NewStringValue(id))
			}
		}
		overrides = append(overrides, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"requests_per_second": structpb.NewNumberValue(float64(o.RequestsPerSecond)),
			"principals":          structpb.NewListValue(&structpb.ListValue{Values: ids}),
		}}))
	}
	if len(overrides) > 0 {
		fields["overrides"] = structpb.NewListValue(&structpb.ListValue{Values: overrides})
	}
	return structpb.NewStructValue(&structpb.Struct{Fields: fields}), nil
}
