package translate

//lint:file-ignore SA1019 Istio's deprecated fields are still written.

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// Names of the filters that a route configures.
const (
	faultFilter = "envoy.filters.http.fault"
	corsFilter  = "envoy.filters.http.cors"
)

// maxDirectBody is Istio's bound on the body of a direct response.
const maxDirectBody = 1 << 20

// changeHeaders adds the changes of one level to a route or a destination, and returns the
// authority that they give, or "". What is set comes before what is added; names of
// Envoy's own (":path") can not be changed.
func (b *builder) changeHeaders(h *networking.Headers, at string, to any) (authority string) {
	if h == nil {
		return ""
	}
	if b.client.Agent == GRPC {
		b.note(at, "gRPC does not change headers")
		return ""
	}
	set, first := headerValues(h.GetRequest().GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	add, second := headerValues(h.GetRequest().GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	if authority = first; authority == "" {
		authority = second
	}
	request := append(set, add...)
	set, _ = headerValues(h.GetResponse().GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	add, _ = headerValues(h.GetResponse().GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	response := append(set, add...)
	removeRequest, removeResponse := changeable(h.GetRequest().GetRemove()), changeable(h.GetResponse().GetRemove())
	switch to := to.(type) {
	case *routev3.Route:
		to.RequestHeadersToAdd = append(to.RequestHeadersToAdd, request...)
		to.RequestHeadersToRemove = append(to.RequestHeadersToRemove, removeRequest...)
		to.ResponseHeadersToAdd = append(to.ResponseHeadersToAdd, response...)
		to.ResponseHeadersToRemove = append(to.ResponseHeadersToRemove, removeResponse...)
	case *routev3.WeightedCluster_ClusterWeight:
		to.RequestHeadersToAdd = append(to.RequestHeadersToAdd, request...)
		to.RequestHeadersToRemove = append(to.RequestHeadersToRemove, removeRequest...)
		to.ResponseHeadersToAdd = append(to.ResponseHeadersToAdd, response...)
		to.ResponseHeadersToRemove = append(to.ResponseHeadersToRemove, removeResponse...)
	}
	return authority
}

func headerValues(m map[string]string, how corev3.HeaderValueOption_HeaderAppendAction) (out []*corev3.HeaderValueOption, authority string) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if strings.EqualFold(name, "host") || strings.EqualFold(name, ":authority") {
			authority = m[name]
		}
		if isInternal(name) {
			continue
		}
		out = append(out, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: m[name]}, AppendAction: how})
	}
	return out, authority
}

// isInternal reports whether a header says where a request goes, which routes say in other ways.
func isInternal(name string) bool {
	return strings.HasPrefix(name, ":") || strings.EqualFold(name, "host")
}

func changeable(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), isInternal)
}

// redirect answers with another place. A port that the scheme implies is left out.
func (b *builder) redirect(in *networking.HTTPRedirect, port uint32, at string) (*routev3.RedirectAction, error) {
	code, ok := redirectCodes[in.GetRedirectCode()]
	if !ok {
		return nil, unsupported(at, "redirectCode "+strconv.Itoa(int(in.GetRedirectCode())))
	}
	out := &routev3.RedirectAction{HostRedirect: in.GetAuthority(), ResponseCode: code}
	switch {
	case in.GetPrefixRewrite() != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: in.GetPrefixRewrite()}
	case in.GetUri() != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: in.GetUri()}
	}
	scheme := in.GetScheme()
	if scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: scheme}
	} else {
		scheme = "http"
	}
	switch p := in.GetRedirectPort().(type) {
	case *networking.HTTPRedirect_Port:
		out.PortRedirect = p.Port
	case *networking.HTTPRedirect_DerivePort:
		if p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT {
			out.PortRedirect = port
		}
	}
	if out.PortRedirect == 80 && scheme == "http" || out.PortRedirect == 443 && scheme == "https" {
		out.PortRedirect = 0
	}
	if b.client.Agent == GRPC {
		b.note(at, "gRPC does not follow redirects: calls fail with UNAVAILABLE")
	}
	return out, nil
}

var redirectCodes = map[uint32]routev3.RedirectAction_RedirectResponseCode{
	0: routev3.RedirectAction_MOVED_PERMANENTLY, 301: routev3.RedirectAction_MOVED_PERMANENTLY, 302: routev3.RedirectAction_FOUND,
	303: routev3.RedirectAction_SEE_OTHER, 307: routev3.RedirectAction_TEMPORARY_REDIRECT, 308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

func (b *builder) directResponse(in *networking.HTTPDirectResponse, at string) *routev3.DirectResponseAction {
	out := &routev3.DirectResponseAction{Status: in.GetStatus()}
	switch body := in.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: body.String_}}
	case *networking.HTTPBody_Bytes:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: body.Bytes}}
	}
	if b.client.Agent == GRPC {
		b.note(at, "gRPC knows no direct responses: calls fail with UNAVAILABLE")
	}
	return out
}

// rewrite changes what is sent: the path's prefix or what an expression matches, and the authority.
func (b *builder) rewrite(http *networking.HTTPRoute, action *routev3.RouteAction, authority, at string) {
	if b.client.Agent == GRPC {
		if http.GetRewrite() != nil {
			b.note(at+".rewrite", "gRPC rewrites neither paths nor authorities")
		}
		return
	}
	if re := http.GetRewrite().GetUriRegexRewrite(); re != nil {
		action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{Regex: re.GetMatch()}, Substitution: re.GetRewrite()}
	} else if uri := http.GetRewrite().GetUri(); uri != "" {
		action.PrefixRewrite = uri
	}
	if authority != "" {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
	}
}

// mirrors send copies. No percentage is all, one of 0 none.
func (b *builder) mirrors(vs *policy.VirtualService, http *networking.HTTPRoute, action *routev3.RouteAction, port uint32, at string) {
	if http.GetMirror() == nil && len(http.GetMirrors()) == 0 {
		return
	}
	if b.client.Agent == GRPC {
		b.note(at+".mirror", "gRPC sends no copies")
		return
	}
	add := func(d *networking.Destination, share *typev3.FractionalPercent) {
		if share.GetNumerator() == 0 {
			return
		}
		action.RequestMirrorPolicies = append(action.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
			Cluster:         b.clusterName(vs, d, port).String(),
			RuntimeFraction: &corev3.RuntimeFractionalPercent{DefaultValue: share},
			TraceSampled:    wrapperspb.Bool(false),
			// The host is that of the request, as in Istio from 1.23 on.
			DisableShadowHostSuffixAppend: true,
		})
	}
	if m := http.GetMirror(); m != nil {
		switch {
		case http.GetMirrorPercentage() != nil:
			add(m, fraction(http.GetMirrorPercentage()))
		case http.GetMirrorPercent() != nil:
			add(m, wholePercent(http.GetMirrorPercent().GetValue()))
		default:
			add(m, wholePercent(100))
		}
	}
	for _, m := range http.GetMirrors() {
		share := wholePercent(100)
		if m.GetPercentage() != nil {
			share = fraction(m.GetPercentage())
		}
		add(m.GetDestination(), share)
	}
}

// fraction is a percentage to the ten-thousandth, as Envoy counts it.
func fraction(p *networking.Percent) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: uint32(math.Round(p.GetValue() * 10000)), Denominator: typev3.FractionalPercent_MILLION}
}

func wholePercent(n uint32) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: n, Denominator: typev3.FractionalPercent_HUNDRED}
}

// filters configures a route's faults and CORS.
func (b *builder) filters(http *networking.HTTPRoute, r *routev3.Route, at string) {
	put := func(name string, config *anypb.Any) {
		if r.TypedPerFilterConfig == nil {
			r.TypedPerFilterConfig = make(map[string]*anypb.Any)
		}
		r.TypedPerFilterConfig[name] = config
	}
	if f := fault(http.GetFault()); f != nil {
		put(faultFilter, mustPack(f))
	}
	if http.GetCorsPolicy() == nil {
		return
	}
	if b.client.Agent == GRPC {
		b.note(at+".corsPolicy", "gRPC refuses a host with it, and is no browser: it is left out")
		return
	}
	put(corsFilter, mustPack(cors(http.GetCorsPolicy())))
}

// fault delays and aborts a share of the requests; no percentage is none of them.
// https://istio.io/latest/docs/reference/config/networking/virtual-service/#HTTPFaultInjection
func fault(in *networking.HTTPFaultInjection) *faultv3.HTTPFault {
	out := &faultv3.HTTPFault{}
	if d := in.GetDelay(); d.GetFixedDelay() != nil {
		share := wholePercent(uint32(max(d.GetPercent(), 0)))
		if d.GetPercentage() != nil {
			share = fraction(d.GetPercentage())
		}
		out.Delay = &commonfaultv3.FaultDelay{
			FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: d.GetFixedDelay()},
			Percentage:         share,
		}
	}
	a := in.GetAbort()
	share := wholePercent(0)
	if a.GetPercentage() != nil {
		share = fraction(a.GetPercentage())
	}
	switch t := a.GetErrorType().(type) {
	case *networking.HTTPFaultInjection_Abort_HttpStatus:
		out.Abort = &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(t.HttpStatus)}, Percentage: share}
	case *networking.HTTPFaultInjection_Abort_GrpcStatus:
		var code codes.Code
		if code.UnmarshalJSON([]byte(strconv.Quote(t.GrpcStatus))) == nil {
			out.Abort = &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_GrpcStatus{GrpcStatus: uint32(code)}, Percentage: share}
		}
	}
	if out.Delay == nil && out.Abort == nil {
		return nil
	}
	return out
}

// cors answers preflights and marks responses for browsers. Preflights of origins that
// it does not know are sent on, unless it says otherwise.
func cors(in *networking.CorsPolicy) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		FilterEnabled:                &corev3.RuntimeFractionalPercent{DefaultValue: wholePercent(100)},
		AllowMethods:                 strings.Join(in.GetAllowMethods(), ","),
		AllowHeaders:                 strings.Join(in.GetAllowHeaders(), ","),
		ExposeHeaders:                strings.Join(in.GetExposeHeaders(), ","),
		AllowCredentials:             in.GetAllowCredentials(),
		ForwardNotMatchingPreflights: wrapperspb.Bool(in.GetUnmatchedPreflights() != networking.CorsPolicy_IGNORE),
	}
	if in.GetMaxAge() != nil {
		out.MaxAge = strconv.FormatInt(in.GetMaxAge().GetSeconds(), 10)
	}
	for _, o := range in.GetAllowOrigins() {
		if m := stringMatcher(o); m != nil {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
		}
	}
	if in.AllowOrigins == nil {
		for _, o := range in.GetAllowOrigin() {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, originMatcher(o))
		}
	}
	return out
}

// originMatcher is one of the older list of origins, where "*" is every one.
func originMatcher(o string) *matcherv3.StringMatcher {
	if o == "*" {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: fullMatch(".*")}}
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: o}}
}
