package policy

import (
	"net"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

const (
	// DomainSuffix is what a short host name gets after its namespace.
	DomainSuffix = "svc.cluster.local"
	// RootNamespace is the namespace whose DestinationRules apply to every client
	// that finds none nearer, and whose access policy applies to every workload (Istio's
	// default root namespace).
	RootNamespace = "istio-system"
	// DefaultNamespace is that of an object which names none.
	DefaultNamespace = "default"
	// MeshGateway is the reserved gateway name that stands for every client in the mesh.
	MeshGateway = "mesh"
)

// Endpoint is a workload at one port of a service.
type Endpoint struct {
	Workload *Workload
	Address  string // "ip:port", "[ip]:port" for IPv6
}

// index answers look-ups on a Set without walking it.
type index struct {
	services  map[string]*Service
	wildcards []string // wildcard service hosts, longest first
	// workloads by namespace and label "key=value"; the label "" holds them all.
	workloads map[string]map[string][]*Workload
	// byAddress has all workloads, those listed in a ServiceEntry as well, by addressKey.
	byAddress   map[string][]*Workload
	byNamespace map[string][]*Service
	rules       map[string]hostMap[*DestinationRule] // by namespace
	virtual     hostMap[*VirtualService]
	access      accessIndex
}

// hostMap finds policy objects by host, in the order they were added.
type hostMap[T any] struct {
	exact    map[string][]T
	wildcard map[string][]T
	longest  []string // keys of wildcard, longest first, then by name
}

func (h *hostMap[T]) add(host string, v T) {
	m := &h.exact
	if strings.HasPrefix(host, "*") {
		m = &h.wildcard
	}
	if *m == nil {
		*m = make(map[string][]T)
	}
	(*m)[host] = append((*m)[host], v)
}

func (h *hostMap[T]) done() {
	h.longest = sortWildcards(h.wildcard)
}

func sortWildcards[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return keys
}

// find returns the objects of the most specific host that matches and has one that
// keep accepts, with that host.
func (h *hostMap[T]) find(host string, keep func(T) bool) (kept []T, at string) {
	filter := func(all []T) []T {
		var out []T
		for _, v := range all {
			if keep(v) {
				out = append(out, v)
			}
		}
		return out
	}
	m := h.exact
	if strings.HasPrefix(host, "*") {
		m = h.wildcard
	}
	if out := filter(m[host]); len(out) > 0 {
		return out, host
	}
	for _, w := range h.longest {
		if w != host && matchWildcard(w, host) {
			if out := filter(h.wildcard[w]); len(out) > 0 {
				return out, w
			}
		}
	}
	return nil, ""
}

// matchWildcard reports whether host lies under wildcard, which starts with "*".
// A wildcard host lies under a shorter wildcard.
func matchWildcard(wildcard, host string) bool {
	suffix := wildcard[1:]
	host = strings.TrimPrefix(host, "*")
	return len(host) >= len(suffix) && strings.HasSuffix(host, suffix)
}

func (s *Set) lookup() *index {
	s.once.Do(func() {
		x := &index{
			services:  make(map[string]*Service, len(s.Services)),
			workloads: make(map[string]map[string][]*Workload),
			byAddress: make(map[string][]*Workload, len(s.Workloads)), byNamespace: make(map[string][]*Service),
			rules: make(map[string]hostMap[*DestinationRule]),
		}
		locate := func(w *Workload) {
			at := addressKey(w.Namespace, w.Address)
			x.byAddress[at] = append(x.byAddress[at], w)
		}
		wild := make(map[string]*Service)
		for _, svc := range s.Services {
			host := strings.TrimSuffix(strings.ToLower(svc.Host), ".")
			if _, taken := x.services[host]; taken {
				continue
			}
			x.services[host] = svc
			x.byNamespace[svc.Namespace] = append(x.byNamespace[svc.Namespace], svc)
			for _, w := range svc.Static {
				locate(w)
			}
			if strings.HasPrefix(host, "*") {
				wild[host] = svc
			}
		}
		x.wildcards = sortWildcards(wild)
		for _, w := range s.Workloads {
			locate(w)
			byLabel := x.workloads[w.Namespace]
			if byLabel == nil {
				byLabel = make(map[string][]*Workload)
				x.workloads[w.Namespace] = byLabel
			}
			byLabel[""] = append(byLabel[""], w)
			for k, v := range w.Labels {
				byLabel[k+"="+v] = append(byLabel[k+"="+v], w)
			}
		}
		for _, dr := range s.DestinationRules {
			h := x.rules[dr.Namespace]
			h.add(x.resolve(dr.Spec.GetHost(), dr.Namespace), dr)
			x.rules[dr.Namespace] = h
		}
		for ns, h := range x.rules {
			h.done()
			x.rules[ns] = h
		}
		for _, vs := range s.VirtualServices {
			for _, host := range vs.Spec.GetHosts() {
				x.virtual.add(x.resolve(host, vs.Namespace), vs)
			}
		}
		x.virtual.done()
		x.access = newAccessIndex(s)
		s.index = x
	})
	return s.index
}

// FQDN gives a host as named in an object of the namespace its full name: a name
// without a dot gets the namespace and DomainSuffix; every other name is taken as it
// stands, in lower case and without a trailing dot. It consults no set; see ResolveHost.
func FQDN(host, namespace string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "" || strings.ContainsAny(host, ".*:") {
		return host
	}
	if namespace == "" {
		namespace = DefaultNamespace
	}
	return host + "." + namespace + "." + DomainSuffix
}

// ResolveHost gives a host as a client or an object of the namespace names it the
// name of the service it means: "reviews" and "reviews.ns" and "reviews.ns.svc" are
// "reviews.ns.svc.cluster.local" where the set has that service; a ServiceEntry's
// host stands for itself. A host that no service has becomes its FQDN.
func (s *Set) ResolveHost(host, namespace string) string {
	return s.lookup().resolve(host, namespace)
}

func (x *index) resolve(host, namespace string) string {
	full := FQDN(host, namespace)
	if _, ok := x.services[full]; ok {
		return full
	}
	plain := strings.TrimSuffix(strings.ToLower(host), ".")
	if _, ok := x.services[plain]; ok {
		return plain
	}
	base := strings.TrimSuffix(plain, ".svc")
	if strings.Count(base, ".") == 1 {
		if long := base + "." + DomainSuffix; x.services[long] != nil {
			return long
		}
	}
	return full
}

// ServiceByHost returns the service with this full name, or the one whose wildcard
// host is the most specific that covers it; nil if there is none.
func (s *Set) ServiceByHost(host string) *Service {
	x := s.lookup()
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if svc := x.services[host]; svc != nil {
		return svc
	}
	for _, w := range x.wildcards {
		if matchWildcard(w, host) {
			return x.services[w]
		}
	}
	return nil
}

// PortNumber returns the service's port with the number; false if it has none.
func (s *Service) PortNumber(number uint32) (Port, bool) {
	for _, p := range s.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return Port{}, false
}

// WorkloadsOf returns the workloads behind a service, in the set's order: its static
// endpoints, or the workloads of its namespace that its selector selects.
func (s *Set) WorkloadsOf(svc *Service) []*Workload {
	if svc.Selector == nil {
		return svc.Static
	}
	byLabel := s.lookup().workloads[svc.Namespace]
	// Start from the rarest label: a namespace may have thousands of workloads.
	candidates := byLabel[""]
	for k, v := range svc.Selector {
		if some := byLabel[k+"="+v]; len(some) < len(candidates) {
			candidates = some
		}
	}
	var out []*Workload
	for _, w := range candidates {
		if HasLabels(w.Labels, svc.Selector) {
			out = append(out, w)
		}
	}
	return out
}

// EndpointsOf returns the endpoints of a service at one of its ports. The port at the
// workload is that which its own port map gives the named target port or else the
// service's port name; otherwise the target port.
func (s *Set) EndpointsOf(svc *Service, port Port) []Endpoint {
	workloads := s.WorkloadsOf(svc)
	if len(workloads) == 0 {
		return nil
	}
	out := make([]Endpoint, 0, len(workloads))
	for _, w := range workloads {
		out = append(out, Endpoint{Workload: w, Address: net.JoinHostPort(w.Address, strconv.FormatUint(uint64(w.PortFor(port)), 10))})
	}
	return out
}

// PortFor returns the port at which the workload serves a service's port.
func (w *Workload) PortFor(port Port) uint32 {
	if port.TargetName != "" {
		if n, ok := w.Ports[port.TargetName]; ok {
			return n
		}
	}
	if n, ok := w.Ports[port.Name]; ok {
		return n
	}
	if port.Target != 0 {
		return port.Target
	}
	return port.Number
}

// HasLabels reports whether labels has every pair of selector.
func HasLabels(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Exported reports whether an object of namespace own with this exportTo list is
// visible in namespace client. An empty list is "*".
func Exported(exportTo []string, own, client string) bool {
	if len(exportTo) == 0 {
		return true
	}
	for _, e := range exportTo {
		switch {
		case e == "*", e == client, e == "." && own == client:
			return true
		}
	}
	return false
}

// DestinationRuleFor returns the rule for a host, given by its full name, as clients
// in namespace client see it, or nil. Istio looks in the client's namespace, then in
// the service's, then in RootNamespace; within one, the most specific host decides.
// Rules of one namespace for the same host are merged: the oldest top-level traffic
// policy wins, and subsets that an older rule does not declare are appended.
func (s *Set) DestinationRuleFor(host, client string) *DestinationRule {
	x := s.lookup()
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	namespaces := []string{client}
	if svc := s.ServiceByHost(host); svc != nil {
		namespaces = append(namespaces, svc.Namespace)
	}
	namespaces = append(namespaces, RootNamespace)
	for i, ns := range namespaces {
		if slices.Contains(namespaces[:i], ns) {
			continue
		}
		h, ok := x.rules[ns]
		if !ok {
			continue
		}
		rules, _ := h.find(host, func(dr *DestinationRule) bool {
			return Exported(dr.Spec.GetExportTo(), dr.Namespace, client)
		})
		if len(rules) > 0 {
			return mergeRules(rules)
		}
	}
	return nil
}

func mergeRules(rules []*DestinationRule) *DestinationRule {
	if len(rules) == 1 {
		return rules[0]
	}
	first := rules[0]
	spec := &networking.DestinationRule{
		Host:          first.Spec.GetHost(),
		TrafficPolicy: first.Spec.GetTrafficPolicy(),
		Subsets:       slices.Clone(first.Spec.GetSubsets()),
		ExportTo:      first.Spec.GetExportTo(),
	}
	seen := make(map[string]bool)
	for _, sub := range spec.Subsets {
		seen[sub.GetName()] = true
	}
	for _, dr := range rules[1:] {
		if spec.TrafficPolicy == nil {
			spec.TrafficPolicy = dr.Spec.GetTrafficPolicy()
		}
		for _, sub := range dr.Spec.GetSubsets() {
			if !seen[sub.GetName()] {
				seen[sub.GetName()] = true
				spec.Subsets = append(spec.Subsets, sub)
			}
		}
	}
	return &DestinationRule{Meta: first.Meta, Spec: spec}
}

// VirtualServiceFor returns the virtual service that decides for a host, given by its
// full name, for clients in namespace client, or nil: the first by precedence that
// names the host itself, else the one with the most specific wildcard. It decides on
// every port of the host; a match may name a port.
func (s *Set) VirtualServiceFor(host, client string) *VirtualService {
	x := s.lookup()
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	found, _ := x.virtual.find(host, func(vs *VirtualService) bool {
		return Exported(vs.Spec.GetExportTo(), vs.Namespace, client)
	})
	if len(found) == 0 {
		return nil
	}
	return found[0]
}
