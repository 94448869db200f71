package resilience_test

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

const (
	requestHeaders = "a caller's request headers do not set the retry policy (x-envoy-retry-on and the like)"
	successRate    = "success rate and failure percentage are not consecutive failures"
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
	var tally conformance.Tally
next:
	for i, c := range file.Cases {
		for name := range c.Headers {
			if strings.HasPrefix(name, "x-envoy-") {
				tally.SetAside(requestHeaders)
				continue next
			}
		}
		p := c.Policy.policy(t)
		if !p.AllowsRequest(&routing.Request{Method: c.Headers[":method"]}) {
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
	tally.Check(t, "envoy-facts/retry decision_cases", 24, 7)
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
	var tally conformance.Tally
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
	tally.Check(t, "envoy-facts/retry backoff", 4, 0)
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
	var tally conformance.Tally
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
	tally.Check(t, "envoy-facts/retry reset_headers", 14, 0)
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
	var tally conformance.Tally
	for _, c := range append(file.HTTP, file.GRPC...) {
		on, unknown := resilience.ParseRetryOn(c.In)
		if on.String() != strings.Join(inOrder(c.Policies), ",") || (unknown == nil) != c.Valid {
			tally.Fail(t, "%q: %v, unknown %q; want %v", c.In, on, unknown, c.Policies)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/retry parse_retry_on and parse_retry_grpc_on", 8, 0)
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
	var tally conformance.Tally
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
	tally.Check(t, "envoy-facts/retry budget", 7, 0)
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
	var tally conformance.Tally
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
	tally.Check(t, "grpc-facts/retry", 5, 0)
}

// cluster runs the rules of one outlier configuration as an engine would.
type cluster struct {
	t       *testing.T
	rule    resilience.Outlier
	now     time.Time
	streak  []resilience.Streak
	history []resilience.Ejection
	ejected int
}

func newCluster(t *testing.T, rule resilience.Outlier, hosts int) *cluster {
	t.Helper()
	if err := rule.Validate(); err != nil {
		t.Fatal(err)
	}
	return &cluster{t: t, rule: rule, now: time.Unix(0, 0), streak: make([]resilience.Streak, hosts), history: make([]resilience.Ejection, hosts)}
}

// respond takes responses such as "4x500".
func (c *cluster) respond(host int, responses string) {
	c.t.Helper()
	times, status, ok := strings.Cut(responses, "x")
	n, err := strconv.Atoi(times)
	code, err2 := strconv.Atoi(status)
	if !ok || err != nil || err2 != nil {
		c.t.Fatalf("unknown responses %q", responses)
	}
	for range n {
		var detected resilience.Detections
		c.streak[host], detected = c.rule.Observe(c.streak[host], resilience.ResultOf(&resilience.Outcome{Status: code, GRPC: -1}))
		if detected != 0 && !c.history[host].Ejected && c.rule.MayEject(c.ejected, len(c.history)) && c.rule.Enforces(detected, 0) {
			c.history[host] = c.rule.Eject(c.history[host], c.now, 0)
			c.ejected++
		}
	}
}

func (c *cluster) sweep(at time.Duration) {
	c.now = time.Unix(0, 0).Add(at)
	for i := range c.history {
		var ended bool
		if c.history[i], ended = c.rule.Sweep(c.history[i], c.now); ended {
			c.ejected--
			c.streak[i] = 0
		}
	}
}

func (c *cluster) want(ejected ...int) error {
	for i, e := range c.history {
		if e.Ejected != slices.Contains(ejected, i+1) {
			return &wrong{i + 1, e.Ejected}
		}
	}
	return nil
}

type wrong struct {
	host    int
	ejected bool
}

func (w *wrong) Error() string {
	return "host " + strconv.Itoa(w.host) + " ejected: " + strconv.FormatBool(w.ejected)
}

type recordedOutlier struct {
	Consecutive5xx *uint32 `json:"consecutive_5xx"`
	Enforcing5xx   *uint32 `json:"enforcing_consecutive_5xx"`
	EnforcingGW    *uint32 `json:"enforcing_consecutive_gateway_failure"`
	MaxPercent     *uint32 `json:"max_ejection_percent"`
	AlwaysOne      bool    `json:"always_eject_one_host"`
	Base           string  `json:"base_ejection_time"`
	Max            string  `json:"max_ejection_time"`
}

func (r recordedOutlier) rule(t *testing.T) resilience.Outlier {
	t.Helper()
	o := resilience.DefaultOutlier
	set := func(to *uint32, from *uint32) {
		if from != nil {
			*to = *from
		}
	}
	set(&o.Consecutive5xx, r.Consecutive5xx)
	set(&o.EnforcingConsecutive5xx, r.Enforcing5xx)
	set(&o.EnforcingConsecutiveGatewayFailure, r.EnforcingGW)
	set(&o.MaxEjectionPercent, r.MaxPercent)
	o.AlwaysEjectOneEndpoint = r.AlwaysOne
	for text, to := range map[string]*time.Duration{r.Base: &o.BaseEjectionTime, r.Max: &o.MaxEjectionTime} {
		if text == "" {
			continue
		}
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		*to = d
	}
	return o
}

func TestRecordedOutlierScenarios(t *testing.T) {
	type step struct {
		T            json.RawMessage
		Milliseconds *int64 `json:"t_ms"`
		Responses    json.RawMessage
		Do           string
		Sweep        bool `json:"interval_sweep"`
		Ejected      *bool
	}
	var file struct {
		Defaults  map[string]int64
		Threshold []struct{} `json:"success_rate_threshold"`
		Scenarios []struct {
			Test       string
			Hosts      int
			Config     recordedOutlier
			Responses  string
			Ejected    []int
			AtInterval any `json:"at_interval"`
			Expect     string
			Steps      []step
		}
	}
	conformance.Load(t, "envoy-facts/outlier_detection.json", &file)
	var tally conformance.Tally
	for range file.Threshold {
		tally.SetAside(successRate)
	}
	d := resilience.DefaultOutlier
	ours := map[string]int64{
		"interval_ms":                           d.Interval.Milliseconds(),
		"base_ejection_time_ms":                 d.BaseEjectionTime.Milliseconds(),
		"max_ejection_time_ms":                  d.MaxEjectionTime.Milliseconds(),
		"max_ejection_time_jitter_ms":           d.MaxEjectionTimeJitter.Milliseconds(),
		"consecutive_5xx":                       int64(d.Consecutive5xx),
		"consecutive_gateway_failure":           int64(d.ConsecutiveGatewayFailure),
		"max_ejection_percent":                  int64(d.MaxEjectionPercent),
		"enforcing_consecutive_5xx":             int64(d.EnforcingConsecutive5xx),
		"enforcing_consecutive_gateway_failure": int64(d.EnforcingConsecutiveGatewayFailure),
	}
	for name, want := range file.Defaults {
		switch got, ok := ours[name]; {
		case !ok:
			tally.SetAside(successRate)
		case got != want:
			tally.Fail(t, "the default of %s is %d, want %d", name, got, want)
		default:
			tally.Pass()
		}
	}
	for _, s := range file.Scenarios {
		rule := s.Config.rule(t)
		var err error
		switch s.Test {
		case "BasicFlowSuccessRateExternalOrigin":
			tally.SetAside(successRate)
			continue
		case "DetectorStaticConfigiInvalidMaxEjectTime":
			if rule.Validate() == nil {
				tally.Fail(t, "%s: accepted", s.Test)
				continue
			}
		case "DetectorStaticConfigBaseLargerThanMaxNoMax":
			// The default depends on the base, so it belongs to what reads the configuration.
			rule.MaxEjectionTime = max(rule.MaxEjectionTime, rule.BaseEjectionTime)
			if err = rule.Validate(); err == nil && rule.EjectionTime(2) != 400*time.Second {
				t.Errorf("%s: %v", s.Test, rule.EjectionTime(2))
			}
		case "BasicFlow5xxViaHttpCodes":
			c := newCluster(t, rule, s.Hosts)
			for i, step := range s.Steps {
				c.now = time.Unix(0, 0).Add(time.Duration(*step.Milliseconds) * time.Millisecond)
				if step.Sweep {
					c.sweep(time.Duration(*step.Milliseconds) * time.Millisecond)
				}
				var responses []string
				if step.Responses != nil {
					if err := json.Unmarshal(step.Responses, &responses); err != nil {
						t.Fatal(err)
					}
				}
				for _, r := range responses {
					c.respond(0, r)
				}
				if c.history[0].Ejected != *step.Ejected {
					t.Errorf("%s, step %d: ejected %v", s.Test, i, c.history[0].Ejected)
				}
			}
		case "BasicFlowGatewayFailure":
			// max_ejection_percent is not in the record; the test has one host and 100.
			rule.MaxEjectionPercent = 100
			c := newCluster(t, rule, 1)
			c.respond(0, "5x500")
			if err = c.want(); err == nil {
				c.respond(0, "4x503")
				c.respond(0, "1x500")
				c.respond(0, "4x503")
				if err = c.want(); err == nil {
					c.respond(0, "1x502")
					err = c.want(1)
				}
			}
		case "MaxEjectionPercentage", "MaxEjectionPercentageOverride", "MaxEjectionPercentageSingleHost":
			c := newCluster(t, rule, s.Hosts)
			for host := range s.Hosts {
				c.respond(host, strings.TrimSuffix(s.Responses, " on each host"))
			}
			err = c.want(s.Ejected...)
		case "EjectTimeBackoff":
			c := newCluster(t, rule, s.Hosts)
			at := time.Duration(0)
			for i, step := range s.Steps {
				until := at
				var seconds []int64
				var one int64
				switch {
				case json.Unmarshal(step.T, &one) == nil:
					until = time.Duration(one) * time.Second
				case json.Unmarshal(step.T, &seconds) == nil:
					until = time.Duration(seconds[len(seconds)-1]) * time.Second
				case string(step.T) == `"100..600"`:
					until = 600 * time.Second
				default:
					t.Fatalf("step %d: unknown time %s", i, step.T)
				}
				for at < until {
					at += rule.Interval
					c.sweep(at)
				}
				if step.Do == "5x500" {
					c.respond(0, step.Do)
				}
				if step.Ejected != nil && c.history[0].Ejected != *step.Ejected {
					t.Errorf("%s, step %d at %v: ejected %v", s.Test, i, at, c.history[0].Ejected)
				}
			}
		default:
			tally.Fail(t, "%s: unknown scenario", s.Test)
			continue
		}
		if err != nil {
			tally.Fail(t, "%s: %v", s.Test, err)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/outlier_detection", 17, 10)
}
