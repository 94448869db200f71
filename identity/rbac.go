package identity

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/sinew-mesh/sinew/routing"
)

// AccessRequest is what the rules of access know of a request. It is a plain
// value that belongs to the caller; the rules only read it.
type AccessRequest struct {
	// Request is the request itself. Its Path must be exactly the path that the
	// request is dispatched by, see PathOptions, and its Authority the host
	// that the handler is given.
	routing.Request
	// DecodedPath is the path as a handler sees it that reads it unescaped, as
	// net/http's URL.Path is; "" if there is only one reading. Where it differs
	// from Path, the request is let through only if the rules let both through.
	DecodedPath string

	// Principal is the SPIFFE ID that the peer's certificate proved,
	// "spiffe://cluster.local/ns/default/sa/web"; "" for a plaintext peer and
	// for a TLS peer without an identity: no rule on principals then matches.
	Principal string
	// PeerIP is the other end of the connection. A zero address, as of a Unix
	// socket, is in no range.
	PeerIP netip.Addr
	// RemoteIP is the client on whose behalf the peer calls, see ClientIP.
	RemoteIP netip.Addr
	// DestinationIP and DestinationPort are this end of the connection.
	DestinationIP   netip.Addr
	DestinationPort uint16
	// ServerName is the name that the peer asked for in the TLS handshake (SNI).
	ServerName string
	// Claims are those of the verified token; nil if there is none.
	Claims *Claims
}

const maxConditionDepth = 32

type conditionKind uint8

const (
	conditionUnset conditionKind = iota
	conditionAny
	conditionAll
	conditionOneOf
	conditionNot
	conditionHeader
	conditionPathExact
	conditionPathPrefix
	conditionPath
	conditionTemplate
	conditionDestinationIP
	conditionDestinationPort
	conditionServerName
	conditionClaim
	conditionAuthenticated
	conditionPrincipalExact
	conditionPrincipal
	conditionNamespace
	conditionPeerIP
	conditionRemoteIP
)

// Condition is a part of a rule: a permission (what is asked for) or a
// principal (who asks), as envoy.config.rbac.v3.Permission and Principal. Make
// it with the functions of this package; the zero value is not a condition and
// NewRuleSet refuses it, so that what could not be understood is never left out.
//
// A header may have several values, and a host may be written in several ways.
// A condition then may hold for one and not for another. What that comes to
// depends on what the rule does: a DENY, AUDIT or CUSTOM rule applies if any
// reading fulfils it, an ALLOW rule only if all of them do. Under Not it is the
// other way round. So a second header, a port or a dot behind the host never
// widens access.
type Condition struct {
	kind   conditionKind
	depth  uint8
	text   string
	parts  []Condition
	detail any
}

// Any holds for every request.
func Any() Condition { return Condition{kind: conditionAny} }

// AllOf holds where all the conditions do. No conditions are an error.
func AllOf(conditions ...Condition) (Condition, error) { return combine(conditionAll, conditions) }

// AnyOf holds where at least one of the conditions does. No conditions are an error.
func AnyOf(conditions ...Condition) (Condition, error) {
	return combine(conditionOneOf, conditions)
}

// Not holds where the condition does not. A condition that is not set is an error.
func Not(condition Condition) (Condition, error) {
	return combine(conditionNot, []Condition{condition})
}

func combine(kind conditionKind, parts []Condition) (Condition, error) {
	if len(parts) == 0 {
		return Condition{}, fmt.Errorf("a list of conditions is empty")
	}
	if len(parts) == 1 && kind != conditionNot && parts[0].kind != conditionUnset {
		return parts[0], nil
	}
	c := Condition{kind: kind, parts: append([]Condition(nil), parts...)}
	for i := range parts {
		if parts[i].kind == conditionUnset {
			return Condition{}, fmt.Errorf("condition %d of a list is not set", i)
		}
		c.depth = max(c.depth, parts[i].depth+1)
	}
	if c.depth > maxConditionDepth {
		return Condition{}, fmt.Errorf("conditions are nested more than %d deep", maxConditionDepth)
	}
	return c, nil
}

type headerField uint8

const (
	fieldHeader headerField = iota
	fieldMethod
	fieldPath
	fieldHost
	fieldScheme
)

type headerCondition struct {
	field headerField
	match routing.HeaderMatch
}

// HeaderIs holds where a header matches, ":method", ":authority", ":path" (with
// its query) and ":scheme" among them. Of the rest of the pseudo-headers a
// request has none: asking for one is an error.
func HeaderIs(m routing.HeaderMatch) (Condition, error) {
	h := &headerCondition{match: m}
	switch name := m.Name.String(); {
	case name == "":
		return Condition{}, fmt.Errorf("a condition on a header has no name")
	case name == ":method":
		h.field = fieldMethod
	case name == ":path":
		h.field = fieldPath
	case name == ":authority" || name == "host":
		h.field = fieldHost
	case name == ":scheme":
		h.field = fieldScheme
	case name[0] == ':':
		return Condition{}, fmt.Errorf("a request has no pseudo-header %q", name)
	}
	return Condition{kind: conditionHeader, detail: h}, nil
}

// PathIs holds for exactly that path.
func PathIs(path string) Condition { return Condition{kind: conditionPathExact, text: path} }

// PathBegins holds for paths that begin with the text.
func PathBegins(prefix string) Condition { return Condition{kind: conditionPathPrefix, text: prefix} }

// PathMatches holds for paths that match. Where the match is an exact text or a
// prefix in one letter case, PathIs and PathBegins do the same and are indexed.
func PathMatches(m routing.StringMatch) Condition {
	return Condition{kind: conditionPath, detail: &m}
}

// PathFits holds for paths of the template's form, with any characters where it
// has wildcards. nil is an error.
func PathFits(t *routing.Template) (Condition, error) {
	if t == nil {
		return Condition{}, fmt.Errorf("a path template is not set")
	}
	return Condition{kind: conditionTemplate, detail: t}, nil
}

// CIDR returns the range of addresses that share the first bits of the address.
func CIDR(address string, bits int) (netip.Prefix, error) {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address range: %q is not an IP address", address)
	}
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	p, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address range: %q has no prefix of %d bits", address, bits)
	}
	return p, nil
}

func inRange(kind conditionKind, p netip.Prefix) (Condition, error) {
	if !p.IsValid() {
		return Condition{}, fmt.Errorf("address range is not set")
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	p = p.Masked()
	return Condition{kind: kind, detail: &p}, nil
}

// PeerIPIn holds where the other end of the connection is in the range
// (source_ip and direct_remote_ip; Istio's source.ip).
func PeerIPIn(p netip.Prefix) (Condition, error) { return inRange(conditionPeerIP, p) }

// RemoteIPIn holds where the client is in the range (remote_ip; Istio's remote.ip).
func RemoteIPIn(p netip.Prefix) (Condition, error) { return inRange(conditionRemoteIP, p) }

// DestinationIPIn holds where this end of the connection is in the range.
func DestinationIPIn(p netip.Prefix) (Condition, error) { return inRange(conditionDestinationIP, p) }

type portRange struct{ low, high uint32 }

// DestinationPortIs holds for one port. A port above 65535 is an error.
func DestinationPortIs(port uint32) (Condition, error) {
	if port > 65535 {
		return Condition{}, fmt.Errorf("port %d is above 65535", port)
	}
	return Condition{kind: conditionDestinationPort, detail: &portRange{port, port + 1}}, nil
}

// DestinationPortIn holds for ports that are at least low and less than high.
// A range that is empty or leaves 0 to 65536 is an error.
func DestinationPortIn(low, high int64) (Condition, error) {
	if low < 0 || high > 65536 || low >= high {
		return Condition{}, fmt.Errorf("port range %d to %d is empty or out of bounds", low, high)
	}
	return Condition{kind: conditionDestinationPort, detail: &portRange{uint32(low), uint32(high)}}, nil
}

// ServerNameMatches holds where the name asked for in the TLS handshake matches
// as it was sent or in lower case (RFC 6066, 3: names have no letter case).
func ServerNameMatches(m routing.StringMatch) Condition {
	return Condition{kind: conditionServerName, detail: &m}
}

type claimCondition struct {
	path   []string
	value  ValueMatch
	invert bool
}

// ClaimIs holds where the verified token has a fitting value under the names of
// path; with invert, where it has not. Without a token there is no value.
func ClaimIs(path []string, value ValueMatch, invert bool) (Condition, error) {
	if len(path) == 0 {
		return Condition{}, fmt.Errorf("a condition on a claim has no name")
	}
	if err := value.check(0); err != nil {
		return Condition{}, fmt.Errorf("claim %s: %w", strings.Join(path, "."), err)
	}
	return Condition{kind: conditionClaim, detail: &claimCondition{append([]string(nil), path...), value, invert}}, nil
}

// Authenticated holds for every peer that has proved an identity.
func Authenticated() Condition { return Condition{kind: conditionAuthenticated} }

// PrincipalIs holds for the peer with exactly that SPIFFE ID. An empty one is an error.
func PrincipalIs(id string) (Condition, error) {
	if id == "" {
		return Condition{}, fmt.Errorf("a principal is empty")
	}
	return Condition{kind: conditionPrincipalExact, text: id}, nil
}

// PrincipalMatches holds for peers whose SPIFFE ID matches. A peer without an
// identity has none that could match, not even an empty one. Where the match is
// an exact text, PrincipalIs does the same and is indexed.
func PrincipalMatches(m routing.StringMatch) Condition {
	return Condition{kind: conditionPrincipal, detail: &m}
}

// NamespaceIs holds for peers whose SPIFFE ID has the namespace, that is,
// contains "/ns/<namespace>/". It is what Istio's `.*/ns/<namespace>/.*` asks,
// and is indexed. A name that is empty or contains a slash is an error.
func NamespaceIs(namespace string) (Condition, error) {
	if namespace == "" || strings.Contains(namespace, "/") {
		return Condition{}, fmt.Errorf("%q is not the name of a namespace", namespace)
	}
	return Condition{kind: conditionNamespace, text: "/ns/" + namespace + "/"}, nil
}

// holds reports whether the request fulfils the condition. path is the reading
// of the path to go by. With lenient one reading of a header or host is enough.
func (c *Condition) holds(r *AccessRequest, path string, lenient bool) bool {
	switch c.kind {
	case conditionAny:
		return true
	case conditionAll:
		for i := range c.parts {
			if !c.parts[i].holds(r, path, lenient) {
				return false
			}
		}
		return true
	case conditionOneOf:
		for i := range c.parts {
			if c.parts[i].holds(r, path, lenient) {
				return true
			}
		}
		return false
	case conditionNot:
		return !c.parts[0].holds(r, path, !lenient)
	case conditionHeader:
		return c.detail.(*headerCondition).holds(r, path, lenient)
	case conditionPathExact:
		return path == c.text
	case conditionPathPrefix:
		return strings.HasPrefix(path, c.text)
	case conditionPath:
		return c.detail.(*routing.StringMatch).Matches(path)
	case conditionTemplate:
		return c.detail.(*routing.Template).Fits(path)
	case conditionDestinationIP:
		return contains(c.detail.(*netip.Prefix), r.DestinationIP)
	case conditionDestinationPort:
		p := c.detail.(*portRange)
		return p.low <= uint32(r.DestinationPort) && uint32(r.DestinationPort) < p.high
	case conditionServerName:
		m := c.detail.(*routing.StringMatch)
		return m.Matches(r.ServerName) || m.Matches(strings.ToLower(r.ServerName))
	case conditionClaim:
		claim := c.detail.(*claimCondition)
		v, found := r.Claims.Lookup(claim.path...)
		return claim.value.matches(v, found) != claim.invert
	case conditionAuthenticated:
		return r.Principal != ""
	case conditionPrincipalExact:
		return r.Principal == c.text
	case conditionPrincipal:
		return r.Principal != "" && c.detail.(*routing.StringMatch).Matches(r.Principal)
	case conditionNamespace:
		return strings.Contains(r.Principal, c.text)
	case conditionPeerIP:
		return contains(c.detail.(*netip.Prefix), r.PeerIP)
	case conditionRemoteIP:
		return contains(c.detail.(*netip.Prefix), r.RemoteIP)
	}
	return false
}

// contains reports whether the address is in the range. An IPv4 address in IPv6
// form is the IPv4 address, and a zone says nothing about the address.
func contains(p *netip.Prefix, addr netip.Addr) bool {
	return p.Contains(addr.Unmap().WithZone(""))
}

func (h *headerCondition) holds(r *AccessRequest, path string, lenient bool) bool {
	var one [2]string
	values := one[:0]
	switch h.field {
	case fieldHeader:
		values = h.match.Name.In(r.Header, r.Form)
	case fieldMethod:
		values = append(values, r.Method)
	case fieldScheme:
		values = append(values, r.Scheme)
	case fieldPath:
		if r.RawQuery != "" {
			path += "?" + r.RawQuery
		}
		values = append(values, path)
	case fieldHost:
		values = append(values, r.Authority)
		// The name alone counts only where it can narrow access: an ALLOW rule for
		// "a.b:80" goes by the host as it was sent.
		if bare := bareHost(r.Authority); lenient && bare != r.Authority {
			values = append(values, bare)
		}
	}
	if h.field != fieldHeader && values[0] == "" {
		values = nil
	}
	if len(values) == 0 {
		return h.match.MatchesValues(nil)
	}
	for i := range values {
		if h.match.MatchesValues(values[i:i+1]) == lenient {
			return lenient
		}
	}
	return !lenient
}
