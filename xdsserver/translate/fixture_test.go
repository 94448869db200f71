package translate

import (
	"encoding/json"
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// read reads a spec from YAML.
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

func virtualService(t testing.TB, ns, name, text string) *policy.VirtualService {
	return &policy.VirtualService{Meta: policy.Meta{Kind: "VirtualService", Namespace: ns, Name: name}, Spec: read(t, &networking.VirtualService{}, text)}
}

func destinationRule(t testing.TB, ns, name, text string) *policy.DestinationRule {
	return &policy.DestinationRule{Meta: policy.Meta{Kind: "DestinationRule", Namespace: ns, Name: name}, Spec: read(t, &networking.DestinationRule{}, text)}
}

// service is a Kubernetes service with the selector app=name.
func service(ns, name string, ports ...policy.Port) *policy.Service {
	return &policy.Service{
		Meta:     policy.Meta{Kind: "Service", Namespace: ns, Name: name},
		Host:     name + "." + ns + ".svc.cluster.local",
		Ports:    ports,
		Selector: map[string]string{"app": name},
	}
}

func http(number uint32) policy.Port {
	return policy.Port{Name: "http", Number: number, Target: number, Protocol: "HTTP"}
}

func workload(ns, app, version, address string) *policy.Workload {
	return &policy.Workload{
		Meta:    policy.Meta{Kind: "WorkloadEntry", Namespace: ns, Name: app + "-" + version + "-" + address, Labels: map[string]string{"app": app, "version": version}},
		Address: address, Weight: 1,
	}
}

func client(agent Agent) *Client {
	c := &Client{ID: "sidecar~10.0.0.9~web.default~default.svc.cluster.local", Namespace: "default", Agent: agent, Labels: map[string]string{"app": "web"}}
	c.class = c.buildClass()
	return c
}

// get translates one resource into m and fails the test where there is none.
func get[M proto.Message](t testing.TB, v *View, typeURL, name string, c *Client, m M) (M, *Resource) {
	t.Helper()
	r, err := v.Resource(typeURL, name, c)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if r == nil {
		t.Fatalf("%s: there is none", name)
	}
	if r.Name != name || r.Body.TypeUrl != typeURL {
		t.Fatalf("got %s of type %s, want %s of %s", r.Name, r.Body.TypeUrl, name, typeURL)
	}
	if err := r.Body.UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	return m, r
}
