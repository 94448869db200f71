package compile

import (
	"reflect"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

const everyCheck = `"timeout": "1s", "interval": "5s", "unhealthy_threshold": 3, "healthy_threshold": 2`

// httpCheck is a health check with further fields of the HTTP part.
func httpCheck(fields string) string {
	if fields != "" {
		fields = ", " + fields
	}
	return `{` + everyCheck + `, "http_health_check": {"path": "/healthz"` + fields + `}}`
}

func TestHealthChecks(t *testing.T) {
	base := resilience.HealthCheck{
		Timeout: time.Second, Interval: 5 * time.Second, UnhealthyInterval: 5 * time.Second, NoTrafficInterval: time.Minute,
		UnhealthyThreshold: 3, HealthyThreshold: 2,
	}
	for _, tt := range []struct {
		check string
		want  func(h *resilience.HealthCheck)
	}{
		{httpCheck(""), func(h *resilience.HealthCheck) {
			h.Path, h.Host, h.Method, h.Expected = "/healthz", "c", "GET", []resilience.StatusRange{{Start: 200, End: 201}}
		}},
		{`{"name": "x", "event_log_path": "/x", "always_log_health_check_failures": true, "timeout": "1s", "interval": "5s", "unhealthy_threshold": 3, "healthy_threshold": 2,
			"interval_jitter": "2s", "initial_jitter": "3s", "no_traffic_interval": "9s", "unhealthy_interval": "8s", "alt_port": 9000, "reuse_connection": true,
			"http_health_check": {"host": "h", "path": "/", "method": "HEAD", "codec_client_type": "HTTP2", "expected_statuses": [{"start": 100, "end": 600}], "retriable_statuses": [{"start": 500, "end": 501}]}}`,
			func(h *resilience.HealthCheck) {
				h.IntervalJitter, h.InitialJitter, h.NoTrafficInterval, h.UnhealthyInterval, h.Port = 2*time.Second, 3*time.Second, 9*time.Second, 8*time.Second, 9000
				h.Path, h.Host, h.Method, h.HTTP2 = "/", "h", "HEAD", true
				h.Expected, h.Retriable = []resilience.StatusRange{{Start: 100, End: 600}}, []resilience.StatusRange{{Start: 500, End: 501}}
			}},
		{`{` + everyCheck + `, "grpc_health_check": {"service_name": "s"}}`, func(h *resilience.HealthCheck) {
			h.Kind, h.Service, h.Authority, h.HTTP2 = resilience.HealthGRPC, "s", "c", true
		}},
		{`{` + everyCheck + `, "grpc_health_check": {"authority": "a"}}`, func(h *resilience.HealthCheck) {
			h.Kind, h.Authority, h.HTTP2 = resilience.HealthGRPC, "a", true
		}},
		{`{` + everyCheck + `, "tcp_health_check": {}}`, func(h *resilience.HealthCheck) { h.Kind = resilience.HealthTCP }},
	} {
		want := base
		tt.want(&want)
		c, err := oneCluster(t, eds+`, "health_checks": [`+tt.check+`]`)
		if err != nil {
			t.Errorf("%s: %v", tt.check, err)
		} else if !reflect.DeepEqual(c.HealthChecks, []resilience.HealthCheck{want}) {
			t.Errorf("%+v\nwant %+v", c.HealthChecks, want)
		}
	}
	c, err := oneCluster(t, eds+`, "health_checks": [`+httpCheck(`"request_headers_to_add": [{"header": {"key": "X-A", "value": "1"}}], "request_headers_to_remove": ["x-b"]`)+`]`)
	if err != nil || len(c.HealthChecks[0].Headers.Set) != 1 || len(c.HealthChecks[0].Headers.Remove) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = oneCluster(t, eds+`, "health_checks": [{`+everyCheck+`, "grpc_health_check": {"initial_metadata": [{"header": {"key": "x-a", "value": "1"}}]}}]`); err != nil || len(c.HealthChecks[0].Headers.Set) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestHealthCheckErrorsNameTheField(t *testing.T) {
	const tcp = `, "tcp_health_check": {}`
	for _, tt := range []struct{ check, path string }{
		{`{}`, ".timeout"},
		{`{"timeout": "0s"}`, ".timeout"},
		{`{"timeout": "1s"}`, ".interval"},
		{`{"timeout": "1s", "interval": "-1s"}`, ".interval"},
		{`{"timeout": "1s", "interval": "1s", "healthy_threshold": 1}`, ".unhealthy_threshold"},
		{`{"timeout": "1s", "interval": "1s", "unhealthy_threshold": 1}`, ".healthy_threshold"},
		{`{"timeout": "1s", "interval": "1s", "unhealthy_threshold": 0}`, ".unhealthy_threshold"},
		{`{` + everyCheck + `}`, ""},
		{`{` + everyCheck + `, "custom_health_check": {"name": "x"}}`, ".custom_health_check"},
		{`{` + everyCheck + tcp + `, "interval_jitter_percent": 1}`, ".interval_jitter_percent"},
		{`{` + everyCheck + tcp + `, "interval_jitter": "-1s"}`, ".interval_jitter"},
		{`{` + everyCheck + tcp + `, "initial_jitter": "-1s"}`, ".initial_jitter"},
		{`{` + everyCheck + tcp + `, "no_traffic_interval": "0s"}`, ".no_traffic_interval"},
		{`{` + everyCheck + tcp + `, "no_traffic_healthy_interval": "1s"}`, ".no_traffic_healthy_interval"},
		{`{` + everyCheck + tcp + `, "unhealthy_interval": "0s"}`, ".unhealthy_interval"},
		{`{` + everyCheck + tcp + `, "unhealthy_edge_interval": "1s"}`, ".unhealthy_edge_interval"},
		{`{` + everyCheck + tcp + `, "alt_port": 65536}`, ".alt_port"},
		{`{` + everyCheck + tcp + `, "reuse_connection": false}`, ".reuse_connection"},
		{`{` + everyCheck + tcp + `, "tls_options": {}}`, ".tls_options"},
		{`{` + everyCheck + tcp + `, "transport_socket_match_criteria": {}}`, ".transport_socket_match_criteria"},
		{`{` + everyCheck + `, "tcp_health_check": {"send": {"text": "00"}}}`, ".tcp_health_check.send"},
		{`{` + everyCheck + `, "http_health_check": {}}`, ".http_health_check.path"},
		{`{` + everyCheck + `, "http_health_check": {"path": "x"}}`, ".http_health_check.path"},
		{`{` + everyCheck + `, "http_health_check": {"path": "/a b"}}`, ".http_health_check.path"},
		{httpCheck(`"host": "a\r\nb"`), ".http_health_check.host"},
		{httpCheck(`"method": "CONNECT"`), ".http_health_check.method"},
		{httpCheck(`"method": 77`), ".http_health_check.method"},
		{httpCheck(`"codec_client_type": "HTTP3"`), ".http_health_check.codec_client_type"},
		{httpCheck(`"send": {"text": "00"}`), ".http_health_check.send"},
		{httpCheck(`"receive": [{"text": "00"}]`), ".http_health_check.receive"},
		{httpCheck(`"service_name_matcher": {"exact": "x"}`), ".http_health_check.service_name_matcher"},
		{httpCheck(`"request_headers_to_add": [{"header": {"key": ":path", "value": "x"}}]`), ".http_health_check.request_headers_to_add[0].header.key"},
		{httpCheck(`"request_headers_to_remove": ["host"]`), ".http_health_check.request_headers_to_remove[0]"},
		{httpCheck(`"expected_statuses": [{"start": 99, "end": 200}]`), ".http_health_check.expected_statuses[0].start"},
		{httpCheck(`"expected_statuses": [{"start": 200, "end": 601}]`), ".http_health_check.expected_statuses[0].end"},
		{httpCheck(`"retriable_statuses": [{"start": 200, "end": 200}]`), ".http_health_check.retriable_statuses[0]"},
		{`{` + everyCheck + `, "grpc_health_check": {"authority": "a b"}}`, ".grpc_health_check.authority"},
	} {
		_, err := oneCluster(t, eds+`, "health_checks": [`+tt.check+`]`)
		t.Run(tt.check, func(t *testing.T) { requirePath(t, err, "health_checks[0]"+tt.path) })
	}
	_, err := oneCluster(t, eds+`, "health_checks": [`+httpCheck("")+`, `+httpCheck("")+`]`)
	requirePath(t, err, "health_checks[1]")
	_, err = oneCluster(t, eds+`, "common_lb_config": {"ignore_new_hosts_until_first_hc": true}, "health_checks": [`+httpCheck("")+`]`)
	requirePath(t, err, "common_lb_config.ignore_new_hosts_until_first_hc")
	if _, err = oneCluster(t, eds+`, "common_lb_config": {"ignore_new_hosts_until_first_hc": true}`); err != nil {
		t.Error(err)
	}
}
