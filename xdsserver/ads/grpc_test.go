package ads

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// backend is a gRPC server that says who it is in the header "backend", and
// fails as many calls as failures says.
type backend struct {
	name     string
	port     uint32
	failures atomic.Int64
	calls    atomic.Int64
}

func startBackend(t *testing.T, name string) *backend {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{name: name, port: uint32(lis.Addr().(*net.TCPAddr).Port)}
	s := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		b.calls.Add(1)
		if b.failures.Add(-1) >= 0 {
			return nil, status.Error(codes.Unavailable, "as the test asked") // before any header: those would rule out a retry
		}
		if err := grpc.SetHeader(ctx, metadata.Pairs("backend", name)); err != nil {
			return nil, err
		}
		if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("hang")) > 0 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return next(ctx, req)
	}))
	healthpb.RegisterHealthServer(s, health.NewServer())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(lis) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return b
}

// dialXDS opens an xds:/// channel with grpc-go's own client.
func dialXDS(t *testing.T, h *harness, target string) healthpb.HealthClient {
	t.Helper()
	config := fmt.Sprintf(`{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "sidecar~127.0.0.1~web.default~default.svc.cluster.local", "metadata": {"LABELS": {"app": "web"}}}
	}`, h.addr)
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return healthpb.NewHealthClient(conn)
}

func check(t *testing.T, c healthpb.HealthClient, header ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), header...), patience)
	defer cancel()
	var md metadata.MD
	_, err := c.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&md))
	return strings.Join(md.Get("backend"), ","), err
}

// TestGRPC drives grpc-go's own xDS client through routes, weights, retries,
// timeouts and a change of policy, with real calls.
func TestGRPC(t *testing.T) {
	v1, v2 := startBackend(t, "v1"), startBackend(t, "v2")
	with := func(routes string) *policy.Set {
		return &policy.Set{
			VirtualServices: []*policy.VirtualService{virtualService(t, "a", "hosts: [a]\nhttp:\n"+routes)},
			DestinationRules: []*policy.DestinationRule{destinationRule(t, "a", `
host: a
trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {http: {http2MaxRequests: 100}}, outlierDetection: {consecutive5xxErrors: 3}}
subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]`)},
			Services:  []*policy.Service{service("a", 80)},
			Workloads: []*policy.Workload{workload("a", "v1", "127.0.0.1", v1.port), workload("a", "v2", "127.0.0.1", v2.port)},
		}
	}
	h := start(t, with(`
- match: [{queryParams: {q: {exact: v}}}]
  route: [{destination: {host: a, subset: v1}}]
- match: [{headers: {Who: {exact: tester}}, method: {exact: POST}, uri: {prefix: /grpc.health.v1.Health/}}]
  route: [{destination: {host: a, subset: v2}}]
- match: [{headers: {hang: {}}}]
  timeout: 0.2s
  route: [{destination: {host: a, subset: v1}}]
- match: [{headers: {only: {exact: x}}, withoutHeaders: {not: {exact: y}}}]
  route: [{destination: {host: a, subset: v2}}]
- retries: {attempts: 3, retryOn: "5xx,reset,connect-failure", perTryTimeout: 1s, backoff: 0.001s}
  route: [{destination: {host: a, subset: v1}, weight: 80}, {destination: {host: a, subset: v2}, weight: 20}]
`))
	c := dialXDS(t, h, "a:80")

	for _, test := range []struct {
		header []string
		want   string
	}{
		{[]string{"who", "tester"}, "v2"},
		{[]string{"only", "x"}, "v2"}, // "not" is absent, which satisfies withoutHeaders
		{[]string{"only", "x", "not", "z"}, "v2"},
	} {
		for range 5 {
			if got, err := check(t, c, test.header...); err != nil || got != test.want {
				t.Fatalf("%v: %q, %v; want %q", test.header, got, err, test.want)
			}
		}
	}
	counts := map[string]int{}
	const n = 1000
	for range n {
		got, err := check(t, c, "only", "x", "not", "y")
		if err != nil {
			t.Fatal(err)
		}
		counts[got]++
	}
	// Four standard deviations of a binomial with p = 0.2 are 51.
	if counts["v2"] < 140 || counts["v2"] > 260 {
		t.Errorf("shares %v of %d, want about 80:20", counts, n)
	}

	t.Run("retry", func(t *testing.T) {
		for _, b := range []*backend{v1, v2} {
			b.failures.Store(3)
			b.calls.Store(0)
		}
		defer v1.failures.Store(0)
		defer v2.failures.Store(0)
		for range 2 {
			// Each backend fails three calls in all; each call has four tries.
			if _, err := check(t, c); err != nil && status.Code(err) != codes.Unavailable {
				t.Fatal(err)
			}
		}
		if calls := v1.calls.Load() + v2.calls.Load(); calls < 5 {
			t.Errorf("2 calls made %d tries", calls)
		}
	})

	t.Run("timeout", func(t *testing.T) {
		began := time.Now()
		_, err := check(t, c, "hang", "yes")
		if status.Code(err) != codes.DeadlineExceeded || time.Since(began) >= patience {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})

	t.Run("change", func(t *testing.T) {
		h.SetPolicy(with("- {route: [{destination: {host: a, subset: v2}}]}"))
		waitFor(t, func() bool {
			for range 10 {
				if got, err := check(t, c); err != nil {
					t.Fatalf("a call failed during the change: %v", err)
				} else if got != "v2" {
					return false
				}
			}
			return true
		})
	})

	t.Run("accepted", func(t *testing.T) {
		waitFor(t, func() bool {
			clients := h.Status().Clients
			if len(clients) != 1 || clients[0].Kind != "grpc" {
				t.Fatalf("clients %+v", clients)
			}
			for _, r := range clients[0].Resources {
				if r.State == Refused {
					t.Fatalf("refused: %+v", r)
				}
				if r.State != Accepted {
					return false
				}
			}
			return len(clients[0].Resources) >= 4
		})
	})
}

// TestGRPCServer starts grpc-go's own xDS server on the inbound listener.
func TestGRPCServer(t *testing.T) {
	h := start(t, set(t))
	config := fmt.Sprintf(`{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "sidecar~127.0.0.1~web.default~default.svc.cluster.local"},
		"server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%%s"
	}`, h.addr)
	serving := make(chan error, 8)
	s, err := xds.NewGRPCServer(xds.BootstrapContentsForTesting([]byte(config)), xds.ServingModeCallback(func(_ net.Addr, args xds.ServingModeChangeArgs) {
		select {
		case serving <- args.Err:
		default:
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	healthpb.RegisterHealthServer(s, health.NewServer())
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(lis) }()
	defer func() { s.Stop(); <-done }()
	select {
	case err := <-serving:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the server does not serve")
	}
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := check(t, healthpb.NewHealthClient(conn)); err != nil {
		t.Fatal(err)
	}
}
