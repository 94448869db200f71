package routing

import (
	"fmt"
	"strconv"
	"strings"
)

// Redirect answers a request with another place to go
// (envoy.config.route.v3.RedirectAction).
type Redirect struct {
	// Scheme replaces the scheme; "" keeps it. HTTPS is Scheme "https" with the port elided.
	Scheme string
	HTTPS  bool
	Host   string // "" keeps it
	Port   uint32 // 0 keeps it
	// KeepPort keeps a port that is the default of the scheme that is left, as
	// Envoy's answer to a virtual host that requires TLS does.
	KeepPort bool
	// At most one of these changes the path; Path may have a query.
	Path      string
	HasPrefix bool // Prefix replaces what the route's path condition matched
	Prefix    string
	Regex     *RegexRewrite
	// Format is the whole path (path_rewrite). Its commands see the request only.
	Format *Format
	// Status is 301, 302, 303, 307 or 308.
	Status     int
	StripQuery bool
}

// DirectResponse answers a request without any destination
// (envoy.config.route.v3.DirectResponseAction).
type DirectResponse struct {
	Status int
	Body   string
}

var forwardedProto = NewHeaderName("x-forwarded-proto")

// Location returns the place to go, an absolute URL. A port that is the default
// of the request's scheme goes where the scheme changes; a new Host comes
// without the request's port. The query is kept, unless StripQuery or the new
// Path brings one. Bytes that can not be in a header are percent-encoded.
func (d *Redirect) Location(m *Match, r *Request) string {
	scheme := r.Scheme
	switch {
	case d.Scheme != "":
		scheme = d.Scheme
	case d.HTTPS:
		scheme = "https"
	}
	host := d.Host
	if host == "" {
		host = d.host(r, scheme)
	}
	var b strings.Builder
	b.WriteString(scheme)
	b.WriteString("://")
	writeHeaderSafe(&b, host)
	if d.Port != 0 {
		b.WriteByte(':')
		b.WriteString(strconv.FormatUint(uint64(d.Port), 10))
	}
	path, query := d.path(m, r)
	if !strings.HasPrefix(path, "/") {
		b.WriteByte('/')
	}
	writeHeaderSafe(&b, path)
	if query != "" {
		b.WriteByte('?')
		writeHeaderSafe(&b, query)
	}
	return b.String()
}

// host returns the request's host, without a port that another one replaces or
// that is the default of a scheme that is left.
func (d *Redirect) host(r *Request, scheme string) string {
	host := r.Authority
	end := strings.LastIndexByte(host, ':')
	if strings.HasPrefix(host, "[") {
		if end = strings.LastIndex(host, "]:"); end >= 0 {
			end++
		}
	}
	if end < 0 {
		return host
	}
	came := r.Scheme
	if v, ok := forwardedProto.first(r); ok {
		came = v
	}
	port := host[end:]
	if d.Port != 0 || !d.KeepPort && scheme != came && (came == "https" && port == ":443" || came == "http" && port == ":80") {
		return host[:end]
	}
	return host
}

func (d *Redirect) path(m *Match, r *Request) (path, query string) {
	if d.Path != "" {
		if strings.Contains(d.Path, "?") {
			return d.Path, "" // the query that it brings is kept, StripQuery or not
		}
		path, query = d.Path, r.RawQuery
	} else {
		w := Rewrite{HasPrefix: d.HasPrefix, Prefix: d.Prefix, Regex: d.Regex, PathFormat: d.Format}
		path, query = w.Path(m, r)
	}
	if d.StripQuery {
		query = ""
	}
	return path, query
}

// Check reports a redirect that can not be followed: two changes of the path,
// a status that is no redirect, or text that can not be in a URL.
func (d *Redirect) Check() error {
	switch d.Status {
	case 301, 302, 303, 307, 308:
	default:
		return fmt.Errorf("the status %d is no redirect", d.Status)
	}
	changes := 0
	for _, is := range []bool{d.Path != "", d.HasPrefix, d.Regex != nil, d.Format != nil} {
		if is {
			changes++
		}
	}
	switch {
	case changes > 1:
		return fmt.Errorf("the path is changed in two ways")
	case d.Scheme != "" && d.HTTPS:
		return fmt.Errorf("the scheme is changed in two ways")
	case d.Port > 65535:
		return fmt.Errorf("the port %d is above 65535", d.Port)
	}
	if err := d.Format.requestOnly(); err != nil {
		return err
	}
	for _, s := range []string{d.Scheme, d.Host, d.Path, d.Prefix} {
		if i := strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f }); i >= 0 {
			return fmt.Errorf("%q has the character %q, which can not be in a URL", s, s[i])
		}
	}
	return nil
}

// writeHeaderSafe writes s with spaces and control characters percent-encoded,
// so that no request can put a second header into the answer.
func writeHeaderSafe(b *strings.Builder, s string) {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c == 0x7f {
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		} else {
			b.WriteByte(c)
		}
	}
}
