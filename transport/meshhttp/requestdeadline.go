package meshhttp

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

const (
	expectedTimeout = "X-Envoy-Expected-Rq-Timeout-Ms"
	grpcTimeout     = "Grpc-Timeout"
	grpcContent     = "application/grpc"
)

// longestTimeout is beyond what any caller waits. Longer time limits are none.
const longestTimeout = 10 * 365 * 24 * time.Hour

// timeLimit reads how long the caller waits: x-envoy-expected-rq-timeout-ms, as
// Envoy and the mesh's own client send it, and of a gRPC call that net/http
// carries grpc-timeout. The shortest counts. What is no number is no limit. Whoever sends
// them can only shorten its own request, so they need no identity.
//
// https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#x-envoy-expected-rq-timeout-ms
func timeLimit(h http.Header) (limit time.Duration, ok bool) {
	for _, v := range h[expectedTimeout] {
		ms, err := strconv.ParseUint(v, 10, 64)
		if err != nil || ms > uint64(longestTimeout/time.Millisecond) {
			continue
		}
		if d := time.Duration(ms) * time.Millisecond; !ok || d < limit {
			limit, ok = d, true
		}
	}
	values := h[grpcTimeout]
	if len(values) == 0 || !isGRPC(h) {
		return limit, ok
	}
	for _, v := range values {
		if d, valid := resilience.GRPCTimeout(v); valid && d <= longestTimeout && (!ok || d < limit) {
			limit, ok = d, true
		}
	}
	return limit, ok
}

func isGRPC(h http.Header) bool {
	for _, v := range h["Content-Type"] {
		if strings.HasPrefix(v, grpcContent) {
			return true
		}
	}
	return false
}

// tunnel reports whether the request asks for a connection that outlives the answer.
func tunnel(r *http.Request) bool {
	return r.Method == http.MethodConnect || len(r.Header["Upgrade"]) > 0
}

// served is the deadline of a request that is being served: a deadline that hooks
// into the context above only when somebody waits for its end, because most
// handlers ask no more than when it is, or whether it has come.
type served struct {
	deadline
	mu     sync.Mutex
	unhook func() bool // nil until somebody waits
	ended  bool
}

// begin has the clock, which reads now, end the context after the limit. end must follow.
func (s *served) begin(c *clock, above context.Context, now time.Time, limit time.Duration) {
	d := &s.deadline
	d.Context, d.alarm.at, d.alarm.rings = above, now.Add(limit), d
	if at, ok := above.Deadline(); ok && at.Before(d.alarm.at) {
		d.alarm.at = at // the context above ends first, and says why
	} else {
		c.add(&d.alarm)
	}
}

func (s *served) end() {
	s.mu.Lock()
	unhook := s.unhook
	s.ended = true
	s.mu.Unlock()
	if unhook != nil {
		unhook()
	}
	s.deadline.end()
}

// wait has the end of the context above end this one.
func (s *served) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unhook == nil && !s.ended {
		s.unhook = context.AfterFunc(s.deadline.Context, s.inherit)
	}
}

// Done implements context.Context.
func (s *served) Done() <-chan struct{} {
	s.wait()
	return s.deadline.Done()
}

// AfterFunc is deadline's.
func (s *served) AfterFunc(f func()) (stop func() bool) {
	s.wait()
	return s.deadline.AfterFunc(f)
}

// Err implements context.Context. It knows at once when the context above has
// ended, which is how the engine learns that the connection is closed.
func (s *served) Err() error {
	if err := s.deadline.Err(); err != nil {
		return err
	}
	if s.deadline.Context.Err() != nil {
		s.inherit()
	}
	return s.deadline.Err()
}

// admittedContext is the deadline with the values of the context that the
// handler is given. It has AfterFunc, so that contexts which the handler makes
// of it need no goroutine each.
type admittedContext struct {
	served
	values context.Context // set before the handler is given it
}

// Value implements context.Context.
func (c *admittedContext) Value(key any) any { return c.values.Value(key) }
