package resilience_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/resilience"
)

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
		Threshold []struct {
			Rates    []float64 `json:"success_rates"`
			Factor   float64   `json:"stdev_factor"`
			Average  float64
			Ejection float64 `json:"ejection_threshold"`
		} `json:"success_rate_threshold"`
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
	tally := conformance.Deciding(t, "envoy-facts/outlier_detection.json")
	for _, c := range file.Threshold {
		rule := resilience.Outlier{SuccessRateMinimumHosts: 1, SuccessRateRequestVolume: 1, SuccessRateStdevFactor: uint32(math.Round(c.Factor * 1000))}
		var rates []resilience.Rate
		for _, percent := range c.Rates {
			rates = append(rates, resilience.Rate{Requests: 100, Successes: uint64(percent)})
		}
		if _, average, threshold := rule.SuccessRateEjections(rates); average != c.Average || math.Abs(threshold-c.Ejection) > 1e-9 {
			tally.Fail(t, "average %v, threshold %v, want %v and %v", average, threshold, c.Average, c.Ejection)
			continue
		}
		tally.Pass()
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
		"enforcing_success_rate":                int64(d.EnforcingSuccessRate),
		"success_rate_minimum_hosts":            int64(d.SuccessRateMinimumHosts),
		"success_rate_request_volume":           int64(d.SuccessRateRequestVolume),
		"success_rate_stdev_factor":             int64(d.SuccessRateStdevFactor),
		"failure_percentage_threshold":          int64(d.FailurePercentageThreshold),
		"enforcing_failure_percentage":          int64(d.EnforcingFailurePercentage),
		"failure_percentage_minimum_hosts":      int64(d.FailurePercentageMinimumHosts),
		"failure_percentage_request_volume":     int64(d.FailurePercentageRequestVolume),
	}
	for name, want := range file.Defaults {
		switch got, ok := ours[name]; {
		case !ok:
			tally.Fail(t, "unknown default %s", name)
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
			rates := []resilience.Rate{{200, 200}, {200, 200}, {200, 200}, {200, 200}, {400, 200}}
			if out, average, threshold := rule.SuccessRateEjections(rates); !slices.Equal(out, []int{4}) || average != 90 || threshold != 52 {
				err = fmt.Errorf("ejects %v, average %v, threshold %v", out, average, threshold)
			}
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
	tally.Check(t, "envoy-facts/outlier_detection.json", 27, 0)
}
