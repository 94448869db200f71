package meshgrpc

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	metricsdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	estats "google.golang.org/grpc/experimental/stats"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/stats/opentelemetry"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// failingCredentials refuse every handshake.
type failingCredentials struct {
	credentials.TransportCredentials
	used atomic.Int64
}

func (f *failingCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	f.used.Add(1)
	return nil, nil, errors.New("refused")
}

func (f *failingCredentials) Clone() credentials.TransportCredentials { return f }

func TestCredentials(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", nil)
	fail := &failingCredentials{TransportCredentials: insecure.NewCredentials()}
	// As a fallback.
	c, _ := dial(t, b.address, DialOptions(ClientOptions{Credentials: fail})...)
	wantCode(t, kinds[0].call(testContext(t), c), codes.Unavailable)
	if fail.used.Load() == 0 {
		t.Error("the fallback was not used")
	}
	// As the caller's own option, which comes later.
	c, _ = dial(t, b.address, append(DialOptions(ClientOptions{Credentials: fail}), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if got := unary(t, testContext(t), c); got != "b" {
		t.Error(got)
	}
}

func TestUnusableBootstrap(t *testing.T) {
	leak.Check(t)
	for _, document := range []string{"{", "{}", `{"xds_servers":[]}`} {
		c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: []byte(document)})...)
		err := kinds[0].call(testContext(t), c)
		wantCode(t, err, codes.Unavailable)
		if !strings.Contains(err.Error(), "xds") {
			t.Errorf("%q: %v does not say what is wrong", document, err)
		}
	}
	c, _ := dial(t, "xds:///"+host, grpc.WithResolvers(brokenResolver{errors.New("reason")}), grpc.WithTransportCredentials(insecure.NewCredentials()))
	err := kinds[0].call(testContext(t), c)
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), "reason") {
		t.Error(err)
	}
}

// The order in which a call passes them: those of the options, then the caller's own.
func TestInterceptorOrder(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", nil)
	var order []string
	named := func(name string) grpc.UnaryClientInterceptor {
		return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			order = append(order, name)
			return invoker(ctx, method, req, reply, cc, opts...)
		}
	}
	streams := 0
	h := &countingHandler{}
	c, _ := dial(t, b.address, append(DialOptions(ClientOptions{
		StatsHandlers:     []stats.Handler{h},
		UnaryInterceptors: []grpc.UnaryClientInterceptor{named("1"), named("2")},
		StreamInterceptors: []grpc.StreamClientInterceptor{func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			streams++
			return streamer(ctx, desc, cc, method, opts...)
		}},
		Default: &DefaultPolicy{},
	}), grpc.WithChainUnaryInterceptor(named("3")), grpc.WithUnaryInterceptor(named("0")))...)
	for _, k := range kinds {
		if err := k.call(testContext(t), c); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(order, ""); got != "0123" {
		t.Errorf("order %s", got)
	}
	if streams != 3 || h.begun.Load() != 4 {
		t.Errorf("%d streams, %d attempts", streams, h.begun.Load())
	}
}

type countingHandler struct{ begun atomic.Int64 }

func (*countingHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (h *countingHandler) HandleRPC(_ context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.Begin); ok {
		h.begun.Add(1)
	}
}
func (*countingHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}
func (*countingHandler) HandleConn(context.Context, stats.ConnStats) {}

// gRPC is silent about a metric that it does not know.
func TestMetricNames(t *testing.T) {
	defaults := opentelemetry.DefaultMetrics().Metrics()
	n := 0
	for name := range Metrics().Metrics() {
		if defaults[name] {
			continue
		}
		n++
		if estats.DescriptorForMetric(name) == nil {
			t.Errorf("%s: no such metric", name)
		}
	}
	if n == 0 {
		t.Error("none but the defaults")
	}
}

func TestMetrics(t *testing.T) {
	leak.Check(t)
	reader := metricsdk.NewManualReader()
	provider := metricsdk.NewMeterProvider(metricsdk.WithReader(reader))
	b := newBackend(t, "b", nil, ServerOptions(ServerConfig{Inbound: inbound.New(inbound.Options{}), MeterProvider: provider})...)
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, to("c")), cluster("c", b.address))...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap(), MeterProvider: provider})...)
	for _, k := range kinds {
		if err := k.call(testContext(t), c); err != nil {
			t.Fatal(err)
		}
	}
	var got metricdata.ResourceMetrics
	if err := reader.Collect(testContext(t), &got); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, scope := range got.ScopeMetrics {
		for _, m := range scope.Metrics {
			names[m.Name] = true
		}
	}
	for _, want := range []string{
		"grpc.client.call.duration", "grpc.client.attempt.started", "grpc.server.call.started",
		"grpc.xds_client.connected", "grpc.xds_client.resources", "grpc.xds_client.resource_updates_valid",
		"grpc.subchannel.open_connections", "grpc.subchannel.connection_attempts_succeeded",
	} {
		if !names[want] {
			t.Errorf("%s is missing in %v", want, names)
		}
	}
}

func TestEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(path, []byte("{1}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		v          variables
		set, holds bool
	}{
		{variables{}, false, false},
		{variables{content: "{1}"}, true, true},
		{variables{content: "{2}"}, true, false},
		{variables{file: path}, true, true},
		{variables{file: path, content: "{2}"}, true, true},
		{variables{file: path + "x", content: "{1}"}, true, false},
	} {
		if set, holds := tt.v.isSet(), tt.v.holds([]byte("{1}")); set != tt.set || holds != tt.holds {
			t.Errorf("%+v: set %v, holds %v", tt.v, set, holds)
		}
	}
	if (variables{}).holds(nil) {
		t.Error("an empty environment holds an empty document")
	}
}

const childTarget = "MESHGRPC_TEST_CHILD"

// gRPC reads the environment before main, so a process of its own uses it.
func TestBootstrapOfTheEnvironment(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", nil)
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, to("c")), cluster("c", b.address))...)
	cmd := exec.CommandContext(testContext(t), os.Args[0], "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), "GRPC_XDS_BOOTSTRAP=", "GRPC_XDS_BOOTSTRAP_CONFIG="+string(cp.bootstrap()), childTarget+"=xds:///"+host)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestChild")) {
		t.Fatalf("%v\n%s", err, out)
	}
	// Two channels to one target share gRPC's client; the third was given another document.
	if got := cp.streams.Load(); got != 2 {
		t.Errorf("%d ADS streams", got)
	}
	if got := b.calls.Load(); got != 3 {
		t.Errorf("%d calls", got)
	}
}

// TestChild is the other process of TestBootstrapOfTheEnvironment.
func TestChild(t *testing.T) {
	target := os.Getenv(childTarget)
	if target == "" {
		t.Skip("only in a child process")
	}
	document := []byte(os.Getenv("GRPC_XDS_BOOTSTRAP_CONFIG"))
	for _, d := range [][]byte{nil, document, append([]byte(" "), document...)} {
		c, _ := dial(t, target, DialOptions(ClientOptions{Bootstrap: d})...)
		if got := unary(t, testContext(t), c); got != "b" {
			t.Error(got)
		}
	}
}

func TestMeshSchemeIsUnknown(t *testing.T) {
	leak.Check(t)
	c, _ := dial(t, "mesh:///"+host, DialOptions(ClientOptions{})...)
	_, err := c.UnaryCall(testContext(t), &pb.SimpleRequest{})
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), "mesh:///") {
		t.Error(err)
	}
}
