package compile

import (
	"math"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
)

// DefaultConnectTimeout is the limit of a cluster that does not set one
// (envoy.config.cluster.v3.Cluster.connect_timeout).
const DefaultConnectTimeout = 5 * time.Second

// Cluster compiles a Cluster. name is set where it could be read, even with
// an error.
func Cluster(resource *anypb.Any) (name string, c *snapshot.Cluster, err error) {
	var m clusterv3.Cluster
	wrapper, f := open(resource, &m)
	name = named(m.GetName(), wrapper)
	if f == nil {
		c, f = cluster(&m)
	}
	if f != nil {
		return name, nil, f.of("Cluster", name)
	}
	return name, c, nil
}

func cluster(m *clusterv3.Cluster) (*snapshot.Cluster, *fault) {
	if f := unlisted(m.ProtoReflect()); f != nil {
		return nil, f
	}
	if m.GetName() == "" {
		return nil, faultf("name", "is empty")
	}
	c := &snapshot.Cluster{Name: m.GetName(), Service: m.GetName()}
	if service, subset, ok := istioName(m.GetName()); ok {
		c.Service, c.Subset = service, subset
	}
	if f := discovery(m, c); f != nil {
		return nil, f
	}
	for i, filter := range m.GetFilters() {
		if kind, f := filterType(filter.GetTypedConfig()); f != nil {
			return nil, f.under("typed_config").underIndex("filters", i)
		} else if !harmlessFilters[kind] {
			return nil, faultf("", "filter %q of type %q is not supported", filter.GetName(), kind).underIndex("filters", i)
		}
	}
	var f *fault
	if c.ConnectTimeout, f = positive("connect_timeout", m.GetConnectTimeout(), DefaultConnectTimeout); f != nil {
		return nil, f
	}
	if c.LB, f = balancing(m, c.Discovery); f != nil {
		return nil, f
	}
	if f := ownFields(m, c); f != nil {
		return nil, f
	}
	if c.HealthChecks, f = healthChecks(m.GetHealthChecks(), m.GetName()); f != nil {
		return nil, f
	}
	if f := circuitBreakers(m.GetCircuitBreakers(), c); f != nil {
		return nil, f.under("circuit_breakers")
	}
	if m.GetOutlierDetection() != nil {
		if c.Outlier, f = outlier(m.GetOutlierDetection()); f != nil {
			return nil, f.under("outlier_detection")
		}
	}
	if k := m.GetUpstreamConnectionOptions().GetTcpKeepalive(); k != nil {
		if c.KeepAlive, f = keepAlive(k); f != nil {
			return nil, f.under("tcp_keepalive").under("upstream_connection_options")
		}
	}
	n, f := protocol(m, c)
	if f == nil {
		f = sockets(m, n, c)
	}
	if f != nil {
		return nil, f
	}
	return c, nil
}

// discovery reads where the endpoints come from.
func discovery(m *clusterv3.Cluster, c *snapshot.Cluster) *fault {
	custom, eds := m.GetClusterType() != nil, m.GetEdsClusterConfig() != nil
	if kind := m.GetType(); eds && (custom || kind != clusterv3.Cluster_EDS) {
		if custom {
			return faultf("eds_cluster_config", "not supported beside cluster_type")
		}
		if kind != clusterv3.Cluster_ORIGINAL_DST { // refused as such
			return faultf("eds_cluster_config", "not supported in a cluster of type %v", kind)
		}
	}
	if custom {
		return customType(m, c)
	}
	dns, f := oldRates(m)
	if f != nil {
		return f
	}
	switch m.GetType() {
	case clusterv3.Cluster_EDS:
		if m.GetLoadAssignment() != nil {
			return faultf("load_assignment", "not supported in a cluster of type EDS")
		}
		if f := overADS(m.GetEdsClusterConfig().GetEdsConfig()); f != nil {
			return f.under("eds_config").under("eds_cluster_config")
		}
		c.EndpointsName = m.GetEdsClusterConfig().GetServiceName()
		if c.EndpointsName == "" {
			if strings.HasPrefix(m.GetName(), "xdstp:") {
				return faultf("eds_cluster_config.service_name", "is empty, which an xdstp name does not allow (gRFC A47)")
			}
			c.EndpointsName = m.GetName()
		}
		return nil
	case clusterv3.Cluster_STATIC:
		// Without load_assignment there are no endpoints: Istio's BlackHoleCluster is so.
		eps, f := loadAssignment(m.GetLoadAssignment(), ipOnly)
		c.Endpoints = eps
		return f.under("load_assignment")
	case clusterv3.Cluster_STRICT_DNS:
		c.Discovery = snapshot.StrictDNS
		return oldDNS(m, dns, c)
	case clusterv3.Cluster_LOGICAL_DNS:
		c.Discovery = snapshot.LogicalDNS
		return oldDNS(m, dns, c)
	default:
		return faultf("type", "%v is not supported", m.GetType())
	}
}

// istioName splits a name of Istio's form, "outbound|port|subset|host".
func istioName(name string) (service, subset string, ok bool) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 || parts[3] == "" {
		return "", "", false
	}
	return parts[3], parts[2], true
}

// circuitBreakers reads the thresholds of each priority: the first of them, as Envoy.
func circuitBreakers(m *clusterv3.CircuitBreakers, c *snapshot.Cluster) *fault {
	c.Limits, c.HighLimits = resilience.DefaultLimits, resilience.DefaultLimits
	var seen [resilience.Priorities]bool
	for i, t := range m.GetThresholds() {
		p, limits, budget := resilience.DefaultPriority, &c.Limits, &c.RetryBudget
		switch t.GetPriority() {
		case corev3.RoutingPriority_DEFAULT:
		case corev3.RoutingPriority_HIGH:
			p, limits, budget = resilience.HighPriority, &c.HighLimits, &c.HighRetryBudget
		default:
			return faultf("priority", "value %d is not known", t.GetPriority()).underIndex("thresholds", i)
		}
		if seen[p] {
			continue
		}
		seen[p] = true
		number(&limits.MaxConnections, t.GetMaxConnections())
		number(&limits.MaxPendingRequests, t.GetMaxPendingRequests())
		number(&limits.MaxRequests, t.GetMaxRequests())
		number(&limits.MaxRetries, t.GetMaxRetries())
		var f *fault
		if *budget, f = retryBudget(t.GetRetryBudget()); f != nil {
			return f.under("retry_budget").underIndex("thresholds", i)
		}
	}
	return nil
}

func retryBudget(m *clusterv3.CircuitBreakers_Thresholds_RetryBudget) (*resilience.RetryBudget, *fault) {
	if m == nil {
		return nil, nil
	}
	b := resilience.DefaultRetryBudget
	if f := percent("budget_percent", m.GetBudgetPercent(), &b.Percent); f != nil {
		return nil, f
	}
	number(&b.MinConcurrency, m.GetMinRetryConcurrency())
	if d, f := duration("budget_interval", m.GetBudgetInterval(), 0); f != nil {
		return nil, f
	} else if d != 0 {
		return nil, faultf("budget_interval", "not supported: only requests in flight count")
	}
	return &b, nil
}

// number sets n where the field is set.
func number(n *uint32, field *wrapperspb.UInt32Value) {
	if field != nil {
		*n = field.GetValue()
	}
}

func isPercent(v float64) bool { return !math.IsNaN(v) && v >= 0 && v <= 100 }
