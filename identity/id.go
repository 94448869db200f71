package identity

import (
	"fmt"
	"slices"
	"strings"
)

// The limits of SPIFFE-ID section 2.3, in bytes. A longer ID is refused.
const (
	MaxIDLength          = 2048
	MaxTrustDomainLength = 255
)

const scheme = "spiffe://"

// TrustDomain is the name of a SPIFFE trust domain, such as "cluster.local".
// It is comparable. The zero value is no trust domain.
type TrustDomain struct{ name string }

// String returns the name without the scheme.
func (td TrustDomain) String() string { return td.name }

// IsZero reports whether this is no trust domain.
func (td TrustDomain) IsZero() bool { return td.name == "" }

// ID is a SPIFFE ID, such as "spiffe://cluster.local/ns/default/sa/reviews".
// It is comparable: two IDs are the same identity exactly if they are equal.
// The zero value is no identity.
type ID struct {
	uri string
	td  int // length of the trust domain's name
}

// IDError says why a text is no SPIFFE ID.
type IDError struct {
	Input  string
	Reason string
}

func (e *IDError) Error() string {
	in := e.Input
	if len(in) > 120 {
		in = in[:120] + "..."
	}
	return fmt.Sprintf("SPIFFE ID %q: %s", in, e.Reason)
}

// ParseTrustDomain reads a trust domain's name (SPIFFE-ID section 2.1): lower
// case letters, digits, dots, dashes and underscores, at most
// MaxTrustDomainLength bytes. A whole SPIFFE ID is not accepted.
func ParseTrustDomain(name string) (TrustDomain, error) {
	if reason := badTrustDomain(name); reason != "" {
		return TrustDomain{}, &IDError{Input: name, Reason: reason}
	}
	return TrustDomain{name}, nil
}

func badTrustDomain(name string) string {
	if name == "" {
		return "the trust domain is missing"
	}
	if len(name) > MaxTrustDomainLength {
		return fmt.Sprintf("the trust domain has %d bytes, the limit is %d", len(name), MaxTrustDomainLength)
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		case 'A' <= c && c <= 'Z':
			return fmt.Sprintf("upper case letter %q in the trust domain", c)
		case c == '@':
			return "user information before the trust domain"
		case c == ':':
			return "a port after the trust domain"
		default:
			return fmt.Sprintf("character %q in the trust domain", c)
		}
	}
	return ""
}

// ParseID reads a SPIFFE ID by the rules of SPIFFE-ID sections 2.1 to 2.3. The
// scheme and the trust domain are lower case; the path may be absent and is
// otherwise segments of letters, digits, dots, dashes and underscores. There
// is no port, user information, query, fragment, percent-encoding, empty
// segment, dot segment or trailing slash. The error is an *IDError.
func ParseID(s string) (ID, error) {
	td, reason := checkID(s)
	if reason != "" {
		return ID{}, &IDError{Input: s, Reason: reason}
	}
	return ID{uri: s, td: td}, nil
}

// checkID returns the length of the trust domain, or what is wrong.
func checkID(s string) (td int, reason string) {
	if !strings.HasPrefix(s, scheme) {
		return 0, `the scheme is not "spiffe://"`
	}
	if len(s) > MaxIDLength {
		return 0, fmt.Sprintf("%d bytes, the limit is %d", len(s), MaxIDLength)
	}
	rest := s[len(scheme):]
	td = strings.IndexByte(rest, '/')
	if td < 0 {
		td = len(rest)
	}
	if reason := badTrustDomain(rest[:td]); reason != "" {
		return 0, reason
	}
	return td, badPath(rest[td:])
}

// badPath says what is wrong with an ID's path, which is empty or begins with a slash.
func badPath(path string) string {
	if path == "" {
		return ""
	}
	if path[0] != '/' {
		return "the path does not begin with a slash"
	}
	start := 1
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			if reason := badPathByte(path[i]); reason != "" {
				return reason
			}
			continue
		}
		switch segment := path[start:i]; segment {
		case "":
			if i == len(path) {
				return "the path ends with a slash"
			}
			return "empty segment in the path"
		case ".", "..":
			return "dot segment in the path"
		}
		start = i + 1
	}
	return ""
}

func badPathByte(c byte) string {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		return ""
	case c == '%':
		return "percent-encoding in the path"
	case c == '?':
		return "a query after the path"
	case c == '#':
		return "a fragment after the path"
	default:
		return fmt.Sprintf("character %q in the path", c)
	}
}

// NewID joins a trust domain and path segments. Without a segment it is the
// trust domain's own ID.
func NewID(td TrustDomain, segments ...string) (ID, error) {
	var b strings.Builder
	b.WriteString(scheme)
	b.WriteString(td.name)
	for _, s := range segments {
		if strings.Contains(s, "/") {
			return ID{}, &IDError{Input: s, Reason: "a slash in a path segment"}
		}
		b.WriteByte('/')
		b.WriteString(s)
	}
	return ParseID(b.String())
}

// IstioID returns the identity of a service account as Istio names it,
// "spiffe://<trust domain>/ns/<namespace>/sa/<service account>". As in Istio an
// "@" in the trust domain becomes a dot, for cloud service accounts.
func IstioID(trustDomain, namespace, serviceAccount string) (ID, error) {
	switch {
	case namespace == "":
		return ID{}, &IDError{Reason: "the namespace is missing"}
	case serviceAccount == "":
		return ID{}, &IDError{Reason: "the service account is missing"}
	}
	td, err := ParseTrustDomain(strings.ReplaceAll(trustDomain, "@", "."))
	if err != nil {
		return ID{}, err
	}
	return NewID(td, "ns", namespace, "sa", serviceAccount)
}

// String returns the URI, or "" for no identity.
func (id ID) String() string { return id.uri }

// IsZero reports whether this is no identity.
func (id ID) IsZero() bool { return id.uri == "" }

// TrustDomain returns the trust domain that vouches for the identity.
func (id ID) TrustDomain() TrustDomain {
	if id.uri == "" {
		return TrustDomain{}
	}
	return TrustDomain{id.uri[len(scheme) : len(scheme)+id.td]}
}

// Path returns the path with its leading slash, or "" for a trust domain's own ID.
func (id ID) Path() string {
	if id.uri == "" {
		return ""
	}
	return id.uri[len(scheme)+id.td:]
}

// Principal returns the URI without its scheme, which is how Istio's
// AuthorizationPolicy writes principals.
func (id ID) Principal() string { return strings.TrimPrefix(id.uri, scheme) }

// Istio returns the namespace and service account of an identity in Istio's
// form; ok is false for every other form.
func (id ID) Istio() (namespace, serviceAccount string, ok bool) {
	rest, ok := strings.CutPrefix(id.Path(), "/ns/")
	if !ok {
		return "", "", false
	}
	namespace, rest, ok = strings.Cut(rest, "/")
	if !ok {
		return "", "", false
	}
	serviceAccount, ok = strings.CutPrefix(rest, "sa/")
	if !ok || serviceAccount == "" || strings.Contains(serviceAccount, "/") {
		return "", "", false
	}
	return namespace, serviceAccount, true
}

// WithTrustDomain returns the same path under another trust domain.
func (id ID) WithTrustDomain(td TrustDomain) (ID, error) {
	return ParseID(scheme + td.name + id.Path())
}

// MarshalText writes the URI.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.uri), nil }

// UnmarshalText reads what ParseID reads; an empty text is no identity.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// MarshalText writes the name.
func (td TrustDomain) MarshalText() ([]byte, error) { return []byte(td.name), nil }

// UnmarshalText reads what ParseTrustDomain reads.
func (td *TrustDomain) UnmarshalText(b []byte) error {
	parsed, err := ParseTrustDomain(string(b))
	if err != nil {
		return err
	}
	*td = parsed
	return nil
}

// ExpandTrustDomains adds to each identity in Istio's form the same identity
// under each of the trust domains, as Istio does for trustDomainAliases while
// a mesh moves from one trust domain to another. Every other text is kept as
// it is. The result is sorted and without duplicates.
func ExpandTrustDomains(uris []string, trustDomains []string) []string {
	out := slices.Clone(uris)
	for _, uri := range uris {
		id, err := ParseID(uri)
		if err != nil {
			continue
		}
		ns, sa, ok := id.Istio()
		if !ok {
			continue
		}
		for _, td := range trustDomains {
			if alias, err := IstioID(td, ns, sa); err == nil {
				out = append(out, alias.String())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// IDRule says why an identity is not the one that is asked for; nil if it is.
type IDRule func(ID) error

// AnyID accepts every identity. It does not accept the absence of one.
func AnyID() IDRule {
	return func(id ID) error {
		if id.IsZero() {
			return fmt.Errorf("the peer has no identity")
		}
		return nil
	}
}

// OneOf accepts the listed identities. An empty list accepts none.
func OneOf(ids ...ID) IDRule {
	set := make(map[ID]struct{}, len(ids))
	for _, id := range ids {
		if !id.IsZero() {
			set[id] = struct{}{}
		}
	}
	return func(id ID) error {
		if _, ok := set[id]; ok {
			return nil
		}
		if len(ids) == 1 {
			return fmt.Errorf("identity %q is not %q", id, ids[0])
		}
		return fmt.Errorf("identity %q is none of the %d that are expected", id, len(ids))
	}
}

// MemberOf accepts every identity of the trust domains.
func MemberOf(tds ...TrustDomain) IDRule {
	return func(id ID) error {
		if !id.IsZero() && slices.Contains(tds, id.TrustDomain()) {
			return nil
		}
		return fmt.Errorf("identity %q is not a member of trust domain %v", id, tds)
	}
}
