package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// limitLists are the messages of rate limits.
var limitLists = map[protoreflect.FullName]lists{
	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit": {
		enforced: "stat_prefix status token_bucket filter_enabled filter_enforced request_headers_to_add_when_not_enforced " +
			"response_headers_to_add descriptors enable_x_ratelimit_headers always_consume_default_token_bucket " +
			"rate_limited_as_resource_exhausted rate_limits max_dynamic_descriptors enable_retry_after_header",
		harmless: "stage vh_rate_limits", // of rate limits in routes and virtual hosts, which are refused
		refused:  "local_rate_limit_per_downstream_connection local_cluster_rate_limit",
	},
	"envoy.type.v3.TokenBucket": {enforced: "max_tokens tokens_per_fill fill_interval"},
	"envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor": {
		enforced: "entries token_bucket shadow_mode",
	},
	"envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry": {enforced: "key value"},
	"envoy.config.core.v3.HeaderValueOption": {
		enforced: "header append append_action keep_empty_value",
	},
	"envoy.config.route.v3.RateLimit": {
		enforced: "actions hits_addend",
		refused:  "stage disable_key limit apply_on_stream_done x_ratelimit_option",
	},
	"envoy.config.route.v3.RateLimit.HitsAddend": {
		enforced: "number",
		refused:  "format is_negative_hits",
	},
	"envoy.config.route.v3.RateLimit.Action": {
		enforced: "request_headers query_parameters remote_address generic_key header_value_match masked_remote_address " +
			"query_parameter_value_match remote_address_match",
		refused: "source_cluster destination_cluster dynamic_metadata metadata extension",
	},
	"envoy.config.route.v3.RateLimit.Action.RequestHeaders":  {enforced: "header_name descriptor_key skip_if_absent"},
	"envoy.config.route.v3.RateLimit.Action.QueryParameters": {enforced: "query_parameter_name descriptor_key skip_if_absent"},
	"envoy.config.route.v3.RateLimit.Action.RemoteAddress":   {},
	"envoy.config.route.v3.RateLimit.Action.GenericKey": {
		enforced: "descriptor_value descriptor_key",
		refused:  "default_value",
	},
	"envoy.config.route.v3.RateLimit.Action.HeaderValueMatch": {
		enforced: "descriptor_value descriptor_key expect_match headers",
		refused:  "default_value",
	},
	"envoy.config.route.v3.RateLimit.Action.MaskedRemoteAddress": {enforced: "v4_prefix_mask_len v6_prefix_mask_len"},
	"envoy.config.route.v3.RateLimit.Action.QueryParameterValueMatch": {
		enforced: "descriptor_value descriptor_key expect_match query_parameters",
		refused:  "default_value",
	},
	"envoy.config.route.v3.RateLimit.Action.RemoteAddressMatch": {
		enforced: "descriptor_value descriptor_key address_matcher",
		refused:  "default_value",
	},
	"envoy.type.matcher.v3.AddressMatcher": {enforced: "ranges invert_match"},
	"xds.core.v3.CidrRange":                {enforced: "address_prefix prefix_len"},
}
