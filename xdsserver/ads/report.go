package ads

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// Report is what clients have reported of their connections since the server
// started: who still speaks plaintext to whom.
type Report struct {
	Inbound  []InboundReport  `json:"inbound"`
	Outbound []OutboundReport `json:"outbound"`
	// Silent are workloads that policy knows or that are connected, of which there is
	// no report: nothing is known of them.
	Silent []WorkloadName `json:"silent"`
}

// WorkloadName is a workload as policy or its node names it.
type WorkloadName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (n WorkloadName) String() string { return n.Namespace + "/" + n.Name }

// InboundReport is what one client has served on one port. Counts are of requests.
type InboundReport struct {
	WorkloadName
	Node      string    `json:"node"`
	Identity  string    `json:"identity,omitempty"` // verified
	Port      uint32    `json:"port"`
	Since     time.Time `json:"since"` // when the client began to report
	LastSeen  time.Time `json:"lastSeen"`
	Reporting bool      `json:"reporting"` // connected now
	// Mode of mutual TLS in force on the port, and the policy that decides it; without
	// one it is Istio's default.
	Mode      string `json:"mode"`
	DecidedBy string `json:"decidedBy,omitempty"`

	MTLS      uint64 `json:"mtls"`
	Plaintext uint64 `json:"plaintext"`
	// Unnamed are the requests of Plaintext whose caller is not in Callers.
	Unnamed uint64 `json:"unnamed,omitempty"`
	// WouldRefuseStrict are those that a dry run of STRICT would have refused.
	WouldRefuseStrict        uint64         `json:"wouldRefuseStrict,omitempty"`
	Callers                  []CallerReport `json:"callers,omitempty"`
	WouldRefuseAuthorization []RuleReport   `json:"wouldRefuseAuthorization,omitempty"`
}

// CallerReport is one address that called in plaintext.
type CallerReport struct {
	IP string `json:"ip"`
	// Workloads are those known at the address, by policy or because they are
	// connected. On an address that several share it may be any of them.
	Workloads         []WorkloadName `json:"workloads,omitempty"`
	Plaintext         uint64         `json:"plaintext"`
	WouldRefuseStrict uint64         `json:"wouldRefuseStrict,omitempty"`
	LastSeen          time.Time      `json:"lastSeen"`
}

// RuleReport is how often one rule that is not enforced would have refused.
type RuleReport struct {
	Rule     string    `json:"rule"`
	Count    uint64    `json:"count"`
	LastSeen time.Time `json:"lastSeen"`
}

// OutboundReport is what one client has sent to one cluster.
type OutboundReport struct {
	WorkloadName
	Node      string    `json:"node"`
	Identity  string    `json:"identity,omitempty"`
	Cluster   string    `json:"cluster"`
	MTLS      uint64    `json:"mtls"`
	Plaintext uint64    `json:"plaintext"`
	LastSeen  time.Time `json:"lastSeen"`
	// Targets are the workloads behind the cluster.
	Targets []Target `json:"targets,omitempty"`
}

// Target is a port of a workload.
type Target struct {
	WorkloadName
	Port uint32 `json:"port"`
}

// Report gives what clients have reported, in a stable order.
func (s *Server) Report() Report {
	s.store.mu.Lock()
	set := s.store.set
	s.store.mu.Unlock()
	if set == nil {
		set = &policy.Set{}
	}
	connected := s.ledger.clients()
	at := locate(set, connected)
	out := Report{Inbound: []InboundReport{}, Outbound: []OutboundReport{}, Silent: []WorkloadName{}}
	heard := make(map[WorkloadName]bool)

	s.loads.mu.Lock()
	for key, n := range s.loads.nodes {
		who := WorkloadName{n.client.Namespace, n.client.Name}
		heard[who] = true
		for port, p := range n.inbound {
			r := InboundReport{
				WorkloadName: who, Node: n.client.ID, Identity: key.id.String(), Port: port,
				Since: n.since, LastSeen: p.seen, Reporting: n.streams > 0,
				MTLS: p.mtls, Plaintext: p.plaintext, Unnamed: p.unnamed, WouldRefuseStrict: p.strict,
			}
			r.Mode, r.DecidedBy = modeAt(set, n.client, port)
			for ip, d := range p.peers {
				r.Callers = append(r.Callers, CallerReport{IP: ip, Workloads: at[ip], Plaintext: d.plaintext, WouldRefuseStrict: d.strict, LastSeen: d.seen})
			}
			slices.SortFunc(r.Callers, func(a, b CallerReport) int { return cmp.Compare(a.IP, b.IP) })
			for rule, d := range p.rules {
				r.WouldRefuseAuthorization = append(r.WouldRefuseAuthorization, RuleReport{rule, d.refused, d.seen})
			}
			slices.SortFunc(r.WouldRefuseAuthorization, func(a, b RuleReport) int { return cmp.Compare(a.Rule, b.Rule) })
			out.Inbound = append(out.Inbound, r)
		}
		for cluster, c := range n.outbound {
			out.Outbound = append(out.Outbound, OutboundReport{
				WorkloadName: who, Node: n.client.ID, Identity: key.id.String(), Cluster: cluster,
				MTLS: c.mtls, Plaintext: c.plaintext, LastSeen: c.seen, Targets: targets(set, cluster),
			})
		}
	}
	s.loads.mu.Unlock()

	for _, w := range set.Workloads {
		if name := (WorkloadName{w.Namespace, w.Name}); !heard[name] {
			heard[name] = true
			out.Silent = append(out.Silent, name)
		}
	}
	for _, c := range connected {
		if name := (WorkloadName{c.Namespace, c.Name}); c.Name != "" && !heard[name] {
			heard[name] = true
			out.Silent = append(out.Silent, name)
		}
	}
	slices.SortFunc(out.Inbound, func(a, b InboundReport) int {
		return cmp.Or(a.compare(b.WorkloadName), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Identity, b.Identity))
	})
	slices.SortFunc(out.Outbound, func(a, b OutboundReport) int {
		return cmp.Or(a.compare(b.WorkloadName), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Identity, b.Identity))
	})
	slices.SortFunc(out.Silent, WorkloadName.compare)
	return out
}

func (n WorkloadName) compare(o WorkloadName) int {
	return cmp.Or(cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Name, o.Name))
}

// clients gives those that have a stream open.
func (l *ledger) clients() []*translate.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*translate.Client
	for s := range l.streams {
		if s.client != nil {
			out = append(out, s.client)
		}
	}
	return out
}

// locate gives the workloads that policy or a connected client places at each address.
func locate(set *policy.Set, connected []*translate.Client) map[string][]WorkloadName {
	at := make(map[string][]WorkloadName)
	add := func(address string, n WorkloadName) {
		a, err := netip.ParseAddr(address)
		if err != nil || n.Name == "" {
			return
		}
		ip := a.Unmap().String()
		if !slices.Contains(at[ip], n) {
			at[ip] = append(at[ip], n)
		}
	}
	for _, w := range set.Workloads {
		add(w.Address, WorkloadName{w.Namespace, w.Name})
	}
	for _, svc := range set.Services {
		for _, w := range svc.Static {
			add(w.Address, WorkloadName{w.Namespace, w.Name})
		}
	}
	for _, c := range connected {
		for _, ip := range c.IPs {
			add(ip, WorkloadName{c.Namespace, c.Name})
		}
	}
	for _, names := range at {
		slices.SortFunc(names, WorkloadName.compare)
	}
	return at
}

// modeAt tells how a port of a client takes connections. The labels that count are
// those of the workload that policy knows there; a client that it does not know
// has those that it gives.
func modeAt(set *policy.Set, c *translate.Client, port uint32) (mode, decidedBy string) {
	labels := c.Labels
	for _, ip := range c.IPs {
		if there := set.WorkloadsAt(c.Namespace, ip, port); len(there) == 1 {
			labels = there[0].Labels
			break
		}
	}
	m, by := set.PeerAuthenticationFor(labels, c.Namespace, port)
	if by != nil {
		decidedBy = by.Ref().String()
	}
	return m.String(), decidedBy
}

// targets gives the workloads behind a cluster.
func targets(set *policy.Set, cluster string) []Target {
	n, err := translate.ParseTrafficName(cluster)
	if err != nil {
		return nil
	}
	svc := set.ServiceByHost(n.Host)
	if svc == nil {
		return nil
	}
	port, ok := svc.PortNumber(n.Port)
	if !ok {
		return nil
	}
	var out []Target
	for _, w := range set.WorkloadsOf(svc) {
		out = append(out, Target{WorkloadName{w.Namespace, w.Name}, w.PortFor(port)})
	}
	return out
}
