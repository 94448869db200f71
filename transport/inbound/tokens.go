package inbound

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/routing"
)

// tokens verifies what tokens the request carries, passes their claims on and
// takes them out of the request unless policy forwards them.
func (run *admission) tokens() error {
	r, p := run.r, run.chain.policy.Tokens
	result := run.e.keys.authenticate(run.ctx, p, &r.Access, run.now, run.l.live.tokens)
	if result.Status != identity.JWTOk {
		return run.tokenRefused(result.Status)
	}
	for i := range result.Tokens {
		t := &result.Tokens[i]
		if !t.Provider().Forward {
			run.removeToken(t.At)
		}
		for _, h := range t.Headers() {
			r.setHeader(h.Header, headerValue(h.Claim), false)
		}
	}
	r.Access.Claims = result.Claims()
	run.a.Claims = r.Access.Claims
	return nil
}

// headerValue is a claim's text as one header line can carry it: a claim is
// what an issuer was told, and must not end the line.
func headerValue(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' && c != '\t' || c == 0x7f {
			return ' '
		}
		return c
	}, s)
}

// tokenRefused answers as Envoy does: the reason in words, and WWW-Authenticate
// with the request's URI as the realm (RFC 6750, 3), without its query, which may hold the token.
func (run *admission) tokenRefused(status identity.JWTStatus) error {
	d := run.denied(ReasonToken, status.HTTPStatus(), status.String(), tokenMessage(status))
	x := &run.r.Access
	path := x.Path
	const longest = 256
	if len(path) > longest {
		path = path[:longest]
	}
	challenge := `Bearer realm="` + quoted(x.Scheme+"://"+x.Authority+path) + `"`
	if status != identity.JWTMissing {
		challenge += `, error="invalid_token"`
	}
	d.Header = []Header{{"WWW-Authenticate", challenge}}
	return d
}

// quoted makes a text fit for a quoted string of a header.
func quoted(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return '_'
		}
		return c
	}, s)
}

// tokenMessage is what the caller is told, in Envoy's words.
func tokenMessage(s identity.JWTStatus) string {
	switch s {
	case identity.JWTMissing:
		return "Jwt is missing"
	case identity.JWTBadFormat:
		return "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	case identity.JWTBadAlgorithm:
		return "Jwt header [alg] is not supported"
	case identity.JWTUnknownIssuer:
		return "Jwt issuer is not configured"
	case identity.JWTNotYetValid:
		return "Jwt not yet valid"
	case identity.JWTExpired:
		return "Jwt is expired"
	case identity.JWTAudienceRefused:
		return "Audiences in Jwt are not allowed"
	case identity.JWTKeysUnavailable:
		return "Jwks remote fetch is failed"
	case identity.JWTNoValidKeys:
		return "Jwks doesn't have any valid public key"
	case identity.JWTNoKeyFits:
		return "Jwks doesn't have key to match kid or alg from Jwt"
	default:
		return "Jwt verification fails"
	}
}

// removeToken takes a token out of the request: the whole header, each
// parameter of the name, the cookie.
func (run *admission) removeToken(at *identity.TokenLocation) {
	r := run.r
	switch at.Place {
	case identity.InHeader:
		r.remove(http.CanonicalHeaderKey(at.Name), strings.ToLower(at.Name))
	case identity.InQuery:
		if rest, changed := withoutParameter(r.Access.RawQuery, at.Name); changed {
			r.Access.RawQuery, run.a.QueryChanged = rest, true
		}
	case identity.InCookie:
		r.removeCookie(at.Name)
	}
}

// withoutParameter takes all parameters of a name out of a query.
func withoutParameter(query, name string) (string, bool) {
	kept, changed := make([]string, 0, 8), false
	for pair := range strings.SplitSeq(query, "&") {
		key, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(key); err == nil {
			key = plain
		}
		if key == name {
			changed = true
		} else {
			kept = append(kept, pair)
		}
	}
	if !changed {
		return query, false
	}
	return strings.Join(kept, "&"), true
}

// removeCookie takes the cookies of a name out of the request.
func (r *Request) removeCookie(name string) {
	lines := cookieHeader.In(r.Access.Header, r.Access.Form)
	var out []string
	changed := false
	for _, line := range lines {
		var kept []string
		for pair := range strings.SplitSeq(line, ";") {
			pair = strings.TrimSpace(pair)
			if key, _, _ := strings.Cut(pair, "="); strings.TrimSpace(key) == name {
				changed = true
			} else if pair != "" {
				kept = append(kept, pair)
			}
		}
		if len(kept) > 0 {
			out = append(out, strings.Join(kept, "; "))
		}
	}
	if !changed {
		return
	}
	key := "Cookie"
	if r.Access.Form == routing.LowerHeaders {
		key = "cookie"
	}
	if len(out) == 0 {
		delete(r.header(), key)
		return
	}
	r.header()[key] = out
}
