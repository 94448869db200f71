package lb

// Usable returns the indices of the endpoints that requests may go to, in order.
//
// They are the healthy ones that are not ejected; if there is none, the degraded
// ones that are not ejected. If healthy and degraded endpoints together are less
// than panicThreshold per cent of all, every endpoint is used, whatever its
// state, and panicked is true: with most of a cluster gone, spreading the load
// over all of it is safer than to overload the rest (Envoy, "panic threshold").
// A threshold of 0 disables that, and above 5/7 (71.4 %) of all there is no
// panic at any threshold: by Envoy's overprovisioning factor of 1.4 so many can
// carry the whole load. ejected may be nil.
func Usable(eps *Endpoints, ejected func(i int) bool, panicThreshold float64) (usable []int32, panicked bool) {
	var healthy, degraded []int32
	for i := range eps.All {
		if ejected != nil && ejected(i) {
			continue
		}
		switch eps.All[i].Health {
		case Healthy:
			healthy = append(healthy, int32(i))
		case Degraded:
			degraded = append(degraded, int32(i))
		}
	}
	total := len(eps.All)
	available := len(healthy) + len(degraded)
	if 100*float64(available) < panicThreshold*float64(total) && availability(healthy, total)+availability(degraded, total) < 100 {
		all := make([]int32, total)
		for i := range all {
			all[i] = int32(i)
		}
		return all, true
	}
	if len(healthy) > 0 {
		return healthy, false
	}
	return degraded, false
}

// availability is the share of the load that so many of the endpoints can carry, in whole per cent.
func availability(some []int32, total int) int { return 140 * len(some) / total }
