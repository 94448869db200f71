package meshhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// dialError marks an error that came before any byte was sent.
type dialError struct{ err error }

func (e *dialError) Error() string   { return e.err.Error() }
func (e *dialError) Unwrap() error   { return e.err }
func (e *dialError) Timeout() bool   { var t net.Error; return errors.As(e.err, &t) && t.Timeout() }
func (e *dialError) Temporary() bool { return true }

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func markDialErrors(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
}

// streamError has the shape of net/http's HTTP/2 stream error, which is not
// exported but lets errors.As fill in any type of its shape.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return fmt.Sprintf("stream %d: code %d", e.StreamID, e.Code) }

// Error codes of RFC 9113, section 7.
const (
	protocolError = 0x1
	refusedStream = 0x7
)

// classify sets the outcome of an attempt whose transport returned err, before
// the response's headers or in its body.
func (l *lane) classify(err error) {
	o := &l.outcome
	o.Status, o.Header, o.GRPC = 0, nil, -1
	o.Err = err
	var limit *outbound.LimitError
	var dial *dialError
	var secure *tlsError
	switch {
	case errors.As(err, &limit):
		o.Failure = resilience.Overflow
	case l.x.ctx.Err() != nil:
		o.Failure, o.Err = l.x.contextError(l.x.ctx.Err(), l.place())
	case l.side != nil && l.side.ctx.Err() != nil:
		o.Failure, o.Err = resilience.Cancelled, errLost
	case l.limit != nil && l.limit.passed.Load():
		o.Failure = resilience.PerTryTimeout
		o.Err = &outbound.TimeoutError{Place: l.place(), Limit: "per_try_timeout", After: l.try.Timeout()}
	case l.limit != nil && l.limit.idle.expired():
		o.Failure = resilience.PerTryTimeout
		o.Err = &outbound.TimeoutError{Place: l.place(), Limit: "per_try_idle_timeout", After: l.limit.idle.limit}
	case l.unsendable(err):
		o.Failure = resilience.LocalError
		o.Err = fmt.Errorf("mesh: %s: %w", l.place(), err)
	case errors.As(err, &secure) && errors.Is(err, source.ErrNotReady):
		// It expired in this moment: no fault of the endpoint's.
		o.Failure = resilience.LocalError
		o.Err = &outbound.NotReadyError{Place: l.place(), Missing: "certificate", Err: secure.err}
	case secure != nil:
		o.Failure = resilience.ConnectFailure
		o.Err = &outbound.TLSError{Place: l.place(), Err: secure.err}
	case handshakeError(err) || refusedHandshake(err):
		o.Failure = resilience.ConnectFailure
		o.Err = &outbound.TLSError{Place: l.place(), Err: err}
	case errors.As(err, &dial), unusable(err):
		o.Failure = resilience.ConnectFailure
		o.Err = fmt.Errorf("mesh: %s: %w", l.place(), err)
	case refused(err):
		o.Failure = resilience.RefusedStream
		o.Err = fmt.Errorf("mesh: %s: %w", l.place(), err)
	default:
		o.Failure = resilience.Reset
		if l.written != nil && !l.written.Load() {
			o.Failure = resilience.ResetBeforeRequest
		}
		o.Err = fmt.Errorf("mesh: %s: %w", l.place(), err)
	}
}

// requestError marks an error that is the request's own.
type requestError struct{ err error }

func (e *requestError) Error() string { return e.err.Error() }
func (e *requestError) Unwrap() error { return e.err }

// unsendable reports whether the attempt failed because of the caller's
// request: a header or method that HTTP does not allow, a body that fails or
// has another length than it says. Endpoints must not be blamed for it, and
// another attempt would fail as well. It is asked only of failed attempts.
func (l *lane) unsendable(err error) bool {
	var own *requestError
	if errors.As(err, &own) || l.x.bodies.failure() != nil {
		return true
	}
	req := l.x.request
	if req.Header == nil || req.Method != "" && !httpguts.ValidHeaderFieldName(req.Method) {
		return true
	}
	for _, h := range []http.Header{req.Header, req.Trailer} {
		for name, values := range h {
			if !httpguts.ValidHeaderFieldName(name) {
				return true
			}
			for _, v := range values {
				if !httpguts.ValidHeaderFieldValue(v) {
					return true
				}
			}
		}
	}
	// The innermost error is net/http's own: outer ones may quote what a server has sent.
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	for _, text := range []string{"http: ContentLength=", "http: Request.ContentLength=", "http: invalid Host header", "http2: request body "} {
		if strings.HasPrefix(err.Error(), text) {
			return true
		}
	}
	return false
}

// handshakeError reports whether TLS did not come about, so that no request was sent.
func handshakeError(err error) bool {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	return errors.As(err, &certificate) || errors.As(err, &record) || errors.As(err, &alert) ||
		err.Error() == "net/http: TLS handshake timeout"
}

// refused reports whether the peer says that it did not process the request: by
// REFUSED_STREAM, or by a GOAWAY that leaves the request's stream out. net/http
// sends such a request again by itself where it can. Where it can not, because
// the body can not be had again, it has only a text for the reason, and for
// GOAWAY it has only a text anyway. Texts are compared from their beginning:
// further on an error may quote what the server has sent.
func refused(err error) bool {
	var stream streamError
	if errors.As(err, &stream) {
		return stream.Code == refusedStream
	}
	text, _ := strings.CutPrefix(err.Error(), "http2: Transport: cannot retry err [")
	return strings.HasPrefix(text, "http2: Transport received Server's graceful shutdown GOAWAY") ||
		strings.HasPrefix(text, "http2: Transport received GOAWAY from server ErrCode:") ||
		strings.HasPrefix(text, "stream error: ") && strings.Contains(text, "; REFUSED_STREAM; ")
}

// grpcStatus returns the grpc-status of a trailers-only gRPC response, or -1.
func grpcStatus(h http.Header) int {
	v := h["Grpc-Status"]
	if len(v) == 0 {
		return -1
	}
	n, err := strconv.Atoi(v[0])
	if err != nil {
		return -1
	}
	return n
}
