package routing

import (
	"fmt"
	"math"
	"math/bits"
	"sort"
)

// WeightedCluster is one destination of a route.
type WeightedCluster struct {
	Name   string
	Weight uint32
}

// Weighted chooses among destinations by weight
// (envoy.config.route.v3.WeightedCluster). Make it with NewWeighted.
type Weighted struct {
	Clusters []WeightedCluster
	// cumulative[i] is the sum of the weights up to and with i; nil where there is no choice.
	cumulative []uint32
}

// NewWeighted returns the choice among the clusters. One destination alone has
// every request, whatever its weight. Otherwise a weight of 0 is never chosen,
// and no destination, a sum of 0 or a sum above 4,294,967,295 is an error
// (envoy.config.route.v3.WeightedCluster.total_weight).
func NewWeighted(clusters []WeightedCluster) (Weighted, error) {
	w := Weighted{Clusters: clusters}
	switch len(clusters) {
	case 0:
		return Weighted{}, fmt.Errorf("no destination")
	case 1:
		return w, nil
	}
	w.cumulative = make([]uint32, len(clusters))
	sum := uint64(0)
	for i, c := range clusters {
		sum += uint64(c.Weight)
		if sum > math.MaxUint32 {
			return Weighted{}, fmt.Errorf("the sum of the weights exceeds %d", uint32(math.MaxUint32))
		}
		w.cumulative[i] = uint32(sum)
	}
	if sum == 0 {
		return Weighted{}, fmt.Errorf("the sum of the weights is 0")
	}
	return w, nil
}

// Choose returns an index in Clusters, each with the probability of its weight; -1 for the zero value.
// draw is 64 random bits. It does not allocate.
//
// The draw is scaled to [0, sum) by the high half of draw x sum, which prefers
// no value by more than sum/2^64, and takes the high bits, where Fraction takes
// a remainder: so the same draw may serve both.
func (w *Weighted) Choose(draw uint64) int {
	if w.cumulative == nil {
		return len(w.Clusters) - 1
	}
	last := len(w.cumulative) - 1
	high, _ := bits.Mul64(draw, uint64(w.cumulative[last]))
	at := uint32(high)
	if last < 16 {
		i := 0
		for w.cumulative[i] <= at {
			i++
		}
		return i
	}
	return sort.Search(last, func(i int) bool { return w.cumulative[i] > at })
}
