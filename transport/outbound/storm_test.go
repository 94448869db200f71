package outbound

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

// The retry storm: a server that can just carry its load is slow for a few
// seconds. Requests time out and are sent again, so that there is more load than
// before, most of it for callers that have given up. Whether the service comes
// back by itself afterwards is up to the retry budget and to what the server
// refuses to do.
const (
	stormWorkers = 4
	stormService = 10 * time.Millisecond // so it can answer 400 requests a second
	stormRate    = 280.0                 // requests a second, as a Poisson process
	stormTimeout = 250 * time.Millisecond
	stormClients = 10 // processes, each with an engine and a budget of its own
	stormSlow    = 5  // times as long a request takes in the trouble
	stormBegin   = 5 * time.Second
	stormEnd     = 10 * time.Second
)

// stormPolicy is what clients and server do about it.
type stormPolicy struct {
	budget *resilience.RetryBudget
	shed   *resilience.Shedding // nil: the server does every request, however late
}

// stormSecond is what became of the requests that began in one second.
type stormSecond struct{ calls, good, attempts int }

// goodput returns the share of the requests that were answered in time.
func (s stormSecond) goodput() float64 { return float64(s.good) / float64(s.calls) }

// storm is one run, as a simulation of discrete events in the virtual time of a
// synctest bubble: the clients' decisions are the engine's, the server's are the
// rule's, and only the network and the server's workers are made up.
type storm struct {
	t       *testing.T
	random  *rand.Rand
	policy  stormPolicy
	engines []*Engine
	origin  time.Time
	events  stormEvents
	order   int
	queue   []*stormRequest
	busy    int
	seconds []stormSecond
}

type stormEvent struct {
	at    time.Time
	order int
	do    func()
}

type stormEvents []stormEvent

func (e stormEvents) Len() int { return len(e) }
func (e stormEvents) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].order < e[j].order
}
func (e stormEvents) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *stormEvents) Push(x any)   { *e = append(*e, x.(stormEvent)) }
func (e *stormEvents) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// stormRequest is one attempt as the server has it.
type stormRequest struct {
	call     *stormCall
	deadline time.Time
	over     bool // the client has an answer, or has given up
}

type stormCall struct {
	call   Call
	try    Try
	lease  Lease
	second int
}

func (s *storm) after(d time.Duration, do func()) {
	s.order++
	heap.Push(&s.events, stormEvent{time.Now().Add(d), s.order, do})
}

// arrive begins a call and sees to the next one.
func (s *storm) arrive() {
	s.after(time.Duration(s.random.ExpFloat64()/stormRate*float64(time.Second)), s.arrive)
	e := s.engines[s.random.IntN(len(s.engines))]
	c := &stormCall{second: int(time.Since(s.origin) / time.Second)}
	c.call.Request = newCall().Request
	if c.second >= len(s.seconds) {
		return
	}
	s.seconds[c.second].calls++
	if err := e.Decide(s.t.Context(), &c.call, "reviews", "http"); err != nil {
		s.t.Fatal(err)
	}
	s.attempt(c)
}

func (s *storm) attempt(c *stormCall) {
	if err := c.call.Begin(&c.try); err != nil {
		s.t.Fatal(err)
	}
	if err := c.try.Pick(&c.lease, nil); err != nil {
		s.t.Fatal(err)
	}
	s.seconds[c.second].attempts++
	r := &stormRequest{call: c, deadline: time.Now().Add(c.try.Timeout())}
	s.after(c.try.Timeout(), func() {
		s.answer(r, &resilience.Outcome{GRPC: -1, Failure: resilience.PerTryTimeout})
	})
	if s.policy.shed != nil {
		load := resilience.ServerLoad{Waiting: len(s.queue), Workers: stormWorkers, Service: s.service()}
		if s.policy.shed.Decide(load, time.Until(r.deadline), true, resilience.DefaultUrgency) != resilience.NotShed {
			s.answer(r, &resilience.Outcome{GRPC: -1, Status: 503})
			return
		}
	}
	s.queue = append(s.queue, r)
	s.serve()
}

// service returns how long a request takes now.
func (s *storm) service() time.Duration {
	if now := time.Since(s.origin); now >= stormBegin && now < stormEnd {
		return stormSlow * stormService
	}
	return stormService
}

// serve gives waiting requests to idle workers.
func (s *storm) serve() {
	for s.busy < stormWorkers && len(s.queue) > 0 {
		r := s.queue[0]
		s.queue = s.queue[1:]
		if s.policy.shed != nil && !time.Now().Before(r.deadline) {
			continue
		}
		s.busy++
		s.after(s.service(), func() {
			s.busy--
			s.answer(r, &resilience.Outcome{GRPC: -1, Status: 200})
			s.serve()
		})
	}
}

// answer brings an outcome to the client, unless it has another already.
func (s *storm) answer(r *stormRequest, o *resilience.Outcome) {
	if r.over {
		return
	}
	r.over = true
	c := r.call
	c.lease.Report(o)
	c.lease.Release()
	if wait, again := c.try.Next(o); again {
		s.after(wait, func() { s.attempt(c) })
		return
	}
	c.try.Commit()
	c.call.Finish(o)
	if o.Status == 200 {
		s.seconds[c.second].good++
	}
}

// runStorm returns what became of the requests of each second.
func runStorm(t *testing.T, seed uint64, policy stormPolicy, length time.Duration) []stormSecond {
	var seconds []stormSecond
	synctest.Test(t, func(t *testing.T) {
		s := &storm{
			t: t, random: rand.New(rand.NewPCG(seed, 7)), policy: policy, origin: time.Now(),
			seconds: make([]stormSecond, length/time.Second),
		}
		retry := resilience.DefaultRetryPolicy(resilience.On5xx)
		retry.NumRetries, retry.PerTryTimeout = 3, stormTimeout
		for range stormClients {
			config := cluster("c", "a:1")
			config.RetryBudget = policy.budget
			e := New(Options{Subscribe: func(string) {}, Draw: s.random.Uint64})
			defer e.Close()
			e.Install(one(t, config, &retry))
			s.engines = append(s.engines, e)
		}
		s.after(0, s.arrive)
		// A while longer than the requests come, so that the last ones end.
		for len(s.events) > 0 {
			next := heap.Pop(&s.events).(stormEvent)
			if next.at.Sub(s.origin) > length+5*time.Second {
				break
			}
			time.Sleep(time.Until(next.at))
			next.do()
		}
		for _, e := range s.engines {
			if c := e.view.Load().clusters["c"]; policy.shed != nil && c.retries.Load() != 0 {
				t.Errorf("%d retries are still counted", c.retries.Load())
			}
		}
		seconds = s.seconds
	})
	return seconds
}

// amplification returns the attempts by the requests.
func amplification(seconds []stormSecond) float64 {
	attempts, calls := 0, 0
	for _, s := range seconds {
		attempts, calls = attempts+s.attempts, calls+s.calls
	}
	return float64(attempts) / float64(calls)
}

// TestRetryStorm: with budgets by ratio and a server that drops what it can not
// answer in time, the service is back within two seconds after the trouble, in
// every run, and retries add less than a third to the load, also while it lasts.
// Without either it never comes back.
func TestRetryStorm(t *testing.T) {
	const seeds = 20
	end := int(stormEnd / time.Second)
	t.Run("with budget and shedding", func(t *testing.T) {
		worst, most := 1.0, 0.0
		for seed := range uint64(seeds) {
			seconds := runStorm(t, seed, stormPolicy{&resilience.RatioRetryBudget, &resilience.DefaultShedding}, stormEnd+12*time.Second)
			for i, s := range seconds[end+2:] {
				worst = math.Min(worst, s.goodput())
				if s.goodput() < .95 {
					t.Errorf("seed %d: goodput %.2f in the second from %d s after the trouble", seed, s.goodput(), i+2)
				}
			}
			for _, part := range [][]stormSecond{seconds, seconds[int(stormBegin/time.Second) : end+2]} {
				most = math.Max(most, amplification(part))
				if a := amplification(part); a > 1.3 {
					t.Errorf("seed %d: amplification %.2f", seed, a)
				}
			}
		}
		t.Logf("least goodput from 2 s after the trouble on: %.3f; largest amplification: %.3f", worst, most)
	})
	t.Run("unbudgeted control", func(t *testing.T) {
		best := 0.0
		for seed := range uint64(seeds / 4) { // each is long
			seconds := runStorm(t, seed, stormPolicy{}, stormEnd+40*time.Second)
			if s := seconds[2]; s.goodput() < .95 {
				t.Errorf("seed %d: goodput %.2f before the trouble: the load is not carried at all", seed, s.goodput())
			}
			last := seconds[len(seconds)-1]
			best = math.Max(best, last.goodput())
			if last.goodput() >= .5 {
				t.Errorf("seed %d: goodput %.2f 40 s after the trouble: the control recovers, so the experiment shows nothing", seed, last.goodput())
			}
		}
		t.Logf("largest goodput 40 s after the trouble: %.3f", best)
	})
}
