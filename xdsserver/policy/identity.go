package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// TLSModeLabel says that a workload takes mutual TLS, where its value is "istio"
// (https://istio.io/latest/docs/reference/config/labels/).
const TLSModeLabel = "security.istio.io/tlsMode"

// TakesMutualTLS reports whether a workload says that it takes the mesh's mutual TLS.
// One that does not say so is spoken to in plaintext where nothing else is configured.
func (w *Workload) TakesMutualTLS() bool { return w.Labels[TLSModeLabel] == "istio" }

// ServiceAccount is what a workload runs as.
type ServiceAccount struct {
	Namespace, Name string
}

// SPIFFEID returns the identity of the account in a trust domain, as Istio writes it.
func (a ServiceAccount) SPIFFEID(trustDomain string) string {
	return "spiffe://" + trustDomain + "/ns/" + a.Namespace + "/sa/" + a.Name
}

// Account returns what the workload runs as; false where its object does not say.
func (w *Workload) Account() (ServiceAccount, bool) {
	return ServiceAccount{w.Namespace, w.ServiceAccount}, w.ServiceAccount != ""
}

// ServiceAccountsOf returns what the workloads behind a service run as, sorted and
// without repetition. All is false where one of them does not say, so that the accounts
// returned are not all that may answer.
func (s *Set) ServiceAccountsOf(svc *Service) (accounts []ServiceAccount, all bool) {
	all = true
	for _, w := range s.WorkloadsOf(svc) {
		account, known := w.Account()
		if !known {
			all = false
			continue
		}
		accounts = append(accounts, account)
	}
	slices.SortFunc(accounts, func(a, b ServiceAccount) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return slices.Compact(accounts), all
}

// WorkloadsAt returns the workloads of a namespace that listen at an address and
// port; none where none is known to. An address with one workload is that
// workload's at every port; where several share an address, as on one machine, a
// port is that of the workloads whose own ports or whose services name it. Of
// those with the same labels and service account one stands for all, so that
// more than one means that policy may differ by which of them it is.
func (s *Set) WorkloadsAt(namespace, address string, port uint32) []*Workload {
	there := s.lookup().byAddress[addressKey(namespace, address)]
	if out := distinct(there); len(out) < 2 {
		return out
	}
	return distinct(slices.DeleteFunc(slices.Clone(there), func(w *Workload) bool { return !s.listens(w, port) }))
}

// distinct returns the workloads that differ in labels or service account, in a new list.
func distinct(all []*Workload) []*Workload {
	var out []*Workload
	for _, w := range all {
		if !slices.ContainsFunc(out, w.sameIdentity) {
			out = append(out, w)
		}
	}
	return out
}

func (w *Workload) sameIdentity(other *Workload) bool {
	return w.ServiceAccount == other.ServiceAccount && maps.Equal(w.Labels, other.Labels)
}

// listens reports whether the workload's own ports or one of its services name a port.
func (s *Set) listens(w *Workload, port uint32) bool {
	for _, n := range w.Ports {
		if n == port {
			return true
		}
	}
	for _, svc := range s.lookup().byNamespace[w.Namespace] {
		if svc.Selector != nil && !HasLabels(w.Labels, svc.Selector) || svc.Selector == nil && !slices.Contains(svc.Static, w) {
			continue
		}
		for _, p := range svc.Ports {
			if w.PortFor(p) == port {
				return true
			}
		}
	}
	return false
}

// portNamed reports whether a workload with these labels has a port of this name and
// number: by its own ports, or else by the ports of the services that select it.
func (s *Set) portNamed(labels map[string]string, namespace, name string, port uint32) bool {
	x := s.lookup()
	candidates := x.workloads[namespace][""]
	for k, v := range labels {
		if some := x.workloads[namespace][k+"="+v]; len(some) < len(candidates) {
			candidates = some
		}
	}
	for _, w := range candidates {
		if n, ok := w.Ports[name]; ok && n == port && HasLabels(w.Labels, labels) {
			return true
		}
	}
	for _, svc := range x.byNamespace[namespace] {
		if svc.Selector == nil || !HasLabels(labels, svc.Selector) {
			continue
		}
		for _, p := range svc.Ports {
			if p.Name == name && p.TargetName == "" && p.Target == port {
				return true
			}
		}
	}
	return false
}

// addressKey finds a workload by namespace and address, however the address is written.
func addressKey(namespace, address string) string {
	if ip, err := netip.ParseAddr(address); err == nil {
		address = ip.Unmap().String()
	}
	return namespace + " " + address
}
