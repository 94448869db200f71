package lb

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// loads is a live world for tests: requests in flight by endpoint.
type loads []int64

func (l loads) Active(slot int32) int64              { return l[slot] }
func (l loads) Cost(slot int32, _ time.Time) float64 { return float64(l[slot]) }
func (l loads) Joined(int32) time.Time               { return time.Time{} }
func (l loads) Total() int64 {
	sum := int64(0)
	for _, n := range l {
		sum += n
	}
	return sum
}

// still is a picker over those of a set that are usable, for tests that look at one choice at a time.
type still struct{ *Picker }

func fixed(p Policy, eps *Endpoints, usable []int32) still {
	some := NewEndpoints(eps.All, nil)
	for i := range some.All {
		if !slices.Contains(usable, int32(i)) {
			some.All[i].Health = Unhealthy
		}
	}
	return still{NewPicker(p, some)}
}

func (p still) Pick(seq, draw uint64, live Loads) int {
	slot, _ := p.Picker.Pick(&Query{Seq: seq, Draw: draw}, live)
	return int(slot)
}

func TestPickersWithoutAChoice(t *testing.T) {
	eps, usable := endpoints(1, 2, 3)
	for _, kind := range []Kind{LeastRequest, RoundRobin, Random} {
		if got := fixed(Policy{Kind: kind}, eps, nil).Pick(1, 2, loads{0, 0, 0}); got != -1 {
			t.Errorf("kind %d picks %d of none", kind, got)
		}
		for _, draw := range []uint64{0, math.MaxUint64} {
			if got := fixed(Policy{Kind: kind}, eps, usable[2:]).Pick(1, draw, loads{0, 0, 9}); got != 2 {
				t.Errorf("kind %d picks %d where only 2 is usable", kind, got)
			}
		}
	}
}

// TestPickersStayAmongTheUsable picks at the ends of the range of draws and in it.
func TestPickersStayAmongTheUsable(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, weights := range [][]uint32{{1, 1, 1, 1, 1}, {1, 2, 3, 4, 5}, {4e9, 1, 4e9, 7, 4e9}} {
		eps, _ := endpoints(weights...)
		usable := []int32{1, 2, 4}
		for _, policy := range []Policy{{Kind: RoundRobin}, {Kind: Random}, {}, {Choices: 1}, {Choices: 2}, {Choices: 3}, {Choices: 100}} {
			p := fixed(policy, eps, usable)
			seen := map[int]bool{}
			for i := range 3000 {
				draw := random.Uint64()
				switch i {
				case 0:
					draw = 0
				case 1:
					draw = math.MaxUint64
				}
				got := p.Pick(random.Uint64(), draw, loads{0, 0, 0, 0, 0})
				if !slices.Contains(usable, int32(got)) {
					t.Fatalf("%+v picks %d, usable are %v", policy, got, usable)
				}
				seen[got] = true
			}
			if len(seen) != len(usable) && weights[4] < 1e9 {
				t.Errorf("%+v on weights %v picks only %v", policy, weights, seen)
			}
		}
	}
}

func TestRoundRobin(t *testing.T) {
	eps, usable := endpoints(7, 7, 7)
	p := fixed(Policy{Kind: RoundRobin}, eps, usable)
	for seq := range uint64(9) {
		if got := p.Pick(seq, 0, nil); got != int(seq%3) {
			t.Errorf("request %d goes to %d", seq, got)
		}
	}
}

// TestWeightedRoundRobin asks that each run has exactly the weights, and that an
// endpoint's requests are spread: none waits much longer than its share.
func TestWeightedRoundRobin(t *testing.T) {
	for _, c := range []struct {
		name    string
		weights []uint32
		run     int
		stretch float64 // longest gap between two of an endpoint's requests, as a multiple of sum/weight
	}{
		{"small", []uint32{1, 2, 3}, 6, 1.5},
		{"common divisor", []uint32{100, 300, 200}, 6, 1.5},
		{"one heavy, two light that are due together", []uint32{1, 1, 8}, 10, 2.4},
		{"longest schedule", []uint32{4095, 1}, 4096, 2},
		{"too long to write out", []uint32{4096, 1}, 4097, 2},
		{"many, too long", []uint32{1, 10, 100, 1000, 10000, 17, 170}, 11298, 3},
	} {
		eps, usable := endpoints(c.weights...)
		p := fixed(Policy{Kind: RoundRobin}, eps, usable)
		sum := 0.0
		for _, w := range c.weights {
			sum += float64(w)
		}
		for _, start := range []uint64{0, uint64(c.run) * 1000} {
			counts := make([]int, len(c.weights))
			last := make([]int, len(c.weights))
			for i := range last {
				last[i] = -1
			}
			for i := range 2 * c.run {
				e := p.Pick(start+uint64(i), 0, nil)
				if i < c.run {
					counts[e]++
				}
				if gap := float64(i - last[e]); last[e] >= 0 && gap > math.Ceil(c.stretch*sum/float64(c.weights[e])) {
					t.Errorf("%s: endpoint %d waits %v requests, its share is one of %v", c.name, e, gap, sum/float64(c.weights[e]))
				}
				last[e] = i
			}
			for i, n := range counts {
				if float64(n) != float64(c.weights[i])*float64(c.run)/sum {
					t.Errorf("%s: endpoint %d has %d of %d requests, its weight is %d of %v", c.name, i, n, c.run, c.weights[i], sum)
				}
			}
		}
	}
}

func TestWeightedRoundRobinOrder(t *testing.T) {
	eps, usable := endpoints(1, 2, 1)
	p := fixed(Policy{Kind: RoundRobin}, eps, usable)
	var got []int
	for seq := range uint64(4) {
		got = append(got, p.Pick(seq, 0, nil))
	}
	if want := []int{1, 0, 2, 1}; !slices.Equal(got, want) {
		t.Errorf("the order is %v, want %v", got, want)
	}
}

// shares picks n times with draws that are evenly spaced over all 64-bit values.
func shares(p still, endpoints, n int, live Loads) []float64 {
	counts := make([]float64, endpoints)
	step := math.MaxUint64/uint64(n) + 1
	for i := range n {
		counts[p.Pick(uint64(i), uint64(i)*step, live)] += 1 / float64(n)
	}
	return counts
}

func within(t *testing.T, name string, got []float64, want []float64, tolerance float64) {
	t.Helper()
	for i := range want {
		if math.Abs(got[i]-want[i]) > tolerance {
			t.Errorf("%s: shares %.4f, want %.4f", name, got, want)
			return
		}
	}
}

func TestRandomShares(t *testing.T) {
	eps, usable := endpoints(2, 2, 2, 2)
	within(t, "equal", shares(fixed(Policy{Kind: Random}, eps, usable), 4, 40000, nil), []float64{.25, .25, .25, .25}, 1e-4)
	eps, usable = endpoints(1, 2, 3, 4)
	within(t, "weighted", shares(fixed(Policy{Kind: Random}, eps, usable), 4, 40000, nil), []float64{.1, .2, .3, .4}, 1e-4)
}

func TestLeastRequestSharesWhenIdle(t *testing.T) {
	eps, usable := endpoints(1, 1, 1, 1)
	idle := loads{0, 0, 0, 0}
	within(t, "equal", shares(fixed(Policy{}, eps, usable), 4, 40000, idle), []float64{.25, .25, .25, .25}, 1e-4)
	eps, usable = endpoints(1, 2, 3, 4)
	within(t, "weighted", shares(fixed(Policy{}, eps, usable), 4, 40000, idle), []float64{.1, .2, .3, .4}, 1e-4)
}

// TestLeastRequestOfTwo has no luck in it: both of two endpoints are always compared.
func TestLeastRequestOfTwo(t *testing.T) {
	for _, weights := range [][]uint32{{1, 1}, {3, 1}} {
		eps, usable := endpoints(weights...)
		p := fixed(Policy{}, eps, usable)
		random := rand.New(rand.NewPCG(5, 6))
		for range 1000 {
			if got := p.Pick(0, random.Uint64(), loads{50, 0}); got != 1 {
				t.Fatalf("weights %v: a request goes to the busy one", weights)
			}
			if got := p.Pick(0, random.Uint64(), loads{0, 50}); got != 0 {
				t.Fatalf("weights %v: a request goes to the busy one", weights)
			}
		}
	}
}

// TestLeastRequestOrder: of n endpoints, the busiest is taken only where it is
// drawn alone, which two choices never do, and the k-th least busy with the
// probability that both draws are among it and the busier.
func TestLeastRequestOrder(t *testing.T) {
	eps, usable := endpoints(1, 1, 1, 1, 1)
	live := loads{0, 1, 2, 3, 4}
	// Pairs of 5: 10. The least busy wins 4 of them, the next 3, 2, 1, 0.
	within(t, "two choices", shares(fixed(Policy{Choices: 2}, eps, usable), 5, 100000, live), []float64{.4, .3, .2, .1, 0}, 0.005)
	within(t, "one choice", shares(fixed(Policy{Choices: 1}, eps, usable), 5, 100000, live), []float64{.2, .2, .2, .2, .2}, 1e-4)
	four := shares(fixed(Policy{Choices: 4}, eps, usable), 5, 100000, live)
	if four[0] < .6 || four[3] > .02 || four[4] != 0 {
		t.Errorf("four choices: shares %.3f", four)
	}
}

// TestLeastRequestBalances keeps a number of requests in flight that end in
// random order: each endpoint carries its weight's share of them.
func TestLeastRequestBalances(t *testing.T) {
	for _, c := range []struct {
		name    string
		weights []uint32
		flight  int
		within  float64 // of the share
	}{
		{"equal", []uint32{1, 1, 1, 1}, 200, .1},
		{"weighted", []uint32{1, 2, 3, 4}, 200, .1},
		{"weighted, one in flight", []uint32{4, 1}, 1, .2},
		{"weighted, two in flight", []uint32{4, 1}, 2, .4},
		{"very unequal", []uint32{1000, 10, 10}, 1020, .2},
	} {
		eps, usable := endpoints(c.weights...)
		p := fixed(Policy{}, eps, usable)
		random := rand.New(rand.NewPCG(7, 8))
		live := make(loads, len(c.weights))
		var flight []int
		requests := make([]float64, len(c.weights))
		sum := 0.0
		for _, w := range c.weights {
			sum += float64(w)
		}
		const n = 40000
		for i := range n {
			e := p.Pick(uint64(i), random.Uint64(), live)
			live[e]++
			flight = append(flight, e)
			requests[e] += 1.0 / n
			if len(flight) > c.flight {
				j := random.IntN(len(flight))
				live[flight[j]]--
				flight[j] = flight[len(flight)-1]
				flight = flight[:len(flight)-1]
			}
		}
		for i, w := range c.weights {
			if want := float64(w) / sum; math.Abs(requests[i]-want) > c.within*want {
				t.Errorf("%s: endpoint %d of weight %d has %.3f of the requests, want about %.3f", c.name, i, w, requests[i], want)
			}
		}
	}
}

func TestScaleAndNext(t *testing.T) {
	// The published first output of SplitMix64 from the state 0.
	if got := next(0); got != 0xe220a8397b1dcdaf {
		t.Errorf("next(0) = %#x", got)
	}
	for _, n := range []uint64{1, 2, 3, 1 << 40} {
		if scale(0, n) != 0 || scale(math.MaxUint64, n) != n-1 {
			t.Errorf("scale to %d covers %d to %d", n, scale(0, n), scale(math.MaxUint64, n))
		}
	}
}

func TestOtherNeverDrawsTheSame(t *testing.T) {
	for _, weights := range [][]uint32{{5, 1, 3, 1}, {1, 1, 1, 1}} {
		eps, usable := endpoints(weights...)
		pool := fixed(Policy{Kind: Random}, eps, usable).prios[0].pools[healthy]
		for not := range usable {
			counts := map[int]int{}
			rest := pool.bag.total - pool.bag.weight(not)
			step := math.MaxUint64/rest + 1
			for i := range rest {
				counts[pool.other(not, i*step)]++
			}
			for i, weight := range weights {
				want := int(weight)
				if i == not {
					want = 0
				}
				if counts[i] != want {
					t.Errorf("all but %d: %d is drawn %d times, want %d", not, i, counts[i], want)
				}
			}
		}
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	var live Loads = make(loads, 5)
	for _, weights := range [][]uint32{{1, 1, 1, 1, 1}, {1, 2, 3, 4, 5}, {4e9, 1, 4e9, 7, 4e9}} {
		eps, usable := endpoints(weights...)
		for _, policy := range []Policy{{Kind: RoundRobin}, {Kind: Random}, {Kind: LeastRequest}, {Choices: 4}} {
			p := fixed(policy, eps, usable)
			seq := uint64(0)
			if n := testing.AllocsPerRun(100, func() { seq++; p.Pick(seq, seq<<50, live) }); n != 0 {
				t.Errorf("%+v on %v allocates %v times", policy, weights, n)
			}
		}
	}
}

func BenchmarkPick(b *testing.B) {
	equal, unequal := make([]uint32, 100), make([]uint32, 100)
	long := make([]uint32, 100)
	for i := range equal {
		equal[i], unequal[i], long[i] = 1, uint32(1+i%7), uint32(1+i*i*1000)
	}
	var live Loads = make(loads, 100)
	for _, c := range []struct {
		name    string
		policy  Policy
		weights []uint32
	}{
		{"round robin", Policy{Kind: RoundRobin}, equal},
		{"round robin, weighted", Policy{Kind: RoundRobin}, unequal},
		{"round robin, large weights", Policy{Kind: RoundRobin}, long},
		{"random", Policy{Kind: Random}, equal},
		{"random, weighted", Policy{Kind: Random}, unequal},
		{"least request", Policy{}, equal},
		{"least request, weighted", Policy{}, unequal},
	} {
		b.Run(c.name, func(b *testing.B) {
			eps, usable := endpoints(c.weights...)
			p := fixed(c.policy, eps, usable)
			b.ReportAllocs()
			seq := uint64(0)
			for b.Loop() {
				seq++
				p.Pick(seq, seq*0x9e3779b97f4a7c15, live)
			}
		})
	}
}
