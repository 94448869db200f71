package meshhttp

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// hooked is a context that counts who waits for its end.
type hooked struct {
	context.Context
	hooks, gone atomic.Int32
}

func (h *hooked) AfterFunc(f func()) (stop func() bool) {
	h.hooks.Add(1)
	undo := context.AfterFunc(h.Context, f)
	return func() bool { h.gone.Add(1); return undo() }
}

// Value hides what the context is made of, which context.AfterFunc would hook into past it.
func (h *hooked) Value(any) any { return nil }

func (h *hooked) is(t *testing.T, what string, hooks, gone int32) {
	t.Helper()
	if h.hooks.Load() != hooks || h.gone.Load() != gone {
		t.Errorf("%s: %d hooks, %d of them gone; want %d, %d", what, h.hooks.Load(), h.gone.Load(), hooks, gone)
	}
}

// TestServedContextHooksOnce: into the context above where somebody waits for
// the end, once, and nothing stays there after the request.
func TestServedContextHooksOnce(t *testing.T) {
	var c clock
	begin := func(above context.Context) *served {
		s := new(served)
		s.begin(&c, above, time.Now(), time.Hour)
		return s
	}
	above := &hooked{Context: t.Context()}
	s := begin(above)
	above.is(t, "nobody waits", 0, 0)
	s.Done()
	s.Done()
	s.AfterFunc(func() {})
	above.is(t, "three wait", 1, 0)
	s.end()
	above.is(t, "after the request", 1, 1)

	above = &hooked{Context: t.Context()}
	s = begin(above)
	s.AfterFunc(func() {})
	above.is(t, "a function waits", 1, 0)
	s.end()

	above = &hooked{Context: t.Context()}
	s = begin(above)
	s.end()
	s.Done()
	above.is(t, "somebody waits after the request", 0, 0)

	endless := &hooked{Context: context.WithoutCancel(t.Context())}
	s = begin(endless)
	s.Done()
	endless.is(t, "above never ends", 0, 0)
	s.end()
}

// TestDeadlineLeavesNothingBehind: in the context that it was made of, or the deadline that it has joined.
func TestDeadlineLeavesNothingBehind(t *testing.T) {
	above := &hooked{Context: t.Context()}
	d := new(deadline)
	d.under(above)
	for range 3 {
		child := new(deadline)
		child.join(d, d)
		child.end()
	}
	if d.children != nil {
		t.Error("it remembers those that have left")
	}
	d.end()
	above.is(t, "after the end", 1, 1)
}

// TestIdleThatWasStopped: its alarm may ring in that very moment.
func TestIdleThatWasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := new(deadline)
		ends.under(context.Background())
		i := newIdle(new(clock), time.Second, ends)
		i.stop()
		time.Sleep(time.Minute)
		i.ring()
		if i.expired() || ends.Err() != nil {
			t.Errorf("passed %t, %v", i.expired(), ends.Err())
		}
		i = newIdle(new(clock), time.Second, ends)
		i.ring()
		i.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if i.expired() {
			t.Error("stopped before its time, it has passed")
		}
	})
}
