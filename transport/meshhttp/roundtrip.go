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
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// ClientOptions configure a RoundTripper.
type ClientOptions struct {
	// Observer is the engine's; nil for none.
	Observer outbound.Observer
	// Inject returns the header with the context's trace context added; the
	// header that it is given stays as it is. nil adds nothing.
	Inject func(context.Context, http.Header) http.Header
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
	return &RoundTripper{engine: e, options: o}
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
	call    outbound.Call
	lease   outbound.Lease
	rt      *RoundTripper
	request *http.Request
	url     url.URL
	outcome resilience.Outcome

	parent  context.Context // the caller's
	ctx     context.Context // the call's: parent, the span, the route's time limit
	timeout time.Duration   // zero where limit is not used
	limit   deadline
	try     *try         // of the attempt that the response came from; nil without a per-try timeout
	gate    *gate        // that the present attempt has entered
	secured *secured     // how policy secures the present attempt's connection; nil where it does not
	source  *heldSource  // of secured
	written *atomic.Bool // whether the present attempt's header was written; nil where nobody asks

	bodies   bodies        // the request's
	body     io.ReadCloser // the response's
	finished atomic.Bool
}

// RoundTrip implements http.RoundTripper. Beside the errors of net/http it
// returns outbound's typed errors. The time limit of the route covers the
// response's body, so the body must be closed, as ever.
func (rt *RoundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || (req.URL.Scheme != "http" && req.URL.Scheme != "https") || req.URL.Host == "" {
		closeBody(req.Body)
		return nil, fmt.Errorf("mesh: request needs an http or https URL with a host, has %q", redactedURL(req.URL))
	}
	x := &exchange{rt: rt, request: req, parent: req.Context(), ctx: req.Context()}
	view(req, &x.call.Request)
	err := rt.engine.Decide(x.ctx, &x.call, req.URL.Host, req.URL.Scheme)
	if rt.options.Observer != nil {
		x.ctx = rt.options.Observer.CallStart(x.ctx, &x.call)
	}
	if err == nil {
		if x.timeout = x.call.Timeout(); x.timeout > 0 {
			x.limit.begin(&rt.clock, x.ctx, x.call.Ready(), x.timeout)
			x.ctx = &x.limit
		}
	}
	if err != nil {
		closeBody(req.Body)
		x.outcome = resilience.Outcome{GRPC: -1, Err: err}
		x.finish()
		return nil, err
	}
	resp, err := x.attempts()
	if err != nil {
		x.outcome.Err = err
		x.finish()
		return nil, err
	}
	return x.hand(resp), nil
}

// attempts sends the request until a response or error is the caller's.
func (x *exchange) attempts() (*http.Response, error) {
	policy := x.call.Retry()
	config := x.call.Cluster()
	x.bodies = newBodies(x.request, policy != nil, config.Outlier != nil || config.Breaker != nil, x.rt.options.Replay)
	defer x.bodies.done()
	for {
		resp, err := x.attempt(policy)
		if err != nil {
			return nil, err
		}
		failed := x.outcome.Failure != resilience.NoFailure
		wait, again := time.Duration(0), false
		if policy != nil && x.outcome.Failure != resilience.Cancelled && x.outcome.Failure != resilience.RouteTimeout && x.bodies.again() {
			wait, again = x.call.Next(&x.outcome)
		}
		if !again {
			x.call.Committed()
			if failed {
				x.endTry()
				return nil, x.outcome.Err
			}
			return resp, nil
		}
		if resp != nil {
			drain(resp.Body)
		}
		x.endTry()
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-x.ctx.Done():
				timer.Stop()
				return nil, x.contextError(x.ctx.Err())
			}
		}
	}
}

// attempt sends the request once. An error means that nothing was sent and
// nothing more shall be; a failure on the wire is in x.outcome.
func (x *exchange) attempt(policy *resilience.RetryPolicy) (*http.Response, error) {
	x.outcome = resilience.Outcome{GRPC: -1}
	if err := x.call.Begin(); err != nil {
		x.outcome.Failure = resilience.Overflow
		return nil, err
	}
	if err := x.call.Pick(&x.lease); err != nil {
		return nil, err
	}
	if err := x.secure(); err != nil {
		if x.outcome.Failure = resilience.LocalError; x.parent.Err() != nil {
			x.outcome.Failure = resilience.Cancelled
		}
		return nil, err
	}
	n, ctx := x.call.Attempts(), x.ctx
	if x.rt.options.Observer != nil {
		ctx = x.rt.options.Observer.TryStart(ctx, &x.call, n, x.lease.Endpoint())
	}
	spanned := ctx
	if policy != nil && policy.On&resilience.OnResetBeforeRequest != 0 {
		written := new(atomic.Bool)
		x.written = written
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { written.Store(true) }})
	}
	if x.timeout > 0 && ctx != x.ctx {
		ctx = within{&x.limit, ctx}
	}
	if policy != nil && policy.PerTryTimeout > 0 {
		x.try = newTry(ctx, policy.PerTryTimeout)
		ctx = x.try.ctx
	}
	resp, err := x.send(ctx)
	if err != nil {
		x.classify(err)
	} else {
		x.outcome.Status, x.outcome.Header = resp.StatusCode, resp.Header
		x.outcome.GRPC = grpcStatus(resp.Header)
		if x.try != nil {
			x.try.headersCame()
		}
	}
	x.lease.Report(&x.outcome)
	if x.rt.options.Observer != nil {
		x.rt.options.Observer.TryEnd(spanned, &x.call, n, &x.outcome)
	}
	return resp, nil
}

var errTLSTwice = errors.New("policy secures the connection already, with a certificate for the server's name: call the http URL, or set the DestinationRule's tls mode to DISABLE")

// secure finds what the attempt's connection is secured with, and waits for a
// certificate that has not come yet. An error means that nothing may be sent.
//
// Where the caller's URL is https and policy asks for mutual TLS of the mesh,
// the caller's TLS travels inside it, as it does between Istio's proxies.
// Inside TLS as on the web nobody expects a second one, so that is an error.
func (x *exchange) secure() error {
	x.secured, x.source = nil, nil
	policy := x.lease.Security()
	if policy == nil || x.call.Passes() {
		return nil
	}
	s := x.lease.Wire().(*wire).secured[policy]
	if x.request.URL.Scheme == "https" && policy.Verify != snapshot.VerifySPIFFE {
		return &outbound.TLSError{Place: x.place(), Err: errTLSTwice}
	}
	src, err := s.source()
	if err != nil {
		return &outbound.TLSError{Place: x.place(), Err: fmt.Errorf("identity source: %w", err)}
	}
	if _, err := x.call.Material(x.ctx, src, s.mutual()); err != nil {
		return err
	}
	x.secured, x.source = s, src
	return nil
}

// send puts the attempt on the wire.
func (x *exchange) send(ctx context.Context) (*http.Response, error) {
	body, err := x.bodies.next()
	if err != nil {
		return nil, err
	}
	out := x.request
	if ctx != x.parent {
		out = out.WithContext(ctx)
	} else {
		clone := *out
		out = &clone
	}
	out.Body = body
	if x.rt.options.Inject != nil {
		out.Header = x.rt.options.Inject(ctx, out.Header)
	}
	if x.call.Passes() {
		return x.rt.options.External.RoundTrip(out)
	}
	wire := x.lease.Wire().(*wire)
	if wire.gate != nil {
		if limit := wire.gate.enter(ctx); limit != "" {
			closeBody(body)
			return nil, wire.gate.refusal(ctx, limit, x.place())
		}
		x.gate = wire.gate
	}
	if out.Host == "" {
		out.Host = x.request.URL.Host
	}
	x.url = *x.request.URL
	x.url.Host = x.lease.Endpoint().Address
	out.URL = &x.url
	if n := wire.maxRequests; n > 1 {
		out = lastOfConnection(out, n)
	}
	if x.secured == nil {
		return wire.transport(x.request.URL).RoundTrip(out)
	}
	host, inner := x.request.URL.Hostname(), ""
	if x.url.Scheme == "https" {
		inner = host
	}
	x.url.Scheme = "https"
	return x.secured.transport(x.source, host, inner).RoundTrip(out)
}

// endTry gives back what the present attempt holds, but not what the call holds.
func (x *exchange) endTry() {
	if x.try != nil {
		x.try.end()
		x.try = nil
	}
	if x.gate != nil {
		x.gate.leave()
		x.gate = nil
	}
	x.lease.Release()
}

// finish ends the exchange unless it has ended.
func (x *exchange) finish() {
	if !x.finished.Swap(true) {
		x.end()
	}
}

// end frees all that the exchange holds: attempt, call, time limit.
func (x *exchange) end() {
	x.endTry()
	x.call.Finish(&x.outcome)
	if x.timeout > 0 {
		x.limit.end()
	}
}

// hand makes the response the caller's: the exchange ends with its body.
func (x *exchange) hand(resp *http.Response) *http.Response {
	resp.Request = x.request
	x.outcome.Header = nil // the caller may change it from now on
	if resp.Body == nil || resp.Body == http.NoBody {
		x.finish()
		return resp
	}
	x.body = resp.Body
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
	// Close may run at the same time: who is first owns the exchange.
	if err != nil && !x.finished.Swap(true) {
		if err != io.EOF {
			status := x.outcome.Status
			x.classify(err)
			x.outcome.Status, err = status, x.outcome.Err
		}
		x.end()
	}
	return n, err
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

func (u *upgraded) Write(p []byte) (int, error) { return u.writer.Write(p) }

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

func (x *exchange) place() outbound.Place {
	p := x.call.Place()
	if e := x.lease.Endpoint(); e != nil {
		p.Endpoint = e.Address
	}
	return p
}

// contextError says whose time limit or cancellation ended x.ctx.
func (x *exchange) contextError(err error) error {
	if x.parent.Err() != nil {
		x.outcome.Failure = resilience.Cancelled
		return x.parent.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) && x.timeout > 0 {
		x.outcome.Failure = resilience.RouteTimeout
		return &outbound.TimeoutError{Place: x.place(), Limit: "timeout", After: x.timeout}
	}
	x.outcome.Failure = resilience.Cancelled
	return err
}

func redactedURL(u *url.URL) string {
	if u == nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
