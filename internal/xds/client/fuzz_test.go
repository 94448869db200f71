package client

import (
	"context"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// FuzzNameOf holds the quick reading of a name against the real decoder.
func FuzzNameOf(f *testing.F) {
	for _, m := range service("a", 1) {
		f.Add(pack(m).Value)
	}
	f.Add([]byte{0x0a, 0x01, 'x', 0x0a, 0x02, 'y', 'z'})
	f.Add([]byte{0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, b []byte) {
		name, ok := nameOf(b)
		var m listenerv3.Listener
		if err := proto.Unmarshal(b, &m); err != nil {
			return
		}
		if name != m.Name || ok != (m.Name != "") {
			t.Errorf("nameOf = %q, %v; the message has %q", name, ok, m.Name)
		}
	})
}

// FuzzResponse feeds a client with two hosts, one of which is complete, any
// response of either protocol: it must neither panic nor publish anything inconsistent.
func FuzzResponse(f *testing.F) {
	var delta discovery.DeltaDiscoveryResponse
	var sotw discovery.DiscoveryResponse
	for _, m := range append(service("a", 2), service("b", 3)...) {
		a := pack(m)
		name, _ := nameOf(a.Value)
		delta.TypeUrl, sotw.TypeUrl = a.TypeUrl, a.TypeUrl
		delta.Resources = []*discovery.Resource{{Name: name, Version: "9", Resource: a}}
		delta.RemovedResources = []string{name}
		sotw.Resources = []*anypb.Any{a}
		for i, m := range []proto.Message{&delta, &sotw} {
			b, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b, i == 1)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, world bool) {
		r := &response{}
		if world {
			var m discovery.DiscoveryResponse
			if proto.Unmarshal(b, &m) != nil {
				return
			}
			r.fromSotW(&m)
		} else {
			var m discovery.DeltaDiscoveryResponse
			if proto.Unmarshal(b, &m) != nil {
				return
			}
			r.fromDelta(&m)
		}
		c, err := newState(Options{
			Bootstrap: &bootstrap.Config{
				Servers:          []bootstrap.Server{{URI: "passthrough:///x", ChannelCreds: []bootstrap.ChannelCreds{{Type: "insecure"}}}},
				Node:             &corev3.Node{Id: "node"},
				ListenerTemplate: "%s",
			},
			OnSnapshot: func(s *snapshot.Snapshot) { consistent(t, s) },
		}, plain)
		if err != nil {
			t.Fatal(err)
		}
		defer c.cancel()
		c.open = 1
		s := c.servers[0]
		st := newStream(context.Background(), s, world)
		c.connected(st)
		c.subscribe("a:80")
		c.subscribe("b:80")
		turn := func() {
			c.settle()
			st.writing = false
			c.flush()
			select {
			case <-st.out:
				c.wrote(st)
			default:
			}
			c.purge()
			c.publish()
		}
		turn()
		for _, m := range service("a", 1) {
			a := pack(m)
			k, _ := kindOf(a.TypeUrl)
			name, _ := nameOf(a.Value)
			if err := c.accept(c.resources[k][name], s, "1", a); err != nil {
				t.Fatal(err)
			}
			turn()
		}
		before := c.published
		if before.Hosts["a:80"].VirtualHost == nil {
			t.Fatal("host a is not ready")
		}
		for range 2 {
			st.tokens <- struct{}{}
			c.received(st, r)
			turn()
		}
		for _, r := range c.resources {
			for _, r := range r {
				r.stopTimer()
			}
		}
		for h := range c.unanswered {
			h.ready.Stop()
		}
	})
}
