package lb

import (
	"math"
	"time"
)

// Factor returns by how much slow start reduces the weight of an endpoint of
// the given age, from MinWeight per cent to 1
// (envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig).
func (s *SlowStart) Factor(age time.Duration) float64 {
	if age >= s.Window || s.Window <= 0 {
		return 1
	}
	least := s.MinWeight / 100
	if s.MinWeight <= 0 {
		least = 0.1
	}
	part := float64(max(age, time.Millisecond)) / float64(s.Window)
	if a := s.Aggression; a > 0 && a != 1 {
		part = math.Pow(part, 1/a)
	}
	return min(1, max(least, part))
}

// maxWarming is how often a pick falls on a warming endpoint and is drawn again.
const maxWarming = 16

// warmed is pick with slow start. An endpoint that is drawn is taken with the
// probability of its factor, relative to the largest factor that any endpoint
// has; if it is not, another is drawn by weight. So each gets its weight times
// its factor of all requests, at a cost that does not depend on the number of endpoints.
func (p *Picker) warmed(pool *pool, q *Query, loads Loads) int32 {
	if p.policy.Kind == LeastRequest {
		return p.warmedLeast(pool, q, loads)
	}
	most := p.policy.SlowStart.Factor(q.Now.Sub(p.oldest))
	slot, draw := pool.inTurn(q.Seq), next(q.Draw^0xd1342543de82ef95)
	for range maxWarming {
		if unit(draw)*most < p.factor(slot, q, loads) {
			break
		}
		draw = next(draw)
		slot = pool.bag.at(pool.draw(draw))
		draw = next(draw)
	}
	return slot
}

func (p *Picker) factor(slot int32, q *Query, loads Loads) float64 {
	return p.policy.SlowStart.Factor(q.Now.Sub(loads.Joined(slot)))
}

// warmedLeast is least request with the weights that slow start leaves:
// endpoints are drawn by those, and their requests are compared in proportion to them.
func (p *Picker) warmedLeast(pool *pool, q *Query, loads Loads) int32 {
	most, draw := p.policy.SlowStart.Factor(q.Now.Sub(p.oldest)), q.Draw
	best, active, weight := int32(-1), 0.0, 0.0
	for range pool.choices(p.policy) {
		at, factor := 0, 0.0
		for range maxWarming {
			at = pool.draw(draw)
			draw = next(draw)
			if factor = p.factor(pool.bag.at(at), q, loads); unit(draw)*most < factor {
				break
			}
			draw = next(draw)
		}
		draw = next(draw)
		slot := pool.bag.at(at)
		a, w := float64(loads.Active(slot)), float64(pool.bag.weight(at))*factor
		// With this request it must still carry less than the best does without it.
		if best < 0 || (a+1)*weight < active*w {
			best, active, weight = slot, a, w
		}
	}
	return best
}

// Warm returns a picker that knows when its endpoints have come: oldest is when
// the first of them joined, and newest the last. Without it there is no slow start.
func (p *Picker) Warm(oldest, newest time.Time) *Picker {
	if p.policy.SlowStart == nil {
		return p
	}
	warm := *p
	warm.oldest, warm.settled = oldest, newest.Add(p.policy.SlowStart.Window)
	return &warm
}
