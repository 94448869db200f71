package resilience

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

func TestParseRetryOn(t *testing.T) {
	for _, c := range []struct {
		in      string
		on      RetryOn
		unknown []string
	}{
		{"", 0, nil},
		{" , ,", 0, nil},
		{"5xx", On5xx, nil},
		{" gateway-error,reset\t", OnGatewayError | OnReset, nil},
		{"connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", OnConnectFailure | OnRefusedStream | OnUnavailable | OnCancelled | OnRetriableStatusCodes, nil},
		{"5 xx,reset,503,5XX", OnReset, []string{"5 xx", "503", "5XX"}},
		{strings.Join(retryOnNames[:], ","), 1<<len(retryOnNames) - 1, nil},
	} {
		on, unknown := ParseRetryOn(c.in)
		if on != c.on || !slices.Equal(unknown, c.unknown) {
			t.Errorf("%q: %v, unknown %q; want %v, unknown %q", c.in, on, unknown, c.on, c.unknown)
		}
	}
	if OnUnavailable != 1<<(len(retryOnNames)-1) {
		t.Errorf("there are %d names, the last condition is %#x", len(retryOnNames), uint32(OnUnavailable))
	}
}

func FuzzParseRetryOn(f *testing.F) {
	f.Add("5xx,reset")
	f.Fuzz(func(t *testing.T, s string) {
		on, unknown := ParseRetryOn(s)
		again, none := ParseRetryOn(on.String())
		if again != on || none != nil {
			t.Errorf("%q: %v reads again as %v, unknown %q", s, on, again, none)
		}
		parts := 0
		for _, part := range strings.Split(s, ",") {
			part = strings.TrimSpace(part)
			known := false
			for bit, name := range retryOnNames {
				if name == part {
					known = true
					if on&(1<<bit) == 0 {
						t.Errorf("%q: %s is missing from %v", s, name, on)
					}
				}
			}
			if part != "" && !known {
				if parts >= len(unknown) || unknown[parts] != part {
					t.Errorf("%q: unknown %q has no %q at %d", s, unknown, part, parts)
				}
				parts++
			}
		}
		if parts != len(unknown) {
			t.Errorf("%q: unknown %q, want %d", s, unknown, parts)
		}
		for bit, name := range retryOnNames {
			if on&(1<<bit) != 0 && !strings.Contains(s, name) {
				t.Errorf("%q: %s is not in it", s, name)
			}
		}
	})
}

const allConditions = 1<<len(retryOnNames) - 1

// TestRetriedBy lists for each outcome exactly the conditions that retry it.
func TestRetriedBy(t *testing.T) {
	status := func(code int) Outcome { return Outcome{Status: code, GRPC: -1} }
	grpc := func(code int) Outcome { return Outcome{Status: 200, GRPC: code} }
	failure := func(f Failure) Outcome { return Outcome{GRPC: -1, Failure: f} }
	limited := Outcome{Status: 503, GRPC: 14, Header: map[string][]string{"X-Envoy-Ratelimited": {"true"}}}
	limitedLower := Outcome{Status: 503, GRPC: -1, Form: routing.LowerHeaders, Header: map[string][]string{"x-envoy-ratelimited": {""}}}
	overloaded := status(503)
	overloaded.Header = map[string][]string{"X-Envoy-Overloaded": {"true"}}
	pushback := status(200)
	pushback.Header = map[string][]string{"X-Pushback": {"yes"}}
	withStatus := failure(Reset)
	withStatus.Status = 503

	for _, c := range []struct {
		name string
		o    Outcome
		by   RetryOn
	}{
		{"200", status(200), 0},
		{"400", status(400), 0},
		{"409", status(409), OnRetriable4xx},
		{"418", status(418), OnRetriableStatusCodes},
		{"499", status(499), 0},
		{"500", status(500), On5xx},
		{"501", status(501), On5xx},
		{"502", status(502), On5xx | OnGatewayError},
		{"503", status(503), On5xx | OnGatewayError},
		{"504", status(504), On5xx | OnGatewayError},
		{"505", status(505), On5xx},
		{"599", status(599), On5xx},
		{"600", status(600), 0},
		{"503 of an overloaded proxy", overloaded, On5xx | OnGatewayError},
		{"rate limited", limited, OnEnvoyRateLimited},
		{"rate limited, lower-case header", limitedLower, OnEnvoyRateLimited},
		{"header", pushback, OnRetriableHeaders},
		{"OK", grpc(0), 0},
		{"CANCELLED", grpc(1), OnCancelled},
		{"UNKNOWN", grpc(2), 0},
		{"DEADLINE_EXCEEDED", grpc(4), OnDeadlineExceeded},
		{"RESOURCE_EXHAUSTED", grpc(8), OnResourceExhausted},
		{"INTERNAL", grpc(13), OnInternal},
		{"UNAVAILABLE", grpc(14), OnUnavailable},
		{"connect failure", failure(ConnectFailure), On5xx | OnGatewayError | OnReset | OnResetBeforeRequest | OnConnectFailure},
		{"reset", failure(Reset), On5xx | OnGatewayError | OnReset},
		{"reset after the headers", withStatus, On5xx | OnGatewayError | OnReset},
		{"reset before the request", failure(ResetBeforeRequest), On5xx | OnGatewayError | OnReset | OnResetBeforeRequest},
		{"refused stream", failure(RefusedStream), On5xx | OnGatewayError | OnReset | OnRefusedStream},
		{"per-try timeout", failure(PerTryTimeout), On5xx | OnGatewayError | OnReset},
		{"route timeout", failure(RouteTimeout), 0},
		{"overflow", failure(Overflow), 0},
		{"cancelled", failure(Cancelled), 0},
	} {
		p := RetryPolicy{
			StatusCodes: []uint32{418},
			Headers:     []routing.HeaderMatch{{Name: routing.NewHeaderName("x-none"), Kind: routing.HeaderPresent, Present: true}, {Name: routing.NewHeaderName("x-pushback"), String: routing.Exact("yes", false)}},
		}
		for bit := range retryOnNames {
			p.On = 1 << bit
			if got, want := p.Retriable(&c.o), c.by&p.On != 0; got != want {
				t.Errorf("%s by %s: %v, want %v", c.name, p.On, got, want)
			}
			p.On = allConditions &^ p.On
			if got, want := p.Retriable(&c.o), c.by&p.On != 0; got != want {
				t.Errorf("%s by all but %s: %v, want %v", c.name, RetryOn(1<<bit), got, want)
			}
		}
	}
}

func TestRetriableStatusHeader(t *testing.T) {
	p := RetryPolicy{On: OnRetriableHeaders, Headers: []routing.HeaderMatch{{Name: routing.NewHeaderName(":status"), Kind: routing.HeaderRange, Start: 500, End: 505}}}
	for status, want := range map[int]bool{499: false, 500: true, 504: true, 505: false, 0: false} {
		if got := p.Retriable(&Outcome{Status: status, GRPC: -1}); got != want {
			t.Errorf("status %d: %v, want %v", status, got, want)
		}
	}
}

func TestAllowsRequest(t *testing.T) {
	p := RetryPolicy{}
	if !p.AllowsRequest(&routing.Request{Method: "POST"}) {
		t.Error("a policy without conditions on the request refuses one")
	}
	for _, method := range []string{"GET", "HEAD"} {
		p.RequestHeaders = append(p.RequestHeaders, routing.HeaderMatch{Name: routing.NewHeaderName(":method"), String: routing.Exact(method, false)})
	}
	for method, want := range map[string]bool{"GET": true, "HEAD": true, "POST": false} {
		if got := p.AllowsRequest(&routing.Request{Method: method}); got != want {
			t.Errorf("%s: %v, want %v", method, got, want)
		}
	}
}

func TestRetryPolicyValidate(t *testing.T) {
	if p := DefaultRetryPolicy(On5xx); p.Validate() != nil || p.NumRetries != 1 || p.BaseInterval != 25*time.Millisecond || p.MaxInterval != 250*time.Millisecond {
		t.Errorf("the default %+v: %v", p, p.Validate())
	}
	if err := (&RetryPolicy{}).Validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
	name := routing.NewHeaderName("retry-after")
	for want, p := range map[string]RetryPolicy{
		"on: unknown condition bits 0x80000000":               {On: 1<<31 | On5xx},
		"per_try_timeout: -1s is negative":                    {PerTryTimeout: -time.Second},
		"base_interval: -1s is negative":                      {BaseInterval: -time.Second},
		"max_interval: -1s is negative":                       {MaxInterval: -time.Second},
		"max_interval: 1ms is less than the base interval 2s": {BaseInterval: 2 * time.Second, MaxInterval: time.Millisecond},
		"max_interval: 24ms is less than the base interval":   {MaxInterval: 24 * time.Millisecond},
		"status_codes[1]: 99 is not":                          {StatusCodes: []uint32{503, 99}},
		"status_codes[0]: 1000 is not":                        {StatusCodes: []uint32{1000}},
		"rate_limited: reset_headers: there is none":          {RateLimited: &RateLimitedBackoff{}},
		"rate_limited: reset_headers[0].name: is empty":       {RateLimited: &RateLimitedBackoff{Headers: []ResetHeader{{}}}},
		"rate_limited: reset_headers[0].format: unknown":      {RateLimited: &RateLimitedBackoff{Headers: []ResetHeader{{Name: name, Format: 7}}}},
		"rate_limited: max_interval: -1s is negative":         {RateLimited: &RateLimitedBackoff{Headers: []ResetHeader{{Name: name}}, MaxInterval: -time.Second}},
	} {
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one with %q", err, want)
		}
	}
}

func TestBackoffWindows(t *testing.T) {
	for _, c := range []struct {
		name    string
		p       RetryPolicy
		windows []time.Duration
	}{
		{"defaults", RetryPolicy{}, []time.Duration{25e6, 50e6, 100e6, 200e6, 250e6, 250e6}},
		{"base only", RetryPolicy{BaseInterval: time.Second}, []time.Duration{1e9, 2e9, 4e9, 8e9, 10e9}},
		{"no growth", RetryPolicy{BaseInterval: time.Second, MaxInterval: time.Second}, []time.Duration{1e9, 1e9}},
		{"maximum below the base", RetryPolicy{BaseInterval: time.Second, MaxInterval: 1}, []time.Duration{1, 1}},
		{"largest", RetryPolicy{BaseInterval: 1 << 62, MaxInterval: math.MaxInt64}, []time.Duration{1 << 62, math.MaxInt64, math.MaxInt64}},
		{"ten times the base is too large", RetryPolicy{BaseInterval: 1 << 62}, []time.Duration{1 << 62, 1 << 62}},
	} {
		for i, window := range c.windows {
			if got := c.p.Backoff(i+1, uint64(window)-1); got != window-1 {
				t.Errorf("%s: retry %d waits %v for the draw below its window %v", c.name, i+1, got, window)
			}
			if got := c.p.Backoff(i+1, uint64(window)); got != 0 {
				t.Errorf("%s: retry %d waits %v for the draw at its window %v", c.name, i+1, got, window)
			}
		}
		last := c.windows[len(c.windows)-1]
		if got := c.p.Backoff(math.MaxInt, uint64(last)-1); got != last-1 {
			t.Errorf("%s: a late retry waits %v, want %v", c.name, got, last-1)
		}
	}
}

func TestResetHeaderSpellings(t *testing.T) {
	now := time.Unix(1000, 999)
	b := RateLimitedBackoff{Headers: []ResetHeader{{Name: routing.NewHeaderName("Retry-After")}, {Name: routing.NewHeaderName("X-Reset"), Format: ResetUnixTimestamp}}}
	for _, c := range []struct {
		name   string
		header map[string][]string
		form   routing.HeaderForm
		want   time.Duration
		ok     bool
	}{
		{"none", nil, 0, 0, false},
		{"canonical", map[string][]string{"Retry-After": {"7"}}, 0, 7 * time.Second, true},
		{"lower", map[string][]string{"retry-after": {"7"}}, routing.LowerHeaders, 7 * time.Second, true},
		{"first value only", map[string][]string{"Retry-After": {"x", "7"}}, 0, 0, false},
		{"second header", map[string][]string{"Retry-After": {"x"}, "X-Reset": {"1002"}}, 0, 2 * time.Second, true},
		{"past", map[string][]string{"X-Reset": {"999"}}, 0, 0, false},
		{"largest number", map[string][]string{"X-Reset": {"9223372036854775807"}, "Retry-After": {"18446744073709551615"}}, 0, 0, false},
		{"signs are no digits", map[string][]string{"Retry-After": {"+7"}}, 0, 0, false},
	} {
		got, ok := b.Interval(c.header, c.form, now)
		if got != c.want || ok != c.ok {
			t.Errorf("%s: %v, %v; want %v, %v", c.name, got, ok, c.want, c.ok)
		}
	}
	p := RetryPolicy{RateLimited: &b}
	if pause, asked := p.Delay(&Outcome{Failure: Reset, Header: map[string][]string{"Retry-After": {"7"}}}, 1, now, 3); asked || pause != 3 {
		t.Errorf("without a response the pause is %v, asked for: %v", pause, asked)
	}
}

func TestRetriableDoesNotAllocate(t *testing.T) {
	p := DefaultRetryPolicy(allConditions)
	p.StatusCodes = []uint32{429}
	o := Outcome{Status: 200, GRPC: 0, Header: map[string][]string{"X-A": {"1"}}}
	if n := testing.AllocsPerRun(100, func() { p.Retriable(&o); p.Backoff(5, 12345) }); n != 0 {
		t.Errorf("a decision allocates %v times", n)
	}
}

func BenchmarkRetriable(b *testing.B) {
	p := DefaultRetryPolicy(OnConnectFailure | OnRefusedStream | OnUnavailable | OnCancelled | OnRetriableStatusCodes)
	o := Outcome{Status: 200, GRPC: -1, Header: map[string][]string{"Content-Type": {"text/plain"}}}
	b.ReportAllocs()
	for b.Loop() {
		p.Retriable(&o)
	}
}
