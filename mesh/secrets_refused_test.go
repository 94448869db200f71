package mesh_test

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// careless is a control plane whose resources have secrets in them and are not
// sound, so that every client refuses them.
type careless struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	s        secrets
	refusals chan string
}

func (c *careless) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	var sent []string
	for nonce := 0; ; nonce++ {
		r, err := s.Recv()
		if err != nil {
			return nil
		}
		if detail := r.GetErrorDetail(); detail != nil {
			select {
			case c.refusals <- detail.GetMessage():
			default:
			}
			if slices.Equal(r.ResourceNames, sent) {
				continue
			}
		}
		sent = r.ResourceNames
		resp := &discoveryv3.DiscoveryResponse{TypeUrl: r.TypeUrl, VersionInfo: fmt.Sprint(nonce), Nonce: fmt.Sprint(nonce)}
		for _, name := range r.ResourceNames {
			if r.TypeUrl == translate.ListenerType {
				resp.Resources = append(resp.Resources, c.listener(name))
			}
		}
		if err := s.Send(resp); err != nil {
			return nil
		}
	}
}

// listener is one whose route adds a header with a secret, which is not supported,
// and whose key set is broken and has a private key in it.
func (c *careless) listener(name string) *anypb.Any {
	hcm := &hcmv3.HttpConnectionManager{
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: planted,
			VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:               &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action:              &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}},
				RequestHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "authorization", Value: c.s["header in a route"] + "\n"}}},
			}}}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: planted, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: must(anypb.New(&jwtv3.JwtAuthentication{
			Providers: map[string]*jwtv3.JwtProvider{planted: {Issuer: "https://issuer.example", JwksSourceSpecifier: &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: `{"keys":[{"kty":"EC","d":"` + c.s["key in a resource"] + `",` + c.s["key in a resource"]},
			}}}},
		}))}}, {Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: must(anypb.New(&routerv3.Router{}))}}},
	}
	l := &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: must(anypb.New(hcm))}}
	if strings.HasPrefix(name, translate.InboundPrefix) {
		at := must(netip.ParseAddrPort(strings.TrimPrefix(name, translate.InboundPrefix)))
		l.ApiListener, l.Address = nil, &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: at.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(at.Port())},
		}}}
		l.FilterChains = []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: must(anypb.New(hcm))}}}}}
	}
	return must(anypb.New(l))
}

// refusedResources has a mesh refuse what a careless control plane sends.
func refusedResources(t *testing.T, log *slog.Logger, hidden secrets, out *sinks) {
	t.Helper()
	hidden["header in a route"], hidden["key in a resource"] = "CANARYroute81", "CANARYjwks82"
	c := &careless{s: hidden, refusals: make(chan string, 16)}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, c)
	go func() { _ = server.Serve(lis) }()
	defer server.Stop()
	document := fmt.Sprintf(`{"xds_servers":[{"server_uri":%q,"channel_creds":[{"type":"insecure"}]}],"node":{"id":"careless"},
		"client_default_listener_resource_name_template":"%%s","server_listener_resource_name_template":"%s%%s"}`, lis.Addr(), translate.InboundPrefix)
	m, err := mesh.New(t.Context(), mesh.WithBootstrap([]byte(document)), mesh.WithLogger(log), mesh.WithPolicyWait(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	inbound, err := m.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inbound.Close()
	_, err = m.RoundTripper().RoundTrip(httptest.NewRequest(http.MethodGet, "http://careless/", nil))
	out.failed(t, err)
	for outside, inside := false, false; !outside || !inside; {
		select {
		case text := <-c.refusals:
			out.add("refusals to the server", text)
			outside = outside || strings.Contains(text, "careless:80")
			inside = inside || strings.Contains(text, translate.InboundPrefix)
		case <-time.After(10 * time.Second):
			t.Fatal("the resources are not refused")
		}
	}
	out.add("refusals to the server", planted)
	out.add("admin", adminPage(m))
}
