package identity

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// tokenBypasses sends tokens that are not good, alone or beside a good one of somebody
// else, to a rule for issuer a's admin. Two issuers are known, each with a key of its
// own; the keys of a third can not be had.
func tokenBypasses(t *testing.T) (out []bypass) {
	keysOf := func(kid string, key any) *KeySet {
		s, err := NewKeySet(map[string]crypto.PublicKey{kid: key})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	var config JWTConfig
	var each []Requirement
	for _, p := range []JWTProvider{
		{Name: "a", Issuer: "a", Audiences: []string{"us"}, Keys: keysOf("k", &testEC.PublicKey)},
		{Name: "b", Issuer: "b", Keys: keysOf("k", &testRSA.PublicKey)},
		{Name: "down", Issuer: "down"},
	} {
		p.Headers = []TokenHeader{{Name: "authorization", Prefix: "Bearer "}, {Name: "x-token"}}
		p.Params, p.Cookies = []string{"t"}, []string{"t"}
		config.Providers = append(config.Providers, p)
		each = append(each, RequireProvider(p.Name))
	}
	requires := RequireAny(append(each, AllowMissing())...)
	config.Rules = []JWTRule{{Requires: &requires}}
	jwt := authenticator(t, config)
	rule := allowSet(t, must(istioRequestPrincipal("a/admin")))
	down := &JWTState{Keys: func(*JWTProvider) *KeySet { return nil }}

	now := recordedTime.Unix()
	claims := func(change map[string]any) map[string]any {
		all := map[string]any{"iss": "a", "sub": "admin", "aud": "us", "exp": now + 3600}
		for k, v := range change {
			if all[k] = v; v == nil {
				delete(all, k)
			}
		}
		return all
	}
	sign := func(alg jose.SignatureAlgorithm, key any, change map[string]any) string {
		return testToken{claims: claims(change), algorithm: alg, key: key, header: map[string]any{"kid": "k"}}.sign(t)
	}
	good := sign(jose.ES256, testEC, nil)
	parts := strings.Split(good, ".")
	b64 := base64.RawURLEncoding.EncodeToString
	body, _ := json.Marshal(claims(nil))
	// What a makes for others, what others make in a's name, and what nobody has signed.
	bad := []string{
		sign(jose.RS256, testRSA, nil), sign(jose.RS256, evilRSA, nil),
		sign(jose.RS256, testRSA, map[string]any{"iss": "b"}), sign(jose.ES256, testEC, map[string]any{"sub": "user"}),
		sign(jose.ES256, testEC, map[string]any{"iss": "c"}), sign(jose.ES256, testEC, map[string]any{"iss": "a/"}), sign(jose.ES256, testEC, map[string]any{"iss": "A"}),
		sign(jose.ES256, testEC, map[string]any{"iss": nil}), sign(jose.ES256, testEC, map[string]any{"iss": []string{"a"}}), sign(jose.ES256, testEC, map[string]any{"iss": "a/admin", "sub": ""}),
		sign(jose.ES256, testEC, map[string]any{"aud": "them"}), sign(jose.ES256, testEC, map[string]any{"aud": nil}), sign(jose.ES256, testEC, map[string]any{"aud": []string{}}),
		sign(jose.ES256, testEC, map[string]any{"exp": now - 3600}), sign(jose.ES256, testEC, map[string]any{"nbf": now + 3600}), sign(jose.ES256, testEC, map[string]any{"exp": "never"}),
		sign(jose.RS256, evilRSA, map[string]any{"iss": "down"}), sign(jose.ES256, testEC, map[string]any{"iss": "down"}),
		testToken{payload: string(body), algorithm: jose.HS256, key: testEC.X.Bytes(), header: map[string]any{"kid": "k"}}.sign(t),
		b64([]byte(`{"alg":"none"}`)) + "." + b64(body) + ".", b64([]byte(`{"alg":"ES256","kid":"k"}`)) + "." + b64(body) + ".", b64([]byte(`{"alg":"ES256","kid":"x"}`)) + "." + b64(body) + "." + parts[2],
		parts[0] + "." + b64([]byte(strings.Replace(string(body), "us", "us ", 1))) + "." + parts[2], strings.ToUpper(good),
	}
	others := []string{sign(jose.RS256, testRSA, map[string]any{"iss": "b", "sub": "x"}), sign(jose.ES256, testEC, map[string]any{"sub": "x"})}
	rng := rand.New(rand.NewPCG(6, 6))
	for range 400 {
		tokens := []string{bad[rng.IntN(len(bad))]}
		for range rng.IntN(3) {
			tokens = append(tokens, append(bad, others...)[rng.IntN(len(bad)+len(others))])
		}
		rng.Shuffle(len(tokens), func(i, j int) { tokens[i], tokens[j] = tokens[j], tokens[i] })
		var pairs [][2]string
		at := []string{"authorization", "x-token", "t", "cookie"}
		rng.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
		for i, token := range tokens {
			switch at[i] {
			case "authorization":
				pairs = append(pairs, [2]string{"authorization", []string{"Bearer ", "bearer ", "Bearer  ", "Bearer"}[rng.IntN(4)] + token})
			case "x-token":
				pairs = append(pairs, [2]string{"x-token", token})
			case "t":
				pairs = append(pairs, [2]string{":path", "/?t=" + token})
			case "cookie":
				pairs = append(pairs, [2]string{"cookie", "a=b; t=" + token})
			}
		}
		r := jwtRequest(pairs)
		verified := jwt.Authenticate(r, recordedTime, down)
		r.Claims = verified.Claims()
		refused := verified.Status != JWTOk || !rule.Decide(r).Allowed
		// The mistake: what a token says of itself is believed, whoever signed it and when.
		careless := true
		for _, token := range tokens {
			var said struct{ Iss, Sub string }
			p := strings.Split(token, ".")
			raw, err := base64.RawURLEncoding.DecodeString(p[min(1, len(p)-1)])
			if err == nil && json.Unmarshal(raw, &said) == nil && said.Iss+"/"+said.Sub == "a/admin" {
				careless = false
			}
		}
		out = append(out, bypass{fmt.Sprint(pairs), refused, careless})
	}
	r := jwtRequest([][2]string{{"authorization", "Bearer " + good}})
	verified := jwt.Authenticate(r, recordedTime, down)
	if r.Claims = verified.Claims(); !rule.Decide(r).Allowed {
		t.Error("the good token is refused")
	}
	return out
}

// nameBypasses issues certificates whose names look like those that are asked for.
func nameBypasses(t *testing.T) (out []bypass) {
	root := (*authority)(nil).issue(t, caTemplate("root"))
	td := TrustDomain{"td.example"}
	set := BundleSet{td: mustBundle(t, root.cert), {"evil.example"}: mustBundle(t, root.cert)}
	wanted, err := ParseID(hostileID)
	if err != nil {
		t.Fatal(err)
	}
	const host = "api.b.example"
	byID, bySAN, byHost := OneOf(wanted), []SANMatch{SANExact(SANURI, hostileID)}, []SANMatch{SANExact(SANDNS, host)}
	// Each as a name of any type, where another is asked for.
	ids := []string{
		hostileID + "\x00.evil", hostileID + "/x", hostileID + "x", hostileID + "#", hostileID + "?x", hostileID + "%00", "SPIFFE" + hostileID[len("spiffe"):],
		strings.ToUpper(hostileID), "x" + hostileID, " " + hostileID, hostileID + " ", strings.Replace(hostileID, "td.", "tdx", 1), strings.Replace(hostileID, "td.", "td..", 1),
		strings.Replace(hostileID, "//", "//evil@", 1), strings.Replace(hostileID, "/ns", ":443/ns", 1), strings.Replace(hostileID, "/ns", "./ns", 1), strings.Replace(hostileID, "/ns", "//ns", 1),
		strings.Replace(hostileID, "/sa/", "/../a/sa/", 1), "spiffe://evil.example/" + hostileID, "spiffe://evil.example/ns/a/sa/b", "spiffe://td.example", "https" + hostileID[len("spiffe"):], hostileID + "*", "*", "",
	}
	hosts := []string{
		host + "\x00.evil", "*.example", "*", "*.*.example", "a*.b.example", "*pi.b.example", "**.b.example", "x." + host, host + ".evil", "b.example", ".b.example", "api.b.example ", "api.b.exampl",
		"apixb.example", "api.*.example", "*.api.b.example", "api.b.*", hostileID,
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range 400 {
		var n rawNames
		for range 1 + rng.IntN(2) {
			n.uris = append(n.uris, ids[rng.IntN(len(ids))])
		}
		if i%8 == 0 {
			n.uris = append(n.uris, hostileID) // two URIs, one of which is the right one
		}
		if rng.IntN(2) == 0 {
			n.uris = n.uris[:rng.IntN(len(n.uris))]
		}
		for range rng.IntN(3) {
			n.dns = append(n.dns, hosts[rng.IntN(len(hosts))])
		}
		if rng.IntN(2) == 0 {
			n.emails = append(n.emails, []string{hostileID, host, "a@" + host, hostileID + "\x00"}[rng.IntN(4)])
		}
		if rng.IntN(4) == 0 {
			n.dns = append(n.dns, hostileID)
		}
		name := fmt.Sprintf("%q", n)
		der := root.issue(t, leafTemplate(nil, withNames(n), func(c *x509.Certificate) { c.Subject.CommonName = hostileID })).der
		chain, err := parseChain([][]byte{der})
		refused := err != nil // crypto/x509 does not read it: no connection either
		if err == nil {
			id, err := VerifySVID(chain, set, hostileNow, UsageAny)
			// A certificate with two URIs is no SVID, whatever SANs are asked for beside that.
			asSVID := err == nil && (byID(id) == nil || MatchSANs(chain[0], bySAN) == nil)
			refused = !asSVID && MatchSANs(chain[0], byHost) != nil
		}
		// The mistake: any name of any type counts, cut off at a NUL, and a wildcard stands for anything.
		careless := true
		for _, s := range slices.Concat(n.uris, n.dns, n.emails) {
			s, _, _ = strings.Cut(s, "\x00")
			star, suffix, wild := strings.Cut(s, "*")
			if strings.EqualFold(s, hostileID) || s == host || wild && strings.HasPrefix(host, star) && strings.HasSuffix(host, suffix) {
				careless = false
			}
		}
		out = append(out, bypass{name, refused, careless})
	}
	good := root.issue(t, leafTemplate(nil, withNames(rawNames{uris: []string{hostileID}, dns: []string{"*.b.example"}}))).cert
	id, err := VerifySVID([]*x509.Certificate{good}, set, hostileNow.Add(time.Minute), UsageAny)
	if err != nil || byID(id) != nil || MatchSANs(good, bySAN) != nil || MatchSANs(good, byHost) != nil {
		t.Errorf("the good certificate is refused: %v", err)
	}
	return out
}
