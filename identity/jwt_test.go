package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sinew-mesh/sinew/routing"
)

func keySet(t testing.TB, doc string) *KeySet {
	t.Helper()
	s, err := ParseKeySet([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func authenticator(t testing.TB, c JWTConfig) *JWTAuthenticator {
	t.Helper()
	a, err := NewJWTAuthenticator(c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// jwtRequest makes a request of header pairs; ":path" and ":method" among them.
func jwtRequest(pairs [][2]string) *AccessRequest {
	r := &AccessRequest{Request: routing.Request{Method: "GET", Path: "/", Header: map[string][]string{}, Form: routing.LowerHeaders}}
	for _, p := range pairs {
		switch name := strings.ToLower(p[0]); name {
		case ":path":
			r.Path, r.RawQuery, _ = strings.Cut(p[1], "?")
		case ":method":
			r.Method = p[1]
		default:
			r.Header[name] = append(r.Header[name], p[1])
		}
	}
	return r
}

var (
	testRSA              = mustKey(rsa.GenerateKey(rand.Reader, 2048))
	testEC               = mustKey(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	evilRSA              = mustKey(rsa.GenerateKey(rand.Reader, 2048))
	testEdPub, testEd, _ = ed25519.GenerateKey(rand.Reader)
)

func mustKey[K any](k K, err error) K {
	if err != nil {
		panic(err)
	}
	return k
}

func testKeys(t testing.TB) *KeySet {
	t.Helper()
	s, err := NewKeySet(map[string]crypto.PublicKey{"r": &testRSA.PublicKey, "e": &testEC.PublicKey, "d": testEdPub})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testToken is a token to be made. The zero value is signed with testRSA.
type testToken struct {
	header    map[string]any
	claims    map[string]any
	payload   string
	algorithm jose.SignatureAlgorithm
	key       any
}

func (c testToken) sign(t testing.TB) string {
	t.Helper()
	if c.key == nil {
		c.key, c.algorithm = testRSA, jose.RS256
	}
	options := &jose.SignerOptions{}
	for k, v := range c.header {
		options.WithHeader(jose.HeaderKey(k), v)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: c.algorithm, Key: c.key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload := []byte(c.payload)
	if c.payload == "" {
		payload, _ = json.Marshal(c.claims)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	s, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerifyToken(t *testing.T) {
	now := recordedTime.Unix()
	good := map[string]any{"iss": "i", "sub": "s", "aud": []string{"a", "b"}, "exp": now + 10}
	with := func(name string, v any) map[string]any {
		m := map[string]any{}
		for k, v := range good {
			m[k] = v
		}
		m[name] = v
		return m
	}
	subject := routing.Prefix("s", false)
	for _, c := range []struct {
		name     string
		token    testToken
		provider JWTProvider
		want     JWTStatus
	}{
		{"good", testToken{claims: good}, JWTProvider{Issuer: "i", Audiences: []string{"b"}, Subject: &subject}, JWTOk},
		{"EC", testToken{claims: good, algorithm: jose.ES256, key: testEC, header: map[string]any{"kid": "e"}}, JWTProvider{}, JWTOk},
		{"Ed25519", testToken{claims: good, algorithm: jose.EdDSA, key: testEd}, JWTProvider{}, JWTOk},
		{"PSS", testToken{claims: good, algorithm: jose.PS256, key: testRSA}, JWTProvider{}, JWTOk},
		{"key ID of another kind of key", testToken{claims: good, header: map[string]any{"kid": "e"}}, JWTProvider{}, JWTNoKeyFits},
		{"unknown key ID", testToken{claims: good, header: map[string]any{"kid": "x"}}, JWTProvider{}, JWTNoKeyFits},
		{"another's key", testToken{claims: good, key: evilRSA, algorithm: jose.RS256}, JWTProvider{}, JWTSignatureMismatch},
		{"issuer", testToken{claims: good}, JWTProvider{Issuer: "I"}, JWTUnknownIssuer},
		{"issuer missing", testToken{claims: map[string]any{"sub": "s"}}, JWTProvider{Issuer: "i"}, JWTUnknownIssuer},
		{"issuer not a text", testToken{claims: with("iss", 1)}, JWTProvider{}, JWTBadFormat},
		{"audience", testToken{claims: good}, JWTProvider{Audiences: []string{"c"}}, JWTAudienceRefused},
		{"audience spelled as an address", testToken{claims: with("aud", "https://a/")}, JWTProvider{Audiences: []string{"http://a"}}, JWTOk},
		{"audience with a number", testToken{claims: with("aud", []any{1})}, JWTProvider{}, JWTBadFormat},
		{"subject", testToken{claims: with("sub", "t")}, JWTProvider{Subject: &subject}, JWTSubjectRefused},
		{"expired within the skew", testToken{claims: with("exp", now-60)}, JWTProvider{}, JWTOk},
		{"expired", testToken{claims: with("exp", now-61)}, JWTProvider{}, JWTExpired},
		{"expired, no skew", testToken{claims: with("exp", now-1)}, JWTProvider{ClockSkew: -1}, JWTExpired},
		{"not yet within the skew", testToken{claims: with("nbf", now+60)}, JWTProvider{}, JWTOk},
		{"not yet", testToken{claims: with("nbf", now+61)}, JWTProvider{}, JWTNotYetValid},
		{"far nbf", testToken{payload: `{"nbf":9223372036854775807}`}, JWTProvider{}, JWTNotYetValid},
		{"huge exp", testToken{payload: `{"exp":1e300}`}, JWTProvider{}, JWTOk},
		{"negative exp", testToken{payload: `{"exp":-1}`}, JWTProvider{}, JWTBadFormat},
		{"exp as a text", testToken{payload: `{"exp":"1"}`}, JWTProvider{}, JWTBadFormat},
		{"no exp", testToken{payload: `{}`}, JWTProvider{RequireExpiration: true}, JWTLifetime},
		{"no exp, limited lifetime", testToken{payload: `{}`}, JWTProvider{MaxLifetime: time.Hour}, JWTLifetime},
		{"long exp", testToken{claims: with("exp", now+3601)}, JWTProvider{MaxLifetime: time.Hour}, JWTLifetime},
		{"two issuers", testToken{payload: `{"iss":"i","iss":"j"}`}, JWTProvider{}, JWTBadFormat},
		{"issuer in other letter case", testToken{payload: `{"ISS":"i"}`}, JWTProvider{Issuer: "i"}, JWTUnknownIssuer},
		{"two documents", testToken{payload: `{}{}`}, JWTProvider{}, JWTBadFormat},
		{"a list", testToken{payload: `[]`}, JWTProvider{}, JWTBadFormat},
		{"null", testToken{payload: `null`}, JWTProvider{}, JWTBadFormat},
		{"long", testToken{claims: with("x", strings.Repeat("x", MaxTokenLength))}, JWTProvider{}, JWTBadFormat},
	} {
		p := c.provider
		if err := p.check(); err != nil {
			t.Fatal(err)
		}
		if _, got := p.Verify(c.token.sign(t), testKeys(t), recordedTime); got != c.want {
			t.Errorf("%s: %v (%d), want %v (%d)", c.name, got, got, c.want, c.want)
		}
	}
	p := JWTProvider{}
	if _, got := p.Verify(testToken{claims: good}.sign(t), nil, recordedTime); got != JWTKeysUnavailable {
		t.Errorf("without keys: %v", got)
	}
}

func TestClaims(t *testing.T) {
	c, err := parseClaims([]byte(`{"iss":"i","sub":"s","scope":"a  b","n":{"m":{"l":["x",1]},"t":true},"big":12345678901234567890,"f":1.5,"z":null}`), []string{"scope", "absent", "n"})
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := c.Lookup("scope"); fmt.Sprint(v) != "[a b]" {
		t.Errorf("scope is %v", v)
	}
	for name, want := range map[string]string{"scope": "a  b", "big": "12345678901234567890", "f": "1.5", "n.t": "true", "n.m.l": base64.StdEncoding.EncodeToString([]byte(`["x",1]`))} {
		if got, ok := c.Text(name); !ok || got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"z", "n.x", "scope.x", "N", ""} {
		if got, ok := c.Text(name); ok {
			t.Errorf("%s is %q", name, got)
		}
	}
	if v, found := c.Lookup("z"); v != nil || !found {
		t.Error("null was not found")
	}
	var none *Claims
	if _, found := none.Lookup("a"); found || none.Principal() != "" {
		t.Error("there are claims where there is no token")
	}
	path := []string{"n", "m", "l"}
	if n := testing.AllocsPerRun(100, func() { c.Lookup(path...) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestKeySets(t *testing.T) {
	for name, doc := range map[string]string{
		"no JSON": "x", "no keys": `{}`, "none": `{"keys":[]}`,
		"shared secret":   `{"keys":[{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}`,
		"short RSA":       `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`,
		"for encryption":  `{"keys":[` + strings.Replace(jwkOf(t, &testRSA.PublicKey), "{", `{"use":"enc",`, 1) + `]}`,
		"private":         `{"keys":[` + jwkOf(t, testEC) + `]}`,
		"too many":        `{"keys":[` + strings.Repeat(`{},`, maxKeySetKeys) + `{}]}`,
		"too long":        strings.Repeat(" ", maxKeySetBytes) + "{}",
		"an unknown kind": `{"keys":[{"kty":"XYZ"}]}`,
	} {
		if _, err := ParseKeySet([]byte(doc)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	doc := `{"keys":[{"kty":"XYZ"},` + jwkOf(t, &testEC.PublicKey) + `,{"kty":"oct","k":"AAAA"}]}`
	if s, err := ParseKeySet([]byte(doc)); err != nil || s.Len() != 1 {
		t.Errorf("a set with one good key: %v, %v", s, err)
	}
}

func jwkOf(t *testing.T, key any) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAuthenticatorRefusesBadConfiguration(t *testing.T) {
	one := []JWTProvider{{Name: "p"}}
	for name, c := range map[string]JWTConfig{
		"two of one name": {Providers: []JWTProvider{{Name: "p"}, {Name: "p"}}},
		"unknown":         {Providers: one, Rules: []JWTRule{{Requires: requirement(RequireProvider("q"))}}},
		"unset":           {Providers: one, Rules: []JWTRule{{Requires: &Requirement{}}}},
		"unset within":    {Providers: one, Rules: []JWTRule{{Requires: requirement(RequireAny(AllowMissing(), Requirement{}))}}},
		"empty any":       {Providers: one, Rules: []JWTRule{{Requires: requirement(RequireAny())}}},
		"empty all":       {Providers: one, Rules: []JWTRule{{Requires: requirement(RequireAll())}}},
		"empty audience":  {Providers: []JWTProvider{{Audiences: []string{""}}}},
		"pseudo-header":   {Providers: []JWTProvider{{Headers: []TokenHeader{{Name: ":path"}}}}},
		"claim to :path":  {Providers: []JWTProvider{{ClaimHeaders: []ClaimHeader{{":path", "sub"}}}}},
		"lifetime":        {Providers: []JWTProvider{{MaxLifetime: -1}}},
	} {
		if _, err := NewJWTAuthenticator(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func requirement(q Requirement) *Requirement { return &q }

func TestAuthenticate(t *testing.T) {
	good := testToken{claims: map[string]any{"iss": "i", "sub": "s"}}.sign(t)
	other := testToken{claims: map[string]any{"iss": "j", "sub": "s"}}.sign(t)
	keys := testKeys(t)
	state := func() *JWTState {
		// The keys of one issuer can not be had; the other's tokens still hold.
		return &JWTState{Tokens: NewTokenCache(4), Keys: func(p *JWTProvider) *KeySet {
			if p.Issuer == "j" {
				return nil
			}
			return keys
		}}
	}
	config := JWTConfig{
		Providers: []JWTProvider{
			{Name: "i", Issuer: "i", Cookies: []string{"session"}, Params: []string{"t"}, PayloadHeader: "X-Payload"},
			{Name: "j", Issuer: "j", Headers: []TokenHeader{{"x-token", ""}}},
		},
		Rules: []JWTRule{{
			Match:    routing.Match{Path: routing.PathMatch{Value: "/a"}},
			Requires: requirement(RequireAny(AllowMissing(), RequireProvider("i"), RequireProvider("j"))),
		}},
		BypassPreflight: true,
	}
	a := authenticator(t, config)
	if !slices.Equal(a.OutputHeaders(), []string{"x-payload"}) {
		t.Errorf("headers to be removed: %v", a.OutputHeaders())
	}
	for _, c := range []struct {
		name   string
		pairs  [][2]string
		status JWTStatus
		tokens int
	}{
		{"nothing", [][2]string{{":path", "/a"}}, JWTOk, 0},
		{"no rule", [][2]string{{":path", "/b?t=x"}}, JWTOk, 0},
		{"query", [][2]string{{":path", "/a?x=1&t=" + good}}, JWTOk, 1},
		{"escaped query", [][2]string{{":path", "/a?%74=" + strings.ReplaceAll(good, ".", "%2E")}}, JWTOk, 1},
		{"query, second is bad", [][2]string{{":path", "/a?t=" + good + "&t=x"}}, JWTBadFormat, 1},
		{"cookie", [][2]string{{":path", "/a"}, {"cookie", "a=b; session=" + good}}, JWTOk, 1},
		{"quoted cookie", [][2]string{{":path", "/a"}, {"cookie", "x=y"}, {"cookie", `session="` + good + `"`}}, JWTOk, 1},
		{"no keys", [][2]string{{":path", "/a"}, {"x-token", other}}, JWTKeysUnavailable, 0},
		{"no keys for the other", [][2]string{{":path", "/a?t=" + good}, {"x-token", other}}, JWTOk, 1},
		{"in the other's place", [][2]string{{":path", "/a"}, {"x-token", good}}, JWTUnknownIssuer, 0},
		{"preflight", [][2]string{{":method", "OPTIONS"}, {":path", "/a?t=bad"}, {"origin", "x"}, {"access-control-request-method", "PUT"}}, JWTOk, 0},
		{"OPTIONS alone", [][2]string{{":method", "OPTIONS"}, {":path", "/a?t=bad"}, {"origin", "x"}}, JWTBadFormat, 0},
		{"long", [][2]string{{":path", "/a?t=" + strings.Repeat("a", MaxTokenLength+1)}}, JWTBadFormat, 0},
	} {
		s := state()
		for range 2 { // the second time from the cache
			got := a.Authenticate(jwtRequest(c.pairs), recordedTime, s)
			if got.Status != c.status || len(got.Tokens) != c.tokens {
				t.Errorf("%s: %v, %d tokens, want %v, %d", c.name, got.Status, len(got.Tokens), c.status, c.tokens)
			}
		}
	}
}

// TestTokensByForm: a rule for a form of path can not be stepped around by an odd byte.
func TestTokensByForm(t *testing.T) {
	template, err := routing.ParseTemplate("/a/*/b")
	if err != nil {
		t.Fatal(err)
	}
	a := authenticator(t, JWTConfig{Providers: []JWTProvider{{Name: "i", Issuer: "i"}}, Rules: []JWTRule{{
		Match: routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix}}, Template: template, Requires: requirement(RequireProvider("i")),
	}}})
	for path, want := range map[string]JWTStatus{"/a/x/b": JWTMissing, "/a/|\x7f \xff/b": JWTMissing, "/a/x/y/b": JWTOk, "/a//b": JWTOk} {
		if got := a.Authenticate(&AccessRequest{Request: routing.Request{Method: "GET", Path: path}}, recordedTime, nil); got.Status != want {
			t.Errorf("%q: %v, want %v", path, got.Status, want)
		}
	}
}

// TestCachedTokens: a token that was verified once is refused once it has
// expired, the issuer's keys have changed or can not be had.
func TestCachedTokens(t *testing.T) {
	token := testToken{claims: map[string]any{"iss": "i", "sub": "s", "aud": "a", "exp": recordedTime.Unix()}}.sign(t)
	here, there := RequireProvider("p", "a"), RequireProvider("p", "b")
	config := JWTConfig{Providers: []JWTProvider{{Name: "p", Issuer: "i"}}, Rules: []JWTRule{
		{Match: routing.Match{Path: routing.PathMatch{Value: "/here"}}, Requires: &here}, {Requires: &there},
	}}
	a := authenticator(t, config)
	keys := testKeys(t)
	state := &JWTState{Tokens: NewTokenCache(4), Keys: func(*JWTProvider) *KeySet { return keys }}
	ask := func(path string, after time.Duration) JWTStatus {
		return a.Authenticate(jwtRequest([][2]string{{":path", path}, {"authorization", "Bearer " + token}}), recordedTime.Add(after), state).Status
	}
	if s := ask("/here", 0); s != JWTOk {
		t.Fatal(s)
	}
	if s := ask("/there", 0); s != JWTAudienceRefused {
		t.Errorf("for another audience: %v", s)
	}
	if s := ask("/here", 61*time.Second); s != JWTExpired {
		t.Errorf("expired: %v", s)
	}
	keys = mustKey(NewKeySet(map[string]crypto.PublicKey{"x": &evilRSA.PublicKey}))
	if s := ask("/here", 0); s != JWTSignatureMismatch {
		t.Errorf("after the keys changed: %v", s)
	}
	keys = nil
	if s := ask("/here", 0); s != JWTKeysUnavailable {
		t.Errorf("without keys: %v", s)
	}
}

func TestTokenHeaderExtensionsAreRefused(t *testing.T) {
	for _, header := range []string{`{"alg":"RS256","crit":["b64"],"b64":true}`, `{"alg":"RS256","crit":[]}`, `{"alg":"RS256","b64":true}`, `{"alg":1}`, `{"alg":"RS256","kid":1}`} {
		if _, status := parseToken(base64.RawURLEncoding.EncodeToString([]byte(header))+".e30.AA", nil); status != JWTBadFormat {
			t.Errorf("%s: %v", header, status)
		}
	}
}

func TestTokenCache(t *testing.T) {
	keys := testKeys(t)
	p := &JWTProvider{Name: "p"}
	c := NewTokenCache(2)
	put := func(name string) TokenKey {
		k := NewTokenKey(p, name)
		c.Put(k, &VerifiedToken{provider: p, keys: keys, Claims: &Claims{expires: recordedTime.Unix()}})
		return k
	}
	first, second := put("1"), put("2")
	put("1")
	if c.Len() != 2 || c.Get(first) == nil || c.Get(second) == nil {
		t.Fatal("a token was forgotten though there was room")
	}
	put("3")
	if c.Len() != 2 || c.Get(first) != nil || c.Get(second) == nil {
		t.Error("not the oldest was forgotten")
	}
	for i := range 1000 {
		put(fmt.Sprint(i))
	}
	if c.Len() != 2 {
		t.Errorf("holds %d tokens, has room for 2", c.Len())
	}
	got := c.Get(NewTokenKey(p, "999"))
	if !got.Usable(keys, recordedTime) || got.Usable(keys, recordedTime.Add(time.Second)) || got.Usable(testKeys(t), recordedTime) {
		t.Error("Usable does not go by time and keys")
	}
	if c.Get(NewTokenKey(&JWTProvider{Name: "p"}, "999")) != nil {
		t.Error("a token of one provider is good for another")
	}
}

// TestForgedTokens: of several hundred tokens that a forger could make without a
// private key, none passes; a verifier that trusts the token's header takes many.
func TestForgedTokens(t *testing.T) {
	keys := testKeys(t)
	provider := JWTProvider{Issuer: "i", ClockSkew: DefaultClockSkew}
	b64 := base64.RawURLEncoding.EncodeToString
	claims := `{"iss":"i","sub":"admin"}`
	good := testToken{payload: `{"iss":"i","sub":"user"}`}.sign(t)
	parts := strings.Split(good, ".")
	evilJWK := jose.JSONWebKey{Key: &evilRSA.PublicKey, KeyID: "r"}
	var forged []string
	add := func(s string) { forged = append(forged, s) }
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "", "HS256", "HS384", "HS512", "hs256", "RS256", "rs256", "RS1", "ES256", "ES256K", "EdDSA", "PS256", "dir", "RSA-OAEP"} {
		for _, kid := range []string{"", `,"kid":"r"`, `,"kid":"e"`, `,"kid":"d"`, `,"kid":"../../dev/null"`, `,"kid":"' OR 1"`, `,"kid":"x"`} {
			head := b64([]byte(`{"alg":"` + alg + `"` + kid + `}`))
			for _, signature := range []string{"", "AA", parts[2]} {
				add(head + "." + b64([]byte(claims)) + "." + signature)
			}
		}
	}
	// The issuer's public key as a shared secret.
	pub := []byte(jwkOf(t, &testRSA.PublicKey))
	for _, secret := range [][]byte{pub, testRSA.N.Bytes(), []byte("secretsecretsecretsecretsecretse"), make([]byte, 64)} {
		for alg, size := range map[jose.SignatureAlgorithm]int{jose.HS256: 32, jose.HS384: 48, jose.HS512: 64} {
			if len(secret) >= size {
				add(testToken{payload: claims, algorithm: alg, key: secret}.sign(t))
			}
		}
	}
	for _, header := range []map[string]any{{"jwk": evilJWK}, {"jku": "https://evil"}, {"x5u": "https://evil"}, {"kid": "r", "jku": "https://evil"}, {"crit": []string{"x"}, "x": 1}, {"b64": false}} {
		add(testToken{payload: claims, algorithm: jose.RS256, key: evilRSA, header: header}.sign(t))
	}
	add(testToken{payload: claims, algorithm: jose.RS256, key: evilRSA}.sign(t))
	for _, s := range []string{
		parts[0] + "." + b64([]byte(claims)) + "." + parts[2], good + ".", "." + good, parts[0] + ".." + parts[2], good + "." + parts[2], good + "=", good + "\n", " " + good,
		parts[0] + "." + parts[1] + "\r\n." + parts[2], parts[0] + "." + parts[1] + "." + parts[2] + "AA",
		b64([]byte(`{"alg":"RS256","alg":"none"}`)) + "." + parts[1] + "." + parts[2],
		b64([]byte(`{"alg":"RS256","b64":false,"crit":["b64"]}`)) + "." + parts[1] + "." + parts[2],
	} {
		add(s)
	}
	raw, _ := base64.RawURLEncoding.DecodeString(parts[2])
	for i := range raw {
		flipped := slices.Clone(raw)
		flipped[i] ^= 1 << (i % 8)
		add(parts[0] + "." + parts[1] + "." + b64(flipped))
	}
	if len(forged) < 300 {
		t.Fatalf("only %d tokens", len(forged))
	}
	fooled := 0
	for _, token := range forged {
		if got, status := provider.Verify(token, keys, recordedTime); status == JWTOk {
			t.Errorf("%q passed as %q", token, got.Claims.Principal())
		}
		if trustingVerify(token) {
			fooled++
		}
	}
	if fooled < 50 {
		t.Errorf("a verifier that trusts the header was fooled by %d tokens only", fooled)
	}
	if _, status := provider.Verify(good, keys, recordedTime); status != JWTOk {
		t.Errorf("the good token is %v", status)
	}
	t.Logf("%d forged tokens, %d of which a trusting verifier takes", len(forged), fooled)
}

// trustingVerify makes the classic mistakes: it takes "none" and any shared-secret
// algorithm with the public key as the secret, and keys that the token brings.
func trustingVerify(token string) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	raw, _ := base64.RawURLEncoding.DecodeString(parts[0])
	var header struct {
		Alg string
		JWK *jose.JSONWebKey
	}
	if json.Unmarshal(raw, &header) != nil {
		return false
	}
	return strings.EqualFold(header.Alg, "none") || header.JWK != nil
}

func FuzzToken(f *testing.F) {
	f.Add("eyJhbGciOiJSUzI1NiJ9.e30.AA")
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	keys := testKeys(f)
	f.Fuzz(func(t *testing.T, token string) {
		provider := JWTProvider{SpaceDelimited: []string{"scope"}}
		parts, status := parseToken(token, provider.SpaceDelimited)
		if status == JWTOk && (strings.Count(token, ".") != 2 || len(token) > MaxTokenLength || parts.claims == nil) {
			t.Fatalf("%q was taken apart", token)
		}
		// Nobody but the holder of the key can make a token that passes.
		if _, status := provider.Verify(token, keys, recordedTime); status == JWTOk {
			t.Fatalf("%q passed", token)
		}
	})
}

// FuzzClaims holds the reading of a payload against encoding/json.
func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"iss":"a","sub":"b","aud":["c"],"exp":1.5,"scope":"d e"}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := parseClaims(payload, []string{"scope"})
		if err != nil {
			return
		}
		var plain map[string]any
		// A number beyond float64 is JSON, and claims keep numbers as they are written.
		d := json.NewDecoder(bytes.NewReader(payload))
		d.UseNumber()
		if err := d.Decode(&plain); err != nil || !json.Valid(payload) {
			t.Fatalf("%q was accepted: %v", payload, err)
		}
		if len(plain) != len(c.raw) {
			t.Fatalf("%q has %d claims, not %d", payload, len(plain), len(c.raw))
		}
		if iss, _ := plain["iss"].(string); iss != c.Issuer {
			t.Fatalf("%q: issuer %q, want %q", payload, c.Issuer, iss)
		}
	})
}

func benchmarkToken(b *testing.B, state *JWTState) {
	token := testToken{claims: map[string]any{"iss": "https://accounts.example.com", "sub": "1234567890", "aud": "bookinfo", "exp": recordedTime.Unix() + 3600, "scope": "read write", "groups": []string{"a", "b"}}}.sign(b)
	requires := RequireAny(RequireProvider("p"), AllowMissing())
	a := authenticator(b, JWTConfig{Providers: []JWTProvider{{Name: "p", Issuer: "https://accounts.example.com", Audiences: []string{"bookinfo"}, Keys: testKeys(b)}}, Rules: []JWTRule{{Requires: &requires}}})
	r := jwtRequest([][2]string{{"authorization", "Bearer " + token}})
	b.ReportAllocs()
	for b.Loop() {
		if got := a.Authenticate(r, recordedTime, state); got.Status != JWTOk {
			b.Fatal(got.Status)
		}
	}
}

func BenchmarkTokenFromCache(b *testing.B) {
	benchmarkToken(b, &JWTState{Tokens: NewTokenCache(1000)})
}

func BenchmarkTokenVerified(b *testing.B) { benchmarkToken(b, nil) }
