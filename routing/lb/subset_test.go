package lb

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

func TestSubsetter(t *testing.T) {
	type end struct {
		address  string
		priority uint32
		locality Locality
	}
	var all []end
	add := func(n int, priority uint32, zone string) {
		for range n {
			all = append(all, end{fmt.Sprintf("10.0.%d.%d:80", len(all)/250, len(all)%250), priority, Locality{Zone: zone}})
		}
	}
	var s Subsetter
	choose := func(client string, size int) (out []int) {
		s.Choose(len(all), size, func(i int) (uint64, uint32, Locality) {
			return Score(client, all[i].address), all[i].priority, all[i].locality
		}, func(i int) { out = append(out, i) })
		slices.Sort(out)
		return out
	}
	count := func(chosen []int) map[string]int {
		out := map[string]int{}
		for _, i := range chosen {
			out[fmt.Sprint(all[i].priority, all[i].locality.Zone)]++
		}
		return out
	}
	add(600, 0, "a")
	add(300, 0, "b")
	add(100, 0, "c")
	if got := count(choose("x", 100)); !maps.Equal(got, map[string]int{"0a": 60, "0b": 30, "0c": 10}) {
		t.Errorf("%v", got)
	}
	if a, b := choose("x", 100), choose("x", 100); !slices.Equal(a, b) {
		t.Error("a client chooses differently each time")
	}
	if a, b := choose("x", 100), choose("y", 100); slices.Equal(a, b) {
		t.Error("two clients choose the same")
	}
	// Spread: over many clients each endpoint is chosen about as often.
	uses := make([]int, len(all))
	const clients = 500
	for i := range clients {
		for _, e := range choose(fmt.Sprint("client-", i), 100) {
			uses[e]++
		}
	}
	for e, n := range uses {
		if n < 20 || n > 90 { // 50 each; the deviation is below 7
			t.Errorf("endpoint %d is chosen by %d of %d clients", e, n, clients)
		}
	}
	// One endpoint goes: at most one of the chosen changes.
	before := map[string]bool{}
	chosen := choose("x", 100)
	for _, i := range chosen {
		before[all[i].address] = true
	}
	all = slices.Delete(all, chosen[7], chosen[7]+1)
	changed := 0
	for _, i := range choose("x", 100) {
		if !before[all[i].address] {
			changed++
		}
	}
	if changed != 1 {
		t.Errorf("one endpoint goes, and %d others come", changed)
	}
	// A small locality is not left out, nor a small priority squeezed.
	all = nil
	add(10, 0, "a")
	add(1, 1, "z")
	add(989, 1, "b")
	if got := count(choose("x", 100)); !maps.Equal(got, map[string]int{"0a": 10, "1z": 1, "1b": 89}) {
		t.Errorf("%v", got)
	}
	if got := len(choose("x", 1000)); got != 1000 {
		t.Errorf("%d of as many as there are", got)
	}
	// More localities than places.
	all = nil
	for i := range 200 {
		add(2, 0, fmt.Sprint(i))
	}
	if got := len(choose("x", 100)); got != 100 {
		t.Errorf("%d, want 100", got)
	}
}

func TestSelects(t *testing.T) {
	s := Subsets{
		Fallback:  AnyEndpoint,
		Selectors: []SubsetSelector{{Keys: []string{"version"}, Fallback: UseClusterFallback}, {Keys: []string{"stage", "version"}, Fallback: NoFallback}},
	}
	for _, c := range []struct {
		want     map[string]string
		fallback SubsetFallback
		selects  bool
	}{
		{nil, AnyEndpoint, false},
		{map[string]string{"version": "1"}, AnyEndpoint, true},
		{map[string]string{"version": "1", "stage": "x"}, NoFallback, true},
		{map[string]string{"stage": "x"}, AnyEndpoint, false},
		{map[string]string{"version": "1", "stage": "x", "more": "y"}, AnyEndpoint, false},
	} {
		if fallback, selects := s.Selects(c.want); fallback != c.fallback || selects != c.selects {
			t.Errorf("%v: %v, %v; want %v, %v", c.want, fallback, selects, c.fallback, c.selects)
		}
	}
	if !Has(map[string]string{"a": "", "b": "1"}, map[string]string{"a": ""}) || Has(map[string]string{"b": "1"}, map[string]string{"a": ""}) {
		t.Error("an absent key is not an empty one")
	}
}

// TestPartOfRing: an endpoint's share of a ring is by the weights of all
// localities that have endpoints, be these in another subset (Envoy).
func TestPartOfRing(t *testing.T) {
	near, far := Locality{Zone: "near"}, Locality{Zone: "far"}
	policy := Policy{Kind: RingHash, LocalityWeighted: true, Ring: Ring{MinSize: 16}}
	whole := NewBuilder(policy, Locality{})
	part := whole.Part()
	whole.Describe(&Endpoints{Localities: []LocalityWeight{
		{Locality: near, Weight: 1}, {Locality: far, Weight: 3}, {Locality: Locality{Zone: "empty"}, Weight: 100},
	}})
	put := func(b *Builder, slot int32, l Locality) {
		b.Put(slot, Member{Locality: l, Key: fmt.Sprint(slot)})
	}
	for slot := range int32(2) {
		put(whole, slot, near)
		put(part, slot, near)
	}
	put(whole, 2, far)
	size := func(b *Builder) int { return len(b.Picker().prios[0].pools[healthy].table.entries) }
	if w, p := size(whole), size(part); w != 16 || p != 4 {
		t.Errorf("the ring of all has %d places, that of the part %d; want 16 and a quarter of it", w, p)
	}
	whole.Remove(2)
	if w, p := size(whole), size(part); w != 16 || p != 16 {
		t.Errorf("after the locality is gone the ring of all has %d places, that of the part %d; want 16 and 16", w, p)
	}
}
