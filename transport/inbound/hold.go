package inbound

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// Hold is what a request takes up until its handler has returned.
type Hold struct {
	engine   *Engine
	adaptive *outbound.Adaptive // nil where nothing of it is held
	began    time.Time          // when adaptive let the request in
	shedder  *shedder           // nil as adaptive
	served   time.Time          // when shedder did
}

// Release frees it. answered says that the caller was given the whole answer:
// else its latency says nothing of this server. nil holds nothing, and a second
// call does nothing.
func (h *Hold) Release(answered bool) {
	if h == nil {
		return
	}
	now := time.Now()
	if s := h.shedder; s != nil {
		h.shedder = nil
		s.leave(now.Sub(h.served))
	}
	if a := h.adaptive; a != nil {
		h.adaptive = nil
		a.Leave(h.began, now, answered)
	}
}

// heldKey is the key of contexts of requests that take up something of an engine.
type heldKey struct{ engine *Engine }

// Context is the context for the request's handler. A request that passes Admit
// once more with it, as a call does where gRPC's server runs under the HTTP
// handler, is counted once.
func (h *Hold) Context(ctx context.Context) context.Context {
	if h == nil {
		return ctx
	}
	return context.WithValue(ctx, heldKey{h.engine}, true)
}

// again reports whether the request has passed Admit already.
func (run *admission) again() bool { return run.ctx.Value(heldKey{run.e}) != nil }

// held is the request's Hold.
func (run *admission) held() *Hold {
	if run.a.Hold == nil {
		run.a.Hold = &Hold{engine: run.e}
	}
	return run.a.Hold
}

// adaptive returns the limiter of a chain: that of the chain before it where the
// policy is the same, because what it has learned still holds.
func adaptive(p *snapshot.FilterChain, before *chain, now time.Time) *outbound.Adaptive {
	switch {
	case p.Concurrency == nil:
		return nil
	case before != nil && before.policy.Concurrency != nil && *before.policy.Concurrency == *p.Concurrency:
		return before.adaptive
	}
	return outbound.NewAdaptive(*p.Concurrency, now, rand.Uint64)
}

// concurrency takes a place among the requests that the chain's limiter lets in.
func (run *admission) concurrency(last bool) error {
	a := run.chain.adaptive
	if a == nil || run.chain.policy.ConcurrencyLast != last || run.again() {
		return nil
	}
	if !a.Enter() {
		status := run.chain.policy.Concurrency.Status
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
		return run.denied(ReasonOverload, status, "adaptive_concurrency", "reached concurrency limit")
	}
	h := run.held()
	h.adaptive, h.began = a, time.Now()
	return nil
}

// expired refuses a request whose deadline has passed: nobody waits for the answer.
func (run *admission) expired() error {
	if run.deadline.IsZero() {
		return nil
	}
	if err := run.ctx.Err(); errors.Is(err, context.DeadlineExceeded) {
		return run.late(err)
	}
	if !time.Now().Before(run.deadline) {
		return run.late(context.DeadlineExceeded)
	}
	return nil
}

// late makes the error of a request whose caller has given up.
func (run *admission) late(err error) error {
	listener := run.outcome.Listener
	return &DeniedError{Reason: ReasonDeadline, HTTPStatus: http.StatusGatewayTimeout, Listener: listener, Message: "the request's deadline has passed", Err: err}
}

// waited tells a refusal that waiting for something has come to from what
// policy decides: where it was the deadline that ended the wait, it is that.
func (run *admission) waited(err error) error {
	var notReady *NotReadyError
	var denied *DeniedError
	switch {
	case errors.As(err, &notReady):
		if !errors.Is(notReady.Err, context.DeadlineExceeded) {
			return err
		}
	case !errors.As(err, &denied):
		return err
	case denied.Reason == ReasonExternal && run.outcome.ExternalFailed,
		denied.Reason == ReasonToken && denied.Rule == identity.JWTKeysUnavailable.String():
	default:
		return err
	}
	if run.expired() == nil {
		return err
	}
	return run.late(err)
}
