package translate

import (
	"strings"
	"testing"

	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"

	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// limited limits web: by a filter for all ports, and by another at the service's port 80, the workload's 8080.
const limited = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: all, namespace: istio-system}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          stat_prefix: all
          token_bucket: {max_tokens: 9, tokens_per_fill: 9, fill_interval: 60s}
          filter_enabled: {default_value: {numerator: 100}}
          filter_enforced: {default_value: {numerator: 100}}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: paths, namespace: default}
spec:
  workloadSelector: {labels: {app: web}}
  configPatches:
  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          "@type": type.googleapis.com/xds.type.v3.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          value: {stat_prefix: paths}
  - applyTo: HTTP_ROUTE
    match: {context: SIDECAR_INBOUND, routeConfiguration: {vhost: {name: "inbound|http|80", route: {action: ANY}}}}
    patch:
      operation: MERGE
      value:
        route:
          rate_limits:
          - actions: [{request_headers: {header_name: ":path", descriptor_key: path}}]
        typed_per_filter_config:
          envoy.filters.http.local_ratelimit:
            "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: paths
            token_bucket: {max_tokens: 100, tokens_per_fill: 100, fill_interval: 60s}
            filter_enabled: {default_value: {numerator: 100}}
            filter_enforced: {default_value: {numerator: 100}}
            descriptors:
            - entries: [{key: path, value: /a}]
              token_bucket: {max_tokens: 1, tokens_per_fill: 1, fill_interval: 60s}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: more, port: 90}]}
`

func parsed(t *testing.T, text string) *policy.Set {
	t.Helper()
	r := policy.Build([]*policy.File{policy.Parse("f.yaml", []byte(text))}, nil)
	if r.Failed() {
		t.Fatal(r.Problems)
	}
	return r.Set
}

func TestLocalRateLimits(t *testing.T) {
	view := NewView(parsed(t, limited))
	const all, paths = "local_ratelimit/istio-system/all", "local_ratelimit/default/paths"
	for _, test := range []struct {
		listener, filters string
		route             bool
		limits            int
	}{
		{InboundPrefix + "10.0.0.9:8080", all + " " + paths + " router", true, 2},
		{InboundPrefix + "10.0.0.9:90", all + " router", false, 1},
	} {
		for _, agent := range []Agent{Sinew, Other} {
			// Both chains of a PERMISSIVE listener have the limits: inboundOf holds them against each other.
			_, hcm, r := inboundOf(t, view, test.listener, client(agent))
			if got := filtersOf(hcm); got != test.filters {
				t.Errorf("%s of %v: filters %s, want %s", test.listener, agent, got, test.filters)
			}
			config := hcm.GetRouteConfig().GetVirtualHosts()[0].GetRoutes()[0].GetTypedPerFilterConfig()
			if got := config["envoy.filters.http."+paths]; (got != nil) != test.route || len(config) > 1 {
				t.Errorf("%s of %v: the route has %v", test.listener, agent, config)
			}
			if test.route {
				m := &limitv3.LocalRateLimit{}
				if err := config["envoy.filters.http."+paths].UnmarshalTo(m); err != nil {
					t.Fatal(err)
				}
				if m.GetTokenBucket().GetMaxTokens() != 100 || len(m.GetRateLimits()) != 1 || len(m.GetDescriptors()) != 1 {
					t.Errorf("the route has %v", m)
				}
			}
			if agent != Sinew {
				continue
			}
			_, in, err := compile.Inbound(r.Body)
			if err != nil || len(in.TLS.RateLimits) != test.limits || len(in.Plain.RateLimits) != test.limits {
				t.Errorf("%s: our client reads %+v, %v", test.listener, in, err)
			}
		}
		r, err := view.Resource(ListenerType, test.listener, client(GRPC))
		if r != nil || !isWithheld(err) || !strings.Contains(err.Error(), "EnvoyFilter istio-system/all") {
			t.Errorf("gRPC, which can not limit, is served %v, %v", r, err)
		}
	}
	// Another's listener has what is for everybody.
	c := client(Sinew)
	c.Labels = map[string]string{"app": "other"}
	if _, hcm, _ := inboundOf(t, view, webListener, c); filtersOf(hcm) != all+" router" {
		t.Errorf("another has %s", filtersOf(hcm))
	}
}

func TestLocalRateLimitChanges(t *testing.T) {
	old := NewView(parsed(t, limited))
	for name, text := range map[string]string{
		"level": strings.Replace(limited, "max_tokens: 9,", "max_tokens: 8,", 1),
		"gone":  limited[strings.Index(limited, "---"):],
		"port":  strings.Replace(limited, "targetPort: 8080", "targetPort: 8081", 1),
	} {
		if c := Diff(old, NewView(parsed(t, text))); !c.Affects(ListenerType, webListener) {
			t.Errorf("%s: the listener is not affected", name)
		}
	}
	if c := Diff(old, NewView(parsed(t, "# a comment\n"+limited))); !c.Empty() {
		t.Errorf("a comment is a change: %+v", c)
	}
	// Policy that did not come through Build, and is not a limit, withholds as well.
	set := parsed(t, limited)
	bad := &policy.Set{EnvoyFilters: []*policy.EnvoyFilter{{Meta: set.EnvoyFilters[0].Meta}}}
	if r, err := NewView(bad).Resource(ListenerType, webListener, client(Sinew)); r != nil || !isWithheld(err) {
		t.Errorf("served %v, %v", r, err)
	}
}
