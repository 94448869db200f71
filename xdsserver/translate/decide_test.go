package translate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.yaml.in/yaml/v3"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// This file holds the whole way of access policy, from YAML to the decision of our
// client, against Istio's documentation: random policies and requests go through
// parsing, translation and compilation, and past them through istio.

// author writes random policies and requests out of few texts, so that they meet.
type author struct{ *rand.Rand }

func (a author) one(from ...string) string { return from[a.IntN(len(from))] }

func (a author) few(from []string) []string {
	var out []string
	for range 1 + a.IntN(2) {
		out = append(out, a.one(from...))
	}
	return out
}

var (
	someIDs    = []string{"td/ns/foo/sa/a", "old/ns/foo/sa/a", "td/ns/bar/sa/a", "td/ns/foo/sa/ab", "cluster.local/ns/foo/sa/a", "t.d/ns/fo.o/sa/a", "tXd/ns/foXo/sa/a", "td/ns/default/sa/a", "td/job"}
	somePaths  = []string{"/", "/a", "/a/b", "/a/b/c", "/ab", "/admin", "/x/admin", "/x/a"}
	someRanges = []string{"10.0.0.0/8", "10.1.2.3", "192.168.0.0/16", "192.168.0.1", "fd00::/8", "::/0", "0.0.0.0/0"}

	// someValues are values of each field and key that requests may have.
	someValues = map[string][]string{
		"principals":         append([]string{"*", "td/*", "*/sa/a", "td/ns/foo*", "old/ns/foo/sa/*", "*b"}, someIDs...),
		"namespaces":         {"foo", "bar", "fo.o", "f*", "*o", "f*o", "*", "default"},
		"trustDomains":       {"td", "t.d", "t*", "*d", "*"},
		"serviceAccounts":    {"foo/a", "bar/a", "fo.o/a", "foo/ab", "a", "ab"},
		"ipBlocks":           someRanges,
		"remoteIpBlocks":     someRanges,
		"requestPrincipals":  {"*", "iss/x/sub", "*x/sub", "iss/x/*", "iss/*", "iss/sub", "iss*", "*b"},
		"hosts":              {"a.b", "A.b:80", "*.b", "a.*", "*", "c.b", "a.b."},
		"methods":            {"GET", "POST", "P*", "*T", "*"},
		"ports":              {"80", "81", "8080"},
		"paths":              append([]string{"*", "/a*", "*admin", "/{*}/b", "/{*}", "/a/{**}", "/{**}/admin", "/a/{*}"}, somePaths...),
		"destination.ip":     someRanges,
		"connection.sni":     {"admin", "user", "adm*", "*in", "*"},
		"request.headers[a]": {"admin", "user", "adm*", "*in", "*"},

		"request.headers[X-Role]": {"admin", "user", "adm*", "*in", "*"}, "request.headers[x-team]": {"admin", "user", "*r", "*"},
		"request.auth.audiences": {"web", "app", "w*", "*"}, "request.auth.presenter": {"web", "app", "*p"},
		"request.auth.claims[groups]": {"admin", "user", "adm*", "*in", "*"}, "request.auth.claims[scope]": {"read", "write", "re*", "read write"},
		"request.auth.claims[org][team]": {"admin", "user", "*"},
	}
	sourceNames    = []string{"principals", "namespaces", "trustDomains", "serviceAccounts", "ipBlocks", "remoteIpBlocks", "requestPrincipals"}
	operationNames = []string{"hosts", "methods", "ports", "paths"}
	// earlyNames are the fields that an external authorizer may be asked by.
	earlyNames = []string{"trustDomains", "ipBlocks", "remoteIpBlocks"}
	lateNames  = []string{"namespaces", "principals", "serviceAccounts", "requestPrincipals"}
	keyNames   = slices.Sorted(func(yield func(string) bool) {
		for key := range someValues {
			if strings.Contains(key, ".") && !yield(key) {
				return
			}
		}
		for key := range attributes {
			if !yield(key) {
				return
			}
		}
	})
)

func (a author) fields(names []string) yamlFields {
	out := yamlFields{}
	for range 1 + a.IntN(3) {
		name := a.one(names...)
		field := name
		if a.IntN(3) == 0 {
			field = "not" + strings.ToUpper(name[:1]) + name[1:]
		}
		out[field] = a.few(someValues[name])
	}
	// The API does not take service accounts beside what they stand for.
	for _, account := range []string{"serviceAccounts", "notServiceAccounts"} {
		for _, other := range []string{"principals", "notPrincipals", "namespaces", "notNamespaces"} {
			if out[other] != nil {
				delete(out, account)
			}
		}
	}
	return out
}

func (a author) condition(custom bool) yamlCondition {
	key := a.one(keyNames...)
	for custom && (strings.HasPrefix(key, "request.auth.") || slices.Contains(lateNames, attributes[key])) {
		key = a.one(keyNames...)
	}
	values := someValues[key]
	if values == nil {
		values = someValues[attributes[key]]
	}
	c := yamlCondition{Key: key}
	switch a.IntN(3) {
	case 0:
		c.NotValues = a.few(values)
	case 1:
		c.NotValues = a.few(values)
		fallthrough
	default:
		c.Values = a.few(values)
	}
	return c
}

func (a author) policies() []yamlPolicy {
	var out []yamlPolicy
	for i := range 1 + a.IntN(4) {
		var p yamlPolicy
		p.APIVersion, p.Kind = "security.istio.io/v1", "AuthorizationPolicy"
		p.Metadata.Name, p.Metadata.Namespace = fmt.Sprint("p", i), a.one(ownNamespace, ownNamespace, ownNamespace, policy.RootNamespace, "foo")
		p.Spec.Action = a.one("", "ALLOW", "ALLOW", "DENY", "DENY", "AUDIT", "CUSTOM")
		least := 0
		switch p.Spec.Action {
		case "CUSTOM":
			p.Spec.Provider = map[string]string{"name": "opa"}
			least = 1
		case "DENY":
			least = 1
			fallthrough
		case "", "ALLOW":
			if a.IntN(8) == 0 {
				p.Metadata.Annotations = map[string]string{"istio.io/dry-run": "true"}
			}
		}
		if a.IntN(4) == 0 {
			p.Spec.Selector = map[string]map[string]string{"matchLabels": {"app": a.one("web", "web", "other")}}
		}
		names := sourceNames
		if p.Spec.Action == "CUSTOM" {
			names = earlyNames
		}
		for range max(least, a.IntN(4)) {
			var r yamlRule
			for range a.IntN(3) {
				r.From = append(r.From, map[string]yamlFields{"source": a.fields(names)})
			}
			for range a.IntN(3) {
				r.To = append(r.To, map[string]yamlFields{"operation": a.fields(operationNames)})
			}
			for range a.IntN(5) / 2 {
				r.When = append(r.When, a.condition(p.Spec.Action == "CUSTOM"))
			}
			p.Spec.Rules = append(p.Spec.Rules, r)
		}
		out = append(out, p)
	}
	return out
}

func (a author) visit(tokens []verified) *visit {
	v := &visit{
		Method: a.one("GET", "POST", "PUT"), Host: a.one("a.b", "A.B", "a.b:80", "a.b.", "c.b", "x"), Path: a.one(somePaths...),
		Peer: a.one("10.1.2.3", "10.2.2.3", "192.168.0.1", "fd00::1"), Here: a.one("10.1.2.3", "192.168.7.7", "fd00::2"),
		Port: []uint16{80, 81, 8080}[a.IntN(3)], Header: map[string][]string{},
	}
	if a.IntN(4) > 0 {
		v.ID, v.SNI = a.one(someIDs...), a.one("", "admin", "user")
	}
	if a.IntN(8) == 0 {
		v.Decoded = a.one(somePaths...)
	}
	for _, name := range []string{"X-Role", "X-Team"} {
		for range a.IntN(3) {
			v.Header[name] = append(v.Header[name], a.one("admin", "user", "other", ""))
		}
	}
	for range a.IntN(3) {
		v.Forwarded = append(v.Forwarded, a.one("10.1.2.3", "192.168.0.1", "fd00::1", "10.9.9.9, 192.168.0.1", "unknown"))
	}
	if i := a.IntN(2 * len(tokens)); i < len(tokens) {
		v.Token, v.claims = tokens[i].token, tokens[i].claims
	}
	return v
}

// verified is a token and what our client reads in it.
type verified struct {
	token  map[string]any
	claims *identity.Claims
}

// compiledPolicy is what our client makes of policy in YAML, for a mesh whose trust
// domain is td, and before that old, behind so many proxies.
func compiledPolicy(t testing.TB, proxies int, text string) *snapshot.Inbound {
	t.Helper()
	text = fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomain: td
    trustDomainAliases: [old]
    defaultConfig: {gatewayTopology: {numTrustedProxies: %d}}
    extensionProviders: [{name: opa, envoyExtAuthzHttp: {service: opa.default.svc.cluster.local, port: 80}}]
---
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: default}
spec: {ports: [{name: http, port: 80}]}
`, proxies) + text
	r := policy.Build([]*policy.File{policy.Parse("f.yaml", []byte(text))}, nil)
	for _, p := range r.Problems {
		if p.Severity == policy.Error {
			t.Fatalf("%v in\n%s", p, text)
		}
	}
	resource, err := NewView(r.Set).Resource(ListenerType, webListener, client(Sinew))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	_, in, err := compile.Inbound(resource.Body)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return in
}

// signed are tokens of two issuers, with the claims that our client reads in them.
func signed(t testing.TB) []verified {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	in := compiledPolicy(t, 0, fmt.Sprintf(`---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: default}
spec: {jwtRules: [{issuer: iss/x, jwks: '%s'}, {issuer: iss, jwks: '%s'}]}
`, keys, keys))
	var out []verified
	for _, text := range []string{
		`{"iss": "iss/x", "sub": "sub", "groups": ["user", "admin"], "aud": ["api", "web"], "azp": "app", "scope": "read write"}`,
		`{"iss": "iss", "sub": "sub", "groups": "admin", "aud": "app", "azp": "web", "org": {"team": "admin"}}`,
		`{"iss": "iss/x", "sub": "bob", "groups": [1, "use"], "org": {"team": ["user", "x"]}, "scope": "readwrite"}`,
		`{"iss": "iss", "groups": {"admin": "admin"}, "org": "admin", "azp": ["app"]}`,
	} {
		token, err := signer.Sign([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		compact, err := token.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		r := &identity.AccessRequest{Request: routing.Request{Method: "GET", Path: "/", Header: map[string][]string{"Authorization": {"Bearer " + compact}}}}
		result := in.Plain.Tokens.Authenticator.Authenticate(r, time.Now(), nil)
		if result.Status != identity.JWTOk || result.Claims() == nil {
			t.Fatalf("%s: %v", text, result.Status)
		}
		v := verified{claims: result.Claims()}
		if err := json.Unmarshal([]byte(text), &v.token); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// ours is the decision of our client.
func ours(in *snapshot.Inbound, v *visit) verdict {
	chain := in.Plain
	r := &identity.AccessRequest{
		Request: routing.Request{Method: v.Method, Scheme: "http", Authority: v.Host, Path: v.Path, Header: v.Header},
		PeerIP:  netip.MustParseAddr(v.Peer), DestinationIP: netip.MustParseAddr(v.Here), DestinationPort: v.Port,
		DecodedPath: v.Decoded, ServerName: v.SNI,
	}
	if v.ID != "" {
		chain, r.Principal = in.TLS, "spiffe://"+v.ID
	}
	r.RemoteIP = identity.ClientIP(r.PeerIP, v.Forwarded, chain.TrustedHops)
	if chain.Authorizer == nil {
		return verdict{Allowed: true}
	}
	var out verdict
	_, _, out.Asked = chain.Authorizer.Custom(r)
	r.Claims = v.claims
	d := chain.Authorizer.Decide(r)
	out.Allowed, out.Audited = d.Allowed, d.Audited != ""
	return out
}

// mistakes are what must not go unnoticed: istio, with one of them, has to disagree.
var mistakes = []string{
	"plaintext fulfils no notPrincipals", "a prefix is found anywhere", "the last value of a condition is lost",
	"aliases do not count", "a bare service account is one of any namespace", "the root namespace is one like others",
	"a selector does not count", "a dry run is in force", "an ALLOW policy without a rule is none", "anybody's word on the caller is taken",
	"{*} at the end takes the rest",
}

// decisions compares decisions on the policies of one seed, and tells which mistakes they
// would bring to light.
func decisions(t *testing.T, seed uint64, visits int, tokens []verified, seen map[string]int) {
	a := author{rand.New(rand.NewPCG(seed, 1))}
	w := istio{policies: a.policies(), proxies: a.IntN(3)}
	var text strings.Builder
	for _, p := range w.policies {
		b, err := yaml.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "---\n%s", b)
	}
	in := compiledPolicy(t, w.proxies, text.String())
	for range visits {
		v := a.visit(tokens)
		want, got := w.decide(v), ours(in, v)
		if got != want {
			t.Fatalf("seed %d, %d proxies: %+v, want %+v for\n%+v\n%s", seed, w.proxies, got, want, v, text.String())
		}
		for what, is := range map[string]bool{"allowed": got.Allowed, "refused": !got.Allowed, "audited": got.Audited, "asked": got.Asked} {
			if is {
				seen[what]++
			}
		}
		for _, mistake := range mistakes {
			wrong := istio{w.policies, w.proxies, mistake}
			if wrong.decide(v) != got {
				seen[mistake]++
			}
		}
	}
}

func TestPolicyDecidesAsDocumented(t *testing.T) {
	const seeds, visits = 1200, 8
	tokens, seen := signed(t), map[string]int{}
	for seed := range uint64(seeds) {
		decisions(t, seed, visits, tokens, seen)
	}
	t.Logf("%d decisions: %v", seeds*visits, seen)
	// Where nearly all or nearly nothing passes, agreement says little.
	for what, least := range map[string]int{"allowed": 10, "refused": 10, "audited": 3, "asked": 3} {
		if seen[what] < seeds*visits*least/100 {
			t.Errorf("%d of %d requests are %s", seen[what], seeds*visits, what)
		}
	}
	for _, mistake := range mistakes {
		if seen[mistake] == 0 {
			t.Errorf("nothing would be seen of the mistake that %s", mistake)
		}
	}
}

func FuzzPolicyDecides(f *testing.F) {
	tokens := signed(f)
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { decisions(t, seed, 20, tokens, map[string]int{}) })
}
