package routing

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

func TestRedirect(t *testing.T) {
	anything := Match{}
	under := func(prefix string) Match { return Match{Path: PathMatch{Kind: PathSeparatedPrefix, Value: prefix}} }
	for _, c := range []struct {
		name string
		d    Redirect
		m    Match
		from string // scheme://authority/path?query
		want string
	}{
		{"host", Redirect{Host: "b.test"}, anything, "http://a.test/p?q=1", "http://b.test/p?q=1"},
		{"host drops the port", Redirect{Host: "b.test"}, anything, "http://a.test:8080/p", "http://b.test/p"},
		{"host with a port", Redirect{Host: "b.test:81"}, anything, "http://a.test:8080/p", "http://b.test:81/p"},
		{"https", Redirect{HTTPS: true}, anything, "http://a.test/p", "https://a.test/p"},
		{"https elides port 80", Redirect{HTTPS: true}, anything, "http://a.test:80/p", "https://a.test/p"},
		{"https keeps port 80 where it is to", Redirect{HTTPS: true, KeepPort: true}, anything, "http://a.test:80/p", "https://a.test:80/p"},
		{"https keeps other ports", Redirect{HTTPS: true}, anything, "http://a.test:8080/p", "https://a.test:8080/p"},
		{"https from https keeps 443", Redirect{HTTPS: true}, anything, "https://a.test:443/p", "https://a.test:443/p"},
		{"https from https keeps 80", Redirect{HTTPS: true}, anything, "https://a.test:80/p", "https://a.test:80/p"},
		{"scheme http elides port 443", Redirect{Scheme: "http"}, anything, "https://a.test:443/p", "http://a.test/p"},
		{"scheme http from http keeps 80", Redirect{Scheme: "http"}, anything, "http://a.test:80/p", "http://a.test:80/p"},
		{"other scheme", Redirect{Scheme: "ftp"}, anything, "http://a.test:80/p", "ftp://a.test/p"},
		{"port", Redirect{Port: 81}, anything, "http://a.test:8080/p", "http://a.test:81/p"},
		{"port and host", Redirect{Port: 81, Host: "b.test"}, anything, "http://a.test/p", "http://b.test:81/p"},
		{"port 443 is written", Redirect{Port: 443, HTTPS: true}, anything, "http://a.test/p", "https://a.test:443/p"},
		{"IPv6", Redirect{Port: 81}, anything, "http://[::1]:8080/p", "http://[::1]:81/p"},
		{"IPv6 without a port", Redirect{Port: 81}, anything, "http://[::1]/p", "http://[::1]:81/p"},
		{"IPv6 elides port 80", Redirect{HTTPS: true}, anything, "http://[::1]:80/p", "https://[::1]/p"},
		{"path", Redirect{Path: "/new"}, anything, "http://a.test/p", "http://a.test/new"},
		{"path keeps the query", Redirect{Path: "/new"}, anything, "http://a.test/p?q=1", "http://a.test/new?q=1"},
		{"path with its own query", Redirect{Path: "/new?x=2"}, anything, "http://a.test/p?q=1", "http://a.test/new?x=2"},
		{"path strips the query", Redirect{Path: "/new", StripQuery: true}, anything, "http://a.test/p?q=1", "http://a.test/new"},
		{"its own query is not stripped", Redirect{Path: "/new?x=2", StripQuery: true}, anything, "http://a.test/p?q=1", "http://a.test/new?x=2"},
		{"path without a slash gets one", Redirect{Path: "new"}, anything, "http://a.test/p", "http://a.test/new"},
		{"strip the query", Redirect{StripQuery: true}, anything, "http://a.test/p?q=1", "http://a.test/p"},
		{"prefix", Redirect{HasPrefix: true, Prefix: "/new"}, under("/old"), "http://a.test/old/x?q=/old", "http://a.test/new/x?q=/old"},
		{"prefix, whole path", Redirect{HasPrefix: true, Prefix: "/new"}, under("/old"), "http://a.test/old", "http://a.test/new"},
		{"prefix to the root", Redirect{HasPrefix: true, Prefix: "/"}, Match{Path: PathMatch{Value: "/old/"}}, "http://a.test/old/x", "http://a.test/x"},
		{"prefix and strip", Redirect{HasPrefix: true, Prefix: "/new", StripQuery: true}, under("/old"), "http://a.test/old?q", "http://a.test/new"},
		{"regex", Redirect{Regex: mustRewrite(t, "^/(.+)/(.+)$", `/\2/\1`)}, anything, "http://a.test/a/b?q=c/d", "http://a.test/b/a?q=c/d"},
		{"format", Redirect{Format: mustFormat(t, "/%REQ(:method)%")}, anything, "http://a.test/p?q", "http://a.test/GET?q"},
		{"another place is not in the path", Redirect{HTTPS: true}, anything, "http://a.test//evil.test/", "https://a.test//evil.test/"},
		{"encoded slashes stay", Redirect{HTTPS: true}, anything, "http://a.test/%2F..%2Fb?x=%0d%0a", "https://a.test/%2F..%2Fb?x=%0d%0a"},
		{"no second header", Redirect{HTTPS: true}, anything, "http://a.test/p\r\nSet-Cookie: a=b\x00?q\x7f \n", "https://a.test/p%0D%0ASet-Cookie:%20a=b%00?q%7F%20%0A"},
	} {
		scheme, rest, _ := strings.Cut(c.from, "://")
		slash := strings.IndexByte(rest, '/')
		path, query, _ := strings.Cut(rest[slash:], "?")
		r := &Request{Method: "GET", Scheme: scheme, Authority: rest[:slash], Path: path, RawQuery: query}
		if got := c.d.Location(&c.m, r); got != c.want {
			t.Errorf("%s: %q goes to %q, want %q", c.name, c.from, got, c.want)
		}
		c.d.Status = 301
		if err := c.d.Check(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestRedirectForwardedProto: the port belongs to the scheme that the caller of the caller used.
func TestRedirectForwardedProto(t *testing.T) {
	d := Redirect{HTTPS: true}
	r := &Request{Scheme: "http", Authority: "a.test:80", Path: "/", Header: map[string][]string{"X-Forwarded-Proto": {"https"}}}
	if got := d.Location(&Match{}, r); got != "https://a.test:80/" {
		t.Errorf("goes to %s", got)
	}
}

func TestRedirectRefused(t *testing.T) {
	for _, c := range []struct {
		d    Redirect
		says string
	}{
		{Redirect{}, "0 is no redirect"},
		{Redirect{Status: 200}, "200 is no redirect"},
		{Redirect{Status: 301, Path: "/a", HasPrefix: true, Prefix: "/b"}, "two ways"},
		{Redirect{Status: 301, Path: "/a", Format: mustFormat(t, "/a")}, "two ways"},
		{Redirect{Status: 301, Scheme: "http", HTTPS: true}, "two ways"},
		{Redirect{Status: 301, Port: 65536}, "65536 is above 65535"},
		{Redirect{Status: 301, Host: "a\r\nb"}, `has the character '\r'`},
		{Redirect{Status: 301, Path: "/a b"}, "has the character ' '"},
		{Redirect{Status: 301, Format: mustFormat(t, "/%UPSTREAM_CLUSTER%")}, "not of UPSTREAM_CLUSTER"},
	} {
		if err := c.d.Check(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: the error is %v, want one that says %q", c.d, err, c.says)
		}
	}
}

// FuzzRedirect asks that every answer is one line, an absolute URL of the host that policy or the request names.
func FuzzRedirect(f *testing.F) {
	f.Add(uint8(1), uint16(0), "", "/a", "/new", "a.test:80", "/a/b", "q=1")
	f.Fuzz(func(t *testing.T, flags uint8, port uint16, host, prefix, replacement, authority, path, query string) {
		if strings.ContainsAny(authority, "/?#@\\") || strings.ContainsAny(host, "/?#@\\") || strings.Contains(path, "?") {
			return
		}
		d := Redirect{Status: 301, HTTPS: flags&1 != 0, StripQuery: flags&2 != 0, Host: host, Port: uint32(port)}
		switch flags >> 2 & 3 {
		case 1:
			d.Path = replacement
		case 2:
			d.HasPrefix, d.Prefix = true, replacement
		case 3:
			d.Scheme, d.HTTPS = "http", false
		}
		if d.Check() != nil {
			return
		}
		m := Match{Path: PathMatch{Value: prefix}}
		r := &Request{Scheme: "http", Authority: authority, Path: path, RawQuery: query}
		if !m.Matches(r, 0) {
			return
		}
		got := d.Location(&m, r)
		if strings.ContainsFunc(got, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			t.Fatalf("%+v: %q is not one line", d, got)
		}
		rest, ok := strings.CutPrefix(got, "http://")
		if !ok {
			rest, ok = strings.CutPrefix(got, "https://")
		}
		if !ok {
			t.Fatalf("%+v: %q has no scheme", d, got)
		}
		at, _, ok := strings.Cut(rest, "/")
		if !ok {
			t.Fatalf("%+v: %q has no path", d, got)
		}
		from := authority
		if host != "" {
			from = host
		}
		known := at == escapeSpaces(from)
		for i := range from {
			// With its port cut off, and perhaps another one.
			if from[i] == ':' && (at == escapeSpaces(from[:i]) || at == escapeSpaces(from[:i])+fmt.Sprint(":", port)) {
				known = true
			}
		}
		if !known && at != escapeSpaces(from)+fmt.Sprint(":", port) {
			t.Fatalf("%+v on %q: %q goes to another host", d, authority, got)
		}
		if u, err := url.Parse(got); err == nil && d.StripQuery && !strings.Contains(d.Path, "?") && !strings.Contains(d.Prefix, "?") && u.RawQuery != "" {
			t.Fatalf("%+v: %q has a query", d, got)
		}
	})
}

func escapeSpaces(s string) string {
	var b strings.Builder
	writeHeaderSafe(&b, s)
	return b.String()
}
