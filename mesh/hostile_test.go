package mesh_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	rpc "google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/hostile"
	"github.com/sinew-mesh/sinew/internal/journal"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// victims is the policy of the trust domain that hostile certificates claim.
func victims(mode string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "trustDomain: td.example"}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: %s}}
`, mode)
}

// victim is a source with the matrix' victim in it.
func victim(t *testing.T, m *hostile.Matrix) source.Source {
	t.Helper()
	s, err := source.NewStatic(&source.Material{Certificate: m.Victim, Bundles: m.Bundles})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// countingHealth is a health service that knows how often it was called.
type countingHealth struct {
	*health.Server
	calls atomic.Int64
}

func (h *countingHealth) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	h.calls.Add(1)
	return h.Server.Check(ctx, r)
}

// handshakeFailures returns the counts of mesh.server.handshake_failures by rule.
func handshakeFailures(t *testing.T, reader *sdkmetric.ManualReader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]int64)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "mesh.server.handshake_failures" {
				for _, p := range sum.DataPoints {
					for _, kv := range p.Attributes.ToSlice() {
						counts[kv.Value.AsString()] += p.Value
					}
				}
			}
		}
	}
	return counts
}

// TestHostileClients: a client with a bad certificate reaches no handler, over
// HTTP/1.1, HTTP/2 or gRPC, on the mesh's listener or on another, whether or not
// plaintext is let in; log and metric name the rule that refused it.
func TestHostileClients(t *testing.T) {
	for _, mode := range []string{"STRICT", "PERMISSIVE"} {
		t.Run(mode, func(t *testing.T) {
			leak.Check(t)
			matrix := hostile.New(t, time.Now())
			w := meshtest.New(t, meshtest.Policy(victims(mode)))
			reader, log := sdkmetric.NewManualReader(), &journal.Journal{}
			m, err := mesh.New(t.Context(), mesh.WithBootstrap(w.Bootstrap()), mesh.WithIdentity(victim(t, matrix)),
				mesh.WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))),
				mesh.WithLogger(slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()

			var requests atomic.Int64
			lis, err := m.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			served := make(chan error, 1)
			go func() {
				served <- m.ServeListener(ctx, lis, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					peer, _ := identity.PeerFromContext(r.Context())
					_, _ = io.WriteString(w, peer.ID.String())
				}))
			}()
			defer func() {
				stop()
				<-served
			}()
			check := &countingHealth{Server: health.NewServer()}
			server := grpc.NewServer(m.ServerOptions()...)
			healthpb.RegisterHealthServer(server, check)
			defer server.Stop()
			own, err := m.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			other, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range []net.Listener{own, other} {
				go func() { _ = server.Serve(l) }()
			}

			overHTTP := func(protocol string) func(*hostile.Case) error {
				return func(c *hostile.Case) error {
					config := c.Attacker()
					config.NextProtos = []string{protocol}
					transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: protocol == "h2"}
					defer transport.CloseIdleConnections()
					resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get("https://" + lis.Addr().String() + "/")
					if err != nil {
						return err
					}
					defer resp.Body.Close()
					body, err := io.ReadAll(resp.Body)
					if err == nil && (resp.StatusCode != http.StatusOK || string(body) != hostile.PeerID) {
						err = fmt.Errorf("%d %s", resp.StatusCode, body)
					}
					return err
				}
			}
			overGRPC := func(address string) func(*hostile.Case) error {
				return func(c *hostile.Case) error {
					conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(c.Attacker())))
					if err != nil {
						return err
					}
					defer conn.Close()
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					defer cancel()
					_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
					return err
				}
			}
			ways := map[string]func(*hostile.Case) error{
				"HTTP/1.1": overHTTP("http/1.1"), "HTTP/2": overHTTP("h2"),
				"gRPC": overGRPC(own.Addr().String()), "gRPC on another listener": overGRPC(other.Addr().String()),
			}
			for i := range matrix.Cases {
				c := &matrix.Cases[i]
				for name, call := range ways {
					rule := string(c.Rule)
					if c.ByTLS {
						rule = "protocol" // crypto/tls could not even read it
					}
					before, ran, logged := handshakeFailures(t, reader)[rule], requests.Load()+check.calls.Load(), len(log.String())
					err := call(c)
					ran = requests.Load() + check.calls.Load() - ran
					if c.Good() {
						if err != nil || ran != 1 {
							t.Errorf("%s, %s: %v, %d handlers ran", c.Name, name, err, ran)
						}
						continue
					}
					if err == nil || ran != 0 {
						t.Errorf("%s, %s: %v, %d handlers ran, want rule %s", c.Name, name, err, ran, c.Rule)
						continue
					}
					want := "refused by rule " + string(c.Rule)
					if c.ByTLS {
						want = "tls: "
					}
					// The client may know before the server has counted.
					told := func() bool {
						return handshakeFailures(t, reader)[rule] > before && strings.Contains(log.String()[logged:], want)
					}
					for deadline := time.Now().Add(20 * time.Second); !told(); time.Sleep(time.Millisecond) {
						if time.Now().After(deadline) {
							t.Errorf("%s, %s: the metric has %v, the log %q; want rule %s", c.Name, name, handshakeFailures(t, reader), log.String()[logged:], rule)
							break
						}
					}
				}
			}
		})
	}
}

// gRPCWords are how gRPC's own xDS client, which looks at a server's chain before
// the mesh does, tells what the rules find. Over "xds:///" the status has these or the rule.
var gRPCWords = map[identity.VerifyRule][]string{
	identity.RuleTrustDomain:       {"no bundle found for peer certificates trust domain"},
	identity.RuleChain:             {"x509: certificate signed by unknown authority"},
	identity.RulePathLength:        {"x509: too many intermediates for path length constraint"},
	identity.RuleOneURI:            {"could not get spiffe ID from peer leaf cert"},
	identity.RuleID:                {"invalid spiffeid", "do not match any of the accepted SANs"},
	identity.RuleNameText:          {"invalid spiffeid"},
	identity.RuleRootPath:          {"do not match any of the accepted SANs"},
	identity.RuleExtendedKeyUsage:  {"x509: certificate specifies an incompatible key usage"},
	identity.RuleCriticalExtension: {"x509: unhandled critical extension"},
	identity.RuleExpired:           {"x509: certificate has expired or is not yet valid"},
	identity.RuleNotYetValid:       {"x509: certificate has expired or is not yet valid"},
	identity.RuleNameConstraints:   {"is not authorized to sign for this name", "do not match any of the accepted SANs"},
}

// TestHostileServers: nothing is sent to a server with a bad certificate, by
// m.Client() or by a channel with m.DialOptions(), and the error says why.
func TestHostileServers(t *testing.T) {
	leak.Check(t)
	matrix := hostile.New(t, time.Now())
	var current atomic.Pointer[hostile.Case]
	config := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load().Attacker(), nil }}

	var requests atomic.Int64
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{TLSConfig: config.Clone(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) })}
	web.SetKeepAlivesEnabled(false) // each case has a connection of its own
	go func() { _ = web.ServeTLS(lis, "", "") }()
	defer web.Close()
	check := &countingHealth{Server: health.NewServer()}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	healthpb.RegisterHealthServer(server, check)
	glis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(glis) }()
	defer server.Stop()

	w := meshtest.New(t, meshtest.Policy(victims("STRICT")+fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: peer, namespace: a}
spec:
  selector: {app: peer}
  ports: [{name: http, port: 80}, {name: grpc, port: 81}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: peer, namespace: a}
spec:
  address: 127.0.0.1
  ports: {http: %d, grpc: %d}
  labels: {app: peer, security.istio.io/tlsMode: istio}
  serviceAccount: peer
`, lis.Addr().(*net.TCPAddr).Port, glis.Addr().(*net.TCPAddr).Port)))
	m, err := mesh.New(t.Context(), mesh.WithBootstrap(w.Bootstrap()), mesh.WithIdentity(victim(t, matrix)))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	client := m.Client()
	client.Timeout = 20 * time.Second

	for i := range matrix.Cases {
		c := &matrix.Cases[i]
		current.Store(c)
		before := requests.Load()
		resp, err := client.Get("http://peer.a/")
		if err == nil {
			resp.Body.Close()
		}
		ran := requests.Load() - before
		var refused *identity.VerifyError
		switch {
		case c.Good():
			if err != nil || ran != 1 || resp.StatusCode != http.StatusOK {
				t.Errorf("%s over HTTP: %v, %d handlers ran", c.Name, err, ran)
			}
		case err == nil || ran != 0:
			t.Errorf("%s over HTTP: %v, %d handlers ran, want rule %s", c.Name, err, ran, c.Rule)
		case c.ByTLS:
			if !strings.Contains(err.Error(), "tls: failed to parse certificate") {
				t.Errorf("%s over HTTP: %v", c.Name, err)
			}
		case !errors.As(err, &refused) || refused.Rule != c.Rule:
			t.Errorf("%s over HTTP: %v, want rule %s", c.Name, err, c.Rule)
		}

		for target, theirs := range map[string][]string{"mesh:///peer.a:81": nil, "xds:///peer.a:81": gRPCWords[c.Rule]} {
			err = checkOnce(t, m, target)
			ran = check.calls.Swap(0)
			switch {
			case c.Good():
				if err != nil || ran != 1 {
					t.Errorf("%s over %s: %v, %d handlers ran", c.Name, target, err, ran)
				}
			case rpc.Code(err) != codes.Unavailable || ran != 0:
				t.Errorf("%s over %s: %v, %d handlers ran, want rule %s", c.Name, target, err, ran, c.Rule)
			default:
				words := append([]string{"refused by rule " + string(c.Rule)}, theirs...)
				if c.ByTLS {
					words = []string{"tls: failed to parse certificate"}
				}
				if !slices.ContainsFunc(words, func(word string) bool { return strings.Contains(err.Error(), word) }) {
					t.Errorf("%s over %s: %v, want rule %s", c.Name, target, err, c.Rule)
				}
			}
		}
	}
}

// checkOnce makes one call over a new channel.
func checkOnce(t *testing.T, m *mesh.Mesh, target string) error {
	t.Helper()
	conn, err := grpc.NewClient(target, m.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}
