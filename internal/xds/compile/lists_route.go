package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// routeLists are the messages of route configurations.
var routeLists = map[protoreflect.FullName]lists{
	"envoy.config.route.v3.RouteConfiguration": {
		enforced: "name virtual_hosts typed_per_filter_config response_headers_to_add response_headers_to_remove " +
			"request_headers_to_add request_headers_to_remove most_specific_header_mutations_wins " +
			"max_direct_response_body_size_bytes cluster_specifier_plugins request_mirror_policies " +
			"ignore_port_in_host_matching ignore_path_parameters_in_path_matching",
		// Whether the clusters exist is found out when they are asked for, and
		// fails the requests to those that do not. Internal headers are taken off
		// requests from outside: those of the process itself are none.
		harmless: "metadata validate_clusters internal_only_headers",
		refused:  "vhds vhost_header route_specifiers",
	},
	"envoy.config.route.v3.ClusterSpecifierPlugin": {enforced: "extension is_optional"},
	"envoy.config.route.v3.VirtualHost": {
		enforced: "name domains routes retry_policy typed_per_filter_config require_tls request_headers_to_add " +
			"request_headers_to_remove response_headers_to_add response_headers_to_remove cors hedge_policy " +
			"request_mirror_policies include_request_attempt_count include_attempt_count_in_response",
		// Statistics, and a header that says why an attempt is repeated for whom it interests.
		harmless: "metadata virtual_clusters include_is_timeout_retry_header",
		refused: "matcher rate_limits retry_policy_typed_config per_request_buffer_limit_bytes " +
			"request_body_buffer_limit route_specifiers",
	},
	"envoy.config.route.v3.Route": {
		enforced: "name match route redirect direct_response non_forwarding_action typed_per_filter_config " +
			"request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove",
		harmless: "metadata decorator tracing stat_prefix",
		refused:  "filter_action per_request_buffer_limit_bytes request_body_buffer_limit route_specifiers",
	},
	"envoy.config.route.v3.RedirectAction": {
		enforced: "https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite regex_rewrite " +
			"path_rewrite response_code strip_query",
	},
	"envoy.config.route.v3.DirectResponseAction": {
		enforced: "status body",
		refused:  "body_format",
	},
	"envoy.config.route.v3.NonForwardingAction": {},
	"envoy.config.route.v3.RouteMatch": {
		enforced: "prefix path safe_regex path_separated_prefix path_match_policy connect_matcher case_sensitive runtime_fraction headers " +
			"query_parameters cookies grpc dynamic_metadata",
		refused: "tls_context filter_state",
	},
	"envoy.config.route.v3.RouteMatch.GrpcRouteMatchOptions": {},
	"envoy.config.route.v3.RouteMatch.ConnectMatcher":        {},
	"envoy.config.route.v3.HeaderMatcher": {
		enforced: "name exact_match safe_regex_match range_match present_match prefix_match suffix_match contains_match " +
			"string_match invert_match treat_missing_header_as_empty",
	},
	"envoy.config.route.v3.CookieMatcher": {enforced: "name string_match invert_match"},
	"envoy.config.route.v3.QueryParameterMatcher": {
		enforced: "name string_match present_match",
	},
	"envoy.config.route.v3.RouteAction": {
		enforced: "cluster cluster_header weighted_clusters cluster_specifier_plugin inline_cluster_specifier_plugin " +
			"cluster_not_found_response_code metadata_match prefix_rewrite regex_rewrite path_rewrite_policy path_rewrite " +
			"host_rewrite_literal auto_host_rewrite host_rewrite_header host_rewrite_path_regex host_rewrite append_x_forwarded_host " +
			"timeout idle_timeout retry_policy request_mirror_policies priority hash_policy cors max_grpc_timeout " +
			"grpc_timeout_offset upgrade_configs hedge_policy max_stream_duration",
		harmless: "include_vh_rate_limits", // of rate limits, which are refused
		refused: "flush_timeout early_data_policy retry_policy_typed_config rate_limits " +
			"internal_redirect_policy internal_redirect_action max_internal_redirects",
	},
	"envoy.config.route.v3.RouteAction.MaxStreamDuration": {
		enforced: "max_stream_duration grpc_timeout_header_max grpc_timeout_header_offset",
	},
	"envoy.config.route.v3.RouteAction.RequestMirrorPolicy": {
		enforced: "cluster cluster_header runtime_fraction disable_shadow_host_suffix_append request_headers_mutations host_rewrite_literal",
		harmless: "trace_sampled", // traces
	},
	"envoy.config.common.mutation_rules.v3.HeaderMutation": {
		enforced: "remove append",
		refused:  "remove_on_match",
	},
	"envoy.config.route.v3.RouteAction.HashPolicy": {
		enforced: "header cookie connection_properties query_parameter filter_state terminal",
	},
	"envoy.config.route.v3.RouteAction.HashPolicy.Header":               {enforced: "header_name regex_rewrite"},
	"envoy.config.route.v3.RouteAction.HashPolicy.Cookie":               {enforced: "name ttl path attributes"},
	"envoy.config.route.v3.RouteAction.HashPolicy.CookieAttribute":      {enforced: "name value"},
	"envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties": {enforced: "source_ip"},
	"envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter":       {enforced: "name"},
	"envoy.config.route.v3.RouteAction.HashPolicy.FilterState":          {enforced: "key"},
	"envoy.config.route.v3.CorsPolicy": {
		enforced: "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials " +
			"filter_enabled allow_private_network_access forward_not_matching_preflights",
		harmless: "shadow_enabled", // statistics
	},
	"envoy.config.route.v3.HedgePolicy": {
		enforced: "initial_requests additional_request_chance hedge_on_per_try_timeout",
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
		enforced: "name cluster_header weight metadata_match request_headers_to_add request_headers_to_remove " +
			"response_headers_to_add response_headers_to_remove typed_per_filter_config host_rewrite_literal",
	},
	"envoy.config.route.v3.RetryPolicy": {
		enforced: "retry_on num_retries per_try_timeout retry_host_predicate host_selection_retry_max_attempts " +
			"retriable_status_codes retry_back_off rate_limited_retry_back_off retriable_headers retriable_request_headers " +
			"per_try_idle_timeout retry_priority",
		refused: "retry_options_predicates refresh_cluster_on_retry",
	},
	"envoy.config.route.v3.RetryPolicy.RetryPriority":                                 {enforced: "name typed_config"},
	"envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig": {enforced: "update_frequency"},
	"envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate":            {},
	"envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate":       {},
	"envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig":        {enforced: "metadata_match"},
	"envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig":          {enforced: "path_template_rewrite"},
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
