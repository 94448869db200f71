package translate

import (
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// localRateLimits are the limits of a workload's port by EnvoyFilters.
func (b *builder) localRateLimits(s *server) ([]policy.LocalRateLimit, error) {
	list, err := b.view.set.LocalRateLimitsFor(s.labels, s.namespace, s.port)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		if err := b.can(about(&l.Policy.Meta), "spec.configPatches"); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// localRateLimitName is the name of an object's filter. Each object has a filter of its
// own, whose buckets keep their levels while other objects come and go.
func localRateLimitName(p *policy.EnvoyFilter) string {
	return limitFilter + "/" + p.Namespace + "/" + p.Name
}

// localRateLimitFilters are the filters for limits by EnvoyFilters. Each must let a request through.
func (b *builder) localRateLimitFilters(s *server) ([]*hcmv3.HttpFilter, error) {
	list, err := b.localRateLimits(s)
	if err != nil {
		return nil, err
	}
	var out []*hcmv3.HttpFilter
	for _, l := range list {
		out = append(out, httpFilter(localRateLimitName(l.Policy), l.Filter))
	}
	return out, nil
}

// localRateLimitRoutes are the configurations that the route of the port has in place of those of the filters.
func (b *builder) localRateLimitRoutes(s *server) (map[string]*anypb.Any, error) {
	list, err := b.localRateLimits(s)
	if err != nil {
		return nil, err
	}
	var out map[string]*anypb.Any
	for _, l := range list {
		if l.Route == nil {
			continue
		}
		if out == nil {
			out = make(map[string]*anypb.Any)
		}
		out[localRateLimitName(l.Policy)] = mustPack(l.Route)
	}
	return out, nil
}
