package meshhttp

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// idle ends a context when nothing has moved for so long: no header, and no
// byte of either body. Bytes note only the time; the alarm looks at it when it
// rings, and is set anew for what is left.
type idle struct {
	limit  time.Duration
	began  time.Time
	moved  atomic.Int64 // since began
	passed atomic.Bool
	clock  *clock
	ends   *deadline

	mu      sync.Mutex // guards the rest
	alarm   alarm
	stopped bool
}

func newIdle(c *clock, limit time.Duration, ends *deadline) *idle {
	i := &idle{limit: limit, began: time.Now(), clock: c, ends: ends}
	i.alarm.at, i.alarm.rings = i.began.Add(limit), i
	c.add(&i.alarm)
	return i
}

// touch notes that something has moved; nil is no limit.
func (i *idle) touch() {
	if i != nil {
		i.moved.Store(int64(time.Since(i.began)))
	}
}

// ring implements ringer.
func (i *idle) ring() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped {
		return
	}
	if until := i.began.Add(time.Duration(i.moved.Load()) + i.limit); until.After(time.Now()) {
		i.alarm.at = until
		i.clock.add(&i.alarm)
		return
	}
	i.stopped = true
	i.passed.Store(true)
	i.ends.finish(context.Canceled)
}

// stop ends the watch; nil is no limit.
func (i *idle) stop() {
	if i != nil {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.stopped = true
		i.alarm.remove()
	}
}

// end has the limit end another context; nil is no limit.
func (i *idle) end(ends *deadline) {
	if i != nil {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.ends = ends
	}
}

// expired reports whether the limit has passed; nil is no limit.
func (i *idle) expired() bool { return i != nil && i.passed.Load() }

// moving is a request's body whose bytes count as movement, of the call and of the attempt.
type moving struct {
	io.ReadCloser
	call, try *idle
}

// Read implements io.Reader.
func (m *moving) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.call.touch()
	m.try.touch()
	return n, err
}
