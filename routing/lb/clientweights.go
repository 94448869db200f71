package lb

import (
	"math"
	"time"
)

// ClientLoad is what an endpoint's reports have come to (gRFC A58). The zero value has had none.
type ClientLoad struct {
	Weight float64
	// Updated is the time of the last report that gives a weight, Since that of the first in a row.
	Updated, Since time.Time
}

// Observe returns the state after a report.
func (c *ClientWeights) Observe(l ClientLoad, r *LoadReport, now time.Time) ClientLoad {
	weight := c.weight(r)
	if weight == 0 {
		return l
	}
	if l.Since.IsZero() {
		l.Since = now
	}
	l.Weight, l.Updated = weight, now
	return l
}

func (c *ClientWeights) weight(r *LoadReport) float64 {
	utilization := r.Application
	if utilization <= 0 {
		for _, name := range c.Metrics {
			if v, ok := r.metric(name); ok && v > utilization {
				utilization = v
			}
		}
	}
	if utilization <= 0 {
		utilization = r.CPU
	}
	if r.QPS <= 0 || utilization <= 0 || math.IsNaN(r.QPS+utilization) || math.IsInf(r.QPS, 0) {
		return 0
	}
	penalty := 0.0
	if r.EPS > 0 && c.ErrorPenalty > 0 {
		penalty = r.EPS / r.QPS * c.ErrorPenalty
	}
	return r.QPS / (utilization + penalty)
}

func (r *LoadReport) metric(name string) (float64, bool) {
	switch name {
	case "cpu_utilization":
		return r.CPU, true
	case "mem_utilization":
		return r.Memory, true
	case "application_utilization":
		return r.Application, true
	}
	v, ok := r.Named[name]
	return v, ok
}

// Weight returns the weight at a time, and the state after it was asked for: 0
// before Blackout has passed since reports came, and where none has come for Expiration.
func (c *ClientWeights) WeightAt(l ClientLoad, now time.Time) (float64, ClientLoad) {
	expiration, blackout := c.Expiration, c.Blackout
	if expiration <= 0 {
		expiration = 3 * time.Minute
	}
	if l.Updated.IsZero() {
		return 0, l
	}
	if now.Sub(l.Updated) >= expiration {
		l.Since = time.Time{}
		return 0, l
	}
	if blackout > 0 && (l.Since.IsZero() || now.Sub(l.Since) < blackout) {
		return 0, l
	}
	return l.Weight, l
}

// UpdatePeriod is how often pickers take new weights.
func (c *ClientWeights) UpdatePeriod() time.Duration {
	if c.Update == 0 {
		return time.Second
	}
	return max(c.Update, 100*time.Millisecond)
}

// clientWeights is round robin by reported weights, as a stride over their sums.
type clientWeights struct {
	upTo []uint64 // by position in the pool's bag
	step uint64
}

func (c *clientWeights) pick(seq uint64) int {
	return above(c.upTo, stride(seq, c.step, c.upTo[len(c.upTo)-1]))
}

// Reweigh returns the picker of a ClientWeighted policy with the weights of
// now, by slot; endpoints without one (0) get the mean of the others, and where
// fewer than two have one, all are used in turn (gRFC A58). It looks at every
// endpoint; the caller does it once in UpdatePeriod.
func (p *Picker) Reweigh(weight func(slot int32) float64) *Picker {
	if p.policy.Kind != ClientWeighted {
		return p
	}
	weighed := *p
	weighed.prios = make([]priorityPools, len(p.prios))
	for i := range p.prios {
		from, to := &p.prios[i], &weighed.prios[i]
		*to = *from
		for c := range from.pools {
			to.pools[c] = from.pools[c].reweigh(weight)
			if l := from.localities[c]; l != nil {
				to.localities[c] = &localities{pools: reweighAll(l.pools, weight), upTo: l.upTo}
			}
		}
		if z := from.zones; z != nil {
			other := *z
			other.local, other.others = z.local.reweigh(weight), reweighAll(z.others, weight)
			to.zones = &other
		}
	}
	return &weighed
}

func reweighAll(pools []*pool, weight func(int32) float64) []*pool {
	out := make([]*pool, len(pools))
	for i := range pools {
		out[i] = pools[i].reweigh(weight)
	}
	return out
}

// maxClientWeight is what the largest weight is scaled to.
const maxClientWeight = 1 << 24

func (p *pool) reweigh(weight func(int32) float64) *pool {
	if p == nil {
		return nil
	}
	have, sum, most := 0, 0.0, 0.0
	for i := range p.bag.n {
		if w := weight(p.bag.at(i)); w > 0 {
			have++
			sum += w
			most = max(most, w)
		}
	}
	fresh := *p
	fresh.client = nil
	if have < 2 {
		return &fresh
	}
	mean := sum / float64(have)
	c := &clientWeights{upTo: make([]uint64, p.bag.n)}
	total := uint64(0)
	for i := range c.upTo {
		w := weight(p.bag.at(i))
		if w <= 0 {
			w = mean
		}
		total += uint64(max(1, math.Round(w/most*maxClientWeight)))
		c.upTo[i] = total
	}
	c.step = strideOf(total)
	fresh.client = c
	return &fresh
}
