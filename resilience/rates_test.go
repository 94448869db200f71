package resilience_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// TestRateEjectionsBesideOracle holds both arithmetics against the definitions, written out.
func TestRateEjectionsBesideOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		o := resilience.Outlier{
			SuccessRateMinimumHosts: uint32(random.IntN(6)), SuccessRateRequestVolume: uint32(random.IntN(8)), SuccessRateStdevFactor: uint32(random.IntN(3000)),
			FailurePercentageThreshold: uint32(random.IntN(101)), FailurePercentageMinimumHosts: uint32(random.IntN(6)), FailurePercentageRequestVolume: uint32(random.IntN(8)),
		}
		rates := make([]resilience.Rate, random.IntN(9))
		for i := range rates {
			n := random.Uint64N(12)
			rates[i] = resilience.Rate{Requests: n, Successes: random.Uint64N(n + 1)}
		}
		out, average, threshold := o.SuccessRateEjections(rates)
		var all []float64
		for _, r := range rates {
			if r.Requests > 0 && r.Requests >= uint64(o.SuccessRateRequestVolume) {
				all = append(all, float64(r.Successes)/float64(r.Requests)*100)
			}
		}
		if len(all) == 0 || len(all) < int(o.SuccessRateMinimumHosts) {
			if out != nil || average != -1 || threshold != -1 {
				t.Fatalf("%+v of %v: %v, %v, %v without enough endpoints", o, rates, out, average, threshold)
			}
		} else {
			mean, square := 0.0, 0.0
			for _, p := range all {
				mean += p / float64(len(all))
				square += p * p / float64(len(all))
			}
			limit := mean - float64(o.SuccessRateStdevFactor)/1000*math.Sqrt(max(0, square-mean*mean))
			if math.Abs(average-mean) > 1e-6 || math.Abs(threshold-limit) > 1e-3 {
				t.Fatalf("%+v of %v: average %v, threshold %v, want %v and %v", o, rates, average, threshold, mean, limit)
			}
			for i, r := range rates {
				low := r.Requests > 0 && r.Requests >= uint64(o.SuccessRateRequestVolume) && float64(r.Successes)/float64(r.Requests)*100 < threshold
				if p := float64(r.Successes) / float64(r.Requests) * 100; math.Abs(p-threshold) > 1e-6 && low != slices.Contains(out, i) {
					t.Fatalf("%+v of %v: ejects %v, threshold %v", o, rates, out, threshold)
				}
			}
		}
		enough, failing := 0, []int(nil)
		for i, r := range rates {
			if r.Requests == 0 || r.Requests < uint64(o.FailurePercentageRequestVolume) {
				continue
			}
			enough++
			if (r.Requests-r.Successes)*100 >= uint64(o.FailurePercentageThreshold)*r.Requests {
				failing = append(failing, i)
			}
		}
		if enough < int(o.FailurePercentageMinimumHosts) {
			failing = nil
		}
		if got := o.FailurePercentageEjections(rates); !slices.Equal(got, failing) {
			t.Fatalf("%+v of %v: %v, want %v", o, rates, got, failing)
		}
	}
}

func TestAccrual(t *testing.T) {
	a := resilience.DefaultAccrual
	if err := a.Validate(); err != nil {
		t.Fatal(err)
	}
	for failed, want := range map[uint32]time.Duration{0: 1, 1: 2, 2: 4, 5: 32, 6: 60, 7: 60, math.MaxUint32: 60} {
		want *= time.Second
		if got := a.Penalty(failed, 0); got != want {
			t.Errorf("after %d failed probes %v, want %v", failed, got, want)
		}
		random := rand.New(rand.NewPCG(uint64(failed), 1))
		for range 100 {
			if got := a.Penalty(failed, random.Uint64()); got < want || got > want+want/2 {
				t.Fatalf("with jitter %v, want from %v to %v", got, want, want+want/2)
			}
		}
	}
	if a.Trips(6, 0, 6) || !a.Trips(7, 100, 7) {
		t.Error("seven in a row is the threshold")
	}
	rate := resilience.Accrual{SuccessRate: .5, Window: time.Second, MinRequests: 10, MinPenalty: 1, MaxPenalty: 1, ProbeTimeout: 1}
	if err := rate.Validate(); err != nil {
		t.Fatal(err)
	}
	if rate.Trips(9, 0, 9) || rate.Trips(5, 5, 5) || !rate.Trips(1, 4, 6) {
		t.Error("less than half of ten is the threshold")
	}
	for field, change := range map[string]func(*resilience.Accrual){
		"success_rate":  func(a *resilience.Accrual) { a.Consecutive = 0 },
		"max_failures":  func(a *resilience.Accrual) { a.SuccessRate = .5 },
		"window":        func(a *resilience.Accrual) { a.Consecutive, a.SuccessRate, a.Window = 0, .5, 0 },
		"min_penalty":   func(a *resilience.Accrual) { a.MinPenalty = 0 },
		"max_penalty":   func(a *resilience.Accrual) { a.MaxPenalty = 1 },
		"jitter":        func(a *resilience.Accrual) { a.Jitter = math.NaN() },
		"probe_timeout": func(a *resilience.Accrual) { a.ProbeTimeout = 0 },
	} {
		a := resilience.DefaultAccrual
		change(&a)
		if err := a.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("error %v, want one that names %s", err, field)
		}
	}
}

// TestRatioBudget holds the bucket against a plain count of parts.
func TestRatioBudget(t *testing.T) {
	b := resilience.RatioRetryBudget
	if err := b.Validate(); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	missing, tokens := int64(0), 5.0
	requests, retries := 0, 0
	for range 100_000 {
		if random.IntN(3) == 0 {
			missing = b.Deposit(missing)
			tokens = min(5, tokens+.2)
			requests++
			continue
		}
		after, ok := b.Withdraw(missing)
		if want := tokens > 1-1e-9; ok != want {
			t.Fatalf("a retry may begin: %v with %v tokens", ok, tokens)
		}
		if missing = after; ok {
			tokens--
			retries++
		}
	}
	if float64(retries) > .2*float64(requests)+5 {
		t.Errorf("%d retries of %d requests", retries, requests)
	}
	for _, b := range []resilience.RetryBudget{{Percent: -1}, {Percent: 101}, {Burst: -1}, {Burst: 1001}, {Burst: math.NaN()}} {
		if b.Validate() == nil {
			t.Errorf("%+v is accepted", b)
		}
	}
}

func TestPushback(t *testing.T) {
	for value, want := range map[string]struct {
		pause       time.Duration
		asked, stop bool
	}{
		"0":             {0, true, false},
		"1500":          {1500 * time.Millisecond, true, false},
		"-1":            {0, false, true},
		"soon":          {0, false, true},
		"":              {0, false, true},
		"4294967296000": {0, false, true},
	} {
		o := resilience.Outcome{Status: 200, GRPC: 14, Form: routing.LowerHeaders, Header: map[string][]string{"grpc-retry-pushback-ms": {value}}}
		if pause, asked, stop := resilience.Pushback(&o); pause != want.pause || asked != want.asked || stop != want.stop {
			t.Errorf("%q: %v, %v, %v", value, pause, asked, stop)
		}
	}
	for _, o := range []resilience.Outcome{{Status: 200, GRPC: 14}, {GRPC: -1, Status: 503, Form: routing.LowerHeaders, Header: map[string][]string{"grpc-retry-pushback-ms": {"-1"}}}} {
		if _, asked, stop := resilience.Pushback(&o); asked || stop {
			t.Errorf("%+v: asked %v, stop %v", o, asked, stop)
		}
	}
}

func TestWithRequest(t *testing.T) {
	on, _ := resilience.ParseRetryOn("5xx")
	p := resilience.DefaultRetryPolicy(on)
	p.StatusCodes = make([]uint32, 1, 8)
	p.StatusCodes[0] = 409
	if got := p.WithRequest(lowerRequest(map[string]string{"x-user": "a"})); got != &p {
		t.Error("a copy is made where the request asks for nothing")
	}
	first := p.WithRequest(lowerRequest(map[string]string{"x-envoy-retriable-status-codes": "418, 420"}))
	second := p.WithRequest(lowerRequest(map[string]string{"x-envoy-retriable-status-codes": "425"}))
	if !slices.Equal(first.StatusCodes, []uint32{409, 418, 420}) || !slices.Equal(second.StatusCodes, []uint32{409, 425}) || len(p.StatusCodes) != 1 {
		t.Errorf("%v and %v: requests side by side share what they add", first.StatusCodes, second.StatusCodes)
	}
	both := p.WithRequest(lowerRequest(map[string]string{"x-envoy-retry-on": "reset,unavailable", "x-envoy-retry-grpc-on": "cancelled,reset", "x-envoy-max-retries": "99999999999"}))
	if both.On != on|resilience.OnReset|resilience.OnCancelled || both.NumRetries != math.MaxUint32 {
		t.Errorf("on %v, %d retries", both.On, both.NumRetries)
	}
	if junk := p.WithRequest(lowerRequest(map[string]string{"x-envoy-max-retries": "-3"})); junk.NumRetries != p.NumRetries {
		t.Errorf("%d retries", junk.NumRetries)
	}
}

func TestMoreValidation(t *testing.T) {
	for field, err := range map[string]error{
		"initial_requests: must":         (&resilience.Hedge{}).Validate(),
		"initial_requests: 17":           (&resilience.Hedge{Initial: 17}).Validate(),
		"additional_request_chance":      (&resilience.Hedge{Initial: 1, Additional: routing.Fraction{PerMillion: 1_000_001}}).Validate(),
		"per_try_idle_timeout":           (&resilience.RetryPolicy{PerTryIdleTimeout: -1}).Validate(),
		"timeout":                        (&resilience.HealthCheck{}).Validate(),
		"interval":                       (&resilience.HealthCheck{Timeout: 1}).Validate(),
		"unhealthy_threshold":            (&resilience.HealthCheck{Timeout: 1, Interval: 1}).Validate(),
		"healthy_threshold":              (&resilience.HealthCheck{Timeout: 1, Interval: 1, UnhealthyThreshold: 1}).Validate(),
		"path":                           (&resilience.HealthCheck{Timeout: 1, Interval: 1, UnhealthyThreshold: 1, HealthyThreshold: 1}).Validate(),
		"failure_percentage_threshold":   (&resilience.Outlier{FailurePercentageThreshold: 101}).Validate(),
		"max_concurrency_limit":          (&resilience.AdaptiveConcurrency{}).Validate(),
		"concurrency_update_interval":    (&resilience.AdaptiveConcurrency{MaxLimit: 1}).Validate(),
		"min_rtt_calc_params.interval":   (&resilience.AdaptiveConcurrency{MaxLimit: 1, UpdateInterval: 1}).Validate(),
		"min_concurrency: must":          (&resilience.AdaptiveConcurrency{MaxLimit: 1, UpdateInterval: 1, FixedMinRTT: 1}).Validate(),
		"sample_aggregate_percentile":    (&resilience.AdaptiveConcurrency{SamplePercentile: 101}).Validate(),
		"concurrency_limit_exceeded_sta": (&resilience.AdaptiveConcurrency{MaxLimit: 1, UpdateInterval: 1, FixedMinRTT: 1, MinConcurrency: 1, Status: 200}).Validate(),
	} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("error %v, want one that names %s", err, field)
		}
	}
	d := resilience.DefaultAdaptiveConcurrency
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
}
