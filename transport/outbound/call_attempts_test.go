package outbound

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

func TestShadows(t *testing.T) {
	s := one(t, cluster("c", "a:1"), nil)
	s.Clusters["other"] = cluster("other", "o:1")
	r := &s.Hosts["reviews:80"].VirtualHost.Routes[0]
	r.RequestHeaders = []routing.HeaderChanges{{Set: []routing.HeaderChange{set("x-all", "1")}}}
	r.Mirrors = []routing.Mirror{
		{Cluster: "other", Fraction: everything1},
		{Cluster: "other", Fraction: everything1, KeepHost: true, Changes: routing.HeaderChanges{Set: []routing.HeaderChange{set("x-copy", "1")}}},
		{ClusterHeader: routing.NewHeaderName("x-cluster"), Fraction: everything1, Host: "m.example"},
		{ClusterHeader: routing.NewHeaderName("x-none"), Fraction: everything1},
		{Cluster: "other"},
	}
	retry := resilience.DefaultRetryPolicy(resilience.On5xx)
	r.Retry = &retry
	e := New(Options{Subscribe: func(string) {}, MaxShadows: 5})
	defer e.Close()
	e.Install(s)
	given := map[string][]string{"X-Cluster": {"c"}}
	call := decided(t, e, func(r *routing.Request) { r.Header, r.Authority = given, "reviews:80" })
	shadows := call.Shadows()
	if len(shadows) != 3 {
		t.Fatalf("%d copies, want 3", len(shadows))
	}
	given["X-Late"] = []string{"1"} // the caller may do so once it has its response
	for i, want := range []struct{ cluster, authority, copied string }{{"other", "reviews-shadow:80", ""}, {"other", "reviews:80", "1"}, {"c", "m.example", ""}} {
		c := shadows[i]
		var try Try
		var l Lease
		if err := errors.Join(c.Begin(&try), try.Pick(&l, nil)); err != nil {
			t.Fatal(err)
		}
		var out Outgoing
		try.Outgoing(&l, &out)
		copied := ""
		if v := out.Header["X-Copy"]; v != nil {
			copied = v[0]
		}
		if c.Cluster().Name != want.cluster || out.Authority != want.authority || copied != want.copied || out.Header["X-All"] == nil || out.Header["X-Late"] != nil {
			t.Errorf("copy %d goes to %s: %+v", i, c.Cluster().Name, out)
		}
		if _, again := try.Next(&resilience.Outcome{Status: 503, GRPC: -1}); again {
			t.Errorf("copy %d is sent again", i)
		}
		l.Release()
	}
	second := decided(t, e, func(r *routing.Request) { r.Header["X-Cluster"] = []string{"c"} })
	more := second.Shadows()
	if len(more) != 2 {
		t.Errorf("%d copies beside 3, at most 5 may be under way", len(more))
	}
	for _, c := range append(append(shadows, more...), call, second) {
		c.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
	}
	nothingHeld(t, e)
}

func TestHedgesOnlyWhatIsSafe(t *testing.T) {
	exact := routing.PathMatch{Kind: routing.PathExact, Value: "/"}
	for _, c := range []struct {
		name    string
		path    *routing.PathMatch
		request func(*routing.Request)
		want    int
	}{
		{"GET", nil, nil, 3},
		{"HEAD", nil, func(r *routing.Request) { r.Method = "HEAD" }, 3},
		{"DELETE", nil, func(r *routing.Request) { r.Method = "DELETE" }, 1},
		{"POST", &exact, func(r *routing.Request) { r.Method = "POST" }, 1},
		{"gRPC, any method", nil, grpcRequest, 1},
		{"gRPC, this method", &exact, grpcRequest, 3},
		{"asked for not", nil, func(r *routing.Request) { r.Header["X-Envoy-Hedge-On-Per-Try-Timeout"] = []string{"false"} }, 3},
	} {
		retry := resilience.DefaultRetryPolicy(resilience.On5xx)
		e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) {
			r.Retry, r.Hedge = &retry, &resilience.Hedge{Initial: 3, OnPerTryTimeout: true}
			if c.path != nil {
				r.Match.Path = *c.path
			}
		})
		call := decided(t, e, c.request)
		initial, onTimeout := call.Hedges()
		if initial != c.want || onTimeout != (c.want > 1 && c.name != "asked for not") {
			t.Errorf("%s: %d attempts at once, on timeout %v", c.name, initial, onTimeout)
		}
	}
}

func TestHedgesAreCharged(t *testing.T) {
	s := one(t, cluster("c", "a:1"), nil)
	s.Clusters["c"].RetryBudget = &resilience.RetryBudget{Burst: 2}
	s.Hosts["reviews:80"].VirtualHost.Routes[0].Hedge = &resilience.Hedge{Initial: 5}
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(s)
	call := decided(t, e, nil)
	call.Hedges()
	if err := call.Begin(new(Try)); err != nil {
		t.Fatal(err)
	}
	got := 0
	for range 4 {
		if call.Hedge(new(Try)) {
			got++
		}
	}
	if got != 2 {
		t.Errorf("%d hedges with a budget of two", got)
	}
	call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
	if call.Hedge(new(Try)) {
		t.Error("a hedge of a call that has ended")
	}
	nothingHeld(t, e)
}

func TestRetriesByRequestAndPushback(t *testing.T) {
	retry := resilience.DefaultRetryPolicy(resilience.OnUnavailable)
	e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) { r.Retry = &retry })
	lower := func(value string) *resilience.Outcome {
		return &resilience.Outcome{Status: 200, GRPC: 14, Form: routing.LowerHeaders, Header: map[string][]string{"grpc-retry-pushback-ms": {value}}}
	}
	for _, c := range []struct {
		name    string
		request func(*routing.Request)
		outcome *resilience.Outcome
		again   bool
		wait    time.Duration // exactly, where it is not 0
	}{
		{"a status that policy does not name", nil, &resilience.Outcome{Status: 503, GRPC: -1}, false, 0},
		{"one that the request names", func(r *routing.Request) { r.Header["X-Envoy-Retry-On"] = []string{"5xx"} }, &resilience.Outcome{Status: 503, GRPC: -1}, true, 0},
		{"none by the request", func(r *routing.Request) { r.Header["X-Envoy-Max-Retries"] = []string{"0"} }, &resilience.Outcome{Status: 200, GRPC: 14}, false, 0},
		{"the server's pause", nil, lower("1234"), true, 1234 * time.Millisecond},
		{"the server's no", nil, lower("-1"), false, 0},
	} {
		call := decided(t, e, c.request)
		var try Try
		if err := call.Begin(&try); err != nil {
			t.Fatal(err)
		}
		wait, again := try.Next(c.outcome)
		if again != c.again || c.wait != 0 && wait != c.wait {
			t.Errorf("%s: again %v after %v", c.name, again, wait)
		}
		call.Finish(c.outcome)
	}
	nothingHeld(t, e)
}

func TestPriorityThresholds(t *testing.T) {
	s := one(t, cluster("c", "a:1"), nil)
	s.Clusters["c"].Limits.MaxRequests, s.Clusters["c"].HighLimits = 1, resilience.Limits{MaxRequests: 2}
	vh := s.Hosts["reviews:80"].VirtualHost
	high := vh.Routes[0]
	high.Match.Path.Value, high.Priority = "/high", resilience.HighPriority
	vh.Routes = []snapshot.Route{high, vh.Routes[0]}
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(s)
	var calls []*Call
	for path, most := range map[string]int{"/high": 2, "/": 1} {
		for i := range most + 1 {
			call := decided(t, e, func(r *routing.Request) { r.Path = path })
			err := call.Begin(new(Try))
			var limit *LimitError
			if (i == most) != errors.As(err, &limit) || limit != nil && int(limit.Max) != most {
				t.Errorf("%s, request %d: %v", path, i+1, err)
			}
			calls = append(calls, call)
		}
	}
	for _, c := range calls {
		c.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
	}
	nothingHeld(t, e)
}

func TestAdaptiveConcurrencyOfAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := resilience.DefaultAdaptiveConcurrency
		e := routed(t, func(h *snapshot.Host, _ *snapshot.Route) { h.Concurrency = &limit })
		var calls []*Call
		for i := range 4 {
			call := decided(t, e, nil)
			err := call.Begin(new(Try))
			var refused *LimitError
			if (i == 3) != errors.As(err, &refused) || refused != nil && (refused.Limit != "adaptive_concurrency" || refused.Max != 3) {
				t.Errorf("request %d while the latency is measured: %v", i+1, err)
			}
			calls = append(calls, call)
		}
		for _, c := range calls {
			c.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
		}
		// At an even latency the limit grows to its most.
		for range 200 {
			for range 3 {
				call := decided(t, e, nil)
				if err := call.Begin(new(Try)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
				call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
			}
		}
		a := e.view.Load().hosts["reviews:80"].adaptive
		if a.Limit() < 100 {
			t.Errorf("the limit is %d at an even latency", a.Limit())
		}
		high := a.Limit()
		for range 30 {
			call := decided(t, e, nil)
			if err := call.Begin(new(Try)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
			call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
		}
		if a.Limit() > high/2 {
			t.Errorf("the limit is %d after %d, though requests take twenty times as long", a.Limit(), high)
		}
		nothingHeld(t, e)
	})
}

func TestWatchAndHostState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := map[string]int{}
		e := New(Options{Subscribe: func(host string) { asked[host]++ }})
		defer e.Close()
		changed := e.Changed()
		if ready, err := e.HostState("reviews:80"); ready || err != nil || asked["reviews:80"] != 1 {
			t.Errorf("before policy came: %v, %v, asked %v", ready, err, asked)
		}
		s := one(t, cluster("c", "a:1"), nil)
		s.Hosts["bad:80"] = &snapshot.Host{Name: "bad:80", Err: errors.New("refused"), Used: new(atomic.Bool)}
		e.Install(s)
		select {
		case <-changed:
		default:
			t.Error("the change is not told")
		}
		if ready, err := e.HostState("reviews:80"); !ready || err != nil {
			t.Errorf("with policy: %v, %v", ready, err)
		}
		if ready, err := e.HostState("bad:80"); ready || err == nil {
			t.Errorf("with a policy in error: %v, %v", ready, err)
		}
		used := s.Hosts["reviews:80"].Used
		first, second := e.Watch("reviews:80"), e.Watch("reviews:80")
		kept := func() bool {
			used.Store(false)
			time.Sleep(watchInterval + time.Second)
			synctest.Wait()
			return used.Load()
		}
		if !kept() {
			t.Error("a watched host is not kept")
		}
		first()
		first()
		if !kept() {
			t.Error("a host that another still watches is not kept")
		}
		second()
		if kept() {
			t.Error("a host that nobody watches is kept")
		}
	})
}

func TestPreviousPriorities(t *testing.T) {
	config := cluster("c")
	config.Endpoints = lb.NewEndpoints([]lb.Endpoint{{Address: "a:1"}, {Address: "b:1", Priority: 1}, {Address: "c:1", Priority: 2}}, nil)
	retry := resilience.DefaultRetryPolicy(resilience.On5xx)
	retry.NumRetries, retry.PreviousPriorities = 3, 1
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(one(t, config, &retry))
	call := decided(t, e, nil)
	var try Try
	var got []string
	for range 3 {
		var l Lease
		if err := errors.Join(call.Begin(&try), try.Pick(&l, nil)); err != nil {
			t.Fatal(err)
		}
		got = append(got, l.Endpoint().Address)
		l.Release()
		try.Next(&resilience.Outcome{Status: 503, GRPC: -1})
	}
	call.Finish(&resilience.Outcome{Status: 503, GRPC: -1})
	if want := []string{"a:1", "b:1", "c:1"}; !slices.Equal(got, want) {
		t.Errorf("attempts at %v, want each at the next priority", got)
	}
}

func TestClaimsAreReadFromTheContextWhereTheyMatter(t *testing.T) {
	e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) {
		r.Match.Claims = []routing.ClaimMatch{{Path: []string{"group"}, Value: routing.Exact("admin", false)}}
	})
	c := newCall()
	var none *NoRouteError
	if err := e.Decide(context.Background(), c, "reviews", "http"); !errors.As(err, &none) {
		t.Errorf("without claims: %v", err)
	}
	c = newCall()
	c.Request.Claims = map[string]any{"group": []any{"user", "admin"}}
	if err := e.Decide(context.Background(), c, "reviews", "http"); err != nil {
		t.Errorf("with the claim: %v", err)
	}
}
