package translate

//lint:file-ignore SA1019 Istio's deprecated fields are still written.

import (
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// target is what a name of a cluster stands for.
type target struct {
	service *policy.Service
	port    policy.Port
	rule    *policy.DestinationRule // nil where there is none
	subset  *networking.Subset      // nil for the whole service
}

// target finds it. A service that the client may not see, a port that it does not have
// and a subset that no rule declares do not exist: nil.
func (b *builder) target(n TrafficName) *target {
	out := &target{service: b.view.serviceFor(n.Host, b.client.Namespace)}
	if out.service == nil {
		return nil
	}
	var ok bool
	if out.port, ok = out.service.PortNumber(n.Port); !ok {
		return nil
	}
	out.rule = b.view.set.DestinationRuleFor(n.Host, b.client.Namespace)
	if n.Subset == "" {
		return out
	}
	if out.rule != nil {
		for _, out.subset = range out.rule.Spec.GetSubsets() {
			if out.subset.GetName() == n.Subset {
				return out
			}
		}
	}
	return nil
}

// cluster is one destination: a service's port, whole or one subset of it. A
// subset or port that is not declared gives no cluster, and requests routed to
// it fail, as in Istio.
func (b *builder) cluster(name string, n TrafficName) (proto.Message, error) {
	of := b.target(n)
	if of == nil {
		return nil, nil
	}
	c := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
	}
	if err := b.discovery(c, name, n, of); err != nil {
		return nil, err
	}
	tp := b.policyOf(of, n)
	at := ""
	if of.rule != nil {
		at = about(&of.rule.Meta) + " spec"
		if of.rule.Spec.GetWorkloadSelector() != nil {
			return nil, unsupported(at, "workloadSelector")
		}
	}
	if err := b.trafficPolicy(c, tp, of.port.Protocol, at); err != nil {
		return nil, err
	}
	b.extensions(c, of, tp)
	d := b.destinationOf(of, n, b.isHTTP2(tp.GetConnectionPool(), of.port.Protocol))
	if err := b.secure(c, tp.GetTls(), d, at); err != nil {
		return nil, err
	}
	return c, nil
}

// policyOf is the traffic policy that applies to a cluster: what its DestinationRule
// says, and the mesh's for the blocks that it leaves out.
func (b *builder) policyOf(of *target, n TrafficName) *networking.TrafficPolicy {
	var tp *networking.TrafficPolicy
	if of.rule != nil {
		tp = effectivePolicy(of.rule.Spec.GetTrafficPolicy(), of.subset, n.Port)
	}
	base := b.view.set.MeshConfig.DefaultTrafficPolicy()
	pool, outlier := base.GetConnectionPool() != nil && tp.GetConnectionPool() == nil, base.GetOutlierDetection() != nil && tp.GetOutlierDetection() == nil
	if !pool && !outlier {
		return tp
	}
	out := &networking.TrafficPolicy{}
	if tp != nil {
		out = proto.Clone(tp).(*networking.TrafficPolicy)
	}
	if pool {
		out.ConnectionPool = base.GetConnectionPool()
	}
	if outlier {
		out.OutlierDetection = base.GetOutlierDetection()
	}
	return out
}

// discovery says where the cluster's endpoints come from: EDS, except for endpoints that
// are names, which the client looks up. gRPC looks up one name (gRFC A37), and several
// over EDS.
func (b *builder) discovery(c *clusterv3.Cluster, name string, n TrafficName, of *target) error {
	names, total := b.countNames(of, n)
	if names == 0 || b.client.Agent == GRPC && total > 1 {
		tp := b.policyOf(of, n)
		n.ByLabels = b.byPlace(tp).byLabels()
		c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: overADS(), ServiceName: n.String()}
		return nil
	}
	kind := clusterv3.Cluster_STRICT_DNS
	if b.client.Agent == GRPC || of.service.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN {
		kind = clusterv3.Cluster_LOGICAL_DNS
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: kind}
	c.DnsRefreshRate = b.view.set.MeshConfig.DNSRefreshRate()
	c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
	if b.byPlace(b.policyOf(of, n)).byLabels() {
		return fmt.Errorf("%s: failoverPriority by labels of the client is not enforced for endpoints that are names, so it is refused", name)
	}
	notes := b.notes
	m, err := b.loadAssignment(name, n)
	if err != nil {
		return err
	}
	b.notes = notes // they belong to the endpoint set
	c.LoadAssignment = m.(*endpointv3.ClusterLoadAssignment)
	return nil
}

// effectivePolicy is what applies to one port of one subset. An entry of
// portLevelSettings replaces all blocks, and with them the retry budget, which
// exists at the top level only; a subset replaces block by block, not field by field.
func effectivePolicy(top *networking.TrafficPolicy, subset *networking.Subset, port uint32) *networking.TrafficPolicy {
	merged := atPort(top, port)
	over := subset.GetTrafficPolicy()
	if over == nil {
		return merged
	}
	out := &networking.TrafficPolicy{}
	if merged != nil {
		proto.Merge(out, merged)
	}
	if over.GetConnectionPool() != nil {
		out.ConnectionPool = over.GetConnectionPool()
	}
	if over.GetLoadBalancer() != nil {
		out.LoadBalancer = over.GetLoadBalancer()
	}
	if over.GetOutlierDetection() != nil {
		out.OutlierDetection = over.GetOutlierDetection()
	}
	if over.GetTls() != nil {
		out.Tls = over.GetTls()
	}
	if over.GetTunnel() != nil {
		out.Tunnel = over.GetTunnel()
	}
	if over.GetProxyProtocol() != nil {
		out.ProxyProtocol = over.GetProxyProtocol()
	}
	if over.GetRetryBudget() != nil {
		out.RetryBudget = over.GetRetryBudget()
	}
	out.PortLevelSettings = over.GetPortLevelSettings()
	return atPort(out, port)
}

// atPort applies portLevelSettings.
func atPort(tp *networking.TrafficPolicy, port uint32) *networking.TrafficPolicy {
	for _, p := range tp.GetPortLevelSettings() {
		if p.GetPort().GetNumber() == port {
			return &networking.TrafficPolicy{
				ConnectionPool:   p.GetConnectionPool(),
				LoadBalancer:     p.GetLoadBalancer(),
				OutlierDetection: p.GetOutlierDetection(),
				Tls:              p.GetTls(),
			}
		}
	}
	if len(tp.GetPortLevelSettings()) == 0 {
		return tp
	}
	out := proto.Clone(tp).(*networking.TrafficPolicy)
	out.PortLevelSettings = nil
	return out
}

// Fields that trafficPolicy enforces, message by message.
var (
	trafficPolicyFields = []string{"connectionPool", "loadBalancer", "outlierDetection", "retryBudget", "tls"}
	poolFields          = []string{"tcp", "http"}
	tcpFields           = []string{"maxConnections", "connectTimeout", "idleTimeout", "tcpKeepalive"}
	httpFields          = []string{
		"http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries", "idleTimeout", "h2UpgradePolicy",
		"useClientProtocol", "maxConcurrentStreams", "http2KeepAlive",
	}
	balancerFields = []string{"simple", "consistentHash", "localityLbSetting", "zoneAwareLbSetting", "warmup", "warmupDurationSecs"}
	localityFields = []string{"distribute", "failover", "failoverPriority", "enabled"}
	outlierFields  = []string{
		"consecutive5xxErrors", "consecutiveGatewayErrors", "interval", "baseEjectionTime", "maxEjectionPercent", "minHealthPercent",
		"splitExternalLocalOriginErrors", "consecutiveLocalOriginFailures",
	}
	budgetFields = []string{"percent", "minRetryConcurrency"}
)

// trafficPolicy sets what a DestinationRule's trafficPolicy says, and Istio's defaults for what it does not.
// https://istio.io/latest/docs/reference/config/networking/destination-rule/#TrafficPolicy
func (b *builder) trafficPolicy(c *clusterv3.Cluster, tp *networking.TrafficPolicy, protocol, at string) error {
	pool := tp.GetConnectionPool()
	for _, check := range []struct {
		path  string
		m     proto.Message
		known []string
	}{
		{"trafficPolicy.", tp, trafficPolicyFields},
		{"trafficPolicy.connectionPool.", pool, poolFields},
		{"trafficPolicy.connectionPool.tcp.", pool.GetTcp(), tcpFields},
		{"trafficPolicy.connectionPool.http.", pool.GetHttp(), httpFields},
		{"trafficPolicy.loadBalancer.", tp.GetLoadBalancer(), balancerFields},
		{"trafficPolicy.loadBalancer.localityLbSetting.", tp.GetLoadBalancer().GetLocalityLbSetting(), localityFields},
		{"trafficPolicy.loadBalancer.zoneAwareLbSetting.", tp.GetLoadBalancer().GetZoneAwareLbSetting(), []string{"enabled", "failover", "failoverPriority", "minClusterSize"}},
		{"trafficPolicy.outlierDetection.", tp.GetOutlierDetection(), outlierFields},
		{"trafficPolicy.retryBudget.", tp.GetRetryBudget(), budgetFields},
	} {
		if field := unknownField(check.m, check.known); field != "" {
			return unsupported(at, check.path+field)
		}
	}
	c.ConnectTimeout = b.view.set.MeshConfig.ConnectTimeout()
	if d := pool.GetTcp().GetConnectTimeout(); d != nil {
		c.ConnectTimeout = d
	}
	// Istio turns Envoy's panic mode off; minHealthPercent turns it on.
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}}
	c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{thresholds(tp)}}
	if err := b.loadBalancer(c, tp.GetLoadBalancer(), at); err != nil {
		return err
	}
	b.localityConfig(c, tp, at)
	b.outlier(c, tp.GetOutlierDetection(), at)
	b.keepalive(c, pool)
	b.protocolOptions(c, pool, protocol)
	b.poolNotes(tp, at)
	return nil
}

// loadBalancer sets the algorithm: least request unless policy says otherwise.
// gRPC refuses a whole cluster with RANDOM. It gets ROUND_ROBIN, the one it has
// that also gives every endpoint the same share, and a note.
func (b *builder) loadBalancer(c *clusterv3.Cluster, lb *networking.LoadBalancerSettings, at string) error {
	at += ".trafficPolicy.loadBalancer"
	slow := slowStart(lb)
	switch simple := lb.GetSimple(); simple {
	case networking.LoadBalancerSettings_UNSPECIFIED, networking.LoadBalancerSettings_LEAST_CONN, networking.LoadBalancerSettings_LEAST_REQUEST:
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		if slow != nil && b.client.Agent != GRPC {
			c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{SlowStartConfig: slow}}
		}
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		if slow != nil && b.client.Agent != GRPC {
			c.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{SlowStartConfig: slow}}
		}
	case networking.LoadBalancerSettings_RANDOM:
		c.LbPolicy = clusterv3.Cluster_RANDOM
		if b.client.Agent == GRPC {
			c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
			b.note(at+".simple", "gRPC has no RANDOM: it uses ROUND_ROBIN")
		}
	default:
		// PASSTHROUGH sends to the address that the caller dialled; inside the
		// caller's process there is no other address than the host's.
		return unsupported(at, "simple "+simple.String())
	}
	switch {
	case lb.GetConsistentHash() != nil && slow != nil, c.LbPolicy == clusterv3.Cluster_RANDOM && slow != nil:
		return unsupported(at, "warmup (with this algorithm)")
	case lb.GetConsistentHash() != nil:
		b.hashBalancer(c, lb.GetConsistentHash(), at+".consistentHash")
	case slow != nil && b.client.Agent == GRPC:
		b.note(at+".warmup", "gRPC gives new endpoints their full share at once")
	}
	return nil
}

// slowStart gives a new endpoint its share over time.
// https://istio.io/latest/docs/reference/config/networking/destination-rule/#WarmupConfiguration
func slowStart(lb *networking.LoadBalancerSettings) *clusterv3.Cluster_SlowStartConfig {
	w := lb.GetWarmup()
	if w == nil {
		if d := lb.GetWarmupDurationSecs(); d != nil {
			return &clusterv3.Cluster_SlowStartConfig{SlowStartWindow: d}
		}
		return nil
	}
	aggression, lowest := 1.0, 10.0
	if w.GetAggression() != nil {
		aggression = w.GetAggression().GetValue()
	}
	if w.GetMinimumPercent() != nil {
		lowest = w.GetMinimumPercent().GetValue()
	}
	return &clusterv3.Cluster_SlowStartConfig{
		SlowStartWindow:  w.GetDuration(),
		Aggression:       &corev3.RuntimeDouble{DefaultValue: aggression, RuntimeKey: "warmup.aggression"},
		MinWeightPercent: &typev3.Percent{Value: lowest},
	}
}

// outlier sets the ejection of endpoints that fail. It is off unless the block is
// there; then 5 consecutive 5xx eject, a count of 0 switches a detector off, and
// the detectors by success rate stay off.
func (b *builder) outlier(c *clusterv3.Cluster, o *networking.OutlierDetection, at string) {
	if o == nil {
		return
	}
	out := &clusterv3.OutlierDetection{
		EnforcingSuccessRate: wrapperspb.UInt32(0),
		Interval:             o.GetInterval(),
		BaseEjectionTime:     o.GetBaseEjectionTime(),
	}
	if n := o.GetConsecutive_5XxErrors(); n != nil {
		out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = wrapperspb.UInt32(n.GetValue()), enforce(n.GetValue())
	}
	if n := o.GetConsecutiveGatewayErrors(); n != nil {
		out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = wrapperspb.UInt32(n.GetValue()), enforce(n.GetValue())
	}
	if o.GetSplitExternalLocalOriginErrors() {
		out.SplitExternalLocalOriginErrors = true
		if n := o.GetConsecutiveLocalOriginFailures().GetValue(); n > 0 {
			out.ConsecutiveLocalOriginFailure, out.EnforcingConsecutiveLocalOriginFailure = wrapperspb.UInt32(n), enforce(n)
		}
		out.EnforcingLocalOriginSuccessRate = wrapperspb.UInt32(0)
	}
	if p := o.GetMaxEjectionPercent(); p > 0 {
		out.MaxEjectionPercent = wrapperspb.UInt32(uint32(p))
	}
	c.CommonLbConfig.HealthyPanicThreshold.Value = float64(o.GetMinHealthPercent())
	c.OutlierDetection = out
	if b.client.Agent == GRPC {
		b.note(at+".trafficPolicy.outlierDetection", "gRPC ejects by success rate or failure percentage only: it ejects nothing here")
	}
}

// enforce is the share of ejections that are carried out.
func enforce(count uint32) *wrapperspb.UInt32Value {
	if count == 0 {
		return wrapperspb.UInt32(0)
	}
	return wrapperspb.UInt32(100)
}
