package ads

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadv3 "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/journal"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// authority is a certificate authority of a trust domain.
func authority(t *testing.T, trustDomain string) *ca.CA {
	t.Helper()
	c, err := ca.Open(t.Context(), t.TempDir(), ca.Options{TrustDomain: trustDomain})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// issue gives a client certificate.
func issue(t *testing.T, c *ca.CA, id string, ttl time.Duration) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Issue(t.Context(), ca.Caller{ID: id, Method: "test"}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), ttl)
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

// secureHarness is a server with mutual TLS on loopback.
type secureHarness struct {
	*Server
	addr string
	ca   *ca.CA
}

func startSecure(t *testing.T, p *policy.Set) *secureHarness {
	t.Helper()
	c := authority(t, "cluster.local")
	cert, err := c.ServerCertificate("/ns/sinew-system/sa/xdsserver", []string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	td, err := identity.ParseTrustDomain("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := identity.NewBundle(c.Bundle().Roots, nil)
	if err != nil {
		t.Fatal(err)
	}
	src, err := source.NewStatic(&source.Material{Certificate: cert, Bundles: identity.BundleSet{td: bundle}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := NewServer(ctx, nil)
	s.loadInterval = time.Millisecond
	s.SetPolicy(p)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(s.Credentials(src)))
	s.RegisterVerified(g, src)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	t.Cleanup(func() {
		cancel()
		g.Stop()
		<-done
	})
	return &secureHarness{Server: s, addr: lis.Addr().String(), ca: c}
}

// connect opens a channel with the certificate that get returns at each handshake.
func (h *secureHarness) connect(t *testing.T, get func() *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(h.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: h.ca.Bundle().Pool(), MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c := get(); c != nil {
				return c, nil
			}
			return &tls.Certificate{}, nil
		},
	})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func nodeOf(namespace, account string) *corev3.Node {
	n := &corev3.Node{Id: "sidecar~127.0.0.1~web." + namespace + "~" + namespace + ".svc.cluster.local", UserAgentName: "sinew"}
	if account != "" {
		n.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"SERVICE_ACCOUNT": structpb.NewStringValue(account)}}
	}
	return n
}

const webID = "spiffe://cluster.local/ns/shop/sa/web"

// attempts are the three services, each asked once with a node; they return the error
// with which the stream ends, nil where it is served.
var attempts = map[string]func(context.Context, *grpc.ClientConn, ...*corev3.Node) error{
	"delta": func(ctx context.Context, conn *grpc.ClientConn, nodes ...*corev3.Node) error {
		s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			_ = s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: n, TypeUrl: lds, ResourceNamesSubscribe: []string{"a:80"}}) // Recv has the reason
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
		return nil
	},
	"state": func(ctx context.Context, conn *grpc.ClientConn, nodes ...*corev3.Node) error {
		s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
		if err != nil {
			return err
		}
		for i, n := range nodes {
			_ = s.Send(&discoveryv3.DiscoveryRequest{Node: n, TypeUrl: []string{lds, cds}[i], ResourceNames: []string{"a:80"}})
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
		return nil
	},
	"loads": func(ctx context.Context, conn *grpc.ClientConn, nodes ...*corev3.Node) error {
		s, err := loadv3.NewLoadReportingServiceClient(conn).StreamLoadStats(ctx)
		if err != nil {
			return err
		}
		for i, n := range nodes {
			_ = s.Send(&loadv3.LoadStatsRequest{Node: n})
			if i > 0 {
				_ = s.CloseSend() // a later request has no answer; the end of the stream is one
			}
			if _, err := s.Recv(); err != nil && (i == 0 || status.Code(err) != codes.Unknown && err.Error() != "EOF") {
				return err
			}
		}
		return nil
	},
}

// TestWhoIsServed holds nodes against certificates, on all services.
func TestWhoIsServed(t *testing.T) {
	leak.Check(t)
	h := startSecure(t, set(t))
	other, impostor := authority(t, "other.example"), authority(t, "cluster.local")
	web := issue(t, h.ca, webID, 0)
	for name, test := range map[string]struct {
		cert  *tls.Certificate
		nodes []*corev3.Node
		code  codes.Code
		says  string
	}{
		"its own":                       {web, []*corev3.Node{nodeOf("shop", "web")}, codes.OK, ""},
		"a node without an account":     {web, []*corev3.Node{nodeOf("shop", "")}, codes.OK, ""},
		"the same node twice":           {web, []*corev3.Node{nodeOf("shop", "web"), nodeOf("shop", "web")}, codes.OK, ""},
		"no certificate":                {nil, []*corev3.Node{nodeOf("shop", "web")}, codes.Unauthenticated, "client certificate"},
		"another trust domain":          {issue(t, other, "spiffe://other.example/ns/shop/sa/web", 0), []*corev3.Node{nodeOf("shop", "web")}, codes.Unavailable, ""},
		"another authority":             {issue(t, impostor, webID, 0), []*corev3.Node{nodeOf("shop", "web")}, codes.Unavailable, ""},
		"another namespace":             {web, []*corev3.Node{nodeOf("bank", "web")}, codes.PermissionDenied, `namespace is "bank", and the client certificate is for ` + webID},
		"another account":               {web, []*corev3.Node{nodeOf("shop", "payment")}, codes.PermissionDenied, `service account is "payment", and the client certificate is for ` + webID},
		"an identity of another form":   {issue(t, h.ca, "spiffe://cluster.local/web", 0), []*corev3.Node{nodeOf("shop", "web")}, codes.PermissionDenied, "names no namespace and service account"},
		"another node on the way":       {web, []*corev3.Node{nodeOf("shop", "web"), nodeOf("bank", "web")}, codes.PermissionDenied, `namespace is "bank"`},
		"no node":                       {web, []*corev3.Node{nil}, codes.InvalidArgument, "node.id"},
		"another account on the way":    {web, []*corev3.Node{nodeOf("shop", "web"), nodeOf("shop", "payment")}, codes.PermissionDenied, `service account is "payment"`},
		"a namespace of the metadata's": {web, []*corev3.Node{{Id: nodeOf("shop", "web").Id, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"NAMESPACE": structpb.NewStringValue("bank")}}}}, codes.PermissionDenied, `namespace is "bank"`},
	} {
		for service, attempt := range attempts {
			t.Run(name+"/"+service, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				conn := h.connect(t, func() *tls.Certificate { return test.cert })
				defer conn.Close()
				err := attempt(ctx, conn, test.nodes...)
				if status.Code(err) != test.code || !strings.Contains(status.Convert(err).Message(), test.says) {
					t.Errorf("%v, want %v with %q", err, test.code, test.says)
				}
			})
		}
	}
	waitFor(t, func() bool { return len(h.Status().Clients) == 0 })
	refused := h.Status().Refused
	if len(refused) != maxRefusals {
		t.Errorf("%d refusals are remembered", len(refused))
	}
	for _, r := range refused {
		if r.Reason == "" || r.Address == "" || r.At.IsZero() {
			t.Errorf("refusal %+v", r)
		}
	}
}

func TestVerifiedIdentityIsShown(t *testing.T) {
	leak.Check(t)
	h := startSecure(t, set(t))
	web := issue(t, h.ca, webID, 0)
	conn := h.connect(t, func() *tls.Certificate { return web })
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: nodeOf("shop", ""), TypeUrl: cds, ResourceNamesSubscribe: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	clients := h.Status().Clients
	if len(clients) != 1 || clients[0].Identity != webID || clients[0].client.Verified != (policy.ServiceAccount{Namespace: "shop", Name: "web"}) || clients[0].client.ServiceAccount != "web" {
		t.Errorf("clients %+v", clients)
	}
}

// TestExpiry: streams end with the certificate, and the connection soon after, so that
// the client comes back with its next certificate.
func TestExpiry(t *testing.T) {
	leak.Check(t)
	h := startSecure(t, set(t))
	certs := make(chan *tls.Certificate, 2)
	first := issue(t, h.ca, webID, 8*time.Second)
	certs <- first
	certs <- issue(t, h.ca, webID, 0)
	conn := h.connect(t, func() *tls.Certificate { return <-certs })
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	leaf, err := x509.ParseCertificate(first.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	loads, err := loadv3.NewLoadReportingServiceClient(conn).StreamLoadStats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: nodeOf("shop", "web"), TypeUrl: lds, ResourceNamesSubscribe: []string{"a:80"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "expired") {
		t.Errorf("the stream ends with %v", err)
	}
	if time.Now().Before(leaf.NotAfter) {
		t.Error("the stream ends before the certificate")
	}
	if _, err := loads.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the load stream ends with %v", err)
	}
	// The old connection is refused until it is closed, then there is a new one.
	for {
		err := attempts["delta"](ctx, conn, nodeOf("shop", "web"))
		if err == nil {
			break
		}
		if status.Code(err) != codes.Unavailable {
			t.Fatalf("while it reconnects: %v", err)
		}
	}
	if len(certs) != 0 {
		t.Error("served without the next certificate")
	}
}

// TestAnonymousConnections: the port answers nobody without TLS, or with an old one.
func TestAnonymousConnections(t *testing.T) {
	leak.Check(t)
	h := startSecure(t, set(t))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	plain, err := grpc.NewClient(h.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := attempts["delta"](ctx, plain, nodeOf("shop", "web")); status.Code(err) != codes.Unavailable {
		t.Errorf("plaintext: %v", err)
	}
	conn, err := tls.Dial("tcp", h.addr, &tls.Config{RootCAs: h.ca.Bundle().Pool(), MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}})
	if err == nil {
		conn.Close()
		t.Error("TLS 1.2 is accepted")
	}
	h.refusedFor(t, "the client does not speak TLS")
	h.refusedFor(t, "TLS handshake: ")
}

// refusedFor waits until a connection from loopback is on the status page with a reason.
func (h *secureHarness) refusedFor(t *testing.T, reason string) {
	t.Helper()
	var refused []Refusal
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		refused = h.Status().Refused
		for _, r := range refused {
			if strings.HasPrefix(r.Reason, reason) {
				if at, err := netip.ParseAddrPort(r.Address); err != nil || !at.Addr().IsLoopback() || r.At.IsZero() {
					t.Errorf("refused %+v", r)
				}
				return
			}
		}
	}
	t.Errorf("no refusal says %q: %+v", reason, refused)
}

// TestHandshakeReason: what is worth a word, and what is a client that went away.
func TestHandshakeReason(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"plaintext":           {tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, "the client does not speak TLS, and this port takes nothing else"},
		"plaintext, wrapped":  {fmt.Errorf("x: %w", tls.RecordHeaderError{}), "the client does not speak TLS, and this port takes nothing else"},
		"gone":                {io.EOF, ""},
		"gone in the middle":  {io.ErrUnexpectedEOF, ""},
		"reset":               {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, ""},
		"too slow":            {&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, ""},
		"does not trust us":   {&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, "TLS handshake: remote error: tls: bad certificate"},
		"we do not trust it":  {errors.New("certificate refused"), "TLS handshake: certificate refused"},
		"closed by ourselves": {&net.OpError{Op: "write", Err: net.ErrClosed}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := handshakeReason(test.err); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// TestRefusalsAreBounded: whoever reaches the port can neither fill the log nor the
// status page.
func TestRefusalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log journal.Journal
		s := NewServer(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
		for second := range 2 {
			for i := range 3 * maxRefusals {
				s.remember("connection refused", Refusal{Address: fmt.Sprintf("192.0.2.%d:%d", second, i), Reason: "no TLS"})
			}
			if n := strings.Count(log.String(), "connection refused"); n != (second+1)*maxRefusals {
				t.Errorf("%d lines after %d seconds", n, second)
			}
			time.Sleep(time.Second)
		}
		if r := s.Status().Refused; len(r) != maxRefusals || r[maxRefusals-1].Address != fmt.Sprintf("192.0.2.1:%d", 3*maxRefusals-1) {
			t.Errorf("%d on the status page: %+v", len(r), r)
		}
	})
}

// TestCaller: a stream is held against the bundle and the time of its own, whatever was
// right at the handshake.
func TestCaller(t *testing.T) {
	h := startSecure(t, set(t))
	trusts := func(m *source.Material) source.Source {
		src, err := source.NewStatic(m)
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	bundles := func(c *ca.CA, name string) identity.BundleSet {
		td, err := identity.ParseTrustDomain(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := identity.NewBundle(c.Bundle().Roots, nil)
		if err != nil {
			t.Fatal(err)
		}
		return identity.BundleSet{td: b}
	}
	chain := func(id string, ttl time.Duration) (out []*x509.Certificate) {
		for _, der := range issue(t, h.ca, id, ttl).Certificate {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c)
		}
		return out
	}
	good := &source.Material{Bundles: bundles(h.ca, "cluster.local")}
	short := chain(webID, time.Second)
	time.Sleep(time.Until(short[0].NotAfter) + time.Millisecond)
	for name, test := range map[string]struct {
		trust source.Source
		chain []*x509.Certificate
		code  codes.Code
	}{
		"good":              {trusts(good), chain(webID, 0), codes.OK},
		"nobody asks":       {nil, nil, codes.OK},
		"none":              {trusts(good), nil, codes.Unauthenticated},
		"no bundle yet":     {trusts(nil), chain(webID, 0), codes.Unavailable},
		"a withdrawn root":  {trusts(&source.Material{Bundles: bundles(authority(t, "cluster.local"), "cluster.local")}), chain(webID, 0), codes.Unauthenticated},
		"a withdrawn alias": {trusts(&source.Material{Bundles: bundles(h.ca, "other.example")}), chain(webID, 0), codes.Unauthenticated},
		"expired":           {trusts(good), short, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			d := &door{server: h.Server, trust: test.trust}
			info := credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: test.chain}}
			ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9}, AuthInfo: info})
			c, err := d.caller(ctx)
			if status.Code(err) != test.code || c.address != "192.0.2.1:9" {
				t.Fatalf("%v from %q, want %v", err, c.address, test.code)
			}
			if want := test.code == codes.OK && test.trust != nil; want != (c.id.String() == webID && !c.notAfter.IsZero()) {
				t.Errorf("caller %+v", c)
			}
		})
	}
	if _, err := (&door{server: h.Server, trust: trusts(good)}).caller(t.Context()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a stream without a connection: %v", err)
	}
}

// TestWithheldListener: a listener that was served goes when nobody knows any more who
// may call, and comes back; both are shown.
func TestWithheldListener(t *testing.T) {
	leak.Check(t)
	h := start(t, set(t))
	c := openDelta(t, h, node("sinew"))
	const name = "xds.istio.io/grpc/lds/inbound/10.0.0.9:8080"
	c.subscribe(lds, name)
	c.expect("Listener: " + name)
	waitFor(t, func() bool { return h.Status().Clients[0].Resources[0].State == Accepted })
	broken := set(t)
	broken.Broken = []policy.Broken{{Namespace: "default", Reason: "access.yaml:3: nobody can read this"}}
	h.SetPolicy(broken)
	reply := c.expect("Listener: !" + name)
	if e := reply.GetResourceErrors()[0].GetErrorDetail(); codes.Code(e.GetCode()) != codes.PermissionDenied || strings.Contains(e.GetMessage(), "access.yaml") {
		t.Errorf("%v: want one that lets the client keep nothing, and says nothing of the files", e)
	}
	if r := h.Status().Clients[0].Resources[0]; r.State != DoesNotExist || !strings.Contains(r.Withheld, "access.yaml:3") {
		t.Errorf("while it is withheld: %+v", r)
	}
	h.SetPolicy(set(t))
	c.expect("Listener: " + name)
	if r := h.Status().Clients[0].Resources[0]; r.Withheld != "" {
		t.Errorf("afterwards: %+v", r)
	}
}

// passing are credentials of a handshake that has been made.
type passing struct {
	credentials.TransportCredentials
	info credentials.TLSInfo
}

func (p passing) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, p.info, nil
}

// TestConnectionsEnd holds the life of connections against virtual time.
func TestConnectionsEnd(t *testing.T) {
	leaf := func(life time.Duration) *x509.Certificate { return &x509.Certificate{NotAfter: time.Now().Add(life)} }
	for name, test := range map[string]struct {
		chain func() []*x509.Certificate
		life  time.Duration
	}{
		"without a certificate":  {func() []*x509.Certificate { return nil }, anonymousLife},
		"with one":               {func() []*x509.Certificate { return []*x509.Certificate{leaf(time.Hour), leaf(2 * time.Hour)} }, time.Hour + expiredGrace},
		"under one that is dead": {func() []*x509.Certificate { return []*x509.Certificate{leaf(time.Hour), leaf(time.Minute)} }, time.Minute + expiredGrace},
		"with one that is past":  {func() []*x509.Certificate { return []*x509.Certificate{leaf(-time.Hour)} }, expiredGrace},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := passing{}
				p.info.State.PeerCertificates = test.chain()
				client, raw := net.Pipe()
				if _, _, err := (&serverTLS{p, NewServer(t.Context(), nil)}).ServerHandshake(raw); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				if _, err := client.Read(make([]byte, 1)); err == nil {
					t.Error("something was sent")
				}
				if got := time.Since(began); got != test.life {
					t.Errorf("closed after %v, want %v", got, test.life)
				}
				client.Close()
			})
		})
	}
}
