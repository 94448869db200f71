// Package translate turns policy into the Envoy v3 resources that one client
// needs. It is pure: the same policy, name and client give the same bytes.
//
// A resource depends on its name, on the policy, and on the little of the
// client that Variant names; so a server can keep one copy of it for all
// clients of one variant.
package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// Note says what of the policy a client can not do, and what it gets instead.
type Note struct {
	// Field is the field's path in the policy object, such as
	// "VirtualService default/reviews http[0].match[1].queryParams".
	Field string `json:"field"`
	Text  string `json:"text"`
}

func (n Note) String() string { return n.Field + ": " + n.Text }

// Resource is one resource as the wire has it.
type Resource struct {
	Name string
	// Body is the resource in deterministic encoding: equal content is equal bytes.
	Body *anypb.Any
	// Version is a hash of Body, so that it means the same after a restart.
	Version string
	// Notes lists what this client can not do of the policy.
	Notes []Note
}

// View answers for resources out of one policy.Set. It is safe for concurrent use.
type View struct {
	set *policy.Set
}

// NewView prepares set for translation.
func NewView(set *policy.Set) *View {
	if set == nil {
		set = &policy.Set{}
	}
	return &View{set: set}
}

// Supported reports whether resources of the type are served.
func Supported(typeURL string) bool {
	switch typeURL {
	case ListenerType, RouteType, ClusterType, EndpointType:
		return true
	}
	return false
}

// Variant names the set of clients that get the same resource of that name.
// Routes may differ by the client's labels (sourceLabels), and inbound
// listeners by all that says whose they are: labels, namespace, service account,
// addresses and what the client has proved. Endpoints differ by where the client is, and
// with them clusters that have their endpoints in them; sets in the order of the
// client's labels by those too. The rest differ only by namespace (exportTo, short
// names, DestinationRules) and by the kind of client.
func Variant(typeURL, name string, c *Client) string {
	switch {
	case typeURL == RouteType:
		return c.class
	case typeURL == ListenerType && strings.HasPrefix(name, InboundPrefix):
		return c.server()
	case typeURL == EndpointType && strings.HasSuffix(name, labelsSuffix):
		return c.class + " " + c.spot()
	case typeURL == EndpointType, typeURL == ClusterType:
		return c.spot()
	}
	return c.place()
}

// ErrWithheld is what an error of Resource wraps where nothing may be served in
// place of the resource, not even what was served before: the policy in force
// restricts who may call or asks for TLS, and the resource would not say so. All
// errors of inbound listeners are of this kind.
var ErrWithheld = errors.New("withheld")

// withheldError keeps the text of its cause, which names the policy object.
type withheldError struct{ cause error }

func (e *withheldError) Error() string   { return e.cause.Error() }
func (e *withheldError) Unwrap() []error { return []error{ErrWithheld, e.cause} }

// Resource translates one resource for a client. A resource that does not exist
// is nil without an error. An error says which field of the policy can not be
// served; it leaves the resource as the client has it, unless it wraps ErrWithheld.
func (v *View) Resource(typeURL, name string, c *Client) (*Resource, error) {
	if !utf8.ValidString(name) {
		return nil, nil // it could not be answered under this name
	}
	b := &builder{view: v, client: c}
	var msg proto.Message
	var err error
	switch typeURL {
	case ListenerType:
		if addr, ok := strings.CutPrefix(name, InboundPrefix); ok {
			if msg, err = b.inbound(name, addr); err != nil {
				err = &withheldError{err}
			}
		} else {
			msg, err = b.outbound(name)
		}
	case RouteType, ClusterType, EndpointType:
		n, perr := ParseTrafficName(name)
		if perr != nil || n.ByLabels && typeURL != EndpointType {
			return nil, nil // a name of no form that is known names nothing
		}
		switch typeURL {
		case RouteType:
			msg, err = b.routeConfiguration(name, n)
		case ClusterType:
			msg, err = b.cluster(name, n)
		default:
			msg, err = b.loadAssignment(name, n)
		}
	default:
		return nil, fmt.Errorf("resources of type %s are not served", typeURL)
	}
	if err != nil || msg == nil {
		return nil, err
	}
	body, err := pack(msg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	sum := sha256.Sum256(body.Value)
	return &Resource{Name: name, Body: body, Version: hex.EncodeToString(sum[:8]), Notes: b.notes}, nil
}

// builder makes one resource and collects the notes on it.
type builder struct {
	view   *View
	client *Client
	notes  []Note
}

// note records what the client can not do.
func (b *builder) note(field, format string, args ...any) {
	b.notes = append(b.notes, Note{Field: field, Text: fmt.Sprintf(format, args...)})
}

// pack encodes deterministically: versions are hashes of these bytes.
func pack(m proto.Message) (*anypb.Any, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: body}, nil
}

// mustPack packs a message that can not fail to encode: one built here of valid UTF-8.
func mustPack(m proto.Message) *anypb.Any {
	a, err := pack(m)
	if err != nil {
		panic(err)
	}
	return a
}

// about is how notes and errors name a policy object.
func about(m *policy.Meta) string { return m.Kind + " " + m.Namespace + "/" + m.Name }
