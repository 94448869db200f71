package compile

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

const limitType = `"@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"`

func limitFilterOf(name, fields, filter string) string {
	return `{"name": "` + name + `"` + filter + `, "typed_config": {` + limitType + `, ` + fields + `}}`
}

func bucket(n, interval string) string {
	return `"token_bucket": {"max_tokens": ` + n + `, "tokens_per_fill": ` + n + `, "fill_interval": "` + interval + `"}`
}

const all100 = `"filter_enabled": {"default_value": {"numerator": 100}}, "filter_enforced": {"default_value": {"numerator": 100}}`

func perSecond(n string) string { return `"stat_prefix": "s", ` + bucket(n, "1s") + `, ` + all100 }

// tokens are the sizes of the buckets for all requests.
func tokens(limits []*resilience.RateLimit) (out []uint32) {
	for _, l := range limits {
		out = append(out, l.Config().Bucket.MaxTokens)
	}
	return out
}

func TestRateLimit(t *testing.T) {
	limits := guard(t, limitFilterOf("l", bucket("5", "1s")+`, "stat_prefix": "s", "filter_enabled": {"default_value": {"numerator": 50}}, "filter_enforced": {"default_value": {"numerator": 1, "denominator": "MILLION"}},
		"status": {"code": "ServiceUnavailable"}, "always_consume_default_token_bucket": false, "rate_limited_as_resource_exhausted": true, "enable_x_ratelimit_headers": "DRAFT_VERSION_03", "enable_retry_after_header": true,
		"max_dynamic_descriptors": 7, "response_headers_to_add": [{"header": {"key": "x-r", "value": "1"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
		"request_headers_to_add_when_not_enforced": [{"header": {"key": "x-q", "value": "2"}}, {"append": false, "header": {"key": "x-p", "value": "3"}}],
		"descriptors": [{"entries": [{"key": "path", "value": "/a"}, {"key": "user"}], "shadow_mode": true, `+bucket("2", "0.5s")+`}],
		"rate_limits": [{"actions": [{"request_headers": {"header_name": ":path", "descriptor_key": "path"}}, {"generic_key": {"descriptor_value": "v"}}, {"remote_address": {}}, {"masked_remote_address": {"v4_prefix_mask_len": 24}}],
			"hits_addend": {"number": 3}}, {"actions": [
			{"query_parameters": {"query_parameter_name": "q", "descriptor_key": "k", "skip_if_absent": true}},
			{"header_value_match": {"descriptor_value": "h", "descriptor_key": "hk", "expect_match": false, "headers": [{"name": "x-a", "string_match": {"exact": "1"}}]}},
			{"query_parameter_value_match": {"descriptor_value": "q", "query_parameters": [{"name": "q", "string_match": {"exact": "1"}}]}},
			{"remote_address_match": {"descriptor_value": "r", "descriptor_key": "rk", "address_matcher": {"ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}], "invert_match": true}}}]}]`, "")).RateLimits
	if len(limits) != 1 {
		t.Fatal(limits)
	}
	got := *limits[0].Config()
	if len(got.Identity) != 64 {
		t.Errorf("identity %q", got.Identity)
	}
	got.Identity = ""
	want := resilience.RateLimitConfig{
		Name: "s", Bucket: &resilience.TokenBucket{MaxTokens: 5, TokensPerFill: 5, FillInterval: time.Second}, OnlyUnmatched: true,
		Descriptors: []resilience.LimitDescriptor{{
			Entries: []resilience.LimitEntry{{Key: "path", Value: "/a"}, {Key: "user"}}, Shadow: true,
			Bucket: resilience.TokenBucket{MaxTokens: 2, TokensPerFill: 2, FillInterval: time.Second / 2},
		}},
		Actions: []resilience.LimitActions{{Hits: 3, Actions: []resilience.LimitAction{
			{Kind: resilience.LimitRequestHeader, Key: "path", Header: routing.NewHeaderName(":path")},
			{Kind: resilience.LimitGenericKey, Key: "generic_key", Value: "v"},
			{Kind: resilience.LimitRemoteAddress, Key: "remote_address"},
			{Kind: resilience.LimitMaskedAddress, Key: "masked_remote_address", Bits4: 24, Bits6: 128},
		}}, {Hits: 1, Actions: []resilience.LimitAction{
			{Kind: resilience.LimitQueryParameter, Key: "k", Parameter: "q", SkipIfAbsent: true},
			{Kind: resilience.LimitHeaderMatch, Key: "hk", Value: "h", Invert: true, Headers: []routing.HeaderMatch{{Name: routing.NewHeaderName("x-a"), String: routing.Exact("1", false)}}},
			{Kind: resilience.LimitQueryMatch, Key: "query_match", Value: "q", Query: []routing.QueryMatch{{Name: "q", Kind: routing.QueryString, String: routing.Exact("1", false)}}},
			{Kind: resilience.LimitAddressMatch, Key: "rk", Value: "r", Invert: true, Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		}}},
		MaxDynamic: 7, Enabled: routing.Fraction{PerMillion: 500_000}, Enforced: routing.Fraction{PerMillion: 1},
		Status: 503, ResourceExhausted: true, Headers: true, RetryAfter: true,
		ResponseHeaders: []resilience.LimitHeader{{Name: "x-r", Value: "1", Replace: true}},
		RequestHeaders:  []resilience.LimitHeader{{Name: "x-q", Value: "2"}, {Name: "x-p", Value: "3", Replace: true}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if c := guard(t, limitFilterOf("l", `"stat_prefix": "s"`, "")); c.RateLimits != nil {
		t.Errorf("a filter without a bucket limits: %+v", c.RateLimits)
	}
	if c := guard(t, limitFilterOf("l", `"stat_prefix": "s", "token_bucket": {"max_tokens": 3, "fill_interval": "1s"}`, "")); c.RateLimits[0].Config().Bucket.TokensPerFill != 1 {
		t.Errorf("%+v", c.RateLimits[0].Config().Bucket)
	}
}

// Equal configurations of a filter are one limit across updates, others are not.
func TestLimitsAreKnownAgain(t *testing.T) {
	of := func(name, fields string) string {
		return guard(t, limitFilterOf(name, fields, "")).RateLimits[0].Config().Identity
	}
	if first, again := of("l", perSecond("1")), of("l", perSecond("1")); first != again {
		t.Error("equal configurations differ")
	}
	if of("l", perSecond("1")) == of("l", perSecond("2")) || of("l", perSecond("1")) == of("m", perSecond("1")) {
		t.Error("different configurations are equal")
	}
}

func TestRateLimitErrorsNameTheField(t *testing.T) {
	const at = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config"
	with := func(fields string) string { return perSecond("1") + `, ` + fields }
	action := func(a string) string { return with(`"rate_limits": [{"actions": [` + a + `]}]`) }
	const first = at + ".rate_limits[0].actions[0]"
	for _, tt := range []struct{ fields, path string }{
		{`"token_bucket": {"fill_interval": "1s"}`, at + ".token_bucket.max_tokens"},
		{`"token_bucket": {"max_tokens": 1}`, at + ".token_bucket.fill_interval"},
		{bucket("1", "0.049s"), at + ".token_bucket.fill_interval"},
		{bucket("1", "-1s"), at + ".token_bucket.fill_interval"},
		{`"token_bucket": {"max_tokens": 1, "tokens_per_fill": 0, "fill_interval": "1s"}`, at + ".token_bucket.tokens_per_fill"},
		{bucket("1", "1s") + `, "filter_enabled": {}`, at + ".filter_enabled.default_value"},
		{bucket("1", "1s") + `, "filter_enforced": {"default_value": {"denominator": 9}}`, at + ".filter_enforced.default_value.denominator"},
		{with(`"status": {"code": 700}`), at + ".status"},
		{with(`"enable_x_ratelimit_headers": 9`), at + ".enable_x_ratelimit_headers"},
		{with(`"local_rate_limit_per_downstream_connection": true`), at + ".local_rate_limit_per_downstream_connection"},
		{with(`"local_cluster_rate_limit": {}`), at + ".local_cluster_rate_limit"},
		{with(`"descriptors": [{"entries": [{"key": "a"}]}]`), at + ".descriptors[0].token_bucket"},
		{with(`"descriptors": [{` + bucket("1", "1s") + `}]`), at + ".descriptors[0].entries"},
		{with(`"descriptors": [{"entries": [{"key": "a"}], ` + bucket("1", "0s") + `}]`), at + ".descriptors[0].token_bucket.fill_interval"},
		{with(`"descriptors": [{"entries": [{"key": "a"}], ` + bucket("1", "1s") + `}, {"entries": [{"key": "a"}], ` + bucket("1", "1s") + `}]`), at + ".descriptors[1].entries"},
		{with(`"rate_limits": [{}]`), at + ".rate_limits[0].actions"},
		{with(`"rate_limits": [{"stage": 1}]`), at + ".rate_limits[0].stage"},
		{with(`"rate_limits": [{"disable_key": "x"}]`), at + ".rate_limits[0].disable_key"},
		{with(`"rate_limits": [{"limit": {}}]`), at + ".rate_limits[0].limit"},
		{with(`"rate_limits": [{"hits_addend": {"format": "x"}}]`), at + ".rate_limits[0].hits_addend.format"},
		{with(`"rate_limits": [{"hits_addend": {"number": 0}}]`), at + ".rate_limits[0].hits_addend.number"},
		{with(`"rate_limits": [{"apply_on_stream_done": true}]`), at + ".rate_limits[0].apply_on_stream_done"},
		{action(`{}`), first},
		{action(`{"source_cluster": {}}`), first + ".source_cluster"},
		{action(`{"metadata": {"descriptor_key": "x"}}`), first + ".metadata"},
		{action(`{"generic_key": {}}`), first + ".generic_key.descriptor_value"},
		{action(`{"generic_key": {"default_value": "x"}}`), first + ".generic_key.default_value"},
		{action(`{"request_headers": {}}`), first + ".request_headers"},
		{action(`{"masked_remote_address": {"v4_prefix_mask_len": 4000000000}}`), first + ".masked_remote_address"},
		{action(`{"header_value_match": {"descriptor_value": "x", "headers": [{}]}}`), first + ".header_value_match.headers[0].name"},
		{action(`{"query_parameter_value_match": {"descriptor_value": "x", "query_parameters": [{"name": "q", "string_match": {}}]}}`), first + ".query_parameter_value_match.query_parameters[0].string_match"},
		{action(`{"remote_address_match": {"descriptor_value": "x", "address_matcher": {"ranges": [{"address_prefix": "x"}]}}}`), first + ".remote_address_match.address_matcher.ranges[0]"},
		{with(`"response_headers_to_add": [{"header": {"key": "host", "value": "x"}}]`), at + ".response_headers_to_add[0].header.key"},
		{with(`"response_headers_to_add": [{"header": {"key": "a", "value": "%X%"}}]`), at + ".response_headers_to_add[0].header.value"},
		{with(`"response_headers_to_add": [{"header": {"key": "a", "value": "x"}, "append_action": "ADD_IF_ABSENT"}]`), at + ".response_headers_to_add[0].append_action"},
		{with(`"response_headers_to_add": [{"header": {"key": "a", "value": "x"}, "append": true, "append_action": "ADD_IF_ABSENT"}]`), at + ".response_headers_to_add[0].append"},
	} {
		_, _, err := Inbound(listenerOf(t, guarded(limitFilterOf("l", tt.fields, ""))))
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

// routed is a listener with routes and configurations of its levels for filters.
func routed(filters, routes, host, config string) string {
	manager := strings.Replace(everyInbound, router, filters+`, `+router, 1)
	manager = strings.Replace(manager, `{"match": {"prefix": "/"}, "non_forwarding_action": {}}`, routes, 1)
	manager = strings.Replace(manager, `"domains": ["*"]`, `"domains": ["*"], "typed_per_filter_config": {`+host+`}`, 1)
	manager = strings.Replace(manager, `"name": "inbound", `, `"name": "inbound", "typed_per_filter_config": {`+config+`}, `, 1)
	return inboundOf(`"filter_chains": [` + chain(manager, "") + `]`)
}

func routeOf(match, configs string) string {
	return `{"match": ` + match + `, "non_forwarding_action": {}, "typed_per_filter_config": {` + configs + `}}`
}

func TestRoutesHaveTheirOwnLimits(t *testing.T) {
	l, m := limitFilterOf("l", perSecond("1"), ""), limitFilterOf("m", perSecond("2"), "")
	own := func(name, n string) string { return `"` + name + `": {` + limitType + `, ` + perSecond(n) + `}` }
	off := func(name string) string {
		return `"` + name + `": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}`
	}
	const rest, a = `{"prefix": "/"}`, `{"prefix": "/a"}`
	for _, tt := range []struct {
		name, listener string
		chain          []uint32
		routes         [][]uint32
	}{
		{"no configuration", routed(l+`, `+m, routeOf(rest, ""), "", ""), []uint32{1, 2}, nil},
		{"routes that do not differ", routed(l+`, `+m, routeOf(a, "")+`, `+routeOf(rest, ""), "", ""), []uint32{1, 2}, nil},
		{"a route's in the place of the filter's", routed(l+`, `+m, routeOf(a, own("l", "10"))+`, `+routeOf(rest, ""), "", ""), nil, [][]uint32{{10, 2}, {1, 2}}},
		{"off for a route", routed(l, routeOf(a, off("l"))+`, `+routeOf(rest, ""), "", ""), nil, [][]uint32{nil, {1}}},
		{"the host's for all", routed(l+`, `+m, routeOf(a, "")+`, `+routeOf(rest, ""), own("m", "20"), ""), []uint32{1, 20}, nil},
		{"the most specific", routed(l+`, `+m, routeOf(a, own("l", "10"))+`, `+routeOf(rest, off("m")), own("l", "20"), own("l", "30")+`, `+own("m", "40")), nil, [][]uint32{{10, 40}, {20}}},
		{"one route", routed(l, routeOf(rest, own("l", "10")), "", ""), []uint32{10}, nil},
		{"what comes after all is not reached", routed(l, routeOf(rest, "")+`, `+routeOf(a, own("l", "10")), "", ""), []uint32{1}, nil},
		{"a filter that is off until a route configures it", routed(limitFilterOf("l", perSecond("1"), `, "disabled": true`), routeOf(a, own("l", "10"))+`, `+routeOf(rest, ""), "", ""), nil, [][]uint32{{10}, nil}},
		{"a configuration in a wrapper", routed(limitFilterOf("l", `"stat_prefix": "x"`, ""), routeOf(a, `"l": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {`+limitType+`, `+perSecond("10")+`}}`)+`, `+routeOf(rest, ""), "", ""), nil, [][]uint32{{10}, nil}},
	} {
		_, in, err := Inbound(listenerOf(t, tt.listener))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var routes [][]uint32
		for _, r := range in.Plain.Routes {
			routes = append(routes, tokens(r.RateLimits))
		}
		if got := tokens(in.Plain.RateLimits); !reflect.DeepEqual(got, tt.chain) || !reflect.DeepEqual(routes, tt.routes) {
			t.Errorf("%s: %v, %v, want %v, %v", tt.name, got, routes, tt.chain, tt.routes)
		}
		if len(routes) > 0 {
			r := request("/b", "")
			if in.Plain.Routes[0].Match.Matches(&r.Request, 0) || !in.Plain.Routes[1].Match.Matches(&r.Request, 0) {
				t.Errorf("%s: the matches are wrong", tt.name)
			}
		}
	}
	const routes = "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes"
	deny := rbacFilter("rbac", `"rules": `+policies("DENY", rule("r", anyone, anyone)))
	for _, tt := range []struct{ name, listener, path string }{
		{"rules that are off for a route", routed(deny, routeOf(a, off("rbac"))+`, `+routeOf(rest, ""), "", ""), routes + `[0].typed_per_filter_config["rbac"]`},
		{"rules that are off for the host", routed(deny, routeOf(rest, ""), off("rbac"), ""), `filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].typed_per_filter_config["rbac"]`},
		{"rules that are off for all", routed(deny, routeOf(rest, ""), "", off("rbac")), `filter_chains[0].filters[0].typed_config.route_config.typed_per_filter_config["rbac"]`},
		{"tokens that are off for a route", routed(jwtFilter(localKeysOf, ""), routeOf(rest, off("envoy.filters.http.jwt_authn")), "", ""), routes + `[0].typed_per_filter_config["envoy.filters.http.jwt_authn"]`},
		{"a filter that is not there", routed(l, routeOf(rest, own("m", "1")), "", ""), routes + `[0].typed_per_filter_config["m"]`},
		{"a route without a bucket", routed(l, routeOf(rest, `"l": {`+limitType+`}`), "", ""), routes + `[0].typed_per_filter_config["l"].token_bucket`},
		{"a configuration of another type", routed(l, routeOf(rest, `"l": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"}`), "", ""), routes + `[0].typed_per_filter_config["l"]`},
		{"no route for the rest", routed(l, routeOf(a, own("l", "1")), "", ""), routes},
		{"a route that goes elsewhere", routed(l, `{"match": {"prefix": "/a"}, "route": {"cluster": "x"}}, `+routeOf(rest, ""), "", ""), routes + "[0]"},
	} {
		_, _, err := Inbound(listenerOf(t, tt.listener))
		t.Run(tt.name, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

func TestOwnMetadata(t *testing.T) {
	with := func(fields string) string {
		return strings.Replace(inboundOf(`"filter_chains": [`+chain(everyInbound, `"filter_chain_match": {"transport_protocol": "tls"}, "transport_socket": `+serverSocket(ownCert+`, `+ownTrust, ""))+`, `+
			chain(everyInbound, `"filter_chain_match": {"transport_protocol": "raw_buffer"}`)+`]`), `"traffic_direction"`, `"metadata": {"filter_metadata": {"sinew": {`+fields+`}, "other": {"x": 1}}}, "traffic_direction"`, 1)
	}
	_, in, err := Inbound(listenerOf(t, with(fmt.Sprintf(`"mtls_dry_run": "PeerAuthentication a/b", "identity_rate_limit": {"requests_per_second": 5, "overrides": [{"requests_per_second": 9, "principals": [%q, %q]}]}`, web, batch))))
	if err != nil {
		t.Fatal(err)
	}
	if in.StrictDryRun != "PeerAuthentication a/b" {
		t.Errorf("%q", in.StrictDryRun)
	}
	want := resilience.PrincipalLimit{PerSecond: 5, Overrides: []resilience.PrincipalOverride{{PerSecond: 9, Principals: []string{web, batch}}}}
	for _, chain := range []*snapshot.FilterChain{in.TLS, in.Plain} {
		if len(chain.RateLimits) != 1 || chain.RateLimits[0] != in.TLS.RateLimits[0] {
			t.Fatalf("%+v", chain.RateLimits)
		}
		c := chain.RateLimits[0].Config()
		if !reflect.DeepEqual(*c.Principals, want) || c.Enabled.PerMillion != 1_000_000 || c.Enforced.PerMillion != 1_000_000 || c.Identity == "" {
			t.Errorf("%+v", c)
		}
	}
	const at = `metadata.filter_metadata["sinew"]`
	const limit = at + ".identity_rate_limit"
	for _, tt := range []struct{ fields, path string }{
		{`"newer": 1`, at + ".newer"},
		{`"mtls_dry_run": true`, at + ".mtls_dry_run"},
		{`"identity_rate_limit": 5`, limit},
		{`"identity_rate_limit": {}`, limit},
		{`"identity_rate_limit": {"newer": 5}`, limit + ".newer"},
		{`"identity_rate_limit": {"requests_per_second": 0.5}`, limit + ".requests_per_second"},
		{`"identity_rate_limit": {"requests_per_second": -1}`, limit + ".requests_per_second"},
		{`"identity_rate_limit": {"requests_per_second": 4294967296}`, limit + ".requests_per_second"},
		{`"identity_rate_limit": {"requests_per_second": "5"}`, limit + ".requests_per_second"},
		{`"identity_rate_limit": {"overrides": {}}`, limit + ".overrides"},
		{`"identity_rate_limit": {"overrides": [{"requests_per_second": 5, "principals": ["x"]}]}`, limit + ".overrides[0].principals[0]"},
		{`"identity_rate_limit": {"overrides": [{"principals": []}]}`, limit + ".overrides[0].requests_per_second"},
		{`"identity_rate_limit": {"overrides": [{"requests_per_second": 5, "principals": [], "x": 1}]}`, limit + ".overrides[0].x"},
		{`"identity_rate_limit": {"overrides": [{"requests_per_second": 5}]}`, limit},
	} {
		_, _, err := Inbound(listenerOf(t, with(tt.fields)))
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}
