package ads

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

func read[M proto.Message](t testing.TB, m M, text string) M {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(b, m); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return m
}

func virtualService(t testing.TB, name, text string) *policy.VirtualService {
	return &policy.VirtualService{Meta: policy.Meta{Kind: "VirtualService", Namespace: "default", Name: name}, Spec: read(t, &networking.VirtualService{}, text)}
}

func destinationRule(t testing.TB, name, text string) *policy.DestinationRule {
	return &policy.DestinationRule{Meta: policy.Meta{Kind: "DestinationRule", Namespace: "default", Name: name}, Spec: read(t, &networking.DestinationRule{}, text)}
}

func service(name string, port uint32) *policy.Service {
	return &policy.Service{
		Meta: policy.Meta{Kind: "Service", Namespace: "default", Name: name}, Host: fqdn(name),
		Ports:    []policy.Port{{Name: "grpc", Number: port, Target: port, Protocol: "GRPC"}},
		Selector: map[string]string{"app": name},
	}
}

func fqdn(name string) string { return name + ".default.svc.cluster.local" }

// named is the name that routes, cluster and endpoints of a service's port 80 share.
func named(name string) string { return "outbound|80||" + fqdn(name) }

func workload(app, version, address string, port uint32) *policy.Workload {
	return &policy.Workload{
		Meta:    policy.Meta{Kind: "WorkloadEntry", Namespace: "default", Name: app + "-" + version, Labels: map[string]string{"app": app, "version": version}},
		Address: address, Ports: map[string]uint32{"grpc": port}, Weight: 1,
	}
}

// set is services a and b on port 80 with one workload each.
func set(t testing.TB, vs ...*policy.VirtualService) *policy.Set {
	return &policy.Set{
		VirtualServices: vs,
		Services:        []*policy.Service{service("a", 80), service("b", 80)},
		Workloads:       []*policy.Workload{workload("a", "v1", "10.0.0.1", 80), workload("b", "v1", "10.0.0.2", 80)},
	}
}

// harness is a server on loopback.
type harness struct {
	*Server
	addr string
}

func start(t testing.TB, p *policy.Set) *harness {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := NewServer(ctx, nil)
	if p != nil {
		s.SetPolicy(p)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	s.Register(g)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	t.Cleanup(func() {
		cancel()
		g.Stop()
		<-done
	})
	return &harness{Server: s, addr: lis.Addr().String()}
}

func node(agent string) *corev3.Node {
	return &corev3.Node{Id: "sidecar~10.0.0.9~web.default~default.svc.cluster.local", UserAgentName: agent}
}

func dial(t testing.TB, h *harness) discoveryv3.AggregatedDiscoveryServiceClient {
	t.Helper()
	return discoveryv3.NewAggregatedDiscoveryServiceClient(dialRaw(t, h.addr))
}

func dialRaw(t testing.TB, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// deltaClient speaks the incremental protocol by hand.
type deltaClient struct {
	t      testing.TB
	node   *corev3.Node
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	close  func()
}

func openDelta(t testing.TB, h *harness, n *corev3.Node) *deltaClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s, err := dial(t, h).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &deltaClient{t: t, node: n, stream: s, close: cancel}
}

func (c *deltaClient) send(r *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	r.Node, c.node = c.node, nil
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *deltaClient) subscribe(typeURL string, names ...string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

func (c *deltaClient) recv() *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

func (c *deltaClient) ack(r *discoveryv3.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

func (c *deltaClient) nack(r *discoveryv3.DeltaDiscoveryResponse, text string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &status.Status{Code: 3, Message: text}})
}

// expect receives and acknowledges a response and holds it against "Type: name ... -removed ... !withheld ...".
func (c *deltaClient) expect(want string) *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	r := c.recv()
	c.ack(r)
	if got := describe(r); got != want {
		c.t.Fatalf("response %q, want %q", got, want)
	}
	return r
}

func describe(r *discoveryv3.DeltaDiscoveryResponse) string {
	s := short(r.GetTypeUrl()) + ":"
	for _, x := range r.GetResources() {
		s += " " + brief(x.GetName())
	}
	for _, x := range r.GetRemovedResources() {
		s += " -" + brief(x)
	}
	for _, x := range r.GetResourceErrors() {
		s += " !" + brief(x.GetResourceName().GetName())
	}
	return s
}

// brief shortens names of services in the default namespace.
func brief(name string) string {
	return strings.NewReplacer("outbound|80|", "", ".default.svc.cluster.local", "", "|", "").Replace(name)
}

// stateClient speaks the state-of-the-world protocol by hand.
type stateClient struct {
	t       testing.TB
	node    *corev3.Node
	stream  discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	names   map[string][]string
	version map[string]string
	nonce   map[string]string
}

func openState(t testing.TB, h *harness, n *corev3.Node) *stateClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s, err := dial(t, h).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &stateClient{t: t, node: n, stream: s, names: map[string][]string{}, version: map[string]string{}, nonce: map[string]string{}}
}

func (c *stateClient) request(typeURL, refusal string) {
	c.t.Helper()
	r := &discoveryv3.DiscoveryRequest{Node: c.node, TypeUrl: typeURL, ResourceNames: c.names[typeURL], VersionInfo: c.version[typeURL], ResponseNonce: c.nonce[typeURL]}
	c.node = nil
	if refusal != "" {
		r.ErrorDetail = &status.Status{Code: 3, Message: refusal}
	}
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *stateClient) want(typeURL string, names ...string) {
	c.t.Helper()
	c.names[typeURL] = names
	c.request(typeURL, "")
}

// recv receives a response without answering it.
func (c *stateClient) recv() *discoveryv3.DiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	c.nonce[r.GetTypeUrl()] = r.GetNonce()
	return r
}

// expect receives and acknowledges a response and holds it against "Type: name ...".
func (c *stateClient) expect(want string) *discoveryv3.DiscoveryResponse {
	c.t.Helper()
	r := c.recv()
	c.version[r.GetTypeUrl()] = r.GetVersionInfo()
	c.request(r.GetTypeUrl(), "")
	got := short(r.GetTypeUrl()) + ":"
	for _, x := range r.GetResources() {
		got += " " + brief(nameOf(x.GetValue()))
	}
	if got != want {
		c.t.Fatalf("response %q, want %q", got, want)
	}
	return r
}

const (
	lds = translate.ListenerType
	rds = translate.RouteType
	cds = translate.ClusterType
	eds = translate.EndpointType
)
