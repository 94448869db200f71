package client

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

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
