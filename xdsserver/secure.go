package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	mesh "istio.io/api/mesh/v1alpha1"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// The server's own identity is spiffe://TRUST-DOMAIN/ns/sinew-system/sa/xdsserver.
const (
	ownNamespace      = "sinew-system"
	ownServiceAccount = "xdsserver"
	ownPath           = "/ns/" + ownNamespace + "/sa/" + ownServiceAccount
)

// retryCertificate is how soon the server asks again for a certificate of its own that
// it did not get.
const retryCertificate = time.Minute

// tlsFiles are a certificate, its key and the roots to trust, in PEM.
type tlsFiles struct{ cert, key, ca string }

func (t *tlsFiles) flags(f *pflag.FlagSet, what string) {
	f.StringVar(&t.cert, "cert-file", "", what+" (PEM)")
	f.StringVar(&t.key, "key-file", "", "its private key")
	f.StringVar(&t.ca, "ca-file", "", "the roots that certificates of the mesh lead to")
}

func (t *tlsFiles) set() bool { return *t != tlsFiles{} }

// check finds files that do not go together, or with --ca-dir.
func (t *tlsFiles) check(caDir string) error {
	switch {
	case !t.set():
		return nil
	case caDir != "":
		return errors.New("--ca-dir and --cert-file are two ways to get a certificate: use one")
	case t.cert == "" || t.key == "" || t.ca == "":
		return errors.New("--cert-file, --key-file and --ca-file go together")
	}
	return nil
}

// secured is what the port with TLS needs.
type secured struct {
	trust      *meshTrust
	ca         *ca.CA         // nil where certificates come from elsewhere
	kubernetes *ca.Kubernetes // nil where service account tokens are good for nothing
}

func (s *secured) close() {
	s.trust.Close()
	if s.ca != nil {
		s.ca.Close()
	}
	if s.kubernetes != nil {
		s.kubernetes.Close()
	}
}

// secure opens the certificate authority, or reads the certificate files.
func (s *server) secure(ctx context.Context, o *serveOptions, at net.Addr, running *sync.WaitGroup) (*secured, error) {
	s.mu.Lock()
	trustDomain := s.trustDomain
	s.mu.Unlock()
	td, err := identity.ParseTrustDomain(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain: %w", err)
	}
	out := &secured{trust: &meshTrust{own: td, aliases: s.trustDomainAliases}}
	if o.kubernetes.Audience != "" {
		if out.kubernetes, err = ca.NewKubernetes(trustDomain, o.kubernetes); err != nil {
			return nil, fmt.Errorf("--kubernetes-audience: %w", err)
		}
	}
	if o.caDir != "" {
		out.ca, out.trust.Source, err = s.issue(ctx, o, td, at, running)
	} else {
		out.trust.Source, err = readFiles(o.files, td, s.log)
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.secured = out
	s.mu.Unlock()
	return out, nil
}

// issue opens the certificate authority, which gives the server its own certificate too.
func (s *server) issue(ctx context.Context, o *serveOptions, td identity.TrustDomain, at net.Addr, running *sync.WaitGroup) (*ca.CA, source.Source, error) {
	options := ca.Options{TrustDomain: td.String(), Log: s.log, Admit: admit}
	if (o.issuer != ca.External{}) {
		options.External = &o.issuer
	}
	authority, err := ca.Open(ctx, o.caDir, options)
	if err != nil {
		return nil, nil, err
	}
	own, err := source.NewStatic(nil)
	k := &keeper{ca: authority, td: td, hosts: certificateHosts(at, o.hostnames), source: own, log: s.log}
	if err == nil {
		err = k.renew(authority.Bundle())
	}
	if err != nil {
		authority.Close()
		return nil, nil, fmt.Errorf("the server's certificate: %w", err)
	}
	running.Go(func() { k.run(ctx) })
	running.Go(func() { authority.Run(ctx) })
	s.log.Info("certificate authority is open", "dir", o.caDir, "trustDomain", td.String(), "identity", serverID(td.String()))
	return authority, own, nil
}

// readFiles is the source of a certificate from elsewhere, which must be there.
func readFiles(f tlsFiles, td identity.TrustDomain, log *slog.Logger) (source.Source, error) {
	files, err := source.NewFiles(source.FilesConfig{
		CertificateFile: f.cert, PrivateKeyFile: f.key, CACertificateFile: f.ca,
		TrustDomains: []identity.TrustDomain{td}, RefreshInterval: time.Minute,
	}, log)
	if err != nil {
		return nil, err
	}
	if _, err := files.Current(); err != nil {
		files.Close()
		return nil, err
	}
	return files, nil
}

// admit keeps the server's own identity from everybody else: with it one could serve
// policy to the whole mesh.
func admit(_ context.Context, who ca.Caller) error {
	id, err := identity.ParseID(who.ID)
	if err != nil {
		return err
	}
	if id.Path() == ownPath {
		return errors.New("this identity is the management server's own")
	}
	return nil
}

// certificateHosts are the names that clients without SPIFFE know the server by.
func certificateHosts(at net.Addr, more []string) []string {
	hosts := slices.Clone(more)
	if tcp, ok := at.(*net.TCPAddr); ok && !tcp.IP.IsUnspecified() {
		hosts = append(hosts, tcp.IP.String())
		if tcp.IP.IsLoopback() {
			hosts = append(hosts, "localhost")
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// keeper keeps the server's certificate and the bundle of the authority in force.
type keeper struct {
	ca     *ca.CA
	td     identity.TrustDomain
	hosts  []string
	source *source.Static
	log    *slog.Logger

	material source.Material
}

// renew gets a new certificate.
func (k *keeper) renew(b ca.Bundle) error {
	cert, err := k.ca.ServerCertificate(ownPath, k.hosts, 0)
	if err != nil {
		return err
	}
	k.material = source.Material{Certificate: cert}
	return k.trust(b)
}

// trust puts a bundle in force.
func (k *keeper) trust(b ca.Bundle) error {
	bundle, err := identity.NewBundle(b.Roots, nil)
	if err != nil {
		return err
	}
	m := k.material
	m.Bundles, m.Roots = identity.BundleSet{k.td: bundle}, b.Pool()
	return k.source.Set(&m)
}

func (k *keeper) run(ctx context.Context) {
	bundles := k.ca.Watch(ctx)
	due := time.NewTimer(k.untilHalf())
	defer due.Stop()
	for {
		select {
		case b, more := <-bundles:
			if !more {
				return
			}
			if err := k.trust(b); err != nil {
				k.log.Error("the new bundle is not in force", "version", b.Version, "error", err)
			}
		case <-due.C:
			if err := k.renew(k.ca.Bundle()); err != nil {
				k.log.Error("the server's certificate is not renewed, will be tried again", "error", err)
				due.Reset(retryCertificate)
				continue
			}
			due.Reset(k.untilHalf())
		}
	}
}

// untilHalf is the time to half of the certificate's life.
func (k *keeper) untilHalf() time.Duration {
	return max(time.Until(k.material.Certificate.Leaf.NotAfter)/2, time.Second)
}

// meshTrust is a source whose roots vouch for the mesh's trust domain under its former
// names too, as MeshConfig lists them.
type meshTrust struct {
	source.Source
	own     identity.TrustDomain
	aliases func() []string
}

func (t *meshTrust) Current() (*source.Material, error) {
	m, err := t.Source.Current()
	if err != nil {
		return nil, err
	}
	own := m.Bundles[t.own]
	aliases := t.aliases()
	if own == nil || len(aliases) == 0 {
		return m, nil
	}
	out := *m
	out.Bundles = maps.Clone(m.Bundles)
	for _, name := range aliases {
		if td, err := identity.ParseTrustDomain(name); err == nil && out.Bundles[td] == nil {
			out.Bundles[td] = own
		}
	}
	return &out, nil
}

func (s *server) trustDomainAliases() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aliases
}

// knownTrustDomain is the trust domain that the flag or the authority's state says; ""
// where policy is to say it.
func (o *serveOptions) knownTrustDomain() (string, error) {
	name := o.trustDomain
	if name != "" {
		if _, err := identity.ParseTrustDomain(name); err != nil {
			return "", fmt.Errorf("--trust-domain: %w", err)
		}
	}
	if o.caDir == "" {
		return name, nil
	}
	b, err := ca.ReadBundle(o.caDir)
	switch {
	case err != nil:
		// There is none yet, or ca.Open will say what is wrong with it.
		return name, nil
	case name != "" && name != b.TrustDomain:
		return "", fmt.Errorf("--trust-domain is %q, and the certificate authority in %s is that of %q", name, o.caDir, b.TrustDomain)
	}
	return b.TrustDomain, nil
}

// settleTrustDomain makes a policy speak of the mesh's trust domain, which does not
// change while certificates of it are in use. The error says that MeshConfig names another.
// The lock is held, and nobody else has the set yet.
func (s *server) settleTrustDomain(set *policy.Set, first bool) error {
	named := set.MeshConfig != nil && set.MeshConfig.Spec.GetTrustDomain() != ""
	if !s.fixed || first && s.trustDomain == "" {
		s.trustDomain = set.MeshConfig.TrustDomain()
	}
	s.aliases = slices.Clone(set.MeshConfig.TrustDomainAliases())
	read := set.MeshConfig.TrustDomain()
	if read == s.trustDomain {
		return nil
	}
	own := &policy.MeshConfig{Spec: &mesh.MeshConfig{}}
	if set.MeshConfig != nil {
		own = &policy.MeshConfig{Meta: set.MeshConfig.Meta, Spec: proto.Clone(set.MeshConfig.Spec).(*mesh.MeshConfig)}
	}
	own.Spec.TrustDomain = s.trustDomain
	set.MeshConfig = own
	if named {
		return fmt.Errorf("%s: MeshConfig names the trust domain %q, and the mesh's is %q", own.At, read, s.trustDomain)
	}
	return nil
}
