package ads

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/internal/xds/client"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestOurClient runs this project's client against the server: what it
// compiles is what policy says, through changes and removals.
func TestOurClient(t *testing.T) {
	p := set(t, virtualService(t, "a", `
hosts: [a]
http:
- match: [{uri: {prefix: /b}}]
  timeout: 3s
  route: [{destination: {host: b}}]
- route: [{destination: {host: a}, weight: 3}, {destination: {host: b}, weight: 1}]
`))
	h := start(t, p)
	config, err := bootstrap.Parse([]byte(fmt.Sprintf(`{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}]}],
		"node": {"id": "sidecar~127.0.0.1~web.default~default.svc.cluster.local"},
		"server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%%s"
	}`, h.addr)))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var last *snapshot.Snapshot
	c, err := client.New(client.Options{Bootstrap: config, OnSnapshot: func(s *snapshot.Snapshot) {
		mu.Lock()
		defer mu.Unlock()
		last = s
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until := func(ok func(s *snapshot.Snapshot) bool) *snapshot.Snapshot {
		t.Helper()
		var s *snapshot.Snapshot
		waitFor(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			s = last
			return s != nil && ok(s)
		})
		return s
	}
	c.Subscribe("a:80")
	c.Subscribe("unknown:80")
	c.SubscribeInbound("127.0.0.1:8080")
	s := until(func(s *snapshot.Snapshot) bool {
		return s.Hosts["a:80"] != nil && s.Hosts["unknown:80"] != nil && s.Inbound["127.0.0.1:8080"] != nil
	})
	a := s.Hosts["a:80"]
	if a.Err != nil || a.VirtualHost == nil || len(a.VirtualHost.Routes) != 2 {
		t.Fatalf("host %+v", a)
	}
	if unknown := s.Hosts["unknown:80"]; !unknown.Absent || unknown.Err != nil {
		t.Errorf("unknown host %+v", unknown)
	}
	if in := s.Inbound["127.0.0.1:8080"]; in.Err != nil || in.Absent {
		t.Errorf("inbound %+v", in)
	}
	endpoints := func(s *snapshot.Snapshot, name string) string {
		out := ""
		if cl := s.Clusters[named(name)]; cl != nil && cl.Err == nil {
			for _, e := range cl.Endpoints.All {
				out += e.Address + " "
			}
		}
		return out
	}
	if a, b := endpoints(s, "a"), endpoints(s, "b"); a != "10.0.0.1:80 " || b != "10.0.0.2:80 " {
		t.Errorf("endpoints %q and %q", a, b)
	}

	// An endpoint moves.
	p = set(t, p.VirtualServices...)
	p.Workloads[0] = workload("a", "v1", "10.0.0.77", 80)
	h.SetPolicy(p)
	until(func(s *snapshot.Snapshot) bool { return endpoints(s, "a") == "10.0.0.77:80 " })

	// b goes: its cluster is gone for good, and a still has its routes.
	p = set(t, virtualService(t, "a", "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"))
	p.Services, p.Workloads = p.Services[:1], p.Workloads[:1]
	h.SetPolicy(p)
	s = until(func(s *snapshot.Snapshot) bool {
		return s.Clusters[named("b")] == nil && len(s.Hosts["a:80"].VirtualHost.Routes) == 1
	})
	if got := endpoints(s, "a"); got != "10.0.0.1:80 " {
		t.Errorf("endpoints %q", got)
	}

	// The unknown host comes into being.
	h.SetPolicy(&policy.Set{VirtualServices: p.VirtualServices, Services: append(p.Services[:1:1], service("unknown", 80)), Workloads: p.Workloads})
	until(func(s *snapshot.Snapshot) bool { return s.Hosts["unknown:80"].VirtualHost != nil })

	waitFor(t, func() bool {
		clients := h.Status().Clients
		if len(clients) != 1 || clients[0].Kind != "sinew" || clients[0].Protocol != "delta" {
			t.Fatalf("clients %+v", clients)
		}
		for _, r := range clients[0].Resources {
			if r.State == Refused {
				t.Fatalf("refused: %+v", r)
			}
			if r.State != Accepted {
				return false
			}
		}
		return true
	})
}

// TestOurClientReports: what this project's client reports is what the server reads.
func TestOurClientReports(t *testing.T) {
	leak.Check(t)
	for theirs, ours := range map[string]string{
		client.MetricMTLS: MetricMTLS, client.MetricPlaintext: MetricPlaintext, client.MetricWouldRefuseStrict: MetricWouldRefuseStrict, client.MetricWouldRefuseAuthorization: MetricWouldRefuseAuthorization,
	} {
		if theirs != ours {
			t.Errorf("the client says %q, the server %q", theirs, ours)
		}
	}
	h := start(t, set(t))
	h.loadInterval = time.Millisecond
	config, err := bootstrap.Parse([]byte(fmt.Sprintf(`{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}]}],
		"node": {"id": "sidecar~10.0.0.1~a-v1.default~default.svc.cluster.local"}
	}`, h.addr)))
	if err != nil {
		t.Fatal(err)
	}
	var reported atomic.Bool
	c, err := client.New(client.Options{Bootstrap: config, OnSnapshot: func(*snapshot.Snapshot) {}, Loads: func() []client.Load {
		if reported.Swap(true) {
			return nil
		}
		return []client.Load{
			{Cluster: client.InboundCluster(80), Counts: map[string]uint64{client.MetricMTLS: 3, client.MetricPlaintext + client.MetricOf + "10.0.0.2": 2}},
			{Cluster: named("b"), Counts: map[string]uint64{client.MetricPlaintext: 1}},
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waitFor(t, func() bool { r := h.Report(); return len(r.Inbound) == 1 && len(r.Outbound) == 1 })
	r := h.Report()
	if in := r.Inbound[0]; in.Port != 80 || in.MTLS != 3 || in.Plaintext != 2 || len(in.Callers) != 1 || in.Callers[0].IP != "10.0.0.2" {
		t.Errorf("inbound %+v", in)
	}
	if o := r.Outbound[0]; o.Plaintext != 1 || o.Cluster != named("b") {
		t.Errorf("outbound %+v", o)
	}
}
