package compile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

type routeCase struct {
	Test, Config string
	Mocks        []string
	Setup        []string `json:"stream_info_setup"`
	Request      *struct {
		Headers [][2]string
		Random  uint64 `json:"random_value"`
	}
	Response [][2]string `json:"upstream_response_headers"`
	Expect   map[string]json.RawMessage
}

// fromRouteYAML compiles a recorded route configuration. A document that is no
// message at all is refused where it is read.
func fromRouteYAML(t *testing.T, doc string) (*snapshot.RouteConfig, error) {
	t.Helper()
	m := &routev3.RouteConfiguration{}
	// Envoy's reader takes enumerations in small letters and messages of well-known types without a value.
	doc = strings.NewReplacer("priority: high", "priority: HIGH", "require_tls: all", "require_tls: ALL").Replace(doc)
	var v any
	decoder := json.NewDecoder(bytes.NewReader(fromYAML(t, doc)))
	decoder.UseNumber() // whole numbers of 64 bits
	if err := decoder.Decode(&v); err != nil {
		t.Fatal(err)
	}
	withValues(v)
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := (protojson.UnmarshalOptions{Resolver: extensionTypes{protoregistry.GlobalTypes}}).Unmarshal(text, m); err != nil {
		return nil, err
	}
	if m.Name == "" {
		m.Name = "routes"
	}
	_, rc, err := RouteConfig(pack(t, m))
	return rc, err
}

// withValues gives values to well-known types that come without one.
func withValues(v any) {
	switch v := v.(type) {
	case map[string]any:
		if _, ok := v["value"]; !ok {
			switch v["@type"] {
			case "type.googleapis.com/google.protobuf.Struct":
				v["value"] = map[string]any{}
			case "type.googleapis.com/google.protobuf.BoolValue":
				v["value"] = false
			}
		}
		for _, inner := range v {
			withValues(inner)
		}
	case []any:
		for _, inner := range v {
			withValues(inner)
		}
	}
}

func TestConformanceEnvoyRouteConfig(t *testing.T) {
	const name = "envoy-facts/route_config_impl.json"
	var file struct {
		Configs map[string]struct{ YAML string }
		Cases   []routeCase
	}
	conformance.Load(t, "envoy-facts/route_config_impl.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/route_config_impl.json")
	for i, c := range file.Cases {
		id := fmt.Sprintf("%s [%d]", c.Test, i)
		rc, err := fromRouteYAML(t, file.Configs[c.Config].YAML)
		problem := ""
		switch {
		case c.Request != nil && (len(c.Mocks) > 0 || len(c.Setup) > 0): // what they set up does not exist here
			tally.Differs(t, id)
			continue
		case c.Request == nil:
			if want := string(c.Expect["config_rejected"]) == "true"; want != (err != nil) {
				problem = fmt.Sprintf("refused: %v, want %v", err, want)
			}
		case err != nil:
			problem = err.Error()
		default:
			problem = expected(t, &c, rc)
		}
		if problem == "" {
			tally.Pass()
			continue
		}
		t.Logf("%s: %s", id, problem)
		tally.Differs(t, id)
	}
	tally.Check(t, name, 170, 50)
}

// expected reports what is not as recorded.
func expected(t *testing.T, c *routeCase, rc *snapshot.RouteConfig) string {
	r := requestOf(c.Request.Headers)
	d := decide(rc, nil, r, c.Request.Random)
	for _, key := range sortedKeys(c.Expect) {
		want := c.Expect[key]
		if key == "route" {
			if (d.route == nil) != (string(want) == "null") {
				return fmt.Sprintf("route %+v, want %s", d.route, want)
			}
			continue
		}
		if d.route == nil {
			return "no route"
		}
		if got, ok := observed(t, &d, r, c, key, want); !ok {
			return fmt.Sprintf("%s: %v, want %s", key, got, want)
		}
	}
	return ""
}

// observed returns what a key of the record stands for here, and whether it is as recorded.
func observed(t *testing.T, d *decided, r *routing.Request, c *routeCase, key string, want json.RawMessage) (got any, ok bool) {
	equal := func(v any) (any, bool) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return v, string(b) == string(compact(t, want))
	}
	null := string(want) == "null"
	switch key {
	case "cluster":
		return equal(d.cluster)
	case "redirect_uri":
		return equal(d.location)
	case "path_after_rewrite":
		return equal(d.sent.path)
	case "cluster_not_found_response_code":
		return equal(d.route.ClusterNotFound)
	case "auto_host_rewrite":
		return equal(d.route.Rewrite.HostAuto)
	case "priority":
		return equal([]string{"Default", "High"}[d.route.Priority])
	case "directResponseEntry":
		return d.route, null == (d.route.Direct == nil && d.route.Redirect == nil)
	case "routeEntry":
		return d.route, null == (d.route.Direct != nil || d.route.Redirect != nil)
	case "routeEntry.hashPolicy":
		return d.route.Hash, null == (d.route.Hash == nil)
	case "routeEntry.corsPolicy":
		return d.route.Filters.CORS, null == (d.route.Filters.CORS == nil)
	case "include_vh_rate_limits":
		return nil, string(want) == "false"
	case "virtual_host.includeIsTimeoutRetryHeader":
		return "the header is never sent", string(want) == "false"
	case "idle_timeout":
		return equal(d.route.IdleTimeout.Milliseconds())
	case "x": // the record has lost the name
		return equal(d.route.MaxStreamDuration.Milliseconds())
	case "grpc_timeout_offset":
		if d.route.GRPCTimeoutOffset == 0 {
			return nil, null
		}
		return equal(d.route.GRPCTimeoutOffset.Milliseconds())
	case "path_match_criterion":
		return matchedBy(&d.route.Match.Path, want)
	case "decorator.getOperation", "decorator.propagate", "decorator":
		return nil, true // traces
	}
	switch group, rest, _ := strings.Cut(key, "."); group {
	case "request_headers_after_finalize":
		return headersAre(t, want, func(name string) []string { return d.sent.get(name) })
	case "request_headers_after_finalize_has":
		return headersHave(t, want, d.sent.header)
	case "response_headers_after_finalize":
		header := requestOf(c.Response).Header
		d.incoming(r, header)
		return headersAre(t, want, func(name string) []string { return header[http.CanonicalHeaderKey(name)] })
	case "requestHeaderTransforms":
		return transforms(equal, rest, d.leg.RequestHeaders, d.route.RequestHeaders)
	case "responseHeaderTransforms":
		return transforms(equal, rest, d.leg.ResponseHeaders, d.route.ResponseHeaders)
	case "retry_policy":
		return retries(equal, rest, d.route.Retry, want)
	case "shadowPolicies", "shadowPolicies[0]", "shadowPolicies[1]":
		return shadows(equal, key, d.route.Mirrors)
	}
	return "nothing here stands for it", false
}

func compact(t *testing.T, raw json.RawMessage) []byte {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(v)
	return b
}

func (s *sent) get(name string) []string {
	switch name {
	case ":path":
		return []string{s.path}
	case ":authority":
		return []string{s.authority}
	}
	return s.header[http.CanonicalHeaderKey(name)]
}

// headersAre compares the first value of each header, which is what the record has.
func headersAre(t *testing.T, want json.RawMessage, get func(string) []string) (any, bool) {
	var headers map[string]string
	if err := json.Unmarshal(want, &headers); err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		if got := get(name); len(got) == 0 || got[0] != value {
			return fmt.Sprint(name, got), false
		}
	}
	return nil, len(headers) > 0
}

func headersHave(t *testing.T, want json.RawMessage, header map[string][]string) (any, bool) {
	var headers map[string]bool
	if err := json.Unmarshal(want, &headers); err != nil {
		t.Fatal(err)
	}
	for name, there := range headers {
		if got := header[http.CanonicalHeaderKey(name)]; (len(got) > 0) != there {
			return fmt.Sprint(name, got), false
		}
	}
	return nil, len(headers) > 0
}

// transforms lists the header changes of all levels in their order.
func transforms(equal func(any) (any, bool), kind string, leg routing.HeaderChanges, levels []routing.HeaderChanges) (any, bool) {
	set := map[routing.HeaderAction][][]string{routing.AppendOrAdd: {}, routing.OverwriteOrAdd: {}}
	remove := []string{}
	for _, c := range slices.Concat([]routing.HeaderChanges{leg}, levels) {
		for _, h := range c.Set {
			value, _ := h.Value.Constant()
			set[h.Action] = append(set[h.Action], []string{h.Name.String(), value})
		}
		for _, name := range c.Remove {
			remove = append(remove, name.String())
		}
	}
	switch kind {
	case "headers_to_append_or_add":
		return equal(set[routing.AppendOrAdd])
	case "headers_to_overwrite_or_add":
		return equal(set[routing.OverwriteOrAdd])
	case "headers_to_remove":
		return equal(remove)
	}
	return "nothing here stands for it", false
}

var retryNames = map[string]resilience.RetryOn{
	"0": 0, `"RETRY_ON_CONNECT_FAILURE"`: resilience.OnConnectFailure,
	`"RETRY_ON_CONNECT_FAILURE|RETRY_ON_5XX|RETRY_ON_GATEWAY_ERROR|RETRY_ON_RESET"`:   resilience.OnConnectFailure | resilience.On5xx | resilience.OnGatewayError | resilience.OnReset,
	`"RETRY_ON_5XX|RETRY_ON_GRPC_DEADLINE_EXCEEDED|RETRY_ON_GRPC_RESOURCE_EXHAUSTED"`: resilience.On5xx | resilience.OnDeadlineExceeded | resilience.OnResourceExhausted,
}

func retries(equal func(any) (any, bool), key string, p *resilience.RetryPolicy, want json.RawMessage) (any, bool) {
	if p == nil {
		none := resilience.DefaultRetryPolicy(0)
		p = &none
	}
	switch key {
	case "perTryTimeout":
		return equal(p.PerTryTimeout.Milliseconds())
	case "perTryIdleTimeout":
		return equal(p.PerTryIdleTimeout.Milliseconds())
	case "numRetries":
		return equal(p.NumRetries)
	case "retriableHeaders.size":
		return equal(len(p.Headers))
	case "retryOn":
		on, ok := retryNames[string(want)]
		return p.On, ok && p.On == on
	}
	return "nothing here stands for it", false
}

func shadows(equal func(any) (any, bool), key string, mirrors []routing.Mirror) (any, bool) {
	if key == "shadowPolicies.size" {
		return equal(len(mirrors))
	}
	i := int(key[len("shadowPolicies[")] - '0')
	if i >= len(mirrors) {
		return "there is none", false
	}
	switch key[strings.IndexByte(key, '.')+1:] {
	case "cluster":
		return equal(mirrors[i].Cluster)
	case "clusterHeader":
		return equal(mirrors[i].ClusterHeader.String())
	case "runtimeKey":
		return nil, true // there is no runtime
	}
	return "nothing here stands for it", false
}

// matchedBy compares the kind and text of a condition on the path.
func matchedBy(m *routing.PathMatch, want json.RawMessage) (any, bool) {
	kind, text, _ := strings.Cut(strings.Trim(string(want), `"`), ":")
	if kind == "Regex" {
		same, err := routing.Regex(text)
		return m.Kind, err == nil && m.Kind == routing.PathRegex && m.Regex.Matches("/regex") == same.Matches("/regex") && !m.Regex.Matches(text)
	}
	kinds := map[string]routing.PathKind{"Exact": routing.PathExact, "Prefix": routing.PathPrefix, "PathSeparatedPrefix": routing.PathSeparatedPrefix}
	k, ok := kinds[kind]
	return m, ok && m.Kind == k && m.Value == text
}
