package meshgrpc

//lint:file-ignore SA1019 NewSubConn has no successor; what is deprecated is giving it several addresses.

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// connection is a gRPC subchannel to one endpoint, with the settings of its cluster.
type connection struct {
	balancer *meshBalancer
	endpoint *outbound.Endpoint
	address  string // that is dialled, see outbound.Endpoint.Dial
	place    outbound.Place
	security *snapshot.ClientTLS // nil for plaintext
	wire     outbound.Wire       // changes with the cluster's connection settings
	host     string              // that is called, for SNI
	passes   bool                // the host is outside the mesh: the channel's own credentials count
	cluster  *snapshot.Cluster   // as it was when the connection was made
	sub      balancer.SubConn
	beside   atomic.Pointer[connection] // another one to the endpoint, where streams are limited

	state    atomic.Uint32 // connectivity.State; a failure lasts until the connection is ready
	active   atomic.Int64
	requests atomic.Int64 // ever
	idle     atomic.Int64 // Unix time in ns since when there has been no RPC
	retired  atomic.Bool
	shaken   atomic.Bool // the TLS handshake has read the source

	mu      sync.Mutex
	failure error // of the last attempt to connect
	timer   *time.Timer
	held    *outbound.Identity
}

const (
	// defaultIdleTime closes connections without RPCs where policy says nothing (Envoy: 1 h).
	defaultIdleTime = time.Hour
	minSweep        = 10 * time.Millisecond
	maxSweep        = time.Minute
)

var errReplacedCredentials = errors.New("policy secures the connection, and the channel was given other transport credentials than those of DialOptions")

// open makes a connection that does not connect yet. The caller holds b.mu.
func (b *meshBalancer) open(l *outbound.Lease, call *outbound.Call) (*connection, error) {
	c := &connection{
		balancer: b, endpoint: l.Endpoint(), address: l.Endpoint().Dial(), place: call.Place(), security: l.Security(), wire: l.Wire(),
		host: hostOf(b.channel.authority), passes: call.Passes(), cluster: call.Cluster(),
	}
	c.place.Endpoint = c.endpoint.Address
	c.state.Store(uint32(connectivity.Idle))
	c.idle.Store(time.Now().UnixNano())
	if c.passes {
		c.security = nil
	}
	if c.security != nil {
		if !b.channel.own {
			return nil, &connectError{&outbound.TLSError{Place: c.place, Err: errReplacedCredentials}}
		}
		held, err := b.channel.client.identities.Hold(c.security, c.renew)
		if err != nil {
			return nil, &connectError{&outbound.TLSError{Place: c.place, Err: fmt.Errorf("identity source: %w", err)}}
		}
		c.held = held
	}
	address := resolver.Address{Addr: c.address, Attributes: attributes.New(connectionKey{}, c)}
	sub, err := b.cc.NewSubConn([]resolver.Address{address}, balancer.NewSubConnOptions{
		HealthCheckEnabled: b.channel.client.health != nil,
		StateListener:      func(s balancer.SubConnState) { b.changed(c, s) },
	})
	if err != nil {
		c.release()
		return nil, balancer.ErrNoSubConnAvailable // the channel is closing or becoming idle
	}
	c.sub = sub
	return c, nil
}

// connectionKey is of *connection in an address' attributes. By its pointer no
// two connections are the same to gRPC.
type connectionKey struct{}

func (c *connection) current() connectivity.State { return connectivity.State(c.state.Load()) }

// fits reports whether the connection is what the lease asks for.
func (c *connection) fits(l *outbound.Lease) bool {
	return (c.passes || c.security == l.Security()) && c.wire == l.Wire() && !c.retired.Load() && !c.moved()
}

// moved reports whether the endpoint's name stands for another address, to which
// the next connection is to be made: one that there is stays in use, as in Envoy.
func (c *connection) moved() bool {
	return c.address != c.endpoint.Dial() && c.current() != connectivity.Ready
}

// hasRoom reports whether another RPC may use the connection
// (max_concurrent_streams, max_requests_per_connection).
func (c *connection) hasRoom() bool {
	if n := c.cluster.MaxConcurrentStreams; n > 0 && c.active.Load() >= int64(n) {
		return false
	}
	n := c.cluster.MaxRequestsPerConnection
	return n == 0 || c.requests.Load() < int64(n)
}

// take counts an RPC that begins, unless there is no room for it any more.
func (c *connection) take() bool {
	active, requests := c.active.Add(1), c.requests.Add(1)
	if n := c.cluster.MaxConcurrentStreams; n > 0 && active > int64(n) {
		c.untake()
		return false
	}
	if n := c.cluster.MaxRequestsPerConnection; n > 0 && requests > int64(n) {
		c.untake()
		return false
	}
	return true
}

// untake undoes take for an RPC that did not begin.
func (c *connection) untake() {
	c.requests.Add(-1)
	c.active.Add(-1)
}

// leave counts an RPC that has ended.
func (c *connection) leave() {
	if c.active.Add(-1) > 0 {
		return
	}
	c.idle.Store(time.Now().UnixNano())
	if n := c.cluster.MaxRequestsPerConnection; n > 0 && c.requests.Load() >= int64(n) && !c.retired.Load() {
		c.balancer.replace(c)
	}
}

// connect begins to connect, if the connection is idle.
func (c *connection) connect() {
	if !c.state.CompareAndSwap(uint32(connectivity.Idle), uint32(connectivity.Connecting)) {
		return
	}
	c.arm()
	c.sub.Connect()
}

// arm fails RPCs that wait for the connection when the cluster's connect
// timeout passes. gRPC's own time limit, 20 s at least, ends the attempt.
func (c *connection) arm() {
	limit := c.cluster.ConnectTimeout
	if limit <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = time.AfterFunc(limit, func() {
		if !c.state.CompareAndSwap(uint32(connectivity.Connecting), uint32(connectivity.TransientFailure)) {
			return
		}
		c.fail(fmt.Errorf("no connection within the connect timeout of %s", limit))
		c.balancer.mu.Lock()
		defer c.balancer.mu.Unlock()
		c.balancer.publish()
	})
}

func (c *connection) disarm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// fail keeps the reason of a failure; what the handshake has said stays over what gRPC makes of it.
func (c *connection) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var secure *outbound.TLSError
	if err == nil || c.failure != nil && errors.As(c.failure, &secure) && !errors.As(err, &secure) {
		return
	}
	c.failure = err
}

// err is the error of RPCs for which the connection did not come about.
func (c *connection) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var secure *outbound.TLSError
	switch {
	case c.failure == nil:
		return &connectError{fmt.Errorf("mesh: %s: no connection", c.place)}
	case errors.As(c.failure, &secure):
		return &connectError{c.failure}
	default:
		return &connectError{fmt.Errorf("mesh: %s: %w", c.place, c.failure)}
	}
}

// changed takes a new state of the subchannel. Like all calls of gRPC's to a
// balancer it comes from one goroutine at a time.
func (b *meshBalancer) changed(c *connection, s balancer.SubConnState) {
	if c.retired.Load() {
		return
	}
	switch s.ConnectivityState {
	case connectivity.Ready:
		c.disarm()
		c.mu.Lock()
		c.failure = nil
		c.mu.Unlock()
		c.state.Store(uint32(connectivity.Ready))
	case connectivity.TransientFailure:
		c.disarm()
		c.fail(s.ConnectionError)
		c.state.Store(uint32(connectivity.TransientFailure))
	case connectivity.Idle:
		if c.current() == connectivity.TransientFailure {
			// The back-off has passed. RPCs do not wait for a connection that has
			// failed, so it is made beside them.
			c.sub.Connect()
			return
		}
		c.disarm()
		c.state.Store(uint32(connectivity.Idle))
	case connectivity.Connecting:
		if !c.state.CompareAndSwap(uint32(connectivity.Idle), uint32(connectivity.Connecting)) {
			return
		}
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.publish()
}

// shutdown ends the connection when its RPCs have ended. The caller holds balancer.mu.
func (c *connection) shutdown() {
	if c.retired.Swap(true) {
		return
	}
	c.disarm()
	c.sub.Shutdown()
	c.release()
}

func (c *connection) release() {
	c.mu.Lock()
	held := c.held
	c.held = nil
	c.mu.Unlock()
	if held != nil {
		held.Release() // without waiting: a renewal under way may want balancer.mu, which is held
	}
}

func (c *connection) idleTime() time.Duration {
	if d := c.cluster.IdleTimeout; d > 0 {
		return d
	}
	return defaultIdleTime
}

// arm has idle connections looked for. The caller holds mu.
func (b *meshBalancer) arm(c *connection) {
	every := min(max(c.idleTime()/2, minSweep), maxSweep)
	if b.sweep == nil {
		b.sweep = time.AfterFunc(every, b.closeIdle)
	} else if every < maxSweep {
		b.sweep.Reset(every)
	}
}

// closeIdle closes connections that have carried no RPC for long.
func (b *meshBalancer) closeIdle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	now, next, some := time.Now(), maxSweep, false
	for _, first := range *b.index.Load() {
		for c := first; c != nil; c = c.beside.Load() {
			idle := c.idleTime()
			if c.active.Load() == 0 && now.Sub(time.Unix(0, c.idle.Load())) >= idle {
				b.remove(c)
				some = true
				continue
			}
			next = min(next, max(idle/2, minSweep))
		}
	}
	if some {
		b.publish()
	}
	if len(*b.index.Load()) > 0 {
		b.sweep.Reset(next)
	} else {
		b.sweep = nil
	}
}
