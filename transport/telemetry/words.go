package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// other stands for every value beyond a bound (the conventions' "_OTHER").
const other = "_OTHER"

// method is an HTTP method in a form that indexes tables.
type method uint8

// otherMethod is every method that the conventions do not know.
const otherMethod method = 0

// methods are those of RFC 9110, PATCH of RFC 5789 and QUERY.
var methods = [...]string{
	otherMethod: other, "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
}

// methodOf returns the method of a request; names are case-sensitive.
func methodOf(name string) method {
	switch name {
	case "GET", "":
		return 1
	case "HEAD":
		return 2
	case "POST":
		return 3
	case "PUT":
		return 4
	case "DELETE":
		return 5
	case "CONNECT":
		return 6
	case "OPTIONS":
		return 7
	case "TRACE":
		return 8
	case "PATCH":
		return 9
	case "QUERY":
		return 10
	}
	return otherMethod
}

func (m method) attribute() attribute.KeyValue {
	return semconv.HTTPRequestMethodKey.String(methods[m])
}

// spanName is the part of a span's name that stands for the method.
func (m method) spanName() string {
	if m == otherMethod {
		return "HTTP"
	}
	return methods[m]
}

// fault is what error.type says: a closed list, so that metrics stay bounded.
type fault uint8

const (
	noFault fault = iota
	// statusFault is an error by its status, which is then the word.
	statusFault
	otherFault
	timeoutFault
	perTryTimeoutFault
	connectFault
	connectTimeoutFault
	refusedFault
	resolutionFault
	tlsFault
	resetFault
	refusedStreamFault
	limitFault
	breakerFault
	endpointFault
	routeFault
	readyFault
	abortedFault
)

var faults = [...]string{
	noFault:             "",
	statusFault:         "",
	otherFault:          other,
	timeoutFault:        "timeout",
	perTryTimeoutFault:  "per_try_timeout",
	connectFault:        "connect_failure",
	connectTimeoutFault: "connect_timeout",
	refusedFault:        "connection_refused",
	resolutionFault:     "name_resolution_error",
	tlsFault:            "tls_error",
	resetFault:          "reset",
	refusedStreamFault:  "refused_stream",
	limitFault:          "limit",
	breakerFault:        "breaker_open",
	endpointFault:       "no_healthy_endpoint",
	routeFault:          "no_route",
	readyFault:          "not_ready",
	abortedFault:        "aborted",
}

// word is the value of error.type; empty where there is no error.
func (f fault) word(status int) string {
	if f == statusFault {
		return strconv.Itoa(status)
	}
	return faults[f]
}

// clientFault is the error of an outcome, for its client. A caller that gave
// up on purpose made no error.
func clientFault(o *resilience.Outcome) fault {
	switch o.Failure {
	case resilience.NoFailure:
		switch {
		case o.Status >= 400:
			return statusFault
		case o.Status == 0 && o.Err != nil:
			return localFault(o.Err)
		default:
			return noFault
		}
	case resilience.Cancelled:
		if errors.Is(o.Err, context.DeadlineExceeded) {
			return timeoutFault
		}
		return noFault
	case resilience.RouteTimeout:
		return timeoutFault
	case resilience.PerTryTimeout:
		return perTryTimeoutFault
	case resilience.ConnectFailure:
		return connectionFault(o.Err)
	case resilience.Reset, resilience.ResetBeforeRequest:
		return resetFault
	case resilience.RefusedStream:
		return refusedStreamFault
	case resilience.Overflow:
		if f := localFault(o.Err); f != otherFault {
			return f
		}
		return limitFault
	default:
		return otherFault
	}
}

// localFault is the error of a call that was not sent.
func localFault(err error) fault {
	var (
		ready    *outbound.NotReadyError
		route    *outbound.NoRouteError
		endpoint *outbound.NoHealthyEndpointError
		breaker  *outbound.BreakerOpenError
		limit    *outbound.LimitError
	)
	switch {
	case errors.As(err, &ready):
		return readyFault
	case errors.As(err, &route):
		return routeFault
	case errors.As(err, &endpoint):
		return endpointFault
	case errors.As(err, &breaker):
		return breakerFault
	case errors.As(err, &limit):
		return limitFault
	case errors.Is(err, context.Canceled):
		return noFault
	case errors.Is(err, context.DeadlineExceeded):
		return timeoutFault
	default:
		return otherFault
	}
}

// connectionFault says why there is no connection.
func connectionFault(err error) fault {
	var (
		name        *net.DNSError
		certificate *tls.CertificateVerificationError
		alert       tls.AlertError
		record      tls.RecordHeaderError
		timeout     interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &name):
		return resolutionFault
	case errors.Is(err, syscall.ECONNREFUSED):
		return refusedFault
	case errors.As(err, &certificate), errors.As(err, &alert), errors.As(err, &record):
		return tlsFault
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return connectTimeoutFault
	default:
		return connectFault
	}
}

// splitAddress takes "host:port" or an authority apart: no user information,
// no brackets, lower case. port is 0 where there is none.
func splitAddress(s string) (host string, port int) {
	s = s[strings.LastIndexByte(s, '@')+1:]
	host = s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") &&
		(strings.IndexByte(s, ':') == i || strings.HasPrefix(s, "[")) {
		if n, err := strconv.ParseUint(s[i+1:], 10, 16); err == nil {
			host, port = s[:i], int(n)
		} else if s[i+1:] == "" {
			host = s[:i]
		}
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	}
	return strings.ToLower(host), port
}

// defaultPort is the port that a scheme stands for.
func defaultPort(scheme string) int {
	if scheme == "https" {
		return 443
	}
	return 80
}
