package compile

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
)

// Inbound compiles a server-side listener (gRFC A36): the policy for requests
// that arrive at one address. Whatever would restrict access is in force
// afterwards or refused. name is set where it could be read, even with an error.
func Inbound(resource *anypb.Any) (name string, in *snapshot.Inbound, err error) {
	var m listenerv3.Listener
	wrapper, f := open(resource, &m)
	name = named(m.GetName(), wrapper)
	if f == nil {
		in, f = inbound(&m)
	}
	if f != nil {
		return name, nil, f.of("Listener", name)
	}
	return name, in, nil
}

func inbound(m *listenerv3.Listener) (*snapshot.Inbound, *fault) {
	if f := unlisted(m.ProtoReflect()); f != nil {
		return nil, f
	}
	switch {
	case m.GetName() == "":
		return nil, faultf("name", "is empty")
	case m.GetApiListener() != nil:
		return nil, faultf("api_listener", "not supported in a listener for an address")
	case len(m.GetFilterChains()) == 0 && m.GetDefaultFilterChain() == nil:
		return nil, faultf("filter_chains", "there is none")
	}
	address, f := socketAddress(m.GetAddress(), ipOnly)
	if f != nil {
		return nil, f.under("address")
	}
	in := &snapshot.Inbound{Name: m.GetName(), Address: address}
	own, f := inboundMetadata(m.GetMetadata(), in)
	if f != nil {
		return nil, f.under("metadata")
	}
	chains := chainsReader{in: in, own: own}
	for i, chain := range m.GetFilterChains() {
		if f := chains.add(chain, chain.GetFilterChainMatch(), false); f != nil {
			return nil, f.underIndex("filter_chains", i)
		}
	}
	if chain := m.GetDefaultFilterChain(); chain != nil {
		if f := chains.add(chain, nil, true); f != nil {
			return nil, f.under("default_filter_chain")
		}
	}
	if f := chains.choose(); f != nil {
		return nil, f
	}
	return in, nil
}

// chainsReader reads the filter chains of a listener. There is at most one for
// connections that begin with a TLS handshake, one for the others, and one
// for both where there is no other.
type chainsReader struct {
	in               *snapshot.Inbound
	own              []*resilience.RateLimit // for every chain
	tls, plain, both *snapshot.FilterChain
}

// add reads a chain. The default one, whose match plays no part, is for what
// matches no other: it has to be sound even where that is nothing.
func (r *chainsReader) add(chain *listenerv3.FilterChain, match *listenerv3.FilterChainMatch, last bool) *fault {
	place, f := r.place(match)
	if f != nil {
		return f.under("filter_chain_match")
	}
	if *place != nil && !last {
		return faultf("filter_chain_match", "another filter chain takes the same connections")
	}
	out := &snapshot.FilterChain{}
	var context tlsv3.DownstreamTlsContext
	isTLS, f := transportSocket(chain.GetTransportSocket(), &context)
	if f == nil && isTLS {
		out.Socket, f = serverTLS(&context)
		f = f.under("typed_config")
	}
	switch {
	case f != nil:
		return f.under("transport_socket")
	case isTLS && place == &r.plain:
		return faultf("transport_socket", "TLS in a filter chain for connections without TLS")
	case !isTLS && place == &r.tls:
		return faultf("transport_socket", "a filter chain that takes TLS without terminating it is not supported")
	}
	if f := filterChain(chain, r.in, out); f != nil {
		return f
	}
	out.RateLimits = append(out.RateLimits, r.own...)
	if *place == nil {
		*place = out
	}
	return nil
}

// place returns for which connections a match is. Istio's PERMISSIVE mode has a
// chain for TLS with one of its own ALPN protocols, another for what else
// begins with a handshake, and one for plain text. The second hands
// connections through, which is refused, so that all TLS is held to the first.
func (r *chainsReader) place(m *listenerv3.FilterChainMatch) (**snapshot.FilterChain, *fault) {
	switch p := m.GetTransportProtocol(); {
	case p == "tls":
		for i, protocol := range m.GetApplicationProtocols() {
			if !slices.Contains(istioProtocols, protocol) {
				return nil, faultf("", "%q is not supported: only Istio's are", protocol).underIndex("application_protocols", i)
			}
		}
		return &r.tls, nil
	case len(m.GetApplicationProtocols()) > 0:
		return nil, faultf("application_protocols", "not supported without TLS")
	case p == "raw_buffer":
		return &r.plain, nil
	case p == "":
		return &r.both, nil
	default:
		return nil, faultf("transport_protocol", "%q is not supported", p)
	}
}

// choose puts the chains in their places. A chain for all connections that
// has TLS refuses the others in the handshake.
func (r *chainsReader) choose() *fault {
	r.in.TLS, r.in.Plain = r.tls, r.plain
	if r.both != nil && r.both.Socket != nil && r.in.TLS == nil {
		r.in.TLS = r.both
	}
	if r.both != nil && r.both.Socket == nil && r.in.Plain == nil {
		r.in.Plain = r.both
	}
	if r.in.TLS == nil && r.both == nil {
		return faultf("filter_chains", "there is none for connections with TLS, and to refuse these alone is not supported")
	}
	return nil
}

func filterChain(chain *listenerv3.FilterChain, in *snapshot.Inbound, out *snapshot.FilterChain) *fault {
	filters := chain.GetFilters()
	if len(filters) == 0 {
		return faultf("filters", "there is no HTTP connection manager")
	}
	found := false
	for i, filter := range filters {
		var hcm hcmv3.HttpConnectionManager
		if !filter.GetTypedConfig().MessageIs(&hcm) {
			kind, f := filterType(filter.GetTypedConfig())
			if f == nil && harmlessFilters[kind] {
				continue
			}
			return faultf("", "filter %q of type %q is not supported", filter.GetName(), typeName(filter.GetTypedConfig())).underIndex("filters", i)
		}
		if found {
			return faultf("filters", "there are two HTTP connection managers: not supported")
		}
		found = true
		f := extension(filter.GetTypedConfig(), &hcm)
		if f == nil {
			f = serverManager(&hcm, in, out)
		}
		if f != nil {
			return f.under("typed_config").underIndex("filters", i)
		}
	}
	if !found {
		return faultf("filters", "there is no HTTP connection manager")
	}
	if service, _, ok := istioName(chain.GetName()); ok && in.Service == "" {
		in.Service = service
	}
	return nil
}

// serverManager reads the HTTP connection manager of a listener for an address.
func serverManager(hcm *hcmv3.HttpConnectionManager, in *snapshot.Inbound, out *snapshot.FilterChain) *fault {
	filters := access{chain: out}
	f := httpFilters(hcm.GetHttpFilters(), serverSide, filters.filter)
	if f != nil {
		return f
	}
	if f := filters.finish(); f != nil {
		return f.under("http_filters")
	}
	if f := commonManager(hcm); f != nil {
		return f
	}
	if f := noLimits(hcm.GetCommonHttpProtocolOptions()); f != nil {
		return f.under("common_http_protocol_options")
	}
	out.Hosts = hosts(hcm)
	if out.Paths, f = paths(hcm); f != nil {
		return f
	}
	if out.TrustedHops, f = trustedHops(hcm); f != nil {
		return f
	}
	switch {
	case hcm.GetRds() != nil:
		return faultf("rds", "not supported in a listener for an address")
	case hcm.GetRouteConfig() == nil:
		return faultf("", "neither rds nor route_config is set")
	}
	return inboundRoutes(hcm.GetRouteConfig(), in, &filters).under("route_config")
}

// hosts reads how the authority of requests is spelled.
func hosts(hcm *hcmv3.HttpConnectionManager) identity.HostOptions {
	o := identity.HostOptions{Dot: hcm.GetStripTrailingHostDot()}
	switch {
	case hcm.GetStripAnyHostPort():
		o.Port = identity.StripAnyPort
	case hcm.GetStripMatchingHostPort():
		o.Port = identity.StripOwnPort
	}
	return o
}

// paths reads how paths are brought into one spelling. What Envoy leaves to
// its implementation's default is to change nothing.
func paths(hcm *hcmv3.HttpConnectionManager) (identity.PathOptions, *fault) {
	o := identity.PathOptions{Normalize: hcm.GetNormalizePath().GetValue(), MergeSlashes: hcm.GetMergeSlashes()}
	switch action := hcm.GetPathWithEscapedSlashesAction(); action {
	case hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3.HttpConnectionManager_KEEP_UNCHANGED:
	case hcmv3.HttpConnectionManager_REJECT_REQUEST:
		o.EscapedSlashes = identity.RejectEscapedSlashes
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		o.EscapedSlashes = identity.UnescapeSlashesAndRedirect
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		o.EscapedSlashes = identity.UnescapeSlashes
	default:
		return o, faultf("path_with_escaped_slashes_action", "value %d is not known", action)
	}
	return o, nil
}

// trustedHops reads how many proxies in front of the process are believed about the
// caller. In Envoy, use_remote_address false means that the peer has already written
// X-Forwarded-For, so that one entry of it is believed beyond the hops, even without
// any: istiod sends that to sidecars, behind a gateway. Here the peer may be any caller,
// who would write its own address into the header and pass rules on remote.ip with it.
// So without hops nobody is believed, and hops are taken only in the mode in which
// they are all that is.
// https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-for
func trustedHops(hcm *hcmv3.HttpConnectionManager) (int, *fault) {
	hops := hcm.GetXffNumTrustedHops()
	if hops > 0 && !hcm.GetUseRemoteAddress().GetValue() {
		return 0, faultf("xff_num_trusted_hops", "not supported without use_remote_address")
	}
	return int(hops), nil
}

func noLimits(o *corev3.HttpProtocolOptions) *fault {
	for _, limit := range []struct {
		name string
		set  bool
	}{
		{"idle_timeout", o.GetIdleTimeout().AsDuration() != 0},
		{"max_connection_duration", o.GetMaxConnectionDuration().AsDuration() != 0},
		{"max_stream_duration", o.GetMaxStreamDuration().AsDuration() != 0},
		{"max_requests_per_connection", o.GetMaxRequestsPerConnection().GetValue() != 0},
	} {
		if limit.set {
			return faultf(limit.name, notSupported)
		}
	}
	return nil
}
