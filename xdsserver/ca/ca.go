// Package ca is the certificate authority inside the management server. It gives
// workloads short-lived X.509-SVIDs
// (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md).
//
//	Service       gRPC: who calls (join token, mTLS, Authenticator) -> Caller
//	CA.Issue      Caller + CSR -> leaf, by the active issuer
//	CA.Tick       the roots' life: prepared -> active -> retiring -> gone
//	Tokens        join tokens: one file each, used up by removing it
//	store         one file per state, written so that a kill at any instant loses nothing
//
// A root signs only issuing certificates (path length 0), an issuing certificate only
// leaves. The name in a leaf is the authenticated caller's; what a certificate request
// asks for is not read, apart from its public key. There are no name constraints: they
// can not bind a trust domain exactly ("td.example" would admit "evil.td.example"), so
// verifiers must choose roots by the peer's trust domain.
//
// A root is replaced without a failed handshake, because its successor is published in
// the bundle for at least the longest life of a leaf before it signs anything: every
// workload that still has a valid certificate then got it together with the new root.
// The old one stays in the bundle until the last leaf under it has expired.
package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// What errors of this package mean; errors.Is tells them apart.
var (
	// ErrRequest: the request itself is wrong; sending it again will not help.
	ErrRequest = errors.New("invalid certificate request")
	// ErrUnauthenticated: no credential, or one that is not valid.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrDenied: the caller is known and may not have a certificate.
	ErrDenied = errors.New("not allowed")
	// ErrLimited: the identity asks too often.
	ErrLimited = errors.New("too many certificate requests for this identity")
	// ErrUnavailable: the authority can not sign now: its issuer has expired, its
	// keys or its state can not be reached.
	ErrUnavailable = errors.New("the certificate authority can not issue now")
)

// Backdate is how long before the moment of issuance a certificate becomes valid, so
// that peers whose clocks are behind accept it (as in Istio).
const Backdate = 2 * time.Minute

// Options configure a CA. Only TrustDomain is required.
type Options struct {
	// TrustDomain is the SPIFFE trust domain, as in "cluster.local". Each state
	// directory belongs to one.
	TrustDomain string
	// WorkloadTTL is the life of a leaf where the request names none. Default 1 hour.
	WorkloadTTL time.Duration
	// MaxTTL caps the life of a leaf; a longer wish is shortened. Default 24 hours.
	MaxTTL time.Duration
	// CATTL is the life of an issuing certificate; it is replaced at half of it, under
	// the same root. Default 30 days; at least twice MaxTTL.
	CATTL time.Duration
	// RootTTL is the life of a root; its successor is prepared at half of it.
	// Default 3650 days.
	RootTTL time.Duration
	// ActivateAfter is how long a prepared root is published before it signs. Default
	// and minimum: MaxTTL. Half of RootTTL must hold it and MaxTTL.
	ActivateAfter time.Duration
	// Clock tells the time. Default time.Now.
	Clock func() time.Time
	// Random yields serial numbers, identifiers and join tokens. Default crypto/rand.
	Random io.Reader
	// Keys keeps the private keys elsewhere, as a key management service does.
	// Default: ECDSA P-256 keys in the state file (mode 0600).
	Keys KeyManager
	// External makes the CA issue under a certificate from another authority, and
	// make no root of its own. Default: none.
	External *External
	// Admit has the last word on an authenticated caller; an error refuses it, and its
	// text goes to the log and to the caller. It is how an identity is shut out, which
	// could otherwise renew for ever. Default: all identities of the trust domain.
	Admit func(context.Context, Caller) error
	// Rate limits issuance for each identity (all replicas of a workload share one).
	Rate Rate
	// Log gets one line per issuance and per refusal, and what happens to the roots.
	// Keys and tokens are never in it. Default: none.
	Log *slog.Logger

	// failpoint is called before each step on the disk; an error stands for a process
	// that is killed there. Tests only.
	failpoint func(step string) error
}

func (o *Options) complete() error {
	for _, d := range []struct {
		name  string
		value *time.Duration
		unset time.Duration
	}{
		{"WorkloadTTL", &o.WorkloadTTL, time.Hour},
		{"MaxTTL", &o.MaxTTL, max(24*time.Hour, o.WorkloadTTL)},
		{"CATTL", &o.CATTL, max(30*24*time.Hour, 2*o.MaxTTL)},
		{"RootTTL", &o.RootTTL, 3650 * 24 * time.Hour},
		{"ActivateAfter", &o.ActivateAfter, 0},
	} {
		if *d.value < 0 || *d.value > 0 && *d.value < time.Second {
			return fmt.Errorf("%s: %v is shorter than a second", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.unset
		}
	}
	if o.ActivateAfter == 0 {
		o.ActivateAfter = o.MaxTTL
	}
	switch {
	case o.WorkloadTTL > o.MaxTTL:
		return fmt.Errorf("WorkloadTTL: %v is more than MaxTTL, %v", o.WorkloadTTL, o.MaxTTL)
	case o.External != nil:
	case o.CATTL < 2*o.MaxTTL:
		return fmt.Errorf("CATTL: %v is less than twice MaxTTL, %v: leaves would be cut short", o.CATTL, o.MaxTTL)
	case o.CATTL > o.RootTTL:
		return fmt.Errorf("CATTL: %v is more than RootTTL, %v", o.CATTL, o.RootTTL)
	case o.ActivateAfter < o.MaxTTL:
		return fmt.Errorf("ActivateAfter: %v is less than MaxTTL, %v: workloads could meet a root that they have not been told of", o.ActivateAfter, o.MaxTTL)
	case o.RootTTL/2 < o.ActivateAfter+o.MaxTTL+2*Backdate:
		return fmt.Errorf("RootTTL: half of %v is too short for ActivateAfter, %v, and MaxTTL, %v", o.RootTTL, o.ActivateAfter, o.MaxTTL)
	}
	if err := o.Rate.complete(); err != nil {
		return err
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// CA is a certificate authority. Its methods may be called concurrently.
type CA struct {
	opts   Options
	td     spiffeid.TrustDomain
	limit  *limiter
	tokens *Tokens
	counts *counter
	lock   io.Closer
	view   atomic.Pointer[view]

	change   sync.Mutex // held while roots change, over disk and key manager
	store    *store
	state    *state
	external loaded
	closed   bool

	watch    sync.Mutex
	watchers map[chan Bundle]struct{} // nil once closed
}

// view is what issuing reads: one moment of the authority, never modified.
type view struct {
	state     *state
	issuer    *x509.Certificate
	key       crypto.Signer
	authority string
	chain     []string // PEM of the issuer and of what stands between it and the root
	bundle    Bundle
	above     []*x509.Certificate // between the issuer and the root
	roots     *x509.CertPool      // of bundle
	middle    *x509.CertPool      // issuer and above
	blocked   error               // why nothing may be issued although issuer and key are there
}

// Open opens the authority whose state is in dir, or founds it where dir is empty or
// does not exist. The directory gets mode 0700 and is locked against a second process
// (on Unix) until Close.
//
// It is an error where the options are not valid, the state belongs to another trust
// domain or another kind of authority, the keys can not be opened, or where there is
// state but none of it is intact: a second root is never made beside a lost one.
func Open(ctx context.Context, dir string, opts Options) (*CA, error) {
	c, err := open(ctx, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w", dir, err)
	}
	return c, nil
}

func open(ctx context.Context, dir string, opts Options) (_ *CA, err error) {
	td, err := parseTrustDomain(opts.TrustDomain)
	if err != nil {
		return nil, err
	}
	if err := opts.complete(); err != nil {
		return nil, err
	}
	if err := privateDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	c := &CA{
		opts: opts, td: td, limit: newLimiter(opts.Rate), counts: newCounter(opts.Clock()), lock: lock,
		store:    &store{dir: dir, log: opts.Log, failpoint: opts.failpoint},
		watchers: make(map[chan Bundle]struct{}),
	}
	c.tokens, err = OpenTokens(dir, TokenOptions{
		TrustDomain: opts.TrustDomain, Clock: opts.Clock, Random: opts.Random, Log: opts.Log, failpoint: opts.failpoint,
	})
	if err != nil {
		return nil, err
	}
	found, skipped, err := c.store.load()
	if err != nil {
		return nil, err
	}
	now := opts.Clock()
	if found == nil {
		c.state = &state{trustDomain: td.Name(), external: opts.External != nil, longestLeaf: opts.MaxTTL}
	} else {
		c.state = found
		if err := c.checkState(ctx); err != nil {
			return nil, err
		}
		if skipped > 0 {
			// What is damaged may have published a bundle under each of the following numbers.
			c.state.version += uint64(skipped) + 1
		}
	}
	if found != nil && (skipped > 0 || opts.MaxTTL > c.state.longestLeaf) {
		c.state.longestLeaf = max(c.state.longestLeaf, opts.MaxTTL)
		if err := c.store.save(c.state); err != nil {
			return nil, err
		}
	}
	if err := c.tick(ctx, now); err != nil {
		if c.state.active() == nil || opts.External != nil {
			return nil, err
		}
		// What is there can still issue, or says itself that it has expired.
		opts.Log.Error("certificate authority: change of roots failed", "error", err)
	}
	if c.view.Load() == nil {
		if err := c.publish(ctx, c.state); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// checkState holds loaded state against the options.
func (c *CA) checkState(ctx context.Context) error {
	s := c.state
	if s.trustDomain != c.td.Name() {
		return fmt.Errorf("the state is that of trust domain %q, not %q", s.trustDomain, c.td.Name())
	}
	if s.external != (c.opts.External != nil) {
		kinds := map[bool]string{true: "under an external authority", false: "with its own root"}
		return fmt.Errorf("the state is that of an authority %s, and the options ask for one %s: use another directory, and for the change keep the old root in the new authority's bundle",
			kinds[s.external], kinds[!s.external])
	}
	for i := range s.authorities {
		a := &s.authorities[i]
		if (a.rootKey.Name != "" || a.issuerKey.Name != "") && c.opts.Keys == nil {
			return fmt.Errorf("authority %s has its keys in a key manager, and Options.Keys is not set", a.id)
		}
	}
	if a := s.active(); a != nil {
		if _, err := c.openKey(ctx, &a.issuerKey, a.issuer); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the watches and lets another process open the directory.
func (c *CA) Close() error {
	c.change.Lock()
	defer c.change.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.watch.Lock()
	for ch := range c.watchers {
		close(ch)
	}
	c.watchers = nil
	c.watch.Unlock()
	v := *c.view.Load()
	v.blocked = errors.New("it is closed")
	c.view.Store(&v)
	return c.lock.Close()
}

// Tokens are the join tokens of this authority.
func (c *CA) Tokens() *Tokens { return c.tokens }

// TrustDomain is the name of the trust domain, without a scheme.
func (c *CA) TrustDomain() string { return c.td.Name() }

func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

func parseTrustDomain(name string) (spiffeid.TrustDomain, error) {
	if name == "" {
		return spiffeid.TrustDomain{}, errors.New("TrustDomain is not set")
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return td, fmt.Errorf("TrustDomain: %w", err)
	}
	if td.Name() != name { // go-spiffe reads a whole ID as well
		return td, fmt.Errorf("TrustDomain: %q is not a bare name, as in %q", name, td.Name())
	}
	if len(name) > 255 { // SPIFFE-ID, section 2.3
		return td, errors.New("TrustDomain: longer than 255 bytes")
	}
	return td, nil
}

// workloadID reads the SPIFFE ID of a workload in the trust domain (SPIFFE-ID, section 2).
func workloadID(td spiffeid.TrustDomain, s string) (spiffeid.ID, error) {
	if len(s) > 2048 {
		return spiffeid.ID{}, errors.New("SPIFFE ID is longer than 2048 bytes")
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		return id, fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	if !id.MemberOf(td) {
		return id, fmt.Errorf("SPIFFE ID %q is not of trust domain %q", s, td.Name())
	}
	if id.Path() == "" {
		return id, fmt.Errorf("SPIFFE ID %q names a trust domain, not a workload", s)
	}
	return id, nil
}
