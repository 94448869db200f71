// Package snapshot is the compiled, immutable policy of a process: what the
// xDS client yields, what a default policy builds, and what the engine reads
// once for each request. Nothing in it changes after it is published; live
// state (counters, ejections) belongs to the engine.
package snapshot

import (
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
}

// Listener is a client-side (API) listener: where the routes of a host come from.
type Listener struct {
	Name string
	// RouteName names the RouteConfiguration to ask for; empty if Inline is set.
	RouteName string
	Inline    *RouteConfig
	// MaxStreamDuration is common_http_protocol_options.max_stream_duration; zero means none.
	MaxStreamDuration time.Duration
}

// RouteConfig is a compiled RouteConfiguration.
type RouteConfig struct {
	Name         string
	Domains      routing.Domains
	VirtualHosts []VirtualHost
}

// Lookup returns the virtual host whose domain matches the authority best, or nil.
func (rc *RouteConfig) Lookup(authority string) *VirtualHost {
	i := rc.Domains.Lookup(authority)
	if i < 0 {
		return nil
	}
	return &rc.VirtualHosts[i]
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
type Route struct {
	// Name is the route's name in policy, or "" where it has none.
	Name  string
	Match routing.Match
	// Clusters are the destinations by weight; one destination has the whole weight.
	Clusters routing.Weighted
	// Timeout limits the whole request, all attempts and the response's body; zero means none.
	Timeout time.Duration
	// MaxStreamDuration limits a gRPC stream or HTTP request; zero means the host's.
	MaxStreamDuration time.Duration
	// Retry is nil where nothing is retried.
	Retry *resilience.RetryPolicy
}

// Cluster is one destination: how to choose among its endpoints and how to guard them.
type Cluster struct {
	Name string
	// EndpointsName is the EDS resource; empty where Endpoints came with the cluster.
	EndpointsName string
	// Service is the host that the cluster stands for, for telemetry: the last part of an Istio cluster name, else Name.
	Service string
	// Subset is the DestinationRule subset of an Istio cluster name, or "".
	Subset string
	// ConnectTimeout limits making one connection (TCP and TLS). Default 5 s (Envoy).
	ConnectTimeout time.Duration
	LB             lb.Policy
	// PanicThreshold: when fewer than this percentage of endpoints are usable, all are used. Default 50 (Envoy); 0 disables.
	PanicThreshold float64
	Limits         resilience.Limits
	// RetryBudget bounds concurrent retries by ratio; nil means Limits.MaxRetries bounds them.
	RetryBudget *resilience.RetryBudget
	// Breaker is the failure-driven breaker of the whole cluster; nil where policy asks for none.
	Breaker *resilience.Breaker
	// Outlier is nil where no endpoint is ever ejected.
	Outlier *resilience.Outlier
	// HTTP2 asks for HTTP/2 with prior knowledge where there is no TLS.
	HTTP2 bool
	// IdleTimeout closes a connection without requests; zero means the transport's default (1 h in Envoy).
	IdleTimeout time.Duration
	// MaxRequestsPerConnection closes a connection after so many requests; zero means no limit.
	MaxRequestsPerConnection uint32
	// TLS secures connections to endpoints that none of Sockets fits; nil means plaintext.
	TLS *ClientTLS
	// Sockets choose by the endpoint; the first that fits counts (transport_socket_matches).
	Sockets []SocketMatch

	// Endpoints is never nil in a published snapshot.
	Endpoints *lb.Endpoints
	// Err says why the cluster has no usable configuration or endpoints: requests to it fail with it.
	Err error
}
