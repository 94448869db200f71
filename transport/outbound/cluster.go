package outbound

import (
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Wire is what an adapter keeps for one cluster: its connections.
type Wire interface {
	// Retire is called once, when the cluster is gone or its connection
	// settings have changed. Requests in flight finish; idle connections close.
	Retire()
}

// Cluster is the live state of a cluster. It outlives snapshots: counters,
// breakers and ejections carry over from one to the next.
type Cluster struct {
	name   string
	engine *Engine

	current  atomic.Pointer[clusterState]
	requests atomic.Int64  // calls in flight
	retries  atomic.Int64  // retries in flight
	picks    atomic.Uint64 // sequence number for pickers
	usage    usage

	mu      sync.Mutex // guards the rest; a request takes it only to eject an endpoint
	known   map[string]*Endpoint
	ejected int
	tick    *time.Timer // runs while an endpoint is ejected or has been lately
	breaker *breaker
	closed  bool
}

// clusterState is what one pick reads: immutable but for the endpoints' own counters.
type clusterState struct {
	config    *snapshot.Cluster
	endpoints []*Endpoint // by index in config.Endpoints.All
	picker    lb.Picker
	usable    int
	panicked  bool
	wire      Wire
	// made is the configuration that wire was made from: config, or an older
	// one with the same connection settings. What security has is of made, so
	// that a wire knows its values by their address.
	made     *snapshot.Cluster
	security []*snapshot.ClientTLS // by index in config.Endpoints.All; nil where all connections are plaintext
	breaker  *breaker
}

// tls returns how connections to an endpoint are secured; nil means plaintext.
func (s *clusterState) tls(i int) *snapshot.ClientTLS {
	if s.security == nil {
		return nil
	}
	return s.security[i]
}

// Active returns the requests in flight at an endpoint, for the picker.
func (s *clusterState) Active(i int) int64 { return s.endpoints[i].active.Load() }

// Endpoint is the live state of one address of one cluster.
type Endpoint struct {
	Address string

	active   atomic.Int64
	requests atomic.Uint64
	failures atomic.Uint64

	streak   atomic.Uint64       // resilience.Streak
	ejected  atomic.Bool         // as ejection.Ejected, for readers without the cluster's mutex
	ejection resilience.Ejection // guarded by the cluster's mutex
}

func (e *Engine) newCluster(name string) *Cluster {
	c := &Cluster{name: name, engine: e}
	// Clients that start together must not all begin at the first endpoint.
	c.picks.Store(e.draw())
	return c
}

// update makes a new configuration the current one.
func (c *Cluster) update(config *snapshot.Cluster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.current.Load()
	if old != nil && old.config == config {
		return
	}
	known := make(map[string]*Endpoint, len(config.Endpoints.All))
	endpoints := make([]*Endpoint, len(config.Endpoints.All))
	for i := range config.Endpoints.All {
		address := config.Endpoints.All[i].Address
		e := known[address]
		if e == nil {
			if e = c.known[address]; e == nil {
				e = &Endpoint{Address: address}
			}
			known[address] = e
		}
		endpoints[i] = e
	}
	for address, e := range c.known {
		if e.ejection.Ejected && (config.Outlier == nil || known[address] != e) {
			c.restore(e)
		}
	}
	c.known = known
	next := &clusterState{config: config, endpoints: endpoints}
	var retired Wire
	switch {
	case old != nil && sameWire(old.config, config):
		next.wire, next.made = old.wire, old.made
	default:
		next.made = config
		if old != nil {
			retired = old.wire
		}
		if c.engine.options.NewWire != nil {
			next.wire = c.engine.options.NewWire(config)
		}
	}
	if config.TLS != nil || len(config.Sockets) > 0 {
		next.security = make([]*snapshot.ClientTLS, len(endpoints))
		for i := range config.Endpoints.All {
			next.security[i] = next.made.Security(config.Endpoints.All[i].Socket)
		}
	}
	if config.Breaker != nil && (c.breaker == nil || c.breaker.policy != *config.Breaker) {
		c.breaker = newBreaker(c, *config.Breaker)
	} else if config.Breaker == nil {
		c.breaker = nil
	}
	next.breaker = c.breaker
	c.publish(next)
	if retired != nil {
		retired.Retire()
	}
}

// publish computes the usable endpoints of a state and makes it current. The caller holds mu.
func (c *Cluster) publish(s *clusterState) {
	usable, panicked := lb.Usable(s.config.Endpoints, func(i int) bool {
		return s.endpoints[i].ejected.Load()
	}, s.config.PanicThreshold)
	s.picker = lb.NewPicker(s.config.LB, s.config.Endpoints, usable)
	s.usable, s.panicked = len(usable), panicked
	c.current.Store(s)
}

// republish makes the present configuration current again after an ejection
// or a return. The caller holds mu.
func (c *Cluster) republish() {
	next := *c.current.Load()
	c.publish(&next)
}

// sameWire reports whether two configurations can share connections.
func sameWire(a, b *snapshot.Cluster) bool {
	return a.HTTP2 == b.HTTP2 && a.ConnectTimeout == b.ConnectTimeout && a.IdleTimeout == b.IdleTimeout &&
		a.MaxRequestsPerConnection == b.MaxRequestsPerConnection &&
		a.Limits.MaxConnections == b.Limits.MaxConnections && a.Limits.MaxPendingRequests == b.Limits.MaxPendingRequests &&
		sameTLS(a.TLS, b.TLS) && slices.EqualFunc(a.Sockets, b.Sockets, func(x, y snapshot.SocketMatch) bool {
		return maps.Equal(x.Criteria, y.Criteria) && sameTLS(x.TLS, y.TLS)
	})
}

// sameTLS looks at every field, however deep: one that were forgotten here
// would leave connections open that policy no longer accepts.
func sameTLS(a, b *snapshot.ClientTLS) bool { return a == b || reflect.DeepEqual(a, b) }

// close ends the cluster: nothing is picked from it any more, and its timers stop.
func (c *Cluster) close() {
	c.mu.Lock()
	c.closed = true
	if c.tick != nil {
		c.tick.Stop()
	}
	for _, e := range c.known {
		if e.ejection.Ejected {
			c.restore(e)
		}
	}
	s := c.current.Load()
	c.mu.Unlock()
	if s != nil && s.wire != nil {
		s.wire.Retire()
	}
}

// report counts an attempt's outcome at an endpoint and ejects the endpoint
// where the outlier rule says so. The common case, a success at an endpoint
// without failures, stores nothing.
func (c *Cluster) report(s *clusterState, e *Endpoint, o *resilience.Outcome) {
	result := resilience.ResultOf(o)
	switch result {
	case resilience.NoResult:
		return
	case resilience.Success:
	default:
		e.failures.Add(1)
	}
	rule := s.config.Outlier
	if rule == nil {
		return
	}
	for {
		before := e.streak.Load()
		if before == 0 && result == resilience.Success {
			return
		}
		after, detected := rule.Observe(resilience.Streak(before), result)
		if !e.streak.CompareAndSwap(before, uint64(after)) {
			continue
		}
		if detected != 0 && rule.Enforces(detected, c.engine.draw()) {
			c.eject(e, detected)
		}
		return
	}
}

func (c *Cluster) eject(e *Endpoint, detected resilience.Detections) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rule := c.current.Load().config.Outlier
	if c.closed || rule == nil || e.ejection.Ejected || c.known[e.Address] != e || !rule.MayEject(c.ejected, len(c.known)) {
		return
	}
	e.ejection = rule.Eject(e.ejection, time.Now(), c.engine.draw())
	e.ejected.Store(true)
	c.ejected++
	c.republish()
	if c.tick == nil {
		c.tick = time.AfterFunc(rule.Interval, c.sweep)
	}
	if obs := c.engine.options.Observer; obs != nil {
		obs.Ejection(c.name, e.Address, reason(detected), true)
	}
}

// restore ends the ejection of an endpoint. The caller holds mu.
func (c *Cluster) restore(e *Endpoint) {
	e.ejection.Ejected = false
	e.streak.Store(0)
	e.ejected.Store(false)
	c.ejected--
	if obs := c.engine.options.Observer; obs != nil {
		obs.Ejection(c.name, e.Address, "", false)
	}
}

// sweep is Envoy's outlier interval: it lets endpoints back whose time has
// passed. It runs while an endpoint has a history of ejections.
func (c *Cluster) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick = nil
	rule := c.current.Load().config.Outlier
	if c.closed || rule == nil {
		return
	}
	now, again, returned := time.Now(), false, false
	for _, e := range c.known {
		after, ended := rule.Sweep(e.ejection, now)
		e.ejection = after
		again = again || after.Ejected || after.Multiplier > 0
		if !ended {
			continue
		}
		returned = true
		c.restore(e)
	}
	if returned {
		c.republish()
	}
	if again {
		c.tick = time.AfterFunc(rule.Interval, c.sweep)
	}
}

// reason names a detection as Envoy's outlier event log does.
func reason(d resilience.Detections) string {
	switch {
	case d&resilience.Detected5xx != 0:
		return "consecutive_5xx"
	case d&resilience.DetectedGatewayFailure != 0:
		return "consecutive_gateway_failure"
	default:
		return "consecutive_local_origin_failure"
	}
}
