package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

const (
	limitAny = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
	always   = "filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}"
)

func bucketOf(n int) string {
	return fmt.Sprintf("token_bucket: {max_tokens: %d, tokens_per_fill: %d, fill_interval: 60s}", n, n)
}

func envoyFilter(name, namespace, app string, patches ...string) string {
	selector := ""
	if app != "" {
		selector = "  workloadSelector: {labels: {app: " + app + "}}\n"
	}
	return fmt.Sprintf("apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: %s, namespace: %s}\nspec:\n%s  configPatches:\n%s",
		name, namespace, selector, strings.Join(patches, ""))
}

// filterPatch inserts the filter with a configuration in flow style.
func filterPatch(config string) string {
	return `  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          "@type": type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: ` + limitAny + `
          value: {` + config + "}\n"
}

// routePatchOf gives the route of a virtual host a value in flow style.
func routePatchOf(host, value string) string {
	return `  - applyTo: HTTP_ROUTE
    match:
      context: SIDECAR_INBOUND
      routeConfiguration: {vhost: {name: "` + host + `", route: {action: ANY}}}
    patch:
      operation: MERGE
      value: {` + value + "}\n"
}

func routeConfig(config string) string {
	return `typed_per_filter_config: {envoy.filters.http.local_ratelimit: {"@type": ` + limitAny + ", " + config + "}}"
}

// limitsAt writes the limits of a workload's port: name, tokens of the filter's bucket
// and of the route's, number of the route's lists of actions.
func limitsAt(t *testing.T, s *Set, app, namespace string, port uint32) string {
	t.Helper()
	list, err := s.LocalRateLimitsFor(map[string]string{"app": app}, namespace, port)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range list {
		text := l.Policy.Name + " " + strconv.Itoa(int(l.Filter.GetTokenBucket().GetMaxTokens()))
		if l.Route != nil {
			text += fmt.Sprintf("/%d/%d", l.Route.GetTokenBucket().GetMaxTokens(), len(l.Route.GetRateLimits()))
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// documented is the form of Istio's task and of its sample, in block style.
const documented = `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: filter-local-ratelimit-svc
  namespace: istio-system
spec:
  workloadSelector:
    labels:
      app: productpage
  configPatches:
    - applyTo: HTTP_FILTER
      match:
        context: SIDECAR_INBOUND
        listener:
          filterChain:
            filter:
              name: "envoy.filters.network.http_connection_manager"
      patch:
        operation: INSERT_BEFORE
        value:
          name: envoy.filters.http.local_ratelimit
          typed_config:
            "@type": type.googleapis.com/udpa.type.v1.TypedStruct
            type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            value:
              stat_prefix: http_local_rate_limiter
    - applyTo: HTTP_ROUTE
      match:
        context: SIDECAR_INBOUND
        routeConfiguration:
          vhost:
            name: "inbound|http|8000"
            route:
              action: ANY
      patch:
        operation: MERGE
        value:
          route:
            rate_limits:
              - actions:
                  - remote_address: {}
              - actions:
                  - header_value_match:
                      descriptor_value: "productpage"
                      expect_match: true
                      headers:
                        - name: :path
                          string_match:
                            prefix: /productpage
                            ignore_case: true
          typed_per_filter_config:
            envoy.filters.http.local_ratelimit:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: test_enabled
              token_bucket:
                max_tokens: 100
                tokens_per_fill: 100
                fill_interval: 60s
              enable_x_ratelimit_headers: DRAFT_VERSION_03
              filter_enabled:
                runtime_key: test_enabled
                default_value:
                  numerator: 100
                  denominator: HUNDRED
              filter_enforced:
                runtime_key: test_enabled
                default_value:
                  numerator: 100
                  denominator: HUNDRED
              response_headers_to_add:
                - append: false
                  header:
                    key: x-local-rate-limit
                    value: "true"
              descriptors:
                - entries:
                    - key: header_match
                      value: productpage
                  token_bucket:
                    max_tokens: 10
                    tokens_per_fill: 10
                    fill_interval: 60s
---
apiVersion: v1
kind: Service
metadata: {name: productpage}
spec: {selector: {app: productpage}, ports: [{name: http, port: 8000, targetPort: 80}, {name: more, port: 9000}]}
`

func TestEnvoyFilterAsDocumented(t *testing.T) {
	r := Build([]*File{Parse("f.yaml", []byte(documented))}, nil)
	wantTexts(t, r.Problems)
	for _, tt := range []struct {
		app, namespace string
		port           uint32
		want           string
	}{
		{"productpage", "default", 80, "filter-local-ratelimit-svc 0/100/2"}, // the service's port 8000
		{"productpage", "default", 9000, ""},
		{"productpage", "default", 8000, "filter-local-ratelimit-svc 0/100/2"}, // a port without a service
		{"productpage", "other", 8000, "filter-local-ratelimit-svc 0/100/2"},
		{"reviews", "default", 8000, ""},
	} {
		if got := limitsAt(t, r.Set, tt.app, tt.namespace, tt.port); got != tt.want {
			t.Errorf("%s of %s at %d: %q, want %q", tt.app, tt.namespace, tt.port, got, tt.want)
		}
	}
	// It survives a restart in which its file is broken.
	state, err := r.AccessState()
	if err != nil {
		t.Fatal(err)
	}
	restored, err := RestoreAccess(state)
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(documented, "max_tokens: 100", "max_token: 100", 1)
	next := Build([]*File{Parse("f.yaml", []byte(broken))}, restored)
	if got := limitsAt(t, next.Set, "productpage", "default", 80); got != "filter-local-ratelimit-svc 0/100/2" || len(next.Set.Broken) != 0 {
		t.Errorf("in force %q, withheld %v", got, next.Set.Broken)
	}
	if got, want := errorsOf(next)[0], "f.yaml:56: EnvoyFilter istio-system/filter-local-ratelimit-svc: spec.configPatches[1].patch.value.typedPerFilterConfig[envoy.filters.http.local_ratelimit].tokenBucket.maxToken: unknown field; did you mean maxTokens?"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := RestoreAccess([]byte(strings.Replace(string(state), `"max_tokens"`, `"max_token"`, 1))); err == nil {
		t.Error("a stored limit that can not be read is accepted")
	}
	// From the start it withholds the listeners of the workloads that it selects, in every namespace.
	first := Build([]*File{Parse("f.yaml", []byte(broken))}, nil)
	for _, ns := range []string{"default", "other"} {
		if _, withheld := first.Set.Withheld(map[string]string{"app": "productpage"}, ns); !withheld {
			t.Errorf("productpage of %s is served without its limit", ns)
		}
	}
	if reason, withheld := first.Set.Withheld(map[string]string{"app": "reviews"}, "default"); withheld {
		t.Errorf("reviews is withheld: %s", reason)
	}
}

func TestEnvoyFilterLimits(t *testing.T) {
	in := envoyFilter("own", "default", "web", filterPatch("stat_prefix: own, "+bucketOf(5)+", "+always),
		routePatchOf("inbound|http|81", "route: {rate_limits: [{actions: [{remote_address: {}}]}]}"),
		routePatchOf("inbound|http|82", "typedPerFilterConfig: {envoy.filters.http.local_ratelimit: {'@type': t/udpa.type.v1.TypedStruct, typeUrl: "+limitAny+", value: {statPrefix: r, "+bucketOf(7)+", "+always+"}}}")) +
		"---\n" + envoyFilter("wide", "default", "", filterPatch("stat_prefix: wide, "+bucketOf(9)+", "+always)) +
		"---\n" + envoyFilter("all", "istio-system", "", filterPatch("stat_prefix: all"), routePatchOf("", routeConfig("stat_prefix: r, "+bucketOf(11)+", "+always))) +
		"---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{name: http, port: 81}, {name: b, port: 82}, {name: c, port: 83}]}\n" +
		"---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: web}\nspec: {address: 10.0.0.1, labels: {app: web}, ports: {http: 8081}}\n"
	r := Build([]*File{Parse("f.yaml", []byte(in))}, nil)
	wantTexts(t, r.Problems)
	for _, tt := range []struct {
		app, namespace string
		port           uint32
		want           string
	}{
		{"web", "default", 8081, "all 0/11/0, own 5/5/1, wide 9"},
		{"web", "default", 82, "all 0/11/0, own 5/7/0, wide 9"},
		{"web", "default", 83, "all 0/11/0, own 5, wide 9"},
		{"web", "other", 83, "all 0/11/0"},
		{"x", "default", 82, "all 0/11/0, wide 9"},
	} {
		if got := limitsAt(t, r.Set, tt.app, tt.namespace, tt.port); got != tt.want {
			t.Errorf("%s of %s at %d: %q, want %q", tt.app, tt.namespace, tt.port, got, tt.want)
		}
	}
}

func TestEnvoyFilterRefused(t *testing.T) {
	good := filterPatch("stat_prefix: s, " + bucketOf(5) + ", " + always)
	bare := filterPatch("stat_prefix: s")
	route := func(value string) string { return routePatchOf("inbound|http|80", value) }
	swap := func(patch, old, new string) string {
		if !strings.Contains(patch, old) {
			t.Fatalf("%q is not in %s", old, patch)
		}
		return strings.Replace(patch, old, new, 1)
	}
	const (
		p0    = "spec.configPatches[0]"
		inner = p0 + ".patch.value.typedConfig.value"
		only  = " " + onlyLimits
	)
	for _, tt := range []struct {
		name, text string
		want       string // field: message; no error where it is ""
		warning    string
		inward     bool
	}{
		{name: "good", text: good},
		{name: "in front of the router", text: swap(good, "http_connection_manager}", "http_connection_manager, subFilter: {name: envoy.filters.http.router}}")},
		{name: "one way of writing", text: swap(swap(good, "typed_config", "typedConfig"), "max_tokens", "maxTokens")},
		{name: "no patches", text: "", want: "spec.configPatches: must not be empty", inward: true},
		{name: "cluster", text: swap(good, "HTTP_FILTER", "CLUSTER"), want: p0 + ".applyTo: CLUSTER" + only + ", with HTTP_FILTER and HTTP_ROUTE", inward: true},
		{name: "virtual host", text: swap(good, "HTTP_FILTER", "VIRTUAL_HOST"), want: p0 + ".applyTo: VIRTUAL_HOST" + only + ", with HTTP_FILTER and HTTP_ROUTE", inward: true},
		{name: "unknown kind of patch", text: swap(good, "HTTP_FILTER", "HTTP"), want: p0 + `.applyTo: "HTTP" is not one of`, inward: true},
		{name: "any context", text: swap(good, "context: SIDECAR_INBOUND", "proxy: {}"), want: p0 + ".match.proxy: must not be empty", inward: true},
		{name: "context any", text: swap(good, "SIDECAR_INBOUND", "ANY"), want: p0 + ".match.context: ANY" + only + ", which has SIDECAR_INBOUND", inward: true},
		{name: "gateway", text: swap(good, "SIDECAR_INBOUND", "GATEWAY"), want: p0 + ".match.context: GATEWAY" + only + ", which has SIDECAR_INBOUND"},
		{name: "outbound", text: swap(good, "SIDECAR_INBOUND", "SIDECAR_OUTBOUND"), want: p0 + ".match.context: SIDECAR_OUTBOUND" + only + ", which has SIDECAR_INBOUND"},
		{name: "proxy", text: swap(good, "context: SIDECAR_INBOUND", "context: SIDECAR_INBOUND\n      proxy: {proxyVersion: x}"), want: p0 + ".match.proxy: " + onlyLimits, inward: true},
		{name: "port of a listener", text: swap(good, "{filterChain", "{portNumber: 80, filterChain"), want: p0 + ".match.listener.portNumber: is not supported for a rate limit", inward: true},
		{name: "chain", text: swap(good, "{filter:", "{sni: a, filter:"), want: p0 + ".match.listener.filterChain.sni: is not supported", inward: true},
		{name: "other manager", text: swap(good, "http_connection_manager", "tcp_proxy"), want: p0 + `.match.listener.filterChain.filter.name: "envoy.filters.network.tcp_proxy" is not supported`, inward: true},
		{name: "in front of another filter", text: swap(good, "http_connection_manager}", "http_connection_manager, subFilter: {name: envoy.filters.http.cors}}"), want: p0 + `.match.listener.filterChain.filter.subFilter.name: "envoy.filters.http.cors" is not supported`, inward: true},
		{name: "after", text: swap(good, "INSERT_BEFORE", "INSERT_AFTER"), want: p0 + `.patch.operation: "INSERT_AFTER" is not supported`, inward: true},
		{name: "remove", text: swap(good, "INSERT_BEFORE", "REMOVE"), want: p0 + `.patch.operation: "REMOVE" is not supported`, inward: true},
		{name: "class", text: swap(good, "operation:", "filterClass: AUTHZ\n      operation:"), want: p0 + ".patch.filterClass: " + onlyLimits, inward: true},
		{name: "other filter", text: swap(good, "name: envoy.filters.http.local_ratelimit", "name: envoy.filters.http.lua"), want: p0 + `.patch.value.name: "envoy.filters.http.lua" is not supported`, inward: true},
		{name: "other configuration", text: swap(good, "LocalRateLimit", "RateLimit"), want: p0 + ".patch.value.typedConfig.typeUrl: ", inward: true},
		{name: "disabled", text: swap(good, "name: envoy.filters.http.local_ratelimit", "name: envoy.filters.http.local_ratelimit\n        disabled: true"), want: p0 + ".patch.value.disabled: unknown field", inward: true},
		{name: "misspelt", text: swap(good, "max_tokens", "max_token"), want: inner + ".tokenBucket.maxToken: unknown field", inward: true},
		{name: "text for a number", text: swap(good, "max_tokens: 5", "max_tokens: many"), want: inner + ".tokenBucket.maxTokens: ", inward: true},
		{name: "null", text: swap(good, bucketOf(5), "token_bucket: null"), want: inner + ".tokenBucket: must have a value", inward: true},
		{name: "no tokens", text: swap(good, "max_tokens: 5", "max_tokens: 0"), want: inner + ".tokenBucket", inward: true},
		{name: "no interval", text: swap(good, ", fill_interval: 60s", ""), want: inner + ".tokenBucket.fillInterval: missing", inward: true},
		{name: "per connection", text: swap(good, "stat_prefix: s", "stat_prefix: s, local_rate_limit_per_downstream_connection: true"), want: inner + ".localRateLimitPerDownstreamConnection: not supported", inward: true},
		{name: "no name", text: swap(good, "stat_prefix: s, ", ""), want: inner + ": invalid LocalRateLimit.StatPrefix", inward: true},
		{name: "not enforced", text: swap(good, "filter_enforced: {default_value: {numerator: 100}}", "filter_enforced: {default_value: {numerator: 0}}"), warning: inner + ".filterEnforced: warning: is 0, as by default: nothing is refused"},
		{name: "nothing", text: bare, warning: inner + ": warning: limits nothing: it has no token_bucket"},
		{name: "twice", text: good + good, want: "spec.configPatches[1].patch.value: the filter is inserted already at", inward: true},

		{name: "route", text: bare + route(routeConfig("stat_prefix: r, "+bucketOf(5)+", "+always))},
		{name: "route alone", text: route(routeConfig("stat_prefix: r, " + bucketOf(5) + ", " + always)), want: "spec.configPatches: has no patch that inserts", inward: true},
		{name: "route adds", text: good + swap(route(routeConfig("stat_prefix: r, "+bucketOf(5))), "MERGE", "ADD"), want: `spec.configPatches[1].patch.operation: "ADD" is not supported`, inward: true},
		{name: "route of another host", text: good + swap(route(routeConfig("stat_prefix: r, "+bucketOf(5))), "inbound|http|80", "reviews:80"), want: `spec.configPatches[1].match.routeConfiguration.vhost.name: "reviews:80" is not the virtual host of an inbound port`, inward: true},
		{name: "route of a port beyond", text: good + swap(route(routeConfig("stat_prefix: r, "+bucketOf(5))), "inbound|http|80", "inbound|http|65536"), want: `spec.configPatches[1].match.routeConfiguration.vhost.name: "inbound|http|65536" is not`, inward: true},
		{name: "route by name", text: good + swap(route(routeConfig("stat_prefix: r, "+bucketOf(5))), "action: ANY", "name: api"), want: `spec.configPatches[1].match.routeConfiguration.vhost.route.name: "api" is not a route`, inward: true},
		{name: "route that redirects", text: good + swap(route(routeConfig("stat_prefix: r, "+bucketOf(5))), "action: ANY", "action: REDIRECT"), want: `spec.configPatches[1].match.routeConfiguration.vhost.route.action: REDIRECT is not supported`, inward: true},
		{name: "route with more", text: good + route("route: {timeout: 5s, rate_limits: [{actions: [{remote_address: {}}]}]}"), want: "spec.configPatches[1].patch.value.route.timeout: unknown field", inward: true},
		{name: "route for another filter", text: good + route("typed_per_filter_config: {envoy.filters.http.rbac: {}}"), want: "spec.configPatches[1].patch.value.typedPerFilterConfig[envoy.filters.http.rbac]: is not supported", inward: true},
		{name: "route without a bucket", text: good + route(routeConfig("stat_prefix: r")), want: "spec.configPatches[1].patch.value.typedPerFilterConfig[envoy.filters.http.local_ratelimit].tokenBucket: required", inward: true},
		{name: "route without anything", text: good + route("route: {}"), want: "spec.configPatches[1].patch.value: must have route.rate_limits", inward: true},
		{name: "actions on a bare filter", text: bare + route("route: {rate_limits: [{actions: [{remote_address: {}}]}]}"), want: inner + ".tokenBucket: required", inward: true},
		{name: "action that is not enforced", text: good + route("route: {rate_limits: [{actions: [{source_cluster: {}}]}]}"), want: "spec.configPatches[1].patch.value.route.rateLimits[0].actions[0].sourceCluster: not supported", inward: true},
		{name: "stage", text: good + route("route: {rate_limits: [{stage: 1, actions: [{remote_address: {}}]}]}"), want: "spec.configPatches[1].patch.value.route.rateLimits[0].stage: not supported", inward: true},
		{name: "stage of the filter", text: swap(good, "stat_prefix: s", "stat_prefix: s, stage: 1") + route("route: {rate_limits: [{actions: [{remote_address: {}}]}]}"), want: inner + ".stage: is not supported", inward: true},
		{name: "actions twice", text: swap(good, "stat_prefix: s", "stat_prefix: s, rate_limits: [{actions: [{remote_address: {}}]}]") + route("route: {rate_limits: [{actions: [{remote_address: {}}]}]}"), want: "spec.configPatches[1].patch.value.route.rateLimits: has no effect", inward: true},
		{name: "port twice", text: good + route(routeConfig("stat_prefix: r, "+bucketOf(5)+", "+always)) + route(routeConfig("stat_prefix: r, "+bucketOf(6)+", "+always)), want: "spec.configPatches[2].match.routeConfiguration.vhost.name: the port is that of spec.configPatches[1] too", inward: true},
		{name: "port and all", text: good + route(routeConfig("stat_prefix: r, "+bucketOf(5)+", "+always)) + routePatchOf("", routeConfig("stat_prefix: r, "+bucketOf(6)+", "+always)), want: "spec.configPatches[2].match.routeConfiguration.vhost.name: the port is that of spec.configPatches[1] too", inward: true},
		{name: "all and port", text: good + routePatchOf("", routeConfig("stat_prefix: r, "+bucketOf(6)+", "+always)) + route(routeConfig("stat_prefix: r, "+bucketOf(5)+", "+always)), want: "spec.configPatches[2].match.routeConfiguration.vhost.name: the port is that of spec.configPatches[1] too", inward: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := envoyFilter("x", "default", "web", tt.text)
			if tt.text == "" {
				text = strings.Replace(text, "configPatches:", "configPatches: []", 1)
			}
			text += "---\n" + "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n"
			r := Build([]*File{Parse("f.yaml", []byte(text))}, nil)
			var errs, warnings []string
			for _, p := range r.Problems {
				switch line := fmt.Sprintf("%s: %s", p.Field, p.Message); {
				case p.Severity == Error:
					errs = append(errs, line)
					if p.At.Line < 2 {
						t.Errorf("the error has no line: %s", p)
					}
				case p.Severity == Warning:
					warnings = append(warnings, p.Field+": warning: "+p.Message)
				}
			}
			if tt.want == "" && len(errs) > 0 || tt.want != "" && !slices.ContainsFunc(errs, func(e string) bool { return strings.HasPrefix(e, tt.want) }) {
				t.Errorf("got %q\nwant %s", errs, tt.want)
			}
			if got := strings.Join(warnings, "\n"); tt.want == "" && got != tt.warning {
				t.Errorf("warnings %q, want %q", got, tt.warning)
			}
			if _, withheld := r.Set.Withheld(map[string]string{"app": "web"}, "default"); withheld != tt.inward {
				t.Errorf("withheld %v, want %v", withheld, tt.inward)
			}
			if got := len(r.Set.EnvoyFilters); got != 1 && tt.want == "" || got != 0 && tt.want != "" {
				t.Errorf("%d in force", got)
			}
		})
	}
}

func TestEnvoyFilterNotes(t *testing.T) {
	good := filterPatch("stat_prefix: s, " + bucketOf(5) + ", " + always)
	r := Build(files(map[string]string{
		"port.yaml":    envoyFilter("port", "default", "web", good, routePatchOf("inbound|http|99", routeConfig("stat_prefix: r, "+bucketOf(5)+", "+always))),
		"version.yaml": strings.Replace(envoyFilter("version", "default", "web", good), "v1alpha3", "v1", 1),
		"dry.yaml":     strings.Replace(envoyFilter("dry", "default", "web", good), "{name: dry", "{annotations: {istio.io/dry-run: 'true'}, name: dry", 1),
		"target.yaml":  strings.Replace(envoyFilter("target", "default", "web", good), "spec:\n", "spec:\n  targetRefs: [{kind: Gateway, name: g}]\n", 1),
		"typo.yaml":    strings.Replace(envoyFilter("typo", "typo", "web", good), "EnvoyFilter", "EnvoyFiter", 1),
		"lost.yaml":    "kind: EnvoyFilter\nmetadata: {name: lost, namespace: far}\n",
		"torn.yaml":    "kind: EnvoyFilter\nmetadata:\n  namespace: torn\n  name: {\n",
	}), nil)
	got := strings.Join(texts(r.Problems), "\n")
	for _, want := range []string{
		"port.yaml:22: EnvoyFilter default/port: spec.configPatches[1].match.routeConfiguration.vhost.name: warning: no service has the port 99",
		"version.yaml:1: EnvoyFilter default/version: apiVersion: version v1 of networking.istio.io EnvoyFilter is not known: use v1alpha3",
		"dry.yaml:3: EnvoyFilter default/dry: metadata.annotations[istio.io/dry-run]: only an AuthorizationPolicy and a PeerAuthentication can be run dry",
		"target.yaml:5: EnvoyFilter default/target: spec.targetRefs: is not supported",
		"lost.yaml:1: apiVersion: required",
		"typo.yaml:2: EnvoyFiter typo/typo: kind: networking.istio.io/v1alpha3 EnvoyFiter: this kind of object is not known; did you mean EnvoyFilter?",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing from\n%s", want, got)
		}
	}
	for _, ns := range []string{"default", "far", "torn", "typo"} {
		if _, withheld := r.Set.Withheld(map[string]string{"app": "web"}, ns); !withheld {
			t.Errorf("namespace %s is not withheld", ns)
		}
	}
}

func TestCamelPath(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a": "a", "token_bucket.max_tokens": "tokenBucket.maxTokens", "a_b[c_d.e_f].g_h[0]": "aB[c_d.e_f].gH[0]", "v4_prefix_mask_len": "v4PrefixMaskLen",
	} {
		if got := camelPath(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// TestEnvoyFiltersOfIstio: what Istio's own tests of validation accept is refused,
// because none of it is a rate limit, and withholds what it may restrict.
func TestEnvoyFiltersOfIstio(t *testing.T) {
	var recorded struct {
		Cases []struct {
			Func, Name string
			Spec       json.RawMessage
		}
	}
	conformance.Load(t, "istio/config_validation.json", &recorded)
	tally := conformance.Recorded(t, "istio/config_validation.json")
	for i, c := range recorded.Cases {
		if c.Func != "ValidateEnvoyFilter" {
			continue
		}
		text := fmt.Sprintf(`{"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": {"name": %q}, "spec": %s}`, c.Name, c.Spec)
		r := Build([]*File{Parse("f.json", []byte(text))}, nil)
		_, withheld := r.Set.Withheld(nil, DefaultNamespace)
		if want := !strings.HasPrefix(c.Name, "waypoint"); len(errorsOf(r)) == 0 || len(r.Set.EnvoyFilters) != 0 || withheld != want {
			t.Errorf("%s: withheld %v, want %v: %q", c.Name, withheld, want, texts(r.Problems))
		}
		tally.Differs(t, fmt.Sprintf("%s [%d]", c.Func, i))
	}
	tally.Check(t, "istio/config_validation.json (EnvoyFilter)", 0, 4)
}
