package compile

import (
	"maps"
	"math"
	"net/http"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// destinations reads where a route's requests go.
func destinations(m *routev3.RouteAction, r *snapshot.Route, filters filterLevels) *fault {
	var f *fault
	switch spec := m.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		if spec.Cluster == "" {
			return faultf("cluster", "is empty")
		}
		r.Clusters, f = weighted([]routing.WeightedCluster{{Name: spec.Cluster, Weight: 1}})
	case *routev3.RouteAction_WeightedClusters:
		f = weightedClusters(spec.WeightedClusters, r, filters).under("weighted_clusters")
	case *routev3.RouteAction_ClusterHeader:
		r.ClusterHeader, f = headerName("cluster_header", spec.ClusterHeader)
	case *routev3.RouteAction_ClusterSpecifierPlugin:
		f = faultf("cluster_specifier_plugin", notSupported)
	case *routev3.RouteAction_InlineClusterSpecifierPlugin:
		f = faultf("inline_cluster_specifier_plugin", notSupported)
	default:
		f = faultf("", "none of cluster, weighted_clusters and cluster_header is set")
	}
	if f != nil {
		return f
	}
	switch m.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_SERVICE_UNAVAILABLE:
		r.ClusterNotFound = http.StatusServiceUnavailable
	case routev3.RouteAction_NOT_FOUND:
		r.ClusterNotFound = http.StatusNotFound
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		r.ClusterNotFound = http.StatusInternalServerError
	default:
		f = faultf("cluster_not_found_response_code", "value %d is not known", m.GetClusterNotFoundResponseCode())
	}
	return f
}

// subset reads the metadata that endpoints have to have. That of filters other
// than the balancer's says nothing of endpoints.
func subset(m *corev3.Metadata) (map[string]string, *fault) {
	fields := m.GetFilterMetadata()[balancerMetadata].GetFields()
	if len(fields) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(fields))
	for _, key := range sortedKeys(fields) {
		text, ok := fields[key].GetKind().(*structpb.Value_StringValue)
		if !ok {
			return nil, faultf(key, "must be a text: other values are not supported").underKey("filter_metadata", balancerMetadata)
		}
		out[key] = text.StringValue
	}
	return out, nil
}

func weightedClusters(m *routev3.WeightedCluster, r *snapshot.Route, filters filterLevels) *fault {
	var clusters []routing.WeightedCluster
	var legs []snapshot.Leg
	sum, particular := uint64(0), false
	for i, c := range m.GetClusters() {
		leg, own, f := clusterWeight(c, r, filters)
		if f != nil {
			return f.underIndex("clusters", i)
		}
		if weight := c.GetWeight().GetValue(); weight > 0 { // one without weight is never chosen
			clusters = append(clusters, routing.WeightedCluster{Name: c.GetName(), Weight: weight})
			legs = append(legs, leg)
			particular = particular || own
			sum += uint64(weight)
		}
	}
	switch {
	case len(m.GetClusters()) == 0:
		return faultf("clusters", "there is none")
	case sum == 0:
		return faultf("clusters", "the sum of the weights is 0")
	case sum > math.MaxUint32:
		return faultf("clusters", "the sum of the weights exceeds %d", uint32(math.MaxUint32))
	}
	if particular {
		r.Legs = legs
	}
	var f *fault
	r.Clusters, f = weighted(clusters)
	return f
}

// clusterWeight reads one destination of several. own reports whether it has anything to itself.
func clusterWeight(m *routev3.WeightedCluster_ClusterWeight, r *snapshot.Route, filters filterLevels) (leg snapshot.Leg, own bool, f *fault) {
	switch {
	case m.GetName() != "" && m.GetClusterHeader() != "":
		return leg, false, faultf("cluster_header", "can not be set beside name")
	case m.GetClusterHeader() != "":
		leg.ClusterHeader, f = headerName("cluster_header", m.GetClusterHeader())
		own = true
	case m.GetName() == "":
		f = faultf("name", "is empty")
	}
	if f == nil && m.GetWeight() == nil {
		f = faultf("weight", "missing")
	}
	if f != nil {
		return leg, false, f
	}
	c, f := headerChanges(m)
	if f != nil {
		return leg, false, f
	}
	leg.RequestHeaders, leg.ResponseHeaders = c.request, c.response
	own = own || !c.request.Empty() || !c.response.Empty()
	if leg.Host, f = authority("host_rewrite_literal", m.GetHostRewriteLiteral()); f != nil {
		return leg, false, f
	}
	leg.Subset = r.Subset
	more, f := subset(m.GetMetadataMatch())
	if f != nil {
		return leg, false, f.under("metadata_match")
	}
	if len(more) > 0 {
		leg.Subset = make(map[string]string, len(r.Subset)+len(more))
		maps.Copy(leg.Subset, r.Subset)
		maps.Copy(leg.Subset, more)
		own = true
	}
	below, f := filters.with(m.GetTypedPerFilterConfig(), nil)
	if f != nil {
		return leg, false, f
	}
	if len(below) > len(filters) {
		leg.Filters, leg.OwnFilters = below.inForce(), true
	}
	return leg, own || leg.Host != "" || leg.OwnFilters, nil
}

func weighted(clusters []routing.WeightedCluster) (routing.Weighted, *fault) {
	w, err := routing.NewWeighted(clusters)
	if err != nil {
		return routing.Weighted{}, faultf("", "%v", err)
	}
	return w, nil
}
