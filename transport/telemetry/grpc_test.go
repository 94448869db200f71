package telemetry

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"
)

// echo serves any method over a pipe in memory: it answers with the status that
// the metadata "fail" asks for, and records the metadata that came.
type echo struct {
	conn     *grpc.ClientConn
	got      chan metadata.MD
	inside   chan context.Context
	failures atomic.Int64 // RPCs still to fail with UNAVAILABLE
}

const retrying = `{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.001s","maxBackoff":"0.001s","backoffMultiplier":1,"retryableStatusCodes":["UNAVAILABLE"]}}]}`

func newEcho(t *testing.T, client, server *Telemetry, options ...grpc.DialOption) *echo {
	t.Helper()
	e := &echo{got: make(chan metadata.MD, 100), inside: make(chan context.Context, 100)}
	lis := bufconn.Listen(1 << 16)
	s := grpc.NewServer(grpc.StatsHandler(server.ServerStats()), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(stream.Context())
		e.got <- md
		e.inside <- stream.Context()
		if e.failures.Add(-1) >= 0 {
			return status.Error(codes.Unavailable, "later")
		}
		for {
			m := new(emptypb.Empty)
			if err := stream.RecvMsg(m); err == io.EOF {
				break
			} else if err != nil {
				return err
			}
			if len(md["fail"]) > 0 {
				return status.Error(codes.InvalidArgument, "canary")
			}
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
		return nil
	}))
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(lis) }()
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStatsHandler(client.ClientStats()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	var err error
	if e.conn, err = grpc.NewClient("passthrough:///reviews:9080", options...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.conn.Close()
		s.Stop()
		<-served
	})
	return e
}

func intercepted(t *Telemetry) []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(t.UnaryClientInterceptor()), grpc.WithChainStreamInterceptor(t.StreamClientInterceptor())}
}

func (e *echo) unary(ctx context.Context) error {
	return e.conn.Invoke(ctx, "/shop.Cart/Add", new(emptypb.Empty), new(emptypb.Empty))
}

func TestUnaryRPC(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	e := newEcho(t, r.Telemetry, r.Telemetry, intercepted(r.Telemetry)...)
	if err := e.unary(context.Background()); err != nil {
		t.Fatal(err)
	}
	e.conn.Close()
	calls, tries, served := await(t, r, trace.SpanKindClient, 1), await(t, r, trace.SpanKindInternal, 1), await(t, r, trace.SpanKindServer, 1)
	if tries[0].Parent().SpanID() != calls[0].SpanContext().SpanID() || served[0].Parent().SpanID() != tries[0].SpanContext().SpanID() {
		t.Error("the spans are not one under the other")
	}
	want := map[string]string{"rpc.system.name": "grpc", "rpc.method": "shop.Cart/Add", "rpc.response.status_code": "OK", "error.type": ""}
	for _, s := range []sdktrace.ReadOnlySpan{calls[0], tries[0], served[0]} {
		if s.Name() != "shop.Cart/Add" {
			t.Errorf("name %q", s.Name())
		}
		check(t, s.SpanKind().String(), attrsOf(s.Attributes()), want)
	}
	for _, s := range []sdktrace.ReadOnlySpan{calls[0], tries[0]} {
		check(t, s.SpanKind().String(), attrsOf(s.Attributes()), map[string]string{"server.address": "reviews", "server.port": "9080", "previous-rpc-attempts": ""})
	}
	if inside := trace.SpanContextFromContext(<-e.inside); !inside.Equal(served[0].SpanContext()) {
		t.Error("the handler has another span")
	}
}

// await returns the ended spans of a kind; a server's may end after the client's.
func await(t *testing.T, r *rig, kind trace.SpanKind, n int) []sdktrace.ReadOnlySpan {
	t.Helper()
	for {
		if got := r.ended(kind); len(got) >= n {
			if len(got) > n {
				t.Fatalf("%d spans of kind %v, want %d", len(got), kind, n)
			}
			return got
		}
		select {
		case <-r.end:
		case <-time.After(time.Minute):
			t.Fatalf("no %d spans of kind %v", n, kind)
		}
	}
}

func TestFailedRPC(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	e := newEcho(t, r.Telemetry, r.Telemetry, intercepted(r.Telemetry)...)
	err := e.unary(metadata.AppendToOutgoingContext(context.Background(), "fail", "x"))
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	for kind, errored := range map[trace.SpanKind]bool{trace.SpanKindClient: true, trace.SpanKindInternal: true, trace.SpanKindServer: false} {
		s := await(t, r, kind, 1)[0]
		word := ""
		if errored {
			word = "INVALID_ARGUMENT"
		}
		check(t, kind.String(), attrsOf(s.Attributes()), map[string]string{"rpc.response.status_code": "INVALID_ARGUMENT", "error.type": word})
		if got := s.Status(); (got.Code.String() == "Error") != errored || got.Description != "" {
			t.Errorf("%v: status %v", kind, got)
		}
	}
}

func TestRetriedRPC(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	e := newEcho(t, r.Telemetry, r.Telemetry, append(intercepted(r.Telemetry), grpc.WithDefaultServiceConfig(retrying))...)
	e.failures.Store(2)
	if err := e.unary(metadata.AppendToOutgoingContext(context.Background(), "traceparent", unsampled, "k", "v")); err != nil {
		t.Fatal(err)
	}
	tries := await(t, r, trace.SpanKindInternal, 3)
	for i, want := range []string{"", "1", "2"} {
		code := "UNAVAILABLE"
		if i == 2 {
			code = "OK"
		}
		check(t, "attempt", attrsOf(tries[i].Attributes()), map[string]string{"previous-rpc-attempts": want, "rpc.response.status_code": code})
		md := <-e.got
		if v := md["traceparent"]; len(v) != 1 || v[0] != formatTraceparent(tries[i].SpanContext()) || md["k"][0] != "v" {
			t.Errorf("attempt %d brought %v", i, md)
		}
	}
	check(t, "call", attrsOf(await(t, r, trace.SpanKindClient, 1)[0].Attributes()), map[string]string{"rpc.response.status_code": "OK", "error.type": ""})
}

func TestStreams(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	e := newEcho(t, r.Telemetry, r.Telemetry, intercepted(r.Telemetry)...)
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := e.conn.NewStream(context.Background(), desc, "/shop.Cart/Watch")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := errors.Join(stream.SendMsg(new(emptypb.Empty)), stream.RecvMsg(new(emptypb.Empty))); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.ended(trace.SpanKindClient)); n != 0 {
		t.Fatal("the span ended before the stream")
	}
	stream.CloseSend()
	if err := stream.RecvMsg(new(emptypb.Empty)); err != io.EOF {
		t.Fatal(err)
	}
	check(t, "stream", attrsOf(await(t, r, trace.SpanKindClient, 1)[0].Attributes()), map[string]string{"rpc.response.status_code": "OK"})

	// A stream that the caller abandons ends with its context.
	ctx, cancel := context.WithCancel(context.Background())
	if _, err = e.conn.NewStream(ctx, desc, "/shop.Cart/Watch"); err != nil {
		t.Fatal(err)
	}
	cancel()
	check(t, "abandoned", attrsOf(await(t, r, trace.SpanKindClient, 2)[1].Attributes()), map[string]string{"rpc.response.status_code": "CANCELLED", "error.type": "CANCELLED"})
	// One that can not be opened ends at once.
	if _, err := e.conn.NewStream(ctx, desc, "/shop.Cart/Watch"); err == nil {
		t.Fatal("opened")
	}
	await(t, r, trace.SpanKindClient, 3)
}

// Attempts without interceptors stand alone.
func TestStatsHandlerAlone(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	e := newEcho(t, r.Telemetry, r.Telemetry)
	if err := e.unary(context.Background()); err != nil {
		t.Fatal(err)
	}
	await(t, r, trace.SpanKindClient, 1)
	if n := len(r.ended(trace.SpanKindInternal)); n != 0 {
		t.Errorf("%d internal spans", n)
	}
}

// Trace context goes through a server to its calls whatever is sampled.
func TestRPCContextGoesOn(t *testing.T) {
	none, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, tel := range map[string]*Telemetry{"none": none, "never": newRig(t, sdktrace.NeverSample()).Telemetry} {
		for _, in := range []string{sampled, unsampled} {
			e := newEcho(t, tel, tel, intercepted(tel)...)
			ctx := metadata.AppendToOutgoingContext(context.Background(), "traceparent", in, "tracestate", "a=1,x@y@z=2", "baggage", "k=v")
			if name == "never" {
				// This side has a parent as well.
				ctx = tel.extractMetadata(metadata.NewIncomingContext(context.Background(), metadata.Pairs("traceparent", in, "tracestate", "a=1,x@y@z=2", "baggage", "k=v")))
			}
			if err := e.unary(ctx); err != nil {
				t.Fatal(err)
			}
			<-e.got
			inner := <-e.inside
			// The handler calls on with its context.
			if err := e.unary(metadata.NewOutgoingContext(context.WithoutCancel(inner), metadata.MD{})); err != nil {
				t.Fatal(err)
			}
			md := <-e.got
			if v := md["traceparent"]; len(v) != 1 || v[0][:36] != in[:36] || (name == "none" && v[0] != in) {
				t.Errorf("%s: %s became %v", name, in, v)
			}
			if v := md["tracestate"]; len(v) != 1 || v[0] != "a=1,x@y@z=2" {
				t.Errorf("%s: tracestate %v", name, v)
			}
			if v := md["baggage"]; len(v) != 1 || v[0] != "k=v" {
				t.Errorf("%s: baggage %v", name, v)
			}
		}
	}
}

func TestSamplerIsAskedOncePerRPC(t *testing.T) {
	s := &countingSampler{Sampler: sdktrace.NeverSample()}
	r, server := newRig(t, s), newRig(t, sdktrace.ParentBased(sdktrace.AlwaysSample()))
	e := newEcho(t, r.Telemetry, server.Telemetry, append(intercepted(r.Telemetry), grpc.WithDefaultServiceConfig(retrying))...)
	e.failures.Store(1)
	if err := e.unary(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s.asked != 1 || len(server.spans.Started()) != 0 {
		t.Errorf("asked %d times; the server made %d spans", s.asked, len(server.spans.Started()))
	}
}

// dropChildren samples roots only, so that an attempt's own span is missing
// where its context has the span of another RPC.
type dropChildren struct{ sdktrace.Sampler }

func (dropChildren) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	if trace.SpanContextFromContext(p.ParentContext).IsValid() {
		return sdktrace.SamplingResult{Decision: sdktrace.Drop}
	}
	return sdktrace.SamplingResult{Decision: sdktrace.RecordAndSample}
}
func (dropChildren) Description() string { return "roots" }

// What happens to an RPC that has no span does not reach the span of the one around it.
func TestEventsStayWithTheirRPC(t *testing.T) {
	r := newRig(t, dropChildren{})
	for _, h := range []stats.Handler{r.ServerStats(), r.ClientStats()} {
		outer := h.TagRPC(context.Background(), &stats.RPCTagInfo{FullMethodName: "/a/Outer"})
		inner := r.ClientStats().TagRPC(outer, &stats.RPCTagInfo{FullMethodName: "/a/Inner"})
		r.ClientStats().HandleRPC(inner, &stats.Begin{Client: true, IsTransparentRetryAttempt: true})
		r.ClientStats().HandleRPC(inner, &stats.End{Client: true, Error: errors.New("x")})
		if n := len(r.spans.Ended()); n != 0 {
			t.Fatalf("%d spans ended", n)
		}
		h.HandleRPC(outer, &stats.Begin{IsTransparentRetryAttempt: true})
		h.HandleRPC(outer, &stats.End{})
		s := r.spans.Ended()
		check(t, "outer", attrsOf(s[0].Attributes()), map[string]string{"rpc.method": "a/Outer", "rpc.response.status_code": "OK", "transparent-retry": "true"})
		r.spans.Reset()
	}
}

func TestTargetAttributes(t *testing.T) {
	for in, want := range map[string][2]string{
		"mesh:///reviews:9080": {"reviews", "9080"}, "xds:///a": {"a", ""}, "dns://8.8.8.8/a:1": {"a", "1"}, "a:1": {"a", "1"},
		"dns:a:1": {"a", "1"}, "unix:/tmp/x.sock": {"/tmp/x.sock", ""}, "unix:///tmp/x.sock": {"tmp/x.sock", ""}, "[::1]:80": {"::1", "80"},
	} {
		check(t, in, attrsOf(targetAttributes(in)), map[string]string{"server.address": want[0], "server.port": want[1]})
	}
}

func TestRPCCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, "OK"}, {context.Canceled, "CANCELLED"}, {context.DeadlineExceeded, "DEADLINE_EXCEEDED"}, {errors.New("x"), "UNKNOWN"},
		{status.Error(codes.Unauthenticated, ""), "UNAUTHENTICATED"}, {status.Error(codes.Code(99), ""), "99"},
	} {
		if got := rpcWord(rpcCode(c.err)); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}
