package routing

import (
	"strings"
	"testing"
)

func TestPathMatch(t *testing.T) {
	for _, c := range []struct {
		name string
		m    PathMatch
		yes  []string
		no   []string
	}{
		{"zero value", PathMatch{}, []string{"", "/", "/a"}, nil},
		{"prefix", PathMatch{Value: "/a"}, []string{"/a", "/ab", "/a/b"}, []string{"/", "/A", "a"}},
		{"prefix, ignoring case", PathMatch{Value: "/Ab", IgnoreCase: true}, []string{"/aB", "/ABC"}, []string{"/a"}},
		{"exact", PathMatch{Kind: PathExact, Value: "/a"}, []string{"/a"}, []string{"/a/", "/ab", "/A", ""}},
		{"exact, ignoring case", PathMatch{Kind: PathExact, Value: "/A", IgnoreCase: true}, []string{"/a"}, []string{"/ab"}},
		{"separated prefix", PathMatch{Kind: PathSeparatedPrefix, Value: "/a"}, []string{"/a", "/a/", "/a/b"}, []string{"/ab", "/", "/A/b"}},
		{"separated prefix, ignoring case", PathMatch{Kind: PathSeparatedPrefix, Value: "/a", IgnoreCase: true}, []string{"/A", "/A/b"}, []string{"/AB"}},
		{"regex", PathMatch{Kind: PathRegex, Regex: mustRegex(t, "/a/[0-9]+")}, []string{"/a/12"}, []string{"/a/12/", "/a/", "/b/1"}},
		{"escapes are not decoded", PathMatch{Value: "/a/"}, []string{"/a/b"}, []string{"/a%2Fb"}},
	} {
		for _, p := range c.yes {
			if !c.m.Matches(p) {
				t.Errorf("%s: %q does not match", c.name, p)
			}
		}
		for _, p := range c.no {
			if c.m.Matches(p) {
				t.Errorf("%s: %q matches", c.name, p)
			}
		}
	}
}

func FuzzPathMatch(f *testing.F) {
	f.Add(uint8(3), "/a", "/A/b", true)
	f.Fuzz(func(t *testing.T, kind uint8, value, path string, ignoreCase bool) {
		m := PathMatch{Kind: []PathKind{PathPrefix, PathExact, PathSeparatedPrefix}[kind%3], Value: value, IgnoreCase: ignoreCase}
		v, p := value, path
		if ignoreCase {
			v, p = dumbLower(v), dumbLower(p)
		}
		want := false
		switch m.Kind {
		case PathPrefix:
			want = strings.HasPrefix(p, v)
		case PathExact:
			want = p == v
		case PathSeparatedPrefix:
			want = p == v || strings.HasPrefix(p, v+"/")
		}
		if got := m.Matches(path); got != want {
			t.Errorf("%+v on %q: %v, want %v", m, path, got, want)
		}
	})
}

// TestMatchNeedsAll takes one condition away at a time from a request that fulfils all.
func TestMatchNeedsAll(t *testing.T) {
	m := Match{
		Path:     PathMatch{Value: "/a"},
		Headers:  []HeaderMatch{{Name: NewHeaderName("x-a"), String: Exact("1", false)}, {Name: NewHeaderName(":method"), String: Exact("POST", false)}},
		Query:    []QueryMatch{{Name: "q", Present: true}},
		GRPC:     true,
		Fraction: &Fraction{PerMillion: 10},
	}
	request := func() (*Request, uint64) {
		return &Request{Method: "POST", Path: "/a/b", RawQuery: "q", Header: map[string][]string{"X-A": {"1"}, "Content-Type": {"application/grpc"}}}, 9
	}
	if r, draw := request(); !m.Matches(r, draw) {
		t.Fatal("a request that fulfils every condition does not match")
	}
	for name, spoil := range map[string]func(*Request, *uint64){
		"path":     func(r *Request, _ *uint64) { r.Path = "/b" },
		"header":   func(r *Request, _ *uint64) { delete(r.Header, "X-A") },
		"method":   func(r *Request, _ *uint64) { r.Method = "GET" },
		"query":    func(r *Request, _ *uint64) { r.RawQuery = "" },
		"gRPC":     func(r *Request, _ *uint64) { r.Header["Content-Type"] = []string{"application/json"} },
		"fraction": func(_ *Request, draw *uint64) { *draw = 10 },
	} {
		r, draw := request()
		spoil(r, &draw)
		if m.Matches(r, draw) {
			t.Errorf("a request with another %s matches", name)
		}
	}
	if zero := (Match{}); !zero.Matches(&Request{}, 7) {
		t.Error("the zero value does not match")
	}
}

func TestFractionBoundaries(t *testing.T) {
	for _, c := range []struct {
		perMillion uint32
		draw       uint64
		want       bool
	}{
		{0, 0, false},
		{0, 1_000_000, false},
		{1, 0, true},
		{1, 1, false},
		{500_000, 499_999, true},
		{500_000, 500_000, false},
		{500_000, 1_499_999, true},
		{999_999, 999_998, true},
		{999_999, 999_999, false},
		{1_000_000, 999_999, true},
		{1_000_000, 1<<64 - 1, true},
	} {
		if got := (Fraction{c.perMillion}).Matches(c.draw); got != c.want {
			t.Errorf("%d per million on draw %d: %v, want %v", c.perMillion, c.draw, got, c.want)
		}
	}
	n := 0
	for draw := range uint64(1_000_000) {
		if (Fraction{250_000}).Matches(draw) {
			n++
		}
	}
	if n != 250_000 {
		t.Errorf("25 %% match %d of 1,000,000 draws", n)
	}
}

func TestIsGRPC(t *testing.T) {
	for contentType, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc+": true,
		"application/grpc-web": false, "application/grpcx": false, "application/json": false, "": false, "application/grpc;x": false,
	} {
		if got := IsGRPC(header("Content-Type", contentType)); got != want {
			t.Errorf("content type %q: %v, want %v", contentType, got, want)
		}
	}
	if IsGRPC(&Request{}) {
		t.Error("a request without a content type is gRPC")
	}
}
