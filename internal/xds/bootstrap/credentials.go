package bootstrap

//lint:file-ignore SA1019 credentials.ProtocolInfo has ServerName until it goes.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// DialOption returns the credentials for a channel to the server: the first
// of its channel_creds that is known, as in gRFC A27. "insecure" is plain
// text, for a Unix socket or a trusted network; "tls" is TLS with the
// certificate files of gRFC A65, which are read again for every connection so
// that renewed ones are used.
func (s *Server) DialOption() (grpc.DialOption, error) {
	i := s.selected()
	if i < 0 {
		return nil, &Error{Path: "channel_creds", Why: "none of these is known (insecure, tls)"}
	}
	if s.ChannelCreds[i].Type == "insecure" {
		return grpc.WithTransportCredentials(insecure.NewCredentials()), nil
	}
	p := &parser{}
	files := p.tls(s.ChannelCreds[i].Config, "channel_creds.config")
	if p.err != nil {
		return nil, p.err
	}
	return grpc.WithTransportCredentials(&fileTLS{files: files}), nil
}

// selected is the index of the first credentials that are known, or -1.
func (s *Server) selected() int {
	for i := range s.ChannelCreds {
		if t := s.ChannelCreds[i].Type; t == "insecure" || t == "tls" {
			return i
		}
	}
	return -1
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
