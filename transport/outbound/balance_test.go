package outbound

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// live returns a cluster of an engine whose only policy it is.
func live(t testing.TB, o Options, config *snapshot.Cluster, more ...*snapshot.Cluster) (*Engine, *Cluster) {
	t.Helper()
	e := New(o)
	t.Cleanup(e.Close)
	s := &snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{config.Name: config}}
	for _, c := range more {
		s.Clusters[c.Name] = c
	}
	e.Install(s)
	return e, e.view.Load().clusters[config.Name]
}

// with returns a copy of a cluster's configuration with other endpoints.
func with(config *snapshot.Cluster, all []lb.Endpoint) *snapshot.Cluster {
	next := *config
	eps := *config.Endpoints
	eps.All = all
	next.Endpoints = &eps
	return &next
}

// once picks, reports the status and releases; "" where nothing is usable.
func once(c *Cluster, q pickQuery, status int, took time.Duration) string {
	q.Draw = c.engine.draw()
	e, s, err := c.pick(&q)
	if err != nil {
		return ""
	}
	s.cluster.report(s, e, &resilience.Outcome{Status: status, GRPC: -1}, time.Since(s.cluster.epoch), took)
	e.release()
	return e.Address
}

func spread(c *Cluster, q pickQuery, n int) map[string]int {
	out := map[string]int{}
	for range n {
		out[once(c, q, 200, 0)]++
	}
	return out
}

func many(n int) []lb.Endpoint {
	all := make([]lb.Endpoint, n)
	for i := range all {
		all[i] = lb.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255), Weight: 1}
	}
	return all
}

// TestInstallCostsWhatItTouches: a new set in which one endpoint is another
// allocates little more among 10,000 endpoints than among 1,000.
func TestInstallCostsWhatItTouches(t *testing.T) {
	for name, change := range map[string]func(all []lb.Endpoint, i int) []lb.Endpoint{
		"weight":   func(all []lb.Endpoint, i int) []lb.Endpoint { all[i].Weight = uint32(i + 2); return all },
		"health":   func(all []lb.Endpoint, i int) []lb.Endpoint { all[i].Health = lb.Unhealthy; return all },
		"address":  func(all []lb.Endpoint, i int) []lb.Endpoint { all[i].Address = fmt.Sprint("new", i); return all },
		"one goes": func(all []lb.Endpoint, i int) []lb.Endpoint { return slices.Delete(all, i, i+1) },
		"nothing":  func(all []lb.Endpoint, i int) []lb.Endpoint { return all },
	} {
		for _, size := range []uint32{0, 1<<32 - 1} { // a client's own endpoints, and all of them
			cost := func(n int) uint64 {
				config := cluster("c")
				config.LB = lb.Policy{Kind: lb.LeastRequest, Subset: size}
				config.Endpoints = lb.NewEndpoints(many(n), nil)
				e, _ := live(t, Options{Client: "me"}, config)
				const rounds = 20
				var sets []*snapshot.Snapshot
				all := config.Endpoints.All
				for i := range rounds {
					all = change(slices.Clone(all), 40*i+3)
					sets = append(sets, &snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(config, all)}})
				}
				e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(config, config.Endpoints.All)}})
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for _, s := range sets {
					e.Install(s)
				}
				runtime.ReadMemStats(&after)
				return (after.TotalAlloc - before.TotalAlloc) / rounds
			}
			small, large := cost(1000), cost(10000)
			t.Logf("%s, subset %d: %d bytes of 1,000, %d of 10,000", name, size, small, large)
			if large > 2*small || large > 32<<10 {
				t.Errorf("%s, subset %d: a change allocates %d bytes among 1,000 endpoints and %d among 10,000", name, size, small, large)
			}
		}
	}
}

// TestSwapsDropNoRequest picks all the time while endpoints come, go and change.
func TestSwapsDropNoRequest(t *testing.T) {
	for _, kind := range []lb.Kind{lb.LeastRequest, lb.RoundRobin, lb.Maglev, lb.PeakEWMA, lb.ClientWeighted} {
		config := cluster("c")
		config.LB = lb.Policy{Kind: kind, Subset: 1<<32 - 1, Table: lb.Table{Size: 1021}}
		config.Outlier = outlierRule()
		all := many(500)
		config.Endpoints = lb.NewEndpoints(all, nil)
		e, c := live(t, Options{}, config)
		var stop atomic.Bool
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i := 0; !stop.Load(); i++ {
					q := pickQuery{Draw: e.draw(), Hash: e.draw(), HasHash: true}
					end, s, err := c.pick(&q)
					if err != nil || end == nil {
						t.Errorf("kind %d: %v", kind, err)
						return
					}
					status := 200
					if i%50 == 0 {
						status = 503
					}
					s.cluster.report(s, end, &resilience.Outcome{Status: status, GRPC: -1, Load: &lb.LoadReport{CPU: .5, QPS: 10}}, time.Since(s.cluster.epoch), time.Millisecond)
					end.release()
				}
			})
		}
		for i := range 60 {
			next := slices.Clone(all[i : len(all)-i%7])
			next[i%len(next)].Health = lb.Draining
			next[(i*7)%len(next)].Weight = uint32(i + 1)
			e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(config, next)}})
		}
		stop.Store(true)
		wg.Wait()
		c.current.Load().slots.all(func(end *Endpoint) {
			if n := end.active.Load(); n != 0 {
				t.Errorf("kind %d: %d requests are still counted at %s", kind, n, end.Address)
			}
		})
	}
}

func outlierRule() *resilience.Outlier {
	o := resilience.DefaultOutlier
	o.MaxEjectionPercent = 30
	return &o
}

// TestStateStaysByAddress: what is known of an address outlives snapshots, also
// where it stands elsewhere in the list; an address that has left begins anew.
func TestStateStaysByAddress(t *testing.T) {
	config := cluster("c", "a", "b", "c")
	e, c := live(t, Options{}, config)
	known := maps.Clone(c.known)
	known["b"].active.Store(7)
	install := func(addresses ...string) {
		var all []lb.Endpoint
		for _, a := range addresses {
			all = append(all, lb.Endpoint{Address: a, Weight: 1})
		}
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(config, all)}})
	}
	install("c", "b", "d")
	if c.known["b"] != known["b"] || c.known["c"] != known["c"] || known["b"].Gone() || !known["a"].Gone() || c.known["a"] != nil {
		t.Fatalf("known are %v", c.known)
	}
	install("a", "b")
	if c.known["a"] == known["a"] || c.known["b"].active.Load() != 7 || !known["c"].Gone() {
		t.Error("a came back as it was, or b did not stay")
	}
	if c.known["d"] != nil || len(c.known) != 2 || len(c.free) != int(c.count)-2 {
		t.Errorf("%d known, %d of %d slots free", len(c.known), len(c.free), c.count)
	}
	// One address twice is one endpoint.
	install("a", "a", "b")
	if got := spread(c, pickQuery{}, 100); got["a"] != 50 || got["b"] != 50 {
		t.Errorf("%v", got)
	}
	e.Close()
	if !c.known["a"].Gone() {
		t.Error("not gone after the end")
	}
}

func TestAvoidOmitAndSkip(t *testing.T) {
	config := cluster("c", "a", "b", "c")
	config.Endpoints.All[0].Metadata = map[string]string{"canary": "true"}
	_, c := live(t, Options{}, config)
	a, b := c.known["a"], c.known["b"]
	for name, q := range map[string]struct {
		q    pickQuery
		want []string
	}{
		"avoid":              {pickQuery{Avoid: []*Endpoint{a}, SelectAttempts: 20}, []string{"b", "c"}},
		"avoid all":          {pickQuery{Avoid: []*Endpoint{a, b, c.known["c"]}, SelectAttempts: 4}, []string{"a", "b", "c"}},
		"omit":               {pickQuery{Omit: map[string]string{"canary": "true"}, SelectAttempts: 20}, []string{"b", "c"}},
		"skip":               {pickQuery{Skip: func(e *Endpoint) bool { return e != b }}, []string{"b"}},
		"skip beats avoid":   {pickQuery{Skip: func(e *Endpoint) bool { return e != b }, Avoid: []*Endpoint{b}, SelectAttempts: 3}, []string{"b"}},
		"skip everything":    {pickQuery{Skip: func(*Endpoint) bool { return true }}, []string{""}},
		"avoid without luck": {pickQuery{Avoid: []*Endpoint{a}}, []string{"a", "b", "c"}},
	} {
		if got := slices.Sorted(maps.Keys(spread(c, q.q, 300))); !slices.Equal(got, q.want) {
			t.Errorf("%s: %v, want %v", name, got, q.want)
		}
	}
	if n := c.known["a"].active.Load() + b.active.Load(); n != 0 {
		t.Errorf("%d requests stay counted", n)
	}
}

// TestSkipGoesDownThePriorities: gRPC has endpoints that policy calls healthy and
// that it can not connect to.
func TestSkipGoesDownThePriorities(t *testing.T) {
	config := cluster("c", "a", "b")
	config.Endpoints.All[1].Priority = 1
	_, c := live(t, Options{}, config)
	q := pickQuery{Skip: func(e *Endpoint) bool { return e.Address == "a" }}
	e, _, err := c.pick(&q)
	if err != nil || e.Address != "b" || q.Priority != 1 {
		t.Errorf("%v, priority %d, %v", e, q.Priority, err)
	}
}

func TestSubsetsOfMetadata(t *testing.T) {
	config := cluster("c", "a", "b", "c", "d")
	for i, version := range []string{"1", "1", "2", "2"} {
		config.Endpoints.All[i].Metadata = map[string]string{"version": version, "stage": []string{"prod", "dev"}[i%2]}
	}
	config.LB.Subsets = &lb.Subsets{
		Fallback: lb.AnyEndpoint, Default: map[string]string{"stage": "prod"},
		Selectors: []lb.SubsetSelector{
			{Keys: []string{"version"}, Fallback: lb.UseClusterFallback},
			{Keys: []string{"stage", "version"}, Fallback: lb.NoFallback},
			{Keys: []string{"stage"}, Fallback: lb.DefaultSubset},
		},
	}
	e, c := live(t, Options{}, config)
	check := func(name string, want map[string]string, addresses ...string) {
		t.Helper()
		if got := slices.Sorted(maps.Keys(spread(c, pickQuery{Subset: want}, 100))); !slices.Equal(got, addresses) {
			t.Errorf("%s: %v, want %v", name, got, addresses)
		}
	}
	check("one key", map[string]string{"version": "1"}, "a", "b")
	check("two keys", map[string]string{"version": "1", "stage": "dev"}, "b")
	check("no such subset, the cluster's fallback", map[string]string{"version": "3"}, "a", "b", "c", "d")
	check("no such subset, no fallback", map[string]string{"version": "3", "stage": "dev"}, "")
	check("no such subset, the default one", map[string]string{"stage": "test"}, "a", "c")
	check("nothing asked for", nil, "a", "b", "c", "d")
	check("no such selector", map[string]string{"x": "y"}, "a", "b", "c", "d")
	// Subsets follow the endpoints.
	all := slices.Clone(config.Endpoints.All)
	all[0].Metadata = map[string]string{"version": "3"}
	all[1].Health = lb.Unhealthy
	e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(config, append(all, lb.Endpoint{Address: "e", Weight: 1, Metadata: map[string]string{"version": "1"}}))}})
	check("changed", map[string]string{"version": "1"}, "e")
	check("changed into", map[string]string{"version": "3"}, "a")
	q := pickQuery{Subset: map[string]string{"version": "2"}}
	if n := testing.AllocsPerRun(100, func() { once(c, q, 200, 0) }); n > 1 {
		t.Errorf("a pick in a subset allocates %v times", n)
	}
}

func TestClientSubset(t *testing.T) {
	config := cluster("c")
	config.Endpoints = lb.NewEndpoints(many(1000), nil)
	chosen := func(client string, p lb.Policy) map[string]*Endpoint {
		other := *config
		other.LB = p
		_, c := live(t, Options{Client: client}, &other)
		return c.known
	}
	a, again, b := chosen("a", lb.Policy{}), chosen("a", lb.Policy{}), chosen("b", lb.Policy{})
	if len(a) != lb.DefaultSubsetSize || len(b) != len(a) {
		t.Errorf("%d and %d endpoints are used, want %d", len(a), len(b), lb.DefaultSubsetSize)
	}
	common := 0
	for address := range a {
		if again[address] == nil {
			t.Errorf("%s is used once and not the next time", address)
		}
		if b[address] != nil {
			common++
		}
	}
	if common > 40 {
		t.Errorf("two clients have %d of 100 in common", common)
	}
	if n := len(chosen("a", lb.Policy{Subset: 7})); n != 7 {
		t.Errorf("%d, want 7", n)
	}
	if n := len(chosen("a", lb.Policy{Kind: lb.RingHash})); n != 1000 {
		t.Errorf("ring hash uses %d of 1000", n)
	}
}

func TestAggregate(t *testing.T) {
	first, second := cluster("first", "a1", "a2"), cluster("second", "b1")
	first.Endpoints.All[1].Priority = 1
	both := cluster("both")
	both.Discovery, both.Underlying = snapshot.Aggregate, []string{"first", "missing", "second"}
	both.LB.PanicThreshold = 50
	e, c := live(t, Options{}, both, first, second)
	install := func(one, two, three lb.Health) {
		a, b := slices.Clone(first.Endpoints.All), slices.Clone(second.Endpoints.All)
		a[0].Health, a[1].Health, b[0].Health = one, two, three
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"both": both, "first": with(first, a), "second": with(second, b)}})
	}
	for _, row := range []struct {
		health [3]lb.Health
		want   string
	}{
		{[3]lb.Health{lb.Healthy, lb.Healthy, lb.Healthy}, "a1"},
		{[3]lb.Health{lb.Unhealthy, lb.Healthy, lb.Healthy}, "a2"},
		{[3]lb.Health{lb.Unhealthy, lb.Unhealthy, lb.Healthy}, "b1"},
		{[3]lb.Health{lb.Degraded, lb.Unhealthy, lb.Healthy}, "b1"},
		{[3]lb.Health{lb.Degraded, lb.Unhealthy, lb.Unhealthy}, "a1"},
		{[3]lb.Health{lb.Unhealthy, lb.Unhealthy, lb.Unhealthy}, ""},
	} {
		install(row.health[0], row.health[1], row.health[2])
		if got := spread(c, pickQuery{}, 50); len(got) != 1 || got[row.want] != 50 {
			t.Errorf("%v: %v, want %q", row.health, got, row.want)
		}
	}
	install(lb.Healthy, lb.Healthy, lb.Healthy)
	// The clusters under it are the same that routes may name: live state is shared.
	q := pickQuery{}
	end, s, err := c.pick(&q)
	if err != nil || s.cluster != e.view.Load().clusters["first"] || s.cluster.known["a1"] != end {
		t.Fatalf("%v of %s, %v", end, s.cluster.name, err)
	}
	end.release()
	q = pickQuery{Skip: func(e *Endpoint) bool { return e.Address != "b1" }}
	if end, _, err := c.pick(&q); err != nil || end.Address != "b1" || q.Priority != 2 {
		t.Errorf("%v, priority %d: %v", end, q.Priority, err)
	}
	q = pickQuery{Excluded: 1}
	if end, _, err := c.pick(&q); err != nil || end.Address != "a2" || q.Priority != 1 {
		t.Errorf("%v, priority %d: %v", end, q.Priority, err)
	}
	q = pickQuery{Skip: func(*Endpoint) bool { return true }}
	var none *NoHealthyEndpointError
	if _, _, err := c.pick(&q); !errors.As(err, &none) || none.Endpoints != 3 {
		t.Errorf("error %v", err)
	}
}

// TestPicksAllocateNothing beyond what a policy needs.
func TestPicksAllocateNothing(t *testing.T) {
	for _, kind := range []lb.Kind{lb.LeastRequest, lb.RoundRobin, lb.Random, lb.RingHash, lb.Maglev, lb.PeakEWMA, lb.ClientWeighted} {
		config := cluster("c", "a", "b", "c")
		config.LB.Kind = kind
		_, c := live(t, Options{}, config)
		var q pickQuery
		if n := testing.AllocsPerRun(200, func() {
			q = pickQuery{Draw: 7, Hash: 9, HasHash: true}
			e, _, _ := c.pick(&q)
			e.release()
		}); n > 0 {
			t.Errorf("kind %d: a pick allocates %v times", kind, n)
		}
	}
}

func TestClientWeightedCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := cluster("c", "a", "b", "c")
		config.LB = lb.Policy{Kind: lb.ClientWeighted, Client: lb.ClientWeights{Blackout: 10 * time.Second, Expiration: time.Minute}}
		e, c := live(t, Options{}, config)
		defer e.Close()
		cpu := map[string]float64{"a": .25, "b": .5, "c": 1}
		report := func() {
			for address, end := range c.known {
				c.reportLoad(end, &lb.LoadReport{CPU: cpu[address], QPS: 100})
			}
		}
		shares := func(name string, a, b, c3 int) {
			t.Helper()
			once(c, pickQuery{}, 200, 0) // takes the weights of now
			got := spread(c, pickQuery{}, 7000)
			for address, want := range map[string]int{"a": a, "b": b, "c": c3} {
				if n := got[address]; n < want-20 || n > want+20 {
					t.Errorf("%s: %v, want %d of %s", name, got, want, address)
				}
			}
		}
		report()
		shares("in the blackout", 2333, 2333, 2333)
		time.Sleep(11 * time.Second)
		report()
		shares("by what they report", 4000, 2000, 1000)
		time.Sleep(70 * time.Second)
		shares("expired", 2333, 2333, 2333)
	})
}

func TestSlowStartOfACluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := cluster("c", "a", "b")
		config.LB.SlowStart = &lb.SlowStart{Window: 60 * time.Second, Aggression: 1, MinWeight: 10}
		e, c := live(t, Options{Draw: rand.New(rand.NewPCG(1, 2)).Uint64}, config)
		defer e.Close()
		time.Sleep(time.Hour)
		all := append(slices.Clone(config.Endpoints.All), lb.Endpoint{Address: "new", Weight: 1})
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(config, all)}})
		check := func(name string, factor float64) {
			t.Helper()
			const n = 20000
			want := factor / (2 + factor) * n
			if got := float64(spread(c, pickQuery{}, n)["new"]); got < want-300 || got > want+300 {
				t.Errorf("%s: the new endpoint has %v of %d, want %.0f", name, got, n, want)
			}
		}
		check("at the beginning", .1)
		time.Sleep(30 * time.Second)
		check("half way", .5)
		time.Sleep(31 * time.Second)
		check("at the end", 1)
	})
}

// TestSlowEndpoint plays the same requests in virtual time against ten endpoints
// of which one is twenty times slower.
func TestSlowEndpoint(t *testing.T) {
	simulate := func(t *testing.T, kind lb.Kind, slow, eject bool) time.Duration {
		config := cluster("c", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
		config.LB = lb.Policy{Kind: kind}
		if eject {
			config.Accrual = &resilience.Accrual{Consecutive: 3, MinPenalty: time.Minute, MaxPenalty: time.Hour, ProbeTimeout: time.Second}
		}
		random := rand.New(rand.NewPCG(3, 9))
		var mu sync.Mutex // of random and took
		draw := func() uint64 {
			mu.Lock()
			defer mu.Unlock()
			return random.Uint64()
		}
		e, c := live(t, Options{Draw: draw}, config)
		defer e.Close()
		var took []time.Duration
		var wg sync.WaitGroup
		for i := range 6000 {
			time.Sleep(time.Millisecond)
			wg.Go(func() {
				q := pickQuery{Draw: e.draw()}
				end, s, err := c.pick(&q)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				d := 8*time.Millisecond + time.Duration(random.IntN(4000))*time.Microsecond
				mu.Unlock()
				o := resilience.Outcome{Status: 200, GRPC: -1}
				if slow && end.Address == "3" {
					if d *= 20; eject {
						o = resilience.Outcome{GRPC: -1, Failure: resilience.PerTryTimeout}
					}
				}
				time.Sleep(d)
				s.cluster.report(s, end, &o, time.Since(s.cluster.epoch), d)
				end.release()
				mu.Lock()
				if i >= 1000 { // after it has been noticed
					took = append(took, d)
				}
				mu.Unlock()
			})
			synctest.Wait()
		}
		wg.Wait()
		sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
		return took[len(took)*99/100]
	}
	synctest.Test(t, func(t *testing.T) {
		healthy := simulate(t, lb.PeakEWMA, false, false)
		ewma := simulate(t, lb.PeakEWMA, true, false)
		ejected := simulate(t, lb.RoundRobin, true, true)
		plain := simulate(t, lb.RoundRobin, true, false)
		t.Logf("p99: %v healthy, %v by peak EWMA, %v with ejection, %v round robin", healthy, ewma, ejected, plain)
		if ewma > 2*healthy || ejected > 2*healthy {
			t.Errorf("p99 is %v by peak EWMA and %v with ejection, want at most twice the healthy %v", ewma, ejected, healthy)
		}
		if plain < 10*healthy {
			t.Errorf("p99 is %v by round robin, which should feel the slow endpoint: healthy is %v", plain, healthy)
		}
	})
}

// TestLeaseReportsLatency holds the average that a lease's report leaves behind
// against the rule's: the latency is that since Pick, and it counts at its time.
func TestLeaseReportsLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := cluster("c", "a:1")
		config.LB = lb.Policy{Kind: lb.PeakEWMA, Decay: 10 * time.Second}
		e := New(Options{Subscribe: func(string) {}})
		defer e.Close()
		e.Install(one(t, config, nil))
		c := e.view.Load().clusters["c"]
		want := lb.Latency(0)
		for _, took := range []time.Duration{50 * time.Millisecond, 10 * time.Millisecond} {
			call, try := decided(t, e, nil), new(Try)
			time.Sleep(5 * time.Second) // as gRPC waits for a connection
			if err := call.Begin(try); err != nil {
				t.Fatal(err)
			}
			var l Lease
			if err := try.Pick(&l, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(took)
			want = want.Observe(took, time.Since(c.epoch), config.LB.Decay)
			o := resilience.Outcome{Status: 200, GRPC: -1}
			if now := l.Report(&o); !now.Equal(time.Now()) {
				t.Errorf("reported at %v, want %v", now, time.Now())
			}
			if got := lb.Latency(l.Endpoint().latency.Load()); got != want {
				t.Errorf("after an answer in %v the average is %x, want %x", took, got, want)
			}
			l.Release()
			call.Finish(&o)
		}
	})
}
