// Package snapshot is the compiled, immutable policy of a process: what the
// xDS client yields, what a default policy builds, and what the engine reads
// once for each request. Nothing in it changes after it is published; live
// state (counters, ejections) belongs to the engine.
package snapshot

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Snapshot is all the policy that is in force at one instant.
type Snapshot struct {
	// Hosts is keyed by listener name, "host:port" with 80 and 443 filled in.
	// A host that has been asked for and is not here has no answer yet.
	Hosts map[string]*Host
	// Clusters is keyed by cluster resource name. It holds every cluster that
	// a route of a host in Hosts names; one that could not be had has Err set.
	Clusters map[string]*Cluster
	// Inbound is keyed by the address that was asked for, "ip:port".
	Inbound map[string]*Inbound
}

// Host is the policy for one "host:port" that the process calls.
type Host struct {
	Name string
	// Routes is nil where the host has no policy: then Absent or Err says why.
	Routes *RouteConfig
	// VirtualHost is the one of Routes that Name's authority selects; nil
	// if none does, which is an error that Err names.
	VirtualHost *VirtualHost
	// Absent reports that the control plane does not know the host.
	Absent bool
	// Err is why there is no usable policy: a refused resource, or one that never came.
	Err error
	// Used is set by the engine when a request uses the host and cleared by
	// the client's sweep, which ends idle subscriptions. It is the only thing
	// here that changes.
	Used *atomic.Bool
	// MaxStreamDuration is the listener's default limit on a whole request; zero means none.
	MaxStreamDuration time.Duration
	// Concurrency bounds the requests to the host by their latency; nil does not.
	Concurrency *resilience.AdaptiveConcurrency
	// SuppressHeaders leaves out what Envoy's router tells the server of the
	// request's time limit (suppress_envoy_headers).
	SuppressHeaders bool
	// RespectExpectedTimeout has x-envoy-expected-rq-timeout-ms of the request
	// take the place of its route's Timeout (respect_expected_rq_timeout).
	RespectExpectedTimeout bool
	// CORSFirst has CORS come before faults: a preflight is answered, and an
	// answer that a fault gives has the headers of CORS. Istio has it the other way round.
	CORSFirst bool
}

// Listener is a client-side (API) listener: where the routes of a host come from.
type Listener struct {
	Name string
	// RouteName names the RouteConfiguration to ask for; empty if Inline is set.
	RouteName string
	Inline    *RouteConfig
	// MaxStreamDuration is common_http_protocol_options.max_stream_duration; zero means none.
	MaxStreamDuration time.Duration
	// Concurrency and the two that follow are as Host's.
	Concurrency            *resilience.AdaptiveConcurrency
	SuppressHeaders        bool
	RespectExpectedTimeout bool
	// IdleTimeout is for routes that have none of their own (stream_idle_timeout); zero means none.
	IdleTimeout time.Duration
	// Filters are the HTTP filters that routes may set otherwise, in order. Bind puts them in force.
	Filters []Filter
}

// RouteConfig is a compiled RouteConfiguration.
type RouteConfig struct {
	Name         string
	Domains      routing.Domains
	VirtualHosts []VirtualHost
	// IgnorePort leaves the port of the authority out of account (ignore_port_in_host_matching).
	IgnorePort bool
}

// Lookup returns the virtual host whose domain matches the authority best, or nil.
func (rc *RouteConfig) Lookup(authority string) *VirtualHost {
	if rc.IgnorePort {
		authority = withoutPort(authority)
	}
	i := rc.Domains.Lookup(authority)
	if i < 0 {
		return nil
	}
	return &rc.VirtualHosts[i]
}

// withoutPort cuts ":port" off, which is decimal digits after the last colon;
// one that is inside the brackets of an IPv6 address begins no port.
func withoutPort(authority string) string {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || i == len(authority)-1 || i < strings.LastIndexByte(authority, ']') {
		return authority
	}
	for _, c := range []byte(authority[i+1:]) {
		if c < '0' || c > '9' {
			return authority
		}
	}
	return authority[:i]
}

// VirtualHost is a named list of routes, tried in order.
type VirtualHost struct {
	Name   string
	Routes []Route
}

// Match returns the index of the first route that matches the request, or -1. draw decides runtime fractions.
func (vh *VirtualHost) Match(r *routing.Request, draw uint64) int {
	for i := range vh.Routes {
		if vh.Routes[i].Match.Matches(r, draw) {
			return i
		}
	}
	return -1
}

// Route is one compiled route with the policy that applies to requests it matches.
// It redirects, answers by itself or sends to a cluster.
type Route struct {
	// Name is the route's name in policy, or "" where it has none.
	Name  string
	Match routing.Match

	Redirect *routing.Redirect
	Direct   *routing.DirectResponse
	// Clusters are the destinations by weight; one destination has the whole weight.
	Clusters routing.Weighted
	// Legs are what is particular to each destination, as Clusters.Clusters; nil where nothing is.
	Legs []Leg
	// ClusterHeader names the header of the request that names the cluster; the zero value means none does.
	ClusterHeader routing.HeaderName
	// ClusterNotFound answers where that cluster is not there. Default 503.
	ClusterNotFound int

	Rewrite routing.Rewrite
	// RequestHeaders and ResponseHeaders are the changes of the levels above the
	// destination, in the order in which they are made. Responses are changed
	// whoever answers.
	RequestHeaders, ResponseHeaders []routing.HeaderChanges
	CORS                            *routing.CORS
	Mirrors                         []routing.Mirror
	Hash                            []routing.HashPolicy
	// Fault is nil where none is injected. Fault and CORS are those of requests
	// to a destination without its own: read them by FaultOf and CORSOf.
	Fault *resilience.Fault
	// NoConcurrency leaves the host's Concurrency out.
	NoConcurrency bool
	// Subset has the endpoint metadata that the route asks for (metadata_match). A Leg's is complete without it.
	Subset   map[string]string
	Priority resilience.Priority
	// Filters is what the route says of its listener's filters, until Bind.
	Filters FilterSettings

	// Timeout limits the whole request, all attempts and the response's body; zero means none.
	Timeout time.Duration
	// MaxStreamDuration limits a gRPC stream or HTTP request; zero means the host's.
	MaxStreamDuration time.Duration
	// GRPCTimeout bounds the deadline that a gRPC request brings along
	// (max_stream_duration.grpc_timeout_header_max); nil leaves it alone, zero
	// means no bound. With it, the request's own deadline takes the place of Timeout.
	GRPCTimeout *time.Duration
	// GRPCTimeoutOffset is taken off the deadline that a gRPC request brings along.
	GRPCTimeoutOffset time.Duration
	// GRPCTimeoutAlways has GRPCTimeout bound gRPC requests that bring no
	// deadline along too (max_grpc_timeout), and MaxStreamDuration all of them.
	GRPCTimeoutAlways bool
	// IdleTimeout ends a request on which nothing has moved for so long; zero means none.
	IdleTimeout time.Duration
	// OwnIdleTimeout keeps the listener's from being used.
	OwnIdleTimeout bool
	// Retry is nil where nothing is retried.
	Retry *resilience.RetryPolicy
	// Hedge is nil where nothing is hedged.
	Hedge *resilience.Hedge
	// AttemptCount adds x-envoy-attempt-count to the request, and to the response (the virtual host's options).
	AttemptCount, AttemptCountResponse bool
}

// Leg is what is particular to one destination of a route.
type Leg struct {
	// RequestHeaders and ResponseHeaders are made before those of the route.
	RequestHeaders, ResponseHeaders routing.HeaderChanges
	// Host replaces the authority; "" does not.
	Host string
	// Subset has the endpoint metadata that is asked for, the route's included.
	Subset map[string]string
	// ClusterHeader names the header of the request that names the cluster, whose
	// name in Clusters is empty; the zero value means none does.
	ClusterHeader routing.HeaderName
	// OwnFilters has Fault and CORS take the place of the route's.
	OwnFilters bool
	Fault      *resilience.Fault
	CORS       *routing.CORS
	// Filters is as Route's, complete without it, where OwnFilters is set.
	Filters FilterSettings
}

// Discovery says where the endpoints of a cluster come from.
type Discovery uint8

const (
	FromControlPlane Discovery = iota // EDS, or with the cluster
	StrictDNS                         // every address of each name is an endpoint
	LogicalDNS                        // the first address of the one name, at each connection
	Aggregate                         // of other clusters, in order
)

// DNS says how names are looked up.
type DNS struct {
	Names []DNSName
	// RefreshRate is the pause between lookups. Default 5 s (Envoy).
	RefreshRate time.Duration
	// FailureBase and FailureMax bound the pause after a failed lookup; zero means RefreshRate.
	FailureBase, FailureMax time.Duration
	Jitter                  time.Duration
	// Family is "ip", "ip4" or "ip6", as net.Resolver.LookupNetIP has it. PreferIPv6 and
	// PreferIPv4 use one family only where there is any address of it.
	Family                 string
	PreferIPv4, PreferIPv6 bool
}

// DNSName is a name to look up, and what its endpoints are.
type DNSName struct {
	Host     string
	Port     uint32
	Endpoint lb.Endpoint // without Address
}

// Cluster is one destination: how to choose among its endpoints and how to guard them.
type Cluster struct {
	Name      string
	Discovery Discovery
	// EndpointsName is the EDS resource; empty where Endpoints came with the cluster.
	EndpointsName string
	// DNS is for StrictDNS and LogicalDNS.
	DNS *DNS
	// Underlying are the clusters of an Aggregate, in order. In a published snapshot none of
	// them is an Aggregate itself, each occurs once, and all are in Snapshot.Clusters.
	Underlying []string
	// Service is the host that the cluster stands for, for telemetry: the last part of an Istio cluster name, else Name.
	Service string
	// Subset is the DestinationRule subset of an Istio cluster name, or "".
	Subset string
	// ConnectTimeout limits making one connection (TCP and TLS). Default 5 s (Envoy).
	ConnectTimeout time.Duration
	LB             lb.Policy
	Limits         resilience.Limits
	// RetryBudget bounds concurrent retries by ratio; nil means Limits.MaxRetries bounds them.
	RetryBudget *resilience.RetryBudget
	// HighLimits and HighRetryBudget are for requests of high priority.
	HighLimits      resilience.Limits
	HighRetryBudget *resilience.RetryBudget
	// Breaker is the failure-driven breaker of the whole cluster; nil where policy asks for none.
	Breaker *resilience.Breaker
	// Outlier is nil where no endpoint is ever ejected.
	Outlier *resilience.Outlier
	// Accrual is the failure-driven breaker of each endpoint; nil where policy asks for none.
	Accrual *resilience.Accrual
	// HealthChecks are made by this process; none leaves it to the control plane and Outlier.
	HealthChecks []resilience.HealthCheck
	// HTTP2 asks for HTTP/2 with prior knowledge where there is no TLS.
	HTTP2 bool
	// IdleTimeout closes a connection without requests; zero means the transport's default (1 h in Envoy).
	IdleTimeout time.Duration
	// MaxRequestsPerConnection closes a connection after so many requests; zero means no limit.
	MaxRequestsPerConnection uint32
	// ClientProtocol uses HTTP/2 for requests that came in by HTTP/2, else HTTP/1.1 (use_downstream_protocol_config).
	ClientProtocol bool
	// MaxConcurrentStreams bounds the requests at once on one HTTP/2 connection; zero means the server's bound.
	MaxConcurrentStreams uint32
	// KeepAlive is TCP's; zero values mean the operating system's.
	KeepAlive *KeepAlive
	// HTTP2Ping is the keepalive of HTTP/2; zero Interval means none.
	HTTP2Ping HTTP2Ping
	// TLS secures connections to endpoints that none of Sockets fits; nil means plaintext.
	TLS *ClientTLS
	// Sockets choose by the endpoint; the first that fits counts (transport_socket_matches).
	Sockets []SocketMatch

	// Endpoints is never nil in a published snapshot.
	Endpoints *lb.Endpoints
	// Err says why the cluster has no usable configuration or endpoints: requests to it fail with it.
	Err error
	// Absent reports that the control plane does not know the cluster; Err is set too.
	Absent bool
	// Used is set by the engine when a header of a request names the cluster, and cleared by
	// the client's sweep, which ends idle subscriptions; nil where there is no client.
	Used *atomic.Bool
}

// KeepAlive is TCP keepalive (envoy.config.core.v3.TcpKeepalive).
type KeepAlive struct {
	Idle, Interval time.Duration
	Probes         int
}

// HTTP2Ping closes HTTP/2 connections whose other end does not answer (envoy.config.core.v3.KeepaliveSettings).
type HTTP2Ping struct{ Interval, Timeout time.Duration }
