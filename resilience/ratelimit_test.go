package resilience

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/routing"
)

var always = routing.Fraction{PerMillion: 1_000_000}

func rateLimit(t testing.TB, c RateLimitConfig) *RateLimit {
	t.Helper()
	l, err := NewRateLimit(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// levels are a caller's levels in the plainest form.
type levels map[string]time.Duration

// take takes a request's tokens; it returns the use that refused, or -1.
func (s levels) take(l *RateLimit, r *LimitRequest, now time.Duration) int {
	var u LimitUses
	l.Select(r, &u)
	for i, use := range u.Uses {
		key := fmt.Sprintf("%d %v %q", use.Slot, use.Open, u.Key(i))
		level, ok := use.Bucket.Take(s[key], now, use.Tokens)
		s[key] = level
		if !ok && !use.Shadow {
			return i
		}
	}
	return -1
}

// slowBucket is a bucket by the book: a number of tokens, kept exactly.
type slowBucket struct {
	max, rate, tokens *big.Rat
	at                time.Duration
}

func newSlowBucket(b TokenBucket) *slowBucket {
	per := big.NewRat(int64(max(b.TokensPerFill, 1)), int64(b.FillInterval))
	full := new(big.Rat).SetInt64(int64(b.MaxTokens))
	return &slowBucket{max: full, rate: per, tokens: new(big.Rat).Set(full)}
}

func (s *slowBucket) take(now time.Duration, n uint32) bool {
	s.tokens.Add(s.tokens, new(big.Rat).Mul(s.rate, new(big.Rat).SetInt64(int64(now-s.at))))
	s.at = now
	if s.tokens.Cmp(s.max) > 0 {
		s.tokens.Set(s.max)
	}
	want := new(big.Rat).SetInt64(int64(n))
	if s.tokens.Cmp(want) < 0 {
		return false
	}
	s.tokens.Sub(s.tokens, want)
	return true
}

// TestBucketAgainstSlowBucket: rates that are whole nanoseconds for a token are
// exact; the others are never off by more than those parts of a nanosecond.
func TestBucketAgainstSlowBucket(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range 300 {
		fill := []uint32{1, 2, 4, 5, 10, 50, 1000}[rng.IntN(7)]
		config := TokenBucket{MaxTokens: 1 + rng.Uint32N(20), TokensPerFill: fill, FillInterval: time.Duration(50+rng.IntN(1000)) * time.Millisecond}
		if config.FillInterval%time.Duration(fill) != 0 {
			config.FillInterval = 100 * time.Millisecond
		}
		b, err := newBucket(config)
		if err != nil {
			t.Fatal(err)
		}
		slow, level, now := newSlowBucket(config), time.Duration(0), time.Duration(0)
		for range 200 {
			now += time.Duration(rng.Int64N(int64(config.FillInterval)))
			if rng.IntN(3) == 0 {
				now += b.Wait(level, now, 1) // to the boundary
			}
			n := 1 + rng.Uint32N(3)
			wait := b.Wait(level, now, n)
			after, ok := b.Take(level, now, n)
			if want := slow.take(now, n); ok != want {
				t.Fatalf("%+v at %s, %d tokens: %v, want %v", config, now, n, ok, want)
			}
			if !ok {
				refused++
			}
			if n <= config.MaxTokens && ok != (wait == 0) {
				t.Fatalf("%+v at %s: taken: %v, but the wait is %s", config, now, ok, wait)
			}
			level = after
			whole := new(big.Int).Quo(slow.tokens.Num(), slow.tokens.Denom()).Uint64()
			if got := b.Remaining(level, now); uint64(got) != whole {
				t.Fatalf("%+v at %s: %d remain, want %d", config, now, got, whole)
			}
		}
	}
	if refused < 1000 {
		t.Errorf("only %d were refused: the test shows little", refused)
	}
}

func TestBucketErrors(t *testing.T) {
	for want, c := range map[string]TokenBucket{
		"max_tokens: is 0":                   {FillInterval: time.Second},
		"fill_interval: 49ms is less than":   {MaxTokens: 1, FillInterval: 49 * time.Millisecond},
		"fill_interval: 0s is less than":     {MaxTokens: 1},
		"4294967295 tokens take too long to": {MaxTokens: 1<<32 - 1, FillInterval: 100 * time.Hour},
	} {
		if _, err := newBucket(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	// The largest and the fastest do not run over.
	b, err := newBucket(TokenBucket{MaxTokens: 1<<32 - 1, TokensPerFill: 1<<32 - 1, FillInterval: minFillInterval})
	if err != nil {
		t.Fatal(err)
	}
	level, ok := b.Take(0, 0, 1<<32-1)
	if !ok || b.Remaining(level, 0) != 0 || b.Remaining(level, time.Hour) != 1<<32-1 {
		t.Errorf("level %d, %v", level, ok)
	}
	if _, ok := b.Take(level, 0, 1); ok {
		t.Error("an empty bucket gave a token")
	}
	// A clock that goes back gives nothing.
	if _, ok := b.Take(level, -time.Hour, 1); ok {
		t.Error("a clock that goes back gave a token")
	}
}

// TestSelect: which descriptors a request makes and which buckets they find.
func TestSelect(t *testing.T) {
	bucket := TokenBucket{MaxTokens: 1, FillInterval: time.Second}
	regex, err := routing.Regex("a+")
	if err != nil {
		t.Fatal(err)
	}
	header := func(name, key string, skip bool) LimitAction {
		return LimitAction{Kind: LimitRequestHeader, Header: routing.NewHeaderName(name), Key: key, SkipIfAbsent: skip}
	}
	request := func(target string, header ...string) *LimitRequest {
		path, query, _ := strings.Cut(target, "?")
		r := &routing.Request{Method: "GET", Scheme: "http", Authority: "reviews", Path: path, RawQuery: query, Header: map[string][]string{}}
		for i := 0; i < len(header); i += 2 {
			r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
		}
		return &LimitRequest{Request: r, RemoteIP: netip.MustParseAddr("::ffff:10.1.2.3"), Principal: "spiffe://td/ns/a/sa/b"}
	}
	for _, c := range []struct {
		name    string
		actions []LimitAction
		entries []LimitEntry // of the one descriptor
		r       *LimitRequest
		found   bool
	}{
		{"header", []LimitAction{header("x-user", "user", false)}, []LimitEntry{{"user", "ann"}}, request("/", "X-User", "ann"), true},
		{"other value", []LimitAction{header("x-user", "user", false)}, []LimitEntry{{"user", "ann"}}, request("/", "X-User", "bob"), false},
		{"first value", []LimitAction{header("x-user", "user", false)}, []LimitEntry{{"user", "ann"}}, request("/", "X-User", "ann", "X-User", "bob"), true},
		{"absent", []LimitAction{header("x-user", "user", false), {Kind: LimitGenericKey, Value: "v"}}, []LimitEntry{{"generic_key", "v"}}, request("/"), false},
		{"absent and skipped", []LimitAction{header("x-user", "user", true), {Kind: LimitGenericKey, Value: "v"}}, []LimitEntry{{"generic_key", "v"}}, request("/"), true},
		{"all skipped", []LimitAction{header("x-user", "user", true)}, []LimitEntry{{"user", ""}}, request("/"), false},
		{"path", []LimitAction{header(":path", "p", false)}, []LimitEntry{{"p", "/a?b=c"}}, request("/a?b=c"), true},
		{"method", []LimitAction{header(":method", "m", false)}, []LimitEntry{{"m", "GET"}}, request("/a"), true},
		{"authority", []LimitAction{header("host", "h", false)}, []LimitEntry{{"h", "reviews"}}, request("/a"), true},
		{"no such pseudo-header", []LimitAction{header(":status", "h", false)}, []LimitEntry{{"h", ""}}, request("/a"), false},
		{"generic key with a key", []LimitAction{{Kind: LimitGenericKey, Key: "k", Value: "v"}}, []LimitEntry{{"k", "v"}}, request("/"), true},
		{"the order counts", []LimitAction{{Kind: LimitGenericKey, Key: "a", Value: "1"}, {Kind: LimitGenericKey, Key: "b", Value: "2"}}, []LimitEntry{{"b", "2"}, {"a", "1"}}, request("/"), false},
		{"no part of a descriptor", []LimitAction{{Kind: LimitGenericKey, Key: "a", Value: "1"}, {Kind: LimitGenericKey, Key: "b", Value: "2"}}, []LimitEntry{{"a", "1"}}, request("/"), false},
		{"open entry", []LimitAction{header("x-user", "user", false), {Kind: LimitGenericKey, Value: "v"}}, []LimitEntry{{"user", ""}, {"generic_key", "v"}}, request("/", "X-User", "any"), true},
		{"open entry, other fixed one", []LimitAction{header("x-user", "user", false), {Kind: LimitGenericKey, Value: "v"}}, []LimitEntry{{"user", ""}, {"generic_key", "w"}}, request("/", "X-User", "any"), false},
		{"parameter, decoded", []LimitAction{{Kind: LimitQueryParameter, Parameter: "a b", Key: "q"}}, []LimitEntry{{"q", "x&y"}}, request("/?z=1&a%20b=x%26y&a+b=2"), true},
		{"no parameter", []LimitAction{{Kind: LimitQueryParameter, Parameter: "a", Key: "q"}}, []LimitEntry{{"q", ""}}, request("/?b=1"), false},
		{"address", []LimitAction{{Kind: LimitRemoteAddress}}, []LimitEntry{{"remote_address", "10.1.2.3"}}, request("/"), true},
		{"no address", []LimitAction{{Kind: LimitRemoteAddress}}, []LimitEntry{{"remote_address", ""}}, &LimitRequest{Request: &routing.Request{}}, false},
		{"masked address", []LimitAction{{Kind: LimitMaskedAddress, Bits4: 16, Bits6: 64}}, []LimitEntry{{"masked_remote_address", "10.1.0.0/16"}}, request("/"), true},
		{"masked to nothing", []LimitAction{{Kind: LimitMaskedAddress}}, []LimitEntry{{"masked_remote_address", "0.0.0.0/0"}}, request("/"), true},
		{"masked IPv6", []LimitAction{{Kind: LimitMaskedAddress, Bits6: 64}}, []LimitEntry{{"masked_remote_address", "2001:db8:1:2::/64"}}, &LimitRequest{Request: &routing.Request{}, RemoteIP: netip.MustParseAddr("2001:db8:1:2:3::4")}, true},
		{"no masked address", []LimitAction{{Kind: LimitMaskedAddress, Bits4: 16}}, []LimitEntry{{"masked_remote_address", ""}}, &LimitRequest{Request: &routing.Request{}}, false},
		{"header match", []LimitAction{{Kind: LimitHeaderMatch, Value: "v", Headers: []routing.HeaderMatch{{Name: routing.NewHeaderName("x"), String: regex}}}}, []LimitEntry{{"header_match", "v"}}, request("/", "X", "aaa"), true},
		{"header mismatch", []LimitAction{{Kind: LimitHeaderMatch, Value: "v", Headers: []routing.HeaderMatch{{Name: routing.NewHeaderName("x"), String: regex}}}}, []LimitEntry{{"header_match", "v"}}, request("/", "X", "b"), false},
		{"header mismatch is expected", []LimitAction{{Kind: LimitHeaderMatch, Value: "v", Invert: true, Headers: []routing.HeaderMatch{{Name: routing.NewHeaderName("x"), String: regex}}}}, []LimitEntry{{"header_match", "v"}}, request("/", "X", "b"), true},
		{"header match is not expected", []LimitAction{{Kind: LimitHeaderMatch, Value: "v", Invert: true, Headers: []routing.HeaderMatch{{Name: routing.NewHeaderName("x"), String: regex}}}}, []LimitEntry{{"header_match", "v"}}, request("/", "X", "a"), false},
		{"query match, decoded", []LimitAction{{Kind: LimitQueryMatch, Value: "v", Query: []routing.QueryMatch{{Name: "q", Kind: routing.QueryString, String: regex}}}}, []LimitEntry{{"query_match", "v"}}, request("/?q=%61a"), true},
		{"query mismatch", []LimitAction{{Kind: LimitQueryMatch, Value: "v", Query: []routing.QueryMatch{{Name: "q", Kind: routing.QueryString, String: regex}}}}, []LimitEntry{{"query_match", "v"}}, request("/?q=b"), false},
		{"query present", []LimitAction{{Kind: LimitQueryMatch, Value: "v", Query: []routing.QueryMatch{{Name: "q", Present: true}}}}, []LimitEntry{{"query_match", "v"}}, request("/?q"), true},
		{"query absent", []LimitAction{{Kind: LimitQueryMatch, Value: "v", Query: []routing.QueryMatch{{Name: "q"}}}}, []LimitEntry{{"query_match", "v"}}, request("/?q"), false},
		{"address match", []LimitAction{{Kind: LimitAddressMatch, Value: "v", Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}, []LimitEntry{{"remote_address_match", "v"}}, request("/"), true},
		{"address mismatch", []LimitAction{{Kind: LimitAddressMatch, Value: "v", Ranges: []netip.Prefix{netip.MustParsePrefix("11.0.0.0/8")}}}, []LimitEntry{{"remote_address_match", "v"}}, request("/"), false},
		{"address mismatch is expected", []LimitAction{{Kind: LimitAddressMatch, Value: "v", Invert: true, Ranges: []netip.Prefix{netip.MustParsePrefix("11.0.0.0/8")}}}, []LimitEntry{{"remote_address_match", "v"}}, request("/"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := rateLimit(t, RateLimitConfig{
				Bucket: &bucket, OnlyUnmatched: true,
				Descriptors: []LimitDescriptor{{Entries: c.entries, Bucket: bucket}},
				Actions:     []LimitActions{{Actions: c.actions}},
			})
			var u LimitUses
			l.Select(c.r, &u)
			if want := map[bool]int{true: 0, false: 1}[c.found]; len(u.Uses) != 1 || u.Uses[0].Slot != want {
				t.Errorf("uses %+v, want slot %d", u.Uses, want)
			}
		})
	}
}

// TestSelectOrder: the slowest bucket first, the one for all last, and a
// principal's own in between.
func TestSelectOrder(t *testing.T) {
	second := func(n uint32) TokenBucket {
		return TokenBucket{MaxTokens: n, TokensPerFill: n, FillInterval: time.Second}
	}
	all := second(1)
	l := rateLimit(t, RateLimitConfig{
		Bucket: &all,
		Descriptors: []LimitDescriptor{
			{Entries: []LimitEntry{{"generic_key", "fast"}}, Bucket: second(100)},
			{Entries: []LimitEntry{{"generic_key", "slow"}}, Bucket: second(10), Shadow: true},
		},
		Actions: []LimitActions{
			{Actions: []LimitAction{{Kind: LimitGenericKey, Value: "fast"}}, Hits: 7},
			{Actions: []LimitAction{{Kind: LimitGenericKey, Value: "slow"}}},
		},
		Principals: &PrincipalLimit{PerSecond: 50, Overrides: []PrincipalOverride{{PerSecond: 5, Principals: []string{"a", "b"}}}},
	})
	slots := func(principal string) (out []int) {
		var u LimitUses
		l.Select(&LimitRequest{Request: &routing.Request{}, Principal: principal}, &u)
		for _, use := range u.Uses {
			out = append(out, use.Slot)
			if use.Tokens != map[bool]uint32{true: 7, false: 1}[use.Slot == 0] || use.Shadow != (use.Slot == 1) || use.Open != l.Open(use.Slot) {
				t.Errorf("%q: %+v", principal, use)
			}
		}
		return out
	}
	for principal, want := range map[string][]int{"": {1, 3, 0, 2}, "c": {1, 3, 0, 2}, "a": {4, 1, 0, 2}, "b": {4, 1, 0, 2}} {
		if got := slots(principal); !slices.Equal(got, want) {
			t.Errorf("%q: slots %v, want %v", principal, got, want)
		}
	}
}

func TestPrincipals(t *testing.T) {
	l := rateLimit(t, RateLimitConfig{Principals: &PrincipalLimit{PerSecond: 2, Overrides: []PrincipalOverride{{PerSecond: 3, Principals: []string{"a", "b"}}}}})
	state := levels{}
	for i, c := range []struct {
		principal string
		refused   bool
	}{
		{"x", false}, {"x", false}, {"x", true}, // each has its own
		{"y", false}, {"y", false}, {"y", true},
		{"", false}, {"", false}, {"", true}, // those without one share one
		{"a", false}, {"b", false}, {"a", false}, {"b", true}, // an override is shared
	} {
		got := state.take(l, &LimitRequest{Request: &routing.Request{}, Principal: c.principal}, 0) >= 0
		if got != c.refused {
			t.Errorf("request %d of %q: refused %v", i, c.principal, got)
		}
	}
}

// TestKeysAreDistinct: different values never share a bucket, however they are cut.
func TestKeysAreDistinct(t *testing.T) {
	h := func(name string) LimitAction {
		return LimitAction{Kind: LimitRequestHeader, Header: routing.NewHeaderName(name), Key: name}
	}
	l := rateLimit(t, RateLimitConfig{
		Descriptors: []LimitDescriptor{{Entries: []LimitEntry{{"x", ""}, {"y", ""}}, Bucket: TokenBucket{MaxTokens: 1, FillInterval: time.Second}}},
		Actions:     []LimitActions{{Actions: []LimitAction{h("x"), h("y")}}},
	})
	values := []string{"", "a", "\x01", "a\x01y\x01a", "\x00", "ay", "y", strings.Repeat("a", 200)}
	seen := map[string]string{}
	for _, x := range values {
		for _, y := range values {
			var u LimitUses
			l.Select(&LimitRequest{Request: &routing.Request{Header: map[string][]string{"X": {x}, "Y": {y}}}}, &u)
			if len(u.Uses) != 1 || !u.Uses[0].Open {
				t.Fatalf("uses %+v", u.Uses)
			}
			here := fmt.Sprintf("%q %q", x, y)
			if other, ok := seen[string(u.Key(0))]; ok {
				t.Errorf("%s and %s share a bucket", here, other)
			}
			seen[string(u.Key(0))] = here
		}
	}
}

func TestNewRateLimitErrors(t *testing.T) {
	good := TokenBucket{MaxTokens: 1, FillInterval: time.Second}
	action := func(a LimitAction) RateLimitConfig {
		return RateLimitConfig{Bucket: &good, Actions: []LimitActions{{Actions: []LimitAction{a}}}}
	}
	entry := []LimitEntry{{"k", "v"}}
	for _, c := range []struct {
		want   string
		config RateLimitConfig
	}{
		{"token_bucket: there is none", RateLimitConfig{}},
		{"token_bucket.max_tokens", RateLimitConfig{Bucket: &TokenBucket{}}},
		{"status: 600", RateLimitConfig{Bucket: &good, Status: 600}},
		{"descriptors[0].entries: there is none", RateLimitConfig{Descriptors: []LimitDescriptor{{Bucket: good}}}},
		{"descriptors[0].entries[0].key: is empty", RateLimitConfig{Descriptors: []LimitDescriptor{{Entries: []LimitEntry{{"", "v"}}, Bucket: good}}}},
		{"descriptors[1].entries: another", RateLimitConfig{Descriptors: []LimitDescriptor{{Entries: entry, Bucket: good}, {Entries: entry, Bucket: good}}}},
		{"descriptors[0].token_bucket.max_tokens", RateLimitConfig{Descriptors: []LimitDescriptor{{Entries: entry}}}},
		{"rate_limits[0].actions: there is none", RateLimitConfig{Bucket: &good, Actions: []LimitActions{{}}}},
		{"rate_limits[0].hits_addend", RateLimitConfig{Bucket: &good, Actions: []LimitActions{{Actions: []LimitAction{{Kind: LimitRemoteAddress}}, Hits: maxHits + 1}}}},
		{"rate_limits[0].actions[0].action_specifier", action(LimitAction{})},
		{"generic_key.descriptor_value", action(LimitAction{Kind: LimitGenericKey})},
		{"request_headers", action(LimitAction{Kind: LimitRequestHeader, Key: "k"})},
		{"query_parameters", action(LimitAction{Kind: LimitQueryParameter, Key: "k"})},
		{"masked_remote_address", action(LimitAction{Kind: LimitMaskedAddress, Bits4: 33})},
		{"header_value_match", action(LimitAction{Kind: LimitHeaderMatch, Value: "v"})},
		{"query_parameter_value_match", action(LimitAction{Kind: LimitQueryMatch, Value: "v"})},
		{"remote_address_match: ", action(LimitAction{Kind: LimitAddressMatch, Value: "v"})},
		{"remote_address_match.descriptor_value", action(LimitAction{Kind: LimitAddressMatch, Value: "%REQ(x)%", Ranges: []netip.Prefix{netip.MustParsePrefix("::/0")}})},
		{"a range is not valid", action(LimitAction{Kind: LimitAddressMatch, Value: "v", Ranges: make([]netip.Prefix, 1)})},
		{"identity_rate_limit: says nothing", RateLimitConfig{Principals: &PrincipalLimit{}}},
		{"identity_rate_limit.overrides[0].requests_per_second", RateLimitConfig{Principals: &PrincipalLimit{Overrides: []PrincipalOverride{{Principals: []string{"a"}}}}}},
		{"identity_rate_limit.overrides[0].principals: there is none", RateLimitConfig{Principals: &PrincipalLimit{Overrides: []PrincipalOverride{{PerSecond: 1}}}}},
		{"identity_rate_limit.overrides[1].principals[0]", RateLimitConfig{Principals: &PrincipalLimit{Overrides: []PrincipalOverride{{PerSecond: 1, Principals: []string{"a"}}, {PerSecond: 1, Principals: []string{"a"}}}}}},
		{`":path" can not be added`, RateLimitConfig{Bucket: &good, ResponseHeaders: []LimitHeader{{Name: ":path"}}}},
		{`"a b" is not a header's name`, RateLimitConfig{Bucket: &good, RequestHeaders: []LimitHeader{{Name: "a b"}}}},
		{"control character", RateLimitConfig{Bucket: &good, ResponseHeaders: []LimitHeader{{Name: "a", Value: "b\r\nc: d"}}}},
		{"has a format", RateLimitConfig{Bucket: &good, ResponseHeaders: []LimitHeader{{Name: "a", Value: "%START_TIME%"}}}},
	} {
		if _, err := NewRateLimit(c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	l := rateLimit(t, RateLimitConfig{Bucket: &good, Status: 200})
	if c := l.Config(); c.Status != 429 || c.MaxDynamic != 20 || c.Enabled.Matches(0) || c.Enforced.Matches(0) {
		t.Errorf("defaults: %+v", c)
	}
}

func TestRecordedEnvoyLocalRateLimit(t *testing.T) {
	type bucket struct {
		Max      uint32 `json:"max_tokens"`
		Fill     uint32 `json:"tokens_per_fill"`
		Interval string `json:"fill_interval"`
	}
	var file struct {
		TokenBucket []struct {
			Test  string
			Max   uint32 `json:"max_tokens"`
			Fill  uint32 `json:"tokens_per_fill"`
			Every int    `json:"fill_interval_ms"`
			Steps []any
		} `json:"token_bucket"`
		Descriptors []struct {
			Descriptors []struct {
				Entries []LimitEntry
				Bucket  bucket `json:"token_bucket"`
			}
			Default  bucket `json:"default_bucket"`
			Requests []struct {
				Entries inOrder
				Results []string
			}
		}
		Errors     []map[string]string `json:"config_errors"`
		HTTPFilter struct {
			Status int `json:"denied_status"`
		} `json:"http_filter"`
	}
	conformance.Load(t, "envoy-facts/local_ratelimit.json", &file)
	tally := conformance.Recorded(t, "envoy-facts/local_ratelimit.json")
	duration := func(s string) time.Duration {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	config := func(b bucket) TokenBucket {
		if b.Interval == "" { // time stands still in these cases
			b.Interval = "50ms"
		}
		return TokenBucket{MaxTokens: b.Max, TokensPerFill: b.Fill, FillInterval: duration(b.Interval)}
	}
	for _, c := range file.TokenBucket {
		b, err := newBucket(TokenBucket{MaxTokens: c.Max, TokensPerFill: c.Fill, FillInterval: time.Duration(c.Every) * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		cost := uint32(1)
		if strings.HasSuffix(c.Test, "factor 0.5") {
			cost = 2
		}
		level, now, failed := time.Duration(0), time.Duration(0), false
		one := func(step string) {
			what, rest, _ := strings.Cut(step, " ")
			switch what {
			case "allow", "deny":
				after, ok := b.Take(level, now, cost)
				failed = failed || ok != (what == "allow")
				level = after
			default:
				now += duration(strings.TrimPrefix(what, "+"))
			}
			if rest != "" {
				failed = failed || rest != fmt.Sprintf("(remaining %d)", b.Remaining(level, now))
			}
		}
		for _, step := range c.Steps {
			if s, ok := step.(string); ok {
				one(s)
				continue
			}
			for _, s := range step.([]any) {
				one(s.(string))
			}
		}
		if failed {
			tally.Fail(t, "%s", c.Test)
			continue
		}
		tally.Pass()
	}
	for i, c := range file.Descriptors {
		all := config(c.Default)
		limit := RateLimitConfig{Bucket: &all, OnlyUnmatched: true}
		for _, d := range c.Descriptors {
			limit.Descriptors = append(limit.Descriptors, LimitDescriptor{Entries: d.Entries, Bucket: config(d.Bucket)})
		}
		for j, r := range c.Requests {
			// The actions of each request make exactly its entries.
			var actions []LimitAction
			for _, e := range r.Entries {
				actions = append(actions, LimitAction{Kind: LimitGenericKey, Key: e.Key, Value: e.Value})
			}
			limit.Actions = []LimitActions{{Actions: actions}}
			l := rateLimit(t, limit)
			state, failed := levels{}, false
			for _, want := range r.Results {
				failed = failed || (state.take(l, &LimitRequest{Request: &routing.Request{}}, 0) < 0) != (want == "allow")
			}
			if failed {
				tally.Fail(t, "descriptors %d, request %d %v", i, j, r.Entries)
				continue
			}
			tally.Pass()
		}
	}
	for _, c := range file.Errors {
		good := TokenBucket{MaxTokens: 1, FillInterval: time.Second}
		same := func(key, value string) RateLimitConfig {
			d := LimitDescriptor{Entries: []LimitEntry{{key, value}}, Bucket: good}
			return RateLimitConfig{Descriptors: []LimitDescriptor{d, d}}
		}
		var limit RateLimitConfig
		switch {
		case c["fill_interval"] != "":
			limit.Bucket = &TokenBucket{MaxTokens: 1, FillInterval: duration(c["fill_interval"])}
		case c["descriptor fill_interval"] != "":
			limit.Descriptors = []LimitDescriptor{{Entries: []LimitEntry{{"k", "v"}}, Bucket: TokenBucket{MaxTokens: 1, FillInterval: duration(c["descriptor fill_interval"])}}}
		case c["two descriptors"] != "":
			limit = same("foo2", "bar2")
		default:
			limit = same("user", "")
		}
		if _, err := NewRateLimit(limit); err == nil {
			tally.Fail(t, "%v was not refused", c)
			continue
		}
		tally.Pass()
	}
	if l := rateLimit(t, RateLimitConfig{Bucket: &TokenBucket{MaxTokens: 1, FillInterval: time.Second}}); l.Config().Status != file.HTTPFilter.Status || l.Config().OmitLimited {
		tally.Fail(t, "the default status is %d", l.Config().Status)
	} else {
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/local_ratelimit", 19, 0)
}

// inOrder is a JSON object whose order counts.
type inOrder []LimitEntry

func (o *inOrder) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	var texts []string
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if s, ok := token.(string); ok {
			texts = append(texts, s)
		}
	}
	for pair := range slices.Chunk(texts, 2) {
		*o = append(*o, LimitEntry{pair[0], pair[1]})
	}
	return nil
}

func TestRateLimitSelectAllocatesNothing(t *testing.T) {
	l, r := typicalLimit(t)
	var u LimitUses
	l.Select(r, &u)
	if len(u.Uses) != 4 {
		t.Fatalf("uses %+v", u.Uses)
	}
	if n := testing.AllocsPerRun(100, func() { l.Select(r, &u) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func typicalLimit(t testing.TB) (*RateLimit, *LimitRequest) {
	b := func(n uint32) TokenBucket {
		return TokenBucket{MaxTokens: n, TokensPerFill: n, FillInterval: time.Second}
	}
	all := b(1000)
	user := LimitAction{Kind: LimitRequestHeader, Header: routing.NewHeaderName("x-user"), Key: "user"}
	l := rateLimit(t, RateLimitConfig{
		Bucket: &all, Enabled: always, Enforced: always,
		Descriptors: []LimitDescriptor{{Entries: []LimitEntry{{"user", ""}}, Bucket: b(10)}, {Entries: []LimitEntry{{"generic_key", "v"}}, Bucket: b(100)}},
		Actions:     []LimitActions{{Actions: []LimitAction{user}}, {Actions: []LimitAction{{Kind: LimitGenericKey, Value: "v"}}}},
		Principals:  &PrincipalLimit{PerSecond: 50},
	})
	return l, &LimitRequest{Request: &routing.Request{Header: map[string][]string{"X-User": {"ann"}}}, Principal: "spiffe://td/ns/a/sa/b"}
}

func BenchmarkRateLimitSelect(b *testing.B) {
	l, r := typicalLimit(b)
	var u LimitUses
	b.ReportAllocs()
	for b.Loop() {
		l.Select(r, &u)
		for i := range u.Uses {
			u.Uses[i].Bucket.Take(0, 0, u.Uses[i].Tokens)
		}
	}
}
