package lb

import "math/bits"

// Kind is a load balancing algorithm.
type Kind uint8

const (
	LeastRequest Kind = iota
	RoundRobin
	Random
)

// Policy is a cluster's load balancing policy.
type Policy struct {
	Kind Kind
	// Choices is how many endpoints least request compares. Default 2 (Envoy).
	Choices uint32
}

// Loads is what a picker reads of the live world. Floor 2 implements it.
type Loads interface {
	// Active returns the requests in flight at the endpoint with the index in Endpoints.All.
	Active(endpoint int) int64
}

// Picker chooses among the usable endpoints of one set. It is immutable and safe for concurrent use.
type Picker interface {
	// Pick returns an index in Endpoints.All, or -1 when nothing is usable.
	// seq is the caller's request counter for this picker and draw 64 random bits;
	// a caller that picks again for the same request passes new ones.
	Pick(seq, draw uint64, loads Loads) int
}

// NewPicker returns the policy's picker over the usable endpoints, which are
// indices in eps.All. Pick takes constant time where their weights are equal,
// and at most logarithmic time else, and allocates nothing.
func NewPicker(p Policy, eps *Endpoints, usable []int32) Picker {
	w := newWeights(eps, usable)
	switch {
	case len(usable) == 0:
		return none{}
	case len(usable) == 1:
		return only(usable[0])
	case p.Kind == RoundRobin && w == nil:
		return roundRobin(usable)
	case p.Kind == RoundRobin:
		return newWeightedRoundRobin(usable, w)
	case p.Kind == Random && w == nil:
		return random(usable)
	case p.Kind == Random:
		return &weightedRandom{usable: usable, weights: w}
	}
	choices := int(min(p.Choices, uint32(len(usable))))
	if p.Choices == 0 {
		choices = 2
	}
	if w == nil {
		return &leastRequest{usable: usable, choices: choices}
	}
	return &weightedLeastRequest{usable: usable, weights: w, choices: choices}
}

type none struct{}

func (none) Pick(_, _ uint64, _ Loads) int { return -1 }

type only int32

func (p only) Pick(_, _ uint64, _ Loads) int { return int(p) }

// scale maps 64 random bits to [0, n) by the high half of draw x n. No value is
// preferred by more than n/2^64.
func scale(draw, n uint64) uint64 {
	high, _ := bits.Mul64(draw, n)
	return high
}

// next derives the following draw from a draw (the SplitMix64 generator, Steele,
// Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
func next(draw uint64) uint64 {
	z := draw + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
