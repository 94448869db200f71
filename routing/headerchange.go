package routing

import (
	"fmt"
	"strings"
)

// HeaderAction says what becomes of a header that is there already
// (envoy.config.core.v3.HeaderValueOption.HeaderAppendAction).
type HeaderAction uint8

const (
	// AppendOrAdd adds a value beside those that are there.
	AppendOrAdd HeaderAction = iota
	// AddIfAbsent leaves a header that is there as it is.
	AddIfAbsent
	// OverwriteOrAdd replaces all values, or adds one.
	OverwriteOrAdd
	// OverwriteIfExists replaces all values of a header that is there.
	OverwriteIfExists
	// RemoveHeader removes a header; it is for changes in order only.
	RemoveHeader
)

// MaxHeader is the longest name and the longest value, in bytes, that policy
// may set (Envoy's bound on envoy.config.core.v3.HeaderValue).
const MaxHeader = 16384

// HeaderChange sets one header. Make it with NewHeaderChange.
type HeaderChange struct {
	Name   HeaderName
	Value  Format
	Action HeaderAction
	// KeepEmpty sets the header even where the value is empty.
	KeepEmpty bool

	shared []string // the value, where it is constant; nobody writes to it
}

// HeaderChanges are the changes of one level of policy (a destination, a route,
// a virtual host, a route configuration). Removals come first, as in Envoy.
type HeaderChanges struct {
	Remove []HeaderName
	Set    []HeaderChange
	// InOrder makes each change of Set before the value of the next one is made,
	// removals included (envoy.config.common.mutation_rules.v3.HeaderMutation).
	InOrder bool
}

// NewHeaderChange returns the change that sets a header. value may have
// substitution commands (see ParseFormat). It is an error if the name is not
// one that policy may change (see CheckHeaderName) or the value is not a format,
// has a control character or more than MaxHeader bytes.
func NewHeaderChange(name, value string, action HeaderAction, keepEmpty bool) (HeaderChange, error) {
	if err := CheckHeaderName(name); err != nil {
		return HeaderChange{}, err
	}
	if action > OverwriteIfExists {
		return HeaderChange{}, fmt.Errorf("the action %d sets no header", action)
	}
	if len(value) > MaxHeader {
		return HeaderChange{}, fmt.Errorf("the value of %q has %d bytes, the limit is %d", name, len(value), MaxHeader)
	}
	for i := 0; i < len(value); i++ {
		if value[i] < ' ' && value[i] != '\t' || value[i] == 0x7f {
			return HeaderChange{}, fmt.Errorf("the value of %q has the control character %q", name, value[i])
		}
	}
	format, err := ParseFormat(value)
	if err != nil {
		return HeaderChange{}, fmt.Errorf("the value of %q: %w", name, err)
	}
	c := HeaderChange{Name: NewHeaderName(name), Value: format, Action: action, KeepEmpty: keepEmpty}
	if value, ok := format.Constant(); ok {
		c.shared = []string{trimValue(value)}
	}
	return c, nil
}

// NewHeaderRemoval returns the name of a header to remove, or an error as CheckHeaderName.
func NewHeaderRemoval(name string) (HeaderName, error) {
	if err := CheckHeaderName(name); err != nil {
		return HeaderName{}, err
	}
	return NewHeaderName(name), nil
}

// CheckHeaderName reports a header that policy must not set or remove: "host"
// and names that begin with ":", which rewrites are for, and what is no name
// (RFC 9110, section 5.6.2).
func CheckHeaderName(name string) error {
	switch {
	case strings.HasPrefix(name, ":"), strings.EqualFold(name, "host"):
		return fmt.Errorf("the header %q can not be changed; a rewrite changes path and authority", name)
	case len(name) > MaxHeader:
		return fmt.Errorf("the header's name has %d bytes, the limit is %d", len(name), MaxHeader)
	case !isToken(name):
		return fmt.Errorf("%q is not a header's name", name)
	}
	return nil
}

// isToken reports whether s is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			continue
		}
		return false
	}
	return s != ""
}

// Empty reports whether there is nothing to change.
func (c *HeaderChanges) Empty() bool { return len(c.Remove) == 0 && len(c.Set) == 0 }

// Apply makes the changes in h, in place: the map is the caller's own and not
// nil, the slices of values are not written to. Every value is made from the headers as
// they are after the removals; then the headers that are overwritten are set,
// then the others are added, each in their order (Envoy's
// HeaderParser.evaluateHeaders), unless InOrder. To have commands see the removals, v.Request
// has h as its header. A value that comes out empty changes nothing unless KeepEmpty.
//
// It allocates one slice for all headers that are set, and the values that are
// not constant. Constant values of a request's headers (v.ResponseHeader is nil) are
// shared by all requests; those of a response are its reader's own.
func (c *HeaderChanges) Apply(h map[string][]string, form HeaderForm, v *Values) {
	own := v.ResponseHeader != nil
	for i := range c.Remove {
		delete(h, c.Remove[i].key(form))
	}
	if len(c.Set) <= 1 || c.InOrder {
		for i := range c.Set {
			s := &c.Set[i]
			if s.Action == RemoveHeader {
				delete(h, s.Name.key(form))
			} else if value, ok := s.value(h, form, v); ok {
				if own || s.shared == nil {
					s.put(h, form, []string{value})
				} else {
					s.put(h, form, s.shared[:1:1])
				}
			}
		}
		return
	}
	var values []string // also the slices of the headers that are set; nil until one is
	var skip uint64     // a bit for each of the first 64
	var skipped []bool
	if len(c.Set) > 64 {
		skipped = make([]bool, len(c.Set))
	}
	for i := range c.Set {
		value, ok := c.Set[i].value(h, form, v)
		switch {
		case ok && !own && c.Set[i].shared != nil:
		case ok:
			if values == nil {
				values = make([]string, len(c.Set))
			}
			values[i] = value
		case skipped != nil:
			skipped[i] = true
		default:
			skip |= 1 << i
		}
	}
	for _, overwrite := range [2]bool{true, false} {
		for i := range c.Set {
			s := &c.Set[i]
			if s.overwrites() != overwrite || skipped != nil && skipped[i] || skipped == nil && skip&(1<<i) != 0 {
				continue
			}
			if own || s.shared == nil {
				s.put(h, form, values[i:i+1:i+1])
			} else {
				s.put(h, form, s.shared[:1:1])
			}
		}
	}
}

func (s *HeaderChange) overwrites() bool {
	return s.Action == OverwriteOrAdd || s.Action == OverwriteIfExists
}

// value returns what is to be set, and whether anything is.
func (s *HeaderChange) value(h map[string][]string, form HeaderForm, v *Values) (string, bool) {
	switch s.Action {
	case AddIfAbsent:
		if len(s.Name.In(h, form)) > 0 {
			return "", false
		}
	case OverwriteIfExists:
		if len(s.Name.In(h, form)) == 0 {
			return "", false
		}
	case RemoveHeader:
		return "", false
	}
	if c := s.shared; c != nil && c[0] != "" {
		return c[0], true
	}
	value := s.Value.string(v)
	if value == "" {
		return "", s.KeepEmpty
	}
	// White space around a value is no part of it (RFC 9110, section 5.5): it
	// would be lost on the wire of HTTP/1.1, and refused on that of HTTP/2.
	return trimValue(value), true
}

func trimValue(s string) string { return strings.Trim(s, " \t") }

// put sets the header; value is its slice of one, which it may keep.
func (s *HeaderChange) put(h map[string][]string, form HeaderForm, value []string) {
	key := s.Name.key(form)
	if !s.overwrites() {
		if there := h[key]; len(there) > 0 {
			// A new slice: the old one may be shared with the request as it was.
			h[key] = append(there[:len(there):len(there)], value[0])
			return
		}
	}
	h[key] = value
}
