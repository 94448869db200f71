package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
)

// TestConcurrent issues, watches and joins while the roots rotate: every certificate
// verifies against the bundle that came with it, versions only rise, and none is missed
// at the end.
func TestConcurrent(t *testing.T) {
	leak.Check(t)
	ck := newClock()
	o := short(ck)
	o.Rate = Rate{PerSecond: 1e6, Burst: 1e6}
	c, err := Open(t.Context(), t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var issuing, watching sync.WaitGroup
	for w := range 2 {
		watch := c.Watch(ctx)
		watching.Go(func() {
			last := uint64(0)
			for b := range watch {
				if b.Version <= last || len(b.Roots) == 0 {
					t.Errorf("watch %d: version %d after %d, %d roots", w, b.Version, last, len(b.Roots))
				}
				last = b.Version
			}
			if last != c.Bundle().Version {
				t.Errorf("watch %d ended with version %d of %d", w, last, c.Bundle().Version)
			}
		})
	}
	stop := make(chan struct{})
	for w := range 4 {
		csr, id := newCSR(t), fmt.Sprintf("spiffe://cluster.local/w/%d", w)
		issuing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				token, err := c.Tokens().Create(id, 24*time.Hour)
				if err != nil {
					t.Error(err)
					return
				}
				who, err := c.Tokens().Caller(token.Reveal())
				if err != nil {
					// Hours may have passed in between.
					if !errors.Is(err, ErrUnauthenticated) {
						t.Error(err)
					}
					continue
				}
				s, err := c.Issue(ctx, who, csr, 0)
				if err != nil {
					if !errors.Is(err, ErrUnauthenticated) && !errors.Is(err, ErrUnavailable) {
						t.Error(err)
					}
					continue
				}
				if err := verify(s, s.Bundle.Pool(), s.Leaf.NotBefore.Add(Backdate), x509.ExtKeyUsageClientAuth); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 100 {
		if err := c.Tick(ctx, ck.advance(20*time.Minute)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	issuing.Wait()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	watching.Wait()
}

// BenchmarkIssue is one CSR to certificate, its verification and audit line included.
func BenchmarkIssue(b *testing.B) {
	o := short(newClock())
	o.Rate = Rate{PerSecond: 1e6, Burst: 1e9}
	c := mustOpen(b, b.TempDir(), o)
	csr := newCSR(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Issue(b.Context(), Caller{ID: reviews}, csr, time.Minute); err != nil {
			b.Fatal(err)
		}
	}
}
