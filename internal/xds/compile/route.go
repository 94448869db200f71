package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"net/http"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// RouteConfig compiles a RouteConfiguration. name is set where it could be
// read, even with an error.
func RouteConfig(resource *anypb.Any) (name string, rc *snapshot.RouteConfig, err error) {
	var m routev3.RouteConfiguration
	wrapper, f := open(resource, &m)
	name = named(m.GetName(), wrapper)
	if f == nil {
		f = unlisted(m.ProtoReflect())
	}
	if f == nil && m.GetName() == "" {
		f = faultf("name", "is empty")
	}
	if f == nil {
		rc, f = routeConfig(&m)
	}
	if f != nil {
		return name, nil, f.of("RouteConfiguration", name)
	}
	return name, rc, nil
}

// routesReader compiles the virtual hosts of a route configuration. It has what
// the configuration says for all of them.
type routesReader struct {
	changes          changes
	filters          filterLevels
	mirrors          []routing.Mirror
	plugins          map[string]bool // that are optional, and so left out
	bodyLimit        uint32
	specificLast     bool // most_specific_header_mutations_wins
	ignoreParameters bool
}

// routeConfig compiles a route configuration that has been checked against the lists.
func routeConfig(m *routev3.RouteConfiguration) (*snapshot.RouteConfig, *fault) {
	r := routesReader{
		bodyLimit:        defaultBodyLimit,
		specificLast:     m.GetMostSpecificHeaderMutationsWins(),
		ignoreParameters: m.GetIgnorePathParametersInPathMatching(),
	}
	if m.GetMaxDirectResponseBodySizeBytes() != nil {
		r.bodyLimit = m.GetMaxDirectResponseBodySizeBytes().GetValue()
	}
	var f *fault
	if r.plugins, f = optionalPlugins(m.GetClusterSpecifierPlugins()); f != nil {
		return nil, f
	}
	if r.changes, f = headerChanges(m); f != nil {
		return nil, f
	}
	if r.filters, f = r.filters.with(m.GetTypedPerFilterConfig(), nil); f != nil {
		return nil, f
	}
	if r.mirrors, f = mirrors(m.GetRequestMirrorPolicies(), nil); f != nil {
		return nil, f
	}
	rc := &snapshot.RouteConfig{Name: m.GetName(), VirtualHosts: make([]snapshot.VirtualHost, len(m.GetVirtualHosts())), IgnorePort: m.GetIgnorePortInHostMatching()}
	domains := make([][]string, len(m.GetVirtualHosts()))
	for i, vh := range m.GetVirtualHosts() {
		domains[i] = vh.GetDomains()
		for j, domain := range domains[i] {
			if strings.ContainsAny(domain, "\r\n\x00") {
				return nil, faultf("", "%q has a control character", domain).underIndex("domains", j).underIndex("virtual_hosts", i)
			}
		}
		if f := r.virtualHost(vh, &rc.VirtualHosts[i]); f != nil {
			return nil, f.underIndex("virtual_hosts", i)
		}
	}
	var err error
	if rc.Domains, err = routing.NewDomains(domains); err != nil {
		return nil, invalid(err)
	}
	return rc, nil
}

// optionalPlugins are the names of cluster specifier plugins that may be left out. No other is known.
func optionalPlugins(plugins []*routev3.ClusterSpecifierPlugin) (map[string]bool, *fault) {
	names := make(map[string]bool)
	for i, p := range plugins {
		if !p.GetIsOptional() {
			return nil, faultf("", "plugin %q is not supported", p.GetExtension().GetName()).underIndex("cluster_specifier_plugins", i)
		}
		names[p.GetExtension().GetName()] = true
	}
	return names, nil
}

// hostReader compiles the routes of a virtual host.
type hostReader struct {
	*routesReader
	own     changes
	filters filterLevels
	mirrors []routing.Mirror
	retry   *resilience.RetryPolicy
	hedge   *resilience.Hedge
	// count and countResponse are the options on x-envoy-attempt-count.
	count, countResponse bool
}

func (r *routesReader) virtualHost(m *routev3.VirtualHost, vh *snapshot.VirtualHost) *fault {
	h := hostReader{routesReader: r, count: m.GetIncludeRequestAttemptCount(), countResponse: m.GetIncludeAttemptCountInResponse()}
	own, f := corsOf(m.GetCors())
	if f != nil {
		return f.under("cors")
	}
	if h.filters, f = r.filters.with(m.GetTypedPerFilterConfig(), own); f != nil {
		return f
	}
	if h.own, f = headerChanges(m); f != nil {
		return f
	}
	if h.mirrors, f = mirrors(m.GetRequestMirrorPolicies(), r.mirrors); f != nil {
		return f
	}
	if h.retry, f = retryPolicy(m.GetRetryPolicy()); f != nil {
		return f.under("retry_policy")
	}
	if h.hedge, f = hedge(m.GetHedgePolicy()); f != nil {
		return f.under("hedge_policy")
	}
	*vh = snapshot.VirtualHost{Name: m.GetName(), Routes: make([]snapshot.Route, 0, len(m.GetRoutes()))}
	if secure, f := secureOnly(m.GetRequireTls()); f != nil {
		return f
	} else if secure != nil {
		vh.Routes = append(vh.Routes, *secure)
	}
	for i, rm := range m.GetRoutes() {
		if h.leftOut(rm.GetRoute()) {
			continue
		}
		var out snapshot.Route
		if f := h.route(rm, &out); f != nil {
			return f.underIndex("routes", i)
		}
		vh.Routes = append(vh.Routes, out)
	}
	return nil
}

// leftOut reports whether the route's cluster would be named by a plugin that
// is optional: such a route matches nothing (Envoy and gRPC).
func (h *hostReader) leftOut(m *routev3.RouteAction) bool {
	return m.GetInlineClusterSpecifierPlugin().GetIsOptional() || h.plugins[m.GetClusterSpecifierPlugin()]
}

// secureOnly is the route that sends requests without TLS to https; nil where
// none is sent. Envoy looks at it before all others and changes no header there.
// EXTERNAL_ONLY sends nobody: the process's own requests come from inside.
func secureOnly(m routev3.VirtualHost_TlsRequirementType) (*snapshot.Route, *fault) {
	switch m {
	case routev3.VirtualHost_NONE, routev3.VirtualHost_EXTERNAL_ONLY:
		return nil, nil
	case routev3.VirtualHost_ALL:
		insecure := routing.HeaderMatch{Name: routing.NewHeaderName(":scheme"), String: routing.Exact("https", false), Invert: true, MissingAsEmpty: true}
		return &snapshot.Route{
			Match:    routing.Match{Headers: []routing.HeaderMatch{insecure}},
			Redirect: &routing.Redirect{HTTPS: true, KeepPort: true, Status: http.StatusMovedPermanently},
		}, nil
	default:
		return nil, faultf("require_tls", "value %d is not known", m)
	}
}

func (h *hostReader) route(m *routev3.Route, r *snapshot.Route) *fault {
	r.Name = m.GetName()
	if f := match(m.GetMatch(), &r.Match); f != nil {
		return f.under("match")
	}
	r.Match.Path.IgnoreParameters = h.ignoreParameters
	own, f := headerChanges(m)
	if f != nil {
		return f
	}
	r.RequestHeaders = inOrder(h.specificLast, &own.request, &h.own.request, &h.changes.request)
	r.ResponseHeaders = inOrder(h.specificLast, &own.response, &h.own.response, &h.changes.response)
	cors, f := corsOf(m.GetRoute().GetCors())
	if f != nil {
		return f.under("cors").under("route")
	}
	filters, f := h.filters.with(m.GetTypedPerFilterConfig(), cors)
	if f != nil {
		return f
	}
	r.Filters = filters.inForce()
	switch {
	case m.GetRoute() != nil:
		return h.action(m.GetRoute(), r, filters).under("route")
	case m.GetRedirect() != nil:
		r.Redirect, f = redirect(m.GetRedirect())
		return f.under("redirect")
	case m.GetDirectResponse() != nil:
		r.Direct, f = directResponse(m.GetDirectResponse(), h.bodyLimit)
		return f.under("direct_response")
	case m.GetNonForwardingAction() != nil:
		return faultf("non_forwarding_action", "not supported in routes for outbound requests")
	default:
		return faultf("", "there is no action")
	}
}

func (h *hostReader) action(m *routev3.RouteAction, r *snapshot.Route, filters filterLevels) *fault {
	var f *fault
	if r.Subset, f = subset(m.GetMetadataMatch()); f != nil {
		return f.under("metadata_match")
	}
	if f := destinations(m, r, filters); f != nil {
		return f
	}
	if f := timeouts(m, r); f != nil {
		return f
	}
	if f := rewrite(m, &r.Match, &r.Rewrite); f != nil {
		return f
	}
	if r.Mirrors, f = mirrors(m.GetRequestMirrorPolicies(), h.mirrors); f != nil {
		return f
	}
	if r.Hash, f = hashPolicies(m.GetHashPolicy()); f != nil {
		return f
	}
	switch m.GetPriority() {
	case corev3.RoutingPriority_DEFAULT:
	case corev3.RoutingPriority_HIGH:
		r.Priority = resilience.HighPriority
	default:
		return faultf("priority", "value %d is not known", m.GetPriority())
	}
	kinds := make(map[string]bool)
	for i, u := range m.GetUpgradeConfigs() {
		f := upgrade(u.GetUpgradeType(), u.GetEnabled())
		if kind := strings.ToLower(u.GetUpgradeType()); f == nil && kinds[kind] {
			f = faultf("upgrade_type", "%q occurs twice", u.GetUpgradeType())
		} else {
			kinds[kind] = true
		}
		if f != nil {
			return f.underIndex("upgrade_configs", i)
		}
	}
	r.AttemptCount, r.AttemptCountResponse = h.count, h.countResponse
	r.Retry, r.Hedge = h.retry, h.hedge
	if m.GetRetryPolicy() != nil {
		if r.Retry, f = retryPolicy(m.GetRetryPolicy()); f != nil {
			return f.under("retry_policy")
		}
	}
	if m.GetHedgePolicy() != nil {
		if r.Hedge, f = hedge(m.GetHedgePolicy()); f != nil {
			return f.under("hedge_policy")
		}
	}
	return nil
}
