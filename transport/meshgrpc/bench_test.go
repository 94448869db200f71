package meshgrpc

import (
	"context"
	"sync"
	"testing"
	"time"

	metricsdk "go.opentelemetry.io/otel/sdk/metric"
	tracesdk "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/stats"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/telemetry"
)

// benchBackends starts three servers and returns their addresses.
func benchBackends(b *testing.B, options ...grpc.ServerOption) []string {
	var all []string
	for range 3 {
		all = append(all, newBackend(b, "b", nil, options...).address)
	}
	return all
}

// BenchmarkUnary compares unary calls over three endpoints with those of
// round_robin in bare gRPC, in blocks that alternate, so that both see the same
// machine: x-plain is the ratio of their times per call.
func BenchmarkUnary(b *testing.B) {
	provider := metricsdk.NewMeterProvider(metricsdk.WithReader(metricsdk.NewManualReader()))
	tel, err := telemetry.New(telemetry.Options{
		TracerProvider: tracesdk.NewTracerProvider(tracesdk.WithSampler(tracesdk.NeverSample())),
		MeterProvider:  provider,
	})
	if err != nil {
		b.Fatal(err)
	}
	client := ClientOptions{Default: &DefaultPolicy{Retries: 2}}
	traced := client
	traced.StatsHandlers = []stats.Handler{tel.ClientStats()}
	traced.UnaryInterceptors = []grpc.UnaryClientInterceptor{tel.UnaryClientInterceptor()}
	empty := client
	empty.StatsHandlers = []stats.Handler{&countingHandler{}}
	measured := traced
	measured.MeterProvider = provider
	for _, bb := range []struct {
		name    string
		client  ClientOptions
		xds     bool
		bareXDS bool
		server  bool // admission by policy
		tracing bool
		metrics bool
		empty   bool // stats handlers that do nothing: what gRPC itself charges for having any
	}{
		{name: "default", client: client},
		{name: "default+admission", client: client, server: true},
		{name: "default+admission+empty-stats", client: empty, server: true, empty: true},
		{name: "default+admission+unsampled", client: traced, server: true, tracing: true},
		{name: "default+admission+unsampled+metrics", client: measured, server: true, tracing: true, metrics: true},
		{name: "bare-xds", bareXDS: true},
		{name: "xds", client: client, xds: true},
		{name: "xds+admission+unsampled", client: traced, xds: true, server: true, tracing: true},
		{name: "xds+admission+unsampled+metrics", client: measured, xds: true, server: true, tracing: true, metrics: true},
	} {
		b.Run(bb.name, func(b *testing.B) {
			target, with := resolvesTo(benchBackends(b)...)
			plain, _ := dial(b, target, with, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))

			var options []grpc.ServerOption
			if bb.server {
				var e *inbound.Engine
				e = inbound.New(inbound.Options{Subscribe: benchPolicies(func(s *snapshot.Snapshot) { e.Install(s) })})
				b.Cleanup(e.Close)
				c := ServerConfig{Inbound: e}
				if bb.tracing {
					c.StatsHandlers = []stats.Handler{tel.ServerStats()}
				}
				if bb.empty {
					c.StatsHandlers = []stats.Handler{&countingHandler{}}
				}
				if bb.metrics {
					c.MeterProvider = provider
				}
				options = ServerOptions(c)
			}
			addresses := benchBackends(b, options...)
			o := bb.client
			target, with = resolvesTo(addresses...)
			if bb.xds || bb.bareXDS {
				cp := newControlPlane(b)
				cp.set(b, join(listener(host, 0), routes(host, to("c")), cluster("c", addresses...))...)
				target, with = "xds:///"+host, grpc.EmptyDialOption{}
				o.Bootstrap = cp.bootstrap()
			}
			dialOptions := append(DialOptions(o), with)
			if bb.bareXDS {
				r := channelResolver(o.Bootstrap, nil).(settlingResolver).Builder
				dialOptions = []grpc.DialOption{grpc.WithResolvers(r), grpc.WithTransportCredentials(insecure.NewCredentials())}
			}
			mesh, _ := dial(b, target, dialOptions...)

			ctx := context.Background()
			request := &pb.SimpleRequest{}
			block := func(c pb.TestServiceClient, n int) time.Duration {
				start := time.Now()
				for range n {
					if _, err := c.UnaryCall(ctx, request); err != nil {
						b.Fatal(err)
					}
				}
				return time.Since(start)
			}
			block(plain, 300)
			block(mesh, 300)
			var p, m time.Duration
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; {
				n := min(100, b.N-done)
				b.StopTimer()
				p += block(plain, n)
				b.StartTimer()
				m += block(mesh, n)
				done += n
			}
			b.ReportMetric(float64(m)/float64(p), "x-plain")
		})
	}
}

// benchPolicies answers each subscription with a listener that admits.
func benchPolicies(install func(*snapshot.Snapshot)) func(string) {
	var mu sync.Mutex
	all := map[string]*snapshot.Inbound{}
	return func(address string) {
		mu.Lock()
		defer mu.Unlock()
		if all[address] != nil {
			return
		}
		all[address] = open()
		s := &snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{}}
		for a, in := range all {
			s.Inbound[a] = in
		}
		install(s)
	}
}
