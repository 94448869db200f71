package meshhttp

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

// race is a request whose attempts run side by side. Each lane has a goroutine;
// the caller's own waits for the first good answer. What the others are sent is
// cancelled then, and what has come for them closed.
type race struct {
	onTimeout bool // the end of an attempt's time limit begins another beside it
	results   chan result
	soft      chan *lane
	over      chan struct{} // closed when there is a winner
	winner    *lane         // nil before
}

// side is what a lane has in a race alone.
type side struct {
	ctx      context.Context // the call's, which ends where another lane wins
	stop     context.CancelCauseFunc
	begun    bool        // the first attempt was begun already
	replaced atomic.Bool // another lane was begun in place of repetitions
	soft     *time.Timer // what begins another lane; nil where nothing does
}

// replaced reports whether another lane was begun in place of repetitions of this one.
func (l *lane) replaced() bool { return l.side != nil && l.side.replaced.Load() }

type result struct {
	lane *lane
	resp *http.Response // nil where err is set
	err  error
}

// late has another lane begun beside one whose time limit has passed.
func (r *race) late(l *lane) {
	select {
	case r.soft <- l:
	case <-r.over:
	}
}

// runRace sends the request in lanes side by side, initial of them at once.
func (x *exchange) runRace(policy *resilience.RetryPolicy, initial int, onTimeout bool) (*http.Response, error) {
	if err := x.call.Begin(&x.first.try); err != nil {
		x.first.outcome = resilience.Outcome{GRPC: -1, Failure: resilience.Overflow}
		return nil, err
	}
	r := &race{onTimeout: onTimeout, results: make(chan result), soft: make(chan *lane), over: make(chan struct{})}
	x.race = r
	x.parts.Store(1) // the response
	lanes := []*lane{&x.first}
	running := 0
	start := func(l *lane) {
		l.side = &side{begun: l == &x.first}
		l.side.ctx, l.side.stop = context.WithCancelCause(x.ctx)
		running++
		x.parts.Add(1)
		go x.compete(r, l, policy)
	}
	hedge := func() bool {
		l := &lane{x: x}
		if !x.call.Hedge(&l.try) {
			return false
		}
		lanes = append(lanes, l)
		start(l)
		return true
	}
	start(&x.first)
	for range initial - 1 {
		if !hedge() {
			break
		}
	}
	var best result
	for running > 0 {
		select {
		case l := <-r.soft:
			if !l.replaced() && hedge() {
				l.side.replaced.Store(true)
			}
			continue
		case next := <-r.results:
			running--
			better := best.lane == nil || next.resp != nil || best.resp == nil
			if !better {
				next, best = best, next
			}
			// What was there before gives way to the last answer, as in Envoy.
			if best.lane != nil {
				best.discard()
			}
			best = next
		}
		if good(&best, policy) {
			break
		}
	}
	for _, l := range lanes {
		if l != best.lane {
			l.side.stop(errLost)
		}
	}
	close(r.over)
	best.lane.try.Commit()
	r.winner = best.lane
	return best.resp, best.err
}

// good reports whether a result is one that the caller gets without waiting for others.
func good(r *result, policy *resilience.RetryPolicy) bool {
	o := &r.lane.outcome
	switch {
	case r.resp == nil:
		// Nothing that another lane could do better about.
		return o.Failure == resilience.Cancelled || o.Failure == resilience.RouteTimeout || o.Failure == resilience.LocalError
	case policy == nil:
		return o.Status < 500
	}
	return !policy.Retriable(o)
}

// compete runs a lane to its end.
func (x *exchange) compete(r *race, l *lane, policy *resilience.RetryPolicy) {
	resp, err := l.run(policy)
	result := result{l, resp, err}
	select {
	case r.results <- result:
	case <-r.over:
		result.discard()
	}
	x.part()
}

// discard ends a lane that nobody wants the answer of.
func (r *result) discard() {
	r.lane.side.stop(errLost)
	if r.resp != nil {
		r.resp.Body.Close()
	}
	r.lane.end()
}
