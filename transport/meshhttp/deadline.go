package meshhttp

import (
	"context"
	"sync"
	"time"
)

// deadline is a context that ends at a time limit: context.WithTimeout, but
// part of the exchange instead of allocations of its own, and without a table
// of children. net/http derives one context from it, through AfterFunc.
//
// It must be the outermost context that net/http sees: a context made from it
// has no AfterFunc, and the context package then starts a goroutine for each
// context derived from that. See within and join.
type deadline struct {
	context.Context             // above: the caller's, with the call's span
	stop            func() bool // unhooks from the context above; nil where that can not end, or is parent
	parent          *deadline   // ends this one as well; nil without
	alarm           alarm
	tunnel          *deadline // of the connection once it has another protocol; nil without

	mu       sync.Mutex
	done     chan struct{} // made when it is asked for
	err      error
	children *deadline // a list through sibling
	sibling  *deadline // guarded by parent.mu
	// What runs after the end: a first function, which is all that a request
	// without retries needs, and others. The first one's place is used once.
	first     func()
	firstUsed bool
	more      *hook
}

// hook is a function that runs after the end, in a list.
type hook struct {
	f    func()
	next *hook
}

// begin has the clock, which reads now, end the context after the limit. end must follow.
func (d *deadline) begin(c *clock, above context.Context, now time.Time, limit time.Duration) {
	d.alarm.at, d.alarm.rings = now.Add(limit), d
	if at, ok := above.Deadline(); ok && at.Before(d.alarm.at) {
		// The context above ends first, and says why: the clock must not
		// forestall it.
		d.alarm.at = at
	} else {
		c.add(&d.alarm)
	}
	d.under(above)
}

// under makes d a context below another, without a time limit of its own. end must follow.
func (d *deadline) under(above context.Context) {
	d.Context = above
	if above.Done() != nil {
		d.stop = context.AfterFunc(above, d.inherit)
	}
}

// join makes d a context that ends with the parent and has the values of a
// context that was made from it. That costs nothing, unlike under. end must follow.
func (d *deadline) join(parent *deadline, values context.Context) {
	d.Context = values
	parent.mu.Lock()
	err := parent.err
	if err == nil {
		d.parent, d.sibling, parent.children = parent, parent.children, d
	}
	parent.mu.Unlock()
	if err != nil {
		d.finish(err)
	}
}

// leave undoes join.
func (d *deadline) leave() {
	p := d.parent
	p.mu.Lock()
	for at := &p.children; *at != nil; at = &(*at).sibling {
		if *at == d {
			*at = d.sibling
			break
		}
	}
	p.mu.Unlock()
}

func (d *deadline) ring()    { d.finish(context.DeadlineExceeded) }
func (d *deadline) inherit() { d.finish(d.Context.Err()) }

// end frees what begin took.
func (d *deadline) end() {
	d.alarm.remove()
	if t := d.tunnel; t != nil {
		t.unhookFirst()
		t.end()
	}
	if d.stop != nil {
		d.stop()
	}
	if d.parent != nil {
		d.leave()
	}
	d.finish(context.Canceled)
}

func (d *deadline) finish(err error) {
	d.mu.Lock()
	if d.err == nil {
		d.finished(err)
	}
	d.mu.Unlock()
}

// finished is finish for the first time, with mu held.
func (d *deadline) finished(err error) {
	d.err = err
	if d.done != nil {
		close(d.done)
	}
	if d.first != nil {
		go d.first()
	}
	for h := d.more; h != nil; h = h.next {
		go h.f()
	}
	d.first, d.more = nil, nil
	for child := d.children; child != nil; child = child.sibling {
		child.finish(err)
	}
	d.children = nil
}

// Deadline implements context.Context.
func (d *deadline) Deadline() (time.Time, bool) {
	if d.alarm.at.IsZero() {
		return d.Context.Deadline()
	}
	return d.alarm.at, true
}

// Done implements context.Context.
func (d *deadline) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = make(chan struct{})
		if d.err != nil {
			close(d.done)
		}
	}
	return d.done
}

// Err implements context.Context.
func (d *deadline) Err() error {
	d.mu.Lock()
	err := d.err
	d.mu.Unlock()
	return err
}

// AfterFunc is what the context package looks for in contexts of other kinds:
// f runs in a goroutine of its own once the context has ended, unless the
// function that it returns is called before.
func (d *deadline) AfterFunc(f func()) (stop func() bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		go f()
		return func() bool { return false }
	}
	if !d.firstUsed {
		d.first, d.firstUsed = f, true
		return d.unhookFirst
	}
	h := &hook{f, d.more}
	d.more = h
	return func() bool { return d.unhook(h) }
}

func (d *deadline) unhookFirst() bool {
	d.mu.Lock()
	had := d.first != nil
	d.first = nil
	d.mu.Unlock()
	return had
}

func (d *deadline) unhook(h *hook) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for at := &d.more; *at != nil; at = &(*at).next {
		if *at == h {
			*at = h.next
			return true
		}
	}
	return false
}

// within is the deadline with the values of a context that was made from it.
type within struct {
	*deadline
	values context.Context
}

// Value implements context.Context.
func (w within) Value(key any) any { return w.values.Value(key) }
