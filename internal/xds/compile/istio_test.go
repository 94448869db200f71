package compile

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

var indices = regexp.MustCompile(`\[[^\]]*\]`)

// refusal is the field that an error names, without indices.
func refusal(t *testing.T, err error) string {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is not an *Error: %v", err, err)
	}
	return indices.ReplaceAllString(e.Path, "")
}

// Resources that istiod made are accepted, or refused for a field that is named here.
func TestConformanceIstioRoutes(t *testing.T) {
	var file struct {
		Cases []struct {
			Name   string
			Routes []json.RawMessage
		}
	}
	conformance.Load(t, "istio/virtualservice_to_routes.json", &file)
	var tally conformance.Tally
	for _, c := range file.Cases {
		for i, r := range c.Routes {
			_, rc, err := RouteConfig(routesOf(t, fmt.Sprintf(`{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [%s]}]}`, r)))
			if err != nil {
				field := strings.TrimPrefix(refusal(t, err), "virtual_hosts.routes.")
				if !istioRouteRefusals[field] {
					tally.Fail(t, "%s, route %d: %v", c.Name, i, err)
					continue
				}
				tally.SetAside(field)
				continue
			}
			if len(rc.VirtualHosts[0].Routes[0].Clusters.Clusters) == 0 {
				tally.Fail(t, "%s, route %d: no cluster", c.Name, i)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "istio/virtualservice_to_routes.json", 62, 24)
}

var istioRouteRefusals = map[string]bool{
	"redirect":                   true,
	"direct_response":            true,
	"match.dynamic_metadata":     true,
	"request_headers_to_add":     true,
	"response_headers_to_add":    true,
	"response_headers_to_remove": true,
	"route.prefix_rewrite":       true,
	"route.regex_rewrite":        true,
	"route.host_rewrite_literal": true,
	"route.hash_policy":          true,
	"typed_per_filter_config":    true,
}

func TestConformanceIstioClusters(t *testing.T) {
	var file struct {
		Cases []struct {
			From    string
			Cluster json.RawMessage `json:"cluster_after"`
			Options json.RawMessage `json:"http_protocol_options"`
		}
	}
	conformance.Load(t, "istio/trafficpolicy_to_cluster.json", &file)
	var tally conformance.Tally
	types := 0
	for _, c := range file.Cases {
		m := &clusterv3.Cluster{}
		unmarshal(t, string(c.Cluster), m)
		if len(c.Options) > 0 {
			o := &upstreamv3.HttpProtocolOptions{}
			unmarshal(t, string(c.Options), o)
			m.TypedExtensionProtocolOptions = map[string]*anypb.Any{upstreamOptions: pack(t, o)}
		}
		if m.GetType() == clusterv3.Cluster_EDS && m.GetEdsClusterConfig() == nil {
			// Istio adds the source after the traffic policy, so it is not in the record.
			unmarshal(t, `{"eds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}}`, edsConfig(m))
			m.LoadAssignment = nil
		}
		_, _, err := Cluster(pack(t, m))
		if err != nil && refusal(t, err) == "type" {
			// The rest of a cluster that is looked up by DNS is worth a look all the same.
			if !istioTypeRefusals[m.GetType()] {
				tally.Fail(t, "%s: %v", c.From, err)
			}
			types++
			m.ClusterDiscoveryType, m.LoadAssignment = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, nil
			m.EdsClusterConfig = nil
			if m.GetLbPolicy() == clusterv3.Cluster_CLUSTER_PROVIDED {
				m.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
			}
			unmarshal(t, `{"eds_config": {"ads": {}}}`, edsConfig(m))
			_, _, err = Cluster(pack(t, m))
		}
		if err != nil {
			field := refusal(t, err)
			if !istioClusterRefusals[field] {
				tally.Fail(t, "%s: %v", c.From, err)
				continue
			}
			tally.SetAside(field)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "istio/trafficpolicy_to_cluster.json", 80, 29)
	if types != 53 {
		t.Errorf("%d clusters are of types that are refused, want 53", types)
	}
}

var istioTypeRefusals = map[clusterv3.Cluster_DiscoveryType]bool{
	clusterv3.Cluster_STRICT_DNS:   true,
	clusterv3.Cluster_ORIGINAL_DST: true,
}

func edsConfig(m *clusterv3.Cluster) *clusterv3.Cluster_EdsClusterConfig {
	m.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{}
	return m.EdsClusterConfig
}

var istioClusterRefusals = map[string]bool{
	"cluster_type": true,
	"transport_socket.typed_config.common_tls_context":                                               true, // no roots
	"transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs.sds_config": true, // of a gateway: the keys come from the control plane
	"common_lb_config.locality_weighted_lb_config":                                                   true,
	"ring_hash_lb_config":                       true,
	"round_robin_lb_config.slow_start_config":   true,
	"least_request_lb_config.slow_start_config": true,
	"typed_extension_protocol_options.common_http_protocol_options.max_connection_duration":               true,
	"typed_extension_protocol_options.explicit_http_config.http2_protocol_options.max_concurrent_streams": true,
	"typed_extension_protocol_options.explicit_http_config.http2_protocol_options.connection_keepalive":   true,
	"circuit_breakers.thresholds.retry_budget.budget_interval":                                            true,
}
