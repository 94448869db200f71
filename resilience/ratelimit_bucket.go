package resilience

import (
	"fmt"
	"math"
	"time"
)

// TokenBucket is how many requests may come (envoy.type.v3.TokenBucket). Tokens
// come evenly over the interval, not all at its end, as in Envoy.
type TokenBucket struct {
	// MaxTokens is how many there are at most, and at the beginning.
	MaxTokens uint32
	// TokensPerFill come in each FillInterval. Default 1.
	TokensPerFill uint32
	// FillInterval is at least 50 ms (Envoy).
	FillInterval time.Duration
}

const (
	minFillInterval = 50 * time.Millisecond
	// maxFill is the longest time that an empty bucket may take to be full; it
	// keeps sums of times within their type.
	maxFill = time.Duration(math.MaxInt64 / 4)
)

// Bucket is a TokenBucket that was checked. Its level is not in it but one
// time.Duration of the caller's: when the bucket will be full, counted from an
// instant that the caller chooses and never changes. So a new level is zero,
// which is full, a level needs no care while nobody asks, and one atomic word
// holds it. All times given must be counted from the same instant.
type Bucket struct {
	max      uint32
	cost     time.Duration // of one token, to the nanosecond and at least one
	capacity time.Duration // of all tokens
}

func newBucket(b TokenBucket) (Bucket, error) {
	if b.MaxTokens == 0 {
		return Bucket{}, fmt.Errorf("max_tokens: is 0")
	}
	if b.FillInterval < minFillInterval {
		return Bucket{}, fmt.Errorf("fill_interval: %s is less than %s", b.FillInterval, minFillInterval)
	}
	cost := max(b.FillInterval/time.Duration(max(b.TokensPerFill, 1)), 1)
	if cost > maxFill/time.Duration(b.MaxTokens) {
		return Bucket{}, fmt.Errorf("fill_interval: %d tokens take too long to come", b.MaxTokens)
	}
	return Bucket{max: b.MaxTokens, cost: cost, capacity: cost * time.Duration(b.MaxTokens)}, nil
}

// Max returns the most tokens that there can be.
func (b *Bucket) Max() uint32 { return b.max }

// Take takes tokens from a bucket of the level full. If there are as many, it
// returns the new level and true, else the old level and false.
func (b *Bucket) Take(full, now time.Duration, tokens uint32) (time.Duration, bool) {
	if tokens > b.max {
		return full, false
	}
	after := max(full, now) + b.cost*time.Duration(tokens)
	if after-now > b.capacity {
		return full, false
	}
	return after, true
}

// Remaining returns how many whole tokens there are.
func (b *Bucket) Remaining(full, now time.Duration) uint32 {
	return uint32(max(b.capacity-max(full-now, 0), 0) / b.cost)
}

// Wait returns how long it takes until there are that many tokens, or all that
// there can be.
func (b *Bucket) Wait(full, now time.Duration, tokens uint32) time.Duration {
	return max(max(full, now)+b.cost*time.Duration(min(tokens, b.max))-now-b.capacity, 0)
}

// Full reports whether the bucket has all its tokens, so that nothing is lost if its level is forgotten.
func (b *Bucket) Full(full, now time.Duration) bool { return full <= now }
