package compile

import (
	"errors"
	"fmt"
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

// withRoute is a route to a cluster with further fields of its own.
func withRoute(fields string) string {
	return `{"match": {"prefix": "/"}, "route": {"cluster": "c"}, ` + fields + `}`
}

func weights(clusters string) string {
	return `{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [` + clusters + `]}}}`
}

func templated(path string) string {
	return `{"name": "t", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": "` + path + `"}}`
}

func templateRewriteOf(path string) string {
	return `{"name": "t", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig", "path_template_rewrite": "` + path + `"}}`
}

// claimed is a route for requests with a claim.
func claimed(condition string) string {
	return `{"match": {"prefix": "/", "dynamic_metadata": [{` + condition + `}]}, "route": {"cluster": "c"}}`
}

const (
	ofToken = `"filter": "envoy.filters.http.jwt_authn", `
	groups  = `"path": [{"key": "payload"}, {"key": "groups"}]`
)

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
		{`{"match": {"prefix": "/"}, "route": {"cluster_header": ""}}`, r + ".route.cluster_header"},
		{`{"match": {"prefix": "/"}, "route": {"cluster_header": "a b"}}`, r + ".route.cluster_header"},
		{`{"match": {"prefix": "/"}, "route": {"cluster_specifier_plugin": "x"}}`, r + ".route.cluster_specifier_plugin"},
		{`{"match": {"prefix": "/"}, "route": {"inline_cluster_specifier_plugin": {}}}`, r + ".route.inline_cluster_specifier_plugin"},
		{`{"match": {"prefix": "/"}, "route": {"cluster": "c", "cluster_not_found_response_code": 9}}`, r + ".route.cluster_not_found_response_code"},
		{`{"match": {"prefix": "/"}, "redirect": {"response_code": 9}}`, r + ".redirect.response_code"},
		{`{"match": {"prefix": "/"}, "redirect": {"port_redirect": 65536}}`, r + ".redirect.port_redirect"},
		{`{"match": {"prefix": "/"}, "redirect": {"host_redirect": "a\nb"}}`, r + ".redirect"},
		{`{"match": {"prefix": "/"}, "redirect": {"regex_rewrite": {}}}`, r + ".redirect.regex_rewrite.pattern.regex"},
		{`{"match": {"prefix": "/"}, "redirect": {"path_rewrite": "%NO_SUCH%"}}`, r + ".redirect.path_rewrite"},
		{`{"match": {"prefix": "/"}, "direct_response": {"status": 99}}`, r + ".direct_response.status"},
		{`{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"filename": "/etc/passwd"}}}`, r + ".direct_response.body"},
		{`{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"environment_variable": "HOME"}}}`, r + ".direct_response.body.environment_variable"},
		{`{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "` + strings.Repeat("x", 4097) + `"}}}`, r + ".direct_response.body"},
		{`{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body_format": {}}}`, r + ".direct_response.body_format"},
		{`{"match": {"prefix": "/"}, "filter_action": {}}`, r + ".filter_action"},
		{`{"match": {"prefix": "/"}, "non_forwarding_action": {}}`, r + ".non_forwarding_action"},
		{`{"match": {"prefix": "/"}}`, r},
		{`{"route": {"cluster": "c"}}`, r + ".match"},
		{`{"match": {}, "route": {"cluster": "c"}}`, r + ".match"},
		{`{"match": {"path_separated_prefix": "/a/"}, "route": {"cluster": "c"}}`, r + ".match.path_separated_prefix"},
		{`{"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "c"}}`, r + ".match.safe_regex.regex"},
		{`{"match": {"safe_regex": {}}, "route": {"cluster": "c"}}`, r + ".match.safe_regex.regex"},
		{`{"match": {"connect_matcher": {}}, "route": {"cluster": "c"}}`, r + ".match.connect_matcher"},
		{`{"match": {"prefix": "/", "cookies": [{}]}, "route": {"cluster": "c"}}`, r + ".match.cookies[0].name"},
		{`{"match": {"prefix": "/", "cookies": [{"name": "a"}]}, "route": {"cluster": "c"}}`, r + ".match.cookies[0].string_match"},
		{`{"match": {"prefix": "/", "tls_context": {}}, "route": {"cluster": "c"}}`, r + ".match.tls_context"},
		{`{"match": {"prefix": "/", "filter_state": [{}]}, "route": {"cluster": "c"}}`, r + ".match.filter_state"},
		{`{"match": {"path_match_policy": {}}, "route": {"cluster": "c"}}`, r + ".match.path_match_policy.typed_config"},
		{`{"match": {"path_match_policy": ` + templated("/{a") + `}, "route": {"cluster": "c"}}`, r + ".match.path_match_policy.typed_config.path_template"},
		{claimed(`"filter": "envoy.filters.http.lua"`), r + ".match.dynamic_metadata[0].filter"},
		{claimed(ofToken + `"path": [{"key": "payload"}]`), r + ".match.dynamic_metadata[0].path"},
		{claimed(ofToken + `"path": [{"key": "header"}, {"key": "alg"}]`), r + ".match.dynamic_metadata[0].path"},
		{claimed(ofToken + `"path": [{"key": "payload"}, {"key": ""}]`), r + ".match.dynamic_metadata[0].path[1].key"},
		{claimed(ofToken + groups), r + ".match.dynamic_metadata[0].value"},
		{claimed(ofToken + groups + `, "value": {"bool_match": true}`), r + ".match.dynamic_metadata[0].value"},
		{claimed(ofToken + groups + `, "value": {"present_match": false}`), r + ".match.dynamic_metadata[0].value.present_match"},
		{claimed(ofToken + groups + `, "value": {"string_match": {"prefix": ""}}`), r + ".match.dynamic_metadata[0].value.prefix"},
		{claimed(ofToken + groups + `, "value": {"list_match": {"one_of": {"present_match": true}}}`), r + ".match.dynamic_metadata[0].value.list_match.one_of"},
		{claimed(ofToken + groups + `, "value": {"or_match": {"value_matchers": [{"string_match": {"exact": "a"}}, {"string_match": {"exact": "b"}}]}}`), r + ".match.dynamic_metadata[0].value.or_match.value_matchers[1]"},
		{claimed(ofToken + groups + `, "value": {"or_match": {"value_matchers": [{"present_match": true}]}}`), r + ".match.dynamic_metadata[0].value.or_match.value_matchers[0]"},
		{claimed(ofToken + groups + `, "value": {"or_match": {}}`), r + ".match.dynamic_metadata[0].value.or_match.value_matchers"},
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
		{`{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1, "request_headers_to_remove": ["x", "Host"]}]}}}`, r + ".route.weighted_clusters.clusters[0].request_headers_to_remove[1]"},
		{weights(`{"name": "a", "cluster_header": "b", "weight": 1}`), r + ".route.weighted_clusters.clusters[0].cluster_header"},
		{weights(`{"cluster_header": "", "weight": 1}`), r + ".route.weighted_clusters.clusters[0].name"},
		{weights(`{"name": "a", "weight": 1, "host_rewrite_literal": "a b"}`), r + ".route.weighted_clusters.clusters[0].host_rewrite_literal"},
		{weights(`{"name": "a", "weight": 1, "metadata_match": {"filter_metadata": {"envoy.lb": {"v": 1}}}}`), r + `.route.weighted_clusters.clusters[0].metadata_match.filter_metadata["envoy.lb"].v`},
		{weights(`{"name": "a", "weight": 1, "typed_per_filter_config": {"f": {"@type": "type.googleapis.com/no.such.Filter"}}}`), r + `.route.weighted_clusters.clusters[0].typed_per_filter_config["f"]`},
		{`{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}], "header_name": "h"}}}`, r + ".route.weighted_clusters.header_name"},
		{toCluster(`"timeout": "-1s"`), r + ".route.timeout"},
		{toCluster(`"idle_timeout": "-1s"`), r + ".route.idle_timeout"},
		{toCluster(`"max_grpc_timeout": "-1s"`), r + ".route.max_grpc_timeout"},
		{toCluster(`"grpc_timeout_offset": "-1s"`), r + ".route.grpc_timeout_offset"},
		{toCluster(`"max_stream_duration": {"max_stream_duration": "-1s"}`), r + ".route.max_stream_duration.max_stream_duration"},
		{toCluster(`"max_stream_duration": {"grpc_timeout_header_max": "-2s"}`), r + ".route.max_stream_duration.grpc_timeout_header_max"},
		{toCluster(`"max_stream_duration": {"grpc_timeout_header_offset": "-2s"}`), r + ".route.max_stream_duration.grpc_timeout_header_offset"},
		{toCluster(`"metadata_match": {"filter_metadata": {"envoy.lb": {"v": true}}}`), r + `.route.metadata_match.filter_metadata["envoy.lb"].v`},
		{toCluster(`"upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "connect"}]`), r + ".route.upgrade_configs[1].upgrade_type"},
		{toCluster(`"upgrade_configs": [{"upgrade_type": "websocket", "enabled": false}]`), r + ".route.upgrade_configs[0].enabled"},
		{toCluster(`"upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "WebSocket"}]`), r + ".route.upgrade_configs[1].upgrade_type"},
		{toCluster(`"regex_rewrite": {"pattern": {"regex": "x"}, "substitution": "a\nb"}`), r + ".route.regex_rewrite.substitution"},
		{toCluster(`"prefix_rewrite": "/x", "regex_rewrite": {"pattern": {"regex": "a"}}`), r + ".route"},
		{toCluster(`"prefix_rewrite": "/x y"`), r + ".route"},
		{toCluster(`"regex_rewrite": {"pattern": {"regex": "("}}`), r + ".route.regex_rewrite"},
		{toCluster(`"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "\\2"}`), r + ".route.regex_rewrite"},
		{toCluster(`"path_rewrite": "/%REQ("`), r + ".route.path_rewrite"},
		{toCluster(`"path_rewrite": "/%UPSTREAM_HOST%"`), r + ".route"},
		{toCluster(`"path_rewrite_policy": {}`), r + ".route.path_rewrite_policy.typed_config"},
		{toCluster(`"path_rewrite_policy": ` + templateRewriteOf("/{a}")), r + ".route.path_rewrite_policy"},
		{`{"match": {"path_match_policy": ` + templated("/{a}") + `}, "route": {"cluster": "c", "path_rewrite_policy": ` + templateRewriteOf("/{b}") + `}}`, r + ".route.path_rewrite_policy.typed_config.path_template_rewrite"},
		{`{"match": {"path_match_policy": ` + templated("/{a}") + `}, "route": {"cluster": "c", "prefix_rewrite": "/"}}`, r + ".route"},
		{toCluster(`"host_rewrite_literal": "a b"`), r + ".route.host_rewrite_literal"},
		{toCluster(`"host_rewrite_header": "a b"`), r + ".route.host_rewrite_header"},
		{toCluster(`"host_rewrite_path_regex": {}`), r + ".route.host_rewrite_path_regex.pattern.regex"},
		{toCluster(`"host_rewrite": "%REQ("`), r + ".route.host_rewrite"},
		{toCluster(`"priority": 7`), r + ".route.priority"},
		{toCluster(`"hash_policy": [{}]`), r + ".route.hash_policy[0]"},
		{toCluster(`"hash_policy": [{"filter_state": {"key": "x"}}, {"header": {}}]`), r + ".route.hash_policy[1].header.header_name"},
		{toCluster(`"hash_policy": [{"header": {"header_name": "a", "regex_rewrite": {}}}]`), r + ".route.hash_policy[0].header.regex_rewrite.pattern.regex"},
		{toCluster(`"hash_policy": [{"filter_state": {"key": "x"}}, {"cookie": {}}]`), r + ".route.hash_policy[1].cookie.name"},
		{toCluster(`"hash_policy": [{"cookie": {"name": "a", "path": "/;"}}]`), r + ".route.hash_policy[0].cookie.path"},
		{toCluster(`"hash_policy": [{"cookie": {"name": "a", "ttl": "-1s"}}]`), r + ".route.hash_policy[0].cookie.ttl"},
		{toCluster(`"hash_policy": [{"cookie": {"name": "a", "attributes": [{"name": ""}]}}]`), r + ".route.hash_policy[0].cookie.attributes[0]"},
		{toCluster(`"hash_policy": [{"query_parameter": {}}]`), r + ".route.hash_policy[0].query_parameter.name"},
		{toCluster(`"request_mirror_policies": [{}]`), r + ".route.request_mirror_policies[0].cluster"},
		{toCluster(`"request_mirror_policies": [{"cluster": "a", "cluster_header": "b"}]`), r + ".route.request_mirror_policies[0].cluster_header"},
		{toCluster(`"request_mirror_policies": [{"cluster": "a", "runtime_fraction": {}}]`), r + ".route.request_mirror_policies[0].runtime_fraction.default_value"},
		{toCluster(`"request_mirror_policies": [{"cluster": "a", "host_rewrite_literal": "a b"}]`), r + ".route.request_mirror_policies[0].host_rewrite_literal"},
		{toCluster(`"request_mirror_policies": [{"cluster": "a", "request_headers_mutations": [{"remove": ":path"}]}]`), r + ".route.request_mirror_policies[0].request_headers_mutations[0].remove"},
		{toCluster(`"request_mirror_policies": [{"cluster": "a", "request_headers_mutations": [{}]}]`), r + ".route.request_mirror_policies[0].request_headers_mutations[0]"},
		{toCluster(`"request_mirror_policies": [{"cluster": "a", "request_headers_mutations": [{"append": {"header": {"key": "a", "value": "%"}}}]}]`), r + ".route.request_mirror_policies[0].request_headers_mutations[0].append.header.value"},
		{toCluster(`"cors": {"allow_origin_string_match": [{}]}`), r + ".route.cors.allow_origin_string_match[0]"},
		{toCluster(`"cors": {"max_age": "1\n2"}`), r + ".route.cors.max_age"},
		{toCluster(`"cors": {"filter_enabled": {}}`), r + ".route.cors.filter_enabled.default_value"},
		{toCluster(`"rate_limits": [{}]`), r + ".route.rate_limits"},
		{toCluster(`"internal_redirect_policy": {}`), r + ".route.internal_redirect_policy"},
		{toCluster(`"internal_redirect_action": 1`), r + ".route.internal_redirect_action"},
		{toCluster(`"max_internal_redirects": 1`), r + ".route.max_internal_redirects"},
		{toCluster(`"retry_policy_typed_config": {"@type": "type.googleapis.com/no.such.Policy"}`), r + ".route.retry_policy_typed_config"},
		{toCluster(`"hedge_policy": {"initial_requests": 0}`), r + ".route.hedge_policy.initial_requests"},
		{toCluster(`"hedge_policy": {"additional_request_chance": {"denominator": 9}}`), r + ".route.hedge_policy.additional_request_chance.denominator"},
		{toCluster(`"retry_policy": {"per_try_idle_timeout": "-1s"}`), r + ".route.retry_policy.per_try_idle_timeout"},
		{toCluster(`"retry_policy": {"retry_priority": {"name": "p", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"}}}`), r + ".route.retry_policy.retry_priority.typed_config.update_frequency"},
		{toCluster(`"retry_policy": {"retry_options_predicates": [{}]}`), r + ".route.retry_policy.retry_options_predicates"},
		{withRoute(`"request_headers_to_add": [{"header": {"key": ":path"}}]`), r + ".request_headers_to_add[0].header.key"},
		{withRoute(`"request_headers_to_add": [{"header": {"key": "a", "value": "%NO_SUCH%"}}]`), r + ".request_headers_to_add[0].header.value"},
		{withRoute(`"request_headers_to_add": [{"header": {"key": "a", "raw_value": "eA=="}}]`), r + ".request_headers_to_add[0].header.raw_value"},
		{withRoute(`"response_headers_to_add": [{"header": {"key": "a", "value": "b"}}, {"header": {"key": "a", "value": "b"}, "append_action": 9}]`), r + ".response_headers_to_add[1].append_action"},
		{withRoute(`"response_headers_to_add": [{"header": {"key": "a", "value": "b"}, "append": true, "append_action": "ADD_IF_ABSENT"}]`), r + ".response_headers_to_add[0].append_action"},
		{withRoute(`"response_headers_to_remove": ["a b"]`), r + ".response_headers_to_remove[0]"},
		{withRoute(`"per_request_buffer_limit_bytes": 1`), r + ".per_request_buffer_limit_bytes"},
		{toCluster(`"retry_policy": {"retry_priority": {}}`), r + ".route.retry_policy.retry_priority"},
		{toCluster(`"retry_policy": {"per_try_timeout": "-1s"}`), r + ".route.retry_policy.per_try_timeout"},
		{toCluster(`"retry_policy": {"retriable_status_codes": [503, 99]}`), r + ".route.retry_policy.retriable_status_codes[1]"},
		{toCluster(`"retry_policy": {"host_selection_retry_max_attempts": -1}`), r + ".route.retry_policy.host_selection_retry_max_attempts"},
		{toCluster(`"retry_policy": {"retry_host_predicate": [{"name": "envoy.retry_host_predicates.others"}]}`), r + ".route.retry_policy.retry_host_predicate[0]"},
		{toCluster(`"retry_policy": {"retry_host_predicate": [{"name": "envoy.retry_host_predicates.omit_canary_hosts"}, {"name": "m", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig", "metadata_match": {"filter_metadata": {"envoy.lb": {"v": "1"}}}}}]}`), r + ".route.retry_policy.retry_host_predicate[1]"},
		{toCluster(`"retry_policy": {"retry_back_off": {}}`), r + ".route.retry_policy.retry_back_off.base_interval"},
		{toCluster(`"retry_policy": {"retry_back_off": {"base_interval": "0s"}}`), r + ".route.retry_policy.retry_back_off.base_interval"},
		{toCluster(`"retry_policy": {"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}}`), r + ".route.retry_policy.retry_back_off.max_interval"},
		{toCluster(`"retry_policy": {"rate_limited_retry_back_off": {}}`), r + ".route.retry_policy.rate_limited_retry_back_off.reset_headers"},
		{toCluster(`"retry_policy": {"rate_limited_retry_back_off": {"reset_headers": [{"name": "a", "format": 9}]}}`), r + ".route.retry_policy.rate_limited_retry_back_off.reset_headers[0].format"},
		{toCluster(`"retry_policy": {"retriable_headers": [{}]}`), r + ".route.retry_policy.retriable_headers[0].name"},
		{toCluster("") + `, {"match": {"prefix": "/"}, "route": {"cluster": "c"}, "typed_per_filter_config": {"f": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", "delay": {}}}}`, v + `.routes[1].typed_per_filter_config["f"].delay`},
	} {
		_, err := oneRoute(t, tt.route, "")
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
	for _, tt := range []struct{ config, path string }{
		{`{"virtual_hosts": [{"domains": ["*"]}]}`, "name"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"]}, {}]}`, "virtual_hosts[1].domains"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"]}, {"domains": ["A"]}]}`, "virtual_hosts[1].domains[0]"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "require_tls": 9}]}`, "virtual_hosts[0].require_tls"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "matcher": {}}]}`, "virtual_hosts[0].matcher"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "rate_limits": [{}]}]}`, "virtual_hosts[0].rate_limits"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "cors": {"allow_origin_string_match": [{}]}}]}`, "virtual_hosts[0].cors.allow_origin_string_match[0]"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "hedge_policy": {"initial_requests": 0}}]}`, "virtual_hosts[0].hedge_policy.initial_requests"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "request_mirror_policies": [{}]}]}`, "virtual_hosts[0].request_mirror_policies[0].cluster"},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "response_headers_to_remove": ["host"]}]}`, "virtual_hosts[0].response_headers_to_remove[0]"},
		{`{"name": "x", "response_headers_to_remove": [""]}`, "response_headers_to_remove[0]"},
		{`{"name": "x", "request_mirror_policies": [{}]}`, "request_mirror_policies[0].cluster"},
		{`{"name": "x", "cluster_specifier_plugins": [{"is_optional": true}, {}]}`, "cluster_specifier_plugins[1]"},
		{`{"name": "x", "vhds": {}}`, "vhds"},
		{`{"name": "x", "vhost_header": "h"}`, "vhost_header"},
		{`{"name": "x", "typed_per_filter_config": {"f": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "is_optional": true}}}`, `typed_per_filter_config["f"]`},
		{`{"name": "x", "virtual_hosts": [{"domains": ["a"], "retry_policy": {"refresh_cluster_on_retry": true}}]}`, "virtual_hosts[0].retry_policy.refresh_cluster_on_retry"},
	} {
		_, _, err := RouteConfig(routesOf(t, tt.config))
		t.Run(tt.config, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
	_, _, err := RouteConfig(routesOf(t, `{"name": "x", "virtual_hosts": [{"domains": ["a"]}, {"domains": ["b", "A"]}]}`))
	if err == nil || !strings.HasPrefix(err.Error(), `RouteConfiguration "x": virtual_hosts[1].domains[1]: `) {
		t.Errorf("a domain that occurs twice: %v", err)
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
		{"inherited", ``, `"retry_policy": {"retry_on": "5xx"}`, retriesOf(resilience.On5xx, nil)},
		{"the route's own, whole", `"retry_policy": {"retry_on": "reset"}`, `"retry_policy": {"retry_on": "5xx", "num_retries": 7}`, retriesOf(resilience.OnReset, nil)},
		{"the route's own has no condition", `"retry_policy": {"num_retries": 3}`, `"retry_policy": {"retry_on": "5xx"}`, retriesOf(0, func(p *resilience.RetryPolicy) { p.NumRetries = 3 })},
		{"no retry", `"retry_policy": {"retry_on": "5xx", "num_retries": 0}`, ``, retriesOf(resilience.On5xx, func(p *resilience.RetryPolicy) { p.NumRetries = 0 })},
		{"attempts are limited without retries", `"retry_policy": {"per_try_timeout": "1s", "per_try_idle_timeout": "2s"}`, ``,
			retriesOf(0, func(p *resilience.RetryPolicy) { p.PerTryTimeout, p.PerTryIdleTimeout = time.Second, 2*time.Second })},
		{"canaries are left out", `"retry_policy": {"retry_host_predicate": [{"name": "c", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate"}}]}`, ``,
			retriesOf(0, func(p *resilience.RetryPolicy) { p.OmitMetadata = map[string]string{"canary": "true"} })},
		{"endpoints are left out", `"retry_policy": {"retry_host_predicate": [{"name": "m", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig", "metadata_match": {"filter_metadata": {"envoy.lb": {"v": "1"}, "other": {"w": 1}}}}}]}`, ``,
			retriesOf(0, func(p *resilience.RetryPolicy) { p.OmitMetadata = map[string]string{"v": "1"} })},
		{"priorities are left out", `"retry_policy": {"retry_priority": {"name": "p", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", "update_frequency": 2}}}`, ``,
			retriesOf(0, func(p *resilience.RetryPolicy) { p.PreviousPriorities = 2 })},
		{"a base interval alone", `"retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "1s"}}`, ``,
			retriesOf(resilience.On5xx, func(p *resilience.RetryPolicy) { p.BaseInterval, p.MaxInterval = time.Second, 10*time.Second })},
		{"less than a millisecond", `"retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "0.0001s", "max_interval": "0.0002s"}}`, ``,
			retriesOf(resilience.On5xx, func(p *resilience.RetryPolicy) { p.BaseInterval, p.MaxInterval = time.Millisecond, time.Millisecond })},
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

func retriesOf(on resilience.RetryOn, change func(*resilience.RetryPolicy)) *resilience.RetryPolicy {
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
