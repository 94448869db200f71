package client

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// store is a control plane's store: go-control-plane's own caches.
type store interface {
	cache.Cache
	put(t *testing.T, version int, ms ...proto.Message)
}

// linear is one LinearCache for each type: an entry per resource.
type linear struct {
	cache.MuxCache
}

func newLinear() store {
	l := &linear{cache.MuxCache{
		Classify:      func(r *cache.Request) string { return r.GetTypeUrl() },
		ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() },
		Caches:        map[string]cache.Cache{},
	}}
	for _, u := range typeURLs {
		l.Caches[u] = cache.NewLinearCache(u)
	}
	return l
}

func (l *linear) put(t *testing.T, _ int, ms ...proto.Message) {
	for _, m := range ms {
		a := pack(m)
		name, _ := nameOf(a.Value)
		if err := l.Caches[a.TypeUrl].(*cache.LinearCache).UpdateResource(name, m); err != nil {
			t.Fatal(err)
		}
	}
}

// whole is a SnapshotCache: a consistent world per node.
type whole struct {
	cache.SnapshotCache
	all map[string]map[string]types.Resource
}

func newWhole() store {
	return &whole{cache.NewSnapshotCache(false, cache.IDHash{}, nil), map[string]map[string]types.Resource{}}
}

func (w *whole) put(t *testing.T, version int, ms ...proto.Message) {
	for _, m := range ms {
		a := pack(m)
		name, _ := nameOf(a.Value)
		if w.all[a.TypeUrl] == nil {
			w.all[a.TypeUrl] = map[string]types.Resource{}
		}
		w.all[a.TypeUrl][name] = m
	}
	world := map[string][]types.Resource{}
	for u, m := range w.all {
		for _, r := range m {
			world[u] = append(world[u], r)
		}
	}
	s, err := cache.NewSnapshot(strconv.Itoa(version), world)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetSnapshot(context.Background(), "node", s); err != nil {
		t.Fatal(err)
	}
}

// withoutDelta is a server that knows state of the world only.
type withoutDelta struct{ serverv3.Server }

func (withoutDelta) DeltaAggregatedResources(discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "no delta here")
}

// serve starts a control plane on addr and returns its address and a function that kills it.
func serve(t *testing.T, addr string, s store, delta bool) (string, func()) {
	t.Helper()
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := grpc.NewServer()
	srv := serverv3.NewServer(ctx, s, nil)
	if !delta {
		srv = withoutDelta{srv}
	}
	discovery.RegisterAggregatedDiscoveryServiceServer(g, srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.Serve(lis)
	}()
	return lis.Addr().String(), func() {
		cancel()
		g.Stop()
		<-done
	}
}

// TestControlPlane holds the client against go-control-plane's server with
// each of its caches, over TCP: first policy, changes, more hosts, a kill and
// a restart with a new store. Nothing is lost while the server is away.
func TestControlPlane(t *testing.T) {
	for name, newStore := range map[string]func() store{"linear": newLinear, "whole": newWhole} {
		for _, delta := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/delta=%v", name, delta), func(t *testing.T) {
				leak.Check(t)
				s := newStore()
				s.put(t, 1, service("a", 1)...)
				addr, kill := serve(t, "127.0.0.1:0", s, delta)
				defer func() { kill() }()

				snaps := make(chan *snapshot.Snapshot, 1000)
				lost := make(chan struct{}, 1000)
				c, err := newClient(Options{
					Bootstrap: &bootstrap.Config{
						Servers:          []bootstrap.Server{{URI: addr, ChannelCreds: []bootstrap.ChannelCreds{{Type: "insecure"}}}},
						Node:             &corev3.Node{Id: "node"},
						ListenerTemplate: "%s",
					},
					OnSnapshot: func(s *snapshot.Snapshot) { snaps <- s },
					Events:     Events{Disconnected: func(string, error) { lost <- struct{}{} }},
				}, compiled)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				limit := time.After(time.Minute)
				want := func(host, want string) {
					t.Helper()
					var s *snapshot.Snapshot
					for {
						select {
						case s = <-snaps:
							consistent(t, s)
							if got := (&env{T: t}).describe(s, host); got == want {
								return
							}
						case <-limit:
							t.Fatalf("host %s is %q, want %q; status %+v", host, (&env{T: t}).describe(s, host), want, c.Status())
						}
					}
				}
				c.Subscribe("a:80")
				want("a:80", "c-a=1")
				s.put(t, 2, edsOf("e-a", 2))
				want("a:80", "c-a=2")
				s.put(t, 3, service("b", 3)...)
				c.Subscribe("b:80")
				want("b:80", "c-b=3")
				s.put(t, 4, rdsOf("r-a", "a:80", "c-b", "c-a"))
				want("a:80", "c-b=3 c-a=2")

				for len(lost) > 0 {
					<-lost
				}
				kill()
				<-lost // the stream
				<-lost // the first attempt to make it again
				if n := len(snaps); n != 0 {
					t.Errorf("%d snapshots because the server went away", n)
				}
				s = newStore()
				s.put(t, 5, service("a", 5)...)
				s.put(t, 6, service("b", 6)...)
				_, kill = serve(t, addr, s, delta)
				want("b:80", "c-b=6")
				s.put(t, 7, edsOf("e-a", 7))
				want("a:80", "c-a=7")
			})
		}
	}
}
