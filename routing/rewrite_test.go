package routing

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func mustRewrite(t testing.TB, pattern, substitution string) *RegexRewrite {
	t.Helper()
	r, err := NewRegexRewrite(pattern, substitution)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustFormat(t testing.TB, s string) *Format {
	t.Helper()
	f, err := ParseFormat(s)
	if err != nil {
		t.Fatal(err)
	}
	return &f
}

func TestRegexRewrite(t *testing.T) {
	for _, c := range []struct{ pattern, substitution, in, want string }{
		{"/old", "/new", "/old/old", "/new/new"},
		{"^/service/([^/]+)(/.*)$", `\2/instance/\1`, "/service/foo/v1/api", "/v1/api/instance/foo"},
		{"one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"},
		{"^(.*?)one(.*)$", `\1two\2`, "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"},
		{"(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"},
		{"a", `\0\0`, "bab", "baab"},
		{"a", `\\`, "bab", `b\b`},
		{"a", "$1${x}$$", "bab", "b$1${x}$$b"},
		{"a(b)?c", `[\1]`, "ac abc", "[] [b]"},
		{"x", "y", "nothing", "nothing"},
		{"x*", "-", "abc", "-a-b-c-"},
		{"", "-", "ab", "-a-b-"},
		{"a", "", "banana", "bnn"},
		// What a real Envoy 1.40 makes of them.
		{`.*`, `\0-`, "/abbc", "/abbc-"},
		{`$`, `-`, "/abbc", "/abbc-"},
		{`\bfoo\b`, `X`, "/foo/foo", "/X/X"},
		{`(o)(o)?`, `\2\1`, "/foo/foo", "/foo/foo"},
		{"^a", "b", "aaa", "baa"},
		{`/(\d)(\d)(\d)(\d)(\d)(\d)(\d)(\d)(\d)`, `/\9\1`, "/123456789", "/91"},
	} {
		if got := mustRewrite(t, c.pattern, c.substitution).Replace(c.in); got != c.want {
			t.Errorf("%s to %s: %q becomes %q, want %q", c.pattern, c.substitution, c.in, got, c.want)
		}
	}
}

func TestRegexRewriteRefused(t *testing.T) {
	for _, c := range []struct{ pattern, substitution, says string }{
		{"(", "", "missing closing"},
		{"a", `\`, "ends with a backslash"},
		{"a", `\1`, "has no group 1"},
		{"(a)", `\2`, "has no group 2"},
		{"a", `\n`, "neither a group nor a backslash"},
		{strings.Repeat("a", MaxRegexLength+1), "", "the limit is 1024"},
	} {
		if _, err := NewRegexRewrite(c.pattern, c.substitution); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.20s to %s: the error is %v, want one that says %q", c.pattern, c.substitution, err, c.says)
		}
	}
}

// dumbReplace writes out each match in its turn.
func dumbReplace(re *regexp.Regexp, substitution, in string) string {
	var out strings.Builder
	pos := 0
	for _, at := range re.FindAllStringSubmatchIndex(in, -1) {
		out.WriteString(in[pos:at[0]])
		for i := 0; i < len(substitution); i++ {
			if substitution[i] != '\\' {
				out.WriteByte(substitution[i])
				continue
			}
			i++
			if n, err := strconv.Atoi(substitution[i : i+1]); err != nil {
				out.WriteByte('\\')
			} else if at[2*n] >= 0 {
				out.WriteString(in[at[2*n]:at[2*n+1]])
			}
		}
		pos = at[1]
	}
	out.WriteString(in[pos:])
	return out.String()
}

func FuzzRegexRewrite(f *testing.F) {
	f.Add("/(a+)", `/\1\1\\$`, "/aa/b")
	f.Fuzz(func(t *testing.T, pattern, substitution, in string) {
		r, err := NewRegexRewrite(pattern, substitution)
		if err != nil || len(in) > 200 {
			return
		}
		if got, want := r.Replace(in), dumbReplace(regexp.MustCompile(pattern), substitution, in); got != want {
			t.Errorf("%q to %q: %q becomes %q, want %q", pattern, substitution, in, got, want)
		}
	})
}

func TestRewritePath(t *testing.T) {
	prefix := func(kind PathKind, value string) Match { return Match{Path: PathMatch{Kind: kind, Value: value}} }
	to := func(s string) Rewrite { return Rewrite{HasPrefix: true, Prefix: s} }
	tpl := mustTemplate(t, "/v/{a}/{b=**}")
	tplRewrite, err := NewTemplateRewrite(tpl, "/{b}/{a}")
	if err != nil {
		t.Fatal(err)
	}
	template := Match{Path: PathMatch{Kind: PathTemplate, Template: tpl}}
	regex := Match{Path: PathMatch{Kind: PathRegex, Regex: mustRegex(t, "/a.*")}}
	for _, c := range []struct {
		name        string
		m           Match
		w           Rewrite
		path, query string
		want        string
	}{
		{"nothing", prefix(PathPrefix, "/a"), Rewrite{}, "/a/b", "q=1", "/a/b?q=1"},
		{"authority only", prefix(PathPrefix, "/a"), Rewrite{Host: "h"}, "/a/b", "q=1", "/a/b?q=1"},
		{"prefix", prefix(PathPrefix, "/a"), to("/x"), "/a/b", "", "/x/b"},
		{"prefix keeps the query", prefix(PathPrefix, "/a"), to("/x"), "/a/b", "a=/a", "/x/b?a=/a"},
		{"prefix is cut anywhere", prefix(PathPrefix, "/a"), to("/x"), "/abc", "", "/xbc"},
		{"prefix with a slash leaves two", prefix(PathPrefix, "/a"), to("/"), "/a/b", "", "//b"},
		{"prefix with a slash on both sides", prefix(PathPrefix, "/a/"), to("/"), "/a/b", "", "/b"},
		{"prefix, whatever the case", Match{Path: PathMatch{Value: "/AbC", IgnoreCase: true}}, to("/x"), "/aBc/Aa", "", "/x/Aa"},
		{"prefix that is not the beginning any more", prefix(PathPrefix, "/a"), to("/a/a"), "/a/b", "", "/a/a/b"},
		{"prefix counts bytes as they are sent", prefix(PathPrefix, "/a"), to("/x"), "/a%2Fb", "", "/x%2Fb"},
		{"prefix to nothing", prefix(PathPrefix, "/a"), to(""), "/a/b", "", "/b"},
		{"empty result", prefix(PathPrefix, "/a"), to(""), "/a", "q", "/a?q"},
		{"prefix with a query", prefix(PathPrefix, "/a"), to("/x?y="), "/a/b", "q=1", "/x?y=/b?q=1"},
		{"exact path is replaced as a whole", prefix(PathExact, "/a/b"), to("/x"), "/a/b", "q", "/x?q"},
		{"separated prefix", prefix(PathSeparatedPrefix, "/a"), to("/x/y"), "/a/b", "q", "/x/y/b?q"},
		{"separated prefix alone", prefix(PathSeparatedPrefix, "/a"), to("/x"), "/a", "", "/x"},
		{"regex path is replaced as a whole", regex, to("/x"), "/abc/d", "q", "/x?q"},
		{"parameters stay", Match{Path: PathMatch{Kind: PathExact, Value: "/a", IgnoreParameters: true}}, to("/x"), "/a;v=1", "", "/x;v=1"},
		{"regex", prefix(PathPrefix, "/"), Rewrite{Regex: mustRewrite(t, "^/a/(.*)$", `/\1/a`)}, "/a/b", "q=/a/c", "/b/a?q=/a/c"},
		{"regex does not see the query", prefix(PathPrefix, "/"), Rewrite{Regex: mustRewrite(t, "b", "c")}, "/a", "b=b", "/a?b=b"},
		{"regex to nothing", prefix(PathPrefix, "/"), Rewrite{Regex: mustRewrite(t, ".*", "")}, "/a", "q", "/a?q"},
		{"regex makes a query", prefix(PathPrefix, "/"), Rewrite{Regex: mustRewrite(t, "^/id/(.*)$", `/?id=\1`)}, "/id/7", "", "/?id=7"},
		{"template", template, Rewrite{Template: tplRewrite}, "/v/1/2/3", "q", "/2/3/1?q"},
		{"format", prefix(PathPrefix, "/"), Rewrite{PathFormat: mustFormat(t, "/new%REQ(x-a)%%REQ(none)%")}, "/a", "q=1", "/new/there?q=1"},
		{"format to nothing", prefix(PathPrefix, "/"), Rewrite{PathFormat: mustFormat(t, "%REQ(none)%")}, "/a", "q=1", "/a?q=1"},
	} {
		r := &Request{Path: c.path, RawQuery: c.query, Header: map[string][]string{"X-A": {"/there"}}}
		if !c.m.Matches(r, 0) {
			t.Errorf("%s: the route does not match %s", c.name, c.path)
		}
		got, query := c.w.Path(&c.m, r)
		if query != "" {
			got += "?" + query
		}
		if got != c.want {
			t.Errorf("%s: %s?%s becomes %s, want %s", c.name, c.path, c.query, got, c.want)
		}
		if err := c.w.Check(&c.m); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.w.Changes() != (c.name != "nothing") || c.w.ChangesAuthority() != (c.w.Host != "") {
			t.Errorf("%s: changes %v, the authority %v", c.name, c.w.Changes(), c.w.ChangesAuthority())
		}
	}
}

func TestRewriteAuthority(t *testing.T) {
	r := &Request{Method: "GET", Authority: "a.test:80", Path: "/host.test/x", RawQuery: "host=q", Header: map[string][]string{"X-Host": {"h.test", "second"}, "X-Empty": {""}}}
	for _, c := range []struct {
		name string
		w    Rewrite
		want string
	}{
		{"nothing", Rewrite{}, ""},
		{"path only", Rewrite{HasPrefix: true, Prefix: "/x"}, ""},
		{"literal", Rewrite{Host: "b.test"}, "b.test"},
		{"endpoint", Rewrite{HostAuto: true}, "endpoint.test"},
		{"header, the first value", Rewrite{HostHeader: NewHeaderName("x-host")}, "h.test"},
		{"header that is empty", Rewrite{HostHeader: NewHeaderName("x-empty")}, ""},
		{"header that is missing", Rewrite{HostHeader: NewHeaderName("x-none")}, ""},
		{"pseudo-header", Rewrite{HostHeader: NewHeaderName(":method")}, "GET"},
		{"path, without the query", Rewrite{HostPathRegex: mustRewrite(t, "^/([^/]+)/.*$", `\1`)}, "host.test"},
		{"path that is not matched", Rewrite{HostPathRegex: mustRewrite(t, "^/none$", `x`)}, "/host.test/x"},
		{"format", Rewrite{HostFormat: mustFormat(t, "prefix-%REQ(x-host)%")}, "prefix-h.test"},
		{"format without its header", Rewrite{HostFormat: mustFormat(t, "prefix-%REQ(x-none)%")}, "prefix--"},
		{"format of nothing", Rewrite{HostFormat: mustFormat(t, "%REQ(x-none)%")}, "-"},
	} {
		if got := c.w.Authority(r, "endpoint.test"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if err := c.w.Check(&Match{}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	auto := Rewrite{HostAuto: true}
	if got := auto.Authority(r, ""); got != "" {
		t.Errorf("an endpoint without a hostname makes the authority %q", got)
	}
}

func TestRewriteRefused(t *testing.T) {
	tpl := mustTemplate(t, "/{a}")
	other, err := NewTemplateRewrite(mustTemplate(t, "/{b}"), "/{b}")
	if err != nil {
		t.Fatal(err)
	}
	template := Match{Path: PathMatch{Kind: PathTemplate, Template: tpl}}
	for _, c := range []struct {
		m    Match
		w    Rewrite
		says string
	}{
		{Match{}, Rewrite{HasPrefix: true, Prefix: "/a", Regex: mustRewrite(t, "a", "b")}, "the path is changed in two ways"},
		{Match{}, Rewrite{Host: "a", HostAuto: true}, "the authority is changed in two ways"},
		{Match{}, Rewrite{Template: other}, "needs the path template"},
		{template, Rewrite{Template: other}, "needs the path template"},
		{template, Rewrite{HasPrefix: true, Prefix: "/a"}, "no prefix to replace"},
		{Match{}, Rewrite{HasPrefix: true, Prefix: "/a\r\nb"}, `has the character '\r'`},
		{Match{}, Rewrite{HasPrefix: true, Prefix: "/a b"}, "has the character ' '"},
		{Match{}, Rewrite{Host: "a\x00"}, `has the character '\x00'`},
		{Match{}, Rewrite{PathFormat: mustFormat(t, "/%UPSTREAM_HOST%")}, "not of UPSTREAM_HOST"},
		{Match{}, Rewrite{HostFormat: mustFormat(t, "%RESPONSE_CODE%")}, "not of RESPONSE_CODE"},
	} {
		if err := c.w.Check(&c.m); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: the error is %v, want one that says %q", c.w, err, c.says)
		}
	}
}

func TestAppendForwardedHost(t *testing.T) {
	for _, c := range []struct {
		there     []string
		authority string
		want      string
	}{
		{nil, "a.test", "a.test"},
		{[]string{""}, "a.test", "a.test"},
		{[]string{"b.test"}, "a.test", "b.test,a.test"},
		{[]string{"a.test"}, "a.test", "a.test"},
		{[]string{"b.test,a.test"}, "a.test", "b.test,a.test"},
		{[]string{"a.test,b.test"}, "a.test", "a.test,b.test,a.test"},
		{[]string{"a.test", "b.test"}, "c.test", "a.test,b.test,c.test"},
		{[]string{"a.test"}, "", "a.test"},
	} {
		for form, key := range map[HeaderForm]string{CanonicalHeaders: "X-Forwarded-Host", LowerHeaders: "x-forwarded-host"} {
			h := map[string][]string{}
			if c.there != nil {
				h[key] = append([]string(nil), c.there...)
			}
			before := h[key]
			AppendForwardedHost(h, form, c.authority)
			if got := strings.Join(h[key], "|"); got != c.want || len(h) != 1 {
				t.Errorf("%q and %q: %q, want %q", c.there, c.authority, h, c.want)
			}
			if strings.Join(before, "|") != strings.Join(c.there, "|") {
				t.Errorf("%q and %q: the values before are written to", c.there, c.authority)
			}
		}
	}
}
