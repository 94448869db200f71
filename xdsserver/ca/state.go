package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// KeyManager keeps private keys where they can be used but not read, as a key management
// service or a hardware module does. Keys are ECDSA P-256 or P-384, or RSA of 2048 to
// 4096 bits. A kill between Create and the state that names the key leaves a key that
// nothing uses.
type KeyManager interface {
	// Create makes a key. The name finds it again, after a restart too; it is not secret.
	Create(ctx context.Context) (name string, key crypto.Signer, err error)
	// Open gives the key that Create named so.
	Open(ctx context.Context, name string) (crypto.Signer, error)
	// Delete removes a key that will not be used again. Errors are logged only.
	Delete(ctx context.Context, name string) error
}

// keyRecord is a private key in the state: itself, or its name at the key manager.
type keyRecord struct {
	PKCS8 []byte `json:"pkcs8,omitempty"`
	Name  string `json:"name,omitempty"`

	signer crypto.Signer // once opened
}

// phase is where a root stands in its life.
type phase string

const (
	prepared phase = "prepared" // in the bundle, signs nothing yet
	active   phase = "active"   // signs
	retiring phase = "retiring" // in the bundle for the leaves that it has signed
)

// authority is a root with its issuing certificate.
type authority struct {
	id        string
	phase     phase
	since     time.Time // when it entered the phase
	retireAt  time.Time // retiring: when the last leaf under it has expired
	root      *x509.Certificate
	rootKey   keyRecord
	issuer    *x509.Certificate // nil while prepared
	issuerKey keyRecord
}

// state is everything that must survive. A state that has been saved is not modified:
// changes are made on a clone.
type state struct {
	trustDomain string
	external    bool
	version     uint64              // of the bundle; rises with each change of it
	longestLeaf time.Duration       // the longest that any leaf may live that has been issued
	authorities []authority         // embedded
	roots       []*x509.Certificate // external
}

func (s *state) clone() *state {
	c := *s
	c.authorities = slices.Clone(s.authorities)
	return &c
}

func (s *state) find(p phase) *authority {
	for i := range s.authorities {
		if s.authorities[i].phase == p {
			return &s.authorities[i]
		}
	}
	return nil
}

func (s *state) active() *authority   { return s.find(active) }
func (s *state) prepared() *authority { return s.find(prepared) }

// bundleRoots gives the roots to trust, the one that signs first.
func (s *state) bundleRoots() []*x509.Certificate {
	if s.external {
		return slices.Clone(s.roots)
	}
	var roots []*x509.Certificate
	for _, p := range []phase{active, prepared, retiring} {
		for i := range s.authorities {
			if s.authorities[i].phase == p {
				roots = append(roots, s.authorities[i].root)
			}
		}
	}
	return roots
}

// The file: one line "sinew-ca-state 1 <SHA-256 of the rest, hex>", then JSON.
const stateMagic = "sinew-ca-state 1 "

type stateJSON struct {
	TrustDomain   string          `json:"trust_domain"`
	External      bool            `json:"external,omitempty"`
	BundleVersion uint64          `json:"bundle_version"`
	LongestLeaf   string          `json:"longest_leaf"` // as time.Duration prints it
	Authorities   []authorityJSON `json:"authorities,omitempty"`
	Roots         string          `json:"roots,omitempty"` // PEM
}

type authorityJSON struct {
	ID        string     `json:"id"`
	Phase     phase      `json:"phase"`
	Since     time.Time  `json:"since"`
	RetireAt  *time.Time `json:"retire_at,omitempty"`
	Root      string     `json:"root"` // PEM
	RootKey   keyRecord  `json:"root_key"`
	Issuer    string     `json:"issuer,omitempty"` // PEM
	IssuerKey *keyRecord `json:"issuer_key,omitempty"`
}

func encodeState(s *state) ([]byte, error) {
	j := stateJSON{
		TrustDomain: s.trustDomain, External: s.external, BundleVersion: s.version,
		LongestLeaf: s.longestLeaf.String(), Roots: string(certsPEM(s.roots)),
	}
	for i := range s.authorities {
		a := &s.authorities[i]
		aj := authorityJSON{ID: a.id, Phase: a.phase, Since: a.since.UTC(), Root: string(certsPEM([]*x509.Certificate{a.root})), RootKey: a.rootKey}
		if !a.retireAt.IsZero() {
			t := a.retireAt.UTC()
			aj.RetireAt = &t
		}
		if a.issuer != nil {
			aj.Issuer, aj.IssuerKey = string(certsPEM([]*x509.Certificate{a.issuer})), &a.issuerKey
		}
		j.Authorities = append(j.Authorities, aj)
	}
	body, err := json.MarshalIndent(j, "", " ")
	if err != nil {
		return nil, err
	}
	return seal(stateMagic, append(body, '\n')), nil
}

func decodeState(data []byte) (*state, error) {
	body, err := unseal(stateMagic, data)
	if err != nil {
		return nil, err
	}
	return decodeStateBody(body)
}

// seal puts the checksum before the content; unseal tells a torn or damaged file.
func seal(magic string, body []byte) []byte {
	sum := sha256.Sum256(body)
	return append([]byte(magic+hex.EncodeToString(sum[:])+"\n"), body...)
}

func unseal(magic string, data []byte) ([]byte, error) {
	head, body, found := bytes.Cut(data, []byte("\n"))
	sum, ok := strings.CutPrefix(string(head), magic)
	if !found || !ok {
		return nil, fmt.Errorf("does not begin with %q and a checksum", strings.TrimSpace(magic))
	}
	want := sha256.Sum256(body)
	if sum != hex.EncodeToString(want[:]) {
		return nil, errors.New("torn or damaged: the checksum does not match")
	}
	return body, nil
}

// decodeStateBody also proves that certificates and keys belong together, so that what
// it accepts can be issued from.
func decodeStateBody(body []byte) (*state, error) {
	var j stateJSON
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields() // written by a newer program: not ours to guess
	if err := d.Decode(&j); err != nil {
		return nil, errors.New("is not the JSON of a state") // the decoder's text may quote a key
	}
	if d.More() {
		return nil, errors.New("goes on after the state")
	}
	s := &state{trustDomain: j.TrustDomain, external: j.External, version: j.BundleVersion}
	if _, err := parseTrustDomain(j.TrustDomain); err != nil {
		return nil, err
	}
	var err error
	if s.longestLeaf, err = time.ParseDuration(j.LongestLeaf); err != nil || s.longestLeaf <= 0 {
		return nil, errors.New("longest_leaf: not a positive duration")
	}
	if j.External {
		if len(j.Authorities) > 0 {
			return nil, errors.New("authorities: present although external")
		}
		if s.roots, err = parseCerts([]byte(j.Roots)); err != nil {
			return nil, fmt.Errorf("roots: %w", err)
		}
		return s, nil
	}
	if j.Roots != "" {
		return nil, errors.New("roots: present although not external")
	}
	count := map[phase]int{}
	for i := range j.Authorities {
		a, err := decodeAuthority(&j.Authorities[i])
		if err != nil {
			return nil, fmt.Errorf("authorities[%d]: %w", i, err)
		}
		if slices.ContainsFunc(s.authorities, func(b authority) bool { return a.id == b.id || a.root.Equal(b.root) }) {
			return nil, fmt.Errorf("authorities[%d]: is there twice", i)
		}
		count[a.phase]++
		s.authorities = append(s.authorities, *a)
	}
	if count[active] != 1 || count[prepared] > 1 {
		return nil, fmt.Errorf("%d active and %d prepared authorities, not one and at most one", count[active], count[prepared])
	}
	return s, nil
}

func decodeAuthority(j *authorityJSON) (*authority, error) {
	a := &authority{id: j.ID, phase: j.Phase, since: j.Since.UTC(), rootKey: j.RootKey}
	if j.RetireAt != nil {
		a.retireAt = j.RetireAt.UTC()
	}
	if a.id == "" || a.since.IsZero() {
		return nil, errors.New("id or since: missing")
	}
	for _, t := range []time.Time{a.since, a.retireAt} {
		if t.Year() < 1 || t.Year() > 9999 {
			return nil, errors.New("since or retire_at: not a time that can be written")
		}
	}
	switch {
	case a.phase != prepared && a.phase != active && a.phase != retiring:
		return nil, errors.New("phase: unknown")
	case (a.phase == retiring) == a.retireAt.IsZero():
		return nil, errors.New("retire_at: for a retiring authority, and only for that")
	case (a.phase == prepared) != (j.IssuerKey == nil):
		return nil, errors.New("issuer_key: for all but a prepared authority")
	}
	var err error
	if a.root, err = parseCert([]byte(j.Root)); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := a.root.CheckSignatureFrom(a.root); err != nil {
		return nil, fmt.Errorf("root: not self-signed: %w", err)
	}
	if err := a.rootKey.parse(a.root); err != nil {
		return nil, fmt.Errorf("root_key: %w", err)
	}
	if j.IssuerKey == nil {
		if j.Issuer != "" {
			return nil, errors.New("issuer: without a key")
		}
		return a, nil
	}
	a.issuerKey = *j.IssuerKey
	if a.issuer, err = parseCert([]byte(j.Issuer)); err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	if err := a.issuer.CheckSignatureFrom(a.root); err != nil {
		return nil, fmt.Errorf("issuer: not signed by the root: %w", err)
	}
	if err := a.issuerKey.parse(a.issuer); err != nil {
		return nil, fmt.Errorf("issuer_key: %w", err)
	}
	return a, nil
}

func (k *keyRecord) parse(cert *x509.Certificate) error {
	if (k.Name == "") == (len(k.PKCS8) == 0) {
		return errors.New("needs either pkcs8 or name")
	}
	if k.Name != "" {
		return nil
	}
	key, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
	if err != nil {
		return errors.New("pkcs8: can not be parsed")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return errors.New("pkcs8: can not sign")
	}
	if err := matches(signer, cert); err != nil {
		return err
	}
	k.signer = signer
	return nil
}

// matches is an error unless the key is that of the certificate.
func matches(key crypto.Signer, cert *x509.Certificate) error {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return errors.New("the key is not that of the certificate")
	}
	return nil
}

// openKey gives the signer of a record, proved to be that of the certificate.
func (c *CA) openKey(ctx context.Context, k *keyRecord, cert *x509.Certificate) (crypto.Signer, error) {
	if k.signer != nil {
		return k.signer, nil
	}
	signer, err := c.opts.Keys.Open(ctx, k.Name)
	if err != nil {
		return nil, fmt.Errorf("open key %q: %w", k.Name, err)
	}
	if err := matches(signer, cert); err != nil {
		return nil, fmt.Errorf("open key %q: %w", k.Name, err)
	}
	return signer, nil
}

// createKey makes a key for a root or an issuing certificate.
func (c *CA) createKey(ctx context.Context) (keyRecord, error) {
	if c.opts.Keys != nil {
		name, signer, err := c.opts.Keys.Create(ctx)
		if err != nil {
			return keyRecord{}, fmt.Errorf("create key: %w", err)
		}
		if name == "" || signer == nil {
			return keyRecord{}, errors.New("create key: the key manager gave no name or no key")
		}
		if err := checkKey(signer.Public()); err != nil {
			return keyRecord{}, fmt.Errorf("create key: %w", err)
		}
		return keyRecord{Name: name, signer: signer}, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyRecord{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return keyRecord{}, err
	}
	return keyRecord{PKCS8: der, signer: key}, nil
}

func certsPEM(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// parseCerts reads one certificate or more, and nothing else, in PEM.
func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("not PEM, or torn")
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("a PEM block is not a CERTIFICATE")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs, data = append(certs, cert), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}

func parseCert(data []byte) (*x509.Certificate, error) {
	certs, err := parseCerts(data)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, errors.New("more than one certificate")
	}
	return certs[0], nil
}
