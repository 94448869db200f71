package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
)

// TestJoinByFingerprint: a workload that knows nothing of the authority but the
// fingerprint of its root joins, and sends its token to nobody else.
func TestJoinByFingerprint(t *testing.T) {
	leak.Check(t)
	caDir := filepath.Join(t.TempDir(), "ca")
	s := serveFolder(t, folder(t, map[string]string{"all.yaml": twoWorkloads}), "--ca-dir", caDir)
	token := filepath.Join(t.TempDir(), "token")
	if _, _, err := run(t, "bootstrap", "--server", s.xds, "--workload", "reviews-1", "--namespace", "shop", "--service-account", "reviews",
		"--ca-dir", caDir, "--token-file", token); err != nil {
		t.Fatal(err)
	}
	config := source.CAConfig{Address: s.xds, JoinTokenFile: token, RootFingerprint: strings.Repeat("ab", 32)}
	refusedJoin(t, config, "pinned fingerprint")

	config.RootFingerprint = ca.Fingerprint(bundle(t, caDir).Roots[0])
	var err error
	if config.ServerID, err = identity.ParseID(serverID("cluster.local")); err != nil {
		t.Fatal(err)
	}
	src, err := source.NewCA(config, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	await(t, func() bool { _, err := src.Current(); return err == nil }, "certificate")
	m, err := src.Current()
	if err != nil {
		t.Fatal(err)
	}
	if m.ID.String() != "spiffe://cluster.local/ns/shop/sa/reviews" {
		t.Errorf("joined as %s", m.ID)
	}
	// Peers of the mesh have the root: it is not presented to them.
	if n := len(m.Certificate.Certificate); n != 2 {
		t.Errorf("a chain of %d certificates, want leaf and issuer", n)
	}
	secret, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(s.log.String(), strings.TrimSpace(string(secret))) {
		t.Error("the log shows the token")
	}
}
