package resilience

import (
	"math"
	"time"
)

// GRPCTimeout reads a grpc-timeout: up to eight digits and a unit (gRPC over
// HTTP/2, PROTOCOL-HTTP2.md). ok is false where it is none. One that is longer
// than a Duration is the longest Duration.
func GRPCTimeout(s string) (d time.Duration, ok bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	var n, unit time.Duration
	for _, digit := range []byte(s[:len(s)-1]) {
		if digit < '0' || digit > '9' {
			return 0, false
		}
		n = n*10 + time.Duration(digit-'0')
	}
	switch s[len(s)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	if n > math.MaxInt64/unit {
		return math.MaxInt64, true
	}
	return n * unit, true
}
