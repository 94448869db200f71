package routing

import "testing"

func TestCookieMatch(t *testing.T) {
	is := func(name, value string) CookieMatch { return CookieMatch{Name: name, Value: Exact(value, false)} }
	for _, c := range []struct {
		name    string
		m       CookieMatch
		cookies []string
		want    bool
	}{
		{"alone", is("a", "1"), []string{"a=1"}, true},
		{"other value", is("a", "1"), []string{"a=2"}, false},
		{"among others", is("a", "1"), []string{"b=2; a=1;c=3"}, true},
		{"in a second header", is("a", "1"), []string{"b=2", "a=1"}, true},
		{"in quotes", is("a", "1"), []string{`a="1"`}, true},
		{"with an equal sign", is("a", "1=2"), []string{"a=1=2"}, true},
		{"empty", is("a", ""), []string{"a="}, true},
		{"without an equal sign", is("a", ""), []string{"a"}, false},
		{"missing", is("a", ""), nil, false},
		{"the first counts", is("a", "1"), []string{"a=2; a=1"}, false},
		{"the first counts across headers", is("a", "1"), []string{"a=2", "a=1"}, false},
		{"names have a case", is("a", "1"), []string{"A=1"}, false},
		{"part of a name", is("a", "1"), []string{"ba=1; ab=1"}, false},
		{"regex", CookieMatch{Name: "a", Value: mustRegex(t, "[0-9]+")}, []string{"a=17"}, true},
		{"a comma ends no cookie", is("a", "1"), []string{"a=1,b=2"}, false},
	} {
		for _, form := range []HeaderForm{CanonicalHeaders, LowerHeaders} {
			r := &Request{Form: form, Header: map[string][]string{cookieHeader.key(form): c.cookies}}
			route := Match{Cookies: []CookieMatch{c.m}}
			if got := route.Matches(r, 0); got != c.want {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
			route.Cookies[0].Invert = true
			if got := route.Matches(r, 0); got == c.want {
				t.Errorf("%s, inverted: %v, want %v", c.name, got, !c.want)
			}
		}
	}
}
