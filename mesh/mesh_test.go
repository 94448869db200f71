package mesh

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
)

func TestNewNeedsABootstrap(t *testing.T) {
	t.Setenv("GRPC_XDS_BOOTSTRAP", "")
	t.Setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "")
	if _, err := New(t.Context()); !errors.Is(err, ErrNoBootstrap) {
		t.Errorf("error %v, want ErrNoBootstrap", err)
	}
}

// bootstrapFor returns a bootstrap document for a server address.
func bootstrapFor(address string) string {
	return `{"xds_servers":[{"server_uri":"` + address + `","channel_creds":[{"type":"insecure"}]}],
		"node":{"id":"sidecar~127.0.0.1~test.default~default.svc.cluster.local"},
		"server_listener_resource_name_template":"xds.istio.io/grpc/lds/inbound/%s"}`
}

func TestBootstrapSources(t *testing.T) {
	leak.Check(t)
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, []byte(bootstrapFor("file.invalid:1")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		env     map[string]string
		options []Option
		want    string // the server's address, or
		err     string // a part of the error
	}{
		{name: "document", options: []Option{WithBootstrap([]byte(bootstrapFor("doc.invalid:1")))}, env: map[string]string{"GRPC_XDS_BOOTSTRAP": file}, want: "doc.invalid:1"},
		{name: "file", options: []Option{WithBootstrapFile(file)}, want: "file.invalid:1"},
		{name: "environment's file", env: map[string]string{"GRPC_XDS_BOOTSTRAP": file, "GRPC_XDS_BOOTSTRAP_CONFIG": bootstrapFor("env.invalid:1")}, want: "file.invalid:1"},
		{name: "environment", env: map[string]string{"GRPC_XDS_BOOTSTRAP_CONFIG": bootstrapFor("env.invalid:1")}, want: "env.invalid:1"},
		{name: "no such file", options: []Option{WithBootstrapFile(file + "x")}, err: "no such file"},
		{name: "not JSON", options: []Option{WithBootstrap([]byte("{"))}, err: "bootstrap"},
		{name: "both", options: []Option{WithBootstrap([]byte("{}")), WithBootstrapFile(file)}, err: "exclude each other"},
		{name: "none wanted", options: []Option{WithoutControlPlane(), WithBootstrapFile(file)}, err: "exclude each other"},
		{name: "bad policy", options: []Option{WithoutControlPlane(), WithDefaultPolicy(Policy{RetryOn: "sometimes"})}, err: "unknown condition sometimes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("GRPC_XDS_BOOTSTRAP", c.env["GRPC_XDS_BOOTSTRAP"])
			t.Setenv("GRPC_XDS_BOOTSTRAP_CONFIG", c.env["GRPC_XDS_BOOTSTRAP_CONFIG"])
			m, err := New(t.Context(), c.options...)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if got := m.bootstrap.Servers[0].URI; got != c.want {
				t.Errorf("server %s, want %s", got, c.want)
			}
		})
	}
}

// TestControlPlaneAbsent: New returns at once, and a request fails with an
// error that says what is missing when its deadline or the policy wait is over.
func TestControlPlaneAbsent(t *testing.T) {
	leak.Check(t)
	// Nobody listens there, and the kernel gives the port to nobody.
	m, err := New(t.Context(), WithBootstrap([]byte(bootstrapFor("127.0.0.1:1"))), WithPolicyWait(200*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var notReady *NotReadyError
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err = m.Client().Get("http://reviews:9080/"); !errors.As(err, &notReady) || notReady.Host != "reviews:9080" {
			t.Fatalf("error %v, want a NotReadyError", err)
		}
		// The first attempt to connect may take longer than the request waits.
		if strings.Contains(err.Error(), "connection refused") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("error %v, want one that names the refused connection", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://ratings:9080/", nil)
	if _, err = m.Client().Do(req); !errors.As(err, &notReady) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want a NotReadyError with the caller's deadline", err)
	}
	// The server side is closed without policy.
	lis, err := m.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: m.Handler(http.NotFoundHandler())}
	go func() { _ = server.Serve(lis) }()
	defer server.Close()
	resp, err := http.Get("http://" + lis.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 503 || !strings.Contains(string(b), `"not_ready"`) {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

func TestWithoutControlPlane(t *testing.T) {
	leak.Check(t)
	calls := 0
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls++; calls%2 == 1 {
			w.WriteHeader(503)
		}
	}))
	defer backend.Close()
	m, err := New(t.Context(), WithoutControlPlane(), WithDefaultPolicy(Policy{Retries: 1, RetryOn: "5xx", Timeout: time.Minute}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for method, want := range map[string]int{"GET": 200, "POST": 503} {
		calls = 0
		req, _ := http.NewRequestWithContext(t.Context(), method, backend.URL, nil)
		resp, err := m.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d: only an idempotent request is tried again after a 5xx", method, resp.StatusCode, want)
		}
	}
	t.Run("external hosts refused", func(t *testing.T) {
		m, err := New(t.Context(), WithoutControlPlane(), WithExternalHosts(RefuseExternal))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		var noRoute *NoRouteError
		if _, err := m.Client().Get(backend.URL); !errors.As(err, &noRoute) {
			t.Errorf("error %v, want NoRouteError", err)
		}
	})
}

func TestServeDrains(t *testing.T) {
	leak.Check(t)
	m, err := New(t.Context(), WithoutControlPlane(), WithDrainTimeout(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	lis, err := m.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := lis.Addr().String()
	entered, leave := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- m.ServeListener(ctx, lis, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-leave
			_, _ = io.WriteString(w, r.Proto)
		}))
	}()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	answer := make(chan string, 1)
	go func() {
		resp, err := (&http.Client{Transport: transport}).Get("http://" + address + "/")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answer <- string(b)
	}()
	<-entered
	cancel()
	close(leave)
	if got := <-answer; got != "HTTP/2.0" {
		t.Errorf("the request in flight got %q, want it to finish over h2c", got)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
