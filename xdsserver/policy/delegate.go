package policy

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// isDelegate reports whether a VirtualService is only there for others to delegate to.
func isDelegate(vs *networking.VirtualService) bool { return len(vs.GetHosts()) == 0 }

// delegated returns a VirtualService in which each route that delegates is replaced by
// those of the VirtualService it names: what the latter leaves out it takes from the
// route, and one of its routes that asks for what the route does not let through is
// dropped, as is a route whose delegate is not there or may not be seen. dropped is
// called for each of these, with its path in the root.
// https://istio.io/latest/docs/reference/config/networking/virtual-service/#Delegate
func delegated(root *Object, spec *networking.VirtualService, delegates map[Ref]*Object, dropped func(field, why string)) *networking.VirtualService {
	if !slices.ContainsFunc(spec.GetHttp(), func(r *networking.HTTPRoute) bool { return r.GetDelegate() != nil }) {
		return spec
	}
	out := proto.Clone(spec).(*networking.VirtualService)
	out.Http = nil
	for i, r := range spec.GetHttp() {
		if r.GetDelegate() == nil {
			out.Http = append(out.Http, proto.Clone(r).(*networking.HTTPRoute))
			continue
		}
		at := routeField(i) + ".delegate"
		ref := delegateRef(root.Namespace, r.GetDelegate())
		o := delegates[ref]
		if o == nil {
			dropped(at, "the route is left out: there is no "+ref.String()+" without hosts")
			continue
		}
		child := o.Spec.(*networking.VirtualService)
		if !Exported(child.GetExportTo(), o.Namespace, root.Namespace) {
			dropped(at, "the route is left out: "+ref.String()+" is not exported to namespace "+root.Namespace)
			continue
		}
		for j, c := range child.GetHttp() {
			merged, ok := mergeRoute(r, c, o.Namespace)
			if !ok {
				dropped(at, routeField(j)+" of "+ref.String()+" is left out: it matches what the route that delegates to it does not")
				continue
			}
			out.Http = append(out.Http, merged)
		}
	}
	return out
}

func delegateRef(namespace string, d *networking.Delegate) Ref {
	if d.GetNamespace() != "" {
		namespace = d.GetNamespace()
	}
	return Ref{Kind: "VirtualService", Namespace: namespace, Name: d.GetName()}
}

// mergeRoute is a delegate's route with what only the root's says. Its short host
// names are those of the delegate's namespace. It reports false where the two do not
// go together.
func mergeRoute(root, child *networking.HTTPRoute, namespace string) (*networking.HTTPRoute, bool) {
	match, ok := mergeMatches(root.GetMatch(), child.GetMatch())
	if !ok {
		return nil, false
	}
	out := proto.Clone(child).(*networking.HTTPRoute)
	qualify(out, namespace)
	from := proto.Clone(root).(*networking.HTTPRoute)
	out.Match = match
	out.Name = mergeNames(from.GetName(), out.GetName())
	have := out.ProtoReflect()
	// The destinations and the redirect are the delegate's own.
	fields := have.Descriptor().Fields()
	for _, name := range []string{
		"rewrite", "directResponse", "timeout", "retries", "fault", "mirror", "mirrorPercent", "mirrorPercentage",
		"mirrors", "corsPolicy", "headers",
	} {
		fd := fields.ByJSONName(name)
		if !have.Has(fd) && from.ProtoReflect().Has(fd) {
			have.Set(fd, from.ProtoReflect().Get(fd))
		}
	}
	return out, true
}

// qualify gives the short host names of a route their namespace.
func qualify(r *networking.HTTPRoute, namespace string) {
	full := func(d *networking.Destination) {
		if d.GetHost() != "" && !strings.Contains(d.GetHost(), ".") {
			d.Host = FQDN(d.GetHost(), namespace)
		}
	}
	for _, d := range r.GetRoute() {
		full(d.GetDestination())
	}
	full(r.GetMirror())
	for _, m := range r.GetMirrors() {
		full(m.GetDestination())
	}
}

func mergeNames(root, child string) string {
	if root != "" && child != "" {
		return root + "-" + child
	}
	return root + child
}

// mergeMatches is what lets a request through both lists, of which each match of the
// delegate has to lie within one of the root's.
func mergeMatches(root, child []*networking.HTTPMatchRequest) ([]*networking.HTTPMatchRequest, bool) {
	if len(root) == 0 {
		return cloneAll(child), true
	}
	if len(child) == 0 {
		return cloneAll(root), true
	}
	var out []*networking.HTTPMatchRequest
	for _, c := range child {
		found := false
		for _, r := range root {
			if within := matchWithin(r, c); within {
				out, found = append(out, mergeMatch(r, c)), true
			}
		}
		if !found {
			return nil, false
		}
	}
	return out, true
}

func cloneAll(list []*networking.HTTPMatchRequest) []*networking.HTTPMatchRequest {
	var out []*networking.HTTPMatchRequest
	for _, m := range list {
		out = append(out, proto.Clone(m).(*networking.HTTPMatchRequest))
	}
	return out
}

func mergeMatch(root, child *networking.HTTPMatchRequest) *networking.HTTPMatchRequest {
	out := proto.Clone(root).(*networking.HTTPMatchRequest)
	own := proto.Clone(child).(*networking.HTTPMatchRequest)
	gateways := own.Gateways
	if len(gateways) == 0 {
		gateways = out.Gateways
	}
	name := mergeNames(out.GetName(), own.GetName())
	for _, set := range []struct {
		field *(*networking.StringMatch)
		own   *networking.StringMatch
	}{{&out.Uri, own.Uri}, {&out.Scheme, own.Scheme}, {&out.Method, own.Method}, {&out.Authority, own.Authority}} {
		if set.own != nil {
			*set.field = set.own
		}
	}
	out.Headers = over(out.Headers, own.Headers)
	out.WithoutHeaders = over(out.WithoutHeaders, own.WithoutHeaders)
	out.QueryParams = over(out.QueryParams, own.QueryParams)
	out.SourceLabels = over(out.SourceLabels, own.SourceLabels)
	if own.Port != 0 {
		out.Port = own.Port
	}
	if own.SourceNamespace != "" {
		out.SourceNamespace = own.SourceNamespace
	}
	if own.StatPrefix != "" {
		out.StatPrefix = own.StatPrefix
	}
	out.IgnoreUriCase, out.Gateways, out.Name = own.IgnoreUriCase, gateways, name
	return out
}

// over lays one map over another.
func over[V any](under, upper map[string]V) map[string]V {
	out := maps.Clone(under)
	if out == nil {
		return upper
	}
	maps.Copy(out, upper)
	return out
}

// matchWithin reports whether every request that a delegate's match takes may come
// through the root's, as far as Istio compares them.
func matchWithin(root, child *networking.HTTPMatchRequest) bool {
	if !textWithin(root.GetUri(), child.GetUri()) || !textWithin(root.GetScheme(), child.GetScheme()) ||
		!textWithin(root.GetMethod(), child.GetMethod()) || !textWithin(root.GetAuthority(), child.GetAuthority()) {
		return false
	}
	for _, maps := range [][2]map[string]*networking.StringMatch{
		{root.GetHeaders(), child.GetHeaders()}, {root.GetWithoutHeaders(), child.GetWithoutHeaders()}, {root.GetQueryParams(), child.GetQueryParams()},
	} {
		for k, m := range maps[1] {
			if !textWithin(maps[0][k], m) {
				return false
			}
		}
	}
	for k, v := range child.GetSourceLabels() {
		if have, ok := root.GetSourceLabels()[k]; ok && have != v {
			return false
		}
	}
	if root.GetPort() != 0 && child.GetPort() != 0 && root.GetPort() != child.GetPort() ||
		root.GetSourceNamespace() != "" && root.GetSourceNamespace() != child.GetSourceNamespace() ||
		root.GetIgnoreUriCase() != child.GetIgnoreUriCase() {
		return false
	}
	if len(root.GetGateways()) == 0 {
		return true
	}
	return !slices.ContainsFunc(child.GetGateways(), func(g string) bool { return !slices.Contains(root.GetGateways(), g) })
}

// textWithin reports whether what matches child also matches root. Of two regular
// expressions, or one and anything else, nobody can say.
func textWithin(root, child *networking.StringMatch) bool {
	if root == nil || child == nil {
		return true
	}
	if root.GetRegex() != "" || child.GetRegex() != "" {
		return false
	}
	text := child.GetExact() + child.GetPrefix() // one of them is set
	if exact := root.GetExact(); exact != "" {
		return child.GetExact() == exact
	}
	return root.GetPrefix() != "" && text != "" && strings.HasPrefix(text, root.GetPrefix())
}
