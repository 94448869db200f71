package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
)

func TestNoCallFailsWhenARouteMovesToANewCluster(t *testing.T) {
	leak.Check(t)
	// Enough moves that without the settling balancer hundreds of calls fail in nearly every run.
	const moves, callers = 40, 4
	backends := []*backend{newBackend(t, "even", nil), newBackend(t, "odd", nil)}
	cp := newControlPlane(t)
	clusters := cluster("c0", backends[0].address)
	cp.set(t, join(listener(host, 0), routes(host, to("c0")), clusters)...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	ctx := testContext(t)
	unary(t, ctx, c)

	var failed atomic.Pointer[error]
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for !stop.Load() {
				// gRPC takes an answer to its last request but one, which lacks the newest
				// cluster, for the removal of that cluster.
				if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{}); err != nil && !strings.Contains(err.Error(), "has been removed") {
					failed.Store(&err)
				}
			}
		})
	}
	for i := range moves {
		b, name := backends[(i+1)%2], fmt.Sprintf("c%d", i+1)
		// Former clusters stay: one that the control plane removes fails the calls that are on their way to it.
		clusters = append(clusters, cluster(name, b.address)...)
		cp.set(t, join(listener(host, 0), routes(host, to(name)), clusters)...)
		for ctx.Err() == nil {
			if r, err := c.UnaryCall(ctx, &pb.SimpleRequest{}); err == nil && r.Hostname == b.name {
				break // the route is in force
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	if err := failed.Load(); err != nil {
		t.Error(*err)
	}
}

type fixedPicker struct{ err error }

func (p fixedPicker) Pick(balancer.PickInfo) (balancer.PickResult, error) {
	return balancer.PickResult{}, p.err
}

func TestSettlingPicker(t *testing.T) {
	other, drop := errors.New("no connection"), status.Error(codes.Unavailable, "dropped")
	unknown := status.Errorf(codes.Unavailable, "unknown cluster selected for RPC: %q", "cluster:a")
	for _, tt := range []struct {
		name            string
		err, want       error
		updating, older bool
	}{
		{name: "success"},
		{name: "another error", err: other, want: other, updating: true, older: true},
		{name: "another status", err: drop, want: drop, updating: true, older: true},
		{name: "no connection yet", err: balancer.ErrNoSubConnAvailable, want: balancer.ErrNoSubConnAvailable},
		{name: "unknown during an update", err: unknown, want: balancer.ErrNoSubConnAvailable, updating: true},
		{name: "unknown to an older picker", err: unknown, want: balancer.ErrNoSubConnAvailable, older: true},
		// It must not wait: nothing says that there will be another picker.
		{name: "unknown for good", err: unknown, want: unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			shared := new(settling)
			shared.updating.Store(tt.updating)
			cc := &recordingConn{}
			conn := &settlingConn{ClientConn: cc}
			conn.shared.Store(shared)
			conn.UpdateState(balancer.State{Picker: fixedPicker{tt.err}})
			p := *cc.picker.Load()
			if tt.older {
				conn.UpdateState(balancer.State{Picker: fixedPicker{}})
			}
			if _, err := p.Pick(balancer.PickInfo{}); err != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// A call that waited and whose cluster stays unknown gets the error when the update has settled.
func TestSettlingEndsTheWaiting(t *testing.T) {
	unknown := status.Errorf(codes.Unavailable, "unknown cluster selected for RPC: %q", "c")
	cc := &recordingConn{}
	conn := &settlingConn{ClientConn: cc}
	shared := new(settling)
	conn.shared.Store(shared)
	shared.balancer.Store(conn)
	conn.UpdateState(balancer.State{Picker: fixedPicker{unknown}})
	first := *cc.picker.Load()
	channel := &settlingChannel{ClientConn: updateFunc(func() {
		if _, err := first.Pick(balancer.PickInfo{}); err != balancer.ErrNoSubConnAvailable {
			t.Errorf("during the update: %v", err)
		}
	}), shared: shared}
	if err := channel.UpdateState(resolver.State{}); err != nil {
		t.Fatal(err)
	}
	second := *cc.picker.Load()
	if second == first {
		t.Fatal("no new picker, so the call waits for ever")
	}
	if _, err := second.Pick(balancer.PickInfo{}); err != unknown {
		t.Errorf("after the update: %v", err)
	}
}

// updateChannel is a channel that runs a function for each update.
type updateChannel struct {
	resolver.ClientConn
	f func()
}

func updateFunc(f func()) resolver.ClientConn { return updateChannel{f: f} }

func (c updateChannel) UpdateState(resolver.State) error {
	c.f()
	return nil
}

// The text of the error is gRPC's; this fails where another version words it differently.
func TestSettlingKnowsTheError(t *testing.T) {
	b := balancer.Get(clusterManager)
	if b == nil || balancer.Get(settlingManager) == nil {
		t.Fatal("no such balancer")
	}
	cc := &recordingConn{}
	bal := b.Build(cc, balancer.BuildOptions{})
	defer bal.Close()
	config, err := b.(balancer.ConfigParser).ParseConfig([]byte(`{"children":{"x":{"childPolicy":[{"round_robin":{}}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = bal.UpdateClientConnState(balancer.ClientConnState{BalancerConfig: config}) // round_robin has no address
	p := cc.picker.Load()
	if p == nil {
		t.Fatal("no picker")
	}
	if _, err := (*p).Pick(balancer.PickInfo{Ctx: context.Background()}); !isUnknownCluster(err) {
		t.Errorf("a call to an unknown cluster: %v", err)
	}
}

type recordingConn struct {
	balancer.ClientConn
	picker atomic.Pointer[balancer.Picker]
}

func (c *recordingConn) UpdateState(s balancer.State) { c.picker.Store(&s.Picker) }
