package mesh_test

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	rpc "google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// pathLimits limits shop: /login to 2 requests in an hour, each tenant to
// 3, and all together to 1000. It is the form of Istio's documentation.
const pathLimits = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: shop-limits, namespace: default}
spec:
  workloadSelector:
    labels: {app: shop}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener:
        filterChain:
          filter: {name: envoy.filters.network.http_connection_manager}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          "@type": type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          value: {stat_prefix: shop}
  - applyTo: HTTP_ROUTE
    match:
      context: SIDECAR_INBOUND
      routeConfiguration:
        vhost:
          name: inbound|http|80
          route: {action: ANY}
    patch:
      operation: MERGE
      value:
        route:
          rate_limits:
          - actions:
            - header_value_match:
                descriptor_key: path
                descriptor_value: login
                headers: [{name: ":path", string_match: {prefix: /login}}]
          - actions:
            - request_headers: {header_name: x-tenant, descriptor_key: tenant}
        typed_per_filter_config:
          envoy.filters.http.local_ratelimit:
            "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: shop
            token_bucket: {max_tokens: 1000, tokens_per_fill: 1000, fill_interval: 3600s}
            filter_enabled: {default_value: {numerator: 100}}
            filter_enforced: {default_value: {numerator: 100}}
            enable_x_ratelimit_headers: DRAFT_VERSION_03
            enable_retry_after_header: true
            rate_limited_as_resource_exhausted: true
            descriptors:
            - entries: [{key: path, value: login}]
              token_bucket: {max_tokens: 2, tokens_per_fill: 2, fill_interval: 3600s}
            - entries: [{key: tenant}] # each value on its own
              token_bucket: {max_tokens: 3, tokens_per_fill: 3, fill_interval: 3600s}
`

// identityLimits lets each client ask once in a second, and checkout a thousand times.
const identityLimits = `
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: shop, namespace: default}
spec:
  podSelector: {matchLabels: {app: shop}}
  port: PORT
  accessPolicy: all-unauthenticated
---
apiVersion: policy.linkerd.io/v1alpha1
kind: HTTPLocalRateLimitPolicy
metadata: {name: shop, namespace: default}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: shop}
  identity: {requestsPerSecond: 1}
  overrides:
  - requestsPerSecond: 1000
    clientRefs: [{kind: ServiceAccount, name: checkout}]
`

func registerHealth(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, health.NewServer()) }

func replaceOnce(t *testing.T, text, old, new string) string {
	t.Helper()
	if strings.Count(text, old) != 1 {
		t.Fatalf("%q is not once in the text", old)
	}
	return strings.Replace(text, old, new, 1)
}

// askFor makes a request for a tenant, if one is given, and returns the answer's head.
func askFor(t *testing.T, c *http.Client, url, tenant string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if tenant != "" {
		req.Header.Set("X-Tenant", tenant)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp
}

// headerBetween fails unless a header is a whole number in a range.
func headerBetween(t *testing.T, resp *http.Response, name string, low, high int) {
	t.Helper()
	if n, err := strconv.Atoi(resp.Header.Get(name)); err != nil || n < low || n > high {
		t.Errorf("%d: %s is %q, want %d to %d", resp.StatusCode, name, resp.Header.Get(name), low, high)
	}
}

func TestRateLimitsOverHTTP(t *testing.T) {
	leak.Check(t)
	w := meshtest.New(t, meshtest.MutualTLS(), meshtest.Policy(pathLimits),
		meshtest.HTTP("shop", "v1", peerName), meshtest.HTTP("open", "v1", peerName))
	c := w.Client()
	w.Eventually("the limit of the service's port is in force", func() bool {
		return askFor(t, c, "http://shop/", "").Header.Get("X-Ratelimit-Limit") == "1000"
	})
	for i, want := range []int{200, 200, 429, 429} {
		resp := askFor(t, c, "http://shop/login?try="+strconv.Itoa(i), "")
		if resp.StatusCode != want {
			t.Fatalf("login %d: %d, want %d", i, resp.StatusCode, want)
		}
		if got := resp.Header.Get("X-Ratelimit-Limit"); got != "2" {
			t.Errorf("login %d: the limit is %q", i, got)
		}
		headerBetween(t, resp, "X-Ratelimit-Remaining", max(1-i, 0), max(1-i, 0))
		headerBetween(t, resp, "X-Ratelimit-Reset", 0, 3600)
		if want == 429 {
			headerBetween(t, resp, "Retry-After", 1, 3600)
		} else if got := resp.Header.Get("Retry-After"); got != "" {
			t.Errorf("login %d: Retry-After %q", i, got)
		}
		if limited := resp.Header.Get("X-Envoy-Ratelimited") == "true"; limited != (want == 429) {
			t.Errorf("login %d: said to be limited %v", i, limited)
		}
	}
	// The spelling of a path is no way around, and other paths have their own limits.
	for path, want := range map[string]int{"/logout": 200, "//login": 200, "/./login": 429, "/x/../login": 429, "/%6Cogin": 429} {
		if resp := askFor(t, c, "http://shop"+path, ""); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	for i, want := range []int{200, 200, 200, 429} {
		for _, tenant := range []string{"a", "b"} {
			if resp := askFor(t, c, "http://shop/", tenant); resp.StatusCode != want {
				t.Errorf("tenant %s, request %d: %d, want %d", tenant, i, resp.StatusCode, want)
			}
		}
	}
	if resp := askFor(t, c, "http://open/login", "a"); resp.StatusCode != 200 || resp.Header.Get("X-Ratelimit-Limit") != "" {
		t.Errorf("another service: %d with limit %q", resp.StatusCode, resp.Header.Get("X-Ratelimit-Limit"))
	}
}

func TestRateLimitsOverGRPC(t *testing.T) {
	leak.Check(t)
	const method = "/grpc.health.v1.Health/Check"
	text := replaceOnce(t, pathLimits, "prefix: /login", "exact: "+method)
	w := meshtest.New(t, meshtest.MutualTLS(), meshtest.Policy(text), meshtest.GRPC("shop", "v1", registerHealth))
	c, _ := dialHealth(t, "xds:///shop:80", w.Mesh().DialOptions()...)
	list := func(tenant string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var header metadata.MD
		if tenant != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-tenant", tenant)
		}
		_, err := c.List(ctx, &healthpb.HealthListRequest{}, grpc.Header(&header), grpc.WaitForReady(true))
		limit := header.Get("x-ratelimit-limit")
		if len(limit) != 1 {
			return "", err
		}
		return limit[0], err
	}
	w.Eventually("the limit of the service's port is in force", func() bool {
		limit, err := list("")
		return err == nil && limit == "1000"
	})
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.ResourceExhausted, codes.ResourceExhausted} {
		if got := checkCode(c); got != want {
			t.Errorf("call %d: %v, want %v", i, got, want)
		}
	}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.OK, codes.ResourceExhausted} {
		for _, tenant := range []string{"a", "b"} {
			if _, err := list(tenant); rpc.Code(err) != want {
				t.Errorf("tenant %s, call %d: %v, want %v", tenant, i, err, want)
			}
		}
	}
}

// TestRateLimitsByIdentity: each client has a limit of its own, and one that is named
// another. Under a limit of one request in a second some of a quick row are refused.
func TestRateLimitsByIdentity(t *testing.T) {
	leak.Check(t)
	w := meshtest.New(t, meshtest.MutualTLS(),
		meshtest.Policy(replaceOnce(t, identityLimits, "PORT", "http")), meshtest.HTTP("shop", "v1", peerName))
	checkout, greedy, other := w.As("checkout").Client(), w.As("greedy").Client(), w.As("other").Client()
	w.Eventually("a greedy client is refused", func() bool {
		return askFor(t, greedy, "http://shop/", "").StatusCode == http.StatusTooManyRequests
	})
	if resp := askFor(t, other, "http://shop/", ""); resp.StatusCode != 200 {
		t.Errorf("another client: %d", resp.StatusCode)
	}
	for i := range 50 {
		if resp := askFor(t, checkout, "http://shop/", ""); resp.StatusCode != 200 {
			t.Fatalf("checkout, request %d: %d", i, resp.StatusCode)
		}
	}
}

// TestRateLimitsByIdentityOverGRPC: the code is not one that clients repeat.
func TestRateLimitsByIdentityOverGRPC(t *testing.T) {
	leak.Check(t)
	for name, text := range map[string]string{
		"identity": identityLimits,
		"total":    identityLimits[:strings.Index(identityLimits, "  identity:")] + "  total: {requestsPerSecond: 1}\n",
	} {
		w := meshtest.New(t, meshtest.MutualTLS(), meshtest.Policy(replaceOnce(t, text, "PORT", "grpc")), meshtest.GRPC("shop", "v1", registerHealth))
		greedy, _ := dialHealth(t, "xds:///shop:80", w.As("greedy").DialOptions()...)
		w.Eventually(name+": a greedy client is refused", func() bool {
			switch code := checkCode(greedy); code {
			case codes.OK:
				return false
			case codes.ResourceExhausted:
				return true
			default:
				t.Fatalf("%s: %v", name, code)
				return false
			}
		})
	}
}
