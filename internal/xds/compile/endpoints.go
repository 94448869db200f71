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
	"google.golang.org/protobuf/types/known/structpb"

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

const (
	// DefaultOverprovisioning is the factor, in per cent, of a set that does not say
	// (envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.overprovisioning_factor).
	DefaultOverprovisioning = 140
	// maxPriority is the largest number of a priority, as in Envoy.
	maxPriority = 128
)

// assignment is what is known of a ClusterLoadAssignment while it is read.
type assignment struct {
	all        []lb.Endpoint
	localities []lb.LocalityWeight
	places     map[place]bool
	addresses  map[string]bool
	weights    map[uint32]uint64 // sums of the localities' weights by priority
}

type place struct {
	lb.Locality
	priority uint32
}

// loadAssignment compiles endpoints that have been checked against the lists.
// As in Envoy a locality that is not set is the empty one, an address that comes
// again is skipped, wherever it is (Istio sends gateways of other networks so),
// and priorities may have gaps; gRPC refuses all three.
func loadAssignment(m *endpointv3.ClusterLoadAssignment, kind addressKind) (*lb.Endpoints, *fault) {
	var drops []lb.Drop
	for i, d := range m.GetPolicy().GetDropOverloads() {
		perMillion, f := fraction(d.GetDropPercentage())
		if f != nil {
			return nil, f.under("drop_percentage").underIndex("drop_overloads", i).under("policy")
		}
		drops = append(drops, lb.Drop{Category: d.GetCategory(), PerMillion: perMillion})
	}
	overprovisioning := uint32(DefaultOverprovisioning)
	if v := m.GetPolicy().GetOverprovisioningFactor(); v != nil {
		if overprovisioning = v.GetValue(); overprovisioning == 0 {
			return nil, faultf("policy.overprovisioning_factor", "must be more than 0")
		}
	}
	count := 0
	for _, l := range m.GetEndpoints() {
		count += len(l.GetLbEndpoints())
	}
	a := &assignment{
		all:       make([]lb.Endpoint, 0, count),
		places:    make(map[place]bool, len(m.GetEndpoints())),
		addresses: make(map[string]bool, count),
		weights:   make(map[uint32]uint64),
	}
	for i, l := range m.GetEndpoints() {
		if f := a.locality(l, kind); f != nil {
			return nil, f.underIndex("endpoints", i)
		}
	}
	eps := lb.NewEndpoints(a.all, drops)
	eps.Localities, eps.Overprovisioning, eps.WeightedPriorityHealth = a.localities, overprovisioning, m.GetPolicy().GetWeightedPriorityHealth()
	return eps, nil
}

func (a *assignment) locality(m *endpointv3.LocalityLbEndpoints, kind addressKind) *fault {
	if m.GetPriority() > maxPriority {
		return faultf("priority", "%d is more than %d", m.GetPriority(), maxPriority)
	}
	here := place{lb.Locality{Region: m.GetLocality().GetRegion(), Zone: m.GetLocality().GetZone(), SubZone: m.GetLocality().GetSubZone()}, m.GetPriority()}
	if a.places[here] {
		return faultf("locality", "%s/%s/%s occurs twice in priority %d", here.Region, here.Zone, here.SubZone, here.priority)
	}
	a.places[here] = true
	if v := m.GetLoadBalancingWeight(); v != nil {
		a.weights[here.priority] += uint64(v.GetValue())
		switch {
		case v.GetValue() == 0:
			return faultf("load_balancing_weight", "must be more than 0")
		case a.weights[here.priority] > math.MaxUint32:
			return faultf("load_balancing_weight", "the sum of the weights of the localities of priority %d exceeds %d", here.priority, uint32(math.MaxUint32))
		}
		a.localities = append(a.localities, lb.LocalityWeight{Locality: here.Locality, Priority: here.priority, Weight: v.GetValue()})
	}
	sum := uint64(0)
	for i, e := range m.GetLbEndpoints() {
		endpoint, f := lbEndpoint(e, kind)
		if f == nil {
			if sum += uint64(endpoint.Weight); sum > math.MaxUint32 {
				f = faultf("load_balancing_weight", "the sum of the weights in the locality exceeds %d", uint32(math.MaxUint32))
			}
		}
		if f != nil {
			return f.underIndex("lb_endpoints", i)
		}
		if a.addresses[endpoint.Address] {
			continue
		}
		a.addresses[endpoint.Address] = true
		endpoint.Locality, endpoint.Priority = here.Locality, here.priority
		a.all = append(a.all, endpoint)
	}
	return nil
}

func lbEndpoint(m *endpointv3.LbEndpoint, kind addressKind) (lb.Endpoint, *fault) {
	address, f := socketAddress(m.GetEndpoint().GetAddress(), kind)
	if f != nil {
		return lb.Endpoint{}, f.under("address").under("endpoint")
	}
	check := m.GetEndpoint().GetHealthCheckConfig()
	if check.GetPortValue() > math.MaxUint16 {
		return lb.Endpoint{}, faultf("endpoint.health_check_config.port_value", "%d is not a port", check.GetPortValue())
	}
	if !isHeaderText(check.GetHostname()) {
		return lb.Endpoint{}, faultf("endpoint.health_check_config.hostname", "%q can not be sent in a header", check.GetHostname())
	}
	e := lb.Endpoint{
		Address: address, Hostname: m.GetEndpoint().GetHostname(), Weight: 1,
		HealthPort: check.GetPortValue(), HealthHost: check.GetHostname(),
		Metadata: metadata(m.GetMetadata(), balanced...), Socket: metadata(m.GetMetadata(), socketMatch),
	}
	e.HashKey = m.GetMetadata().GetFilterMetadata()[balancerMetadata].GetFields()["hash_key"].GetStringValue()
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

// balancerMetadata is the filter whose metadata balancing reads.
const balancerMetadata = "envoy.lb"

// balanced are the filters whose strings an endpoint keeps: what balancing
// reads, the transport that the endpoint speaks, and Istio's own.
var balanced = []string{balancerMetadata, socketMatch, "istio"}

// metadata are the texts of filters, in order of preference where two have the
// same key. What is true or false counts as the text: envoy.lb's "canary" is so.
func metadata(m *corev3.Metadata, filters ...string) map[string]string {
	var out map[string]string
	for _, filter := range filters {
		for key, value := range m.GetFilterMetadata()[filter].GetFields() {
			text, ok := textOf(value)
			if _, taken := out[key]; taken || !ok || text == "" {
				continue
			}
			if out == nil {
				out = make(map[string]string)
			}
			out[key] = text
		}
	}
	return out
}

// textOf is a value that metadata is compared by.
func textOf(v *structpb.Value) (text string, ok bool) {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return kind.StringValue, true
	case *structpb.Value_BoolValue:
		return strconv.FormatBool(kind.BoolValue), true
	}
	return "", false
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
