package mesh_test

import (
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sinew-mesh/sinew/internal/leak"
)

const (
	strictMesh = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
`
	allowCheckout = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/checkout]}}]
---
`
	defaultDeny = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: default-deny, namespace: istio-system}
spec: {}
`
)

// dryRun makes policy of the above refuse nothing, and say what it would refuse.
func dryRun(policy string) string {
	return regexp.MustCompile(`metadata: \{(.*)\}`).ReplaceAllString(policy, `metadata: {$1, annotations: {istio.io/dry-run: "true"}}`)
}

// traffic calls without pause until it is stopped, and keeps the first failure.
type traffic struct {
	t        *testing.T
	stopping atomic.Bool
	calls    atomic.Int64
	failed   atomic.Pointer[string]
	wg       sync.WaitGroup
}

// run makes calls one after the other.
func (l *traffic) run(name string, call func() error) {
	l.wg.Go(func() {
		for !l.stopping.Load() {
			l.calls.Add(1)
			if err := call(); err != nil {
				text := name + ": " + err.Error()
				l.failed.CompareAndSwap(nil, &text)
			}
			time.Sleep(time.Millisecond) // the machine has others to serve
		}
	})
}

// held asserts that some more calls were made and that none has failed.
func (l *traffic) held(step string) {
	l.t.Helper()
	for more := l.calls.Load() + 50; l.calls.Load() < more && l.failed.Load() == nil; {
		time.Sleep(time.Millisecond)
	}
	if text := l.failed.Load(); text != nil {
		l.t.Errorf("%s: a call of an allowed caller failed: %s", step, *text)
		l.failed.Store(nil)
	}
}

func (l *traffic) stop() {
	l.stopping.Store(true)
	l.wg.Wait()
}

// TestStepByStep walks the way from no security to default deny and back, as it
// is written in docs/adoption.md, while an allowed caller calls over HTTP and
// gRPC. None of its calls may fail; who is not allowed is refused in exactly the
// steps in which policy says so.
func TestStepByStep(t *testing.T) {
	leak.Check(t)
	s := newSite(t, map[string]string{"empty.yaml": "# nothing yet\n"})
	var instances []instance
	for range 2 {
		instances = append(instances,
			instance{app: "payment", protocol: "http", at: s.serveHTTP(s.join("payment"), peerName)},
			instance{app: "ledger", protocol: "grpc", at: s.serveGRPC(s.join("ledger"))})
	}
	instances = append(instances, instance{app: "open", protocol: "http", at: s.serveHTTP(s.join("open"), peerName)})
	declare := func(labelled func(int) bool) {
		for i := range instances {
			instances[i].label = labelled(i)
		}
		s.declare(instances...)
	}
	none, all := func(int) bool { return false }, func(int) bool { return true }
	declare(none)

	checkout, stranger := s.join("checkout"), s.join("stranger")
	httpCheckout, httpStranger := checkout.Client(), stranger.Client()
	grpcCheckout, _ := dialHealth(t, "xds:///ledger:80", checkout.DialOptions()...)
	meshCheckout, _ := dialHealth(t, "mesh:///ledger:80", checkout.DialOptions()...)
	grpcStranger, _ := dialHealth(t, "xds:///ledger:80", stranger.DialOptions()...)
	meshStranger, _ := dialHealth(t, "mesh:///ledger:80", stranger.DialOptions()...)
	httpOutsider := outsider(t)
	grpcOutsider, _ := dialHealth(t, instances[1].at.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))

	// expected says whom the members take each other for, "" meaning by their names,
	// and who is let in beside checkout.
	type expected struct {
		peer                     string
		outsider, stranger, open bool // stranger: to payment and ledger; open: stranger to open
	}
	// expect waits until a step is in force everywhere.
	expect := func(step string, e expected) {
		t.Helper()
		code := func(ok bool) (int, codes.Code) {
			if ok {
				return http.StatusOK, codes.OK
			}
			return http.StatusForbidden, codes.PermissionDenied
		}
		name := func(account string) string {
			if e.peer == "" {
				return callerID(account)
			}
			return e.peer
		}
		settles(t, step+": checkout to payment", answers(httpCheckout, "http://payment/", 200, name("checkout")))
		settles(t, step+": checkout to ledger", codeIs(grpcCheckout, codes.OK))
		settles(t, step+": checkout to ledger over mesh:///", codeIs(meshCheckout, codes.OK))
		h, g := code(e.outsider)
		for _, i := range []int{0, 2, 4} {
			settles(t, step+": an outsider over HTTP", answers(httpOutsider, "http://"+instances[i].at.String()+"/", h, ""))
		}
		settles(t, step+": an outsider over gRPC", codeIs(grpcOutsider, g))
		h, g = code(e.stranger)
		text := ""
		if e.stranger {
			text = name("stranger")
		}
		settles(t, step+": stranger to payment", answers(httpStranger, "http://payment/", h, text))
		settles(t, step+": stranger to ledger", codeIs(grpcStranger, g))
		settles(t, step+": stranger to ledger over mesh:///", codeIs(meshStranger, g))
		h, _ = code(e.open)
		settles(t, step+": stranger to open", answers(httpStranger, "http://open/", h, ""))
	}

	observe := &expected{peer: "plaintext", outsider: true, stranger: true, open: true}
	permissive := &expected{outsider: true, stranger: true, open: true}
	strict := &expected{stranger: true, open: true}
	authorize := &expected{open: true}
	deny := &expected{}

	expect("observe", *observe)
	l := &traffic{t: t}
	defer l.stop()
	fresh := &http.Client{Transport: closing{checkout.RoundTripper()}}
	l.run("HTTP", func() error { return get200(httpCheckout, "http://payment/") })
	l.run("HTTP, new connections", func() error { return get200(fresh, "http://payment/") })
	l.run("xds:///", func() error { return check(grpcCheckout) })
	l.run("mesh:///", func() error { return check(meshCheckout) })
	for _, target := range []string{"xds:///ledger:80", "mesh:///ledger:80"} {
		l.run("new channels to "+target, func() error {
			conn, err := grpc.NewClient(target, checkout.DialOptions()...)
			if err != nil {
				return err
			}
			defer conn.Close()
			return check(healthpb.NewHealthClient(conn))
		})
	}
	l.held("observe")

	allows := fmt.Sprintf(allowCheckout, "payment") + fmt.Sprintf(allowCheckout, "ledger")
	for _, step := range []struct {
		name   string
		change func()
		want   *expected // nil: only that no call fails
	}{
		{"half of the instances are labelled", func() { declare(func(i int) bool { return i < 2 }) }, nil},
		{"permissive", func() { declare(all) }, permissive},
		{"strict, in dry run", func() { s.write("strict.yaml", dryRun(strictMesh)) }, permissive},
		{"strict", func() { s.write("strict.yaml", strictMesh) }, strict},
		{"authorize, in dry run", func() { s.write("allow.yaml", dryRun(allows)) }, strict},
		{"authorize", func() { s.write("allow.yaml", allows) }, authorize},
		{"default deny, in dry run", func() { s.write("deny.yaml", dryRun(defaultDeny)) }, authorize},
		{"default deny", func() { s.write("deny.yaml", defaultDeny) }, deny},
		{"back to default deny in dry run", func() { s.write("deny.yaml", dryRun(defaultDeny)) }, authorize},
		{"back to authorize", func() { s.write("deny.yaml", "") }, authorize},
		{"back to authorize in dry run", func() { s.write("allow.yaml", dryRun(allows)) }, strict},
		{"back to strict", func() { s.write("allow.yaml", "") }, strict},
		{"back to strict in dry run", func() { s.write("strict.yaml", dryRun(strictMesh)) }, permissive},
		{"back to permissive", func() { s.write("strict.yaml", "") }, permissive},
		{"back to observe", func() { declare(none) }, observe},
	} {
		step.change()
		s.reads(step.name, good)
		if step.want != nil {
			expect(step.name, *step.want)
		}
		l.held(step.name)
	}
	t.Logf("%d calls", l.calls.Load())
}

// closing makes each request on a connection of its own.
type closing struct{ http.RoundTripper }

func (c closing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Close = true
	return c.RoundTripper.RoundTrip(r)
}

func get200(c *http.Client, url string) error {
	if code, body := ask(c, url); code != http.StatusOK {
		return fmt.Errorf("%d %s", code, body)
	}
	return nil
}
