package outbound

import (
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

// counts are a cluster's requests or retries in flight, by priority.
type counts [resilience.Priorities]atomic.Int64

// Load returns the sum over the priorities.
func (c *counts) Load() int64 {
	sum := int64(0)
	for i := range c {
		sum += c[i].Load()
	}
	return sum
}

// retries are a cluster's retries in flight, by priority, and what is missing in
// the buckets of the budgets that have one.
type retries struct {
	counts
	missing [resilience.Priorities]atomic.Int64
}

// deposit pays for a request into the budget's bucket.
func (r *retries) deposit(b *resilience.RetryBudget, p resilience.Priority) {
	for missing := r.missing[p].Load(); missing > 0; missing = r.missing[p].Load() {
		if r.missing[p].CompareAndSwap(missing, b.Deposit(missing)) {
			return
		}
	}
}

// withdraw takes a retry out of the budget's bucket.
func (r *retries) withdraw(b *resilience.RetryBudget, p resilience.Priority) bool {
	for {
		missing := r.missing[p].Load()
		after, ok := b.Withdraw(missing)
		if !ok || r.missing[p].CompareAndSwap(missing, after) {
			return ok
		}
	}
}

// admit takes the call's place among the cluster's requests.
func (c *Call) admit() error {
	cluster := c.leg.cluster
	s := cluster.current.Load()
	if a := c.host.adaptive; a != nil && !c.route.snap.NoConcurrency && (c.rare == nil || c.rare.shadow == nil) {
		if !a.Enter() {
			return &LimitError{Place: c.Place(), Limit: "adaptive_concurrency", Max: a.Limit()}
		}
		m := c.more()
		m.entered, m.enteredAt = a, time.Now()
	}
	for i := range s.config.Endpoints.Drops {
		if drop := &s.config.Endpoints.Drops[i]; c.engine.draw()%1_000_000 < uint64(drop.PerMillion) {
			return &LimitError{Place: c.Place(), Limit: "drop_overload", Max: drop.PerMillion}
		}
	}
	limits, budget := thresholds(s, c.priority)
	// Counted first and given back if refused, so that calls side by side can not exceed a limit together.
	if others := cluster.requests[c.priority].Add(1) - 1; !limits.AllowsRequest(others) {
		cluster.requests[c.priority].Add(-1)
		return &LimitError{Place: c.Place(), Limit: "max_requests", Max: limits.MaxRequests}
	}
	c.admitted = true
	if budget != nil && budget.Burst > 0 {
		cluster.retries.deposit(budget, c.priority)
	}
	if s.breaker != nil {
		settled, err := s.breaker.allow()
		if err != nil {
			return &BreakerOpenError{Place: c.Place(), Err: err}
		}
		c.settled = settled
	}
	return nil
}

// leaveAdaptive frees the place among the host's requests. Only a request that was
// answered says something of the latency.
func (c *Call) leaveAdaptive(o *resilience.Outcome) {
	if a := c.rare.entered; a != nil {
		c.rare.entered = nil
		a.Leave(c.rare.enteredAt, time.Now(), o.Failure == resilience.NoFailure && o.Err == nil)
	}
}

// thresholds returns the limits and the retry budget of a priority.
func thresholds(s *clusterState, p resilience.Priority) (*resilience.Limits, *resilience.RetryBudget) {
	if p == resilience.HighPriority {
		return &s.config.HighLimits, s.config.HighRetryBudget
	}
	return &s.config.Limits, s.config.RetryBudget
}

// admitRetry takes a place among the cluster's retries. refused says why there is none.
func (c *Call) admitRetry() (refused string) {
	cluster := c.leg.cluster
	limits, budget := thresholds(cluster.current.Load(), c.priority)
	others := cluster.retries.counts[c.priority].Add(1) - 1
	switch {
	case budget != nil && budget.Burst > 0:
		if cluster.retries.withdraw(budget, c.priority) {
			return ""
		}
		refused = "budget"
	case budget != nil && !budget.Allows(cluster.requests[c.priority].Load(), others):
		refused = "budget"
	case budget == nil && !limits.AllowsRetry(others):
		refused = "max_retries"
	default:
		return ""
	}
	cluster.retries.counts[c.priority].Add(-1)
	return refused
}
