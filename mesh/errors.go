package mesh

import (
	"errors"

	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// The errors that the client side returns, for errors.As. Each names the host
// and, as far as they were known, the route, cluster and endpoint.
type (
	// NotReadyError: the control plane has not given a policy for the host, or
	// there is no certificate to call it with.
	NotReadyError = outbound.NotReadyError
	// NoRouteError: policy sends the request nowhere.
	NoRouteError = outbound.NoRouteError
	// NoHealthyEndpointError: the cluster has no endpoint to use.
	NoHealthyEndpointError = outbound.NoHealthyEndpointError
	// BreakerOpenError: the host's breaker refuses requests for a while.
	BreakerOpenError = outbound.BreakerOpenError
	// LimitError: a circuit breaker threshold was reached.
	LimitError = outbound.LimitError
	// TLSError: the connection could not be secured as policy asks. An
	// *identity.VerifyError in its chain names the rule that the server's
	// certificate breaks.
	TLSError = outbound.TLSError
	// TimeoutError: a time limit of policy passed.
	TimeoutError = outbound.TimeoutError
	// ListenerNotReadyError: there is no policy for the listener that a request came in on.
	ListenerNotReadyError = inbound.NotReadyError
)

// ErrClosed is the cause of errors after Close.
var ErrClosed = outbound.ErrClosed

// ErrNoBootstrap is returned by New where no bootstrap was given and WithoutControlPlane was not used.
var ErrNoBootstrap = errors.New("mesh: no bootstrap: use WithBootstrap, WithBootstrapFile, $GRPC_XDS_BOOTSTRAP or $GRPC_XDS_BOOTSTRAP_CONFIG, or WithoutControlPlane")
