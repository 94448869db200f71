package policy

import (
	networking "istio.io/api/networking/v1alpha3"
)

// relateWorkloads warns of WorkloadEntries that look like endpoints and are none, and
// of ports of theirs that nothing asks for. Istio's analysis has no word for either.
func (b *build) relateWorkloads(set *Set) {
	behind := make(map[*Workload][]*Service, len(set.Workloads))
	for _, svc := range set.Services {
		if svc.Selector == nil {
			continue
		}
		for _, w := range set.WorkloadsOf(svc) {
			behind[w] = append(behind[w], svc)
		}
	}
	for _, w := range set.Workloads {
		o := b.good[w.Ref()]
		services := behind[w]
		if len(services) == 0 {
			b.unselected(o, w)
			continue
		}
		for _, name := range sortedKeys(w.Ports) {
			if known, ok := set.asksFor(w, services, name); !ok {
				b.say(Warning, o, "spec.ports["+name+"]", "has no effect: no Service or ServiceEntry that selects this workload has a port of this name%s", suggest(name, known))
			}
		}
	}
}

// unselected is a warning where the entry has what only endpoints need. Without labels
// and ports it may be there to say who is at an address.
func (b *build) unselected(o *Object, w *Workload) {
	sev, field := Notice, "spec"
	switch spec := o.Spec.(*networking.WorkloadEntry); {
	case len(spec.GetLabels()) > 0:
		sev, field = Warning, "spec.labels"
	case len(w.Labels) > 0:
		sev, field = Warning, "metadata.labels"
	case len(w.Ports) > 0:
		sev = Warning
	}
	b.say(sev, o, field, "no Service or ServiceEntry of namespace %s selects this workload: no request is sent to it", w.Namespace)
}

// asksFor reports whether one of the services behind which a workload is, or a Server
// that selects it, looks up a port by this name. known are the names that services have.
func (s *Set) asksFor(w *Workload, services []*Service, name string) (known []string, ok bool) {
	for _, svc := range services {
		for _, p := range svc.Ports {
			if p.Name == name || p.TargetName == name {
				return nil, true
			}
			known = append(known, p.Name, p.TargetName)
		}
	}
	for _, server := range s.Servers {
		if server.Namespace == w.Namespace && server.Spec.PortName == name && server.Spec.PodSelector.Selects(w.Labels) {
			return nil, true
		}
	}
	return known, false
}
