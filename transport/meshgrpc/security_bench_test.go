package meshgrpc

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/sinew-mesh/sinew/identity/tlsconfig"
)

// BenchmarkMutualTLS compares a server under policy, and its listener, with
// gRPC's own server with the same certificates and rules.
func BenchmarkMutualTLS(b *testing.B) {
	ca := newAuthority(b)
	src := static(b, ca.material(b, ca.issue(b, reviewsID)))
	client := mutual(static(b, ca.material(b, ca.issue(b, webID))))
	calls := func(b *testing.B, address string) {
		c, _ := dial(b, address, client)
		ctx := testContext(b)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("bare", func(b *testing.B) {
		calls(b, newBackend(b, "b", nil, grpc.Creds(credentials.NewTLS(tlsconfig.Server(src, tlsconfig.ServerOptions{})))).address)
	})
	b.Run("mesh", func(b *testing.B) { calls(b, newGoverned(b, true, src, strict(), nil).address) })
}
