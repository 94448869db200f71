package compile

import (
	"reflect"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// own is the metadata that is ours.
func own(fields string) string {
	return eds + `, "metadata": {"filter_metadata": {"sinew": {` + fields + `}}}`
}

func TestAccrual(t *testing.T) {
	base := resilience.Accrual{Window: 30 * time.Second, MinRequests: 10, MinPenalty: time.Second, MaxPenalty: time.Minute, Jitter: 0.5, ProbeTimeout: 10 * time.Second}
	consecutive, rate, all := base, base, base
	consecutive.Consecutive = 7
	rate.SuccessRate = 0.8
	all.SuccessRate, all.Window, all.MinRequests, all.MinPenalty, all.MaxPenalty, all.Jitter = 1, 5*time.Second, 3, 2*time.Second, 90*time.Second, 0
	for _, tt := range []struct {
		fields string
		want   resilience.Accrual
	}{
		{`"mode": "consecutive"`, consecutive},
		{`"mode": "success-rate", "success_rate": 0.8, "max_failures": 0`, rate},
		{`"mode": "success-rate", "success_rate": 1, "window": "5s", "min_requests": 3, "min_penalty": "2s", "max_penalty": "1m30s", "jitter": 0`, all},
	} {
		c, err := oneCluster(t, own(`"failure_accrual": {`+tt.fields+`}`))
		if err != nil || !reflect.DeepEqual(c.Accrual, &tt.want) {
			t.Errorf("%s: %+v, %v", tt.fields, c, err)
		}
	}
	if c, err := oneCluster(t, own("")); err != nil || c.Accrual != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestPeakEWMA(t *testing.T) {
	for _, tt := range []struct {
		fields string
		want   lb.Policy
	}{
		{own(`"peak_ewma": {}`), lb.Policy{Kind: lb.PeakEWMA, Choices: 2, Decay: 10 * time.Second, PanicThreshold: 50}},
		{own(`"peak_ewma": {"decay": "3s"}`) + `, "lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 3, "active_request_bias": {"default_value": 2}}, "common_lb_config": {"locality_weighted_lb_config": {}}`,
			lb.Policy{Kind: lb.PeakEWMA, Choices: 3, Decay: 3 * time.Second, PanicThreshold: 50, LocalityWeighted: true}},
	} {
		c, err := oneCluster(t, tt.fields)
		if err != nil || !reflect.DeepEqual(c.LB, tt.want) {
			t.Errorf("%s: %+v, %v", tt.fields, c, err)
		}
	}
}

func TestOwnMetadataErrorsNameTheField(t *testing.T) {
	const at = `metadata.filter_metadata["sinew"]`
	for _, tt := range []struct{ fields, path string }{
		{own(`"x": {}`), at + ".x"},
		{own(`"failure_accrual": 1`), at + ".failure_accrual"},
		{own(`"failure_accrual": {}`), at + ".failure_accrual.mode"},
		{own(`"failure_accrual": {"mode": "other"}`), at + ".failure_accrual.mode"},
		{own(`"failure_accrual": {"mode": 1}`), at + ".failure_accrual.mode"},
		{own(`"failure_accrual": {"mode": "consecutive", "max_failures": 0}`), at + ".failure_accrual.max_failures"},
		{own(`"failure_accrual": {"mode": "consecutive", "max_failures": 1.5}`), at + ".failure_accrual.max_failures"},
		{own(`"failure_accrual": {"mode": "consecutive", "max_failures": -1}`), at + ".failure_accrual.max_failures"},
		{own(`"failure_accrual": {"mode": "consecutive", "max_failures": "7"}`), at + ".failure_accrual.max_failures"},
		{own(`"failure_accrual": {"mode": "success-rate"}`), at + ".failure_accrual.success_rate"},
		{own(`"failure_accrual": {"mode": "success-rate", "success_rate": 1.1}`), at + ".failure_accrual.success_rate"},
		{own(`"failure_accrual": {"mode": "consecutive", "window": "x"}`), at + ".failure_accrual.window"},
		{own(`"failure_accrual": {"mode": "consecutive", "window": 5}`), at + ".failure_accrual.window"},
		{own(`"failure_accrual": {"mode": "consecutive", "window": "-1s"}`), at + ".failure_accrual.window"},
		{own(`"failure_accrual": {"mode": "consecutive", "min_penalty": "2m"}`), at + ".failure_accrual.min_penalty"},
		{own(`"failure_accrual": {"mode": "consecutive", "jitter": 101}`), at + ".failure_accrual.jitter"},
		{own(`"failure_accrual": {"mode": "consecutive", "other": 1}`), at + ".failure_accrual.other"},
		{own(`"peak_ewma": {"decay": "0s"}`), at + ".peak_ewma.decay"},
		{own(`"peak_ewma": {"x": 1}`), at + ".peak_ewma.x"},
		{own(`"peak_ewma": {}`) + `, "lb_policy": "MAGLEV"`, at + ".peak_ewma"},
	} {
		_, err := oneCluster(t, tt.fields)
		t.Run(tt.fields, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}
