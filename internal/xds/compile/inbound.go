package compile

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// Inbound compiles a server-side listener (gRFC A36): the policy for requests
// that arrive at one address. What it accepts lets every caller in, over
// plain text: whatever would restrict access is refused. name is set where it
// could be read, even with an error.
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
	case len(m.GetFilterChains()) > 1:
		return nil, faultf("filter_chains", "%d filter chains: not supported, only one is", len(m.GetFilterChains()))
	case len(m.GetFilterChains()) == 0 && m.GetDefaultFilterChain() == nil:
		return nil, faultf("filter_chains", "there is none")
	}
	address, f := socketAddress(m.GetAddress(), ipOnly)
	if f != nil {
		return nil, f.under("address")
	}
	in := &snapshot.Inbound{Name: m.GetName(), Address: address}
	for i, chain := range m.GetFilterChains() {
		if f := filterChain(chain, in); f != nil {
			return nil, f.underIndex("filter_chains", i)
		}
	}
	if chain := m.GetDefaultFilterChain(); chain != nil {
		if f := filterChain(chain, in); f != nil {
			return nil, f.under("default_filter_chain")
		}
	}
	return in, nil
}

func filterChain(chain *listenerv3.FilterChain, in *snapshot.Inbound) *fault {
	if f := plainText(chain.GetTransportSocket()); f != nil {
		return f.under("transport_socket")
	}
	filters := chain.GetFilters()
	if len(filters) == 0 {
		return faultf("filters", "there is no HTTP connection manager")
	}
	for i, filter := range filters {
		if i > 0 {
			return faultf("filters", "%d filters: not supported, only one HTTP connection manager is", len(filters))
		}
		var hcm hcmv3.HttpConnectionManager
		if !filter.GetTypedConfig().MessageIs(&hcm) {
			return faultf("", "filter %q of type %q is not supported", filter.GetName(), typeName(filter.GetTypedConfig())).underIndex("filters", i)
		}
		f := extension(filter.GetTypedConfig(), &hcm)
		if f == nil {
			f = serverManager(&hcm, in)
		}
		if f != nil {
			return f.under("typed_config").underIndex("filters", i)
		}
	}
	if service, _, ok := istioName(chain.GetName()); ok && in.Service == "" {
		in.Service = service
	}
	return nil
}

// serverManager reads the HTTP connection manager of a listener for an address.
func serverManager(hcm *hcmv3.HttpConnectionManager, in *snapshot.Inbound) *fault {
	if f := httpFilters(hcm.GetHttpFilters(), serverSide); f != nil {
		return f
	}
	if f := commonManager(hcm); f != nil {
		return f
	}
	if f := noLimits(hcm.GetCommonHttpProtocolOptions()); f != nil {
		return f.under("common_http_protocol_options")
	}
	switch {
	case hcm.GetRds() != nil:
		return faultf("rds", "not supported in a listener for an address")
	case hcm.GetRouteConfig() == nil:
		return faultf("", "neither rds nor route_config is set")
	}
	return inboundRoutes(hcm.GetRouteConfig(), in).under("route_config")
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

// inboundRoutes accepts routes that hand every request to the program. Others
// would restrict what can be called.
func inboundRoutes(rc *routev3.RouteConfiguration, in *snapshot.Inbound) *fault {
	if f := perFilterConfig(rc.GetTypedPerFilterConfig(), serverSide); f != nil {
		return f
	}
	const field = "virtual_hosts"
	if len(rc.GetVirtualHosts()) != 1 {
		return faultf(field, "%d virtual hosts: not supported, only one for %q is", len(rc.GetVirtualHosts()), "*")
	}
	vh := rc.GetVirtualHosts()[0]
	f := perFilterConfig(vh.GetTypedPerFilterConfig(), serverSide)
	switch {
	case f != nil:
	case vh.GetRetryPolicy() != nil:
		f = faultf("retry_policy", "not supported in a listener for an address")
	case !slices.Contains(vh.GetDomains(), "*"):
		f = faultf("domains", "must have %q: to restrict the domains is not supported", "*")
	case len(vh.GetRoutes()) == 0:
		f = faultf("routes", "there is none")
	default:
		f = everyRequest(vh.GetRoutes()[0]).underIndex("routes", 0)
	}
	if f != nil {
		return f.underIndex(field, 0)
	}
	if service, _, ok := istioName(vh.GetName()); ok && in.Service == "" {
		in.Service = service
	}
	return nil
}

// everyRequest accepts a route that matches all requests and leaves them to the
// program. What comes after such a route is never reached.
func everyRequest(r *routev3.Route) *fault {
	m := r.GetMatch()
	_, isPrefix := m.GetPathSpecifier().(*routev3.RouteMatch_Prefix)
	switch {
	case !isPrefix || m.GetPrefix() != "" && m.GetPrefix() != "/",
		m.GetRuntimeFraction() != nil, len(m.GetHeaders()) > 0, len(m.GetQueryParameters()) > 0, m.GetGrpc() != nil:
		return faultf("match", "must match every request: to restrict them is not supported")
	case r.GetNonForwardingAction() == nil:
		return faultf("", "must have a non_forwarding_action")
	}
	return perFilterConfig(r.GetTypedPerFilterConfig(), serverSide)
}
