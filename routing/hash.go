package routing

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
)

// HashKind says what a HashPolicy looks at.
type HashKind uint8

const (
	HashHeader HashKind = iota // all values of a header
	HashCookie
	HashSource  // the address of the caller
	HashQuery   // the first value of a query parameter
	HashChannel // one value for the life of the client (gRFC A42's "io.grpc.channel_id")
)

// HashPolicy gives the hash by which ring hash and maglev choose
// (envoy.config.route.v3.RouteAction.HashPolicy).
type HashPolicy struct {
	Kind   HashKind
	Header HeaderName    // for HashHeader
	Regex  *RegexRewrite // for HashHeader: applied to each value first
	Query  string        // for HashQuery
	Cookie HashCookieSpec
	// Terminal ends the evaluation once there is a hash.
	Terminal bool
}

// HashCookieSpec is a cookie to hash, and to issue where the request has none.
type HashCookieSpec struct {
	Name, Path string
	// Issue has a request without the cookie get one, for TTL; zero TTL makes a cookie of the session.
	Issue      bool
	TTL        time.Duration
	Attributes []CookieAttribute
}

// CookieAttribute is an attribute of a cookie that is issued.
type CookieAttribute struct{ Name, Value string }

// HashOrigin is what a hash may need to know of the caller, other than its request.
type HashOrigin struct {
	// Address and Local are the two ends of the connection that the request
	// came by, "ip:port" or an IP; for requests that the process makes by
	// itself, addresses of the process. HashSource takes Address without port.
	Address, Local string
	// Channel is a random number, drawn once for each client.
	Channel uint64
}

// CheckHash reports what can not be followed in a route's policies: a header
// that is not there to be hashed, a cookie or parameter without a name, a
// cookie that could not be issued as it is, or a second cookie to issue.
func CheckHash(policies []HashPolicy) error {
	issued := false
	for i := range policies {
		p := &policies[i]
		if err := p.check(); err != nil {
			return fmt.Errorf("hash_policy[%d]: %w", i, err)
		}
		if p.Kind == HashCookie && p.Cookie.Issue {
			if issued {
				return fmt.Errorf("hash_policy[%d].cookie.ttl: one cookie is issued at most", i)
			}
			issued = true
		}
	}
	return nil
}

func (p *HashPolicy) check() error {
	switch p.Kind {
	case HashHeader:
		if p.Header.lower == "" {
			return fmt.Errorf("header.header_name is empty")
		}
	case HashQuery:
		if p.Query == "" {
			return fmt.Errorf("query_parameter.name is empty")
		}
	case HashCookie:
		c := &p.Cookie
		if !isToken(c.Name) {
			return fmt.Errorf("cookie.name: %q is not a name", c.Name)
		}
		if !isCookieText(c.Path) {
			return fmt.Errorf("cookie.path: %q can not be in a cookie", c.Path)
		}
		for i, a := range c.Attributes {
			if !isToken(a.Name) || !isCookieText(a.Value) {
				return fmt.Errorf("cookie.attributes[%d]: %q can not be in a cookie", i, a.Name+"="+a.Value)
			}
		}
	}
	return nil
}

// isCookieText reports whether s can stand in an attribute of a cookie (RFC 6265, section 4.1.1: av-octets).
func isCookieText(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f || s[i] == ';' {
			return false
		}
	}
	return true
}

// HashOf returns the hash of a request, and whether any policy gave one; if
// none did, the balancer draws. cookie is the value of a Set-Cookie that the
// response has to carry, or "". The policies are combined in their order: the
// hash so far is rotated left by one bit before the next one is joined by
// exclusive or. It allocates for a header with several values or with a regex
// that changes something, and for a cookie that is issued.
func HashOf(policies []HashPolicy, r *Request, o HashOrigin) (hash uint64, ok bool, cookie string) {
	for i := range policies {
		p := &policies[i]
		h, found, issue := p.hash(r, &o)
		if issue != "" {
			cookie = issue
		}
		if found {
			hash = (hash<<1 | hash>>63) ^ h
			ok = true
		}
		if ok && p.Terminal {
			break
		}
	}
	return hash, ok, cookie
}

func (p *HashPolicy) hash(r *Request, o *HashOrigin) (hash uint64, ok bool, cookie string) {
	switch p.Kind {
	case HashHeader:
		hash, ok = p.hashHeader(r)
	case HashCookie:
		value, _ := firstCookie(r, p.Cookie.Name)
		if value == "" && p.Cookie.Issue {
			value = cookieFor(o)
			cookie = p.Cookie.set(value)
		}
		hash, ok = xxhash.Sum64String(value), value != ""
	case HashSource:
		address := hostOf(o.Address)
		hash, ok = xxhash.Sum64String(address), address != ""
	case HashQuery:
		var value string
		if value, ok = firstParameter(r.RawQuery, p.Query); ok {
			hash = xxhash.Sum64String(value)
		}
	case HashChannel:
		hash, ok = o.Channel, true
	}
	return hash, ok, cookie
}

// hashHeader hashes the values in an order of their own, so that two requests
// with the same values have the same hash.
func (p *HashPolicy) hashHeader(r *Request) (uint64, bool) {
	if p.Header.pseudo != noPseudo {
		v := p.Header.field(r)
		return xxhash.Sum64String(p.rewritten(v)), v != ""
	}
	values := p.Header.In(r.Header, r.Form)
	switch len(values) {
	case 0:
		return 0, false
	case 1:
		return xxhash.Sum64String(p.rewritten(values[0])), true
	}
	sorted := make([]string, len(values))
	for i, v := range values {
		sorted[i] = p.rewritten(v)
	}
	slices.Sort(sorted)
	hash := uint64(0)
	var d xxhash.Digest
	for _, v := range sorted {
		d.ResetWithSeed(hash)
		_, _ = d.WriteString(v) // never fails
		hash = d.Sum64()
	}
	return hash, true
}

func (p *HashPolicy) rewritten(v string) string {
	if p.Regex == nil {
		return v
	}
	return p.Regex.Replace(v)
}

// cookieFor returns the value of a cookie that is issued: one for each connection.
func cookieFor(o *HashOrigin) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], xxhash.Sum64String(o.Address+o.Local))
	return hex.EncodeToString(b[:])
}

// set returns the value of Set-Cookie.
func (c *HashCookieSpec) set(value string) string {
	var b strings.Builder
	b.WriteString(c.Name)
	b.WriteString(`="`)
	b.WriteString(value)
	b.WriteByte('"')
	if seconds := int64(c.TTL / time.Second); seconds > 0 {
		b.WriteString("; Max-Age=")
		b.WriteString(strconv.FormatInt(seconds, 10))
	}
	if c.Path != "" {
		b.WriteString("; Path=")
		b.WriteString(c.Path)
	}
	for _, a := range c.Attributes {
		b.WriteString("; ")
		b.WriteString(a.Name)
		if a.Value != "" {
			b.WriteByte('=')
			b.WriteString(a.Value)
		}
	}
	b.WriteString("; HttpOnly")
	return b.String()
}
