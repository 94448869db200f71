package resilience

import "math"

// Rate is an endpoint's outcomes in one interval.
type Rate struct{ Requests, Successes uint64 }

func (r Rate) percent() float64 { return 100 * float64(r.Successes) / float64(r.Requests) }

// SuccessRateEjections returns the endpoints whose success rate stands out: it is
// below the average less SuccessRateStdevFactor standard deviations. Only
// endpoints with SuccessRateRequestVolume requests count, and where fewer than
// SuccessRateMinimumHosts have so many, there is neither average nor threshold
// (-1), and nothing stands out. Rates are in per cent.
func (o *Outlier) SuccessRateEjections(rates []Rate) (indices []int, average, threshold float64) {
	n, sum := 0, 0.0
	for _, r := range rates {
		if o.countsForSuccessRate(r) {
			n++
			sum += r.percent()
		}
	}
	if n == 0 || n < int(o.SuccessRateMinimumHosts) {
		return nil, -1, -1
	}
	average = sum / float64(n)
	variance := 0.0
	for _, r := range rates {
		if o.countsForSuccessRate(r) {
			variance += (r.percent() - average) * (r.percent() - average)
		}
	}
	threshold = average - float64(o.SuccessRateStdevFactor)/1000*math.Sqrt(variance/float64(n))
	for i, r := range rates {
		if o.countsForSuccessRate(r) && r.percent() < threshold {
			indices = append(indices, i)
		}
	}
	return indices, average, threshold
}

func (o *Outlier) countsForSuccessRate(r Rate) bool {
	return r.Requests > 0 && r.Requests >= uint64(o.SuccessRateRequestVolume)
}

// FailurePercentageEjections returns the endpoints of whose requests at least
// FailurePercentageThreshold per cent failed. Only endpoints with
// FailurePercentageRequestVolume requests count, if FailurePercentageMinimumHosts have so many.
func (o *Outlier) FailurePercentageEjections(rates []Rate) (indices []int) {
	n := 0
	for i, r := range rates {
		if r.Requests == 0 || r.Requests < uint64(o.FailurePercentageRequestVolume) {
			continue
		}
		n++
		if 100-r.percent() >= float64(o.FailurePercentageThreshold) {
			indices = append(indices, i)
		}
	}
	if n < int(o.FailurePercentageMinimumHosts) {
		return nil
	}
	return indices
}
