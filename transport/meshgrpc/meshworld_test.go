package meshgrpc

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/stats"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// meshWorld is an engine with policy of the test's.
type meshWorld struct {
	engine *outbound.Engine
	events *observed

	mu    sync.Mutex
	hosts map[string]*snapshot.Host
	all   map[string]*snapshot.Cluster
}

func newMeshWorld(t testing.TB) *meshWorld {
	w := &meshWorld{hosts: map[string]*snapshot.Host{}, all: map[string]*snapshot.Cluster{}, events: &observed{}}
	w.engine = outbound.New(outbound.Options{Subscribe: func(string) {}, Observer: w.events, PolicyWait: 10 * time.Second})
	t.Cleanup(w.engine.Close)
	return w
}

// observed counts what the engine tells.
type observed struct{ ends, retries, refused, calls atomic.Int64 }

func (*observed) Leg(outbound.LegInfo) any { return nil }
func (o *observed) CallStart(ctx context.Context, _ *outbound.Call) context.Context {
	o.calls.Add(1)
	return ctx
}
func (*observed) TryStart(ctx context.Context, _ *outbound.Try, _ *outbound.Endpoint) context.Context {
	return ctx
}
func (*observed) TryEnd(context.Context, *outbound.Try, *resilience.Outcome, time.Time) {}
func (o *observed) CallEnd(*outbound.Call, *resilience.Outcome, time.Duration) {
	o.ends.Add(1)
}
func (o *observed) Retry(_ *outbound.Call, refused string) {
	if refused == "" {
		o.retries.Add(1)
	} else {
		o.refused.Add(1)
	}
}
func (*observed) Ejection(string, string, string, bool) {}
func (*observed) Breaker(string, string)                {}

var noLimits = resilience.Limits{
	MaxConnections: resilience.NoLimit, MaxPendingRequests: resilience.NoLimit,
	MaxRequests: resilience.NoLimit, MaxRetries: resilience.NoLimit,
}

// mcluster is a cluster with round robin over the addresses.
func mcluster(name string, addresses ...string) *snapshot.Cluster {
	var all []lb.Endpoint
	for _, a := range addresses {
		all = append(all, lb.Endpoint{Address: a, Weight: 1})
	}
	return &snapshot.Cluster{
		Name: name, LB: lb.Policy{Kind: lb.RoundRobin}, Limits: noLimits, HighLimits: noLimits, HTTP2: true,
		ConnectTimeout: 5 * time.Second, Endpoints: lb.NewEndpoints(all, nil),
	}
}

func weighted(t testing.TB, all ...routing.WeightedCluster) routing.Weighted {
	t.Helper()
	w, err := routing.NewWeighted(all)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// mroute is a route for all paths to one cluster.
func mroute(t testing.TB, cluster string) snapshot.Route {
	return snapshot.Route{Name: cluster, Match: routing.Match{}, Clusters: weighted(t, routing.WeightedCluster{Name: cluster, Weight: 1})}
}

// set replaces the policy of "mesh.test:80".
func (w *meshWorld) set(clusters []*snapshot.Cluster, routes ...snapshot.Route) {
	w.mu.Lock()
	defer w.mu.Unlock()
	vh := &snapshot.VirtualHost{Name: "vh", Routes: routes}
	s := &snapshot.Snapshot{
		Hosts:    map[string]*snapshot.Host{meshHost: {Name: meshHost, VirtualHost: vh, Used: new(atomic.Bool)}},
		Clusters: map[string]*snapshot.Cluster{},
	}
	for _, c := range clusters {
		s.Clusters[c.Name] = c
	}
	w.engine.Install(s)
}

const meshHost = "mesh.test:80"

func (w *meshWorld) options(sources outbound.Sources) []grpc.DialOption {
	return DialOptions(ClientOptions{Outbound: w.engine, Sources: sources})
}

// dial returns a client of meshHost.
func (w *meshWorld) dial(t testing.TB, options ...grpc.DialOption) (pb.TestServiceClient, *grpc.ClientConn) {
	t.Helper()
	return dial(t, "mesh:///"+meshHost, append(w.options(nil), options...)...)
}

// quiet fails the test unless nothing is in flight.
func (w *meshWorld) quiet(t testing.TB) {
	t.Helper()
	eventually(t, func() string {
		for _, c := range w.engine.Status().Clusters {
			if c.Requests != 0 || c.Retries != 0 {
				return c.Name + " has requests in flight"
			}
			for _, e := range c.Endpoints {
				if e.Active != 0 {
					return e.Address + " has requests in flight"
				}
			}
		}
		return ""
	})
}

// eventually waits until check returns "".
func eventually(t testing.TB, check func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		said := check()
		if said == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(said)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// requests returns how many attempts each endpoint has had, by address.
func (w *meshWorld) requests() map[string]uint64 {
	n := map[string]uint64{}
	for _, c := range w.engine.Status().Clusters {
		for _, e := range c.Endpoints {
			n[e.Address] += e.Requests
		}
	}
	return n
}

func meshRetry(t testing.TB, conditions string, n uint32) *resilience.RetryPolicy {
	t.Helper()
	on, unknown := resilience.ParseRetryOn(conditions)
	if len(unknown) > 0 {
		t.Fatal(strings.Join(unknown, ","))
	}
	p := resilience.DefaultRetryPolicy(on)
	p.NumRetries, p.BaseInterval, p.MaxInterval = n, time.Millisecond, 2*time.Millisecond
	return &p
}

// deadAddress is one at which nobody listens: a port that was open and is
// closed may be another test's at any moment, and this one the kernel gives to nobody.
const deadAddress = "127.0.0.1:1"

func listen(t testing.TB) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return lis
}

// connCounter counts the connections of a server.
type connCounter struct{ opened, open atomic.Int64 }

func (*connCounter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (*connCounter) HandleRPC(context.Context, stats.RPCStats)                       {}
func (*connCounter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}
func (c *connCounter) HandleConn(_ context.Context, s stats.ConnStats) {
	switch s.(type) {
	case *stats.ConnBegin:
		c.opened.Add(1)
		c.open.Add(1)
	case *stats.ConnEnd:
		c.open.Add(-1)
	}
}

func asTimeout(err error, target **outbound.TimeoutError) bool { return errors.As(err, target) }
