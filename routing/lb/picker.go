package lb

import (
	"math/bits"
	"time"
)

// Loads is what a picker reads of the live world. Floor 2 implements it.
type Loads interface {
	// Active returns the requests in flight at the endpoint with the slot.
	Active(slot int32) int64
	// Cost returns what peak EWMA compares: latency times one more than the requests in flight.
	Cost(slot int32, now time.Time) float64
	// Joined returns since when the endpoint has been in use, for slow start.
	Joined(slot int32) time.Time
	// Total returns the requests in flight at all endpoints, for bounded load.
	Total() int64
}

// Query is what one pick is for.
type Query struct {
	Seq  uint64 // the caller's counter of picks
	Draw uint64 // 64 random bits
	// Hash places the request on a ring or in a table; without HasHash the draw does.
	Hash    uint64
	HasHash bool
	// Attempt counts the times that the caller has picked for the request and did not like
	// the endpoint; hash policies then go on from the first. The caller passes another Seq and Draw as well.
	Attempt uint64
	// Excluded has the bits of priorities that are not to be used, if others can be.
	Excluded uint64
	Now      time.Time // for peak EWMA and slow start
}

// Picker chooses among the usable endpoints of one set. It is immutable and safe for concurrent use.
type Picker struct {
	policy *Policy
	prios  []priorityPools
	loads  []Load
	health []PriorityHealth
	panics []bool
	single bool // all load goes to the healthy endpoints, or in panic to all, of priority first
	first  int
	usable int
	total  int
	// warm is when the last endpoint leaves slow start.
	settled, oldest time.Time
}

// priorityPools is what there is to pick from in one priority.
type priorityPools struct {
	pools      [classes]*pool
	localities [classes]*localities
	zones      *zones
	panics     bool
}

func (p *Picker) arrays(n int) {
	p.prios, p.loads = make([]priorityPools, n), make([]Load, n)
	p.health, p.panics = make([]PriorityHealth, n), make([]bool, n)
}

func (p *Picker) distribute() {
	Distribute(p.health, p.policy.PanicThreshold, p.loads, p.panics)
	for i := range p.prios {
		p.prios[i].panics = p.panics[i]
		if p.loads[i].Healthy >= 100 {
			p.single, p.first = true, i
		}
	}
}

// Usable returns the number of endpoints that requests may go to, and Len that of all.
func (p *Picker) Usable() int { return p.usable }

// Len returns the number of endpoints, usable or not.
func (p *Picker) Len() int { return p.total }

// Panics reports whether any priority that takes load uses all its endpoints because too few are usable.
func (p *Picker) Panics() bool {
	for i, panics := range p.panics {
		if panics && p.loads[i].Healthy > 0 && p.health[i].Total > 0 {
			return true
		}
	}
	return false
}

// Health returns the state of each priority. The caller must not change it.
func (p *Picker) Health() []PriorityHealth { return p.health }

// Loads returns each priority's share of the load. The caller must not change it.
func (p *Picker) Loads() []Load { return p.loads }

// maxStack is how many priorities are redistributed without allocating.
const maxStack = 8

// Pick returns the slot of an endpoint and its priority; -1 if nothing is
// usable. It takes constant time where weights are equal and for hash policies,
// and logarithmic time where weights differ (but for a full scan, and for
// bounded load where most endpoints are at their bound). It allocates nothing.
func (p *Picker) Pick(q *Query, loads Loads) (slot int32, priority int) {
	if p.single && q.Excluded == 0 {
		return p.PickIn(p.first, false, q, loads), p.first
	}
	if len(p.prios) == 0 {
		return -1, 0
	}
	chosen := p.loads
	if q.Excluded != 0 && !p.policy.Kind.hashes() { // tables go by the hash alone (Envoy)
		var few [maxStack]Load
		other := few[:]
		if len(p.prios) > maxStack {
			other = make([]Load, len(p.prios))
		}
		if other = other[:len(p.prios)]; Redistribute(p.health, q.Excluded, other) {
			chosen = other
		}
	}
	priority, useDegraded := Choose(chosen, p.place(q))
	return p.PickIn(priority, useDegraded, q, loads), priority
}

// place is what the choices above the endpoint are made by: the hash for hash
// policies, so that a key stays where it is.
func (p *Picker) place(q *Query) uint64 {
	if q.HasHash && p.policy.Kind.hashes() {
		return q.Hash
	}
	return next(q.Draw ^ 0x5851f42d4c957f2d)
}

// PickIn is Pick in one priority.
func (p *Picker) PickIn(priority int, useDegraded bool, q *Query, loads Loads) int32 {
	if priority >= len(p.prios) {
		return -1
	}
	state := &p.prios[priority]
	if state.panics {
		if z := p.policy.ZoneAware; z != nil && z.FailOnPanic {
			return -1
		}
		return p.from(state.pools[everyone], q, loads)
	}
	c := healthy
	if useDegraded && !p.policy.Kind.hashes() {
		c = degraded
	}
	pool := state.pools[c]
	if l := state.localities[c]; l != nil {
		pool = l.choose(next(q.Draw ^ 0x2545f4914f6cdd1d))
	} else if state.zones != nil && c == healthy {
		if chosen := state.zones.choose(p.policy.ZoneAware, next(q.Draw^0x2545f4914f6cdd1d)); chosen != nil {
			pool = chosen
		}
	}
	return p.from(pool, q, loads)
}

// from picks from a pool, which may be nil.
func (p *Picker) from(pool *pool, q *Query, loads Loads) int32 {
	if pool == nil {
		return -1
	}
	if p.policy.SlowStart != nil && p.policy.Kind.warms() && q.Now.Before(p.settled) {
		return p.warmed(pool, q, loads)
	}
	return pool.pick(p.policy, q, loads)
}

// Scan calls try with usable endpoints until it returns true: those that Pick
// would choose among for the query first, beginning anywhere, then those of the
// other priorities in order. It is for the case that Pick's choices can not be used.
func (p *Picker) Scan(q *Query, try func(slot int32, priority int) bool) {
	if len(p.prios) == 0 {
		return
	}
	chosen, _ := Choose(p.loads, p.place(q))
	if p.prios[chosen].scan(q.Draw, chosen, try) {
		return
	}
	for i := range p.prios {
		if i != chosen && p.prios[i].scan(q.Draw, i, try) {
			return
		}
	}
}

func (s *priorityPools) scan(draw uint64, priority int, try func(int32, int) bool) bool {
	for _, pool := range s.pools {
		if pool == nil {
			continue
		}
		n := pool.bag.n
		at := int(scale(draw, uint64(n)))
		for range n {
			if try(pool.bag.at(at), priority) {
				return true
			}
			if at++; at == n {
				at = 0
			}
		}
	}
	return false
}

// scale maps 64 random bits to [0, n) by the high half of draw x n. No value is
// preferred by more than n/2^64.
func scale(draw, n uint64) uint64 {
	high, _ := bits.Mul64(draw, n)
	return high
}

// scale128 returns a x b / c, where b is at most c.
func scale128(a, b, c uint64) uint64 {
	high, low := bits.Mul64(a, b)
	q, _ := bits.Div64(high, low, c)
	return q
}

// next derives the following draw from a draw (the SplitMix64 generator, Steele,
// Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
func next(draw uint64) uint64 {
	z := draw + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
