package lb

import (
	"math"
	"time"
)

// DefaultDecay and InitialLatency are Linkerd's: the window of peak EWMA, and
// what is taken for the latency of an endpoint that has not answered yet.
const (
	DefaultDecay   = 10 * time.Second
	InitialLatency = 30 * time.Millisecond
)

// Latency is the moving average of an endpoint's latency, packed into a word so
// that it can be kept in an atomic: the average in nanoseconds as a float32, and
// when it was last brought up to date, in units of 2^20 ns since a time of the
// caller's choice. The zero value has had no answer.
type Latency uint64

const latencyTick = 20

func packLatency(average float64, tick uint32) Latency {
	return Latency(math.Float32bits(float32(average)))<<32 | Latency(tick)
}

func (l Latency) average() float64 { return float64(math.Float32frombits(uint32(l >> 32))) }

// Observe returns the average with one more answer, which took the given time
// and came the time since after the beginning of the count. A latency above the
// average counts at once, one below it by how much time has passed (peak-sensitive).
func (l Latency) Observe(took, since, decay time.Duration) Latency {
	// Tick 0 is that of the zero value.
	tick := uint32(since>>latencyTick) + 1
	if l == 0 {
		return packLatency(float64(took), tick)
	}
	average := l.average()
	if float64(took) >= average {
		return packLatency(float64(took), tick)
	}
	keep := l.keep(tick, decay)
	return packLatency(average*keep+float64(took)*(1-keep), tick)
}

// keep is the part of the average that is still worth something.
func (l Latency) keep(tick uint32, decay time.Duration) float64 {
	elapsed := time.Duration(int32(tick-uint32(l))) << latencyTick
	if elapsed <= 0 {
		return 1
	}
	if decay <= 0 {
		decay = DefaultDecay
	}
	return math.Exp(-float64(elapsed) / float64(decay))
}

// Estimate returns the average in nanoseconds. It falls while no answers come,
// so that a slow endpoint is tried again.
func (l Latency) Estimate(since, decay time.Duration) float64 {
	if l == 0 {
		return float64(InitialLatency)
	}
	return l.average() * l.keep(uint32(since>>latencyTick)+1, decay)
}
