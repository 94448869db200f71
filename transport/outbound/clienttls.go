package outbound

import (
	"crypto/tls"
	"fmt"
	"slices"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// ClientTLS is what policy says of a connection, for crypto/tls. The
// certificate and the trust are the source's at the time of each handshake. host is what
// is called, for SNI where policy names nothing; protocol is the version of HTTP
// that the cluster speaks, tlsconfig.ProtocolHTTP1 or ProtocolHTTP2.
func ClientTLS(src source.Source, policy *snapshot.ClientTLS, host, protocol string) *tls.Config {
	return tlsconfig.Client(src, tlsconfig.ClientOptions{
		ServerName:         ServerName(policy, host),
		Peer:               tlsconfig.Peer{SANs: policy.SANs},
		Verification:       verification(policy.Verify),
		WithoutCertificate: !Mutual(policy),
		MinVersion:         policy.MinVersion,
		Protocols:          protocols(policy, protocol),
	})
}

// Mutual reports whether policy has our certificate presented.
func Mutual(policy *snapshot.ClientTLS) bool {
	return policy.Certificate != (snapshot.CertificateSource{})
}

// ServerName is what is sent as SNI to the host.
func ServerName(policy *snapshot.ClientTLS, host string) string {
	if policy.ServerName != "" {
		return policy.ServerName
	}
	return host
}

func verification(v snapshot.Verification) tlsconfig.Verification {
	switch v {
	case snapshot.VerifySPIFFE:
		return tlsconfig.VerifySPIFFE
	case snapshot.VerifyName:
		return tlsconfig.VerifyName
	case snapshot.VerifySANs:
		return tlsconfig.VerifySANs
	default:
		panic(fmt.Sprintf("outbound: verification %d", v)) // a new one needs its counterpart here
	}
}

// protocolIstio is how a proxy of Istio's that takes plaintext too recognises a
// connection as mutual TLS of the mesh.
const protocolIstio = "istio"

// protocols are what is offered by ALPN: the HTTP version that the cluster
// speaks, before what else policy lists. Other HTTP versions are left out even where
// policy lists them: the server would choose, and limits on connections mean
// another thing with each.
func protocols(policy *snapshot.ClientTLS, own string) []string {
	list := []string{own}
	for _, p := range policy.Protocols {
		switch p {
		case "h2", "istio-h2", "http/1.1", "http/1.0", "istio-http/1.1", "istio-http/1.0":
		default:
			list = append(list, p)
		}
	}
	if policy.Verify == snapshot.VerifySPIFFE && !slices.Contains(list, protocolIstio) {
		list = append(list, protocolIstio)
	}
	return list
}
