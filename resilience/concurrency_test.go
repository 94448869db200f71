package resilience_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

func latencies(n int, each time.Duration) []time.Duration {
	out := make([]time.Duration, n)
	for i := range out {
		out[i] = each
	}
	return out
}

// TestGradient walks through the controller's states at fixed times.
func TestGradient(t *testing.T) {
	a := resilience.DefaultAdaptiveConcurrency
	a.MinRTTJitter = 0
	now := time.Unix(0, 0)
	g := a.Start(now)
	if !g.Measuring || g.Limit != 3 {
		t.Fatalf("at the start: %+v", g)
	}
	if _, used := a.Sampled(g, latencies(49, time.Millisecond), now, 0); used {
		t.Error("49 requests end a measurement of 50")
	}
	g, used := a.Sampled(g, latencies(50, 10*time.Millisecond), now, 0)
	if !used || g.Measuring || g.MinRTT != 10*time.Millisecond || g.Limit != 3 || !g.Measure.Equal(now.Add(time.Minute)) {
		t.Fatalf("after the measurement: %+v", g)
	}
	for _, step := range []struct {
		sampled time.Duration
		limit   uint32
	}{
		{10 * time.Millisecond, 5},            // 3 x 1.25 + sqrt(3.75)
		{5 * time.Millisecond, 13},            // 5 x 2 (2.5, bounded) + sqrt(10)
		{12500 * time.Microsecond, 16},        // 13 x 1 + sqrt(13)
		{100 * time.Millisecond, 10},          // 16 x 0.5 (0.125, bounded) + sqrt(8)
		{time.Duration(math.MaxInt64 / 2), 7}, // 10 x 0.5 + sqrt(5)
	} {
		now = now.Add(a.UpdateInterval)
		if g = a.Update(g, latencies(7, step.sampled), now); g.Limit != step.limit {
			t.Errorf("with %v the limit is %d, want %d", step.sampled, g.Limit, step.limit)
		}
	}
	if quiet := a.Update(g, nil, now); quiet.Limit != g.Limit {
		t.Errorf("an interval without requests makes %d of %d", quiet.Limit, g.Limit)
	}
	now = g.Measure
	before := g.Limit
	g = a.Update(g, nil, now)
	if !g.Measuring || g.Limit != 3 || !g.Since.Equal(now) {
		t.Fatalf("when the next measurement is due: %+v", g)
	}
	if g, _ = a.Sampled(g, latencies(50, 20*time.Millisecond), now, 0); g.Limit != before || g.MinRTT != 20*time.Millisecond {
		t.Errorf("after it the limit is %d, want %d as before", g.Limit, before)
	}
}

// TestGradientMeasuresAgainAtTheBottom: where the limit stays at its least, the
// latency without load has changed.
func TestGradientMeasuresAgainAtTheBottom(t *testing.T) {
	a := resilience.DefaultAdaptiveConcurrency
	a.MinConcurrency = 4
	now := time.Unix(0, 0)
	g, _ := a.Sampled(a.Start(now), latencies(50, time.Millisecond), now, 0)
	n := 0
	for ; !g.Measuring && n < 100; n++ {
		now = now.Add(a.UpdateInterval)
		g = a.Update(g, latencies(1, time.Second), now)
	}
	if n != 5 {
		t.Errorf("measures after %d updates at the least limit, want 5", n)
	}
}

// TestGradientBounds: whatever the latencies, the limit stays in its range and
// is what the definition says.
func TestGradientBounds(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		a := resilience.AdaptiveConcurrency{
			SamplePercentile: random.Float64() * 100, MinConcurrency: 1 + random.Uint32N(5), UpdateInterval: time.Second,
			MinRTTBuffer: random.Float64() * 100, FixedMinRTT: 1 + time.Duration(random.Int64N(int64(time.Second))),
		}
		a.MaxLimit = a.MinConcurrency + random.Uint32N(100)
		if err := a.Validate(); err != nil {
			t.Fatal(err)
		}
		now := time.Unix(0, 0)
		g := a.Start(now)
		for range 30 {
			sampled := 1 + time.Duration(random.Int64N(int64(2*time.Second)))
			want := float64(g.Limit) * math.Max(.5, math.Min(2, float64(g.MinRTT)*(1+a.MinRTTBuffer/100)/float64(sampled)))
			want = math.Max(float64(a.MinConcurrency), math.Min(float64(a.MaxLimit), math.Floor(want+math.Sqrt(want))))
			now = now.Add(time.Second)
			g = a.Update(g, latencies(1+random.IntN(20), sampled), now)
			if g.Limit != uint32(want) || g.Measuring {
				t.Fatalf("%+v: the limit is %d, want %v", a, g.Limit, want)
			}
		}
	}
}

func TestShedding(t *testing.T) {
	load := func(waiting int) resilience.ServerLoad {
		return resilience.ServerLoad{Waiting: waiting, Workers: 4, Service: 10 * time.Millisecond}
	}
	s := resilience.DefaultShedding
	for _, c := range []struct {
		name    string
		waiting int
		left    time.Duration
		limited bool
		urgency uint8
		want    resilience.ShedReason
	}{
		{"idle", 0, time.Second, true, 3, resilience.NotShed},
		{"no limit of its own", 24, 0, false, 3, resilience.NotShed},
		{"time is up", 0, 0, true, 0, resilience.ShedDeadline},
		{"time was up long ago", 0, -time.Second, true, 0, resilience.ShedDeadline},
		{"would end just in time", 8, 30 * time.Millisecond, true, 3, resilience.NotShed},
		{"would end too late", 8, 29 * time.Millisecond, true, 3, resilience.ShedWait},
		{"most urgent, last place", 39, time.Second, true, 0, resilience.NotShed},
		{"most urgent, full", 40, time.Second, true, 0, resilience.ShedQueue},
		{"ordinary, its last place", 24, time.Second, true, 3, resilience.NotShed},
		{"ordinary, its part is full", 25, time.Second, true, 3, resilience.ShedQueue},
		{"least urgent, its last place", 4, time.Second, true, 7, resilience.NotShed},
		{"least urgent, its part is full", 5, time.Second, true, 7, resilience.ShedQueue},
		{"beyond the least urgent", 5, time.Second, true, 200, resilience.ShedQueue},
	} {
		if got := s.Decide(load(c.waiting), c.left, c.limited, c.urgency); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	// Who is less urgent is never let in where who is more urgent is not.
	for waiting := range 50 {
		for urgency := range uint8(7) {
			if s.Decide(load(waiting), 0, false, urgency+1) == resilience.NotShed && s.Decide(load(waiting), 0, false, urgency) != resilience.NotShed {
				t.Errorf("%d wait: urgency %d is let in and %d is not", waiting, urgency+1, urgency)
			}
		}
	}
}

func TestUrgency(t *testing.T) {
	for value, want := range map[string]uint8{
		"": 3, "u=0": 0, "u=7, i": 7, "i, u=1": 1, "u=5;x=y": 5, "u=1, u=6": 6, "u=8": 3, "u=-1": 3, "u=10": 3, "u": 3, "U=1": 3, "nu=1": 3, "\tu=2 ": 2,
	} {
		if got := resilience.Urgency([]string{value}); got != want {
			t.Errorf("%q: %d, want %d", value, got, want)
		}
	}
	if got := resilience.Urgency([]string{"u=1", "i"}); got != 1 {
		t.Errorf("in two lines: %d", got)
	}
}
