package meshhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// sent is a request as the transport gets it.
type sent struct {
	request http.Request
	url     url.URL
}

// lane is an attempt and those that repeat it after it has failed, one at a
// time. A request has one, and in a race several side by side.
type lane struct {
	x       *exchange
	try     outbound.Try
	lease   outbound.Lease
	first   sent // of the first attempt
	outcome resilience.Outcome
	side    *side // nil without a race

	limit   *try               // of the present attempt; nil without time limits of its own
	gate    *gate              // that the present attempt has entered
	conn    *streamConn        // of HTTP/2, with a place for the present attempt; nil without
	secured *secured           // how policy secures the present attempt's connection; nil where it does not
	source  *outbound.Identity // of secured
	written *atomic.Bool       // whether the present attempt's header was written; nil where nobody asks
}

// context returns the context of the lane's attempts.
func (l *lane) context() context.Context {
	if l.side != nil {
		return l.side.ctx
	}
	return l.x.ctx
}

// run sends the request until there is a response, or an error that shall not
// be repeated. The outcome is that of the last attempt.
func (l *lane) run(policy *resilience.RetryPolicy) (*http.Response, error) {
	for {
		resp, err := l.once(policy)
		if err != nil {
			l.outcome.Err = err
			return nil, err
		}
		failed := l.outcome.Failure != resilience.NoFailure
		wait, again := time.Duration(0), false
		if policy != nil && !l.replaced() && l.x.bodies.again() {
			wait, again = l.try.Next(&l.outcome)
		}
		if !again {
			if failed {
				l.end()
				return nil, l.outcome.Err
			}
			return resp, nil
		}
		if resp != nil {
			drain(resp.Body)
		}
		l.end()
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-l.context().Done():
				timer.Stop()
				if l.x.ctx.Err() == nil {
					l.outcome.Failure, l.outcome.Err = resilience.Cancelled, errLost
				} else {
					l.outcome.Failure, l.outcome.Err = l.x.contextError(l.x.ctx.Err(), l.place())
				}
				return nil, l.outcome.Err
			}
		}
	}
}

// once sends the request once. An error means that nothing was sent and
// nothing more shall be; a failure on the wire is in l.outcome.
func (l *lane) once(policy *resilience.RetryPolicy) (*http.Response, error) {
	x := l.x
	l.outcome = resilience.Outcome{GRPC: -1}
	if l.side != nil && l.side.begun {
		l.side.begun = false
	} else {
		if err := x.call.Begin(&l.try); err != nil {
			l.outcome.Failure = resilience.Overflow
			return nil, err
		}
	}
	if err := l.try.Pick(&l.lease, nil); err != nil {
		return nil, err
	}
	x.sendCopies()
	if err := l.secure(); err != nil {
		if l.outcome.Failure = resilience.LocalError; l.context().Err() != nil {
			l.outcome.Failure = resilience.Cancelled
		}
		return nil, err
	}
	base := l.context()
	ctx := base
	if x.rt.options.Observer != nil {
		ctx = x.rt.options.Observer.TryStart(ctx, &l.try, l.lease.Endpoint())
	}
	spanned := ctx
	if policy != nil && policy.On&resilience.OnResetBeforeRequest != 0 {
		written := new(atomic.Bool)
		l.written = written
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { written.Store(true) }})
	}
	perTry, idle := l.try.Timeout(), l.try.IdleTimeout()
	if x.race != nil && x.race.onTimeout {
		if perTry > 0 {
			l.side.soft = time.AfterFunc(perTry, func() { x.race.late(l) })
		}
		perTry = 0
	}
	var parent *deadline // of which ctx is made, if only to have other values
	if x.limit.Context != nil && l.side == nil {
		parent = &x.limit
	}
	switch {
	case perTry > 0 || idle > 0:
		l.limit = new(try)
		l.limit.begin(&x.rt.clock, parent, ctx, l.began(), perTry, idle)
		ctx = &l.limit.ctx
	case parent != nil && ctx != base:
		ctx = within{parent, ctx}
	}
	resp, err := l.send(ctx)
	if l.side != nil && l.side.soft != nil {
		l.side.soft.Stop()
	}
	if err != nil {
		l.classify(err)
	} else {
		l.outcome.Status, l.outcome.Header = resp.StatusCode, resp.Header
		l.outcome.GRPC = grpcStatus(resp.Header)
		if l.lease.WantsLoad() {
			l.outcome.Load = loadReport(resp.Header)
		}
		x.idle.touch()
		if l.limit != nil {
			l.limit.headersCame()
		}
	}
	now := l.lease.Report(&l.outcome)
	if x.rt.options.Observer != nil {
		x.rt.options.Observer.TryEnd(spanned, &l.try, &l.outcome, now)
	}
	return resp, nil
}

var errTLSTwice = errors.New("policy secures the connection already, with a certificate for the server's name: call the http URL, or set the DestinationRule's tls mode to DISABLE")

// began returns when the present attempt's time begins: the first one's with the
// call's, unless it had to wait for a certificate.
func (l *lane) began() time.Time {
	if l.try.N() == 1 && l.secured == nil {
		return l.x.call.Ready()
	}
	return time.Now()
}

// secure finds what the attempt's connection is secured with, and waits for a
// certificate that has not come yet. An error means that nothing may be sent.
//
// Where the caller's URL is https and policy asks for mutual TLS of the mesh,
// the caller's TLS travels inside it, as it does between Istio's proxies.
// Inside TLS as on the web nobody expects a second one, so that is an error.
func (l *lane) secure() error {
	l.secured, l.source = nil, nil
	policy := l.lease.Security()
	if policy == nil || l.x.call.Passes() {
		return nil
	}
	s := l.lease.Wire().(*wire).secured[policy]
	if l.x.request.URL.Scheme == "https" && policy.Verify != snapshot.VerifySPIFFE {
		return &outbound.TLSError{Place: l.place(), Err: errTLSTwice}
	}
	src, err := s.source()
	if err != nil {
		return &outbound.TLSError{Place: l.place(), Err: fmt.Errorf("identity source: %w", err)}
	}
	if _, err := l.x.call.Material(l.context(), src, s.mutual()); err != nil {
		return err
	}
	l.secured, l.source = s, src
	return nil
}

// send puts the attempt on the wire.
func (l *lane) send(ctx context.Context) (*http.Response, error) {
	x := l.x
	body, err := x.bodies.next()
	if err != nil {
		return nil, err
	}
	to := &l.first
	if to.request.URL != nil {
		to = new(sent) // what has carried the one before may still look at it
	}
	out := &to.request
	if ctx != x.request.Context() {
		*out = *x.request.WithContext(ctx) // does not allocate: it is inlined
	} else {
		*out = *x.request
	}
	if hasBody(x.request) && (x.idle != nil || l.limit != nil && l.limit.idle != nil) {
		m := &moving{ReadCloser: body, call: x.idle}
		if l.limit != nil {
			m.try = l.limit.idle
		}
		body = m
	}
	out.Body = body
	if x.call.Passes() {
		if x.rt.options.Inject != nil {
			out.Header = x.rt.options.Inject(ctx, out.Header, false)
		}
		return x.rt.options.External.RoundTrip(out)
	}
	var outgoing outbound.Outgoing
	l.try.Outgoing(&l.lease, &outgoing)
	out.Header = outgoing.Header
	if x.rt.options.Inject != nil {
		out.Header = x.rt.options.Inject(ctx, out.Header, outgoing.Own)
	}
	wire := l.lease.Wire().(*wire)
	http2 := wire.usesHTTP2(ctx)
	if g := wire.gates[x.call.Priority()]; g != nil && !http2 {
		if limit := g.enter(ctx); limit != "" {
			closeBody(body)
			return nil, g.refusal(ctx, limit, l.place())
		}
		l.gate = g
	}
	if out.Host == "" {
		out.Host = x.request.URL.Host
	}
	if a := outgoing.Authority; a != x.call.Request.Authority {
		// net/http would send a Host that it finds wrong as an empty one.
		if a == "" || !httpguts.ValidHostHeader(a) || strings.ContainsAny(a, "/\\?#@ ") {
			closeBody(body)
			return nil, &requestError{fmt.Errorf("the route makes the authority %q, which is none", a)}
		}
		out.Host = a
	}
	to.url = *x.request.URL
	if r := &x.call.Request; outgoing.Path != r.Path || outgoing.RawQuery != r.RawQuery {
		setTarget(&to.url, outgoing.Path, outgoing.RawQuery)
	}
	to.url.Host = l.lease.Endpoint().Dial()
	out.URL = &to.url
	if n := wire.maxRequests; n > 1 && !http2 {
		out = lastOfConnection(out, n)
	}
	if l.secured == nil {
		return l.transmit(wire.transport(x.request.URL, http2), out)
	}
	host, inner := x.request.URL.Hostname(), ""
	if to.url.Scheme == "https" {
		inner = host
	}
	to.url.Scheme = "https"
	return l.transmit(l.secured.transport(l.source, host, inner, http2), out)
}

// transmit gives the request to the connections.
func (l *lane) transmit(c carrier, out *http.Request) (*http.Response, error) {
	s, ok := c.(*streams)
	if !ok {
		return c.RoundTrip(out)
	}
	resp, conn, err := s.send(out, l.x.call.Priority())
	l.conn = conn
	if limit, ok := err.(*outbound.LimitError); ok {
		limit.Place = l.place()
	}
	return resp, err
}

// end gives back what the present attempt holds, but not what the call holds.
func (l *lane) end() {
	if l.limit != nil {
		l.limit.end()
		l.limit = nil
	}
	if l.gate != nil {
		l.gate.leave()
		l.gate = nil
	}
	if l.conn != nil {
		l.conn.release()
		l.conn = nil
	}
	l.lease.Release()
}

func (l *lane) place() outbound.Place {
	p := l.x.call.Place()
	if e := l.lease.Endpoint(); e != nil {
		p.Endpoint = e.Address
	}
	return p
}
