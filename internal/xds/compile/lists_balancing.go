package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// balancingLists are the messages of load balancing policies.
var balancingLists = map[protoreflect.FullName]lists{
	"envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest": {
		enforced: "choice_count active_request_bias slow_start_config locality_lb_config selection_method",
		refused:  "enable_full_scan", // Envoy does not read it: selection_method does what it says
	},
	"envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin": {enforced: "slow_start_config locality_lb_config"},
	"envoy.extensions.load_balancing_policies.random.v3.Random":          {enforced: "locality_lb_config"},
	"envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash": {
		enforced: "hash_function minimum_ring_size maximum_ring_size use_hostname_for_hashing hash_balance_factor " +
			"consistent_hashing_lb_config locality_weighted_lb_config",
	},
	"envoy.extensions.load_balancing_policies.maglev.v3.Maglev": {
		enforced: "table_size consistent_hashing_lb_config locality_weighted_lb_config",
	},
	"envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin": {
		enforced: "enable_oob_load_report blackout_period weight_expiration_period weight_update_period " +
			"error_utilization_penalty metric_names_for_computing_utilization slow_start_config",
		harmless: "oob_reporting_period oob_reporting_config", // of reports apart from responses, which are refused
	},
	"envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality": {enforced: "endpoint_picking_policy"},
	"envoy.extensions.load_balancing_policies.subset.v3.Subset": {
		enforced: "fallback_policy default_subset subset_selectors locality_weight_aware subset_lb_policy",
		refused:  "allow_redundant_keys scale_locality_weight panic_mode_any list_as_any metadata_fallback_policy",
	},
	"envoy.extensions.load_balancing_policies.subset.v3.Subset.LbSubsetSelector": {
		enforced: "keys fallback_policy",
		refused:  "single_host_per_subset fallback_keys_subset",
	},
	"envoy.extensions.load_balancing_policies.random_subsetting.v3.RandomSubsetting": {enforced: "subset_size child_policy"},
	"envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided":   {},
	"envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig": {
		enforced: "zone_aware_lb_config locality_weighted_lb_config",
	},
	"envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.LocalityWeightedLbConfig": {},
	"envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig": {
		enforced: "routing_enabled min_cluster_size fail_traffic_on_panic force_locality_direct_routing force_local_zone locality_basis",
	},
	"envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig.ForceLocalZone": {enforced: "min_size"},
	"envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig": {
		enforced: "slow_start_window aggression min_weight_percent",
	},
	"envoy.extensions.load_balancing_policies.common.v3.ConsistentHashingLbConfig": {
		enforced: "use_hostname_for_hashing hash_balance_factor",
		refused:  "hash_policy",
	},
}

// discoveryLists are the messages of clusters that are looked up or made of others.
var discoveryLists = map[protoreflect.FullName]lists{
	"envoy.extensions.clusters.aggregate.v3.ClusterConfig": {enforced: "clusters"},
	"envoy.extensions.clusters.dns.v3.DnsCluster": {
		enforced: "dns_refresh_rate dns_failure_refresh_rate dns_jitter typed_dns_resolver_config dns_lookup_family " +
			"all_addresses_in_single_endpoint",
		harmless: "respect_dns_ttl dns_min_refresh_rate", // look-ups tell no time to live, so the refresh rate decides
	},
	"envoy.extensions.clusters.dns.v3.DnsCluster.RefreshRate": {enforced: "base_interval max_interval"},
	// Names are looked up by the process's own resolver. What only tunes another one is
	// harmless; what gives other answers is refused.
	"envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig": {
		enforced: "dns_resolver_options",
		harmless: "udp_max_queries query_timeout_seconds query_tries rotate_nameservers edns0_max_payload_size " +
			"max_udp_channel_duration reinit_channel_on_timeout qcache_max_ttl use_resolvers_as_fallback filter_unroutable_families",
		refused: "resolvers",
	},
	"envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig": {harmless: "num_retries num_resolver_threads"},
	"envoy.extensions.network.dns_resolver.apple.v3.AppleDnsResolverConfig":             {harmless: "include_unroutable_families"},
	"envoy.config.core.v3.DnsResolverOptions": {
		harmless: "use_tcp_for_dns_lookups",
		refused:  "no_default_search_domain",
	},
}

// healthLists are the messages of active health checks.
var healthLists = map[protoreflect.FullName]lists{
	"envoy.config.core.v3.HealthCheck": {
		enforced: "timeout interval initial_jitter interval_jitter unhealthy_threshold healthy_threshold alt_port " +
			"reuse_connection http_health_check tcp_health_check grpc_health_check no_traffic_interval unhealthy_interval",
		harmless: "name event_log_path event_logger event_service always_log_health_check_failures always_log_health_check_success",
		refused: "interval_jitter_percent custom_health_check no_traffic_healthy_interval unhealthy_edge_interval " +
			"healthy_edge_interval tls_options transport_socket_match_criteria",
	},
	"envoy.config.core.v3.HealthCheck.HttpHealthCheck": {
		enforced: "host path request_headers_to_add request_headers_to_remove expected_statuses retriable_statuses " +
			"codec_client_type method",
		harmless: "response_buffer_size", // of the comparison with receive, which is refused
		refused:  "send receive service_name_matcher use_alpn_protocol",
	},
	"envoy.config.core.v3.HealthCheck.GrpcHealthCheck": {enforced: "service_name authority initial_metadata"},
	"envoy.config.core.v3.HealthCheck.TcpHealthCheck":  {refused: "send receive proxy_protocol_config"},
}
