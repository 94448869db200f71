package compile

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// What a string matcher may hold is checked where a route has one.
func TestConformanceStringMatchers(t *testing.T) {
	const file, group = "grpc-facts/string_matchers.json", "proto_validation"
	var cases []struct {
		Name    string
		Matcher json.RawMessage
		Valid   bool
	}
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "grpc-facts/string_matchers.json#proto_validation")
	for _, c := range cases {
		_, _, err := RouteConfig(routesOf(t, fmt.Sprintf(`{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
			{"match": {"prefix": "/", "headers": [{"name": "x", "string_match": %s}]}, "route": {"cluster": "c"}}]}]}`, c.Matcher)))
		judge(t, tally, c.Name, c.Valid, err)
	}
	tally.Check(t, file+"#"+group, 7, 0)
}

// The share of requests to refuse, in whatever it is counted.
func TestConformanceDropOverload(t *testing.T) {
	const file, group = "grpc-facts/drop_overload.json", "cases"
	var cases []struct {
		Name        string
		Numerator   uint32
		Denominator uint32
		PerMillion  uint32 `json:"per_million"`
	}
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "grpc-facts/drop_overload.json")
	unit := map[uint32]string{100: "HUNDRED", 10_000: "TEN_THOUSAND", 1_000_000: "MILLION"}
	for _, c := range cases {
		_, eps, err := Endpoints(endpointsOf(t, fmt.Sprintf(`{"cluster_name": "c", "policy": {"drop_overloads": [
			{"category": "x", "drop_percentage": {"numerator": %d, "denominator": %q}}]}}`, c.Numerator, unit[c.Denominator])))
		if err != nil {
			t.Logf("%s: %v", c.Name, err)
			tally.Differs(t, c.Name)
			continue
		}
		got := uint32(0)
		for _, d := range eps.Drops {
			got += d.PerMillion
		}
		if got != c.PerMillion {
			tally.Fail(t, "%s: %d of a million, want %d", c.Name, got, c.PerMillion)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, file, 7, 0)
}

// The fault filter as Envoy's own tests have it, bound to a route.
func TestConformanceFaultFilter(t *testing.T) {
	const file, group = "envoy-facts/fault.json", "filter_behaviour"
	var cases []struct {
		Config  map[string]json.RawMessage
		Headers map[string]string
		Cluster string `json:"route_cluster"`
		Expect  json.RawMessage
	}
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "envoy-facts/fault.json#filter_behaviour")
	for i, c := range cases {
		if c.Cluster == "" {
			c.Cluster = "c"
		}
		f := bound(t, faulty(""), strings.Replace(faultRoute(recordedFault(t, c.Config)), `"cluster": "c"`, fmt.Sprintf(`"cluster": %q`, c.Cluster), 1)).VirtualHost.Routes[0].FaultOf(0)
		verdict := func(headers map[string]string) resilience.FaultVerdict {
			r := requestOf(nil)
			r.Form = routing.LowerHeaders
			for name, value := range headers {
				r.Header[name] = []string{value}
			}
			if f == nil || f.MaxActive != nil && *f.MaxActive == 0 {
				return resilience.NoFault
			}
			return f.Decide(r, 0, 0)
		}
		got, want, body := verdict(c.Headers), resilience.NoFault, ""
		var text string
		var answer struct {
			Status  int
			Body    string
			GRPC    *int   `json:"grpc-status"`
			Message string `json:"grpc-message"`
		}
		switch {
		case json.Unmarshal(c.Expect, &text) == nil:
			switch text {
			case "HTTP status 429 wins over the gRPC one":
				want.HTTP = 429
			case "delay first, then abort 503":
				want.Delay, want.HTTP = 5*time.Second, 503
			case "fault applies":
				want.HTTP = 503
			case "fault applies only to listed nodes":
				want.HTTP = 503
				if other := verdict(map[string]string{"x-envoy-downstream-service-node": "other"}); other != resilience.NoFault {
					got = other
				}
			case "no fault", "no fault (overflow)":
			default:
				t.Fatalf("case %d: %q is not understood", i, text)
			}
		case json.Unmarshal(c.Expect, &answer) == nil:
			want.HTTP, body = answer.Status, answer.Body
			if answer.GRPC != nil {
				want.HTTP, want.GRPC, body = 0, *answer.GRPC, answer.Message
			}
		default:
			t.Fatalf("case %d: %s is not understood", i, c.Expect)
		}
		if got != want || body != "" && f.Abort.Text() != body {
			tally.Fail(t, "case %d: %+v, want %+v and %q", i, got, want, body)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, file+"#"+group, 10, 0)
}

// recordedFault writes out what the record abbreviates: shares as text, and
// settings of which the case is not.
func recordedFault(t *testing.T, config map[string]json.RawMessage) json.RawMessage {
	t.Helper()
	all := map[string]any{}
	for name, value := range config {
		all[name] = value
	}
	full := map[string]any{"numerator": 100}
	for name, usual := range map[string]map[string]any{"abort": {"http_status": 503}, "delay": {"fixed_delay": "5s"}} {
		raw, given := config[name]
		if !given && (name == "delay" || config["delay"] != nil) {
			continue
		}
		part := map[string]any{}
		if given {
			if err := json.Unmarshal(raw, &part); err != nil {
				t.Fatal(err)
			}
		}
		delete(part, "percentage")
		if len(part) == 0 {
			part = usual
		}
		part["percentage"] = full
		all[name] = part
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
