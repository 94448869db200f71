package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// clusterLists are the messages of clusters.
var clusterLists = map[protoreflect.FullName]lists{
	"envoy.config.cluster.v3.Cluster": {
		enforced: "transport_socket_matches name type cluster_type eds_cluster_config connect_timeout lb_policy load_assignment " +
			"max_requests_per_connection circuit_breakers common_http_protocol_options http_protocol_options " +
			"http2_protocol_options typed_extension_protocol_options outlier_detection least_request_lb_config " +
			"round_robin_lb_config ring_hash_lb_config maglev_lb_config lb_subset_config common_lb_config transport_socket " +
			"filters load_balancing_policy upstream_http_protocol_options health_checks metadata protocol_selection " +
			"dns_refresh_rate dns_failure_refresh_rate dns_jitter dns_lookup_family typed_dns_resolver_config " +
			"upstream_connection_options",
		// Statistics and load reports; buffers and sockets; how long unused names are kept.
		// Endpoints that the control plane takes away go at once, however their last health
		// check ended; and look-ups tell no time to live, so the refresh rate decides.
		harmless: "alt_stat_name stats_matcher lrs_server lrs_report_endpoint_metrics track_timeout_budgets " +
			"track_cluster_stats per_connection_buffer_limit_bytes per_connection_buffer_high_watermark_timeout " +
			"respect_dns_ttl use_tcp_for_dns_lookups cleanup_interval wait_for_warm_on_init ignore_health_on_host_removal",
		refused: "transport_socket_matcher upstream_bind_config dns_resolvers dns_resolution_config original_dst_lb_config " +
			"close_connections_on_host_health_failure upstream_config preconnect_policy " +
			"connection_pool_per_downstream_connection queuing_policies",
	},
	"envoy.config.cluster.v3.Cluster.CustomClusterType": {enforced: "name typed_config"},
	"envoy.config.cluster.v3.Cluster.RefreshRate":       {enforced: "base_interval max_interval"},
	"envoy.config.cluster.v3.UpstreamConnectionOptions": {
		enforced: "tcp_keepalive",
		harmless: "set_local_interface_name_on_upstream_connections", // for Envoy's own filters
		refused:  "happy_eyeballs_config",
	},
	"envoy.config.core.v3.TcpKeepalive": {enforced: "keepalive_probes keepalive_time keepalive_interval"},
	"envoy.config.core.v3.KeepaliveSettings": {
		enforced: "interval timeout",
		harmless: "interval_jitter", // spreads the pings of many connections
		refused:  "connection_idle_interval",
	},
	"envoy.config.cluster.v3.Cluster.EdsClusterConfig": {enforced: "eds_config service_name"},
	"envoy.config.cluster.v3.Cluster.TransportSocketMatch": {
		enforced: "name match transport_socket",
	},
	"envoy.config.cluster.v3.Cluster.LeastRequestLbConfig": {enforced: "choice_count active_request_bias slow_start_config"},
	"envoy.config.cluster.v3.Cluster.RoundRobinLbConfig":   {enforced: "slow_start_config"},
	"envoy.config.cluster.v3.Cluster.RingHashLbConfig":     {enforced: "minimum_ring_size hash_function maximum_ring_size"},
	"envoy.config.cluster.v3.Cluster.MaglevLbConfig":       {enforced: "table_size"},
	"envoy.config.cluster.v3.Cluster.SlowStartConfig": {
		enforced: "slow_start_window aggression min_weight_percent",
	},
	"envoy.config.core.v3.RuntimeDouble": {
		enforced: "default_value",
		harmless: "runtime_key", // there is no runtime that could override the value
	},
	"envoy.config.cluster.v3.Cluster.LbSubsetConfig": {
		enforced: "fallback_policy default_subset subset_selectors locality_weight_aware",
		refused:  "scale_locality_weight panic_mode_any list_as_any metadata_fallback_policy",
	},
	"envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector": {
		enforced: "keys fallback_policy",
		refused:  "single_host_per_subset fallback_keys_subset",
	},
	"envoy.config.cluster.v3.Cluster.CommonLbConfig": {
		enforced: "healthy_panic_threshold zone_aware_lb_config locality_weighted_lb_config " +
			"ignore_new_hosts_until_first_hc consistent_hashing_lb_config",
		// How long Envoy gathers updates of endpoints; and which states a filter of
		// stateful sessions lets through, which is refused.
		harmless: "update_merge_window override_host_status",
		refused:  "close_connections_on_host_set_change",
	},
	"envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig": {
		enforced: "routing_enabled min_cluster_size fail_traffic_on_panic",
	},
	"envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig":  {},
	"envoy.config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig": {enforced: "use_hostname_for_hashing hash_balance_factor"},
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
			"max_ejection_time max_ejection_time_jitter always_eject_one_host " +
			"success_rate_minimum_hosts success_rate_request_volume success_rate_stdev_factor failure_percentage_threshold " +
			"failure_percentage_minimum_hosts failure_percentage_request_volume successful_active_health_check_uneject_host",
		refused: "monitors detect_degraded_hosts",
	},
	"envoy.config.cluster.v3.LoadBalancingPolicy":        {enforced: "policies"},
	"envoy.config.cluster.v3.LoadBalancingPolicy.Policy": {enforced: "typed_extension_config"},
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
		enforced: "drop_overloads overprovisioning_factor weighted_priority_health",
		refused:  "endpoint_stale_after",
	},
	"envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload": {
		enforced: "category drop_percentage",
	},
	"envoy.config.endpoint.v3.LocalityLbEndpoints": {
		enforced: "locality lb_endpoints load_balancing_weight priority",
		harmless: "metadata proximity", // Envoy does not read the proximity
		refused:  "load_balancer_endpoints leds_cluster_locality_config",
	},
	"envoy.config.endpoint.v3.LbEndpoint": {
		enforced: "endpoint health_status metadata load_balancing_weight",
		refused:  "endpoint_name",
	},
	"envoy.config.endpoint.v3.Endpoint": {
		enforced: "address hostname health_check_config",
		harmless: "observability_name", // of statistics
		refused:  "additional_addresses",
	},
	"envoy.config.endpoint.v3.Endpoint.HealthCheckConfig": {
		enforced: "port_value hostname",
		refused:  "address disable_active_health_check",
	},
}
