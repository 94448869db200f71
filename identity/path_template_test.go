package identity

import (
	"regexp"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

func TestRecordedEnvoyPathTemplates(t *testing.T) {
	var file struct {
		Valid   []string `json:"valid_patterns"`
		Invalid []string `json:"invalid_patterns"`
		Match   []struct {
			Path, Pattern string
			Match         bool
		} `json:"match_cases"`
		Rewrite        []any `json:"rewrite_cases"`
		RewriteInvalid []any `json:"rewrite_invalid"`
		Shared         []any `json:"shared_variable_set"`
	}
	conformance.Load(t, "envoy-facts/path_template.json", &file)
	tally := conformance.Recorded(t, "envoy-facts/path_template.json")
	for _, pattern := range file.Valid {
		if _, err := ParsePathTemplate(pattern); err != nil {
			tally.Fail(t, "%v", err)
			continue
		}
		tally.Pass()
	}
	for _, pattern := range file.Invalid {
		if _, err := ParsePathTemplate(pattern); err == nil {
			tally.Fail(t, "%q was accepted", pattern)
			continue
		}
		tally.Pass()
	}
	for _, c := range file.Match {
		template, err := ParsePathTemplate(c.Pattern)
		if err != nil || template.Matches(c.Path) != c.Match {
			tally.Fail(t, "%q on %q: want %v (%v)", c.Pattern, c.Path, c.Match, err)
			continue
		}
		tally.Pass()
	}
	for range len(file.Rewrite) + len(file.RewriteInvalid) + len(file.Shared) {
		tally.RunIn(t, "routing", "TestRecordedPathTemplates") // rewriting a path from a template's variables is a rule of routes
	}
	tally.Check(t, "envoy-facts/path_template.json", 40, 14)
}

func TestPathTemplate(t *testing.T) {
	for _, c := range []struct {
		template, path string
		want           bool
	}{
		{"/", "/", true},
		{"/", "/a", false},
		{"/*", "/", false},
		{"/*", "/a", true},
		{"/*", "/a/", false},
		{"/**", "/", true},
		{"/**", "/a/b/", true},
		{"/a/**", "/a", false},
		{"/a/**", "/a/", true},
		{"/a/**/z", "/a/z", false},
		{"/a/**/z", "/a//z", true},
		{"/a/**/z", "/a/b/c/z", true},
		{"/a/**/z/", "/a/b/z/", true},
		{"/a/**/z/", "/a/b/z", false},
		{"/a/*.js", "/a/.js", false},
		{"/a/*.js", "/a/b.js", true},
		{"/a/*.js", "/a/b/c.js", false},
		{"/{v=api/*}/x", "/api/1/x", true},
		{"/{v=api/*}/x", "/api/x", false},
		{"/{v=**}/x", "/a/b/x", true},
		{"/a/b/", "/a/b", false},
		{"/a/b/", "/a/b/", true},
		// A template of a DENY rule must not be stepped around by an odd byte.
		{"/admin/*", "/admin/a*=b|{}", true},
	} {
		template, err := ParsePathTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		if template.Matches(c.path) != c.want {
			t.Errorf("%q on %q: want %v", c.template, c.path, c.want)
		}
	}
	for _, bad := range []string{"", "a", "/a//b", "/{", "/{}", "/{=a}", "/{a=}", "/{a=b/}", "/{a}/{a}", "/{1a}", "/a*", "/**/*", "/**x/y", "/a?b", "/" + strings.Repeat("a", maxTemplateLength)} {
		if _, err := ParsePathTemplate(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	template, _ := ParsePathTemplate("/api/*/users/{id}/**")
	if n := testing.AllocsPerRun(100, func() { template.Matches("/api/v1/users/7/x/y") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// templateRegexp is the plain reading of a template that has been accepted.
func templateRegexp(template string) *regexp.Regexp {
	named := regexp.MustCompile(`\{[a-zA-Z0-9_]+\}`)
	with := regexp.MustCompile(`\{[a-zA-Z0-9_]+=([^}]*)\}`)
	template = with.ReplaceAllString(named.ReplaceAllString(template, "*"), "$1")
	expr := regexp.QuoteMeta(template)
	expr = strings.ReplaceAll(expr, `\*\*`, `(?s:.*)`)
	return regexp.MustCompile(`\A` + strings.ReplaceAll(expr, `\*`, `[^/]+`) + `\z`)
}

func FuzzPathTemplate(f *testing.F) {
	f.Add("/api/*/{resource=*}/{method=**}", "/api/v1/a/b/c")
	f.Add("/{a=x/**}.js", "/x/y/z.js")
	f.Add("/**/z/", "/a//z/")
	f.Add("/{a}/*(", "/q/b(")
	f.Fuzz(func(t *testing.T, text, path string) {
		template, err := ParsePathTemplate(text)
		if err != nil || strings.ContainsAny(path, "\n") {
			return
		}
		if want := templateRegexp(text).MatchString(path); template.Matches(path) != want {
			t.Fatalf("%q on %q: want %v", text, path, want)
		}
	})
}
