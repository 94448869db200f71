package telemetry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// TestSeriesAreConstant: whatever 100,000 strangers put into requests, and
// however many rules, hosts, routes and clusters policy has had, the number of
// series of each metric stays below a bound and, once it is reached, where it is.
func TestSeriesAreConstant(t *testing.T) {
	const strangers = 100_000
	for name, c := range map[string]struct {
		metrics []string
		most    int
		visit   func(tel *Telemetry) func(r *rand.Rand, i int)
	}{
		"rules, decisions and handshakes": {
			[]string{"mesh.server.decisions", "mesh.server.audited", "mesh.server.dry_run", "mesh.server.handshake_failures"}, maxAccessSets + 16,
			func(tel *Telemetry) func(*rand.Rand, int) {
				o, ctx := tel.InboundObserver(), context.Background()
				return func(r *rand.Rand, i int) {
					rule := fmt.Sprintf("rule %d", i)
					o.Decided(ctx, &inbound.Outcome{
						Reason: []inbound.Reason{"", inbound.ReasonAuthorization, inbound.ReasonPlaintext}[r.IntN(3)], Rule: rule, MutualTLS: r.IntN(2) == 0,
						Audited: rule, DryRun: true, DryRunRule: rule, StrictDryRun: rule,
					})
					o.HandshakeFailed(fmt.Sprintf("10.0.%d.%d:80", i>>8&255, i&255), rule)
				}
			},
		},
		"paths, methods and statuses": {
			[]string{"http.server.request.duration"}, maxServerSets + maxOtherSets + 1,
			func(tel *Telemetry) func(*rand.Rand, int) {
				status := 200
				h := tel.Handler(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					req.Pattern = req.URL.Path
					w.WriteHeader(status)
				}))
				request := httptest.NewRequest("GET", "/", nil)
				return func(r *rand.Rand, i int) {
					req := *request
					u := *request.URL
					u.Path = fmt.Sprint("/", i)
					req.URL, req.Method, req.Host, status = &u, fmt.Sprint("M", r.IntN(strangers)), fmt.Sprint("h", i), 200+r.IntN(700)
					h.ServeHTTP(discard{http.Header{}}, &req)
				}
			},
		},
		"hosts, routes and clusters": {
			[]string{"mesh.client.call.duration"}, maxClientSets + maxOtherSets + 1,
			func(tel *Telemetry) func(*rand.Rand, int) {
				o := tel.Observer()
				ctx := context.Background()
				return func(r *rand.Rand, i int) {
					l := o.Leg(outbound.LegInfo{Host: fmt.Sprint("h", i, ":80"), Route: fmt.Sprint("r", i), Cluster: fmt.Sprint("c", i)}).(*leg)
					sets := tel.client.options(l.to, setKey{status: uint16(100 + 9*r.IntN(50)), method: method(r.IntN(8))})
					if i < 10_000 || i%8 == 0 { // recording costs most of the time
						tel.calls.Record(ctx, 1, sets.call...)
					}
				}
			},
		},
		"clusters with ejections": {
			[]string{"mesh.client.ejected"}, maxClusters + 1,
			func(tel *Telemetry) func(*rand.Rand, int) {
				o := tel.Observer().(observer)
				return func(r *rand.Rand, i int) {
					o.Ejection(fmt.Sprint("c", i), fmt.Sprint("10.0.0.", r.IntN(250)), "consecutive_5xx", r.IntN(2) == 0)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			reader := sdk.NewManualReader()
			provider := sdk.NewMeterProvider(sdk.WithReader(reader), sdk.WithCardinalityLimit(0))
			tel, err := New(Options{MeterProvider: provider, TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))})
			if err != nil {
				t.Fatal(err)
			}
			careless, err := provider.Meter("test").Int64Counter("careless")
			if err != nil {
				t.Fatal(err)
			}
			series := func() map[string]int {
				var all metricdata.ResourceMetrics
				if err := reader.Collect(context.Background(), &all); err != nil {
					t.Fatal(err)
				}
				n := map[string]int{}
				for _, scope := range all.ScopeMetrics {
					for _, m := range scope.Metrics {
						if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "careless" {
							n[m.Name] = len(sum.DataPoints)
						} else {
							n[m.Name] = len(pointsOf(m))
						}
					}
				}
				return n
			}
			r := rand.New(rand.NewPCG(1, 48))
			visit := c.visit(tel)
			for i := range strangers / 2 {
				visit(r, i)
				if i < 3000 { // the mistake: what strangers say is an attribute as it is
					careless.Add(context.Background(), 1, metric.WithAttributes(attribute.String("name", fmt.Sprint(i))))
				}
			}
			half := series()
			for i := range strangers / 2 {
				visit(r, strangers/2+i)
			}
			all := series()
			for _, m := range c.metrics {
				// All values that are told apart beyond the bound are of a few kinds, which 50,000 draws have all had.
				if all[m] == 0 || all[m] > c.most || all[m]-half[m] > c.most/50 {
					t.Errorf("%s has %d series and then %d, want at most %d", m, half[m], all[m], c.most)
				}
			}
			if all["careless"] <= c.most {
				t.Errorf("a careless metric has %d series", all["careless"])
			}
			t.Logf("%d strangers: %v", strangers, all)
		})
	}
}

// discard is a response that nobody reads.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
