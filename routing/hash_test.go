package routing

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
)

// The recorded values: hashes of single texts as Envoy has them.
const (
	hashFoo   = 3728699739546630719
	hashBar   = 5234164152756840025
	hash1234  = 14026795738668939420
	hashEmpty = 17241709254077376921
)

func TestHashOf(t *testing.T) {
	rotated := func(h uint64) uint64 { return h<<1 | h>>63 }
	foo, bar := HashPolicy{Kind: HashHeader, Header: NewHeaderName("x-foo")}, HashPolicy{Kind: HashHeader, Header: NewHeaderName("x-bar")}
	none := HashPolicy{Kind: HashHeader, Header: NewHeaderName("x-none")}
	source := HashPolicy{Kind: HashSource}
	channel := HashPolicy{Kind: HashChannel}
	query := HashPolicy{Kind: HashQuery, Query: "q"}
	cookie := HashPolicy{Kind: HashCookie, Cookie: HashCookieSpec{Name: "c"}}
	terminal := func(p HashPolicy) HashPolicy { p.Terminal = true; return p }
	r := &Request{Method: "GET", Path: "/p", RawQuery: "p=1&q=foo&q=bar", Header: map[string][]string{
		"X-Foo": {"foo"}, "X-Bar": {"bar"}, "X-Empty": {""}, "X-Path": {"/foo"}, "Cookie": {"a=b; c=foo; c=bar", "c=baz"},
	}}
	origin := HashOrigin{Address: "1.2.3.4:5678", Local: "5.6.7.8:90", Channel: 42}
	for _, c := range []struct {
		name     string
		policies []HashPolicy
		hash     uint64
		ok       bool
	}{
		{"none", nil, 0, false},
		{"header", []HashPolicy{foo}, hashFoo, true},
		{"header that is missing", []HashPolicy{none}, 0, false},
		{"header that is empty", []HashPolicy{{Kind: HashHeader, Header: NewHeaderName("x-empty")}}, hashEmpty, true},
		{"pseudo-header", []HashPolicy{{Kind: HashHeader, Header: NewHeaderName(":method")}}, xxhash.Sum64String("GET"), true},
		{"path with its query", []HashPolicy{{Kind: HashHeader, Header: NewHeaderName(":path")}}, xxhash.Sum64String("/p?p=1&q=foo&q=bar"), true},
		{"rewritten", []HashPolicy{{Kind: HashHeader, Header: NewHeaderName("x-path"), Regex: mustRewrite(t, `^/(\w+)$`, `\1`)}}, hashFoo, true},
		{"two", []HashPolicy{foo, bar}, rotated(hashFoo) ^ hashBar, true},
		{"two, the other way round", []HashPolicy{bar, foo}, rotated(hashBar) ^ hashFoo, true},
		{"the same twice does not cancel out", []HashPolicy{foo, foo}, rotated(hashFoo) ^ hashFoo, true},
		{"one of two", []HashPolicy{none, bar}, hashBar, true},
		{"terminal", []HashPolicy{terminal(foo), bar}, hashFoo, true},
		{"terminal without a hash", []HashPolicy{terminal(none), bar}, hashBar, true},
		{"terminal without a hash of its own", []HashPolicy{foo, terminal(none), bar}, hashFoo, true},
		{"source without its port", []HashPolicy{source}, hash1234, true},
		{"channel", []HashPolicy{channel}, 42, true},
		{"the first value of a parameter", []HashPolicy{query}, hashFoo, true},
		{"parameter that is missing", []HashPolicy{{Kind: HashQuery, Query: "Q"}}, 0, false},
		{"the first cookie", []HashPolicy{cookie}, hashFoo, true},
	} {
		hash, ok, issued := HashOf(c.policies, r, origin)
		if hash != c.hash || ok != c.ok || issued != "" {
			t.Errorf("%s: %d %v %q, want %d %v", c.name, hash, ok, issued, c.hash, c.ok)
		}
		if err := CheckHash(c.policies); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for address, want := range map[string]uint64{"1.2.3.4": hash1234, "": 0, "[::1]:5": xxhash.Sum64String("::1"), "::1": xxhash.Sum64String("::1")} {
		if hash, ok, _ := HashOf([]HashPolicy{source}, r, HashOrigin{Address: address}); hash != want && ok || ok != (address != "") {
			t.Errorf("the address %q: %d %v, want %d", address, hash, ok, want)
		}
	}
}

// TestHashOfValues: the same values in another order are the same, and no
// joining makes other values the same.
func TestHashOfValues(t *testing.T) {
	policies := []HashPolicy{{Kind: HashHeader, Header: NewHeaderName("x-a")}}
	hash := func(values ...string) uint64 {
		h, ok, _ := HashOf(policies, header("X-A", values...), HashOrigin{})
		if !ok {
			t.Fatalf("%q: no hash", values)
		}
		return h
	}
	if hash("a", "b", "c") != hash("c", "a", "b") {
		t.Error("the order of the values counts")
	}
	if hash("abcd", "ef") == hash("abc", "def") || hash("a", "b") == hash("a,b") || hash("a") == hash("a", "a") {
		t.Error("other values have the same hash")
	}
	values := []string{"b", "a"}
	hash(values...)
	if values[0] != "b" {
		t.Error("the request's values are sorted in place")
	}
}

func TestHashCookie(t *testing.T) {
	origin := HashOrigin{Address: "10.0.0.1:1000", Local: "10.0.0.2:80"}
	spec := HashCookieSpec{Name: "sticky", Path: "/p", Issue: true, TTL: 90*time.Second + time.Millisecond, Attributes: []CookieAttribute{{"SameSite", "Strict"}, {"Secure", ""}}}
	value := fmt.Sprintf("%016x", xxhash.Sum64String("10.0.0.1:1000"+"10.0.0.2:80"))
	for _, c := range []struct {
		name   string
		change func(*HashCookieSpec)
		cookie []string
		issued string
		hashed string // "" for none
	}{
		{"issued", func(*HashCookieSpec) {}, nil, `sticky="` + value + `"; Max-Age=90; Path=/p; SameSite=Strict; Secure; HttpOnly`, value},
		{"of the session", func(s *HashCookieSpec) { s.TTL, s.Path, s.Attributes = 0, "", nil }, nil, `sticky="` + value + `"; HttpOnly`, value},
		{"there", func(*HashCookieSpec) {}, []string{"sticky=x"}, "", "x"},
		{"there, in quotes", func(*HashCookieSpec) {}, []string{`a=b;  sticky="x"`}, "", "x"},
		{"one quote is a character", func(*HashCookieSpec) {}, []string{`sticky="`}, "", `"`},
		{"there, with an equal sign", func(*HashCookieSpec) {}, []string{"sticky=x=y"}, "", "x=y"},
		{"in the second header", func(*HashCookieSpec) {}, []string{"a=b", "sticky=x"}, "", "x"},
		{"there, empty", func(*HashCookieSpec) {}, []string{"sticky="}, `sticky="` + value + `"; Max-Age=90; Path=/p; SameSite=Strict; Secure; HttpOnly`, value},
		{"another name", func(*HashCookieSpec) {}, []string{"Sticky=x; sticky2=y; xsticky=z; sticky"}, `sticky="` + value + `"; Max-Age=90; Path=/p; SameSite=Strict; Secure; HttpOnly`, value},
		{"not issued", func(s *HashCookieSpec) { s.Issue = false }, nil, "", ""},
		{"not issued, there", func(s *HashCookieSpec) { s.Issue = false }, []string{"sticky=x"}, "", "x"},
	} {
		s := spec
		c.change(&s)
		policies := []HashPolicy{{Kind: HashCookie, Cookie: s}}
		r := &Request{Header: map[string][]string{"Cookie": c.cookie}}
		hash, ok, issued := HashOf(policies, r, origin)
		if issued != c.issued || ok != (c.hashed != "") || ok && hash != xxhash.Sum64String(c.hashed) {
			t.Errorf("%s: %d %v %s, want %s and the hash of %s", c.name, hash, ok, issued, c.issued, c.hashed)
		}
		if err := CheckHash(policies); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// What is issued comes back with the same hash.
	policies := []HashPolicy{{Kind: HashCookie, Cookie: spec}}
	first, _, issued := HashOf(policies, &Request{}, origin)
	back, _, _ := strings.Cut(issued, ";")
	if second, _, again := HashOf(policies, header("Cookie", back), HashOrigin{Address: "other"}); second != first || again != "" {
		t.Errorf("the cookie %q comes back as %d, was %d", back, second, first)
	}
	if _, _, other := HashOf(policies, &Request{}, HashOrigin{Address: "10.0.0.1:1001", Local: "10.0.0.2:80"}); other == issued {
		t.Error("two connections get the same cookie")
	}
}

func TestHashRefused(t *testing.T) {
	cookie := func(name, path string, attributes ...CookieAttribute) HashPolicy {
		return HashPolicy{Kind: HashCookie, Cookie: HashCookieSpec{Name: name, Path: path, Issue: true, Attributes: attributes}}
	}
	for _, c := range []struct {
		policies []HashPolicy
		says     string
	}{
		{[]HashPolicy{{}}, "hash_policy[0]: header.header_name is empty"},
		{[]HashPolicy{{Kind: HashSource}, {Kind: HashQuery}}, "hash_policy[1]: query_parameter.name is empty"},
		{[]HashPolicy{cookie("", "")}, "cookie.name"},
		{[]HashPolicy{cookie("a b", "")}, "cookie.name"},
		{[]HashPolicy{cookie("a=b", "")}, "cookie.name"},
		{[]HashPolicy{cookie("a", "/; Domain=b.test")}, "cookie.path"},
		{[]HashPolicy{cookie("a", "/\r\n")}, "cookie.path"},
		{[]HashPolicy{cookie("a", "/", CookieAttribute{"Same Site", ""})}, "cookie.attributes[0]"},
		{[]HashPolicy{cookie("a", "/", CookieAttribute{"a", "b"}, CookieAttribute{"a", "b;c"})}, "cookie.attributes[1]"},
		{[]HashPolicy{cookie("a", ""), cookie("b", "")}, "hash_policy[1].cookie.ttl: one cookie"},
	} {
		if err := CheckHash(c.policies); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: the error is %v, want one that says %q", c.policies, err, c.says)
		}
	}
}
