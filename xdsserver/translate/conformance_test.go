package translate

//lint:file-ignore SA1019 Istio still writes a deprecated timeout.

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

type routeCase struct {
	From           string            `json:"from"`
	Name           string            `json:"name"`
	Namespace      string            `json:"namespace"`
	Annotations    map[string]string `json:"annotations"`
	NodeType       string            `json:"node_type"`
	NodeLabels     map[string]string `json:"node_labels"`
	NodeNamespace  string            `json:"node_namespace"`
	ListenPort     uint32            `json:"listen_port"`
	Gateways       []string          `json:"gateways"`
	IsTLS          bool              `json:"is_tls"`
	VirtualService json.RawMessage   `json:"virtual_service"`
	Routes         []json.RawMessage `json:"routes"`
	Error          string            `json:"error"`
}

// TestIstioRoutes holds the routes of VirtualServices against those that istiod makes.
func TestIstioRoutes(t *testing.T) {
	var file struct{ Cases []routeCase }
	conformance.Load(t, "istio/virtualservice_to_routes.json", &file)
	tally := conformance.Deciding(t, "istio/virtualservice_to_routes.json#translated")
	for i, c := range file.Cases {
		spec := &networking.VirtualService{}
		if err := protojson.Unmarshal(c.VirtualService, spec); err != nil {
			t.Fatalf("case %d: %v", i, err)
		}
		want := make([]*routev3.Route, len(c.Routes))
		raw := ""
		readable := true
		for j, r := range c.Routes {
			want[j] = &routev3.Route{}
			raw += string(r)
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r, want[j]); err != nil {
				readable = false
			}
		}
		if routeAside(&c, spec, raw) {
			tally.Differs(t, fmt.Sprintf("%s [%d]", c.Name, i))
			continue
		}
		if !readable {
			t.Errorf("case %d: expected routes can not be read", i)
			continue
		}
		ns := c.Namespace
		if ns == "" {
			ns = c.NodeNamespace
		}
		set := routeServices(spec, want, c.NodeNamespace)
		set.DestinationRules = recordedRules(want)
		b := &builder{view: NewView(set), client: &Client{ID: "x", Namespace: c.NodeNamespace, Labels: c.NodeLabels}}
		vs := &policy.VirtualService{Meta: policy.Meta{Kind: "VirtualService", Namespace: ns, Name: c.Name}, Spec: spec}
		got, err := b.routes(vs, c.ListenPort, c.Gateways[0])
		switch {
		case err != nil:
			tally.Fail(t, "case %d (%s): %v", i, c.From, err)
		case behaviour(got) != behaviour(want):
			tally.Fail(t, "case %d (%s):\n got %s\nwant %s", i, c.From, behaviour(got), behaviour(want))
		default:
			tally.Pass()
		}
	}
	tally.Check(t, "istio/virtualservice_to_routes.json#translated", 75, 9)
}

// routeAside reports whether a case is of something that is not translated.
func routeAside(c *routeCase, spec *networking.VirtualService, want string) bool {
	for _, h := range spec.GetHttp() {
		if h.GetRedirect() != nil && c.IsTLS {
			return true // a listener with TLS, which a client of the mesh does not have
		}
	}
	return strings.Contains(want, "typed_per_filter_config") || // stateful session, external processing
		strings.Contains(want, "path_separated_prefix") || // Gateway API path prefixes
		strings.Contains(want, "append_x_forwarded_host") // a switch of istiod's own environment
}

// recordedRules are DestinationRules that say what the hash policies of recorded routes show.
func recordedRules(want []*routev3.Route) []*policy.DestinationRule {
	var out []*policy.DestinationRule
	for _, r := range want {
		for i, h := range r.GetRoute().GetHashPolicy() {
			n, err := ParseTrafficName(clustersOf(r)[i].name)
			if err != nil {
				continue
			}
			cookie := &networking.LoadBalancerSettings_ConsistentHashLB_HTTPCookie{Name: h.GetCookie().GetName(), Path: h.GetCookie().GetPath(), Ttl: h.GetCookie().GetTtl()}
			for _, a := range h.GetCookie().GetAttributes() {
				cookie.Attributes = append(cookie.Attributes, &networking.LoadBalancerSettings_ConsistentHashLB_HTTPCookie_Attribute{Name: a.GetName(), Value: a.GetValue()})
			}
			tp := &networking.TrafficPolicy{LoadBalancer: &networking.LoadBalancerSettings{LbPolicy: &networking.LoadBalancerSettings_ConsistentHash{
				ConsistentHash: &networking.LoadBalancerSettings_ConsistentHashLB{HashKey: &networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie{HttpCookie: cookie}},
			}}}
			rule := &networking.DestinationRule{Host: n.Host, TrafficPolicy: tp}
			if n.Subset != "" {
				rule.TrafficPolicy, rule.Subsets = nil, []*networking.Subset{{Name: n.Subset, TrafficPolicy: tp}}
			}
			out = append(out, &policy.DestinationRule{Meta: policy.Meta{Kind: "DestinationRule", Namespace: policy.RootNamespace, Name: n.Host}, Spec: rule})
		}
	}
	return out
}

// routeServices gives a set in which destinations without a port have the one
// that the record shows: the record leaves out the registry it was made with.
func routeServices(spec *networking.VirtualService, want []*routev3.Route, ns string) *policy.Set {
	set := &policy.Set{}
	for _, r := range want {
		for _, w := range clustersOf(r) {
			n, err := ParseTrafficName(w.name)
			// The status for a missing cluster shows that the registry did not have the host.
			if err != nil || r.GetRoute().GetClusterNotFoundResponseCode() != 0 || set.ServiceByHost(n.Host) != nil {
				continue
			}
			all := append(set.Services, &policy.Service{Host: n.Host, Meta: policy.Meta{Namespace: ns}, Ports: []policy.Port{{Number: n.Port}}})
			set = &policy.Set{Services: all}
		}
	}
	return set
}

type weight struct {
	name  string
	share uint32
}

func clustersOf(r *routev3.Route) []weight {
	if c := r.GetRoute().GetCluster(); c != "" {
		return []weight{{c, 1}}
	}
	var out []weight
	for _, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
		out = append(out, weight{w.GetName(), w.GetWeight().GetValue()})
	}
	return out
}

// behaviour writes what routes do, whatever way they say it.
func behaviour(routes []*routev3.Route) string {
	var out strings.Builder
	for _, r := range routes {
		r = proto.Clone(r).(*routev3.Route)
		// Where a rule came from, and what is as good as not said.
		r.Metadata, r.Decorator, r.Name = nil, nil, ""
		if r.GetMatch().GetCaseSensitive().GetValue() {
			r.Match.CaseSensitive = nil // the default
		}
		for _, h := range r.GetMatch().GetHeaders() {
			h.Name = strings.ToLower(h.Name)
		}
		slices.SortFunc(r.GetMatch().GetHeaders(), func(a, b *routev3.HeaderMatcher) int { return strings.Compare(protoText(a), protoText(b)) })
		if a := r.GetRoute(); a != nil {
			a.MaxGrpcTimeout = nil
			if rp := a.GetRetryPolicy(); rp != nil {
				on := strings.Split(rp.GetRetryOn(), ",")
				slices.Sort(on)
				rp.RetryOn = strings.Join(on, ",")
			}
		}
		text, err := protojson.Marshal(r)
		if err != nil {
			panic(err)
		}
		out.WriteString(strings.ReplaceAll(string(text), " ", "") + "\n")
	}
	return out.String()
}

func protoText(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%q", b)
}

type clusterCase struct {
	From     string          `json:"from"`
	Policy   json.RawMessage `json:"traffic_policy"`
	After    json.RawMessage `json:"cluster_after"`
	Options  json.RawMessage `json:"http_protocol_options"`
	Dir      string          `json:"direction"`
	Port     uint32          `json:"port"`
	Protocol string          `json:"port_protocol"`
}

// TestIstioClusters holds what a DestinationRule's traffic policy becomes against what istiod makes of it.
func TestIstioClusters(t *testing.T) {
	var file struct{ Cases []clusterCase }
	conformance.Load(t, "istio/trafficpolicy_to_cluster.json", &file)
	tally := conformance.Deciding(t, "istio/trafficpolicy_to_cluster.json#translated")
	for i, c := range file.Cases {
		var tp *networking.TrafficPolicy
		if len(c.Policy) > 0 {
			tp = &networking.TrafficPolicy{}
			if err := protojson.Unmarshal(c.Policy, tp); err != nil {
				t.Fatalf("case %d: %v", i, err)
			}
		}
		want := &clusterv3.Cluster{}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(c.After, &fields); err != nil {
			t.Fatal(err)
		}
		// Cluster extensions are not compared, and name types that this program does not link.
		for _, f := range []string{"cluster_type", "typed_dns_resolver_config", "metadata"} {
			delete(fields, f)
		}
		body, _ := json.Marshal(fields)
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, want); err != nil {
			t.Fatalf("case %d: %v", i, err)
		}
		effective := effectivePolicy(tp, nil, c.Port)
		socket, matches := want.TransportSocket, want.TransportSocketMatches
		if reason := clusterAside(&c, effective, string(c.After), string(c.Options)); reason != "" {
			b := &builder{view: NewView(&policy.Set{}), client: &Client{ID: "x"}}
			got := &clusterv3.Cluster{}
			err := b.trafficPolicy(got, effective, c.Protocol, "case")
			if err == nil {
				err = b.secure(got, effective.GetTls(), &destinationTLS{name: recordedName(want)}, "case")
			}
			t.Logf("%s: %v", reason, err)
			if refused[reason] && err == nil {
				tally.Fail(t, "case %d (%s): %s is not refused", i, c.From, reason)
				continue
			}
			tally.Differs(t, fmt.Sprintf("%s [%d]", recordedTest(c.From), i))
			continue
		}
		// What the mesh of the recording says of localities and keepalive is seen from the result only.
		spec := &mesh.MeshConfig{LocalityLbSetting: &networking.LocalityLoadBalancerSetting{
			Enabled: wrapperspb.Bool(strings.Contains(string(c.After), "locality_weighted_lb_config")),
		}}
		if k := want.GetUpstreamConnectionOptions().GetTcpKeepalive(); k != nil && !saysKeepalive(effective.GetConnectionPool().GetTcp().GetTcpKeepalive()) {
			spec.TcpKeepalive = &networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive{Time: durationpb.New(time.Duration(k.GetKeepaliveTime().GetValue()) * time.Second)}
		}
		view := NewView(&policy.Set{MeshConfig: &policy.MeshConfig{Spec: spec}})
		b := &builder{view: view, client: &Client{ID: "x"}}
		got := &clusterv3.Cluster{}
		if err := b.trafficPolicy(got, effective, c.Protocol, "case"); err != nil {
			tally.Fail(t, "case %d (%s) %s: %v", i, c.From, c.Policy, err)
			continue
		}
		if want.LbPolicy == clusterv3.Cluster_CLUSTER_PROVIDED {
			want.LbPolicy = got.LbPolicy // of a host that a proxy finds by itself; the rest of the policy is worth a look all the same
		}
		if effective.GetConnectionPool().GetTcp().GetConnectTimeout() == nil {
			// The mesh configuration of the recording decides, which it does not show.
			want.ConnectTimeout = got.ConnectTimeout
		}
		wantOptions := &upstreamv3.HttpProtocolOptions{}
		if len(c.Options) > 0 {
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(c.Options, wantOptions); err != nil {
				t.Fatalf("case %d: %v", i, err)
			}
		}
		d := &destinationTLS{name: recordedName(want), http2: b.isHTTP2(effective.GetConnectionPool(), c.Protocol)}
		if len(matches) > 0 {
			d.endpoints, d.secured = 1, 1 // Istio chooses by the endpoint even where none takes mutual TLS
		}
		if err := b.secure(got, effective.GetTls(), d, "case"); err != nil {
			tally.Fail(t, "case %d (%s) %s: %v", i, c.From, c.Policy, err)
			continue
		}
		wantTLS := &clusterv3.Cluster{TransportSocket: socket, TransportSocketMatches: matches}
		if o := wantOptions.GetUpstreamHttpProtocolOptions(); o != nil {
			serverNames(wantTLS, o)
		}
		if g, w := writeTLS(t, got), writeTLS(t, wantTLS); g != w {
			tally.Fail(t, "case %d (%s) %s:\n got %s\nwant %s", i, c.From, c.Policy, g, w)
			continue
		}
		gotOptions := &upstreamv3.HttpProtocolOptions{}
		for _, a := range got.GetTypedExtensionProtocolOptions() {
			if err := a.UnmarshalTo(gotOptions); err != nil {
				t.Fatal(err)
			}
		}
		if g, w := limits(got, gotOptions), limits(want, wantOptions); g != w {
			tally.Fail(t, "case %d (%s) %s:\n got %s\nwant %s", i, c.From, c.Policy, g, w)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "istio/trafficpolicy_to_cluster.json#translated", 51, 58)
}

// refused are the reasons of clusterAside for which the policy is not translated at all.
var refused = map[string]bool{
	"credentials of gateways": true, "unverified servers": true, "MUTUAL without a certificate": true,
	"maximum connection duration": true, "interval of the retry budget": true,
}

func clusterAside(c *clusterCase, tp *networking.TrafficPolicy, after, options string) string {
	pool := tp.GetConnectionPool()
	switch {
	case c.Dir != "outbound":
		return "inbound clusters"
	case tp.GetTls().GetCredentialName() != "":
		return "credentials of gateways"
	case tp.GetTls().GetInsecureSkipVerify().GetValue():
		return "unverified servers"
	case strings.Contains(after, "FromNodeMetadata"):
		return "certificates from a node's metadata"
	case tp.GetTls().GetMode() == networking.ClientTLSSettings_MUTUAL && tp.GetTls().GetClientCertificate() == "":
		return "MUTUAL without a certificate"
	case tp.GetLoadBalancer().GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH,
		strings.Contains(after, "ORIGINAL_DST") && strings.Contains(after, "transport_socket"): // whatever endpoint it turns out to be
		return "original destination"
	case strings.Contains(after, "cluster_type"):
		return "dynamic forward proxy"
	case pool.GetTcp().GetMaxConnectionDuration() != nil:
		return "maximum connection duration"
	case tp.GetRetryBudget().GetBudgetInterval() != nil:
		return "interval of the retry budget"
	case strings.Contains(options, "use_downstream_protocol_config") && !pool.GetHttp().GetUseClientProtocol():
		return "ports whose protocol Istio finds out from what is sent"
	}
	return ""
}

// recordedTest is the test that a case was recorded in: "file.go:1 pkg.TestX.func1" is of TestX.
func recordedTest(from string) string {
	name := from[strings.LastIndex(from, " ")+1:]
	for part := range strings.SplitSeq(name, ".") {
		if strings.HasPrefix(part, "Test") {
			return part
		}
	}
	return name
}

// recordedName is the destination that a recorded cluster is for, which some of the
// records tell by the server name only.
func recordedName(c *clusterv3.Cluster) TrafficName {
	if n, err := ParseTrafficName(c.GetName()); err == nil {
		return n
	}
	sockets := []*corev3.TransportSocket{c.GetTransportSocket()}
	for _, m := range c.GetTransportSocketMatches() {
		sockets = append(sockets, m.GetTransportSocket())
	}
	for _, s := range sockets {
		m := &tlsv3.UpstreamTlsContext{}
		if s.GetTypedConfig() == nil || s.GetTypedConfig().UnmarshalTo(m) != nil {
			continue
		}
		var n TrafficName
		if parts := strings.SplitN(m.GetSni(), "_.", 4); len(parts) == 4 {
			fmt.Sscan(parts[1], &n.Port)
			n.Subset, n.Host = parts[2], parts[3]
			return n
		}
	}
	return TrafficName{Host: "unknown"}
}

// saysKeepalive reports whether something of it is given.
func saysKeepalive(k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) bool {
	return k.GetProbes() != 0 || k.GetTime() != nil || k.GetInterval() != nil
}

// limits writes what a cluster enforces.
func limits(c *clusterv3.Cluster, opts *upstreamv3.HttpProtocolOptions) string {
	t := c.GetCircuitBreakers().GetThresholds()[0]
	common := opts.GetCommonHttpProtocolOptions()
	for _, slow := range []*clusterv3.Cluster_SlowStartConfig{c.GetLeastRequestLbConfig().GetSlowStartConfig(), c.GetRoundRobinLbConfig().GetSlowStartConfig()} {
		if slow.GetAggression() != nil {
			slow.Aggression.RuntimeKey = "any"
		}
	}
	h2 := opts.GetExplicitHttpConfig().GetHttp2ProtocolOptions()
	return fmt.Sprintf("connect=%v perconn=%d idle=%v lb=%v common=%s max=%d/%d/%d/%d budget=%s outlier=%s ring=%s maglev=%s least=%s round=%s keepalive=%s client=%v streams=%d ping=%s",
		c.GetConnectTimeout().AsDuration(), common.GetMaxRequestsPerConnection().GetValue(), common.GetIdleTimeout().AsDuration(), c.GetLbPolicy(), protoText(c.GetCommonLbConfig()),
		t.GetMaxConnections().GetValue(), t.GetMaxPendingRequests().GetValue(), t.GetMaxRequests().GetValue(), t.GetMaxRetries().GetValue(),
		protoText(t.GetRetryBudget()), protoText(c.GetOutlierDetection()), protoText(c.GetRingHashLbConfig()), protoText(c.GetMaglevLbConfig()),
		protoText(c.GetLeastRequestLbConfig()), protoText(c.GetRoundRobinLbConfig()), protoText(c.GetUpstreamConnectionOptions()),
		opts.GetUseDownstreamProtocolConfig() != nil, h2.GetMaxConcurrentStreams().GetValue(), protoText(h2.GetConnectionKeepalive()))
}
