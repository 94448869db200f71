package policy

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// Object is one object of a file as it was read, valid or not.
type Object struct {
	Meta
	// Spec is nil where it could not be read at all; otherwise one of
	// *networking.VirtualService (also for a TrafficSplit), *networking.DestinationRule,
	// *networking.ServiceEntry, *networking.WorkloadEntry, *KubernetesService and, of
	// access objects, *security.PeerAuthentication, *security.AuthorizationPolicy,
	// *security.RequestAuthentication, *networking.EnvoyFilter, *ServerSpec, *RateLimitSpec
	// and *mesh.MeshConfig.
	Spec  any
	lines map[string]int
	bad   bool // it has an error of its own

	problems []Problem // of an access object; those of others are the file's
}

// position returns where a field of the object is given.
func (o *Object) position(field string) Position {
	return Position{o.At.File, nearestLine(o.lines, field)}
}

// File is what one file of policy says.
type File struct {
	Name string
	// Objects without those that restrict access.
	Objects []*Object
	// Problems of the file and of its objects by themselves.
	Problems []Problem
	// Partial: a part of the file could not be read, and nobody knows which objects
	// are in it. What came from this file before stays in force.
	Partial bool

	access  []*Object // access objects that say which they are
	unknown []Broken  // documents that restrict access, or seem to, and do not
	unread  bool      // nothing of it is known, not even its text
	lost    bool      // while it is parsed: something in the text at hand makes no object
}

// Count is how many objects of policy the file has, valid or not.
func (f *File) Count() int { return len(f.Objects) + len(f.access) }

// Unreadable is a file, or a folder, that is there but can not be read. Objects that
// came from it, or from files in it, stay in force.
func Unreadable(name string, err error) *File {
	return &File{Name: name, Partial: true, unread: true, Problems: []Problem{{
		At: Position{File: name}, Message: err.Error(),
	}}}
}

const (
	istioNetworking = "networking.istio.io"
	istioSecurity   = "security.istio.io"
	gatewayAPI      = "gateway.networking.k8s.io"
)

// newSpec makes an empty spec of the Istio kinds that are read.
var newSpec = map[string]func() proto.Message{
	"VirtualService":  func() proto.Message { return new(networking.VirtualService) },
	"DestinationRule": func() proto.Message { return new(networking.DestinationRule) },
	"ServiceEntry":    func() proto.Message { return new(networking.ServiceEntry) },
	"WorkloadEntry":   func() proto.Message { return new(networking.WorkloadEntry) },
}

// skipped lists, by API group, the kinds that say nothing of traffic inside the mesh:
// they are left out with a notice, so that a team's manifests can stay as they are.
var skipped = map[string][]string{
	"": {
		"ServiceAccount", "ConfigMap", "Secret", "Namespace", "Pod", "PodTemplate", "ReplicationController", "Node", "Event",
		"PersistentVolume", "PersistentVolumeClaim", "LimitRange", "ResourceQuota",
	},
	"apps":                         {"Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "ControllerRevision"},
	"batch":                        {"Job", "CronJob"},
	"autoscaling":                  {"HorizontalPodAutoscaler"},
	"policy":                       {"PodDisruptionBudget"},
	"networking.k8s.io":            {"Ingress", "IngressClass", "NetworkPolicy"},
	"rbac.authorization.k8s.io":    {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"},
	"apiextensions.k8s.io":         {"CustomResourceDefinition"},
	"admissionregistration.k8s.io": {"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"},
	"scheduling.k8s.io":            {"PriorityClass"},
	"storage.k8s.io":               {"StorageClass"},
	"coordination.k8s.io":          {"Lease"},
	"cert-manager.io":              {"Certificate", "CertificateRequest", "Issuer", "ClusterIssuer"},
	// Objects of ingress proxies and of proxies' own settings.
	istioNetworking:      {"Gateway", "WorkloadGroup", "ProxyConfig"},
	gatewayAPI:           {"Gateway", "GatewayClass"},
	"telemetry.istio.io": {"Telemetry"},
}

// refusedKinds says why a well-known kind is not read, by "group/kind".
var refusedKinds = map[string]string{
	"/Endpoints":                     "endpoints are given as WorkloadEntry objects with labels that the Service selects",
	"discovery.k8s.io/EndpointSlice": "endpoints are given as WorkloadEntry objects with labels that the Service selects",
	istioNetworking + "/Sidecar":     "it limits what a proxy sees, which the mesh does not enforce",
}

// maybeMeshConfig reports whether a document that does not say what it is looks like
// the ConfigMap with MeshConfig.
func (f *File) maybeMeshConfig(v *value) bool {
	var m Meta
	d := &decoder{file: f.Name, lines: make(map[string]int)}
	d.metadata(v, &m)
	return v.get("data").get("mesh") != nil && holdsMeshConfig(v, &m, d.problems)
}

// accessGroups are API groups whose objects say who may call whom.
var accessGroups = []string{istioSecurity, "access.smi-spec.io", linkerdPolicy}

// Parse reads a file of YAML documents or one JSON document. What it can not read or
// accept becomes a problem with its line; the other objects of the file are returned.
func Parse(name string, data []byte) *File {
	f := &File{Name: name}
	if len(data) > MaxFileSize {
		f.lose(0, "file has %d bytes; at most %d are read", len(data), MaxFileSize)
		f.suspect(data, 1)
		return f
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		// An editor or a copy that has only begun to write leaves a file like this.
		f.Partial = true
		f.Problems = append(f.Problems, Problem{
			At: Position{File: name}, Severity: Warning,
			Message: "file is empty: what it held before stays in force; delete it, or leave a comment in it, to remove that",
		})
		return f
	}
	chunks := splitDocuments(data)
	if strings.EqualFold(filepath.Ext(name), ".json") {
		chunks = []chunk{{text: data}}
	}
	for _, c := range chunks {
		f.lost = false
		docs, bad := readDocuments(c)
		for _, doc := range docs {
			f.document(doc, 0)
		}
		if bad != nil {
			f.lose(bad.line, "%s", bad.text)
		}
		if f.lost {
			f.suspect(c.text, c.before+1)
		}
	}
	return f
}

func (f *File) fail(line int, format string, args ...any) {
	f.Problems = append(f.Problems, Problem{At: Position{f.Name, line}, Message: fmt.Sprintf(format, args...)})
}

// lose is fail for a text that may hold objects which nobody knows.
func (f *File) lose(line int, format string, args ...any) {
	f.Partial, f.lost = true, true
	f.fail(line, format, args...)
}

func splitAPIVersion(s string) (group, version string) {
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		return s[:i], s[i+1:]
	}
	return "", s
}

// document reads one document, which may be a list of objects.
func (f *File) document(v *value, depth int) {
	if v.kind != mapValue {
		f.lose(v.line, "a document must be a mapping with apiVersion and kind, is %s", kindNames[v.kind])
		return
	}
	apiVersion, ok1 := v.get("apiVersion").str()
	kind, ok2 := v.get("kind").str()
	if !ok1 || !ok2 || apiVersion == "" || kind == "" {
		restricts := strings.HasPrefix(apiVersion, istioSecurity+"/") || strings.HasPrefix(apiVersion, linkerdPolicy+"/") ||
			kind != meshConfigKind && accessKinds[kind] != nil || f.maybeMeshConfig(v)
		f.Partial, f.lost = true, f.lost || !restricts
		for _, key := range []string{"apiVersion", "kind"} {
			if text, ok := v.get(key).str(); !ok || text == "" {
				f.fail(v.line, "%s: required%s", key, suggestKey(v, key))
			}
		}
		if restricts {
			f.headless(v, kind)
		}
		return
	}
	group, version := splitAPIVersion(apiVersion)
	if kind == "List" && group == "" {
		f.list(v, depth)
		return
	}
	d := &decoder{file: f.Name, lines: map[string]int{"": v.line}}
	o := &Object{lines: d.lines}
	o.APIVersion, o.Kind, o.At = apiVersion, kind, Position{f.Name, v.line}
	d.ref = Ref{Kind: kind, Namespace: DefaultNamespace}
	d.metadata(v, &o.Meta)

	switch {
	case slices.Contains(accessGroups, group):
		f.accessObject(v, o, d, group, version)
		return
	case group == "" && kind == meshConfigKind && holdsMeshConfig(v, &o.Meta, d.problems):
		d.meshConfig(v, o, version)
		f.addAccess(o, d, o.Ref() == Ref{meshConfigKind, RootNamespace, MeshConfigName})
		return
	case group == istioNetworking && kind == envoyFilterKind:
		d.envoyFilter(v, o, version)
		f.addAccess(o, d, true)
		return
	case slices.Contains(skipped[group], kind):
		f.Problems = append(f.Problems, Problem{
			At: o.At, Object: d.ref, Severity: Notice, Message: apiVersion + " " + kind + " has no meaning for the mesh and is left out",
		})
		if kind == meshConfigKind && o.Name == MeshConfigName && v.get("data").get("mesh") != nil {
			last := &f.Problems[len(f.Problems)-1]
			last.Severity, last.Message = Warning, "is left out: the settings of the mesh are read in namespace "+RootNamespace+" only"
		}
		return
	case group == istioNetworking && newSpec[kind] != nil:
		if !slices.Contains([]string{"v1", "v1beta1", "v1alpha3"}, version) {
			d.errorf(v.get("apiVersion").line, "apiVersion", "version %s of %s is not known: use v1, v1beta1 or v1alpha3", version, group)
		}
		d.istio(v, o, newSpec[kind]())
	case group == "" && kind == "Service":
		if version != "v1" {
			d.errorf(v.get("apiVersion").line, "apiVersion", "a Service has apiVersion v1")
		}
		d.service(v, o)
	case group == "split.smi-spec.io" && kind == "TrafficSplit":
		if !slices.Contains([]string{"v1alpha1", "v1alpha2"}, version) {
			d.errorf(v.get("apiVersion").line, "apiVersion", "version %s of %s is not supported: use v1alpha1 or v1alpha2", version, group)
		}
		d.trafficSplit(v, o)
	default:
		why := refusedKinds[group+"/"+kind]
		switch {
		case why != "":
		case group == gatewayAPI:
			why = "Gateway API is not supported: use a VirtualService"
		default:
			why = "this kind of object is not known" + suggest(kind, knownKinds())
		}
		d.errorf(v.get("kind").line, "kind", "%s %s: %s", apiVersion, kind, why)
		limits := group == istioNetworking && suggest(kind, []string{envoyFilterKind}) != ""
		if limits || kind != meshConfigKind && accessKinds[kind] != nil || v.get("data").get("mesh") != nil && holdsMeshConfig(v, &o.Meta, d.problems) {
			// Its group or kind is misspelt, and with it what restricts access.
			o.problems = d.problems
			f.unknown = append(f.unknown, brokenObject(o))
		}
		f.Problems = append(f.Problems, d.problems...)
		return
	}
	if o.Name == "" {
		// Nobody knows which object this is meant to be.
		f.Partial = true
	}
	for _, p := range d.problems {
		o.bad = o.bad || p.Severity == Error
	}
	f.Objects = append(f.Objects, o)
	f.Problems = append(f.Problems, d.problems...)
}

func knownKinds() []string {
	kinds := []string{"Service", "TrafficSplit"}
	for k := range newSpec {
		kinds = append(kinds, k)
	}
	for k := range accessKinds {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	return kinds
}

func suggestKey(v *value, want string) string {
	for _, e := range v.keys {
		if e.key != want && distance(strings.ToLower(e.key), strings.ToLower(want)) <= 2 {
			return fmt.Sprintf("; there is %s", e.key)
		}
	}
	return ""
}

func (f *File) list(v *value, depth int) {
	if depth > 0 {
		f.lose(v.line, "items: a List may not hold a List")
		return
	}
	for _, e := range v.keys {
		switch e.key {
		case "apiVersion", "kind", "metadata":
		case "items":
			if e.val.isNull() {
				continue
			}
			if e.val.kind != listValue {
				f.lose(e.val.line, "items: must be a list, is %s", kindNames[e.val.kind])
				continue
			}
			for _, item := range e.val.items {
				f.document(item, depth+1)
			}
		default:
			f.lose(e.line, "%s: unknown field", e.key)
		}
	}
}

// istio reads the spec of one of Istio's objects and checks it.
func (d *decoder) istio(v *value, o *Object, spec proto.Message) {
	o.Spec = spec
	for _, e := range v.keys {
		switch e.key {
		case "apiVersion", "kind", "metadata":
		case "status": // written by Istio, read by nobody
		case "spec":
			d.lines["spec"] = e.line
			if !e.val.isNull() {
				d.message(e.val, spec.ProtoReflect(), "spec")
			}
		default:
			d.errorf(e.line, e.key, "unknown field%s", suggest(e.key, []string{"metadata", "spec", "status"}))
		}
	}
	d.check(o.Meta, spec)
}

// check adds what the two passes of validation find. What is invalid is not also
// reported as unenforced.
func (d *decoder) check(meta Meta, spec proto.Message) {
	found := Validate(meta, spec)
	invalid := make(map[string]bool)
	for _, finding := range found {
		invalid[finding.Field] = invalid[finding.Field] || finding.Severity == Error
	}
	for _, finding := range Unenforced(meta, spec) {
		if !invalid[finding.Field] {
			found = append(found, finding)
		}
	}
	d.add(found)
}

// add reports findings, each with its line.
func (d *decoder) add(found []Finding) {
	for _, finding := range found {
		d.problems = append(d.problems, Problem{
			At: Position{d.file, d.lineOf(finding.Field)}, Object: d.ref,
			Field: finding.Field, Message: finding.Message, Severity: finding.Severity,
		})
	}
}

// ignoredMetadata are fields that Kubernetes writes and the mesh has no use for.
var ignoredMetadata = []string{
	"uid", "resourceVersion", "generation", "managedFields", "selfLink", "ownerReferences", "finalizers",
	"deletionTimestamp", "deletionGracePeriodSeconds", "clusterName",
}

// metadata reads the object's name, namespace, labels, annotations and age.
func (d *decoder) metadata(v *value, m *Meta) {
	m.Namespace = DefaultNamespace
	md := v.get("metadata")
	for _, e := range v.keys {
		if e.key == "metadata" {
			d.lines["metadata"] = e.line
		}
	}
	if !md.isNull() && d.expect(md, mapValue, "metadata") {
		// The name first, so that every problem found after it can say it.
		if name, ok := md.get("name").str(); ok {
			m.Name = name
		}
		if ns, ok := md.get("namespace").str(); ok && ns != "" {
			m.Namespace = ns
		}
		d.ref = m.Ref()
		for _, e := range md.keys {
			at := "metadata." + e.key
			d.lines[at] = e.line
			if e.val.isNull() || slices.Contains(ignoredMetadata, e.key) {
				continue
			}
			switch e.key {
			case "name", "namespace":
				text, ok := e.val.str()
				switch {
				case e.val.kind != scalarValue:
					d.expect(e.val, scalarValue, at)
				case !ok:
					d.errorf(e.val.line, at, "must be text, is %s: put it in quotes", e.val.node.Value)
				case e.key == "namespace" && text != "" && !isLabel(text), e.key == "name" && text != "" && !isSubdomain(text):
					d.errorf(e.val.line, at, "%q is not a valid Kubernetes name", text)
				}
			case "labels":
				m.Labels = d.stringMap(e.val, at)
			case "annotations":
				m.Annotations = d.stringMap(e.val, at)
			case "creationTimestamp":
				text, _ := e.val.str()
				t, err := time.Parse(time.RFC3339, text)
				if err != nil {
					d.errorf(e.val.line, at, "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z")
				}
				m.Created = t
			case "generateName":
				d.errorf(e.line, at, "an object in a file needs its own metadata.name")
			default:
				d.errorf(e.line, at, "unknown field%s", suggest(e.key, []string{"name", "namespace", "labels", "annotations", "creationTimestamp"}))
			}
		}
	}
	if m.Name == "" {
		d.errorf(d.lineOf("metadata"), "metadata.name", "required")
	}
}

// stringMap reads a mapping from text to text.
func (d *decoder) stringMap(v *value, at string) map[string]string {
	if v.isNull() || !d.expect(v, mapValue, at) {
		return nil
	}
	out := make(map[string]string, len(v.keys))
	for _, e := range v.keys {
		in := at + "[" + e.key + "]"
		d.lines[in] = e.line
		if text, ok := e.val.str(); ok {
			out[e.key] = text
		} else if e.val.kind != scalarValue {
			d.expect(e.val, scalarValue, in)
		} else {
			d.errorf(e.val.line, in, "must be text, is %s: put it in quotes", e.val.node.Value)
		}
	}
	return out
}

// text reads a scalar as text.
func (d *decoder) text(v *value, at string) string {
	if v.isNull() || !d.expect(v, scalarValue, at) {
		return ""
	}
	text, ok := v.str()
	if !ok {
		d.errorf(v.line, at, "must be text, is %s: put it in quotes", v.node.Value)
	}
	return text
}
