package meshhttp

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// TestRecordedHeadersOverHTTP sends those recorded cases that are about what a
// request may look like, and about the query, which rules on the path do not see.
func TestRecordedHeadersOverHTTP(t *testing.T) {
	var file struct {
		PathOps   []struct{ Op, In, Out string } `json:"path_ops"`
		HeaderOps []struct {
			Op, In string
			Out    any
		} `json:"header_ops"`
	}
	conformance.Load(t, "envoy-facts/path_host_header_normalisation.json", &file)
	leak.Check(t)
	h := newHouse(t, nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil)
	k := &talker{t: t, address: h.address}
	defer k.close()
	tally := conformance.Recorded(t, "envoy-facts/path_host_header_normalisation.json#header_ops")
	for _, c := range file.PathOps {
		path, _, _ := strings.Cut(c.In, "?")
		if c.Op != "remove_query_and_fragment" || path == "" || strings.Contains(path, "#") {
			tally.RunIn(t, "identity", "TestRecordedEnvoyPathsAndHosts")
			continue
		}
		// A rule on the path without the query decides.
		deny := authorizer(t, ruled(t, identity.Deny, rule("r", ptr(identity.PathIs(c.Out)), nil)))
		h.install(plain(&snapshot.FilterChain{Authorizer: deny}))
		if code := k.ask("GET", c.In, "Host: reviews"); code != http.StatusForbidden {
			tally.Fail(t, "%s %q: %d", c.Op, c.In, code)
			continue
		}
		if code := k.ask("GET", c.Out+"/x?"+c.In, "Host: reviews"); code != http.StatusOK {
			tally.Fail(t, "%s %q in the query: %d", c.Op, c.In, code)
			continue
		}
		tally.Pass()
	}
	h.install(plain(nil))
	for i, c := range file.HeaderOps {
		lines := []string{"Host: reviews"}
		switch c.Op {
		case "content_length_header":
			lines = append(lines, "Content-Length: "+c.In)
		case "authority_is_valid":
			lines[0] = "Host: " + c.In
		case "header_value_is_valid":
			lines = append(lines, "x-a: "+c.In)
		case "header_name_is_valid":
			lines = append(lines, c.In+": x")
		default:
			tally.RunIn(t, "internal/xds/compile", "TestConformanceHeaders")
			continue
		}
		want := http.StatusBadRequest
		if c.Out == true {
			want = http.StatusOK
		}
		code := k.ask("GET", "/", lines...)
		if strings.Contains(c.In, "@") && code == http.StatusBadRequest {
			tally.Differs(t, fmt.Sprintf("%s [%d]", c.Op, i))
			continue
		}
		if code != want {
			tally.Fail(t, "%s %q: %d, want %d", c.Op, c.In, code, want)
			continue
		}
		k.close() // what a refused request leaves behind is no next request
		tally.Pass()
	}
	tally.Check(t, "path_host_header_normalisation over HTTP", 11, len(file.PathOps)+len(file.HeaderOps)-11)
}
