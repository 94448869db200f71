package outbound

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// kept counts what the engine keeps by names that others choose.
func kept(e *Engine) map[string]int {
	n := map[string]int{"hosts outside the mesh": len(e.external)}
	e.direct.Range(func(any, any) bool { n["spellings"]++; return true })
	e.directTLS.Range(func(any, any) bool { n["spellings"]++; return true })
	for _, h := range e.view.Load().hosts {
		for i := range h.routes {
			h.routes[i].named.Range(func(any, any) bool { n["clusters that headers named"]++; return true })
		}
	}
	return n
}

// TestNamesAreBounded: however many hosts, spellings of hosts and clusters
// requests name, so many are kept.
func TestNamesAreBounded(t *testing.T) {
	const names = 100_000
	bounded := func(what string, n, most int) {
		t.Helper()
		if n > most {
			t.Errorf("%s: %d are kept, want at most %d", what, n, most)
		}
	}
	t.Run("without a control plane", func(t *testing.T) {
		sh := one(t, cluster("passthrough", "h:80"), nil).Hosts["reviews:80"]
		e := New(Options{External: func(host string) (*snapshot.Host, *snapshot.Cluster) { return sh, cluster("passthrough", "h:80") }})
		defer e.Close()
		r := rand.New(rand.NewPCG(1, 46))
		asked := map[string]bool{} // an index without a bound is as large as this
		most := 0
		for i := range names {
			host := []byte("averylonghostname.example")
			for i := range host {
				if r.IntN(2) == 0 && host[i] != '.' {
					host[i] -= 32
				}
			}
			authority := string(host)
			if i%4 == 0 {
				authority = fmt.Sprint("h", i)
			}
			authority += []string{"", ".", ":", ":80"}[r.IntN(4)]
			asked[authority] = true
			if err := e.Decide(t.Context(), newCall(), authority, []string{"http", "https"}[i/10%2]); err != nil {
				t.Fatal(err)
			}
			if i%5000 == 0 || i == names-1 {
				n := kept(e)
				most = max(most, n["spellings"])
				bounded("hosts", n["hosts outside the mesh"], maxExternal)
				bounded("spellings", n["spellings"], maxExternal)
			}
		}
		t.Logf("%d spellings, at most %d kept", len(asked), most)
		if len(asked) < 10*maxExternal {
			t.Errorf("%d spellings prove nothing", len(asked))
		}
	})
	t.Run("clusters by header", func(t *testing.T) {
		e := New(Options{Subscribe: func(string) {}, SubscribeCluster: func(string) {}, PolicyWait: time.Nanosecond})
		defer e.Close()
		base := one(t, cluster("c", "a:1"), nil)
		base.Hosts["reviews:80"].VirtualHost.Routes[0].Clusters = routing.Weighted{}
		base.Hosts["reviews:80"].VirtualHost.Routes[0].ClusterHeader = routing.NewHeaderName("x-cluster")
		const at = 10 // how many of the clusters there are at one time
		careless := map[string]bool{}
		for i := range 400 {
			s := &snapshot.Snapshot{Hosts: base.Hosts, Clusters: map[string]*snapshot.Cluster{}}
			for j := range at {
				name := fmt.Sprint("c", i*at/2+j) // half of them are new
				s.Clusters[name] = cluster(name, "a:1")
			}
			e.Install(s)
			for name := range s.Clusters {
				c := newCall()
				c.Request.Header = map[string][]string{"X-Cluster": {name}}
				if err := e.Decide(t.Context(), c, "reviews", "http"); err != nil {
					t.Fatal(err)
				}
				careless[name] = true // as who keeps what was named once
			}
			bounded("clusters that headers named", kept(e)["clusters that headers named"], at)
		}
		if len(careless) < 100*at {
			t.Errorf("%d clusters prove nothing", len(careless))
		}
		// What is not there is not kept either.
		for i := range 1000 {
			c := newCall()
			c.Request.Header = map[string][]string{"X-Cluster": {fmt.Sprint("absent", i)}}
			if err := e.Decide(t.Context(), c, "reviews", "http"); err == nil {
				t.Fatal("a cluster that is not there")
			}
		}
		bounded("clusters that headers named", kept(e)["clusters that headers named"], at)
	})
}

// churned is a generated configuration of a cluster with much that runs by timers.
func churned(r *rand.Rand, name string) *snapshot.Cluster {
	var all []lb.Endpoint
	for i := range 1 + r.IntN(4) {
		all = append(all, lb.Endpoint{Address: fmt.Sprintf("10.0.0.%d:80", i+r.IntN(3)), Weight: 1})
	}
	c := &snapshot.Cluster{Name: name, LB: lb.Policy{Kind: []lb.Kind{lb.RoundRobin, lb.PeakEWMA, lb.Random}[r.IntN(3)], Decay: time.Second}, Limits: unlimited, Endpoints: lb.NewEndpoints(all, nil)}
	if r.IntN(2) == 0 {
		rule := resilience.DefaultOutlier
		rule.Consecutive5xx, rule.MaxEjectionPercent, rule.Interval = 1, 100, time.Duration(1+r.IntN(10))*time.Second
		c.Outlier = &rule
	}
	if r.IntN(2) == 0 {
		c.HealthChecks = []resilience.HealthCheck{{Kind: resilience.HealthTCP, Timeout: time.Second, Interval: time.Duration(1+r.IntN(5)) * time.Second, NoTrafficInterval: 2 * time.Second, HealthyThreshold: 1, UnhealthyThreshold: 1}}
	}
	if r.IntN(3) == 0 {
		b := resilience.DefaultBreaker
		b.ConsecutiveFailures = 1
		c.Breaker = &b
	}
	if r.IntN(4) == 0 {
		c.Discovery, c.DNS, c.Endpoints = snapshot.StrictDNS, &snapshot.DNS{Names: []snapshot.DNSName{{Host: "h.test", Port: 80}}, RefreshRate: time.Second, Family: "ip4"}, lb.NewEndpoints(nil, nil)
	}
	return c
}

// TestChurnLeavesNothing: clusters of all kinds that come, change and go under
// load leave no goroutine and no timer: in the bubble nothing but what is left
// could still move, and nothing does.
func TestChurnLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leak.Check(t)
		checker := newFakeChecker()
		resolver := &fakeResolver{answers: map[string][]string{}, began: time.Now()}
		resolver.set("h.test", "10.0.0.1")
		e := New(Options{Subscribe: func(string) {}, PolicyWait: time.Second, Checker: checker, Resolver: resolver})
		r := rand.New(rand.NewPCG(1, 47))
		snap := func() *snapshot.Snapshot {
			name := fmt.Sprint("c", r.IntN(5))
			s := one(t, churned(r, name), nil)
			for range r.IntN(3) {
				other := fmt.Sprint("c", r.IntN(5))
				if s.Clusters[other] == nil {
					s.Clusters[other] = churned(r, other)
				}
			}
			return s
		}
		for range 400 {
			e.Install(snap())
			for range r.IntN(4) {
				c := newCall()
				if e.Decide(t.Context(), c, "reviews", "http") != nil {
					continue
				}
				var try Try
				var l Lease
				o := resilience.Outcome{Status: []int{200, 503}[r.IntN(2)], GRPC: -1}
				if c.Begin(&try) == nil && try.Pick(&l, nil) == nil {
					l.Report(&o)
					l.Release()
				}
				c.Finish(&o)
			}
			time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
		}
		// moves says what still runs by itself.
		count := func() (checks, lookups int) {
			for _, address := range checker.seen() {
				checks += checker.count(address)
			}
			resolver.mu.Lock()
			defer resolver.mu.Unlock()
			return checks, len(resolver.at)
		}
		moves := func() string {
			time.Sleep(time.Minute) // what was under way ends
			synctest.Wait()
			checks, lookups := count()
			time.Sleep(time.Hour)
			synctest.Wait()
			checksAfter, lookupsAfter := count()
			switch stacks := running(); {
			case checksAfter > checks || lookupsAfter > lookups:
				return fmt.Sprintf("%d health checks and %d lookups in an hour", checksAfter-checks, lookupsAfter-lookups)
			case strings.Contains(stacks, "transport/outbound.(*"):
				return stacks
			}
			return ""
		}
		if checks, lookups := count(); checks < 300 || lookups < 100 {
			t.Errorf("%d health checks and %d lookups: nothing was under way", checks, lookups)
		}
		// Without any cluster all stands still, and closed too.
		e.Install(&snapshot.Snapshot{})
		if what := moves(); what != "" {
			t.Errorf("without a cluster: %s", what)
		}
		// The mistake: a cluster that has left policy is not closed.
		found := 0
		for range 40 {
			stray := e.newCluster("stray")
			stray.update(churned(r, "stray"))
			if moves() != "" {
				found++
			}
			stray.close()
		}
		if found < 10 {
			t.Errorf("a cluster that is not closed is found %d times only", found)
		}
		e.Install(snap())
		e.Close()
		if what := moves(); what != "" {
			t.Errorf("closed: %s", what)
		}
	})
}

// running returns the stacks of all goroutines but this one.
func running() string {
	buf := make([]byte, 1<<20)
	_, others, _ := strings.Cut(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	return others
}
