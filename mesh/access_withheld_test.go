package mesh_test

import (
	"fmt"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sinew-mesh/sinew/internal/leak"
)

const meshConfig = `
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    %s
`

// TestBrokenAccessPolicyWithholds: what restricts access and can not be read
// closes the listeners that it may be about, and no others.
func TestBrokenAccessPolicyWithholds(t *testing.T) {
	for _, c := range []struct {
		name, kind, broken, mended string
		everything                 bool
	}{
		{
			name: "an AuthorizationPolicy for one workload", kind: "AuthorizationPolicy",
			broken: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {selector: {matchLabels: {part: closed}}, rules: [{from: [{source: {principal: [x]}}]}]}\n",
			mended: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {selector: {matchLabels: {part: closed}}, rules: [{to: [{operation: {methods: [GET, POST]}}]}]}\n",
		},
		{
			name: "a PeerAuthentication for one workload", kind: "PeerAuthentication",
			broken: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {selector: {matchLabels: {part: closed}}, mtls: {mode: STRIKT}}\n",
			mended: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {selector: {matchLabels: {part: closed}}, mtls: {mode: PERMISSIVE}}\n",
		},
		{
			name: "the MeshConfig", kind: "ConfigMap", everything: true,
			broken: fmt.Sprintf(meshConfig, "trustDomian: cluster.local"),
			mended: fmt.Sprintf(meshConfig, "trustDomain: cluster.local"),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			s := newSite(t, map[string]string{"broken.yaml": c.broken})
			closed, open := s.serveHTTP(s.join("closed"), peerName), s.serveHTTP(s.join("open"), peerName)
			closedGRPC, openGRPC := s.serveGRPC(s.join("closed-grpc")), s.serveGRPC(s.join("open-grpc"))
			s.write("services.yaml", parts(closed.Port(), open.Port(), closedGRPC.Port(), openGRPC.Port()))
			s.reads("an error about the "+c.kind, bad(c.kind))
			client := outsider(t)
			dial := func(port uint16) func(codes.Code) func() (bool, string) {
				c, _ := dialHealth(t, fmt.Sprintf("127.0.0.1:%d", port), grpc.WithTransportCredentials(insecure.NewCredentials()))
				return func(want codes.Code) func() (bool, string) { return codeIs(c, want) }
			}
			closedHealth, openHealth := dial(closedGRPC.Port()), dial(openGRPC.Port())
			status, code, body := http.StatusOK, codes.OK, "plaintext"
			if c.everything {
				status, code, body = http.StatusServiceUnavailable, codes.Unavailable, `"not_ready"`
			}
			settles(t, "the closed one", answers(client, "http://"+closed.String()+"/", 503, `"not_ready"`))
			settles(t, "the closed one over gRPC", closedHealth(codes.Unavailable))
			settles(t, "the open one", answers(client, "http://"+open.String()+"/", status, body))
			settles(t, "the open one over gRPC", openHealth(code))

			s.write("broken.yaml", c.mended)
			settles(t, "the closed one, mended", answers(client, "http://"+closed.String()+"/", 200, "plaintext"))
			settles(t, "the closed one over gRPC, mended", closedHealth(codes.OK))
			settles(t, "the open one, mended", answers(client, "http://"+open.String()+"/", 200, "plaintext"))
			settles(t, "the open one over gRPC, mended", openHealth(codes.OK))
		})
	}
}

// parts declares the services open and closed, by HTTP and gRPC, whose
// workloads have the label part.
func parts(closed, open, closedGRPC, openGRPC uint16) (yaml string) {
	for _, w := range []struct {
		app, part, protocol string
		port                uint16
	}{{"closed", "closed", "http", closed}, {"open", "open", "http", open}, {"closed-grpc", "closed", "grpc", closedGRPC}, {"open-grpc", "open", "grpc", openGRPC}} {
		yaml += fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {selector: {app: %[1]s}, ports: [{name: %[3]s, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %[1]s}
spec: {address: 127.0.0.1, ports: {%[3]s: %[4]d}, serviceAccount: %[1]s, labels: {app: %[1]s, part: %[2]s}}
`, w.app, w.part, w.protocol, w.port)
	}
	return yaml
}

// TestAccessPolicyThatBreaksLater stays in force as it was, over a restart of
// the control plane too: for members that were there, and for one that comes later.
func TestAccessPolicyThatBreaksLater(t *testing.T) {
	const payment = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payment}
spec:
  selector: {matchLabels: {app: payment}}
  rules: [{from: [{source: {%s: [cluster.local/ns/default/sa/%s]}}]}]
`
	trust := func(field string) string {
		return fmt.Sprintf(meshConfig, field+": cluster.local\n    trustDomainAliases: [old.example]")
	}
	leak.Check(t)
	s := newSite(t, map[string]string{
		"strict.yaml": strictMesh, "payment.yaml": fmt.Sprintf(payment, "principals", "checkout"), "mesh.yaml": trust("trustDomain"),
	})
	first := instance{app: "payment", protocol: "http", at: s.serveHTTP(s.join("payment"), peerName), label: true}
	open := instance{app: "open", protocol: "http", at: s.serveHTTP(s.join("open"), peerName), label: true}
	s.declare(first, open)
	checkout, stranger, outside := s.join("checkout").Client(), s.join("stranger").Client(), outsider(t)
	inForce := func(when string, at instance) {
		t.Helper()
		settles(t, when+": checkout", answers(checkout, "http://payment/", 200, callerID("checkout")))
		settles(t, when+": stranger", answers(stranger, "http://payment/", 403, ""))
		settles(t, when+": stranger to open", answers(stranger, "http://open/", 200, callerID("stranger")))
		settles(t, when+": plaintext", answers(outside, "http://"+at.at.String()+"/", 403, ""))
	}
	inForce("at first", first)

	// Each file breaks in a way that would open or close something.
	s.write("payment.yaml", fmt.Sprintf(payment, "principal", "stranger"))
	s.reads("the broken AuthorizationPolicy", bad("AuthorizationPolicy"))
	s.write("strict.yaml", strictMesh+"  half: [")
	s.reads("the file that is cut off", bad("strict.yaml"))
	s.write("mesh.yaml", trust("trustDomian"))
	s.reads("the broken MeshConfig", bad("trustDomian"))
	inForce("broken", first)

	s.restart()
	s.reads("all three broken", func(r *policyResult) bool {
		return bad("payment.yaml")(r) && bad("strict.yaml")(r) && bad("mesh.yaml")(r)
	})
	inForce("after a restart", first)

	// Members follow the new control plane: traffic goes to an instance that has come since.
	second := instance{app: "payment", protocol: "http", at: s.serveHTTP(s.join("payment"), peerName), label: true}
	s.declare(second, open)
	settles(t, "the new instance is called", func() (bool, string) {
		a := askOn(t, checkout, "http://payment/")
		return a.remote == second.at.String(), fmt.Sprint(a)
	})
	inForce("at the new instance", second)

	s.write("payment.yaml", fmt.Sprintf(payment, "principals", "stranger"))
	s.write("strict.yaml", "# plaintext is let in\n")
	s.write("mesh.yaml", trust("trustDomain"))
	settles(t, "mended: stranger", answers(stranger, "http://payment/", 200, callerID("stranger")))
	settles(t, "mended: checkout", answers(checkout, "http://payment/", 403, ""))
	settles(t, "mended: plaintext", answers(outside, "http://"+open.at.String()+"/", 200, "plaintext"))
}
