package lb

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// Defaults and limits of ring hash and maglev (Envoy).
const (
	DefaultMinRing   = 1024
	DefaultMaxRing   = 8 << 20
	DefaultTableSize = 65537
	MaxTableSize     = 5000011
)

// Validate reports a configuration that Envoy refuses.
func (r *Ring) Validate() error {
	low, high := r.sizes()
	switch {
	case low > DefaultMaxRing:
		return fmt.Errorf("minimum_ring_size: %d is more than %d", low, DefaultMaxRing)
	case high > DefaultMaxRing:
		return fmt.Errorf("maximum_ring_size: %d is more than %d", high, DefaultMaxRing)
	case low > high:
		return fmt.Errorf("minimum_ring_size: %d is more than the maximum_ring_size %d", low, high)
	}
	return nil
}

func (r *Ring) sizes() (low, high uint64) {
	low, high = r.MinSize, r.MaxSize
	if low == 0 {
		low = DefaultMinRing
	}
	if high == 0 {
		high = DefaultMaxRing
	}
	return low, high
}

// Validate reports a configuration that Envoy refuses.
func (t *Table) Validate() error {
	switch {
	case t.Size > MaxTableSize:
		return fmt.Errorf("table_size: %d is more than %d", t.Size, MaxTableSize)
	case t.Size != 0 && !new(big.Int).SetUint64(t.Size).ProbablyPrime(0):
		return fmt.Errorf("table_size: %d is not a prime", t.Size)
	}
	return nil
}

// key is an endpoint to place on a ring or in a table, with its share of the whole.
type key struct {
	slot  int32
	name  string
	share float64
}

// keys returns the members of a class with their shares, by name, so that
// tables are the same whatever the order in which endpoints have come.
func (b *Builder) keys(prio *priorityBuilder, priority int, c class) []key {
	var keys []key
	if !b.policy.LocalityWeighted {
		keys = b.keysOf(make([]key, 0, prio.bags[c].n), &prio.groupBuilder, c, 1)
	} else {
		// A weight of 0 takes a locality out; unlike for other policies its health does not count (Envoy).
		sum := b.localityWeights(priority)
		for _, g := range prio.localities {
			if w := b.localityWeight(g.locality, priority); w > 0 {
				keys = b.keysOf(keys, g, c, float64(w)/float64(sum))
			}
		}
	}
	slices.SortFunc(keys, func(x, y key) int { return strings.Compare(x.name, y.name) })
	return keys
}

func (b *Builder) keysOf(keys []key, g *groupBuilder, c class, share float64) []key {
	bag := &g.bags[c]
	for i := range bag.n {
		slot := bag.at(i)
		keys = append(keys, key{slot: slot, name: b.members[slot].Key, share: float64(bag.weight(i)) * share / float64(bag.total)})
	}
	return keys
}

// table maps hashes to endpoints.
type table struct {
	keys      []key
	entries   []int32  // indices of keys
	positions []uint64 // of a ring: entries[i] is at positions[i]; nil for maglev
	step      uint64   // for the walk of bounded load
}

func newTable(policy *Policy, keys []key) *table {
	t := &table{keys: keys, step: strideOf(uint64(len(keys)))}
	if policy.Kind == RingHash {
		t.ring(&policy.Ring)
	} else {
		t.maglev(&policy.Table)
	}
	return t
}

// ring places each endpoint as often as its share of the ring's size says. The
// size is such that the lightest endpoint gets a whole number of places, and is
// within the bounds of policy (Envoy's ring_hash; Karger et al., "Consistent
// hashing and random trees", 1997).
func (t *table) ring(r *Ring) {
	low, high := r.sizes()
	least := math.Inf(1)
	for i := range t.keys {
		least = min(least, t.keys[i].share)
	}
	scale := min(math.Ceil(least*float64(low))/least, float64(high))
	type entry struct {
		position uint64
		key      int32
	}
	entries := make([]entry, 0, int(math.Ceil(scale)))
	var text []byte
	have, want := 0.0, 0.0
	for i := range t.keys {
		want += scale * t.keys[i].share
		text = append(append(text[:0], t.keys[i].name...), '_')
		prefix := len(text)
		for n := int64(0); have < want; n++ {
			text = strconv.AppendInt(text[:prefix], n, 10)
			position := uint64(0)
			if r.Function == MurmurHash2 {
				position = murmur(text)
			} else {
				position = xxhash.Sum64(text)
			}
			entries = append(entries, entry{position, int32(i)})
			have++
		}
	}
	slices.SortStableFunc(entries, func(a, b entry) int {
		switch {
		case a.position < b.position:
			return -1
		case a.position > b.position:
			return 1
		}
		return 0
	})
	t.entries, t.positions = make([]int32, len(entries)), make([]uint64, len(entries))
	for i := range entries {
		t.entries[i], t.positions[i] = entries[i].key, entries[i].position
	}
}

// maglev has the endpoints take places of the table in turn, each by its own
// permutation, the lighter ones less often (Eisenbud et al., "Maglev", 2016,
// with Envoy's weights).
func (t *table) maglev(config *Table) {
	size := config.Size
	if size == 0 {
		size = DefaultTableSize
	}
	type taker struct {
		at, skip uint64
		due      float64
	}
	takers := make([]taker, len(t.keys))
	most := 0.0
	for i := range t.keys {
		var seeded xxhash.Digest
		seeded.ResetWithSeed(1)
		seeded.WriteString(t.keys[i].name)
		takers[i] = taker{at: xxhash.Sum64String(t.keys[i].name) % size, skip: seeded.Sum64()%(size-1) + 1}
		most = max(most, t.keys[i].share)
	}
	t.entries = make([]int32, size)
	for i := range t.entries {
		t.entries[i] = -1
	}
	for taken, round := uint64(0), 1.0; taken < size; round++ {
		for i := range takers {
			if taken == size {
				break
			}
			k := &takers[i]
			if round*t.keys[i].share < k.due {
				continue
			}
			k.due += most
			for t.entries[k.at] >= 0 {
				k.at = (k.at + k.skip) % size
			}
			t.entries[k.at] = int32(i)
			k.at = (k.at + k.skip) % size
			taken++
		}
	}
}

// find returns the index in keys for a hash. A further attempt goes on from the
// first: along a ring to the next place, in a table to another.
func (t *table) find(hash, attempt uint64) int {
	if t.positions != nil {
		at := uint64(t.above(hash)) + attempt
		return int(t.entries[at%uint64(len(t.entries))])
	}
	if attempt > 0 {
		hash ^= math.MaxUint64 - attempt + 1
	}
	return int(t.entries[hash%uint64(len(t.entries))])
}

// above returns the first place of the ring at the hash or after it.
func (t *table) above(hash uint64) int {
	at, _ := slices.BinarySearch(t.positions, hash)
	if at == len(t.positions) {
		return 0
	}
	return at
}

// hashed picks by the table. With a hash_balance_factor, an endpoint that has
// its share of the requests in flight passes them on to others, in an order that
// the hash decides (Mirrokni et al., "Consistent hashing with bounded loads", 2016;
// Chen et al., "Revisiting consistent hashing with bounded loads", 2019).
func (p *pool) hashed(policy *Policy, q *Query, loads Loads) int32 {
	hash := q.Hash
	if !q.HasHash {
		hash = q.Draw
	}
	options := &policy.Ring.Options
	if policy.Kind == Maglev {
		options = &policy.Table.Options
	}
	t := p.table
	first := t.find(hash, q.Attempt)
	if options.BalanceFactor == 0 {
		return t.keys[first].slot
	}
	// All endpoints together may have so many requests.
	places := (uint64(loads.Total()+1)*uint64(options.BalanceFactor) + 99) / 100
	least, leastLoad := first, t.overload(first, places, loads)
	if leastLoad <= 1 {
		return t.keys[first].slot
	}
	n := uint64(len(t.keys))
	start := scale(next(hash), n)
	for i := range n {
		k := int(start + stride(i, t.step, n))
		if k >= int(n) {
			k -= int(n)
		}
		if k == first {
			continue
		}
		load := t.overload(k, places, loads)
		if load <= 1 {
			return t.keys[k].slot
		}
		if load < leastLoad {
			least, leastLoad = k, load
		}
	}
	return t.keys[least].slot
}

// overload returns the requests in flight at an endpoint by its part of the places.
func (t *table) overload(k int, places uint64, loads Loads) float64 {
	part := max(math.Ceil(float64(places)*t.keys[k].share), 1)
	return float64(loads.Active(t.keys[k].slot)) / part
}

// murmur is MurmurHash2 for 64 bits with the seed of libstdc++'s std::hash
// (Appleby, "MurmurHash2", public domain).
func murmur(data []byte) uint64 {
	const m, seed = 0xc6a4a7935bd1e995, 0xc70f6907
	h := uint64(seed) ^ uint64(len(data))*m
	for ; len(data) >= 8; data = data[8:] {
		k := binary.LittleEndian.Uint64(data) * m
		k = (k ^ k>>47) * m
		h = (h ^ k) * m
	}
	if len(data) > 0 {
		k := uint64(0)
		for i := len(data) - 1; i >= 0; i-- {
			k = k<<8 | uint64(data[i])
		}
		h = (h ^ k) * m
	}
	h = (h ^ h>>47) * m
	return h ^ h>>47
}
