package meshgrpc

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// fakeChannel is gRPC's side of a balancer, whose connections nobody makes.
type fakeChannel struct {
	balancer.ClientConn
	refuses bool

	mu   sync.Mutex
	said []connectivity.State
}

var errFake = errors.New("the channel is closing")

func (c *fakeChannel) NewSubConn([]resolver.Address, balancer.NewSubConnOptions) (balancer.SubConn, error) {
	if c.refuses {
		return nil, errFake
	}
	return &fakeConn{}, nil
}

func (c *fakeChannel) UpdateState(s balancer.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said = append(c.said, s.ConnectivityState)
}

// tells fails the test unless the channel was told of exactly these states since the last time.
func (c *fakeChannel) tells(t *testing.T, what string, states ...connectivity.State) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	same := len(c.said) == len(states)
	for i := 0; same && i < len(states); i++ {
		same = c.said[i] == states[i]
	}
	if !same {
		t.Errorf("%s: the channel is told of %v, want %v", what, c.said, states)
	}
	c.said = nil
}

type fakeConn struct {
	balancer.SubConn
	connects, shutdowns atomic.Int32
}

func (c *fakeConn) Connect()  { c.connects.Add(1) }
func (c *fakeConn) Shutdown() { c.shutdowns.Add(1) }

// fakeBalancer is a balancer with policy, on such a channel.
func fakeBalancer(t *testing.T) (*meshBalancer, *fakeChannel) {
	cc := &fakeChannel{}
	b := meshBuilder{}.Build(cc, balancer.BuildOptions{}).(*meshBalancer)
	b.policy.ready = true
	t.Cleanup(b.Close)
	return b, cc
}

// connected adds a connection to the endpoint beside those that there are.
func connected(b *meshBalancer, e *outbound.Endpoint, config snapshot.Cluster) (*connection, *fakeConn) {
	sub := &fakeConn{}
	c := &connection{balancer: b, endpoint: e, address: e.Dial(), cluster: &config, sub: sub}
	c.state.Store(uint32(connectivity.Idle))
	c.idle.Store(time.Now().UnixNano())
	b.mu.Lock()
	defer b.mu.Unlock()
	all := *b.index.Load()
	if last := all[e]; last != nil {
		for ; last.beside.Load() != nil; last = last.beside.Load() {
		}
		last.beside.Store(c)
	} else {
		next := map[*outbound.Endpoint]*connection{e: c}
		for e, c := range all {
			next[e] = c
		}
		b.index.Store(&next)
	}
	b.arm(c)
	return c, sub
}

// TestLastRequestOfAConnection: with its last RPC a connection that takes no more
// goes, and only that one; the channel is told.
func TestLastRequestOfAConnection(t *testing.T) {
	b, cc := fakeBalancer(t)
	e := &outbound.Endpoint{Address: "192.0.2.1:80"}
	limit := snapshot.Cluster{MaxRequestsPerConnection: 2}
	var all [3]*connection
	var subs [3]*fakeConn
	for i := range all {
		all[i], subs[i] = connected(b, e, limit)
	}
	for i, c := range []*connection{all[0], all[2]} { // the first, and one beside the first
		for range 2 {
			if !c.take() {
				t.Fatal("not taken")
			}
		}
		c.leave()
		cc.tells(t, "one has ended")
		c.leave()
		cc.tells(t, "the last has ended", connectivity.Idle)
		if !c.retired.Load() || subs[2*i].shutdowns.Load() != 1 {
			t.Errorf("%d: it stays", i)
		}
	}
	if all[1].retired.Load() || subs[1].shutdowns.Load() != 0 || (*b.index.Load())[e] != all[1] || all[1].beside.Load() != nil {
		t.Error("the one beside is not what is left")
	}
	// The end of an RPC on a connection that has gone already is nobody's news.
	all[0].active.Add(1)
	all[0].leave()
	cc.tells(t, "it had gone")
}

// TestIdleSince: a connection is idle since its last RPC has ended, and closes
// when that is long ago; none closes that carries one.
func TestIdleSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, cc := fakeBalancer(t)
		idle, busy := &outbound.Endpoint{Address: "192.0.2.1:80"}, &outbound.Endpoint{Address: "192.0.2.2:80"}
		c, sub := connected(b, idle, snapshot.Cluster{IdleTimeout: 10 * time.Second})
		other, otherSub := connected(b, busy, snapshot.Cluster{IdleTimeout: 10 * time.Second})
		c.take()
		other.take()
		time.Sleep(20 * time.Second)
		c.leave()
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if sub.shutdowns.Load() != 0 || otherSub.shutdowns.Load() != 0 {
			t.Fatal("it closes before its time")
		}
		cc.tells(t, "nothing has changed")
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if sub.shutdowns.Load() != 1 || otherSub.shutdowns.Load() != 0 {
			t.Errorf("closed %d times, the busy one %d times", sub.shutdowns.Load(), otherSub.shutdowns.Load())
		}
		cc.tells(t, "one has closed", connectivity.Idle)
		other.leave()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		cc.tells(t, "all have closed", connectivity.Idle)
		b.mu.Lock()
		if len(*b.index.Load()) != 0 || b.sweep != nil {
			t.Error("nothing is left to look for, and it goes on looking")
		}
		b.mu.Unlock()
		// And it looks again for the next.
		_, sub = connected(b, idle, snapshot.Cluster{IdleTimeout: 10 * time.Second})
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if sub.shutdowns.Load() != 1 {
			t.Error("the next stays open")
		}
	})
}

// TestConnectTimeoutIsTold: RPCs that wait for a connection look again when its time has passed.
func TestConnectTimeoutIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, cc := fakeBalancer(t)
		c, sub := connected(b, &outbound.Endpoint{Address: "192.0.2.1:80"}, snapshot.Cluster{ConnectTimeout: time.Second})
		c.connect()
		c.connect()
		if sub.connects.Load() != 1 {
			t.Errorf("%d attempts to connect", sub.connects.Load())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		cc.tells(t, "the connect timeout has passed", connectivity.TransientFailure)
		if err := c.err(); !strings.Contains(err.Error(), "connect timeout of 1s") {
			t.Errorf("error %v", err)
		}
	})
}

// TestStatesOfAConnection: what gRPC says of a connection, and what an RPC that
// wanted it is told.
func TestStatesOfAConnection(t *testing.T) {
	b, cc := fakeBalancer(t)
	c, sub := connected(b, &outbound.Endpoint{Address: "192.0.2.1:80"}, snapshot.Cluster{})
	to := func(s connectivity.State, err error) {
		b.changed(c, balancer.SubConnState{ConnectivityState: s, ConnectionError: err})
	}
	is := func(what, want string) {
		t.Helper()
		if err := c.err(); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	to(connectivity.Connecting, nil)
	to(connectivity.TransientFailure, errors.New("refused"))
	cc.tells(t, "a failure", connectivity.Connecting, connectivity.TransientFailure)
	is("a failure", "refused")
	to(connectivity.Idle, nil)
	if sub.connects.Load() != 1 || c.current() != connectivity.TransientFailure {
		t.Errorf("after the back-off: %d attempts, %v", sub.connects.Load(), c.current())
	}
	to(connectivity.Connecting, nil)
	if c.current() != connectivity.TransientFailure {
		t.Error("RPCs wait for a connection that has failed")
	}
	cc.tells(t, "the back-off has passed")
	// What the handshake has said stays over what gRPC makes of it, until it says something else.
	c.fail(&outbound.TLSError{Err: errors.New("first word")})
	to(connectivity.TransientFailure, errors.New("gRPC's own"))
	is("TLS", "first word")
	c.fail(&outbound.TLSError{Err: errors.New("second word")})
	is("TLS again", "second word")
	to(connectivity.Ready, nil)
	to(connectivity.Idle, nil)
	is("a failure that is over", "no connection")
	to(connectivity.TransientFailure, errors.New("another"))
	is("another failure", "another")
	cc.tells(t, "the rest", connectivity.TransientFailure, connectivity.Ready, connectivity.Idle, connectivity.TransientFailure)
}

// TestStateOfTheChannel: of its connections, and of policy where there are none.
func TestStateOfTheChannel(t *testing.T) {
	const idle, connecting, ready, failing = connectivity.Idle, connectivity.Connecting, connectivity.Ready, connectivity.TransientFailure
	for _, c := range []struct {
		policy policyState
		conns  []connectivity.State
		want   connectivity.State
	}{
		{policyState{}, nil, connecting},
		{policyState{ready: true}, nil, idle},
		{policyState{err: errFake}, nil, failing},
		{policyState{ready: true, err: errFake}, nil, failing},
		{policyState{ready: true}, []connectivity.State{failing, failing}, failing},
		{policyState{ready: true}, []connectivity.State{failing, idle}, idle},
		{policyState{ready: true}, []connectivity.State{failing, connecting}, connecting},
		{policyState{ready: true}, []connectivity.State{failing, connecting, ready}, ready},
		{policyState{err: errFake}, []connectivity.State{ready, failing}, ready},
		{policyState{}, []connectivity.State{failing}, connecting},
	} {
		b, cc := fakeBalancer(t)
		for _, s := range c.conns {
			conn, _ := connected(b, &outbound.Endpoint{}, snapshot.Cluster{})
			conn.state.Store(uint32(s))
		}
		b.mu.Lock()
		b.policy = c.policy
		b.publish()
		b.mu.Unlock()
		cc.tells(t, "all of it", c.want)
	}
}

// TestFailingAddress: an endpoint whose name stands for another address than
// that of the connection which has failed is none to leave out.
func TestFailingAddress(t *testing.T) {
	b, _ := fakeBalancer(t)
	e := &outbound.Endpoint{Address: "192.0.2.1:80"}
	c, _ := connected(b, e, snapshot.Cluster{})
	for _, at := range []struct {
		address string
		state   connectivity.State
		want    bool
	}{
		{e.Address, connectivity.TransientFailure, true},
		{e.Address, connectivity.Ready, false},
		{"192.0.2.9:80", connectivity.TransientFailure, false},
	} {
		c.address = at.address
		c.state.Store(uint32(at.state))
		if got := b.failing(e); got != at.want {
			t.Errorf("%s, %v: failing %t", at.address, at.state, got)
		}
	}
}

// TestConnectionHoldsItsSource: as long as it is there, and not where it could not be made.
func TestConnectionHoldsItsSource(t *testing.T) {
	leak.Check(t)
	ca := newAuthority(t)
	var opened atomic.Int64
	w := newMeshWorld(t)
	secure := mcluster("c", "192.0.2.1:80")
	secure.TLS = mutualTLS(reviewsID)
	w.set([]*snapshot.Cluster{secure}, mroute(t, "c"))
	var call outbound.Call
	bareRequest(&call.Request, meshHost, "/")
	if err := w.engine.Decide(t.Context(), &call, meshHost, "http"); err != nil {
		t.Fatal(err)
	}
	var try outbound.Try
	if err := call.Begin(&try); err != nil {
		t.Fatal(err)
	}
	var l outbound.Lease
	if err := try.Pick(&l, nil); err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	held := func(want int64) {
		t.Helper()
		eventually(t, func() string {
			if opened.Load() != want {
				return "the source is held by others than the connections"
			}
			return ""
		})
	}
	b, cc := fakeBalancer(t)
	client := newMeshClient(w.engine, sharedSource(static(t, ca.material(t, ca.issue(t, webID))), &opened), nil)
	b.channel = &channel{client: client, authority: meshHost, own: true}
	b.mu.Lock()
	defer b.mu.Unlock()
	cc.refuses = true
	if _, err := b.open(&l, &call); err != balancer.ErrNoSubConnAvailable {
		t.Errorf("error %v", err)
	}
	held(0)
	cc.refuses = false
	c, err := b.open(&l, &call)
	if err != nil {
		t.Fatal(err)
	}
	held(1)
	c.shutdown()
	held(0)
}

// TestResolverKeepsItsHost: a channel's host counts as used until the channel is closed.
func TestResolverKeepsItsHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newMeshWorld(t)
		used := new(atomic.Bool)
		r := mroute(t, "c")
		w.engine.Install(&snapshot.Snapshot{
			Hosts:    map[string]*snapshot.Host{meshHost: {Name: meshHost, VirtualHost: &snapshot.VirtualHost{Routes: []snapshot.Route{r}}, Used: used}},
			Clusters: map[string]*snapshot.Cluster{"c": mcluster("c", deadAddress)},
		})
		_, conn := w.dial(t)
		conn.Connect()
		for _, open := range []bool{true, false} {
			if !open {
				conn.Close()
			}
			synctest.Wait()
			used.Store(false)
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			if used.Load() != open {
				t.Errorf("open %t: used %t", open, used.Load())
			}
		}
	})
}

// TestResolverMissesNoChange: policy that comes while the channel is told of the one before.
func TestResolverMissesNoChange(t *testing.T) {
	leak.Check(t)
	w := newMeshWorld(t)
	told := &toldChannel{}
	told.tell = func(n int) {
		if n < 5 {
			w.set([]*snapshot.Cluster{mcluster("c", deadAddress)}, mroute(t, "c"))
		}
	}
	key := outbound.HostKey(meshHost, "http")
	r := &resolving{
		channel: &channel{client: newMeshClient(w.engine, nil, nil), authority: meshHost}, cc: told,
		stop: w.engine.Watch(key), closed: make(chan struct{}), done: make(chan struct{}),
	}
	changed := w.engine.Changed()
	r.update(key)
	go r.run(key, changed)
	eventually(t, func() string {
		if told.times.Load() < 5 {
			return "the channel is not told of the last change"
		}
		return ""
	})
	r.Close()
}

// toldChannel is gRPC's side of a resolver.
type toldChannel struct {
	resolver.ClientConn
	times atomic.Int32
	tell  func(n int)
}

func (c *toldChannel) UpdateState(resolver.State) error {
	c.tell(int(c.times.Add(1)))
	return nil
}

func (*toldChannel) ParseServiceConfig(string) *serviceconfig.ParseResult { return nil }
