package compile

import (
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
)

func TestConnections(t *testing.T) {
	options := func(fields string) string {
		return eds + `, "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", ` + fields + `}}`
	}
	const h2 = `{"max_concurrent_streams": 7, "connection_keepalive": {"interval": "30s", "timeout": "5s", "interval_jitter": {"value": 15}}}`
	ping := snapshot.HTTP2Ping{Interval: 30 * time.Second, Timeout: 5 * time.Second}
	for _, tt := range []struct {
		name, fields string
		ok           func(c *snapshot.Cluster) bool
	}{
		{"explicit HTTP/2", options(`"explicit_http_config": {"http2_protocol_options": ` + h2 + `}`), func(c *snapshot.Cluster) bool {
			return c.HTTP2 && !c.ClientProtocol && c.MaxConcurrentStreams == 7 && c.HTTP2Ping == ping
		}},
		{"the request's version", options(`"use_downstream_protocol_config": {"http2_protocol_options": ` + h2 + `}`), func(c *snapshot.Cluster) bool {
			return !c.HTTP2 && c.ClientProtocol && c.MaxConcurrentStreams == 7 && c.HTTP2Ping == ping
		}},
		{"former fields", eds + `, "http2_protocol_options": ` + h2, func(c *snapshot.Cluster) bool {
			return c.HTTP2 && !c.ClientProtocol && c.MaxConcurrentStreams == 7 && c.HTTP2Ping == ping
		}},
		{"former fields, the request's version", eds + `, "protocol_selection": "USE_DOWNSTREAM_PROTOCOL", "http2_protocol_options": {}`, func(c *snapshot.Cluster) bool {
			return !c.HTTP2 && c.ClientProtocol
		}},
		{"pings on demand only", eds + `, "http2_protocol_options": {"connection_keepalive": {"timeout": "5s"}}`, func(c *snapshot.Cluster) bool {
			return c.HTTP2Ping == snapshot.HTTP2Ping{Timeout: 5 * time.Second}
		}},
		{"TCP keepalive", eds + `, "upstream_connection_options": {"tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 600, "keepalive_interval": 75}, "set_local_interface_name_on_upstream_connections": true}`, func(c *snapshot.Cluster) bool {
			return *c.KeepAlive == snapshot.KeepAlive{Idle: 10 * time.Minute, Interval: 75 * time.Second, Probes: 3}
		}},
		{"TCP keepalive of the system", eds + `, "upstream_connection_options": {"tcp_keepalive": {}}`, func(c *snapshot.Cluster) bool { return *c.KeepAlive == snapshot.KeepAlive{} }},
		{"no TCP keepalive", eds + `, "upstream_connection_options": {}`, func(c *snapshot.Cluster) bool { return c.KeepAlive == nil }},
		{"limits by priority", eds + `, "circuit_breakers": {"thresholds": [{"priority": "HIGH", "max_retries": 9, "retry_budget": {}}, {"max_requests": 8}, {"priority": "HIGH", "max_retries": 1}]}`, func(c *snapshot.Cluster) bool {
			return c.HighLimits == resilience.Limits{MaxConnections: 1024, MaxPendingRequests: 1024, MaxRequests: 1024, MaxRetries: 9} && c.Limits.MaxRequests == 8 &&
				c.RetryBudget == nil && *c.HighRetryBudget == resilience.DefaultRetryBudget
		}},
	} {
		c, err := oneCluster(t, tt.fields)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if !tt.ok(c) {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
	const h2Path = "http2_protocol_options"
	for _, tt := range []struct{ fields, path string }{
		{eds + `, "http2_protocol_options": {"max_concurrent_streams": 0}`, h2Path + ".max_concurrent_streams"},
		{eds + `, "http2_protocol_options": {"max_concurrent_streams": 2147483648}`, h2Path + ".max_concurrent_streams"},
		{eds + `, "http2_protocol_options": {"connection_keepalive": {}}`, h2Path + ".connection_keepalive.timeout"},
		{eds + `, "http2_protocol_options": {"connection_keepalive": {"timeout": "0.0001s"}}`, h2Path + ".connection_keepalive.timeout"},
		{eds + `, "http2_protocol_options": {"connection_keepalive": {"interval": "0s", "timeout": "1s"}}`, h2Path + ".connection_keepalive.interval"},
		{eds + `, "http2_protocol_options": {"connection_keepalive": {"timeout": "1s", "connection_idle_interval": "1s"}}`, h2Path + ".connection_keepalive.connection_idle_interval"},
		{eds + `, "protocol_selection": 9`, "protocol_selection"},
		{options(`"explicit_http_config": {}`) + `, "protocol_selection": "USE_DOWNSTREAM_PROTOCOL"`, "protocol_selection"},
		{options(`"use_downstream_protocol_config": {"http2_protocol_options": {"max_concurrent_streams": 0}}`),
			`typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].use_downstream_protocol_config.http2_protocol_options.max_concurrent_streams`},
		{eds + `, "upstream_connection_options": {"tcp_keepalive": {"keepalive_probes": 0}}`, "upstream_connection_options.tcp_keepalive.keepalive_probes"},
		{eds + `, "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 4294967295}}`, "upstream_connection_options.tcp_keepalive.keepalive_time"},
		{eds + `, "upstream_connection_options": {"happy_eyeballs_config": {}}`, "upstream_connection_options.happy_eyeballs_config"},
		{eds + `, "circuit_breakers": {"thresholds": [{"priority": 7}]}`, "circuit_breakers.thresholds[0].priority"},
		{eds + `, "circuit_breakers": {"thresholds": [{"max_connection_pools": 1}]}`, "circuit_breakers.thresholds[0].max_connection_pools"},
		{eds + `, "outlier_detection": {"max_ejection_percent": 101}`, "outlier_detection.max_ejection_percent"},
		{eds + `, "outlier_detection": {"enforcing_local_origin_success_rate": 101}`, "outlier_detection.enforcing_local_origin_success_rate"},
		{eds + `, "outlier_detection": {"failure_percentage_threshold": 101}`, "outlier_detection.failure_percentage_threshold"},
		{eds + `, "outlier_detection": {"max_ejection_time": "1s"}`, "outlier_detection.max_ejection_time"},
		{eds + `, "outlier_detection": {"detect_degraded_hosts": true}`, "outlier_detection.detect_degraded_hosts"},
	} {
		_, err := oneCluster(t, tt.fields)
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

func TestOutlier(t *testing.T) {
	c, err := oneCluster(t, eds+`, "outlier_detection": {"split_external_local_origin_errors": true, "enforcing_success_rate": 1, "success_rate_minimum_hosts": 2, "success_rate_request_volume": 3, "success_rate_stdev_factor": 4,
		"failure_percentage_threshold": 5, "enforcing_failure_percentage": 6, "enforcing_failure_percentage_local_origin": 7, "failure_percentage_minimum_hosts": 8, "failure_percentage_request_volume": 9,
		"enforcing_local_origin_success_rate": 10, "consecutive_local_origin_failure": 11, "enforcing_consecutive_local_origin_failure": 12, "consecutive_gateway_failure": 13, "enforcing_consecutive_gateway_failure": 14,
		"consecutive_5xx": 15, "enforcing_consecutive_5xx": 16, "max_ejection_percent": 17, "interval": "18s", "base_ejection_time": "19s", "max_ejection_time": "20s", "max_ejection_time_jitter": "21s",
		"always_eject_one_host": true, "successful_active_health_check_uneject_host": false}`)
	if err != nil {
		t.Fatal(err)
	}
	want := resilience.Outlier{
		SplitLocalOrigin: true, EnforcingSuccessRate: 1, SuccessRateMinimumHosts: 2, SuccessRateRequestVolume: 3, SuccessRateStdevFactor: 4,
		FailurePercentageThreshold: 5, EnforcingFailurePercentage: 6, EnforcingFailurePercentageLocalOrigin: 7, FailurePercentageMinimumHosts: 8, FailurePercentageRequestVolume: 9,
		EnforcingLocalOriginSuccessRate: 10, ConsecutiveLocalOriginFailure: 11, EnforcingConsecutiveLocalOriginFailure: 12, ConsecutiveGatewayFailure: 13, EnforcingConsecutiveGatewayFailure: 14,
		Consecutive5xx: 15, EnforcingConsecutive5xx: 16, MaxEjectionPercent: 17, Interval: 18 * time.Second, BaseEjectionTime: 19 * time.Second, MaxEjectionTime: 20 * time.Second, MaxEjectionTimeJitter: 21 * time.Second,
		AlwaysEjectOneEndpoint: true, KeepWhenChecked: true,
	}
	if *c.Outlier != want {
		t.Errorf("%+v\nwant %+v", *c.Outlier, want)
	}
	// Each kind alone keeps the detection; without any there is none.
	const none = `"enforcing_success_rate": 0, "enforcing_consecutive_5xx": 0, "split_external_local_origin_errors": true, "enforcing_consecutive_local_origin_failure": 0, "enforcing_local_origin_success_rate": 0`
	for _, fields := range []string{"", `, "enforcing_consecutive_gateway_failure": 1`, `, "enforcing_failure_percentage": 1`, `, "enforcing_failure_percentage_local_origin": 1`} {
		c, err := oneCluster(t, eds+`, "outlier_detection": {`+none+fields+`}`)
		if err != nil || (c.Outlier == nil) != (fields == "") {
			t.Errorf("%s: %+v, %v", fields, c, err)
		}
	}
}
