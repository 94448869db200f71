package policy

import (
	"fmt"
	"slices"
	"strconv"
)

// linkerdPolicy is the API group of Linkerd's access policy.
const linkerdPolicy = "policy.linkerd.io"

// linkerdVersions are the versions that are read of each kind.
var linkerdVersions = map[string]string{"Server": "v1beta3", "HTTPLocalRateLimitPolicy": "v1alpha1"}

const notEnforcedLinkerd = "is valid in Linkerd, but the mesh does not enforce it"

// linkerd reads a Server or an HTTPLocalRateLimitPolicy.
func (d *decoder) linkerd(v *value, o *Object, version string) {
	if want := linkerdVersions[o.Kind]; version != want {
		d.errorf(v.get("apiVersion").line, "apiVersion", "version %s of %s %s is not known: use %s", version, linkerdPolicy, o.Kind, want)
	}
	for _, e := range v.keys {
		switch e.key {
		case "apiVersion", "kind", "metadata", "status":
		case "spec":
			d.lines["spec"] = e.line
		default:
			d.errorf(e.line, e.key, "unknown field%s", suggest(e.key, []string{"metadata", "spec", "status"}))
		}
	}
	spec := v.get("spec")
	if spec.isNull() {
		d.errorf(d.lineOf("spec"), "spec", "required")
		return
	}
	if !d.expect(spec, mapValue, "spec") {
		return
	}
	var found findings
	switch o.Kind {
	case "Server":
		s := d.server(spec)
		o.Spec = s
		found.server(s)
	case "HTTPLocalRateLimitPolicy":
		s := d.rateLimit(spec, o.Namespace)
		o.Spec = s
		found.rateLimit(s)
	}
	wrong := make(map[string]bool)
	for _, p := range d.problems {
		wrong[p.Field] = true
	}
	for _, finding := range found {
		if !wrong[finding.Field] {
			d.problems = append(d.problems, Problem{
				At: Position{d.file, d.lineOf(finding.Field)}, Object: d.ref,
				Field: finding.Field, Message: finding.Message, Severity: finding.Severity,
			})
		}
	}
}

// fields reads a mapping: each field by its reader. Null is as good as nothing.
func (d *decoder) fields(v *value, at string, readers map[string]func(v *value, at string)) {
	if !d.expect(v, mapValue, at) {
		return
	}
	for _, e := range v.keys {
		in := join(at, e.key)
		d.lines[in] = e.line
		read := readers[e.key]
		switch {
		case read == nil:
			d.errorf(e.line, in, "unknown field%s", suggest(e.key, sortedKeys(readers)))
		case !e.val.isNull():
			read(e.val, in)
		}
	}
}

// list calls read for each item of a list.
func (d *decoder) list(v *value, at string, read func(v *value, at string)) {
	if !d.expect(v, listValue, at) {
		return
	}
	for i, item := range v.items {
		in := at + "[" + strconv.Itoa(i) + "]"
		d.lines[in] = item.line
		read(item, in)
	}
}

// into returns a reader of text.
func (d *decoder) into(s *string) func(*value, string) {
	return func(v *value, at string) { *s = d.text(v, at) }
}

func (d *decoder) server(v *value) *ServerSpec {
	s := &ServerSpec{}
	selected := false
	d.fields(v, "spec", map[string]func(*value, string){
		"podSelector": func(v *value, at string) {
			selected = true
			s.PodSelector = d.labelSelector(v, at)
		},
		"externalWorkloadSelector": func(v *value, at string) {
			selected = true
			d.errorf(v.line, at, notEnforcedLinkerd)
		},
		"port": func(v *value, at string) {
			if name, ok := v.str(); ok {
				s.PortName = name
				return
			}
			s.Port = d.port(v, at)
		},
		"proxyProtocol": d.into(&s.ProxyProtocol),
		"accessPolicy":  d.into(&s.AccessPolicy),
	})
	if !selected {
		d.errorf(d.lineOf("spec"), "spec.podSelector", "required")
	}
	return s
}

func (d *decoder) labelSelector(v *value, at string) LabelSelector {
	var s LabelSelector
	d.fields(v, at, map[string]func(*value, string){
		"matchLabels": func(v *value, at string) { s.MatchLabels = d.stringMap(v, at) },
		"matchExpressions": func(v *value, at string) {
			d.list(v, at, func(v *value, at string) {
				var e LabelExpression
				d.fields(v, at, map[string]func(*value, string){
					"key": d.into(&e.Key), "operator": d.into(&e.Operator),
					"values": func(v *value, at string) {
						d.list(v, at, func(v *value, at string) {
							if v.isNull() {
								d.errorf(v.line, at, "must have a value")
							}
							e.Values = append(e.Values, d.text(v, at))
						})
					},
				})
				s.MatchExpressions = append(s.MatchExpressions, e)
			})
		},
	})
	return s
}

// server checks a Server: what it says, and that it does not restrict access by itself.
func (f *findings) server(s *ServerSpec) {
	for i, e := range s.PodSelector.MatchExpressions {
		at := fmt.Sprintf("spec.podSelector.matchExpressions[%d]", i)
		if e.Key == "" {
			f.errorf(at+".key", "required")
		}
		switch e.Operator {
		case "In", "NotIn":
			if len(e.Values) == 0 {
				f.errorf(at+".values", "required for operator %s", e.Operator)
			}
		case "Exists", "DoesNotExist":
			if len(e.Values) > 0 {
				f.errorf(at+".values", "must not be set for operator %s", e.Operator)
			}
		default:
			f.errorf(at+".operator", "%q is not one of In, NotIn, Exists, DoesNotExist", e.Operator)
		}
	}
	switch {
	case s.Port != 0:
		f.err("spec.port", checkPort(s.Port))
	case s.PortName == "":
		f.errorf("spec.port", "required")
	case !isLabel(s.PortName):
		f.errorf("spec.port", "%q is neither a port number nor the name of a port", s.PortName)
	}
	switch s.ProxyProtocol {
	case "", "unknown", "HTTP/1", "HTTP/2", "gRPC":
	case "opaque", "TLS":
		f.errorf("spec.proxyProtocol", "%s "+notEnforcedLinkerd, s.ProxyProtocol)
	default:
		f.errorf("spec.proxyProtocol", "%q is not one of unknown, HTTP/1, HTTP/2, gRPC, opaque, TLS", s.ProxyProtocol)
	}
	switch s.AccessPolicy {
	case "all-unauthenticated":
	case "", "deny", "audit", "all-authenticated", "cluster-authenticated", "cluster-unauthenticated":
		policy := s.AccessPolicy
		if policy == "" {
			policy = "deny, which is the default,"
		}
		f.errorf("spec.accessPolicy", "%s %s: use all-unauthenticated, and an AuthorizationPolicy and a PeerAuthentication of %s", policy, notEnforcedLinkerd, istioSecurity)
	default:
		f.errorf("spec.accessPolicy", "%q is not an access policy", s.AccessPolicy)
	}
}

func (d *decoder) rateLimit(v *value, namespace string) *RateLimitSpec {
	s := &RateLimitSpec{}
	rate := func(out *uint32) func(*value, string) {
		return func(v *value, at string) { *out = d.perSecond(v, at, map[string]func(*value, string){}) }
	}
	d.fields(v, "spec", map[string]func(*value, string){
		"targetRef": func(v *value, at string) {
			var group, kind string
			d.fields(v, at, map[string]func(*value, string){"group": d.into(&group), "kind": d.into(&kind), "name": d.into(&s.Server)})
			if group != linkerdPolicy || kind != "Server" {
				d.errorf(v.line, at, "must be a Server of group %s, is %q of group %q", linkerdPolicy, kind, group)
			}
		},
		"total": rate(&s.Total), "identity": rate(&s.Identity),
		"overrides": func(v *value, at string) {
			d.list(v, at, func(v *value, at string) { s.Overrides = append(s.Overrides, d.override(v, at, namespace)) })
		},
	})
	return s
}

func (d *decoder) override(v *value, at, namespace string) RateLimitOverride {
	var o RateLimitOverride
	o.RequestsPerSecond = d.perSecond(v, at, map[string]func(*value, string){
		"clientRefs": func(v *value, at string) {
			d.list(v, at, func(v *value, at string) {
				var group, kind string
				account := ServiceAccount{Namespace: namespace}
				d.fields(v, at, map[string]func(*value, string){
					"group": d.into(&group), "kind": d.into(&kind), "name": d.into(&account.Name), "namespace": d.into(&account.Namespace),
				})
				if account.Namespace == "" {
					account.Namespace = namespace
				}
				if kind != "ServiceAccount" || group != "" && group != "core" {
					d.errorf(v.line, at+".kind", "must be a ServiceAccount, is %q of group %q", kind, group)
				}
				o.Clients = append(o.Clients, account)
			})
		},
	})
	return o
}

// perSecond reads a mapping with requestsPerSecond, and with the fields of readers beside it.
func (d *decoder) perSecond(v *value, at string, readers map[string]func(v *value, at string)) (n uint32) {
	given := false
	readers["requestsPerSecond"] = func(v *value, at string) {
		given = true
		n = d.rate(v, at)
	}
	d.fields(v, at, readers)
	if !given {
		d.errorf(v.line, at+".requestsPerSecond", "required")
	}
	return n
}

// rate reads requests per second; 0 stands for what could not be read, or is 0.
func (d *decoder) rate(v *value, at string) uint32 {
	if !d.expect(v, scalarValue, at) {
		return 0
	}
	n, err := strconv.ParseUint(v.node.Value, 10, 32)
	if err != nil || n == 0 || v.node.ShortTag() != "!!int" {
		d.errorf(v.line, at, "%s is not a whole number of requests between 1 and 4294967295", v.node.Value)
		return 0
	}
	return uint32(n)
}

// rateLimit checks an HTTPLocalRateLimitPolicy as Linkerd's admission does.
func (f *findings) rateLimit(s *RateLimitSpec) {
	switch {
	case s.Server == "":
		f.errorf("spec.targetRef.name", "required")
	case !isSubdomain(s.Server):
		f.errorf("spec.targetRef.name", "%q is not a valid Kubernetes name", s.Server)
	}
	within := func(field string, n uint32) {
		if s.Total > 0 && n > s.Total {
			f.errorf(field, "%d is more than total.requestsPerSecond, %d", n, s.Total)
		}
	}
	within("spec.identity.requestsPerSecond", s.Identity)
	named := make(map[ServiceAccount]string)
	for i, o := range s.Overrides {
		at := fmt.Sprintf("spec.overrides[%d]", i)
		if o.RequestsPerSecond == 0 {
			f.errorf(at+".requestsPerSecond", "must be more than 0")
		}
		within(at+".requestsPerSecond", o.RequestsPerSecond)
		if len(o.Clients) == 0 {
			f.errorf(at+".clientRefs", "required")
		}
		for j, c := range o.Clients {
			in := fmt.Sprintf("%s.clientRefs[%d]", at, j)
			switch {
			case c.Name == "":
				f.errorf(in+".name", "required")
			case !isSubdomain(c.Name):
				f.errorf(in+".name", "%q is not a valid Kubernetes name", c.Name)
			}
			if !isLabel(c.Namespace) {
				f.errorf(in+".namespace", "%q is not a valid Kubernetes name", c.Namespace)
			}
			if first := named[c]; first != "" {
				f.warnf(in, "%s/%s has a limit already by %s, which counts", c.Namespace, c.Name, first)
				continue
			}
			named[c] = in
		}
	}
	if s.Total == 0 && s.Identity == 0 && len(s.Overrides) == 0 {
		f.warnf("spec", "limits nothing")
	}
}

// relateRateLimits warns of limits that apply to nothing.
func (b *build) relateRateLimits(set *Set) {
	first := make(map[string]*RateLimitPolicy)
	for _, p := range set.RateLimits {
		o := b.good[p.Ref()]
		i := slices.IndexFunc(set.Servers, func(s *Server) bool { return s.Namespace == p.Namespace && s.Name == p.Spec.Server })
		if i < 0 {
			b.say(Warning, o, "spec.targetRef.name", "has no effect: there is no Server %s/%s", p.Namespace, p.Spec.Server)
			continue
		}
		key := p.Namespace + "/" + p.Spec.Server
		if older := first[key]; older != nil {
			b.say(Warning, o, "spec", "has no effect: %s (%s) is older, or first by name, and decides", older.Ref(), older.At)
			continue
		}
		first[key] = p
		if name := set.Servers[i].Spec.PortName; name != "" && !set.namesPort(set.Servers[i], name) {
			b.say(Warning, o, "spec.targetRef.name", "has no effect: no workload that Server %s selects has a port named %q", key, name)
		}
	}
}

// namesPort reports whether a workload that the Server selects has a port of the name.
func (s *Set) namesPort(server *Server, name string) bool {
	for _, w := range s.Workloads {
		if w.Namespace != server.Namespace || !server.Spec.PodSelector.Selects(w.Labels) {
			continue
		}
		if _, ok := w.Ports[name]; ok {
			return true
		}
		for _, svc := range s.lookup().byNamespace[w.Namespace] {
			if svc.Selector != nil && HasLabels(w.Labels, svc.Selector) && slices.ContainsFunc(svc.Ports, func(p Port) bool { return p.Name == name }) {
				return true
			}
		}
	}
	return false
}
