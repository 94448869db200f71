package outbound

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// timeLimits sets the time limits of the call, by the rules of Envoy's router
// (FilterUtility::finalTimeout) and of its connection manager for streams.
//
// The request's header x-envoy-upstream-rq-timeout-ms takes the place of the
// route's timeout, and 0 of it means none; x-envoy-upstream-rq-per-try-timeout-ms
// that of the policy's per-try timeout. A per-try timeout that is not less than
// the timeout of the call does not count.
func (c *Call) timeLimits(ctx context.Context) {
	r, form := c.route.snap, c.Request.Form
	if form == routing.CanonicalHeaders { // gRPC sends its own, in grpc-timeout
		if at, ok := ctx.Deadline(); ok {
			c.own = max(1, at.Sub(c.began))
		}
	}
	global, stream := r.Timeout, r.MaxStreamDuration
	if stream == 0 {
		stream = c.host.snap.MaxStreamDuration
	}
	if r.GRPCTimeout != nil && routing.IsGRPC(&c.Request) {
		own := c.ownDeadline(ctx)
		switch {
		case r.GRPCTimeoutAlways:
			if own > r.GRPCTimeoutOffset {
				own -= r.GRPCTimeoutOffset
			}
			if global = own; *r.GRPCTimeout > 0 && (own == 0 || own > *r.GRPCTimeout) {
				global = *r.GRPCTimeout
			}
		case own > 0:
			if *r.GRPCTimeout > 0 {
				own = min(own, *r.GRPCTimeout)
			}
			// What is left for the server may be nothing: then the limit passes at once.
			global, stream = 0, max(own-r.GRPCTimeoutOffset, 1)
		}
	}
	if c.perTry = 0; c.retry != nil {
		c.perTry = c.retry.PerTryTimeout
	}
	if h := c.Request.Header; c.told || c.host.snap.RespectExpectedTimeout {
		name := &upstreamTimeout
		if c.host.snap.RespectExpectedTimeout && len(h[expectedTimeout.key(form)]) > 0 {
			name = &expectedTimeout
		}
		if ms, ok := name.number(h, form); ok {
			global = milliseconds(ms)
		}
		if ms, ok := perTryTimeout.number(h, form); ok {
			c.perTry = milliseconds(ms)
		}
	}
	if global > 0 && c.perTry >= global {
		c.perTry = 0
	}
	c.global = global
	if c.limit = global; stream > 0 && (global == 0 || stream < global) {
		c.limit = stream
	}
}

// ownDeadline returns the time that a gRPC request brings along, or 0: by its
// header grpc-timeout, else by its context.
func (c *Call) ownDeadline(ctx context.Context) time.Duration {
	if values := c.Request.Header[grpcTimeout.key(c.Request.Form)]; len(values) > 0 {
		own, _ := resilience.GRPCTimeout(values[0])
		return own
	}
	if at, ok := ctx.Deadline(); ok {
		return max(at.Sub(c.Ready()), 1)
	}
	return 0
}

// milliseconds returns the duration, the longest one where it is longer than that.
func milliseconds(n uint64) time.Duration {
	if n > uint64(math.MaxInt64/time.Millisecond) {
		return math.MaxInt64
	}
	return time.Duration(n) * time.Millisecond
}

// Timeout returns the limit on the whole call, its attempts and its response's
// body, from Ready on; zero means none.
func (c *Call) Timeout() time.Duration { return c.limit }

// StreamTimeout is Timeout once the connection has become one of another
// protocol: the route's timeout is for the answer that makes it so (Envoy).
func (c *Call) StreamTimeout() time.Duration {
	if d := c.route.snap.MaxStreamDuration; d > 0 {
		return d
	}
	return c.host.snap.MaxStreamDuration
}

// IdleTimeout returns how long nothing may move on the call; zero means without limit.
func (c *Call) IdleTimeout() time.Duration { return c.route.snap.IdleTimeout }

// Retry returns the retry policy with what the request's headers ask for, or nil.
func (c *Call) Retry() *resilience.RetryPolicy { return c.retry }

// tells reports whether the server is told of a time limit. Hosts outside the
// mesh are told nothing.
func (c *Call) tells() bool {
	return !c.host.snap.SuppressHeaders && !c.host.pass && (c.global > 0 || c.perTry > 0 || c.own > 0)
}

// expected returns what x-envoy-expected-rq-timeout-ms tells the server of the
// time that an attempt has, in milliseconds: by policy, the request's headers and
// the caller's deadline, whichever comes first; nil where there is no limit.
func (c *Call) expected(n int) []string {
	if n == 1 && !c.told && c.own == 0 && c.route.expected != nil && c.route.snap.GRPCTimeout == nil {
		return c.route.expected
	}
	d := c.perTry
	if d == 0 || c.hedgesOnTimeout() {
		d = c.global
	}
	if c.global > 0 && n > 1 {
		d = min(d, c.global-time.Since(c.Ready()))
	}
	if c.own > 0 {
		if left := max(1, c.own-time.Since(c.began)); d == 0 || left < d {
			d = left
		}
	}
	if d == 0 {
		return nil
	}
	return []string{strconv.FormatInt(max(1, d.Milliseconds()), 10)}
}

// firstExpected returns what expected does for the first attempt of a request
// that asks for nothing else, so that it is made once.
func firstExpected(r *snapshot.Route) []string {
	d := time.Duration(0)
	if r.Retry != nil {
		d = r.Retry.PerTryTimeout
	}
	if d == 0 || r.Timeout > 0 && d >= r.Timeout || r.Hedge != nil && r.Hedge.OnPerTryTimeout {
		d = r.Timeout
	}
	if d == 0 {
		return nil
	}
	return []string{strconv.FormatInt(max(1, d.Milliseconds()), 10)}
}
