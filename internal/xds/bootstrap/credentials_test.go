package bootstrap

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/xds"
)

// writeCertificate makes a self-signed certificate for host that is its own CA.
func writeCertificate(t *testing.T, dir, name, host string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: der},
		key:         {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

// handshake runs both sides over a loopback connection and returns the client's error and
// the name of the certificate that it presented.
func handshake(t *testing.T, client *fileTLS, certificate, key string) (clientName string, err error) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	a, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if server.HandshakeContext(t.Context()) == nil {
			if peers := server.ConnectionState().PeerCertificates; len(peers) > 0 {
				clientName = peers[0].Subject.CommonName
			}
		}
		b.Close()
	}()
	_, _, err = client.ClientHandshake(context.Background(), "xds.test:15010", a)
	if err != nil {
		a.Close()
	}
	<-done
	return clientName, err
}

func TestTLSReadsItsFilesForEveryConnection(t *testing.T) {
	dir := t.TempDir()
	serverCert, serverKey := writeCertificate(t, dir, "server", "xds.test")
	otherCert, _ := writeCertificate(t, dir, "other", "xds.test")
	clientCert, clientKey := writeCertificate(t, dir, "client", "workload")
	ca := filepath.Join(dir, "ca.pem")
	client := &fileTLS{files: tlsFiles{ca: ca, certificate: clientCert, key: clientKey}}

	if _, err := handshake(t, client, serverCert, serverKey); err == nil {
		t.Fatal("a connection without the file of roots")
	}
	copyFile(t, otherCert, ca)
	if _, err := handshake(t, client, serverCert, serverKey); err == nil {
		t.Fatal("a server that the roots do not vouch for was accepted")
	}
	copyFile(t, serverCert, ca)
	name, err := handshake(t, client, serverCert, serverKey)
	if err != nil || name != "workload" {
		t.Fatalf("client certificate %q, error %v", name, err)
	}
	writeCertificate(t, dir, "client", "renewed")
	if name, err = handshake(t, client, serverCert, serverKey); err != nil || name != "renewed" {
		t.Fatalf("client certificate %q, error %v; want the renewed one", name, err)
	}
	if err := os.WriteFile(ca, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, client, serverCert, serverKey); err == nil {
		t.Fatal("roots without a certificate fell back to something else")
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func noCredentials(ChannelCreds) (credentials.TransportCredentials, error) {
	return insecure.NewCredentials(), nil
}

func TestProviderCredentials(t *testing.T) {
	c, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	creds, err := ParseProviderCreds(c.Servers[1].ChannelCreds[0].Config)
	if err != nil || creds.Plugin != "csr" || string(creds.Config) != `{"address": "xds.example.com:15012"}` ||
		creds.ServerID.String() != "spiffe://td.example/ns/sinew-system/sa/xdsserver" || creds.ServerName != "xds" {
		t.Errorf("%+v, %v", creds, err)
	}
	written, err := creds.ChannelCreds()
	if err != nil || written.Type != CertificateProviderCreds {
		t.Fatal(err)
	}
	if again, err := ParseProviderCreds(written.Config); err != nil || again.Plugin != creds.Plugin || again.ServerID != creds.ServerID || again.ServerName != creds.ServerName {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := (&ProviderCreds{}).ChannelCreds(); err == nil {
		t.Error("credentials without a plugin are written")
	}

	// Without a maker of such credentials there is no fallback to the next ones.
	var e *Error
	if _, err := c.Servers[1].DialOption(nil); !errors.As(err, &e) || e.Path != "channel_creds[0]" {
		t.Errorf("%v", err)
	}
	var got ChannelCreds
	if _, err := c.Servers[1].DialOption(func(cc ChannelCreds) (credentials.TransportCredentials, error) {
		got = cc
		return insecure.NewCredentials(), nil
	}); err != nil || got.Type != CertificateProviderCreds || string(got.Config) != string(c.Servers[1].ChannelCreds[0].Config) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := c.Servers[1].DialOption(func(ChannelCreds) (credentials.TransportCredentials, error) {
		return nil, errors.New("no such plugin")
	}); !errors.As(err, &e) || e.Path != "channel_creds[0].config" || !strings.Contains(err.Error(), "no such plugin") {
		t.Errorf("%v", err)
	}
	for _, i := range []int{0, 2} {
		if _, err := c.Servers[i].DialOption(nil); err != nil {
			t.Errorf("server %d: %v", i, err)
		}
	}
}

// TestGRPCSkipsUnknownCredentials: a document for both may put ours first,
// also where nothing has told gRPC of them.
func TestGRPCSkipsUnknownCredentials(t *testing.T) {
	for creds, ok := range map[string]bool{
		`{"type": "certificate_provider", "config": {"plugin_name": "csr"}}, {"type": "insecure"}`: true,
		`{"type": "certificate_provider", "config": {"plugin_name": "csr"}}`:                       false,
	} {
		document := `{"node": {"id": "x"}, "server_listener_resource_name_template": "%s", "xds_servers": [{"server_uri": "a:1", "channel_creds": [` + creds + `]}]}`
		s, err := xds.NewGRPCServer(xds.BootstrapContentsForTesting([]byte(document)))
		if (err == nil) != ok {
			t.Errorf("%s: %v", creds, err)
		}
		if err == nil {
			s.Stop()
		}
	}
}
