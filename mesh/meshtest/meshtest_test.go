package meshtest_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

func answer(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, text) })
}

func get(t testing.TB, c *http.Client, url string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

const subsets = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {user: {exact: test-user}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: %s}}]
`

func TestRouteByPolicy(t *testing.T) {
	leak.Check(t)
	w := meshtest.New(t,
		meshtest.Policy(fmt.Sprintf(subsets, "v1")),
		meshtest.HTTP("reviews", "v1", answer("v1")),
		meshtest.HTTP("reviews", "v2", answer("v2")),
	)
	for range 20 {
		if _, body := get(t, w.Client(), "http://reviews/"); body != "v1" {
			t.Fatalf("without the header: %q", body)
		}
		if _, body := get(t, w.Client(), "http://reviews/", "User", "test-user"); body != "v2" {
			t.Fatalf("with the header: %q", body)
		}
	}
	w.SetPolicy(fmt.Sprintf(subsets, "v2"))
	w.Eventually("all traffic goes to v2", func() bool {
		_, body := get(t, w.Client(), "http://reviews/")
		return body == "v2"
	})
}

func TestRetryAndEjection(t *testing.T) {
	leak.Check(t)
	var failures atomic.Int32
	bad := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		failures.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	w := meshtest.New(t, meshtest.Policy(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: details}
spec:
  hosts: [details]
  http:
  - route: [{destination: {host: details}}]
    retries: {attempts: 2, retryOn: "5xx,connect-failure"}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: details}
spec:
  host: details
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 1m, maxEjectionPercent: 100}
`),
		meshtest.HTTP("details", "v1", answer("ok")),
		meshtest.HTTP("details", "v1", bad),
		meshtest.Dead("details", "v1"),
	)
	for range 60 {
		if code, body := get(t, w.Client(), "http://details/"); code != 200 || body != "ok" {
			t.Fatalf("%d %q", code, body)
		}
	}
	if n := failures.Load(); n != 3 {
		t.Errorf("the failing endpoint had %d requests, want 3 before its ejection", n)
	}
}

func TestGRPC(t *testing.T) {
	w := meshtest.New(t, meshtest.GRPC("ratings", "v1", func(r grpc.ServiceRegistrar) {
		healthpb.RegisterHealthServer(r, health.NewServer())
	}))
	conn, err := grpc.NewClient("xds:///ratings:80", w.Mesh().DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestPolicyDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sub")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "reviews.yaml"), fmt.Appendf(nil, subsets, "v2"), 0o644); err != nil {
		t.Fatal(err)
	}
	w := meshtest.New(t, meshtest.PolicyDir(filepath.Dir(dir)), meshtest.HTTP("reviews", "v1", answer("v1")), meshtest.HTTP("reviews", "v2", answer("v2")))
	if _, body := get(t, w.Client(), "http://reviews/"); body != "v2" {
		t.Errorf("got %q", body)
	}
}
