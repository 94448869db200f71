package translate

//lint:file-ignore SA1019 gRPC reads only the fields of older Envoy.

import (
	"fmt"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// socketMatch is where an endpoint says how it is connected to, and tlsMode and
// istioMode what one that takes the mesh's mutual TLS says there.
const (
	socketMatch = "envoy.transport_socket_match"
	tlsMode     = "tlsMode"
	istioMode   = "istio"
)

// destinationTLS is what TLS has to know of a cluster's destination.
type destinationTLS struct {
	name     TrafficName
	http2    bool
	accounts []string // SPIFFE IDs of the service accounts behind the service
	names    []string // subjectAltNames of a ServiceEntry
	// endpoints counts those of the cluster, and secured those that take mutual TLS.
	endpoints, secured int
}

// destinationOf collects what TLS has to know of a cluster.
func (b *builder) destinationOf(of *target, n TrafficName, http2 bool) *destinationTLS {
	d := &destinationTLS{name: n, http2: http2, names: of.service.SubjectAltNames}
	accounts, _ := b.view.set.ServiceAccountsOf(of.service)
	for _, a := range accounts {
		d.accounts = append(d.accounts, a.SPIFFEID(b.view.set.MeshConfig.TrustDomain()))
	}
	for _, e := range b.endpoints(of.service, of.port, n.Host) {
		if !policy.HasLabels(e.labels, of.subset.GetLabels()) {
			continue
		}
		d.endpoints++
		if e.mutualTLS {
			d.secured++
		}
	}
	return d
}

// takesMutualTLS reports whether an endpoint of a service is connected to by the
// mesh's mutual TLS where nothing else is configured: its workload says so by a
// label, and no PeerAuthentication switches TLS off at the port. Services outside the
// mesh are never connected to in this way.
func (b *builder) takesMutualTLS(s *policy.Service, w *policy.Workload, port uint32) bool {
	if s.External || !w.TakesMutualTLS() {
		return false
	}
	namespace := w.Namespace
	if namespace == "" {
		namespace = s.Namespace // an endpoint that is listed in a ServiceEntry
	}
	mode, _ := b.view.set.PeerAuthenticationFor(w.Labels, namespace, port)
	return mode != security.PeerAuthentication_MutualTLS_DISABLE
}

// mutualTLSMetadata marks an endpoint for the first of the socket matches of its cluster.
func mutualTLSMetadata() *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		socketMatch: {Fields: map[string]*structpb.Value{tlsMode: structpb.NewStringValue(istioMode)}},
	}}
}

// Fields of a DestinationRule's tls that count in each mode.
var modeFields = map[networking.ClientTLSSettings_TLSmode][]string{
	networking.ClientTLSSettings_DISABLE:      {"mode"},
	networking.ClientTLSSettings_SIMPLE:       {"mode", "caCertificates", "subjectAltNames", "sni", "insecureSkipVerify"},
	networking.ClientTLSSettings_MUTUAL:       {"mode", "clientCertificate", "privateKey", "caCertificates", "subjectAltNames", "sni", "insecureSkipVerify"},
	networking.ClientTLSSettings_ISTIO_MUTUAL: {"mode", "subjectAltNames", "sni"},
}

// secure sets how connections to a cluster's endpoints are secured: as the
// DestinationRule says, and else, in the mesh, by mutual TLS to those endpoints that
// take it. TLS that a client can not do withholds the cluster: plaintext in its
// place would give away what was to be kept.
// https://istio.io/latest/docs/reference/config/networking/destination-rule/#ClientTLSSettings
func (b *builder) secure(c *clusterv3.Cluster, tls *networking.ClientTLSSettings, d *destinationTLS, at string) error {
	if tls == nil {
		b.automatic(c, d)
		return nil
	}
	at += " trafficPolicy.tls"
	known, ok := modeFields[tls.GetMode()]
	if !ok {
		return &withheldError{fmt.Errorf("%s.mode: %d is not known", at, tls.GetMode())}
	}
	if field := unknownField(tls, known); field != "" {
		return &withheldError{unsupported(at, field)}
	}
	if tls.GetInsecureSkipVerify().GetValue() {
		return &withheldError{unsupported(at, "insecureSkipVerify")}
	}
	switch tls.GetMode() {
	case networking.ClientTLSSettings_DISABLE:
		return nil
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		names := tls.GetSubjectAltNames()
		if len(names) == 0 {
			names = d.identities(b)
		}
		if b.client.Agent == GRPC && tls.GetSni() != "" {
			b.note(at+".sni", "gRPC sends the name that it calls")
		}
		c.TransportSocket = b.mutualTLS(d, names, tls.GetSni())
		return nil
	}
	if b.client.Agent == GRPC {
		return &withheldError{fmt.Errorf("%s.mode: gRPC takes certificates and roots only from the certificate providers of its bootstrap, so it can not do %s", at, tls.GetMode())}
	}
	if tls.GetMode() == networking.ClientTLSSettings_MUTUAL && (tls.GetClientCertificate() == "" || tls.GetPrivateKey() == "") {
		return &withheldError{fmt.Errorf("%s: MUTUAL needs clientCertificate and privateKey", at)}
	}
	b.originate(c, tls, d)
	return nil
}

// identities are the names that a server of the mesh may have.
func (d *destinationTLS) identities(b *builder) []string {
	return b.identities(append(slices.Clone(d.accounts), d.names...))
}

// automatic mutual TLS chooses by the endpoint. gRPC can not choose (it refuses
// transport_socket_matches): it uses mutual TLS where all endpoints take it. A
// cluster none of whose endpoints takes it needs no certificates.
func (b *builder) automatic(c *clusterv3.Cluster, d *destinationTLS) {
	if d.secured == 0 {
		return
	}
	if b.client.Agent == GRPC {
		if d.secured == d.endpoints {
			c.TransportSocket = b.mutualTLS(d, d.identities(b), "")
			return
		}
		b.note("endpoints of "+d.name.Host, "%d of %d take mutual TLS, and gRPC can not choose by the endpoint: it uses plaintext for all", d.secured, d.endpoints)
		return
	}
	c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{
		{
			Name:            "tlsMode-istio",
			Match:           &structpb.Struct{Fields: map[string]*structpb.Value{tlsMode: structpb.NewStringValue(istioMode)}},
			TransportSocket: b.mutualTLS(d, d.identities(b), ""),
		},
		{Name: "tlsMode-disabled", Match: &structpb.Struct{}, TransportSocket: plainSocket()},
	}
}

// mutualTLS is TLS with the mesh's certificates. The server name tells a proxy at
// the other end which destination is meant; it is not what is verified.
func (b *builder) mutualTLS(d *destinationTLS, names []string, sni string) *corev3.TransportSocket {
	peer := &tlsv3.CertificateValidationContext{}
	b.names(peer, names)
	common := b.meshCertificates(peer)
	if b.client.Agent != GRPC {
		common.AlpnProtocols = []string{"istio-peer-exchange", "istio"}
		if d.http2 {
			common.AlpnProtocols = append(common.AlpnProtocols, "h2")
		}
	}
	if sni == "" && !strings.HasPrefix(d.name.Host, "*") {
		sni = fmt.Sprintf("outbound_.%d_.%s_.%s", d.name.Port, d.name.Subset, d.name.Host)
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: sni})
}

// originate is TLS with files, or the roots of the system, as to a server outside
// the mesh. Its certificate has to have one of the names that policy gives, or that
// of the host that is called.
func (b *builder) originate(c *clusterv3.Cluster, tls *networking.ClientTLSSettings, d *destinationTLS) {
	names := tls.GetSubjectAltNames()
	if len(names) == 0 {
		names = d.names
	}
	peer := &tlsv3.CertificateValidationContext{}
	common := &tlsv3.CommonTlsContext{TlsParams: &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
	}}
	if d.http2 {
		common.AlpnProtocols = []string{"h2"}
	}
	if tls.GetMode() == networking.ClientTLSSettings_MUTUAL {
		common.TlsCertificates = []*tlsv3.TlsCertificate{{
			CertificateChain: fromFile(tls.GetClientCertificate()),
			PrivateKey:       fromFile(tls.GetPrivateKey()),
		}}
	}
	ofHost := tls.GetSni() == "" // the server name is that of the request
	if len(names) == 0 && !ofHost && b.client.Agent == Other {
		names = []string{tls.GetSni()} // Envoy looks at no name unless it is told to
	}
	b.names(peer, names)
	switch {
	case tls.GetCaCertificates() != "":
		peer.TrustedCa = fromFile(tls.GetCaCertificates())
	case b.client.Agent == Sinew:
		peer.SystemRootCerts = &tlsv3.CertificateValidationContext_SystemRootCerts{}
	}
	if tls.GetCaCertificates() == "" && b.client.Agent == Other {
		common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         peer,
				ValidationContextSdsSecretConfig: secret("file-root:system"),
			},
		}
	} else {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: peer}
	}
	if ofHost {
		serverNames(c, &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: len(names) == 0})
	}
	c.TransportSocket = tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: tls.GetSni()})
}

func fromFile(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

// serverNames adds to a cluster's HTTP options where the name of the server comes from.
func serverNames(c *clusterv3.Cluster, names *corev3.UpstreamHttpProtocolOptions) {
	opts := &upstreamv3.HttpProtocolOptions{}
	if a := c.GetTypedExtensionProtocolOptions()[httpOptions]; a != nil {
		if err := a.UnmarshalTo(opts); err != nil {
			panic(err) // it was packed here
		}
	}
	opts.UpstreamHttpProtocolOptions = names
	if opts.UpstreamProtocolOptions == nil {
		opts.UpstreamProtocolOptions = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}}
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: mustPack(opts)}
}
