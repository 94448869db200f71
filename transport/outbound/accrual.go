package outbound

import (
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/sinew-mesh/sinew/resilience"
)

// accrual is the failure-driven breaker of one endpoint. gobreaker counts and
// trips; how long the endpoint is out of use grows from one failed probe to the
// next, for which a breaker is built anew with the longer time. While it is shut
// the endpoint is in no picker, so that no request has to find out; where all
// endpoints are shut, requests fail at once.
type accrual struct {
	cluster  *Cluster
	endpoint *Endpoint
	policy   resilience.Accrual

	// Guarded by the cluster's mutex:
	shut bool // the endpoint is in no picker
	told bool // observers know that it is out of use: from the first penalty to a probe that succeeds

	mu      sync.Mutex // where both are held, the cluster's comes first
	two     *gobreaker.TwoStepCircuitBreaker[struct{}]
	state   accrualState
	failed  uint32      // penalties in a row
	settle  func(error) // of the probe under way
	timer   *time.Timer // ends a penalty or bounds a probe
	version uint64      // of state, so that a timer of an earlier one does nothing
}

type accrualState uint8

const (
	accrualOpen    accrualState = iota // the endpoint takes requests
	accrualPenalty                     // it takes none
	accrualWaiting                     // the next request is the probe
	accrualProbing                     // the probe is under way, and no other request
	accrualEnded                       // the endpoint or the policy is gone
)

// penaltySlack makes sure that gobreaker's own time has passed when ours has.
const penaltySlack = time.Millisecond

func newAccrual(c *Cluster, e *Endpoint, policy resilience.Accrual) *accrual {
	a := &accrual{cluster: c, endpoint: e, policy: policy}
	a.two = a.breaker(0)
	return a
}

// breaker returns a breaker that is closed, or with a penalty one that is open for so long.
func (a *accrual) breaker(penalty time.Duration) *gobreaker.TwoStepCircuitBreaker[struct{}] {
	settings := gobreaker.Settings{
		Name: a.endpoint.Address, MaxRequests: 1, Timeout: penalty,
		IsExcluded: func(err error) bool { return err == errNeither },
	}
	open := penalty > 0
	if !open && a.policy.Consecutive == 0 {
		// The window moves in steps of a tenth.
		window := a.policy.Window
		if window <= 0 {
			window = 30 * time.Second
		}
		settings.Interval, settings.BucketPeriod = window, max(window/10, 1)
	}
	settings.ReadyToTrip = func(n gobreaker.Counts) bool {
		if open {
			return true
		}
		return a.policy.Trips(n.ConsecutiveFailures, n.TotalSuccesses, n.TotalFailures)
	}
	two := gobreaker.NewTwoStepCircuitBreaker[struct{}](settings)
	if open {
		if done, err := two.Allow(); err == nil {
			done(errServer)
		}
	}
	return two
}

// admits reports whether the endpoint takes a request now. The first one after a penalty is the probe.
func (e *Endpoint) admits() bool {
	a := e.accrual.Load()
	if a == nil {
		return true
	}
	a.mu.Lock()
	switch a.state {
	case accrualOpen, accrualEnded:
		a.mu.Unlock()
		return true
	case accrualWaiting:
	default:
		a.mu.Unlock()
		return false
	}
	settle, err := a.two.Allow()
	if err != nil {
		a.mu.Unlock()
		return false
	}
	a.settle = settle
	version := a.enter(accrualProbing)
	// A probe that hangs would keep the endpoint out of use for ever.
	a.timer = time.AfterFunc(a.probeTimeout(), func() { a.probed(version, errProbe) })
	a.mu.Unlock()
	a.change()
	return true
}

func (a *accrual) probeTimeout() time.Duration {
	if a.policy.ProbeTimeout > 0 {
		return a.policy.ProbeTimeout
	}
	return 10 * time.Second
}

// enter changes the state. The caller holds mu.
func (a *accrual) enter(s accrualState) (version uint64) {
	if a.timer != nil {
		a.timer.Stop()
	}
	a.state = s
	a.version++
	return a.version
}

// report counts a result. While a probe is under way, any result decides, for
// what is in flight from before the penalty says as much about the endpoint.
func (a *accrual) report(result resilience.Result) {
	a.mu.Lock()
	switch a.state {
	case accrualOpen:
		if result == resilience.NoResult {
			break
		}
		settle, err := a.two.Allow()
		if err != nil {
			break
		}
		var failure error
		if result != resilience.Success {
			failure = errServer
		}
		settle(failure)
		if a.two.State() == gobreaker.StateOpen {
			a.penalise()
			a.mu.Unlock()
			a.change()
			return
		}
	case accrualProbing:
		version := a.version
		a.mu.Unlock()
		switch result {
		case resilience.NoResult:
			a.probed(version, errNeither)
		case resilience.Success:
			a.probed(version, nil)
		default:
			a.probed(version, errServer)
		}
		return
	}
	a.mu.Unlock()
}

// probed ends a probe: with success the endpoint is in use again, after a
// failure out of use for longer; where it says nothing, the next request is a probe.
func (a *accrual) probed(version uint64, err error) {
	a.mu.Lock()
	if a.version != version || a.state != accrualProbing {
		a.mu.Unlock()
		return
	}
	settle := a.settle
	a.settle = nil
	switch err {
	case nil:
		settle(nil)
		a.enter(accrualOpen)
		a.failed = 0
		a.two = a.breaker(0)
	case errNeither:
		settle(err) // the breaker stays half open, and allows another
		a.enter(accrualWaiting)
	default:
		settle(err)
		a.penalise()
	}
	a.mu.Unlock()
	a.change()
}

// penalise puts the endpoint out of use for the next penalty. The caller holds mu.
func (a *accrual) penalise() {
	penalty := a.policy.Penalty(a.failed, a.cluster.engine.draw())
	a.failed++
	a.two = a.breaker(penalty)
	version := a.enter(accrualPenalty)
	a.timer = time.AfterFunc(penalty+penaltySlack, func() {
		a.mu.Lock()
		over := a.version == version
		if over {
			a.enter(accrualWaiting)
		}
		a.mu.Unlock()
		if over {
			a.change()
		}
	})
}

// change brings the endpoint into the pickers, or takes it out of them. Nothing
// holds mu here: the cluster's mutex comes first where both are held.
func (a *accrual) change() {
	c, e := a.cluster, a.endpoint
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || e.accrual.Load() != a {
		return
	}
	// By the state as it is now: changes may reach this place in another order.
	a.mu.Lock()
	shut := a.state == accrualPenalty || a.state == accrualProbing
	out := a.state != accrualOpen
	a.mu.Unlock()
	a.tell(out)
	if shut != a.shut {
		a.shut = shut
		c.put(e)
		c.republish()
	}
}

// tell tells observers that the endpoint is out of use, or again in use. The caller holds the cluster's mutex.
func (a *accrual) tell(out bool) {
	if out == a.told {
		return
	}
	a.told = out
	if obs := a.cluster.engine.options.Observer; obs != nil && out {
		obs.Ejection(a.cluster.name, a.endpoint.Address, "failure_accrual", true)
	} else if obs != nil {
		obs.Ejection(a.cluster.name, a.endpoint.Address, "", false)
	}
}

// stop ends the accrual. The caller holds the cluster's mutex.
func (a *accrual) stop() {
	a.mu.Lock()
	a.enter(accrualEnded)
	a.mu.Unlock()
	a.tell(false)
}

// equipAccrual gives an endpoint the breaker that policy asks for. The caller holds mu.
func (c *Cluster) equipAccrual(s *clusterState, e *Endpoint) {
	a := e.accrual.Load()
	switch {
	case s.config.Accrual == nil && a == nil:
	case s.config.Accrual == nil:
		c.endAccrual(e)
	case a == nil || a.policy != *s.config.Accrual:
		c.endAccrual(e)
		e.accrual.Store(newAccrual(c, e, *s.config.Accrual))
	}
}

// endAccrual takes an endpoint's breaker away. The caller holds mu.
func (c *Cluster) endAccrual(e *Endpoint) {
	if a := e.accrual.Swap(nil); a != nil {
		a.stop()
	}
}
