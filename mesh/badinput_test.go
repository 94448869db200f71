package mesh_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/source"
)

// folder is a mesh whose policy is a real folder, watched.
type folder struct {
	t       *testing.T
	dir     string
	client  *http.Client
	results chan *policy.Result
}

func newFolder(t *testing.T, files map[string]string) *folder {
	t.Helper()
	leak.Check(t)
	f := &folder{t: t, dir: t.TempDir(), results: make(chan *policy.Result, 100)}
	for name, content := range files {
		f.write(name, content)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := ads.NewServer(ctx, nil)
	watched := make(chan error, 1)
	first := make(chan struct{})
	go func() {
		begun := false
		watched <- source.Directory(ctx, f.dir, source.Options{}, func(r *policy.Result) {
			server.SetPolicy(r.Set)
			if f.results <- r; !begun {
				begun = true
				close(first)
			}
		})
	}()
	select {
	case <-first:
		<-f.results
	case err := <-watched:
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	control := grpc.NewServer()
	server.Register(control)
	go func() { _ = control.Serve(lis) }()
	m, err := mesh.New(ctx, mesh.WithBootstrap(fmt.Appendf(nil, `{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}]}],
		"node": {"id": "sidecar~127.0.0.1~test.default~default.svc.cluster.local", "metadata": {"NAMESPACE": "default"}}}`, lis.Addr())),
		mesh.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	f.client = m.Client()
	t.Cleanup(func() {
		m.Close()
		cancel()
		control.Stop()
		if err := <-watched; err != nil {
			t.Error(err)
		}
	})
	return f
}

// write replaces a file as editors do: by a rename.
func (f *folder) write(name, content string) {
	f.t.Helper()
	tmp := filepath.Join(f.dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(f.dir, name)); err != nil {
		f.t.Fatal(err)
	}
}

// problem waits for a result with an error that holds all the words.
func (f *folder) problem(words ...string) {
	f.t.Helper()
	var last []policy.Problem
	timeout := time.After(10 * time.Second)
	for {
		select {
		case r := <-f.results:
			last = r.Problems
			for _, p := range r.Problems {
				found := p.Severity == policy.Error
				for _, w := range words {
					found = found && strings.Contains(p.String(), w)
				}
				if found {
					return
				}
			}
		case <-timeout:
			f.t.Fatalf("no error with %q; the last result has %v", words, last)
		}
	}
}

func (f *folder) get(url string) (string, error) {
	resp, err := f.client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// settles waits until every request has the answer.
func (f *folder) settles(url, want string) {
	f.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got, err := f.get(url)
		if err == nil && got == want {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: %q %v, want %q", url, got, err, want)
		}
	}
}

func virtualService(route string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n" + route
}

// TestBadInput: each kind of bad policy is an error with its place, what was in
// force stays in force, and the next good version is taken.
func TestBadInput(t *testing.T) {
	instance := func(version string) (address string) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, version) }))
		t.Cleanup(s.Close)
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: reviews-%[1]s}\nspec: {address: 127.0.0.1, ports: {http: %[2]s}, labels: {app: reviews, version: %[1]s}}\n", version, port)
	}
	const v1 = "  - route: [{destination: {host: reviews, subset: v1}}]\n"
	const v2 = "  - route: [{destination: {host: reviews, subset: v2}}]\n"
	f := newFolder(t, map[string]string{
		"services.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}\n" + instance("v1") + instance("v2"),
		"rule.yaml":     "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]\n",
		"reviews.yaml":  virtualService(v1),
	})
	f.settles("http://reviews/", "v1")
	for _, c := range []struct {
		name  string
		bad   string
		words []string
	}{
		{"half-written", virtualService(v2 + "  - match: [{headers: {user: {exact: \"te"), []string{"reviews.yaml:"}},
		{"unknown field", virtualService("  - route: [{destination: {host: reviews, subset: v2}, wieght: 10}]\n"), []string{"reviews.yaml:7", "wieght"}},
		{"weights of zero", virtualService("  - route:\n    - {destination: {host: reviews, subset: v1}, weight: 0}\n    - {destination: {host: reviews, subset: v2}, weight: 0}\n"), []string{"reviews.yaml:", "weight"}},
		{"missing subset", virtualService("  - route: [{destination: {host: reviews, subset: v3}}]\n"), []string{"reviews.yaml:7", "v3"}},
		{"bad regex", virtualService("  - match: [{uri: {regex: \"a(\"}}]\n    route: [{destination: {host: reviews, subset: v2}}]\n"), []string{"reviews.yaml:7", "regex"}},
		{"field that is not enforced", virtualService("  - route: [{destination: {host: reviews, subset: v2}}]\n    fault: {abort: {http2Error: CANCEL, percentage: {value: 100}}}\n"), []string{"reviews.yaml:8", "http2Error"}},
		{"missing file's worth of fields", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec: {}\n", []string{"reviews.yaml:", "spec.http"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.write("reviews.yaml", c.bad)
			f.problem(c.words...)
			for range 20 {
				if got, err := f.get("http://reviews/"); err != nil || got != "v1" {
					t.Fatalf("%q %v, want v1 still", got, err)
				}
			}
			f.write("reviews.yaml", virtualService(v2))
			f.settles("http://reviews/", "v2")
			f.write("reviews.yaml", virtualService(v1))
			f.settles("http://reviews/", "v1")
		})
	}
	t.Run("cyclic symlink", func(t *testing.T) {
		if err := os.Symlink(f.dir, filepath.Join(f.dir, "loop")); err != nil {
			t.Skip(err)
		}
		f.write("reviews.yaml", virtualService(v2))
		f.settles("http://reviews/", "v2")
	})
}
