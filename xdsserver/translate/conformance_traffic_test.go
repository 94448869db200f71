package translate

import (
	"fmt"
	"math"
	nethttp "net/http"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
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
	var tally conformance.Tally
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

// TestIstioSimulation sends the plaintext HTTP requests that Istio's simulations have
// leave a workload.
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
			Calls []struct {
				Name string
				Call struct {
					Mode, Protocol, TLS, Host, Path, Method string
					Port                                    int
					Headers                                 map[string][]string
				}
				Expect struct {
					Cluster, Error string
					VirtualHost    string `json:"virtual_host"`
				}
			}
		}
	}
	conformance.Load(t, "istio/traffic_simulation.json", &file)
	var tally conformance.Tally
	for _, s := range file.Scenarios {
		c := client(Sinew)
		if s.Proxy.Namespace != "" {
			c.Namespace = s.Proxy.Namespace
		}
		c.Labels = s.Proxy.Labels
		c.class = c.buildClass()
		r := policy.Build([]*policy.File{policy.Parse("config.yaml", []byte(s.Config)), policy.Parse("kube.yaml", []byte(s.Kube))}, nil)
		w := &world{t, NewView(r.Set), c}
		for _, call := range s.Calls {
			switch q := call.Call; {
			case s.Proxy.Type == "router":
				tally.SetAside("ingress gateways")
				continue
			case q.Mode == "inbound":
				tally.SetAside("requests that come in")
				continue
			case q.Protocol != "http" && q.Protocol != "http2":
				tally.SetAside("connections that are not HTTP")
				continue
			case q.TLS == "tls" || q.TLS == "mtls":
				tally.SetAside("requests that a program has encrypted before a proxy sees them")
				continue
			case call.Expect.Cluster == "" && call.Expect.Error == "" && call.Expect.VirtualHost == "":
				tally.SetAside("nothing is expected")
				continue
			case strings.Contains(s.Kube, "ExternalName"):
				tally.SetAside("Services of type ExternalName, which are refused: they are aliases in DNS")
				continue
			case s.Mesh.Outbound.Mode == "REGISTRY_ONLY", call.Expect.VirtualHost == "block_all", call.Expect.Cluster == "BlackHoleCluster":
				tally.SetAside("hosts outside the mesh refused by the mesh: each program decides that by its own option")
				continue
			}
			path, method := call.Call.Path, call.Call.Method
			if path == "" {
				path = "/"
			}
			if method == "" {
				method = "GET"
			}
			name := call.Call.Host
			if !strings.Contains(name, ":") {
				name = fmt.Sprintf("%s:%d", name, call.Call.Port)
			}
			got := "PassthroughCluster"
			if l, err := w.view.Resource(ListenerType, name, c); err != nil {
				got = err.Error()
			} else if l != nil {
				x := exchange{ask: method + " http://" + name + path}
				for k, values := range call.Call.Headers {
					for _, v := range values {
						x.header += k + ": " + v + "\n"
					}
				}
				if got = w.send(x).cluster; got == "" {
					got = "no route matched"
				}
			}
			want := call.Expect.Cluster
			switch {
			case want == "AllowAnyDynamicDNSCluster":
				want = "PassthroughCluster" // the client looks the name up and passes the request on
			case want == "" && call.Expect.Error != "":
				want = call.Expect.Error
			}
			if got != want {
				tally.Fail(t, "%s, %s: %s, want %s", s.Test, call.Name, got, want)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "istio/traffic_simulation.json", 12, 210)
}
