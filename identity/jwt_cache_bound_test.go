package identity

import (
	"encoding/binary"
	"testing"
)

// TestTokensThatAreKeptAreBounded: however many tokens come, so many are kept, and
// those that came last.
func TestTokensThatAreKeptAreBounded(t *testing.T) {
	const capacity, tokens = 1000, 100_000
	cache, careless := NewTokenCache(capacity), map[TokenKey]*VerifiedToken{}
	for i := range uint64(tokens) {
		var key TokenKey
		binary.BigEndian.PutUint64(key.sum[:], i)
		token := &VerifiedToken{}
		cache.Put(key, token)
		careless[key] = token // as who keeps all
		if cache.Get(key) != token {
			t.Fatal("a token that was just put is not there")
		}
		if cache.Len() > capacity {
			t.Fatalf("%d tokens are kept", cache.Len())
		}
	}
	for i := range uint64(tokens) {
		var key TokenKey
		binary.BigEndian.PutUint64(key.sum[:], i)
		if (cache.Get(key) != nil) != (i >= tokens-capacity) {
			t.Fatalf("token %d of %d: %v", i, tokens, cache.Get(key))
		}
	}
	if len(careless) <= capacity || len(cache.order) > capacity {
		t.Errorf("%d tokens prove nothing; %d places", len(careless), len(cache.order))
	}
}
