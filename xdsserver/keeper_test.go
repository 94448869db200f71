package main

import (
	"context"
	"crypto/x509"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
)

// TestKeeper goes through three days with a change of roots in them: at every moment the
// server has a certificate that lives for a while, and that every bundle in use vouches for.
func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		authority, err := ca.Open(ctx, dir, ca.Options{TrustDomain: "cluster.local", Clock: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		td, err := identity.ParseTrustDomain("cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		src, err := source.NewStatic(nil)
		if err != nil {
			t.Fatal(err)
		}
		k := &keeper{ca: authority, td: td, hosts: []string{"127.0.0.1", "xds.example"}, source: src, log: slog.New(slog.DiscardHandler)}
		if err := k.renew(authority.Bundle()); err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		running.Go(func() { k.run(ctx) })
		running.Go(func() { authority.Run(ctx) })
		trust := &meshTrust{Source: src, own: td, aliases: func() []string { return []string{"old.example", "not a domain"} }}
		serials := make(map[string]bool)
		var last *source.Material
		for hour := range 3 * 24 * 2 {
			if hour == 3 {
				if err := authority.Rotate(ctx); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(30 * time.Minute)
			synctest.Wait()
			m, err := trust.Current()
			if err != nil {
				t.Fatalf("after %d half hours: %v", hour, err)
			}
			leaf := m.Certificate.Leaf
			serials[leaf.SerialNumber.String()] = true
			if time.Until(leaf.NotAfter) < 29*time.Minute {
				t.Errorf("after %d half hours the certificate has %v left", hour, time.Until(leaf.NotAfter))
			}
			chain, err := x509.ParseCertificates(append(append([]byte{}, m.Certificate.Certificate[0]...), m.Certificate.Certificate[1]...))
			if err != nil {
				t.Fatal(err)
			}
			for _, seen := range []*source.Material{m, last} {
				if seen == nil {
					continue
				}
				if id, err := identity.VerifySVID(chain, seen.Bundles, time.Now(), identity.UsageServer); err != nil || id.String() != serverID("cluster.local") {
					t.Errorf("after %d half hours: %s, %v", hour, id, err)
				}
			}
			if err := leaf.VerifyHostname("xds.example"); err != nil {
				t.Error(err)
			}
			if err := leaf.VerifyHostname("127.0.0.1"); err != nil {
				t.Error(err)
			}
			old, err := identity.ParseTrustDomain("old.example")
			if err != nil {
				t.Fatal(err)
			}
			if len(m.Bundles) != 2 || m.Bundles[old] != m.Bundles[td] || len(m.Bundles[td].Roots()) != len(authority.Bundle().Roots) {
				t.Errorf("after %d half hours the bundles are %v", hour, m.Bundles)
			}
			last = m
		}
		if len(serials) < 140 {
			t.Errorf("%d certificates in 144 half hours", len(serials))
		}
		if phases := authority.Status().Roots; len(phases) != 1 {
			t.Errorf("the rotation is not over: %+v", phases)
		}
		cancel()
		running.Wait()
		if err := authority.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
