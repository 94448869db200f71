package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeySetBytes = 1 << 20
	maxKeySetKeys  = 100
	minRSABits     = 2048
)

// tokenAlgorithms are the signatures that are accepted. All of them have a
// public key: a shared secret, or none at all, proves nothing to many readers.
var tokenAlgorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// KeySet is the public keys that verify an issuer's tokens. It is immutable.
// A set without keys verifies nothing.
type KeySet struct {
	keys []tokenKey
}

type tokenKey struct {
	id, algorithm string
	public        any
}

// Len returns the number of keys.
func (s *KeySet) Len() int { return len(s.keys) }

// ParseKeySet reads a JWK Set (RFC 7517). It keeps RSA keys of at least 2048
// bits, EC keys of P-256, P-384 and P-521 and Ed25519 keys that are meant for
// signatures, and leaves others out, as section 5 of the RFC asks. A private or
// a symmetric key is left out too. It is an error if the document is no JWK
// Set, is larger than 1 MiB, holds more than 100 keys or none that can be used.
func ParseKeySet(document []byte) (*KeySet, error) {
	if len(document) > maxKeySetBytes {
		return nil, fmt.Errorf("key set has %d bytes, the limit is %d", len(document), maxKeySetBytes)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return nil, fmt.Errorf("key set is not JSON: %w", err)
	}
	if len(set.Keys) > maxKeySetKeys {
		return nil, fmt.Errorf("key set has %d keys, the limit is %d", len(set.Keys), maxKeySetKeys)
	}
	s := &KeySet{}
	var why []string
	for i, raw := range set.Keys {
		var k jose.JSONWebKey
		err := k.UnmarshalJSON(raw)
		if err == nil && k.Use != "" && k.Use != "sig" {
			err = fmt.Errorf("is for %q", k.Use)
		}
		if err == nil {
			err = usableKey(k.Key)
		}
		if err != nil {
			why = append(why, fmt.Sprintf("key %d: %v", i, err))
			continue
		}
		s.keys = append(s.keys, tokenKey{id: k.KeyID, algorithm: k.Algorithm, public: k.Key})
	}
	if len(s.keys) == 0 {
		return nil, fmt.Errorf("key set has no key that can be used (%s)", strings.Join(why, "; "))
	}
	return s, nil
}

// NewKeySet makes a set of public keys by their IDs, such as the JWT authorities of a trust bundle.
func NewKeySet(keys map[string]crypto.PublicKey) (*KeySet, error) {
	s := &KeySet{}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		if err := usableKey(keys[id]); err != nil {
			return nil, fmt.Errorf("key %q: %w", id, err)
		}
		s.keys = append(s.keys, tokenKey{id: id, public: keys[id]})
	}
	return s, nil
}

func usableKey(key any) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits {
			return fmt.Errorf("has %d bits, RSA needs %d", n, minRSABits)
		}
		return nil
	case *ecdsa.PublicKey:
		return nil
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return nil
		}
	}
	return fmt.Errorf("is not a public key for signatures")
}

// fits reports whether a key may be tried on a token of that algorithm and key ID.
func (k *tokenKey) fits(algorithm, id string) bool {
	if id != "" && k.id != "" && id != k.id || k.algorithm != "" && k.algorithm != algorithm {
		return false
	}
	switch k.public.(type) {
	case *rsa.PublicKey:
		return algorithm[0] == 'R' || algorithm[0] == 'P'
	case *ecdsa.PublicKey:
		return algorithm[:2] == "ES"
	default:
		return algorithm == string(jose.EdDSA)
	}
}
