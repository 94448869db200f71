package source

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials/tls/certprovider"
	// The package that must not win, and what programs import that drags it in.
	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
	_ "google.golang.org/grpc/xds"

	"github.com/sinew-mesh/sinew/identity"
)

// build makes a provider as gRPC does from a bootstrap.
func build(t testing.TB, plugin string, config json.RawMessage, o certprovider.BuildOptions) certprovider.Provider {
	t.Helper()
	c, err := certprovider.ParseConfig(plugin, config)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRegistrationOrder: the one that registers last counts, and Go initialises
// a package after those that it imports. Without the import the order of two
// packages would follow from their paths and from whatever else they import.
func TestRegistrationOrder(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "certprovider.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool {
		return i.Path.Value == `"google.golang.org/grpc/credentials/tls/certprovider/pemfile"`
	}) {
		t.Error("gRPC's file_watcher may register itself after ours")
	}
}

// TestProviderOutranksPemfile: under every plugin's name gRPC finds ours.
func TestProviderOutranksPemfile(t *testing.T) {
	if pemfile.PluginName != FilesPlugin {
		t.Fatal(pemfile.PluginName)
	}
	_, config, _ := written(t, time.Hour)
	before := openShared()
	p := build(t, pemfile.PluginName, config, certprovider.BuildOptions{WantIdentity: true})
	if openShared() != before+1 {
		t.Error("gRPC's file_watcher is not ours")
	}
	p.Close()
	if openShared() != before {
		t.Error("a provider that is closed keeps its source")
	}
	for plugin, config := range map[string]string{
		CAPlugin:          `{"address":"ca.test:15012","ca_certificate_file":"/none","token_file":"/none"}`,
		WorkloadAPIPlugin: `{"socket":"unix:///none"}`,
	} {
		if _, err := certprovider.ParseConfig(plugin, json.RawMessage(config)); err != nil {
			t.Errorf("%s: %v", plugin, err)
		}
		if _, err := certprovider.ParseConfig(plugin, json.RawMessage(`{"else":1}`)); err == nil {
			t.Errorf("%s: nonsense is accepted", plugin)
		}
	}
	for _, bad := range []any{nil, "x", json.RawMessage(`{}`), json.RawMessage(`x`)} {
		if _, err := certprovider.ParseConfig(FilesPlugin, bad); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

func TestProviderMaterial(t *testing.T) {
	_, config, root := written(t, time.Hour)
	src, err := Shared(FilesPlugin, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	m := must(t, src)
	before := openShared()
	for _, o := range []certprovider.BuildOptions{{WantIdentity: true}, {WantRoot: true}, {WantIdentity: true, WantRoot: true, CertName: "default"}} {
		p := build(t, FilesPlugin, config, o)
		defer p.Close()
		km, err := p.KeyMaterial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := p.KeyMaterial(t.Context()); err != nil || again != km {
			t.Errorf("made anew for each handshake: %v", err)
		}
		if o.WantIdentity != (len(km.Certs) == 1) || o.WantIdentity && km.Certs[0].Leaf != m.Certificate.Leaf {
			t.Errorf("%+v: certificates %v", o, km.Certs)
		}
		if o.WantRoot != (km.Roots != nil) || o.WantRoot != (len(km.SPIFFEBundleMap) == 1) {
			t.Errorf("%+v: roots %v, bundles %v", o, km.Roots, km.SPIFFEBundleMap)
		}
		if o.WantRoot && !km.SPIFFEBundleMap["td.example"].X509Authorities()[0].Equal(root.cert) {
			t.Error("another root")
		}
	}
	if openShared() != before {
		t.Error("gRPC's providers have a source of their own")
	}
}

// TestProviderTrustOnly: roots without an identity, for peers known by name.
func TestProviderTrustOnly(t *testing.T) {
	files := newFileSet(t)
	root := sign(t, rootTemplate("root"), nil, nil)
	files.write(t, files.ca, root.pem())
	config := json.RawMessage(fmt.Sprintf(`{"ca_certificate_file":%q}`, files.ca))
	p := build(t, FilesPlugin, config, certprovider.BuildOptions{WantRoot: true})
	defer p.Close()
	if km, err := p.KeyMaterial(t.Context()); err != nil || km.Roots == nil || km.SPIFFEBundleMap != nil {
		t.Errorf("%+v, %v", km, err)
	}
	identity := build(t, FilesPlugin, config, certprovider.BuildOptions{WantIdentity: true})
	defer identity.Close()
	if km, err := identity.KeyMaterial(t.Context()); err == nil {
		t.Errorf("an identity out of nowhere: %+v", km)
	}
	only := newFileSet(t)
	w := workload(t, root, workloadID, time.Hour)
	only.write(t, only.cert, w.pem())
	only.write(t, only.key, w.keyPEM(t))
	none := build(t, FilesPlugin, json.RawMessage(fmt.Sprintf(`{"certificate_file":%q,"private_key_file":%q}`, only.cert, only.key)), certprovider.BuildOptions{WantRoot: true})
	defer none.Close()
	if km, err := none.KeyMaterial(t.Context()); err == nil || !errors.Is(err, errNoTrust) {
		t.Errorf("the roots of the operating system would be used: %+v, %v", km, err)
	}
}

func TestProviderWaits(t *testing.T) {
	files := newFileSet(t)
	synctest.Test(t, func(t *testing.T) {
		p := build(t, FilesPlugin, files.json(), certprovider.BuildOptions{WantIdentity: true, WantRoot: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := p.KeyMaterial(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrNotReady) {
			t.Errorf("%v", err)
		}
		root := sign(t, rootTemplate("root"), nil, nil)
		w := workload(t, root, workloadID, time.Hour)
		files.write(t, files.cert, w.pem())
		files.write(t, files.key, w.keyPEM(t))
		files.write(t, files.ca, root.pem())
		first, err := p.KeyMaterial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next := workload(t, root, workloadID, 90*time.Minute)
		files.write(t, files.cert, next.pem())
		files.write(t, files.key, next.keyPEM(t))
		time.Sleep(time.Minute)
		if km, err := p.KeyMaterial(t.Context()); err != nil || km == first || km.Certs[0].Leaf.SerialNumber.Cmp(next.cert.SerialNumber) != 0 {
			t.Errorf("after a rotation: %v, %v", km, err)
		}
		time.Sleep(2 * time.Hour)
		begin := time.Now()
		if _, err := p.KeyMaterial(t.Context()); !errors.Is(err, ErrNotReady) || time.Since(begin) != 0 {
			t.Errorf("expired: %v after %v", err, time.Since(begin))
		}
		p.Close()
	})
}

// TestProviderClosedWhileWaited for: who waits is told.
func TestProviderClosedWhileWaitedFor(t *testing.T) {
	files := newFileSet(t)
	synctest.Test(t, func(t *testing.T) {
		src, err := Shared(FilesPlugin, files.json(), nil)
		if err != nil {
			t.Fatal(err)
		}
		p := &provider{src: src, options: certprovider.BuildOptions{WantIdentity: true}, closed: make(chan struct{})}
		got := make(chan error)
		go func() {
			_, err := p.KeyMaterial(context.Background())
			got <- err
		}()
		synctest.Wait()
		p.Close()
		p.Close()
		if err := <-got; err == nil || !strings.Contains(err.Error(), "closed") {
			t.Error(err)
		}
	})
}

// TestProviderRoots: each trust domain has its own roots and no others.
func TestProviderRoots(t *testing.T) {
	a, b := sign(t, rootTemplate("a"), nil, nil), sign(t, rootTemplate("b"), nil, nil)
	set := identity.BundleSet{}
	for name, root := range map[string]*signed{"a.example": a, "b.example": b} {
		td, err := identity.ParseTrustDomain(name)
		if err != nil {
			t.Fatal(err)
		}
		if set[td], err = identity.NewBundle([]*x509.Certificate{root.cert}, nil); err != nil {
			t.Fatal(err)
		}
	}
	p := &provider{options: certprovider.BuildOptions{WantRoot: true}}
	km, err := p.material(&Material{Bundles: set})
	if err != nil || len(km.SPIFFEBundleMap) != 2 {
		t.Fatalf("%+v, %v", km, err)
	}
	for name, root := range map[string]*signed{"a.example": a, "b.example": b} {
		bundle := km.SPIFFEBundleMap[name]
		if got := bundle.X509Authorities(); len(got) != 1 || !got[0].Equal(root.cert) || bundle.TrustDomain().Name() != name {
			t.Errorf("%s: %v", name, got)
		}
	}
}
