package mesh

import (
	"net/netip"

	"github.com/sinew-mesh/sinew/internal/xds/client"
	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// loads turns what the engines have counted into reports for the control
// plane: who still speaks plaintext, seen from both ends, and what rules in dry
// run would have refused.
type loads struct {
	inbound  *inbound.Engine
	outbound *outbound.Engine

	sent map[string]outbound.ClusterUsage // at the last report
}

// take returns what was counted since it was called last. It is called by one
// goroutine at a time for each control plane.
func (l *loads) take() []client.Load {
	var out []client.Load
	ports := make(map[string]map[string]uint64)
	of := func(listener string) map[string]uint64 {
		at, err := netip.ParseAddrPort(listener)
		if err != nil {
			return nil
		}
		name := client.InboundCluster(at.Port())
		counts := ports[name]
		if counts == nil {
			counts = make(map[string]uint64)
			ports[name] = counts
			out = append(out, client.Load{Cluster: name, Counts: counts})
		}
		return counts
	}
	peers, rules := l.inbound.UsageWithRules()
	for _, u := range peers {
		counts := of(u.Listener)
		peer := ""
		if u.Peer.IsValid() {
			peer = client.MetricOf + u.Peer.String()
		}
		add(counts, client.MetricMTLS, u.MutualTLS)
		add(counts, client.MetricPlaintext+peer, u.Plaintext)
		add(counts, client.MetricWouldRefuseStrict+peer, u.StrictDryRun)
	}
	for _, u := range rules {
		add(of(u.Listener), client.MetricWouldRefuseAuthorization+client.MetricOf+u.Rule, u.Refused)
	}
	usage := l.outbound.Usage()
	sent := make(map[string]outbound.ClusterUsage, len(usage))
	for _, u := range usage {
		sent[u.Cluster] = u
		before := l.sent[u.Cluster]
		if before.Plaintext > u.Plaintext || before.MutualTLS > u.MutualTLS {
			before = outbound.ClusterUsage{} // it left policy and came back
		}
		counts := make(map[string]uint64)
		add(counts, client.MetricMTLS, u.MutualTLS-before.MutualTLS)
		add(counts, client.MetricPlaintext, u.Plaintext-before.Plaintext)
		if len(counts) > 0 {
			out = append(out, client.Load{Cluster: u.Cluster, Counts: counts})
		}
	}
	l.sent = sent
	return out
}

func add(counts map[string]uint64, name string, n uint64) {
	if n > 0 && counts != nil {
		counts[name] += n
	}
}
