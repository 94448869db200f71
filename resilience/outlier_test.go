package resilience

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestResultOf(t *testing.T) {
	for _, c := range []struct {
		o    Outcome
		want Result
	}{
		{Outcome{Status: 200, GRPC: -1}, Success},
		{Outcome{Status: 101, GRPC: -1}, Success},
		{Outcome{Status: 499, GRPC: -1}, Success},
		{Outcome{Status: 500, GRPC: -1}, Failure5xx},
		{Outcome{Status: 501, GRPC: -1}, Failure5xx},
		{Outcome{Status: 502, GRPC: -1}, GatewayFailure},
		{Outcome{Status: 503, GRPC: -1}, GatewayFailure},
		{Outcome{Status: 504, GRPC: -1}, GatewayFailure},
		{Outcome{Status: 505, GRPC: -1}, Failure5xx},
		{Outcome{Status: 200, GRPC: 0}, Success},
		{Outcome{Status: 200, GRPC: 1}, Success}, // 499
		{Outcome{Status: 200, GRPC: 2}, Failure5xx},
		{Outcome{Status: 200, GRPC: 3}, Success},
		{Outcome{Status: 200, GRPC: 4}, GatewayFailure}, // 504
		{Outcome{Status: 200, GRPC: 5}, Success},
		{Outcome{Status: 200, GRPC: 6}, Success},
		{Outcome{Status: 200, GRPC: 7}, Success},
		{Outcome{Status: 200, GRPC: 8}, Success}, // 429
		{Outcome{Status: 200, GRPC: 9}, Success},
		{Outcome{Status: 200, GRPC: 10}, Success},
		{Outcome{Status: 200, GRPC: 11}, Success},
		{Outcome{Status: 200, GRPC: 12}, Failure5xx}, // 501
		{Outcome{Status: 200, GRPC: 13}, Failure5xx},
		{Outcome{Status: 200, GRPC: 14}, GatewayFailure}, // 503
		{Outcome{Status: 200, GRPC: 15}, Failure5xx},
		{Outcome{Status: 200, GRPC: 16}, Success},
		{Outcome{Status: 200, GRPC: 99}, Failure5xx},
		{Outcome{GRPC: -1}, NoResult},
		{Outcome{GRPC: -1, Failure: ConnectFailure}, LocalFailure},
		{Outcome{GRPC: -1, Failure: Reset}, LocalFailure},
		{Outcome{GRPC: -1, Failure: ResetBeforeRequest}, LocalFailure},
		{Outcome{GRPC: -1, Failure: RefusedStream}, LocalFailure},
		{Outcome{GRPC: -1, Failure: PerTryTimeout}, LocalFailure},
		{Outcome{GRPC: -1, Failure: RouteTimeout}, LocalFailure},
		{Outcome{GRPC: -1, Failure: Overflow}, NoResult},
		{Outcome{GRPC: -1, Failure: Cancelled, Status: 503}, NoResult},
	} {
		if got := ResultOf(&c.o); got != c.want {
			t.Errorf("%+v: %d, want %d", c.o, got, c.want)
		}
	}
}

// dumbStreak counts with plain integers.
type dumbStreak struct{ fives, gateway, local uint32 }

func (d *dumbStreak) observe(o *Outlier, r Result) (detected Detections) {
	switch {
	case r == NoResult:
	case r == Success:
		*d = dumbStreak{}
	case r == LocalFailure && o.SplitLocalOrigin:
		if d.local++; d.local == o.ConsecutiveLocalOriginFailure {
			d.local = 0
			detected |= DetectedLocalOriginFailure
		}
	default:
		d.local = 0
		if d.fives++; d.fives == o.Consecutive5xx {
			d.fives = 0
			detected |= Detected5xx
		}
		if r == Failure5xx {
			d.gateway = 0
		} else if d.gateway++; d.gateway == o.ConsecutiveGatewayFailure {
			d.gateway = 0
			detected |= DetectedGatewayFailure
		}
	}
	return detected
}

func TestObserveAgainstOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	results := []Result{NoResult, Success, Failure5xx, Failure5xx, GatewayFailure, GatewayFailure, LocalFailure, LocalFailure}
	for _, split := range []bool{false, true} {
		for _, threshold := range []uint32{0, 1, 2, 5} {
			o := Outlier{Consecutive5xx: threshold, ConsecutiveGatewayFailure: threshold / 2, ConsecutiveLocalOriginFailure: threshold, SplitLocalOrigin: split}
			var s Streak
			var dumb dumbStreak
			for i := range 20000 {
				r := results[random.IntN(len(results))]
				var got Detections
				s, got = o.Observe(s, r)
				want := dumb.observe(&o, r)
				if got != want || s.Consecutive5xx() != dumb.fives || s.ConsecutiveGatewayFailure() != dumb.gateway || s.ConsecutiveLocalOriginFailure() != dumb.local {
					t.Fatalf("split %v, threshold %d, step %d, result %d: %b and %d/%d/%d, want %b and %+v", split, threshold, i, r,
						got, s.Consecutive5xx(), s.ConsecutiveGatewayFailure(), s.ConsecutiveLocalOriginFailure(), want, dumb)
				}
				if r == Success && s != 0 {
					t.Fatal("a success leaves a streak")
				}
			}
		}
	}
}

// TestStreakDoesNotOverflow: a counter that no threshold clears stops at its
// maximum and does not run into the next.
func TestStreakDoesNotOverflow(t *testing.T) {
	o := Outlier{Consecutive5xx: 0, ConsecutiveGatewayFailure: 0}
	s := Streak(streakMask - 1)
	for range 3 {
		s, _ = o.Observe(s, Failure5xx)
	}
	if s.Consecutive5xx() != MaxConsecutive || s.ConsecutiveGatewayFailure() != 0 {
		t.Errorf("%d failures, %d gateway failures", s.Consecutive5xx(), s.ConsecutiveGatewayFailure())
	}
	o.Consecutive5xx = MaxConsecutive
	if _, detected := o.Observe(Streak(streakMask-1), Failure5xx); detected != Detected5xx {
		t.Error("the largest threshold is not reached")
	}
}

func TestEnforces(t *testing.T) {
	o := Outlier{EnforcingConsecutive5xx: 30, EnforcingConsecutiveGatewayFailure: 0, EnforcingConsecutiveLocalOriginFailure: 100}
	counts := map[Detections]int{}
	for draw := range uint64(1_000_000) {
		for d := Detections(0); d < 8; d++ {
			if o.Enforces(d, draw) {
				counts[d]++
			}
		}
	}
	for d, want := range map[Detections]int{0: 0, Detected5xx: 300_000, DetectedGatewayFailure: 0, DetectedLocalOriginFailure: 1_000_000, Detected5xx | DetectedGatewayFailure: 300_000} {
		if counts[d] != want {
			t.Errorf("detections %b eject %d times of 1,000,000, want %d", d, counts[d], want)
		}
	}
	both := Outlier{EnforcingConsecutive5xx: 50, EnforcingConsecutiveGatewayFailure: 50}
	n := 0
	for draw := range uint64(10_000) {
		if both.Enforces(Detected5xx|DetectedGatewayFailure, draw) {
			n++
		}
	}
	if n != 7500 {
		t.Errorf("two independent halves eject %d times of 10,000, want 7,500", n)
	}
}

func TestMayEject(t *testing.T) {
	for _, c := range []struct {
		percent        uint32
		always         bool
		ejected, total int
		want           bool
	}{
		{10, false, 0, 9, false},
		{10, false, 0, 10, true},
		{10, false, 1, 10, false},
		{10, false, 1, 20, true},
		{10, true, 0, 3, true},
		{10, true, 1, 3, false},
		{0, false, 0, 100, false},
		{0, true, 0, 100, true},
		{100, false, 0, 1, true},
		{100, false, 2, 3, true},
		{100, true, 1, 1, false},
		{100, true, 0, 0, false},
		{33, false, 0, 3, false},
		{34, false, 0, 3, true},
	} {
		o := Outlier{MaxEjectionPercent: c.percent, AlwaysEjectOneEndpoint: c.always}
		if got := o.MayEject(c.ejected, c.total); got != c.want {
			t.Errorf("%d of %d ejected, at most %d %%, always one: %v: %v, want %v", c.ejected, c.total, c.percent, c.always, got, c.want)
		}
	}
}

func TestEjectionTimes(t *testing.T) {
	o := Outlier{BaseEjectionTime: 10 * time.Second, MaxEjectionTime: 25 * time.Second, Interval: time.Second}
	for multiplier, want := range map[uint32]time.Duration{0: 0, 1: 10e9, 2: 20e9, 3: 25e9, 4: 25e9, math.MaxUint32: 25e9} {
		if got := o.EjectionTime(multiplier); got != want {
			t.Errorf("multiplier %d: %v, want %v", multiplier, got, want)
		}
	}
	now := time.Unix(0, 0)
	var e Ejection
	for i, want := range []time.Duration{10e9, 20e9, 25e9, 25e9, 25e9} {
		e = o.Eject(e, now, 0)
		if got := e.Until.Sub(now); got != want || !e.Ejected {
			t.Errorf("ejection %d lasts %v, want %v", i+1, got, want)
		}
		if after, ended := o.Sweep(e, e.Until.Add(-1)); ended || !after.Ejected || after.Multiplier != e.Multiplier {
			t.Errorf("ejection %d ends early", i+1)
		}
		var ended bool
		if e, ended = o.Sweep(e, e.Until); !ended || e.Ejected {
			t.Errorf("ejection %d does not end", i+1)
		}
		now = e.Until
	}
	if e.Multiplier != 4 {
		t.Errorf("the multiplier has grown to %d; Envoy's stops at 4, one after the time stops to grow", e.Multiplier)
	}
	for want := uint32(3); ; want-- {
		var ended bool
		if e, ended = o.Sweep(e, now); ended || e.Multiplier != want {
			t.Errorf("a sweep of an endpoint in use gives the multiplier %d, want %d", e.Multiplier, want)
		}
		if want == 0 {
			break
		}
	}
	if e, _ = o.Sweep(e, now); e.Multiplier != 0 {
		t.Errorf("the multiplier is %d", e.Multiplier)
	}

	o.MaxEjectionTimeJitter = 5 * time.Second
	for draw, want := range map[uint64]time.Duration{0: 10e9, 5e9: 15e9, 5e9 + 1: 10e9, 7: 10e9 + 7} {
		if got := o.Eject(Ejection{}, now, draw).Until.Sub(now); got != want {
			t.Errorf("with jitter and draw %d the ejection lasts %v, want %v", draw, got, want)
		}
	}
}

func TestOutlierValidate(t *testing.T) {
	if err := DefaultOutlier.Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	for want, spoil := range map[string]func(*Outlier){
		"consecutive_5xx: 2097152 is more than 2097151":                  func(o *Outlier) { o.Consecutive5xx = 1 << 21 },
		"consecutive_gateway_failure: 2097152 is more":                   func(o *Outlier) { o.ConsecutiveGatewayFailure = 1 << 21 },
		"consecutive_local_origin_failure: 2097152 is more":              func(o *Outlier) { o.ConsecutiveLocalOriginFailure = 1 << 21 },
		"enforcing_consecutive_5xx: 101 is more than 100":                func(o *Outlier) { o.EnforcingConsecutive5xx = 101 },
		"enforcing_consecutive_gateway_failure: 101 is more than 100":    func(o *Outlier) { o.EnforcingConsecutiveGatewayFailure = 101 },
		"enforcing_consecutive_local_origin_failure: 101 is more":        func(o *Outlier) { o.EnforcingConsecutiveLocalOriginFailure = 101 },
		"max_ejection_percent: 101 is more than 100":                     func(o *Outlier) { o.MaxEjectionPercent = 101 },
		"interval: 0s is not positive":                                   func(o *Outlier) { o.Interval = 0 },
		"base_ejection_time: 0s is not positive":                         func(o *Outlier) { o.BaseEjectionTime = 0 },
		"max_ejection_time: 29s is less than the base ejection time 30s": func(o *Outlier) { o.MaxEjectionTime = 29 * time.Second },
		"max_ejection_time_jitter: -1ns is negative":                     func(o *Outlier) { o.MaxEjectionTimeJitter = -1 },
	} {
		o := DefaultOutlier
		spoil(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one with %q", err, want)
		}
	}
}

func TestFailureNames(t *testing.T) {
	seen := map[string]bool{}
	for f := NoFailure; f <= Cancelled; f++ {
		if s := f.String(); s == "" || s == "unknown" || seen[s] {
			t.Errorf("failure %d is called %q", f, s)
		}
		seen[f.String()] = true
	}
	if Failure(200).String() != "unknown" {
		t.Error("a failure that does not exist has a name")
	}
}

func BenchmarkObserve(b *testing.B) {
	b.ReportAllocs()
	s := Streak(0)
	for b.Loop() {
		s, _ = DefaultOutlier.Observe(s, GatewayFailure)
	}
}
