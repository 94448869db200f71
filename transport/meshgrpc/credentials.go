package meshgrpc

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/meshhttp"
)

// serverCredentials let policy decide about each connection. On a listener of
// the mesh that has happened when gRPC is given the connection; on every other
// one the credentials do what that listener does.
type serverCredentials struct {
	engine *inbound.Engine
	log    *slog.Logger
	// conns are the open connections, net.Addr (LocalAddr) -> *drainable.
	conns *sync.Map
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := raw
	if secure, ok := raw.(*tls.Conn); ok {
		// Complete already on a listener of the mesh. On another it is the
		// program's own TLS, whose peers have no identity here.
		if err := secure.HandshakeContext(context.Background()); err != nil {
			return nil, nil, err
		}
	} else if c.engine.Governs() && c.engine.Conn(raw.LocalAddr()) == nil {
		var err error
		if conn, err = accept(c.engine, raw, c.log); err != nil {
			return nil, nil, err
		}
	}
	info := authInfo(conn)
	d := &drainable{Conn: conn, local: conn.LocalAddr(), all: c.conns}
	if _, ok := d.local.(*net.TCPAddr); ok {
		c.conns.Store(d.local, d)
	}
	return d, info, nil
}

// authInfo describes a connection as gRPC's own credentials do.
func authInfo(conn net.Conn) credentials.AuthInfo {
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return plaintextInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}
	}
	info := credentials.TLSInfo{
		State:          secure.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
	if certs := info.State.PeerCertificates; len(certs) > 0 && len(certs[0].URIs) == 1 {
		info.SPIFFEID = certs[0].URIs[0]
	}
	return info
}

// plaintextInfo is what is known of a connection without TLS.
type plaintextInfo struct{ credentials.CommonAuthInfo }

// AuthType implements credentials.AuthInfo.
func (plaintextInfo) AuthType() string { return "insecure" }

var errNoClient = errors.New("mesh: these are a server's credentials: use DialOptions")

// ClientHandshake implements credentials.TransportCredentials.
func (*serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errNoClient
}

// Info implements credentials.TransportCredentials.
func (*serverCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (c *serverCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (*serverCredentials) OverrideServerName(string) error { return errNoClient }

// accept takes one connection through a listener of the mesh.
func accept(e *inbound.Engine, raw net.Conn, log *slog.Logger) (net.Conn, error) {
	one := &single{conn: raw, over: make(chan struct{})}
	lis := meshhttp.NewListener(e, one, log)
	defer lis.Close()
	conn, err := lis.Accept()
	if err != nil {
		return nil, errors.New("mesh: the connection was closed before it was accepted")
	}
	return conn, nil
}

// single is a listener with one connection.
type single struct {
	conn  net.Conn
	taken bool
	over  chan struct{} // closed with the listener, or with the connection
	once  sync.Once
}

// Accept implements net.Listener. It is called from one goroutine.
func (s *single) Accept() (net.Conn, error) {
	if !s.taken {
		s.taken = true
		return &singleConn{s.conn, s}, nil
	}
	<-s.over
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (s *single) Close() error {
	s.once.Do(func() { close(s.over) })
	return nil
}

// Addr implements net.Listener.
func (s *single) Addr() net.Addr { return s.conn.LocalAddr() }

type singleConn struct {
	net.Conn
	of *single
}

// Close implements net.Conn.
func (c *singleConn) Close() error {
	_ = c.of.Close()
	return c.Conn.Close()
}
