package mesh_test

import (
	"context"
	"sync/atomic"
	"testing"

	metricsdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	tracesdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// flaky fails its first calls.
type flaky struct {
	pb.UnimplementedTestServiceServer
	fails  atomic.Int64
	calls  atomic.Int64
	second chan struct{} // the first call answers when this is closed by the second; nil for at once
}

func (f *flaky) call(ctx context.Context) error {
	switch n := f.calls.Add(1); {
	case f.second == nil:
	case n == 1:
		select {
		case <-f.second:
		case <-ctx.Done():
			return ctx.Err()
		}
	default:
		close(f.second)
		<-ctx.Done()
		return ctx.Err()
	}
	if f.fails.Add(-1) >= 0 {
		return grpcstatus.Error(codes.Unavailable, "not now")
	}
	return nil
}

func (f *flaky) UnaryCall(ctx context.Context, _ *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	return &pb.SimpleResponse{}, f.call(ctx)
}

func (f *flaky) StreamingOutputCall(_ *pb.StreamingOutputCallRequest, s grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	if err := f.call(s.Context()); err != nil {
		return err
	}
	return s.Send(&pb.StreamingOutputCallResponse{})
}

// TestGRPCObservedOnce: a call on "mesh:///" is one client span and one record
// of its duration, however many attempts it takes; each attempt is one of its own.
func TestGRPCObservedOnce(t *testing.T) {
	for _, c := range []struct {
		name     string
		fails    int64
		attempts int64
		hedge    bool
		stream   bool
	}{
		{name: "plain", attempts: 1},
		{name: "retries", fails: 2, attempts: 3},
		{name: "hedge", attempts: 2, hedge: true},
		{name: "stream", attempts: 1, stream: true},
		{name: "stream with retries", fails: 2, attempts: 3, stream: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			spans := tracetest.NewInMemoryExporter()
			reader := metricsdk.NewManualReader()
			server := &flaky{}
			server.fails.Store(c.fails)
			if c.hedge {
				server.second = make(chan struct{})
			}
			w := meshtest.New(t,
				meshtest.GRPC("rpc", "v1", func(r grpc.ServiceRegistrar) { pb.RegisterTestServiceServer(r, server) }),
				meshtest.MeshOptions(
					mesh.WithTracerProvider(tracesdk.NewTracerProvider(tracesdk.WithSyncer(spans))),
					mesh.WithMeterProvider(metricsdk.NewMeterProvider(metricsdk.WithReader(reader)))),
				meshtest.Policy(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rpc}
spec:
  hosts: [rpc]
  http:
  - route: [{destination: {host: rpc}}]
    retries: {attempts: 3, perTryTimeout: 5s, retryOn: unavailable}
    match: [{uri: {prefix: /grpc.testing.TestService/Streaming}}]
  - route: [{destination: {host: rpc}}]
    retries: {attempts: 3, perTryTimeout: 1s, retryOn: unavailable}
    match: [{uri: {exact: /grpc.testing.TestService/UnaryCall}}]
`))
			conn, err := grpc.NewClient("mesh:///rpc:80", w.Mesh().DialOptions()...)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := pb.NewTestServiceClient(conn)
			ctx := t.Context()
			if c.hedge {
				ctx = metadata.AppendToOutgoingContext(ctx, "x-envoy-hedge-on-per-try-timeout", "true")
			}
			method := "grpc.testing.TestService/UnaryCall"
			if c.stream {
				method = "grpc.testing.TestService/StreamingOutputCall"
				s, err := client.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{})
				for err == nil {
					_, err = s.Recv()
				}
			} else if _, err := client.UnaryCall(ctx, &pb.SimpleRequest{}); err != nil {
				t.Fatal(err)
			}
			if n := server.calls.Load(); n != c.attempts {
				t.Errorf("the server saw %d attempts", n)
			}
			if got := recorded(t, reader, "grpc.client.call.duration"); got != 1 {
				t.Errorf("%d records of the call's duration", got)
			}
			// The attempt that another has made useless may end later.
			w.Eventually("a record of each attempt", func() bool {
				return recorded(t, reader, "grpc.client.attempt.duration") == uint64(c.attempts)
			})
			var calls, attempts int64
			w.Eventually("a span of each attempt", func() bool {
				calls, attempts = 0, 0
				for _, s := range spans.GetSpans() {
					switch {
					case s.Name != method:
						t.Errorf("a span %s %s", s.SpanKind, s.Name)
					case s.SpanKind == trace.SpanKindClient:
						calls++
					case s.SpanKind == trace.SpanKindInternal:
						attempts++
					}
				}
				return attempts == c.attempts
			})
			if calls != 1 {
				t.Errorf("%d spans of one call", calls)
			}
		})
	}
}

// recorded returns how many values a histogram of seconds has.
func recorded(t *testing.T, reader metricsdk.Reader, name string) (n uint64) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if h, ok := m.Data.(metricdata.Histogram[float64]); ok && m.Name == name {
				for _, p := range h.DataPoints {
					n += p.Count
				}
			}
		}
	}
	return n
}
