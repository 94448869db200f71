package outbound

import (
	"math"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// LoadReport reads what an endpoint says of its load (gRFC A51). It is nil where
// there is no message, or one of its numbers is none: a report is an endpoint's
// word, and weights are made of it.
func LoadReport(m *orcav3.OrcaLoadReport) *lb.LoadReport {
	if m == nil {
		return nil
	}
	r := &lb.LoadReport{
		CPU: m.GetCpuUtilization(), Application: m.GetApplicationUtilization(), Memory: m.GetMemUtilization(),
		QPS: m.GetRpsFractional(), EPS: m.GetEps(),
	}
	for _, v := range [...]float64{r.CPU, r.Application, r.Memory, r.QPS, r.EPS} {
		if !isNumber(v) {
			return nil
		}
	}
	if n := len(m.GetNamedMetrics()) + len(m.GetUtilization()) + len(m.GetRequestCost()); n > 0 {
		r.Named = make(map[string]float64, n)
	}
	for prefix, values := range map[string]map[string]float64{
		"named_metrics.": m.GetNamedMetrics(), "utilization.": m.GetUtilization(), "request_cost.": m.GetRequestCost(),
	} {
		for name, v := range values {
			if !isNumber(v) {
				return nil
			}
			r.Named[prefix+name] = v
		}
	}
	return r
}

func isNumber(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
