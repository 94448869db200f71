package translate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

const reviews = "reviews.default.svc.cluster.local"

// bookinfo is the set that most tests share.
func bookinfo(t testing.TB, vs ...*policy.VirtualService) *policy.Set {
	return &policy.Set{
		VirtualServices: vs,
		DestinationRules: []*policy.DestinationRule{destinationRule(t, "default", "reviews", `
host: reviews
trafficPolicy:
  connectionPool: {http: {h2UpgradePolicy: UPGRADE}}
  loadBalancer: {simple: ROUND_ROBIN}
subsets:
- {name: v1, labels: {version: v1}}
- {name: v2, labels: {version: v2}}
`)},
		Services: []*policy.Service{
			service("default", "reviews", http(9080)),
			service("default", "ratings", http(80), policy.Port{Name: "grpc", Number: 9090, Target: 9090, Protocol: "GRPC"}),
			service("other", "hidden", http(80)),
		},
		Workloads: []*policy.Workload{
			workload("default", "reviews", "v1", "10.0.0.1"),
			workload("default", "reviews", "v2", "10.0.0.2"),
			workload("default", "reviews", "v2", "10.0.0.3"),
		},
	}
}

func TestClientOf(t *testing.T) {
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": "shop", "INSTANCE_IPS": "10.1.1.1,fd00::1", "SERVICE_ACCOUNT": "cart",
		"LABELS": map[string]any{"app": "cart"},
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := structpb.NewStruct(map[string]any{"INSTANCE_IPS": []any{"10.1.1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		node *corev3.Node
		want Client
		err  string
	}{
		"metadata stands above the id": {
			node: &corev3.Node{Id: "sidecar~10.0.0.1~cart-1.default~default.svc.cluster.local", UserAgentName: "sinew", Metadata: metadata},
			want: Client{Agent: Sinew, Namespace: "shop", Name: "cart-1", IPs: []string{"10.1.1.1", "fd00::1"}, ServiceAccount: "cart", Labels: map[string]string{"app": "cart"}},
		},
		"id alone":            {node: &corev3.Node{Id: "sidecar~10.0.0.1~a.b.c~c.svc.cluster.local", UserAgentName: "gRPC Go"}, want: Client{Agent: GRPC, Namespace: "c", Name: "a.b", IPs: []string{"10.0.0.1"}}},
		"addresses as a list": {node: &corev3.Node{Id: "sidecar~10.0.0.1~a.b~b.svc.cluster.local", Metadata: list}, want: Client{Namespace: "b", Name: "a", IPs: []string{"10.1.1.1"}}},
		"other languages":     {node: &corev3.Node{Id: "x", UserAgentName: "grpc-java"}, want: Client{Agent: GRPC, Namespace: "default"}},
		"any id":              {node: &corev3.Node{Id: "envoy-1", UserAgentName: "envoy"}, want: Client{Namespace: "default"}},
		"no id":               {node: &corev3.Node{UserAgentName: "envoy"}, err: "node.id is empty"},
		"no node":             {err: "node.id is empty"},
		"id without address":  {node: &corev3.Node{Id: "sidecar~~a.b~b.svc.cluster.local"}, err: "is not an IP address"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := ClientOf(test.node)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(c.Agent, c.Namespace, c.Name, c.IPs, c.ServiceAccount, c.Labels)
			w := test.want
			if want := fmt.Sprint(w.Agent, w.Namespace, w.Name, w.IPs, w.ServiceAccount, w.Labels); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func TestOutboundNames(t *testing.T) {
	set := bookinfo(t, virtualService(t, "default", "virtual", `
hosts: [shop.internal]
http: [{route: [{destination: {host: reviews}}]}]
`))
	set.Services[2].ExportTo = []string{"."}
	external := func(host string) *policy.Service {
		return &policy.Service{Meta: policy.Meta{Kind: "ServiceEntry", Namespace: "default", Name: host}, Host: host,
			Ports: []policy.Port{http(443), http(8443)}, Resolution: networking.ServiceEntry_DNS, External: true}
	}
	set.Services = append(set.Services, external("*.example.com"), external("api.example.org"))
	v := NewView(set)
	for _, test := range []struct{ name, route string }{
		{"reviews:9080", "outbound|9080||" + reviews},
		{"Reviews.:9080", "outbound|9080||" + reviews},
		{"reviews.default:9080", "outbound|9080||" + reviews},
		{"reviews.default.svc:9080", "outbound|9080||" + reviews},
		{reviews + ":9080", "outbound|9080||" + reviews},
		{reviews + ".:9080", "outbound|9080||" + reviews},
		{"reviews", "outbound|9080||" + reviews},                      // its only port
		{"ratings", "outbound|80||ratings.default.svc.cluster.local"}, // 80 before others
		{"api.example.org", "outbound|443||api.example.org"},          // no 80: the first
		{"api.example.org:8443", "outbound|8443||api.example.org"},    //
		{"a.b.example.com:443", "outbound|443||a.b.example.com"},      // a wildcard stands for the host that is called
		{"shop.internal:80", "outbound|80||shop.internal"},            // known from a VirtualService only
		{"reviews:80", ""},         // no such port
		{"reviews.other:9080", ""}, // no such service there
		{"hidden.other:80", ""},    // exported to its own namespace only
		{"example.com:443", ""},    // the wildcard covers names below it
		{"unknown:80", ""}, {"", ""}, {":80", ""}, {"reviews:0", ""}, {"reviews:x", ""}, {"reviews:99999", ""}, {"[::1]:80", ""}, {"::1", ""}, {"[", ""}, {"[]:80", ""},
	} {
		for _, agent := range []Agent{Other, Sinew, GRPC} {
			r, err := v.Resource(ListenerType, test.name, client(agent))
			if err != nil {
				t.Errorf("%q: %v", test.name, err)
				continue
			}
			if test.route == "" {
				if r != nil {
					t.Errorf("%q is answered for %v", test.name, agent)
				}
				continue
			}
			if r == nil {
				t.Errorf("%q is unknown to %v", test.name, agent)
				continue
			}
			l, hcm := &listenerv3.Listener{}, &hcmv3.HttpConnectionManager{}
			if err := r.Body.UnmarshalTo(l); err != nil {
				t.Fatal(err)
			}
			if err := l.GetApiListener().GetApiListener().UnmarshalTo(hcm); err != nil {
				t.Fatal(err)
			}
			if l.GetName() != test.name || hcm.GetRds().GetRouteConfigName() != test.route || hcm.GetRds().GetConfigSource().GetAds() == nil {
				t.Errorf("%q: listener %q with routes %q, want %q over ADS", test.name, l.GetName(), hcm.GetRds().GetRouteConfigName(), test.route)
			}
			want := []string{"envoy.filters.http.fault", "envoy.filters.http.cors", "envoy.filters.http.router"}
			if agent == GRPC {
				want = []string{"envoy.filters.http.fault", "envoy.filters.http.router"} // it refuses a listener with CORS
			}
			var filters []string
			for _, f := range hcm.GetHttpFilters() {
				filters = append(filters, f.GetName())
			}
			if !slices.Equal(filters, want) {
				t.Errorf("%q: filters %q", test.name, filters)
			}
			rc, _ := get(t, v, RouteType, test.route, client(agent), &routev3.RouteConfiguration{})
			if vhs := rc.GetVirtualHosts(); len(vhs) != 1 || !slices.Equal(vhs[0].GetDomains(), []string{"*"}) || len(vhs[0].GetRoutes()) == 0 {
				t.Errorf("%q: virtual hosts %v", test.route, vhs)
			}
		}
	}
}

func TestInbound(t *testing.T) {
	v := NewView(nil)
	for _, test := range []struct {
		addr, host string
		port       uint32
	}{
		{"127.0.0.1:9080", "127.0.0.1", 9080}, {"[::]:80", "::", 80}, {"0.0.0.0:17070", "0.0.0.0", 17070}, {":80", "0.0.0.0", 80}, {"[fe80::1%eth0]:80", "fe80::1", 80}, {"[::1]:1", "::1", 1},
	} {
		l, _ := get(t, v, ListenerType, InboundPrefix+test.addr, client(GRPC), &listenerv3.Listener{})
		sa := l.GetAddress().GetSocketAddress()
		if sa.GetAddress() != test.host || sa.GetPortValue() != test.port {
			t.Errorf("%s: address %v", test.addr, sa)
		}
		hcm := &hcmv3.HttpConnectionManager{}
		if err := l.GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(hcm); err != nil {
			t.Fatal(err)
		}
		r := hcm.GetRouteConfig().GetVirtualHosts()[0].GetRoutes()[0]
		if r.GetNonForwardingAction() == nil || r.GetMatch().GetPrefix() != "/" {
			t.Errorf("%s: route %v", test.addr, r)
		}
	}
	for _, addr := range []string{"", "nonsense", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000", "127.0.0.1:0", "localhost:80"} {
		if r, err := v.Resource(ListenerType, InboundPrefix+addr, client(Other)); r != nil || err != nil {
			t.Errorf("%q: %v, %v", addr, r, err)
		}
	}
}

// TestRoutes writes the routes of a VirtualService for reviews:9080, one line each.
func TestRoutes(t *testing.T) {
	const retry = " retry=connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes*2"
	const grpcRetry = " retry=unavailable,cancelled*2"
	for name, test := range map[string]struct {
		spec  string
		agent Agent
		want  []string
		notes []string
		err   string
	}{
		"weights, and a header": {
			spec: `
hosts: [reviews]
http:
- match: [{headers: {User: {exact: test-user}}}]
  route: [{destination: {host: reviews, subset: v2}}]
- route:
  - {destination: {host: reviews, subset: v1}, weight: 90}
  - {destination: {host: reviews, subset: v2}, weight: 10}
  - {destination: {host: ratings, port: {number: 80}}, weight: 0}
`,
			want: []string{
				`/* user="test-user" -> v2 retry=D`,
				`/* -> v1*90 v2*10 retry=D`,
			},
		},
		"the catch-all ends the list": {
			spec: `
hosts: [reviews]
http:
- match: [{uri: {prefix: /a}}, {uri: {prefix: /}}, {uri: {prefix: /b}}]
  route: [{destination: {host: reviews}}]
- route: [{destination: {host: ratings}}]
`,
			want: []string{`/a* -> reviews retry=D`, `/* -> reviews retry=D`},
		},
		"a catch-all with a condition does not": {
			spec: `
hosts: [reviews]
http:
- match: [{uri: {regex: ".*"}, method: {exact: POST}}]
  route: [{destination: {host: reviews}}]
- match: [{uri: {regex: ".*"}}]
  route: [{destination: {host: reviews, subset: v1}}]
- route: [{destination: {host: ratings}}]
`,
			want: []string{`~.* :method="POST" -> reviews retry=D`, `~.* -> v1 retry=D`},
		},
		"conditions": {
			spec: `
hosts: [reviews]
http:
- match:
  - uri: {exact: /A}
    ignoreUriCase: true
    headers: {x: {}, y: {regex: "*"}, z: {regex: "a+"}}
    withoutHeaders: {p: {}, q: {exact: v}, r: {prefix: w}}
    queryParams: {k: {exact: v}, l: {}}
    scheme: {exact: https}
    authority: {prefix: rev}
  route: [{destination: {host: reviews}}]
`,
			want: []string{`=/A(i) x? y? z~"a+" !p? !q="v"(missing) !r^"w"(missing) :scheme="https" :authority^"rev" &k="v" &l? -> reviews retry=D`},
		},
		"gRPC: what it can not match": {
			agent: GRPC,
			spec: `
hosts: [reviews]
http:
- match: [{queryParams: {k: {exact: v}}}, {authority: {exact: a}}, {method: {exact: GET}}, {method: {exact: POST}, uri: {prefix: /p}}]
  route: [{destination: {host: reviews, subset: v1}}]
- match: [{withoutHeaders: {x: {exact: v}, y: {prefix: w}, z: {}}}]
  route: [{destination: {host: reviews, subset: v2}}]
- route: [{destination: {host: reviews}}]
`,
			want: []string{
				`/p* -> v1 retry=G`,
				`/* !x? !y? !z? -> v2 retry=G`, `/* !x? !y^"w" !z? -> v2 retry=G`, `/* !x="v" !y? !z? -> v2 retry=G`, `/* !x="v" !y^"w" !z? -> v2 retry=G`,
				`/* -> reviews retry=G`,
			},
			notes: []string{"http[0].match[0].queryParams", "http[0].match[1].authority"},
		},
		"source, port and gateways decide here": {
			spec: `
hosts: [reviews]
http:
- {match: [{sourceLabels: {app: other}}], route: [{destination: {host: reviews, subset: v1}}]}
- {match: [{sourceNamespace: other}], route: [{destination: {host: reviews, subset: v1}}]}
- {match: [{port: 80}], route: [{destination: {host: reviews, subset: v1}}]}
- {match: [{gateways: [ingress]}], route: [{destination: {host: reviews, subset: v1}}]}
- {match: [{gateways: [mesh], sourceLabels: {app: other}, uri: {prefix: /g}}], route: [{destination: {host: reviews, subset: v2}}]}
- {match: [{sourceLabels: {app: web}, sourceNamespace: default, port: 9080}], route: [{destination: {host: reviews}}]}
`,
			want: []string{`/g* -> v2 retry=D`, `/* -> reviews retry=D`},
		},
		"nothing applies": {
			spec: "hosts: [reviews]\nhttp: [{match: [{port: 80}], route: [{destination: {host: reviews}}]}]",
		},
		"destination ports": {
			spec: `
hosts: [reviews]
http:
- {match: [{uri: {prefix: /a}}], route: [{destination: {host: hidden.other.svc.cluster.local}}]}
- {match: [{uri: {prefix: /b}}], route: [{destination: {host: ratings}}]}
- {match: [{uri: {prefix: /c}}], route: [{destination: {host: ratings, port: {number: 9090}}}]}
- {match: [{uri: {prefix: /d}}], route: [{destination: {host: missing}}]}
`,
			want: []string{
				`/a* -> outbound|80||hidden.other.svc.cluster.local retry=D`,      // its only port
				`/b* -> outbound|9080||ratings.default.svc.cluster.local retry=D`, // two: the request's
				`/c* -> outbound|9090||ratings.default.svc.cluster.local retry=D`, // named
				`/d* -> outbound|9080||missing.default.svc.cluster.local retry=D`, // unknown: the request's
			},
		},
		"limits": {
			spec: `
hosts: [reviews]
http:
- match: [{uri: {prefix: /a}}]
  timeout: 3s
  retries: {attempts: 3, perTryTimeout: 2s, retryOn: "5xx, reset,503", backoff: 1s}
  route: [{destination: {host: reviews}}]
- match: [{uri: {prefix: /b}}]
  retries: {attempts: 0}
  route: [{destination: {host: reviews}}]
- retries: {attempts: 1, retryOn: "retriable-status-codes,418", retryIgnorePreviousHosts: false}
  route: [{destination: {host: reviews}}]
`,
			want: []string{
				`/a* -> reviews timeout=3s retry=5xx,reset,retriable-status-codes*3 per=2s codes=[503] base=1s`,
				`/b* -> reviews`,
				`/* -> reviews retry=retriable-status-codes*1 codes=[418] revisits`,
			},
		},
		"gRPC: limits": {
			agent: GRPC,
			spec: `
hosts: [reviews]
http:
- match: [{uri: {prefix: /a}}]
  timeout: 3s
  retries: {attempts: 3, perTryTimeout: 2s, retryOn: "5xx,reset,connect-failure,internal"}
  route: [{destination: {host: reviews}}]
- match: [{uri: {prefix: /b}}]
  retries: {attempts: 2, retryOn: "retriable-4xx,418"}
  route: [{destination: {host: reviews}}]
- match: [{uri: {prefix: /c}}]
  retries: {attempts: 2, retryOn: "503"}
  route: [{destination: {host: reviews}}]
- route: [{destination: {host: reviews}}]
`,
			want: []string{
				`/a* -> reviews timeout=3s max=3s retry=unavailable,internal*3`,
				`/b* -> reviews`,
				`/c* -> reviews retry=unavailable*2`,
				`/* -> reviews retry=G`,
			},
			notes: []string{"http[0].retries.perTryTimeout", "http[1].retries.retryOn"},
		},
		"names":         {spec: "hosts: [reviews]\nhttp: [{name: a, match: [{name: b, uri: {prefix: /}}], route: [{destination: {host: reviews}}]}]", want: []string{`a.b: /* -> reviews retry=D`}},
		"delegate":      {spec: "hosts: [reviews]\nhttp: [{delegate: {name: a}, route: [{destination: {host: reviews}}]}]", err: "VirtualService default/reviews spec.http[0] delegate"},
		"redirect code": {spec: "hosts: [reviews]\nhttp: [{redirect: {uri: /a, redirectCode: 304}}]", err: "spec.http[0].redirect redirectCode 304"},
		"no claim":      {spec: "hosts: [reviews]\nhttp: [{match: [{headers: {'@request.auth.claims': {exact: b}}}], route: [{destination: {host: reviews}}]}]", err: "@request.auth.claims: names no claim"},
		"no weight":     {spec: "hosts: [reviews]\nhttp: [{route: [{destination: {host: a}, weight: 0}, {destination: {host: b}, weight: 0}]}]", err: "no destination has a weight"},
	} {
		t.Run(name, func(t *testing.T) {
			v := NewView(bookinfo(t, virtualService(t, "default", "reviews", test.spec)))
			r, err := v.Resource(RouteType, "outbound|9080||"+reviews, client(test.agent))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			rc := &routev3.RouteConfiguration{}
			if err := r.Body.UnmarshalTo(rc); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range rc.GetVirtualHosts()[0].GetRoutes() {
				line := strings.ReplaceAll(strings.ReplaceAll(write(r), retry, " retry=D"), grpcRetry, " retry=G")
				got = append(got, line)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			var fields []string
			for _, n := range r.Notes {
				fields = append(fields, strings.TrimPrefix(n.Field, "VirtualService default/reviews spec."))
			}
			if !slices.Equal(fields, test.notes) {
				t.Errorf("notes %v, want %v", fields, test.notes)
			}
		})
	}
}

// write writes a route in a short form that tests can hold it against.
func write(r *routev3.Route) string {
	var b strings.Builder
	if r.GetName() != "" {
		b.WriteString(r.GetName() + ": ")
	}
	m := r.GetMatch()
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		b.WriteString(p.Prefix + "*")
	case *routev3.RouteMatch_Path:
		b.WriteString("=" + p.Path)
	case *routev3.RouteMatch_SafeRegex:
		b.WriteString("~" + p.SafeRegex.GetRegex())
	}
	if c := m.GetCaseSensitive(); c != nil && !c.GetValue() {
		b.WriteString("(i)")
	}
	for _, h := range m.GetHeaders() {
		b.WriteString(" ")
		if h.GetInvertMatch() {
			b.WriteString("!")
		}
		b.WriteString(h.GetName())
		s := h.GetStringMatch()
		switch {
		case h.GetPresentMatch():
			b.WriteString("?")
		case s.GetSafeRegex() != nil:
			fmt.Fprintf(&b, "~%q", s.GetSafeRegex().GetRegex())
		case s.GetPrefix() != "":
			fmt.Fprintf(&b, "^%q", s.GetPrefix())
		default:
			fmt.Fprintf(&b, "=%q", s.GetExact())
		}
		if h.GetTreatMissingHeaderAsEmpty() {
			b.WriteString("(missing)")
		}
	}
	for _, q := range m.GetQueryParameters() {
		if q.GetPresentMatch() {
			fmt.Fprintf(&b, " &%s?", q.GetName())
		} else {
			fmt.Fprintf(&b, " &%s=%q", q.GetName(), q.GetStringMatch().GetExact())
		}
	}
	b.WriteString(" ->")
	for _, w := range clustersOf(r) {
		n, err := ParseTrafficName(w.name)
		name := w.name
		if err == nil && n.Host == reviews && n.Port == 9080 {
			if name = n.Subset; name == "" {
				name = "reviews"
			}
		}
		b.WriteString(" " + name)
		if w.share != 1 {
			fmt.Fprintf(&b, "*%d", w.share)
		}
	}
	a := r.GetRoute()
	if a.GetTimeout() == nil {
		b.WriteString(" timeout unset")
	} else if d := a.GetTimeout().AsDuration(); d != 0 {
		fmt.Fprintf(&b, " timeout=%v", d)
	}
	if d := a.GetMaxStreamDuration(); d != nil {
		fmt.Fprintf(&b, " max=%v", d.GetMaxStreamDuration().AsDuration())
	}
	if p := a.GetRetryPolicy(); p != nil {
		fmt.Fprintf(&b, " retry=%s*%d", p.GetRetryOn(), p.GetNumRetries().GetValue())
		if p.GetPerTryTimeout() != nil {
			fmt.Fprintf(&b, " per=%v", p.GetPerTryTimeout().AsDuration())
		}
		if p.GetRetriableStatusCodes() != nil {
			fmt.Fprintf(&b, " codes=%v", p.GetRetriableStatusCodes())
		}
		if p.GetRetryBackOff() != nil {
			fmt.Fprintf(&b, " base=%v", p.GetRetryBackOff().GetBaseInterval().AsDuration())
		}
		if len(p.GetRetryHostPredicate()) == 0 && !strings.Contains(p.GetRetryOn(), "unavailable") {
			b.WriteString(" revisits")
		}
	}
	return b.String()
}

func TestDefaultRoute(t *testing.T) {
	v := NewView(bookinfo(t))
	rc, _ := get(t, v, RouteType, "outbound|9080||"+reviews, client(Sinew), &routev3.RouteConfiguration{})
	want := "default: /* -> reviews retry=connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes*2"
	if got := write(rc.GetVirtualHosts()[0].GetRoutes()[0]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestVersionsAreOfContent(t *testing.T) {
	a, b := NewView(bookinfo(t)), NewView(bookinfo(t))
	for _, res := range []struct{ typeURL, name string }{
		{ListenerType, "reviews:9080"}, {RouteType, "outbound|9080||" + reviews}, {ClusterType, "outbound|9080||" + reviews}, {EndpointType, "outbound|9080||" + reviews},
	} {
		x, err1 := a.Resource(res.typeURL, res.name, client(Sinew))
		y, err2 := b.Resource(res.typeURL, res.name, client(Sinew))
		if err1 != nil || err2 != nil || x.Version == "" || x.Version != y.Version {
			t.Errorf("%s: versions %v and %v (%v, %v)", res.name, x, y, err1, err2)
		}
	}
}

func TestVariants(t *testing.T) {
	a, b := client(Sinew), client(Sinew)
	b.Labels = map[string]string{"app": "web", "version": "v2"}
	b.class = b.buildClass()
	for _, test := range []struct {
		typeURL, name string
		same          bool
	}{
		{ListenerType, "reviews:9080", true},
		{ClusterType, "c", true},
		{EndpointType, "e", true},
		{RouteType, "r", false},
		{ListenerType, InboundPrefix + "127.0.0.1:80", false},
	} {
		if got := Variant(test.typeURL, test.name, a) == Variant(test.typeURL, test.name, b); got != test.same {
			t.Errorf("%s %s: same variant %v, want %v", test.typeURL, test.name, got, test.same)
		}
	}
	if Variant(ClusterType, "c", client(Sinew)) == Variant(ClusterType, "c", client(GRPC)) {
		t.Error("clients of different kinds share a cluster")
	}
}
