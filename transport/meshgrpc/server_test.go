package meshgrpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/reflection"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sinew-mesh/sinew/internal/journal"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// admitted is a server on loopback with the test service, health and reflection.
func admitted(t *testing.T, e *inbound.Engine, l *journal.Journal, more ...grpc.ServerOption) (*backend, *grpc.ClientConn) {
	t.Helper()
	t.Cleanup(e.Close)
	b := &backend{name: "b"}
	s := grpc.NewServer(append(ServerOptions(ServerConfig{Inbound: e, Log: slog.New(slog.NewTextHandler(l, nil))}), more...)...)
	pb.RegisterTestServiceServer(s, b)
	hs := health.NewServer()
	t.Cleanup(hs.Shutdown)
	healthpb.RegisterHealthServer(s, hs)
	reflection.Register(s)
	b.address = serve(t, s)
	_, conn := dial(t, b.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	return b, conn
}

// everyKind calls the four kinds of RPC, health and reflection.
func everyKind(t *testing.T, conn *grpc.ClientConn, check func(name string, err error)) {
	t.Helper()
	ctx := testContext(t)
	for _, k := range kinds {
		check(k.name, k.call(ctx, pb.NewTestServiceClient(conn)))
	}
	h := healthpb.NewHealthClient(conn)
	_, err := h.Check(ctx, &healthpb.HealthCheckRequest{})
	check("health", err)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := h.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = w.Recv()
	}
	check("health watch", err)
	r, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err == nil {
		err = r.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	}
	if err == nil || err == io.EOF { // io.EOF: the stream has ended, and Recv says why
		_, err = r.Recv()
	}
	check("reflection", err)
}

// policy is a snapshot with one listener.
func policy(address string, in *snapshot.Inbound) *snapshot.Snapshot {
	in.Name = address
	return &snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{address: in}}
}

// open is a policy that lets everything in.
func open() *snapshot.Inbound { return &snapshot.Inbound{Plain: &snapshot.FilterChain{}} }

func TestAdmission(t *testing.T) {
	leak.Check(t)
	const secret = "istiod-7 said: RBAC field 3 is bad"
	for _, tt := range []struct {
		name   string
		policy *snapshot.Inbound // nil: never comes
		admit  bool
	}{
		{name: "ready", policy: open(), admit: true},
		{name: "not ready"},
		{name: "absent", policy: &snapshot.Inbound{Absent: true}},
		{name: "refused policy", policy: &snapshot.Inbound{Err: errors.New(secret)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l journal.Journal
			var asked atomic.Pointer[string]
			e := inbound.New(inbound.Options{
				Subscribe:  func(a string) { asked.Store(&a) },
				Trouble:    func() error { return errors.New(secret) },
				PolicyWait: time.Millisecond,
			})
			var ran atomic.Int64 // the caller's own interceptors
			b, conn := admitted(t, e, &l,
				grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
					ran.Add(1)
					return h(ctx, req)
				}),
				grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
					ran.Add(1)
					return h(srv, ss)
				}))
			if tt.policy != nil {
				e.Install(policy(b.address, tt.policy))
			}
			everyKind(t, conn, func(name string, err error) {
				if tt.admit {
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
					return
				}
				if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), b.address) || strings.Contains(err.Error(), "istiod") {
					t.Errorf("%s: %v", name, err)
				}
			})
			if tt.admit {
				wantCode(t, conn.Invoke(testContext(t), "/no.Such/Method", &pb.Empty{}, &pb.Empty{}), codes.Unimplemented)
				ran.Add(-1)
				if b.calls.Load() != int64(len(kinds)) || ran.Load() != int64(len(kinds))+3 || l.String() != "" {
					t.Errorf("%d calls, %d interceptors, log %q", b.calls.Load(), ran.Load(), l.String())
				}
				return
			}
			if b.calls.Load() != 0 || ran.Load() != 0 {
				t.Errorf("refused, but %d handlers and %d interceptors ran", b.calls.Load(), ran.Load())
			}
			if tt.policy == nil && (asked.Load() == nil || *asked.Load() != b.address) {
				t.Error("the control plane was not asked for the listener")
			}
			if log := l.String(); !strings.Contains(log, pb.TestService_UnaryCall_FullMethodName) || tt.name != "absent" && !strings.Contains(log, secret) {
				t.Errorf("the log does not say why: %s", log)
			}
			// What the server has not is not told to those who may not call it.
			wantCode(t, conn.Invoke(testContext(t), "/no.Such/Method", &pb.Empty{}, &pb.Empty{}), codes.Unavailable)
		})
	}
}

func TestAdmissionWaitsForPolicy(t *testing.T) {
	leak.Check(t)
	var l journal.Journal
	var e *inbound.Engine
	e = inbound.New(inbound.Options{Subscribe: func(a string) { e.Install(policy(a, open())) }})
	_, conn := admitted(t, e, &l)
	everyKind(t, conn, func(name string, err error) {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
}

func TestAdmissionWithoutControlPlane(t *testing.T) {
	leak.Check(t)
	var l journal.Journal
	_, conn := admitted(t, inbound.New(inbound.Options{}), &l)
	everyKind(t, conn, func(name string, err error) {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
}

func TestInterceptorsOfTheMeshSeeRefusals(t *testing.T) {
	leak.Check(t)
	e := inbound.New(inbound.Options{Subscribe: func(string) {}, PolicyWait: time.Millisecond})
	t.Cleanup(e.Close)
	var seen []codes.Code
	var mu sync.Mutex
	record := func(err error) error {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, status.Code(err))
		return err
	}
	b := newBackend(t, "b", nil, ServerOptions(ServerConfig{
		Inbound: e,
		Log:     slog.New(slog.DiscardHandler),
		UnaryInterceptors: []grpc.UnaryServerInterceptor{func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			r, err := h(ctx, req)
			return r, record(err)
		}},
		StreamInterceptors: []grpc.StreamServerInterceptor{func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return record(h(srv, ss))
		}},
	})...)
	c, _ := dial(t, b.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	for _, k := range kinds {
		wantCode(t, k.call(testContext(t), c), codes.Unavailable)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != len(kinds) || seen[0] != codes.Unavailable || seen[3] != codes.Unavailable {
		t.Errorf("saw %v", seen)
	}
}

// Under net/http the listener is known too.
func TestAdmissionUnderNetHTTP(t *testing.T) {
	leak.Check(t)
	e := inbound.New(inbound.Options{Subscribe: func(string) {}, PolicyWait: time.Millisecond})
	t.Cleanup(e.Close)
	gs := grpc.NewServer(ServerOptions(ServerConfig{Inbound: e, Log: slog.New(slog.DiscardHandler)})...)
	t.Cleanup(gs.Stop)
	b := &backend{name: "b"}
	pb.RegisterTestServiceServer(gs, b)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	hs := &http.Server{Handler: gs, Protocols: protocols}
	done := make(chan error, 1)
	go func() { done <- hs.Serve(lis) }()
	t.Cleanup(func() {
		hs.Close()
		<-done
	})
	c, _ := dial(t, lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	err = kinds[0].call(testContext(t), c)
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), lis.Addr().String()) {
		t.Errorf("%v does not name the listener", err)
	}
	e.Install(policy(lis.Addr().String(), open()))
	for _, k := range kinds {
		if err := k.call(testContext(t), c); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
	}
}

// A connection without a TCP address has no listener that policy could name.
func TestAdmissionOffTCP(t *testing.T) {
	leak.Check(t)
	for name, controlled := range map[string]bool{"with a control plane": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			var o inbound.Options
			if controlled {
				o.Subscribe = func(string) {}
			}
			e := inbound.New(o)
			t.Cleanup(e.Close)
			s := grpc.NewServer(ServerOptions(ServerConfig{Inbound: e, Log: slog.New(slog.DiscardHandler)})...)
			pb.RegisterTestServiceServer(s, &backend{name: "b"})
			lis := bufconn.Listen(64 << 10)
			done := make(chan error, 1)
			go func() { done <- s.Serve(lis) }()
			t.Cleanup(func() {
				s.Stop()
				<-done
			})
			c, _ := dial(t, "passthrough:///bufconn", append(DialOptions(ClientOptions{}),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
			want := codes.OK
			if controlled {
				want = codes.Unavailable
			}
			for _, k := range kinds {
				wantCode(t, k.call(testContext(t), c), want)
			}
		})
	}
}
