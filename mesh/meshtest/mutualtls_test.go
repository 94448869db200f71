package meshtest_test

import (
	"io"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// whoami answers with the caller's identity.
var whoami = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if peer, ok := identity.PeerFromContext(r.Context()); ok && peer.Authenticated() {
		_, _ = io.WriteString(w, peer.ID.String())
	}
})

const onlyCheckout = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payment}
spec:
  selector: {matchLabels: {app: payment}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/checkout]}}]
`

func TestMutualTLS(t *testing.T) {
	leak.Check(t)
	w := meshtest.New(t, meshtest.MutualTLS(), meshtest.Policy(onlyCheckout),
		meshtest.HTTP("payment", "v1", whoami), meshtest.HTTP("open", "v1", whoami))
	if code, body := get(t, w.As("checkout").Client(), "http://payment/"); code != 200 || body != "spiffe://cluster.local/ns/default/sa/checkout" {
		t.Errorf("checkout: %d %q", code, body)
	}
	if code, _ := get(t, w.Client(), "http://payment/"); code != http.StatusForbidden {
		t.Errorf("test: %d, want 403", code)
	}
	if code, body := get(t, w.Client(), "http://open/"); code != 200 || body != "spiffe://cluster.local/ns/default/sa/test" {
		t.Errorf("test at open: %d %q", code, body)
	}
	w.SetPolicy("# nobody is refused\n")
	w.Eventually("the rule is gone", func() bool {
		code, _ := get(t, w.Client(), "http://payment/")
		return code == 200
	})
}

func TestMutualTLSOverGRPC(t *testing.T) {
	leak.Check(t)
	w := meshtest.New(t, meshtest.MutualTLS(), meshtest.Policy(onlyCheckout),
		meshtest.GRPC("payment", "v1", func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, health.NewServer()) }))
	for caller, want := range map[string]codes.Code{"checkout": codes.OK, "refund": codes.PermissionDenied} {
		conn, err := grpc.NewClient("xds:///payment:80", w.As(caller).DialOptions()...)
		if err != nil {
			t.Fatal(err)
		}
		_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		if status.Code(err) != want {
			t.Errorf("%s: %v, want %v", caller, err, want)
		}
		conn.Close()
	}
}
