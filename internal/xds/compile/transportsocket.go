package compile

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const (
	rawBuffer    = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
	rawBufferOld = "envoy.transport_sockets.raw_buffer" // by name alone, as before there were types
)

// transportSocket decodes a transport socket into context, which is a TLS
// context. It reports whether it is one; else it is plain text.
func transportSocket(s *corev3.TransportSocket, context proto.Message) (isTLS bool, f *fault) {
	config := s.GetTypedConfig()
	switch {
	case s == nil,
		typeName(config) == rawBuffer && len(config.GetValue()) == 0,
		config == nil && s.GetName() == rawBufferOld:
		return false, nil
	case config.MessageIs(context):
		return true, extension(config, context).under("typed_config")
	default:
		return false, faultf("", "transport socket %q of type %q is not supported", s.GetName(), typeName(config))
	}
}

// clusterSocket reads a transport socket of a cluster; nil means plain text.
func clusterSocket(s *corev3.TransportSocket, n names) (*snapshot.ClientTLS, *fault) {
	var context tlsv3.UpstreamTlsContext
	isTLS, f := transportSocket(s, &context)
	if f != nil || !isTLS {
		return nil, f
	}
	out, f := clientTLS(&context, n)
	return out, f.under("typed_config")
}

// sockets reads how connections to a cluster's endpoints are secured. Istio's
// automatic mutual TLS is a list of matches, with one that is named tlsMode-istio.
func sockets(m *clusterv3.Cluster, n names, c *snapshot.Cluster) *fault {
	var f *fault
	if c.TLS, f = clusterSocket(m.GetTransportSocket(), n); f != nil {
		return f.under("transport_socket")
	}
	const field = "transport_socket_matches"
	seen := make(map[string]bool)
	for i, match := range m.GetTransportSocketMatches() {
		switch {
		case match.GetName() == "":
			f = faultf("name", "is empty")
		case seen[match.GetName()]:
			f = faultf("name", "%q occurs twice", match.GetName())
		case match.GetTransportSocket() == nil:
			f = faultf("transport_socket", "missing")
		}
		if f != nil {
			return f.underIndex(field, i)
		}
		seen[match.GetName()] = true
		socket := snapshot.SocketMatch{}
		if socket.TLS, f = clusterSocket(match.GetTransportSocket(), n); f != nil {
			return f.under("transport_socket").underIndex(field, i)
		}
		if socket.Criteria, f = criteria(match); f != nil {
			return f.under("match").underIndex(field, i)
		}
		c.Sockets = append(c.Sockets, socket)
	}
	return nil
}

// criteria reads what an endpoint's metadata has to say. Only texts are looked
// at, and none is empty: an endpoint without the key would be as one with it.
func criteria(m *clusterv3.Cluster_TransportSocketMatch) (map[string]string, *fault) {
	fields := m.GetMatch().GetFields()
	if len(fields) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(fields))
	for _, key := range sortedKeys(fields) {
		value := fields[key].GetStringValue()
		if value == "" {
			return nil, faultf("", "must be a text that is not empty").underKey("fields", key)
		}
		out[key] = value
	}
	return out, nil
}
