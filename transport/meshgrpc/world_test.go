package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// testContext bounds a test's calls; it never decides a result.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// serve runs a gRPC server on loopback until the test ends.
func serve(t testing.TB, s *grpc.Server) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, lis)
	return lis.Addr().String()
}

// serveOn runs a gRPC server on the listener until the test ends.
func serveOn(t testing.TB, s *grpc.Server, lis net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	})
}

// frameServer speaks HTTP/2 on the connection until it ends, and leaves the
// answers to all but the settings to the test.
func frameServer(conn net.Conn, answer func(*http2.Framer, http2.Frame)) {
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(conn, conn)
	_ = f.WriteSettings()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		if settings, ok := frame.(*http2.SettingsFrame); ok {
			if !settings.IsAck() {
				_ = f.WriteSettingsAck()
			}
			continue
		}
		answer(f, frame)
	}
}

// backend is a test service that answers with its name.
type backend struct {
	pb.UnimplementedTestServiceServer
	name    string
	address string
	calls   atomic.Int64
	// answer, if set, gives the error of the n-th call, counted from 1.
	answer func(ctx context.Context, n int64) error
}

func newBackend(t testing.TB, name string, answer func(context.Context, int64) error, options ...grpc.ServerOption) *backend {
	b := &backend{name: name, answer: answer}
	s := grpc.NewServer(options...)
	pb.RegisterTestServiceServer(s, b)
	b.address = serve(t, s)
	return b
}

func (b *backend) call(ctx context.Context) error {
	n := b.calls.Add(1)
	if b.answer != nil {
		return b.answer(ctx, n)
	}
	return nil
}

func (b *backend) payload() *pb.Payload { return &pb.Payload{Body: []byte(b.name)} }

func (b *backend) UnaryCall(ctx context.Context, _ *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if err := b.call(ctx); err != nil {
		return nil, err
	}
	return &pb.SimpleResponse{Hostname: b.name}, nil
}

func (b *backend) StreamingOutputCall(_ *pb.StreamingOutputCallRequest, s grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	if err := b.call(s.Context()); err != nil {
		return err
	}
	for range 3 {
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: b.payload()}); err != nil {
			return err
		}
	}
	return nil
}

func (b *backend) StreamingInputCall(s grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	if err := b.call(s.Context()); err != nil {
		return err
	}
	for n := int32(0); ; n++ {
		_, err := s.Recv()
		if err == io.EOF {
			return s.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: n})
		}
		if err != nil {
			return err
		}
	}
}

func (b *backend) FullDuplexCall(s grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	if err := b.call(s.Context()); err != nil {
		return err
	}
	for {
		_, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: b.payload()}); err != nil {
			return err
		}
	}
}

// kinds are the four kinds of RPC; each returns nil after a whole exchange.
var kinds = []struct {
	name string
	call func(context.Context, pb.TestServiceClient) error
}{
	{"unary", func(ctx context.Context, c pb.TestServiceClient) error {
		_, err := c.UnaryCall(ctx, &pb.SimpleRequest{})
		return err
	}},
	{"server streaming", func(ctx context.Context, c pb.TestServiceClient) error {
		s, err := c.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{})
		if err != nil {
			return err
		}
		for n := 0; ; n++ {
			switch _, err := s.Recv(); {
			case err == io.EOF && n == 3:
				return nil
			case err == io.EOF:
				return fmt.Errorf("%d messages, want 3", n)
			case err != nil:
				return err
			}
		}
	}},
	{"client streaming", func(ctx context.Context, c pb.TestServiceClient) error {
		s, err := c.StreamingInputCall(ctx)
		if err != nil {
			return err
		}
		for range 3 {
			// io.EOF: the stream has ended, and the status is in what follows.
			if err := s.Send(&pb.StreamingInputCallRequest{}); err != nil && err != io.EOF {
				return err
			}
		}
		r, err := s.CloseAndRecv()
		if err == nil && r.AggregatedPayloadSize != 3 {
			return fmt.Errorf("the server saw %d messages, want 3", r.AggregatedPayloadSize)
		}
		return err
	}},
	{"bidirectional streaming", func(ctx context.Context, c pb.TestServiceClient) error {
		s, err := c.FullDuplexCall(ctx)
		if err != nil {
			return err
		}
		for range 3 {
			if err := s.Send(&pb.StreamingOutputCallRequest{}); err != nil && err != io.EOF {
				return err
			}
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
		if _, err := s.Recv(); err != io.EOF {
			return fmt.Errorf("after the last message: %v, want EOF", err)
		}
		return nil
	}},
}

// dial returns a client on a channel that ends with the test.
func dial(t testing.TB, target string, options ...grpc.DialOption) (pb.TestServiceClient, *grpc.ClientConn) {
	t.Helper()
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return pb.NewTestServiceClient(conn), conn
}

func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Fatalf("got %v (%v), want %v", got, err, want)
	}
}

// controlPlane is an ADS server with one set of resources for the node "test".
type controlPlane struct {
	address string
	cache   cache.SnapshotCache
	server  *grpc.Server
	streams atomic.Int64 // opened ever
	nacks   chan string  // the error of each refused response, as long as there is room
	version int
	stop    func()
}

func newControlPlane(t testing.TB) *controlPlane {
	t.Helper()
	cp := &controlPlane{cache: cache.NewSnapshotCache(false, cache.IDHash{}, nil), nacks: make(chan string, 16)}
	cp.server = grpc.NewServer()
	ctx, cancel := context.WithCancel(context.Background())
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(cp.server, serverv3.NewServer(ctx, cp.cache, serverv3.CallbackFuncs{
		StreamOpenFunc: func(context.Context, int64, string) error {
			cp.streams.Add(1)
			return nil
		},
		StreamRequestFunc: func(_ int64, r *discoveryv3.DiscoveryRequest) error {
			if r.ErrorDetail != nil {
				select {
				case cp.nacks <- r.ErrorDetail.Message:
				default:
				}
			}
			return nil
		},
	}))
	cp.stop = sync.OnceFunc(func() {
		cancel()
		cp.server.Stop()
	})
	t.Cleanup(cp.stop)
	cp.address = serve(t, cp.server)
	return cp
}

// set replaces all resources.
func (cp *controlPlane) set(t testing.TB, resources ...types.Resource) {
	t.Helper()
	byType := map[resourcev3.Type][]types.Resource{}
	for _, r := range resources {
		url := "type.googleapis.com/" + string(r.ProtoReflect().Descriptor().FullName())
		byType[url] = append(byType[url], r)
	}
	cp.version++
	s, err := cache.NewSnapshot(fmt.Sprint(cp.version), byType)
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.cache.SetSnapshot(context.Background(), "test", s); err != nil {
		t.Fatal(err)
	}
}

func bootstrapFor(address string) []byte {
	return fmt.Appendf(nil, `{"xds_servers":[{"server_uri":%q,"channel_creds":[{"type":"insecure"}],"server_features":["xds_v3"]}],"node":{"id":"test"}}`, address)
}

func (cp *controlPlane) bootstrap() []byte { return bootstrapFor(cp.address) }

func mustAny(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

var adsSource = &corev3.ConfigSource{
	ResourceApiVersion:    corev3.ApiVersion_V3,
	ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
}

// listener is a host's API listener; its routes have the same name.
func listener(name string, maxStream time.Duration) *listenerv3.Listener {
	m := &hcmv3.HttpConnectionManager{
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: adsSource, RouteConfigName: name}},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(&routerv3.Router{})},
		}},
	}
	if maxStream > 0 {
		m.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{MaxStreamDuration: durationpb.New(maxStream)}
	}
	return &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: mustAny(m)}}
}

func routes(name string, rs ...*routev3.Route) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{
		Name: name, Domains: []string{"*"}, Routes: rs,
	}}}
}

// to is a route for all paths to one cluster.
func to(cluster string) *routev3.Route {
	return &routev3.Route{
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		}},
	}
}

// with changes the route's action.
func with(r *routev3.Route, change func(*routev3.RouteAction)) *routev3.Route {
	change(r.GetRoute())
	return r
}

// cluster is an EDS cluster with its endpoints.
func cluster(name string, addresses ...string) []types.Resource {
	load := &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		Locality:            &corev3.Locality{Region: "r"},
		LoadBalancingWeight: wrapperspb.UInt32(1),
	}}}
	for _, a := range addresses {
		load.Endpoints[0].LbEndpoints = append(load.Endpoints[0].LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socket(a)}},
		})
	}
	return []types.Resource{
		&clusterv3.Cluster{
			Name:                 name,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource},
			LbPolicy:             clusterv3.Cluster_ROUND_ROBIN,
		},
		load,
	}
}

func socket(address string) *corev3.Address {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		panic(err)
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       a.IP.String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port)},
	}}}
}

// join flattens resources and lists of them.
func join(parts ...any) []types.Resource {
	var all []types.Resource
	for _, p := range parts {
		switch p := p.(type) {
		case []types.Resource:
			all = append(all, p...)
		case types.Resource:
			all = append(all, p)
		default:
			panic(fmt.Sprintf("%T is no resource", p))
		}
	}
	return all
}
