package ads

import (
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

func TestDeltaAnswersAtOnce(t *testing.T) {
	c := openDelta(t, start(t, set(t)), node("sinew"))
	c.subscribe(lds, "a:80", "unknown:80")
	c.expect("Listener: a:80 -unknown:80")
	c.subscribe(rds, named("a"), "nonsense")
	c.expect("RouteConfiguration: a -nonsense")
	// Another name at an unchanged version.
	c.subscribe(lds, "b:80")
	c.expect("Listener: b:80")
	// The same names again: the client may have dropped them.
	c.subscribe(lds, "a:80", "unknown:80")
	c.expect("Listener: a:80 -unknown:80")
	// Away and back.
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: lds, ResourceNamesUnsubscribe: []string{"a:80"}})
	c.subscribe(lds, "a:80")
	c.expect("Listener: a:80")
	// A type that is not served.
	c.subscribe("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "default")
	c.expect("Secret: -default")
	c.subscribe("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "default")
	c.expect("Secret: -default")
}

func TestStateAnswersAtOnce(t *testing.T) {
	c := openState(t, start(t, set(t)), node("gRPC Go"))
	c.want(lds, "unknown:80")
	c.expect("Listener:")
	c.want(lds, "unknown:80", "a:80")
	c.expect("Listener: a:80")
	c.want(lds, "a:80", "b:80") // the response holds them all: absence would delete
	c.expect("Listener: a:80 b:80")
	c.want(rds, named("a"))
	c.expect("RouteConfiguration: a")
	c.want(rds, named("a"), named("b"))
	c.expect("RouteConfiguration: b") // what has not changed need not come again
	// Dropped and asked for again, at an unchanged version.
	c.want(rds, named("b"))
	c.want(rds, named("a"), named("b"))
	c.expect("RouteConfiguration: a")
}

// TestStateReconnect opens a second stream as a client does that has everything.
func TestStateReconnect(t *testing.T) {
	h := start(t, set(t))
	c := openState(t, h, node("gRPC Go"))
	c.want(lds, "a:80")
	version := c.expect("Listener: a:80").GetVersionInfo()
	again := openState(t, h, node("gRPC Go"))
	again.version[lds] = version
	again.want(lds, "a:80")
	if got := again.expect("Listener: a:80").GetVersionInfo(); got != version {
		t.Errorf("version %q, before %q", got, version)
	}
}

// TestDeltaReconnect says with initial_resource_versions what the client has from its last stream.
func TestDeltaReconnect(t *testing.T) {
	first := start(t, set(t))
	c := openDelta(t, first, node("sinew"))
	c.subscribe(eds, named("a"), named("b"))
	r := c.expect("ClusterLoadAssignment: a b")
	have := map[string]string{}
	for _, x := range r.GetResources() {
		have[x.GetName()] = x.GetVersion()
	}
	have[named("gone")] = "1"

	// Another server: versions are of content, so they mean the same there.
	p := set(t)
	p.Workloads[0] = workload("a", "v1", "10.0.0.77", 80)
	c = openDelta(t, start(t, p), node("sinew"))
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{named("a"), named("b"), named("gone")}, InitialResourceVersions: have})
	c.expect("ClusterLoadAssignment: a -gone")
	// Nothing else was due.
	c.subscribe(eds, named("b"))
	c.expect("ClusterLoadAssignment: b")
}

func TestOnlyThoseConcerned(t *testing.T) {
	h := start(t, set(t))
	a, b := openDelta(t, h, node("sinew")), openDelta(t, h, node("sinew"))
	a.subscribe(eds, named("a"))
	a.expect("ClusterLoadAssignment: a")
	b.subscribe(eds, named("b"))
	b.expect("ClusterLoadAssignment: b")
	settle(t, h, 2)

	p := set(t)
	p.Workloads[0] = workload("a", "v1", "10.0.0.77", 80)
	h.SetPolicy(p)
	a.expect("ClusterLoadAssignment: a")
	// Had b been sent the change, it would come before the answer to this.
	b.subscribe(lds, "b:80")
	b.expect("Listener: b:80")
}

// settle waits until n resources are acknowledged, so that a change of policy finds open watches.
func settle(t *testing.T, h *harness, n int) {
	t.Helper()
	waitFor(t, func() bool {
		acked := 0
		for _, c := range h.Status().Clients {
			for _, r := range c.Resources {
				if r.State == Accepted {
					acked++
				}
			}
		}
		return acked >= n
	})
	// The acknowledgement is noted before its watch is open.
	waitFor(t, func() bool {
		h.store.mu.Lock()
		defer h.store.mu.Unlock()
		watched := 0
		for _, e := range h.store.entries {
			watched += len(e.watches)
		}
		return watched >= n
	})
}

func TestRefusedVersionIsNotSentAgain(t *testing.T) {
	t.Run("delta", func(t *testing.T) {
		h := start(t, set(t))
		c := openDelta(t, h, node("sinew"))
		c.subscribe(cds, named("a"))
		c.nack(c.recv(), `Cluster "`+named("a")+`": lb_policy: not supported`)
		c.subscribe(lds, "a:80")
		c.expect("Listener: a:80") // and not the cluster again
		p := set(t)
		p.Workloads[0] = workload("a", "v1", "10.0.0.77", 80)
		h.SetPolicy(p) // does not change the cluster
		c.subscribe(lds, "b:80")
		c.expect("Listener: b:80")
		p = set(t)
		p.DestinationRules = []*policy.DestinationRule{destinationRule(t, "a", "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}}}")}
		h.SetPolicy(p)
		c.expect("Cluster: a")
	})
	t.Run("state of the world", func(t *testing.T) {
		h := start(t, set(t))
		c := openState(t, h, node("gRPC Go"))
		c.want(cds, named("a"))
		c.recv()
		c.request(cds, "no")
		c.want(lds, "a:80")
		c.expect("Listener: a:80")
		settle(t, h, 1)
		p := set(t)
		p.DestinationRules = []*policy.DestinationRule{destinationRule(t, "a", "{host: a, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}")}
		h.SetPolicy(p)
		c.expect("Cluster: a")
	})
}

// TestOrder changes everything of one service at once and removes another.
func TestOrder(t *testing.T) {
	changed := func() *policy.Set {
		p := set(t, virtualService(t, "a", "{hosts: [a], http: [{timeout: 1s, route: [{destination: {host: a}}]}]}"))
		p.Services = []*policy.Service{service("a", 80)}
		p.Workloads = []*policy.Workload{workload("a", "v1", "10.0.0.77", 80)}
		p.DestinationRules = []*policy.DestinationRule{destinationRule(t, "a", "{host: a, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}")}
		return p
	}
	t.Run("delta", func(t *testing.T) {
		h := start(t, set(t))
		h.store.grace = time.Hour // until the test says so
		c := openDelta(t, h, node("sinew"))
		for _, typeURL := range []string{rds, eds, cds} {
			c.subscribe(typeURL, named("a"), named("b"))
			c.recvAndAck()
		}
		c.subscribe(lds, "a:80", "b:80")
		c.recvAndAck()
		settle(t, h, 8)
		h.SetPolicy(changed())
		c.expect("Cluster: a")
		c.expect("ClusterLoadAssignment: a")
		c.expect("Listener: -b:80")
		c.expect("RouteConfiguration: a -b")
		settle(t, h, 6)
		h.reapNow()
		c.expect("Cluster: -b")
		c.expect("ClusterLoadAssignment: -b")
	})
	t.Run("state of the world", func(t *testing.T) {
		h := start(t, set(t))
		h.store.grace = time.Hour
		c := openState(t, h, node("gRPC Go"))
		for _, typeURL := range []string{rds, eds} {
			c.want(typeURL, named("a"))
			c.expect(short(typeURL) + ": a")
		}
		c.want(cds, named("a"), named("b"))
		c.expect("Cluster: a b")
		settle(t, h, 4)
		h.SetPolicy(changed())
		c.expect("Cluster: a b") // absence would delete it
		c.expect("ClusterLoadAssignment: a")
		c.expect("RouteConfiguration: a")
		settle(t, h, 4)
		h.reapNow()
		c.expect("Cluster: a")
	})
	t.Run("back in time", func(t *testing.T) {
		h := start(t, set(t))
		h.store.grace = time.Hour
		c := openDelta(t, h, node("sinew"))
		c.subscribe(cds, named("b"))
		c.expect("Cluster: b")
		settle(t, h, 1)
		h.SetPolicy(changed())
		h.SetPolicy(set(t))
		h.reapNow()
		c.subscribe(lds, "a:80")
		c.expect("Listener: a:80") // and nothing of b
	})
	t.Run("by itself", func(t *testing.T) {
		h := start(t, set(t))
		h.store.grace = time.Millisecond
		c := openDelta(t, h, node("sinew"))
		c.subscribe(cds, named("b"))
		c.expect("Cluster: b")
		h.SetPolicy(changed())
		c.expect("Cluster: -b")
	})
}

// reapNow lets the grace of what is gone pass.
func (h *harness) reapNow() {
	h.store.mu.Lock()
	for _, e := range h.store.entries {
		if !e.doomed.IsZero() {
			e.doomed = time.Now()
		}
	}
	h.store.mu.Unlock()
	h.store.reap()
}

func (c *deltaClient) recvAndAck() {
	c.t.Helper()
	c.ack(c.recv())
}

func TestLastGoodStays(t *testing.T) {
	h := start(t, set(t))
	c := openDelta(t, h, node("sinew"))
	c.subscribe(rds, named("a"))
	good := c.expect("RouteConfiguration: a").GetResources()[0].GetVersion()
	settle(t, h, 1)
	bad := set(t, virtualService(t, "a", "{hosts: [a], http: [{redirect: {uri: /x, redirectCode: 304}}]}"))
	h.SetPolicy(bad)
	c.subscribe(rds, named("a"))
	if again := c.expect("RouteConfiguration: a").GetResources()[0].GetVersion(); again != good {
		t.Errorf("version %s, before the bad policy %s", again, good)
	}
	problems := h.Status().Problems
	if len(problems) != 1 || problems[0].Name != named("a") || !strings.Contains(problems[0].Error, "VirtualService default/a spec.http[0].redirect redirectCode 304") {
		t.Errorf("problems %+v", problems)
	}
	h.SetPolicy(set(t))
	if problems := h.Status().Problems; len(problems) != 0 {
		t.Errorf("problems %+v after the repair", problems)
	}
	// Nothing changed for the client.
	c.subscribe(lds, "a:80")
	c.expect("Listener: a:80")
}

// TestVariantsBySource gives clients of one namespace different routes by their labels.
func TestVariantsBySource(t *testing.T) {
	h := start(t, set(t, virtualService(t, "a", "{hosts: [a], http: [{match: [{sourceLabels: {canary: 'yes'}}], route: [{destination: {host: b}}]}, {route: [{destination: {host: a}}]}]}")))
	canary := node("sinew")
	canary.Metadata = labels(t, map[string]any{"canary": "yes"})
	x, y := openDelta(t, h, canary), openDelta(t, h, node("sinew"))
	x.subscribe(rds, named("a"))
	y.subscribe(rds, named("a"))
	if a, b := x.recv().GetResources()[0].GetVersion(), y.recv().GetResources()[0].GetVersion(); a == b {
		t.Errorf("both clients have the routes %s", a)
	}
}

func TestWildcardIsAnsweredEmpty(t *testing.T) {
	h := start(t, set(t))
	c := openState(t, h, node("envoy"))
	c.want(cds)
	c.expect("Cluster:")
	c.want(lds)
	c.expect("Listener:")
	d := openDelta(t, h, node("envoy"))
	d.subscribe(cds)
	d.expect("Cluster:")
	d.subscribe(cds, "*")
	d.expect("Cluster:")
	d.subscribe(lds, "a:80")
	d.expect("Listener: a:80")
}

func TestBadNodes(t *testing.T) {
	h := start(t, set(t))
	c := openDelta(t, h, nil)
	c.subscribe(lds, "a:80")
	if _, err := c.stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a stream without a node ended with %v", err)
	}
	many := make([]string, maxNames+1)
	for i := range many {
		many[i] = strings.Repeat("x", i%7) + string(rune('a'+i%26)) + strings.Repeat("y", i/100)
	}
	seen := map[string]bool{}
	for i, n := range many {
		for seen[n] {
			n += "z"
		}
		seen[n] = true
		many[i] = n
	}
	c = openDelta(t, h, node("sinew"))
	c.subscribe(lds, many...)
	if _, err := c.stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a stream for %d names ended with %v", len(many), err)
	}
}
