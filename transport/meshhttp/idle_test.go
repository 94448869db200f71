package meshhttp

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestIdle(t *testing.T) {
	for _, c := range []struct {
		name  string
		moves []time.Duration // after the beginning
		stop  time.Duration   // 0: never
		want  time.Duration   // 0: it does not pass
	}{
		{name: "nothing moves", want: time.Second},
		{name: "one byte", moves: []time.Duration{400 * time.Millisecond}, want: 1400 * time.Millisecond},
		{name: "a byte in the last moment, and another", moves: []time.Duration{999 * time.Millisecond, 1998 * time.Millisecond}, want: 2998 * time.Millisecond},
		{name: "a byte too late", moves: []time.Duration{1001 * time.Millisecond}, want: time.Second},
		{name: "stopped", stop: 900 * time.Millisecond},
		{name: "stopped after a byte", moves: []time.Duration{500 * time.Millisecond}, stop: 1400 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var passed time.Duration
				ends := new(deadline)
				ends.under(context.Background())
				context.AfterFunc(ends, func() { passed = time.Since(began) })
				i := newIdle(new(clock), time.Second, ends)
				for _, at := range c.moves {
					time.Sleep(at - time.Since(began))
					i.touch()
				}
				if c.stop > 0 {
					time.Sleep(c.stop - time.Since(began))
					i.stop()
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if passed != c.want || i.expired() != (c.want > 0) {
					t.Errorf("passed after %s (%t), want %s", passed, i.expired(), c.want)
				}
			})
		})
	}
	var none *idle
	none.touch()
	none.stop()
	if none.expired() {
		t.Error("no limit has passed")
	}
}

func TestMovingBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(clock)
		call, try := newIdle(c, time.Second, new(deadline)), newIdle(c, time.Second, new(deadline))
		m := &moving{ReadCloser: io.NopCloser(strings.NewReader("ab")), call: call, try: try}
		for range 2 {
			time.Sleep(900 * time.Millisecond)
			if n, err := m.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		time.Sleep(900 * time.Millisecond)
		synctest.Wait()
		if call.expired() || try.expired() {
			t.Error("bytes have moved all the time")
		}
		time.Sleep(101 * time.Millisecond)
		synctest.Wait()
		if !call.expired() || !try.expired() {
			t.Error("nothing has moved for a second")
		}
	})
}
