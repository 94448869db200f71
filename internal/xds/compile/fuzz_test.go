package compile

import (
	"errors"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
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

// call makes use of all that a route says.
func call(rc *snapshot.RouteConfig) {
	r := &routing.Request{Method: "GET", Scheme: "http", Authority: "reviews:9080", Path: "/a/b", RawQuery: "q=1", Header: map[string][]string{"X-A": {"1"}}}
	for i := range rc.VirtualHosts {
		for j := range rc.VirtualHosts[i].Routes {
			route := &rc.VirtualHosts[i].Routes[j]
			route.Match.Matches(r, 1)
			if route.Clusters.Clusters[route.Clusters.Choose(1)].Name == "" || route.Timeout < 0 || route.MaxStreamDuration < 0 {
				panic("a route without a cluster or with a negative limit")
			}
			if route.Retry != nil {
				for retry := 1; retry < 70; retry += 23 {
					if route.Retry.Backoff(retry, 1<<63) < 0 {
						panic("a negative pause")
					}
				}
			}
		}
	}
	rc.Lookup(r.Authority)
}

func balance(eps *lb.Endpoints, p lb.Policy, panicThreshold float64) {
	for i := range eps.All {
		if eps.All[i].Weight == 0 || eps.All[i].Address == "" {
			panic("an endpoint without an address or a weight")
		}
	}
	usable, _ := lb.Usable(eps, nil, panicThreshold)
	if len(usable) > 0 {
		lb.NewPicker(p, eps, usable).Pick(1, 1, idle{})
	}
}

type idle struct{}

func (idle) Active(int) int64 { return 0 }

func FuzzRouteConfig(f *testing.F) {
	fuzz(f, &routev3.RouteConfiguration{}, RouteConfig, call,
		routesOf(f, `{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["a", "*.b", "*"], "retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "1s"}}, "routes": [
			{"match": {"prefix": "/", "headers": [{"name": "x", "range_match": {"end": 3}}], "query_parameters": [{"name": "q"}]}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]}, "timeout": "1s"}},
			{"match": {"safe_regex": {"regex": "/a.*"}, "runtime_fraction": {"default_value": {"numerator": 5}}}, "route": {"cluster": "c", "max_stream_duration": {"max_stream_duration": "0s"}}}]}]}`),
		routesOf(f, `{"name": "r", "typed_per_filter_config": {"x": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "is_optional": true}}}`),
		&anypb.Any{})
}

func FuzzCluster(f *testing.F) {
	fuzz(f, &clusterv3.Cluster{}, Cluster, func(c *snapshot.Cluster) {
		if c.EndpointsName == "" {
			balance(c.Endpoints, c.LB, c.PanicThreshold)
		}
		if c.Outlier != nil && c.Outlier.Validate() != nil || c.RetryBudget != nil && c.RetryBudget.Validate() != nil {
			panic("invalid values")
		}
	},
		clusterOf(f, `{"name": "outbound|80|v1|a.b", `+eds+`, "lb_policy": "LEAST_REQUEST", "outlier_detection": {"enforcing_success_rate": 0}, "circuit_breakers": {"thresholds": [{"retry_budget": {}}]},
			"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}}`),
		clusterOf(f, `{"name": "s", "type": "STATIC", "load_assignment": {"endpoints": [{"lb_endpoints": [`+at("10.0.0.1", 80, "")+`]}]},
			"load_balancing_policy": {"policies": [{"typed_extension_config": {"name": "b", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random"}}}]}}`),
		&anypb.Any{})
}

func FuzzEndpoints(f *testing.F) {
	fuzz(f, &endpointv3.ClusterLoadAssignment{}, Endpoints, func(eps *lb.Endpoints) {
		for _, p := range []lb.Policy{{Kind: lb.RoundRobin}, {Kind: lb.Random}, {Kind: lb.LeastRequest, Choices: 2}} {
			balance(eps, p, 50)
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
			call(l.Inline)
		}
	},
		listenerOf(f, apiListenerOf(rds+`, "http_filters": [{"name": "s", "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "x/stats.PluginConfig"}}, `+router+`]`)),
		listenerOf(f, apiListenerOf(`"http_filters": [`+router+`], "route_config": {"virtual_hosts": [{"domains": ["*"], "routes": [`+toCluster("")+`]}]}`)),
		&anypb.Any{})
}

func FuzzInbound(f *testing.F) {
	fuzz(f, &listenerv3.Listener{}, Inbound, func(in *snapshot.Inbound) {
		if in.Address == "" {
			panic("no address")
		}
	},
		listenerOf(f, inboundOf(`"filter_chains": [`+chain(everyInbound, "")+`]`)),
		listenerOf(f, inboundOf(`"default_filter_chain": `+chain(everyInbound, `"transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}`))),
		&anypb.Any{})
}
