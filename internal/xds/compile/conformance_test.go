package compile

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

type validationCase struct {
	Name, Test string
	Resource   json.RawMessage
	Valid      bool
	Server     bool
}

// raw decodes a resource that is recorded as bytes.
func raw(t *testing.T, resource json.RawMessage) (wire []byte, url string, ok bool) {
	t.Helper()
	var r struct {
		Wire  *string `json:"@wire_b64"`
		URL   string  `json:"@type_url"`
		Value *string `json:"@value_base64"`
	}
	if json.Unmarshal(resource, &r) != nil {
		return nil, "", false
	}
	for _, text := range []*string{r.Wire, r.Value} {
		if text != nil {
			wire, err := base64.StdEncoding.DecodeString(*text)
			if err != nil {
				t.Fatal(err)
			}
			return wire, r.URL, true
		}
	}
	return nil, "", false
}

// recorded makes an Any of a recorded resource whose type is that of m if it
// does not say. setUp completes a message that is only a part.
func recorded(t *testing.T, resource json.RawMessage, m proto.Message, setUp func()) *anypb.Any {
	t.Helper()
	if wire, url, ok := raw(t, resource); ok {
		if url != "" {
			return &anypb.Any{TypeUrl: url, Value: wire}
		}
		var a anypb.Any // a listener is recorded as an Any
		if proto.Unmarshal(wire, &a) == nil && strings.HasPrefix(a.GetTypeUrl(), "type.googleapis.com/") {
			return &a
		}
		if err := proto.Unmarshal(wire, m); err != nil {
			t.Fatal(err)
		}
	} else if strings.HasPrefix(string(resource), `{"@type"`) || strings.Contains(strings.SplitN(string(resource), ",", 2)[0], `"@type"`) {
		var a anypb.Any
		unmarshal(t, string(resource), &a)
		return &a
	} else {
		unmarshal(t, string(resource), m)
	}
	if setUp != nil {
		setUp()
	}
	return pack(t, m)
}

// Differences from gRPC, by the name of the case. Most are rules that are not
// enforced here and so refused; the others are decisions.
var asideValidation = map[string]string{
	// RouteConfiguration and Route
	"good-route-config-with-grpc-timeout-header-max":                "a limit for gRPC requests alone is refused",
	"good-route-config-with-http-filter-config":                     "a filter of gRPC's own tests",
	"good-route-config-with-http-filter-config-in-old-typed-struct": "a filter of gRPC's own tests",
	"good-route-config-with-http-optional-err-filter-config":        "an optional filter is skipped unread",
	"bad-retry-policy-0-retries":                                    "0 retries are none, as in Envoy",
	"deleted-cluster-specifier-plugins-not-referenced":              "cluster specifier plugins are refused",
	"unsupported-cluster-specifier-route-should-ignore":             "a route that gRPC skips is refused",
	"query is ignored": "a route that gRPC skips is refused",
	"good-with-header-hash-policy-no-regex-specified": "hash policies are refused",
	"with custom HTTP filter config in typed struct":  "a filter of gRPC's own tests",
	"header-hash-policy":                              "hash policies are refused",
	"channel-id-hash-policy":                          "hash policies are refused",
	"wrong-filter-state-key":                          "hash policies are refused",
	"no-op-hash-policy":                               "hash policies are refused",
	"header-and-channel-id-hash-policy":               "hash policies are refused",
	// Cluster
	"happy-case-logical-dns":                                                                                          "the cluster types of DNS are refused",
	"happiest-case-with-ring-hash-lb-policy-with-default-config":                                                      "ring hash is refused",
	"happiest-case-with-ring-hash-lb-policy-with-none-default-config":                                                 "ring hash is refused",
	"happiest-case-with-ring-hash-lb-policy-configured-through-LoadBalancingPolicy":                                   "ring hash is refused",
	"happiest-case-with-custom-lb-configured-through-LoadBalancingPolicy":                                             "locality-weighted balancing is refused",
	"happy-case-with-sni-flag-enabled":                                                                                "the endpoint's host name as SNI is refused",
	"failure-case-with-validation-context-provider-instance-using-new-fields-and-system-root-certs-env-flag-disabled": "the roots of the system are no experiment",
	"success-and-failure-null":                                                                                        "outlier detection by success rate is refused",
	"some-fields-set":                                                                                                 "outlier detection by success rate is refused",
	// Listener
	"v3_with_custom_filter_in_old_typed_struct": "a filter of gRPC's own tests",
	"v3_with_client_only_filter":                "a filter of gRPC's own tests",
	"v3_with_optional_err_filter":               "an optional filter is skipped unread",
	// ClusterLoadAssignment
	"missing-locality-ID":  "a locality that is not set is the empty one, as in Envoy",
	"good":                 "priorities are refused",
	"multiple localities":  "additional addresses are refused",
	"v3_endpoints_wrapped": "priorities are refused",
}

// asideErrors are what the error has to say where gRPC accepts a case and we do not.
var asideErrors = map[string]string{
	"a limit for gRPC requests alone is refused":          "grpc_timeout_header_max",
	"a filter of gRPC's own tests":                        "custom.filter",
	"cluster specifier plugins are refused":               "cluster_specifier_plugin",
	"a route that gRPC skips is refused":                  "routes[1]",
	"hash policies are refused":                           "hash_policy: not supported",
	"the cluster types of DNS are refused":                "type: LOGICAL_DNS is not supported",
	"ring hash is refused":                                "supported",
	"locality-weighted balancing is refused":              "wrr_locality",
	"the endpoint's host name as SNI is refused":          "auto_host_sni: not supported",
	"TLS that verifies no client is refused":              "there are no roots to verify the peer with",
	"outlier detection by success rate is refused":        "enforcing_success_rate",
	"additional addresses are refused":                    "additional_addresses: not supported",
	"priorities are refused":                              "priority: 1 is not supported",
	"choice of a filter chain is refused":                 "filter_chain_match",
	"inbound routes that restrict the domain are refused": "domains: must have",
}

func TestConformanceValidation(t *testing.T) {
	var groups map[string]json.RawMessage
	conformance.Load(t, "grpc-facts/resource_validation.json", &groups)
	cases := func(group string) []validationCase {
		var cs []validationCase
		if err := json.Unmarshal(groups[group], &cs); err != nil {
			t.Fatal(err)
		}
		return cs
	}
	inRoutes := func(routes ...*routev3.Route) *anypb.Any {
		return pack(t, &routev3.RouteConfiguration{Name: "routes", VirtualHosts: []*routev3.VirtualHost{{Domains: []string{"*"}, Routes: routes}}})
	}
	var tally conformance.Tally
	check := func(c validationCase, err error) {
		t.Helper()
		switch reason := aside(c, err); {
		case (err == nil) == c.Valid:
			if reason != "" {
				t.Errorf("%s: set aside and passes", c.Name)
			}
			tally.Pass()
		case reason != "" && (err == nil || strings.Contains(err.Error(), asideErrors[reason])):
			tally.SetAside(reason)
		default:
			tally.Fail(t, "%s %s: valid %v, got %v", c.Test, c.Name, c.Valid, err)
		}
	}
	for _, c := range cases("RouteConfiguration") {
		m := &routev3.RouteConfiguration{}
		_, _, err := RouteConfig(recorded(t, c.Resource, m, func() { m.Name = "routes" }))
		check(c, err)
	}
	for _, c := range cases("Route") {
		var list []json.RawMessage
		if err := json.Unmarshal(c.Resource, &list); err != nil {
			t.Fatal(err)
		}
		var routes []*routev3.Route
		for _, r := range list {
			m := &routev3.Route{}
			recorded(t, r, m, nil)
			routes = append(routes, m)
		}
		_, _, err := RouteConfig(inRoutes(routes...))
		check(c, err)
	}
	for _, c := range cases("HashPolicy") {
		r := &routev3.Route{}
		unmarshal(t, fmt.Sprintf(`{"match": {"prefix": ""}, "route": {"cluster": "c", "hash_policy": %s}}`, c.Resource), r)
		_, _, err := RouteConfig(inRoutes(r))
		check(c, err)
	}
	for _, c := range cases("Cluster") {
		m := &clusterv3.Cluster{}
		_, _, err := Cluster(recorded(t, c.Resource, m, func() {
			if m.Name == "" {
				m.Name = "cluster"
			}
		}))
		check(c, err)
	}
	for _, c := range cases("CommonTlsContext") {
		var tls tlsv3.CommonTlsContext
		unmarshal(t, string(c.Resource), &tls)
		m := &clusterv3.Cluster{}
		unmarshal(t, `{"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}`, m)
		m.TransportSocket = &corev3.TransportSocket{ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(t, &tlsv3.UpstreamTlsContext{CommonTlsContext: &tls})}}
		_, _, err := Cluster(pack(t, m))
		if c.Server {
			_, _, err = Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(everyInbound, fmt.Sprintf(
				`"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": %s}}`, c.Resource))+`]`)))
		}
		check(c, err)
	}
	for _, c := range cases("ClusterLoadAssignment") {
		_, _, err := Endpoints(recorded(t, c.Resource, &endpointv3.ClusterLoadAssignment{}, nil))
		check(c, err)
	}
	for _, c := range cases("Listener") {
		resource := recorded(t, c.Resource, &listenerv3.Listener{}, nil)
		var err error
		if strings.Contains(c.Test, "ClientSide") {
			_, _, err = Listener(resource)
		} else {
			_, _, err = Inbound(resource)
		}
		check(c, err)
	}
	var keys []struct {
		Name     string
		Metadata json.RawMessage `json:"endpoint_metadata"`
		Key      string          `json:"hash_key"`
	}
	if err := json.Unmarshal(groups["endpoint_hash_key"], &keys); err != nil {
		t.Fatal(err)
	}
	for _, c := range keys {
		_, eps, err := Endpoints(endpointsOf(t, fmt.Sprintf(`{"cluster_name": "c", "endpoints": [{"lb_endpoints": [{"metadata": %s,
			"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}}]}]}`, c.Metadata)))
		if err != nil || eps.All[0].Metadata["hash_key"] != c.Key {
			tally.Fail(t, "endpoint_hash_key %s: %+v, %v", c.Name, eps, err)
			continue
		}
		tally.Pass()
	}
	var lookups []struct {
		Name     string
		Listener json.RawMessage
	}
	if err := json.Unmarshal(groups["filter_chain_lookup"], &lookups); err != nil {
		t.Fatal(err)
	}
	for _, c := range lookups {
		if _, _, err := Inbound(listenerOf(t, string(c.Listener))); err == nil {
			tally.Fail(t, "filter_chain_lookup %s: accepted", c.Name)
			continue
		}
		tally.SetAside("choice of a filter chain is refused")
	}
	tally.Check(t, "grpc-facts/resource_validation.json", 108, 51)
}

// aside is the reason why a case may differ from gRPC.
func aside(c validationCase, err error) string {
	if !c.Valid || !strings.Contains(c.Test, "_ServerSide") {
		return asideValidation[c.Name]
	}
	for _, reason := range []string{
		"TLS that verifies no client is refused", "choice of a filter chain is refused",
		"inbound routes that restrict the domain are refused", "a filter of gRPC's own tests",
	} {
		if err != nil && strings.Contains(err.Error(), asideErrors[reason]) {
			return reason
		}
	}
	return ""
}
