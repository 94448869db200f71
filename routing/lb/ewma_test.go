package lb

import (
	"testing"
	"time"
)

func TestLatency(t *testing.T) {
	const ms = time.Millisecond
	near := func(name string, got float64, want time.Duration) {
		t.Helper()
		if got < .99*float64(want) || got > 1.01*float64(want) {
			t.Errorf("%s: %v, want %v", name, time.Duration(got), want)
		}
	}
	var l Latency
	near("before any answer", l.Estimate(0, 0), InitialLatency)
	l = l.Observe(100*ms, 0, 10*time.Second)
	near("the first answer", l.Estimate(0, 10*time.Second), 100*ms)
	l = l.Observe(300*ms, time.Second, 10*time.Second)
	near("a peak counts at once", l.Estimate(time.Second, 10*time.Second), 300*ms)
	near("it falls without answers", l.Estimate(11*time.Second, 10*time.Second), time.Duration(110.4*float64(ms)))
	l = l.Observe(100*ms, 11*time.Second, 10*time.Second)
	near("a better one counts by the time that has passed", l.Estimate(11*time.Second, 10*time.Second), time.Duration(173.6*float64(ms)))
	same := l.Observe(1*ms, 11*time.Second, 10*time.Second)
	near("and not at all where none has", same.Estimate(11*time.Second, 10*time.Second), time.Duration(173.6*float64(ms)))
}
