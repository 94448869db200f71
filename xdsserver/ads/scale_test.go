package ads

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// fleet is n services with ten workloads each; workload 0 of service 0 has the address last.
func fleet(n int, last string) *policy.Set {
	p := &policy.Set{}
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		p.Services = append(p.Services, service(name, 80))
		for j := range 10 {
			w := workload(name, fmt.Sprint(j), fmt.Sprintf("10.%d.%d.%d", i/250, i%250, j), 80)
			if i == 0 && j == 0 {
				w.Address = last
			}
			p.Workloads = append(p.Workloads, w)
		}
	}
	return p
}

// crowd is many clients that each watch the endpoints of ten services.
type crowd struct {
	h       *harness
	streams []discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	got     chan string // names of resources that any client was sent
	close   func()
}

func startCrowd(t testing.TB, clients, services int) *crowd {
	c := &crowd{h: start(t, fleet(services, "10.0.0.1")), got: make(chan string, clients*16)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	c.close = func() { cancel(); running.Wait() }
	t.Cleanup(c.close)
	conns := make([]discoveryv3.AggregatedDiscoveryServiceClient, 10)
	for i := range conns {
		conns[i] = dial(t, c.h)
	}
	for i := range clients {
		s, err := conns[i%len(conns)].DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c.streams = append(c.streams, s)
		var names []string
		for j := range 10 {
			names = append(names, named(fmt.Sprintf("s%d", (i+j*services/10)%services)))
		}
		if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node("sinew"), TypeUrl: eds, ResourceNamesSubscribe: names}); err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			for {
				r, err := s.Recv()
				if err != nil {
					return
				}
				if s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: eds, ResponseNonce: r.GetNonce()}) != nil {
					return
				}
				for _, x := range r.GetResources() {
					select {
					case c.got <- x.GetName():
					case <-ctx.Done():
						return
					}
				}
			}
		})
	}
	for range clients * 10 {
		c.next(t)
	}
	c.settle(t, clients*10)
	return c
}

func (c *crowd) next(t testing.TB) string {
	select {
	case name := <-c.got:
		return name
	case <-time.After(6 * patience):
		t.Fatal("a client was not sent what it watches")
		return ""
	}
}

// settle waits until n resources are watched.
func (c *crowd) settle(t testing.TB, n int) {
	waitFor(t, func() bool {
		c.h.store.mu.Lock()
		defer c.h.store.mu.Unlock()
		watched := 0
		for _, e := range c.h.store.entries {
			watched += len(e.watches)
		}
		return watched == n
	})
}

// change moves one endpoint of service 0 and waits until the clients that watch it have it.
func (c *crowd) change(t testing.TB, concerned int, p *policy.Set) time.Duration {
	began := time.Now()
	c.h.SetPolicy(p)
	for range concerned {
		if got := c.next(t); got != named("s0") {
			t.Fatalf("%s was sent, which did not change", got)
		}
	}
	return time.Since(began)
}

// TestOneChangeAmongMany moves one endpoint among many services and clients.
func TestOneChangeAmongMany(t *testing.T) {
	const clients, services = 200, 200
	c := startCrowd(t, clients, services)
	for i := range 3 {
		took := c.change(t, clients*10/services, fleet(services, fmt.Sprintf("10.9.9.%d", i)))
		t.Logf("%d clients of 10 services: one endpoint reached the %d concerned in %v", clients, clients*10/services, took)
		c.settle(t, clients*10)
	}
	select {
	case name := <-c.got:
		t.Errorf("%s was sent to a client that it does not concern", name)
	default:
	}
}

// BenchmarkOneChange is the time from a policy in which one endpoint moved to
// the last of the clients that watch it, with 1,000 clients of 10 out of 1,000 services.
func BenchmarkOneChange(b *testing.B) {
	const clients, services = 1000, 1000
	c := startCrowd(b, clients, services)
	for i := range b.N {
		b.StopTimer()
		c.settle(b, clients*10)
		p := fleet(services, fmt.Sprintf("10.9.%d.%d", i/250%250, i%250))
		b.StartTimer()
		c.change(b, clients*10/services, p)
	}
	b.StopTimer()
	c.close()
}

// TestManyChangesAtOnce changes policy while clients come, ask, drop and go;
// each that stays ends with the last policy. It is for the race detector too.
func TestManyChangesAtOnce(t *testing.T) {
	h := start(t, fleet(20, "10.0.0.1"))
	var changing sync.WaitGroup
	changing.Go(func() {
		for i := range 100 {
			h.SetPolicy(fleet(20, fmt.Sprintf("10.9.9.%d", i)))
			h.Status()
		}
	})
	final := make([]string, 8)
	var clients sync.WaitGroup
	for i := range final {
		c := openDelta(t, h, node("sinew"))
		clients.Go(func() {
			fail := func(err error) bool {
				if err != nil {
					t.Error(err)
				}
				return err != nil
			}
			known := map[string]string{}
			for round := range 50 {
				req := &discoveryv3.DeltaDiscoveryRequest{Node: c.node, TypeUrl: eds, ResourceNamesSubscribe: []string{named("s0"), named(fmt.Sprintf("s%d", round%20))}}
				if round%3 == 2 {
					req.ResourceNamesUnsubscribe = []string{named(fmt.Sprintf("s%d", 1+round%19))}
				}
				c.node = nil
				if fail(c.stream.Send(req)) {
					return
				}
				r, err := c.stream.Recv()
				if fail(err) {
					return
				}
				for _, x := range r.GetResources() {
					known[x.GetName()] = x.GetVersion()
				}
				if fail(c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: eds, ResponseNonce: r.GetNonce()})) {
					return
				}
			}
			changing.Wait()
			// Read what is on its way: up to the answer to a question, until nothing comes before it.
			for quiet := false; !quiet; {
				if fail(c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: lds, ResourceNamesSubscribe: []string{"s0:80"}})) {
					return
				}
				for quiet = true; ; quiet = false {
					r, err := c.stream.Recv()
					if fail(err) {
						return
					}
					if r.GetTypeUrl() == lds {
						break
					}
					for _, x := range r.GetResources() {
						known[x.GetName()] = x.GetVersion()
					}
					if fail(c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: eds, ResponseNonce: r.GetNonce()})) {
						return
					}
				}
			}
			final[i] = known[named("s0")]
		})
	}
	clients.Wait()
	c := openDelta(t, h, node("sinew"))
	c.subscribe(eds, named("s0"))
	want := c.expect("ClusterLoadAssignment: s0").GetResources()[0].GetVersion()
	for i, got := range final {
		if got != want {
			t.Errorf("client %d ended with %s, want %s", i, got, want)
		}
	}
}
