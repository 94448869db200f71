package client

import (
	"fmt"
	"slices"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

func TestAggregate(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.set(cdsOf("c1", "e1"), edsOf("e1", 1), cdsOf("c2", "e2"))
		e.silent["e2"] = true
		e.set(aggregateOf("agg", "c1", "c2", "c1"), rdsOf("r-a", "a:80", "agg"))
		e.want("a:80", "c-a=1") // c2 is not complete
		e.silent["e2"] = false
		e.set(edsOf("e2", 2))
		e.want("a:80", "agg=c1+c2")
		if s := e.snap(); len(s.Clusters) != 3 || s.Clusters["agg"].Discovery != snapshot.Aggregate {
			e.Errorf("%v", s.Clusters)
		}
		// A change of the list waits for what is new, and keeps what is old until then.
		e.silent["c3"] = true
		e.set(aggregateOf("agg", "c3", "c1"))
		e.want("a:80", "agg=c1+c2")
		e.set(edsOf("e2", 9))
		if port := e.snap().Clusters["c2"].Endpoints.All[0].Address; port != "127.0.0.1:9" {
			e.Errorf("what is in force is not kept up to date: %s", port)
		}
		e.silent["c3"] = false
		e.set(cdsOf("c3", "e3"), edsOf("e3", 3))
		e.want("a:80", "agg=c3+c1")
		if s := e.snap(); s.Clusters["c2"] != nil {
			e.Error("c2 is still there")
		}
		// One that can not be had has an error of its own.
		e.set(aggregateOf("agg", "none", "c1"))
		time.Sleep(resourceTimeout + time.Second)
		e.want("a:80", "agg=none+c1")
		if s := e.snap(); s.Clusters["none"].Err == nil || !s.Clusters["none"].Absent || s.Clusters["agg"].Err != nil {
			e.Errorf("%+v", s.Clusters["none"])
		}
		// An aggregate that is one no more.
		e.set(cdsOf("agg", "e1"))
		e.want("a:80", "agg=1")
		e.set(rdsOf("r-a", "a:80", "c-a"))
		e.want("a:80", "c-a=1")
		if got := e.wants(clusters); !slices.Equal(got, []string{"c-a"}) {
			e.Errorf("subscribed to clusters %v", got)
		}
	})
}

func TestNestedAggregates(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.set(cdsOf("c1", "e1"), edsOf("e1", 1), cdsOf("c2", "e2"), edsOf("e2", 2), cdsOf("c3", "e3"), edsOf("e3", 3))
		// Cycles and clusters that come again are looked through.
		e.set(aggregateOf("x", "c1", "y"), aggregateOf("y", "x", "c1", "c2", "y"), rdsOf("r-a", "a:80", "x", "y"))
		e.want("a:80", "x=c1+c2 y=c1+c2")
		e.set(aggregateOf("y", "c3", "x"))
		e.want("a:80", "x=c1+c3 y=c3+c1")
		// Only what a route names is published beside the leaves.
		e.set(rdsOf("r-a", "a:80", "x"))
		e.want("a:80", "x=c1+c3")
		if s := e.snap(); len(s.Clusters) != 3 {
			e.Errorf("%v", s.Clusters)
		}
		e.set(aggregateOf("y", "c2"))
		e.want("a:80", "x=c1+c2")
		e.set(aggregateOf("x", "y"), aggregateOf("y", "x"))
		e.want("a:80", "x=!")
		e.set(rdsOf("r-a", "a:80", "c-a"))
		e.want("a:80", "c-a=1")
		if got := e.wants(clusters); !slices.Equal(got, []string{"c-a"}) {
			e.Errorf("subscribed to clusters %v", got)
		}
	})
}

func TestAggregateDepth(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.up()
		e.set(cdsOf("leaf", "e1"), edsOf("e1", 1))
		last := maxAggregateDepth - 1
		for i := range last {
			e.set(aggregateOf(fmt.Sprint("n", i), fmt.Sprint("n", i+1)))
		}
		e.set(aggregateOf(fmt.Sprint("n", last), "leaf"), rdsOf("r-a", "a:80", "n1"))
		e.want("a:80", "n1=leaf")
		e.set(rdsOf("r-a", "a:80", "n0"))
		e.want("a:80", "n0=!")
	})
}

func TestMirrorClusters(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.up()
		rc := rdsOf("r-a", "a:80", "c-a")
		rc.VirtualHosts[0].Routes[0].GetRoute().RequestMirrorPolicies = []*routev3.RouteAction_RequestMirrorPolicy{{Cluster: "m"}}
		e.set(cdsOf("m", "e-m"), edsOf("e-m", 5), rc)
		e.want("a:80", "c-a=1 m=5")
	})
}

// A leaf that becomes an aggregate keeps nothing of what it was.
func TestLeafBecomesAggregate(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up()
		e.set(cdsOf("c1", "e1"), edsOf("e1", 1), cdsOf("c2", "e2"), edsOf("e2", 2))
		e.set(aggregateOf("x", "c1", "c2"), rdsOf("r-a", "a:80", "x"))
		e.want("a:80", "x=c1+c2")
		e.silent["c3"] = true
		e.set(aggregateOf("c2", "c3"))
		e.want("a:80", "x=c1+c2") // c3 is not complete
		e.silent["c3"] = false
		e.set(cdsOf("c3", "e3"), edsOf("e3", 3))
		e.want("a:80", "x=c1+c3")
		if got := e.wants(endpoints); !slices.Equal(got, []string{"e1", "e3"}) {
			e.Errorf("asks for endpoints %v", got)
		}
		// And back again, while a route names it too.
		e.set(rdsOf("r-a", "a:80", "x", "c2"))
		e.want("a:80", "x=c1+c3 c2=c3")
		e.set(cdsOf("c2", "e2"))
		e.want("a:80", "x=c1+c2 c2=2")
		if got := e.wants(clusters); !slices.Equal(got, []string{"c1", "c2", "x"}) {
			e.Errorf("asks for clusters %v", got)
		}
		// A route lets go of one that is about to become an aggregate.
		e.silent["c4"] = true
		e.set(aggregateOf("c2", "c4"))
		e.want("a:80", "x=c1+c2 c2=2")
		e.set(rdsOf("r-a", "a:80", "x"))
		e.want("a:80", "x=c1+c2")
		// It thinks better of it before it was one.
		e.set(cdsOf("c2", "e2"))
		e.want("a:80", "x=c1+c2")
		if got := e.wants(clusters); !slices.Equal(got, []string{"c1", "c2", "x"}) {
			e.Errorf("asks for clusters %v", got)
		}
		e.set(aggregateOf("c2", "c4"))
		e.want("a:80", "x=c1+c2")
		e.set(aggregateOf("x", "c1"))
		e.want("a:80", "x=c1")
		if got := e.wants(endpoints); !slices.Equal(got, []string{"e1"}) {
			e.Errorf("asks for endpoints %v", got)
		}
	})
}
