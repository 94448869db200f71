package compile

import (
	"errors"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// fuzz runs a decoder on arbitrary bytes of its message. A result is usable
// or there is none, an error is an *Error, and both are the same every time.
func fuzz[R any](f *testing.F, m proto.Message, decode func(*anypb.Any) (string, *R, error), use func(*R), seeds ...*anypb.Any) {
	for _, seed := range seeds {
		f.Add(seed.GetValue())
	}
	url := "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
	f.Fuzz(func(t *testing.T, value []byte) {
		resource := &anypb.Any{TypeUrl: url, Value: value}
		name, r, err := decode(resource)
		again, _, errAgain := decode(resource)
		if name != again || (err == nil) != (errAgain == nil) || err != nil && err.Error() != errAgain.Error() {
			t.Fatalf("first %q, %v, then %q, %v", name, err, again, errAgain)
		}
		var e *Error
		switch {
		case err == nil && (r == nil || name == ""):
			t.Fatalf("%q, %v and no error", name, r)
		case err != nil && (r != nil || !errors.As(err, &e) || e.Why == ""):
			t.Fatalf("%v with %T: %v", r, err, err)
		case err == nil:
			use(r)
		}
	})
}

// call makes use of all that routes say, behind the listener l.
func call(l *snapshot.Listener, rc *snapshot.RouteConfig) {
	r := &routing.Request{Method: "OPTIONS", Scheme: "http", Authority: "reviews:9080", Path: "/a/b", RawQuery: "q=1", Claims: map[string]any{"sub": "x"},
		Header: map[string][]string{"X-A": {"1"}, "Origin": {"http://a"}, "Access-Control-Request-Method": {"GET"}, "Cookie": {"c=1"}}}
	for i := range rc.VirtualHosts {
		host := l.Bind(&rc.VirtualHosts[i])
		for j := range host.Routes {
			use(&host.Routes[j], r)
		}
	}
	rc.Lookup(r.Authority)
	decide(rc, l, r, 7)
}

func use(route *snapshot.Route, r *routing.Request) {
	route.Match.Matches(r, 1)
	if route.Timeout < 0 || route.MaxStreamDuration < 0 || route.IdleTimeout < 0 {
		panic("a negative limit")
	}
	d := decided{route: route, leg: &snapshot.Leg{}}
	d.incoming(r, map[string][]string{"Server": {"x"}})
	at := route.Clusters.Choose(1)
	if f := route.FaultOf(at); f != nil {
		if f.Validate() != nil {
			panic("a fault without a meaning")
		}
		f.Decide(r, 1, 1)
	}
	if c := route.CORSOf(at); c != nil {
		c.Preflight(r)
		c.Apply(r, map[string][]string{}, routing.CanonicalHeaders)
	}
	switch {
	case route.Redirect != nil:
		if strings.ContainsAny(route.Redirect.Location(&route.Match, r), "\r\n\x00") {
			panic("a place that can not be in a header")
		}
		return
	case route.Direct != nil:
		if route.Direct.Status < 200 {
			panic("an answer without a status")
		}
		return
	case at < 0 && route.ClusterHeader.String() == "":
		panic("a route that goes nowhere")
	case route.Legs != nil && len(route.Legs) != len(route.Clusters.Clusters):
		panic("destinations that are told apart and are not as many")
	}
	for i := range route.Clusters.Clusters {
		if route.Clusters.Clusters[i].Name == "" && (route.Legs == nil || route.Legs[i].ClusterHeader.String() == "") {
			panic("a destination without a name")
		}
		if route.Legs != nil {
			d.leg = &route.Legs[i]
		}
		d.outgoing(r)
	}
	for i := range route.Mirrors {
		m := &route.Mirrors[i]
		if m.Cluster == "" && m.ClusterHeader.String() == "" {
			panic("a copy that goes nowhere")
		}
		m.Changes.Apply(map[string][]string{"X-A": {"1"}}, routing.CanonicalHeaders, &routing.Values{Request: r})
	}
	routing.HashOf(route.Hash, r, routing.HashOrigin{Address: "10.0.0.1:5"})
	if route.Hedge != nil && route.Hedge.Validate() != nil || route.Retry != nil && route.Retry.Validate() != nil {
		panic("attempts without a meaning")
	}
	if route.Retry != nil {
		for retry := 1; retry < 70; retry += 23 {
			if route.Retry.Backoff(retry, 1<<63) < 0 {
				panic("a negative pause")
			}
		}
	}
}

func balance(eps *lb.Endpoints, p lb.Policy) {
	for i := range eps.All {
		if eps.All[i].Weight == 0 || eps.All[i].Address == "" || eps.All[i].Priority > 128 {
			panic("an endpoint without an address or a weight")
		}
	}
	// What is large is tested where it is built.
	p.Ring.MinSize, p.Ring.MaxSize, p.Table.Size = 1, 64, 61
	lb.NewPicker(p, eps).Pick(&lb.Query{Seq: 1, Draw: 1, Now: time.Unix(1_700_000_000, 0)}, idle{})
}

// checkBalancing panics on values that no picker can work with.
func checkBalancing(c *snapshot.Cluster) {
	p := &c.LB
	if p.Ring.Validate() != nil || p.Table.Validate() != nil || p.PanicThreshold < 0 || p.PanicThreshold > 100 {
		panic("invalid balancing")
	}
	switch {
	case p.Kind == lb.LeastRequest && p.Choices < 2, p.Kind == lb.RingHash && p.Ring.MinSize == 0, p.Kind == lb.Maglev && p.Table.Size == 0,
		p.Kind == lb.ClientWeighted && p.Client.Update < minUpdate, p.Kind == lb.PeakEWMA && p.Decay <= 0,
		p.SlowStart != nil && !(p.SlowStart.Window > 0 && p.SlowStart.Aggression > 0):
		panic("a policy without what it needs")
	}
	for _, h := range c.HealthChecks {
		if h.Timeout <= 0 || h.Interval <= 0 || h.HealthyThreshold == 0 || h.UnhealthyThreshold == 0 || h.Kind == resilience.HealthHTTP && h.Host == "" {
			panic("a health check that can not be made")
		}
	}
	switch c.Discovery {
	case snapshot.StrictDNS, snapshot.LogicalDNS:
		if c.DNS == nil || c.DNS.RefreshRate <= 0 || c.DNS.Family == "" || c.Endpoints == nil || c.Discovery == snapshot.LogicalDNS && len(c.DNS.Names) != 1 {
			panic("names that can not be looked up")
		}
	case snapshot.Aggregate:
		if len(c.Underlying) == 0 || c.EndpointsName != "" {
			panic("an aggregate of nothing")
		}
	}
}

type idle struct{}

func (idle) Active(int32) int64            { return 0 }
func (idle) Cost(int32, time.Time) float64 { return 0 }
func (idle) Joined(int32) time.Time        { return time.Time{} }
func (idle) Total() int64                  { return 0 }

func FuzzRouteConfig(f *testing.F) {
	_, l, err := Listener(listenerOf(f, apiListenerOf(rds+`, "stream_idle_timeout": "1s", "http_filters": [`+faulty(`"abort": {"http_status": 500}`)+`, {"name": "cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}, `+
		adaptive(gradientOf(`"interval": "1s"`))+`, `+router+`]`)))
	if err != nil {
		f.Fatal(err)
	}
	fuzz(f, &routev3.RouteConfiguration{}, RouteConfig, func(rc *snapshot.RouteConfig) { call(l, rc) },
		routesOf(f, inOneHost(`"most_specific_header_mutations_wins": true, "ignore_port_in_host_matching": true, "response_headers_to_add": `+added("a", "%REQ(x-a)%"), `"require_tls": "EXTERNAL_ONLY", "cors": {"allow_origin_string_match": [{"prefix": "http"}]}`,
			withRoute(`"typed_per_filter_config": {"fault": `+abortWith("x")+`, "cors": {`+corsType+`, "max_age": "1"}}, "request_headers_to_remove": ["a"]`)+`, `+
				toCluster(`"regex_rewrite": {"pattern": {"regex": "a(.)"}, "substitution": "\\1"}, "host_rewrite": "%REQ(x-a)%", "hash_policy": [{"cookie": {"name": "c", "ttl": "1s"}}, {"header": {"header_name": "x-a"}}], "request_mirror_policies": [{"cluster": "m"}], "hedge_policy": {"initial_requests": 2}, "max_grpc_timeout": "1s", "grpc_timeout_offset": "1s"`)+`, `+
				weights(`{"cluster_header": "x-a", "weight": 1, "response_headers_to_add": `+added("b", "c")+`}, {"name": "b", "weight": 2, "metadata_match": {"filter_metadata": {"envoy.lb": {"v": "1"}}}}`)+`, `+
				claimed(ofToken+groups+`, "value": {"present_match": true}`)+`, `+
				`{"match": {"path_match_policy": `+templated("/{a}/**")+`}, "route": {"cluster_header": "h", "path_rewrite_policy": `+templateRewriteOf("/{a}")+`}}, {"match": {"prefix": "/"}, "redirect": {"prefix_rewrite": "/x", "https_redirect": true}}, {"match": {"path": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "x"}}}`)),
		routesOf(f, `{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["a", "*.b", "*"], "retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "1s"}}, "routes": [
			{"match": {"prefix": "/", "headers": [{"name": "x", "range_match": {"end": 3}}], "query_parameters": [{"name": "q"}]}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]}, "timeout": "1s"}},
			{"match": {"safe_regex": {"regex": "/a.*"}, "runtime_fraction": {"default_value": {"numerator": 5}}}, "route": {"cluster": "c", "max_stream_duration": {"max_stream_duration": "0s"}}}]}]}`),
		routesOf(f, `{"name": "r", "typed_per_filter_config": {"x": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "is_optional": true}}}`),
		&anypb.Any{})
}

// checkSecurity panics on TLS that would take any server.
func checkSecurity(c *snapshot.ClientTLS) {
	if c == nil {
		return
	}
	if (c.Trust == snapshot.TrustSource{}) || c.Verify == snapshot.VerifySANs && len(c.SANs) == 0 {
		panic("TLS that verifies nothing")
	}
}

func FuzzCluster(f *testing.F) {
	fuzz(f, &clusterv3.Cluster{}, Cluster, func(c *snapshot.Cluster) {
		if c.EndpointsName == "" && c.Discovery == snapshot.FromControlPlane {
			balance(c.Endpoints, c.LB)
		}
		checkBalancing(c)
		for i := range c.Sockets {
			checkSecurity(c.Sockets[i].TLS)
		}
		checkSecurity(c.TLS)
		checkSecurity(c.Security(map[string]string{"tlsMode": "istio"}))
		if c.Outlier != nil && c.Outlier.Validate() != nil || c.RetryBudget != nil && c.RetryBudget.Validate() != nil {
			panic("invalid values")
		}
	},
		clusterOf(f, `{"name": "outbound|80|v1|a.b", `+eds+`, "lb_policy": "LEAST_REQUEST", "outlier_detection": {"enforcing_success_rate": 0}, "circuit_breakers": {"thresholds": [{"retry_budget": {}}]},
			"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}}`),
		clusterOf(f, `{"name": "s", "type": "STATIC", "load_assignment": {"endpoints": [{"lb_endpoints": [`+at("10.0.0.1", 80, "")+`]}]},
			"load_balancing_policy": {"policies": [{"typed_extension_config": {"name": "b", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random"}}}]}}`),
		clusterOf(f, `{"name": "d", "type": "LOGICAL_DNS", "dns_failure_refresh_rate": {"base_interval": "1s"}, "dns_lookup_family": "V4_PREFERRED", "load_assignment": {"policy": {"overprovisioning_factor": 9}, "endpoints": [{"priority": 1, "lb_endpoints": [`+at("a.b", 80, "")+`]}]},
			"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 7}, "health_checks": [`+httpCheck(`"expected_statuses": [{"start": 200, "end": 300}]`)+`],
			"metadata": {"filter_metadata": {"sinew": {"failure_accrual": {"mode": "consecutive", "max_failures": 3, "window": "30s"}}}}}`),
		clusterOf(f, `{"name": "a", "cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters": ["x", "y"]}}}`),
		clusterOf(f, `{"name": "n", "cluster_type": {"name": "envoy.clusters.dns", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster", "dns_jitter": "1s"}}, "load_assignment": {}, "lb_subset_config": {"subset_selectors": [{"keys": ["v"]}]}, "metadata": {"filter_metadata": {"sinew": {"peak_ewma": {"decay": "5s"}}}}}`),
		clusterOf(f, `{"name": "t", `+eds+`, "transport_socket_matches": [{"name": "tlsMode-istio", "match": {"tlsMode": "istio"}, "transport_socket": `+clientSocket(sdsCert+`, `+sdsTrust, `"sni": "x"`)+`},
			{"name": "tlsMode-disabled", "transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}}]}`),
		clusterOf(f, `{"name": "t", `+eds+`, "transport_socket": `+clientSocket(`"tls_certificates": [{"certificate_chain": {"filename": "c"}, "private_key": {"filename": "k"}}], `+trusting(`"trusted_ca": {"filename": "r"}, "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"suffix": "a"}}]`), "")+`}`),
		&anypb.Any{})
}

func FuzzEndpoints(f *testing.F) {
	fuzz(f, &endpointv3.ClusterLoadAssignment{}, Endpoints, func(eps *lb.Endpoints) {
		for _, p := range []lb.Policy{{Kind: lb.RoundRobin}, {Kind: lb.Random}, {Kind: lb.LeastRequest, Choices: 2}, {Kind: lb.RingHash, LocalityWeighted: true}} {
			p.PanicThreshold = 50
			balance(eps, p)
		}
	},
		endpointsOf(f, `{"cluster_name": "e", "policy": {"drop_overloads": [{"category": "c", "drop_percentage": {"numerator": 1}}]}, "endpoints": [{"locality": {"zone": "z"}, "lb_endpoints": [`+
			at("10.0.0.1", 80, `, "load_balancing_weight": 4294967290, "metadata": {"filter_metadata": {"envoy.lb": {"a": "b"}}}`)+`, `+at("n", 81, `, "health_status": "DEGRADED"`)+`]}]}`),
		&anypb.Any{})
}

func FuzzListener(f *testing.F) {
	fuzz(f, &listenerv3.Listener{}, Listener, func(l *snapshot.Listener) {
		if (l.RouteName == "") == (l.Inline == nil) {
			panic("routes from nowhere or from two places")
		}
		if l.Inline != nil {
			call(l, l.Inline)
		}
	},
		listenerOf(f, apiListenerOf(rds+`, "http_filters": [{"name": "s", "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "x/stats.PluginConfig"}}, `+router+`]`)),
		listenerOf(f, apiListenerOf(rds+`, "stream_idle_timeout": "1s", "http_filters": [`+faulty(`"delay": {"fixed_delay": "1s"}, "upstream_cluster": "c"`)+`, {"name": "cors", "disabled": true, "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}, `+
			adaptive(gradientOf(`"fixed_value": "1s"`))+`, `+router+`]`)),
		listenerOf(f, apiListenerOf(`"http_filters": [`+router+`], "route_config": {"virtual_hosts": [{"domains": ["*"], "routes": [`+toCluster("")+`]}]}`)),
		&anypb.Any{})
}

// attacker is a request that rules have to do with.
func attacker() *identity.AccessRequest {
	r := request("/admin/..;/x", web)
	r.RawQuery, r.DecodedPath = "access_token=a.b.c", "/admin"
	r.Header["Authorization"] = []string{"Bearer a.b.c"}
	return r
}

// admit makes use of all that a filter chain says.
func admit(c *snapshot.FilterChain) {
	r := attacker()
	c.Paths.Apply(r.Path)
	if c.External != nil && (c.External.Host == "" || c.External.Timeout <= 0 || c.External.StatusOnError < 400) {
		panic("an external authorizer that can not be asked")
	}
	if c.Authorizer != nil {
		c.Authorizer.Decide(r)
		if provider, _, ask := c.Authorizer.Custom(r); ask && (c.External == nil || provider != c.External.Provider) {
			panic("rules ask an external authorizer that is not there")
		}
	} else if c.External != nil {
		panic("an external authorizer that no rule asks")
	}
	if c.Tokens != nil {
		for _, p := range c.Tokens.Authenticator.Providers() {
			if _, remote := c.Tokens.Remote[p.Name]; remote == (p.Keys != nil) {
				panic("a provider without keys, or with two sources of them")
			}
		}
		c.Tokens.Authenticator.Authenticate(r, time.Unix(1_700_000_000, 0), nil)
	}
	var uses resilience.LimitUses
	limits := c.RateLimits
	for i := range c.Routes {
		if c.Routes[i].Match.Matches(&r.Request, 0) {
			limits = append(limits, c.Routes[i].RateLimits...)
		}
	}
	for _, l := range limits {
		l.Select(&resilience.LimitRequest{Request: &r.Request, RemoteIP: r.RemoteIP, Principal: r.Principal}, &uses)
	}
}

func FuzzInbound(f *testing.F) {
	secured := `"transport_socket": ` + serverSocket(ownCert+`, `+ownTrust, `"require_client_certificate": true`)
	fuzz(f, &listenerv3.Listener{}, Inbound, func(in *snapshot.Inbound) {
		if in.Address == "" {
			panic("no address")
		}
		switch {
		case in.TLS == nil && in.Plain == nil:
			panic("nobody is let in and there is no error")
		case in.TLS != nil && (in.TLS.Socket == nil || in.TLS.Socket.Trust == snapshot.TrustSource{} || in.TLS.Socket.Certificate == snapshot.CertificateSource{}):
			panic("TLS that proves nothing")
		case in.Plain != nil && in.Plain.Socket != nil:
			panic("plain text with TLS")
		}
		for _, c := range []*snapshot.FilterChain{in.TLS, in.Plain} {
			if c != nil {
				admit(c)
			}
		}
	},
		listenerOf(f, inboundOf(`"filter_chains": [`+chain(everyInbound, "")+`]`)),
		listenerOf(f, inboundOf(`"default_filter_chain": `+chain(everyInbound, `"transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}`))),
		listenerOf(f, inboundOf(`"filter_chains": [`+chain(everyInbound, `"filter_chain_match": {"transport_protocol": "tls"}, `+secured)+`, `+chain(`"normalize_path": true, `+everyInbound, `"filter_chain_match": {"transport_protocol": "raw_buffer"}`)+`]`)),
		listenerOf(f, guarded(custom(`{"url_path": {"path": {"prefix": "/admin"}}}`), extAuthz(grpcService+`, `+whereCustom), jwtFilter(remote+`, "payload_in_metadata": "payload", "from_params": ["access_token"]`, needsP),
			rbacFilter("audit", `"rules": `+policies("LOG", rule("l", anyone, anyone))),
			rbacFilter("deny", `"rules": `+policies("DENY", rule("d", `{"url_path": {"path": {"prefix": "/admin"}}}`, `{"not_id": {"authenticated": {"principal_name": {"safe_regex": {"regex": ".*/ns/jobs/.*"}}}}}`))),
			rbacFilter("allow", `"rules": `+policies("ALLOW", rule("a", `{"destination_port": 9080}`, `{"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, {"key": "iss"}], "value": {"string_match": {"exact": "x"}}}}`))),
			limitFilterOf("limit", perSecond("5"), ""))),
		listenerOf(f, guarded(extAuthz(httpService), jwtFilter(localKeysOf, needsP), rbacFilter("dry", `"shadow_rules": `+policies("ALLOW", "")))),
		listenerOf(f, routed(limitFilterOf("l", perSecond("1"), ""), routeOf(`{"prefix": "/a"}`, `"l": {`+limitType+`, `+perSecond("2")+`}`)+`, `+routeOf(`{"prefix": "/"}`, ""), "", "")),
		&anypb.Any{})
}
