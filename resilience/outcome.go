package resilience

import (
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Failure says how an attempt ended without a complete response.
type Failure uint8

const (
	NoFailure          Failure = iota
	ConnectFailure             // no connection: nothing was sent
	Reset                      // the connection or stream broke after the request was sent, in part or whole
	ResetBeforeRequest         // the connection or stream broke before the request's headers were sent
	RefusedStream              // REFUSED_STREAM or GOAWAY above the last stream: the peer did not process it
	PerTryTimeout              // the attempt's own time limit passed
	RouteTimeout               // the time limit of the whole request passed
	Overflow                   // refused here: a circuit breaker threshold was reached
	Cancelled                  // the caller gave up
	LocalError                 // the caller's request can not be sent: an invalid header, a body that fails
)

var failureNames = [...]string{
	NoFailure:          "none",
	ConnectFailure:     "connect failure",
	Reset:              "reset",
	ResetBeforeRequest: "reset before request",
	RefusedStream:      "refused stream",
	PerTryTimeout:      "per-try timeout",
	RouteTimeout:       "route timeout",
	Overflow:           "overflow",
	Cancelled:          "cancelled",
	LocalError:         "local error",
}

// String returns the failure in words, for messages.
func (f Failure) String() string {
	if int(f) < len(failureNames) {
		return failureNames[f]
	}
	return "unknown"
}

// Outcome is what an attempt came to, in terms that HTTP and gRPC share.
type Outcome struct {
	// Status is the HTTP status; 0 where no response came. A gRPC response has 200.
	Status int
	// GRPC is the grpc-status of the headers or a trailers-only response; -1 where there is none.
	GRPC    int
	Failure Failure
	// Header is the response's, for the retry rules that read it; may be nil.
	Header map[string][]string
	// Form is how the keys of Header are spelled.
	Form routing.HeaderForm
	// Load is what the endpoint said of its load; nil where it said nothing.
	Load *lb.LoadReport
	// Err is the error behind Failure, for the caller.
	Err error
}

// HTTPStatusOf returns the HTTP status that a gRPC status stands for (Envoy's
// Grpc::Utility::grpcToHttpStatus, which is google.rpc.Code's table).
func HTTPStatusOf(grpc int) int {
	switch grpc {
	case 0: // OK
		return 200
	case 1: // CANCELLED
		return 499
	case 3, 9, 11: // INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE
		return 400
	case 4: // DEADLINE_EXCEEDED
		return 504
	case 5: // NOT_FOUND
		return 404
	case 6, 10: // ALREADY_EXISTS, ABORTED
		return 409
	case 7: // PERMISSION_DENIED
		return 403
	case 8: // RESOURCE_EXHAUSTED
		return 429
	case 12: // UNIMPLEMENTED
		return 501
	case 14: // UNAVAILABLE
		return 503
	case 16: // UNAUTHENTICATED
		return 401
	}
	return 500 // UNKNOWN, INTERNAL, DATA_LOSS and codes that do not exist
}

// GRPCStatusOf returns the gRPC status that an HTTP status stands for
// (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
func GRPCStatusOf(http int) int {
	switch http {
	case 400:
		return 13 // INTERNAL
	case 401:
		return 16 // UNAUTHENTICATED
	case 403:
		return 7 // PERMISSION_DENIED
	case 404:
		return 12 // UNIMPLEMENTED
	case 429, 502, 503, 504:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}
