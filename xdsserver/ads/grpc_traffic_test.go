package ads

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestGRPCTakesEveryRule: grpc-go refuses a whole host for one field that it does not
// know. Under policy with every rule of traffic it must go on calling, and do what of it it can.
func TestGRPCTakesEveryRule(t *testing.T) {
	v1, v2 := startBackend(t, "v1"), startBackend(t, "v2")
	set := &policy.Set{
		VirtualServices: []*policy.VirtualService{virtualService(t, "a", `
hosts: [a]
http:
- match: [{headers: {"@request.auth.claims.a": {exact: b}}}]
  directResponse: {status: 418}
- match: [{headers: {case: {exact: abort}}}]
  fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}, delay: {fixedDelay: 0.001s, percentage: {value: 100}}}
  route: [{destination: {host: a, subset: v1}}]
- match: [{headers: {case: {exact: no-fault}}}]
  fault: {abort: {httpStatus: 503}}
  route: [{destination: {host: a, subset: v1}}]
- match: [{headers: {case: {exact: redirect}}}]
  redirect: {uri: /x}
- match: [{headers: {case: {exact: direct}}}]
  directResponse: {status: 200, body: {string: x}}
- match: [{headers: {case: {exact: many}}}]
  rewrite: {uri: /other, authority: b}
  headers: {request: {set: {x: y}}, response: {remove: [backend]}}
  corsPolicy: {allowOrigins: [{exact: a}]}
  mirrors: [{destination: {host: a, subset: v1}}]
  retries: {attempts: 2, retryOn: unavailable, retryRemoteLocalities: true}
  route: [{destination: {host: a, subset: v2}, headers: {request: {set: {host: h}}}}]
- route: [{destination: {host: a}}]
`)},
		DestinationRules: []*policy.DestinationRule{destinationRule(t, "a", `
host: a
trafficPolicy:
  loadBalancer:
    consistentHash: {httpHeaderName: user, ringHash: {minimumRingSize: 64}}
    localityLbSetting: {failoverPriority: ["topology.kubernetes.io/region", app]}
  connectionPool: {tcp: {tcpKeepalive: {time: 9s}}, http: {useClientProtocol: true, http2KeepAlive: {interval: 9s}}}
  outlierDetection: {splitExternalLocalOriginErrors: true}
subsets:
- {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST, warmup: {duration: 1s}}}}
- {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 1s}, maglev: {tableSize: 101}}}}}`)},
		Services:  []*policy.Service{service("a", 80)},
		Workloads: []*policy.Workload{workload("a", "v1", "127.0.0.1", v1.port), workload("a", "v2", "127.0.0.1", v2.port)},
	}
	set.Workloads[1].Locality = "elsewhere"
	h := start(t, set)
	c := dialXDS(t, h, "a:80")
	for _, test := range []struct {
		header []string
		want   string
		code   codes.Code
	}{
		{[]string{"case", "abort"}, "", codes.ResourceExhausted},
		{[]string{"case", "no-fault"}, "v1", codes.OK},
		{[]string{"case", "redirect"}, "", codes.Unavailable},
		{[]string{"case", "direct"}, "", codes.Unavailable},
		{[]string{"case", "many"}, "v2", codes.OK},
		{[]string{"user", "ann"}, "v1", codes.OK},
		{[]string{"user", "bob"}, "v1", codes.OK}, // the nearer one, whatever the hash
	} {
		got, err := check(t, c, test.header...)
		if got != test.want || status.Code(err) != test.code {
			t.Errorf("%v: %q, %v; want %q, %v", test.header, got, err, test.want, test.code)
		}
	}
	for _, client := range h.Status().Clients {
		for _, r := range client.Resources {
			if r.State == Refused {
				t.Errorf("%s refused %s: %s", client.Node, r.Name, r.Error)
			}
		}
	}
}
