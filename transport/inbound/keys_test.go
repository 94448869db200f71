package inbound

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

const keysURI = "https://issuer.test/keys?secret=canary"

// tokenIssuer signs tokens and says its keys.
type tokenIssuer struct {
	name, kid string
	key       *ecdsa.PrivateKey
}

func newTokenIssuer(t testing.TB, name, kid string) *tokenIssuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &tokenIssuer{name, kid, key}
}

func (i *tokenIssuer) jwks(t testing.TB) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.kid, Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (i *tokenIssuer) token(t testing.TB) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(fmt.Appendf(nil, `{"iss":%q,"sub":"ann"}`, i.name))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// tokensOf asks for a token of one of the issuers, whose keys are at the URIs.
func tokensOf(t testing.TB, remotes map[string]snapshot.RemoteKeys) *snapshot.Tokens {
	t.Helper()
	config := identity.JWTConfig{}
	var any []identity.Requirement
	for name := range remotes {
		config.Providers = append(config.Providers, identity.JWTProvider{Name: name, Issuer: name})
		any = append(any, identity.RequireProvider(name))
	}
	require := identity.RequireAny(any...)
	config.Rules = []identity.JWTRule{{Requires: &require}}
	a, err := identity.NewJWTAuthenticator(config)
	if err != nil {
		t.Fatal(err)
	}
	return &snapshot.Tokens{Authenticator: a, Remote: remotes}
}

func bearer(token string) *identity.AccessRequest {
	return &identity.AccessRequest{Request: routing.Request{Method: "GET", Path: "/", Header: map[string][]string{"Authorization": {"Bearer " + token}}}}
}

// answerFunc is a network of one server.
type answerFunc func(*http.Request) (*http.Response, error)

func (f answerFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answerWith(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func ringOf(answer answerFunc) *keyRing {
	k := newKeyRing(fetchRules{}, nil)
	k.client.Transport = answer
	return k
}

func (k *keyRing) verdict(ctx context.Context, t *snapshot.Tokens, token string) identity.JWTStatus {
	r := k.authenticate(ctx, t, bearer(token), time.Now(), nil)
	return r.Status
}

func TestKeysFirstFetchIsWaitedFor(t *testing.T) {
	for _, c := range []struct {
		name    string
		slow    time.Duration // of the fetch
		limit   time.Duration // the provider's
		request time.Duration // the request's own limit; 0: none
		status  int
		want    identity.JWTStatus
		took    time.Duration
	}{
		{"in time", 2 * time.Second, 3 * time.Second, 0, 200, identity.JWTOk, 2 * time.Second},
		{"too late", 4 * time.Second, 3 * time.Second, 0, 200, identity.JWTKeysUnavailable, 3 * time.Second},
		{"the default", 6 * time.Second, 0, 0, 200, identity.JWTKeysUnavailable, 5 * time.Second},
		{"the request ends", 2 * time.Second, 0, time.Second, 200, identity.JWTKeysUnavailable, time.Second},
		{"refused at once", 0, 0, 0, 503, identity.JWTKeysUnavailable, 0},
		{"not found", time.Second, 0, 0, 404, identity.JWTKeysUnavailable, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			issuer := newTokenIssuer(t, "a", "1")
			document, token := issuer.jwks(t), issuer.token(t)
			synctest.Test(t, func(t *testing.T) {
				k := ringOf(func(r *http.Request) (*http.Response, error) {
					select {
					case <-time.After(c.slow):
						return answerWith(c.status, document), nil
					case <-r.Context().Done():
						return nil, r.Context().Err()
					}
				})
				defer k.close()
				tokens := tokensOf(t, map[string]snapshot.RemoteKeys{"a": {URI: keysURI, Timeout: c.limit}})
				k.use([]*snapshot.Tokens{tokens, nil})
				ctx := t.Context()
				if c.request > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.request)
					defer cancel()
				}
				began := time.Now()
				got := k.verdict(ctx, tokens, token)
				if took := time.Since(began); got != c.want || took != c.took {
					t.Errorf("%s after %s, want %s after %s", got, took, c.want, c.took)
				}
				if err := k.status(keysURI); (err == nil) != (c.want == identity.JWTOk) {
					t.Errorf("status %v", err)
				}
			})
		})
	}
}

// TestKeysStayWhileFetchesFail: the last good keys serve for a day, then nothing is accepted.
func TestKeysStayWhileFetchesFail(t *testing.T) {
	issuer := newTokenIssuer(t, "a", "1")
	document, token := issuer.jwks(t), issuer.token(t)
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		var asked atomic.Int64
		var logged bytes.Buffer
		k := ringOf(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			if down.Load() {
				return nil, errors.New("refused")
			}
			return answerWith(200, document), nil
		})
		k.log = slog.New(slog.NewTextHandler(&logged, nil))
		tokens := tokensOf(t, map[string]snapshot.RemoteKeys{"a": {URI: keysURI, CacheDuration: time.Minute}})
		k.use([]*snapshot.Tokens{tokens})
		if got := k.verdict(t.Context(), tokens, token); got != identity.JWTOk {
			t.Fatal(got)
		}
		time.Sleep(10 * time.Minute)
		// Every minute, a little earlier each time.
		if n := asked.Load(); n < 10 || n > 13 {
			t.Errorf("%d fetches in 10 minutes", n)
		}
		down.Store(true)
		before := asked.Load()
		time.Sleep(23 * time.Hour)
		if got := k.verdict(t.Context(), tokens, token); got != identity.JWTOk {
			t.Errorf("after 23 h: %s", got)
		}
		// A minute apart at the most, and not all the time.
		if n := asked.Load() - before; n < 23*30 || n > 23*150 {
			t.Errorf("%d fetches in 23 h", n)
		}
		time.Sleep(2 * time.Hour)
		if got := k.verdict(t.Context(), tokens, token); got != identity.JWTKeysUnavailable {
			t.Errorf("after 25 h: %s", got)
		}
		if err := k.status(keysURI); !errors.Is(err, errKeysTooOld) {
			t.Errorf("status %v", err)
		}
		down.Store(false)
		time.Sleep(2 * maxKeysPause)
		if got := k.verdict(t.Context(), tokens, token); got != identity.JWTOk {
			t.Errorf("after it came back: %s", got)
		}
		k.close()
		if !strings.Contains(logged.String(), "https://issuer.test/keys") || strings.Contains(logged.String(), "canary") {
			t.Errorf("log: %.300s", logged.String())
		}
		if got := k.verdict(t.Context(), tokens, token); got != identity.JWTKeysUnavailable {
			t.Errorf("after close: %s", got)
		}
	})
}

// TestUnknownKey: a token with a new key has the keys fetched once more, but
// not each such token.
func TestUnknownKey(t *testing.T) {
	old, next, wrong := newTokenIssuer(t, "a", "1"), newTokenIssuer(t, "a", "2"), newTokenIssuer(t, "a", "3")
	documents := []string{old.jwks(t), next.jwks(t)}
	oldToken, nextToken, wrongToken := old.token(t), next.token(t), wrong.token(t)
	synctest.Test(t, func(t *testing.T) {
		var at, asked atomic.Int64
		k := ringOf(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			time.Sleep(time.Second)
			return answerWith(200, documents[at.Load()]), nil
		})
		defer k.close()
		tokens := tokensOf(t, map[string]snapshot.RemoteKeys{"a": {URI: keysURI}})
		k.use([]*snapshot.Tokens{tokens})
		expect := func(token string, want identity.JWTStatus, fetches int64) {
			t.Helper()
			if got := k.verdict(t.Context(), tokens, token); got != want || asked.Load() != fetches {
				t.Errorf("%s after %d fetches, want %s after %d", got, asked.Load(), want, fetches)
			}
		}
		expect(oldToken, identity.JWTOk, 1)
		at.Store(1)
		expect(nextToken, identity.JWTNoKeyFits, 1) // too soon
		time.Sleep(minRefetch)
		// Several at a time share one fetch.
		done := make(chan identity.JWTStatus)
		for range 10 {
			go func() { done <- k.verdict(t.Context(), tokens, nextToken) }()
		}
		for range 10 {
			if got := <-done; got != identity.JWTOk {
				t.Error(got)
			}
		}
		expect(nextToken, identity.JWTOk, 2)
		expect(oldToken, identity.JWTNoKeyFits, 2)
		time.Sleep(minRefetch)
		for range 100 {
			expect(wrongToken, identity.JWTNoKeyFits, 3)
		}
	})
}

// TestIssuersAreIsolated: one that hangs concerns its own tokens only.
func TestIssuersAreIsolated(t *testing.T) {
	good, bad := newTokenIssuer(t, "good", "1"), newTokenIssuer(t, "bad", "1")
	document, goodToken, badToken := good.jwks(t), good.token(t), bad.token(t)
	forged := (&tokenIssuer{"good", "1", bad.key}).token(t)
	synctest.Test(t, func(t *testing.T) {
		k := ringOf(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "bad.test" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return answerWith(200, document), nil
		})
		defer k.close()
		tokens := tokensOf(t, map[string]snapshot.RemoteKeys{"good": {URI: "https://good.test/"}, "bad": {URI: "https://bad.test/"}})
		k.use([]*snapshot.Tokens{tokens})
		goodOnly := tokensOf(t, map[string]snapshot.RemoteKeys{"good": {URI: "https://good.test/"}})
		began := time.Now()
		if got := k.verdict(t.Context(), goodOnly, goodToken); got != identity.JWTOk || time.Since(began) != 0 {
			t.Errorf("%s after %s", got, time.Since(began))
		}
		if got := k.verdict(t.Context(), tokens, badToken); got != identity.JWTKeysUnavailable {
			t.Error(got)
		}
		if got := k.verdict(t.Context(), tokens, forged); got != identity.JWTSignatureMismatch {
			t.Errorf("a token that the other issuer signed: %s", got)
		}
	})
}

// TestKeysInUse: one fetch for each URI whoever names it, and none when nobody does.
func TestKeysInUse(t *testing.T) {
	issuer := newTokenIssuer(t, "a", "1")
	document, token := issuer.jwks(t), issuer.token(t)
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		k := ringOf(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			return answerWith(200, document), nil
		})
		defer k.close()
		slow := tokensOf(t, map[string]snapshot.RemoteKeys{"a": {URI: keysURI, CacheDuration: time.Hour}, "b": {URI: keysURI, CacheDuration: time.Hour}})
		quick := tokensOf(t, map[string]snapshot.RemoteKeys{"a": {URI: keysURI, CacheDuration: 10 * time.Minute}})
		k.use([]*snapshot.Tokens{slow, quick})
		synctest.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("%d fetches, want one for all", n)
		}
		k.use([]*snapshot.Tokens{quick})
		time.Sleep(11 * time.Minute)
		if n := asked.Load(); n != 2 {
			t.Errorf("%d fetches after 11 minutes", n)
		}
		k.use(nil)
		time.Sleep(24 * time.Hour)
		if n := asked.Load(); n != 2 {
			t.Errorf("%d fetches though nobody uses the keys", n)
		}
		if got := k.verdict(t.Context(), quick, token); got != identity.JWTKeysUnavailable {
			t.Errorf("keys that are not in use: %s", got)
		}
		k.close()
		k.use([]*snapshot.Tokens{quick})
		synctest.Wait()
		if n := asked.Load(); n != 2 {
			t.Error("a closed ring fetches")
		}
	})
}

func TestFetchLimits(t *testing.T) {
	leak.Check(t)
	issuer := newTokenIssuer(t, "a", "1")
	document := issuer.jwks(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Referer") != "" {
			t.Error("the URI that redirected was passed on")
		}
		_, _ = io.WriteString(w, document)
	})
	mux.HandleFunc("/hop/{n}", func(w http.ResponseWriter, r *http.Request) {
		n := r.PathValue("n")
		target := map[string]string{"1": "/keys", "2": "/hop/1", "3": "/hop/2", "4": "/hop/3"}[n]
		http.Redirect(w, r, target, http.StatusFound)
	})
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://127.0.0.2:1/keys?secret=canary", http.StatusFound)
	})
	mux.HandleFunc("/ftp", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "ftp://127.0.0.1/keys", http.StatusFound)
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, document)
		_, _ = w.Write(bytes.Repeat([]byte(" "), maxKeysBytes))
	})
	mux.HandleFunc("/text", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "canary") })
	mux.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+r.Host+"/keys", http.StatusFound)
	})
	server := httptest.NewUnstartedServer(mux)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // one case refuses its certificate
	server.StartTLS()
	defer server.Close()
	local := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	for _, c := range []struct {
		name, uri string
		allowed   []netip.Prefix
		want      string // part of the error; "" for none
	}{
		{"allowed", server.URL + "/keys", local, ""},
		{"http", strings.Replace(server.URL, "https", "http", 1) + "/keys", local, `scheme "http"`},
		{"the address is not allowed", server.URL + "/keys", nil, "not a public address"},
		{"a name for it is not either", strings.Replace(server.URL, "127.0.0.1", "localhost", 1) + "/keys", nil, "not a public address"},
		{"three redirects", server.URL + "/hop/3", local, ""},
		{"four redirects", server.URL + "/hop/4", local, "more than 3 redirects"},
		{"redirect to an address that is not allowed", server.URL + "/away", local, "127.0.0.2, which is not a public"},
		{"redirect to another scheme", server.URL + "/ftp", local, `scheme "ftp"`},
		{"redirect out of https", server.URL + "/plain", local, `scheme "http"`},
		{"a certificate of nobody known", server.URL + "/keys", local, "certificate"},
		{"too large", server.URL + "/large", local, "more than 1048576 bytes"},
		{"no key set", server.URL + "/text", local, "not JSON"},
		{"user name", "https://user:canary@issuer.test/", nil, "user name"},
		{"no host", "https:///keys", nil, "no host"},
		{"no URI", "https://[canary", nil, "not a URI"},
		{"file", "file:///etc/passwd", nil, `scheme "file"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKeyRing(fetchRules{Allowed: c.allowed}, nil)
			defer k.close()
			if c.want != "certificate" {
				k.client.Transport.(*http.Transport).TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig
			}
			set, err := k.fetch(t.Context(), c.uri, 5*time.Second)
			if c.want == "" {
				if err != nil || set.Len() != 1 {
					t.Errorf("error %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary") {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestAllowedAddresses(t *testing.T) {
	open := fetchRules{Allowed: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}}
	for address, want := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "2606:4700::1111": true, "10.1.2.3": true, "fd00:1::5": true,
		"::ffff:8.8.8.8": true, "::ffff:10.1.2.3": true, "64:ff9b::808:808": true, "2002:808:808::1": true,
		"10.2.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "127.0.0.1": false, "127.9.9.9": false, "0.0.0.0": false, "0.1.2.3": false,
		"169.254.169.254": false, "100.64.0.1": false, "100.100.100.200": false, "168.63.129.16": false, "192.0.0.192": false,
		"198.18.0.1": false, "224.0.0.1": false, "239.1.1.1": false, "240.0.0.1": false, "255.255.255.255": false, "192.0.2.1": false,
		"::": false, "::1": false, "::7f00:1": false, "fe80::1": false, "fe80::1%eth0": false, "fec0::1": false, "fc00::1": false, "fd00:ec2::254": false, "ff02::1": false, "2001:db8::1": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false, "2002:7f00:1::": false, "2002:a9fe:a9fe::1": false, "2001::1": false,
	} {
		if got := open.allowedAddress(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
}

func TestTokenStore(t *testing.T) {
	issuer := newTokenIssuer(t, "a", "1")
	keys, err := identity.ParseKeySet([]byte(issuer.jwks(t)))
	if err != nil {
		t.Fatal(err)
	}
	tokens := tokensOf(t, map[string]snapshot.RemoteKeys{"a": {}})
	p := tokens.Authenticator.Providers()[0]
	store := newTokenStore(64)
	v, status := p.Verify(issuer.token(t), keys, time.Now())
	if status != identity.JWTOk {
		t.Fatal(status)
	}
	for i := range 10_000 {
		store.Put(identity.NewTokenKey(p, fmt.Sprint(i)), v)
	}
	n := 0
	for i := range store.shards {
		n += store.shards[i].cache.Len()
	}
	if n != 64 || store.Get(identity.NewTokenKey(p, "9999")) != v || store.Get(identity.NewTokenKey(p, "none")) != nil {
		t.Errorf("%d tokens", n)
	}
}

func BenchmarkVerifiedToken(b *testing.B) {
	issuer := newTokenIssuer(b, "a", "1")
	document, token := issuer.jwks(b), issuer.token(b)
	k := ringOf(func(*http.Request) (*http.Response, error) { return answerWith(200, document), nil })
	defer k.close()
	tokens := tokensOf(b, map[string]snapshot.RemoteKeys{"a": {URI: keysURI}})
	k.use([]*snapshot.Tokens{tokens})
	store, r, now := newTokenStore(1000), bearer(token), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if got := k.authenticate(b.Context(), tokens, r, now, store); got.Status != identity.JWTOk {
			b.Fatal(got.Status)
		}
	}
}
