package translate

import (
	"cmp"
	"math"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// Labels that say where a workload is
// (https://istio.io/latest/docs/reference/config/labels/).
const (
	regionLabel   = "topology.kubernetes.io/region"
	zoneLabel     = "topology.kubernetes.io/zone"
	subzoneLabel  = "topology.istio.io/subzone"
	localityLabel = "istio-locality" // all three in one, with dots or slashes between them
)

// nearness orders endpoints for one client.
type nearness struct {
	setting *networking.LocalityLoadBalancerSetting  // nil where places do not count
	zones   *networking.ZoneAwareLoadBalancerSetting // or this
	from    *corev3.Locality
	labels  map[string]string // of the client, where they count
	failing bool              // endpoints that fail are known, so that others can take over
}

// byPlace is how a cluster's clients choose by place: as the DestinationRule says,
// whole, or else as the mesh does.
func (b *builder) byPlace(tp *networking.TrafficPolicy) *nearness {
	n := &nearness{from: b.client.Locality, failing: tp.GetOutlierDetection() != nil}
	isOff := func(enabled *wrapperspb.BoolValue) bool { return enabled != nil && !enabled.GetValue() }
	lb, mesh := tp.GetLoadBalancer(), b.view.set.MeshConfig
	switch zones, own := lb.GetZoneAwareLbSetting(), lb.GetLocalityLbSetting(); {
	case zones != nil && !isOff(zones.GetEnabled()):
		n.zones = zones
	case own != nil:
		if !isOff(own.GetEnabled()) {
			n.setting = own
		}
	case zones == nil && mesh.ZoneAware() != nil:
		n.zones = mesh.ZoneAware()
	default:
		n.setting = mesh.Locality()
	}
	return n
}

// priorities are the labels that order endpoints, if any do.
func (n *nearness) priorities() []string {
	if n.zones != nil {
		return n.zones.GetFailoverPriority()
	}
	if !n.failing || len(n.setting.GetDistribute()) > 0 {
		return nil
	}
	return n.setting.GetFailoverPriority()
}

// byLabels reports whether the order depends on labels of the client other than those of its place.
func (n *nearness) byLabels() bool {
	return slices.ContainsFunc(n.priorities(), func(label string) bool {
		return !strings.Contains(label, "=") && label != regionLabel && label != zoneLabel && label != subzoneLabel
	})
}

// localityConfig has a cluster choose a locality first: by its weight, or the client's own zone.
func (b *builder) localityConfig(c *clusterv3.Cluster, tp *networking.TrafficPolicy, at string) {
	n := b.byPlace(tp)
	switch {
	case b.client.Agent == GRPC: // it always chooses a locality by its weight
		if n.zones != nil {
			b.note(at+".trafficPolicy.loadBalancer.zoneAwareLbSetting", "gRPC keeps to the region, not to the zone")
		}
	case n.zones != nil:
		zones := &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig{}
		if size := n.zones.GetMinClusterSize(); size != nil {
			zones.MinClusterSize = wrapperspb.UInt64(uint64(size.GetValue()))
		}
		c.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig_{ZoneAwareLbConfig: zones}
	case n.setting != nil:
		c.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}
	}
}

// priority of an endpoint with these labels: how many of the labels in order do not
// count, because they or one before them differ from the client's.
func (n *nearness) priority(at *corev3.Locality, labels map[string]string) uint32 {
	list := n.priorities()
	have := func(labels map[string]string, l *corev3.Locality, key string) string {
		switch {
		case key == regionLabel && l.GetRegion() != "":
			return l.GetRegion()
		case key == zoneLabel && l.GetZone() != "":
			return l.GetZone()
		case key == subzoneLabel && l.GetSubZone() != "":
			return l.GetSubZone()
		}
		return labels[key]
	}
	for i, label := range list {
		key, want, given := strings.Cut(label, "=")
		if !given {
			want = have(n.labels, n.from, key)
		}
		if want != have(labels, at, key) {
			return uint32(len(list) - i)
		}
	}
	return 0
}

// apply sets priorities and weights of a set whose groups have those by labels already.
// https://istio.io/latest/docs/reference/config/networking/destination-rule/#LocalityLoadBalancerSetting
func (n *nearness) apply(a *endpointv3.ClusterLoadAssignment) {
	s := n.setting
	switch {
	case n.zones != nil:
		// The region counts in any case; zones are the client's to choose.
		for _, g := range a.Endpoints {
			g.Priority = g.Priority*3 + n.outside(g.Locality)
		}
		compact(a)
	case s == nil:
	case len(s.GetDistribute()) > 0:
		n.distribute(a)
	case n.failing:
		if len(s.GetFailoverPriority()) == 0 || len(s.GetFailover()) > 0 {
			for _, g := range a.Endpoints {
				// At most five places differ.
				g.Priority = g.Priority*5 + n.distance(g.Locality)
			}
		}
		compact(a)
	}
}

// distance is 0 for the client's own subzone, and 1 to 4 for its zone, its region,
// others, and those others that failover does not name.
func (n *nearness) distance(l *corev3.Locality) uint32 {
	switch {
	case n.from.GetRegion() != l.GetRegion():
		return 2 + n.outside(l)
	case n.from.GetZone() != l.GetZone():
		return 2
	case n.from.GetSubZone() != l.GetSubZone():
		return 1
	}
	return 0
}

// outside is 0 for the client's own region, 1 for others, and 2 for those that failover does not name.
func (n *nearness) outside(l *corev3.Locality) uint32 {
	if n.from.GetRegion() == l.GetRegion() {
		return 0
	}
	type failover interface {
		GetFrom() string
		GetTo() string
	}
	var list []failover
	for _, f := range n.setting.GetFailover() {
		list = append(list, f)
	}
	for _, f := range n.zones.GetFailover() {
		list = append(list, f)
	}
	for _, f := range list {
		if f.GetFrom() == n.from.GetRegion() {
			if l.GetRegion() != f.GetTo() {
				return 2
			}
			break
		}
	}
	return 1
}

// compact leaves no gaps between priorities: gRPC refuses a set that has any.
func compact(a *endpointv3.ClusterLoadAssignment) {
	var used []uint32
	for _, g := range a.Endpoints {
		used = append(used, g.Priority)
	}
	slices.Sort(used)
	used = slices.Compact(used)
	for _, g := range a.Endpoints {
		i, _ := slices.BinarySearch(used, g.Priority)
		g.Priority = uint32(i)
	}
}

// distribute gives localities the weights that the first rule for the client's place
// names, and leaves out those that it does not name. Where one pattern covers several,
// they share by their own weights.
func (n *nearness) distribute(a *endpointv3.ClusterLoadAssignment) {
	for _, d := range n.setting.GetDistribute() {
		if !lies(n.from, d.GetFrom()) {
			continue
		}
		left := slices.Clone(a.Endpoints)
		var kept []*endpointv3.LocalityLbEndpoints
		for _, to := range sortedPlaces(d.GetTo()) {
			var here []*endpointv3.LocalityLbEndpoints
			total := uint64(0)
			left = slices.DeleteFunc(left, func(g *endpointv3.LocalityLbEndpoints) bool {
				if !lies(g.Locality, to) {
					return false
				}
				here = append(here, g)
				total += uint64(g.GetLoadBalancingWeight().GetValue())
				return true
			})
			for _, g := range here {
				share := float64(g.GetLoadBalancingWeight().GetValue()) * float64(d.GetTo()[to]) / float64(max(total, 1))
				g.LoadBalancingWeight = wrapperspb.UInt32(uint32(math.Ceil(share)))
			}
			kept = append(kept, here...)
		}
		slices.SortFunc(kept, func(a, b *endpointv3.LocalityLbEndpoints) int {
			return strings.Compare(localityKey(a.Locality), localityKey(b.Locality))
		})
		a.Endpoints = kept
		return
	}
}

// sortedPlaces has the more particular before those that cover them.
func sortedPlaces(to map[string]uint32) []string {
	var out []string
	for place := range to {
		out = append(out, place)
	}
	slices.SortFunc(out, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(b, "/"), strings.Count(a, "/")), cmp.Compare(strings.Count(a, "*"), strings.Count(b, "*")), strings.Compare(a, b))
	})
	return out
}

// lies reports whether a place is one that "region/zone/subzone" covers, where what is
// left out or is "*" stands for all.
func lies(l *corev3.Locality, pattern string) bool {
	parts := strings.SplitN(pattern, "/", 3)
	for i, have := range []string{l.GetRegion(), l.GetZone(), l.GetSubZone()} {
		if i >= len(parts) {
			return true
		}
		if parts[i] != "*" && parts[i] != have && !(i > 0 && parts[i] == "") {
			return false
		}
	}
	return true
}

// placeOf is where a client is: its workload's label, what its node says, or the labels
// that its node has in Kubernetes.
func placeOf(node *corev3.Locality, labels map[string]string) *corev3.Locality {
	if text := labels[localityLabel]; text != "" {
		if !strings.Contains(text, "/") {
			text = strings.ReplaceAll(text, ".", "/")
		}
		return locality(text)
	}
	if node.GetRegion() != "" || node.GetZone() != "" || node.GetSubZone() != "" {
		return &corev3.Locality{Region: node.GetRegion(), Zone: node.GetZone(), SubZone: node.GetSubZone()}
	}
	return &corev3.Locality{Region: labels[regionLabel], Zone: labels[zoneLabel], SubZone: labels[subzoneLabel]}
}
