package outbound

import (
	"slices"
	"testing"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// begun returns a call's first try, with its endpoint.
func begun(t *testing.T, c *Call) (*Try, *Lease) {
	t.Helper()
	try, l := new(Try), new(Lease)
	if err := c.Begin(try); err != nil {
		t.Fatal(err)
	}
	if err := try.Pick(l, nil); err != nil {
		t.Fatal(err)
	}
	return try, l
}

// TestNothingToRepeat: what no other attempt would mend has none, whatever the
// conditions of policy.
func TestNothingToRepeat(t *testing.T) {
	policy := resilience.DefaultRetryPolicy(1<<15 - 1)
	policy.NumRetries = 100
	policy.StatusCodes = []uint32{200, 503}
	e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) { r.Retry = &policy })
	for _, status := range []int{0, 503} {
		for _, grpc := range []int{-1, 14} {
			for failure, want := range map[resilience.Failure]bool{
				resilience.Cancelled: false, resilience.RouteTimeout: false, resilience.LocalError: false, resilience.Overflow: false,
				resilience.ConnectFailure: true, resilience.Reset: true, resilience.PerTryTimeout: true,
			} {
				call := decided(t, e, nil)
				try, l := begun(t, call)
				o := resilience.Outcome{Status: status, GRPC: grpc, Failure: failure}
				if _, again := try.Next(&o); again != want {
					t.Errorf("%v, status %d, grpc-status %d: another attempt %t", failure, status, grpc, again)
				}
				l.Release()
				call.Finish(&o)
			}
		}
	}
}

// TestLoadIsWanted: by policies that go by it, while the endpoint is held.
func TestLoadIsWanted(t *testing.T) {
	for kind, want := range map[lb.Kind]bool{lb.RoundRobin: false, lb.LeastRequest: false, lb.ClientWeighted: true} {
		config := cluster("c", "a:1")
		config.LB.Kind = kind
		e := New(Options{Subscribe: func(string) {}})
		defer e.Close()
		e.Install(one(t, config, nil))
		call := decided(t, e, nil)
		_, l := begun(t, call)
		if l.WantsLoad() != want {
			t.Errorf("%v: wanted %t", kind, !want)
		}
		l.Release()
		if l.WantsLoad() {
			t.Errorf("%v: wanted of an endpoint that is not held", kind)
		}
		call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
	}
}

// TestFailuresAreCounted: for the status page, also where policy asks for nothing of it.
func TestFailuresAreCounted(t *testing.T) {
	e := routed(t, func(*snapshot.Host, *snapshot.Route) {})
	for _, o := range []resilience.Outcome{{Status: 200, GRPC: -1}, {Status: 404, GRPC: -1}, {Status: 503, GRPC: -1}, {GRPC: -1, Failure: resilience.Reset}} {
		call := decided(t, e, nil)
		_, l := begun(t, call)
		l.Report(&o)
		l.Release()
		call.Finish(&o)
	}
	for _, c := range e.Status().Clusters {
		if c.Name == "c" && (c.Endpoints[0].Requests != 4 || c.Endpoints[0].Failures != 2) {
			t.Errorf("%+v", c.Endpoints[0])
		}
	}
}

// TestShareOfCrossOriginRules: what they do not apply to goes on as if there were none.
func TestShareOfCrossOriginRules(t *testing.T) {
	for _, share := range []*routing.Fraction{nil, {}, &everything1} {
		e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) {
			r.CORS = &routing.CORS{Origins: []routing.StringMatch{routing.Exact("http://a", false)}, Methods: "GET", Enabled: share}
		})
		want := share == nil || share.PerMillion > 0
		call := decided(t, e, func(r *routing.Request) { r.Header["Origin"] = []string{"http://a"} })
		header := map[string][]string{}
		call.Incoming(nil, 200, header, routing.CanonicalHeaders)
		if got := header["Access-Control-Allow-Origin"]; (len(got) > 0) != want {
			t.Errorf("share %v: %q", share, got)
		}
		call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
		preflight := decided(t, e, func(r *routing.Request) {
			r.Method, r.Header["Origin"], r.Header["Access-Control-Request-Method"] = "OPTIONS", []string{"http://a"}, []string{"GET"}
		})
		if (preflight.Local() != nil) != want {
			t.Errorf("share %v: a preflight's answer is %v", share, preflight.Local())
		}
		preflight.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
	}
}

// TestPathOfNoText: a path that comes to nothing is none, so the request keeps
// its own and there is no original to name.
func TestPathOfNoText(t *testing.T) {
	for format, want := range map[string][]string{"%REQ(none)%": nil, "/new": {"/old?q"}} {
		f, err := routing.ParseFormat(format)
		if err != nil {
			t.Fatal(err)
		}
		e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) { r.Rewrite.PathFormat = &f })
		call := decided(t, e, func(r *routing.Request) { r.Path, r.RawQuery = "/old", "q" })
		try, l := begun(t, call)
		var out Outgoing
		try.Outgoing(l, &out)
		if got := out.Header["X-Envoy-Original-Path"]; !slices.Equal(got, want) || out.Path != "/old" && want == nil {
			t.Errorf("%s: sent %s, original %q", format, out.Path, got)
		}
		l.Release()
		call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
	}
}

// TestRequestsPayForRetries: into a budget of rates.
func TestRequestsPayForRetries(t *testing.T) {
	policy := resilience.DefaultRetryPolicy(resilience.On5xx)
	s := one(t, cluster("c", "a:1"), &policy)
	s.Clusters["c"].RetryBudget = &resilience.RetryBudget{Percent: 50, Burst: 1}
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(s)
	var got []bool
	for range 7 {
		call := decided(t, e, nil)
		try, l := begun(t, call)
		o := resilience.Outcome{Status: 503, GRPC: -1}
		_, again := try.Next(&o)
		got = append(got, again)
		l.Release()
		call.Finish(&o)
	}
	// One to begin with, and one for each two requests after it.
	if want := []bool{true, false, true, false, true, false, true}; !slices.Equal(got, want) {
		t.Errorf("retries %v, want %v", got, want)
	}
}
