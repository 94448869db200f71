package translate

import (
	"fmt"
	"math"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// everything is a policy that uses all that can be translated.
func everythingSet(t testing.TB) *policy.Set {
	set := bookinfo(t, virtualService(t, "default", "reviews", `
hosts: [reviews]
http:
- name: conditions
  match:
  - uri: {exact: /a}
    ignoreUriCase: true
    method: {exact: GET}
    scheme: {exact: http}
    authority: {regex: "rev.*"}
    headers: {x: {}, y: {prefix: p}, z: {regex: "a|b"}}
    withoutHeaders: {q: {exact: v}, r: {}}
    queryParams: {k: {exact: v}, l: {}, m: {regex: "x+"}, n: {prefix: p}}
  - uri: {regex: "/r.*"}
  timeout: 3s
  retries: {attempts: 3, perTryTimeout: 1s, retryOn: "5xx,gateway-error,reset,connect-failure,refused-stream,retriable-4xx,503", backoff: 0.1s}
  route: [{destination: {host: reviews, subset: v1}, weight: 1}, {destination: {host: reviews, subset: v2}, weight: 2}]
- match: [{uri: {prefix: /redirect}}]
  redirect: {uri: /x, authority: a.b, port: 8080, scheme: https, redirectCode: 308}
- match: [{uri: {prefix: /here}}]
  directResponse: {status: 200, body: {bytes: AAE=}}
  headers: {response: {set: {x: "%PROTOCOL%"}}}
- match: [{uri: {prefix: /all}, headers: {"@request.auth.claims.a": {exact: b}}}]
  rewrite: {uri: /v1, authority: other}
  headers: {request: {set: {a: "%REQ(b)%"}, add: {c: d}, remove: [e]}}
  fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}, abort: {grpcStatus: ABORTED, percentage: {value: 2}}}
  corsPolicy: {allowOrigins: [{exact: a}, {prefix: b}, {regex: c}], allowMethods: [GET], maxAge: 1s, allowCredentials: true}
  mirrors: [{destination: {host: ratings, port: {number: 9080}}, percentage: {value: 3}}]
  retries: {attempts: 1, retryRemoteLocalities: true}
  route: [{destination: {host: many}, weight: 1, headers: {request: {set: {host: h}}}}, {destination: {host: maglev}, weight: 2}, {destination: {host: gone}, weight: 2}]
- match: [{uri: {prefix: /regex}}]
  rewrite: {uriRegexRewrite: {match: "(a)", rewrite: '\\1'}}
  route: [{destination: {host: many}}]
- retries: {attempts: 0}
  route: [{destination: {host: ratings, port: {number: 9090}}}]
`))
	many := service("default", "many", http(80))
	many.Accrual = &policy.FailureAccrual{SuccessRate: 0.5, Window: time.Second, MinRequests: 1, MinPenalty: time.Second, MaxPenalty: time.Minute, Jitter: 1}
	many.Annotations = map[string]string{policy.BalancerAnnotation: policy.PeakEWMA}
	set.Services = append(set.Services, many, service("default", "maglev", http(80)))
	set.Workloads = append(set.Workloads, workload("default", "many", "v1", "10.1.0.1"), workload("default", "many", "v1", "10.1.0.2"))
	set.Workloads[len(set.Workloads)-1].Locality = "r2/z"
	set.DestinationRules = append(set.DestinationRules, destinationRule(t, "default", "many", `
host: many
trafficPolicy:
  loadBalancer:
    warmup: {duration: 10s, aggression: 2}
    localityLbSetting: {failoverPriority: [rack, "topology.kubernetes.io/region"]}
  connectionPool:
    tcp: {tcpKeepalive: {probes: 1, time: 2s, interval: 3s}}
    http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 5, http2KeepAlive: {interval: 1s, timeout: 1s}}
  outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2}
`), destinationRule(t, "default", "maglev", `
host: maglev
trafficPolicy:
  loadBalancer:
    consistentHash: {httpCookie: {name: c, ttl: 1s, attributes: [{name: Secure}]}, maglev: {tableSize: 101}}
    localityLbSetting: {distribute: [{from: "*", to: {"r/*": 100}}]}
  connectionPool: {http: {useClientProtocol: true}}
`))
	set.DestinationRules = append(set.DestinationRules, destinationRule(t, "default", "ratings", `
host: ratings
trafficPolicy:
  loadBalancer: {simple: RANDOM}
  connectionPool:
    tcp: {maxConnections: 1, connectTimeout: 2s, idleTimeout: 60s}
    http: {http1MaxPendingRequests: 2, http2MaxRequests: 3, maxRetries: 4, maxRequestsPerConnection: 5, idleTimeout: 30s}
  retryBudget: {percent: 10, minRetryConcurrency: 2}
  outlierDetection: {consecutive5xxErrors: 2, consecutiveGatewayErrors: 2, interval: 1s, baseEjectionTime: 3s, maxEjectionPercent: 50, minHealthPercent: 30}
`))
	set.Services = append(set.Services, &policy.Service{Meta: policy.Meta{Kind: "ServiceEntry", Namespace: "default", Name: "x"}, Host: "api.example.com",
		Ports: []policy.Port{http(80)}, Resolution: networking.ServiceEntry_DNS})
	set.Workloads[0].Locality, set.Workloads[0].Weight = "r/z", 7
	return set
}

var everyName = []struct{ typeURL, name string }{
	{ListenerType, "reviews:9080"}, {ListenerType, "ratings"}, {ListenerType, "api.example.com:80"}, {ListenerType, InboundPrefix + "127.0.0.1:80"}, {ListenerType, InboundPrefix + "[::]:80"},
	{RouteType, "outbound|9080||" + reviews}, {RouteType, "outbound|80||ratings.default.svc.cluster.local"}, {RouteType, "outbound|80||api.example.com"},
	{ClusterType, "outbound|9080||" + reviews}, {ClusterType, "outbound|9080|v1|" + reviews}, {ClusterType, "outbound|80||ratings.default.svc.cluster.local"},
	{ClusterType, "outbound|9090||ratings.default.svc.cluster.local"}, {ClusterType, "outbound|80||api.example.com"},
	{ClusterType, "outbound|80||many.default.svc.cluster.local"}, {ClusterType, "outbound|80||maglev.default.svc.cluster.local"}, {EndpointType, "outbound|80||many.default.svc.cluster.local|labels"},
	{EndpointType, "outbound|80||maglev.default.svc.cluster.local"}, {EndpointType, "outbound|80||many.default.svc.cluster.local"},
	{EndpointType, "outbound|9080||" + reviews}, {EndpointType, "outbound|9080|v1|" + reviews}, {EndpointType, "outbound|80||ratings.default.svc.cluster.local"}, {EndpointType, "outbound|80||api.example.com"},
}

// TestAcceptedByOurClient compiles what our client gets.
func TestAcceptedByOurClient(t *testing.T) {
	v := NewView(everythingSet(t))
	for _, n := range everyName {
		r, err := v.Resource(n.typeURL, n.name, client(Sinew))
		if err != nil || r == nil {
			t.Fatalf("%s: %v, %v", n.name, r, err)
		}
		name, err := compiled(n.typeURL, r.Body)
		if err != nil || name != n.name {
			t.Errorf("%s: %q, %v", n.name, name, err)
		}
		if len(r.Notes) > 0 {
			t.Errorf("%s: our own client is said not to do %v", n.name, r.Notes)
		}
	}
}

// TestAccessAcceptedByOurClient compiles listeners with access policy of every kind,
// and holds each part against the constraints that the protos carry.
func TestAccessAcceptedByOurClient(t *testing.T) {
	v := NewView(accessSet(t))
	_, _, r := inboundOf(t, v, webListener, client(Sinew))
	_, in, err := compile.Inbound(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if in.TLS == nil || in.Plain == nil || in.TLS.Socket == nil || in.StrictDryRun != "PeerAuthentication default/dry-strict" {
		t.Errorf("TLS %v, plaintext %v, dry run of %q", in.TLS, in.Plain, in.StrictDryRun)
	}
	for _, chain := range []*snapshot.FilterChain{in.TLS, in.Plain} {
		if chain.External == nil || chain.Tokens == nil || chain.Authorizer == nil || len(chain.RateLimits) != 1 || !chain.Paths.MergeSlashes {
			t.Errorf("%+v", chain)
		}
	}
	for _, agent := range []Agent{Sinew, Other} {
		l, hcm, _ := inboundOf(t, v, webListener, client(agent))
		if err := l.ValidateAll(); err != nil {
			t.Errorf("%v: %v", agent, err)
		}
		if err := hcm.ValidateAll(); err != nil {
			t.Errorf("%v: %v", agent, err)
		}
		for _, f := range hcm.GetHttpFilters() {
			m, err := f.GetTypedConfig().UnmarshalNew()
			if err != nil {
				t.Fatal(err)
			}
			if err := m.(interface{ ValidateAll() error }).ValidateAll(); err != nil {
				t.Errorf("%v: %s: %v", agent, f.GetName(), err)
			}
		}
	}
}

// TestAccessIsDeterministic translates the same policy again and again: versions are hashes.
func TestAccessIsDeterministic(t *testing.T) {
	_, _, first := inboundOf(t, NewView(accessSet(t)), webListener, client(Sinew))
	for range 20 {
		if _, _, again := inboundOf(t, NewView(accessSet(t)), webListener, client(Sinew)); again.Version != first.Version {
			t.Fatal("the same policy has two versions")
		}
	}
}

func compiled(typeURL string, body *anypb.Any) (name string, err error) {
	switch typeURL {
	case ListenerType:
		l := &listenerv3.Listener{}
		if err := body.UnmarshalTo(l); err != nil {
			return "", err
		}
		if l.GetApiListener() == nil {
			name, _, err = compile.Inbound(body)
		} else {
			name, _, err = compile.Listener(body)
		}
	case RouteType:
		name, _, err = compile.RouteConfig(body)
	case ClusterType:
		name, _, err = compile.Cluster(body)
	case EndpointType:
		name, _, err = compile.Endpoints(body)
	}
	return name, err
}

// TestMeetsConstraints holds everything against the constraints that the
// protos carry, which Envoy enforces.
func TestMeetsConstraints(t *testing.T) {
	v := NewView(everythingSet(t))
	for _, agent := range []Agent{Other, Sinew, GRPC} {
		for _, n := range everyName {
			var m interface {
				proto.Message
				ValidateAll() error
			}
			switch n.typeURL {
			case ListenerType:
				m = &listenerv3.Listener{}
			case RouteType:
				m = &routev3.RouteConfiguration{}
			case ClusterType:
				m = &clusterv3.Cluster{}
			case EndpointType:
				m = &endpointv3.ClusterLoadAssignment{}
			}
			r, err := v.Resource(n.typeURL, n.name, client(agent))
			if err != nil || r == nil {
				t.Fatalf("%s: %v, %v", n.name, r, err)
			}
			if err := r.Body.UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			if err := m.ValidateAll(); err != nil {
				t.Errorf("%s for %v: %v", n.name, agent, err)
			}
		}
	}
}

// TestRoutesDecide sends requests through the compiled routes: what YAML says is what a client does.
func TestRoutesDecide(t *testing.T) {
	v := NewView(bookinfo(t, virtualService(t, "default", "reviews", `
hosts: [reviews]
http:
- match: [{headers: {user: {exact: test-user}}}, {uri: {prefix: /v2}}, {queryParams: {v: {exact: "2"}}}]
  route: [{destination: {host: reviews, subset: v2}}]
- match: [{uri: {exact: /Case}, ignoreUriCase: true}, {uri: {regex: "/r[0-9]+"}}, {method: {exact: DELETE}}, {withoutHeaders: {agent: {prefix: Moz}}, uri: {prefix: /w}}]
  route: [{destination: {host: ratings, port: {number: 80}}}]
- route: [{destination: {host: reviews, subset: v1}}]
`)))
	_, r := get(t, v, RouteType, "outbound|9080||"+reviews, client(Sinew), &routev3.RouteConfiguration{})
	_, rc, err := compile.RouteConfig(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	const v1, v2, ratings = "outbound|9080|v1|" + reviews, "outbound|9080|v2|" + reviews, "outbound|80||ratings.default.svc.cluster.local"
	for _, test := range []struct {
		method, path, query string
		header              map[string][]string
		want                string
	}{
		{"GET", "/", "", nil, v1},
		{"GET", "/", "", map[string][]string{"User": {"test-user"}}, v2},
		{"GET", "/", "", map[string][]string{"User": {"test-users"}}, v1},
		{"GET", "/v2", "", nil, v2},
		{"GET", "/v2x", "", nil, v2}, // a prefix of the string
		{"GET", "/V2", "", nil, v1},
		{"GET", "/x", "v=2", nil, v2},
		{"GET", "/x", "v=3", nil, v1},
		{"GET", "/cASE", "", nil, ratings},
		{"GET", "/cASE/", "", nil, v1},
		{"GET", "/r12", "", nil, ratings},
		{"GET", "/r12/x", "", nil, v1}, // a regex matches all of the path
		{"DELETE", "/", "", nil, ratings},
		{"GET", "/w", "", nil, ratings}, // an absent header is not a Mozilla
		{"GET", "/w", "", map[string][]string{"Agent": {"curl"}}, ratings},
		{"GET", "/w", "", map[string][]string{"Agent": {"Mozilla/5.0"}}, v1},
	} {
		for _, authority := range []string{"reviews:9080", "reviews", "10.0.0.1:9080", "anything.example.com"} {
			vh := rc.Lookup(authority)
			if vh == nil {
				t.Fatalf("no virtual host for %s", authority)
			}
			i := vh.Match(&routing.Request{Method: test.method, Scheme: "http", Authority: authority, Path: test.path, RawQuery: test.query, Header: test.header}, 0)
			if i < 0 {
				t.Errorf("%v: no route", test)
				continue
			}
			route := &vh.Routes[i]
			if got := route.Clusters.Clusters[route.Clusters.Choose(0)].Name; got != test.want {
				t.Errorf("%v: to %s, want %s", test, got, test.want)
			}
		}
	}
}

func TestWeightsFit(t *testing.T) {
	set := bookinfo(t)
	set.Workloads[0].Weight, set.Workloads[1].Weight, set.Workloads[2].Weight = math.MaxUint32, math.MaxUint32/2, 1
	a, r := get(t, NewView(set), EndpointType, "outbound|9080||"+reviews, client(Sinew), &endpointv3.ClusterLoadAssignment{})
	g := a.GetEndpoints()[0]
	got := fmt.Sprint(g.GetLoadBalancingWeight().GetValue())
	for _, e := range g.GetLbEndpoints() {
		got += fmt.Sprint(" ", e.GetLoadBalancingWeight().GetValue())
	}
	if want := "1610612735 1073741823 536870911 1"; got != want {
		t.Errorf("weights %s, want %s", got, want)
	}
	if _, err := compiled(EndpointType, r.Body); err != nil {
		t.Error(err)
	}
}
