package lb

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

func endpoints(weights ...uint32) (*Endpoints, []int32) {
	all := make([]Endpoint, len(weights))
	usable := make([]int32, len(weights))
	for i, w := range weights {
		all[i] = Endpoint{Address: fmt.Sprintf("10.0.0.%d:80", i), Weight: w}
		usable[i] = int32(i)
	}
	return NewEndpoints(all, nil), usable
}

func TestNewEndpointsCopies(t *testing.T) {
	all := []Endpoint{{Address: "a"}, {Address: "b", Weight: 3}}
	drops := []Drop{{Category: "x", PerMillion: 1}}
	e := NewEndpoints(all, drops)
	all[1].Address, drops[0].PerMillion = "changed", 2
	if e.All[0].Weight != 1 || e.All[1].Weight != 3 || e.All[1].Address != "b" || e.Drops[0].PerMillion != 1 {
		t.Errorf("%+v", e)
	}
	if all[0].Weight != 0 {
		t.Error("the caller's endpoint was changed")
	}
}

// TestUsable has one priority: who may be picked, and when all are.
func TestUsable(t *testing.T) {
	const h, d, g, u = Healthy, Degraded, Draining, Unhealthy
	for _, c := range []struct {
		name      string
		health    []Health
		threshold float64
		want      []int // slots that are picked
		usable    int
		panicked  bool
	}{
		{name: "none", threshold: 50},
		{name: "all healthy", health: []Health{h, h}, threshold: 50, want: []int{0, 1}, usable: 2},
		{name: "enough healthy to do without the degraded", health: []Health{h, h, h, d}, threshold: 50, want: []int{0, 1, 2}, usable: 3},
		{name: "degraded take what the healthy can not", health: []Health{h, u, h, g, d}, threshold: 50, want: []int{0, 2, 4}, usable: 3},
		{name: "degraded where none is healthy", health: []Health{u, d, d}, threshold: 50, want: []int{1, 2}, usable: 2},
		{name: "degraded count against panic", health: []Health{h, d, u, u}, threshold: 50, want: []int{0, 1}, usable: 2},
		{name: "at the threshold", health: []Health{h, u}, threshold: 50, want: []int{0}, usable: 1},
		{name: "below the threshold", health: []Health{h, u, u}, threshold: 50, want: []int{0, 1, 2}, usable: 3, panicked: true},
		{name: "none healthy", health: []Health{u, g}, threshold: 50, want: []int{0, 1}, usable: 2, panicked: true},
		{name: "no threshold", health: []Health{h, u, u}, want: []int{0}, usable: 1},
		{name: "no threshold, none healthy", health: []Health{u, g}},
		{name: "enough to carry the load", health: []Health{h, h, h, h, h, h, h, h, u, u, u}, threshold: 100, want: []int{0, 1, 2, 3, 4, 5, 6, 7}, usable: 8},
		{name: "not enough to carry the load", health: []Health{h, h, h, h, u, u}, threshold: 100, want: []int{0, 1, 2, 3, 4, 5}, usable: 6, panicked: true},
	} {
		all := make([]Endpoint, len(c.health))
		for i := range all {
			all[i].Health = c.health[i]
		}
		for _, kind := range []Kind{RoundRobin, Random, LeastRequest, PeakEWMA, ClientWeighted} {
			p := NewPicker(Policy{Kind: kind, PanicThreshold: c.threshold}, NewEndpoints(all, nil))
			random := rand.New(rand.NewPCG(1, 2))
			seen := map[int]bool{}
			for i := range uint64(2000) {
				slot, _ := p.Pick(&Query{Seq: i, Draw: random.Uint64()}, make(loads, len(all)))
				if slot >= 0 {
					seen[int(slot)] = true
				}
			}
			got := slices.Sorted(maps.Keys(seen))
			if !slices.Equal(got, c.want) || p.Usable() != c.usable || p.Panics() != c.panicked || p.Len() != len(all) {
				t.Errorf("%s, kind %d: picks %v of %d usable, panic %v; want %v of %d, panic %v", c.name, kind, got, p.Usable(), p.Panics(), c.want, c.usable, c.panicked)
			}
		}
	}
}

// TestExcluded: what is excluded is not even used in panic, nor counted.
func TestExcluded(t *testing.T) {
	b := NewBuilder(Policy{Kind: Random, PanicThreshold: 50}, Locality{})
	b.Put(0, Member{Excluded: true})
	b.Put(1, Member{Health: Unhealthy})
	b.Put(2, Member{Health: Unhealthy})
	p := b.Picker()
	for i := range uint64(100) {
		if slot, _ := p.Pick(&Query{Draw: next(i)}, nil); slot != 1 && slot != 2 {
			t.Fatalf("picks %d", slot)
		}
	}
	b.Put(1, Member{Excluded: true})
	b.Put(2, Member{Excluded: true})
	if p := b.Picker(); p.Usable() != 0 || p.Len() != 3 {
		t.Errorf("%d of %d are usable", p.Usable(), p.Len())
	} else if slot, _ := p.Pick(&Query{}, nil); slot != -1 {
		t.Errorf("picks %d of none", slot)
	}
}

// TestDescribe: what policy says of the set as a whole reaches the priorities.
func TestDescribe(t *testing.T) {
	eps := &Endpoints{All: []Endpoint{
		{Address: "a", Weight: 90}, {Address: "b", Weight: 10, Health: Unhealthy}, {Address: "c", Weight: 1, Priority: 1},
	}}
	for _, c := range []struct {
		factor   uint32
		byWeight bool
		want     uint32 // of priority 0
	}{{0, false, 70}, {140, false, 70}, {100, false, 50}, {200, false, 100}, {100, true, 90}, {0, true, 100}} {
		eps.Overprovisioning, eps.WeightedPriorityHealth = c.factor, c.byWeight
		if got := NewPicker(Policy{}, eps).Loads(); got[0].Healthy != c.want || got[1].Healthy != 100-c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
