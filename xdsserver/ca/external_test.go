package ca

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// company is an authority outside: a root, a policy authority and issuers.
type company struct {
	t                 *testing.T
	rootKey, polKey   *ecdsa.PrivateKey
	root, policy      *x509.Certificate
	chain, key, roots string // files
}

func (co *company) cert(name string, parent *x509.Certificate, parentKey, key *ecdsa.PrivateKey, change func(*x509.Certificate)) *x509.Certificate {
	co.t.Helper()
	serial, err := newSerial(rand.Reader)
	if err != nil {
		co.t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	change(tpl)
	if parent == nil {
		parent = tpl
	}
	cert, err := sign(tpl, parent, key.Public(), parentKey)
	if err != nil {
		co.t.Fatal(err)
	}
	return cert
}

func asIs(*x509.Certificate) {}

func newCompany(t *testing.T, dir string) *company {
	co := &company{t: t, rootKey: newKey(t), polKey: newKey(t),
		chain: filepath.Join(dir, "chain.pem"), key: filepath.Join(dir, "key.pem"), roots: filepath.Join(dir, "roots.pem")}
	co.root = co.cert("root "+dir, nil, co.rootKey, co.rootKey, asIs)
	co.policy = co.cert("policy", co.root, co.rootKey, co.polKey, asIs)
	return co
}

// write makes a new issuer and writes the three files; the roots are those given.
func (co *company) write(change func(*x509.Certificate), roots ...*x509.Certificate) {
	co.t.Helper()
	key := newKey(co.t)
	issuer := co.cert("issuer", co.policy, co.polKey, key, change)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		co.t.Fatal(err)
	}
	co.put(co.chain, certsPEM([]*x509.Certificate{issuer, co.policy, co.root}))
	co.put(co.key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	co.put(co.roots, certsPEM(roots))
}

func (co *company) put(path string, data []byte) {
	co.t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		co.t.Fatal(err)
	}
}

func (co *company) options(ck *clock) Options {
	return Options{TrustDomain: "cluster.local", Clock: ck.now, External: &External{ChainFile: co.chain, KeyFile: co.key, RootsFile: co.roots}}
}

func TestExternal(t *testing.T) {
	ck, dir := newClock(), t.TempDir()
	co := newCompany(t, t.TempDir())
	co.write(asIs, co.root)
	var log record
	o := co.options(ck)
	o.Log = log.logger()
	c := mustOpen(t, dir, o)
	old := mustIssue(t, c, reviews, 0)
	if len(old.Chain) != 3 { // leaf, issuer, policy; no root
		t.Errorf("chain of %d", len(old.Chain))
	}
	if err := verify(old, pool([]*x509.Certificate{co.root}), ck.now(), x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
	if err := c.Rotate(t.Context()); err == nil {
		t.Error("rotates the root of another")
	}
	state, _ := os.ReadFile(c.store.path(c.store.inForce))
	if strings.Contains(string(state), "key") {
		t.Errorf("the state has a key:\n%s", state)
	}
	if err := c.Tick(t.Context(), ck.now()); err != nil || c.Bundle().Version != 1 {
		t.Errorf("a Tick without a change: %v, version %d", err, c.Bundle().Version)
	}

	// A new company root, in the documented order.
	next := newCompany(t, filepath.Dir(co.chain))
	co.put(co.roots, certsPEM([]*x509.Certificate{co.root, next.root}))
	if err := c.Tick(t.Context(), ck.now()); err != nil || c.Bundle().Version != 2 {
		t.Fatalf("roots added: %v, version %d", err, c.Bundle().Version)
	}
	next.write(asIs, co.root, next.root)
	// Half written: the chain has come, the key has not.
	whole, _ := os.ReadFile(co.key)
	for _, torn := range [][]byte{whole[:len(whole)/2], {}, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")})} {
		co.put(co.key, torn)
		err := c.Tick(t.Context(), ck.now())
		if err == nil || !strings.Contains(err.Error(), co.key) {
			t.Errorf("a torn key: %v", err)
		}
		if len(torn) > 0 && err != nil && strings.Contains(err.Error(), string(torn[40:])) {
			t.Error("the error quotes the key file")
		}
		if s := mustIssue(t, c, reviews, 0); verify(s, pool([]*x509.Certificate{co.root}), ck.now(), x509.ExtKeyUsageClientAuth) != nil {
			t.Error("the old issuer is not in force")
		}
	}
	co.put(co.key, whole)
	if err := c.Tick(t.Context(), ck.now()); err != nil {
		t.Fatal(err)
	}
	s := mustIssue(t, c, reviews, 0)
	if err := verify(s, pool([]*x509.Certificate{next.root}), ck.now(), x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	if err := verify(old, c.Bundle().Pool(), ck.now(), x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	c.Close()
	if _, err := Open(t.Context(), dir, short(ck)); err == nil || !strings.Contains(err.Error(), "another directory") {
		t.Errorf("opened with a root of its own: %v", err)
	}
	again := mustOpen(t, dir, o)
	if b := again.Bundle(); b.Version != 2 || len(b.Roots) != 2 {
		t.Errorf("after a restart: version %d, %d roots", b.Version, len(b.Roots))
	}
	if b, err := ReadBundle(dir); err != nil || len(b.Roots) != 2 {
		t.Errorf("ReadBundle: %v", err)
	}
	// The issuer's own end.
	ck.t = epoch.Add(23*time.Hour + 50*time.Minute)
	if s := mustIssue(t, again, reviews, 0); !s.Leaf.NotAfter.Equal(epoch.Add(24 * time.Hour)) {
		t.Errorf("outlives its issuer: %v", s.Leaf.NotAfter)
	}
}

func TestExternalRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(co *company)
		want  string
	}{
		{"no files", func(co *company) { os.Remove(co.chain) }, "chain.pem"},
		{"another root", func(co *company) { co.write(asIs, newCompany(co.t, co.t.TempDir()).root) }, "does not end at one of the roots"},
		{"no roots", func(co *company) { co.put(co.roots, nil) }, "no certificate"},
		{"torn roots", func(co *company) { co.put(co.roots, certsPEM([]*x509.Certificate{co.root})[:200]) }, "torn"},
		{"a leaf as issuer", func(co *company) {
			co.write(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature }, co.root)
		}, "may not sign"},
		{"may sign lists only", func(co *company) { co.write(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }, co.root) }, "may not sign"},
		{"a root as issuer", func(co *company) { co.put(co.chain, certsPEM([]*x509.Certificate{co.root})) }, "is a root"},
		{"another trust domain's", func(co *company) {
			u, _ := url.Parse("spiffe://other.example")
			co.write(func(c *x509.Certificate) { c.URIs = []*url.URL{u} }, co.root)
		}, "spiffe://other.example"},
		{"constrained to another domain", func(co *company) {
			co.write(func(c *x509.Certificate) {
				c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"other.example"}, true
			}, co.root)
		}, "not permitted"},
		{"path length of the one above", func(co *company) {
			co.policy = co.cert("policy", co.root, co.rootKey, co.polKey, func(c *x509.Certificate) { c.MaxPathLenZero = true })
			co.write(asIs, co.root)
		}, "too many intermediates"},
		{"expired", func(co *company) { co.write(func(c *x509.Certificate) { c.NotAfter = epoch }, co.root) }, "expired"},
		{"not yet valid", func(co *company) { co.write(func(c *x509.Certificate) { c.NotBefore = epoch.Add(time.Hour) }, co.root) }, "valid only from"},
		{"another key", func(co *company) {
			der, _ := x509.MarshalECPrivateKey(co.polKey)
			co.put(co.key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
		}, "not the private key"},
	} {
		co := newCompany(t, t.TempDir())
		co.write(asIs, co.root)
		tt.spoil(co)
		c, err := Open(t.Context(), t.TempDir(), co.options(newClock()))
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
