package routing

import (
	"strings"
	"testing"
)

func TestQueryMatch(t *testing.T) {
	present := QueryMatch{Name: "a", Present: true}
	absent := QueryMatch{Name: "a"}
	one := QueryMatch{Name: "a", Kind: QueryString, String: Exact("1", false)}
	empty := QueryMatch{Name: "a", Kind: QueryString, String: Exact("", false)}
	for _, c := range []struct {
		query                       string
		present, absent, one, empty bool
	}{
		{"", false, true, false, false},
		{"a=1", true, false, true, false},
		{"a", true, false, false, true},
		{"a=", true, false, false, true},
		{"b=1&a=1", true, false, true, false},
		{"a=2&a=1", true, false, false, false}, // the first value counts
		{"A=1", false, true, false, false},
		{"aa=1&b=a", false, true, false, false},
		{"&&a=1&", true, false, true, false},
		{"a=1=1", true, false, false, false},
		{"%61=1", false, true, false, false}, // not decoded, as in Envoy's routes
		{"a=%31", true, false, false, false},
		{"a;b&c", false, true, false, false},
	} {
		r := &Request{RawQuery: c.query}
		for name, m := range map[string]struct {
			m    QueryMatch
			want bool
		}{"present": {present, c.present}, "absent": {absent, c.absent}, "one": {one, c.one}, "empty": {empty, c.empty}} {
			if got := m.m.Matches(r); got != m.want {
				t.Errorf("%q, %s: %v, want %v", c.query, name, got, m.want)
			}
		}
	}
	unnamed := QueryMatch{Name: "", Present: true}
	if unnamed.Matches(&Request{}) {
		t.Error("an empty query has a parameter with an empty name")
	}
}

func FuzzQueryMatch(f *testing.F) {
	f.Add("a=1&b", "a", "1", true)
	f.Fuzz(func(t *testing.T, query, name, want string, present bool) {
		value, known := "", false
		pairs := strings.Split(query, "&")
		if last := len(pairs) - 1; pairs[last] == "" {
			pairs = pairs[:last] // a trailing "&" begins no parameter
		}
		for _, pair := range pairs {
			k, v := pair, ""
			if i := strings.Index(pair, "="); i >= 0 {
				k, v = pair[:i], pair[i+1:]
			}
			if k == name && !known {
				value, known = v, true
			}
		}
		r := &Request{RawQuery: query}
		p := QueryMatch{Name: name, Present: present}
		if got := p.Matches(r); got != (known == present) {
			t.Errorf("%q in %q is there: %v, want %v", name, query, got == present, known)
		}
		s := QueryMatch{Name: name, Kind: QueryString, String: Exact(want, false)}
		if got := s.Matches(r); got != (known && value == want) {
			t.Errorf("%q in %q is %q: %v, but it is %q (%v)", name, query, want, got, value, known)
		}
	})
}
