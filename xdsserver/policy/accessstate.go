package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// accessStateVersion is raised when an older program could misread the state.
const accessStateVersion = 1

// accessState is the last good state of all access objects, as it is stored.
type accessState struct {
	Version int            `json:"version"`
	Objects []storedObject `json:"objects"`
	// Blind has the files of which nothing was known: see Result.
	Blind []fileName `json:"blind,omitempty"`
	// Withheld has what withholds listeners: it goes on while its file can not be read in full.
	Withheld []storedBroken `json:"withheld,omitempty"`
}

type storedBroken struct {
	File            fileName          `json:"file"`
	Line            int               `json:"line,omitempty"`
	Kind            string            `json:"kind,omitempty"`
	ObjectNamespace string            `json:"objectNamespace,omitempty"`
	Name            string            `json:"name,omitempty"`
	Namespace       string            `json:"namespace,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	Reason          fileName          `json:"reason"` // names a file
}

// fileName is stored quoted, as Go quotes it: a file's name may be any bytes, JSON
// would replace those that are not UTF-8, and the object would no longer be known to
// come from its file.
type fileName string

func (n fileName) MarshalText() ([]byte, error) { return strconv.AppendQuote(nil, string(n)), nil }

func (n *fileName) UnmarshalText(text []byte) error {
	name, err := strconv.Unquote(string(text))
	*n = fileName(name)
	return err
}

type storedObject struct {
	APIVersion  string            `json:"apiVersion"`
	Kind        string            `json:"kind"`
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Created     time.Time         `json:"created,omitzero"`
	File        fileName          `json:"file"`
	Line        int               `json:"line"`
	Spec        json.RawMessage   `json:"spec"`
}

// AccessState returns the access objects in force in a form that RestoreAccess reads,
// for a server to store whenever it changes: after a restart, an object that is broken
// in its file is then still in force as it was. Equal states give equal bytes. It may
// hold what the files hold, so only the server's user should be able to read it.
func (r *Result) AccessState() ([]byte, error) {
	state := accessState{Version: accessStateVersion, Objects: []storedObject{}}
	for _, name := range sortedKeys(r.blind) {
		state.Blind = append(state.Blind, fileName(name))
	}
	for _, lost := range r.Set.Broken {
		state.Withheld = append(state.Withheld, storedBroken{
			fileName(lost.At.File), lost.At.Line, lost.Object.Kind, lost.Object.Namespace, lost.Object.Name, lost.Namespace, lost.Labels, fileName(lost.Reason),
		})
	}
	for _, ref := range sortedRefs(r.good) {
		if accessKinds[ref.Kind] == nil {
			continue
		}
		o := r.good[ref]
		spec, err := marshalSpec(o.Spec)
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", ref, err)
		}
		state.Objects = append(state.Objects, storedObject{
			o.APIVersion, o.Kind, o.Namespace, o.Name, o.Labels, o.Annotations, o.Created, fileName(o.At.File), o.At.Line, spec,
		})
	}
	return json.Marshal(state)
}

// RestoreAccess reads what AccessState wrote, as the result that comes before the
// first one of a server: its access objects are in force where their files are broken
// or can not be read, and gone where their files do not have them any more. A state
// that can not be taken in full is an error and not to be used: a server that goes on
// without one withholds what it would have decided.
func RestoreAccess(state []byte) (*Result, error) {
	var in accessState
	if err := json.Unmarshal(state, &in); err != nil {
		return nil, fmt.Errorf("stored access policy: %w", err)
	}
	if in.Version != accessStateVersion {
		return nil, fmt.Errorf("stored access policy: version %d is not known", in.Version)
	}
	b := &build{good: make(map[Ref]*Object)}
	var bad []error
	for _, s := range in.Objects {
		o, err := s.restore()
		if err == nil && b.good[o.Ref()] != nil {
			err = errors.New("is given twice")
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("stored access policy: %s: %w", Ref{s.Kind, s.Namespace, s.Name}, err))
			continue
		}
		b.good[o.Ref()] = o
	}
	if err := errors.Join(bad...); err != nil {
		return nil, err
	}
	blind := make(map[string]bool)
	for _, name := range in.Blind {
		blind[string(name)] = true
	}
	set, _ := b.assemble()
	for _, w := range in.Withheld {
		set.Broken = append(set.Broken, Broken{
			At: Position{string(w.File), w.Line}, Object: Ref{w.Kind, w.ObjectNamespace, w.Name},
			Namespace: w.Namespace, Labels: w.Labels, Reason: string(w.Reason),
		})
	}
	return &Result{Set: set, good: b.good, blind: blind}, nil
}

// AccessLost is the result that comes before the first one of a server whose stored
// access policy can not be read: what that would have decided is withheld, down to the
// files that can be read only in part, until they can be read in full.
func AccessLost() *Result { return &Result{Set: &Set{}, lost: true} }

// FromElsewhere returns the result for a server that reads other files than those the
// result came from, or the same by other names. What is in force stays so where the
// new files name it; which of them it came from is not known, so that a file which can
// be read only in part withholds, as with AccessLost.
func (r *Result) FromElsewhere() *Result {
	return &Result{Set: r.Set, Problems: r.Problems, good: r.good, blind: r.blind, lost: true}
}

// restore reads an object and checks it as if it came from a file.
func (s *storedObject) restore() (*Object, error) {
	newSpec := accessKinds[s.Kind]
	if newSpec == nil || s.Name == "" || s.Namespace == "" ||
		s.Kind == meshConfigKind && (s.Name != MeshConfigName || s.Namespace != RootNamespace) {
		return nil, errors.New("is not an access object")
	}
	spec := newSpec()
	if err := unmarshalSpec(s.Spec, spec); err != nil {
		return nil, err
	}
	meta := Meta{
		APIVersion: s.APIVersion, Kind: s.Kind, Namespace: s.Namespace, Name: s.Name, Labels: s.Labels,
		Annotations: s.Annotations, Created: s.Created, At: Position{string(s.File), s.Line},
	}
	for _, finding := range findingsOf(meta, spec) {
		if finding.Severity == Error {
			return nil, fmt.Errorf("%s: %s", finding.Field, finding.Message)
		}
	}
	return &Object{Meta: meta, Spec: spec, lines: map[string]int{"": s.Line}}, nil
}

// findingsOf checks the spec of an access object.
func findingsOf(meta Meta, spec any) []Finding {
	var f findings
	switch spec := spec.(type) {
	case *networking.EnvoyFilter:
		return envoyFilterFindings(meta, spec)
	case proto.Message:
		return append(Validate(meta, spec), Unenforced(meta, spec)...)
	case *ServerSpec:
		f.server(spec)
	case *RateLimitSpec:
		f.rateLimit(spec)
	}
	return f
}

func marshalSpec(spec any) ([]byte, error) {
	if m, ok := spec.(proto.Message); ok {
		return protojson.Marshal(m)
	}
	return json.Marshal(spec)
}

func unmarshalSpec(text []byte, spec any) error {
	if m, ok := spec.(proto.Message); ok {
		return protojson.Unmarshal(text, m)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(spec)
}
