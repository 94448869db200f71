package routing

import (
	"maps"
	"testing"
)

// sink keeps results from being optimised away.
var sink string

// TestTrafficAllocations pins what each rule allocates: nothing where it changes nothing.
func TestTrafficAllocations(t *testing.T) {
	r := &Request{
		Method: "GET", Scheme: "http", Authority: "reviews:9080", Path: "/api/v1/reviews/0", RawQuery: "page=2",
		Header: map[string][]string{"X-User": {"alice"}, "Cookie": {"a=b; session=abc"}, "Origin": {"https://a.test"}},
		Claims: map[string]any{"sub": "alice", "groups": []any{"dev", "ops"}},
	}
	v := &Values{Request: r, Status: 200}
	tpl := mustTemplate(t, "/api/{version}/**")
	tplRewrite, err := NewTemplateRewrite(tpl, "/{version}")
	if err != nil {
		t.Fatal(err)
	}
	m := Match{
		Path:   PathMatch{Kind: PathTemplate, Template: tpl},
		Claims: []ClaimMatch{{Path: []string{"sub"}, Value: Exact("alice", false)}, {Path: []string{"groups"}, Value: Exact("ops", false)}},
	}
	prefix := Match{Path: PathMatch{Value: "/api"}}
	remove, none, keep := HeaderChanges{Remove: []HeaderName{NewHeaderName("x-none")}}, HeaderChanges{}, HeaderChanges{Set: []HeaderChange{
		mustChange(t, "x-user", "bob", AddIfAbsent, false), mustChange(t, "x-other", "%REQ(x-none)%", OverwriteOrAdd, false),
	}}
	constant, one := HeaderChanges{Set: []HeaderChange{mustChange(t, "x-user", "bob", OverwriteOrAdd, false)}},
		HeaderChanges{Set: []HeaderChange{mustChange(t, "x-user", "%REQ(x-user)%", OverwriteOrAdd, false)}}
	made := HeaderChanges{Set: []HeaderChange{mustChange(t, "x-info", "%REQ(x-user)% at %ROUTE_NAME% %RESPONSE_CODE%", OverwriteOrAdd, false)}}
	hashes := []HashPolicy{{Header: NewHeaderName("x-user")}, {Kind: HashCookie, Cookie: HashCookieSpec{Name: "session", Issue: true}}, {Kind: HashSource}, {Kind: HashQuery, Query: "page"}}
	cors := CORS{Origins: []StringMatch{Exact("https://b.test", false)}}
	regex := mustRewrite(t, "^/none/(.*)$", `/\1`)
	own := maps.Clone(r.Header)
	buffer := make([]byte, 0, 64)
	hits := 0
	for _, c := range []struct {
		name string
		want float64
		f    func()
	}{
		{"template and claims", 0, func() {
			if m.Matches(r, 0) {
				hits++
			}
		}},
		{"no rewrite", 0, func() { sink, _ = (&Rewrite{}).Path(&prefix, r) }},
		{"prefix rewrite", 1, func() { sink, _ = (&Rewrite{HasPrefix: true, Prefix: "/new"}).Path(&prefix, r) }},
		{"regex that matches nothing", 0, func() { sink, _ = (&Rewrite{Regex: regex}).Path(&prefix, r) }},
		{"template rewrite", 1, func() { sink = tplRewrite.Replace(r.Path) }},
		{"authority", 0, func() { sink = (&Rewrite{HostHeader: NewHeaderName(":authority"), Host: "b.test"}).Authority(r, "") }},
		{"no changes", 0, func() { none.Apply(own, CanonicalHeaders, v) }},
		{"removal of nothing", 0, func() { remove.Apply(own, CanonicalHeaders, v) }},
		{"changes that do not apply", 0, func() { keep.Apply(own, CanonicalHeaders, v) }},
		{"one constant header", 1, func() { constant.Apply(own, CanonicalHeaders, v) }},
		{"one header from another", 1, func() { one.Apply(own, CanonicalHeaders, v) }},
		{"one header put together", 2, func() { made.Apply(own, CanonicalHeaders, v) }},
		{"format into a buffer", 0, func() { buffer = made.Set[0].Value.Append(buffer[:0], v) }},
		{"hash", 0, func() { HashOf(hashes, r, HashOrigin{Address: "10.0.0.1:80"}) }},
		{"no preflight", 0, func() { cors.Preflight(r) }},
		{"other origin", 0, func() { cors.Apply(r, own, CanonicalHeaders) }},
	} {
		if n := testing.AllocsPerRun(100, c.f); n > c.want {
			t.Errorf("%s allocates %v times, not %v", c.name, n, c.want)
		}
	}
	if hits == 0 {
		t.Error("the template does not match")
	}
}

func BenchmarkTemplate(b *testing.B) {
	tpl := mustTemplate(b, "/api/{version}/projects/{project}/**")
	re := dumbTemplate("/api/{version}/projects/{project}/**")
	path := "/api/v1/projects/sinew/locations/global/routes/canary"
	b.Run("template", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			tpl.Matches(path)
		}
	})
	b.Run("as an expression", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			re.MatchString(path)
		}
	})
}

func BenchmarkRewrite(b *testing.B) {
	r := &Request{Path: "/api/v1/reviews/0", RawQuery: "page=2", Authority: "reviews:9080"}
	m := Match{Path: PathMatch{Kind: PathSeparatedPrefix, Value: "/api"}}
	for name, w := range map[string]*Rewrite{
		"none": {}, "prefix": {HasPrefix: true, Prefix: "/new"}, "regex": {Regex: mustRewrite(b, "^/api/(v[0-9]+)/", `/\1/api/`)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				sink, _ = w.Path(&m, r)
			}
		})
	}
}

func BenchmarkHeaderChanges(b *testing.B) {
	h := map[string][]string{"X-User": {"alice"}, "X-Old": {"1"}, "Accept": {"*/*"}}
	v := &Values{Request: &Request{Header: h, Path: "/p"}, Route: "canary"}
	for name, c := range map[string]*HeaderChanges{
		"none":     {},
		"constant": {Set: []HeaderChange{mustChange(b, "x-a", "b", OverwriteOrAdd, false)}},
		"four": {Remove: []HeaderName{NewHeaderName("x-none")}, Set: []HeaderChange{
			mustChange(b, "x-a", "b", OverwriteOrAdd, false), mustChange(b, "x-b", "%REQ(x-user)%", OverwriteOrAdd, false), mustChange(b, "x-c", "%ROUTE_NAME%-%REQ(:path)%", OverwriteOrAdd, false),
		}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Apply(h, CanonicalHeaders, v)
			}
		})
	}
}

func BenchmarkHash(b *testing.B) {
	r := &Request{Header: map[string][]string{"X-User": {"alice"}, "Cookie": {"a=b; session=abc"}}}
	policies := []HashPolicy{{Header: NewHeaderName("x-user")}, {Kind: HashCookie, Cookie: HashCookieSpec{Name: "session"}}}
	b.ReportAllocs()
	for b.Loop() {
		HashOf(policies, r, HashOrigin{})
	}
}

func BenchmarkRedirect(b *testing.B) {
	d := Redirect{HTTPS: true, HasPrefix: true, Prefix: "/new", Status: 301}
	m := Match{Path: PathMatch{Value: "/old"}}
	r := &Request{Scheme: "http", Authority: "a.test:80", Path: "/old/x", RawQuery: "q=1"}
	b.ReportAllocs()
	for b.Loop() {
		sink = d.Location(&m, r)
	}
}
