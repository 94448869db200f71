package meshgrpc

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// TestMeshPushback: a server says when the next attempt may come, or that there
// is to be none (gRFC A6).
func TestMeshPushback(t *testing.T) {
	leak.Check(t)
	for _, c := range []struct {
		pushback string
		calls    int64
		atLeast  time.Duration
	}{
		{"", 3, 0},
		{"30", 3, 60 * time.Millisecond},
		{"0", 3, 0},
		{"-1", 1, 0},
		{"soon", 1, 0},
	} {
		for _, k := range kinds {
			b := newBackend(t, "b", func(ctx context.Context, n int64) error {
				if n >= 3 {
					return nil
				}
				if c.pushback != "" {
					_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", c.pushback))
				}
				return status.Error(codes.Unavailable, "")
			})
			w := newMeshWorld(t)
			r := mroute(t, "c")
			r.Retry = meshRetry(t, "unavailable", 5)
			w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
			client, _ := w.dial(t)
			begin := time.Now()
			err := k.call(testContext(t), client)
			took := time.Since(begin)
			if (err == nil) != (c.calls == 3) || b.calls.Load() != c.calls || took < c.atLeast {
				t.Errorf("%s, pushback %q: %v after %d attempts and %s", k.name, c.pushback, err, b.calls.Load(), took)
			}
			w.quiet(t)
		}
	}
}

// pausing is a world in which the second attempt comes in an hour.
func pausing(t *testing.T) (*meshWorld, *backend, pb.TestServiceClient, *grpc.ClientConn) {
	b := newBackend(t, "b", func(ctx context.Context, _ int64) error {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "3600000"))
		return status.Error(codes.Unavailable, "")
	})
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Retry = meshRetry(t, "unavailable", 5)
	w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
	client, conn := w.dial(t)
	return w, b, client, conn
}

// TestMeshCloseInPause: RPCs that wait for their next attempt end with their
// channel, as those in flight do.
func TestMeshCloseInPause(t *testing.T) {
	leak.Check(t)
	for _, k := range kinds {
		w, _, client, conn := pausing(t)
		result := make(chan error, 1)
		go func() { result <- k.call(testContext(t), client) }()
		waitForRetry(t, w)
		conn.Close()
		wantCode(t, <-result, codes.Canceled)
		w.quiet(t)
	}
}

// waitForRetry waits until a retry is held.
func waitForRetry(t *testing.T, w *meshWorld) {
	t.Helper()
	eventually(t, func() string {
		if w.events.retries.Load() == 0 {
			return "no attempt after the first"
		}
		return ""
	})
}

// TestMeshSendInPause: SendMsg and RecvMsg that wait for the next attempt end with the context.
func TestMeshSendInPause(t *testing.T) {
	leak.Check(t)
	w, _, client, _ := pausing(t)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	s, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sent, received := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := s.Recv()
		received <- err
	}()
	waitForRetry(t, w)
	go func() {
		for {
			if err := s.Send(payload("%s", strings.Repeat("x", 1000))); err != nil {
				sent <- err
				return
			}
		}
	}()
	eventually(t, running("meshgrpc.(*stream).SendMsg"))
	cancel()
	if err := <-sent; err != io.EOF {
		t.Errorf("SendMsg: %v", err)
	}
	wantCode(t, <-received, codes.Canceled)
	w.quiet(t)
}

// TestMeshDelayEnds: an RPC held up by a fault ends with its channel too.
func TestMeshDelayEnds(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", nil)
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Fault = hourOfDelay()
	w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
	client, conn := w.dial(t)
	result := make(chan error, 1)
	go func() {
		_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{})
		result <- err
	}()
	eventually(t, running("meshgrpc.pause"))
	conn.Close()
	wantCode(t, <-result, codes.Canceled)
}

// running is a check that a goroutine is in the function.
func running(function string) func() string {
	stacks := make([]byte, 1<<20)
	return func() string {
		if !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte(function)) {
			return "no goroutine is in " + function
		}
		return ""
	}
}
