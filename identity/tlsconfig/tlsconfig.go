// Package tlsconfig makes a *tls.Config for clients and servers from an
// identity source and rules about the peer.
//
// Both sides verify in VerifyConnection, which runs for a resumed session too,
// and issue and keep no session tickets: a peer whose permission or whose
// root has been withdrawn can not come back on an old session. The source is
// read at each handshake, so that a rotation of certificates or roots holds
// from the next connection on. Key exchange is what crypto/tls offers by
// itself, the hybrid X25519MLKEM768 first.
package tlsconfig

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
)

// Application protocols (ALPN). Istio's proxies offer the istio ones to say
// that a connection is mutual TLS of the mesh, and look for them to tell it
// from TLS that the application itself speaks.
const (
	ProtocolHTTP2 = "h2"
	ProtocolHTTP1 = "http/1.1"

	protocolIstio      = "istio"
	protocolIstioPeer  = "istio-peer-exchange"
	protocolIstioHTTP0 = "istio-http/1.0"
	protocolIstioHTTP1 = "istio-http/1.1"
	protocolIstioHTTP2 = "istio-h2"
)

// HTTPProtocol returns which HTTP a negotiated protocol stands for:
// ProtocolHTTP2 or, for everything else, ProtocolHTTP1.
func HTTPProtocol(negotiated string) string {
	if negotiated == ProtocolHTTP2 || negotiated == protocolIstioHTTP2 {
		return ProtocolHTTP2
	}
	return ProtocolHTTP1
}

// Peer says whom a connection may be with.
type Peer struct {
	// ID is asked of the peer's SPIFFE ID. Default: every ID whose trust
	// domain the source has a bundle for.
	ID identity.IDRule
	// SANs are subject alternative names of which the peer's certificate must
	// have one (DestinationRule subjectAltNames). Default: no such rule.
	SANs []identity.SANMatch
}

// Verification is how a server's certificate is verified.
type Verification uint8

const (
	// VerifySPIFFE asks for an X509-SVID and verifies it with the bundle of its
	// trust domain (ISTIO_MUTUAL).
	VerifySPIFFE Verification = iota
	// VerifyName asks for a certificate for the server's name under the
	// source's Roots, as on the web (SIMPLE and MUTUAL).
	VerifyName
	// VerifySANs asks for a certificate under the source's Roots with one of
	// Peer.SANs, whatever the server's name is (SIMPLE and MUTUAL with
	// subjectAltNames). Without any of them every connection is refused.
	VerifySANs
)

// ClientOptions are the choices of a client.
type ClientOptions struct {
	// ServerName is sent as SNI, and is the name that VerifyName looks for.
	// Default: what the caller of crypto/tls sets.
	ServerName string
	// Peer says which servers are accepted.
	Peer Peer
	// Verification is how the server's certificate is verified. Default VerifySPIFFE.
	Verification Verification
	// WithoutCertificate keeps our certificate to ourselves (SIMPLE). Default:
	// it is presented, and without one in force no connection is made.
	WithoutCertificate bool
	// MinVersion is the oldest TLS version. Default TLS 1.3; TLS 1.2 where
	// policy allows it.
	MinVersion uint16
	// Protocols are offered by ALPN. Default "h2", "http/1.1" and, under
	// VerifySPIFFE, "istio", without which an Istio proxy that accepts
	// plaintext too would not take the connection as mutual TLS.
	Protocols []string
}

// Client returns the configuration of a client whose certificate and trust are
// the source's at the time of each handshake.
func Client(src source.Source, o ClientOptions) *tls.Config {
	c := &tls.Config{
		ServerName:             o.ServerName,
		MinVersion:             minVersion(o.MinVersion),
		NextProtos:             o.Protocols,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection does all of it
	}
	if c.NextProtos == nil {
		c.NextProtos = []string{ProtocolHTTP2, ProtocolHTTP1}
		if o.Verification == VerifySPIFFE {
			c.NextProtos = append(c.NextProtos, protocolIstio)
		}
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if o.WithoutCertificate {
			return &tls.Certificate{}, nil
		}
		return certificate(src)
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		m, err := src.Current()
		if err != nil {
			return err
		}
		switch o.Verification {
		case VerifySPIFFE:
			return verifySPIFFE(cs.PeerCertificates, m, &o.Peer, identity.UsageServer)
		case VerifyName:
			name := cs.ServerName
			if name == "" {
				name = o.ServerName // an IP address is not sent as SNI
			}
			if name == "" {
				return &identity.VerifyError{Rule: identity.RulePeerSAN, Detail: "no server name is set to compare the certificate with"}
			}
			return verifyRoots(cs.PeerCertificates, m, &o.Peer, name)
		case VerifySANs:
			if len(o.Peer.SANs) == 0 {
				return &identity.VerifyError{Rule: identity.RulePeerSAN, Detail: "no subject alternative name is set to compare the certificate with"}
			}
			return verifyRoots(cs.PeerCertificates, m, &o.Peer, "")
		default:
			return fmt.Errorf("verification %d is not known", o.Verification)
		}
	}
	return c
}

// ClientCertificate is what a server asks of its clients.
type ClientCertificate uint8

const (
	// CertificateRequired refuses a client without a certificate (mutual TLS).
	CertificateRequired ClientCertificate = iota
	// CertificateOptional lets a client without one in, without an identity; a
	// certificate that is presented must be sound.
	CertificateOptional
	// CertificateNone asks for none: every client is without an identity.
	CertificateNone
)

// ServerOptions are the choices of a server.
type ServerOptions struct {
	// Client says whether clients present a certificate. Default CertificateRequired.
	Client ClientCertificate
	// Peer says which clients are accepted.
	Peer Peer
	// MinVersion is the oldest TLS version. Default TLS 1.3; TLS 1.2 where
	// policy allows it.
	MinVersion uint16
	// Protocols are accepted by ALPN, the first that the client offers too is
	// taken. Default "h2", "http/1.1" and Istio's, which HTTPProtocol
	// understands. A client that offers none is accepted.
	Protocols []string
}

// Server returns the configuration of a server whose certificate and trust
// are the source's at the time of each handshake. Without a certificate in
// force every handshake is refused.
func Server(src source.Source, o ServerOptions) *tls.Config {
	c := &tls.Config{
		MinVersion:             minVersion(o.MinVersion),
		NextProtos:             o.Protocols,
		SessionTicketsDisabled: true,
	}
	if c.NextProtos == nil {
		c.NextProtos = []string{ProtocolHTTP2, ProtocolHTTP1, protocolIstioHTTP2, protocolIstioHTTP1, protocolIstioHTTP0, protocolIstio, protocolIstioPeer}
	}
	switch o.Client {
	case CertificateNone:
		c.ClientAuth = tls.NoClientCert
	case CertificateOptional:
		c.ClientAuth = tls.RequestClientCert
	default:
		c.ClientAuth = tls.RequireAnyClientCert
	}
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate(src) }
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 && o.Client != CertificateRequired {
			return nil
		}
		m, err := src.Current()
		if err != nil {
			return err
		}
		return verifySPIFFE(cs.PeerCertificates, m, &o.Peer, identity.UsageClient)
	}
	return c
}

// PeerOf says who is at the other end of a connection that Client or Server
// configured and whose handshake is complete. A server that Client verified by
// name has no ID.
func PeerOf(cs *tls.ConnectionState) *identity.Peer {
	if !cs.HandshakeComplete {
		return &identity.Peer{TLS: true}
	}
	return identity.PeerOfChain(cs.PeerCertificates)
}

func minVersion(v uint16) uint16 {
	if v == 0 {
		return tls.VersionTLS13
	}
	return max(v, tls.VersionTLS12)
}

var errNoCertificate = errors.New("the identity source has trust bundles but no certificate")

func certificate(src source.Source) (*tls.Certificate, error) {
	m, err := src.Current()
	if err != nil {
		return nil, err
	}
	if m.Certificate == nil {
		return nil, errNoCertificate
	}
	return m.Certificate, nil
}

func verifySPIFFE(chain []*x509.Certificate, m *source.Material, peer *Peer, usage identity.Usage) error {
	id, err := identity.VerifySVID(chain, m.Bundles, time.Now(), usage)
	if err != nil {
		return err
	}
	if peer.ID != nil {
		if err := peer.ID(id); err != nil {
			return &identity.VerifyError{Rule: identity.RulePeerID, Subject: id.String(), Detail: err.Error(), Err: err}
		}
	}
	return identity.MatchSANs(chain[0], peer.SANs)
}

// verifyRoots verifies as on the web. An empty name leaves the name to peer.SANs.
func verifyRoots(chain []*x509.Certificate, m *source.Material, peer *Peer, name string) error {
	if len(chain) == 0 {
		return &identity.VerifyError{Rule: identity.RulePresent, Detail: "the server presented no certificate"}
	}
	if m.Roots == nil {
		// A nil pool would mean the roots of the operating system.
		return &identity.VerifyError{Rule: identity.RuleTrustDomain, Subject: name, Detail: "the identity source has no roots to verify a name with"}
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: name, Roots: m.Roots, Intermediates: intermediates, CurrentTime: time.Now()})
	if err != nil {
		return &identity.VerifyError{Rule: webRule(err), Subject: name, Detail: err.Error(), Err: err}
	}
	if peer.ID != nil {
		id := identity.PeerOfChain(chain).ID
		if err := peer.ID(id); err != nil {
			return &identity.VerifyError{Rule: identity.RulePeerID, Subject: name, Detail: err.Error(), Err: err}
		}
	}
	return identity.MatchSANs(chain[0], peer.SANs)
}

func webRule(err error) identity.VerifyRule {
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, new(x509.HostnameError)):
		return identity.RulePeerSAN
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return identity.RuleExpired
	default:
		return identity.RuleChain
	}
}
