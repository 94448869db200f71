package meshhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// TestClientProtocol: with use_downstream_protocol_config a request goes by the
// version of HTTP by which the request came that is being served meanwhile.
func TestClientProtocol(t *testing.T) {
	w := newWorld(t, ClientOptions{}, func(w *world) { w.cluster.ClientProtocol = true }, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	})
	front := httptest.NewUnstartedServer(Handler(inbound.New(inbound.Options{}), slog.New(slog.DiscardHandler), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), "GET", "http://svc/", nil)
		if err != nil {
			t.Error(err)
			return
		}
		_, body, err := get(t, w.client, req)
		fmt.Fprintf(rw, "%s %v", body, err)
	})))
	front.Config.Protocols = new(http.Protocols)
	front.Config.Protocols.SetHTTP1(true)
	front.Config.Protocols.SetUnencryptedHTTP2(true)
	front.Start()
	defer front.Close()
	for _, h2 := range []bool{false, true} {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetHTTP1(!h2)
		transport.Protocols.SetUnencryptedHTTP2(h2)
		want := map[bool]string{false: "HTTP/1.1 <nil>", true: "HTTP/2.0 <nil>"}[h2]
		if _, body, err := get(t, &http.Client{Transport: transport}, request(t, "GET", front.URL, nil)); err != nil || body != want {
			t.Errorf("HTTP/2 %t: %q %v, want %q", h2, body, err, want)
		}
		transport.CloseIdleConnections()
	}
	// Where nothing is being served it is HTTP/1.1.
	if _, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || body != "HTTP/1.1" {
		t.Errorf("%q %v", body, err)
	}
}

// TestConnectionLimitsByPriority: each priority has its own thresholds.
func TestConnectionLimitsByPriority(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", h2), func(t *testing.T) {
			entered, leave := make(chan struct{}, 8), make(chan struct{})
			w := newWorld(t, ClientOptions{}, func(w *world) {
				w.cluster.HTTP2 = h2
				w.cluster.MaxConcurrentStreams = 1
				w.cluster.Limits.MaxConnections, w.cluster.Limits.MaxPendingRequests = 1, 0
				w.cluster.HighLimits = unlimited
				if h2 {
					// A request waits for its connection while that is made, as in Envoy.
					w.cluster.Limits.MaxPendingRequests = 1
				}
				before("/high", snapshot.Route{Priority: resilience.HighPriority})(w)
			}, func(_ http.ResponseWriter, r *http.Request) {
				entered <- struct{}{}
				<-leave
			})
			results := make(chan error, 3)
			do := func(path string) {
				_, _, err := get(t, w.client, request(t, "GET", "http://svc"+path, nil))
				results <- err
			}
			go do("/low")
			<-entered
			if h2 {
				go do("/low") // this one waits
				for s := w.streamsOf(t); s.room.waiting[0].Load() == 0; {
					time.Sleep(time.Millisecond)
				}
			}
			var limit *outbound.LimitError
			if _, _, err := get(t, w.client, request(t, "GET", "http://svc/low", nil)); !errors.As(err, &limit) || limit.Limit != "max_pending_requests" || limit.Cluster != "c" {
				t.Errorf("error %v, want max_pending_requests", err)
			}
			go do("/high")
			<-entered
			close(leave)
			for range map[bool]int{false: 2, true: 3}[h2] {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// streamsOf returns the world's connections of HTTP/2.
func (w *world) streamsOf(t *testing.T) *streams {
	t.Helper()
	return w.wire.plain2.(*streams)
}

// TestHTTP2Ping: a connection whose other end is silent closes, and requests fail.
func TestHTTP2Ping(t *testing.T) {
	silent := rawServer(t, func(_ int, conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	rec := &recorder{}
	w := newWorld(t, ClientOptions{Observer: rec}, func(w *world) {
		only(silent)(w)
		w.cluster.HTTP2 = true
		w.cluster.HTTP2Ping = snapshot.HTTP2Ping{Interval: 20 * time.Millisecond, Timeout: 20 * time.Millisecond}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil).WithContext(ctx)); err == nil || ctx.Err() != nil {
		t.Errorf("error %v", err)
	}
	if f := rec.failures(); len(f) != 1 || f[0] != resilience.Reset {
		t.Errorf("attempts ended with %v", f)
	}
}

// TestAuthorityThatIsNone: what net/http would send as an empty Host is the request's error.
func TestAuthorityThatIsNone(t *testing.T) {
	for _, value := range []string{"", "a b", "a/b", "a\r\nX: y", "a@b"} {
		rec := &recorder{}
		w := newWorld(t, ClientOptions{Observer: rec}, func(w *world) {
			w.route.Rewrite = routing.Rewrite{HostHeader: routing.NewHeaderName("x-host")}
		}, describe)
		req := request(t, "POST", "http://svc/", strings.NewReader("x"))
		req.Header["X-Host"] = []string{value}
		code, body, err := get(t, w.client, req)
		if value == "" {
			// A header without a value leaves the authority as it is.
			if err == nil && !strings.HasPrefix(body, "POST svc ") {
				t.Errorf("%d %q", code, body)
			}
			continue
		}
		if f := rec.failures(); err == nil || len(f) != 1 || f[0] != resilience.LocalError {
			t.Errorf("%q: %d %q %v, attempts %v", value, code, body, err, f)
		}
	}
}

// TestLoadInHeadersAndTrailers: what endpoints say of their load decides where
// requests go, whether it comes in a header or in a trailer.
func TestLoadInHeadersAndTrailers(t *testing.T) {
	for _, trailer := range []bool{false, true} {
		t.Run(fmt.Sprint("trailer ", trailer), func(t *testing.T) {
			answer := func(name, load string) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					key := loadNative
					if trailer {
						key = http.TrailerPrefix + loadNative
					}
					if !trailer {
						w.Header().Set(key, load)
					}
					_, _ = io.WriteString(w, name)
					_ = http.NewResponseController(w).Flush()
					if trailer {
						w.Header().Set(key, load)
					}
				}
			}
			inBubble(t, ClientOptions{}, func(w *world) {
				w.cluster.LB = lb.Policy{Kind: lb.ClientWeighted, Client: lb.ClientWeights{Update: 100 * time.Millisecond, Expiration: time.Minute, Blackout: time.Nanosecond}}
			}, []http.HandlerFunc{
				answer("busy", "TEXT application_utilization=0.9,rps_fractional=10"), answer("idle", "TEXT application_utilization=0.1,rps_fractional=10"),
			}, func(t *testing.T, w *world) {
				calls := func(n int) map[string]int {
					seen := map[string]int{}
					for range n {
						_, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
						if err != nil {
							t.Fatal(err)
						}
						seen[body]++
					}
					return seen
				}
				calls(40) // from which the weights come
				time.Sleep(300 * time.Millisecond)
				if seen := calls(100); seen["busy"] < 8 || seen["busy"] > 12 {
					t.Errorf("requests went to %v, want nine of ten to the idle one", seen)
				}
			})
		})
	}
}
