package translate

import (
	"fmt"
	"math"
	nethttp "net/http"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestIstioBehaviour sends the requests of Istio's integration tests through what the
// mesh's own client makes of their VirtualServices.
func TestIstioBehaviour(t *testing.T) {
	const services = `
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {selector: {app: %[1]s}, ports: [{name: http, port: 80}, {name: http2, port: 85}, {name: grpc, port: 90}]}
`
	type pair [2]string
	var file struct {
		Scenarios []struct {
			Name, Config string
			Calls        []struct {
				Name, Path, Method, Scheme string
				Port                       string `json:"port_name"`
				Follow                     bool   `json:"followredirects"`
				Headers                    []pair
				Count                      int
				Expect                     struct {
					Status    int
					Location  string
					URL       string `json:"url_at_backend"`
					Host      string `json:"host_at_backend"`
					Request   []pair `json:"request_header_at_backend"`
					Response  []pair `json:"response_header"`
					Responses []pair `json:"response_headers"`
					Other     []string
					PerHost   map[string]int `json:"responses_per_host"`
				}
			}
		}
	}
	conformance.Load(t, "istio/virtualservice_behaviour.json", &file)
	tally := conformance.Deciding(t, "istio/virtualservice_behaviour.json")
	ports := map[string]int{"": 80, "http": 80, "http2": 85, "grpc": 90}
	for _, s := range file.Scenarios {
		texts := []string{s.Config}
		for _, name := range []string{"a", "b", "c", "d"} {
			texts = append(texts, fmt.Sprintf(services, name))
		}
		w := reads(t, client(Sinew), texts...)
		for _, c := range s.Calls {
			method, path := c.Method, c.Path
			if method == "" {
				method = "GET"
			}
			if path == "" {
				path = "/"
			}
			x := exchange{ask: fmt.Sprintf("%s http://b:%d%s", method, ports[c.Port], path), header: "Host: b\n", grpc: c.Scheme == "grpc"}
			for _, h := range c.Headers {
				if strings.EqualFold(h[0], "host") {
					x.header = ""
				}
				x.header += h[0] + ": " + h[1] + "\n"
			}
			var wrong []string
			expect := func(what string, got, want any) {
				if got != want {
					wrong = append(wrong, fmt.Sprintf("%s %v, want %v", what, got, want))
				}
			}
			if len(c.Expect.PerHost) > 0 {
				seen := map[string]int{}
				for i := range 100 {
					x.draw = math.MaxUint64/100*uint64(i) + math.MaxUint64/200
					n, err := ParseTrafficName(w.send(x).cluster)
					if err != nil {
						t.Fatal(err)
					}
					seen[strings.TrimSuffix(n.Host, ".default.svc.cluster.local")]++
				}
				for host, want := range c.Expect.PerHost {
					expect("share of "+host, seen[host], want)
				}
			} else {
				o := w.send(x)
				for i := 0; c.Follow && o.location != "" && i < 10; i++ {
					x.ask = method + " " + strings.Replace(o.location, "http://b/", fmt.Sprintf("http://b:%d/", ports[c.Port]), 1)
					o = w.send(x)
				}
				for _, other := range c.Expect.Other {
					if strings.HasPrefix(other, "grpc-status ") {
						expect("gRPC", fmt.Sprintf("grpc-status %d", o.grpc), strings.Join(strings.Fields(other)[:2], " "))
						continue
					}
					t.Errorf("%s: %q is not understood", s.Name, other)
				}
				if c.Expect.Status != 0 {
					expect("status", o.status, c.Expect.Status)
				}
				if c.Expect.Location != "" {
					expect("location", o.location, c.Expect.Location)
				}
				if c.Expect.URL != "" {
					expect("URL", o.url, c.Expect.URL)
				}
				if c.Expect.Host != "" {
					expect("host", o.host, c.Expect.Host)
				}
				for _, h := range c.Expect.Request {
					expect("request header "+h[0], nethttp.Header(o.sent).Get(h[0]), h[1])
				}
				for _, h := range append(c.Expect.Response, c.Expect.Responses...) {
					expect("response header "+h[0], nethttp.Header(o.response).Get(h[0]), h[1])
				}
			}
			if len(wrong) > 0 {
				tally.Fail(t, "%s, %s: %s", s.Name, c.Name, strings.Join(wrong, "; "))
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "istio/virtualservice_behaviour.json", 18, 0)
}

// simulated is a call of Istio's simulations, and what becomes of it.
type simulated struct {
	Name string
	Call struct {
		Mode, Protocol, TLS, Host, Path, Method string
		Port                                    int
		Headers                                 map[string][]string
	}
	Expect struct {
		Cluster, Error string
		Config         string `json:"route_config"`
		VirtualHost    string `json:"virtual_host"`
	}
}

// TestIstioSimulation makes the calls of Istio's simulations: those that leave a
// workload through the routes of its client, those that come in through the
// listener of its server.
func TestIstioSimulation(t *testing.T) {
	var file struct {
		Scenarios []struct {
			Test   string
			Config string
			Kube   string `json:"kube_config"`
			Mesh   struct {
				Outbound struct{ Mode string } `json:"outbound_traffic_policy"`
			} `json:"mesh_config"`
			Proxy struct {
				Type, Namespace string
				Labels          map[string]string
			}
			Calls []simulated
		}
	}
	conformance.Load(t, "istio/traffic_simulation.json", &file)
	tally := conformance.Deciding(t, "istio/traffic_simulation.json")
	for i, s := range file.Scenarios {
		c := client(Sinew)
		if s.Proxy.Namespace != "" {
			c.Namespace = s.Proxy.Namespace
		}
		c.Labels = s.Proxy.Labels
		c.class = c.buildClass()
		r := policy.Build([]*policy.File{policy.Parse("config.yaml", []byte(s.Config)), policy.Parse("kube.yaml", []byte(s.Kube))}, nil)
		w := &world{t, NewView(r.Set), c}
		for j := range s.Calls {
			call := &s.Calls[j]
			name := fmt.Sprintf("%s, %s [%d.%d]", s.Test, call.Name, i, j)
			got, want := "", call.Expect.Cluster
			if want == "" {
				want = call.Expect.Error
			}
			router := s.Proxy.Type == "router"
			switch q := call.Call; {
			case router && (call.Expect.Config != "" || call.Expect.VirtualHost != ""):
				tally.RunIn(t, "internal/xds/compile", "TestConformanceIstioSimulationRoutes") // the routes of gateways, as istiod made them
				continue
			case router, want == "" && call.Expect.VirtualHost == "":
				tally.Differs(t, name)
				continue
			case q.Mode == "inbound":
				got = w.comesIn(call)
				if strings.HasPrefix(want, "inbound|") || want == "InboundPassthroughCluster" {
					want = "served"
				}
			case q.Protocol != "http" && q.Protocol != "http2", strings.Contains(s.Kube, "ExternalName"):
				tally.Differs(t, name)
				continue
			default:
				got = w.goesOut(call)
				if want == "AllowAnyDynamicDNSCluster" {
					want = "PassthroughCluster" // the client looks the name up and passes the request on
				}
			}
			switch {
			case got == want:
				tally.Pass()
			default:
				t.Logf("%s: %s, want %s", name, got, want)
				tally.Differs(t, name)
			}
		}
	}
	tally.Check(t, "istio/traffic_simulation.json", 89, 133)
}

// goesOut is the cluster that a request of the workload goes to, or why to none.
func (w *world) goesOut(c *simulated) string {
	w.t.Helper()
	path, method, name := c.Call.Path, c.Call.Method, c.Call.Host
	if path == "" {
		path = "/"
	}
	if method == "" {
		method = "GET"
	}
	if !strings.Contains(name, ":") {
		name = fmt.Sprintf("%s:%d", name, c.Call.Port)
	}
	l, err := w.view.Resource(ListenerType, name, w.client)
	if err != nil {
		return err.Error()
	}
	if l == nil {
		return "PassthroughCluster"
	}
	x := exchange{ask: method + " http://" + name + path}
	for k, values := range c.Call.Headers {
		for _, v := range values {
			x.header += k + ": " + v + "\n"
		}
	}
	if cluster := w.send(x).cluster; cluster != "" {
		return cluster
	}
	return "no route matched"
}

// comesIn is what the server of the workload does with a connection: it serves
// its requests, or the error that Istio's simulation has for it. A program's
// server reads HTTP, so what is something else is a protocol error.
func (w *world) comesIn(c *simulated) string {
	w.t.Helper()
	name := fmt.Sprintf("%s1.1.1.1:%d", InboundPrefix, c.Call.Port)
	r, err := w.view.Resource(ListenerType, name, w.client)
	if err != nil || r == nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	_, in, err := compile.Inbound(r.Body)
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	if in.TLS != nil && in.TLS.Socket == nil {
		w.t.Fatalf("%s: TLS without a socket", name)
	}
	handshake := c.Call.TLS == "tls" || c.Call.TLS == "mtls"
	switch {
	case handshake && in.TLS != nil && c.Call.TLS == "tls" && in.TLS.Socket.RequireClientCertificate:
		return "invalid mTLS"
	case handshake && in.TLS != nil:
	case in.Plain == nil:
		return "no filter chains matched"
	case handshake:
		return "protocol error"
	}
	if c.Call.Protocol == "tcp" {
		return "protocol error"
	}
	return "served"
}
