package mesh_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	channelzpb "google.golang.org/grpc/channelz/grpc_channelz_v1"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	pb "google.golang.org/grpc/interop/grpc_testing"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// TestGRPCChannelz: gRPC's own view of its channels shows those of "mesh:///",
// with a subchannel to each endpoint in use and the calls on it.
func TestGRPCChannelz(t *testing.T) {
	server := &flaky{}
	w := meshtest.New(t, meshtest.GRPC("rpc", "v1", func(r grpc.ServiceRegistrar) { pb.RegisterTestServiceServer(r, server) }))
	conn, err := grpc.NewClient("mesh:///rpc:80", w.Mesh().DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 3 {
		if _, err := pb.NewTestServiceClient(conn).UnaryCall(t.Context(), &pb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
	}

	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shows := grpc.NewServer()
	channelz.RegisterChannelzServiceToServer(shows)
	go func() { _ = shows.Serve(lis) }()
	defer shows.Stop()
	asking, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	z := channelzpb.NewChannelzClient(asking)
	all, err := z.GetTopChannels(t.Context(), &channelzpb.GetTopChannelsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all.GetChannel() {
		if c.GetData().GetTarget() != "mesh:///rpc:80" {
			continue
		}
		if state := c.GetData().GetState().GetState(); state != channelzpb.ChannelConnectivityState_READY || c.GetData().GetCallsSucceeded() != 3 {
			t.Errorf("channel: %v", c.GetData())
		}
		if len(c.GetSubchannelRef()) != 1 {
			t.Fatalf("subchannels: %v", c.GetSubchannelRef())
		}
		sub, err := z.GetSubchannel(t.Context(), &channelzpb.GetSubchannelRequest{SubchannelId: c.GetSubchannelRef()[0].GetSubchannelId()})
		if err != nil {
			t.Fatal(err)
		}
		if d := sub.GetSubchannel().GetData(); d.GetCallsSucceeded() != 3 || len(sub.GetSubchannel().GetSocketRef()) != 1 {
			t.Errorf("subchannel: %v", sub)
		}
		return
	}
	t.Errorf("no such channel: %v", all)
}

// TestGRPCHealth: with WithGRPCHealth an endpoint that says that it is not
// serving gets no calls.
func TestGRPCHealth(t *testing.T) {
	sick, well := &flaky{}, &flaky{}
	register := func(s *flaky, serving healthpb.HealthCheckResponse_ServingStatus) func(grpc.ServiceRegistrar) {
		return func(r grpc.ServiceRegistrar) {
			pb.RegisterTestServiceServer(r, s)
			h := health.NewServer()
			h.SetServingStatus("shop", serving)
			healthpb.RegisterHealthServer(r, h)
		}
	}
	w := meshtest.New(t,
		meshtest.GRPC("rpc", "v1", register(sick, healthpb.HealthCheckResponse_NOT_SERVING)),
		meshtest.GRPC("rpc", "v2", register(well, healthpb.HealthCheckResponse_SERVING)),
		meshtest.MeshOptions(mesh.WithGRPCHealth("shop")))
	conn, err := grpc.NewClient("mesh:///rpc:80", w.Mesh().DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 20 {
		if _, err := pb.NewTestServiceClient(conn).UnaryCall(t.Context(), &pb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if sick.calls.Load() != 0 || well.calls.Load() != 20 {
		t.Errorf("%d calls to the server that is not serving, %d to the other", sick.calls.Load(), well.calls.Load())
	}
}

// TestGRPCWaitForReady: a call that fails fast says why; one that waits for
// readiness is made when policy has come that leads somewhere, by that policy.
func TestGRPCWaitForReady(t *testing.T) {
	server := &flaky{}
	w := meshtest.New(t, meshtest.Dead("gone", ""),
		meshtest.GRPC("rpc", "", func(r grpc.ServiceRegistrar) { pb.RegisterTestServiceServer(r, server) }),
		meshtest.Policy(waitPolicy("gone")))
	conn, err := grpc.NewClient("mesh:///rpc:80", w.Mesh().DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := pb.NewTestServiceClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := client.UnaryCall(ctx, &pb.SimpleRequest{}); grpcstatus.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := client.UnaryCall(ctx, &pb.SimpleRequest{}, grpc.WaitForReady(true))
		result <- err
	}()
	w.SetPolicy(waitPolicy("rpc"))
	if err := <-result; err != nil || server.calls.Load() != 1 {
		t.Errorf("%v; %d calls", err, server.calls.Load())
	}
}

func waitPolicy(host string) string {
	return `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rpc}
spec:
  hosts: [rpc]
  http:
  - route: [{destination: {host: ` + host + `}}]
    retries: {attempts: 0}
`
}
