package meshhttp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// TestBypassByPrincipal: a rule on a principal is fulfilled by that principal
// alone, not by one that resembles it.
func TestBypassByPrincipal(t *testing.T) {
	leak.Check(t)
	const wanted = "spiffe://cluster.local/ns/default/sa/admin"
	regex := must(routing.Regex(`.*/sa/admin`))
	rules := map[string]identity.Condition{
		"exact":     must(identity.PrincipalIs(wanted)),
		"the match": identity.PrincipalMatches(routing.Exact(wanted, false)),
	}
	h := newHouse(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := identity.PeerFromContext(r.Context())
		if id := p.ID.String(); id != wanted {
			t.Errorf("%s reached the handler", id)
		}
	}), nil)
	domains := map[string]*trustDomainCA{"cluster.local": h.ca}
	for _, d := range []string{"clusterxlocal", "cluster.local.evil", "xcluster.local", "evil"} {
		domains[d] = newTrustDomainCA(t, d)
	}
	h.set(t, material(t, h.ca.issue(t, "server", time.Hour), slices.Collect(func(yield func(*trustDomainCA) bool) {
		for _, ca := range domains {
			if !yield(ca) {
				return
			}
		}
	})...))
	r := draws(5)
	bypassed, through := 0, 0
	for i := range generated {
		domain := []string{"cluster.local", "cluster.local", "clusterxlocal", "cluster.local.evil", "xcluster.local", "evil"}[r.IntN(6)]
		name := []string{"admin", "admin", "xadmin", "admin.", "adminx", "Admin", "admin/ns", "a.min", "admi", "ns/default/sa/admin"}[r.IntN(10)]
		namespace := []string{"default", "default", "other", "default.", "defaultx"}[r.IntN(5)]
		id := "spiffe://" + domain + "/ns/" + namespace + "/sa/" + name
		if regex.Matches(id) && id != wanted {
			bypassed++ // the hole: any beginning
		}
		for _, action := range []identity.Action{identity.Allow, identity.Deny} {
			kind := []string{"exact", "the match"}[i%2]
			condition := rules[kind]
			if action == identity.Deny {
				condition = must(identity.Not(condition))
			}
			h.install(permissive(&snapshot.FilterChain{Authorizer: authorizer(t, ruled(t, action, rule("admin", nil, &condition)))}))
			u := must(url.Parse(id))
			config := presenting(h.as(t, h.ca.issue(t, "web", time.Hour)), domains[domain].issueURI(t, u))
			config.NextProtos = []string{"http/1.1"}
			code, _ := h.raw(t, config, lines("GET / HTTP/1.1", "Host: reviews", "Connection: close"))
			if want := map[bool]int{true: 200, false: 403}[id == wanted]; code != want {
				t.Errorf("%s %s: %s got %d", action, kind, id, code)
			}
			if code == 200 {
				through++
			}
		}
	}
	if bypassed == 0 || through == 0 {
		t.Errorf("%d get past a rule with a hole, %d through ours", bypassed, through)
	}
}

// TestBypassByPlaintext: a peer without an identity fulfils no rule that names
// one and every rule that names those who are not meant, as Istio has it. The
// oracle says it in a line each.
func TestBypassByPlaintext(t *testing.T) {
	leak.Check(t)
	var reached atomic.Int64
	h := newHouse(t, nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }), nil)
	peers := map[string][]string{"": nil, "web": nil, "admin": nil}
	talkers := map[string]func() int{"": (&talker{t: t, address: h.address}).get}
	for _, name := range []string{"web", "admin"} {
		config := h.as(t, h.ca.issue(t, name, time.Hour), "http/1.1")
		client := h.client(t, config, true)
		talkers[name] = func() int {
			code, _, _ := get(t, client, request(t, "GET", "https://"+h.address+"/", nil))
			return code
		}
	}
	type part struct {
		name      string
		condition identity.Condition
		holds     func(peer string) bool
	}
	id := func(n string) string { return "spiffe://cluster.local/ns/default/sa/" + n }
	parts := []part{
		{"principals: web", must(identity.PrincipalIs(id("web"))), func(p string) bool { return p == "web" }},
		{"principals: *", identity.Authenticated(), func(p string) bool { return p != "" }},
		{"principals: prefix", identity.PrincipalMatches(routing.Prefix("spiffe://cluster.local/", false)), func(p string) bool { return p != "" }},
		{"principals: anything at all", identity.PrincipalMatches(must(routing.Regex(`.*`))), func(p string) bool { return p != "" }},
		{"principals: empty", identity.PrincipalMatches(routing.Exact("", false)), func(string) bool { return false }},
		{"namespaces: default", must(identity.NamespaceIs("default")), func(p string) bool { return p != "" }},
		{"namespaces: other", must(identity.NamespaceIs("other")), func(string) bool { return false }},
	}
	r := draws(6)
	bypassed := 0
	for range generated {
		// One or two conditions, each perhaps under Not, all of which must hold.
		var conditions []identity.Condition
		var chosen []part
		for range 1 + r.IntN(2) {
			p := parts[r.IntN(len(parts))]
			if r.IntN(2) == 0 {
				holds := p.holds
				p = part{"not " + p.name, must(identity.Not(p.condition)), func(peer string) bool { return !holds(peer) }}
			}
			conditions, chosen = append(conditions, p.condition), append(chosen, p)
		}
		action := []identity.Action{identity.Allow, identity.Deny}[r.IntN(2)]
		both := must(identity.AllOf(conditions...))
		h.install(permissive(&snapshot.FilterChain{Authorizer: authorizer(t, ruled(t, action, rule("r", nil, &both)))}))
		for peer := range peers {
			matches := true
			text := ""
			for _, p := range chosen {
				matches = matches && p.holds(peer)
				text += "[" + p.name + "]"
			}
			want := matches == (action == identity.Allow)
			before := reached.Load()
			code := talkers[peer]()
			if got := reached.Load() != before; got != want || (code == 200) != want {
				t.Errorf("%s %s: %q got %d", action, text, peer, code)
			}
			// The hole: on plaintext a rule about principals is left out.
			if peer == "" && !want && action == identity.Deny {
				bypassed++
			}
		}
	}
	if bypassed < generated/20 {
		t.Errorf("%d get past a guard with a hole", bypassed)
	}
	// STRICT refuses plaintext whatever the rules say.
	for range 20 {
		p := parts[r.IntN(len(parts))]
		not := must(identity.Not(p.condition))
		h.install(strict(&snapshot.FilterChain{Authorizer: authorizer(t, ruled(t, identity.Allow, rule("r", nil, &not)))}))
		before := reached.Load()
		if code := talkers[""](); code != 403 || reached.Load() != before {
			t.Errorf("STRICT, not %s: plaintext got %d", p.name, code)
		}
	}
}

// get asks for "/" on a connection of its own.
func (k *talker) get() int {
	defer k.close()
	return k.ask("GET", "/", "Host: reviews", "Connection: close")
}

// TestBypassByToken: only a token that its issuer has signed for us, now, and
// that is whole, opens what asks for one.
func TestBypassByToken(t *testing.T) {
	leak.Check(t)
	iss, other := newIssuer(t, "https://issuer.example"), newIssuer(t, "https://other.example")
	provider := iss.provider()
	provider.Audiences = []string{"reviews"}
	authenticator := must(identity.NewJWTAuthenticator(identity.JWTConfig{
		// The second provider's keys could not be had: that is its tokens' concern alone.
		Providers: []identity.JWTProvider{provider, {Name: "down", Issuer: other.name}},
		Rules:     []identity.JWTRule{{Requires: ptr(identity.RequireAny(identity.RequireProvider(iss.name), identity.RequireProvider("down"), identity.AllowMissing()))}},
	}))
	signedIn := must(identity.ClaimIs([]string{"iss"}, identity.ValueText(routing.Prefix("https://", false)), false))
	signedOut := must(identity.Not(signedIn))
	var reached, naive atomic.Int64
	h := newHouse(t, plain(&snapshot.FilterChain{
		Tokens:     &snapshot.Tokens{Authenticator: authenticator},
		Authorizer: authorizer(t, ruled(t, identity.Deny, rule("signed out", nil, &signedOut))),
	}), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }), nil)
	r := draws(7)
	good := map[string]any{"aud": "reviews"}
	encode := base64.RawURLEncoding.EncodeToString
	header := func(alg, kid string) string {
		return encode(must(json.Marshal(map[string]string{"alg": alg, "kid": kid})))
	}
	resign := func(token, alg string, sign func(string) []byte) string {
		payload := strings.Split(token, ".")[1]
		signed := header(alg, "k") + "." + payload
		return signed + "." + encode(sign(signed))
	}
	claims := func(change map[string]any) string {
		all := map[string]any{"aud": "reviews"}
		for k, v := range change {
			all[k] = v
		}
		return iss.token(t, all)
	}
	now := time.Now()
	attacks := []struct {
		name string
		make func() string
	}{
		{"no signature", func() string { return resign(iss.token(t, good), "none", func(string) []byte { return nil }) }},
		{"none with a signature", func() string { return resign(iss.token(t, good), "none", func(string) []byte { return []byte("x") }) }},
		{"nOnE", func() string { return resign(iss.token(t, good), "nOnE", func(string) []byte { return []byte("x") }) }},
		{"the public key as a secret", func() string {
			return resign(iss.token(t, good), "HS256", func(s string) []byte {
				mac := hmac.New(sha256.New, []byte(fmt.Sprint(iss.keys)))
				mac.Write([]byte(s))
				return mac.Sum(nil)
			})
		}},
		{"zeros for a signature", func() string {
			return resign(iss.token(t, good), "ES256", func(string) []byte { return make([]byte, 64) })
		}},
		{"somebody else's key", func() string {
			return newIssuer(t, iss.name).token(t, good)
		}},
		{"another issuer's, whose keys could not be had", func() string { return other.token(t, good) }},
		{"an unknown issuer's", func() string { return newIssuer(t, "https://evil.example").token(t, good) }},
		{"for others", func() string { return claims(map[string]any{"aud": []string{"ratings", "reviews.evil"}}) }},
		{"for nobody", func() string { return claims(map[string]any{"aud": []string{}}) }},
		{"expired", func() string { return claims(map[string]any{"exp": now.Add(-2 * time.Minute).Unix()}) }},
		{"not yet valid", func() string { return claims(map[string]any{"nbf": now.Add(5 * time.Minute).Unix()}) }},
		{"another issuer's name signed by this one", func() string { return claims(map[string]any{"iss": "https://issuer.example/"}) }},
		{"without an issuer", func() string { return claims(map[string]any{"iss": nil}) }},
		{"too long", func() string { return claims(map[string]any{"x": strings.Repeat("y", 9<<10)}) }},
		{"one bit off", func() string {
			b := []byte(iss.token(t, good))
			for {
				i := r.IntN(len(b))
				if c := b[i] ^ 1; b[i] != '.' && c != '.' && i != len(b)-1 { // the last character has bits that say nothing
					b[i] = c
					return string(b)
				}
			}
		}},
		{"cut off", func() string {
			s := iss.token(t, good)
			return s[:len(s)-1-r.IntN(len(s)/2)]
		}},
		{"two payloads", func() string {
			p := strings.Split(iss.token(t, good), ".")
			return p[0] + "." + p[1] + "." + p[1] + "." + p[2]
		}},
		{"a payload exchanged", func() string {
			a, b := strings.Split(iss.token(t, good), "."), strings.Split(claims(map[string]any{"sub": "admin"}), ".")
			return a[0] + "." + b[1] + "." + a[2]
		}},
		{"in the standard alphabet", func() string { return iss.token(t, good) + "=" }},
		{"nothing", func() string { return "" }},
		{"rubbish", func() string { return "a.b.c" }},
	}
	k := &talker{t: t, address: h.address}
	defer k.close()
	for i := range generated {
		attack := attacks[i%len(attacks)]
		token := attack.make()
		target, head := "/", []string{"Host: reviews"}
		switch i / len(attacks) % 4 {
		case 0:
			head = append(head, "Authorization: Bearer "+token)
		case 1:
			target += "?access_token=" + url.QueryEscape(token)
		case 2: // behind a good one in the same header
			head = append(head, "Authorization: Bearer "+iss.token(t, good), "Authorization: Bearer "+token)
			if token == "" {
				continue // an empty value is no token beside the good one, nor an attack
			}
		case 3: // the good one is somewhere that nobody looks
			head = append(head, "Authorization: Bearer "+token, "X-Authorization: Bearer "+iss.token(t, good), "Proxy-Authorization: Bearer "+iss.token(t, good))
		}
		before := reached.Load()
		code := k.ask("GET", target, head...)
		if reached.Load() != before || code != 401 && code != 403 {
			t.Errorf("%s: %s %.200q got %d", attack.name, target, head[1:], code)
		}
		// The hole: the claims are read, and nobody asks who signed them.
		if parts := strings.Split(token, "."); len(parts) >= 3 {
			raw, _ := base64.RawURLEncoding.DecodeString(parts[1])
			if strings.Contains(string(raw), `"iss":"https://`) {
				naive.Add(1)
			}
		}
	}
	before := reached.Load()
	for range 10 {
		if code := k.ask("GET", "/", "Host: reviews", "Authorization: Bearer "+iss.token(t, good)); code != 200 {
			t.Errorf("a good token got %d", code)
		}
	}
	if reached.Load()-before != 10 || naive.Load() < generated/4 {
		t.Errorf("good tokens reached %d times; %d get past a guard with a hole", reached.Load()-before, naive.Load())
	}
}
