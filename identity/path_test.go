package identity

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

func namedPathOptions(t testing.TB, name string) PathOptions {
	t.Helper()
	o, err := NamedPathOptions(name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestApplyPath(t *testing.T) {
	for _, c := range []struct {
		options, in, want string
		outcome           PathOutcome
	}{
		{"NONE", "/a//b/../%61", "/a//b/../%61", PathGoOn},
		{"NONE", "/a#b", "", PathRefuse},
		{"NONE", "a", "", PathRefuse},
		{"NONE", "\\a", "", PathRefuse},
		{"NONE", "*", "*", PathGoOn},
		{"BASE", "*", "*", PathGoOn},
		{"BASE", "", "", PathGoOn},
		{"BASE", "pkg.Service/Method", "", PathRefuse},
		{"BASE", "http://x/admin", "", PathRefuse},
		{"BASE", "\\admin", "/admin", PathGoOn},
		{"BASE", "/..", "/", PathGoOn},
		{"BASE", "/.", "/", PathGoOn},
		{"BASE", "/a/..", "/", PathGoOn},
		{"BASE", "/a/b/..", "/a/", PathGoOn},
		{"BASE", "/a/./../b", "/b", PathGoOn},
		{"BASE", "/a/.b", "/a/.b", PathGoOn},
		{"BASE", "/a/..b/...", "/a/..b/...", PathGoOn},
		{"BASE", "//..", "/", PathGoOn},
		{"BASE", "/%2E%2e/a", "/a", PathGoOn},
		{"BASE", "/a%2f..%2fb", "/a%2f..%2fb", PathGoOn},
		{"BASE", "/a b<é", "/a%20b%3C%C3%A9", PathGoOn},
		{"BASE", "/a;x=1/../b", "/b", PathGoOn},
		{"BASE", "/a\x00", "", PathRefuse},
		{"BASE", "/a%00", "", PathRefuse},
		{"BASE", "/%%32e/a", "", PathRefuse},
		{"BASE", "/a%", "", PathRefuse},
		{"BASE", "/a%4", "", PathRefuse},
		{"BASE", "/a%zz", "", PathRefuse},
		{"BASE", "/%2561", "/%2561", PathGoOn},
		{"MERGE_SLASHES", "/a/..//b///", "/b/", PathGoOn},
		{"DECODE_AND_MERGE_SLASHES", "/x%2f%2e%2E%5Cadmin", "/admin", PathGoOn},
	} {
		got, outcome := namedPathOptions(t, c.options).Apply(c.in)
		if got != c.want || outcome != c.outcome {
			t.Errorf("%s %q: %q, %v, want %q, %v", c.options, c.in, got, outcome, c.want, c.outcome)
		}
	}
	if _, err := NamedPathOptions("base"); err == nil {
		t.Error("an unknown name of a normalization was accepted")
	}
}

func TestPathOptionsOfACleanPathCostNothing(t *testing.T) {
	o := namedPathOptions(t, "DECODE_AND_MERGE_SLASHES")
	if n := testing.AllocsPerRun(100, func() { o.Apply("/reviews/0/ratings.json") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestEveryByteInAPath holds the classes of bytes against what RFC 3986 says of them.
func TestEveryByteInAPath(t *testing.T) {
	o := namedPathOptions(t, "BASE")
	for c := range 256 {
		raw, escaped := "/x"+string([]byte{byte(c)}), fmt.Sprintf("/x%%%02x", c)
		got, outcome := o.Apply(escaped)
		unreserved := url.PathEscape(string([]byte{byte(c)})) == string([]byte{byte(c)}) && !strings.ContainsRune("$&+=:@", rune(c))
		switch {
		case c == 0:
			if outcome != PathRefuse {
				t.Errorf("%s was not refused", escaped)
			}
		case unreserved && got != raw, !unreserved && got != escaped:
			t.Errorf("%s became %q", escaped, got)
		}
		got, outcome = o.Apply(raw)
		if outcome == PathRefuse {
			if c != 0 && c != '#' && c != '%' {
				t.Errorf("%q was refused", raw)
			}
			continue
		}
		// The handler reads the path unescaped: that must be what was sent.
		decoded, err := url.PathUnescape(got)
		if want := strings.ReplaceAll(raw, "\\", "/"); err != nil || decoded != want {
			t.Errorf("%q became %q, which is read as %q (%v)", raw, got, decoded, err)
		}
	}
}

// FuzzPath: the result is a fixed point, has no dot segment, and none of what
// the options promise to remove.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/a/b/../../c", "/%2e%2e/", "/a//b", "/x%2f..%5c/%2Fabc", "\\admin", "/%%32e", "/a#b", "*", "/%c0%af", "/."} {
		f.Add(seed, uint8(7))
	}
	f.Fuzz(func(t *testing.T, path string, bits uint8) {
		o := PathOptions{Normalize: bits&1 != 0, MergeSlashes: bits&2 != 0, EscapedSlashes: EscapedSlashes(bits >> 2 & 3)}
		got, outcome := o.Apply(path)
		if outcome == PathRefuse {
			return
		}
		again, outcome := o.Apply(got)
		if again != got || outcome != PathGoOn {
			t.Fatalf("%+v %q: %q, then %q (%v)", o, path, got, again, outcome)
		}
		if path == "" || path == "*" {
			return
		}
		if got[0] != '/' || strings.Contains(got, "#") {
			t.Fatalf("%+v %q: %q", o, path, got)
		}
		if o.MergeSlashes && strings.Contains(got, "//") {
			t.Fatalf("%+v %q: %q has two slashes together", o, path, got)
		}
		if !o.Normalize {
			return
		}
		for segment := range strings.SplitSeq(strings.ToLower(got), "/") {
			if s := strings.ReplaceAll(segment, "%2e", "."); s == "." || s == ".." {
				t.Fatalf("%+v %q: %q has a dot segment", o, path, got)
			}
		}
		decoded, err := url.PathUnescape(got)
		if err != nil || strings.ContainsAny(decoded, "\x00") || strings.Contains(got, "\\") {
			t.Fatalf("%+v %q: %q reads %q (%v)", o, path, got, decoded, err)
		}
		if o.EscapedSlashes != KeepEscapedSlashes && strings.Contains(strings.ToLower(got), "%2f") {
			t.Fatalf("%+v %q: %q has an escaped slash", o, path, got)
		}
	})
}

func TestRecordedEnvoyPathsAndHosts(t *testing.T) {
	var file struct {
		PathOps []struct {
			Op, In, Out string
			Found       bool
		} `json:"path_ops"`
		Pipeline []struct {
			Config struct {
				Normalize bool   `json:"normalize_path"`
				Merge     bool   `json:"merge_slashes"`
				Escaped   string `json:"path_with_escaped_slashes_action"`
			}
			Path, Action string
			Out          string `json:"path_out"`
		} `json:"hcm_pipeline"`
		HostOps []struct {
			Op   string
			Port int `json:"listener_port"`
			In   string
			Out  any
		} `json:"host_ops"`
	}
	conformance.Load(t, "envoy-facts/path_host_header_normalisation.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/path_host_header_normalisation.json")
	elsewhere := 0
	for i, c := range file.PathOps {
		got := ""
		switch c.Op {
		case "merge_slashes":
			got = mergeSlashes(c.In)
		case "unescape_slashes":
			path, query, _ := strings.Cut(c.In, "?")
			found := false
			got, found = unescapeSlashes(path)
			if query != "" {
				got += "?" + query
			}
			if found != c.Found {
				tally.Fail(t, "%s %q: found %v", c.Op, c.In, found)
				continue
			}
		case "normalize_path(RFC3986, chromium canonicalizer)":
			path, outcome := PathOptions{Normalize: true}.Apply(c.In)
			if got = path; outcome == PathRefuse {
				got = "REJECT"
			}
		case "remove_query_and_fragment":
			// The path comes without a query; who takes that off is the adapter.
			path, _, _ := strings.Cut(c.In, "?")
			_, outcome := PathOptions{}.Apply(path)
			if outcome == PathRefuse || path == "" {
				tally.Differs(t, fmt.Sprintf("path_ops [%d]", i))
			} else {
				tally.RunIn(t, "transport/meshhttp", "TestRecordedHeadersOverHTTP")
			}
			elsewhere++
			continue
		default:
			t.Fatalf("%q is not known", c.Op)
		}
		if got != c.Out {
			tally.Fail(t, "%s %q: %q, want %q", c.Op, c.In, got, c.Out)
			continue
		}
		tally.Pass()
	}
	escaped := map[string]EscapedSlashes{"": KeepEscapedSlashes, "KEEP_UNCHANGED": KeepEscapedSlashes, "REJECT_REQUEST": RejectEscapedSlashes, "UNESCAPE_AND_FORWARD": UnescapeSlashes, "UNESCAPE_AND_REDIRECT": UnescapeSlashesAndRedirect}
	outcomes := map[PathOutcome]string{PathGoOn: "Continue", PathRefuse: "Reject", PathRedirect: "Redirect"}
	for _, c := range file.Pipeline {
		action, ok := escaped[c.Config.Escaped]
		got, outcome := PathOptions{Normalize: c.Config.Normalize, MergeSlashes: c.Config.Merge, EscapedSlashes: action}.Apply(c.Path)
		if !ok || got != c.Out || outcomes[outcome] != c.Action {
			tally.Fail(t, "%+v: %q, %v", c, got, outcomes[outcome])
			continue
		}
		tally.Pass()
	}
	for _, c := range file.HostOps {
		var got any
		switch c.Op {
		case "strip_matching_host_port":
			got = HostOptions{Port: StripOwnPort}.Apply(c.In, uint16(c.Port))
		case "strip_trailing_host_dot":
			got = HostOptions{Dot: true}.Apply(c.In, 0)
		case "strip_matching_host_port + strip_trailing_host_dot":
			got = HostOptions{Port: StripOwnPort, Dot: true}.Apply(c.In, uint16(c.Port))
		case "host_has_port":
			_, p := HostPort(c.In)
			got = p != ""
		}
		if got != c.Out {
			tally.Fail(t, "%s %q: %v, want %v", c.Op, c.In, got, c.Out)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "path_host_header_normalisation", 54, elsewhere)
}

func TestRecordedIstioPaths(t *testing.T) {
	var file struct {
		Cases []struct{ Normalization, In, Out string }
	}
	conformance.Load(t, "istio/path_normalization.json", &file)
	tally := conformance.Recorded(t, "istio/path_normalization.json")
	for _, c := range file.Cases {
		path, _, _ := strings.Cut(c.In, "#") // the recorded client does not send the fragment
		got, outcome := namedPathOptions(t, c.Normalization).Apply(path)
		if outcome == PathRefuse {
			got = "400"
		}
		if got != c.Out {
			tally.Fail(t, "%s %q: %q, want %q", c.Normalization, c.In, got, c.Out)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "path_normalization", 172, 0)
}

func TestHosts(t *testing.T) {
	for _, c := range []struct{ in, host, port, bare string }{
		{"a.b:80", "a.b", "80", "a.b"},
		{"a.b.:80", "a.b.", "80", "a.b"},
		{"a.b:", "a.b:", "", "a.b"},
		{"a.b:x", "a.b:x", "", "a.b"},
		{"a.b.:", "a.b.:", "", "a.b"},
		{"[::1]:", "[::1]:", "", "[::1]"},
		{"[::1]:80", "[::1]", "80", "[::1]"},
		{"::1:80", "::1:80", "", "::1:80"},
		{"a:b:80", "a:b:80", "", "a:b:80"},
	} {
		host, port := HostPort(c.in)
		if host != c.host || port != c.port || bareHost(c.in) != c.bare {
			t.Errorf("%q: %q, %q, %q", c.in, host, port, bareHost(c.in))
		}
	}
	for _, c := range []struct {
		options  HostOptions
		in, want string
	}{
		{HostOptions{}, "a.b.:80", "a.b.:80"},
		{HostOptions{Dot: true}, "a.b.:80", "a.b:80"},
		{HostOptions{Port: StripOwnPort}, "a.b:80", "a.b"},
		{HostOptions{Port: StripOwnPort}, "a.b:81", "a.b:81"},
		{HostOptions{Port: StripAnyPort}, "a.b:81", "a.b"},
		{HostOptions{Port: StripAnyPort, Dot: true}, "a.b.:81", "a.b"},
		{HostOptions{Port: StripAnyPort}, "[::1]:81", "[::1]"},
		{HostOptions{Port: StripAnyPort}, "::1", "::1"},
	} {
		if got := c.options.Apply(c.in, 80); got != c.want {
			t.Errorf("%+v of %q: %q, want %q", c.options, c.in, got, c.want)
		}
	}
}
