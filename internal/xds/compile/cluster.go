package compile

import (
	"math"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
)

const (
	// DefaultConnectTimeout is the limit of a cluster that does not set one
	// (envoy.config.cluster.v3.Cluster.connect_timeout).
	DefaultConnectTimeout = 5 * time.Second
	// DefaultPanicThreshold is the percentage of a cluster that does not set one
	// (envoy.config.cluster.v3.Cluster.CommonLbConfig.healthy_panic_threshold).
	DefaultPanicThreshold = 50
)

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
	c := &snapshot.Cluster{Name: m.GetName(), Service: m.GetName(), PanicThreshold: DefaultPanicThreshold}
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
	if c.LB, f = balancing(m); f != nil {
		return nil, f
	}
	if p := m.GetCommonLbConfig().GetHealthyPanicThreshold(); p != nil {
		if c.PanicThreshold = p.GetValue(); !isPercent(c.PanicThreshold) {
			return nil, faultf("common_lb_config.healthy_panic_threshold.value", "%v is not between 0 and 100", p.GetValue())
		}
	}
	if f := circuitBreakers(m.GetCircuitBreakers(), c); f != nil {
		return nil, f.under("circuit_breakers")
	}
	if m.GetOutlierDetection() != nil {
		if c.Outlier, f = outlier(m.GetOutlierDetection()); f != nil {
			return nil, f.under("outlier_detection")
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
		if m.GetEdsClusterConfig() != nil {
			return faultf("eds_cluster_config", "not supported in a cluster of type STATIC")
		}
		if m.GetLoadAssignment() == nil {
			return faultf("load_assignment", "missing")
		}
		eps, f := loadAssignment(m.GetLoadAssignment(), ipOnly)
		c.Endpoints = eps
		return f.under("load_assignment")
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

// circuitBreakers reads the thresholds of priority DEFAULT: the first of them,
// as Envoy. No request has priority HIGH, because a route that sets it is refused.
func circuitBreakers(m *clusterv3.CircuitBreakers, c *snapshot.Cluster) *fault {
	c.Limits = resilience.DefaultLimits
	for i, t := range m.GetThresholds() {
		if t.GetPriority() != 0 {
			continue
		}
		number(&c.Limits.MaxConnections, t.GetMaxConnections())
		number(&c.Limits.MaxPendingRequests, t.GetMaxPendingRequests())
		number(&c.Limits.MaxRequests, t.GetMaxRequests())
		number(&c.Limits.MaxRetries, t.GetMaxRetries())
		budget, f := retryBudget(t.GetRetryBudget())
		if f != nil {
			return f.under("retry_budget").underIndex("thresholds", i)
		}
		c.RetryBudget = budget
		break
	}
	return nil
}

func retryBudget(m *clusterv3.CircuitBreakers_Thresholds_RetryBudget) (*resilience.RetryBudget, *fault) {
	if m == nil {
		return nil, nil
	}
	b := resilience.DefaultRetryBudget
	if m.GetBudgetPercent() != nil {
		if b.Percent = m.GetBudgetPercent().GetValue(); !isPercent(b.Percent) {
			return nil, faultf("budget_percent.value", "%v is not between 0 and 100", b.Percent)
		}
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
