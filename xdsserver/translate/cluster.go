package translate

//lint:file-ignore SA1019 Istio's deprecated fields are still written.

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// defaultConnectTimeout is Istio's.
const defaultConnectTimeout = 10 * time.Second

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
	if err := b.discovery(c, name, n); err != nil {
		return nil, err
	}
	var tp *networking.TrafficPolicy
	at := ""
	if of.rule != nil {
		at = about(&of.rule.Meta) + " spec"
		if of.rule.Spec.GetWorkloadSelector() != nil {
			return nil, unsupported(at, "workloadSelector")
		}
		tp = effectivePolicy(of.rule.Spec.GetTrafficPolicy(), of.subset, n.Port)
	}
	if err := b.trafficPolicy(c, tp, of.port.Protocol, at); err != nil {
		return nil, err
	}
	d := b.destinationOf(of, n, isHTTP2(tp.GetConnectionPool(), of.port.Protocol))
	if err := b.secure(c, tp.GetTls(), d, at); err != nil {
		return nil, err
	}
	return c, nil
}

// discovery says where the cluster's endpoints come from: EDS, except for
// endpoints that are names. Envoy takes addresses only over EDS, so it looks
// names up as a STRICT_DNS cluster; gRPC as LOGICAL_DNS, which has one name
// (gRFC A37). gRPC in Go dials several names over EDS too, as Sinew does.
func (b *builder) discovery(c *clusterv3.Cluster, name string, n TrafficName) error {
	var names int
	var all *endpointv3.ClusterLoadAssignment
	if b.client.Agent != Sinew {
		m, err := b.loadAssignment(name, n)
		if err != nil {
			return err
		}
		all = m.(*endpointv3.ClusterLoadAssignment)
		names = countNames(all)
		b.notes = nil // they belong to the endpoint set
	}
	switch {
	case names == 0 || b.client.Agent == GRPC && countEndpoints(all) > 1:
		c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: overADS(), ServiceName: name}
		return nil
	case b.client.Agent == GRPC:
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS}
	default:
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	}
	c.LoadAssignment = all
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
	tcpFields           = []string{"maxConnections", "connectTimeout", "idleTimeout"}
	httpFields          = []string{"http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries", "idleTimeout", "h2UpgradePolicy"}
	balancerFields      = []string{"simple", "localityLbSetting", "zoneAwareLbSetting"}
	localityFields      = []string{"enabled"}
	outlierFields       = []string{"consecutive5xxErrors", "consecutiveGatewayErrors", "interval", "baseEjectionTime", "maxEjectionPercent", "minHealthPercent"}
	budgetFields        = []string{"percent", "minRetryConcurrency"}
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
		{"trafficPolicy.loadBalancer.zoneAwareLbSetting.", tp.GetLoadBalancer().GetZoneAwareLbSetting(), localityFields},
		{"trafficPolicy.outlierDetection.", tp.GetOutlierDetection(), outlierFields},
		{"trafficPolicy.retryBudget.", tp.GetRetryBudget(), budgetFields},
	} {
		if field := unknownField(check.m, check.known); field != "" {
			return unsupported(at, check.path+field)
		}
	}
	// What says that something is off says what is so anyway.
	switch lb := tp.GetLoadBalancer(); {
	case lb.GetLocalityLbSetting() != nil && (lb.GetLocalityLbSetting().GetEnabled() == nil || lb.GetLocalityLbSetting().GetEnabled().GetValue()):
		return unsupported(at, "trafficPolicy.loadBalancer.localityLbSetting")
	case lb.GetZoneAwareLbSetting() != nil && (lb.GetZoneAwareLbSetting().GetEnabled() == nil || lb.GetZoneAwareLbSetting().GetEnabled().GetValue()):
		return unsupported(at, "trafficPolicy.loadBalancer.zoneAwareLbSetting")
	}
	c.ConnectTimeout = durationpb.New(defaultConnectTimeout)
	if d := pool.GetTcp().GetConnectTimeout(); d != nil {
		c.ConnectTimeout = d
	}
	// Istio turns Envoy's panic mode off; minHealthPercent turns it on.
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}}
	c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{thresholds(tp)}}
	if err := b.loadBalancer(c, tp.GetLoadBalancer(), at); err != nil {
		return err
	}
	b.outlier(c, tp.GetOutlierDetection(), at)
	b.protocolOptions(c, pool, protocol)
	b.poolNotes(tp, at)
	return nil
}

// thresholds are the circuit breakers. Istio's default is no limit, not Envoy's 1024 and 3; 0 means the default.
func thresholds(tp *networking.TrafficPolicy) *clusterv3.CircuitBreakers_Thresholds {
	limit := func(n int32) *wrapperspb.UInt32Value {
		if n > 0 {
			return wrapperspb.UInt32(uint32(n))
		}
		return wrapperspb.UInt32(math.MaxUint32)
	}
	http := tp.GetConnectionPool().GetHttp()
	t := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections:     limit(tp.GetConnectionPool().GetTcp().GetMaxConnections()),
		MaxPendingRequests: limit(http.GetHttp1MaxPendingRequests()),
		MaxRequests:        limit(http.GetHttp2MaxRequests()),
		MaxRetries:         limit(http.GetMaxRetries()),
	}
	if rb := tp.GetRetryBudget(); rb != nil {
		t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent:       &typev3.Percent{Value: 20},
			MinRetryConcurrency: wrapperspb.UInt32(3),
		}
		if rb.GetPercent() != nil {
			t.RetryBudget.BudgetPercent.Value = rb.GetPercent().GetValue()
		}
		if rb.GetMinRetryConcurrency() != 0 {
			t.RetryBudget.MinRetryConcurrency.Value = rb.GetMinRetryConcurrency()
		}
	}
	return t
}

// loadBalancer sets the algorithm: least request unless policy says otherwise.
// gRPC refuses a whole cluster with RANDOM. It gets ROUND_ROBIN, the one it has
// that also gives every endpoint the same share, and a note.
func (b *builder) loadBalancer(c *clusterv3.Cluster, lb *networking.LoadBalancerSettings, at string) error {
	switch simple := lb.GetSimple(); simple {
	case networking.LoadBalancerSettings_UNSPECIFIED, networking.LoadBalancerSettings_LEAST_CONN, networking.LoadBalancerSettings_LEAST_REQUEST:
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case networking.LoadBalancerSettings_RANDOM:
		c.LbPolicy = clusterv3.Cluster_RANDOM
		if b.client.Agent == GRPC {
			c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
			b.note(at+".trafficPolicy.loadBalancer.simple", "gRPC has no RANDOM: it uses ROUND_ROBIN")
		}
	default:
		// PASSTHROUGH sends to the address that the caller dialled; inside the
		// caller's process there is no other address than the host's.
		return unsupported(at, "trafficPolicy.loadBalancer.simple "+simple.String())
	}
	return nil
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

// http2Protocols are port protocols that are HTTP/2 without TLS.
var http2Protocols = []string{"HTTP2", "GRPC", "GRPC-WEB"}

// isHTTP2 reports whether requests go out by HTTP/2: because the port says so or policy upgrades them.
func isHTTP2(pool *networking.ConnectionPoolSettings, protocol string) bool {
	return slices.Contains(http2Protocols, strings.ToUpper(protocol)) ||
		pool.GetHttp().GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE
}

// httpOptions is the key of a cluster's HTTP options.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// protocolOptions sets the upstream's HTTP version and the life of its
// connections. gRPC is HTTP/2 always and reads none of it.
func (b *builder) protocolOptions(c *clusterv3.Cluster, pool *networking.ConnectionPoolSettings, protocol string) {
	if b.client.Agent == GRPC {
		return
	}
	http := pool.GetHttp()
	h2 := isHTTP2(pool, protocol)
	common := &corev3.HttpProtocolOptions{}
	set := false
	if n := http.GetMaxRequestsPerConnection(); n > 0 {
		common.MaxRequestsPerConnection, set = wrapperspb.UInt32(uint32(n)), true
	}
	idle := pool.GetTcp().GetIdleTimeout()
	if d := http.GetIdleTimeout(); d.AsDuration() > 0 {
		idle = d
	}
	if idle.AsDuration() > 0 { // 0 means unset in Istio; in Envoy it would mean never
		common.IdleTimeout, set = idle, true
	}
	if !h2 && !set {
		return
	}
	opts := &upstreamv3.HttpProtocolOptions{}
	if set {
		opts.CommonHttpProtocolOptions = common
	}
	explicit := &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{}
	if h2 {
		explicit.ProtocolConfig = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}
	} else {
		explicit.ProtocolConfig = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}
	}
	opts.UpstreamProtocolOptions = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: mustPack(opts)}
}

// poolNotes says which limits a gRPC client does not have.
func (b *builder) poolNotes(tp *networking.TrafficPolicy, at string) {
	if b.client.Agent != GRPC {
		return
	}
	pool := tp.GetConnectionPool()
	for _, f := range []struct {
		path string
		set  bool
	}{
		{"connectionPool.tcp.maxConnections", pool.GetTcp().GetMaxConnections() > 0},
		{"connectionPool.tcp.connectTimeout", pool.GetTcp().GetConnectTimeout() != nil},
		{"connectionPool.tcp.idleTimeout", pool.GetTcp().GetIdleTimeout() != nil},
		{"connectionPool.http.http1MaxPendingRequests", pool.GetHttp().GetHttp1MaxPendingRequests() > 0},
		{"connectionPool.http.maxRetries", pool.GetHttp().GetMaxRetries() > 0},
		{"connectionPool.http.maxRequestsPerConnection", pool.GetHttp().GetMaxRequestsPerConnection() > 0},
		{"connectionPool.http.idleTimeout", pool.GetHttp().GetIdleTimeout() != nil},
		{"outlierDetection.minHealthPercent", tp.GetOutlierDetection().GetMinHealthPercent() > 0},
		{"retryBudget", tp.GetRetryBudget() != nil},
	} {
		if f.set {
			b.note(fmt.Sprintf("%s.trafficPolicy.%s", at, f.path), "gRPC does not read it")
		}
	}
}
