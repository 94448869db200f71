package meshgrpc

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/hostile"
	"github.com/sinew-mesh/sinew/internal/leak"
)

// TestHostileServers: gRPC's xDS client sends nothing to a server whose certificate is bad.
func TestHostileServers(t *testing.T) {
	leak.Check(t)
	m := hostile.New(t, time.Now())
	td, err := identity.ParseTrustDomain("td.example")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(m.Victim.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: m.Victim.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key},
		"ca.crt": {Type: "CERTIFICATE", Bytes: m.Bundles[td].Roots()[0].Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	providers := fmt.Sprintf(`"certificate_providers":{"default":{"plugin_name":"file_watcher","config":{"certificate_file":%q,"private_key_file":%q,"ca_certificate_file":%q}}}`,
		filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt"))
	for i := range m.Cases {
		c := &m.Cases[i]
		t.Run(c.Name, func(t *testing.T) {
			b := &backend{name: "b"}
			s := grpc.NewServer(grpc.Creds(credentials.NewTLS(c.Attacker())))
			pb.RegisterTestServiceServer(s, b)
			b.address = serve(t, s)
			cp := newControlPlane(t)
			resources := join(listener("svc:80", 0), routes("svc:80", to("c")), cluster("c", b.address))
			for _, r := range resources {
				if cl, ok := r.(*clusterv3.Cluster); ok {
					cl.TransportSocket = upstreamTLS()
				}
			}
			cp.set(t, resources...)
			bootstrap := strings.TrimSuffix(string(cp.bootstrap()), "}") + "," + providers + "}"
			client, _ := dial(t, "xds:///svc:80", DialOptions(ClientOptions{Bootstrap: []byte(bootstrap)})...)
			err := kinds[0].call(testContext(t), client)
			switch {
			case c.Good() && err != nil:
				t.Error(err)
			case !c.Good() && (status.Code(err) != codes.Unavailable || b.calls.Load() != 0):
				t.Errorf("%v, %d handlers ran; want the rule %q", err, b.calls.Load(), c.Rule)
			}
		})
	}
}
