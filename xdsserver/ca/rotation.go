package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// step is one change of the roots. Each is saved before the next is considered.
type step string

const (
	nothing  step = ""
	first    step = "first"    // make the first root
	prepare  step = "prepare"  // make the next root and publish it
	discard  step = "discard"  // drop a prepared root that expired before it was used
	activate step = "activate" // sign under the prepared root, retire the active one
	renew    step = "renew"    // a new issuing certificate under the same root
	remove   step = "remove"   // drop a retiring root whose leaves have all expired
)

// due tells what the state needs at a time: the whole schedule, without effects.
func due(s *state, now time.Time, o *Options) step {
	a, p := s.active(), s.prepared()
	if a == nil {
		return first
	}
	if p != nil && !now.Before(p.root.NotAfter) {
		return discard
	}
	dead := !now.Before(a.root.NotAfter) // nothing under it is valid: nobody to wait for
	if p != nil && (dead || !now.Before(p.since.Add(max(o.ActivateAfter, s.longestLeaf)))) {
		return activate
	}
	for i := range s.authorities {
		if r := &s.authorities[i]; r.phase == retiring && (!now.Before(r.retireAt) || !now.Before(r.root.NotAfter)) {
			return remove
		}
	}
	if p == nil && (dead || !now.Before(half(a.root)) && s.find(retiring) == nil) {
		return prepare
	}
	if !dead && !now.Before(half(a.issuer)) && a.issuer.NotAfter.Before(a.root.NotAfter) {
		return renew
	}
	return nothing
}

func half(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
}

// Tick does all that is due at a time: renews the issuing certificate, moves roots
// through their phases, reads changed files of an external authority, and removes
// expired join tokens. It does nothing where nothing is due; Run calls it. After an
// error everything is as before, and the next Tick tries again.
func (c *CA) Tick(ctx context.Context, now time.Time) error {
	c.change.Lock()
	defer c.change.Unlock()
	if c.closed {
		return errors.New("certificate authority is closed")
	}
	return errors.Join(c.tick(ctx, now), c.tokens.prune(now))
}

// Run calls Tick now and then once a minute, and answers RequestRotation, until the
// context ends.
func (c *CA) Run(ctx context.Context) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	requests := time.NewTicker(requestInterval)
	defer requests.Stop()
	for {
		if err := c.Tick(ctx, c.opts.Clock()); err != nil && ctx.Err() == nil {
			c.opts.Log.Error("certificate authority: periodic work failed, will be tried again", "error", err)
		}
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return
			case <-requests.C:
				c.answerRequest(ctx)
			case <-ticker.C:
				due = true
			}
		}
	}
}

func (c *CA) tick(ctx context.Context, now time.Time) error {
	if v := c.view.Load(); v != nil && v.blocked != nil {
		// What is on the disk is unknown: make it what is in memory.
		if err := c.commit(ctx, c.state); err != nil {
			return err
		}
	}
	if c.opts.External != nil {
		return c.reload(ctx, now)
	}
	// Each step leads on; after a long pause several are due at once.
	for range 10 {
		s := due(c.state, now, &c.opts)
		if s == nothing {
			return nil
		}
		if err := c.apply(ctx, s, now); err != nil {
			return fmt.Errorf("%s root: %w", s, err)
		}
	}
	return nil
}

// Rotate prepares a new root now, ahead of the schedule: it is published at once, signs
// after ActivateAfter, and the old one leaves the bundle when the last leaf under it has
// expired. It is an error while an earlier rotation is under way, and where the
// authority is external.
func (c *CA) Rotate(ctx context.Context) error {
	c.change.Lock()
	defer c.change.Unlock()
	if c.closed {
		return errors.New("certificate authority is closed")
	}
	now := c.opts.Clock()
	if c.opts.External == nil {
		if err := c.tick(ctx, now); err != nil {
			return err
		}
	}
	if err := c.state.mayRotate(); err != nil {
		return err
	}
	return c.apply(ctx, prepare, now)
}

// apply makes one change: on a clone, then on the disk, then for all to see.
func (c *CA) apply(ctx context.Context, what step, now time.Time) error {
	s := c.state.clone()
	var gone []authority
	var unused []keyRecord
	keep := func(want func(*authority) bool) {
		var left []authority
		for i := range s.authorities {
			if a := s.authorities[i]; want(&a) {
				left = append(left, a)
			} else {
				gone = append(gone, a)
			}
		}
		s.authorities = left
	}
	about := ""
	switch what {
	case first, prepare:
		a, err := c.newAuthority(ctx, now)
		if err != nil {
			return err
		}
		if what == first {
			a.phase = active
			if err := c.newIssuer(ctx, a, now); err != nil {
				return err
			}
		}
		s.authorities = append(s.authorities, *a)
		s.version++
		about = a.id
	case discard:
		about = s.prepared().id
		keep(func(a *authority) bool { return a.phase != prepared })
		s.version++
	case activate:
		old, a := s.active(), s.prepared()
		if err := c.newIssuer(ctx, a, now); err != nil {
			return err
		}
		old.phase, old.since = retiring, now
		// The old one has signed until now, which a slow key manager may have made later.
		old.retireAt = later(now, c.opts.Clock()).Add(s.longestLeaf + Backdate)
		a.phase, a.since = active, now
		s.longestLeaf = c.opts.MaxTTL
		s.version++
		about = a.id
	case renew:
		a := s.active()
		unused = append(unused, a.issuerKey)
		if err := c.newIssuer(ctx, a, now); err != nil {
			return err
		}
		about = a.id
	case remove:
		keep(func(a *authority) bool {
			return a.phase != retiring || now.Before(a.retireAt) && now.Before(a.root.NotAfter)
		})
		s.version++
		about = gone[0].id
	}
	if err := c.commit(ctx, s); err != nil {
		return err
	}
	c.opts.Log.Info("certificate authority: roots changed", "step", string(what), "authority", about, "bundle_version", s.version)
	for i := range gone {
		unused = append(unused, gone[i].rootKey, gone[i].issuerKey)
	}
	for _, k := range unused {
		if k.Name == "" || c.opts.Keys == nil {
			continue
		}
		if err := c.opts.Keys.Delete(ctx, k.Name); err != nil {
			c.opts.Log.Warn("certificate authority: unused key not deleted", "key_name", k.Name, "error", err)
		}
	}
	return nil
}

// commit saves a state and then publishes it.
func (c *CA) commit(ctx context.Context, s *state) error {
	err := c.store.save(s)
	if _, ok := errors.AsType[uncertainError](err); ok {
		// A leaf issued now could outlive its root in the state that a restart finds.
		if v := c.view.Load(); v != nil {
			blocked := *v
			blocked.blocked = err
			c.view.Store(&blocked)
		}
	}
	if err != nil {
		return err
	}
	c.state = s
	if s.external {
		return nil // reload publishes, with the chain that it has read
	}
	return c.publish(ctx, s)
}

// publish makes a saved state what Issue and Bundle see.
func (c *CA) publish(ctx context.Context, s *state) error {
	a := s.active()
	key, err := c.openKey(ctx, &a.issuerKey, a.issuer)
	if err != nil {
		return err
	}
	c.show(&view{
		state: s, issuer: a.issuer, key: key, authority: a.id,
		chain:  []string{string(certsPEM([]*x509.Certificate{a.issuer}))},
		bundle: c.bundle(s),
	})
	return nil
}

// newAuthority makes a root.
func (c *CA) newAuthority(ctx context.Context, now time.Time) (*authority, error) {
	key, err := c.createKey(ctx)
	if err != nil {
		return nil, err
	}
	name := make([]byte, 8)
	if _, err := io.ReadFull(c.opts.Random, name); err != nil {
		return nil, err
	}
	a := &authority{id: hex.EncodeToString(name), phase: prepared, since: now, rootKey: key}
	t, err := caTemplate(c.td, "root "+a.id, c.opts.Random)
	if err != nil {
		return nil, err
	}
	t.NotBefore, t.NotAfter = now.Add(-Backdate), now.Add(c.opts.RootTTL)
	t.MaxPathLen = 1
	a.root, err = sign(t, t, key.signer.Public(), key.signer)
	return a, err
}

// newIssuer gives an authority a new issuing certificate.
func (c *CA) newIssuer(ctx context.Context, a *authority, now time.Time) error {
	rootKey, err := c.openKey(ctx, &a.rootKey, a.root)
	if err != nil {
		return err
	}
	key, err := c.createKey(ctx)
	if err != nil {
		return err
	}
	t, err := caTemplate(c.td, "issuer "+a.id, c.opts.Random)
	if err != nil {
		return err
	}
	t.NotBefore = later(now.Add(-Backdate), a.root.NotBefore)
	t.NotAfter = earlier(now.Add(c.opts.CATTL), a.root.NotAfter)
	t.MaxPathLen, t.MaxPathLenZero = 0, true
	a.issuer, err = sign(t, a.root, key.signer.Public(), rootKey)
	a.issuerKey = key
	return err
}

// caTemplate is what roots and issuing certificates share: X509-SVID, sections 3 and 4,
// has a signing certificate carry the trust domain's ID, without a path.
func caTemplate(td spiffeid.TrustDomain, name string, random io.Reader) (*x509.Certificate, error) {
	serial, err := newSerial(random)
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{td.Name()}, CommonName: "sinew " + name},
		URIs:                  []*url.URL{td.ID().URL()},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil
}

// newSerial draws 128 bits, so that serials neither collide nor can be guessed
// (RFC 5280, section 4.1.2.2, allows up to 20 octets and wants them positive).
func newSerial(random io.Reader) (*big.Int, error) {
	for {
		b := make([]byte, 16)
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, err
		}
		if n := new(big.Int).SetBytes(b); n.Sign() > 0 {
			return n, nil
		}
	}
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
