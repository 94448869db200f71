package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

const unaryMethod = "/grpc.testing.TestService/UnaryCall"

func always() routing.Fraction { return routing.Fraction{PerMillion: 1_000_000} }

func change(t testing.TB, name, value string) routing.HeaderChange {
	t.Helper()
	c, err := routing.NewHeaderChange(name, value, routing.OverwriteOrAdd, false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMeshRoutesByHeader(t *testing.T) {
	leak.Check(t)
	a, b := newBackend(t, "a", nil), newBackend(t, "b", nil)
	w := newMeshWorld(t)
	byHeader := mroute(t, "b")
	byHeader.Match.Headers = []routing.HeaderMatch{{Name: routing.NewHeaderName("x-version"), Kind: routing.HeaderString, String: routing.Exact("b", false)}}
	byType := mroute(t, "b")
	byType.Match.Headers = []routing.HeaderMatch{{Name: routing.NewHeaderName("content-type"), Kind: routing.HeaderString, String: routing.Exact("application/grpc+proto", false)}}
	w.set([]*snapshot.Cluster{mcluster("a", a.address), mcluster("b", b.address)}, byHeader, byType, mroute(t, "a"))
	client, _ := w.dial(t)
	hostname := func(ctx context.Context, o ...grpc.CallOption) string {
		r, err := client.UnaryCall(ctx, &pb.SimpleRequest{}, o...)
		if err != nil {
			t.Fatal(err)
		}
		return r.Hostname
	}
	ctx := testContext(t)
	if got := hostname(ctx); got != "a" {
		t.Error(got)
	}
	if got := hostname(metadata.AppendToOutgoingContext(ctx, "X-Version", "b")); got != "b" {
		t.Error(got)
	}
	if got := hostname(ctx, grpc.CallContentSubtype("proto")); got != "b" {
		t.Error(got)
	}
	w.quiet(t)
}

// TestMeshOutgoing: metadata, authority and method as the server sees them.
func TestMeshOutgoing(t *testing.T) {
	leak.Check(t)
	type seen struct {
		method    string
		authority string
		md        metadata.MD
	}
	got := make(chan seen, 16)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(ss.Context())
		method, _ := grpc.MethodFromServerStream(ss)
		got <- seen{method, md[":authority"][0], md}
		if err := ss.SetHeader(metadata.Pairs("x-server", "1", "x-gone", "1")); err != nil {
			return err
		}
		if err := ss.RecvMsg(new(pb.SimpleRequest)); err != nil {
			return err
		}
		return ss.SendMsg(&pb.SimpleResponse{Hostname: "h"})
	}))
	address := serve(t, s)
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Rewrite.Host, r.Rewrite.HasPrefix, r.Rewrite.Prefix = "other.test", true, "/other.Service/"
	r.Match.Path = routing.PathMatch{Kind: routing.PathPrefix, Value: "/grpc.testing.TestService/"}
	r.RequestHeaders = []routing.HeaderChanges{{
		Set:    []routing.HeaderChange{change(t, "x-added", "1"), change(t, "x-set-bin", "AAEC")},
		Remove: []routing.HeaderName{routing.NewHeaderName("x-removed")},
	}}
	r.ResponseHeaders = []routing.HeaderChanges{{
		Set:    []routing.HeaderChange{change(t, "x-policy", "yes")},
		Remove: []routing.HeaderName{routing.NewHeaderName("x-gone")},
	}}
	w.set([]*snapshot.Cluster{mcluster("c", address)}, r)
	client, conn := w.dial(t)
	ctx := metadata.AppendToOutgoingContext(testContext(t), "x-removed", "1", "x-kept", "1", "x-kept", "2", "x-own-bin", "\x00\xff")
	check := func(header metadata.MD) {
		t.Helper()
		g := <-got
		if g.method != "/other.Service/UnaryCall" || g.authority != "other.test" {
			t.Errorf("method %q, authority %q", g.method, g.authority)
		}
		if len(g.md["x-removed"]) != 0 || !slices.Equal(g.md["x-kept"], []string{"1", "2"}) || !slices.Equal(g.md["x-added"], []string{"1"}) ||
			!slices.Equal(g.md["x-own-bin"], []string{"\x00\xff"}) || !slices.Equal(g.md["x-set-bin"], []string{"\x00\x01\x02"}) {
			t.Errorf("metadata %v", g.md)
		}
		if len(header["x-gone"]) != 0 || !slices.Equal(header["x-policy"], []string{"yes"}) || !slices.Equal(header["x-server"], []string{"1"}) {
			t.Errorf("header %v", header)
		}
	}
	var header metadata.MD
	if _, err := client.UnaryCall(ctx, &pb.SimpleRequest{}, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	check(header)
	cs, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, unaryMethod)
	if err != nil {
		t.Fatal(err)
	}
	if err := cs.SendMsg(&pb.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	if header, err = cs.Header(); err != nil {
		t.Fatal(err)
	}
	check(header)
	if err := cs.RecvMsg(new(pb.SimpleResponse)); err != nil {
		t.Error(err)
	}
	if err := cs.RecvMsg(new(pb.SimpleResponse)); err != io.EOF {
		t.Error(err)
	}
	if md, _ := metadata.FromOutgoingContext(ctx); len(md["x-removed"]) != 1 || len(md["x-added"]) != 0 {
		t.Errorf("the caller's metadata has changed: %v", md)
	}
	w.quiet(t)
}

func TestMeshLocalAnswers(t *testing.T) {
	leak.Check(t)
	a := newBackend(t, "a", nil)
	for _, c := range []struct {
		name   string
		change func(*snapshot.Route)
		want   codes.Code
		text   string
	}{
		{"fault with a gRPC status", func(r *snapshot.Route) {
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{GRPC: int(codes.DataLoss), Fraction: always()}}
		}, codes.DataLoss, "fault filter abort"},
		{"fault with an HTTP status", func(r *snapshot.Route) {
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{GRPC: -1, Status: 503, Fraction: always()}}
		}, codes.Unavailable, "fault filter abort"},
		{"fault with 401", func(r *snapshot.Route) {
			r.Fault = &resilience.Fault{Abort: &resilience.FaultAbort{GRPC: -1, Status: 401, Fraction: always()}}
		}, codes.Unauthenticated, ""},
		{"direct response", func(r *snapshot.Route) {
			r.Direct = &routing.DirectResponse{Status: 404, Body: "nothing here"}
		}, codes.Unimplemented, "nothing here"},
		{"direct response with 200", func(r *snapshot.Route) {
			r.Direct = &routing.DirectResponse{Status: 200, Body: "fine"}
		}, codes.Unknown, "fine"},
		{"redirect", func(r *snapshot.Route) {
			r.Redirect = &routing.Redirect{Host: "elsewhere.test", Status: 302}
		}, codes.Unknown, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newMeshWorld(t)
			r := mroute(t, "c")
			c.change(&r)
			w.set([]*snapshot.Cluster{mcluster("c", a.address)}, r)
			client, _ := w.dial(t)
			var trailer metadata.MD
			finished := 0
			_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.Trailer(&trailer), grpc.OnFinish(func(e error) {
				finished++
				wantCode(t, e, c.want)
			}))
			wantCode(t, err, c.want)
			if !strings.Contains(status.Convert(err).Message(), c.text) || finished != 1 {
				t.Errorf("%v; OnFinish called %d times", err, finished)
			}
			if c.name == "redirect" && !slices.Equal(trailer["location"], []string{"http://elsewhere.test" + unaryMethod}) {
				t.Errorf("trailer %v", trailer)
			}
			for _, k := range kinds {
				wantCode(t, k.call(testContext(t), client), c.want)
			}
			w.quiet(t)
		})
	}
	if n := a.calls.Load(); n != 0 {
		t.Errorf("%d calls reached the server", n)
	}
}

// TestMeshTimeouts: whose limit has ended an RPC is in its error, and an attempt's limit begins another.
func TestMeshTimeouts(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *bubble) {
				hang := func(ctx context.Context, n int64) error {
					<-ctx.Done()
					return status.FromContextError(ctx.Err()).Err()
				}
				slow := w.backend(t, hang)
				r := mroute(t, "c")
				r.Timeout = 30 * time.Millisecond
				w.only(slow, r)
				client := w.dial(t)
				err := k.call(testContext(t), client)
				wantCode(t, err, codes.DeadlineExceeded)
				var timeout *outbound.TimeoutError
				if !errors.As(err, &timeout) || timeout.Limit != "timeout" || timeout.Cluster != "c" {
					t.Errorf("%T %v", err, err)
				}
				// The caller's own deadline is the caller's.
				ctx, cancel := context.WithTimeout(t.Context(), 29*time.Millisecond)
				defer cancel()
				err = k.call(ctx, client)
				wantCode(t, err, codes.DeadlineExceeded)
				if errors.As(err, &timeout) {
					t.Errorf("%v", err)
				}

				if k.name == "bidirectional streaming" {
					return // what follows waits for a header before it has sent all
				}
				r.Timeout, r.Retry = 0, meshRetry(t, "reset", 1)
				r.Retry.PerTryTimeout = 50 * time.Millisecond
				once := w.backend(t, func(ctx context.Context, n int64) error {
					if n == 1 {
						return hang(ctx, n)
					}
					return nil
				})
				w.only(once, r)
				if err := k.call(testContext(t), client); err != nil || once.calls.Load() != 2 {
					t.Errorf("after a retry: %v, %d attempts", err, once.calls.Load())
				}
				r.Retry.NumRetries = 0
				w.only(slow, r)
				if err = k.call(testContext(t), client); !errors.As(err, &timeout) || timeout.Limit != "per_try_timeout" {
					t.Errorf("%T %v", err, err)
				}
			})
		})
	}
}

// TestMeshWeights: the engine's choice of clusters holds for gRPC as for HTTP.
func TestMeshWeights(t *testing.T) {
	leak.Check(t)
	a, b := newBackend(t, "a", nil), newBackend(t, "b", nil)
	w := newMeshWorld(t)
	r := mroute(t, "a")
	r.Clusters = weighted(t, routing.WeightedCluster{Name: "a", Weight: 3}, routing.WeightedCluster{Name: "b", Weight: 1})
	w.set([]*snapshot.Cluster{mcluster("a", a.address), mcluster("b", b.address)}, r)
	client, _ := w.dial(t)
	for range 400 {
		if _, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.calls.Load(); n < 240 || n > 360 {
		t.Errorf("%d of 400 calls to the cluster with 3/4 of the weight", n)
	}
}

func TestMeshMirror(t *testing.T) {
	leak.Check(t)
	type mirrored struct {
		authority string
		messages  int
	}
	got := make(chan mirrored, 16)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(ss.Context())
		m := mirrored{authority: md[":authority"][0]}
		for {
			if err := ss.RecvMsg(new(pb.SimpleRequest)); err != nil {
				got <- m
				return status.Error(codes.Internal, "nobody sees this")
			}
			m.messages++
		}
	}))
	main, shadow := newBackend(t, "main", nil), serve(t, s)
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Mirrors = []routing.Mirror{{Cluster: "m", Fraction: always()}}
	w.set([]*snapshot.Cluster{mcluster("c", main.address), mcluster("m", shadow)}, r)
	client, _ := w.dial(t)
	for _, k := range kinds {
		if err := k.call(testContext(t), client); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
		want := mirrored{"mesh.test-shadow:80", 1}
		if k.name == "client streaming" || k.name == "bidirectional streaming" {
			want.messages = 3
		}
		if m := <-got; m != want {
			t.Errorf("%s: the mirror saw %+v, want %+v", k.name, m, want)
		}
	}
	// A mirror out of reach changes nothing.
	w.set([]*snapshot.Cluster{mcluster("c", main.address), mcluster("m", deadAddress)}, r)
	for _, k := range kinds {
		if err := k.call(testContext(t), client); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
	}
	w.quiet(t)
}

// TestMeshMirrorNeedsEndpoint: a call that finds no endpoint leaves no copies
// behind, however long it waits for one; the copies go with its first attempt.
func TestMeshMirrorNeedsEndpoint(t *testing.T) {
	leak.Check(t)
	shadow := newBackend(t, "shadow", nil)
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Mirrors = []routing.Mirror{{Cluster: "m", Fraction: always()}}
	w.set([]*snapshot.Cluster{mcluster("c"), mcluster("m", shadow.address)}, r)
	client, _ := w.dial(t)
	for _, k := range kinds {
		if err := k.call(testContext(t), client); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", k.name, err)
		}
	}
	// More than there may be copies under way at one time: those that were given up count no more.
	for range 1100 {
		if _, err := client.UnaryCall(testContext(t), new(pb.SimpleRequest)); status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() {
		_, err := client.UnaryCall(testContext(t), new(pb.SimpleRequest), grpc.WaitForReady(true))
		done <- err
	}()
	main := newBackend(t, "main", nil)
	w.set([]*snapshot.Cluster{mcluster("c", main.address), mcluster("m", shadow.address)}, r)
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, func() string {
		if shadow.calls.Load() == 0 {
			return "no copy has come"
		}
		return ""
	})
	w.quiet(t)
	if n := shadow.calls.Load(); n != 1 {
		t.Errorf("%d copies, want one, of the call that was answered", n)
	}
}

func TestMeshLimits(t *testing.T) {
	leak.Check(t)
	entered, release := make(chan struct{}), make(chan struct{})
	a := newBackend(t, "a", func(context.Context, int64) error {
		entered <- struct{}{}
		<-release
		return nil
	})
	w := newMeshWorld(t)
	c := mcluster("c", a.address)
	c.Limits.MaxRequests = 1
	w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
	client, _ := w.dial(t)
	done := make(chan error)
	go func() {
		_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{})
		done <- err
	}()
	<-entered
	for _, k := range kinds {
		err := k.call(testContext(t), client)
		wantCode(t, err, codes.Unavailable)
		var limit *outbound.LimitError
		if !errors.As(err, &limit) || limit.Limit != "max_requests" {
			t.Errorf("%s: %T %v", k.name, err, err)
		}
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.quiet(t)
}

// TestMeshHTTPStatus: an answer that is not gRPC's has its HTTP status for the rules.
func TestMeshHTTPStatus(t *testing.T) {
	leak.Check(t)
	var n atomic.Int64
	good := newBackend(t, "good", nil)
	bad := h2c(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		http.Error(w, "busy", http.StatusBadGateway)
	}))
	w := newMeshWorld(t)
	r := mroute(t, "c")
	r.Retry = meshRetry(t, "gateway-error", 3)
	r.Retry.AvoidPrevious, r.Retry.SelectAttempts = true, 5
	w.set([]*snapshot.Cluster{mcluster("c", bad, good.address)}, r)
	client, _ := w.dial(t)
	for range 4 {
		for _, k := range kinds {
			if err := k.call(testContext(t), client); err != nil {
				t.Errorf("%s: %v", k.name, err)
			}
		}
	}
	if n.Load() == 0 {
		t.Error("nothing went to the server that fails")
	}
	w.quiet(t)
}

func h2c(t testing.TB, h http.Handler) string {
	t.Helper()
	lis := listen(t)
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(func() { s.Close() })
	return lis.Addr().String()
}

// TestMeshHash: what the engine chooses by is there for gRPC too.
func TestMeshHash(t *testing.T) {
	leak.Check(t)
	a, b := newBackend(t, "a", nil), newBackend(t, "b", nil)
	w := newMeshWorld(t)
	c := mcluster("c", a.address, b.address)
	c.LB = lb.Policy{Kind: lb.RingHash, Ring: lb.Ring{MinSize: 1024, MaxSize: 8 << 20}}
	r := mroute(t, "c")
	r.Hash = []routing.HashPolicy{{Kind: routing.HashHeader, Header: routing.NewHeaderName("x-user")}}
	w.set([]*snapshot.Cluster{c}, r)
	client, _ := w.dial(t)
	seen := map[string]bool{}
	for i := range 64 {
		user := fmt.Sprint("u", i)
		ctx := metadata.AppendToOutgoingContext(testContext(t), "x-user", user)
		at := ""
		for range 2 {
			r, err := client.UnaryCall(ctx, &pb.SimpleRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if at != "" && r.Hostname != at {
				t.Errorf("%s went to %s and %s", user, at, r.Hostname)
			}
			at = r.Hostname
		}
		seen[at] = true
	}
	if len(seen) != 2 {
		t.Errorf("all users went to %v", seen)
	}
}
