package outbound

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

// Adaptive bounds the requests at one time by how their latency grows: the live
// state of a resilience.AdaptiveConcurrency, for a client's host or a server.
// It is safe for concurrent use and has no goroutine: its steps are taken by the
// requests that end.
type Adaptive struct {
	policy resilience.AdaptiveConcurrency
	draw   func() uint64
	active atomic.Int64
	limit  atomic.Uint32

	mu      sync.Mutex // guards the rest
	state   resilience.Gradient
	samples []time.Duration
	seen    int // latencies since samples began, kept or not
}

// maxSamples bounds the latencies that are kept of one interval; of more, every
// latency has the same chance to be kept.
const maxSamples = 1024

// NewAdaptive returns a limiter in which nothing is under way. draw returns 64 random bits.
func NewAdaptive(policy resilience.AdaptiveConcurrency, now time.Time, draw func() uint64) *Adaptive {
	a := &Adaptive{policy: policy, draw: draw, state: policy.Start(now)}
	a.limit.Store(a.state.Limit)
	return a
}

// Enter takes the place of one request; false means that there is none. Leave follows true.
func (a *Adaptive) Enter() bool {
	if a.active.Add(1) > int64(a.limit.Load()) {
		a.active.Add(-1)
		return false
	}
	return true
}

// Leave frees the place of a request that began at the given time. counts has
// its latency counted: not that of one that was given up.
func (a *Adaptive) Leave(began, now time.Time, counts bool) {
	a.active.Add(-1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if counts && !began.Before(a.state.Since) {
		a.keep(now.Sub(began))
	}
	if a.state.Measuring {
		after, used := a.policy.Sampled(a.state, a.samples, now, a.draw())
		if !used {
			return
		}
		a.state = after
	} else {
		if now.Before(a.state.Next) {
			return
		}
		a.state = a.policy.Update(a.state, a.samples, now)
	}
	a.samples, a.seen = a.samples[:0], 0
	a.limit.Store(a.state.Limit)
}

// keep adds a latency to the samples (reservoir sampling). The caller holds mu.
func (a *Adaptive) keep(took time.Duration) {
	a.seen++
	if len(a.samples) < max(maxSamples, int(a.policy.MinRTTRequests)) {
		a.samples = append(a.samples, took)
	} else if i := a.draw() % uint64(a.seen); i < uint64(len(a.samples)) {
		a.samples[i] = took
	}
}

// Limit returns the present limit.
func (a *Adaptive) Limit() uint32 { return a.limit.Load() }

// Active returns the requests under way.
func (a *Adaptive) Active() int64 { return a.active.Load() }
