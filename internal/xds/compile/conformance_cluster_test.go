package compile

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

func clusterPart(t *testing.T, file, name string, v any) {
	t.Helper()
	var groups map[string]json.RawMessage
	conformance.Load(t, file, &groups)
	if err := json.Unmarshal(groups[name], v); err != nil {
		t.Fatalf("%s#%s: %v", file, name, err)
	}
}

func judge(t *testing.T, tally *conformance.Tally, name string, valid bool, err error) {
	t.Helper()
	if (err == nil) == valid {
		tally.Pass()
		return
	}
	t.Logf("%s: valid %v, got %v", name, valid, err)
	tally.Differs(t, name)
}

func TestConformanceClusterValidation(t *testing.T) {
	const file, group = "grpc-facts/resource_validation.json", "Cluster"
	var cases []validationCase
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "grpc-facts/resource_validation.json#Cluster")
	for _, c := range cases {
		m := &clusterv3.Cluster{}
		_, _, err := Cluster(recorded(t, c.Resource, m, func() {
			if m.Name == "" {
				m.Name = "cluster"
			}
		}))
		judge(t, tally, c.Name, c.Valid, err)
	}
	tally.Check(t, file+"#"+group, 33, 5)
}

func TestConformanceEndpointsValidation(t *testing.T) {
	const file, group = "grpc-facts/resource_validation.json", "ClusterLoadAssignment"
	var cases []validationCase
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "grpc-facts/resource_validation.json#ClusterLoadAssignment")
	for _, c := range cases {
		_, _, err := Endpoints(recorded(t, c.Resource, &endpointv3.ClusterLoadAssignment{}, nil))
		judge(t, tally, c.Name, c.Valid, err)
	}
	tally.Check(t, file+"#"+group, 8, 3)
}

func TestConformanceHashKey(t *testing.T) {
	const file, group = "grpc-facts/resource_validation.json", "endpoint_hash_key"
	var cases []struct {
		Name     string
		Metadata json.RawMessage `json:"endpoint_metadata"`
		Key      string          `json:"hash_key"`
	}
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "grpc-facts/resource_validation.json#endpoint_hash_key")
	for _, c := range cases {
		_, eps, err := Endpoints(endpointsOf(t, fmt.Sprintf(`{"cluster_name": "c", "endpoints": [{"lb_endpoints": [{"metadata": %s,
			"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}}]}]}`, c.Metadata)))
		if err != nil || eps.All[0].HashKey != c.Key {
			tally.Fail(t, "%s: %+v, %v", c.Name, eps, err)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, file+"#"+group, 3, 0)
}

// The recorded configurations are gRPC's JSON; here they come in Envoy's message.
func TestConformanceRingHashConfig(t *testing.T) {
	const file, group = "grpc-facts/ring_hash.json", "config"
	var cases []struct {
		Name   string
		JSON   string
		Valid  bool
		Parsed *struct{ MaxRingSize, MinRingSize uint64 }
	}
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "grpc-facts/ring_hash.json#config")
	for _, c := range cases {
		var in struct {
			MinRingSize, MaxRingSize *uint64
			RequestHashHeader        *string
		}
		if err := json.Unmarshal([]byte(c.JSON), &in); err != nil {
			t.Fatal(err)
		}
		if in.RequestHashHeader != nil { // has no place in Envoy's message
			tally.Differs(t, c.Name)
			continue
		}
		config := ""
		if in.MinRingSize != nil {
			config += fmt.Sprintf(`, "minimum_ring_size": "%d"`, *in.MinRingSize)
		}
		if in.MaxRingSize != nil {
			config += fmt.Sprintf(`, "maximum_ring_size": "%d"`, *in.MaxRingSize)
		}
		got, err := oneCluster(t, withPolicy(`ring_hash.v3.RingHash"`+config))
		switch {
		case (err == nil) != c.Valid:
			t.Logf("%s: %v", c.Name, err)
			tally.Differs(t, c.Name)
		case c.Valid && (got.LB.Ring.MinSize != c.Parsed.MinRingSize || got.LB.Ring.MaxSize != c.Parsed.MaxRingSize):
			tally.Differs(t, c.Name)
		default:
			tally.Pass()
		}
	}
	tally.Check(t, file+"#"+group, 4, 4)
}

func TestConformanceHashConfigErrors(t *testing.T) {
	const file, group = "envoy-facts/ring_hash_maglev.json", "config_errors"
	var cases []struct {
		LB    string
		Min   uint64 `json:"minimum_ring_size"`
		Max   uint64 `json:"maximum_ring_size"`
		Size  uint64 `json:"table_size"`
		Error string
	}
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "envoy-facts/ring_hash_maglev.json#config_errors")
	for _, c := range cases {
		old := fmt.Sprintf(`"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": "%d", "maximum_ring_size": "%d"}`, c.Min, c.Max)
		policy := fmt.Sprintf(`ring_hash.v3.RingHash", "minimum_ring_size": "%d", "maximum_ring_size": "%d"`, c.Min, c.Max)
		path := "minimum_ring_size"
		if c.LB == "maglev" {
			old = fmt.Sprintf(`"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": "%d"}`, c.Size)
			policy = fmt.Sprintf(`maglev.v3.Maglev", "table_size": "%d"`, c.Size)
			path = "table_size"
		}
		_, err := oneCluster(t, eds+", "+old)
		requirePath(t, err, c.LB+"_lb_config."+path)
		_, err = oneCluster(t, withPolicy(policy))
		requirePath(t, err, lbPath+"."+path)
		tally.Pass()
	}
	tally.Check(t, file+"#"+group, 2, 0)
}

func TestConformanceOutlierDefaults(t *testing.T) {
	var want map[string]uint32
	clusterPart(t, "envoy-facts/outlier_detection.json", "defaults", &want)
	c, err := oneCluster(t, eds+`, "outlier_detection": {}`)
	if err != nil {
		t.Fatal(err)
	}
	o := c.Outlier
	got := map[string]uint32{
		"interval_ms": uint32(o.Interval.Milliseconds()), "base_ejection_time_ms": uint32(o.BaseEjectionTime.Milliseconds()),
		"max_ejection_time_ms": uint32(o.MaxEjectionTime.Milliseconds()), "max_ejection_time_jitter_ms": uint32(o.MaxEjectionTimeJitter.Milliseconds()),
		"consecutive_5xx": o.Consecutive5xx, "consecutive_gateway_failure": o.ConsecutiveGatewayFailure, "max_ejection_percent": o.MaxEjectionPercent,
		"enforcing_consecutive_5xx": o.EnforcingConsecutive5xx, "enforcing_consecutive_gateway_failure": o.EnforcingConsecutiveGatewayFailure,
		"enforcing_success_rate": o.EnforcingSuccessRate, "success_rate_minimum_hosts": o.SuccessRateMinimumHosts,
		"success_rate_request_volume": o.SuccessRateRequestVolume, "success_rate_stdev_factor": o.SuccessRateStdevFactor,
		"failure_percentage_threshold": o.FailurePercentageThreshold, "enforcing_failure_percentage": o.EnforcingFailurePercentage,
		"failure_percentage_minimum_hosts": o.FailurePercentageMinimumHosts, "failure_percentage_request_volume": o.FailurePercentageRequestVolume,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
}

// grpcOutlier is gRPC's configuration of outlier detection, recorded with names of its own.
type grpcOutlier struct {
	Interval, BaseEjectionTime, MaxEjectionTime *string
	MaxEjectionPercent                          *uint32
	SuccessRateEjection                         *struct{ StdevFactor, EnforcementPercentage, MinimumHosts, RequestVolume *uint32 }
	FailurePercentageEjection                   *struct{ Threshold, EnforcementPercentage, MinimumHosts, RequestVolume *uint32 }
}

// compare says how o differs from what gRPC made of the same; "" if not at all.
func (g *grpcOutlier) compare(o *resilience.Outlier) string {
	bad := ""
	span := func(name string, want *string, got time.Duration) {
		if want == nil {
			return
		}
		if d, err := time.ParseDuration(*want); err != nil || d != got {
			bad += fmt.Sprintf("%s %v, want %s; ", name, got, *want)
		}
	}
	number := func(name string, want *uint32, got uint32) {
		if want != nil && *want != got {
			bad += fmt.Sprintf("%s %d, want %d; ", name, got, *want)
		}
	}
	span("interval", g.Interval, o.Interval)
	span("base", g.BaseEjectionTime, o.BaseEjectionTime)
	span("max", g.MaxEjectionTime, o.MaxEjectionTime)
	number("percent", g.MaxEjectionPercent, o.MaxEjectionPercent)
	if s := g.SuccessRateEjection; s != nil {
		number("stdev", s.StdevFactor, o.SuccessRateStdevFactor)
		number("enforcing", s.EnforcementPercentage, o.EnforcingSuccessRate)
		number("hosts", s.MinimumHosts, o.SuccessRateMinimumHosts)
		number("volume", s.RequestVolume, o.SuccessRateRequestVolume)
	}
	if f := g.FailurePercentageEjection; f != nil {
		number("threshold", f.Threshold, o.FailurePercentageThreshold)
		number("enforcing", f.EnforcementPercentage, o.EnforcingFailurePercentage)
		number("hosts", f.MinimumHosts, o.FailurePercentageMinimumHosts)
		number("volume", f.RequestVolume, o.FailurePercentageRequestVolume)
	}
	return bad
}

func TestConformanceClusterOutlier(t *testing.T) {
	const file, group = "grpc-facts/outlier_detection.json", "cluster_to_lb_config"
	var cases []struct {
		Name    string
		Cluster json.RawMessage
		Valid   bool
		Config  *grpcOutlier `json:"lb_config"`
	}
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "grpc-facts/outlier_detection.json#cluster_to_lb_config")
	for _, c := range cases {
		_, got, err := Cluster(recorded(t, c.Cluster, &clusterv3.Cluster{}, nil))
		if (err == nil) != c.Valid {
			t.Logf("%s: %v", c.Name, err)
			tally.Differs(t, c.Name)
			continue
		}
		if c.Valid && got.Outlier != nil {
			if bad := c.Config.compare(got.Outlier); bad != "" {
				tally.Fail(t, "%s: %s", c.Name, bad)
				continue
			}
		}
		tally.Pass()
	}
	tally.Check(t, file+"#"+group, 7, 0)
}

// gRPC's own JSON, told in Envoy's message: what it does not set is off in gRPC,
// and so is set to 0 here.
func TestConformanceOutlierParse(t *testing.T) {
	const file, group = "grpc-facts/outlier_detection.json", "lb_config_parse"
	var cases []struct {
		Name, JSON string
		Valid      bool
		Parsed     *grpcOutlier
	}
	clusterPart(t, file, group, &cases)
	tally := conformance.Deciding(t, "grpc-facts/outlier_detection.json#lb_config_parse")
	for _, c := range cases {
		var in map[string]json.RawMessage
		if err := json.Unmarshal([]byte(c.JSON), &in); err != nil {
			t.Fatal(err)
		}
		if len(in) == 1 && in["childPolicy"] != nil { // no rule of outlier detection
			tally.Differs(t, c.Name)
			continue
		}
		out := map[string]any{"enforcing_success_rate": 0}
		for field, v := range in {
			names := map[string]string{
				"interval": "interval", "baseEjectionTime": "base_ejection_time", "maxEjectionTime": "max_ejection_time", "maxEjectionPercent": "max_ejection_percent",
			}
			inner := map[string]map[string]string{
				"successRateEjection":       {"stdevFactor": "success_rate_stdev_factor", "enforcementPercentage": "enforcing_success_rate", "minimumHosts": "success_rate_minimum_hosts", "requestVolume": "success_rate_request_volume"},
				"failurePercentageEjection": {"threshold": "failure_percentage_threshold", "enforcementPercentage": "enforcing_failure_percentage", "minimumHosts": "failure_percentage_minimum_hosts", "requestVolume": "failure_percentage_request_volume"},
			}[field]
			if inner == nil {
				if names[field] != "" {
					out[names[field]] = v
				}
				continue
			}
			if field == "successRateEjection" {
				delete(out, "enforcing_success_rate")
			}
			var fields map[string]json.RawMessage
			if err := json.Unmarshal(v, &fields); err != nil {
				t.Fatal(err)
			}
			for name, v := range fields {
				out[inner[name]] = v
			}
		}
		text, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		got, err := oneCluster(t, eds+`, "outlier_detection": `+string(text))
		switch {
		case (err == nil) != c.Valid:
			tally.Fail(t, "%s: %v", c.Name, err)
		case c.Valid && c.Parsed.compare(got.Outlier) != "":
			tally.Fail(t, "%s: %s", c.Name, c.Parsed.compare(got.Outlier))
		default:
			tally.Pass()
		}
	}
	tally.Check(t, file+"#"+group, 8, 1)
}

// istioRefusals are the fields for which a cluster of Istio's may be refused. They
// are of gateways, of proxies that take connections over, and of rules that are
// not enforced.
var istioRefusals = map[string]bool{
	"type":                 true, // ORIGINAL_DST
	"upstream_bind_config": true, // of a proxy's inbound side
	"cluster_type":         true, // dynamic forward proxy
	"transport_socket.typed_config.common_tls_context":                                               true, // no roots
	"transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs.sds_config": true, // keys from the control plane
	"typed_extension_protocol_options.common_http_protocol_options.max_connection_duration":          true,
	"circuit_breakers.thresholds.retry_budget.budget_interval":                                       true,
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

func TestConformanceIstioClusters(t *testing.T) {
	var file struct {
		Cases []struct {
			From    string
			Cluster json.RawMessage `json:"cluster_after"`
			Options json.RawMessage `json:"http_protocol_options"`
		}
	}
	const name = "istio/trafficpolicy_to_cluster.json"
	conformance.Load(t, name, &file)
	tally := conformance.Deciding(t, "istio/trafficpolicy_to_cluster.json")
	types := map[string]int{}
	for i, c := range file.Cases {
		m := &clusterv3.Cluster{}
		unmarshal(t, string(c.Cluster), m)
		if len(c.Options) > 0 {
			o := &upstreamv3.HttpProtocolOptions{}
			unmarshal(t, string(c.Options), o)
			m.TypedExtensionProtocolOptions = map[string]*anypb.Any{upstreamOptions: pack(t, o)}
		}
		if m.GetType() == clusterv3.Cluster_EDS && m.GetEdsClusterConfig() == nil {
			// Istio adds the source after the traffic policy, so it is not in the record.
			withEDS(t, m)
		}
		_, _, err := Cluster(pack(t, m))
		if err != nil && (refusal(t, err) == "type" || refusal(t, err) == "cluster_type") {
			// The rest of the cluster is worth a look all the same.
			types[refusal(t, err)]++
			m.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
			if m.GetLbPolicy() == clusterv3.Cluster_CLUSTER_PROVIDED {
				m.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
			}
			withEDS(t, m)
			_, _, err = Cluster(pack(t, m))
		}
		if err == nil {
			tally.Pass()
		} else if !istioRefusals[refusal(t, err)] {
			tally.Fail(t, "%s: %v", c.From, err)
		} else {
			t.Log(refusal(t, err))
			tally.Differs(t, fmt.Sprintf("%s [%d]", recordedTest(c.From), i))
		}
	}
	tally.Check(t, name, 99, 10)
	if types["type"] != 45 || types["cluster_type"] != 3 {
		t.Errorf("clusters of types that are refused: %v", types)
	}
}

func withEDS(t *testing.T, m *clusterv3.Cluster) {
	t.Helper()
	m.LoadAssignment, m.EdsClusterConfig = nil, &clusterv3.Cluster_EdsClusterConfig{}
	unmarshal(t, `{"eds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}}`, m.EdsClusterConfig)
}

// Every cluster that Istio generated for a sidecar or a gateway is accepted, or
// refused for a reason that is named above.
func TestConformanceIstioSimulationClusters(t *testing.T) {
	var file struct {
		Scenarios []struct {
			Test     string
			Clusters []json.RawMessage
		}
	}
	const name = "istio/traffic_simulation.json"
	conformance.Load(t, name, &file)
	tally := conformance.Deciding(t, "istio/traffic_simulation.json#clusters")
	for i, s := range file.Scenarios {
		for j, raw := range s.Clusters {
			m := &clusterv3.Cluster{}
			unmarshal(t, string(raw), m)
			_, c, err := Cluster(pack(t, m))
			if err == nil {
				if c.Discovery == snapshot.FromControlPlane && c.LB.Kind != lb.LeastRequest && c.LB.Kind != lb.RoundRobin && c.LB.Kind != lb.RingHash {
					t.Errorf("%s: %s: %+v", s.Test, m.GetName(), c.LB)
				}
				tally.Pass()
			} else if !istioRefusals[refusal(t, err)] {
				tally.Fail(t, "%s: %v", s.Test, err)
			} else {
				t.Log(refusal(t, err))
				tally.Differs(t, fmt.Sprintf("%s [%d.%d]", s.Test, i, j))
			}
		}
	}
	tally.Check(t, name+"#clusters", 85, 55)
}
