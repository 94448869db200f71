package meshhttp

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// held returns what the only cluster counts as in flight.
func (w *world) held() (retries, active int64) {
	c := w.engine.Status().Clusters[0]
	for _, e := range c.Endpoints {
		active += int64(e.Active)
	}
	return int64(c.Retries), active
}

// TestAnswerEndsRetries: a response that is the caller's frees the places among
// the retries, and not only its body's end.
func TestAnswerEndsRetries(t *testing.T) {
	for _, beside := range []bool{false, true} {
		var n atomic.Int32
		end := make(chan struct{})
		w := newWorld(t, ClientOptions{}, func(w *world) {
			w.route.Retry = retryOn(t, "5xx", 2)
			if beside {
				w.route.Hedge = &resilience.Hedge{Initial: 2}
			}
		}, func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) == 1 {
				if beside {
					<-r.Context().Done()
				}
				w.WriteHeader(503)
				return
			}
			_ = http.NewResponseController(w).Flush()
			<-end
		})
		resp, err := w.client.Do(request(t, "GET", "http://svc/", nil))
		if err != nil {
			t.Fatal(err)
		}
		if retries, active := w.held(); retries != 0 || active < 1 {
			t.Errorf("beside %t: %d retries, %d active while the body comes", beside, retries, active)
		}
		close(end)
		resp.Body.Close()
	}
}

// TestFailedLaneHoldsNothing: while others of the race go on.
func TestFailedLaneHoldsNothing(t *testing.T) {
	var n atomic.Int32
	end := make(chan struct{})
	w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Hedge = &resilience.Hedge{Initial: 2} }, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		<-end
	})
	w.servers[0].Config.ErrorLog = discardLog
	done := make(chan error, 1)
	go func() {
		_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
		done <- err
	}()
	eventually(t, "the lane that has failed lets its endpoint go", func() bool {
		_, active := w.held()
		return n.Load() == 2 && active == 1
	})
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestLaneWithAnotherBeside: one in whose place another was begun does not repeat,
// and one that has repeated is not late any more.
func TestLaneWithAnotherBeside(t *testing.T) {
	const ms = time.Millisecond
	after := func(d time.Duration, code int, body string) behaviour {
		return func(_ int32, w http.ResponseWriter, _ *http.Request) {
			time.Sleep(d)
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, serve := range map[string][]behaviour{
		"replaced": {after(50*ms, 503, "first"), after(30*ms, 200, "second"), answers(200, "third")},
		"repeated": {after(25*ms, 503, "first"), after(30*ms, 200, "second"), answers(200, "third")},
	} {
		t.Run(name, func(t *testing.T) {
			var tries atomic.Int32
			inBubble(t, ClientOptions{}, func(w *world) {
				w.route.Hedge = &resilience.Hedge{Initial: 1, OnPerTryTimeout: true}
				w.route.Retry = &resilience.RetryPolicy{On: resilience.On5xx, NumRetries: 3, PerTryTimeout: 40 * ms, BaseInterval: ms, MaxInterval: 2 * ms}
			}, []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				n := tries.Add(1)
				serve[min(int(n), len(serve))-1](n, w, r)
			}}, func(t *testing.T, w *world) {
				code, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
				if code != 200 || body != "second" || err != nil || tries.Load() != 2 {
					t.Errorf("%d %q %v after %d attempts", code, body, err, tries.Load())
				}
			})
		})
	}
}

// TestLastFailureIsTold: where all fail, it is the last one that the caller hears of.
func TestLastFailureIsTold(t *testing.T) {
	var n, slow atomic.Int32
	serve := func(i int32) http.HandlerFunc {
		return func(http.ResponseWriter, *http.Request) {
			if n.Add(1) == 1 {
				slow.Store(i)
				time.Sleep(time.Second)
			}
			panic(http.ErrAbortHandler)
		}
	}
	inBubble(t, ClientOptions{}, func(w *world) { w.route.Hedge = &resilience.Hedge{Initial: 2} }, []http.HandlerFunc{serve(0), serve(1)}, func(t *testing.T, w *world) {
		for _, s := range w.servers {
			s.Config.ErrorLog = discardLog
		}
		_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
		if want := w.servers[slow.Load()].Listener.Addr().String(); err == nil || !strings.Contains(err.Error(), "endpoint="+want) {
			t.Errorf("error %v, want that of %s", err, want)
		}
	})
}

// TestHeadersMove: the header of a response counts as movement, as bytes do.
func TestHeadersMove(t *testing.T) {
	inBubble(t, ClientOptions{}, func(w *world) { w.route.IdleTimeout = time.Second }, []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			time.Sleep(900 * time.Millisecond)
			_ = http.NewResponseController(w).Flush() // the first time the header, then nothing
			if r.URL.Path == "/header" {
				time.Sleep(900 * time.Millisecond)
				_, _ = io.WriteString(w, "end")
				return
			}
		}
	}}, func(t *testing.T, w *world) {
		if _, body, err := get(t, w.client, request(t, "GET", "http://svc/header", nil)); err != nil || body != "end" {
			t.Errorf("%q, %v", body, err)
		}
		var timeout *outbound.TimeoutError
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); !errors.As(err, &timeout) || timeout.Limit != "idle_timeout" {
			t.Errorf("error %v", err)
		}
	})
}

// TestAttemptsContextEnds: with the response's body, so that what hangs on it is free.
func TestAttemptsContextEnds(t *testing.T) {
	for name, change := range map[string]func(*world){
		"route's limit": func(w *world) { w.route.Timeout = time.Hour },
		"attempt's":     func(w *world) { w.route.Retry = &resilience.RetryPolicy{PerTryTimeout: time.Hour} },
		"both": func(w *world) {
			w.route.Timeout, w.route.Retry = time.Hour, &resilience.RetryPolicy{PerTryTimeout: time.Minute}
		},
		"race": func(w *world) { w.route.Hedge = &resilience.Hedge{Initial: 2} },
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var all []context.Context
			w := newWorld(t, ClientOptions{Inject: func(ctx context.Context, h http.Header, _ bool) http.Header {
				mu.Lock()
				all = append(all, ctx)
				mu.Unlock()
				return h
			}}, change, status(200, "body"))
			if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for i, ctx := range all {
				if ctx.Err() == nil {
					t.Errorf("that of attempt %d goes on", i+1)
				}
			}
			if len(all) == 0 {
				t.Error("no attempts")
			}
		})
	}
}

// TestAttemptBegins: the first with the call, if nothing kept it; others when they do.
func TestAttemptBegins(t *testing.T) {
	inBubble(t, ClientOptions{}, func(w *world) { w.route.Retry = retryOn(t, "5xx", 2) }, nil, func(t *testing.T, w *world) {
		x := &exchange{}
		x.call = &x.own
		view(request(t, "GET", "http://svc/", nil), &x.call.Request)
		if err := w.engine.Decide(t.Context(), x.call, "svc", "http"); err != nil {
			t.Fatal(err)
		}
		defer x.call.Finish(&resilience.Outcome{GRPC: -1})
		l := &lane{x: x}
		if err := x.call.Begin(&l.try); err != nil {
			t.Fatal(err)
		}
		ready := x.call.Ready()
		time.Sleep(time.Second)
		is := func(what string, want time.Time) {
			if got := l.began(); !got.Equal(want) {
				t.Errorf("%s: %s after the call", what, got.Sub(ready))
			}
		}
		is("the first", ready)
		l.secured = &secured{}
		is("one that had to wait for a certificate", time.Now())
		l.secured = nil
		if _, again := l.try.Next(&resilience.Outcome{Status: 503, GRPC: -1}); !again {
			t.Fatal("no other")
		}
		if err := x.call.Begin(&l.try); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		is("the second", time.Now())
	})
}

// TestRefusedBodyIsClosed: that of a request for which there is no room on a connection.
func TestRefusedBodyIsClosed(t *testing.T) {
	entered, end := make(chan struct{}), make(chan struct{})
	w := newWorld(t, ClientOptions{}, func(w *world) {
		w.cluster.Limits.MaxConnections, w.cluster.Limits.MaxPendingRequests = 1, 0
	}, func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-end
	})
	done := make(chan error, 1)
	go func() {
		_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
		done <- err
	}()
	<-entered
	body := &closeCounter{Reader: strings.NewReader("payload")}
	var limit *outbound.LimitError
	if _, _, err := get(t, w.client, request(t, "POST", "http://svc/", body)); !errors.As(err, &limit) || limit.Limit != "max_pending_requests" {
		t.Errorf("error %v", err)
	}
	if body.closed.Load() == 0 {
		t.Error("the body was not closed")
	}
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
