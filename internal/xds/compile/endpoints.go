package compile

import (
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// Endpoints compiles a ClusterLoadAssignment. Its name is the cluster_name,
// which is set where it could be read, even with an error. An address may be
// a host name, which is looked up when a connection is made.
func Endpoints(resource *anypb.Any) (name string, eps *lb.Endpoints, err error) {
	var m endpointv3.ClusterLoadAssignment
	wrapper, f := open(resource, &m)
	name = named(m.GetClusterName(), wrapper)
	if f == nil {
		f = unlisted(m.ProtoReflect())
	}
	if f == nil && m.GetClusterName() == "" {
		f = faultf("cluster_name", "is empty")
	}
	if f == nil {
		eps, f = loadAssignment(&m, ipOrName)
	}
	if f != nil {
		return name, nil, f.of("ClusterLoadAssignment", name)
	}
	return name, eps, nil
}

// loadAssignment compiles endpoints that have been checked against the lists.
// A locality that is not set is the empty one (Envoy; gRPC refuses it).
func loadAssignment(m *endpointv3.ClusterLoadAssignment, kind addressKind) (*lb.Endpoints, *fault) {
	var drops []lb.Drop
	for i, d := range m.GetPolicy().GetDropOverloads() {
		perMillion, f := fraction(d.GetDropPercentage())
		if f != nil {
			return nil, f.under("drop_percentage").underIndex("drop_overloads", i).under("policy")
		}
		drops = append(drops, lb.Drop{Category: d.GetCategory(), PerMillion: perMillion})
	}
	count := 0
	for _, l := range m.GetEndpoints() {
		count += len(l.GetLbEndpoints())
	}
	all := make([]lb.Endpoint, 0, count)
	addresses := make(map[string]bool, count)
	localities := make(map[lb.Locality]bool, len(m.GetEndpoints()))
	for i, l := range m.GetEndpoints() {
		var f *fault
		if all, f = locality(all, l, kind, localities, addresses); f != nil {
			return nil, f.underIndex("endpoints", i)
		}
	}
	return lb.NewEndpoints(all, drops), nil
}

func locality(all []lb.Endpoint, m *endpointv3.LocalityLbEndpoints, kind addressKind, localities map[lb.Locality]bool, addresses map[string]bool) ([]lb.Endpoint, *fault) {
	if m.GetPriority() > 0 {
		return nil, faultf("priority", "%d is not supported: only 0 is", m.GetPriority())
	}
	place := lb.Locality{Region: m.GetLocality().GetRegion(), Zone: m.GetLocality().GetZone(), SubZone: m.GetLocality().GetSubZone()}
	if localities[place] {
		return nil, faultf("locality", "%s/%s/%s occurs twice", place.Region, place.Zone, place.SubZone)
	}
	localities[place] = true
	sum := uint64(0)
	for i, e := range m.GetLbEndpoints() {
		endpoint, f := lbEndpoint(e, kind)
		switch {
		case f != nil:
		case addresses[endpoint.Address]:
			f = faultf("endpoint.address", "%s occurs twice", endpoint.Address)
		default:
			sum += uint64(endpoint.Weight)
			if sum > math.MaxUint32 {
				f = faultf("load_balancing_weight", "the sum of the weights in the locality exceeds %d", uint32(math.MaxUint32))
			}
		}
		if f != nil {
			return nil, f.underIndex("lb_endpoints", i)
		}
		addresses[endpoint.Address] = true
		endpoint.Locality = place
		all = append(all, endpoint)
	}
	return all, nil
}

func lbEndpoint(m *endpointv3.LbEndpoint, kind addressKind) (lb.Endpoint, *fault) {
	address, f := socketAddress(m.GetEndpoint().GetAddress(), kind)
	if f != nil {
		return lb.Endpoint{}, f.under("address").under("endpoint")
	}
	e := lb.Endpoint{Address: address, Hostname: m.GetEndpoint().GetHostname(), Weight: 1, Metadata: metadata(m.GetMetadata(), balanced...), Socket: metadata(m.GetMetadata(), socketMatch)}
	if m.GetLoadBalancingWeight() != nil {
		if e.Weight = m.GetLoadBalancingWeight().GetValue(); e.Weight == 0 {
			return lb.Endpoint{}, faultf("load_balancing_weight", "must be more than 0")
		}
	}
	switch m.GetHealthStatus() {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
		e.Health = lb.Healthy
	case corev3.HealthStatus_DEGRADED:
		e.Health = lb.Degraded
	case corev3.HealthStatus_DRAINING:
		e.Health = lb.Draining
	case corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_TIMEOUT:
		e.Health = lb.Unhealthy
	default:
		return lb.Endpoint{}, faultf("health_status", "value %d is not known", m.GetHealthStatus())
	}
	return e, nil
}

// socketMatch is the filter whose metadata transport_socket_matches look at.
const socketMatch = "envoy.transport_socket_match"

// balanced are the filters whose strings an endpoint keeps: what balancing
// reads, the transport that the endpoint speaks, and Istio's own.
var balanced = []string{"envoy.lb", socketMatch, "istio"}

// metadata are the strings of filters, in order of preference where two have the same key.
func metadata(m *corev3.Metadata, filters ...string) map[string]string {
	var out map[string]string
	for _, filter := range filters {
		for key, value := range m.GetFilterMetadata()[filter].GetFields() {
			if _, taken := out[key]; taken || value.GetStringValue() == "" {
				continue
			}
			if out == nil {
				out = make(map[string]string)
			}
			out[key] = value.GetStringValue()
		}
	}
	return out
}

// addressKind says which addresses are good.
type addressKind bool

const (
	ipOnly   addressKind = false
	ipOrName addressKind = true
)

// socketAddress reads a TCP address as "host:port".
func socketAddress(m *corev3.Address, kind addressKind) (string, *fault) {
	const field = "socket_address"
	s := m.GetSocketAddress()
	host := s.GetAddress()
	switch {
	case s == nil:
		return "", faultf(field, "missing")
	case s.GetProtocol() != corev3.SocketAddress_TCP:
		return "", faultf(field+".protocol", "%v is not supported", s.GetProtocol())
	case host == "":
		return "", faultf(field+".address", "is empty")
	case s.GetPortValue() == 0 || s.GetPortValue() > math.MaxUint16:
		return "", faultf(field+".port_value", "%d is not a port", s.GetPortValue())
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.String() // one spelling, so that an address that comes twice is found
	} else if kind == ipOnly {
		return "", faultf(field+".address", "%q is not an IP address", host)
	} else if strings.ContainsFunc(host, notInName) {
		return "", faultf(field+".address", "%q is neither an IP address nor a host name", host)
	}
	return net.JoinHostPort(host, strconv.FormatUint(uint64(s.GetPortValue()), 10)), nil
}

func notInName(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '.' || r == '-' || r == '_')
}
