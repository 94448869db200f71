package outbound

import (
	"math"
	"reflect"
	"testing"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"

	"github.com/sinew-mesh/sinew/routing/lb"
)

func TestLoadReport(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(-1)
	named := func(v float64) map[string]float64 { return map[string]float64{"x": v} }
	for name, c := range map[string]struct {
		message *orcav3.OrcaLoadReport
		want    *lb.LoadReport
	}{
		"none": {nil, nil},
		"all": {&orcav3.OrcaLoadReport{CpuUtilization: 0.5, MemUtilization: 0.25, RpsFractional: 10, Eps: 1, ApplicationUtilization: 0.75,
			NamedMetrics: named(1), Utilization: named(2), RequestCost: named(3)},
			&lb.LoadReport{CPU: 0.5, Memory: 0.25, QPS: 10, EPS: 1, Application: 0.75,
				Named: map[string]float64{"named_metrics.x": 1, "utilization.x": 2, "request_cost.x": 3}}},
		"no names":            {&orcav3.OrcaLoadReport{Eps: 1}, &lb.LoadReport{EPS: 1}},
		"CPU is none":         {&orcav3.OrcaLoadReport{CpuUtilization: nan}, nil},
		"memory is none":      {&orcav3.OrcaLoadReport{MemUtilization: inf}, nil},
		"application is none": {&orcav3.OrcaLoadReport{ApplicationUtilization: nan}, nil},
		"QPS is none":         {&orcav3.OrcaLoadReport{RpsFractional: inf}, nil},
		"EPS is none":         {&orcav3.OrcaLoadReport{Eps: nan}, nil},
		"a metric is none":    {&orcav3.OrcaLoadReport{NamedMetrics: named(nan)}, nil},
		"a use is none":       {&orcav3.OrcaLoadReport{Utilization: named(inf)}, nil},
		"a cost is none":      {&orcav3.OrcaLoadReport{RequestCost: named(nan)}, nil},
	} {
		if got := LoadReport(c.message); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
