package source

import (
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"github.com/sinew-mesh/sinew/identity"
)

// Combine returns a source whose certificate is the one's and whose bundles
// and roots are the other's, as a TLS context names them apart. Either may be
// nil: without certificate it has trust only, without trust it verifies nobody.
// Current is an error while either has none in force, and Current returns the
// same pointer as long as neither changes. Close closes both.
func Combine(certificate, trust Source) Source {
	c := &combined{certificate: certificate, trust: trust, closed: make(chan struct{})}
	if certificate != nil && trust != nil && unwrap(certificate) == unwrap(trust) {
		c.same = true
	}
	return c
}

var errNoTrust = errors.New("the identity source has neither trust bundles nor roots")

type combined struct {
	certificate, trust Source
	same               bool // both are one source: its material is whole already

	mu      sync.Mutex
	m       *Material // made of the next two
	of, by  *Material
	changed chan struct{} // nil where nobody has asked
	closed  chan struct{}
	done    bool
	watch   sync.WaitGroup
}

// Current implements Source.
func (c *combined) Current() (*Material, error) {
	if c.same {
		return c.certificate.Current()
	}
	var of, by *Material
	var err error
	if c.certificate != nil {
		if of, err = c.certificate.Current(); err != nil {
			return nil, err
		}
	}
	if c.trust != nil {
		if by, err = c.trust.Current(); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m != nil && c.of == of && c.by == by {
		return c.m, nil
	}
	m := &Material{}
	if of != nil {
		m.Certificate, m.ID, m.NotAfter = of.Certificate, of.ID, of.NotAfter
	}
	if by != nil {
		m.Bundles, m.Roots = by.Bundles, by.Roots
		if m.Bundles == nil && m.Roots == nil {
			return nil, &NotReadyError{Source: "trust", Err: errNoTrust}
		}
	}
	c.m, c.of, c.by = m, of, by
	return m, nil
}

// Changed implements Source.
func (c *combined) Changed() <-chan struct{} {
	if c.same {
		return c.certificate.Changed()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed != nil {
		return c.changed
	}
	changed := make(chan struct{})
	if c.done {
		return changed // nothing is watched any more
	}
	c.changed = changed
	var one, other <-chan struct{}
	if c.certificate != nil {
		one = c.certificate.Changed()
	}
	if c.trust != nil {
		other = c.trust.Changed()
	}
	c.watch.Go(func() {
		select {
		case <-one:
		case <-other:
		case <-c.closed:
			return
		}
		c.mu.Lock()
		c.changed = nil
		c.mu.Unlock()
		close(changed)
	})
	return changed
}

// Close implements Source.
func (c *combined) Close() error {
	c.mu.Lock()
	first := !c.done
	c.done = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	close(c.closed)
	c.watch.Wait()
	var err error
	for _, s := range []Source{c.certificate, c.trust} {
		if s == nil {
			continue
		}
		if e := s.Close(); err == nil {
			err = e
		}
	}
	return err
}

// System returns a source of trust only: the roots of the operating system, as
// they were when the process first asked for them. Where they can not be read
// Current says why.
func System() Source { return systemRoots }

var systemRoots Source = &system{load: sync.OnceValues(func() (*Material, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, &NotReadyError{Source: "system", Err: fmt.Errorf("the operating system's roots: %w", err)}
	}
	return &Material{Roots: roots, Bundles: identity.BundleSet{}}, nil
})}

type system struct {
	load func() (*Material, error)
}

func (s *system) Current() (*Material, error) { return s.load() }
func (s *system) Changed() <-chan struct{}    { return nil }
func (s *system) Close() error                { return nil }
