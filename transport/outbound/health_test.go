package outbound

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// fakeChecker answers health checks by address.
type fakeChecker struct {
	mu      sync.Mutex
	results map[string]CheckResult
	asked   map[string]int
	last    map[string]CheckTarget
	hang    bool
}

func newFakeChecker() *fakeChecker {
	return &fakeChecker{results: map[string]CheckResult{}, asked: map[string]int{}, last: map[string]CheckTarget{}}
}

func (f *fakeChecker) Check(ctx context.Context, t *CheckTarget) (CheckResult, error) {
	f.mu.Lock()
	f.asked[t.Address]++
	f.last[t.Address] = *t
	result, hang := f.results[t.Address], f.hang
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return CheckNoAnswer, ctx.Err()
	}
	return result, nil
}

func (f *fakeChecker) set(address string, r CheckResult) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.results[address] = r
}

func (f *fakeChecker) count(address string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[address]
}

func checked(addresses ...string) *snapshot.Cluster {
	c := cluster("c", addresses...)
	c.HealthChecks = []resilience.HealthCheck{{Timeout: time.Second, Interval: 10 * time.Second, UnhealthyThreshold: 3, HealthyThreshold: 2}}
	return c
}

// inUse picks without reporting anything, and returns the endpoints that it got; "" where it got none.
func inUse(c *Cluster) []string {
	out := map[string]bool{}
	for range 60 {
		e, _, err := c.pick(&pickQuery{Draw: c.engine.draw()})
		if err != nil {
			out[""] = true
			continue
		}
		out[e.Address] = true
		e.release()
	}
	return slices.Sorted(maps.Keys(out))
}

func want(t *testing.T, name string, c *Cluster, addresses ...string) {
	t.Helper()
	synctest.Wait()
	if got := inUse(c); !slices.Equal(got, addresses) {
		t.Errorf("%s: %v are used, want %v", name, got, addresses)
	}
}

func TestHealthChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeChecker()
		f.set("b:1", CheckNoAnswer)
		config := checked("a:1", "b:1", "c:1")
		e, c := live(t, Options{Checker: f}, config)
		defer e.Close()
		inUse(c) // a cluster without requests is asked rarely
		want(t, "the first check decides", c, "a:1", "c:1")
		f.set("c:1", CheckNoAnswer)
		f.set("b:1", CheckPassed)
		time.Sleep(11 * time.Second)
		want(t, "one check changes nothing", c, "a:1", "c:1")
		time.Sleep(10 * time.Second)
		want(t, "two successes bring an endpoint back", c, "a:1", "b:1", "c:1")
		time.Sleep(10 * time.Second)
		want(t, "three failures take one out", c, "a:1", "b:1")
		f.set("a:1", CheckFailed)
		time.Sleep(10 * time.Second)
		want(t, "an answer that says unhealthy counts at once", c, "b:1")
		f.set("b:1", CheckDegraded)
		f.set("a:1", CheckPassed)
		time.Sleep(30 * time.Second)
		want(t, "a degraded one takes what is too much for the others", c, "a:1", "b:1")
		// A new endpoint waits for its first check; one that has left is asked no more.
		f.set("d:1", CheckNoAnswer)
		all := slices.Clone(config.Endpoints.All[:1])
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(config, append(all, lb.Endpoint{Address: "d:1", Weight: 1}))}})
		if got := inUse(c); !slices.Equal(got, []string{"a:1"}) {
			t.Errorf("before its first check a new endpoint is used: %v", got)
		}
		before := f.count("b:1")
		time.Sleep(time.Minute)
		want(t, "it fails its first check", c, "a:1")
		if f.count("b:1") != before {
			t.Error("an endpoint that has left is still asked")
		}
		status := c.status()
		if status.Endpoints[0].Check != "passed" && status.Endpoints[1].Check != "passed" {
			t.Errorf("%+v", status)
		}
		// Without health checks in policy, all are used again.
		none := *config
		none.HealthChecks = nil
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": &none}})
		want(t, "no checks", c, "a:1", "b:1", "c:1")
		before = f.count("a:1")
		time.Sleep(time.Minute)
		if f.count("a:1") != before {
			t.Error("checks go on without policy")
		}
	})
}

func TestHealthCheckTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeChecker()
		f.hang = true
		config := checked("a:1")
		config.HealthChecks[0].NoTrafficInterval = 30 * time.Second
		config.HealthChecks[0].UnhealthyInterval = 2 * time.Second
		e, c := live(t, Options{Checker: f}, config)
		defer e.Close()
		time.Sleep(500 * time.Millisecond)
		want(t, "a check that hangs decides nothing yet", c, "a:1")
		time.Sleep(600 * time.Millisecond)
		want(t, "until its time is over", c, "")
		f.mu.Lock()
		f.hang = false
		f.mu.Unlock()
		time.Sleep(2 * time.Second)
		if n := f.count("a:1"); n != 2 {
			t.Errorf("an endpoint that failed was asked %d times, want 2", n)
		}
		// An idle cluster is asked rarely.
		idle := checked("i:1")
		idle.Name = "idle"
		idle.HealthChecks[0].NoTrafficInterval = 30 * time.Second
		e2, c2 := live(t, Options{Checker: f}, idle)
		defer e2.Close()
		time.Sleep(61 * time.Second)
		if n := f.count("i:1"); n != 3 {
			t.Errorf("an idle cluster was asked %d times, want 3", n)
		}
		once(c2, pickQuery{}, 200, 0)
		time.Sleep(60 * time.Second)
		if n := f.count("i:1"); n < 6 || n > 7 {
			t.Errorf("with a request, it was asked %d times", n)
		}
	})
}

func TestCheckTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeChecker()
		config := checked("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
		config.Endpoints.All[1].HealthPort, config.Endpoints.All[1].HealthHost = 8081, "probe.example"
		config.Endpoints.All[2].Hostname = "three.example"
		e, _ := live(t, Options{Checker: f}, config)
		synctest.Wait()
		for address, authority := range map[string]string{"10.0.0.1:80": "c", "10.0.0.2:8081": "probe.example", "10.0.0.3:80": "three.example"} {
			if got, ok := f.last[address]; !ok || got.Authority != authority || got.Check == nil || got.Cluster != config {
				t.Errorf("%s: %+v", address, got)
			}
		}
		e.Close()
		other := *config
		other.Name, other.HealthChecks = "d", []resilience.HealthCheck{{Port: 9000, Host: "own.example"}}
		e, _ = live(t, Options{Checker: f}, &other)
		defer e.Close()
		synctest.Wait()
		if got := f.last["10.0.0.2:9000"]; got.Authority != "own.example" {
			t.Errorf("%+v", got)
		}
	})
}

// TestHealthCheckEndsEjection: a passing check lets an ejected endpoint back, unless policy says otherwise.
func TestHealthCheckEndsEjection(t *testing.T) {
	for _, keep := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeChecker()
			config := checked("a:1", "b:1")
			config.Outlier = outlierRule()
			config.Outlier.MaxEjectionPercent, config.Outlier.KeepWhenChecked = 100, keep
			e, c := live(t, Options{Checker: f}, config)
			defer e.Close()
			inUse(c)
			synctest.Wait()
			eject(c, "a:1", 5)
			want(t, "ejected", c, "b:1")
			time.Sleep(11 * time.Second)
			if keep {
				want(t, "kept", c, "b:1")
			} else {
				want(t, "let back", c, "a:1", "b:1")
			}
		})
	}
}

// eject reports failures at one endpoint.
func eject(c *Cluster, address string, n int) {
	for range n {
		c.report(c.current.Load(), c.known[address], &resilience.Outcome{Status: 500, GRPC: -1}, 0, 0)
	}
}

// TestConfigurationErrorIsTold: an error of configuration is in the error of each request.
func TestConfigurationErrorIsTold(t *testing.T) {
	config := cluster("c")
	config.Err = errors.New("refused")
	_, c := live(t, Options{}, config)
	if _, _, err := c.pick(&pickQuery{}); !errors.Is(err, config.Err) {
		t.Errorf("error %v", err)
	}
}

// TestClusterLeavesNothingBehind: lookups, checks, sweeps and penalties end with the engine.
func TestClusterLeavesNothingBehind(t *testing.T) {
	leak.Check(t)
	f := newFakeChecker()
	f.hang = true
	config := named(snapshot.StrictDNS, "x.example", "y.example")
	config.HealthChecks = []resilience.HealthCheck{{Timeout: time.Hour, Interval: time.Millisecond}}
	config.Outlier = outlierRule()
	config.Outlier.MaxEjectionPercent = 100
	config.Accrual = &resilience.Accrual{Consecutive: 1, MinPenalty: time.Hour, MaxPenalty: time.Hour, ProbeTimeout: time.Hour}
	r := &fakeResolver{answers: map[string][]string{"x.example": {"10.0.0.1"}, "y.example": {"fail"}}}
	e, c := live(t, Options{Checker: f, Resolver: r}, config)
	for deadline := time.Now().Add(10 * time.Second); len(f.seen()) < 2; {
		if time.Now().After(deadline) {
			t.Fatalf("checked are %v", f.seen())
		}
		runtime.Gosched()
	}
	s := c.current.Load()
	s.slots.all(func(end *Endpoint) {
		for range 6 {
			c.report(s, end, &resilience.Outcome{Status: 500, GRPC: -1}, time.Since(c.epoch), time.Millisecond)
		}
	})
	e.Close()
	e.Close()
	if again := c.current.Load(); again.config != config {
		t.Error("another configuration after the end")
	}
	c.update(cluster("c", "later"))
	if c.known["later"] != nil {
		t.Error("an update after the end is taken")
	}
}

func (f *fakeChecker) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.asked))
}
