package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// WithIdentity has the process prove who it is with a source of the caller's
// own, such as source.NewStatic's, in place of every certificate provider that
// policy may name: those that the bootstrap has, and "default". The channel to
// the control plane keeps what the bootstrap says. The caller closes the source,
// after the Mesh. Default: the bootstrap's certificate_providers. It excludes
// WithoutControlPlane, under which nothing asks for a certificate.
func WithIdentity(src source.Source) Option {
	return func(c *config) error {
		if src == nil {
			return errors.New("WithIdentity: the source is nil")
		}
		c.identity = src
		return nil
	}
}

// identities opens the sources of certificates and trust that policy names.
type identities struct {
	providers map[string]bootstrap.CertificateProvider
	log       *slog.Logger

	mu sync.Mutex
	// kept has one use of each certificate provider that was ever asked for, and
	// of the channel's: so a listener that goes and comes does not ask for
	// another certificate.
	kept   map[string]source.Source
	closed bool

	document []byte // the bootstrap for gRPC
	withdraw func() // nil without WithIdentity
}

func newIdentities(c *config, b *bootstrap.Config) (*identities, error) {
	s := &identities{log: c.log, kept: make(map[string]source.Source)}
	if b == nil {
		return s, nil
	}
	s.providers, s.document = b.CertificateProviders, b.Raw
	if c.identity == nil {
		return s, nil
	}
	// gRPC makes its providers from a bootstrap and nothing else, so ours is in one.
	config, withdraw := source.Publish(c.identity)
	own := bootstrap.CertificateProvider{Plugin: source.CallerPlugin, Config: config}
	s.providers = map[string]bootstrap.CertificateProvider{"default": own}
	for name := range b.CertificateProviders {
		s.providers[name] = own
	}
	with := *b
	with.CertificateProviders = s.providers
	document, err := bootstrap.Document(&with)
	if err != nil {
		withdraw()
		return nil, err
	}
	s.document, s.withdraw = document, withdraw
	return s, nil
}

// source returns the source that presents the certificate and verifies with the
// trust. Whoever is given it closes it.
func (s *identities) source(c snapshot.CertificateSource, t snapshot.TrustSource) (source.Source, error) {
	certificate, err := s.certificate(c)
	if err != nil {
		return nil, err
	}
	trust, err := s.trust(t)
	if err != nil {
		if certificate != nil {
			_ = certificate.Close()
		}
		return nil, err
	}
	return source.Combine(certificate, trust), nil
}

func (s *identities) certificate(c snapshot.CertificateSource) (source.Source, error) {
	switch {
	case c.Instance != "":
		return s.instance(c.Instance)
	case c.CertificateFile != "":
		return s.files(map[string]string{"certificate_file": c.CertificateFile, "private_key_file": c.KeyFile})
	}
	return nil, nil
}

func (s *identities) trust(t snapshot.TrustSource) (source.Source, error) {
	switch {
	case t.Instance != "":
		return s.instance(t.Instance)
	case t.CAFile != "":
		return s.files(map[string]string{"ca_certificate_file": t.CAFile})
	case t.System:
		return source.System(), nil
	}
	return nil, nil
}

func (s *identities) instance(name string) (source.Source, error) {
	p, ok := s.providers[name]
	if !ok {
		return nil, fmt.Errorf("policy names the certificate provider instance %q, which the bootstrap's certificate_providers do not have", name)
	}
	src, err := source.Shared(p.Plugin, p.Config, s.log)
	if err != nil {
		return nil, fmt.Errorf("certificate provider instance %q: %w", name, err)
	}
	s.mu.Lock()
	missing := !s.closed && s.kept[name] == nil
	s.mu.Unlock()
	if missing {
		if use, err := source.Shared(p.Plugin, p.Config, s.log); err == nil {
			s.keep(name, use)
		}
	}
	return src, nil
}

func (s *identities) files(config map[string]string) (source.Source, error) {
	b, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	return source.Shared(source.FilesPlugin, b, s.log)
}

// keep holds a use of a source until the Mesh closes, unless there is one.
func (s *identities) keep(name string, src source.Source) {
	s.mu.Lock()
	unwanted := s.closed || s.kept[name] != nil
	if !unwanted {
		s.kept[name] = src
	}
	s.mu.Unlock()
	if unwanted {
		_ = src.Close()
	}
}

// channel makes the credentials of the channel to an xDS server.
func (s *identities) channel(c bootstrap.ChannelCreds) (credentials.TransportCredentials, error) {
	creds, src, err := tlsconfig.BuildChannelCredentials(c.Config, s.log)
	if err != nil {
		return nil, err
	}
	s.keep(channelOf+string(c.Config), src)
	return creds, nil
}

const channelOf = "channel "

// trouble says which channels to the control plane wait for a certificate, and why.
func (s *identities) trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.kept)) {
		if !strings.HasPrefix(name, channelOf) {
			continue
		}
		if _, err := s.kept[name].Current(); err != nil {
			errs = append(errs, fmt.Errorf("the channel to the control plane has no certificate: %w", err))
		}
	}
	return errors.Join(errs...)
}

// status returns the health of the sources that say it, each once.
func (s *identities) status() []source.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []source.Status
	for _, name := range slices.Sorted(maps.Keys(s.kept)) {
		if status, ok := source.StatusOf(s.kept[name]); ok && !slices.Contains(out, status) {
			out = append(out, status)
		}
	}
	return out
}

func (s *identities) close() {
	s.mu.Lock()
	kept := s.kept
	s.kept, s.closed = nil, true
	s.mu.Unlock()
	if s.withdraw != nil {
		s.withdraw()
	}
	for _, src := range kept {
		_ = src.Close()
	}
}
