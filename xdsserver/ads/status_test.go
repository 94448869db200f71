package ads

import (
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

func labels(t testing.TB, l map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(map[string]any{"LABELS": l})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// waitFor polls a condition that has to come true.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("what had to happen did not")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestStatus(t *testing.T) {
	p := set(t)
	p.DestinationRules = []*policy.DestinationRule{destinationRule(t, "a", "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}}}")}
	h := start(t, p)
	c := openDelta(t, h, node("gRPC Go"))
	c.subscribe(cds, named("a"), named("b"), "unknown")
	r := c.recv()
	states := func() map[string]State {
		out := map[string]State{}
		for _, c := range h.Status().Clients {
			for _, r := range c.Resources {
				out[r.Name] = r.State
			}
		}
		return out
	}
	if s := states(); s[named("a")] != Sent || s["unknown"] != DoesNotExist {
		t.Errorf("after the response: %v", s)
	}
	c.nack(r, `Cluster "`+named("a")+`": lb_policy: not supported`)
	waitFor(t, func() bool { return states()[named("b")] == Accepted })
	st := h.Status()
	if len(st.Clients) != 1 {
		t.Fatalf("%d clients", len(st.Clients))
	}
	client := st.Clients[0]
	if client.Node != "sidecar~10.0.0.9~web.default~default.svc.cluster.local" || client.Kind != "grpc" || client.Namespace != "default" || client.Protocol != "delta" || client.Address == "" || client.ConnectedSince.IsZero() {
		t.Errorf("client %+v", client)
	}
	a := client.Resources[0]
	if a.Name != named("a") || a.State != Refused || a.Error == "" || a.Accepted != "" || a.Version == "" || len(a.Notes) != 1 {
		t.Errorf("refused resource %+v", a)
	}
	if b := client.Resources[1]; b.Accepted == "" || b.Accepted != b.Version {
		t.Errorf("accepted resource %+v", b)
	}
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: cds, ResourceNamesUnsubscribe: []string{named("a")}})
	waitFor(t, func() bool { _, there := states()[named("a")]; return !there })
	c.close()
	waitFor(t, func() bool { return len(h.Status().Clients) == 0 })
}

func TestStatusOfStateStreams(t *testing.T) {
	h := start(t, set(t))
	c := openState(t, h, node("gRPC Go"))
	c.want(lds, "a:80", "unknown:80")
	c.recv()
	c.request(lds, "no")
	find := func(name string) ResourceStatus {
		for _, c := range h.Status().Clients {
			for _, r := range c.Resources {
				if r.Name == name {
					return r
				}
			}
		}
		return ResourceStatus{}
	}
	// The message names nothing: all of the response counts as refused.
	waitFor(t, func() bool { return find("a:80").State == Refused })
	if r := find("unknown:80"); r.State != DoesNotExist {
		t.Errorf("unknown:80 is %+v", r)
	}
	c.want(lds, "b:80")
	waitFor(t, func() bool { return find("a:80").Name == "" })
}

// TestAnswered holds the ledger's reading of acknowledgements against what clients send.
func TestAnswered(t *testing.T) {
	for name, test := range map[string]struct {
		nonce, refusal string
		a, b           State
	}{
		"accepted":             {"1", "", Accepted, Accepted},
		"another response's":   {"0", "no", Sent, Sent},
		"no nonce":             {"", "", Sent, Sent},
		"refused as a whole":   {"1", "bad", Refused, Refused},
		"one of them refused":  {"1", `Cluster "name-a": bad`, Refused, Accepted},
		"both of them refused": {"1", `Cluster "name-a": bad; Cluster "name-b": bad`, Refused, Refused},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stream{resources: map[string]map[string]*ResourceStatus{}, pending: map[string]sentResponse{}}
			s.sent(cds, "1", map[string]string{"name-a": "v", "name-b": "v"}, nil)
			s.answered(cds, test.nonce, test.refusal)
			if a, b := s.resource(cds, "name-a").State, s.resource(cds, "name-b").State; a != test.a || b != test.b {
				t.Errorf("%s and %s, want %s and %s", a, b, test.a, test.b)
			}
		})
	}
}

func TestNameOf(t *testing.T) {
	for _, b := range [][]byte{nil, {0xff}, {0x0a, 0x05, 'x'}, {0x10}, {0x12, 0x01}} {
		if got := nameOf(b); got != "" {
			t.Errorf("%x has the name %q", b, got)
		}
	}
	if got := nameOf([]byte{0x10, 0x01, 0x0a, 0x02, 'o', 'k'}); got != "ok" {
		t.Errorf("name %q", got)
	}
}
