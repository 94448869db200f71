package lb

// PriorityHealth is what decides how much load a priority gets.
type PriorityHealth struct {
	Healthy, Degraded, Total uint64 // endpoints
	Draining                 uint64 // of Total: they count neither as usable nor as lost
	// The same by weight where policy wants it (weighted_priority_health), else
	// as above; TotalWeight is without those that drain.
	HealthyWeight, DegradedWeight, TotalWeight uint64
	Overprovisioning                           uint32 // per cent; 0 means 140
}

func (h *PriorityHealth) percent(part uint64) uint32 {
	if h.TotalWeight == 0 {
		return 0
	}
	factor := uint64(h.Overprovisioning)
	if factor == 0 {
		factor = 140
	}
	// Weights are below 2^32 each and at most 2^31 in number.
	return uint32(min(100, scale128(factor, part, h.TotalWeight)))
}

// availability returns the shares of the load, in per cent, that the healthy and the degraded endpoints can take.
func (h *PriorityHealth) availability() (healthy, degraded uint32) {
	return h.percent(h.HealthyWeight), h.percent(h.DegradedWeight)
}

// panics reports whether too few endpoints are usable.
func (h *PriorityHealth) panics(threshold float64) bool {
	percent := 0.0
	if total := float64(h.Total - h.Draining); total > 0 {
		percent = 100*float64(h.Healthy)/total + 100*float64(h.Degraded)/total
	}
	return percent < threshold
}

// Load is the share of a priority's healthy and degraded endpoints in the load, in per cent.
type Load struct{ Healthy, Degraded uint32 }

// Distribute computes each priority's share of the load, and which priorities
// panic, that is, use all their endpoints because too few are usable (Envoy,
// "priority levels", "degraded endpoints" and "panic threshold"): a priority
// takes as much as its usable endpoints can carry, by the overprovisioning
// factor, and what is left goes to the next one; degraded endpoints come after
// the healthy ones of all priorities. Where all together can not carry the
// load, each takes in proportion to what it can. No priority panics while all
// together can carry the load; if all panic, load goes by their size. threshold
// is in per cent, 0 has none panic. loads and panics have the length of health.
func Distribute(health []PriorityHealth, threshold float64, loads []Load, panics []bool) {
	clear(loads)
	clear(panics)
	if len(health) == 0 {
		return
	}
	available := uint32(0)
	for i := range health {
		h, d := health[i].availability()
		available += h + d
	}
	available = min(available, 100)
	if available > 0 {
		spread(health, available, 0, loads)
	}
	threshold = min(threshold, 100)
	if threshold <= 0 && available == 0 {
		// Somewhere the load must go, though nothing is there to take it.
		loads[0].Healthy = 100
		return
	}
	all := true
	for i := range health {
		panics[i] = available < 100 && health[i].panics(threshold)
		all = all && panics[i]
	}
	if all {
		spreadPanic(health, loads)
	}
}

// spread gives the load to the priorities whose bits in excluded are 0.
func spread(health []PriorityHealth, available uint32, excluded uint64, loads []Load) {
	left := uint32(100)
	firstHealthy, firstDegraded := -1, -1
	for i := range health {
		if isExcluded(excluded, i) {
			continue
		}
		can, _ := health[i].availability()
		if firstHealthy < 0 && can > 0 {
			firstHealthy = i
		}
		loads[i].Healthy = min(left, can*100/available)
		left -= loads[i].Healthy
	}
	for i := range health {
		if isExcluded(excluded, i) {
			continue
		}
		_, can := health[i].availability()
		if firstDegraded < 0 && can > 0 {
			firstDegraded = i
		}
		loads[i].Degraded = min(left, can*100/available)
		left -= loads[i].Degraded
	}
	// What is left comes of rounding.
	if firstHealthy >= 0 {
		loads[firstHealthy].Healthy += left
	} else if firstDegraded >= 0 {
		loads[firstDegraded].Degraded += left
	}
}

func spreadPanic(health []PriorityHealth, loads []Load) {
	clear(loads)
	total, first := uint64(0), -1
	for i := range health {
		total += health[i].Total
		if first < 0 && health[i].Total > 0 {
			first = i
		}
	}
	if first < 0 {
		loads[0].Healthy = 100
		return
	}
	left := uint32(100)
	for i := range health {
		loads[i].Healthy = uint32(100 * health[i].Total / total)
		left -= loads[i].Healthy
	}
	loads[first].Healthy += left
}

// Redistribute is Distribute for a request that was tried already at the
// priorities whose bits are set in excluded (Envoy's previous_priorities): they
// count as unavailable. It reports false, and leaves loads alone, where no other
// priority is available: then none is excluded.
func Redistribute(health []PriorityHealth, excluded uint64, loads []Load) bool {
	available := uint32(0)
	for i := range health {
		if !isExcluded(excluded, i) {
			h, d := health[i].availability()
			available += h + d
		}
	}
	if available == 0 {
		return false
	}
	clear(loads)
	spread(health, min(available, 100), excluded, loads)
	return true
}

func isExcluded(excluded uint64, priority int) bool {
	return priority < 64 && excluded>>priority&1 != 0
}

// Choose returns the priority that the draw falls on, and whether its degraded endpoints are meant.
func Choose(loads []Load, draw uint64) (priority int, useDegraded bool) {
	value := uint32(draw % 100)
	sum := uint32(0)
	for i := range loads {
		if sum += loads[i].Healthy; value < sum {
			return i, false
		}
	}
	for i := range loads {
		if sum += loads[i].Degraded; value < sum {
			return i, true
		}
	}
	return 0, false
}
