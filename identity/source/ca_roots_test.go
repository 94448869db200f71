package source

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// pinned prepares an authority of two roots, of which only the first is pinned
// by its fingerprint, and which announces both in one element of the chain.
func pinned(a *testAuthority, c *CAConfig) {
	a.asBundle = true
	a.roots = append(a.roots, sign(a.t, rootTemplate("next"), nil, nil))
	sum := sha256.Sum256(a.roots[0].cert.Raw)
	c.RootsPEM, c.RootFingerprint = nil, hex.EncodeToString(sum[:])
}

// swap makes the other root the one that signs, the authority's own
// certificate included.
func (a *testAuthority) swap(t *testing.T) {
	a.set(func() {
		a.roots[0], a.roots[1] = a.roots[1], a.roots[0]
		template := workloadTemplate("spiffe://td.example/ns/mesh/sa/ca", time.Now().Add(-time.Hour), time.Now().Add(365*24*time.Hour))
		template.DNSNames = []string{"ca.test"}
		a.tls = sign(t, template, a.roots[0], nil)
	})
}

// TestCAPinsEveryRoot: all roots that come with the first certificate are
// believed from then on, also those of a bundle in one element of the chain, so
// that the one that was pinned may go.
func TestCAPinsEveryRoot(t *testing.T) {
	inBubble(t, pinned, func(t *testing.T, a *testAuthority, c *CA) {
		td := mustID(t, workloadID).TrustDomain()
		first := must(t, c)
		if n := len(first.Bundles[td].Roots()); n != 2 {
			t.Fatalf("%d roots of two", n)
		}
		if n := len(first.Certificate.Certificate); n != 1 {
			t.Errorf("%d certificates are presented to peers, roots among them", n)
		}
		a.swap(t)
		<-c.Changed()
		second := must(t, c)
		for name, pair := range map[string][2]*Material{"old by new": {first, second}, "new by old": {second, first}, "new by new": {second, second}} {
			if err := peerAccepts(t, pair[0], pair[1]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		// The old root is withdrawn.
		a.set(func() { a.roots = a.roots[:1] })
		<-c.Changed()
		third := must(t, c)
		if roots := third.Bundles[td].Roots(); len(roots) != 1 || !roots[0].Equal(a.roots[0].cert) {
			t.Errorf("%d roots are in force after one was withdrawn", len(roots))
		}
		if err := peerAccepts(t, first, third); err == nil {
			t.Error("a certificate of the withdrawn root is accepted")
		}
		a.set(func() {
			if a.byToken != 1 || a.byCert != 2 || a.failures != 0 {
				t.Errorf("%d by token, %d by certificate, %d refused", a.byToken, a.byCert, a.failures)
			}
		})
	})
}

// TestCAStatePinsEveryRoot: a process that starts again when the authority no
// longer shows the pinned root recognises it by what the state file says.
func TestCAStatePinsEveryRoot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.pem")
	inBubble(t, func(a *testAuthority, c *CAConfig) { pinned(a, c); c.StateFile = path }, func(t *testing.T, a *testAuthority, c *CA) {
		must(t, c)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		a.swap(t)
		again, err := NewCA(c.config, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		synctest.Wait() // for the state file
		<-again.Changed()
		synctest.Wait()
		m := must(t, again)
		if err := peerAccepts(t, m, m); err != nil {
			t.Error(err)
		}
		a.set(func() {
			if a.byToken != 1 || a.byCert != 1 {
				t.Errorf("%d by token, %d by certificate", a.byToken, a.byCert)
			}
		})
	})
}

// TestCAPinHolds: an authority of the same name under a root that was never
// announced gets nothing.
func TestCAPinHolds(t *testing.T) {
	inBubble(t, pinned, func(t *testing.T, a *testAuthority, c *CA) {
		m := must(t, c)
		a.set(func() { a.requests = nil })
		a.rotate(false)
		time.Sleep(45 * time.Minute)
		if must(t, c) != m || c.Status().Failures == 0 {
			t.Errorf("%+v", c.Status())
		}
		a.set(func() {
			if len(a.requests) != 0 {
				t.Error("a stranger got a request")
			}
		})
	})
}

// TestCAIstiodDialect: the token as a bearer, the cluster in the call's metadata.
func TestCAIstiodDialect(t *testing.T) {
	path := tokenFile(t, "kubernetes-token")
	inBubble(t, func(a *testAuthority, c *CAConfig) {
		a.saToken = "kubernetes-token"
		c.JoinTokenFile, c.TokenFile, c.Metadata = "", path, map[string]string{"ClusterID": "east"}
	}, func(t *testing.T, a *testAuthority, c *CA) {
		must(t, c)
		<-c.Changed()
		synctest.Wait()
		a.set(func() {
			if len(a.headers) != 2 {
				t.Fatalf("%d calls", len(a.headers))
			}
			for _, md := range a.headers {
				if got := md.Get("clusterid"); len(got) != 1 || got[0] != "east" {
					t.Errorf("cluster %q", got)
				}
				if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer kubernetes-token" {
					t.Error("no bearer token")
				}
			}
		})
	})
}

// TestCAFlapping: an authority that comes and goes every few seconds costs
// neither a certificate nor a storm of requests.
func TestCAFlapping(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, a *testAuthority, c *CA) {
		a.set(func() { a.dialTimes = nil })
		for i := range 8 * 3600 / 7 {
			a.set(func() { a.down = i%2 == 0 })
			time.Sleep(7 * time.Second)
			must(t, c)
		}
		synctest.Wait()
		a.set(func() {
			if len(a.dialTimes) > 400 || a.byCert < 14 || a.byToken != 1 {
				t.Errorf("%d connections in 8 h, %d certificates", len(a.dialTimes), a.byCert)
			}
		})
	})
}
