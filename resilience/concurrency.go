package resilience

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// AdaptiveConcurrency finds by itself how many requests may be under way at
// once, from how latency grows with their number
// (envoy.extensions.filters.http.adaptive_concurrency.v3, gradient controller).
type AdaptiveConcurrency struct {
	SamplePercentile float64       // default 50
	MaxLimit         uint32        // default 1000
	UpdateInterval   time.Duration // of the limit
	MinRTTInterval   time.Duration // how often the latency without load is measured
	MinRTTRequests   uint32        // with how many requests; default 50
	MinRTTJitter     float64       // share of MinRTTInterval, in per cent; default 15
	MinConcurrency   uint32        // while it is measured; default 3
	MinRTTBuffer     float64       // per cent by which latency may grow without a lower limit; default 25
	FixedMinRTT      time.Duration // in place of measuring; 0 measures
	Enabled          bool
	// Status answers requests beyond the limit. Default 503.
	Status int
}

// DefaultAdaptiveConcurrency has Envoy's defaults; the two intervals have none
// there, and are those of its documentation's example.
var DefaultAdaptiveConcurrency = AdaptiveConcurrency{
	SamplePercentile: 50, MaxLimit: 1000, UpdateInterval: 100 * time.Millisecond, MinRTTInterval: time.Minute,
	MinRTTRequests: 50, MinRTTJitter: 15, MinConcurrency: 3, MinRTTBuffer: 25, Enabled: true, Status: 503,
}

// Validate reports the first field with a value that has no meaning.
func (a *AdaptiveConcurrency) Validate() error {
	switch {
	case !(a.SamplePercentile >= 0 && a.SamplePercentile <= 100):
		return fmt.Errorf("sample_aggregate_percentile: %v is not from 0 to 100", a.SamplePercentile)
	case a.MaxLimit == 0:
		return fmt.Errorf("max_concurrency_limit: must be at least 1")
	case a.UpdateInterval <= 0:
		return fmt.Errorf("concurrency_update_interval: %v is not positive", a.UpdateInterval)
	case a.FixedMinRTT < 0:
		return fmt.Errorf("min_rtt_calc_params.fixed_value: %v is negative", a.FixedMinRTT)
	case a.FixedMinRTT == 0 && a.MinRTTInterval <= 0:
		return fmt.Errorf("min_rtt_calc_params.interval: %v is not positive", a.MinRTTInterval)
	case a.FixedMinRTT == 0 && a.MinRTTRequests == 0:
		return fmt.Errorf("min_rtt_calc_params.request_count: must be at least 1")
	case !(a.MinRTTJitter >= 0 && a.MinRTTJitter <= 100):
		return fmt.Errorf("min_rtt_calc_params.jitter: %v is not from 0 to 100", a.MinRTTJitter)
	case a.MinConcurrency == 0:
		return fmt.Errorf("min_rtt_calc_params.min_concurrency: must be at least 1")
	case !(a.MinRTTBuffer >= 0 && a.MinRTTBuffer <= 100):
		return fmt.Errorf("min_rtt_calc_params.buffer: %v is not from 0 to 100", a.MinRTTBuffer)
	case a.Status != 0 && (a.Status < 400 || a.Status > 599):
		return fmt.Errorf("concurrency_limit_exceeded_status: %d is not from 400 to 599", a.Status)
	}
	return nil
}

// Gradient is the state of the controller between two of its steps. The zero
// value has seen nothing: Start makes one.
//
// The controller alternates between two things. It measures the latency without
// load (the "minimum round trip time") by letting only MinConcurrency requests
// through until MinRTTRequests of them have been answered; and between two
// measurements it sets the limit anew every UpdateInterval.
type Gradient struct {
	Limit  uint32
	MinRTT time.Duration // 0 until it was measured
	// Measuring reports that the latency without load is being measured now.
	Measuring bool
	// Next is when the next step is due: while measuring, never, for that ends
	// with the last sample; else the end of the update interval.
	Next time.Time
	// Measure is when the next measurement begins.
	Measure time.Time
	// Since is when the present measurement began: the latencies of requests that
	// began before it do not count.
	Since time.Time

	previous uint32 // the limit before a measurement
	pinned   uint32 // updates in a row in which the limit was MinConcurrency
}

// pinnedUpdates is how many updates in a row at the lowest limit make the
// controller measure anew: the latency without load has grown (Envoy).
const pinnedUpdates = 5

// Start returns the state at the beginning.
func (a *AdaptiveConcurrency) Start(now time.Time) Gradient {
	g := Gradient{Limit: a.MinConcurrency, previous: a.MinConcurrency, Next: now.Add(a.UpdateInterval)}
	if a.FixedMinRTT > 0 {
		g.MinRTT = a.FixedMinRTT
		return g
	}
	g.Measuring, g.Since = true, now
	return g
}

// Sampled returns the state after the latencies of so many requests are there:
// while measuring, MinRTTRequests of them end the measurement. samples may be
// put in another order. draw is 64 random bits, for the jitter.
func (a *AdaptiveConcurrency) Sampled(g Gradient, samples []time.Duration, now time.Time, draw uint64) (after Gradient, used bool) {
	if !g.Measuring || len(samples) < int(a.MinRTTRequests) {
		return g, false
	}
	g.Measuring = false
	g.MinRTT = max(1, a.percentile(samples))
	g.Limit = g.previous
	g.pinned = 0
	g.Next = now.Add(a.UpdateInterval)
	g.Measure = now.Add(a.MinRTTInterval)
	if jitter := uint64(a.MinRTTJitter / 100 * float64(a.MinRTTInterval)); jitter > 0 {
		g.Measure = g.Measure.Add(time.Duration(draw % jitter))
	}
	return g, true
}

// Update returns the state after an update interval with the latencies of its
// requests, which may be put in another order.
//
// The new limit is the old one times the gradient, which is the latency without
// load (and its buffer) by the sampled latency, from 0.5 to 2, plus the square
// root of the result as room to grow; from MinConcurrency to MaxLimit.
func (a *AdaptiveConcurrency) Update(g Gradient, samples []time.Duration, now time.Time) Gradient {
	if g.Measuring || g.MinRTT == 0 {
		return g
	}
	g.Next = now.Add(a.UpdateInterval)
	if len(samples) > 0 {
		old := g.Limit
		sampled := max(1, a.percentile(samples))
		buffered := float64(g.MinRTT) * (1 + a.MinRTTBuffer/100)
		gradient := min(2, max(0.5, buffered/float64(sampled)))
		limit := float64(g.Limit) * gradient
		g.Limit = uint32(max(float64(a.MinConcurrency), min(float64(a.MaxLimit), limit+math.Sqrt(limit))))
		if g.pinned++; old != a.MinConcurrency || g.Limit != a.MinConcurrency {
			g.pinned = 0
		}
	}
	if a.FixedMinRTT == 0 && (!now.Before(g.Measure) || g.pinned >= pinnedUpdates) {
		g.Measuring, g.Since, g.pinned = true, now, 0
		g.previous, g.Limit = g.Limit, a.MinConcurrency
	}
	return g
}

// percentile returns the latency that SamplePercentile per cent of the samples do not exceed.
func (a *AdaptiveConcurrency) percentile(samples []time.Duration) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	slices.Sort(samples)
	i := int(math.Ceil(a.SamplePercentile/100*float64(len(samples)))) - 1
	return samples[min(max(i, 0), len(samples)-1)]
}
