package inbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
)

// Conn is one connection that a listener of the mesh has accepted. What it says
// does not change once the listener has handed the connection on.
type Conn struct {
	Local, Remote netip.AddrPort
	// TLS says that the listener terminated TLS.
	TLS bool
	// Peer is who was at the other end when the connection was made; never nil.
	// Whether the peer is still believed, Admit decides for each request.
	Peer *identity.Peer
	// ServerName is what the client asked for in the handshake (SNI).
	ServerName string

	engine    *Engine
	key       *net.TCPAddr
	close     func() error
	owner     *atomic.Int64 // counts with the listener; nil where there is none
	principal string
	// presented is the peer's chain, certificate the leaf that we presented.
	presented   []*x509.Certificate
	certificate []byte
	expires     time.Time // the first end of a certificate in presented
	checked     atomic.Pointer[check]
	counted     atomic.Pointer[counted]
	settled     atomic.Bool // the fields that TLS gives are set
	closing     atomic.Bool
	gone        atomic.Bool
}

// check is what became of verifying a connection's peer.
type check struct {
	chain    *chain
	material *source.Material
	renewed  bool // the certificate that we present is another by now
	err      error
}

// counted is where a connection's requests are counted.
type counted struct {
	table *usageTable
	peer  *peerUsage
}

// Own tells the engine that the listener at the address registers its
// connections with Open, so that a request at this address without a registered
// connection is refused. release takes it back once the last of the connections
// that are open then is closed.
func (e *Engine) Own(address net.Addr) (release func()) {
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return func() {}
	}
	uses, _ := e.owned.LoadOrStore(ownKey(unmap(tcp.AddrPort())), new(atomic.Int64))
	count := uses.(*atomic.Int64)
	count.Add(1)
	return sync.OnceFunc(func() { count.Add(-1) })
}

// ownKey is the key of a listener in Engine.owned: one on all addresses stands
// under its port alone, whichever family it has.
func ownKey(at netip.AddrPort) netip.AddrPort {
	if at.Addr().IsUnspecified() {
		return netip.AddrPortFrom(netip.Addr{}, at.Port())
	}
	return at
}

// owner returns what counts a listener of the mesh at an address and its
// connections; nil where there is none.
func (e *Engine) owner(at netip.AddrPort) *atomic.Int64 {
	for _, key := range [...]netip.AddrPort{at, netip.AddrPortFrom(netip.Addr{}, at.Port())} {
		if uses, ok := e.owned.Load(key); ok && uses.(*atomic.Int64).Load() > 0 {
			return uses.(*atomic.Int64)
		}
	}
	return nil
}

// Open registers a connection. Requests are recognised as its own by local: the
// very pointer that the connection's LocalAddr returns, which must be no other
// connection's. close closes the connection. The caller must call Closed once
// the connection is closed.
func (e *Engine) Open(local *net.TCPAddr, remote net.Addr, close func() error) *Conn {
	c := &Conn{
		Local: unmap(local.AddrPort()), Peer: plaintextPeer,
		engine: e, key: local, close: close,
	}
	if tcp, ok := remote.(*net.TCPAddr); ok {
		c.Remote = unmap(tcp.AddrPort())
	}
	if c.owner = e.owner(c.Local); c.owner != nil {
		c.owner.Add(1)
	}
	e.conns.Store(local, c)
	return c
}

// Closed forgets the connection.
func (c *Conn) Closed() {
	if !c.gone.CompareAndSwap(false, true) {
		return
	}
	c.engine.conns.Delete(c.key)
	if c.owner != nil {
		c.owner.Add(-1)
	}
}

// Conn returns the connection whose LocalAddr is local; nil where no listener of
// the mesh has accepted it, or where it is closed.
func (e *Engine) Conn(local net.Addr) *Conn {
	tcp, ok := local.(*net.TCPAddr)
	if !ok {
		return nil
	}
	known, ok := e.conns.Load(tcp)
	if !ok {
		return nil
	}
	return known.(*Conn)
}

// CloseAfter closes the connection when the time has passed, so that requests
// in flight can finish until then. Only the first call counts.
func (c *Conn) CloseAfter(grace time.Duration) {
	if c.closing.CompareAndSwap(false, true) {
		time.AfterFunc(grace, func() { _ = c.close() })
	}
}

// MayBeTLS reports whether the listener may have to terminate TLS on the
// connection, so that its first byte must be seen. It is false only where
// policy has come and says no.
func (c *Conn) MayBeTLS() bool {
	v := c.engine.view.Load()
	l := v.listeners[v.listener(c.Local)]
	return l == nil || l.err != nil || l.tls != nil
}

// Handshake is called for a connection that begins with a TLS handshake, before
// it is handed on. It waits for the listener's policy, and for the process's
// first certificate, up to PolicyWait each, and then has limit for the handshake. It returns nil without an error where the
// listener does not terminate TLS: the bytes are then the application's. An
// error means that the connection must be closed.
func (c *Conn) Handshake(ctx context.Context, raw net.Conn, limit time.Duration) (*tls.Conn, error) {
	name := c.Local.String()
	l, err := c.engine.policy(ctx, c.Local)
	if l != nil {
		name = l.name
	}
	var material *source.Material
	if err == nil && l.tls == nil {
		if l.plain != nil {
			return nil, nil
		}
		err = &NotReadyError{Address: name, Err: errNoChain}
	}
	if err == nil {
		material, err = l.tls.credential.await(ctx, name, c.engine.options.PolicyWait)
	}
	if err != nil {
		c.engine.handshakeFailed(name, HandshakeNotReady)
		decline(ctx, raw, limit, err)
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_ = raw.SetDeadline(time.Now().Add(limit))
	conn := tls.Server(raw, l.tls.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		c.engine.handshakeFailed(name, handshakeRule(err))
		return nil, err
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	state := conn.ConnectionState()
	c.secured(&state, l.tls, material)
	return conn, nil
}

// decline answers a client's hello with the alert internal_error, so that the
// client knows that TLS failed and at which end.
func decline(ctx context.Context, raw net.Conn, limit time.Duration, reason error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_ = raw.SetDeadline(time.Now().Add(limit))
	_ = tls.Server(raw, &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, reason },
	}).HandshakeContext(ctx)
}

// secured notes what the handshake has proved under a chain's rules. material
// was in force when it began: where it still is, nothing has to be verified again.
func (c *Conn) secured(state *tls.ConnectionState, by *chain, material *source.Material) {
	c.TLS, c.Peer, c.ServerName = true, tlsconfig.PeerOf(state), state.ServerName
	c.presented = state.PeerCertificates
	c.principal = c.Peer.ID.String()
	for _, cert := range c.presented {
		if c.expires.IsZero() || cert.NotAfter.Before(c.expires) {
			c.expires = cert.NotAfter
		}
	}
	if material.Certificate != nil && len(material.Certificate.Certificate) > 0 {
		c.certificate = material.Certificate.Certificate[0]
	}
	if by.credential.material.Load() == material {
		c.checked.Store(&check{chain: by, material: material})
	}
	c.settled.Store(true)
}

// closingShare is the last part of a certificate's validity in which its
// connections are asked to close, so that whoever renews in time never has a
// connection on which it has expired.
const closingShare = 10

// verified reports whether the connection's peer holds under the rules of the
// listener's TLS and the bundles that are in force now, and whether the connection
// should be replaced by a new one. It verifies only after one of them has changed.
// Without an identity of our own the error is a *NotReadyError.
func (c *Conn) verified(l *listener, now time.Time) (closing bool, err error) {
	by := l.tls
	material, err := by.credential.current(l.name, now)
	if err != nil {
		return true, err
	}
	known := c.checked.Load()
	if known == nil || known.chain != by || known.material != material {
		known = &check{chain: by, material: material, err: by.verify(c.presented, material, now)}
		known.renewed = material.Certificate == nil || len(material.Certificate.Certificate) == 0 ||
			!bytes.Equal(c.certificate, material.Certificate.Certificate[0])
		c.checked.Store(known)
	}
	if known.err != nil {
		return true, known.err
	}
	if c.expires.IsZero() {
		return known.renewed, nil
	}
	left := c.expires.Sub(now)
	if left <= 0 {
		return true, &identity.VerifyError{Rule: identity.RuleExpired, Subject: c.principal, Detail: "the certificate that the connection was made with has expired"}
	}
	leaf := c.Peer.Certificate
	return known.renewed || left < leaf.NotAfter.Sub(leaf.NotBefore)/closingShare, nil
}

// handshakeRule names why a handshake failed.
func handshakeRule(err error) string {
	var refused *identity.VerifyError
	var network net.Error
	switch {
	case errors.As(err, &refused):
		return string(refused.Rule)
	case errors.Is(err, source.ErrNotReady):
		return HandshakeNotReady
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return HandshakeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled):
		return HandshakeClosed
	case strings.Contains(err.Error(), "didn't provide a certificate"): // crypto/tls has no type for it
		return string(identity.RulePresent)
	default:
		return HandshakeProtocol
	}
}

func (e *Engine) handshakeFailed(listener, rule string) {
	if e.options.Observer != nil {
		e.options.Observer.HandshakeFailed(listener, rule)
	}
}

// HandshakeFailed reports a handshake that the listener has given up before
// calling Handshake, by one of the Handshake words.
func (c *Conn) HandshakeFailed(word string) { c.engine.handshakeFailed(c.Local.String(), word) }

var plaintextPeer, encryptedPeer = identity.PlaintextPeer(), &identity.Peer{TLS: true}
