package client

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// TestNeverSent: a resource that the server is silent about does not exist
// 15 s after it was asked for, counted anew on a new stream, and is used when it comes later.
func TestNeverSent(t *testing.T) {
	both(t, 1, func(e *env) {
		e.put(service("b", 2)...)
		e.up()
		for _, n := range []string{"b:80", "r-b", "c-b", "e-b"} {
			e.silent[n] = true
		}
		e.deaf = true // a state-of-the-world response without b would say that there is none
		e.client.Subscribe("b:80")
		synctest.Wait()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		e.breakStreams(nil)
		time.Sleep(reconnectJitter)
		synctest.Wait()
		time.Sleep(resourceTimeout - reconnectJitter - time.Millisecond)
		e.want("b:80", "-")
		time.Sleep(reconnectJitter + 2*time.Millisecond)
		e.want("b:80", "absent")
		if s := e.state(listeners, "b:80"); s.State != DoesNotExist || s.Error == "" {
			e.Errorf("status %+v", s)
		}

		e.deaf = false
		for i, n := range []string{"b:80", "r-b", "c-b", "e-b"} {
			wait := [...]string{"absent", "error", "c-b=!", "c-b=!"}[i]
			e.want("b:80", wait)
			e.silent[n] = false
			e.push()
			if n == "e-b" {
				break
			}
			e.want("b:80", wait) // the next part is awaited for 15 s
			time.Sleep(resourceTimeout + time.Millisecond)
		}
		e.want("b:80", "c-b=2")
		e.want("a:80", "c-a=1")
	})
}

// TestBadNoneCached: NACK; only that host fails, at once.
func TestBadNoneCached(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		lds := service("l", 1)
		spoil(lds[0], "listener")
		rds := service("r", 1)
		spoil(rds[1], "routes")
		e.put(lds...)
		e.put(rds...)
		e.client.Subscribe("l:80")
		e.client.Subscribe("r:80")
		e.want("l:80", "error")
		e.want("r:80", "error")
		e.want("a:80", "c-a=1")
		if err := e.snap().Hosts["r:80"].Err; !strings.Contains(err.Error(), "bad routes") {
			e.Errorf("error %v", err)
		}
		rp := e.replies(routes)
		if len(rp) != 1 || !strings.Contains(rp[0].detail.GetMessage(), "bad routes") || rp[0].detail.GetCode() != int32(codes.InvalidArgument) {
			e.Errorf("replies %v", rp)
		}
		e.set(service("r", 3)...)
		e.want("r:80", "c-r=3")
	})
}

// TestBadCached: NACK with nonce, error and last accepted version; the old one stays, and the same text is logged once.
func TestBadCached(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		before := e.snap()
		version := e.state(clusters, "c-a").Version
		for i := range 3 {
			e.forget()
			e.set(spoil(cdsOf("c-a", "e-a"), "cluster"))
			time.Sleep(time.Second)
			synctest.Wait()
			rp := e.replies(clusters)
			if len(rp) != 1 || rp[0].nonce == "" || !strings.Contains(rp[0].detail.GetMessage(), "bad cluster") {
				e.Fatalf("round %d: replies %v", i, rp)
			}
			if e.sotwOnly && rp[0].version != version {
				e.Errorf("NACK has version %q, want the last accepted %q", rp[0].version, version)
			}
		}
		if e.snap() != before {
			e.Error("a refused resource changed the snapshot")
		}
		if s := e.state(clusters, "c-a"); s.State != Nacked || s.Version != version || !strings.Contains(s.Error, "bad cluster") {
			e.Errorf("status %+v", s)
		}
		if n := e.log.count("bad cluster"); n != 1 {
			e.Errorf("the same refusal was logged %d times", n)
		}
		e.set(cdsOf("c-a", "e-a"))
		if s := e.state(clusters, "c-a"); s.State != Acked || s.Error != "" {
			e.Errorf("status after a good one: %+v", s)
		}
	})
}

// TestGoodBesideBad: one response with both: the good is used and the response refused.
func TestGoodBesideBad(t *testing.T) {
	both(t, 1, func(e *env) {
		e.put(service("b", 1)...)
		e.up()
		e.client.Subscribe("b:80")
		e.want("b:80", "c-b=1")
		e.forget()
		e.set(edsOf("e-a", 2), spoil(edsOf("e-b", 2), "endpoints"))
		e.want("a:80", "c-a=2")
		e.want("b:80", "c-b=1")
		if rp := e.replies(endpoints); len(rp) != 1 || !strings.Contains(rp[0].detail.GetMessage(), "bad endpoints") {
			e.Errorf("replies %v", rp)
		}
	})
}

// TestUnknownType: a response of a type that was never asked for is neither accepted nor refused.
func TestUnknownType(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		const unknown = typePrefix + "envoy.extensions.transport_sockets.tls.v3.Secret"
		e.raw(&discovery.DiscoveryResponse{TypeUrl: unknown, VersionInfo: "1"}, &discovery.DeltaDiscoveryResponse{TypeUrl: unknown})
		synctest.Wait()
		if len(e.requests) != 0 {
			e.Errorf("requests %v", e.requests)
		}
		for range window {
			e.raw(&discovery.DiscoveryResponse{TypeUrl: unknown, VersionInfo: "1"}, &discovery.DeltaDiscoveryResponse{TypeUrl: unknown})
		}
		e.set(edsOf("e-a", 2)) // the stream works on
		e.want("a:80", "c-a=2")
	})
}

// TestUndecodable: broken bytes and a panicking decoder are refused, and lose nothing.
func TestUndecodable(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.raw(
			&discovery.DiscoveryResponse{TypeUrl: typeURLs[listeners], VersionInfo: "x", Resources: []*anypb.Any{{TypeUrl: typeURLs[listeners], Value: []byte{0xff, 0xff}}}},
			&discovery.DeltaDiscoveryResponse{TypeUrl: typeURLs[listeners], Resources: []*discovery.Resource{{Resource: &anypb.Any{TypeUrl: typeURLs[listeners], Value: []byte{0xff, 0xff}}}}},
		)
		e.want("a:80", "c-a=1")
		if rp := e.replies(listeners); len(rp) != 1 || rp[0].detail == nil {
			e.Errorf("replies %v", rp)
		}
		if e.state(listeners, "a:80").Deleted {
			e.Error("a response whose names can not be read was taken to leave the listener out")
		}
		l := ldsOf("a:80", "r-a")
		l.StatPrefix = "panic"
		e.set(l)
		e.want("a:80", "c-a=1")
		wrong := pack(cdsOf("a:80", ""))
		e.raw(
			&discovery.DiscoveryResponse{TypeUrl: typeURLs[listeners], VersionInfo: "y", Resources: []*anypb.Any{wrong}},
			&discovery.DeltaDiscoveryResponse{TypeUrl: typeURLs[listeners], Resources: []*discovery.Resource{{Name: "a:80", Resource: wrong}}},
		)
		e.want("a:80", "c-a=1")
		if rp := e.replies(listeners); len(rp) != 3 || rp[1].detail == nil || rp[2].detail == nil {
			e.Errorf("replies %v", rp)
		}
	})
}

// TestDeleted: the server deletes a listener or a cluster. The last one stays in force.
func TestDeleted(t *testing.T) {
	for _, k := range []kind{listeners, clusters} {
		t.Run(k.String(), func(t *testing.T) {
			name := map[kind]string{listeners: "a:80", clusters: "c-a"}[k]
			both(t, 1, func(e *env) {
				e.up()
				before := e.snap()
				e.remove(k, name)
				e.set(ldsOf("unasked:80", "x"), cdsOf("unasked", "x"))
				e.want("a:80", "c-a=1")
				if e.snap() != before {
					e.Error("a deletion changed the snapshot")
				}
				if s := e.state(k, name); !s.Deleted || s.Version == "" {
					e.Errorf("status %+v", s)
				}
				if n := e.log.count("deleted by the server"); n != 2 { // message and error of one line
					e.Errorf("%d mentions in the log", n)
				}
				e.set(service("a", 5)...)
				e.want("a:80", "c-a=5")
				if s := e.state(k, name); s.Deleted || s.Error != "" {
					e.Errorf("status %+v", s)
				}
			})
		})
	}
}

// TestDeletedForGood: with fail_on_data_errors the deletion takes effect.
func TestDeletedForGood(t *testing.T) {
	both(t, 1, func(e *env) {
		e.config.Servers[0].Features.FailOnDataErrors = true
		e.up()
		e.remove(clusters, "c-a")
		e.want("a:80", "c-a=!")
		e.set(cdsOf("c-a", "e-a"))
		e.want("a:80", "c-a=1")
		e.remove(listeners, "a:80")
		e.want("a:80", "absent")
		if got := e.wants(clusters); len(got) != 0 {
			e.Errorf("still subscribed to clusters %v", got)
		}
		e.set(ldsOf("a:80", "r-a"))
		e.want("a:80", "c-a=1")
	})
}

// TestBadWithFailOnDataErrors: a refused update drops what was cached.
func TestBadWithFailOnDataErrors(t *testing.T) {
	both(t, 1, func(e *env) {
		e.config.Servers[0].Features.FailOnDataErrors = true
		e.up()
		e.set(spoil(edsOf("e-a", 2), "endpoints"))
		e.want("a:80", "c-a=!")
		e.set(spoil(rdsOf("r-a", "a:80", "c-a"), "routes"))
		e.want("a:80", "error")
		e.set(service("a", 3)...)
		e.want("a:80", "c-a=3")
	})
}

// TestLeftOutOfResponse: routes and endpoints that a state-of-the-world response does not hold are kept.
func TestLeftOutOfResponse(t *testing.T) {
	in(t, 1, true, func(e *env) {
		e.put(service("b", 1)...)
		e.up()
		e.client.Subscribe("b:80")
		e.want("b:80", "c-b=1")
		for _, k := range []kind{routes, endpoints} {
			e.raw(&discovery.DiscoveryResponse{TypeUrl: typeURLs[k], VersionInfo: "9"}, &discovery.DeltaDiscoveryResponse{})
		}
		e.want("a:80", "c-a=1")
		e.want("b:80", "c-b=1")
	})
}

// TestAbsentAtOnce: a name that the server says it does not know is absent without a wait.
func TestAbsentAtOnce(t *testing.T) {
	both(t, 1, func(e *env) {
		e.start()
		e.open()
		e.client.Subscribe("nobody:80")
		e.want("nobody:80", "absent")
		if s := e.state(listeners, "nobody:80"); s.State != DoesNotExist {
			e.Errorf("status %+v", s)
		}
		e.set(service("nobody", 1)...)
		e.want("nobody:80", "c-nobody=1")
		e.client.Subscribe("other:80")
		if !e.sotwOnly {
			e.want("other:80", "absent")
		}
		time.Sleep(crossing + time.Millisecond)
		e.want("other:80", "absent")
	})
}

// TestCrossing: a state-of-the-world response that was on its way when a name
// was asked for does not make it absent, unless nothing follows. That is an
// answer also where a timeout would only be transient.
func TestCrossing(t *testing.T) {
	in(t, 1, true, func(e *env) {
		e.config.Servers[0].Features.ResourceTimerIsTransientError = true
		e.up()
		e.silent["b:80"], e.silent["d:80"] = true, true
		e.put(service("b", 2)...)
		e.client.Subscribe("b:80")
		e.client.Subscribe("d:80")
		synctest.Wait()
		e.set(ldsOf("a:80", "r-a")) // without b and d
		e.want("b:80", "-")
		time.Sleep(crossing / 2)
		e.set(ldsOf("a:80", "r-a")) // again: does not prolong the wait
		time.Sleep(crossing/2 - time.Millisecond)
		e.want("b:80", "-")
		e.silent["b:80"] = false
		e.push()
		e.want("b:80", "c-b=2")
		e.want("d:80", "-")
		time.Sleep(2 * time.Millisecond)
		e.want("d:80", "absent")
		e.silent["d:80"] = false
		e.set(service("d", 4)...)
		e.want("d:80", "c-d=4")
	})
}

// TestCrossingEndsWithItsStream: the short wait for a response that crossed is over
// with the stream; on the next one the whole time is given.
func TestCrossingEndsWithItsStream(t *testing.T) {
	in(t, 1, true, func(e *env) {
		e.config.Servers[0].Features.ResourceTimerIsTransientError = true
		e.up()
		e.silent["b:80"] = true
		e.client.Subscribe("b:80")
		synctest.Wait()
		e.set(ldsOf("a:80", "r-a")) // without b
		e.want("b:80", "-")
		e.deaf = true
		e.breakStreams(nil)
		time.Sleep(transientTimeout)
		e.want("b:80", "-")
		time.Sleep(reconnectJitter)
		if s := e.state(listeners, "b:80"); s.State != TimedOut {
			e.Errorf("status %+v", s)
		}
	})
}

// TestReportedErrors: errors that the server sends in place of a resource.
func TestReportedErrors(t *testing.T) {
	for _, tc := range []struct {
		code          codes.Code
		fail          bool
		cached, fresh string
	}{
		{codes.NotFound, false, "c-a=1", "absent"},
		{codes.PermissionDenied, false, "c-a=1", "error"},
		{codes.Internal, false, "c-a=1", "error"},
		{codes.NotFound, true, "absent", "absent"},
		{codes.PermissionDenied, true, "error", "error"},
		{codes.Internal, true, "c-a=1", "error"},
	} {
		name := tc.code.String()
		if tc.fail {
			name += ", fail_on_data_errors"
		}
		t.Run(name, func(t *testing.T) {
			both(t, 1, func(e *env) {
				e.config.Servers[0].Features.FailOnDataErrors = tc.fail
				e.up()
				e.silent["b:80"] = true
				e.client.Subscribe("b:80")
				synctest.Wait()
				var errs []*discovery.ResourceError
				for _, n := range []string{"a:80", "b:80", "unasked:80"} {
					errs = append(errs, &discovery.ResourceError{
						ResourceName: &discovery.ResourceName{Name: n},
						ErrorDetail:  status.New(tc.code, "because").Proto(),
					})
				}
				e.raw(&discovery.DiscoveryResponse{TypeUrl: typeURLs[listeners], ResourceErrors: errs},
					&discovery.DeltaDiscoveryResponse{TypeUrl: typeURLs[listeners], ResourceErrors: errs})
				e.want("a:80", tc.cached)
				e.want("b:80", tc.fresh)
			})
		})
	}
}

// TestTransientTimer: with resource_timer_is_transient_error a resource that does not come in 30 s is an error, not absent.
func TestTransientTimer(t *testing.T) {
	both(t, 1, func(e *env) {
		e.config.Servers[0].Features.ResourceTimerIsTransientError = true
		e.deaf = true
		e.start()
		e.open()
		e.client.Subscribe("a:80")
		synctest.Wait()
		time.Sleep(transientTimeout - time.Millisecond)
		e.want("a:80", "-")
		time.Sleep(2 * time.Millisecond)
		e.want("a:80", "error")
		if s := e.state(listeners, "a:80"); s.State != TimedOut {
			e.Errorf("status %+v", s)
		}
	})
}

// TestNackLoop: a server that sends what was refused again and again is slowed down.
func TestNackLoop(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		start := time.Now()
		bad := spoil(edsOf("e-a", 2), "endpoints")
		for time.Since(start) < time.Minute {
			n := len(e.replies(endpoints))
			e.set(bad)
			for len(e.replies(endpoints)) == n {
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
			}
		}
		if n := len(e.replies(endpoints)); n < 5 || n > 30 {
			e.Errorf("%d refusals in a minute", n)
		}
		e.set(edsOf("e-a", 3))
		e.want("a:80", "c-a=3")
		n := len(e.replies(endpoints))
		e.set(bad)
		synctest.Wait()
		if rp := e.replies(endpoints); len(rp) != n+1 || rp[n].detail == nil {
			e.Errorf("a refusal after a good one is held back: %v", rp[n:])
		}
	})
}

// TestWrapped: resources in their envelope, as a server may send them in state
// of the world, and heartbeats, which hold no resource.
func TestWrapped(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		before := e.snap()
		wrap := func(name string, m proto.Message) *discovery.Resource {
			r := &discovery.Resource{Name: name, Version: "w", Ttl: durationpb.New(time.Second)}
			if m != nil {
				r.Resource = pack(m)
			}
			return r
		}
		send := func(k kind, r *discovery.Resource) {
			e.raw(&discovery.DiscoveryResponse{TypeUrl: typeURLs[k], VersionInfo: "w", Resources: []*anypb.Any{pack(r)}},
				&discovery.DeltaDiscoveryResponse{TypeUrl: typeURLs[k], Resources: []*discovery.Resource{r}})
		}
		for k, n := range map[kind]string{listeners: "a:80", routes: "r-a", clusters: "c-a", endpoints: "e-a"} {
			send(k, wrap(n, nil))
			synctest.Wait()
			if rp := e.replies(k); len(rp) != 1 || rp[0].detail != nil {
				e.Errorf("replies for %v: %v", k, rp)
			}
		}
		if e.snap() != before {
			e.Error("a heartbeat changed the snapshot")
		}
		send(endpoints, wrap("e-a", edsOf("e-a", 9)))
		e.want("a:80", "c-a=9")
	})
}

// TestRefusedThenLeftOut: a resource that was only ever refused and is then left out does not exist.
func TestRefusedThenLeftOut(t *testing.T) {
	both(t, 1, func(e *env) {
		e.put(spoil(ldsOf("b:80", "r-b"), "listener"))
		e.up()
		e.client.Subscribe("b:80")
		e.want("b:80", "error")
		e.remove(listeners, "b:80")
		e.set(ldsOf("a:80", "r-a2"), rdsOf("r-a2", "a:80", "c-a"))
		e.want("b:80", "absent")
	})
}

// TestNameMismatch: a resource sent under a name that is not its own is refused.
func TestNameMismatch(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		r := &discovery.Resource{Name: "e-a", Version: "9", Resource: pack(edsOf("e-b", 9))}
		e.raw(&discovery.DiscoveryResponse{TypeUrl: typeURLs[endpoints], VersionInfo: "9", Resources: []*anypb.Any{pack(r)}},
			&discovery.DeltaDiscoveryResponse{TypeUrl: typeURLs[endpoints], Resources: []*discovery.Resource{r}})
		e.want("a:80", "c-a=1")
		if rp := e.replies(endpoints); len(rp) != 1 || !strings.Contains(rp[0].detail.GetMessage(), "e-b") {
			e.Errorf("replies %v", rp)
		}
	})
}

// TestDeletedIsAskedForWhole: the version of what the server deleted is not
// reported on a new stream, or the same version would not be sent when it is back.
func TestDeletedIsAskedForWhole(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.remove(clusters, "c-a")
		e.set(cdsOf("unasked", "x")) // a response without it, in state of the world
		synctest.Wait()
		if !e.state(clusters, "c-a").Deleted {
			e.Fatal("the client has not heard of it")
		}
		e.forget()
		e.breakStreams(nil)
		time.Sleep(reconnectJitter)
		synctest.Wait()
		for _, r := range e.requests[:4] {
			var whole bool
			var url string
			switch r := r.(type) {
			case *discovery.DeltaDiscoveryRequest:
				whole, url = len(r.InitialResourceVersions) == 0, r.TypeUrl
			case *discovery.DiscoveryRequest:
				whole, url = r.VersionInfo == "", r.TypeUrl
			}
			if k, _ := kindOf(url); (k == clusters) != whole {
				e.Errorf("request %v", r)
			}
		}
	})
}

// TestHeldRefusal: a refusal that is held back goes with the next names that are
// asked for: without it they would be taken for an answer to the response.
func TestHeldRefusal(t *testing.T) {
	both(t, 1, func(e *env) {
		e.put(service("b", 2)...)
		e.up()
		for i := 1; i <= 6; i++ {
			for len(e.replies(endpoints)) != i-1 {
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
			}
			e.set(spoil(edsOf("e-a", 2), "endpoints"))
			synctest.Wait()
		}
		if n := len(e.replies(endpoints)); n != 5 {
			e.Fatalf("%d refusals, want the sixth to be held back", n)
		}
		e.client.Subscribe("b:80")
		e.want("b:80", "c-b=2")
		rp := e.replies(endpoints)
		if len(rp) < 6 || !strings.Contains(rp[5].detail.GetMessage(), "bad endpoints") {
			e.Errorf("replies %v", rp)
		}
	})
}
