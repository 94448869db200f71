package source

//lint:file-ignore SA1019 grpc-go reads match_subject_alt_names, not its successor.

import (
	"context"
	"encoding/json"
	"net"
	"strconv"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	xdsserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscredentials "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestXDSCredentials: a client and a server of grpc-go with xDS credentials
// take certificates from our sources, which HTTP in the same process shares.
func TestXDSCredentials(t *testing.T) {
	_, config, _ := written(t, time.Hour)
	src, err := Shared(FilesPlugin, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()

	xdsListener, lis := listen(t), listen(t)
	snapshots := cache.NewSnapshotCache(false, cache.IDHash{}, nil)
	control := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(control, xdsserver.NewServer(t.Context(), snapshots, nil))
	go func() { _ = control.Serve(xdsListener) }()
	defer control.Stop()
	if err := snapshots.SetSnapshot(t.Context(), "node", resources(t, lis.Addr().(*net.TCPAddr))); err != nil {
		t.Fatal(err)
	}
	bootstrap, err := json.Marshal(map[string]any{
		"xds_servers": []any{map[string]any{
			"server_uri": xdsListener.Addr().String(), "server_features": []string{"xds_v3"},
			"channel_creds": []any{map[string]any{"type": "insecure"}},
		}},
		"node":                                   map[string]any{"id": "node"},
		"certificate_providers":                  map[string]any{"default": map[string]any{"plugin_name": FilesPlugin, "config": config}},
		"server_listener_resource_name_template": "server/%s",
	})
	if err != nil {
		t.Fatal(err)
	}

	serverCredentials, err := xdscredentials.NewServerCredentials(xdscredentials.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan credentials.AuthInfo, 1)
	server, err := xds.NewGRPCServer(grpc.Creds(serverCredentials), xds.BootstrapContentsForTesting(bootstrap),
		grpc.UnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			p, _ := peer.FromContext(ctx)
			seen <- p.AuthInfo
			return h(ctx, r)
		}))
	if err != nil {
		t.Fatal(err)
	}
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(lis) }()
	defer server.Stop()

	clientCredentials, err := xdscredentials.NewClientCredentials(xdscredentials.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	resolver, err := xds.NewXDSResolverWithConfigForTesting(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///reviews", grpc.WithTransportCredentials(clientCredentials), grpc.WithResolvers(resolver))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var p peer.Peer
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true), grpc.Peer(&p)); err != nil {
		t.Fatal(err)
	}
	for side, info := range map[string]credentials.AuthInfo{"client": p.AuthInfo, "server": <-seen} {
		got, ok := info.(credentials.TLSInfo)
		if !ok || got.SPIFFEID == nil || got.SPIFFEID.String() != workloadID {
			t.Errorf("%s sees %+v", side, info)
			continue
		}
		if !got.State.PeerCertificates[0].Equal(must(t, src).Certificate.Leaf) {
			t.Errorf("the %s's peer has another certificate than the shared source", side)
		}
	}
	if n := openShared(); n != 1 {
		t.Errorf("%d sources for one configuration", n)
	}
}

func listen(t testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func resources(t testing.TB, addr *net.TCPAddr) *cache.Snapshot {
	instance := &tlsv3.CertificateProviderPluginInstance{InstanceName: "default"}
	common := func(sans ...*matcherv3.StringMatcher) *tlsv3.CommonTlsContext {
		return &tlsv3.CommonTlsContext{
			TlsCertificateProviderInstance: instance,
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
				CaCertificateProviderInstance: instance, MatchSubjectAltNames: sans,
			}},
		}
	}
	socket := func(m proto.Message) *corev3.TransportSocket {
		return &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(t, m)}}
	}
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
	router := &hcmv3.HttpFilter{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &routerv3.Router{})}}
	hcm := func(action *routev3.Route) *anypb.Any {
		action.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}}
		return pack(t, &hcmv3.HttpConnectionManager{
			RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
				Name: "r", VirtualHosts: []*routev3.VirtualHost{{Domains: []string{"*"}, Routes: []*routev3.Route{action}}},
			}},
			HttpFilters: []*hcmv3.HttpFilter{router},
		})
	}
	address := &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: addr.IP.String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(addr.Port)},
	}}}
	client := &listenerv3.Listener{Name: "reviews", ApiListener: &listenerv3.ApiListener{ApiListener: hcm(&routev3.Route{
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "reviews"}}},
	})}}
	server := &listenerv3.Listener{
		Name: "server/" + net.JoinHostPort(addr.IP.String(), strconv.Itoa(addr.Port)), Address: address,
		FilterChains: []*listenerv3.FilterChain{{
			Name:    "mtls",
			Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: hcm(&routev3.Route{Action: &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}}})}}},
			TransportSocket: socket(&tlsv3.DownstreamTlsContext{
				RequireClientCertificate: wrapperspb.Bool(true), CommonTlsContext: common(),
			}),
		}},
	}
	clusters := &clusterv3.Cluster{
		Name: "reviews", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads},
		LbPolicy:        clusterv3.Cluster_ROUND_ROBIN,
		TransportSocket: socket(&tlsv3.UpstreamTlsContext{CommonTlsContext: common(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: workloadID}})}),
	}
	endpoints := &endpointv3.ClusterLoadAssignment{ClusterName: "reviews", Endpoints: []*endpointv3.LocalityLbEndpoints{{
		Locality: &corev3.Locality{Region: "here"}, LoadBalancingWeight: wrapperspb.UInt32(1),
		LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}}}},
	}}}
	s, err := cache.NewSnapshot("1", map[resource.Type][]types.Resource{
		resource.ListenerType: {client, server}, resource.ClusterType: {clusters}, resource.EndpointType: {endpoints},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
