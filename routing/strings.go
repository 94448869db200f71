package routing

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// MaxRegexLength is the longest regular expression that is accepted, in bytes.
const MaxRegexLength = 1024

// MaxRegexSize is the largest regular expression that is accepted, counted in
// characters and operators once its repetitions are written out: "(ab){3,5}"
// counts about as much as "abababa?b?...". Matching takes time in proportion to
// it, so a short expression must not be a large one ("(.{0,30}){30}" is).
const MaxRegexSize = 16384

type stringKind uint8

const (
	stringExact stringKind = iota
	stringPrefix
	stringSuffix
	stringContains
	stringRegex
)

// StringMatch compares one string (envoy.type.matcher.v3.StringMatcher). The
// zero value matches the empty string. It is immutable and safe for concurrent use.
type StringMatch struct {
	kind       stringKind
	ignoreCase bool   // ASCII letters only, as Envoy
	value      string // lower-case if ignoreCase; the literal beginning of a regex
	re         *regexp.Regexp
}

// Exact matches v as a whole. ignoreCase ignores the case of ASCII letters.
func Exact(v string, ignoreCase bool) StringMatch { return literal(stringExact, v, ignoreCase) }

// Prefix matches strings that begin with v.
func Prefix(v string, ignoreCase bool) StringMatch { return literal(stringPrefix, v, ignoreCase) }

// Suffix matches strings that end with v.
func Suffix(v string, ignoreCase bool) StringMatch { return literal(stringSuffix, v, ignoreCase) }

// Contains matches strings that contain v.
func Contains(v string, ignoreCase bool) StringMatch { return literal(stringContains, v, ignoreCase) }

func literal(kind stringKind, v string, ignoreCase bool) StringMatch {
	if ignoreCase {
		v = lowerASCII(v)
	}
	return StringMatch{kind: kind, value: v, ignoreCase: ignoreCase}
}

// Regex matches strings that the expression matches from end to end, as
// Envoy's safe_regex and Istio's regex do: "a|b" matches "a" but not "ab".
// The syntax is RE2's; matching takes time linear in the input. An expression
// that does not compile, is longer than MaxRegexLength or larger than
// MaxRegexSize is an error.
func Regex(expr string) (StringMatch, error) {
	// Compiled alone first: `a)(b` is valid only inside the group that anchors it.
	plain, err := compileRegex(expr)
	if err != nil {
		return StringMatch{}, err
	}
	prefix, complete := plain.LiteralPrefix()
	if complete {
		return Exact(prefix, false), nil
	}
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return StringMatch{}, err
	}
	return StringMatch{kind: stringRegex, value: prefix, re: re}, nil
}

// compileRegex compiles an expression within the limits.
func compileRegex(expr string) (*regexp.Regexp, error) {
	if len(expr) > MaxRegexLength {
		return nil, fmt.Errorf("regular expression has %d bytes, the limit is %d", len(expr), MaxRegexLength)
	}
	// Only repetitions by number make more of an expression than is written.
	if strings.Contains(expr, "{") {
		parsed, err := syntax.Parse(expr, syntax.Perl)
		if err != nil {
			return nil, err
		}
		if size := regexSize(parsed); size > MaxRegexSize {
			return nil, fmt.Errorf("regular expression has the size %d with its repetitions written out, the limit is %d", size, MaxRegexSize)
		}
	}
	return regexp.Compile(expr)
}

// regexSize counts the characters and operators of an expression. The parser
// has bounded nested repetitions to 1,000, so there is no overflow.
func regexSize(re *syntax.Regexp) int {
	size := 1
	if re.Op == syntax.OpLiteral {
		size = len(re.Rune)
	}
	for _, sub := range re.Sub {
		size += regexSize(sub)
	}
	if re.Op == syntax.OpRepeat {
		size *= max(re.Min+1, re.Max)
	}
	return size
}

// Matches reports whether the string matches. It does not allocate.
func (m *StringMatch) Matches(s string) bool {
	switch m.kind {
	case stringExact:
		if m.ignoreCase {
			return len(s) == len(m.value) && equalLower(s, m.value)
		}
		return s == m.value
	case stringPrefix:
		if m.ignoreCase {
			return len(s) >= len(m.value) && equalLower(s[:len(m.value)], m.value)
		}
		return strings.HasPrefix(s, m.value)
	case stringSuffix:
		if m.ignoreCase {
			return len(s) >= len(m.value) && equalLower(s[len(s)-len(m.value):], m.value)
		}
		return strings.HasSuffix(s, m.value)
	case stringContains:
		if m.ignoreCase {
			return containsLower(s, m.value)
		}
		return strings.Contains(s, m.value)
	default:
		return strings.HasPrefix(s, m.value) && m.re.MatchString(s)
	}
}

// equalLower reports whether s with its ASCII letters lowered is lower. Both have the same length.
func equalLower(s, lower string) bool {
	for i := 0; i < len(s); i++ {
		if toLower(s[i]) != lower[i] {
			return false
		}
	}
	return true
}

func containsLower(s, lower string) bool {
	for i := 0; i+len(lower) <= len(s); i++ {
		if equalLower(s[i:i+len(lower)], lower) {
			return true
		}
	}
	return false
}

func toLower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// lowerASCII lowers ASCII letters only, so that a comparison byte by byte has
// the same length on both sides. It allocates only if there is an upper-case letter.
func lowerASCII(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				b[i] = toLower(b[i])
			}
			return string(b)
		}
	}
	return s
}
