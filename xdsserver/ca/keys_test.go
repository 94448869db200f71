package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// managed keeps keys as a key management service would: by name, across restarts.
type managed struct {
	mu   sync.Mutex
	keys map[string]crypto.Signer
	made int
	fail error
}

func (m *managed) Create(context.Context) (string, crypto.Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return "", nil, m.fail
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	m.made++
	name := "key-" + big.NewInt(int64(m.made)).String()
	m.keys[name] = key
	return name, key, err
}

func (m *managed) Open(_ context.Context, name string) (crypto.Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if key, ok := m.keys[name]; ok {
		return key, m.fail
	}
	return nil, errors.New("no such key")
}

func (m *managed) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, name)
	return nil
}

func TestKeyManager(t *testing.T) {
	ck, m, dir := newClock(), &managed{keys: map[string]crypto.Signer{}}, t.TempDir()
	o := short(ck)
	o.Keys = m
	c := mustOpen(t, dir, o)
	old := mustIssue(t, c, reviews, 0)
	if data, _ := os.ReadFile(c.store.path(c.store.inForce)); bytes.Contains(data, []byte("pkcs8")) || !bytes.Contains(data, []byte("key-1")) {
		t.Errorf("the state has keys, or lacks their names:\n%s", data)
	}
	c.Close()
	if _, err := Open(t.Context(), dir, short(ck)); err == nil || !strings.Contains(err.Error(), "key manager") {
		t.Errorf("opened without the key manager: %v", err)
	}
	m.keys["key-1"], m.keys["key-2"] = m.keys["key-2"], m.keys["key-1"]
	if _, err := Open(t.Context(), dir, o); err == nil || !strings.Contains(err.Error(), "not that of the certificate") {
		t.Errorf("opened with another key: %v", err)
	}
	m.keys["key-1"], m.keys["key-2"] = m.keys["key-2"], m.keys["key-1"]
	c = mustOpen(t, dir, o)
	if err := verify(old, c.Bundle().Pool(), ck.now(), x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	m.fail = errors.New("service away")
	before := c.Bundle().Version
	if err := c.Rotate(t.Context()); err == nil || c.Bundle().Version != before {
		t.Errorf("rotated without the key manager: %v", err)
	}
	m.fail = nil
	for range 48 { // two days of rotations
		if err := c.Tick(t.Context(), ck.advance(time.Hour)); err != nil {
			t.Fatal(err)
		}
		mustIssue(t, c, reviews, 0)
	}
	used := 0
	for i := range c.state.authorities {
		used++
		if c.state.authorities[i].issuer != nil {
			used++
		}
	}
	if len(m.keys) != used || m.made <= used {
		t.Errorf("%d keys are kept, %d used, %d made", len(m.keys), used, m.made)
	}
}
