package meshtest

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
)

const (
	trustDomain = "cluster.local"
	serverPath  = "/ns/sinew-system/sa/xdsserver"
)

// MutualTLS gives the world a certificate authority. The control plane is
// reached over mutual TLS, and every instance and client is a member of the mesh
// with an identity, spiffe://cluster.local/ns/default/sa/NAME: instances that of
// their service, Client and Mesh that of "test", and As any other. Calls are
// mutual TLS, because the instances are labelled so; policy says whether
// plaintext is let in (PERMISSIVE, the default) and who may call what.
func MutualTLS() Option {
	return func(w *World) error {
		if w.authority == nil {
			w.authority = &authority{}
		}
		return nil
	}
}

// CertificateLife sets how long certificates are valid, with MutualTLS, so that
// a test sees them renewed, at half of it. Default: an hour. It is three seconds
// at least, because certificates tell time in whole ones, and a minute at most.
func CertificateLife(life time.Duration) Option {
	return func(w *World) error {
		if life < 3*time.Second || life > time.Minute {
			return fmt.Errorf("CertificateLife: %s is not from three seconds to a minute", life)
		}
		if err := MutualTLS()(w); err != nil {
			return err
		}
		w.authority.options.WorkloadTTL, w.authority.options.MaxTTL = life, life
		return nil
	}
}

// As returns a mesh for a workload with the service account, in the namespace
// default, which gets a certificate of its own. It needs MutualTLS.
func (w *World) As(serviceAccount string) *mesh.Mesh {
	w.t.Helper()
	if w.authority == nil {
		w.t.Fatal("meshtest: As needs MutualTLS")
	}
	return w.join(w.BootstrapAs(serviceAccount))
}

// BootstrapAs returns an xDS bootstrap document for a workload with the service
// account, in the namespace default. With MutualTLS it has a join token of its
// own, which is good for one process.
func (w *World) BootstrapAs(serviceAccount string) []byte {
	w.t.Helper()
	document, err := w.document(serviceAccount)
	if err != nil {
		w.t.Fatalf("meshtest: %v", err)
	}
	return document
}

// RotateRoot gives the world's authority a new root, as a real one does it in
// days: the root is published, signs when every member has it, and the old one
// goes when no member has a certificate under it any more. Each takes half of a
// certificate's life or so. It needs CertificateLife, and fails the test where a
// member does not renew in time.
func (w *World) RotateRoot() {
	w.t.Helper()
	if w.authority == nil || w.authority.options.MaxTTL == 0 {
		w.t.Fatal("meshtest: RotateRoot needs CertificateLife")
	}
	if err := w.authority.rotate(); err != nil {
		w.t.Fatalf("meshtest: %v", err)
	}
}

// listen makes a member of the mesh for an instance of a service.
func (w *World) listen(service string) (*mesh.Mesh, net.Listener, error) {
	m := w.As(service)
	lis, err := m.Listen(context.Background(), "tcp", "127.0.0.1:0")
	return m, lis, err
}

// authority is the world's certificate authority and the server's own certificate.
type authority struct {
	options ca.Options
	dir     string
	ca      *ca.CA
	own     *source.Static

	mu     sync.Mutex
	tokens []joinToken
	// members are those who were given a mesh, with how they get their certificate.
	members map[*mesh.Mesh]json.RawMessage
}

func (a *authority) open(ctx context.Context, w *World) (err error) {
	// Not TempDir of the test: its folder is gone before the meshes of the world are closed.
	if a.dir, err = os.MkdirTemp("", "meshtest-"); err != nil {
		return err
	}
	w.t.Cleanup(func() { os.RemoveAll(a.dir) })
	a.options.TrustDomain, a.options.Log = trustDomain, w.log
	if a.ca, err = ca.Open(ctx, filepath.Join(a.dir, "ca"), a.options); err != nil {
		return err
	}
	w.t.Cleanup(func() { a.ca.Close() })
	if a.own, err = source.NewStatic(nil); err != nil {
		return err
	}
	if err := a.renew(); err != nil {
		return err
	}
	bundles := a.ca.Watch(ctx)
	life := a.options.MaxTTL
	if life == 0 {
		life = time.Hour
	}
	due := time.NewTicker(life / 3)
	go func() {
		defer due.Stop()
		for {
			select {
			case _, more := <-bundles:
				if !more {
					return
				}
			case <-due.C:
			}
			if err := a.renew(); err != nil {
				w.log.Error("meshtest: the server has no new certificate", "error", err)
			}
		}
	}()
	return nil
}

// renew gives the server a new certificate and the bundle of the moment.
func (a *authority) renew() error {
	td, err := identity.ParseTrustDomain(trustDomain)
	if err != nil {
		return err
	}
	b := a.ca.Bundle()
	bundle, err := identity.NewBundle(b.Roots, nil)
	if err != nil {
		return err
	}
	certificate, err := a.ca.ServerCertificate(serverPath, []string{"127.0.0.1"}, 0)
	if err != nil {
		return err
	}
	return a.own.Set(&source.Material{Certificate: certificate, Bundles: identity.BundleSet{td: bundle}, Roots: b.Pool()})
}

// rotate takes the authority through a change of roots. What the authority would
// only wait for is looked at instead, and then its clock is put forward.
func (a *authority) rotate() error {
	ctx := context.Background()
	if err := a.ca.Rotate(ctx); err != nil {
		return err
	}
	roots := a.ca.Bundle().Roots
	next := roots[len(roots)-1]
	if err := a.await("has the new root", func(m *source.Material) bool {
		return slices.ContainsFunc(m.Bundles[m.ID.TrustDomain()].Roots(), next.Equal)
	}); err != nil {
		return err
	}
	if err := a.leave(ctx, "prepared"); err != nil {
		return err
	}
	bundle, err := identity.NewBundle([]*x509.Certificate{next}, nil)
	if err != nil {
		return err
	}
	if err := a.await("has a certificate under the new root", func(m *source.Material) bool {
		var chain []*x509.Certificate
		for _, der := range m.Certificate.Certificate {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return false
			}
			chain = append(chain, c)
		}
		_, err := identity.VerifySVID(chain, identity.BundleSet{m.ID.TrustDomain(): bundle}, time.Now(), identity.UsageAny)
		return err == nil
	}); err != nil {
		return err
	}
	return a.leave(ctx, "retiring")
}

// leave has the authority do what it would do when the phase of a root ends.
func (a *authority) leave(ctx context.Context, phase string) error {
	for _, root := range a.ca.Status().Roots {
		if root.Phase == phase {
			return a.ca.Tick(ctx, root.Until)
		}
	}
	return fmt.Errorf("no root is %s", phase)
}

// await returns when the material of each member, and of the server itself, is as it should be.
func (a *authority) await(what string, good func(*source.Material) bool) error {
	waiting := map[string]func() (*source.Material, error){"the control plane": a.own.Current}
	a.mu.Lock()
	for m, config := range a.members {
		var status mesh.AdminStatus
		answer := httptest.NewRecorder()
		m.Admin().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", nil))
		if err := json.Unmarshal(answer.Body.Bytes(), &status); err != nil || len(status.Identity) == 0 {
			continue // it is closed
		}
		src, err := source.Shared(source.CAPlugin, config, nil)
		if err != nil {
			a.mu.Unlock()
			return err
		}
		defer src.Close()
		waiting[fmt.Sprintf("%p", m)] = src.Current
	}
	a.mu.Unlock()
	for deadline := time.Now().Add(2 * a.options.MaxTTL); len(waiting) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not every member %s after two lives of a certificate", what)
		}
		for name, current := range waiting {
			if m, err := current(); err == nil && good(m) {
				delete(waiting, name)
			}
		}
	}
	return nil
}

// server is a control plane that also gives out certificates.
func (a *authority) server(s *ads.Server) *grpc.Server {
	control := grpc.NewServer(grpc.Creds(s.Credentials(a.own)))
	s.RegisterVerified(control, a.own)
	ca.NewService(a.ca).Register(control)
	return control
}

// joinToken is where a member looks for one.
type joinToken struct{ id, file string }

func (a *authority) write(id, file string) error {
	token, err := a.ca.Tokens().Create(id, time.Hour)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(token.Reveal()), 0o600)
}

// readmit gives new join tokens to all, as an operator does for those whose
// certificates have expired while there was no authority.
func (a *authority) readmit() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.tokens {
		if err := a.write(k.id, k.file); err != nil {
			return err
		}
	}
	return nil
}

// admit writes into a bootstrap how the workload gets its certificate.
func (a *authority) admit(w *World, serviceAccount string, c *bootstrap.Config) error {
	id := "spiffe://" + trustDomain + "/ns/default/sa/" + serviceAccount
	a.mu.Lock()
	file := filepath.Join(a.dir, fmt.Sprintf("%s-%d", serviceAccount, len(a.tokens)))
	a.tokens = append(a.tokens, joinToken{id, file + ".token"})
	a.mu.Unlock()
	if err := a.write(id, file+".token"); err != nil {
		return err
	}
	server := "spiffe://" + trustDomain + serverPath
	config, err := json.Marshal(map[string]string{
		"address": w.address, "ca_certificates": string(a.ca.Bundle().PEM()), "server_id": server,
		"join_token_file": file + ".token", "id": id, "state_file": file + ".state",
	})
	if err != nil {
		return err
	}
	provider := bootstrap.CertificateProvider{Plugin: source.CAPlugin, Config: config}
	creds := bootstrap.ProviderCreds{CertificateProvider: provider}
	if creds.ServerID, err = identity.ParseID(server); err != nil {
		return err
	}
	channel, err := creds.ChannelCreds()
	if err != nil {
		return err
	}
	c.CertificateProviders = map[string]bootstrap.CertificateProvider{"default": provider}
	c.Servers[0].ChannelCreds = []bootstrap.ChannelCreds{channel}
	return nil
}

// admitted notes that a mesh was made of a bootstrap.
func (a *authority) admitted(m *mesh.Mesh, document []byte) error {
	c, err := bootstrap.Parse(document)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.members == nil {
		a.members = make(map[*mesh.Mesh]json.RawMessage)
	}
	a.members[m] = c.CertificateProviders["default"].Config
	return nil
}
