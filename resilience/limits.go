package resilience

import "math"

// NoLimit is the threshold that never refuses.
const NoLimit uint32 = math.MaxUint32

// Limits are circuit breaker thresholds (envoy.config.cluster.v3.CircuitBreakers, DEFAULT priority).
// Each is a maximum of things at one time; math.MaxUint32 means no limit.
type Limits struct {
	MaxConnections     uint32 // default 1024
	MaxPendingRequests uint32 // default 1024
	MaxRequests        uint32 // default 1024
	MaxRetries         uint32 // default 3
}

// DefaultLimits are Envoy's.
var DefaultLimits = Limits{MaxConnections: 1024, MaxPendingRequests: 1024, MaxRequests: 1024, MaxRetries: 3}

// AllowsPending reports whether one more request may wait for a connection while so many wait.
func (l *Limits) AllowsPending(active int64) bool { return below(active, l.MaxPendingRequests) }

// AllowsRequest reports whether one more request may begin while so many are active.
func (l *Limits) AllowsRequest(active int64) bool { return below(active, l.MaxRequests) }

// AllowsRetry reports whether one more retry may begin while so many are active.
// It does not apply where there is a RetryBudget.
func (l *Limits) AllowsRetry(active int64) bool { return below(active, l.MaxRetries) }

func below(active int64, limit uint32) bool {
	return limit == NoLimit || active < int64(limit)
}
