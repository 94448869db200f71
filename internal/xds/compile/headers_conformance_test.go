package compile

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/routing"
)

// Which headers configuration may set, and what it may ask of a request's
// headers. What net/http holds requests to is tested where it reads them.
func TestConformanceHeaders(t *testing.T) {
	var file struct {
		Ops []struct {
			Op, In, Config string
			Out            any
		} `json:"header_ops"`
	}
	conformance.Load(t, "envoy-facts/path_host_header_normalisation.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/path_host_header_normalisation.json#header_ops")
	for i, c := range file.Ops {
		name := fmt.Sprintf("%s [%d]", c.Op, i)
		switch c.Op {
		case "is_removable_or_modifiable_header":
			config := fmt.Sprintf(`{"providers": {"p": {%s, "claim_to_headers": [{"header_name": %q, "claim_name": "sub"}]}}}`, localKeysOf, c.In)
			_, err := compiled("jwt_authn.v3.JwtAuthentication", json.RawMessage(config))
			if (err == nil) != c.Out || err != nil && !strings.Contains(err.Error(), "header_name") {
				tally.Fail(t, "%s %q: %v, want %v", name, c.In, err, c.Out)
				continue
			}
			tally.Pass()
		case "headers_with_underscores":
			manager := fmt.Sprintf(`"common_http_protocol_options": {"headers_with_underscores_action": %q}, `, c.Config) + everyInbound
			if _, _, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(manager, "")+`]`))); err == nil || !strings.Contains(err.Error(), "headers_with_underscores_action: not supported") {
				tally.Fail(t, "%s: %v", name, err)
				continue
			}
			tally.Differs(t, name)
		case "get_all_of_header_as_string", "parse_comma_delimited":
			tally.Differs(t, name)
		default:
			if strings.Contains(c.In, "@") { // shown there too
				tally.Differs(t, name)
				continue
			}
			tally.RunIn(t, "transport/meshhttp", "TestRecordedHeadersOverHTTP")
		}
	}
	tally.Check(t, "envoy-facts/path_host_header_normalisation.json, header_ops", 3, 17)
}

// A route that says so rewrites the authority by the endpoint's name, whoever
// sent it and without any switch beside (Envoy).
func TestConformanceAutoHostRewrite(t *testing.T) {
	var file struct {
		Cases []struct {
			Name      string
			On        bool `json:"route_auto_host_rewrite"`
			Rewritten bool `json:"authority_rewritten"`
		} `json:"auto_host_rewrite"`
	}
	conformance.Load(t, "grpc-facts/san_matching.json", &file)
	tally := conformance.Deciding(t, "grpc-facts/san_matching.json#auto_host_rewrite")
	for _, c := range file.Cases {
		route, err := oneRoute(t, toCluster(fmt.Sprintf(`"auto_host_rewrite": %v`, c.On)), "")
		if err != nil {
			tally.Fail(t, "%s: %v", c.Name, err)
			continue
		}
		rewritten := route.Rewrite.Authority(&routing.Request{Authority: "a"}, "endpoint") == "endpoint"
		switch {
		case rewritten != c.On:
			tally.Fail(t, "%s: rewritten %v", c.Name, rewritten)
		case rewritten == c.Rewritten:
			tally.Pass()
		default:
			tally.Differs(t, c.Name)
		}
	}
	tally.Check(t, "grpc-facts/san_matching.json, auto_host_rewrite", 1, 3)
}
