package routing

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// extremeWeight draws weights whose sums leave 32 bits, and ordinary ones.
func extremeWeight(r *rand.Rand) uint32 {
	return []uint32{0, 1, uint32(r.IntN(100)), 1 << r.IntN(32), math.MaxUint32 - uint32(r.IntN(2)), math.MaxUint32 / uint32(1+r.IntN(9)), r.Uint32()}[r.IntN(7)]
}

// TestWeightsAtTheExtremes: who is chosen by a draw is who numbers without
// bounds choose, up to sums of 2^32-1; larger sums and 0 are refused.
func TestWeightsAtTheExtremes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 50))
	accepted, caught := 0, 0
	for accepted < 400 {
		clusters := make([]WeightedCluster, 2+r.IntN(30))
		total, wrapped := new(big.Int), uint32(0)
		small := r.IntN(3) > 0
		for i := range clusters {
			w := extremeWeight(r)
			if small && r.IntN(8) > 0 {
				w %= 1000
			}
			clusters[i] = WeightedCluster{Name: fmt.Sprint(i), Weight: w}
			total.Add(total, big.NewInt(int64(w)))
			wrapped += w
		}
		refused := total.Sign() == 0 || total.Cmp(big.NewInt(math.MaxUint32)) > 0
		w, err := NewWeighted(clusters)
		if (err != nil) != refused {
			t.Fatalf("the sum of the weights is %s: %v", total, err)
		}
		if refused {
			if wrapped > 0 && total.Sign() > 0 {
				caught++ // a sum in 32 bits is accepted, and sends requests elsewhere
			}
			continue
		}
		accepted++
		for range 20 {
			draw := []uint64{0, math.MaxUint64, r.Uint64(), 1 << 63, uint64(r.Uint32()) << 32}[r.IntN(5)]
			// The draw is a share of 2^64 of the sum.
			at := new(big.Int).Rsh(new(big.Int).Mul(new(big.Int).SetUint64(draw), total), 64)
			want, sum := -1, new(big.Int)
			for i, c := range clusters {
				if sum.Add(sum, big.NewInt(int64(c.Weight))); want < 0 && sum.Cmp(at) > 0 {
					want = i
				}
			}
			if got := w.Choose(draw); got != want {
				t.Errorf("%v: draw %d chooses %d, want %d", clusters, draw, got, want)
			}
			// The mistake: the product in 64 bits.
			careless, low := -1, uint64(0)
			for i, c := range clusters {
				if low += uint64(c.Weight); careless < 0 && low > draw*total.Uint64()>>32>>32 {
					careless = i
				}
			}
			if careless != want {
				caught++
			}
		}
	}
	if caught < 10 {
		t.Errorf("careless sums are found %d times only", caught)
	}
}

// TestSharesAtTheExtremes: a share holds for as many draws as it says, be they of
// the beginning or of the end of their range.
func TestSharesAtTheExtremes(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 50))
	caught := 0
	for range 400 {
		f := Fraction{PerMillion: []uint32{0, 1, 999_999, 1_000_000, 429_497, uint32(r.IntN(1_000_001))}[r.IntN(6)]}
		draw := []uint64{0, 999_999, 1_000_000, math.MaxUint32, math.MaxUint64, r.Uint64()}[r.IntN(6)]
		rest := new(big.Int).Mod(new(big.Int).SetUint64(draw), big.NewInt(1_000_000))
		want := rest.Cmp(big.NewInt(int64(f.PerMillion))) < 0
		if got := f.Matches(draw); got != want {
			t.Errorf("%d per million and the draw %d: %v", f.PerMillion, draw, got)
		}
		if careless := uint32(draw)%1_000_000*4_295 < f.PerMillion*4_295; careless != want {
			caught++
		}
	}
	if caught < 10 {
		t.Errorf("a careless share is found %d times only", caught)
	}
}
