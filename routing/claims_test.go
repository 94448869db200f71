package routing

import "testing"

func TestClaimMatch(t *testing.T) {
	claims := map[string]any{
		"sub": "alice", "empty": "", "number": 7.0, "yes": true, "null": nil,
		"groups": []any{"dev", 7.0, nil, []any{"deep"}, "ops"}, "words": []string{"read", "write"}, "none": []any{},
		"nested":   map[string]any{"key": map[string]any{"inner": "value", "list": []any{"a", "b"}}},
		"with.dot": "dotted",
	}
	path := func(p ...string) []string { return p }
	for _, c := range []struct {
		name string
		m    ClaimMatch
		want bool
	}{
		{"text", ClaimMatch{Path: path("sub"), Value: Exact("alice", false)}, true},
		{"other text", ClaimMatch{Path: path("sub"), Value: Exact("bob", false)}, false},
		{"prefix", ClaimMatch{Path: path("sub"), Value: Prefix("al", false)}, true},
		{"regex", ClaimMatch{Path: path("sub"), Value: mustRegex(t, "a.*e")}, true},
		{"empty text", ClaimMatch{Path: path("empty"), Value: Exact("", false)}, true},
		{"element of a list", ClaimMatch{Path: path("groups"), Value: Exact("ops", false)}, true},
		{"no element", ClaimMatch{Path: path("groups"), Value: Exact("op", false)}, false},
		{"an element's element", ClaimMatch{Path: path("groups"), Value: Exact("deep", false)}, false},
		{"element of words", ClaimMatch{Path: path("words"), Value: Exact("write", false)}, true},
		{"no word", ClaimMatch{Path: path("words"), Value: Exact("read write", false)}, false},
		{"empty list", ClaimMatch{Path: path("none"), Value: Exact("", false)}, false},
		{"nested", ClaimMatch{Path: path("nested", "key", "inner"), Value: Exact("value", false)}, true},
		{"nested list", ClaimMatch{Path: path("nested", "key", "list"), Value: Exact("b", false)}, true},
		{"an object is no text", ClaimMatch{Path: path("nested", "key"), Value: mustRegex(t, ".*")}, false},
		{"a number is no text", ClaimMatch{Path: path("number"), Value: Exact("7", false)}, false},
		{"a boolean is no text", ClaimMatch{Path: path("yes"), Value: Exact("true", false)}, false},
		{"null is no text", ClaimMatch{Path: path("null"), Value: mustRegex(t, ".*")}, false},
		{"missing", ClaimMatch{Path: path("other"), Value: mustRegex(t, ".*")}, false},
		{"through a text", ClaimMatch{Path: path("sub", "x"), Value: mustRegex(t, ".*")}, false},
		{"through a list", ClaimMatch{Path: path("groups", "dev"), Value: mustRegex(t, ".*")}, false},
		{"a dot in a key", ClaimMatch{Path: path("with.dot"), Value: Exact("dotted", false)}, true},
		{"no path", ClaimMatch{Value: mustRegex(t, ".*")}, false},
		{"present", ClaimMatch{Path: path("number"), Present: true}, true},
		{"present object", ClaimMatch{Path: path("nested", "key"), Present: true}, true},
		{"not present", ClaimMatch{Path: path("other"), Present: true}, false},
		{"present in nothing", ClaimMatch{Path: path("sub", "x"), Present: true}, false},
	} {
		if got := c.m.Matches(claims); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		c.m.Invert = true
		if got := c.m.Matches(claims); got == c.want {
			t.Errorf("%s, inverted: %v, want %v", c.name, got, !c.want)
		}
		if !c.m.Matches(nil) {
			t.Errorf("%s, inverted, no claims: does not match", c.name)
		}
		c.m.Invert = false
		if c.m.Matches(nil) {
			t.Errorf("%s, no claims: matches", c.name)
		}
		all := Match{Claims: []ClaimMatch{c.m}}
		if got := all.Matches(&Request{Claims: claims}, 0); got != c.want {
			t.Errorf("%s, as a route's condition: %v, want %v", c.name, got, c.want)
		}
	}
}
