package meshhttp

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// TestRecordedIstioPathsOverHTTP sends each recorded path to a server behind the
// handler and asks for the path that the server's handler sees.
func TestRecordedIstioPathsOverHTTP(t *testing.T) {
	var file struct {
		Cases []struct{ Normalization, In, Out string }
	}
	conformance.Load(t, "istio/path_normalization.json", &file)
	leak.Check(t)
	var uri string
	h := newHouse(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uri, _, _ = strings.Cut(r.RequestURI, "?")
	}), nil)
	k := &talker{t: t, address: h.address}
	defer k.close()
	tally := conformance.Recorded(t, "istio/path_normalization.json")
	for _, c := range file.Cases {
		h.install(plain(&snapshot.FilterChain{Paths: must(identity.NamedPathOptions(c.Normalization))}))
		path, _, _ := strings.Cut(c.In, "#") // the recorded client does not send the fragment
		uri = ""
		code := k.ask("GET", path, "Host: reviews")
		got := uri
		if code == 400 {
			got = "400"
		}
		if got != c.Out {
			tally.Fail(t, "%s %q: %d %q, want %q", c.Normalization, c.In, code, got, c.Out)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "path_normalization over HTTP", 172, 0)
}

// TestRecordedAdvisoriesOverHTTP runs those cases of Istio's and Envoy's security
// bulletins that are about paths and hosts through server and handler.
func TestRecordedAdvisoriesOverHTTP(t *testing.T) {
	var file struct {
		Advisories []struct {
			ID     string
			Policy struct{ Paths, Hosts []string }
			Cases  []struct {
				Normalization, Path, Host string
				Hosts                     []string
				Expect                    json.RawMessage
			}
		}
	}
	conformance.Load(t, "istio/security_advisories.json", &file)
	leak.Check(t)
	tally := conformance.Recorded(t, "istio/security_advisories.json")
	h := newHouse(t, nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil)
	k := &talker{t: t, address: h.address}
	defer k.close()
	for _, adv := range file.Advisories {
		for _, c := range adv.Cases {
			var expect string
			_ = json.Unmarshal(c.Expect, &expect)
			var conditions []identity.Condition
			target, host := "/", "reviews"
			switch {
			case c.Path != "" && len(adv.Policy.Paths) > 0:
				target = c.Path
				for _, p := range adv.Policy.Paths {
					conditions = append(conditions, identity.PathIs(p))
				}
			case c.Host != "" && len(c.Hosts) == 0 && len(adv.Policy.Hosts) > 0:
				host = c.Host
				for _, name := range adv.Policy.Hosts {
					conditions = append(conditions, must(identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(":authority"), String: routing.Exact(name, true)})))
				}
			default:
				tally.RunIn(t, "xdsserver/translate", "TestIstioAdvisories") // not about a path or a host that is denied
				continue
			}
			deny := authorizer(t, ruled(t, identity.Deny, rule("r", ptr(must(identity.AnyOf(conditions...))), nil)))
			h.install(plain(&snapshot.FilterChain{Paths: must(identity.NamedPathOptions(c.Normalization)), Authorizer: deny}))
			code := k.ask("GET", target, "Host: "+host)
			if (code == 200) != strings.HasPrefix(expect, "allow") {
				tally.Fail(t, "%s %+v: %d, want %s", adv.ID, c, code, expect)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "security_advisories over HTTP", 10, 8)
}
