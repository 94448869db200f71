package meshhttp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// TestTunnelLimits: once a connection has another protocol, the route's timeout
// and the limits of an attempt are over; the longest duration of a stream and
// the idle limit are not, and the request's context does not matter (held
// against Envoy 1.40 and net/http).
func TestTunnelLimits(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*snapshot.Route)
		answer time.Duration   // of the server, until its 101
		talk   []time.Duration // when a line goes over the tunnel, from the beginning
		limit  string          // that has passed in the end; "" for none
		after  time.Duration   // when
		failed bool            // before there is a tunnel
		keep   bool            // the request's context; else it ends with the answer, as of callers for whom it is for that
	}{
		{name: "a timeout", change: func(r *snapshot.Route) { r.Timeout = time.Second }, talk: []time.Duration{time.Minute}},
		{name: "a timeout, and the context stays", change: func(r *snapshot.Route) { r.Timeout = time.Second }, talk: []time.Duration{time.Minute}, keep: true},
		{name: "a timeout passes before the answer", change: func(r *snapshot.Route) { r.Timeout = time.Second }, answer: 2 * time.Second, limit: "timeout", after: time.Second, failed: true},
		{name: "limits of an attempt", change: func(r *snapshot.Route) {
			r.Retry = &resilience.RetryPolicy{PerTryTimeout: time.Second, PerTryIdleTimeout: 2 * time.Second}
		}, talk: []time.Duration{time.Minute}, keep: true},
		{name: "the longest duration of a stream", change: func(r *snapshot.Route) { r.MaxStreamDuration = 10 * time.Second },
			talk: []time.Duration{9 * time.Second}, limit: "timeout", after: 10 * time.Second},
		{name: "an end before the longest duration", change: func(r *snapshot.Route) { r.MaxStreamDuration, r.IdleTimeout = 10*time.Second, 8*time.Second }, talk: []time.Duration{time.Second}},
		{name: "a timeout and a longest duration", change: func(r *snapshot.Route) { r.Timeout, r.MaxStreamDuration = time.Second, 10*time.Second },
			answer: 500 * time.Millisecond, talk: []time.Duration{9 * time.Second}, limit: "timeout", after: 10 * time.Second, keep: true},
		{name: "an idle limit", change: func(r *snapshot.Route) { r.Timeout, r.IdleTimeout = 5*time.Second, 3*time.Second },
			talk: []time.Duration{2 * time.Second, 4 * time.Second, 6 * time.Second}, limit: "idle_timeout", after: 9 * time.Second, keep: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				closed := make(chan struct{})
				e := outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: func(s *snapshot.Cluster) outbound.Wire {
					return newWire(s, &connecting{network: func(context.Context, string, string) (net.Conn, error) {
						ours, theirs := net.Pipe()
						go func() {
							defer close(closed)
							echoes(theirs, c.answer)
						}()
						return ours, nil
					}})
				}})
				defer e.Close()
				snap := routed(0, "192.0.2.1:80")
				for i := range snap.Hosts["reviews:9080"].VirtualHost.Routes {
					c.change(&snap.Hosts["reviews:9080"].VirtualHost.Routes[i])
				}
				e.Install(snap)
				began := time.Now()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				req := request(t, "GET", "http://reviews:9080/", nil).WithContext(ctx)
				req.Header.Set("Connection", "Upgrade")
				req.Header.Set("Upgrade", "echo")
				rt := NewRoundTripper(e, ClientOptions{})
				resp, err := rt.RoundTrip(req)
				if err == nil {
					if !c.keep {
						cancel()
					}
					rw := resp.Body.(io.ReadWriteCloser)
					lines := bufio.NewReader(rw)
					for _, at := range c.talk {
						time.Sleep(at - time.Since(began))
						if _, err = io.WriteString(rw, "hello\n"); err == nil {
							_, err = lines.ReadString('\n')
						}
						if err != nil {
							t.Fatalf("after %s: %v", time.Since(began), err)
						}
					}
					if c.limit != "" {
						_, err = lines.ReadString('\n')
					} else if x := resp.Body.(*upgraded).exchange; c.keep && x.limit.Context != nil && x.limit.Err() != nil || x.winner().limit != nil && x.winner().limit.ctx.Err() != nil {
						t.Error("a limit has passed that was for the answer")
					}
					_ = rw.Close()
				} else if !c.failed {
					t.Fatal(err)
				}
				if took := time.Since(began); c.limit != "" && took != c.after {
					t.Errorf("over after %s, want %s", took, c.after)
				}
				var timeout *outbound.TimeoutError
				switch {
				case c.limit == "":
					if err != nil {
						t.Error(err)
					}
				case !c.keep && !c.failed:
					if !errors.Is(err, context.Canceled) {
						t.Errorf("%v, want that of the request's context", err)
					}
				case !errors.As(err, &timeout) || timeout.Limit != c.limit || timeout.After > c.after || timeout.After < time.Second:
					t.Errorf("%v, want the limit %q", err, c.limit)
				}
				<-closed
				for i := range rt.clock.shards {
					if rt.clock.shards[i].first != nil {
						t.Error("an alarm is left")
					}
				}
			})
		})
	}
}

// echoes answers a request for a tunnel after a while, and returns line by line.
func echoes(conn net.Conn, after time.Duration) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	if _, err := http.ReadRequest(r); err != nil {
		return
	}
	time.Sleep(after)
	fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		fmt.Fprint(conn, line)
	}
}
