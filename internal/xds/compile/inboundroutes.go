package compile

import (
	"math"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// inboundRoutes accepts routes that hand every request to the program and
// differ only in their rate limits. Others would restrict what can be called.
func inboundRoutes(rc *routev3.RouteConfiguration, in *snapshot.Inbound, a *access) *fault {
	if f := outboundOnly(rc.ProtoReflect()); f != nil {
		return f
	}
	all, f := a.replacements(rc.GetTypedPerFilterConfig())
	if f != nil {
		return f
	}
	const field = "virtual_hosts"
	if len(rc.GetVirtualHosts()) != 1 {
		return faultf(field, "%d virtual hosts: not supported, only one for %q is", len(rc.GetVirtualHosts()), "*")
	}
	vh := rc.GetVirtualHosts()[0]
	ofHost, f := a.replacements(vh.GetTypedPerFilterConfig())
	switch {
	case f != nil:
	case vh.GetRetryPolicy() != nil:
		f = faultf("retry_policy", "not supported in a listener for an address")
	case !slices.Contains(vh.GetDomains(), "*"):
		f = faultf("domains", "must have %q: to restrict the domains is not supported", "*")
	default:
		f = a.routes(vh.GetRoutes(), ofHost, all)
	}
	if f != nil {
		return f.underIndex(field, 0)
	}
	if service, _, ok := istioName(vh.GetName()); ok && in.Service == "" {
		in.Service = service
	}
	return nil
}

// inboundFields are what routes on the way in may have of the messages that
// routes on the way out share with them; nothing else is enforced there.
var inboundFields = map[protoreflect.FullName]string{
	"envoy.config.route.v3.RouteConfiguration": "name virtual_hosts typed_per_filter_config max_direct_response_body_size_bytes most_specific_header_mutations_wins",
	"envoy.config.route.v3.VirtualHost":        "name domains routes retry_policy typed_per_filter_config include_request_attempt_count include_attempt_count_in_response",
	"envoy.config.route.v3.Route":              "name match route redirect direct_response non_forwarding_action typed_per_filter_config",
	"envoy.config.route.v3.RouteMatch": "prefix path safe_regex path_separated_prefix path_match_policy connect_matcher case_sensitive runtime_fraction headers " +
		"query_parameters grpc",
}

// outboundOnly returns the first field that is enforced on the way out only.
func outboundOnly(m protoreflect.Message) *fault {
	allowed, ok := inboundFields[m.Descriptor().FullName()]
	if !ok {
		return nil
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		name := string(fd.Name())
		// Headers that requests from outside must not have are harmless to requests on the way out only.
		harmless := verdicts[m.Descriptor().FullName()][fd.Name()] == isHarmless && name != "internal_only_headers"
		if !m.Has(fd) || harmless {
			continue
		}
		if !slices.Contains(strings.Fields(allowed), name) {
			return faultf(name, "not supported in a listener for an address")
		}
		switch {
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for j := range m.Get(fd).List().Len() {
				if f := outboundOnly(m.Get(fd).List().Get(j).Message()); f != nil {
					return f.underIndex(name, j)
				}
			}
		default:
			if f := outboundOnly(m.Get(fd).Message()); f != nil {
				return f.under(name)
			}
		}
	}
	return nil
}

// routes reads routes up to the one that matches every request: what comes
// after it is never reached.
func (a *access) routes(routes []*routev3.Route, ofHost, all replacements) *fault {
	var out []snapshot.InboundRoute
	differ := false
	for i, r := range routes {
		var route snapshot.InboundRoute
		f := match(r.GetMatch(), &route.Match).under("match")
		own, ownFault := a.replacements(r.GetTypedPerFilterConfig())
		switch {
		case f != nil:
		case r.GetNonForwardingAction() == nil:
			f = faultf("", "must have a non_forwarding_action")
		default:
			f = ownFault
		}
		if f != nil {
			return f.underIndex("routes", i)
		}
		route.RateLimits = a.limitsOf(own, ofHost, all)
		differ = differ || i > 0 && !slices.Equal(route.RateLimits, out[0].RateLimits)
		out = append(out, route)
		if !everyRequest(r.GetMatch()) {
			continue
		}
		if differ {
			a.chain.Routes = out
		} else {
			a.chain.RateLimits = append(a.chain.RateLimits, route.RateLimits...)
		}
		return nil
	}
	return faultf("routes", "none matches every request: to refuse the others is not supported")
}

func everyRequest(m *routev3.RouteMatch) bool {
	_, isPrefix := m.GetPathSpecifier().(*routev3.RouteMatch_Prefix)
	return isPrefix && (m.GetPrefix() == "" || m.GetPrefix() == "/") &&
		m.GetRuntimeFraction() == nil && len(m.GetHeaders()) == 0 && len(m.GetQueryParameters()) == 0 && m.GetGrpc() == nil
}

// replacements are what stands for the rate limits of filters, by the filter's
// name; nil limits nothing.
type replacements map[string]*resilience.RateLimit

// replacements reads configurations for filters. Those that decide on access
// are the same for all requests.
func (a *access) replacements(configs map[string]*anypb.Any) (replacements, *fault) {
	const field = "typed_per_filter_config"
	out := make(replacements)
	others := make(map[string]*anypb.Any)
	for _, name := range sortedKeys(configs) {
		isLimit := slices.ContainsFunc(a.limits, func(l limitFilter) bool { return l.name == name })
		switch {
		case isLimit:
			limit, f := replacement(name, configs[name])
			if f != nil {
				return nil, f.underKey(field, name)
			}
			out[name] = limit
		case a.enforced[name]:
			return nil, faultf("", "not supported: the filter decides on all requests alike").underKey(field, name)
		default:
			others[name] = configs[name]
		}
	}
	return out, perFilterConfig(others)
}

func replacement(name string, config *anypb.Any) (*resilience.RateLimit, *fault) {
	if config.MessageIs((*routev3.FilterConfig)(nil)) {
		var fc routev3.FilterConfig
		if f := extension(config, &fc); f != nil {
			return nil, f
		}
		if fc.GetDisabled() {
			return nil, nil
		}
		config = fc.GetConfig()
	}
	var m ratelimitv3.LocalRateLimit
	if f := extension(config, &m); f != nil {
		return nil, f
	}
	if m.GetTokenBucket() == nil {
		return nil, faultf("token_bucket", "missing, which a route must have")
	}
	return rateLimit(name, &m)
}

// limitsOf are the limits of a route. The most specific configuration of a
// filter stands for all others, as in Envoy.
func (a *access) limitsOf(levels ...replacements) []*resilience.RateLimit {
	var out []*resilience.RateLimit
	for _, filter := range a.limits {
		limit := filter.limit
		for _, level := range levels {
			if replaced, ok := level[filter.name]; ok {
				limit = replaced
				break
			}
		}
		if limit != nil {
			out = append(out, limit)
		}
	}
	return out
}

// ownMetadata is the key of what Envoy has no field for.
const ownMetadata = "sinew"

// inboundMetadata reads what Envoy has no field for.
func inboundMetadata(m *corev3.Metadata, in *snapshot.Inbound) ([]*resilience.RateLimit, *fault) {
	fields := m.GetFilterMetadata()[ownMetadata].GetFields()
	var limits []*resilience.RateLimit
	var f *fault
	for _, key := range sortedKeys(fields) {
		switch key {
		case "identity_rate_limit":
			var limit *resilience.RateLimit
			if limit, f = identityLimit(fields[key]); f == nil {
				limits = append(limits, limit)
			}
		case "mtls_dry_run":
			if in.StrictDryRun = fields[key].GetStringValue(); in.StrictDryRun == "" {
				f = faultf("", "must be a text that is not empty")
			}
		default:
			f = faultf("", notSupported)
		}
		if f != nil {
			return nil, f.under(key).underKey("filter_metadata", ownMetadata)
		}
	}
	return limits, nil
}

// identityLimit reads limits for each identity on its own.
func identityLimit(v *structpb.Value) (*resilience.RateLimit, *fault) {
	fields, f := object(v, "requests_per_second", "overrides")
	if f != nil {
		return nil, f
	}
	whole := routing.Fraction{PerMillion: 1_000_000}
	// gRPC calls are refused as by Linkerd, whose limits these are.
	c := resilience.RateLimitConfig{Name: "identity_rate_limit", Principals: &resilience.PrincipalLimit{}, Enabled: whole, Enforced: whole, ResourceExhausted: true}
	if c.Identity, f = limitIdentity(c.Name, v); f != nil {
		return nil, f
	}
	if fields["requests_per_second"] != nil {
		if c.Principals.PerSecond, f = whole32(fields["requests_per_second"]); f != nil {
			return nil, f.under("requests_per_second")
		}
	}
	overrides, f := list(fields["overrides"])
	if f != nil {
		return nil, f.under("overrides")
	}
	if c.Principals.Overrides, f = each("overrides", overrides, principalOverride); f != nil {
		return nil, f
	}
	limit, err := resilience.NewRateLimit(c)
	if err != nil {
		return nil, faultf("", "%v", err)
	}
	return limit, nil
}

func principalOverride(v *structpb.Value) (out resilience.PrincipalOverride, f *fault) {
	fields, f := object(v, "requests_per_second", "principals")
	if f != nil {
		return out, f
	}
	if out.PerSecond, f = whole32(fields["requests_per_second"]); f != nil {
		return out, f.under("requests_per_second")
	}
	principals, f := list(fields["principals"])
	if f != nil {
		return out, f.under("principals")
	}
	for i, p := range principals {
		id, err := identity.ParseID(p.GetStringValue())
		if err != nil {
			return out, faultf("", "%v", err).underIndex("principals", i)
		}
		out.Principals = append(out.Principals, id.String())
	}
	return out, nil
}

// object reads an object that has no other than the known fields.
func object(v *structpb.Value, known ...string) (map[string]*structpb.Value, *fault) {
	if v.GetStructValue() == nil {
		return nil, faultf("", "must be an object")
	}
	for _, key := range sortedKeys(v.GetStructValue().GetFields()) {
		if !slices.Contains(known, key) {
			return nil, faultf(key, notSupported)
		}
	}
	return v.GetStructValue().GetFields(), nil
}

// list reads a list; one that is missing is empty.
func list(v *structpb.Value) ([]*structpb.Value, *fault) {
	if v != nil && v.GetListValue() == nil {
		return nil, faultf("", "must be a list")
	}
	return v.GetListValue().GetValues(), nil
}

func whole32(v *structpb.Value) (uint32, *fault) {
	n, ok := v.GetKind().(*structpb.Value_NumberValue)
	if !ok || n.NumberValue != math.Trunc(n.NumberValue) || n.NumberValue < 0 || n.NumberValue > math.MaxUint32 {
		return 0, faultf("", "must be a whole number from 0 to %d", uint32(math.MaxUint32))
	}
	return uint32(n.NumberValue), nil
}
