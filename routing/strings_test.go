package routing

import (
	"regexp"
	"regexp/syntax"
	"strings"
	"testing"
)

func mustRegex(t testing.TB, expr string) StringMatch {
	t.Helper()
	m, err := Regex(expr)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestStringMatch(t *testing.T) {
	for _, c := range []struct {
		name string
		m    StringMatch
		yes  []string
		no   []string
	}{
		{"zero value", StringMatch{}, []string{""}, []string{"a"}},
		{"exact", Exact("abc", false), []string{"abc"}, []string{"", "ab", "abcd", "ABC", "xabc"}},
		{"exact, ignoring case", Exact("aBc", true), []string{"abc", "ABC"}, []string{"ab", "abcd"}},
		{"exact empty", Exact("", false), []string{""}, []string{"a"}},
		{"prefix", Prefix("ab", false), []string{"ab", "abc"}, []string{"", "a", "AB", "xab"}},
		{"prefix, ignoring case", Prefix("AB", true), []string{"ab", "Abc"}, []string{"a", "ba"}},
		{"suffix", Suffix("bc", false), []string{"bc", "abc"}, []string{"", "c", "BC", "bcx"}},
		{"suffix, ignoring case", Suffix("bC", true), []string{"xBc", "bc"}, []string{"c", "bcx"}},
		{"contains", Contains("b", false), []string{"b", "abc"}, []string{"", "B"}},
		{"contains, ignoring case", Contains("Bc", true), []string{"abCd", "bc", "bbc"}, []string{"b", "bdc"}},
		{"contains empty, ignoring case", Contains("", true), []string{"", "x"}, nil},
		{"case of ASCII letters only", Exact("ä", true), []string{"ä"}, []string{"Ä"}},
		{"the Kelvin sign is no K", Exact("k", true), []string{"K"}, []string{"\u212a"}},
		{"regex from end to end", mustRegex(t, "a|b"), []string{"a", "b"}, []string{"ab", "", "xa", "a\n"}},
		{"regex prefers no shorter alternative", mustRegex(t, "a|ab"), []string{"a", "ab"}, []string{"abb"}},
		{"regex with a literal beginning", mustRegex(t, "/v[12]/.*"), []string{"/v1/", "/v2/x"}, []string{"/v3/", "/v", "x/v1/"}},
		{"regex that is literal", mustRegex(t, `/a\.b`), []string{"/a.b"}, []string{"/axb", "/a.bc"}},
		{"regex with its own anchors", mustRegex(t, "^ab$"), []string{"ab"}, []string{"abc"}},
		{"empty regex", mustRegex(t, ""), []string{""}, []string{"a"}},
		{"regex with a flag", mustRegex(t, "(?i)ab"), []string{"AB"}, []string{"ABC"}},
		{"dot does not match a line break", mustRegex(t, "a.b"), []string{"axb"}, []string{"a\nb"}},
	} {
		for _, s := range c.yes {
			if !c.m.Matches(s) {
				t.Errorf("%s: %q does not match", c.name, s)
			}
		}
		for _, s := range c.no {
			if c.m.Matches(s) {
				t.Errorf("%s: %q matches", c.name, s)
			}
		}
	}
}

func TestRegexErrors(t *testing.T) {
	for _, c := range []struct{ expr, want string }{
		{"a(", "missing closing )"},
		{"a)(b", "unexpected )"},
		{`(?=a)`, "invalid or unsupported Perl syntax"},
		{strings.Repeat("a", MaxRegexLength+1), "the limit is 1024"},
	} {
		if _, err := Regex(c.expr); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Regex(%.20q) gives the error %v, want one with %q", c.expr, err, c.want)
		}
	}
	if _, err := Regex(strings.Repeat("a", MaxRegexLength)); err != nil {
		t.Errorf("an expression of the greatest length: %v", err)
	}
}

// dumbLower is the oracle's letter case.
func dumbLower(s string) string {
	b := []byte(s)
	for i := range b {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZ", b[i]) >= 0 {
			b[i] += 32
		}
	}
	return string(b)
}

func dumbLiteral(kind int, value, s string, ignoreCase bool) bool {
	if ignoreCase {
		value, s = dumbLower(value), dumbLower(s)
	}
	switch kind {
	case 0:
		return value == s
	case 1:
		return strings.HasPrefix(s, value)
	case 2:
		return strings.HasSuffix(s, value)
	default:
		return strings.Contains(s, value)
	}
}

func FuzzStringMatch(f *testing.F) {
	f.Add(uint8(0), "abc", "aBc", true)
	f.Fuzz(func(t *testing.T, kind uint8, value, s string, ignoreCase bool) {
		m := [4]func(string, bool) StringMatch{Exact, Prefix, Suffix, Contains}[kind%4](value, ignoreCase)
		if got, want := m.Matches(s), dumbLiteral(int(kind%4), value, s, ignoreCase); got != want {
			t.Errorf("kind %d of %q on %q, ignoring case %v: %v, want %v", kind%4, value, s, ignoreCase, got, want)
		}
	})
}

// FuzzRegex holds the anchored expression against the leftmost-longest match of
// the plain one: the whole string matches exactly if that match is the whole string.
func FuzzRegex(f *testing.F) {
	f.Add("a|ab", "ab")
	f.Fuzz(func(t *testing.T, expr, s string) {
		if len(s) > 1<<10 {
			return
		}
		m, err := Regex(expr)
		if err != nil {
			return
		}
		re, err := regexp.Compile(expr)
		if err != nil {
			t.Fatalf("Regex accepts %q, which does not compile: %v", expr, err)
		}
		re.Longest()
		at := re.FindStringIndex(s)
		if got, want := m.Matches(s), at != nil && at[0] == 0 && at[1] == len(s); got != want {
			t.Errorf("%q on %q: %v, want %v", expr, s, got, want)
		}
	})
}

// TestRegexSize: a short expression may be a large one.
func TestRegexSize(t *testing.T) {
	for expr, ok := range map[string]bool{
		"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": true,
		"/v[0-9]{1,3}/.{0,1000}":                    true,
		"(.{1,30}/){30}":                            true,
		"(" + strings.Repeat("a", 500) + "){30}":    true,
		"(" + strings.Repeat("a", 500) + "){40}":    false,
		"((abcdefghijklmnop){30}){30,}":             false,
		"(abcdefghijklmnopq.*){0,1000}":             false,
		`x\{1000\}` + strings.Repeat("a", 500):      true,
	} {
		_, err := Regex(expr)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "the limit is 16384") {
			t.Errorf("%.40s: the error is %v", expr, err)
		}
		if _, err := NewRegexRewrite(expr, ""); (err == nil) != ok {
			t.Errorf("%.40s as a rewrite: the error is %v", expr, err)
		}
	}
}

// TestRegexSizeIsThatOfTheProgram holds the count against the compiled program's.
func TestRegexSizeIsThatOfTheProgram(t *testing.T) {
	for _, expr := range []string{"a", "abc", "(abc)?", "a{3,7}", "(a|bc|[d-f]+)*", "((ab){2}c){3,}", "[a-z]{1,50}/(x{2}|y)", "a{0}", "((a{2}){3}){4}"} {
		parsed, err := syntax.Parse(expr, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		size := regexSize(parsed)
		program, err := syntax.Compile(parsed.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(program.Inst); n > 3*size+4 {
			t.Errorf("%s: the size is %d, the program has %d steps", expr, size, n)
		}
	}
}
