package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

func outagePolicy(subset string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: %s}}]}]
`, subset)
}

// TestControlPlaneOutage kills the control plane under load: requests to a
// known host go on, over new connections too; one to an unknown host fails
// with an error that says why; after a restart changes arrive. The outage lasts
// $SINEW_OUTAGE, by default one second.
func TestControlPlaneOutage(t *testing.T) {
	leak.Check(t)
	outage := time.Second
	if s := os.Getenv("SINEW_OUTAGE"); s != "" {
		var err error
		if outage, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	name := func(version string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Fresh") != "" {
				w.Header().Set("Connection", "close") // the next request needs a new connection
			}
			_, _ = io.WriteString(w, version)
		})
	}
	w := meshtest.New(t, meshtest.Policy(outagePolicy("v1")),
		meshtest.HTTP("reviews", "v1", name("v1")), meshtest.HTTP("reviews", "v1", name("v1")), meshtest.HTTP("reviews", "v2", name("v2")))
	ask := func(ctx context.Context, url, fresh string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("Fresh", fresh)
		resp, err := w.Client().Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if got, err := ask(t.Context(), "http://reviews/", ""); err != nil || got != "v1" {
		t.Fatalf("%q %v", got, err)
	}

	ctx, stop := context.WithCancel(t.Context())
	var requests, failures atomic.Int64
	var load sync.WaitGroup
	for i := range 4 {
		fresh := ""
		if i%2 == 1 {
			fresh = "yes"
		}
		load.Go(func() {
			for ctx.Err() == nil {
				requests.Add(1)
				if _, err := ask(t.Context(), "http://reviews/", fresh); err != nil {
					failures.Add(1)
					t.Error(err)
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}

	w.StopControlPlane()
	down := time.NewTimer(outage)
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	_, err := ask(short, "http://unknown/", "")
	cancel()
	var notReady *mesh.NotReadyError
	if !errors.As(err, &notReady) || notReady.Host != "unknown:80" {
		t.Errorf("to an unknown host: %v, want a NotReadyError", err)
	}
	<-down.C
	w.StartControlPlane()
	w.SetPolicy(outagePolicy("v2"))
	began := time.Now()
	for deadline := began.Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if got, err := ask(t.Context(), "http://reviews/", ""); err == nil && got == "v2" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the change did not arrive within 30 s of the restart")
		}
	}
	t.Logf("after %v of outage the change arrived in %v", outage, time.Since(began))
	stop()
	load.Wait()
	t.Logf("%d requests, %d failed", requests.Load(), failures.Load())
}
