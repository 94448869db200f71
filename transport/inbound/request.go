package inbound

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"google.golang.org/grpc/codes"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/routing"
)

// Request is what inbound rules see of a request. It belongs to the caller,
// who may use it again for another request; Admit keeps nothing of it.
type Request struct {
	// Conn is the connection that the request came on, as Engine.Conn finds it
	// by Local; nil where the listener is not the mesh's.
	Conn *Conn
	// Local is the address that the connection was accepted at. It need not be
	// set where Conn is.
	Local net.Addr
	// Remote is the other end of a connection whose Conn is nil.
	Remote netip.AddrPort
	// Encrypted says that the connection has TLS. Where it is not Conn that
	// terminated it the peer has no identity, and is no better than plaintext to policy.
	Encrypted bool

	// Access is the request itself. The adapter fills in Method, Scheme,
	// Authority, Path, DecodedPath, RawQuery, Header and Form, all as the
	// handler is going to see them; the engine fills in the rest. Admit may
	// replace Authority, Path, DecodedPath, RawQuery and Header: the handler must be given
	// what stands there afterwards, see Admission. The map that Header was is never changed.
	Access identity.AccessRequest

	// Protocol is "HTTP/1.1" or "HTTP/2", and Size the length of the body, -1
	// where it is not known: external authorizers are told of both.
	Protocol string
	Size     int64
	// Body reads up to limit bytes of the beginning of the request's body, which
	// the handler is still given whole, and reports whether that is all of it.
	// nil means that there is no body that could be looked at.
	Body func(limit int) (data []byte, whole bool, err error)

	// ownHeader says that Access.Header is the engine's own copy.
	ownHeader bool
}

// header returns the request's headers as a map that may be changed.
func (r *Request) header() map[string][]string {
	if !r.ownHeader {
		clone := make(map[string][]string, len(r.Access.Header)+4)
		for k, v := range r.Access.Header {
			clone[k] = v
		}
		r.Access.Header, r.ownHeader = clone, true
	}
	return r.Access.Header
}

// Header is one header line.
type Header struct{ Name, Value string }

// Admission is what an adapter must do for a request that Admit has let
// through; after a refusal only CloseConnection counts.
type Admission struct {
	// Peer is who sent the request: what identity.ContextWithPeer takes. It is
	// never nil after a request was let through.
	Peer *identity.Peer
	// Claims are those of the request's verified token, for
	// identity.ContextWithClaims; nil where there is none.
	Claims *identity.Claims
	// HeaderChanged says that Request.Access.Header is a new map, which the
	// handler must be given.
	HeaderChanged bool
	// PathChanged says that Request.Access.Path and DecodedPath are not what
	// the request came with.
	PathChanged bool
	// HostChanged says so of Request.Access.Authority.
	HostChanged bool
	// QueryChanged says so of Request.Access.RawQuery.
	QueryChanged bool
	// Response has headers to add to the handler's answer, which the handler may replace.
	Response []Header
	// CloseConnection asks that the connection takes no further requests. Those
	// in flight may finish: "Connection: close" over HTTP, Conn.CloseAfter over gRPC.
	CloseConnection bool
	// Hold must be released when the handler has returned; nil where the request
	// takes up nothing that is counted.
	Hold *Hold
}

// Reason says which rule of policy refused a request. The words are stable, so
// that they can label metrics.
type Reason string

const (
	// ReasonPlaintext: the listener takes only mutual TLS.
	ReasonPlaintext Reason = "plaintext"
	// ReasonPeer: the connection's peer can not be believed any more.
	ReasonPeer Reason = "peer"
	// ReasonPath: the path has no reading that rules and handler share.
	ReasonPath Reason = "path"
	// ReasonRedirect: the path has another spelling, to which the caller is sent.
	ReasonRedirect Reason = "redirect"
	// ReasonExternal: the external authorizer refuses, or gives no answer.
	ReasonExternal Reason = "external"
	// ReasonToken: a token is missing or bad.
	ReasonToken Reason = "token"
	// ReasonAuthorization: an authorization rule refuses.
	ReasonAuthorization Reason = "authorization"
	// ReasonRateLimit: there are too many requests.
	ReasonRateLimit Reason = "rate_limit"
	// ReasonDeadline: the request's deadline passed, or its caller gave up, before the handler could run.
	ReasonDeadline Reason = "deadline"
	// ReasonOverload: the server has more requests than it can answer in time.
	ReasonOverload Reason = "overload"
	// ReasonNotReady is the Reason of Outcome for a *NotReadyError.
	ReasonNotReady Reason = "not_ready"
)

// DeniedError reports that policy refuses a request.
type DeniedError struct {
	Reason Reason
	// HTTPStatus is what an HTTP request is answered with.
	HTTPStatus int
	// GRPC is what a gRPC call is answered with where policy says so; OK where
	// the answer follows from Reason and HTTPStatus.
	GRPC codes.Code
	// Listener is the address of the listener.
	Listener string
	// Rule names what decided: an authorization rule, a rule of certificate
	// verification, the external authorizer. It is for logs; the caller is not told.
	Rule string
	// Message is what the caller may be told.
	Message string
	// Header has headers of the answer: WWW-Authenticate, Retry-After, Location,
	// or those of the external authorizer.
	Header []Header
	// Body is the external authorizer's body, which takes the place of the
	// answer's own; nil for every other reason.
	Body []byte
	// Err is the cause, where there is one beyond the rule. It may name what
	// the caller must not learn.
	Err error
}

func (e *DeniedError) Error() string {
	s := fmt.Sprintf("mesh: denied (%s) at %s", e.Reason, e.Listener)
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Rule != "" {
		s += fmt.Sprintf(" [%s]", e.Rule)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *DeniedError) Unwrap() error { return e.Err }

// NotReadyError reports that no usable policy for the listener is there, so
// that nothing may be let in.
type NotReadyError struct {
	Address string
	Err     error // may be nil
}

func (e *NotReadyError) Error() string {
	s := fmt.Sprintf("mesh: not ready: no policy for the listener at %s", e.Address)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *NotReadyError) Unwrap() error { return e.Err }

var (
	errAbsent    = errors.New("the control plane has none for this address")
	errNoAddress = errors.New("not a TCP address")
	errClosed    = errors.New("mesh: closed")
)

var (
	forwardedFor = routing.NewHeaderName("x-forwarded-for")
	cookieHeader = routing.NewHeaderName("cookie")
)
