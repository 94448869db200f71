package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// routeLists are the messages of route configurations.
var routeLists = map[protoreflect.FullName]lists{
	"envoy.config.route.v3.RouteConfiguration": {
		enforced: "name virtual_hosts typed_per_filter_config",
		// Whether the clusters exist is checked here in any case; the size and
		// the order are of direct responses and header changes, which are refused.
		harmless: "metadata validate_clusters max_direct_response_body_size_bytes most_specific_header_mutations_wins",
		refused: "vhds internal_only_headers response_headers_to_add response_headers_to_remove request_headers_to_add " +
			"request_headers_to_remove cluster_specifier_plugins request_mirror_policies ignore_port_in_host_matching " +
			"vhost_header ignore_path_parameters_in_path_matching route_specifiers",
	},
	"envoy.config.route.v3.VirtualHost": {
		enforced: "name domains routes retry_policy typed_per_filter_config",
		// Statistics, and headers that count attempts for whom it interests.
		harmless: "metadata virtual_clusters include_request_attempt_count include_attempt_count_in_response " +
			"include_is_timeout_retry_header",
		refused: "matcher require_tls rate_limits request_headers_to_add request_headers_to_remove response_headers_to_add " +
			"response_headers_to_remove cors retry_policy_typed_config hedge_policy per_request_buffer_limit_bytes " +
			"request_body_buffer_limit request_mirror_policies route_specifiers",
	},
	"envoy.config.route.v3.Route": {
		enforced: "name match route non_forwarding_action typed_per_filter_config",
		harmless: "metadata decorator tracing stat_prefix",
		refused: "redirect direct_response filter_action request_headers_to_add request_headers_to_remove " +
			"response_headers_to_add response_headers_to_remove per_request_buffer_limit_bytes request_body_buffer_limit route_specifiers",
	},
	"envoy.config.route.v3.NonForwardingAction": {},
	"envoy.config.route.v3.RouteMatch": {
		enforced: "prefix path safe_regex path_separated_prefix path_match_policy connect_matcher case_sensitive runtime_fraction headers query_parameters grpc",
		refused:  "cookies tls_context dynamic_metadata filter_state",
	},
	"envoy.config.route.v3.RouteMatch.GrpcRouteMatchOptions": {},
	"envoy.config.route.v3.RouteMatch.ConnectMatcher":        {},
	"envoy.config.route.v3.HeaderMatcher": {
		enforced: "name exact_match safe_regex_match range_match present_match prefix_match suffix_match contains_match " +
			"string_match invert_match treat_missing_header_as_empty",
	},
	"envoy.config.route.v3.QueryParameterMatcher": {
		enforced: "name string_match present_match",
	},
	"envoy.config.route.v3.RouteAction": {
		enforced: "cluster weighted_clusters timeout retry_policy max_grpc_timeout max_stream_duration upgrade_configs",
		// The status where a cluster is missing is for a proxy's caller; here the
		// caller gets an error. The others belong to host rewrites and rate limits, which are refused.
		harmless: "cluster_not_found_response_code append_x_forwarded_host include_vh_rate_limits",
		refused: "cluster_header cluster_specifier_plugin inline_cluster_specifier_plugin metadata_match prefix_rewrite " +
			"regex_rewrite path_rewrite_policy path_rewrite host_rewrite_literal auto_host_rewrite host_rewrite_header " +
			"host_rewrite_path_regex host_rewrite idle_timeout flush_timeout early_data_policy retry_policy_typed_config " +
			"request_mirror_policies priority rate_limits hash_policy cors grpc_timeout_offset internal_redirect_policy " +
			"internal_redirect_action max_internal_redirects hedge_policy",
	},
	"envoy.config.route.v3.RouteAction.MaxStreamDuration": {
		enforced: "max_stream_duration grpc_timeout_header_max",
		refused:  "grpc_timeout_header_offset",
	},
	"envoy.config.route.v3.RouteAction.UpgradeConfig": {
		enforced: "upgrade_type enabled",
		refused:  "connect_config",
	},
	"envoy.config.route.v3.WeightedCluster": {
		enforced: "clusters",
		// The total is the sum of the weights, whatever this says (it is deprecated for that);
		// there is no runtime that could override the weights.
		harmless: "total_weight runtime_key_prefix",
		refused:  "header_name use_hash_policy",
	},
	"envoy.config.route.v3.WeightedCluster.ClusterWeight": {
		enforced: "name weight typed_per_filter_config",
		refused: "cluster_header metadata_match request_headers_to_add request_headers_to_remove response_headers_to_add " +
			"response_headers_to_remove host_rewrite_literal",
	},
	"envoy.config.route.v3.RetryPolicy": {
		enforced: "retry_on num_retries per_try_timeout retry_host_predicate host_selection_retry_max_attempts " +
			"retriable_status_codes retry_back_off rate_limited_retry_back_off retriable_headers retriable_request_headers",
		refused: "per_try_idle_timeout retry_priority retry_options_predicates refresh_cluster_on_retry",
	},
	"envoy.config.route.v3.RetryPolicy.RetryBackOff": {
		enforced: "base_interval max_interval",
	},
	"envoy.config.route.v3.RetryPolicy.RateLimitedRetryBackOff": {
		enforced: "reset_headers max_interval",
	},
	"envoy.config.route.v3.RetryPolicy.ResetHeader": {
		enforced: "name format",
	},
	"envoy.config.route.v3.RetryPolicy.RetryHostPredicate": {
		enforced: "name typed_config",
	},
	"envoy.config.route.v3.FilterConfig": {
		enforced: "config is_optional disabled",
	},
}
