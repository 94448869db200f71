package source

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
)

// signed is a certificate with its key.
type signed struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (s *signed) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw}))
}

func (s *signed) keyPEM(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// sign issues a certificate for the public key; issuer nil signs itself.
func sign(t testing.TB, template *x509.Certificate, issuer *signed, public *ecdsa.PublicKey) *signed {
	t.Helper()
	s := &signed{}
	if public == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s.key, public = key, &key.PublicKey
	}
	parent, parentKey := template, s.key
	if issuer != nil {
		parent, parentKey = issuer.cert, issuer.key
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	if s.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return s
}

func rootTemplate(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

func workloadTemplate(id string, notBefore, notAfter time.Time) *x509.Certificate {
	u, err := url.Parse(id)
	if err != nil {
		panic(err)
	}
	return &x509.Certificate{
		NotBefore: notBefore, NotAfter: notAfter, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{u},
	}
}

func mustID(t testing.TB, s string) identity.ID {
	t.Helper()
	id, err := identity.ParseID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

const workloadID = "spiffe://td.example/ns/default/sa/reviews"

// testAuthority is a certificate authority that speaks the certificate
// service over pipes, so that it runs in virtual time.
type testAuthority struct {
	t      testing.TB
	server *grpc.Server
	conns  chan net.Conn
	done   chan struct{}

	mu        sync.Mutex
	roots     []*signed // announced; the first signs
	tls       *signed
	id        string
	ttl       time.Duration
	backdate  time.Duration
	skew      time.Duration // the authority's clock minus ours
	join      map[string]bool
	saToken   string
	down      bool
	tamper    func(*certificateResponse)
	byToken   int
	byCert    int
	requests  []*certificateRequest
	publics   map[string]bool
	failures  int
	dialTimes []time.Time
	headers   []metadata.MD // of the calls
	asBundle  bool          // all roots in the chain's last element
}

func newTestAuthority(t testing.TB) *testAuthority {
	a := &testAuthority{
		t: t, conns: make(chan net.Conn), done: make(chan struct{}), id: workloadID, ttl: time.Hour, backdate: 2 * time.Minute,
		join: map[string]bool{}, publics: map[string]bool{},
	}
	a.rotate(false)
	a.server = grpc.NewServer(grpc.ForceServerCodec(certificateCodec{}), grpc.Creds(credentials.NewTLS(&tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			return &tls.Certificate{Certificate: [][]byte{a.tls.cert.Raw, a.roots[0].cert.Raw}, PrivateKey: a.tls.key}, nil
		},
		ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"},
	})))
	a.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "istio.v1.auth.IstioCertificateService",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "CreateCertificate", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			r := &certificateRequest{}
			if err := decode(r); err != nil {
				return nil, err
			}
			return a.create(ctx, r)
		}}},
	}, nil)
	go func() { _ = a.server.Serve(a) }()
	return a
}

// rotate makes another root the one that signs; with overlap the old ones are announced still.
func (a *testAuthority) rotate(overlap bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	root := sign(a.t, rootTemplate("root"), nil, nil)
	if overlap {
		a.roots = append([]*signed{root}, a.roots...)
	} else {
		a.roots = []*signed{root}
	}
	template := workloadTemplate("spiffe://td.example/ns/mesh/sa/ca", time.Now().Add(-time.Hour), time.Now().Add(365*24*time.Hour))
	template.DNSNames = []string{"ca.test"}
	a.tls = sign(a.t, template, root, nil)
}

func (a *testAuthority) create(ctx context.Context, r *certificateRequest) (*certificateResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, r)
	md, _ := metadata.FromIncomingContext(ctx)
	a.headers = append(a.headers, md)
	block, _ := pem.Decode([]byte(r.csr))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad signing request")
	}
	public := csr.PublicKey.(*ecdsa.PublicKey)
	point, err := public.Bytes()
	if err != nil || public.Curve != elliptic.P256() {
		return nil, status.Error(codes.InvalidArgument, "another key than P-256")
	}
	if a.publics[string(point)] {
		a.t.Error("a key was used for two requests")
	}
	a.publics[string(point)] = true
	if err := a.authenticate(ctx); err != nil {
		a.failures++
		return nil, err
	}
	now := time.Now().Add(a.skew)
	leaf := sign(a.t, workloadTemplate(a.id, now.Add(-a.backdate), now.Add(a.ttl)), a.roots[0], public)
	resp := &certificateResponse{certChain: []string{leaf.pem()}}
	for _, root := range a.roots {
		if last := len(resp.certChain) - 1; a.asBundle && last > 0 {
			resp.certChain[last] += root.pem()
			continue
		}
		resp.certChain = append(resp.certChain, root.pem())
	}
	if a.tamper != nil {
		a.tamper(resp)
	}
	return resp, nil
}

func (a *testAuthority) authenticate(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if auth := md.Get("authorization"); len(auth) > 0 {
		token := strings.TrimPrefix(auth[0], "Bearer ")
		if a.join[token] || token != "" && token == a.saToken {
			delete(a.join, token)
			a.byToken++
			return nil
		}
		return status.Errorf(codes.Unauthenticated, "token %q is not known", token)
	}
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return status.Error(codes.Unauthenticated, "nobody")
	}
	var roots []*x509.Certificate
	for _, r := range a.roots {
		roots = append(roots, r.cert)
	}
	b, err := identity.NewBundle(roots, nil)
	if err != nil {
		return err
	}
	id := mustID(a.t, a.id)
	if got, err := identity.VerifySVID(info.State.PeerCertificates, identity.BundleSet{id.TrustDomain(): b}, time.Now().Add(a.skew), identity.UsageClient); err != nil || got != id {
		return status.Errorf(codes.Unauthenticated, "certificate: %v", err)
	}
	a.byCert++
	return nil
}

// dial is the Dialer that leads here.
func (a *testAuthority) dial(ctx context.Context, _ string) (net.Conn, error) {
	a.mu.Lock()
	down := a.down
	a.dialTimes = append(a.dialTimes, time.Now())
	a.mu.Unlock()
	if down {
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	select {
	case a.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept, Close and Addr make it a listener.
func (a *testAuthority) Accept() (net.Conn, error) {
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.done:
		return nil, net.ErrClosed
	}
}

func (a *testAuthority) Close() error {
	select {
	case <-a.done:
	default:
		close(a.done)
	}
	return nil
}

func (a *testAuthority) Addr() net.Addr { return &net.TCPAddr{} }

func (a *testAuthority) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}
