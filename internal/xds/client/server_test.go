package client

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// TestUnreachableAtStart: nothing cached and no server. A host waits for
// ReadyWait, then fails; a server that comes up is found within seconds.
func TestUnreachableAtStart(t *testing.T) {
	both(t, 1, func(e *env) {
		e.open()
		e.client.Subscribe("a:80")
		time.Sleep(DefaultReadyWait / 2)
		e.client.Subscribe("late:80")
		time.Sleep(DefaultReadyWait/2 - time.Millisecond)
		e.want("a:80", "-")
		time.Sleep(2 * time.Millisecond)
		e.want("a:80", "error")
		e.want("late:80", "-")
		time.Sleep(DefaultReadyWait / 2)
		e.want("late:80", "error")
		if err := e.snap().Hosts["a:80"].Err; !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "passthrough:///0") {
			e.Errorf("error does not name the server and the cause: %v", err)
		}
		if s := e.client.Status().Servers[0]; s.State != "unreachable" || s.LastError == "" {
			e.Errorf("server status: %+v", s)
		}
		e.put(service("a", 1)...)
		time.Sleep(40 * time.Second)
		e.start()
		time.Sleep(connectMaxDelay*12/10 + reconnectJitter)
		e.want("a:80", "c-a=1")
	})
}

// TestUnreachableFailsAtOnce: with a negative ReadyWait, as gRPC does.
func TestUnreachableFailsAtOnce(t *testing.T) {
	both(t, 1, func(e *env) {
		e.open(func(o *Options) { o.ReadyWait = -1 })
		e.client.Subscribe("a:80")
		e.want("a:80", "error")
	})
}

// TestServerLost: all cached. Nothing changes until it is back, then changes are taken within seconds of its return.
func TestServerLost(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		before := e.snap()
		e.stop()
		time.Sleep(time.Minute)
		if e.snap() != before {
			e.Fatal("a snapshot was published because the server went away")
		}
		e.put(edsOf("e-a", 2))
		e.start()
		time.Sleep(connectMaxDelay*12/10 + reconnectJitter)
		e.want("a:80", "c-a=2")
		if before.Hosts["a:80"] != e.snap().Hosts["a:80"] {
			e.Error("the host is another one although only endpoints changed")
		}
	})
}

// TestStreamEndsAfterResponse: no error; a new stream at once, with names, last versions and no nonce.
func TestStreamEndsAfterResponse(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		before := e.snap()
		for range 5 {
			e.forget()
			opened := e.opened
			e.breakStreams(nil)
			time.Sleep(reconnectJitter)
			synctest.Wait()
			if e.opened != opened+1 {
				e.Fatalf("%d new streams after %v, want 1", e.opened-opened, reconnectJitter)
			}
			if len(e.requests) < 4 {
				e.Fatalf("%d requests on the new stream, want one for each type: %v", len(e.requests), e.requests)
			}
			for i, r := range e.requests[:4] {
				switch r := r.(type) {
				case *discovery.DeltaDiscoveryRequest:
					if r.ResponseNonce != "" || len(r.ResourceNamesSubscribe) != 1 || r.InitialResourceVersions[r.ResourceNamesSubscribe[0]] == "" {
						e.Errorf("request %v", r)
					}
					if (r.Node != nil) != (i == 0) {
						e.Errorf("request %d: node %v", i, r.Node)
					}
				case *discovery.DiscoveryRequest:
					if r.ResponseNonce != "" || len(r.ResourceNames) != 1 || r.VersionInfo == "" {
						e.Errorf("request %v", r)
					}
					if (r.Node != nil) != (i == 0) {
						e.Errorf("request %d: node %v", i, r.Node)
					}
				}
			}
			// The server answers nothing to versions that are its own, so give it something to say.
			e.set(edsOf("e-a", 1))
			synctest.Wait()
		}
		if e.snap() != before {
			e.Error("the same resources led to another snapshot")
		}
		if n := e.log.count("error=EOF"); n != 5 {
			e.Errorf("%d of 5 ends were logged: each comes after a response", n)
		}
	})
}

// TestStreamBackoff: streams that end without a response back off, 1 s x 1.6 to 120 s, with 20 % jitter.
func TestStreamBackoff(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.fake.fail = status.Error(codes.Unavailable, "not now")
		e.start()
		e.open()
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		base := time.Second
		for i := 1; i < len(e.openedAt); i++ {
			got := e.openedAt[i].Sub(e.openedAt[i-1])
			if got < base*79/100 || got > base*121/100 {
				e.Errorf("pause %d is %v, want %v +- 20 %%", i, got, base)
			}
			base = min(base*16/10, 120*time.Second)
		}
		if n := len(e.openedAt); n < 14 || n > 22 {
			e.Errorf("%d streams in 15 min", n)
		}
		if n := e.log.count("not now"); n != 1 {
			e.Errorf("the same failure was logged %d times", n)
		}
	})
}

// TestFallback: primary down and a resource missing: the next server is used
// at once, and left when the primary answers again.
func TestFallback(t *testing.T) {
	both(t, 2, func(e *env) {
		second := e.servers[1]
		second.put(service("a", 2)...)
		second.put(service("only", 3)...)
		second.start()
		e.open(e.withoutErrors)
		e.client.Subscribe("a:80")
		e.client.Subscribe("only:80")
		e.want("a:80", "c-a=2")
		e.want("only:80", "c-only=3")
		if s := e.client.Status().Servers; s[0].State != "unreachable" || s[1].State != "connected" {
			e.Errorf("servers %+v", s)
		}
		time.Sleep(time.Minute)
		e.put(service("a", 1)...)
		e.silent["only:80"] = true
		e.start()
		time.Sleep(connectMaxDelay*12/10 + reconnectJitter)
		e.want("a:80", "c-a=1")
		time.Sleep(time.Minute)
		e.want("only:80", "c-only=3") // what the primary does not have is kept
		if s := e.client.Status().Servers; s[0].State != "connected" || s[1].State != "unused" {
			e.Errorf("servers %+v", s)
		}
		if len(second.wants(listeners)) != 0 {
			e.Error("the fallback server still has a stream")
		}
	})
}

// TestNoFallback: primary down, nothing missing: the next server is not used until something is.
func TestNoFallback(t *testing.T) {
	both(t, 2, func(e *env) {
		e.servers[1].put(service("b", 2)...)
		e.servers[1].start()
		e.up()
		e.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := e.servers[1].opened; n != 0 {
			e.Fatalf("%d streams to the fallback server", n)
		}
		e.client.Subscribe("b:80")
		e.want("b:80", "c-b=2")
		e.want("a:80", "c-a=1")
	})
}

// TestAllServersFail: a host fails only when no server is left.
// TestNoFallbackAfterResponse: a stream that ends after a response is no failure of its server, whatever is awaited.
func TestNoFallbackAfterResponse(t *testing.T) {
	both(t, 2, func(e *env) {
		e.servers[1].start()
		e.up()
		e.silent["b:80"] = true
		e.client.Subscribe("b:80")
		for range 3 {
			synctest.Wait()
			e.breakStreams(nil)
			time.Sleep(time.Second)
			e.set(edsOf("e-a", 1))
		}
		synctest.Wait()
		if n := e.servers[1].opened; n != 0 {
			e.Errorf("%d streams to the fallback server", n)
		}
	})
}

// TestBackFromFallback: the first server sends again what the fallback server has
// changed meanwhile, although it is what it has sent before.
func TestBackFromFallback(t *testing.T) {
	both(t, 2, func(e *env) {
		second := e.servers[1]
		second.put(service("a", 2)...)
		second.put(service("b", 2)...)
		second.start()
		e.up()
		e.stop()
		e.client.Subscribe("b:80")
		time.Sleep(time.Second)
		e.want("b:80", "c-b=2")
		e.want("a:80", "c-a=2")
		e.start()
		time.Sleep(connectMaxDelay*12/10 + reconnectJitter)
		e.want("a:80", "c-a=1")
		e.want("b:80", "c-b=2") // which the first does not have
	})
}

// TestCrossingAtFallback: what was asked for last of one server is not what another has left out.
func TestCrossingAtFallback(t *testing.T) {
	in(t, 2, true, func(e *env) {
		second := e.servers[1]
		second.put(service("a", 2)...)
		second.start()
		e.open()
		e.client.Subscribe("a:80")
		e.want("a:80", "c-a=2")
		second.silent["b:80"] = true
		second.deaf = true
		e.client.Subscribe("b:80")
		e.want("b:80", "-")
		e.deaf = true
		e.start() // asked for both with its first request
		time.Sleep(connectMaxDelay*12/10 + reconnectJitter)
		synctest.Wait()
		if len(e.wants(listeners)) != 2 {
			e.Fatalf("the first server was asked for %v", e.wants(listeners))
		}
		second.raw(&discovery.DiscoveryResponse{TypeUrl: typeURLs[listeners], VersionInfo: "9", Resources: []*anypb.Any{pack(ldsOf("a:80", "r-a"))}}, &discovery.DeltaDiscoveryResponse{})
		time.Sleep(crossing - time.Millisecond)
		e.want("b:80", "-")
		time.Sleep(2 * time.Millisecond)
		e.want("b:80", "absent")
	})
}

func TestAllServersFail(t *testing.T) {
	both(t, 2, func(e *env) {
		e.open(func(o *Options) { o.ReadyWait = -1 })
		e.client.Subscribe("a:80")
		e.want("a:80", "error")
		if err := e.snap().Hosts["a:80"].Err; !strings.Contains(err.Error(), "///0") || !strings.Contains(err.Error(), "///1") {
			e.Errorf("error %v", err)
		}
	})
}

// TestUnimplemented: a server that knows neither protocol is asked for both, again and again, with backoff.
func TestUnimplemented(t *testing.T) {
	in(t, 1, true, func(e *env) {
		e.fake.fail = status.Error(codes.Unimplemented, "nothing here")
		e.start()
		e.open(func(o *Options) { o.ReadyWait = -1 })
		e.client.Subscribe("a:80")
		e.want("a:80", "error")
		time.Sleep(time.Minute)
		synctest.Wait()
		if e.opened > 12 {
			e.Errorf("%d streams in a minute", e.opened)
		}
		if err := e.snap().Hosts["a:80"].Err; status.Code(errors.Unwrap(err)) == codes.OK && !strings.Contains(err.Error(), "nothing here") {
			e.Errorf("error %v", err)
		}
	})
}

// TestHalfOpen: a connection on which nothing arrives any more is noticed by
// keepalive while nothing is being sent, and made again.
func TestHalfOpen(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.freeze()
		e.set(edsOf("e-a", 2))
		e.want("a:80", "c-a=1")
		time.Sleep(keepaliveTime + keepaliveTimeout + reconnectJitter)
		e.want("a:80", "c-a=2")
	})
}

// TestTarget: names are looked up for each connection, targets with a scheme are left alone.
func TestTarget(t *testing.T) {
	for uri, want := range map[string]string{
		"xds.example.com:15010":        "passthrough:///xds.example.com:15010",
		"127.0.0.1:15010":              "passthrough:///127.0.0.1:15010",
		"[::1]:15010":                  "passthrough:///[::1]:15010",
		"dns:///xds.example.com:15010": "dns:///xds.example.com:15010",
		"unix:///etc/istio/proxy/XDS":  "unix:///etc/istio/proxy/XDS",
		"unix:relative":                "unix:relative",
		"passthrough:///x":             "passthrough:///x",
	} {
		if got := target(uri); got != want {
			t.Errorf("target(%q) = %q, want %q", uri, got, want)
		}
	}
}

// TestBackoffReset: a stream that brought a response ends what failures before it built up.
func TestBackoffReset(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.put(service("a", 1)...)
		e.fake.fail = status.Error(codes.Unavailable, "not now")
		e.start()
		e.open()
		e.client.Subscribe("a:80")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		e.mu.Lock()
		e.fake.fail = nil
		e.mu.Unlock()
		time.Sleep(3 * time.Minute)
		e.want("a:80", "c-a=1")
		e.mu.Lock()
		e.fake.fail = status.Error(codes.Unavailable, "not now")
		e.openedAt = nil
		e.mu.Unlock()
		e.breakStreams(nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(e.openedAt); n < 4 {
			e.Errorf("%d streams in 10 s, want at least 4", n)
		}
	})
}

// TestTimerMovesToOtherServer: the wait for a resource goes on at a server that is connected when another goes away.
func TestTimerMovesToOtherServer(t *testing.T) {
	both(t, 2, func(e *env) {
		second := e.servers[1]
		e.deaf, second.deaf = true, true
		second.start()
		e.open()
		e.client.Subscribe("a:80")
		synctest.Wait()
		e.start()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if len(e.wants(listeners)) != 1 || len(second.wants(listeners)) != 1 {
			e.Fatal("both servers must have been asked")
		}
		second.stop()
		time.Sleep(resourceTimeout - time.Millisecond)
		e.want("a:80", "-")
		time.Sleep(2 * time.Millisecond)
		e.want("a:80", "absent")
	})
}

// TestFallbackWithoutError: a host that waits when the primary goes away is
// not published with an error before the next server was tried.
func TestFallbackWithoutError(t *testing.T) {
	both(t, 2, func(e *env) {
		e.servers[1].put(service("a", 2)...)
		e.servers[1].start()
		e.deaf = true
		e.start()
		e.open(e.withoutErrors)
		e.client.Subscribe("a:80")
		e.want("a:80", "-")
		e.stop()
		e.want("a:80", "c-a=2")
	})
}

// withoutErrors fails hosts as soon as no server can be reached, and the test where one is.
func (e *env) withoutErrors(o *Options) {
	o.ReadyWait = -1
	next := o.OnSnapshot
	o.OnSnapshot = func(s *snapshot.Snapshot) {
		for name, h := range s.Hosts {
			if h.Err != nil {
				e.Errorf("host %s: error although a server can be reached: %v", name, h.Err)
			}
		}
		next(s)
	}
}
