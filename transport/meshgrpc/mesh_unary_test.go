package meshgrpc

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

func TestMeshKinds(t *testing.T) {
	leak.Check(t)
	a, b := newBackend(t, "a", nil), newBackend(t, "b", nil)
	for _, retries := range []string{"", "unavailable"} {
		t.Run("retries "+retries, func(t *testing.T) {
			w := newMeshWorld(t)
			r := mroute(t, "c")
			if retries != "" {
				r.Retry = meshRetry(t, retries, 2)
			}
			w.set([]*snapshot.Cluster{mcluster("c", a.address, b.address)}, r)
			client, conn := w.dial(t)
			if s := conn.GetState(); s != connectivity.Idle {
				t.Errorf("state %v before any call", s)
			}
			for _, k := range kinds {
				for range 4 {
					if err := k.call(testContext(t), client); err != nil {
						t.Errorf("%s: %v", k.name, err)
					}
				}
			}
			if s := conn.GetState(); s != connectivity.Ready {
				t.Errorf("state %v after calls", s)
			}
			w.quiet(t)
			for address, n := range w.requests() {
				if n != 8 {
					t.Errorf("%s had %d of 16 calls", address, n)
				}
			}
		})
	}
}

func TestMeshRetry(t *testing.T) {
	leak.Check(t)
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			bad := newBackend(t, "bad", func(context.Context, int64) error { return status.Error(codes.Unavailable, "not now") })
			good := newBackend(t, "good", nil)
			w := newMeshWorld(t)
			r := mroute(t, "c")
			r.Retry = meshRetry(t, "unavailable", 3)
			r.Retry.AvoidPrevious, r.Retry.SelectAttempts = true, 5
			w.set([]*snapshot.Cluster{mcluster("c", bad.address, good.address)}, r)
			client, _ := w.dial(t)
			for range 6 {
				if err := k.call(testContext(t), client); err != nil {
					t.Error(err)
				}
			}
			if n := bad.calls.Load(); n == 0 || w.events.retries.Load() != n {
				t.Errorf("%d attempts failed, %d retries", n, w.events.retries.Load())
			}
			w.quiet(t)
		})
	}
}

func TestMeshNoEndpoint(t *testing.T) {
	leak.Check(t)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c")}, mroute(t, "c"))
	client, _ := w.dial(t)
	_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{})
	wantCode(t, err, codes.Unavailable)
	var none *outbound.NoHealthyEndpointError
	if !errors.As(err, &none) {
		t.Errorf("%T %v", err, err)
	}
	if _, err = client.FullDuplexCall(testContext(t)); !errors.As(err, &none) {
		t.Errorf("%T %v", err, err)
	}
	w.quiet(t)
}

func TestMeshDeadEndpoint(t *testing.T) {
	leak.Check(t)
	good := newBackend(t, "good", nil)
	w := newMeshWorld(t)
	w.set([]*snapshot.Cluster{mcluster("c", deadAddress, good.address)}, mroute(t, "c"))
	client, _ := w.dial(t)
	for range 20 {
		for _, k := range kinds {
			if err := k.call(testContext(t), client); err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
		}
	}
	w.set([]*snapshot.Cluster{mcluster("c", deadAddress)}, mroute(t, "c"))
	for range 3 {
		_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{})
		wantCode(t, err, codes.Unavailable)
	}
	w.quiet(t)
}
