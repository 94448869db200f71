package translate

import (
	"fmt"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	mesh "istio.io/api/mesh/v1alpha1"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// sinewMetadata is the key of filter_metadata for what Envoy has no field for.
const sinewMetadata = "sinew"

// server is the workload and port that a server-side listener belongs to.
type server struct {
	namespace string
	labels    map[string]string
	port      uint32           // at the workload
	workload  *policy.Workload // nil where the registry has none
}

// inbound is the server-side listener of one address of the client, with the
// access policy of the workload that listens there.
func (b *builder) inbound(name, addr string) (proto.Message, error) {
	host, port, err := splitInbound(addr)
	if err != nil {
		return nil, nil // not an address: nothing listens there
	}
	servers, err := b.servers(host, port)
	if err != nil {
		return nil, err
	}
	// Where several workloads may be meant it must not matter which.
	out, err := b.inboundOf(servers[0], name, host, port, addr)
	if err != nil {
		return nil, err
	}
	notes := b.notes
	for _, s := range servers[1:] {
		other, err := b.inboundOf(s, name, host, port, addr)
		if err != nil {
			return nil, err
		}
		if !proto.Equal(out, other) {
			a, c := servers[0].workload, s.workload
			return nil, fmt.Errorf("%s (%s) and %s (%s) are both at port %d of the client, and their access policy differs", a.Ref(), a.At, c.Ref(), c.At, port)
		}
	}
	b.notes = notes
	return out, nil
}

// inboundOf is the listener of an address if it is that of the server.
func (b *builder) inboundOf(s *server, name, host string, port uint32, addr string) (proto.Message, error) {
	if reason, yes := b.view.set.Withheld(s.labels, s.namespace); yes {
		return nil, fmt.Errorf("nobody knows who may call this workload: %s", reason)
	}
	manager, err := b.serverManager(s)
	if err != nil {
		return nil, err
	}
	out := &listenerv3.Listener{
		Name: name,
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address:       host,
			PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}},
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		FilterChains:     b.filterChains(s, addr, manager),
	}
	if b.client.Agent == Other && len(out.FilterChains) > 1 {
		// Envoy tells the chains apart by what this filter finds; others look for themselves.
		out.ListenerFilters = []*listenerv3.ListenerFilter{{
			Name:       "envoy.filters.listener.tls_inspector",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: mustPack(&tlsinspectorv3.TlsInspector{})},
		}}
	}
	metadata, err := b.serverMetadata(s)
	if err != nil {
		return nil, err
	}
	if len(metadata) > 0 {
		out.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{sinewMetadata: {Fields: metadata}}}
	}
	return out, nil
}

// servers finds whose listener an address is; there is at least one. What the
// registry says of the workload at that address stands above what the client says of
// itself, because a client that leaves out a label would otherwise choose which
// policy applies to it. A workload that the registry does not have is known by the
// client's own words alone, so that a program can be protected without a
// WorkloadEntry.
//
// A client that listens on all addresses is looked for at each of those that it
// has. Several workloads of one machine share a loopback address; the port tells
// them apart. A client that has proved an identity gets no listener of a workload
// that runs as another.
func (b *builder) servers(host string, port uint32) ([]*server, error) {
	c := b.client
	if c.Verified != (policy.ServiceAccount{}) && c.Verified.Namespace != c.Namespace {
		return nil, fmt.Errorf("the client says that it is in namespace %q and has proved to be in %q", c.Namespace, c.Verified.Namespace)
	}
	addresses := []string{host}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		addresses = c.IPs
	}
	var out []*server
	var foreign error
	for _, address := range addresses {
		for _, w := range b.view.set.WorkloadsAt(c.Namespace, address, port) {
			if account, known := w.Account(); known && c.Verified != (policy.ServiceAccount{}) && account.Name != c.Verified.Name {
				foreign = fmt.Errorf("%s (%s) runs as service account %q, and the client has proved to be %q", w.Ref(), w.At, account.Name, c.Verified.Name)
				continue
			}
			out = append(out, &server{namespace: c.Namespace, labels: w.Labels, port: port, workload: w})
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case foreign != nil:
		return nil, foreign
	}
	return []*server{{namespace: c.Namespace, labels: c.Labels, port: port}}, nil
}

// filterChains say which connections are taken, by the PeerAuthentication of the
// port. STRICT takes mutual TLS, PERMISSIVE that and plaintext, DISABLE plaintext.
// https://istio.io/latest/docs/reference/config/security/peer_authentication/
//
// gRPC has one kind of connection for a listener (gRFC A36). PERMISSIVE gives it
// mutual TLS where the workload's label tells its callers to use that, as in
// Istio, and else plaintext.
func (b *builder) filterChains(s *server, addr string, manager *hcmv3.HttpConnectionManager) []*listenerv3.FilterChain {
	chain := func(name string) *listenerv3.FilterChain {
		return &listenerv3.FilterChain{
			Name:    name + "-" + addr,
			Filters: []*listenerv3.Filter{{Name: "inbound", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustPack(manager)}}},
		}
	}
	mode, from := b.view.set.PeerAuthenticationFor(s.labels, s.namespace, s.port)
	if mode == security.PeerAuthentication_MutualTLS_PERMISSIVE && b.client.Agent == GRPC {
		at := "PeerAuthentication"
		if from != nil {
			at = about(&from.Meta)
		}
		if s.labels[policy.TLSModeLabel] == "istio" {
			mode = security.PeerAuthentication_MutualTLS_STRICT
			b.note(at, "gRPC can not be PERMISSIVE: it takes mutual TLS only, because the workload has the label %s=istio", policy.TLSModeLabel)
		} else {
			mode = security.PeerAuthentication_MutualTLS_DISABLE
			b.note(at, "gRPC can not be PERMISSIVE: it takes plaintext only, and its callers have no identity")
		}
	}
	switch mode {
	case security.PeerAuthentication_MutualTLS_DISABLE:
		return []*listenerv3.FilterChain{chain("inbound")}
	case security.PeerAuthentication_MutualTLS_PERMISSIVE:
		secured, plain := chain("inbound-mtls"), chain("inbound-plaintext")
		secured.TransportSocket = b.serverSocket()
		secured.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls"}
		plain.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer"}
		return []*listenerv3.FilterChain{secured, plain}
	}
	// STRICT, and whatever else: what is not known lets nobody in without a certificate.
	secured := chain("inbound-mtls")
	secured.TransportSocket = b.serverSocket()
	return []*listenerv3.FilterChain{secured}
}

// serverManager is what happens to the requests of both kinds of connections.
func (b *builder) serverManager(s *server) (*hcmv3.HttpConnectionManager, error) {
	filters, err := b.accessFilters(s)
	if err != nil {
		return nil, err
	}
	perFilter, err := b.localRateLimitRoutes(s)
	if err != nil {
		return nil, err
	}
	out := &hcmv3.HttpConnectionManager{
		StatPrefix: "inbound",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: "inbound",
			VirtualHosts: []*routev3.VirtualHost{{
				Name:    "inbound",
				Domains: []string{"*"},
				Routes: []*routev3.Route{{
					Match:  everything(),
					Action: &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}},
					// What a route has for a filter stands for the filter's own.
					TypedPerFilterConfig: perFilter,
				}},
			}},
		}},
		HttpFilters: append(filters, routerOnly()...),
	}
	if b.client.Agent != GRPC {
		// As Istio's gateways have it: whoever is at the other end of the connection is the
		// caller, unless so many proxies that are believed stand in between. gRPC does so
		// without being told, and refuses a number of hops (gRFC A41).
		out.UseRemoteAddress = wrapperspb.Bool(true)
		out.XffNumTrustedHops = b.view.set.MeshConfig.TrustedProxies()
	}
	if err := b.normalizePaths(out); err != nil {
		return nil, err
	}
	return out, nil
}

// normalizePaths says how a path is brought into one spelling before rules see it
// (MeshConfig.pathNormalization, by default BASE). A gRPC server dispatches a path
// only as it stands, so there is nothing to normalise.
func (b *builder) normalizePaths(m *hcmv3.HttpConnectionManager) error {
	if b.client.Agent == GRPC {
		return nil
	}
	switch n := b.view.set.MeshConfig.PathNormalization(); n {
	case mesh.MeshConfig_ProxyPathNormalization_NONE:
		m.NormalizePath = wrapperspb.Bool(false)
	case mesh.MeshConfig_ProxyPathNormalization_BASE:
		m.NormalizePath = wrapperspb.Bool(true)
	case mesh.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:
		m.NormalizePath, m.MergeSlashes = wrapperspb.Bool(true), true
	case mesh.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES:
		m.NormalizePath, m.MergeSlashes = wrapperspb.Bool(true), true
		m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	default:
		return fmt.Errorf("MeshConfig pathNormalization.normalization: %v is not known", n)
	}
	return nil
}

// serverMetadata is what only Sinew's own client reads: limits by the caller's
// identity, and a dry run of a PeerAuthentication that would refuse plaintext.
func (b *builder) serverMetadata(s *server) (map[string]*structpb.Value, error) {
	out := map[string]*structpb.Value{}
	limit, err := b.identityLimit(s)
	if err != nil {
		return nil, err
	}
	if limit != nil {
		out["identity_rate_limit"] = limit
	}
	mode, _ := b.view.set.PeerAuthenticationFor(s.labels, s.namespace, s.port)
	dry, from := b.view.set.PeerAuthenticationDryRunFor(s.labels, s.namespace, s.port)
	if from != nil && dry == security.PeerAuthentication_MutualTLS_STRICT && mode != security.PeerAuthentication_MutualTLS_STRICT {
		if b.client.Agent == Sinew {
			out["mtls_dry_run"] = structpb.NewStringValue(about(&from.Meta))
		} else {
			b.note(about(&from.Meta), "dry runs of a PeerAuthentication are not reported by this client")
		}
	}
	return out, nil
}

// accessFilters are the filters in front of the program, in Istio's order: what an
// external authorizer decides, tokens, the rules of access, limits.
func (b *builder) accessFilters(s *server) ([]*hcmv3.HttpFilter, error) {
	rules := b.view.set.AuthorizationPoliciesFor(s.labels, s.namespace)
	var out []*hcmv3.HttpFilter
	for _, step := range []func() ([]*hcmv3.HttpFilter, error){
		func() ([]*hcmv3.HttpFilter, error) { return b.externalFilters(rules.Custom) },
		func() ([]*hcmv3.HttpFilter, error) { return b.tokenFilters(s) },
		func() ([]*hcmv3.HttpFilter, error) { return b.ruleFilters(rules) },
		func() ([]*hcmv3.HttpFilter, error) { return b.limitFilters(s) },
		func() ([]*hcmv3.HttpFilter, error) { return b.localRateLimitFilters(s) },
	} {
		filters, err := step()
		if err != nil {
			return nil, err
		}
		out = append(out, filters...)
	}
	return slices.Clip(out), nil
}

// can refuses what a gRPC client can not enforce, so that it is not served without.
func (b *builder) can(at, field string) error {
	if b.client.Agent != GRPC {
		return nil
	}
	return fmt.Errorf("%s %s: gRPC can not enforce it, so the listener is not served to it", at, field)
}
