package ads

import (
	"context"
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
func Credentials(src source.Source) credentials.TransportCredentials {
	return &serverTLS{TransportCredentials: credentials.NewTLS(tlsconfig.Server(src, tlsconfig.ServerOptions{
		Client: tlsconfig.CertificateOptional, Protocols: []string{tlsconfig.ProtocolHTTP2},
	}))}
}

// serverTLS limits the life of connections.
type serverTLS struct {
	credentials.TransportCredentials
}

func (c *serverTLS) Clone() credentials.TransportCredentials {
	return &serverTLS{c.TransportCredentials.Clone()}
}

func (c *serverTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.TransportCredentials.ClientHandshake(ctx, authority, raw)
}

func (c *serverTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	life := anonymousLife
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		life = max(0, time.Until(end(t.State.PeerCertificates))) + expiredGrace
	}
	// The raw connection: closing the TLS one could wait for a peer that does not read.
	return &mortalConn{Conn: conn, end: time.AfterFunc(life, func() { raw.Close() })}, info, nil
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
