package inbound

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
)

// Bounds on what is counted apart between two readings of a listener's usage;
// the rest is counted together.
const (
	maxUsagePeers = 1000
	maxUsageRules = 64
)

// PeerUsage says how one address has used a listener.
type PeerUsage struct {
	// Listener is the listener's address.
	Listener string
	// Peer is the other end of the connections. It is the zero address for all
	// those together that came after the first 1,000.
	Peer netip.Addr
	// Plaintext and MutualTLS count requests on connections of each kind,
	// refused ones too. TLS without an identity counts as plaintext.
	Plaintext, MutualTLS uint64
	// StrictDryRun counts requests that a PeerAuthentication in dry run would
	// refuse, DryRun those that authorization rules in dry run would refuse.
	StrictDryRun, DryRun uint64
}

// RuleUsage says how often an authorization rule in dry run would have refused
// a request to a listener that was let in.
type RuleUsage struct {
	// Listener is the listener's address.
	Listener string
	// Rule is the name of the DENY rule, DryRunNoAllow where no ALLOW rule in dry
	// run matched, or DryRunOther for those rules together that came after the first 64.
	Rule    string
	Refused uint64
}

// Names of RuleUsage that are no rule's.
const (
	DryRunNoAllow = "ALLOW (no rule matches)"
	DryRunOther   = "other rules"
)

// peerUsage is what is counted for one address.
type peerUsage struct {
	plaintext, mutualTLS, strictDryRun, dryRun atomic.Uint64
}

// usageTable is what was counted since a reading.
type usageTable struct {
	peers counters[netip.Addr, peerUsage]
	rules counters[string, atomic.Uint64]
}

// counters are made when they are first asked for, up to a bound.
type counters[K comparable, V any] struct {
	m     sync.Map // K to *V
	count atomic.Int64
}

// of returns the counter of a key, and that of the rest where there are most already.
func (c *counters[K, V]) of(key K, most int64, rest K) *V {
	if known, ok := c.m.Load(key); ok {
		return known.(*V)
	}
	if c.count.Add(1) > most {
		key = rest
	}
	known, _ := c.m.LoadOrStore(key, new(V))
	return known.(*V)
}

func (t *usageTable) of(peer netip.Addr) *peerUsage {
	return t.peers.of(peer, maxUsagePeers, netip.Addr{})
}

// refused counts a request that a rule in dry run would have refused.
func (t *usageTable) refused(rule string) {
	if rule == "" {
		rule = DryRunNoAllow
	}
	t.rules.of(rule, maxUsageRules, DryRunOther).Add(1)
}

// takePeers returns the counts and sets them to zero.
func (t *usageTable) takePeers(listener string, sum map[netip.Addr]*PeerUsage) {
	t.peers.m.Range(func(key, value any) bool {
		peer, u := key.(netip.Addr), value.(*peerUsage)
		s := sum[peer]
		if s == nil {
			s = &PeerUsage{Listener: listener, Peer: peer}
			sum[peer] = s
		}
		s.Plaintext += u.plaintext.Swap(0)
		s.MutualTLS += u.mutualTLS.Swap(0)
		s.StrictDryRun += u.strictDryRun.Swap(0)
		s.DryRun += u.dryRun.Swap(0)
		return true
	})
}

// takeRules does so for rules.
func (t *usageTable) takeRules(sum map[string]uint64) {
	t.rules.m.Range(func(key, value any) bool {
		if n := value.(*atomic.Uint64).Swap(0); n > 0 {
			sum[key.(string)] += n
		}
		return true
	})
}

// usage counts a listener's requests.
type usage struct {
	current atomic.Pointer[usageTable]
	mu      sync.Mutex  // serialises readings
	before  *usageTable // the table of the last reading, which late requests may still count in
}

func newUsage() *usage {
	u := &usage{}
	u.current.Store(new(usageTable))
	return u
}

func (u *usage) take(listener string) ([]PeerUsage, []RuleUsage) {
	u.mu.Lock()
	defer u.mu.Unlock()
	sum, rules := make(map[netip.Addr]*PeerUsage), make(map[string]uint64)
	last := u.current.Swap(new(usageTable))
	for _, t := range [...]*usageTable{u.before, last} {
		if t != nil {
			t.takePeers(listener, sum)
			t.takeRules(rules)
		}
	}
	u.before = last
	var byPeer []PeerUsage
	for _, s := range sum {
		if s.Plaintext+s.MutualTLS+s.StrictDryRun+s.DryRun > 0 {
			byPeer = append(byPeer, *s)
		}
	}
	var byRule []RuleUsage
	for rule, n := range rules {
		byRule = append(byRule, RuleUsage{Listener: listener, Rule: rule, Refused: n})
	}
	return byPeer, byRule
}

// Usage returns what was counted since it was last called, by listener and
// peer. What a request adds while Usage runs is in this answer or in the next.
// What UsageWithRules would say of rules is lost.
func (e *Engine) Usage() []PeerUsage {
	peers, _ := e.UsageWithRules()
	return peers
}

// UsageWithRules is Usage, and by listener and rule what rules in dry run would
// have refused since Usage or UsageWithRules was last called.
func (e *Engine) UsageWithRules() ([]PeerUsage, []RuleUsage) {
	var peers []PeerUsage
	var rules []RuleUsage
	for _, l := range e.view.Load().listeners {
		p, r := l.live.usage.take(l.name)
		peers, rules = append(peers, p...), append(rules, r...)
	}
	slices.SortFunc(peers, func(a, b PeerUsage) int {
		return cmp.Or(cmp.Compare(a.Listener, b.Listener), a.Peer.Compare(b.Peer))
	})
	slices.SortFunc(rules, func(a, b RuleUsage) int {
		return cmp.Or(cmp.Compare(a.Listener, b.Listener), cmp.Compare(a.Rule, b.Rule))
	})
	return peers, rules
}
