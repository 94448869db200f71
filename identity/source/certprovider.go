package source

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials/tls/certprovider"
	// gRPC's own file_watcher registers itself when it is initialised, which
	// this import makes happen before the registration below: the later one
	// counts. It writes private keys into its log when a file is torn.
	_ "google.golang.org/grpc/credentials/tls/certprovider/pemfile"
)

// The registration is for the whole process: every gRPC channel and server in
// it that takes its certificates through a bootstrap's certificate_providers
// gets them from the shared sources of this package.
func init() {
	for _, plugin := range []string{FilesPlugin, CAPlugin, WorkloadAPIPlugin, CallerPlugin} {
		certprovider.Register(providerBuilder{plugin})
	}
}

// providerBuilder makes gRPC's certificate providers of shared sources.
type providerBuilder struct{ plugin string }

func (b providerBuilder) Name() string { return b.plugin }

func (b providerBuilder) ParseConfig(config any) (*certprovider.BuildableConfig, error) {
	raw, ok := config.(json.RawMessage)
	if !ok {
		return nil, fmt.Errorf("certificate provider plugin %q: a configuration of type %T", b.plugin, config)
	}
	canonical, err := canonicalJSON(raw)
	if err != nil {
		return nil, fmt.Errorf("certificate provider plugin %q: %w", b.plugin, err)
	}
	if err := Check(b.plugin, canonical); err != nil {
		return nil, err
	}
	return certprovider.NewBuildableConfig(b.plugin, canonical, func(o certprovider.BuildOptions) certprovider.Provider {
		src, err := Shared(b.plugin, canonical, nil)
		if err != nil {
			return nil // gRPC makes an error of it; Check has found all that the user can change
		}
		return &provider{src: src, options: o, closed: make(chan struct{})}
	}), nil
}

// provider is a source as gRPC asks it.
type provider struct {
	src     Source
	options certprovider.BuildOptions
	last    atomic.Pointer[providerMaterial]
	once    sync.Once
	closed  chan struct{}
}

// providerMaterial is what was made of a source's material.
type providerMaterial struct {
	of *Material
	as *certprovider.KeyMaterial
}

// KeyMaterial waits for the first material, as gRPC's own providers do; a
// certificate that has expired or was withdrawn is an error at once.
func (p *provider) KeyMaterial(ctx context.Context) (*certprovider.KeyMaterial, error) {
	for {
		changed := p.src.Changed()
		m, err := p.src.Current()
		if err == nil {
			return p.material(m)
		}
		var notReady *NotReadyError
		if !errors.As(err, &notReady) || notReady.Revoked || !notReady.Expired.IsZero() {
			return nil, err
		}
		select {
		case <-changed:
		case <-p.closed:
			return nil, errors.New("the certificate provider is closed")
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func (p *provider) material(m *Material) (*certprovider.KeyMaterial, error) {
	if last := p.last.Load(); last != nil && last.of == m {
		return last.as, nil
	}
	km := &certprovider.KeyMaterial{}
	if p.options.WantIdentity {
		if m.Certificate == nil {
			return nil, errors.New("the identity source has trust bundles but no certificate")
		}
		km.Certs = []tls.Certificate{*m.Certificate}
	}
	if p.options.WantRoot {
		km.Roots = m.Roots
		// With bundles gRPC chooses roots by the peer's trust domain, as
		// identity.VerifySVID does, and accepts no peer without a SPIFFE ID.
		for td, b := range m.Bundles {
			name, err := spiffeid.TrustDomainFromString(td.String())
			if err != nil {
				return nil, err
			}
			if km.SPIFFEBundleMap == nil {
				km.SPIFFEBundleMap = make(map[string]*spiffebundle.Bundle)
			}
			km.SPIFFEBundleMap[td.String()] = spiffebundle.FromX509Authorities(name, b.Roots())
		}
		if km.Roots == nil && km.SPIFFEBundleMap == nil {
			// gRPC would take the roots of the operating system.
			return nil, errNoTrust
		}
	}
	p.last.Store(&providerMaterial{m, km})
	return km, nil
}

// Close gives back the source.
func (p *provider) Close() {
	p.once.Do(func() {
		close(p.closed)
		_ = p.src.Close()
	})
}
