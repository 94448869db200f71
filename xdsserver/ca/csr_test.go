package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
)

func TestCSR(t *testing.T) {
	rsaKey := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	curve := func(c elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	p256 := newKey(t)
	good := csrBy(t, p256, &x509.CertificateRequest{})
	block, _ := pem.Decode(good)
	broken := bytes.Clone(block.Bytes)
	broken[len(broken)-1] ^= 1
	keyDER, _ := x509.MarshalPKCS8PrivateKey(p256)
	asPEM := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	// A request for a key that the sender does not have: another's, under its signature.
	stolen := swapKey(t, block.Bytes, p256.Public(), newKey(t).Public())
	for _, tt := range []struct {
		name string
		csr  []byte
		want string // in the error; empty: accepted
	}{
		{"P-256", good, ""},
		{"P-384", csrBy(t, curve(elliptic.P384()), &x509.CertificateRequest{}), ""},
		{"RSA 2048", csrBy(t, rsaKey(2048), &x509.CertificateRequest{}), ""},
		{"old name of the block", asPEM("NEW CERTIFICATE REQUEST", block.Bytes), ""},
		{"space around", append([]byte("\r\n "), append(good, "\n\n"...)...), ""},
		{"P-224", csrBy(t, curve(elliptic.P224()), &x509.CertificateRequest{}), "neither P-256 nor P-384"},
		{"P-521", csrBy(t, curve(elliptic.P521()), &x509.CertificateRequest{}), "neither P-256 nor P-384"},
		{"Ed25519", csrBy(t, ed, &x509.CertificateRequest{}), "neither ECDSA"},
		{"RSA 1024", csrBy(t, rsaKey(1024), &x509.CertificateRequest{}), "1024 bits"},
		{"signature broken", asPEM("CERTIFICATE REQUEST", broken), "signature"},
		{"another's key", asPEM("CERTIFICATE REQUEST", stolen), "signature"},
		{"empty", nil, "not PEM"},
		{"DER", block.Bytes, "not PEM"},
		{"text before", append([]byte("hello\n"), good...), "not PEM"},
		{"text after", append(bytes.Clone(good), "hello"...), "after the CSR"},
		{"two", append(bytes.Clone(good), good...), "after the CSR"},
		{"torn", good[:len(good)/2], "not PEM"},
		{"a certificate", asPEM("CERTIFICATE", block.Bytes), "not a CERTIFICATE REQUEST"},
		{"a private key", asPEM("PRIVATE KEY", keyDER), "not a CERTIFICATE REQUEST"},
		{"a private key as request", asPEM("CERTIFICATE REQUEST", keyDER), "malformed"},
		{"garbage", asPEM("CERTIFICATE REQUEST", []byte("garbage")), "malformed"},
		{"trailing bytes inside", asPEM("CERTIFICATE REQUEST", append(bytes.Clone(block.Bytes), 0)), "malformed"},
		{"huge", asPEM("CERTIFICATE REQUEST", make([]byte, maxCSR)), "longer than"},
	} {
		_, err := parseCSR(tt.csr)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := checkKey(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 3}); err == nil {
		t.Error("RSA exponent 3 is accepted")
	}
	if err := checkKey(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8191), E: 65537}); err == nil {
		t.Error("RSA with 8192 bits is accepted")
	}
}

func swapKey(t *testing.T, der []byte, from, to crypto.PublicKey) []byte {
	t.Helper()
	a, err := x509.MarshalPKIXPublicKey(from)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(to)
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.Replace(der, a, b, 1)
	if bytes.Equal(out, der) {
		t.Fatal("nothing was replaced")
	}
	return out
}
