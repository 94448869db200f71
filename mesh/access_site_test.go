package mesh_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	rpc "google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
	sources "github.com/sinew-mesh/sinew/xdsserver/source"
)

const (
	siteDomain   = "cluster.local"
	siteServerID = "/ns/sinew-system/sa/xdsserver"
	patience     = 15 * time.Second // bounds every waiting for an effect
)

// site is a mesh whose control plane reads a real folder and can be restarted,
// and whose members all have certificates.
type site struct {
	t         *testing.T
	dir       string // of the policy
	private   string // of the authority, the stored access policy and tokens
	log       *slog.Logger
	authority *ca.CA
	own       *source.Static
	address   string
	joined    int

	server  *ads.Server
	results chan *policy.Result
	stop    func()
}

// newSite starts the control plane with these policy files. It leaves nothing
// behind (leak.Check is for the test to call).
func newSite(t *testing.T, files map[string]string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), private: t.TempDir(), address: "127.0.0.1:0"}
	s.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	for name, content := range files {
		s.write(name, content)
	}
	var err error
	if s.authority, err = ca.Open(context.Background(), filepath.Join(s.private, "ca"), ca.Options{TrustDomain: siteDomain}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.authority.Close() })
	if s.own, err = source.NewStatic(nil); err != nil {
		t.Fatal(err)
	}
	td, err := identity.ParseTrustDomain(siteDomain)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := identity.NewBundle(s.authority.Bundle().Roots, nil)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := s.authority.ServerCertificate(siteServerID, []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.own.Set(&source.Material{Certificate: certificate, Bundles: identity.BundleSet{td: bundle}}); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

// start runs a control plane that knows nothing but the folder and what the one before has stored.
func (s *site) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	server, results := ads.NewServer(ctx, s.log), make(chan *policy.Result, 1000)
	watched, first := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		watched <- sources.Directory(ctx, s.dir, sources.Options{StateFile: filepath.Join(s.private, "access.state"), Log: s.log}, func(r *policy.Result) {
			server.SetPolicy(r.Set)
			results <- r
			select {
			case first <- struct{}{}:
			default:
			}
		})
	}()
	select {
	case <-first:
	case err := <-watched:
		cancel()
		s.t.Fatal(err)
	}
	lis, err := net.Listen("tcp", s.address)
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	s.address = lis.Addr().String()
	control := grpc.NewServer(grpc.Creds(server.Credentials(s.own)))
	server.RegisterVerified(control, s.own)
	ca.NewService(s.authority).Register(control)
	go func() { _ = control.Serve(lis) }()
	s.server, s.results = server, results
	s.stop = sync.OnceFunc(func() {
		control.Stop()
		cancel()
		if err := <-watched; err != nil {
			s.t.Error(err)
		}
	})
}

// restart ends the control plane as a crash does, and starts another.
func (s *site) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

// write replaces a file of the policy; "" removes it.
func (s *site) write(name, content string) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if content == "" {
		if err := os.Remove(path); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	tmp := filepath.Join(s.dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		s.t.Fatal(err)
	}
}

// reads waits until the control plane has policy for which the condition holds,
// as it stands after a change.
func (s *site) reads(what string, condition func(*policy.Result) bool) {
	s.t.Helper()
	timeout := time.After(patience)
	var last *policy.Result
	for {
		select {
		case last = <-s.results:
			if condition(last) {
				return
			}
		case <-timeout:
			if last != nil {
				s.t.Fatalf("the control plane has not read %s; problems: %v", what, last.Problems)
			}
			s.t.Fatalf("the control plane has not read %s, nor anything", what)
		}
	}
}

type policyResult = policy.Result

// bad reports whether there is an error about the kind.
func bad(kind string) func(*policy.Result) bool {
	return func(r *policy.Result) bool {
		for _, p := range r.Problems {
			if p.Severity == policy.Error && strings.Contains(p.String(), kind) {
				return true
			}
		}
		return false
	}
}

func good(r *policy.Result) bool { return !r.Failed() }

// bootstrap makes the document of a workload, with a token for its first certificate.
func (s *site) bootstrap(namespace, account string) []byte {
	s.t.Helper()
	id := "spiffe://" + siteDomain + "/ns/" + namespace + "/sa/" + account
	token, err := s.authority.Tokens().Create(id, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	s.joined++
	file := filepath.Join(s.private, fmt.Sprintf("%s-%d.token", account, s.joined))
	if err := os.WriteFile(file, []byte(token.Reveal()), 0o600); err != nil {
		s.t.Fatal(err)
	}
	server := "spiffe://" + siteDomain + siteServerID
	provider := map[string]any{"plugin_name": source.CAPlugin, "config": map[string]string{
		"address": s.address, "ca_certificates": string(s.authority.Bundle().PEM()), "server_id": server, "join_token_file": file, "id": id,
	}}
	channel := map[string]any{"server_id": server}
	for k, v := range provider {
		channel[k] = v
	}
	document, err := json.Marshal(map[string]any{
		"xds_servers": []any{map[string]any{
			"server_uri":      s.address,
			"channel_creds":   []any{map[string]any{"type": "certificate_provider", "config": channel}},
			"server_features": []string{"xds_v3"},
		}},
		"node": map[string]any{
			"id": "sidecar~127.0.0.1~" + account + "." + namespace + "~" + namespace + ".svc.cluster.local",
			"metadata": map[string]any{
				"NAMESPACE": namespace, "SERVICE_ACCOUNT": account, "INSTANCE_IPS": "127.0.0.1", "LABELS": map[string]string{"app": account},
			},
		},
		"certificate_providers":                          map[string]any{"default": provider},
		"server_listener_resource_name_template":         "xds.istio.io/grpc/lds/inbound/%s",
		"client_default_listener_resource_name_template": "%s",
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return document
}

// join makes a member of the mesh.
func (s *site) join(account string, options ...mesh.Option) *mesh.Mesh {
	return s.joinIn("default", account, options...)
}

func (s *site) joinIn(namespace, account string, options ...mesh.Option) *mesh.Mesh {
	s.t.Helper()
	m, err := mesh.New(context.Background(), append([]mesh.Option{
		mesh.WithBootstrap(s.bootstrap(namespace, account)), mesh.WithLogger(s.log), mesh.WithPolicyWait(patience), mesh.WithDrainTimeout(time.Second),
	}, options...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { m.Close() })
	return m
}

// serveHTTP serves the handler as the workload, on a port of its own.
func (s *site) serveHTTP(m *mesh.Mesh, handler http.Handler) netip.AddrPort {
	s.t.Helper()
	lis, err := m.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.ServeListener(ctx, lis, handler) // an error is that of a test with requests in flight
	}()
	s.t.Cleanup(func() { stop(); <-done })
	return lis.Addr().(*net.TCPAddr).AddrPort()
}

// serveGRPC serves the health service as the workload.
func (s *site) serveGRPC(m *mesh.Mesh) netip.AddrPort {
	s.t.Helper()
	lis, err := m.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	server := grpc.NewServer(m.ServerOptions()...)
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(lis) }()
	s.t.Cleanup(server.Stop)
	return lis.Addr().(*net.TCPAddr).AddrPort()
}

// instance is what policy says of a running workload.
type instance struct {
	app, protocol string
	at            netip.AddrPort
	label         bool // security.istio.io/tlsMode: istio
}

// declare writes services.yaml.
func (s *site) declare(instances ...instance) {
	s.t.Helper()
	s.write("services.yaml", declaration(instances...))
}

func declaration(instances ...instance) string {
	var b strings.Builder
	seen := map[string]bool{}
	for i, in := range instances {
		if !seen[in.app] {
			seen[in.app] = true
			fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %[1]s, namespace: default}\nspec: {selector: {app: %[1]s}, ports: [{name: %[2]s, port: 80}]}\n", in.app, in.protocol)
		}
		label := ""
		if in.label {
			label = ", security.istio.io/tlsMode: istio"
		}
		fmt.Fprintf(&b, "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %[1]s-%[2]d, namespace: default}\nspec: {address: %[3]s, ports: {%[4]s: %[5]d}, serviceAccount: %[1]s, labels: {app: %[1]s%[6]s}}\n",
			in.app, i, in.at.Addr(), in.protocol, in.at.Port(), label)
	}
	return b.String()
}

// peerName answers with the caller's identity, "plaintext" where there is none.
var peerName = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if peer, ok := identity.PeerFromContext(r.Context()); ok && peer.Authenticated() {
		_, _ = io.WriteString(w, peer.ID.String())
		return
	}
	_, _ = io.WriteString(w, "plaintext")
})

// callerID is what peerName answers to a member of the namespace default.
func callerID(account string) string { return "spiffe://" + siteDomain + "/ns/default/sa/" + account }

// outsider is a client that knows nothing of the mesh.
func outsider(t *testing.T) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// ask returns the answer to a GET: its status, its body, or the error's text.
func ask(c *http.Client, url string) (status int, body string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err.Error()
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// dialHealth opens a channel to a gRPC service.
func dialHealth(t *testing.T, target string, options ...grpc.DialOption) (healthpb.HealthClient, *grpc.ClientConn) {
	t.Helper()
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return healthpb.NewHealthClient(conn), conn
}

// check makes one call.
func check(c healthpb.HealthClient, options ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := c.Check(ctx, &healthpb.HealthCheckRequest{}, options...)
	return err
}

func checkCode(c healthpb.HealthClient) codes.Code { return rpc.Code(check(c)) }

// settles waits until the condition holds ten times on end: with several
// instances some take a change before others.
func settles(t *testing.T, what string, condition func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for held := 0; held < 10; {
		ok, got := condition()
		if ok {
			held++
			continue
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s; the last answer: %s", patience, what, got)
		}
		held = 0
		time.Sleep(2 * time.Millisecond)
	}
}

// answers is a condition of settles.
func answers(c *http.Client, url string, status int, body string) func() (bool, string) {
	return func() (bool, string) {
		code, got := ask(c, url)
		return code == status && strings.Contains(got, body), fmt.Sprintf("%d %s", code, got)
	}
}

// codeIs is one for gRPC.
func codeIs(c healthpb.HealthClient, want codes.Code) func() (bool, string) {
	return func() (bool, string) {
		err := check(c)
		return rpc.Code(err) == want, fmt.Sprint(err)
	}
}
