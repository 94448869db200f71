package compile

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

var indices = regexp.MustCompile(`\[[^\]]*\]`)

// refusal is the field that an error names, without indices.
func refusal(t *testing.T, err error) string {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is not an *Error: %v", err, err)
	}
	return indices.ReplaceAllString(e.Path, "")
}

// Routes that istiod made are accepted, and do something.
func TestConformanceIstioRoutes(t *testing.T) {
	var file struct {
		Cases []struct {
			Name   string
			Routes []json.RawMessage
		}
	}
	conformance.Load(t, "istio/virtualservice_to_routes.json", &file)
	tally := conformance.Deciding(t, "istio/virtualservice_to_routes.json")
	for i, c := range file.Cases {
		for j, r := range c.Routes {
			name := fmt.Sprintf("%s [%d] route %d", c.Name, i, j)
			_, rc, err := RouteConfig(routesOf(t, fmt.Sprintf(`{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [%s]}]}`, r)))
			if err != nil {
				if field := refusal(t, err); field != "virtual_hosts.routes.typed_per_filter_config" {
					tally.Fail(t, "%s: %v", name, err)
					continue
				}
				tally.Differs(t, name)
				continue
			}
			route := &rc.VirtualHosts[0].Routes[0]
			if len(route.Clusters.Clusters) == 0 && route.Redirect == nil && route.Direct == nil {
				tally.Fail(t, "%s: goes nowhere", name)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "istio/virtualservice_to_routes.json", 81, 5)
}

// Route configurations that istiod made for whole meshes are accepted, and
// choose what Istio's own simulation of Envoy does.
func TestConformanceIstioSimulationRoutes(t *testing.T) {
	const file = "istio/traffic_simulation.json#routes"
	var record struct {
		Scenarios []struct {
			Test   string
			Routes []json.RawMessage
			Calls  []struct {
				Name string
				Call struct {
					Host, Path, TLS string
					Headers         map[string][]string
				}
				Expect struct {
					Cluster, Error string
					Config         string `json:"route_config"`
					Host           string `json:"virtual_host"`
				}
			}
		}
	}
	conformance.Load(t, "istio/traffic_simulation.json", &record)
	tally := conformance.Deciding(t, "istio/traffic_simulation.json#routes")
	calls := 0
	for _, s := range record.Scenarios {
		configs := map[string]*snapshot.RouteConfig{}
		for _, r := range s.Routes {
			name, rc, err := RouteConfig(routesOf(t, string(r)))
			if err != nil {
				tally.Fail(t, "%s: %v", s.Test, err)
				continue
			}
			configs[name] = rc
			tally.Pass()
		}
		for _, c := range s.Calls {
			if c.Expect.Config == "" && c.Expect.Host != "" && len(configs) == 1 {
				for c.Expect.Config = range configs { // there is no other
				}
			}
			if c.Expect.Config == "" {
				continue // the call does not come as far as routes, or its record does not say so
			}
			calls++
			r := &routing.Request{Method: "GET", Scheme: "http", Authority: c.Call.Host, Path: c.Call.Path, Header: c.Call.Headers}
			if c.Call.TLS != "" && c.Call.TLS != "plaintext" {
				r.Scheme = "https"
			}
			if r.Path == "" {
				r.Path = "/"
			}
			d := decide(configs[c.Expect.Config], nil, r, 0)
			got := ""
			switch {
			case d.host == nil:
				got = "no virtual host matched"
			case d.route == nil:
				got = "no route matched"
			case d.route.Redirect != nil:
				got = fmt.Sprintf("tls required, sending %d", d.route.Redirect.Status)
			}
			if got != c.Expect.Error || c.Expect.Cluster != "" && d.cluster != c.Expect.Cluster || c.Expect.Host != "" && d.host.Name != c.Expect.Host {
				tally.Fail(t, "%s, %s: cluster %q, %q, want %+v", s.Test, c.Name, d.cluster, got, c.Expect)
				continue
			}
			tally.Pass()
		}
	}
	if calls != 19 {
		t.Errorf("%d calls", calls)
	}
	tally.Check(t, file, 35+19, 0)
}
