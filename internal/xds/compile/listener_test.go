package compile

import (
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	hcmType = `"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"`
	router  = `{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}`
	rds     = `"rds": {"config_source": {"ads": {}, "resource_api_version": "V3"}, "route_config_name": "r"}`
)

func apiListenerOf(manager string) string {
	return `{"name": "reviews:9080", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 9080}}, "api_listener": {"api_listener": {` + hcmType + `, ` + manager + `}}}`
}

// As istiod writes it for a client without a proxy, and as it writes filters for one with.
func TestListener(t *testing.T) {
	filters := `"http_filters": [
		{"name": "istio.metadata_exchange", "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "type.googleapis.com/io.istio.http.peer_metadata.Config", "value": {}}},
		{"name": "envoy.filters.http.grpc_stats", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", "emit_filter_state": true}},
		{"name": "envoy.filters.http.fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}},
		{"name": "envoy.filters.http.cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}},
		{"name": "istio.stats", "typed_config": {"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": "type.googleapis.com/stats.PluginConfig"}},
		{"name": "lua", "is_optional": true, "typed_config": {"@type": "type.googleapis.com/no.such.Filter"}},
		{"name": "off", "disabled": true, "typed_config": {"@type": "type.googleapis.com/no.such.Filter"}},
		` + router + `]`
	name, l, err := Listener(listenerOf(t, apiListenerOf(rds+`, `+filters+`, "stat_prefix": "s", "tracing": {}, "access_log": [{}], "use_remote_address": false, "stream_idle_timeout": "0s",
		"upgrade_configs": [{"upgrade_type": "websocket"}], "common_http_protocol_options": {"max_stream_duration": "7s", "idle_timeout": "3600s"}`)))
	if err != nil {
		t.Fatal(err)
	}
	if name != "reviews:9080" || l.Name != name || l.RouteName != "r" || l.Inline != nil || l.MaxStreamDuration != 7*time.Second {
		t.Errorf("%q %+v", name, l)
	}
	_, l, err = Listener(listenerOf(t, apiListenerOf(`"http_filters": [`+router+`], "route_config": {"virtual_hosts": [{"domains": ["*"], "routes": [`+toCluster("")+`]}]}`)))
	if err != nil || l.RouteName != "" || l.Inline.Lookup("x") == nil || l.MaxStreamDuration != 0 {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestListenerErrorsNameTheField(t *testing.T) {
	const at = "api_listener.api_listener"
	with := func(fields string) string {
		return apiListenerOf(rds + `, "http_filters": [` + router + `], ` + fields)
	}
	filtered := func(filters string) string { return apiListenerOf(rds + `, "http_filters": [` + filters + `]`) }
	for _, tt := range []struct{ listener, path string }{
		{`{"api_listener": {"api_listener": {` + hcmType + `}}}`, "name"},
		{`{"name": "x"}`, "api_listener"},
		{`{"name": "x", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 1}}, "filter_chains": [{}]}`, "api_listener"},
		{`{"name": "x", "api_listener": {}}`, at},
		{`{"name": "x", "api_listener": {"api_listener": {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener"}}}`, at},
		{`{"name": "x", "api_listener": {}, "filter_chains": [{}]}`, "filter_chains"},
		{`{"name": "x", "api_listener": {}, "default_filter_chain": {}}`, "default_filter_chain"},
		{`{"name": "x", "api_listener": {}, "listener_filters": [{}]}`, "listener_filters"},
		{apiListenerOf(`"http_filters": [` + router + `]`), at},
		{apiListenerOf(`"http_filters": [` + router + `], "rds": {"config_source": {"ads": {}}}`), at + ".rds.route_config_name"},
		{apiListenerOf(`"http_filters": [` + router + `], "rds": {"route_config_name": "r"}`), at + ".rds.config_source"},
		{apiListenerOf(`"http_filters": [` + router + `], "rds": {"config_source": {"path": "/x"}}`), at + ".rds.config_source.path"},
		{apiListenerOf(`"http_filters": [` + router + `], "scoped_routes": {}`), at + ".scoped_routes"},
		{apiListenerOf(`"http_filters": [` + router + `], "route_config": {"virtual_hosts": [{"domains": ["*"], "routes": [{"match": {"prefix": ""}, "redirect": {"response_code": 9}}]}]}`), at + ".route_config.virtual_hosts[0].routes[0].redirect.response_code"},
		{apiListenerOf(`"http_filters": [` + router + `], "route_config": {"virtual_hosts": [{"domains": ["*"], "routes": [{"match": {}}]}]}`), at + ".route_config.virtual_hosts[0].routes[0].match"},
		{apiListenerOf(rds), at + ".http_filters"},
		{filtered(router + `, ` + router), at + ".http_filters[0]"},
		{filtered(`{"name": "a", "is_optional": true}, {"name": "a", "is_optional": true}, ` + router), at + ".http_filters[1].name"},
		{filtered(`{"name": "a", "config_discovery": {}}, ` + router), at + ".http_filters[0].config_discovery"},
		{filtered(`{"name": "a", "is_optional": true}`), at + ".http_filters[0]"},
		{filtered(`{"name": "envoy.filters.http.router"}`), at + ".http_filters[0]"},
		{filtered(strings.Replace(router, `"name"`, `"disabled": true, "name"`, 1)), at + ".http_filters[0].disabled"},
		{filtered(strings.Replace(router, `Router"`, `Router", "strict_check_headers": ["x-envoy-retry-on"]`, 1)), at + ".http_filters[0].typed_config.strict_check_headers"},
		// A filter does what its type says, whatever its name.
		{filtered(`{"name": "istio.stats", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"}}, ` + router), at + ".http_filters[0]"},
		{filtered(faulty(`"abort": {"http_status": 500}, "response_rate_limit": {}`) + `, ` + router), at + ".http_filters[0].typed_config.response_rate_limit"},
		{filtered(faulty(`"abort": {"http_status": 100}`) + `, ` + router), at + ".http_filters[0].typed_config.abort.http_status"},
		{filtered(faulty(`"abort": {"http_status": 600}`) + `, ` + router), at + ".http_filters[0].typed_config.abort.http_status"},
		{filtered(faulty(`"abort": {"grpc_status": 4294967295}`) + `, ` + router), at + ".http_filters[0].typed_config.abort.grpc_status"},
		{filtered(faulty(`"abort": {}`) + `, ` + router), at + ".http_filters[0].typed_config.abort"},
		{filtered(faulty(`"abort": {"http_status": 500, "percentage": {"denominator": 9}}`) + `, ` + router), at + ".http_filters[0].typed_config.abort.percentage.denominator"},
		{filtered(faulty(`"delay": {}`) + `, ` + router), at + ".http_filters[0].typed_config.delay"},
		{filtered(faulty(`"delay": {"fixed_delay": "0s"}`) + `, ` + router), at + ".http_filters[0].typed_config.delay.fixed_delay"},
		{filtered(faulty(`"delay": {"fixed_delay": "1s"}, "headers": [{}]`) + `, ` + router), at + ".http_filters[0].typed_config.headers[0].name"},
		{filtered(faulty("") + `, ` + strings.Replace(faulty(""), "fault", "another", 1) + `, ` + router), at + ".http_filters[1].typed_config"},
		{filtered(`{"name": "f", "is_optional": true, "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", "delay": {}}}, ` + router), at + ".http_filters[0].typed_config.delay"},
		{filtered(`{"name": "f", "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "x/envoy.extensions.filters.http.fault.v3.HTTPFault"}}, ` + router), at + ".http_filters[0]"},
		{filtered(adaptive(``) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config"},
		{filtered(adaptive(`"gradient_controller_config": {}`) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.concurrency_limit_params"},
		{filtered(adaptive(`"gradient_controller_config": {"concurrency_limit_params": {}}`) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.concurrency_limit_params.concurrency_update_interval"},
		{filtered(adaptive(`"gradient_controller_config": {"concurrency_limit_params": {"max_concurrency_limit": 0}}`) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.concurrency_limit_params.max_concurrency_limit"},
		{filtered(adaptive(gradientOf(``)) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.min_rtt_calc_params"},
		{filtered(adaptive(gradientOf(`"interval": "0.0001s"`)) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.min_rtt_calc_params.interval"},
		{filtered(adaptive(gradientOf(`"fixed_value": "0s"`)) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.min_rtt_calc_params.fixed_value"},
		{filtered(adaptive(gradientOf(`"interval": "1s", "request_count": 0`)) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.min_rtt_calc_params.request_count"},
		{filtered(adaptive(gradientOf(`"interval": "1s", "jitter": {"value": 101}`)) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.min_rtt_calc_params.jitter.value"},
		{filtered(adaptive(gradientOf(`"interval": "1s", "buffer": {"value": -1}`)) + `, ` + router), at + ".http_filters[0].typed_config.gradient_controller_config.min_rtt_calc_params.buffer.value"},
		{filtered(adaptive(`"enabled": {}, `+gradientOf(`"interval": "1s"`)) + `, ` + router), at + ".http_filters[0].typed_config.enabled.default_value"},
		{filtered(adaptive(`"concurrency_limit_exceeded_status": {"code": 600}, `+gradientOf(`"interval": "1s"`)) + `, ` + router), at + ".http_filters[0].typed_config.concurrency_limit_exceeded_status.code"},
		{with(`"common_http_protocol_options": {"max_stream_duration": "-1s"}`), at + ".common_http_protocol_options.max_stream_duration"},
		{with(`"stream_idle_timeout": "-5s"`), at + ".stream_idle_timeout"},
		{with(`"xff_num_trusted_hops": 1`), at + ".xff_num_trusted_hops"},
		{with(`"use_remote_address": true, "xff_num_trusted_hops": 1`), at + ".xff_num_trusted_hops"},
		{with(`"upgrade_configs": [{"upgrade_type": "websocket", "filters": [{}]}]`), at + ".upgrade_configs[0].filters"},
		{with(`"local_reply_config": {}`), at + ".local_reply_config"},
		{with(`"normalize_path": true`), at + ".normalize_path"},
		{with(`"merge_slashes": true`), at + ".merge_slashes"},
		{with(`"path_with_escaped_slashes_action": "REJECT_REQUEST"`), at + ".path_with_escaped_slashes_action"},
		{`{"name": "x", "api_listener": {}, "metadata": {"filter_metadata": {"sinew": {}}}}`, `metadata.filter_metadata["sinew"]`},
	} {
		_, l, err := Listener(listenerOf(t, tt.listener))
		if l != nil {
			t.Errorf("%s: %+v", tt.path, l)
		}
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

// faulty is a fault filter.
func faulty(fields string) string {
	if fields != "" {
		fields = ", " + fields
	}
	return `{"name": "fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"` + fields + `}}`
}

// adaptive is an adaptive concurrency filter.
func adaptive(fields string) string {
	if fields != "" {
		fields = ", " + fields
	}
	return `{"name": "adaptive", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency"` + fields + `}}`
}

func gradientOf(minRTT string) string {
	return `"gradient_controller_config": {"concurrency_limit_params": {"concurrency_update_interval": "0.1s"}, "min_rtt_calc_params": {` + minRTT + `}}`
}

// chain is a filter chain with an HTTP connection manager, which has the fields.
func chain(manager, chainFields string) string {
	if chainFields != "" {
		chainFields += ", "
	}
	return `{` + chainFields + `"filters": [{"name": "hcm", "typed_config": {` + hcmType + `, ` + manager + `}}]}`
}

const everyInbound = `"http_filters": [` + router + `], "route_config": {"name": "inbound", "virtual_hosts": [{"name": "inbound|9080||reviews.default.svc.cluster.local",
	"domains": ["*"], "routes": [{"match": {"prefix": "/"}, "non_forwarding_action": {}}]}]}`

func inboundOf(chains string) string {
	return `{"name": "xds.istio.io/grpc/lds/inbound/0.0.0.0:9080", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 9080}}, "traffic_direction": "INBOUND", ` + chains + `}`
}

func TestInbound(t *testing.T) {
	for _, tt := range []struct{ chains, service string }{
		{`"filter_chains": [` + chain(everyInbound, `"name": "inbound-plaintext", "filter_chain_match": {}`) + `]`, "reviews.default.svc.cluster.local"},
		{`"default_filter_chain": ` + chain(strings.ReplaceAll(everyInbound, "inbound|9080||reviews.default.svc.cluster.local", "inbound"), ""), ""},
		{`"filter_chains": [` + chain(everyInbound, `"transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}`) + `], "default_filter_chain": ` + chain(everyInbound, ""), "reviews.default.svc.cluster.local"},
	} {
		name, in, err := Inbound(listenerOf(t, inboundOf(tt.chains)))
		if err != nil {
			t.Error(err)
			continue
		}
		if name != "xds.istio.io/grpc/lds/inbound/0.0.0.0:9080" || in.Name != name || in.Address != "0.0.0.0:9080" || in.Service != tt.service {
			t.Errorf("%q %+v", name, in)
		}
	}
}

// Nothing that restricts access is skipped.
func TestInboundErrorsNameTheField(t *testing.T) {
	const first = "filter_chains[0]"
	const manager = first + ".filters[0].typed_config"
	const routes = manager + ".route_config.virtual_hosts"
	one := func(manager, chainFields string) string {
		return inboundOf(`"filter_chains": [` + chain(manager, chainFields) + `]`)
	}
	replaced := func(old, new string) string { return one(strings.Replace(everyInbound, old, new, 1), "") }
	const action = `{"match": {"prefix": "/"}, "non_forwarding_action": {}}`
	for _, tt := range []struct{ listener, path string }{
		{inboundOf(`"filter_chains": []`), "filter_chains"},
		{inboundOf(`"filter_chains": [` + chain(everyInbound, "") + `, ` + chain(everyInbound, "") + `]`), "filter_chains[1].filter_chain_match"},
		{inboundOf(`"filter_chains": [{}]`), first + ".filters"},
		{inboundOf(`"api_listener": {}`), "api_listener"},
		{`{"name": "x", "filter_chains": [{}]}`, "address.socket_address"},
		{`{"name": "x", "address": {"pipe": {"path": "x"}}, "filter_chains": [{}]}`, "address.pipe"},
		{one(everyInbound, `"transport_socket": {"name": "envoy.transport_sockets.tls"}`), first + ".transport_socket"},
		{inboundOf(`"filter_chains": [` + chain(everyInbound, "") + `], "default_filter_chain": ` + chain(everyInbound, `"transport_socket": {"name": "x"}`)), "default_filter_chain.transport_socket"},
		{inboundOf(`"filter_chains": [{"filters": [{"name": "rbac"}]}]`), first + ".filters[0]"},
		{inboundOf(`"filter_chains": [{"filters": [{"name": "rbac", "config_discovery": {}}]}]`), first + ".filters[0].config_discovery"},
		{inboundOf(`"filter_chains": [` + strings.TrimSuffix(chain(everyInbound, ""), `]}`) + `, {"name": "tcp"}]}]`), first + ".filters[1]"},
		{replaced(router, `{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"}}, `+router), manager + ".http_filters[0]"},
		{replaced(router, `{"name": "f", "is_optional": true, "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"}}, `+router), manager + ".http_filters[0]"},
		{replaced(action, `{"match": {"prefix": "/"}, "non_forwarding_action": {}, "typed_per_filter_config": {"r": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "is_optional": true, "config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"}}}}`), routes + `[0].routes[0].typed_per_filter_config["r"]`},
		{replaced(`"http_filters"`, `"common_http_protocol_options": {"max_stream_duration": "1s"}, "http_filters"`), manager + ".common_http_protocol_options.max_stream_duration"},
		{replaced(`"http_filters"`, `"path_with_escaped_slashes_action": 77, "http_filters"`), manager + ".path_with_escaped_slashes_action"},
		{replaced(`"http_filters"`, `"path_normalization_options": {}, "http_filters"`), manager + ".path_normalization_options"},
		{one(`"http_filters": [`+router+`], `+rds, ""), manager + ".rds"},
		{one(`"http_filters": [`+router+`]`, ""), manager},
		{replaced(`"domains": ["*"]`, `"domains": ["reviews"]`), routes + "[0].domains"},
		{replaced(`"domains": ["*"]`, `"domains": ["*"], "retry_policy": {}`), routes + "[0].retry_policy"},
		{replaced(`"virtual_hosts": [`, `"virtual_hosts": [{"domains": ["reviews"]}, `), routes},
		{replaced(action, ``), routes + "[0].routes"},
		{replaced(action, `{"match": {"prefix": "/x"}, "non_forwarding_action": {}}`), routes + "[0].routes"},
		{replaced(action, `{"match": {"path": "/"}, "non_forwarding_action": {}}`), routes + "[0].routes"},
		{replaced(action, `{"match": {"prefix": "/", "headers": [{"name": "x"}]}, "non_forwarding_action": {}}`), routes + "[0].routes"},
		{replaced(action, `{"match": {"path_match_policy": {"name": "x"}}, "non_forwarding_action": {}}`), routes + "[0].routes[0].match.path_match_policy.typed_config"},
		{replaced(action, `{"match": {"prefix": "/"}, "route": {"cluster": "c"}}`), routes + "[0].routes[0]"},
		{replaced(action, `{"match": {"prefix": "/"}, "non_forwarding_action": {}, "typed_per_filter_config": {"r": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"}}}`), routes + `[0].routes[0].typed_per_filter_config["r"]`},
	} {
		_, in, err := Inbound(listenerOf(t, tt.listener))
		if in != nil {
			t.Errorf("%s: %+v", tt.path, in)
		}
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

func TestResourcesAreUnwrapped(t *testing.T) {
	l := listenerOf(t, apiListenerOf(rds+`, "http_filters": [`+router+`]`))
	name, got, err := Listener(pack(t, &discoveryv3.Resource{Name: "reviews:9080", Resource: l}))
	if err != nil || name != "reviews:9080" || got.RouteName != "r" {
		t.Errorf("%q, %+v, %v", name, got, err)
	}
	for _, tt := range []struct {
		name     string
		resource *anypb.Any
		want     string
	}{
		{"nil", nil, ""},
		{"no type", &anypb.Any{}, ""},
		{"another type", clusterOf(t, `{"name": "c"}`), ""},
		{"not a message", &anypb.Any{TypeUrl: l.TypeUrl, Value: []byte{1, 2, 3, 4}}, ""},
		{"a wrapped wrapper", pack(t, &discoveryv3.Resource{Name: "outer", Resource: pack(t, &discoveryv3.Resource{Name: "inner", Resource: l})}), "outer"},
		{"a wrapper that names what it can not hold", pack(t, &discoveryv3.Resource{Name: "outer", Resource: &anypb.Any{TypeUrl: l.TypeUrl, Value: []byte{255}}}), "outer"},
		{"an empty wrapper", pack(t, &discoveryv3.Resource{Name: "outer"}), "outer"},
		{"a listener without an API listener", pack(t, &listenerv3.Listener{Name: "named"}), "named"},
	} {
		name, got, err := Listener(tt.resource)
		if err == nil || got != nil || name != tt.want {
			t.Errorf("%s: %q, %+v, %v; want an error and the name %q", tt.name, name, got, err, tt.want)
		}
	}
}

// What is in force on the way out is not on the way in, and must not pass there unread.
func TestRoutesOnTheWayInRefuseTheRest(t *testing.T) {
	for _, tt := range []struct{ old, new, path string }{
		{`"name": "inbound",`, `"name": "inbound", "internal_only_headers": ["x-a"],`, "internal_only_headers"},
		{`"name": "inbound",`, `"name": "inbound", "request_headers_to_remove": ["x-a"],`, "request_headers_to_remove"},
		{`"name": "inbound",`, `"name": "inbound", "ignore_path_parameters_in_path_matching": true,`, "ignore_path_parameters_in_path_matching"},
		{`"domains": ["*"],`, `"domains": ["*"], "require_tls": "ALL",`, "virtual_hosts[0].require_tls"},
		{`"domains": ["*"],`, `"domains": ["*"], "cors": {},`, "virtual_hosts[0].cors"},
		{`"non_forwarding_action": {}`, `"non_forwarding_action": {}, "response_headers_to_remove": ["x-a"]`, "virtual_hosts[0].routes[0].response_headers_to_remove"},
		{`"prefix": "/"`, `"prefix": "/", "dynamic_metadata": [{` + ofToken + groups + `, "value": {"present_match": true}}]`, "virtual_hosts[0].routes[0].match.dynamic_metadata"},
		{`"prefix": "/"`, `"prefix": "/", "cookies": [{"name": "a", "string_match": {"exact": "b"}}]`, "virtual_hosts[0].routes[0].match.cookies"},
	} {
		manager := strings.Replace(everyInbound, tt.old, tt.new, 1)
		if manager == everyInbound {
			t.Fatalf("%s is not there", tt.old)
		}
		_, _, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(manager, "")+`]`)))
		t.Run(tt.path, func(t *testing.T) {
			requirePath(t, err, "filter_chains[0].filters[0].typed_config.route_config."+tt.path)
		})
	}
	options := strings.Replace(everyInbound, `Router"`, `Router", "respect_expected_rq_timeout": true`, 1)
	_, _, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(options, "")+`]`)))
	requirePath(t, err, "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.respect_expected_rq_timeout")
}
