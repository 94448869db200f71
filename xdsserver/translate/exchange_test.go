package translate

import (
	"fmt"
	"maps"
	"net/textproto"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// shop is the mesh that examples of policy are for: reviews in two versions, and ratings.
const shop = `
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: v1}
spec: {address: 10.0.0.1, labels: {app: reviews, version: v1}, locality: eu/a/1}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: v2}
spec: {address: 10.0.0.2, labels: {app: reviews, version: v2}, locality: us/a/1}
`

// world is policy as a client has it: translated, and compiled by the client's own compiler.
type world struct {
	t      testing.TB
	view   *View
	client *Client
}

// reads puts the texts of files in force, without any problem.
func reads(t testing.TB, c *Client, texts ...string) *world {
	t.Helper()
	var files []*policy.File
	for i, text := range texts {
		files = append(files, policy.Parse(fmt.Sprintf("%d.yaml", i), []byte(text)))
	}
	r := policy.Build(files, nil)
	for _, p := range r.Problems {
		if p.Severity != policy.Notice {
			t.Fatal(p)
		}
	}
	return &world{t, NewView(r.Set), c}
}

func (w *world) resource(typeURL, name string) *Resource {
	w.t.Helper()
	r, err := w.view.Resource(typeURL, name, w.client)
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	if r == nil {
		w.t.Fatalf("%s: there is none", name)
	}
	return r
}

// host is a virtual host as it is behind its listener.
func (w *world) host(name string) *snapshot.VirtualHost {
	w.t.Helper()
	_, l, err := compile.Listener(w.resource(ListenerType, name).Body)
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	_, rc, err := compile.RouteConfig(w.resource(RouteType, l.RouteName).Body)
	if err != nil {
		w.t.Fatalf("%s: %v", l.RouteName, err)
	}
	return l.Bind(rc.Lookup(name))
}

func (w *world) cluster(name string) (*snapshot.Cluster, *lb.Endpoints) {
	w.t.Helper()
	_, c, err := compile.Cluster(w.resource(ClusterType, name).Body)
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	if c.EndpointsName == "" {
		return c, c.Endpoints
	}
	_, eps, err := compile.Endpoints(w.resource(EndpointType, c.EndpointsName).Body)
	if err != nil {
		w.t.Fatalf("%s: %v", c.EndpointsName, err)
	}
	return c, eps
}

// exchange is a request, "METHOD http://host/path?query", and how it ends.
type exchange struct {
	ask    string
	header string // "name: value" in lines
	claims map[string]any
	draw   uint64
	grpc   bool
	want   string
}

// outcome is what becomes of a request.
type outcome struct {
	text string // all of it
	// Of the answer that policy itself gives, or of one with status 200 that a server gave.
	status, grpc int
	location     string
	response     map[string][]string
	// Of the request as a server sees it; cluster is "" where policy answers.
	cluster, url, host string
	sent               map[string][]string
}

// answer writes what becomes of a request: the answer that policy itself gives, or the
// destination and what is sent there; then how the response is changed.
func (w *world) answer(x exchange) string { return w.send(x).text }

func (w *world) send(x exchange) (o outcome) {
	w.t.Helper()
	o.status, o.grpc = 200, -1
	method, url, _ := strings.Cut(x.ask, " ")
	name, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	path, query, _ := strings.Cut("/"+path, "?")
	header := map[string][]string{}
	for _, line := range strings.Split(x.header, "\n") {
		if k, v, ok := strings.Cut(line, ": "); ok {
			k = textproto.CanonicalMIMEHeaderKey(k)
			header[k] = append(header[k], v)
		}
	}
	authority := name
	if host := header["Host"]; host != nil {
		authority = host[0]
		delete(header, "Host")
	}
	if x.grpc {
		header["Content-Type"] = []string{"application/grpc"}
	}
	r := &routing.Request{Method: method, Scheme: "http", Authority: authority, Path: path, RawQuery: query, Header: header, Claims: x.claims}
	vh := w.host(name)
	i := vh.Match(r, x.draw)
	if i < 0 {
		return outcome{text: "no route", status: 404, grpc: -1}
	}
	route := &vh.Routes[i]
	response := map[string][]string{"Server": {"backend"}}
	var out string
	leg := 0
	if route.Redirect == nil && route.Direct == nil {
		leg = route.Clusters.Choose(x.draw)
	}
	cors := route.CORSOf(leg)
	verdict := route.FaultOf(leg)
	respond := func() {
		v := &routing.Values{Request: r, ResponseHeader: response}
		if leg < len(route.Legs) {
			route.Legs[leg].ResponseHeaders.Apply(response, 0, v)
		}
		for i := range route.ResponseHeaders {
			route.ResponseHeaders[i].Apply(response, 0, v)
		}
		if cors != nil {
			cors.Apply(r, response, 0)
		}
	}
	switch {
	case route.Redirect != nil:
		response = map[string][]string{}
		respond()
		o.status, o.location, o.response = route.Redirect.Status, route.Redirect.Location(&route.Match, r), response
		o.text = fmt.Sprintf("%d to %s", o.status, o.location) + difference(nil, response, " ", ": ")
		return o
	case route.Direct != nil:
		response = map[string][]string{}
		respond()
		o.status, o.response = route.Direct.Status, response
		o.text = fmt.Sprintf("%d %q", o.status, route.Direct.Body) + difference(nil, response, " ", ": ")
		return o
	}
	if f := verdict; f != nil {
		d := f.Decide(r, x.draw, x.draw)
		if d.Delay > 0 {
			out += fmt.Sprintf("after %v ", d.Delay)
		}
		if d.HTTP != 0 {
			o.status, o.text = d.HTTP, out+fmt.Sprintf("fault %d", d.HTTP)
			return o
		}
		if d.GRPC >= 0 {
			o.grpc, o.text = d.GRPC, out+fmt.Sprintf("fault grpc %d", d.GRPC)
			return o
		}
	}
	if cors != nil {
		if h, status, answered := cors.Preflight(r); answered {
			o.status, o.response, o.text = status, h, fmt.Sprintf("preflight %d", status)+difference(nil, h, " ", ": ")
			return o
		}
	}
	sent := maps.Clone(header)
	v := &routing.Values{Request: &routing.Request{Method: method, Scheme: "http", Authority: authority, Path: path, RawQuery: query, Header: sent}}
	host := ""
	if leg < len(route.Legs) {
		route.Legs[leg].RequestHeaders.Apply(sent, 0, v)
		host = route.Legs[leg].Host
	}
	for i := range route.RequestHeaders {
		route.RequestHeaders[i].Apply(sent, 0, v)
	}
	if a := route.Rewrite.Authority(r, ""); a != "" {
		host = a
	}
	to, q := route.Rewrite.Path(&route.Match, r)
	if q != "" {
		to += "?" + q
	}
	n, err := ParseTrafficName(route.Clusters.Clusters[leg].Name)
	if err != nil {
		w.t.Fatal(err)
	}
	out += strings.TrimSuffix(n.Host, ".default.svc.cluster.local")
	if n.Subset != "" {
		out += "/" + n.Subset
	}
	out += " " + to
	o.cluster, o.url, o.host, o.sent = n.String(), to, authority, sent
	if host != "" {
		out += " host=" + host
		o.host = host
	}
	out += difference(header, sent, " ", "=")
	for _, m := range route.Mirrors {
		if m.Fraction.Matches(x.draw) {
			n, err := ParseTrafficName(m.Cluster)
			if err != nil {
				w.t.Fatal(err)
			}
			out += " copy=" + strings.TrimSuffix(strings.TrimSuffix(n.Host, ".default.svc.cluster.local")+"/"+n.Subset, "/")
		}
	}
	if len(route.Hash) > 0 {
		_, ok, cookie := routing.HashOf(route.Hash, r, routing.HashOrigin{Address: "10.0.0.9", Local: "10.0.0.9", Channel: 1})
		out += fmt.Sprintf(" hash=%v", ok)
		if cookie != "" {
			before, after, _ := strings.Cut(cookie, "=")
			_, attributes, _ := strings.Cut(after, ";")
			out += " set-cookie=" + before + ";" + attributes
		}
	}
	if route.Timeout > 0 {
		out += fmt.Sprintf(" timeout=%v", route.Timeout)
	}
	before := maps.Clone(response)
	respond()
	if d := difference(before, response, " ", "="); d != "" {
		out += " |" + d
	}
	o.text, o.response = out, response
	return o
}

// difference writes the headers that were set, changed or removed ("-name").
func difference(before, after map[string][]string, sep, is string) string {
	var out []string
	for k, v := range after {
		if !slices.Equal(before[k], v) {
			out = append(out, strings.ToLower(k)+is+strings.Join(v, ","))
		}
	}
	for k := range before {
		if _, ok := after[k]; !ok {
			out = append(out, "-"+strings.ToLower(k))
		}
	}
	sort.Strings(out)
	if len(out) == 0 {
		return ""
	}
	return sep + strings.Join(out, sep)
}

func example(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/traffic/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
