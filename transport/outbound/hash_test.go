package outbound

import (
	"errors"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// hashing is routed with a cluster of the kind.
func hashing(t testing.TB, kind lb.Kind, change func(*snapshot.Route)) *Engine {
	t.Helper()
	c := cluster("c", "a:1")
	c.LB = lb.Policy{Kind: kind}
	if kind == lb.RingHash {
		c.LB.Ring.MinSize, c.LB.Ring.MaxSize = 1, 8
	}
	s := one(t, c, nil)
	change(&s.Hosts["reviews:80"].VirtualHost.Routes[0])
	e := New(Options{Subscribe: func(string) {}, Hostname: "here"})
	t.Cleanup(e.Close)
	e.Install(s)
	return e
}

func TestHashAndCookie(t *testing.T) {
	added, err := routing.NewHeaderChange("set-cookie", "added", routing.AppendOrAdd, false)
	if err != nil {
		t.Fatal(err)
	}
	policy := func(r *snapshot.Route) {
		r.Hash = []routing.HashPolicy{{Kind: routing.HashHeader, Header: routing.NewHeaderName("x-user")}, {Kind: routing.HashCookie, Cookie: routing.HashCookieSpec{Name: "s", Issue: true}}}
		r.RequestHeaders = []routing.HeaderChanges{{Set: []routing.HeaderChange{set("x-user", "%REQ(x-id)%")}}}
		r.ResponseHeaders = []routing.HeaderChanges{{Set: []routing.HeaderChange{added}}}
	}
	e := hashing(t, lb.RingHash, policy)
	hash := func(id string) uint64 {
		call := decided(t, e, func(r *routing.Request) {
			r.Header["X-Id"], r.Header["Cookie"] = []string{id}, []string{"s=1"}
		})
		if !call.hashed {
			t.Fatal("there is no hash")
		}
		return call.hash
	}
	if a, again, b := hash("a"), hash("a"), hash("b"); a != again || a == b {
		t.Error("the hash is not of the request as it goes out")
	}
	for _, c := range []struct {
		kind lb.Kind
		want int // Set-Cookie: the server's, the one that is issued, the one that is added
	}{{lb.RingHash, 3}, {lb.Maglev, 3}, {lb.RoundRobin, 2}, {lb.LeastRequest, 2}} {
		call := decided(t, hashing(t, c.kind, policy), nil)
		response := map[string][]string{"Set-Cookie": {"server"}}
		call.Incoming(nil, 200, response, routing.CanonicalHeaders)
		got := response["Set-Cookie"]
		if len(got) != c.want || got[0] != "server" || got[len(got)-1] != "added" || call.hashed != (c.want == 3) {
			t.Errorf("kind %d: the response has %q, a hash %t", c.kind, got, call.hashed)
		}
	}
}

// TestCookiesDiffer: callers without a cookie are told apart from then on.
func TestCookiesDiffer(t *testing.T) {
	e := hashing(t, lb.RingHash, func(r *snapshot.Route) {
		r.Hash = []routing.HashPolicy{{Kind: routing.HashCookie, Cookie: routing.HashCookieSpec{Name: "s", Issue: true}}}
	})
	issued := map[string]bool{}
	for range 20 {
		call := decided(t, e, nil)
		response := map[string][]string{}
		call.Incoming(nil, 200, response, routing.CanonicalHeaders)
		for _, v := range response["Set-Cookie"] {
			issued[v] = true
		}
	}
	if len(issued) != 20 {
		t.Errorf("20 callers got %d cookies", len(issued))
	}
}

// TestHashIsOfWhatGoesOut draws routes and compares the hash with that of a
// request to which all changes were made, whether or not they matter to the hash.
func TestHashIsOfWhatGoesOut(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	names := []string{"x-a", "x-b", "cookie", "x-envoy-original-path", "x-envoy-max-retries", "x-forwarded-host", ":path", ":authority"}
	pick := func(all []string) string { return all[r.IntN(len(all))] }
	skipped := 0
	for range 3000 {
		var route *snapshot.Route
		e := hashing(t, lb.Maglev, func(to *snapshot.Route) {
			route = to
			for range 1 + r.IntN(2) {
				p := routing.HashPolicy{Kind: routing.HashKind(r.IntN(5)), Header: routing.NewHeaderName(pick(names)), Query: "q", Cookie: routing.HashCookieSpec{Name: "s"}}
				to.Hash = append(to.Hash, p)
			}
			var changes routing.HeaderChanges
			for range r.IntN(3) {
				if r.IntN(3) == 0 {
					changes.Remove = append(changes.Remove, routing.NewHeaderName(pick(names[:3])))
				} else {
					changes.Set = append(changes.Set, set(pick(names[:3]), pick([]string{"s=set", "%REQ(x-id)%", "%PROTOCOL%"})))
				}
			}
			if r.IntN(2) == 0 {
				to.RequestHeaders = []routing.HeaderChanges{changes}
			} else {
				to.Legs = []snapshot.Leg{{RequestHeaders: changes}}
			}
			switch r.IntN(4) {
			case 0:
				to.Rewrite.HasPrefix, to.Rewrite.Prefix = true, pick([]string{"/new", "/new?q=3"})
			case 1:
				to.Rewrite.Host, to.Rewrite.AppendForwardedHost = "other", true
			}
		})
		call := decided(t, e, func(q *routing.Request) {
			q.Path, q.RawQuery = "/old", "q=1"
			q.Header["X-Id"] = []string{"7"}
			for _, name := range []string{"X-A", "X-B", "Cookie", "X-Envoy-Original-Path", "X-Envoy-Max-Retries"} {
				if r.IntN(2) == 0 {
					q.Header[name] = []string{pick([]string{"1", "2", "s=3"})}
				}
			}
		})
		sent := call.Request
		if call.route.outgoing {
			sent.Header = call.copyHeader()
			call.rewrite(1, nil, &sent)
		}
		if !call.route.rehash {
			skipped++
		}
		if want, ok, _ := routing.HashOf(route.Hash, &sent, call.engine.options.Source); call.hash != want || call.hashed != ok {
			t.Fatalf("hash %x (%t) instead of %x (%t) for %+v", call.hash, call.hashed, want, ok, route)
		}
		e.Close()
	}
	if skipped < 500 || skipped > 2500 {
		t.Errorf("%d of 3000 routes need no changes for the hash, that shows little", skipped)
	}
}

// TestRetriableRequestIsAsItWentOut: what the policy asks of requests that may
// be repeated, it asks of the request that was sent.
func TestRetriableRequestIsAsItWentOut(t *testing.T) {
	for _, c := range []struct {
		name   string
		change routing.HeaderChanges
		header map[string][]string
		want   bool
	}{
		{"set by policy", routing.HeaderChanges{Set: []routing.HeaderChange{set("x-again", "yes")}}, nil, true},
		{"removed by policy", routing.HeaderChanges{Remove: []routing.HeaderName{routing.NewHeaderName("x-again")}}, map[string][]string{"X-Again": {"yes"}}, false},
		{"the caller's", routing.HeaderChanges{}, map[string][]string{"X-Again": {"yes"}}, true},
		{"nobody's", routing.HeaderChanges{}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			retry := resilience.DefaultRetryPolicy(resilience.On5xx)
			retry.RequestHeaders = []routing.HeaderMatch{{Name: routing.NewHeaderName("x-again"), Kind: routing.HeaderPresent, Present: true}}
			e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) {
				r.Retry, r.RequestHeaders = &retry, []routing.HeaderChanges{c.change}
			})
			call := decided(t, e, func(r *routing.Request) { maps.Copy(r.Header, c.header) })
			var try Try
			var l Lease
			var out Outgoing
			if err := errors.Join(call.Begin(&try), try.Pick(&l, nil)); err != nil {
				t.Fatal(err)
			}
			try.Outgoing(&l, &out)
			if _, again := try.Next(&resilience.Outcome{Status: 503, GRPC: -1}); again != c.want {
				t.Errorf("repeated: %t", again)
			}
		})
	}
}
