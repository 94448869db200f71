package tlsconfig

//lint:file-ignore SA1019 gRPC asks credentials for a server name until it goes.

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	xdsbootstrap "google.golang.org/grpc/xds/bootstrap"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// What registers the builder with grpc-go: an assignment keeps the two in step.
var _ xdsbootstrap.ChannelCredentials = ChannelBuilder{}

// controlPlane is a server that asks for the mesh's certificates, and counts
// who came.
func controlPlane(t *testing.T, src source.Source) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(Server(src, ServerOptions{Protocols: []string{"h2"}}))))
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// call makes one call over a channel with the credentials.
func call(t *testing.T, address string, o grpc.DialOption) error {
	t.Helper()
	conn, err := grpc.NewClient(address, o)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

func TestChannelCredentials(t *testing.T) {
	leak.Check(t)
	root, other := newRoot(t, "root"), newRoot(t, "other")
	named := leafTemplate(t, serverID)
	named.DNSNames, named.IPAddresses = []string{"xds.example"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	address := controlPlane(t, holder(t, pair(sign(t, named, root)), root))
	client := holder(t, pair(sign(t, leafTemplate(t, clientID), root)), root)
	for name, c := range map[string]struct {
		src        source.Source
		serverID   identity.ID
		serverName string
		refused    string
	}{
		"by ID":                        {client, id(t, serverID), "", ""},
		"by ID, whatever the name":     {client, id(t, serverID), "else.example", ""},
		"by name":                      {client, identity.ID{}, "xds.example", ""},
		"by the address of the target": {client, identity.ID{}, "", ""},
		"another ID":                   {client, id(t, clientID), "", "peer-id"},
		"another name":                 {client, identity.ID{}, "else.example", "peer-san"},
		"another root":                 {holder(t, pair(sign(t, leafTemplate(t, clientID), root)), other), id(t, serverID), "", "rule chain"},
		"another root by name":         {holder(t, pair(sign(t, leafTemplate(t, clientID), root)), other), identity.ID{}, "", "rule chain"},
		"no certificate":               {holder(t, nil, root), id(t, serverID), "", "no certificate"},
		"a certificate of nobody":      {holder(t, pair(sign(t, leafTemplate(t, clientID), other)), root), id(t, serverID), "", "Unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			creds := ChannelCredentials(c.src, c.serverID, c.serverName)
			err := call(t, address, grpc.WithTransportCredentials(creds.Clone()))
			if c.refused == "" && err != nil || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
				t.Errorf("%v, want %q", err, c.refused)
			}
		})
	}
	creds := ChannelCredentials(client, identity.ID{}, "")
	if err := creds.OverrideServerName("else.example"); err != nil || creds.Info().ServerName != "else.example" {
		t.Error(err)
	}
	if err := call(t, address, grpc.WithTransportCredentials(creds)); err == nil || !strings.Contains(err.Error(), "peer-san") {
		t.Error(err)
	}
	if _, _, err := creds.ServerHandshake(nil); err == nil {
		t.Error("channel credentials serve")
	}
}

// TestChannelBuilder: the credentials of a bootstrap document, over the xDS
// client's way and over grpc-go's, with one source.
func TestChannelBuilder(t *testing.T) {
	leak.Check(t)
	root := newRoot(t, "root")
	address := controlPlane(t, holder(t, pair(sign(t, leafTemplate(t, serverID), root)), root))
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	leaf := sign(t, leafTemplate(t, clientID), root)
	key, err := x509.MarshalPKCS8PrivateKey(leaf.key)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"plugin_name": "file_watcher", "server_id": %q, "config": {"certificate_file": %q, "private_key_file": %q, "ca_certificate_file": %q}}`,
		serverID, write("cert.pem", "CERTIFICATE", leaf.cert.Raw), write("key.pem", "PRIVATE KEY", key), write("ca.pem", "CERTIFICATE", root.cert.Raw))
	c, err := bootstrap.Parse([]byte(`{"xds_servers": [{"server_uri": "` + address + `", "channel_creds": [{"type": "certificate_provider", "config": ` + config + `}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var src source.Source
	option, err := c.Servers[0].DialOption(func(cc bootstrap.ChannelCreds) (creds credentials.TransportCredentials, err error) {
		creds, src, err = BuildChannelCredentials(cc.Config, nil)
		return creds, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := call(t, address, option); err != nil {
		t.Error(err)
	}
	b := ChannelBuilder{}
	if b.Name() != bootstrap.CertificateProviderCreds {
		t.Error(b.Name())
	}
	bundle, release, err := b.Build(json.RawMessage(config))
	if err != nil {
		t.Fatal(err)
	}
	if same, err := bundle.NewWithMode("any"); err != nil || same.PerRPCCredentials() != nil || same.TransportCredentials() == nil {
		t.Errorf("%v, %v", same, err)
	}
	if err := call(t, address, grpc.WithCredentialsBundle(bundle)); err != nil {
		t.Error(err)
	}
	release()
	if err := src.Close(); err != nil {
		t.Error(err)
	}
	for config, want := range map[string]string{
		``: "missing", `{}`: "plugin_name", `{"plugin_name": "none"}`: "not known", `{"plugin_name": "csr", "config": {}}`: "address",
	} {
		if _, _, err := b.Build(json.RawMessage(config)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
	if err := call(t, address, grpc.WithTransportCredentials(insecure.NewCredentials())); err == nil {
		t.Error("the server speaks plain text, so that nothing was proved")
	}
}

// TestChannelWaitsForTheFirstCertificate: a channel that connects before the
// process has its first certificate does not fail its calls.
func TestChannelWaitsForTheFirstCertificate(t *testing.T) {
	leak.Check(t)
	root := newRoot(t, "root")
	address := controlPlane(t, holder(t, pair(sign(t, leafTemplate(t, serverID), root)), root))
	empty, err := source.NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	first := &firstAsked{Source: empty, asked: make(chan struct{})}
	m := material(t, pair(sign(t, leafTemplate(t, clientID), root)), root)
	go func() {
		<-first.asked
		_ = empty.Set(m) // refuses only what holder would have
	}()
	if err := call(t, address, grpc.WithTransportCredentials(ChannelCredentials(first, id(t, serverID), ""))); err != nil {
		t.Error(err)
	}
}

// firstAsked is a source that says when it was first asked for what it has.
type firstAsked struct {
	source.Source
	asked chan struct{}
	once  sync.Once
}

func (f *firstAsked) Current() (*source.Material, error) {
	m, err := f.Source.Current()
	f.once.Do(func() { close(f.asked) })
	return m, err
}
