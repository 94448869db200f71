package resilience_test

import (
	"testing"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// FuzzRequestHeaders: whatever a caller writes into the headers that are read
// here, what comes of it is in range, and the policy itself stays as it is.
func FuzzRequestHeaders(f *testing.F) {
	f.Add("5xx,reset", "3", "418, 420", "x-a,,b", "401", "60", "u=1")
	f.Add("junk", "-1", "99999999999999999999", ":status", "600", "101", "u=9")
	f.Fuzz(func(t *testing.T, on, most, codes, names, status, percent, priority string) {
		policy := resilience.DefaultRetryPolicy(resilience.On5xx)
		before := policy
		r := lowerRequest(map[string]string{
			"x-envoy-retry-on": on, "x-envoy-retry-grpc-on": on, "x-envoy-max-retries": most, "x-envoy-retriable-status-codes": codes,
			"x-envoy-retriable-header-names": names, "x-envoy-fault-abort-request": status, "x-envoy-fault-abort-grpc-request": status,
			"x-envoy-fault-delay-request": status, "x-envoy-fault-abort-request-percentage": percent, "x-envoy-fault-delay-request-percentage": percent,
		})
		with := policy.WithRequest(r)
		if with.On&before.On != before.On || policy.On != before.On || len(policy.StatusCodes)+len(policy.Headers) != 0 {
			t.Errorf("%v of %v", with.On, before.On)
		}
		with.Retriable(&resilience.Outcome{Status: 418, GRPC: -1})
		fault := resilience.Fault{
			Delay: &resilience.FaultDelay{FromHeader: true, Fraction: routing.Fraction{PerMillion: 500_000}},
			Abort: &resilience.FaultAbort{FromHeader: true, GRPC: -1, Fraction: routing.Fraction{PerMillion: 500_000}},
		}
		for _, draw := range []uint64{0, 499_999, 500_000, 999_999} {
			v := fault.Decide(r, draw, draw)
			if v.Delay < 0 || v.HTTP != 0 && (v.HTTP < 200 || v.HTTP > 599) || v.GRPC < -1 || draw >= 500_000 && (v.Aborts() || v.Delay > 0) {
				t.Errorf("draw %d: %+v", draw, v)
			}
		}
		if u := resilience.Urgency([]string{priority}); u > resilience.MaxUrgency {
			t.Errorf("urgency %d", u)
		}
		resilience.Pushback(&resilience.Outcome{Status: 200, GRPC: 14, Form: routing.LowerHeaders, Header: map[string][]string{"grpc-retry-pushback-ms": {most}}})
	})
}
