package policy

import (
	"fmt"
	"strings"

	security "istio.io/api/security/v1beta1"
)

// relateAccess warns of policies that are valid, but never decide.
func (b *build) relateAccess(set *Set) {
	type scope struct {
		namespace, selector string
		dryRun              bool
	}
	first := make(map[scope]*PeerAuthentication)
	for _, p := range set.PeerAuthentications {
		o := b.good[p.Ref()]
		labels := p.Spec.GetSelector().GetMatchLabels()
		if p.Namespace == RootNamespace && len(labels) > 0 {
			b.say(Warning, o, "spec.selector", "has no effect: a PeerAuthentication of namespace %s takes no selector", RootNamespace)
			continue
		}
		at := scope{namespace: p.Namespace, dryRun: p.DryRun()}
		for _, k := range sortedKeys(labels) {
			at.selector += k + "=" + labels[k] + ","
		}
		if older := first[at]; older != nil {
			b.say(Warning, o, "spec", "has no effect: %s (%s) is older, or first by name, and decides", older.Ref(), older.At)
			continue
		}
		first[at] = p
		if p.DryRun() {
			b.dryRun(p.Ref())
		}
	}
	for _, p := range set.AuthorizationPolicies {
		if p.DryRun() {
			b.dryRun(p.Ref())
		}
	}
	b.relateStrict(set)
	b.relateRateLimits(set)
	b.relateEnvoyFilters(set)
	b.relateAuthorizers(set)
}

// namedWorkloads is how many workloads a warning names at most.
const namedWorkloads = 3

// relateStrict warns of a policy that has workloads refuse what the mesh sends them:
// callers speak mutual TLS to those that say that they take it, see TakesMutualTLS.
func (b *build) relateStrict(set *Set) {
	type refusal struct {
		by       *PeerAuthentication
		workload *Workload
	}
	seen := make(map[refusal]bool)
	refusing := make(map[*PeerAuthentication][]string) // names of workloads
	for _, svc := range set.Services {
		if svc.External || len(set.PeerAuthentications) == 0 {
			continue
		}
		for _, port := range svc.Ports {
			if set.saysTLS(svc, port) {
				continue
			}
			for _, w := range set.WorkloadsOf(svc) {
				mode, by := set.PeerAuthenticationFor(w.Labels, w.Namespace, w.PortFor(port))
				if mode != security.PeerAuthentication_MutualTLS_STRICT || w.TakesMutualTLS() || seen[refusal{by, w}] {
					continue
				}
				seen[refusal{by, w}] = true
				name := w.Namespace + "/" + w.Name
				if svc.Selector == nil {
					name = w.Address + " of " + svc.Host
				}
				refusing[by] = append(refusing[by], name)
			}
		}
	}
	for _, p := range set.PeerAuthentications {
		names := refusing[p]
		if len(names) == 0 {
			continue
		}
		field, more := "spec.mtls.mode", ""
		if p.Spec.GetMtls().GetMode() != security.PeerAuthentication_MutualTLS_STRICT {
			field = "spec.portLevelMtls"
		}
		if n := len(names) - namedWorkloads; n > 0 {
			names, more = names[:namedWorkloads], fmt.Sprintf(" and %d more", n)
		}
		b.say(Warning, b.good[p.Ref()], field, "callers in the mesh send plaintext, which STRICT refuses, to workloads without the label %s=istio: %s%s",
			TLSModeLabel, strings.Join(names, ", "), more)
	}
}

// saysTLS reports whether a DestinationRule says how callers connect to a service's
// port, whatever its workloads say. Callers are taken to be in the service's namespace.
func (s *Set) saysTLS(svc *Service, port Port) bool {
	rule := s.DestinationRuleFor(svc.Host, svc.Namespace)
	if rule == nil {
		return false
	}
	for _, p := range rule.Spec.GetTrafficPolicy().GetPortLevelSettings() {
		if p.GetPort().GetNumber() == port.Number {
			return p.GetTls() != nil
		}
	}
	return rule.Spec.GetTrafficPolicy().GetTls() != nil
}

func (b *build) dryRun(ref Ref) {
	b.say(Notice, b.good[ref], "metadata.annotations["+dryRunAnnotation+"]", "is evaluated, but refuses nothing")
}
