package outbound

import (
	"errors"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// Try is one attempt of a call, or the repetitions of one: the adapter owns it
// and calls its methods from one goroutine at a time. Several tries of a call
// may run side by side. The zero value is ready for Call.Begin.
type Try struct {
	// Telemetry is the observer's own, for the length of the attempt.
	Telemetry any

	call     *Call
	sent     *routing.Request // that of Outgoing, where it is another than the call's and Next asks for it
	n        int32
	granted  bool // Next or Hedge has given the place of the attempt that Begin begins
	retrying bool // holds a place among the cluster's retries
}

// Call returns the call that the try belongs to.
func (t *Try) Call() *Call { return t.call }

// N returns the number of the attempt within the call, from 1.
func (t *Try) N() int { return int(t.n) }

// Begin begins an attempt. The call's first takes a place among the cluster's
// requests and may be refused: *LimitError, *BreakerOpenError. Later ones have
// the place that Next or Hedge has given.
func (c *Call) Begin(t *Try) error {
	if t.granted {
		t.granted, t.Telemetry = false, nil
	} else {
		*t = Try{}
	}
	t.call = c
	if c.finished.Load() {
		return errFinished
	}
	if t.n = c.attempts.Add(1); t.n == 1 {
		return c.admit()
	}
	return nil
}

// errFinished ends an attempt that would begin beside others when one of them has ended the call.
var errFinished = errors.New("mesh: the call has ended")

// Timeout returns the time limit of the attempt until the response's headers
// have come, or zero.
func (t *Try) Timeout() time.Duration { return t.call.perTry }

// IdleTimeout returns how long nothing may move on the attempt; zero means without limit.
func (t *Try) IdleTimeout() time.Duration {
	if policy := t.call.retry; policy != nil {
		return policy.PerTryIdleTimeout
	}
	return 0
}

// Pick takes a lease on an endpoint for the attempt that has begun. skip tells
// of endpoints that the adapter can not use at present; nil means none. The
// error is *NoHealthyEndpointError.
func (t *Try) Pick(l *Lease, skip func(*Endpoint) bool) error {
	c := t.call
	q := pickQuery{Skip: skip, Draw: c.engine.draw()}
	policy := c.retry
	avoids := policy != nil && (policy.AvoidPrevious || policy.OmitMetadata != nil || policy.PreviousPriorities > 0)
	if avoids && t.n > 1 {
		c.earlier(policy, t.N(), &q)
	}
	q.Hash, q.HasHash, q.Subset = c.hash, c.hashed, c.leg.subset
	endpoint, state, err := c.leg.cluster.pick(&q)
	if err != nil {
		var none *NoHealthyEndpointError
		if errors.As(err, &none) {
			none.Place = c.Place()
		}
		return err
	}
	if avoids {
		c.mu.Lock()
		if at := c.triedAt(t.N()); at != nil {
			*at = tried{endpoint, q.Priority}
		}
		c.mu.Unlock()
	}
	security := state.tlsOf(endpoint)
	*l = Lease{endpoint: endpoint, state: state, security: security, began: q.Now, channel: channelOf(security, c.Request.Scheme)}
	return nil
}

// triedAt returns the place of where the n-th attempt went, or nil where there is none. The caller holds mu.
func (c *Call) triedAt(n int) *tried {
	switch {
	case n == 1:
		return &c.first
	case n < 1 || n > maxTried:
		return nil
	}
	return &c.repeats().tried[n-2]
}

// repeats returns what is kept of attempts after the first, and makes it. The caller holds mu.
func (c *Call) repeats() *later {
	if c.later == nil {
		c.later = new(later)
	}
	return c.later
}

// earlier says what of the call's earlier attempts a repetition leaves out.
func (c *Call) earlier(policy *resilience.RetryPolicy, n int, q *pickQuery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.SelectAttempts = max(1, int(policy.SelectAttempts))
	q.Omit = policy.OmitMetadata
	begun := min(n-1, maxTried)
	if policy.AvoidPrevious {
		q.Avoid = make([]*Endpoint, begun)
		for i := range q.Avoid {
			q.Avoid[i] = c.triedAt(i + 1).endpoint
		}
	}
	// With previous_priorities the set is made anew after so many attempts each.
	if every := int(policy.PreviousPriorities); every > 0 {
		for i := range begun / every * every {
			if at := c.triedAt(i + 1); at.endpoint != nil && at.priority < 64 {
				q.Excluded |= 1 << at.priority
			}
		}
	}
}

// Next decides after the attempt whether there shall be another, and after what
// pause; the attempt that Begin begins next with this Try is it. The adapter
// asks only while nothing of the response has reached the caller and the
// request can be sent again.
func (t *Try) Next(o *resilience.Outcome) (wait time.Duration, again bool) {
	c := t.call
	policy := c.retry
	if policy == nil || !policy.Retriable(o) {
		return 0, false
	}
	sent := &c.Request
	if t.sent != nil {
		sent = t.sent // Envoy looks at the request as it went out
	}
	if !policy.AllowsRequest(sent) {
		return 0, false
	}
	pushback, asked, stop := resilience.Pushback(o)
	if stop {
		return 0, false
	}
	t.leaveRetry()
	if !t.place(int(policy.NumRetries)) {
		return 0, false
	}
	c.mu.Lock()
	retry := c.repeats().backoffs + 1
	c.mu.Unlock()
	if asked {
		return pushback, true
	}
	wait, asked = policy.Delay(o, retry, time.Now(), c.engine.draw())
	if !asked {
		c.mu.Lock()
		c.repeats().backoffs++
		c.mu.Unlock()
	}
	return wait, true
}

// place asks for the place of one more attempt where so many may follow the first.
func (t *Try) place(limit int) bool {
	c := t.call
	refused := ""
	c.mu.Lock()
	if given := &c.repeats().granted; *given >= limit {
		refused = "limit"
	} else if refused = c.admitRetry(); refused == "" {
		*given++
		c.held.Add(1)
	}
	c.mu.Unlock()
	if c.finished.Load() {
		c.leaveRetries() // a try beside this one has ended the call meanwhile
		return false
	}
	if c.engine.options.Observer != nil {
		c.engine.options.Observer.Retry(c, refused)
	}
	t.retrying = refused == ""
	t.granted = t.retrying
	return t.retrying
}

// leaveRetry frees the place among the retries that an earlier repetition took.
func (t *Try) leaveRetry() {
	if !t.retrying {
		return
	}
	t.retrying = false
	c := t.call
	for held := c.held.Load(); held > 0; held = c.held.Load() {
		if c.held.CompareAndSwap(held, held-1) {
			c.leg.cluster.retries.counts[c.priority].Add(-1)
			return
		}
	}
}

// End frees the try's place among the retries, where another try's response is
// the call's or the place was not used. Finish does so for all that are left.
func (t *Try) End() { t.leaveRetry() }

// Commit makes the response to this try the call's: the places among the
// retries are free, those of the tries beside it as well.
func (t *Try) Commit() { t.call.leaveRetries() }

func (c *Call) leaveRetries() {
	if c.held.Load() == 0 {
		return
	}
	c.leg.cluster.retries.counts[c.priority].Add(-int64(c.held.Swap(0)))
}

// Hedges returns how many attempts begin at once, and whether the end of an
// attempt's time limit begins another beside it. 1 and false unless the route
// hedges and the request is safe to send twice: its method is GET, HEAD, OPTIONS
// or TRACE, or it is a gRPC call whose route names exactly that one method.
func (c *Call) Hedges() (initial int, onTimeout bool) {
	h := c.route.snap.Hedge
	if h == nil && !c.told || c.rare != nil && c.rare.shadow != nil || !c.safe() {
		return 1, false
	}
	initial = 1
	if h != nil {
		initial = max(1, int(h.Initial))
		if h.Additional.PerMillion > 0 && h.Additional.Matches(c.engine.draw()) {
			initial++
		}
	}
	if initial > 1 {
		c.mu.Lock()
		c.repeats().hedges = initial - 1
		c.mu.Unlock()
	}
	return initial, c.hedgesOnTimeout()
}

// hedgesOnTimeout reports what the route's policy says, or the request's
// x-envoy-hedge-on-per-try-timeout in its place.
func (c *Call) hedgesOnTimeout() bool {
	if c.retry != nil && c.told {
		if values := c.Request.Header[hedgeOnTimeout.key(c.Request.Form)]; len(values) > 0 {
			switch values[0] {
			case "true":
				return true
			case "false":
				return false
			}
		}
	}
	h := c.route.snap.Hedge
	return h != nil && h.OnPerTryTimeout
}

func (c *Call) safe() bool {
	switch c.Request.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return c.route.snap.Match.Path.Kind == routing.PathExact && routing.IsGRPC(&c.Request)
}

// Hedge asks for the place of one more attempt beside the others, which begins
// with t. It is charged to the retry budget as a retry is, and counts among the
// policy's retries.
func (c *Call) Hedge(t *Try) bool {
	*t = Try{call: c}
	c.mu.Lock()
	limit := c.repeats().hedges
	c.mu.Unlock()
	if policy := c.retry; policy != nil {
		limit = max(limit, int(policy.NumRetries))
	}
	return t.place(limit)
}
