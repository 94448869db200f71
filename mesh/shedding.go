package mesh

import (
	"fmt"
	"time"

	"github.com/sinew-mesh/sinew/transport/inbound"
)

// LoadShedding bounds how many handlers run at one time in this process, over
// HTTP and gRPC together. Requests beyond that wait in a queue and are refused as
// soon as it is clear that they would be answered too late, because work for a
// caller that has given up is lost for all others.
//
// The most urgent request is served first: urgency is what the header Priority
// says (RFC 9218: "u=0", the most urgent, to "u=7"; without it 3), over gRPC the
// metadata "priority". It is the caller's own word. A request may wait only while
// fewer than its share of the queue wait before it: all places for urgency 0,
// 5 of 8 for 3, 1 of 8 for 7; and where the queue is full the last of the least
// urgent gives its place to who is more urgent. A request with a deadline is refused at once
// where the wait and the run of its handler, as they are on average, would take longer.
//
// Who is refused gets 503, over gRPC UNAVAILABLE, with x-envoy-overloaded: true,
// which tells Envoy and the mesh's own clients not to try again; 504 or
// DEADLINE_EXCEEDED where its time has passed.
//
// A request counts until its handler returns: a stream for as long as it is open.
type LoadShedding struct {
	// MaxConcurrent is how many handlers may run at one time. Required.
	MaxConcurrent int
	// MaxQueue is how many requests may wait. Default: 40; with a negative number none may.
	MaxQueue int
	// MaxWait is how long a request may wait, whatever its deadline. Default: 1 s.
	MaxWait time.Duration
}

// WithLoadShedding sheds load in front of the handlers of this process, in
// Handler, Serve and ServerOptions, with a control plane or without. It comes
// after policy: who may not call takes no place. Default: no bound.
func WithLoadShedding(s LoadShedding) Option {
	return func(c *config) error {
		switch {
		case s.MaxConcurrent <= 0:
			return fmt.Errorf("WithLoadShedding: MaxConcurrent: %d is not positive", s.MaxConcurrent)
		case s.MaxWait < 0:
			return fmt.Errorf("WithLoadShedding: MaxWait: %s is negative", s.MaxWait)
		}
		c.shedding = (*inbound.Shedding)(&s)
		return nil
	}
}
