package envoy_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	templatematchv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	templaterewritev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/rewrite/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The pools are small, so that random requests hit random rules.
var (
	authorities = []string{
		"a.example", "a.example:80", "A.Example", "b.example", "b.example:8080", "x.b.example", "y.x.b.example",
		"c.test", "c.test:8080", "shop.local", "unknown.invalid", "10.0.0.1:8080", "[::1]:8080",
	}
	domains = []string{
		"a.example", "b.example", "b.example:8080", "*.b.example", "*.example", "*b.example", "c.*", "c.test:*", "shop.*", "shop.local", "10.0.0.1:8080", "*",
	}
	paths = []string{
		"/", "/api", "/api/", "/api/v1", "/api/v1/users", "/API/V1", "/apix", "/shop", "/shop/cart/7", "/shop//cart", "/shop/../api",
		"/sh%6Fp", "/shop%2Fcart", "/a/b/c/d", "/a.b/c", "/users/42/posts/7", "/users/42", "/media/a/b/c.m3u8", "/%E2%82%AC", "/a;v=1/b", "/*",
	}
	prefixes = []string{"/", "/api", "/api/", "/api/v1", "/shop", "/shop/", "/a", "/a/b", "/users", "/users/", "/media", "/sh%6Fp"}
	queries  = []string{"", "", "", "?", "?q=1", "?q=1&q=2", "?q=", "?q", "?r=%20x&q=abc", "?debug=true", "?q=1?x", "?a=b&q=abc&debug"}
	headers  = []string{"x-a", "x-b", "x-num", "x-user", "cookie"}
	values   = []string{"1", "abc", "ABC", "abcdef", "", "a,b", "b", "42", "-7", "user-7", "x y"}
	cookies  = []string{"session=abc", "session=abc; other=1", "other=2", "session="}
	origins  = []string{"https://good.example", "https://evil.example", "null", "http://good.example:8080"}
	expr     = []string{`.*`, `/api/.*`, `/users/\d+`, `/(api|shop)(/.*)?`, `[a-z/]+`, `/users/(\d+)/posts/(\d+)`, `.*\.m3u8`}
	valueRE  = []string{`.*`, `abc.*`, `\d+`, `[a-c]+`, `user-\d`, `(a|b|1)`}
)

type generator struct {
	*rand.Rand
	timed bool // routes have time limits, and endpoints are slow
}

func newGenerator(seed uint64) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(seed, 7))}
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

// chance is true in so many of a hundred cases.
func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g *generator) routeConfig(name string) *routev3.RouteConfiguration {
	rc := &routev3.RouteConfiguration{Name: name}
	free := append([]string(nil), domains...)
	g.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	for i := range 1 + g.IntN(4) {
		n := min(1+g.IntN(2), len(free))
		vh := &routev3.VirtualHost{Name: fmt.Sprintf("vh%d", i), Domains: free[:n]}
		free = free[n:]
		for j := range 1 + g.IntN(6) {
			vh.Routes = append(vh.Routes, g.route(fmt.Sprintf("r%d-%d", i, j)))
		}
		if g.chance(25) {
			vh.RequestHeadersToAdd = g.headerChanges("vh")
			vh.ResponseHeadersToAdd = g.responseChanges("vh")
		}
		if g.chance(10) {
			vh.RequestHeadersToRemove = []string{pick(g, headers)}
		}
		if g.chance(15) {
			vh.IncludeRequestAttemptCount = true
			vh.IncludeAttemptCountInResponse = g.chance(50)
		}
		if g.chance(6) {
			vh.RequireTls = pick(g, []routev3.VirtualHost_TlsRequirementType{routev3.VirtualHost_ALL, routev3.VirtualHost_EXTERNAL_ONLY})
		}
		if g.chance(15) {
			vh.RetryPolicy = g.retryPolicy()
		}
		vh.TypedPerFilterConfig = g.filters(10, 4)
		if g.chance(6) {
			vh.RequestMirrorPolicies = g.mirrors()
		}
		rc.VirtualHosts = append(rc.VirtualHosts, vh)
	}
	if g.chance(25) {
		rc.RequestHeadersToAdd = g.headerChanges("rc")
		rc.ResponseHeadersToAdd = g.responseChanges("rc")
		rc.ResponseHeadersToRemove = []string{"x-up-2"}
	}
	g.catchAll(rc)
	rc.TypedPerFilterConfig = g.filters(5, 3)
	if g.chance(4) {
		rc.RequestMirrorPolicies = g.mirrors()
	}
	rc.MostSpecificHeaderMutationsWins = g.chance(25)
	rc.IgnorePortInHostMatching = g.chance(15)
	return rc
}

func (g *generator) route(name string) *routev3.Route {
	r := &routev3.Route{Name: name, Match: g.match()}
	switch n := g.IntN(100); {
	case n < 12:
		r.Action = &routev3.Route_Redirect{Redirect: g.redirect(r.Match)}
	case n < 20:
		direct := &routev3.DirectResponseAction{Status: uint32(pick(g, []int{200, 204, 301, 403, 404, 500, 503}))}
		if direct.Status != 204 { // Envoy would send the body all the same, into the next response
			direct.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: pick(g, []string{"", "hello", "no"})}}
		}
		r.Action = &routev3.Route_DirectResponse{DirectResponse: direct}
	default:
		r.Action = &routev3.Route_Route{Route: g.action(r.Match)}
	}
	if g.chance(25) {
		r.RequestHeadersToAdd = g.headerChanges("rt")
	}
	if g.chance(15) {
		r.RequestHeadersToRemove = []string{pick(g, headers)}
	}
	if g.chance(20) {
		r.ResponseHeadersToAdd = g.responseChanges("rt")
	}
	if g.chance(10) {
		r.ResponseHeadersToRemove = []string{"x-up-1"}
	}
	r.TypedPerFilterConfig = g.filters(15, 8)
	return r
}

func (g *generator) match() *routev3.RouteMatch {
	m := &routev3.RouteMatch{}
	switch n := g.IntN(100); {
	case n < 45:
		m.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: pick(g, prefixes)}
	case n < 65:
		m.PathSpecifier = &routev3.RouteMatch_Path{Path: pick(g, paths)}
	case n < 77:
		m.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: pick(g, []string{"/api", "/api/v1", "/shop", "/a", "/users"})}
	case n < 90:
		m.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: pick(g, expr)}}
	default:
		m.PathSpecifier = &routev3.RouteMatch_PathMatchPolicy{PathMatchPolicy: &corev3.TypedExtensionConfig{
			Name: "envoy.path.match.uri_template.uri_template_matcher",
			TypedConfig: packed(&templatematchv3.UriTemplateMatchConfig{PathTemplate: pick(g, []string{
				"/users/{id}", "/users/{id}/posts/{post}", "/media/{path=**}", "/{first}/**", "/api/*/{rest}",
			})}),
		}}
	}
	_, regex := m.PathSpecifier.(*routev3.RouteMatch_SafeRegex)
	_, template := m.PathSpecifier.(*routev3.RouteMatch_PathMatchPolicy)
	if !regex && !template && g.chance(20) {
		m.CaseSensitive = wrapperspb.Bool(false)
	}
	for g.chance(25) && len(m.Headers) < 3 {
		m.Headers = append(m.Headers, g.headerMatch())
	}
	if g.chance(12) {
		q := &routev3.QueryParameterMatcher{Name: pick(g, []string{"q", "debug", "r"})}
		if g.chance(60) {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: g.stringMatch()}
		} else {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: g.chance(80)}
		}
		m.QueryParameters = append(m.QueryParameters, q)
	}
	if g.chance(8) {
		m.Cookies = append(m.Cookies, &routev3.CookieMatcher{Name: pick(g, []string{"session", "other"}), StringMatch: g.stringMatch(), InvertMatch: g.chance(30)})
	}
	if g.chance(5) {
		m.Grpc = &routev3.RouteMatch_GrpcRouteMatchOptions{}
	}
	if g.chance(8) {
		m.RuntimeFraction = &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: uint32(pick(g, []int{0, 100}))}}
	}
	return m
}

func (g *generator) stringMatch() *matcherv3.StringMatcher {
	m := &matcherv3.StringMatcher{}
	v := pick(g, values)
	if v == "" {
		v = "a"
	}
	switch g.IntN(5) {
	case 0:
		m.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: v}
	case 1:
		m.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: v[:1]}
	case 2:
		m.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: v[len(v)-1:]}
	case 3:
		m.MatchPattern = &matcherv3.StringMatcher_Contains{Contains: v}
	default:
		m.MatchPattern = &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: pick(g, valueRE)}}
		return m
	}
	m.IgnoreCase = g.chance(25)
	return m
}

func (g *generator) headerMatch() *routev3.HeaderMatcher {
	m := &routev3.HeaderMatcher{Name: pick(g, []string{"x-a", "x-b", "x-num", "X-User", ":method", ":authority", ":path", ":scheme"})}
	switch g.IntN(6) {
	case 0:
		m.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: g.chance(70)}
	case 1:
		m.HeaderMatchSpecifier = &routev3.HeaderMatcher_RangeMatch{RangeMatch: &typev3.Int64Range{Start: -10, End: 42}}
	case 2:
		if m.Name == ":method" {
			m.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Exact{Exact: pick(g, []string{"GET", "POST"})}}}
			break
		}
		fallthrough
	default:
		m.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: g.stringMatch()}
	}
	m.InvertMatch = g.chance(25)
	m.TreatMissingHeaderAsEmpty = g.chance(15)
	return m
}

func (g *generator) redirect(m *routev3.RouteMatch) *routev3.RedirectAction {
	r := &routev3.RedirectAction{StripQuery: g.chance(25)}
	switch g.IntN(4) {
	case 0:
		r.SchemeRewriteSpecifier = &routev3.RedirectAction_HttpsRedirect{HttpsRedirect: true}
	case 1:
		r.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: pick(g, []string{"http", "https"})}
	}
	if g.chance(50) {
		r.HostRedirect = "new.example"
	}
	if g.chance(40) {
		r.PortRedirect = uint32(pick(g, []int{80, 443, 8443}))
	}
	switch g.IntN(4) {
	case 0:
		r.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: pick(g, []string{"/new", "/new?x=1", "/"})}
	case 1:
		if rewritesPrefix(m) {
			r.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: pick(g, []string{"/new", "/new/", "/"})}
		}
	case 2:
		r.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: g.regexRewrite()}
	}
	r.ResponseCode = pick(g, []routev3.RedirectAction_RedirectResponseCode{
		routev3.RedirectAction_MOVED_PERMANENTLY, routev3.RedirectAction_FOUND, routev3.RedirectAction_SEE_OTHER,
		routev3.RedirectAction_TEMPORARY_REDIRECT, routev3.RedirectAction_PERMANENT_REDIRECT,
	})
	return r
}

// rewritesPrefix reports whether Envoy takes a prefix rewrite beside the condition on the path.
func rewritesPrefix(m *routev3.RouteMatch) bool {
	_, template := m.PathSpecifier.(*routev3.RouteMatch_PathMatchPolicy)
	return !template
}

func (g *generator) regexRewrite() *matcherv3.RegexMatchAndSubstitute {
	r := pick(g, [][2]string{
		{`/api/(.*)`, `/v2/\1`}, {`^/users/(\d+)`, `/u/\1`}, {`a`, `b`}, {`/+`, `/`}, {`^/(\w+)/(\w+)`, `/\2/\1`}, {`$`, `/end`}, {`x*`, `-`},
	})
	return &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{Regex: r[0]}, Substitution: r[1]}
}

func (g *generator) action(m *routev3.RouteMatch) *routev3.RouteAction {
	a := &routev3.RouteAction{}
	switch n := g.IntN(100); {
	case n < 55:
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: pick(g, single)}
	case n < 75:
		name, cookie := pick(g, hashed), g.chance(30)
		if cookie {
			name = pick(g, steady) // what becomes of a request does not depend on what is issued
		}
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: name}
		a.HashPolicy = g.hashPolicies(cookie)
		if g.chance(50) {
			a.MetadataMatch = g.wanted()
		}
	case n < 92:
		chosen := g.IntN(2)
		var w routev3.WeightedCluster
		for i := range 2 {
			c := &routev3.WeightedCluster_ClusterWeight{Name: pick(g, single), Weight: wrapperspb.UInt32(0)}
			if g.chance(20) {
				c.Name, a.HashPolicy = pick(g, hashed), g.hashPolicies(false)
				if g.chance(50) {
					c.MetadataMatch = g.wanted()
				}
			}
			c.TypedPerFilterConfig = g.filters(4, 8)
			if i == chosen {
				c.Weight = wrapperspb.UInt32(100)
			}
			if g.chance(40) {
				c.RequestHeadersToAdd = g.headerChanges("wc")
				c.RequestHeadersToRemove = []string{pick(g, headers)}
				c.ResponseHeadersToAdd = g.responseChanges("wc")
			}
			if g.chance(20) {
				c.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: "weighted.example"}
			}
			w.Clusters = append(w.Clusters, c)
		}
		a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &w}
	default:
		a.ClusterSpecifier = &routev3.RouteAction_ClusterHeader{ClusterHeader: "x-cluster"}
		a.ClusterNotFoundResponseCode = pick(g, []routev3.RouteAction_ClusterNotFoundResponseCode{
			routev3.RouteAction_SERVICE_UNAVAILABLE, routev3.RouteAction_NOT_FOUND, routev3.RouteAction_INTERNAL_SERVER_ERROR,
		})
	}
	switch n := g.IntN(100); {
	case n < 15:
		if rewritesPrefix(m) {
			a.PrefixRewrite = pick(g, []string{"/new", "/new/", "/"})
		}
	case n < 25:
		a.RegexRewrite = g.regexRewrite()
	case n < 45:
		if t := m.GetPathMatchPolicy(); t != nil {
			var config templatematchv3.UriTemplateMatchConfig
			if t.GetTypedConfig().UnmarshalTo(&config) == nil {
				a.PathRewritePolicy = templateRewrite(config.GetPathTemplate())
			}
		}
	}
	switch n := g.IntN(100); {
	case n < 10:
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: "rewritten.example"}
	case n < 15:
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteHeader{HostRewriteHeader: "x-user"}
	case n < 20:
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewritePathRegex{HostRewritePathRegex: &matcherv3.RegexMatchAndSubstitute{
			Pattern: &matcherv3.RegexMatcher{Regex: `^/(\w+).*$`}, Substitution: `\1.example`}}
	}
	g.formats(a)
	a.AppendXForwardedHost = g.chance(20)
	if g.chance(12) {
		a.RequestMirrorPolicies = g.mirrors()
	}
	if g.timed && g.chance(60) {
		a.Timeout = durationpb.New(pick(g, []time.Duration{0, shortTime, 4 * shortTime}))
	}
	if g.chance(20) || a.HashPolicy != nil && g.chance(40) {
		a.RetryPolicy = g.retryPolicy()
	}
	return a
}

func templateRewrite(template string) *corev3.TypedExtensionConfig {
	rewrite := map[string]string{
		"/users/{id}": "/u/{id}", "/users/{id}/posts/{post}": "/p/{post}/of/{id}", "/media/{path=**}": "/files/{path}",
		"/{first}/**": "/only/{first}", "/api/*/{rest}": "/{rest}/api",
	}[template]
	return &corev3.TypedExtensionConfig{
		Name:        "envoy.path.rewrite.uri_template.uri_template_rewriter",
		TypedConfig: packed(&templaterewritev3.UriTemplateRewriteConfig{PathTemplateRewrite: rewrite}),
	}
}

// hashPolicies are several; with cookie, one of them issues a cookie.
func (g *generator) hashPolicies(cookie bool) (out []*routev3.RouteAction_HashPolicy) {
	for range 1 + g.IntN(2) {
		p := &routev3.RouteAction_HashPolicy{Terminal: g.chance(30)}
		switch n := g.IntN(3); {
		case cookie:
			p.PolicySpecifier, cookie = g.hashCookie(), false // one is issued at most
		case n == 0:
			h := &routev3.RouteAction_HashPolicy_Header{HeaderName: "x-user"}
			if g.chance(30) {
				h.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{Regex: `user-(\d+)`}, Substitution: `\1`}
			}
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: h}
		case n == 1:
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: &routev3.RouteAction_HashPolicy_Cookie{Name: "session"}}
		default:
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: "q"}}
		}
		out = append(out, p)
	}
	// The last one always has a hash: without any, the choice is random.
	return append(out, &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
		Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: "x-id-class"}}})
}

func (g *generator) retryPolicy() *routev3.RetryPolicy {
	p := &routev3.RetryPolicy{
		RetryOn:              pick(g, []string{"5xx", "gateway-error", "retriable-4xx", "reset", "connect-failure", "retriable-status-codes", "5xx,retriable-headers", "unavailable,cancelled", "5xx,retriable-4xx"}),
		NumRetries:           wrapperspb.UInt32(uint32(g.IntN(4))),
		RetriableStatusCodes: []uint32{418, 503},
		RetryBackOff:         &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(time.Millisecond), MaxInterval: durationpb.New(2 * time.Millisecond)},
		RetriableHeaders:     []*routev3.HeaderMatcher{{Name: "x-retry-me", HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}},
	}
	g.moreRetry(p)
	return p
}

func (g *generator) headerChanges(level string) (out []*corev3.HeaderValueOption) {
	for range g.IntN(3) {
		out = append(out, &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{
				Key:   pick(g, []string{"x-a", "x-b", "x-new", "x-" + level, "X-User"}),
				Value: pick(g, []string{level, level + "-%REQ(x-user)%", "%REQ(:path)%", "%REQ(:AUTHORITY)%", "%REQ(x-none?x-a)%", "100%%", "%REQ(x-num):3%", "%REQ(:method)%", "", "%ROUTE_NAME%", "%UPSTREAM_CLUSTER%", "a%REQ(x-user)%b"}),
			},
			AppendAction: pick(g, []corev3.HeaderValueOption_HeaderAppendAction{
				corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_ADD_IF_ABSENT,
				corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS,
			}),
			KeepEmptyValue: g.chance(20),
		})
	}
	return out
}

func (g *generator) responseChanges(level string) (out []*corev3.HeaderValueOption) {
	for range g.IntN(3) {
		out = append(out, &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{
				Key:   pick(g, []string{"x-up-1", "x-up-2", "x-new", "x-" + level, "x-many", "set-cookie"}),
				Value: pick(g, []string{level, "%RESP(x-up-1)%", "%REQ(x-user)%", "%REQ(:path)%", ""}),
			},
			AppendAction: pick(g, []corev3.HeaderValueOption_HeaderAppendAction{
				corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_ADD_IF_ABSENT,
				corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS,
			}),
			KeepEmptyValue: g.chance(20),
		})
	}
	return out
}

func (g *generator) cors() *corsv3.CorsPolicy {
	c := &corsv3.CorsPolicy{
		AllowOriginStringMatch: []*matcherv3.StringMatcher{{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: "good.example"}}},
		AllowMethods:           pick(g, []string{"", "GET,POST"}),
		AllowHeaders:           pick(g, []string{"", "x-a, x-b"}),
		ExposeHeaders:          pick(g, []string{"", "x-up-1"}),
		MaxAge:                 pick(g, []string{"", "600"}),
	}
	if g.chance(50) {
		c.AllowCredentials = wrapperspb.Bool(g.chance(70))
	}
	if g.chance(50) {
		c.ForwardNotMatchingPreflights = wrapperspb.Bool(g.chance(50))
	}
	return c
}

func packed(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

// request is one generated request.
type request struct {
	id        string
	method    string
	authority string
	target    string // path and query as sent
	header    map[string][]string
	body      string
	again     bool // with the cookie that was issued
	issues    bool // routes may issue a cookie
}

func (g *generator) request(id string) *request {
	r := &request{
		id: id, method: pick(g, []string{"GET", "GET", "GET", "POST", "OPTIONS", "HEAD", "DELETE"}),
		authority: pick(g, authorities), target: pick(g, paths) + pick(g, queries), header: map[string][]string{},
	}
	if g.chance(15) {
		r.target = pick(g, prefixes) + pick(g, paths) + pick(g, queries)
	}
	for _, name := range headers {
		switch {
		case name == "cookie" && g.chance(30):
			r.header[name] = []string{pick(g, cookies)}
		case name != "cookie" && g.chance(45):
			r.header[name] = []string{pick(g, values)}
			if g.chance(15) {
				r.header[name] = append(r.header[name], pick(g, values))
			}
		}
	}
	if g.chance(20) {
		r.header["origin"] = []string{pick(g, origins)}
		if g.chance(60) {
			r.header["access-control-request-method"] = []string{"GET"}
		}
	}
	if g.chance(25) {
		r.header["x-cluster"] = []string{pick(g, append([]string{"nowhere"}, single...))}
	}
	g.faultHeaders(r)
	if g.chance(8) {
		r.header["x-envoy-fault-abort-request"] = []string{pick(g, []string{"429", "503", "abc", "700"})}
	}
	if g.chance(8) {
		r.header["content-type"] = []string{pick(g, []string{"application/grpc", "application/grpc+proto", "application/grpc-web", "text/plain"})}
	}
	if g.chance(6) {
		r.header["x-envoy-max-retries"] = []string{pick(g, []string{"0", "2", "x"})}
		r.header["x-envoy-retry-on"] = []string{pick(g, []string{"5xx", "gateway-error", "retriable-4xx"})}
	}
	if g.chance(35) {
		var script []string
		for range 1 + g.IntN(4) {
			if g.timed && g.chance(5) {
				script = append(script, "slow")
			}
			script = append(script, pick(g, []string{"200", "409", "418", "500", "502", "503", "reset", "retry-me"}))
		}
		r.header["x-script"] = []string{strings.Join(script, ",")}
	}
	r.header["x-id-class"] = []string{fmt.Sprint(g.IntN(20))}
	if r.method == "POST" {
		r.body = "body of " + id
		if g.chance(10) {
			r.body = strings.Repeat(r.body, 1+g.IntN(1500))
		}
	}
	return r
}
