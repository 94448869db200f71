package translate

import (
	"fmt"
	"math"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

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

// http2Protocols are port protocols that are HTTP/2 without TLS.
var http2Protocols = []string{"HTTP2", "GRPC", "GRPC-WEB"}

// isHTTP2 reports whether requests go out by HTTP/2: because the port says so, or policy or the mesh upgrades them.
func (b *builder) isHTTP2(pool *networking.ConnectionPoolSettings, protocol string) bool {
	if pool.GetHttp().GetUseClientProtocol() {
		return false
	}
	switch pool.GetHttp().GetH2UpgradePolicy() {
	case networking.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		return true
	case networking.ConnectionPoolSettings_HTTPSettings_DEFAULT:
		if b.view.set.MeshConfig.UpgradesToHTTP2() {
			return true
		}
	}
	return slices.Contains(http2Protocols, strings.ToUpper(protocol))
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
	h2 := b.isHTTP2(pool, protocol)
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
	if !h2 && !set && !http.GetUseClientProtocol() {
		return
	}
	opts := &upstreamv3.HttpProtocolOptions{}
	if set {
		opts.CommonHttpProtocolOptions = common
	}
	explicit := &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{}
	switch {
	case http.GetUseClientProtocol():
		opts.UpstreamProtocolOptions = &upstreamv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &upstreamv3.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
			},
		}
	case h2:
		options := &corev3.Http2ProtocolOptions{}
		if n := http.GetMaxConcurrentStreams(); n > 0 {
			options.MaxConcurrentStreams = wrapperspb.UInt32(uint32(n))
		}
		if k := http.GetHttp2KeepAlive(); k != nil {
			options.ConnectionKeepalive = &corev3.KeepaliveSettings{Interval: k.GetInterval(), Timeout: k.GetTimeout()}
		}
		explicit.ProtocolConfig = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: options}
	default:
		explicit.ProtocolConfig = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}
	}
	if opts.UpstreamProtocolOptions == nil {
		opts.UpstreamProtocolOptions = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit}
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: mustPack(opts)}
}

// keepalive is TCP's: the DestinationRule's fields over the mesh's.
func (b *builder) keepalive(c *clusterv3.Cluster, pool *networking.ConnectionPoolSettings) {
	base, own := b.view.set.MeshConfig.Keepalive(), pool.GetTcp().GetTcpKeepalive()
	if base == nil && own == nil || b.client.Agent == GRPC {
		return
	}
	out := &corev3.TcpKeepalive{}
	for _, k := range []*networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive{base, own} {
		if k.GetProbes() > 0 {
			out.KeepaliveProbes = wrapperspb.UInt32(k.GetProbes())
		}
		if k.GetTime() != nil {
			out.KeepaliveTime = wrapperspb.UInt32(wholeSeconds(k.GetTime()))
		}
		if k.GetInterval() != nil {
			out.KeepaliveInterval = wrapperspb.UInt32(wholeSeconds(k.GetInterval()))
		}
	}
	c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: out}
}

// wholeSeconds is at least 1: 0 would mean the operating system's default.
func wholeSeconds(d *durationpb.Duration) uint32 {
	return uint32(min(max(d.GetSeconds(), 1), math.MaxUint32))
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
		{"connectionPool.http.maxConcurrentStreams", pool.GetHttp().GetMaxConcurrentStreams() > 0},
		{"connectionPool.http.http2KeepAlive", pool.GetHttp().GetHttp2KeepAlive() != nil},
		{"connectionPool.tcp.tcpKeepalive", pool.GetTcp().GetTcpKeepalive() != nil},
		{"outlierDetection.minHealthPercent", tp.GetOutlierDetection().GetMinHealthPercent() > 0},
		{"retryBudget", tp.GetRetryBudget() != nil},
	} {
		if f.set {
			b.note(fmt.Sprintf("%s.trafficPolicy.%s", at, f.path), "gRPC does not read it")
		}
	}
}
