package resilience

import (
	"math"
	"testing"
	"time"
)

func TestGRPCTimeout(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "4m": 4 * time.Millisecond, "5u": 5 * time.Microsecond, "6n": 6,
		"00000001S": time.Second, "99999999H": math.MaxInt64, "0m": 0,
		"": -1, "S": -1, "1": -1, "1s": -1, "1 S": -1, "+1S": -1, "-1S": -1, "1.5S": -1, "123456789S": -1, "1SS": -1,
	} {
		d, ok := GRPCTimeout(in)
		if !ok {
			d = -1
		}
		if d != want {
			t.Errorf("%q: %v, want %v", in, d, want)
		}
	}
}
