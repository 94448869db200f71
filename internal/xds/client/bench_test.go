package client

import (
	"fmt"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// BenchmarkEndpointChange is one change of endpoints, from the response to the
// published snapshot, in a process that calls many hosts.
func BenchmarkEndpointChange(b *testing.B) {
	for _, hosts := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprintf("hosts=%d", hosts), func(b *testing.B) {
			published := 0
			var last *snapshot.Snapshot
			c, err := newState(Options{
				Bootstrap: &bootstrap.Config{
					Servers:          []bootstrap.Server{{URI: "passthrough:///x", ChannelCreds: []bootstrap.ChannelCreds{{Type: "insecure"}}}},
					Node:             &corev3.Node{Id: "node"},
					ListenerTemplate: "%s",
				},
				OnSnapshot: func(s *snapshot.Snapshot) { published++; last = s },
			}, plain)
			if err != nil {
				b.Fatal(err)
			}
			defer c.cancel()
			s := c.servers[0]
			for h := range hosts {
				c.subscribe(fmt.Sprintf("h%d:80", h))
				c.settle()
				for _, m := range service(fmt.Sprint("h", h), 1) {
					a := pack(m)
					k, _ := kindOf(a.TypeUrl)
					name, _ := nameOf(a.Value)
					if err := c.accept(c.resources[k][name], s, "1", a); err != nil {
						b.Fatal(err)
					}
					c.settle()
				}
			}
			c.publish()
			if len(last.Hosts) != hosts || len(last.Clusters) != hosts {
				b.Fatalf("%d hosts, %d clusters", len(last.Hosts), len(last.Clusters))
			}
			changes := [2]*response{
				{items: []item{{name: "e-h0", version: "2", resource: pack(edsOf("e-h0", 1, 2))}}},
				{items: []item{{name: "e-h0", version: "3", resource: pack(edsOf("e-h0", 1, 3))}}},
			}
			published = 0
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				it := &changes[i%2].items[0]
				if err := c.accept(c.resources[endpoints][it.name], s, it.version, it.resource); err != nil {
					b.Fatal(err)
				}
				c.settle()
				c.purge()
				c.publish()
			}
			if published != b.N {
				b.Fatalf("%d snapshots for %d changes", published, b.N)
			}
		})
	}
}
