package tlsconfig

//lint:file-ignore SA1019 credentials.ProtocolInfo has ServerName until it goes.

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// ChannelCredentials returns gRPC credentials for a channel to a server that
// is no member of the mesh's traffic, such as the control plane: mutual TLS
// with the source's certificate of the moment.
//
// With serverID the server must have that SPIFFE ID, and serverName is only
// sent as SNI. Without it the server's certificate must be for serverName under
// the source's roots. An empty serverName is the host of the channel's target.
func ChannelCredentials(src source.Source, serverID identity.ID, serverName string) credentials.TransportCredentials {
	o := ClientOptions{ServerName: serverName, Verification: VerifyName, Protocols: []string{ProtocolHTTP2}}
	if !serverID.IsZero() {
		o.Verification, o.Peer.ID = VerifySPIFFE, identity.OneOf(serverID)
	}
	return &channelCredentials{src: src, options: o}
}

var errForClients = errors.New("channel credentials are for clients")

type channelCredentials struct {
	src     source.Source
	options ClientOptions
}

// ClientHandshake waits for a certificate that is on its way: the first one takes
// longer than a connection, and failing would put the next attempt off.
func (c *channelCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := await(ctx, c.src); err != nil {
		return nil, nil, err
	}
	o := c.options
	if o.ServerName == "" {
		host, _, err := net.SplitHostPort(authority)
		if err != nil {
			host = authority
		}
		o.ServerName = host
	}
	return credentials.NewTLS(Client(c.src, o)).ClientHandshake(ctx, authority, conn)
}

// await returns when the source has material in force, or with the reason why
// it has none when the context ends.
func await(ctx context.Context, src source.Source) error {
	for {
		// The channel first: a change after this line closes it.
		changed := src.Changed()
		_, err := src.Current()
		if err == nil || !errors.Is(err, source.ErrNotReady) {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// Certificate returns the certificate that a handshake would present now, nil
// where there is none, and a channel that is closed when that may have changed:
// who keeps a connection for long can make another one before the certificate
// expires that it was made with.
func (c *channelCredentials) Certificate() (*x509.Certificate, <-chan struct{}) {
	changed := c.src.Changed() // first: a change after this line closes it
	m, err := c.src.Current()
	if err != nil || m.Certificate == nil {
		return nil, changed
	}
	return m.Certificate.Leaf, changed
}

func (c *channelCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errForClients
}

func (c *channelCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: c.options.ServerName}
}

func (c *channelCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

func (c *channelCredentials) OverrideServerName(name string) error {
	c.options.ServerName = name
	return nil
}

// ChannelBuilder makes channel credentials of a bootstrap's type
// "certificate_provider" with shared sources. It is what grpc-go's
// xds/bootstrap.RegisterChannelCredentials takes, so that grpc-go's own xDS
// client understands the same document.
type ChannelBuilder struct{}

// Name returns the credentials' type.
func (ChannelBuilder) Name() string { return bootstrap.CertificateProviderCreds }

// Build returns the credentials. They use the source while they have a
// connection, so that nothing has to be given back: grpc-go's xDS client keeps
// credentials that it never ends. The source lives on between connections where
// somebody else uses it, as a Mesh does.
func (ChannelBuilder) Build(config json.RawMessage) (credentials.Bundle, func(), error) {
	c, err := bootstrap.ParseProviderCreds(config)
	if err == nil {
		err = source.Check(c.Plugin, c.Config)
	}
	if err != nil {
		return nil, nil, err
	}
	return channelBundle{&sharedCredentials{config: c, serverName: c.ServerName}}, func() {}, nil
}

// sharedCredentials are channel credentials whose source is in use by their
// connections only.
type sharedCredentials struct {
	config     bootstrap.ProviderCreds
	serverName string
}

func (c *sharedCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	src, err := source.Shared(c.config.Plugin, c.config.Config, nil)
	if err != nil {
		return nil, nil, err
	}
	conn, info, err := ChannelCredentials(src, c.config.ServerID, c.serverName).ClientHandshake(ctx, authority, raw)
	if err != nil {
		_ = src.Close()
		return nil, nil, err
	}
	return &usingConn{Conn: conn, src: src}, info, nil
}

func (c *sharedCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errForClients
}

func (c *sharedCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: c.serverName}
}

func (c *sharedCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

func (c *sharedCredentials) OverrideServerName(name string) error {
	c.serverName = name
	return nil
}

// usingConn gives its source back when it closes.
type usingConn struct {
	net.Conn
	src source.Source
}

func (c *usingConn) Close() error {
	err := c.Conn.Close()
	_ = c.src.Close()
	return err
}

// BuildChannelCredentials makes the channel credentials that the configuration
// describes (bootstrap.ParseProviderCreds) of a shared source, which is to be
// closed after the channel.
func BuildChannelCredentials(config json.RawMessage, log *slog.Logger) (credentials.TransportCredentials, source.Source, error) {
	c, err := bootstrap.ParseProviderCreds(config)
	if err != nil {
		return nil, nil, err
	}
	src, err := source.Shared(c.Plugin, c.Config, log)
	if err != nil {
		return nil, nil, fmt.Errorf("channel credentials %q: %w", bootstrap.CertificateProviderCreds, err)
	}
	return ChannelCredentials(src, c.ServerID, c.ServerName), src, nil
}

// channelBundle is what gRPC asks for; nothing of it depends on the mode.
type channelBundle struct {
	creds credentials.TransportCredentials
}

func (b channelBundle) TransportCredentials() credentials.TransportCredentials { return b.creds }
func (b channelBundle) PerRPCCredentials() credentials.PerRPCCredentials       { return nil }
func (b channelBundle) NewWithMode(string) (credentials.Bundle, error)         { return b, nil }
