package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// listenerLists are the messages of listeners. The network and HTTP filters
// that may be in one are in filters.go.
var listenerLists = map[protoreflect.FullName]lists{
	"envoy.config.listener.v3.Listener": {
		enforced: "name address filter_chains default_filter_chain api_listener metadata",
		// The process opens its sockets itself: what a listener says about them
		// is for proxies, and so are statistics and logs. Further addresses are
		// asked for by name where the process listens on them.
		harmless: "stat_prefix stats_matcher access_log traffic_direction drain_type additional_addresses " +
			"per_connection_buffer_limit_bytes per_connection_buffer_high_watermark_timeout " +
			"listener_filters_timeout continue_on_listener_filters_timeout transparent freebind socket_options " +
			"tcp_fast_open_queue_length connection_balance_config reuse_port enable_reuse_port tcp_backlog_size " +
			"max_connections_to_accept_per_socket_event enable_mptcp ignore_global_conn_limit bypass_overload_manager tcp_keepalive",
		refused: "fcds_config filter_chain_matcher use_original_dst deprecated_v1 listener_filters udp_listener_config " +
			"bind_to_port internal_listener",
	},
	"envoy.config.listener.v3.ApiListener": {enforced: "api_listener"},
	"envoy.config.listener.v3.FilterChain": {
		enforced: "filter_chain_match filters transport_socket name",
		harmless: "metadata transport_socket_connect_timeout", // a handshake that takes too long is given up in any case
		refused:  "use_proxy_proto",
	},
	"envoy.config.listener.v3.FilterChainMatch": {
		enforced: "transport_protocol application_protocols",
		refused: "destination_port prefix_ranges address_suffix suffix_len direct_source_prefix_ranges source_type " +
			"source_prefix_ranges source_ports server_names",
	},
	"envoy.config.listener.v3.Filter": {
		enforced: "name typed_config",
		refused:  "config_discovery",
	},
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": {
		enforced: "rds route_config http_filters common_http_protocol_options upgrade_configs stream_idle_timeout " +
			"normalize_path merge_slashes path_with_escaped_slashes_action use_remote_address xff_num_trusted_hops " +
			"strip_matching_host_port strip_any_host_port strip_trailing_host_dot",
		// Statistics, logs, traces and request IDs; how long a proxy drains; the
		// headers by which proxies tell each other where a request came from;
		// response headers that name the proxy.
		harmless: "codec_type stat_prefix tracing access_log access_log_flush_interval flush_access_log_on_new_request " +
			"access_log_options generate_request_id preserve_external_request_id always_set_request_id_in_response " +
			"request_id_extension drain_timeout drain_timeout_jitter delayed_close_timeout http1_safe_max_connection_duration " +
			"add_user_agent server_name server_header_transformation skip_xff_append via " +
			"represent_ipv4_remote_address_as_ipv4_mapped_ipv6 append_x_forwarded_port append_local_overload " +
			"proxy_status_config add_proxy_protocol_connection_state record_route_resolution_stats",
		refused: "scoped_routes http_protocol_options http2_protocol_options http3_protocol_options scheme_header_transformation " +
			"max_request_headers_kb stream_flush_timeout request_timeout request_headers_timeout " +
			"original_ip_detection_extensions early_header_mutation_extensions internal_address_config " +
			"forward_client_cert_details set_current_client_cert_details forward_client_cert_matcher proxy_100_continue " +
			"local_reply_config " +
			"stream_error_on_invalid_http_message path_normalization_options " +
			"typed_header_validation_config forward_proto_config",
	},
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig": {
		enforced: "upgrade_type enabled",
		refused:  "filters",
	},
	"envoy.extensions.filters.network.http_connection_manager.v3.Rds": {
		enforced: "config_source route_config_name",
	},
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter": {
		enforced: "name typed_config is_optional disabled config_discovery",
	},
	"envoy.config.core.v3.ExtensionConfigSource": {
		// Read only to be refused, or skipped with an optional filter.
		harmless: "config_source default_config apply_default_config_without_warming type_urls",
	},
	"envoy.extensions.filters.http.router.v3.Router": {
		enforced: "suppress_envoy_headers respect_expected_rq_timeout",
		// Statistics, logs and traces.
		harmless: "dynamic_stats start_child_span upstream_log upstream_log_options suppress_grpc_request_failure_code_stats",
		refused:  "strict_check_headers upstream_http_filters reject_connect_request_early_data",
	},
}
