package translate

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// loadAssignment is the endpoint set of a cluster: the workloads of the service
// that have the subset's labels, grouped by locality. A cluster without
// endpoints has an empty set, so that requests to it fail at once.
//
// A locality weighs as much as its endpoints together, so that a client that divides
// by locality first gives each endpoint the same share, unless policy distributes by
// place. Priorities are by distance from the client, or by labels.
func (b *builder) loadAssignment(name string, n TrafficName) (proto.Message, error) {
	of := b.target(n)
	if of == nil {
		return nil, nil
	}
	s := of.service
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	near := b.nearness(of, n)
	type group struct {
		locality string
		priority uint32
	}
	groups := map[group]*endpointv3.LocalityLbEndpoints{}
	ordered := len(near.priorities()) > 0
	seen := map[string]bool{}
	weighted := false
	for _, e := range b.endpoints(s, of.port, n.Host) {
		if !policy.HasLabels(e.labels, of.subset.GetLabels()) || seen[e.address] {
			continue // gRPC refuses an endpoint set that has an address twice
		}
		seen[e.address] = true
		host, number, err := splitAddress(e.address)
		if err != nil {
			return nil, fmt.Errorf("%s %s: endpoint %s: %w", s.Kind, s.Name, e.address, err)
		}
		key := group{locality: e.locality}
		if ordered {
			key.priority = near.priority(locality(e.locality), e.labels)
		}
		g := groups[key]
		if g == nil {
			g = &endpointv3.LocalityLbEndpoints{Locality: locality(e.locality), LoadBalancingWeight: wrapperspb.UInt32(0), Priority: key.priority}
			groups[key] = g
			out.Endpoints = append(out.Endpoints, g)
		}
		weight := max(e.weight, 1)
		weighted = weighted || weight != 1
		var metadata *corev3.Metadata
		if e.mutualTLS && b.client.Agent != GRPC {
			metadata = mutualTLSMetadata()
		}
		g.LbEndpoints = append(g.LbEndpoints, &endpointv3.LbEndpoint{
			Metadata:            metadata,
			HealthStatus:        corev3.HealthStatus_HEALTHY,
			LoadBalancingWeight: wrapperspb.UInt32(weight),
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
					Address:       host,
					PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: number},
				}}},
			}},
		})
	}
	if weighted && b.client.Agent == GRPC {
		at := s.Kind + " " + s.Namespace + "/" + s.Name
		if of.rule != nil {
			at = about(&of.rule.Meta)
		}
		b.note(at, "gRPC divides by the weights of localities and ignores those of endpoints within one")
	}
	slices.SortFunc(out.Endpoints, func(a, b *endpointv3.LocalityLbEndpoints) int {
		return cmp.Or(strings.Compare(localityKey(a.Locality), localityKey(b.Locality)), cmp.Compare(a.Priority, b.Priority))
	})
	fitWeights(out)
	near.apply(out)
	for _, g := range out.Endpoints {
		slices.SortFunc(g.LbEndpoints, func(a, b *endpointv3.LbEndpoint) int {
			x, y := a.GetEndpoint().GetAddress().GetSocketAddress(), b.GetEndpoint().GetAddress().GetSocketAddress()
			if c := strings.Compare(x.GetAddress(), y.GetAddress()); c != 0 {
				return c
			}
			return int(x.GetPortValue()) - int(y.GetPortValue())
		})
	}
	return out, nil
}

// nearness is what orders the endpoints of a cluster for the client.
func (b *builder) nearness(of *target, n TrafficName) *nearness {
	out := b.byPlace(b.policyOf(of, n))
	if n.ByLabels {
		out.labels = b.client.Labels
	}
	return out
}

// fitWeights gives each locality the sum of its endpoints' weights. Sums must
// stay in 32 bits (Envoy and gRPC refuse more): where they would not, all
// weights shrink in proportion, but to no less than 1.
func fitWeights(a *endpointv3.ClusterLoadAssignment) {
	total := uint64(0)
	for _, g := range a.Endpoints {
		for _, e := range g.LbEndpoints {
			total += uint64(e.LoadBalancingWeight.Value)
		}
	}
	shift := 0
	for total>>shift > math.MaxUint32/2 { // half leaves room for weights that shrink to less than 1
		shift++
	}
	for _, g := range a.Endpoints {
		for _, e := range g.LbEndpoints {
			e.LoadBalancingWeight.Value = max(e.LoadBalancingWeight.Value>>shift, 1)
			g.LoadBalancingWeight.Value += e.LoadBalancingWeight.Value
		}
	}
}

// endpoint is one address behind a service.
type endpoint struct {
	address  string // "ip:port" or "name:port"
	labels   map[string]string
	weight   uint32
	locality string
	// mutualTLS: it is connected to by the mesh's mutual TLS where nothing else is configured.
	mutualTLS bool
}

// endpoints returns a service's endpoints. A ServiceEntry with resolution DNS that
// lists none is the host itself: the client looks the name up when it connects.
func (b *builder) endpoints(s *policy.Service, port policy.Port, host string) []endpoint {
	all := b.view.set.EndpointsOf(s, port)
	if len(all) == 0 && isLookedUp(s, host) {
		number := port.Number
		if port.Target != 0 {
			number = port.Target
		}
		return []endpoint{{address: net.JoinHostPort(host, strconv.FormatUint(uint64(number), 10)), weight: 1}}
	}
	out := make([]endpoint, len(all))
	for i, e := range all {
		w := e.Workload
		out[i] = endpoint{
			address: e.Address, labels: w.Labels, weight: w.Weight, locality: w.Locality,
			mutualTLS: b.takesMutualTLS(s, w, w.PortFor(port)),
		}
	}
	return out
}

// splitAddress splits the address of an endpoint; a name is as good as an IP
// where the client dials (Sinew, gRPC in Go).
func splitAddress(address string) (host string, port uint32, err error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not a port", p)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.String()
	}
	return host, uint32(n), nil
}

// locality splits region/zone/subzone. gRPC refuses a group of endpoints without one, so it is never nil.
func locality(s string) *corev3.Locality {
	var parts [3]string
	copy(parts[:], strings.SplitN(s, "/", 3))
	return &corev3.Locality{Region: parts[0], Zone: parts[1], SubZone: parts[2]}
}

func localityKey(l *corev3.Locality) string {
	return l.GetRegion() + "/" + l.GetZone() + "/" + l.GetSubZone()
}

// countNames counts the endpoints of a cluster, and those that have a name where others
// have an IP address.
func (b *builder) countNames(of *target, n TrafficName) (names, total int) {
	workloads := b.view.set.WorkloadsOf(of.service)
	if len(workloads) == 0 && isLookedUp(of.service, n.Host) {
		return 1, 1
	}
	for _, w := range workloads {
		if !policy.HasLabels(w.Labels, of.subset.GetLabels()) {
			continue
		}
		total++
		if _, err := netip.ParseAddr(w.Address); err != nil {
			names++
		}
	}
	return names, total
}

// isLookedUp reports whether a service without endpoints is its host, which the client looks up.
func isLookedUp(s *policy.Service, host string) bool {
	dns := s.Resolution == networking.ServiceEntry_DNS || s.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN
	return dns && s.Selector == nil && !strings.HasPrefix(host, "*")
}
