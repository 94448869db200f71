package meshgrpc

//lint:file-ignore SA1019 grpc-go reads Envoy's deprecated fields.

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/leak"
)

const host = "reviews:9080"

func unary(t testing.TB, ctx context.Context, c pb.TestServiceClient) string {
	t.Helper()
	r, err := c.UnaryCall(ctx, &pb.SimpleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Hostname
}

func TestWeights(t *testing.T) {
	leak.Check(t)
	a, b := newBackend(t, "a", nil), newBackend(t, "b", nil)
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, with(to(""), func(r *routev3.RouteAction) {
		r.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{
			Clusters: []*routev3.WeightedCluster_ClusterWeight{
				{Name: "a", Weight: wrapperspb.UInt32(90)},
				{Name: "b", Weight: wrapperspb.UInt32(10)},
			},
		}}
	})), cluster("a", a.address), cluster("b", b.address))...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	ctx := testContext(t)
	const n = 4000
	got := map[string]int{}
	for range n {
		got[unary(t, ctx, c)]++
	}
	// Four standard deviations of a binomial: one run in 16,000 may fail by chance.
	if limit := 4 * math.Sqrt(n*0.9*0.1); math.Abs(float64(got["b"])-n*0.1) > limit {
		t.Errorf("got %v of %d, want 10 %% for b within %.0f", got, n, limit)
	}
}

func TestRoutes(t *testing.T) {
	leak.Check(t)
	v1, v2 := newBackend(t, "v1", nil), newBackend(t, "v2", nil)
	cp := newControlPlane(t)
	beta := to("v2")
	beta.Match.Headers = []*routev3.HeaderMatcher{{
		Name:                 "x-user",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_ExactMatch{ExactMatch: "beta"},
	}}
	input := to("v2")
	input.Match.PathSpecifier = &routev3.RouteMatch_Path{Path: pb.TestService_StreamingInputCall_FullMethodName}
	cp.set(t, join(listener(host, 0), routes(host, beta, input, to("v1")), cluster("v1", v1.address), cluster("v2", v2.address))...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	ctx := testContext(t)

	if got := unary(t, ctx, c); got != "v1" {
		t.Errorf("without the header: %s", got)
	}
	if got := unary(t, metadata.AppendToOutgoingContext(ctx, "x-user", "beta"), c); got != "v2" {
		t.Errorf("with the header: %s", got)
	}
	if got := unary(t, metadata.AppendToOutgoingContext(ctx, "x-user", "beta2"), c); got != "v1" {
		t.Errorf("with another value: %s", got)
	}
	for _, k := range kinds {
		was1, was2 := v1.calls.Load(), v2.calls.Load()
		if err := k.call(ctx, c); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
		want1, want2 := was1+1, was2
		if k.name == "client streaming" { // the method that the second route names
			want1, want2 = was1, was2+1
		}
		if g1, g2 := v1.calls.Load(), v2.calls.Load(); g1 != want1 || g2 != want2 {
			t.Errorf("%s: calls %d and %d, want %d and %d", k.name, g1, g2, want1, want2)
		}
	}
}

func unavailable(context.Context, int64) error { return status.Error(codes.Unavailable, "overloaded") }

func retryOn(on string, n uint32) func(*routev3.RouteAction) {
	return func(r *routev3.RouteAction) {
		r.RetryPolicy = &routev3.RetryPolicy{
			RetryOn: on, NumRetries: wrapperspb.UInt32(n),
			RetryBackOff: &routev3.RetryPolicy_RetryBackOff{
				BaseInterval: durationpb.New(time.Millisecond), MaxInterval: durationpb.New(time.Millisecond),
			},
		}
	}
}

func TestRetryHidesAFailingBackend(t *testing.T) {
	leak.Check(t)
	good, bad := newBackend(t, "good", nil), newBackend(t, "bad", unavailable)
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, with(to("c"), retryOn("unavailable", 1))), cluster("c", good.address, bad.address))...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	checkRetryHides(t, c, good, bad)
}

// checkRetryHides asserts that with one retry every call gets past the bad backend to the good one.
func checkRetryHides(t *testing.T, c pb.TestServiceClient, good, bad *backend) {
	t.Helper()
	ctx := testContext(t)
	// Until both are connected, the retry may meet the same backend.
	for good.calls.Load() == 0 || bad.calls.Load() == 0 {
		if err := kinds[0].call(ctx, c); err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
	}
	before := bad.calls.Load()
	for i := range 40 {
		k := kinds[i%len(kinds)]
		if err := k.call(ctx, c); err != nil {
			t.Fatalf("call %d (%s): %v", i, k.name, err)
		}
	}
	if bad.calls.Load() == before {
		t.Error("the failing backend was not tried")
	}
}

func TestRetryIsNotClampedAndHasNoBudget(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", unavailable)
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, with(to("c"), retryOn("unavailable", 9))), cluster("c", b.address))...)
	// The default policy's attempts and budget are not the route's.
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap(), Default: &DefaultPolicy{Retries: 1, RetryMin: 1}})...)
	ctx := testContext(t)
	for range 3 {
		wantCode(t, kinds[0].call(ctx, c), codes.Unavailable)
	}
	if got := b.calls.Load(); got != 30 {
		t.Errorf("%d attempts, want 3 calls of 10", got)
	}
}

func TestOtherRetryConditionsAreIgnored(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", unavailable)
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, with(to("c"), retryOn("5xx,connect-failure,reset", 3))), cluster("c", b.address))...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap(), Default: &DefaultPolicy{Retries: 2}})...)
	wantCode(t, kinds[0].call(testContext(t), c), codes.Unavailable)
	if got := b.calls.Load(); got != 1 {
		t.Errorf("%d attempts, want 1", got)
	}
}

func TestTimeouts(t *testing.T) {
	leak.Check(t)
	const short = 10 * time.Millisecond
	for _, tt := range []struct {
		name     string
		listener time.Duration
		change   func(*routev3.RouteAction)
		limited  bool
	}{
		{name: "max_stream_duration of the route", limited: true, change: func(r *routev3.RouteAction) {
			r.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(short)}
		}},
		{name: "grpc_timeout_header_max goes first", limited: true, change: func(r *routev3.RouteAction) {
			r.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{
				MaxStreamDuration: durationpb.New(time.Hour), GrpcTimeoutHeaderMax: durationpb.New(short),
			}
		}},
		{name: "max_stream_duration of the listener", limited: true, listener: short, change: func(*routev3.RouteAction) {}},
		{name: "the route's zero lifts the listener's", listener: short, change: func(r *routev3.RouteAction) {
			r.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(0)}
		}},
		{name: "timeout of the route is ignored", change: func(r *routev3.RouteAction) { r.Timeout = durationpb.New(short) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, "b", func(ctx context.Context, _ int64) error {
				if tt.limited {
					<-ctx.Done()
					return ctx.Err()
				}
				return noDeadline(ctx)
			})
			cp := newControlPlane(t)
			cp.set(t, join(listener(host, tt.listener), routes(host, with(to("c"), tt.change)), cluster("c", b.address))...)
			// The default policy's limit does not reach a target of xDS.
			c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap(), Default: &DefaultPolicy{Timeout: time.Nanosecond}})...)
			for _, k := range kinds {
				want := codes.OK
				if tt.limited {
					want = codes.DeadlineExceeded
				}
				wantCode(t, k.call(unlimited(t), c), want)
			}
		})
	}
}

// noDeadline is an error if the caller has sent a deadline.
func noDeadline(ctx context.Context) error {
	if d, ok := ctx.Deadline(); ok {
		return status.Errorf(codes.FailedPrecondition, "deadline in %s", time.Until(d))
	}
	return nil
}

// unlimited is a context without a deadline.
func unlimited(t testing.TB) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return ctx
}

func TestMaxRequests(t *testing.T) {
	leak.Check(t)
	entered := make(chan struct{})
	b := newBackend(t, "b", func(ctx context.Context, _ int64) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	cp := newControlPlane(t)
	c := cluster("c", b.address)
	c[0].(*clusterv3.Cluster).CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxRequests: wrapperspb.UInt32(1),
	}}}
	cp.set(t, join(listener(host, 0), routes(host, to("c")), c)...)
	client, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	ctx := testContext(t)
	first, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- kinds[0].call(first, client) }()
	<-entered
	err := kinds[0].call(ctx, client)
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), "max requests") {
		t.Errorf("%v does not name the limit", err)
	}
	cancel()
	wantCode(t, <-done, codes.Canceled)
}

func TestControlPlaneAbsent(t *testing.T) {
	leak.Check(t)
	for _, p := range []*DefaultPolicy{nil, {Retries: 2}} {
		c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: bootstrapFor(deadAddress), Default: p})...)
		for _, k := range kinds {
			err := k.call(testContext(t), c)
			wantCode(t, err, codes.Unavailable)
			if !strings.Contains(err.Error(), deadAddress) {
				t.Errorf("%s: %v does not name the server", k.name, err)
			}
		}
	}
}

func TestUnknownHost(t *testing.T) {
	leak.Check(t)
	cp := newControlPlane(t)
	// Of the asked-for listener nothing is said but that it is not among all that there are.
	b := newBackend(t, "b", nil)
	cp.set(t, join(listener(host, 0), routes(host, to("c")), cluster("c", b.address))...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap(), Default: &DefaultPolicy{Retries: 2}})...)
	ctx := testContext(t)
	if got := unary(t, ctx, c); got != "b" {
		t.Fatal(got)
	}
	cp.set(t)
	for {
		_, err := c.UnaryCall(ctx, &pb.SimpleRequest{})
		if err == nil {
			continue // the deletion has not arrived
		}
		wantCode(t, err, codes.Unavailable)
		// The cluster went at the same time; the last word is the host's.
		if !strings.Contains(err.Error(), "has been removed") {
			t.Fatalf("%v does not say why", err)
		}
		if strings.Contains(err.Error(), host) {
			break
		}
	}
	cp.set(t, join(listener(host, 0), routes(host, to("c")), cluster("c", b.address))...)
	for {
		if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{}); err == nil {
			return
		} else if status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
	}
}

func TestRefusedPolicy(t *testing.T) {
	leak.Check(t)
	cp := newControlPlane(t)
	b := newBackend(t, "b", nil)
	bad := cluster("c", b.address)
	bad[0].(*clusterv3.Cluster).LbPolicy = clusterv3.Cluster_MAGLEV
	cp.set(t, join(listener(host, 0), routes(host, to("c")), bad)...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	err := kinds[0].call(testContext(t), c)
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), "MAGLEV") {
		t.Errorf("%v does not say what is wrong", err)
	}
	if nack := <-cp.nacks; !strings.Contains(nack, "MAGLEV") {
		t.Errorf("NACK %q", nack)
	}
}

func TestControlPlaneLost(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", nil)
	cp := newControlPlane(t)
	cp.set(t, join(listener(host, 0), routes(host, to("c")), cluster("c", b.address))...)
	c, conn := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	// The same with gRPC's own idleness, which forgets policy.
	idle, idleConn := dial(t, "xds:///"+host, append(DialOptions(ClientOptions{Bootstrap: cp.bootstrap()}), grpc.WithIdleTimeout(20*time.Millisecond))...)
	ctx := testContext(t)
	unary(t, ctx, c)
	unary(t, ctx, idle)
	if got := cp.streams.Load(); got != 2 {
		t.Errorf("%d ADS streams for two channels", got)
	}
	cp.stop()
	for range 25 {
		for _, k := range kinds {
			if err := k.call(ctx, c); err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
		}
	}
	for s := idleConn.GetState(); s != connectivity.Idle; s = idleConn.GetState() {
		if !idleConn.WaitForStateChange(ctx, s) {
			t.Fatal("never idle")
		}
	}
	wantCode(t, kinds[0].call(ctx, idle), codes.Unavailable)
	if s := conn.GetState(); s != connectivity.Ready {
		t.Errorf("state %v", s)
	}
	unary(t, ctx, c)
}

func TestPolicyChangesWhileCallsRun(t *testing.T) {
	leak.Check(t)
	a, b := newBackend(t, "a", nil), newBackend(t, "b", nil)
	cp := newControlPlane(t)
	clusters := join(cluster("a", a.address), cluster("b", b.address))
	cp.set(t, join(listener(host, 0), routes(host, to("a")), clusters)...)
	c, _ := dial(t, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	ctx := testContext(t)
	if got := unary(t, ctx, c); got != "a" {
		t.Fatal(got)
	}
	s, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() {
		t.Helper()
		if err := s.Send(&pb.StreamingOutputCallRequest{}); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Recv(); err != nil || string(r.Payload.Body) != "a" {
			t.Fatalf("%v %v", r, err)
		}
	}
	exchange()
	cp.set(t, join(listener(host, 0), routes(host, to("b")), clusters)...)
	for unary(t, ctx, c) != "b" { // no call fails in between
	}
	exchange() // the stream stays where it began
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
}
