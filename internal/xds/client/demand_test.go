package client

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSubscribeCluster(t *testing.T) {
	both(t, 1, func(e *env) {
		e.up(func(o *Options) { o.IdleTimeout = 4 * time.Minute })
		e.set(cdsOf("c1", "e1"), edsOf("e1", 1), cdsOf("c2", "e2"), edsOf("e2", 2), aggregateOf("agg", "c1", "c2"))
		if s := e.snap(); s.Clusters["c1"] != nil {
			e.Fatal("known without having been asked for")
		}
		for range 3 {
			e.client.SubscribeCluster("agg")
		}
		e.client.SubscribeCluster("c-a")
		e.client.SubscribeCluster("none")
		time.Sleep(resourceTimeout + time.Second)
		s := e.snap()
		if agg := s.Clusters["agg"]; agg == nil || agg.Err != nil || !slices.Equal(agg.Underlying, []string{"c1", "c2"}) || s.Clusters["c1"] == nil {
			e.Fatalf("%+v", s.Clusters)
		}
		if none := s.Clusters["none"]; none == nil || none.Err == nil || !none.Absent {
			e.Errorf("%+v", none)
		}
		// One in use stays, another goes, and a route's cluster does not depend on it.
		for range 12 {
			e.snap().Clusters["agg"].Used.Store(true)
			e.snap().Hosts["a:80"].Used.Store(true)
			time.Sleep(time.Minute)
		}
		if s := e.snap(); s.Clusters["agg"] == nil || s.Clusters["none"] != nil || s.Clusters["c-a"] == nil {
			e.Errorf("%+v", s.Clusters)
		}
		for range 8 {
			e.snap().Hosts["a:80"].Used.Store(true)
			time.Sleep(time.Minute)
		}
		if s := e.snap(); len(s.Clusters) != 1 {
			e.Errorf("%+v", s.Clusters)
		}
		if got := e.wants(clusters); !slices.Equal(got, []string{"c-a"}) {
			e.Errorf("subscribed to clusters %v", got)
		}
	})
}

func TestSubscribedClustersAreBounded(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.up()
		for i := range maxDemands {
			e.client.SubscribeCluster(fmt.Sprint("x", i))
		}
		e.snap()
		e.client.SubscribeCluster("more")
		e.client.SubscribeCluster("")
		e.client.SubscribeCluster("a\xff")
		e.client.SubscribeCluster(strings.Repeat("x", maxHostName+1))
		s := e.snap()
		if more := s.Clusters["more"]; more == nil || !errors.Is(more.Err, ErrTooManyClusters) {
			e.Errorf("%+v", more)
		}
		if bad := s.Clusters["a\xff"]; bad == nil || !errors.Is(bad.Err, ErrClusterName) {
			e.Errorf("%+v", bad)
		}
		if got := len(e.wants(clusters)); got != maxDemands+1 {
			e.Errorf("%d clusters are subscribed", got)
		}
		time.Sleep(refusedFor + time.Second)
		if s := e.snap(); s.Clusters["more"] != nil {
			e.Error("refused for ever")
		}
		// One that was not used makes room.
		e.client.clustersUnused("x7")
		e.client.SubscribeCluster("more")
		synctest.Wait()
		if got := e.wants(clusters); !slices.Contains(got, "more") || slices.Contains(got, "x7") {
			e.Error("no room was made")
		}
	})
}

// clustersUnused has the client see that no request uses the cluster.
func (c *Client) clustersUnused(name string) {
	done := make(chan struct{})
	c.mail.post(func() { c.demands[name].cluster.used.Store(false); close(done) })
	<-done
}

func TestSubscribeClusterOutOfReach(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.set(cdsOf("c1", "e1"), edsOf("e1", 1))
		e.open()
		e.client.SubscribeCluster("c1")
		if s := e.snap(); s.Clusters["c1"] != nil {
			e.Fatalf("%+v", s.Clusters["c1"])
		}
		time.Sleep(DefaultReadyWait + 10*time.Second)
		if c := e.snap().Clusters["c1"]; c == nil || c.Err == nil || c.Absent {
			e.Fatalf("%+v", c)
		}
		e.start()
		time.Sleep(30 * time.Second)
		if c := e.snap().Clusters["c1"]; c == nil || c.Err != nil || len(c.Endpoints.All) != 1 {
			e.Fatalf("%+v", c)
		}
	})
}

// A cluster that nobody asks for any more is gone, its error too.
func TestSubscribedClusterOutOfReachEnds(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.open()
		e.client.SubscribeCluster("c1")
		time.Sleep(DefaultReadyWait + time.Second)
		if c := e.snap().Clusters["c1"]; c == nil || c.Err == nil {
			e.Fatalf("%+v", c)
		}
		time.Sleep(2 * DefaultIdleTimeout)
		if c := e.snap().Clusters["c1"]; c != nil {
			e.Errorf("%+v", c)
		}
	})
}

// Asking again counts as a use, and the one unused for longest makes room.
func TestSubscribedClusterMakesRoom(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.up()
		for i := range maxDemands {
			e.client.SubscribeCluster(fmt.Sprint("x", i))
		}
		synctest.Wait()
		// A sweep dates the use of all but x1 later than that of x1; then none is in use.
		time.Sleep(DefaultIdleTimeout/4 + time.Second)
		synctest.Wait()
		for i := range maxDemands {
			if i != 1 {
				e.client.SubscribeCluster(fmt.Sprint("x", i))
			}
		}
		synctest.Wait()
		time.Sleep(DefaultIdleTimeout / 4)
		synctest.Wait()
		e.client.SubscribeCluster("more")
		synctest.Wait()
		got := e.wants(clusters)
		if !slices.Contains(got, "more") || slices.Contains(got, "x1") || len(got) != maxDemands+1 {
			e.Errorf("%d clusters are subscribed; more %v, x1 %v", len(got), slices.Contains(got, "more"), slices.Contains(got, "x1"))
		}
		// All but one are in use again: that one goes.
		for i := range maxDemands {
			if i != 1 && i != 7 {
				e.client.SubscribeCluster(fmt.Sprint("x", i))
			}
		}
		synctest.Wait()
		e.client.SubscribeCluster("last")
		synctest.Wait()
		if got := e.wants(clusters); !slices.Contains(got, "last") || slices.Contains(got, "x7") {
			e.Errorf("last %v, x7 %v", slices.Contains(got, "last"), slices.Contains(got, "x7"))
		}
	})
}

// What is refused is bounded.
func TestRefusedClustersAreBounded(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.up()
		for i := range 2 * maxRefused {
			e.client.SubscribeCluster(fmt.Sprintf("\xff%d", i))
		}
		if n := len(e.snap().Clusters); n != maxRefused+1 {
			e.Errorf("%d clusters, want %d", n, maxRefused+1)
		}
	})
}
