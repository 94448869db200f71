package mesh

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// Policy is what applies to requests to hosts that the mesh does not know: all
// of them in a process without a control plane. It is set with
// WithDefaultPolicy; without it, DefaultPolicy applies.
type Policy struct {
	// Timeout limits a whole request, all attempts and the response's body. Zero means none.
	Timeout time.Duration
	// PerTryTimeout limits each attempt until its response's headers have come. Zero means none.
	PerTryTimeout time.Duration
	// Retries is how many attempts may follow the first. Zero retries nothing.
	Retries uint32
	// RetryOn are the conditions to retry, separated by commas, in Envoy's words:
	// connect-failure, refused-stream, reset, gateway-error, 5xx, retriable-4xx.
	// Empty means "connect-failure,refused-stream", in which the server has
	// certainly not seen the request.
	// Under any other condition only requests are retried that are idempotent
	// by RFC 9110 section 9.2.2, or carry an Idempotency-Key.
	RetryOn string
	// RetryPercent bounds the retries, as a share of the requests to the same
	// host. Where RetryMin is set, it bounds those in flight by the requests in
	// flight, and RetryMin are always allowed (Envoy's budget). Else each request
	// pays for its share of a retry, and five may be saved up: a floor that every
	// client has would add up to a load of its own. Zero means 20 without a floor.
	RetryPercent float64
	RetryMin     uint32
	// BreakAfter is how many failures in a row of one host open its breaker;
	// zero means that there is none. An open breaker refuses requests for
	// BreakFor (zero means 5 s) and then lets one through as a probe.
	BreakAfter uint32
	BreakFor   time.Duration
	// MaxRequests bounds the requests in flight to one host. Zero means no limit.
	MaxRequests uint32
}

// DefaultPolicy retries twice what the server has certainly not seen, within
// the budget, and limits nothing: it is safe to put in front of any client.
var DefaultPolicy = Policy{Retries: 2}

const alwaysSafe = "connect-failure,refused-stream"

// validate reports the first field with a value that has no meaning.
func (p *Policy) validate() error {
	for _, d := range [...]struct {
		field string
		value time.Duration
	}{{"Timeout", p.Timeout}, {"PerTryTimeout", p.PerTryTimeout}, {"BreakFor", p.BreakFor}} {
		if d.value < 0 {
			return fmt.Errorf("%s: %s is negative", d.field, d.value)
		}
	}
	if _, unknown := resilience.ParseRetryOn(p.RetryOn); len(unknown) > 0 {
		return fmt.Errorf("RetryOn: unknown condition %s", strings.Join(unknown, ", "))
	}
	_, cluster := p.host("example.com:80", outbound.PassRoute)
	if b := cluster.RetryBudget; b != nil {
		return b.Validate()
	}
	return nil
}

// host builds the policy of one host outside the mesh: a route of the given name
// to a cluster whose only endpoint is the host itself.
func (p *Policy) host(name, routeName string) (*snapshot.Host, *snapshot.Cluster) {
	cluster := &snapshot.Cluster{
		Name:           outbound.PassCluster + name,
		Service:        name,
		ConnectTimeout: 10 * time.Second,
		Limits: resilience.Limits{
			MaxConnections: resilience.NoLimit, MaxPendingRequests: resilience.NoLimit,
			MaxRequests: resilience.NoLimit, MaxRetries: resilience.NoLimit,
		},
		Endpoints: lb.NewEndpoints([]lb.Endpoint{{Address: name, Weight: 1}}, nil),
	}
	if p.MaxRequests > 0 {
		cluster.Limits.MaxRequests = p.MaxRequests
	}
	if p.BreakAfter > 0 {
		b := resilience.DefaultBreaker
		b.ConsecutiveFailures = p.BreakAfter
		if p.BreakFor > 0 {
			b.OpenFor = p.BreakFor
		}
		cluster.Breaker = &b
	}
	clusters, _ := routing.NewWeighted([]routing.WeightedCluster{{Name: cluster.Name, Weight: 1}})
	route := snapshot.Route{
		Name:     routeName,
		Match:    routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix, Value: "/"}},
		Clusters: clusters,
		Timeout:  p.Timeout,
	}
	if p.Retries > 0 || p.PerTryTimeout > 0 {
		route.Retry = p.retry()
	}
	if p.Retries > 0 {
		budget := resilience.RatioRetryBudget
		if p.RetryMin > 0 {
			budget = resilience.RetryBudget{MinConcurrency: p.RetryMin}
		}
		if p.RetryPercent > 0 || p.RetryMin > 0 {
			budget.Percent = p.RetryPercent
		}
		cluster.RetryBudget = &budget
	}
	vh := snapshot.VirtualHost{Name: "default", Routes: []snapshot.Route{route}}
	// "*" for requests such as OPTIONS *, whose path is no prefix of "/".
	star := route
	star.Match = routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix}}
	vh.Routes = append(vh.Routes, star)
	return &snapshot.Host{Name: name, VirtualHost: &vh, Used: new(atomic.Bool)}, cluster
}

func (p *Policy) retry() *resilience.RetryPolicy {
	conditions := p.RetryOn
	if conditions == "" {
		conditions = alwaysSafe
	}
	on, _ := resilience.ParseRetryOn(conditions)
	retry := resilience.DefaultRetryPolicy(on)
	retry.NumRetries = p.Retries
	retry.PerTryTimeout = p.PerTryTimeout
	if safe, _ := resilience.ParseRetryOn(alwaysSafe); on&^safe != 0 {
		idempotent, err := routing.Regex("GET|HEAD|OPTIONS|TRACE|PUT|DELETE")
		if err != nil {
			panic(err) // the expression is a constant
		}
		retry.RequestHeaders = []routing.HeaderMatch{
			{Name: routing.NewHeaderName(":method"), Kind: routing.HeaderString, String: idempotent},
			{Name: routing.NewHeaderName("idempotency-key"), Kind: routing.HeaderPresent, Present: true},
		}
	}
	return &retry
}
