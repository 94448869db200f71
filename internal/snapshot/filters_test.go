package snapshot

import (
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

func weighted(t *testing.T, names ...string) routing.Weighted {
	t.Helper()
	var clusters []routing.WeightedCluster
	for _, name := range names {
		clusters = append(clusters, routing.WeightedCluster{Name: name, Weight: 1})
	}
	w, err := routing.NewWeighted(clusters)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// Several listeners may share a route configuration: binding one must not be seen by another.
func TestBindLeavesTheSharedRoutesAlone(t *testing.T) {
	fault, other := &resilience.Fault{}, &resilience.Fault{}
	vh := &VirtualHost{Name: "v", Routes: []Route{
		{Clusters: weighted(t, "a"), Subset: map[string]string{"v": "1"}},
		{Clusters: weighted(t, "a", "b"), Subset: map[string]string{"v": "1"}},
		{Clusters: weighted(t, "a", "b"), Legs: []Leg{{}, {OwnFilters: true, Filters: FilterSettings{ByName: map[string]FilterSetting{"f": {Fault: &FaultSetting{Fault: other}}}}}}},
	}}
	l := &Listener{IdleTimeout: time.Second, Filters: []Filter{{Name: "f", Kind: FaultFilter, Fault: &FaultSetting{Fault: fault, Cluster: "a"}}}}
	bound := l.Bind(vh)
	for i, want := range [][2]*resilience.Fault{{fault, fault}, {fault, nil}, {fault, other}} {
		r := &bound.Routes[i]
		if r.IdleTimeout != time.Second || r.FaultOf(0) != want[0] || len(r.Clusters.Clusters) > 1 && r.FaultOf(1) != want[1] {
			t.Errorf("route %d: %+v", i, r)
		}
	}
	if leg := bound.Routes[1].Legs[1]; leg.Subset["v"] != "1" {
		t.Errorf("a destination has lost the route's subset: %+v", leg)
	}
	for i := range vh.Routes {
		r := &vh.Routes[i]
		if r.IdleTimeout != 0 || r.Fault != nil || i == 1 && r.Legs != nil || i == 2 && (r.Legs[0].OwnFilters || r.Legs[1].Fault != nil) {
			t.Errorf("route %d was written to: %+v", i, r)
		}
	}
	if (&Listener{}).Bind(vh) != vh || l.Bind(nil) != nil {
		t.Error("nothing to bind makes a copy")
	}
}
