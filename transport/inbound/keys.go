package inbound

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const (
	defaultKeysTimeout = 5 * time.Second
	defaultKeysCache   = 10 * time.Minute
	// minKeysCache keeps a policy from asking an issuer all the time.
	minKeysCache = time.Second
	// maxKeysAge is how long keys are used after they were last fetched. An issuer
	// that is down for a while must not stop its users; but keys that were
	// withdrawn because they leaked must not live on because somebody keeps us
	// from the issuer.
	maxKeysAge = 24 * time.Hour
	// minRefetch is the least time between a fetch and one that a token with an
	// unknown key asks for, which anybody can send.
	minRefetch = 10 * time.Second
	// maxKeysBytes is the largest answer that is read.
	maxKeysBytes = 1 << 20
	// maxKeysPause is the longest time between attempts while they fail.
	maxKeysPause = time.Minute
)

var (
	errKeysNotAsked = errors.New("no policy in force has keys there")
	errKeysTooOld   = errors.New("keys are too old")
)

// keyRing fetches issuers' keys in the background, once for each URI, however
// many listeners and providers name it. A slow or broken issuer concerns its own tokens only.
type keyRing struct {
	client *http.Client
	log    *slog.Logger

	remotes atomic.Pointer[map[string]*remoteKeys]
	mu      sync.Mutex // serialises changes of remotes
	closed  bool
	running sync.WaitGroup
}

// newKeyRing returns a ring that fetches nothing yet. It must be closed.
func newKeyRing(rules fetchRules, log *slog.Logger) *keyRing {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	k := &keyRing{client: rules.client(), log: log}
	k.remotes.Store(&map[string]*remoteKeys{})
	return k
}

// use makes these the tokens of all listeners together: keys that are new are
// fetched at once, and fetching ends for those that are gone.
func (k *keyRing) use(tokens []*snapshot.Tokens) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return
	}
	old := *k.remotes.Load()
	next := make(map[string]*remoteKeys)
	cache := make(map[string]time.Duration)
	timeout := make(map[string]time.Duration)
	for _, t := range tokens {
		if t == nil {
			continue
		}
		for _, remote := range t.Remote {
			c, l := remote.CacheDuration, remote.Timeout
			if c <= 0 {
				c = defaultKeysCache
			}
			if l <= 0 {
				l = defaultKeysTimeout
			}
			// Where several ask for the same, the freshest and the most patient counts.
			if known, ok := cache[remote.URI]; !ok || c < known {
				cache[remote.URI] = max(c, minKeysCache)
			}
			timeout[remote.URI] = max(timeout[remote.URI], l)
		}
	}
	for uri := range cache {
		e := old[uri]
		if e == nil {
			e = newRemoteKeys(uri)
			e.configure(cache[uri], timeout[uri])
			ctx, cancel := context.WithCancel(context.Background())
			e.cancel = cancel
			k.running.Go(func() { k.keep(ctx, e) })
		} else {
			e.configure(cache[uri], timeout[uri])
		}
		next[uri] = e
	}
	k.remotes.Store(&next)
	for uri, e := range old {
		if next[uri] == nil {
			e.cancel()
		}
	}
}

// close ends all fetching and waits for it. No keys are there afterwards.
func (k *keyRing) close() {
	k.mu.Lock()
	k.closed = true
	for _, e := range *k.remotes.Load() {
		e.cancel()
	}
	k.remotes.Store(&map[string]*remoteKeys{})
	k.mu.Unlock()
	k.running.Wait()
	k.client.CloseIdleConnections()
}

// authenticate verifies the tokens of a request with keys that are fetched. It
// waits for a first fetch, and where a token names a key that is unknown it
// fetches the keys once more. Without keys a token is refused.
func (k *keyRing) authenticate(ctx context.Context, t *snapshot.Tokens, r *identity.AccessRequest, now time.Time, store identity.TokenStore) identity.JWTResult {
	var asked []*remoteKeys
	state := identity.JWTState{Tokens: store}
	if len(t.Remote) > 0 {
		state.Keys = func(p *identity.JWTProvider) *identity.KeySet {
			remote, ok := t.Remote[p.Name]
			if !ok {
				return nil
			}
			e := (*k.remotes.Load())[remote.URI]
			if e == nil {
				return nil
			}
			asked = append(asked, e)
			keys, _ := e.keys(ctx, remote.Timeout)
			return keys
		}
	}
	result := t.Authenticator.Authenticate(r, now, &state)
	if result.Status != identity.JWTNoKeyFits && result.Failure != identity.JWTNoKeyFits {
		return result
	}
	fresh := false
	for _, e := range asked {
		fresh = e.refetch(ctx) || fresh
	}
	if fresh {
		result = t.Authenticator.Authenticate(r, now, &state)
	}
	return result
}

// status returns why the keys at a URI can not be used; nil if they can, for diagnosis.
func (k *keyRing) status(uri string) error {
	e := (*k.remotes.Load())[uri]
	if e == nil {
		return errKeysNotAsked
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.present(); err != nil {
		return errors.Join(err, e.err)
	}
	return nil
}

// remoteKeys is what is known of the keys at one URI.
type remoteKeys struct {
	uri     string
	cache   atomic.Int64 // time.Duration
	timeout atomic.Int64 // time.Duration
	cancel  context.CancelFunc
	wake    chan struct{}
	good    atomic.Pointer[fetchedKeys] // the last that were good

	mu sync.Mutex
	// fetching is closed at the end of the fetch that is under way or asked for; nil if there is none.
	fetching chan struct{}
	ended    time.Time // of the last fetch
	err      error     // of the last fetch
}

type fetchedKeys struct {
	set *identity.KeySet
	at  time.Time
}

func newRemoteKeys(uri string) *remoteKeys {
	return &remoteKeys{uri: uri, wake: make(chan struct{}, 1), fetching: make(chan struct{})}
}

func (e *remoteKeys) configure(cache, timeout time.Duration) {
	e.cache.Store(int64(cache))
	e.timeout.Store(int64(timeout))
}

// present returns the last good keys while they may be used.
func (e *remoteKeys) present() (*identity.KeySet, error) {
	good := e.good.Load()
	if good == nil {
		return nil, errors.New("keys were not fetched")
	}
	if time.Since(good.at) > maxKeysAge {
		return nil, errKeysTooOld
	}
	return good.set, nil
}

// keys returns the present keys. Before the first fetch has ended it waits for
// that, up to the provider's timeout.
func (e *remoteKeys) keys(ctx context.Context, timeout time.Duration) (*identity.KeySet, error) {
	set, err := e.present()
	if err == nil {
		return set, nil
	}
	e.mu.Lock()
	first := e.fetching
	if !e.ended.IsZero() {
		first = nil
	}
	e.mu.Unlock()
	if first != nil {
		if timeout <= 0 {
			timeout = defaultKeysTimeout
		}
		if !wait(ctx, first, timeout) {
			return nil, errors.New("keys were not fetched in time")
		}
	}
	return e.present()
}

// refetch fetches the keys once more, unless that was done a moment ago, waits
// for the end and reports whether the keys may be others now.
func (e *remoteKeys) refetch(ctx context.Context) bool {
	e.mu.Lock()
	if e.fetching == nil {
		if time.Since(e.ended) < minRefetch {
			e.mu.Unlock()
			return false
		}
		e.fetching = make(chan struct{})
		select {
		case e.wake <- struct{}{}:
		default: // it is awake already
		}
	}
	end := e.fetching
	e.mu.Unlock()
	before := e.good.Load()
	return wait(ctx, end, time.Duration(e.timeout.Load())) && e.good.Load() != before
}

func wait(ctx context.Context, end <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-end:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// keep fetches the keys now, when they are due, and when somebody asks. It ends with ctx.
func (k *keyRing) keep(ctx context.Context, e *remoteKeys) {
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.fetching != nil {
			close(e.fetching)
			e.fetching = nil
		}
	}()
	var pause *backoff.ExponentialBackOff
	for {
		e.mu.Lock()
		if e.fetching == nil {
			e.fetching = make(chan struct{})
		}
		select {
		case <-e.wake: // whoever asked is served by this fetch
		default:
		}
		e.mu.Unlock()
		set, err := k.fetch(ctx, e.uri, time.Duration(e.timeout.Load()))
		if err == nil {
			e.good.Store(&fetchedKeys{set: set, at: time.Now()})
		}
		e.mu.Lock()
		end := e.fetching
		e.fetching, e.ended, e.err = nil, time.Now(), err
		e.mu.Unlock()
		close(end)
		if ctx.Err() != nil {
			return
		}

		// The jitter keeps processes that began together from asking together.
		due := time.Duration(e.cache.Load())
		due -= time.Duration(rand.Int64N(int64(due)/10 + 1))
		if err != nil {
			if pause == nil {
				pause = backoff.NewExponentialBackOff()
				pause.InitialInterval, pause.MaxInterval, pause.MaxElapsedTime = time.Second, maxKeysPause, 0
				pause.Reset()
			}
			due = pause.NextBackOff()
			k.log.Warn("the keys of a token issuer can not be fetched", "uri", shownURI(e.uri), "error", err, "again_in", due)
		} else {
			pause = nil
		}
		timer := time.NewTimer(due)
		select {
		case <-timer.C:
		case <-e.wake:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// fetch gets and reads a key set. Its error holds nothing of the answer but why
// keys can not be used.
func (k *keyRing) fetch(ctx context.Context, uri string, timeout time.Duration) (*identity.KeySet, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	at, err := url.Parse(uri)
	if err != nil {
		return nil, errors.New("not a URI")
	}
	if err := allowedURL(at); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, errors.New("not a URI")
	}
	req.Header.Set("Accept", "application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		// net/http puts the whole URI around it, and a URI may hold a secret.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer has status %d", resp.StatusCode)
	}
	document, err := io.ReadAll(io.LimitReader(resp.Body, maxKeysBytes+1))
	if err != nil {
		return nil, err
	}
	if len(document) > maxKeysBytes {
		return nil, fmt.Errorf("the answer has more than %d bytes", maxKeysBytes)
	}
	return identity.ParseKeySet(document)
}

// shownURI is a URI without what may be secret in it.
func shownURI(uri string) string {
	at, err := url.Parse(uri)
	if err != nil {
		return "(not a URI)"
	}
	return (&url.URL{Scheme: at.Scheme, Host: at.Host, Path: at.Path}).String()
}

// tokenStore is an identity.TokenStore that many requests use at a time. A token
// belongs to one of several caches by a keyed hash.
type tokenStore struct {
	seed   maphash.Seed
	shards [16]struct {
		sync.Mutex
		cache *identity.TokenCache
	}
}

// newTokenStore returns a store of at least as many tokens.
func newTokenStore(capacity int) *tokenStore {
	s := &tokenStore{seed: maphash.MakeSeed()}
	for i := range s.shards {
		s.shards[i].cache = identity.NewTokenCache((capacity + len(s.shards) - 1) / len(s.shards))
	}
	return s
}

// Get returns what Put was given under the key; nil if it is not there.
func (s *tokenStore) Get(key identity.TokenKey) *identity.VerifiedToken {
	shard := &s.shards[maphash.Comparable(s.seed, key)%uint64(len(s.shards))]
	shard.Lock()
	defer shard.Unlock()
	return shard.cache.Get(key)
}

// Put keeps a token.
func (s *tokenStore) Put(key identity.TokenKey, t *identity.VerifiedToken) {
	shard := &s.shards[maphash.Comparable(s.seed, key)%uint64(len(s.shards))]
	shard.Lock()
	defer shard.Unlock()
	shard.cache.Put(key, t)
}
