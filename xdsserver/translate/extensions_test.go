package translate

import (
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestExtensions has what annotations become: metadata for Sinew's own client, and a note
// for those that can not do it.
func TestExtensions(t *testing.T) {
	accrual := &policy.FailureAccrual{MaxFailures: 7, MinPenalty: time.Second, MaxPenalty: time.Minute, Jitter: 0.5}
	rate := &policy.FailureAccrual{SuccessRate: 0.8, Window: 10 * time.Second, MinRequests: 5, MinPenalty: time.Second, MaxPenalty: time.Minute}
	const ewma = `"peak_ewma": {"decay": "10s"}`
	for name, test := range map[string]struct {
		accrual       *policy.FailureAccrual
		service, rule bool // annotated with peak-ewma
		policy        string
		want          string
		notes         int
	}{
		"none":                   {policy: "outlierDetection: {}"},
		"failures in a row":      {accrual: accrual, want: `"failure_accrual": {"mode": "consecutive", "max_failures": 7, "min_penalty": "1s", "max_penalty": "1m0s", "jitter": 0.5}`, notes: 1},
		"the success rate":       {accrual: rate, want: `"failure_accrual": {"mode": "success-rate", "success_rate": 0.8, "window": "10s", "min_requests": 5, "min_penalty": "1s", "max_penalty": "1m0s", "jitter": 0}`, notes: 1},
		"the service":            {service: true, want: ewma, notes: 1},
		"the rule":               {rule: true, policy: "outlierDetection: {}", want: ewma, notes: 1},
		"a rule names another":   {service: true, policy: "loadBalancer: {simple: ROUND_ROBIN}"},
		"a rule names a hash":    {service: true, policy: "loadBalancer: {consistentHash: {httpHeaderName: x}}"},
		"a rule names no other":  {service: true, policy: "loadBalancer: {localityLbSetting: {enabled: false}}", want: ewma, notes: 1},
		"both of the extensions": {accrual: accrual, service: true, want: `"failure_accrual": {"mode": "consecutive", "max_failures": 7, "min_penalty": "1s", "max_penalty": "1m0s", "jitter": 0.5}, ` + ewma, notes: 2},
	} {
		annotations := map[string]string{policy.BalancerAnnotation: policy.PeakEWMA}
		svc := service("default", "a", http(80))
		svc.Accrual = test.accrual
		if test.service {
			svc.Annotations = annotations
		}
		set := &policy.Set{Services: []*policy.Service{svc}}
		if test.policy != "" {
			set.DestinationRules = []*policy.DestinationRule{destinationRule(t, "default", "a", "{host: a, trafficPolicy: {"+test.policy+"}}")}
			if test.rule {
				set.DestinationRules[0].Annotations = annotations
			}
		}
		for _, agent := range []Agent{Sinew, Other, GRPC} {
			c, r := get(t, NewView(set), ClusterType, "outbound|80||a.default.svc.cluster.local", client(agent), &clusterv3.Cluster{})
			got := c.GetMetadata().GetFilterMetadata()[ownMetadata]
			notes := 0
			for _, n := range r.Notes {
				if strings.HasSuffix(n.Field, "metadata.annotations") {
					notes++
				}
			}
			if agent != Sinew {
				if got != nil || notes != test.notes {
					t.Errorf("%s for %v: %v, notes %v", name, agent, got, r.Notes)
				}
				continue
			}
			want := &structpb.Struct{}
			if err := protojson.Unmarshal([]byte("{"+test.want+"}"), want); err != nil {
				t.Fatal(err)
			}
			if (got == nil) != (test.want == "") || got != nil && !proto.Equal(got, want) || notes != 0 {
				t.Errorf("%s: %v, want %v; notes %v", name, got, want, r.Notes)
			}
		}
	}
}

// TestMeshDefaults has what MeshConfig says where no rule does.
func TestMeshDefaults(t *testing.T) {
	settings := "{connectTimeout: 3s, tcpKeepalive: {time: 7s, probes: 2}, h2UpgradePolicy: UPGRADE, defaultHttpRetryPolicy: {attempts: 5, retryOn: reset, retryRemoteLocalities: true}, " +
		"defaultTrafficPolicy: {connectionPool: {http: {http2MaxRequests: 9}}, outlierDetection: {consecutive5xxErrors: 3}}}"
	cluster := func(rule string) *clusterv3.Cluster {
		set := placed(t, rule)
		set.MeshConfig = meshConfig(t, settings)
		c, _ := get(t, NewView(set), ClusterType, "outbound|80||a.default.svc.cluster.local", client(Sinew), &clusterv3.Cluster{})
		return c
	}
	c := cluster("")
	if c.GetConnectTimeout().AsDuration() != 3*time.Second || c.GetUpstreamConnectionOptions().GetTcpKeepalive().GetKeepaliveTime().GetValue() != 7 ||
		c.GetTypedExtensionProtocolOptions() == nil || c.GetOutlierDetection().GetConsecutive_5Xx().GetValue() != 3 ||
		c.GetCircuitBreakers().GetThresholds()[0].GetMaxRequests().GetValue() != 9 {
		t.Errorf("without a rule: %v", c)
	}
	c = cluster("connectionPool: {tcp: {connectTimeout: 1s, tcpKeepalive: {time: 9s}}, http: {h2UpgradePolicy: DO_NOT_UPGRADE}}")
	keepalive := c.GetUpstreamConnectionOptions().GetTcpKeepalive()
	if c.GetConnectTimeout().AsDuration() != time.Second || keepalive.GetKeepaliveTime().GetValue() != 9 || keepalive.GetKeepaliveProbes().GetValue() != 2 ||
		c.GetTypedExtensionProtocolOptions() != nil || c.GetOutlierDetection().GetConsecutive_5Xx().GetValue() != 3 ||
		c.GetCircuitBreakers().GetThresholds()[0].GetMaxRequests().GetValue() == 9 {
		t.Errorf("with a rule: %v", c)
	}
	if c = cluster("outlierDetection: {consecutive5xxErrors: 8}"); c.GetOutlierDetection().GetConsecutive_5Xx().GetValue() != 8 {
		t.Errorf("with outlier detection: %v", c)
	}
	set := placed(t, "")
	set.MeshConfig = meshConfig(t, settings)
	for agent, want := range map[Agent]string{Sinew: "reset 5 true", GRPC: "unavailable 5 false"} {
		rc, _ := get(t, NewView(set), RouteType, "outbound|80||a.default.svc.cluster.local", client(agent), &routev3.RouteConfiguration{})
		p := rc.GetVirtualHosts()[0].GetRoutes()[0].GetRoute().GetRetryPolicy()
		got := p.GetRetryOn() + " 5 false"
		if p.GetNumRetries().GetValue() != 5 {
			got = "another number"
		} else if p.GetRetryPriority() != nil {
			got = p.GetRetryOn() + " 5 true"
		}
		if got != want {
			t.Errorf("%v: %s, want %s", agent, got, want)
		}
	}
}
