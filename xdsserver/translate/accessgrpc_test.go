package translate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/credentials/tls/certprovider/pemfile" // "file_watcher" in a bootstrap
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// patience is for what takes no time on an idle machine.
const patience = 20 * time.Second

// plane is the least control plane: it translates what a gRPC client asks for and
// never sends anything again.
type plane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	view *View
	addr string

	mu      sync.Mutex
	refused []string // what clients said of resources that they refused
	failed  []string // what could not be translated
}

func (p *plane) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	asked := map[string]string{}
	var c *Client
	for nonce := 1; ; nonce++ {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if c == nil {
			if c, err = ClientOf(req.GetNode()); err != nil {
				return err
			}
		}
		// A client that is closed while a response is under way refuses that for its own sake.
		if e := req.GetErrorDetail(); e != nil && e.GetMessage() != "xdsChannel is closed" {
			p.mu.Lock()
			p.refused = append(p.refused, e.GetMessage())
			p.mu.Unlock()
		}
		names := fmt.Sprint(req.GetResourceNames())
		if asked[req.GetTypeUrl()] == names {
			continue // an acknowledgement
		}
		asked[req.GetTypeUrl()] = names
		resp := &discoveryv3.DiscoveryResponse{TypeUrl: req.GetTypeUrl(), VersionInfo: names, Nonce: fmt.Sprint(nonce)}
		for _, name := range req.GetResourceNames() {
			r, err := p.view.Resource(req.GetTypeUrl(), name, c)
			if err != nil {
				p.mu.Lock()
				p.failed = append(p.failed, err.Error())
				p.mu.Unlock()
			}
			if r != nil {
				resp.Resources = append(resp.Resources, &anypb.Any{TypeUrl: r.Body.TypeUrl, Value: r.Body.Value})
			}
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func startPlane(t *testing.T) *plane {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{addr: lis.Addr().String()}
	s := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, p)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.refused)+len(p.failed) > 0 {
			t.Errorf("grpc-go refuses %q; not translated: %q", p.refused, p.failed)
		}
	})
	return p
}

// authority signs the certificates of workloads.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, "root", &x509.Certificate{
		Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *authority) sign(t *testing.T, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// workload writes the certificate of a service account of namespace default.
func (a *authority) workload(t *testing.T, account string) {
	t.Helper()
	id := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/default/sa/" + account}
	a.sign(t, account, &x509.Certificate{
		URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
}

func (a *authority) bootstrap(p *plane, account string) []byte {
	return fmt.Appendf(nil, `{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "sidecar~127.0.0.1~%s.default~default.svc.cluster.local", "metadata": {"SERVICE_ACCOUNT": %q}},
		"server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%%s",
		"certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {"certificate_file": %q, "private_key_file": %q, "ca_certificate_file": %q}}}
	}`, p.addr, account, account, filepath.Join(a.dir, account+".pem"), filepath.Join(a.dir, account+".key"), filepath.Join(a.dir, "root.pem"))
}

// serveGRPC serves as grpc-go's own xDS server.
func serveGRPC(t *testing.T, p *plane, a *authority, account string, lis net.Listener) {
	t.Helper()
	creds, err := xdscreds.NewServerCredentials(xdscreds.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	serving := make(chan struct{})
	var once sync.Once
	s, err := xds.NewGRPCServer(grpc.Creds(creds), xds.BootstrapContentsForTesting(a.bootstrap(p, account)),
		xds.ServingModeCallback(func(_ net.Addr, mode xds.ServingModeChangeArgs) {
			if mode.Mode == connectivity.ServingModeServing {
				once.Do(func() { close(serving) })
			}
		}))
	if err != nil {
		t.Fatal(err)
	}
	healthpb.RegisterHealthServer(s, health.NewServer())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(lis) }()
	t.Cleanup(func() { s.Stop(); <-done })
	select {
	case <-serving:
	case <-time.After(patience):
		t.Fatal("the server does not serve")
	}
}

// callGRPC calls as grpc-go's own xDS client, and returns the code of the answer.
func callGRPC(t *testing.T, p *plane, a *authority, account, target string, header ...string) codes.Code {
	t.Helper()
	resolver, err := xds.NewXDSResolverWithConfigForTesting(a.bootstrap(p, account))
	if err != nil {
		t.Fatal(err)
	}
	creds, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), header...), patience)
	defer cancel()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return status.Code(err)
}

// TestGRPCEnforces drives grpc-go's own xDS server and client with what they are
// given of mutual TLS and rules of access, by real connections.
func TestGRPCEnforces(t *testing.T) {
	leak.Check(t)
	a := newAuthority(t)
	for _, account := range []string{"web", "friend", "foe", "imposter"} {
		a.workload(t, account)
	}
	const strict = "{mtls: {mode: STRICT}}"
	type call struct {
		who    string
		header []string
		want   codes.Code
	}
	for _, test := range []struct {
		name   string
		peers  string
		authz  []string
		label  bool // the server's workload takes mutual TLS
		server string
		calls  []call
	}{
		{"mutual TLS", strict, nil, true, "web", []call{{"friend", nil, codes.OK}, {"foe", nil, codes.OK}}},
		{"PERMISSIVE, labelled", "{}", nil, true, "web", []call{{"friend", nil, codes.OK}}},
		{"plaintext", "{}", nil, false, "web", []call{{"friend", nil, codes.OK}}},
		{"plaintext to STRICT", strict, nil, false, "web", []call{{"friend", nil, codes.Unavailable}}},
		{"another server", strict, nil, true, "imposter", []call{{"friend", nil, codes.Unavailable}}},
		{"allow", strict, []string{"{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/friend]}}], to: [{operation: {methods: [POST], paths: [/grpc.health.v1.Health/*]}}]}]}"}, true, "web",
			[]call{{"friend", nil, codes.OK}, {"foe", nil, codes.PermissionDenied}}},
		{"allow accounts and namespaces", strict, []string{"{rules: [{from: [{source: {serviceAccounts: [friend], trustDomains: [cluster.local]}}, {source: {namespaces: [shop]}}]}]}"}, true, "web",
			[]call{{"friend", nil, codes.OK}, {"foe", nil, codes.PermissionDenied}}},
		{"deny stands above allow", strict, []string{"{rules: [{}]}", `{action: DENY, rules: [{from: [{source: {principals: ["*/sa/foe"]}}]}]}`}, true, "web",
			[]call{{"friend", nil, codes.OK}, {"foe", nil, codes.PermissionDenied}}},
		{"allow nothing", strict, []string{"{}"}, true, "web", []call{{"friend", nil, codes.PermissionDenied}}},
		{"no identity on plaintext", "{}", []string{"{rules: [{from: [{source: {principals: ['*']}}]}]}"}, false, "web", []call{{"friend", nil, codes.PermissionDenied}}},
		{"a header that is sent twice", "{}", []string{`{action: DENY, rules: [{when: [{key: "request.headers[x-role]", values: [admin]}]}]}`}, false, "web",
			[]call{{"friend", []string{"x-role", "user"}, codes.OK}, {"friend", []string{"x-role", "admin"}, codes.PermissionDenied},
				{"friend", []string{"x-role", "admin", "x-role", "user"}, codes.PermissionDenied}, {"friend", []string{"x-role", "user", "x-role", "admin"}, codes.PermissionDenied}}},
		{"a header that is sent twice, allowed", "{}", []string{`{rules: [{when: [{key: "request.headers[x-role]", values: ["adm*"]}]}]}`}, false, "web",
			[]call{{"friend", []string{"x-role", "admin"}, codes.OK}, {"friend", []string{"x-role", "admin", "x-role", "evil"}, codes.PermissionDenied}, {"friend", nil, codes.PermissionDenied}}},
		{"a host with its port", "{}", []string{`{action: DENY, rules: [{to: [{operation: {hosts: [WEB]}}]}]}`}, false, "web", []call{{"friend", nil, codes.PermissionDenied}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			port := uint32(lis.Addr().(*net.TCPAddr).Port)
			w := workload("default", "web", "v1", "127.0.0.1")
			w.ServiceAccount = "web"
			w.Ports = map[string]uint32{"http": port}
			if test.label {
				w.Labels[policy.TLSModeLabel] = "istio"
			}
			set := &policy.Set{
				Services:            []*policy.Service{service("default", "web", policy.Port{Name: "http", Number: 80, Target: port, Protocol: "GRPC"})},
				Workloads:           []*policy.Workload{w},
				PeerAuthentications: []*policy.PeerAuthentication{peerAuthentication(t, "default", "x", test.peers)},
			}
			for i, text := range test.authz {
				set.AuthorizationPolicies = append(set.AuthorizationPolicies, authorizationPolicy(t, "default", fmt.Sprint("p", i), text))
			}
			p := startPlane(t)
			p.view = NewView(set)
			serveGRPC(t, p, a, test.server, lis)
			for _, c := range test.calls {
				if got := callGRPC(t, p, a, c.who, "web:80", c.header...); got != c.want {
					t.Errorf("%s %v: %v, want %v", c.who, c.header, got, c.want)
				}
			}
		})
	}
}
