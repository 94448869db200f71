package ca

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/sinew-mesh/sinew/internal/leak"
)

type authFunc func(context.Context) (Caller, error)

func (f authFunc) Authenticate(ctx context.Context) (Caller, error) { return f(ctx) }

// serve runs the service on loopback; with creds nil it is plaintext.
func serve(t *testing.T, c *CA, creds credentials.TransportCredentials, more ...Authenticator) string {
	t.Helper()
	var opts []grpc.ServerOption
	if creds != nil {
		opts = append(opts, grpc.Creds(creds))
	}
	g := grpc.NewServer(opts...)
	NewService(c, more...).Register(g)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String()
}

// tlsServer asks for a certificate and does not verify it: the service must.
func tlsServer(t *testing.T, c *CA) credentials.TransportCredentials {
	t.Helper()
	cert, err := c.ServerCertificate("/sinew/xdsserver", []string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13})
}

// request calls the service over TLS with a client certificate, if given.
func request(t *testing.T, addr string, c *CA, cert *tls.Certificate, bearer []string, r *securityv1alpha1.IstioCertificateRequest) ([]string, error) {
	t.Helper()
	creds := insecure.NewCredentials()
	if c != nil {
		cfg := &tls.Config{RootCAs: c.Bundle().Pool(), Time: c.opts.Clock, MinVersion: tls.VersionTLS13}
		if cert != nil {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		creds = credentials.NewTLS(cfg)
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, b := range bearer {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", b)
	}
	resp, err := securityv1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, r)
	return resp.GetCertChain(), err
}

// pair makes a client certificate of an issued one.
func pair(t *testing.T, c *CA, id string, ttl time.Duration) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	s, err := c.Issue(t.Context(), Caller{ID: id, Method: "test"}, csrBy(t, key, &x509.CertificateRequest{}), ttl)
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{PrivateKey: key}
	for _, p := range s.Chain {
		block, _ := pem.Decode([]byte(p))
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert
}

func TestService(t *testing.T) {
	leak.Check(t)
	ck := newClock()
	var log record
	o := short(ck)
	o.Log = log.logger()
	c := mustOpen(t, t.TempDir(), o)
	rotated(t, c, ck)
	addr := serve(t, c, tlsServer(t, c))
	token, err := c.Tokens().Create(reviews, 0)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	csr := string(csrBy(t, key, &x509.CertificateRequest{}))
	bearer := []string{"Bearer " + token.Reveal()}
	// A bad request does not use the token up.
	if _, err := request(t, addr, c, nil, bearer, &securityv1alpha1.IstioCertificateRequest{Csr: "x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad CSR: %v", err)
	}
	chain, err := request(t, addr, c, nil, bearer, &securityv1alpha1.IstioCertificateRequest{Csr: csr, ValidityDuration: 1800})
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 { // leaf, issuer, all roots
		t.Fatalf("%d elements", len(chain))
	}
	roots, err := parseCerts([]byte(chain[2]))
	if err != nil || len(roots) != 2 || !roots[0].Equal(c.state.active().root) {
		t.Errorf("the roots: %d, %v", len(roots), err)
	}
	leaf, err := parseCert([]byte(chain[0]))
	if err != nil || leaf.URIs[0].String() != reviews || !leaf.NotAfter.Equal(ck.now().Add(30*time.Minute)) {
		t.Errorf("leaf: %v, %v", leaf, err)
	}
	if err := verify(&SVID{Chain: chain[:2]}, pool(roots[:1]), ck.now(), x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
	if _, err := request(t, addr, c, nil, bearer, &securityv1alpha1.IstioCertificateRequest{Csr: csr}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the token again: %v", err)
	}
	// Renewal by what has been issued, for the same identity whatever the request says.
	mine := &tls.Certificate{PrivateKey: key}
	for _, p := range chain[:2] {
		block, _ := pem.Decode([]byte(p))
		mine.Certificate = append(mine.Certificate, block.Bytes)
	}
	ck.advance(15 * time.Minute)
	other, _ := url.Parse("spiffe://cluster.local/ns/shop/sa/payment")
	chain, err = request(t, addr, c, mine, nil, &securityv1alpha1.IstioCertificateRequest{Csr: string(csrBy(t, newKey(t), &x509.CertificateRequest{URIs: []*url.URL{other}})), ValidityDuration: math.MaxInt64})
	if err != nil {
		t.Fatal(err)
	}
	if leaf, err = parseCert([]byte(chain[0])); err != nil || leaf.URIs[0].String() != reviews || !leaf.NotAfter.Equal(ck.now().Add(time.Hour)) {
		t.Errorf("renewed: %v, %v", leaf, err)
	}
	if !strings.Contains(log.String(), "method=mtls") || !strings.Contains(log.String(), `method="join token"`) {
		t.Errorf("the log lacks the methods:\n%s", log.String())
	}
}

func TestServiceRefusals(t *testing.T) {
	leak.Check(t)
	ck := newClock()
	var log record
	o := short(ck)
	o.Log = log.logger()
	o.Rate = Rate{PerSecond: 0.001, Burst: 20}
	o.Admit = func(_ context.Context, who Caller) error {
		if strings.HasSuffix(who.ID, "/mallory") {
			return errors.New("is shut out")
		}
		return nil
	}
	c := mustOpen(t, t.TempDir(), o)
	elsewhere := mustOpen(t, t.TempDir(), short(ck)) // the same trust domain, another root
	expired := pair(t, c, reviews, time.Minute)
	ck.advance(3 * time.Minute)
	const canary = "c4n4ry-t0ken"
	addr := serve(t, c, tlsServer(t, c), authFunc(func(ctx context.Context) (Caller, error) {
		bearer, err := BearerToken(ctx)
		switch {
		case err != nil:
			return Caller{}, err
		case bearer == canary+"-down":
			return Caller{}, errors.Join(ErrUnavailable, errors.New("reviewer of "+bearer+" is away"))
		case bearer == canary+"-bad":
			return Caller{}, errors.New("token " + bearer + " has expired")
		case bearer == canary+"-mallory":
			return Caller{ID: "spiffe://cluster.local/ns/a/sa/mallory", Method: "plug-in"}, nil
		case bearer == canary+"-confirm":
			return Caller{ID: reviews, Method: "plug-in", Confirm: func(context.Context) error { return errors.Join(ErrUnauthenticated, errors.New(bearer)) }}, nil
		case bearer == canary+"-foreign":
			return Caller{ID: "spiffe://other/ns/a/sa/b", Method: "plug-in"}, nil
		case bearer == canary:
			return Caller{ID: reviews, Method: "plug-in"}, nil
		}
		return Caller{}, ErrNoCredential
	}))
	plain := serve(t, c, nil)
	token, err := c.Tokens().Create(reviews, 0)
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := c.Tokens().Create(reviews, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Tokens().Revoke(revoked.ID); err != nil {
		t.Fatal(err)
	}
	good := string(newCSR(t))
	secretKey := newKey(t)
	secretDER, _ := x509.MarshalPKCS8PrivateKey(secretKey)
	secretPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secretDER}))
	wrong := token.Reveal()[:len(token.Reveal())-3] + "AAA"
	mine := pair(t, c, reviews, 0)
	forged := func(change func(*x509.Certificate)) *tls.Certificate { // signed by the real issuer
		key := newKey(t)
		u, _ := url.Parse(reviews)
		serial, _ := newSerial(rand.Reader)
		tpl := &x509.Certificate{SerialNumber: serial, NotBefore: epoch, NotAfter: epoch.Add(time.Hour), URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}
		change(tpl)
		a := c.state.active()
		leaf, err := sign(tpl, a.issuer, key.Public(), a.issuerKey.signer)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{PrivateKey: key, Certificate: [][]byte{leaf.Raw, a.issuer.Raw}}
	}
	uri := func(s string) *url.URL { u, _ := url.Parse(s); return u }
	for _, tt := range []struct {
		name   string
		cert   *tls.Certificate
		bearer string
		csr    string
		ttl    int64
		code   codes.Code
		want   string
	}{
		{"control", nil, "Bearer " + canary, good, 0, codes.OK, ""},
		{"scheme in lower case", nil, "bearer " + canary, good, 0, codes.OK, ""},
		{"control for forged", forged(func(*x509.Certificate) {}), "", good, 0, codes.OK, ""},
		{"nothing", nil, "", good, 0, codes.Unauthenticated, "send a join token"},
		{"not bearer", nil, "Basic " + canary, good, 0, codes.Unauthenticated, "not a bearer token"},
		{"no scheme", nil, canary, good, 0, codes.Unauthenticated, "not a bearer token"},
		{"empty bearer", nil, "Bearer ", good, 0, codes.Unauthenticated, "not a bearer token"},
		{"unknown bearer", nil, "Bearer other", good, 0, codes.Unauthenticated, "send a join token"},
		{"unknown bearer with a good certificate", mine, "Bearer other", good, 0, codes.Unauthenticated, "send a join token"},
		{"wrong join token", nil, "Bearer " + wrong, good, 0, codes.Unauthenticated, "unknown, used or expired"},
		{"wrong join token with a good certificate", mine, "Bearer " + wrong, good, 0, codes.Unauthenticated, "unknown, used or expired"},
		{"revoked join token", nil, "Bearer " + revoked.Reveal(), good, 0, codes.Unauthenticated, "unknown, used or expired"},
		{"malformed join token", nil, "Bearer " + tokenPrefix + canary, good, 0, codes.Unauthenticated, "malformed"},
		{"plug-in refuses", nil, "Bearer " + canary + "-bad", good, 0, codes.Unauthenticated, "token [bearer token] has expired"},
		{"plug-in is down", nil, "Bearer " + canary + "-down", good, 0, codes.Unavailable, "can not issue now"},
		{"confirm refuses", nil, "Bearer " + canary + "-confirm", good, 0, codes.Unauthenticated, "[bearer token]"},
		{"shut out", nil, "Bearer " + canary + "-mallory", good, 0, codes.PermissionDenied, "shut out"},
		{"foreign identity", nil, "Bearer " + canary + "-foreign", good, 0, codes.PermissionDenied, "not of trust domain"},
		{"a private key for a CSR", mine, "", secretPEM, 0, codes.InvalidArgument, "not a CERTIFICATE REQUEST"},
		{"negative validity", mine, "", good, -5, codes.InvalidArgument, "validity"},
		{"least validity", mine, "", good, math.MinInt64, codes.InvalidArgument, "validity"},
		{"expired", expired, "", good, 0, codes.Unauthenticated, "expired"},
		{"another root", pair(t, elsewhere, reviews, 0), "", good, 0, codes.Unauthenticated, "unknown authority"},
		{"an authority", forged(func(c *x509.Certificate) { c.IsCA = true }), "", good, 0, codes.Unauthenticated, "authority"},
		{"two URIs", forged(func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("spiffe://cluster.local/x")) }), "", good, 0, codes.Unauthenticated, "2 URIs"},
		{"no URI", forged(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"reviews"} }), "", good, 0, codes.Unauthenticated, "0 URIs"},
		{"the trust domain itself", forged(func(c *x509.Certificate) { c.URIs = []*url.URL{uri("spiffe://cluster.local")} }), "", good, 0, codes.Unauthenticated, "not a workload"},
		{"another trust domain", forged(func(c *x509.Certificate) { c.URIs = []*url.URL{uri("spiffe://other/x")} }), "", good, 0, codes.Unauthenticated, "not of trust domain"},
		{"no digital signature", forged(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), "", good, 0, codes.Unauthenticated, "digital signatures"},
		{"may sign certificates", forged(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), "", good, 0, codes.Unauthenticated, "may sign"},
		{"server only", forged(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "", good, 0, codes.Unauthenticated, "incompatible key usage"},
	} {
		var bearer []string
		if tt.bearer != "" {
			bearer = []string{tt.bearer}
		}
		chain, err := request(t, addr, c, tt.cert, bearer, &securityv1alpha1.IstioCertificateRequest{Csr: tt.csr, ValidityDuration: tt.ttl})
		if status.Code(err) != tt.code || tt.want != "" && !strings.Contains(status.Convert(err).Message(), tt.want) {
			t.Errorf("%s: %v, want %v %q", tt.name, err, tt.code, tt.want)
		}
		if (len(chain) > 0) != (tt.code == codes.OK) {
			t.Errorf("%s: a chain of %d", tt.name, len(chain))
		}
		log.Write([]byte(status.Convert(err).Message() + "\n"))
	}
	if _, err := request(t, addr, c, nil, []string{"Bearer " + canary, "Bearer " + canary}, &securityv1alpha1.IstioCertificateRequest{Csr: good}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("two headers: %v", err)
	}
	// Plaintext over loopback is as private as a file.
	if _, err := request(t, plain, nil, nil, []string{"Bearer " + token.Reveal()}, &securityv1alpha1.IstioCertificateRequest{Csr: good}); err != nil {
		t.Errorf("plaintext over loopback: %v", err)
	}
	for range 20 {
		_, err = request(t, addr, c, mine, nil, &securityv1alpha1.IstioCertificateRequest{Csr: good})
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("too often: %v", err)
	}
	ck.advance(5 * time.Hour) // nobody has renewed the issuer
	_, err = c.Issue(t.Context(), Caller{ID: "spiffe://cluster.local/late"}, []byte(good), 0)
	if grpcErr := grpcError(err); status.Code(grpcErr) != codes.Unavailable {
		t.Errorf("an expired issuer: %v", err)
	}
	log.Write([]byte(err.Error()))

	// Canaries: what must be in no log and no error.
	all := log.String()
	secrets := map[string]string{
		"bearer token": canary, "join token": token.Reveal(), "join token's key": token.Reveal()[len(tokenPrefix)+33:],
		"revoked token's key": revoked.Reveal()[len(tokenPrefix)+33:], "a wrong token": wrong[len(tokenPrefix)+33:],
		"a key in the request": base64.StdEncoding.EncodeToString(secretDER)[40:80],
	}
	for _, p := range []phase{active, prepared} {
		if a := c.state.find(p); a != nil {
			secrets["root key"] = base64.StdEncoding.EncodeToString(a.rootKey.PKCS8)
			secrets["issuer key"] = base64.StdEncoding.EncodeToString(a.issuerKey.PKCS8)
		}
	}
	for name, secret := range secrets {
		if secret != "" && strings.Contains(all, secret) {
			t.Errorf("%s is in the log or in an error", name)
		}
	}
	for _, must := range []string{"certificate refused", "certificate issued", token.ID, "[bearer token]"} {
		if !strings.Contains(all, must) {
			t.Errorf("the log lacks %q, so that the canaries prove little", must)
		}
	}
}

// TestBearerNeedsPrivacy: a token that others on the network could read is not taken.
func TestBearerNeedsPrivacy(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 1} }
	secure := credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	for _, tt := range []struct {
		name string
		peer *peer.Peer
		ok   bool
	}{
		{"no peer", nil, false},
		{"plaintext", &peer.Peer{Addr: tcp("192.0.2.1")}, false},
		{"plaintext, IPv6", &peer.Peer{Addr: tcp("2001:db8::1")}, false},
		{"TLS", &peer.Peer{Addr: tcp("192.0.2.1"), AuthInfo: secure}, true},
		{"integrity only", &peer.Peer{Addr: tcp("192.0.2.1"), AuthInfo: credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.IntegrityOnly}}}, false},
		{"loopback", &peer.Peer{Addr: tcp("127.0.0.1")}, true},
		{"loopback, IPv6", &peer.Peer{Addr: tcp("::1")}, true},
		{"Unix socket", &peer.Peer{Addr: &net.UnixAddr{Name: "@", Net: "unix"}}, true},
		{"no address", &peer.Peer{}, false},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer abc"))
		if tt.peer != nil {
			ctx = peer.NewContext(ctx, tt.peer)
		}
		token, err := BearerToken(ctx)
		if (err == nil) != tt.ok || tt.ok && token != "abc" || !tt.ok && !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: %q, %v", tt.name, token, err)
		}
	}
	if _, err := BearerToken(t.Context()); !errors.Is(err, ErrNoCredential) {
		t.Errorf("nothing: %v", err)
	}
}
