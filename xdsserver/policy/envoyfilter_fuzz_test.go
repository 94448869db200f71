package policy

import (
	"encoding/json"
	"testing"

	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/internal/xds/compile"
)

// FuzzEnvoyFilter reads any spec. What is accepted is enforced by our client and sound
// for Envoy, says the same after it was stored, and limits every port that it names;
// what is refused withholds, unless it is for other proxies.
func FuzzEnvoyFilter(f *testing.F) {
	good := `{"applyTo":"HTTP_FILTER","match":{"context":"SIDECAR_INBOUND","listener":{"filterChain":{"filter":{"name":"envoy.filters.network.http_connection_manager"}}}},"patch":{"operation":"INSERT_BEFORE","value":{"name":"envoy.filters.http.local_ratelimit","typed_config":{"@type":"t/` + limitMessage + `","stat_prefix":"s"}}}}`
	route := `{"applyTo":"HTTP_ROUTE","match":{"context":"SIDECAR_INBOUND","routeConfiguration":{"vhost":{"name":"inbound|http|80"}}},"patch":{"operation":"MERGE","value":{"route":{"rate_limits":[{"actions":[{"request_headers":{"header_name":":path","descriptor_key":"p"}}]}]},"typed_per_filter_config":{"envoy.filters.http.local_ratelimit":{"@type":"t/udpa.type.v1.TypedStruct","type_url":"` + limitMessage + `","value":{"stat_prefix":"r","token_bucket":{"max_tokens":1,"fill_interval":"1s"},"descriptors":[{"entries":[{"key":"p","value":"/"}],"token_bucket":{"max_tokens":1,"fill_interval":"1s"}}]}}}}}}`
	f.Add(`{"configPatches":[` + good + `]}`)
	f.Add(`{"configPatches":[` + good + `,` + route + `]}`)
	f.Add(`{"workloadSelector":{"labels":{"app":"web"}},"priority":1,"configPatches":[` + route + `,` + good + `]}`)
	f.Add(`{"configPatches":[{"applyTo":"CLUSTER","match":{"context":"GATEWAY"},"patch":{"operation":"MERGE","value":{"a":[null]}}}]}`)
	f.Fuzz(func(t *testing.T, spec string) {
		if len(spec) > 8<<10 || !json.Valid([]byte(spec)) {
			return
		}
		text := `{"apiVersion":"networking.istio.io/v1alpha3","kind":"EnvoyFilter","metadata":{"name":"x"},"spec":` + spec + `}`
		r := Build([]*File{Parse("f.json", []byte(text))}, nil)
		if r.Failed() {
			if len(r.Set.EnvoyFilters) != 0 {
				t.Fatalf("what is refused is in force: %v", r.Problems)
			}
			return
		}
		if len(r.Set.EnvoyFilters) != 1 || len(r.Set.Broken) != 0 {
			t.Fatalf("%d in force, withheld %v", len(r.Set.EnvoyFilters), r.Set.Broken)
		}
		limits, found := readEnvoyFilter(r.Set.EnvoyFilters[0].Spec)
		if found.has(Error) || limits.filter == nil {
			t.Fatalf("read again: %v", found)
		}
		sound := func(m *limitv3.LocalRateLimit) {
			if err := compile.CheckRateLimit(m); err != nil {
				t.Fatal(err)
			}
			if err := m.ValidateAll(); err != nil {
				t.Fatal(err)
			}
		}
		sound(limits.filter)
		state, err := r.AccessState()
		if err != nil {
			t.Fatal(err)
		}
		restored, err := RestoreAccess(state)
		if err != nil {
			t.Fatal(err)
		}
		labels := r.Set.EnvoyFilters[0].Spec.GetWorkloadSelector().GetLabels()
		for _, p := range limits.routes {
			sound(p.limit)
			port := p.port
			if port == 0 {
				port = 80
			}
			before, err1 := r.Set.LocalRateLimitsFor(labels, DefaultNamespace, port)
			after, err2 := restored.Set.LocalRateLimitsFor(labels, DefaultNamespace, port)
			if err1 != nil || err2 != nil || len(before) != 1 || len(after) != 1 || before[0].Route == nil ||
				!proto.Equal(before[0].Route, after[0].Route) || !proto.Equal(before[0].Filter, after[0].Filter) {
				t.Fatalf("port %d: %v (%v), once stored %v (%v)", port, before, err1, after, err2)
			}
		}
	})
}
