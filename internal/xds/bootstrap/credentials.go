package bootstrap

//lint:file-ignore SA1019 credentials.ProtocolInfo has ServerName until it goes.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sinew-mesh/sinew/identity"
)

// The types of channel credentials that are known.
const (
	Insecure = "insecure" // plain text, for a Unix socket or a trusted network
	TLS      = "tls"      // gRFC A65
	// CertificateProviderCreds is mutual TLS with the certificate of a plugin, as
	// certificate_providers describes it (ProviderCreds).
	CertificateProviderCreds = "certificate_provider"
)

// CredentialsFunc makes channel credentials of a type that is not made here,
// which is CertificateProviderCreds.
type CredentialsFunc func(ChannelCreds) (credentials.TransportCredentials, error)

// DialOption returns the credentials for a channel to the server: the first
// of its channel_creds that is known, as in gRFC A27. "insecure" is plain
// text, for a Unix socket or a trusted network; "tls" is TLS with the
// certificate files of gRFC A65, which are read again for every connection so
// that renewed ones are used; those of "certificate_provider" are made by
// provider, without which they are an error.
func (s *Server) DialOption(provider CredentialsFunc) (grpc.DialOption, error) {
	i := s.selected()
	if i < 0 {
		return nil, &Error{Path: "channel_creds", Why: noneKnown}
	}
	at := index("channel_creds", i)
	switch s.ChannelCreds[i].Type {
	case Insecure:
		return grpc.WithTransportCredentials(insecure.NewCredentials()), nil
	case CertificateProviderCreds:
		if provider == nil {
			return nil, &Error{Path: at, Why: "this program has no identity source to make credentials of type \"" + CertificateProviderCreds + "\" with"}
		}
		creds, err := provider(s.ChannelCreds[i])
		if err != nil {
			return nil, &Error{Path: join(at, "config"), Why: err.Error()}
		}
		return grpc.WithTransportCredentials(creds), nil
	}
	p := &parser{}
	files := p.tls(s.ChannelCreds[i].Config, join(at, "config"))
	if p.err != nil {
		return nil, p.err
	}
	return grpc.WithTransportCredentials(&fileTLS{files: files}), nil
}

const noneKnown = "none of these is known (insecure, tls, certificate_provider)"

// selected is the index of the first credentials that are known, or -1.
func (s *Server) selected() int {
	return slices.IndexFunc(s.ChannelCreds, func(c ChannelCreds) bool {
		return c.Type == Insecure || c.Type == TLS || c.Type == CertificateProviderCreds
	})
}

// ProviderCreds is the configuration of channel credentials of type
// "certificate_provider": mutual TLS with a plugin's certificate.
type ProviderCreds struct {
	// Plugin and Config are the plugin's name (plugin_name) and configuration
	// (config), as in certificate_providers.
	CertificateProvider
	// ServerID is the SPIFFE ID that the server must have (server_id). Default
	// none: its certificate must be for ServerName under the plugin's roots.
	ServerID identity.ID
	// ServerName is sent as SNI (server_name), and without ServerID is the name
	// that the certificate must be for. Default: the host of server_uri.
	ServerName string
}

// ParseProviderCreds reads the configuration of channel credentials of type
// "certificate_provider". The error is an *Error whose path begins at config.
// A member that is not known is an error: the members decide who is trusted.
func ParseProviderCreds(config json.RawMessage) (ProviderCreds, error) {
	p := &parser{}
	c := p.providerCreds(config, "config")
	if p.err != nil {
		return ProviderCreds{}, p.err
	}
	return c, nil
}

func (p *parser) providerCreds(raw json.RawMessage, path string) ProviderCreds {
	if len(raw) == 0 || isNull(raw) {
		p.fail(path, "missing")
		return ProviderCreds{}
	}
	f := p.dict(raw, path)
	for _, name := range slices.Sorted(maps.Keys(f)) {
		switch name {
		case "plugin_name", "config", "server_id", "server_name":
		default:
			p.fail(join(path, name), "not known")
		}
	}
	var c ProviderCreds
	c.Plugin, c.Config = p.str(f["plugin_name"], join(path, "plugin_name")), f["config"]
	if c.Plugin == "" {
		p.fail(join(path, "plugin_name"), "missing or empty")
	}
	if c.Config != nil {
		p.dict(c.Config, join(path, "config"))
	}
	if f["server_id"] != nil {
		id, err := identity.ParseID(p.str(f["server_id"], join(path, "server_id")))
		if err != nil {
			p.fail(join(path, "server_id"), "%v", err)
		}
		c.ServerID = id
	}
	c.ServerName = p.str(f["server_name"], join(path, "server_name"))
	return c
}

// ChannelCreds writes the credentials as channel_creds holds them.
func (c *ProviderCreds) ChannelCreds() (ChannelCreds, error) {
	b, err := json.Marshal(struct {
		Plugin     string          `json:"plugin_name"`
		Config     json.RawMessage `json:"config,omitempty"`
		ServerID   string          `json:"server_id,omitempty"`
		ServerName string          `json:"server_name,omitempty"`
	}{c.Plugin, c.Config, c.ServerID.String(), c.ServerName})
	if err == nil {
		_, err = ParseProviderCreds(b)
	}
	return ChannelCreds{Type: CertificateProviderCreds, Config: b}, err
}

// tlsFiles is the configuration of the "tls" credentials (gRFC A65).
type tlsFiles struct {
	ca          string // empty: the system's roots
	certificate string // with key, or both empty
	key         string
}

func (p *parser) tls(raw json.RawMessage, path string) tlsFiles {
	if raw == nil {
		return tlsFiles{}
	}
	f := p.object(raw, path, "ca_certificate_file", "certificate_file", "private_key_file", "refresh_interval")
	files := tlsFiles{
		ca:          p.str(f["ca_certificate_file"], join(path, "ca_certificate_file")),
		certificate: p.str(f["certificate_file"], join(path, "certificate_file")),
		key:         p.str(f["private_key_file"], join(path, "private_key_file")),
	}
	if f["spiffe_trust_bundle_map_file"] != nil {
		// To leave it out would trust other roots than those that were asked for.
		p.fail(join(path, "spiffe_trust_bundle_map_file"), "not supported")
	}
	if interval := p.str(f["refresh_interval"], join(path, "refresh_interval")); interval != "" {
		if d, err := time.ParseDuration(interval); err != nil || d <= 0 {
			p.fail(join(path, "refresh_interval"), "must be a positive duration such as \"600s\"")
		}
	}
	if (files.certificate == "") != (files.key == "") {
		p.fail(path, "certificate_file and private_key_file go together")
	}
	return files
}

// config reads the files.
func (f *tlsFiles) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("bootstrap: ca_certificate_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("bootstrap: ca_certificate_file: no certificate in %s", f.ca)
		}
	}
	if f.certificate != "" {
		pair, err := tls.LoadX509KeyPair(f.certificate, f.key)
		if err != nil {
			return nil, fmt.Errorf("bootstrap: certificate_file, private_key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// fileTLS reads its files at every handshake; connections to a control plane
// are few, so this costs nothing and needs no watcher.
type fileTLS struct {
	files      tlsFiles
	serverName string
}

func (t *fileTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := t.files.config()
	if err != nil {
		return nil, nil, err
	}
	config.ServerName = t.serverName
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
}

func (t *fileTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("bootstrap: channel credentials are for clients")
}

func (t *fileTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: t.serverName}
}

func (t *fileTLS) Clone() credentials.TransportCredentials {
	clone := *t
	return &clone
}

func (t *fileTLS) OverrideServerName(name string) error {
	t.serverName = name
	return nil
}
