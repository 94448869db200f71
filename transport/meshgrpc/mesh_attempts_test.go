package meshgrpc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// TestMeshCallOptions: what the caller learns is of the answer that counts, once.
func TestMeshCallOptions(t *testing.T) {
	leak.Check(t)
	answer := func(ctx context.Context, n int64) error {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", fmt.Sprint(n)))
		if n == 1 {
			return status.Error(codes.Unavailable, "first")
		}
		_ = grpc.SetHeader(ctx, metadata.Pairs("x-header", fmt.Sprint(n)))
		return nil
	}
	for _, k := range []string{"unary", "stream"} {
		b := newBackend(t, "b", answer)
		w := newMeshWorld(t)
		r := mroute(t, "c")
		r.Retry = meshRetry(t, "unavailable", 3)
		w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
		behind := 0
		client, _ := w.dial(t, grpc.WithChainUnaryInterceptor(func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			behind++
			return invoke(ctx, m, req, reply, cc, o...)
		}))
		var header, trailer metadata.MD
		var p peer.Peer
		var finished []error
		options := []grpc.CallOption{grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&p), grpc.OnFinish(func(err error) { finished = append(finished, err) }), grpc.StaticMethod()}
		if k == "unary" {
			if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}, options...); err != nil {
				t.Fatal(err)
			}
			if behind != 2 {
				t.Errorf("%d attempts for an interceptor behind", behind)
			}
		} else {
			s, err := client.StreamingOutputCall(testContext(t), &pb.StreamingOutputCallRequest{}, options...)
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = s.Recv()
			}
			if err != io.EOF || !slices.Equal(s.Trailer()["x-trailer"], []string{"2"}) {
				t.Errorf("%v, %v", err, s.Trailer())
			}
			header, _ = s.Header()
			trailer = s.Trailer()
		}
		if !slices.Equal(header["x-header"], []string{"2"}) || !slices.Equal(trailer["x-trailer"], []string{"2"}) || p.Addr == nil || p.Addr.String() != b.address {
			t.Errorf("%s: header %v, trailer %v, peer %v", k, header, trailer, p)
		}
		if len(finished) != 1 || finished[0] != nil {
			t.Errorf("%s: OnFinish: %v", k, finished)
		}
		w.quiet(t)
	}
}

// jsonCodec merges into what it decodes to, as encoding/json does.
type jsonCodec struct{}

func (jsonCodec) Name() string                       { return "json" }
func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

func init() { encoding.RegisterCodec(jsonCodec{}) }

// TestMeshStaleReply: what a first answer has put into the reply is not in the second's.
func TestMeshStaleReply(t *testing.T) {
	leak.Check(t)
	var n atomic.Int64
	s := grpc.NewServer(grpc.ForceServerCodec(jsonCodec{}), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		var in map[string]string
		if err := ss.RecvMsg(&in); err != nil {
			return err
		}
		if n.Add(1) == 1 {
			_ = ss.SetHeader(metadata.Pairs("x-again", "1"))
			return ss.SendMsg(map[string]string{"stale": "1"})
		}
		return ss.SendMsg(map[string]string{"fresh": "1"})
	}))
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Retry = meshRetry(t, "retriable-headers", 1)
	r.Retry.Headers = []routing.HeaderMatch{{Name: routing.NewHeaderName("x-again"), Kind: routing.HeaderPresent, Present: true}}
	w.set([]*snapshot.Cluster{mcluster("c", serve(t, s))}, r)
	_, conn := w.dial(t)
	reply := map[string]string{}
	if err := conn.Invoke(testContext(t), "/a.B/C", map[string]string{}, &reply, grpc.CallContentSubtype("json")); err != nil {
		t.Fatal(err)
	}
	if len(reply) != 1 || reply["fresh"] != "1" {
		t.Error(reply)
	}
}

func TestMeshPreviousAttempts(t *testing.T) {
	leak.Check(t)
	var mu sync.Mutex
	var seen [][]string
	b := newBackend(t, "b", func(ctx context.Context, n int64) error {
		md, _ := metadata.FromIncomingContext(ctx)
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, md["grpc-previous-rpc-attempts"])
		if n < 3 {
			return status.Error(codes.Unavailable, "")
		}
		return nil
	})
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Retry = meshRetry(t, "unavailable", 3)
	w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
	client, _ := w.dial(t)
	if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(seen); got != "[[] [1] [2]]" {
		t.Error(got)
	}
}

// hedgedRoute is a route of UnaryCall alone: others are not hedged.
func hedgedRoute(t testing.TB, initial uint32) snapshot.Route {
	r := mroute(t, "c")
	r.Match.Path = routing.PathMatch{Kind: routing.PathExact, Value: unaryMethod}
	r.Hedge = &resilience.Hedge{Initial: initial}
	r.Retry = meshRetry(t, "unavailable", 2)
	return r
}

// TestMeshHedging: one request and one reply of the caller's, several attempts
// at once, and no data race among them.
func TestMeshHedging(t *testing.T) {
	leak.Check(t)
	slow := newBackend(t, "slow", func(ctx context.Context, _ int64) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond): // where all attempts have come here
			return nil
		}
	})
	fast, bad := newBackend(t, "fast", nil), newBackend(t, "bad", unavailable)
	w := newMeshWorld(t)
	r := hedgedRoute(t, 3)
	w.set([]*snapshot.Cluster{mcluster("c", slow.address, fast.address)}, r)
	client, _ := w.dial(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				req := &pb.SimpleRequest{ResponseSize: 1}
				finished := 0
				var header metadata.MD
				resp, err := client.UnaryCall(testContext(t), req, grpc.OnFinish(func(error) { finished++ }), grpc.Header(&header))
				if err != nil || resp.Hostname == "" || finished != 1 || header["content-type"] == nil {
					t.Errorf("%v, %v, OnFinish %d times, header %v", resp, err, finished, header)
					return
				}
				req.ResponseSize, resp.Hostname = 2, "mine" // the caller's own again
			}
		})
	}
	wg.Wait()
	w.quiet(t)
	if n := slow.calls.Load() + fast.calls.Load(); n <= 160 {
		t.Errorf("%d attempts of 160 calls", n)
	}
	// All of them fail: an answer, once.
	w.set([]*snapshot.Cluster{mcluster("c", bad.address)}, r)
	finished := 0
	_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.OnFinish(func(error) { finished++ }))
	wantCode(t, err, codes.Unavailable)
	if finished != 1 {
		t.Errorf("OnFinish %d times", finished)
	}
	w.quiet(t)
}

// TestMeshHedgeOnTimeout: where an attempt's time has passed, another begins beside it.
func TestMeshHedgeOnTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, w *bubble) {
		slow := w.backend(t, func(ctx context.Context, n int64) error {
			if n == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		r := hedgedRoute(t, 1)
		r.Hedge.OnPerTryTimeout = true
		r.Retry.PerTryTimeout = 20 * time.Millisecond
		w.only(slow, r)
		if _, err := w.dial(t).UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil || slow.calls.Load() != 2 {
			t.Errorf("%v after %d attempts", err, slow.calls.Load())
		}
	})
}

// TestMeshRefusedStream: a stream that the server refuses is sent again by gRPC
// itself; each pick is accounted for.
func TestMeshRefusedStream(t *testing.T) {
	leak.Check(t)
	lis := listen(t)
	defer lis.Close()
	var refused atomic.Int64
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go refuseStreams(conn, &refused)
		}
	}()
	good := newBackend(t, "good", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c", lis.Addr().String(), good.address)}, mroute(t, "c"))
	client, _ := w.dial(t)
	for range 4 {
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
			t.Error(err)
		}
	}
	if refused.Load() == 0 {
		t.Error("no stream was refused")
	}
	w.quiet(t)
	for _, e := range w.engine.Status().Clusters[0].Endpoints {
		if e.Address == lis.Addr().String() && e.Failures != uint64(refused.Load()) {
			t.Errorf("%d streams refused, %d failures counted", refused.Load(), e.Failures)
		}
	}
	w.set([]*snapshot.Cluster{mcluster("c", good.address)}, mroute(t, "c"))
}

// refuseStreams is a server that takes none.
func refuseStreams(conn net.Conn, refused *atomic.Int64) {
	frameServer(conn, func(f *http2.Framer, frame http2.Frame) {
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			refused.Add(1)
			_ = f.WriteRSTStream(frame.StreamID, http2.ErrCodeRefusedStream)
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = f.WritePing(true, frame.Data)
			}
		}
	})
}

// TestMeshStats: stats handlers see each attempt.
func TestMeshStats(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", func(_ context.Context, n int64) error {
		if n == 1 {
			return status.Error(codes.Unavailable, "")
		}
		return nil
	})
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Retry = meshRetry(t, "unavailable", 1)
	w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
	handler := &countingHandler{}
	client, _ := w.dial(t, grpc.WithStatsHandler(handler))
	for _, k := range kinds {
		if err := k.call(testContext(t), client); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
	}
	if n := handler.begun.Load(); n != int64(len(kinds))+1 {
		t.Errorf("the stats handler saw %d attempts, want %d", n, len(kinds)+1)
	}
	w.quiet(t)
}

// TestMeshStrays: an RPC whose context an interceptor has replaced has lost its
// policy, and is not sent; one whose context is derived is.
func TestMeshStrays(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("b", b.address)}, mroute(t, "b"))
	for _, c := range []struct {
		name   string
		change func(context.Context) context.Context
		want   codes.Code
	}{
		{"replaced", func(ctx context.Context) context.Context {
			md, _ := metadata.FromOutgoingContext(ctx)
			return metadata.NewOutgoingContext(context.Background(), md)
		}, codes.Internal},
		{"derived", context.WithoutCancel, codes.OK},
	} {
		client, _ := w.dial(t,
			grpc.WithChainUnaryInterceptor(func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
				return invoke(c.change(ctx), m, req, reply, cc, o...)
			}), grpc.WithChainStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
				return open(c.change(ctx), d, cc, m, o...)
			}))
		for _, k := range kinds {
			err := k.call(testContext(t), client)
			wantCode(t, err, c.want)
			if err != nil && !strings.Contains(err.Error(), "derive") {
				t.Error(err)
			}
		}
		w.quiet(t)
	}
	if n := b.calls.Load(); n != int64(len(kinds)) {
		t.Errorf("the server saw %d calls", n)
	}
}

// TestMeshSentTwice: interceptors of the program's that send an RPC twice at once,
// or once more when it has ended, get none of another RPC's.
func TestMeshSentTwice(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("b", b.address)}, mroute(t, "b"))
	var late sync.WaitGroup
	var refused atomic.Int64
	client, _ := w.dial(t, grpc.WithChainUnaryInterceptor(func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
		late.Go(func() {
			_ = invoke(ctx, m, req, &pb.SimpleResponse{}, cc, o...)
			if err := invoke(ctx, m, req, &pb.SimpleResponse{}, cc, o...); status.Code(err) == codes.Internal {
				refused.Add(1)
			}
		})
		return invoke(ctx, m, req, reply, cc, o...)
	}))
	for range 8 {
		late.Go(func() {
			for range 50 {
				if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	late.Wait()
	w.quiet(t)
	t.Logf("%d of the later ones were refused", refused.Load())
}

func TestClassifyMessages(t *testing.T) {
	for _, c := range []struct {
		code    codes.Code
		message string
		http    int
		broke   bool
		refused bool
	}{
		{codes.Unavailable, "unexpected HTTP status code received from server: 503 (Service Unavailable); x", 503, false, false},
		{codes.Unavailable, "unexpected HTTP status code received from server: 5030 (x)", 0, false, false},
		{codes.Unavailable, "error reading from server: EOF", 0, true, false},
		{codes.Unavailable, "stream terminated by RST_STREAM with error code: REFUSED_STREAM", 0, true, true},
		{codes.Internal, "stream terminated by RST_STREAM with error code: PROTOCOL_ERROR", 0, true, false},
		{codes.Internal, "grpc: failed to unmarshal the received message", 0, false, false},
		{codes.ResourceExhausted, "grpc: received message larger than max", 0, false, false},
	} {
		err := status.Error(c.code, c.message)
		if n, broke, refused := httpStatus(err), brokeOff(err), refusedStream(err); n != c.http || broke != c.broke || refused != c.refused {
			t.Errorf("%v: HTTP %d, broke off %v, refused %v", err, n, broke, refused)
		}
	}
}
