package resilience

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/sinew-mesh/sinew/routing"
)

// onGRPC are the conditions that x-envoy-retry-grpc-on may name.
const onGRPC = OnCancelled | OnDeadlineExceeded | OnInternal | OnResourceExhausted | OnUnavailable

var (
	retryOnHeader        = routing.NewHeaderName("x-envoy-retry-on")
	retryGRPCOnHeader    = routing.NewHeaderName("x-envoy-retry-grpc-on")
	maxRetriesHeader     = routing.NewHeaderName("x-envoy-max-retries")
	retriableCodesHeader = routing.NewHeaderName("x-envoy-retriable-status-codes")
	retriableNamesHeader = routing.NewHeaderName("x-envoy-retriable-header-names")
	hedgeOnTimeoutHeader = routing.NewHeaderName("x-envoy-hedge-on-per-try-timeout")
)

// WithRequest returns the policy with what the request's own headers ask for
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter):
// x-envoy-retry-on and x-envoy-retry-grpc-on add conditions, x-envoy-max-retries
// sets the number of retries, x-envoy-retriable-status-codes and
// x-envoy-retriable-header-names add to what the conditions of that name retry.
// It returns p itself where the request asks for nothing.
//
// A copy is returned also for x-envoy-hedge-on-per-try-timeout, which says
// nothing of retries: so whoever forwards the request knows of it.
func (p *RetryPolicy) WithRequest(r *routing.Request) *RetryPolicy {
	if len(r.Header) == 0 {
		return p
	}
	on, grpcOn := retryOnHeader.In(r.Header, r.Form), retryGRPCOnHeader.In(r.Header, r.Form)
	most := maxRetriesHeader.In(r.Header, r.Form)
	codes, names := retriableCodesHeader.In(r.Header, r.Form), retriableNamesHeader.In(r.Header, r.Form)
	if len(on)+len(grpcOn)+len(most)+len(codes)+len(names)+len(hedgeOnTimeoutHeader.In(r.Header, r.Form)) == 0 {
		return p
	}
	with := *p
	if len(on) > 0 {
		more, _ := ParseRetryOn(on[0])
		with.On |= more &^ onGRPC
	}
	if len(grpcOn) > 0 {
		more, _ := ParseRetryOn(grpcOn[0])
		with.On |= more & onGRPC
	}
	if len(most) > 0 {
		if n, err := strconv.ParseUint(most[0], 10, 64); err == nil {
			with.NumRetries = uint32(min(n, math.MaxUint32))
		}
	}
	if len(codes) > 0 {
		with.StatusCodes = slices.Clip(p.StatusCodes)
		for part := range strings.SplitSeq(codes[0], ",") {
			if code, err := strconv.ParseUint(strings.TrimSpace(part), 10, 32); err == nil {
				with.StatusCodes = append(with.StatusCodes, uint32(code))
			}
		}
	}
	if len(names) > 0 {
		with.Headers = slices.Clip(p.Headers)
		for part := range strings.SplitSeq(names[0], ",") {
			if part = strings.TrimSpace(part); part != "" {
				with.Headers = append(with.Headers, routing.HeaderMatch{Name: routing.NewHeaderName(part), Kind: routing.HeaderPresent, Present: true})
			}
		}
	}
	return &with
}

// noRetries is what a request's headers are added to where its route has no policy.
var noRetries = DefaultRetryPolicy(0)

// RetryPolicyOf returns the policy that a request's own headers ask for where
// its route has none; nil where x-envoy-retry-on and x-envoy-retry-grpc-on are not there.
func RetryPolicyOf(r *routing.Request) *RetryPolicy {
	if len(r.Header) == 0 || len(retryOnHeader.In(r.Header, r.Form)) == 0 && len(retryGRPCOnHeader.In(r.Header, r.Form)) == 0 {
		return nil
	}
	return noRetries.WithRequest(r)
}
