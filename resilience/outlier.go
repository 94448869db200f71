package resilience

import (
	"fmt"
	"time"
)

// MaxConsecutive is the largest number of consecutive failures that a threshold may ask for.
const MaxConsecutive = 1<<streakBits - 1

// Outlier says when an endpoint is taken out of use for its failures, and for
// how long (envoy.config.cluster.v3.OutlierDetection). Percentages are from 0 to 100.
type Outlier struct {
	Consecutive5xx                     uint32 // failures in a row; 0 detects none; default 5
	EnforcingConsecutive5xx            uint32 // per cent of detections that eject; default 100
	ConsecutiveGatewayFailure          uint32 // gateway failures in a row; 0 detects none; default 5
	EnforcingConsecutiveGatewayFailure uint32 // default 0

	// SplitLocalOrigin counts failures that were found on this side (no
	// connection, reset, timeout) apart, against ConsecutiveLocalOriginFailure,
	// instead of as statuses 503 and 504 (split_external_local_origin_errors).
	SplitLocalOrigin                       bool
	ConsecutiveLocalOriginFailure          uint32 // default 5
	EnforcingConsecutiveLocalOriginFailure uint32 // default 100

	// Success rates and failure percentages are compared at each Interval, among the
	// endpoints with enough requests in it, if enough endpoints have so many.
	EnforcingSuccessRate                  uint32 // default 100
	SuccessRateMinimumHosts               uint32 // default 5
	SuccessRateRequestVolume              uint32 // default 100
	SuccessRateStdevFactor                uint32 // in thousandths; default 1900
	EnforcingFailurePercentage            uint32 // default 0
	FailurePercentageThreshold            uint32 // default 85
	FailurePercentageMinimumHosts         uint32 // default 5
	FailurePercentageRequestVolume        uint32 // default 50
	EnforcingLocalOriginSuccessRate       uint32 // default 100; with SplitLocalOrigin
	EnforcingFailurePercentageLocalOrigin uint32 // default 0; with SplitLocalOrigin
	// KeepWhenChecked leaves an endpoint ejected though an active health check passes
	// (successful_active_health_check_uneject_host: false).
	KeepWhenChecked bool

	Interval               time.Duration // between sweeps that end ejections; default 10 s
	BaseEjectionTime       time.Duration // of the first ejection; default 30 s
	MaxEjectionTime        time.Duration // default the larger of 300 s and BaseEjectionTime
	MaxEjectionTimeJitter  time.Duration // a random share of it is added to each ejection; default 0
	MaxEjectionPercent     uint32        // of the cluster's endpoints; default 10
	AlwaysEjectOneEndpoint bool          // always_eject_one_host: the first ejection passes MaxEjectionPercent
}

// DefaultOutlier is Envoy's: five failures in a row eject for 30 s times the
// number of ejections, at most a tenth of the endpoints at one time, and so does
// a success rate that is 1.9 standard deviations below the others'.
var DefaultOutlier = Outlier{
	Consecutive5xx:                         5,
	EnforcingConsecutive5xx:                100,
	ConsecutiveGatewayFailure:              5,
	EnforcingConsecutiveGatewayFailure:     0,
	ConsecutiveLocalOriginFailure:          5,
	EnforcingConsecutiveLocalOriginFailure: 100,
	EnforcingSuccessRate:                   100,
	SuccessRateMinimumHosts:                5,
	SuccessRateRequestVolume:               100,
	SuccessRateStdevFactor:                 1900,
	FailurePercentageThreshold:             85,
	FailurePercentageMinimumHosts:          5,
	FailurePercentageRequestVolume:         50,
	EnforcingLocalOriginSuccessRate:        100,
	Interval:                               10 * time.Second,
	BaseEjectionTime:                       30 * time.Second,
	MaxEjectionTime:                        300 * time.Second,
	MaxEjectionPercent:                     10,
}

// Validate reports the first field with a value that has no meaning.
func (o *Outlier) Validate() error {
	for _, f := range []struct {
		name  string
		value uint32
		limit uint32
	}{
		{"consecutive_5xx", o.Consecutive5xx, MaxConsecutive},
		{"enforcing_consecutive_5xx", o.EnforcingConsecutive5xx, 100},
		{"consecutive_gateway_failure", o.ConsecutiveGatewayFailure, MaxConsecutive},
		{"enforcing_consecutive_gateway_failure", o.EnforcingConsecutiveGatewayFailure, 100},
		{"consecutive_local_origin_failure", o.ConsecutiveLocalOriginFailure, MaxConsecutive},
		{"enforcing_consecutive_local_origin_failure", o.EnforcingConsecutiveLocalOriginFailure, 100},
		{"enforcing_success_rate", o.EnforcingSuccessRate, 100},
		{"enforcing_failure_percentage", o.EnforcingFailurePercentage, 100},
		{"failure_percentage_threshold", o.FailurePercentageThreshold, 100},
		{"enforcing_local_origin_success_rate", o.EnforcingLocalOriginSuccessRate, 100},
		{"enforcing_failure_percentage_local_origin", o.EnforcingFailurePercentageLocalOrigin, 100},
		{"max_ejection_percent", o.MaxEjectionPercent, 100},
	} {
		if f.value > f.limit {
			return fmt.Errorf("%s: %d is more than %d", f.name, f.value, f.limit)
		}
	}
	switch {
	case o.Interval <= 0:
		return fmt.Errorf("interval: %v is not positive", o.Interval)
	case o.BaseEjectionTime <= 0:
		return fmt.Errorf("base_ejection_time: %v is not positive", o.BaseEjectionTime)
	case o.MaxEjectionTime < o.BaseEjectionTime:
		return fmt.Errorf("max_ejection_time: %v is less than the base ejection time %v", o.MaxEjectionTime, o.BaseEjectionTime)
	case o.MaxEjectionTimeJitter < 0:
		return fmt.Errorf("max_ejection_time_jitter: %v is negative", o.MaxEjectionTimeJitter)
	}
	return nil
}

// Result is what an outcome says about the endpoint that it came from.
type Result uint8

const (
	// NoResult says nothing: the caller gave up, or the request was not sent for reasons on this side.
	NoResult Result = iota
	// Success is a response with a status below 500.
	Success
	// Failure5xx is a response with a status from 500, other than a gateway failure.
	Failure5xx
	// GatewayFailure is a response with the status 502, 503 or 504.
	GatewayFailure
	// LocalFailure is a failure found on this side: no connection, reset, timeout.
	LocalFailure
)

func (r Result) failed() bool { return r >= Failure5xx }

// ResultOf classifies an outcome. A grpc-status in the response's headers counts
// as the HTTP status that it stands for: UNAVAILABLE is 503 and a gateway
// failure, UNKNOWN, INTERNAL and DATA_LOSS are 500.
func ResultOf(o *Outcome) Result {
	switch o.Failure {
	case ConnectFailure, Reset, ResetBeforeRequest, RefusedStream, PerTryTimeout, RouteTimeout:
		return LocalFailure
	case Overflow, Cancelled, LocalError:
		return NoResult
	}
	status := o.Status
	if o.GRPC >= 0 && status == 200 {
		status = HTTPStatusOf(o.GRPC)
	}
	switch {
	case isGatewayError(status):
		return GatewayFailure
	case status >= 500:
		return Failure5xx
	case status > 0:
		return Success
	}
	return NoResult
}

// Streak counts an endpoint's failures in a row. The zero value is an endpoint
// without failures, and a success makes it zero again: so an engine that holds a
// Streak in an atomic word has nothing to store where the word is zero and the
// result is Success.
type Streak uint64

const (
	streakBits   = 21
	streakMask   = 1<<streakBits - 1
	gatewayShift = streakBits
	localShift   = 2 * streakBits
)

// Consecutive5xx returns the failures in a row that count as 5xx.
func (s Streak) Consecutive5xx() uint32 { return uint32(s & streakMask) }

// ConsecutiveGatewayFailure returns the gateway failures in a row.
func (s Streak) ConsecutiveGatewayFailure() uint32 { return uint32(s >> gatewayShift & streakMask) }

// ConsecutiveLocalOriginFailure returns the failures in a row that were found on
// this side, where they are counted apart.
func (s Streak) ConsecutiveLocalOriginFailure() uint32 { return uint32(s >> localShift & streakMask) }

func (s Streak) plus(shift uint) Streak {
	if s>>shift&streakMask == streakMask {
		return s
	}
	return s + 1<<shift
}

func (s Streak) without(shift uint) Streak { return s &^ (streakMask << shift) }

// Detections is a set of kinds of detection.
type Detections uint8

const (
	Detected5xx Detections = 1 << iota
	DetectedGatewayFailure
	DetectedLocalOriginFailure
)

// Observe counts a result. detected has the kinds whose threshold the result
// reaches; their counters begin again at zero, so that an endpoint that stays in
// use is detected again after as many failures more.
func (o *Outlier) Observe(s Streak, r Result) (after Streak, detected Detections) {
	if r == LocalFailure && !o.SplitLocalOrigin {
		r = GatewayFailure // as status 503 or 504
	}
	switch r {
	case NoResult:
		return s, 0
	case Success:
		return 0, 0
	case LocalFailure:
		s = s.plus(localShift)
		if s.ConsecutiveLocalOriginFailure() == o.ConsecutiveLocalOriginFailure {
			return s.without(localShift), DetectedLocalOriginFailure
		}
		return s, 0
	case GatewayFailure:
		s = s.plus(gatewayShift)
	default:
		s = s.without(gatewayShift)
	}
	s = s.without(localShift).plus(0) // a response proves the connection
	if s.ConsecutiveGatewayFailure() != 0 && s.ConsecutiveGatewayFailure() == o.ConsecutiveGatewayFailure {
		s = s.without(gatewayShift)
		detected |= DetectedGatewayFailure
	}
	if s.Consecutive5xx() == o.Consecutive5xx {
		s = s.without(0)
		detected |= Detected5xx
	}
	return s, detected
}

// Enforces reports whether the detections are to eject: each kind does with its
// enforcing percentage, independently. draw is 64 random bits, of which each
// kind uses two decimal digits.
func (o *Outlier) Enforces(d Detections, draw uint64) bool {
	return d&Detected5xx != 0 && draw%100 < uint64(o.EnforcingConsecutive5xx) ||
		d&DetectedGatewayFailure != 0 && draw/100%100 < uint64(o.EnforcingConsecutiveGatewayFailure) ||
		d&DetectedLocalOriginFailure != 0 && draw/10_000%100 < uint64(o.EnforcingConsecutiveLocalOriginFailure)
}

// MayEject reports whether one endpoint more may be ejected while ejected of
// total are: with it, no more than MaxEjectionPercent of them may be out of use.
// So the default of 10 ejects none of fewer than 10 endpoints, unless
// AlwaysEjectOneEndpoint is set.
func (o *Outlier) MayEject(ejected, total int) bool {
	if ejected >= total {
		return false
	}
	if o.AlwaysEjectOneEndpoint && ejected == 0 {
		return true
	}
	return 100*(int64(ejected)+1) <= int64(min(o.MaxEjectionPercent, 100))*int64(total)
}

// EjectionTime returns how long an ejection lasts for the given multiplier:
// BaseEjectionTime times it, at most MaxEjectionTime, without jitter.
func (o *Outlier) EjectionTime(multiplier uint32) time.Duration {
	if multiplier == 0 {
		return 0
	}
	if o.BaseEjectionTime > o.MaxEjectionTime/time.Duration(multiplier) {
		return o.MaxEjectionTime
	}
	return o.BaseEjectionTime * time.Duration(multiplier)
}

// Ejection is an endpoint's history of ejections. The zero value has none.
type Ejection struct {
	Ejected bool
	// Until is the earliest time of the sweep that ends the ejection.
	Until time.Time
	// Multiplier is how many times BaseEjectionTime the latest ejection lasts.
	// Each ejection adds one, each sweep that finds the endpoint in use takes one off.
	Multiplier uint32
}

// Eject returns the history after an ejection that begins now. draw is 64 random bits, for the jitter.
func (o *Outlier) Eject(e Ejection, now time.Time, draw uint64) Ejection {
	// The multiplier stops where the time has reached its maximum, so that it comes down again soon.
	if e.Multiplier == 0 || o.EjectionTime(e.Multiplier-1) < o.MaxEjectionTime {
		e.Multiplier++
	}
	jitter := time.Duration(draw % (uint64(max(o.MaxEjectionTimeJitter, 0)) + 1))
	e.Ejected = true
	e.Until = now.Add(plus(o.EjectionTime(e.Multiplier), jitter))
	return e
}

// Sweep returns the history after the check that takes place every Interval.
// ended reports that the ejection is over: the endpoint is in use again, and its
// Streak begins at zero.
func (o *Outlier) Sweep(e Ejection, now time.Time) (after Ejection, ended bool) {
	if !e.Ejected {
		if e.Multiplier > 0 {
			e.Multiplier--
		}
		return e, false
	}
	if now.Before(e.Until) {
		return e, false
	}
	e.Ejected = false
	return e, true
}
