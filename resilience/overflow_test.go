package resilience

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

// sum is one generated computation: what we say, what numbers without bounds
// say, and what a computation without care for bounds says.
type sum struct {
	what                string
	got, want, careless string
}

// TestOverflows holds what is computed from policy and from what strangers send
// against numbers that have no bounds, at the extremes. Each kind must also catch
// a computation that overflows, or it would prove nothing.
func TestOverflows(t *testing.T) {
	for name, sums := range map[string][]sum{
		"grpc-timeout": timeoutSums(), "backoff": backoffSums(), "rate limited backoff": rateLimitedSums(), "ejection": ejectionSums(),
		"penalty": penaltySums(), "token bucket": bucketSums(t), "fault percentage": percentageSums(), "share of endpoints": shareSums(),
	} {
		caught := 0
		for _, s := range sums {
			if s.got != s.want {
				t.Errorf("%s: %s is %s, want %s", name, s.what, s.got, s.want)
			}
			if s.careless != s.want {
				caught++
			}
		}
		if len(sums) < 300 || caught < 10 {
			t.Errorf("%s: %d cases, %d of which catch the careless computation: too few", name, len(sums), caught)
		}
		t.Logf("%-20s %4d cases, %d catch the careless computation", name, len(sums), caught)
	}
}

// extreme draws numbers whose sums and products leave 32 and 64 bits.
func extreme(r *rand.Rand) int64 {
	switch r.IntN(6) {
	case 0:
		return int64(r.IntN(4))
	case 1:
		return math.MaxInt64 - int64(r.IntN(4))
	case 2:
		return int64(1)<<r.IntN(63) - int64(r.IntN(2))
	case 3:
		return math.MaxUint32 + int64(r.IntN(5)) - 2
	case 4:
		return int64(r.Uint64() >> (1 + r.IntN(62)))
	default:
		return math.MaxInt64/int64(1+r.IntN(12)) - int64(r.IntN(3))
	}
}

func whole(n int64) *big.Int { return big.NewInt(n) }

// bounded is a number as an int64 has it, the largest one where it is larger.
func bounded(n *big.Int) string {
	if n.Cmp(whole(math.MaxInt64)) > 0 {
		n = whole(math.MaxInt64)
	}
	return n.String()
}

func text(n int64) string { return strconv.FormatInt(n, 10) }

func timeoutSums() (out []sum) {
	r := rand.New(rand.NewPCG(1, 40))
	units := map[byte]int64{'H': 3600e9, 'M': 60e9, 'S': 1e9, 'm': 1e6, 'u': 1e3, 'n': 1}
	letters := "HMSmun"
	for range 400 {
		// Up to eleven digits, of which eight are allowed.
		digits := text(extreme(r) % 1e11)
		if r.IntN(2) == 0 {
			digits = text(99_999_999 - int64(r.IntN(9)))
		}
		letter := letters[r.IntN(len(letters))]
		s := digits + string(letter)
		want := "none"
		n, _ := new(big.Int).SetString(digits, 10)
		if len(digits) <= 8 {
			want = bounded(n.Mul(n, whole(units[letter])))
		}
		got := "none"
		if d, ok := GRPCTimeout(s); ok {
			got = text(int64(d))
		}
		m, _ := strconv.ParseInt(digits, 10, 64)
		out = append(out, sum{s, got, want, text(m * units[letter])})
	}
	return out
}

func backoffSums() (out []sum) {
	r := rand.New(rand.NewPCG(2, 40))
	for len(out) < 400 {
		p := RetryPolicy{BaseInterval: time.Duration(extreme(r)), MaxInterval: time.Duration(extreme(r))}
		if p.BaseInterval <= 0 || p.MaxInterval == 0 {
			continue
		}
		retry, draw := 1+r.IntN(80), r.Uint64()
		window := new(big.Int).Lsh(whole(int64(p.BaseInterval)), uint(retry-1))
		if most := whole(int64(p.MaxInterval)); window.Cmp(most) > 0 {
			window = most
		}
		want := new(big.Int).Mod(new(big.Int).SetUint64(draw), window)
		careless := "division by zero"
		if w := uint64(min(p.BaseInterval<<(retry-1), p.MaxInterval)); w > 0 {
			careless = text(int64(draw % w))
		}
		out = append(out, sum{fmt.Sprintf("%d ns, at most %d, retry %d", p.BaseInterval, p.MaxInterval, retry), text(int64(p.Backoff(retry, draw))), want.String(), careless})
	}
	return out
}

func rateLimitedSums() (out []sum) {
	r := rand.New(rand.NewPCG(3, 40))
	now := time.Unix(1_700_000_000, 0)
	for len(out) < 400 {
		limit := max(time.Duration(extreme(r)), time.Second)
		seconds := extreme(r)
		if r.IntN(2) == 0 {
			seconds %= int64(limit/time.Second) + 2
		}
		p := RetryPolicy{BaseInterval: time.Millisecond, MaxInterval: time.Millisecond, RateLimited: &RateLimitedBackoff{
			MaxInterval: limit, Headers: []ResetHeader{{Name: routing.NewHeaderName("reset")}},
		}}
		draw := r.Uint64()
		o := Outcome{Status: 429, GRPC: -1, Header: map[string][]string{"Reset": {text(seconds)}}}
		pause, _ := p.Delay(&o, 1, now, draw)
		nanos := new(big.Int).Mul(whole(seconds), whole(1e9))
		want := text(int64(draw % 1e6)) // the ordinary pause
		if seconds > 0 && nanos.Cmp(whole(int64(limit))) <= 0 {
			// Up to a half of it is added.
			half := new(big.Int).Quo(nanos, whole(2))
			want = bounded(new(big.Int).Add(nanos, half.Mod(new(big.Int).SetUint64(draw), half)))
		}
		careless := text(int64(draw % 1e6))
		if d := time.Duration(seconds) * time.Second; d > time.Millisecond && d <= limit {
			careless = text(int64(d + time.Duration(draw%uint64(d/2))))
		}
		out = append(out, sum{fmt.Sprintf("%d s, at most %v", seconds, limit), text(int64(pause)), want, careless})
	}
	return out
}

func ejectionSums() (out []sum) {
	r := rand.New(rand.NewPCG(4, 40))
	now := time.Unix(1_700_000_000, 0)
	for len(out) < 400 {
		o := Outlier{BaseEjectionTime: time.Duration(extreme(r)), MaxEjectionTime: time.Duration(extreme(r)), MaxEjectionTimeJitter: time.Duration(extreme(r))}
		if o.BaseEjectionTime == 0 || o.MaxEjectionTime < o.BaseEjectionTime {
			continue
		}
		multiplier, draw := uint32(extreme(r)), r.Uint64()
		if multiplier == math.MaxUint32 || o.EjectionTime(max(multiplier, 1)-1) == o.MaxEjectionTime {
			multiplier = uint32(r.IntN(2))
		}
		e := o.Eject(Ejection{Multiplier: multiplier}, now, draw)
		length := new(big.Int).Mul(whole(int64(o.BaseEjectionTime)), whole(int64(e.Multiplier)))
		if most := whole(int64(o.MaxEjectionTime)); length.Cmp(most) > 0 {
			length = most
		}
		jitter := draw % (uint64(o.MaxEjectionTimeJitter) + 1)
		want := bounded(length.Add(length, new(big.Int).SetUint64(jitter)))
		careless := text(int64(min(o.BaseEjectionTime*time.Duration(e.Multiplier), o.MaxEjectionTime) + time.Duration(jitter)))
		out = append(out, sum{fmt.Sprintf("%v x %d, at most %v, jitter %v", o.BaseEjectionTime, e.Multiplier, o.MaxEjectionTime, o.MaxEjectionTimeJitter),
			text(int64(e.Until.Sub(now))), want, careless})
	}
	return out
}

// penaltySums compare where the jitter is none or all, which floating point has exactly.
func penaltySums() (out []sum) {
	r := rand.New(rand.NewPCG(5, 40))
	for len(out) < 400 {
		a := Accrual{MinPenalty: time.Duration(extreme(r)), MaxPenalty: time.Duration(extreme(r)), Jitter: float64(r.IntN(2))}
		if a.MinPenalty == 0 || a.MaxPenalty < a.MinPenalty {
			continue
		}
		failed := uint32(r.IntN(100))
		if r.IntN(8) == 0 {
			failed = math.MaxUint32
		}
		penalty := new(big.Int).Lsh(whole(int64(a.MinPenalty)), min(uint(failed), 200))
		if most := whole(int64(a.MaxPenalty)); penalty.Cmp(most) > 0 {
			penalty = most
		}
		careless := min(a.MinPenalty<<failed, a.MaxPenalty)
		draw := uint64(0)
		if a.Jitter > 0 {
			draw = r.Uint64N(uint64(penalty.Int64())/2 + 1)
			careless += time.Duration(draw)
		}
		got := a.Penalty(failed, draw)
		want := bounded(penalty.Add(penalty, new(big.Int).SetUint64(draw)))
		out = append(out, sum{fmt.Sprintf("%v to %v, failed %d, jitter %v, draw %d", a.MinPenalty, a.MaxPenalty, failed, a.Jitter, draw), text(int64(got)), want, text(int64(careless))})
	}
	return out
}

// bucketSums spend a whole bucket at once: then it takes the time of all tokens
// to be full again, and that many are there after a part of it.
func bucketSums(t *testing.T) (out []sum) {
	r := rand.New(rand.NewPCG(6, 40))
	for len(out) < 400 {
		b := TokenBucket{MaxTokens: uint32(extreme(r)), TokensPerFill: uint32(extreme(r)), FillInterval: time.Duration(extreme(r))}
		cost := whole(max(int64(b.FillInterval)/int64(max(b.TokensPerFill, 1)), 1))
		all := new(big.Int).Mul(cost, whole(int64(b.MaxTokens)))
		accepted := b.MaxTokens > 0 && b.FillInterval >= 50*time.Millisecond && all.Cmp(whole(math.MaxInt64/4)) <= 0
		what := fmt.Sprintf("%d tokens, %d in %v", b.MaxTokens, b.TokensPerFill, b.FillInterval)
		bucket, err := newBucket(b)
		if (err == nil) != accepted {
			t.Errorf("%s: %v", what, err)
		}
		careless := text(int64(b.FillInterval / time.Duration(max(b.TokensPerFill, 1)) * time.Duration(b.MaxTokens)))
		if err != nil {
			if !accepted {
				out = append(out, sum{what, "refused", "refused", careless})
			}
			continue
		}
		full, ok := bucket.Take(0, 0, b.MaxTokens)
		if !ok || bucket.Remaining(full, 0) != 0 {
			t.Errorf("%s: a full bucket does not have all its tokens", what)
		}
		if _, ok := bucket.Take(full, full-1, b.MaxTokens); ok && b.MaxTokens > 0 {
			t.Errorf("%s: there are more tokens than came", what)
		}
		out = append(out, sum{what, text(int64(bucket.Wait(full, 0, b.MaxTokens))), all.String(), careless})
	}
	return out
}

// percentageSums lower a fault's share by a header that anybody may send: never
// above policy's, whatever the number and the denominator (gRPC made 100 % into
// 0.36 % by a product that left 32 bits).
func percentageSums() (out []sum) {
	r := rand.New(rand.NewPCG(7, 40))
	for range 400 {
		denominator := []uint32{100, 10_000, 1_000_000}[r.IntN(3)]
		policy := routing.Fraction{PerMillion: uint32(r.IntN(1_000_001))}
		if r.IntN(2) == 0 {
			policy.PerMillion = 1_000_000
		}
		n := new(big.Int).SetUint64(uint64(extreme(r)) + uint64(r.IntN(2))<<63)
		if r.IntN(2) == 0 {
			n = whole(int64(r.IntN(int(denominator) + 2)))
		}
		f := Fault{Abort: &FaultAbort{FromHeader: true, GRPC: -1, Fraction: policy, Denominator: denominator}}
		request := routing.Request{Header: map[string][]string{"X-Envoy-Fault-Abort-Request": {"503"}, "X-Envoy-Fault-Abort-Request-Percentage": {n.String()}}}
		want := new(big.Int).Quo(new(big.Int).Mul(n, whole(1_000_000)), whole(int64(denominator)))
		if most := whole(int64(policy.PerMillion)); want.Cmp(most) > 0 {
			want = most
		}
		// The share is how many draws in a million it holds for; it ends where the draw is it.
		got := "none"
		holds := func(draw uint64) bool { return f.Decide(&request, 0, draw).HTTP == 503 }
		if share := want.Uint64(); (share == 0 || holds(share-1)) && !holds(share) || share == 1_000_000 && holds(999_999) {
			got = want.String()
		}
		careless := uint32(n.Uint64()) * 1_000_000 / denominator
		out = append(out, sum{fmt.Sprintf("%s of %d, policy's %d", n, denominator, policy.PerMillion), got, want.String(), text(int64(min(careless, policy.PerMillion)))})
	}
	return out
}

// shareSums ask how many of a cluster's endpoints, or of its requests, a percentage allows.
func shareSums() (out []sum) {
	r := rand.New(rand.NewPCG(8, 40))
	for range 400 {
		o := Outlier{MaxEjectionPercent: uint32(r.IntN(101))}
		total := 1 + int(uint32(extreme(r)))
		ejected := r.IntN(total + 1)
		if r.IntN(2) == 0 { // at the boundary
			ejected = min(total, total*int(o.MaxEjectionPercent)/100+r.IntN(3)-1)
		}
		ejected = max(ejected, 0)
		// With one more, no larger share may be out of use.
		product := new(big.Int).Mul(whole(int64(ejected)+1), whole(100))
		want := ejected < total && product.Cmp(new(big.Int).Mul(whole(int64(total)), whole(int64(o.MaxEjectionPercent)))) <= 0
		careless := ejected < total && uint32(100*(ejected+1)) <= uint32(total)*o.MaxEjectionPercent
		out = append(out, sum{fmt.Sprintf("%d of %d at %d %%", ejected, total, o.MaxEjectionPercent), fmt.Sprint(o.MayEject(ejected, total)), fmt.Sprint(want), fmt.Sprint(careless)})
	}
	return out
}
