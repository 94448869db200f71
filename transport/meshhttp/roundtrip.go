// Package meshhttp carries HTTP through the mesh: an http.RoundTripper for
// clients, middleware and a listener for servers. What it decides about a
// request it asks of the engines in outbound and inbound; its own are the
// bodies, the connections and what errors of net/http mean.
package meshhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// ClientOptions configure a RoundTripper.
type ClientOptions struct {
	// Observer is the engine's; nil for none.
	Observer outbound.Observer
	// Inject returns the header with the context's trace context added. The
	// header that it is given stays as it is, unless own says that it need not.
	// nil adds nothing.
	Inject func(ctx context.Context, h http.Header, own bool) http.Header
	// Replay is how many bytes of a request's body are kept for a retry where
	// the request has no GetBody. Zero means 64 KiB; negative keeps nothing.
	Replay int64
	// External carries requests to hosts outside the mesh; nil means a
	// transport like http.DefaultTransport with more idle connections.
	External http.RoundTripper
}

const defaultReplay = 64 << 10

// RoundTripper sends each request where policy says. It is safe for concurrent use.
type RoundTripper struct {
	engine  *outbound.Engine
	options ClientOptions
	clock   clock
	copies  copies
}

// NewRoundTripper returns a RoundTripper on an engine whose wires come from NewWire.
func NewRoundTripper(e *outbound.Engine, o ClientOptions) *RoundTripper {
	if o.Replay == 0 {
		o.Replay = defaultReplay
	}
	if o.External == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, maxIdlePerEndpoint
		dial := t.DialContext
		t.DialContext = markDialErrors(dial)
		o.External = t
	}
	rt := &RoundTripper{engine: e, options: o}
	rt.copies.ctx, rt.copies.cancel = context.WithCancel(context.Background())
	return rt
}

// Close ends the copies of requests that are under way to mirrors, and waits
// for them, and closes idle connections to hosts outside the mesh. Other
// requests are not affected.
func (rt *RoundTripper) Close() {
	rt.copies.close()
	rt.CloseIdleConnections()
}

// CloseIdleConnections closes the idle connections to hosts outside the mesh;
// those of clusters close by their idle timeout and with the engine.
func (rt *RoundTripper) CloseIdleConnections() {
	if c, ok := rt.options.External.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// exchange is one request and its response: all state of RoundTrip in one
// allocation, and the response's body that the caller reads.
type exchange struct {
	own     outbound.Call
	call    *outbound.Call // own, or the call of a copy for a mirror
	first   lane           // the only one, but in a race
	race    *race          // nil where no attempts run side by side
	rt      *RoundTripper
	request *http.Request
	ctx     context.Context // the call's: the request's, the span, the route's time limits
	limit   deadline        // ctx, if it was begun
	idle    *idle           // nil without an idle limit

	copies atomic.Pointer[[]*exchange] // for mirrors, until the request has an endpoint; nil without

	bodies   bodies         // the request's
	response *http.Response // what the caller has
	body     io.ReadCloser  // the response's
	finished atomic.Bool
	parts    atomic.Int32 // in a race: attempts that have not ended, and the response
}

// RoundTrip implements http.RoundTripper. Beside the errors of net/http it
// returns outbound's typed errors. The time limits of the route cover the
// response's body, so the body must be closed, as ever.
//
// Where policy itself answers (a redirect, a direct response, an injected
// fault, a CORS preflight, a missing cluster) the response is as a server's.
// The path that is sent, the authority and headers are those that policy makes
// of the request's; the response's Request is the caller's.
func (rt *RoundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || (req.URL.Scheme != "http" && req.URL.Scheme != "https") || req.URL.Host == "" {
		closeBody(req.Body)
		return nil, fmt.Errorf("mesh: request needs an http or https URL with a host, has %q", redactedURL(req.URL))
	}
	x := &exchange{rt: rt, request: req, ctx: req.Context()}
	x.call, x.first.x = &x.own, x
	view(req, &x.call.Request)
	err := rt.engine.Decide(x.ctx, x.call, req.URL.Host, req.URL.Scheme)
	if rt.options.Observer != nil {
		x.ctx = rt.options.Observer.CallStart(x.ctx, x.call)
	}
	if err != nil {
		closeBody(req.Body)
		return nil, x.fail(resilience.Outcome{GRPC: -1, Err: err})
	}
	if delay := x.call.Delay(); delay > 0 {
		if err := x.hold(delay); err != nil {
			closeBody(req.Body)
			return nil, x.fail(resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled, Err: err})
		}
	}
	if local := x.call.Local(); local != nil {
		closeBody(req.Body)
		resp := localResponse(req, local)
		x.first.outcome = resilience.Outcome{Status: resp.StatusCode, GRPC: grpcStatus(resp.Header)}
		x.finish()
		return resp, nil
	}
	x.begin()
	resp, err := x.attempts()
	if err != nil {
		x.winner().outcome.Err = err
		x.finish()
		return nil, err
	}
	return x.hand(resp), nil
}

// fail ends the exchange before any attempt.
func (x *exchange) fail(o resilience.Outcome) error {
	x.first.outcome = o
	x.finish()
	return o.Err
}

// winner returns the lane whose outcome is the call's.
func (x *exchange) winner() *lane {
	if x.race != nil && x.race.winner != nil {
		return x.race.winner
	}
	return &x.first
}

// hold keeps the request for as long as an injected fault asks for.
func (x *exchange) hold(delay time.Duration) error {
	defer x.call.EndDelay()
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-x.ctx.Done():
		return x.ctx.Err()
	}
}

// begin starts the call's time limits.
func (x *exchange) begin() {
	timeout, idle := x.call.Timeout(), x.call.IdleTimeout()
	switch {
	case timeout > 0:
		x.limit.begin(&x.rt.clock, x.ctx, x.call.Ready(), timeout)
	case idle > 0:
		x.limit.under(x.ctx)
	default:
		return
	}
	x.ctx = &x.limit
	if idle > 0 {
		x.idle = newIdle(&x.rt.clock, idle, &x.limit)
	}
}

// attempts sends the request until a response or error is the caller's.
func (x *exchange) attempts() (*http.Response, error) {
	policy := x.call.Retry()
	config := x.call.Cluster()
	source := x.request.Body
	if shadows := x.call.Shadows(); len(shadows) > 0 {
		source = x.mirror(shadows)
	}
	x.bodies.begin(x.request, source, policy != nil, config.Outlier != nil || config.Breaker != nil || config.Accrual != nil, x.rt.options.Replay)
	defer x.bodies.done()
	if initial, onTimeout := x.call.Hedges(); (initial > 1 || onTimeout) && x.repeatable() {
		return x.runRace(policy, initial, onTimeout)
	}
	resp, err := x.first.run(policy)
	x.first.try.Commit()
	return resp, err
}

// repeatable reports whether attempts can run side by side: each needs the
// whole body, and a connection that changes its protocol is one party's alone.
func (x *exchange) repeatable() bool {
	return (!hasBody(x.request) || x.request.GetBody != nil) && x.request.Header["Upgrade"] == nil
}

// finish ends the exchange unless it has ended.
func (x *exchange) finish() {
	if !x.finished.Swap(true) {
		x.end()
	}
}

// end frees all that the exchange holds: attempt, call, time limits.
func (x *exchange) end() {
	l := x.winner()
	l.end()
	if l.side != nil {
		l.side.stop(nil)
	}
	if x.race == nil {
		x.close()
	} else {
		x.part()
	}
}

// part ends one of the parts of a race; the last one ends the call.
func (x *exchange) part() {
	if x.parts.Add(-1) == 0 {
		x.close()
	}
}

func (x *exchange) close() {
	x.idle.stop()
	x.dropCopies()
	x.call.Finish(&x.winner().outcome)
	if x.limit.Context != nil {
		x.limit.end()
	}
}

// hand makes the response the caller's: the exchange ends with its body.
func (x *exchange) hand(resp *http.Response) *http.Response {
	l := x.winner()
	l.outcome.Header = nil // the caller may change it from now on
	if resp.Header == nil {
		resp.Header = make(http.Header)
	}
	if !x.call.Passes() {
		x.call.Incoming(&l.lease, resp.StatusCode, resp.Header, routing.CanonicalHeaders)
	}
	resp.Request = x.request
	if resp.Body == nil || resp.Body == http.NoBody {
		x.finish()
		return resp
	}
	x.body, x.response = resp.Body, resp
	if tunnels(x.request, resp) {
		x.tunnel(resp.Body)
	}
	if writer, ok := resp.Body.(io.Writer); ok {
		// 101 Switching Protocols: the caller writes to the body as well.
		resp.Body = &upgraded{exchange: x, writer: writer}
	} else {
		resp.Body = x
	}
	return resp
}

// Read implements io.Reader for the response's body.
func (x *exchange) Read(p []byte) (int, error) {
	n, err := x.body.Read(p)
	x.moved()
	// Close may run at the same time: who is first owns the exchange.
	if err != nil && !x.finished.Swap(true) {
		if err != io.EOF {
			l := x.winner()
			status := l.outcome.Status
			l.classify(err)
			l.outcome.Status, err = status, l.outcome.Err
		} else if l := x.winner(); len(x.response.Trailer) > 0 && l.lease.WantsLoad() {
			l.lease.ReportLoad(loadReport(x.response.Trailer))
		}
		x.end()
	}
	return n, err
}

// moved notes that bytes of the response have moved.
func (x *exchange) moved() {
	x.idle.touch()
	if limit := x.winner().limit; limit != nil {
		limit.idle.touch()
	}
}

// Close implements io.Closer for the response's body.
func (x *exchange) Close() error {
	err := x.body.Close()
	x.finish()
	return err
}

// upgraded is the body of a response that switched protocols.
type upgraded struct {
	*exchange
	writer io.Writer
}

func (u *upgraded) Write(p []byte) (int, error) {
	n, err := u.writer.Write(p)
	u.moved()
	return n, err
}

// view fills in what the rules see of a request.
func view(req *http.Request, r *routing.Request) {
	r.Method = req.Method
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	r.Scheme = req.URL.Scheme
	r.Authority = req.Host
	if r.Authority == "" {
		r.Authority = req.URL.Host
	}
	if req.URL.Opaque != "" {
		r.Path, r.RawQuery, _ = strings.Cut(req.URL.RequestURI(), "?")
	} else {
		if r.Path = req.URL.EscapedPath(); r.Path == "" {
			r.Path = "/"
		}
		r.RawQuery = req.URL.RawQuery
	}
	r.Header = req.Header
}

// contextError says whose time limit or cancellation ended x.ctx.
func (x *exchange) contextError(err error, at outbound.Place) (resilience.Failure, error) {
	switch {
	case x.request.Context().Err() != nil:
		return resilience.Cancelled, x.request.Context().Err()
	case x.idle.expired():
		return resilience.RouteTimeout, &outbound.TimeoutError{Place: at, Limit: "idle_timeout", After: x.idle.limit}
	case errors.Is(err, context.DeadlineExceeded) && x.call.Timeout() > 0:
		after := x.call.Timeout()
		if x.limit.tunnel != nil {
			after = x.call.StreamTimeout()
		}
		return resilience.RouteTimeout, &outbound.TimeoutError{Place: at, Limit: "timeout", After: after}
	}
	return resilience.Cancelled, err
}

func redactedURL(u *url.URL) string {
	if u == nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
