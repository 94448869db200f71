package resilience

import (
	"fmt"
	"math"
)

// RetryBudget bounds retries by a share of the requests. Without Burst it is
// Envoy's (envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget),
// which bounds the retries at one time.
type RetryBudget struct {
	Percent        float64 // of active requests; default 20
	MinConcurrency uint32  // always allowed; default 3
	// Burst makes the budget one of rates instead: each request pays Percent
	// hundredths of a retry into a bucket that holds so many, and each retry takes
	// one out. The bucket is full at the beginning. There is no floor, for the
	// floors of many clients add up to a load of their own; MinConcurrency does not
	// count. 0 means Envoy's budget. It is at most 1,000.
	Burst float64
}

// DefaultRetryBudget is Envoy's: 20 % of the active requests, and always 3.
var DefaultRetryBudget = RetryBudget{Percent: 20, MinConcurrency: 3}

// RatioRetryBudget allows one retry for five requests, and five at once where
// there was none for a while. It bounds what retries add to the load of a
// destination that is slow, whatever the number of its clients.
var RatioRetryBudget = RetryBudget{Percent: 20, Burst: 5}

// Allows reports whether one more retry may begin: fewer are active than the
// larger of MinConcurrency and Percent of the active requests. activeRequests
// counts those that wait for a connection too, and a retry as its own request.
// It is for a budget without Burst.
func (b *RetryBudget) Allows(activeRequests, activeRetries int64) bool {
	limit := max(int64(b.Percent/100*float64(activeRequests)), int64(b.MinConcurrency))
	return activeRetries < limit
}

// tokenParts is how many parts a retry has in the bucket of a budget with Burst.
const tokenParts = 1_000_000

// Deposit returns what is missing in the bucket after a request. The bucket is
// kept as what is missing from full, so that the zero value is a full one.
func (b *RetryBudget) Deposit(missing int64) int64 {
	return max(0, missing-int64(math.Round(b.Percent/100*tokenParts)))
}

// Withdraw returns what is missing in the bucket after a retry, and whether it may begin.
func (b *RetryBudget) Withdraw(missing int64) (after int64, ok bool) {
	if missing+tokenParts > int64(b.Burst*tokenParts) {
		return missing, false
	}
	return missing + tokenParts, true
}

// Validate reports the first field with a value that has no meaning.
func (b *RetryBudget) Validate() error {
	switch {
	case !(b.Percent >= 0 && b.Percent <= 100):
		return fmt.Errorf("percent: %v is not between 0 and 100", b.Percent)
	case !(b.Burst >= 0 && b.Burst <= 1000):
		return fmt.Errorf("burst: %v is not between 0 and 1000", b.Burst)
	}
	return nil
}
