package routing

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A condition as it is written down, and what it asks, said as plainly as
// possible: no form of headers, no kinds, no compiled values.

type plainString struct {
	kind, value string
	ignoreCase  bool
}

func (p plainString) compile(t *testing.T) StringMatch {
	switch p.kind {
	case "exact":
		return Exact(p.value, p.ignoreCase)
	case "prefix":
		return Prefix(p.value, p.ignoreCase)
	case "suffix":
		return Suffix(p.value, p.ignoreCase)
	case "contains":
		return Contains(p.value, p.ignoreCase)
	}
	return mustRegex(t, p.value)
}

func (p plainString) is(s string) bool {
	want := p.value
	if p.ignoreCase && p.kind != "regex" {
		s, want = dumbLower(s), dumbLower(want)
	}
	switch p.kind {
	case "exact":
		return s == want
	case "prefix":
		return strings.HasPrefix(s, want)
	case "suffix":
		return strings.HasSuffix(s, want)
	case "contains":
		return strings.Contains(s, want)
	}
	return regexp.MustCompile(`\A(?:` + want + `)\z`).MatchString(s)
}

type plainHeader struct {
	name                   string
	kind                   string // present, absent, range, string
	start, end             int64
	text                   plainString
	invert, missingAsEmpty bool
}

type plainMatch struct {
	pathKind, path  string
	ignoreCase, cut bool
	headers         []plainHeader
	query           []plainHeader // kind present, absent or string
	cookies         []plainHeader // text and invert
	claims          []plainHeader // name is a path with slashes
	grpc            bool
	perMillion      int // negative for all
}

type plainRequest struct {
	pseudo  map[string]string
	path    string
	query   string
	headers [][2]string
	claims  map[string]any
}

func (p *plainMatch) compile(t *testing.T) Match {
	m := Match{GRPC: p.grpc, Path: PathMatch{Value: p.path, IgnoreCase: p.ignoreCase, IgnoreParameters: p.cut}}
	switch p.pathKind {
	case "exact":
		m.Path.Kind = PathExact
	case "separated":
		m.Path.Kind = PathSeparatedPrefix
	case "regex":
		m.Path.Kind, m.Path.Regex = PathRegex, mustRegex(t, p.path)
	case "template":
		m.Path.Kind, m.Path.Template = PathTemplate, mustTemplate(t, p.path)
	}
	for _, h := range p.headers {
		c := HeaderMatch{Name: NewHeaderName(h.name), Invert: h.invert, MissingAsEmpty: h.missingAsEmpty, Present: h.kind == "present", Start: h.start, End: h.end}
		switch h.kind {
		case "string":
			c.Kind, c.String = HeaderString, h.text.compile(t)
		case "range":
			c.Kind = HeaderRange
		default:
			c.Kind = HeaderPresent
		}
		m.Headers = append(m.Headers, c)
	}
	for _, q := range p.query {
		c := QueryMatch{Name: q.name, Present: q.kind == "present"}
		if q.kind == "string" {
			c.Kind, c.String = QueryString, q.text.compile(t)
		}
		m.Query = append(m.Query, c)
	}
	for _, c := range p.cookies {
		m.Cookies = append(m.Cookies, CookieMatch{Name: c.name, Value: c.text.compile(t), Invert: c.invert})
	}
	for _, c := range p.claims {
		m.Claims = append(m.Claims, ClaimMatch{Path: strings.Split(c.name, "/"), Present: c.kind == "present", Value: c.text.compile(t), Invert: c.invert})
	}
	if p.perMillion >= 0 {
		m.Fraction = &Fraction{PerMillion: uint32(p.perMillion)}
	}
	return m
}

func (r *plainRequest) compile(form HeaderForm) *Request {
	out := &Request{
		Method: r.pseudo[":method"], Scheme: r.pseudo[":scheme"], Authority: r.pseudo[":authority"], Path: r.path, RawQuery: r.query,
		Header: map[string][]string{}, Form: form, Claims: r.claims,
	}
	for _, h := range r.headers {
		n := NewHeaderName(h[0])
		out.Header[n.key(form)] = append(out.Header[n.key(form)], h[1])
	}
	return out
}

// is decides what Match.Matches has to.
func (p *plainMatch) is(r *plainRequest, draw uint64) bool {
	path, want := r.path, p.path
	if p.cut {
		path = strings.Split(path, ";")[0]
	}
	if p.ignoreCase && p.pathKind != "regex" && p.pathKind != "template" {
		path, want = dumbLower(path), dumbLower(want)
	}
	switch p.pathKind {
	case "prefix":
		if !strings.HasPrefix(path, want) {
			return false
		}
	case "exact":
		if path != want {
			return false
		}
	case "separated":
		if !strings.HasPrefix(path+"/", want+"/") {
			return false
		}
	case "regex":
		if !regexp.MustCompile(`\A(?:` + want + `)\z`).MatchString(path) {
			return false
		}
	case "template":
		if !dumbTemplate(want).MatchString(path) {
			return false
		}
	}
	for _, h := range p.headers {
		if !h.header(r) {
			return false
		}
	}
	for _, q := range p.query {
		var values []string
		for _, pair := range strings.Split(r.query, "&") {
			if k, v, _ := strings.Cut(pair, "="); k == q.name && pair != "" {
				values = append(values, v)
			}
		}
		switch q.kind {
		case "present":
			if len(values) == 0 {
				return false
			}
		case "absent":
			if len(values) > 0 {
				return false
			}
		default:
			if len(values) == 0 || !q.text.is(values[0]) {
				return false
			}
		}
	}
	for _, c := range p.cookies {
		hit, seen := false, false
		for _, line := range r.values("cookie") {
			for _, pair := range strings.Split(line, ";") {
				if k, v, found := strings.Cut(strings.TrimSpace(pair), "="); found && k == c.name && !seen {
					hit, seen = c.text.is(v), true
				}
			}
		}
		if hit == c.invert {
			return false
		}
	}
	for _, c := range p.claims {
		var texts []string
		there := true
		value := any(r.claims)
		for _, key := range strings.Split(c.name, "/") {
			object, _ := value.(map[string]any)
			value, there = object[key]
			if !there {
				break
			}
		}
		if s, ok := value.(string); ok {
			texts = append(texts, s)
		}
		if list, ok := value.([]any); ok {
			for _, e := range list {
				if s, ok := e.(string); ok {
					texts = append(texts, s)
				}
			}
		}
		hit := there
		if c.kind == "string" {
			hit = there && slices.ContainsFunc(texts, c.text.is)
		}
		if hit == c.invert {
			return false
		}
	}
	if p.grpc {
		types := r.values("content-type")
		if len(types) == 0 || types[0] != "application/grpc" && !strings.HasPrefix(types[0], "application/grpc+") {
			return false
		}
	}
	return p.perMillion < 0 || draw%1_000_000 < uint64(p.perMillion)
}

func (r *plainRequest) values(name string) (values []string) {
	name = strings.ToLower(name)
	if name == "host" {
		name = ":authority"
	}
	if name == ":path" {
		if r.query != "" {
			return []string{r.path + "?" + r.query}
		}
		if r.path != "" {
			return []string{r.path}
		}
		return nil
	}
	if strings.HasPrefix(name, ":") {
		if v := r.pseudo[name]; v != "" {
			return []string{v}
		}
		return nil
	}
	for _, h := range r.headers {
		if strings.EqualFold(h[0], name) {
			values = append(values, h[1])
		}
	}
	return values
}

func (h *plainHeader) header(r *plainRequest) bool {
	values := r.values(h.name)
	if len(values) == 0 && h.missingAsEmpty {
		values = []string{""}
	}
	switch h.kind {
	case "present":
		return (len(values) > 0) != h.invert
	case "absent":
		return (len(values) == 0) != h.invert
	}
	if len(values) == 0 {
		return false
	}
	hit := slices.ContainsFunc(values, func(v string) bool {
		if h.kind == "string" {
			return h.text.is(v)
		}
		n, err := strconv.ParseInt(v, 10, 64)
		return err == nil && n >= h.start && n < h.end
	})
	return hit != h.invert
}

// TestMatchOracle compares whole conditions with the plain words, on requests
// made of the same few pieces, so that about a third match.
func TestMatchOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	chance := func(n int) bool { return random.IntN(n) == 0 }
	text := func() plainString {
		p := plainString{kind: pick("exact", "prefix", "suffix", "contains", "regex"), value: pick("a", "A", "ab", "", "b", "7"), ignoreCase: chance(3)}
		if p.kind == "regex" {
			p.value, p.ignoreCase = pick("a|b", "[ab]+", ".*", "(?i)A", ""), false
		}
		return p
	}
	matched, rounds := 0, 30_000
	for range rounds {
		p := plainMatch{pathKind: pick("prefix", "prefix", "exact", "separated", "regex", "template"), ignoreCase: chance(3), cut: chance(4), grpc: chance(8), perMillion: -1}
		switch p.pathKind {
		case "regex":
			p.path = pick("/a.*", "/|/a", ".*", "/[ab]/b")
		case "template":
			p.path = pick("/**", "/a/*", "/{x}", "/*/{y=**}", "/a/**")
		default:
			p.path = pick("/", "/", "/a", "/A", "/a/b")
		}
		if chance(4) {
			p.perMillion = random.IntN(3) * 500_000
		}
		for range random.IntN(3) {
			p.headers = append(p.headers, plainHeader{
				name: pick("x-a", "X-B", ":method", "host", ":path", ":scheme", "content-type", ":status"), kind: pick("present", "absent", "range", "string", "string"),
				start: int64(random.IntN(9)), end: int64(random.IntN(12)), text: text(), invert: chance(3), missingAsEmpty: chance(4),
			})
		}
		if chance(3) {
			p.query = append(p.query, plainHeader{name: pick("q", "a", "Q"), kind: pick("present", "absent", "string"), text: text()})
		}
		if chance(3) {
			p.claims = append(p.claims, plainHeader{name: pick("sub", "list", "o/sub", "o/list", "o", "none"), kind: pick("present", "string"), text: text(), invert: chance(2)})
		}
		if chance(4) {
			p.cookies = append(p.cookies, plainHeader{name: pick("a", "b"), text: text(), invert: chance(2)})
		}
		r := plainRequest{
			pseudo: map[string]string{":method": pick("GET", "a", ""), ":scheme": pick("http", "b"), ":authority": pick("a", "ab", "")},
			path:   pick("/", "/a", "/A/b", "/a/b", "/ab", "/a;x/b", "/a/", "/a%2Fb", "/a*", "/a\x00b", ""),
			query:  pick("", "", "q", "q=a", "q=b&q=a", "a=ab&q", "Q=a", "=a", "&&"),
			claims: map[string]any{"sub": pick("a", "b", ""), "list": []any{pick("a", "ab"), 7.0, "b"}, "o": map[string]any{"sub": "a", "list": []any{"b"}}},
		}
		if chance(5) {
			r.claims = nil
		}
		for range random.IntN(4) {
			r.headers = append(r.headers, [2]string{pick("x-a", "X-A", "x-b"), pick("a", "b", "ab", "7", "", "a,b", "A", "a\x00")})
		}
		for range random.IntN(3) {
			r.headers = append(r.headers, [2]string{"Cookie", pick("a=b", "a=a; b=ab", "b=; a=7", "a", "b=a;a=A;a=b")})
		}
		if chance(2) {
			r.headers = append(r.headers, [2]string{"Content-Type", pick("application/grpc", "application/grpc+proto", "application/grpc-web", "a")})
		}
		m, draw := p.compile(t), uint64(random.IntN(2_000_000))
		want := p.is(&r, draw)
		if want {
			matched++
		}
		for _, form := range []HeaderForm{CanonicalHeaders, LowerHeaders} {
			if got := m.Matches(r.compile(form), draw); got != want {
				t.Fatalf("%+v on %s, draw %d: %v, want %v", p, fmt.Sprintf("%+q", r), draw, got, want)
			}
		}
	}
	if matched < rounds/20 || matched > rounds*9/10 {
		t.Errorf("%d of %d matched: the pieces tell little", matched, rounds)
	}
}

// TestKnownEvasions are ways in which rules of other products were stepped
// around: each request has to be seen as what the destination sees.
func TestKnownEvasions(t *testing.T) {
	exact := func(path string) Match { return Match{Path: PathMatch{Kind: PathExact, Value: path}} }
	value := func(s string) Match {
		return Match{Headers: []HeaderMatch{{Name: NewHeaderName("x-role"), String: Exact(s, false)}}}
	}
	not := func(s string) Match {
		return Match{Headers: []HeaderMatch{{Name: NewHeaderName("x-role"), String: Exact(s, false), Invert: true}}}
	}
	for _, c := range []struct {
		name string
		m    Match
		r    Request
		want bool
	}{
		{"a header twice still has each value", value("admin"), Request{Header: map[string][]string{"X-Role": {"user", "admin"}}}, true},
		{"a header twice does not get around an inverted condition", not("admin"), Request{Header: map[string][]string{"X-Role": {"user", "admin"}}}, false},
		{"a comma is part of a value", value("admin"), Request{Header: map[string][]string{"X-Role": {"admin,user"}}}, false},
		{"an empty value is there", not("admin"), Request{Header: map[string][]string{"X-Role": {""}}}, true},
		{"a missing header fulfils no inverted condition", not("admin"), Request{}, false},
		{"NUL is a character", value("admin"), Request{Header: map[string][]string{"X-Role": {"admin\x00"}}}, false},
		{"white space is part of a value", value("admin"), Request{Header: map[string][]string{"X-Role": {" admin"}}}, false},
		{"an encoded slash is no slash", exact("/a/b"), Request{Path: "/a%2Fb"}, false},
		{"two slashes are two", exact("/a/b"), Request{Path: "/a//b"}, false},
		{"dots are not resolved", exact("/b"), Request{Path: "/a/../b"}, false},
		{"NUL in a path", exact("/a"), Request{Path: "/a\x00"}, false},
		{"an encoded NUL", exact("/a"), Request{Path: "/a%00"}, false},
		{"a fragment is part of the path", exact("/a"), Request{Path: "/a#b"}, false},
		{"parameters are part of the path", exact("/a"), Request{Path: "/a;b"}, false},
		{"an encoded letter is another text", exact("/a"), Request{Path: "/%61"}, false},
		{"a line end does not end an expression", Match{Path: PathMatch{Kind: PathRegex, Regex: mustRegex(t, "/a")}}, Request{Path: "/a\n"}, false},
		{"nor begins one", Match{Path: PathMatch{Kind: PathRegex, Regex: mustRegex(t, "/a")}}, Request{Path: "/x\n/a"}, false},
		{"only ASCII letters have two cases", Match{Path: PathMatch{Kind: PathExact, Value: "/k", IgnoreCase: true}}, Request{Path: "/\u212a"}, false},
		{"a template's wildcard takes no slash", Match{Path: PathMatch{Kind: PathTemplate, Template: mustTemplate(t, "/a/*")}}, Request{Path: "/a/b/c"}, false},
		{"the second value of a parameter does not count", Match{Query: []QueryMatch{{Name: "q", Kind: QueryString, String: Exact("a", false)}}}, Request{RawQuery: "q=b&q=a"}, false},
		{"an encoded name is another parameter", Match{Query: []QueryMatch{{Name: "q", Present: true}}}, Request{RawQuery: "%71=a"}, false},
		{"no claims fulfil no claim", Match{Claims: []ClaimMatch{{Path: []string{"sub"}, Value: Prefix("", false)}}}, Request{}, false},
	} {
		if got := c.m.Matches(&c.r, 0); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
