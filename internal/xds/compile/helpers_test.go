package compile

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	// Types that resources in tests carry as extensions.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/cookie/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/wrr_locality/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/omit_canary_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// extensionTypes knows every registered type, and takes others for messages without fields.
type extensionTypes struct{ *protoregistry.Types }

func (r extensionTypes) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	if mt, err := r.Types.FindMessageByURL(url); err == nil {
		return mt, nil
	}
	return (&emptypb.Empty{}).ProtoReflect().Type(), nil
}

func unmarshal(t testing.TB, json string, m proto.Message) {
	t.Helper()
	if err := (protojson.UnmarshalOptions{Resolver: extensionTypes{protoregistry.GlobalTypes}}).Unmarshal([]byte(json), m); err != nil {
		t.Fatalf("%v in\n%s", err, json)
	}
}

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func packJSON(t testing.TB, json string, m proto.Message) *anypb.Any {
	t.Helper()
	unmarshal(t, json, m)
	return pack(t, m)
}

func sanMatcher(t testing.TB, json string) *matcherv3.StringMatcher {
	m := &matcherv3.StringMatcher{}
	unmarshal(t, json, m)
	return m
}

func listenerOf(t testing.TB, json string) *anypb.Any {
	return packJSON(t, json, &listenerv3.Listener{})
}
func routesOf(t testing.TB, json string) *anypb.Any {
	return packJSON(t, json, &routev3.RouteConfiguration{})
}
func clusterOf(t testing.TB, json string) *anypb.Any { return packJSON(t, json, &clusterv3.Cluster{}) }
func endpointsOf(t testing.TB, json string) *anypb.Any {
	return packJSON(t, json, &endpointv3.ClusterLoadAssignment{})
}
