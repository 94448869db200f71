package meshhttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// TestHandlerTargets: what each form of request target becomes for the handler,
// and which are refused. The path that rules see is the handler's.
func TestHandlerTargets(t *testing.T) {
	leak.Check(t)
	all, err := identity.NamedPathOptions("DECODE_AND_MERGE_SLASHES")
	if err != nil {
		t.Fatal(err)
	}
	base := identity.PathOptions{Normalize: true}
	type seen struct{ path, escaped, query, uri, host string }
	var got seen
	reached := false
	h := newHouse(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached = true
		got = seen{r.URL.Path, r.URL.EscapedPath(), r.URL.RawQuery, r.RequestURI, r.Host}
	}), nil)
	for _, c := range []struct {
		name    string
		options identity.PathOptions
		request string // method and target
		host    string // the Host header
		code    int    // 0: 200
		want    seen
	}{
		{"as it is", identity.PathOptions{}, "GET /a/b?c=d", "reviews", 0, seen{"/a/b", "/a/b", "c=d", "/a/b?c=d", "reviews"}},
		{"nothing is normalised unless policy says so", identity.PathOptions{}, "GET /a//b/../%63", "reviews", 0, seen{"/a//b/../c", "/a//b/../%63", "", "/a//b/../%63", "reviews"}},
		{"base", base, "GET /a/./b/../c%61?x=%2e", "reviews", 0, seen{"/a/ca", "/a/ca", "x=%2e", "/a/ca?x=%2e", "reviews"}},
		{"an escape that stays", base, "GET /a%2fb/../c%2Fd", "reviews", 0, seen{"/c/d", "/c%2Fd", "", "/c%2Fd", "reviews"}},
		{"a backslash", base, `GET /a\..\admin`, "reviews", 0, seen{"/admin", "/admin", "", "/admin", "reviews"}},
		{"all", all, "GET /a%2f..%2f/admin//x", "reviews", 0, seen{"/admin/x", "/admin/x", "", "/admin/x", "reviews"}},
		{"the absolute form", base, "GET http://ratings:9080/a/../b?q", "reviews", 0, seen{"/b", "/b", "q", "/b?q", "ratings:9080"}},
		{"the absolute form without a path", base, "GET http://ratings", "reviews", 0, seen{"/", "/", "", "/", "ratings"}},
		{"the absolute form with a query only", base, "GET http://ratings?q=1", "reviews", 0, seen{"/", "/", "q=1", "/?q=1", "ratings"}},
		{"the absolute form, unchanged", base, "GET http://ratings/b", "reviews", 0, seen{"/b", "/b", "", "http://ratings/b", "ratings"}},
		{"two slashes are no authority", base, "GET //evil/admin", "reviews", 0, seen{"//evil/admin", "//evil/admin", "", "//evil/admin", "reviews"}},
		{"a fragment", base, "GET /public#/../admin", "reviews", 400, seen{}},
		{"a fragment without normalisation", identity.PathOptions{}, "GET /admin#x", "reviews", 400, seen{}},
		{"a fragment in the query is the query's", base, "GET /a?b#c", "reviews", 0, seen{"/a", "/a", "b#c", "/a?b#c", "reviews"}},
		{"an escaped fragment is a path", base, "GET /a%23b", "reviews", 0, seen{"/a#b", "/a%23b", "", "/a%23b", "reviews"}},
		{"an escaped question mark", base, "GET /a%3fb", "reviews", 0, seen{"/a?b", "/a%3fb", "", "/a%3fb", "reviews"}},
		{"an opaque target", base, "GET mailto:x", "reviews", 400, seen{}},
		{"an opaque target that looks like all", base, "GET x:*", "reviews", 400, seen{}},
		{"a NUL", base, "GET /a%00", "reviews", 400, seen{}},
		{"CONNECT", base, "CONNECT ratings:80", "ratings:80", 0, seen{"", "", "", "ratings:80", "ratings:80"}},
		{"CONNECT with a path", base, "CONNECT /a/../b", "reviews", 0, seen{"/b", "/b", "", "/b", "reviews"}},
		{"more dots than segments", base, "GET /../../a", "reviews", 0, seen{"/a", "/a", "", "/a", "reviews"}},
		{"redirected", identity.PathOptions{EscapedSlashes: identity.UnescapeSlashesAndRedirect}, "GET /a%2fb?c", "reviews", 307, seen{}},
		{"refused slashes", identity.PathOptions{EscapedSlashes: identity.RejectEscapedSlashes}, "GET /a%5cb", "reviews", 400, seen{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.install(plain(&snapshot.FilterChain{Paths: c.options}))
			got, reached = seen{}, false
			want := c.code
			if want == 0 {
				want = 200
			}
			code, _ := h.raw(t, nil, lines(c.request+" HTTP/1.1", "Host: "+c.host, "Connection: close"))
			if code != want || reached != (c.code == 0) || reached && got != c.want {
				t.Errorf("%d, reached %v with %+v; want %d %+v", code, reached, got, want, c.want)
			}
		})
	}
}

// TestHandlerTargetAfterMiddleware: where a handler further out has changed the
// URL, that is what the rules see, and RequestURI says the same.
func TestHandlerTargetAfterMiddleware(t *testing.T) {
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	defer e.Close()
	deny := ruled(t, identity.Deny, rule("admin", ptr(identity.PathBegins("/admin")), nil))
	e.Install(policies(map[string]*snapshot.Inbound{"127.0.0.1:9080": plain(&snapshot.FilterChain{
		Paths: identity.PathOptions{Normalize: true}, Authorizer: authorizer(t, deny),
	})}))
	uri := ""
	inner := Handler(e, slog.New(slog.DiscardHandler), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uri = r.RequestURI
	}))
	for target, code := range map[string]int{"/api/admin/x": 403, "/api/./admin": 403, "/api/x?y=z": 200} {
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9080})), "GET", target, nil)
		w := httptest.NewRecorder()
		http.StripPrefix("/api", inner).ServeHTTP(w, r)
		if w.Code != code {
			t.Errorf("%s: %d, want %d", target, w.Code, code)
		}
	}
	if uri != "/x?y=z" {
		t.Errorf("RequestURI %q", uri)
	}
}

// TestHandlerKeepsThePattern: whoever measures around the handler sees the route.
func TestHandlerKeepsThePattern(t *testing.T) {
	e := inbound.New(inbound.Options{})
	mux := http.NewServeMux()
	mux.HandleFunc("/a/{id}", func(http.ResponseWriter, *http.Request) {})
	r := httptest.NewRequest("GET", "/a/1", nil)
	Handler(e, nil, mux).ServeHTTP(httptest.NewRecorder(), r)
	if r.Pattern != "/a/{id}" {
		t.Errorf("pattern %q", r.Pattern)
	}
}

// TestHandlersDeadlineEnds: with the request, so that what hangs on it is free.
func TestHandlersDeadlineEnds(t *testing.T) {
	var inner context.Context
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set(expectedTimeout, "3600000")
	Handler(inbound.New(inbound.Options{}), nil, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		inner = r.Context()
		if err := inner.Err(); err != nil {
			t.Error(err)
		}
	})).ServeHTTP(httptest.NewRecorder(), r)
	if _, ok := inner.Deadline(); !ok || inner.Err() == nil {
		t.Errorf("deadline %t, %v after the request", ok, inner.Err())
	}
}

// TestHandlerHeaders: what a client may not bring along does not arrive, and
// the map that came is as it was.
func TestHandlerHeaders(t *testing.T) {
	leak.Check(t)
	var got http.Header
	var host string
	var before, after http.Header
	h := newHouse(t, permissive(nil), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, host = r.Header.Clone(), r.Host
	}), nil)
	send := map[string]string{
		"X-Forwarded-Client-Cert": "By=spiffe://cluster.local/ns/default/sa/admin", "x-envoy-original-path": "/admin",
		"X-Envoy-Internal": "true", "X-Istio-Attributes": "x", "X-Kept": "1",
	}
	for _, c := range []struct {
		name   string
		config *tls.Config
		kept   []string
	}{
		{"plaintext", nil, []string{"X-Kept"}},
		{"a peer of the mesh", h.as(t, h.ca.issue(t, "web", time.Hour)), []string{"X-Envoy-Internal", "X-Envoy-Original-Path", "X-Istio-Attributes", "X-Kept"}},
	} {
		for _, h2 := range []bool{false, true} {
			scheme := "http://"
			if c.config != nil {
				scheme = "https://"
			}
			r := request(t, "GET", scheme+h.address+"/", nil)
			for k, v := range send {
				r.Header.Set(k, v)
			}
			if code, body, err := get(t, h.client(t, c.config, h2), r); err != nil || code != 200 {
				t.Fatalf("%d %s %v", code, body, err)
			}
			var names []string
			for name := range got {
				if strings.HasPrefix(name, "X-") {
					names = append(names, name)
				}
			}
			slices.Sort(names)
			if !slices.Equal(names, c.kept) || host != h.address {
				t.Errorf("%s: the handler sees %v from %q, want %v", c.name, names, host, c.kept)
			}
		}
	}

	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(policies(map[string]*snapshot.Inbound{"127.0.0.1:9080": letIn()}))
	r := arriveAt(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9080})
	r.Header = http.Header{"X-Envoy-Internal": {"true"}, "Host": {"evil"}, "X-Kept": {"1"}}
	before = maps.Clone(r.Header)
	Handler(e, nil, http.HandlerFunc(func(_ http.ResponseWriter, inner *http.Request) { after = inner.Header })).ServeHTTP(httptest.NewRecorder(), r)
	if fmt.Sprint(after) != "map[X-Kept:[1]]" || fmt.Sprint(r.Header) != fmt.Sprint(before) {
		t.Errorf("handler %v, caller %v", after, r.Header)
	}
	// Also where the Host is all that is taken out.
	r.Header = http.Header{"Host": {"evil"}, "X-Kept": {"1"}}
	Handler(e, nil, http.HandlerFunc(func(_ http.ResponseWriter, inner *http.Request) { after = inner.Header })).ServeHTTP(httptest.NewRecorder(), r)
	if fmt.Sprint(after) != "map[X-Kept:[1]]" || len(r.Header) != 2 {
		t.Errorf("handler %v, caller %v", after, r.Header)
	}
}

// TestForeignListener: on a listener of somebody else every peer is plaintext,
// whatever TLS it has.
func TestForeignListener(t *testing.T) {
	leak.Check(t)
	for mode, want := range map[string]int{"STRICT": 403, "PERMISSIVE": 200} {
		e := inbound.New(inbound.Options{Subscribe: func(string) {}, Source: staticSource(t, newTrustDomainCA(t, "cluster.local"), time.Hour)})
		var peer *identity.Peer
		handler := Handler(e, slog.New(slog.DiscardHandler), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			peer, _ = identity.PeerFromContext(r.Context())
		}))
		for _, secured := range []bool{false, true} {
			server := httptest.NewUnstartedServer(handler)
			if secured {
				server.StartTLS()
			} else {
				server.Start()
			}
			in := strict(nil)
			if mode == "PERMISSIVE" {
				in = permissive(nil)
			}
			e.Install(policies(map[string]*snapshot.Inbound{server.Listener.Addr().String(): in}))
			peer = nil
			code, body, err := get(t, server.Client(), request(t, "GET", server.URL, nil))
			if err != nil || code != want {
				t.Errorf("%s, TLS %v: %d %s %v", mode, secured, code, body, err)
			}
			if code == 200 && (peer == nil || peer.Authenticated() || peer.TLS != secured) {
				t.Errorf("%s, TLS %v: peer %+v", mode, secured, peer)
			}
			server.Client().CloseIdleConnections()
			server.Close()
		}
		e.Close()
	}
}

// TestPolicyChangesUnderConnections: the next request on a connection that is
// open is held to the policy of its time.
func TestPolicyChangesUnderConnections(t *testing.T) {
	leak.Check(t)
	h := newHouse(t, permissive(nil), http.HandlerFunc(who), nil)
	config := h.as(t, h.ca.issue(t, "web", time.Hour))
	for _, h2 := range []bool{false, true} {
		open, secured := h.client(t, nil, h2), h.client(t, config, h2)
		ask := func(step string, wantPlain, wantTLS int) {
			t.Helper()
			for client, want := range map[*http.Client]int{open: wantPlain, secured: wantTLS} {
				scheme := "http://"
				if client == secured {
					scheme = "https://"
				}
				code, body, err := get(t, client, request(t, "GET", scheme+h.address+"/", nil))
				if err != nil || code != want {
					t.Errorf("%s, %s HTTP/2 %v: %d %q %v, want %d", step, scheme, h2, code, body, err, want)
				}
			}
		}
		h.install(permissive(nil))
		ask("PERMISSIVE", 200, 200)
		h.install(strict(nil))
		ask("STRICT", 403, 200)
		h.install(permissive(nil))
		ask("PERMISSIVE again", 200, 200)
		nobody := ruled(t, identity.Allow)
		h.install(permissive(&snapshot.FilterChain{Authorizer: authorizer(t, nobody)}))
		ask("nobody is allowed", 403, 403)
	}
}

// TestTLSTurnedOff: a connection with mutual TLS from before is one without an
// identity when policy has no TLS any more, and is asked to close.
func TestTLSTurnedOff(t *testing.T) {
	leak.Check(t)
	h := newHouse(t, strict(nil), http.HandlerFunc(who), nil)
	client := h.client(t, h.as(t, h.ca.issue(t, "web", time.Hour)), false)
	if _, body, err := get(t, client, request(t, "GET", "https://"+h.address+"/", nil)); err != nil || !strings.HasSuffix(body, "/sa/web") {
		t.Fatalf("%q %v", body, err)
	}
	h.install(plain(nil))
	resp, err := client.Get("https://" + h.address + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "HTTP/1.1 " || !resp.Close {
		t.Errorf("%q, closes %v", body, resp.Close)
	}
}

// TestServerRotation: requests go on over a rotation of our certificate, on
// connections with the new one, and end with the trust in their peer.
func TestServerRotation(t *testing.T) {
	leak.Check(t)
	for _, h2 := range []bool{false, true} {
		h := newHouse(t, strict(nil), http.HandlerFunc(who), nil)
		next := newTrustDomainCA(t, "cluster.local")
		client := h.client(t, h.as(t, h.ca.issue(t, "web", time.Hour)), h2)
		// until asks until the answer is as wanted, and wants every answer before that to be good.
		until := func(what string, done func(*http.Response) bool) {
			t.Helper()
			for deadline := time.Now().Add(20 * time.Second); ; {
				resp, err := client.Get("https://" + h.address + "/")
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if done(resp) {
					return
				}
				if resp.StatusCode != 200 || time.Now().After(deadline) {
					t.Fatalf("%s: %d", what, resp.StatusCode)
				}
			}
		}
		presents := func(cert *tls.Certificate) func(*http.Response) bool {
			return func(r *http.Response) bool { return bytes.Equal(r.TLS.PeerCertificates[0].Raw, cert.Certificate[0]) }
		}
		first := h.ca.issue(t, "server", time.Hour)
		h.set(t, material(t, first, h.ca))
		until("a new certificate", presents(first))
		// The same certificate with another root beside it changes nothing for the connection.
		h.set(t, material(t, first, h.ca, newTrustDomainCA(t, "other.example")))
		until("one more root", presents(first))
		// The root goes: the connection's peer is believed no more.
		h.set(t, &source.Material{Certificate: first, Bundles: material(t, nil, next).Bundles})
		until("the root is gone", func(r *http.Response) bool { return r.StatusCode == 403 && (h2 || r.Close) })
		if o := h.seen.last(); o.Reason != inbound.ReasonPeer || o.Rule != string(identity.RuleChain) {
			t.Errorf("outcome %+v", o)
		}
	}
}

// TestExpiry: a connection is asked to close in time, and refused after its certificate has expired.
func TestExpiry(t *testing.T) {
	leak.Check(t)
	h := newHouse(t, strict(nil), http.HandlerFunc(who), nil)
	// It began an hour ago: two minutes are in the last tenth of its validity.
	client := h.client(t, h.as(t, h.ca.issue(t, "web", 2*time.Minute)), false)
	resp, err := client.Get("https://" + h.address + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || !resp.Close {
		t.Errorf("%d, closes %v", resp.StatusCode, resp.Close)
	}
}

// TestRefusals: each reason has its status, its code and its headers, and none
// tells what policy is made of.
func TestRefusals(t *testing.T) {
	leak.Check(t)
	admin := identity.PathBegins("/admin")
	limit := must(resilience.NewRateLimit(resilience.RateLimitConfig{
		Name: "internal-limit", Bucket: &resilience.TokenBucket{MaxTokens: 1, TokensPerFill: 1, FillInterval: time.Hour},
		Enabled: routing.Fraction{PerMillion: 1e6}, Enforced: routing.Fraction{PerMillion: 1e6}, Headers: true, RetryAfter: true,
	}))
	authenticator := must(identity.NewJWTAuthenticator(identity.JWTConfig{
		Providers: []identity.JWTProvider{{Name: "internal-provider", Issuer: "https://issuer.example", Keys: must(identity.NewKeySet(nil))}},
		Rules:     []identity.JWTRule{{Requires: ptr(identity.RequireProvider("internal-provider"))}},
	}))
	for _, c := range []struct {
		name    string
		chain   *snapshot.FilterChain
		request string
		header  []string
		status  int
		code    string
		answer  map[string]string
	}{
		{"DENY", &snapshot.FilterChain{Authorizer: authorizer(t, ruled(t, identity.Deny, rule("internal-rule", &admin, nil)))}, "GET /admin HTTP/1.1", nil, 403, "denied", nil},
		{"nobody allowed", &snapshot.FilterChain{Authorizer: authorizer(t, ruled(t, identity.Allow))}, "GET / HTTP/1.1", nil, 403, "denied", nil},
		{"no token", &snapshot.FilterChain{Tokens: &snapshot.Tokens{Authenticator: authenticator}}, "GET /x?access=1 HTTP/1.1", nil, 401, "token",
			map[string]string{"Www-Authenticate": `Bearer realm="http://reviews/x"`}},
		{"a bad token", &snapshot.FilterChain{Tokens: &snapshot.Tokens{Authenticator: authenticator}}, "GET /x HTTP/1.1", []string{"Authorization: Bearer secret"}, 401, "token",
			map[string]string{"Www-Authenticate": `Bearer realm="http://reviews/x", error="invalid_token"`}},
		{"an authorizer that policy does not describe", &snapshot.FilterChain{Authorizer: authorizer(t, ruled(t, identity.Custom, rule("internal-rule", nil, nil)))}, "GET / HTTP/1.1", nil, 403, "external", nil},
		{"a path", &snapshot.FilterChain{}, "GET /#x HTTP/1.1", nil, 400, "path_refused", nil},
		{"another spelling", &snapshot.FilterChain{Paths: identity.PathOptions{EscapedSlashes: identity.UnescapeSlashesAndRedirect}}, "GET /a%2Fb?c HTTP/1.1", nil, 307, "redirect",
			map[string]string{"Location": "/a/b?c"}},
		{"too many", &snapshot.FilterChain{RateLimits: []*resilience.RateLimit{limit}}, "GET / HTTP/1.1", nil, 429, "rate_limited",
			map[string]string{"Retry-After": "3600", "X-Ratelimit-Limit": "1", "X-Ratelimit-Remaining": "0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			reached := 0
			h := newHouse(t, plain(c.chain), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached++ }), nil)
			if c.code == "rate_limited" {
				if code, _ := h.raw(t, nil, lines(c.request, "Host: reviews", "Connection: close")); code != 200 {
					t.Fatalf("the first of them: %d", code)
				}
				reached = 0
			}
			conn := must(net.Dial("tcp", h.address))
			defer conn.Close()
			_, _ = io.WriteString(conn, lines(c.request, append([]string{"Host: reviews", "Connection: close"}, c.header...)...))
			raw, _ := io.ReadAll(conn)
			head, body, _ := strings.Cut(string(raw), "\r\n\r\n")
			var refusal Refusal
			if err := json.Unmarshal([]byte(body), &refusal); err != nil || refusal.Code != c.code || refusal.Listener != h.address || !strings.HasPrefix(head, fmt.Sprintf("HTTP/1.1 %d ", c.status)) {
				t.Errorf("%s %s, want %d %s", head, body, c.status, c.code)
			}
			for name, value := range c.answer {
				if !strings.Contains(head, "\r\n"+name+": "+value) {
					t.Errorf("%s has no %s: %s", head, name, value)
				}
			}
			if reached != 0 || strings.Contains(string(raw), "internal") || strings.Contains(string(raw), "secret") {
				t.Errorf("reached %d, answer %s", reached, raw)
			}
			if got := h.seen.last(); string(got.Reason) == "" {
				t.Error("the observer was not told of the refusal")
			}
		})
	}
}

// TestRefusalTellsTheConnection: after a refusal for its own sake a connection is closed.
func TestRefusalTellsTheConnection(t *testing.T) {
	leak.Check(t)
	h := newHouse(t, strict(nil), http.HandlerFunc(who), nil)
	resp, err := h.client(t, nil, false).Get("http://" + h.address)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 || !resp.Close {
		t.Errorf("%d, closes %v", resp.StatusCode, resp.Close)
	}
}

// TestUsage: who still speaks plaintext is counted by address, refused or not.
func TestUsage(t *testing.T) {
	leak.Check(t)
	in := permissive(nil)
	in.StrictDryRun = "PeerAuthentication default/strict"
	h := newHouse(t, in, http.HandlerFunc(who), nil)
	secured := h.client(t, h.as(t, h.ca.issue(t, "web", time.Hour)), true)
	for range 3 {
		_, _, _ = get(t, secured, request(t, "GET", "https://"+h.address+"/", nil))
	}
	for range 2 {
		h.raw(t, nil, lines("GET / HTTP/1.1", "Host: a", "Connection: close"))
	}
	want := inbound.PeerUsage{Listener: h.address, Peer: loopback, Plaintext: 2, MutualTLS: 3, StrictDryRun: 2}
	if got := h.engine.Usage(); len(got) != 1 || got[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := h.engine.Usage(); len(got) != 0 {
		t.Errorf("counted twice: %+v", got)
	}
	if o := h.seen.last(); o.StrictDryRun != in.StrictDryRun || o.MutualTLS {
		t.Errorf("outcome %+v", o)
	}
	h.install(strict(nil))
	h.raw(t, nil, lines("GET / HTTP/1.1", "Host: a", "Connection: close"))
	if got := h.engine.Usage(); len(got) != 1 || got[0].Plaintext != 1 || got[0].StrictDryRun != 0 {
		t.Errorf("under STRICT: %+v", got)
	}
}

func ptr[V any](v V) *V { return &v }
