package translate

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Type URLs of the resources that are served.
const (
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// InboundPrefix begins the name of a server-side listener; "ip:port" follows.
const InboundPrefix = "xds.istio.io/grpc/lds/inbound/"

// TrafficName is the name that a route configuration, a cluster and an endpoint
// set of one destination share: "outbound|port|subset|host", as Istio writes it.
type TrafficName struct {
	Port   uint32
	Subset string
	Host   string
	// ByLabels is of an endpoint set in the order that the client's own labels give it:
	// "|labels" follows, so that only such sets differ from workload to workload.
	ByLabels bool
}

const labelsSuffix = "|labels"

func (n TrafficName) String() string {
	s := "outbound|" + strconv.FormatUint(uint64(n.Port), 10) + "|" + n.Subset + "|" + n.Host
	if n.ByLabels {
		s += labelsSuffix
	}
	return s
}

// ParseTrafficName is the inverse of TrafficName.String.
func ParseTrafficName(s string) (TrafficName, error) {
	name, byLabels := strings.CutSuffix(s, labelsSuffix)
	parts := strings.Split(name, "|")
	if len(parts) == 3 && byLabels {
		parts, byLabels = strings.Split(s, "|"), false // a host of that name
	}
	if len(parts) != 4 || parts[0] != "outbound" {
		return TrafficName{}, fmt.Errorf("%q is not outbound|port|subset|host", s)
	}
	port, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil || port == 0 || strconv.FormatUint(port, 10) != parts[1] {
		return TrafficName{}, fmt.Errorf("%q: %q is not a port", s, parts[1])
	}
	host := strings.ToLower(parts[3])
	if !isHost(strings.TrimPrefix(host, "*")) {
		return TrafficName{}, fmt.Errorf("%q: %q is not a host", s, parts[3])
	}
	return TrafficName{Port: uint32(port), Subset: parts[2], Host: host, ByLabels: byLabels}, nil
}

// splitHostPort splits a listener name. A name without a port gives 0. A
// trailing dot of a fully qualified host and its letter case do not matter (RFC 4343).
func splitHostPort(name string) (host string, port uint32, ok bool) {
	host, p, found := strings.Cut(name, ":")
	if found {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", 0, false
		}
		port = uint32(n)
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host, port, isHost(host)
}

// isHost reports whether s, in lower case, can be a host name. Others name
// nothing, also where a wildcard would cover them.
func isHost(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}

// splitInbound splits the "ip:port" of a server-side listener name. An empty
// host is the wildcard address, as in net.Listen(":80").
func splitInbound(addr string) (host string, port uint32, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not a port", p)
	}
	if host == "" {
		return "0.0.0.0", uint32(n), nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", 0, err
	}
	return ip.WithZone("").String(), uint32(n), nil
}
