package snapshot

import "github.com/sinew-mesh/sinew/identity"

// CertificateSource is where a certificate comes from: one of the two.
type CertificateSource struct {
	// Instance names a certificate_providers entry of the bootstrap.
	Instance string
	// CertificateFile and KeyFile are PEM files.
	CertificateFile, KeyFile string
}

// TrustSource is what a peer's certificate is verified with: one of the three.
type TrustSource struct {
	// Instance names a certificate_providers entry of the bootstrap.
	Instance string
	// CAFile is a PEM file.
	CAFile string
	// System means the roots of the operating system.
	System bool
}

// Verification is how a server's certificate is verified.
type Verification uint8

const (
	// VerifySPIFFE asks for an X509-SVID under the bundle of its trust domain.
	VerifySPIFFE Verification = iota
	// VerifyName asks for a certificate for the server's name, as on the web.
	VerifyName
	// VerifySANs asks for a certificate with one of the SANs, whatever the server's name is.
	VerifySANs
)

// ClientTLS is how connections to endpoints are secured.
type ClientTLS struct {
	// Certificate is presented; the zero value presents none.
	Certificate CertificateSource
	Trust       TrustSource
	Verify      Verification
	// ServerName is sent as SNI; "" sends the name of the host that is called.
	ServerName string
	// SANs are those of which the server's certificate must have one; none means any.
	SANs []identity.SANMatch
	// MinVersion is the oldest TLS version, as crypto/tls numbers them; 0 means TLS 1.3.
	MinVersion uint16
	// Protocols are offered by ALPN; none means those that fit the cluster.
	Protocols []string
}

// ServerTLS is how a listener terminates TLS.
type ServerTLS struct {
	Certificate CertificateSource
	Trust       TrustSource
	// RequireClientCertificate refuses clients without a certificate; else one is asked for, and verified where it comes.
	RequireClientCertificate bool
	// SANs are those of which the client's certificate must have one; none means any.
	SANs []identity.SANMatch
	// MinVersion is the oldest TLS version; 0 means TLS 1.3.
	MinVersion uint16
	// Protocols are accepted by ALPN; none means HTTP/2, HTTP/1.1 and Istio's.
	Protocols []string
}

// SocketMatch chooses how endpoints with certain metadata are connected to.
type SocketMatch struct {
	// Criteria are keys and values that lb.Endpoint.Socket must have; none fits every endpoint.
	Criteria map[string]string
	// TLS is nil for plaintext.
	TLS *ClientTLS
}

// Security returns how connections to an endpoint with the metadata are secured; nil means plaintext.
func (c *Cluster) Security(endpoint map[string]string) *ClientTLS {
next:
	for i := range c.Sockets {
		for k, v := range c.Sockets[i].Criteria {
			if endpoint[k] != v {
				continue next
			}
		}
		return c.Sockets[i].TLS
	}
	return c.TLS
}
