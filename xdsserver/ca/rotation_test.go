package ca

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestSchedule walks through a rotation and names what is due when.
func TestSchedule(t *testing.T) {
	ck := newClock()
	c := mustOpen(t, t.TempDir(), short(ck))
	for _, tt := range []struct {
		at      time.Duration // after the epoch
		phases  string        // active, prepared, retiring
		version uint64
	}{
		{0, "1 0 0", 1},
		{2*time.Hour - 2*time.Minute, "1 0 0", 1},
		{2 * time.Hour, "1 0 0", 1},
		{4 * time.Hour, "1 0 0", 1},
		{6 * time.Hour, "1 1 0", 2},             // half of the root's 12 h
		{7*time.Hour - time.Second, "1 1 0", 2}, // ActivateAfter is MaxTTL, 1 h
		{7 * time.Hour, "1 0 1", 3},
		{8*time.Hour + Backdate - time.Second, "1 0 1", 3}, // the last leaf has not expired for all
		{8*time.Hour + Backdate, "1 0 0", 4},
		{9*time.Hour - time.Second, "1 0 0", 4},
		{12 * time.Hour, "1 1 0", 5}, // half of the second root's life, which began when it was prepared
		{36 * time.Hour, "1 0 0", 9}, // after a long pause: the prepared root is dead too, a new one signs at once
	} {
		ck.t = epoch.Add(tt.at)
		if err := c.Tick(t.Context(), ck.now()); err != nil {
			t.Fatal(err)
		}
		count := map[phase]int{}
		for i := range c.state.authorities {
			count[c.state.authorities[i].phase]++
		}
		if got := fmt.Sprint(count[active], count[prepared], count[retiring]); got != tt.phases {
			t.Errorf("after %v: active, prepared, retiring: %s, want %s", tt.at, got, tt.phases)
		}
		if b := c.Bundle(); b.Version != tt.version || len(b.Roots) != len(c.state.authorities) {
			t.Errorf("after %v: version %d, want %d; %d roots", tt.at, b.Version, tt.version, len(b.Roots))
		}
		if tt.at < 36*time.Hour {
			mustIssue(t, c, reviews, 0)
		}
	}
	s := mustIssue(t, c, reviews, 0)
	if err := verify(s, c.Bundle().Pool(), ck.now(), x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
}

// TestPairings: during the overlap old and new certificates and bundles get on, in all
// four ways, as client and as server.
func TestPairings(t *testing.T) {
	ck := newClock()
	c := mustOpen(t, t.TempDir(), short(ck))
	rotated(t, c, ck)
	ck.advance(50 * time.Minute)
	old := mustIssue(t, c, reviews, 0) // told of both roots, signed under the old
	if err := c.Tick(t.Context(), ck.advance(10*time.Minute)); err != nil {
		t.Fatal(err)
	}
	renewed := mustIssue(t, c, "spiffe://cluster.local/ns/shop/sa/payment", 0)
	if root := c.Bundle().Roots[0]; !root.Equal(old.Bundle.Roots[1]) {
		t.Error("the prepared root is not the one that signs")
	}
	both := map[string]*SVID{"old": old, "new": renewed}
	for until := ck.now().Add(49 * time.Minute); ck.now().Before(until); ck.advance(7 * time.Minute) {
		for cn, client := range both {
			for sn, server := range both {
				if err := verify(client, server.Bundle.Pool(), ck.now(), x509.ExtKeyUsageClientAuth); err != nil {
					t.Errorf("%s client, %s server: the server refuses: %v", cn, sn, err)
				}
				if err := verify(server, client.Bundle.Pool(), ck.now(), x509.ExtKeyUsageServerAuth); err != nil {
					t.Errorf("%s client, %s server: the client refuses: %v", cn, sn, err)
				}
			}
		}
	}
	// And the overlap ends: the old root is out, its leaves with it.
	if err := c.Tick(t.Context(), ck.advance(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := len(c.Bundle().Roots); n != 1 {
		t.Errorf("%d roots after the overlap", n)
	}
	if verify(old, c.Bundle().Pool(), ck.now().Add(-time.Hour), x509.ExtKeyUsageClientAuth) == nil {
		t.Error("the old leaf verifies against the new root alone")
	}
}

// fleet runs workloads through hours with a root every six hours, each knowing only
// the bundle that came with its certificate, and counts handshakes that fail. They renew
// late, at 95 % of their certificates' lives. For half an hour the server is away.
func fleet(t *testing.T, hours int, spoil func(*state)) (handshakes, failures int) {
	ck, dir := newClock(), t.TempDir()
	rnd := rand.New(rand.NewPCG(1, 2))
	c := mustOpen(t, dir, short(ck))
	type workload struct {
		svid  *SVID
		renew time.Time
	}
	workloads := make([]workload, 8)
	for minute := range hours * 60 {
		up := true
		switch {
		case minute == 390: // in the midst of a rotation
			c.Close()
			fallthrough
		case minute > 390 && minute < 420:
			up = false
		case minute == 420:
			c = mustOpen(t, dir, short(ck))
		}
		now := ck.now()
		if up {
			spoil(c.state)
			if err := c.Tick(t.Context(), now); err != nil {
				t.Fatal(err)
			}
			for i := range workloads {
				if w := &workloads[i]; !now.Before(w.renew) {
					ttl := time.Duration(20+rnd.IntN(41)) * time.Minute
					w.svid, w.renew = mustIssue(t, c, reviews, ttl), now.Add(ttl*95/100)
				}
			}
		}
		client, server := &workloads[rnd.IntN(len(workloads))], &workloads[rnd.IntN(len(workloads))]
		ck.advance(time.Minute)
		if !now.Before(client.svid.Leaf.NotAfter) || !now.Before(server.svid.Leaf.NotAfter) {
			if up {
				t.Fatalf("minute %d: a certificate has expired", minute)
			}
			continue
		}
		handshakes++
		if verify(client.svid, server.svid.Bundle.Pool(), now, x509.ExtKeyUsageClientAuth) != nil || verify(server.svid, client.svid.Bundle.Pool(), now, x509.ExtKeyUsageServerAuth) != nil {
			failures++
		}
	}
	if v := c.Bundle().Version; v < uint64(2*(hours/6)) {
		t.Errorf("version %d: the roots did not rotate", v)
	}
	return handshakes, failures
}

func TestFleet(t *testing.T) {
	handshakes, failures := fleet(t, 36, func(*state) {})
	if failures != 0 || handshakes < 2000 {
		t.Errorf("%d of %d handshakes failed", failures, handshakes)
	}
	// Without either wait handshakes must fail, or this test sees nothing.
	if _, failures := fleet(t, 9, func(s *state) {
		if p := s.prepared(); p != nil {
			p.since = epoch
		}
	}); failures == 0 {
		t.Error("none failed although a root signs before all know it")
	}
	if _, failures := fleet(t, 9, func(s *state) {
		if r := s.find(retiring); r != nil {
			r.retireAt = epoch
		}
	}); failures == 0 {
		t.Error("none failed although a root goes before its leaves")
	}
}

// TestLongerLeavesOutlive: shortening MaxTTL does not cut off the leaves from before.
func TestLongerLeavesOutlive(t *testing.T) {
	ck, dir := newClock(), t.TempDir()
	o := short(ck)
	o.MaxTTL, o.RootTTL = 2*time.Hour, 24*time.Hour
	c := mustOpen(t, dir, o)
	leaf := mustIssue(t, c, reviews, 2*time.Hour)
	c.Close()
	o.MaxTTL = time.Hour
	c = mustOpen(t, dir, o)
	rotated(t, c, ck)
	for ck.now().Before(leaf.Leaf.NotAfter) {
		if err := c.Tick(t.Context(), ck.advance(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := verify(leaf, c.Bundle().Pool(), ck.now(), x509.ExtKeyUsageClientAuth); err != nil {
			t.Fatalf("%v: %v", ck.now(), err)
		}
		if contains(leaf.Bundle, c.Bundle().Roots[0]) != ck.now().Before(epoch.Add(2*time.Hour)) {
			t.Fatalf("%v: the leaf's workload meets a root that it does not know", ck.now())
		}
	}
}

func TestRotateRefused(t *testing.T) {
	ck := newClock()
	c := mustOpen(t, t.TempDir(), short(ck))
	rotated(t, c, ck)
	if err := c.Rotate(t.Context()); err == nil {
		t.Error("rotated twice at once")
	}
	ck.advance(time.Hour)
	if err := c.Rotate(t.Context()); err == nil { // activates, and the old one retires
		t.Error("rotated while a root retires")
	}
	ck.advance(time.Hour + Backdate)
	if err := c.Rotate(t.Context()); err != nil {
		t.Error(err)
	}
	c.Close()
	if c.Rotate(t.Context()) == nil || c.Tick(t.Context(), ck.now()) == nil {
		t.Error("a closed authority changes")
	}
}

// TestRun: a day of its own accord, in virtual time, watched.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := short(newClock())
		o.Clock = time.Now
		c, err := Open(t.Context(), t.TempDir(), o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go c.Run(ctx)
		watch := c.Watch(ctx)
		slow := c.Watch(ctx)
		short, stop := context.WithCancel(ctx)
		gone := c.Watch(short)
		stop()
		synctest.Wait()
		if b, ok := <-gone; !ok || b.Version != 1 {
			t.Errorf("the first value: %v, %v", b.Version, ok)
		}
		if _, ok := <-gone; ok {
			t.Error("a watch goes on after its context")
		}
		var versions []uint64
		end := time.After(24 * time.Hour)
	day:
		for {
			select {
			case b := <-watch:
				versions = append(versions, b.Version)
			case <-end:
				break day
			}
		}
		if len(versions) < 8 {
			t.Errorf("versions %v", versions)
		}
		for i, v := range versions {
			if v != uint64(i+1) {
				t.Errorf("versions %v", versions)
				break
			}
		}
		if b := <-slow; b.Version != c.Bundle().Version {
			t.Errorf("a slow reader gets version %d, not %d", b.Version, c.Bundle().Version)
		}
		cancel()
		synctest.Wait()
		if _, ok := <-watch; ok {
			t.Error("a watch goes on after its context")
		}
		open := c.Watch(t.Context())
		<-open
		c.Close()
		if _, ok := <-open; ok {
			t.Error("a watch goes on after Close")
		}
		if _, ok := <-c.Watch(t.Context()); ok {
			t.Error("a watch begins after Close")
		}
	})
}

func TestIssuerRenewal(t *testing.T) {
	ck := newClock()
	c := mustOpen(t, t.TempDir(), short(ck))
	first := c.view.Load().issuer
	if err := c.Tick(t.Context(), ck.advance(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	second := c.view.Load().issuer
	if second.Equal(first) || second.SerialNumber.Cmp(first.SerialNumber) == 0 || c.Bundle().Version != 1 {
		t.Errorf("the issuer was not renewed under the same root")
	}
	s := mustIssue(t, c, reviews, 0)
	block, _ := pem.Decode([]byte(s.Chain[1]))
	if got, _ := x509.ParseCertificate(block.Bytes); !got.Equal(second) {
		t.Error("the chain has the old issuer")
	}
}
