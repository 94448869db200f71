package resilience_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

type recordedPolicy struct {
	RetryOn    string           `json:"retry_on"`
	NumRetries *uint32          `json:"num_retries"`
	Codes      []uint32         `json:"retriable_status_codes"`
	Response   []recordedHeader `json:"retriable_headers"`
	Request    []recordedHeader `json:"retriable_request_headers"`
}

type recordedHeader struct {
	Name   string
	String *struct{ Exact, Prefix *string } `json:"string_match"`
	Range  *struct{ Start, End int64 }      `json:"range_match"`
	Invert bool                             `json:"invert_match"`
}

func (h recordedHeader) match() routing.HeaderMatch {
	m := routing.HeaderMatch{Name: routing.NewHeaderName(h.Name), Kind: routing.HeaderPresent, Present: true, Invert: h.Invert}
	switch {
	case h.Range != nil:
		m.Kind, m.Start, m.End = routing.HeaderRange, h.Range.Start, h.Range.End
	case h.String != nil && h.String.Exact != nil:
		m.Kind, m.String = routing.HeaderString, routing.Exact(*h.String.Exact, false)
	case h.String != nil && h.String.Prefix != nil:
		m.Kind, m.String = routing.HeaderString, routing.Prefix(*h.String.Prefix, false)
	}
	return m
}

func (r recordedPolicy) policy(t *testing.T) resilience.RetryPolicy {
	t.Helper()
	on, unknown := resilience.ParseRetryOn(r.RetryOn)
	if unknown != nil {
		t.Fatalf("%q: unknown conditions %q", r.RetryOn, unknown)
	}
	p := resilience.DefaultRetryPolicy(on)
	if r.NumRetries != nil {
		p.NumRetries = *r.NumRetries
	}
	p.StatusCodes = r.Codes
	for _, h := range r.Response {
		p.Headers = append(p.Headers, h.match())
	}
	for _, h := range r.Request {
		p.RequestHeaders = append(p.RequestHeaders, h.match())
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
}

type recordedEvent struct {
	Reset    string
	Response map[string]string
}

func (e recordedEvent) outcome(t *testing.T) *resilience.Outcome {
	t.Helper()
	o := &resilience.Outcome{GRPC: -1, Form: routing.LowerHeaders, Header: map[string][]string{}}
	if e.Reset != "" {
		failures := map[string]resilience.Failure{
			"remote_reset":          resilience.Reset,
			"remote_refused_stream": resilience.RefusedStream,
			"connect_failure":       resilience.ConnectFailure,
			"overflow":              resilience.Overflow,
		}
		f, ok := failures[e.Reset]
		if !ok {
			t.Fatalf("unknown reset %q", e.Reset)
		}
		o.Failure = f
		return o
	}
	for k, v := range e.Response {
		k = strings.ToLower(k)
		n, err := strconv.Atoi(v)
		switch {
		case k == ":status" && err == nil:
			o.Status = n
			continue
		case k == "grpc-status" && err == nil:
			o.GRPC = n
		}
		o.Header[k] = []string{v}
	}
	return o
}

func TestRecordedRetryDecisions(t *testing.T) {
	var file struct {
		Cases []struct {
			Test     string
			Policy   recordedPolicy    `json:"retry_policy"`
			Headers  map[string]string `json:"request_headers"`
			Events   []recordedEvent
			Expected []string `json:"expect"`
		} `json:"decision_cases"`
	}
	conformance.Load(t, "envoy-facts/retry.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/retry.json#decision_cases")
	for i, c := range file.Cases {
		base := c.Policy.policy(t)
		request := lowerRequest(c.Headers)
		request.Method = c.Headers[":method"]
		p := base.WithRequest(request)
		if !p.AllowsRequest(request) {
			if len(c.Events) == 0 {
				tally.Pass()
			} else {
				tally.Fail(t, "case %d, %s: the request may not be retried", i, c.Test)
			}
			continue
		}
		left := p.NumRetries
		var got []string
		for _, e := range c.Events {
			switch {
			case !p.Retriable(e.outcome(t)):
				got = append(got, "No")
			case left == 0:
				got = append(got, "NoRetryLimitExceeded")
			default:
				left--
				got = append(got, "Yes")
			}
		}
		if !slices.Equal(got, c.Expected) {
			tally.Fail(t, "case %d, %s: %v, want %v", i, c.Test, got, c.Expected)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/retry.json#decision_cases", 31, 0)
}

func TestRecordedBackoff(t *testing.T) {
	var file struct {
		Cases []struct {
			Test     string
			Random   []uint64 `json:"random_values"`
			Expect   []int64  `json:"expect_ms"`
			Sequence []struct {
				RetryAfter *string `json:"retry-after"`
				Random     uint64
				Expect     int64 `json:"expect_ms"`
			}
		} `json:"backoff"`
	}
	conformance.Load(t, "envoy-facts/retry.json", &file)
	intervals := map[string][2]time.Duration{
		"Backoff defaults base 25ms max 250ms":                       {},
		"CustomBackOffInterval base 100ms max 1200ms":                {100 * time.Millisecond, 1200 * time.Millisecond},
		"CustomBackOffIntervalDefaultMax base 100ms (max = 10*base)": {100 * time.Millisecond, 0},
		"RateLimitedRetryBackoffStrategy Retry-After SECONDS":        {},
	}
	const ms = uint64(time.Millisecond) // recorded draws count milliseconds
	tally := conformance.Deciding(t, "envoy-facts/retry.json#backoff")
	for _, c := range file.Cases {
		bounds, ok := intervals[c.Test]
		if !ok {
			tally.Fail(t, "%s: no intervals are known for it", c.Test)
			continue
		}
		p := resilience.RetryPolicy{BaseInterval: bounds[0], MaxInterval: bounds[1]}
		failed := false
		for i, random := range c.Random {
			if got := p.Backoff(i+1, random*ms); got != time.Duration(c.Expect[i])*time.Millisecond {
				tally.Fail(t, "%s: retry %d waits %v, want %d ms", c.Test, i+1, got, c.Expect[i])
				failed = true
			}
		}
		p.RateLimited = &resilience.RateLimitedBackoff{Headers: []resilience.ResetHeader{{Name: routing.NewHeaderName("Retry-After")}}}
		retry := 1
		for i, step := range c.Sequence {
			o := &resilience.Outcome{Status: 429, GRPC: -1, Header: map[string][]string{}}
			if step.RetryAfter != nil {
				o.Header["Retry-After"] = []string{*step.RetryAfter}
			}
			got, asked := p.Delay(o, retry, time.Unix(1e9, 0), step.Random*ms)
			if got != time.Duration(step.Expect)*time.Millisecond {
				tally.Fail(t, "%s: step %d waits %v, want %d ms", c.Test, i, got, step.Expect)
				failed = true
			}
			if !asked {
				retry++
			}
		}
		if !failed {
			tally.Pass()
		}
	}
	tally.Check(t, "envoy-facts/retry.json#backoff", 4, 0)
}

func TestRecordedResetHeaders(t *testing.T) {
	var file struct {
		Groups []struct {
			Now     int64                           `json:"now_unix"`
			Headers []struct{ Name, Format string } `json:"headers_config"`
			Max     int64                           `json:"max_interval_ms"`
			Cases   []struct {
				Response map[string]string
				Interval *int64 `json:"interval_ms"`
			}
		} `json:"reset_headers"`
	}
	conformance.Load(t, "envoy-facts/retry.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/retry.json#reset_headers")
	for _, g := range file.Groups {
		b := resilience.RateLimitedBackoff{MaxInterval: time.Duration(g.Max) * time.Millisecond}
		for _, h := range g.Headers {
			format := map[string]resilience.ResetFormat{"SECONDS": resilience.ResetSeconds, "UNIX_TIMESTAMP": resilience.ResetUnixTimestamp}[h.Format]
			b.Headers = append(b.Headers, resilience.ResetHeader{Name: routing.NewHeaderName(h.Name), Format: format})
		}
		for _, c := range g.Cases {
			h := map[string][]string{}
			for k, v := range c.Response {
				h[strings.ToLower(k)] = []string{v}
			}
			got, ok := b.Interval(h, routing.LowerHeaders, time.Unix(g.Now, 0))
			if ok != (c.Interval != nil) || ok && got != time.Duration(*c.Interval)*time.Millisecond {
				tally.Fail(t, "%v: %v, %v", c.Response, got, ok)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "envoy-facts/retry.json#reset_headers", 14, 0)
}

func TestRecordedRetryOn(t *testing.T) {
	type parse struct {
		In       string
		Policies []string
		Valid    bool `json:"all_valid"`
	}
	var file struct {
		HTTP []parse `json:"parse_retry_on"`
		GRPC []parse `json:"parse_retry_grpc_on"`
	}
	conformance.Load(t, "envoy-facts/retry.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/retry.json#retry_on")
	for _, c := range append(file.HTTP, file.GRPC...) {
		on, unknown := resilience.ParseRetryOn(c.In)
		if on.String() != strings.Join(inOrder(c.Policies), ",") || (unknown == nil) != c.Valid {
			tally.Fail(t, "%q: %v, unknown %q; want %v", c.In, on, unknown, c.Policies)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/retry.json#retry_on", 8, 0)
}

// inOrder puts names into the order that RetryOn.String has.
func inOrder(names []string) []string {
	all := strings.Split((resilience.OnUnavailable<<1 - 1).String(), ",")
	slices.SortFunc(names, func(a, b string) int { return slices.Index(all, a) - slices.Index(all, b) })
	return names
}

func TestRecordedRetryBudget(t *testing.T) {
	type step struct {
		Requests int64    `json:"active_requests"`
		Retries  int64    `json:"active_retries"`
		Percent  *float64 `json:"budget_percent_runtime"`
		Expect   string
	}
	var file struct {
		Cases []struct {
			step
			Test   string
			Budget struct {
				Percent float64 `json:"budget_percent"`
				Min     uint32  `json:"min_retry_concurrency"`
			} `json:"retry_budget"`
			Steps []step
		} `json:"budget"`
	}
	conformance.Load(t, "envoy-facts/retry.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/retry.json#budget")
	for _, c := range file.Cases {
		if c.Steps == nil {
			c.Steps = []step{c.step}
		}
		for i, s := range c.Steps {
			b := resilience.RetryBudget{Percent: c.Budget.Percent, MinConcurrency: c.Budget.Min}
			if s.Percent != nil {
				b.Percent = *s.Percent
			}
			if got := b.Allows(s.Requests, s.Retries); got != (s.Expect == "Yes") {
				tally.Fail(t, "%s, step %d: %v, want %s", c.Test, i, got, s.Expect)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "envoy-facts/retry.json#budget", 7, 0)
}

func TestRecordedGRPCRetry(t *testing.T) {
	var file struct {
		Cases []struct {
			Name        string
			VirtualHost *struct {
				RetryOn    string
				NumRetries uint32
			} `json:"virtual_host_retry_policy"`
			Route *struct {
				RetryOn    string
				NumRetries uint32
			} `json:"route_retry_policy"`
			Attempts []string `json:"attempt_results"`
			Result   string
		}
	}
	conformance.Load(t, "grpc-facts/retry.json", &file)
	codes := map[string]int{"OK": 0, "RESOURCE_EXHAUSTED": 8, "UNAVAILABLE": 14}
	tally := conformance.Deciding(t, "grpc-facts/retry.json")
	for _, c := range file.Cases {
		source := c.Route // a route's policy replaces the virtual host's
		if source == nil {
			source = c.VirtualHost
		}
		p := recordedPolicy{RetryOn: source.RetryOn, NumRetries: &source.NumRetries}.policy(t)
		result := ""
		for i, attempt := range c.Attempts {
			result = attempt
			code, ok := codes[attempt]
			if !ok {
				t.Fatalf("%s: unknown code %s", c.Name, attempt)
			}
			if i == int(p.NumRetries) || !p.Retriable(&resilience.Outcome{Status: 200, GRPC: code}) {
				break
			}
		}
		if result != c.Result {
			tally.Fail(t, "%s: %s, want %s", c.Name, result, c.Result)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "grpc-facts/retry.json", 5, 0)
}

// TestRecordedRetryMatrix has every condition alone on every status and reset of Envoy's source.
func TestRecordedRetryMatrix(t *testing.T) {
	var file struct {
		Matrix struct {
			Status map[string]string
			Reset  map[string][]string
		} `json:"matrix_from_source"`
	}
	conformance.Load(t, "envoy-facts/retry.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/retry.json#matrix")
	alone := func(condition string) *resilience.RetryPolicy {
		codes := []uint32{418}
		p := recordedPolicy{RetryOn: condition, Codes: codes, Response: []recordedHeader{{Name: "x-again"}}}.policy(t)
		return &p
	}
	for condition, text := range file.Matrix.Status {
		retried := func(status int, header string) bool {
			switch text {
			case "500-599":
				return status >= 500 && status <= 599
			case "502,503,504":
				return status >= 502 && status <= 504
			case "409":
				return status == 409
			case "listed codes":
				return status == 418
			case "any matcher matches response":
				return header == "x-again"
			case "response has x-envoy-ratelimited":
				return header == "x-envoy-ratelimited"
			}
			t.Fatalf("%s: %q is not understood", condition, text)
			return false
		}
		p, wrong := alone(condition), ""
		for status := 200; status < 600; status++ {
			for _, header := range []string{"", "x-again", "x-envoy-ratelimited"} {
				o := recordedEvent{Response: map[string]string{":status": strconv.Itoa(status)}}
				if header != "" {
					o.Response[header] = "1"
				}
				want := retried(status, header) && (header != "x-envoy-ratelimited" || condition == "envoy-ratelimited")
				if got := p.Retriable(o.outcome(t)); got != want {
					wrong = fmt.Sprintf("%d with %q: %v", status, header, got)
				}
			}
		}
		if wrong != "" {
			tally.Fail(t, "%s: %s", condition, wrong)
			continue
		}
		tally.Pass()
	}
	for reset, conditions := range file.Matrix.Reset {
		wrong := ""
		for _, p := range strings.Split((resilience.OnUnavailable<<1 - 1).String(), ",") {
			// What the record says of reset-before-request depends on how far the request came, which is another failure here.
			if want := slices.Contains(conditions, p); alone(p).Retriable(recordedEvent{Reset: reset}.outcome(t)) != want {
				wrong += fmt.Sprintf("%s is to retry it: %v; ", p, want)
			}
		}
		if wrong != "" {
			tally.Fail(t, "%s: %s", reset, wrong)
			continue
		}
		tally.Pass()
	}
	if !alone("reset-before-request").Retriable(&resilience.Outcome{GRPC: -1, Failure: resilience.ResetBeforeRequest}) {
		t.Error("reset-before-request does not retry that")
	}
	tally.Check(t, "envoy-facts/retry.json#matrix", 10, 0)
}
