package routing

import "strings"

// CookieMatch is one condition on a cookie (envoy.config.route.v3.CookieMatcher).
// Of several cookies with the name the first counts. A cookie that is not there
// does not match, and so fulfils an inverted condition.
type CookieMatch struct {
	Name   string
	Value  StringMatch
	Invert bool
}

// Matches reports whether the request fulfils the condition. It does not allocate.
func (m *CookieMatch) Matches(r *Request) bool {
	v, ok := firstCookie(r, m.Name)
	return (ok && m.Value.Matches(v)) != m.Invert
}

var cookieHeader = NewHeaderName("cookie")

// firstCookie returns the value of the first cookie of the name, without the
// quotes that may be around it (RFC 6265, section 4.1.1).
func firstCookie(r *Request, name string) (string, bool) {
	for _, line := range cookieHeader.In(r.Header, r.Form) {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			k, v, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
			if !ok || k != name {
				continue
			}
			if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
				v = v[1 : n-1]
			}
			return v, true
		}
	}
	return "", false
}
