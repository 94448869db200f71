package policy

//lint:file-ignore SA1019 Istio's deprecated fields are still written.

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// maxRegexLength is Istio's bound on a regular expression, and the mesh's.
const maxRegexLength = 1024

func (f *findings) virtualService(meta Meta, vs *networking.VirtualService) {
	delegate := len(vs.Hosts) == 0
	if delegate {
		if len(vs.Gateways) > 0 {
			f.errorf("spec.gateways", "a VirtualService without hosts takes no gateways")
		}
		if len(vs.Tls) > 0 {
			f.errorf("spec.tls", "a VirtualService without hosts takes no TLS routes")
		}
		if len(vs.Tcp) > 0 {
			f.errorf("spec.tcp", "a VirtualService without hosts takes no TCP routes")
		}
	}
	f.gatewayNames("spec.gateways", vs.Gateways)
	toGateway := len(vs.Gateways) > 0 && !slices.Contains(vs.Gateways, MeshGateway)
	f.virtualHosts(vs, toGateway)
	if len(vs.Http)+len(vs.Tcp)+len(vs.Tls) == 0 {
		f.errorf("spec.http", "required: a VirtualService needs an http, tcp or tls route")
	}
	for i, r := range vs.Http {
		f.httpRoute(fmt.Sprintf("spec.http[%d]", i), r, delegate)
	}
	for i, r := range vs.Tls {
		f.tlsRoute(fmt.Sprintf("spec.tls[%d]", i), r, vs, toGateway)
	}
	for i, r := range vs.Tcp {
		in := fmt.Sprintf("spec.tcp[%d]", i)
		for j, m := range r.GetMatch() {
			at := fmt.Sprintf("%s.match[%d]", in, j)
			f.subnets(at+".destinationSubnets", m.GetDestinationSubnets())
			f.optionalPort(at+".port", m.GetPort())
			f.labels(at+".sourceLabels", m.GetSourceLabels())
			f.gatewayNames(at+".gateways", m.GetGateways())
		}
		if len(r.GetRoute()) == 0 {
			f.errorf(in+".route", "required")
		}
		f.routeDestinations(in+".route", r.GetRoute())
	}
	f.exportTo("spec.exportTo", meta.Namespace, vs.ExportTo, false)
	f.unreachable(vs)
}

// claims begins the name of a header in a match that stands for a claim of the token.
const claims = "@request.auth.claims"

// isClaim reports whether a header name is meant for a claim of the request's token.
func isClaim(name string) bool { return strings.HasPrefix(strings.ToLower(name), claims) }

// ClaimPath reads the name of a header in a match that stands for a claim of the
// verified token of the request which the client is serving while it calls:
// "@request.auth.claims.a.b" or "@request.auth.claims[a][b]", where the second takes
// names with dots in them. Istio has such matches for gateways only; here every
// program has its own token to match by.
// https://istio.io/latest/docs/tasks/security/authentication/jwt-route/
func ClaimPath(name string) ([]string, bool) {
	if !isClaim(name) {
		return nil, false
	}
	var path []string
	rest := name[len(claims):]
	if inner, ok := strings.CutPrefix(rest, "."); ok {
		path = strings.Split(inner, ".")
	} else if len(rest) > 2 && rest[0] == '[' && rest[len(rest)-1] == ']' {
		path = strings.Split(rest[1:len(rest)-1], "][")
	}
	return path, len(path) > 0 && !slices.Contains(path, "")
}

func (f *findings) virtualHosts(vs *networking.VirtualService, toGateway bool) {
	valid := true
	for i, h := range vs.Hosts {
		in := fmt.Sprintf("spec.hosts[%d]", i)
		// istiod writes names such as outbound_.80_._.reviews for its gateways.
		if toGateway && strings.HasPrefix(h, "outbound_") && hasSNI(vs) && strings.Count(h, "_") >= 3 {
			continue
		}
		if err := checkHost(h); err != nil {
			if !isIP(h) {
				f.err(in, err)
				valid = false
			}
		} else if h == "*" && !toGateway {
			f.errorf(in, "host \"*\" is for gateways only: name the hosts")
			valid = false
		}
	}
	if !valid {
		return
	}
	for i, a := range vs.Hosts {
		for j, b := range vs.Hosts[:i] {
			if hostsOverlap(a, b) {
				f.errorf(fmt.Sprintf("spec.hosts[%d]", i), "%q is covered twice: see spec.hosts[%d], %q", a, j, b)
			}
		}
	}
}

func hasSNI(vs *networking.VirtualService) bool {
	for _, r := range vs.Tls {
		for _, m := range r.GetMatch() {
			if len(m.GetSniHosts()) > 0 {
				return true
			}
		}
	}
	return false
}

// hostsOverlap reports whether one of two host names, which may have wildcards,
// covers the other.
func hostsOverlap(a, b string) bool {
	wildA, wildB := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	switch {
	case wildA && wildB:
		return strings.HasSuffix(a, b[1:]) || strings.HasSuffix(b, a[1:])
	case wildA:
		return strings.HasSuffix(b, a[1:])
	case wildB:
		return strings.HasSuffix(a, b[1:])
	}
	return a == b
}

func (f *findings) gatewayNames(field string, names []string) {
	for i, name := range names {
		in := fmt.Sprintf("%s[%d]", field, i)
		ns, gw, qualified := strings.Cut(name, "/")
		if !qualified {
			if err := checkDomain(name); err != nil {
				f.err(in, err)
			} else if strings.Contains(name, ".") {
				f.warnf(in, "%q: write a gateway as namespace/name", name)
			}
			continue
		}
		if !isLabel(ns) {
			f.errorf(in, "%q is not a namespace", ns)
		}
		if !isLabel(gw) {
			f.errorf(in, "%q is not the name of a gateway", gw)
		}
	}
}

func (f *findings) httpRoute(in string, r *networking.HTTPRoute, delegate bool) {
	f.routeActions(in, r, delegate)
	for i, m := range r.GetMatch() {
		f.httpMatch(fmt.Sprintf("%s.match[%d]", in, i), m)
	}
	f.headerOperations(in+".headers", r.Headers)
	f.cors(in+".corsPolicy", r.CorsPolicy)
	f.fault(in+".fault", r.Fault)
	if r.MirrorPercent != nil { //nolint:staticcheck // deprecated by Istio, still accepted
		if n := r.MirrorPercent.GetValue(); n > 100 { //nolint:staticcheck
			f.errorf(in+".mirrorPercent", "%d is more than 100", n)
		}
		f.warnf(in+".mirrorPercent", "is deprecated: use mirrorPercentage")
	}
	f.mirrorPercentage(in+".mirrorPercentage", r.MirrorPercentage)
	f.destination(in+".mirror", r.Mirror)
	for i, m := range r.Mirrors {
		at := fmt.Sprintf("%s.mirrors[%d]", in, i)
		if m.GetDestination() == nil {
			f.errorf(at+".destination", "required")
		}
		f.destination(at+".destination", m.GetDestination())
		f.mirrorPercentage(at+".percentage", m.GetPercentage())
	}
	f.redirect(in+".redirect", r.Redirect)
	f.directResponse(in+".directResponse", r.DirectResponse)
	f.retries(in+".retries", r.Retries)
	f.rewrite(in, r)
	f.httpDestinations(in+".route", r.Route)
	f.err(in+".timeout", checkDuration(r.Timeout))
}

// routeActions checks that a route does one thing.
func (f *findings) routeActions(in string, r *networking.HTTPRoute, delegate bool) {
	if r.Delegate != nil && !delegate {
		if r.Redirect != nil {
			f.errorf(in+".redirect", "can not be set together with delegate")
		}
		if r.Route != nil {
			f.errorf(in+".route", "can not be set together with delegate")
		}
		return
	}
	if r.Delegate != nil {
		f.errorf(in+".delegate", "a VirtualService without hosts can not delegate")
	}
	action, name := false, ""
	switch {
	case r.Redirect != nil:
		action, name = true, "redirect"
		if r.DirectResponse != nil {
			f.errorf(in+".directResponse", "can not be set together with redirect")
		}
	case r.DirectResponse != nil:
		action, name = true, "directResponse"
	case len(r.Route) == 0:
		f.errorf(in+".route", "required: a route needs a route, redirect or directResponse")
	}
	if action {
		if len(r.Route) > 0 {
			f.errorf(in+".route", "can not be set together with %s", name)
		}
		if r.Fault != nil {
			f.errorf(in+".fault", "can not be set together with %s", name)
		}
		if r.Rewrite != nil {
			f.errorf(in+".rewrite", "can not be set together with %s", name)
		}
	}
	if r.Mirror != nil && len(r.Mirrors) > 0 {
		f.errorf(in+".mirrors", "can not be set together with mirror")
	}
}

func (f *findings) httpMatch(in string, m *networking.HTTPMatchRequest) {
	for _, k := range sortedKeys(m.GetHeaders()) {
		f.headerName(in+".headers["+k+"]", k)
		f.stringMatch(in+".headers["+k+"]", m.Headers[k], true)
	}
	for _, k := range sortedKeys(m.GetWithoutHeaders()) {
		at := in + ".withoutHeaders[" + k + "]"
		f.headerName(at, k)
		if sm := m.WithoutHeaders[k]; sm.GetRegex() != "*" { // "*" means that the header is there
			f.stringMatch(at, sm, true)
		}
	}
	f.stringMatch(in+".uri", m.GetUri(), false)
	f.stringMatch(in+".scheme", m.GetScheme(), true)
	f.stringMatch(in+".method", m.GetMethod(), true)
	f.stringMatch(in+".authority", m.GetAuthority(), true)
	for _, k := range sortedKeys(m.GetQueryParams()) {
		f.stringMatch(in+".queryParams["+k+"]", m.QueryParams[k], true)
	}
	f.optionalPort(in+".port", m.GetPort())
	f.labels(in+".sourceLabels", m.GetSourceLabels())
	f.gatewayNames(in+".gateways", m.GetGateways())
	if ns := m.GetSourceNamespace(); ns != "" && !isLabel(ns) {
		f.errorf(in+".sourceNamespace", "%q is not a namespace", ns)
	}
}

func (f *findings) optionalPort(field string, n uint32) {
	if n != 0 {
		f.err(field, checkPort(n))
	}
}

func (f *findings) headerName(field, name string) {
	switch {
	case name == "":
		f.errorf(field, "a header needs a name")
	case isClaim(name):
		if _, ok := ClaimPath(name); !ok {
			f.errorf(field, "%q names no claim: write %s.name or %s[name]", name, claims, claims)
		}
	case slices.Contains([]string{":method", ":scheme", ":authority", ":path", ":status"}, name):
	case !headerNamePattern.MatchString(name):
		f.errorf(field, "%q is not the name of a header", name)
	}
}

// stringMatch checks a match. Only a path may have an empty prefix.
func (f *findings) stringMatch(field string, m *networking.StringMatch, needPrefix bool) {
	switch t := m.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		if t.Prefix == "" && needPrefix {
			f.errorf(field+".prefix", "must not be empty")
		}
	case *networking.StringMatch_Regex:
		f.regex(field+".regex", t.Regex)
	}
}

func (f *findings) regex(field, expr string) {
	if expr == "" {
		f.errorf(field, "must not be empty")
		return
	}
	if len(expr) > maxRegexLength {
		f.errorf(field, "is longer than %d characters", maxRegexLength)
		return
	}
	if _, err := regexp.Compile(expr); err != nil {
		f.errorf(field, "%q is not a regular expression as RE2 takes it: %v", expr, err)
	}
}

func (f *findings) httpDestinations(in string, list []*networking.HTTPRouteDestination) {
	total := int64(0)
	for i, d := range list {
		at := fmt.Sprintf("%s[%d]", in, i)
		if d.GetDestination() == nil {
			f.errorf(at+".destination", "required")
		}
		f.destination(at+".destination", d.GetDestination())
		f.headerOperations(at+".headers", d.GetHeaders())
		f.weight(at+".weight", d.GetWeight())
		total += int64(d.GetWeight())
	}
	if len(list) > 1 && total == 0 {
		f.errorf(in, "the weights add up to 0")
	}
}

func (f *findings) routeDestinations(in string, list []*networking.RouteDestination) {
	total := int64(0)
	for i, d := range list {
		at := fmt.Sprintf("%s[%d]", in, i)
		if d.GetDestination() == nil {
			f.errorf(at+".destination", "required")
		}
		f.destination(at+".destination", d.GetDestination())
		f.weight(at+".weight", d.GetWeight())
		total += int64(d.GetWeight())
	}
	if len(list) > 1 && total == 0 {
		f.errorf(in, "the weights add up to 0")
	}
}

func (f *findings) weight(field string, n int32) {
	if n < 0 {
		f.errorf(field, "%d is negative", n)
	}
}

func (f *findings) destination(in string, d *networking.Destination) {
	if d == nil {
		return
	}
	if d.Host == "*" {
		f.errorf(in+".host", "\"*\" is no destination")
	} else {
		f.err(in+".host", checkHost(d.Host))
	}
	if d.Subset != "" && !isLabel(d.Subset) {
		f.errorf(in+".subset", "%q is not the name of a subset", d.Subset)
	}
	if d.Port != nil {
		f.err(in+".port.number", checkPort(d.Port.GetNumber()))
	}
}

// retryConditions are those of Envoy's x-envoy-retry-on and x-envoy-retry-grpc-on
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter).
var retryConditions = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
	"retriable-status-codes", "retriable-headers", "envoy-ratelimited", "http3-post-connect-failure",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

func (f *findings) retries(in string, r *networking.HTTPRetry) {
	if r == nil {
		return
	}
	if r.Attempts < 0 {
		f.errorf(in+".attempts", "%d is negative", r.Attempts)
	}
	if r.Attempts == 0 && (r.PerTryTimeout != nil || r.RetryOn != "" || r.RetryRemoteLocalities != nil) {
		f.errorf(in+".attempts", "is 0, which turns retries off, but the other fields ask for them")
	}
	f.err(in+".perTryTimeout", checkDuration(r.PerTryTimeout))
	f.err(in+".backoff", checkDuration(r.Backoff))
	if r.RetryOn == "" {
		return
	}
	for _, on := range strings.Split(r.RetryOn, ",") {
		code, _ := strconv.Atoi(on)
		if http.StatusText(code) == "" && !slices.Contains(retryConditions, on) {
			f.errorf(in+".retryOn", "%q is not a condition of retry%s", on, suggest(strings.TrimSpace(on), retryConditions))
		}
	}
}

func (f *findings) tlsRoute(in string, r *networking.TLSRoute, vs *networking.VirtualService, toGateway bool) {
	if len(r.GetMatch()) == 0 {
		f.errorf(in+".match", "required")
	}
	for i, m := range r.GetMatch() {
		at := fmt.Sprintf("%s.match[%d]", in, i)
		if len(m.GetSniHosts()) == 0 {
			f.errorf(at+".sniHosts", "required")
		}
		for j, h := range m.GetSniHosts() {
			f.sniHost(fmt.Sprintf("%s.sniHosts[%d]", at, j), h, vs, toGateway)
		}
		f.subnets(at+".destinationSubnets", m.GetDestinationSubnets())
		f.optionalPort(at+".port", m.GetPort())
		f.labels(at+".sourceLabels", m.GetSourceLabels())
		f.gatewayNames(at+".gateways", m.GetGateways())
	}
	if len(r.GetRoute()) == 0 {
		f.errorf(in+".route", "required")
	}
	f.routeDestinations(in+".route", r.GetRoute())
}

func (f *findings) sniHost(field, host string, vs *networking.VirtualService, toGateway bool) {
	generated := toGateway && strings.HasPrefix(host, "outbound_") && strings.Count(host, "_") >= 3
	if err := checkHost(host); err != nil && !generated {
		if isIP(host) {
			f.warnf(field, "%q is an IP address, which a TLS client does not send as a server name", host)
			return
		}
		f.err(field, err)
		return
	}
	for _, h := range vs.Hosts {
		if h == host || strings.HasPrefix(h, "*") && strings.HasSuffix(host, h[1:]) {
			return
		}
	}
	f.errorf(field, "%q is not covered by the hosts of the VirtualService", host)
}

func (f *findings) subnets(field string, list []string) {
	for i, s := range list {
		f.err(fmt.Sprintf("%s[%d]", field, i), checkSubnet(s))
	}
}

// unreachable warns of routes that an earlier one takes everything from.
func (f *findings) unreachable(vs *networking.VirtualService) {
	reach := func(kind string, n int, matches func(i int) []proto.Message) {
		all, seen := -1, make(map[string]int)
		for i := range n {
			in := fmt.Sprintf("spec.%s[%d]", kind, i)
			ms := matches(i)
			if all >= 0 {
				f.warnf(in, "is never used: spec.%s[%d] matches everything", kind, all)
			}
			if len(ms) == 0 {
				all = i
				continue
			}
			for j, m := range ms {
				key := matchKey(m)
				if first, dup := seen[key]; dup {
					f.warnf(fmt.Sprintf("%s.match[%d]", in, j), "is never used: spec.%s[%d] has the same match", kind, first)
				} else if all < 0 {
					seen[key] = i
				}
			}
		}
	}
	f.covered(vs.Http)
	reach("http", len(vs.Http), func(i int) []proto.Message { return messages(vs.Http[i].GetMatch()) })
	reach("tls", len(vs.Tls), func(i int) []proto.Message { return messages(vs.Tls[i].GetMatch()) })
	reach("tcp", len(vs.Tcp), func(i int) []proto.Message { return messages(vs.Tcp[i].GetMatch()) })
}

// covered warns of a match whose path prefix extends that of an earlier route with
// otherwise the same conditions.
func (f *findings) covered(routes []*networking.HTTPRoute) {
	type prefixed struct {
		route       int
		prefix, key string
	}
	var earlier []prefixed
	for i, r := range routes {
		for j, m := range r.GetMatch() {
			prefix := m.GetUri().GetPrefix()
			if prefix == "" {
				continue
			}
			rest := proto.Clone(m).(*networking.HTTPMatchRequest)
			rest.Uri = nil
			key := matchKey(rest)
			for _, e := range earlier {
				if e.key == key && e.prefix != prefix && strings.HasPrefix(prefix, e.prefix) {
					f.warnf(fmt.Sprintf("spec.http[%d].match[%d]", i, j), "is never used: spec.http[%d] matches the prefix %q", e.route, e.prefix)
					break
				}
			}
			earlier = append(earlier, prefixed{i, prefix, key})
		}
	}
}

func messages[T proto.Message](list []T) []proto.Message {
	out := make([]proto.Message, len(list))
	for i, m := range list {
		out[i] = m
	}
	return out
}

// matchKey is the same for matches that differ in their name only.
func matchKey(m proto.Message) string {
	if hm, ok := m.(*networking.HTTPMatchRequest); ok && hm.GetName() != "" {
		hm = proto.Clone(hm).(*networking.HTTPMatchRequest)
		hm.Name = ""
		m = hm
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
