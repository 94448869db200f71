package lb

// leastRequest draws endpoints of equal weight and takes the one with the
// fewest requests in flight, the first drawn if there are several (Envoy's
// LEAST_REQUEST; Mitzenmacher, "The power of two choices", 2001). Each draw is
// among all endpoints but the best so far, so that none is compared with itself.
type leastRequest struct {
	usable  []int32
	choices int
}

func (p *leastRequest) Pick(_, draw uint64, loads Loads) int {
	n := uint64(len(p.usable))
	best := scale(draw, n)
	active := loads.Active(int(p.usable[best]))
	for range p.choices - 1 {
		draw = next(draw)
		other := best + 1 + scale(draw, n-1)
		if other >= n {
			other -= n
		}
		if a := loads.Active(int(p.usable[other])); a < active {
			best, active = other, a
		}
	}
	return int(p.usable[best])
}

// weightedLeastRequest draws endpoints by weight. A later one replaces the best
// so far only if with this request it would carry less per unit of weight than
// the best does without it. So an idle cluster gets its requests in proportion
// to the weights, and a busy one has its requests in flight in proportion to them.
type weightedLeastRequest struct {
	usable  []int32
	weights *weights
	choices int
}

func (p *weightedLeastRequest) Pick(_, draw uint64, loads Loads) int {
	w := p.weights
	best := w.at(scale(draw, w.sum()))
	active := loads.Active(int(p.usable[best]))
	for range p.choices - 1 {
		draw = next(draw)
		other := w.other(best, draw)
		a := loads.Active(int(p.usable[other]))
		if uint64(a+1)*w.each[best] < uint64(active)*w.each[other] {
			best, active = other, a
		}
	}
	return int(p.usable[best])
}
