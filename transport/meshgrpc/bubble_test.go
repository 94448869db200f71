package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// bubble is a world whose clock moves only when everything in it waits, with
// servers in memory: what comes of a limit in time does not depend on the machine.
type bubble struct {
	*meshWorld
	mu      sync.Mutex
	servers map[string]*bufconn.Listener // by address
}

// inBubble runs a test in such a world. Goroutines that it leaves behind fail it.
func inBubble(t *testing.T, test func(t *testing.T, b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{meshWorld: newMeshWorld(t), servers: make(map[string]*bufconn.Listener)}
		test(t, b)
		b.quiet(t)
	})
}

// listen makes a listener at an address of its own.
func (b *bubble) listen() (string, net.Listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	address, lis := fmt.Sprintf("192.0.2.%d:80", len(b.servers)+1), bufconn.Listen(64<<10)
	b.servers[address] = lis
	return address, lis
}

func (b *bubble) backend(t *testing.T, answer func(context.Context, int64) error) *backend {
	t.Helper()
	back := &backend{name: "b", answer: answer}
	s := grpc.NewServer()
	pb.RegisterTestServiceServer(s, back)
	address, lis := b.listen()
	back.address = address
	serveOn(t, s, lis)
	return back
}

func (b *bubble) dial(t *testing.T, options ...grpc.DialOption) pb.TestServiceClient {
	t.Helper()
	client, _ := b.meshWorld.dial(t, append(options, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		b.mu.Lock()
		lis := b.servers[address]
		b.mu.Unlock()
		if lis == nil {
			return nil, errors.New("connection refused")
		}
		return lis.DialContext(ctx)
	}))...)
	return client
}

// only has every call go to the backend by the route.
func (b *bubble) only(back *backend, r snapshot.Route) {
	b.set([]*snapshot.Cluster{mcluster("c", back.address)}, r)
}
