package resilience_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

var always = routing.Fraction{PerMillion: 1_000_000}

func lowerRequest(headers map[string]string) *routing.Request {
	r := &routing.Request{Method: "GET", Path: "/", Form: routing.LowerHeaders, Header: map[string][]string{}}
	for k, v := range headers {
		r.Header[strings.ToLower(k)] = []string{v}
	}
	return r
}

func TestFaultValidate(t *testing.T) {
	for field, f := range map[string]resilience.Fault{
		"delay.fixed_delay":               {Delay: &resilience.FaultDelay{Fixed: -1}},
		"delay: neither":                  {Delay: &resilience.FaultDelay{}},
		"delay: both":                     {Delay: &resilience.FaultDelay{Fixed: 1, FromHeader: true}},
		"delay.percentage: denominator":   {Delay: &resilience.FaultDelay{Fixed: 1, Denominator: 7}},
		"abort: 0 of":                     {Abort: &resilience.FaultAbort{GRPC: -1}},
		"abort: 2 of":                     {Abort: &resilience.FaultAbort{GRPC: -1, Status: 503, FromHeader: true}},
		"abort: 3 of":                     {Abort: &resilience.FaultAbort{Status: 503, FromHeader: true}},
		"abort.http_status: 199":          {Abort: &resilience.FaultAbort{GRPC: -1, Status: 199}},
		"abort.http_status: 600":          {Abort: &resilience.FaultAbort{GRPC: -1, Status: 600}},
		"abort.percentage: denominator: ": {Abort: &resilience.FaultAbort{GRPC: 5, Denominator: 1}},
	} {
		if err := f.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("error %v, want one that names %q", err, field)
		}
	}
	for _, f := range []resilience.Fault{
		{},
		{Delay: &resilience.FaultDelay{Fixed: time.Second}, Abort: &resilience.FaultAbort{GRPC: 5}},
		{Delay: &resilience.FaultDelay{FromHeader: true, Denominator: 10_000}, Abort: &resilience.FaultAbort{GRPC: -1, FromHeader: true}},
		{Abort: &resilience.FaultAbort{GRPC: -1, Status: 599}},
	} {
		if err := f.Validate(); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// TestFaultFractions holds both shares at their edges: 0 never, all always, and each by its own draw.
func TestFaultFractions(t *testing.T) {
	f := resilience.Fault{
		Delay: &resilience.FaultDelay{Fixed: time.Second, Fraction: routing.Fraction{PerMillion: 300_000}},
		Abort: &resilience.FaultAbort{Status: 503, GRPC: -1, Fraction: routing.Fraction{PerMillion: 100_000}},
	}
	r := lowerRequest(nil)
	for _, c := range []struct {
		delay, abort uint64
		want         resilience.FaultVerdict
	}{
		{0, 0, resilience.FaultVerdict{Delay: time.Second, HTTP: 503, GRPC: -1}},
		{299_999, 100_000, resilience.FaultVerdict{Delay: time.Second, GRPC: -1}},
		{300_000, 99_999, resilience.FaultVerdict{HTTP: 503, GRPC: -1}},
		{300_000, 100_000, resilience.NoFault},
	} {
		if got := f.Decide(r, c.delay, c.abort); got != c.want {
			t.Errorf("draws %d, %d: %+v, want %+v", c.delay, c.abort, got, c.want)
		}
	}
	// What a request asks for lowers the share, in the policy's own denominator: of 100 where that says none.
	byHeader := resilience.Fault{Abort: &resilience.FaultAbort{GRPC: -1, FromHeader: true, Fraction: always}}
	asks := lowerRequest(map[string]string{"x-envoy-fault-abort-request": "503", "x-envoy-fault-abort-request-percentage": "50"})
	if below, above := byHeader.Decide(asks, 0, 499_999), byHeader.Decide(asks, 0, 500_000); below.HTTP != 503 || above != resilience.NoFault {
		t.Errorf("of 50 per cent: %+v and %+v", below, above)
	}
	f.Delay.Fraction, f.Abort.Fraction = routing.Fraction{}, always
	if got := f.Decide(r, 0, 999_999); got.Delay != 0 || got.HTTP != 503 {
		t.Errorf("none delayed, all aborted: %+v", got)
	}
	if n := testing.AllocsPerRun(100, func() { f.Decide(r, 1, 2) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRecordedFaultHeaders(t *testing.T) {
	var file struct {
		Headers []struct {
			Config      json.RawMessage
			Header      string
			Value       string
			Status      *int    `json:"expect_status"`
			GRPC        *int    `json:"expect_grpc_status"`
			Delay       *int64  `json:"expect_delay_ms"`
			Numerator   *uint32 `json:"expect_numerator"`
			Denominator string  `json:"expect_denominator"`
		} `json:"header_controlled"`
	}
	conformance.Load(t, "envoy-facts/fault.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/fault.json")
	for i, c := range file.Headers {
		if strings.Contains(c.Header, "throughput") {
			tally.Differs(t, fmt.Sprintf("%s: %s [%d]", c.Header, c.Value, i))
			continue
		}
		f := resilience.Fault{
			Delay: &resilience.FaultDelay{FromHeader: true, Fraction: always},
			Abort: &resilience.FaultAbort{FromHeader: true, GRPC: -1, Fraction: always},
		}
		headers := map[string]string{c.Header: c.Value}
		var percent struct {
			Numerator   uint32
			Denominator string
		}
		if json.Unmarshal(c.Config, &percent) == nil {
			// The share is not to be seen from outside: each draw of a hundred shows it.
			scale := map[string]uint32{"HUNDRED": 10_000, "TEN_THOUSAND": 100, "MILLION": 1}[percent.Denominator]
			share := routing.Fraction{PerMillion: percent.Numerator * scale}
			f.Delay.Fraction, f.Abort.Fraction = share, share
			f.Delay.Denominator, f.Abort.Denominator = 1_000_000/scale, 1_000_000/scale
			headers["x-envoy-fault-delay-request"], headers["x-envoy-fault-abort-request"] = "1", "503"
			r, hits := lowerRequest(headers), uint32(0)
			for draw := range uint64(1_000_000 / scale) {
				v := f.Decide(r, draw*uint64(scale), draw*uint64(scale))
				if strings.Contains(c.Header, "delay") && v.Delay != 0 || strings.Contains(c.Header, "abort") && v.HTTP != 0 {
					hits++
				}
			}
			if hits != *c.Numerator {
				tally.Fail(t, "case %d, %s=%s: %d, want %d", i, c.Header, c.Value, hits, *c.Numerator)
				continue
			}
			tally.Pass()
			continue
		}
		v := f.Decide(lowerRequest(headers), 0, 0)
		want := resilience.NoFault
		switch {
		case c.Status != nil:
			want.HTTP = *c.Status
		case c.GRPC != nil:
			want.GRPC = *c.GRPC
		case c.Delay != nil:
			want.Delay = time.Duration(*c.Delay) * time.Millisecond
		}
		if v != want {
			tally.Fail(t, "case %d, %s=%s: %+v, want %+v", i, c.Header, c.Value, v, want)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/fault.json", 18, 7)
}

// recordedFraction is envoy.type.v3.FractionalPercent as JSON.
type recordedFraction struct {
	Numerator   uint32
	Denominator string
}

func (f recordedFraction) fraction() (routing.Fraction, uint32) {
	scale := map[string]uint32{"": 10_000, "HUNDRED": 10_000, "TEN_THOUSAND": 100, "MILLION": 1}[f.Denominator]
	return routing.Fraction{PerMillion: f.Numerator * scale}, 1_000_000 / scale
}

func TestRecordedFaultSequences(t *testing.T) {
	var file struct {
		Cases []struct {
			Name    string
			Filters []struct {
				Abort *struct {
					GRPCStatus  *int
					HeaderAbort *struct{}
					Percentage  recordedFraction
				}
				Delay *struct {
					FixedDelay string
					Percentage recordedFraction
				}
			}
			Random struct {
				Increment uint64 `json:"increment_per_request"`
			}
			Steps []struct {
				Repeat  int
				Status  string `json:"grpc_status"`
				Draws   []uint64
				Delays  []string
				Headers map[string]string
			}
		}
	}
	conformance.Load(t, "grpc-facts/fault.json", &file)
	codes := map[string]int{"OK": -1, "ABORTED": 10, "DATA_LOSS": 15, "UNIMPLEMENTED": 12, "UNAVAILABLE": 14, "UNKNOWN": 2}
	tally := conformance.Deciding(t, "grpc-facts/fault.json")
	for _, c := range file.Cases {
		var filters []resilience.Fault
		for _, f := range c.Filters {
			var fault resilience.Fault
			if f.Abort != nil {
				a := &resilience.FaultAbort{GRPC: -1, FromHeader: f.Abort.HeaderAbort != nil}
				if f.Abort.GRPCStatus != nil {
					a.GRPC = *f.Abort.GRPCStatus
				}
				a.Fraction, a.Denominator = f.Abort.Percentage.fraction()
				fault.Abort = a
			}
			if f.Delay != nil {
				d, err := time.ParseDuration(f.Delay.FixedDelay)
				if err != nil {
					t.Fatal(err)
				}
				fault.Delay = &resilience.FaultDelay{Fixed: d}
				fault.Delay.Fraction, fault.Delay.Denominator = f.Delay.Percentage.fraction()
			}
			if err := fault.Validate(); err != nil {
				t.Fatal(err)
			}
			filters = append(filters, fault)
		}
		counter, wrong := uint64(0), ""
		for i, s := range c.Steps {
			for n := range s.Repeat {
				status, delays := -1, []string{}
				for j := range filters {
					// The recorded draw is the counter's remainder by the denominator.
					draw := func(denominator uint32) uint64 {
						return counter % uint64(denominator) * (1_000_000 / uint64(denominator))
					}
					var delay, abort uint64
					if d := filters[j].Delay; d != nil {
						delay = draw(d.Denominator)
					}
					if a := filters[j].Abort; a != nil {
						abort = draw(a.Denominator)
					}
					v := filters[j].Decide(lowerRequest(s.Headers), delay, abort)
					if v.Delay > 0 {
						delays = append(delays, v.Delay.String())
					}
					if v.Aborts() {
						status = v.GRPCStatus()
						break
					}
				}
				if want, ok := codes[s.Status]; !ok || status != want || strings.Join(delays, ",") != strings.Join(s.Delays, ",") {
					wrong = "step " + strconv.Itoa(i) + ", request " + strconv.Itoa(n) + ": status " + strconv.Itoa(status) + ", delays " + strings.Join(delays, ",")
				}
				counter += c.Random.Increment
			}
		}
		if wrong != "" {
			tally.Fail(t, "%s: %s", c.Name, wrong)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "grpc-facts/fault.json", 5, 0)
}
