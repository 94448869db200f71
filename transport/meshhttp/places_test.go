package meshhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// eventually polls for what another goroutine does in its own time.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// connected returns the only connection of the world, without a stream and with
// a user of its host counted.
func (w *h2World) connected(t *testing.T) (*streamHost, *streamConn) {
	t.Helper()
	h := w.host(strings.TrimPrefix(w.server.URL, "http://"))
	t.Cleanup(h.leave)
	d := h.connect(&unlimited)
	<-d.done
	if d.err != nil {
		t.Fatal(d.err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h, h.conns[0]
}

func nothing(http.ResponseWriter, *http.Request) {}

// TestPlacesBeforeTheServerSpeaks: how many requests a new connection takes before
// the server has said what it allows.
func TestPlacesBeforeTheServerSpeaks(t *testing.T) {
	for _, c := range []struct {
		bound int // by the connections before; 0 where there were none
		want  int
	}{{0, unsaid}, {1, 1}, {3, 2}, {unsaid + 50, unsaid}} {
		w := newH2World(t, 0, 0, unlimited, nothing)
		h, conn := w.connected(t)
		h.mu.Lock()
		h.bound = c.bound
		h.mu.Unlock()
		// Its settings may come at any time, and count only with its first answer.
		eventually(t, "the server's settings", func() bool { return conn.cc.Available() == 10 })
		got := 0
		for h.reserve().conn != nil {
			got++
		}
		if got != c.want {
			t.Errorf("bound %d: %d places, want %d", c.bound, got, c.want)
		}
		for range got {
			conn.release()
		}
	}
}

// TestPlacesAfterRefusals: a server that refuses even the only request is taken to allow one.
func TestPlacesAfterRefusals(t *testing.T) {
	w := newH2World(t, 0, 0, unlimited, nothing)
	h, conn := w.connected(t)
	p := h.reserve()
	conn.answered(streamError{Code: refusedStream})
	if h.bound != 1 {
		t.Errorf("bound %d, want 1", h.bound)
	}
	p.conn.release()
}

// TestPlaceKeepsItsConnection: a connection that takes no more stays open for who has a place on it and has not sent yet.
func TestPlaceKeepsItsConnection(t *testing.T) {
	w := newH2World(t, 0, 1, unlimited, nothing) // one request each
	h, conn := w.connected(t)
	p := h.reserve()
	if p.conn != conn || !conn.draining.Load() {
		t.Fatal("the first place must be the last")
	}
	conn.settle()
	if err := conn.cc.Err(); err != nil || conn.settled.Load() {
		t.Errorf("closed before the request was sent: %v", err)
	}
	p.conn.release()
	w.count.wait(t, 0)
}

// TestPlacesOfRetiredStreams: what is made for a request that still has the streams closes with it.
func TestPlacesOfRetiredStreams(t *testing.T) {
	w := newH2World(t, 0, 0, unlimited, nothing)
	w.retired.Store(true)
	p, err := w.acquire(t.Context(), strings.TrimPrefix(w.server.URL, "http://"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if !p.conn.draining.Load() {
		t.Error("the connection stays for others")
	}
	p.conn.release()
	w.count.wait(t, 0)
}

// TestConnectionThatNobodyWaitsFor: one that comes about after its only requests
// have gone is used by the next, and closed where there is none.
func TestConnectionThatNobodyWaitsFor(t *testing.T) {
	for _, retired := range []bool{false, true} {
		t.Run(fmt.Sprint("retired ", retired), func(t *testing.T) {
			w := newH2World(t, 0, 0, unlimited, nothing)
			dialling, proceed := make(chan struct{}, 1), make(chan struct{})
			w.streams = plainStreams(0, 0, unlimited, func(ctx context.Context, network, address string) (net.Conn, error) {
				dialling <- struct{}{}
				<-proceed
				return (&net.Dialer{}).DialContext(ctx, network, address)
			})
			cause := errors.New("the caller's reason")
			ctx, cancel := context.WithCancelCause(t.Context())
			gone := make(chan error, 1)
			address := strings.TrimPrefix(w.server.URL, "http://")
			go func() {
				_, err := w.acquire(ctx, address, 0)
				gone <- err
			}()
			<-dialling
			cancel(cause)
			if err := <-gone; err != cause {
				t.Errorf("error %v, want the cause", err)
			}
			if retired {
				w.retire()
			}
			close(proceed)
			if retired {
				eventually(t, "the connection is made", func() bool { w.count.mu.Lock(); defer w.count.mu.Unlock(); return w.count.ever == 1 })
				w.count.wait(t, 0)
				return
			}
			h := (*w.hosts.Load())[address]
			if h == nil {
				t.Fatal("the endpoint is forgotten while a connection to it is made")
			}
			eventually(t, "the connection", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.conns) == 1 })
			if err := w.do(t.Context()); err != nil {
				t.Fatal(err)
			}
			if w.count.mu.Lock(); w.count.ever != 1 {
				t.Errorf("%d connections, want 1", w.count.ever)
			}
			w.count.mu.Unlock()
		})
	}
}

// TestHostIsForgottenUnused: whoever asks for an endpoint has one that is not forgotten before he leaves it.
func TestHostIsForgottenUnused(t *testing.T) {
	s := plainStreams(0, 0, unlimited, nil)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 5_000 {
				h := s.host("a")
				h.mu.Lock()
				removed := h.removed
				h.mu.Unlock()
				if removed {
					t.Error("given one that is forgotten")
				}
				h.leave()
			}
		})
	}
	all.Wait()
	if n := len(*s.hosts.Load()); n != 0 {
		t.Errorf("%d are remembered", n)
	}
}

// TestNoWakeupIsLost: a place that becomes free, and is told of, while a request
// is about to wait for it is taken.
func TestNoWakeupIsLost(t *testing.T) {
	limits := unlimited
	limits.MaxConnections = 1
	w := newH2World(t, 1, 0, limits, nothing)
	h, conn := w.connected(t)
	for range 10 {
		if p := h.reserve(); p.conn != conn {
			t.Fatal("the only place is not free")
		}
		h.wakeMu.Lock() // the request stands where it gets the channel that it waits on
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		got := make(chan error)
		go func() {
			p, err := w.acquire(ctx, h.address, 0)
			if err == nil {
				p.conn.release()
			}
			got <- err
		}()
		for h.waiters.Load() == 0 {
			runtime.Gosched()
		}
		time.Sleep(time.Millisecond) // until it stands there, or nothing is tried
		h.mu.Lock()
		conn.active-- // as release, which has nobody to wake yet
		h.mu.Unlock()
		h.wakeMu.Unlock()
		if err := <-got; err != nil {
			t.Fatalf("the only place is free, and %v", err)
		}
		cancel()
	}
}

// TestClosedConnectionMakesRoom: those that wait look again when one connection less counts, whoever has closed it.
func TestClosedConnectionMakesRoom(t *testing.T) {
	for _, gone := range []bool{false, true} {
		w := newH2World(t, 1, 1, unlimited, nothing)
		h, conn := w.connected(t)
		if p := h.reserve(); p.conn != conn {
			t.Fatal("no place")
		}
		h.mu.Lock()
		conn.active-- // as release, which tells of it before the connection is closed
		h.mu.Unlock()
		h.waiters.Add(1)
		if gone { // its end is told while it still counts
			conn.settled.Store(true)
			_ = conn.cc.Close()
			conn.settled.Store(false)
		}
		woken := h.awaken()
		conn.settle()
		select {
		case <-woken:
		default:
			t.Errorf("gone %t: nobody is told of the room", gone)
		}
		if n := w.room.open.Load(); n != 0 {
			t.Errorf("gone %t: %d connections are counted", gone, n)
		}
		h.waiters.Add(-1)
	}
}

// TestFirstConnectionToAnEndpoint: the limit on a cluster's connections never keeps an endpoint from having one.
func TestFirstConnectionToAnEndpoint(t *testing.T) {
	limits := unlimited
	limits.MaxConnections = 1
	entered, release := make(chan struct{}, 2), make(chan struct{})
	hold := func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-release
	}
	w := newH2World(t, 1, 0, limits, hold)
	other := httptest.NewUnstartedServer(http.HandlerFunc(hold))
	other.Config.Protocols = w.server.Config.Protocols
	other.Start()
	t.Cleanup(other.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	results := make(chan error, 2)
	for i, url := range []string{w.server.URL, other.URL} {
		req := request(t, "GET", url, nil).WithContext(ctx)
		go func() {
			resp, err := w.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			results <- err
		}()
		select {
		case <-entered:
		case err := <-results:
			t.Errorf("endpoint %d: %v", i, err)
			results <- nil
		}
	}
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestConnectionOnItsWayOut: one that takes no more requests, though it still
// carries some, does not keep others from being made.
func TestConnectionOnItsWayOut(t *testing.T) {
	leak.Check(t)
	left, begun := make(chan struct{}), make(chan struct{})
	address := rawServer(t, rawHTTP2(func(f *http2.Framer, n int, stream uint32) bool {
		switch {
		case n > 0:
			answerHTTP2(f, stream, "")
		case stream == 1:
			answerHTTP2(f, stream, "")
		default:
			answerHTTP2(f, stream, "part")
			_ = f.WriteGoAway(stream, http2.ErrCodeNo, nil)
			go func() {
				<-left
				_ = f.WriteData(stream, true, nil)
			}()
			close(begun)
		}
		return true
	}))
	limits := unlimited
	limits.MaxConnections = 1
	s := plainStreams(0, 0, limits, (&net.Dialer{}).DialContext)
	defer s.retire()
	send := func() *http.Response {
		t.Helper()
		resp, err := s.RoundTrip(request(t, "GET", "http://"+address, nil))
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	send().Body.Close()
	first := send()
	<-begun
	h := s.host(address)
	h.mu.Lock()
	conn := h.conns[0]
	h.mu.Unlock()
	h.leave()
	eventually(t, "the connection takes no more", func() bool { return conn.cc.Available() == 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	resp, err := s.RoundTrip(request(t, "GET", "http://"+address, nil).WithContext(ctx))
	if err != nil {
		t.Fatalf("beside a connection that goes: %v", err)
	}
	resp.Body.Close()
	close(left)
	if b, err := io.ReadAll(first.Body); err != nil || string(b) != "part" {
		t.Errorf("%q, %v", b, err)
	}
	first.Body.Close()
}

// TestNotTakenAgain: a request that connections leave out one after the other is repeated a few times, and then policy's.
func TestNotTakenAgain(t *testing.T) {
	leak.Check(t)
	var mu sync.Mutex
	seen := 0
	address := rawServer(t, rawHTTP2(func(f *http2.Framer, n int, stream uint32) bool {
		mu.Lock()
		seen++
		mu.Unlock()
		return goAway(0, http2.ErrCodeNo)(f, n, stream)
	}))
	s := plainStreams(0, 0, unlimited, (&net.Dialer{}).DialContext)
	defer s.retire()
	resp, err := s.RoundTrip(request(t, "GET", "http://"+address, nil))
	if err == nil {
		resp.Body.Close()
		t.Fatal("answered")
	}
	var limit *outbound.LimitError
	if !notTaken(err) || errors.As(err, &limit) {
		t.Errorf("error %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if seen != 1+maxMoved {
		t.Errorf("sent %d times, want %d", seen, 1+maxMoved)
	}
}

// TestTooManyForTheServer: PROTOCOL_ERROR from a server that was not heard yet may
// mean one stream too many. What may come twice is sent again, and nothing else.
func TestTooManyForTheServer(t *testing.T) {
	leak.Check(t)
	for _, c := range []struct {
		method, body string
		heard        bool
		code         http2.ErrCode
		sent         int
	}{
		{"GET", "", false, http2.ErrCodeProtocol, 2},
		{"HEAD", "", false, http2.ErrCodeProtocol, 2},
		{"POST", "", false, http2.ErrCodeProtocol, 1},
		{"GET", "x", false, http2.ErrCodeProtocol, 1},
		{"GET", "", false, http2.ErrCodeInternal, 1},
		{"GET", "", true, http2.ErrCodeProtocol, 1},
	} {
		var mu sync.Mutex
		streams, before := 0, 0
		if c.heard {
			before = 1
		}
		address := rawServer(t, rawHTTP2(func(f *http2.Framer, _ int, stream uint32) bool {
			mu.Lock()
			streams++
			bad := streams == before+1
			mu.Unlock()
			if bad {
				return f.WriteRSTStream(stream, c.code) == nil
			}
			answerHTTP2(f, stream, "")
			return true
		}))
		s := plainStreams(0, 0, unlimited, (&net.Dialer{}).DialContext)
		send := func(method, body string) error {
			var reader io.Reader
			if body != "" {
				reader = strings.NewReader(body)
			}
			resp, err := s.RoundTrip(request(t, method, "http://"+address, reader))
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		if c.heard {
			if err := send("GET", ""); err != nil {
				t.Fatal(err)
			}
		}
		err := send(c.method, c.body)
		mu.Lock()
		if sent := streams - before; sent != c.sent || (err == nil) != (c.sent == 2) {
			t.Errorf("%+v: sent %d times, %v", c, sent, err)
		}
		mu.Unlock()
		s.retire()
	}
}
