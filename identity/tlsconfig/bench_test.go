package tlsconfig

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"testing"
	"time"

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
	alone := [2]*tls.Config{{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*client}, RootCAs: pool, ServerName: "server.example",
		NextProtos: protocols, SessionTicketsDisabled: true,
	}, {
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: protocols, SessionTicketsDisabled: true,
	}}
	mesh := [2]*tls.Config{
		Client(holder(b, client, root), ClientOptions{ServerName: "server.example", Protocols: protocols, Peer: Peer{ID: identity.OneOf(id(b, serverID))}}),
		Server(holder(b, server, root), ServerOptions{Protocols: protocols}),
	}
	once := func(b *testing.B, of [2]*tls.Config) time.Duration {
		began := time.Now()
		if _, _, cerr, serr := meet(of[0], of[1]); cerr != nil || serr != nil {
			b.Fatal(cerr, serr)
		}
		return time.Since(began)
	}
	for name, of := range map[string][2]*tls.Config{"alone": alone, "mesh": mesh} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				once(b, of)
			}
		})
	}
	// In turn, so that whatever else the machine does concerns both.
	b.Run("mesh against alone", func(b *testing.B) {
		var took [2][]time.Duration
		for b.Loop() {
			took[0], took[1] = append(took[0], once(b, alone)), append(took[1], once(b, mesh))
		}
		for _, t := range took {
			slices.Sort(t)
		}
		b.ReportMetric(float64(took[1][len(took[1])/2])/float64(took[0][len(took[0])/2]), "times")
	})
}
