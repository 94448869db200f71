package resilience

import (
	"fmt"
	"time"
)

// Accrual is the failure-driven breaker of each endpoint, as Linkerd's
// balancer.linkerd.io/failure-accrual annotations configure it
// (https://linkerd.io/2/reference/circuit-breaking/): after failures the endpoint
// takes no requests for a while, then one probe decides.
type Accrual struct {
	// Consecutive is the number of failures in a row; default 7. 0 where SuccessRate decides.
	Consecutive uint32
	// SuccessRate opens where less than this share (0 to 1) of the requests of Window succeeded.
	SuccessRate float64
	Window      time.Duration // default 30 s
	MinRequests uint32        // default 10: fewer in Window decide nothing
	// MinPenalty is how long the endpoint is out of use first, doubling up to MaxPenalty while probes fail.
	MinPenalty time.Duration // default 1 s
	MaxPenalty time.Duration // default 1 min
	Jitter     float64       // share of the penalty that is added at most; default 0.5
	// ProbeTimeout counts a probe without an answer as failed. Default 10 s.
	ProbeTimeout time.Duration
}

// DefaultAccrual opens after seven failures in a row (Linkerd).
var DefaultAccrual = Accrual{
	Consecutive: 7, MinPenalty: time.Second, MaxPenalty: time.Minute, Jitter: 0.5,
	Window: 30 * time.Second, MinRequests: 10, ProbeTimeout: 10 * time.Second,
}

// Trips reports whether an endpoint is taken out of use: by the failures in a
// row, or, where SuccessRate decides, by the results of the last Window.
func (a *Accrual) Trips(consecutive, successes, failures uint32) bool {
	if a.Consecutive > 0 {
		return consecutive >= a.Consecutive
	}
	total := uint64(successes) + uint64(failures)
	return total >= uint64(max(a.MinRequests, 1)) && float64(successes) < a.SuccessRate*float64(total)
}

// Penalty returns how long the endpoint is out of use before the next probe,
// after so many probes that failed: MinPenalty, doubled for each of them, at most
// MaxPenalty, and up to the share Jitter more. draw is 64 random bits.
func (a *Accrual) Penalty(failed uint32, draw uint64) time.Duration {
	penalty := a.MinPenalty
	for ; failed > 0 && penalty < a.MaxPenalty; failed-- {
		if penalty > a.MaxPenalty/2 {
			penalty = a.MaxPenalty
		} else {
			penalty *= 2
		}
	}
	if jitter := uint64(a.Jitter * float64(penalty)); jitter > 0 {
		penalty = plus(penalty, time.Duration(draw%(jitter+1)))
	}
	return penalty
}

// Validate reports the first field with a value that has no meaning.
func (a *Accrual) Validate() error {
	switch {
	case a.Consecutive == 0 && !(a.SuccessRate > 0 && a.SuccessRate <= 1):
		return fmt.Errorf("success_rate: %v is not above 0 and at most 1", a.SuccessRate)
	case a.Consecutive > 0 && a.SuccessRate != 0:
		return fmt.Errorf("success_rate: is set beside max_failures")
	case a.Consecutive == 0 && a.Window <= 0:
		return fmt.Errorf("window: %v is not positive", a.Window)
	case a.MinPenalty <= 0:
		return fmt.Errorf("min_penalty: %v is not positive", a.MinPenalty)
	case a.MaxPenalty < a.MinPenalty:
		return fmt.Errorf("max_penalty: %v is less than min_penalty %v", a.MaxPenalty, a.MinPenalty)
	case a.MaxPenalty > maxPenalty:
		return fmt.Errorf("max_penalty: %v is more than %v", a.MaxPenalty, maxPenalty)
	case !(a.Jitter >= 0 && a.Jitter <= 100):
		return fmt.Errorf("jitter: %v is not from 0 to 100", a.Jitter)
	case a.ProbeTimeout <= 0:
		return fmt.Errorf("probe_timeout: %v is not positive", a.ProbeTimeout)
	}
	return nil
}

// maxPenalty bounds what can be configured, so that penalties with jitter do not overflow.
const maxPenalty = 24 * time.Hour
