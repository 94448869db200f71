package translate

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// Changes is what differs between two policies, in terms of the resources that
// may differ with it. It may name a resource that turns out the same; it never
// leaves out one that does not.
type Changes struct {
	// names reports that what hosts mean may differ: a service came, went, or
	// changed its host, ports or visibility.
	names bool
	// hosts are those of services whose ports or endpoints changed.
	hosts map[string]bool
	// wildcards are those of hosts that begin with "*".
	wildcards []string
	// virtual and rules are the hosts of VirtualServices and DestinationRules, as objects spell them.
	virtual, rules []string
	// hashed are the hosts of DestinationRules that choose endpoints by a hash of the
	// request, which is said in the routes to them; sending are the hosts whose routes go there.
	hashed, sending []string
	// routes: all may differ.
	routes bool
	// servers: what says who may call whom, or which services a workload has, may
	// differ, so that every server-side listener may. Where only workloads came, went
	// or changed, servedAt has their addresses.
	servers  bool
	servedAt map[string]bool
	// sockets: how endpoints of any service are connected to may differ.
	sockets bool
}

// Diff compares two policies. Objects are compared by content: one that was
// read again unchanged, or moved within its file, is no change.
func Diff(old, new *View) *Changes {
	c := &Changes{hosts: map[string]bool{}, servedAt: map[string]bool{}}
	c.access(old.set, new.set)
	diff(old.set.VirtualServices, new.set.VirtualServices, func(a *policy.VirtualService) string { return key(&a.Meta) },
		func(a, b *policy.VirtualService) bool {
			return sameMeta(&a.Meta, &b.Meta) && proto.Equal(a.Spec, b.Spec)
		},
		func(vs, _ *policy.VirtualService) {
			for _, h := range vs.Spec.GetHosts() {
				c.virtual = append(c.virtual, policy.FQDN(h, vs.Namespace))
			}
		})
	// Their order is precedence.
	if !sameOrder(old.set.VirtualServices, new.set.VirtualServices, func(a *policy.VirtualService) string { return key(&a.Meta) }) {
		c.virtual = append(c.virtual, "*")
	}
	diff(old.set.DestinationRules, new.set.DestinationRules, func(a *policy.DestinationRule) string { return key(&a.Meta) },
		func(a, b *policy.DestinationRule) bool {
			return sameMeta(&a.Meta, &b.Meta) && proto.Equal(a.Spec, b.Spec)
		},
		func(dr, other *policy.DestinationRule) {
			host := policy.FQDN(dr.Spec.GetHost(), dr.Namespace)
			c.rules = append(c.rules, host)
			if hashes(dr) || other != nil && hashes(other) {
				c.hashed = append(c.hashed, host)
			}
		})
	if !sameOrder(old.set.DestinationRules, new.set.DestinationRules, func(a *policy.DestinationRule) string { return key(&a.Meta) }) {
		c.rules = append(c.rules, "*")
		c.routes = c.routes || slices.ContainsFunc(new.set.DestinationRules, hashes)
	}
	if len(c.hashed) > 0 {
		c.send(old.set)
		c.send(new.set)
	}
	diff(old.set.Services, new.set.Services, func(s *policy.Service) string { return s.Host + "/" + s.Namespace }, sameService,
		func(s, other *policy.Service) {
			if other == nil || !sameShape(s, other) {
				c.names = true
			}
			if other == nil || !slices.Equal(s.Ports, other.Ports) || !maps.Equal(s.Selector, other.Selector) || (s.Selector == nil) != (other.Selector == nil) {
				c.servers = true // the ports of workloads that share an address tell them apart
			}
			for _, w := range s.Static {
				c.servedAt[canonical(w.Address)] = true
			}
			c.host(s.Host)
		})
	moved := map[*policy.Workload]bool{}
	diff(old.set.Workloads, new.set.Workloads, func(w *policy.Workload) string { return w.Namespace + "/" + w.Name + "/" + w.Address }, sameWorkload,
		func(w, _ *policy.Workload) {
			moved[w] = true
			c.servedAt[canonical(w.Address)] = true
		})
	if len(moved) > 0 {
		for _, set := range []*policy.Set{old.set, new.set} {
			for _, s := range set.Services {
				if s.Selector != nil && slices.ContainsFunc(set.WorkloadsOf(s), func(w *policy.Workload) bool { return moved[w] }) {
					c.host(s.Host)
				}
			}
		}
	}
	return c
}

// hashes reports whether a rule chooses endpoints by a hash anywhere.
func hashes(dr *policy.DestinationRule) bool {
	policies := []*networking.TrafficPolicy{dr.Spec.GetTrafficPolicy()}
	for _, s := range dr.Spec.GetSubsets() {
		policies = append(policies, s.GetTrafficPolicy())
	}
	return slices.ContainsFunc(policies, func(tp *networking.TrafficPolicy) bool {
		return tp.GetLoadBalancer().GetConsistentHash() != nil ||
			slices.ContainsFunc(tp.GetPortLevelSettings(), func(p *networking.TrafficPolicy_PortTrafficPolicy) bool {
				return p.GetLoadBalancer().GetConsistentHash() != nil
			})
	})
}

// send adds the hosts whose routes go to one of those that are hashed.
func (c *Changes) send(set *policy.Set) {
	for _, vs := range set.VirtualServices {
		goes := slices.ContainsFunc(vs.Spec.GetHttp(), func(r *networking.HTTPRoute) bool {
			return slices.ContainsFunc(r.GetRoute(), func(d *networking.HTTPRouteDestination) bool {
				return anyCovers(c.hashed, set.ResolveHost(d.GetDestination().GetHost(), vs.Namespace))
			})
		})
		if !goes {
			continue
		}
		for _, h := range vs.Spec.GetHosts() {
			c.sending = append(c.sending, policy.FQDN(h, vs.Namespace))
		}
	}
}

func (c *Changes) host(h string) {
	if strings.HasPrefix(h, "*") {
		c.wildcards = append(c.wildcards, h)
	}
	c.hosts[h] = true
}

// Affects reports whether the resource of that name may differ, whoever asks for it.
func (c *Changes) Affects(typeURL, name string) bool {
	if typeURL == ListenerType {
		if addr, ok := strings.CutPrefix(name, InboundPrefix); ok {
			return c.serves(addr)
		}
		// A VirtualService alone can give a host its listener.
		return c.names || len(c.virtual) > 0
	}
	n, err := ParseTrafficName(name)
	if err != nil {
		return false
	}
	switch typeURL {
	case RouteType:
		// Destinations take their port from the services they name.
		return c.names || c.routes || anyCovers(c.virtual, n.Host) || anyCovers(c.hashed, n.Host) || anyCovers(c.sending, n.Host)
	case ClusterType, EndpointType:
		return c.names || c.sockets || c.hosts[n.Host] || anyCovers(c.wildcards, n.Host) || anyCovers(c.rules, n.Host)
	}
	return false
}

// Empty reports that nothing differs.
func (c *Changes) Empty() bool {
	return !c.names && !c.routes && len(c.hosts) == 0 && len(c.virtual) == 0 && len(c.rules) == 0 &&
		!c.servers && len(c.servedAt) == 0 && !c.sockets
}

// access compares what says who may call whom.
func (c *Changes) access(old, new *policy.Set) {
	if differ(old.PeerAuthentications, new.PeerAuthentications, func(p *policy.PeerAuthentication) (*policy.Meta, proto.Message) { return &p.Meta, p.Spec }) {
		c.servers, c.sockets = true, true
	}
	if !sameMesh(old.MeshConfig, new.MeshConfig) {
		// The trust domain is part of every identity, and clusters have the mesh's defaults.
		c.servers, c.sockets = true, true
		c.routes = !proto.Equal(old.MeshConfig.DefaultRetries(), new.MeshConfig.DefaultRetries())
	}
	if differ(old.AuthorizationPolicies, new.AuthorizationPolicies, func(p *policy.AuthorizationPolicy) (*policy.Meta, proto.Message) { return &p.Meta, p.Spec }) ||
		differ(old.EnvoyFilters, new.EnvoyFilters, func(p *policy.EnvoyFilter) (*policy.Meta, proto.Message) { return &p.Meta, p.Spec }) ||
		differ(old.RequestAuthentications, new.RequestAuthentications, func(p *policy.RequestAuthentication) (*policy.Meta, proto.Message) { return &p.Meta, p.Spec }) ||
		!slices.EqualFunc(old.Servers, new.Servers, func(a, b *policy.Server) bool { return sameMeta(&a.Meta, &b.Meta) && reflect.DeepEqual(a.Spec, b.Spec) }) ||
		!slices.EqualFunc(old.RateLimits, new.RateLimits, func(a, b *policy.RateLimitPolicy) bool {
			return sameMeta(&a.Meta, &b.Meta) && reflect.DeepEqual(a.Spec, b.Spec)
		}) ||
		!slices.EqualFunc(old.Broken, new.Broken, func(a, b policy.Broken) bool { return reflect.DeepEqual(a, b) }) {
		c.servers = true
	}
}

// differ compares objects in their order, which is precedence.
func differ[T any](old, new []*T, parts func(*T) (*policy.Meta, proto.Message)) bool {
	return !slices.EqualFunc(old, new, func(a, b *T) bool {
		if a == b {
			return true
		}
		metaA, specA := parts(a)
		metaB, specB := parts(b)
		return sameMeta(metaA, metaB) && proto.Equal(specA, specB)
	})
}

func sameMesh(a, b *policy.MeshConfig) bool {
	if a == nil || b == nil {
		return a == b
	}
	return sameMeta(&a.Meta, &b.Meta) && proto.Equal(a.Spec, b.Spec)
}

// serves reports whether the server-side listener of an address may differ. One for
// all addresses is that of each workload of its client.
func (c *Changes) serves(addr string) bool {
	if c.servers || len(c.servedAt) == 0 {
		return c.servers
	}
	host, _, err := splitInbound(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err != nil || ip.IsUnspecified() || c.servedAt[canonical(host)]
}

// canonical is an address in the one way in which it is compared.
func canonical(address string) string {
	if ip, err := netip.ParseAddr(address); err == nil {
		return ip.Unmap().String()
	}
	return address
}

func anyCovers(patterns []string, host string) bool {
	for _, p := range patterns {
		if covers(p, host) {
			return true
		}
	}
	return false
}

// diff calls changed for every object that is only in one list, with nil, and
// for both sides of one that differs, with the other side.
func diff[T any](old, new []*T, keyOf func(*T) string, same func(a, b *T) bool, changed func(v, other *T)) {
	before := make(map[string]*T, len(old))
	for _, v := range old {
		before[keyOf(v)] = v
	}
	seen := make(map[string]bool, len(new))
	for _, v := range new {
		k := keyOf(v)
		seen[k] = true
		switch b := before[k]; {
		case b == nil:
			changed(v, nil)
		case b != v && !same(b, v):
			changed(b, v)
			changed(v, b)
		}
	}
	for _, v := range old {
		if !seen[keyOf(v)] {
			changed(v, nil)
		}
	}
}

// sameOrder reports whether the objects in both lists stand in the same order.
func sameOrder[T any](old, new []*T, keyOf func(*T) string) bool {
	at := make(map[string]int, len(old))
	for i, v := range old {
		at[keyOf(v)] = i
	}
	last := -1
	for _, v := range new {
		i, ok := at[keyOf(v)]
		if !ok {
			continue
		}
		if i < last {
			return false
		}
		last = i
	}
	return true
}

// sameMeta compares what resources are made of; where the object stands in a file is not.
func sameMeta(a, b *policy.Meta) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.Created.Equal(b.Created) &&
		maps.Equal(a.Annotations, b.Annotations)
}

func sameShape(a, b *policy.Service) bool {
	return a.Host == b.Host && a.Namespace == b.Namespace && slices.Equal(a.Ports, b.Ports) &&
		a.External == b.External && a.Resolution == b.Resolution && slices.Equal(a.ExportTo, b.ExportTo) &&
		slices.Equal(a.SubjectAltNames, b.SubjectAltNames) && proto.Equal(a.Default, b.Default)
}

func sameService(a, b *policy.Service) bool {
	if !sameShape(a, b) || a.Kind != b.Kind || a.Name != b.Name || (a.Selector == nil) != (b.Selector == nil) ||
		!maps.Equal(a.Selector, b.Selector) || len(a.Static) != len(b.Static) ||
		a.PeakEWMA() != b.PeakEWMA() || !reflect.DeepEqual(a.Accrual, b.Accrual) {
		return false
	}
	for i := range a.Static {
		if !sameWorkload(a.Static[i], b.Static[i]) {
			return false
		}
	}
	return true
}

func sameWorkload(a, b *policy.Workload) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.Address == b.Address && a.Weight == b.Weight &&
		a.Locality == b.Locality && a.ServiceAccount == b.ServiceAccount &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Ports, b.Ports)
}

func key(m *policy.Meta) string { return m.Kind + "/" + m.Namespace + "/" + m.Name }
