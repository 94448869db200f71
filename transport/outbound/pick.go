package outbound

import (
	"slices"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// pickQuery is what a request wants of its endpoint. The zero value wants any.
type pickQuery struct {
	// Hash places the request on a ring or in a table; without HasHash it is drawn.
	Hash    uint64
	HasHash bool
	// Subset is the metadata that the endpoint must have; nil asks for none.
	// It counts only where the cluster has subsets.
	Subset map[string]string
	// Skip leaves out endpoints that can not be used at present, whatever the policy; may be nil.
	Skip func(*Endpoint) bool
	// Avoid and Omit leave out the endpoints of earlier attempts and those with
	// such metadata, if choosing again SelectAttempts times finds another.
	Avoid          []*Endpoint
	Omit           map[string]string
	SelectAttempts int
	// Excluded has the bit p where priority p is not to be used, unless it is the only one that can be.
	Excluded uint64
	Draw     uint64
	// Priority is set by pick: that of the endpoint. So is Now, in time since the
	// cluster's epoch, where the cluster is one that needs it.
	Priority int
	Now      time.Duration
}

// unwanted reports whether the request would rather have another endpoint.
func (q *pickQuery) unwanted(e *Endpoint) bool {
	return slices.Contains(q.Avoid, e) || len(q.Omit) > 0 && lb.Has(e.spec.Load().Metadata, q.Omit)
}

// take reports whether the request can use the endpoint, and takes it if so.
func (q *pickQuery) take(s *clusterState, e *Endpoint) bool {
	if e == nil || q.Skip != nil && q.Skip(e) || !e.admits() {
		return false
	}
	e.take(s.bounded)
	return true
}

// pick chooses an endpoint and takes it: its requests are counted until
// Endpoint.release. The state is that of the cluster to which the endpoint
// belongs (clusterState.cluster), which for an aggregate is another than c.
// The error is *NoHealthyEndpointError without a Place.
func (c *Cluster) pick(q *pickQuery) (*Endpoint, *clusterState, error) {
	s := c.current.Load()
	if len(s.config.Underlying) > 0 {
		return c.pickUnderlying(s, q)
	}
	if !c.used.Load() {
		c.used.Store(true)
	}
	return s.pick(q, anyPriority, false)
}

const anyPriority = -1

// skipRetries is how often an endpoint that can not be used is chosen again
// before all are looked at in turn.
const skipRetries = 4

// pick is Cluster.pick in one state, in one of its priorities or any.
func (s *clusterState) pick(q *pickQuery, priority int, useDegraded bool) (*Endpoint, *clusterState, error) {
	c := s.cluster
	picker := s.picker
	if s.config.LB.Subsets != nil {
		picker = c.subsetOf(&s, q.Subset)
	}
	if picker == nil {
		return nil, s, s.none()
	}
	query := lb.Query{Draw: q.Draw, Hash: q.Hash, HasHash: q.HasHash, Excluded: q.Excluded}
	if s.timed {
		query.Now = time.Now()
		q.Now = query.Now.Sub(c.epoch)
		if s.config.LB.Kind == lb.ClientWeighted {
			picker = c.freshWeights(&s, picker, query.Now)
		}
	}
	again := 0
	if len(q.Avoid) > 0 || len(q.Omit) > 0 {
		again = q.SelectAttempts
	}
	var spare *Endpoint // one that is not wanted, but better than none
	sparePriority := 0
	for skipped, i := 0, 0; ; i++ {
		query.Seq, query.Attempt = c.picks.Add(1), uint64(i)
		if i > 0 {
			query.Draw = c.engine.draw()
		}
		slot, p := int32(-1), priority
		if priority == anyPriority {
			slot, p = picker.Pick(&query, s)
		} else {
			slot = picker.PickIn(priority, useDegraded, &query, s)
		}
		if slot < 0 {
			break
		}
		e := s.slots.at(slot)
		if again > 0 && q.unwanted(e) {
			again--
			spare, sparePriority = e, p
			continue
		}
		if q.take(s, e) {
			q.Priority = p
			return e, s, nil
		}
		if skipped++; skipped > skipRetries {
			break
		}
	}
	if spare != nil && q.take(s, spare) {
		q.Priority = sparePriority
		return spare, s, nil
	}
	return s.scan(picker, &query, q)
}

// scan looks at all endpoints that are usable, for one that the request can use.
func (s *clusterState) scan(picker *lb.Picker, query *lb.Query, q *pickQuery) (found *Endpoint, _ *clusterState, err error) {
	if q.Skip == nil && s.config.Accrual == nil {
		return nil, s, s.none() // there is nothing to look for: the policy has nothing usable
	}
	picker.Scan(query, func(slot int32, priority int) bool {
		e := s.slots.at(slot)
		if !q.take(s, e) {
			return false
		}
		found, q.Priority = e, priority
		return true
	})
	if found == nil {
		return nil, s, s.none()
	}
	return found, s, nil
}

func (s *clusterState) none() error {
	return &NoHealthyEndpointError{Endpoints: s.picker.Len(), Err: s.config.Err}
}

// report counts an attempt's outcome at an endpoint, and ejects the endpoint or
// takes it out of use where policy says so. took is how long the answer took, 0
// where that says nothing; since, which counts only with it, is the time after the
// cluster's epoch. The common case, a success at an endpoint without
// failures, stores nothing that policy does not ask for.
func (c *Cluster) report(s *clusterState, e *Endpoint, o *resilience.Outcome, since, took time.Duration) {
	if o.Load != nil {
		c.reportLoad(e, o.Load)
	}
	result := resilience.ResultOf(o)
	if a := e.accrual.Load(); a != nil {
		a.report(result)
	}
	if result == resilience.NoResult {
		return
	}
	failed := result != resilience.Success
	if failed {
		e.failures.Add(1)
	}
	if took > 0 && s.config.LB.Kind == lb.PeakEWMA {
		e.observe(took, failed, since, s.config.LB.Decay)
	}
	if s.config.Outlier != nil {
		c.detect(s.config.Outlier, e, result)
	}
}

// reportLoad takes what an endpoint says of its load (gRFC A58).
func (c *Cluster) reportLoad(e *Endpoint, r *lb.LoadReport) {
	s := c.current.Load()
	if s.config.LB.Kind != lb.ClientWeighted {
		return
	}
	now := time.Now()
	for {
		old := e.load.Load()
		var before lb.ClientLoad
		if old != nil {
			before = *old
		}
		after := s.config.LB.Client.Observe(before, r, now)
		if after == before || e.load.CompareAndSwap(old, &after) {
			return
		}
	}
}

// freshWeights returns the picker, or once in a while the one of a new state
// with the weights of now.
func (c *Cluster) freshWeights(s **clusterState, picker *lb.Picker, now time.Time) *lb.Picker {
	since := int64(now.Sub(c.epoch))
	last := c.reweighed.Load()
	if since-last < int64((*s).config.LB.Client.UpdatePeriod()) || !c.reweighed.CompareAndSwap(last, since) {
		return picker
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.current.Load().config.LB.Kind == lb.ClientWeighted {
		c.republish()
	}
	return picker // the next request's pick is the first with them
}

// reweigh gives the state's pickers the weights of now. The caller holds mu.
func (c *Cluster) reweigh(s *clusterState, now time.Time) {
	weight := func(slot int32) float64 {
		e := s.slots.at(slot)
		load := e.load.Load()
		if load == nil {
			return 0
		}
		w, after := s.config.LB.Client.WeightAt(*load, now)
		if after != *load {
			e.load.CompareAndSwap(load, &after)
		}
		return w
	}
	s.picker = s.picker.Reweigh(weight)
	for key, picker := range s.subsets {
		if picker != nil {
			s.subsets[key] = picker.Reweigh(weight)
		}
	}
	c.reweighed.Store(int64(now.Sub(c.epoch)))
}
