package inbound

import (
	"errors"
	"time"

	"github.com/sinew-mesh/sinew/identity"
)

// sweepGrace is how long the requests in flight have on a connection that would
// not be accepted any more.
const sweepGrace = 10 * time.Second

// sweepSoon looks at the open connections after policy or certificates have
// changed: a long stream makes no further request at which its peer would be
// refused. Calls while it runs have it run once more.
func (e *Engine) sweepSoon() {
	if e.sweeps.Add(1) > 1 {
		return
	}
	go func() {
		for {
			n := e.sweeps.Load()
			e.sweep()
			if e.sweeps.CompareAndSwap(n, 0) {
				return
			}
		}
	}()
}

// sweep closes, after a grace, the connections that are refused now and then.
func (e *Engine) sweep() {
	refused := make(map[*Conn]bool)
	e.conns.Range(func(_, value any) bool {
		if c := value.(*Conn); c.refused() {
			refused[c] = true
		}
		return true
	})
	if len(refused) == 0 {
		return
	}
	time.AfterFunc(sweepGrace, func() {
		for c := range refused {
			if !c.gone.Load() && c.refused() {
				_ = c.close()
			}
		}
	})
}

// refused reports whether the connection would not be accepted under the policy
// and the bundles that are in force now. What can not be told is not refused:
// each request is decided on anyway.
func (c *Conn) refused() bool {
	v := c.engine.view.Load()
	l := v.listeners[v.listener(c.Local)]
	switch {
	case l == nil || l.err != nil:
		return false
	case !c.settled.Load():
		// Plaintext, or in its handshake, which has no longer than the grace.
		return l.plain == nil
	case l.tls == nil:
		return false // it counts as plaintext from here on
	}
	_, err := c.verified(l, time.Now())
	var verify *identity.VerifyError
	return errors.As(err, &verify)
}
