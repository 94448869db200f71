package inbound

import (
	"hash/maphash"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
)

// limits are the levels of one listener's buckets. A new policy gets new limits
// from carryLimits, which share the levels of what has not changed with the old,
// so that requests under both count together. The zero value has none.
type limits struct {
	live map[*resilience.RateLimit]*liveLimit
	// named finds them again under the next policy.
	named map[limitName]*liveLimit
}

// limitName is a configuration and which of those of a chain that are equal it
// is: two routes with equal limits have a bucket each.
type limitName struct {
	identity string
	nth      int
}

// carryLimits returns the limits of a listener's new policy; old may be nil.
// Both chains of a listener share the limits that are equal: a workload that
// accepts plaintext too does not accept twice as much. Where the new policy can
// not be used the old levels stay for the one after it.
func carryLimits(old *limits, in *snapshot.Inbound, now time.Time) *limits {
	if old == nil {
		old = &limits{}
	}
	if in == nil || in.TLS == nil && in.Plain == nil {
		return old
	}
	next := &limits{live: make(map[*resilience.RateLimit]*liveLimit), named: make(map[limitName]*liveLimit)}
	for _, chain := range []*snapshot.FilterChain{in.TLS, in.Plain} {
		if chain == nil {
			continue
		}
		count := make(map[string]int)
		add := func(list []*resilience.RateLimit) {
			for _, l := range list {
				if next.live[l] != nil {
					continue
				}
				name := limitName{identity: l.Config().Identity}
				if name.identity == "" {
					if next.live[l] = old.live[l]; next.live[l] == nil {
						next.live[l] = newLiveLimit(l, now)
					}
					continue
				}
				name.nth = count[name.identity]
				count[name.identity]++
				live := next.named[name]
				if live == nil {
					live = old.named[name]
				}
				if live == nil || len(live.levels) != l.Slots() {
					live = newLiveLimit(l, now)
				}
				next.live[l], next.named[name] = live, live
			}
		}
		add(chain.RateLimits)
		for i := range chain.Routes {
			add(chain.Routes[i].RateLimits)
		}
	}
	return next
}

// liveLimit is the levels of one limit's buckets. There is no lock that all
// requests share: a level is one atomic word, and those under keys are spread over many locks.
type liveLimit struct {
	start  time.Time // what levels count from
	levels []atomic.Int64
	keyed  []keyedLevels // by slot
}

func newLiveLimit(l *resilience.RateLimit, now time.Time) *liveLimit {
	live := &liveLimit{start: now, levels: make([]atomic.Int64, l.Slots()), keyed: make([]keyedLevels, l.Slots())}
	for slot := range live.keyed {
		live.keyed[slot].least = int(l.Config().MaxDynamic)
	}
	return live
}

// take takes tokens from one bucket and returns its level.
func (live *liveLimit) take(use *resilience.LimitUse, key []byte, now time.Duration) (time.Duration, bool) {
	if use.Open {
		return live.keyed[use.Slot].take(use.Bucket, key, now, use.Tokens)
	}
	level := &live.levels[use.Slot]
	for {
		old := level.Load()
		after, ok := use.Bucket.Take(time.Duration(old), now, use.Tokens)
		if !ok || level.CompareAndSwap(old, int64(after)) {
			return after, ok
		}
	}
}

const (
	// levelWays is how many keys one lock guards.
	levelWays = 8
	// minKeyedLevels is how many keys of a slot have a level of their own at least.
	// More than Envoy's 20 costs 18 bytes for each, and nothing until the first request.
	minKeyedLevels = 2048
	maxKeyedLevels = 1 << 20
)

// keyedLevels are the levels of buckets under keys that requests bring along, in
// a fixed space. A key is kept as a keyed hash only: what clients sent, which may be
// secret, is not held, and nobody can choose keys that fall together.
//
// A key's place is given to another only when its bucket is full again, so that
// nothing is forgotten. Where all places that a key could have are taken, it
// shares one level with the others in that situation: a flood of new keys gives
// nobody fresh tokens, does not touch those that have a place, and grows nothing.
type keyedLevels struct {
	least int
	once  sync.Once
	seed  maphash.Seed
	sets  []levelSet // a power of two
}

type levelSet struct {
	mu     sync.Mutex
	hashes [levelWays]uint64
	levels [levelWays]time.Duration
	others time.Duration
}

func (k *keyedLevels) make() {
	n := min(max(k.least, minKeyedLevels), maxKeyedLevels) / levelWays
	k.seed = maphash.MakeSeed()
	k.sets = make([]levelSet, 1<<bits.Len(uint(n-1)))
}

func (k *keyedLevels) take(b *resilience.Bucket, key []byte, now time.Duration, tokens uint32) (time.Duration, bool) {
	k.once.Do(k.make)
	hash := maphash.Bytes(k.seed, key)
	set := &k.sets[hash&uint64(len(k.sets)-1)]
	set.mu.Lock()
	defer set.mu.Unlock()
	level := &set.others
	if i := slices.Index(set.hashes[:], hash); i >= 0 {
		level = &set.levels[i]
	} else {
		for i := range set.levels {
			if b.Full(set.levels[i], now) {
				set.hashes[i], level = hash, &set.levels[i]
				break
			}
		}
	}
	after, ok := b.Take(*level, now, tokens)
	*level = after
	return after, ok
}

// limitVerdict is what a request's limits say.
type limitVerdict struct {
	// refused is the limit that refuses; nil if the request may go on.
	refused *resilience.RateLimit
	// retryAfter is how long it takes until refused may let through again.
	retryAfter time.Duration
	// request has headers for the handler: the request is over a limit that is not enforced on it.
	request []resilience.LimitHeader
	// response has headers for the answer, be it the handler's or a refusal.
	response []Header
}

// limitScratch is what check needs beside, so that a request allocates nothing.
var limitScratch = sync.Pool{New: func() any { return new(resilience.LimitUses) }}

// check takes the request's tokens from the limits of the chain and from those of the
// first of its routes that matches. draw is 64 random bits. Limits that are not of
// the policy that made l refuse.
func (l *limits) check(chain *snapshot.FilterChain, r *resilience.LimitRequest, now time.Time, draw uint64) limitVerdict {
	if len(chain.RateLimits) == 0 && len(chain.Routes) == 0 {
		return limitVerdict{}
	}
	uses := limitScratch.Get().(*resilience.LimitUses)
	defer limitScratch.Put(uses)
	return l.checkWith(uses, chain, r, now, draw)
}

func (l *limits) checkWith(uses *resilience.LimitUses, chain *snapshot.FilterChain, r *resilience.LimitRequest, now time.Time, draw uint64) limitVerdict {
	var v limitVerdict
	tightest := quota{remaining: ^uint32(0)}
	lists := [2][]*resilience.RateLimit{chain.RateLimits, nil}
	for i := range chain.Routes {
		if chain.Routes[i].Match.Matches(r.Request, bits.ReverseBytes64(draw)) {
			lists[1] = chain.Routes[i].RateLimits
			break
		}
	}
	for _, list := range lists {
		for _, limit := range list {
			if v.refused == nil {
				l.one(limit, r, now, draw, uses, &v, &tightest)
			}
		}
	}
	if tightest.shown {
		v.response = append([]Header{
			{"X-Ratelimit-Limit", strconv.FormatUint(uint64(tightest.limit), 10)},
			{"X-Ratelimit-Remaining", strconv.FormatUint(uint64(tightest.remaining), 10)},
			{"X-Ratelimit-Reset", seconds(tightest.reset)},
		}, v.response...)
	}
	if v.refused != nil {
		v.refusal()
	}
	return v
}

// quota is the state of a bucket that the caller is told.
type quota struct {
	limit, remaining uint32
	reset            time.Duration
	shown            bool
}

func (l *limits) one(limit *resilience.RateLimit, r *resilience.LimitRequest, now time.Time, draw uint64, uses *resilience.LimitUses, v *limitVerdict, tightest *quota) {
	c := limit.Config()
	if !c.Enabled.Matches(draw) {
		return
	}
	live := l.live[limit]
	if live == nil {
		v.refused = limit
		return
	}
	at := now.Sub(live.start)
	limit.Select(r, uses)
	for i := range uses.Uses {
		use := &uses.Uses[i]
		level, ok := live.take(use, uses.Key(i), at)
		refuses := !ok && !use.Shadow
		if c.Headers && !use.Shadow {
			q := quota{limit: use.Bucket.Max(), remaining: use.Bucket.Remaining(level, at), reset: use.Bucket.Wait(level, at, 1), shown: true}
			if refuses || q.remaining < tightest.remaining {
				*tightest = q
			}
		}
		if !refuses {
			continue
		}
		if c.Enforced.Matches(bits.RotateLeft64(draw, 32)) {
			v.refused = limit
			v.retryAfter = use.Bucket.Wait(level, at, use.Tokens)
		} else {
			v.request = append(v.request, c.RequestHeaders...)
		}
		return
	}
}

// refusal adds the headers of a refused request's answer. Those of policy come
// last and may replace the others.
func (v *limitVerdict) refusal() {
	c := v.refused.Config()
	if !c.OmitLimited {
		v.response = append(v.response, Header{"X-Envoy-Ratelimited", "true"})
	}
	for _, h := range c.ResponseHeaders {
		if h.Replace {
			v.response = slices.DeleteFunc(v.response, func(o Header) bool { return strings.EqualFold(o.Name, h.Name) })
		}
		v.response = append(v.response, Header{h.Name, h.Value})
	}
	if c.RetryAfter && c.Status == 429 && !slices.ContainsFunc(v.response, func(o Header) bool { return strings.EqualFold(o.Name, "retry-after") }) {
		v.response = append(v.response, Header{"Retry-After", seconds(max(v.retryAfter, time.Second))})
	}
}

// seconds writes a time in whole seconds, rounded up.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
