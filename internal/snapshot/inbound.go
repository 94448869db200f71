package snapshot

import (
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// Inbound is a server-side listener: the policy for requests that arrive at one address.
type Inbound struct {
	Name string
	// Address is the listener's own address, "ip:port".
	Address string
	// Service is the FilterChain's or route's service name for telemetry; may be empty.
	Service string
	// TLS is for connections that begin with a TLS handshake and Plain for the
	// others; nil refuses them. A listener without TLS hands such a handshake
	// to Plain as it is.
	TLS, Plain *FilterChain
	// StrictDryRun names the policy object under which plaintext would be
	// refused if it were in force; "" where there is none.
	StrictDryRun string
	// Absent and Err are as for Host.
	Absent bool
	Err    error
}

// FilterChain is what happens to the connections of a listener and to their
// requests, in the order of the fields.
type FilterChain struct {
	// Socket says how TLS is terminated; nil in Inbound.Plain.
	Socket *ServerTLS
	// TrustedHops is how many proxies in front of the process are believed when they say
	// in X-Forwarded-For whom they were called by; 0 takes the connection's other end
	// for the caller.
	TrustedHops int
	// Paths says how a request's path is normalised before anything looks at it, the handler included.
	Paths identity.PathOptions
	// Hosts says the same of its authority.
	Hosts identity.HostOptions
	// External is asked where Authorizer.Custom says so; nil where it never does.
	External *ExternalAuthorizer
	// Tokens are what requests must carry; nil asks for none.
	Tokens *Tokens
	// Authorizer has the rules of access; nil lets everything through.
	Authorizer *identity.Authorizer
	// RateLimits apply to all requests, in order: each must let a request through.
	RateLimits []*resilience.RateLimit
	// Concurrency bounds the requests by their latency; nil does not. It stands
	// before all that looks at requests, or with ConcurrencyLast after it.
	Concurrency     *resilience.AdaptiveConcurrency
	ConcurrencyLast bool
	// Routes have limits of their own; the first that matches counts. Every
	// request reaches the handler, whether or not a route matches.
	Routes []InboundRoute
}

// InboundRoute is limits for some requests.
type InboundRoute struct {
	Match      routing.Match
	RateLimits []*resilience.RateLimit
}

// Tokens is the verification of JSON web tokens.
type Tokens struct {
	Authenticator *identity.JWTAuthenticator
	// Remote says where the keys of providers without keys are, by the provider's name.
	Remote map[string]RemoteKeys
}

// RemoteKeys is where a provider's keys are fetched.
type RemoteKeys struct {
	URI string
	// Timeout limits one fetch. Default 5 s.
	Timeout time.Duration
	// CacheDuration is how long keys count as fresh. Default 10 min (Envoy).
	CacheDuration time.Duration
}

// ExternalAuthorizer is a service that decides on requests, in Envoy's ext_authz protocol.
type ExternalAuthorizer struct {
	// Provider is the name under which the rules ask for it.
	Provider string
	// Host is "host:port" of the service, called through the mesh.
	Host string
	// HTTP is the HTTP protocol's configuration; nil means the gRPC protocol.
	HTTP *ExternalHTTP
	// Timeout limits one question. Default 200 ms (Envoy).
	Timeout time.Duration
	// FailOpen lets requests through where no answer comes.
	FailOpen bool
	// StatusOnError answers where no answer comes. Default 403.
	StatusOnError int
	// MaxBody is how much of the body is sent along, in bytes; 0 sends none.
	MaxBody int
	// PartialBody sends the beginning of a longer body, which is refused otherwise (413).
	PartialBody bool
	// RawBody sends the body as bytes (gRPC protocol only).
	RawBody bool
	// Headers are those that go to the service; see each protocol for the default. Without any: all in gRPC, Envoy's few in HTTP.
	Headers []routing.StringMatch
	// ContextExtensions go along with each question (gRPC protocol only).
	ContextExtensions map[string]string
}

// ExternalHTTP is what the HTTP protocol of ext_authz adds.
type ExternalHTTP struct {
	// PathPrefix is put before the path of the request that is decided on.
	PathPrefix string
	// AddHeaders are sent with each question.
	AddHeaders map[string]string
	// UpstreamHeaders and UpstreamHeadersToAppend are headers of the answer that the
	// handler is given, in place of the request's or beside them.
	UpstreamHeaders, UpstreamHeadersToAppend []routing.StringMatch
	// ClientHeaders are headers of a refusal that the caller is given; without any, all of
	// them but the authority. ClientHeadersOnSuccess are those of an answer that lets through.
	ClientHeaders, ClientHeadersOnSuccess []routing.StringMatch
}
