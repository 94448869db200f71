package meshhttp

import (
	"bufio"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
)

// FuzzTarget: whatever net/http takes for a request target, the rules are asked
// about the path that the handler is given, in each of the two forms it has.
func FuzzTarget(f *testing.F) {
	for _, uri := range []string{
		"/", "/a?b=c", "/a%2fb/../c", "/a#b", "//a", "*", "http://a", "http://a?b", "http://u@a:1/b%20c?d", "mailto:x", "x:*", "/a\\b", "/%zz", "/\xc3\xa9", "/a%25%32%66b", "/;a=b/..",
	} {
		f.Add("GET", uri)
	}
	f.Add("CONNECT", "a:80")
	f.Add("CONNECT", "/a/../b")
	f.Add("OPTIONS", "*")
	options := identity.PathOptions{Normalize: true, MergeSlashes: true, EscapedSlashes: identity.UnescapeSlashes}
	f.Fuzz(func(t *testing.T, method, uri string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + uri + " HTTP/1.1\r\nHost: a\r\n\r\n")))
		if err != nil {
			return
		}
		for _, o := range []identity.PathOptions{{}, options} {
			var x entry
			path, query, rewritten := target(r)
			normal, outcome := o.Apply(path)
			if outcome != identity.PathGoOn {
				continue
			}
			access := &x.request.Access
			access.Path, access.RawQuery, access.DecodedPath = normal, query, r.URL.Path
			if normal != path || path == "/" {
				if access.DecodedPath, err = url.PathUnescape(normal); err != nil {
					continue // refused by the engine
				}
			}
			given := r.Clone(t.Context())
			if rewritten || normal != path {
				rewrite(given, access)
			}
			if given.URL.Path != access.DecodedPath || given.URL.RawQuery != query {
				t.Errorf("%s %q: rules see %q (%q) ? %q, the handler %q ? %q", method, uri, normal, access.DecodedPath, query, given.URL.Path, given.URL.RawQuery)
			}
			if plain, err := url.PathUnescape(normal); err == nil && plain != given.URL.Path {
				t.Errorf("%s %q: the path %q is not the handler's %q", method, uri, normal, given.URL.Path)
			}
			if strings.ContainsAny(normal, "?#") {
				t.Errorf("%s %q: the path is %q", method, uri, normal)
			}
			if again, err := url.ParseRequestURI(given.RequestURI); err == nil && strings.HasPrefix(given.RequestURI, "/") && again.Path != given.URL.Path {
				t.Errorf("%s %q: RequestURI %q, URL.Path %q", method, uri, given.RequestURI, given.URL.Path)
			}
		}
	})
}
