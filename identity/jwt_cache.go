package identity

import (
	"crypto/sha256"
	"time"
)

// TokenKey names a token that was presented for a provider. It holds a hash:
// the token itself is a secret that nothing here keeps.
type TokenKey struct {
	provider *JWTProvider
	sum      [sha256.Size]byte
}

// NewTokenKey returns the key of a token.
func NewTokenKey(p *JWTProvider, token string) TokenKey {
	return TokenKey{provider: p, sum: sha256.Sum256([]byte(token))}
}

// TokenStore remembers tokens that were verified. TokenCache is one without a lock.
type TokenStore interface {
	// Get returns what Put was given under the key; nil if it is not there.
	Get(TokenKey) *VerifiedToken
	Put(TokenKey, *VerifiedToken)
}

// TokenCache remembers a number of verified tokens and forgets the oldest. It
// is not safe for concurrent use. Only tokens that passed are kept, so that a
// sender of bad tokens can not fill it. Whoever gets a token asks Usable before
// he relies on it; JWTAuthenticator does.
type TokenCache struct {
	tokens map[TokenKey]*VerifiedToken
	order  []TokenKey // a ring, from next the oldest
	next   int
}

// NewTokenCache returns a cache for that many tokens, at least one.
func NewTokenCache(capacity int) *TokenCache {
	capacity = max(capacity, 1)
	return &TokenCache{tokens: make(map[TokenKey]*VerifiedToken), order: make([]TokenKey, 0, capacity)}
}

// Len returns the number of tokens.
func (c *TokenCache) Len() int { return len(c.tokens) }

// Get returns the token; nil if it is not there.
func (c *TokenCache) Get(key TokenKey) *VerifiedToken { return c.tokens[key] }

// Put keeps the token, in place of the oldest if there is no room.
func (c *TokenCache) Put(key TokenKey, t *VerifiedToken) {
	if _, ok := c.tokens[key]; !ok {
		if len(c.order) < cap(c.order) {
			c.order = append(c.order, key)
		} else {
			delete(c.tokens, c.order[c.next])
			c.order[c.next] = key
			c.next = (c.next + 1) % len(c.order)
		}
	}
	c.tokens[key] = t
}

// Usable reports whether a token that was verified with a key set still holds:
// the keys are the same, and it has not expired.
func (t *VerifiedToken) Usable(keys *KeySet, now time.Time) bool {
	return t.keys == keys && t.provider.checkTime(t.Claims, now) == JWTOk
}
