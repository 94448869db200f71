package policy

import (
	"maps"
	"slices"

	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// EnvoyFilter is an Istio EnvoyFilter in the one form that the mesh takes: Istio's own
// for a local rate limit of what a workload is asked
// (https://istio.io/latest/docs/tasks/policy-enforcement/rate-limit/#local-rate-limit).
// Each instance of the workload counts for itself.
type EnvoyFilter struct {
	Meta
	Spec *networking.EnvoyFilter
}

// LocalRateLimit is the limit of one EnvoyFilter at one port of a workload.
type LocalRateLimit struct {
	Policy *EnvoyFilter
	// Filter is the configuration of the filter. It limits nothing by itself where it has
	// neither a token bucket nor descriptors.
	Filter *limitv3.LocalRateLimit
	// Route takes the place of Filter for the requests to this port; nil where Filter counts.
	Route *limitv3.LocalRateLimit
}

// portLimits is what an EnvoyFilter says.
type portLimits struct {
	policy *EnvoyFilter
	filter *limitv3.LocalRateLimit
	routes []portLimit
	err    error
}

// portLimit stands for the filter's limit at a service's port; 0 means every port.
type portLimit struct {
	at    string // path of the patch
	port  uint32
	limit *limitv3.LocalRateLimit
}

func newPortLimits(p *EnvoyFilter) *portLimits {
	out, found := readEnvoyFilter(p.Spec)
	out.policy, out.err = p, found.firstError(p.Ref())
	return out
}

// LocalRateLimitsFor returns the limits of a workload's port (that at the workload, not
// the service's) by EnvoyFilters: those of RootNamespace and of the workload's
// namespace that select it, RootNamespace first, in the order of the set. Each of them
// must let a request through. Those that limit nothing at the port are left out.
//
// As in Istio, a patch for the virtual host "inbound|http|PORT" is for the port of the
// service in front of the workload. Where no service leads to the workload's port,
// PORT is the workload's.
func (s *Set) LocalRateLimitsFor(labels map[string]string, namespace string, port uint32) ([]LocalRateLimit, error) {
	var out []LocalRateLimit
	for _, ns := range accessNamespaces(namespace) {
		for _, p := range s.lookup().access.filters[ns] {
			if !HasLabels(labels, p.policy.Spec.GetWorkloadSelector().GetLabels()) {
				continue
			}
			if p.err != nil {
				return nil, p.err
			}
			limit := LocalRateLimit{Policy: p.policy, Filter: p.filter}
			for _, r := range p.routes {
				if r.port == 0 || slices.Contains(s.servicePorts(labels, namespace, port), r.port) {
					limit.Route = r.limit
				}
			}
			if limit.Route != nil || limits(limit.Filter) {
				out = append(out, limit)
			}
		}
	}
	return out, nil
}

// limits reports whether a configuration limits anything.
func limits(m *limitv3.LocalRateLimit) bool {
	return m.GetTokenBucket() != nil || len(m.GetDescriptors()) > 0
}

// servicePorts returns the ports of services that lead to a port of a workload with
// these labels, or the port itself where none does.
func (s *Set) servicePorts(labels map[string]string, namespace string, port uint32) []uint32 {
	var out []uint32
	for _, svc := range s.lookup().byNamespace[namespace] {
		for _, w := range s.WorkloadsOf(svc) {
			if !maps.Equal(w.Labels, labels) {
				continue
			}
			for _, p := range svc.Ports {
				if w.PortFor(p) == port {
					out = append(out, p.Number)
				}
			}
		}
		if svc.Selector == nil || !HasLabels(labels, svc.Selector) {
			continue
		}
		// A program that nobody has declared listens where the service says.
		for _, p := range svc.Ports {
			if p.TargetName == "" && p.Target == port || p.TargetName != "" && s.portNamed(labels, namespace, p.TargetName, port) {
				out = append(out, p.Number)
			}
		}
	}
	if len(out) == 0 {
		return []uint32{port}
	}
	return out
}

// inward reports whether an EnvoyFilter, valid or not, may change what a workload
// takes. One for gateways or for what a workload asks others does not.
func inward(spec any) bool {
	filter, ok := spec.(*networking.EnvoyFilter)
	if !ok || len(filter.GetConfigPatches()) == 0 {
		return true
	}
	return slices.ContainsFunc(filter.GetConfigPatches(), func(p *networking.EnvoyFilter_EnvoyConfigObjectPatch) bool {
		switch p.GetMatch().GetContext() {
		case networking.EnvoyFilter_GATEWAY, networking.EnvoyFilter_SIDECAR_OUTBOUND, networking.EnvoyFilter_WAYPOINT:
			return false
		}
		return true
	})
}

// relateEnvoyFilters warns of limits for ports that no service has.
func (b *build) relateEnvoyFilters(set *Set) {
	for _, p := range set.EnvoyFilters {
		limits, _ := readEnvoyFilter(p.Spec)
		for _, r := range limits.routes {
			known := slices.ContainsFunc(set.Services, func(svc *Service) bool {
				return (p.Namespace == RootNamespace || p.Namespace == svc.Namespace) &&
					slices.ContainsFunc(svc.Ports, func(port Port) bool { return port.Number == r.port })
			})
			if r.port != 0 && !known {
				b.say(Warning, b.good[p.Ref()], r.at+".match.routeConfiguration.vhost.name",
					"no service has the port %d: it has an effect only where a workload without a service listens there", r.port)
			}
		}
	}
}
