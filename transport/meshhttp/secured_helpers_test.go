package meshhttp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
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

// issue signs a workload's certificate, for the DNS names too.
func (a *authority) issue(t testing.TB, id string, dns ...string) *tls.Certificate {
	t.Helper()
	c := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: dns,
	}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = []*url.URL{u}
	}
	return a.sign(t, c)
}

func (a *authority) bundles(t testing.TB) identity.BundleSet {
	t.Helper()
	td, err := identity.ParseTrustDomain("td.example")
	if err != nil {
		t.Fatal(err)
	}
	b, err := identity.NewBundle([]*x509.Certificate{a.cert}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return identity.BundleSet{td: b}
}

func (a *authority) material(t testing.TB, c *tls.Certificate) *source.Material {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return &source.Material{Certificate: c, Bundles: a.bundles(t), Roots: roots}
}

func static(t testing.TB, m *source.Material) *source.Static {
	t.Helper()
	s, err := source.NewStatic(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// counting is a source that knows how often it was opened and closed.
type counting struct {
	source.Source
	opened, closed atomic.Int64
}

func (c *counting) Close() error {
	c.closed.Add(1)
	return nil
}

func (c *counting) open(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) {
	c.opened.Add(1)
	return c, nil
}

var (
	ownCertificate = snapshot.CertificateSource{Instance: "default"}
	meshTrust      = snapshot.TrustSource{Instance: "default"}
)

// mutual is what Istio's ISTIO_MUTUAL comes to.
func mutual(sans ...string) *snapshot.ClientTLS {
	p := &snapshot.ClientTLS{Certificate: ownCertificate, Trust: meshTrust, ServerName: "outbound_.80_._.svc.shop"}
	for _, s := range sans {
		p.SANs = append(p.SANs, identity.SANExact(identity.SANURI, s))
	}
	return p
}

// seen is what a server says of a request.
func seen(w http.ResponseWriter, r *http.Request) {
	who := "plaintext"
	if r.TLS != nil {
		who = strings.Join([]string{"TLS", r.TLS.ServerName, r.TLS.NegotiatedProtocol, tlsconfig.PeerOf(r.TLS).ID.String()}, " ")
	}
	_, _ = io.WriteString(w, strings.Join([]string{r.Proto, r.Host, r.RequestURI, who}, " "))
}

// secureServer is a server with the certificate that asks for the client's.
func secureServer(t testing.TB, config *tls.Config, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = discardLog
	// httptest puts a certificate of its own beside; GetCertificate wins.
	s.TLS, s.EnableHTTP2 = config, true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// lingeringServer is a secureServer whose alerts always arrive: a connection
// that closes with something unread is reset, and may take what was sent with it.
func lingeringServer(t testing.TB, config *tls.Config, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = discardLog
	s.Listener = lingeringListener{s.Listener}
	s.TLS, s.EnableHTTP2 = config, true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

type lingeringListener struct{ net.Listener }

func (l lingeringListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return lingering{c.(*net.TCPConn)}, nil
}

type lingering struct{ *net.TCPConn }

func (l lingering) Close() error {
	_ = l.CloseWrite()
	_ = l.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.Copy(io.Discard, l.TCPConn)
	return l.TCPConn.Close()
}

// mutualServer takes any client of the source's trust.
func mutualServer(t testing.TB, src source.Source, h http.HandlerFunc) *httptest.Server {
	return secureServer(t, tlsconfig.Server(src, tlsconfig.ServerOptions{Protocols: []string{"h2", "http/1.1"}}), h)
}

// securedWorld is a world whose cluster has the server as its one endpoint.
func securedWorld(t *testing.T, rec *recorder, open outbound.Sources, s *httptest.Server, change func(*snapshot.Cluster)) *world {
	t.Helper()
	w := newWorld(t, ClientOptions{Observer: rec}, func(w *world) {
		w.cluster.Endpoints = lb.NewEndpoints([]lb.Endpoint{{Address: s.Listener.Addr().String(), Weight: 1}}, nil)
		change(w.cluster)
		w.snap.Hosts["svc:443"] = &snapshot.Host{Name: "svc:443", VirtualHost: w.snap.Hosts["svc:80"].VirtualHost}
	})
	w.rebuild(t, rec, NewWire(open))
	return w
}
