package policy

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
)

// DefaultRetries are those of requests whose route says nothing of them, or nil for
// Istio's own (defaultHttpRetryPolicy).
func (m *MeshConfig) DefaultRetries() *networking.HTTPRetry {
	return m.spec().GetDefaultHttpRetryPolicy()
}

// DefaultTrafficPolicy has the connection pool and the outlier detection of clusters
// whose DestinationRule does not say them; nil where there is none.
func (m *MeshConfig) DefaultTrafficPolicy() *mesh.MeshConfig_DefaultTrafficPolicy {
	return m.spec().GetDefaultTrafficPolicy()
}

// ConnectTimeout limits making a connection where no DestinationRule does. Default 10 s.
func (m *MeshConfig) ConnectTimeout() *durationpb.Duration {
	if d := m.spec().GetConnectTimeout(); d != nil {
		return d
	}
	return durationpb.New(10 * time.Second)
}

// Keepalive is TCP's where no DestinationRule says otherwise, field by field; nil leaves
// it to the operating system.
func (m *MeshConfig) Keepalive() *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive {
	return m.spec().GetTcpKeepalive()
}

// DNSRefreshRate is the pause between look-ups of a name. Default 60 s.
func (m *MeshConfig) DNSRefreshRate() *durationpb.Duration {
	if d := m.spec().GetDnsRefreshRate(); d != nil {
		return d
	}
	return durationpb.New(time.Minute)
}

// UpgradesToHTTP2 reports whether requests go out by HTTP/2 where neither the port nor a
// DestinationRule says how. Default false.
func (m *MeshConfig) UpgradesToHTTP2() bool {
	return m.spec().GetH2UpgradePolicy() == mesh.MeshConfig_UPGRADE
}

// Locality is how clients choose by where endpoints are, where no DestinationRule says
// it; nil where they do not. Default: nearer ones first, once outlier detection tells
// that they fail.
func (m *MeshConfig) Locality() *networking.LocalityLoadBalancerSetting {
	s := m.spec().GetLocalityLbSetting()
	if s == nil {
		return &networking.LocalityLoadBalancerSetting{}
	}
	if s.GetEnabled() != nil && !s.GetEnabled().GetValue() {
		return nil
	}
	return s
}

// ZoneAware is how clients keep to their own zone where no DestinationRule says how they
// choose by place; nil, the default, where they do not. It stands above Locality.
func (m *MeshConfig) ZoneAware() *networking.ZoneAwareLoadBalancerSetting {
	if s := m.spec().GetZoneAwareLbSetting(); s.GetEnabled().GetValue() {
		return s
	}
	return nil
}

// meshTraffic checks the defaults of the mesh by the rules of the objects that may override them.
func (f *findings) meshTraffic(at string, m *mesh.MeshConfig) {
	f.err(at+".connectTimeout", checkDuration(m.GetConnectTimeout()))
	f.err(at+".dnsRefreshRate", checkDuration(m.GetDnsRefreshRate()))
	f.err(at+".tcpKeepalive.time", checkDuration(m.GetTcpKeepalive().GetTime()))
	f.err(at+".tcpKeepalive.interval", checkDuration(m.GetTcpKeepalive().GetInterval()))
	f.retries(at+".defaultHttpRetryPolicy", m.GetDefaultHttpRetryPolicy())
	f.locality(at+".localityLbSetting", m.GetLocalityLbSetting(), &networking.OutlierDetection{})
	f.zoneAware(at+".zoneAwareLbSetting", m.GetZoneAwareLbSetting())
	f.connectionPool(at+".defaultTrafficPolicy.connectionPool", m.GetDefaultTrafficPolicy().GetConnectionPool())
	f.outlier(at+".defaultTrafficPolicy.outlierDetection", m.GetDefaultTrafficPolicy().GetOutlierDetection())
}
