package meshhttp

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// errPerTry is the cause of an attempt's context when its time limit ended it.
var errPerTry = errors.New("mesh: per-try timeout")

// try is an attempt with a time limit of its own. As in Envoy the limit ends
// where the response's headers have come: the body has the route's timeout.
type try struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
	passed atomic.Bool
}

func newTry(ctx context.Context, limit time.Duration) *try {
	t := &try{limit: limit}
	t.ctx, t.cancel = context.WithCancelCause(ctx)
	t.timer = time.AfterFunc(limit, func() {
		t.passed.Store(true)
		t.cancel(errPerTry)
	})
	return t
}

// headersCame stops the clock.
func (t *try) headersCame() { t.timer.Stop() }

// end frees what the attempt holds; its response's body is done with.
func (t *try) end() {
	t.timer.Stop()
	t.cancel(nil)
}
