package identity

import (
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"github.com/sinew-mesh/sinew/routing"
)

// MaxTokenLength is the longest token that is read, in bytes.
const MaxTokenLength = 8 << 10

// DefaultClockSkew is how far an issuer's clock may be from ours (Envoy: 60 s).
const DefaultClockSkew = 60 * time.Second

// JWTStatus says what became of a request's tokens. The names are Envoy's.
type JWTStatus uint8

const (
	JWTOk                JWTStatus = iota
	JWTMissing                     // there is no token
	JWTBadFormat                   // it is not a compact JWS of a JSON object, or too long
	JWTBadAlgorithm                // it is signed in a way that is not accepted
	JWTUnknownIssuer               // its issuer is not the provider's, or not one for the place it came in
	JWTNotYetValid                 // its nbf is to come
	JWTExpired                     // its exp is past
	JWTLifetime                    // it has no exp, or one too far away, where the provider minds
	JWTAudienceRefused             // it is meant for others
	JWTSubjectRefused              // its subject does not match
	JWTKeysUnavailable             // the issuer's keys could not be had
	JWTNoValidKeys                 // the issuer has no usable keys
	JWTNoKeyFits                   // none of the keys has the token's key ID and algorithm
	JWTSignatureMismatch           // no key verifies the signature
)

// String returns Envoy's name of the status.
func (s JWTStatus) String() string {
	switch s {
	case JWTOk:
		return "Ok"
	case JWTMissing:
		return "JwtMissed"
	case JWTBadFormat:
		return "JwtBadFormat"
	case JWTBadAlgorithm:
		return "JwtHeaderNotImplementedAlg"
	case JWTUnknownIssuer:
		return "JwtUnknownIssuer"
	case JWTNotYetValid:
		return "JwtNotYetValid"
	case JWTExpired:
		return "JwtExpired"
	case JWTAudienceRefused:
		return "JwtAudienceNotAllowed"
	case JWTKeysUnavailable:
		return "JwksFetchFail"
	case JWTNoValidKeys:
		return "JwksNoValidKeys"
	case JWTNoKeyFits:
		return "JwksKidAlgMismatch"
	default:
		return "JwtVerificationFail"
	}
}

// HTTPStatus returns what a refused request is answered with: 403 where the
// token is good but meant for others, else 401; 0 where nothing is refused.
func (s JWTStatus) HTTPStatus() int {
	switch s {
	case JWTOk:
		return 0
	case JWTAudienceRefused:
		return 403
	default:
		return 401
	}
}

// TokenHeader is a header that tokens come in, behind a prefix such as
// "Bearer ". An empty prefix takes the whole value.
type TokenHeader struct{ Name, Prefix string }

// ClaimHeader has a claim passed on in a header. Claim is a dotted name.
type ClaimHeader struct{ Header, Claim string }

// JWTProvider says whose tokens are accepted, where they come and what is passed
// on (envoy.extensions.filters.http.jwt_authn.v3.JwtProvider).
type JWTProvider struct {
	// Name is what requirements call the provider.
	Name string
	// Issuer is the token's "iss"; "" accepts any.
	Issuer string
	// Audiences are those of which the token's "aud" must have one; none means that it is not looked at.
	Audiences []string
	// Subject is a condition on "sub"; nil means none.
	Subject *routing.StringMatch
	// ClockSkew is the tolerance for "exp" and "nbf". NewJWTAuthenticator puts
	// DefaultClockSkew where it is 0; negative means none.
	ClockSkew time.Duration
	// RequireExpiration refuses tokens without "exp".
	RequireExpiration bool
	// MaxLifetime is the longest time that a token may have left, and refuses
	// tokens without "exp"; 0 means no limit.
	MaxLifetime time.Duration
	// Keys are keys that came with the configuration; nil means that the
	// caller of Authenticate supplies them.
	Keys *KeySet

	// Headers, Params (of the query) and Cookies are where tokens come. If there
	// is none of them: "Authorization: Bearer" and the parameter access_token.
	Headers []TokenHeader
	Params  []string
	Cookies []string

	// Forward leaves the token in the request; else it is to be removed.
	Forward bool
	// PayloadHeader passes on the token's payload, in base64url as it came; "" means not.
	PayloadHeader string
	// PadPayload pads that header's value with "=".
	PadPayload bool
	// ClaimHeaders pass on claims.
	ClaimHeaders []ClaimHeader
	// SpaceDelimited are the names of claims whose text is a list of words, such as "scope".
	SpaceDelimited []string
}

// VerifiedToken is a token that has passed all that its provider asks.
type VerifiedToken struct {
	Claims *Claims

	provider *JWTProvider
	keys     *KeySet
	payload  string
}

// Provider returns whose token it is.
func (t *VerifiedToken) Provider() *JWTProvider { return t.provider }

// Payload returns the token's payload as PayloadHeader carries it.
func (t *VerifiedToken) Payload() string {
	if pad := len(t.payload) % 4; t.provider.PadPayload && pad != 0 {
		return t.payload + "==="[:4-pad]
	}
	return t.payload
}

// Headers returns the headers that pass the token's payload and claims on.
func (t *VerifiedToken) Headers() []ClaimHeader {
	var out []ClaimHeader
	if t.provider.PayloadHeader != "" {
		out = append(out, ClaimHeader{t.provider.PayloadHeader, t.Payload()})
	}
	for _, h := range t.provider.ClaimHeaders {
		if v, ok := t.Claims.Text(h.Claim); ok {
			out = append(out, ClaimHeader{h.Header, v})
		}
	}
	return out
}

// tokenParts is a token taken apart, with nothing of it verified.
type tokenParts struct {
	algorithm, keyID string
	payload          string // still in base64url
	claims           *Claims
}

// parseToken takes a compact JWS apart (RFC 7515, 7.1).
func parseToken(token string, spaceDelimited []string) (tokenParts, JWTStatus) {
	var p tokenParts
	if len(token) > MaxTokenLength {
		return p, JWTBadFormat
	}
	for i := 0; i < len(token); i++ {
		// base64 of Go skips line ends; a token has none.
		if c := token[i]; pathBytes[c] != pathUnreserved || c == '~' {
			return p, JWTBadFormat
		}
	}
	head, rest, ok := strings.Cut(token, ".")
	payload, signature, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || head == "" || payload == "" || signature == "" || strings.IndexByte(signature, '.') >= 0 {
		return p, JWTBadFormat
	}
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return p, JWTBadFormat
	}
	var header struct {
		Alg  string          `json:"alg"`
		Kid  string          `json:"kid"`
		Crit json.RawMessage `json:"crit"`
		B64  json.RawMessage `json:"b64"`
	}
	// Extensions that must be understood are not; keys that the header brings are not looked at.
	if err := json.Unmarshal(raw, &header); err != nil || header.Crit != nil || header.B64 != nil {
		return p, JWTBadFormat
	}
	if !slices.Contains(tokenAlgorithms, jose.SignatureAlgorithm(header.Alg)) {
		return p, JWTBadAlgorithm
	}
	if raw, err = base64.RawURLEncoding.DecodeString(payload); err != nil {
		return p, JWTBadFormat
	}
	claims, err := parseClaims(raw, spaceDelimited)
	if err != nil {
		return p, JWTBadFormat
	}
	return tokenParts{algorithm: header.Alg, keyID: header.Kid, payload: payload, claims: claims}, JWTOk
}

// Verify verifies a token with a key set; nil means that the issuer's keys
// could not be had, and nothing is accepted then. It checks in Envoy's order:
// issuer, time, audience, subject, signature. now is the present time.
func (p *JWTProvider) Verify(token string, keys *KeySet, now time.Time) (*VerifiedToken, JWTStatus) {
	return p.verify(token, p.Audiences, keys, now)
}

func (p *JWTProvider) verify(token string, audiences []string, keys *KeySet, now time.Time) (*VerifiedToken, JWTStatus) {
	parts, status := parseToken(token, p.SpaceDelimited)
	if status != JWTOk {
		return nil, status
	}
	if p.Issuer != "" && parts.claims.Issuer != p.Issuer {
		return nil, JWTUnknownIssuer
	}
	if status := p.checkTime(parts.claims, now); status != JWTOk {
		return nil, status
	}
	if !parts.claims.fitsAudience(audiences) {
		return nil, JWTAudienceRefused
	}
	if p.Subject != nil && !p.Subject.Matches(parts.claims.Subject) {
		return nil, JWTSubjectRefused
	}
	if status := keys.verify(token, &parts); status != JWTOk {
		return nil, status
	}
	return &VerifiedToken{Claims: parts.claims, provider: p, keys: keys, payload: parts.payload}, JWTOk
}

func (p *JWTProvider) checkTime(c *Claims, now time.Time) JWTStatus {
	skew := max(int64(p.ClockSkew/time.Second), 0)
	at := now.Unix()
	if c.notBefore > addSeconds(at, skew) {
		return JWTNotYetValid
	}
	if c.expires == 0 {
		if p.RequireExpiration || p.MaxLifetime > 0 {
			return JWTLifetime
		}
		return JWTOk
	}
	if at > addSeconds(c.expires, skew) {
		return JWTExpired
	}
	if p.MaxLifetime > 0 && c.expires > addSeconds(at, int64(p.MaxLifetime/time.Second)) {
		return JWTLifetime
	}
	return JWTOk
}

// addSeconds adds without running over; b is not negative.
func addSeconds(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func (s *KeySet) verify(token string, parts *tokenParts) JWTStatus {
	if s == nil {
		return JWTKeysUnavailable
	}
	if len(s.keys) == 0 {
		return JWTNoValidKeys
	}
	var signed *jose.JSONWebSignature
	for i := range s.keys {
		if !s.keys[i].fits(parts.algorithm, parts.keyID) {
			continue
		}
		if signed == nil {
			var err error
			signed, err = jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(parts.algorithm)})
			if err != nil {
				return JWTBadFormat
			}
		}
		if _, err := signed.Verify(s.keys[i].public); err == nil {
			return JWTOk
		}
	}
	if signed == nil {
		return JWTNoKeyFits
	}
	return JWTSignatureMismatch
}

// check fills in defaults and says what is wrong with the provider.
func (p *JWTProvider) check() error {
	for _, h := range p.Headers {
		if h.Name == "" || h.Name[0] == ':' {
			return fmt.Errorf("header %q can not carry a token", h.Name)
		}
	}
	for _, h := range p.ClaimHeaders {
		if h.Header == "" || h.Header[0] == ':' || h.Claim == "" {
			return fmt.Errorf("claim %q can not be passed on in header %q", h.Claim, h.Header)
		}
	}
	for _, a := range p.Audiences {
		if a == "" {
			return fmt.Errorf("an audience is empty")
		}
	}
	if p.MaxLifetime < 0 {
		return fmt.Errorf("the longest lifetime %s is negative", p.MaxLifetime)
	}
	if p.ClockSkew == 0 {
		p.ClockSkew = DefaultClockSkew
	}
	return nil
}
