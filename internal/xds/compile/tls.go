package compile

//lint:file-ignore SA1019 gRPC and Istio still read and send the fields that came before certificate_provider_instance.

import (
	"crypto/tls"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// names says where the name comes from that a server's certificate is for,
// as a cluster's upstream_http_protocol_options has it.
type names struct {
	// ofRequest sends the name of the host that is called (auto_sni).
	ofRequest bool
	// verified asks for a certificate for that name (auto_san_validation).
	verified bool
}

// clientTLS reads the transport socket of a cluster. How the server is
// verified follows from where the roots come from:
//
//   - A provider's roots and no SANs but URIs: the server proves a SPIFFE ID
//     (Istio's ISTIO_MUTUAL, gRFC A29). Envoy and gRPC take any certificate
//     under the roots where no SAN is asked for.
//   - SANs otherwise: the certificate has one of them.
//   - No SANs, or auto_sni_san_validation: the certificate is for the server's
//     name, the SNI if there is one and else the host that is called. Envoy
//     looks for the name only where it is told to.
//
// Without roots Envoy takes every certificate, which is refused here.
func clientTLS(m *tlsv3.UpstreamTlsContext, n names) (*snapshot.ClientTLS, *fault) {
	common := m.GetCommonTlsContext()
	out := &snapshot.ClientTLS{ServerName: m.GetSni()}
	var f *fault
	if out.Certificate, f = certificate(common); f != nil {
		return nil, f.under("common_tls_context")
	}
	if out.Trust, out.SANs, f = trust(common); f != nil {
		return nil, f.under("common_tls_context")
	}
	if out.MinVersion, f = versions(common.GetTlsParams()); f != nil {
		return nil, f.under("tls_params").under("common_tls_context")
	}
	if out.Protocols, f = clientProtocols(common.GetAlpnProtocols()); f != nil {
		return nil, f.under("common_tls_context")
	}
	if m.GetSni() != "" && strings.ContainsFunc(m.GetSni(), notInName) {
		return nil, faultf("sni", "%q is not a host name", m.GetSni())
	}
	if n.ofRequest {
		out.ServerName = ""
	}
	byName := m.GetAutoSniSanValidation() || n.verified
	switch {
	case byName && len(out.SANs) > 0:
		return nil, faultf("common_tls_context", "subject alternative names beside a certificate for the server's name: not supported together")
	case n.verified && out.ServerName != "":
		return nil, faultf("sni", "not supported where the certificate has to be for another name, the host that is called")
	case byName:
		out.Verify = snapshot.VerifyName
	case out.Trust.Instance != "" && onlySPIFFE(validation(common)):
		out.Verify = snapshot.VerifySPIFFE
	case len(out.SANs) > 0:
		out.Verify = snapshot.VerifySANs
	default:
		out.Verify = snapshot.VerifyName
	}
	return out, nil
}

// serverTLS reads the transport socket of a filter chain.
func serverTLS(m *tlsv3.DownstreamTlsContext) (*snapshot.ServerTLS, *fault) {
	common := m.GetCommonTlsContext()
	out := &snapshot.ServerTLS{RequireClientCertificate: m.GetRequireClientCertificate().GetValue()}
	var f *fault
	if m.GetRequireSni().GetValue() {
		return nil, faultf("require_sni", notSupported)
	}
	if out.Certificate, f = certificate(common); f != nil {
		return nil, f.under("common_tls_context")
	}
	if out.Certificate == (snapshot.CertificateSource{}) {
		return nil, faultf("common_tls_context", "there is no certificate, which a server has to have")
	}
	if out.Trust, out.SANs, f = trust(common); f != nil {
		return nil, f.under("common_tls_context")
	}
	if out.Trust.System {
		return nil, faultf("common_tls_context", "system_root_certs is not supported in a listener: anybody has a certificate under the roots of the system")
	}
	if out.MinVersion, f = versions(common.GetTlsParams()); f != nil {
		return nil, f.under("tls_params").under("common_tls_context")
	}
	if out.Protocols, f = serverProtocols(common.GetAlpnProtocols()); f != nil {
		return nil, f.under("common_tls_context")
	}
	return out, nil
}

// certificate reads which certificate is presented; none is the zero value.
func certificate(m *tlsv3.CommonTlsContext) (snapshot.CertificateSource, *fault) {
	const files, secrets = "tls_certificates", "tls_certificate_sds_secret_configs"
	if n := len(m.GetTlsCertificates()); n > 1 {
		return snapshot.CertificateSource{}, faultf(files, "%d certificates: not supported, only one is", n)
	}
	if n := len(m.GetTlsCertificateSdsSecretConfigs()); n > 1 {
		return snapshot.CertificateSource{}, faultf(secrets, "%d certificates: not supported, only one is", n)
	}
	var all choice[snapshot.CertificateSource]
	var f *fault
	for _, c := range m.GetTlsCertificates() {
		f = take(&all, files+"[0]", c, certificateFiles)
	}
	for _, c := range m.GetTlsCertificateSdsSecretConfigs() {
		if f == nil {
			f = take(&all, secrets+"[0]", c, secretCertificate)
		}
	}
	if f == nil {
		f = take(&all, "tls_certificate_provider_instance", m.GetTlsCertificateProviderInstance(), providerCertificate)
	}
	if f == nil {
		f = take(&all, "tls_certificate_certificate_provider_instance", m.GetTlsCertificateCertificateProviderInstance(), providerCertificate)
	}
	return all.value, f
}

// choice is one value that several fields may give. Two that say the same are
// as one: servers send old spellings beside new ones for the sake of old clients.
type choice[T comparable] struct {
	field string // the first that was taken; "" while there is none
	value T
}

// take reads a field into a choice, if it is set.
func take[M comparable, T comparable](c *choice[T], field string, m M, read func(M) (T, *fault)) *fault {
	var unset M
	if m == unset {
		return nil
	}
	value, f := read(m)
	switch {
	case f != nil:
		return f.under(field)
	case c.field == "":
		c.field, c.value = field, value
	case c.value != value:
		return faultf(field, "not supported beside %s", c.field)
	}
	return nil
}

func certificateFiles(m *tlsv3.TlsCertificate) (out snapshot.CertificateSource, f *fault) {
	if out.CertificateFile, f = file(m.GetCertificateChain()); f != nil {
		return out, f.under("certificate_chain")
	}
	if out.KeyFile, f = file(m.GetPrivateKey()); f != nil {
		return out, f.under("private_key")
	}
	return out, nil
}

// file reads the name of a file. Keys and certificates that come in a
// resource would make every resource a secret.
func file(m *corev3.DataSource) (string, *fault) {
	switch s := m.GetSpecifier().(type) {
	case *corev3.DataSource_Filename:
		if s.Filename == "" {
			return "", faultf("filename", "is empty")
		}
		return s.Filename, nil
	case nil:
		return "", faultf("filename", "missing")
	default:
		return "", faultf("", "must be a filename: other sources are not supported")
	}
}

// instance reads the name of an entry of certificate_providers in the
// bootstrap. A provider has one certificate and one set of roots, whatever
// certificate_name says (gRFC A29).
func instance(name string) (string, *fault) {
	if name == "" {
		return "", faultf("instance_name", "is empty")
	}
	return name, nil
}

// providerCertificate and providerTrust read instances, of the older message or the newer one.
func providerCertificate[M interface{ GetInstanceName() string }](m M) (out snapshot.CertificateSource, f *fault) {
	out.Instance, f = instance(m.GetInstanceName())
	return out, f
}

func providerTrust[M interface{ GetInstanceName() string }](m M) (out snapshot.TrustSource, f *fault) {
	out.Instance, f = instance(m.GetInstanceName())
	return out, f
}

func fileTrust(m *corev3.DataSource) (out snapshot.TrustSource, f *fault) {
	out.CAFile, f = file(m)
	return out, f
}

// The names that Istio's agent gives to secrets (istio/pkg/security).
const (
	istioAgent       = "sds-grpc"
	istioCertificate = "default"
	istioRoots       = "ROOTCA"
	istioCertFiles   = "file-cert:"
	istioRootFile    = "file-root:"
	istioSystemRoots = "file-root:system"
	ownInstance      = "default"
)

// secretCertificate reads the name of a secret that a sidecar gets from
// Istio's agent: the workload's own certificate, which is the instance
// "default" here, or that of two files.
func secretCertificate(m *tlsv3.SdsSecretConfig) (snapshot.CertificateSource, *fault) {
	if f := fromAgent(m); f != nil {
		return snapshot.CertificateSource{}, f
	}
	if m.GetName() == istioCertificate {
		return snapshot.CertificateSource{Instance: ownInstance}, nil
	}
	files, ok := strings.CutPrefix(m.GetName(), istioCertFiles)
	cert, key, two := strings.Cut(files, "~")
	if !ok || !two || cert == "" || key == "" {
		return snapshot.CertificateSource{}, faultf("name", "the secret %q is not supported", m.GetName())
	}
	return snapshot.CertificateSource{CertificateFile: cert, KeyFile: key}, nil
}

// secretTrust is secretCertificate for roots.
func secretTrust(m *tlsv3.SdsSecretConfig) (snapshot.TrustSource, *fault) {
	if f := fromAgent(m); f != nil {
		return snapshot.TrustSource{}, f
	}
	path, isFile := strings.CutPrefix(m.GetName(), istioRootFile)
	switch {
	case m.GetName() == istioRoots:
		return snapshot.TrustSource{Instance: ownInstance}, nil
	case m.GetName() == istioSystemRoots:
		return snapshot.TrustSource{System: true}, nil
	case isFile && path != "":
		return snapshot.TrustSource{CAFile: path}, nil
	}
	return snapshot.TrustSource{}, faultf("name", "the secret %q is not supported", m.GetName())
}

// fromAgent accepts secrets that Istio's agent would serve. Such of any other
// server are not known here, even under the same name.
func fromAgent(m *tlsv3.SdsSecretConfig) *fault {
	for _, service := range m.GetSdsConfig().GetApiConfigSource().GetGrpcServices() {
		if service.GetEnvoyGrpc().GetClusterName() == istioAgent {
			return nil
		}
	}
	return faultf("sds_config", "not supported: only the secrets of Istio's agent are, from the cluster %q", istioAgent)
}

// validation is the part of the validation that comes with the resource.
func validation(m *tlsv3.CommonTlsContext) *tlsv3.CertificateValidationContext {
	if combined := m.GetCombinedValidationContext(); combined != nil {
		return combined.GetDefaultValidationContext()
	}
	return m.GetValidationContext()
}

// Fields of roots that a context has by itself or in a combined one.
const (
	trustSecret   = "validation_context_sds_secret_config"
	trustProvider = "validation_context_certificate_provider_instance"
)

// trust reads what the peer's certificate is verified with and which subject
// alternative names it must have one of.
func trust(m *tlsv3.CommonTlsContext) (snapshot.TrustSource, []identity.SANMatch, *fault) {
	var all choice[snapshot.TrustSource]
	var sans []identity.SANMatch
	var f *fault
	switch v := m.GetValidationContextType().(type) {
	case *tlsv3.CommonTlsContext_ValidationContext:
		sans, f = validationContext(v.ValidationContext, &all)
		f = f.under("validation_context")
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		sans, f = combinedContext(v.CombinedValidationContext, &all)
		f = f.under("combined_validation_context")
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		f = take(&all, trustSecret, v.ValidationContextSdsSecretConfig, secretTrust)
	case *tlsv3.CommonTlsContext_ValidationContextCertificateProviderInstance:
		f = take(&all, trustProvider, v.ValidationContextCertificateProviderInstance, providerTrust)
	}
	if f == nil && all.field == "" {
		f = faultf("", "there are no roots to verify the peer with: every certificate would be taken")
	}
	return all.value, sans, f
}

func combinedContext(m *tlsv3.CommonTlsContext_CombinedCertificateValidationContext, all *choice[snapshot.TrustSource]) ([]identity.SANMatch, *fault) {
	sans, f := validationContext(m.GetDefaultValidationContext(), all)
	if f != nil {
		return nil, f.under("default_validation_context")
	}
	if f = take(all, trustSecret, m.GetValidationContextSdsSecretConfig(), secretTrust); f != nil {
		return nil, f
	}
	return sans, take(all, trustProvider, m.GetValidationContextCertificateProviderInstance(), providerTrust)
}

func validationContext(m *tlsv3.CertificateValidationContext, all *choice[snapshot.TrustSource]) ([]identity.SANMatch, *fault) {
	if f := take(all, "trusted_ca", m.GetTrustedCa(), fileTrust); f != nil {
		return nil, f
	}
	if f := take(all, "ca_certificate_provider_instance", m.GetCaCertificateProviderInstance(), providerTrust); f != nil {
		return nil, f
	}
	if m.GetSystemRootCerts() != nil && all.field == "" {
		// Envoy and gRPC use them only where nothing else is said.
		all.field, all.value = "system_root_certs", snapshot.TrustSource{System: true}
	}
	return matchSANs(m)
}

func matchSANs(m *tlsv3.CertificateValidationContext) ([]identity.SANMatch, *fault) {
	const typed, untyped = "match_typed_subject_alt_names", "match_subject_alt_names"
	if len(m.GetMatchTypedSubjectAltNames()) > 0 && len(m.GetMatchSubjectAltNames()) > 0 {
		return nil, faultf(untyped, "not supported beside %s", typed)
	}
	if len(m.GetMatchSubjectAltNames()) > 0 {
		return each(untyped, m.GetMatchSubjectAltNames(), func(s *matcherv3.StringMatcher) (identity.SANMatch, *fault) {
			return matchSAN(identity.SANAny, s)
		})
	}
	return each(typed, m.GetMatchTypedSubjectAltNames(), func(s *tlsv3.SubjectAltNameMatcher) (identity.SANMatch, *fault) {
		kind, ok := sanTypes[s.GetSanType()]
		if !ok {
			return identity.SANMatch{}, faultf("san_type", "%v is not supported", s.GetSanType())
		}
		match, f := matchSAN(kind, s.GetMatcher())
		return match, f.under("matcher")
	})
}

var sanTypes = map[tlsv3.SubjectAltNameMatcher_SanType]identity.SANType{
	tlsv3.SubjectAltNameMatcher_DNS:        identity.SANDNS,
	tlsv3.SubjectAltNameMatcher_URI:        identity.SANURI,
	tlsv3.SubjectAltNameMatcher_EMAIL:      identity.SANEmail,
	tlsv3.SubjectAltNameMatcher_IP_ADDRESS: identity.SANIP,
}

func matchSAN(kind identity.SANType, m *matcherv3.StringMatcher) (identity.SANMatch, *fault) {
	if e, ok := m.GetMatchPattern().(*matcherv3.StringMatcher_Exact); ok && !m.GetIgnoreCase() {
		if e.Exact == "" {
			return identity.SANMatch{}, faultf("exact", "is empty")
		}
		return identity.SANExact(kind, e.Exact), nil
	}
	match, f := stringMatch(m)
	if f != nil {
		return identity.SANMatch{}, f
	}
	return identity.SANText(kind, matcherText(m), match), nil
}

// matcherText describes a match in messages.
func matcherText(m *matcherv3.StringMatcher) string {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Prefix:
		return p.Prefix + "*"
	case *matcherv3.StringMatcher_Suffix:
		return "*" + p.Suffix
	case *matcherv3.StringMatcher_Contains:
		return "*" + p.Contains + "*"
	case *matcherv3.StringMatcher_SafeRegex:
		return "/" + p.SafeRegex.GetRegex() + "/"
	default:
		return m.GetExact()
	}
}

// onlySPIFFE reports whether nothing but SPIFFE IDs fulfils the names that are
// asked for. None at all ask for one too.
func onlySPIFFE(m *tlsv3.CertificateValidationContext) bool {
	for _, s := range m.GetMatchTypedSubjectAltNames() {
		if s.GetSanType() != tlsv3.SubjectAltNameMatcher_URI {
			return false
		}
	}
	for _, s := range m.GetMatchSubjectAltNames() {
		if !strings.HasPrefix(s.GetExact(), spiffeScheme) && !strings.HasPrefix(s.GetPrefix(), spiffeScheme) {
			return false
		}
	}
	return true
}

const spiffeScheme = "spiffe://"

// versions reads the oldest TLS version. Without one it is TLS 1.3, which is
// newer than Envoy's default; the newest is always TLS 1.3.
func versions(m *tlsv3.TlsParameters) (uint16, *fault) {
	switch m.GetTlsMaximumProtocolVersion() {
	case tlsv3.TlsParameters_TLS_AUTO, tlsv3.TlsParameters_TLSv1_3:
	default:
		return 0, faultf("tls_maximum_protocol_version", "%v is not supported: TLS 1.3 can not be ruled out", m.GetTlsMaximumProtocolVersion())
	}
	switch m.GetTlsMinimumProtocolVersion() {
	case tlsv3.TlsParameters_TLS_AUTO, tlsv3.TlsParameters_TLSv1_3:
		return 0, nil
	case tlsv3.TlsParameters_TLSv1_2:
		// The suites of TLS 1.2 can not be chosen, so where a list names the only
		// good ones TLS 1.2 is not spoken. Those of TLS 1.3 are not in such lists.
		if len(m.GetCipherSuites()) > 0 {
			return 0, nil
		}
		return tls.VersionTLS12, nil
	default:
		return 0, faultf("tls_minimum_protocol_version", "%v is not supported: it is older than TLS 1.2", m.GetTlsMinimumProtocolVersion())
	}
}

const istioPeerExchange = "istio-peer-exchange"

// istioProtocols are the ALPN names by which Istio's proxies know mutual TLS of the mesh.
var istioProtocols = []string{"istio", istioPeerExchange, "istio-http/1.0", "istio-http/1.1", "istio-h2"}

func httpProtocols(protocols []string) (http []string, istio bool, f *fault) {
	for i, p := range protocols {
		switch {
		case slices.Contains(istioProtocols, p):
			istio = true
		case p == "h2" || p == "http/1.1":
			http = append(http, p)
		default:
			return nil, false, faultf("", "%q is not supported: neither HTTP nor Istio's", p).underIndex("alpn_protocols", i)
		}
	}
	return http, istio, nil
}

// clientProtocols reads what is offered by ALPN. A list with Istio's names
// marks TLS of the mesh. Istio's proxies replace it for every HTTP request, and
// istio-peer-exchange promises a protocol that only they speak, so that such a
// list is what a client of the mesh offers by itself.
func clientProtocols(protocols []string) ([]string, *fault) {
	http, istio, f := httpProtocols(protocols)
	if istio {
		return nil, f
	}
	return http, f
}

// serverProtocols reads what is accepted by ALPN. Envoy goes on without ALPN
// where none of the client's protocols is in the list, as with Istio's clients,
// so a list for both versions of HTTP accepts Istio's names too.
func serverProtocols(protocols []string) ([]string, *fault) {
	http, istio, f := httpProtocols(protocols)
	if istio || len(http) > 1 {
		return nil, f
	}
	return http, f
}
