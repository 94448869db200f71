package translate

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// FuzzResource asks for any name as clients of each kind: it is answered with a
// resource of that name, or with none, and never fails.
func FuzzResource(f *testing.F) {
	for _, n := range everyName {
		f.Add(n.name)
	}
	for _, name := range []string{"", ":", "[", "]", "[]:1", "a:b:c", "[::1]:80", "outbound|||", "outbound|0||a", "outbound|80||*", "*:80", "xds.istio.io/grpc/lds/inbound/", "xds.istio.io/grpc/lds/inbound/:0", "\xff:80", "a.wild.com:80", "a b.wild.com:80", "outbound|80||a|b.wild.com", "outbound|80||*.wild.com", "\xff.wild.com:80"} {
		f.Add(name)
	}
	p := everythingSet(f)
	p.Services = append(p.Services, &policy.Service{Meta: policy.Meta{Kind: "ServiceEntry", Namespace: "default", Name: "wild"}, Host: "*.wild.com",
		Ports: []policy.Port{http(80)}, Resolution: networking.ServiceEntry_DNS})
	v := NewView(p)
	f.Fuzz(func(t *testing.T, name string) {
		if len(name) > 1<<10 {
			return
		}
		for _, typeURL := range []string{ListenerType, RouteType, ClusterType, EndpointType} {
			for _, agent := range []Agent{Other, Sinew, GRPC} {
				r, err := v.Resource(typeURL, name, client(agent))
				if err != nil {
					t.Fatalf("%s %q: %v", typeURL, name, err)
				}
				if r == nil {
					continue
				}
				if r.Name != name || r.Version == "" || r.Body.GetTypeUrl() != typeURL {
					t.Fatalf("%s %q: got %+v", typeURL, name, r)
				}
				if agent == Sinew {
					if got, err := compiled(typeURL, r.Body); err != nil || got != name {
						t.Fatalf("%s %q: our client reads %q, %v", typeURL, name, got, err)
					}
				}
			}
		}
	})
}

// FuzzParseTrafficName holds that a name that is read is written the same, but for the host's case.
func FuzzParseTrafficName(f *testing.F) {
	for _, s := range []string{"outbound|80||a", "outbound|9080|v1|A.b", "outbound|080||a", "outbound|80||labels", "outbound|80||a|labels", "outbound|80||labels|labels", "outbound|99999||a", "outbound|+1||a", "inbound|80||a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseTrafficName(s)
		if err != nil {
			return
		}
		again, err := ParseTrafficName(n.String())
		if err != nil || again != n {
			t.Fatalf("%q is read as %+v, and that as %+v, %v", s, n, again, err)
		}
	})
}

// FuzzClientOf reads any node.
func FuzzClientOf(f *testing.F) {
	for _, n := range []*corev3.Node{{}, {Id: "x"}, {Id: "sidecar~1.1.1.1~a.b~b.svc.cluster.local", UserAgentName: "sinew"}, {Id: "~~~"}} {
		b, err := proto.Marshal(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n := &corev3.Node{}
		if proto.Unmarshal(b, n) != nil {
			return
		}
		c, err := ClientOf(n)
		if (err == nil) != (c != nil) {
			t.Fatalf("%v and %v", c, err)
		}
		if c != nil && (c.ID == "" || c.Namespace == "" || !strings.HasPrefix(c.class, c.place())) {
			t.Fatalf("client %+v", c)
		}
	})
}
