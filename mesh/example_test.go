package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sinew-mesh/sinew/mesh"
)

// A team starts without a server: its clients get a timeout, retries within a
// budget and a breaker, and its calls stay as they are.
func Example_withoutControlPlane() {
	failures := 1
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if failures--; failures >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "hello")
	}))
	defer backend.Close()

	m, err := mesh.New(context.Background(), mesh.WithoutControlPlane(), mesh.WithDefaultPolicy(mesh.Policy{
		Timeout:    2 * time.Second,
		Retries:    2,
		RetryOn:    "connect-failure,refused-stream,gateway-error",
		BreakAfter: 10,
	}))
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	resp, err := m.Client().Get(backend.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(body))
	// Output: 200 hello
}

// A server joins the mesh with one call; it drains when its context ends.
func ExampleMesh_ServeListener() {
	m, err := mesh.New(context.Background(), mesh.WithoutControlPlane())
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	ctx, stop := context.WithCancel(context.Background())
	lis, err := m.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() {
		served <- m.ServeListener(ctx, lis, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "hello")
		}))
	}()

	resp, err := m.Client().Get("http://" + lis.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(string(body))
	stop()
	fmt.Println("drained:", <-served)
	// Output:
	// hello
	// drained: <nil>
}

// A gRPC server and a client of it. With a control plane the target would be a
// service, "mesh:///ratings:9080", under the policy that it has.
func ExampleMesh_DialOptions() {
	m, err := mesh.New(context.Background(), mesh.WithoutControlPlane())
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	lis, err := m.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(m.ServerOptions()...)
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(lis) }()
	defer server.Stop()

	conn, err := grpc.NewClient("mesh:///"+lis.Addr().String(), m.DialOptions()...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Status)
	// Output: SERVING
}

// The typed errors tell why the mesh did not send a request.
func ExampleNoRouteError() {
	m, err := mesh.New(context.Background(), mesh.WithoutControlPlane(), mesh.WithExternalHosts(mesh.RefuseExternal))
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	_, err = m.Client().Get("http://reviews:9080/")
	var noRoute *mesh.NoRouteError
	if errors.As(err, &noRoute) {
		fmt.Println(noRoute.Host, "-", noRoute.Reason)
	}
	// Output: reviews:9080 - the mesh does not know the host, and external hosts are refused
}
