package outbound

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// everything returns a snapshot with one route that has all that counts something.
func everything(t testing.TB) *snapshot.Snapshot {
	t.Helper()
	two := uint32(2)
	part := routing.Fraction{PerMillion: 400_000}
	config := cluster("c", "a:1", "b:1", "c:1")
	config.Limits = resilience.Limits{MaxConnections: 1, MaxPendingRequests: 1, MaxRequests: 5, MaxRetries: 2}
	config.HighLimits = config.Limits
	config.RetryBudget = &resilience.RetryBudget{Percent: 50, Burst: 3}
	config.Endpoints.Drops = []lb.Drop{{Category: "x", PerMillion: 100_000}}
	config.Breaker = &resilience.Breaker{ConsecutiveFailures: 4, OpenFor: time.Millisecond, HalfOpenRequests: 1, ProbeTimeout: time.Minute}
	outlier := resilience.DefaultOutlier
	outlier.Consecutive5xx, outlier.MaxEjectionPercent = 2, 100
	config.Outlier = &outlier
	retry := resilience.DefaultRetryPolicy(resilience.On5xx | resilience.OnUnavailable)
	retry.NumRetries, retry.AvoidPrevious, retry.PreviousPriorities = 2, true, 1
	s := one(t, config, &retry)
	h := s.Hosts["reviews:80"]
	limit := resilience.DefaultAdaptiveConcurrency
	h.Concurrency = &limit
	r := &h.VirtualHost.Routes[0]
	r.Hedge = &resilience.Hedge{Initial: 2, Additional: part, OnPerTryTimeout: true}
	r.Fault = &resilience.Fault{MaxActive: &two, Delay: &resilience.FaultDelay{Fixed: time.Second, Fraction: part}, Abort: &resilience.FaultAbort{Status: 503, GRPC: -1, Fraction: part}}
	r.Mirrors = []routing.Mirror{{Cluster: "c", Fraction: part}, {ClusterHeader: routing.NewHeaderName("x-cluster"), Fraction: routing.Fraction{PerMillion: 1_000_000}}}
	return s
}

// nothingHeld fails unless every count of the engine is zero.
func nothingHeld(t testing.TB, e *Engine) {
	t.Helper()
	if n := e.shadows.Load(); n != 0 {
		t.Errorf("%d copies of requests are still counted", n)
	}
	v := e.view.Load()
	for name, h := range v.hosts {
		if n := h.faults.Load(); n != 0 {
			t.Errorf("%s: %d faults are still active", name, n)
		}
		if h.adaptive != nil && h.adaptive.Active() != 0 {
			t.Errorf("%s: %d requests are still counted", name, h.adaptive.Active())
		}
	}
	for name, c := range v.clusters {
		for p := range resilience.Priorities {
			if n, m := c.requests[p].Load(), c.retries.counts[p].Load(); n != 0 || m != 0 {
				t.Errorf("%s, priority %d: %d requests and %d retries are still counted", name, p, n, m)
			}
		}
	}
	for _, c := range e.Status().Clusters {
		for _, ep := range c.Endpoints {
			if ep.Active != 0 {
				t.Errorf("%s: %d requests at %s are still counted", c.Name, ep.Active, ep.Address)
			}
		}
	}
}

// walker takes one call at a time through random steps, some of them in an order
// that no adapter should have.
type walker struct {
	t      testing.TB
	engine *Engine
	calls  []*walked
}

type walked struct {
	call   *Call
	tries  []*Try
	leases []*Lease
}

func (w *walker) step(op byte) {
	which, what := int(op>>4), op&15
	if len(w.calls) == 0 || what == 0 {
		c := &walked{call: newCall()}
		c.call.Request.Header = map[string][]string{"X-Cluster": {[]string{"c", "other"}[which&1]}}
		if which&2 != 0 {
			c.call.Request.Method = "POST"
		}
		if err := w.engine.Decide(w.t.Context(), c.call, "reviews", "http"); err != nil {
			w.t.Fatal(err)
		}
		w.calls = append(w.calls, c)
		return
	}
	at := which % len(w.calls)
	c := w.calls[at]
	outcome := &resilience.Outcome{Status: []int{200, 503, 200, 500}[which&3], GRPC: -1}
	if which&4 != 0 {
		outcome = &resilience.Outcome{GRPC: -1, Failure: resilience.Failure(1 + which&7)}
	}
	var try *Try
	if len(c.tries) > 0 {
		try = c.tries[which%len(c.tries)]
	}
	switch what {
	case 1:
		c.call.EndDelay()
	case 2:
		for _, s := range c.call.Shadows() {
			w.calls = append(w.calls, &walked{call: s})
		}
	case 3:
		if c.call.Local() == nil && len(c.tries) == 0 {
			try = new(Try)
			if c.call.Begin(try) == nil {
				c.tries = append(c.tries, try)
			}
		}
	case 4:
		if try != nil {
			_ = c.call.Begin(try)
		}
	case 5, 6:
		if try != nil {
			l := new(Lease)
			if try.Pick(l, nil) == nil {
				c.leases = append(c.leases, l)
			}
		}
	case 7:
		if try != nil && len(c.leases) > 0 {
			l := c.leases[which%len(c.leases)]
			var o Outgoing
			if l.Endpoint() != nil {
				try.Outgoing(l, &o)
				l.Report(outcome)
			}
		}
	case 8, 9:
		if try != nil {
			try.Next(outcome)
		}
	case 10:
		if try != nil {
			c.call.Hedges()
			h := new(Try)
			if c.call.Hedge(h) {
				c.tries = append(c.tries, h)
			}
		}
	case 11:
		if try != nil {
			try.Commit()
		}
	case 12:
		if try != nil {
			try.End()
		}
	case 13:
		if len(c.leases) > 0 {
			c.leases[which%len(c.leases)].Release()
		}
	case 14:
		c.call.Finish(outcome)
	case 15:
		w.engine.Install(everything(w.t))
	}
}

func (w *walker) end() {
	for _, c := range w.calls {
		for _, l := range c.leases {
			l.Release()
		}
		c.call.Finish(&resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
		c.call.Finish(&resilience.Outcome{Status: 200, GRPC: -1})
	}
}

// FuzzSteps: whatever the order of the steps, once all calls are finished and
// all leases released, nothing is counted any more.
func FuzzSteps(f *testing.F) {
	f.Add([]byte{0x00, 0x02, 0x03, 0x05, 0x17, 0x18, 0x04, 0x05, 0x0b, 0x0d, 0x0e})
	f.Add([]byte{0x00, 0x03, 0x0a, 0x1a, 0x14, 0x15, 0x25, 0x18, 0x0e, 0x0d})
	f.Add([]byte{0x00, 0x10, 0x20, 0x02, 0x12, 0x03, 0x13, 0x33, 0x43, 0x0f, 0x18, 0x28, 0x01, 0x0e})
	f.Fuzz(func(t *testing.T, steps []byte) {
		if len(steps) > 200 {
			steps = steps[:200]
		}
		random := rand.New(rand.NewPCG(uint64(len(steps)), 9))
		e := New(Options{Subscribe: func(string) {}, Draw: random.Uint64, MaxShadows: 3})
		defer e.Close()
		e.Install(everything(t))
		w := &walker{t: t, engine: e}
		for _, op := range steps {
			w.step(op)
		}
		w.end()
		nothingHeld(t, e)
	})
}

// TestRandomSteps runs the fuzz target's walk over many random sequences.
func TestRandomSteps(t *testing.T) {
	for seed := range uint64(150) {
		random := rand.New(rand.NewPCG(seed, 11))
		e := New(Options{Subscribe: func(string) {}, Draw: random.Uint64, MaxShadows: 3})
		e.Install(everything(t))
		w := &walker{t: t, engine: e}
		for range 150 {
			w.step(byte(random.Uint32()))
		}
		w.end()
		nothingHeld(t, e)
		e.Close()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestTriesSideBySide runs hedges of one call on goroutines of their own, with
// repetitions, and ends the call while some are under way.
func TestTriesSideBySide(t *testing.T) {
	s := everything(t)
	r := &s.Hosts["reviews:80"].VirtualHost.Routes[0]
	r.Fault, s.Hosts["reviews:80"].Concurrency = nil, nil
	r.Hedge.Initial = 4
	c := s.Clusters["c"]
	c.Limits, c.Breaker, c.Outlier, c.RetryBudget, c.Endpoints.Drops = unlimited, nil, nil, &resilience.RetryBudget{Percent: 100, Burst: 1000}, nil
	e := New(Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(s)
	begun := 0
	for range 200 {
		call := newCall()
		if err := e.Decide(t.Context(), call, "reviews", "http"); err != nil {
			t.Fatal(err)
		}
		initial, onTimeout := call.Hedges()
		if initial < 4 || !onTimeout {
			t.Fatalf("%d attempts at once, on timeout %v", initial, onTimeout)
		}
		tries := make([]*Try, 1, initial)
		tries[0] = new(Try)
		if err := call.Begin(tries[0]); err != nil {
			t.Fatal(err)
		}
		for range initial - 1 {
			if h := new(Try); call.Hedge(h) {
				if err := call.Begin(h); err != nil {
					t.Fatal(err)
				}
				tries = append(tries, h)
			}
		}
		var group sync.WaitGroup
		for i, try := range tries {
			group.Go(func() {
				for {
					var l Lease
					if err := try.Pick(&l, nil); err != nil {
						t.Error(err)
						return
					}
					var out Outgoing
					try.Outgoing(&l, &out)
					o := &resilience.Outcome{Status: 503, GRPC: -1}
					l.Report(o)
					l.Release()
					if _, again := try.Next(o); !again {
						break
					}
					if err := call.Begin(try); err != nil {
						t.Error(err)
					}
				}
				if i == 0 {
					try.Commit()
				}
			})
		}
		group.Wait()
		begun += call.Attempts()
		if call.Attempts() > initial+2 {
			t.Fatalf("%d attempts of %d at once and 2 retries", call.Attempts(), initial)
		}
		call.Finish(&resilience.Outcome{Status: 503, GRPC: -1})
	}
	if begun < 200*4 {
		t.Errorf("%d attempts of 200 calls with four each", begun)
	}
	nothingHeld(t, e)
}
