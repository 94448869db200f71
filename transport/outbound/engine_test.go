package outbound

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

var unlimited = resilience.Limits{
	MaxConnections: resilience.NoLimit, MaxPendingRequests: resilience.NoLimit,
	MaxRequests: resilience.NoLimit, MaxRetries: resilience.NoLimit,
}

func cluster(name string, addresses ...string) *snapshot.Cluster {
	var all []lb.Endpoint
	for _, a := range addresses {
		all = append(all, lb.Endpoint{Address: a, Weight: 1})
	}
	return &snapshot.Cluster{Name: name, LB: lb.Policy{Kind: lb.RoundRobin}, Limits: unlimited, Endpoints: lb.NewEndpoints(all, nil)}
}

// one returns a snapshot with the host "reviews:80" on one cluster.
func one(t testing.TB, c *snapshot.Cluster, retry *resilience.RetryPolicy) *snapshot.Snapshot {
	t.Helper()
	w, err := routing.NewWeighted([]routing.WeightedCluster{{Name: c.Name, Weight: 1}})
	if err != nil {
		t.Fatal(err)
	}
	vh := &snapshot.VirtualHost{Routes: []snapshot.Route{{
		Name: "r", Match: routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix, Value: "/"}}, Clusters: w, Retry: retry,
	}}}
	return &snapshot.Snapshot{
		Hosts:    map[string]*snapshot.Host{"reviews:80": {Name: "reviews:80", VirtualHost: vh, Used: new(atomic.Bool)}},
		Clusters: map[string]*snapshot.Cluster{c.Name: c},
	}
}

func newCall() *Call {
	return &Call{Request: routing.Request{Method: "GET", Scheme: "http", Authority: "reviews", Path: "/"}}
}

// attempt makes one call of one attempt with the given status and returns the endpoint's address.
func attempt(t testing.TB, e *Engine, status int) string {
	t.Helper()
	c := newCall()
	if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
		t.Fatal(err)
	}
	var try Try
	if err := c.Begin(&try); err != nil {
		t.Fatal(err)
	}
	var l Lease
	if err := try.Pick(&l, nil); err != nil {
		t.Fatal(err)
	}
	o := resilience.Outcome{Status: status, GRPC: -1}
	address := l.Endpoint().Address
	l.Report(&o)
	l.Release()
	c.Finish(&o)
	return address
}

func TestHostKey(t *testing.T) {
	for _, c := range []struct{ authority, scheme, want string }{
		{"reviews", "http", "reviews:80"},
		{"reviews", "https", "reviews:443"},
		{"reviews:9080", "http", "reviews:9080"},
		{"Reviews.Default.:9080", "http", "reviews.default:9080"},
		{"[::1]", "http", "[::1]:80"},
		{"[::1]:8080", "http", "[::1]:8080"},
		{"127.0.0.1:8080", "http", "127.0.0.1:8080"},
		{"reviews:", "http", "reviews:80"},
	} {
		if got := HostKey(c.authority, c.scheme); got != c.want {
			t.Errorf("HostKey(%q, %q) = %q, want %q", c.authority, c.scheme, got, c.want)
		}
	}
}

func TestDecideWaitsForPolicy(t *testing.T) {
	t.Run("comes in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var asked string
			e := New(Options{Subscribe: func(host string) { asked = host }})
			defer e.Close()
			time.AfterFunc(3*time.Second, func() { e.Install(one(t, cluster("c", "a:1"), nil)) })
			began := time.Now()
			c := newCall()
			if err := e.Decide(t.Context(), c, "Reviews.", "http"); err != nil {
				t.Fatal(err)
			}
			if wait := c.Ready().Sub(c.began); wait != 3*time.Second {
				t.Errorf("ready %v after it began: time limits must count from when the policy was there", wait)
			}
			if waited := time.Since(began); waited != 3*time.Second || asked != "reviews:80" {
				t.Errorf("waited %v and asked for %q", waited, asked)
			}
		})
	})
	for _, c := range []struct {
		name     string
		deadline time.Duration // of the caller
		want     time.Duration
	}{
		{"policy wait", time.Minute, 15 * time.Second},
		{"caller's deadline", 2 * time.Second, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				trouble := errors.New("connection refused")
				e := New(Options{Subscribe: func(string) {}, Trouble: func() error { return trouble }})
				defer e.Close()
				ctx, cancel := context.WithTimeout(t.Context(), c.deadline)
				defer cancel()
				began := time.Now()
				err := e.Decide(ctx, newCall(), "reviews", "http")
				var notReady *NotReadyError
				if !errors.As(err, &notReady) || !errors.Is(err, trouble) || notReady.Host != "reviews:80" {
					t.Errorf("error %v, want a NotReadyError for reviews:80 that names the trouble", err)
				}
				if waited := time.Since(began); waited != c.want {
					t.Errorf("waited %v, want %v", waited, c.want)
				}
			})
		})
	}
	t.Run("closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := New(Options{Subscribe: func(string) {}})
			time.AfterFunc(time.Second, e.Close)
			if err := e.Decide(t.Context(), newCall(), "reviews", "http"); !errors.Is(err, ErrClosed) {
				t.Errorf("error %v, want ErrClosed", err)
			}
		})
	})
}

func TestHostsWithoutPolicy(t *testing.T) {
	refused := errors.New("a field is not supported")
	hosts := &snapshot.Snapshot{Hosts: map[string]*snapshot.Host{
		"bad:80":  {Name: "bad:80", Err: refused},
		"gone:80": {Name: "gone:80", Absent: true},
	}}
	external := func(host string) (*snapshot.Host, *snapshot.Cluster) {
		c := cluster("passthrough|"+host, host)
		return one(t, c, nil).Hosts["reviews:80"], c
	}
	for _, c := range []struct {
		name, host string
		external   func(string) (*snapshot.Host, *snapshot.Cluster)
		want       error // nil for success
	}{
		{"in error", "bad", external, refused},
		{"absent, passed", "gone", external, nil},
		{"absent, refused", "gone", nil, &NoRouteError{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := New(Options{Subscribe: func(string) {}, External: c.external})
			defer e.Close()
			e.Install(hosts)
			call := newCall()
			err := e.Decide(t.Context(), call, c.host, "http")
			var noRoute *NoRouteError
			switch {
			case c.want == nil && (err != nil || !call.Passes()):
				t.Errorf("error %v, passes %v", err, err == nil && call.Passes())
			case c.want != nil && (!errors.As(err, &noRoute) || c.want == refused && !errors.Is(err, refused)):
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestExternalHostsAreBounded(t *testing.T) {
	e := New(Options{External: func(host string) (*snapshot.Host, *snapshot.Cluster) {
		c := cluster("passthrough|"+host, host)
		return one(t, c, nil).Hosts["reviews:80"], c
	}})
	defer e.Close()
	for i := range 3 * maxExternal {
		if err := e.Decide(t.Context(), newCall(), fmt.Sprintf("h%d", i), "http"); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(e.external); n > maxExternal {
		t.Errorf("%d hosts are kept, want at most %d", n, maxExternal)
	}
	n := 0
	e.direct.Range(func(any, any) bool { n++; return true })
	if n > maxExternal {
		t.Errorf("%d spellings are kept, want at most %d", n, maxExternal)
	}
}

func TestEjectionAndReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := resilience.DefaultOutlier
		rule.Consecutive5xx = 3
		rule.MaxEjectionPercent = 100
		rule.BaseEjectionTime = 15 * time.Second
		config := cluster("c", "a:1", "b:1", "c:1")
		config.Outlier = &rule
		e := New(Options{Subscribe: func(string) {}})
		defer e.Close()
		s := one(t, config, nil)
		e.Install(s)
		seen := func() map[string]int {
			n := map[string]int{}
			for range 60 {
				n[attempt(t, e, 200)]++
			}
			return n
		}
		// "b" fails three times in a row; the others do not.
		for range 9 {
			c := newCall()
			if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
				t.Fatal(err)
			}
			var try Try
			if err := c.Begin(&try); err != nil {
				t.Fatal(err)
			}
			var l Lease
			if err := try.Pick(&l, nil); err != nil {
				t.Fatal(err)
			}
			o := resilience.Outcome{Status: 200, GRPC: -1}
			if l.Endpoint().Address == "b:1" {
				o.Status = 503
			}
			l.Report(&o)
			l.Release()
			c.Finish(&o)
		}
		if n := seen(); n["b:1"] != 0 || n["a:1"] != 30 || n["c:1"] != 30 {
			t.Fatalf("after three failures of b: %v", n)
		}
		// A new snapshot with another endpoint keeps the ejection.
		next := *config
		next.Endpoints = lb.NewEndpoints(append(config.Endpoints.All[:3:3], lb.Endpoint{Address: "d:1", Weight: 1}), nil)
		s2 := one(t, &next, nil)
		e.Install(s2)
		if n := seen(); n["b:1"] != 0 || n["d:1"] != 20 {
			t.Fatalf("after a snapshot with d: %v", n)
		}
		// Sweeps come every 10 s: the first that finds 15 s passed is at 20 s.
		time.Sleep(19 * time.Second)
		if n := seen(); n["b:1"] != 0 {
			t.Fatalf("b is back before its time: %v", n)
		}
		time.Sleep(2 * time.Second)
		if n := seen(); n["b:1"] != 15 {
			t.Fatalf("b is not back: %v", n)
		}
	})
}

func TestNextHonoursLimits(t *testing.T) {
	on, _ := resilience.ParseRetryOn("5xx")
	policy := resilience.DefaultRetryPolicy(on)
	policy.NumRetries = 2
	policy.AvoidPrevious, policy.SelectAttempts = true, 5
	o := resilience.Outcome{Status: 503, GRPC: -1}

	start := func(t *testing.T, e *Engine) (*Call, *Try) {
		t.Helper()
		c, try := newCall(), new(Try)
		if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
			t.Fatal(err)
		}
		if err := c.Begin(try); err != nil {
			t.Fatal(err)
		}
		return c, try
	}
	t.Run("attempts go to other endpoints and end", func(t *testing.T) {
		e := New(Options{Subscribe: func(string) {}})
		defer e.Close()
		e.Install(one(t, cluster("c", "a:1", "b:1", "c:1"), &policy))
		c, try := start(t, e)
		seen := map[string]bool{}
		for i := 0; ; i++ {
			var l Lease
			if err := try.Pick(&l, nil); err != nil {
				t.Fatal(err)
			}
			seen[l.Endpoint().Address] = true
			l.Release()
			if _, again := try.Next(&o); !again {
				break
			}
			if err := c.Begin(try); err != nil {
				t.Fatal(err)
			}
		}
		if c.Attempts() != 3 || len(seen) != 3 {
			t.Errorf("%d attempts at %v, want 3 at 3 endpoints", c.Attempts(), seen)
		}
		c.Finish(&o)
	})
	t.Run("an endpoint that was tried is chosen again only at the end", func(t *testing.T) {
		patient := policy
		patient.SelectAttempts, patient.NumRetries = 1000, 3
		config := cluster("c", "a:1", "b:1", "c:1", "d:1")
		config.LB.Kind = lb.Random
		e := New(Options{Subscribe: func(string) {}})
		defer e.Close()
		e.Install(one(t, config, &patient))
		for range 50 {
			c, try := start(t, e)
			seen := map[string]bool{}
			for range 4 {
				var l Lease
				if err := try.Pick(&l, nil); err != nil {
					t.Fatal(err)
				}
				seen[l.Endpoint().Address] = true
				l.Release()
				if _, again := try.Next(&o); again {
					if err := c.Begin(try); err != nil {
						t.Fatal(err)
					}
				}
			}
			c.Finish(&o)
			if len(seen) != 4 {
				t.Fatalf("four attempts at %v", seen)
			}
		}
	})
	t.Run("each pause is that of its number", func(t *testing.T) {
		const draw = 90_000_000 // ns: within the bounds of the third pause, not of the first two
		e := New(Options{Subscribe: func(string) {}, Draw: func() uint64 { return draw }})
		defer e.Close()
		e.Install(one(t, cluster("c", "a:1"), &policy))
		c, try := start(t, e)
		defer c.Finish(&o)
		for n := 1; n <= int(policy.NumRetries); n++ {
			want, _ := policy.Delay(&o, n, time.Now(), draw)
			if other, _ := policy.Delay(&o, n+1, time.Now(), draw); other == want {
				t.Fatalf("the pauses %d and %d are both %v, that shows nothing", n, n+1, want)
			}
			if wait, again := try.Next(&o); wait != want || !again {
				t.Errorf("pause %d is %v, %t, want %v", n, wait, again, want)
			}
			if err := c.Begin(try); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, c := range []struct {
		name   string
		change func(*snapshot.Cluster)
		want   int // of five calls that fail side by side, how many may retry
	}{
		{"max_retries", func(c *snapshot.Cluster) { c.Limits.MaxRetries = 3 }, 3},
		{"budget", func(c *snapshot.Cluster) { c.RetryBudget = &resilience.RetryBudget{Percent: 40} }, 2},
		{"no limit", func(*snapshot.Cluster) {}, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := cluster("c", "a:1")
			c.change(config)
			e := New(Options{Subscribe: func(string) {}})
			defer e.Close()
			e.Install(one(t, config, &policy))
			var calls []*Call
			var tries []*Try
			for range 5 {
				call, try := start(t, e)
				calls, tries = append(calls, call), append(tries, try)
			}
			n := 0
			for _, try := range tries {
				if _, again := try.Next(&o); again {
					n++
				}
			}
			if n != c.want {
				t.Errorf("%d of 5 may retry, want %d", n, c.want)
			}
			for _, call := range calls {
				call.Finish(&o)
			}
			live := e.view.Load().clusters["c"]
			if live.requests.Load() != 0 || live.retries.Load() != 0 {
				t.Errorf("%d requests and %d retries are still counted", live.requests.Load(), live.retries.Load())
			}
		})
	}
}

func TestMaxRequests(t *testing.T) {
	config := cluster("c", "a:1")
	config.Limits.MaxRequests = 1
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(one(t, config, nil))
	first, second := newCall(), newCall()
	for _, c := range []*Call{first, second} {
		if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Begin(new(Try)); err != nil {
		t.Fatal(err)
	}
	var limit *LimitError
	if err := second.Begin(new(Try)); !errors.As(err, &limit) || limit.Limit != "max_requests" || limit.Cluster != "c" {
		t.Errorf("error %v, want max_requests of c", err)
	}
	second.Finish(&resilience.Outcome{})
	first.Finish(&resilience.Outcome{})
	if address := attempt(t, e, 200); address != "a:1" {
		t.Errorf("went to %q after the first had finished", address)
	}
}

func TestDropOverload(t *testing.T) {
	config := cluster("c", "a:1")
	config.Endpoints.Drops = []lb.Drop{{Category: "all", PerMillion: 1_000_000}}
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(one(t, config, nil))
	c := newCall()
	if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
		t.Fatal(err)
	}
	var limit *LimitError
	if err := c.Begin(new(Try)); !errors.As(err, &limit) || limit.Limit != "drop_overload" {
		t.Errorf("error %v, want drop_overload", err)
	}
}

func TestNoHealthyEndpoint(t *testing.T) {
	config := cluster("c")
	config.Err = errors.New("no endpoints came")
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(one(t, config, nil))
	c := newCall()
	if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
		t.Fatal(err)
	}
	var try Try
	if err := c.Begin(&try); err != nil {
		t.Fatal(err)
	}
	var l Lease
	var none *NoHealthyEndpointError
	if err := try.Pick(&l, nil); !errors.As(err, &none) || !errors.Is(err, config.Err) {
		t.Errorf("error %v", err)
	}
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := cluster("c", "a:1")
		config.Breaker = &resilience.Breaker{ConsecutiveFailures: 3, OpenFor: 5 * time.Second, HalfOpenRequests: 1, ProbeTimeout: time.Second}
		e := New(Options{Subscribe: func(string) {}})
		defer e.Close()
		e.Install(one(t, config, nil))
		begin := func() (*Call, error) {
			c := newCall()
			if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
				t.Fatal(err)
			}
			return c, c.Begin(new(Try))
		}
		finish := func(o resilience.Outcome) {
			t.Helper()
			c, err := begin()
			if err != nil {
				t.Fatal(err)
			}
			c.Finish(&o)
		}
		// The caller's cancellations say nothing about the destination.
		for range 10 {
			finish(resilience.Outcome{Failure: resilience.Cancelled, GRPC: -1})
		}
		for range 3 {
			finish(resilience.Outcome{Status: 500, GRPC: -1})
		}
		open := func() {
			t.Helper()
			c, err := begin()
			var breaker *BreakerOpenError
			if !errors.As(err, &breaker) {
				t.Fatalf("error %v, want BreakerOpenError", err)
			}
			c.Finish(&resilience.Outcome{Failure: resilience.Overflow})
		}
		open()
		time.Sleep(5*time.Second + 1)
		// A probe that hangs counts as failed after its time.
		probe, err := begin()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second + 1)
		open()
		probe.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
		time.Sleep(5 * time.Second)
		finish(resilience.Outcome{Status: 200, GRPC: -1})
		finish(resilience.Outcome{Status: 200, GRPC: -1})
	})
}

// ejections is an observer that adds up what it is told of ejections.
type ejections struct {
	Observer
	now atomic.Int32
}

func (o *ejections) Leg(LegInfo) any                                   { return nil }
func (o *ejections) CallEnd(*Call, *resilience.Outcome, time.Duration) {}
func (o *ejections) Ejection(cluster, endpoint, reason string, ejected bool) {
	if ejected {
		o.now.Add(1)
	} else {
		o.now.Add(-1)
	}
}

// TestEjectionsAreToldToTheirEnd: what observers count as ejected comes back to
// zero, however an ejection ends.
func TestEjectionsAreToldToTheirEnd(t *testing.T) {
	rule := resilience.DefaultOutlier
	rule.Consecutive5xx, rule.MaxEjectionPercent = 1, 100
	config := cluster("c", "a:1", "b:1")
	config.Outlier = &rule
	for name, end := range map[string]func(*Engine){
		"the endpoint leaves": func(e *Engine) {
			next := *config
			next.Endpoints = lb.NewEndpoints([]lb.Endpoint{{Address: "z:1", Weight: 1}}, nil)
			e.Install(one(t, &next, nil))
		},
		"the rule goes": func(e *Engine) {
			next := *config
			next.Outlier = nil
			e.Install(one(t, &next, nil))
		},
		"the cluster goes":  func(e *Engine) { e.Install(one(t, cluster("other", "a:1"), nil)) },
		"the engine closes": func(e *Engine) { e.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			o := &ejections{}
			e := New(Options{Subscribe: func(string) {}, Observer: o})
			defer e.Close()
			e.Install(one(t, config, nil))
			attempt(t, e, 503)
			if n := o.now.Load(); n != 1 {
				t.Fatalf("%d ejected, want 1", n)
			}
			end(e)
			if n := o.now.Load(); n != 0 {
				t.Errorf("%d still counted as ejected", n)
			}
		})
	}
}

// TestSnapshotSwapUnderLoad swaps snapshots while calls run: each call sees one
// whole policy, and every count returns to zero.
func TestSnapshotSwapUnderLoad(t *testing.T) {
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(one(t, cluster("c0", "a:1"), nil))
	done := make(chan struct{})
	errs := make(chan error, 8)
	for range 4 {
		go func() {
			for {
				select {
				case <-done:
					errs <- nil
					return
				default:
				}
				c := newCall()
				if err := e.Decide(context.Background(), c, "reviews", "http"); err != nil {
					errs <- err
					return
				}
				var try Try
				if err := c.Begin(&try); err != nil {
					errs <- err
					return
				}
				var l Lease
				if err := try.Pick(&l, nil); err != nil {
					errs <- err
					return
				}
				o := resilience.Outcome{Status: 200, GRPC: -1}
				l.Report(&o)
				l.Release()
				c.Finish(&o)
			}
		}()
	}
	for i := range 500 {
		e.Install(one(t, cluster(fmt.Sprintf("c%d", i%3), "a:1", fmt.Sprintf("b:%d", i)), nil))
	}
	close(done)
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, c := range e.Status().Clusters {
		if c.Requests != 0 {
			t.Errorf("%s: %d requests are still counted", c.Name, c.Requests)
		}
		for _, ep := range c.Endpoints {
			if ep.Active != 0 {
				t.Errorf("%s %s: %d active", c.Name, ep.Address, ep.Active)
			}
		}
	}
}
