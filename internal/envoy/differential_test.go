package envoy_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/envoy"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/transport/meshhttp"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

const (
	configurations = 320
	usualSeed      = 1
	perConfig      = 66 // requests; 320 x 66 = 21,120
)

var seedFlag = flag.Uint64("seed", usualSeed, "of the generated configurations and requests")

// TestAgreesWithEnvoy sends the same generated requests through Envoy and
// through the engine, with the same generated route configurations, and compares
// what came of them: endpoint, method, path, authority, headers both ways,
// status, attempts. Every difference must be one that docs/traffic.md names.
func TestAgreesWithEnvoy(t *testing.T) {
	envoy.Binary(t)
	up := newUpstream()
	seed := *seedFlag
	clusters := newGenerator(seed).fleet(t, up)
	bootstrap := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{}}
	for _, c := range clusters {
		bootstrap.StaticResources.Clusters = append(bootstrap.StaticResources.Clusters, forEnvoy(c))
	}
	managers := make([]*hcmv3.HttpConnectionManager, configurations)
	for i := range managers {
		managers[i] = manager(newConfigGenerator(seed, i).routeConfig(fmt.Sprintf("rc%d", i)))
		bootstrap.StaticResources.Listeners = append(bootstrap.StaticResources.Listeners, socketListener(fmt.Sprintf("rc%d", i), managers[i]))
	}
	proxy := envoy.Start(t, bootstrap)

	compiled := make(map[string]*snapshot.Cluster)
	for _, c := range clusters {
		name, cc, err := forMesh(c)
		if err != nil {
			t.Fatal(err)
		}
		compiled[name] = cc
	}
	explained := newExplained(t, rules)
	var compared, differed, answered atomic.Int64
	var group sync.WaitGroup
	gate := make(chan struct{}, 8)
	for i, hcm := range managers {
		ours, hosts, err := newClient(hcm, compiled)
		if err != nil {
			t.Errorf("rc%d: Envoy takes the configuration, the mesh refuses it: %v", i, err)
			continue
		}
		theirs := &http.Transport{DisableCompression: true}
		address := fmt.Sprintf("127.0.0.1:%d", proxy.Port(t, fmt.Sprintf("rc%d", i)))
		group.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			defer theirs.CloseIdleConnections()
			defer ours.close()
			g := newConfigGenerator(seed+1<<20, i)
			pairs := make([]pair, 0, perConfig)
			issues := strings.Contains(string(packedJSON(hcm)), `"`+issued+`"`)
			for j := range perConfig {
				p := pair{r: g.request(fmt.Sprintf("%d-%d", i, j))}
				p.r.issues = issues
				p.observe(ours, up, hosts, theirs, address)
				if g.timed && compare(p.r, p.mine, p.real) != "" {
					p.r.id += "b" // a time limit on a busy machine: it counts if it is so again
					p.observe(ours, up, hosts, theirs, address)
				}
				pairs = append(pairs, p)
			}
			waitForCopies(up, pairs)
			for j, p := range pairs {
				r, mine, real := p.r, p.mine, p.real
				compared.Add(1)
				if real.Seen != nil {
					answered.Add(1)
				}
				difference := compare(r, mine, real)
				if difference == "" {
					continue
				}
				differed.Add(1)
				if explained.name(hcm.GetRouteConfig(), r, mine, real) {
					continue
				}
				if n := explained.unexplained.Add(1); n <= 12000 {
					t.Errorf("rc%d, request %d differs: %s\n%s", i, j, difference, describe(hcm.GetRouteConfig(), r, mine, real))
				}
			}
		})
	}
	group.Wait()
	if t.Failed() {
		for _, c := range clusters {
			t.Logf("cluster %s", asJSON(json.RawMessage(packedJSON(c))))
		}
	}
	if n := explained.unexplained.Load(); n > 0 {
		t.Errorf("%d unexplained differences in all", n)
	}
	if compared.Load() < 20_000 {
		t.Errorf("only %d requests were compared", compared.Load())
	}
	if answered.Load() < 6_000 {
		t.Errorf("endpoints answered only %d requests", answered.Load())
	}
	t.Logf("%d configurations, %d requests, of which endpoints answered %d, %d differences with a name", configurations, compared.Load(), answered.Load(), differed.Load()-explained.unexplained.Load())
	explained.check(t)
}

// newConfigGenerator is that of one configuration. One in thirty-two has time limits.
func newConfigGenerator(seed uint64, i int) *generator {
	g := newGenerator(seed<<32 + uint64(i))
	g.timed = i%32 == 7
	return g
}

// pair is a request and what came of it on both sides.
type pair struct {
	r          *request
	mine, real observation
}

func (p *pair) observe(ours *client, up *upstream, hosts map[string]string, theirs http.RoundTripper, address string) {
	p.mine = observe(ours.rt, up, withID(p.r, "m"), hosts[p.r.authority])
	p.real = observe(theirs, up, withID(p.r, "e"), address)
}

// waitForCopies waits until the mirrors have as many copies from one side as
// from the other, or a second, and notes the copies.
func waitForCopies(up *upstream, pairs []pair) {
	for deadline := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		equal := true
		for i := range pairs {
			p := &pairs[i]
			p.mine.Copies, p.real.Copies = up.copies("m"+p.r.id), up.copies("e"+p.r.id)
			equal = equal && len(p.mine.Copies) == len(p.real.Copies)
		}
		if equal || time.Now().After(deadline) {
			return
		}
	}
}

// withID is the request under an id of its own, so that each side has its own count of attempts.
func withID(r *request, side string) *request {
	c := *r
	c.id = side + r.id
	return &c
}

func compare(r *request, mine, real observation) string {
	if r.isGRPC() {
		mine.asGRPC()
		real.asGRPC()
	}
	var parts []string
	add := func(what string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			parts = append(parts, fmt.Sprintf("%s: mesh %v, Envoy %v", what, a, b))
		}
	}
	add("status", mine.Status, real.Status)
	add("location", mine.Location, real.Location)
	add("attempts", mine.Attempts, real.Attempts)
	if !r.issues || len(mine.Ports) != len(real.Ports) {
		add("endpoints", mine.Ports, real.Ports) // with a cookie that each side issues, each chooses by its own
	}
	add("cookie", mine.Sticks, real.Sticks)
	if mine.Err == "" && real.Err == "" {
		add("response headers", mine.Header, real.Header)
		add("response body", mine.Body, real.Body)
	}
	add("copies", len(mine.Copies), len(real.Copies))
	if len(mine.Copies) == len(real.Copies) {
		for i := range mine.Copies {
			add("copy", mine.Copies[i], real.Copies[i])
		}
	}
	if mine.Seen == nil || real.Seen == nil {
		add("forwarded", mine.Seen != nil, real.Seen != nil)
		return strings.Join(parts, "; ")
	}
	add("method", mine.Seen.Method, real.Seen.Method)
	add("target", mine.Seen.Target, real.Seen.Target)
	add("host", mine.Seen.Host, real.Seen.Host)
	add("body", mine.Seen.Body, real.Seen.Body)
	for _, name := range slices.Sorted(maps.Keys(both(mine.Seen.Header, real.Seen.Header))) {
		add("request header "+name, mine.Seen.Header[name], real.Seen.Header[name])
	}
	return strings.Join(parts, "; ")
}

func both(a, b map[string][]string) map[string][]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

func describe(rc *routev3.RouteConfiguration, r *request, mine, real observation) string {
	js, _ := protojson.Marshal(rc)
	m, _ := json.Marshal(mine)
	e, _ := json.Marshal(real)
	return fmt.Sprintf("request %s %s %q %v\nmesh  %s\nEnvoy %s\nroutes %s", r.method, r.authority, r.target, r.header, m, e, js)
}

func cluster(name string, ports ...int) *clusterv3.Cluster {
	locality := &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{Region: "r"}}
	for _, port := range ports {
		locality.LbEndpoints = append(locality.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(port)}},
		})
	}
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{locality}},
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxRetries: wrapperspb.UInt32(1000),
		}}},
	}
}

func address(port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func manager(rc *routev3.RouteConfiguration) *hcmv3.HttpConnectionManager {
	filter := func(name string, config *hcmv3.HttpFilter_TypedConfig) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, ConfigType: config}
	}
	return &hcmv3.HttpConnectionManager{
		StatPrefix:     rc.GetName(),
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: rc},
		HttpFilters: []*hcmv3.HttpFilter{
			filter("envoy.filters.http.cors", &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&corsv3.Cors{})}),
			filter("envoy.filters.http.fault", &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&faultv3.HTTPFault{})}),
			filter("envoy.filters.http.router", &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&routerv3.Router{})}),
		},
	}
}

// socketListener is Envoy's side. It has to be told whose requests are the
// mesh's own: those of programs beside it, as all are in a library.
func socketListener(name string, manager *hcmv3.HttpConnectionManager) *listenerv3.Listener {
	hcm := proto.Clone(manager).(*hcmv3.HttpConnectionManager)
	hcm.InternalAddressConfig = &hcmv3.HttpConnectionManager_InternalAddressConfig{
		CidrRanges: []*corev3.CidrRange{{AddressPrefix: "10.0.0.0", PrefixLen: wrapperspb.UInt32(8)}},
	}
	return &listenerv3.Listener{
		Name: name, Address: address(0),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(hcm)},
		}}}},
	}
}

type client struct {
	engine *outbound.Engine
	rt     *meshhttp.RoundTripper
}

func (c *client) close() {
	c.engine.Close()
	c.rt.CloseIdleConnections()
}

func compiledListener(hcm *hcmv3.HttpConnectionManager) (*snapshot.Listener, error) {
	_, listener, err := compile.Listener(packed(&listenerv3.Listener{
		Name: "host", ApiListener: &listenerv3.ApiListener{ApiListener: packed(hcm)},
	}))
	return listener, err
}

// newClient returns the mesh's side, and the host to send to for each
// authority: the virtual host is chosen by the name that a client calls, as
// Envoy chooses it by the authority.
func newClient(hcm *hcmv3.HttpConnectionManager, clusters map[string]*snapshot.Cluster) (*client, map[string]string, error) {
	listener, err := compiledListener(hcm)
	if err != nil {
		return nil, nil, err
	}
	snap := &snapshot.Snapshot{Hosts: make(map[string]*snapshot.Host), Clusters: clusters}
	hosts := make(map[string]string)
	for i, authority := range authorities {
		name := fmt.Sprintf("h%d", i)
		host := listener.Host(authority, listener.Inline)
		host.Name, host.Used = name+":80", new(atomic.Bool)
		if host.VirtualHost == nil {
			host.Err = fmt.Errorf("no virtual host for %q", authority)
		}
		snap.Hosts[host.Name], hosts[authority] = host, name
	}
	engine := outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: meshhttp.NewWire(nil)})
	engine.Install(snap)
	return &client{engine, meshhttp.NewRoundTripper(engine, meshhttp.ClientOptions{})}, hosts, nil
}

// explained are the differences that have a name in docs/traffic.md.
type explained struct {
	rules       []rule
	counts      []atomic.Int64
	unexplained atomic.Int64
}

// rule is one kind of difference.
type rule struct {
	name    string // as docs/traffic.md has it
	applies func(rc *routev3.RouteConfiguration, r *request, mine, real observation) bool
	rare    bool // too rare to be asked for: another test has it
}

const differencesTitle = "## Differences from Envoy"

// differencesSection is what docs/traffic.md says of differences.
func differencesSection(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/traffic.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), differencesTitle+"\n")
	if !ok {
		t.Fatalf("docs/traffic.md has no section %q", differencesTitle)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

func newExplained(t *testing.T, rules []rule) *explained {
	t.Helper()
	section := differencesSection(t)
	e := &explained{rules: rules, counts: make([]atomic.Int64, len(rules))}
	for _, rule := range rules {
		if !strings.Contains(section, "| "+rule.name+" |") {
			t.Errorf("docs/traffic.md does not explain %q", rule.name)
		}
	}
	return e
}

// name reports whether the difference is one of those with a name.
func (e *explained) name(rc *routev3.RouteConfiguration, r *request, mine, real observation) bool {
	for i := range e.rules {
		if e.rules[i].applies(rc, r, mine, real) {
			e.counts[i].Add(1)
			return true
		}
	}
	return false
}

// check fails for names that no difference has. Seeds other than the usual one need not have all.
func (e *explained) check(t *testing.T) {
	t.Helper()
	for i := range e.rules {
		t.Logf("%6d %s", e.counts[i].Load(), e.rules[i].name)
		if e.counts[i].Load() == 0 && !e.rules[i].rare && *seedFlag == usualSeed {
			t.Errorf("nothing differs by %q", e.rules[i].name)
		}
	}
}

// refusedByUpstream reports whether the endpoint's net/http could not read what
// Envoy has sent: it answers 400, and Envoy loses the answer where it has more to send.
func refusedByUpstream(r *request, real observation) bool {
	if real.Seen != nil || real.Attempts > 0 {
		return false
	}
	answered := real.Status == http.StatusBadRequest && reflect.DeepEqual(real.Header["content-type"], []string{"text/plain; charset=utf-8"})
	cut := real.Status == http.StatusServiceUnavailable && len(r.body) > 1000 && strings.Contains(real.Body, "connection termination")
	return answered || cut
}

// faultOK is the answer OK to a call, without a message.
var faultOK = rule{
	name: "A fault with the code 0 of gRPC",
	applies: func(_ *routev3.RouteConfiguration, r *request, mine, real observation) bool {
		ok := func(o observation) bool { return reflect.DeepEqual(o.Header["grpc-status"], []string{"0"}) }
		unknown := func(o observation) bool { return reflect.DeepEqual(o.Header["grpc-status"], []string{"2"}) }
		return r.isGRPC() && real.Seen == nil && mine.Seen == nil && ok(real) && unknown(mine)
	},
}

// cookieEach is a cookie that is issued once for each attempt.
var cookieEach = rule{
	name: "One cookie for each attempt",
	applies: func(_ *routev3.RouteConfiguration, r *request, mine, real observation) bool {
		once := real
		once.Header = maps.Clone(real.Header)
		once.Header["set-cookie"] = slices.Compact(slices.Clone(real.Header["set-cookie"]))
		return real.Attempts > 1 && len(once.Header["set-cookie"]) < len(real.Header["set-cookie"]) && compare(r, mine, once) == ""
	},
}

// cookieOfMany is a cookie that requests without one get by their connection.
var cookieOfMany = rule{
	name: "A cookie for each request that brings none",
	applies: func(_ *routev3.RouteConfiguration, r *request, mine, real observation) bool {
		alike := mine
		alike.Sticks = real.Sticks
		return real.Sticks == "same endpoint, issued again" && mine.Sticks == "another endpoint, issued again" && compare(r, alike, real) == ""
	},
	rare: true,
}

// originalHost is the authority as it was before it was rewritten to the endpoint's name.
var originalHost = rule{
	name: "The original host of a further attempt",
	applies: func(rc *routev3.RouteConfiguration, r *request, mine, real observation) bool {
		const name = "x-envoy-original-host"
		if real.Attempts < 2 || mine.Seen == nil || real.Seen == nil || !reflect.DeepEqual(mine.Seen.Header[name], []string{r.authority}) {
			return false
		}
		alike := real
		s := *real.Seen
		s.Header = maps.Clone(s.Header)
		s.Header[name] = mine.Seen.Header[name]
		alike.Seen = &s
		return compare(r, mine, alike) == ""
	},
	rare: true,
}

// rules are the kinds of differences, each as narrow as it can be said.
var rules = []rule{
	{name: "A lone `?` at the end of the path", applies: func(_ *routev3.RouteConfiguration, r *request, _, _ observation) bool {
		return strings.IndexByte(r.target, '?') == len(r.target)-1
	}},
	{name: "One more attempt on a kept connection", applies: func(_ *routev3.RouteConfiguration, r *request, mine, real observation) bool {
		script := strings.Join(r.header["x-script"], ",")
		repeats := r.method == "GET" || r.method == "HEAD" || r.method == "OPTIONS"
		return repeats && strings.Contains(script, "reset") && mine.Attempts >= real.Attempts
	}},
	cookieEach,
	cookieOfMany,
	originalHost,
	faultOK,
	{name: "A rewritten path without a slash at its beginning", applies: func(rc *routev3.RouteConfiguration, r *request, mine, real observation) bool {
		return refusedByUpstream(r, real) && mine.Attempts > 0
	}},
	{name: "A rewritten authority that is none", applies: func(_ *routev3.RouteConfiguration, r *request, mine, real observation) bool {
		return refusedByUpstream(r, real) && strings.Contains(mine.Err, "makes the authority")
	}},
}

func packedJSON(m proto.Message) []byte {
	b, _ := protojson.Marshal(m)
	return b
}
