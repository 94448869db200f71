package lb

import (
	"fmt"
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

func TestUsable(t *testing.T) {
	const h, d, g, u = Healthy, Degraded, Draining, Unhealthy
	for _, c := range []struct {
		name      string
		health    []Health
		ejected   []int
		threshold float64
		want      []int32
		panicked  bool
	}{
		{name: "none", threshold: 50},
		{name: "all healthy", health: []Health{h, h}, threshold: 50, want: []int32{0, 1}},
		{name: "only the healthy", health: []Health{h, u, h, g, d}, threshold: 50, want: []int32{0, 2}},
		{name: "degraded where none is healthy", health: []Health{u, d, d}, threshold: 50, want: []int32{1, 2}},
		{name: "degraded count against panic", health: []Health{h, d, u, u}, threshold: 50, want: []int32{0}},
		{name: "at the threshold", health: []Health{h, u}, threshold: 50, want: []int32{0}},
		{name: "below the threshold", health: []Health{h, u, u}, threshold: 50, want: []int32{0, 1, 2}, panicked: true},
		{name: "none healthy", health: []Health{u, g}, threshold: 50, want: []int32{0, 1}, panicked: true},
		{name: "no threshold", health: []Health{h, u, u}, want: []int32{0}},
		{name: "no threshold, none healthy", health: []Health{u, g}},
		{name: "ejected", health: []Health{h, h, h}, ejected: []int{1}, threshold: 50, want: []int32{0, 2}},
		{name: "ejected degraded", health: []Health{u, d, d}, ejected: []int{1}, want: []int32{2}},
		{name: "panic uses the ejected", health: []Health{h, h, h}, ejected: []int{0, 2}, threshold: 50, want: []int32{0, 1, 2}, panicked: true},
		{name: "enough to carry the load", health: []Health{h, h, h, h, h, u, u}, threshold: 100, want: []int32{0, 1, 2, 3, 4}},
		{name: "not enough to carry the load", health: []Health{h, h, h, h, u, u}, threshold: 100, want: []int32{0, 1, 2, 3, 4, 5}, panicked: true},
	} {
		all := make([]Endpoint, len(c.health))
		for i := range all {
			all[i].Health = c.health[i]
		}
		var ejected func(int) bool
		if c.ejected != nil {
			ejected = func(i int) bool { return slices.Contains(c.ejected, i) }
		}
		got, panicked := Usable(NewEndpoints(all, nil), ejected, c.threshold)
		if !slices.Equal(got, c.want) || panicked != c.panicked {
			t.Errorf("%s: %v, panic %v; want %v, panic %v", c.name, got, panicked, c.want, c.panicked)
		}
	}
}
