package meshgrpc

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// Code returns the gRPC code of an error of the mesh: one of the typed errors
// of outbound and inbound, a context's error, or a status error; codes.Unknown
// for others and codes.OK for nil.
//
//	not ready, no route, no healthy endpoint, breaker open   Unavailable
//	limit                                                    ResourceExhausted
//	timeout, a deadline that passed                          DeadlineExceeded
//	cancelled by the caller                                  Canceled
//
// Unavailable for what policy lacks is gRPC's choice too (gRFC A27, A54): a
// caller can not tell a route that is missing from one that has not come.
func Code(err error) codes.Code {
	var (
		notReady   *outbound.NotReadyError
		noRoute    *outbound.NoRouteError
		noEndpoint *outbound.NoHealthyEndpointError
		breaker    *outbound.BreakerOpenError
		limit      *outbound.LimitError
		timeout    *outbound.TimeoutError
		listener   *inbound.NotReadyError
	)
	switch {
	case err == nil:
		return codes.OK
	// The typed errors first: they may wrap a context's error, and say more than it.
	case errors.As(err, &notReady), errors.As(err, &noRoute), errors.As(err, &noEndpoint),
		errors.As(err, &breaker), errors.As(err, &listener):
		return codes.Unavailable
	case errors.As(err, &limit):
		return codes.ResourceExhausted
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

// Refusal returns the status for the remote caller of an RPC that was not let
// in. Its message names the kind of the error and the listener; what the
// control plane said is not for the caller. The code is never OK.
func Refusal(err error) *status.Status {
	var notReady *inbound.NotReadyError
	if errors.As(err, &notReady) {
		return status.New(codes.Unavailable, fmt.Sprintf("mesh: not ready: no policy for the listener at %s", notReady.Address))
	}
	code := Code(err)
	if code == codes.OK {
		code = codes.Unknown
	}
	return status.New(code, "mesh: request refused")
}
