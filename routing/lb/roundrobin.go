package lb

import (
	"container/heap"
	"math/bits"
)

// roundRobin takes equally weighted endpoints in turn.
type roundRobin []int32

func (p roundRobin) Pick(seq, _ uint64, _ Loads) int { return int(p[seq%uint64(len(p))]) }

// random takes each of equally weighted endpoints with the same probability.
type random []int32

func (p random) Pick(_, draw uint64, _ Loads) int { return int(p[scale(draw, uint64(len(p)))]) }

// weightedRandom takes each endpoint with the probability of its weight.
type weightedRandom struct {
	usable  []int32
	weights *weights
}

func (p *weightedRandom) Pick(_, draw uint64, _ Loads) int {
	return int(p.usable[p.weights.at(scale(draw, p.weights.sum()))])
}

// maxSchedule is the longest schedule that is written out, in entries of four bytes.
const maxSchedule = 4096

// newWeightedRoundRobin returns a picker that gives each endpoint exactly its
// weight in each run of as many picks as the weights sum up to (divided by their
// greatest common divisor), spread over the run.
func newWeightedRoundRobin(usable []int32, w *weights) Picker {
	if w.sum() > maxSchedule {
		return newStride(usable, w)
	}
	return schedule(earliestDeadlines(usable, w))
}

// schedule is a written-out run.
type schedule []int32

func (p schedule) Pick(seq, _ uint64, _ Loads) int { return int(p[seq%uint64(len(p))]) }

// earliestDeadlines writes out one run: the k-th request of an endpoint of weight
// w is due at (k+1/2)/w, and requests are in the order of their due times. It is
// the earliest-deadline-first order that Envoy's scheduler approximates, shifted
// by half a step so that light endpoints are not all at the end of the run.
func earliestDeadlines(usable []int32, w *weights) []int32 {
	q := make(dueQueue, len(usable))
	for i := range q {
		q[i] = due{odd: 1, weight: w.each[i], position: i}
	}
	heap.Init(&q)
	run := make([]int32, w.sum())
	for i := range run {
		run[i] = usable[q[0].position]
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

// stride is a run that is too long to write out: slot number seq of the run is
// seq x step modulo the sum of the weights. step has no common divisor with the
// sum, so a run visits every slot once, and is near the sum divided by the golden
// ratio, which spreads the visits to any range of slots evenly.
type stride struct {
	usable  []int32
	weights *weights
	step    uint64
}

func newStride(usable []int32, w *weights) *stride {
	sum := w.sum()
	step := scale(0x9e3779b97f4a7c15, sum) | 1
	for gcd(step, sum) != 1 {
		step += 2
	}
	return &stride{usable: usable, weights: w, step: step % sum}
}

func (p *stride) Pick(seq, _ uint64, _ Loads) int {
	sum := p.weights.sum()
	high, low := bits.Mul64(seq%sum, p.step)
	return int(p.usable[p.weights.at(bits.Rem64(high, low, sum))])
}
