package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// Code returns the gRPC code of an error of the mesh: one of the typed errors
// of outbound and inbound, a context's error, or a status error; codes.Unknown
// for others and codes.OK for nil.
//
//	not ready, no route, no healthy endpoint, breaker open,
//	limit, TLS that did not come about                       Unavailable
//	denied                                                   see Refusal
//	timeout, a deadline that passed                          DeadlineExceeded
//	cancelled by the caller                                  Canceled
//
// Unavailable for what policy lacks is gRPC's choice too (gRFC A27, A54): a
// caller can not tell a route that is missing from one that has not come. It is
// for limits as well (gRFC A32, and Envoy, which answers 503).
func Code(err error) codes.Code {
	var (
		notReady   *outbound.NotReadyError
		noRoute    *outbound.NoRouteError
		noEndpoint *outbound.NoHealthyEndpointError
		breaker    *outbound.BreakerOpenError
		limit      *outbound.LimitError
		timeout    *outbound.TimeoutError
		secure     *outbound.TLSError
		listener   *inbound.NotReadyError
		denied     *inbound.DeniedError
	)
	switch {
	case err == nil:
		return codes.OK
	case errors.As(err, &listener) && !tooLate(err):
		return codes.Unavailable
	case errors.As(err, &denied): // it may wrap the errors of a call to the authorizer
		return denialCode(denied)
	// The typed errors first: they may wrap a context's error, and say more than it.
	case errors.As(err, &notReady), errors.As(err, &noRoute), errors.As(err, &noEndpoint),
		errors.As(err, &breaker), errors.As(err, &limit), errors.As(err, &secure):
		return codes.Unavailable
	case errors.As(err, &timeout):
		return codes.DeadlineExceeded
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return codes.Unknown
}

// CallError returns the error for the caller of this process whose RPC the
// mesh ended: status.FromError finds Code and the whole message, and errors.As
// finds the typed error. nil gives nil.
func CallError(err error) error {
	if err == nil {
		return nil
	}
	return &callError{err: err, status: status.New(Code(err), err.Error())}
}

type callError struct {
	err    error
	status *status.Status
}

func (e *callError) Error() string              { return e.err.Error() }
func (e *callError) Unwrap() error              { return e.err }
func (e *callError) GRPCStatus() *status.Status { return e.status }

// tooLate says that an RPC was refused because its time had passed, whatever it has waited for.
func tooLate(err error) bool {
	var denied *inbound.DeniedError
	return errors.As(err, &denied) && denied.Reason == inbound.ReasonDeadline
}

// denialCode is the code of a refusal, never OK.
func denialCode(d *inbound.DeniedError) codes.Code {
	if d.GRPC != codes.OK {
		return d.GRPC
	}
	switch d.Reason {
	case inbound.ReasonPath, inbound.ReasonRedirect:
		return codes.InvalidArgument
	case inbound.ReasonRateLimit:
		return codes.ResourceExhausted
	case inbound.ReasonDeadline:
		return codes.DeadlineExceeded
	case inbound.ReasonToken, inbound.ReasonExternal, inbound.ReasonOverload:
		return httpCode(d.HTTPStatus)
	default:
		return codes.PermissionDenied
	}
}

// httpCode is gRPC's code for an HTTP status (http-grpc-status-mapping.md).
func httpCode(status int) codes.Code {
	switch status {
	case http.StatusBadRequest:
		return codes.Internal
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.Unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return codes.Unavailable
	default:
		return codes.Unknown
	}
}

// Refusal returns the status for the remote caller of an RPC that was not let
// in. Its message is what policy lets the caller know; rules and what the
// control plane said are not. The code is never OK:
//
//	no policy for the listener, no certificate             Unavailable
//	plaintext, peer or authorization                       PermissionDenied
//	a token that is missing or bad                         Unauthenticated
//	a token for another audience                           PermissionDenied
//	a name of a method that has more than one reading      InvalidArgument
//	a deadline that has passed                             DeadlineExceeded
//	more requests than can be answered in time             Unavailable
//	too many requests, the external authorizer             what policy says
//
// Where policy gives an HTTP status, the code is gRPC's for it; too many
// requests are ResourceExhausted where policy says nothing, because clients
// repeat what is Unavailable.
func Refusal(err error) *status.Status {
	var notReady *inbound.NotReadyError
	if errors.As(err, &notReady) && !tooLate(err) {
		return status.New(codes.Unavailable, fmt.Sprintf("mesh: not ready: no policy for the listener at %s", notReady.Address))
	}
	var denied *inbound.DeniedError
	if errors.As(err, &denied) {
		message := denied.Message
		if message == "" {
			message = "mesh: request refused"
		}
		return status.New(denialCode(denied), message)
	}
	code := Code(err)
	if code == codes.OK {
		code = codes.Unknown
	}
	return status.New(code, "mesh: request refused")
}
