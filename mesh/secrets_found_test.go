package mesh_test

//lint:file-ignore SA1019 A key's D is what a careless program would print.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// planted is no secret: it is put everywhere, so that a sink without it was not
// read, or not where secrets would be.
const planted = "planted8f3a"

// sinks is everything that is written or shown, by name.
type sinks struct {
	mu sync.Mutex
	m  map[string]*strings.Builder
}

func (s *sinks) add(name, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = make(map[string]*strings.Builder)
	}
	if s.m[name] == nil {
		s.m[name] = &strings.Builder{}
	}
	s.m[name].WriteString(text + "\n")
}

func (s *sinks) addJSON(t *testing.T, name string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	s.add(name, string(b))
}

// failed takes up an error of the mesh. What net/http's client puts around it
// is its own: the URL, with its query.
func (s *sinks) failed(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Error("no error where one was to be")
		return
	}
	s.add("errors", err.Error())
	s.add("errors", fmt.Sprintf("%+v", err))
}

// find returns the sinks in which a secret stands, in one of the spellings that
// it may have there.
func (s *sinks) find(secret string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	spellings := []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret))}
	var in []string
	for name, b := range s.m {
		if slices.ContainsFunc(spellings, func(spelling string) bool { return strings.Contains(b.String(), spelling) }) {
			in = append(in, name)
		}
	}
	slices.Sort(in)
	return in
}

// secrets are by what they are.
type secrets map[string]string

// key adds the spellings of a private key.
func (s secrets) key(t *testing.T, name string, pkcs8 []byte) {
	t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		t.Fatal(err)
	}
	key := parsed.(*ecdsa.PrivateKey)
	d, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	s[name+" as hex"] = hex.EncodeToString(d)
	s[name+" as base64"] = base64.StdEncoding.EncodeToString(d)
	s[name+" as base64url"] = base64.RawURLEncoding.EncodeToString(d)
	s[name+" as a number"] = new(big.Int).SetBytes(d).String()
	s[name+" as bytes"] = strings.Trim(fmt.Sprint(d[:16]), "[]")
	s[name+" raw"] = string(d)
	s[name+" DER as base64"] = base64.StdEncoding.EncodeToString(pkcs8)
	for i, line := range strings.Split(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), "\n") {
		if i > 0 && len(line) > 32 && !strings.HasPrefix(line, "-----") { // the first bytes are the same for all keys
			s[fmt.Sprintf("%s PEM line %d", name, i)] = line[32:]
		}
	}
}

// folder adds what the authority and the members of a world keep in files.
func (s secrets) folder(t *testing.T, dir string) {
	t.Helper()
	var tokens, keys, roots int
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		switch filepath.Ext(path) {
		case ".token":
			s["join token "+f.Name()] = strings.TrimSpace(string(read(path)))
			tokens++
		case ".state":
			block, _ := pem.Decode(read(path))
			s.key(t, "key of "+f.Name(), block.Bytes)
			keys++
		}
	}
	states, err := filepath.Glob(filepath.Join(dir, "ca", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range states {
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			continue
		}
		var state struct {
			Authorities []struct {
				RootKey   struct{ PKCS8 []byte } `json:"root_key"`
				IssuerKey struct{ PKCS8 []byte } `json:"issuer_key"`
			} `json:"authorities"`
		}
		if err := json.Unmarshal(stateOf(read(path)), &state); err != nil {
			continue // another kind of file
		}
		for i, a := range state.Authorities {
			s.key(t, fmt.Sprintf("root key %d", i), a.RootKey.PKCS8)
			s.key(t, fmt.Sprintf("issuer key %d", i), a.IssuerKey.PKCS8)
			roots++
		}
	}
	if tokens < 4 || keys < 4 || roots < 1 {
		t.Fatalf("found %d join tokens, %d keys of members and %d roots in %s", tokens, keys, roots, dir)
	}
}

// stateOf is the JSON in a state file.
func stateOf(b []byte) []byte {
	text := string(b)
	from, to := strings.Index(text, "{"), strings.LastIndex(text, "}")
	if from < 0 || to < from {
		return b
	}
	var raw json.RawMessage
	if err := json.NewDecoder(strings.NewReader(text[from:])).Decode(&raw); err != nil {
		return b
	}
	return raw
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// issuer signs tokens, and its key set has, by mistake, the private keys in it.
type issuer struct {
	signer jose.Signer
	set    string
	worse  string // has a symmetric key: no policy with it is taken
}

func newIssuer(t *testing.T, s secrets) *issuer {
	t.Helper()
	key, der := newKey(t)
	s.key(t, "issuer's key", der)
	symmetric := "symmetricCANARYsymmetricCANARYsymmetricCANARY"
	s["symmetric key"] = symmetric
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "issuer-key"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: key.Public(), KeyID: "issuer-key", Algorithm: "ES256"},
		{Key: key, KeyID: "private", Algorithm: "ES256"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	worse, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: []byte(symmetric), KeyID: "symmetric", Algorithm: "HS256"}}})
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{signer, string(set), string(worse)}
}

func (i *issuer) token(t *testing.T, subject string) string {
	t.Helper()
	signed, err := i.signer.Sign(fmt.Appendf(nil, `{"iss":"https://issuer.example","sub":%q,"exp":%d}`, subject, time.Now().Add(time.Hour).Unix()))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestSecretsAreFound: the search finds each kind of secret in each spelling.
func TestSecretsAreFound(t *testing.T) {
	hidden := secrets{"token": "CANARY"}
	_, der := newKey(t)
	hidden.key(t, "key", der)
	for name, secret := range hidden {
		for _, spelling := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret))} {
			var out sinks
			out.add("there", "before "+spelling+" after")
			out.add("elsewhere", "nothing")
			if got := out.find(secret); !slices.Equal(got, []string{"there"}) {
				t.Errorf("%s: found in %q", name, got)
			}
		}
	}
	// As it is logged and shown by mistake.
	for name, text := range map[string]string{
		"key PEM line 1":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"key as bytes":    fmt.Sprintf("%v", must(must(x509.ParsePKCS8PrivateKey(der)).(*ecdsa.PrivateKey).Bytes())),
		"key as a number": fmt.Sprintf("%+v", struct{ D *big.Int }{must(x509.ParsePKCS8PrivateKey(der)).(*ecdsa.PrivateKey).D}),
	} {
		var out sinks
		out.add("there", text)
		if len(out.find(hidden[name])) != 1 {
			t.Errorf("%s is not found in %q", name, text)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
