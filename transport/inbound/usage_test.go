package inbound

import (
	"fmt"
	"net/netip"
	"testing"
)

// TestUsageByRuleIsBounded: what is beyond the bounds is counted together, and nothing is lost.
func TestUsageByRuleIsBounded(t *testing.T) {
	u := newUsage()
	table := u.current.Load()
	const more = 7
	for i := range maxUsageRules + more {
		table.refused(fmt.Sprintf("rule-%d", i))
		table.refused("") // after the first, every time
	}
	for i := range maxUsagePeers + more {
		table.of(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})).plaintext.Add(1)
	}
	peers, rules := u.take("l")
	got := map[string]uint64{}
	for _, r := range rules {
		got[r.Rule] = r.Refused
	}
	// DryRunNoAllow is one of those that have a place of their own.
	if len(got) != maxUsageRules+1 || got[DryRunNoAllow] != maxUsageRules+more || got[DryRunOther] != more+1 || got["rule-0"] != 1 {
		t.Errorf("%d rules: %v", len(got), got)
	}
	var together uint64
	for _, p := range peers {
		if p.Peer == (netip.Addr{}) {
			together = p.Plaintext
		}
	}
	if len(peers) != maxUsagePeers+1 || together != more {
		t.Errorf("%d peers, %d requests of those together", len(peers), together)
	}
	if peers, rules := u.take("l"); len(peers)+len(rules) != 0 {
		t.Errorf("counted twice: %v %v", peers, rules)
	}
	// A request that began before the reading counts in the next one.
	table = u.current.Load()
	u.take("l")
	table.refused("late")
	if _, rules := u.take("l"); len(rules) != 1 || rules[0] != (RuleUsage{"l", "late", 1}) {
		t.Errorf("%v, want the late one", rules)
	}
}
