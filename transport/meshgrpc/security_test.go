package meshgrpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"

	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/hostile"
	"github.com/sinew-mesh/sinew/internal/journal"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/meshhttp"
)

const (
	webID     = "spiffe://td.example/ns/shop/sa/web"
	reviewsID = "spiffe://td.example/ns/shop/sa/reviews"
)

// authority signs the certificates of the trust domain td.example.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{}
	c := a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.cert, a.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

func (a *authority) sign(t testing.TB, c *x509.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = c, key
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) issue(t testing.TB, id string) *tls.Certificate {
	t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	return a.sign(t, &x509.Certificate{
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{u},
	})
}

func (a *authority) material(t testing.TB, c *tls.Certificate) *source.Material {
	t.Helper()
	td, err := identity.ParseTrustDomain("td.example")
	if err != nil {
		t.Fatal(err)
	}
	b, err := identity.NewBundle([]*x509.Certificate{a.cert}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &source.Material{Certificate: c, Bundles: identity.BundleSet{td: b}}
}

func static(t testing.TB, m *source.Material) *source.Static {
	t.Helper()
	s, err := source.NewStatic(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func strict() *snapshot.Inbound {
	return &snapshot.Inbound{TLS: &snapshot.FilterChain{Socket: &snapshot.ServerTLS{
		Certificate: snapshot.CertificateSource{Instance: "default"}, Trust: snapshot.TrustSource{Instance: "default"}, RequireClientCertificate: true,
	}}}
}

func permissive() *snapshot.Inbound {
	in := strict()
	in.Plain = &snapshot.FilterChain{}
	return in
}

// governed is a server under policy.
type governed struct {
	*backend
	engine *inbound.Engine
	source source.Source
	log    *journal.Journal
}

// newGoverned serves on a listener of the mesh, or on another.
func newGoverned(t testing.TB, own bool, src source.Source, in *snapshot.Inbound, answer func(context.Context, int64) error) *governed {
	t.Helper()
	g := &governed{backend: &backend{name: "b", answer: answer}, source: src, log: &journal.Journal{}}
	g.engine = inbound.New(inbound.Options{
		Subscribe: func(string) {}, PolicyWait: 10 * time.Second,
		Source: func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return src, nil },
	})
	t.Cleanup(g.engine.Close)
	quiet := slog.New(slog.NewTextHandler(g.log, nil))
	s := grpc.NewServer(ServerOptions(ServerConfig{Inbound: g.engine, Log: quiet, CloseGrace: 100 * time.Millisecond})...)
	pb.RegisterTestServiceServer(s, g.backend)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.address = lis.Addr().String()
	if own {
		lis = meshhttp.NewListener(g.engine, lis, quiet)
	}
	g.install(in)
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return g
}

func (g *governed) install(in *snapshot.Inbound) { g.engine.Install(policy(g.address, in)) }

// mutual are the credentials of a client with an identity.
func mutual(src source.Source) grpc.DialOption {
	return grpc.WithTransportCredentials(credentials.NewTLS(tlsconfig.Client(src, tlsconfig.ClientOptions{ServerName: "reviews", Protocols: []string{"h2", "istio"}})))
}

func plaintext() grpc.DialOption { return grpc.WithTransportCredentials(insecure.NewCredentials()) }

// TestConnections: the kinds of policy, listener and client.
func TestConnections(t *testing.T) {
	for _, own := range []bool{true, false} {
		for _, c := range []struct {
			name             string
			in               *snapshot.Inbound
			mutual, plain    codes.Code
			mutualID, scheme string
		}{
			{"STRICT", strict(), codes.OK, codes.PermissionDenied, webID, "tls"},
			{"PERMISSIVE", permissive(), codes.OK, codes.OK, webID, "tls"},
			{"DISABLE", open(), codes.Unavailable, codes.OK, "", ""},
		} {
			t.Run(map[bool]string{true: "own/", false: "foreign/"}[own]+c.name, func(t *testing.T) {
				leak.Check(t)
				ca := newAuthority(t)
				type caller struct{ id, auth string }
				var mu sync.Mutex
				var callers []caller
				g := newGoverned(t, own, static(t, ca.material(t, ca.issue(t, reviewsID))), c.in, func(ctx context.Context, _ int64) error {
					p, ok := identity.PeerFromContext(ctx)
					from, _ := peer.FromContext(ctx)
					if !ok {
						return status.Error(codes.Internal, "no peer")
					}
					mu.Lock()
					defer mu.Unlock()
					callers = append(callers, caller{p.ID.String(), from.AuthInfo.AuthType()})
					return nil
				})
				secure, _ := dial(t, g.address, mutual(static(t, ca.material(t, ca.issue(t, webID)))))
				plain, _ := dial(t, g.address, plaintext())
				for _, k := range kinds {
					wantCode(t, k.call(testContext(t), plain), c.plain)
					wantCode(t, k.call(testContext(t), secure), c.mutual)
				}
				mu.Lock()
				defer mu.Unlock()
				for _, got := range callers {
					if got != (caller{"", "insecure"}) && got != (caller{webID, "tls"}) {
						t.Errorf("a handler saw %+v", got)
					}
				}
				want := 0
				for _, code := range []codes.Code{c.plain, c.mutual} {
					if code == codes.OK {
						want += len(kinds)
					}
				}
				if len(callers) != want {
					t.Errorf("%d handlers ran, want %d", len(callers), want)
				}
			})
		}
	}
}

// TestForeignTLS: the program's own TLS proves nothing to the mesh.
func TestForeignTLS(t *testing.T) {
	leak.Check(t)
	ca := newAuthority(t)
	src := static(t, ca.material(t, ca.issue(t, reviewsID)))
	for _, c := range []struct {
		in   *snapshot.Inbound
		want codes.Code
	}{{strict(), codes.PermissionDenied}, {permissive(), codes.OK}} {
		e := inbound.New(inbound.Options{Subscribe: func(string) {}, Source: func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return src, nil }})
		t.Cleanup(e.Close)
		s := grpc.NewServer(ServerOptions(ServerConfig{Inbound: e, Log: slog.New(slog.DiscardHandler)})...)
		pb.RegisterTestServiceServer(s, &backend{name: "b", answer: func(ctx context.Context, _ int64) error {
			if p, _ := identity.PeerFromContext(ctx); p.Authenticated() || !p.TLS {
				return status.Errorf(codes.Internal, "the peer is %+v", p)
			}
			return nil
		}})
		lis, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.Server(src, tlsconfig.ServerOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		e.Install(policy(lis.Addr().String(), c.in))
		done := make(chan error, 1)
		go func() { done <- s.Serve(lis) }()
		t.Cleanup(func() {
			s.Stop()
			<-done
		})
		client, _ := dial(t, lis.Addr().String(), mutual(src))
		wantCode(t, kinds[0].call(testContext(t), client), c.want)
	}
}

// TestHostileClients: no RPC of a client with a bad certificate reaches a handler.
func TestHostileClients(t *testing.T) {
	leak.Check(t)
	m := hostile.New(t, time.Now())
	for _, own := range []bool{true, false} {
		for _, in := range []struct {
			name string
			make func() *snapshot.Inbound
		}{{"STRICT", strict}, {"PERMISSIVE", permissive}} {
			t.Run(fmt.Sprintf("own=%v/%s", own, in.name), func(t *testing.T) {
				g := newGoverned(t, own, static(t, &source.Material{Certificate: m.Victim, Bundles: m.Bundles}), in.make(), nil)
				good := int64(0)
				for i := range m.Cases {
					c := &m.Cases[i]
					client, conn := dial(t, g.address, grpc.WithTransportCredentials(credentials.NewTLS(c.Attacker())))
					err := kinds[0].call(testContext(t), client)
					conn.Close()
					switch {
					case c.Good():
						good++
						if err != nil {
							t.Errorf("%s: %v", c.Name, err)
						}
					case status.Code(err) != codes.Unavailable:
						t.Errorf("%s: %v", c.Name, err)
					}
				}
				if good == 0 || g.calls.Load() != good {
					t.Errorf("%d handlers ran, want %d", g.calls.Load(), good)
				}
			})
		}
	}
}

// exchange sends and receives once on a stream.
func exchange(s grpc.BidiStreamingClient[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	// io.EOF: the stream has ended, and Recv says how.
	if err := s.Send(&pb.StreamingOutputCallRequest{}); err != nil && err != io.EOF {
		return err
	}
	_, err := s.Recv()
	return err
}

// TestPeerNoLongerAccepted: its next RPC is refused at once, and what it has
// in flight ends after the grace period.
func TestPeerNoLongerAccepted(t *testing.T) {
	for _, own := range []bool{true, false} {
		for _, c := range []struct {
			name   string
			before func() *snapshot.Inbound
			after  func(t *testing.T, g *governed, src *source.Static)
			mutual bool
		}{
			{"plaintext under STRICT", permissive, func(_ *testing.T, g *governed, _ *source.Static) { g.install(strict()) }, false},
			{"SANs", strict, func(_ *testing.T, g *governed, _ *source.Static) {
				in := strict()
				in.TLS.Socket.SANs = []identity.SANMatch{identity.SANExact(identity.SANURI, reviewsID)}
				g.install(in)
			}, true},
			{"its root is withdrawn", strict, func(t *testing.T, _ *governed, src *source.Static) {
				other := newAuthority(t)
				if err := src.Set(other.material(t, other.issue(t, reviewsID))); err != nil {
					t.Fatal(err)
				}
			}, true},
		} {
			t.Run(map[bool]string{true: "own/", false: "foreign/"}[own]+c.name, func(t *testing.T) {
				leak.Check(t)
				ca := newAuthority(t)
				src := static(t, ca.material(t, ca.issue(t, reviewsID)))
				g := newGoverned(t, own, src, c.before(), nil)
				creds := plaintext()
				if c.mutual {
					creds = mutual(static(t, ca.material(t, ca.issue(t, webID))))
				}
				client, _ := dial(t, g.address, creds)
				stream, err := client.FullDuplexCall(testContext(t))
				if err != nil {
					t.Fatal(err)
				}
				if err := exchange(stream); err != nil {
					t.Fatal(err)
				}
				ran := g.calls.Load()
				c.after(t, g, src)
				// The engine notices a change of the source a moment later.
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
					before := g.calls.Load()
					err := kinds[0].call(testContext(t), client)
					if err != nil {
						if code := status.Code(err); code != codes.PermissionDenied && code != codes.Unavailable || g.calls.Load() != before {
							t.Errorf("refused with %v, %d handlers ran", err, g.calls.Load()-before)
						}
						break
					}
					if time.Now().After(deadline) {
						t.Fatal("RPCs are still let in")
					}
					ran = g.calls.Load()
				}
				if err := exchange(stream); err != nil && status.Code(err) != codes.Unavailable {
					t.Errorf("within the grace period: %v", err)
				}
				if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
					t.Errorf("the stream ended with %v", err)
				}
				if g.calls.Load() != ran {
					t.Errorf("%d handlers ran after the change", g.calls.Load()-ran)
				}
			})
		}
	}
}

// TestRenewedCertificate: connections with our old certificate take no new
// RPCs, and what is in flight on them is not cut off.
func TestRenewedCertificate(t *testing.T) {
	for _, own := range []bool{true, false} {
		t.Run(map[bool]string{true: "own", false: "foreign"}[own], func(t *testing.T) {
			leak.Check(t)
			ca := newAuthority(t)
			src := static(t, ca.material(t, ca.issue(t, reviewsID)))
			g := newGoverned(t, own, src, strict(), nil)
			client, _ := dial(t, g.address, mutual(static(t, ca.material(t, ca.issue(t, webID)))))
			stream, err := client.FullDuplexCall(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := exchange(stream); err != nil {
				t.Fatal(err)
			}
			serial := func() string {
				t.Helper()
				var p peer.Peer
				if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.Peer(&p)); err != nil {
					t.Fatal(err)
				}
				return p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].SerialNumber.String()
			}
			old, next := serial(), ca.issue(t, reviewsID)
			if err := src.Set(ca.material(t, next)); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(10 * time.Second); serial() != next.Leaf.SerialNumber.String(); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("RPCs are still made on the connection with the certificate %s", old)
				}
			}
			time.Sleep(3 * 100 * time.Millisecond) // longer than CloseGrace: were the connection closed, this would show it
			if err := exchange(stream); err != nil {
				t.Errorf("the stream was cut off: %v", err)
			}
			if err := stream.CloseSend(); err != nil {
				t.Error(err)
			}
		})
	}
}

// files writes a certificate and root as a certificate provider reads them.
func files(t *testing.T, ca *authority, c *tls.Certificate) (bootstrapProvider string) {
	t.Helper()
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}, "ca.crt": {Type: "CERTIFICATE", Bytes: ca.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf(`"certificate_providers":{"default":{"plugin_name":"file_watcher","config":{"certificate_file":%q,"private_key_file":%q,"ca_certificate_file":%q}}}`,
		filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt"))
}

// upstreamTLS is ISTIO_MUTUAL as gRPC takes it.
func upstreamTLS(sans ...string) *corev3.TransportSocket {
	validation := &tlsv3.CertificateValidationContext{
		CaCertificateProviderInstance: &tlsv3.CertificateProviderPluginInstance{InstanceName: "default", CertificateName: "ROOTCA"},
	}
	for _, s := range sans {
		//lint:ignore SA1019 gRPC reads this field
		validation.MatchSubjectAltNames = append(validation.MatchSubjectAltNames, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}})
	}
	return &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: mustAny(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificateProviderInstance: &tlsv3.CertificateProviderPluginInstance{InstanceName: "default", CertificateName: "default"},
			ValidationContextType:          &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation},
		},
	})}}
}

// TestXDSClients: gRPC's own xDS client, with and without TLS by policy, at servers of the mesh.
func TestXDSClients(t *testing.T) {
	for _, c := range []struct {
		name string
		in   func() *snapshot.Inbound
		tls  *corev3.TransportSocket
		root func(mesh, other *authority) *authority // of the client
		want codes.Code
	}{
		{"mutual TLS at STRICT", strict, upstreamTLS(reviewsID), nil, codes.OK},
		{"mutual TLS at PERMISSIVE", permissive, upstreamTLS(reviewsID), nil, codes.OK},
		{"plaintext at PERMISSIVE", permissive, nil, nil, codes.OK},
		{"plaintext at STRICT", strict, nil, nil, codes.PermissionDenied},
		{"another server's name", strict, upstreamTLS(webID), nil, codes.Unavailable},
		{"another root", strict, upstreamTLS(reviewsID), func(_, other *authority) *authority { return other }, codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			ca, other := newAuthority(t), newAuthority(t)
			var who atomic.Pointer[string]
			g := newGoverned(t, true, static(t, ca.material(t, ca.issue(t, reviewsID))), c.in(), func(ctx context.Context, _ int64) error {
				p, _ := identity.PeerFromContext(ctx)
				id := p.ID.String()
				who.Store(&id)
				return nil
			})
			root := ca
			if c.root != nil {
				root = c.root(ca, other)
			}
			cp := newControlPlane(t)
			resources := join(listener("svc:80", 0), routes("svc:80", to("c")), cluster("c", g.address))
			for _, r := range resources {
				if cl, ok := r.(*clusterv3.Cluster); ok {
					cl.TransportSocket = c.tls
				}
			}
			cp.set(t, resources...)
			bootstrap := strings.TrimSuffix(string(cp.bootstrap()), "}") + "," + files(t, root, root.issue(t, webID)) + "}"
			client, _ := dial(t, "xds:///svc:80", DialOptions(ClientOptions{Bootstrap: []byte(bootstrap)})...)
			for _, k := range kinds {
				wantCode(t, k.call(testContext(t), client), c.want)
			}
			if c.want != codes.OK {
				if g.calls.Load() != 0 {
					t.Errorf("%d handlers ran", g.calls.Load())
				}
				return
			}
			want := ""
			if c.tls != nil {
				want = webID
			}
			if got := who.Load(); got == nil || *got != want {
				t.Errorf("the handler saw %v, want %q", got, want)
			}
		})
	}
}

// TestRefusalCodes holds the table of Refusal.
func TestRefusalCodes(t *testing.T) {
	denied := func(r inbound.Reason, status int) error {
		return &inbound.DeniedError{Reason: r, HTTPStatus: status, Message: "told", Rule: "secret"}
	}
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{denied(inbound.ReasonPlaintext, 403), codes.PermissionDenied},
		{denied(inbound.ReasonPeer, 403), codes.PermissionDenied},
		{denied(inbound.ReasonAuthorization, 403), codes.PermissionDenied},
		{denied(inbound.ReasonToken, 401), codes.Unauthenticated},
		{denied(inbound.ReasonToken, 403), codes.PermissionDenied},
		{denied(inbound.ReasonExternal, 401), codes.Unauthenticated},
		{denied(inbound.ReasonExternal, 403), codes.PermissionDenied},
		{denied(inbound.ReasonExternal, 429), codes.Unavailable},
		{denied(inbound.ReasonExternal, 200), codes.Unknown},
		{denied(inbound.ReasonPath, 400), codes.InvalidArgument},
		{denied(inbound.ReasonRedirect, 307), codes.InvalidArgument},
		{denied(inbound.ReasonRateLimit, 429), codes.ResourceExhausted},
		{&inbound.DeniedError{Reason: inbound.ReasonRateLimit, GRPC: codes.Unavailable}, codes.Unavailable},
		{denied("another", 0), codes.PermissionDenied},
		{&inbound.NotReadyError{Address: "a"}, codes.Unavailable},
		{&inbound.DeniedError{Reason: inbound.ReasonPeer, Err: &inbound.NotReadyError{Address: "a"}}, codes.Unavailable},
		{fmt.Errorf("wrapped: %w", denied(inbound.ReasonToken, 401)), codes.Unauthenticated},
	} {
		s := Refusal(c.err)
		if s.Code() != c.want || Code(c.err) != c.want {
			t.Errorf("%v: %v and %v, want %v", c.err, s.Code(), Code(c.err), c.want)
		}
		if strings.Contains(s.Message(), "secret") {
			t.Errorf("%v: the caller is told %q", c.err, s.Message())
		}
	}
}

// TestMetadataThere and back: what policy leaves alone the handler gets as it came.
func TestMetadataForthAndBack(t *testing.T) {
	md := metadata.MD{":authority": {"svc"}, "a": {"1", "2"}, "raw-bin": {"\x00\xff", "admin"}}
	wire := onTheWire(md)
	if got := fmt.Sprint(wire); got != "map[a:[1 2] raw-bin:[AP8 YWRtaW4]]" {
		t.Errorf("on the wire %s", got)
	}
	if back := offTheWire(wire, wire, md); fmt.Sprint(back) != fmt.Sprint(md) {
		t.Errorf("back %q, want %q", back, md)
	}
	changed := map[string][]string{"a": {"3"}, "raw-bin": {"eA=="}, "X-New": {"n"}, "bad-bin": {"?"}}
	back := offTheWire(changed, wire, md)
	want := metadata.MD{":authority": {"svc"}, "a": {"3"}, "raw-bin": {"x"}, "x-new": {"n"}, "bad-bin": {"?"}}
	if fmt.Sprint(back) != fmt.Sprint(want) {
		t.Errorf("changed %q, want %q", back, want)
	}
	if got := onTheWire(metadata.MD{"a": {"1"}}); !slices.Equal(got["a"], []string{"1"}) {
		t.Errorf("%v", got)
	}
}
