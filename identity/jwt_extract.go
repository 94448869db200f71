package identity

import (
	"net/url"
	"slices"
	"strings"

	"github.com/sinew-mesh/sinew/routing"
)

// TokenPlace says in what part of a request a token came.
type TokenPlace uint8

const (
	InHeader TokenPlace = iota
	InQuery
	InCookie
)

// TokenLocation is a place where tokens come.
type TokenLocation struct {
	Place TokenPlace
	Name  string // of the header (in lower case), parameter or cookie

	prefix  string
	header  routing.HeaderName
	any     bool     // tokens of any issuer come here
	issuers []string // else those of these
}

func (l *TokenLocation) key() string {
	return string('0'+byte(l.Place)) + l.Name + "\x00" + l.prefix
}

// takes reports whether tokens of the issuer come here.
func (l *TokenLocation) takes(issuer string) bool {
	return l.any || slices.Contains(l.issuers, issuer)
}

// presentedToken is a token as a request has it.
type presentedToken struct {
	token string
	at    *TokenLocation
}

var cookieHeader = routing.NewHeaderName("cookie")

// tokenLocations returns where the providers' tokens come: headers by name and
// prefix, then parameters, then cookies, which is Envoy's order.
func tokenLocations(providers []*JWTProvider) []*TokenLocation {
	byKey := make(map[string]*TokenLocation)
	add := func(l TokenLocation, issuer string) {
		known := byKey[l.key()]
		if known == nil {
			known = &l
			byKey[l.key()] = known
		}
		if issuer == "" {
			known.any = true
		}
		known.issuers = append(known.issuers, issuer)
	}
	for _, p := range providers {
		headers, params := p.Headers, p.Params
		if len(headers)+len(params)+len(p.Cookies) == 0 {
			headers, params = []TokenHeader{{"authorization", "Bearer "}}, []string{"access_token"}
		}
		for _, h := range headers {
			name := routing.NewHeaderName(h.Name)
			add(TokenLocation{Place: InHeader, Name: name.String(), prefix: h.Prefix, header: name}, p.Issuer)
		}
		for _, name := range params {
			add(TokenLocation{Place: InQuery, Name: name}, p.Issuer)
		}
		for _, name := range p.Cookies {
			add(TokenLocation{Place: InCookie, Name: name}, p.Issuer)
		}
	}
	out := make([]*TokenLocation, 0, len(byKey))
	for _, l := range byKey {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *TokenLocation) int { return strings.Compare(a.key(), b.key()) })
	return out
}

// presented appends every token that the request has at the locations.
func presented(r *AccessRequest, locations []*TokenLocation, out []presentedToken) []presentedToken {
	for _, l := range locations {
		switch l.Place {
		case InHeader:
			for _, value := range l.header.In(r.Header, r.Form) {
				at := strings.Index(value, l.prefix)
				if at < 0 {
					continue
				}
				token := value
				if l.prefix != "" {
					// What stands between the prefix and the token, as `="`, is not part of it.
					token = strings.TrimLeftFunc(value[at+len(l.prefix):], func(c rune) bool {
						return c > 0x7f || pathBytes[byte(c)] != pathUnreserved || c == '~'
					})
				}
				out = append(out, presentedToken{token, l})
			}
		case InQuery:
			for pair := range strings.SplitSeq(r.RawQuery, "&") {
				name, value, _ := strings.Cut(pair, "=")
				if unescapeQuery(name) == l.Name {
					out = append(out, presentedToken{unescapeQuery(value), l})
				}
			}
		case InCookie:
			for _, line := range cookieHeader.In(r.Header, r.Form) {
				for pair := range strings.SplitSeq(line, ";") {
					name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
					if ok && name == l.Name {
						out = append(out, presentedToken{strings.Trim(value, `"`), l})
					}
				}
			}
		}
	}
	return out
}

// unescapeQuery undoes the escapes of a query; what is not a valid escape stays.
func unescapeQuery(s string) string {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s
	}
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return s
}
