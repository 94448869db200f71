// Command quickstart is an HTTP server and a client of it that have joined the
// mesh. Lines marked "mesh" are all that an existing service adds or changes.
//
//	go run ./examples/quickstart
//
// Without a control plane it has traces, metrics and a default policy. With a
// bootstrap in GRPC_XDS_BOOTSTRAP the same lines get routes, retries, balancing
// and security from the xDS server: the README has the commands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/sinew-mesh/sinew/mesh" // mesh
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to serve on")
	call := flag.String("call", "", "URL to call (default /hello/mesh at that address)")
	flag.Parse()
	if err := run(context.Background(), os.Stdout, *listen, *call); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer, listen, call string) error {
	m, err := mesh.New(ctx)                  // mesh
	if errors.Is(err, mesh.ErrNoBootstrap) { // mesh
		m, err = mesh.New(ctx, mesh.WithoutControlPlane()) // mesh
	}
	if err != nil {
		return err
	}
	defer m.Close() // mesh

	lis, err := m.Listen(ctx, "tcp", listen) // mesh: was net.Listen
	if err != nil {
		return err
	}
	server := &http.Server{Handler: m.Handler(hello())} // mesh: was Handler: hello()
	go server.Serve(lis)
	defer server.Close()

	if call == "" {
		call = "http://" + lis.Addr().String() + "/hello/mesh"
	}
	client := m.Client() // mesh: was &http.Client{}
	resp, err := client.Get(call)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(out, resp.Body)
	return err
}

func hello() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s\n", r.PathValue("name"))
	})
	return mux
}
