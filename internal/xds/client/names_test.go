package client

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestNamesAreBounded: whoever writes requests can name as many hosts and
// clusters as he likes. What is kept of them is bounded, the timers that end it
// too, and in the end nothing of it is left.
func TestNamesAreBounded(t *testing.T) {
	const strangers = 100_000
	in(t, 1, false, func(e *env) {
		e.up(func(o *Options) { o.MaxSubscriptions = 50 })
		name := func(kind string, i int) string {
			return fmt.Sprint(kind, i, ":80")
		}
		kept := func() (n map[string]int) {
			done := make(chan struct{})
			e.client.mail.post(func() {
				c := e.client
				n = map[string]int{
					"hosts": len(c.hosts) + len(c.unanswered), "refused hosts": len(c.refused) + len(c.refusedOrder) + len(c.refusedEnds),
					"clusters": len(c.clusters) + len(c.demands), "refused clusters": len(c.refusedClusters), "orphans": len(c.orphans),
				}
				for k := range c.resources {
					n["resources"] += len(c.resources[k])
				}
				close(done)
			})
			<-done
			return n
		}
		bounds := map[string]int{
			"hosts": 100, "refused hosts": 3 * maxRefused, "clusters": 2*maxDemands + 1, "refused clusters": maxRefused,
			"resources": maxDemands + 200, // theirs, and those that are on their way out
		}
		careless := map[string]bool{} // as who keeps what was named once
		for i := range strangers {
			e.client.Subscribe(name("h", i))
			careless[name("h", i)] = true
			if i%20 == 0 {
				e.client.SubscribeCluster(name("c", i))
			}
			if i%5000 != 0 {
				continue
			}
			synctest.Wait()
			for what, n := range kept() {
				if n > bounds[what] {
					t.Errorf("%d names: %d %s are kept, want at most %d", i, n, what, bounds[what])
				}
			}
		}
		for what, most := range bounds {
			if len(careless) <= 10*most {
				t.Errorf("%d names prove nothing of %s", len(careless), what)
			}
		}
		t.Logf("%d names: %v", strangers, kept())
		time.Sleep(e.client.opts.IdleTimeout * 3)
		synctest.Wait()
		for what, n := range kept() {
			if n > 0 {
				t.Errorf("%d %s are left when nobody asks any more", n, what)
			}
		}
	})
}
