package compile

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

func extAuthz(fields string) string {
	return `{"name": "envoy.filters.http.ext_authz", "typed_config": {` + httpFilters3 + `ext_authz.v3.ExtAuthz", ` + fields + `}}`
}

const (
	customPrefix = "istio_ext_authz_"
	whereCustom  = `"filter_enabled_metadata": {"filter": "envoy.filters.http.rbac", "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}], "value": {"string_match": {"prefix": "istio-ext-authz"}}}`
	grpcService  = `"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "outbound|9000||authz.foo.svc.cluster.local", "authority": "authz.foo.svc.cluster.local"}, "timeout": "600s"}`
	httpService  = `"http_service": {"server_uri": {"uri": "http://authz.foo:8000", "cluster": "outbound|8000||authz.foo.svc.cluster.local", "timeout": "1s"}}`
)

func custom(permission string) string {
	return rbacFilter("custom", `"shadow_rules": `+policies("DENY", rule("istio-ext-authz-p-ns[foo]-policy[a]-rule[0]", permission, anyone))+`, "shadow_rules_stat_prefix": "`+customPrefix+`"`)
}

func TestExternalAuthorizer(t *testing.T) {
	c := guard(t, custom(`{"url_path": {"path": {"prefix": "/admin"}}}`), extAuthz(grpcService+`, `+whereCustom+`, "failure_mode_allow": true, "status_on_error": {"code": "ServiceUnavailable"},
		"with_request_body": {"max_request_bytes": 1024, "allow_partial_message": true, "pack_as_bytes": true}, "stat_prefix": "x", "clear_route_cache": true,
		"filter_enabled": {"default_value": {"numerator": 100}}, "allowed_headers": {"patterns": [{"exact": "x-a", "ignore_case": true}]}`))
	want := snapshot.ExternalAuthorizer{
		Provider: "authz.foo.svc.cluster.local:9000", Host: "authz.foo.svc.cluster.local:9000", Timeout: 10 * time.Minute, FailOpen: true, StatusOnError: 503,
		MaxBody: 1024, PartialBody: true, RawBody: true, Headers: []routing.StringMatch{routing.Exact("x-a", true)},
	}
	if !reflect.DeepEqual(*c.External, want) {
		t.Errorf("%+v\nwant %+v", *c.External, want)
	}
	if provider, rule, ask := c.Authorizer.Custom(request("/admin/x", "")); !ask || provider != want.Provider || !strings.HasPrefix(rule, "istio-ext-authz-p-") {
		t.Errorf("%q, %q, %v", provider, rule, ask)
	}
	if _, _, ask := c.Authorizer.Custom(request("/x", "")); ask {
		t.Error("asked about a request that no rule matches")
	}
	if d := c.Authorizer.Decide(request("/admin/x", "")); !d.Allowed {
		t.Errorf("CUSTOM rules refuse by themselves: %v", &d)
	}

	c = guard(t, extAuthz(strings.Replace(httpService, `"http_service": {`, `"http_service": {"path_prefix": "/check",
		"authorization_request": {"allowed_headers": {"patterns": [{"prefix": "x-"}]}, "headers_to_add": [{"key": "X-Via", "value": "mesh"}]},
		"authorization_response": {"allowed_upstream_headers": {"patterns": [{"exact": "a"}]}, "allowed_upstream_headers_to_append": {"patterns": [{"exact": "b"}]},
			"allowed_client_headers": {"patterns": [{"exact": "c"}]}, "allowed_client_headers_on_success": {"patterns": [{"exact": "d"}]}}, `, 1)))
	one := func(s string) []routing.StringMatch { return []routing.StringMatch{routing.Exact(s, false)} }
	want = snapshot.ExternalAuthorizer{
		Provider: "authz.foo.svc.cluster.local:8000", Host: "authz.foo.svc.cluster.local:8000", Timeout: time.Second, StatusOnError: 403,
		Headers: []routing.StringMatch{routing.Prefix("x-", false)},
		HTTP: &snapshot.ExternalHTTP{
			PathPrefix: "/check", AddHeaders: map[string]string{"x-via": "mesh"},
			UpstreamHeaders: one("a"), UpstreamHeadersToAppend: one("b"), ClientHeaders: one("c"), ClientHeadersOnSuccess: one("d"),
		},
	}
	if !reflect.DeepEqual(*c.External, want) {
		t.Errorf("%+v\nwant %+v", *c.External, want)
	}
	if _, _, ask := c.Authorizer.Custom(request("/x", "")); !ask {
		t.Error("without rules it is not asked about every request")
	}
	c = guard(t, extAuthz(`"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "authz:9000"}}`))
	if c.External.Host != "authz:9000" || c.External.Timeout != 200*time.Millisecond {
		t.Errorf("%+v", c.External)
	}
}

func TestAuthorizerErrorsNameTheField(t *testing.T) {
	const at = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config"
	const service = at + ".http_service"
	http := func(fields string) string {
		return strings.Replace(httpService, `"http_service": {`, `"http_service": {`+fields+`, `, 1)
	}
	server := func(uri, cluster string) string {
		return `"http_service": {"server_uri": {"uri": "` + uri + `", "cluster": "` + cluster + `"}}`
	}
	grpc := func(fields string) string {
		return `"transport_api_version": "V3", "grpc_service": {` + fields + `}`
	}
	for _, tt := range []struct{ fields, path string }{
		{`"stat_prefix": "x"`, at},
		{strings.Replace(grpcService, "V3", "V2", 1), at + ".transport_api_version"},
		{strings.Replace(grpcService, `"transport_api_version": "V3", `, "", 1), at + ".transport_api_version"},
		{grpc(`"google_grpc": {"target_uri": "x", "stat_prefix": "x"}`), at + ".grpc_service.google_grpc"},
		{grpc(``), at + ".grpc_service"},
		{grpc(`"envoy_grpc": {"cluster_name": "authz"}`), at + ".grpc_service.envoy_grpc.cluster_name"},
		{grpc(`"envoy_grpc": {"cluster_name": "outbound|0||authz"}`), at + ".grpc_service.envoy_grpc.cluster_name"},
		{grpc(`"envoy_grpc": {"cluster_name": "a:1", "authority": "b"}`), at + ".grpc_service.envoy_grpc.authority"},
		{grpc(`"envoy_grpc": {"cluster_name": "a:1"}, "timeout": "0s"`), at + ".grpc_service.timeout"},
		{grpc(`"envoy_grpc": {"cluster_name": "a:1"}, "initial_metadata": [{"key": "a", "value": "b"}]`), at + ".grpc_service.initial_metadata"},
		{grpc(`"envoy_grpc": {"cluster_name": "a:1", "retry_policy": {}}`), at + ".grpc_service.envoy_grpc.retry_policy"},
		{server("authz", "a:1"), service + ".server_uri.uri"},
		{server("http://u:p@a", "a:1"), service + ".server_uri.uri"},
		{server("http://a/x", "a:1"), service + ".server_uri.uri"},
		{server("http://a", "x"), service + ".server_uri.cluster"},
		{http(`"path_prefix": "x"`), service + ".path_prefix"},
		{http(`"path_override": "/x"`), service + ".path_override"},
		{http(`"retry_policy": {}`), service + ".retry_policy"},
		{http(`"authorization_request": {"headers_to_add": [{"key": "a b", "value": "x"}]}`), service + ".authorization_request.headers_to_add[0].key"},
		{http(`"authorization_request": {"headers_to_add": [{"key": "host", "value": "x"}]}`), service + ".authorization_request.headers_to_add[0].key"},
		{http(`"authorization_request": {"headers_to_add": [{"key": "a", "value": "secret %X%"}]}`), service + ".authorization_request.headers_to_add[0].value"},
		{http(`"authorization_request": {"headers_to_add": [{"key": "a", "value": "secret\n"}]}`), service + ".authorization_request.headers_to_add[0].value"},
		{http(`"authorization_request": {"headers_to_add": [{"key": "a", "value": "x"}, {"key": "A", "value": "x"}]}`), service + ".authorization_request.headers_to_add[1].key"},
		{http(`"authorization_request": {"headers_to_add": [{"key": "a", "raw_value": "eA=="}]}`), service + ".authorization_request.headers_to_add[0].raw_value"},
		{http(`"authorization_request": {"allowed_headers": {}}`), service + ".authorization_request.allowed_headers.patterns"},
		{http(`"authorization_request": {"allowed_headers": {"patterns": [{"exact": "a"}]}}`) + `, "allowed_headers": {"patterns": [{"exact": "a"}]}`, at + ".allowed_headers"},
		{http(`"authorization_response": {"allowed_client_headers": {"patterns": [{"prefix": ""}]}}`), service + ".authorization_response.allowed_client_headers.patterns[0].prefix"},
		{http(`"authorization_response": {"dynamic_metadata_from_headers": {"patterns": [{"exact": "a"}]}}`), service + ".authorization_response.dynamic_metadata_from_headers"},
		{httpService + `, "with_request_body": {}`, at + ".with_request_body.max_request_bytes"},
		{httpService + `, "with_request_body": {"max_request_bytes": 4000000000}`, at + ".with_request_body.max_request_bytes"},
		{httpService + `, "with_request_body": {"max_request_bytes": 1, "pack_as_bytes": true}`, at + ".with_request_body.pack_as_bytes"},
		{httpService + `, "status_on_error": {"code": "OK"}`, at + ".status_on_error.code"},
		{httpService + `, "status_on_error": {"code": 700}`, at + ".status_on_error.code"},
		{httpService + `, "filter_enabled": {"default_value": {"numerator": 99}}`, at + ".filter_enabled"},
		{httpService + `, "filter_enabled": {}`, at + ".filter_enabled.default_value"},
		{httpService + `, ` + whereCustom, at + ".filter_enabled_metadata"},
		{httpService + `, "shadow_mode": true`, at + ".shadow_mode"},
		{httpService + `, "deny_at_disable": {}`, at + ".deny_at_disable"},
		{httpService + `, "include_peer_certificate": true`, at + ".include_peer_certificate"},
		{httpService + `, "disallowed_headers": {}`, at + ".disallowed_headers"},
	} {
		_, _, err := Inbound(listenerOf(t, guarded(extAuthz(tt.fields))))
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("a secret in %v", err)
		}
	}
}

// A chain is looked at in one order.
func TestTheOrderOfFilters(t *testing.T) {
	filters := map[string]string{
		"custom":   custom(anyone),
		"external": extAuthz(httpService + `, ` + whereCustom),
		"tokens":   jwtFilter(localKeysOf, ""),
		"audit":    rbacFilter("audit", `"rules": `+policies("LOG", rule("r", anyone, anyone))),
		"deny":     rbacFilter("deny", `"rules": `+policies("DENY", rule("r", anyone, anyone))),
		"allow":    rbacFilter("allow", `"rules": `+policies("ALLOW", rule("r", anyone, anyone))),
		"dry":      rbacFilter("dry", `"shadow_rules": `+policies("ALLOW", rule("r", anyone, anyone))),
		"limit":    limitFilterOf("limit", perSecond("1"), ""),
	}
	const at = "filter_chains[0].filters[0].typed_config.http_filters"
	for _, tt := range []struct{ order, path string }{
		{"custom external tokens audit deny dry allow limit", ""},
		{"tokens allow dry deny limit", ""},
		{"custom", at},
		{"custom tokens", at},
		{"external", at + "[0].typed_config.filter_enabled_metadata"},
		{"external custom", at + "[0].typed_config.filter_enabled_metadata"},
		{"tokens custom external", at + "[1].typed_config.shadow_rules"},
		{"deny custom external", at + "[1].typed_config.shadow_rules"},
		{"allow tokens", at + "[1].typed_config"},
		{"dry tokens", at + "[1].typed_config"},
		{"audit tokens", at + "[1].typed_config"},
		{"deny audit", at + "[1].typed_config.rules"},
		{"limit deny", at + "[1].typed_config.rules"},
		{"limit tokens", at + "[1].typed_config"},
	} {
		var list []string
		for _, name := range strings.Fields(tt.order) {
			list = append(list, filters[name])
		}
		_, in, err := Inbound(listenerOf(t, guarded(list...)))
		if tt.path == "" {
			if err != nil || in.Plain.Authorizer == nil {
				t.Errorf("%s: %v", tt.order, err)
			}
			continue
		}
		t.Run(tt.order, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
	second := strings.Replace(filters["tokens"], "envoy.filters.http.jwt_authn", "again", 1)
	_, _, err := Inbound(listenerOf(t, guarded(filters["tokens"], second)))
	requirePath(t, err, at+"[1].typed_config")
	_, _, err = Inbound(listenerOf(t, guarded(custom(anyone), strings.Replace(custom(anyone), `"custom"`, `"again"`, 1), filters["external"])))
	requirePath(t, err, at+"[1].typed_config.shadow_rules")
	_, _, err = Inbound(listenerOf(t, guarded(filters["external"], filters["external"])))
	requirePath(t, err, at+"[0].typed_config.filter_enabled_metadata")
}

// The condition that has the authorizer asked must be the one that the rules before it set.
func TestCustomRules(t *testing.T) {
	const at = "filter_chains[0].filters[0].typed_config.http_filters"
	const condition = at + "[1].typed_config.filter_enabled_metadata"
	swap := func(old, new string) string {
		return extAuthz(httpService + `, ` + strings.Replace(whereCustom, old, new, 1))
	}
	for _, tt := range []struct{ name, rules, external, path string }{
		{"another filter", custom(anyone), swap("envoy.filters.http.rbac", "x"), condition + ".filter"},
		{"another key", custom(anyone), swap("istio_ext_authz_shadow", "istio_ext_authz_x_shadow"), condition + ".path"},
		{"another rule", custom(anyone), swap(`"prefix": "istio-ext-authz"`, `"prefix": "istio-ext-authz-q"`), condition + ".value.string_match.prefix"},
		{"no prefix", custom(anyone), swap(`"prefix"`, `"exact"`), condition + ".value"},
		{"inverted", custom(anyone), swap(`"value"`, `"invert": true, "value"`), condition + ".invert"},
		{"no condition", custom(anyone), extAuthz(httpService), condition},
		{"rules that allow", strings.Replace(custom(anyone), "DENY", "ALLOW", 1), swap("", ""), at + "[0].typed_config.shadow_rules.action"},
		{"rules in force beside", strings.Replace(custom(anyone), `"shadow_rules":`, `"rules": {}, "shadow_rules":`, 1), swap("", ""), at + "[0].typed_config.rules"},
		{"a condition that is not known", custom(`{"matcher": {"name": "x"}}`), swap("", ""), at + `[0].typed_config.shadow_rules.policies["istio-ext-authz-p-ns[foo]-policy[a]-rule[0]"].permissions[0].matcher`},
	} {
		_, _, err := Inbound(listenerOf(t, guarded(tt.rules, tt.external)))
		t.Run(tt.name, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

func TestPaths(t *testing.T) {
	for fields, want := range map[string]identity.PathOptions{
		``: {}, `"normalize_path": false, "path_with_escaped_slashes_action": "KEEP_UNCHANGED", `: {},
		`"normalize_path": true, `:                        {Normalize: true},
		`"normalize_path": true, "merge_slashes": true, `: {Normalize: true, MergeSlashes: true},
		`"normalize_path": true, "merge_slashes": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD", `: {Normalize: true, MergeSlashes: true, EscapedSlashes: identity.UnescapeSlashes},
		`"path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT", `:                                               {EscapedSlashes: identity.UnescapeSlashesAndRedirect},
		`"path_with_escaped_slashes_action": "REJECT_REQUEST", `:                                                      {EscapedSlashes: identity.RejectEscapedSlashes},
	} {
		_, in, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(fields+everyInbound, "")+`]`)))
		if err != nil || in.Plain.Paths != want {
			t.Errorf("%s: %+v, %v", fields, in, err)
		}
	}
}

// Trusted proxies are believed where they are counted, as for Istio's gateways. What istiod
// sends to sidecars counts none, and then nobody is believed.
func TestTrustedHops(t *testing.T) {
	for fields, want := range map[string]int{
		``: 0, `"use_remote_address": false, `: 0, `"use_remote_address": true, `: 0, `"use_remote_address": true, "xff_num_trusted_hops": 0, `: 0,
		`"use_remote_address": true, "xff_num_trusted_hops": 1, `: 1, `"use_remote_address": true, "xff_num_trusted_hops": 7, `: 7,
	} {
		_, in, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(fields+everyInbound, "")+`]`)))
		if err != nil || in.Plain.TrustedHops != want {
			t.Errorf("%s: %+v, %v", fields, in, err)
		}
	}
	const at = "filter_chains[0].filters[0].typed_config."
	for fields, path := range map[string]string{
		`"xff_num_trusted_hops": 1, `:                                                        at + "xff_num_trusted_hops",
		`"use_remote_address": false, "xff_num_trusted_hops": 1, `:                           at + "xff_num_trusted_hops",
		`"original_ip_detection_extensions": [{"name": "x"}], `:                              at + "original_ip_detection_extensions",
		`"use_remote_address": true, "forward_client_cert_details": "ALWAYS_FORWARD_ONLY", `: at + "forward_client_cert_details",
	} {
		_, _, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(fields+everyInbound, "")+`]`)))
		t.Run(fields, func(t *testing.T) { requirePath(t, err, path) })
	}
}
