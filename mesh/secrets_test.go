package mesh_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	rpc "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1alpha1"

	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/journal"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// grpcLog is what gRPC itself logs of warnings and errors. It must be set before
// any use of gRPC.
var grpcLog journal.Journal

func init() { grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, &grpcLog, &grpcLog)) }

const secretsPolicy = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  jwtRules:
  - issuer: https://issuer.example
    jwks: '%[1]s'
    forwardOriginalToken: true
    fromHeaders: [{name: Authorization, prefix: "Bearer "}]
    fromParams: [access_token]
    fromCookies: [session]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: one}
spec:
  action: DENY
  selector: {matchLabels: {app: one}}
  rules: [{to: [{operation: {paths: [/denied]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: three}
spec:
  action: DENY
  selector: {matchLabels: {app: three}}
  rules: [{when: [{key: "request.headers[x-denied]", values: ["yes"]}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: one}
spec:
  hosts: [one]
  http:
  - match: [{uri: {prefix: /slow}}]
    timeout: 0.02s
    route: [{destination: {host: one}}]
  - retries: {attempts: 2, retryOn: 5xx}
    route: [{destination: {host: one}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: three}
spec:
  hosts: [three]
  http: [{retries: {attempts: 2, retryOn: unavailable}, route: [{destination: {host: three}}]}]
---
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: default}
spec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %[2]s-idle, namespace: default}
spec: {address: 127.0.0.2, labels: {app: idle}}
`

// sleepyHealth is a health service with moods.
type sleepyHealth struct{ *health.Server }

func (h sleepyHealth) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	switch r.Service {
	case "flaky":
		return nil, rpc.Error(codes.Unavailable, "try again")
	case "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return h.Server.Check(ctx, r)
}

// TestSecretsStayInside sends secrets of all kinds through a world, in success
// and in each kind of failure, and looks for them in all that is written or
// shown: logs, spans, metrics, errors, refusals, the admin page, the server's
// status and report, and what another workload gets over xDS.
func TestSecretsStayInside(t *testing.T) {
	leak.Check(t)
	hidden := secrets{
		"password": "CANARYpassword71", "query": "CANARYapikey72", "cookie": "CANARYcookie73", "api key": "CANARYheader74", "basic": "CANARYbasic75",
		"trailer": "CANARYbody76",
	}
	is := newIssuer(t, hidden)
	good, bad := is.token(t, "CANARYsubject77"), is.token(t, "CANARYsubject78")
	bad = bad[:len(bad)-8] + "AAAAAAAA"
	hidden["subject"], hidden["subject of the bad token"] = "CANARYsubject77", "CANARYsubject78"
	for name, token := range map[string]string{"good token": good, "bad token": bad} {
		parts := strings.Split(token, ".")
		hidden[name+"'s claims"], hidden[name+"'s signature"] = parts[1], parts[2]
	}

	var out sinks
	log, spans, reader := &journal.Journal{}, tracetest.NewSpanRecorder(), sdkmetric.NewManualReader()
	traces, meters := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	before := slog.Default()
	slog.SetDefault(logger)
	defer slog.SetDefault(before)
	gRPCBefore := len(grpcLog.String())

	web := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/flaky":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/slow":
			// net/http notices that the client has gone only behind the body.
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			panic(http.ErrAbortHandler) // an answer could still reach the client while it closes
		default:
			_, _ = io.WriteString(w, planted)
		}
	})
	w := meshtest.New(t, meshtest.MutualTLS(), meshtest.Logger(logger), meshtest.Policy(fmt.Sprintf(secretsPolicy, is.set, planted)),
		meshtest.MeshOptions(mesh.WithTracerProvider(traces), mesh.WithMeterProvider(meters)),
		meshtest.HTTP("one", "", web), meshtest.Dead("dead", ""),
		meshtest.GRPC("three", "", func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, sleepyHealth{health.NewServer()}) }))
	m := w.Mesh()

	result := policy.Build([]*policy.File{policy.Parse("policy.yaml", fmt.Appendf(nil, secretsPolicy, is.worse, planted))}, nil)
	if !result.Failed() {
		t.Error("a symmetric key is taken")
	}
	for _, p := range result.Problems {
		out.add("errors", p.String())
	}

	// HTTP.
	var address string // of "one"
	do := func(url, token string) (*http.Response, error) {
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { address = i.Conn.RemoteAddr().String() }})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(hidden["trailer"]))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", token)
		}
		req.Header.Set("Cookie", "id="+hidden["cookie"])
		req.Header.Set("X-Api-Key", hidden["api key"])
		return m.RoundTripper().RoundTrip(req)
	}
	const query = "?api_key=CANARYapikey72"
	ask := func(url, token string, want int) {
		t.Helper()
		resp, err := do(url, token)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%s: %d %q, %v; want %d", url, resp.StatusCode, body, err, want)
		}
		out.add("answers", string(body))
		if want == http.StatusForbidden || want == http.StatusUnauthorized {
			out.addJSON(t, "answers", resp.Header)
		}
	}
	const inURL = "http://user:CANARYpassword71@one"
	ask(inURL+"/"+query, "Bearer "+good, http.StatusOK)
	ask(inURL+"/denied"+query, "Bearer "+good, http.StatusForbidden)
	ask(inURL+"/"+query, "Bearer "+bad, http.StatusUnauthorized)
	ask(inURL+"/"+query, "Bearer CANARYbasic75", http.StatusUnauthorized)
	ask(inURL+"/"+query, "Basic "+base64.StdEncoding.EncodeToString([]byte("user:"+hidden["basic"])), http.StatusOK)
	ask("http://one/"+query+"&access_token="+good, "", http.StatusOK)
	ask("http://one/denied"+query+"&access_token="+bad, "", http.StatusUnauthorized)
	ask(inURL+"/flaky"+query, "Bearer "+good, http.StatusServiceUnavailable)
	for _, url := range []string{inURL + "/slow" + query, "http://user:CANARYpassword71@dead/" + query, "http://user:CANARYpassword71@" + planted + "/" + query} {
		resp, err := do(url, "Bearer "+good)
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			t.Errorf("%s: %d %s", url, resp.StatusCode, body)
			continue
		}
		out.failed(t, err)
	}

	// gRPC.
	for _, target := range []string{"xds:///three:80", "mesh:///three:80"} {
		conn, err := grpc.NewClient(target, m.DialOptions()...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		call := func(service string, want codes.Code, md ...string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if want == codes.DeadlineExceeded {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
			}
			defer cancel()
			ctx = metadata.AppendToOutgoingContext(ctx, append(md, "cookie", "id="+hidden["cookie"], "x-api-key", hidden["api key"], "key-bin", hidden["api key"])...)
			_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
			if rpc.Code(err) != want {
				t.Errorf("%s %q: %v, want %v", target, service, err, want)
			}
			if err != nil {
				out.failed(t, err)
			}
		}
		bearer := []string{"authorization", "Bearer " + good}
		call("", codes.OK, bearer...)
		call("", codes.PermissionDenied, append(bearer, "x-denied", "yes")...)
		call("", codes.Unauthenticated, "authorization", "Bearer "+bad)
		call("flaky", codes.Unavailable, bearer...)
		call("slow", codes.DeadlineExceeded, bearer...)
	}

	// A client whose certificate is its own invention.
	key, der := newKey(t)
	hidden.key(t, "impostor's key", der)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	impostor := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
	transport := &http.Transport{TLSClientConfig: impostor}
	defer transport.CloseIdleConnections()
	if resp, err := transport.RoundTrip(httptest.NewRequest(http.MethodGet, "https://"+address+"/"+query, nil)); err == nil {
		resp.Body.Close()
		t.Error("a certificate of its own invention was accepted")
	}

	// Files in the middle of a change: the key is not the certificate's.
	torn := tornFiles(t, w.Bootstrap(), cert, hidden)
	tm, err := mesh.New(t.Context(), mesh.WithBootstrap(torn), mesh.WithLogger(logger), mesh.WithPolicyWait(300*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tm.RoundTripper().RoundTrip(httptest.NewRequest(http.MethodGet, "http://one/"+query, nil))
	out.failed(t, err)
	out.add("admin", adminPage(tm))
	tm.Close()

	// Joining with a bad token, and with a request that is none.
	doc, err := bootstrap.Parse(w.Bootstrap())
	if err != nil {
		t.Fatal(err)
	}
	hidden["bad join token"] = "CANARYjoin79"
	authority, err := grpc.NewClient(doc.Servers[0].URI, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer authority.Close()
	for _, csr := range []string{"CANARYcsr80", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))} {
		hidden["signing request"] = "CANARYcsr80"
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+hidden["bad join token"])
		_, err := security.NewIstioCertificateServiceClient(authority).CreateCertificate(ctx, &security.IstioCertificateRequest{Csr: csr})
		out.failed(t, err)
	}

	refusedResources(t, logger, hidden, &out)

	// Another workload asks for everything that it can name.
	fetch(t, w, &out)

	// What is no secret is planted by the ways that secrets would take.
	resp, err := w.As(planted).Client().Get("http://one/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	_, span := traces.Tracer("test").Start(t.Context(), "test")
	span.SetAttributes(attribute.String("planted", planted))
	span.End()
	counter, err := meters.Meter("test").Int64Counter("test")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 1, metric.WithAttributes(attribute.String("planted", planted)))
	grpclog.Component("test").Warning(planted)

	hidden.folder(t, filepath.Dir(joinTokenFile(t, doc)))
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	out.addJSON(t, "metrics", all)
	out.addJSON(t, "spans", tracetest.SpanStubsFromReadOnlySpans(spans.Ended()))
	out.add("gRPC's log", grpcLog.String()[gRPCBefore:])
	out.add("admin", adminPage(m))
	out.addJSON(t, "status", w.ControlPlane().Status())
	out.addJSON(t, "report", w.ControlPlane().Report())
	out.add("log", log.String())

	want := []string{"admin", "answers", "errors", "gRPC's log", "log", "metrics", "refusals to the server", "report", "spans", "status", "xds"}
	if got := slices.Sorted(maps.Keys(out.m)); !slices.Equal(got, want) {
		t.Errorf("sinks %q, want %q", got, want)
	}
	if got := out.find(planted); !slices.Equal(got, want) {
		t.Errorf("what was planted is found in %q, want all of %q", got, want)
	}
	for name, secret := range hidden {
		if len(secret) < 8 {
			t.Fatalf("%s is too short to be looked for", name)
		}
		for _, in := range out.find(secret) {
			t.Errorf("%s stands in the %s", name, in)
		}
	}
}

func adminPage(m *mesh.Mesh) string {
	page := httptest.NewRecorder()
	m.Admin().ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/debug/mesh/", nil))
	return page.Body.String()
}

func joinTokenFile(t *testing.T, c *bootstrap.Config) string {
	t.Helper()
	var config struct {
		File string `json:"join_token_file"`
	}
	if err := json.Unmarshal(c.CertificateProviders["default"].Config, &config); err != nil || config.File == "" {
		t.Fatalf("no join token file: %v", err)
	}
	return config.File
}

// tornFiles replaces a bootstrap's certificate provider with files whose key is
// of another certificate.
func tornFiles(t *testing.T, document []byte, cert []byte, s secrets) []byte {
	t.Helper()
	_, der := newKey(t)
	s.key(t, "key in the torn files", der)
	dir := t.TempDir()
	files := make(map[string]string)
	for name, block := range map[string]*pem.Block{
		"certificate_file": {Type: "CERTIFICATE", Bytes: cert}, "private_key_file": {Type: "PRIVATE KEY", Bytes: der}, "ca_certificate_file": {Type: "CERTIFICATE", Bytes: cert},
	} {
		files[name] = filepath.Join(dir, name)
		if err := os.WriteFile(files[name], pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var c map[string]any
	if err := json.Unmarshal(document, &c); err != nil {
		t.Fatal(err)
	}
	provider := map[string]any{"plugin_name": "file_watcher", "config": files}
	c["certificate_providers"] = map[string]any{"default": provider}
	for _, s := range c["xds_servers"].([]any) {
		s.(map[string]any)["channel_creds"] = []any{map[string]any{"type": "certificate_provider", "config": provider}}
	}
	return must(json.Marshal(c))
}

// fetch asks for resources as another workload with an identity of its own, as
// itself and with the nodes of others.
func fetch(t *testing.T, w *meshtest.World, out *sinks) {
	t.Helper()
	own, err := bootstrap.Parse(w.BootstrapAs(planted))
	if err != nil {
		t.Fatal(err)
	}
	creds, src, err := tlsconfig.BuildChannelCredentials(own.Servers[0].ChannelCreds[0].Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	conn, err := grpc.NewClient(own.Servers[0].URI, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var inbound []string
	for _, c := range w.ControlPlane().Status().Clients {
		for _, r := range c.Resources {
			if strings.HasPrefix(r.Name, translate.InboundPrefix) && !slices.Contains(inbound, r.Name) {
				inbound = append(inbound, r.Name)
			}
		}
	}
	if len(inbound) < 2 {
		t.Fatalf("the inbound listeners are %q", inbound)
	}
	names := map[string][]string{
		translate.ListenerType: append([]string{"one:80", "three:80", planted + ":80", "*"}, inbound...),
		translate.RouteType:    {"one:80", "three:80", planted + ":80", "*"},
		translate.ClusterType:  {"outbound|80||one.default.svc.cluster.local", "outbound|80||three.default.svc.cluster.local", "*"},
		translate.EndpointType: {"outbound|80||one.default.svc.cluster.local", "outbound|80||three.default.svc.cluster.local", "*"},
		"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret": {"default", "ROOTCA", "*"},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for typeURL, names := range names {
		// Its own node, with each way to ask.
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: own.Node, TypeUrl: typeURL, ResourceNamesSubscribe: names}); err != nil {
			t.Fatal(err)
		}
		if r, err := stream.Recv(); err != nil {
			out.add("xds", err.Error())
		} else {
			for _, x := range r.Resources {
				if slices.Contains(inbound, x.Name) {
					t.Errorf("another workload's inbound listener %s is served", x.Name)
				}
			}
			out.add("xds", protojson.Format(r))
			out.add("xds", r.String())
		}
		if err := stream.CloseSend(); err != nil {
			t.Error(err)
		}
	}
	// Somebody else's node.
	for _, c := range w.ControlPlane().Status().Clients {
		if strings.Contains(c.Node, planted) {
			continue
		}
		stolen, err := bootstrap.Parse(w.BootstrapAs("one"))
		if err != nil {
			t.Fatal(err)
		}
		stolen.Node.Id = c.Node
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: stolen.Node, TypeUrl: translate.ListenerType, ResourceNamesSubscribe: inbound}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if r, err := stream.Recv(); rpc.Code(err) != codes.PermissionDenied {
			t.Errorf("with the node %s: %v, %v", c.Node, r, err)
		}
	}
}
