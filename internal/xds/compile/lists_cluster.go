package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// clusterLists are the messages of clusters.
var clusterLists = map[protoreflect.FullName]lists{
	"envoy.config.cluster.v3.Cluster": {
		enforced: "transport_socket_matches name type eds_cluster_config connect_timeout lb_policy load_assignment " +
			"max_requests_per_connection circuit_breakers common_http_protocol_options http_protocol_options " +
			"http2_protocol_options typed_extension_protocol_options outlier_detection least_request_lb_config " +
			"round_robin_lb_config common_lb_config transport_socket filters load_balancing_policy upstream_http_protocol_options",
		// Statistics and load reports; buffers and sockets; the lookup of names, which is
		// refused as type of the cluster; active health checks, refused too.
		harmless: "alt_stat_name stats_matcher metadata lrs_server lrs_report_endpoint_metrics track_timeout_budgets " +
			"track_cluster_stats per_connection_buffer_limit_bytes per_connection_buffer_high_watermark_timeout " +
			"upstream_connection_options dns_refresh_rate dns_jitter dns_failure_refresh_rate " +
			"respect_dns_ttl dns_lookup_family dns_resolvers use_tcp_for_dns_lookups dns_resolution_config " +
			"typed_dns_resolver_config cleanup_interval wait_for_warm_on_init ignore_health_on_host_removal",
		refused: "transport_socket_matcher cluster_type health_checks upstream_bind_config lb_subset_config " +
			"ring_hash_lb_config maglev_lb_config original_dst_lb_config protocol_selection " +
			"close_connections_on_host_health_failure upstream_config preconnect_policy " +
			"connection_pool_per_downstream_connection queuing_policies",
	},
	"envoy.config.cluster.v3.Cluster.EdsClusterConfig": {enforced: "eds_config service_name"},
	"envoy.config.cluster.v3.Cluster.TransportSocketMatch": {
		enforced: "name match transport_socket",
	},
	"envoy.config.cluster.v3.Cluster.LeastRequestLbConfig": {
		enforced: "choice_count",
		refused:  "active_request_bias slow_start_config",
	},
	"envoy.config.cluster.v3.Cluster.RoundRobinLbConfig": {
		refused: "slow_start_config",
	},
	"envoy.config.cluster.v3.Cluster.CommonLbConfig": {
		enforced: "healthy_panic_threshold",
		harmless: "update_merge_window", // how long Envoy gathers updates of endpoints
		refused: "zone_aware_lb_config locality_weighted_lb_config ignore_new_hosts_until_first_hc " +
			"close_connections_on_host_set_change consistent_hashing_lb_config override_host_status",
	},
	"envoy.config.cluster.v3.Filter": {
		enforced: "name typed_config",
		refused:  "config_discovery",
	},
	"envoy.config.cluster.v3.CircuitBreakers": {
		enforced: "thresholds",
		refused:  "per_host_thresholds",
	},
	"envoy.config.cluster.v3.CircuitBreakers.Thresholds": {
		enforced: "priority max_connections max_pending_requests max_requests max_retries retry_budget",
		harmless: "track_remaining",
		refused:  "max_connection_pools",
	},
	"envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget": {
		enforced: "budget_percent budget_interval min_retry_concurrency",
	},
	"envoy.config.cluster.v3.OutlierDetection": {
		enforced: "consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx " +
			"enforcing_success_rate consecutive_gateway_failure enforcing_consecutive_gateway_failure " +
			"split_external_local_origin_errors consecutive_local_origin_failure enforcing_consecutive_local_origin_failure " +
			"enforcing_local_origin_success_rate enforcing_failure_percentage enforcing_failure_percentage_local_origin " +
			"max_ejection_time max_ejection_time_jitter always_eject_one_host",
		// How success rates and failure percentages are counted, where both must be
		// without effect; and active health checks, which are refused.
		harmless: "success_rate_minimum_hosts success_rate_request_volume success_rate_stdev_factor failure_percentage_threshold " +
			"failure_percentage_minimum_hosts failure_percentage_request_volume successful_active_health_check_uneject_host",
		refused: "monitors detect_degraded_hosts",
	},
	"envoy.config.cluster.v3.LoadBalancingPolicy":        {enforced: "policies"},
	"envoy.config.cluster.v3.LoadBalancingPolicy.Policy": {enforced: "typed_extension_config"},
	"envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest": {
		enforced: "choice_count locality_lb_config",
		refused:  "active_request_bias slow_start_config enable_full_scan selection_method",
	},
	"envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin": {
		enforced: "locality_lb_config",
		refused:  "slow_start_config",
	},
	"envoy.extensions.load_balancing_policies.random.v3.Random": {enforced: "locality_lb_config"},
	"envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig": {
		refused: "zone_aware_lb_config locality_weighted_lb_config",
	},
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
		enforced: "common_http_protocol_options explicit_http_config use_downstream_protocol_config upstream_http_protocol_options",
		refused: "auto_config http_filters header_validation_config outlier_detection request_mirror_policies hash_policy " +
			"retry_policy",
	},
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig": {
		enforced: "http_protocol_options http2_protocol_options",
		refused:  "http3_protocol_options",
	},
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig": {
		enforced: "http_protocol_options http2_protocol_options",
		refused:  "http3_protocol_options",
	},
}

// endpointLists are the messages of endpoint sets.
var endpointLists = map[protoreflect.FullName]lists{
	"envoy.config.endpoint.v3.ClusterLoadAssignment": {
		enforced: "cluster_name endpoints policy",
		refused:  "named_endpoints",
	},
	"envoy.config.endpoint.v3.ClusterLoadAssignment.Policy": {
		enforced: "drop_overloads",
		harmless: "overprovisioning_factor weighted_priority_health", // of priorities, which are refused
		refused:  "endpoint_stale_after",
	},
	"envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload": {
		enforced: "category drop_percentage",
	},
	"envoy.config.endpoint.v3.LocalityLbEndpoints": {
		enforced: "locality lb_endpoints priority",
		// The weight counts only with locality-weighted balancing, which is
		// refused in the cluster; Envoy does not read the proximity.
		harmless: "metadata load_balancing_weight proximity",
		refused:  "load_balancer_endpoints leds_cluster_locality_config",
	},
	"envoy.config.endpoint.v3.LbEndpoint": {
		enforced: "endpoint health_status metadata load_balancing_weight",
		refused:  "endpoint_name",
	},
	"envoy.config.endpoint.v3.Endpoint": {
		enforced: "address hostname",
		harmless: "health_check_config observability_name", // of active health checks, which are refused, and of statistics
		refused:  "additional_addresses",
	},
}
