package translate

//lint:file-ignore SA1019 gRPC reads only the fields of older Envoy.

import (
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/identity"
)

// Where certificates come from: the certificate provider of a client's bootstrap
// (gRFC A29), and the names of the two things that it provides. For Envoy they are
// the secrets of Istio's agent.
const (
	providerInstance = "default"
	certificateName  = "default"
	rootName         = "ROOTCA"
	secretCluster    = "sds-grpc"
)

const tlsSocketName = "envoy.transport_sockets.tls" // gRPC takes no other

func tlsSocket(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       tlsSocketName,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: mustPack(context)},
	}
}

func plainSocket() *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.raw_buffer",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: mustPack(&rawbufferv3.RawBuffer{})},
	}
}

// serverSocket takes connections with mutual TLS. Where the mesh's settings name
// its trust domain, a caller has to be of that one or of an alias, as in Istio;
// else the roots decide alone. gRPC knows no such condition on the server side:
// there, the roots always decide.
func (b *builder) serverSocket() *corev3.TransportSocket {
	var domains []*matcherv3.StringMatcher
	if settings := b.view.set.MeshConfig; settings != nil && settings.Spec.GetTrustDomain() != "" {
		if b.client.Agent == GRPC {
			b.note(about(&settings.Meta)+" trustDomain", "gRPC takes callers of every trust domain that its roots vouch for")
		} else {
			for _, td := range b.trustDomains() {
				domains = append(domains, text("spiffe://"+td+"/*", false))
			}
		}
	}
	common := b.meshCertificates(&tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: uriNames(domains)})
	if b.client.Agent != GRPC {
		common.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	if b.client.Agent == Sinew {
		common.AlpnProtocols = nil // its own default also takes what Istio's proxies offer
	}
	return tlsSocket(&tlsv3.DownstreamTlsContext{
		CommonTlsContext:         common,
		RequireClientCertificate: wrapperspb.Bool(true),
	})
}

// trustDomains are the mesh's own and its aliases.
func (b *builder) trustDomains() []string {
	m := b.view.set.MeshConfig
	return append([]string{m.TrustDomain()}, m.TrustDomainAliases()...)
}

// meshCertificates says that both ends prove who they are with the mesh's certificates.
func (b *builder) meshCertificates(peer *tlsv3.CertificateValidationContext) *tlsv3.CommonTlsContext {
	out := &tlsv3.CommonTlsContext{TlsParams: b.versions()}
	if b.client.Agent == Other {
		out.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{secret(certificateName)}
		out.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         peer,
				ValidationContextSdsSecretConfig: secret(rootName),
			},
		}
		return out
	}
	out.TlsCertificateProviderInstance = &tlsv3.CertificateProviderPluginInstance{InstanceName: providerInstance, CertificateName: certificateName}
	peer.CaCertificateProviderInstance = &tlsv3.CertificateProviderPluginInstance{InstanceName: providerInstance, CertificateName: rootName}
	if b.client.Agent == Sinew {
		out.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: peer}
		return out
	}
	// Libraries that came before the fields above read these.
	out.TlsCertificateCertificateProviderInstance = &tlsv3.CommonTlsContext_CertificateProviderInstance{InstanceName: providerInstance, CertificateName: certificateName}
	out.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:                     peer,
			ValidationContextCertificateProviderInstance: &tlsv3.CommonTlsContext_CertificateProviderInstance{InstanceName: providerInstance, CertificateName: rootName},
		},
	}
	return out
}

// versions are the versions of TLS in connections of the mesh: 1.3, and 1.2 where
// the mesh's settings say so. gRPC refuses every setting and takes both.
func (b *builder) versions() *tlsv3.TlsParameters {
	if b.client.Agent == GRPC {
		return nil
	}
	out := &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
	}
	if b.view.set.MeshConfig.TLS12() {
		out.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_2
	}
	return out
}

// secret asks Istio's agent beside an Envoy for a secret.
func secret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{
		Name: name,
		SdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: secretCluster},
				}}},
			}},
			ResourceApiVersion:  corev3.ApiVersion_V3,
			InitialFetchTimeout: &durationpb.Duration{},
		},
	}
}

// uriNames asks for a URI among a certificate's names that one of the conditions fits.
func uriNames(conditions []*matcherv3.StringMatcher) []*tlsv3.SubjectAltNameMatcher {
	var out []*tlsv3.SubjectAltNameMatcher
	for _, m := range conditions {
		out = append(out, &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m})
	}
	return out
}

func exactly(names []string) []*matcherv3.StringMatcher {
	var out []*matcherv3.StringMatcher
	for _, n := range names {
		out = append(out, exact(n))
	}
	return out
}

// names asks for one of the names in a server's certificate. Those of the mesh's
// own identities are URIs; others are whatever kind they are. gRPC reads only the
// older field, and would drop the condition with the newer one.
func (b *builder) names(peer *tlsv3.CertificateValidationContext, names []string) {
	other := slices.ContainsFunc(names, func(n string) bool { return !strings.HasPrefix(n, "spiffe://") })
	if !other && b.client.Agent != GRPC {
		peer.MatchTypedSubjectAltNames = uriNames(exactly(names))
		return
	}
	peer.MatchSubjectAltNames = exactly(names)
}

// identities are the SPIFFE IDs of service accounts under the mesh's trust domain
// and its aliases, and other names as they are.
func (b *builder) identities(names []string) []string {
	return identity.ExpandTrustDomains(names, b.view.set.MeshConfig.TrustDomainAliases())
}
