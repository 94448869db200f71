package inbound

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// arrival is a request on its way through Admit.
type arrival struct {
	admission Admission
	err       error
	done      bool
}

// crowd sends requests to an engine inside a synctest bubble.
type crowd struct {
	e  *Engine
	wg sync.WaitGroup
}

// send sends a request; after synctest.Wait it is done, or it waits.
func (c *crowd) send(ctx context.Context, priority string) *arrival {
	a := &arrival{}
	c.wg.Go(func() {
		r := incoming("/", nil)
		if priority != "" {
			r.Access.Header = map[string][]string{"Priority": {priority}}
		}
		a.err = c.e.Admit(ctx, r, &a.admission)
		a.done = true
	})
	synctest.Wait()
	return a
}

func shedding(o Shedding) func(*Options) {
	return func(options *Options) { options.Shedding = &o }
}

func (a *arrival) is(t *testing.T, what string, want Reason) *DeniedError {
	t.Helper()
	if !a.done || reason(a.err) != want {
		t.Errorf("%s: decided %v, %v; want %q", what, a.done, a.err, want)
	}
	var denied *DeniedError
	errors.As(a.err, &denied)
	return denied
}

func (a *arrival) waits(t *testing.T, what string) {
	t.Helper()
	if a.done {
		t.Errorf("%s: decided (%v), want it to wait", what, a.err)
	}
}

// TestSheddingByUrgency walks one server with a place and a queue of eight.
func TestSheddingByUrgency(t *testing.T) {
	for _, governed := range []bool{true, false} {
		t.Run(fmt.Sprint(governed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t, &snapshot.FilterChain{}, func(o *Options) {
					shedding(Shedding{MaxConcurrent: 1, MaxQueue: 8, MaxWait: time.Minute})(o)
					if !governed {
						o.Subscribe = nil
					}
				})
				c := &crowd{e: d.Engine}
				defer c.wg.Wait()
				ctx := t.Context()
				served := c.send(ctx, "u=7")
				served.is(t, "the first", "")
				if served.admission.Hold == nil || served.admission.Peer == nil {
					t.Fatalf("%+v", served.admission)
				}
				background := c.send(ctx, "u=7") // 1 of 8 places
				background.waits(t, "the first of urgency 7")
				full := c.send(ctx, "u=7").is(t, "the second of urgency 7", ReasonOverload)
				if full == nil || full.HTTPStatus != 503 || !slices.Equal(full.Header, []Header{{"x-envoy-overloaded", "true"}}) || full.Rule == "" {
					t.Errorf("%+v", full)
				}
				var ordinary []*arrival
				for i := range 5 { // 5 of 8
					ordinary = append(ordinary, c.send(ctx, ""))
					ordinary[i].waits(t, "urgency 3")
				}
				c.send(ctx, "u=3").is(t, "the sixth of urgency 3", ReasonOverload)
				urgent := []*arrival{c.send(ctx, "u=0"), c.send(ctx, "u=0"), c.send(ctx, "u=0")}
				// Nine wait for eight places: the least urgent gives way.
				background.is(t, "urgency 7 when the queue is full", ReasonOverload)
				for i, a := range urgent {
					a.waits(t, fmt.Sprint("urgency 0, ", i))
				}
				last := c.send(ctx, "u=1")
				last.waits(t, "urgency 1")
				ordinary[4].is(t, "the last of urgency 3 when the queue is full", ReasonOverload)

				// The order: by urgency, then by arrival.
				queue := append(append(urgent, last), ordinary[:4]...)
				for i, next := range queue {
					served.admission.Hold.Release(true)
					synctest.Wait()
					next.is(t, fmt.Sprint("turn ", i), "")
					for _, later := range queue[i+1:] {
						later.waits(t, fmt.Sprint("at turn ", i))
					}
					served = next
				}
				served.admission.Hold.Release(true)
				served.admission.Hold.Release(true) // does nothing
				if v := d.shedder.state.Load(); v != 0 {
					t.Errorf("at the end %x", v)
				}
				refused := 0
				for _, o := range d.seen.list {
					if o.Reason == ReasonOverload {
						refused++
					}
				}
				if refused != 4 || governed != (len(d.seen.list) == 13) {
					t.Errorf("%d of %d outcomes are refusals", refused, len(d.seen.list))
				}
			})
		})
	}
}

// TestSheddingByTime: whoever would be answered too late is refused at once, and
// whoever waits for too long when its time has come.
func TestSheddingByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, &snapshot.FilterChain{}, shedding(Shedding{MaxConcurrent: 2, MaxQueue: 100, MaxWait: 300 * time.Millisecond}))
		c := &crowd{e: d.Engine}
		defer c.wg.Wait()
		ctx := t.Context()
		within := func(limit time.Duration) context.Context {
			ctx, cancel := context.WithTimeout(ctx, limit)
			t.Cleanup(cancel)
			return ctx
		}
		one := c.send(ctx, "u=0")
		one.is(t, "free", "")
		time.Sleep(100 * time.Millisecond)
		one.admission.Hold.Release(true) // a handler runs for 100 ms

		began := time.Now()
		a, b := c.send(ctx, "u=0"), c.send(ctx, "u=0")
		c.send(within(99*time.Millisecond), "u=0").is(t, "less time than a handler takes", ReasonOverload)
		late := c.send(within(150*time.Millisecond), "u=0")
		late.waits(t, "time enough")
		c.send(within(149*time.Millisecond), "u=0").is(t, "time enough but for the one before", ReasonOverload)
		c.send(within(0), "u=0").is(t, "no time at all", ReasonDeadline)
		given, giveUp := context.WithCancel(ctx)
		gone := c.send(given, "u=0")
		gone.waits(t, "without a deadline")
		giveUp()
		synctest.Wait()
		gone.is(t, "whose caller has gone", ReasonDeadline)
		patient := c.send(ctx, "u=0")
		if !time.Now().Equal(began) {
			t.Fatalf("a refusal took %v", time.Since(began))
		}
		for range 5 { // 50 ms of wait for each: six may wait before one that is let wait for 300 ms
			c.send(ctx, "u=0").waits(t, "within the longest wait")
		}
		c.send(ctx, "u=0").is(t, "beyond the longest wait", ReasonOverload)

		time.Sleep(150 * time.Millisecond)
		synctest.Wait()
		if denied := late.is(t, "when its time has passed", ReasonDeadline); denied == nil || denied.HTTPStatus != 504 {
			t.Errorf("%+v", denied)
		}
		time.Sleep(150 * time.Millisecond)
		synctest.Wait()
		patient.is(t, "after the longest wait", ReasonOverload)
		a.admission.Hold.Release(true)
		b.admission.Hold.Release(false)
		if v := d.shedder.state.Load(); v != 0 {
			t.Errorf("at the end %x", v)
		}
	})
}

// TestSheddingWithoutQueue refuses what can not be served at once.
func TestSheddingWithoutQueue(t *testing.T) {
	d := newDesk(t, &snapshot.FilterChain{}, shedding(Shedding{MaxConcurrent: 1, MaxQueue: -1}))
	var a, b Admission
	if err := d.Admit(t.Context(), incoming("/", nil), &a); err != nil {
		t.Fatal(err)
	}
	if err := d.Admit(t.Context(), incoming("/", nil), &b); reason(err) != ReasonOverload {
		t.Errorf("%v", err)
	}
	a.Hold.Release(true)
	if err := d.Admit(t.Context(), incoming("/", nil), &b); err != nil {
		t.Error(err)
	}
}

// TestRefusedRequestsTakeNoPlace: whom policy refuses is not counted among those who are served.
func TestRefusedRequestsTakeNoPlace(t *testing.T) {
	deny := sure(identity.NewAuthorizer(set(identity.Deny, false, when("no", header("x", "1")))))
	d := newDesk(t, &snapshot.FilterChain{Authorizer: deny}, shedding(Shedding{MaxConcurrent: 1, MaxQueue: -1}))
	for range 3 {
		var a Admission
		if err := d.Admit(t.Context(), incoming("/", map[string][]string{"X": {"1"}}), &a); reason(err) != ReasonAuthorization || a.Hold != nil {
			t.Errorf("%v %v", err, a.Hold)
		}
	}
	var a Admission
	if err := d.Admit(t.Context(), incoming("/", nil), &a); err != nil {
		t.Error(err)
	}
}

// dumbQueue is the same queue as a list.
type dumbQueue struct {
	max, queue, served int
	waiting            []*dumbWaiter
}

type dumbWaiter struct {
	urgency int
	real    *arrival
}

// arrive returns whether the newcomer is served, waits or is refused, and who is put out for it.
func (q *dumbQueue) arrive(w *dumbWaiter) (verdict string, out *dumbWaiter) {
	if q.served < q.max {
		q.served++
		return "served", nil
	}
	before := 0
	for _, other := range q.waiting {
		if other.urgency <= w.urgency {
			before++
		}
	}
	if float64(before) >= float64(q.queue)*float64(8-w.urgency)/8 {
		return "refused", nil
	}
	if len(q.waiting) == q.queue {
		at := 0
		for i, other := range q.waiting {
			if other.urgency >= q.waiting[at].urgency {
				at = i
			}
		}
		out = q.waiting[at]
		q.waiting = slices.Delete(q.waiting, at, at+1)
	}
	q.waiting = append(q.waiting, w)
	return "waits", out
}

// finish returns whose turn it is.
func (q *dumbQueue) finish() *dumbWaiter {
	if len(q.waiting) == 0 {
		q.served--
		return nil
	}
	at := 0
	for i, other := range q.waiting {
		if other.urgency < q.waiting[at].urgency {
			at = i
		}
	}
	next := q.waiting[at]
	q.waiting = slices.Delete(q.waiting, at, at+1)
	return next
}

// TestSheddingAgainstAList holds the queue against one that looks at everything every time.
func TestSheddingAgainstAList(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			dumb := &dumbQueue{max: 1 + random.IntN(3), queue: 1 + random.IntN(12)}
			d := newDesk(t, &snapshot.FilterChain{}, shedding(Shedding{MaxConcurrent: dumb.max, MaxQueue: dumb.queue, MaxWait: time.Hour}))
			c := &crowd{e: d.Engine}
			var served []*arrival
			for step := range 120 {
				if random.IntN(5) < 3 {
					w := &dumbWaiter{urgency: random.IntN(8)}
					w.real = c.send(t.Context(), fmt.Sprint("u=", w.urgency))
					verdict, out := dumb.arrive(w)
					got := "waits"
					switch {
					case w.real.done && w.real.err == nil:
						got = "served"
						served = append(served, w.real)
					case w.real.done:
						got = "refused"
					}
					if got != verdict || out != nil && reason(out.real.err) != ReasonOverload {
						t.Fatalf("seed %d, step %d: urgency %d %s, want %s; put out %+v", seed, step, w.urgency, got, verdict, out)
					}
				} else if len(served) > 0 {
					served[0].admission.Hold.Release(true)
					served = served[1:]
					synctest.Wait()
					if next := dumb.finish(); next != nil {
						if !next.real.done || next.real.err != nil {
							t.Fatalf("seed %d, step %d: it is not the turn of urgency %d: %v", seed, step, next.urgency, next.real.err)
						}
						served = append(served, next.real)
					}
				}
				if v := d.shedder.state.Load(); int(v>>32) != dumb.served || int(uint32(v)) != len(dumb.waiting) {
					t.Fatalf("seed %d, step %d: %x, want %d served and %d waiting", seed, step, v, dumb.served, len(dumb.waiting))
				}
			}
			for len(served) > 0 {
				served[0].admission.Hold.Release(true)
				served = served[1:]
				synctest.Wait()
				if next := dumb.finish(); next != nil {
					served = append(served, next.real)
				}
			}
			c.wg.Wait()
			if v := d.shedder.state.Load(); v != 0 {
				t.Errorf("seed %d: at the end %x", seed, v)
			}
		})
	}
}

// TestSheddingConcurrently: never more at a time than may be, and every place comes back.
func TestSheddingConcurrently(t *testing.T) {
	const most = 4
	d := newDesk(t, &snapshot.FilterChain{}, shedding(Shedding{MaxConcurrent: most, MaxQueue: 16, MaxWait: time.Minute}))
	var mu sync.Mutex
	now, highest, served := 0, 0, 0
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for n := range 200 {
				ctx, cancel := t.Context(), context.CancelFunc(func() {})
				if (i+n)%7 == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(n)*time.Microsecond)
				}
				var a Admission
				err := d.Admit(ctx, incoming("/", map[string][]string{"Priority": {fmt.Sprint("u=", i%8)}}), &a)
				if err == nil {
					mu.Lock()
					now++
					served++
					highest = max(highest, now)
					mu.Unlock()
					mu.Lock()
					now--
					mu.Unlock()
					a.Hold.Release(true)
				} else if r := reason(err); r != ReasonOverload && r != ReasonDeadline {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if v := d.shedder.state.Load(); v != 0 || highest > most || served == 0 {
		t.Errorf("at the end %x, at most %d at a time, %d served", v, highest, served)
	}
}

// TestServiceTime: the average follows the handlers, but for a few that run much longer.
func TestServiceTime(t *testing.T) {
	s := newShedder(&Shedding{MaxConcurrent: 1})
	run := func(n int, took time.Duration) time.Duration {
		for range n {
			if !s.tryEnter() {
				t.Fatal("no place")
			}
			s.leave(took)
		}
		return time.Duration(s.service.Load())
	}
	if got := run(1, 10*time.Millisecond); got != 10*time.Millisecond {
		t.Errorf("after the first: %v", got)
	}
	if got := run(1, time.Hour); got > 15*time.Millisecond {
		t.Errorf("after a stream of an hour: %v", got)
	}
	if got := run(200, time.Second); got < 900*time.Millisecond || got > time.Second {
		t.Errorf("when all take a second: %v", got)
	}
	if got := run(200, time.Millisecond); got > 2*time.Millisecond {
		t.Errorf("when all take a millisecond: %v", got)
	}
}

// BenchmarkShed is the way past a queue that nobody waits in.
func BenchmarkShed(b *testing.B) {
	d := newDesk(b, &snapshot.FilterChain{}, func(o *Options) {
		o.Observer = nil
		o.Shedding = &Shedding{MaxConcurrent: 100}
	})
	r := incoming("/", nil)
	var a Admission
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Admit(b.Context(), r, &a); err != nil {
			b.Fatal(err)
		}
		a.Hold.Release(true)
	}
}
