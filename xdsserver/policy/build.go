package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// Result is what a set of files comes to. It is immutable.
type Result struct {
	Set *Set
	// Problems of all files, by file and line.
	Problems []Problem
	good     map[Ref]*Object // the objects in force
	// blind has the files of which nothing was ever known, not even what was in force
	// from them before this process began.
	blind map[string]bool
	// lost: what was in force before this process began is not known, though something was.
	lost bool
}

// Failed reports whether there is an error among the problems.
func (r *Result) Failed() bool {
	return slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Severity == Error })
}

// Build puts the objects of all files in force, in the order of the files' names. Bad
// input loses nothing: an object that is refused keeps the state it had in previous,
// and so does everything that came from a file which can not be read in full. An
// object is gone when its file, read in full, does not have it any more. What restricts
// access and can not be put in force, now or before, withholds listeners: see
// Set.Withheld.
func Build(files []*File, previous *Result) *Result {
	b := &build{
		claims: make(map[Ref]*Object), good: make(map[Ref]*Object),
		old: make(map[Ref]*Object), restored: make(map[Ref]bool), blind: make(map[string]bool),
	}
	if previous != nil {
		b.old = previous.good
	}
	for _, ref := range sortedRefs(b.old) {
		if _, ok := b.old[ref].Spec.(*networking.DestinationRule); ok {
			b.oldRules = append(b.oldRules, ref)
		}
	}
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(x, y *File) int { return strings.Compare(x.Name, y.Name) })
	for _, f := range files {
		b.problems = append(b.problems, f.Problems...)
		for _, object := range f.Objects {
			b.claim(object)
		}
	}
	b.claimAccess(files)
	for _, f := range files {
		if f.Partial || len(f.unknown) > 0 {
			b.doubt(f, b.keepFrom(f.Name), previous)
		}
		if f.Partial && previous != nil {
			b.stillWithheld(f.Name, previous.Set.Broken)
		}
	}
	set := b.settle()
	b.relate(set)
	b.relateWorkloads(set)
	b.relateAccess(set)
	set.Broken = b.allBroken()
	sortProblems(b.problems)
	return &Result{Set: set, Problems: b.problems, good: b.good, blind: b.blind}
}

type build struct {
	claims   map[Ref]*Object // what the files say, valid or not
	good     map[Ref]*Object // what is in force
	old      map[Ref]*Object // what was in force before
	oldRules []Ref           // the DestinationRules of old, sorted
	restored map[Ref]bool    // rules put back because a route needs them
	broken   []Broken        // what withholds inbound listeners
	blind    map[string]bool // as in Result
	problems []Problem
}

func (b *build) say(sev Severity, o *Object, field, format string, args ...any) {
	b.problems = append(b.problems, Problem{
		At: o.position(field), Object: o.Ref(), Field: field, Message: fmt.Sprintf(format, args...), Severity: sev,
	})
}

func (b *build) claim(o *Object) {
	ref := o.Ref()
	if ref.Name == "" {
		return
	}
	if first, taken := b.claims[ref]; taken {
		b.say(Error, o, "metadata.name", "is given twice, first at %s: only that one counts", first.At)
		return
	}
	b.claims[ref] = o
	if !o.bad {
		b.good[ref] = o
		return
	}
	if old := b.old[ref]; old != nil {
		b.good[ref] = old
		b.say(Notice, o, "", "the version accepted before stays in force")
	}
}

// keepFrom keeps in force what came from a file, or from a folder, before, and returns
// how many access objects it has kept.
func (b *build) keepFrom(name string) (access int) {
	for _, ref := range sortedRefs(b.old) {
		old := b.old[ref]
		if !within(old.At.File, name) {
			continue
		}
		if _, claimed := b.claims[ref]; !claimed {
			b.good[ref] = old
			if accessKinds[ref.Kind] != nil {
				access++
			}
			b.problems = append(b.problems, Problem{
				At: Position{File: name}, Object: ref, Severity: Notice, Message: "the version accepted before stays in force",
			})
		}
	}
	return access
}

// within reports whether a file is the one of the name, or in the folder of the name.
func within(file, name string) bool {
	return file == name || strings.HasPrefix(file, strings.TrimSuffix(name, "/")+"/")
}

func sortedRefs[T any](m map[Ref]T) []Ref {
	return slices.SortedFunc(maps.Keys(m), func(x, y Ref) int {
		return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
	})
}

// fault is what makes an object unfit to be in force among the others.
type fault struct {
	field, message string
	// A route to a subset that no rule declares.
	host, subset string
}

// settle withdraws objects that do not fit the others, until all fit: each falls back
// to its own last good state, if that fits. Where a route has not changed, but a rule
// under it has, it is the rule that falls back.
func (b *build) settle() *Set {
	set, notes := b.assemble()
	for changed := true; changed; {
		changed = false
		for _, ref := range sortedRefs(b.good) {
			o := b.good[ref]
			faults := faultsOf(set, o)
			if len(faults) == 0 {
				continue
			}
			changed = true
			if !b.fallBack(set, o, faults) {
				b.report(o, faults)
				delete(b.good, ref)
				if accessKinds[ref.Kind] != nil {
					lost := brokenObject(o)
					lost.Reason = b.problems[len(b.problems)-1].String()
					b.withhold(lost)
				}
			}
		}
		// One look at a time: what is put back or withdrawn counts for the next.
		if changed {
			set, notes = b.assemble()
		}
	}
	b.problems = append(b.problems, notes...)
	return set
}

// fallBack replaces the object by its last good state, or a rule under it by the
// rule's. It reports false where there is nothing to fall back to.
func (b *build) fallBack(set *Set, o *Object, faults []fault) bool {
	ref := o.Ref()
	old := b.old[ref]
	if old == nil {
		return false
	}
	toOld := func() {
		b.report(o, faults)
		b.say(Notice, o, "", "the version accepted before stays in force")
		b.good[ref] = old
	}
	if old != o && len(faultsOf(set, old)) == 0 {
		toOld()
		return true
	}
	if b.restore(set, o, faults) {
		return true
	}
	if old != o && b.restore(set, old, faultsOf(set, old)) {
		toOld()
		return true
	}
	return false
}

func (b *build) report(o *Object, faults []fault) {
	for _, f := range faults {
		b.say(Error, o, f.field, "%s", f.message)
	}
}

// faults checks an object against the set. It needs nothing but the object's spec.
func faultsOf(set *Set, o *Object) []fault {
	var out []fault
	passThrough := func(field func() string, host string) bool {
		svc := set.ServiceByHost(set.ResolveHost(host, o.Namespace))
		if svc == nil || svc.Resolution != networking.ServiceEntry_NONE {
			return false
		}
		out = append(out, fault{field: field(), message: fmt.Sprintf(
			"%s is passed through without policy, because %s has resolution NONE: use STATIC with endpoints", host, svc.Ref())})
		return true
	}
	switch spec := o.Spec.(type) {
	case *networking.DestinationRule:
		passThrough(func() string { return "spec.host" }, spec.GetHost())
	case *security.AuthorizationPolicy:
		name := spec.GetProvider().GetName()
		if spec.GetAction() == security.AuthorizationPolicy_CUSTOM && set.MeshConfig.Authorizer(name) == nil {
			out = append(out, fault{field: "spec.provider.name", message: fmt.Sprintf(
				"MeshConfig has no extensionProvider %q of type envoyExtAuthzHttp or envoyExtAuthzGrpc", name)})
		}
	case *networking.VirtualService:
		if !appliesToMesh(spec) {
			return nil
		}
		for i, h := range spec.GetHosts() {
			passThrough(func() string { return hostField(o, i) }, h)
		}
		for i, r := range spec.GetHttp() {
			if !routeAppliesToMesh(r) {
				continue
			}
			for _, d := range destinationsOf(o, i, r) {
				host, subset := d.GetHost(), d.GetSubset()
				if passThrough(d.at, host) || subset == "" || d.unused {
					continue
				}
				full := set.ResolveHost(host, o.Namespace)
				if !set.declares(full, subset) {
					out = append(out, fault{
						field: strings.TrimSuffix(d.at(), ".host") + ".subset", host: full, subset: subset,
						message: fmt.Sprintf("no DestinationRule for %s declares subset %q", full, subset),
					})
				}
			}
		}
	}
	return out
}

// hostField is the path of a VirtualService's host in the object it was read from.
func hostField(o *Object, i int) string {
	if o.Kind == "TrafficSplit" {
		return "spec.service"
	}
	return fmt.Sprintf("spec.hosts[%d]", i)
}

func routeField(i int) string { return fmt.Sprintf("spec.http[%d]", i) }

// routeDestination is a destination of a route, or of a copy of its requests.
type routeDestination struct {
	*networking.Destination
	unused bool // one of several, with weight 0

	object *Object
	route  int
	field  string // in the route, with %d for place
	place  int
}

// at is the path of the destination's host in the object that it was read from.
func (d *routeDestination) at() string {
	if d.object.Kind == "TrafficSplit" {
		return fmt.Sprintf("spec.backends[%d].service", d.place)
	}
	field := d.field
	if strings.Contains(field, "%d") {
		field = fmt.Sprintf(field, d.place)
	}
	return routeField(d.route) + "." + field + ".host"
}

// destinationsOf are the places to which a route, given with its place in the list, sends requests or copies of them.
func destinationsOf(o *Object, route int, r *networking.HTTPRoute) []routeDestination {
	out := make([]routeDestination, 0, len(r.GetRoute())+len(r.GetMirrors())+1)
	for i, d := range r.GetRoute() {
		out = append(out, routeDestination{d.GetDestination(), len(r.GetRoute()) > 1 && d.GetWeight() == 0, o, route, "route[%d].destination", i})
	}
	if r.GetMirror() != nil {
		out = append(out, routeDestination{r.GetMirror(), false, o, route, "mirror", 0})
	}
	for i, m := range r.GetMirrors() {
		out = append(out, routeDestination{m.GetDestination(), false, o, route, "mirrors[%d].destination", i})
	}
	return out
}

// declares reports whether a rule of any namespace declares a subset of a host.
func (s *Set) declares(host, subset string) bool {
	x := s.lookup()
	for _, h := range x.rules {
		rules := h.exact[host]
		for w, wild := range h.wildcard {
			if matchWildcard(w, host) {
				rules = append(slices.Clip(rules), wild...)
			}
		}
		for _, dr := range rules {
			for _, sub := range dr.Spec.GetSubsets() {
				if sub.GetName() == subset {
					return true
				}
			}
		}
	}
	return false
}

// restore puts back the rules that declared, before, the subsets a route misses. Each
// is put back once, so that two routes can not have them changed to and fro.
func (b *build) restore(set *Set, vs *Object, faults []fault) bool {
	var back []Ref
	for _, f := range faults {
		found := false
		for _, ref := range b.oldRules {
			old := b.old[ref]
			dr := old.Spec.(*networking.DestinationRule)
			inForce := b.good[ref] == old
			// One in force as it was does not declare the subset; one put back and
			// withdrawn since stays out.
			if f.subset == "" || inForce != b.restored[ref] {
				continue
			}
			host := set.ResolveHost(dr.GetHost(), ref.Namespace)
			covers := host == f.host || strings.HasPrefix(host, "*") && matchWildcard(host, f.host)
			if covers && slices.ContainsFunc(dr.GetSubsets(), func(s *networking.Subset) bool { return s.GetName() == f.subset }) {
				found = true
				if !inForce && !slices.Contains(back, ref) {
					back = append(back, ref)
				}
			}
		}
		if !found {
			return false
		}
	}
	for _, ref := range back {
		b.restored[ref] = true
		if now := b.good[ref]; now != nil {
			b.say(Error, now, "spec.subsets", "%s routes to a subset of it that is not declared any more: the version accepted before stays in force", vs.Ref())
		} else {
			b.say(Error, vs, faults[0].field, "%s, which declared this subset, is gone: the version accepted before stays in force", ref)
		}
		b.good[ref] = b.old[ref]
	}
	return true
}
