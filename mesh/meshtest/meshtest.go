// Package meshtest runs a hermetic mesh inside a test, as net/http/httptest
// runs a server: services are handlers, policy is a string or a folder of YAML,
// and the test calls services through the library exactly as a program would.
//
//	w := meshtest.New(t, meshtest.Policy(yaml), meshtest.HTTP("reviews", "v1", handler))
//	resp, err := w.Client().Get("http://reviews/")
//
// Nothing is imitated: the policy is read and translated by the xDS server's
// own packages, and comes to the client over a real ADS stream on loopback.
// With MutualTLS there are certificates too, and rules of access can be tested.
package meshtest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// Option configures New.
type Option func(*World) error

// World is a mesh for one test: a control plane, services, and one client.
type World struct {
	t         testing.TB
	mesh      *mesh.Mesh
	server    *ads.Server
	bootstrap []byte
	options   []mesh.Option

	services  []service // to be started
	instances []instance
	folder    []*policy.File // of PolicyDir

	address string // the control plane's

	mu      sync.Mutex
	control *grpc.Server // nil while stopped
	last    *policy.Result

	authority *authority // nil without MutualTLS
	log       *slog.Logger
}

// service is one to be started when the control plane is up.
type service struct {
	name, version, protocol string
	start                   func(*World) (net.Addr, error)
}

// instance is one running service.
type instance struct {
	name, version, protocol string
	address                 *net.TCPAddr
}

// HTTP adds an instance of the service name, in the namespace default, that
// answers with the handler. Instances of one name are its endpoints; version
// is the workload's label "version", which a DestinationRule's subsets select
// by, and may be empty. The service has the port 80, so its URL is
// "http://name/".
//
// With MutualTLS the instance is a member of the mesh with a service account of
// the service's name: the policy of its inbound listener is in force.
func HTTP(name, version string, handler http.Handler) Option {
	return add(name, version, "http", func(w *World) (net.Addr, error) {
		if w.authority != nil {
			m, lis, err := w.listen(name)
			if err != nil {
				return nil, err
			}
			w.serve(func(ctx context.Context) error { return m.ServeListener(ctx, lis, handler) })
			return lis.Addr(), nil
		}
		server := httptest.NewUnstartedServer(handler)
		server.Config.Protocols = new(http.Protocols)
		server.Config.Protocols.SetHTTP1(true)
		server.Config.Protocols.SetUnencryptedHTTP2(true)
		server.Start()
		w.t.Cleanup(server.Close)
		return server.Listener.Addr(), nil
	})
}

// GRPC adds an instance of a gRPC service, as HTTP does; register registers
// its services. Its target is "mesh:///name:80", or "xds:///name:80" for gRPC's
// own xDS client, with the options that Mesh().DialOptions() gives.
func GRPC(name, version string, register func(grpc.ServiceRegistrar)) Option {
	return add(name, version, "grpc", func(w *World) (net.Addr, error) {
		var server *grpc.Server
		var lis net.Listener
		var err error
		if w.authority != nil {
			var m *mesh.Mesh
			if m, lis, err = w.listen(name); err == nil {
				server = grpc.NewServer(m.ServerOptions()...)
			}
		} else if lis, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			server = grpc.NewServer()
		}
		if err != nil {
			return nil, err
		}
		register(server)
		go func() { _ = server.Serve(lis) }()
		w.t.Cleanup(server.Stop)
		return lis.Addr(), nil
	})
}

// Dead adds an instance whose address refuses connections.
func Dead(name, version string) Option {
	return add(name, version, "http", func(*World) (net.Addr, error) {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		return lis.Addr(), lis.Close()
	})
}

func add(name, version, protocol string, start func(*World) (net.Addr, error)) Option {
	return func(w *World) error {
		w.services = append(w.services, service{name, version, protocol, start})
		return nil
	}
}

// Policy adds YAML documents, as the xDS server reads them from a file.
// Services and endpoints need none: those of HTTP, GRPC and Dead are declared.
// An invalid document fails the test.
func Policy(yaml string) Option {
	return func(w *World) error {
		w.folder = append(w.folder, policy.Parse("policy.yaml", []byte(yaml)))
		return nil
	}
}

// PolicyDir adds the documents of the folder's .yaml files and of the folders below it.
func PolicyDir(dir string) Option {
	return func(w *World) error {
		return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || (filepath.Ext(path) != ".yaml" && filepath.Ext(path) != ".yml") {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			w.folder = append(w.folder, policy.Parse(path, b))
			return nil
		})
	}
}

// MeshOptions adds options for mesh.New, of the client's mesh and, with MutualTLS,
// of every other in the world.
func MeshOptions(options ...mesh.Option) Option {
	return func(w *World) error {
		w.options = append(w.options, options...)
		return nil
	}
}

// Logger sets where the control plane, the authority and the meshes log. Default:
// the test's output, warnings and errors only.
func Logger(log *slog.Logger) Option {
	return func(w *World) error {
		w.log = log
		return nil
	}
}

// New starts the world. It ends with the test.
func New(t testing.TB, options ...Option) *World {
	t.Helper()
	w := &World{t: t}
	for _, option := range options {
		if err := option(w); err != nil {
			t.Fatalf("meshtest: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	if w.log == nil {
		w.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	w.server = ads.NewServer(ctx, w.log)
	if w.authority != nil {
		if err := w.authority.open(ctx, w); err != nil {
			t.Fatalf("meshtest: %v", err)
		}
	}
	w.address = "127.0.0.1:0"
	w.StartControlPlane()
	t.Cleanup(w.StopControlPlane)
	for _, s := range w.services {
		address, err := s.start(w)
		if err != nil {
			t.Fatalf("meshtest: %s: %v", s.name, err)
		}
		w.instances = append(w.instances, instance{s.name, s.version, s.protocol, address.(*net.TCPAddr)})
	}
	w.apply(w.folder)

	var err error
	if w.bootstrap, err = w.document(clientName); err != nil {
		t.Fatalf("meshtest: %v", err)
	}
	w.mesh = w.join(w.bootstrap)
	return w
}

// clientName is the workload whose mesh World.Mesh is.
const clientName = "test"

// join makes a mesh that ends with the test.
func (w *World) join(document []byte) *mesh.Mesh {
	w.t.Helper()
	m, err := mesh.New(context.Background(), append([]mesh.Option{mesh.WithBootstrap(document), mesh.WithLogger(w.log), mesh.WithPolicyWait(10 * time.Second)}, w.options...)...)
	if err != nil {
		w.t.Fatalf("meshtest: %v", err)
	}
	w.t.Cleanup(func() { m.Close() })
	if w.authority != nil {
		if err := w.authority.admitted(m, document); err != nil {
			w.t.Fatalf("meshtest: %v", err)
		}
	}
	return m
}

// serve runs a server until the test ends.
func (w *World) serve(run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx) // an error is that of a test that ended with requests in flight
	}()
	w.t.Cleanup(func() {
		stop()
		<-done
	})
}

// document is the bootstrap of a workload in the namespace default.
func (w *World) document(name string) ([]byte, error) {
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": "default", "SERVICE_ACCOUNT": name, "INSTANCE_IPS": "127.0.0.1", "LABELS": map[string]any{"app": name},
	})
	if err != nil {
		return nil, err
	}
	c := &bootstrap.Config{
		Servers:          []bootstrap.Server{{URI: w.address, ChannelCreds: []bootstrap.ChannelCreds{{Type: bootstrap.Insecure}}}},
		Node:             &corev3.Node{Id: "sidecar~127.0.0.1~" + name + ".default~default.svc.cluster.local", Metadata: metadata},
		ListenerTemplate: "%s",
		InboundTemplate:  "xds.istio.io/grpc/lds/inbound/%s",
	}
	if w.authority != nil {
		if err := w.authority.admit(w, name, c); err != nil {
			return nil, err
		}
	}
	return bootstrap.Document(c)
}

// Mesh returns the client's mesh, for gRPC's options, a server or the admin page.
func (w *World) Mesh() *mesh.Mesh { return w.mesh }

// Client returns an HTTP client in the mesh.
func (w *World) Client() *http.Client { return w.mesh.Client() }

// ControlPlane returns the xDS server's side of the world: which clients it has,
// and what each has accepted, refused and reported.
func (w *World) ControlPlane() *ads.Server { return w.server }

// Bootstrap returns the xDS bootstrap document, for another mesh.New.
func (w *World) Bootstrap() []byte { return w.bootstrap }

// StopControlPlane ends the xDS server at once, as a crash does. What clients
// have stays in force.
func (w *World) StopControlPlane() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.control != nil {
		w.control.Stop()
		w.control = nil
	}
}

// StartControlPlane starts the xDS server again, at its old address and with
// the policy that was set last. With MutualTLS every member gets a new join token,
// for the case that its certificate has expired in the meantime.
func (w *World) StartControlPlane() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.control != nil {
		return
	}
	lis, err := net.Listen("tcp", w.address)
	if err != nil {
		w.t.Fatalf("meshtest: %v", err)
	}
	w.address = lis.Addr().String()
	var control *grpc.Server
	if w.authority != nil {
		if err := w.authority.readmit(); err != nil {
			w.t.Fatalf("meshtest: %v", err)
		}
		control = w.authority.server(w.server)
	} else {
		control = grpc.NewServer(grpc.Creds(insecure.NewCredentials()))
		w.server.Register(control)
	}
	go func() { _ = control.Serve(lis) }()
	w.control = control
}

// SetPolicy replaces what Policy and PolicyDir gave. Clients have it within
// milliseconds, but not before SetPolicy returns: wait for the effect (see
// Eventually). An invalid document fails the test.
func (w *World) SetPolicy(yaml string) {
	w.t.Helper()
	w.apply([]*policy.File{policy.Parse("policy.yaml", []byte(yaml))})
}

// Eventually fails the test unless the condition holds within 30 seconds, which
// is much even for a machine that runs many tests at once.
func (w *World) Eventually(what string, condition func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("meshtest: not within 30 seconds: %s", what)
		}
	}
}

// apply puts the files and the declared services in force.
func (w *World) apply(files []*policy.File) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	result := policy.Build(append([]*policy.File{policy.Parse("services.yaml", []byte(w.declarations()))}, files...), w.last)
	if result.Failed() {
		for _, p := range result.Problems {
			w.t.Errorf("meshtest: %v", p)
		}
		w.t.FailNow()
	}
	w.last = result
	w.server.SetPolicy(result.Set)
}

// declarations says what runs: a Service for each name, a WorkloadEntry for each instance.
func (w *World) declarations() string {
	var b strings.Builder
	seen := map[string]bool{}
	for i, in := range w.instances {
		if !seen[in.name] {
			seen[in.name] = true
			fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: %[1]q, namespace: default}
spec:
  selector: {app: %[1]q}
  ports: [{name: %[2]q, port: 80}]
`, in.name, in.protocol)
		}
		labels, account := "", ""
		if in.version != "" {
			labels = fmt.Sprintf(", version: %q", in.version)
		}
		if w.authority != nil {
			labels += ", security.istio.io/tlsMode: istio"
			account = fmt.Sprintf("\n  serviceAccount: %q", in.name)
		}
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: "%[1]s-%[2]d", namespace: default}
spec:
  address: %[3]s
  ports: {%[4]s: %[5]d}
  labels: {app: %[1]q%[6]s}%[7]s
`, in.name, i, in.address.IP, in.protocol, in.address.Port, labels, account)
	}
	if b.Len() == 0 {
		return "# no services\n"
	}
	return b.String()
}
