package tlsconfig

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
)

type signed struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func sign(t testing.TB, template *x509.Certificate, issuer *signed) *signed {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, parentKey := template, key
	if issuer != nil {
		parent, parentKey = issuer.cert, issuer.key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signed{cert, key}
}

func newRoot(t testing.TB, name string) *signed {
	return sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
}

func leafTemplate(t testing.TB, uris ...string) *x509.Certificate {
	c := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = append(c.URIs, u)
	}
	return c
}

func pair(s *signed, more ...*signed) *tls.Certificate {
	c := &tls.Certificate{Certificate: [][]byte{s.cert.Raw}, PrivateKey: s.key}
	for _, m := range more {
		c.Certificate = append(c.Certificate, m.cert.Raw)
	}
	return c
}

func mustTD(t testing.TB, name string) identity.TrustDomain {
	t.Helper()
	td, err := identity.ParseTrustDomain(name)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

func bundle(t testing.TB, roots ...*signed) *identity.Bundle {
	t.Helper()
	var certs []*x509.Certificate
	for _, r := range roots {
		certs = append(certs, r.cert)
	}
	b, err := identity.NewBundle(certs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// holder is a source that holds a certificate and believes the roots.
func holder(t testing.TB, cert *tls.Certificate, roots ...*signed) *source.Static {
	t.Helper()
	s, err := source.NewStatic(material(t, cert, roots...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func material(t testing.TB, cert *tls.Certificate, roots ...*signed) *source.Material {
	t.Helper()
	m := &source.Material{Certificate: cert, Roots: x509.NewCertPool()}
	for _, r := range roots {
		m.Roots.AddCert(r.cert)
	}
	if len(roots) > 0 {
		m.Bundles = identity.BundleSet{mustTD(t, "td.example"): bundle(t, roots...)}
	}
	return m
}

// pipe is a connection with buffers, as a network has them: over net.Pipe two
// sides that both send an alert would wait for each other.
func pipe() (client, server net.Conn) {
	l := bufconn.Listen(64 << 10)
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		accepted <- c
	}()
	client, err := l.Dial()
	if err != nil {
		panic(err)
	}
	return client, <-accepted
}

// meet makes a connection and carries one byte each way. In TLS 1.3 the client
// is done before the server has verified it, so that only the byte tells.
func meet(client, server *tls.Config) (c, s tls.ConnectionState, clientErr, serverErr error) {
	cp, sp := pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn := tls.Server(sp, server)
		if serverErr = conn.Handshake(); serverErr == nil {
			s = conn.ConnectionState()
			var b [1]byte
			if _, serverErr = io.ReadFull(conn, b[:]); serverErr == nil {
				_, serverErr = conn.Write(b[:])
			}
		}
		_ = conn.NetConn().Close()
	}()
	conn := tls.Client(cp, client)
	if clientErr = conn.Handshake(); clientErr == nil {
		c = conn.ConnectionState()
		if _, clientErr = conn.Write([]byte("x")); clientErr == nil {
			var b [1]byte
			_, clientErr = io.ReadFull(conn, b[:])
		}
	}
	_ = cp.Close()
	<-done
	return c, s, clientErr, serverErr
}

func ruleOf(err error) identity.VerifyRule {
	var v *identity.VerifyError
	if errors.As(err, &v) {
		return v.Rule
	}
	return ""
}

const (
	clientID = "spiffe://td.example/ns/a/sa/client"
	serverID = "spiffe://td.example/ns/a/sa/server"
)

func id(t testing.TB, s string) identity.ID {
	t.Helper()
	v, err := identity.ParseID(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
