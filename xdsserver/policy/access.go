package policy

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	selectors "istio.io/api/type/v1beta1"
)

// Options says what the server that puts policy in force can do.
type Options struct {
	// AccessEnforced: the objects of security.istio.io are enforced, so they are put in
	// force like others; one that can not be withholds listeners instead: see
	// Set.Withheld. By default they are not read, and every one of them is a problem
	// that Result.Security returns. Access objects of other groups always are.
	AccessEnforced bool
}

// newAccessSpec makes an empty spec of the kinds that say who may call whom.
var newAccessSpec = map[string]func() proto.Message{
	"PeerAuthentication":    func() proto.Message { return new(security.PeerAuthentication) },
	"AuthorizationPolicy":   func() proto.Message { return new(security.AuthorizationPolicy) },
	"RequestAuthentication": func() proto.Message { return new(security.RequestAuthentication) },
}

// accessSpec is what the specs of all access kinds have.
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

// accessObject reads an object that says who may call whom. The file's problems get
// what is said of it where access policy is not enforced.
func (f *File) accessObject(v *value, o *Object, d *decoder, group, version string) {
	gate := slices.Clone(d.problems)
	gate = append(gate, Problem{
		At: Position{f.Name, v.get("kind").line}, Object: d.ref,
		Message: fmt.Sprintf("objects of %s say who may call whom, which this server does not enforce: it does not serve a folder that holds one", group),
	})
	for i := range gate {
		gate[i].Security, gate[i].gate = true, group == istioSecurity
	}
	f.Problems = append(f.Problems, gate...)
	if group != istioSecurity {
		return
	}
	known := newAccessSpec[o.Kind] != nil
	if known {
		if version != "v1" && version != "v1beta1" {
			d.errorf(v.get("apiVersion").line, "apiVersion", "version %s of %s is not known: use v1 or v1beta1", version, group)
		}
		d.istio(v, o, newAccessSpec[o.Kind]())
		d.hollowAccess()
	} else {
		d.errorf(v.get("kind").line, "kind", "%s %s: this kind of object is not known%s", o.APIVersion, o.Kind, suggest(o.Kind, sortedKeys(newAccessSpec)))
	}
	o.problems = d.problems
	o.bad = slices.ContainsFunc(d.problems, func(p Problem) bool { return p.Severity == Error })
	if !known || o.Name == "" {
		f.unknown = append(f.unknown, brokenObject(o))
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

// brokenObject says what an object that is refused may have been meant to select.
func brokenObject(o *Object) Broken {
	b := Broken{At: o.At, Object: o.Ref(), Namespace: o.Namespace, Reason: "is refused"}
	wrong := func(fields ...string) bool {
		return slices.ContainsFunc(o.problems, func(p Problem) bool {
			return p.Severity == Error && slices.ContainsFunc(fields, func(f string) bool {
				return p.Field == f || strings.HasSuffix(f, ".selector") && (strings.HasPrefix(p.Field, f+".") || strings.HasPrefix(p.Field, f+"["))
			})
		})
	}
	for _, p := range o.problems {
		if p.Severity == Error {
			b.Reason = p.String()
			break
		}
	}
	if wrong("metadata", "metadata.namespace") || b.Namespace == RootNamespace {
		b.Namespace = ""
	}
	spec, ok := o.Spec.(accessSpec)
	if !ok || wrong("spec", "spec.selector") {
		return b
	}
	// A target beside a selector is an error of the spec.
	b.Labels = maps.Clone(spec.GetSelector().GetMatchLabels())
	return b
}

var (
	accessWords   = regexp.MustCompile(`security\.istio\.io|access\.smi-spec\.io|policy\.linkerd\.io|\b(?:PeerAuthentication|AuthorizationPolicy|RequestAuthentication)\b`)
	apiVersionKey = regexp.MustCompile(`apiVersion["']?\s*:`)
	namespaceKey  = regexp.MustCompile(`\bnamespace["']?\s*:`)
	namespaceLine = regexp.MustCompile(`(?m)^[ ]+namespace:[ ]+["']?([a-z0-9][-a-z0-9]*)["']?[ ]*\r?$`)
)

// suspect notes a text that can not be read in full, if it seems to restrict access.
// It applies to one namespace where the text can only mean that one.
func (f *File) suspect(text []byte, line int) {
	if !accessWords.Match(text) || slices.ContainsFunc(f.unknown, func(b Broken) bool {
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
			if ref := o.Ref(); ref.Name != "" && newAccessSpec[ref.Kind] != nil {
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
	sx, ok1 := x.Spec.(proto.Message)
	sy, ok2 := y.Spec.(proto.Message)
	return ok1 && ok2 && !x.bad && !y.bad && x.Annotations[dryRunAnnotation] == y.Annotations[dryRunAnnotation] &&
		x.Created.Equal(y.Created) && proto.Equal(sx, sy)
}

// doubt looks at what is not known of a file from which kept access objects stay in
// force. Each of them may be what a document that can not be read is now; where there
// are more such documents, something new restricts access. A file that never could be
// read may do so as well, unless it is known what was in force before.
func (b *build) doubt(f *File, kept int, previous *Result) {
	if len(f.unknown) > kept {
		for _, lost := range f.unknown {
			b.withhold(lost)
		}
	}
	if f.unread && kept == 0 && (previous == nil || previous.blind[f.Name]) {
		b.blind[f.Name] = true
		b.withhold(Broken{At: Position{File: f.Name}, Reason: f.Problems[0].String()})
	}
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
