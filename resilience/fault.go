package resilience

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

// Fault injects delays and failures into a share of the requests, before they
// are sent (envoy.extensions.filters.http.fault.v3.HTTPFault).
type Fault struct {
	// Headers must all match; none means every request.
	Headers []routing.HeaderMatch
	Delay   *FaultDelay
	Abort   *FaultAbort
	// MaxActive bounds the faults at one time; nil means no limit.
	MaxActive *uint32
}

// FaultDelay holds requests before anything else.
type FaultDelay struct {
	Fixed      time.Duration
	FromHeader bool // x-envoy-fault-delay-request says how many milliseconds
	Fraction   routing.Fraction
	// Denominator is what x-envoy-fault-delay-request-percentage, which can lower
	// Fraction where FromHeader is set, counts in: 100, 10,000 or 1,000,000; 0 means 100.
	Denominator uint32
}

// FaultAbort answers requests with an error.
type FaultAbort struct {
	Status     int  // HTTP; 0 where GRPC is set or the header decides
	GRPC       int  // -1 where Status is set or the header decides
	FromHeader bool // x-envoy-fault-abort-request or x-envoy-fault-abort-grpc-request
	Fraction   routing.Fraction
	// Denominator is what x-envoy-fault-abort-request-percentage counts in, as FaultDelay's.
	Denominator uint32
	// Body is the text of the answer; "" means "fault filter abort" (Envoy).
	Body string
}

// defaultFaultBody is what Envoy's filter answers with.
const defaultFaultBody = "fault filter abort"

// Text returns the body of the answer.
func (a *FaultAbort) Text() string {
	if a.Body == "" {
		return defaultFaultBody
	}
	return a.Body
}

// FaultVerdict is what is done to one request. Both may be done: the delay is first.
type FaultVerdict struct {
	Delay time.Duration // 0: none
	HTTP  int           // the status to answer with; 0: the request goes on, or GRPC is set
	GRPC  int           // the grpc-status to answer with; -1: none
}

// NoFault is the verdict on a request that nothing is done to.
var NoFault = FaultVerdict{GRPC: -1}

// Aborts reports whether the request is answered rather than sent.
func (v FaultVerdict) Aborts() bool { return v.HTTP != 0 || v.GRPC >= 0 }

// GRPCStatus returns the grpc-status that answers a gRPC request. OK is no answer
// to a call without a message: it becomes UNKNOWN.
func (v FaultVerdict) GRPCStatus() int {
	switch {
	case v.GRPC > 0:
		return v.GRPC
	case v.GRPC == 0:
		return 2
	}
	return GRPCStatusOf(v.HTTP)
}

var (
	faultDelayHeader        = routing.NewHeaderName("x-envoy-fault-delay-request")
	faultDelayPercentHeader = routing.NewHeaderName("x-envoy-fault-delay-request-percentage")
	faultAbortHeader        = routing.NewHeaderName("x-envoy-fault-abort-request")
	faultAbortGRPCHeader    = routing.NewHeaderName("x-envoy-fault-abort-grpc-request")
	faultAbortPercentHeader = routing.NewHeaderName("x-envoy-fault-abort-request-percentage")
)

// Decide returns what is done to the request. The draws are 64 random bits each.
// MaxActive is the caller's to know. It does not allocate.
//
// Where a header decides and has no value that can be used, nothing is done. A
// status from a header is from 200 to 599.
func (f *Fault) Decide(r *routing.Request, delayDraw, abortDraw uint64) FaultVerdict {
	v := NoFault
	for i := range f.Headers {
		if !f.Headers[i].Matches(r) {
			return v
		}
	}
	if d := f.Delay; d != nil {
		v.Delay = d.decide(r, delayDraw)
	}
	if a := f.Abort; a != nil {
		v.HTTP, v.GRPC = a.decide(r, abortDraw)
	}
	return v
}

func (d *FaultDelay) decide(r *routing.Request, draw uint64) time.Duration {
	if !d.FromHeader {
		if d.Fraction.Matches(draw) {
			return d.Fixed
		}
		return 0
	}
	if !lowered(d.Fraction, d.Denominator, &faultDelayPercentHeader, r).Matches(draw) {
		return 0
	}
	ms, ok := number(&faultDelayHeader, r)
	if !ok {
		return 0
	}
	return milliseconds(ms)
}

func (a *FaultAbort) decide(r *routing.Request, draw uint64) (http, grpc int) {
	if !a.FromHeader {
		if a.Fraction.Matches(draw) {
			return a.Status, a.GRPC
		}
		return 0, -1
	}
	if !lowered(a.Fraction, a.Denominator, &faultAbortPercentHeader, r).Matches(draw) {
		return 0, -1
	}
	if status, ok := number(&faultAbortHeader, r); ok && status >= 200 && status <= 599 {
		return int(status), -1
	}
	if status, ok := number(&faultAbortGRPCHeader, r); ok && status <= math.MaxInt32 {
		return 0, int(status)
	}
	return 0, -1
}

// lowered returns the share that a percentage header allows: never more than the policy's.
func lowered(f routing.Fraction, denominator uint32, name *routing.HeaderName, r *routing.Request) routing.Fraction {
	n, ok := number(name, r)
	if !ok {
		return f
	}
	if denominator == 0 {
		denominator = 100
	}
	if n >= uint64(denominator) {
		return f
	}
	return routing.Fraction{PerMillion: min(f.PerMillion, uint32(n*1_000_000/uint64(denominator)))}
}

// number reads the first value of a header as a whole number.
func number(name *routing.HeaderName, r *routing.Request) (uint64, bool) {
	values := name.In(r.Header, r.Form)
	if len(values) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(values[0], 10, 64)
	return n, err == nil
}

// milliseconds returns the duration, the longest one where it is longer than that.
func milliseconds(n uint64) time.Duration {
	if n > uint64(math.MaxInt64/time.Millisecond) {
		return math.MaxInt64
	}
	return time.Duration(n) * time.Millisecond
}

// Validate reports the first field with a value that has no meaning.
func (f *Fault) Validate() error {
	if d := f.Delay; d != nil {
		switch {
		case d.Fixed < 0:
			return fmt.Errorf("delay.fixed_delay: %v is negative", d.Fixed)
		case d.Fixed == 0 && !d.FromHeader:
			return fmt.Errorf("delay: neither fixed_delay nor header_delay is set")
		case d.Fixed != 0 && d.FromHeader:
			return fmt.Errorf("delay: both fixed_delay and header_delay are set")
		}
		if err := checkDenominator(d.Denominator); err != nil {
			return fmt.Errorf("delay.percentage: %w", err)
		}
	}
	a := f.Abort
	if a == nil {
		return nil
	}
	set := 0
	for _, is := range []bool{a.Status != 0, a.GRPC >= 0, a.FromHeader} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return fmt.Errorf("abort: %d of http_status, grpc_status and header_abort are set, want one", set)
	case a.Status != 0 && (a.Status < 200 || a.Status > 599):
		return fmt.Errorf("abort.http_status: %d is not from 200 to 599", a.Status)
	}
	if err := checkDenominator(a.Denominator); err != nil {
		return fmt.Errorf("abort.percentage: %w", err)
	}
	return nil
}

func checkDenominator(n uint32) error {
	switch n {
	case 0, 100, 10_000, 1_000_000:
		return nil
	}
	return fmt.Errorf("denominator: %d is not 100, 10000 or 1000000", n)
}
