package outbound

import (
	"context"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

// Observer is told what happens to calls. Its methods run on the request's
// goroutine and must not block. Telemetry implements it.
type Observer interface {
	// Leg prepares what is recorded for requests that take one route to one
	// cluster. It is called when policy changes, not per request.
	Leg(LegInfo) any
	// CallStart is called when the route is known, before the first attempt,
	// or when Decide has failed and c.Leg is nil; CallEnd follows either way.
	// The context that it returns is the call's.
	CallStart(ctx context.Context, c *Call) context.Context
	// TryStart is called before an attempt is sent. Tries of one call may run
	// side by side, so that it and TryEnd are called on several goroutines; what
	// belongs to one attempt goes into t.Telemetry, which is nil before.
	TryStart(ctx context.Context, t *Try, e *Endpoint) context.Context
	// TryEnd is called when the attempt's response headers, or its failure, are
	// there; now is the time, or zero where nobody has asked for it yet.
	TryEnd(ctx context.Context, t *Try, o *resilience.Outcome, now time.Time)
	// CallEnd is called once, when the response's body has ended or the call has failed.
	CallEnd(c *Call, o *resilience.Outcome, took time.Duration)
	// Retry is called when an attempt is about to be repeated, or, with
	// refused not empty, when policy would repeat it and a limit forbids it.
	Retry(c *Call, refused string)
	// Ejection is called when an endpoint is ejected (true) or returns (false).
	Ejection(cluster, endpoint, reason string, ejected bool)
	// Breaker is called when a cluster's failure-driven breaker changes state ("open", "half-open", "closed").
	Breaker(cluster, state string)
}

// LegInfo names a route and one of its destinations.
type LegInfo struct {
	Host    string // "reviews:9080", or "" for all pass-through hosts together
	Route   string
	Cluster string
	Service string // host the cluster stands for
	Subset  string
}
