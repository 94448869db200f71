package meshgrpc

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// echo is a server whose streams send back what they get. The first attempts
// of each stream, told apart by its first message, fail after so many messages.
type echo struct {
	pb.UnimplementedTestServiceServer
	failures int
	after    int
	header   bool // failing streams send a header first

	mu    sync.Mutex
	tried map[string]int
}

func (e *echo) FullDuplexCall(s grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	var all []*pb.StreamingOutputCallResponse
	failing := false
	for n := 0; ; n++ {
		m, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n == 0 {
			e.mu.Lock()
			if e.tried == nil {
				e.tried = map[string]int{}
			}
			key := string(m.Payload.GetBody())
			e.tried[key]++
			failing = e.tried[key] <= e.failures
			e.mu.Unlock()
			if failing && e.header {
				if err := s.SendHeader(nil); err != nil {
					return err
				}
			}
		}
		all = append(all, &pb.StreamingOutputCallResponse{Payload: m.Payload})
		if failing {
			if n+1 >= e.after {
				return status.Error(codes.Unavailable, "not this time")
			}
			continue
		}
		for _, r := range all {
			if err := s.Send(r); err != nil {
				return err
			}
		}
		all = nil
	}
}

func (e *echo) serve(t testing.TB) string {
	s := grpc.NewServer()
	pb.RegisterTestServiceServer(s, e)
	return serve(t, s)
}

func payload(format string, args ...any) *pb.StreamingOutputCallRequest {
	return &pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: fmt.Appendf(nil, format, args...)}}
}

// TestMeshStreamReplay: sixty streams that send and receive at the same time,
// with two failures each, arrive whole and in order.
func TestMeshStreamReplay(t *testing.T) {
	leak.Check(t)
	for _, after := range []int{1, 3} {
		e := &echo{failures: 2, after: after}
		w := newMeshWorld(t)
		r := mroute(t, "c")
		r.Retry = meshRetry(t, "unavailable", 3)
		w.set([]*snapshot.Cluster{mcluster("c", e.serve(t))}, r)
		client, _ := w.dial(t)
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				s, err := client.FullDuplexCall(testContext(t))
				if err != nil {
					t.Error(err)
					return
				}
				const messages = 10
				go func() {
					m := payload("%d-0", i)
					for n := range messages {
						m.Payload.Body = fmt.Appendf(m.Payload.Body[:0], "%d-%d", i, n) // the caller's own
						if err := s.Send(m); err != nil {
							t.Errorf("send: %v", err)
						}
					}
					if err := s.CloseSend(); err != nil {
						t.Errorf("close: %v", err)
					}
				}()
				for n := range messages {
					m, err := s.Recv()
					if err != nil {
						t.Errorf("stream %d, message %d: %v", i, n, err)
						return
					}
					if got, want := string(m.Payload.Body), fmt.Sprintf("%d-%d", i, n); got != want {
						t.Errorf("got %q, want %q", got, want)
						return
					}
				}
				if _, err := s.Recv(); err != io.EOF {
					t.Errorf("after the last: %v", err)
				}
			})
		}
		wg.Wait()
		if n := w.events.retries.Load(); n != 120 {
			t.Errorf("%d retries, want 120", n)
		}
		w.quiet(t)
	}
}

// TestMeshStreamCommits: after a header, or when more was sent than is held, nothing is sent again.
func TestMeshStreamCommits(t *testing.T) {
	leak.Check(t)
	for _, c := range []struct {
		name   string
		server *echo
		size   int
	}{
		{"header", &echo{failures: 1, after: 1, header: true}, 10},
		{"overflow", &echo{failures: 1, after: 2}, 40 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newMeshWorld(t)
			r := mroute(t, "c")
			r.Retry = meshRetry(t, "unavailable", 3)
			w.set([]*snapshot.Cluster{mcluster("c", c.server.serve(t))}, r)
			client, _ := w.dial(t)
			s, err := client.FullDuplexCall(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := s.Send(payload("%s", strings.Repeat("x", c.size))); err != nil && err != io.EOF {
					t.Error(err)
				}
			}
			_, err = s.Recv()
			wantCode(t, err, codes.Unavailable)
			if n := w.events.retries.Load(); n != 0 {
				t.Errorf("%d retries", n)
			}
			if err := s.Send(payload("x")); err != io.EOF {
				t.Errorf("send after the end: %v", err)
			}
			w.quiet(t)
		})
	}
}

// TestMeshStreamSendOnly: a caller that only sends has its stream sent again too.
func TestMeshStreamSendOnly(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", func(_ context.Context, n int64) error {
		if n == 1 {
			return status.Error(codes.Unavailable, "first")
		}
		return nil
	})
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Retry = meshRetry(t, "unavailable", 1)
	w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
	client, _ := w.dial(t)
	s, err := client.StreamingInputCall(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	sent := int32(0)
	for ; b.calls.Load() < 2; sent++ {
		if err := s.Send(&pb.StreamingInputCallRequest{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	resp, err := s.CloseAndRecv()
	if err != nil || resp.AggregatedPayloadSize != sent {
		t.Errorf("%v, %v, want %d messages", resp, err, sent)
	}
	w.quiet(t)
}

// TestMeshStreamsAbandoned: streams that are cancelled or that nobody reads leave nothing behind.
func TestMeshStreamsAbandoned(t *testing.T) {
	leak.Check(t)
	for _, retry := range []bool{false, true} {
		b := newBackend(t, "b", nil)
		failing := newBackend(t, "failing", unavailable)
		w := newMeshWorld(t)
		r := mroute(t, "c")
		if retry {
			r.Retry = meshRetry(t, "unavailable", 1)
			r.Retry.BaseInterval, r.Retry.MaxInterval = 20*time.Millisecond, 20*time.Millisecond
		}
		w.set([]*snapshot.Cluster{mcluster("c", b.address, failing.address)}, r)
		client, conn := w.dial(t)
		var finished atomic.Int64
		const streams = 50
		var cancels []context.CancelFunc
		for i := range streams {
			ctx, cancel := context.WithCancel(context.Background())
			s, err := client.FullDuplexCall(ctx, grpc.OnFinish(func(error) { finished.Add(1) }))
			if err != nil {
				t.Fatal(err)
			}
			switch i % 3 {
			case 0:
			case 1:
				_ = s.Send(&pb.StreamingOutputCallRequest{})
			case 2:
				_ = s.Send(&pb.StreamingOutputCallRequest{})
				receives, done := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(done)
					close(receives)
					_, _ = s.Recv()
				}()
				<-receives
				cancel()
				<-done
			}
			if i < streams-5 {
				cancel()
			} else {
				cancels = append(cancels, cancel)
			}
		}
		conn.Close() // ends the last ones, but for those that wait to be sent again
		for _, cancel := range cancels {
			if retry {
				cancel()
			} else {
				defer cancel()
			}
		}
		eventually(t, func() string {
			if n := finished.Load(); n != streams {
				return fmt.Sprintf("OnFinish was called %d times, want %d", n, streams)
			}
			return ""
		})
		eventually(t, func() string {
			if n := w.events.ends.Load(); n != streams {
				return fmt.Sprintf("%d calls ended, want %d", n, streams)
			}
			return ""
		})
		w.quiet(t)
	}
}

// heldHeader holds up whoever asks for a stream's header, once it has come.
type heldHeader struct {
	grpc.ClientStream
	came, release chan struct{}
}

func (h *heldHeader) Header() (metadata.MD, error) {
	md, err := h.ClientStream.Header()
	close(h.came)
	<-h.release
	return md, err
}

// TestMeshStreamEndsWhileItSettles: a stream that gRPC ends at the moment when its
// header settles that it will not be sent again ends, whether or not its caller asks.
func TestMeshStreamEndsWhileItSettles(t *testing.T) {
	inBubble(t, func(t *testing.T, w *bubble) {
		r := mroute(t, "c")
		r.Retry = meshRetry(t, "unavailable", 1)
		w.only(w.backend(t, nil), r)
		came, release := make(chan struct{}), make(chan struct{})
		client := w.dial(t, grpc.WithChainStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, d, cc, m, o...)
			return &heldHeader{s, came, release}, err
		}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var finished atomic.Int64
		s, err := client.FullDuplexCall(ctx, grpc.OnFinish(func(error) { finished.Add(1) }))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&pb.StreamingOutputCallRequest{}); err != nil {
			t.Fatal(err)
		}
		received := make(chan struct{})
		go func() {
			defer close(received)
			_, _ = s.Recv() // the message, or that the caller has gone
		}()
		<-came
		cancel()
		synctest.Wait()
		close(release)
		<-received
		synctest.Wait()
		if finished.Load() != 1 || w.events.ends.Load() != 1 {
			t.Errorf("OnFinish was called %d times, %d calls ended", finished.Load(), w.events.ends.Load())
		}
	})
}

// TestMeshStreamEndpointLeaves: an open stream goes on when its endpoint leaves the cluster.
func TestMeshStreamEndpointLeaves(t *testing.T) {
	leak.Check(t)
	a, b := newBackend(t, "a", nil), newBackend(t, "b", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c", a.address)}, mroute(t, "c"))
	client, _ := w.dial(t)
	s, err := client.FullDuplexCall(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(s); err != nil {
		t.Fatal(err)
	}
	w.set([]*snapshot.Cluster{mcluster("c", b.address)}, mroute(t, "c"))
	if got, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil || got.Hostname != "b" {
		t.Errorf("%v, %v", got, err)
	}
	for range 3 {
		if err := exchange(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
	w.quiet(t)
}

// TestMeshStreamIdle: the route's idle timeout ends a stream on which nothing
// moves for so long, however long it has been open.
func TestMeshStreamIdle(t *testing.T) {
	inBubble(t, func(t *testing.T, w *bubble) {
		r := mroute(t, "c")
		r.IdleTimeout = time.Second
		w.only(w.backend(t, nil), r)
		s, err := w.dial(t).FullDuplexCall(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			time.Sleep(900 * time.Millisecond)
			if err := exchange(s); err != nil {
				t.Fatal(err)
			}
		}
		moved := time.Now()
		_, err = s.Recv()
		wantCode(t, err, codes.DeadlineExceeded)
		var timeout *outbound.TimeoutError
		if !asTimeout(err, &timeout) || timeout.Limit != "idle_timeout" {
			t.Errorf("%T %v", err, err)
		}
		if idle := time.Since(moved); idle != time.Second {
			t.Errorf("it ended after %s", idle)
		}
	})
}
