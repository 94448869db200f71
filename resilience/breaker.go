package resilience

import (
	"fmt"
	"time"
)

// Breaker configures a failure-driven circuit breaker: after so many failures
// in a row it refuses everything for a while, then lets a few requests through
// to see whether the destination has recovered. Unlike Outlier it guards a
// destination as a whole. It is a configuration; the engine runs it, and
// counts what ResultOf calls a failure.
type Breaker struct {
	ConsecutiveFailures uint32        // failures in a row that open it
	OpenFor             time.Duration // how long it refuses before it probes
	HalfOpenRequests    uint32        // requests let through at once while it probes
	ProbeTimeout        time.Duration // a probe without an answer for so long counts as failed
}

// DefaultBreaker opens after 10 failures in a row, for 5 s, and probes with one request of at most 10 s.
var DefaultBreaker = Breaker{ConsecutiveFailures: 10, OpenFor: 5 * time.Second, HalfOpenRequests: 1, ProbeTimeout: 10 * time.Second}

// Validate reports the first field with a value that has no meaning. Each must
// be set: a probe without a time limit could keep the breaker half-open for ever.
func (b *Breaker) Validate() error {
	switch {
	case b.ConsecutiveFailures == 0:
		return fmt.Errorf("consecutive_failures: must be at least 1")
	case b.OpenFor <= 0:
		return fmt.Errorf("open_for: %v is not positive", b.OpenFor)
	case b.HalfOpenRequests == 0:
		return fmt.Errorf("half_open_requests: must be at least 1")
	case b.ProbeTimeout <= 0:
		return fmt.Errorf("probe_timeout: %v is not positive", b.ProbeTimeout)
	}
	return nil
}
