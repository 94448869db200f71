package mesh_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

func TestLoadSheddingOptions(t *testing.T) {
	for _, s := range []mesh.LoadShedding{{}, {MaxConcurrent: -1}, {MaxConcurrent: 1, MaxWait: -1}} {
		if _, err := mesh.New(t.Context(), mesh.WithoutControlPlane(), mesh.WithLoadShedding(s)); err == nil {
			t.Errorf("%+v is accepted", s)
		}
	}
}

// holding is a service whose requests for "/hold", and whose unary calls with a
// payload, last until they are let go or their time is up.
type holding struct {
	pb.UnimplementedTestServiceServer
	entered chan struct{}
	leave   chan struct{}
}

func newHolding() *holding {
	return &holding{entered: make(chan struct{}), leave: make(chan struct{})}
}

func (h *holding) hold(ctx context.Context) {
	h.entered <- struct{}{}
	select {
	case <-h.leave:
	case <-ctx.Done():
	}
}

func (h *holding) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/hold" {
		h.hold(r.Context())
	}
}

func (h *holding) UnaryCall(ctx context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if r.GetPayload() != nil {
		h.hold(ctx)
	}
	return &pb.SimpleResponse{}, nil
}

// TestLoadShedding: HTTP and gRPC share the places of a process, and a caller who
// is told of an overload does not try again.
func TestLoadShedding(t *testing.T) {
	leak.Check(t)
	h := newHolding()
	m, err := mesh.New(t.Context(), mesh.WithoutControlPlane(), mesh.WithLoadShedding(mesh.LoadShedding{MaxConcurrent: 1, MaxQueue: -1}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	lis, err := m.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- m.ServeListener(ctx, lis, h) }()
	t.Cleanup(func() { stop(); <-served })
	grpcLis, err := m.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(m.ServerOptions()...)
	pb.RegisterTestServiceServer(server, h)
	go func() { _ = server.Serve(grpcLis) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(grpcLis.Addr().String(), m.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := pb.NewTestServiceClient(conn)

	get := func(path string) (int, error) {
		resp, err := m.Client().Get("http://" + lis.Addr().String() + path)
		if err != nil {
			return 0, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	call := func(hold bool) error {
		r := &pb.SimpleRequest{}
		if hold {
			r.Payload = &pb.Payload{}
		}
		_, err := client.UnaryCall(context.Background(), r)
		return err
	}
	// The place comes back when the handler has returned, which may be after the answer.
	eventually := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	for range 2 {
		eventually("HTTP is not served", func() bool { code, err := get("/"); return err == nil && code == 200 })
		done := make(chan struct{})
		go func() { defer close(done); _, _ = get("/hold") }()
		waitEntered(t, h)
		if code, err := get("/"); err != nil || code != http.StatusServiceUnavailable {
			t.Errorf("HTTP beside HTTP: %d %v", code, err)
		}
		if err := call(false); grpcstatus.Code(err) != codes.Unavailable {
			t.Errorf("gRPC beside HTTP: %v", err)
		}
		h.leave <- struct{}{}
		<-done

		eventually("gRPC is not served", func() bool { return call(false) == nil })
		done = make(chan struct{})
		go func() { defer close(done); _ = call(true) }()
		waitEntered(t, h)
		if code, err := get("/"); err != nil || code != http.StatusServiceUnavailable {
			t.Errorf("HTTP beside gRPC: %d %v", code, err)
		}
		h.leave <- struct{}{}
		<-done
	}
}

func waitEntered(t *testing.T, h *holding) {
	t.Helper()
	select {
	case <-h.entered:
	case <-time.After(10 * time.Second):
		t.Fatal("the handler does not run")
	}
}

// TestDeadlineReachesTheServer: a route's time limit, and the caller's own
// deadline, end the context of the handler at the other end.
func TestDeadlineReachesTheServer(t *testing.T) {
	leak.Check(t)
	ended := map[string]chan error{"/route": make(chan error, 1000), "/own": make(chan error, 1000)}
	deadline := func(ctx context.Context, path string) {
		at, ok := ctx.Deadline()
		if left := time.Until(at); !ok || left > time.Minute {
			ended[path] <- errors.New("there is no deadline within a minute")
			return
		}
		<-ctx.Done()
		ended[path] <- ctx.Err()
	}
	w := meshtest.New(t, meshtest.MutualTLS(), meshtest.Policy(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - {match: [{uri: {prefix: /route}}], timeout: 0.05s, route: [{destination: {host: reviews}}]}
  - {route: [{destination: {host: reviews}}]}
`), meshtest.HTTP("reviews", "v1", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { deadline(r.Context(), r.URL.Path) })))
	// A request whose time is up before it comes to the handler says nothing, so there is another.
	ask := func(path string) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if path == "/own" {
			ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://reviews"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.Client().Do(r)
		if err == nil {
			resp.Body.Close()
		}
		select {
		case err := <-ended[path]:
			return err
		case <-time.After(100 * time.Millisecond):
			return nil
		}
	}
	for _, path := range []string{"/route", "/own"} {
		var err error
		for deadline := time.Now().Add(20 * time.Second); err == nil; {
			if err = ask(path); err == nil && time.Now().After(deadline) {
				t.Fatalf("%s: no handler's context ends", path)
			}
		}
		// The caller may have closed the stream a moment before the deadline ended here.
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
