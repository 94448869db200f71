package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundle is the set of roots to trust for the trust domain. It is not modified.
type Bundle struct {
	TrustDomain string
	// Version rises with each change, over restarts too.
	Version uint64
	// Roots has the root that signs first.
	Roots []*x509.Certificate
	// RefreshHint is how often a copy should be fetched anew.
	RefreshHint time.Duration
}

// PEM gives the roots one after the other.
func (b Bundle) PEM() []byte { return certsPEM(b.Roots) }

// Pool gives the roots as crypto/tls and crypto/x509 take them.
func (b Bundle) Pool() *x509.CertPool { return pool(b.Roots) }

// JSON gives the bundle in SPIFFE's format
// (https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Trust_Domain_and_Bundle.md, section 4).
func (b Bundle) JSON() ([]byte, error) {
	td, err := spiffeid.TrustDomainFromString(b.TrustDomain)
	if err != nil {
		return nil, err
	}
	s := spiffebundle.FromX509Authorities(td, b.Roots)
	s.SetSequenceNumber(b.Version)
	if b.RefreshHint > 0 {
		s.SetRefreshHint(b.RefreshHint)
	}
	return s.Marshal()
}

// Fingerprint is the SHA-256 of a certificate's DER, in lower-case hex: what a workload
// that has nothing else pins before it sends its join token.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func (c *CA) bundle(s *state) Bundle {
	// Half the usual life of a leaf: a copy is never staler than a workload's own.
	return Bundle{TrustDomain: c.td.Name(), Version: s.version, Roots: s.bundleRoots(), RefreshHint: c.opts.WorkloadTTL / 2}
}

// Bundle gives the roots to trust now.
func (c *CA) Bundle() Bundle { return c.view.Load().bundle }

// Watch gives the bundle now and after each change. Who reads slowly gets the latest
// only. The channel is closed when the context ends or the authority is closed.
func (c *CA) Watch(ctx context.Context) <-chan Bundle {
	ch := make(chan Bundle, 1)
	c.watch.Lock()
	defer c.watch.Unlock()
	if c.watchers == nil {
		close(ch)
		return ch
	}
	ch <- c.Bundle()
	c.watchers[ch] = struct{}{}
	context.AfterFunc(ctx, func() {
		c.watch.Lock()
		defer c.watch.Unlock()
		if _, ok := c.watchers[ch]; ok {
			delete(c.watchers, ch)
			close(ch)
		}
	})
	return ch
}

// show makes a view the current one, and tells the watchers if its bundle is new.
func (c *CA) show(v *view) {
	v.roots, v.middle = v.bundle.Pool(), pool(append([]*x509.Certificate{v.issuer}, v.above...))
	c.watch.Lock()
	defer c.watch.Unlock()
	old := c.view.Swap(v)
	if old != nil && old.bundle.Version == v.bundle.Version {
		return
	}
	for ch := range c.watchers {
		select {
		case <-ch: // an older one that nobody has read
		default:
		}
		ch <- v.bundle
	}
}

// ReadBundle gives the bundle of the authority in a directory, which may be open in
// another process.
func ReadBundle(dir string) (Bundle, error) {
	st, err := readNewest(dir)
	if err != nil {
		return Bundle{}, err
	}
	return Bundle{TrustDomain: st.trustDomain, Version: st.version, Roots: slices.Clone(st.bundleRoots())}, nil
}
