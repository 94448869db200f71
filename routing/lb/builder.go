package lb

// Member is an endpoint as a picker sees it.
type Member struct {
	Weight   uint32 // 0 counts as 1
	Health   Health // Unhealthy too where it is ejected or fails health checks
	Excluded bool   // neither picked nor counted, not even in panic
	Priority uint32
	Locality Locality
	Key      string // what is hashed for ring hash and maglev
}

// class is which members of a priority or locality a pool has.
type class uint8

const (
	healthy class = iota
	degraded
	everyone // all that are not excluded, for panic
	classes
)

// maxPriority is the last priority that is told apart (the limit of EDS).
const maxPriority = 127

// Builder keeps the members of a cluster and makes pickers of them. A picker
// shares with the one before all that has not changed: a change of one member
// costs its own chunks, except that hash tables and written-out schedules are
// made again as a whole. A Builder is not safe for concurrent use; its pickers are.
type Builder struct {
	policy  Policy
	local   Locality // of the client, for zone-aware routing
	whole   *Builder // of all members; nil where this is it
	sets    Endpoints
	members []place // by slot
	prios   []*priorityBuilder
	n       int
	edit    uint64
}

// place is where a member stands in the bags.
type place struct {
	Member
	present bool
	class   class // everyone where it is in no smaller class
	whole   [2]int32
	zone    [2]int32 // in its locality's bags
	group   *groupBuilder
}

type groupBuilder struct {
	locality Locality
	bags     [classes]bag
	changed  [classes]uint64 // the edit of the last change
	pools    [classes]*pool
	made     [classes]uint64 // the edit in which pools was made
	// Of everyone: they are on their way out, and count for no share of usable ones.
	draining       uint64
	drainingWeight uint64
}

type priorityBuilder struct {
	groupBuilder
	localities []*groupBuilder
	byLocality map[Locality]*groupBuilder
}

// NewBuilder returns a builder without members. local is where the client runs.
func NewBuilder(p Policy, local Locality) *Builder {
	return &Builder{policy: p, local: local, edit: 1}
}

// Part returns a builder without members for a part of those of b, such as a
// subset. What b is told by Describe holds for it too.
func (b *Builder) Part() *Builder {
	part := NewBuilder(b.policy, b.local)
	part.whole = b
	return part
}

// all is the builder of all members.
func (b *Builder) all() *Builder {
	if b.whole != nil {
		return b.whole
	}
	return b
}

// Policy returns the policy of the pickers.
func (b *Builder) Policy() *Policy { return &b.policy }

// Describe sets what policy says of the set as a whole: Localities,
// Overprovisioning and WeightedPriorityHealth of the endpoints.
func (b *Builder) Describe(e *Endpoints) {
	b.sets = Endpoints{Localities: e.Localities, Overprovisioning: e.Overprovisioning, WeightedPriorityHealth: e.WeightedPriorityHealth}
}

// Len returns the number of members.
func (b *Builder) Len() int { return b.n }

// byLocality reports whether localities are told apart.
func (b *Builder) byLocality() bool { return b.policy.LocalityWeighted || b.policy.ZoneAware != nil }

// Put adds the member of a slot, or changes it.
func (b *Builder) Put(slot int32, m Member) {
	m.Weight = max(m.Weight, 1)
	m.Priority = min(m.Priority, maxPriority)
	if !b.byLocality() {
		m.Locality = Locality{}
	} else if !b.policy.LocalityWeighted {
		m.Locality.SubZone = "" // zones are what zone-aware routing tells apart
	}
	for int(slot) >= len(b.members) {
		b.members = append(b.members, place{})
	}
	p := &b.members[slot]
	if p.present {
		if p.Member == m {
			return
		}
		if p.Priority == m.Priority && p.Locality == m.Locality && p.Excluded == m.Excluded && p.class == classOf(m.Health) && (p.Health == Draining) == (m.Health == Draining) {
			b.drained(p, -1)
			p.Member = m
			b.drained(p, 1)
			b.reweigh(slot, p)
			return
		}
		b.take(p)
		b.n--
	}
	b.n++
	*p = place{Member: m, present: true, class: classOf(m.Health)}
	if !m.Excluded {
		b.put(slot, p)
	}
}

// Remove takes the member of a slot out.
func (b *Builder) Remove(slot int32) {
	if int(slot) >= len(b.members) || !b.members[slot].present {
		return
	}
	b.take(&b.members[slot])
	b.members[slot] = place{}
	b.n--
}

func classOf(h Health) class {
	switch h {
	case Healthy:
		return healthy
	case Degraded:
		return degraded
	default:
		return everyone
	}
}

func (b *Builder) priority(n uint32) *priorityBuilder {
	for int(n) >= len(b.prios) {
		b.prios = append(b.prios, &priorityBuilder{})
	}
	return b.prios[n]
}

func (b *Builder) put(slot int32, p *place) {
	prio := b.priority(p.Priority)
	p.whole = b.putIn(&prio.groupBuilder, slot, p)
	if b.byLocality() {
		g := prio.byLocality[p.Locality]
		if g == nil {
			if prio.byLocality == nil {
				prio.byLocality = make(map[Locality]*groupBuilder)
			}
			g = &groupBuilder{locality: p.Locality}
			prio.byLocality[p.Locality] = g
			prio.localities = append(prio.localities, g)
		}
		p.group = g
		p.zone = b.putIn(g, slot, p)
	}
	b.drained(p, 1)
}

// drained counts a member that is draining, in (1) or out (-1).
func (b *Builder) drained(p *place, sign int) {
	if p.Health != Draining || p.Excluded {
		return
	}
	b.prios[p.Priority].drained(p, sign)
	if p.group != nil {
		p.group.drained(p, sign)
	}
}

func (g *groupBuilder) drained(p *place, sign int) {
	g.draining += uint64(sign)
	g.drainingWeight += uint64(sign) * uint64(p.Weight)
}

func (b *Builder) putIn(g *groupBuilder, slot int32, p *place) (at [2]int32) {
	at[1] = int32(g.bags[everyone].add(b.edit, slot, uint64(p.Weight)))
	g.changed[everyone] = b.edit
	if p.class != everyone {
		at[0] = int32(g.bags[p.class].add(b.edit, slot, uint64(p.Weight)))
		g.changed[p.class] = b.edit
	}
	return at
}

func (b *Builder) take(p *place) {
	if p.Excluded {
		return
	}
	b.drained(p, -1)
	b.takeFrom(&b.prios[p.Priority].groupBuilder, p, p.whole, func(m *place) *[2]int32 { return &m.whole })
	if p.group != nil {
		b.takeFrom(p.group, p, p.zone, func(m *place) *[2]int32 { return &m.zone })
	}
}

func (b *Builder) takeFrom(g *groupBuilder, p *place, at [2]int32, places func(*place) *[2]int32) {
	if moved := g.bags[everyone].remove(b.edit, int(at[1])); moved >= 0 {
		places(&b.members[moved])[1] = at[1]
	}
	g.changed[everyone] = b.edit
	if p.class == everyone {
		return
	}
	if moved := g.bags[p.class].remove(b.edit, int(at[0])); moved >= 0 {
		places(&b.members[moved])[0] = at[0]
	}
	g.changed[p.class] = b.edit
}

// reweigh brings a change of weight or key into the bags.
func (b *Builder) reweigh(slot int32, p *place) {
	if p.Excluded {
		return
	}
	b.reweighIn(&b.prios[p.Priority].groupBuilder, slot, p, p.whole)
	if p.group != nil {
		b.reweighIn(p.group, slot, p, p.zone)
	}
}

func (b *Builder) reweighIn(g *groupBuilder, slot int32, p *place, at [2]int32) {
	g.bags[everyone].set(b.edit, int(at[1]), slot, uint64(p.Weight))
	g.changed[everyone] = b.edit
	if p.class != everyone {
		g.bags[p.class].set(b.edit, int(at[0]), slot, uint64(p.Weight))
		g.changed[p.class] = b.edit
	}
}

// pool returns the present pool of a class; nil if it is empty.
func (b *Builder) pool(g *groupBuilder, c class) *pool {
	if g.made[c] == 0 || g.made[c] < g.changed[c] {
		g.made[c] = b.edit
		g.pools[c] = nil
		if frozen := g.bags[c].freeze(); frozen != nil {
			g.pools[c] = newPool(&b.policy, frozen, nil)
		}
	}
	return g.pools[c]
}

// Picker returns the picker of the members as they are.
func (b *Builder) Picker() *Picker {
	p := &Picker{policy: &b.policy, total: b.n}
	p.arrays(len(b.prios))
	for i, prio := range b.prios {
		p.health[i] = b.health(prio)
	}
	p.distribute()
	for i := range p.prios {
		b.pools(p, i)
	}
	b.edit++
	return p
}

func (b *Builder) health(prio *priorityBuilder) PriorityHealth {
	h := PriorityHealth{
		Overprovisioning: b.all().sets.Overprovisioning,
		Healthy:          uint64(prio.bags[healthy].n),
		Degraded:         uint64(prio.bags[degraded].n),
		Draining:         prio.draining,
		Total:            uint64(prio.bags[everyone].n),
	}
	h.HealthyWeight, h.DegradedWeight, h.TotalWeight = h.Healthy, h.Degraded, h.Total-h.Draining
	if b.all().sets.WeightedPriorityHealth {
		h.HealthyWeight, h.DegradedWeight, h.TotalWeight = prio.bags[healthy].total, prio.bags[degraded].total, prio.bags[everyone].total-prio.drainingWeight
	}
	return h
}

// pools gives the picker what it may pick from in one priority.
func (b *Builder) pools(p *Picker, i int) {
	prio, state := b.prios[i], &p.prios[i]
	hash := b.policy.Kind.hashes()
	if state.panics {
		state.pools[everyone] = b.wholePool(prio, i, everyone)
		p.usable += prio.bags[everyone].n
		return
	}
	p.usable += prio.bags[healthy].n
	if hash {
		// Tables have no degraded endpoints (Envoy).
		state.pools[healthy] = b.wholePool(prio, i, healthy)
		return
	}
	if p.loads[i].Degraded > 0 {
		p.usable += prio.bags[degraded].n
	}
	for _, c := range [...]class{healthy, degraded} {
		state.pools[c] = b.wholePool(prio, i, c)
	}
	switch {
	case !b.byLocality():
	case b.policy.LocalityWeighted:
		for _, c := range [...]class{healthy, degraded} {
			state.localities[c] = b.weighLocalities(prio, i, c)
		}
	case i == 0:
		state.zones = b.zones(prio)
	}
}

// wholePool is the pool of a class in all localities of a priority.
func (b *Builder) wholePool(prio *priorityBuilder, i int, c class) *pool {
	if !b.policy.Kind.hashes() {
		return b.pool(&prio.groupBuilder, c)
	}
	if prio.made[c] != 0 && prio.made[c] >= prio.changed[c] && !b.policy.LocalityWeighted {
		return prio.pools[c]
	}
	prio.made[c], prio.pools[c] = b.edit, nil
	if frozen := prio.bags[c].freeze(); frozen != nil {
		if keys := b.keys(prio, i, c); len(keys) > 0 {
			prio.pools[c] = newPool(&b.policy, frozen, newTable(&b.policy, keys))
		}
	}
	return prio.pools[c]
}

// localityWeights is the sum of the weights of those localities of a priority
// that have endpoints, be they in another part (Envoy).
func (b *Builder) localityWeights(priority int) (sum uint64) {
	if all := b.all(); priority < len(all.prios) {
		for _, g := range all.prios[priority].localities {
			if g.bags[everyone].n > 0 {
				sum += b.localityWeight(g.locality, priority)
			}
		}
	}
	return sum
}

// localityWeight returns what policy gives a locality of a priority.
func (b *Builder) localityWeight(l Locality, priority int) uint64 {
	localities := b.all().sets.Localities
	for i := range localities {
		if w := &localities[i]; w.Locality == l && int(w.Priority) == priority {
			return uint64(w.Weight)
		}
	}
	return 0
}
