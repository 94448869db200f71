package resilience

import "fmt"

// RetryBudget bounds concurrent retries by a share of the requests in flight
// (envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget).
type RetryBudget struct {
	Percent        float64 // of active requests; default 20
	MinConcurrency uint32  // always allowed; default 3
}

// DefaultRetryBudget is Envoy's: 20 % of the active requests, and always 3.
var DefaultRetryBudget = RetryBudget{Percent: 20, MinConcurrency: 3}

// Allows reports whether one more retry may begin: fewer are active than the
// larger of MinConcurrency and Percent of the active requests. activeRequests
// counts those that wait for a connection too, and a retry as its own request.
func (b *RetryBudget) Allows(activeRequests, activeRetries int64) bool {
	limit := max(int64(b.Percent/100*float64(activeRequests)), int64(b.MinConcurrency))
	return activeRetries < limit
}

// Validate reports the first field with a value that has no meaning.
func (b *RetryBudget) Validate() error {
	if !(b.Percent >= 0 && b.Percent <= 100) {
		return fmt.Errorf("percent: %v is not between 0 and 100", b.Percent)
	}
	return nil
}
