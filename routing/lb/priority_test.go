package lb

import (
	"math/rand/v2"
	"testing"
)

// of100 is a priority of 100 endpoints.
func of100(healthy, degraded uint64) PriorityHealth {
	return PriorityHealth{Healthy: healthy, HealthyWeight: healthy, Degraded: degraded, DegradedWeight: degraded, Total: 100, TotalWeight: 100}
}

func TestDistribute(t *testing.T) {
	for _, c := range []struct {
		name      string
		health    []PriorityHealth
		threshold float64
		want      []Load
		panics    []bool
	}{
		{"one", []PriorityHealth{of100(100, 0)}, 50, []Load{{100, 0}}, []bool{false}},
		{"one, enough", []PriorityHealth{of100(72, 0)}, 50, []Load{{100, 0}}, []bool{false}},
		{"one, some gone", []PriorityHealth{of100(50, 0)}, 50, []Load{{100, 0}}, []bool{false}},
		{"one in panic", []PriorityHealth{of100(49, 0)}, 50, []Load{{100, 0}}, []bool{true}},
		{"none usable, no panic", []PriorityHealth{of100(0, 0)}, 0, []Load{{100, 0}}, []bool{false}},
		{"empty", []PriorityHealth{{}}, 50, []Load{{100, 0}}, []bool{true}},
		// Envoy, "priority levels".
		{"two, first well", []PriorityHealth{of100(100, 0), of100(100, 0)}, 50, []Load{{100, 0}, {0, 0}}, []bool{false, false}},
		{"72", []PriorityHealth{of100(72, 0), of100(100, 0)}, 50, []Load{{100, 0}, {0, 0}}, []bool{false, false}},
		{"71", []PriorityHealth{of100(71, 0), of100(100, 0)}, 50, []Load{{99, 0}, {1, 0}}, []bool{false, false}},
		{"50", []PriorityHealth{of100(50, 0), of100(100, 0)}, 50, []Load{{70, 0}, {30, 0}}, []bool{false, false}},
		{"25", []PriorityHealth{of100(25, 0), of100(100, 0)}, 50, []Load{{35, 0}, {65, 0}}, []bool{false, false}},
		{"0", []PriorityHealth{of100(0, 0), of100(100, 0)}, 50, []Load{{0, 0}, {100, 0}}, []bool{false, false}},
		{"25, 25", []PriorityHealth{of100(25, 0), of100(25, 0)}, 0, []Load{{50, 0}, {50, 0}}, []bool{false, false}},
		{"three", []PriorityHealth{of100(25, 0), of100(25, 0), of100(100, 0)}, 50, []Load{{35, 0}, {35, 0}, {30, 0}}, []bool{false, false, false}},
		{"five", []PriorityHealth{of100(20, 0), of100(20, 0), of100(10, 0), of100(25, 0), of100(25, 0)}, 0,
			[]Load{{28, 0}, {28, 0}, {14, 0}, {30, 0}, {0, 0}}, []bool{false, false, false, false, false}},
		// Envoy, "degraded endpoints".
		{"71 and 29 degraded", []PriorityHealth{of100(71, 29)}, 50, []Load{{99, 1}}, []bool{false}},
		{"50 and 50 degraded", []PriorityHealth{of100(50, 50)}, 50, []Load{{70, 30}}, []bool{false}},
		{"25 and 75 degraded", []PriorityHealth{of100(25, 75)}, 50, []Load{{35, 65}}, []bool{false}},
		{"all degraded", []PriorityHealth{of100(0, 100)}, 50, []Load{{0, 100}}, []bool{false}},
		{"degraded come after the healthy of all priorities", []PriorityHealth{of100(0, 100), of100(100, 0)}, 50, []Load{{0, 0}, {100, 0}}, []bool{false, false}},
		{"not enough of all: in proportion, the first gets what rounding leaves",
			[]PriorityHealth{of100(10, 20), of100(20, 10), of100(10, 0)}, 0, []Load{{16, 28}, {28, 14}, {14, 0}}, []bool{false, false, false}},
		// Envoy, "panic threshold".
		{"no panic while all can carry the load", []PriorityHealth{of100(5, 0), of100(75, 0)}, 50, []Load{{7, 0}, {93, 0}}, []bool{false, false}},
		{"panic in one", []PriorityHealth{of100(5, 0), of100(65, 0)}, 50, []Load{{8, 0}, {92, 0}}, []bool{true, false}},
		{"panic in both: by size", []PriorityHealth{of100(30, 0), {Total: 300, TotalWeight: 300, Healthy: 60, HealthyWeight: 60}}, 50, []Load{{25, 0}, {75, 0}}, []bool{true, true}},
		{"degraded count against panic", []PriorityHealth{of100(30, 30)}, 60, []Load{{50, 50}}, []bool{false}},
		{"panic, with an empty first priority", []PriorityHealth{{}, of100(10, 0)}, 50, []Load{{0, 0}, {100, 0}}, []bool{true, true}},
		// Other factors, and by weight.
		{"no overprovisioning", []PriorityHealth{{Healthy: 50, HealthyWeight: 50, Total: 100, TotalWeight: 100, Overprovisioning: 100}, of100(100, 0)}, 50,
			[]Load{{50, 0}, {50, 0}}, []bool{false, false}},
		{"by weight", []PriorityHealth{{Healthy: 1, HealthyWeight: 90, Total: 2, TotalWeight: 100}, of100(100, 0)}, 50, []Load{{100, 0}, {0, 0}}, []bool{false, false}},
		{"the heaviest weights", []PriorityHealth{{Healthy: 5000, HealthyWeight: 5000 << 32, Total: 10000, TotalWeight: 10000 << 32}, of100(100, 0)}, 50, []Load{{70, 0}, {30, 0}}, []bool{false, false}},
	} {
		loads, panics := make([]Load, len(c.health)), make([]bool, len(c.health))
		Distribute(c.health, c.threshold, loads, panics)
		for i := range c.want {
			if loads[i] != c.want[i] || panics[i] != c.panics[i] {
				t.Errorf("%s: loads %v, panic %v; want %v, %v", c.name, loads, panics, c.want, c.panics)
				break
			}
		}
	}
}

func TestDistributeAlwaysGivesAll(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for range 20000 {
		health := make([]PriorityHealth, 1+random.IntN(6))
		for i := range health {
			total := uint64(random.IntN(40))
			h := random.Uint64N(total + 1)
			d := random.Uint64N(total - h + 1)
			health[i] = PriorityHealth{Healthy: h, HealthyWeight: h, Degraded: d, DegradedWeight: d, Total: total, TotalWeight: total}
		}
		threshold := float64(random.IntN(101))
		loads, panics := make([]Load, len(health)), make([]bool, len(health))
		Distribute(health, threshold, loads, panics)
		sum := uint32(0)
		for i := range loads {
			sum += loads[i].Healthy + loads[i].Degraded
			if !panics[i] && (loads[i].Healthy > 0 && health[i].Healthy == 0 || loads[i].Degraded > 0 && health[i].Degraded == 0) && threshold > 0 {
				t.Fatalf("%+v with threshold %v: load %v for nobody", health, threshold, loads)
			}
		}
		if sum != 100 {
			t.Fatalf("%+v with threshold %v: loads %v", health, threshold, loads)
		}
		excluded := random.Uint64N(1 << len(health))
		if Redistribute(health, excluded, loads) {
			sum = 0
			for i := range loads {
				if sum += loads[i].Healthy + loads[i].Degraded; excluded>>i&1 != 0 && loads[i] != (Load{}) {
					t.Fatalf("load %v for the excluded %b", loads, excluded)
				}
			}
			if sum != 100 {
				t.Fatalf("%+v without %b: loads %v", health, excluded, loads)
			}
		}
	}
}

func TestChooseAtEachBoundary(t *testing.T) {
	loads := []Load{{30, 5}, {0, 15}, {50, 0}}
	counts := map[[2]int]int{}
	for draw := range uint64(100) {
		priority, useDegraded := Choose(loads, draw)
		key := [2]int{priority, 0}
		if useDegraded {
			key[1] = 1
		}
		counts[key]++
	}
	for i, l := range loads {
		if counts[[2]int{i, 0}] != int(l.Healthy) || counts[[2]int{i, 1}] != int(l.Degraded) {
			t.Errorf("counts %v, want %v", counts, loads)
		}
	}
}

// TestExcludedPriorities: a request that was tried in a priority goes to
// another one, and where there is no other, back to the same.
func TestExcludedPriorities(t *testing.T) {
	eps := &Endpoints{All: []Endpoint{{Address: "a", Weight: 1}, {Address: "b", Weight: 1, Priority: 1}, {Address: "c", Weight: 1, Priority: 2, Health: Unhealthy}}}
	p := NewPicker(Policy{Kind: RoundRobin}, eps)
	for excluded, want := range map[uint64]int{0: 0, 1: 1, 2: 0, 3: 0, 4: 0, 5: 1, 7: 0} {
		for draw := range uint64(50) {
			if _, got := p.Pick(&Query{Draw: next(draw), Excluded: excluded}, nil); got != want {
				t.Errorf("without %b the priority is %d, want %d", excluded, got, want)
			}
		}
	}
}
