package compile

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

const httpFilters3 = `"@type": "type.googleapis.com/envoy.extensions.filters.http.`

// rbacFilter is an RBAC filter with fields.
func rbacFilter(name, fields string) string {
	return `{"name": "` + name + `", "typed_config": {` + httpFilters3 + `rbac.v3.RBAC", ` + fields + `}}`
}

func policies(action, policies string) string {
	return `{"action": "` + action + `", "policies": {` + policies + `}}`
}

// rule is a policy with one permission and one principal.
func rule(name, permission, principal string) string {
	return `"` + name + `": {"permissions": [` + permission + `], "principals": [` + principal + `]}`
}

const anyone = `{"any": true}`

// guarded is a listener whose HTTP filters before the router are given.
func guarded(filters ...string) string {
	return inboundOf(`"filter_chains": [` + chain(strings.Replace(everyInbound, router, strings.Join(append(filters, router), ", "), 1), "") + `]`)
}

func guard(t *testing.T, filters ...string) *snapshot.FilterChain {
	t.Helper()
	_, in, err := Inbound(listenerOf(t, guarded(filters...)))
	if err != nil {
		t.Fatal(err)
	}
	return in.Plain
}

func request(path, principal string) *identity.AccessRequest {
	return &identity.AccessRequest{
		Request:   routing.Request{Method: "GET", Scheme: "http", Authority: "reviews:9080", Path: path, Header: map[string][]string{"X-A": {"1"}}, Form: routing.CanonicalHeaders},
		Principal: principal, PeerIP: netip.MustParseAddr("10.0.0.9"), RemoteIP: netip.MustParseAddr("192.0.2.1"),
		DestinationIP: netip.MustParseAddr("10.1.0.1"), DestinationPort: 9080, ServerName: "outbound_.80_._.reviews",
	}
}

const (
	web   = "spiffe://cluster.local/ns/default/sa/web"
	batch = "spiffe://cluster.local/ns/jobs/sa/batch"
)

func TestRules(t *testing.T) {
	allow := func(permission, principal string) string {
		return rbacFilter("rbac", `"rules": `+policies("ALLOW", rule("r", permission, principal)))
	}
	for _, tt := range []struct {
		permission, principal string
		yes, no               *identity.AccessRequest
	}{
		{anyone, anyone, request("/", ""), nil},
		{`{"not_rule": ` + anyone + `}`, `{"not_id": ` + anyone + `}`, nil, request("/", web)},
		{`{"url_path": {"path": {"exact": "/a"}}}`, anyone, request("/a", ""), request("/a/b", "")},
		{`{"url_path": {"path": {"prefix": "/a"}}}`, anyone, request("/ab", ""), request("/b", "")},
		{`{"url_path": {"path": {"exact": "/A", "ignore_case": true}}}`, anyone, request("/a", ""), request("/b", "")},
		{`{"url_path": {"path": {"safe_regex": {"regex": "/a.*"}}}}`, anyone, request("/ab", ""), request("/b/a", "")},
		{`{"uri_template": {"name": "t", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": "/a/*/c"}}}`, anyone, request("/a/b/c", ""), request("/a/b/b/c", "")},
		{`{"header": {"name": ":method", "string_match": {"exact": "GET"}}}`, anyone, request("/", ""), nil},
		{`{"header": {"name": "x-a", "string_match": {"exact": "2"}}}`, anyone, nil, request("/", "")},
		{`{"header": {"name": "x-b"}}`, anyone, nil, request("/", "")},
		{`{"destination_port": 9080}`, anyone, request("/", ""), nil},
		{`{"destination_port_range": {"start": 9081, "end": 9090}}`, anyone, nil, request("/", "")},
		{`{"destination_ip": {"address_prefix": "10.1.0.0", "prefix_len": 16}}`, anyone, request("/", ""), nil},
		{`{"requested_server_name": {"prefix": "outbound_"}}`, anyone, request("/", ""), nil},
		{`{"and_rules": {"rules": [{"destination_port": 9080}, {"url_path": {"path": {"exact": "/a"}}}]}}`, anyone, request("/a", ""), request("/b", "")},
		{`{"or_rules": {"rules": [{"destination_port": 1}, {"url_path": {"path": {"exact": "/a"}}}]}}`, anyone, request("/a", ""), request("/b", "")},
		{anyone, `{"authenticated": {}}`, request("/", web), request("/", "")},
		{anyone, `{"authenticated": {"principal_name": {"exact": "` + web + `"}}}`, request("/", web), request("/", batch)},
		{anyone, `{"authenticated": {"principal_name": {"safe_regex": {"regex": ".*/ns/jobs/.*"}}}}`, request("/", batch), request("/", web)},
		{anyone, `{"authenticated": {"principal_name": {"safe_regex": {"regex": ".*/ns/j.bs/.*"}}}}`, request("/", batch), request("/", web)},
		{anyone, `{"authenticated": {"principal_name": {"suffix": "/sa/web"}}}`, request("/", web), request("/", batch)},
		{anyone, `{"source_ip": {"address_prefix": "10.0.0.0", "prefix_len": 24}}`, request("/", ""), nil},
		{anyone, `{"direct_remote_ip": {"address_prefix": "10.0.0.9", "prefix_len": 32}}`, request("/", ""), nil},
		{anyone, `{"remote_ip": {"address_prefix": "10.0.0.9", "prefix_len": 32}}`, nil, request("/", "")},
		{anyone, `{"remote_ip": {"address_prefix": "192.0.2.0", "prefix_len": 24}}`, request("/", ""), nil},
		{anyone, `{"header": {"name": "x-a", "string_match": {"exact": "1"}}}`, request("/", ""), nil},
		{anyone, `{"url_path": {"path": {"exact": "/a"}}}`, request("/a", ""), request("/b", "")},
		{anyone, `{"and_ids": {"ids": [{"authenticated": {}}, {"not_id": {"authenticated": {"principal_name": {"exact": "` + web + `"}}}}]}}`, request("/", batch), request("/", web)},
		{anyone, `{"or_ids": {"ids": [{"authenticated": {"principal_name": {"exact": "` + web + `"}}}, {"remote_ip": {"address_prefix": "::1", "prefix_len": 128}}]}}`, request("/", web), request("/", batch)},
		// Without tokens there are no claims.
		{anyone, `{"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, {"key": "iss"}], "value": {"present_match": true}}}`, nil, request("/", web)},
		{anyone, `{"sourced_metadata": {"metadata_matcher": {"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, {"key": "iss"}], "value": {"present_match": true}, "invert": true}}}`, request("/", web), nil},
	} {
		_, in, err := Inbound(listenerOf(t, guarded(allow(tt.permission, tt.principal))))
		if err != nil {
			t.Errorf("%s %s: %v", tt.permission, tt.principal, err)
			continue
		}
		a := in.Plain.Authorizer
		if tt.yes != nil {
			if d := a.Decide(tt.yes); !d.Allowed || d.Rule != "r" {
				t.Errorf("%s %s: %v", tt.permission, tt.principal, &d)
			}
		}
		if tt.no != nil {
			if d := a.Decide(tt.no); d.Allowed {
				t.Errorf("%s %s: %v", tt.permission, tt.principal, &d)
			}
		}
	}
}

// What there is in a listener counts, whatever it is called, optional or not.
func TestActions(t *testing.T) {
	admin := `{"url_path": {"path": {"prefix": "/admin"}}}`
	deny := rbacFilter("deny", `"rules": `+policies("DENY", rule("d", admin, anyone)))
	allow := rbacFilter("allow", `"rules": `+policies("ALLOW", rule("a", anyone, `{"authenticated": {}}`)))
	audit := rbacFilter("audit", `"rules": `+policies("LOG", rule("l", admin, anyone)))
	if c := guard(t); c.Authorizer != nil || c.Tokens != nil || c.External != nil || c.RateLimits != nil || c.Routes != nil {
		t.Errorf("nothing: %+v", c)
	}
	if c := guard(t, rbacFilter("none", `"rules_stat_prefix": "x"`)); c.Authorizer != nil {
		t.Error("a filter without rules has rules")
	}
	for _, filter := range []string{
		rbacFilter("nothing", `"rules": {}`), rbacFilter("nothing", `"rules": {"action": "ALLOW"}`),
		strings.Replace(rbacFilter("nothing", `"rules": {}`), `"name"`, `"is_optional": true, "name"`, 1),
	} {
		if d := guard(t, filter).Authorizer.Decide(request("/", web)); d.Allowed {
			t.Errorf("rules without policies let through: %s", filter)
		}
	}
	for _, chain := range [][]string{{audit, deny, allow}, {audit, allow, deny}} {
		a := guard(t, chain...).Authorizer
		if d := a.Decide(request("/admin", web)); d.Allowed || d.Rule != "d" || d.Audited != "l" {
			t.Errorf("%v", &d)
		}
		if d := a.Decide(request("/x", web)); !d.Allowed || d.Audited != "" {
			t.Errorf("%v", &d)
		}
		if d := a.Decide(request("/x", "")); d.Allowed {
			t.Errorf("%v", &d)
		}
	}
	for _, tt := range []struct{ rules, prefix string }{
		{policies("DENY", rule("d", admin, anyone)), "istio_dry_run_deny_"},
		{policies("ALLOW", rule("a", `{"not_rule": `+admin+`}`, anyone)), "istio_dry_run_allow_"},
		{policies("ALLOW", rule("a", `{"not_rule": `+admin+`}`, anyone)), ""},
	} {
		a := guard(t, rbacFilter("dry", `"shadow_rules": `+tt.rules+`, "shadow_rules_stat_prefix": "`+tt.prefix+`"`)).Authorizer
		if d := a.Decide(request("/admin", "")); !d.Allowed || !d.DryRun.Ran || !d.DryRun.Refused {
			t.Errorf("%s: %+v", tt.prefix, d)
		}
		if d := a.Decide(request("/x", "")); !d.Allowed || d.DryRun.Refused {
			t.Errorf("%s: %+v", tt.prefix, d)
		}
	}
	// A filter that is switched off does nothing, and no route can switch it on.
	disabled := strings.Replace(rbacFilter("off", `"rules": {}`), `"name"`, `"disabled": true, "name"`, 1)
	if c := guard(t, disabled); c.Authorizer != nil {
		t.Error("rules that are switched off are in force")
	}
	_, _, err := Inbound(listenerOf(t, routed(disabled, routeOf(`{"prefix": "/"}`, `"off": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig"}`), "", "")))
	requirePath(t, err, `filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].typed_per_filter_config["off"]`)
	both := rbacFilter("both", `"rules": `+policies("DENY", rule("d", admin, anyone))+`, "shadow_rules": `+policies("DENY", rule("s", anyone, anyone))+`, "shadow_rules_stat_prefix": "istio_dry_run_deny_"`)
	if d := guard(t, both).Authorizer.Decide(request("/x", "")); !d.Allowed || !d.DryRun.Refused || d.DryRun.Rule != "s" {
		t.Errorf("%+v", d)
	}
}

func TestRuleErrorsNameTheField(t *testing.T) {
	const filter = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config"
	const at = filter + `.rules.policies["r"]`
	metadata := func(fields string) string {
		return `{"metadata": {"filter": "envoy.filters.http.jwt_authn", ` + fields + `}}`
	}
	const sub = `"path": [{"key": "payload"}, {"key": "sub"}]`
	for _, tt := range []struct{ permission, principal, path string }{
		{`{}`, anyone, at + ".permissions[0]"},
		{``, anyone, at + ".permissions"},
		{anyone, ``, at + ".principals"},
		{anyone, `{}`, at + ".principals[0]"},
		{`{"any": false}`, anyone, at + ".permissions[0].any"},
		{anyone, `{"any": false}`, at + ".principals[0].any"},
		{`{"and_rules": {}}`, anyone, at + ".permissions[0].and_rules.rules"},
		{`{"or_rules": {"rules": [` + anyone + `, {}]}}`, anyone, at + ".permissions[0].or_rules.rules[1]"},
		{`{"not_rule": {}}`, anyone, at + ".permissions[0].not_rule"},
		{`{"matcher": {"name": "x"}}`, anyone, at + ".permissions[0].matcher"},
		{`{"header": {"string_match": {"exact": "x"}}}`, anyone, at + ".permissions[0].header.name"},
		{`{"header": {"name": ":status"}}`, anyone, at + ".permissions[0].header"},
		{`{"header": {"name": "x", "string_match": {"custom": {"name": "x"}}}}`, anyone, at + ".permissions[0].header.string_match.custom"},
		{`{"url_path": {}}`, anyone, at + ".permissions[0].url_path.path"},
		{`{"url_path": {"path": {"safe_regex": {"regex": "("}}}}`, anyone, at + ".permissions[0].url_path.path.safe_regex.regex"},
		{`{"uri_template": {"name": "x"}}`, anyone, at + ".permissions[0].uri_template.typed_config"},
		{`{"uri_template": {"typed_config": {"@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": "a"}}}`, anyone, at + ".permissions[0].uri_template.typed_config.path_template"},
		{`{"destination_ip": {"address_prefix": "x"}}`, anyone, at + ".permissions[0].destination_ip"},
		{`{"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 33}}`, anyone, at + ".permissions[0].destination_ip"},
		{`{"destination_port": 70000}`, anyone, at + ".permissions[0].destination_port"},
		{`{"destination_port_range": {"start": 2, "end": 1}}`, anyone, at + ".permissions[0].destination_port_range"},
		{`{"requested_server_name": {}}`, anyone, at + ".permissions[0].requested_server_name"},
		{anyone, `{"and_ids": {"ids": [{"not_id": {"or_ids": {}}}]}}`, at + ".principals[0].and_ids.ids[0].not_id.or_ids.ids"},
		{anyone, `{"filter_state": {"key": "x"}}`, at + ".principals[0].filter_state"},
		{anyone, `{"custom": {"name": "x"}}`, at + ".principals[0].custom"},
		{anyone, `{"authenticated": {"principal_name": {}}}`, at + ".principals[0].authenticated.principal_name"},
		{anyone, `{"authenticated": {"principal_name": {"exact": ""}}}`, at + ".principals[0].authenticated.principal_name.exact"},
		{anyone, `{"source_ip": {}}`, at + ".principals[0].source_ip"},
		{anyone, `{"direct_remote_ip": {}}`, at + ".principals[0].direct_remote_ip"},
		{anyone, `{"remote_ip": {}}`, at + ".principals[0].remote_ip"},
		{anyone, `{"url_path": {"path": {"prefix": ""}}}`, at + ".principals[0].url_path.path.prefix"},
		{anyone, `{"metadata": {"filter": "istio_authn", ` + sub + `, "value": {"present_match": true}}}`, at + ".principals[0].metadata.filter"},
		{metadata(`"path": [{"key": "payload"}], "value": {"present_match": true}`), anyone, at + ".permissions[0].metadata.path"},
		{metadata(`"path": [{"key": "payload"}, {"key": ""}], "value": {"present_match": true}`), anyone, at + ".permissions[0].metadata.path[1].key"},
		{metadata(sub), anyone, at + ".permissions[0].metadata.value"},
		{metadata(sub + `, "value": {"present_match": false}`), anyone, at + ".permissions[0].metadata.value.present_match"},
		{metadata(sub + `, "value": {"double_match": {}}`), anyone, at + ".permissions[0].metadata.value.double_match"},
		{metadata(sub + `, "value": {"list_match": {}}`), anyone, at + ".permissions[0].metadata.value.list_match.one_of"},
		{metadata(sub + `, "value": {"or_match": {"value_matchers": [{"bool_match": true}]}}`), anyone, at + ".permissions[0].metadata.value.or_match.value_matchers"},
		{metadata(sub + `, "value": {"or_match": {"value_matchers": [{"null_match": {}}, {"string_match": {}}]}}`), anyone, at + ".permissions[0].metadata.value.or_match.value_matchers[1].string_match"},
		{anyone, `{"sourced_metadata": {"metadata_source": "ROUTE"}}`, at + ".principals[0].sourced_metadata.metadata_source"},
		{`{"sourced_metadata": {"metadata_matcher": {}}}`, anyone, at + ".permissions[0].sourced_metadata.metadata_matcher.filter"},
	} {
		_, _, err := Inbound(listenerOf(t, guarded(rbacFilter("x", `"rules": `+policies("DENY", rule("r", tt.permission, tt.principal))))))
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
	nested := anyone
	for range 2000 {
		nested = `{"not_rule": ` + nested + `}`
	}
	for _, tt := range []struct{ fields, path string }{
		{`"rules": {"action": 9}`, filter + ".rules.action"},
		{`"rules": {"audit_logging_options": {}}`, filter + ".rules.audit_logging_options"},
		{`"matcher": {}`, filter + ".matcher"},
		{`"shadow_matcher": {}`, filter + ".shadow_matcher"},
		{`"shadow_rules": {"action": "LOG"}`, filter + ".shadow_rules"},
		{`"rules": {"policies": {"r": {"permissions": [{"any": true}], "principals": [{"any": true}], "condition": {}}}}`, filter + `.rules.policies["r"].condition`},
		// Of several that are wrong the first by name is named.
		{`"rules": {"policies": {"b": {"condition": {}}, "a": {"checked_condition": {}}, "c": {"cel_config": {}}}}`, filter + `.rules.policies["a"].checked_condition`},
		{`"rules": {"policies": {"b": {}, "a": {}}}`, filter + `.rules.policies["a"].permissions`},
		{`"rules": ` + policies("ALLOW", rule("r", nested, anyone)), strings.Split(filter, ".typed_config.http")[0] + ".typed_config.http_filters[0].typed_config.rules.policies"},
	} {
		_, _, err := Inbound(listenerOf(t, guarded(rbacFilter("x", tt.fields))))
		if strings.HasSuffix(tt.path, "policies") {
			if err == nil {
				t.Error("rules nested 2000 deep were accepted")
			}
			continue
		}
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

// jwtFilter is a filter for one provider, with fields of the provider and of the filter.
func jwtFilter(provider, fields string) string {
	return `{"name": "envoy.filters.http.jwt_authn", "typed_config": {` + httpFilters3 + `jwt_authn.v3.JwtAuthentication", "providers": {"p": {` + provider + `}}` + fields + `}}`
}

const (
	localKeysOf = `"issuer": "me", "payload_in_metadata": "payload", "local_jwks": {"inline_string": "{\"keys\": []}"}`
	needsP      = `, "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}]`
	remote      = `"remote_jwks": {"http_uri": {"uri": "https://keys.example.com/jwks", "cluster": "outbound|443||keys.example.com", "timeout": "1s"}}`
)

func TestTokens(t *testing.T) {
	tokens := guard(t, jwtFilter(localKeysOf, needsP)).Tokens
	if result := tokens.Authenticator.Authenticate(request("/", ""), time.Unix(0, 0), nil); result.Status != identity.JWTMissing {
		t.Errorf("%v", result.Status)
	}
	if p := tokens.Authenticator.Providers()[0]; p.Keys == nil || p.Keys.Len() != 0 || p.Name != "p" || len(tokens.Remote) != 0 {
		t.Errorf("keys that can not be used: %+v", p)
	}
	tokens = guard(t, jwtFilter(remote+`, "audiences": ["a"], "subjects": {"suffix": "@x"}, "require_expiration": true, "max_lifetime": "60s", "clock_skew_seconds": 7, "forward": true,
		"from_headers": [{"name": "x-jwt", "value_prefix": "t "}], "from_params": ["q"], "from_cookies": ["c"], "forward_payload_header": "x-payload", "pad_forward_payload_header": true,
		"normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]}, "claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}], "jwt_cache_config": {}`,
		`, "bypass_cors_preflight": true, "requirement_map": {"n": {"requires_any": {"requirements": [{"provider_and_audiences": {"provider_name": "p", "audiences": ["b"]}}, {"allow_missing": {}}]}}},
		"rules": [{"match": {"path": "/open"}}, {"match": {"path_match_policy": {"name": "t", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": "/t/*"}}},
			"requires": {"requires_all": {"requirements": [{"provider_name": "p"}, {"allow_missing_or_failed": {}}]}}}, {"match": {"prefix": "/"}, "requirement_name": "n"}]`)).Tokens
	p := tokens.Authenticator.Providers()[0]
	if p.Keys != nil || p.ClockSkew != 7*time.Second || p.MaxLifetime != time.Minute || !p.RequireExpiration || !p.Forward || !p.PadPayload || p.PayloadHeader != "x-payload" || p.Subject == nil ||
		p.Headers[0] != (identity.TokenHeader{Name: "x-jwt", Prefix: "t "}) || p.Params[0] != "q" || p.Cookies[0] != "c" || p.Audiences[0] != "a" ||
		p.ClaimHeaders[0] != (identity.ClaimHeader{Header: "x-sub", Claim: "sub"}) || p.SpaceDelimited[0] != "scope" {
		t.Errorf("%+v", p)
	}
	if got, want := tokens.Remote["p"], (snapshot.RemoteKeys{URI: "https://keys.example.com/jwks", Timeout: time.Second, CacheDuration: 10 * time.Minute}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for path, want := range map[string]identity.JWTStatus{"/open": identity.JWTOk, "/t/x": identity.JWTMissing, "/": identity.JWTOk} {
		if result := tokens.Authenticator.Authenticate(request(path, ""), time.Unix(0, 0), nil); result.Status != want {
			t.Errorf("%s: %v, want %v", path, result.Status, want)
		}
	}
}

func TestTokenErrorsNameTheField(t *testing.T) {
	const filter = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config"
	const at = filter + `.providers["p"]`
	uri := func(uri string) string {
		return `"remote_jwks": {"http_uri": {"uri": "` + uri + `", "cluster": "outbound|80||a"}}`
	}
	rule := func(requires string) string {
		return `, "rules": [{"match": {"prefix": "/"}, "requires": ` + requires + `}]`
	}
	for _, tt := range []struct{ provider, fields, path string }{
		{`"issuer": "x"`, ``, at},
		{`"local_jwks": {"filename": "x"}`, ``, at + ".local_jwks"},
		{`"local_jwks": {}`, ``, at + ".local_jwks"},
		{`"local_jwks": {"environment_variable": "x"}`, ``, at + ".local_jwks.environment_variable"},
		{uri("ftp://a"), ``, at + ".remote_jwks.http_uri.uri"},
		{uri("http://user:secret@a"), ``, at + ".remote_jwks.http_uri.uri"},
		{uri("a"), ``, at + ".remote_jwks.http_uri.uri"},
		{uri("http://b/"), ``, at + ".remote_jwks.http_uri.cluster"},
		{uri("https://a/"), ``, at + ".remote_jwks.http_uri.cluster"},
		{uri("http://a:81/"), ``, at + ".remote_jwks.http_uri.cluster"},
		{`"remote_jwks": {"http_uri": {"uri": "http://a", "cluster": "keys"}}`, ``, at + ".remote_jwks.http_uri.cluster"},
		{`"remote_jwks": {"http_uri": {"uri": "http://a", "cluster": "outbound|80|v1|a"}}`, ``, at + ".remote_jwks.http_uri.cluster"},
		{`"remote_jwks": {"http_uri": {"uri": "http://a", "cluster": "a:80", "timeout": "0s"}}`, ``, at + ".remote_jwks.http_uri.timeout"},
		{`"remote_jwks": {"http_uri": {"uri": "http://a", "cluster": "a:80"}, "cache_duration": "-1s"}`, ``, at + ".remote_jwks.cache_duration"},
		{`"remote_jwks": {"http_uri": {"uri": "http://a", "cluster": "a:80"}, "retry_policy": {}}`, ``, at + ".remote_jwks.retry_policy"},
		{localKeysOf + `, "subjects": {}`, ``, at + ".subjects"},
		{localKeysOf + `, "max_lifetime": "0s"`, ``, at + ".max_lifetime"},
		{localKeysOf + `, "from_headers": [{"name": "a b"}]`, ``, at + ".from_headers[0].name"},
		{localKeysOf + `, "forward_payload_header": "Host"`, ``, at + ".forward_payload_header"},
		{localKeysOf + `, "claim_to_headers": [{"header_name": ":path", "claim_name": "c"}]`, ``, at + ".claim_to_headers[0].header_name"},
		{localKeysOf + `, "claim_to_headers": [{"header_name": "h"}]`, ``, at + ".claim_to_headers[0].claim_name"},
		{localKeysOf + `, "claim_to_headers": [{"header_name": "h", "claim_path": [{"key": "a"}]}]`, ``, at + ".claim_to_headers[0].claim_path"},
		{localKeysOf + `, "header_in_metadata": "payload"`, ``, at + ".payload_in_metadata"},
		{localKeysOf + `, "audiences": [""]`, ``, filter},
		{localKeysOf, rule(`{"provider_name": "q"}`), filter + ".rules[0].requires.provider_name"},
		{localKeysOf, rule(`{}`), filter + ".rules[0].requires"},
		{localKeysOf, rule(`{"provider_and_audiences": {"provider_name": "q"}}`), filter + ".rules[0].requires.provider_and_audiences.provider_name"},
		{localKeysOf, rule(`{"requires_any": {}}`), filter + ".rules[0].requires.requires_any.requirements"},
		{localKeysOf, rule(`{"requires_all": {"requirements": [{"provider_name": "p"}, {}]}}`), filter + ".rules[0].requires.requires_all.requirements[1]"},
		{localKeysOf, rule(`{"extract_only_without_validation": {}}`), filter + ".rules[0].requires.extract_only_without_validation"},
		{localKeysOf, `, "rules": [{"requires": {"provider_name": "p"}}]`, filter + ".rules[0].match"},
		{localKeysOf, `, "rules": [{"match": {"connect_matcher": {}, "cookies": [{"name": "x"}]}}]`, filter + ".rules[0].match.cookies"},
		{localKeysOf, `, "rules": [{"match": {"path_match_policy": {"name": "x"}}}]`, filter + ".rules[0].match.path_match_policy.typed_config"},
		{localKeysOf, `, "rules": [{"match": {"prefix": "/"}, "requirement_name": "n"}]`, filter + ".rules[0].requirement_name"},
		{localKeysOf, `, "requirement_map": {"n": {"provider_name": "q"}}`, filter + `.requirement_map["n"].provider_name`},
		{localKeysOf, `, "filter_state_rules": {"name": "x"}`, filter + ".filter_state_rules"},
		{localKeysOf, `, "strip_failure_response": true`, filter + ".strip_failure_response"},
	} {
		_, _, err := Inbound(listenerOf(t, guarded(jwtFilter(tt.provider, tt.fields))))
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("a password in %v", err)
		}
	}
}

// A condition on claims is on those that the providers put there, or on nothing that could be.
func TestClaimsAreOfTheProviders(t *testing.T) {
	rules := rbacFilter("r", `"rules": `+policies("DENY", rule("r", anyone, `{"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, {"key": "sub"}], "value": {"string_match": {"exact": "x"}}}}`)))
	const path = "filter_chains[0].filters[0].typed_config.http_filters[1].typed_config.rules.policies[\"r\"].principals[0].metadata.path[0].key"
	if guard(t, jwtFilter(localKeysOf, ""), rules).Authorizer == nil {
		t.Error("no rules")
	}
	for _, provider := range []string{strings.ReplaceAll(localKeysOf, `"payload_in_metadata": "payload"`, `"payload_in_metadata": "other"`), strings.ReplaceAll(localKeysOf, `"payload_in_metadata": "payload", `, ``)} {
		_, _, err := Inbound(listenerOf(t, guarded(jwtFilter(provider, ""), rules)))
		requirePath(t, err, path)
	}
	beside := func(name, payload string) string {
		return strings.Replace(jwtFilter(localKeysOf, ""), `"providers": {`, `"providers": {"`+name+`": {"payload_in_metadata": "`+payload+`", "local_jwks": {"inline_string": ""}}, `, 1)
	}
	for _, name := range []string{"o", "q"} {
		_, _, err := Inbound(listenerOf(t, guarded(beside(name, "other"), rules)))
		requirePath(t, err, path)
		if guard(t, beside(name, "payload"), rules).Authorizer == nil {
			t.Error("no rules")
		}
	}
}
