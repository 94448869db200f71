package lb

// localities are the pools of the localities of one priority, to choose among by weight.
type localities struct {
	pools []*pool
	upTo  []float64 // sums of the effective weights
}

// weighLocalities returns what there is to choose among; nil where no locality
// has both weight and endpoints, and then all endpoints of the priority are used
// (Envoy). A locality's weight falls with the part of its endpoints that is
// usable, once that is less than the overprovisioning factor makes up for.
func (b *Builder) weighLocalities(prio *priorityBuilder, priority int, c class) *localities {
	factor := float64(b.all().sets.Overprovisioning)
	if factor == 0 {
		factor = 140
	}
	l := &localities{}
	sum := 0.0
	for _, g := range prio.localities {
		weight := b.localityWeight(g.locality, priority)
		if weight == 0 || g.bags[c].n == 0 {
			continue
		}
		usable := float64(g.bags[c].n) / float64(uint64(g.bags[everyone].n)-g.draining)
		sum += float64(weight) * min(1, factor/100*usable)
		l.pools = append(l.pools, b.pool(g, c))
		l.upTo = append(l.upTo, sum)
	}
	if len(l.pools) == 0 {
		return nil
	}
	return l
}

func (l *localities) choose(draw uint64) *pool {
	last := len(l.upTo) - 1
	value := unit(draw) * l.upTo[last]
	low, high := 0, last
	for low < high {
		mid := int(uint(low+high) >> 1)
		if l.upTo[mid] > value {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return l.pools[low]
}

// zones prefers the client's zone. How the callers of a cluster are spread over
// the zones, which Envoy learns from a cluster of all its instances, is not known
// here: they are taken to be as many in each zone that has endpoints.
type zones struct {
	local *pool
	share float64 // of the requests that the local zone can take
	// others have room beyond what their own callers need, by which they get the rest.
	others []*pool
	room   []float64 // sums
}

// zones returns nil where all zones are used alike: fewer than two of them, none
// of them the client's, or too few endpoints.
func (b *Builder) zones(prio *priorityBuilder) *zones {
	config := b.policy.ZoneAware
	total, count := prio.bags[healthy].n, 0
	var local *groupBuilder
	for _, g := range prio.localities {
		if g.bags[healthy].n == 0 {
			continue
		}
		count++
		if g.locality.Region == b.local.Region && g.locality.Zone == b.local.Zone {
			local = g
		}
	}
	if local == nil || local.locality.Zone == "" || count < 2 {
		return nil
	}
	z := &zones{local: b.pool(local, healthy)}
	if minimum := max(config.ForceMinimum, 1); config.ForceLocal && local.bags[healthy].n >= int(minimum) {
		z.share = 1
		return z
	}
	minimum := config.MinCluster
	if minimum == 0 {
		minimum = 6
	}
	if uint64(total) < minimum {
		return nil
	}
	callers := 1 / float64(count)
	if z.share = float64(local.bags[healthy].n) / float64(total) / callers; z.share >= 1 {
		return z
	}
	sum := 0.0
	for _, g := range prio.localities {
		room := float64(g.bags[healthy].n)/float64(total) - callers
		if g == local || room <= 0 {
			continue
		}
		sum += room
		z.others = append(z.others, b.pool(g, healthy))
		z.room = append(z.room, sum)
	}
	return z
}

// choose returns the pool of a zone; nil means all zones alike.
func (z *zones) choose(config *ZoneAware, draw uint64) *pool {
	if unit(draw)*100 >= config.Enabled {
		return nil
	}
	draw = next(draw)
	if unit(draw) < z.share || len(z.others) == 0 {
		return z.local
	}
	return (&localities{pools: z.others, upTo: z.room}).choose(next(draw))
}
