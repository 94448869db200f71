package mesh

import (
	"errors"

	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// The errors that the client side returns, for errors.As: of Client and
// RoundTripper, and of calls by "mesh:///", where status.FromError finds a code
// as well. Each names the host and, as far as they were known, the route, cluster
// and endpoint. An error of the network comes as the transport gave it, behind
// the same names, and the caller's own deadline as context.DeadlineExceeded.
// Over gRPC they are UNAVAILABLE, but for TimeoutError, which is DEADLINE_EXCEEDED.
type (
	// NotReadyError: the control plane has not given a policy for the host, or
	// there is no certificate to call it with. Err says why, as far as it is known.
	NotReadyError = outbound.NotReadyError
	// NoRouteError: policy sends the request nowhere: no route matches, policy for
	// the host is in error, or the host is unknown and RefuseExternal is set.
	NoRouteError = outbound.NoRouteError
	// NoHealthyEndpointError: the cluster has no endpoint to use, or there is none
	// in it at all.
	NoHealthyEndpointError = outbound.NoHealthyEndpointError
	// BreakerOpenError: the host's breaker refuses requests for a while.
	BreakerOpenError = outbound.BreakerOpenError
	// LimitError: a circuit breaker threshold was reached, which Limit names.
	LimitError = outbound.LimitError
	// TLSError: the connection could not be secured as policy asks. An
	// *identity.VerifyError in its chain names the rule that the server's
	// certificate breaks.
	TLSError = outbound.TLSError
	// TimeoutError: a time limit of policy passed. It is a timeout for net.Error,
	// and context.DeadlineExceeded for errors.Is.
	TimeoutError = outbound.TimeoutError
	// ListenerNotReadyError: there is no policy for the listener that a request
	// came in on. It is logged; the remote caller is answered 503 or UNAVAILABLE.
	ListenerNotReadyError = inbound.NotReadyError
)

// ErrClosed is the cause of errors after Close.
var ErrClosed = outbound.ErrClosed

// ErrNoBootstrap is returned by New where no bootstrap was given and WithoutControlPlane was not used.
var ErrNoBootstrap = errors.New("mesh: no bootstrap: use WithBootstrap, WithBootstrapFile, $GRPC_XDS_BOOTSTRAP or $GRPC_XDS_BOOTSTRAP_CONFIG, or WithoutControlPlane")
