package outbound

import (
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Endpoint is the live state of one address of one cluster. It stays the same
// value while the address stays in the cluster.
type Endpoint struct {
	Address string

	active   atomic.Int64
	counted  atomic.Int64 // those of active that the cluster's held counts
	requests atomic.Uint64
	failures atomic.Uint64
	gone     atomic.Bool
	cluster  *Cluster

	// spec is what policy says of the endpoint: a value of the newest set.
	spec atomic.Pointer[lb.Endpoint]
	// dial is where connections go at present, if not to Address.
	dial atomic.Pointer[string]

	streak  atomic.Uint64 // resilience.Streak
	ejected atomic.Bool   // as ejection.Ejected, for readers without the cluster's mutex
	latency atomic.Uint64 // lb.Latency
	joined  atomic.Int64  // ns after the cluster's epoch
	load    atomic.Pointer[lb.ClientLoad]
	rates   atomic.Pointer[rates]   // nil where policy compares none
	accrual atomic.Pointer[accrual] // nil where policy asks for none

	// Guarded by the cluster's mutex.
	ejection resilience.Ejection
	slot     int32
	mark     uint64 // of the update that saw the endpoint last
	score    uint64
	checks   []*check
}

// Gone reports that the address has left the cluster, or the cluster has ended.
func (e *Endpoint) Gone() bool { return e.gone.Load() }

// Hostname returns the name that policy gives the endpoint, or "".
func (e *Endpoint) Hostname() string {
	if spec := e.spec.Load(); spec != nil {
		return spec.Hostname
	}
	return ""
}

// Dial returns the address for a new connection: Address, or where that is a
// name that the cluster looks up itself, the address that it stands for at present.
func (e *Endpoint) Dial() string {
	if dial := e.dial.Load(); dial != nil {
		return *dial
	}
	return e.Address
}

// take counts a request that begins at the endpoint; release counts its end.
func (e *Endpoint) take(bounded bool) {
	e.active.Add(1)
	e.requests.Add(1)
	if bounded {
		e.counted.Add(1)
		e.cluster.held.Add(1)
	}
}

func (e *Endpoint) release() {
	e.active.Add(-1)
	for n := e.counted.Load(); n > 0; n = e.counted.Load() {
		if e.counted.CompareAndSwap(n, n-1) {
			e.cluster.held.Add(-1)
			return
		}
	}
}

// member is the endpoint as pickers see it. The caller holds the cluster's mutex.
func (e *Endpoint) member(policy *lb.Policy) lb.Member {
	m := e.spec.Load().Member(policy)
	for _, c := range e.checks {
		switch c.state {
		case checkFailed:
			m.Health = lb.Unhealthy
		case checkDegraded:
			if m.Health == lb.Healthy {
				m.Health = lb.Degraded
			}
		}
	}
	if e.ejection.Ejected {
		m.Health = lb.Unhealthy
	}
	if a := e.accrual.Load(); a != nil {
		m.Excluded = a.shut
	}
	return m
}

// observe takes the latency of an attempt into the average.
func (e *Endpoint) observe(took time.Duration, failed bool, since, decay time.Duration) {
	for {
		before := e.latency.Load()
		if failed && float64(took) < lb.Latency(before).Estimate(since, decay) {
			return // a failure that comes at once must not attract more requests
		}
		if e.latency.CompareAndSwap(before, uint64(lb.Latency(before).Observe(took, since, decay))) {
			return
		}
	}
}

// slots maps the slots of endpoints to them. A value that was published never
// changes: an edit copies the chunks that it touches.
type slots struct {
	chunks []*slotChunk
	edit   uint64
}

type slotChunk struct {
	endpoints []*Endpoint
	edit      uint64
}

const slotChunkSize = 128

// at returns the endpoint of a slot; nil for one that is free.
func (s *slots) at(slot int32) *Endpoint {
	return s.chunks[slot/slotChunkSize].endpoints[slot%slotChunkSize]
}

// set changes a slot, which may be one beyond the last.
func (s *slots) set(edit uint64, slot int32, e *Endpoint) {
	if s.edit != edit {
		s.chunks, s.edit = append(make([]*slotChunk, 0, len(s.chunks)+1), s.chunks...), edit
	}
	i, j := int(slot/slotChunkSize), int(slot%slotChunkSize)
	if i == len(s.chunks) {
		s.chunks = append(s.chunks, &slotChunk{edit: edit})
	}
	c := s.chunks[i]
	if c.edit != edit {
		c = &slotChunk{endpoints: append(make([]*Endpoint, 0, min(slotChunkSize, len(c.endpoints)+1)), c.endpoints...), edit: edit}
		s.chunks[i] = c
	}
	if j == len(c.endpoints) {
		c.endpoints = append(c.endpoints, nil)
	}
	c.endpoints[j] = e
}

// all calls f for every endpoint.
func (s *slots) all(f func(*Endpoint)) {
	for _, c := range s.chunks {
		for _, e := range c.endpoints {
			if e != nil {
				f(e)
			}
		}
	}
}
