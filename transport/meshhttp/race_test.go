package meshhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// behaviour is what a server does with its n-th request, from 1.
type behaviour func(n int32, w http.ResponseWriter, r *http.Request)

func answers(code int, body string) behaviour {
	return func(_ int32, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func hangs(_ int32, _ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // a server of HTTP/1.1 sees only then that the client has gone
	<-r.Context().Done()
}

func breaks(int32, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// TestHedges: attempts side by side, of which the first good answer is the
// caller's. One server behaves by the order in which attempts come.
func TestHedges(t *testing.T) {
	atOnce := func(n uint32) func(*world) {
		return func(w *world) { w.route.Hedge = &resilience.Hedge{Initial: n} }
	}
	onTimeout := func(w *world) {
		w.route.Hedge = &resilience.Hedge{Initial: 1, OnPerTryTimeout: true}
		w.route.Retry = &resilience.RetryPolicy{On: resilience.On5xx, NumRetries: 2, PerTryTimeout: 30 * time.Millisecond, BaseInterval: time.Millisecond, MaxInterval: 2 * time.Millisecond}
	}
	retrying := func(w *world) { w.route.Retry = retryOn(t, "5xx,reset", 2) }
	for _, c := range []struct {
		name   string
		method string
		body   func() io.Reader
		change []func(*world)
		serve  []behaviour // of the n-th attempt; the last one for more
		code   int
		want   string
		tries  int32 // 0: not looked at
		fails  bool
	}{
		{name: "the first is slow", change: []func(*world){atOnce(2)}, serve: []behaviour{hangs, answers(200, "second")}, code: 200, want: "second", tries: 2},
		{name: "one is bad", change: []func(*world){atOnce(2)}, serve: []behaviour{answers(503, "bad"), answers(200, "good")}, code: 200, want: "good", tries: 2},
		{name: "one breaks", change: []func(*world){atOnce(2)}, serve: []behaviour{breaks, answers(200, "good")}, code: 200, want: "good", tries: 2},
		{name: "all are bad", change: []func(*world){atOnce(3)}, serve: []behaviour{answers(503, "bad")}, code: 503, want: "bad", tries: 3},
		{name: "all break", change: []func(*world){atOnce(2)}, serve: []behaviour{breaks}, fails: true},
		{name: "a bad answer is better than none", change: []func(*world){atOnce(2)}, serve: []behaviour{breaks, answers(500, "bad")}, code: 500, want: "bad"},
		{name: "with retries too", change: []func(*world){atOnce(2), retrying}, serve: []behaviour{answers(503, "bad"), answers(503, "bad"), answers(200, "good")}, code: 200, want: "good"},
		{name: "not a safe method", method: "POST", change: []func(*world){atOnce(3)}, serve: []behaviour{answers(200, "only")}, code: 200, want: "only", tries: 1},
		{name: "a body that can not be had again", body: func() io.Reader { return once("payload") }, change: []func(*world){atOnce(3)}, serve: []behaviour{answers(200, "only")}, code: 200, want: "only", tries: 1},
		{name: "a body with GetBody", body: func() io.Reader { return strings.NewReader("payload") }, change: []func(*world){atOnce(2)}, serve: []behaviour{
			hangs, func(_ int32, w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) },
		}, code: 200, want: "payload"},
		{name: "the time limit begins another", change: []func(*world){onTimeout}, serve: []behaviour{hangs, answers(200, "second")}, code: 200, want: "second", tries: 2},
		{name: "and another", change: []func(*world){onTimeout}, serve: []behaviour{hangs, hangs, answers(200, "third")}, code: 200, want: "third", tries: 3},
		{name: "the slow one may still win", change: []func(*world){onTimeout}, serve: []behaviour{
			func(_ int32, w http.ResponseWriter, r *http.Request) {
				time.Sleep(100 * time.Millisecond) // beyond all limits
				_, _ = io.WriteString(w, "first")
			}, hangs,
		}, code: 200, want: "first"},
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %t", c.name, h2), func(t *testing.T) {
				var tries atomic.Int32
				rec := &recorder{}
				inBubble(t, ClientOptions{Observer: rec}, func(w *world) {
					for _, change := range c.change {
						change(w)
					}
					w.cluster.HTTP2 = h2
				}, []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
					n := tries.Add(1)
					c.serve[min(int(n), len(c.serve))-1](n, w, r)
				}}, func(t *testing.T, w *world) {
					w.servers[0].Config.ErrorLog = discardLog
					method := c.method
					if method == "" {
						method = "GET"
					}
					var body io.Reader
					if c.body != nil {
						body = c.body()
					}
					code, got, err := get(t, w.client, request(t, method, "http://svc/", body))
					if (err != nil) != c.fails || code != c.code || got != c.want {
						t.Errorf("%d %q %v, want %d %q", code, got, err, c.code, c.want)
					}
					if n := tries.Load(); c.tries > 0 && n != c.tries {
						t.Errorf("%d attempts, want %d", n, c.tries)
					}
				})
			})
		}
	}
}

// TestWinnerIsNotCutOff: the losers are cancelled, and the winner's body comes whole.
func TestWinnerIsNotCutOff(t *testing.T) {
	for i := range 4 {
		h2, limited := i&1 != 0, i&2 != 0
		t.Run(fmt.Sprintf("HTTP/2 %t, limits of their own %t", h2, limited), func(t *testing.T) {
			var n atomic.Int32
			lost := make(chan struct{}, 8)
			w := newWorld(t, ClientOptions{}, func(w *world) {
				w.route.Hedge = &resilience.Hedge{Initial: 3}
				if limited {
					w.route.Retry = &resilience.RetryPolicy{PerTryTimeout: 40 * time.Second}
				}
				w.route.Timeout = time.Minute
				w.cluster.HTTP2 = h2
			}, func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1)%3 != 0 {
					<-r.Context().Done()
					lost <- struct{}{}
					return
				}
				_, _ = io.WriteString(w, "begin")
				_ = http.NewResponseController(w).Flush()
				for range 2 { // both others have gone
					<-lost
				}
				_, _ = io.WriteString(w, " end")
			})
			for range 3 {
				if code, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || code != 200 || body != "begin end" {
					t.Fatalf("%d %q %v", code, body, err)
				}
			}
		})
	}
}

// TestRaceEnds: cancellation and the route's time limit end all attempts.
func TestRaceEnds(t *testing.T) {
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	hedged := func(w *world) { w.route.Hedge = &resilience.Hedge{Initial: 3} }
	t.Run("the caller's cancellation", func(t *testing.T) {
		w := newWorld(t, ClientOptions{}, hedged, hang)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("the route's time limit", func(t *testing.T) {
		w := newWorld(t, ClientOptions{}, func(w *world) {
			hedged(w)
			w.route.Timeout = 50 * time.Millisecond
		}, hang)
		var timeout *outbound.TimeoutError
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); !errors.As(err, &timeout) || timeout.Limit != "timeout" {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no endpoint", func(t *testing.T) {
		w := newWorld(t, ClientOptions{}, func(w *world) {
			hedged(w)
			w.cluster.Endpoints = lb.NewEndpoints(nil, nil)
		})
		var none *outbound.NoHealthyEndpointError
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); !errors.As(err, &none) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("the cluster's limit", func(t *testing.T) {
		w := newWorld(t, ClientOptions{}, func(w *world) {
			hedged(w)
			w.cluster.Limits.MaxRequests = 0
		}, hang)
		var limit *outbound.LimitError
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); !errors.As(err, &limit) {
			t.Errorf("error %v", err)
		}
	})
}

// TestManyRaces: under load nothing is lost, and every count returns to zero
// (which newWorld looks at).
func TestManyRaces(t *testing.T) {
	var n atomic.Int32
	inBubble(t, ClientOptions{}, func(w *world) {
		w.route.Hedge = &resilience.Hedge{Initial: 2, OnPerTryTimeout: true}
		w.route.Retry = retryOn(t, "5xx,reset", 3)
		w.route.Retry.PerTryTimeout = 20 * time.Millisecond
		w.route.Timeout = time.Minute
		w.cluster.HTTP2 = true
	}, []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 7 {
		case 0:
			w.WriteHeader(503)
		case 1:
			time.Sleep(25 * time.Millisecond)
		}
		_, _ = io.WriteString(w, "ok")
	}}, func(t *testing.T, w *world) {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 25 {
					if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
	})
}
