package lb

import (
	"testing"
	"time"
)

func TestClientWeights(t *testing.T) {
	c := ClientWeights{Blackout: 10 * time.Second, Expiration: 3 * time.Minute, ErrorPenalty: 1, Metrics: []string{"named_metrics.queue", "mem_utilization"}}
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	for _, r := range []struct {
		name   string
		report LoadReport
		want   float64
	}{
		{"cpu", LoadReport{CPU: .5, QPS: 100}, 200},
		{"application first", LoadReport{CPU: .5, Application: .25, QPS: 100}, 400},
		{"named in place of cpu", LoadReport{CPU: .5, QPS: 100, Named: map[string]float64{"named_metrics.queue": .8}}, 125},
		{"the largest of the named", LoadReport{CPU: .1, Memory: .4, QPS: 100, Named: map[string]float64{"named_metrics.queue": .2}}, 250},
		{"errors", LoadReport{CPU: .5, QPS: 100, EPS: 50}, 100},
		{"no requests", LoadReport{CPU: .5}, 0},
		{"no utilization", LoadReport{QPS: 100}, 0},
	} {
		if got := c.weight(&r.report); got != r.want {
			t.Errorf("%s: %v, want %v", r.name, got, r.want)
		}
	}
	var l ClientLoad
	weight := func(s int) (w float64) { w, l = c.WeightAt(l, at(s)); return w }
	if weight(0) != 0 {
		t.Error("a weight without a report")
	}
	l = c.Observe(l, &LoadReport{CPU: .5, QPS: 100}, at(1))
	if weight(10) != 0 {
		t.Error("a weight in the blackout")
	}
	if weight(11) != 200 {
		t.Error("no weight after the blackout")
	}
	l = c.Observe(l, &LoadReport{}, at(100))
	if weight(180) != 200 || weight(181) != 0 {
		t.Error("it expires after three minutes without a report that says something")
	}
	l = c.Observe(l, &LoadReport{CPU: 1, QPS: 100}, at(190))
	if weight(195) != 0 || weight(200) != 100 {
		t.Error("after that there is a blackout again")
	}

	eps, _ := endpoints(1, 1, 1, 1)
	p := NewPicker(Policy{Kind: ClientWeighted}, eps)
	given := func(w ...float64) *Picker { return p.Reweigh(func(slot int32) float64 { return w[slot] }) }
	fourDeviations(t, "weighted", picks(given(1, 2, 3, 4), nil, time.Time{}), seeded, normal(1, 2, 3, 4))
	fourDeviations(t, "the mean for one without", picks(given(1, 2, 3, 0), nil, time.Time{}), seeded, normal(1, 2, 3, 2))
	fourDeviations(t, "all alike with one weight only", picks(given(0, 7, 0, 0), nil, time.Time{}), seeded, normal(1, 1, 1, 1))
	fourDeviations(t, "and without", picks(p, nil, time.Time{}), seeded, normal(1, 1, 1, 1))
}
