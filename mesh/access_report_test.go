package mesh_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/xdsserver/ads"
)

// program is the xDS server as it is run: a process with a folder.
type program struct {
	t         *testing.T
	path      string // of the program
	dir       string // with the folders policy and ca, and tokens
	xds, http string // addresses
	joined    int
}

// newProgram builds the xDS server and starts it with these policy files.
func newProgram(t *testing.T, files map[string]string) *program {
	t.Helper()
	p := &program{t: t, dir: t.TempDir()}
	p.path = filepath.Join(p.dir, "xdsserver")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", p.path, "github.com/sinew-mesh/sinew/xdsserver").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(p.dir, "policy"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		p.write(name, text)
	}
	// The shell ends the server when this process does, however that is.
	cmd := exec.Command("sh", "-c", `"$0" "$@" & read x; kill $!; wait`, p.path, "serve", "--config", filepath.Join(p.dir, "policy"),
		"--ca-dir", filepath.Join(p.dir, "ca"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
	log := &bytes.Buffer{}
	cmd.Stderr = log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait() // its status is that of a process that was killed
		if t.Failed() {
			t.Logf("xdsserver:\n%s", log)
		}
	})
	var up struct{ XDS, HTTP string }
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &up)
	}
	if err != nil {
		t.Fatalf("xdsserver's first line %q: %v", line, err)
	}
	p.xds, p.http = up.XDS, up.HTTP
	return p
}

func (p *program) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.dir, "policy", name)
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		p.t.Fatal(err)
	}
}

// run runs another of its commands.
func (p *program) run(args ...string) string {
	p.t.Helper()
	var complaint bytes.Buffer
	cmd := exec.CommandContext(p.t.Context(), p.path, args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("xdsserver %s: %v\n%s", args[0], err, &complaint)
	}
	return string(out)
}

// join makes a member of the mesh by a bootstrap that the program prints.
func (p *program) join(namespace, workload, account string, options ...mesh.Option) *mesh.Mesh {
	p.t.Helper()
	p.joined++
	document := p.run("bootstrap", "--server", p.xds, "--workload", workload, "--namespace", namespace, "--service-account", account,
		"--label", "app="+account, "--ca-dir", filepath.Join(p.dir, "ca"), "--token-file", filepath.Join(p.dir, fmt.Sprintf("%d.token", p.joined)))
	m, err := mesh.New(context.Background(), append([]mesh.Option{mesh.WithBootstrap([]byte(document)),
		mesh.WithLogger(slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))),
		mesh.WithPolicyWait(patience), mesh.WithDrainTimeout(time.Second)}, options...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { m.Close() })
	return m
}

const dryRuns = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: payment, annotations: {istio.io/dry-run: "true"}}
spec: {selector: {matchLabels: {app: payment}}, mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admin, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: payment}}
  action: DENY
  rules: [{to: [{operation: {paths: [/admin]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payment, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: payment}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/checkout]}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payment, namespace: old}
spec:
  host: payment.default.svc.cluster.local
  trafficPolicy: {tls: {mode: DISABLE}}
`

// testDryRunAndReport: policy in dry run refuses nothing, and is counted by the
// server's metrics and in the control plane's report; the report names those whom
// STRICT would break, from both ends, and says so of nobody else.
func testDryRunAndReport(t *testing.T) {
	second, err := net.Listen("tcp", "127.0.0.2:0") // so that the outsider has an address of its own
	if err != nil {
		t.Skip("loopback has one address only: ", err)
	}
	second.Close()
	p := newProgram(t, map[string]string{"dry.yaml": dryRuns})
	reader := sdkmetric.NewManualReader()
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	defer func() { _ = provider.Shutdown(context.Background()) }()

	serve := func(m *mesh.Mesh) instance {
		lis, err := m.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		var done sync.WaitGroup
		done.Go(func() { _ = m.ServeListener(ctx, lis, peerName) })
		t.Cleanup(func() { stop(); done.Wait() })
		return instance{protocol: "http", at: lis.Addr().(*net.TCPAddr).AddrPort(), label: true}
	}
	payment, quiet := serve(p.join("default", "payment-0", "payment", mesh.WithMeterProvider(provider))), serve(p.join("default", "quiet-1", "quiet"))
	payment.app, quiet.app = "payment", "quiet"
	p.write("services.yaml", declaration(payment, quiet))

	// The counts are kept apart by their numbers.
	checkout, legacy := p.join("default", "checkout-v1", "checkout").Client(), p.join("old", "legacy-v1", "legacy").Client()
	outside := outsider(t)
	outside.Transport.(*http.Transport).DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext
	name := "http://payment.default.svc.cluster.local"
	settled := map[string]uint64{}
	until := func(who string, c *http.Client, url, body string) {
		settles(t, who, func() (bool, string) {
			code, got := ask(c, url)
			if code == http.StatusOK {
				settled[who]++
			}
			return code == http.StatusOK && got == body, fmt.Sprintf("%d %s", code, got)
		})
	}
	until("checkout", checkout, name, callerID("checkout"))
	until("quiet", checkout, "http://quiet", callerID("checkout"))
	until("legacy", legacy, name, "plaintext")
	until("outside", outside, "http://"+payment.at.String(), "plaintext")
	if code, body := ask(checkout, name+"/admin"); code != http.StatusOK {
		t.Errorf("/admin: %d %s", code, body)
	}
	settled["checkout"]++
	plaintext := settled["legacy"] + settled["outside"]

	const strictRule, denyRule = "PeerAuthentication default/payment", "ns[default]-policy[admin]-rule[0]"
	counted := dryRunCounts(t, reader)
	for key, want := range map[string]uint64{
		"mutual_tls " + strictRule: plaintext, "authorization " + denyRule: 1, "authorization ": plaintext,
	} {
		if counted[key] != want {
			t.Errorf("metric of %q: %d, want %d; all: %v", key, counted[key], want, counted)
		}
	}

	var report ads.Report
	port := uint32(payment.at.Port())
	settles(t, "the report", func() (bool, string) {
		code, body := ask(http.DefaultClient, "http://"+p.http+"/report")
		report = ads.Report{}
		if err := json.Unmarshal([]byte(body), &report); err != nil || code != http.StatusOK {
			return false, fmt.Sprintf("%d %s %v", code, body, err)
		}
		in, callers := inboundReport(&report, "payment-0", port), outboundReports(&report, "payment-0")
		return in != nil && in.MTLS == settled["checkout"] && in.Plaintext == plaintext && len(callers) == 2 &&
			callers["default/checkout-v1"].MTLS == settled["checkout"] && callers["old/legacy-v1"].Plaintext == settled["legacy"] &&
			inboundReport(&report, "quiet-1", uint32(quiet.at.Port())) != nil, body
	})
	in := inboundReport(&report, "payment-0", port)
	if in.Mode != "PERMISSIVE" || in.WouldRefuseStrict != plaintext || in.Unnamed != 0 || !in.Reporting {
		t.Errorf("payment: %+v", in)
	}
	byIP := map[string]ads.CallerReport{}
	for _, c := range in.Callers {
		byIP[c.IP] = c
	}
	if c := byIP["127.0.0.2"]; c.Plaintext != settled["outside"] || c.WouldRefuseStrict != settled["outside"] || len(c.Workloads) != 0 {
		t.Errorf("the outsider: %+v", c)
	}
	if c := byIP["127.0.0.1"]; c.Plaintext != settled["legacy"] {
		t.Errorf("the address of everybody else: %+v", c)
	}
	rules := map[string]uint64{}
	for _, r := range in.WouldRefuseAuthorization {
		rules[r.Rule] = r.Count
	}
	if len(rules) != 2 || rules[denyRule] != 1 || rules["ALLOW (no rule matches)"] != plaintext {
		t.Errorf("rules in dry run: %v", rules)
	}
	if q := inboundReport(&report, "quiet-1", uint32(quiet.at.Port())); q.Plaintext != 0 || q.MTLS == 0 || len(q.Callers) != 0 {
		t.Errorf("quiet: %+v", q)
	}
	http.DefaultClient.CloseIdleConnections()

	text := p.run("report", "--http", p.http, "--workload", "payment-0")
	for _, want := range []string{
		"STRICT would break:",
		fmt.Sprintf("old/legacy-v1, which reports %d plaintext requests", settled["legacy"]),
		fmt.Sprintf("127.0.0.2 (not a workload that is known), %d plaintext requests", settled["outside"]),
		fmt.Sprintf("the dry run of %s would have refused 1 requests", denyRule),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("xdsserver report has no %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "default/checkout-v1, which") {
		t.Errorf("xdsserver report names a caller that speaks mutual TLS:\n%s", text)
	}
	if text := p.run("report", "--http", p.http, "--workload", "default/quiet-1"); !strings.Contains(text, "STRICT would break nobody who has called so far") {
		t.Errorf("xdsserver report of a workload without plaintext callers:\n%s", text)
	}
}

func inboundReport(r *ads.Report, workload string, port uint32) *ads.InboundReport {
	for i := range r.Inbound {
		if in := &r.Inbound[i]; in.Name == workload && in.Port == port {
			return in
		}
	}
	return nil
}

// outboundReports has the callers of a workload by their names.
func outboundReports(r *ads.Report, workload string) map[string]ads.OutboundReport {
	out := map[string]ads.OutboundReport{}
	for _, o := range r.Outbound {
		for _, target := range o.Targets {
			if target.Name == workload {
				out[o.WorkloadName.String()] = o
			}
		}
	}
	return out
}

// dryRunCounts reads the counter of what dry runs would have refused, by kind and rule.
func dryRunCounts(t *testing.T, reader *sdkmetric.ManualReader) map[string]uint64 {
	t.Helper()
	var data metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != "mesh.server.dry_run" {
				continue
			}
			for _, point := range m.Data.(metricdata.Sum[int64]).DataPoints {
				value := func(key attribute.Key) string {
					v, _ := point.Attributes.Value(key)
					return v.AsString()
				}
				out[value("mesh.dry_run")+" "+value("mesh.rule")] += uint64(point.Value)
			}
		}
	}
	return out
}
