package identity

import (
	"bytes"
	"fmt"
	"strings"
)

// EscapedSlashes says what becomes of "%2F" and "%5C" in a path
// (HttpConnectionManager.path_with_escaped_slashes_action).
type EscapedSlashes uint8

const (
	KeepEscapedSlashes         EscapedSlashes = iota // left as they are
	RejectEscapedSlashes                             // the request is refused
	UnescapeSlashes                                  // replaced by "/" and "\" before anything else is done
	UnescapeSlashesAndRedirect                       // as UnescapeSlashes, and the client is redirected to the result
)

// PathOptions says how a request's path is brought into one spelling before
// rules see it and before it is dispatched: both must be given the result, or a
// rule on the path can be stepped around. The zero value changes nothing.
type PathOptions struct {
	// Normalize resolves "." and ".." segments ("%2e" too), turns "\" into "/"
	// and undoes the escapes of letters, digits and "-._~" (RFC 3986, 6.2.2).
	Normalize bool
	// MergeSlashes makes one slash of several.
	MergeSlashes bool
	// EscapedSlashes comes first, so that what it uncovers is normalized.
	EscapedSlashes EscapedSlashes
}

// NamedPathOptions returns the options that Istio's
// MeshConfig.pathNormalization names: NONE, BASE, MERGE_SLASHES,
// DECODE_AND_MERGE_SLASHES; DEFAULT and "" are BASE. Another name is an error.
func NamedPathOptions(name string) (PathOptions, error) {
	switch name {
	case "NONE":
		return PathOptions{}, nil
	case "", "DEFAULT", "BASE":
		return PathOptions{Normalize: true}, nil
	case "MERGE_SLASHES":
		return PathOptions{Normalize: true, MergeSlashes: true}, nil
	case "DECODE_AND_MERGE_SLASHES":
		return PathOptions{Normalize: true, MergeSlashes: true, EscapedSlashes: UnescapeSlashes}, nil
	}
	return PathOptions{}, fmt.Errorf("path normalization %q: not one of NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES", name)
}

// PathOutcome says what to do with a request after its path was looked at.
type PathOutcome uint8

const (
	PathGoOn     PathOutcome = iota // go on with the returned path
	PathRefuse                      // answer 400: the path has no safe reading
	PathRedirect                    // answer 307 to the returned path
)

// Apply returns the path in its one spelling. The path is given in wire form,
// still escaped and without "?" and what follows.
//
// Whatever the options, it refuses a path with "#", since a request target has
// no fragment (RFC 9112, 3.2) and servers disagree on where such a path ends,
// and a path that does not begin with "/", except "*" (OPTIONS) and "" (CONNECT).
// With Normalize it also refuses a NUL, escaped or not, and a "%" that two
// hexadecimal digits do not follow: undoing escapes behind such a "%" could
// make an escape that was not there.
//
// It allocates only where the path changes. The result of applying it twice is
// the result of applying it once.
func (o PathOptions) Apply(path string) (string, PathOutcome) {
	if path == "" || path == "*" {
		return path, PathGoOn
	}
	if strings.IndexByte(path, '#') >= 0 {
		return "", PathRefuse
	}
	outcome := PathGoOn
	if o.EscapedSlashes != KeepEscapedSlashes {
		unescaped, found := unescapeSlashes(path)
		if found {
			switch o.EscapedSlashes {
			case RejectEscapedSlashes:
				return "", PathRefuse
			case UnescapeSlashesAndRedirect:
				outcome = PathRedirect
			}
			path = unescaped
		}
	}
	if o.Normalize && path[0] == '\\' {
		path = "/" + path[1:]
	}
	if path[0] != '/' {
		return "", PathRefuse
	}
	if o.Normalize {
		ok := true
		if path, ok = canonicalPath(path); !ok {
			return "", PathRefuse
		}
	}
	if o.MergeSlashes {
		path = mergeSlashes(path)
	}
	return path, outcome
}

// unescapeSlashes undoes the escapes of "/" and "\" and reports whether there were any.
func unescapeSlashes(path string) (string, bool) {
	var out []byte
	from := 0
	for i := 0; i+2 < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		hi, lo := path[i+1], path[i+2]|0x20
		var c byte
		switch {
		case hi == '2' && lo == 'f':
			c = '/'
		case hi == '5' && lo == 'c':
			c = '\\'
		default:
			continue
		}
		out = append(append(out, path[from:i]...), c)
		from = i + 3
		i += 2
	}
	if out == nil {
		return path, false
	}
	return string(append(out, path[from:]...)), true
}

// mergeSlashes makes one slash of several.
func mergeSlashes(path string) string {
	at := strings.Index(path, "//")
	if at < 0 {
		return path
	}
	out := append(make([]byte, 0, len(path)), path[:at]...)
	for i := at; i < len(path); i++ {
		if path[i] == '/' && len(out) > 0 && out[len(out)-1] == '/' {
			continue
		}
		out = append(out, path[i])
	}
	return string(out)
}

// pathByte classes what a byte of a path becomes.
type pathByte uint8

const (
	pathKeep       pathByte = iota // stays, and stays escaped where it is escaped
	pathUnreserved                 // stays, and is unescaped where it is escaped
	pathEscape                     // becomes an escape
	pathInvalid                    // has no place in a path
)

var pathBytes = func() (t [256]pathByte) {
	for c := range t {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", byte(c)) >= 0:
			t[c] = pathUnreserved
		case c == 0:
			t[c] = pathInvalid
		case c <= ' ', c >= 0x7f, strings.IndexByte("\"<>?`{}", byte(c)) >= 0:
			t[c] = pathEscape
		}
	}
	return t
}()

// canonicalPath resolves dot segments, turns "\" into "/" and undoes needless
// escapes. The path begins with "/". It keeps empty segments.
func canonicalPath(path string) (string, bool) {
	if pathIsCanonical(path) {
		return path, true
	}
	out := make([]byte, 0, len(path)+8)
	for i := 0; i < len(path); {
		c := path[i]
		if c == '\\' {
			c = '/'
		}
		if c == '/' {
			out = append(out, '/')
			i++
			// A segment that is one or two dots ends at a slash or at the end.
			n, dots := pathDots(path[i:])
			rest := path[i+n:]
			if dots == 0 || rest != "" && rest[0] != '/' && rest[0] != '\\' {
				continue
			}
			if dots == 2 && len(out) > 1 {
				out = out[:1+bytes.LastIndexByte(out[:len(out)-1], '/')]
			}
			i += n
			if i < len(path) {
				// The slash behind the dots stands for the one already written, which
				// the next segment's own dots must see again.
				out = out[:len(out)-1]
			}
			continue
		}
		if c != '%' {
			switch pathBytes[c] {
			case pathInvalid:
				return "", false
			case pathEscape:
				const digits = "0123456789ABCDEF"
				out = append(out, '%', digits[c>>4], digits[c&15])
			default:
				out = append(out, c)
			}
			i++
			continue
		}
		v, ok := pathUnhex(path[i:])
		if !ok || v == 0 {
			return "", false
		}
		if pathBytes[v] == pathUnreserved {
			out = append(out, v)
		} else {
			out = append(out, path[i:i+3]...)
		}
		i += 3
	}
	return string(out), true
}

// pathIsCanonical reports whether canonicalPath surely has nothing to do.
func pathIsCanonical(path string) bool {
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' || c == '\\' || pathBytes[c] >= pathEscape || c == '.' && i > 0 && path[i-1] == '/' {
			return false
		}
	}
	return true
}

// pathDots returns how many dots s begins with, "%2e" counting as one, up to
// two, and how many bytes they take.
func pathDots(s string) (n, dots int) {
	for dots < 2 {
		rest := s[n:]
		switch {
		case strings.HasPrefix(rest, "."):
			n++
		case len(rest) >= 3 && rest[0] == '%' && rest[1] == '2' && rest[2]|0x20 == 'e':
			n += 3
		default:
			return n, dots
		}
		dots++
	}
	return n, dots
}

// pathUnhex reads the escape that s begins with.
func pathUnhex(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	v := byte(0)
	for _, c := range []byte{s[1], s[2]} {
		v <<= 4
		switch {
		case '0' <= c && c <= '9':
			v |= c - '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			v |= c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
	}
	return v, true
}
