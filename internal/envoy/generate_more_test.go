package envoy_test

import (
	"slices"
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// shortTime is a time limit that an endpoint which is slow exceeds, and no other.
const shortTime = 150 * time.Millisecond

// filters are a level's own settings of filters, each in so many of a hundred cases.
func (g *generator) filters(cors, fault int) map[string]*anypb.Any {
	out := make(map[string]*anypb.Any)
	add := func(name string, config *anypb.Any) {
		switch {
		case g.chance(10):
			config = packed(&routev3.FilterConfig{Disabled: true})
		case g.chance(15):
			config = packed(&routev3.FilterConfig{Config: config, IsOptional: g.chance(50)})
		}
		out[name] = config
	}
	if g.chance(cors) {
		add("envoy.filters.http.cors", packed(g.cors()))
	}
	if g.chance(fault) {
		add("envoy.filters.http.fault", packed(g.fault()))
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func (g *generator) fraction() *corev3.RuntimeFractionalPercent {
	return &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: pick(g, []uint32{0, 100, 100})}}
}

func (g *generator) mirrors() (out []*routev3.RouteAction_RequestMirrorPolicy) {
	for range 1 + g.IntN(2) {
		m := &routev3.RouteAction_RequestMirrorPolicy{DisableShadowHostSuffixAppend: g.chance(30)}
		if g.chance(15) {
			m.ClusterHeader = "x-mirror"
		} else {
			m.Cluster = pick(g, mirrors)
		}
		if g.chance(40) {
			m.RuntimeFraction = g.fraction()
		}
		if g.chance(20) {
			m.HostRewriteLiteral = pick(g, []string{"mirror.example", "mirror.example:81"})
		}
		for g.chance(30) {
			change := &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: pick(g, headers)}}
			if g.chance(60) {
				change.Action = &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
					Header: &corev3.HeaderValue{
						Key:   pick(g, []string{"x-a", "x-b", "x-new"}),
						Value: pick(g, []string{"mirror", "%REQ(x-user)%", "%REQ(:path)%", "%REQ(:AUTHORITY)%"}),
					},
					AppendAction: pick(g, []corev3.HeaderValueOption_HeaderAppendAction{
						corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_ADD_IF_ABSENT,
						corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS,
					}),
				}}
			}
			m.RequestHeadersMutations = append(m.RequestHeadersMutations, change)
		}
		out = append(out, m)
	}
	return out
}

// formats makes some of the rewrites formats.
func (g *generator) formats(a *routev3.RouteAction) {
	if a.PrefixRewrite == "" && a.RegexRewrite == nil && a.PathRewritePolicy == nil && g.chance(6) {
		a.PathRewrite = pick(g, []string{"/to/%REQ(x-user)%", "/%REQ(x-num)%?x=1", "/fixed", "%REQ(x-none)%"})
	}
	if a.HostRewriteSpecifier == nil && g.chance(6) {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewrite{HostRewrite: pick(g, []string{"%REQ(x-user)%", "%REQ(x-num)%.example", "fixed.example", "to-%REQ(:method)%.example"})}
	}
	if a.HostRewriteSpecifier == nil && g.chance(4) {
		a.HostRewriteSpecifier = &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: wrapperspb.Bool(true)}
	}
}

// hashCookie is a cookie that is issued where a request has none.
func (g *generator) hashCookie() *routev3.RouteAction_HashPolicy_Cookie_ {
	c := &routev3.RouteAction_HashPolicy_Cookie{Name: issued, Ttl: durationpb.New(pick(g, []time.Duration{0, time.Hour}))}
	if g.chance(50) {
		c.Path = pick(g, []string{"/", "/shop"})
	}
	if g.chance(30) {
		c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: "SameSite", Value: "Strict"})
	}
	return &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}
}

// issued is the name of cookies that hash policies issue.
const issued = "sticky"

// moreRetry adds rules on the endpoints of further attempts and time limits.
func (g *generator) moreRetry(p *routev3.RetryPolicy) {
	if g.chance(40) {
		p.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: packed(&previoushostsv3.PreviousHostsPredicate{})},
		}}
		p.HostSelectionRetryMaxAttempts = pick(g, []int64{1, 3, 10})
	}
	if g.chance(15) {
		p.RetryPriority = &routev3.RetryPolicy_RetryPriority{
			Name:       "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: packed(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: int32(1 + g.IntN(2))})},
		}
	}
	if g.chance(15) {
		p.RetriableRequestHeaders = []*routev3.HeaderMatcher{g.headerMatch()}
	}
	if g.timed && g.chance(50) {
		p.PerTryTimeout = durationpb.New(shortTime)
	}
}

// always is a percentage that leaves nothing to chance.
func (g *generator) always(no int) *typev3.FractionalPercent {
	switch {
	case g.chance(no):
		return &typev3.FractionalPercent{}
	case g.chance(20):
		return &typev3.FractionalPercent{Numerator: 1_000_000, Denominator: typev3.FractionalPercent_MILLION}
	default:
		return &typev3.FractionalPercent{Numerator: 100}
	}
}

func (g *generator) fault() *faultv3.HTTPFault {
	f := &faultv3.HTTPFault{}
	if g.chance(90) {
		f.Abort = &faultv3.FaultAbort{Percentage: g.always(40)}
		switch g.IntN(4) {
		case 0:
			f.Abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: pick(g, []uint32{200, 400, 429, 503, 555})}
		case 1:
			f.Abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: pick(g, []uint32{0, 0, 5, 14})}
		default:
			f.Abort.ErrorType = &faultv3.FaultAbort_HeaderAbort_{HeaderAbort: &faultv3.FaultAbort_HeaderAbort{}}
		}
	}
	if g.chance(30) {
		f.Headers = []*routev3.HeaderMatcher{g.headerMatch()}
	}
	if g.chance(30) || f.Abort == nil {
		f.Delay = &faultcommonv3.FaultDelay{Percentage: g.always(20)}
		if g.chance(50) {
			f.Delay.FaultDelaySecifier = &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(time.Millisecond)}
		} else {
			f.Delay.FaultDelaySecifier = &faultcommonv3.FaultDelay_HeaderDelay_{HeaderDelay: &faultcommonv3.FaultDelay_HeaderDelay{}}
		}
	}
	if g.chance(10) {
		f.UpstreamCluster = pick(g, single)
	}
	if g.chance(5) {
		f.MaxActiveFaults = wrapperspb.UInt32(0)
	}
	return f
}

// faultHeaders are the request's own wishes for faults.
func (g *generator) faultHeaders(r *request) {
	if g.chance(6) {
		r.header["x-envoy-fault-delay-request"] = []string{pick(g, []string{"1", "3", "x"})}
	}
	if g.chance(6) {
		r.header["x-envoy-fault-abort-grpc-request"] = []string{pick(g, []string{"5", "14", "x", "-1"})}
	}
	for _, name := range []string{"x-envoy-fault-abort-request-percentage", "x-envoy-fault-delay-request-percentage"} {
		if g.chance(5) {
			r.header[name] = []string{pick(g, []string{"0", "1000000", "x"})}
		}
	}
	if g.chance(20) {
		r.header["x-mirror"] = []string{pick(g, append([]string{"nowhere", ""}, mirrors...))}
	}
}

// catchAll has most virtual hosts take what no other route does.
func (g *generator) catchAll(rc *routev3.RouteConfiguration) {
	any := false
	for _, vh := range rc.GetVirtualHosts() {
		any = any || slices.Contains(vh.GetDomains(), "*")
		if g.chance(70) {
			all := g.route("all")
			all.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
			if a := all.GetRoute(); a != nil {
				a.PathRewritePolicy = nil
			}
			vh.Routes = append(vh.Routes, all)
		}
	}
	if last := rc.GetVirtualHosts()[len(rc.GetVirtualHosts())-1]; !any && g.chance(70) {
		last.Domains = append(last.Domains, "*")
	}
}
