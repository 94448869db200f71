package translate

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// destination is what a client means by a host.
type destination struct {
	host    string          // full name, or as a ServiceEntry or VirtualService has it
	service *policy.Service // nil where only a VirtualService knows the host
}

// resolve finds the destination that a client in a namespace means by a host:
// a service that is visible there, or a name that only a VirtualService gives.
// It returns nil where neither knows the host.
func (v *View) resolve(host, namespace string) *destination {
	full := v.set.ResolveHost(host, namespace)
	if s := v.serviceFor(full, namespace); s != nil {
		return &destination{host: full, service: s}
	}
	if s := v.set.ServiceByHost(full); s != nil && passes(s) {
		return nil
	}
	if v.set.VirtualServiceFor(full, namespace) != nil {
		return &destination{host: full}
	}
	return nil
}

// serviceFor returns the service of a full name, or the most specific wildcard
// that covers it, if the namespace may see it.
func (v *View) serviceFor(host, namespace string) *policy.Service {
	s := v.set.ServiceByHost(host)
	if s == nil || passes(s) || !policy.Exported(s.ExportTo, s.Namespace, namespace) {
		return nil
	}
	return s
}

// passes reports whether a service is a host outside the mesh that clients
// reach by themselves, so that there is nothing to serve.
func passes(s *policy.Service) bool {
	return s.External && s.Resolution == networking.ServiceEntry_NONE
}

// covers reports whether a host of a policy object, exact or "*.suffix", covers a host.
func covers(pattern, host string) bool {
	if pattern == host || pattern == "*" {
		return true
	}
	suffix, ok := strings.CutPrefix(pattern, "*")
	return ok && strings.HasSuffix(strings.TrimPrefix(host, "*"), suffix)
}
