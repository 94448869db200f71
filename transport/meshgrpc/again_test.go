package meshgrpc

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
)

// attempts tells of each attempt of a call when its route is chosen.
type attempts struct {
	stats.Handler
	n     atomic.Int64
	begun chan struct{}
}

func (*attempts) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*attempts) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*attempts) HandleConn(context.Context, stats.ConnStats)                       {}
func (a *attempts) HandleRPC(_ context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.Begin); ok {
		a.n.Add(1)
		a.begun <- struct{}{}
	}
}

// later is a listener that closes what it accepts until it is open. Its port is
// its own meanwhile, which one that is closed and opened again might lose.
type later struct {
	net.Listener
	open atomic.Bool
}

func (l *later) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || l.open.Load() {
			return conn, err
		}
		conn.Close()
	}
}

// TestCallsThatBeginBeforePolicy: calls that wait for readiness while the
// control plane can not be reached are made, once each, when it can.
func TestCallsThatBeginBeforePolicy(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", nil)
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, to("c")), cluster("c", b.address))...)
	lis := &later{Listener: listen(t)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = cp.server.Serve(lis)
	}()
	defer func() {
		cp.stop()
		<-served
	}()
	seen := &attempts{begun: make(chan struct{}, 16)}
	c, conn := dial(t, "xds:///"+host, append(DialOptions(ClientOptions{Bootstrap: bootstrapFor(lis.Addr().String())}), grpc.WithStatsHandler(seen))...)
	ctx := testContext(t)
	conn.Connect()
	for s := conn.GetState(); s != connectivity.TransientFailure; s = conn.GetState() {
		if !conn.WaitForStateChange(ctx, s) {
			t.Fatal("the channel does not fail")
		}
	}
	answers := make(chan error, 2)
	go func() {
		_, err := c.UnaryCall(ctx, &pb.SimpleRequest{}, grpc.WaitForReady(true))
		answers <- err
	}()
	go func() {
		s, err := c.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{}, grpc.WaitForReady(true))
		if err == nil {
			_, err = s.Recv()
		}
		answers <- err
	}()
	<-seen.begun
	<-seen.begun
	_, err := c.UnaryCall(ctx, &pb.SimpleRequest{}) // does not wait
	wantCode(t, err, codes.Unavailable)

	lis.open.Store(true)
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if n := b.calls.Load(); n != 2 {
		t.Errorf("the backend had %d calls, want each once", n)
	}
	if n := seen.n.Load(); n != 5 {
		t.Errorf("%d attempts, want two for each call that waited", n)
	}
}

// TestOnlyUnroutedCallsAreMadeAgain: neither a call that has chosen a cluster,
// nor one that a server has answered with the same words.
func TestOnlyUnroutedCallsAreMadeAgain(t *testing.T) {
	leak.Check(t)
	text := unknownCluster + `: ""`
	for message, want := range map[string]bool{
		text:                                   true,
		unknownCluster + `: "cluster:c"`:       false,
		"unknown cluster selected: " + `x: ""`: false,
	} {
		if got := again(t.Context(), 0, unrouted(status.Error(codes.Unavailable, message))); got != want {
			t.Errorf("%q: %v", message, got)
		}
	}
	if err := unrouted(status.Error(codes.Unavailable, text)); status.Code(err) != codes.Unavailable || again(t.Context(), maxAgain, err) {
		t.Errorf("%v: must be Unavailable, and not be made again for ever", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if again(ended, 0, unrouted(status.Error(codes.Unavailable, text))) {
		t.Error("a call whose context has ended is made again")
	}

	b := newBackend(t, "b", func(context.Context, int64) error { return status.Error(codes.Unavailable, text) })
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, to("c")), cluster("c", b.address))...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	for i, k := range kinds {
		wantCode(t, k.call(testContext(t), c), codes.Unavailable)
		if n := b.calls.Load(); n != int64(i+1) {
			t.Errorf("%s: %d calls", k.name, n)
		}
	}
}
