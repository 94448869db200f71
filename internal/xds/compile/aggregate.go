package compile

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// customType reads a cluster whose type is an extension.
func customType(m *clusterv3.Cluster, c *snapshot.Cluster) *fault {
	config := m.GetClusterType().GetTypedConfig()
	switch {
	case config.MessageIs((*aggregatev3.ClusterConfig)(nil)):
		if m.GetLoadAssignment() != nil {
			return faultf("load_assignment", "not supported in an aggregate cluster")
		}
		if len(m.GetHealthChecks()) > 0 {
			return faultf("health_checks", "not supported in an aggregate cluster, whose own clusters have them")
		}
		return aggregate(config, c).under("typed_config").under("cluster_type")
	case config.MessageIs((*dnsv3.DnsCluster)(nil)):
		return newDNS(config, m.GetLoadAssignment(), c)
	default:
		return faultf("cluster_type", "%q of type %q is not supported", m.GetClusterType().GetName(), typeName(config))
	}
}

// aggregate reads the clusters of an aggregate, each once. That they exist is
// seen when they are asked for.
func aggregate(config *anypb.Any, c *snapshot.Cluster) *fault {
	var m aggregatev3.ClusterConfig
	if f := extension(config, &m); f != nil {
		return f
	}
	c.Discovery = snapshot.Aggregate
	seen := make(map[string]bool, len(m.GetClusters()))
	for i, name := range m.GetClusters() {
		if name == "" {
			return faultf("", "is empty").underIndex("clusters", i)
		}
		if !seen[name] {
			seen[name] = true
			c.Underlying = append(c.Underlying, name)
		}
	}
	if len(c.Underlying) == 0 {
		return faultf("clusters", "there is none")
	}
	return nil
}
