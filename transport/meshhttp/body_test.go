package meshhttp

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// given is a caller's body: it counts its closings and can hold a Read until it is closed or let go.
type given struct {
	io.Reader
	closed atomic.Int32
	held   chan struct{} // nil: Read does not wait; closed lets it go
	gone   chan struct{}
}

func newSource(s string) *given {
	return &given{Reader: strings.NewReader(s), gone: make(chan struct{})}
}

var errSourceClosed = errors.New("body is closed")

func (s *given) Read(p []byte) (int, error) {
	if s.held != nil {
		select {
		case <-s.held:
		case <-s.gone:
			return 0, errSourceClosed
		}
	}
	if s.closed.Load() > 0 {
		return 0, errSourceClosed
	}
	return s.Reader.Read(p)
}

func (s *given) Close() error {
	if s.closed.Add(1) == 1 {
		close(s.gone)
	}
	return nil
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReplay(t *testing.T) {
	t.Run("each reader sees all", func(t *testing.T) {
		s := newSource("payload")
		r := newReplay(s, 100)
		for _, first := range []int{0, 3, 7, 100} {
			v := r.reader()
			head := make([]byte, first)
			n, _ := io.ReadFull(v, head)
			if got := string(head[:n]) + readAll(t, v); got != "payload" {
				t.Errorf("reader got %q", got)
			}
			v.Close()
		}
		if !r.whole() || s.closed.Load() != 0 {
			t.Errorf("whole %v, closed %d times while another attempt may come", r.whole(), s.closed.Load())
		}
		r.settle()
		if s.closed.Load() != 1 {
			t.Errorf("closed %d times", s.closed.Load())
		}
	})
	t.Run("over the limit", func(t *testing.T) {
		s := newSource("0123456789")
		r := newReplay(s, 4)
		v := r.reader()
		if _, err := io.ReadFull(v, make([]byte, 4)); err != nil || !r.whole() {
			t.Fatalf("%v; whole %v at the limit", err, r.whole())
		}
		if got := readAll(t, v); got != "456789" {
			t.Errorf("the reader itself got %q", got)
		}
		if r.whole() || r.kept != nil {
			t.Errorf("whole %v with %d bytes kept", r.whole(), len(r.kept))
		}
	})
	t.Run("settled keeps no more", func(t *testing.T) {
		r := newReplay(newSource("0123456789"), 100)
		v := r.reader()
		_, _ = io.ReadFull(v, make([]byte, 4))
		r.settle()
		if got := readAll(t, v); got != "456789" || len(r.kept) != 0 {
			t.Errorf("%q, %d bytes kept for nobody", got, len(r.kept))
		}
	})
	t.Run("an error of the body is every reader's", func(t *testing.T) {
		broken := errors.New("disk on fire")
		r := newReplay(io.NopCloser(io.MultiReader(strings.NewReader("part"), &failing{broken})), 100)
		for range 2 {
			if b, err := io.ReadAll(r.reader()); string(b) != "part" || !errors.Is(err, broken) {
				t.Errorf("%q %v", b, err)
			}
		}
	})
	t.Run("a closed reader reads nothing", func(t *testing.T) {
		r := newReplay(newSource("x"), 100)
		v := r.reader()
		v.Close()
		if n, err := v.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("%d, %v", n, err)
		}
	})
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// TestReplayBlockedReader: an attempt is given up while the transport is inside
// Read of the caller's body. The new attempt waits for that Read, has its
// bytes, and nobody gets them twice.
func TestReplayBlockedReader(t *testing.T) {
	for _, limit := range []int64{100, 2} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource("payload")
			s.held = make(chan struct{})
			r := newReplay(s, limit)
			old := r.reader()
			given := make(chan error, 1)
			go func() {
				n, err := old.Read(make([]byte, 100))
				if n != 0 {
					t.Errorf("the reader that was given up got %d bytes", n)
				}
				given <- err
			}()
			synctest.Wait() // inside the body's Read
			old.Close()
			next := r.reader()
			got := make(chan string, 1)
			go func() { got <- readAll(t, next) }()
			synctest.Wait()
			select {
			case b := <-got:
				t.Fatalf("the new reader got %q before the body gave anything", b)
			default:
			}
			close(s.held)
			if err := <-given; !errors.Is(err, errReplaced) {
				t.Errorf("the reader that was given up got %v", err)
			}
			if b := <-got; b != "payload" {
				t.Errorf("limit %d: the new reader got %q", limit, b)
			}
			next.Close()
			r.settle()
			if s.closed.Load() != 1 {
				t.Errorf("closed %d times", s.closed.Load())
			}
		})
	}
	t.Run("closing ends a Read that hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSource("payload")
			s.held = make(chan struct{})
			r := newReplay(s, 100)
			v := r.reader()
			ended := make(chan error, 1)
			go func() {
				_, err := v.Read(make([]byte, 1))
				ended <- err
			}()
			synctest.Wait()
			r.settle() // no other attempt will be made
			v.Close()
			if err := <-ended; err == nil {
				t.Error("Read succeeded")
			}
			if s.closed.Load() != 1 {
				t.Errorf("closed %d times", s.closed.Load())
			}
		})
	})
	t.Run("a waiting reader that is closed is let go", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSource("payload")
			s.held = make(chan struct{})
			r := newReplay(s, 100)
			old := r.reader()
			var stale sync.WaitGroup
			stale.Go(func() { _, _ = old.Read(make([]byte, 1)) })
			synctest.Wait()
			next := r.reader()
			ended := make(chan error, 1)
			go func() {
				_, err := next.Read(make([]byte, 1))
				ended <- err
			}()
			synctest.Wait()
			next.Close()
			if err := <-ended; !errors.Is(err, errReplaced) { // while the body still gives nothing
				t.Errorf("error %v", err)
			}
			r.settle() // which closes the body, so that the old reader ends
			stale.Wait()
		})
	})
	t.Run("a superseded reader that waits is let go", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSource("payload")
			s.held = make(chan struct{})
			r := newReplay(s, 100)
			first := r.reader()
			var readers sync.WaitGroup
			readers.Go(func() { _, _ = first.Read(make([]byte, 1)) })
			synctest.Wait()
			second := r.reader()
			readers.Go(func() {
				if _, err := second.Read(make([]byte, 1)); !errors.Is(err, errReplaced) {
					t.Errorf("error %v", err)
				}
			})
			synctest.Wait() // waits for the first one's Read
			third := r.reader()
			synctest.Wait() // the second has returned, the first can not yet
			close(s.held)
			readers.Wait()
			if got := readAll(t, third); got != "payload" {
				t.Errorf("the newest reader got %q", got)
			}
			third.Close()
			r.settle()
		})
	})
}

// oracle is a replay that keeps everything and has never more than one thing going on.
type oracle struct {
	body    string
	limit   int
	read    int // of the body, by all readers together
	newest  int
	offset  map[int]int
	closed  map[int]bool
	settled bool
	over    bool
}

// wants is what the reader's next bytes must begin with; ok is false where it must get an error.
func (o *oracle) wants(reader int) (rest string, ok bool) {
	if o.closed[reader] || reader != o.newest {
		return "", false
	}
	return o.body[o.offset[reader]:], true
}

func (o *oracle) got(reader, n int) {
	o.offset[reader] += n
	if o.offset[reader] > o.read {
		o.read = o.offset[reader]
		o.over = o.over || o.read > o.limit
	}
}

// sourceClosed says whether the body must be closed by now.
func (o *oracle) sourceClosed() bool { return o.settled && (o.newest < 0 || o.closed[o.newest]) }

// play runs a schedule, one byte of which is one step, against replay and oracle.
func play(t *testing.T, body string, limit int, schedule []byte) {
	t.Helper()
	s := &trickle{given: newSource(body)}
	r := newReplay(s, int64(limit))
	o := &oracle{body: body, limit: limit, newest: -1, offset: map[int]int{}, closed: map[int]bool{}}
	var readers []*replayReader
	check := func(step int) {
		want := int32(0)
		if o.sourceClosed() {
			want = 1
		}
		if got := s.closed.Load(); got != want {
			t.Fatalf("step %d of %v: the body was closed %d times, want %d", step, schedule, got, want)
		}
		// Nobody asks once no other attempt will be made.
		if !o.settled && r.whole() == o.over {
			t.Fatalf("step %d of %v: whole %v, over %v", step, schedule, r.whole(), o.over)
		}
	}
	for step, b := range schedule {
		arg := int(b >> 3)
		switch op := b & 7; {
		case op <= 3 && len(readers) > 0: // mostly of the newest
			i := len(readers) - 1
			if op == 3 {
				i = arg % len(readers)
			}
			p := make([]byte, 1+arg)
			n, err := readers[i].Read(p)
			rest, ok := o.wants(i)
			switch {
			case !ok:
				if n != 0 || err == nil || err == io.EOF {
					t.Fatalf("step %d of %v: a reader that is closed or replaced got %d, %v", step, schedule, n, err)
				}
			case err != nil && err != io.EOF, err == io.EOF && n < len(rest), !strings.HasPrefix(rest, string(p[:n])):
				t.Fatalf("step %d of %v: got %q, %v, want a part of %q", step, schedule, p[:n], err, rest)
			default:
				o.got(i, n)
			}
		case op == 4:
			// The engine asks for another reader only while the body is whole and unsettled.
			if r.whole() && !o.settled {
				readers = append(readers, r.reader())
				o.newest = len(readers) - 1
			}
		case op == 5 && len(readers) > 0:
			i := arg % len(readers)
			readers[i].Close()
			o.closed[i] = true
		case op == 6:
			if !o.settled {
				r.settle()
				o.settled = true
			}
		case op == 7 && len(readers) > 0: // closing twice does nothing
			readers[len(readers)-1].Close()
			readers[len(readers)-1].Close()
			o.closed[len(readers)-1] = true
		}
		check(step)
	}
	for i, v := range readers {
		v.Close()
		o.closed[i] = true
	}
	if !o.settled {
		r.settle()
		o.settled = true
	}
	check(len(schedule))
}

// trickle gives a body in pieces of changing length, the last sometimes with its io.EOF.
type trickle struct {
	*given
	n int
}

func (s *trickle) Read(p []byte) (int, error) {
	s.n++
	n, err := s.given.Read(p[:min(len(p), 1+s.n%5)])
	if n > 0 && s.n%2 == 0 && s.Reader.(*strings.Reader).Len() == 0 {
		err = io.EOF
	}
	return n, err
}

// TestReplaySchedules plays random schedules against the oracle: every reader
// sees the body from its start, and the body is closed exactly once in any order.
func TestReplaySchedules(t *testing.T) {
	draw := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		schedule := make([]byte, draw.IntN(40))
		for i := range schedule {
			schedule[i] = byte(draw.Uint32())
		}
		play(t, "0123456789abcdefghijklmnopqrstuvwxyz"[:draw.IntN(37)], draw.IntN(40), schedule)
	}
}

func FuzzReplay(f *testing.F) {
	f.Add("payload", 100, []byte{4, 8, 4, 0, 0, 0, 6, 5})
	f.Add("over the limit", 3, []byte{4, 24, 24, 6, 7})
	f.Add("", 0, []byte{6, 4})
	f.Fuzz(func(t *testing.T, body string, limit int, schedule []byte) {
		if limit < 0 || len(body) > 1<<10 || len(schedule) > 1<<10 {
			t.Skip()
		}
		play(t, body, limit, schedule)
	})
}

// TestReplayConcurrently lets readers be given up and replaced at any moment,
// with the transport still inside them.
func TestReplayConcurrently(t *testing.T) {
	want := strings.Repeat("0123456789", 50)
	for seed := range uint64(200) {
		s := newSource(want)
		r := newReplay(s, 1<<20)
		draw := rand.New(rand.NewPCG(seed, 5))
		var stale sync.WaitGroup
		for range 4 {
			v := r.reader()
			pause := time.Duration(draw.IntN(30)) * time.Microsecond
			size := 1 + draw.IntN(20)
			stale.Go(func() {
				var got bytes.Buffer
				p := make([]byte, size)
				for {
					n, err := v.Read(p)
					got.Write(p[:n])
					if err != nil {
						break
					}
				}
				if !strings.HasPrefix(want, got.String()) {
					t.Errorf("a reader got %q", got.String())
				}
			})
			time.Sleep(pause)
			if draw.IntN(2) == 0 {
				v.Close()
			}
		}
		last := r.reader()
		if got := readAll(t, last); got != want {
			t.Fatalf("seed %d: the last reader got %d bytes, want %d", seed, len(got), len(want))
		}
		stale.Wait()
		last.Close()
		r.settle()
		if s.closed.Load() != 1 {
			t.Fatalf("closed %d times", s.closed.Load())
		}
	}
}

// TestBodies: where nothing has to be kept the transport is given the caller's
// own body, and the next attempt's body comes from GetBody first.
func TestBodies(t *testing.T) {
	get := httptest.NewRequest("GET", "http://svc/", nil)
	get.Body = http.NoBody
	for _, c := range []struct {
		name    string
		request func() *http.Request
		retries bool
		limit   int64
		same    bool // the first body is the caller's
		again   bool // after the first was read to its end
	}{
		{"none", func() *http.Request { return get }, true, 10, true, true},
		{"GetBody", func() *http.Request {
			r, _ := http.NewRequest("POST", "http://svc/", strings.NewReader("body"))
			return r
		}, true, 10, true, true},
		{"kept", func() *http.Request { return httptest.NewRequest("POST", "http://svc/", once("body")) }, true, 10, false, true},
		{"too long to keep", func() *http.Request { return httptest.NewRequest("POST", "http://svc/", once("more than ten")) }, true, 10, false, false},
		{"known to be too long", func() *http.Request {
			r := httptest.NewRequest("POST", "http://svc/", once("body"))
			r.ContentLength = 11
			return r
		}, true, 10, true, false},
		{"no retries", func() *http.Request { return httptest.NewRequest("POST", "http://svc/", once("body")) }, false, 10, true, false},
		{"nothing may be kept", func() *http.Request { return httptest.NewRequest("POST", "http://svc/", once("body")) }, true, -1, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := c.request()
			var b bodies
			b.begin(req, req.Body, c.retries, false, c.limit)
			first, err := b.next()
			if err != nil {
				t.Fatal(err)
			}
			if (first == req.Body) != c.same {
				t.Errorf("the first body is a %T, the caller's a %T", first, req.Body)
			}
			want := readAll(t, first)
			first.Close()
			if b.again() != c.again {
				t.Fatalf("again %v, want %v", b.again(), c.again)
			}
			if !c.again {
				return
			}
			second, err := b.next()
			if err != nil {
				t.Fatal(err)
			}
			if got := readAll(t, second); got != want {
				t.Errorf("the second body is %q, want %q", got, want)
			}
		})
	}
	t.Run("closed if never given out", func(t *testing.T) {
		for _, retries := range []bool{false, true} {
			s := newSource("body")
			req := httptest.NewRequest("POST", "http://svc/", nil)
			req.Body, req.ContentLength = s, -1
			var b bodies
			b.begin(req, req.Body, retries, retries, 10)
			b.done()
			if s.closed.Load() != 1 {
				t.Errorf("closed %d times", s.closed.Load())
			}
		}
	})
}

// TestDrain: what is left of a discarded response is read up to a limit of
// bytes and of time, and then closed whatever happens.
func TestDrain(t *testing.T) {
	for _, c := range []struct {
		name string
		size int
		held bool
		left int
		took time.Duration
	}{
		{"little", 1000, false, 0, 0},
		{"much", 1 << 20, false, 1<<20 - drainLimit, 0},
		{"a server that says no more", 1000, true, 1000, drainTime},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(strings.Repeat("x", c.size))
				if c.held {
					s.held = make(chan struct{})
				}
				began := time.Now()
				drain(s)
				if took := time.Since(began); took != c.took || s.closed.Load() == 0 {
					t.Errorf("took %s, closed %d times", took, s.closed.Load())
				}
				if left := s.Reader.(*strings.Reader).Len(); left != c.left {
					t.Errorf("%d bytes left, want %d", left, c.left)
				}
			})
		})
	}
}

// TestLengthOfBody: a body that is not as long as its request says ends with an
// error of its own, however it is read, and another attempt is told the same.
func TestLengthOfBody(t *testing.T) {
	for _, c := range []struct {
		body string
		want int64
		bad  bool
	}{
		{"abcde", 5, false}, {"ab", 5, true}, {"abcdef", 5, true}, {"", 5, true},
		{"ab", -1, false}, {"ab", 0, false}, // what is not positive is unknown
	} {
		for _, retries := range []bool{true, false} {
			req := request(t, "POST", "http://svc/", nil)
			req.Body, req.ContentLength = io.NopCloser(iotest.OneByteReader(strings.NewReader(c.body))), c.want
			var b bodies
			b.begin(req, req.Body, retries, true, 100)
			for range 2 {
				body, err := b.next()
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(body)
				if (err != nil) != c.bad || (b.failure() != nil) != c.bad {
					t.Errorf("%q of %d, kept %v: error %v, failure %v", c.body, c.want, retries, err, b.failure())
				}
				if !retries {
					break
				}
			}
		}
	}
}
