package ca

import (
	"errors"
	"sync"
	"time"
)

// Rate is a token bucket.
type Rate struct {
	// PerSecond is how many certificates an identity gets in the long run. Default 10.
	PerSecond float64
	// Burst is how many it gets at once. Default 100: replicas of a workload start together.
	Burst int
	// Identities is how many identities are counted at a time; where all of them have
	// asked just now, others are refused. Default 65,536 (about 10 MiB).
	Identities int
}

func (r *Rate) complete() error {
	// Written so that NaN is refused.
	if !(r.PerSecond >= 0) || r.PerSecond > 1e6 || r.Burst < 0 || r.Identities < 0 {
		return errors.New("Rate: needs 0 <= PerSecond <= 1e6, Burst >= 0 and Identities >= 0")
	}
	if r.PerSecond == 0 {
		r.PerSecond = 10
	}
	if r.Burst == 0 {
		r.Burst = 100
	}
	if r.Identities == 0 {
		r.Identities = 1 << 16
	}
	return nil
}

// limiter has a bucket for each identity that has asked lately. A full bucket is the
// same as none, so that forgetting it changes nothing.
type limiter struct {
	rate Rate
	fill time.Duration // from empty to full

	mu      sync.Mutex
	buckets map[string]bucket
	swept   time.Time
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newLimiter(r Rate) *limiter {
	fill := min(float64(r.Burst)/r.PerSecond, (24 * time.Hour).Seconds())
	return &limiter{rate: r, fill: time.Duration(fill * float64(time.Second)), buckets: make(map[string]bucket)}
}

func (l *limiter) allow(id string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[id]
	if !ok {
		if len(l.buckets) >= l.rate.Identities && !l.sweep(now) {
			return false
		}
		b = bucket{tokens: float64(l.rate.Burst), at: now}
	}
	// A clock that goes backwards gives nothing and takes nothing.
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(b.tokens+d.Seconds()*l.rate.PerSecond, float64(l.rate.Burst))
	}
	b.at = now
	if ok = b.tokens >= 1; ok {
		b.tokens--
	}
	l.buckets[id] = b
	return ok
}

// sweep forgets full buckets and tells whether there is room; a tenth of a fill lies
// between two sweeps, because each looks at all buckets.
func (l *limiter) sweep(now time.Time) bool {
	if d := now.Sub(l.swept); d < 0 || d >= l.fill/10 {
		l.swept = now
		for id, b := range l.buckets {
			if b.tokens+now.Sub(b.at).Seconds()*l.rate.PerSecond >= float64(l.rate.Burst) {
				delete(l.buckets, id)
			}
		}
	}
	return len(l.buckets) < l.rate.Identities
}
