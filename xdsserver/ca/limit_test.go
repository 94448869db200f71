package ca

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestLimiterOracle holds the limiter against one that remembers every grant and never
// forgets an identity: over any time, no more than the burst and the rate's share.
func TestLimiterOracle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	rate := Rate{PerSecond: 2, Burst: 5, Identities: 4}
	l := newLimiter(rate)
	now := epoch
	grants := map[string][]time.Time{}
	refused, granted := 0, 0
	for range 20_000 {
		now = now.Add(time.Duration(rnd.IntN(500)) * time.Millisecond)
		id := fmt.Sprint(rnd.IntN(6))
		if !l.allow(id, now) {
			refused++
			continue
		}
		granted++
		grants[id] = append(grants[id], now)
		g := grants[id]
		for back := len(g) - 1; back >= 0 && back > len(g)-40; back-- {
			span := now.Sub(g[back])
			if n := len(g) - back; float64(n) > float64(rate.Burst)+span.Seconds()*rate.PerSecond+1e-6 {
				t.Fatalf("%d grants in %v", n, span)
			}
		}
		if len(l.buckets) > rate.Identities {
			t.Fatalf("%d identities are kept", len(l.buckets))
		}
	}
	if refused == 0 || granted == 0 {
		t.Errorf("%d refused, %d granted", refused, granted)
	}
}

func TestLimiterMemory(t *testing.T) {
	l := newLimiter(Rate{PerSecond: 1, Burst: 2, Identities: 100})
	now := epoch
	for i := range 100_000 {
		now = now.Add(50 * time.Millisecond)
		l.allow(fmt.Sprint(i), now)
		if len(l.buckets) > 100 {
			t.Fatalf("%d identities are kept", len(l.buckets))
		}
	}
	if !l.allow("known", now.Add(time.Hour)) {
		t.Error("no room an hour later")
	}
	// Clock set back: nobody is shut out and nobody gains.
	if !l.allow("known", now.Add(-time.Hour)) || l.allow("known", now.Add(-time.Hour)) {
		t.Error("a clock set back gives or takes")
	}
	for _, r := range []Rate{{PerSecond: -1}, {Burst: -1}, {Identities: -1}, {PerSecond: 1e9}, {PerSecond: nan()}} {
		if r.complete() == nil {
			t.Errorf("%+v is accepted", r)
		}
	}
}

func nan() float64 { var zero float64; return zero / zero }
