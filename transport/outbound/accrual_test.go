package outbound

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// accrues returns a cluster whose endpoints have breakers.
func accrues(a resilience.Accrual, addresses ...string) *snapshot.Cluster {
	c := cluster("c", addresses...)
	c.Accrual = &a
	return c
}

func TestAccrual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		obs := &outOfUse{out: map[string]bool{}}
		config := accrues(resilience.Accrual{Consecutive: 3, MinPenalty: time.Second, MaxPenalty: 4 * time.Second, ProbeTimeout: 5 * time.Second}, "a", "b")
		e, c := live(t, Options{Observer: obs}, config)
		defer e.Close()
		fail := func(address string, n int) {
			for range n {
				c.report(c.current.Load(), c.known[address], &resilience.Outcome{Status: 500, GRPC: -1}, 0, 0)
			}
		}
		// probe waits for the endpoint's probe and reports its status; 0 does not report.
		probe := func(address string, o *resilience.Outcome) *Endpoint {
			t.Helper()
			for range 10 {
				q := pickQuery{}
				end, s, err := c.pick(&q)
				if err != nil {
					continue
				}
				if end.Address == address {
					if o != nil {
						c.report(s, end, o, 0, 0)
					}
					end.release()
					return end
				}
				end.release()
			}
			t.Fatalf("%s is not probed", address)
			return nil
		}
		failure, success := &resilience.Outcome{Status: 500, GRPC: -1}, &resilience.Outcome{Status: 200, GRPC: -1}
		fail("a", 2)
		c.report(c.current.Load(), c.known["a"], success, 0, 0)
		fail("a", 2)
		want(t, "a success begins the count again", c, "a", "b")
		fail("a", 3)
		want(t, "three in a row", c, "b")
		if !obs.is("a") {
			t.Error("observers do not know")
		}
		time.Sleep(990 * time.Millisecond)
		want(t, "in the penalty", c, "b")
		time.Sleep(20 * time.Millisecond)
		probe("a", nil) // under way
		want(t, "no other request while the probe is under way", c, "b")
		c.report(c.current.Load(), c.known["a"], failure, 0, 0)
		time.Sleep(1900 * time.Millisecond)
		want(t, "the second penalty is twice as long", c, "b")
		time.Sleep(200 * time.Millisecond)
		probe("a", failure)
		time.Sleep(3900 * time.Millisecond)
		want(t, "the third is as long as may be", c, "b")
		time.Sleep(200 * time.Millisecond)
		probe("a", failure)
		time.Sleep(3900 * time.Millisecond)
		want(t, "and the fourth", c, "b")
		time.Sleep(200 * time.Millisecond)
		// A probe that says nothing leaves its place to another.
		probe("a", &resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
		probe("a", success)
		want(t, "a probe that succeeds ends it", c, "a", "b")
		if obs.is("a") {
			t.Error("observers do not know that it is over")
		}
		fail("a", 3)
		want(t, "again", c, "b")
		time.Sleep(1010 * time.Millisecond)
		probe("a", nil)
		time.Sleep(4 * time.Second)
		want(t, "a probe that hangs", c, "b")
		time.Sleep(1100 * time.Millisecond)
		if got := c.known["a"].accrual.Load().status(); got != "penalty" {
			t.Errorf("a probe without an answer in its time: %s", got)
		}
		fail("b", 3)
		want(t, "when all are out, requests fail at once", c, "")
		// A policy without breakers has all in use.
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": cluster("c", "a", "b")}})
		want(t, "no policy", c, "a", "b")
		if obs.is("a") || obs.is("b") {
			t.Error("observers still have endpoints out of use")
		}
	})
}

func TestAccrualByRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := accrues(resilience.Accrual{SuccessRate: .8, Window: 10 * time.Second, MinRequests: 10, MinPenalty: time.Second, MaxPenalty: time.Minute, ProbeTimeout: time.Second}, "a", "b")
		e, c := live(t, Options{}, config)
		defer e.Close()
		report := func(statuses ...int) {
			for _, s := range statuses {
				c.report(c.current.Load(), c.known["a"], &resilience.Outcome{Status: s, GRPC: -1}, 0, 0)
			}
		}
		report(500, 500, 500, 500, 500, 500, 500, 500, 500)
		want(t, "too few to tell", c, "a", "b")
		time.Sleep(12 * time.Second)
		report(200, 200, 200, 200, 200, 200, 200, 200, 500, 500)
		want(t, "the window has moved, and 80 % is enough", c, "a", "b")
		report(500)
		want(t, "less than 80 %", c, "b")
	})
}

// outOfUse is an observer of ejections only.
type outOfUse struct {
	Observer
	mu  sync.Mutex
	out map[string]bool
	why []string
}

func (o *outOfUse) Ejection(_, endpoint, why string, ejected bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.out[endpoint] == ejected {
		panic(fmt.Sprint(endpoint, " is told twice: ", ejected))
	}
	o.out[endpoint] = ejected
	if ejected {
		o.why = append(o.why, why)
	}
}

func (o *outOfUse) is(endpoint string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.out[endpoint]
}

// TestAccrualUnderLoad has many requests with changing luck, short penalties and
// probes that hang or are given up, while policy comes and goes.
func TestAccrualUnderLoad(t *testing.T) {
	leak.Check(t)
	obs := &outOfUse{out: map[string]bool{}}
	config := accrues(resilience.Accrual{Consecutive: 2, MinPenalty: 100 * time.Microsecond, MaxPenalty: time.Millisecond, Jitter: .5, ProbeTimeout: time.Millisecond}, "a", "b", "c", "d")
	config.LB.Kind = lb.LeastRequest
	e, c := live(t, Options{Observer: obs}, config)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 3000 {
				q := pickQuery{Draw: e.draw()}
				end, s, err := c.pick(&q)
				if err != nil {
					continue // all are out
				}
				o := resilience.Outcome{Status: 200, GRPC: -1}
				switch (i + g) % 5 {
				case 0, 1:
					o.Status = 503
				case 2:
					o = resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled}
				}
				if i%17 != 0 { // some never report
					c.report(s, end, &o, time.Since(c.epoch), time.Microsecond)
				}
				end.release()
			}
		})
	}
	other := *config
	for i := range 200 {
		next := config
		if i%2 == 0 {
			next = &other
		}
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(next, next.Endpoints.All[i%2:])}})
	}
	wg.Wait()
	c.current.Load().slots.all(func(end *Endpoint) {
		if n := end.active.Load(); n != 0 {
			t.Errorf("%s has %d requests", end.Address, n)
		}
	})
	// Sooner or later every endpoint is back, as long as probes succeed.
	for deadline := time.Now().Add(20 * time.Second); ; {
		back := true
		for range 20 {
			once(c, pickQuery{}, 200, 0)
		}
		for _, address := range []string{"b", "c", "d"} {
			back = back && c.known[address].accrual.Load().status() == "open"
		}
		if back {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", c.status())
		}
	}
	e.Close()
	for address, out := range obs.out {
		if out {
			t.Errorf("observers have %s out of use after the end", address)
		}
	}
}

// TestBoundedLoadCounts: requests are counted for the bound only while policy
// asks for it, and none stays counted when policy changes under way.
func TestBoundedLoadCounts(t *testing.T) {
	config := cluster("c", "a", "b", "c")
	config.LB = lb.Policy{Kind: lb.Maglev, Table: lb.Table{Size: 251, Options: lb.HashOptions{BalanceFactor: 120}}}
	e, c := live(t, Options{}, config)
	plain := *config
	plain.LB = lb.Policy{Kind: lb.Maglev, Table: lb.Table{Size: 251}}
	take := func(n int) (out []*Endpoint) {
		for range n {
			q := pickQuery{Hash: 5, HasHash: true}
			end, _, err := c.pick(&q)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, end)
		}
		return out
	}
	first := take(90)
	if n := c.held.Load(); n != 90 {
		t.Errorf("%d are counted, want 90", n)
	}
	for address, end := range c.known {
		if n := end.active.Load(); n > 38 {
			t.Errorf("%s has %d of 90", address, n)
		}
	}
	e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": &plain}})
	second := take(10)
	e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": config}})
	third := take(10)
	for _, end := range append(append(second, first...), third...) {
		end.release()
	}
	if n := c.held.Load(); n != 0 {
		t.Errorf("%d stay counted", n)
	}
}
