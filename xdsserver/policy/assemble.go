package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// assemble builds the set of what is in force, and says what of it has no effect.
func (b *build) assemble() (*Set, []Problem) {
	var notes build
	set := &Set{}
	hosts := make(map[string]*Object)
	all := byPrecedence(b.good)
	delegates := b.delegates()
	for _, o := range all {
		switch spec := o.Spec.(type) {
		case *networking.VirtualService:
			if !appliesToMesh(spec) {
				notes.say(Notice, o, "spec.gateways", "is for gateways only and does not apply to the mesh")
				continue
			}
			if isDelegate(spec) {
				continue
			}
			spec = delegated(o, spec, delegates, func(field, why string) { notes.say(Warning, o, field, "%s", why) })
			set.VirtualServices = append(set.VirtualServices, &VirtualService{o.Meta, spec})
		case *networking.DestinationRule:
			set.DestinationRules = append(set.DestinationRules, &DestinationRule{o.Meta, spec})
		case *networking.WorkloadEntry:
			set.Workloads = append(set.Workloads, workload(o.Meta, spec))
		case *security.PeerAuthentication:
			set.PeerAuthentications = append(set.PeerAuthentications, &PeerAuthentication{o.Meta, spec})
		case *security.AuthorizationPolicy:
			set.AuthorizationPolicies = append(set.AuthorizationPolicies, &AuthorizationPolicy{o.Meta, spec})
		case *security.RequestAuthentication:
			set.RequestAuthentications = append(set.RequestAuthentications, &RequestAuthentication{o.Meta, spec})
		case *ServerSpec:
			set.Servers = append(set.Servers, &Server{o.Meta, spec})
		case *RateLimitSpec:
			set.RateLimits = append(set.RateLimits, &RateLimitPolicy{o.Meta, spec})
		case *networking.EnvoyFilter:
			set.EnvoyFilters = append(set.EnvoyFilters, &EnvoyFilter{o.Meta, spec})
		case *mesh.MeshConfig:
			set.MeshConfig = &MeshConfig{o.Meta, spec}
		case *KubernetesService:
			host := FQDN(o.Name, o.Namespace)
			hosts[host] = o
			set.Services = append(set.Services, &Service{
				Meta: o.Meta, Host: host, Ports: spec.Ports, Selector: spec.Selector,
				Resolution: networking.ServiceEntry_STATIC, ExportTo: spec.ExportTo,
				Accrual: spec.annotated.accrual, Default: spec.annotated.route,
			})
		}
	}
	// After all Kubernetes services, whose hosts are theirs.
	for _, o := range all {
		spec, ok := o.Spec.(*networking.ServiceEntry)
		if !ok {
			continue
		}
		for i, h := range spec.GetHosts() {
			host := FQDN(h, o.Namespace)
			if !strings.Contains(h, ".") {
				// A ServiceEntry's host is a name as clients write it, not one of the namespace.
				host = strings.ToLower(h)
			}
			if first := hosts[host]; first != nil {
				notes.say(Warning, o, hostField(o, i), "host %s is already that of %s (%s), which decides", host, first.Ref(), first.At)
				continue
			}
			hosts[host] = o
			set.Services = append(set.Services, entryService(o.Meta, spec, host))
		}
	}
	return set, notes.problems
}

// byPrecedence sorts objects: oldest first, then by name, then by namespace, as Istio
// does; a TrafficSplit comes after every VirtualService.
func byPrecedence(good map[Ref]*Object) []*Object {
	return slices.SortedFunc(maps.Values(good), func(x, y *Object) int {
		split := func(o *Object) int {
			if o.Kind == "TrafficSplit" {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(split(x), split(y)), x.Created.Compare(y.Created),
			strings.Compare(x.Name, y.Name), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Kind, y.Kind))
	})
}

// workload reads a WorkloadEntry, or an endpoint of a ServiceEntry.
func workload(meta Meta, w *networking.WorkloadEntry) *Workload {
	labels := maps.Clone(w.GetLabels())
	if labels == nil {
		labels = make(map[string]string, len(meta.Labels))
	}
	maps.Copy(labels, meta.Labels)
	meta.Labels = labels
	return &Workload{
		Meta: meta, Address: w.GetAddress(), Ports: w.GetPorts(), Weight: max(w.GetWeight(), 1),
		Locality: w.GetLocality(), ServiceAccount: w.GetServiceAccount(),
	}
}

func entryService(meta Meta, se *networking.ServiceEntry, host string) *Service {
	svc := &Service{
		Meta: meta, Host: host, Resolution: se.GetResolution(), ExportTo: se.GetExportTo(),
		SubjectAltNames: se.GetSubjectAltNames(),
		External:        se.GetLocation() == networking.ServiceEntry_MESH_EXTERNAL,
	}
	for _, p := range se.GetPorts() {
		port := Port{Name: p.GetName(), Number: p.GetNumber(), Target: p.GetTargetPort(), Protocol: strings.ToUpper(p.GetProtocol())}
		if port.Target == 0 {
			port.Target = port.Number
		}
		if port.Protocol == "" {
			port.Protocol = "HTTP"
		}
		svc.Ports = append(svc.Ports, port)
	}
	if sel := se.GetWorkloadSelector(); sel != nil {
		svc.Selector = maps.Clone(sel.GetLabels())
		if svc.Selector == nil {
			svc.Selector = map[string]string{}
		}
		return svc
	}
	for _, e := range se.GetEndpoints() {
		// An endpoint has the entry's name and place, and labels of its own.
		own := meta
		own.Labels, own.Annotations = nil, nil
		svc.Static = append(svc.Static, workload(own, e))
	}
	return svc
}

// relate warns of objects that are valid, but do not act together as they look.
func (b *build) relate(set *Set) {
	type claim struct {
		object *Object
		vs     *VirtualService
	}
	winners := make(map[string][]claim)
	for _, vs := range set.VirtualServices {
		o := b.good[vs.Ref()]
		for i, h := range vs.Spec.GetHosts() {
			host := set.ResolveHost(h, vs.Namespace)
			for _, first := range winners[host] {
				if first.vs != vs && visibleTogether(first.vs, vs) {
					b.say(Warning, o, hostField(o, i), "%s is decided by %s (%s), not by this %s", host, first.vs.Ref(), first.vs.At, vs.Kind)
					break
				}
			}
			winners[host] = append(winners[host], claim{o, vs})
		}
	}
	used := make(map[Ref]bool)
	for _, vs := range set.VirtualServices {
		b.destinations(set, b.good[vs.Ref()], used)
	}
	for _, o := range byPrecedence(b.delegates()) {
		b.destinations(set, o, nil)
		if !used[o.Ref()] {
			b.say(Warning, o, "spec.hosts", "has no effect: it has no hosts, and no VirtualService delegates to it")
		}
	}
}

// delegates are the VirtualServices without hosts.
func (b *build) delegates() map[Ref]*Object {
	out := make(map[Ref]*Object)
	for ref, o := range b.good {
		if spec, ok := o.Spec.(*networking.VirtualService); ok && isDelegate(spec) {
			out[ref] = o
		}
	}
	return out
}

// destinations warns of destinations of an object as it was read, and notes in used to which others it delegates.
func (b *build) destinations(set *Set, o *Object, used map[Ref]bool) {
	for i, r := range o.Spec.(*networking.VirtualService).GetHttp() {
		if !routeAppliesToMesh(r) {
			continue
		}
		for _, d := range destinationsOf(o, i, r) {
			b.destination(set, o, d)
		}
		if r.GetDelegate() != nil {
			used[delegateRef(o.Namespace, r.GetDelegate())] = true
		}
	}
}

// visibleTogether reports whether some namespace may see both.
func visibleTogether(x, y *VirtualService) bool {
	namespaces := func(vs *VirtualService) map[string]bool {
		out := make(map[string]bool)
		for _, e := range vs.Spec.GetExportTo() {
			if e == "." {
				e = vs.Namespace
			}
			out[e] = true
		}
		if len(out) == 0 {
			out["*"] = true
		}
		return out
	}
	a, c := namespaces(x), namespaces(y)
	if a["*"] || c["*"] {
		return true
	}
	for ns := range a {
		if c[ns] {
			return true
		}
	}
	return false
}

// destination warns of a destination that no service has.
func (b *build) destination(set *Set, o *Object, d routeDestination) {
	full := set.ResolveHost(d.GetHost(), o.Namespace)
	svc := set.ServiceByHost(full)
	if svc == nil {
		b.say(Warning, o, d.at(), "no Service or ServiceEntry has the host %s", full)
		return
	}
	if n := d.GetPort().GetNumber(); n != 0 {
		if _, ok := svc.PortNumber(n); !ok {
			b.say(Warning, o, strings.TrimSuffix(d.at(), "host")+"port", "%s has no port %d", full, n)
		}
	}
}
