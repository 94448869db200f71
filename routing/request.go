package routing

import (
	"net/textproto"
	"strings"
)

// HeaderForm says how the keys of a header map are spelled, so that one
// matcher reads net/http's headers and gRPC's metadata without a copy.
type HeaderForm uint8

const (
	// CanonicalHeaders is net/http's spelling, "X-Request-Id".
	CanonicalHeaders HeaderForm = iota
	// LowerHeaders is the spelling of gRPC metadata and of HTTP/2 on the wire, "x-request-id".
	LowerHeaders
)

// Request is the view of a request that the rules decide on. It is a plain
// value owned by the caller; the rules only read it.
type Request struct {
	Method    string // "GET"; a gRPC call is "POST"
	Scheme    string // "http" or "https"
	Authority string // :authority or Host, as sent: port and case included
	Path      string // path in wire form (still escaped), without the query
	RawQuery  string // what follows the first "?", without it
	Header    map[string][]string
	Form      HeaderForm
	// Claims are the verified claims of the request that is being served while
	// this one is made; nil where there are none.
	Claims map[string]any
}

// pseudo is the field of Request that answers a header name.
type pseudo uint8

const (
	noPseudo pseudo = iota
	pseudoMethod
	pseudoPath
	pseudoAuthority
	pseudoScheme
	// pseudoOther is a name with a leading colon that a request does not have, such as ":status".
	pseudoOther
)

// HeaderName is a header's name in each spelling, so that a lookup converts
// nothing. Make it with NewHeaderName.
type HeaderName struct {
	lower     string
	canonical string
	pseudo    pseudo
}

// NewHeaderName returns the name in any letter case as a HeaderName. Names that
// begin with ":" are pseudo-headers, answered from the fields of Request.
// "host" is another name of ":authority", as HTTP/1.1 spells it.
func NewHeaderName(name string) HeaderName {
	n := HeaderName{lower: strings.ToLower(name), canonical: textproto.CanonicalMIMEHeaderKey(name)}
	switch n.lower {
	case ":method":
		n.pseudo = pseudoMethod
	case ":path":
		n.pseudo = pseudoPath
	case ":authority", "host":
		n.pseudo = pseudoAuthority
	case ":scheme":
		n.pseudo = pseudoScheme
	default:
		if strings.HasPrefix(n.lower, ":") {
			n.pseudo = pseudoOther
		}
	}
	return n
}

// String returns the lower-case spelling.
func (n HeaderName) String() string { return n.lower }

// In returns the name's values in a header map whose keys have the given spelling; nil if there are none.
// It does not know pseudo-headers.
func (n HeaderName) In(h map[string][]string, form HeaderForm) []string {
	if form == LowerHeaders {
		return h[n.lower]
	}
	return h[n.canonical]
}

// key returns the name as it is spelled in a header map.
func (n *HeaderName) key(form HeaderForm) string {
	if form == LowerHeaders {
		return n.lower
	}
	return n.canonical
}

// first returns the first value of the name in the request, pseudo-headers
// included, and whether there is one.
func (n *HeaderName) first(r *Request) (string, bool) {
	if n.pseudo != noPseudo {
		v := n.field(r)
		return v, v != ""
	}
	if values := n.In(r.Header, r.Form); len(values) > 0 {
		return values[0], true
	}
	return "", false
}

// field returns what a pseudo-header stands for; an empty field counts as absent.
// ":path" is the path with its query: only where there is a query is a string built.
func (n *HeaderName) field(r *Request) string {
	switch n.pseudo {
	case pseudoMethod:
		return r.Method
	case pseudoAuthority:
		return r.Authority
	case pseudoScheme:
		return r.Scheme
	case pseudoPath:
		if r.RawQuery == "" {
			return r.Path
		}
		return r.Path + "?" + r.RawQuery
	}
	return ""
}
