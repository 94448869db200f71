package meshgrpc

import (
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"
)

// When policy first names a cluster, gRPC puts the new routes in force and
// then tells its balancer of the cluster. A call in between that is routed to
// the cluster fails with Unavailable, and no retry policy applies to it, so
// that moving weight to a new version would fail calls. Here such calls wait
// for the update to settle. The balancer is gRPC's own otherwise.
//
// A resolver's update reaches the balancer before it returns, so a wrapped
// resolver knows when it is settled, and the wrapped balancer asks.

const (
	clusterManager  = "xds_cluster_manager_experimental" // gRPC's top-level balancer for xDS
	settlingManager = "sinew_" + clusterManager
	unknownCluster  = "unknown cluster selected for RPC"
)

func init() {
	if b := balancer.Get(clusterManager); b != nil {
		balancer.Register(settlingBuilder{b})
	}
}

// settling is what the resolver and the balancer of one channel share.
type settling struct {
	updating atomic.Bool // routes may be ahead of the balancer
	waited   atomic.Bool // a call waits for the next picker
	balancer atomic.Pointer[settlingConn]
}

type settlingKey struct{}

// settlingResolver makes resolvers whose channels use the settling balancer.
type settlingResolver struct {
	resolver.Builder
	settled func() // called when an update is in force
}

func (b settlingResolver) Build(target resolver.Target, cc resolver.ClientConn, o resolver.BuildOptions) (resolver.Resolver, error) {
	return b.Builder.Build(target, &settlingChannel{ClientConn: cc, shared: new(settling), settled: b.settled}, o)
}

// settlingChannel is the channel as gRPC's resolver sees it. Its methods are not called concurrently.
type settlingChannel struct {
	resolver.ClientConn
	shared  *settling
	settled func()                     // may be nil
	empty   *serviceconfig.ParseResult // the empty service config that came last
	failed  bool                       // an update with the empty service config waits for its reason
}

// ParseServiceConfig names the settling balancer where the resolver names gRPC's.
func (c *settlingChannel) ParseServiceConfig(js string) *serviceconfig.ParseResult {
	if js == "{}" {
		c.empty = c.ClientConn.ParseServiceConfig(js)
		return c.empty
	}
	if balancer.Get(settlingManager) != nil {
		js = strings.Replace(js, `"`+clusterManager+`"`, `"`+settlingManager+`"`, 1)
	}
	return c.ClientConn.ParseServiceConfig(js)
}

// UpdateState passes an update on, unless it says that there is no policy: the reason follows with ReportError.
func (c *settlingChannel) UpdateState(s resolver.State) error {
	if c.failed = s.ServiceConfig != nil && s.ServiceConfig == c.empty; c.failed {
		return balancer.ErrBadResolverState
	}
	return c.update(s)
}

// ReportError passes an error on.
func (c *settlingChannel) ReportError(err error) {
	if c.failed {
		c.failed = false
		c.fail(err)
		return
	}
	c.ClientConn.ReportError(err)
}

func (c *settlingChannel) update(s resolver.State) error {
	s.Attributes = s.Attributes.WithValue(settlingKey{}, c.shared)
	c.shared.updating.Store(true)
	err := c.ClientConn.UpdateState(s)
	c.shared.updating.Store(false)
	// After updating is false: a call that found it true has set waited before.
	if c.shared.waited.Swap(false) {
		if b := c.shared.balancer.Load(); b != nil {
			b.refresh()
		}
	}
	if c.settled != nil {
		c.settled()
	}
	return err
}

type settlingBuilder struct{ balancer.Builder }

func (settlingBuilder) Name() string { return settlingManager }

func (b settlingBuilder) Build(cc balancer.ClientConn, o balancer.BuildOptions) balancer.Balancer {
	conn := &settlingConn{ClientConn: cc}
	return &settlingBalancer{Balancer: b.Builder.Build(conn, o), conn: conn}
}

func (b settlingBuilder) ParseConfig(js json.RawMessage) (serviceconfig.LoadBalancingConfig, error) {
	return b.Builder.(balancer.ConfigParser).ParseConfig(js)
}

type settlingBalancer struct {
	balancer.Balancer
	conn *settlingConn
}

func (b *settlingBalancer) UpdateClientConnState(s balancer.ClientConnState) error {
	if shared, ok := s.ResolverState.Attributes.Value(settlingKey{}).(*settling); ok {
		b.conn.shared.Store(shared)
		shared.balancer.Store(b.conn)
	}
	return b.Balancer.UpdateClientConnState(s)
}

// settlingConn is the channel as gRPC's balancer sees it.
type settlingConn struct {
	balancer.ClientConn
	shared atomic.Pointer[settling]
	latest atomic.Pointer[settlingPicker]

	mu    sync.Mutex // keeps pickers in order
	state balancer.State
}

// UpdateState gives the channel a new picker.
func (c *settlingConn) UpdateState(s balancer.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = s
	c.push()
}

// refresh gives the channel its picker once more, which ends the waiting of calls.
func (c *settlingConn) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Picker != nil {
		c.push()
	}
}

func (c *settlingConn) push() {
	s := c.state
	p := &settlingPicker{Picker: s.Picker, conn: c}
	s.Picker = p
	// First: a call that finds itself with an older picker waits for this one.
	c.latest.Store(p)
	c.ClientConn.UpdateState(s)
}

type settlingPicker struct {
	balancer.Picker
	conn *settlingConn
}

// Pick makes a call to a cluster that this picker does not know wait for the
// next picker, if there is to be one.
func (p *settlingPicker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	r, err := p.Picker.Pick(info)
	if err != nil && isUnknownCluster(err) && !p.settled() {
		err = balancer.ErrNoSubConnAvailable
	}
	return r, unrouted(err)
}

func (p *settlingPicker) settled() bool {
	if p.conn.latest.Load() != p {
		return false
	}
	shared := p.conn.shared.Load()
	if shared == nil {
		return true
	}
	shared.waited.Store(true)
	return !shared.updating.Load() && p.conn.latest.Load() == p
}

func isUnknownCluster(err error) bool {
	return status.Code(err) == codes.Unavailable && strings.HasPrefix(status.Convert(err).Message(), unknownCluster)
}
