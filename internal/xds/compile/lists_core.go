package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// coreLists are the messages that resources of several types share.
var coreLists = map[protoreflect.FullName]lists{
	"envoy.config.core.v3.ConfigSource": {
		enforced: "ads self",
		// Every resource comes over the stream that the process has: its
		// version is v3 and the time to wait for one is the client's.
		harmless: "initial_fetch_timeout resource_api_version",
		refused:  "authorities path path_config_source api_config_source",
	},
	"envoy.config.core.v3.AggregatedConfigSource": {},
	"envoy.config.core.v3.SelfConfigSource":       {harmless: "transport_api_version"},
	"envoy.config.core.v3.TypedExtensionConfig": {
		enforced: "name typed_config",
	},
	"envoy.config.core.v3.TransportSocket": {
		enforced: "name typed_config",
	},
	"envoy.config.core.v3.Address": {
		enforced: "socket_address",
		refused:  "pipe envoy_internal_address",
	},
	"envoy.config.core.v3.SocketAddress": {
		enforced: "protocol address port_value",
		harmless: "ipv4_compat", // a listening socket takes IPv4 as Go's net package does
		refused:  "named_port resolver_name network_namespace_filepath",
	},
	"envoy.config.core.v3.Locality": {
		enforced: "region zone sub_zone",
	},
	"envoy.config.core.v3.Metadata": {
		enforced: "filter_metadata",
		harmless: "typed_filter_metadata", // extensions of Envoy's own filters
	},
	"envoy.config.core.v3.HttpProtocolOptions": {
		enforced: "idle_timeout max_connection_duration max_stream_duration max_requests_per_connection",
		harmless: "max_connection_duration_jitter", // a share of a duration that is refused
		refused:  "max_headers_count max_response_headers_kb headers_with_underscores_action",
	},
	"envoy.config.core.v3.Http1ProtocolOptions": {
		harmless: "allow_absolute_url accept_http_10 default_host_for_http_10", // how a server reads requests
		refused: "header_key_format enable_trailers allow_chunked_length override_stream_error_on_invalid_http_message " +
			"send_fully_qualified_url use_balsa_parser allow_custom_methods ignore_http_11_upgrade",
	},
	"envoy.config.core.v3.Http2ProtocolOptions": {
		// Sizes of windows and tables tune the codec and change no request.
		enforced: "max_concurrent_streams connection_keepalive",
		harmless: "hpack_table_size initial_stream_window_size initial_connection_window_size use_oghttp2_codec enable_huffman_encoding",
		refused: "allow_connect allow_metadata max_outbound_frames max_outbound_control_frames " +
			"max_consecutive_inbound_frames_with_empty_payload max_inbound_priority_frames_per_stream " +
			"max_inbound_window_update_frames_per_data_frame_sent stream_error_on_invalid_http_messaging " +
			"override_stream_error_on_invalid_http_message custom_settings_parameters max_metadata_size " +
			"max_header_field_size_kb disallow_obs_text stream_reset_burst stream_reset_rate",
	},
	"envoy.config.core.v3.RuntimeFractionalPercent": {
		enforced: "default_value",
		harmless: "runtime_key", // there is no runtime that could override the value
	},
	"envoy.type.v3.FractionalPercent": {enforced: "numerator denominator"},
	"envoy.type.v3.Percent":           {enforced: "value"},
	"envoy.type.v3.Int64Range":        {enforced: "start end"},
	"envoy.type.matcher.v3.StringMatcher": {
		enforced: "exact prefix suffix safe_regex contains ignore_case",
		refused:  "custom",
	},
	"envoy.type.matcher.v3.RegexMatchAndSubstitute": {enforced: "pattern substitution"},
	"envoy.type.matcher.v3.RegexMatcher": {
		enforced: "regex",
		harmless: "google_re2", // RE2 is the only engine; its program size is bounded by the expression's length
	},
}
