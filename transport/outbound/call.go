package outbound

import (
	"context"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// Call is one outbound request, from the decision where it goes to the end of
// its response. The adapter owns it, fills in Request and calls its methods
// from one goroutine at a time.
type Call struct {
	Request routing.Request

	// Telemetry is the observer's own, for the length of the call.
	Telemetry any

	engine   *Engine
	host     *host
	route    *route
	leg      *leg
	began    time.Time
	ready    time.Time // began, or when the policy had come
	attempt  int       // attempts begun
	backoffs int       // pauses that the policy chose, rather than a response
	state    callState

	// tried are the endpoints of earlier attempts; more than these are not avoided.
	tried   [4]*Endpoint
	settled func(error) // takes the breaker's outcome; nil without a breaker
}

// callState says which of the cluster's counts the call holds.
type callState struct {
	admitted, retrying, finished bool
}

// Lease is a hold on an endpoint for one attempt.
type Lease struct {
	endpoint *Endpoint
	state    *clusterState
	cluster  *Cluster
	security *snapshot.ClientTLS
	channel  channel
}

// Decide finds the route for c.Request at the host that authority and scheme
// name, as a URL gives them, and chooses among the route's clusters. It waits
// for policy that has not come yet. Errors are *NotReadyError and *NoRouteError.
func (e *Engine) Decide(ctx context.Context, c *Call, authority, scheme string) error {
	now := time.Now()
	c.engine, c.began, c.ready = e, now, now
	h, waited, err := e.hostFor(ctx, authority, scheme)
	if waited {
		c.ready = time.Now()
	}
	if err != nil {
		return err
	}
	c.host = h
	i := h.snap.VirtualHost.Match(&c.Request, e.draw())
	if i < 0 {
		return &NoRouteError{Place: c.Place(), Reason: "no route matches " + c.Request.Method + " " + c.Request.Path}
	}
	c.route = &h.routes[i]
	leg := 0
	if len(c.route.legs) > 1 {
		leg = c.route.snap.Clusters.Choose(e.draw())
	}
	if leg < 0 || leg >= len(c.route.legs) || c.route.legs[leg].cluster == nil {
		return &NoRouteError{Place: c.Place(), Reason: "the route names no cluster that is there"}
	}
	c.leg = &c.route.legs[leg]
	return nil
}

// Timeout returns the limit on the whole call, or zero.
func (c *Call) Timeout() time.Duration {
	d := c.route.snap.Timeout
	limit := c.route.snap.MaxStreamDuration
	if limit == 0 {
		limit = c.host.snap.MaxStreamDuration
	}
	if limit != 0 && (d == 0 || limit < d) {
		return limit
	}
	return d
}

// Retry returns the route's retry policy, or nil.
func (c *Call) Retry() *resilience.RetryPolicy { return c.route.snap.Retry }

// Passes reports that the host is outside the mesh: the request goes where its URL says.
func (c *Call) Passes() bool { return c.host.pass }

// Attempts returns the number of attempts begun.
func (c *Call) Attempts() int { return c.attempt }

// Ready returns when the call's policy was there: when it began, or when the
// wait for policy had ended. Time limits and the first attempt count from it.
func (c *Call) Ready() time.Time { return c.ready }

// Leg returns what Observer.Leg prepared for this call's route and cluster; nil before Decide has chosen.
func (c *Call) Leg() any {
	if c.leg == nil {
		return nil
	}
	return c.leg.telemetry
}

// Cluster returns the configuration of the cluster that Decide chose.
func (c *Call) Cluster() *snapshot.Cluster { return c.leg.cluster.current.Load().config }

// Place names what is known of where the call goes, for errors.
func (c *Call) Place() Place {
	var p Place
	if c.host != nil {
		p.Host = c.host.snap.Name
	}
	if c.route != nil {
		p.Route = c.route.snap.Name
	}
	if c.leg != nil {
		p.Cluster = c.leg.cluster.name
	}
	return p
}

// Begin admits an attempt. The first one takes a place among the cluster's
// requests and may be refused: *LimitError, *BreakerOpenError.
func (c *Call) Begin() error {
	c.attempt++
	if c.attempt > 1 {
		return nil // Next has admitted it
	}
	cluster := c.leg.cluster
	s := cluster.current.Load()
	for i := range s.config.Endpoints.Drops {
		if drop := &s.config.Endpoints.Drops[i]; c.engine.draw()%1_000_000 < uint64(drop.PerMillion) {
			return &LimitError{Place: c.Place(), Limit: "drop_overload", Max: drop.PerMillion}
		}
	}
	if others := cluster.requests.Add(1) - 1; !s.config.Limits.AllowsRequest(others) {
		cluster.requests.Add(-1)
		return &LimitError{Place: c.Place(), Limit: "max_requests", Max: s.config.Limits.MaxRequests}
	}
	c.state.admitted = true
	if s.breaker != nil {
		settled, err := s.breaker.allow()
		if err != nil {
			return &BreakerOpenError{Place: c.Place(), Err: err}
		}
		c.settled = settled
	}
	return nil
}

// Pick takes a lease on an endpoint for the attempt that has begun. The error is *NoHealthyEndpointError.
func (c *Call) Pick(l *Lease) error {
	cluster := c.leg.cluster
	s := cluster.current.Load()
	choices := 1
	if r := c.route.snap.Retry; r != nil && r.AvoidPrevious && c.attempt > 1 {
		// Envoy chooses again so many times before it takes an endpoint that was tried already.
		choices = max(1, int(r.SelectAttempts))
	}
	var endpoint *Endpoint
	var security *snapshot.ClientTLS
	for range choices {
		i := s.picker.Pick(cluster.picks.Add(1), c.engine.draw(), s)
		if i < 0 {
			return &NoHealthyEndpointError{Place: c.Place(), Endpoints: len(s.endpoints), Err: s.config.Err}
		}
		endpoint, security = s.endpoints[i], s.tls(i)
		if !c.hasTried(endpoint) {
			break
		}
	}
	if c.attempt <= len(c.tried) {
		c.tried[c.attempt-1] = endpoint
	}
	endpoint.active.Add(1)
	endpoint.requests.Add(1)
	*l = Lease{endpoint: endpoint, state: s, cluster: cluster, security: security, channel: channelOf(security, c.Request.Scheme)}
	return nil
}

func (c *Call) hasTried(e *Endpoint) bool {
	for _, tried := range c.tried[:min(c.attempt-1, len(c.tried))] {
		if tried == e {
			return true
		}
	}
	return false
}

// Next decides after an attempt whether there shall be another, and after what
// pause. The adapter asks only while nothing of the response has reached the
// caller and the request can be sent again.
func (c *Call) Next(o *resilience.Outcome) (wait time.Duration, again bool) {
	policy := c.route.snap.Retry
	if policy == nil || !policy.Retriable(o) || !policy.AllowsRequest(&c.Request) {
		return 0, false
	}
	cluster := c.leg.cluster
	config := cluster.current.Load().config
	c.leaveRetry()
	// Counted first and given back if refused, so that calls side by side can not exceed a limit together.
	others := cluster.retries.Add(1) - 1
	refused := ""
	switch {
	case c.attempt > int(policy.NumRetries):
		refused = "limit"
	case config.RetryBudget != nil && !config.RetryBudget.Allows(cluster.requests.Load(), others):
		refused = "budget"
	case config.RetryBudget == nil && !config.Limits.AllowsRetry(others):
		refused = "max_retries"
	}
	if c.engine.options.Observer != nil {
		c.engine.options.Observer.Retry(c, refused)
	}
	c.state.retrying = true
	if refused != "" {
		c.leaveRetry()
		return 0, false
	}
	wait, asked := policy.Delay(o, c.backoffs+1, time.Now(), c.engine.draw())
	if !asked {
		c.backoffs++
	}
	return wait, true
}

func (c *Call) leaveRetry() {
	if c.state.retrying {
		c.state.retrying = false
		c.leg.cluster.retries.Add(-1)
	}
}

// Committed frees the call's place among the retries: the response to the present attempt is the call's.
func (c *Call) Committed() { c.leaveRetry() }

// Finish ends the call with its last outcome. Only the first of several calls counts.
func (c *Call) Finish(o *resilience.Outcome) {
	if c.state.finished {
		return
	}
	c.state.finished = true
	if c.leg != nil {
		c.leaveRetry()
	}
	if c.state.admitted {
		c.leg.cluster.requests.Add(-1)
	}
	if c.settled != nil {
		c.settled(verdict(o))
	}
	if c.engine.options.Observer != nil {
		c.engine.options.Observer.CallEnd(c, o, time.Since(c.began))
	}
}

// Endpoint returns the endpoint that the lease holds.
func (l *Lease) Endpoint() *Endpoint { return l.endpoint }

// Wire returns the adapter's state for the endpoint's cluster.
func (l *Lease) Wire() Wire { return l.state.wire }

// Security returns how the connection to the endpoint is secured; nil means
// plaintext. It is a value of the configuration that Wire was made from.
func (l *Lease) Security() *snapshot.ClientTLS { return l.security }

// Report counts the attempt's outcome for the endpoint.
func (l *Lease) Report(o *resilience.Outcome) {
	l.cluster.usage.count(l.channel, o)
	l.cluster.report(l.state, l.endpoint, o)
}

// Release frees the endpoint of this attempt. It may be called again.
func (l *Lease) Release() {
	if l.endpoint != nil {
		l.endpoint.active.Add(-1)
		l.endpoint = nil
	}
}
