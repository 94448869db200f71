package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// tlsLists are the messages of transport sockets.
var tlsLists = map[protoreflect.FullName]lists{
	"envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext": {
		enforced: "common_tls_context sni auto_sni_san_validation",
		harmless: "max_session_keys", // no session is ever resumed: it would skip verification
		refused:  "auto_host_sni allow_renegotiation enforce_rsa_key_usage",
	},
	"envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext": {
		enforced: "common_tls_context require_client_certificate require_sni",
		// No session is ever resumed; there is one certificate, whatever the SNI;
		// which of the accepted cipher suites is taken does not matter.
		harmless: "disable_stateless_session_resumption disable_stateful_session_resumption session_timeout " +
			"full_scan_certs_on_sni_mismatch prefer_client_ciphers",
		refused: "session_ticket_keys session_ticket_keys_sds_secret_config ocsp_staple_policy",
	},
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext": {
		enforced: "tls_params tls_certificates tls_certificate_sds_secret_configs tls_certificate_provider_instance " +
			"tls_certificate_certificate_provider_instance validation_context validation_context_sds_secret_config " +
			"combined_validation_context validation_context_certificate_provider_instance alpn_protocols",
		refused: "custom_tls_certificate_selector tls_certificate_certificate_provider validation_context_certificate_provider " +
			"custom_handshaker key_log",
	},
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CertificateProviderInstance": {
		enforced: "instance_name",
		harmless: "certificate_name", // a provider has one certificate and one set of roots
	},
	"envoy.extensions.transport_sockets.tls.v3.CertificateProviderPluginInstance": {
		enforced: "instance_name",
		harmless: "certificate_name",
	},
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext": {
		enforced: "default_validation_context validation_context_sds_secret_config validation_context_certificate_provider_instance",
		refused:  "validation_context_certificate_provider",
	},
	"envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": {
		enforced: "name",
		// Read in tls.go, where the source has to be Istio's agent; how it is
		// spoken to does not matter, since the secrets come from the process's own provider.
		harmless: "sds_config",
	},
	"envoy.extensions.transport_sockets.tls.v3.TlsCertificate": {
		enforced: "certificate_chain private_key",
		harmless: "watched_directory", // files are read again when they change, wherever they are
		refused:  "pkcs12 private_key_provider password ocsp_staple signed_certificate_timestamp tls_params",
	},
	"envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext": {
		enforced: "trusted_ca ca_certificate_provider_instance system_root_certs match_typed_subject_alt_names match_subject_alt_names",
		// Files are read again when they change; the list of CAs is a hint to
		// clients; the last is about revocation lists, which are refused.
		harmless: "watched_directory suppress_client_ca_list only_verify_leaf_cert_crl",
		refused: "verify_certificate_spki verify_certificate_hash require_signed_certificate_timestamp crl " +
			"allow_expired_certificate trust_chain_verification custom_validator_config max_verify_depth",
	},
	"envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.SystemRootCerts": {},
	"envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher": {
		enforced: "san_type matcher",
		refused:  "oid",
	},
	"envoy.extensions.transport_sockets.tls.v3.TlsParameters": {
		// A list of cipher suites is of TLS 1.2 and keeps that version off.
		enforced: "tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites",
		refused:  "ecdh_curves signature_algorithms compliance_policies",
	},
	"envoy.config.core.v3.DataSource": {
		enforced: "filename inline_bytes inline_string",
		harmless: "watched_directory", // files are read again when they change
		refused:  "environment_variable",
	},
	"envoy.config.core.v3.UpstreamHttpProtocolOptions": {
		enforced: "auto_sni auto_san_validation",
		refused:  "override_auto_sni_header",
	},
}
