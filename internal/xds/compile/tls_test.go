package compile

import (
	"crypto/tls"
	"fmt"
	"reflect"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const (
	tlsPackage = `"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.`
	ownCert    = `"tls_certificate_provider_instance": {"instance_name": "default", "certificate_name": "default"}`
	ownRoots   = `"ca_certificate_provider_instance": {"instance_name": "default", "certificate_name": "ROOTCA"}`
	ownTrust   = `"validation_context": {` + ownRoots + `}`
	sdsCert    = `"tls_certificate_sds_secret_configs": [{"name": "default", ` + fromSDS + `}]`
	sdsTrust   = `"combined_validation_context": {"default_validation_context": {}, "validation_context_sds_secret_config": {"name": "ROOTCA", ` + fromSDS + `}}`
	fromSDS    = `"sds_config": {"api_config_source": {"api_type": "GRPC", "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}]}}`
)

// clientSocket is a TLS socket of a cluster, with fields of CommonTlsContext and others.
func clientSocket(common, fields string) string {
	return socketOf("UpstreamTlsContext", common, fields)
}

func serverSocket(common, fields string) string {
	return socketOf("DownstreamTlsContext", common, fields)
}

func socketOf(kind, common, fields string) string {
	if fields != "" {
		fields = ", " + fields
	}
	return fmt.Sprintf(`{"name": "envoy.transport_sockets.tls", "typed_config": {%s%s", "common_tls_context": {%s}%s}}`, tlsPackage, kind, common, fields)
}

func trusting(context string) string { return `"validation_context": {` + context + `}` }

func TestClientTLS(t *testing.T) {
	own := snapshot.CertificateSource{Instance: "default"}
	roots := snapshot.TrustSource{Instance: "default"}
	uri := identity.SANExact(identity.SANURI, "spiffe://cluster.local/ns/a/sa/b")
	const uriSAN = `"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "spiffe://cluster.local/ns/a/sa/b"}}]`
	const dnsSAN = `"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a.example.com"}}]`
	dns := identity.SANExact(identity.SANDNS, "a.example.com")
	const automatic = `"upstream_http_protocol_options": {"auto_sni": true, "auto_san_validation": true}`
	for _, tt := range []struct {
		name, common, fields, cluster string
		want                          snapshot.ClientTLS
	}{
		{"the mesh's own", ownCert + `, ` + trusting(ownRoots+`, `+uriSAN) + `, "alpn_protocols": ["istio-peer-exchange", "istio", "h2"], "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}`,
			`"sni": "outbound_.8080_._.foo.default.svc.cluster.local", "max_session_keys": 0`, "",
			snapshot.ClientTLS{Certificate: own, Trust: roots, ServerName: "outbound_.8080_._.foo.default.svc.cluster.local", SANs: []identity.SANMatch{uri}}},
		{"both spellings of gRPC", ownCert + `, "tls_certificate_certificate_provider_instance": {"instance_name": "default", "certificate_name": "x"}, "combined_validation_context": {"default_validation_context": {` + ownRoots + `,
			"match_subject_alt_names": [{"exact": "spiffe://cluster.local/ns/a/sa/b"}]}, "validation_context_certificate_provider_instance": {"instance_name": "default"}}`, "", "",
			snapshot.ClientTLS{Certificate: own, Trust: roots, SANs: []identity.SANMatch{identity.SANExact(identity.SANAny, "spiffe://cluster.local/ns/a/sa/b")}}},
		{"the older spelling alone", `"tls_certificate_certificate_provider_instance": {"instance_name": "i"}, "validation_context_certificate_provider_instance": {"instance_name": "r"}`, "", "",
			snapshot.ClientTLS{Certificate: snapshot.CertificateSource{Instance: "i"}, Trust: snapshot.TrustSource{Instance: "r"}}},
		{"no certificate of our own", ownTrust, "", "", snapshot.ClientTLS{Trust: roots}},
		{"a prefix of IDs", trusting(ownRoots + `, "match_subject_alt_names": [{"prefix": "spiffe://cluster.local/"}]`), "", "",
			snapshot.ClientTLS{Trust: roots, SANs: []identity.SANMatch{textSAN(t, identity.SANAny, `{"prefix": "spiffe://cluster.local/"}`)}}},
		{"a provider's roots and a DNS name", trusting(ownRoots + `, ` + dnsSAN), "", "", snapshot.ClientTLS{Trust: roots, Verify: snapshot.VerifySANs, SANs: []identity.SANMatch{dns}}},
		{"a provider's roots and any name that fits", trusting(ownRoots + `, "match_subject_alt_names": [{"suffix": "/sa/b"}]`), "", "",
			snapshot.ClientTLS{Trust: roots, Verify: snapshot.VerifySANs, SANs: []identity.SANMatch{textSAN(t, identity.SANAny, `{"suffix": "/sa/b"}`)}}},
		{"a provider's roots and the server's name", ownTrust, `"sni": "a.example.com", "auto_sni_san_validation": true`, "", snapshot.ClientTLS{Trust: roots, Verify: snapshot.VerifyName, ServerName: "a.example.com"}},
		{"files", `"tls_certificates": [{"certificate_chain": {"filename": "/c"}, "private_key": {"filename": "/k"}, "watched_directory": {"path": "/"}}], ` + trusting(`"trusted_ca": {"filename": "/r"}, `+dnsSAN), "", "",
			snapshot.ClientTLS{Certificate: snapshot.CertificateSource{CertificateFile: "/c", KeyFile: "/k"}, Trust: snapshot.TrustSource{CAFile: "/r"}, Verify: snapshot.VerifySANs, SANs: []identity.SANMatch{dns}}},
		{"the roots of the system", trusting(`"system_root_certs": {}`), `"sni": "a.example.com"`, "", snapshot.ClientTLS{Trust: snapshot.TrustSource{System: true}, Verify: snapshot.VerifyName, ServerName: "a.example.com"}},
		{"the roots of the system, where nothing else is said", trusting(`"system_root_certs": {}, ` + ownRoots), "", "", snapshot.ClientTLS{Trust: roots}},
		{"the name of the host that is called", trusting(`"trusted_ca": {"filename": "/r"}`), "", automatic, snapshot.ClientTLS{Trust: snapshot.TrustSource{CAFile: "/r"}, Verify: snapshot.VerifyName}},
		{"the name that the request says stands for sni", trusting(`"trusted_ca": {"filename": "/r"}`), `"sni": "other"`, automatic, snapshot.ClientTLS{Trust: snapshot.TrustSource{CAFile: "/r"}, Verify: snapshot.VerifyName}},
		{"a name without being told to look at it", trusting(`"trusted_ca": {"filename": "/r"}`), "", "", snapshot.ClientTLS{Trust: snapshot.TrustSource{CAFile: "/r"}, Verify: snapshot.VerifyName}},
		{"Istio's agent", sdsCert + `, ` + sdsTrust, "", "", snapshot.ClientTLS{Certificate: own, Trust: roots}},
		{"Istio's agent, roots alone", `"validation_context_sds_secret_config": {"name": "ROOTCA", ` + fromSDS + `}`, "", "", snapshot.ClientTLS{Trust: roots}},
		{"files of Istio's agent", `"tls_certificate_sds_secret_configs": [{"name": "file-cert:/c~/k", ` + fromSDS + `}], "validation_context_sds_secret_config": {"name": "file-root:/r", ` + fromSDS + `}`, `"sni": "a"`, "",
			snapshot.ClientTLS{Certificate: snapshot.CertificateSource{CertificateFile: "/c", KeyFile: "/k"}, Trust: snapshot.TrustSource{CAFile: "/r"}, Verify: snapshot.VerifyName, ServerName: "a"}},
		{"the system's roots of Istio's agent", `"validation_context_sds_secret_config": {"name": "file-root:system", ` + fromSDS + `}`, "", "", snapshot.ClientTLS{Trust: snapshot.TrustSource{System: true}, Verify: snapshot.VerifyName}},
		{"TLS 1.2", ownTrust + `, "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}`, "", "", snapshot.ClientTLS{Trust: roots, MinVersion: tls.VersionTLS12}},
		{"a list of suites keeps TLS 1.2 off", ownTrust + `, "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "cipher_suites": ["ECDHE-RSA-AES128-GCM-SHA256"]}`, "", "", snapshot.ClientTLS{Trust: roots}},
		{"only HTTP/2", ownTrust + `, "alpn_protocols": ["h2"]`, "", "", snapshot.ClientTLS{Trust: roots, Protocols: []string{"h2"}}},
	} {
		cluster := eds + `, "transport_socket": ` + clientSocket(tt.common, tt.fields)
		if tt.cluster != "" {
			cluster += `, ` + tt.cluster
		}
		c, err := oneCluster(t, cluster)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if !reflect.DeepEqual(*c.TLS, tt.want) || c.Sockets != nil {
			t.Errorf("%s: %+v\nwant %+v", tt.name, *c.TLS, tt.want)
		}
	}
}

func textSAN(t *testing.T, kind identity.SANType, matcher string) identity.SANMatch {
	t.Helper()
	m := sanMatcher(t, matcher)
	text, f := stringMatch(m)
	if f != nil {
		t.Fatal(f.why)
	}
	return identity.SANText(kind, matcherText(m), text)
}

// As Istio writes automatic mutual TLS.
func TestSocketsByEndpoint(t *testing.T) {
	c, err := oneCluster(t, eds+`, "transport_socket_matches": [
		{"name": "tlsMode-istio", "match": {"tlsMode": "istio"}, "transport_socket": `+clientSocket(ownCert+`, `+ownTrust, "")+`},
		{"name": "tlsMode-disabled", "match": {}, "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}}]`)
	if err != nil {
		t.Fatal(err)
	}
	_, eps, err := Endpoints(endpointsOf(t, `{"cluster_name": "c", "endpoints": [{"lb_endpoints": [`+at("10.0.0.1", 1, `, "metadata": {"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}}`)+`,
		`+at("10.0.0.2", 1, `, "metadata": {"filter_metadata": {"envoy.lb": {"tlsMode": "istio"}}}`)+`]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Security(eps.All[0].Socket); got == nil || got.Trust.Instance != "default" || got.Verify != snapshot.VerifySPIFFE {
		t.Errorf("an endpoint of the mesh: %+v", got)
	}
	if got := c.Security(eps.All[1].Socket); got != nil {
		t.Errorf("an endpoint that says so elsewhere: %+v", got)
	}
	if c.TLS != nil {
		t.Errorf("%+v", c.TLS)
	}
}

func TestClientTLSErrorsNameTheField(t *testing.T) {
	const context = "transport_socket.typed_config"
	const common = context + ".common_tls_context"
	inBase := func(fields string) string { return ownTrust + `, ` + fields }
	dns := trusting(ownRoots + `, "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a"}}]`)
	for _, tt := range []struct{ common, fields, path string }{
		// What would leave the server unverified.
		{``, ``, common},
		{ownCert, ``, common},
		{trusting(``), ``, common},
		{trusting(ownRoots + `, "trust_chain_verification": "ACCEPT_UNTRUSTED"`), ``, common + ".validation_context.trust_chain_verification"},
		{trusting(ownRoots + `, "allow_expired_certificate": true`), ``, common + ".validation_context.allow_expired_certificate"},
		{trusting(`"verify_certificate_spki": ["x"]`), ``, common + ".validation_context.verify_certificate_spki"},
		{trusting(`"verify_certificate_hash": ["x"]`), ``, common + ".validation_context.verify_certificate_hash"},
		{trusting(ownRoots + `, "crl": {"filename": "x"}`), ``, common + ".validation_context.crl"},
		{trusting(ownRoots + `, "custom_validator_config": {"name": "x"}`), ``, common + ".validation_context.custom_validator_config"},
		{trusting(ownRoots + `, "require_signed_certificate_timestamp": true`), ``, common + ".validation_context.require_signed_certificate_timestamp"},
		{trusting(ownRoots + `, "max_verify_depth": 1`), ``, common + ".validation_context.max_verify_depth"},
		// Roots.
		{trusting(ownRoots + `, "trusted_ca": {"filename": "x"}`), ``, common + ".validation_context.ca_certificate_provider_instance"},
		{trusting(`"trusted_ca": {"inline_string": "x"}`), ``, common + ".validation_context.trusted_ca"},
		{trusting(`"trusted_ca": {"filename": ""}`), ``, common + ".validation_context.trusted_ca.filename"},
		{trusting(`"trusted_ca": {}`), ``, common + ".validation_context.trusted_ca.filename"},
		{trusting(`"trusted_ca": {"environment_variable": "x"}`), ``, common + ".validation_context.trusted_ca.environment_variable"},
		{trusting(`"ca_certificate_provider_instance": {}`), ``, common + ".validation_context.ca_certificate_provider_instance.instance_name"},
		{`"combined_validation_context": {"default_validation_context": {` + ownRoots + `}, "validation_context_certificate_provider_instance": {"instance_name": "other"}}`, ``,
			common + ".combined_validation_context.validation_context_certificate_provider_instance"},
		{`"combined_validation_context": {"default_validation_context": {"trusted_ca": {}}}`, ``, common + ".combined_validation_context.default_validation_context.trusted_ca.filename"},
		{`"combined_validation_context": {"validation_context_sds_secret_config": {"name": "kubernetes://x", ` + fromSDS + `}}`, ``, common + ".combined_validation_context.validation_context_sds_secret_config.name"},
		{`"validation_context_sds_secret_config": {"name": "file-root:", ` + fromSDS + `}`, ``, common + ".validation_context_sds_secret_config.name"},
		{`"validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": {"ads": {}}}`, ``, common + ".validation_context_sds_secret_config.sds_config"},
		{`"validation_context_certificate_provider_instance": {}`, ``, common + ".validation_context_certificate_provider_instance.instance_name"},
		{`"validation_context_certificate_provider": {"name": "x"}`, ``, common + ".validation_context_certificate_provider"},
		// Names.
		{trusting(ownRoots + `, "match_typed_subject_alt_names": [{"matcher": {"exact": "a"}}]`), ``, common + ".validation_context.match_typed_subject_alt_names[0].san_type"},
		{trusting(ownRoots + `, "match_typed_subject_alt_names": [{"san_type": "OTHER_NAME", "matcher": {"exact": "a"}}]`), ``, common + ".validation_context.match_typed_subject_alt_names[0].san_type"},
		{trusting(ownRoots + `, "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": ""}}]`), ``, common + ".validation_context.match_typed_subject_alt_names[0].matcher.exact"},
		{trusting(ownRoots + `, "match_typed_subject_alt_names": [{"san_type": "DNS"}]`), ``, common + ".validation_context.match_typed_subject_alt_names[0].matcher"},
		{trusting(ownRoots + `, "match_typed_subject_alt_names": [{"san_type": "DNS", "oid": "1", "matcher": {"exact": "a"}}]`), ``, common + ".validation_context.match_typed_subject_alt_names[0].oid"},
		{trusting(ownRoots + `, "match_subject_alt_names": [{"exact": "a"}, {"prefix": ""}]`), ``, common + ".validation_context.match_subject_alt_names[1].prefix"},
		{trusting(ownRoots + `, "match_subject_alt_names": [{"exact": "a"}], "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a"}}]`), ``, common + ".validation_context.match_subject_alt_names"},
		{dns, `"auto_sni_san_validation": true`, common},
		{ownTrust, `"sni": "a b"`, context + ".sni"},
		{ownTrust, `"auto_host_sni": true`, context + ".auto_host_sni"},
		// Our own certificate.
		{inBase(`"tls_certificates": [{}]`), ``, common + ".tls_certificates[0].certificate_chain.filename"},
		{inBase(`"tls_certificates": [{"certificate_chain": {"filename": "c"}, "private_key": {"inline_bytes": "eA=="}}]`), ``, common + ".tls_certificates[0].private_key"},
		{inBase(`"tls_certificates": [{}, {}]`), ``, common + ".tls_certificates"},
		{inBase(`"tls_certificates": [{"pkcs12": {"filename": "x"}}]`), ``, common + ".tls_certificates[0].pkcs12"},
		{inBase(`"tls_certificate_provider_instance": {}`), ``, common + ".tls_certificate_provider_instance.instance_name"},
		{inBase(`"tls_certificate_certificate_provider_instance": {}`), ``, common + ".tls_certificate_certificate_provider_instance.instance_name"},
		{inBase(ownCert + `, "tls_certificate_certificate_provider_instance": {"instance_name": "other"}`), ``, common + ".tls_certificate_certificate_provider_instance"},
		{inBase(`"tls_certificate_sds_secret_configs": [{"name": "other", ` + fromSDS + `}]`), ``, common + ".tls_certificate_sds_secret_configs[0].name"},
		{inBase(`"tls_certificate_sds_secret_configs": [{"name": "file-cert:c~", ` + fromSDS + `}]`), ``, common + ".tls_certificate_sds_secret_configs[0].name"},
		{inBase(`"tls_certificate_sds_secret_configs": [{"name": "default"}]`), ``, common + ".tls_certificate_sds_secret_configs[0].sds_config"},
		{inBase(sdsCert + `, "tls_certificates": [{"certificate_chain": {"filename": "c"}, "private_key": {"filename": "k"}}]`), ``, common + ".tls_certificate_sds_secret_configs[0]"},
		// The protocol.
		{inBase(`"tls_params": {"tls_minimum_protocol_version": "TLSv1_1"}`), ``, common + ".tls_params.tls_minimum_protocol_version"},
		{inBase(`"tls_params": {"tls_minimum_protocol_version": "TLSv1_0"}`), ``, common + ".tls_params.tls_minimum_protocol_version"},
		{inBase(`"tls_params": {"tls_minimum_protocol_version": 77}`), ``, common + ".tls_params.tls_minimum_protocol_version"},
		{inBase(`"tls_params": {"tls_maximum_protocol_version": "TLSv1_2"}`), ``, common + ".tls_params.tls_maximum_protocol_version"},
		{inBase(`"tls_params": {"ecdh_curves": ["x"]}`), ``, common + ".tls_params.ecdh_curves"},
		{inBase(`"alpn_protocols": ["h2", "h3"]`), ``, common + ".alpn_protocols[1]"},
		{inBase(`"key_log": {"path": "x"}`), ``, common + ".key_log"},
		{inBase(`"custom_handshaker": {"name": "x"}`), ``, common + ".custom_handshaker"},
		{ownTrust, `"allow_renegotiation": true`, context + ".allow_renegotiation"},
		{ownTrust, `"enforce_rsa_key_usage": true`, context + ".enforce_rsa_key_usage"},
	} {
		_, err := oneCluster(t, eds+`, "transport_socket": `+clientSocket(tt.common, tt.fields))
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
	_, err := oneCluster(t, eds+`, "upstream_http_protocol_options": {"auto_san_validation": true}, "transport_socket": `+clientSocket(ownTrust, `"sni": "other"`))
	requirePath(t, err, context+".sni")
	_, err = oneCluster(t, eds+`, "upstream_http_protocol_options": {"auto_sni": true, "auto_san_validation": true}, "transport_socket": `+clientSocket(dns, ``))
	requirePath(t, err, common)
	_, err = oneCluster(t, eds+`, "transport_socket_matches": [{"name": "a", "transport_socket": `+clientSocket(ownCert, ``)+`}]`)
	requirePath(t, err, "transport_socket_matches[0].transport_socket.typed_config.common_tls_context")
}

func TestServerTLS(t *testing.T) {
	own := snapshot.CertificateSource{Instance: "default"}
	roots := snapshot.TrustSource{Instance: "default"}
	const required = `"require_client_certificate": true`
	for _, tt := range []struct {
		name, common, fields string
		want                 snapshot.ServerTLS
	}{
		{"mutual TLS", ownCert + `, ` + ownTrust + `, "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"}`, required + `, "disable_stateless_session_resumption": true`, snapshot.ServerTLS{Certificate: own, Trust: roots, RequireClientCertificate: true}},
		{"TLS 1.2 and certain callers", ownCert + `, ` + trusting(ownRoots+`, "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://td/"}}]`) + `, "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}`, required,
			snapshot.ServerTLS{Certificate: own, Trust: roots, RequireClientCertificate: true, MinVersion: tls.VersionTLS12, SANs: []identity.SANMatch{textSAN(t, identity.SANURI, `{"prefix": "spiffe://td/"}`)}}},
		{"a certificate if there is one", ownCert + `, ` + ownTrust, `"require_client_certificate": false, "require_sni": false`, snapshot.ServerTLS{Certificate: own, Trust: roots}},
		{"Istio's agent", sdsCert + `, ` + sdsTrust + `, "alpn_protocols": ["istio-peer-exchange", "h2", "http/1.1"]`, required, snapshot.ServerTLS{Certificate: own, Trust: roots, RequireClientCertificate: true}},
		{"both versions of HTTP", ownCert + `, ` + ownTrust + `, "alpn_protocols": ["h2", "http/1.1"]`, required, snapshot.ServerTLS{Certificate: own, Trust: roots, RequireClientCertificate: true}},
		{"one version of HTTP", ownCert + `, ` + ownTrust + `, "alpn_protocols": ["http/1.1"]`, required, snapshot.ServerTLS{Certificate: own, Trust: roots, RequireClientCertificate: true, Protocols: []string{"http/1.1"}}},
		{"files", `"tls_certificates": [{"certificate_chain": {"filename": "/c"}, "private_key": {"filename": "/k"}}], ` + trusting(`"trusted_ca": {"filename": "/r"}`), required,
			snapshot.ServerTLS{Certificate: snapshot.CertificateSource{CertificateFile: "/c", KeyFile: "/k"}, Trust: snapshot.TrustSource{CAFile: "/r"}, RequireClientCertificate: true}},
	} {
		_, in, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(everyInbound, `"transport_socket": `+serverSocket(tt.common, tt.fields))+`]`)))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if !reflect.DeepEqual(*in.TLS.Socket, tt.want) || in.Plain != nil {
			t.Errorf("%s: %+v\nwant %+v", tt.name, *in.TLS.Socket, tt.want)
		}
	}
	const context = "filter_chains[0].transport_socket.typed_config"
	const common = context + ".common_tls_context"
	for _, tt := range []struct{ common, fields, path string }{
		{ownTrust, required, common},
		{ownCert, required, common},
		{ownCert, ``, common},
		{ownCert + `, ` + trusting(`"system_root_certs": {}`), required, common},
		{ownCert + `, ` + ownTrust, `"require_sni": true`, context + ".require_sni"},
		{ownCert + `, ` + ownTrust, `"ocsp_staple_policy": "MUST_STAPLE"`, context + ".ocsp_staple_policy"},
		{ownCert + `, ` + ownTrust, `"session_ticket_keys": {}`, context + ".session_ticket_keys"},
		{ownCert + `, ` + ownTrust + `, "alpn_protocols": ["x"]`, ``, common + ".alpn_protocols[0]"},
		{ownCert + `, ` + ownTrust + `, "tls_params": {"tls_maximum_protocol_version": "TLSv1_1"}`, ``, common + ".tls_params.tls_maximum_protocol_version"},
		{`"tls_certificates": [{}], ` + ownTrust, ``, common + ".tls_certificates[0].certificate_chain.filename"},
	} {
		_, _, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(everyInbound, `"transport_socket": `+serverSocket(tt.common, tt.fields))+`]`)))
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

func TestFilterChains(t *testing.T) {
	secured := `"transport_socket": ` + serverSocket(ownCert+`, `+ownTrust, `"require_client_certificate": true`)
	match := func(m string) string { return `"filter_chain_match": {` + m + `}` }
	const tlsMatch, rawMatch = `"transport_protocol": "tls"`, `"transport_protocol": "raw_buffer"`
	const istioALPN = tlsMatch + `, "application_protocols": ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"]`
	list := func(chains ...string) string {
		out := `"filter_chains": [`
		for i, fields := range chains {
			if i > 0 {
				out += ", "
			}
			out += chain(everyInbound, fields)
		}
		return out + `]`
	}
	last := func(fields string) string { return `, "default_filter_chain": ` + chain(everyInbound, fields) }
	for _, tt := range []struct {
		name, chains string
		tls, plain   bool
	}{
		{"strict", list(secured), true, false},
		{"strict, with an empty match", list(match("") + `, ` + secured), true, false},
		{"disabled", list(""), false, true},
		{"permissive", list(match(tlsMatch)+`, `+secured, match(rawMatch)), true, true},
		{"permissive, in the other order", list(match(rawMatch), match(tlsMatch)+`, `+secured), true, true},
		{"permissive with Istio's ALPN", list(match(istioALPN)+`, `+secured, match(rawMatch)), true, true},
		{"TLS by match, all else refused", list(match(tlsMatch) + `, ` + secured), true, false},
		{"TLS by match, the default for the rest", list(match(tlsMatch)+`, `+secured) + last(""), true, true},
		{"plain by match, the default for the rest", list(match(rawMatch)) + last(secured), true, true},
		{"only a default", last(secured)[2:], true, false},
		{"a default that nothing reaches", list(secured) + last(""), true, false},
		{"a default with TLS for plain text refuses it", list(match(tlsMatch)+`, `+secured) + last(secured), true, false},
		{"a default whose match plays no part", list(match(tlsMatch)+`, `+secured) + last(match(tlsMatch)), true, true},
	} {
		_, in, err := Inbound(listenerOf(t, inboundOf(tt.chains)))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if (in.TLS != nil) != tt.tls || (in.Plain != nil) != tt.plain || tt.tls && in.TLS.Socket == nil || tt.plain && in.Plain.Socket != nil {
			t.Errorf("%s: %+v, %+v", tt.name, in.TLS, in.Plain)
		}
	}
	for _, tt := range []struct{ name, chains, path string }{
		{"TLS that passes through", list(match(tlsMatch)), "filter_chains[0].transport_socket"},
		{"as Istio's permissive mode on a port of no protocol", list(match(istioALPN)+`, `+secured, match(tlsMatch), match(rawMatch)), "filter_chains[1].filter_chain_match"},
		{"plain text with TLS", list(match(rawMatch) + `, ` + secured), "filter_chains[0].transport_socket"},
		{"plain text alone", list(match(rawMatch)), "filter_chains"},
		{"another ALPN", list(match(tlsMatch+`, "application_protocols": ["istio", "h2"]`) + `, ` + secured), "filter_chains[0].filter_chain_match.application_protocols[1]"},
		{"ALPN of plain text", list(match(`"application_protocols": ["istio"]`)), "filter_chains[0].filter_chain_match.application_protocols"},
		{"another protocol", list(match(`"transport_protocol": "quic"`)), "filter_chains[0].filter_chain_match.transport_protocol"},
		{"another port", list(match(`"destination_port": 1`)), "filter_chains[0].filter_chain_match.destination_port"},
		{"by server name", list(match(tlsMatch+`, "server_names": ["a"]`) + `, ` + secured), "filter_chains[0].filter_chain_match.server_names"},
		{"by source", list(match(`"source_prefix_ranges": [{"address_prefix": "10.0.0.0"}]`)), "filter_chains[0].filter_chain_match.source_prefix_ranges"},
		{"TLS twice", list(match(tlsMatch)+`, `+secured, match(tlsMatch)+`, `+secured), "filter_chains[1].filter_chain_match"},
		{"a default that is not sound", list("") + `, "default_filter_chain": {}`, "default_filter_chain.filters"},
	} {
		_, _, err := Inbound(listenerOf(t, inboundOf(tt.chains)))
		t.Run(tt.name, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}
