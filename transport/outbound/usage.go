package outbound

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
)

// channel is how a request travels.
type channel uint8

const (
	plaintext channel = iota
	// ordinaryTLS is TLS without a certificate of ours: policy's, or that of the caller's https URL.
	ordinaryTLS
	mutualTLS
	channels
)

// usage counts a cluster's attempts by how they travelled.
type usage [channels]atomic.Uint64

func channelOf(security *snapshot.ClientTLS, scheme string) channel {
	switch {
	case security != nil && security.Certificate != (snapshot.CertificateSource{}):
		return mutualTLS
	case security != nil || scheme == "https":
		return ordinaryTLS
	default:
		return plaintext
	}
}

// count leaves out attempts that sent nothing: they travelled in no way.
func (u *usage) count(c channel, o *resilience.Outcome) {
	switch o.Failure {
	case resilience.ConnectFailure, resilience.LocalError, resilience.Overflow:
	default:
		u[c].Add(1)
	}
}

// ClusterUsage counts the attempts to one cluster by how they travelled. An
// attempt for which no connection came about is not counted.
type ClusterUsage struct {
	Cluster   string `json:"cluster"`
	Service   string `json:"service,omitempty"` // the host that the cluster stands for
	Plaintext uint64 `json:"plaintext"`
	// MutualTLS is TLS on which this process presented its certificate where it was asked for one.
	MutualTLS uint64 `json:"mutual_tls"`
	// TLS is every other TLS: by policy without a certificate, or asked for by the caller's https URL.
	TLS uint64 `json:"tls"`
}

// Usage returns the counts of the clusters that are known at present, hosts
// outside the mesh among them, sorted by name. A cluster that leaves policy
// takes its counts along.
func (e *Engine) Usage() []ClusterUsage {
	list := []ClusterUsage{}
	add := func(c *Cluster) {
		list = append(list, ClusterUsage{
			Cluster: c.name, Service: c.current.Load().config.Service,
			Plaintext: c.usage[plaintext].Load(), MutualTLS: c.usage[mutualTLS].Load(), TLS: c.usage[ordinaryTLS].Load(),
		})
	}
	for _, c := range e.view.Load().clusters {
		add(c)
	}
	e.mu.Lock()
	for _, h := range e.external {
		add(h.routes[0].legs[0].cluster)
	}
	e.mu.Unlock()
	slices.SortFunc(list, func(a, b ClusterUsage) int { return strings.Compare(a.Cluster, b.Cluster) })
	return list
}
