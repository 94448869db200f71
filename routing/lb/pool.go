package lb

import (
	"container/heap"
	"math"
	"math/bits"
)

func (k Kind) hashes() bool { return k == RingHash || k == Maglev }

// warms reports whether slow start is for the kind, as in Envoy.
func (k Kind) warms() bool { return k == RoundRobin || k == LeastRequest }

// pool is endpoints to pick from, with what the policy's kind needs for it.
type pool struct {
	bag   *bag
	equal bool // all weights are
	// run is the order of round robin by weight, where it is short enough to be written out.
	run   []int32
	step  uint64 // of a run that is not written out
	table *table
	// client has the weights that endpoints have reported.
	client *clientWeights
}

// maxSchedule is the longest schedule that is written out, in entries of four bytes.
const maxSchedule = 4096

func newPool(policy *Policy, b *bag, t *table) *pool {
	p := &pool{bag: b, equal: b.equal(), table: t}
	if policy.Kind == RoundRobin && !p.equal {
		if run := written(b); run != nil {
			p.run = run
		} else {
			p.step = strideOf(b.total)
		}
	}
	return p
}

func (p *pool) pick(policy *Policy, q *Query, loads Loads) int32 {
	b := p.bag
	if b.n == 1 && p.table == nil {
		return b.at(0)
	}
	switch policy.Kind {
	case RoundRobin:
		return p.inTurn(q.Seq)
	case ClientWeighted:
		if p.client != nil {
			return b.at(p.client.pick(q.Seq))
		}
		return b.at(int(q.Seq % uint64(b.n)))
	case Random:
		return b.at(p.draw(q.Draw))
	case RingHash, Maglev:
		return p.hashed(policy, q, loads)
	case PeakEWMA:
		return p.fastest(policy, q, loads)
	default:
		return p.leastRequest(policy, q, loads)
	}
}

// draw returns a position by weight.
func (p *pool) draw(draw uint64) int {
	if p.equal {
		return int(scale(draw, uint64(p.bag.n)))
	}
	return p.bag.find(scale(draw, p.bag.total))
}

// other returns a position by weight among all but the given one.
func (p *pool) other(not int, draw uint64) int {
	if p.equal {
		at := not + 1 + int(scale(draw, uint64(p.bag.n-1)))
		if at >= p.bag.n {
			at -= p.bag.n
		}
		return at
	}
	weight := p.bag.weight(not)
	value := scale(draw, p.bag.total-weight)
	if value >= p.bag.before(not) {
		value += weight
	}
	return p.bag.find(value)
}

// inTurn gives each endpoint exactly its weight in each run of as many picks as
// the weights sum up to, spread over the run.
func (p *pool) inTurn(seq uint64) int32 {
	switch {
	case p.equal:
		return p.bag.at(int(seq % uint64(p.bag.n)))
	case p.run != nil:
		return p.run[seq%uint64(len(p.run))]
	default:
		return p.bag.at(p.bag.find(stride(seq, p.step, p.bag.total)))
	}
}

// written returns one run of round robin by weight, divided by the greatest
// common divisor, or nil if it is too long: the k-th request of an endpoint of
// weight w is due at (k+1/2)/w, and requests are in the order of their due times.
// It is the earliest-deadline-first order that Envoy's scheduler approximates,
// shifted by half a step so that light endpoints are not all at the end of the run.
func written(b *bag) []int32 {
	if b.n > maxSchedule {
		return nil
	}
	divisor := uint64(0)
	for i := range b.n {
		divisor = gcd(b.weight(i), divisor)
		if divisor == 1 && b.total > maxSchedule {
			return nil
		}
	}
	if b.total/divisor > maxSchedule {
		return nil
	}
	q := make(dueQueue, b.n)
	for i := range q {
		q[i] = due{odd: 1, weight: b.weight(i) / divisor, position: i}
	}
	heap.Init(&q)
	run := make([]int32, b.total/divisor)
	for i := range run {
		run[i] = b.at(q[0].position)
		q[0].odd += 2
		heap.Fix(&q, 0)
	}
	return run
}

// due is the time odd/(2 x weight).
type due struct {
	odd, weight uint64
	position    int
}

type dueQueue []due

func (q dueQueue) Len() int { return len(q) }
func (q dueQueue) Less(i, j int) bool {
	a, b := q[i].odd*q[j].weight, q[j].odd*q[i].weight
	return a < b || a == b && q[i].position < q[j].position
}
func (q dueQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *dueQueue) Push(x any)   { *q = append(*q, x.(due)) }
func (q *dueQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// strideOf returns the step of a run that is too long to write out: place number
// seq of the run is seq x step modulo the sum of the weights. The step has no
// common divisor with the sum, so a run visits every place once, and is near the
// sum divided by the golden ratio, which spreads the visits to any range of
// places evenly.
func strideOf(sum uint64) uint64 {
	step := scale(0x9e3779b97f4a7c15, sum) | 1
	for gcd(step, sum) != 1 {
		step += 2
	}
	return step % sum
}

func stride(seq, step, sum uint64) uint64 {
	if sum <= 1<<32 {
		return seq % sum * step % sum
	}
	high, low := bits.Mul64(seq%sum, step)
	return bits.Rem64(high, low, sum)
}

// choices is how many endpoints are compared.
func (p *pool) choices(policy *Policy) int {
	if policy.Choices == 0 {
		return min(2, p.bag.n)
	}
	return int(min(policy.Choices, uint32(p.bag.n)))
}

// leastRequest draws endpoints and takes the one with the fewest requests in
// flight, the first drawn if there are several (Envoy's LEAST_REQUEST;
// Mitzenmacher, "The power of two choices", 2001). Each draw is among all
// endpoints but the best so far, so that none is compared with itself.
//
// Where weights differ, endpoints are drawn by weight, and a later one replaces
// the best so far only if with this request it would carry less per unit of
// weight than the best does without it. So an idle cluster gets its requests in
// proportion to the weights, and a busy one has its requests in flight in
// proportion to them. With an active_request_bias other than 1 the choice between
// the two is by chance, in proportion to 1/(active+1)^bias, which is by how much
// Envoy reduces a weight.
func (p *pool) leastRequest(policy *Policy, q *Query, loads Loads) int32 {
	if policy.FullScan {
		return p.leastOfAll(policy, q, loads)
	}
	b, draw := p.bag, q.Draw
	best := p.draw(draw)
	active := loads.Active(b.at(best))
	chance := !p.equal && policy.ActiveBias != nil && *policy.ActiveBias != 1
	for range p.choices(policy) - 1 {
		draw = next(draw)
		other := 0
		if chance {
			other = p.draw(draw) // independent of the first, so that without bias the weights alone count
		} else {
			other = p.other(best, draw)
		}
		a := loads.Active(b.at(other))
		if p.better(policy, a, other, active, best, draw) {
			best, active = other, a
		}
	}
	return b.at(best)
}

func (p *pool) better(policy *Policy, a int64, other int, active int64, best int, draw uint64) bool {
	switch {
	case p.equal:
		return a < active
	case policy.ActiveBias == nil || *policy.ActiveBias == 1:
		return product(a+1, p.bag.weight(best)).less(product(active, p.bag.weight(other)))
	default:
		// (active+1)^bias / ((active+1)^bias + (a+1)^bias)
		odds := math.Pow(float64(a+1)/float64(active+1), *policy.ActiveBias)
		return unit(next(draw^0x9e3779b97f4a7c15)) < 1/(1+odds)
	}
}

// unit maps 64 random bits to [0, 1).
func unit(draw uint64) float64 { return float64(draw>>11) / (1 << 53) }

// leastOfAll looks at every endpoint: the one with the least load per weight,
// by chance among several (selection_method FULL_SCAN).
func (p *pool) leastOfAll(policy *Policy, q *Query, loads Loads) int32 {
	bias := 1.0
	if policy.ActiveBias != nil {
		bias = *policy.ActiveBias
	}
	best, least, same, draw := int32(-1), math.Inf(1), uint64(0), q.Draw
	for _, l := range p.bag.leaves {
		for i, slot := range l.slots {
			load := float64(loads.Active(slot))
			if !p.equal {
				load = math.Pow(load+1, bias) / float64(l.weight(i))
			}
			switch {
			case load < least:
				best, least, same = slot, load, 1
			case load == least:
				same++
				draw = next(draw)
				if scale(draw, same) == 0 {
					best = slot
				}
			}
		}
	}
	return best
}

// fastest draws endpoints by weight and takes the one whose latency, times one
// more than its requests in flight, is least (Linkerd's peak EWMA).
func (p *pool) fastest(policy *Policy, q *Query, loads Loads) int32 {
	b, draw := p.bag, q.Draw
	best := p.draw(draw)
	cost := loads.Cost(b.at(best), q.Now)
	for range p.choices(policy) - 1 {
		draw = next(draw)
		other := p.other(best, draw)
		if c := loads.Cost(b.at(other), q.Now); c < cost {
			best, cost = other, c
		}
	}
	return b.at(best)
}

// wide is a product of 128 bits.
type wide struct{ high, low uint64 }

func product(a int64, b uint64) wide {
	high, low := bits.Mul64(uint64(max(a, 0)), b)
	return wide{high, low}
}

func (a wide) less(b wide) bool { return a.high < b.high || a.high == b.high && a.low < b.low }
