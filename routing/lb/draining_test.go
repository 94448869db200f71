package lb

import "testing"

// TestDraining: endpoints on their way out are no loss to their priority.
func TestDraining(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  []Health // of priority 0; priority 1 has one healthy endpoint
		loads  []Load
		panics []bool
	}{
		{"one stays", []Health{Healthy, Draining}, []Load{{100, 0}, {0, 0}}, []bool{false, false}},
		{"one is lost", []Health{Healthy, Unhealthy}, []Load{{70, 0}, {30, 0}}, []bool{false, false}},
		{"one stays, one is lost", []Health{Healthy, Draining, Unhealthy}, []Load{{70, 0}, {30, 0}}, []bool{false, false}},
		{"all drain", []Health{Draining, Draining}, []Load{{0, 0}, {100, 0}}, []bool{false, false}},
	} {
		b := NewBuilder(Policy{Kind: RoundRobin, PanicThreshold: 80}, Locality{})
		for i, h := range c.first {
			b.Put(int32(i), Member{Health: h})
		}
		b.Put(int32(len(c.first)), Member{Priority: 1})
		p := b.Picker()
		for i := range c.loads {
			if p.Loads()[i] != c.loads[i] || p.prios[i].panics != c.panics[i] {
				t.Errorf("%s: priority %d has %v, panic %v; want %v, %v", c.name, i, p.Loads()[i], p.prios[i].panics, c.loads[i], c.panics[i])
			}
		}
	}
}

// TestDrainingComesAndGoes: the count of those that drain follows each change.
func TestDrainingComesAndGoes(t *testing.T) {
	b := NewBuilder(Policy{Kind: RoundRobin, PanicThreshold: 50}, Locality{})
	b.Put(0, Member{})
	for i, step := range []struct {
		change func()
		total  uint64 // that counts
	}{
		{func() { b.Put(1, Member{Health: Draining, Weight: 3}) }, 1},
		{func() { b.Put(1, Member{Health: Draining, Weight: 5}) }, 1},
		{func() { b.Put(1, Member{Health: Unhealthy, Weight: 5}) }, 2},
		{func() { b.Put(1, Member{Health: Draining, Weight: 5, Excluded: true}) }, 1},
		{func() { b.Put(1, Member{Health: Draining, Weight: 2}) }, 1},
		{func() { b.Remove(1) }, 1},
	} {
		step.change()
		if h := b.Picker().Health()[0]; h.Total-h.Draining != step.total || h.TotalWeight != step.total {
			t.Errorf("step %d: %+v, want a total of %d", i, h, step.total)
		}
	}
	if d := b.prios[0].drainingWeight; d != 0 {
		t.Errorf("a weight of %d is left", d)
	}
}

// TestTablesHaveNoDegraded: a priority that gets load for its degraded endpoints has none to give to a hash.
func TestTablesHaveNoDegraded(t *testing.T) {
	for _, kind := range []Kind{RingHash, Maglev} {
		b := NewBuilder(Policy{Kind: kind, Table: Table{Size: 101}}, Locality{})
		b.Put(0, Member{Health: Degraded, Key: "a"})
		if slot, _ := b.Picker().Pick(&Query{Hash: 7, HasHash: true}, nil); slot != -1 {
			t.Errorf("kind %v: slot %d of degraded endpoints alone", kind, slot)
		}
		b.Put(1, Member{Key: "b"})
		for hash := range uint64(50) {
			if slot, _ := b.Picker().Pick(&Query{Hash: hash * 0x9e3779b97f4a7c15, HasHash: true}, nil); slot != 1 {
				t.Errorf("kind %v: slot %d beside the healthy one", kind, slot)
			}
		}
	}
}
