package mesh_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// answerAll is a server of HTTP/1.1 that has no cost worth the name, so that what
// is measured is the client: it answers every request without a body at once.
func answerAll(tb testing.TB, lis net.Listener) {
	tb.Helper()
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: s\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok")
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buffer := make([]byte, 4096)
				for n := 0; ; {
					m, err := conn.Read(buffer[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(buffer[:n], []byte("\r\n\r\n")) {
						n = 0
						if _, err := conn.Write(answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	tb.Cleanup(func() { lis.Close() })
}

// rules is policy for services on one port: "plain" has a time limit and
// Istio's own retries, "armed" and "ewma" have every rule, none of which acts on
// the requests that are sent.
func rules(port int) string {
	var b strings.Builder
	for _, name := range []string{"plain", "armed", "ewma"} {
		annotations := ""
		if name == "ewma" {
			annotations = `, annotations: {sinew.io/load-balancer: peak-ewma}`
		}
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: default%[3]s}
spec:
  selector: {app: %[1]s}
  ports: [{name: http, port: 80}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %[1]s-1, namespace: default}
spec:
  address: 127.0.0.1
  ports: {http: %[2]d}
  labels: {app: %[1]s, version: v1}
  locality: r/z
`, name, port, annotations)
	}
	b.WriteString(`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: plain, namespace: default}
spec:
  hosts: [plain]
  http:
  - timeout: 30s
    route: [{destination: {host: plain}}]
`)
	for _, name := range []string{"armed", "ewma"} {
		hash := ""
		if name == "armed" {
			hash = `
    loadBalancer:
      consistentHash: {httpHeaderName: end-user}
      localityLbSetting: {enabled: true, failoverPriority: ["topology.kubernetes.io/region"]}`
		}
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s, namespace: default}
spec:
  host: %[1]s
  subsets: [{name: v1, labels: {version: v1}}]
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 100, connectTimeout: 1s}
      http: {http1MaxPendingRequests: 100, http2MaxRequests: 1000, maxRetries: 10}
    outlierDetection: {consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 30s, maxEjectionPercent: 50}
    retryBudget: {percent: 20, minRetryConcurrency: 3}%[2]s
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s, namespace: default}
spec:
  hosts: [%[1]s]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: %[1]s, subset: v1}}]
  - match: [{uri: {prefix: /reviews}}]
    rewrite: {uri: /v2/reviews}
    timeout: 30s
    retries: {attempts: 3, perTryTimeout: 5s, retryOn: "connect-failure,refused-stream,503"}
    headers:
      request: {set: {x-region: eu}, add: {x-team: shop}, remove: [x-debug]}
      response: {set: {x-served: mesh}, remove: [server]}
    fault: {abort: {httpStatus: 503, percentage: {value: 0}}, delay: {fixedDelay: 1s, percentage: {value: 0}}}
    corsPolicy: {allowOrigins: [{exact: "https://shop.example"}], allowMethods: [GET]}
    mirror: {host: %[1]s, subset: v1}
    mirrorPercentage: {value: 0}
    route: [{destination: {host: %[1]s, subset: v1}, weight: 100}]
`, name, hash)
	}
	return b.String()
}

func noTracer() trace.TracerProvider { return noop.NewTracerProvider() }
func neverSampled() trace.TracerProvider {
	return sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
}
func meter() metric.MeterProvider {
	return sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
}

// costed is a client whose cost is measured; send sends so many requests, one by one.
type costed struct {
	name string
	send func(n int)
}

// clients are net/http alone and, beside it, the mesh in several ways.
func clients(tb testing.TB) []costed {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	answerAll(tb, lis)
	w := meshtest.New(tb, meshtest.Policy(rules(lis.Addr().(*net.TCPAddr).Port)))
	sends := func(name string, c *http.Client, url string) costed {
		buffer := make([]byte, 512)
		return costed{name, func(n int) {
			for range n {
				req, err := http.NewRequest(http.MethodGet, url, nil)
				if err != nil {
					tb.Fatal(err)
				}
				req.Header.Set("End-User", "alice")
				req.Header.Set("Accept", "*/*")
				resp, err := c.Do(req)
				if err != nil {
					tb.Fatal(err)
				}
				if resp.StatusCode != 200 {
					tb.Fatal(resp.Status)
				}
				for err == nil {
					_, err = resp.Body.Read(buffer)
				}
				resp.Body.Close()
				if err != io.EOF {
					tb.Fatal(err)
				}
			}
		}}
	}
	bare := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	tb.Cleanup(bare.CloseIdleConnections)
	all := []costed{sends("bare", bare, "http://"+lis.Addr().String()+"/reviews/0")}
	for _, t := range []struct {
		name   string
		tracer func() trace.TracerProvider
	}{{"metrics", noTracer}, {"never", neverSampled}} {
		m, err := mesh.New(tb.Context(), mesh.WithBootstrap(w.Bootstrap()), mesh.WithTracerProvider(t.tracer()), mesh.WithMeterProvider(meter()))
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { m.Close() })
		for _, service := range []string{"plain", "armed", "ewma"} {
			all = append(all, sends(service+"/"+t.name, m.Client(), "http://"+service+"/reviews/0"))
		}
	}
	return all
}

// TestCost holds the client side to the objects that it makes for a request
// beyond those of net/http alone. Four of them are net/http's own, for a context
// that can end.
func TestCost(t *testing.T) {
	all := clients(t)
	// The least of many single requests: a sync.Pool may have lost to the garbage
	// collector what it was given, and under the race detector loses it at random.
	count := func(c costed) float64 {
		c.send(50)
		least := testing.AllocsPerRun(1, func() { c.send(1) })
		for range 300 {
			least = min(least, testing.AllocsPerRun(1, func() { c.send(1) }))
		}
		return least
	}
	bare := count(all[0])
	limits := map[string]float64{
		"plain/metrics": 7, "armed/metrics": 11, "ewma/metrics": 11,
		"plain/never": 12, "armed/never": 16, "ewma/never": 16,
	}
	for _, c := range all[1:] {
		if got := count(c) - bare; got > limits[c.name] {
			t.Errorf("%s: %v allocations beyond net/http, want at most %v", c.name, got, limits[c.name])
		}
	}
}

// BenchmarkCost shows what the client side costs beyond net/http alone, by a
// route with a time limit and by one with every rule. The clients take turns, so
// that what else the machine does falls on all alike; the figures are the
// medians of their turns, and of the difference to net/http in the same turn.
func BenchmarkCost(b *testing.B) {
	const turn = 100
	all := clients(b)
	for _, c := range all {
		c.send(2 * turn)
	}
	times := make([][]float64, len(all))
	objects := make([]uint64, len(all))
	for b.Loop() {
		for i, c := range all {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			c.send(turn)
			times[i] = append(times[i], float64(time.Since(began))/turn)
			runtime.ReadMemStats(&after)
			objects[i] += after.Mallocs - before.Mallocs
		}
	}
	b.ReportMetric(0, "ns/op")
	requests := float64(turn * len(times[0]))
	for i, c := range all {
		over := slices.Clone(times[i])
		if i > 0 {
			for j := range over {
				over[j] -= times[0][j]
			}
		}
		slices.Sort(over)
		n := len(over)
		b.ReportMetric(over[n/2], c.name+"-ns")
		b.ReportMetric(float64(objects[i])/requests, c.name+"-allocs")
		b.Logf("%-14s %8.0f ns (%.0f to %.0f) %6.1f allocations", c.name, over[n/2], over[n/4], over[n*3/4], float64(objects[i])/requests)
	}
}
