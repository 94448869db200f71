package translate

import (
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	prioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

const (
	// defaultRetryOn is Istio's default. Its list of status codes is empty, so a plain 503 is not tried again.
	defaultRetryOn  = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
	defaultAttempts = 2
	// hostSelectionAttempts is how often a retry looks for an endpoint that was not tried yet (Istio's 5; Envoy's default is 1).
	hostSelectionAttempts = 5
)

// retryPolicy translates HTTPRetry; nil is MeshConfig's defaultHttpRetryPolicy, without
// which it is Istio's default, and attempts of 0 is none. Endpoints that were tried are
// avoided, but not where a hash chooses the one that a request belongs to. Numbers in retryOn are status codes that the upstream answers.
// The pause before retry n is drawn below 25 ms x 2^(n-1) where backoff gives no other base.
// https://istio.io/latest/docs/reference/config/networking/virtual-service/#HTTPRetry
func (b *builder) retryPolicy(in *networking.HTTPRetry, at string, hashed bool) *routev3.RetryPolicy {
	if in == nil {
		if in = b.view.set.MeshConfig.DefaultRetries(); in != nil {
			at = about(&b.view.set.MeshConfig.Meta) + " data.mesh.defaultHttpRetryPolicy"
		}
	}
	out := &routev3.RetryPolicy{
		RetryOn:    defaultRetryOn,
		NumRetries: wrapperspb.UInt32(defaultAttempts),
	}
	if in != nil {
		if in.GetAttempts() <= 0 {
			return nil
		}
		out.NumRetries = wrapperspb.UInt32(uint32(in.GetAttempts()))
		if in.GetRetryOn() != "" {
			out.RetryOn, out.RetriableStatusCodes = parseRetryOn(in.GetRetryOn())
		}
		out.PerTryTimeout = in.GetPerTryTimeout()
		if in.GetBackoff() != nil {
			out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: in.GetBackoff()}
		}
	}
	if b.client.Agent == GRPC {
		b.retryForGRPC(out, at)
		if out.RetryOn == "" {
			return nil
		}
		return out
	}
	if in.GetRetryRemoteLocalities().GetValue() {
		out.RetryPriority = &routev3.RetryPolicy_RetryPriority{
			Name:       "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: mustPack(&prioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 2})},
		}
	}
	if hashed {
		out.HostSelectionRetryMaxAttempts = hostSelectionAttempts
	}
	if ignore := in.GetRetryIgnorePreviousHosts(); ignore == nil && !hashed || ignore.GetValue() {
		out.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: mustPack(&previoushostsv3.PreviousHostsPredicate{})},
		}}
		out.HostSelectionRetryMaxAttempts = hostSelectionAttempts
	}
	return out
}

// parseRetryOn separates conditions from status codes and adds the condition
// that makes the codes count.
func parseRetryOn(s string) (on string, codes []uint32) {
	var conditions []string
	for _, part := range strings.Split(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		if n, err := strconv.Atoi(part); err == nil {
			if n >= 100 && n < 600 {
				codes = append(codes, uint32(n))
			}
			continue
		}
		conditions = append(conditions, part)
	}
	if len(codes) > 0 && !slices.Contains(conditions, "retriable-status-codes") {
		conditions = append(conditions, "retriable-status-codes")
	}
	return strings.Join(conditions, ","), codes
}

// grpcConditions are the retry conditions that gRPC reads (gRFC A44).
var grpcConditions = []string{"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}

// unavailableConditions are those of HTTP whose failure a gRPC client sees as UNAVAILABLE:
// a broken or refused connection or stream, and the HTTP statuses 429, 502, 503 and
// 504 that a server or proxy without gRPC answers
// (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
var unavailableConditions = []string{"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream"}

// retryForGRPC leaves the part of a retry policy that gRPC acts on. Istio sends
// gRPC clients the list as it is, so `retryOn: 5xx,reset,connect-failure` never
// tries a call again. The same rule in front of a proxy would, when the
// connection fails; so conditions of that kind are sent as `unavailable`.
func (b *builder) retryForGRPC(p *routev3.RetryPolicy, at string) {
	var on []string
	var left []string
	add := func(c string) {
		if !slices.Contains(on, c) {
			on = append(on, c)
		}
	}
	for _, c := range strings.Split(p.RetryOn, ",") {
		switch {
		case slices.Contains(grpcConditions, c):
			add(c)
		case slices.Contains(unavailableConditions, c):
			add("unavailable")
		case c != "retriable-status-codes":
			left = append(left, c)
		}
	}
	for _, code := range p.RetriableStatusCodes {
		switch code {
		case 429, 502, 503, 504:
			add("unavailable")
		default:
			left = append(left, strconv.Itoa(int(code)))
		}
	}
	if len(left) > 0 {
		b.note(at+".retryOn", "gRPC does not retry on %s", strings.Join(left, ","))
	}
	if p.PerTryTimeout != nil {
		b.note(at+".perTryTimeout", "gRPC has no limit for one attempt (gRFC A44)")
		p.PerTryTimeout = nil
	}
	p.RetryOn, p.RetriableStatusCodes = strings.Join(on, ","), nil
}
