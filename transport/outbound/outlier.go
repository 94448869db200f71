package outbound

import (
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

// rates counts an endpoint's outcomes since the last sweep.
type rates struct{ requests, successes, localRequests, localSuccesses atomic.Uint64 }

// comparesRates reports whether a rule compares the endpoints with one another.
func comparesRates(o *resilience.Outlier) bool {
	return o.EnforcingSuccessRate > 0 || o.EnforcingFailurePercentage > 0 ||
		o.SplitLocalOrigin && (o.EnforcingLocalOriginSuccessRate > 0 || o.EnforcingFailurePercentageLocalOrigin > 0)
}

// count adds an outcome. What this side found counts with the rest, or apart
// where policy splits them; then each response is a success of the local origin.
func (r *rates) count(rule *resilience.Outlier, result resilience.Result) {
	if rule.SplitLocalOrigin {
		r.localRequests.Add(1)
		if result == resilience.LocalFailure {
			return
		}
		r.localSuccesses.Add(1)
	}
	r.requests.Add(1)
	if result == resilience.Success {
		r.successes.Add(1)
	}
}

// take returns the counts, and begins again.
func (r *rates) take() (all, local resilience.Rate) {
	// Successes first: one that is counted in between is then not above its requests.
	all.Successes, local.Successes = r.successes.Swap(0), r.localSuccesses.Swap(0)
	all.Requests, local.Requests = r.requests.Swap(0), r.localRequests.Swap(0)
	return all, local
}

// detect counts a result for the outlier rule.
func (c *Cluster) detect(rule *resilience.Outlier, e *Endpoint, result resilience.Result) {
	if r := e.rates.Load(); r != nil {
		r.count(rule, result)
		if !c.sweeping.Load() {
			c.mu.Lock()
			c.sweepLater()
			c.mu.Unlock()
		}
	}
	for {
		before := e.streak.Load()
		if before == 0 && result == resilience.Success {
			return
		}
		after, detected := rule.Observe(resilience.Streak(before), result)
		if !e.streak.CompareAndSwap(before, uint64(after)) {
			continue
		}
		if detected != 0 && rule.Enforces(detected, c.engine.draw()) {
			c.mu.Lock()
			if c.eject(e, reason(detected)) {
				c.republish()
			}
			c.mu.Unlock()
		}
		return
	}
}

// sweepLater sees to it that a sweep comes. The caller holds mu.
func (c *Cluster) sweepLater() {
	s := c.current.Load()
	if c.closed || c.tick != nil || s.config.Outlier == nil {
		return
	}
	c.tick = time.AfterFunc(s.config.Outlier.Interval, c.sweep)
	c.sweeping.Store(true)
}

// eject takes an endpoint out of use, and reports whether it did: policy bounds
// how many are out at one time. The caller holds mu, and publishes.
func (c *Cluster) eject(e *Endpoint, why string) bool {
	rule := c.current.Load().config.Outlier
	if c.closed || rule == nil || e.ejection.Ejected || c.known[e.Address] != e || !rule.MayEject(c.ejected, len(c.known)) {
		return false
	}
	e.ejection = rule.Eject(e.ejection, time.Now(), c.engine.draw())
	e.ejected.Store(true)
	c.ejected++
	c.put(e)
	c.sweepLater()
	if obs := c.engine.options.Observer; obs != nil {
		obs.Ejection(c.name, e.Address, why, true)
	}
	return true
}

// restore ends the ejection of an endpoint. The caller holds mu, puts the endpoint and publishes.
func (c *Cluster) restore(e *Endpoint) {
	e.ejection.Ejected = false
	e.streak.Store(0)
	e.ejected.Store(false)
	c.ejected--
	if obs := c.engine.options.Observer; obs != nil {
		obs.Ejection(c.name, e.Address, "", false)
	}
}

// sweep is Envoy's outlier interval: it lets endpoints back whose time has
// passed, and ejects those whose rates stand out. It runs while an endpoint has
// a history of ejections, or had requests that are to be compared.
func (c *Cluster) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick = nil
	c.sweeping.Store(false)
	rule := c.current.Load().config.Outlier
	if c.closed || rule == nil {
		return
	}
	now, again, changed := time.Now(), false, false
	for _, e := range c.known {
		after, ended := rule.Sweep(e.ejection, now)
		e.ejection = after
		again = again || after.Ejected || after.Multiplier > 0
		if ended {
			changed = true
			c.restore(e)
			c.put(e)
		}
	}
	if comparesRates(rule) {
		ejected := c.compare(rule)
		again, changed = again || ejected, changed || ejected
	}
	if changed {
		c.republish()
	}
	if again {
		c.sweepLater()
	}
}

// compare ejects the endpoints whose rates since the last sweep stand out. The caller holds mu.
func (c *Cluster) compare(rule *resilience.Outlier) (ejected bool) {
	var endpoints []*Endpoint
	var all, local []resilience.Rate
	c.slots.all(func(e *Endpoint) {
		r := e.rates.Load()
		if r == nil {
			return
		}
		a, l := r.take()
		if e.ejection.Ejected {
			return
		}
		endpoints, all, local = append(endpoints, e), append(all, a), append(local, l)
	})
	eject := func(indices []int, enforcing uint32, why string) {
		for _, i := range indices {
			if c.engine.draw()%100 < uint64(enforcing) && c.eject(endpoints[i], why) {
				ejected = true
			}
		}
	}
	indices, _, _ := rule.SuccessRateEjections(all)
	eject(indices, rule.EnforcingSuccessRate, "success_rate")
	eject(rule.FailurePercentageEjections(all), rule.EnforcingFailurePercentage, "failure_percentage")
	if rule.SplitLocalOrigin {
		indices, _, _ := rule.SuccessRateEjections(local)
		eject(indices, rule.EnforcingLocalOriginSuccessRate, "success_rate_local_origin")
		eject(rule.FailurePercentageEjections(local), rule.EnforcingFailurePercentageLocalOrigin, "failure_percentage_local_origin")
	}
	return ejected
}

// reason names a detection as Envoy's outlier event log does.
func reason(d resilience.Detections) string {
	switch {
	case d&resilience.Detected5xx != 0:
		return "consecutive_5xx"
	case d&resilience.DetectedGatewayFailure != 0:
		return "consecutive_gateway_failure"
	default:
		return "consecutive_local_origin_failure"
	}
}
