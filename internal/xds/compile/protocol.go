package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const upstreamOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// protocol reads the HTTP version and the life of connections to a cluster,
// from the extension or from the fields that came before it.
//
// use_downstream_protocol_config means the version of the request that is
// sent on; here that is the program's own, which is HTTP/2 for gRPC and
// HTTP/1.1 else, as without any setting.
func protocol(m *clusterv3.Cluster, c *snapshot.Cluster) (names, *fault) {
	options := m.GetTypedExtensionProtocolOptions()
	for _, key := range sortedKeys(options) {
		if key != upstreamOptions {
			return names{}, faultf("", notSupported).underKey("typed_extension_protocol_options", key)
		}
	}
	config, ok := options[upstreamOptions]
	if !ok {
		c.HTTP2 = m.GetHttp2ProtocolOptions() != nil
		number(&c.MaxRequestsPerConnection, m.GetMaxRequestsPerConnection())
		return serverNames(m.GetUpstreamHttpProtocolOptions()), connections(m.GetCommonHttpProtocolOptions(), c).under("common_http_protocol_options")
	}
	for _, old := range []struct {
		name string
		set  bool
	}{
		{"upstream_http_protocol_options", m.GetUpstreamHttpProtocolOptions() != nil},
		{"max_requests_per_connection", m.GetMaxRequestsPerConnection() != nil},
		{"common_http_protocol_options", m.GetCommonHttpProtocolOptions() != nil},
		{"http_protocol_options", m.GetHttpProtocolOptions() != nil},
		{"http2_protocol_options", m.GetHttp2ProtocolOptions() != nil},
	} {
		if old.set {
			return names{}, faultf(old.name, "not supported beside typed_extension_protocol_options")
		}
	}
	var o upstreamv3.HttpProtocolOptions
	f := extension(config, &o)
	if f == nil {
		c.HTTP2 = o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil
		f = connections(o.GetCommonHttpProtocolOptions(), c).under("common_http_protocol_options")
	}
	return serverNames(o.GetUpstreamHttpProtocolOptions()), f.underKey("typed_extension_protocol_options", upstreamOptions)
}

func serverNames(o *corev3.UpstreamHttpProtocolOptions) names {
	return names{ofRequest: o.GetAutoSni(), verified: o.GetAutoSanValidation()}
}

// connections reads how long a connection may be kept.
func connections(o *corev3.HttpProtocolOptions, c *snapshot.Cluster) *fault {
	idle, f := duration("idle_timeout", o.GetIdleTimeout(), 0)
	if f != nil {
		return f
	}
	if o.GetIdleTimeout() != nil && idle == 0 {
		idle = forever
	}
	c.IdleTimeout = idle
	number(&c.MaxRequestsPerConnection, o.GetMaxRequestsPerConnection())
	if d, f := duration("max_connection_duration", o.GetMaxConnectionDuration(), 0); f != nil {
		return f
	} else if d != 0 {
		return faultf("max_connection_duration", notSupported)
	}
	if d, f := duration("max_stream_duration", o.GetMaxStreamDuration(), 0); f != nil {
		return f
	} else if d != 0 {
		return faultf("max_stream_duration", "not supported in a cluster")
	}
	return nil
}
