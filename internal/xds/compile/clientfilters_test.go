package compile

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

const faultType = `"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"`

// bound compiles a listener with the filters before the router and a route
// configuration, and puts the two together.
func bound(t *testing.T, filters, config string) *snapshot.Host {
	t.Helper()
	if filters != "" {
		filters += ", "
	}
	_, l, err := Listener(listenerOf(t, apiListenerOf(rds+`, "http_filters": [`+filters+router+`]`)))
	if err != nil {
		t.Fatal(err)
	}
	_, rc, err := RouteConfig(routesOf(t, config))
	if err != nil {
		t.Fatal(err)
	}
	return l.Host("any", rc)
}

// abortWith is a configuration of the fault filter that is known by its body.
func abortWith(body string) string {
	return `{` + faultType + `, "abort": {"http_status": 503, "percentage": {"numerator": 100}, "response_body": "` + body + `"}}`
}

// The most specific configuration of a filter counts, and switches it on or off.
func TestConformanceFilterOverrides(t *testing.T) {
	const file = "grpc-facts/filter_override_precedence.json"
	type override *struct {
		Disabled bool
		Path     string
	}
	var record struct {
		Cases []struct {
			Name      string
			Disabled  bool     `json:"filter_disabled_in_chain"`
			Host      override `json:"virtual_host"`
			Route     override
			Cluster   override `json:"weighted_cluster"`
			Runs      bool     `json:"filter_runs"`
			Effective *string  `json:"effective_override"`
		}
	}
	conformance.Load(t, "grpc-facts/filter_override_precedence.json", &record)
	tally := conformance.Deciding(t, "grpc-facts/filter_override_precedence.json")
	config := func(o override) string {
		switch {
		case o == nil:
			return ""
		case o.Disabled:
			return `, "typed_per_filter_config": {"fault": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}`
		}
		return `, "typed_per_filter_config": {"fault": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": ` + abortWith(o.Path) + `}}`
	}
	for _, c := range record.Cases {
		filter := fmt.Sprintf(`{"name": "fault", "disabled": %v, "typed_config": %s}`, c.Disabled, abortWith("base"))
		h := bound(t, filter, `{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"]`+config(c.Host)+`, "routes": [
			{"match": {"prefix": "/"}`+config(c.Route)+`, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1`+config(c.Cluster)+`}, {"name": "b", "weight": 1}]}}}]}]}`)
		got, want := "", ""
		if f := h.VirtualHost.Routes[0].FaultOf(0); f != nil {
			got = f.Abort.Body
		}
		if c.Runs {
			want = "base"
		}
		if c.Effective != nil {
			want = *c.Effective
		}
		if got != want {
			tally.Fail(t, "%s: %q, want %q", c.Name, got, want)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, file, 8, 0)
}

// Faults do what the recorded configuration says, compiled and bound to a route.
func TestConformanceFaults(t *testing.T) {
	const file = "grpc-facts/fault.json#compiled"
	var record struct {
		Cases []struct {
			Name    string
			Filters []json.RawMessage
			Random  struct {
				Start     uint64
				Increment uint64 `json:"increment_per_request"`
			}
			Steps []struct {
				Repeat  int
				Status  string `json:"grpc_status"`
				Delays  []string
				Headers map[string]string
			}
		}
	}
	conformance.Load(t, "grpc-facts/fault.json", &record)
	tally := conformance.Deciding(t, "grpc-facts/fault.json#compiled")
	codes := map[string]int{"OK": 0, "UNKNOWN": 2, "ABORTED": 10, "UNIMPLEMENTED": 12, "UNAVAILABLE": 14, "DATA_LOSS": 15}
	for _, c := range record.Cases {
		if len(c.Filters) != 1 {
			tally.Differs(t, c.Name)
			continue
		}
		h := bound(t, faulty(""), faultRoute(c.Filters[0]))
		f := h.VirtualHost.Routes[0].FaultOf(0)
		random, problem := c.Random.Start, ""
		for i, step := range c.Steps {
			for range step.Repeat {
				r := requestOf(nil)
				for name, value := range step.Headers {
					r.Header[routing.NewHeaderName(name).String()] = []string{value}
				}
				r.Form = routing.LowerHeaders
				var v resilience.FaultVerdict
				v.GRPC = -1
				if f != nil {
					// The record draws below 100 or 10,000; a draw here is compared in millionths.
					v = f.Decide(r, random*scale(c.Filters[0], "delay"), random*scale(c.Filters[0], "abort"))
				}
				random += c.Random.Increment
				if got, want := statusOf(v), codes[step.Status]; got != want || (v.Delay == time.Second) != (len(step.Delays) == 1) {
					problem = fmt.Sprintf("step %d at %d: %+v, want %s and %v", i, random, v, step.Status, step.Delays)
				}
			}
		}
		if problem != "" {
			tally.Fail(t, "%s: %s", c.Name, problem)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, file, 4, 1)
}

// faultRoute is a route configuration whose only route has the fault.
func faultRoute(fault json.RawMessage) string {
	fields := strings.TrimPrefix(string(fault), "{")
	if strings.TrimSpace(fields) != "}" {
		fields = ", " + fields
	}
	return `{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"},
		"typed_per_filter_config": {"fault": {` + faultType + fields + `}}]}]}`
}

// scale is the number of millionths in one unit of a fault's percentage.
func scale(fault json.RawMessage, part string) uint64 {
	var m map[string]struct{ Percentage struct{ Denominator string } }
	if json.Unmarshal(fault, &m) != nil {
		return 1
	}
	switch m[part].Percentage.Denominator {
	case "MILLION":
		return 1
	case "TEN_THOUSAND":
		return 100
	}
	return 10_000
}

// statusOf is the gRPC status that a caller sees; HTTP statuses stand for one.
func statusOf(v resilience.FaultVerdict) int {
	switch {
	case v.HTTP == 404:
		return 12
	case v.HTTP == 429:
		return 14
	case v.HTTP != 0:
		return 2
	case v.GRPC < 0:
		return 0
	case v.GRPC == 0:
		return 2 // gRPC has no error without a code
	}
	return v.GRPC
}

func TestFaultsOfRoutes(t *testing.T) {
	perRoute := func(fault string) string {
		return `"typed_per_filter_config": {"fault": {` + faultType + `, "abort": {"grpc_status": 5, "percentage": {"numerator": 1}}` + fault + `}}`
	}
	two := func(own string) string {
		return `{"match": {"prefix": "/"}, ` + perRoute(`, "upstream_cluster": "a"`) + `, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 1` + own + `}]}}}`
	}
	for _, tt := range []struct {
		name, filters, route string
		faults               string // of each destination: - is none
	}{
		{"no filter in the listener", "", withRoute(perRoute("")), "-"},
		{"a filter of another name", strings.Replace(faulty(""), `"fault"`, `"other"`, 1), withRoute(perRoute("")), "-"},
		{"the route's", faulty(""), withRoute(perRoute("")), "5"},
		{"the listener's", faulty(`"abort": {"grpc_status": 7}`), toCluster(""), "7"},
		{"the route's before the listener's", faulty(`"abort": {"grpc_status": 7}`), withRoute(perRoute("")), "5"},
		{"none in place of the listener's", faulty(`"abort": {"grpc_status": 7}`), withRoute(`"typed_per_filter_config": {"fault": {` + faultType + `}}`), "-"},
		{"for the cluster", faulty(""), withRoute(perRoute(`, "upstream_cluster": "c"`)), "5"},
		{"for another cluster", faulty(""), withRoute(perRoute(`, "upstream_cluster": "d"`)), "-"},
		{"for one of two", faulty(""), two(""), "5 -"},
		{"for one of two, and the other's own", faulty(""), two(`, ` + perRoute("")), "5 5"},
		{"off for one of two", faulty(`"abort": {"grpc_status": 7}`), `{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 1,
			"typed_per_filter_config": {"fault": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}}]}}}`, "7 -"},
		{"before a redirect", faulty(""), `{"match": {"prefix": "/"}, "redirect": {}, ` + perRoute("") + `}`, "5"},
		{"for a cluster, before a redirect", faulty(""), `{"match": {"prefix": "/"}, "redirect": {}, ` + perRoute(`, "upstream_cluster": "c"`) + `}`, "-"},
	} {
		h := bound(t, tt.filters, inOneHost("", "", tt.route))
		var got []string
		route := &h.VirtualHost.Routes[0]
		for i := range max(1, len(route.Clusters.Clusters)) {
			if f := route.FaultOf(i); f != nil {
				got = append(got, fmt.Sprint(f.Abort.GRPC))
			} else {
				got = append(got, "-")
			}
		}
		if strings.Join(got, " ") != tt.faults {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.faults)
		}
	}
}

func TestFaultConditions(t *testing.T) {
	h := bound(t, faulty(`"delay": {"fixed_delay": "0.5s", "percentage": {"numerator": 100}}, "headers": [{"name": "x-a"}], "downstream_nodes": ["n.1", "n2"], "upstream_cluster": "named", "max_active_faults": 0`),
		inOneHost("", "", `{"match": {"prefix": "/"}, "route": {"cluster_header": "x-to"}}`))
	f := h.VirtualHost.Routes[0].FaultOf(-1)
	if f.MaxActive == nil || *f.MaxActive != 0 || f.Delay.Fixed != time.Second/2 || f.Delay.Denominator != 100 {
		t.Errorf("%+v", f)
	}
	for _, tt := range []struct {
		node, to, a string
		want        bool
	}{
		{"n.1", "named", "1", true},
		{"n2", "named", "1", true},
		{"nx1", "named", "1", false},
		{"n2", "other", "1", false},
		{"n2", "named", "", false},
	} {
		r := getting("http://h/", "X-Envoy-Downstream-Service-Node", tt.node, "X-To", tt.to)
		if tt.a != "" {
			r.Header["X-A"] = []string{tt.a}
		}
		if got := f.Decide(r, 0, 0).Delay != 0; got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

const corsType = `"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"`

func TestCORSOfLevels(t *testing.T) {
	filter := `{"name": "cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}`
	per := func(policy string) string {
		return `"typed_per_filter_config": {"cors": {` + corsType + policy + `}}`
	}
	origins := `"allow_origin_string_match": [{"exact": "http://a"}]`
	for _, tt := range []struct{ name, filter, config, host, route, want string }{
		{"no filter in the listener", "", "", "", withRoute(per(`, ` + origins)), "none"},
		{"the route's", filter, "", "", withRoute(per(`, ` + origins + `, "max_age": "5"`)), "http://a:true, 5"},
		{"each field of the nearest level", filter, per(`, "max_age": "1", "expose_headers": "x", "allow_credentials": true`), per(`, ` + origins + `, "max_age": "2", "filter_enabled": {"default_value": {}}`),
			withRoute(per(`, "allow_methods": "GET"`)), "http://a:true, 2 GET x credentials"},
		{"on or off by the nearest level", filter, "", per(`, ` + origins), withRoute(per(`, "filter_enabled": {"default_value": {"numerator": 3}}`)), "http://a:true,  30000"},
		{"the routes' own fields", filter, "", `"cors": {` + origins + `, "max_age": "2"}`, toCluster(`"cors": {"max_age": "1", "allow_headers": "h", "allow_private_network_access": true, "forward_not_matching_preflights": false}`), "http://a:true, 1 h private refuse"},
		{"which count only without the filter's", filter, "", `"cors": {` + origins + `}`, withRoute(per(`, "max_age": "1"`)), "http://a:false, 1"},
		{"off", filter, "", per(`, ` + origins), withRoute(`"typed_per_filter_config": {"cors": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}`), "none"},
		{"any origin", filter, "", "", withRoute(per(`, "allow_origin_string_match": [{"exact": "*"}]`)), "http://a:true, "},
		{"not before a redirect", filter, "", per(`, ` + origins), `{"match": {"prefix": "/"}, "redirect": {}}`, "none"},
	} {
		h := bound(t, tt.filter, inOneHost(tt.config, tt.host, tt.route))
		c := h.VirtualHost.Routes[0].CORSOf(0)
		got := "none"
		if c != nil {
			allowed := slices.ContainsFunc(c.Origins, func(m routing.StringMatch) bool { return m.Matches("http://a") })
			parts := []string{fmt.Sprintf("http://a:%v, %s", allowed, c.MaxAge)}
			for _, text := range []string{c.Methods, c.Headers, c.Expose} {
				if text != "" {
					parts = append(parts, text)
				}
			}
			for name, set := range map[string]bool{"credentials": c.Credentials, "private": c.PrivateNetwork} {
				if set {
					parts = append(parts, name)
				}
			}
			if c.RefuseUnmatched {
				parts = append(parts, "refuse")
			}
			if c.Enabled != nil {
				parts = append(parts, fmt.Sprint(c.Enabled.PerMillion))
			}
			got = strings.Join(parts, " ")
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestAdaptiveConcurrency(t *testing.T) {
	compiled := func(fields string) *snapshot.Host {
		return bound(t, adaptive(fields), inOneHost("", "", toCluster("")+`, `+withRoute(`"typed_per_filter_config": {"adaptive": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}`)))
	}
	h := compiled(gradientOf(`"interval": "60s"`))
	if got, want := *h.Concurrency, (resilience.AdaptiveConcurrency{SamplePercentile: 50, MaxLimit: 1000, UpdateInterval: time.Second / 10, MinRTTInterval: time.Minute, MinRTTRequests: 50,
		MinRTTJitter: 15, MinConcurrency: 3, MinRTTBuffer: 25, Enabled: true, Status: 503}); got != want {
		t.Errorf("%+v", got)
	}
	if routes := h.VirtualHost.Routes; routes[0].NoConcurrency || !routes[1].NoConcurrency {
		t.Errorf("%v %v", routes[0].NoConcurrency, routes[1].NoConcurrency)
	}
	h = compiled(`"enabled": {"default_value": true}, "concurrency_limit_exceeded_status": {"code": "TooManyRequests"}, "gradient_controller_config": {"sample_aggregate_percentile": {"value": 90},
		"concurrency_limit_params": {"max_concurrency_limit": 7, "concurrency_update_interval": "1s"},
		"min_rtt_calc_params": {"fixed_value": "0.002s", "request_count": 9, "jitter": {"value": 1}, "min_concurrency": 2, "buffer": {"value": 5}}}`)
	if got, want := *h.Concurrency, (resilience.AdaptiveConcurrency{SamplePercentile: 90, MaxLimit: 7, UpdateInterval: time.Second, FixedMinRTT: 2 * time.Millisecond, MinRTTRequests: 9,
		MinRTTJitter: 1, MinConcurrency: 2, MinRTTBuffer: 5, Enabled: true, Status: 429}); got != want {
		t.Errorf("%+v", got)
	}
	for code, want := range map[string]int{"Continue": 503, "PermanentRedirect": 503, "BadRequest": 400, "InsufficientStorage": 507} { // as Envoy has it
		h = compiled(`"concurrency_limit_exceeded_status": {"code": "` + code + `"}, ` + gradientOf(`"interval": "60s"`))
		if h.Concurrency.Status != want {
			t.Errorf("%s: %d, want %d", code, h.Concurrency.Status, want)
		}
	}
	if h = compiled(`"enabled": {"default_value": false}, ` + gradientOf(`"interval": "60s"`)); h.Concurrency != nil {
		t.Errorf("%+v", h.Concurrency)
	}
	if h = bound(t, strings.Replace(adaptive(gradientOf(`"interval": "60s"`)), `"name"`, `"disabled": true, "name"`, 1), inOneHost("", "", toCluster(""))); h.Concurrency != nil {
		t.Errorf("%+v", h.Concurrency)
	}
}

// The listener's options reach the host, and its idle time the routes without one.
func TestListenerOptions(t *testing.T) {
	_, l, err := Listener(listenerOf(t, apiListenerOf(rds+`, "stream_idle_timeout": "5s", "http_filters": [`+strings.Replace(router, `Router"`, `Router", "suppress_envoy_headers": true, "respect_expected_rq_timeout": true`, 1)+`]`)))
	if err != nil {
		t.Fatal(err)
	}
	rc := accepted(t, inOneHost("", "", toCluster("")+`, `+toCluster(`"idle_timeout": "0s"`)+`, `+toCluster(`"idle_timeout": "9s"`)))
	h := l.Host("any", rc)
	if !h.SuppressHeaders || !h.RespectExpectedTimeout || h.Routes != rc {
		t.Errorf("%+v", h)
	}
	for i, want := range []time.Duration{5 * time.Second, 0, 9 * time.Second} {
		if got := h.VirtualHost.Routes[i].IdleTimeout; got != want {
			t.Errorf("route %d: %v, want %v", i, got, want)
		}
	}
	if rc.VirtualHosts[0].Routes[0].IdleTimeout != 0 {
		t.Error("the shared routes were written to")
	}
	if l = (&snapshot.Listener{}); l.Host("any", rc).VirtualHost != &rc.VirtualHosts[0] {
		t.Error("a listener that says nothing has its own copy of the routes")
	}
}

// Which of two filters comes first is the listener's to say.
func TestFilterOrder(t *testing.T) {
	const cors = `{"name": "cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}`
	for filters, want := range map[string]bool{"": false, cors: true, faulty("") + ", " + cors: false, cors + ", " + faulty(""): true} {
		if h := bound(t, filters, inOneHost("", "", toCluster(""))); h.CORSFirst != want {
			t.Errorf("%s: %v", filters, h.CORSFirst)
		}
	}
}
