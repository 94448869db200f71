package mesh_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

const strictWithHTTP2 = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: two}
spec:
  host: two
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
`

// rotationLoad calls in a loop from several goroutines, and counts.
type rotationLoad struct {
	calls  [4]atomic.Int64 // by kind
	failed atomic.Int64
	paused sync.RWMutex // locked while the load pauses
	stop   chan struct{}
	done   sync.WaitGroup
	t      *testing.T
}

func (l *rotationLoad) run(kind int, call func() error) {
	l.done.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			l.paused.RLock()
			err := call()
			l.paused.RUnlock()
			l.calls[kind].Add(1)
			if err != nil && l.failed.Add(1) <= 5 {
				l.t.Error(err)
			}
			time.Sleep(time.Millisecond) // the renewals need the machine too
		}
	})
}

// descriptors counts open files; 0 where the system does not tell.
func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// unhurried is a life of certificates that leaves a machine as busy as this one
// the time to renew them: many times what it takes here and now to found a mesh and call.
func unhurried(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	w := meshtest.New(t, meshtest.MutualTLS(), meshtest.Policy(strictWithHTTP2),
		meshtest.HTTP("two", "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	w.Eventually("a request", func() bool {
		resp, err := w.Client().Get("http://two/")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	return min(max(6*time.Second, 20*time.Since(began)), 40*time.Second)
}

// TestRootRotationUnderLoad: certificates live for a few seconds, the root of
// the mesh changes again and again, and not one request fails, over HTTP/1.1,
// HTTP/2 or gRPC; nor do goroutines or descriptors stay behind. It lasts
// $SINEW_SOAK, by default six seconds, and at least two changes of roots.
func TestRootRotationUnderLoad(t *testing.T) {
	leak.Check(t)
	soak := 6 * time.Second
	if s := os.Getenv("SINEW_SOAK"); s != "" {
		var err error
		if soak, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, _ := identity.PeerFromContext(r.Context())
		_, _ = fmt.Fprintf(w, "%s %s", r.Proto, peer.ID)
	})
	life := unhurried(t)
	w := meshtest.New(t, meshtest.CertificateLife(life), meshtest.Policy(strictWithHTTP2),
		meshtest.HTTP("one", "", answer), meshtest.HTTP("two", "", answer),
		meshtest.GRPC("three", "", func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, health.NewServer()) }))
	ctx, cancel := context.WithTimeout(t.Context(), soak+15*life)
	defer cancel()
	client := w.Client()
	overHTTP := func(url, want string) func() error {
		return func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK || string(body) != want {
				return fmt.Errorf("%s: %d %q, %v", url, resp.StatusCode, body, err)
			}
			return nil
		}
	}
	overGRPC := func(target string) func() error {
		conn, err := grpc.NewClient(target, w.Mesh().DialOptions()...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return func() error {
			_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
			return err
		}
	}
	const id = "spiffe://cluster.local/ns/default/sa/test"
	kinds := []func() error{overHTTP("http://one/", "HTTP/1.1 "+id), overHTTP("http://two/", "HTTP/2.0 "+id), overGRPC("xds:///three:80"), overGRPC("mesh:///three:80")}
	l := &rotationLoad{stop: make(chan struct{}), t: t}
	for i, call := range kinds {
		// The first request waits for policy and for a certificate.
		w.Eventually("the first request", func() bool { return call() == nil })
		l.run(i, call)
		l.run(i, call)
	}
	stop := sync.OnceFunc(func() {
		close(l.stop)
		l.done.Wait()
	})
	defer stop()

	// counts is what there is with no request in flight.
	counts := func() (routines, files int) {
		l.paused.Lock()
		defer l.paused.Unlock()
		return runtime.NumGoroutine(), descriptors()
	}
	began := time.Now()
	w.RotateRoot() // the warm-up
	routines, files := counts()
	rotations := 1
	for rotations < 3 || time.Since(began) < soak {
		w.RotateRoot()
		rotations++
		if l.failed.Load() > 0 {
			break
		}
	}
	for i := range l.calls {
		if n := l.calls[i].Load(); n < int64(10*rotations) {
			t.Errorf("kind %d: %d calls during %d changes of roots", i, n, rotations)
		}
	}
	t.Logf("certificates of %s, %d changes of roots, calls %d, %d, %d and %d, %d failed", life, rotations, l.calls[0].Load(), l.calls[1].Load(), l.calls[2].Load(), l.calls[3].Load(), l.failed.Load())
	stop()
	// Connections of former certificates close within seconds, so that it settles.
	var r, f int
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if r, f = runtime.NumGoroutine(), descriptors(); r <= routines && f <= files {
			return
		}
	}
	t.Errorf("%d goroutines and %d descriptors, %d and %d after the warm-up", r, f, routines, files)
}

// TestAuthorityOutage: with the authority gone, certificates hold to their end;
// then requests fail with an error that says so, over HTTP and gRPC. They succeed
// again when the authority is back and has given out new tokens.
func TestAuthorityOutage(t *testing.T) {
	leak.Check(t)
	w := meshtest.New(t, meshtest.CertificateLife(4*time.Second), meshtest.Policy(strictWithHTTP2),
		meshtest.HTTP("one", "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})),
		meshtest.GRPC("three", "", func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, health.NewServer()) }))
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	client := w.Client()

	// Each call says when the certificate ends that the server has shown.
	calls := map[string]func() (time.Time, error){
		"HTTP": func() (end time.Time, err error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://one/", nil)
			if err != nil {
				return end, err
			}
			resp, err := client.Do(req)
			if err != nil {
				return end, err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err == nil && resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d: %s", resp.StatusCode, body)
			}
			return resp.TLS.PeerCertificates[0].NotAfter, err
		},
	}
	for name, target := range map[string]string{"xds": "xds:///three:80", "mesh": "mesh:///three:80"} {
		conn, err := grpc.NewClient(target, w.Mesh().DialOptions()...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		calls[name] = func() (end time.Time, err error) {
			var p peer.Peer
			_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&p))
			if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
				end = info.State.PeerCertificates[0].NotAfter
			}
			return end, err
		}
	}
	for name, call := range calls {
		w.Eventually(name, func() bool { _, err := call(); return err == nil })
	}
	w.StopControlPlane()
	shown := make(map[string]time.Time)
	failures := make(map[string]error)
	for deadline := time.Now().Add(30 * time.Second); len(failures) < len(calls); {
		if time.Now().After(deadline) {
			t.Fatalf("calls still succeed long after the end of the certificates; failed are %v", failures)
		}
		for name, call := range calls {
			if failures[name] != nil {
				continue
			}
			own := status(t, w.Mesh()).Identity[0].NotAfter
			end, err := call()
			if err == nil {
				shown[name] = end
				continue
			}
			if now := time.Now(); now.Before(own) && now.Before(shown[name]) {
				t.Errorf("%s failed at %s, before its certificate's end at %s and the server's at %s: %v", name, now, own, shown[name], err)
			}
			failures[name] = err
		}
	}
	for name, err := range failures {
		// The server tells a client only that it can not shake hands, or not with it.
		text := err.Error()
		if !slices.ContainsFunc([]string{"expired", "not accepted any more", "not_ready", "remote error: tls: internal error", "remote error: tls: bad certificate"}, func(why string) bool { return strings.Contains(text, why) }) {
			t.Errorf("%s: the error does not say what is wrong: %v", name, err)
		}
	}
	w.StartControlPlane()
	for name, call := range calls {
		for ; ; time.Sleep(20 * time.Millisecond) {
			_, err := call()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s does not recover: %v", name, err)
			}
		}
	}
}
