package outbound

import (
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/sinew-mesh/sinew/resilience"
)

// breaker is a cluster's failure-driven breaker.
type breaker struct {
	policy resilience.Breaker
	two    *gobreaker.TwoStepCircuitBreaker[struct{}]
}

var (
	errServer  = errors.New("server error")
	errProbe   = errors.New("probe took too long")
	errNeither = errors.New("neither success nor failure")
)

func newBreaker(c *Cluster, policy resilience.Breaker) *breaker {
	return &breaker{policy: policy, two: gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        c.name,
		MaxRequests: policy.HalfOpenRequests,
		Timeout:     policy.OpenFor,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= policy.ConsecutiveFailures },
		IsExcluded:  func(err error) bool { return errors.Is(err, errNeither) },
		// The callback runs under the breaker's lock: it must not ask the breaker anything.
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if obs := c.engine.options.Observer; obs != nil {
				obs.Breaker(c.name, to.String())
			}
		},
	})}
}

// allow asks for one request. The function that it returns takes the outcome and must be called once.
func (b *breaker) allow() (func(error), error) {
	done, err := b.two.Allow()
	if err != nil {
		return nil, err
	}
	if b.policy.ProbeTimeout <= 0 || b.two.State() != gobreaker.StateHalfOpen {
		return done, nil
	}
	// A probe that hangs would hold the breaker half open for ever.
	var once sync.Once
	timer := time.AfterFunc(b.policy.ProbeTimeout, func() { once.Do(func() { done(errProbe) }) })
	return func(err error) {
		timer.Stop()
		once.Do(func() { done(err) })
	}, nil
}

// verdict says what an outcome means to a breaker.
func verdict(o *resilience.Outcome) error {
	switch resilience.ResultOf(o) {
	case resilience.NoResult:
		return errNeither
	case resilience.Success:
		return nil
	default:
		return errServer
	}
}
