package meshgrpc

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

func hourOfDelay() *resilience.Fault {
	return &resilience.Fault{Delay: &resilience.FaultDelay{Fixed: time.Hour, Fraction: always()}}
}

// compressions notes what messages were compressed with on their way to a server.
type compressions struct {
	connCounter
	last atomic.Pointer[string]
}

func (c *compressions) HandleRPC(_ context.Context, s stats.RPCStats) {
	if h, ok := s.(*stats.InHeader); ok {
		c.last.Store(&h.Compression)
	}
}

// TestMeshCompressor: compressors and bounds of messages are gRPC's own, in hedged RPCs too.
func TestMeshCompressor(t *testing.T) {
	leak.Check(t)
	for _, hedged := range []bool{false, true} {
		seen := &compressions{}
		b := newBackend(t, "b", nil, grpc.StatsHandler(seen))
		w := newMeshWorld(t)
		r := mroute(t, "c")
		if hedged {
			r = hedgedRoute(t, 2)
		}
		w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
		client, _ := w.dial(t)
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.UseCompressor("gzip")); err != nil {
			t.Fatal(err)
		}
		if got := seen.last.Load(); got == nil || *got != "gzip" {
			t.Errorf("hedged %v: the server saw no compression", hedged)
		}
		_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.UseCompressor("no such thing"))
		wantCode(t, err, codes.Internal)
		_, err = client.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.MaxCallRecvMsgSize(1))
		wantCode(t, err, codes.ResourceExhausted)
		_, err = client.UnaryCall(testContext(t), &pb.SimpleRequest{Payload: &pb.Payload{Body: make([]byte, 100)}}, grpc.MaxCallSendMsgSize(50))
		wantCode(t, err, codes.ResourceExhausted)
		w.quiet(t)
		if n := w.failures(); n != 0 {
			t.Errorf("hedged %v: %d failures of the endpoint", hedged, n)
		}
	}
}

// failures returns how many attempts have failed at endpoints.
func (w *meshWorld) failures() (n uint64) {
	for _, c := range w.engine.Status().Clusters {
		for _, e := range c.Endpoints {
			n += e.Failures
		}
	}
	return n
}

// bearer are credentials of a single RPC.
type bearer struct {
	secure bool
	err    error
	asked  atomic.Int64
}

func (b *bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	b.asked.Add(1)
	return map[string]string{"x-token": "1"}, b.err
}
func (b *bearer) RequireTransportSecurity() bool { return b.secure }

var _ credentials.PerRPCCredentials = (*bearer)(nil)

// TestMeshPerRPCCredentials: they go out once for each attempt, not over plaintext
// where they want security, and their failure is none of the endpoint's.
func TestMeshPerRPCCredentials(t *testing.T) {
	leak.Check(t)
	var seen atomic.Int64
	b := newBackend(t, "b", func(ctx context.Context, n int64) error {
		md, _ := metadata.FromIncomingContext(ctx)
		seen.Add(int64(len(md["x-token"])))
		if n == 1 {
			return status.Error(codes.Unavailable, "")
		}
		return nil
	})
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Retry = meshRetry(t, "unavailable,reset,connect-failure,refused-stream", 3)
	w.set([]*snapshot.Cluster{mcluster("c", b.address)}, r)
	client, _ := w.dial(t)
	call := func(creds credentials.PerRPCCredentials) error {
		_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.PerRPCCredentials(creds))
		return err
	}
	if err := call(&bearer{}); err != nil || seen.Load() != 2 {
		t.Errorf("%v; the server saw %d tokens in two attempts", err, seen.Load())
	}
	secure := &bearer{secure: true}
	wantCode(t, call(secure), codes.Unauthenticated)
	if secure.asked.Load() != 0 {
		t.Error("credentials that want security were asked for")
	}
	for _, err := range []error{status.Error(codes.Unavailable, "no token today"), errors.New("no token today")} {
		failing := &bearer{err: err}
		before := w.failures()
		if err := call(failing); err == nil || failing.asked.Load() != 1 || w.failures() != before {
			t.Errorf("%v after %d attempts, %d failures of the endpoint", err, failing.asked.Load(), w.failures()-before)
		}
	}
	if b.calls.Load() != 2 {
		t.Errorf("%d calls", b.calls.Load())
	}
	w.quiet(t)
}

// TestMeshPerTryIdle: an attempt on which nothing moves ends, and another follows.
func TestMeshPerTryIdle(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *bubble) {
				b := w.backend(t, func(ctx context.Context, n int64) error {
					if n == 1 {
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				})
				r := mroute(t, "c")
				r.Retry = meshRetry(t, "5xx", 1)
				r.Retry.PerTryIdleTimeout = 50 * time.Millisecond
				w.only(b, r)
				client := w.dial(t)
				if err := k.call(testContext(t), client); err != nil || b.calls.Load() != 2 {
					t.Errorf("%v after %d attempts", err, b.calls.Load())
				}
				r.Retry.NumRetries = 0
				w.only(b, r)
				b.calls.Store(0)
				err := k.call(testContext(t), client)
				wantCode(t, err, codes.DeadlineExceeded)
				var limit *outbound.TimeoutError
				if !asTimeout(err, &limit) || limit.Limit != "per_try_idle_timeout" {
					t.Error(err)
				}
			})
		})
	}
}

// TestMeshStreamLoad: what a server says of its load at the end of a stream counts.
func TestMeshStreamLoad(t *testing.T) {
	leak.Check(t)
	for _, k := range kinds {
		report := func(qps float64) *backend {
			return newBackend(t, "b", func(ctx context.Context, _ int64) error {
				if r := orca.CallMetricsRecorderFromContext(ctx); r != nil {
					r.SetCPUUtilization(0.5)
					r.SetQPS(qps)
				}
				return nil
			}, orca.CallMetricsServerOption(nil))
		}
		light, heavy := report(1000), report(10)
		w := newMeshWorld(t)
		c := mcluster("c", light.address, heavy.address)
		c.LB = lb.Policy{Kind: lb.ClientWeighted}
		c.LB.Client = lb.ClientWeights{Blackout: time.Nanosecond, Expiration: time.Hour, Update: 100 * time.Millisecond}
		w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
		client, _ := w.dial(t)
		eventually(t, func() string {
			light.calls.Store(0)
			heavy.calls.Store(0)
			for range 100 {
				if err := k.call(testContext(t), client); err != nil {
					t.Fatal(err)
				}
			}
			if light.calls.Load() < 3*heavy.calls.Load() {
				return k.name + ": the server that can do more has no more calls"
			}
			return ""
		})
	}
}
