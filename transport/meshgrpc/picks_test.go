package meshgrpc

import (
	"testing"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// picking is an attempt at an RPC whose endpoint gRPC is about to pick, on
// connections that nobody makes.
type picking struct {
	*meshWorld
	b *meshBalancer
	r *rpc
	a *attempt
}

func newPicking(t *testing.T, route snapshot.Route, addresses ...string) *picking {
	t.Helper()
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c", addresses...)}, route)
	p := &picking{meshWorld: w, r: &rpc{}}
	p.b, _ = fakeBalancer(t)
	p.b.channel = &channel{client: newMeshClient(w.engine, nil, nil), authority: meshHost, own: true}
	p.b.channel.generation.Store(1)
	p.r.client, p.r.authority, p.r.method, p.r.parent = p.b.channel.client, meshHost, "/a.B/C", t.Context()
	p.r.begin()
	if _, err := p.r.decide(); err != nil {
		t.Fatal(err)
	}
	p.a = newAttempt(p.r, outbound.Try{})
	p.a.above = p.r.ctx
	if err := p.r.call.Begin(&p.a.try); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := p.a.prepare(p.r.ctx, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.a.release()
		p.r.end(&resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
		w.quiet(t)
	})
	return p
}

// pick picks on connections that are ready.
func (p *picking) pick(t *testing.T) (*choice, balancer.PickResult) {
	t.Helper()
	if _, err := p.a.pick(p.b, p.a.turn); err != balancer.ErrNoSubConnAvailable {
		t.Fatalf("without a connection: %v", err)
	}
	for _, c := range *p.b.index.Load() {
		p.b.changed(c, balancer.SubConnState{ConnectivityState: connectivity.Ready})
	}
	r, err := p.a.pick(p.b, p.a.turn)
	if err != nil {
		t.Fatal(err)
	}
	return p.a.taken, r
}

const first, second = "192.0.2.1:80", "192.0.2.2:80"

// TestPickIsOfTheAttempt: whoever comes with the context of an attempt that has
// ended, or whose memory is another's by now, gets no connection.
func TestPickIsOfTheAttempt(t *testing.T) {
	p := newPicking(t, mroute(t, "c"), first)
	if _, err := p.a.pick(p.b, p.a.turn+1); err != errEnded {
		t.Errorf("another turn: %v", err)
	}
	_, r := p.pick(t)
	r.Done(balancer.DoneInfo{BytesSent: true, BytesReceived: true})
	p.a.release()
	if _, err := p.a.pick(p.b, p.a.turn); err != errEnded {
		t.Errorf("given back: %v", err)
	}
}

// TestPickLeavesWhatHasLeft: an endpoint that leaves while the RPC waits for a
// connection to it is let go of.
func TestPickLeavesWhatHasLeft(t *testing.T) {
	p := newPicking(t, mroute(t, "c"), first)
	before := p.a.next
	p.set([]*snapshot.Cluster{mcluster("c", second)}, mroute(t, "c"))
	c, r := p.pick(t)
	if before.lease.Endpoint() != nil {
		t.Error("the one that has left is held")
	}
	if c.lease.Endpoint().Address != second {
		t.Errorf("picked %s", c.lease.Endpoint().Address)
	}
	r.Done(balancer.DoneInfo{BytesSent: true, BytesReceived: true})
}

// TestPickThatIsNotUsed: gRPC gives back a connection that went before it was
// used, and picks again.
func TestPickThatIsNotUsed(t *testing.T) {
	p := newPicking(t, mroute(t, "c"), first)
	c, r := p.pick(t)
	conn := c.conn
	if conn.active.Load() != 1 || conn.requests.Load() != 1 {
		t.Fatal("it is not counted")
	}
	r.Done(balancer.DoneInfo{})
	if conn.active.Load() != 0 || conn.requests.Load() != 0 || p.a.taken != nil || p.a.next != c {
		t.Errorf("%d active, %d requests, next %v", conn.active.Load(), conn.requests.Load(), p.a.next)
	}
	again, r := p.pickReady(t)
	if again != c {
		t.Error("another endpoint is picked")
	}
	r.Done(balancer.DoneInfo{BytesSent: true, BytesReceived: true})
}

func (p *picking) pickReady(t *testing.T) (*choice, balancer.PickResult) {
	t.Helper()
	r, err := p.a.pick(p.b, p.a.turn)
	if err != nil {
		t.Fatal(err)
	}
	return p.a.taken, r
}

// TestAttemptThatGRPCKeeps: an attempt is given back while gRPC still has its
// stream; the endpoint is held until that ends too. Its own time limits end at once.
func TestAttemptThatGRPCKeeps(t *testing.T) {
	p := newPicking(t, mroute(t, "c"), first)
	limited := p.a.limit(t.Context(), time.Hour, 0)
	c, r := p.pick(t)
	p.a.release()
	if c.lease.Endpoint() == nil {
		t.Error("the endpoint counts as free")
	}
	if limited.Err() == nil {
		t.Error("the time limit goes on")
	}
	r.Done(balancer.DoneInfo{BytesSent: true, BytesReceived: true})
	if c.lease.Endpoint() != nil {
		t.Error("the endpoint is held")
	}
	if n := p.requests()[first]; n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestAttemptIsUsedAgain: only where gRPC has picked once, and has let go.
func TestAttemptIsUsedAgain(t *testing.T) {
	for _, c := range []struct {
		name         string
		twice, ended bool
	}{{"once, not ended", false, false}, {"twice, ended", true, true}, {"once, ended", false, true}} {
		p := newPicking(t, mroute(t, "c"), first)
		conn, err := p.b.connection(&p.a.next.lease, p.r.call)
		if err != nil {
			t.Fatal(err)
		}
		conn.state.Store(uint32(connectivity.Ready))
		chosen, r := p.pickReady(t)
		if c.twice {
			r.Done(balancer.DoneInfo{})
			chosen, r = p.pickReady(t)
		}
		done := balancer.DoneInfo{BytesSent: true, BytesReceived: true}
		if c.ended {
			r.Done(done)
		}
		turn := p.a.turn
		chosen.lease.Release()
		want := c.ended && !c.twice
		if got := p.a.recycle(); got != want || (p.a.turn != turn) != want {
			t.Errorf("%s: %t, turn %d after %d", c.name, got, p.a.turn, turn)
		}
		if !c.ended {
			r.Done(done)
		}
	}
}

// TestSendsSame: what another endpoint is sent, against what was prepared. The
// time that is left is another each time and makes no difference.
func TestSendsSame(t *testing.T) {
	route := mroute(t, "c")
	route.Timeout = time.Minute
	p := newPicking(t, route, first)
	prepared := p.a.out
	if len(prepared.Header[expectedTimeout]) != 1 {
		t.Fatalf("header %v", prepared.Header)
	}
	for _, c := range []struct {
		name, value string
		want        bool
	}{{"", "", true}, {expectedTimeout, "61000", true}, {"x-of-the-other", "1", false}, {"content-type", "text/plain", false}} {
		header := make(map[string][]string)
		for name, values := range prepared.Header {
			header[name] = values
		}
		if c.name != "" {
			header[c.name] = []string{c.value}
		}
		p.a.out = prepared
		p.a.out.Header = header
		if got := p.a.sendsSame(); got != c.want {
			t.Errorf("%s: %q: the same %t", c.name, c.value, got)
		}
	}
}
