package meshgrpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
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
	if err := awaitMaterial(ctx, held, outbound.Mutual(policy)); err != nil {
		return nil, nil, err
	}
	c.shaken.Store(true)
	secure := tls.Client(raw, outbound.ClientTLS(held, policy, c.host, tlsconfig.ProtocolHTTP2))
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

func keepAlive(raw net.Conn, k *snapshot.KeepAlive) {
	if tcp, ok := raw.(*net.TCPConn); ok && k != nil {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: k.Idle, Interval: k.Interval, Count: k.Probes})
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
