package translate

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// requests are what becomes of requests under each example of a rule about routes.
var requests = map[string][]exchange{
	"match-path": {
		{ask: "GET http://reviews/login", want: "reviews/v1 /login"},
		{ask: "GET http://reviews/login/", want: "no route"},
		{ask: "GET http://reviews/aPI/x?y=1", want: "reviews/v2 /aPI/x?y=1"},
		{ask: "GET http://reviews/item/42", want: "reviews/v2 /item/42"},
		{ask: "GET http://reviews/item/42/x", want: "no route"},
	},
	"match-request": {
		{ask: "GET http://reviews/?beta=1", header: "x-user: admin-a", want: "reviews/v2 /?beta=1"},
		{ask: "GET http://reviews/?beta=1", header: "x-user: admin-a\nx-old: 1", want: "reviews/v1 /?beta=1"},
		{ask: "POST http://reviews/?beta=1", header: "x-user: admin-a", want: "reviews/v1 /?beta=1"},
		{ask: "GET http://reviews/?beta=2", header: "x-user: admin-a", want: "reviews/v1 /?beta=2"},
		{ask: "POST http://reviews/", header: "Host: reviews.example.com", want: "reviews/v2 /"},
	},
	"match-claims": {
		{ask: "GET http://reviews/", claims: map[string]any{"groups": "testers"}, want: "reviews/v2 /"},
		{ask: "GET http://reviews/", claims: map[string]any{"groups": []any{"staff", "testers"}}, want: "reviews/v2 /"},
		{ask: "GET http://reviews/", claims: map[string]any{"groups": "staff"}, want: "reviews/v1 /"},
		{ask: "GET http://reviews/", header: "groups: testers", want: "reviews/v1 /"},
	},
	"match-source": {{ask: "GET http://reviews/", want: "reviews/v2 /"}},
	"weights": {
		{ask: "GET http://reviews/", draw: 0, want: "reviews/v1 /"},
		{ask: "GET http://reviews/", draw: math.MaxUint64 / 100 * 89, want: "reviews/v1 /"},
		{ask: "GET http://reviews/", draw: math.MaxUint64 / 100 * 91, want: "reviews/v2 /"},
	},
	"redirect": {
		{ask: "GET http://reviews/old/a?b=c", want: "308 to http://reviews/new/a?b=c"},
		{ask: "GET http://reviews/shop", want: "301 to https://shop.example.com/basket"},
		{ask: "GET http://reviews/a", want: "reviews /a"},
	},
	"direct-response": {
		{ask: "GET http://reviews/maintenance", want: `503 "back soon" retry-after: 120`},
		{ask: "GET http://reviews/", want: "reviews /"},
	},
	"rewrite-prefix": {
		{ask: "GET http://reviews/api/v1/list?x=1", want: "reviews /v1/list?x=1 host=reviews.internal"},
		{ask: "GET http://reviews/api/v2/", want: "no route"},
	},
	"rewrite-regex": {
		{ask: "GET http://reviews/users/ann/reviews?x=1", want: "reviews /reviews/by/ann?x=1"},
		{ask: "GET http://reviews/users", want: "reviews /users"},
	},
	"headers": {
		{ask: "GET http://reviews/a?b=1", header: "x-secret: 1\nx-env: prod\nx-trail: caller",
			want: "reviews /a?b=1 -x-secret x-env=staging x-path=/a?b=1 x-trail=caller,route,destination | -server cache-control=no-store"},
	},
	"headers-host": {{ask: "GET http://reviews/", want: "reviews / host=reviews.internal"}},
	"cors": {
		{ask: "OPTIONS http://reviews/", header: "origin: https://shop.example.com\naccess-control-request-method: PUT",
			want: "preflight 200 access-control-allow-credentials: true access-control-allow-headers: x-user access-control-allow-methods: GET,PUT access-control-allow-origin: https://shop.example.com access-control-max-age: 3600"},
		{ask: "OPTIONS http://reviews/", header: "origin: https://other.example.com\naccess-control-request-method: PUT", want: "preflight 200 access-control-allow-credentials: true access-control-allow-headers: x-user access-control-allow-methods: GET,PUT access-control-max-age: 3600"},
		{ask: "GET http://reviews/", header: "origin: https://shop.example.com",
			want: "reviews / | access-control-allow-credentials=true access-control-allow-origin=https://shop.example.com access-control-expose-headers=x-total"},
		{ask: "GET http://reviews/", header: "origin: https://other.example.com", want: "reviews /"},
	},
	"mirror": {{ask: "GET http://reviews/", want: "reviews/v1 / copy=reviews/v2"}},
	"fault": {
		{ask: "GET http://reviews/slow", want: "after 2s reviews /slow"},
		{ask: "GET http://reviews/broken", draw: math.MaxUint64, want: "fault 503"},
		{ask: "GET http://reviews/", want: "reviews /"},
	},
	"fault-grpc":      {{ask: "POST http://reviews/pkg.Reviews/List", grpc: true, want: "fault grpc 14"}},
	"timeout-retries": {{ask: "GET http://reviews/", want: "reviews / timeout=3s"}},
	"delegate": {
		{ask: "GET http://reviews/admin/health", want: `204 ""`},
		{ask: "GET http://reviews/admin/x", want: "reviews/v2 /admin/x timeout=5s"},
		{ask: "GET http://reviews/", want: "reviews/v1 /"},
	},
	"consistent-hash": {
		{ask: "GET http://reviews/", header: "x-user: ann", want: "reviews / hash=true"},
		{ask: "GET http://reviews/", want: "reviews / hash=false"},
	},
	"consistent-hash-cookie": {
		{ask: "GET http://reviews/", header: "cookie: session=1", want: "reviews / hash=true"},
		{ask: "GET http://reviews/", want: "reviews / hash=true set-cookie=session; Max-Age=3600; Path=/; SameSite=Strict; HttpOnly"},
	},
	"service-retries": {{ask: "GET http://orders/", want: "orders / timeout=2s"}},
	"dns":             {{ask: "GET http://api.example.com/", want: "api.example.com / timeout=1s"}},
}

// destinations say what a rule about destinations becomes: a part of the compiled cluster of a service.
var destinations = map[string]struct {
	cluster string // default "outbound|80||reviews..."
	write   func(c *snapshot.Cluster, eps *lb.Endpoints) string
	want    string
}{
	"load-balancer": {write: kind, want: "1"},
	"consistent-hash": {write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		return fmt.Sprint(c.LB.Kind == lb.RingHash, c.LB.Ring.MinSize)
	}, want: "true 2048"},
	"consistent-hash-cookie": {write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		return fmt.Sprint(c.LB.Kind == lb.Maglev, c.LB.Table.Size)
	}, want: "true 65537"},
	"subset": {cluster: "outbound|80|v2|reviews.default.svc.cluster.local",
		write: func(c *snapshot.Cluster, eps *lb.Endpoints) string {
			return fmt.Sprintln(c.Limits.MaxRequests, addressesOf(eps))
		}, want: "10 10.0.0.2:80\n"},
	"connection-pool": {write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		return fmt.Sprint(c.Limits, c.ConnectTimeout, c.IdleTimeout, c.MaxRequestsPerConnection, *c.KeepAlive)
	}, want: "{50 20 100 3} 250ms 10m0s 1000 {2m0s 30s 4}"},
	"http2": {write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		return fmt.Sprint(c.HTTP2, c.MaxConcurrentStreams, c.HTTP2Ping)
	}, want: "true 100 {30s 5s}"},
	"retry-budget": {write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		return fmt.Sprint(c.RetryBudget.Percent, c.RetryBudget.MinConcurrency)
	}, want: "10 5"},
	"outlier-detection": {write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		o := c.Outlier
		return fmt.Sprint(o.Consecutive5xx, o.ConsecutiveGatewayFailure, o.SplitLocalOrigin, o.ConsecutiveLocalOriginFailure, o.Interval, o.BaseEjectionTime, o.MaxEjectionPercent, c.LB.PanicThreshold)
	}, want: "3 2 true 4 5s 1m0s 50 30"},
	"locality-failover": {write: places, want: "eu/a/1 0, us/a/1 1"},
	"locality-distribute": {write: func(c *snapshot.Cluster, eps *lb.Endpoints) string {
		return fmt.Sprint(c.LB.LocalityWeighted, weights(eps))
	}, want: "true [80 20]"},
	"warmup": {write: func(c *snapshot.Cluster, _ *lb.Endpoints) string { return fmt.Sprintln(kind(c, nil), *c.LB.SlowStart) }, want: "1 {1m0s 2 20}\n"},
	"peak-ewma": {write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		return fmt.Sprint(c.LB.Kind == lb.PeakEWMA, c.LB.Decay)
	}, want: "true 10s"},
	"failure-accrual": {cluster: "outbound|80||orders.default.svc.cluster.local", write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		a := c.Accrual
		return fmt.Sprint(a.Consecutive, a.SuccessRate, a.MinPenalty, a.MaxPenalty, a.Jitter)
	}, want: "5 0 500ms 30s 0.5"},
	"zone-aware": {write: func(c *snapshot.Cluster, eps *lb.Endpoints) string {
		return fmt.Sprintln(c.LB.LocalityWeighted, c.LB.ZoneAware.MinCluster, places(c, eps))
	}, want: "false 3 eu/a/1 0, us/a/1 1\n"},
	"workload-name": {cluster: "outbound|80||legacy.default.svc.cluster.local", write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		return fmt.Sprintln(c.Discovery == snapshot.StrictDNS, c.DNS.Names[0].Host, c.DNS.Names[0].Port)
	}, want: "true legacy.example.com 8080\n"},
	"dns": {cluster: "outbound|80||api.example.com", write: func(c *snapshot.Cluster, _ *lb.Endpoints) string {
		return fmt.Sprintln(c.Discovery == snapshot.StrictDNS, c.DNS.Names[0].Host, c.DNS.Names[0].Port, c.DNS.RefreshRate)
	}, want: "true api.example.com 80 1m0s\n"},
}

func kind(c *snapshot.Cluster, _ *lb.Endpoints) string { return fmt.Sprint(c.LB.Kind) }

func addressesOf(eps *lb.Endpoints) string {
	var out []string
	for _, e := range eps.All {
		out = append(out, e.Address)
	}
	return strings.Join(out, ",")
}

func places(_ *snapshot.Cluster, eps *lb.Endpoints) string {
	var out []string
	for _, e := range eps.All {
		out = append(out, fmt.Sprintf("%s/%s/%s %d", e.Locality.Region, e.Locality.Zone, e.Locality.SubZone, e.Priority))
	}
	return strings.Join(out, ", ")
}

func weights(eps *lb.Endpoints) (out []uint32) {
	for _, l := range eps.Localities {
		out = append(out, l.Weight)
	}
	return out
}

// TestTrafficExamples puts each example in force, alone, and sends requests through what
// the mesh's own client makes of it.
func TestTrafficExamples(t *testing.T) {
	files, err := os.ReadDir("testdata/traffic")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".yaml"))
	}
	for name := range requests {
		if !slices.Contains(names, name) {
			t.Errorf("there is no example %s", name)
		}
	}
	for name := range destinations {
		if !slices.Contains(names, name) {
			t.Errorf("there is no example %s", name)
		}
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			text := example(t, name)
			if !strings.HasPrefix(text, "# ") {
				t.Error("does not say what it is for")
			}
			c := client(Sinew)
			c.Locality = &corev3.Locality{Region: "eu", Zone: "a", SubZone: "1"}
			w := reads(t, c, shop, text)
			d, ok := destinations[name]
			if len(requests[name]) == 0 && !ok {
				t.Fatal("nothing tries it")
			}
			for _, x := range requests[name] {
				if got := w.answer(x); got != x.want {
					t.Errorf("%s %q:\n got %s\nwant %s", x.ask, x.header, got, x.want)
				}
			}
			if !ok {
				return
			}
			if d.cluster == "" {
				d.cluster = "outbound|80||reviews.default.svc.cluster.local"
			}
			if got := d.write(w.cluster(d.cluster)); got != d.want {
				t.Errorf("cluster: %s, want %s", got, d.want)
			}
		})
	}
}

// TestTrafficExamplesRetries has the retries of the examples.
func TestTrafficExamplesRetries(t *testing.T) {
	for name, want := range map[string]string{
		"timeout-retries": "4 [503] 500ms 50ms true 5 2",
		"service-retries": "2 [502 503 504] 0s 25ms true 5 0",
	} {
		host := map[string]string{"timeout-retries": "reviews:80", "service-retries": "orders:80"}[name]
		r := reads(t, client(Sinew), shop, example(t, name)).host(host).Routes[0].Retry
		got := fmt.Sprint(r.NumRetries, r.StatusCodes, r.PerTryTimeout, r.BaseInterval, r.AvoidPrevious, r.SelectAttempts, r.PreviousPriorities)
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
