package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

// FuzzCSR: what is accepted is one signed request for a key of an allowed kind, and
// nothing of the input gets into an error.
func FuzzCSR(f *testing.F) {
	f.Add(newCSR(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		public, err := parseCSR(data)
		if err != nil {
			if len(err.Error()) > 100 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if err := checkKey(public); err != nil {
			t.Errorf("accepted: %v", err)
		}
		// The plain way to the same: no more, no less.
		block, _ := pem.Decode(data)
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || csr.CheckSignature() != nil {
			t.Errorf("accepted a request that crypto/x509 does not: %v", err)
		}
	})
}

// FuzzState: no state is accepted that could not be written again as the same.
func FuzzState(f *testing.F) {
	ck := newClock()
	c := mustOpen(f, f.TempDir(), short(ck))
	for range 8 {
		data, err := encodeState(c.state)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		if err := c.Tick(f.Context(), ck.advance(time.Hour)); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := decodeState(data); err != nil {
			// Past the checksum, as a damaged writer would get.
			_, body, _ := bytes.Cut(data, []byte("\n"))
			data = seal(stateMagic, body)
		}
		s, err := decodeState(data)
		if err != nil {
			return
		}
		if !s.external && s.active() == nil {
			t.Fatal("accepted without an active authority")
		}
		out, err := encodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeState(out)
		if err != nil {
			t.Fatalf("what is written can not be read: %v", err)
		}
		if twice, err := encodeState(again); err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("not the same again: %v", err)
		}
	})
}

// FuzzToken: of all strings only the token itself is accepted, and the ID in any other
// is a plain file name.
func FuzzToken(f *testing.F) {
	tokens := newTokens(f, f.TempDir(), newClock(), nil)
	token := mustCreate(f, tokens, 0)
	f.Add(token.Reveal())
	f.Add("")
	f.Add(tokenPrefix + strings.Repeat("0", 32) + "." + strings.Repeat("A", 43))
	f.Add(tokenPrefix + "../../../etc/passwd." + strings.Repeat("A", 43))
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := parseToken(s); ok && (len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "") {
			t.Errorf("ID %q", id)
		}
		if _, err := tokens.Caller(s); (err == nil) != (s == token.Reveal()) {
			t.Errorf("%q: %v", s, err)
		}
	})
}

// FuzzTokenFile: what is accepted is complete.
func FuzzTokenFile(f *testing.F) {
	data, err := encodeToken(tokenFile{TokenInfo: TokenInfo{ID: strings.Repeat("a", 32), Identity: reviews, Created: epoch, Expires: epoch.Add(time.Minute)}, SHA256: hashToken("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := decodeToken(data); err != nil {
			_, body, _ := bytes.Cut(data, []byte("\n"))
			data = seal(tokenMagic, body)
		}
		tf, err := decodeToken(data)
		if err != nil {
			return
		}
		if !validTokenID(tf.ID) || len(tf.SHA256) != 32 || tf.validAt(tf.Expires) {
			t.Errorf("accepted: %+v", tf)
		}
		out, err := encodeToken(tf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeToken(out); err != nil {
			t.Errorf("what is written can not be read: %v", err)
		}
	})
}
