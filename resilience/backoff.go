package resilience

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

const (
	// DefaultBaseInterval is the first window of the pause before a retry (Envoy).
	DefaultBaseInterval = 25 * time.Millisecond
	// DefaultMaxFactor is the longest window as a multiple of the base interval (Envoy).
	DefaultMaxFactor = 10
	// DefaultRateLimitedMax is the longest pause that a response may ask for (Envoy).
	DefaultRateLimitedMax = 300 * time.Second
)

func (p *RetryPolicy) base() time.Duration {
	if p.BaseInterval > 0 {
		return p.BaseInterval
	}
	return DefaultBaseInterval
}

// Backoff returns the pause before the given retry, counted from 1. It is the
// remainder of the draw by a window that begins at BaseInterval and doubles with
// each retry up to MaxInterval: "full jitter", from zero up to but without the
// window (Envoy's JitteredExponentialBackOffStrategy). draw is 64 random bits.
func (p *RetryPolicy) Backoff(retry int, draw uint64) time.Duration {
	base := p.base()
	limit := p.MaxInterval
	if limit <= 0 {
		limit = DefaultMaxFactor * base
		if limit/DefaultMaxFactor != base {
			limit = base
		}
	}
	window := min(base, limit)
	for ; retry > 1 && window < limit; retry-- {
		if window > limit/2 {
			window = limit
		} else {
			window *= 2
		}
	}
	return time.Duration(draw % uint64(window))
}

// Delay returns the pause before the next attempt: what the response asks for
// if RateLimited reads it, else Backoff. retry counts from 1, and only retries
// whose pause was Backoff's; asked reports that the response decided.
func (p *RetryPolicy) Delay(o *Outcome, retry int, now time.Time, draw uint64) (pause time.Duration, asked bool) {
	if p.RateLimited != nil && o.Failure == NoFailure {
		if interval, ok := p.RateLimited.Interval(o.Header, o.Form, now); ok && interval > time.Millisecond {
			return plus(interval, time.Duration(draw%uint64(interval/2))), true
		}
	}
	return p.Backoff(retry, draw), false
}

// plus is a sum of two lengths of time, the longest one where it is longer:
// a sum that wraps around would be no time at all.
func plus(a, b time.Duration) time.Duration {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

var pushbackHeader = routing.NewHeaderName("grpc-retry-pushback-ms")

// Pushback reads what a gRPC response says of another attempt (gRFC A6,
// grpc-retry-pushback-ms): the pause before it, or, where the value is negative
// or no whole number, that there shall be none. asked is false where it says nothing.
func Pushback(o *Outcome) (pause time.Duration, asked, stop bool) {
	if o.GRPC < 0 || o.Failure != NoFailure {
		return 0, false, false
	}
	values := pushbackHeader.In(o.Header, o.Form)
	if len(values) == 0 {
		return 0, false, false
	}
	ms, err := strconv.ParseUint(values[0], 10, 31)
	if err != nil {
		return 0, false, true
	}
	return time.Duration(ms) * time.Millisecond, true, false
}

// ResetFormat is how a header tells when a rate limit ends.
type ResetFormat uint8

const (
	// ResetSeconds is a whole number of seconds from now, as in Retry-After.
	ResetSeconds ResetFormat = iota
	// ResetUnixTimestamp is a time as whole seconds since 1970.
	ResetUnixTimestamp
)

// ResetHeader is one header to read a pause from.
type ResetHeader struct {
	Name   routing.HeaderName
	Format ResetFormat
}

// RateLimitedBackoff reads the pause before a retry from the response
// (envoy.config.route.v3.RetryPolicy.RateLimitedRetryBackOff).
type RateLimitedBackoff struct {
	// Headers are asked in order; the first with a valid pause decides.
	Headers []ResetHeader
	// MaxInterval is the longest pause; a header that asks for a longer one is passed over. Zero means 300 s.
	MaxInterval time.Duration
}

// Validate reports the first field with a value that has no meaning.
func (b *RateLimitedBackoff) Validate() error {
	if len(b.Headers) == 0 {
		return fmt.Errorf("reset_headers: there is none")
	}
	for i, h := range b.Headers {
		if h.Name.String() == "" {
			return fmt.Errorf("reset_headers[%d].name: is empty", i)
		}
		if h.Format > ResetUnixTimestamp {
			return fmt.Errorf("reset_headers[%d].format: unknown value %d", i, h.Format)
		}
	}
	if b.MaxInterval < 0 {
		return fmt.Errorf("max_interval: %v is negative", b.MaxInterval)
	}
	return nil
}

// Interval returns the pause that the headers ask for. Only the first value of
// a header counts. A value that is not a whole number, lies in the past or
// exceeds MaxInterval is passed over.
func (b *RateLimitedBackoff) Interval(h map[string][]string, form routing.HeaderForm, now time.Time) (time.Duration, bool) {
	limit := b.MaxInterval
	if limit == 0 {
		limit = DefaultRateLimitedMax
	}
	for _, reset := range b.Headers {
		values := reset.Name.In(h, form)
		if len(values) == 0 {
			continue
		}
		seconds, err := strconv.ParseUint(values[0], 10, 63)
		if err != nil {
			continue
		}
		if reset.Format == ResetUnixTimestamp {
			unix := now.Unix()
			if int64(seconds) < unix {
				continue
			}
			seconds -= uint64(unix)
		}
		if seconds <= uint64(limit/time.Second) {
			return time.Duration(seconds) * time.Second, true
		}
	}
	return 0, false
}
