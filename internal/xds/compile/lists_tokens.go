package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// tokenLists are the messages of JSON web tokens.
var tokenLists = map[protoreflect.FullName]lists{
	"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication": {
		enforced: "providers rules bypass_cors_preflight requirement_map",
		harmless: "stat_prefix",
		refused:  "filter_state_rules strip_failure_response",
	},
	"envoy.extensions.filters.http.jwt_authn.v3.JwtProvider": {
		enforced: "issuer audiences subjects require_expiration max_lifetime remote_jwks local_jwks forward from_headers " +
			"from_params from_cookies forward_payload_header pad_forward_payload_header payload_in_metadata " +
			"normalize_payload_in_metadata header_in_metadata failed_status_in_metadata clock_skew_seconds claim_to_headers",
		// How many tokens are remembered; and routes that are chosen anew, where
		// a handler has none.
		harmless: "jwt_cache_config clear_route_cache",
	},
	"envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.NormalizePayload": {enforced: "space_delimited_claims"},
	"envoy.extensions.filters.http.jwt_authn.v3.JwtHeader":                    {enforced: "name value_prefix"},
	"envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader": {
		enforced: "header_name claim_name",
		refused:  "claim_path",
	},
	"envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks": {
		enforced: "http_uri cache_duration",
		harmless: "async_fetch", // when keys are fetched that are not there
		refused:  "retry_policy",
	},
	"envoy.config.core.v3.HttpUri": {
		enforced: "uri cluster timeout",
	},
	"envoy.extensions.filters.http.jwt_authn.v3.RequirementRule": {enforced: "match requires requirement_name"},
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement": {
		enforced: "provider_name provider_and_audiences requires_any requires_all allow_missing_or_failed allow_missing",
		refused:  "extract_only_without_validation",
	},
	"envoy.extensions.filters.http.jwt_authn.v3.ProviderWithAudiences": {enforced: "provider_name audiences"},
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementOrList":  {enforced: "requirements"},
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementAndList": {enforced: "requirements"},
}

// authorizerLists are the messages of external authorizers.
var authorizerLists = map[protoreflect.FullName]lists{
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthz": {
		enforced: "grpc_service http_service transport_api_version failure_mode_allow with_request_body status_on_error " +
			"filter_enabled filter_enabled_metadata allowed_headers",
		// Statistics, spans, and metadata for logs; routes that are chosen anew,
		// where a handler has none; metadata that the authorizer sends back,
		// which nothing here reads.
		harmless: "clear_route_cache clear_route_cache_headers stat_prefix charge_cluster_response_stats emit_filter_state_stats " +
			"emit_client_span filter_metadata enable_dynamic_metadata_ingestion",
		refused: "failure_mode_allow_header_add validate_mutations metadata_context_namespaces typed_metadata_context_namespaces " +
			"route_metadata_context_namespaces route_typed_metadata_context_namespaces deny_at_disable include_peer_certificate " +
			"bootstrap_metadata_labels_key disallowed_headers include_tls_session encode_raw_headers decoder_header_mutation_rules " +
			"max_denied_response_body_bytes enforce_response_header_limits shadow_mode",
	},
	"envoy.config.core.v3.GrpcService": {
		enforced: "envoy_grpc timeout",
		refused:  "google_grpc initial_metadata retry_policy",
	},
	"envoy.config.core.v3.GrpcService.EnvoyGrpc": {
		enforced: "cluster_name authority",
		harmless: "skip_envoy_headers", // there are none
		refused:  "retry_policy max_receive_message_length",
	},
	"envoy.extensions.filters.http.ext_authz.v3.HttpService": {
		enforced: "server_uri path_prefix authorization_request authorization_response",
		refused:  "path_override retry_policy",
	},
	"envoy.extensions.filters.http.ext_authz.v3.AuthorizationRequest": {enforced: "allowed_headers headers_to_add"},
	"envoy.extensions.filters.http.ext_authz.v3.AuthorizationResponse": {
		enforced: "allowed_upstream_headers allowed_upstream_headers_to_append allowed_client_headers allowed_client_headers_on_success",
		refused:  "dynamic_metadata_from_headers",
	},
	"envoy.extensions.filters.http.ext_authz.v3.BufferSettings": {
		enforced: "max_request_bytes allow_partial_message pack_as_bytes",
	},
	"envoy.type.matcher.v3.ListStringMatcher": {enforced: "patterns"},
	"envoy.type.v3.HttpStatus":                {enforced: "code"},
	"envoy.config.core.v3.HeaderValue": {
		enforced: "key value",
		refused:  "raw_value",
	},
}
