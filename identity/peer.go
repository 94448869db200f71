package identity

import (
	"context"
	"crypto/x509"
	"time"
)

// Peer is what is known of the other end of a connection. The zero value is a
// peer without transport security, of which nothing is known.
type Peer struct {
	// ID is the identity that the peer's certificate proved. It is zero for a
	// plaintext peer, for a TLS peer that presented no certificate and for one
	// whose certificate is no X509-SVID.
	ID ID
	// TLS reports whether the connection is encrypted. It says nothing about
	// who the peer is: ID does.
	TLS bool
	// URIs, DNSNames and Emails are the subject alternative names of the
	// peer's verified certificate.
	URIs, DNSNames, Emails []string
	// Certificate is the peer's verified leaf certificate; nil if it presented none.
	Certificate *x509.Certificate
	// NotAfter is when the peer's certificate expires; zero if it presented none.
	NotAfter time.Time
}

// Authenticated reports whether the peer proved an identity.
func (p *Peer) Authenticated() bool { return p != nil && !p.ID.IsZero() }

// String names the peer for people: its ID, or else what kind of connection it is on.
func (p *Peer) String() string {
	switch {
	case p == nil:
		return "no peer"
	case !p.ID.IsZero():
		return p.ID.String()
	case p.TLS:
		return "TLS without identity"
	}
	return "plaintext"
}

// PlaintextPeer returns the peer of a connection without TLS. It has no identity.
func PlaintextPeer() *Peer { return &Peer{} }

// PeerOfChain describes the peer of a TLS connection whose certificates have
// been verified already, leaf first; an empty chain is a peer without a
// certificate. It verifies nothing: on a connection that did not pass
// VerifySVID or an equal check the result is what the peer claims to be.
func PeerOfChain(verified []*x509.Certificate) *Peer {
	p := &Peer{TLS: true}
	if len(verified) == 0 {
		return p
	}
	leaf := verified[0]
	p.Certificate, p.NotAfter = leaf, leaf.NotAfter
	names, err := alternativeNames(leaf)
	if err != nil {
		return p
	}
	p.URIs, p.DNSNames, p.Emails = names.uris, names.dns, names.emails
	if len(names.uris) == 1 {
		if id, err := ParseID(names.uris[0]); err == nil && id.Path() != "" {
			p.ID = id
		}
	}
	return p
}

type peerKey struct{}

// ContextWithPeer returns a context that carries the peer.
func ContextWithPeer(ctx context.Context, p *Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// PeerFromContext returns who sent the request that the context belongs to. ok
// is false where the request did not come through the mesh. A peer on
// plaintext is found too, with a zero ID: use Authenticated before trusting it.
// The peer is shared by all requests of the connection and must not be changed.
func PeerFromContext(ctx context.Context) (p *Peer, ok bool) {
	p, ok = ctx.Value(peerKey{}).(*Peer)
	return p, ok && p != nil
}
