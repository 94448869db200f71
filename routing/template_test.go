package routing

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

func mustTemplate(t testing.TB, pattern string) *Template {
	t.Helper()
	tpl, err := ParseTemplate(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

func TestTemplate(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"/", []string{"/"}, []string{"", "/a", "//"}},
		{"/a/b", []string{"/a/b"}, []string{"/a/b/", "/a/B", "/a", "/a/bc"}},
		{"/a/", []string{"/a/"}, []string{"/a", "/a//"}},
		{"/*", []string{"/a", "/a%2Fb", "/a=b", "/a;v=1", "/a*", "/*"}, []string{"/", "/a/b", "/a/", "", "/a b", "/a|b", `/a\b`, "/é", "/a\x00", "/a?b", "/a#b", "/[a]"}},
		{"/**", []string{"/", "/a", "/a/b", "/a//b", "/../.."}, []string{"", "a", "/a b", "/a\x00", "/a#b"}},
		{"/a/*/c", []string{"/a/b/c"}, []string{"/a//c", "/a/b/b/c", "/a/c", "/a/b/c/"}},
		{"/a/**", []string{"/a/", "/a/b", "/a/b/c/"}, []string{"/a", "/ab"}},
		{"/a/**/c", []string{"/a//c", "/a/b/c", "/a/b/b/c", "/a/c/c", "/a//c/c"}, []string{"/a/c", "/a/c/", "/b/a/b/c"}},
		{"/a/*/**", []string{"/a/b/", "/a/b/c/d"}, []string{"/a/b", "/a//c"}},
		{"/*.m4s", []string{"/a.m4s", "/.m4s.m4s"}, []string{"/.m4s", "/a.m4", "/a/b.m4s"}},
		{"/**.mpd", []string{"/.mpd", "/a.mpd", "/a/b.mpd", "/a/.mpd"}, []string{"/amp", "/a.mpd/", "/a.mpdx"}},
		{"/{a}", []string{"/x"}, []string{"/", "/x/y"}},
		{"/{a=*}/{b=**}", []string{"/x/", "/x/y/z"}, []string{"/x", "//y"}},
		{"/{v=api/*}/*", []string{"/api/x/y"}, []string{"/api/x", "/apix/x/y", "/api//y"}},
		{"/{v=a/b}/c", []string{"/a/b/c"}, []string{"/a/b", "/a/x/c"}},
		{"/{v=a}", []string{"/a"}, []string{"/b"}},
		{"/one/{two}/{code==na/*}", []string{"/one/x/=na/y"}, []string{"/one/x/na/y"}},
		{"/{a}.ts", []string{"/x.ts"}, []string{"/.ts"}},
	} {
		tpl := mustTemplate(t, c.pattern)
		if tpl.String() != c.pattern {
			t.Errorf("%s calls itself %s", c.pattern, tpl)
		}
		for _, p := range c.yes {
			if !tpl.Fits(p) {
				t.Errorf("%s does not fit %q", p, c.pattern)
			}
		}
		m := PathMatch{Kind: PathTemplate, Template: tpl}
		for _, p := range c.yes {
			if !m.Matches(p) {
				t.Errorf("%s does not match %q", c.pattern, p)
			}
		}
		for _, p := range c.no {
			if m.Matches(p) {
				t.Errorf("%s matches %q", c.pattern, p)
			}
		}
	}
}

func TestTemplateRefused(t *testing.T) {
	for pattern, says := range map[string]string{
		"":                         `does not begin with "/"`,
		"a":                        `does not begin with "/"`,
		"//a":                      "empty segment",
		"/a//b":                    "empty segment",
		"/a//":                     "empty segment",
		"/a*":                      "can not be in a segment",
		"/a b":                     "can not be in a segment",
		"/a\x00":                   "can not be in a segment",
		"/é":                       "can not be in a segment",
		"/a?b":                     "can not be in a segment",
		"/***":                     "can not be in a segment",
		"/*a/b":                    "a wildcard has to end its segment",
		"/**/*":                    `a wildcard follows "**"`,
		"/**/**":                   `a wildcard follows "**"`,
		"/**/{a}":                  `a wildcard follows "**"`,
		"/{a=**}/{b=*}":            `a wildcard follows "**"`,
		"/{a":                      `a "{" has no "}"`,
		"/a{b}":                    "can not be in a segment",
		"/{a}{b}":                  "can not be in a segment",
		"/{}":                      "1 to 16 characters, not 0",
		"/{abcdefghijklmnopq}":     "1 to 16 characters, not 17",
		"/{1a}":                    "is not a variable's name",
		"/{a.b}":                   "is not a variable's name",
		"/{*}":                     "is not a variable's name",
		"/{a=}":                    "stands for nothing",
		"/{a=*b}":                  "a whole segment",
		"/{a=b/}":                  "a whole segment",
		"/{a=/b}":                  "empty segment",
		"/{a}/{a}":                 "occurs twice",
		"/{a}/{b}/{c}/{d}/{e}/{f}": "more than 5 variables",
	} {
		_, err := ParseTemplate(pattern)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), fmt.Sprintf("%q", pattern)) {
			t.Errorf("%q: the error is %v, want one that says %q", pattern, err, says)
		}
	}
}

func TestTemplateRewrite(t *testing.T) {
	for _, c := range []struct{ pattern, rewrite, path, want string }{
		{"/a/{x}/{y=**}", "/{y}/{x}", "/a/1/2/3", "/2/3/1"},
		{"/a/{x}/{y=**}", "/{y}/{x}", "/a/1/", "//1"},
		{"/a/{x}/{y=**}", "/fixed", "/a/1/2", "/fixed"},
		{"/a/{x}", "/{x}{x}-{x}", "/a/1", "/11-1"},
		{"/{v=api/*}/z", "/{v}", "/api/1/z", "/api/1"},
		{"/{v=api/*/c}/{w}", "/{w}/{v}", "/api/1/c/2", "/2/api/1/c"},
		{"/{a=b}/{c=d}", "/{c}/{a}", "/b/d", "/d/b"},
		{"/{n=**}.ts", "/{n}", "/a/b.ts", "/a/b"},
		{"/{n=**}/end/end.ts", "/{n}", "/a/end/end/end.ts", "/a/end"},
		{"/a/{x}", "/{x}", "/b/1", "/b/1"},
		{"/a/{x}", "/{x}", "/a/%2F..%2F", "/%2F..%2F"},
	} {
		w, err := NewTemplateRewrite(mustTemplate(t, c.pattern), c.rewrite)
		if err != nil {
			t.Errorf("%s to %s: %v", c.pattern, c.rewrite, err)
			continue
		}
		if got := w.Replace(c.path); got != c.want {
			t.Errorf("%s to %s: %s becomes %s, want %s", c.pattern, c.rewrite, c.path, got, c.want)
		}
	}
	tpl := mustTemplate(t, "/a/{x}")
	for rewrite, says := range map[string]string{
		"":        `does not begin with "/"`,
		"x/{x}":   `does not begin with "/"`,
		"{x}":     `does not begin with "/"`,
		"/a//{x}": "empty segment",
		"/{y}":    `has no variable "y"`,
		"/{x":     `a "{" has no "}"`,
		"/{x}?q":  "can not be in a path",
		"/{x}}":   "can not be in a path",
		"/a|":     "can not be in a path",
		"/{x/y}":  "is not a variable's name",
	} {
		if _, err := NewTemplateRewrite(tpl, rewrite); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: the error is %v, want one that says %q", rewrite, err, says)
		}
	}
	if _, err := NewTemplateRewrite(nil, "/a"); err == nil {
		t.Error("a rewrite without a template is accepted")
	}
}

// pathCharacters are those of a path's segment, as the inside of an expression's brackets.
const pathCharacters = `A-Za-z0-9\-._~%!$&'()*+,;:@=`

// dumbTemplate writes the template as an expression.
func dumbTemplate(pattern string) *regexp.Regexp {
	return templateExpression(pattern, pathCharacters, pathCharacters+"/")
}

// templateExpression writes the template wildcard by wildcard: "*" as some of the
// one kind of characters, "**" as any number of the other.
func templateExpression(pattern, segment, any string) *regexp.Regexp {
	var b strings.Builder
	for rest := pattern; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**"):
			b.WriteString("[" + any + "]*")
			rest = rest[2:]
		case rest[0] == '*':
			b.WriteString("[" + segment + "]+")
			rest = rest[1:]
		case rest[0] == '{':
			name, match, found := strings.Cut(rest[1:strings.Index(rest, "}")], "=")
			if !found {
				match = "*"
			}
			rest = rest[strings.Index(rest, "}")+1:]
			b.WriteString("(?P<" + name + ">" + strings.TrimSuffix(strings.TrimPrefix(templateExpression(match, segment, any).String(), `\A`), `\z`) + ")")
		default:
			b.WriteString(regexp.QuoteMeta(rest[:1]))
			rest = rest[1:]
		}
	}
	return regexp.MustCompile(`\A` + b.String() + `\z`)
}

// checkTemplate compares what matches, and what each variable stands for, with the expression.
func checkTemplate(t *testing.T, pattern, path string) {
	t.Helper()
	tpl, err := ParseTemplate(pattern)
	if err != nil {
		return
	}
	if got, want := tpl.Fits(path), templateExpression(pattern, `^/`, `\x00-\x{10ffff}`).MatchString(path); got != want {
		t.Fatalf("%q fits %q: %v, want %v", path, pattern, got, want)
	}
	re := dumbTemplate(pattern)
	groups := re.FindStringSubmatch(path)
	if got := tpl.Matches(path); got != (groups != nil) {
		t.Fatalf("%q on %q: %v, want %v", pattern, path, got, groups != nil)
	}
	if groups == nil {
		return
	}
	for _, v := range tpl.variables {
		w, err := NewTemplateRewrite(tpl, "/{"+v.name+"}")
		if err != nil {
			t.Fatal(err)
		}
		want := "/" + groups[re.SubexpIndex(v.name)]
		if got := w.Replace(path); got != want {
			t.Fatalf("%q on %q: the variable %s is %q, want %q", pattern, path, v.name, got, want)
		}
	}
}

func TestTemplateOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	valid := 0
	for range 20_000 {
		var pattern, path strings.Builder
		for range 1 + random.IntN(4) {
			pattern.WriteString("/" + pick("a", "b", "ab", "*", "**", "{x}", "{y=**}", "{z=a/*}", "{w=*/b}", ""))
		}
		pattern.WriteString(pick("", "", "", "/", ".b", "b"))
		for range 1 + random.IntN(5) {
			path.WriteString("/" + pick("a", "b", "ab", "a.b", "", "%2F", "a*", "b.b", "a|b", "\n", "é\xff"))
		}
		if _, err := ParseTemplate(pattern.String()); err == nil {
			valid++
		}
		checkTemplate(t, pattern.String(), path.String())
	}
	if valid < 1000 {
		t.Errorf("only %d patterns were valid", valid)
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add("/a/{x=*/b}/**.ts", "/a/1/b/2/3.ts")
	f.Fuzz(func(t *testing.T, pattern, path string) { checkTemplate(t, pattern, path) })
}
