package meshhttp

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// errLost is the cause of an attempt's context when the answer to another one was taken.
var errLost = errors.New("mesh: another attempt was answered first")

// try is an attempt with time limits of its own. As in Envoy the first ends
// where the response's headers have come: the body has the route's timeout. The
// idle limit lasts as long as the response.
type try struct {
	ctx    deadline // the attempt's, which ends with either limit
	alarm  alarm    // of the limit until the headers have come
	passed atomic.Bool
	idle   *idle // nil without a limit
}

// begin begins an attempt, whose time counts from began and whose context is made from ctx, and where parent is
// not nil ends with that; a limit of zero is none. end must follow.
func (t *try) begin(c *clock, parent *deadline, ctx context.Context, began time.Time, limit, idle time.Duration) {
	if parent != nil {
		t.ctx.join(parent, ctx)
	} else {
		t.ctx.under(ctx)
	}
	if limit > 0 {
		t.alarm.at, t.alarm.rings = began.Add(limit), t
		c.add(&t.alarm)
	}
	if idle > 0 {
		t.idle = newIdle(c, idle, &t.ctx)
	}
}

// ring implements ringer for the first limit.
func (t *try) ring() {
	t.passed.Store(true)
	t.ctx.finish(context.Canceled)
}

// headersCame stops the first clock.
func (t *try) headersCame() {
	t.alarm.remove()
	t.idle.touch()
}

// end frees what the attempt holds; its response's body is done with.
func (t *try) end() {
	t.alarm.remove()
	t.idle.stop()
	t.ctx.end()
}
