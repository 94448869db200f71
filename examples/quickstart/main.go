// Command quickstart is an HTTP server and a client of it that have joined the
// mesh. Lines marked "mesh" are all that an existing service adds or changes.
//
//	go run ./examples/quickstart
//
// Without a control plane it has traces, metrics and a default policy. With a
// bootstrap in GRPC_XDS_BOOTSTRAP (see "xdsserver bootstrap") the same lines
// get routes, retries and balancing from the xDS server.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/sinew-mesh/sinew/mesh" // mesh
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer) error {
	m, err := mesh.New(ctx)                  // mesh
	if errors.Is(err, mesh.ErrNoBootstrap) { // mesh
		m, err = mesh.New(ctx, mesh.WithoutControlPlane()) // mesh
	}
	if err != nil {
		return err
	}
	defer m.Close() // mesh

	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s", r.PathValue("name"))
	})
	lis, err := m.Listen(ctx, "tcp", "127.0.0.1:0") // mesh: was net.Listen
	if err != nil {
		return err
	}
	server := &http.Server{Handler: m.Handler(mux)} // mesh: was Handler: mux
	go server.Serve(lis)
	defer server.Close()

	client := m.Client() // mesh: was &http.Client{}
	resp, err := client.Get("http://" + lis.Addr().String() + "/hello/mesh")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(out, resp.Body)
	return err
}
