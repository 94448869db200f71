package inbound

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

var (
	every     = routing.Fraction{PerMillion: 1_000_000}
	limitTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

func bucketOf(n uint32) *resilience.TokenBucket {
	return &resilience.TokenBucket{MaxTokens: n, TokensPerFill: n, FillInterval: time.Second}
}

// limitOf is a limit that is in force; change may alter its configuration.
func limitOf(t testing.TB, identity string, n uint32, change func(*resilience.RateLimitConfig)) *resilience.RateLimit {
	t.Helper()
	c := resilience.RateLimitConfig{Name: identity, Identity: identity, Bucket: bucketOf(n), Enabled: every, Enforced: every}
	if change != nil {
		change(&c)
	}
	l, err := resilience.NewRateLimit(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func limitedBy(list ...*resilience.RateLimit) *snapshot.FilterChain {
	return &snapshot.FilterChain{RateLimits: list}
}

func limitView(path, principal, user string) *resilience.LimitRequest {
	r := &routing.Request{Method: "GET", Path: path, Header: map[string][]string{}}
	if user != "" {
		r.Header["X-User"] = []string{user}
	}
	return &resilience.LimitRequest{Request: r, Principal: principal}
}

// let counts how many of n requests are let through at once.
func let(l *limits, chain *snapshot.FilterChain, r *resilience.LimitRequest, now time.Time, n int) (count int) {
	for range n {
		if v := l.check(chain, r, now, 0); v.refused == nil {
			count++
		}
	}
	return count
}

// byUser has a bucket for each value of x-user, and nothing else.
func byUser(n, most uint32) func(*resilience.RateLimitConfig) {
	return func(c *resilience.RateLimitConfig) {
		c.Bucket, c.MaxDynamic = nil, most
		c.Descriptors = []resilience.LimitDescriptor{{Entries: []resilience.LimitEntry{{Key: "user"}}, Bucket: *bucketOf(n)}}
		c.Actions = []resilience.LimitActions{{Actions: []resilience.LimitAction{{Kind: resilience.LimitRequestHeader, Header: routing.NewHeaderName("x-user"), Key: "user"}}}}
	}
}

func TestLimitsAcrossPolicies(t *testing.T) {
	inbound := func(tls, plain *snapshot.FilterChain) *snapshot.Inbound {
		return &snapshot.Inbound{TLS: tls, Plain: plain}
	}
	all := limitView("/", "", "")
	first := limitedBy(limitOf(t, "a", 3, nil))
	l := carryLimits(nil, inbound(first, nil), limitTime)
	if n := let(l, first, all, limitTime, 2); n != 2 {
		t.Fatalf("%d let through", n)
	}
	// The same configuration, compiled anew, for both chains: one token is left for both together.
	tls, plain := limitedBy(limitOf(t, "a", 3, nil)), limitedBy(limitOf(t, "a", 3, nil))
	l2 := carryLimits(l, inbound(tls, plain), limitTime)
	if n := let(l2, plain, all, limitTime, 2) + let(l2, tls, all, limitTime, 2) + let(l, first, all, limitTime, 2); n != 1 {
		t.Errorf("%d let through, want the one that was left", n)
	}
	// Nothing that could be used for a while, then again.
	l3 := carryLimits(carryLimits(l2, &snapshot.Inbound{Absent: true}, limitTime), inbound(tls, nil), limitTime)
	if n := let(l3, tls, all, limitTime, 2); n != 0 {
		t.Errorf("%d let through after a gap in policy", n)
	}
	// Another configuration is another bucket.
	other := limitedBy(limitOf(t, "b", 3, nil))
	l4 := carryLimits(l3, inbound(other, nil), limitTime)
	if n := let(l4, other, all, limitTime, 9); n != 3 {
		t.Errorf("%d let through by a new limit", n)
	}
	// A limit of a policy that is not in force refuses.
	if n := let(l4, limitedBy(limitOf(t, "a", 3, nil)), all, limitTime, 1); n != 0 {
		t.Error("a limit without a bucket let through")
	}
	// Without an identity a limit is kept as long as it is the same one.
	same := limitedBy(limitOf(t, "", 2, nil))
	l5 := carryLimits(l4, inbound(same, same), limitTime)
	let(l5, same, all, limitTime, 1)
	if n := let(carryLimits(l5, inbound(same, nil), limitTime), same, all, limitTime, 9); n != 1 {
		t.Errorf("%d let through by the same limit", n)
	}
}

func TestLimitsOfRoutes(t *testing.T) {
	prefix := func(p string) routing.Match { return routing.Match{Path: routing.PathMatch{Value: p}} }
	chain := &snapshot.FilterChain{
		RateLimits: []*resilience.RateLimit{limitOf(t, "all", 6, nil)},
		Routes: []snapshot.InboundRoute{
			{Match: prefix("/a/b"), RateLimits: []*resilience.RateLimit{limitOf(t, "x", 2, nil)}},
			// As the one before, and yet a bucket of its own.
			{Match: prefix("/a"), RateLimits: []*resilience.RateLimit{limitOf(t, "x", 2, nil)}},
		},
	}
	l := carryLimits(nil, &snapshot.Inbound{Plain: chain}, limitTime)
	for _, c := range []struct {
		path string
		want int
	}{{"/a/b/c", 2}, {"/a/c", 2}, {"/c", 0}} { // 3 of the 6 tokens for all went to each path
		if n := let(l, chain, limitView(c.path, "", ""), limitTime, 3); n != c.want {
			t.Errorf("%s: %d let through, want %d", c.path, n, c.want)
		}
	}
	if n := let(l, chain, limitView("/c", "", ""), limitTime.Add(time.Second), 9); n != 6 {
		t.Errorf("%d let through a second later", n)
	}
}

func TestLimitAnswers(t *testing.T) {
	value := func(v limitVerdict) (out []string) {
		for _, h := range v.response {
			out = append(out, h.Name+": "+h.Value)
		}
		return out
	}
	for _, c := range []struct {
		name     string
		change   func(*resilience.RateLimitConfig)
		draw     uint64
		requests int // before the one that is looked at
		refused  bool
		response []string
		request  int
	}{
		{"plain refusal", nil, 0, 2, true, []string{"X-Envoy-Ratelimited: true"}, 0},
		{"nothing to say", nil, 0, 0, false, nil, 0},
		{"headers", func(c *resilience.RateLimitConfig) { c.Headers = true }, 0, 0, false, []string{"X-Ratelimit-Limit: 2", "X-Ratelimit-Remaining: 1", "X-Ratelimit-Reset: 0"}, 0},
		{"headers of a refusal", func(c *resilience.RateLimitConfig) { c.Headers, c.OmitLimited = true, true }, 0, 2, true, []string{"X-Ratelimit-Limit: 2", "X-Ratelimit-Remaining: 0", "X-Ratelimit-Reset: 1"}, 0},
		{"retry after", func(c *resilience.RateLimitConfig) { c.RetryAfter, c.OmitLimited = true, true }, 0, 2, true, []string{"Retry-After: 1"}, 0},
		{"retry after long", func(c *resilience.RateLimitConfig) {
			c.RetryAfter, c.OmitLimited, c.Bucket.FillInterval = true, true, 61*time.Second
		}, 0, 2, true, []string{"Retry-After: 31"}, 0},
		{"retry after only with 429", func(c *resilience.RateLimitConfig) { c.RetryAfter, c.Status = true, 503 }, 0, 2, true, []string{"X-Envoy-Ratelimited: true"}, 0},
		{"policy's headers", func(c *resilience.RateLimitConfig) {
			c.RetryAfter = true
			c.ResponseHeaders = []resilience.LimitHeader{{Name: "x-envoy-ratelimited", Value: "yes", Replace: true}, {Name: "retry-after", Value: "7"}, {Name: "x-a", Value: "b"}}
		}, 0, 2, true, []string{"x-envoy-ratelimited: yes", "retry-after: 7", "x-a: b"}, 0},
		{"not enabled", func(c *resilience.RateLimitConfig) { c.Enabled = routing.Fraction{}; c.Headers = true }, 0, 9, false, nil, 0},
		{"half enabled, out", func(c *resilience.RateLimitConfig) { c.Enabled.PerMillion = 500_000 }, 500_000, 9, false, nil, 0},
		{"half enabled, in", func(c *resilience.RateLimitConfig) { c.Enabled.PerMillion = 500_000 }, 499_999, 9, true, []string{"X-Envoy-Ratelimited: true"}, 0},
		{"not enforced", func(c *resilience.RateLimitConfig) {
			c.Enforced = routing.Fraction{}
			c.RequestHeaders = []resilience.LimitHeader{{Name: "x-limited", Value: "1"}}
		}, 0, 2, false, nil, 1},
		{"shadow", func(c *resilience.RateLimitConfig) {
			byUser(1, 0)(c)
			c.Descriptors[0].Shadow = true
		}, 0, 9, false, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			chain := limitedBy(limitOf(t, "", 2, c.change))
			l := carryLimits(nil, &snapshot.Inbound{Plain: chain}, limitTime)
			r := limitView("/", "", "ann")
			for range c.requests {
				l.check(chain, r, limitTime, c.draw)
			}
			v := l.check(chain, r, limitTime, c.draw)
			if (v.refused != nil) != c.refused || !slices.Equal(value(v), c.response) || len(v.request) != c.request {
				t.Errorf("refused %v, response %q, request %v", v.refused != nil, value(v), v.request)
			}
		})
	}
}

// TestTightestLimit: of several limits the caller is told the one that is nearest to its end.
func TestTightestLimit(t *testing.T) {
	shown := func(c *resilience.RateLimitConfig) { c.Headers = true }
	chain := limitedBy(limitOf(t, "a", 9, shown), limitOf(t, "b", 4, shown), limitOf(t, "c", 7, shown))
	l := carryLimits(nil, &snapshot.Inbound{Plain: chain}, limitTime)
	if v := l.check(chain, limitView("/", "", ""), limitTime, 0); len(v.response) != 3 || v.response[0].Value != "4" || v.response[1].Value != "3" {
		t.Errorf("response %v", v.response)
	}
}

// TestRefusingLimitIsShown though another has less left: what refused is what the caller is told.
func TestRefusingLimitIsShown(t *testing.T) {
	shown := func(c *resilience.RateLimitConfig) { c.Headers = true }
	three := func(c *resilience.RateLimitConfig) { // at a time, of five
		c.Headers, c.Bucket = true, nil
		c.Descriptors = []resilience.LimitDescriptor{{Entries: []resilience.LimitEntry{{Key: "generic_key", Value: "x"}}, Bucket: *bucketOf(5)}}
		c.Actions = []resilience.LimitActions{{Actions: []resilience.LimitAction{{Kind: resilience.LimitGenericKey, Value: "x"}}, Hits: 3}}
	}
	chain := limitedBy(limitOf(t, "a", 2, shown), limitOf(t, "b", 0, three))
	l := carryLimits(nil, &snapshot.Inbound{Plain: chain}, limitTime)
	l.check(chain, limitView("/", "", ""), limitTime, 0)
	if v := l.check(chain, limitView("/", "", ""), limitTime, 0); v.refused != chain.RateLimits[1] || v.response[0].Value != "5" || v.response[1].Value != "2" {
		t.Errorf("refused %v, response %v", v.refused, v.response)
	}
}

// TestFloodOfKeys: whoever sends ever new values gets no more than a limited
// number of tokens, takes no memory, and gives nobody else tokens back.
func TestFloodOfKeys(t *testing.T) {
	chain := limitedBy(limitOf(t, "", 0, byUser(2, 20)))
	l := carryLimits(nil, &snapshot.Inbound{Plain: chain}, limitTime)
	victim := limitView("/", "", "victim")
	if n := let(l, chain, victim, limitTime, 9); n != 2 {
		t.Fatalf("%d let through", n)
	}
	keyed := &l.live[chain.RateLimits[0]].keyed[0]
	size := len(keyed.sets)
	passed := 0
	const flood = 100_000
	for i := range flood {
		passed += let(l, chain, limitView("/", "", fmt.Sprint("flood", i)), limitTime, 1)
	}
	// Each place has 2 tokens, and so has what the others of its set share.
	if most := size * (levelWays + 1) * 2; passed > most || passed < size {
		t.Errorf("%d of %d let through, at most %d may", passed, flood, most)
	}
	if n := let(l, chain, victim, limitTime, 9); n != 0 {
		t.Errorf("the flood gave %d tokens back", n)
	}
	if len(keyed.sets) != size || size*levelWays < minKeyedLevels {
		t.Errorf("%d sets, %d before", len(keyed.sets), size)
	}
	// When it is over, everybody has a full bucket again, and each their own.
	later := limitTime.Add(time.Minute)
	for _, user := range []string{"victim", "ann", "bob"} {
		if n := let(l, chain, limitView("/", "", user), later, 9); n != 2 {
			t.Errorf("%s: %d let through", user, n)
		}
	}
}

// TestKeyedLevelsAgainstMap: as long as there is room, the places are as a map is.
func TestKeyedLevelsAgainstMap(t *testing.T) {
	l := limitOf(t, "", 0, byUser(3, 0))
	live := newLiveLimit(l, limitTime)
	plain := map[string]time.Duration{}
	rng := rand.New(rand.NewPCG(3, 4))
	var u resilience.LimitUses
	now := time.Duration(0)
	for i := range 5000 {
		now += time.Duration(rng.IntN(int(20 * time.Millisecond)))
		user := fmt.Sprint(rng.IntN(40))
		l.Select(limitView("/", "", user), &u)
		use := &u.Uses[0]
		_, got := live.take(use, u.Key(0), now)
		level, want := use.Bucket.Take(plain[user], now, 1)
		plain[user] = level
		if got != want {
			t.Fatalf("request %d of %s: %v, want %v", i, user, got, want)
		}
	}
}

// TestLimitsConcurrently: at one instant no more requests pass than there are tokens.
func TestLimitsConcurrently(t *testing.T) {
	chain := limitedBy(limitOf(t, "a", 500, func(c *resilience.RateLimitConfig) { c.Principals = &resilience.PrincipalLimit{PerSecond: 300} }))
	in := &snapshot.Inbound{Plain: chain}
	l := carryLimits(nil, in, limitTime)
	var passed [4]atomic.Int64
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			own := carryLimits(l, in, limitTime)
			passed[i%4].Add(int64(let(own, chain, limitView("/", fmt.Sprint(i%4), ""), limitTime, 400)))
		})
	}
	running.Wait()
	sum := int64(0)
	for i := range passed {
		if n := passed[i].Load(); n > 300 {
			t.Errorf("principal %d: %d passed", i, n)
		}
		sum += passed[i].Load()
	}
	if sum != 500 {
		t.Errorf("%d passed, want 500", sum)
	}
}

func TestLimitAllocatesNothing(t *testing.T) {
	chain := limitedBy(limitOf(t, "a", 1, byUser(1<<30, 0)))
	l := carryLimits(nil, &snapshot.Inbound{Plain: chain}, limitTime)
	r := limitView("/", "", "ann")
	// Not by check, whose pool the race detector makes forget.
	var uses resilience.LimitUses
	if n := testing.AllocsPerRun(100, func() { l.checkWith(&uses, chain, r, limitTime, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLimit(b *testing.B) {
	for name, change := range map[string]func(*resilience.RateLimitConfig){
		"one bucket":    nil,
		"per principal": func(c *resilience.RateLimitConfig) { c.Principals = &resilience.PrincipalLimit{PerSecond: 1 << 20} },
	} {
		b.Run(name, func(b *testing.B) {
			chain := limitedBy(limitOf(b, "a", 1<<30, change))
			l := carryLimits(nil, &snapshot.Inbound{Plain: chain}, limitTime)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				r := limitView("/", "spiffe://cluster.local/ns/default/sa/web", "")
				for pb.Next() {
					l.check(chain, r, limitTime, 0)
				}
			})
		})
	}
}
