package mesh_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// what a scenario's service does, and what it has seen, whatever the protocol.
type scenarioServer struct {
	pb.UnimplementedTestServiceServer
	name string
	// fails makes the first so many requests fail, with HTTP 503 or UNAVAILABLE.
	fails int
	slow  bool // answers when the caller has given up
	hangs int  // so many of the first requests are as with slow
	// race has the first request answered when the second has come, which gets no answer.
	race bool

	mu     sync.Mutex
	seen   []map[string]string // headers
	second chan struct{}       // closed when the second request has come
}

func (s *scenarioServer) take(get func(string) string) (failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := map[string]string{}
	for _, name := range []string{"x-added", "x-removed", "x-envoy-expected-rq-timeout-ms", ":authority"} {
		h[name] = get(name)
	}
	s.seen = append(s.seen, h)
	switch len(s.seen) {
	case 1:
		s.second = make(chan struct{})
	case 2:
		close(s.second)
	}
	return len(s.seen) <= s.fails
}

// wait holds a request up as the scenario has it. It reports whether to answer.
func (s *scenarioServer) wait(ctx context.Context) bool {
	s.mu.Lock()
	n, second := len(s.seen), s.second
	s.mu.Unlock()
	switch {
	case s.race && n == 1:
		select {
		case <-second:
			return true
		case <-ctx.Done():
			return false
		}
	case s.slow, n <= s.hangs, s.race:
		<-ctx.Done()
		return false
	}
	return true
}

func (s *scenarioServer) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = nil
}

func (s *scenarioServer) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

func (s *scenarioServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	failed := s.take(func(name string) string {
		if name == ":authority" {
			return r.Host
		}
		return r.Header.Get(name)
	})
	if !s.wait(r.Context()) {
		return
	}
	if failed {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, s.name)
}

func (s *scenarioServer) UnaryCall(ctx context.Context, _ *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	failed := s.take(func(name string) string { return strings.Join(md[name], ",") })
	if !s.wait(ctx) {
		return nil, ctx.Err()
	}
	if failed {
		return nil, grpcstatus.Error(codes.Unavailable, "not now")
	}
	return &pb.SimpleResponse{Hostname: s.name}, nil
}

// outcome is what a request came to, in terms that HTTP and gRPC share.
type outcome struct {
	from   string // the instance that answered
	status int    // as HTTP has it: 200, 503, 504 and so on; gRPC's codes by their counterparts
}

func outcomeOfCode(err error) int {
	switch grpcstatus.Code(err) {
	case codes.OK:
		return 200
	case codes.Unavailable:
		return 503
	case codes.DeadlineExceeded:
		return 504
	case codes.PermissionDenied:
		return 403
	case codes.Unimplemented:
		return 404
	}
	return 500
}

// TestScenarios runs one table of policies through HTTP, "mesh:///" and, where
// gRPC's own xDS client knows the rule, "xds:///": the same YAML comes to the same.
func TestScenarios(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy string // SERVICE stands for the service's name, PATH for the request's path
		header map[string]string
		setup  func(v1, v2 *scenarioServer)
		want   []outcome // one of these
		extra  string    // other objects of policy
		to     string    // the DestinationRule's trafficPolicy
		repeat int       // how many requests follow the first
		mtls   bool
		xds    bool
		// v1 and v2 are the requests that the instances see; -1 for any number.
		v1, v2 int
		check  func(t *testing.T, v1, v2 *scenarioServer)
	}{
		{
			name: "route by header", header: map[string]string{"x-version": "two"}, want: []outcome{{"v2", 200}}, v2: 1, xds: true,
			policy: `
  http:
  - match: [{headers: {x-version: {exact: two}}}]
    route: [{destination: {host: SERVICE, subset: v2}}]
  - route: [{destination: {host: SERVICE, subset: v1}}]`,
		},
		{
			name: "other header", header: map[string]string{"x-version": "three"}, want: []outcome{{"v1", 200}}, v1: 1, xds: true,
			policy: `
  http:
  - match: [{headers: {x-version: {exact: two}}}]
    route: [{destination: {host: SERVICE, subset: v2}}]
  - route: [{destination: {host: SERVICE, subset: v1}}]`,
		},
		{
			name: "weights", want: []outcome{{"v2", 200}}, v2: 1, xds: true,
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}, weight: 0}, {destination: {host: SERVICE, subset: v2}, weight: 100}]`,
		},
		{
			name: "retry", want: []outcome{{"v1", 200}}, v1: 3, xds: true,
			setup: func(v1, _ *scenarioServer) { v1.fails = 2 },
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    retries: {attempts: 2, retryOn: "unavailable,5xx"}`,
		},
		{
			name: "retries used up", want: []outcome{{"", 503}}, v1: 2, xds: true,
			setup: func(v1, _ *scenarioServer) { v1.fails = 100 },
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    retries: {attempts: 1, retryOn: "unavailable,5xx"}`,
		},
		{
			name: "no retry", want: []outcome{{"", 503}}, v1: 1,
			setup: func(v1, _ *scenarioServer) { v1.fails = 1 },
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    retries: {attempts: 0}`,
		},
		{
			name: "timeout", want: []outcome{{"", 504}}, v1: 1, xds: true,
			setup: func(v1, _ *scenarioServer) { v1.slow = true },
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    timeout: 0.2s
    retries: {attempts: 0}`,
		},
		{
			name: "fault", want: []outcome{{"", 503}}, xds: true,
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}`,
		},
		{
			// To what is no call of gRPC the answer is 200, with the status beside it (Envoy).
			name: "fault with a status of gRPC", want: []outcome{{"", 403}, {"fault filter abort", 200}}, xds: true,
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    fault: {abort: {grpcStatus: PERMISSION_DENIED, percentage: {value: 100}}}`,
		},
		{
			name: "fault for some requests", header: map[string]string{"x-user": "jane"}, want: []outcome{{"v2", 200}}, v2: 1, xds: true,
			policy: `
  http:
  - match: [{headers: {x-user: {exact: joe}}}]
    route: [{destination: {host: SERVICE, subset: v1}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}
  - route: [{destination: {host: SERVICE, subset: v2}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 0}}}`,
		},
		{
			name: "path, regular expression, absent header", header: map[string]string{"x-version": "2024-05"}, want: []outcome{{"v2", 200}}, v2: 1, xds: true,
			policy: `
  http:
  - match: [{uri: {exact: /elsewhere}}, {uri: {exact: PATH}, headers: {x-version: {regex: "[0-9]+"}}}, {uri: {exact: PATH}, withoutHeaders: {x-version: {}}}]
    route: [{destination: {host: SERVICE, subset: v1}}]
  - match: [{uri: {exact: PATH}, headers: {x-version: {regex: "[0-9]+-[0-9]+"}}, withoutHeaders: {x-old: {}}}]
    route: [{destination: {host: SERVICE, subset: v2}}]
  - route: [{destination: {host: SERVICE, subset: v1}}]`,
		},
		{
			name: "what is not retriable", want: []outcome{{"", 503}}, v1: 1, xds: true,
			setup: func(v1, _ *scenarioServer) { v1.fails = 1 },
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    retries: {attempts: 2, retryOn: "resource-exhausted"}`,
		},
		{
			name: "authority rewritten", want: []outcome{{"v1", 200}}, v1: 1,
			policy: `
  http:
  - rewrite: {authority: other.test}
    route: [{destination: {host: SERVICE, subset: v1}}]`,
			check: func(t *testing.T, v1, _ *scenarioServer) {
				if h := v1.seen[0]; h[":authority"] != "other.test" {
					t.Errorf("the server saw %v", h)
				}
			},
		},
		{
			name: "retries that the request asks for", header: map[string]string{"x-envoy-retry-on": "5xx", "x-envoy-retry-grpc-on": "unavailable", "x-envoy-max-retries": "2"},
			want: []outcome{{"v1", 200}}, v1: 3,
			setup: func(v1, _ *scenarioServer) { v1.fails = 2 },
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    retries: {attempts: 0}`,
		},
		{
			name: "copies to some", want: []outcome{{"v1", 200}}, v1: 1, v2: 1,
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    mirrors: [{destination: {host: SERVICE, subset: v2}}, {destination: {host: SERVICE, subset: v2}, percentage: {value: 0}}]`,
		},
		{
			name: "direct response", want: []outcome{{"", 403}},
			policy: `
  http:
  - directResponse: {status: 403, body: {string: "not here"}}`,
		},
		{
			name: "mirror", want: []outcome{{"v1", 200}}, v1: 1, v2: 1,
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    mirror: {host: SERVICE, subset: v2}`,
		},
		{
			name: "mutual TLS", mtls: true, want: []outcome{{"v1", 200}}, v1: 1, xds: true,
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]`,
			extra: `---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
`,
		},
		{
			name: "per-try timeout", want: []outcome{{"v1", 200}}, v1: 2,
			setup: func(v1, _ *scenarioServer) { v1.hangs = 1 },
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    retries: {attempts: 1, perTryTimeout: 0.2s, retryOn: 5xx}`,
		},
		{
			// The first attempt answers when the second has come: none is given up at its time limit.
			name: "hedging", header: map[string]string{"x-envoy-hedge-on-per-try-timeout": "true"}, want: []outcome{{"v1", 200}}, v1: 2,
			setup: func(v1, _ *scenarioServer) { v1.race = true },
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    match: [{uri: {exact: PATH}}]
    retries: {attempts: 1, perTryTimeout: 0.2s, retryOn: 5xx}`,
		},
		{
			name: "deadline", want: []outcome{{"v1", 200}}, v1: 1,
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    timeout: 7s`,
			check: func(t *testing.T, v1, _ *scenarioServer) {
				if got := v1.seen[0]["x-envoy-expected-rq-timeout-ms"]; len(got) != 4 || got > "7000" {
					t.Errorf("the server was told of a time limit of %q ms", got)
				}
			},
		},
		{
			name: "stickiness by header", header: map[string]string{"x-user": "jane"}, want: []outcome{{"v1", 200}, {"v2", 200}},
			v1: -1, v2: -1, repeat: 20, xds: true,
			to: "{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}",
			policy: `
  http:
  - route: [{destination: {host: SERVICE}}]`,
			check: func(t *testing.T, v1, v2 *scenarioServer) {
				if a, b := v1.calls(), v2.calls(); a+b != 21 || a*b != 0 {
					t.Errorf("one user's requests: %d to v1, %d to v2", a, b)
				}
			},
		},
		{
			name: "ejection", want: []outcome{{"", 503}, {"v2", 200}}, v1: 3, v2: 38, repeat: 40,
			setup: func(v1, _ *scenarioServer) { v1.fails = 1000 },
			to:    "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 3, interval: 60s, baseEjectionTime: 60s, maxEjectionPercent: 100}}",
			policy: `
  http:
  - route: [{destination: {host: SERVICE}}]
    retries: {attempts: 0}`,
		},
		{
			name: "redirect", want: []outcome{{"", 301}, {"", 500}},
			policy: `
  http:
  - redirect: {authority: elsewhere.test}`,
		},
		{
			name: "header changes", header: map[string]string{"x-removed": "1"}, want: []outcome{{"v1", 200}}, v1: 1,
			policy: `
  http:
  - route: [{destination: {host: SERVICE, subset: v1}}]
    headers: {request: {set: {x-added: "yes"}, remove: [x-removed]}}`,
			check: func(t *testing.T, v1, _ *scenarioServer) {
				if h := v1.seen[0]; h["x-added"] != "yes" || h["x-removed"] != "" {
					t.Errorf("the server saw %v", h)
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			servers := map[string][2]*scenarioServer{}
			var options []meshtest.Option
			var yaml strings.Builder
			for _, service := range []string{"web", "rpc"} {
				pair := [2]*scenarioServer{{name: "v1"}, {name: "v2"}}
				if c.setup != nil {
					c.setup(pair[0], pair[1])
				}
				servers[service] = pair
				for _, s := range pair {
					if service == "web" {
						options = append(options, meshtest.HTTP(service, s.name, s))
					} else {
						options = append(options, meshtest.GRPC(service, s.name, func(r grpc.ServiceRegistrar) { pb.RegisterTestServiceServer(r, s) }))
					}
				}
				path := "/"
				if service == "rpc" {
					path = pb.TestService_UnaryCall_FullMethodName
				}
				traffic := ""
				if c.to != "" {
					traffic = "\n  trafficPolicy: " + c.to
				}
				fmt.Fprintf(&yaml, `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s}
spec:
  host: %[1]s%[3]s
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s}
spec:
  hosts: [%[1]s]%[2]s
`, service, strings.NewReplacer("SERVICE", service, "PATH", path).Replace(c.policy), traffic)
			}
			yaml.WriteString(c.extra)
			if c.mtls {
				options = append(options, meshtest.MutualTLS())
			}
			w := meshtest.New(t, append(options, meshtest.Policy(yaml.String()))...)
			expect := func(by string, got outcome) {
				t.Helper()
				if !slices.Contains(c.want, got) {
					t.Errorf("%s: %+v, want one of %+v", by, got, c.want)
				}
			}
			check := func(by, service string) {
				t.Helper()
				v1, v2 := servers[service][0], servers[service][1]
				w.Eventually(fmt.Sprintf("%s: the instances see %d and %d requests", by, c.v1, c.v2), func() bool {
					return (c.v1 < 0 || v1.calls() == c.v1) && (c.v2 < 0 || v2.calls() == c.v2)
				})
				if c.check != nil && !t.Failed() {
					c.check(t, v1, v2)
				}
				v1.reset()
				v2.reset()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()

			for range c.repeat + 1 {
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://web/", nil)
				for name, value := range c.header {
					req.Header.Set(name, value)
				}
				var got outcome
				if resp, err := w.Mesh().RoundTripper().RoundTrip(req); err != nil {
					got.status = 504 // the only error of these scenarios that is none of the server's
					if !strings.Contains(err.Error(), "timeout") {
						t.Error(err)
					}
				} else {
					b, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					if got.status = resp.StatusCode; got.status == 200 {
						got.from = string(b)
					}
				}
				expect("HTTP", got)
			}
			check("HTTP", "web")

			for _, scheme := range []string{"mesh", "xds"} {
				if scheme == "xds" && !c.xds {
					continue
				}
				conn, err := grpc.NewClient(scheme+":///rpc:80", w.Mesh().DialOptions()...)
				if err != nil {
					t.Fatal(err)
				}
				ctx := ctx
				for name, value := range c.header {
					ctx = metadata.AppendToOutgoingContext(ctx, name, value)
				}
				for range c.repeat + 1 {
					resp, err := pb.NewTestServiceClient(conn).UnaryCall(ctx, &pb.SimpleRequest{})
					got := outcome{status: outcomeOfCode(err)}
					if err == nil {
						got.from = resp.Hostname
					} else {
						t.Logf("%s: %v", scheme, err)
					}
					expect(scheme, got)
				}
				check(scheme, "rpc")
				conn.Close()
			}
		})
	}
}
