package meshgrpc

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// hedging is a unary RPC that is sent more than once at the same time.
type hedging struct {
	*unaryRPC
	encoded   *encoded
	onTimeout bool // the per-try timeout begins another attempt, and ends none
	lanes     []*lane
	results   chan *lane
	late      chan *lane
	over      chan struct{} // closed when an answer was chosen
}

// lane is one of the attempts that run side by side, with its own repetitions.
type lane struct {
	ctx     context.Context
	abandon context.CancelCauseFunc
	attempt *attempt
	reply   frame
	hedged  atomic.Bool // another was begun in place of its repetition
	err     error
}

// hedged sends the RPC several times at once and returns the first good answer.
func (u *unaryRPC) hedged(initial int, onTimeout bool) error {
	e := u.options.encode(u.request)
	if e == nil {
		return u.attempts()
	}
	first := &u.first
	first.rpc = &u.rpc
	if err := u.call.Begin(&first.try); err != nil {
		u.end(&resilience.Outcome{GRPC: -1, Failure: resilience.Overflow, Err: err})
		return CallError(err)
	}
	h := &hedging{unaryRPC: u, encoded: e, onTimeout: onTimeout, results: make(chan *lane), late: make(chan *lane), over: make(chan struct{})}
	h.start(first)
	for range initial - 1 {
		h.beside()
	}
	chosen := h.await()
	close(h.over)
	for _, l := range h.lanes {
		if l != chosen {
			l.abandon(errAbandoned)
		}
	}
	return h.finish(chosen)
}

// await returns the lane whose answer is the RPC's.
func (h *hedging) await() *lane {
	var last *lane
	for running := len(h.lanes); ; {
		select {
		case l := <-h.late:
			if !l.hedged.Load() && h.beside() {
				l.hedged.Store(true)
				running++
			}
		case l := <-h.results:
			running--
			switch {
			case l.good():
				if last != nil {
					last.drop()
				}
				return l
			case last == nil:
				last = l
			case last.attempt.outcome.Status != http.StatusOK || l.attempt.outcome.Status == http.StatusOK:
				last.drop()
				last = l
			default:
				l.drop() // an answer says more than none
			}
			if running == 0 {
				return last
			}
		}
	}
}

// good reports whether the answer is the call's without waiting for others.
func (l *lane) good() bool {
	o := &l.attempt.outcome
	switch o.Failure {
	case resilience.NoFailure:
		policy := l.attempt.rpc.call.Retry()
		return l.err == nil || policy == nil || !policy.Retriable(o)
	case resilience.Cancelled, resilience.RouteTimeout, resilience.LocalError:
		return true
	}
	return false
}

// drop ends a lane whose answer nobody wants.
func (l *lane) drop() {
	l.attempt.release()
	l.abandon(errAbandoned)
}

// beside begins one more attempt, if there is a place for it.
func (h *hedging) beside() bool {
	a := newAttempt(&h.rpc, outbound.Try{})
	if !h.call.Hedge(&a.try) {
		return false
	}
	if h.call.Begin(&a.try) != nil {
		return false
	}
	h.start(a)
	return true
}

func (h *hedging) start(a *attempt) {
	l := &lane{attempt: a}
	l.ctx, l.abandon = context.WithCancelCause(h.ctx)
	h.lanes = append(h.lanes, l)
	go func() {
		h.run(l)
		select {
		case h.results <- l:
		case <-h.over:
			l.drop()
		}
	}()
}

// run sends until the lane has its answer.
func (h *hedging) run(l *lane) {
	policy := h.call.Retry()
	for {
		a := l.attempt
		limit := a.try.Timeout()
		if h.onTimeout && limit > 0 {
			timer := time.AfterFunc(limit, func() {
				select {
				case h.late <- l:
				case <-h.over:
				}
			})
			l.err = h.sendAs(a, policy, l.ctx, 0, h.encoded.request, &l.reply, h.encoded.options)
			timer.Stop()
		} else {
			l.err = h.sendAs(a, policy, l.ctx, limit, h.encoded.request, &l.reply, h.encoded.options)
		}
		var anew sendAgain
		if errors.As(l.err, &anew) || l.hedged.Load() {
			return
		}
		wait, again := a.repeat(policy)
		if !again {
			return
		}
		if pause(l.ctx, h.cc, wait) != nil {
			return
		}
		next := newAttempt(a.rpc, a.try)
		a.release()
		l.attempt = next
		if l.err = h.call.Begin(&next.try); l.err != nil {
			next.outcome = resilience.Outcome{GRPC: -1, Failure: resilience.Overflow, Err: CallError(l.err)}
			return
		}
		l.reply.data = nil
	}
}

// finish makes the lane's answer the caller's.
func (h *hedging) finish(l *lane) error {
	defer l.abandon(nil)
	if l.err == nil {
		if err := h.encoded.decode(&l.reply, h.reply); err != nil {
			l.attempt.outcome.Err = status.Errorf(codes.Internal, "mesh: the reply can not be decoded: %v", err)
		}
	}
	return h.unaryRPC.finish(l.attempt)
}
