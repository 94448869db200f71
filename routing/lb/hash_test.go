package lb

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRingAgainstWalk holds the search on a ring against a walk over all of it.
func TestRingAgainstWalk(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 4))
	for n := 1; n <= 40; n += 3 {
		var all []Endpoint
		for i := range n {
			all = append(all, Endpoint{Address: fmt.Sprintf("10.0.0.%d:80", i), Weight: uint32(1 + i%5)})
		}
		p := NewPicker(Policy{Kind: RingHash, Ring: Ring{MinSize: 100}}, NewEndpoints(all, nil))
		ring := tableOf(p, healthy)
		for i := range 2000 {
			hash := random.Uint64()
			switch i % 4 {
			case 1:
				hash = ring.positions[random.IntN(len(ring.positions))]
			case 2:
				hash = ring.positions[random.IntN(len(ring.positions))] + 1
			}
			want, least := ring.entries[slices.Index(ring.positions, slices.Min(ring.positions))], uint64(math.MaxUint64)
			for j, position := range ring.positions {
				if position >= hash && position-hash <= least {
					if position-hash < least {
						want = ring.entries[j]
					}
					least = position - hash
				}
			}
			if got, _ := p.Pick(&Query{Hash: hash, HasHash: true}, nil); got != ring.keys[want].slot {
				t.Fatalf("of %d: %d goes to %d, want %d", n, hash, got, ring.keys[want].slot)
			}
		}
	}
}

// TestTablesDoNotDependOnHistory: endpoints that came in another order, or after
// others that left, give the same table.
func TestTablesDoNotDependOnHistory(t *testing.T) {
	for _, policy := range []Policy{{Kind: RingHash}, {Kind: Maglev, Table: Table{Size: 4099}}} {
		key := func(i int) Member { return Member{Weight: uint32(1 + i%3), Key: fmt.Sprint("e", i)} }
		straight, devious := NewBuilder(policy, Locality{}), NewBuilder(policy, Locality{})
		for i := range 50 {
			straight.Put(int32(i), key(i))
		}
		random := rand.New(rand.NewPCG(2, 3))
		for range 400 {
			if i := random.IntN(80); random.IntN(2) == 0 {
				devious.Put(int32(i), key(i))
			} else {
				devious.Remove(int32(i))
			}
			if random.IntN(20) == 0 {
				devious.Picker()
			}
		}
		for i := range 80 {
			if i < 50 {
				devious.Put(int32(i), key(i))
			} else {
				devious.Remove(int32(i))
			}
		}
		a, b := straight.Picker(), devious.Picker()
		for range 5000 {
			q := &Query{Hash: random.Uint64(), HasHash: true}
			x, _ := a.Pick(q, nil)
			if y, _ := b.Pick(q, nil); x != y {
				t.Fatalf("kind %d: %d goes to %d and to %d", policy.Kind, q.Hash, x, y)
			}
		}
	}
}

// TestAttemptsGoOn: picking again for the same request comes to other endpoints.
func TestAttemptsGoOn(t *testing.T) {
	var all []Endpoint
	for i := range 10 {
		all = append(all, Endpoint{Address: fmt.Sprint(i), Weight: 1})
	}
	for _, kind := range []Kind{RingHash, Maglev} {
		p := NewPicker(Policy{Kind: kind}, NewEndpoints(all, nil))
		seen := map[int32]bool{}
		for attempt := range uint64(200) {
			slot, _ := p.Pick(&Query{Hash: 7, HasHash: true, Attempt: attempt}, nil)
			seen[slot] = true
		}
		if len(seen) < 9 {
			t.Errorf("kind %d: 200 attempts come to %d of 10 endpoints", kind, len(seen))
		}
	}
}

func TestKeys(t *testing.T) {
	e := Endpoint{Address: "10.0.0.1:80", Hostname: "a.example"}
	for _, c := range []struct {
		policy Policy
		key    string
		want   string
	}{
		{Policy{Kind: RingHash}, "", "10.0.0.1:80"},
		{Policy{Kind: RingHash, Ring: Ring{Options: HashOptions{UseHostname: true}}}, "", "a.example"},
		{Policy{Kind: Maglev, Table: Table{Options: HashOptions{UseHostname: true}}}, "", "a.example"},
		{Policy{Kind: Maglev, Table: Table{Options: HashOptions{UseHostname: true}}}, "own", "own"},
		{Policy{Kind: Maglev}, "own", "own"},
		{Policy{Kind: RoundRobin}, "own", ""},
	} {
		e.HashKey = c.key
		if got := e.Member(&c.policy).Key; got != c.want {
			t.Errorf("%+v, key %q: %q, want %q", c.policy, c.key, got, c.want)
		}
	}
}
