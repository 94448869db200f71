package resilience

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestLimits(t *testing.T) {
	l := Limits{MaxConnections: 1, MaxPendingRequests: 0, MaxRequests: 2, MaxRetries: NoLimit}
	for _, c := range []struct {
		name  string
		allow func(int64) bool
		limit int64
	}{
		{"pending", l.AllowsPending, 0}, {"requests", l.AllowsRequest, 2},
		{"default retries", DefaultLimits.AllowsRetry, 3}, {"default requests", DefaultLimits.AllowsRequest, 1024},
	} {
		if c.limit > 0 && !c.allow(c.limit-1) {
			t.Errorf("%s: refused below the limit", c.name)
		}
		if c.allow(c.limit) {
			t.Errorf("%s: allowed at the limit", c.name)
		}
	}
	if !l.AllowsRetry(math.MaxInt64) {
		t.Error("no limit refuses")
	}
}

func TestRetryBudget(t *testing.T) {
	for _, c := range []struct {
		b                 RetryBudget
		requests, retries int64
		want              bool
	}{
		{DefaultRetryBudget, 0, 2, true},
		{DefaultRetryBudget, 0, 3, false},
		{DefaultRetryBudget, 20, 3, true},
		{DefaultRetryBudget, 24, 4, false}, // 4.8 is not 5
		{DefaultRetryBudget, 25, 4, true},
		{RetryBudget{}, 1000, 0, false},
		{RetryBudget{Percent: 100}, 1, 0, true},
		{RetryBudget{Percent: 0.5}, 199, 0, false},
		{RetryBudget{Percent: 0.5}, 200, 0, true},
	} {
		if got := c.b.Allows(c.requests, c.retries); got != c.want {
			t.Errorf("%+v with %d requests and %d retries: %v, want %v", c.b, c.requests, c.retries, got, c.want)
		}
	}
	for percent, want := range map[float64]bool{0: true, 100: true, -1: false, 100.5: false, math.NaN(): false, math.Inf(1): false} {
		if err := (&RetryBudget{Percent: percent}).Validate(); (err == nil) != want {
			t.Errorf("%v per cent: %v", percent, err)
		}
	}
}

func TestBreakerValidate(t *testing.T) {
	if err := DefaultBreaker.Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	for want, spoil := range map[string]func(*Breaker){
		"consecutive_failures": func(b *Breaker) { b.ConsecutiveFailures = 0 },
		"open_for":             func(b *Breaker) { b.OpenFor = 0 },
		"half_open_requests":   func(b *Breaker) { b.HalfOpenRequests = 0 },
		"probe_timeout":        func(b *Breaker) { b.ProbeTimeout = -time.Second },
	} {
		b := DefaultBreaker
		spoil(&b)
		if err := b.Validate(); err == nil || !strings.HasPrefix(err.Error(), want+":") {
			t.Errorf("the error is %v, want one at %s", err, want)
		}
	}
}

func TestResultFailed(t *testing.T) {
	for _, c := range []struct {
		o    Outcome
		want bool
	}{
		{Outcome{Status: 200, GRPC: -1}, false},
		{Outcome{Status: 404, GRPC: -1}, false},
		{Outcome{Status: 500, GRPC: -1}, true},
		{Outcome{Status: 200, GRPC: 14}, true},
		{Outcome{GRPC: -1, Failure: ConnectFailure}, true},
		{Outcome{GRPC: -1, Failure: Cancelled}, false},
		{Outcome{GRPC: -1, Failure: Overflow}, false},
		{Outcome{GRPC: -1, Failure: LocalError}, false},
	} {
		if got := ResultOf(&c.o).failed(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.o, got, c.want)
		}
	}
}
