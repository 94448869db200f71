package outbound

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Call is one outbound request, from the decision where it goes to the end of
// its response. The adapter owns it, fills in Request, and may run several
// tries of it side by side; Decide comes before them and Finish after them.
type Call struct {
	Request routing.Request

	// Telemetry is the observer's own, for the length of the call.
	Telemetry any

	engine   *Engine
	host     *host
	route    *route
	leg      *leg // nil until a destination is chosen
	retry    *resilience.RetryPolicy
	rare     *rare // nil for most calls
	began    time.Time
	waited   time.Duration // since began, until time limits begin: for policy, or an injected delay
	own      time.Duration // since began, until the deadline of the caller's context, where a header tells the server of it; 0 without
	global   time.Duration
	limit    time.Duration // global, or that of streams if it is less
	perTry   time.Duration
	hash     uint64 // by which an endpoint is chosen
	priority resilience.Priority
	told     bool         // the request has headers that are consumed here
	hashed   bool         // there is a hash
	admitted bool         // holds a place among the cluster's requests
	attempts atomic.Int32 // begun
	held     atomic.Int32 // places among the cluster's retries
	finished atomic.Bool  // Finish was called
	settled  func(error)  // takes the breaker's outcome; nil without a breaker

	mu    sync.Mutex // guards what tries side by side share
	first tried
	later *later // nil while there is no attempt but the first
}

// later is what a call keeps of its attempts after the first.
type later struct {
	hedges   int // how many begin beside the first
	granted  int // places that were given to them
	backoffs int // pauses that the policy chose, rather than a response
	tried    [maxTried - 1]tried
}

// maxTried is how many attempts' endpoints are kept; more are not avoided.
const maxTried = 4

// tried is where an attempt went.
type tried struct {
	endpoint *Endpoint
	priority int
}

// Decide finds the route for c.Request at the host that authority and scheme
// name, as a URL gives them. Then either policy answers by itself (Local), or a
// cluster is chosen. It waits for policy that has not come yet. Errors are
// *NotReadyError and *NoRouteError.
func (e *Engine) Decide(ctx context.Context, c *Call, authority, scheme string) error {
	c.engine, c.began = e, time.Now()
	h, waited, err := e.hostFor(ctx, authority, scheme)
	if waited {
		c.waited = time.Since(c.began)
	}
	if err != nil {
		return err
	}
	c.host = h
	if h.claims && c.Request.Claims == nil {
		if claims, ok := identity.ClaimsFromContext(ctx); ok {
			c.Request.Claims = claims.Values()
		}
	}
	i := h.snap.VirtualHost.Match(&c.Request, e.draw())
	if i < 0 {
		return &NoRouteError{Place: c.Place(), Reason: "no route matches " + c.Request.Method + " " + c.Request.Path}
	}
	c.route = &h.routes[i]
	snap := c.route.snap
	c.priority = snap.Priority
	c.retry = snap.Retry
	if c.told = tellsRouter(&c.Request); c.told {
		if c.retry != nil {
			c.retry = c.retry.WithRequest(&c.Request)
		} else {
			c.retry = resilience.RetryPolicyOf(&c.Request)
		}
	}
	c.timeLimits(ctx)
	leg := len(c.route.legs) - 1
	if leg > 0 {
		leg = snap.Clusters.Choose(e.draw())
	}
	if leg >= 0 {
		if chosen := &c.route.legs[leg]; chosen.cluster != nil {
			c.leg = chosen
		}
	}
	if c.route.special {
		c.filters(leg)
		if c.Local() != nil {
			return nil
		}
		if c.leg == nil {
			found, err := c.byHeader(ctx, leg)
			if err != nil {
				return err
			}
			if !found {
				c.noCluster()
				return nil
			}
		}
	}
	if c.leg == nil {
		return &NoRouteError{Place: c.Place(), Reason: "the route names no cluster that is there"}
	}
	if c.route.echoes && c.route.outgoing {
		c.more() // before tries run side by side
	}
	if len(snap.Hash) > 0 {
		c.hashRequest()
	}
	return nil
}

// hashRequest finds the hash by which an endpoint is chosen: that of the request
// as it goes out (Envoy). Where the cluster does not choose by it there is none,
// nor a cookie to issue.
func (c *Call) hashRequest() {
	config := c.leg.cluster.current.Load().config
	if kind := config.LB.Kind; kind != lb.RingHash && kind != lb.Maglev && len(config.Underlying) == 0 {
		return
	}
	r := &c.Request
	if c.route.rehash {
		to := *r
		to.Header = c.copyHeader()
		c.rewrite(1, nil, &to)
		r = &to
	}
	origin := c.engine.options.Source
	if c.route.issues {
		// Who has no cookie yet is somebody new: the callers that this process
		// serves must not all be sent to one endpoint.
		origin.Local = strconv.FormatUint(c.engine.draw(), 36)
	}
	var cookie string
	if c.hash, c.hashed, cookie = routing.HashOf(c.route.snap.Hash, r, origin); cookie != "" {
		c.more().cookie = cookie
	}
}

// byHeader chooses the cluster that a header of the request names, for the
// destination i or a route without destinations. It waits for a cluster that the
// control plane was not asked for yet, and reports false where it does not exist.
func (c *Call) byHeader(ctx context.Context, i int) (found bool, err error) {
	name := &c.route.snap.ClusterHeader
	if legs := c.route.snap.Legs; i >= 0 && i < len(legs) && legs[i].ClusterHeader.String() != "" {
		name = &legs[i].ClusterHeader
	}
	if name.String() == "" {
		return true, nil // there is a name, but no such cluster: that is an error of policy
	}
	values := name.In(c.Request.Header, c.Request.Form)
	if len(values) == 0 {
		return false, nil
	}
	to := c.named(values[0])
	if to == nil {
		if err := c.engine.awaitCluster(ctx, values[0], c.Place()); err != nil {
			return false, err
		}
		c.waited = time.Since(c.began)
		if to = c.named(values[0]); to == nil {
			return false, nil
		}
	}
	if i >= 0 {
		// What is particular to the destination holds for whatever cluster is named.
		with := *to
		with.snap, with.subset = c.route.legs[i].snap, c.route.legs[i].subset
		to = &with
	}
	c.leg = to
	return true, nil
}

// named returns the way to a cluster by its name, or nil where it is not there.
func (c *Call) named(name string) *leg {
	cluster := c.engine.view.Load().clusters[name]
	if cluster == nil {
		return nil
	}
	config := cluster.current.Load().config
	if config.Used != nil && !config.Used.Load() {
		config.Used.Store(true)
	}
	if config.Absent {
		return nil
	}
	if to, ok := c.route.named.Load(name); ok && to.(*leg).cluster == cluster {
		return to.(*leg)
	}
	to := &leg{cluster: cluster, telemetry: c.engine.describe(c.host.snap.Name, c.route.snap.Name, name, cluster), subset: c.route.snap.Subset}
	c.route.named.Store(name, to)
	return to
}

// awaitCluster waits until it is known what a cluster's name stands for. The error is *NotReadyError.
func (e *Engine) awaitCluster(ctx context.Context, name string, place Place) error {
	if e.options.SubscribeCluster == nil {
		return nil
	}
	place.Cluster = name
	began := time.Now()
	var timer *time.Timer
	for {
		// The channel first: an install after this line closes it.
		changed := *e.changed.Load()
		if e.view.Load().clusters[name] != nil {
			return nil
		}
		if timer == nil {
			timer = time.NewTimer(e.options.PolicyWait)
			defer timer.Stop()
			e.options.SubscribeCluster(name)
		}
		failed := func(err error) error {
			return &NotReadyError{Place: place, Missing: "policy", Waited: time.Since(began), Err: err}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return failed(e.trouble(ctx.Err()))
		case <-timer.C:
			return failed(e.trouble(nil))
		case <-e.closed:
			return failed(ErrClosed)
		}
	}
}

// Passes reports that the host is outside the mesh: the request goes where its URL says.
func (c *Call) Passes() bool { return c.host.pass }

// Attempts returns the number of attempts begun.
func (c *Call) Attempts() int { return int(c.attempts.Load()) }

// Priority returns the thresholds that the call counts against.
func (c *Call) Priority() resilience.Priority { return c.priority }

// Ready returns when the call's policy was there: when it began, or when the
// wait for policy had ended. Time limits and the first attempt count from it.
func (c *Call) Ready() time.Time { return c.began.Add(c.waited) }

// Leg returns what Observer.Leg prepared for this call's route and cluster; nil before Decide has chosen.
func (c *Call) Leg() any {
	if c.leg == nil {
		return nil
	}
	return c.leg.telemetry
}

// Cluster returns the configuration of the cluster that Decide chose; there is none where Local is not nil.
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

// Finish ends the call with its last outcome. Only the first of several calls counts.
func (c *Call) Finish(o *resilience.Outcome) {
	if c.finished.Swap(true) {
		return
	}
	if c.leg != nil {
		c.leaveRetries()
	}
	if c.rare != nil {
		c.leaveFaults()
		c.leaveAdaptive(o)
		if c.rare.shadow != nil {
			c.engine.shadows.Add(-1)
		}
	}
	if c.admitted {
		c.leg.cluster.requests[c.priority].Add(-1)
	}
	if c.settled != nil {
		c.settled(verdict(o))
	}
	if c.engine.options.Observer != nil {
		c.engine.options.Observer.CallEnd(c, o, time.Since(c.began))
	}
}
