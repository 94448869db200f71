package client

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// TestMissingCluster: new routes name a cluster that does not come: the old
// routes stay whole for 15 s, with fresh endpoints, then the new ones are in force and only that cluster fails.
func TestMissingCluster(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.silent["c-x"] = true
		e.set(rdsOf("r-a", "a:80", "c-a", "c-x"))
		e.want("a:80", "c-a=1")
		e.set(edsOf("e-a", 7))
		e.want("a:80", "c-a=7")
		time.Sleep(resourceTimeout - time.Millisecond)
		e.want("a:80", "c-a=7")
		time.Sleep(2 * time.Millisecond)
		e.want("a:80", "c-a=7 c-x=!")
		e.silent["c-x"] = false
		e.set(cdsOf("c-x", "e-x"), edsOf("e-x", 8))
		e.want("a:80", "c-a=7 c-x=8")
	})
}

// TestMissingClusterThenBack: routes that go back to what they were while a cluster is awaited lose nothing.
func TestMissingClusterThenBack(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.silent["c-x"] = true
		e.set(rdsOf("r-a", "a:80", "c-x"))
		e.want("a:80", "c-a=1")
		e.set(rdsOf("r-a", "a:80", "c-a"))
		e.want("a:80", "c-a=1")
		time.Sleep(time.Minute)
		e.want("a:80", "c-a=1")
		if got := e.wants(clusters); len(got) != 1 || got[0] != "c-a" {
			e.Errorf("subscribed to clusters %v", got)
		}
	})
}

// TestMissingEndpoints: a cluster that moves to endpoints that do not come keeps the old for 15 s.
func TestMissingEndpoints(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.silent["e-x"] = true
		e.set(cdsOf("c-a", "e-x"))
		e.want("a:80", "c-a=1")
		time.Sleep(resourceTimeout - time.Millisecond)
		e.want("a:80", "c-a=1")
		time.Sleep(2 * time.Millisecond)
		e.want("a:80", "c-a=!")
		if got := e.wants(endpoints); len(got) != 1 || got[0] != "e-x" {
			e.Errorf("subscribed to endpoints %v", got)
		}
		e.silent["e-x"] = false
		e.set(edsOf("e-x", 4))
		e.want("a:80", "c-a=4")
	})
}

// TestMissingRoutes: the listener names routes that do not come: the old stay for 15 s, then the host fails.
func TestMissingRoutes(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.silent["r-x"] = true
		e.set(ldsOf("a:80", "r-x"))
		e.want("a:80", "c-a=1")
		time.Sleep(resourceTimeout - time.Millisecond)
		e.want("a:80", "c-a=1")
		time.Sleep(2 * time.Millisecond)
		e.want("a:80", "error")
		e.silent["r-x"] = false
		e.set(rdsOf("r-x", "a:80", "c-a"))
		e.want("a:80", "c-a=1")
	})
}

// TestBadNewRoutes: the listener names routes that are refused: what works stays in force.
func TestBadNewRoutes(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.set(ldsOf("a:80", "r-x"), spoil(rdsOf("r-x", "a:80", "c-a"), "routes"), cdsOf("c-a", "e-x"), spoil(edsOf("e-x", 1), "endpoints"))
		e.want("a:80", "c-a=1")
		time.Sleep(time.Minute)
		e.want("a:80", "c-a=1")
		e.set(rdsOf("r-x", "a:80", "c-a"), edsOf("e-x", 2))
		e.want("a:80", "c-a=2")
	})
}

// TestNotAnAPIListener: a listener without routes, and routes without a virtual host for the authority, drop the configuration.
func TestNotAnAPIListener(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		l := ldsOf("a:80", "r-a")
		l.ApiListener = nil
		e.set(l)
		e.want("a:80", "error")
		e.set(ldsOf("a:80", "r-a"))
		e.want("a:80", "c-a=1")
		e.set(rdsOf("r-a", "other:80", "c-a"))
		e.want("a:80", "error")
		if err := e.snap().Hosts["a:80"].Err; !strings.Contains(err.Error(), "a:80") || !strings.Contains(err.Error(), "r-a") {
			e.Errorf("error %v", err)
		}
		e.set(rdsOf("r-a", "a:80", "c-a"))
		e.want("a:80", "c-a=1")
	})
}

// TestBadEndpoints: a cluster whose endpoints are refused or never come is there, with none and the reason.
func TestBadEndpoints(t *testing.T) {
	both(t, 1, func(e *env) {
		b := service("b", 1)
		spoil(b[3], "endpoints")
		e.put(b...)
		e.put(service("d", 1)...)
		e.silent["e-d"] = true
		e.up()
		e.client.Subscribe("b:80")
		e.want("b:80", "c-b=!")
		if err := e.snap().Clusters["c-b"].Err; !strings.Contains(err.Error(), "bad endpoints") {
			e.Errorf("error %v", err)
		}
		before := e.snap()
		e.set(spoil(edsOf("e-b", 7), "endpoints"))
		if e.snap() != before {
			e.Error("another refusal for the same reason led to a snapshot")
		}
		e.client.Subscribe("d:80")
		e.want("d:80", "-")
		time.Sleep(resourceTimeout + time.Millisecond)
		e.want("d:80", "c-d=!")
	})
}

// TestSharedCluster: a second host that needs what the first has is published without waiting for the server,
// also when the resource in force is not the last that was sent.
func TestSharedCluster(t *testing.T) {
	both(t, 1, func(e *env) {
		e.put(ldsOf("b:80", "r-b"), rdsOf("r-b", "b:80", "c-a"))
		e.up()
		e.set(spoil(cdsOf("c-a", "e-a"), "cluster"))
		synctest.Wait()
		before := e.snap().Clusters["c-a"]
		e.silent["c-a"] = true
		e.client.Subscribe("b:80")
		e.want("b:80", "c-a=1")
		if e.snap().Clusters["c-a"] != before {
			e.Error("the shared cluster is another one")
		}
	})
}

// TestErrorOfTheNewest: where nothing works, a refusal is what is told, and not what was wrong before.
func TestErrorOfTheNewest(t *testing.T) {
	both(t, 1, func(e *env) {
		e.open(func(o *Options) { o.ReadyWait = -1 })
		e.client.Subscribe("a:80")
		e.want("a:80", "error") // no server
		e.put(ldsOf("a:80", "r-a"), spoil(rdsOf("r-a", "a:80", "c-a"), "routes"))
		e.start()
		time.Sleep(connectMaxDelay*12/10 + reconnectJitter)
		e.want("a:80", "error")
		if err := e.snap().Hosts["a:80"].Err; !strings.Contains(err.Error(), "bad routes") {
			e.Errorf("host: error %v", err)
		}
		e.silent["e-a"] = true
		e.set(rdsOf("r-a", "a:80", "c-a"), cdsOf("c-a", "e-a"))
		time.Sleep(resourceTimeout + time.Millisecond)
		e.want("a:80", "c-a=!") // no endpoints in time
		e.set(cdsOf("c-a", "e-x"), spoil(edsOf("e-x", 1), "endpoints"))
		e.want("a:80", "c-a=!")
		if err := e.snap().Clusters["c-a"].Err; !strings.Contains(err.Error(), "bad endpoints") {
			e.Errorf("cluster: error %v", err)
		}
	})
}

// TestListenerAlone: what the listener says takes effect although its routes stay the same.
func TestListenerAlone(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		before := e.snap().Hosts["a:80"]
		l := ldsOf("a:80", "r-a")
		hcm := &hcmv3.HttpConnectionManager{}
		if err := l.ApiListener.ApiListener.UnmarshalTo(hcm); err != nil {
			e.Fatal(err)
		}
		hcm.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{MaxStreamDuration: durationpb.New(time.Minute)}
		l.ApiListener.ApiListener = pack(hcm)
		e.set(l)
		after := e.snap().Hosts["a:80"]
		if after.MaxStreamDuration != time.Minute || before.MaxStreamDuration != 0 {
			e.Errorf("limit %v, before %v", after.MaxStreamDuration, before.MaxStreamDuration)
		}
		if after.Routes != before.Routes || after.VirtualHost != before.VirtualHost || after.Used != before.Used {
			e.Error("more than the limit is another")
		}
	})
}
