package tlsconfig

import (
	"crypto/tls"
	"crypto/x509"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
)

// BenchmarkHandshake is one connection: both handshakes and a byte each way,
// over a pipe in memory. "alone" is crypto/tls with the same certificates, versions,
// protocols and key exchange, and verifies chains as it does by itself; what
// "mesh" takes longer is the source and the rules of SPIFFE.
func BenchmarkHandshake(b *testing.B) {
	root := newRoot(b, "root")
	clientLeaf, serverLeaf := leafTemplate(b, clientID), leafTemplate(b, serverID)
	serverLeaf.DNSNames = []string{"server.example"} // crypto/tls knows no other way to name a server
	client, server := pair(sign(b, clientLeaf, root)), pair(sign(b, serverLeaf, root))
	pool := x509.NewCertPool()
	pool.AddCert(root.cert)
	for _, c := range []*tls.Certificate{client, server} {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			b.Fatal(err)
		}
		c.Leaf = leaf
	}
	protocols := []string{"h2", "http/1.1", "istio"}
	run := func(name string, c, s *tls.Config) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, cerr, serr := meet(c, s); cerr != nil || serr != nil {
					b.Fatal(cerr, serr)
				}
			}
		})
	}
	run("alone", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*client}, RootCAs: pool, ServerName: "server.example",
		NextProtos: protocols, SessionTicketsDisabled: true,
	}, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: protocols, SessionTicketsDisabled: true,
	})
	run("mesh",
		Client(holder(b, client, root), ClientOptions{ServerName: "server.example", Protocols: protocols, Peer: Peer{ID: identity.OneOf(id(b, serverID))}}),
		Server(holder(b, server, root), ServerOptions{Protocols: protocols}))
}
