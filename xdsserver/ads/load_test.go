package ads

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	loadv3 "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// stats is one cluster with metrics, "name=count" each.
func stats(cluster string, metrics ...string) *endpointv3.ClusterStats {
	l := &endpointv3.UpstreamLocalityStats{}
	for _, m := range metrics {
		i := strings.LastIndexByte(m, '=')
		var n uint64
		fmt.Sscan(m[i+1:], &n)
		l.LoadMetricStats = append(l.LoadMetricStats, &endpointv3.EndpointLoadMetricStats{MetricName: m[:i], NumRequestsFinishedWithMetric: n})
	}
	return &endpointv3.ClusterStats{ClusterName: cluster, UpstreamLocalityStats: []*endpointv3.UpstreamLocalityStats{l}}
}

// TestLoadReports goes from streams to the report.
func TestLoadReports(t *testing.T) {
	leak.Check(t)
	p := set(t)
	p.PeerAuthentications = []*policy.PeerAuthentication{{
		Meta: policy.Meta{Kind: "PeerAuthentication", Namespace: "default", Name: "a"},
		Spec: read(t, &security.PeerAuthentication{}, "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}"),
	}}
	h := start(t, p)
	h.loadInterval = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn := dialRaw(t, h.addr)
	client := loadv3.NewLoadReportingServiceClient(conn)
	report := func(name, ip string, all ...*endpointv3.ClusterStats) loadv3.LoadReportingService_StreamLoadStatsClient {
		t.Helper()
		s, err := client.StreamLoadStats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n := node("sinew")
		n.Id = fmt.Sprintf("sidecar~%s~%s.default~default.svc.cluster.local", ip, name)
		if err := s.Send(&loadv3.LoadStatsRequest{Node: n}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !r.GetSendAllClusters() || r.GetLoadReportingInterval().AsDuration() != time.Minute {
			t.Errorf("the server asks for %v", r)
		}
		for range 2 { // reports are of what came since the last
			if err := s.Send(&loadv3.LoadStatsRequest{ClusterStats: all}); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	// Workload a-v1 is 10.0.0.1 in policy; b-v1, at 10.0.0.2, calls it.
	report("a-v1", "10.0.0.1", stats("inbound|80||",
		"sinew.mtls=5", "sinew.plaintext|10.0.0.2=3", "sinew.plaintext|192.0.2.7=1", "sinew.plaintext|::ffff:192.0.2.7=1", "sinew.plaintext|junk=2", "sinew.plaintext=1",
		"sinew.would_refuse.strict|10.0.0.2=3", "sinew.would_refuse.authorization|ns[default]-policy[p]-rule[0]=4", "cpu=9"),
		stats("inbound|0||", "sinew.mtls=1"), stats("inbound|70000||", "sinew.mtls=1"), stats("inbound|x", "sinew.mtls=1"))
	report("b-v1", "10.0.0.2", stats(named("a"), "sinew.plaintext=3", "sinew.mtls=2", "sinew.would_refuse.strict|10.0.0.9=1"), stats("nonsense", "sinew.plaintext=1"))

	waitFor(t, func() bool {
		r := h.Report()
		return len(r.Inbound) == 1 && r.Inbound[0].MTLS == 10 && len(r.Outbound) == 1 && r.Outbound[0].MTLS == 4
	})
	r := h.Report()
	in := r.Inbound[0]
	if in.String() != "default/a-v1" || in.Port != 80 || in.Mode != "STRICT" || in.DecidedBy != "PeerAuthentication default/a" || !in.Reporting || in.Since.IsZero() || in.LastSeen.IsZero() {
		t.Errorf("inbound %+v", in)
	}
	if in.Plaintext != 16 || in.Unnamed != 6 || in.WouldRefuseStrict != 6 {
		t.Errorf("counts %+v", in)
	}
	if len(in.Callers) != 2 || in.Callers[0].IP != "10.0.0.2" || in.Callers[0].Plaintext != 6 || in.Callers[0].WouldRefuseStrict != 6 || fmt.Sprint(in.Callers[0].Workloads) != "[default/b-v1]" {
		t.Errorf("callers %+v", in.Callers)
	}
	if c := in.Callers[1]; c.IP != "192.0.2.7" || c.Plaintext != 4 || len(c.Workloads) != 0 {
		t.Errorf("a caller that nobody knows: %+v", c)
	}
	if len(in.WouldRefuseAuthorization) != 1 || in.WouldRefuseAuthorization[0].Rule != "ns[default]-policy[p]-rule[0]" || in.WouldRefuseAuthorization[0].Count != 8 {
		t.Errorf("rules %+v", in.WouldRefuseAuthorization)
	}
	if o := r.Outbound[0]; o.String() != "default/b-v1" || o.Cluster != named("a") || o.Plaintext != 6 || len(o.Targets) != 1 || o.Targets[0] != (Target{WorkloadName{"default", "a-v1"}, 80}) {
		t.Errorf("outbound %+v", o)
	}
	if len(r.Silent) != 0 {
		t.Errorf("silent %v", r.Silent)
	}
	cancel()
	waitFor(t, func() bool { return !h.Report().Inbound[0].Reporting })
}

func TestSilentWorkloads(t *testing.T) {
	leak.Check(t)
	h := start(t, set(t))
	c := openDelta(t, h, node("sinew"))
	c.subscribe(lds, "a:80")
	c.recv()
	r := h.Report()
	if fmt.Sprint(r.Silent) != "[default/a-v1 default/b-v1 default/web]" || r.Inbound == nil || r.Outbound == nil {
		t.Errorf("report %+v", r)
	}
}

// TestLoadsAreBounded floods the counts with names of the client's own invention.
func TestLoadsAreBounded(t *testing.T) {
	now := time.Unix(1, 0)
	l := newLoads()
	l.now = func() time.Time { now = now.Add(time.Second); return now }
	id, err := identity.ParseID(webID)
	if err != nil {
		t.Fatal(err)
	}
	quiet := l.open(nodeKey{node: "quiet"}, &translate.Client{})
	for i := range 2 * maxLoadNodesIdentity {
		n := l.open(nodeKey{id, fmt.Sprint(i)}, &translate.Client{})
		if i > 0 {
			continue
		}
		for j := range 3 * maxLoadClusters {
			l.add(n, []*endpointv3.ClusterStats{
				stats(fmt.Sprintf("inbound|%d||", j+1), "sinew.mtls=1"), stats(fmt.Sprintf("outbound|%d||x", j), "sinew.mtls=1"),
				stats("inbound|1||", fmt.Sprintf("sinew.plaintext|10.0.%d.%d=1", j/256, j%256), fmt.Sprintf("sinew.would_refuse.authorization|%d=1", j)),
			})
		}
		l.add(n, []*endpointv3.ClusterStats{stats("inbound|1||", fmt.Sprintf("sinew.mtls=%d", uint64(math.MaxUint64)), "sinew.would_refuse.authorization|"+strings.Repeat("x", 10_000)+"=1"),
			stats("outbound|1||"+strings.Repeat("x", 10_000), "sinew.mtls=1")})
		p := n.inbound[1]
		if len(n.inbound) != maxLoadClusters || len(n.outbound) != maxLoadClusters || len(p.peers) != maxLoadDetails || len(p.rules) != maxLoadDetails+1 {
			t.Errorf("%d and %d clusters, %d callers, %d rules", len(n.inbound), len(n.outbound), len(p.peers), len(p.rules))
		}
		const all = 3 * maxLoadClusters
		if p.mtls != math.MaxUint64 || p.plaintext != all || p.unnamed != all-maxLoadDetails || p.rules[otherRules].refused != all-maxLoadDetails+1 {
			t.Errorf("counts %d %d %d %d", p.mtls, p.plaintext, p.unnamed, p.rules[otherRules].refused)
		}
	}
	if len(l.nodes) != maxLoadNodesIdentity+1 {
		t.Errorf("%d nodes", len(l.nodes))
	}
	if l.nodes[nodeKey{node: "quiet"}] != quiet || l.nodes[nodeKey{id, "0"}] != nil {
		t.Error("the wrong ones were forgotten")
	}
}

func FuzzLoadMetric(f *testing.F) {
	f.Add("inbound|80||", "sinew.plaintext|10.0.0.1", uint64(1))
	f.Add("inbound|80||", "sinew.would_refuse.authorization|x", uint64(math.MaxUint64))
	f.Add("outbound|80||a", "sinew.mtls", uint64(2))
	f.Fuzz(func(t *testing.T, cluster, metric string, count uint64) {
		l := newLoads()
		n := l.open(nodeKey{node: "n"}, &translate.Client{})
		for range 3 {
			l.add(n, []*endpointv3.ClusterStats{{ClusterName: cluster, UpstreamLocalityStats: []*endpointv3.UpstreamLocalityStats{{
				LoadMetricStats: []*endpointv3.EndpointLoadMetricStats{{MetricName: metric, NumRequestsFinishedWithMetric: count}}}}}})
		}
		for _, p := range n.inbound {
			// Every plaintext request is of a caller that is named, or of one that is not.
			named := p.unnamed
			for ip, d := range p.peers {
				named = sum(named, d.plaintext)
				if peerAddress(ip) != ip {
					t.Errorf("%q is no address", ip)
				}
			}
			if named != p.plaintext {
				t.Errorf("%d plaintext requests, %d of callers", p.plaintext, named)
			}
		}
	})
}
