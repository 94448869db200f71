package compile

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

const (
	rawBuffer    = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
	upstreamTLS  = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
	inboundTLS   = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
	rawBufferOld = "envoy.transport_sockets.raw_buffer" // by name alone, as before there were types
)

// plainText accepts a transport socket that is not one.
func plainText(s *corev3.TransportSocket) *fault {
	if s == nil {
		return nil
	}
	switch kind := typeName(s.GetTypedConfig()); {
	case kind == rawBuffer && len(s.GetTypedConfig().GetValue()) == 0,
		s.GetTypedConfig() == nil && s.GetName() == rawBufferOld:
		return nil
	case kind == upstreamTLS || kind == inboundTLS:
		return faultf("", "TLS is not supported")
	default:
		return faultf("", "transport socket %q of type %q is not supported", s.GetName(), kind)
	}
}

// plainTextMatches accepts transport sockets by endpoint if all are plain text.
// Istio's automatic mutual TLS is such a list, with one that is named tlsMode-istio.
func plainTextMatches(matches []*clusterv3.Cluster_TransportSocketMatch) *fault {
	for i, m := range matches {
		if f := plainText(m.GetTransportSocket()); f != nil {
			return faultf("", "%s (the transport socket that %q chooses)", f.why, m.GetName()).underIndex("transport_socket_matches", i)
		}
		if m.GetTransportSocket() == nil {
			return faultf("transport_socket", "missing").underIndex("transport_socket_matches", i)
		}
	}
	return nil
}
