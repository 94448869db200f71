package meshgrpc

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	// Its parser gives the balancer what servers report of their load.
	_ "google.golang.org/grpc/orca"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// connectError says that an RPC was not sent because there is no connection.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// GRPCStatus has gRPC hand the error to the interceptor as it is.
func (e *connectError) GRPCStatus() *status.Status {
	return status.New(codes.Unavailable, e.err.Error())
}

// policyError says that policy has ended an RPC in the picker.
type policyError struct{ err error }

func (e *policyError) Error() string { return e.err.Error() }
func (e *policyError) Unwrap() error { return e.err }

// GRPCStatus has gRPC hand the error to the interceptor as it is. gRPC allows a
// picker few codes (gRFC A54).
func (e *policyError) GRPCStatus() *status.Status {
	switch code := Code(e.err); code {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted, codes.OutOfRange, codes.DataLoss, codes.OK:
		return status.New(codes.Internal, e.err.Error())
	default:
		return status.New(code, e.err.Error())
	}
}

// classify fills in the outcome of an attempt that gRPC has ended with err. The caller holds a.mu.
func (a *attempt) classify(err error, p *choice) {
	o := &a.outcome
	*o = resilience.Outcome{GRPC: -1, Form: routing.LowerHeaders}
	var info balancer.DoneInfo
	if p != nil {
		info = p.info
	}
	if err == nil {
		answered(o, &info)
		return
	}
	a.classifyError(err, p, &info)
}

// classifyError fills in the outcome of an attempt that has failed.
func (a *attempt) classifyError(err error, p *choice, info *balancer.DoneInfo) {
	r, o := a.rpc, &a.outcome
	var connect *connectError
	var policy *policyError
	var none *outbound.NoHealthyEndpointError
	switch {
	case errors.As(err, &connect):
		o.Failure, o.Err = resilience.ConnectFailure, CallError(connect)
		return
	case errors.As(err, &policy):
		o.Err = CallError(policy.err)
		return
	case errors.As(err, &none):
		o.Err = CallError(none)
		return
	case status.Code(err) == codes.DeadlineExceeded && a.overdue():
		// The server has the limit from here: that it says so first changes nothing.
	case len(info.Trailer) > 0, info.BytesReceived && !brokeOff(err) && !a.overdue():
		info.Err = err
		answered(o, info)
		o.Err = err
		return
	}
	o.Err = err
	switch {
	case over(r.parent, nil), a.above != nil && context.Cause(a.above) == errAbandoned:
		o.Failure = resilience.Cancelled
	case r.timeout > 0 && over(r.ctx, errRouteTimeout):
		o.Failure = resilience.RouteTimeout
		o.Err = CallError(&outbound.TimeoutError{Place: a.place(p), Limit: "timeout", After: r.timeout})
	case r.ctx != nil && context.Cause(r.ctx) == errIdle:
		o.Failure = resilience.RouteTimeout
		o.Err = CallError(&outbound.TimeoutError{Place: a.place(p), Limit: "idle_timeout", After: r.call.IdleTimeout()})
	case a.limits.idled():
		o.Failure = resilience.PerTryTimeout
		o.Err = CallError(&outbound.TimeoutError{Place: a.place(p), Limit: "per_try_idle_timeout", After: a.limits.idle})
	case a.limits.expired():
		o.Failure = resilience.PerTryTimeout
		o.Err = CallError(&outbound.TimeoutError{Place: a.place(p), Limit: "per_try_timeout", After: a.limits.try})
	case a.taken == nil, p != nil && p.ended && !info.BytesSent:
		// Nothing was sent: the RPC can not be (as where its credentials fail), or
		// an interceptor of the caller's has ended it.
		o.Failure = resilience.LocalError
	case refusedStream(err):
		o.Failure = resilience.RefusedStream
	case info.BytesReceived:
		o.Failure = resilience.Reset
	case !brokeOff(err):
		o.Failure = resilience.LocalError
	default:
		o.Failure = resilience.Reset
	}
}

// overdue reports whether a context has ended the attempt, so that the error may be of it alone.
func (a *attempt) overdue() bool {
	r := a.rpc
	return over(r.parent, nil) || r.ctx != nil && over(r.ctx, nil) || a.above != nil && a.above.Err() != nil || a.limits.expired() || a.limits.idled()
}

func (a *attempt) place(p *choice) outbound.Place {
	place := a.rpc.call.Place()
	if p != nil {
		if e := p.lease.Endpoint(); e != nil {
			place.Endpoint = e.Address
		}
	}
	return place
}

// answered fills in what the server has answered. As in Envoy only a status
// that stands in the response's headers (Trailers-Only) is the outcome's.
func answered(o *resilience.Outcome, info *balancer.DoneInfo) {
	o.Status, o.GRPC, o.Form = http.StatusOK, -1, routing.LowerHeaders
	if report, ok := info.ServerLoad.(*orcav3.OrcaLoadReport); ok { // as gRPC has read it
		o.Load = outbound.LoadReport(report)
	}
	if info.Err == nil {
		return
	}
	if n := httpStatus(info.Err); n != 0 {
		o.Status = n
		return
	}
	// gRPC keeps the content-type, which trailers after headers do not have.
	if _, only := info.Trailer["content-type"]; only {
		o.GRPC = int(status.Code(info.Err))
		o.Header = info.Trailer
	}
}

// unexpectedStatus is how gRPC begins the message for a response that is not gRPC's.
const unexpectedStatus = "unexpected HTTP status code received from server: "

// httpStatus returns the HTTP status of a response that was not gRPC's; 0 if it was.
func httpStatus(err error) int {
	rest, ok := strings.CutPrefix(status.Convert(err).Message(), unexpectedStatus)
	if !ok {
		return 0
	}
	digits, _, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 100 || n > 999 {
		return 0
	}
	return n
}

// resetPrefix is how gRPC begins the message for a stream that the server has reset.
const resetPrefix = "stream terminated by RST_STREAM with error code: "

// brokeOff reports whether the connection or the stream has ended before the RPC.
// gRPC has no type for it: what it says itself begins in these ways.
func brokeOff(err error) bool {
	s := status.Convert(err)
	message := s.Message()
	if strings.HasPrefix(message, resetPrefix) {
		return true
	}
	if strings.HasPrefix(message, unexpectedStatus) {
		return false
	}
	switch s.Code() {
	case codes.Unavailable:
		return true
	case codes.Internal:
		return strings.HasPrefix(message, "unexpected EOF") || strings.HasPrefix(message, "server closed the stream without sending trailers")
	}
	return false
}

// refusedStream reports whether the server says that it has not processed the RPC.
func refusedStream(err error) bool {
	message := status.Convert(err).Message()
	return strings.HasPrefix(message, resetPrefix+"REFUSED_STREAM") ||
		strings.HasPrefix(message, "the connection is draining") || strings.HasPrefix(message, "the stream is rejected because server is draining")
}

// localError is the status that policy itself answers with, as Envoy does: the
// HTTP status becomes gRPC's, and the body is the message.
func localError(l *outbound.Local) error {
	code := codes.Code(max(l.GRPC, 0))
	if l.GRPC < 0 {
		code = httpCode(l.Status)
	}
	if code == codes.OK {
		return nil
	}
	return status.Error(code, l.Body)
}
