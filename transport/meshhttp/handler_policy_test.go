package meshhttp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// issuer signs tokens.
type issuer struct {
	name   string
	signer jose.Signer
	keys   *identity.KeySet
}

func newIssuer(t testing.TB, name string) *issuer {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	signer := must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil))
	set := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}}))
	return &issuer{name, signer, must(identity.ParseKeySet(set))}
}

func (i *issuer) token(t testing.TB, claims map[string]any) string {
	t.Helper()
	all := map[string]any{"iss": i.name, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	return must(must(i.signer.Sign(must(json.Marshal(all)))).CompactSerialize())
}

func (i *issuer) provider() identity.JWTProvider {
	return identity.JWTProvider{Name: i.name, Issuer: i.name, Keys: i.keys}
}

// TestTokens: claims reach rules and handler, tokens do not unless policy forwards them.
func TestTokens(t *testing.T) {
	leak.Check(t)
	iss := newIssuer(t, "https://issuer.example")
	build := func(forward bool) *snapshot.FilterChain {
		p := iss.provider()
		p.Forward = forward
		p.PayloadHeader = "X-Payload"
		p.ClaimHeaders = []identity.ClaimHeader{{Header: "x-user", Claim: "sub"}}
		p.Headers = []identity.TokenHeader{{Name: "Authorization", Prefix: "Bearer "}}
		p.Params, p.Cookies = []string{"access_token"}, []string{"session"}
		a := must(identity.NewJWTAuthenticator(identity.JWTConfig{Providers: []identity.JWTProvider{p}, Rules: []identity.JWTRule{
			{Requires: ptr(identity.RequireAny(identity.RequireProvider(p.Name), identity.AllowMissing()))},
		}}))
		alice := must(identity.ClaimIs([]string{"sub"}, identity.ValueText(routing.Exact("alice", false)), false))
		return &snapshot.FilterChain{Tokens: &snapshot.Tokens{Authenticator: a}, Authorizer: authorizer(t, ruled(t, identity.Allow, rule("alice", nil, &alice)))}
	}
	var got *http.Request
	h := newHouse(t, plain(build(false)), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r }), nil)
	token, others := iss.token(t, nil), iss.token(t, map[string]any{"sub": "mallory"})
	for _, c := range []struct {
		name    string
		forward bool
		target  string
		header  []string
		code    int
		uri     string
		left    string // Authorization and Cookie that the handler sees
	}{
		{"header", false, "/x?a=b", []string{"Authorization: Bearer " + token}, 200, "/x?a=b", ""},
		{"header, forwarded", true, "/x", []string{"Authorization: Bearer " + token}, 200, "/x", "Bearer " + token},
		{"parameter", false, "/x?a=b&access%5ftoken=" + token + "&c", nil, 200, "/x?a=b&c", ""},
		{"cookie", false, "/x", []string{"Cookie: a=b; session=" + token + "; c=d"}, 200, "/x", "a=b; c=d"},
		{"only the cookie", false, "/x", []string{"Cookie: session=" + token}, 200, "/x", ""},
		{"none", false, "/x", nil, 403, "", ""},
		{"none, and a forged claim", false, "/x", []string{"X-User: alice", "x-payload: e30"}, 403, "", ""},
		{"another's", false, "/x", []string{"Authorization: Bearer " + others}, 403, "", ""},
		{"a bad one beside a good one", false, "/x?access_token=bad", []string{"Authorization: Bearer " + token}, 401, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.install(plain(build(c.forward)))
			got = nil
			code, _ := h.raw(t, nil, lines("GET "+c.target+" HTTP/1.1", append(slices.Clone(c.header), "Host: reviews", "X-User: admin", "Connection: close")...))
			if code != c.code || (got != nil) != (code == 200) {
				t.Fatalf("%d, want %d", code, c.code)
			}
			if got == nil {
				return
			}
			if v := strings.Join(got.Header["X-User"], ","); v != "alice" {
				t.Errorf("X-User %q", v)
			}
			if got.Header.Get("X-Payload") == "" {
				t.Error("no payload")
			}
			if left := got.Header.Get("Authorization") + got.Header.Get("Cookie"); left != c.left || got.RequestURI != c.uri || got.URL.RequestURI() != c.uri {
				t.Errorf("the handler sees %q %q %q", left, got.RequestURI, got.URL.RequestURI())
			}
		})
	}
}

// roundTripper is a transport as a function.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestExternal: the external authorizer sees the request and its body, and the
// handler is given both whole.
func TestExternal(t *testing.T) {
	leak.Check(t)
	var asked string
	var answer func() *http.Response
	transport := roundTripper(func(r *http.Request) (*http.Response, error) {
		body := []byte(nil)
		if r.Body != nil {
			body, _ = io.ReadAll(r.Body)
		}
		asked = r.Method + " " + r.URL.Path + " " + string(body)
		resp := answer()
		if resp == nil {
			return nil, errors.New("down")
		}
		resp.Request, resp.Proto, resp.ProtoMajor = r, "HTTP/1.1", 1
		if resp.Header == nil {
			resp.Header = http.Header{}
		}
		if resp.Body == nil {
			resp.Body = http.NoBody
		}
		return resp, nil
	})
	x := &snapshot.ExternalAuthorizer{Provider: "opa", Host: "opa.example:9000", Timeout: 5 * time.Second, MaxBody: 8,
		HTTP: &snapshot.ExternalHTTP{UpstreamHeaders: []routing.StringMatch{routing.Exact("x-from-opa", false)}}}
	custom := ruled(t, identity.Custom, rule("ask", ptr(identity.PathBegins("/ask")), nil))
	custom.Provider = "opa"
	var seenBody, seenHeader string
	h := newHouse(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		seenBody, seenHeader = string(b), r.Header.Get("X-From-Opa")
	}), func(o *inbound.Options) { o.HTTP = transport })
	for _, c := range []struct {
		name    string
		path    string
		body    string
		partial bool
		open    bool
		answer  func() *http.Response
		code    int
		text    string // in the answer
		asked   string
	}{
		{"not asked", "/other", "hello", false, false, nil, 200, "", ""},
		{"lets through", "/ask", "hello", false, false, func() *http.Response {
			return &http.Response{StatusCode: 200, Header: http.Header{"X-From-Opa": {"yes"}}}
		}, 200, "", "POST /ask hello"},
		{"refuses", "/ask", "hello", false, false, func() *http.Response {
			return &http.Response{StatusCode: 418, Header: http.Header{"X-Why": {"tea"}}, Body: io.NopCloser(strings.NewReader("no coffee"))}
		}, 418, "no coffee", "POST /ask hello"},
		{"is down", "/ask", "hello", false, false, func() *http.Response { return nil }, 403, `"external"`, "POST /ask hello"},
		{"is down, and policy lets through", "/ask", "hello", false, true, func() *http.Response { return nil }, 200, "", "POST /ask hello"},
		{"a long body", "/ask", "hello, hello", false, false, nil, 413, `"external"`, ""},
		{"the beginning of a long body", "/ask", "hello, hello", true, false, func() *http.Response { return &http.Response{StatusCode: 200} }, 200, "", "POST /ask hello, h"},
		{"no body", "/ask", "", false, false, func() *http.Response { return &http.Response{StatusCode: 200} }, 200, "", "POST /ask "},
	} {
		t.Run(c.name, func(t *testing.T) {
			with := *x
			with.PartialBody, with.FailOpen = c.partial, c.open
			h.install(plain(&snapshot.FilterChain{Authorizer: authorizer(t, custom), External: &with}))
			asked, seenBody, seenHeader, answer = "", "", "", c.answer
			resp, err := h.client(t, nil, false).Post("http://"+h.address+c.path, "text/plain", strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != c.code || !strings.Contains(string(text), c.text) || asked != c.asked {
				t.Errorf("%d %q after %q, want %d %q after %q", resp.StatusCode, text, asked, c.code, c.text, c.asked)
			}
			if c.code == 200 && seenBody != c.body {
				t.Errorf("the handler got the body %q", seenBody)
			}
			if c.name == "lets through" && seenHeader != "yes" || c.name == "refuses" && resp.Header.Get("X-Why") != "tea" {
				t.Errorf("header %q, answer's %v", seenHeader, resp.Header)
			}
		})
	}
}
