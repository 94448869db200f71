package compile

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// oneRoute compiles a route configuration with one virtual host of one route.
// host is added to the virtual host.
func oneRoute(t *testing.T, route, host string) (*snapshot.Route, error) {
	t.Helper()
	if host != "" {
		host = ", " + host
	}
	name, rc, err := RouteConfig(routesOf(t, fmt.Sprintf(`{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [%s]%s}]}`, route, host)))
	if name != "r" {
		t.Errorf("name %q", name)
	}
	if err != nil {
		return nil, err
	}
	return &rc.VirtualHosts[0].Routes[0], nil
}

// toCluster is a route with the action's further fields.
func toCluster(fields string) string {
	if fields != "" {
		fields = ", " + fields
	}
	return `{"match": {"prefix": "/"}, "route": {"cluster": "c"` + fields + `}}`
}

func requirePath(t *testing.T, err error, path string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want an *Error at %s", err, path)
	}
	if e.Path != path {
		t.Errorf("path %q, want %q (%v)", e.Path, path, err)
	}
}

func TestRouteErrorsNameTheField(t *testing.T) {
	const v, r = "virtual_hosts[0]", "virtual_hosts[0].routes[0]"
	for _, tt := range []struct{ route, path string }{
		{`{"match": {"prefix": "/"}, "route": {"cluster_header": "x"}}`, r + ".route.cluster_header"},
		{`{"match": {"prefix": "/"}, "redirect": {}}`, r + ".redirect"},
		{`{"match": {"prefix": "/"}, "direct_response": {"status": 200}}`, r + ".direct_response"},
		{`{"match": {"prefix": "/"}, "non_forwarding_action": {}}`, r + ".non_forwarding_action"},
		{`{"match": {"prefix": "/"}}`, r},
		{`{"route": {"cluster": "c"}}`, r + ".match"},
		{`{"match": {}, "route": {"cluster": "c"}}`, r + ".match"},
		{`{"match": {"path_separated_prefix": "/a/"}, "route": {"cluster": "c"}}`, r + ".match.path_separated_prefix"},
		{`{"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "c"}}`, r + ".match.safe_regex.regex"},
		{`{"match": {"safe_regex": {}}, "route": {"cluster": "c"}}`, r + ".match.safe_regex.regex"},
		{`{"match": {"connect_matcher": {}}, "route": {"cluster": "c"}}`, r + ".match.connect_matcher"},
		{`{"match": {"prefix": "/", "headers": [{"name": "a"}, {"exact_match": "x"}]}, "route": {"cluster": "c"}}`, r + ".match.headers[1].name"},
		{`{"match": {"prefix": "/", "headers": [{"name": "a", "string_match": {"prefix": ""}}]}, "route": {"cluster": "c"}}`, r + ".match.headers[0].string_match.prefix"},
		{`{"match": {"prefix": "/", "headers": [{"name": "a", "string_match": {}}]}, "route": {"cluster": "c"}}`, r + ".match.headers[0].string_match"},
		{`{"match": {"prefix": "/", "headers": [{"name": "a", "suffix_match": ""}]}, "route": {"cluster": "c"}}`, r + ".match.headers[0].suffix_match"},
		{`{"match": {"prefix": "/", "headers": [{"name": "a", "safe_regex_match": {"regex": "["}}]}, "route": {"cluster": "c"}}`, r + ".match.headers[0].safe_regex_match.regex"},
		{`{"match": {"prefix": "/", "query_parameters": [{"present_match": true}]}, "route": {"cluster": "c"}}`, r + ".match.query_parameters[0].name"},
		{`{"match": {"prefix": "/", "query_parameters": [{"name": "q", "string_match": {"contains": ""}}]}, "route": {"cluster": "c"}}`, r + ".match.query_parameters[0].string_match.contains"},
		{`{"match": {"prefix": "/", "runtime_fraction": {"runtime_key": "k"}}, "route": {"cluster": "c"}}`, r + ".match.runtime_fraction.default_value"},
		{`{"match": {"prefix": "/", "runtime_fraction": {"default_value": {"denominator": 7}}}, "route": {"cluster": "c"}}`, r + ".match.runtime_fraction.default_value.denominator"},
		{`{"match": {"prefix": "/"}, "route": {}}`, r + ".route"},
		{`{"match": {"prefix": "/"}, "route": {"cluster": ""}}`, r + ".route.cluster"},
		{`{"match": {"prefix": "/"}, "route": {"weighted_clusters": {}}}`, r + ".route.weighted_clusters.clusters"},
		{`{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 0}]}}}`, r + ".route.weighted_clusters.clusters"},
		{`{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a"}]}}}`, r + ".route.weighted_clusters.clusters[0].weight"},
		{`{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"weight": 1}]}}}`, r + ".route.weighted_clusters.clusters[1].name"},
		{`{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 4294967295}, {"name": "b", "weight": 1}]}}}`, r + ".route.weighted_clusters.clusters"},
		{`{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1, "request_headers_to_remove": ["x"]}]}}}`, r + ".route.weighted_clusters.clusters[0].request_headers_to_remove"},
		{toCluster(`"timeout": "-1s"`), r + ".route.timeout"},
		{toCluster(`"timeout": "5s", "max_grpc_timeout": "0s"`), r + ".route.max_grpc_timeout"},
		{toCluster(`"max_stream_duration": {"max_stream_duration": "-1s"}`), r + ".route.max_stream_duration.max_stream_duration"},
		{toCluster(`"max_stream_duration": {"max_stream_duration": "1s", "grpc_timeout_header_max": "2s"}`), r + ".route.max_stream_duration.grpc_timeout_header_max"},
		{toCluster(`"max_stream_duration": {"grpc_timeout_header_max": "2s"}`), r + ".route.max_stream_duration.grpc_timeout_header_max"},
		{toCluster(`"max_stream_duration": {"grpc_timeout_header_offset": "2s"}`), r + ".route.max_stream_duration.grpc_timeout_header_offset"},
		{toCluster(`"upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "connect"}]`), r + ".route.upgrade_configs[1].upgrade_type"},
		{toCluster(`"upgrade_configs": [{"upgrade_type": "websocket", "enabled": false}]`), r + ".route.upgrade_configs[0].enabled"},
		{toCluster(`"prefix_rewrite": "/x"`), r + ".route.prefix_rewrite"},
		{toCluster(`"priority": "HIGH"`), r + ".route.priority"},
		{toCluster(`"hash_policy": [{}]`), r + ".route.hash_policy"},
		{toCluster(`"request_mirror_policies": [{}]`), r + ".route.request_mirror_policies"},
		{toCluster(`"retry_policy": {"retry_priority": {}}`), r + ".route.retry_policy.retry_priority"},
		{toCluster(`"retry_policy": {"per_try_timeout": "-1s"}`), r + ".route.retry_policy.per_try_timeout"},
		{toCluster(`"retry_policy": {"retriable_status_codes": [503, 99]}`), r + ".route.retry_policy.retriable_status_codes[1]"},
		{toCluster(`"retry_policy": {"host_selection_retry_max_attempts": -1}`), r + ".route.retry_policy.host_selection_retry_max_attempts"},
		{toCluster(`"retry_policy": {"retry_host_predicate": [{"name": "envoy.retry_host_predicates.omit_canary_hosts"}]}`), r + ".route.retry_policy.retry_host_predicate[0]"},
		{toCluster(`"retry_policy": {"retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate"}}]}`), r + ".route.retry_policy.retry_host_predicate[0]"},
		{toCluster(`"retry_policy": {"retry_back_off": {}}`), r + ".route.retry_policy.retry_back_off.base_interval"},
		{toCluster(`"retry_policy": {"retry_back_off": {"base_interval": "0s"}}`), r + ".route.retry_policy.retry_back_off.base_interval"},
		{toCluster(`"retry_policy": {"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}}`), r + ".route.retry_policy.retry_back_off.max_interval"},
		{toCluster(`"retry_policy": {"rate_limited_retry_back_off": {}}`), r + ".route.retry_policy.rate_limited_retry_back_off.reset_headers"},
		{toCluster(`"retry_policy": {"rate_limited_retry_back_off": {"reset_headers": [{"name": "a", "format": 9}]}}`), r + ".route.retry_policy.rate_limited_retry_back_off.reset_headers[0].format"},
		{toCluster(`"retry_policy": {"retriable_headers": [{}]}`), r + ".route.retry_policy.retriable_headers[0].name"},
		{toCluster("") + `, {"match": {"prefix": "/"}, "route": {"cluster": "c"}, "typed_per_filter_config": {"f": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}}}`, v + `.routes[1].typed_per_filter_config["f"]`},
	} {
		_, err := oneRoute(t, tt.route, "")
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
	for _, tt := range []struct{ config, path string }{
		{`{"virtual_hosts": [{"domains": ["*"]}]}`, "name"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"]}, {}]}`, "virtual_hosts[1].domains"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"]}, {"domains": ["A"]}]}`, "virtual_hosts[1].domains[0]"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "require_tls": "ALL"}]}`, "virtual_hosts[0].require_tls"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "retry_policy": {"refresh_cluster_on_retry": true}}]}`, "virtual_hosts[0].retry_policy.refresh_cluster_on_retry"},
		{`{"name": "x", "ignore_port_in_host_matching": true}`, "ignore_port_in_host_matching"},
	} {
		_, _, err := RouteConfig(routesOf(t, tt.config))
		t.Run(tt.config, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
	_, _, err := RouteConfig(routesOf(t, `{"name": "x", "virtual_hosts": [{"domains": ["a"]}, {"domains": ["b", "A"]}]}`))
	if err == nil || !strings.HasPrefix(err.Error(), `RouteConfiguration "x": virtual_hosts[1].domains[1]: `) {
		t.Errorf("a domain that occurs twice: %v", err)
	}
}

func TestRouteTimeouts(t *testing.T) {
	for _, tt := range []struct {
		action          string
		timeout, stream time.Duration
	}{
		{``, 15 * time.Second, 0},
		{`"timeout": "0s"`, 0, 0},
		{`"timeout": "0s", "max_grpc_timeout": "0s"`, 0, 0},
		{`"timeout": "0.25s", "max_grpc_timeout": "0.25s"`, 250 * time.Millisecond, 0},
		{`"max_grpc_timeout": "15s"`, 15 * time.Second, 0},
		{`"max_stream_duration": {}`, 15 * time.Second, 0},
		{`"max_stream_duration": {"max_stream_duration": "3s"}`, 15 * time.Second, 3 * time.Second},
		{`"max_stream_duration": {"max_stream_duration": "3s", "grpc_timeout_header_max": "3s"}`, 15 * time.Second, 3 * time.Second},
		{`"max_stream_duration": {"max_stream_duration": "0s"}`, 15 * time.Second, math.MaxInt64},
		{`"max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"}`, 15 * time.Second, math.MaxInt64},
		{`"timeout": "315576000000s"`, math.MaxInt64, 0},
	} {
		r, err := oneRoute(t, toCluster(tt.action), "")
		if err != nil {
			t.Errorf("%s: %v", tt.action, err)
			continue
		}
		if r.Timeout != tt.timeout || r.MaxStreamDuration != tt.stream {
			t.Errorf("%s: timeout %v and stream duration %v, want %v and %v", tt.action, r.Timeout, r.MaxStreamDuration, tt.timeout, tt.stream)
		}
	}
}

func TestRouteRetries(t *testing.T) {
	all := `"retry_policy": {"retry_on": "5xx,reset,no-such-condition", "num_retries": 4, "per_try_timeout": "2s",
		"retriable_status_codes": [418], "host_selection_retry_max_attempts": 5,
		"retry_host_predicate": [{"name": "p", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
		"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
		"rate_limited_retry_back_off": {"reset_headers": [{"name": "Retry-After"}, {"name": "x", "format": "UNIX_TIMESTAMP"}], "max_interval": "9s"},
		"retriable_headers": [{"name": "x-retry", "present_match": true}], "retriable_request_headers": [{"name": ":method", "exact_match": "GET"}]}`
	r, err := oneRoute(t, toCluster(all), `"retry_policy": {"retry_on": "cancelled"}`)
	if err != nil {
		t.Fatal(err)
	}
	p := r.Retry
	if p.On != resilience.On5xx|resilience.OnReset || p.NumRetries != 4 || p.PerTryTimeout != 2*time.Second || len(p.StatusCodes) != 1 ||
		!p.AvoidPrevious || p.SelectAttempts != 5 || p.BaseInterval != 100*time.Millisecond || p.MaxInterval != time.Second {
		t.Errorf("%+v", p)
	}
	if l := p.RateLimited; len(l.Headers) != 2 || l.Headers[0].Name.String() != "retry-after" || l.Headers[1].Format != resilience.ResetUnixTimestamp || l.MaxInterval != 9*time.Second {
		t.Errorf("%+v", l)
	}
	if !p.Retriable(&resilience.Outcome{Status: 500, GRPC: -1}) || !p.AllowsRequest(&routing.Request{Method: "GET"}) || p.AllowsRequest(&routing.Request{Method: "POST"}) {
		t.Error("the policy does not decide as it says")
	}
	if h := p.Headers[0]; h.Name.String() != "x-retry" || !h.Present {
		t.Errorf("%+v", h)
	}

	for _, tt := range []struct {
		name, action, host string
		want               *resilience.RetryPolicy
	}{
		{"none", ``, ``, nil},
		{"inherited", ``, `"retry_policy": {"retry_on": "5xx"}`, policyOf(resilience.On5xx, nil)},
		{"the route's own, whole", `"retry_policy": {"retry_on": "reset"}`, `"retry_policy": {"retry_on": "5xx", "num_retries": 7}`, policyOf(resilience.OnReset, nil)},
		{"the route's own has no condition", `"retry_policy": {"num_retries": 3}`, `"retry_policy": {"retry_on": "5xx"}`, nil},
		{"no retry", `"retry_policy": {"retry_on": "5xx", "num_retries": 0}`, ``, nil},
		{"a base interval alone", `"retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "1s"}}`, ``,
			policyOf(resilience.On5xx, func(p *resilience.RetryPolicy) { p.BaseInterval, p.MaxInterval = time.Second, 10*time.Second })},
		{"less than a millisecond", `"retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "0.0001s", "max_interval": "0.0002s"}}`, ``,
			policyOf(resilience.On5xx, func(p *resilience.RetryPolicy) { p.BaseInterval, p.MaxInterval = time.Millisecond, time.Millisecond })},
	} {
		r, err := oneRoute(t, toCluster(tt.action), tt.host)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if fmt.Sprintf("%+v", r.Retry) != fmt.Sprintf("%+v", tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, r.Retry, tt.want)
		}
	}
}

func policyOf(on resilience.RetryOn, change func(*resilience.RetryPolicy)) *resilience.RetryPolicy {
	p := resilience.DefaultRetryPolicy(on)
	if change != nil {
		change(&p)
	}
	return &p
}

func TestRouteMatches(t *testing.T) {
	get := func(path string, header map[string][]string) *routing.Request {
		path, query, _ := strings.Cut(path, "?")
		return &routing.Request{Method: "GET", Authority: "a", Path: path, RawQuery: query, Header: header}
	}
	for _, tt := range []struct {
		match   string
		request *routing.Request
		want    bool
	}{
		{`"prefix": "/a"`, get("/ab", nil), true},
		{`"prefix": "/a"`, get("/A", nil), false},
		{`"prefix": "/a", "case_sensitive": false`, get("/A", nil), true},
		{`"prefix": "/a", "case_sensitive": true`, get("/A", nil), false},
		{`"path": "/a"`, get("/a?q", nil), true},
		{`"path": "/a"`, get("/ab", nil), false},
		{`"path_separated_prefix": "/a"`, get("/a/b", nil), true},
		{`"path_separated_prefix": "/a"`, get("/ab", nil), false},
		{`"safe_regex": {"google_re2": {}, "regex": "/[ab]"}`, get("/b", nil), true},
		{`"safe_regex": {"regex": "/[ab]"}`, get("/bb", nil), false},
		{`"safe_regex": {"regex": "/a"}, "case_sensitive": false`, get("/A", nil), false},
		{`"prefix": "", "grpc": {}`, get("/a", nil), false},
		{`"prefix": "", "grpc": {}`, get("/a", map[string][]string{"Content-Type": {"application/grpc"}}), true},
		{`"prefix": "", "headers": [{"name": "X-A"}]`, get("/", map[string][]string{"X-A": {""}}), true},
		{`"prefix": "", "headers": [{"name": "X-A"}]`, get("/", nil), false},
		{`"prefix": "", "headers": [{"name": "x-a", "present_match": false}]`, get("/", nil), true},
		{`"prefix": "", "headers": [{"name": "x-a", "exact_match": "b"}]`, get("/", map[string][]string{"X-A": {"b"}}), true},
		{`"prefix": "", "headers": [{"name": "x-a", "exact_match": "b", "invert_match": true}]`, get("/", map[string][]string{"X-A": {"b"}}), false},
		{`"prefix": "", "headers": [{"name": "x-a", "exact_match": "b", "invert_match": true, "treat_missing_header_as_empty": true}]`, get("/", nil), true},
		{`"prefix": "", "headers": [{"name": "x-a", "prefix_match": "b"}, {"name": "x-a", "suffix_match": "d"}, {"name": "x-a", "contains_match": "c"}]`, get("/", map[string][]string{"X-A": {"bcd"}}), true},
		{`"prefix": "", "headers": [{"name": "x-a", "safe_regex_match": {"regex": "b+"}}]`, get("/", map[string][]string{"X-A": {"bb"}}), true},
		{`"prefix": "", "headers": [{"name": "x-a", "range_match": {"start": -1, "end": 3}}]`, get("/", map[string][]string{"X-A": {"3"}}), false},
		{`"prefix": "", "headers": [{"name": "x-a", "range_match": {"start": -1, "end": 3}}]`, get("/", map[string][]string{"X-A": {"2"}}), true},
		{`"prefix": "", "headers": [{"name": "x-a", "string_match": {"exact": "B", "ignore_case": true}}]`, get("/", map[string][]string{"X-A": {"b"}}), true},
		{`"prefix": "", "headers": [{"name": "x-a", "string_match": {"suffix": "B"}}]`, get("/", map[string][]string{"X-A": {"ab"}}), false},
		{`"prefix": "", "headers": [{"name": "x-a", "string_match": {"contains": "B", "ignore_case": true}}]`, get("/", map[string][]string{"X-A": {"abc"}}), true},
		{`"prefix": "", "headers": [{"name": "x-a", "string_match": {"safe_regex": {"regex": "a.c"}}}]`, get("/", map[string][]string{"X-A": {"abc"}}), true},
		{`"prefix": "", "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]`, get("/", nil), true},
		{`"prefix": "", "query_parameters": [{"name": "q"}]`, get("/?q=1", nil), true},
		{`"prefix": "", "query_parameters": [{"name": "q", "present_match": true}]`, get("/?p=1", nil), false},
		{`"prefix": "", "query_parameters": [{"name": "q", "string_match": {"prefix": "a"}}]`, get("/?q=ab", nil), true},
		{`"prefix": "", "runtime_fraction": {"runtime_key": "k", "default_value": {"numerator": 0}}`, get("/", nil), false},
		{`"prefix": "", "runtime_fraction": {"default_value": {"numerator": 1, "denominator": "MILLION"}}`, get("/", nil), true},
		{`"prefix": "", "runtime_fraction": {"default_value": {"numerator": 4294967295}}`, get("/", nil), true},
	} {
		r, err := oneRoute(t, `{"match": {`+tt.match+`}, "route": {"cluster": "c"}}`, "")
		if err != nil {
			t.Errorf("%s: %v", tt.match, err)
			continue
		}
		if got := r.Match.Matches(tt.request, 0); got != tt.want {
			t.Errorf("%s: %v for %s %v, want %v", tt.match, got, tt.request.Path, tt.request.Header, tt.want)
		}
	}
	for denominator, want := range map[string]uint32{"HUNDRED": 30_000, "TEN_THOUSAND": 300, "MILLION": 3} {
		r, err := oneRoute(t, `{"match": {"prefix": "", "runtime_fraction": {"default_value": {"numerator": 3, "denominator": "`+denominator+`"}}}, "route": {"cluster": "c"}}`, "")
		if err != nil || r.Match.Fraction.PerMillion != want {
			t.Errorf("3 of %s is %+v, %v, want %d", denominator, r, err, want)
		}
	}
}

func TestRouteDestinations(t *testing.T) {
	r, err := oneRoute(t, `{"name": "n", "match": {"prefix": "/"}, "route": {"weighted_clusters": {"total_weight": 7, "clusters": [
		{"name": "a", "weight": 1}, {"name": "none", "weight": 0}, {"name": "b", "weight": 3}]}}}`, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(r.Name, r.Clusters.Clusters); got != "n[{a 1} {b 3}]" {
		t.Error(got)
	}
	count := map[string]int{}
	for i := range uint64(4) {
		count[r.Clusters.Clusters[r.Clusters.Choose(i<<62)].Name]++
	}
	if count["a"] != 1 || count["b"] != 3 {
		t.Errorf("four draws, evenly spread, chose %v", count)
	}
	if r, err = oneRoute(t, toCluster(""), ""); err != nil || r.Clusters.Clusters[r.Clusters.Choose(5)].Name != "c" {
		t.Errorf("one cluster: %+v, %v", r, err)
	}
}

// What Istio and others send beside the rules must pass.
func TestRouteHarmlessFieldsPass(t *testing.T) {
	_, rc, err := RouteConfig(routesOf(t, `{"name": "outbound|80||x", "validate_clusters": false, "metadata": {}, "max_direct_response_body_size_bytes": 1,
		"typed_per_filter_config": {"a": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}},
		"virtual_hosts": [{"name": "x:80", "domains": ["x", "x:80"], "include_request_attempt_count": true, "routes": [
			{"name": "r", "match": {"prefix": "/"}, "decorator": {"operation": "x"}, "metadata": {"filter_metadata": {"istio": {"config": "c"}}}, "tracing": {}, "stat_prefix": "s",
			"typed_per_filter_config": {
				"envoy.filters.http.ratelimit": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "is_optional": true, "config": {"@type": "type.googleapis.com/no.such.Filter"}},
				"istio.stats": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "type.googleapis.com/stats.PluginConfig", "value": {}}},
			"route": {"cluster": "c", "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR", "upgrade_configs": [{"upgrade_type": "websocket", "enabled": true}]}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if vh := rc.Lookup("X:80"); vh == nil || vh.Name != "x:80" {
		t.Errorf("virtual host %+v", vh)
	}
	if rc.Lookup("y") != nil {
		t.Error("a virtual host for another domain")
	}
}
