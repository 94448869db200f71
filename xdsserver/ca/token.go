package ca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// DefaultTokenTTL is the life of a join token, as SPIRE's.
	DefaultTokenTTL = 600 * time.Second
	maxTokenTTL     = 24 * time.Hour
	// maxTokens bounds the tokens that are waiting to be used.
	maxTokens = 10_000

	tokenPrefix   = "sinew-join."
	tokenIDBytes  = 16
	tokenKeyBytes = 32 // 256 bits: not to be guessed, so a plain hash at rest is enough
	tokenMagic    = "sinew-join-token 1 "
	tokenSuffix   = ".json"
)

// JoinToken is a new join token. Only Reveal shows its secret.
type JoinToken struct {
	TokenInfo
	secret func() string // a function, because fmt prints what it finds in strings
}

// Reveal gives the token as the workload sends it. It can not be had again later: give
// it on at once, in a file of mode 0600 rather than an argument or the environment.
func (t JoinToken) Reveal() string {
	if t.secret == nil {
		return ""
	}
	return t.secret()
}

// String names the token without its secret, as do all ways to print it.
func (t JoinToken) String() string { return "join token " + t.ID }

// Format is as String, whatever the verb.
func (t JoinToken) Format(f fmt.State, _ rune) { io.WriteString(f, t.String()) }

// LogValue is as String.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue(t.String()) }

// TokenInfo is what may be known of a join token.
type TokenInfo struct {
	ID       string    `json:"id"` // not secret
	Identity string    `json:"identity"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"`
}

// TokenOptions configure Tokens. Only TrustDomain is required; the others default as in
// Options.
type TokenOptions struct {
	TrustDomain string
	Clock       func() time.Time
	Random      io.Reader
	Log         *slog.Logger

	failpoint func(step string) error
}

// Tokens are the join tokens in a state directory: each lets one workload, whose
// identity it is bound to, get its first certificate, once and within its time.
//
// Each token is a file with its hash. Using a token up is removing that file, which of
// all processes and goroutines that try only one can; and the removal is durable before
// anything is signed. So another process than the one that issues may make tokens.
type Tokens struct {
	dir  string
	td   spiffeid.TrustDomain
	opts TokenOptions
}

// OpenTokens opens the join tokens of the authority whose state is in dir.
func OpenTokens(dir string, opts TokenOptions) (*Tokens, error) {
	td, err := parseTrustDomain(opts.TrustDomain)
	if err != nil {
		return nil, err
	}
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	if opts.Random == nil {
		opts.Random = rand.Reader
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	t := &Tokens{dir: filepath.Join(dir, "tokens"), td: td, opts: opts}
	for _, d := range []string{dir, t.dir} {
		if err := privateDir(d); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Create makes a token for the SPIFFE ID of a workload. It expires after ttl: 0 is
// DefaultTokenTTL, and more than 24 hours is an error.
func (t *Tokens) Create(identity string, ttl time.Duration) (JoinToken, error) {
	id, err := workloadID(t.td, identity)
	if err != nil {
		return JoinToken{}, err
	}
	if ttl == 0 {
		ttl = DefaultTokenTTL
	}
	if ttl < time.Second || ttl > maxTokenTTL {
		return JoinToken{}, fmt.Errorf("join token: a life of %v is not between 1s and %v", ttl, maxTokenTTL)
	}
	now := t.opts.Clock()
	names, err := t.names()
	if err == nil && len(names) >= maxTokens {
		if err = t.prune(now); err == nil {
			names, err = t.names()
		}
	}
	if err != nil {
		return JoinToken{}, err
	}
	if len(names) >= maxTokens {
		return JoinToken{}, fmt.Errorf("join token: %d are waiting to be used; revoke some", len(names))
	}
	random := make([]byte, tokenIDBytes+tokenKeyBytes)
	if _, err := io.ReadFull(t.opts.Random, random); err != nil {
		return JoinToken{}, fmt.Errorf("join token: %w", err)
	}
	info := TokenInfo{ID: hex.EncodeToString(random[:tokenIDBytes]), Identity: id.String(), Created: now.UTC(), Expires: now.Add(ttl).UTC()}
	secret := tokenPrefix + info.ID + "." + base64.RawURLEncoding.EncodeToString(random[tokenIDBytes:])
	data, err := encodeToken(tokenFile{TokenInfo: info, SHA256: hashToken(secret)})
	if err != nil {
		return JoinToken{}, err
	}
	if err := writeFile(t.path(info.ID), data, t.opts.failpoint); err != nil {
		return JoinToken{}, fmt.Errorf("join token: %w", err)
	}
	t.opts.Log.Info("join token created", "token", info.ID, "identity", info.Identity, "expires", info.Expires)
	return JoinToken{TokenInfo: info, secret: func() string { return secret }}, nil
}

// List gives the tokens that may still be used, the oldest first.
func (t *Tokens) List() ([]TokenInfo, error) {
	names, err := t.names()
	if err != nil {
		return nil, err
	}
	now := t.opts.Clock()
	var out []TokenInfo
	for _, id := range names {
		f, err := t.read(id)
		if err == nil && f.validAt(now) {
			out = append(out, f.TokenInfo)
		}
	}
	slices.SortStableFunc(out, func(a, b TokenInfo) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// Revoke makes a token unusable. It is an error where there is none of that ID, which is
// so too once it has been used.
func (t *Tokens) Revoke(id string) error {
	if !validTokenID(id) {
		return errors.New("join token: not the ID of one")
	}
	if err := t.remove(id); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("join token %s: unknown, used or expired", id)
		}
		return err
	}
	t.opts.Log.Info("join token revoked", "token", id)
	return nil
}

var errToken = fmt.Errorf("%w: the join token is unknown, used or expired", ErrUnauthenticated)

// Caller gives the caller that a token stands for; its Confirm uses the token up.
func (t *Tokens) Caller(token string) (Caller, error) {
	id, ok := parseToken(token)
	if !ok {
		return Caller{}, fmt.Errorf("%w: the join token is malformed", ErrUnauthenticated)
	}
	f, err := t.read(id)
	sum := sha256.Sum256([]byte(token))
	// The comparison is done for unknown tokens too, to take as long.
	same := subtle.ConstantTimeCompare(sum[:], f.SHA256) == 1
	if _, damaged := errors.AsType[*damagedError](err); err != nil && !damaged && !errors.Is(err, fs.ErrNotExist) {
		t.opts.Log.Error("join token can not be read", "token", id, "error", err)
		return Caller{}, fmt.Errorf("%w: join tokens can not be read", ErrUnavailable)
	}
	if err != nil || !same || !f.validAt(t.opts.Clock()) {
		return Caller{}, errToken
	}
	return Caller{ID: f.Identity, Method: "join token", Confirm: func(context.Context) error {
		if err := t.remove(id); errors.Is(err, fs.ErrNotExist) {
			return errToken
		} else if err != nil {
			t.opts.Log.Error("join token can not be used up", "token", id, "error", err)
			return fmt.Errorf("%w: the join token can not be used up", ErrUnavailable)
		}
		t.opts.Log.Info("join token used", "token", id, "identity", f.Identity)
		return nil
	}}, nil
}

// remove is the one place where a token ends: it succeeds once.
func (t *Tokens) remove(id string) error {
	if err := fail(t.opts.failpoint, "remove token"); err != nil {
		return err
	}
	if err := os.Remove(t.path(id)); err != nil {
		return err
	}
	if err := fail(t.opts.failpoint, "sync removal"); err != nil {
		return err
	}
	return syncDir(t.dir)
}

// prune removes what has expired, and what is damaged and thus lets nobody in.
func (t *Tokens) prune(now time.Time) error {
	names, err := t.names()
	if err != nil {
		return err
	}
	// Left by a kill; other processes may be writing younger ones. The file system's
	// times are the real ones, whatever Clock says.
	unfinished, err := filepath.Glob(filepath.Join(t.dir, "*"+tokenSuffix+".tmp"))
	if err != nil {
		return err
	}
	for _, path := range unfinished {
		if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > time.Hour {
			os.Remove(path)
		}
	}
	for _, id := range names {
		f, err := t.read(id)
		switch damaged, isDamaged := errors.AsType[*damagedError](err); {
		case isDamaged:
			t.opts.Log.Warn("join token is damaged and removed", "token", id, "error", damaged)
		case err == nil && !now.Before(f.Expires):
			t.opts.Log.Info("join token expired unused", "token", id, "identity", f.Identity)
		default:
			continue
		}
		if err := os.Remove(t.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (t *Tokens) path(id string) string { return filepath.Join(t.dir, id+tokenSuffix) }

// names gives the IDs of all token files.
func (t *Tokens) names() ([]string, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), tokenSuffix); ok && validTokenID(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// read gives a zero file, whose hash matches nothing, with an error.
func (t *Tokens) read(id string) (tokenFile, error) {
	data, err := os.ReadFile(t.path(id))
	if err != nil {
		return tokenFile{}, err
	}
	f, err := decodeToken(data)
	if err == nil && f.ID != id {
		err = errors.New("is the file of another token")
	}
	if err == nil {
		_, err = workloadID(t.td, f.Identity)
	}
	if err != nil {
		return tokenFile{}, &damagedError{path: t.path(id), err: err}
	}
	return f, nil
}

// tokenFile is a token at rest: one line with a checksum as in the state, then JSON.
type tokenFile struct {
	TokenInfo
	SHA256 []byte `json:"sha256"` // of the whole token
}

// validAt: a clock that has been set back by more than peers may differ makes no token
// live longer.
func (f *tokenFile) validAt(now time.Time) bool {
	return now.Before(f.Expires) && !now.Before(f.Created.Add(-Backdate))
}

func hashToken(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

func encodeToken(f tokenFile) ([]byte, error) {
	body, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return nil, err
	}
	return seal(tokenMagic, append(body, '\n')), nil
}

func decodeToken(data []byte) (tokenFile, error) {
	body, err := unseal(tokenMagic, data)
	if err != nil {
		return tokenFile{}, err
	}
	return decodeTokenBody(body)
}

func decodeTokenBody(body []byte) (tokenFile, error) {
	var f tokenFile
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil || d.More() {
		return tokenFile{}, errors.New("is not the JSON of a join token")
	}
	if !validTokenID(f.ID) || len(f.SHA256) != sha256.Size || f.Identity == "" || !f.Created.Before(f.Expires) || f.Expires.Sub(f.Created) > maxTokenTTL {
		return tokenFile{}, errors.New("is not a complete join token")
	}
	return f, nil
}

// validTokenID also keeps anything that is not a plain file name away from the disk.
func validTokenID(s string) bool {
	if len(s) != 2*tokenIDBytes {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// parseToken gives the ID in a token of the right form.
func parseToken(token string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok {
		return "", false
	}
	id, key, ok := strings.Cut(rest, ".")
	if !ok || !validTokenID(id) || len(key) != base64.RawURLEncoding.EncodedLen(tokenKeyBytes) {
		return "", false
	}
	if _, err := base64.RawURLEncoding.Strict().DecodeString(key); err != nil {
		return "", false
	}
	return id, true
}
