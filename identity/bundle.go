package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// Bundle is what one trust domain's identities are verified with: the roots of
// its X509-SVIDs and the keys of its JWT-SVIDs (SPIFFE Trust Domain and
// Bundle). It is immutable.
type Bundle struct {
	roots []*x509.Certificate
	pool  *x509.CertPool
	jwt   map[string]crypto.PublicKey

	// RefreshHint is how often the publisher wants it to be read again; 0 where it does not say.
	RefreshHint time.Duration
	// Sequence grows with each change; 0 where the publisher does not count.
	Sequence uint64
}

// BundleSet holds the bundle of each trust domain whose identities are
// believed. It must not be changed once it is in use; a nil set believes nobody.
type BundleSet map[TrustDomain]*Bundle

// NewBundle makes a bundle of roots and JWT keys by key ID, either of which may
// be empty: a trust domain without roots has no X.509 support, and its
// X509-SVIDs are refused. Each root must be a CA that may sign certificates.
func NewBundle(roots []*x509.Certificate, jwtKeys map[string]crypto.PublicKey) (*Bundle, error) {
	b := &Bundle{pool: x509.NewCertPool(), jwt: jwtKeys}
	for i, c := range roots {
		if err := checkRoot(c); err != nil {
			return nil, fmt.Errorf("root %d: %w", i, err)
		}
		if b.hasRoot(c) {
			continue
		}
		b.roots = append(b.roots, c)
		b.pool.AddCert(c)
	}
	return b, nil
}

func checkRoot(c *x509.Certificate) error {
	if !c.IsCA {
		return fmt.Errorf("%q is no CA certificate", c.Subject)
	}
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("%q may not sign certificates: keyCertSign is not set", c.Subject)
	}
	return nil
}

func (b *Bundle) hasRoot(c *x509.Certificate) bool {
	for _, have := range b.roots {
		if have.Equal(c) {
			return true
		}
	}
	return false
}

// Roots returns the roots, which the caller must not change.
func (b *Bundle) Roots() []*x509.Certificate { return b.roots }

// JWTKeys returns the keys of JWT-SVIDs by key ID, which the caller must not change.
func (b *Bundle) JWTKeys() map[string]crypto.PublicKey { return b.jwt }

// document is a SPIFFE bundle: a JWK set with two members of its own.
type document struct {
	Keys        *[]json.RawMessage `json:"keys"`
	RefreshHint int64              `json:"spiffe_refresh_hint"`
	Sequence    uint64             `json:"spiffe_sequence"`
}

type jwk struct {
	Use string   `json:"use"`
	Kid string   `json:"kid"`
	X5C []string `json:"x5c"`
}

// ParseBundle reads a SPIFFE bundle document (SPIFFE Trust Domain and Bundle
// section 4, X509-SVID section 6, JWT-SVID section 6). Keys with a missing or
// unknown use are skipped, and so are X.509 entries without a certificate; of
// several certificates in one entry the first counts. A key that can not be
// parsed, a JWT key without an ID and a document without "keys" are errors.
func ParseBundle(doc []byte) (*Bundle, error) { return parseBundle(doc, false) }

// parseBundle: strict asks that each X.509 entry has a certificate.
func parseBundle(doc []byte, strict bool) (*Bundle, error) {
	var d document
	if err := json.Unmarshal(doc, &d); err != nil {
		return nil, fmt.Errorf("SPIFFE bundle: %w", err)
	}
	if d.Keys == nil {
		return nil, errors.New(`SPIFFE bundle: there is no "keys"`)
	}
	if d.RefreshHint < 0 || d.RefreshHint > int64(1<<62/time.Second) {
		return nil, fmt.Errorf("SPIFFE bundle: spiffe_refresh_hint: %d seconds", d.RefreshHint)
	}
	var roots []*x509.Certificate
	keys := make(map[string]crypto.PublicKey)
	for i, raw := range *d.Keys {
		var k jwk
		if err := json.Unmarshal(raw, &k); err != nil {
			return nil, fmt.Errorf("SPIFFE bundle: keys[%d]: %w", i, err)
		}
		switch k.Use {
		case "x509-svid":
			if len(k.X5C) == 0 || k.X5C[0] == "" {
				if strict {
					return nil, fmt.Errorf("SPIFFE bundle: keys[%d].x5c: missing or empty", i)
				}
				continue
			}
			root, err := parseX5C(k.X5C[0])
			if err != nil {
				return nil, fmt.Errorf("SPIFFE bundle: keys[%d].x5c[0]: %w", i, err)
			}
			roots = append(roots, root)
		case "jwt-svid":
			if k.Kid == "" {
				return nil, fmt.Errorf("SPIFFE bundle: keys[%d].kid: missing", i)
			}
			if _, twice := keys[k.Kid]; twice {
				return nil, fmt.Errorf("SPIFFE bundle: keys[%d].kid: %q stands twice", i, k.Kid)
			}
			var parsed jose.JSONWebKey
			if err := parsed.UnmarshalJSON(raw); err != nil {
				return nil, fmt.Errorf("SPIFFE bundle: keys[%d]: %w", i, err)
			}
			if !parsed.IsPublic() {
				return nil, fmt.Errorf("SPIFFE bundle: keys[%d]: no public key", i)
			}
			keys[k.Kid] = parsed.Key
		}
	}
	b, err := NewBundle(roots, keys)
	if err != nil {
		return nil, fmt.Errorf("SPIFFE bundle: %w", err)
	}
	b.RefreshHint, b.Sequence = time.Duration(d.RefreshHint)*time.Second, d.Sequence
	return b, nil
}

func parseX5C(s string) (*x509.Certificate, error) {
	der, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return c, checkRoot(c)
}

// ParseBundleMap reads the bundles of several trust domains from one document,
// {"trust_domains": {"<name>": <bundle>}}, as Envoy's SPIFFE validator and
// gRPC's file_watcher do (gRFC A87). It is a file that an operator writes, so
// it is held to more than ParseBundle: a trust domain that stands twice and an
// X.509 entry without a certificate are errors.
func ParseBundleMap(doc []byte) (BundleSet, error) {
	var outer struct {
		TrustDomains json.RawMessage `json:"trust_domains"`
	}
	if err := json.Unmarshal(doc, &outer); err != nil {
		return nil, fmt.Errorf("trust bundle map: %w", err)
	}
	if len(outer.TrustDomains) == 0 {
		return nil, errors.New(`trust bundle map: there is no "trust_domains"`)
	}
	// Read token by token: a map would keep the last of two members of the same name.
	dec := json.NewDecoder(bytes.NewReader(outer.TrustDomains))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("trust bundle map: trust_domains: not an object")
	}
	set := make(BundleSet)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("trust bundle map: %w", err)
		}
		name, _ := t.(string)
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, fmt.Errorf("trust bundle map: trust_domains[%q]: %w", name, err)
		}
		td, err := ParseTrustDomain(name)
		if err != nil {
			return nil, fmt.Errorf("trust bundle map: %w", err)
		}
		if set[td] != nil {
			return nil, fmt.Errorf("trust bundle map: trust_domains[%q]: stands twice", name)
		}
		if set[td], err = parseBundle(raw, true); err != nil {
			return nil, fmt.Errorf("trust bundle map: trust_domains[%q]: %w", name, err)
		}
	}
	return set, nil
}
