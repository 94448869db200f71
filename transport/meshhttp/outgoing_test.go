package meshhttp

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// requestLine is what HTTP/1.1 sends first for a URL.
func requestLine(t testing.TB, u *url.URL) string {
	t.Helper()
	var b bytes.Buffer
	if err := (&http.Request{Method: "GET", URL: u, Host: "h", Header: http.Header{}}).Write(&b); err != nil {
		t.Fatalf("%q: %v", u, err)
	}
	line, _, _ := strings.Cut(b.String(), "\r\n")
	return line
}

func TestSetTarget(t *testing.T) {
	for _, c := range []struct{ path, query, want string }{
		{"/", "", "/"},
		{"/a/b", "x=1&y=%20", "/a/b?x=1&y=%20"},
		{"/a%2Fb", "", "/a%2Fb"},
		{"/a%2fb", "", "/a%2fb"},
		{"/a;p=1/b,c", "", "/a;p=1/b,c"},
		{"//a//b", "", "//a//b"},
		{"/a/../b/./", "", "/a/../b/./"},
		{"/%zz", "", "/%zz"},     // no escape at all: it is sent as it is
		{"//%zz", "", "//%25zz"}, // where a URL can not say it, the "%" is escaped
		{"/a|b^c", "", "/a|b^c"}, // net/url would escape these
		{"//a|b", "", "//a%7Cb"}, // here it has to
		{"/a b", "", "/a%20b"},   // not a request line of four words
		{"/a\r\nX: y", "", "/a%0D%0AX:%20y"},
		{"/a?b", "c", "/a%3Fb?c"}, // the path has no query of its own
		{"/a#b", "c#d", "/a%23b?c%23d"},
		{"/ä", "ö", "/%C3%A4?%C3%B6"},
		{"", "", "/"},
		{"a", "", "/a"},
		{"http://other/x", "", "/http://other/x"},
		{"*", "", "*"},
		{"/x", "a b", "/x?a%20b"},
		{"/x", "a?b", "/x?a?b"},
	} {
		u := url.URL{Scheme: "http", Host: "h", Path: "/before", RawPath: "/be%66ore", RawQuery: "old", ForceQuery: true, Opaque: "/opaque"}
		setTarget(&u, c.path, c.query)
		if got := requestLine(t, &u); got != "GET "+c.want+" HTTP/1.1" {
			t.Errorf("%q ? %q: %q, want %q", c.path, c.query, got, c.want)
		}
	}
}

// FuzzSetTarget: whatever a rewrite makes, one request line comes of it, with
// the path before the first "?"; and what needs no escape is sent unchanged.
func FuzzSetTarget(f *testing.F) {
	for _, s := range [][2]string{{"/a", "b"}, {"//a%", ""}, {"/a\r\nb", "\n"}, {"*", "?"}, {"", ""}, {"/%2f%zz|", "#"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		u := url.URL{Scheme: "http", Host: "h", Path: "/"}
		setTarget(&u, path, query)
		line := requestLine(t, &u)
		target, ok := strings.CutSuffix(strings.TrimPrefix(line, "GET "), " HTTP/1.1")
		if !ok || strings.ContainsAny(target, " \r\n#\x00") {
			t.Fatalf("%q ? %q: %q", path, query, line)
		}
		sentPath, sentQuery, _ := strings.Cut(target, "?")
		if !strings.HasPrefix(sentPath, "/") && sentPath != "*" {
			t.Fatalf("%q: the path is %q", path, sentPath)
		}
		if plain := strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") && strings.IndexFunc(path, func(r rune) bool {
			return r <= ' ' || r >= 0x7f || r == '#' || r == '?'
		}) < 0; plain && sentPath != path {
			t.Fatalf("%q is sent as %q", path, sentPath)
		}
		if decoded, err := url.PathUnescape(query); err == nil {
			if again, err := url.PathUnescape(sentQuery); err != nil || again != decoded {
				t.Fatalf("the query %q is sent as %q", query, sentQuery)
			}
		}
	})
}
