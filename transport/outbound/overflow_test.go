package outbound

import (
	"math"
	"math/big"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

// TestPausesAtTheExtremes: pauses and limits of policy, and limits that requests
// bring along, are what numbers without bounds say, the longest time where they
// are longer: a sum or product out of its bounds would be a pause of no time at
// all, again and again, or a request without its limit.
func TestPausesAtTheExtremes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 52))
	extreme := func() int64 {
		return []int64{1, int64(r.IntN(1000)), math.MaxInt64 - int64(r.IntN(3)), int64(1) << r.IntN(63), math.MaxInt64/2 + int64(r.IntN(3)), int64(r.Uint64() >> (1 + r.IntN(62)))}[r.IntN(6)]
	}
	bounded := func(n *big.Int) int64 {
		if n.IsInt64() {
			return n.Int64()
		}
		return math.MaxInt64
	}
	draw := uint64(0)
	c := (&Engine{draw: func() uint64 { return draw }, options: Options{Client: "c"}}).newCluster("c")
	caught := 0
	for range 400 {
		pause, most := extreme(), extreme()
		draw = r.Uint64()
		sum := big.NewInt(pause)
		careless := pause
		if most > 0 {
			sum.Add(sum, new(big.Int).Mod(new(big.Int).SetUint64(draw), big.NewInt(most)))
			careless += int64(draw % uint64(most))
		}
		want := bounded(sum)
		if got := c.jittered(time.Duration(pause), time.Duration(most)); int64(got) != want {
			t.Errorf("%d with up to %d more is %d, want %d", pause, most, got, want)
		}
		if careless != want {
			caught++
		}
		ms := uint64(extreme()) + uint64(r.IntN(2))<<63
		want = bounded(new(big.Int).Mul(new(big.Int).SetUint64(ms), big.NewInt(int64(time.Millisecond))))
		if got := milliseconds(ms); int64(got) != want {
			t.Errorf("%s ms is %d, want %d", strconv.FormatUint(ms, 10), got, want)
		}
		if int64(ms)*int64(time.Millisecond) != want {
			caught++
		}
	}
	if t.Logf("careless sums and products are found %d times", caught); caught < 50 {
		t.Error("too few")
	}
}
