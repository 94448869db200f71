package compile

import (
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

const eds = `"type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}`

func oneCluster(t *testing.T, fields string) (*snapshot.Cluster, error) {
	t.Helper()
	name, c, err := Cluster(clusterOf(t, `{"name": "c", `+fields+`}`))
	if name != "c" {
		t.Errorf("name %q", name)
	}
	if (c == nil) != (err != nil) {
		t.Errorf("%+v with %v", c, err)
	}
	return c, err
}

// withPolicy is a cluster of EDS with one policy, whose type follows the common prefix.
func withPolicy(config string) string {
	return eds + `, "load_balancing_policy": {"policies": [{"typed_extension_config": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.` + config + `}}}]}`
}

const lbPath = "load_balancing_policy.policies[0].typed_extension_config.typed_config"

func TestClusterErrorsNameTheField(t *testing.T) {
	const options = `typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]`
	policy := withPolicy
	protocol := func(fields string) string {
		return eds + `, "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", ` + fields + `}}`
	}
	for _, tt := range []struct{ fields, path string }{
		{`"type": "ORIGINAL_DST"`, "type"},
		{`"type": 99`, "type"},
		{`"cluster_type": {"name": "envoy.clusters.aggregate"}`, "cluster_type"},
		{`"type": "EDS"`, "eds_cluster_config.eds_config"},
		{`"type": "EDS", "eds_cluster_config": {"eds_config": {"path": "/x"}}`, "eds_cluster_config.eds_config.path"},
		{eds + `, "load_assignment": {}`, "load_assignment"},
		{`"type": "STATIC", "load_assignment": {}, "eds_cluster_config": {}`, "eds_cluster_config"},
		{`"type": "STATIC", "load_assignment": {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "name", "port_value": 1}}}}]}]}`,
			"load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address"},
		{eds + `, "connect_timeout": "0s"`, "connect_timeout"},
		{eds + `, "connect_timeout": "-1s"`, "connect_timeout"},
		{eds + `, "lb_policy": "CLUSTER_PROVIDED"`, "lb_policy"},
		{eds + `, "least_request_lb_config": {}`, "least_request_lb_config"},
		{eds + `, "lb_policy": "LEAST_REQUEST", "round_robin_lb_config": {}`, "round_robin_lb_config"},
		{eds + `, "lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 1}`, "least_request_lb_config.choice_count"},
		{eds + `, "load_balancing_policy": {}`, "load_balancing_policy.policies"},
		{policy(`least_request.v3.LeastRequest", "choice_count": 1`), "load_balancing_policy.policies[0].typed_extension_config.typed_config.choice_count"},
		{eds + `, "common_lb_config": {"healthy_panic_threshold": {"value": 101}}`, "common_lb_config.healthy_panic_threshold.value"},
		{eds + `, "common_lb_config": {"healthy_panic_threshold": {"value": "NaN"}}`, "common_lb_config.healthy_panic_threshold.value"},
		{eds + `, "circuit_breakers": {"per_host_thresholds": [{}]}`, "circuit_breakers.per_host_thresholds"},
		{eds + `, "circuit_breakers": {"thresholds": [{"priority": "HIGH"}, {"retry_budget": {"budget_percent": {"value": -1}}}]}`, "circuit_breakers.thresholds[1].retry_budget.budget_percent.value"},
		{eds + `, "circuit_breakers": {"thresholds": [{"retry_budget": {"budget_interval": "10s"}}]}`, "circuit_breakers.thresholds[0].retry_budget.budget_interval"},
		{eds + `, "outlier_detection": {"enforcing_success_rate": 0, "interval": "0s"}`, "outlier_detection.interval"},
		{eds + `, "outlier_detection": {"enforcing_success_rate": 0, "base_ejection_time": "-1s"}`, "outlier_detection.base_ejection_time"},
		{eds + `, "outlier_detection": {"enforcing_success_rate": 0, "monitors": [{}]}`, "outlier_detection.monitors"},
		{eds + `, "transport_socket": {"name": "envoy.transport_sockets.tls"}`, "transport_socket"},
		{eds + `, "transport_socket": {"typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"}}`, "transport_socket"},
		{eds + `, "transport_socket_matches": [{"name": "a", "transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}}, {"name": "b", "transport_socket": {"name": "envoy.transport_sockets.tls"}}]`, "transport_socket_matches[1].transport_socket"},
		{eds + `, "transport_socket_matches": [{"name": "a"}]`, "transport_socket_matches[0].transport_socket"},
		{eds + `, "transport_socket_matches": [{"transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}}]`, "transport_socket_matches[0].name"},
		{eds + `, "transport_socket_matches": [{"name": "a", "transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}}, {"name": "a", "transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}}]`, "transport_socket_matches[1].name"},
		{eds + `, "transport_socket_matches": [{"name": "a", "match": {"n": 1}, "transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}}]`, `transport_socket_matches[0].match.fields["n"]`},
		{eds + `, "upstream_http_protocol_options": {"override_auto_sni_header": "x"}`, "upstream_http_protocol_options.override_auto_sni_header"},
		{protocol(`"explicit_http_config": {}`) + `, "upstream_http_protocol_options": {}`, "upstream_http_protocol_options"},
		{eds + `, "filters": [{"name": "istio.metadata_exchange", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"}}]`, "filters[0]"},
		{protocol(`"auto_config": {}`), options + ".auto_config"},
		{protocol(`"common_http_protocol_options": {"max_connection_duration": "1s"}`), options + ".common_http_protocol_options.max_connection_duration"},
		{protocol(`"common_http_protocol_options": {"max_stream_duration": "1s"}`), options + ".common_http_protocol_options.max_stream_duration"},
		{protocol(`"common_http_protocol_options": {"idle_timeout": "-1s"}`), options + ".common_http_protocol_options.idle_timeout"},
		{protocol(`"explicit_http_config": {"http3_protocol_options": {}}`), options + ".explicit_http_config.http3_protocol_options"},
		{protocol(`"explicit_http_config": {}`) + `, "http2_protocol_options": {}`, "http2_protocol_options"},
		{eds + `, "typed_extension_protocol_options": {"x": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}`, `typed_extension_protocol_options["x"]`},
		{eds + `, "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}`, options},
	} {
		_, err := oneCluster(t, tt.fields)
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
	_, _, err := Cluster(clusterOf(t, `{"name": "xdstp://a/c", `+eds+`}`))
	requirePath(t, err, "eds_cluster_config.service_name")
}

func TestClusterDefaults(t *testing.T) {
	c, err := oneCluster(t, eds)
	if err != nil {
		t.Fatal(err)
	}
	want := snapshot.Cluster{
		Name: "c", EndpointsName: "c", Service: "c", ConnectTimeout: 5 * time.Second, LB: lb.Policy{Kind: lb.RoundRobin, PanicThreshold: 50},
		Limits: resilience.DefaultLimits, HighLimits: resilience.DefaultLimits,
	}
	if got, want := fmt.Sprintf("%+v", *c), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestClusterFields(t *testing.T) {
	_, c, err := Cluster(clusterOf(t, `{"name": "outbound|9080|v1|reviews.default.svc.cluster.local",
		"type": "EDS", "eds_cluster_config": {"eds_config": {"self": {}}, "service_name": "other"},
		"alt_stat_name": "x", "metadata": {}, "lrs_server": {"self": {}}, "connect_timeout": "10s",
		"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 4},
		"common_lb_config": {"healthy_panic_threshold": {}},
		"filters": [{"name": "istio.metadata_exchange", "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange"}}],
		"transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}},
		"circuit_breakers": {"thresholds": [{"priority": "HIGH", "max_requests": 1}, {"max_connections": 2, "max_pending_requests": 3, "max_requests": 4, "max_retries": 4294967295,
			"retry_budget": {"budget_percent": {"value": 12.5}, "min_retry_concurrency": 0}, "track_remaining": true}, {"max_requests": 9}]},
		"outlier_detection": {"consecutive_5xx": 7, "interval": "1s", "base_ejection_time": "400s", "max_ejection_percent": 100, "enforcing_success_rate": 0,
			"consecutive_gateway_failure": 3, "enforcing_consecutive_gateway_failure": 100, "success_rate_minimum_hosts": 1},
		"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"common_http_protocol_options": {"idle_timeout": "15s", "max_requests_per_connection": 8}, "explicit_http_config": {"http2_protocol_options": {}}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.EndpointsName != "other" || c.Service != "reviews.default.svc.cluster.local" || c.Subset != "v1" || c.ConnectTimeout != 10*time.Second ||
		!reflect.DeepEqual(c.LB, lb.Policy{Kind: lb.LeastRequest, Choices: 4}) || !c.HTTP2 || c.IdleTimeout != 15*time.Second || c.MaxRequestsPerConnection != 8 {
		t.Errorf("%+v", c)
	}
	if c.Limits != (resilience.Limits{MaxConnections: 2, MaxPendingRequests: 3, MaxRequests: 4, MaxRetries: math.MaxUint32}) {
		t.Errorf("%+v", c.Limits)
	}
	if *c.RetryBudget != (resilience.RetryBudget{Percent: 12.5, MinConcurrency: 0}) {
		t.Errorf("%+v", c.RetryBudget)
	}
	if high := resilience.DefaultLimits; c.HighLimits.MaxRequests != 1 || c.HighLimits.MaxRetries != high.MaxRetries || c.HighRetryBudget != nil {
		t.Errorf("%+v, %+v", c.HighLimits, c.HighRetryBudget)
	}
	outlier, f := outlier(&clusterv3.OutlierDetection{})
	if f != nil {
		t.Fatal(f)
	}
	outlier.EnforcingSuccessRate, outlier.SuccessRateMinimumHosts = 0, 1
	outlier.Consecutive5xx, outlier.ConsecutiveGatewayFailure, outlier.EnforcingConsecutiveGatewayFailure = 7, 3, 100
	outlier.Interval, outlier.BaseEjectionTime, outlier.MaxEjectionTime, outlier.MaxEjectionPercent = time.Second, 400*time.Second, 400*time.Second, 100
	if *c.Outlier != *outlier {
		t.Errorf("%+v\nwant %+v", *c.Outlier, *outlier)
	}
}

func TestClusterVariants(t *testing.T) {
	options := func(fields string) string {
		return eds + `, "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"` + fields + `}}`
	}
	for _, tt := range []struct {
		name, fields string
		ok           func(c *snapshot.Cluster) bool
	}{
		{"random", eds + `, "lb_policy": "RANDOM"`, func(c *snapshot.Cluster) bool { return c.LB.Kind == lb.Random }},
		{"least request compares two", eds + `, "lb_policy": "LEAST_REQUEST"`, func(c *snapshot.Cluster) bool {
			return reflect.DeepEqual(c.LB, lb.Policy{Kind: lb.LeastRequest, Choices: 2, PanicThreshold: 50})
		}},
		{"the first known policy, whatever lb_policy says", eds + `, "lb_policy": "MAGLEV", "load_balancing_policy": {"policies": [
			{"typed_extension_config": {"name": "a", "typed_config": {"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": "type.googleapis.com/no.such.Policy"}}},
			{"typed_extension_config": {"name": "b", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest", "choice_count": 3, "locality_lb_config": {}}}},
			{"typed_extension_config": {"name": "c", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin"}}}]}`,
			func(c *snapshot.Cluster) bool {
				return reflect.DeepEqual(c.LB, lb.Policy{Kind: lb.LeastRequest, Choices: 3, PanicThreshold: 50})
			}},
		{"old HTTP/2", eds + `, "http2_protocol_options": {"initial_stream_window_size": 65536}, "max_requests_per_connection": 4, "common_http_protocol_options": {"idle_timeout": "0s"}`,
			func(c *snapshot.Cluster) bool {
				return c.HTTP2 && c.MaxRequestsPerConnection == 4 && c.IdleTimeout == math.MaxInt64
			}},
		{"HTTP/1", options(`, "explicit_http_config": {"http_protocol_options": {}}`), func(c *snapshot.Cluster) bool { return !c.HTTP2 }},
		{"the request's version", options(`, "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}`), func(c *snapshot.Cluster) bool { return !c.HTTP2 && c.ClientProtocol }},
		{"names for TLS", options(`, "upstream_http_protocol_options": {"auto_sni": true}`), func(c *snapshot.Cluster) bool { return !c.HTTP2 }},
		{"no detection that ejects", eds + `, "outlier_detection": {"enforcing_success_rate": 0, "enforcing_consecutive_5xx": 0}`, func(c *snapshot.Cluster) bool { return c.Outlier == nil }},
		{"a count that never comes", eds + `, "outlier_detection": {"enforcing_success_rate": 0, "consecutive_5xx": 4294967295}`, func(c *snapshot.Cluster) bool { return c.Outlier == nil }},
		{"local failures apart", eds + `, "outlier_detection": {"enforcing_success_rate": 0, "split_external_local_origin_errors": true, "enforcing_local_origin_success_rate": 0, "consecutive_local_origin_failure": 2}`,
			func(c *snapshot.Cluster) bool {
				return c.Outlier.SplitLocalOrigin && c.Outlier.ConsecutiveLocalOriginFailure == 2
			}},
		{"endpoints inside", `"type": "STATIC", "load_assignment": {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "::1", "port_value": 80}}}}]}]}`,
			func(c *snapshot.Cluster) bool {
				return c.EndpointsName == "" && c.Endpoints.All[0].Address == "[::1]:80"
			}},
		{"no endpoints at all", `"type": "STATIC"`, func(c *snapshot.Cluster) bool {
			return c.EndpointsName == "" && c.Endpoints != nil && len(c.Endpoints.All) == 0
		}},
		{"all transport sockets plain", eds + `, "transport_socket_matches": [{"name": "tlsMode-disabled", "match": {}, "transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}}]`,
			func(c *snapshot.Cluster) bool { return true }},
	} {
		c, err := oneCluster(t, tt.fields)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if !tt.ok(c) {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
}
