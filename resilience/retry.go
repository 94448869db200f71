package resilience

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

// RetryOn is a set of retry conditions
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#x-envoy-retry-on).
type RetryOn uint32

const (
	// On5xx retries on a status from 500 to 599 and where there is no response
	// (connect failure, reset, refused stream, per-try timeout).
	On5xx RetryOn = 1 << iota
	// OnGatewayError is On5xx for the statuses 502, 503 and 504 only.
	OnGatewayError
	// OnReset retries where there is no response.
	OnReset
	// OnResetBeforeRequest retries where there is no response and the request's headers were not sent.
	OnResetBeforeRequest
	// OnConnectFailure retries where there was no connection.
	OnConnectFailure
	// OnRefusedStream retries where the peer refused the stream unprocessed.
	OnRefusedStream
	// OnRetriable4xx retries on status 409.
	OnRetriable4xx
	// OnRetriableStatusCodes retries on the statuses in RetryPolicy.StatusCodes.
	OnRetriableStatusCodes
	// OnRetriableHeaders retries on a response that one of RetryPolicy.Headers matches.
	OnRetriableHeaders
	// OnEnvoyRateLimited retries on a response with the header x-envoy-ratelimited.
	// No other condition retries such a response.
	OnEnvoyRateLimited
	// OnCancelled and those that follow retry on the grpc-status in the response's headers.
	OnCancelled
	OnDeadlineExceeded
	OnInternal
	OnResourceExhausted
	OnUnavailable
)

// retryOnNames are the names in bit order.
var retryOnNames = [...]string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream",
	"retriable-4xx", "retriable-status-codes", "retriable-headers", "envoy-ratelimited",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// ParseRetryOn reads a comma-separated list of conditions, with the HTTP and
// the gRPC names in one list as Envoy's retry_on has them. Spaces around a name
// and empty parts do not count. unknown has the parts that name no condition, in order.
func ParseRetryOn(s string) (on RetryOn, unknown []string) {
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		if bit := slices.Index(retryOnNames[:], part); bit >= 0 {
			on |= 1 << bit
		} else {
			unknown = append(unknown, part)
		}
	}
	return on, unknown
}

// String returns the set as ParseRetryOn reads it.
func (on RetryOn) String() string {
	var names []string
	for bit, name := range retryOnNames {
		if on&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// RetryPolicy is a route's compiled retry policy (envoy.config.route.v3.RetryPolicy).
type RetryPolicy struct {
	On             RetryOn
	StatusCodes    []uint32      // retriable_status_codes, with OnRetriableStatusCodes
	NumRetries     uint32        // retries after the first attempt; default 1
	PerTryTimeout  time.Duration // zero means the route's timeout
	BaseInterval   time.Duration // default 25 ms
	MaxInterval    time.Duration // default 10 x BaseInterval
	AvoidPrevious  bool          // previous_hosts predicate: prefer endpoints not yet tried
	SelectAttempts uint32        // host_selection_retry_max_attempts; default 1 (Envoy), 5 in Istio

	// PerTryIdleTimeout ends an attempt on which nothing has moved for so long; zero means none.
	PerTryIdleTimeout time.Duration
	// OmitMetadata avoids endpoints with this "envoy.lb" metadata (omit_host_metadata,
	// omit_canary_hosts), as AvoidPrevious avoids those already tried.
	OmitMetadata map[string]string
	// PreviousPriorities has later attempts leave out the priorities that were tried, after
	// so many attempts each (previous_priorities, update_frequency); 0 does not.
	PreviousPriorities uint32

	// Headers are retriable_headers, conditions on the response with
	// OnRetriableHeaders; one that matches is enough. ":status" is the status.
	Headers []routing.HeaderMatch
	// RequestHeaders are retriable_request_headers: where there are any, only a
	// request that one of them matches is retried.
	RequestHeaders []routing.HeaderMatch
	// RateLimited is the pause that the response asks for; nil means none is read.
	RateLimited *RateLimitedBackoff
}

// DefaultRetryPolicy returns Envoy's defaults for the conditions: one retry,
// a pause of up to 25 ms doubling to 250 ms.
func DefaultRetryPolicy(on RetryOn) RetryPolicy {
	return RetryPolicy{On: on, NumRetries: 1, BaseInterval: DefaultBaseInterval, MaxInterval: DefaultMaxFactor * DefaultBaseInterval, SelectAttempts: 1}
}

// Validate reports the first field with a value that has no meaning.
func (p *RetryPolicy) Validate() error {
	switch {
	case p.On>>len(retryOnNames) != 0:
		return fmt.Errorf("on: unknown condition bits %#x", uint32(p.On>>len(retryOnNames)<<len(retryOnNames)))
	case p.PerTryTimeout < 0:
		return fmt.Errorf("per_try_timeout: %v is negative", p.PerTryTimeout)
	case p.PerTryIdleTimeout < 0:
		return fmt.Errorf("per_try_idle_timeout: %v is negative", p.PerTryIdleTimeout)
	case p.BaseInterval < 0:
		return fmt.Errorf("base_interval: %v is negative", p.BaseInterval)
	case p.MaxInterval < 0:
		return fmt.Errorf("max_interval: %v is negative", p.MaxInterval)
	case p.MaxInterval != 0 && p.MaxInterval < p.base():
		return fmt.Errorf("max_interval: %v is less than the base interval %v", p.MaxInterval, p.base())
	}
	for i, code := range p.StatusCodes {
		if code < 100 || code > 999 {
			return fmt.Errorf("status_codes[%d]: %d is not an HTTP status", i, code)
		}
	}
	if p.RateLimited != nil {
		if err := p.RateLimited.Validate(); err != nil {
			return fmt.Errorf("rate_limited: %w", err)
		}
	}
	return nil
}

// AllowsRequest reports whether the request may be retried at all.
func (p *RetryPolicy) AllowsRequest(r *routing.Request) bool {
	if len(p.RequestHeaders) == 0 {
		return true
	}
	for i := range p.RequestHeaders {
		if p.RequestHeaders[i].Matches(r) {
			return true
		}
	}
	return false
}

var rateLimitedHeader = routing.NewHeaderName("x-envoy-ratelimited")

// Retriable reports whether the outcome is one that the conditions retry. How
// many retries are left, the budget and whether the request's body can be sent
// again are the caller's to know.
//
// Overflow, the end of the whole request's time, the caller's cancellation and
// requests that can not be sent are never retried. A per-try timeout counts as a reset of a request that was sent.
func (p *RetryPolicy) Retriable(o *Outcome) bool {
	if o.Failure != NoFailure {
		return p.On&retriedFailures(o.Failure) != 0
	}
	if len(rateLimitedHeader.In(o.Header, o.Form)) != 0 {
		return p.On&OnEnvoyRateLimited != 0
	}
	switch {
	case p.On&On5xx != 0 && o.Status >= 500 && o.Status <= 599,
		p.On&OnGatewayError != 0 && isGatewayError(o.Status),
		p.On&OnRetriable4xx != 0 && o.Status == 409,
		p.On&OnRetriableStatusCodes != 0 && o.Status > 0 && slices.Contains(p.StatusCodes, uint32(o.Status)),
		p.On&OnRetriableHeaders != 0 && p.matchesHeaders(o):
		return true
	}
	return p.On&retriedGRPC(o.GRPC) != 0
}

// retriedFailures returns the conditions that retry the failure.
func retriedFailures(f Failure) RetryOn {
	const everyReset = On5xx | OnGatewayError | OnReset
	switch f {
	case ConnectFailure:
		return everyReset | OnResetBeforeRequest | OnConnectFailure
	case ResetBeforeRequest:
		return everyReset | OnResetBeforeRequest
	case RefusedStream:
		return everyReset | OnRefusedStream
	case Reset, PerTryTimeout:
		return everyReset
	}
	return 0
}

func retriedGRPC(status int) RetryOn {
	switch status {
	case 1:
		return OnCancelled
	case 4:
		return OnDeadlineExceeded
	case 8:
		return OnResourceExhausted
	case 13:
		return OnInternal
	case 14:
		return OnUnavailable
	}
	return 0
}

func isGatewayError(status int) bool { return status >= 502 && status <= 504 }

func (p *RetryPolicy) matchesHeaders(o *Outcome) bool {
	for i := range p.Headers {
		m := &p.Headers[i]
		values := m.Name.In(o.Header, o.Form)
		if m.Name.String() == ":status" && o.Status != 0 {
			values = []string{strconv.Itoa(o.Status)}
		}
		if m.MatchesValues(values) {
			return true
		}
	}
	return false
}
