package compile

import (
	"fmt"
	"math"
	"testing"
	"time"
)

func TestRouteTimeouts(t *testing.T) {
	const s = time.Second
	type limits struct {
		timeout, stream, idle time.Duration
		ownIdle               bool
		grpc                  string // maximum, offset, always
	}
	for _, tt := range []struct {
		action string
		want   limits
	}{
		{``, limits{timeout: 15 * s}},
		{`"timeout": "0s"`, limits{}},
		{`"timeout": "0s", "max_grpc_timeout": "0s"`, limits{}},
		{`"timeout": "0.25s", "max_grpc_timeout": "0.25s"`, limits{timeout: s / 4}},
		{`"max_grpc_timeout": "15s"`, limits{timeout: 15 * s}},
		{`"timeout": "5s", "max_grpc_timeout": "0s"`, limits{timeout: 5 * s, grpc: "0s 0s true"}},
		{`"timeout": "5s", "max_grpc_timeout": "5s", "grpc_timeout_offset": "1s"`, limits{timeout: 5 * s, grpc: "5s 1s true"}},
		{`"grpc_timeout_offset": "1s"`, limits{timeout: 15 * s}},
		// With max_stream_duration the other limits do not count.
		{`"timeout": "5s", "max_grpc_timeout": "1s", "max_stream_duration": {}`, limits{}},
		{`"max_stream_duration": {"max_stream_duration": "3s"}`, limits{stream: 3 * s}},
		{`"max_stream_duration": {"max_stream_duration": "3s", "grpc_timeout_header_max": "2s"}`, limits{stream: 3 * s, grpc: "2s 0s false"}},
		{`"max_stream_duration": {"grpc_timeout_header_max": "0s", "grpc_timeout_header_offset": "1s"}`, limits{grpc: "0s 1s false"}},
		{`"max_stream_duration": {"grpc_timeout_header_offset": "1s"}`, limits{}},
		{`"max_stream_duration": {"max_stream_duration": "0s"}`, limits{stream: math.MaxInt64}},
		{`"idle_timeout": "7s"`, limits{timeout: 15 * s, idle: 7 * s, ownIdle: true}},
		{`"idle_timeout": "0s"`, limits{timeout: 15 * s, ownIdle: true}},
		{`"timeout": "315576000000s"`, limits{timeout: math.MaxInt64}},
	} {
		r, err := oneRoute(t, toCluster(tt.action), "")
		if err != nil {
			t.Errorf("%s: %v", tt.action, err)
			continue
		}
		got := limits{timeout: r.Timeout, stream: r.MaxStreamDuration, idle: r.IdleTimeout, ownIdle: r.OwnIdleTimeout}
		if r.GRPCTimeout != nil {
			got.grpc = fmt.Sprint(*r.GRPCTimeout, r.GRPCTimeoutOffset, r.GRPCTimeoutAlways)
		} else if r.GRPCTimeoutOffset != 0 || r.GRPCTimeoutAlways {
			t.Errorf("%s: %+v", tt.action, r)
		}
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.action, got, tt.want)
		}
	}
}
