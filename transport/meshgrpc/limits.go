package meshgrpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// limits are the time limits of one attempt.
type limits struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	stop   context.CancelFunc
	reason error         // that ctx's own deadline ends it for
	try    time.Duration // per-try timeout
	idle   time.Duration // per-try idle timeout
	passed atomic.Bool   // the per-try timeout, of a stream
	still  atomic.Bool   // the per-try idle timeout has passed

	mu     sync.Mutex  // guards what follows
	timer  *time.Timer // of streams, whose limit ends with the header
	over   bool        // the header has come
	idling *time.Timer // of streams; nil without an idle timeout
}

// limit returns the context of an attempt at a unary RPC. The limit is a
// deadline, which gRPC tells the server. Of a unary response gRPC shows no part
// before its end, so the idle timeout is for all of it.
func (a *attempt) limit(above context.Context, try, idle time.Duration) context.Context {
	if try <= 0 && idle <= 0 {
		return above
	}
	l := &limits{try: try, idle: idle, reason: errPerTry}
	limit := try
	if idle > 0 && (try <= 0 || idle < try) {
		limit, l.reason = idle, errTryIdle
	}
	l.ctx, l.stop = context.WithTimeoutCause(above, limit, l.reason)
	a.limits = l
	return l.ctx
}

// limitStream is limit for a stream, which goes on beyond the limit once its header has come.
// Nothing may move on it for longer than idle; zero is without limit.
func (a *attempt) limitStream(above context.Context, idle time.Duration) context.Context {
	l := &limits{}
	a.limits = l
	l.ctx, l.cancel = context.WithCancelCause(above)
	if l.idle = idle; idle > 0 {
		l.idling = time.AfterFunc(idle, func() {
			l.still.Store(true)
			l.cancel(errTryIdle)
		})
	}
	return l.ctx
}

// touch notes that something has moved on a stream.
func (l *limits) touch() {
	if l != nil && l.idling != nil {
		l.idling.Reset(l.idle)
	}
}

// complete starts the clock of a stream: as in Envoy the limit counts from when
// the whole request has been sent.
func (l *limits) complete(try time.Duration) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if try <= 0 || l.cancel == nil || l.timer != nil || l.over {
		return
	}
	l.try = try
	l.timer = time.AfterFunc(try, func() {
		l.passed.Store(true)
		l.cancel(errPerTry)
	})
}

// answered stops the clock: the header has come.
func (l *limits) answered() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.timer != nil {
		l.timer.Stop()
	}
}

// expired reports whether the attempt's own limit has ended it.
func (l *limits) expired() bool {
	return l != nil && (l.passed.Load() || l.reason == errPerTry && l.stop != nil && over(l.ctx, errPerTry))
}

// idled reports whether the attempt's idle timeout has ended it.
func (l *limits) idled() bool {
	return l != nil && (l.still.Load() || l.reason == errTryIdle && l.stop != nil && over(l.ctx, errTryIdle))
}

// over reports whether a context has ended for the reason. gRPC and servers look
// at the clock, and may be ahead of the context's timer.
func over(ctx context.Context, reason error) bool {
	if ctx.Err() != nil {
		return reason == nil || context.Cause(ctx) == reason
	}
	at, ok := ctx.Deadline()
	return ok && !at.After(time.Now())
}

// end frees what the limits hold. What is sent with their context ends.
func (l *limits) end() {
	if l == nil {
		return
	}
	l.answered()
	if l.idling != nil {
		l.idling.Stop()
	}
	if l.cancel != nil {
		l.cancel(nil)
	}
	if l.stop != nil {
		l.stop()
	}
}
