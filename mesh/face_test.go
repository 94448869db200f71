package mesh_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// TestOptionsExclude: an option that could have no effect is an error, which
// names it.
func TestOptionsExclude(t *testing.T) {
	src, err := source.NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		options []mesh.Option
		want    string
	}{
		"standalone with a bootstrap": {[]mesh.Option{mesh.WithoutControlPlane(), mesh.WithBootstrapFile("x")}, "WithoutControlPlane and a bootstrap"},
		"standalone with an identity": {[]mesh.Option{mesh.WithIdentity(src), mesh.WithoutControlPlane()}, "WithoutControlPlane and WithIdentity"},
		"two bootstraps":              {[]mesh.Option{mesh.WithBootstrap([]byte("{}")), mesh.WithBootstrapFile("x")}, "WithBootstrap and WithBootstrapFile"},
		"an unknown choice":           {[]mesh.Option{mesh.WithoutControlPlane(), mesh.WithExternalHosts(7)}, "WithExternalHosts: 7"},
		"a file that is not there":    {[]mesh.Option{mesh.WithBootstrapFile("no-such-file")}, "no-such-file"},
		"a negative duration":         {[]mesh.Option{mesh.WithDefaultPolicy(mesh.Policy{PerTryTimeout: -1})}, "WithDefaultPolicy: PerTryTimeout: -1ns is negative"},
		"an unknown condition":        {[]mesh.Option{mesh.WithDefaultPolicy(mesh.Policy{Retries: 1, RetryOn: "5xx,often"})}, "unknown condition often"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := mesh.New(t.Context(), tt.options...)
			if err == nil {
				m.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v: it should name %q", err, tt.want)
			}
		})
	}
}

// TestPerTryTimeoutAlone: the limit on an attempt holds without retries too.
func TestPerTryTimeoutAlone(t *testing.T) {
	leak.Check(t)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	m, err := mesh.New(t.Context(), mesh.WithoutControlPlane(), mesh.WithDefaultPolicy(mesh.Policy{PerTryTimeout: 50 * time.Millisecond}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	_, err = m.Client().Get(server.URL)
	var timeout *mesh.TimeoutError
	if !errors.As(err, &timeout) || timeout.Limit != "per_try_timeout" {
		t.Errorf("%v, want the attempt's time limit", err)
	}
}

// TestNoCertificateForTheControlPlane: a process that can not get a certificate
// has no policy, and its requests say why.
func TestNoCertificateForTheControlPlane(t *testing.T) {
	leak.Check(t)
	absent := filepath.Join(t.TempDir(), "absent")
	for name, plugin := range map[string]string{
		"files": fmt.Sprintf(`{"plugin_name": "file_watcher", "config": {"certificate_file": %[1]q, "private_key_file": %[1]q, "ca_certificate_file": %[1]q}}`, absent),
		"token": fmt.Sprintf(`{"plugin_name": "csr", "config": {"address": "127.0.0.1:1", "ca_fingerprint": %q, "join_token_file": %q}}`, strings.Repeat("0", 64), absent),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := mesh.New(t.Context(), mesh.WithLogger(slog.New(slog.DiscardHandler)), mesh.WithPolicyWait(50*time.Millisecond), mesh.WithBootstrap(fmt.Appendf(nil, `{
				"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "certificate_provider", "config": %s}]}],
				"node": {"id": "a"}}`, plugin)))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			_, err = m.Client().Get("http://reviews/")
			var notReady *mesh.NotReadyError
			if !errors.As(err, &notReady) {
				t.Fatalf("%v, want a NotReadyError", err)
			}
			if !errors.Is(err, source.ErrNotReady) || !strings.Contains(err.Error(), absent) {
				t.Errorf("%v: it should name %s", err, absent)
			}
		})
	}
}

// TestOutsideTheMesh: the error of a host that the control plane does not know
// tells so, for it may be a service that was misspelt.
func TestOutsideTheMesh(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lis.Close()
	w := meshtest.New(t, meshtest.Dead("reviews", "v1"))
	_, err = w.Client().Get("http://" + lis.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "(outside the mesh): ") {
		t.Errorf("%v: it should say that the host is outside the mesh", err)
	}
	if _, err = w.Client().Get("http://reviews/"); err == nil || strings.Contains(err.Error(), "outside the mesh") {
		t.Errorf("%v: the host is one of the mesh", err)
	}
}
