package meshhttp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// h2World is a server of HTTP/2 and streams to it.
type h2World struct {
	*streams
	server *httptest.Server
	count  *connections
}

func newH2World(t *testing.T, most, requests uint32, limits resilience.Limits, h http.HandlerFunc) *h2World {
	t.Helper()
	leak.Check(t)
	w := &h2World{count: &connections{}}
	w.server = httptest.NewUnstartedServer(h)
	w.server.Config.Protocols = new(http.Protocols)
	w.server.Config.Protocols.SetUnencryptedHTTP2(true)
	w.server.Config.ConnState = w.count.state
	w.server.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 10}
	w.server.Start()
	t.Cleanup(w.server.Close)
	w.streams = plainStreams(most, requests, limits, (&net.Dialer{}).DialContext)
	t.Cleanup(func() {
		w.streams.retire()
		w.count.wait(t, 0)
		for deadline := time.Now().Add(20 * time.Second); w.room.open.Load() != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d connections are still counted", w.room.open.Load())
			}
		}
		for i := range w.room.waiting {
			if n := w.room.waiting[i].Load(); n != 0 {
				t.Errorf("%d still wait", n)
			}
		}
		for deadline := time.Now().Add(20 * time.Second); len(*w.hosts.Load()) != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the endpoint is still remembered")
			}
		}
	})
	return w
}

func plainStreams(most, requests uint32, limits resilience.Limits, dial dialFunc) *streams {
	transport := &http.Transport{DialContext: remember(markDialErrors(dial)), Protocols: new(http.Protocols), IdleConnTimeout: time.Minute}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return newStreams(transport, "http", 5*time.Second, most, requests, &room{limits: [resilience.Priorities]resilience.Limits{limits, limits}})
}

func (w *h2World) do(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, "GET", w.server.URL, nil)
	if err != nil {
		return err
	}
	resp, err := w.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// TestStreamsShareConnections: requests at once share a connection up to the
// bound, the policy's or the server's, and more of them make more connections.
func TestStreamsShareConnections(t *testing.T) {
	for _, c := range []struct {
		name     string
		most     uint32
		requests int
		want     int // connections
	}{
		{"one", 0, 1, 1},
		{"within the server's bound", 0, 10, 1},
		{"beyond the server's bound", 0, 11, 2},
		{"within the policy's", 4, 4, 1},
		{"beyond the policy's", 4, 9, 3},
		{"one at a time", 1, 3, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			entered, release := make(chan struct{}, 100), make(chan struct{})
			w := newH2World(t, c.most, 0, unlimited, func(http.ResponseWriter, *http.Request) {
				entered <- struct{}{}
				<-release
			})
			// One after another at first, so that the server's settings are known.
			results := make(chan error, c.requests)
			for range c.requests {
				go func() { results <- w.do(t.Context()) }()
				<-entered
			}
			w.count.wait(t, c.want)
			close(release)
			for range c.requests {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
			// And they are used again.
			if err := w.do(t.Context()); err != nil {
				t.Fatal(err)
			}
			if w.count.mu.Lock(); w.count.ever != c.want {
				t.Errorf("%d connections, want %d", w.count.ever, c.want)
			}
			w.count.mu.Unlock()
		})
	}
}

// TestStreamsSpareOne: of the streams that a server is known to take, one is not used.
func TestStreamsSpareOne(t *testing.T) {
	entered, release := make(chan struct{}, 100), make(chan struct{})
	w := newH2World(t, 0, 0, unlimited, func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
	})
	first := make(chan error, 1)
	go func() { first <- w.do(t.Context()) }()
	<-entered
	release <- struct{}{}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 10)
	for i := range cap(results) {
		go func() { results <- w.do(t.Context()) }()
		<-entered
		w.count.wait(t, 1+i/9)
	}
	close(release)
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestStreamsBurst: many requests that begin at once are all answered, whatever
// the server's bound, which they learn of only with the first connection.
func TestStreamsBurst(t *testing.T) {
	w := newH2World(t, 0, 0, unlimited, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") })
	var all sync.WaitGroup
	for range 300 {
		all.Go(func() {
			if err := w.do(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestStreamsLimits(t *testing.T) {
	limits := unlimited
	limits.MaxConnections, limits.MaxPendingRequests = 1, 2
	entered, release := make(chan struct{}, 100), make(chan struct{})
	w := newH2World(t, 1, 0, limits, func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-release
	})
	results := make(chan error, 4)
	go func() { results <- w.do(t.Context()) }()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- w.do(ctx) }()
	go func() { results <- w.do(t.Context()) }()
	for w.room.waiting[0].Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	var limit *outbound.LimitError
	if err := w.do(t.Context()); !errors.As(err, &limit) || limit.Limit != "max_pending_requests" || limit.Max != 2 {
		t.Errorf("error %v, want max_pending_requests", err)
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the cancellation", err)
	}
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if w.count.mu.Lock(); w.count.ever != 1 {
		t.Errorf("%d connections, want 1", w.count.ever)
	}
	w.count.mu.Unlock()
}

// TestStreamsPerConnection: a connection closes after so many requests, when
// the last of them has ended.
func TestStreamsPerConnection(t *testing.T) {
	for _, c := range []struct {
		requests uint32
		want     int
	}{{1, 6}, {2, 3}, {4, 2}, {6, 1}} {
		w := newH2World(t, 0, c.requests, unlimited, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") })
		for range 6 {
			if err := w.do(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if w.count.mu.Lock(); w.count.ever != c.want {
			t.Errorf("%d requests on each: %d connections, want %d", c.requests, w.count.ever, c.want)
		}
		w.count.mu.Unlock()
	}
}

// TestStreamsDrain: retired connections finish what they carry, and take nothing more.
func TestStreamsDrain(t *testing.T) {
	entered, release := make(chan struct{}, 1), make(chan struct{})
	w := newH2World(t, 0, 0, unlimited, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		entered <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "ok")
	})
	done := make(chan error, 1)
	go func() { done <- w.do(t.Context()) }()
	<-entered
	w.retire()
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.count.wait(t, 0)
	// Whoever still has the streams is served, and leaves nothing open.
	if err := w.do(t.Context()); err != nil {
		t.Error(err)
	}
	w.count.wait(t, 0)
}

func TestStreamsConnectionsThatGo(t *testing.T) {
	for name, first := range map[string]func(*http2.Framer, int, uint32) bool{
		"GOAWAY that leaves the stream out": goAway(0, http2.ErrCodeNo),
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			var mu sync.Mutex
			seen := 0
			address := rawServer(t, rawHTTP2(func(f *http2.Framer, n int, stream uint32) bool {
				mu.Lock()
				seen++
				again := seen > 1
				mu.Unlock()
				if !again {
					return first(f, n, stream)
				}
				answerHTTP2(f, stream, "")
				return true
			}))
			s := plainStreams(0, 0, unlimited, (&net.Dialer{}).DialContext)
			defer s.retire()
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+address, strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := s.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		leak.Check(t)
		refused := errors.New("refused")
		s := plainStreams(0, 0, unlimited, func(context.Context, string, string) (net.Conn, error) { return nil, refused })
		body := &closeCounter{Reader: strings.NewReader("x")}
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://192.0.2.1:80", body)
		if err != nil {
			t.Fatal(err)
		}
		var dial *dialError
		if _, err := s.RoundTrip(req); !errors.Is(err, refused) || !errors.As(err, &dial) {
			t.Errorf("error %v", err)
		}
		if body.closed.Load() == 0 {
			t.Error("the body was not closed")
		}
		if len(*s.hosts.Load()) != 0 || s.room.open.Load() != 0 {
			t.Error("something is remembered of a connection that did not come about")
		}
	})
	t.Run("the caller's cancellation does not end a connection that others wait for", func(t *testing.T) {
		w := newH2World(t, 0, 0, unlimited, func(w http.ResponseWriter, r *http.Request) {})
		dialling, proceed := make(chan struct{}, 1), make(chan struct{})
		s := plainStreams(0, 0, unlimited, func(ctx context.Context, network, address string) (net.Conn, error) {
			dialling <- struct{}{}
			<-proceed
			return (&net.Dialer{}).DialContext(ctx, network, address)
		})
		w.streams = s
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- w.do(ctx) }()
		<-dialling
		go func() { second <- w.do(t.Context()) }()
		for w.room.waiting[0].Load() < 2 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		close(proceed)
		if err := <-second; err != nil {
			t.Error(err)
		}
	})
}

// TestStreamsTrace: hooks of net/http/httptrace are told of the connection.
func TestStreamsTrace(t *testing.T) {
	w := newH2World(t, 0, 0, unlimited, func(http.ResponseWriter, *http.Request) {})
	for _, reused := range []bool{false, true} {
		var got httptrace.GotConnInfo
		asked := ""
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GetConn: func(address string) { asked = address },
			GotConn: func(i httptrace.GotConnInfo) { got = i },
		})
		if err := w.do(ctx); err != nil {
			t.Fatal(err)
		}
		address := strings.TrimPrefix(w.server.URL, "http://")
		if asked != address || got.Conn == nil || got.Conn.RemoteAddr().String() != address || got.Reused != reused {
			t.Errorf("asked for %q, got %v", asked, got)
		}
	}
}
