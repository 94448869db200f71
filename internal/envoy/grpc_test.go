package envoy_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	protocolsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/envoy"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/meshgrpc"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

const (
	grpcConfigurations = 40
	callsPerConfig     = 80 // 40 x 80 = 3,200
)

var (
	grpcAuthorities = []string{"a.example:80", "b.example:8080", "x.b.example:80", "c.test:8080", "shop.local:80", "unknown.invalid:80"}
	methods         = []string{"/api/v1", "/api/v1/users", "/API/V1", "/shop/cart", "/a/b/c/d", "/users/42", "/users/42/posts/7", "/media/a/b", "/a.b/c"}
)

// TestCallsAgreeWithEnvoy makes the same generated gRPC calls through Envoy, by
// a plain client, and through channels to mesh:/// targets.
func TestCallsAgreeWithEnvoy(t *testing.T) {
	envoy.Binary(t)
	up := &grpcUpstream{upstream: newUpstream()}
	seed := *seedFlag + 500
	g := newGenerator(seed)
	clusters := g.fleet(t, up)
	bootstrap := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{}}
	compiled := make(map[string]*snapshot.Cluster)
	for _, c := range clusters {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(&protocolsv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &protocolsv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &protocolsv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &protocolsv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
			}},
		})}
		bootstrap.StaticResources.Clusters = append(bootstrap.StaticResources.Clusters, forEnvoy(c))
		name, cc, err := forMesh(c)
		if err != nil {
			t.Fatal(err)
		}
		compiled[name] = cc
	}
	managers := make([]*hcmv3.HttpConnectionManager, grpcConfigurations)
	for i := range managers {
		managers[i] = manager(newGenerator(seed<<32 + uint64(i)).routeConfig(fmt.Sprintf("rc%d", i)))
		bootstrap.StaticResources.Listeners = append(bootstrap.StaticResources.Listeners, socketListener(fmt.Sprintf("rc%d", i), managers[i]))
	}
	proxy := envoy.Start(t, bootstrap)
	explained := newExplained(t, callRules)
	var compared, answered atomic.Int64
	var group sync.WaitGroup
	gate := make(chan struct{}, 6)
	for i, hcm := range managers {
		address := fmt.Sprintf("127.0.0.1:%d", proxy.Port(t, fmt.Sprintf("rc%d", i)))
		group.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			ours, theirs, done, err := channels(hcm, compiled, address)
			if err != nil {
				t.Error(err)
				return
			}
			defer done()
			g := newGenerator(seed<<32 + uint64(i) + 1<<20)
			issues := strings.Contains(string(packedJSON(hcm)), `"`+issued+`"`)
			pairs := make([]pair, 0, callsPerConfig)
			for j := range callsPerConfig {
				r := g.call(fmt.Sprintf("g%d-%d", i, j))
				r.issues = issues
				p := pair{r: r}
				p.mine = call(ours[r.authority], up.upstream, withID(r, "m"))
				p.real = call(theirs[r.authority], up.upstream, withID(r, "e"))
				pairs = append(pairs, p)
			}
			waitForCopies(up.upstream, pairs)
			for j, p := range pairs {
				compared.Add(1)
				if p.real.Seen != nil {
					answered.Add(1)
				}
				difference := compare(p.r, p.mine, p.real)
				if difference == "" || explained.name(nil, p.r, p.mine, p.real) {
					continue
				}
				if explained.unexplained.Add(1) <= 2000 {
					t.Errorf("rc%d, request %d differs: %s\n%s", i, j, difference, describe(hcm.GetRouteConfig(), p.r, p.mine, p.real))
				}
			}
		})
	}
	group.Wait()
	t.Logf("%d calls, of which endpoints answered %d; %d differ without a name", compared.Load(), answered.Load(), explained.unexplained.Load())
	explained.check(t)
	if answered.Load() < 1000 {
		t.Error("too few calls were answered")
	}
}

func codeIs(o observation, code codes.Code) bool {
	return reflect.DeepEqual(o.Header["grpc-status"], []string{fmt.Sprint(int(code))})
}

var callRules = []rule{
	{name: cookieEach.name, applies: cookieEach.applies, rare: true},
	cookieOfMany,
	originalHost,
	{name: faultOK.name, applies: func(_ *routev3.RouteConfiguration, _ *request, mine, real observation) bool {
		return mine.Attempts == 0 && real.Attempts == 0 && codeIs(mine, codes.Unknown) && codeIs(real, codes.Internal)
	}, rare: true},
	{name: "A call that no route takes", applies: func(_ *routev3.RouteConfiguration, _ *request, mine, real observation) bool {
		return mine.Seen == nil && real.Seen == nil && mine.Attempts == 0 && real.Attempts == 0 &&
			codeIs(mine, codes.Unavailable) && codeIs(real, codes.Unimplemented)
	}},
}

// channels returns a channel to the mesh and one to Envoy, for each authority.
func channels(hcm *hcmv3.HttpConnectionManager, clusters map[string]*snapshot.Cluster, address string) (ours, theirs map[string]*grpc.ClientConn, done func(), err error) {
	listener, err := compiledListener(hcm)
	if err != nil {
		return nil, nil, nil, err
	}
	snap := &snapshot.Snapshot{Hosts: make(map[string]*snapshot.Host), Clusters: clusters}
	for _, authority := range grpcAuthorities {
		host := listener.Host(authority, listener.Inline)
		host.Name, host.Used = authority, new(atomic.Bool)
		if host.VirtualHost == nil {
			host.Err = fmt.Errorf("no virtual host for %q", authority)
		}
		snap.Hosts[authority] = host
	}
	engine := outbound.New(outbound.Options{Subscribe: func(string) {}})
	engine.Install(snap)
	ours, theirs = make(map[string]*grpc.ClientConn), make(map[string]*grpc.ClientConn)
	done = func() {
		for _, conns := range []map[string]*grpc.ClientConn{ours, theirs} {
			for _, cc := range conns {
				_ = cc.Close()
			}
		}
		engine.Close()
	}
	options := meshgrpc.DialOptions(meshgrpc.ClientOptions{Outbound: engine})
	for _, authority := range grpcAuthorities {
		if ours[authority], err = grpc.NewClient("mesh:///"+authority, options...); err != nil {
			break
		}
		if theirs[authority], err = grpc.NewClient("passthrough:///"+address, grpc.WithAuthority(authority), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			break
		}
	}
	return ours, theirs, done, err
}

// call is a generated call.
func (g *generator) call(id string) *request {
	r := g.request(id)
	r.method, r.authority, r.target, r.body = "POST", pick(g, grpcAuthorities), pick(g, methods), "body of "+id
	for _, name := range []string{"content-type", "origin", "access-control-request-method", "x-script"} {
		delete(r.header, name)
	}
	if g.chance(40) {
		var script []string
		for range 1 + g.IntN(4) {
			script = append(script, pick(g, []string{"OK", "OK", "UNAVAILABLE", "UNAVAILABLE", "CANCELLED", "INTERNAL", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "retry-me"}))
		}
		r.header["x-script"] = []string{strings.Join(script, ",")}
	}
	r.header["content-type"] = []string{"application/grpc"} // for isGRPC; gRPC sets it
	if g.chance(10) {
		r.header["x-envoy-retry-grpc-on"] = []string{pick(g, []string{"unavailable", "cancelled,internal", "resource-exhausted"})}
	}
	return r
}

// call makes the call and says what came of it.
func call(cc *grpc.ClientConn, u *upstream, r *request) (o observation) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	md := metadata.MD{"x-test-id": {r.id}, "x-forwarded-for": {"10.0.0.1"}}
	for name, values := range r.header {
		if name != "content-type" {
			md[name] = values
		}
	}
	var header, trailer metadata.MD
	var out wrapperspb.StringValue
	err := cc.Invoke(metadata.NewOutgoingContext(ctx, md), r.target, wrapperspb.String(r.body), &out, grpc.Header(&header), grpc.Trailer(&trailer))
	both := map[string][]string{}
	for _, m := range []metadata.MD{header, trailer} {
		for name, values := range m {
			both[name] = append(both[name], values...)
		}
	}
	if b, err := base64.StdEncoding.DecodeString(strings.Join(both["x-seen"], "")); err == nil && len(b) > 0 {
		o.Seen = new(seen)
		_ = json.Unmarshal(b, o.Seen)
	}
	o.Header = relevant(both)
	o.issued() // takes the value out
	o.Ports = u.ports(r.id)
	o.Attempts = len(o.Ports)
	s, _ := status.FromError(err)
	o.Status = http.StatusOK
	o.Header["grpc-status"] = []string{fmt.Sprint(int(s.Code()))}
	if o.Seen != nil {
		o.Body = s.Message()
	} else {
		o.Body = "" // whose text is each side's own
	}
	delete(o.Header, "content-type")
	return o
}

// grpcUpstream answers any unary call as its x-script asks.
type grpcUpstream struct{ *upstream }

func (u *grpcUpstream) listen(t *testing.T, mirror string) int {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := lis.Addr().(*net.TCPAddr).Port
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		return u.serve(stream, port, mirror)
	}))
	go func() { _ = server.Serve(lis) }()
	t.Cleanup(server.Stop)
	return port
}

func (u *grpcUpstream) serve(stream grpc.ServerStream, port int, mirror string) error {
	var in wrapperspb.StringValue
	if err := stream.RecvMsg(&in); err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	method, _ := grpc.MethodFromServerStream(stream)
	s := seen{Port: port, Method: "POST", Target: method, Header: relevant(map[string][]string(md)), Body: in.GetValue(), Mirror: mirror}
	s.Host = strings.Join(md[":authority"], "")
	for name := range s.Header {
		if strings.HasPrefix(name, ":") || strings.HasPrefix(name, "grpc-") || name == "te" || name == "content-type" {
			delete(s.Header, name)
		}
	}
	id := strings.Join(md["x-test-id"], "")
	if mirror != "" {
		u.copied(id, s)
		return stream.SendMsg(&in)
	}
	n := u.attempt(id, port)
	step := "OK"
	if script := strings.Join(md["x-script"], ""); script != "" {
		steps := strings.Split(script, ",")
		step = steps[min(n, len(steps))-1]
	}
	out := metadata.Pairs("x-seen", base64.StdEncoding.EncodeToString([]byte(asJSON(s))), "x-up-1", "one", "x-up-2", "two", "x-many", "1", "x-many", "2")
	switch {
	case step == "retry-me":
		out.Set("x-retry-me", "1")
		fallthrough
	case step == "OK":
		_ = stream.SetHeader(out)
		stream.SetTrailer(metadata.Pairs("x-trailer", "last"))
		return stream.SendMsg(&in)
	default:
		stream.SetTrailer(out)
		return status.Error(codeNames[step], "by "+step)
	}
}

var codeNames = map[string]codes.Code{
	"UNAVAILABLE": codes.Unavailable, "CANCELLED": codes.Canceled, "INTERNAL": codes.Internal, "DEADLINE_EXCEEDED": codes.DeadlineExceeded,
	"RESOURCE_EXHAUSTED": codes.ResourceExhausted, "PERMISSION_DENIED": codes.PermissionDenied,
}
