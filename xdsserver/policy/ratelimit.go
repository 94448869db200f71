package policy

import (
	"slices"
)

// Server is a Linkerd Server: a port of some workloads, which other objects refer to
// (https://linkerd.io/2/reference/authorization-policy/#server).
type Server struct {
	Meta
	Spec *ServerSpec
}

// ServerSpec is the spec of a Server. One that restricts access by itself is refused.
type ServerSpec struct {
	PodSelector LabelSelector `json:"podSelector"`
	// Port is the workload's port, PortName its name where it is given by that.
	Port          uint32 `json:"port,omitempty"`
	PortName      string `json:"portName,omitempty"`
	ProxyProtocol string `json:"proxyProtocol,omitempty"`
	AccessPolicy  string `json:"accessPolicy,omitempty"`
}

// LabelSelector is Kubernetes' selector: all of its labels and expressions must hold.
type LabelSelector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []LabelExpression `json:"matchExpressions,omitempty"`
}

// LabelExpression is a condition on one label: In, NotIn, Exists or DoesNotExist.
type LabelExpression struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

// Selects reports whether the selector selects labels. An empty one selects all. NotIn
// holds where the label is absent, as in Kubernetes.
func (s *LabelSelector) Selects(labels map[string]string) bool {
	for _, e := range s.MatchExpressions {
		value, has := labels[e.Key]
		in := has && slices.Contains(e.Values, value)
		switch e.Operator {
		case "In":
			if !in {
				return false
			}
		case "NotIn":
			if in {
				return false
			}
		case "Exists":
			if !has {
				return false
			}
		case "DoesNotExist":
			if has {
				return false
			}
		}
	}
	return HasLabels(labels, s.MatchLabels)
}

// RateLimitPolicy is a Linkerd HTTPLocalRateLimitPolicy: how many requests a workload
// takes at the port of a Server
// (https://linkerd.io/2/reference/rate-limiting/).
type RateLimitPolicy struct {
	Meta
	Spec *RateLimitSpec
}

// RateLimitSpec has limits that hold together. Each instance of the workload counts
// for itself.
type RateLimitSpec struct {
	Server string `json:"server"` // name of the Server, in the same namespace
	// Total is the limit of all clients together, in requests per second; 0 is none.
	Total uint32 `json:"total,omitempty"`
	// Identity is the limit of each client, in requests per second; 0 is none. Clients
	// without an identity share one limit.
	Identity uint32 `json:"identity,omitempty"`
	// Overrides take the place of Identity for the clients that they name; the first
	// that names a client counts.
	Overrides []RateLimitOverride `json:"overrides,omitempty"`
}

// RateLimitOverride is the limit of each of some clients, in requests per second.
type RateLimitOverride struct {
	RequestsPerSecond uint32           `json:"requestsPerSecond"`
	Clients           []ServiceAccount `json:"clients"`
}

// RateLimitFor returns the limits of a workload's port (that at the workload, not the
// service's), or nil. Of several policies for one port the oldest decides, as in Linkerd.
func (s *Set) RateLimitFor(labels map[string]string, namespace string, port uint32) *RateLimitPolicy {
	x := s.lookup().access
	for _, p := range x.limits[namespace] {
		for _, server := range x.servers[namespace] {
			if server.Name == p.Spec.Server && s.serves(server, labels, port) {
				return p
			}
		}
	}
	return nil
}

// serves reports whether the Server is the port of a workload of its namespace.
func (s *Set) serves(server *Server, labels map[string]string, port uint32) bool {
	if !server.Spec.PodSelector.Selects(labels) {
		return false
	}
	if server.Spec.PortName != "" {
		return s.portNamed(labels, server.Namespace, server.Spec.PortName, port)
	}
	return server.Spec.Port == port
}
