package ads

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
)

const (
	// expiredGrace is how long a connection outlives its client's certificate, in
	// which its streams end with a status.
	expiredGrace = time.Second
	// anonymousLife is how long a connection without a client certificate lasts: as
	// long as it takes to get one.
	anonymousLife = time.Minute
)

// Credentials returns the TLS credentials of a gRPC server whose certificate and
// trust bundles are the source's at the time of each handshake.
//
// A client certificate is asked for. One that is presented must be an SVID under
// the source's bundles, else the handshake fails; a client without one is let in
// for a minute, because certificates are given out on the same port, and the
// services decide what it may do (see RegisterVerified). A connection is closed
// a second after its client's certificate has expired, so that the client
// connects again with the next one.
//
// A handshake that fails is logged and on the status page, as a stream that is refused.
func (s *Server) Credentials(src source.Source) credentials.TransportCredentials {
	return &serverTLS{credentials.NewTLS(tlsconfig.Server(src, tlsconfig.ServerOptions{
		Client: tlsconfig.CertificateOptional, Protocols: []string{tlsconfig.ProtocolHTTP2},
	})), s}
}

// serverTLS limits the life of connections.
type serverTLS struct {
	credentials.TransportCredentials
	server *Server
}

func (c *serverTLS) Clone() credentials.TransportCredentials {
	return &serverTLS{c.TransportCredentials.Clone(), c.server}
}

func (c *serverTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.TransportCredentials.ClientHandshake(ctx, authority, raw)
}

func (c *serverTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		if why := handshakeReason(err); why != "" {
			c.server.remember("connection refused", Refusal{Address: raw.RemoteAddr().String(), Reason: why})
		}
		return nil, nil, err
	}
	life := anonymousLife
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		life = max(0, time.Until(end(t.State.PeerCertificates))) + expiredGrace
	}
	// The raw connection: closing the TLS one could wait for a peer that does not read.
	return &mortalConn{Conn: conn, end: time.AfterFunc(life, func() { raw.Close() })}, info, nil
}

// handshakeReason says for people why a handshake has failed; "" where the client has
// just gone, as probes of a port do.
func handshakeReason(err error) string {
	op, isNet := errors.AsType[*net.OpError](err)
	_, isPlaintext := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case isPlaintext:
		return "the client does not speak TLS, and this port takes nothing else"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isNet && (op.Op == "read" || op.Op == "write"):
		return ""
	}
	return "TLS handshake: " + err.Error()
}

// mortalConn is a connection with an end.
type mortalConn struct {
	net.Conn
	end *time.Timer
}

func (c *mortalConn) Close() error {
	c.end.Stop()
	return c.Conn.Close()
}
