package lb

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// naive is a set of members that is looked at as a whole each time.
type naive map[int32]Member

func (n naive) in(priority uint32, c class, zone string) map[int32]uint64 {
	out := map[int32]uint64{}
	for slot, m := range n {
		if m.Priority != priority || m.Excluded || zone != "" && m.Locality.Zone != zone {
			continue
		}
		if c == everyone || c == healthy && m.Health == Healthy || c == degraded && m.Health == Degraded {
			out[slot] = uint64(m.Weight)
		}
	}
	return out
}

// contents reads a pool back through every way that picks use.
func contents(t *testing.T, p *pool) map[int32]uint64 {
	out := map[int32]uint64{}
	if p == nil {
		return out
	}
	sum, same := uint64(0), true
	for i := range p.bag.n {
		slot, weight := p.bag.at(i), p.bag.weight(i)
		if _, twice := out[slot]; twice {
			t.Fatalf("slot %d stands twice", slot)
		}
		out[slot] = weight
		same = same && weight == p.bag.weight(0)
		if p.bag.before(i) != sum || p.bag.find(sum) != i || p.bag.find(sum+weight-1) != i {
			t.Fatalf("position %d: the sum before it is %d, want %d; its values fall to %d and %d", i, p.bag.before(i), sum, p.bag.find(sum), p.bag.find(sum+weight-1))
		}
		sum += weight
	}
	if sum != p.bag.total || same != p.bag.equal() || same != p.equal {
		t.Fatalf("the sum is %d, want %d; equal %v, want %v", p.bag.total, sum, p.bag.equal(), same)
	}
	return out
}

// seen is a picker with what it has to have for ever.
type seen struct {
	picker *Picker
	want   naive
}

func (s *seen) check(t *testing.T, zones bool) {
	if s.picker.Len() != len(s.want) {
		t.Fatalf("%d members, want %d", s.picker.Len(), len(s.want))
	}
	for i := range s.picker.prios {
		state := &s.picker.prios[i]
		h, d, all := s.want.in(uint32(i), healthy, ""), s.want.in(uint32(i), degraded, ""), s.want.in(uint32(i), everyone, "")
		if got := s.picker.health[i]; got.Healthy != uint64(len(h)) || got.Degraded != uint64(len(d)) || got.Total != uint64(len(all)) {
			t.Fatalf("priority %d: %+v, want %d healthy and %d degraded of %d", i, got, len(h), len(d), len(all))
		}
		if state.panics {
			if got := contents(t, state.pools[everyone]); !maps.Equal(got, all) {
				t.Fatalf("priority %d in panic: %v, want %v", i, got, all)
			}
			continue
		}
		if got := contents(t, state.pools[healthy]); !maps.Equal(got, h) {
			t.Fatalf("priority %d, healthy: %v, want %v", i, got, h)
		}
		if got := contents(t, state.pools[degraded]); !maps.Equal(got, d) {
			t.Fatalf("priority %d, degraded: %v, want %v", i, got, d)
		}
		if !zones || state.localities[healthy] == nil {
			continue
		}
		total := map[int32]uint64{}
		for _, pool := range state.localities[healthy].pools {
			maps.Copy(total, contents(t, pool))
		}
		if !maps.Equal(total, h) {
			t.Fatalf("priority %d, by locality: %v, want %v", i, total, h)
		}
	}
}

// run plays a script of changes against the naive set, and looks at the end
// once more at every picker that was made on the way.
func run(t *testing.T, script []byte, policy Policy) {
	b, want := NewBuilder(policy, Locality{}), naive{}
	eps := &Endpoints{}
	for i := range 4 {
		for p := range uint32(3) {
			eps.Localities = append(eps.Localities, LocalityWeight{Locality: Locality{Zone: fmt.Sprint(i)}, Priority: p, Weight: 1})
		}
	}
	b.Describe(eps)
	var all []seen
	for len(script) >= 4 {
		op, slot, x, y := script[0], int32(script[1]), script[2], script[3]
		script = script[4:]
		slot += int32(op&3) << 8
		switch {
		case op>>2 < 40:
			m := Member{Weight: 1, Health: Health(x & 3), Excluded: x&0x30 == 0x30, Priority: uint32(y & 3 % 3), Locality: Locality{Zone: fmt.Sprint(y >> 2 & 3)}, Key: fmt.Sprint(slot)}
			if x&0x40 != 0 {
				m.Weight = uint32(y)*uint32(x) + 1
			}
			b.Put(slot, m)
			want[slot] = m
		case op>>2 < 56:
			b.Remove(slot)
			delete(want, slot)
		default:
			s := seen{b.Picker(), maps.Clone(want)}
			s.check(t, policy.LocalityWeighted)
			if all = append(all, s); len(all) > 64 {
				all = all[1:]
			}
		}
	}
	all = append(all, seen{b.Picker(), want})
	for i := range all {
		all[i].check(t, policy.LocalityWeighted)
	}
}

func TestBuilderAgainstNaive(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 5))
	for i := range 30 {
		script := make([]byte, 4*3000)
		for j := range script {
			script[j] = byte(random.Uint32())
		}
		run(t, script, Policy{Kind: Kind(i % 3), LocalityWeighted: i%2 == 0, PanicThreshold: float64(i % 4 * 20)})
	}
}

func FuzzBuilder(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 0, 2, 0, 0, 255, 0, 0, 0, 200, 1, 0, 0, 255, 0, 0, 0}, byte(0))
	f.Add([]byte{0, 1, 0x40, 9, 0, 2, 1, 4, 0, 3, 0x30, 1, 255, 0, 0, 0, 0, 1, 2, 8, 255, 0, 0, 0}, byte(5))
	f.Fuzz(func(t *testing.T, script []byte, policy byte) {
		if len(script) > 4000 {
			return
		}
		run(t, script, Policy{Kind: Kind(policy % 3), LocalityWeighted: policy&4 != 0, PanicThreshold: float64(policy >> 3)})
	})
}

// swap returns the bytes that one picker more allocates when one of n members has changed.
func swap(n int, policy Policy, change func(b *Builder, round int)) uint64 {
	b := NewBuilder(policy, Locality{})
	for i := range n {
		b.Put(int32(i), Member{Weight: 1, Key: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250)})
	}
	kept := []*Picker{b.Picker()}
	const rounds = 50
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range rounds {
		change(b, i)
		kept = append(kept, b.Picker())
	}
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(kept)
	return (after.TotalAlloc - before.TotalAlloc) / rounds
}

// TestChangeCostsWhatItTouches: with ten times the endpoints, a picker for one
// change allocates little more.
func TestChangeCostsWhatItTouches(t *testing.T) {
	for name, change := range map[string]func(b *Builder, round int){
		"a weight": func(b *Builder, i int) { b.Put(int32(17*i+3), Member{Weight: uint32(2 + i)}) },
		"a health": func(b *Builder, i int) { b.Put(int32(17*i+3), Member{Weight: 1, Health: Health(1 + i%3)}) },
		"one goes": func(b *Builder, i int) { b.Remove(int32(17*i + 3)) },
		"replaced": func(b *Builder, i int) {
			b.Remove(int32(17*i + 3))
			b.Put(int32(17*i+3), Member{Weight: 1, Key: "x"})
		},
	} {
		for _, kind := range []Kind{LeastRequest, Random, PeakEWMA, RoundRobin} {
			if kind == RoundRobin && name == "a weight" {
				continue // a written-out schedule, of up to 16 KiB at any size
			}
			small, large := swap(1000, Policy{Kind: kind}, change), swap(10000, Policy{Kind: kind}, change)
			t.Logf("%s, kind %d: %d bytes of 1,000, %d of 10,000", name, kind, small, large)
			if large > 2*small || large > 16<<10 {
				t.Errorf("%s, kind %d: a change allocates %d bytes among 1,000 endpoints and %d among 10,000", name, kind, small, large)
			}
		}
	}
}

// counting counts what a pick reads of the live world.
type counting struct{ reads int }

func (c *counting) Active(slot int32) int64              { c.reads++; return int64(slot) % 7 }
func (c *counting) Cost(slot int32, _ time.Time) float64 { c.reads++; return float64(slot % 7) }
func (c *counting) Joined(int32) time.Time               { c.reads++; return time.Time{} }
func (c *counting) Total() int64                         { c.reads++; return 0 }

// TestPickWorkDoesNotGrow counts what picks look at, among 10 endpoints and among 10,000.
func TestPickWorkDoesNotGrow(t *testing.T) {
	slow := &SlowStart{Window: time.Minute}
	for _, p := range []Policy{{Kind: LeastRequest}, {Kind: PeakEWMA}, {Kind: RoundRobin}, {Kind: Random}, {Kind: RingHash}, {Kind: Maglev}, {Kind: LeastRequest, SlowStart: slow}} {
		work := func(n int) int {
			all := make([]Endpoint, n)
			for i := range all {
				all[i] = Endpoint{Address: fmt.Sprint(i), Weight: 1}
			}
			picker := NewPicker(p, NewEndpoints(all, nil)).Warm(time.Unix(0, 0), time.Unix(0, 0))
			live := &counting{}
			random := rand.New(rand.NewPCG(1, 2))
			for i := range uint64(10000) {
				picker.Pick(&Query{Seq: i, Draw: random.Uint64(), Hash: random.Uint64(), HasHash: true, Now: time.Unix(1e6, 0)}, live)
			}
			return live.reads
		}
		if few, many := work(10), work(10000); few != many || few > 20000 {
			t.Errorf("kind %d reads %d live numbers among 10 endpoints, and %d among 10,000", p.Kind, few, many)
		}
	}
}

func BenchmarkPickAtSize(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		all := make([]Endpoint, n)
		unequal := make([]Endpoint, n)
		for i := range all {
			all[i] = Endpoint{Address: fmt.Sprint(i), Weight: 1}
			unequal[i] = Endpoint{Address: fmt.Sprint(i), Weight: uint32(1 + i%7)}
		}
		live := make(loads, n)
		for _, c := range []struct {
			name   string
			policy Policy
			all    []Endpoint
		}{
			{"round robin", Policy{Kind: RoundRobin}, all},
			{"round robin, weighted", Policy{Kind: RoundRobin}, unequal},
			{"least request", Policy{}, all},
			{"least request, weighted", Policy{}, unequal},
			{"peak EWMA", Policy{Kind: PeakEWMA}, all},
			{"ring hash", Policy{Kind: RingHash}, all},
			{"maglev", Policy{Kind: Maglev}, all},
		} {
			p := NewPicker(c.policy, NewEndpoints(c.all, nil))
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				b.ReportAllocs()
				q := Query{HasHash: true}
				for b.Loop() {
					q.Seq++
					q.Draw = next(q.Seq)
					q.Hash = q.Draw
					p.Pick(&q, live)
				}
			})
		}
	}
}

func BenchmarkSwap(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			builder := NewBuilder(Policy{}, Locality{})
			for i := range n {
				builder.Put(int32(i), Member{Weight: 1})
			}
			builder.Picker()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				builder.Put(int32(i%n), Member{Weight: 1, Health: Health(i / n % 2)})
				builder.Picker()
			}
		})
	}
}
