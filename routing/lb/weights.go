package lb

// weights are the weights of the usable endpoints, for choosing by weight.
type weights struct {
	each       []uint64
	cumulative []uint64 // cumulative[i] is the sum up to and with i
}

// newWeights returns nil where all weights are equal.
func newWeights(eps *Endpoints, usable []int32) *weights {
	w := &weights{each: make([]uint64, len(usable)), cumulative: make([]uint64, len(usable))}
	equal, divisor, sum := true, uint64(0), uint64(0)
	for i, e := range usable {
		w.each[i] = uint64(max(eps.All[e].Weight, 1))
		equal = equal && w.each[i] == w.each[0]
		divisor = gcd(w.each[i], divisor)
	}
	if equal {
		return nil
	}
	for i := range w.each {
		w.each[i] /= divisor
		sum += w.each[i]
		w.cumulative[i] = sum
	}
	return w
}

func (w *weights) sum() uint64 { return w.cumulative[len(w.cumulative)-1] }

// at returns the position that the value, less than the sum, falls to.
func (w *weights) at(value uint64) int {
	low, high := 0, len(w.cumulative)-1
	for low < high {
		mid := int(uint(low+high) >> 1)
		if w.cumulative[mid] > value {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// other returns a position by weight among all but the given one.
func (w *weights) other(not int, draw uint64) int {
	value := scale(draw, w.sum()-w.each[not])
	if value >= w.cumulative[not]-w.each[not] {
		value += w.each[not]
	}
	return w.at(value)
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
