package lb

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// fourDeviations asks that counts of n seeded picks agree with the shares, and
// that what has no share is never picked.
func fourDeviations(t *testing.T, name string, counts []int, n int, shares []float64) {
	t.Helper()
	for i, share := range shares {
		want := share * float64(n)
		if off := math.Abs(float64(counts[i]) - want); off > 4*math.Sqrt(want*(1-share))+1e-9 {
			t.Errorf("%s: %d has %d of %d, want %.0f", name, i, counts[i], n, want)
		}
		if share == 0 && counts[i] != 0 {
			t.Errorf("%s: %d, which has no share, is picked", name, i)
		}
	}
}

const seeded = 100_000

func picks(p *Picker, live Loads, now time.Time) []int {
	random := rand.New(rand.NewPCG(11, 12))
	counts := make([]int, p.Len())
	for i := range seeded {
		slot, _ := p.Pick(&Query{Seq: uint64(i), Draw: random.Uint64(), Now: now}, live)
		counts[slot]++
	}
	return counts
}

func normal(weights ...float64) []float64 {
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	out := make([]float64, len(weights))
	for i, w := range weights {
		out[i] = w / sum
	}
	return out
}

func TestWeightedShares(t *testing.T) {
	idle := make(loads, 8)
	for _, weights := range [][]uint32{{1, 1, 1}, {1, 2, 3, 4}, {1000, 1, 10, 100}, {4e9, 4e9, 1}} {
		eps, _ := endpoints(weights...)
		want := make([]float64, len(weights))
		for i, w := range weights {
			want[i] = float64(w)
		}
		none := 0.0
		for _, p := range []Policy{{Kind: Random}, {Kind: RoundRobin}, {Kind: LeastRequest}, {Kind: LeastRequest, ActiveBias: &none}, {Kind: LeastRequest, Choices: 5}} {
			fourDeviations(t, fmt.Sprintf("%+v on %v", p, weights), picks(NewPicker(p, eps), idle, time.Time{}), seeded, normal(want...))
		}
	}
}

// TestManyWeights has more endpoints than a leaf, with weights that differ.
func TestManyWeights(t *testing.T) {
	const n = 1000
	weights, want := make([]uint32, n), make([]float64, n)
	for i := range weights {
		weights[i] = uint32(1 + i%17)
		want[i] = float64(weights[i])
	}
	eps, _ := endpoints(weights...)
	live := make(loads, n)
	for _, kind := range []Kind{Random, RoundRobin, LeastRequest} {
		fourDeviations(t, fmt.Sprint("kind ", kind), picks(NewPicker(Policy{Kind: kind}, eps), live, time.Time{}), seeded, normal(want...))
	}
}

func TestLocalityWeights(t *testing.T) {
	zone := func(s string) Locality { return Locality{Zone: s} }
	set := func(priority uint32, from string, n, bad int, at int) []Endpoint {
		var all []Endpoint
		for i := range n {
			e := Endpoint{Address: fmt.Sprint(at + i), Weight: 1, Locality: zone(from), Priority: priority}
			if i < bad {
				e.Health = Unhealthy
			}
			all = append(all, e)
		}
		return all
	}
	for _, c := range []struct {
		name    string
		all     []Endpoint
		weights []LocalityWeight
		want    []float64 // by endpoint
	}{
		{"by weight, whatever their size", append(set(0, "a", 1, 0, 0), set(0, "b", 3, 0, 1)...), []LocalityWeight{{zone("a"), 0, 1}, {zone("b"), 0, 1}}, []float64{3, 1, 1, 1}},
		{"weight 0", append(set(0, "a", 1, 0, 0), set(0, "b", 1, 0, 1)...), []LocalityWeight{{zone("a"), 0, 1}, {zone("b"), 0, 0}}, []float64{1, 0}},
		{"without a weight", append(set(0, "a", 1, 0, 0), set(0, "b", 1, 0, 1)...), []LocalityWeight{{zone("a"), 0, 1}}, []float64{1, 0}},
		{"no weights at all: every endpoint", append(set(0, "a", 1, 0, 0), set(0, "b", 1, 0, 1)...), nil, []float64{1, 1}},
		// Half of b is gone: 1.4 x 1/2 of its weight is left.
		{"health counts", append(set(0, "a", 2, 0, 0), set(0, "b", 2, 1, 2)...), []LocalityWeight{{zone("a"), 0, 1}, {zone("b"), 0, 1}}, []float64{.5, .5, 0, .7}},
		{"of another priority", append(set(0, "a", 1, 0, 0), set(0, "b", 1, 0, 1)...), []LocalityWeight{{zone("a"), 0, 1}, {zone("b"), 0, 3}, {zone("a"), 1, 100}}, []float64{1, 3}},
	} {
		eps := NewEndpoints(c.all, nil)
		eps.Localities = c.weights
		p := NewPicker(Policy{Kind: Random, LocalityWeighted: true}, eps)
		fourDeviations(t, c.name, picks(p, nil, time.Time{}), seeded, normal(c.want...))
	}
}

func TestZoneAware(t *testing.T) {
	build := func(z ZoneAware, panicThreshold float64, zones ...int) *Picker {
		b := NewBuilder(Policy{Kind: Random, ZoneAware: &z, PanicThreshold: panicThreshold}, Locality{Region: "r", Zone: "0"})
		slot := int32(0)
		for i, n := range zones {
			for range n {
				b.Put(slot, Member{Locality: Locality{Region: "r", Zone: fmt.Sprint(i), SubZone: fmt.Sprint(slot)}})
				slot++
			}
		}
		return b.Picker()
	}
	each := func(shares []float64, zones ...int) (out []float64) {
		for i, n := range zones {
			for range n {
				out = append(out, shares[i]/float64(n))
			}
		}
		return out
	}
	all := ZoneAware{Enabled: 100}
	for _, c := range []struct {
		name  string
		z     ZoneAware
		zones []int
		want  []float64
	}{
		{"as many as others: all stay", all, []int{3, 3}, []float64{1, 0}},
		{"more than others: all stay", all, []int{6, 3}, []float64{1, 0}},
		// A quarter of the endpoints for a half of the callers: half of the requests stay, the rest goes where there is room.
		{"fewer", all, []int{2, 6}, []float64{.5, .5}},
		// Shares .2, .5, .3 of callers of 1/3 each: .6 stay, and only the second has room.
		{"only to those with room", all, []int{4, 10, 6}, []float64{.6, .4, 0}},
		{"only to those with room, after one without", all, []int{4, 6, 10}, []float64{.6, 0, .4}},
		{"too few endpoints", all, []int{1, 4}, []float64{.2, .8}},
		{"none in our zone", all, []int{0, 3, 3}, []float64{0, .5, .5}},
		{"for none", ZoneAware{Enabled: 0}, []int{3, 3}, []float64{.5, .5}},
		{"for half", ZoneAware{Enabled: 50}, []int{3, 3}, []float64{.75, .25}},
		{"forced", ZoneAware{Enabled: 100, ForceLocal: true}, []int{1, 9}, []float64{1, 0}},
		{"forced, but too few", ZoneAware{Enabled: 100, ForceLocal: true, ForceMinimum: 2}, []int{1, 9}, []float64{.2, .8}},
	} {
		counts := picks(build(c.z, 50, c.zones...), nil, time.Time{})
		fourDeviations(t, c.name, counts, seeded, each(c.want, c.zones...))
	}
	// In panic, policy may have requests fail.
	b := NewBuilder(Policy{ZoneAware: &ZoneAware{FailOnPanic: true}, PanicThreshold: 50}, Locality{})
	b.Put(0, Member{Health: Unhealthy})
	if slot, _ := b.Picker().Pick(&Query{}, loads{0}); slot != -1 {
		t.Errorf("picks %d in panic", slot)
	}
}

// joined is a live world of idle endpoints that came at different times.
type joined []time.Time

func (j joined) Active(int32) int64            { return 0 }
func (j joined) Cost(int32, time.Time) float64 { return 1 }
func (j joined) Joined(slot int32) time.Time   { return j[slot] }
func (j joined) Total() int64                  { return 0 }

func TestSlowStart(t *testing.T) {
	now := time.Unix(1000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		name    string
		s       SlowStart
		joined  joined
		weights []uint32
		want    []float64
	}{
		{"half way", SlowStart{Window: 10 * time.Second, Aggression: 1, MinWeight: 10}, joined{ago(time.Hour), ago(5 * time.Second)}, []uint32{1, 1}, []float64{1, .5}},
		{"at the beginning", SlowStart{Window: 10 * time.Second, Aggression: 1, MinWeight: 10}, joined{ago(time.Hour), ago(time.Hour), now}, []uint32{1, 1, 1}, []float64{1, 1, .1}},
		{"over", SlowStart{Window: 10 * time.Second, Aggression: 1, MinWeight: 10}, joined{ago(time.Hour), ago(10 * time.Second)}, []uint32{1, 1}, []float64{1, 1}},
		{"aggression 2", SlowStart{Window: 100 * time.Second, Aggression: 2, MinWeight: 10}, joined{ago(time.Hour), ago(25 * time.Second)}, []uint32{1, 1}, []float64{1, .5}},
		{"with weights", SlowStart{Window: 10 * time.Second, Aggression: 1, MinWeight: 10}, joined{ago(time.Hour), ago(5 * time.Second)}, []uint32{1, 4}, []float64{1, 2}},
		{"all new", SlowStart{Window: 10 * time.Second, Aggression: 1, MinWeight: 10}, joined{now, now}, []uint32{1, 3}, []float64{1, 3}},
		{"all on the way", SlowStart{Window: 10 * time.Second, Aggression: 1, MinWeight: 10}, joined{ago(4 * time.Second), ago(2 * time.Second)}, []uint32{1, 1}, []float64{4, 2}},
	} {
		eps, _ := endpoints(c.weights...)
		oldest, newest := c.joined[0], c.joined[0]
		for _, j := range c.joined {
			if j.Before(oldest) {
				oldest = j
			}
			if j.After(newest) {
				newest = j
			}
		}
		for _, kind := range []Kind{RoundRobin, LeastRequest} {
			p := NewPicker(Policy{Kind: kind, SlowStart: &c.s, Choices: 1}, eps).Warm(oldest, newest)
			fourDeviations(t, fmt.Sprint(c.name, ", kind ", kind), picks(p, c.joined, now), seeded, normal(c.want...))
		}
	}
	// Random and hashes have none, as in Envoy.
	eps, _ := endpoints(1, 1)
	s := SlowStart{Window: time.Hour, MinWeight: 1}
	p := NewPicker(Policy{Kind: Random, SlowStart: &s}, eps).Warm(ago(2*time.Hour), now)
	fourDeviations(t, "random", picks(p, joined{ago(2 * time.Hour), now}, now), seeded, []float64{.5, .5})
}

func TestActiveBias(t *testing.T) {
	eps, _ := endpoints(2, 1)
	share := func(bias float64) float64 {
		counts := picks(NewPicker(Policy{ActiveBias: &bias}, eps), loads{9, 0}, time.Time{})
		return float64(counts[0]) / seeded
	}
	if none, half, full, more := share(0), share(.5), share(1), share(2); none < .6 || half > none-.1 || more > half-.1 || full > half {
		t.Errorf("the busy heavy endpoint has %v without bias, %v, %v and %v with more", none, half, full, more)
	}
}

func TestFullScan(t *testing.T) {
	eps, _ := endpoints(1, 1, 1, 1)
	p := NewPicker(Policy{FullScan: true}, eps)
	fourDeviations(t, "least of all", picks(p, loads{3, 1, 2, 1}, time.Time{}), seeded, []float64{0, .5, 0, .5})
	fourDeviations(t, "least of three", picks(p, loads{1, 1, 2, 1}, time.Time{}), seeded, []float64{1. / 3, 1. / 3, 0, 1. / 3})
	eps, _ = endpoints(1, 4, 2)
	// (active+1)/weight is 1, 1 and 1.5.
	fourDeviations(t, "by weight", picks(NewPicker(Policy{FullScan: true}, eps), loads{0, 3, 2}, time.Time{}), seeded, []float64{.5, .5, 0})
}

func TestBoundedLoad(t *testing.T) {
	for _, kind := range []Kind{RingHash, Maglev} {
		const n = 10
		eps, _ := endpoints(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
		p := Policy{Kind: kind}
		p.Ring.Options.BalanceFactor, p.Table.Options.BalanceFactor = 150, 150
		picker, live := NewPicker(p, eps), make(loads, n)
		free := NewPicker(Policy{Kind: kind}, eps)
		hash := uint64(12345)
		first, _ := free.Pick(&Query{Hash: hash, HasHash: true}, live)
		if got, _ := picker.Pick(&Query{Hash: hash, HasHash: true}, live); got != first {
			t.Errorf("kind %d: an idle cluster sends the key to %d, want %d", kind, got, first)
		}
		for range 1000 {
			slot, _ := picker.Pick(&Query{Hash: hash, HasHash: true}, live)
			live[slot]++
		}
		for slot, active := range live {
			// One key alone: no endpoint has more than half beyond the mean, and one more.
			if active > 152 {
				t.Errorf("kind %d: endpoint %d has %d of 1000", kind, slot, active)
			}
		}
		if live[first] < 100 {
			t.Errorf("kind %d: the key's own endpoint has %d", kind, live[first])
		}
	}
}

// TestMaglevMoves: when one endpoint leaves, few keys but its own move.
func TestMaglevMoves(t *testing.T) {
	for _, n := range []int{3, 10, 100} {
		b := NewBuilder(Policy{Kind: Maglev}, Locality{})
		for i := range n {
			b.Put(int32(i), Member{Key: fmt.Sprintf("10.0.%d.%d:8080", i/250, i%250)})
		}
		before := b.Picker()
		b.Remove(int32(n / 2))
		after := b.Picker()
		moved := 0
		for i := range uint64(DefaultTableSize) {
			x, _ := before.Pick(&Query{Hash: i, HasHash: true}, nil)
			if y, _ := after.Pick(&Query{Hash: i, HasHash: true}, nil); x != y {
				moved++
			}
		}
		if limit := (1/float64(n) + .01) * DefaultTableSize; float64(moved) > limit {
			t.Errorf("of %d endpoints one leaves, and %d of %d keys move, at most %.0f should", n, moved, DefaultTableSize, limit)
		}
	}
}
