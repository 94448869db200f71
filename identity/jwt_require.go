package identity

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

type requireKind uint8

const (
	requireUnset requireKind = iota
	requireProvider
	requireAny
	requireAll
	requireAllowMissing
	requireAllowFailed
)

// Requirement says which tokens a request must have
// (envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement). The zero value is
// not a requirement and is refused.
type Requirement struct {
	kind      requireKind
	name      string
	audiences []string
	parts     []Requirement

	provider  *JWTProvider
	locations []*TokenLocation
	beside    bool // it stands beside providers in a list of alternatives
}

// RequireProvider asks for a token of the provider. Every token that comes in
// its places must be good. Audiences, if given, stand in for the provider's own.
func RequireProvider(name string, audiences ...string) Requirement {
	return Requirement{kind: requireProvider, name: name, audiences: audiences}
}

// RequireAny asks that one of the requirements is fulfilled, tried in order.
func RequireAny(parts ...Requirement) Requirement {
	return Requirement{kind: requireAny, parts: parts}
}

// RequireAll asks that all of the requirements are fulfilled.
func RequireAll(parts ...Requirement) Requirement {
	return Requirement{kind: requireAll, parts: parts}
}

// AllowMissing is fulfilled by a request without tokens. Among alternatives
// beside providers, it is also fulfilled where all tokens in those providers'
// places are good; else it looks at the places of all providers, and the token
// in the first of them must be good, as in Envoy.
func AllowMissing() Requirement { return Requirement{kind: requireAllowMissing} }

// AllowMissingOrFailed is fulfilled by every request. Good tokens count, bad ones are as none.
func AllowMissingOrFailed() Requirement { return Requirement{kind: requireAllowFailed} }

// JWTRule says what requests of a kind must have. The first rule that fits a request counts.
type JWTRule struct {
	Match    routing.Match
	Template *routing.Template // a further condition on the path; nil means none
	// Requires is what is asked for; nil means nothing.
	Requires *Requirement
}

// JWTConfig is what NewJWTAuthenticator takes.
type JWTConfig struct {
	Providers []JWTProvider
	Rules     []JWTRule
	// BypassPreflight lets CORS preflight requests through without a token:
	// browsers send none with them.
	BypassPreflight bool
}

// JWTAuthenticator verifies the tokens of requests. It is immutable.
type JWTAuthenticator struct {
	providers []*JWTProvider
	rules     []JWTRule
	preflight bool
	outputs   []string
}

// NewJWTAuthenticator checks and compiles a configuration. Two providers of one
// name, a requirement that names no provider or is not set, and an empty list of
// requirements are errors.
func NewJWTAuthenticator(c JWTConfig) (*JWTAuthenticator, error) {
	a := &JWTAuthenticator{preflight: c.BypassPreflight}
	byName := make(map[string]*JWTProvider)
	for i := range c.Providers {
		p := c.Providers[i]
		if byName[p.Name] != nil {
			return nil, fmt.Errorf("two providers are named %q", p.Name)
		}
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("provider %q: %w", p.Name, err)
		}
		byName[p.Name] = &p
		a.providers = append(a.providers, &p)
		if p.PayloadHeader != "" {
			a.outputs = append(a.outputs, strings.ToLower(p.PayloadHeader))
		}
		for _, h := range p.ClaimHeaders {
			a.outputs = append(a.outputs, strings.ToLower(h.Header))
		}
	}
	slices.Sort(a.outputs)
	a.outputs = slices.Compact(a.outputs)
	for i, rule := range c.Rules {
		if rule.Requires != nil {
			compiled, err := a.compile(*rule.Requires, byName, 0)
			if err != nil {
				return nil, fmt.Errorf("rule %d: %w", i, err)
			}
			rule.Requires = &compiled
		}
		a.rules = append(a.rules, rule)
	}
	return a, nil
}

func (a *JWTAuthenticator) compile(q Requirement, byName map[string]*JWTProvider, depth int) (Requirement, error) {
	if depth > maxConditionDepth {
		return q, fmt.Errorf("requirements are nested more than %d deep", maxConditionDepth)
	}
	switch q.kind {
	case requireProvider:
		q.provider = byName[q.name]
		if q.provider == nil {
			return q, fmt.Errorf("no provider is named %q", q.name)
		}
		if len(q.audiences) == 0 {
			q.audiences = q.provider.Audiences
		}
		q.locations = tokenLocations([]*JWTProvider{q.provider})
	case requireAny, requireAll:
		if len(q.parts) == 0 {
			return q, fmt.Errorf("a list of requirements is empty")
		}
		parts := make([]Requirement, len(q.parts))
		for i := range q.parts {
			var err error
			if parts[i], err = a.compile(q.parts[i], byName, depth+1); err != nil {
				return q, err
			}
		}
		q.parts = parts
		if q.kind == requireAny {
			// Asking for nothing is the last resort, so that a good token counts before
			// it, and it looks at the places of the providers beside it only.
			slices.SortStableFunc(q.parts, func(x, y Requirement) int { return x.last() - y.last() })
			var beside []*JWTProvider
			for i := range q.parts {
				if p := q.parts[i].provider; p != nil {
					beside = append(beside, p)
				} else if q.parts[i].last() > 0 && len(beside) > 0 {
					q.parts[i].locations, q.parts[i].beside = tokenLocations(beside), true
				}
			}
		}
	case requireAllowMissing, requireAllowFailed:
		q.locations = tokenLocations(a.providers)
	default:
		return q, fmt.Errorf("a requirement is not set")
	}
	return q, nil
}

func (q *Requirement) last() int {
	switch q.kind {
	case requireAllowMissing:
		return 1
	case requireAllowFailed:
		return 2
	}
	return 0
}

// OutputHeaders returns the lower-case names of headers that pass claims on. They must
// be removed from every request before Authenticate's are set: a client could forge them.
func (a *JWTAuthenticator) OutputHeaders() []string { return a.outputs }

// Providers returns the providers, whose keys the caller may have to supply.
func (a *JWTAuthenticator) Providers() []*JWTProvider { return a.providers }

// AcceptedToken is a good token of a request and where it came.
type AcceptedToken struct {
	*VerifiedToken
	At *TokenLocation
}

// JWTResult is what became of a request's tokens.
type JWTResult struct {
	// Status is JWTOk if the request may go on.
	Status JWTStatus
	// Tokens are those that are good, in the order in which they were verified.
	Tokens []AcceptedToken
	// Failure is what was wrong with the first bad token, though the request may go on; JWTOk if there was none.
	Failure JWTStatus
}

// Claims returns the claims that conditions look at, those of the last good token; nil if there is none.
func (r *JWTResult) Claims() *Claims {
	if len(r.Tokens) == 0 {
		return nil
	}
	return r.Tokens[len(r.Tokens)-1].Claims
}

// JWTState is what a caller keeps between requests.
type JWTState struct {
	// Keys returns the present keys of a provider that has none of its own;
	// nil means that they could not be had, and its tokens are refused.
	Keys func(p *JWTProvider) *KeySet
	// Tokens remembers what was verified; nil means that every token is verified anew.
	Tokens TokenStore
}

// Authenticate verifies the tokens of a request by the first rule that fits it.
// now is the present time.
func (a *JWTAuthenticator) Authenticate(r *AccessRequest, now time.Time, state *JWTState) JWTResult {
	var result JWTResult
	if a.preflight && isPreflight(r) {
		return result
	}
	for i := range a.rules {
		rule := &a.rules[i]
		if !rule.Match.Matches(&r.Request, 0) || rule.Template != nil && !rule.Template.Fits(r.Path) {
			continue
		}
		if rule.Requires != nil {
			run := jwtRun{a: a, r: r, now: now, state: state, result: &result}
			result.Status = run.require(rule.Requires)
		}
		break
	}
	return result
}

var (
	originHeader           = routing.NewHeaderName("origin")
	preflightRequestMethod = routing.NewHeaderName("access-control-request-method")
)

func isPreflight(r *AccessRequest) bool {
	return r.Method == "OPTIONS" && len(originHeader.In(r.Header, r.Form)) > 0 && len(preflightRequestMethod.In(r.Header, r.Form)) > 0
}

type jwtRun struct {
	a      *JWTAuthenticator
	r      *AccessRequest
	now    time.Time
	state  *JWTState
	result *JWTResult
}

func (run *jwtRun) require(q *Requirement) JWTStatus {
	switch q.kind {
	case requireAll:
		for i := range q.parts {
			if status := run.require(&q.parts[i]); status != JWTOk {
				return status
			}
		}
		return JWTOk
	case requireAny:
		failed := JWTMissing
		for i := range q.parts {
			status := run.require(&q.parts[i])
			if status == JWTOk {
				return JWTOk
			}
			if telling(status) > telling(failed) {
				failed = status
			}
		}
		return failed
	}
	var room [4]presentedToken
	tokens := presented(run.r, q.locations, room[:0])
	status := JWTOk
	if len(tokens) == 0 && q.kind == requireProvider {
		status = JWTMissing
	}
	for i := range tokens {
		s := run.token(q, &tokens[i])
		if s != JWTOk && run.result.Failure == JWTOk {
			run.result.Failure = s
		}
		switch {
		case s == JWTOk || q.kind == requireAllowFailed:
		case q.kind == requireAllowMissing && !q.beside:
			if i == 0 {
				status = s
			}
		default:
			return s
		}
	}
	return status
}

// telling ranks the reasons of several alternatives: that a token is bad says
// more than that it is another's, and that more than that there is none.
func telling(s JWTStatus) int {
	switch s {
	case JWTMissing:
		return 0
	case JWTUnknownIssuer:
		return 1
	default:
		return 2
	}
}

func (run *jwtRun) token(q *Requirement, t *presentedToken) JWTStatus {
	if len(t.token) > MaxTokenLength {
		return JWTBadFormat
	}
	p, audiences := q.provider, q.audiences
	if p == nil {
		parts, status := parseToken(t.token, nil)
		if status != JWTOk {
			return status
		}
		if p = run.a.byIssuer(parts.claims.Issuer); p == nil || !t.at.takes(parts.claims.Issuer) {
			return JWTUnknownIssuer
		}
		audiences = p.Audiences
	}
	keys := p.Keys
	if keys == nil && run.state != nil && run.state.Keys != nil {
		keys = run.state.Keys(p)
	}
	token, status := run.verify(p, t.token, audiences, keys)
	if status != JWTOk {
		return status
	}
	for _, known := range run.result.Tokens {
		if known.VerifiedToken == token || known.provider == p && known.payload == token.payload && known.At == t.at {
			return JWTOk
		}
	}
	run.result.Tokens = append(run.result.Tokens, AcceptedToken{token, t.at})
	return JWTOk
}

func (run *jwtRun) verify(p *JWTProvider, token string, audiences []string, keys *KeySet) (*VerifiedToken, JWTStatus) {
	if run.state == nil || run.state.Tokens == nil {
		return p.verify(token, audiences, keys, run.now)
	}
	key := NewTokenKey(p, token)
	if known := run.state.Tokens.Get(key); known != nil && known.Usable(keys, run.now) {
		// The audience depends on the requirement, all else on the provider.
		if !known.Claims.fitsAudience(audiences) {
			return nil, JWTAudienceRefused
		}
		return known, JWTOk
	}
	verified, status := p.verify(token, audiences, keys, run.now)
	if status == JWTOk {
		run.state.Tokens.Put(key, verified)
	}
	return verified, status
}

// byIssuer returns the first provider of the issuer, else the first of any issuer.
func (a *JWTAuthenticator) byIssuer(issuer string) *JWTProvider {
	var open *JWTProvider
	for _, p := range a.providers {
		if p.Issuer == issuer && issuer != "" {
			return p
		}
		if p.Issuer == "" && open == nil {
			open = p
		}
	}
	return open
}
