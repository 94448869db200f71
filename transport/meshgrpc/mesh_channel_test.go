package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// TestMeshState: GetState, Connect and WaitForStateChange as of any channel.
func TestMeshState(t *testing.T) {
	leak.Check(t)
	a := newBackend(t, "a", nil)
	w := newMeshWorld(t)
	_, conn := w.dial(t)
	until := func(want connectivity.State) {
		t.Helper()
		ctx := testContext(t)
		for s := conn.GetState(); s != want; s = conn.GetState() {
			if !conn.WaitForStateChange(ctx, s) {
				t.Fatalf("%v, want %v", s, want)
			}
		}
	}
	until(connectivity.Idle)
	conn.Connect()
	until(connectivity.Connecting) // policy is on its way
	w.set([]*snapshot.Cluster{mcluster("c", a.address)}, mroute(t, "c"))
	until(connectivity.Ready)
	w.set([]*snapshot.Cluster{mcluster("c", deadAddress)}, mroute(t, "c"))
	until(connectivity.TransientFailure)
	w.set([]*snapshot.Cluster{mcluster("c", a.address)}, mroute(t, "c"))
	until(connectivity.Ready)
	conn.Close()
	until(connectivity.Shutdown)
	w.quiet(t)
}

// TestMeshLazy: of a thousand endpoints those have a connection that were picked.
func TestMeshLazy(t *testing.T) {
	leak.Check(t)
	conns := &connCounter{}
	// One server for all of 127.0.0.0/8.
	server := grpc.NewServer(grpc.StatsHandler(conns))
	pb.RegisterTestServiceServer(server, &backend{name: "all"})
	lis, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	defer func() {
		server.Stop()
		<-done
	}()
	w := newMeshWorld(t)
	var addresses []string
	for i := range 1000 {
		addresses = append(addresses, fmt.Sprintf("127.0.%d.%d:%d", 1+i/250, 1+i%250, lis.Addr().(*net.TCPAddr).Port))
	}
	w.set([]*snapshot.Cluster{mcluster("c", addresses...)}, mroute(t, "c"))
	client, conn := w.dial(t)
	for range 50 {
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
			t.Skip("only 127.0.0.1 is loopback here: ", err)
		}
	}
	if n := conns.opened.Load(); n > 50 {
		t.Errorf("%d connections for 50 calls", n)
	}
	conn.Close()
}

// TestMeshIdleConnections: a connection without RPCs closes after the cluster's
// idle timeout, and the next RPC makes another.
func TestMeshIdleConnections(t *testing.T) {
	leak.Check(t)
	conns := &connCounter{}
	a := newBackend(t, "a", nil, grpc.StatsHandler(conns))
	w := newMeshWorld(t)
	c := mcluster("c", a.address)
	c.IdleTimeout = 30 * time.Millisecond
	w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
	client, conn := w.dial(t)
	s, err := client.FullDuplexCall(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(s); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	if n := conns.open.Load(); n != 1 {
		t.Errorf("%d connections while a stream is open", n)
	}
	_ = s.CloseSend()
	for {
		if _, err := s.Recv(); err != nil {
			break
		}
	}
	eventually(t, func() string {
		if conns.open.Load() != 0 || conn.GetState() != connectivity.Idle {
			return "the connection stays open"
		}
		return ""
	})
	if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
		t.Error(err)
	}
	w.quiet(t)
}

// TestMeshConnectionLimits: max_requests_per_connection and max_concurrent_streams.
func TestMeshConnectionLimits(t *testing.T) {
	leak.Check(t)
	conns := &connCounter{}
	var inside atomic.Int64
	all := make(chan struct{})
	a := newBackend(t, "a", func(_ context.Context, n int64) error {
		if n > 20 {
			if inside.Add(1) == 6 {
				close(all)
			}
			<-all
		}
		return nil
	}, grpc.StatsHandler(conns))
	w := newMeshWorld(t)
	c := mcluster("c", a.address)
	c.MaxRequestsPerConnection = 5
	w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
	client, _ := w.dial(t)
	for range 20 {
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := conns.opened.Load(); n != 4 {
		t.Errorf("%d connections for 20 requests of 5 each", n)
	}
	c = mcluster("c2", a.address)
	c.MaxConcurrentStreams = 2
	w.set([]*snapshot.Cluster{c}, mroute(t, "c2"))
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := conns.opened.Load(); n != 7 {
		t.Errorf("%d connections, want 3 more for 6 requests at once, 2 each", n)
	}
	w.quiet(t)
}

func TestMeshRefusesBypass(t *testing.T) {
	leak.Check(t)
	a := newBackend(t, "a", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c", a.address)}, mroute(t, "c"))
	for name, option := range map[string]grpc.DialOption{
		"DisableServiceConfig": grpc.WithDisableServiceConfig(),
	} {
		client, _ := w.dial(t, option)
		_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{})
		wantCode(t, err, codes.Unavailable)
		if !strings.Contains(err.Error(), name) || a.calls.Load() != 0 {
			t.Errorf("%s: %v, %d calls", name, err, a.calls.Load())
		}
	}
	// Another resolver for the scheme does not get hold of it.
	m := manual.NewBuilderWithScheme("mesh")
	m.InitialState(resolver.State{Addresses: []resolver.Address{{Addr: deadAddress}}})
	client, _ := w.dial(t, grpc.WithResolvers(m), grpc.WithDefaultServiceConfig(
		`{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.001s","maxBackoff":"0.001s","backoffMultiplier":1,"retryableStatusCodes":["UNAVAILABLE"]}}]}`))
	if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
		t.Error(err)
	}
	// And gRPC's own retries do not multiply those of policy.
	bad := newBackend(t, "bad", unavailable)
	r := mroute(t, "c")
	r.Retry = meshRetry(t, "unavailable", 2)
	w.set([]*snapshot.Cluster{mcluster("c", bad.address)}, r)
	for _, k := range kinds {
		before := bad.calls.Load()
		wantCode(t, k.call(testContext(t), client), codes.Unavailable)
		if n := bad.calls.Load() - before; n != 3 {
			t.Errorf("%s: %d attempts, want 3", k.name, n)
		}
	}
	for _, target := range []string{"mesh://authority/" + meshHost, "mesh:///"} {
		c, _ := dial(t, target, w.options(nil)...)
		_, err := c.UnaryCall(testContext(t), &pb.SimpleRequest{})
		if err == nil {
			t.Errorf("%s: no error", target)
		}
	}
	w.quiet(t)
}

// TestMeshProxyEnvironment: a proxy of the environment is not for the mesh.
func TestMeshProxyEnvironment(t *testing.T) {
	leak.Check(t)
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	a := newBackend(t, "a", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c", a.address)}, mroute(t, "c"))
	client, _ := w.dial(t)
	if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
		t.Error(err)
	}
}

func TestMeshWaitForReady(t *testing.T) {
	leak.Check(t)
	for _, k := range kinds {
		for _, start := range []string{"no policy", "no endpoint", "dead endpoint", "dead cluster, other route"} {
			t.Run(k.name+"/"+start, func(t *testing.T) {
				a := newBackend(t, "a", nil)
				w := newMeshWorld(t)
				switch start {
				case "no endpoint":
					w.set([]*snapshot.Cluster{mcluster("c")}, mroute(t, "c"))
				case "no policy":
				default:
					w.set([]*snapshot.Cluster{mcluster("c", deadAddress)}, mroute(t, "c"))
				}
				client, conn := dial(t, "mesh:///"+meshHost, append(w.options(nil), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))...)
				done := make(chan error, 1)
				go func() { done <- k.call(testContext(t), client) }()
				if start != "no policy" && start != "no endpoint" {
					ctx := testContext(t)
					for s := conn.GetState(); s != connectivity.TransientFailure; s = conn.GetState() {
						conn.WaitForStateChange(ctx, s)
					}
				}
				select {
				case err := <-done:
					t.Fatalf("it did not wait: %v", err)
				case <-time.After(20 * time.Millisecond):
				}
				if start == "dead cluster, other route" {
					w.set([]*snapshot.Cluster{mcluster("c", deadAddress), mcluster("other", a.address)}, mroute(t, "other"))
				} else {
					w.set([]*snapshot.Cluster{mcluster("c", a.address)}, mroute(t, "c"))
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
				w.quiet(t)
			})
		}
	}
	t.Run("until the deadline", func(t *testing.T) {
		w := newMeshWorld(t)
		w.set([]*snapshot.Cluster{mcluster("c", deadAddress)}, mroute(t, "c"))
		client, _ := w.dial(t)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_, err := client.UnaryCall(ctx, &pb.SimpleRequest{}, grpc.WaitForReady(true))
		wantCode(t, err, codes.DeadlineExceeded)
		w.quiet(t)
	})
}

func TestMeshNotReady(t *testing.T) {
	leak.Check(t)
	e := outbound.New(outbound.Options{Subscribe: func(string) {}, PolicyWait: 20 * time.Millisecond})
	defer e.Close()
	client, _ := dial(t, "mesh:///"+meshHost, DialOptions(ClientOptions{Outbound: e})...)
	for _, k := range kinds {
		err := k.call(testContext(t), client)
		wantCode(t, err, codes.Unavailable)
		var notReady *outbound.NotReadyError
		if !errors.As(err, &notReady) {
			t.Errorf("%s: %T %v", k.name, err, err)
		}
	}
}

// TestMeshIdleChannel: a channel that was idle goes on with what the engine knows.
func TestMeshIdleChannel(t *testing.T) {
	leak.Check(t)
	a := newBackend(t, "a", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c", a.address)}, mroute(t, "c"))
	client, conn := w.dial(t, grpc.WithIdleTimeout(20*time.Millisecond))
	for range 3 {
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
		ctx := testContext(t)
		for s := conn.GetState(); s != connectivity.Idle; s = conn.GetState() {
			if !conn.WaitForStateChange(ctx, s) {
				t.Fatal("the channel does not become idle")
			}
		}
	}
	if n := w.requests()[a.address]; n != 3 {
		t.Errorf("the engine has %d requests", n)
	}
}

// TestMeshHealthService: connections are watched by gRPC's health service where it is asked for.
func TestMeshHealthService(t *testing.T) {
	leak.Check(t)
	serving := health.NewServer()
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, serving)
	sick := &backend{name: "sick"}
	pb.RegisterTestServiceServer(s, sick)
	sick.address = serve(t, s)
	defer serving.Shutdown()
	serving.SetServingStatus("svc", healthpb.HealthCheckResponse_NOT_SERVING)
	other := newBackend(t, "other", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c", sick.address, other.address)}, mroute(t, "c"))
	service := "svc"
	client, _ := dial(t, "mesh:///"+meshHost, DialOptions(ClientOptions{Outbound: w.engine, Health: &service})...)
	for range 20 {
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := sick.calls.Load(); n != 0 {
		t.Errorf("%d calls to the server that is not serving", n)
	}
	serving.SetServingStatus("svc", healthpb.HealthCheckResponse_SERVING)
	eventually(t, func() string {
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
		if sick.calls.Load() == 0 {
			return "no call to the server that serves again"
		}
		return ""
	})
}

// TestMeshEjection: connections that fail count for outlier detection.
func TestMeshEjection(t *testing.T) {
	leak.Check(t)
	good := newBackend(t, "good", nil)
	dead := deadAddress
	w := newMeshWorld(t)
	c := mcluster("c", dead, good.address)
	outlier := resilience.DefaultOutlier
	outlier.ConsecutiveLocalOriginFailure, outlier.SplitLocalOrigin = 3, true
	outlier.MaxEjectionPercent = 100
	c.Outlier = &outlier
	w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
	client, _ := w.dial(t)
	for range 20 {
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	ejected := false
	for _, e := range w.engine.Status().Clusters[0].Endpoints {
		ejected = ejected || e.Address == dead && e.Ejected
	}
	if !ejected {
		t.Errorf("%+v", w.engine.Status().Clusters[0].Endpoints)
	}
	w.quiet(t)
}
