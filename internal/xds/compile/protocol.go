package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const upstreamOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// protocol reads the HTTP version and the life of connections to a cluster,
// from the extension or from the fields that came before it.
//
// use_downstream_protocol_config means the version of the request that came in
// and is sent on (snapshot.Cluster.ClientProtocol).
func protocol(m *clusterv3.Cluster, c *snapshot.Cluster) (names, *fault) {
	options := m.GetTypedExtensionProtocolOptions()
	for _, key := range sortedKeys(options) {
		if key != upstreamOptions {
			return names{}, faultf("", notSupported).underKey("typed_extension_protocol_options", key)
		}
	}
	config, ok := options[upstreamOptions]
	if !ok {
		switch selection := m.GetProtocolSelection(); selection {
		case clusterv3.Cluster_USE_CONFIGURED_PROTOCOL:
			c.HTTP2 = m.GetHttp2ProtocolOptions() != nil
		case clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL:
			c.ClientProtocol = true
		default:
			return names{}, faultf("protocol_selection", "value %d is not known", selection)
		}
		number(&c.MaxRequestsPerConnection, m.GetMaxRequestsPerConnection())
		f := http2(m.GetHttp2ProtocolOptions(), c).under("http2_protocol_options")
		if f == nil {
			f = connections(m.GetCommonHttpProtocolOptions(), c).under("common_http_protocol_options")
		}
		return serverNames(m.GetUpstreamHttpProtocolOptions()), f
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
		{"protocol_selection", m.GetProtocolSelection() != 0},
	} {
		if old.set {
			return names{}, faultf(old.name, "not supported beside typed_extension_protocol_options")
		}
	}
	var o upstreamv3.HttpProtocolOptions
	f := extension(config, &o)
	if f == nil {
		switch version := o.GetUpstreamProtocolOptions().(type) {
		case *upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_:
			h2 := version.ExplicitHttpConfig.GetHttp2ProtocolOptions()
			c.HTTP2 = h2 != nil
			f = http2(h2, c).under("http2_protocol_options").under("explicit_http_config")
		case *upstreamv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
			c.ClientProtocol = true
			f = http2(version.UseDownstreamProtocolConfig.GetHttp2ProtocolOptions(), c).under("http2_protocol_options").under("use_downstream_protocol_config")
		}
	}
	if f == nil {
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

// maxStreams is the largest bound of streams that HTTP/2 can express.
const maxStreams = 1<<31 - 1

// http2 reads the options of HTTP/2.
func http2(o *corev3.Http2ProtocolOptions, c *snapshot.Cluster) *fault {
	if v := o.GetMaxConcurrentStreams(); v != nil {
		if c.MaxConcurrentStreams = v.GetValue(); c.MaxConcurrentStreams == 0 || c.MaxConcurrentStreams > maxStreams {
			return faultf("max_concurrent_streams", "%d is not between 1 and %d", c.MaxConcurrentStreams, maxStreams)
		}
	}
	k := o.GetConnectionKeepalive()
	if k == nil {
		return nil
	}
	var f *fault
	if c.HTTP2Ping, f = ping(k); f != nil {
		return f.under("connection_keepalive")
	}
	return nil
}

// minPing is the least interval and timeout of a ping, as in Envoy.
const minPing = time.Millisecond

func ping(k *corev3.KeepaliveSettings) (p snapshot.HTTP2Ping, f *fault) {
	if p.Interval, f = duration("interval", k.GetInterval(), 0); f != nil {
		return p, f
	}
	if p.Timeout, f = needed("timeout", k.GetTimeout()); f != nil {
		return p, f
	}
	switch {
	case k.GetInterval() != nil && p.Interval < minPing:
		f = faultf("interval", "%v is less than %v", p.Interval, minPing)
	case p.Timeout < minPing:
		f = faultf("timeout", "%v is less than %v", p.Timeout, minPing)
	}
	return p, f
}

// keepAlive reads TCP's keepalive, whose times are in seconds. Zero switches it
// off in Envoy, which a snapshot can not say.
func keepAlive(k *corev3.TcpKeepalive) (*snapshot.KeepAlive, *fault) {
	for _, v := range []struct {
		name  string
		value *wrapperspb.UInt32Value
	}{{"keepalive_probes", k.GetKeepaliveProbes()}, {"keepalive_time", k.GetKeepaliveTime()}, {"keepalive_interval", k.GetKeepaliveInterval()}} {
		if v.value != nil && (v.value.GetValue() == 0 || v.value.GetValue() > math.MaxInt32) {
			return nil, faultf(v.name, "%d is not between 1 and %d", v.value.GetValue(), math.MaxInt32)
		}
	}
	return &snapshot.KeepAlive{
		Idle:     time.Duration(k.GetKeepaliveTime().GetValue()) * time.Second,
		Interval: time.Duration(k.GetKeepaliveInterval().GetValue()) * time.Second,
		Probes:   int(k.GetKeepaliveProbes().GetValue()),
	}, nil
}
