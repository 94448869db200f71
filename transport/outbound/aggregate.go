package outbound

import "github.com/sinew-mesh/sinew/routing/lb"

// combination is an aggregate cluster's view of the clusters under it: their
// priorities strung together, in order, with the load of each (Envoy's aggregate
// cluster). The clusters keep their own policies, endpoints and live state.
type combination struct {
	config *clusterState   // of the aggregate itself
	states []*clusterState // of the clusters under it; nil for one that is not there
	from   []member        // by combined priority
	health []lb.PriorityHealth
	loads  []lb.Load
	panics []bool
}

// member is one priority of one of the clusters.
type member struct {
	state    *clusterState
	priority int
}

// maxAggregate bounds how deep aggregates may stand in one another (gRFC A37).
const maxAggregate = 16

// combine returns the present combination: the last one where nothing under it has changed.
func (c *Cluster) combine(s *clusterState, clusters map[string]*Cluster) *combination {
	last := c.combined.Load()
	if last != nil && last.config == s && last.fits(clusters) {
		return last
	}
	next := &combination{config: s}
	next.add(s, clusters, 0)
	next.loads, next.panics = make([]lb.Load, len(next.health)), make([]bool, len(next.health))
	lb.Distribute(next.health, s.config.LB.PanicThreshold, next.loads, next.panics)
	c.combined.Store(next)
	return next
}

// fits reports whether the states are still the current ones.
func (m *combination) fits(clusters map[string]*Cluster) bool {
	for _, s := range m.states {
		under := clusters[s.cluster.name]
		if under != s.cluster || under.current.Load() != s {
			return false
		}
	}
	return true
}

func (m *combination) add(s *clusterState, clusters map[string]*Cluster, depth int) {
	for _, name := range s.config.Underlying {
		under := clusters[name]
		if under == nil {
			continue
		}
		state := under.current.Load()
		m.states = append(m.states, state)
		if len(state.config.Underlying) > 0 {
			if depth < maxAggregate {
				m.add(state, clusters, depth+1)
			}
			continue
		}
		for i, health := range state.picker.Health() {
			m.from = append(m.from, member{state, i})
			m.health = append(m.health, health)
		}
	}
}

// pickUnderlying picks from the clusters under an aggregate.
func (c *Cluster) pickUnderlying(s *clusterState, q *pickQuery) (*Endpoint, *clusterState, error) {
	clusters := c.engine.view.Load().clusters
	m := c.combine(s, clusters)
	if len(m.from) == 0 {
		return nil, s, &NoHealthyEndpointError{Err: s.config.Err}
	}
	loads := m.loads
	if q.Excluded != 0 {
		other := make([]lb.Load, len(m.loads))
		if lb.Redistribute(m.health, q.Excluded, other) {
			loads = other
		}
	}
	draw := q.Draw
	if q.HasHash {
		draw = q.Hash
	}
	chosen, useDegraded := lb.Choose(loads, draw)
	endpoint, state, err := m.pickFrom(chosen, useDegraded, q)
	// What can not be used here for reasons of its own goes on down the line.
	for i := 0; err != nil && i < len(m.from); i++ {
		if i != chosen && (m.health[i].Healthy > 0 || m.health[i].Degraded > 0) {
			var other error
			if endpoint, state, other = m.pickFrom(i, m.health[i].Healthy == 0, q); other == nil {
				chosen, err = i, nil
			}
		}
	}
	if err != nil {
		total := 0
		for _, s := range m.states {
			total += s.picker.Len()
		}
		return nil, s, &NoHealthyEndpointError{Endpoints: total, Err: s.config.Err}
	}
	q.Priority = chosen
	return endpoint, state, nil
}

func (m *combination) pickFrom(i int, useDegraded bool, q *pickQuery) (*Endpoint, *clusterState, error) {
	from := m.from[i]
	if c := from.state.cluster; !c.used.Load() {
		c.used.Store(true)
	}
	return from.state.pick(q, from.priority, useDegraded)
}
