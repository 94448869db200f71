package outbound

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// routed returns an engine whose host "reviews:80" has one route, as change makes
// it, to the cluster "c"; the cluster "other" is there too.
func routed(t testing.TB, change func(*snapshot.Host, *snapshot.Route)) *Engine {
	t.Helper()
	s := one(t, cluster("c", "a:1"), nil)
	s.Clusters["other"] = cluster("other", "o:1")
	h := s.Hosts["reviews:80"]
	change(h, &h.VirtualHost.Routes[0])
	e := New(Options{Subscribe: func(string) {}, Hostname: "here"})
	t.Cleanup(e.Close)
	e.Install(s)
	return e
}

func decided(t testing.TB, e *Engine, change func(*routing.Request)) *Call {
	t.Helper()
	c := newCall()
	c.Request.Header = map[string][]string{}
	if change != nil {
		change(&c.Request)
	}
	if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
		t.Fatal(err)
	}
	return c
}

func set(name, value string) routing.HeaderChange {
	c, err := routing.NewHeaderChange(name, value, routing.OverwriteOrAdd, false)
	if err != nil {
		panic(err)
	}
	return c
}

var everything1 = routing.Fraction{PerMillion: 1_000_000}

func grpcRequest(r *routing.Request) {
	r.Method, r.Header["Content-Type"] = "POST", []string{"application/grpc"}
}

func TestLocalAnswers(t *testing.T) {
	for _, c := range []struct {
		name    string
		route   func(*snapshot.Host, *snapshot.Route)
		request func(*routing.Request)
		want    Local
	}{
		{"redirect, with the route's response headers", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Redirect = &routing.Redirect{Host: "new.example", Status: 308}
			r.ResponseHeaders = []routing.HeaderChanges{{Set: []routing.HeaderChange{set("x-new", "1")}}}
		}, nil, Local{Reason: "redirect", Status: 308, GRPC: -1, Header: map[string][]string{"Location": {"http://new.example/"}, "X-New": {"1"}}}},
		{"redirect's default", func(_ *snapshot.Host, r *snapshot.Route) { r.Redirect = &routing.Redirect{Path: "/x"} }, nil,
			Local{Reason: "redirect", Status: 301, GRPC: -1, Header: map[string][]string{"Location": {"http://reviews/x"}}}},
		{"direct response", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Direct = &routing.DirectResponse{Status: 418, Body: "tea"}
		}, nil, Local{Reason: "direct_response", Status: 418, GRPC: -1, Body: "tea", Header: map[string][]string{"Content-Type": {"text/plain"}}}},
		{"direct response to gRPC", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Direct = &routing.DirectResponse{Status: 503, Body: "no"}
		}, grpcRequest, Local{Reason: "direct_response", Status: 200, GRPC: 14, Body: "no", Header: map[string][]string{}}},
		{"fault before the redirect", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Redirect = &routing.Redirect{}
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{Status: 429, GRPC: -1, Fraction: everything1}}
		}, nil, Local{Reason: "fault", Status: 429, GRPC: -1, Body: "fault filter abort", Header: map[string][]string{"Content-Type": {"text/plain"}}}},
		{"fault by HTTP status, to gRPC", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{Status: 404, GRPC: -1, Fraction: everything1}}
		}, grpcRequest, Local{Reason: "fault", Status: 200, GRPC: 12, Body: "fault filter abort", Header: map[string][]string{}}},
		{"fault by gRPC status", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{GRPC: 5, Body: "gone", Fraction: everything1}}
		}, grpcRequest, Local{Reason: "fault", Status: 200, GRPC: 5, Body: "gone", Header: map[string][]string{}}},
		{"fault by gRPC status OK is none", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{Fraction: everything1}}
		}, grpcRequest, Local{Reason: "fault", Status: 200, GRPC: 2, Body: "fault filter abort", Header: map[string][]string{}}},
		{"fault by gRPC status, to what is not gRPC", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{GRPC: 5, Fraction: everything1}}
		}, nil, Local{Reason: "fault", Status: 200, GRPC: -1, Body: "fault filter abort", Header: map[string][]string{"Content-Type": {"text/plain"}}}},
		{"preflight before the redirect", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Redirect = &routing.Redirect{}
			r.CORS = &routing.CORS{Origins: []routing.StringMatch{routing.Exact("http://a", false)}, Methods: "GET", Expose: "x-e"}
		}, func(r *routing.Request) {
			r.Method = "OPTIONS"
			r.Header = map[string][]string{"Origin": {"http://a"}, "Access-Control-Request-Method": {"GET"}}
		}, Local{Reason: "cors_preflight", Status: 200, GRPC: -1, Header: map[string][]string{
			"Access-Control-Allow-Origin": {"http://a"}, "Access-Control-Allow-Methods": {"GET"}, "Access-Control-Expose-Headers": {"x-e"}}}},
		{"preflight before the fault, where the listener has CORS first", func(h *snapshot.Host, r *snapshot.Route) {
			h.CORSFirst = true
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{Status: 429, GRPC: -1, Fraction: routing.Fraction{PerMillion: 1_000_000}}}
			r.CORS = &routing.CORS{Origins: []routing.StringMatch{routing.Exact("http://a", false)}, Methods: "GET", Expose: "x-e"}
		}, func(r *routing.Request) {
			r.Method = "OPTIONS"
			r.Header = map[string][]string{"Origin": {"http://a"}, "Access-Control-Request-Method": {"GET"}}
		}, Local{Reason: "cors_preflight", Status: 200, GRPC: -1, Header: map[string][]string{
			"Access-Control-Allow-Origin": {"http://a"}, "Access-Control-Allow-Methods": {"GET"}, "Access-Control-Expose-Headers": {"x-e"}}}},
		{"no cluster of that name", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Clusters, r.ClusterHeader, r.ClusterNotFound = routing.Weighted{}, routing.NewHeaderName("x-cluster"), 404
		}, func(r *routing.Request) { r.Header["X-Cluster"] = []string{"nowhere"} }, Local{Reason: "no_cluster", Status: 404, GRPC: -1, Header: map[string][]string{}}},
		{"no such header", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Clusters, r.ClusterHeader = routing.Weighted{}, routing.NewHeaderName("x-cluster")
		}, nil, Local{Reason: "no_cluster", Status: 503, GRPC: -1, Header: map[string][]string{}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := routed(t, c.route)
			call := decided(t, e, c.request)
			got := call.Local()
			if got == nil {
				t.Fatal("there is no local answer")
			}
			same := got.Reason == c.want.Reason && got.Status == c.want.Status && got.GRPC == c.want.GRPC && got.Body == c.want.Body
			if !same || !maps.EqualFunc(got.Header, c.want.Header, slices.Equal) {
				t.Errorf("%+v, want %+v", *got, c.want)
			}
			if call.Shadows() != nil {
				t.Error("copies are made of what is answered here")
			}
			call.Finish(&resilience.Outcome{Status: got.Status, GRPC: -1})
			nothingHeld(t, e)
		})
	}
}

func TestClusterHeader(t *testing.T) {
	e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) {
		r.Clusters, r.ClusterHeader = routing.Weighted{}, routing.NewHeaderName("x-cluster")
	})
	for _, name := range []string{"c", "other", "c"} {
		call := decided(t, e, func(r *routing.Request) { r.Header["X-Cluster"] = []string{name} })
		if call.Local() != nil || call.Cluster().Name != name || call.Place().Cluster != name {
			t.Errorf("%s: went to %v", name, call.Place())
		}
	}
}

// TestClusterHeaderWaits: a cluster that only a header names is asked for then.
func TestClusterHeaderWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := one(t, cluster("c", "a:1"), nil)
		r := &s.Hosts["reviews:80"].VirtualHost.Routes[0]
		r.Clusters, r.ClusterHeader = routing.Weighted{}, routing.NewHeaderName("x-cluster")
		var e *Engine
		e = New(Options{Subscribe: func(string) {}, SubscribeCluster: func(name string) {
			time.AfterFunc(time.Second, func() {
				next := *s
				next.Clusters = maps.Clone(s.Clusters)
				next.Clusters[name] = cluster(name, "n:1")
				next.Clusters[name].Absent = name == "gone"
				next.Clusters[name].Used = new(atomic.Bool)
				if name != "never" {
					e.Install(&next)
				}
			})
		}})
		defer e.Close()
		e.Install(s)
		with := func(name string) func(*routing.Request) {
			return func(r *routing.Request) { r.Header["X-Cluster"] = []string{name} }
		}
		began := time.Now()
		call := decided(t, e, with("new"))
		if call.Local() != nil || call.Cluster().Name != "new" || time.Since(began) != time.Second || !call.Cluster().Used.Load() || call.Ready().Equal(began) {
			t.Errorf("went to %v after %v", call.Place(), time.Since(began))
		}
		if call := decided(t, e, with("gone")); call.Local() == nil || call.Local().Status != 503 {
			t.Error("a cluster that does not exist is no local answer")
		}
		c := newCall()
		c.Request.Header = map[string][]string{"X-Cluster": {"never"}}
		var notReady *NotReadyError
		if err := e.Decide(t.Context(), c, "reviews", "http"); !errors.As(err, &notReady) || notReady.Cluster != "never" {
			t.Errorf("error %v", err)
		}
	})
}

func TestFaultDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := uint32(1)
		e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) {
			r.Timeout = time.Second
			r.Fault = &resilience.Fault{MaxActive: &one, Delay: &resilience.FaultDelay{Fixed: 5 * time.Second, Fraction: everything1}}
		})
		first, second := decided(t, e, nil), decided(t, e, nil)
		if first.Delay() != 5*time.Second || second.Delay() != 0 {
			t.Errorf("delays %v and %v, want only the first: one fault at a time", first.Delay(), second.Delay())
		}
		time.Sleep(first.Delay())
		first.EndDelay()
		if since := time.Since(first.Ready()); since != 0 {
			t.Errorf("the time limit began %v before the delay had passed", since)
		}
		if third := decided(t, e, nil); third.Delay() != 5*time.Second {
			t.Errorf("after the delay has passed the next is delayed by %v", third.Delay())
		} else {
			third.Finish(&resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
		}
		first.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
		second.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
		nothingHeld(t, e)
	})
}

func TestTimeLimits(t *testing.T) {
	const ms = time.Millisecond
	at := func(d time.Duration) *time.Duration { return &d }
	header := func(kv ...string) func(*routing.Request) {
		return func(r *routing.Request) {
			for i := 0; i < len(kv); i += 2 {
				r.Header[kv[i]] = []string{kv[i+1]}
			}
		}
	}
	grpc := func(timeout string) func(*routing.Request) {
		return func(r *routing.Request) {
			grpcRequest(r)
			if timeout != "" {
				r.Header["Grpc-Timeout"] = []string{timeout}
			}
		}
	}
	for _, c := range []struct {
		name          string
		route         func(*snapshot.Host, *snapshot.Route)
		request       func(*routing.Request)
		limit, perTry time.Duration
		expected      string
	}{
		{"none", func(*snapshot.Host, *snapshot.Route) {}, nil, 0, 0, ""},
		{"route", func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = 200 * ms }, nil, 200 * ms, 0, "200"},
		{"per try", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Timeout, r.Retry = 200*ms, &resilience.RetryPolicy{PerTryTimeout: 50 * ms}
		}, nil, 200 * ms, 50 * ms, "50"},
		{"per try, not less than the route's", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Timeout, r.Retry = 200*ms, &resilience.RetryPolicy{PerTryTimeout: 200 * ms}
		}, nil, 200 * ms, 0, "200"},
		{"per try alone", func(_ *snapshot.Host, r *snapshot.Route) { r.Retry = &resilience.RetryPolicy{PerTryTimeout: 50 * ms} }, nil, 0, 50 * ms, "50"},
		{"per try with a hedge on timeout", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Timeout, r.Retry, r.Hedge = 200*ms, &resilience.RetryPolicy{PerTryTimeout: 50 * ms}, &resilience.Hedge{Initial: 1, OnPerTryTimeout: true}
		}, nil, 200 * ms, 50 * ms, "200"},
		{"the request's", func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = 200 * ms }, header("X-Envoy-Upstream-Rq-Timeout-Ms", "700"), 700 * ms, 0, "700"},
		{"the request's: none", func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = 200 * ms }, header("X-Envoy-Upstream-Rq-Timeout-Ms", "0"), 0, 0, ""},
		{"the request's: no number", func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = 200 * ms }, header("X-Envoy-Upstream-Rq-Timeout-Ms", "soon"), 200 * ms, 0, "200"},
		{"the request's: beyond all numbers", func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = 200 * ms },
			header("X-Envoy-Upstream-Rq-Timeout-Ms", "18446744073709551615"), 1<<63 - 1, 0, "9223372036854"},
		{"the request's per try", func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = 200 * ms }, header("X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms", "20"), 200 * ms, 20 * ms, "20"},
		{"expected, not respected", func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = 200 * ms }, header("X-Envoy-Expected-Rq-Timeout-Ms", "9"), 200 * ms, 0, "200"},
		{"expected, respected", func(h *snapshot.Host, r *snapshot.Route) { r.Timeout, h.RespectExpectedTimeout = 200*ms, true },
			header("X-Envoy-Expected-Rq-Timeout-Ms", "9"), 9 * ms, 0, "9"},
		{"nothing is told", func(h *snapshot.Host, r *snapshot.Route) { r.Timeout, h.SuppressHeaders = 200*ms, true }, nil, 200 * ms, 0, ""},
		{"stream of the host", func(h *snapshot.Host, r *snapshot.Route) { h.MaxStreamDuration = 90 * ms }, nil, 90 * ms, 0, ""},
		{"stream of the route", func(h *snapshot.Host, r *snapshot.Route) {
			h.MaxStreamDuration, r.MaxStreamDuration, r.Timeout = 90*ms, 100*ms, time.Second
		}, nil, 100 * ms, 0, "1000"},
		{"gRPC's own, not asked for", func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = 200 * ms }, grpc("50m"), 200 * ms, 0, "200"},
		{"gRPC's own, bounded", func(_ *snapshot.Host, r *snapshot.Route) { r.GRPCTimeout, r.GRPCTimeoutAlways = at(time.Second), true }, grpc("5S"), time.Second, 0, "1000"},
		{"gRPC's own, unbounded", func(_ *snapshot.Host, r *snapshot.Route) { r.GRPCTimeout, r.GRPCTimeoutAlways = at(0), true }, grpc("5S"), 5 * time.Second, 0, "5000"},
		{"gRPC's own, less the offset", func(_ *snapshot.Host, r *snapshot.Route) {
			r.GRPCTimeout, r.GRPCTimeoutAlways, r.GRPCTimeoutOffset = at(time.Second), true, 100*ms
		}, grpc("500m"), 400 * ms, 0, "400"},
		{"gRPC without one, bounded", func(_ *snapshot.Host, r *snapshot.Route) { r.GRPCTimeout, r.GRPCTimeoutAlways = at(time.Second), true }, grpc(""), time.Second, 0, "1000"},
		{"gRPC without one, bounds only those that have one", func(_ *snapshot.Host, r *snapshot.Route) {
			r.GRPCTimeout, r.MaxStreamDuration = at(time.Second), 3*time.Second
		}, grpc(""), 3 * time.Second, 0, ""},
		{"gRPC's own takes the stream's place", func(_ *snapshot.Host, r *snapshot.Route) {
			r.GRPCTimeout, r.MaxStreamDuration = at(10*time.Second), 3*time.Second
		}, grpc("5S"), 5 * time.Second, 0, ""},
		{"gRPC's own, nothing left", func(_ *snapshot.Host, r *snapshot.Route) {
			r.GRPCTimeout, r.GRPCTimeoutOffset = at(10*time.Second), 3*time.Second
		}, grpc("1S"), 1, 0, ""},
		{"gRPC's own is not read of what is not gRPC", func(_ *snapshot.Host, r *snapshot.Route) {
			r.Timeout, r.GRPCTimeout, r.GRPCTimeoutAlways = 200*ms, at(time.Second), true
		}, header("Grpc-Timeout", "5S"), 200 * ms, 0, "200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			call := decided(t, routed(t, c.route), c.request)
			var try Try
			if err := call.Begin(&try); err != nil {
				t.Fatal(err)
			}
			if call.Timeout() != c.limit || try.Timeout() != c.perTry {
				t.Errorf("timeout %v, per try %v, want %v and %v", call.Timeout(), try.Timeout(), c.limit, c.perTry)
			}
			var l Lease
			if err := try.Pick(&l, nil); err != nil {
				t.Fatal(err)
			}
			var out Outgoing
			try.Outgoing(&l, &out)
			told := ""
			if v := out.Header["X-Envoy-Expected-Rq-Timeout-Ms"]; len(v) > 0 {
				told = v[0]
			}
			if want := c.expected; told != want && !(want == "" && call.Request.Header["X-Envoy-Expected-Rq-Timeout-Ms"] != nil) {
				t.Errorf("the server is told %q, want %q", told, want)
			}
			for _, name := range []string{"X-Envoy-Upstream-Rq-Timeout-Ms", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms"} {
				if _, is := out.Header[name]; is && out.Header[name][0] != "soon" {
					t.Errorf("%s goes to the server", name)
				}
			}
		})
	}
}

// TestExpectedTimeoutShrinks: what is left is told, not what there was.
func TestExpectedTimeoutShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retry := resilience.DefaultRetryPolicy(resilience.On5xx)
		retry.NumRetries = 3
		e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout, r.Retry = time.Second, &retry })
		call := decided(t, e, nil)
		var try Try
		for i, want := range []string{"1000", "700", "400", "100"} {
			if err := call.Begin(&try); err != nil {
				t.Fatal(err)
			}
			var l Lease
			if err := try.Pick(&l, nil); err != nil {
				t.Fatal(err)
			}
			var out Outgoing
			try.Outgoing(&l, &out)
			if got := out.Header["X-Envoy-Expected-Rq-Timeout-Ms"]; !slices.Equal(got, []string{want}) {
				t.Errorf("attempt %d is told %q, want %q", i+1, got, want)
			}
			l.Release()
			time.Sleep(300 * time.Millisecond)
			if _, again := try.Next(&resilience.Outcome{Status: 503, GRPC: -1}); again != (i < 3) {
				t.Fatalf("attempt %d: another: %v", i+1, again)
			}
		}
		call.Finish(&resilience.Outcome{Status: 503, GRPC: -1})
		nothingHeld(t, e)
	})
}

// TestCallersDeadlineIsTold: the server is told of the deadline of the caller's
// context where no limit of policy comes first. Hosts outside the mesh are told nothing.
func TestCallersDeadlineIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		told := func(e *Engine, authority string, pause time.Duration) []string {
			t.Helper()
			call := &Call{Request: routing.Request{Method: "GET", Scheme: "http", Authority: authority, Path: "/"}}
			if err := e.Decide(ctx, call, authority, "http"); err != nil {
				t.Fatal(err)
			}
			defer call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
			var try Try
			if err := call.Begin(&try); err != nil {
				t.Fatal(err)
			}
			var l Lease
			if err := try.Pick(&l, nil); err != nil {
				t.Fatal(err)
			}
			defer l.Release()
			time.Sleep(pause)
			var out Outgoing
			try.Outgoing(&l, &out)
			return out.Header["X-Envoy-Expected-Rq-Timeout-Ms"]
		}
		limited := func(d time.Duration) *Engine {
			return routed(t, func(_ *snapshot.Host, r *snapshot.Route) { r.Timeout = d })
		}
		time.Sleep(100 * time.Millisecond)
		for _, c := range []struct {
			limit, pause time.Duration
			want         string
		}{{0, 0, "400"}, {time.Second, 0, "400"}, {200 * time.Millisecond, 0, "200"}, {time.Second, 100 * time.Millisecond, "300"}} {
			if got := told(limited(c.limit), "reviews", c.pause); !slices.Equal(got, []string{c.want}) {
				t.Errorf("with a limit of %v the server is told %q, want %q", c.limit, got, c.want)
			}
		}
		outside := New(Options{External: func(host string) (*snapshot.Host, *snapshot.Cluster) {
			c := cluster("passthrough|"+host, host)
			return one(t, c, nil).Hosts["reviews:80"], c
		}})
		defer outside.Close()
		if got := told(outside, "example.com", 0); got != nil {
			t.Errorf("a host outside the mesh is told %q", got)
		}
	})
}

func TestOutgoingAndIncoming(t *testing.T) {
	remove := routing.HeaderChanges{Remove: []routing.HeaderName{routing.NewHeaderName("x-drop")}}
	e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) {
		r.AttemptCount, r.AttemptCountResponse = true, true
		r.RequestHeaders = []routing.HeaderChanges{remove, {Set: []routing.HeaderChange{set("x-path", "%REQ(:path)%"), set("x-order", "route")}}}
		r.ResponseHeaders = []routing.HeaderChanges{{Set: []routing.HeaderChange{set("x-served", "%REQ(:path)%")}}}
		r.Rewrite = routing.Rewrite{HasPrefix: true, Prefix: "/new/", Host: "h.example", AppendForwardedHost: true}
		r.Match.Path.Value = "/"
		r.Legs = []snapshot.Leg{{RequestHeaders: routing.HeaderChanges{Set: []routing.HeaderChange{set("x-order", "leg"), set("x-leg", "1")}}}}
		r.CORS = &routing.CORS{Origins: []routing.StringMatch{routing.Exact("http://a", false)}}
	})
	given := map[string][]string{"X-Drop": {"1"}, "X-Keep": {"k"}, "Origin": {"http://a"}}
	before := maps.Clone(given)
	call := decided(t, e, func(r *routing.Request) { r.Header, r.Path, r.RawQuery = given, "/old", "q=1" })
	var try Try
	var l Lease
	if err := call.Begin(&try); err != nil {
		t.Fatal(err)
	}
	if err := try.Pick(&l, nil); err != nil {
		t.Fatal(err)
	}
	var out Outgoing
	try.Outgoing(&l, &out)
	want := map[string][]string{
		"X-Keep": {"k"}, "Origin": {"http://a"}, "X-Leg": {"1"}, "X-Order": {"route"}, "X-Path": {"/old?q=1"}, "X-Forwarded-Host": {"reviews"},
		"X-Envoy-Attempt-Count": {"1"}, "X-Envoy-Original-Host": {"reviews"}, "X-Envoy-Original-Path": {"/old?q=1"},
	}
	if out.Path != "/new/old" || out.RawQuery != "q=1" || out.Authority != "h.example" || !maps.EqualFunc(out.Header, want, slices.Equal) {
		t.Errorf("%+v", out)
	}
	if !maps.EqualFunc(given, before, slices.Equal) {
		t.Errorf("the caller's header became %v", given)
	}
	response := map[string][]string{}
	call.Incoming(&l, 200, response, routing.CanonicalHeaders)
	if want := (map[string][]string{"X-Served": {"/new/old?q=1"}, "X-Envoy-Attempt-Count": {"1"}, "Access-Control-Allow-Origin": {"http://a"}}); !maps.EqualFunc(response, want, slices.Equal) {
		t.Errorf("the response has %v, want %v", response, want)
	}
}

func TestPlainRouteKeepsTheHeader(t *testing.T) {
	e := routed(t, func(*snapshot.Host, *snapshot.Route) {})
	call := decided(t, e, func(r *routing.Request) { r.Header["X-A"] = []string{"1"} })
	var try Try
	var l Lease
	if err := errors.Join(call.Begin(&try), try.Pick(&l, nil)); err != nil {
		t.Fatal(err)
	}
	var out Outgoing
	try.Outgoing(&l, &out)
	out.Header["X-B"] = nil
	if _, same := call.Request.Header["X-B"]; !same {
		t.Error("the header is copied though nothing changes")
	}
}

// TestHeaderValuesName has headers of requests name what changes on the way out.
func TestHeaderValuesName(t *testing.T) {
	level := func(name, value string) routing.HeaderChanges {
		return routing.HeaderChanges{Set: []routing.HeaderChange{set(name, value)}}
	}
	for _, c := range []struct {
		name   string
		change func(*snapshot.Route)
		copy   bool // look at the copy for the mirror
		want   string
	}{
		{"the host that the destination has set before", func(r *snapshot.Route) {
			r.Legs = []snapshot.Leg{{Host: "v2.reviews"}}
			r.RequestHeaders = []routing.HeaderChanges{level("x-name", "%REQ(:authority)%")}
		}, false, "v2.reviews"},
		{"the request, by the destination alone", func(r *snapshot.Route) {
			r.Legs = []snapshot.Leg{{RequestHeaders: level("x-name", "%REQ(x-id)%")}}
		}, false, "7"},
		{"the cluster", func(r *snapshot.Route) {
			r.RequestHeaders = []routing.HeaderChanges{level("x-name", "%UPSTREAM_CLUSTER%")}
		}, false, "c"},
		// A copy is of the request as it went out.
		{"the cluster of the request, not of its copy", func(r *snapshot.Route) {
			r.RequestHeaders = []routing.HeaderChanges{level("x-name", "%UPSTREAM_CLUSTER%")}
			r.Mirrors = []routing.Mirror{{Cluster: "other", Fraction: everything1}}
		}, true, "c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) { c.change(r) })
			done := &resilience.Outcome{Status: 200, GRPC: -1}
			call := decided(t, e, func(r *routing.Request) { r.Header["X-Id"] = []string{"7"} })
			defer call.Finish(done)
			if c.copy {
				copies := call.Shadows()
				if len(copies) != 1 {
					t.Fatalf("%d copies", len(copies))
				}
				call = copies[0]
				defer call.Finish(done)
			}
			var try Try
			if err := call.Begin(&try); err != nil {
				t.Fatal(err)
			}
			var l Lease
			if err := try.Pick(&l, nil); err != nil {
				t.Fatal(err)
			}
			defer l.Release()
			var out Outgoing
			try.Outgoing(&l, &out)
			if got := out.Header["X-Name"]; !slices.Equal(got, []string{c.want}) {
				t.Errorf("the header is %q, want %q", got, c.want)
			}
		})
	}
}

// TestResponseValuesName has a header of the response name the call.
func TestResponseValuesName(t *testing.T) {
	e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) {
		r.ResponseHeaders = []routing.HeaderChanges{{Set: []routing.HeaderChange{set("x-from", "%UPSTREAM_CLUSTER%")}}}
	})
	call := decided(t, e, nil)
	defer call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
	header := map[string][]string{}
	call.Incoming(nil, 200, header, routing.CanonicalHeaders)
	if got := header["X-From"]; !slices.Equal(got, []string{"c"}) {
		t.Errorf("the header is %q, want the cluster", got)
	}
}
