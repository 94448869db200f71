package meshgrpc

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

const balancerName = "sinew_mesh"

func init() { balancer.Register(meshBuilder{}) }

type meshBuilder struct{}

func (meshBuilder) Name() string { return balancerName }

func (meshBuilder) Build(cc balancer.ClientConn, _ balancer.BuildOptions) balancer.Balancer {
	ctx, cancel := context.WithCancel(context.Background())
	b := &meshBalancer{cc: cc, ctx: ctx, cancel: cancel}
	b.skip = b.failing
	b.index.Store(&map[*outbound.Endpoint]*connection{})
	return b
}

// meshBalancer keeps the connections of one channel: to each endpoint that was
// picked, none to others. It is its own picker, because which endpoint an RPC
// goes to is the engine's to say. What is known of endpoints is the engine's
// too: a channel that becomes idle forgets its balancer.
type meshBalancer struct {
	cc      balancer.ClientConn
	channel *channel // set by the first update, before there is any RPC

	// index has the first connection to each endpoint; further ones hang on it.
	index atomic.Pointer[map[*outbound.Endpoint]*connection]
	skip  func(*outbound.Endpoint) bool // failing

	ctx     context.Context // ends with the balancer
	cancel  context.CancelFunc
	warming sync.WaitGroup

	mu     sync.Mutex // guards what follows, changes of index, and the order of states
	policy policyState
	sweep  *time.Timer
	closed bool
	woken  bool // the caller has asked for a connection
}

// UpdateClientConnState implements balancer.Balancer.
func (b *meshBalancer) UpdateClientConnState(s balancer.ClientConnState) error {
	ch, ok := s.ResolverState.Attributes.Value(channelKey{}).(*channel)
	if !ok {
		return errors.New("mesh: the balancer is for mesh:/// targets only")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.channel == nil { // it stays the same, and RPCs read it
		b.channel = ch
	}
	b.policy, _ = s.ResolverState.Attributes.Value(policyKey{}).(policyState)
	for e, c := range *b.index.Load() {
		if e.Gone() {
			b.retire(c)
		}
	}
	if b.woken {
		b.warm()
	}
	b.publish() // also where nothing has changed: RPCs that wait look again
	return nil
}

// ResolverError implements balancer.Balancer. The resolver reports none once
// it is built: then the state of policy says what is wrong.
func (b *meshBalancer) ResolverError(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.policy = policyState{err: err}
	b.publish()
}

// UpdateSubConnState implements balancer.Balancer; states come to listeners.
func (*meshBalancer) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

// ExitIdle connects to one endpoint, for a caller that wants the channel to be ready.
func (b *meshBalancer) ExitIdle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.woken = true
	b.warm()
}

// Close implements balancer.Balancer. RPCs in flight may finish.
func (b *meshBalancer) Close() {
	b.cancel()
	b.mu.Lock()
	b.closed = true
	for _, c := range *b.index.Load() {
		b.retire(c)
	}
	if b.sweep != nil {
		b.sweep.Stop()
	}
	b.mu.Unlock()
	b.warming.Wait()
}

// warm connects to an endpoint unless there is a connection. The caller holds mu.
func (b *meshBalancer) warm() {
	if len(*b.index.Load()) > 0 || b.closed || b.channel == nil {
		return
	}
	b.warming.Add(1)
	go func() {
		defer b.warming.Done()
		err := b.warmOne()
		b.mu.Lock()
		defer b.mu.Unlock()
		if err != nil && b.ctx.Err() == nil && len(*b.index.Load()) == 0 {
			b.policy.err = err
			b.publish()
		}
	}()
}

// warmOne picks an endpoint as a request for "/" would, and connects to it.
func (b *meshBalancer) warmOne() error {
	c := &outbound.Call{}
	bareRequest(&c.Request, b.channel.authority, "/")
	if err := b.channel.client.engine.Decide(b.ctx, c, b.channel.authority, "http"); err != nil {
		return err
	}
	defer c.Finish(&resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
	if c.Local() != nil {
		return nil
	}
	var t outbound.Try
	if err := c.Begin(&t); err != nil {
		return nil // it would have been refused, which says nothing of connections
	}
	var l outbound.Lease
	if err := t.Pick(&l, nil); err != nil {
		return err
	}
	defer l.Release()
	conn, err := b.connection(&l, c)
	if err == nil {
		conn.connect()
	}
	return err
}

// failing reports whether RPCs to the endpoint would fail at present.
func (b *meshBalancer) failing(e *outbound.Endpoint) bool {
	c := (*b.index.Load())[e]
	return c != nil && c.current() == connectivity.TransientFailure && !c.moved()
}

// Pick implements balancer.Picker.
func (b *meshBalancer) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	if c, ok := info.Ctx.Value(attemptKey{}).(*attemptContext); ok && c.client == b.channel.client {
		return c.attempt.pick(b, c.turn)
	}
	return balancer.PickResult{}, errStray
}

// errStray fails an RPC that did not come from the interceptors: one made with a
// context that an interceptor behind them did not derive from its own. Its
// timeouts, retries and header changes were left behind with that context, and
// an RPC without its policy is not sent.
var errStray = status.Error(codes.Internal, "mesh: an interceptor or wrapper of the program has replaced the RPC's context; it must derive its own from the one that it is given")

// errEnded fails an RPC that an interceptor of the program's sends once more
// after the mesh's have returned.
var errEnded = status.Error(codes.Internal, "mesh: an interceptor of the program has sent the RPC once more after it had ended")

// connection returns a connection as the lease asks for, made if need be.
func (b *meshBalancer) connection(l *outbound.Lease, c *outbound.Call) (*connection, error) {
	for conn := (*b.index.Load())[l.Endpoint()]; conn != nil; conn = conn.beside.Load() {
		if !conn.fits(l) {
			break
		}
		if conn.hasRoom() {
			return conn, nil
		}
	}
	return b.connectionSlow(l, c)
}

func (b *meshBalancer) connectionSlow(l *outbound.Lease, c *outbound.Call) (*connection, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, balancer.ErrNoSubConnAvailable
	}
	var last *connection
	for conn := (*b.index.Load())[l.Endpoint()]; conn != nil; conn = conn.beside.Load() {
		if !conn.fits(l) {
			// How it is secured, or another setting, has changed.
			b.retire((*b.index.Load())[l.Endpoint()])
			last = nil
			break
		}
		if conn.hasRoom() {
			return conn, nil
		}
		last = conn
	}
	conn, err := b.open(l, c)
	if err != nil {
		return nil, err
	}
	if last != nil {
		last.beside.Store(conn)
	} else {
		next := maps.Clone(*b.index.Load())
		next[l.Endpoint()] = conn
		b.index.Store(&next)
	}
	b.arm(conn)
	return conn, nil
}

// retire takes the connections to an endpoint out of use; RPCs on them finish. The caller holds mu.
func (b *meshBalancer) retire(first *connection) {
	next := maps.Clone(*b.index.Load())
	delete(next, first.endpoint)
	b.index.Store(&next)
	for c := first; c != nil; c = c.beside.Load() {
		c.shutdown()
	}
}

// replace takes one connection out of use.
func (b *meshBalancer) replace(c *connection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.remove(c)
	b.publish()
}

// remove is replace without telling the channel. The caller holds mu.
func (b *meshBalancer) remove(c *connection) {
	first := (*b.index.Load())[c.endpoint]
	if first == c {
		next := maps.Clone(*b.index.Load())
		if after := c.beside.Load(); after != nil {
			next[c.endpoint] = after
		} else {
			delete(next, c.endpoint)
		}
		b.index.Store(&next)
	}
	for ; first != nil; first = first.beside.Load() {
		if first.beside.Load() == c {
			first.beside.Store(c.beside.Load())
		}
	}
	c.shutdown()
}

// publish gives the channel its state, and has RPCs that wait look again. The caller holds mu.
func (b *meshBalancer) publish() {
	if b.closed {
		return
	}
	var ready, connecting, failing, idle int
	for _, c := range *b.index.Load() {
		switch c.current() {
		case connectivity.Ready:
			ready++
		case connectivity.Connecting:
			connecting++
		case connectivity.TransientFailure:
			failing++
		default:
			idle++
		}
	}
	state := connectivity.Idle
	switch {
	case ready > 0:
		state = connectivity.Ready
	case connecting > 0:
		state = connectivity.Connecting
	case b.policy.err != nil:
		state = connectivity.TransientFailure
	case !b.policy.ready:
		state = connectivity.Connecting
	case failing > 0 && idle == 0:
		state = connectivity.TransientFailure
	}
	b.cc.UpdateState(balancer.State{ConnectivityState: state, Picker: b})
}
