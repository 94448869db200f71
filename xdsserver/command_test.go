package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sinew-mesh/sinew/internal/journal"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

const (
	services = `
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-1, labels: {app: reviews, version: v1}}
spec: {address: 127.0.0.1}
`
	routes = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - timeout: 1s
    route: [{destination: {host: reviews}}]
`
	misspelt = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: misspelt}
spec:
  hosts: [other]
  http:
  - route: [{destination: {host: reviews}, wieght: 5}]
`
	access = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {}
`
)

// folder is a policy folder with these files.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		write(t, dir, name, text)
	}
	return dir
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	tmp := filepath.Join(dir, "."+name)
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// run runs one command line.
func run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = cmd.ExecuteContext(ctx)
	return out.String(), errOut.String(), err
}

func TestCommands(t *testing.T) {
	good := folder(t, map[string]string{"a.yaml": services, "b.yaml": routes})
	bad := folder(t, map[string]string{"a.yaml": services, "b.yaml": misspelt})
	closed := folder(t, map[string]string{"a.yaml": services, "access.yaml": access})
	other := folder(t, map[string]string{"mesh.yaml": meshConfig("trustDomain: other.example")})
	warned := folder(t, map[string]string{"b.yaml": routes, "c.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n"})
	empty := folder(t, map[string]string{"readme.md": "no policy"})
	comment := folder(t, map[string]string{"a.yaml": "# nothing yet\n"})
	none := filepath.Join(good, "none")
	for name, test := range map[string]struct {
		args []string
		out  []string // in the output
		err  []string // in the error; none means success
		says string   // all of the error output
	}{
		"no such command":               {args: []string{"srve"}, err: []string{`unknown command "srve"`}},
		"validate":                      {args: []string{"validate", good}, says: good + ": 2 files with 3 objects: nothing is wrong\n"},
		"validate: one file":            {args: []string{"validate", filepath.Join(good, "b.yaml")}, out: []string{"warning: no Service"}, says: filepath.Join(good, "b.yaml") + ": 1 file with 1 object: no error, 1 warning\n"},
		"validate: warnings":            {args: []string{"validate", warned}, out: []string{"warning: no Service", "c.yaml:1: Pod default/x: notice: "}, says: warned + ": 2 files with 1 object: no error, 1 warning, 1 notice\n"},
		"validate: no policy":           {args: []string{"validate", empty}, says: empty + ": no policy is there, for no file is named *.yaml, *.yml or *.json\n"},
		"validate: no objects":          {args: []string{"validate", comment}, says: comment + ": 1 file with 0 objects: no policy is there\n"},
		"validate finds":                {args: []string{"validate", bad}, out: []string{"b.yaml:8: VirtualService default/misspelt: spec.http[0].route[0].wieght"}, err: []string{"1 error"}},
		"validate: access":              {args: []string{"validate", closed}, says: closed + ": 2 files with 3 objects: nothing is wrong\n"},
		"validate: no folder":           {args: []string{"validate", filepath.Join(good, "none")}, err: []string{"no such file"}},
		"validate: no argument":         {args: []string{"validate"}, err: []string{"say which folder or file to check", "xdsserver validate DIR"}},
		"validate: arguments":           {args: []string{"validate", good, bad}, err: []string{"give one folder, or one file, instead of 2"}},
		"serve: argument":               {args: []string{"serve", "policy"}, err: []string{`"xdsserver serve" takes no arguments, and there is "policy": the folder with policy goes into --config`}},
		"serve: argument beside flags":  {args: []string{"serve", "--config", good, "policy"}, err: []string{"--config"}},
		"bootstrap: argument":           {args: []string{"bootstrap", "web"}, err: []string{`there is "web"`, "--workload", "--server"}},
		"status: argument":              {args: []string{"status", "127.0.0.1:1"}, err: []string{`there is "127.0.0.1:1"`, "goes into --http"}},
		"report: argument":              {args: []string{"report", "web"}, err: []string{`there is "web"`, "a workload goes into --workload"}},
		"ca status: argument":           {args: []string{"ca", "status", "ca"}, err: []string{`"xdsserver ca status" takes no arguments`, "goes into --ca-dir"}},
		"ca rotate: argument":           {args: []string{"ca", "rotate", "ca"}, err: []string{"goes into --ca-dir"}},
		"token list: argument":          {args: []string{"token", "list", "ca"}, err: []string{"goes into --ca-dir"}},
		"token revoke: no ID":           {args: []string{"token", "revoke", "--ca-dir", good}, err: []string{"name one token by its ID"}},
		"ca: no such command":           {args: []string{"ca", "rotat"}, err: []string{`unknown command "rotat" for "xdsserver ca": it has status, rotate`}},
		"token: no such command":        {args: []string{"token", "ls", "--ca-dir", good}, err: []string{`unknown command "ls" for "xdsserver token": it has list, revoke`}},
		"ca: no command":                {args: []string{"ca"}, out: []string{"xdsserver ca [command]", "--ca-dir"}},
		"serve: no folder given":        {args: []string{"serve"}, err: []string{`required flag(s) "config"`}},
		"serve: no such folder":         {args: []string{"serve", "--config", filepath.Join(good, "none"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"}, err: []string{"--config: ", none, "no such file"}},
		"serve: two certificates":       {args: []string{"serve", "--config", good, "--ca-dir", t.TempDir(), "--cert-file", "x"}, err: []string{"use one"}},
		"serve: half a certificate":     {args: []string{"serve", "--config", good, "--cert-file", "x"}, err: []string{"go together"}},
		"serve: no certificate there":   {args: []string{"serve", "--config", good, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cert-file", "x", "--key-file", "x", "--ca-file", "x"}, err: []string{"no such file"}},
		"serve: issuer without ca":      {args: []string{"serve", "--config", good, "--issuer-cert-file", "x"}, err: []string{"needs --ca-dir"}},
		"serve: half an issuer":         {args: []string{"serve", "--config", good, "--ca-dir", t.TempDir(), "--issuer-cert-file", "x"}, err: []string{"go together"}},
		"serve: plaintext alone":        {args: []string{"serve", "--config", good, "--plaintext-listen", "127.0.0.1:0"}, err: []string{"beside a port with TLS"}},
		"serve: plaintext elsewhere":    {args: []string{"serve", "--config", good, "--ca-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--plaintext-listen", "0.0.0.0:0"}, err: []string{"--plaintext-listen 0.0.0.0:0: only a loopback address"}},
		"serve: hostname without ca":    {args: []string{"serve", "--config", good, "--hostname", "x"}, err: []string{"needs --ca-dir"}},
		"serve: tokens without ca":      {args: []string{"serve", "--config", good, "--kubernetes-audience", "x"}, err: []string{"needs --ca-dir"}},
		"serve: tokens for nobody":      {args: []string{"serve", "--config", good, "--ca-dir", t.TempDir(), "--kubernetes-api-server", "https://x"}, err: []string{"need --kubernetes-audience"}},
		"serve: tokens of no cluster":   {args: []string{"serve", "--config", good, "--ca-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--kubernetes-audience", "x", "--kubernetes-api-server", "x"}, err: []string{"--kubernetes-audience", "not the URL"}},
		"serve: no trust domain":        {args: []string{"serve", "--config", good, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--trust-domain", "A b"}, err: []string{"--trust-domain"}},
		"serve: two trust domains":      {args: []string{"serve", "--config", other, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--trust-domain", "a.example"}, err: []string{"not serving", "mesh.yaml", `"other.example"`, `"a.example"`}},
		"bootstrap: no authority":       {args: []string{"bootstrap", "--workload", "web", "--server", "a:1", "--ca-dir", t.TempDir(), "--token-file", "x"}, err: []string{"no certificate authority", founds}},
		"bootstrap: no folder":          {args: []string{"bootstrap", "--workload", "web", "--server", "a:1", "--ca-dir", none, "--token-file", "x"}, err: []string{"--ca-dir", none + ", which is not there", founds + none}},
		"ca status: no folder":          {args: []string{"ca", "status", "--ca-dir", none}, err: []string{"--ca-dir", none, founds + none}},
		"ca rotate: no folder":          {args: []string{"ca", "rotate", "--ca-dir", none}, err: []string{"--ca-dir", none, founds + none}},
		"token list: no folder":         {args: []string{"token", "list", "--ca-dir", none}, err: []string{"--ca-dir", none, founds + none}},
		"token revoke: no folder":       {args: []string{"token", "revoke", "x", "--ca-dir", none}, err: []string{"--ca-dir", none, founds + none}},
		"ca status: a file":             {args: []string{"ca", "status", "--ca-dir", filepath.Join(good, "a.yaml")}, err: []string{"--ca-dir: ", "not a directory"}},
		"bootstrap: no token file":      {args: []string{"bootstrap", "--workload", "web", "--server", "a:1", "--ca-dir", t.TempDir()}, err: []string{"needs either --token-file or --kubernetes-token-file"}},
		"bootstrap: two tokens":         {args: []string{"bootstrap", "--workload", "web", "--server", "a:1", "--ca-dir", t.TempDir(), "--token-file", "x", "--kubernetes-token-file", "x"}, err: []string{"needs either --token-file or --kubernetes-token-file"}},
		"bootstrap: token without ca":   {args: []string{"bootstrap", "--workload", "web", "--server", "a:1", "--token-file", "x"}, err: []string{"need --ca-dir"}},
		"bootstrap: half a certificate": {args: []string{"bootstrap", "--workload", "web", "--server", "a:1", "--cert-file", "x"}, err: []string{"go together"}},
		"ca: no folder given":           {args: []string{"ca", "status"}, err: []string{`required flag(s) "ca-dir"`}},
		"ca: nothing there":             {args: []string{"ca", "rotate", "--ca-dir", empty}, err: []string{"--ca-dir", empty, founds + empty}},
		"token: nothing there":          {args: []string{"token", "list", "--ca-dir", empty}, err: []string{"--ca-dir", empty, founds + empty}},
		"report: nobody there":          {args: []string{"report", "--http", unused(t)}, err: []string{"connection refused"}},
		"serve: every address":          {args: []string{"serve", "--config", good, "--listen", ":0"}, err: []string{"--listen :0: only a loopback address"}},
		"serve: any address":            {args: []string{"serve", "--config", good, "--listen", "0.0.0.0:0"}, err: []string{"--listen 0.0.0.0:0: only a loopback address"}},
		"serve: a name":                 {args: []string{"serve", "--config", good, "--listen", "example.com:0"}, err: []string{"only a loopback address"}},
		"serve: status elsewhere":       {args: []string{"serve", "--config", good, "--listen", "127.0.0.1:0", "--http", "192.0.2.1:0"}, err: []string{"--http 192.0.2.1:0: only a loopback address"}},
		"serve: not an address":         {args: []string{"serve", "--config", good, "--listen", "15010"}, err: []string{"--listen 15010"}},
		"bootstrap: no server":          {args: []string{"bootstrap", "--workload", "web"}, err: []string{`required flag(s) "server"`}},
		"bootstrap: bad server":         {args: []string{"bootstrap", "--workload", "web", "--server", "localhost"}, err: []string{"is not host:port"}},
		"bootstrap: bad name":           {args: []string{"bootstrap", "--workload", "a~b", "--server", "localhost:1"}, err: []string{"--workload"}},
		"bootstrap: bad address":        {args: []string{"bootstrap", "--workload", "a", "--server", "localhost:1", "--ip", "x"}, err: []string{"--ip"}},
		"status: nobody there":          {args: []string{"status", "--http", unused(t)}, err: []string{"connection refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, said, err := run(t, test.args...)
			if test.says != "" && said != test.says {
				t.Errorf("error output %q, want %q", said, test.says)
			}
			if len(test.out) == 0 && out != "" {
				t.Errorf("output %q, want none", out)
			}
			for _, want := range test.out {
				if !strings.Contains(out, want) {
					t.Errorf("output %q lacks %q", out, want)
				}
			}
			if len(test.err) == 0 && err != nil {
				t.Errorf("error %v, output %q", err, out)
			}
			for _, want := range test.err {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v lacks %q", err, want)
				}
			}
		})
	}
}

// TestStatusText: what of a page is empty leaves no gap in its lines.
func TestStatusText(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	p := page{TrustDomain: "td", Policy: policyStatus{Read: now, InForce: true, Problems: []policyProblem{
		{File: "a.yaml", Severity: "warning", Message: "file is empty"},
		{File: "b.yaml", Line: 3, Object: "Pod default/x", Severity: "notice", Message: "is left out"},
		{File: "b.yaml", Line: 4, Object: "Service default/x", Field: "spec.ports", Severity: "error", Message: "required"},
	}}}
	p.Refused = []ads.Refusal{
		{At: now.Add(-time.Second), Address: "192.0.2.1:1", Reason: "the client does not speak TLS"},
		{At: now.Add(-time.Minute), Address: "192.0.2.1:2", Identity: "spiffe://td/x", Node: "web", Reason: "no"},
	}
	var out strings.Builder
	if err := p.print(&out, now); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"trust domain td",
		"warning: a.yaml: file is empty",
		"notice: b.yaml:3: Pod default/x: is left out",
		"error: b.yaml:4: Service default/x: spec.ports: required",
		"refused 1s ago: 192.0.2.1:1: the client does not speak TLS",
		"refused 1m0s ago: 192.0.2.1:2 spiffe://td/x web: no",
		"no client is connected",
	} {
		if !strings.Contains(out.String(), "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, out.String())
		}
	}
}

// founds is how to get a certificate authority.
const founds = "xdsserver serve --ca-dir "

// TestWrongPort: who asks another port than that of the status page is told so.
func TestWrongPort(t *testing.T) {
	s := serveFolder(t, folder(t, map[string]string{"a.yaml": services}), "--ca-dir", filepath.Join(t.TempDir(), "ca"), "--plaintext-listen", "127.0.0.1:0")
	page := func(h http.HandlerFunc) string {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	for name, addr := range map[string]string{
		"xDS with TLS":      s.xds,
		"xDS without":       s.plaintext,
		"another program":   page(http.NotFound),
		"one with a page":   page(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }),
		"one that hangs up": page(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
	} {
		for _, command := range []string{"status", "report"} {
			out, _, err := run(t, command, "--http", addr)
			if err == nil || !strings.Contains(err.Error(), "--http "+addr+" is not the address") || out != "" {
				t.Errorf("%s, %s: %v, output %q", name, command, err, out)
			}
		}
	}
	if _, _, err := run(t, "status", "--http", s.http); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		line := ""
		for _, l := range strings.Split(s.log.String(), "\n") {
			if strings.Contains(l, "the client does not speak TLS") {
				line = l
			}
		}
		if strings.Contains(line, "level=WARN") && strings.Contains(line, "address=127.0.0.1:") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server says nothing of a plaintext client:\n%s", s.log)
		}
	}
}

// unused is an address where nothing listens.
func unused(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestBootstrap(t *testing.T) {
	out, _, err := run(t, "bootstrap", "--server", "127.0.0.1:15010", "--workload", "reviews-1", "--namespace", "shop", "--service-account", "reviews",
		"--ip", "10.0.0.1", "--ip", "fd00::1", "--label", "app=reviews", "--label", "version=v1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := bootstrap.Parse([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Servers) != 1 || c.Servers[0].URI != "127.0.0.1:15010" || c.Servers[0].ChannelCreds[0].Type != "insecure" {
		t.Errorf("servers %+v", c.Servers)
	}
	if name, err := c.InboundName("10.0.0.1:80"); err != nil || name != "xds.istio.io/grpc/lds/inbound/10.0.0.1:80" || c.ListenerName("a:80") != "a:80" {
		t.Errorf("names %q, %v, %q", name, err, c.ListenerName("a:80"))
	}
	client, err := translate.ClientOf(c.Node)
	if err != nil {
		t.Fatal(err)
	}
	if client.ID != "sidecar~10.0.0.1~reviews-1.shop~shop.svc.cluster.local" || client.Namespace != "shop" || client.Name != "reviews-1" ||
		client.ServiceAccount != "reviews" || strings.Join(client.IPs, " ") != "10.0.0.1 fd00::1" || client.Labels["version"] != "v1" || client.Labels["app"] != "reviews" {
		t.Errorf("client %+v", client)
	}
}

// served is a running "serve".
type served struct {
	xds, plaintext, http string
	log                  *journal.Journal
	stop                 func() error
}

// meshConfig is Istio's ConfigMap with one line of settings.
func meshConfig(line string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    " + line + "\n"
}

func serveFolder(t *testing.T, dir string, more ...string) *served {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	cmd := newCommand()
	log := &journal.Journal{}
	cmd.SetArgs(append([]string{"serve", "--config", dir, "--listen", "127.0.0.1:0", "--http", "localhost:0"}, more...))
	cmd.SetOut(w)
	cmd.SetErr(log)
	result := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		w.CloseWithError(io.EOF)
		result <- err
	}()
	var line struct{ XDS, Plaintext, HTTP string }
	if err := json.NewDecoder(r).Decode(&line); err != nil {
		t.Fatalf("the line with the addresses: %v (%v)", err, <-result)
	}
	s := &served{xds: line.XDS, plaintext: line.Plaintext, http: line.HTTP, log: log}
	stopped := false
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-result:
			return err
		case <-time.After(patience):
			return context.DeadlineExceeded
		}
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

const patience = 10 * time.Second

func (s *served) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + s.http + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestServe goes from a file to a client: what is written into the folder is
// what an xDS client gets, and the status page says so.
func TestServe(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	dir := folder(t, map[string]string{"services.yaml": services, "bad.yaml": misspelt})
	s := serveFolder(t, dir)
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/status": 200, "/other": 404} {
		if got, body := s.get(t, path); got != want {
			t.Errorf("%s: %d %s, want %d", path, got, body, want)
		}
	}

	conn, err := grpc.NewClient(s.xds, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	doc, _, err := run(t, "bootstrap", "--server", s.xds, "--workload", "web")
	if err != nil {
		t.Fatal(err)
	}
	c, err := bootstrap.Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	c.Node.UserAgentName = "sinew"
	const name = "outbound|9080||reviews.default.svc.cluster.local"
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: c.Node, TypeUrl: translate.RouteType, ResourceNamesSubscribe: []string{name}}); err != nil {
		t.Fatal(err)
	}
	recv := func() *discoveryv3.DeltaDiscoveryResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := recv().GetResources()[0]

	began := time.Now()
	write(t, dir, "routes.yaml", routes)
	second := recv().GetResources()[0]
	took := time.Since(began)
	t.Logf("from the edit to the client: %v", took)
	if took > 5*time.Second {
		t.Errorf("the edit took %v", took)
	}
	if first.GetName() != name || second.GetName() != name || first.GetVersion() == second.GetVersion() {
		t.Errorf("resources %s %s and %s %s", first.GetName(), first.GetVersion(), second.GetName(), second.GetVersion())
	}

	deadline := time.Now().Add(patience)
	for {
		out, _, err := run(t, "status", "--http", s.http)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out, "ACKED") {
			for _, want := range []string{"in force: 1 virtual services, 0 destination rules, 1 services, 1 workloads", "bad.yaml:8", "wieght",
				"sidecar~127.0.0.1~web.default~default.svc.cluster.local", "sinew", "delta", name, second.GetVersion()} {
				if !strings.Contains(out, want) {
					t.Errorf("status lacks %q:\n%s", want, out)
				}
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not acknowledged:\n%s", out)
		}
		time.Sleep(5 * time.Millisecond)
	}

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream outlives the server")
	}
	cancel()
	conn.Close()
	http.DefaultClient.CloseIdleConnections()
	for runtime.NumGoroutine() > goroutines {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), goroutines, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(5 * time.Millisecond)
	}
}
