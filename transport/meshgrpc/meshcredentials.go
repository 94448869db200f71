package meshgrpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/meshhttp"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// meshCredentials secure the connections of "mesh:///" channels as policy says
// for each endpoint, and those of others as before. The balancer says which
// connection it is by an attribute of the address; a connection of such a channel without one
// does not come about, because nothing else makes addresses there.
type meshCredentials struct {
	credentials.TransportCredentials // for other targets
	// fallback is for endpoints that policy leaves in plaintext and hosts outside the mesh.
	fallback credentials.TransportCredentials
}

// ClientHandshake implements credentials.TransportCredentials.
func (m *meshCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := credentials.ClientHandshakeInfoFromContext(ctx).Attributes.Value(connectionKey{}).(*connection)
	if !ok {
		return m.TransportCredentials.ClientHandshake(ctx, authority, raw)
	}
	keepAlive(raw, c.cluster.KeepAlive)
	if limit := c.cluster.ConnectTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	var conn net.Conn
	var info credentials.AuthInfo
	var err error
	if c.security == nil {
		conn, info, err = m.fallback.ClientHandshake(ctx, authority, raw)
	} else if conn, info, err = c.secure(ctx, raw); err != nil {
		err = &outbound.TLSError{Place: c.place, Err: err}
		c.fail(err)
	}
	if err != nil {
		return nil, nil, err
	}
	return pinged(conn, c.cluster.HTTP2Ping), info, nil
}

// Clone implements credentials.TransportCredentials.
func (m *meshCredentials) Clone() credentials.TransportCredentials {
	return &meshCredentials{m.TransportCredentials.Clone(), m.fallback.Clone()}
}

// UsesXDS tells gRPC's balancer for "xds:///" to give the credentials what policy says.
func (*meshCredentials) UsesXDS() bool { return true }

var errWithdrawn = errors.New("the connection's settings have changed")

// secure makes TLS of policy's. It waits for a certificate that has not come
// yet, as long as the connection may take.
func (c *connection) secure(ctx context.Context, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c.mu.Lock()
	held := c.held
	c.mu.Unlock()
	if held == nil {
		return nil, nil, errWithdrawn
	}
	policy := c.security
	mutual := policy.Certificate != (snapshot.CertificateSource{})
	if err := awaitMaterial(ctx, held.Source, mutual); err != nil {
		return nil, nil, err
	}
	c.shaken.Store(true)
	name := policy.ServerName
	if name == "" {
		name = c.host
	}
	secure := tls.Client(raw, tlsconfig.Client(held.Source, tlsconfig.ClientOptions{
		ServerName:         name,
		Peer:               tlsconfig.Peer{SANs: policy.SANs},
		Verification:       verification(policy.Verify),
		WithoutCertificate: !mutual,
		MinVersion:         policy.MinVersion,
		Protocols:          protocols(policy),
	}))
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	state := secure.ConnectionState()
	if p := tlsconfig.HTTPProtocol(state.NegotiatedProtocol); p != tlsconfig.ProtocolHTTP2 {
		return nil, nil, fmt.Errorf("the server agreed to %q, and gRPC needs HTTP/2", state.NegotiatedProtocol)
	}
	info := credentials.TLSInfo{State: state, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	if certs := state.PeerCertificates; len(certs) > 0 && len(certs[0].URIs) == 1 {
		info.SPIFFEID = certs[0].URIs[0]
	}
	return secure, meshTLSInfo{info}, nil
}

// meshTLSInfo describes a connection that policy secures. Other than gRPC's
// TLSInfo, which it holds, it allows any authority: whom the connection is with was
// verified by the identity that policy asks for, which is no name of a host.
type meshTLSInfo struct{ credentials.TLSInfo }

// ValidateAuthority implements credentials.AuthorityValidator.
func (meshTLSInfo) ValidateAuthority(string) error { return nil }

// awaitMaterial returns when the source has what is needed, or why it has not when the context ends.
func awaitMaterial(ctx context.Context, src source.Source, certificate bool) error {
	for {
		// The channel first: a change after this line closes it.
		changed := src.Changed()
		m, err := src.Current()
		if err == nil && certificate && m.Certificate == nil {
			err = errors.New("the identity source has trust bundles but no certificate")
		}
		var notReady *source.NotReadyError
		if err == nil || !errors.As(err, &notReady) || notReady.Revoked || !notReady.Expired.IsZero() {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
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
		panic(fmt.Sprintf("meshgrpc: verification %d", v)) // a new one needs its counterpart here
	}
}

// protocols are what is offered by ALPN: HTTP/2, what else policy lists but
// other versions of HTTP, and "istio", by which a proxy that takes plaintext too
// knows mutual TLS of the mesh.
func protocols(policy *snapshot.ClientTLS) []string {
	list := []string{tlsconfig.ProtocolHTTP2}
	for _, p := range policy.Protocols {
		switch p {
		case "h2", "istio-h2", "http/1.1", "http/1.0", "istio-http/1.1", "istio-http/1.0":
		default:
			list = append(list, p)
		}
	}
	if policy.Verify == snapshot.VerifySPIFFE && !slices.Contains(list, "istio") {
		list = append(list, "istio")
	}
	return list
}

func keepAlive(raw net.Conn, k *snapshot.KeepAlive) {
	if tcp, ok := raw.(*net.TCPConn); ok && k != nil {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: k.Idle, Interval: k.Interval, Count: k.Probes})
	}
}

// identities are the sources that connections use at present, each opened once
// and watched by one goroutine.
type identities struct {
	open meshhttp.Sources // may be nil

	mu   sync.Mutex
	held map[identityKey]*heldSource
}

type identityKey struct {
	certificate snapshot.CertificateSource
	trust       snapshot.TrustSource
}

type heldSource struct {
	source.Source
	all  *identities
	key  identityKey
	stop chan struct{}

	users map[*connection]struct{} // guarded by all.mu
}

var errNoSources = errors.New("the process has no identity sources")

// hold returns the source that a connection's policy names. release must follow.
func (all *identities) hold(user *connection) (*heldSource, error) {
	if all.open == nil {
		return nil, errNoSources
	}
	key := identityKey{user.security.Certificate, user.security.Trust}
	all.mu.Lock()
	defer all.mu.Unlock()
	h := all.held[key]
	if h == nil {
		src, err := all.open(key.certificate, key.trust)
		if err != nil {
			return nil, err
		}
		h = &heldSource{Source: src, all: all, key: key, stop: make(chan struct{}), users: make(map[*connection]struct{})}
		if all.held == nil {
			all.held = make(map[identityKey]*heldSource)
		}
		all.held[key] = h
		// The channel before the first handshake, so that no change is missed.
		go h.watch(src.Changed())
	}
	h.users[user] = struct{}{}
	return h, nil
}

// release gives back what hold returned.
func (h *heldSource) release(user *connection) {
	h.all.mu.Lock()
	_, uses := h.users[user]
	delete(h.users, user)
	last := uses && len(h.users) == 0
	if last {
		delete(h.all.held, h.key)
	}
	h.all.mu.Unlock()
	if last {
		close(h.stop)
	}
}

// watch has RPCs use new connections when the source has changed: a certificate
// or a root that was withdrawn ends with the RPCs that use it.
func (h *heldSource) watch(changed <-chan struct{}) {
	defer h.Close() // its material stays readable for handshakes under way
	for {
		select {
		case <-changed:
		case <-h.stop:
			return
		}
		changed = h.Changed()
		h.all.mu.Lock()
		users := make([]*connection, 0, len(h.users))
		for u := range h.users {
			users = append(users, u)
		}
		h.all.mu.Unlock()
		for _, u := range users {
			u.renew()
		}
	}
}

// renew has the next RPCs use another connection, unless this one has not come
// about yet: its handshake reads the source.
func (c *connection) renew() {
	if !c.shaken.Load() {
		return
	}
	c.balancer.replace(c)
}
