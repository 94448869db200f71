package outbound

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Wire is what an adapter keeps for one cluster: its connections.
type Wire interface {
	// Retire is called once, when the cluster is gone or its connection
	// settings have changed. Requests in flight finish; idle connections close.
	Retire()
}

// Cluster is the live state of a cluster. It outlives snapshots: counters,
// breakers, ejections, latencies and health carry over from one to the next, by address.
type Cluster struct {
	name   string
	engine *Engine
	epoch  time.Time // latencies and joining count from it
	client string    // by which the client's endpoints are chosen

	current   atomic.Pointer[clusterState]
	requests  counts        // calls in flight
	retries   retries       // retries in flight
	held      atomic.Int64  // attempts in flight, where a policy bounds the load
	picks     atomic.Uint64 // sequence number for pickers
	used      atomic.Bool   // there was a request
	usage     usage
	reweighed atomic.Int64 // when the weights that endpoints report were last taken, in ns after epoch
	combined  atomic.Pointer[combination]

	mu        sync.Mutex // guards the rest; a request takes it only to change an endpoint's standing
	known     map[string]*Endpoint
	builder   *lb.Builder
	subsets   map[string]*subset
	slots     slots
	free      []int32       // slots without an endpoint
	count     int32         // slots ever used
	edit      uint64        // of slots, and the mark of endpoints
	subsetter *lb.Subsetter // once the cluster has had more endpoints than a client uses
	oldest    time.Time     // when the first and the last of the endpoints joined; for slow start
	newest    time.Time
	ejected   int
	tick      *time.Timer // of the sweep
	sweeping  atomic.Bool // tick runs
	breaker   *breaker
	health    *healthChecks // nil where nothing is checked
	names     *dns          // nil where nothing is looked up
	closed    bool
}

// clusterState is what one pick reads: immutable but for the endpoints' own counters.
type clusterState struct {
	cluster *Cluster
	config  *snapshot.Cluster
	picker  *lb.Picker
	subsets map[string]*lb.Picker // by subsetKey; nil values for what has no endpoint to use
	slots   slots
	wire    Wire
	// made is the configuration that wire was made from: config, or an older
	// one with the same connection settings. What tlsOf returns is of made, so
	// that a wire knows its values by their address.
	made    *snapshot.Cluster
	breaker *breaker
	timed   bool // picking needs the time
	bounded bool // picking needs the requests in flight at all endpoints
}

// tlsOf returns how connections to an endpoint are secured; nil means plaintext.
func (s *clusterState) tlsOf(e *Endpoint) *snapshot.ClientTLS {
	if len(s.made.Sockets) == 0 {
		return s.made.TLS
	}
	return s.made.Security(e.spec.Load().Socket)
}

// Active is part of lb.Loads.
func (s *clusterState) Active(slot int32) int64 { return s.slots.at(slot).active.Load() }

// Cost is part of lb.Loads.
func (s *clusterState) Cost(slot int32, now time.Time) float64 {
	e := s.slots.at(slot)
	return lb.Latency(e.latency.Load()).Estimate(now.Sub(s.cluster.epoch), s.config.LB.Decay) * float64(e.active.Load()+1)
}

// Joined is part of lb.Loads.
func (s *clusterState) Joined(slot int32) time.Time {
	return s.cluster.epoch.Add(time.Duration(s.slots.at(slot).joined.Load()))
}

// Total is part of lb.Loads.
func (s *clusterState) Total() int64 { return s.cluster.held.Load() }

func (e *Engine) newCluster(name string) *Cluster {
	c := &Cluster{name: name, engine: e, epoch: time.Now(), client: e.options.Client, known: make(map[string]*Endpoint)}
	if c.client == "" {
		// Processes without an identity must not all choose the same endpoints.
		c.client = strconv.FormatUint(e.draw(), 16)
	}
	// Clients that start together must not all begin at the first endpoint.
	c.picks.Store(e.draw())
	return c
}

// update makes a new configuration the current one. It looks at every endpoint
// and allocates for those that have changed.
func (c *Cluster) update(config *snapshot.Cluster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.current.Load()
	if c.closed || old != nil && old.config == config {
		return
	}
	next := &clusterState{cluster: c, config: config}
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
	if config.Breaker != nil && (c.breaker == nil || c.breaker.policy != *config.Breaker) {
		c.breaker = newBreaker(c, *config.Breaker)
	} else if config.Breaker == nil {
		c.breaker = nil
	}
	next.breaker = c.breaker
	if c.builder == nil || !reflect.DeepEqual(*c.builder.Policy(), config.LB) {
		c.builder, c.subsets = lb.NewBuilder(config.LB, c.engine.options.Locality), nil
		for _, e := range c.known {
			c.put(e)
		}
	}
	next.timed = config.LB.Kind == lb.PeakEWMA || config.LB.Kind == lb.ClientWeighted || config.LB.SlowStart != nil
	next.bounded = config.LB.Ring.Options.BalanceFactor > 0 || config.LB.Table.Options.BalanceFactor > 0
	c.lookUp(config)
	c.watchHealth(old, next)
	c.replace(next, c.endpointsOf(config))
	if retired != nil {
		retired.Retire()
	}
}

// endpointsOf returns the endpoints of a configuration. The caller holds mu.
func (c *Cluster) endpointsOf(config *snapshot.Cluster) []lb.Endpoint {
	if c.names != nil {
		return c.names.endpoints
	}
	return config.Endpoints.All
}

// replace makes the endpoints those of the cluster, and the state current. The caller holds mu.
func (c *Cluster) replace(s *clusterState, all []lb.Endpoint) {
	c.edit++
	c.builder.Describe(s.config.Endpoints)
	now := time.Now()
	size := s.config.LB.SubsetSize()
	if size == 0 || len(all) <= size {
		for i := range all {
			c.meet(s, &all[i], now)
		}
	} else {
		if c.subsetter == nil {
			c.subsetter = new(lb.Subsetter)
		}
		c.subsetter.Choose(len(all), size, func(i int) (uint64, uint32, lb.Locality) {
			spec := &all[i]
			if e := c.known[spec.Address]; e != nil {
				return e.score, spec.Priority, spec.Locality
			}
			return lb.Score(c.client, spec.Address), spec.Priority, spec.Locality
		}, func(i int) { c.meet(s, &all[i], now) })
	}
	for address, e := range c.known {
		if e.mark != c.edit {
			c.leave(address, e)
		}
	}
	c.warm(s)
	c.publish(s)
}

// meet takes an endpoint of a new set. The caller holds mu.
func (c *Cluster) meet(s *clusterState, spec *lb.Endpoint, now time.Time) {
	e := c.known[spec.Address]
	if e == nil {
		e = &Endpoint{Address: spec.Address, cluster: c, slot: c.count, score: lb.Score(c.client, spec.Address)}
		if n := len(c.free); n > 0 {
			e.slot, c.free = c.free[n-1], c.free[:n-1]
		} else {
			c.count++
		}
		e.joined.Store(int64(now.Sub(c.epoch)))
		c.known[spec.Address] = e
		c.slots.set(c.edit, e.slot, e)
	} else if e.mark == c.edit {
		return // the first of several with one address counts
	}
	e.mark = c.edit
	e.spec.Store(spec)
	c.equip(s, e)
	c.put(e)
}

// equip gives an endpoint what policy wants to know of it, and ends what it wants no more.
func (c *Cluster) equip(s *clusterState, e *Endpoint) {
	if rule := s.config.Outlier; rule == nil {
		if e.ejection.Ejected {
			c.restore(e)
		}
		e.rates.Store(nil)
	} else if !comparesRates(rule) {
		e.rates.Store(nil)
	} else if e.rates.Load() == nil {
		e.rates.Store(&rates{})
	}
	c.equipAccrual(s, e)
	c.equipHealth(s, e)
}

// put brings an endpoint's standing into the pickers to come. The caller holds mu.
func (c *Cluster) put(e *Endpoint) {
	m := e.member(c.builder.Policy())
	c.builder.Put(e.slot, m)
	for _, sub := range c.subsets {
		sub.put(e, m)
	}
}

// leave takes an endpoint out of the cluster. The caller holds mu.
func (c *Cluster) leave(address string, e *Endpoint) {
	if e.ejection.Ejected {
		c.restore(e)
	}
	e.stop()
	e.gone.Store(true)
	delete(c.known, address)
	c.builder.Remove(e.slot)
	for _, sub := range c.subsets {
		sub.builder.Remove(e.slot)
	}
	c.slots.set(c.edit, e.slot, nil)
	c.free = append(c.free, e.slot)
}

// stop ends what runs for an endpoint. The caller holds the cluster's mutex.
func (e *Endpoint) stop() {
	if a := e.accrual.Swap(nil); a != nil {
		a.stop()
	}
	for _, check := range e.checks {
		check.stop()
	}
	e.checks = nil
}

// warm finds when the endpoints joined, for slow start. The caller holds mu.
func (c *Cluster) warm(s *clusterState) {
	if s.config.LB.SlowStart == nil {
		return
	}
	first := true
	for _, e := range c.known {
		joined := c.epoch.Add(time.Duration(e.joined.Load()))
		if first || joined.Before(c.oldest) {
			c.oldest = joined
		}
		if first || joined.After(c.newest) {
			c.newest = joined
		}
		first = false
	}
}

// publish makes a state current with pickers of the endpoints as they are. The caller holds mu.
func (c *Cluster) publish(s *clusterState) {
	s.picker = c.builder.Picker().Warm(c.oldest, c.newest)
	c.publishSubsets(s)
	s.slots = c.slots
	if s.config.LB.Kind == lb.ClientWeighted {
		c.reweigh(s, time.Now())
	}
	c.current.Store(s)
}

// republish makes the present configuration current again after a change of
// an endpoint's standing. The caller holds mu.
func (c *Cluster) republish() {
	next := *c.current.Load()
	c.publish(&next)
}

// sameWire reports whether two configurations can share connections.
func sameWire(a, b *snapshot.Cluster) bool {
	return a.HTTP2 == b.HTTP2 && a.ConnectTimeout == b.ConnectTimeout && a.IdleTimeout == b.IdleTimeout &&
		a.MaxRequestsPerConnection == b.MaxRequestsPerConnection &&
		a.Limits.MaxConnections == b.Limits.MaxConnections && a.Limits.MaxPendingRequests == b.Limits.MaxPendingRequests &&
		a.HighLimits.MaxConnections == b.HighLimits.MaxConnections && a.HighLimits.MaxPendingRequests == b.HighLimits.MaxPendingRequests &&
		a.ClientProtocol == b.ClientProtocol && a.MaxConcurrentStreams == b.MaxConcurrentStreams &&
		reflect.DeepEqual(a.KeepAlive, b.KeepAlive) && a.HTTP2Ping == b.HTTP2Ping &&
		(a.Discovery == snapshot.LogicalDNS) == (b.Discovery == snapshot.LogicalDNS) &&
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
	if c.names != nil {
		c.names.stop()
	}
	if c.health != nil {
		c.health.stop()
	}
	for _, e := range c.known {
		if e.ejection.Ejected {
			c.restore(e)
		}
		e.stop()
		e.gone.Store(true)
	}
	s := c.current.Load()
	c.mu.Unlock()
	if s != nil && s.wire != nil {
		s.wire.Retire()
	}
}
