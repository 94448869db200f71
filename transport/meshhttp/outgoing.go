package meshhttp

import (
	"net/url"
	"strings"
)

// setTarget has a URL send exactly this path and query, which policy may have
// rewritten. A URL has three ways to say a path: Path alone, Path with RawPath
// where another spelling of it is meant, and Opaque, which is sent as it is.
// What may not stand in a request line is escaped first, so that no rewrite can
// end the line, begin a query or send what a server would read as another request.
func setTarget(u *url.URL, path, rawQuery string) {
	u.RawQuery, u.ForceQuery = escapeTarget(rawQuery, true), false
	u.Opaque, u.RawPath, u.Fragment, u.RawFragment = "", "", "", ""
	if isPlain(path) {
		u.Path = path
		return
	}
	path = escapeTarget(path, false)
	plain, err := url.PathUnescape(path)
	if err == nil {
		u.Path = plain
		if u.EscapedPath() == path {
			return
		}
		u.RawPath = path
		if u.EscapedPath() == path {
			return
		}
		u.RawPath = ""
	}
	if strings.HasPrefix(path, "//") {
		// Opaque can not begin so: net/url would put the scheme before it. Every
		// "%" that does not begin an escape is escaped, which is all that was amiss.
		path = escapeMalformed(path)
		u.Path, _ = url.PathUnescape(path)
		u.RawPath = path
		return
	}
	u.Path, u.Opaque = "", path
}

// isPlain reports whether a path has one spelling alone, which is most paths'.
func isPlain(path string) bool {
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '/', c == '-', c == '_', c == '.', c == '~':
		default:
			return false
		}
	}
	return strings.HasPrefix(path, "/")
}

// escapeTarget escapes the bytes that no part of a request's target has (RFC 3986, 3.3 and 3.4).
func escapeTarget(s string, query bool) string {
	first := 0
	for first < len(s) && !mustEscape(s[first], query) {
		first++
	}
	absent := !query && !strings.HasPrefix(s, "/") && s != "*" // the slash
	if first == len(s) && !absent {
		return s
	}
	var b strings.Builder
	if absent {
		b.WriteByte('/')
	}
	b.WriteString(s[:first])
	for i := first; i < len(s); i++ {
		if c := s[i]; mustEscape(c, query) {
			writeEscaped(&b, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func mustEscape(c byte, query bool) bool {
	return c <= ' ' || c >= 0x7f || c == '#' || c == '?' && !query
}

func writeEscaped(b *strings.Builder, c byte) {
	const hex = "0123456789ABCDEF"
	b.WriteByte('%')
	b.WriteByte(hex[c>>4])
	b.WriteByte(hex[c&15])
}

// escapeMalformed escapes what net/url does not take in a path as it is.
func escapeMalformed(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%' && (i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2])), strings.IndexByte("\"<>\\^`{|}", c) >= 0:
			writeEscaped(&b, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
