package inbound

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

func sure[V any](v V, err error) V {
	if err != nil {
		panic(err)
	}
	return v
}

// set is rules of one action.
func set(action identity.Action, dryRun bool, rules ...identity.Rule) *identity.RuleSet {
	return sure(identity.NewRuleSet(action, dryRun, rules))
}

func when(name string, permission identity.Condition) identity.Rule {
	return identity.Rule{Name: name, Permissions: []identity.Condition{permission}, Principals: []identity.Condition{identity.Any()}}
}

func header(name, value string) identity.Condition {
	return sure(identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(name), String: routing.Exact(value, false)}))
}

// outcomes notes what the observer is told.
type outcomes struct {
	mu   sync.Mutex
	list []Outcome
}

func (o *outcomes) Decided(_ context.Context, out *Outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, *out)
}
func (o *outcomes) HandshakeFailed(string, string) {}

// desk is an engine with one plaintext listener.
type desk struct {
	*Engine
	seen *outcomes
}

func newDesk(t testing.TB, chain *snapshot.FilterChain, change func(*Options)) *desk {
	d := &desk{seen: &outcomes{}}
	o := Options{Subscribe: func(string) {}, Observer: d.seen, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	d.Engine = New(o)
	t.Cleanup(d.Close)
	d.install(chain)
	return d
}

func (d *desk) install(chain *snapshot.FilterChain) {
	d.Install(&snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{"10.0.0.7:9080": {Plain: chain}}})
}

var localAddress, remoteAddress = &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 9080}, netip.MustParseAddrPort("10.9.0.1:4711")

// incoming is a request for a path with headers.
func incoming(path string, h map[string][]string) *Request {
	return &Request{Local: localAddress, Remote: remoteAddress, Access: identity.AccessRequest{
		Request: routing.Request{Method: "GET", Scheme: "http", Authority: "reviews", Path: path, Header: h},
	}}
}

// reason is why a request is refused; "" if it is let in.
func reason(err error) Reason {
	var denied *DeniedError
	var notReady *NotReadyError
	switch {
	case errors.As(err, &denied):
		return denied.Reason
	case errors.As(err, &notReady):
		return ReasonNotReady
	case err != nil:
		return "?"
	}
	return ""
}

// signer makes tokens and the keys that verify them.
func signer(t testing.TB, issuer string) (sign func(claims map[string]any) string, keys *identity.KeySet) {
	t.Helper()
	key := sure(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	s := sure(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil))
	doc := sure(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}}))
	return func(claims map[string]any) string {
		claims["iss"], claims["exp"] = issuer, time.Now().Add(time.Hour).Unix()
		return sure(sure(s.Sign(sure(json.Marshal(claims)))).CompactSerialize())
	}, sure(identity.ParseKeySet(doc))
}

// TestOrder: each step sees what those before it have made of the request, and
// the first that refuses is the one that answers.
func TestOrder(t *testing.T) {
	sign, keys := signer(t, "https://issuer.example")
	authenticator := sure(identity.NewJWTAuthenticator(identity.JWTConfig{
		Providers: []identity.JWTProvider{{Name: "p", Issuer: "https://issuer.example", Keys: keys, ClaimHeaders: []identity.ClaimHeader{{Header: "X-Sub", Claim: "sub"}}}},
		Rules:     []identity.JWTRule{{Requires: ptr(identity.RequireProvider("p"))}},
	}))
	custom := set(identity.Custom, false, when("custom", identity.PathBegins("/custom")))
	custom.Provider = "opa"
	limit := sure(resilience.NewRateLimit(resilience.RateLimitConfig{
		Name: "limit", Identity: "limit", Enabled: routing.Fraction{PerMillion: 1e6}, Enforced: routing.Fraction{PerMillion: 1e6},
		Bucket: &resilience.TokenBucket{MaxTokens: 2, TokensPerFill: 1, FillInterval: time.Hour},
	}))
	build := func() *snapshot.FilterChain {
		return &snapshot.FilterChain{
			Paths:    identity.PathOptions{Normalize: true},
			External: &snapshot.ExternalAuthorizer{Provider: "opa", Host: "opa:80", HTTP: &snapshot.ExternalHTTP{UpstreamHeaders: []routing.StringMatch{routing.Prefix("x-", false)}}},
			Tokens:   &snapshot.Tokens{Authenticator: authenticator},
			Authorizer: sure(identity.NewAuthorizer(
				custom,
				set(identity.Audit, false, when("audit", header("x-sub", "alice"))),
				set(identity.Deny, false, when("deny", header("x-sub", "mallory")), when("deny path", identity.PathIs("/admin")), when("deny from opa", header("x-opa", "deny"))),
				set(identity.Deny, true, when("shadow", identity.PathIs("/old"))),
			)),
			RateLimits: []*resilience.RateLimit{limit},
		}
	}
	var asked int
	var answer func() *http.Response
	d := newDesk(t, build(), func(o *Options) {
		o.HTTP = transport(func(r *http.Request) (*http.Response, error) {
			asked++
			resp := answer()
			if resp == nil {
				return nil, errors.New("down")
			}
			resp.Request, resp.Body = r, http.NoBody
			return resp, nil
		})
	})
	alice, mallory := sign(map[string]any{"sub": "alice"}), sign(map[string]any{"sub": "mallory"})
	bearer := func(token string) map[string][]string {
		return map[string][]string{"Authorization": {"Bearer " + token}}
	}
	ok := func(h http.Header) func() *http.Response {
		return func() *http.Response { return &http.Response{StatusCode: 200, Header: h} }
	}
	for _, c := range []struct {
		name   string
		r      *Request
		answer func() *http.Response
		want   Reason
		rule   string
		asked  int
		more   Outcome // what else is told
	}{
		{"a path that is refused is asked nothing", incoming("/custom#", nil), nil, ReasonPath, "", 0, Outcome{}},
		{"CUSTOM before tokens", incoming("/custom", nil), func() *http.Response { return &http.Response{StatusCode: 403} }, ReasonExternal, "custom", 1, Outcome{}},
		{"CUSTOM by the normalised path", incoming("/x/../custom", nil), func() *http.Response { return nil }, ReasonExternal, "custom", 1, Outcome{ExternalFailed: true}},
		{"tokens after CUSTOM", incoming("/custom", nil), ok(nil), ReasonToken, "JwtMissed", 1, Outcome{}},
		{"tokens before rules", incoming("/admin", bearer("x")), nil, ReasonToken, "JwtBadFormat", 0, Outcome{}},
		{"rules see what tokens say", incoming("/x", bearer(mallory)), nil, ReasonAuthorization, "deny", 0, Outcome{}},
		{"rules see what the authorizer says", incoming("/custom", bearer(alice)), ok(http.Header{"X-Opa": {"deny"}}), ReasonAuthorization, "deny from opa", 1, Outcome{Audited: "audit"}},
		{"but it says nothing in the token's place", incoming("/custom", bearer(alice)), ok(http.Header{"X-Sub": {"mallory"}}), "", "", 1, Outcome{Audited: "audit"}},
		{"rules see the normalised path", incoming("/./%61dmin", bearer(alice)), nil, ReasonAuthorization, "deny path", 0, Outcome{Audited: "audit"}},
		{"dry run refuses nothing", incoming("/old", bearer(alice)), nil, "", "", 0, Outcome{Audited: "audit", DryRun: true, DryRunRule: "shadow"}},
		{"limits last, and only for those who may", incoming("/x", bearer(alice)), nil, ReasonRateLimit, "limit", 0, Outcome{Audited: "audit"}},
	} {
		asked, answer = 0, c.answer
		d.seen.list = nil
		var a Admission
		err := d.Admit(t.Context(), c.r, &a)
		want := c.more
		want.Listener, want.Reason, want.Rule = "10.0.0.7:9080", c.want, c.rule
		if reason(err) != c.want || asked != c.asked || len(d.seen.list) != 1 || d.seen.list[0] != want {
			t.Errorf("%s: %v, asked %d times, told %+v; want %s, %d, %+v", c.name, err, asked, d.seen.list, c.want, c.asked, want)
		}
		if err == nil && (!a.HeaderChanged || c.r.Access.Header["X-Sub"][0] != "alice" || c.r.Access.Header["Authorization"] != nil) {
			t.Errorf("%s: the handler gets %v", c.name, c.r.Access.Header)
		}
		// A new policy that says the same carries the state on.
		d.install(build())
	}
	if u := d.Usage(); len(u) != 1 || u[0] != (PeerUsage{Listener: "10.0.0.7:9080", Peer: remoteAddress.Addr(), Plaintext: 11, DryRun: 1}) {
		t.Errorf("usage %+v", u)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func ptr[V any](v V) *V { return &v }

// TestLowerHeaders: over gRPC, whose header names are in lower case, the same happens.
func TestLowerHeaders(t *testing.T) {
	sign, keys := signer(t, "https://issuer.example")
	d := newDesk(t, &snapshot.FilterChain{Tokens: &snapshot.Tokens{Authenticator: sure(identity.NewJWTAuthenticator(identity.JWTConfig{
		Providers: []identity.JWTProvider{{Name: "p", Issuer: "https://issuer.example", Keys: keys, ClaimHeaders: []identity.ClaimHeader{{Header: "X-Sub", Claim: "sub"}}}},
		Rules:     []identity.JWTRule{{Requires: ptr(identity.RequireAny(identity.RequireProvider("p"), identity.AllowMissing()))}},
	}))}}, nil)
	for _, c := range []struct {
		in   map[string][]string
		want string
	}{
		{map[string][]string{"authorization": {"Bearer " + sign(map[string]any{"sub": "alice\r\nx-role: admin"})}, "x-sub": {"admin"}, "a": {"b"}}, "map[a:[b] x-sub:[alice  x-role: admin]]"},
		{map[string][]string{"x-sub": {"admin"}, "x-forwarded-client-cert": {"x"}, "x-envoy-original-path": {"/x"}}, "map[]"},
		{map[string][]string{"a": {"b"}}, "map[a:[b]]"},
	} {
		before := fmt.Sprint(c.in)
		r := incoming("/pkg.Service/Method", c.in)
		r.Access.Form = routing.LowerHeaders
		var a Admission
		if err := d.Admit(t.Context(), r, &a); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(r.Access.Header); got != c.want || a.HeaderChanged != (got != before) {
			t.Errorf("%v, changed %v, want %s", got, a.HeaderChanged, c.want)
		}
		if fmt.Sprint(c.in) != before {
			t.Errorf("the caller's map is %v now", c.in)
		}
	}
}

// TestNothingIsLeftOfTheLastRequest: what a request was is not what the next one is.
func TestNothingIsLeftOfTheLastRequest(t *testing.T) {
	d := newDesk(t, &snapshot.FilterChain{Authorizer: sure(identity.NewAuthorizer(set(identity.Allow, false, identity.Rule{
		Name: "anybody known", Permissions: []identity.Condition{identity.Any()}, Principals: []identity.Condition{identity.Authenticated()},
	})))}, nil)
	r := incoming("/", nil)
	r.Access.Principal, r.Access.Claims = "spiffe://cluster.local/ns/default/sa/admin", &identity.Claims{Issuer: "x"}
	r.Access.PeerIP, r.Access.RemoteIP = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.1")
	a := Admission{CloseConnection: true, Response: []Header{{"A", "b"}}}
	if err := d.Admit(t.Context(), r, &a); reason(err) != ReasonAuthorization {
		t.Errorf("%v", err)
	}
	if r.Access.Principal != "" || r.Access.Claims != nil || r.Access.PeerIP != remoteAddress.Addr() || r.Access.RemoteIP != remoteAddress.Addr() || a.CloseConnection || a.Response != nil {
		t.Errorf("%+v %+v", r.Access, a)
	}
}

// TestForwardedForIsNotBelieved: what a client says of whom it stands for counts for nothing.
func TestForwardedForIsNotBelieved(t *testing.T) {
	inside := sure(identity.RemoteIPIn(netip.MustParsePrefix("10.1.0.0/16")))
	d := newDesk(t, &snapshot.FilterChain{Authorizer: sure(identity.NewAuthorizer(set(identity.Allow, false, when("inside", inside))))}, nil)
	if err := d.Admit(t.Context(), incoming("/", map[string][]string{"X-Forwarded-For": {"10.1.0.1", "10.1.0.2"}}), new(Admission)); reason(err) != ReasonAuthorization {
		t.Errorf("%v", err)
	}
}

// TestAuthorizerConnections: one connection for each authorizer, as long as a policy asks for it.
func TestAuthorizerConnections(t *testing.T) {
	var open, dialled atomic.Int64
	dial := func(string) (grpc.ClientConnInterface, io.Closer, error) {
		open.Add(1)
		dialled.Add(1)
		return nil, closer(func() { open.Add(-1) }), nil
	}
	chain := func(host string) *snapshot.FilterChain {
		return &snapshot.FilterChain{External: &snapshot.ExternalAuthorizer{Provider: "opa", Host: host}}
	}
	d := newDesk(t, chain("a:1"), func(o *Options) { o.DialGRPC = dial })
	d.install(chain("a:1"))
	if open.Load() != 1 || dialled.Load() != 1 {
		t.Errorf("%d open of %d", open.Load(), dialled.Load())
	}
	d.install(chain("b:1"))
	if open.Load() != 1 || dialled.Load() != 2 {
		t.Errorf("%d open of %d", open.Load(), dialled.Load())
	}
	d.Close()
	if open.Load() != 0 {
		t.Errorf("%d open", open.Load())
	}
	d.install(chain("c:1")) // after the end nothing begins
	if open.Load() != 0 {
		t.Errorf("%d open", open.Load())
	}
}

type closer func()

func (c closer) Close() error { c(); return nil }

// TestSources: a listener without a usable source refuses handshakes with the
// reason and says nothing about plaintext, and a source is watched as long as it is used.
func TestSources(t *testing.T) {
	static := &closing{Source: sure(source.NewStatic(nil))}
	var asked []snapshot.CertificateSource
	broken := errors.New(`the bootstrap has no "elsewhere"`)
	e := New(Options{Subscribe: func(string) {}, PolicyWait: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler), Source: func(c snapshot.CertificateSource, _ snapshot.TrustSource) (source.Source, error) {
		asked = append(asked, c)
		if c.Instance == "elsewhere" {
			return nil, broken
		}
		return static, nil
	}})
	defer e.Close()
	in := func(instance string) *snapshot.Inbound {
		return &snapshot.Inbound{Plain: &snapshot.FilterChain{}, TLS: &snapshot.FilterChain{Socket: &snapshot.ServerTLS{Certificate: snapshot.CertificateSource{Instance: instance}}}}
	}
	install := func(names ...string) {
		s := &snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{}}
		for i, name := range names {
			s.Inbound[fmt.Sprintf("10.0.0.%d:9080", i+1)] = in(name)
		}
		e.Install(s)
	}
	install("default", "default", "elsewhere")
	if len(asked) != 2 || len(e.credentials) != 1 {
		t.Errorf("asked for %v, holds %d", asked, len(e.credentials))
	}
	for address, want := range map[string]error{"10.0.0.1:9080": source.ErrNotReady, "10.0.0.3:9080": broken} {
		local := at(t, address)
		ours, theirs := net.Pipe()
		c := e.Open(local, remoteAddr(), theirs.Close)
		if !c.MayBeTLS() {
			t.Errorf("%s: not TLS", address)
		}
		conn, err := c.Handshake(t.Context(), theirs, time.Second)
		var notReady *NotReadyError
		if conn != nil || !errors.Is(err, want) || !errors.As(err, &notReady) || notReady.Address != address {
			t.Errorf("%s: %v %v, want %v", address, conn, err, want)
		}
		if err := e.Admit(t.Context(), &Request{Local: local, Conn: c}, new(Admission)); err != nil {
			t.Errorf("%s: plaintext: %v", address, err)
		}
		c.Closed()
		c.Closed() // again is nothing
		if e.Conn(local) != nil {
			t.Errorf("%s: the connection is still there", address)
		}
		ours.Close()
		theirs.Close()
	}
	install()
	if len(e.credentials) != 0 || static.closed != 1 {
		t.Errorf("holds %d, closed %d times", len(e.credentials), static.closed)
	}
}

// closing is a source that counts how often it is closed.
type closing struct {
	source.Source
	closed int
}

func (c *closing) Close() error {
	c.closed++
	return c.Source.Close()
}

func remoteAddr() net.Addr { return net.TCPAddrFromAddrPort(remoteAddress) }

// TestUsageIsBounded: however many addresses come, so many are told apart, and no request is lost.
func TestUsageIsBounded(t *testing.T) {
	d := newDesk(t, &snapshot.FilterChain{}, nil)
	const peers = 3 * maxUsagePeers
	var running sync.WaitGroup
	for half := range 2 {
		running.Go(func() {
			for i := half; i < peers; i += 2 {
				r := incoming("/", nil)
				r.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 1)
				if err := d.Admit(t.Context(), r, new(Admission)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var total uint64
	most := 0
	read := func() {
		u := d.Usage()
		most = max(most, len(u))
		for i := range u {
			total += u[i].Plaintext
		}
		if !slices.IsSortedFunc(u, func(a, b PeerUsage) int { return a.Peer.Compare(b.Peer) }) {
			t.Error("not in order")
		}
	}
	read()
	running.Wait()
	read()
	read()
	if total != peers || most > 2*maxUsagePeers+2 {
		t.Errorf("%d requests of %d, %d entries", total, peers, most)
	}
}

// TestNoSecretInErrors: a token is in no error.
func TestNoSecretInErrors(t *testing.T) {
	_, keys := signer(t, "https://issuer.example")
	d := newDesk(t, &snapshot.FilterChain{Tokens: &snapshot.Tokens{Authenticator: sure(identity.NewJWTAuthenticator(identity.JWTConfig{
		Providers: []identity.JWTProvider{{Name: "p", Keys: keys}}, Rules: []identity.JWTRule{{Requires: ptr(identity.RequireProvider("p"))}},
	}))}}, nil)
	r := incoming("/x", map[string][]string{"Authorization": {"Bearer canary.canary.canary"}})
	r.Access.RawQuery = "access_token=canary"
	err := d.Admit(t.Context(), r, new(Admission))
	if err == nil || strings.Contains(fmt.Sprintf("%v %+v", err, err), "canary") {
		t.Errorf("%+v", err)
	}
}

// busy is the rules of a workload that 10 of 1,000 policies select, of 10 rules each.
func busy(action identity.Action, rule func(policy, n int) identity.Rule) *identity.Authorizer {
	var rules []identity.Rule
	for policy := range 1000 {
		if policy%100 != 0 {
			continue // it selects another workload
		}
		for n := range 10 {
			rules = append(rules, rule(policy, n))
		}
	}
	return sure(identity.NewAuthorizer(set(action, false, rules...)))
}

func BenchmarkAdmitRules(b *testing.B) {
	name := func(policy, n int) string { return fmt.Sprintf("ns[default]-policy[p%d]-rule[%d]", policy, n) }
	typical := func(policy, n int) identity.Rule {
		return identity.Rule{
			Name:        name(policy, n),
			Permissions: []identity.Condition{identity.PathBegins(fmt.Sprintf("/api/%d/%d/", policy, n))},
			Principals:  []identity.Condition{sure(identity.PrincipalIs(fmt.Sprintf("spiffe://cluster.local/ns/default/sa/s%d", n)))},
		}
	}
	// Nothing of these is indexed: each is compared in full.
	worst := func(policy, n int) identity.Rule {
		return identity.Rule{
			Name:        name(policy, n),
			Permissions: []identity.Condition{sure(identity.AllOf(header("x-role", fmt.Sprint(policy, n)), sure(identity.Not(identity.PathIs("/x")))))},
			Principals:  []identity.Condition{sure(identity.Not(sure(identity.PrincipalIs(fmt.Sprintf("spiffe://cluster.local/ns/default/sa/s%d", n)))))},
		}
	}
	for _, c := range []struct {
		name  string
		rules *identity.Authorizer
		want  Reason
	}{
		{"deny", busy(identity.Deny, typical), ""},
		{"allow", sure(identity.NewAuthorizer(set(identity.Allow, false, append([]identity.Rule{when("last", identity.PathBegins("/products"))}, typical(1, 1))...))), ""},
		{"deny, nothing indexed", busy(identity.Deny, worst), ""},
	} {
		b.Run(c.name, func(b *testing.B) {
			e := New(Options{Subscribe: func(string) {}})
			defer e.Close()
			e.Install(&snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{"10.0.0.7:9080": {
				Plain: &snapshot.FilterChain{Paths: identity.PathOptions{Normalize: true}, Authorizer: c.rules},
			}}})
			local := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 9080}
			conn := e.Open(local, remoteAddr(), func() error { return nil })
			h := map[string][]string{"User-Agent": {"x"}, "Accept": {"*/*"}, "X-Role": {"user"}, "X-Request-Id": {"1"}}
			var r Request
			var a Admission
			b.ReportAllocs()
			for b.Loop() {
				r.Conn = e.Conn(local)
				r.Access.Method, r.Access.Scheme, r.Access.Authority, r.Access.Path, r.Access.DecodedPath, r.Access.Header = "GET", "http", "reviews", "/products/1", "/products/1", h
				if err := e.Admit(context.Background(), &r, &a); reason(err) != c.want {
					b.Fatal(err)
				}
			}
			conn.Closed()
		})
	}
}

func BenchmarkAdmitToken(b *testing.B) {
	sign, keys := signer(b, "https://issuer.example")
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(&snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{"10.0.0.7:9080": {
		Plain: &snapshot.FilterChain{Tokens: &snapshot.Tokens{Authenticator: sure(identity.NewJWTAuthenticator(identity.JWTConfig{
			Providers: []identity.JWTProvider{{Name: "p", Issuer: "https://issuer.example", Keys: keys, Forward: true}},
			Rules:     []identity.JWTRule{{Requires: ptr(identity.RequireProvider("p"))}},
		}))}},
	}}})
	h := map[string][]string{"Authorization": {"Bearer " + sign(map[string]any{"sub": "alice", "scope": strings.Repeat("read:books ", 30)})}}
	var r Request
	var a Admission
	b.ReportAllocs()
	for b.Loop() {
		r.Local, r.Remote = localAddress, remoteAddress
		r.Access.Method, r.Access.Path, r.Access.Header = "GET", "/products/1", h
		if err := e.Admit(context.Background(), &r, &a); err != nil {
			b.Fatal(err)
		}
	}
}

// blind is an observer that does not look.
type blind struct{}

func (blind) Decided(context.Context, *Outcome) {}
func (blind) HandshakeFailed(string, string)    {}

// TestAdmitAllocatesNothing: a request of the mesh's own client that is let in costs no memory.
func TestAdmitAllocatesNothing(t *testing.T) {
	e := New(Options{Subscribe: func(string) {}, Observer: blind{}})
	defer e.Close()
	deny := set(identity.Deny, false, when("admin", identity.PathBegins("/admin")))
	e.Install(&snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{"10.0.0.7:9080": {
		Plain: &snapshot.FilterChain{Paths: identity.PathOptions{Normalize: true}, Authorizer: sure(identity.NewAuthorizer(deny))},
	}}})
	local := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 9080}
	defer e.Open(local, remoteAddr(), func() error { return nil }).Closed()
	r, a := incoming("/x", map[string][]string{"A": {"b"}, "X-Envoy-Attempt-Count": {"1"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"1000"}}), new(Admission)
	allocs := testing.AllocsPerRun(1000, func() {
		r.Conn = e.Conn(local)
		if e.Admit(t.Context(), r, a) != nil {
			t.Fatal("refused")
		}
	})
	if a.HeaderChanged || len(r.Access.Header) != 3 {
		t.Errorf("the header was changed to %v", r.Access.Header)
	}
	if allocs >= 1 { // a collection may empty the pool now and then
		t.Errorf("%v allocations", allocs)
	}
}
