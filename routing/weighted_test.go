package routing

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"
)

func weightsOf(weights ...uint32) []WeightedCluster {
	clusters := make([]WeightedCluster, len(weights))
	for i, w := range weights {
		clusters[i] = WeightedCluster{Name: string(rune('a' + i%26)), Weight: w}
	}
	return clusters
}

// edges returns the first and the last draw that scale to the value, of n values.
func edges(value, n uint64) (first, last uint64) {
	ceil := func(v uint64) uint64 {
		if v == n {
			return 0
		}
		quotient, rest := bits.Div64(v, 0, n)
		if rest != 0 {
			quotient++
		}
		return quotient
	}
	return ceil(value), ceil(value+1) - 1
}

// TestChooseEnumerated goes through every value of the weight sum, at the first
// and the last draw that stands for it: each cluster has exactly its weight.
func TestChooseEnumerated(t *testing.T) {
	many := make([]uint32, 40)
	for i := range many {
		many[i] = uint32(i % 4)
	}
	for _, weights := range [][]uint32{
		{1, 1}, {80, 20}, {0, 1}, {1, 0}, {0, 0, 3, 0, 1, 0}, {100, 0, 0}, {3, 1, 4, 1, 5, 9, 2, 6}, many,
	} {
		w, err := NewWeighted(weightsOf(weights...))
		if err != nil {
			t.Fatal(err)
		}
		sum := uint64(0)
		for _, weight := range weights {
			sum += uint64(weight)
		}
		got := make([]uint32, len(weights))
		for v := range sum {
			first, last := edges(v, sum)
			if w.Choose(first) != w.Choose(last) {
				t.Errorf("%v: value %d is %d at its first draw and %d at its last", weights, v, w.Choose(first), w.Choose(last))
			}
			got[w.Choose(first)]++
		}
		for i := range weights {
			if got[i] != weights[i] {
				t.Errorf("%v: cluster %d has %d of %d values", weights, i, got[i], sum)
			}
		}
	}
}

// TestChooseSeeded: 100,000 seeded draws agree with the weights, to four standard deviations.
func TestChooseSeeded(t *testing.T) {
	const n = 100_000
	for _, weights := range [][]uint32{{90, 10}, {1, 0, 99}, {0, 0, 7, 0}, {3, 1, 4, 1, 5, 9, 2, 6}, {math.MaxUint32 - 2, 1, 1}} {
		w, err := NewWeighted(weightsOf(weights...))
		if err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(17, 4))
		counts, sum := make([]int, len(weights)), 0.0
		for range n {
			counts[w.Choose(random.Uint64())]++
		}
		for _, weight := range weights {
			sum += float64(weight)
		}
		for i, weight := range weights {
			share := float64(weight) / sum
			if off := math.Abs(float64(counts[i]) - n*share); off > 4*math.Sqrt(n*share*(1-share)) || weight == 0 && counts[i] != 0 {
				t.Errorf("%v: %d has %d of %d", weights, i, counts[i], n)
			}
		}
	}
}

func TestChooseLargeWeights(t *testing.T) {
	w, err := NewWeighted(weightsOf(math.MaxUint32-1, 1))
	if err != nil {
		t.Fatal(err)
	}
	first, last := edges(math.MaxUint32-1, math.MaxUint32)
	if w.Choose(first) != 1 || w.Choose(last) != 1 || w.Choose(first-1) != 0 || w.Choose(0) != 0 {
		t.Errorf("the last of 2^32-1 values: %d, %d; the one before %d", w.Choose(first), w.Choose(last), w.Choose(first-1))
	}
}

func TestNewWeighted(t *testing.T) {
	for _, weight := range []uint32{0, 7} {
		w, err := NewWeighted(weightsOf(weight))
		if err != nil || w.Choose(0) != 0 || w.Choose(math.MaxUint64) != 0 {
			t.Errorf("one destination of weight %d: %v, chooses %d", weight, err, w.Choose(0))
		}
	}
	for want, clusters := range map[string][]WeightedCluster{
		"no destination":                nil,
		"the sum of the weights is 0":   weightsOf(0, 0),
		"sum of the weights exceeds 42": weightsOf(math.MaxUint32, 1),
	} {
		if _, err := NewWeighted(clusters); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one with %q", err, want)
		}
	}
	if zero := (Weighted{}); zero.Choose(1) != -1 {
		t.Errorf("the zero value chooses %d", zero.Choose(1))
	}
}

// TestChooseAgainstOracle subtracts weight after weight, for few and for many clusters.
func TestChooseAgainstOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		weights := make([]uint32, 2+random.IntN(60))
		sum := uint64(0)
		for i := range weights {
			weights[i] = uint32(random.IntN(5)) * uint32(random.IntN(1000))
			sum += uint64(weights[i])
		}
		w, err := NewWeighted(weightsOf(weights...))
		if sum == 0 {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			draw := random.Uint64()
			rest, _ := bits.Mul64(draw, sum)
			want := 0
			for rest >= uint64(weights[want]) {
				rest -= uint64(weights[want])
				want++
			}
			if got := w.Choose(draw); got != want {
				t.Fatalf("%v, draw %d: %d, want %d", weights, draw, got, want)
			}
		}
	}
}
