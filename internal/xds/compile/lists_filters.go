package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// filterLists are the HTTP filters of listeners for outbound requests.
var filterLists = map[protoreflect.FullName]lists{
	"envoy.extensions.filters.http.fault.v3.HTTPFault": {
		enforced: "delay abort upstream_cluster headers downstream_nodes max_active_faults",
		// There is no runtime that could override the values, and the others are for statistics and logs.
		harmless: "delay_percent_runtime abort_percent_runtime delay_duration_runtime abort_http_status_runtime " +
			"max_active_faults_runtime response_rate_limit_percent_runtime abort_grpc_status_runtime " +
			"disable_downstream_cluster_stats filter_metadata",
		refused: "response_rate_limit",
	},
	"envoy.extensions.filters.http.fault.v3.FaultAbort": {
		enforced: "http_status grpc_status header_abort percentage response_body",
	},
	"envoy.extensions.filters.http.fault.v3.FaultAbort.HeaderAbort":   {},
	"envoy.extensions.filters.common.fault.v3.FaultDelay":             {enforced: "fixed_delay header_delay percentage"},
	"envoy.extensions.filters.common.fault.v3.FaultDelay.HeaderDelay": {},
	"envoy.extensions.filters.http.cors.v3.Cors":                      {},
	"envoy.extensions.filters.http.cors.v3.CorsPolicy": {
		enforced: "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials " +
			"filter_enabled allow_private_network_access forward_not_matching_preflights",
		harmless: "shadow_enabled", // statistics
	},
	"envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency": {
		enforced: "gradient_controller_config enabled concurrency_limit_exceeded_status",
	},
	"envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig": {
		enforced: "sample_aggregate_percentile concurrency_limit_params min_rtt_calc_params",
	},
	"envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig.ConcurrencyLimitCalculationParams": {
		enforced: "max_concurrency_limit concurrency_update_interval",
		refused:  "min_concurrency_limit",
	},
	"envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig.MinimumRTTCalculationParams": {
		enforced: "interval fixed_value request_count jitter min_concurrency buffer",
	},
	"envoy.config.core.v3.RuntimeFeatureFlag": {
		enforced: "default_value",
		harmless: "runtime_key", // there is no runtime that could override the value
	},
}
