package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	selectors "istio.io/api/type/v1beta1"
)

// newAccessSpec makes an empty spec of Istio's kinds that say who may call whom.
var newAccessSpec = map[string]func() proto.Message{
	"PeerAuthentication":    func() proto.Message { return new(security.PeerAuthentication) },
	"AuthorizationPolicy":   func() proto.Message { return new(security.AuthorizationPolicy) },
	"RequestAuthentication": func() proto.Message { return new(security.RequestAuthentication) },
}

// meshConfigKind is the kind of the object that holds MeshConfig. Other objects of it
// are left out.
const meshConfigKind = "ConfigMap"

// accessKinds makes an empty spec of every kind that restricts access: of what decides
// who may call whom, or how often. Their last good state outlives a restart, and
// one that has none withholds listeners.
var accessKinds = func() map[string]func() any {
	out := map[string]func() any{
		meshConfigKind:             func() any { return new(mesh.MeshConfig) },
		"Server":                   func() any { return new(ServerSpec) },
		"HTTPLocalRateLimitPolicy": func() any { return new(RateLimitSpec) },
		envoyFilterKind:            func() any { return new(networking.EnvoyFilter) },
	}
	for kind, newSpec := range newAccessSpec {
		out[kind] = func() any { return newSpec() }
	}
	return out
}()

// accessSpec is what the specs of Istio's access kinds have.
type accessSpec interface {
	proto.Message
	GetSelector() *selectors.WorkloadSelector
}

// targeted is an access spec that may name what it applies to instead of selecting it.
type targeted interface {
	accessSpec
	GetTargetRef() *selectors.PolicyTargetReference
	GetTargetRefs() []*selectors.PolicyTargetReference
}

// Broken is something that restricts access, or seems to, but is refused and has no
// good state before it. Nobody knows what it was meant to forbid, so the inbound
// listener of every workload that it may select is withheld.
type Broken struct {
	At     Position
	Object Ref // zero where the document does not say
	// Namespace of the workloads that it may select; "" for all of them.
	Namespace string
	// Labels that those workloads have; empty for all of the namespace.
	Labels map[string]string
	// Reason is the first thing wrong with it, with its place.
	Reason string
}

// Selects reports whether it may select a workload.
func (b *Broken) Selects(labels map[string]string, namespace string) bool {
	return (b.Namespace == "" || b.Namespace == namespace) && HasLabels(labels, b.Labels)
}

// accessObject reads an object of a group that says who may call whom. What is not
// known of it, or not enforced, restricts access all the same.
func (f *File) accessObject(v *value, o *Object, d *decoder, group, version string) {
	known := true
	switch {
	case group == istioSecurity && newAccessSpec[o.Kind] != nil:
		if version != "v1" && version != "v1beta1" {
			d.errorf(v.get("apiVersion").line, "apiVersion", "version %s of %s is not known: use v1 or v1beta1", version, group)
		}
		d.istio(v, o, newAccessSpec[o.Kind]())
		d.hollowAccess()
	case group == linkerdPolicy && linkerdVersions[o.Kind] != "":
		d.linkerd(v, o, version)
	default:
		known = false
		why := "this kind of object is not known" + suggest(o.Kind, sortedKeys(newAccessSpec))
		if group != istioSecurity {
			why = "the mesh does not enforce this kind of object: use an AuthorizationPolicy of " + istioSecurity
		}
		d.errorf(v.get("kind").line, "kind", "%s %s: %s", o.APIVersion, o.Kind, why)
	}
	f.addAccess(o, d, known)
}

// addAccess keeps an access object that was read. One of which nobody knows what it is,
// or which, is not kept, but counts for what it may restrict.
func (f *File) addAccess(o *Object, d *decoder, known bool) {
	o.problems = d.problems
	o.bad = slices.ContainsFunc(d.problems, func(p Problem) bool { return p.Severity == Error })
	if !known || o.Name == "" {
		f.unknown = append(f.unknown, brokenObject(o))
	}
	if !known {
		f.Problems = append(f.Problems, d.problems...)
		return
	}
	f.access = append(f.access, o)
}

// headless notes an access object that does not say its kind or its version.
func (f *File) headless(v *value, kind string) {
	d := &decoder{file: f.Name, lines: map[string]int{"": v.line}}
	o := &Object{problems: f.Problems[len(f.Problems)-1:]}
	o.Kind, o.At = kind, Position{f.Name, v.line}
	d.metadata(v, &o.Meta)
	o.problems = append(slices.Clip(o.problems), d.problems...)
	f.unknown = append(f.unknown, brokenObject(o))
}

// hollowAccess looks at fields that are given without a value. Istio refuses an empty
// "from" or "to". An empty list of values counts as not given, so that a rule which has
// lost its last value applies to everyone.
func (d *decoder) hollowAccess() {
	for _, h := range d.hollow {
		severity, text := Warning, "holds nothing and counts as not given"
		switch field := h.field[strings.LastIndexByte(h.field, '.')+1:]; field {
		case "from", "to", "portLevelMtls":
			if !h.null {
				severity, text = Error, "must not be empty"
			}
		case "source", "operation", "key":
			continue // refused as such
		default:
			if !strings.HasPrefix(h.field, "spec.rules[") && field != "audiences" {
				continue
			}
		}
		d.problems = append(d.problems, Problem{
			At: Position{d.file, d.lineOf(h.field)}, Object: d.ref, Field: h.field, Message: text, Severity: severity,
		})
	}
}

// An error in these fields leaves open which namespace, or which workloads, an access
// object is about.
var (
	namespaceFields = regexp.MustCompile(`^metadata(\.namespace)?$`)
	selectorFields  = regexp.MustCompile(`^spec($|\.(selector|podSelector|workloadSelector)($|[.\[]))`)
)

// brokenObject says what an object that is refused may have been meant to select.
func brokenObject(o *Object) Broken {
	b := Broken{At: o.At, Object: o.Ref(), Namespace: o.Namespace, Reason: "is refused"}
	wrong := func(in *regexp.Regexp) bool {
		return slices.ContainsFunc(o.problems, func(p Problem) bool { return p.Severity == Error && in.MatchString(p.Field) })
	}
	for _, p := range o.problems {
		if p.Severity == Error {
			b.Reason = p.String()
			break
		}
	}
	// MeshConfig is for all, wherever a mistake has put it.
	_, forAll := o.Spec.(*mesh.MeshConfig)
	if forAll || wrong(namespaceFields) || b.Namespace == RootNamespace {
		b.Namespace = ""
	}
	if wrong(selectorFields) {
		return b
	}
	// A target beside a selector is an error of the spec.
	b.Labels = maps.Clone(selectedLabels(o.Spec))
	return b
}

// selectedLabels returns labels that all workloads have which an access spec selects.
func selectedLabels(spec any) map[string]string {
	switch spec := spec.(type) {
	case accessSpec:
		return spec.GetSelector().GetMatchLabels()
	case *ServerSpec:
		return spec.PodSelector.MatchLabels
	case *networking.EnvoyFilter:
		return spec.GetWorkloadSelector().GetLabels()
	}
	return nil
}

var (
	accessWords   = regexp.MustCompile(`security\.istio\.io|access\.smi-spec\.io|policy\.linkerd\.io|\b(?:PeerAuthentication|AuthorizationPolicy|RequestAuthentication|EnvoyFilter)\b`)
	meshWords     = regexp.MustCompile(`(?s)\bConfigMap\b.*\b` + RootNamespace + `\b|\b` + RootNamespace + `\b.*\bConfigMap\b`)
	apiVersionKey = regexp.MustCompile(`apiVersion["']?\s*:`)
	namespaceKey  = regexp.MustCompile(`\bnamespace["']?\s*:`)
	namespaceLine = regexp.MustCompile(`(?m)^[ ]+namespace:[ ]+["']?([a-z0-9][-a-z0-9]*)["']?[ ]*\r?$`)
)

// suspect notes a text that can not be read in full, if it seems to restrict access.
// It applies to one namespace where the text can only mean that one.
func (f *File) suspect(text []byte, line int) {
	if !accessWords.Match(text) && !meshWords.Match(text) || slices.ContainsFunc(f.unknown, func(b Broken) bool {
		return b.At.Line >= line && b.At.Line <= line+bytes.Count(text, []byte("\n"))
	}) {
		return
	}
	b := Broken{At: Position{f.Name, line}, Reason: "can not be read"}
	if n := len(f.Problems); n > 0 {
		b.At, b.Reason = f.Problems[n-1].At, f.Problems[n-1].String()
	}
	if m := namespaceLine.FindSubmatch(text); m != nil && string(m[1]) != RootNamespace &&
		len(namespaceKey.FindAllIndex(text, 2)) == 1 && len(apiVersionKey.FindAllIndex(text, 2)) <= 1 {
		b.Namespace = string(m[1])
	}
	f.unknown = append(f.unknown, b)
}

// claimAccess puts the access objects of all files in force. Where two with different
// content claim one name, neither is taken for the right one.
func (b *build) claimAccess(files []*File) {
	claims := make(map[Ref][]*Object)
	for _, f := range files {
		for _, o := range f.access {
			b.problems = append(b.problems, o.problems...)
			if ref := o.Ref(); ref.Name != "" {
				claims[ref] = append(claims[ref], o)
			}
		}
	}
	for _, ref := range sortedRefs(claims) {
		all := claims[ref]
		b.claims[ref] = all[0]
		bad := all[0].bad
		for _, o := range all[1:] {
			if sameAccess(all[0], o) {
				b.say(Error, o, "metadata.name", "is given twice, first at %s: only that one counts", all[0].At)
				continue
			}
			b.say(Error, o, "metadata.name", "is given twice with different content, first at %s: neither counts", all[0].At)
			bad = true
		}
		switch old := b.old[ref]; {
		case !bad:
			b.good[ref] = all[0]
		case old != nil:
			b.good[ref] = old
			b.say(Notice, all[0], "", "the version accepted before stays in force")
		default:
			for _, o := range all {
				if !inward(o.Spec) {
					continue
				}
				lost := brokenObject(o)
				if !o.bad {
					lost.Reason = fmt.Sprintf("%s: %s: is given twice with different content", o.At, ref)
				}
				b.withhold(lost)
			}
		}
	}
}

func sameAccess(x, y *Object) bool {
	if x.bad || y.bad || x.Annotations[dryRunAnnotation] != y.Annotations[dryRunAnnotation] || !x.Created.Equal(y.Created) {
		return false
	}
	sx, ok1 := x.Spec.(proto.Message)
	sy, ok2 := y.Spec.(proto.Message)
	if ok1 && ok2 {
		return proto.Equal(sx, sy)
	}
	return reflect.DeepEqual(x.Spec, y.Spec)
}

// doubt looks at what is not known of a file from which kept access objects stay in
// force. Each of them may be what a document that can not be read is now; where there
// are more such documents, something new restricts access. A file that never could be
// read may do so as well, unless it is known what was in force before; and where that
// is lost, so may one that can be read only in part.
func (b *build) doubt(f *File, kept int, previous *Result) {
	if len(f.unknown) > kept {
		for _, lost := range f.unknown {
			b.withhold(lost)
		}
	}
	blind := f.unread && previous == nil || previous != nil && (previous.blind[f.Name] || previous.lost)
	if f.Partial && kept == 0 && blind {
		b.blind[f.Name] = true
		b.withhold(Broken{At: Position{File: f.Name}, Reason: f.Problems[0].String()})
	}
}

// stillWithheld goes on withholding for what was broken in a file, or a folder, that can
// not be read in full now: it may still be there.
func (b *build) stillWithheld(name string, before []Broken) {
	for _, lost := range before {
		_, claimed := b.claims[lost.Object]
		if within(lost.At.File, name) && !claimed && !slices.ContainsFunc(b.broken, lost.same) {
			b.withhold(lost)
		}
	}
}

// same reports whether both withhold the same for the same file.
func (b Broken) same(x Broken) bool {
	return x.At.File == b.At.File && x.Object == b.Object && x.Namespace == b.Namespace && maps.Equal(x.Labels, b.Labels)
}

// allBroken returns what withholds listeners, by file and line, each only once.
func (b *build) allBroken() []Broken {
	slices.SortStableFunc(b.broken, func(x, y Broken) int {
		return cmp.Or(strings.Compare(x.At.File, y.At.File), cmp.Compare(x.At.Line, y.At.Line))
	})
	var out []Broken
	for _, lost := range b.broken {
		if !slices.ContainsFunc(out, lost.same) {
			out = append(out, lost)
		}
	}
	return out
}

func (b *build) withhold(lost Broken) {
	if lost.Object.Kind == "PeerAuthentication" && lost.Namespace == "" && len(lost.Labels) > 0 && lost.Object.Namespace == RootNamespace {
		return // It has no effect where it is valid either.
	}
	b.broken = append(b.broken, lost)
	where := "every workload"
	if lost.Namespace != "" {
		where += " of namespace " + lost.Namespace
	}
	if len(lost.Labels) > 0 {
		where += " with the labels"
		for _, k := range sortedKeys(lost.Labels) {
			where += " " + k + "=" + lost.Labels[k]
		}
	}
	b.problems = append(b.problems, Problem{
		At: lost.At, Object: lost.Object, Severity: Notice,
		Message: "restricts access in a way that is not known: " + where + " is not served its inbound listener",
	})
}

// Withheld reports whether the inbound listener of a workload is withheld, because
// something that is not in force may restrict who may call it, and why.
func (s *Set) Withheld(labels map[string]string, namespace string) (reason string, withheld bool) {
	for i := range s.Broken {
		if s.Broken[i].Selects(labels, namespace) {
			return s.Broken[i].Reason, true
		}
	}
	return "", false
}
