package ca

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newTokens(t testing.TB, dir string, ck *clock, fp func(string) error) *Tokens {
	t.Helper()
	tokens, err := OpenTokens(dir, TokenOptions{TrustDomain: "cluster.local", Clock: ck.now, failpoint: fp})
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func mustCreate(t testing.TB, tokens *Tokens, ttl time.Duration) JoinToken {
	t.Helper()
	token, err := tokens.Create(reviews, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// use does what Issue does with a token; nil says that a certificate was signed.
func use(t testing.TB, tokens *Tokens, token string) error {
	who, err := tokens.Caller(token)
	if err != nil {
		return err
	}
	if who.ID != reviews {
		t.Errorf("the token stands for %q", who.ID)
	}
	return who.Confirm(t.Context())
}

func TestToken(t *testing.T) {
	ck, dir := newClock(), t.TempDir()
	tokens := newTokens(t, dir, ck, nil)
	token := mustCreate(t, tokens, 0)
	if !token.Expires.Equal(epoch.Add(600 * time.Second)) {
		t.Errorf("expires %v", token.Expires)
	}
	// At rest there is only a hash.
	key := token.Reveal()[strings.LastIndex(token.Reveal(), ".")+1:]
	if len(key) != 43 {
		t.Errorf("the secret part has %d characters", len(key))
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if data, _ := os.ReadFile(path); strings.Contains(string(data), key) {
			t.Errorf("%s has the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	other := newTokens(t, dir, ck, nil) // another process, or after a restart
	if err := use(t, other, token.Reveal()); err != nil {
		t.Errorf("first use: %v", err)
	}
	for _, tk := range []*Tokens{tokens, other, newTokens(t, dir, ck, nil)} {
		if err := use(t, tk, token.Reveal()); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("second use: %v", err)
		}
	}
	if err := tokens.Revoke(token.ID); err == nil {
		t.Error("a used token can be revoked")
	}
}

func TestTokenLife(t *testing.T) {
	for _, tt := range []struct {
		ttl, at time.Duration
		ok      bool
	}{
		{0, 0, true},
		{0, 10*time.Minute - time.Second, true},
		{0, 10 * time.Minute, false},
		{time.Second, time.Second, false},
		{24 * time.Hour, 23 * time.Hour, true},
		{time.Hour, -Backdate, true},
		{time.Hour, -time.Hour, false}, // the clock was set back
	} {
		ck := newClock()
		tokens := newTokens(t, t.TempDir(), ck, nil)
		token := mustCreate(t, tokens, tt.ttl)
		ck.advance(tt.at)
		list, err := tokens.List()
		if err != nil || (len(list) == 1) != tt.ok {
			t.Errorf("%v at %v: listed %v, %v", tt.ttl, tt.at, list, err)
		}
		if err := use(t, tokens, token.Reveal()); (err == nil) != tt.ok {
			t.Errorf("%v at %v: %v", tt.ttl, tt.at, err)
		}
	}
	tokens := newTokens(t, t.TempDir(), newClock(), nil)
	for _, ttl := range []time.Duration{-1, time.Millisecond, 24*time.Hour + 1} {
		if _, err := tokens.Create(reviews, ttl); err == nil {
			t.Errorf("a life of %v is accepted", ttl)
		}
	}
	for _, id := range []string{"", "reviews", "spiffe://cluster.local", "spiffe://other/x"} {
		if _, err := tokens.Create(id, 0); err == nil {
			t.Errorf("identity %q is accepted", id)
		}
	}
}

func TestTokenListRevokePrune(t *testing.T) {
	ck, dir := newClock(), t.TempDir()
	c := mustOpen(t, dir, short(ck))
	tokens := c.Tokens()
	a := mustCreate(t, tokens, time.Minute)
	ck.advance(time.Second)
	b := mustCreate(t, tokens, time.Hour)
	list, err := tokens.List()
	if err != nil || len(list) != 2 || list[0] != a.TokenInfo || list[1] != b.TokenInfo {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := tokens.Revoke(b.ID); err != nil {
		t.Error(err)
	}
	if err := use(t, tokens, b.Reveal()); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("a revoked token: %v", err)
	}
	for _, id := range []string{b.ID, "", "../state", "x", strings.Repeat("A", 32)} {
		if tokens.Revoke(id) == nil {
			t.Errorf("%q is revoked", id)
		}
	}
	torn := mustCreate(t, tokens, time.Hour)
	if err := os.Truncate(tokens.path(torn.ID), 120); err != nil {
		t.Fatal(err)
	}
	if err := use(t, tokens, torn.Reveal()); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("a torn token: %v", err)
	}
	if err := c.Tick(t.Context(), ck.advance(2*time.Minute)); err != nil {
		t.Error(err)
	}
	if left, _ := tokens.names(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	young, old := tokens.path(a.ID)+".tmp", tokens.path(b.ID)+".tmp"
	for _, path := range []string{young, old} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if err := c.Tick(t.Context(), ck.now()); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(tokens.dir, "*")); len(left) != 1 || left[0] != young {
		t.Errorf("left: %v", left)
	}
}

func TestTokenForms(t *testing.T) {
	ck, dir := newClock(), t.TempDir()
	tokens := newTokens(t, dir, ck, nil)
	good, second := mustCreate(t, tokens, 0), mustCreate(t, tokens, 0)
	g := good.Reveal()
	flip := func(i int) string {
		b := []byte(g)
		if b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return string(b)
	}
	for _, token := range []string{
		"", ".", "..", tokenPrefix, g[:len(g)-1], g + "A", g + "\n", " " + g, strings.ToUpper(g), flip(len(g) - 20), flip(len(tokenPrefix) + 40),
		tokenPrefix + good.ID + ".", tokenPrefix + "." + strings.Repeat("A", 43),
		tokenPrefix + good.ID + "." + strings.Repeat("A", 43),
		tokenPrefix + strings.Repeat("0", 32) + "." + strings.Repeat("A", 43),
		tokenPrefix + "../../../../../../../etc/passwd0." + strings.Repeat("A", 43),
		tokenPrefix + second.ID + g[strings.LastIndex(g, "."):],
	} {
		if err := use(t, tokens, token); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%q: %v", token, err)
		}
	}
	// A file under another token's name lets nobody in by it.
	data, _ := os.ReadFile(tokens.path(good.ID))
	if err := os.WriteFile(tokens.path(second.ID), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := use(t, tokens, second.Reveal()); err == nil {
		t.Error("a renamed file is accepted")
	}
	if err := use(t, tokens, g); err != nil {
		t.Errorf("the good one, after all that: %v", err)
	}
}

func TestTokenRace(t *testing.T) {
	ck, dir := newClock(), t.TempDir()
	token := mustCreate(t, newTokens(t, dir, ck, nil), 0)
	var won atomic.Int32
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for range 32 {
		tokens := newTokens(t, dir, ck, nil) // as many processes
		who, err := tokens.Caller(token.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			<-begin
			if who.Confirm(t.Context()) == nil {
				won.Add(1)
			}
		})
	}
	close(begin)
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("used %d times", won.Load())
	}
}

// TestTokenKill: a token that has let somebody in never does so again, wherever the
// process was killed, and one whose making was not finished never does.
func TestTokenKill(t *testing.T) {
	for n := 0; ; n++ {
		ck, dir := newClock(), t.TempDir()
		k := &killer{armed: true, left: n}
		token, err := newTokens(t, dir, ck, k.step).Create(reviews, 0)
		if !k.dead {
			break
		}
		if err == nil {
			t.Fatalf("step %d: no error", n)
		}
		after := newTokens(t, dir, ck, nil)
		if list, err := after.List(); err != nil || len(list) > 1 || len(list) == 1 && k.at != "sync directory" {
			t.Errorf("killed at %s: %v, %v", k.at, list, err)
		}
		if token.Reveal() != "" {
			t.Error("an unfinished token is given out")
		}
	}
	uses := 0
	for n := 0; ; n++ {
		ck, dir := newClock(), t.TempDir()
		token := mustCreate(t, newTokens(t, dir, ck, nil), 0)
		k := &killer{armed: true, left: n}
		first := use(t, newTokens(t, dir, ck, k.step), token.Reveal())
		second := use(t, newTokens(t, dir, ck, nil), token.Reveal())
		if first == nil && second == nil {
			t.Errorf("step %d: used twice", n)
		}
		if first != nil && !errors.Is(first, ErrUnavailable) {
			t.Errorf("step %d: %v", n, first)
		}
		if k.at == "remove token" && second != nil {
			t.Errorf("killed before anything happened, and the token is lost: %v", second)
		}
		if uses++; !k.dead {
			break
		}
	}
	if uses != 3 {
		t.Errorf("%d steps", uses)
	}
}

// TestTokenIsNotPrinted: by no verb and no encoder.
func TestTokenIsNotPrinted(t *testing.T) {
	token := mustCreate(t, newTokens(t, t.TempDir(), newClock(), nil), 0)
	key := token.Reveal()[strings.LastIndex(token.Reveal(), ".")+1:]
	var log record
	log.logger().Info("x", "token", token, "pointer", &token, "in", []JoinToken{token}, "any", struct{ T JoinToken }{token})
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb, token) + fmt.Sprintf(verb, &token) + fmt.Sprintf(verb, []JoinToken{token}) + fmt.Sprintf(verb, struct{ t JoinToken }{token})
	}
	data, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	out += string(data)
	if strings.Contains(out, key) || strings.Contains(out, fmt.Sprintf("%x", token.Reveal())) {
		t.Errorf("the secret is in %s", out)
	}
	if !strings.Contains(out, token.ID) {
		t.Error("not even the ID is printed")
	}
}
