package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// env is a client and its control planes inside a bubble of virtual time.
type env struct {
	*testing.T
	servers []*fake
	*fake   // servers[0]
	config  *bootstrap.Config
	client  *Client

	smu   sync.Mutex
	snaps []*snapshot.Snapshot
	log   lines
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// in runs a test in a bubble with n servers, of which none is started.
func in(t *testing.T, n int, sotw bool, test func(*env)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e := &env{T: t, config: &bootstrap.Config{
			Node:             &corev3.Node{Id: "sidecar~10.0.0.1~pod.ns~ns.svc.cluster.local"},
			ListenerTemplate: "%s", InboundTemplate: "in/%s",
		}}
		for i := range n {
			f := newFake()
			f.sotwOnly = sotw
			e.servers = append(e.servers, f)
			e.config.Servers = append(e.config.Servers, bootstrap.Server{
				URI: fmt.Sprintf("passthrough:///%d", i), ChannelCreds: []bootstrap.ChannelCreds{{Type: "insecure"}},
			})
		}
		e.fake = e.servers[0]
		defer func() {
			if e.client != nil {
				e.client.Close()
			}
			for _, f := range e.servers {
				f.stop()
			}
		}()
		test(e)
	})
}

// both runs a test against a server that knows delta and one that does not.
func both(t *testing.T, n int, test func(*env)) {
	t.Run("delta", func(t *testing.T) { in(t, n, false, test) })
	t.Run("sotw", func(t *testing.T) { in(t, n, true, test) })
}

func (e *env) open(change ...func(*Options)) {
	e.Helper()
	o := Options{
		Bootstrap: e.config,
		Log:       slog.New(slog.NewTextHandler(&e.log, nil)),
		OnSnapshot: func(s *snapshot.Snapshot) {
			e.smu.Lock()
			defer e.smu.Unlock()
			e.snaps = append(e.snaps, s)
		},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			i, _ := strconv.Atoi(addr)
			return e.servers[i].dial(ctx)
		})},
	}
	for _, f := range change {
		f(&o)
	}
	c, err := newClient(o, plain)
	if err != nil {
		e.Fatal(err)
	}
	e.client = c
	// A server without delta is asked for it first.
	synctest.Wait()
}

// snap is the last snapshot once everything has come to rest.
func (e *env) snap() *snapshot.Snapshot {
	synctest.Wait()
	e.smu.Lock()
	defer e.smu.Unlock()
	for _, s := range e.snaps {
		consistent(e.T, s)
	}
	if len(e.snaps) == 0 {
		return &snapshot.Snapshot{}
	}
	last := e.snaps[len(e.snaps)-1]
	e.snaps = []*snapshot.Snapshot{last}
	return last
}

// consistent fails if a host or an aggregate names a cluster that the snapshot lacks.
func consistent(t *testing.T, s *snapshot.Snapshot) {
	t.Helper()
	for name, h := range s.Hosts {
		if h == nil || h.Name != name || h.Used == nil {
			t.Fatalf("host %q is published as %+v", name, h)
		}
		if (h.VirtualHost == nil) == (h.Err == nil && !h.Absent) {
			t.Fatalf("host %q: neither usable nor failed: %+v", name, h)
		}
		if h.VirtualHost == nil {
			continue
		}
		for _, c := range clusterNames(h.VirtualHost) {
			n := s.Clusters[c]
			if n == nil || n.Name != c || n.Endpoints == nil {
				t.Fatalf("host %q names cluster %q, which is %+v", name, c, n)
			}
		}
	}
	for name, c := range s.Clusters {
		if c == nil || c.Name != name || c.Endpoints == nil || c.Used == nil {
			t.Fatalf("cluster %q is published as %+v", name, c)
		}
		for i, u := range c.Underlying {
			if leaf := s.Clusters[u]; leaf == nil || leaf.Discovery == snapshot.Aggregate || slices.Contains(c.Underlying[:i], u) {
				t.Fatalf("aggregate %q is made of %v, of which %q is %+v", name, c.Underlying, u, leaf)
			}
		}
	}
}

// show describes a host: "absent", "error: ...", "-" or its clusters with their endpoints' ports.
func (e *env) show(name string) string { return e.describe(e.snap(), name) }

func (*env) describe(s *snapshot.Snapshot, name string) string {
	if s == nil {
		return "-"
	}
	h := s.Hosts[name]
	switch {
	case h == nil:
		return "-"
	case h.Absent:
		return "absent"
	case h.Err != nil:
		return "error"
	}
	var parts []string
	for _, n := range clusterNames(h.VirtualHost) {
		c := s.Clusters[n]
		part := n + "=" + strings.Join(c.Underlying, "+")
		for i, ep := range c.Endpoints.All {
			_, port, _ := net.SplitHostPort(ep.Address)
			if i > 0 {
				part += ","
			}
			part += port
		}
		if c.Err != nil {
			part += "!"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " ")
}

func (e *env) want(host, want string) {
	e.Helper()
	if got := e.show(host); got != want {
		e.Fatalf("at %v: host %s is %q, want %q", time.Now().Format("05.000"), host, got, want)
	}
}

func (e *env) state(k kind, name string) ResourceStatus {
	e.Helper()
	synctest.Wait()
	for _, r := range e.client.Status().Resources {
		if r.Type == k.String() && r.Name == name {
			return r
		}
	}
	return ResourceStatus{}
}

// up starts the first server with host a and a client that has it.
func (e *env) up(change ...func(*Options)) {
	e.Helper()
	e.put(service("a", 1)...)
	e.start()
	e.open(change...)
	e.client.Subscribe("a:80")
	e.want("a:80", "c-a=1")
	e.forget()
}
