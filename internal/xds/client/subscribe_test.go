package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// TestIdle: a host that no request uses for the whole timeout is ended, with
// all that only it needed; one in use stays.
func TestIdle(t *testing.T) {
	both(t, 1, func(e *env) {
		e.put(service("b", 2)...)
		e.put(rdsOf("r-b", "b:80", "c-a", "c-b"))
		e.up()
		e.client.Subscribe("b:80")
		e.client.Subscribe("nobody:80")
		e.want("b:80", "c-a=1 c-b=2")
		used := e.snap().Hosts["a:80"].Used
		for range 9 {
			time.Sleep(DefaultIdleTimeout / 8)
			used.Store(true)
		}
		e.want("b:80", "c-a=1 c-b=2")
		e.want("nobody:80", "absent")
		time.Sleep(DefaultIdleTimeout / 4)
		used.Store(true)
		e.want("b:80", "-")
		e.want("nobody:80", "-")
		e.want("a:80", "c-a=1")
		if e.snap().Clusters["c-b"] != nil {
			t.Error("a cluster that nobody names is in the snapshot")
		}
		for k, want := range map[kind]string{listeners: "a:80", routes: "r-a", clusters: "c-a", endpoints: "e-a"} {
			if got := strings.Join(e.wants(k), " "); got != want {
				e.Errorf("still subscribed to %v %s", k, got)
			}
		}
		e.client.Subscribe("b:80")
		e.want("b:80", "c-a=1 c-b=2")
		if e.snap().Hosts["a:80"].Used != used {
			e.Error("Used is another one")
		}
		time.Sleep(3 * DefaultIdleTimeout)
		synctest.Wait()
		if s := e.snap(); len(s.Hosts)+len(s.Clusters) != 0 {
			e.Errorf("left after all is idle: %+v", s)
		}
		for k := range kinds {
			if got := e.wants(k); len(got) != 0 {
				e.Errorf("still subscribed to %v %v", k, got)
			}
		}
		e.client.Subscribe("a:80") // the stream works on
		e.want("a:80", "c-a=1")
	})
}

// TestDroppedAndWantedAgain: a host that ends and is wanted again before the
// server heard of it loses nothing, although the server sends nothing anew.
func TestDroppedAndWantedAgain(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.client.mail.post(func() {
			e.client.unsubscribe(e.client.hosts["a:80"])
			e.client.subscribe("a:80")
		})
		e.want("a:80", "c-a=1")
		// The same while the writer is busy, with an update on the way.
		e.client.mail.post(func() {
			st := e.client.servers[0].stream
			st.writing = true
			e.client.unsubscribe(e.client.hosts["a:80"])
		})
		e.want("a:80", "-")
		e.set(edsOf("e-a", 2))
		e.client.Subscribe("a:80")
		e.want("a:80", "c-a=2")
		e.client.mail.post(func() { e.client.servers[0].stream.writing = false })
		e.set(edsOf("e-a", 3))
		e.want("a:80", "c-a=3")
		if len(e.client.orphans) != 0 {
			e.Errorf("left over: %v", e.client.orphans)
		}
	})
}

// TestMaxSubscriptions: the host unused for longest makes room; where all are in use the new one is refused for a while.
func TestMaxSubscriptions(t *testing.T) {
	both(t, 1, func(e *env) {
		for _, n := range []string{"b", "c", "d", "e"} {
			e.put(service(n, 1)...)
		}
		e.up(func(o *Options) { o.MaxSubscriptions = 3 })
		e.client.Subscribe("b:80")
		e.client.Subscribe("c:80")
		e.want("c:80", "c-c=1")
		e.client.Subscribe("d:80")
		e.want("d:80", "error")
		if err := e.snap().Hosts["d:80"].Err; !errors.Is(err, ErrTooMany) {
			e.Errorf("error %v", err)
		}
		time.Sleep(refusedFor)
		e.want("d:80", "-")
		// Two sweeps: the first sees that all were used, the second that a and c were.
		time.Sleep(DefaultIdleTimeout / 4)
		synctest.Wait()
		e.snap().Hosts["a:80"].Used.Store(true)
		e.snap().Hosts["c:80"].Used.Store(true)
		time.Sleep(DefaultIdleTimeout / 4)
		synctest.Wait()
		e.client.Subscribe("d:80")
		e.want("d:80", "c-d=1")
		e.want("b:80", "-")
		e.want("a:80", "c-a=1")
		e.client.Subscribe("e:80")
		synctest.Wait()
		if n := len(e.snap().Hosts); n != 3 {
			e.Errorf("%d hosts, want 3", n)
		}
		e.want("e:80", "c-e=1")
		e.want("d:80", "c-d=1") // just asked for
	})
}

// TestIdleWhileIncomplete: a host that ends while new routes of it are being completed leaves nothing behind.
func TestIdleWhileIncomplete(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up(func(o *Options) { o.IdleTimeout = 4 * time.Second })
		e.silent["c-x"] = true
		e.set(rdsOf("r-a", "a:80", "c-a", "c-x"))
		e.want("a:80", "c-a=1")
		time.Sleep(7 * time.Second)
		e.want("a:80", "-")
		for k := range kinds {
			if got := e.wants(k); len(got) != 0 {
				e.Errorf("still subscribed to %v %v", k, got)
			}
		}
		if n := len(e.client.clusters); n != 0 {
			e.Errorf("%d clusters are kept", n)
		}
	})
}

// TestAskedForAgain: a request that asks for a host again uses it.
func TestAskedForAgain(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.up(func(o *Options) { o.MaxSubscriptions = 8 })
		for i := range 7 {
			e.client.Subscribe(fmt.Sprintf("old%d:80", i))
		}
		synctest.Wait()
		time.Sleep(DefaultIdleTimeout/4 + time.Second) // a sweep: none is in use
		synctest.Wait()
		e.client.Subscribe("a:80")
		synctest.Wait()
		for i := range 7 {
			e.client.Subscribe(fmt.Sprintf("new%d:80", i))
		}
		e.want("a:80", "c-a=1")
		for i := range 7 {
			e.want(fmt.Sprintf("old%d:80", i), "-")
		}
	})
}

// TestHostNames: a name that can not be sent does not reach the server, and what is refused is bounded.
func TestHostNames(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		for _, name := range []string{"", "\xff:80", strings.Repeat("x", maxHostName) + ":80"} {
			e.client.Subscribe(name)
			synctest.Wait()
			if h := e.snap().Hosts[name]; h == nil || !errors.Is(h.Err, ErrHostName) {
				e.Errorf("host %q: %+v", name, h)
			}
		}
		for i := range 3 * maxRefused {
			e.client.Subscribe(fmt.Sprintf("\xff%d", i))
		}
		synctest.Wait()
		if n := len(e.snap().Hosts); n != maxRefused+1 {
			e.Errorf("%d hosts", n)
		}
		e.set(edsOf("e-a", 2))
		e.want("a:80", "c-a=2")
	})
}

// TestRefusedAgain: a host that is refused again is published for its whole time.
func TestRefusedAgain(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.up()
		e.client.Subscribe("\xff")
		for i := range maxRefused {
			e.client.Subscribe(fmt.Sprintf("\xff%d", i))
		}
		synctest.Wait()
		if e.snap().Hosts["\xff"] != nil {
			e.Fatal("it has not made room")
		}
		time.Sleep(refusedFor - time.Second)
		e.client.Subscribe("\xff")
		time.Sleep(2 * time.Second)
		e.want("\xff", "error")
		time.Sleep(refusedFor)
		e.want("\xff", "-")
	})
}

// TestInbound: an inbound listener is there, absent, refused, or can not be named.
func TestInbound(t *testing.T) {
	both(t, 1, func(e *env) {
		show := func(addr, want string) {
			e.Helper()
			in := e.snap().Inbound[addr]
			got := "-"
			switch {
			case in == nil:
			case in.Absent:
				got = "absent"
			case in.Err != nil:
				got = "error"
			default:
				got = in.Service
			}
			if got != want {
				e.Fatalf("inbound %s is %q, want %q", addr, got, want)
			}
		}
		const addr = "10.0.0.1:80"
		l := ldsOf("in/"+addr, "")
		e.put(l)
		e.up()
		e.client.SubscribeInbound(addr)
		show(addr, "UNSPECIFIED")
		e.client.SubscribeInbound("none:1")
		time.Sleep(crossing + time.Millisecond)
		show("none:1", "absent")
		e.set(spoil(ldsOf("in/none:1", ""), "inbound"))
		show("none:1", "error")
		e.set(ldsOf("in/none:1", ""))
		show("none:1", "UNSPECIFIED")
		l.TrafficDirection = corev3.TrafficDirection_INBOUND
		e.set(l)
		show(addr, "INBOUND")
		e.set(spoil(ldsOf("in/"+addr, ""), "inbound"))
		show(addr, "INBOUND")
		e.remove(listeners, "in/"+addr)
		show(addr, "INBOUND")
		report := func(code codes.Code) {
			errs := []*discovery.ResourceError{{
				ResourceName: &discovery.ResourceName{Name: "in/" + addr}, ErrorDetail: status.New(code, "because").Proto(),
			}}
			e.raw(&discovery.DiscoveryResponse{TypeUrl: typeURLs[listeners], ResourceErrors: errs},
				&discovery.DeltaDiscoveryResponse{TypeUrl: typeURLs[listeners], ResourceErrors: errs})
		}
		report(codes.Internal)
		show(addr, "INBOUND")
		report(codes.PermissionDenied) // the server withholds it
		show(addr, "error")
		e.set(l)
		show(addr, "INBOUND")
		e.client.SubscribeInbound("\xff")
		show("\xff", "error")
		time.Sleep(3 * DefaultIdleTimeout)
		show(addr, "INBOUND")
	})
}

// TestInboundDeletedForGood: with fail_on_data_errors the deletion of an inbound listener takes effect.
func TestInboundDeletedForGood(t *testing.T) {
	both(t, 1, func(e *env) {
		e.config.Servers[0].Features.FailOnDataErrors = true
		const addr = "10.0.0.1:80"
		l := ldsOf("in/"+addr, "")
		e.put(l)
		e.up()
		e.client.SubscribeInbound(addr)
		if in := e.snap().Inbound[addr]; in == nil || in.Absent || in.Err != nil {
			e.Fatalf("inbound %+v", in)
		}
		e.remove(listeners, "in/"+addr)
		e.set(ldsOf("a:80", "r-a"))
		if in := e.snap().Inbound[addr]; !in.Absent || in.Service != "" {
			e.Errorf("inbound %+v is in force although it was deleted", in)
		}
		e.set(l)
		if in := e.snap().Inbound[addr]; in.Absent || in.Err != nil {
			e.Errorf("inbound %+v", in)
		}
	})
}

// TestInboundWithoutTemplate: without a template there is no name to ask for.
func TestInboundWithoutTemplate(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.config.InboundTemplate = ""
		e.start()
		e.open()
		e.client.SubscribeInbound("10.0.0.1:80")
		if in := e.snap().Inbound["10.0.0.1:80"]; in == nil || in.Err == nil {
			e.Errorf("inbound %+v", in)
		}
	})
}

// TestIdentity: what did not change keeps its identity from snapshot to snapshot.
func TestIdentity(t *testing.T) {
	both(t, 1, func(e *env) {
		e.put(service("b", 1)...)
		e.up()
		e.client.Subscribe("b:80")
		e.want("b:80", "c-b=1")
		one := e.snap()
		e.set(edsOf("e-a", 2))
		e.want("a:80", "c-a=2")
		two := e.snap()
		if one.Hosts["a:80"] != two.Hosts["a:80"] || one.Hosts["b:80"] != two.Hosts["b:80"] || one.Clusters["c-b"] != two.Clusters["c-b"] {
			e.Error("a change of one cluster's endpoints changed something else")
		}
		if one.Clusters["c-a"] == two.Clusters["c-a"] || one.Clusters["c-a"].Endpoints.All[0].Address != "127.0.0.1:1" {
			e.Error("a published cluster was changed in place")
		}
		e.set(service("a", 2)...)
		e.set(service("b", 1)...)
		if e.snap() != two {
			e.Error("the same resources again led to a snapshot")
		}
		e.set(rdsOf("r-a", "a:80", "c-a", "c-b"))
		e.want("a:80", "c-a=2 c-b=1")
		three := e.snap()
		if three.Clusters["c-a"] != two.Clusters["c-a"] || three.Clusters["c-b"] != two.Clusters["c-b"] || three.Hosts["b:80"] != two.Hosts["b:80"] {
			e.Error("a change of routes changed something else")
		}
		if three.Hosts["a:80"] == two.Hosts["a:80"] || three.Hosts["a:80"].Used != two.Hosts["a:80"].Used {
			e.Error("the host whose routes changed must be new, with the same Used")
		}
	})
}

// TestBurst: many changes at one time give few snapshots, the last with all of them.
func TestBurst(t *testing.T) {
	both(t, 1, func(e *env) {
		e.start()
		e.open()
		for i := range 100 {
			e.put(service(fmt.Sprint("h", i), i+1)...)
		}
		for i := range 100 {
			e.client.Subscribe(fmt.Sprintf("h%d:80", i))
		}
		e.want("h99:80", "c-h99=100")
		s := e.snap()
		if len(s.Hosts) != 100 || len(s.Clusters) != 100 {
			e.Errorf("%d hosts, %d clusters", len(s.Hosts), len(s.Clusters))
		}
		if n := len(e.replies(endpoints)); n > 50 {
			e.Errorf("%d responses for 100 endpoints sets", n)
		}
	})
}

// TestEvents: the callbacks report what happens, once each.
func TestEvents(t *testing.T) {
	both(t, 1, func(e *env) {
		var got []string // written by the loop, read at rest
		e.put(service("a", 1)...)
		e.start()
		e.open(func(o *Options) {
			o.Events = Events{
				Connected:    func(server, protocol string) { got = append(got, "connected "+server+" "+protocol) },
				Disconnected: func(server string, err error) { got = append(got, "disconnected "+server) },
				Update: func(typeURL, name, version string) {
					if version == "" {
						e.Errorf("no version for %s", name)
					}
					got = append(got, "update "+name)
				},
				NACK:    func(server, typeURL, version string, err error) { got = append(got, "nack "+typeURL+" "+err.Error()) },
				Missing: func(typeURL, name string, err error) { got = append(got, "missing "+name) },
			}
		})
		e.client.Subscribe("a:80")
		e.want("a:80", "c-a=1")
		e.client.Subscribe("x:80")
		time.Sleep(crossing + time.Millisecond)
		e.want("x:80", "absent")
		e.set(spoil(cdsOf("c-a", "e-a"), "cluster"))
		synctest.Wait()
		e.stop()
		synctest.Wait()
		want := []string{
			"connected passthrough:///0 delta", "update a:80", "update r-a", "update c-a", "update e-a", "missing x:80",
			"nack " + typeURLs[clusters] + " bad cluster", "disconnected passthrough:///0",
		}
		if e.sotwOnly {
			want = append([]string{want[0], "disconnected passthrough:///0", "connected passthrough:///0 sotw"}, want[1:]...)
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			e.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestStatus: the status is whole, and JSON.
func TestStatus(t *testing.T) {
	in(t, 2, false, func(e *env) {
		e.up()
		e.client.SubscribeInbound("1.2.3.4:5")
		e.client.Subscribe("x:80")
		e.client.Subscribe("")
		synctest.Wait()
		b, err := json.Marshal(e.client.Status())
		if err != nil {
			e.Fatal(err)
		}
		for _, want := range []string{
			`"node_id":"sidecar~10.0.0.1~pod.ns~ns.svc.cluster.local"`,
			`{"uri":"passthrough:///0","state":"connected","protocol":"delta"}`, `{"uri":"passthrough:///1","state":"unused"}`,
			`{"name":"a:80","state":"ready","routes":"r-a"}`, `{"name":"x:80","state":"absent"}`, `{"name":"","state":"error","error":"xds: not a host name"}`,
			`"inbound":[{"name":"1.2.3.4:5","state":"absent"}]`,
			`{"type":"Cluster","name":"c-a","state":"ACKED","version":"2"}`,
			`{"type":"Listener","name":"x:80","state":"DOES_NOT_EXIST","error":`,
		} {
			if !strings.Contains(string(b), want) {
				e.Errorf("no %s in %s", want, b)
			}
		}
		e.client.Close()
		if s := e.client.Status(); s.Servers != nil {
			e.Errorf("status after Close: %+v", s)
		}
		e.client.Close()
		e.client.Subscribe("late:80")
	})
}

// TestNew: what can not work is refused with the reason.
func TestNew(t *testing.T) {
	good := func() Options {
		return Options{
			OnSnapshot: func(*snapshot.Snapshot) {},
			Bootstrap: &bootstrap.Config{
				Servers:          []bootstrap.Server{{URI: "passthrough:///x", ChannelCreds: []bootstrap.ChannelCreds{{Type: "insecure"}}}},
				Node:             &corev3.Node{Id: "n", UserAgentName: "other", ClientFeatures: []string{"xds.config.resource-in-sotw"}},
				ListenerTemplate: "%s",
			},
		}
	}
	for _, tc := range []struct {
		name, want string
		spoil      func(*Options)
	}{
		{"no bootstrap", "no server", func(o *Options) { o.Bootstrap = nil }},
		{"no servers", "no server", func(o *Options) { o.Bootstrap.Servers = nil }},
		{"no callback", "OnSnapshot", func(o *Options) { o.OnSnapshot = nil }},
		{"unknown credentials", "passthrough:///x", func(o *Options) { o.Bootstrap.Servers[0].ChannelCreds = nil }},
		{"bad target", "no such scheme", func(o *Options) {
			o.Bootstrap.Servers[0].URI = "no such scheme\x7f:///x"
		}},
		{"unknown authority", "authorit", func(o *Options) { o.Bootstrap.ListenerTemplate = "xdstp://other/envoy.config.listener.v3.Listener/%s" }},
		{"authority with servers", "authority", func(o *Options) {
			o.Bootstrap.ListenerTemplate = "xdstp://other/envoy.config.listener.v3.Listener/%s"
			o.Bootstrap.Authorities = map[string]bootstrap.Authority{"other": {Servers: []bootstrap.Server{{URI: "passthrough:///y"}}}}
		}},
		{"authority with some of the servers", "authority", func(o *Options) {
			o.Bootstrap.ListenerTemplate = "xdstp://other/envoy.config.listener.v3.Listener/%s"
			one := o.Bootstrap.Servers
			o.Bootstrap.Authorities = map[string]bootstrap.Authority{"other": {Servers: one}}
			o.Bootstrap.Servers = append(one, bootstrap.Server{URI: "passthrough:///y", ChannelCreds: one[0].ChannelCreds})
		}},
	} {
		o := good()
		tc.spoil(&o)
		c, err := New(o)
		if err == nil {
			c.Close()
			t.Errorf("%s: no error", tc.name)
		} else if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %q does not say %q", tc.name, err, tc.want)
		}
	}
	o := good()
	o.UserAgentVersion = "1.2"
	n := node(o)
	if n.UserAgentName != "sinew" || n.GetUserAgentVersion() != "1.2" || len(n.ClientFeatures) != 1 || o.Bootstrap.Node.UserAgentName != "other" {
		t.Errorf("node %v", n)
	}
}
