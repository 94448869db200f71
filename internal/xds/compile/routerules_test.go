package compile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// accepted compiles a route configuration.
func accepted(t *testing.T, config string) *snapshot.RouteConfig {
	t.Helper()
	_, rc, err := RouteConfig(routesOf(t, config))
	if err != nil {
		t.Fatal(err)
	}
	return rc
}

// inOneHost is a route configuration with one virtual host.
func inOneHost(config, host, routes string) string {
	if config != "" {
		config += ", "
	}
	if host != "" {
		host += ", "
	}
	return `{"name": "r", ` + config + `"virtual_hosts": [{"name": "v", "domains": ["*"], ` + host + `"routes": [` + routes + `]}]}`
}

func getting(url string, header ...string) *routing.Request {
	r := &routing.Request{Method: "GET", Scheme: "http", Header: map[string][]string{}}
	rest, _ := strings.CutPrefix(url, "http://")
	r.Authority, r.Path, _ = strings.Cut(rest, "/")
	r.Path, r.RawQuery, _ = strings.Cut("/"+r.Path, "?")
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
	}
	return r
}

func added(name, value string) string {
	return `[{"header": {"key": "` + name + `", "value": "` + value + `"}}]`
}

// Header changes are made from the route up, or the other way round where the configuration says so.
func TestHeaderChangesOfLevels(t *testing.T) {
	for _, side := range []string{"request", "response"} {
		level := func(value string) string { return `"` + side + `_headers_to_add": ` + added("X-Level", value) }
		routes := withRoute(level("route")) + `, {"match": {"prefix": "/"}, "redirect": {}}`
		weighted := `{"match": {"prefix": "/"}, ` + level("route") + `, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1, ` + level("cluster") + `}, {"name": "b", "weight": 1}]}}}`
		for _, tt := range []struct{ config, routes, want string }{
			{level("config"), routes, "[route host config]"},
			{`"most_specific_header_mutations_wins": true, ` + level("config"), routes, "[config host route]"},
			{level("config"), weighted, "[cluster route host config]"},
			{`"most_specific_header_mutations_wins": true, ` + level("config"), weighted, "[cluster config host route]"},
		} {
			rc := accepted(t, inOneHost(tt.config, level("host"), tt.routes))
			r := getting("http://a/")
			d := decide(rc, nil, r, 0)
			got := d.sent.header["X-Level"]
			if side == "response" {
				got = d.incoming(r, map[string][]string{})["X-Level"]
			}
			if fmt.Sprint(got) != tt.want {
				t.Errorf("%s %s: %v, want %s", side, tt.config, got, tt.want)
			}
		}
		// A route that answers by itself changes responses too.
		rc := accepted(t, inOneHost("", level("host"), `{"match": {"prefix": "/"}, "redirect": {}}`))
		if side == "response" && len(rc.VirtualHosts[0].Routes[0].ResponseHeaders) != 1 {
			t.Error("a redirect's response is not changed")
		}
	}
}

func TestHeaderActions(t *testing.T) {
	for _, tt := range []struct{ option, want string }{
		{``, "[old new]"},
		{`, "append": true`, "[old new]"},
		{`, "append": false`, "[new]"},
		{`, "append_action": "ADD_IF_ABSENT"`, "[old]"},
		{`, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"`, "[new]"},
		{`, "append_action": "OVERWRITE_IF_EXISTS"`, "[new]"},
	} {
		rc := accepted(t, inOneHost("", "", withRoute(`"request_headers_to_add": [{"header": {"key": "x-a", "value": "new"}`+tt.option+`}], "request_headers_to_remove": ["x-gone"]`)))
		d := decide(rc, nil, getting("http://a/", "X-A", "old", "X-Gone", "1"), 0)
		if got := fmt.Sprint(d.sent.header["X-A"]); got != tt.want || d.sent.header["X-Gone"] != nil {
			t.Errorf("%s: %v, want %s", tt.option, d.sent.header, tt.want)
		}
	}
	rc := accepted(t, inOneHost("", "", withRoute(`"request_headers_to_add": [{"header": {"key": "a"}}, {"header": {"key": "b"}, "keep_empty_value": true}, {"header": {"key": "c", "value": "%REQ(x-user)%-100%%"}}]`)))
	d := decide(rc, nil, getting("http://a/", "X-User", "u"), 0)
	if got := fmt.Sprint(d.sent.header["A"], d.sent.header["B"], d.sent.header["C"]); got != "[] [] [u-100%]" || len(d.sent.header["B"]) != 1 {
		t.Errorf("%s in %v", got, d.sent.header)
	}
}

func TestDestinationsOfTheirOwn(t *testing.T) {
	rc := accepted(t, inOneHost("", "", `{"match": {"prefix": "/"}, "route": {"metadata_match": {"filter_metadata": {"envoy.lb": {"stage": "prod", "v": "1"}, "other": {"x": 1}}},
		"weighted_clusters": {"clusters": [
			{"name": "none", "weight": 0, "host_rewrite_literal": "none"},
			{"name": "a", "weight": 1, "host_rewrite_literal": "a.host", "metadata_match": {"filter_metadata": {"envoy.lb": {"v": "2"}}}},
			{"cluster_header": "X-Cluster", "weight": 1}]}}}`))
	route := &rc.VirtualHosts[0].Routes[0]
	if len(route.Legs) != 2 || fmt.Sprint(route.Legs[0].Subset, route.Legs[1].Subset) != "map[stage:prod v:2] map[stage:prod v:1]" {
		t.Errorf("%+v", route.Legs)
	}
	r := getting("http://a/", "X-Cluster", "named")
	if d := decide(rc, nil, r, 0); d.cluster != "a" || d.sent.authority != "a.host" {
		t.Errorf("%+v", d)
	}
	if d := decide(rc, nil, r, 1); d.cluster != "named" || d.sent.authority != "a" {
		t.Errorf("%+v", d)
	}
	rc = accepted(t, inOneHost("", "", `{"match": {"prefix": "/"}, "route": {"cluster_header": "x-cluster", "cluster_not_found_response_code": "NOT_FOUND"}}`))
	if d := decide(rc, nil, r, 0); d.cluster != "named" || d.route.ClusterNotFound != 404 {
		t.Errorf("%+v", d)
	}
	// What says nothing of its own costs nothing.
	if route, err := oneRoute(t, weights(`{"name": "a", "weight": 1}, {"name": "b", "weight": 1}`), ""); err != nil || route.Legs != nil {
		t.Errorf("%+v, %v", route, err)
	}
}

func TestMirrorsOfLevels(t *testing.T) {
	policy := func(clusters ...string) string {
		for i := range clusters {
			clusters[i] = `{"cluster": "` + clusters[i] + `"}`
		}
		return `"request_mirror_policies": [` + strings.Join(clusters, ", ") + `]`
	}
	for _, tt := range []struct{ config, host, action, want string }{
		{"", "", "", ""},
		{policy("c"), "", "", "c"},
		{policy("c"), policy("h", "i"), "", "h i"},
		{policy("c"), policy("h"), policy("r"), "r"},
	} {
		rc := accepted(t, inOneHost(tt.config, tt.host, toCluster(tt.action)))
		var got []string
		for _, m := range rc.VirtualHosts[0].Routes[0].Mirrors {
			got = append(got, m.Cluster)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	rc := accepted(t, inOneHost("", "", toCluster(`"request_mirror_policies": [{"cluster_header": "x-to", "runtime_fraction": {"default_value": {"numerator": 5}}, "disable_shadow_host_suffix_append": true,
		"host_rewrite_literal": "shadow", "trace_sampled": true, "request_headers_mutations": [{"append": {"header": {"key": "a", "value": "1"}}}, {"remove": "a"}, {"append": {"header": {"key": "b", "value": "2"}}}]}, {"cluster": "all"}]`)))
	m := rc.VirtualHosts[0].Routes[0].Mirrors
	if m[0].ClusterHeader.String() != "x-to" || m[0].Fraction.PerMillion != 50_000 || !m[0].KeepHost || m[0].Host != "shadow" || m[1].Fraction.PerMillion != 1_000_000 || m[1].KeepHost {
		t.Errorf("%+v", m)
	}
	header := map[string][]string{"A": {"0"}}
	m[0].Changes.Apply(header, routing.CanonicalHeaders, &routing.Values{Request: getting("http://a/")})
	if got := fmt.Sprint(header); got != "map[B:[2]]" {
		t.Error(got)
	}
}

func TestSecureOnly(t *testing.T) {
	for _, tt := range []struct {
		require, scheme string
		redirected      bool
	}{
		{"NONE", "http", false},
		{"ALL", "http", true},
		{"ALL", "https", false},
		{"EXTERNAL_ONLY", "http", false},
	} {
		rc := accepted(t, inOneHost("", `"require_tls": "`+tt.require+`", "response_headers_to_remove": ["a"]`, toCluster("")))
		r := getting("http://a.b:80/x?y")
		r.Scheme = tt.scheme
		d := decide(rc, nil, r, 0)
		if tt.redirected != (d.route.Redirect != nil) || tt.redirected && (d.route.Redirect.Status != 301 || d.route.ResponseHeaders != nil) {
			t.Errorf("%+v: %+v", tt, d.route)
		}
		if tt.redirected && d.location != "https://a.b:80/x?y" {
			t.Errorf("%+v: %s", tt, d.location)
		}
	}
}

func TestHostsWithoutPort(t *testing.T) {
	for authority, want := range map[string]string{"a:80": "a", "a": "a", "A:9": "a", "[::1]:80": "six", "[::1]": "six", "a:": "", "a:x": ""} {
		rc := accepted(t, `{"name": "r", "ignore_port_in_host_matching": true, "virtual_hosts": [{"name": "a", "domains": ["a"]}, {"name": "six", "domains": ["[::1]"]}]}`)
		vh, got := rc.Lookup(authority), ""
		if vh != nil {
			got = vh.Name
		}
		if got != want {
			t.Errorf("%s: %q, want %q", authority, got, want)
		}
	}
	if rc := accepted(t, `{"name": "r", "virtual_hosts": [{"name": "a", "domains": ["a"]}]}`); rc.Lookup("a:80") != nil {
		t.Error("the port counts where nothing is said")
	}
}

func TestMatchesBesidePath(t *testing.T) {
	claims := map[string]any{"groups": []any{"x", "admin"}, "sub": "me", "realm": map[string]any{"role": "r"}}
	one := `, "value": {"or_match": {"value_matchers": [{"list_match": {"one_of": {"string_match": {"exact": "admin"}}}}, {"string_match": {"exact": "admin"}}]}}`
	for _, tt := range []struct {
		match string
		want  bool
	}{
		{`"dynamic_metadata": [{` + ofToken + groups + one + `}]`, true},
		{`"dynamic_metadata": [{` + ofToken + groups + one + `, "invert": true}]`, false},
		{`"dynamic_metadata": [{` + ofToken + `"path": [{"key": "payload"}, {"key": "sub"}], "value": {"string_match": {"prefix": "m"}}}]`, true},
		{`"dynamic_metadata": [{` + ofToken + `"path": [{"key": "payload"}, {"key": "realm"}, {"key": "role"}], "value": {"list_match": {"one_of": {"string_match": {"exact": "r"}}}}}]`, true},
		{`"dynamic_metadata": [{` + ofToken + `"path": [{"key": "payload"}, {"key": "realm"}], "value": {"present_match": true}}]`, true},
		{`"dynamic_metadata": [{` + ofToken + `"path": [{"key": "payload"}, {"key": "gone"}], "value": {"present_match": true}}]`, false},
		{`"cookies": [{"name": "c", "string_match": {"exact": "1"}}]`, true},
		{`"cookies": [{"name": "c", "string_match": {"exact": "1"}, "invert_match": true}]`, false},
	} {
		route, err := oneRoute(t, `{"match": {"prefix": "/", `+tt.match+`}, "route": {"cluster": "c"}}`, "")
		if err != nil {
			t.Errorf("%s: %v", tt.match, err)
			continue
		}
		r := getting("http://a/", "Cookie", "b=2; c=1")
		r.Claims = claims
		if got := route.Match.Matches(r, 0); got != tt.want {
			t.Errorf("%s: %v", tt.match, got)
		}
	}
	rc := accepted(t, inOneHost(`"ignore_path_parameters_in_path_matching": true`, "", `{"match": {"path": "/a"}, "route": {"cluster": "c"}}`))
	if d := decide(rc, nil, getting("http://a/a;v=1?q"), 0); d.cluster != "c" || d.sent.path != "/a;v=1?q" {
		t.Errorf("%+v", d)
	}
}

func TestOptionalPluginsAreLeftOut(t *testing.T) {
	rc := accepted(t, inOneHost(`"cluster_specifier_plugins": [{"extension": {"name": "p"}, "is_optional": true}]`, "",
		`{"match": {"prefix": "/"}, "route": {"cluster_specifier_plugin": "p"}}, {"match": {"prefix": "/"}, "route": {"inline_cluster_specifier_plugin": {"is_optional": true}}}, `+toCluster("")))
	if routes := rc.VirtualHosts[0].Routes; len(routes) != 1 || decide(rc, nil, getting("http://a/"), 0).cluster != "c" {
		t.Errorf("%+v", routes)
	}
}

func TestRouteOptions(t *testing.T) {
	rc := accepted(t, inOneHost(`"max_direct_response_body_size_bytes": 5000`, `"include_request_attempt_count": true, "include_attempt_count_in_response": true, "hedge_policy": {"initial_requests": 3, "hedge_on_per_try_timeout": true}`,
		toCluster(`"priority": "HIGH", "append_x_forwarded_host": true, "host_rewrite_literal": "h"`)+`, `+
			toCluster(`"hedge_policy": {"additional_request_chance": {"numerator": 50}}`)+`, `+toCluster(`"hedge_policy": {}`)+`, `+
			`{"match": {"prefix": "/"}, "direct_response": {"status": 404, "body": {"inline_bytes": "`+strings.Repeat("eHh4", 1600)+`"}}}`))
	routes := rc.VirtualHosts[0].Routes
	if r := &routes[0]; r.Priority != resilience.HighPriority || !r.AttemptCount || !r.AttemptCountResponse || !r.Rewrite.AppendForwardedHost || *r.Hedge != (resilience.Hedge{Initial: 3, OnPerTryTimeout: true}) {
		t.Errorf("%+v", r)
	}
	if *routes[1].Hedge != (resilience.Hedge{Initial: 1, Additional: routing.Fraction{PerMillion: 500_000}}) || routes[2].Hedge != nil {
		t.Errorf("%+v %+v", routes[1].Hedge, routes[2].Hedge)
	}
	if d := routes[3].Direct; d.Status != 404 || d.Body != strings.Repeat("xxx", 1600) {
		t.Errorf("%+v", d)
	}
}

func TestHashPolicies(t *testing.T) {
	rc := accepted(t, inOneHost("", "", toCluster(`"hash_policy": [{"header": {"header_name": "X-User", "regex_rewrite": {"pattern": {"regex": "^/"}, "substitution": ""}}, "terminal": true},
		{"connection_properties": {}}, {"connection_properties": {"source_ip": true}}, {"query_parameter": {"name": "q"}}, {"filter_state": {"key": "other"}}, {"filter_state": {"key": "io.grpc.channel_id"}},
		{"cookie": {"name": "s", "ttl": "1.5s", "path": "/", "attributes": [{"name": "SameSite", "value": "Lax"}]}}, {"cookie": {"name": "t"}}]`)))
	var kinds []routing.HashKind
	policies := rc.VirtualHosts[0].Routes[0].Hash
	for _, p := range policies {
		kinds = append(kinds, p.Kind)
	}
	if !slices.Equal(kinds, []routing.HashKind{routing.HashHeader, routing.HashSource, routing.HashQuery, routing.HashChannel, routing.HashCookie, routing.HashCookie}) {
		t.Fatal(kinds)
	}
	if c := policies[4].Cookie; !policies[0].Terminal || policies[1].Terminal || !c.Issue || c.TTL != time.Second || len(c.Attributes) != 1 || policies[5].Cookie.Issue {
		t.Errorf("%+v", policies)
	}
	one, ok, _ := routing.HashOf(policies, getting("http://a/", "X-User", "/u"), routing.HashOrigin{})
	other, _, _ := routing.HashOf(policies, getting("http://a/", "X-User", "u"), routing.HashOrigin{Address: "1.2.3.4"})
	if !ok || one != other {
		t.Errorf("%d and %d, %v", one, other, ok)
	}
}
