package outbound

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Place names where in policy an error arose. Fields that were not known yet are empty.
type Place struct {
	Host     string // "reviews:9080"
	Route    string
	Cluster  string
	Endpoint string // "10.0.0.7:9080"
}

// The names in a Place of a host that no policy is for, as Options.External gives it.
const (
	PassCluster  = "passthrough|" // and the host
	PassRoute    = "default"
	OutsideRoute = "outside-the-mesh" // where a control plane knows of no such host
)

// String has what is known. A host that passes is its own cluster and endpoint: it is
// said once.
func (p Place) String() string {
	if p.Host != "" && p.Cluster == PassCluster+p.Host {
		p.Cluster = ""
		if p.Endpoint == p.Host {
			p.Endpoint = ""
		}
		switch p.Route {
		case PassRoute:
			p.Route = ""
		case OutsideRoute:
			p.Route = ""
			p.Host += " (outside the mesh)"
		}
	}
	var b strings.Builder
	b.WriteString(p.Host)
	for _, part := range [...]struct{ key, value string }{{"route", p.Route}, {"cluster", p.Cluster}, {"endpoint", p.Endpoint}} {
		if part.value != "" {
			fmt.Fprintf(&b, " %s=%s", part.key, part.value)
		}
	}
	return b.String()
}

// NotReadyError reports that something without which a request may not be sent
// has not come: the control plane's policy for the host, so that nothing is
// known of where a request may go, or the certificate or trust bundle of this
// process that the connection needs.
type NotReadyError struct {
	Place
	// Missing is "policy" or "certificate".
	Missing string
	Waited  time.Duration
	// Err is the control plane's last trouble, the identity source's error (a
	// *source.NotReadyError), the context's error, or several of them; may be nil.
	Err error
}

func (e *NotReadyError) Error() string {
	s := fmt.Sprintf("mesh: not ready: no %s for %s after %s", e.Missing, e.Place, e.Waited.Round(time.Millisecond))
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}
func (e *NotReadyError) Unwrap() error { return e.Err }

// NoRouteError reports that policy sends the request nowhere: no route
// matches, the host's policy is in error, or external hosts are refused.
type NoRouteError struct {
	Place
	Reason string
	Err    error // may be nil
}

func (e *NoRouteError) Error() string {
	s := fmt.Sprintf("mesh: no route for %s: %s", e.Place, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}
func (e *NoRouteError) Unwrap() error { return e.Err }

// NoHealthyEndpointError reports that the cluster has no endpoint to use.
type NoHealthyEndpointError struct {
	Place
	Endpoints int   // in the set, usable or not
	Err       error // why the cluster has none; may be nil
}

func (e *NoHealthyEndpointError) Error() string {
	s := fmt.Sprintf("mesh: no healthy endpoint for %s: none of %d usable", e.Place, e.Endpoints)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}
func (e *NoHealthyEndpointError) Unwrap() error { return e.Err }

// BreakerOpenError reports that the failure-driven breaker of the cluster refuses requests for a while.
type BreakerOpenError struct {
	Place
	Err error
}

func (e *BreakerOpenError) Error() string {
	return fmt.Sprintf("mesh: breaker open for %s: %v", e.Place, e.Err)
}
func (e *BreakerOpenError) Unwrap() error { return e.Err }

// LimitError reports that a circuit breaker threshold of the cluster was reached,
// or the limit that the host's latency sets.
type LimitError struct {
	Place
	Limit string // "max_requests", "max_connections", "max_pending_requests", "drop_overload" or "adaptive_concurrency"
	Max   uint32 // of drop_overload: the share of requests to refuse, per million
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("mesh: limit reached for %s: %s=%d", e.Place, e.Limit, e.Max)
}

// TimeoutError reports that a time limit of policy passed; the caller's own
// deadline is reported as context.DeadlineExceeded alone.
type TimeoutError struct {
	Place
	Limit string // "timeout" or "per_try_timeout"
	After time.Duration
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("mesh: %s of %s passed for %s", e.Limit, e.After, e.Place)
}

// Timeout marks the error as a timeout for net.Error.
func (e *TimeoutError) Timeout() bool { return true }

// Temporary is part of net.Error.
func (e *TimeoutError) Temporary() bool { return true }

// Unwrap lets errors.Is(err, context.DeadlineExceeded) hold.
func (e *TimeoutError) Unwrap() error { return context.DeadlineExceeded }

// TLSError reports that a connection could not be secured as policy asks: the
// server's certificate was refused, the server refused ours, or it speaks
// another protocol. Where a certificate was refused here, errors.As finds an
// *identity.VerifyError with the rule. Nothing of the request was processed.
type TLSError struct {
	Place
	Err error
}

func (e *TLSError) Error() string { return fmt.Sprintf("mesh: TLS with %s: %v", e.Place, e.Err) }
func (e *TLSError) Unwrap() error { return e.Err }
