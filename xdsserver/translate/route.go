package translate

import (
	"fmt"
	"maps"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// routeConfiguration is the route table of one host and port. Its only virtual
// host has the domain "*": the listener's name has already chosen the host, and
// a caller may send any authority (an IP, a public name, a short name of its
// own namespace) without losing the routes.
func (b *builder) routeConfiguration(name string, n TrafficName) (proto.Message, error) {
	if n.Subset != "" {
		return nil, nil
	}
	d := b.view.resolve(n.Host, b.client.Namespace)
	if d == nil {
		return nil, nil
	}
	if d.service != nil {
		if _, ok := d.service.PortNumber(n.Port); !ok {
			return nil, nil
		}
	}
	var routes []*routev3.Route
	var err error
	if vs := b.view.set.VirtualServiceFor(d.host, b.client.Namespace); vs != nil {
		routes, err = b.routes(vs, n.Port, policy.MeshGateway)
	} else {
		routes, err = b.defaultRoutes(d, n.Port)
	}
	if err != nil {
		return nil, err
	}
	out := &routev3.RouteConfiguration{
		Name: name,
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    fmt.Sprintf("%s:%d", d.host, n.Port),
			Domains: []string{"*"},
			Routes:  routes,
			// As Istio has it: servers see how often a request was tried.
			IncludeRequestAttemptCount: b.client.Agent != GRPC,
		}},
	}
	for _, r := range routes {
		if r.GetDirectResponse() != nil && b.client.Agent != GRPC {
			out.MaxDirectResponseBodySizeBytes = wrapperspb.UInt32(maxDirectBody) // Envoy's default is 4 KiB
		}
	}
	return out, nil
}

// defaultRoutes send everything to the service itself, for requests that no VirtualService decides on.
func (b *builder) defaultRoutes(d *destination, port uint32) ([]*routev3.Route, error) {
	cluster := TrafficName{Port: port, Host: d.host}
	http := &networking.HTTPRoute{}
	at := ""
	if s := d.service; s != nil && s.Default != nil {
		http, at = s.Default, about(&s.Meta)+" metadata.annotations"
	}
	hash := b.hashPolicies(cluster, at)
	action := b.action(http, at, hash, len(hash) > 0)
	action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: cluster.String()}
	return []*routev3.Route{{Name: "default", Match: everything(), Action: &routev3.Route_Route{Route: action}}}, nil
}

func everything() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// routes translates the http list of a VirtualService for one listener port,
// in order, for a client behind the named gateway ("mesh" for every client but
// ingress). The first route that matches everything ends the list. Where no
// route is left, or none matches, a request has no route (404 in Envoy).
// https://istio.io/latest/docs/reference/config/networking/virtual-service/
func (b *builder) routes(vs *policy.VirtualService, port uint32, gateway string) ([]*routev3.Route, error) {
	var out []*routev3.Route
	for i, http := range vs.Spec.GetHttp() {
		at := fmt.Sprintf("%s spec.http[%d]", about(&vs.Meta), i)
		if field := unknownField(http, httpRouteFields); field != "" {
			return nil, unsupported(at, field)
		}
		if field := unknownField(http.GetRetries(), retryFields); field != "" {
			return nil, unsupported(at, "retries."+field)
		}
		if len(http.GetMatch()) == 0 {
			r, err := b.route(vs, http, nil, everything(), port, at)
			if err != nil {
				return nil, err
			}
			return append(out, r), nil
		}
		for j, m := range http.GetMatch() {
			if !b.applies(m, port, gateway) {
				continue
			}
			where := fmt.Sprintf("%s.match[%d]", at, j)
			matches, err := b.match(m, where)
			if err != nil {
				return nil, err
			}
			for _, rm := range matches {
				r, err := b.route(vs, http, m, rm, port, at)
				if err != nil {
					return nil, err
				}
				out = append(out, r)
				if catchesAll(rm) {
					return out, nil
				}
			}
		}
	}
	return out, nil
}

// applies decides the conditions of a match that are known before any request:
// the listener's port, and who the client is. Istio does not look at the source
// of a match that names gateways.
func (b *builder) applies(m *networking.HTTPMatchRequest, port uint32, gateway string) bool {
	if m.GetPort() != 0 && m.GetPort() != port {
		return false
	}
	if len(m.GetGateways()) > 0 {
		return slices.Contains(m.GetGateways(), gateway)
	}
	if ns := m.GetSourceNamespace(); ns != "" && ns != b.client.Namespace {
		return false
	}
	return policy.HasLabels(b.client.Labels, m.GetSourceLabels())
}

// catchesAll reports whether nothing after a match can be reached.
func catchesAll(m *routev3.RouteMatch) bool {
	if len(m.GetHeaders()) > 0 || len(m.GetQueryParameters()) > 0 || len(m.GetDynamicMetadata()) > 0 {
		return false
	}
	return m.GetPrefix() == "/" || m.GetSafeRegex().GetRegex() == ".*"
}

func (b *builder) route(vs *policy.VirtualService, http *networking.HTTPRoute, m *networking.HTTPMatchRequest, match *routev3.RouteMatch, port uint32, at string) (*routev3.Route, error) {
	name := http.GetName()
	if m.GetName() != "" {
		name += "." + m.GetName()
	}
	r := &routev3.Route{Name: name, Match: match}
	authority := b.changeHeaders(http.GetHeaders(), at+".headers", r)
	switch {
	case http.GetRedirect() != nil:
		action, err := b.redirect(http.GetRedirect(), port, at+".redirect")
		if err != nil {
			return nil, err
		}
		r.Action = &routev3.Route_Redirect{Redirect: action}
	case http.GetDirectResponse() != nil:
		r.Action = &routev3.Route_DirectResponse{DirectResponse: b.directResponse(http.GetDirectResponse(), at+".directResponse")}
	default:
		action, err := b.forward(vs, http, r, authority, port, at)
		if err != nil {
			return nil, err
		}
		r.Action = &routev3.Route_Route{Route: action}
	}
	b.filters(http, r, at)
	return r, nil
}

// forward sends to the destinations of a route. What a destination does to headers
// comes after what the route does, and its host counts where the route gives none.
func (b *builder) forward(vs *policy.VirtualService, http *networking.HTTPRoute, r *routev3.Route, authority string, port uint32, at string) (*routev3.RouteAction, error) {
	var destinations []*networking.HTTPRouteDestination
	for _, d := range http.GetRoute() {
		if len(http.GetRoute()) == 1 || d.GetWeight() > 0 {
			destinations = append(destinations, d)
		}
	}
	if len(destinations) == 0 {
		return nil, fmt.Errorf("%s route: no destination has a weight above 0", at)
	}
	var hash []*routev3.RouteAction_HashPolicy
	for _, d := range destinations {
		hash = append(hash, b.hashPolicies(b.clusterName(vs, d.GetDestination(), port), at)...)
	}
	single := len(http.GetRoute()) == 1
	action := b.action(http, at, hash, single && len(hash) > 0)
	if a := http.GetRewrite().GetAuthority(); a != "" {
		authority = a
	}
	b.rewrite(http, action, authority, at)
	b.mirrors(vs, http, action, port, at)
	var weighted routev3.WeightedCluster
	for i, d := range destinations {
		cluster := b.clusterName(vs, d.GetDestination(), port)
		if b.view.set.ServiceByHost(cluster.Host) == nil {
			action.ClusterNotFoundResponseCode = routev3.RouteAction_INTERNAL_SERVER_ERROR
		}
		headers := fmt.Sprintf("%s.route[%d].headers", at, i)
		if single {
			own := b.changeHeaders(d.GetHeaders(), headers, r)
			action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: cluster.String()}
			if own != "" && action.HostRewriteSpecifier == nil && b.client.Agent != GRPC {
				action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: own}
			}
			return action, nil
		}
		leg := &routev3.WeightedCluster_ClusterWeight{Name: cluster.String(), Weight: wrapperspb.UInt32(uint32(d.GetWeight()))}
		own := b.changeHeaders(d.GetHeaders(), headers, leg)
		if own != "" && action.HostRewriteSpecifier == nil && b.client.Agent != GRPC {
			leg.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: own}
		}
		weighted.Clusters = append(weighted.Clusters, leg)
	}
	action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &weighted}
	return action, nil
}

// clusterName is the cluster of a destination. Without a port it is the
// service's only one, and the port that the request was sent to where the
// service has several or is not known.
func (b *builder) clusterName(vs *policy.VirtualService, d *networking.Destination, port uint32) TrafficName {
	host := b.view.set.ResolveHost(d.GetHost(), vs.Namespace)
	if n := d.GetPort().GetNumber(); n != 0 {
		port = n
	} else if s := b.view.set.ServiceByHost(host); s != nil && len(s.Ports) == 1 {
		port = s.Ports[0].Number
	}
	return TrafficName{Port: port, Subset: d.GetSubset(), Host: host}
}

// action has the route's limits. Istio's default timeout is none, which has to be
// said: Envoy's is 15 s.
//
// gRPC reads only max_stream_duration (gRFC A31), which also bounds a long
// stream where Envoy's timeout starts at the end of the request; it is set for
// gRPC alone, so that unary calls keep the timeout that policy gives them.
func (b *builder) action(http *networking.HTTPRoute, at string, hash []*routev3.RouteAction_HashPolicy, hashed bool) *routev3.RouteAction {
	timeout := http.GetTimeout()
	if timeout == nil {
		timeout = &durationpb.Duration{}
	}
	a := &routev3.RouteAction{
		Timeout:     timeout,
		RetryPolicy: b.retryPolicy(http.GetRetries(), at+".retries", hashed),
		HashPolicy:  hash,
	}
	if b.client.Agent == GRPC && timeout.AsDuration() > 0 {
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: timeout}
	}
	return a
}

// Fields that routes enforces.
var (
	httpRouteFields = []string{
		"name", "match", "route", "redirect", "directResponse", "rewrite", "timeout", "retries", "fault", "mirror", "mirrors",
		"mirrorPercent", "mirrorPercentage", "corsPolicy", "headers",
	}
	retryFields = []string{"attempts", "perTryTimeout", "retryOn", "retryIgnorePreviousHosts", "retryRemoteLocalities", "backoff"}
)

// unknownField returns the first field that is set and not in the list, in
// the spelling of YAML, or "".
func unknownField(m proto.Message, known []string) string {
	found := map[string]bool{}
	r := m.ProtoReflect()
	for i, fields := 0, r.Descriptor().Fields(); i < fields.Len(); i++ {
		if f := fields.Get(i); r.Has(f) && !slices.Contains(known, f.JSONName()) {
			found[f.JSONName()] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		return name
	}
	return ""
}
