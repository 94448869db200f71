// Package compile turns Envoy v3 resources into the values that the engine
// works with. What a resource says is either in force afterwards or an error
// that names the field: nothing is dropped without a word, except the fields
// that lists.go calls harmless. It is pure and never panics on any input.
package compile

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Error says why a resource is refused.
type Error struct {
	Type string // "Listener", "RouteConfiguration", "Cluster" or "ClusterLoadAssignment"
	Name string // of the resource; empty if it could not be read
	Path string // of the field, such as "virtual_hosts[0].routes[2].route.cluster_header"; empty for the resource as a whole
	Why  string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("%s %q: %s", e.Type, e.Name, e.Why)
	}
	return fmt.Sprintf("%s %q: %s: %s", e.Type, e.Name, e.Path, e.Why)
}

// fault is an error on its way out: each level puts its field before the path.
// nil means that all is well, so that valid resources build no paths.
type fault struct{ path, why string }

func faultf(path, format string, args ...any) *fault {
	return &fault{path: path, why: fmt.Sprintf(format, args...)}
}

// under returns the fault with a field before its path. A nil fault stays nil.
func (f *fault) under(field string) *fault {
	if f == nil {
		return nil
	}
	path := field
	switch {
	case f.path == "":
	case f.path[0] == '[':
		path += f.path
	default:
		path += "." + f.path
	}
	return &fault{path: path, why: f.why}
}

// underIndex is under for an element of a repeated field.
func (f *fault) underIndex(field string, i int) *fault {
	if f == nil {
		return nil
	}
	return f.under(field + "[" + strconv.Itoa(i) + "]")
}

// underKey is under for a value of a map.
func (f *fault) underKey(field, key string) *fault {
	if f == nil {
		return nil
	}
	return f.under(field + "[" + strconv.Quote(key) + "]")
}

// invalid is the fault in an error of the form "field: why", as the rules' own checks return it.
func invalid(err error) *fault {
	field, why, ok := strings.Cut(err.Error(), ": ")
	if !ok {
		return &fault{why: err.Error()}
	}
	return &fault{path: field, why: why}
}

func (f *fault) of(kind, name string) error {
	if f == nil {
		return nil
	}
	return &Error{Type: kind, Name: name, Path: f.path, Why: f.why}
}

// open decodes a resource into m, out of the wrapper if it comes in one
// (envoy.service.discovery.v3.Resource), whose name it returns.
func open(resource *anypb.Any, m proto.Message) (wrapper string, f *fault) {
	if resource == nil {
		return "", faultf("", "there is no resource")
	}
	if resource.MessageIs((*discoveryv3.Resource)(nil)) {
		var r discoveryv3.Resource
		if err := proto.Unmarshal(resource.GetValue(), &r); err != nil {
			return "", faultf("", "not an %s: %v", r.ProtoReflect().Descriptor().FullName(), err)
		}
		wrapper, resource = r.GetName(), r.GetResource()
	}
	if f := decode(resource, m); f != nil {
		return wrapper, f
	}
	return wrapper, nil
}

// decode decodes an Any of the type of m.
func decode(a *anypb.Any, m proto.Message) *fault {
	want := m.ProtoReflect().Descriptor().FullName()
	if !a.MessageIs(m) {
		return faultf("", "is of type %q, not %s", typeName(a), want)
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		return faultf("", "not an %s: %v", want, err)
	}
	return nil
}

// extension decodes the configuration of an extension and checks it against the lists.
func extension(a *anypb.Any, m proto.Message) *fault {
	if f := decode(a, m); f != nil {
		return f
	}
	return unlisted(m.ProtoReflect())
}

// typeName is the full name of the message in an Any.
func typeName(a *anypb.Any) string {
	url := a.GetTypeUrl()
	return url[strings.LastIndexByte(url, '/')+1:]
}

// each reads the elements of a repeated field; none gives nil.
func each[M, T any](field string, list []M, one func(M) (T, *fault)) ([]T, *fault) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make([]T, len(list))
	for i, m := range list {
		var f *fault
		if out[i], f = one(m); f != nil {
			return nil, f.underIndex(field, i)
		}
	}
	return out, nil
}

// some is each for a field that must not be empty.
func some[M, T any](field string, list []M, one func(M) (T, *fault)) ([]T, *fault) {
	if len(list) == 0 {
		return nil, faultf(field, "there is none")
	}
	return each(field, list, one)
}

// duration reads a duration that must not be negative. It returns def where
// the field is not set. Durations beyond 292 years become just that.
func duration(field string, d *durationpb.Duration, def time.Duration) (time.Duration, *fault) {
	if d == nil {
		return def, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, faultf(field, "not a duration")
	}
	v := d.AsDuration()
	if v < 0 {
		return 0, faultf(field, "%v is negative", v)
	}
	return v, nil
}

// positive is duration where zero has no meaning either.
func positive(field string, d *durationpb.Duration, def time.Duration) (time.Duration, *fault) {
	v, f := duration(field, d, def)
	if f == nil && d != nil && v == 0 {
		return 0, faultf(field, "must be more than 0")
	}
	return v, f
}
