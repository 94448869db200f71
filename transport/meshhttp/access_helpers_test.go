package meshhttp

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// trustDomainCA signs the certificates of one trust domain.
type trustDomainCA struct {
	domain string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
}

func newTrustDomainCA(t testing.TB, domain string) *trustDomainCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: domain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &trustDomainCA{domain, cert, key}
}

// issue makes a certificate for "/ns/default/sa/NAME".
func (a *trustDomainCA) issue(t testing.TB, name string, life time.Duration) *tls.Certificate {
	t.Helper()
	return a.certify(t, &url.URL{Scheme: "spiffe", Host: a.domain, Path: "/ns/default/sa/" + name}, life)
}

// issueURI makes a certificate for any name.
func (a *trustDomainCA) issueURI(t testing.TB, u *url.URL) *tls.Certificate {
	t.Helper()
	return a.certify(t, u, time.Hour)
}

func (a *trustDomainCA) certify(t testing.TB, u *url.URL, life time.Duration) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		URIs:         []*url.URL{u},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// material is a certificate with the roots of the authorities.
func material(t testing.TB, cert *tls.Certificate, roots ...*trustDomainCA) *source.Material {
	t.Helper()
	m := &source.Material{Certificate: cert, Bundles: identity.BundleSet{}}
	for _, a := range roots {
		td, err := identity.ParseTrustDomain(a.domain)
		if err != nil {
			t.Fatal(err)
		}
		if m.Bundles[td], err = identity.NewBundle([]*x509.Certificate{a.cert}, nil); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// staticSource gives every listener a certificate of the authority.
func staticSource(t testing.TB, ca *trustDomainCA, life time.Duration) func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) {
	t.Helper()
	s, err := source.NewStatic(material(t, ca.issue(t, "server", life), ca))
	return func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return s, err }
}

// observed notes what the engine reports.
type observed struct {
	mu         sync.Mutex
	outcomes   []inbound.Outcome
	handshakes []string
}

func (o *observed) Decided(_ context.Context, out *inbound.Outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.outcomes = append(o.outcomes, *out)
}

func (o *observed) HandshakeFailed(_, rule string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.handshakes = append(o.handshakes, rule)
}

// failed waits until a handshake has failed and returns its rule.
func (o *observed) failed(t testing.TB) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		o.mu.Lock()
		n := len(o.handshakes)
		o.mu.Unlock()
		if n > 0 {
			o.mu.Lock()
			defer o.mu.Unlock()
			return o.handshakes[n-1]
		}
		if time.Now().After(deadline) {
			t.Fatal("no handshake failed")
		}
	}
}

// last is the last outcome.
func (o *observed) last() inbound.Outcome {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.outcomes) == 0 {
		return inbound.Outcome{}
	}
	return o.outcomes[len(o.outcomes)-1]
}

// house is a server behind a listener of the mesh.
type house struct {
	engine  *inbound.Engine
	source  *source.Static
	ca      *trustDomainCA
	address string
	seen    *observed
	stop    func() error
}

// newHouse serves the handler on loopback under a policy; nil installs none.
func newHouse(t testing.TB, in *snapshot.Inbound, handler http.Handler, change func(*inbound.Options)) *house {
	t.Helper()
	h := &house{ca: newTrustDomainCA(t, "cluster.local"), seen: &observed{}}
	var err error
	if h.source, err = source.NewStatic(material(t, h.ca.issue(t, "server", time.Hour), h.ca)); err != nil {
		t.Fatal(err)
	}
	options := inbound.Options{
		Subscribe:  func(string) {},
		PolicyWait: 200 * time.Millisecond,
		Source: func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) {
			return h.source, nil
		},
		Observer: h.seen,
		Log:      slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&options)
	}
	h.engine = inbound.New(options)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = raw.Addr().String()
	lis := NewListener(h.engine, raw, options.Log)
	h.engine.Listening(lis.Addr())
	if in != nil {
		h.install(in)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, lis, Handler(h.engine, options.Log, handler), 5*time.Second)
	}()
	h.stop = sync.OnceValue(func() error {
		cancel()
		err := <-served
		h.engine.Close()
		return err
	})
	t.Cleanup(func() { _ = h.stop() })
	return h
}

func (h *house) install(in *snapshot.Inbound) {
	h.engine.Install(policies(map[string]*snapshot.Inbound{h.address: in}))
}

// socket is mutual TLS as policy wants it.
func socket() *snapshot.ServerTLS {
	return &snapshot.ServerTLS{
		Certificate: snapshot.CertificateSource{Instance: "default"}, Trust: snapshot.TrustSource{Instance: "default"},
		RequireClientCertificate: true,
	}
}

// strict, permissive and plain are listeners whose requests are held to the
// chain; nil lets everything through.
func strict(c *snapshot.FilterChain) *snapshot.Inbound {
	return &snapshot.Inbound{TLS: secure(c)}
}

func permissive(c *snapshot.FilterChain) *snapshot.Inbound {
	return &snapshot.Inbound{TLS: secure(c), Plain: orEmpty(c)}
}

func plain(c *snapshot.FilterChain) *snapshot.Inbound {
	return &snapshot.Inbound{Plain: orEmpty(c)}
}

func orEmpty(c *snapshot.FilterChain) *snapshot.FilterChain {
	if c == nil {
		return &snapshot.FilterChain{}
	}
	return c
}

func secure(c *snapshot.FilterChain) *snapshot.FilterChain {
	with := *orEmpty(c)
	with.Socket = socket()
	return &with
}

// as is a TLS configuration of a client with the certificate; nil has none.
func (h *house) as(t testing.TB, cert *tls.Certificate, protocols ...string) *tls.Config {
	t.Helper()
	src, err := source.NewStatic(material(t, cert, h.ca))
	if err != nil {
		t.Fatal(err)
	}
	return tlsconfig.Client(src, tlsconfig.ClientOptions{ServerName: "reviews", WithoutCertificate: cert == nil, Protocols: protocols})
}

// presenting is the configuration with another certificate, whatever its source thinks of that.
func presenting(config *tls.Config, cert *tls.Certificate) *tls.Config {
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	return config
}

// client is an HTTP client; config nil speaks plaintext.
func (h *house) client(t testing.TB, config *tls.Config, h2 bool) *http.Client {
	t.Helper()
	p := new(http.Protocols)
	p.SetHTTP1(!h2)
	p.SetHTTP2(h2 && config != nil)
	p.SetUnencryptedHTTP2(h2 && config == nil)
	if config != nil {
		config = config.Clone()
		config.NextProtos = []string{map[bool]string{false: "http/1.1", true: "h2"}[h2]}
	}
	transport := &http.Transport{Protocols: p, TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw sends bytes on a connection of its own and returns the answers' status and
// the JSON code of each refusal.
func (h *house) raw(t testing.TB, config *tls.Config, message string) (int, string) {
	t.Helper()
	var conn net.Conn
	conn, err := net.Dial("tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if config != nil {
		conn = tls.Client(conn, config)
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, message); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", message, err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	var refusal Refusal
	_ = json.Unmarshal(body, &refusal)
	return resp.StatusCode, refusal.Code
}

// who answers with the peer's identity.
func who(w http.ResponseWriter, r *http.Request) {
	p, ok := identity.PeerFromContext(r.Context())
	if !ok {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	_, _ = io.WriteString(w, r.Proto+" "+p.ID.String())
}

// ruled is an authorizer of one set of rules.
func ruled(t testing.TB, action identity.Action, rules ...identity.Rule) *identity.RuleSet {
	t.Helper()
	s, err := identity.NewRuleSet(action, false, rules)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func authorizer(t testing.TB, sets ...*identity.RuleSet) *identity.Authorizer {
	t.Helper()
	a, err := identity.NewAuthorizer(sets...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// rule is a rule of one permission and one principal; nil is anything.
func rule(name string, permission, principal *identity.Condition) identity.Rule {
	all := identity.Any()
	if permission == nil {
		permission = &all
	}
	if principal == nil {
		principal = &all
	}
	return identity.Rule{Name: name, Permissions: []identity.Condition{*permission}, Principals: []identity.Condition{*principal}}
}

func must[V any](v V, err error) V {
	if err != nil {
		panic(err)
	}
	return v
}

// lines joins header lines to a request's head.
func lines(request string, header ...string) string {
	return strings.Join(slices.Concat([]string{request}, header, []string{"", ""}), "\r\n")
}

var loopback = netip.MustParseAddr("127.0.0.1")

// set puts other material in force.
func (h *house) set(t testing.TB, m *source.Material) {
	t.Helper()
	if err := h.source.Set(m); err != nil {
		t.Fatal(err)
	}
}
