package inbound

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// Shedding bounds how many handlers run at one time in a process. Requests
// beyond that wait in a queue, the most urgent first, as far as it makes sense
// for them: see Engine.Admit.
type Shedding struct {
	// MaxConcurrent is how many handlers may run at one time. Required.
	MaxConcurrent int
	// MaxQueue is how many requests may wait. Zero means 40; with a negative number none may.
	MaxQueue int
	// MaxWait is how long one may wait. Zero means 1 s.
	MaxWait time.Duration
}

const defaultMaxWait = time.Second

// shedder is the queue in front of the handlers. While handlers are free,
// requests pass it by a single atomic change.
type shedder struct {
	rule    resilience.Shedding
	queue   int // places; 0 for none
	max     uint32
	maxWait time.Duration

	// state has the number of requests that are served in its upper half, and of
	// those that wait in its lower one, so that both are judged at once: a
	// place becomes free only while nobody waits, and is handed over otherwise.
	state atomic.Uint64
	// service is how long a handler runs on average, in nanoseconds; 0 until one has ended.
	service atomic.Int64

	mu      sync.Mutex // serialises changes of the lower half of state, and guards waiting
	waiting [resilience.MaxUrgency + 1]tickets
}

// oneServed is one request in the upper half of shedder.state.
const oneServed = 1 << 32

// ticket is a request that waits.
type ticket struct {
	done           chan struct{} // closed when the request is served, or put out
	urgency        uint8
	queued         bool
	putOut         bool
	next, previous *ticket
}

// tickets are the requests of one urgency, the oldest first.
type tickets struct {
	first, last *ticket
	count       int
}

func newShedder(o *Shedding) *shedder {
	s := &shedder{
		rule: resilience.Shedding{Queue: o.MaxQueue}, queue: max(o.MaxQueue, 0),
		max: uint32(min(max(o.MaxConcurrent, 1), 1<<31)), maxWait: o.MaxWait,
	}
	if o.MaxQueue == 0 {
		s.rule = resilience.DefaultShedding
		s.queue = s.rule.Queue
	}
	if s.maxWait <= 0 {
		s.maxWait = defaultMaxWait
	}
	return s
}

// tryEnter takes a place where one is free and nobody waits.
func (s *shedder) tryEnter() bool {
	for {
		v := s.state.Load()
		if uint32(v) > 0 || uint32(v>>32) >= s.max {
			return false
		}
		if s.state.CompareAndSwap(v, v+oneServed) {
			return true
		}
	}
}

// enter takes a place, if need be after a wait. deadline is zero where the
// request has none. leave or pass follows NotShed.
func (s *shedder) enter(ctx context.Context, deadline time.Time, urgency uint8) resilience.ShedReason {
	t, reason := s.line(deadline, urgency)
	if t == nil {
		return reason
	}
	timer := time.NewTimer(s.maxWait)
	defer timer.Stop()
	reason = resilience.ShedWait
	select {
	case <-t.done:
	case <-ctx.Done():
		reason = resilience.ShedDeadline
	case <-timer.C:
	}
	s.mu.Lock()
	if t.queued {
		s.remove(t)
		s.state.Add(^uint64(0))
		s.mu.Unlock()
		return reason
	}
	s.mu.Unlock()
	switch {
	case t.putOut:
		return resilience.ShedQueue
	case ctx.Err() != nil || !deadline.IsZero() && !time.Now().Before(deadline):
		s.pass()
		return resilience.ShedDeadline
	}
	return resilience.NotShed
}

// line has a request join the queue. Without a ticket the request is served
// at once, or not at all.
func (s *shedder) line(deadline time.Time, urgency uint8) (*ticket, resilience.ShedReason) {
	limited, left := !deadline.IsZero(), time.Duration(0)
	if limited {
		left = time.Until(deadline)
	}
	urgency = min(urgency, resilience.MaxUrgency)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		v := s.state.Load()
		if uint32(v) == 0 && uint32(v>>32) < s.max {
			if s.state.CompareAndSwap(v, v+oneServed) {
				return nil, resilience.NotShed
			}
			continue
		}
		load := resilience.ServerLoad{Workers: int(s.max), Service: time.Duration(s.service.Load())}
		for u := range urgency + 1 {
			load.Waiting += s.waiting[u].count
		}
		switch reason := s.rule.Decide(load, left, limited, urgency); {
		case reason == resilience.ShedDeadline, reason == resilience.ShedWait:
			return nil, reason
		case reason != resilience.NotShed:
			return nil, resilience.ShedQueue
		case load.Wait() > s.maxWait:
			return nil, resilience.ShedWait
		}
		t := &ticket{done: make(chan struct{}), urgency: urgency, queued: true}
		if int(uint32(v)) >= s.queue {
			// There are places for this urgency, so somebody who is less urgent waits.
			// While anybody waits nobody but the holder of mu changes the lower half.
			s.putOut()
		} else if !s.state.CompareAndSwap(v, v+1) {
			continue
		}
		s.append(t)
		return t, resilience.NotShed
	}
}

// putOut refuses, of those who wait, the last of the least urgent. mu is held.
func (s *shedder) putOut() {
	for u := len(s.waiting) - 1; u >= 0; u-- {
		if t := s.waiting[u].last; t != nil {
			s.remove(t)
			t.putOut = true
			close(t.done)
			return
		}
	}
}

func (s *shedder) append(t *ticket) {
	l := &s.waiting[t.urgency]
	if t.previous = l.last; t.previous == nil {
		l.first = t
	} else {
		t.previous.next = t
	}
	l.last = t
	l.count++
}

func (s *shedder) remove(t *ticket) {
	l := &s.waiting[t.urgency]
	if t.previous == nil {
		l.first = t.next
	} else {
		t.previous.next = t.next
	}
	if t.next == nil {
		l.last = t.previous
	} else {
		t.next.previous = t.previous
	}
	t.next, t.previous, t.queued = nil, nil, false
	l.count--
}

// leave frees the place of a request whose handler ran so long.
func (s *shedder) leave(took time.Duration) {
	old := s.service.Load()
	next := int64(max(took, 1))
	if old > 0 {
		// A stream that was open for hours says little of how soon a place is free:
		// what is far above the average counts as eight times that.
		next = max(1, old+(min(next, 8*old)-old)/16)
	}
	s.service.Store(next)
	s.pass()
}

// pass hands a place to who waits longest among the most urgent, or frees it.
func (s *shedder) pass() {
	for {
		v := s.state.Load()
		if uint32(v) == 0 {
			if s.state.CompareAndSwap(v, v-oneServed) {
				return
			}
			continue
		}
		s.mu.Lock()
		for u := range s.waiting {
			if t := s.waiting[u].first; t != nil {
				s.remove(t)
				s.state.Add(^uint64(0))
				s.mu.Unlock()
				close(t.done)
				return
			}
		}
		s.mu.Unlock() // who waited has left
	}
}

var priorityHeader = routing.NewHeaderName("priority")

// shed takes a place among the requests that are served.
func (run *admission) shed() error {
	s := run.e.shedder
	if s == nil || run.again() {
		return nil
	}
	if !s.tryEnter() {
		urgency := resilience.Urgency(priorityHeader.In(run.r.Access.Header, run.r.Access.Form))
		switch reason := s.enter(run.ctx, run.deadline, urgency); reason {
		case resilience.NotShed:
		case resilience.ShedDeadline:
			return run.late(run.ctx.Err())
		default:
			d := run.denied(ReasonOverload, http.StatusServiceUnavailable, reason.String(), "overloaded")
			d.Header = []Header{{"x-envoy-overloaded", "true"}}
			return d
		}
	}
	h := run.held()
	h.shedder, h.served = s, time.Now()
	return nil
}
