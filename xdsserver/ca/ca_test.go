package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sinew-mesh/sinew/internal/journal"
)

const reviews = "spiffe://cluster.local/ns/shop/sa/reviews"

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock is a clock that stands until it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: epoch} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
	return c.t
}

// record is a log that can be searched.
type record struct{ journal.Journal }

func (r *record) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// short are options whose whole life fits into virtual hours.
func short(c *clock) Options {
	return Options{TrustDomain: "cluster.local", MaxTTL: time.Hour, CATTL: 4 * time.Hour, RootTTL: 12 * time.Hour, Clock: c.now}
}

func mustOpen(t testing.TB, dir string, o Options) *CA {
	t.Helper()
	c, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csrBy(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func newCSR(t testing.TB) []byte {
	t.Helper()
	return csrBy(t, newKey(t), &x509.CertificateRequest{})
}

// verify checks a chain as a peer with the given roots does, by crypto/x509 alone.
func verify(s *SVID, roots *x509.CertPool, now time.Time, use x509.ExtKeyUsage) error {
	var leaf *x509.Certificate
	middle := x509.NewCertPool()
	for i, p := range s.Chain {
		block, _ := pem.Decode([]byte(p))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		if i == 0 {
			leaf = cert
		} else {
			middle.AddCert(cert)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
	return err
}

func mustIssue(t testing.TB, c *CA, id string, ttl time.Duration) *SVID {
	t.Helper()
	s, err := c.Issue(t.Context(), Caller{ID: id, Method: "test"}, newCSR(t), ttl)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestIssue(t *testing.T) {
	ck := newClock()
	var log record
	c := mustOpen(t, t.TempDir(), Options{TrustDomain: "cluster.local", Clock: ck.now, Log: log.logger()})
	key := newKey(t)
	// All that a request can ask for, and must not get.
	other, _ := url.Parse("spiffe://cluster.local/ns/shop/sa/payment")
	csr := csrBy(t, key, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "payment"}, DNSNames: []string{"payment.shop.svc"}, URIs: []*url.URL{other}, EmailAddresses: []string{"a@b"},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}, // basicConstraints CA:true
			{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 1, 6}},          // keyCertSign, cRLSign
		},
	})
	s, err := c.Issue(t.Context(), Caller{ID: reviews, Method: "test"}, csr, 0)
	if err != nil {
		t.Fatal(err)
	}
	leaf := s.Leaf
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != reviews {
		t.Errorf("URIs %v", leaf.URIs)
	}
	if len(leaf.DNSNames)+len(leaf.EmailAddresses)+len(leaf.IPAddresses) != 0 || leaf.Subject.String() != "" {
		t.Errorf("the certificate has names of the request: %v %v %v", leaf.DNSNames, leaf.EmailAddresses, leaf.Subject)
	}
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("CA %v, basic constraints %v, key usage %b", leaf.IsCA, leaf.BasicConstraintsValid, leaf.KeyUsage)
	}
	if len(leaf.ExtKeyUsage) != 2 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || leaf.ExtKeyUsage[1] != x509.ExtKeyUsageClientAuth {
		t.Errorf("extended key usage %v", leaf.ExtKeyUsage)
	}
	for _, e := range leaf.Extensions {
		// With an empty subject the names must be critical, and key usage always.
		if (e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) || e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 15})) && !e.Critical {
			t.Errorf("extension %v is not critical", e.Id)
		}
	}
	if !leaf.NotBefore.Equal(epoch.Add(-Backdate)) || !leaf.NotAfter.Equal(epoch.Add(time.Hour)) {
		t.Errorf("valid from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the certificate is for another key")
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		for _, skew := range []time.Duration{0, -90 * time.Second, 59 * time.Minute} {
			if err := verify(s, c.Bundle().Pool(), epoch.Add(skew), use); err != nil {
				t.Errorf("use %v, %v: %v", use, skew, err)
			}
		}
		if verify(s, c.Bundle().Pool(), epoch.Add(61*time.Minute), use) == nil {
			t.Error("verifies after its end")
		}
	}
	for _, want := range []string{reviews, leaf.SerialNumber.Text(16), Fingerprint(leaf), "2026-03-01T13:00:00"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
}

func TestAuthorityCertificates(t *testing.T) {
	c := mustOpen(t, t.TempDir(), short(newClock()))
	a := c.state.active()
	for name, cert := range map[string]*x509.Certificate{"root": a.root, "issuer": a.issuer} {
		if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://cluster.local" {
			t.Errorf("%s: URIs %v", name, cert.URIs)
		}
		if !cert.IsCA || cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
			t.Errorf("%s: CA %v, key usage %b", name, cert.IsCA, cert.KeyUsage)
		}
		if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
			t.Errorf("%s: key %T", name, cert.PublicKey)
		}
	}
	if a.root.MaxPathLen != 1 || a.issuer.MaxPathLen != 0 || !a.issuer.MaxPathLenZero {
		t.Errorf("path lengths %d and %d", a.root.MaxPathLen, a.issuer.MaxPathLen)
	}
	// An issuing certificate can make no authority: what it signs as one does not verify.
	key := newKey(t)
	serial, _ := newSerial(rand.Reader)
	under, err := sign(&x509.Certificate{SerialNumber: serial, NotBefore: epoch, NotAfter: epoch.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, a.issuer, key.Public(), a.issuerKey.signer)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ = newSerial(rand.Reader)
	leaf, err := sign(&x509.Certificate{SerialNumber: serial, NotBefore: epoch, NotAfter: epoch.Add(time.Hour)}, under, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.Bundle().Pool(), Intermediates: pool([]*x509.Certificate{a.issuer, under}), CurrentTime: epoch.Add(time.Minute)}); err == nil {
		t.Error("a second intermediate verifies")
	}
}

func TestSerials(t *testing.T) {
	seen, long := map[string]bool{}, 0
	for range 1000 {
		n, err := newSerial(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if n.Sign() <= 0 || n.BitLen() > 128 || seen[n.String()] {
			t.Fatalf("serial %v", n)
		}
		if seen[n.String()] = true; n.BitLen() > 120 {
			long++
		}
	}
	if long < 900 { // 996 of 1000 are expected
		t.Errorf("only %d of 1000 serials use their 128 bits", long)
	}
	zeroThenOne := io.MultiReader(bytes.NewReader(make([]byte, 31)), bytes.NewReader([]byte{1}))
	if n, err := newSerial(zeroThenOne); err != nil || n.Int64() != 1 {
		t.Errorf("zero is not drawn again: %v, %v", n, err)
	}
	if _, err := newSerial(bytes.NewReader(make([]byte, 7))); err == nil {
		t.Error("short randomness is accepted")
	}
}

func TestTTL(t *testing.T) {
	ck := newClock()
	c := mustOpen(t, t.TempDir(), Options{TrustDomain: "cluster.local", Clock: ck.now, WorkloadTTL: 30 * time.Minute, MaxTTL: 2 * time.Hour, CATTL: 4 * time.Hour})
	for _, tt := range []struct {
		after, ttl, want time.Duration
		err              error
	}{
		{0, 0, 30 * time.Minute, nil},
		{0, time.Second, time.Second, nil},
		{0, time.Hour, time.Hour, nil},
		{0, 2 * time.Hour, 2 * time.Hour, nil},
		{0, 1 << 62, 2 * time.Hour, nil},
		{0, -time.Second, 0, ErrRequest},
		{0, time.Millisecond, 0, ErrRequest},
		{3 * time.Hour, 2 * time.Hour, time.Hour, nil}, // the issuer's end, since nobody has renewed it
		{4*time.Hour - time.Second, time.Hour, time.Second, nil},
		{4 * time.Hour, time.Hour, 0, ErrUnavailable},
		{-Backdate - time.Second, time.Hour, 0, ErrUnavailable}, // a clock before the issuer's beginning
		{-Backdate, time.Minute, time.Minute, nil},
	} {
		ck.t = epoch.Add(tt.after)
		s, err := c.Issue(t.Context(), Caller{ID: reviews}, newCSR(t), tt.ttl)
		if !errors.Is(err, tt.err) {
			t.Errorf("after %v, %v: error %v", tt.after, tt.ttl, err)
		}
		if err == nil && !s.Leaf.NotAfter.Equal(ck.t.Add(tt.want)) {
			t.Errorf("after %v, %v: ends after %v, not %v", tt.after, tt.ttl, s.Leaf.NotAfter.Sub(ck.t), tt.want)
		}
	}
}

func TestCallers(t *testing.T) {
	admitErr := errors.New("is shut out")
	o := short(newClock())
	o.Admit = func(_ context.Context, who Caller) error {
		if strings.HasSuffix(who.ID, "/mallory") {
			return admitErr
		}
		return nil
	}
	c := mustOpen(t, t.TempDir(), o)
	for id, want := range map[string]error{
		reviews:                                               nil,
		"spiffe://cluster.local/x":                            nil,
		"spiffe://cluster.local/ns/a/sa/mallory":              admitErr,
		"":                                                    ErrDenied,
		"spiffe://cluster.local":                              ErrDenied,
		"spiffe://cluster.local/":                             ErrDenied,
		"spiffe://evil.cluster.local/ns/a/sa/b":               ErrDenied,
		"spiffe://cluster.local.evil/ns/a/sa/b":               ErrDenied,
		"spiffe://CLUSTER.local/ns/a/sa/b":                    ErrDenied,
		"SPIFFE://cluster.local/ns/a/sa/b":                    ErrDenied,
		"spiffe://cluster.local:1/ns/a/sa/b":                  ErrDenied,
		"spiffe://u@cluster.local/ns/a/sa/b":                  ErrDenied,
		"spiffe://cluster.local/ns//sa/b":                     ErrDenied,
		"spiffe://cluster.local/ns/../sa/b":                   ErrDenied,
		"spiffe://cluster.local/ns/a/sa/b?q":                  ErrDenied,
		"spiffe://cluster.local/ns/a/sa/b#f":                  ErrDenied,
		"spiffe://cluster.local/ns/%61/sa/b":                  ErrDenied,
		"spiffe://cluster.local/ns/a/sa/b\x00":                ErrDenied,
		"spiffe://cluster.local/ns/a/sa/b/":                   ErrDenied,
		"https://cluster.local/ns/a/sa/b":                     ErrDenied,
		"spiffe://cluster.local/" + strings.Repeat("a", 2048): ErrDenied,
	} {
		_, err := c.Issue(t.Context(), Caller{ID: id, Confirm: func(context.Context) error { return nil }}, newCSR(t), 0)
		if !errors.Is(err, want) || want != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("%q: %v, want %v", id, err, want)
		}
	}
	refused := errors.New("used up")
	if _, err := c.Issue(t.Context(), Caller{ID: reviews, Confirm: func(context.Context) error { return refused }}, newCSR(t), 0); !errors.Is(err, refused) {
		t.Errorf("Confirm is not heard: %v", err)
	}
	// What would fail anyway does not use the credential up.
	for _, csr := range [][]byte{nil, []byte("x")} {
		_, err := c.Issue(t.Context(), Caller{ID: reviews, Confirm: func(context.Context) error { t.Error("Confirm called"); return nil }}, csr, 0)
		if !errors.Is(err, ErrRequest) {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Issue(ctx, Caller{ID: reviews}, newCSR(t), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled request: %v", err)
	}
}

func TestOptions(t *testing.T) {
	td := "cluster.local"
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{}, "TrustDomain is not set"},
		{Options{TrustDomain: "Cluster.Local"}, "TrustDomain"},
		{Options{TrustDomain: "spiffe://cluster.local"}, "bare name"},
		{Options{TrustDomain: "a/b"}, "TrustDomain"},
		{Options{TrustDomain: strings.Repeat("a", 256)}, "255"},
		{Options{TrustDomain: td, WorkloadTTL: -1}, "WorkloadTTL"},
		{Options{TrustDomain: td, WorkloadTTL: time.Millisecond}, "WorkloadTTL"},
		{Options{TrustDomain: td, WorkloadTTL: 2 * time.Hour, MaxTTL: time.Hour}, "WorkloadTTL"},
		{Options{TrustDomain: td, MaxTTL: 2 * time.Hour, CATTL: 3 * time.Hour}, "CATTL"},
		{Options{TrustDomain: td, CATTL: 3651 * 24 * time.Hour}, "CATTL"},
		{Options{TrustDomain: td, ActivateAfter: time.Hour}, "ActivateAfter"},
		{Options{TrustDomain: td, MaxTTL: time.Hour, CATTL: 2 * time.Hour, RootTTL: 4 * time.Hour}, "RootTTL"},
		{Options{TrustDomain: td, Rate: Rate{PerSecond: -1}}, "Rate"},
	} {
		_, err := Open(t.Context(), filepath.Join(t.TempDir(), "x"), tt.o)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.o, err, tt.want)
		}
	}
}

func TestDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ck := newClock()
	c := mustOpen(t, dir, short(ck))
	if _, err := c.Tokens().Create(reviews, 0); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if want := map[bool]os.FileMode{true: 0o700, false: 0o600}[info.IsDir()]; info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		files++
		return err
	})
	if err != nil || files != 5 { // the folder, lock, state, tokens, a token
		t.Errorf("%d files, %v", files, err)
	}
	if _, err := Open(t.Context(), dir, short(ck)); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	want := c.Bundle()
	if got, err := ReadBundle(dir); err != nil || !bytes.Equal(got.PEM(), want.PEM()) || got.Version != want.Version || got.TrustDomain != want.TrustDomain {
		t.Errorf("ReadBundle beside an open authority: %+v, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Issue(t.Context(), Caller{ID: reviews}, newCSR(t), 0); !errors.Is(err, ErrUnavailable) {
		t.Errorf("issues after Close: %v", err)
	}
	o := short(ck)
	o.TrustDomain = "other.example"
	if _, err := Open(t.Context(), dir, o); err == nil || !strings.Contains(err.Error(), "cluster.local") {
		t.Errorf("opened for another trust domain: %v", err)
	}
	again := mustOpen(t, dir, short(ck))
	if got := again.Bundle(); !bytes.Equal(got.PEM(), want.PEM()) || got.Version != want.Version {
		t.Error("another bundle after a restart")
	}
	if _, err := ReadBundle(t.TempDir()); err == nil {
		t.Error("ReadBundle of an empty directory gives something")
	}
}

func TestBundleJSON(t *testing.T) {
	c := mustOpen(t, t.TempDir(), short(newClock()))
	if err := c.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := c.Bundle()
	data, err := b.JSON()
	if err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	got, err := spiffebundle.Parse(td, data)
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := got.SequenceNumber(); !ok || n != b.Version || n != 2 {
		t.Errorf("sequence %d, version %d", n, b.Version)
	}
	if hint, ok := got.RefreshHint(); !ok || hint != 30*time.Minute {
		t.Errorf("refresh hint %v", hint)
	}
	if len(b.Roots) != 2 || len(got.X509Authorities()) != 2 || !got.HasX509Authority(b.Roots[0]) || !got.HasX509Authority(b.Roots[1]) {
		t.Errorf("%d roots", len(got.X509Authorities()))
	}
}

func TestServerCertificate(t *testing.T) {
	ck := newClock()
	c := mustOpen(t, t.TempDir(), short(ck))
	cert, err := c.ServerCertificate("/sinew/xdsserver", []string{"xds.example", "127.0.0.1", "::1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if u := cert.Leaf.URIs; len(u) != 1 || u[0].String() != "spiffe://cluster.local/sinew/xdsserver" {
		t.Errorf("URIs %v", u)
	}
	for _, host := range []string{"xds.example", "127.0.0.1", "::1"} {
		middle, _ := x509.ParseCertificate(cert.Certificate[1])
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: c.Bundle().Pool(), Intermediates: pool([]*x509.Certificate{middle}), CurrentTime: ck.now()}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if last := cert.Certificate[len(cert.Certificate)-1]; len(cert.Certificate) != 3 || !bytes.Equal(last, c.Bundle().Roots[0].Raw) {
		t.Errorf("a chain of %d certificates, want leaf, issuer and root", len(cert.Certificate))
	}
	for _, path := range []string{"", "sinew", "/a//b", ".evil/x"} {
		if _, err := c.ServerCertificate(path, nil, 0); err == nil {
			t.Errorf("path %q is accepted", path)
		}
	}
}

func TestRateLimit(t *testing.T) {
	ck := newClock()
	o := short(ck)
	o.Rate = Rate{PerSecond: 1, Burst: 3}
	c := mustOpen(t, t.TempDir(), o)
	csr := newCSR(t)
	issue := func(id string) error {
		_, err := c.Issue(t.Context(), Caller{ID: id}, csr, 0)
		return err
	}
	for range 3 {
		if err := issue(reviews); err != nil {
			t.Fatal(err)
		}
	}
	if err := issue(reviews); !errors.Is(err, ErrLimited) {
		t.Errorf("the fourth: %v", err)
	}
	if err := issue("spiffe://cluster.local/other"); err != nil {
		t.Errorf("another identity pays: %v", err)
	}
	ck.advance(time.Second)
	if err := issue(reviews); err != nil {
		t.Errorf("a second later: %v", err)
	}
	if err := issue(reviews); !errors.Is(err, ErrLimited) {
		t.Errorf("a second later, twice: %v", err)
	}
}
