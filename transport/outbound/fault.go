package outbound

import (
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// inject decides what a fault does to the call. It reports whether it answers
// the request; a delay alone lets it go on, after the delay.
//
// Faults come before the router, as in Envoy: time limits and retries do not
// apply to them.
func (c *Call) inject(f *resilience.Fault) (answered bool) {
	v := f.Decide(&c.Request, c.engine.draw(), c.engine.draw())
	if v.Delay <= 0 && !v.Aborts() {
		return false
	}
	// Counted first and given back if refused, so that calls side by side can not exceed the limit together.
	active := c.host.faults.Add(1) - 1
	if f.MaxActive != nil && active >= int64(*f.MaxActive) {
		c.host.faults.Add(-1)
		return false
	}
	m := c.more()
	m.verdict, m.faulted = v, true
	if !v.Aborts() {
		return false
	}
	l := &Local{Reason: "fault", Status: v.HTTP, GRPC: v.GRPCStatus(), Header: map[string][]string{}, Body: f.Abort.Text()}
	c.answer(l)
	if snap := c.route.snap; snap.Redirect == nil && snap.Direct == nil {
		c.Incoming(nil, l.Status, l.Header, routing.CanonicalHeaders) // only where the route leads somewhere (Envoy)
	}
	return true
}

// Delay returns how long policy holds the request before Local or the first
// attempt; zero means not at all. EndDelay follows where it is not zero. The
// call's time limits count from EndDelay.
func (c *Call) Delay() time.Duration {
	if c.rare == nil {
		return 0
	}
	return max(0, c.rare.verdict.Delay)
}

// EndDelay is called when the delay has passed.
func (c *Call) EndDelay() {
	if c.rare == nil || c.rare.verdict.Delay <= 0 {
		return
	}
	c.rare.verdict.Delay = 0
	c.waited = time.Since(c.began)
	if !c.rare.verdict.Aborts() {
		c.leaveFaults()
	}
}

func (c *Call) leaveFaults() {
	if c.rare.faulted {
		c.rare.faulted = false
		c.host.faults.Add(-1)
	}
}
