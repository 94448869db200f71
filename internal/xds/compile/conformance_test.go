package compile

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
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

// refusedHere are what an error has to say where gRPC accepts a case and we do not.
var refusedHere = []string{
	"custom.filter", "plugin", "routes[1]: there is no action", "routes[1].route.cluster_header", "there are no roots to verify the peer with",
	"filter_chain_match", "domains: must have",
}

// TestConformanceValidation runs the records of resources that gRPC's client
// accepts or refuses, but for clusters and endpoints.
func TestConformanceValidation(t *testing.T) {
	const file = "grpc-facts/resource_validation.json"
	var groups map[string]json.RawMessage
	conformance.Load(t, "grpc-facts/resource_validation.json", &groups)
	inRoutes := func(routes ...*routev3.Route) *anypb.Any {
		return pack(t, &routev3.RouteConfiguration{Name: "routes", VirtualHosts: []*routev3.VirtualHost{{Domains: []string{"*"}, Routes: routes}}})
	}
	run := func(tally *conformance.Tally, group string, passed, differ int, read func(validationCase) error) {
		t.Helper()
		var cases []validationCase
		if err := json.Unmarshal(groups[group], &cases); err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			name := c.Name
			if c.Test != "" {
				name = c.Test + " " + c.Name
			}
			err := read(c)
			switch {
			case (err == nil) == c.Valid:
				tally.Pass()
			case err != nil && !slices.ContainsFunc(refusedHere, func(text string) bool { return strings.Contains(err.Error(), text) }):
				tally.Fail(t, "%s: %v", name, err)
			default:
				t.Logf("%s: valid %v, got %v", name, c.Valid, err)
				tally.Differs(t, name)
			}
		}
		tally.Check(t, file+"#"+group, passed, differ)
	}
	run(conformance.Deciding(t, "grpc-facts/resource_validation.json#RouteConfiguration"), "RouteConfiguration", 13, 6, func(c validationCase) error {
		m := &routev3.RouteConfiguration{}
		_, _, err := RouteConfig(recorded(t, c.Resource, m, func() { m.Name = "routes" }))
		return err
	})
	run(conformance.Deciding(t, "grpc-facts/resource_validation.json#Route"), "Route", 13, 2, func(c validationCase) error {
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
		return err
	})
	run(conformance.Deciding(t, "grpc-facts/resource_validation.json#HashPolicy"), "HashPolicy", 5, 0, func(c validationCase) error {
		r := &routev3.Route{}
		unmarshal(t, fmt.Sprintf(`{"match": {"prefix": ""}, "route": {"cluster": "c", "hash_policy": %s}}`, c.Resource), r)
		_, _, err := RouteConfig(inRoutes(r))
		return err
	})
	run(conformance.Deciding(t, "grpc-facts/resource_validation.json#CommonTlsContext"), "CommonTlsContext", 8, 0, func(c validationCase) error {
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
		return err
	})
	run(conformance.Deciding(t, "grpc-facts/resource_validation.json#Listener"), "Listener", 37, 17, func(c validationCase) (err error) {
		resource := recorded(t, c.Resource, &listenerv3.Listener{}, nil)
		if strings.Contains(c.Test, "ClientSide") {
			_, _, err = Listener(resource)
		} else {
			_, _, err = Inbound(resource)
		}
		return err
	})
	var lookups []struct {
		Name     string
		Listener json.RawMessage
	}
	if err := json.Unmarshal(groups["filter_chain_lookup"], &lookups); err != nil {
		t.Fatal(err)
	}
	tally := conformance.Deciding(t, "grpc-facts/resource_validation.json#filter_chain_lookup")
	for _, c := range lookups {
		if _, _, err := Inbound(listenerOf(t, string(c.Listener))); err == nil || !strings.Contains(err.Error(), "filter_chain_match") {
			tally.Fail(t, "%s: %v", c.Name, err)
			continue
		}
		tally.Differs(t, c.Name)
	}
	tally.Check(t, file+"#filter_chain_lookup", 0, len(lookups))
}
