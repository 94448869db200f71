package lb

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

type recordedHosts struct {
	Test  string
	Hosts []struct {
		Key      string `json:"hash_key"`
		Weight   uint32
		Locality uint32
	}
	Config struct {
		Min      uint64   `json:"minimum_ring_size"`
		Max      uint64   `json:"maximum_ring_size"`
		Function string   `json:"hash_function"`
		Weights  []uint32 `json:"locality_weights"`
	}
	TableSize uint64   `json:"table_size"`
	Weights   []uint32 `json:"locality_weights"`
	Expect    struct {
		Size       int `json:"ring_size"`
		MinHashes  int `json:"min_hashes_per_host"`
		MaxHashes  int `json:"max_hashes_per_host"`
		MinEntries int `json:"min_entries_per_host"`
		MaxEntries int `json:"max_entries_per_host"`
		Picks      []struct{ Hash, Host string }
		Ring       []struct{ Position, Host string } `json:"ring_sorted"`
		Histogram  *struct{ Hits map[string]int }
		Table      []string
	}
}

// picker returns the picker of the hosts; their order is turned round, because it must not matter.
func (r *recordedHosts) picker(p Policy, health Health) (*Picker, []Endpoint) {
	weights := append(r.Weights, r.Config.Weights...)
	p.LocalityWeighted = len(weights) > 0
	eps := &Endpoints{}
	zone := func(i uint32) Locality { return Locality{Zone: strconv.Itoa(int(i))} }
	for _, h := range slices.Backward(r.Hosts) {
		eps.All = append(eps.All, Endpoint{Address: "unused", HashKey: h.Key, Weight: h.Weight, Locality: zone(h.Locality), Health: health})
	}
	for i, w := range weights {
		eps.Localities = append(eps.Localities, LocalityWeight{Locality: zone(uint32(i)), Weight: w})
	}
	return NewPicker(p, eps), eps.All
}

func tableOf(p *Picker, c class) *table { return p.prios[0].pools[c].table }

func counts(t *table) (least, most int) {
	per := make([]int, len(t.keys))
	for _, k := range t.entries {
		per[k]++
	}
	return slices.Min(per), slices.Max(per)
}

func TestRecordedRingsAndTables(t *testing.T) {
	var file struct {
		Errors []struct {
			LB   string
			Min  uint64 `json:"minimum_ring_size"`
			Max  uint64 `json:"maximum_ring_size"`
			Size uint64 `json:"table_size"`
		} `json:"config_errors"`
		Defaults map[string]uint64
		Other    []struct{ Test string }
		Ring     []recordedHosts `json:"ring_hash"`
		Maglev   []recordedHosts
	}
	conformance.Load(t, "envoy-facts/ring_hash_maglev.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/ring_hash_maglev.json")
	for _, c := range file.Errors {
		err := (&Table{Size: c.Size}).Validate()
		if c.LB == "ring_hash" {
			err = (&Ring{MinSize: c.Min, MaxSize: c.Max}).Validate()
		}
		if err == nil {
			tally.Fail(t, "%+v is accepted", c)
			continue
		}
		tally.Pass()
	}
	for name, want := range file.Defaults {
		got := map[string]uint64{"ring_hash.minimum_ring_size": DefaultMinRing, "ring_hash.maximum_ring_size": DefaultMaxRing, "maglev.table_size": DefaultTableSize}[name]
		if got != want {
			tally.Fail(t, "%s is %d, want %d", name, got, want)
			continue
		}
		tally.Pass()
	}
	for i := range file.Ring {
		c := &file.Ring[i]
		policy := Policy{Kind: RingHash, Ring: Ring{MinSize: c.Config.Min, MaxSize: c.Config.Max}}
		if c.Config.Function == "MURMUR_HASH_2" {
			policy.Ring.Function = MurmurHash2
		}
		p, all := c.picker(policy, Healthy)
		if msg := checkRing(c, p, all); msg != "" {
			tally.Fail(t, "%s: %s", c.Test, msg)
			continue
		}
		tally.Pass()
	}
	for i := range file.Maglev {
		c := &file.Maglev[i]
		policy, health, of := Policy{Kind: Maglev, Table: Table{Size: c.TableSize}}, Healthy, healthy
		if strings.Contains(c.Test, "Panic") {
			policy.PanicThreshold, health, of = 50, Unhealthy, everyone
		}
		p, all := c.picker(policy, health)
		table := tableOf(p, of)
		var got []string
		for hash := range c.TableSize {
			slot, _ := p.Pick(&Query{Hash: hash, HasHash: true}, nil)
			got = append(got, all[slot].HashKey)
		}
		least, most := counts(table)
		if !slices.Equal(got, c.Expect.Table) || least != c.Expect.MinEntries || most != c.Expect.MaxEntries {
			tally.Fail(t, "%s: the table is %v with %d to %d entries, want %v with %d to %d", c.Test, got, least, most, c.Expect.Table, c.Expect.MinEntries, c.Expect.MaxEntries)
			continue
		}
		tally.Pass()
	}
	for _, c := range file.Other {
		if msg := checkOther(c.Test); msg != "" {
			tally.Fail(t, "%s: %s", c.Test, msg)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/ring_hash_maglev.json", 19, 0)
}

func checkRing(c *recordedHosts, p *Picker, all []Endpoint) string {
	ring := tableOf(p, healthy)
	pick := func(hash uint64) string {
		slot, _ := p.Pick(&Query{Hash: hash, HasHash: true}, nil)
		return all[slot].HashKey
	}
	for i, want := range c.Expect.Ring {
		position, _ := strconv.ParseUint(want.Position, 10, 64)
		if ring.positions[i] != position || ring.keys[ring.entries[i]].name != want.Host {
			return "entry " + strconv.Itoa(i) + " is of " + ring.keys[ring.entries[i]].name
		}
	}
	for _, want := range c.Expect.Picks {
		hash, _ := strconv.ParseUint(want.Hash, 10, 64)
		if got := pick(hash); got != want.Host {
			return want.Hash + " goes to " + got + ", want " + want.Host
		}
	}
	least, most := counts(ring)
	if len(ring.entries) != c.Expect.Size || least != c.Expect.MinHashes || most != c.Expect.MaxHashes {
		return "size " + strconv.Itoa(len(ring.entries)) + " with " + strconv.Itoa(least) + " to " + strconv.Itoa(most)
	}
	if c.Expect.Histogram != nil {
		hits := map[string]int{}
		for i := range uint64(1023) {
			hits[pick(i*(math.MaxUint64/1023))]++
		}
		for host, want := range c.Expect.Histogram.Hits {
			if hits[host] != want {
				return host + " has " + strconv.Itoa(hits[host])
			}
		}
	}
	return ""
}

// checkOther has the cases that the file describes in words.
func checkOther(name string) string {
	host := func(health Health, priority uint32) Endpoint {
		return Endpoint{Address: "127.0.0.1:8" + strconv.Itoa(int(priority)), Weight: 1, Health: health, Priority: priority}
	}
	for _, kind := range []Kind{RingHash, Maglev} {
		pick := func(p Policy, hash uint64, eps *Endpoints) int32 {
			p.Kind = kind
			slot, _ := NewPicker(p, eps).Pick(&Query{Hash: hash, HasHash: true}, nil)
			return slot
		}
		switch name {
		case "NoHost":
			if pick(Policy{PanicThreshold: 50}, 0, &Endpoints{}) != -1 {
				return "picks of none"
			}
		case "ZeroLocalityWeights / LocalityWeightedAllZeroLocalityWeights":
			eps := &Endpoints{All: []Endpoint{host(Healthy, 0)}, Localities: []LocalityWeight{{Weight: 0}}}
			if pick(Policy{LocalityWeighted: true}, 0, eps) != -1 {
				return "picks in a locality of weight 0"
			}
		case "BasicFailover":
			eps := &Endpoints{All: []Endpoint{host(Unhealthy, 0), host(Healthy, 1)}}
			if pick(Policy{}, 0, eps) != 1 {
				return "no failover"
			}
			eps.All = append(eps.All, host(Healthy, 0))
			if pick(Policy{}, 69, eps) != 2 || pick(Policy{}, 71, eps) != 1 {
				return "not 70 % stay"
			}
		case "Basic with healthy_hosts cleared":
			if pick(Policy{PanicThreshold: 50}, 0, &Endpoints{All: []Endpoint{host(Unhealthy, 0)}}) != 0 {
				return "no panic"
			}
		default:
			return "unknown case"
		}
	}
	return ""
}

func TestRecordedHashes(t *testing.T) {
	var file struct {
		XX []struct {
			Input, Hash string
			Seed        uint64
		} `json:"xxhash64"`
		Murmur   []struct{ Input, Hash string } `json:"murmurhash2_64_seed_0xc70f6907"`
		Computed struct {
			XX    []struct{ Input, Hash string } `json:"xxhash64"`
			Seed1 []struct{ Input, Hash string } `json:"xxhash64_seed_1"`
		} `json:"computed_here"`
		Lists []struct {
			Input []string
			Hash  string
		} `json:"xxhash64_string_list"`
		Scalars []struct{ Input, Hash string } `json:"xxhash64_of_scalar_little_endian"`
		DJB     []struct{ Input, Hash string } `json:"djb2_case_insensitive"`
	}
	conformance.Load(t, "envoy-facts/hashes.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/hashes.json")
	check := func(what string, got uint64, want string) {
		if strconv.FormatUint(got, 10) != want {
			tally.Fail(t, "%q hashes to %d, want %s", what, got, want)
			return
		}
		tally.Pass()
	}
	seeded := func(s string, seed uint64) uint64 {
		var d xxhash.Digest
		d.ResetWithSeed(seed)
		d.WriteString(s)
		return d.Sum64()
	}
	for _, c := range file.XX {
		check(c.Input, seeded(c.Input, c.Seed), c.Hash)
	}
	for _, c := range file.Computed.XX {
		check(c.Input, xxhash.Sum64String(c.Input), c.Hash)
	}
	for _, c := range file.Computed.Seed1 {
		check(c.Input, seeded(c.Input, 1), c.Hash)
	}
	for _, c := range file.Murmur {
		check(c.Input, murmur([]byte(c.Input)), c.Hash)
	}
	for _, c := range file.Lists {
		hash := uint64(0)
		for _, s := range c.Input {
			hash = seeded(s, hash)
		}
		check(strings.Join(c.Input, " "), hash, c.Hash)
	}
	for _, c := range file.Scalars {
		tally.Differs(t, "xxhash64 of "+c.Input)
	}
	for i := range file.DJB {
		tally.Differs(t, fmt.Sprintf("djb2 [%d]", i))
	}
	tally.Check(t, "envoy-facts/hashes.json", len(file.XX)+len(file.Computed.XX)+len(file.Computed.Seed1)+len(file.Murmur)+1, len(file.Scalars)+len(file.DJB))
}

// TestRecordedGRPCRings has the shapes and picks of gRPC's ring hash. Where gRPC
// waits for a connection, the adapter skips the endpoint and the walk goes on.
func TestRecordedGRPCRings(t *testing.T) {
	var file struct {
		Pick []struct {
			Name   string
			States []string `json:"endpoint_states_in_ring_order"`
			Picked *int
		}
		Keys      []any                   `json:"request_header_key"`
		Aggregate []struct{ Name string } `json:"aggregate_state"`
		Config    []any
		Hash      []any `json:"request_hash"`
		Shape     []struct {
			Endpoints []struct {
				Key    string
				Weight uint32
			}
			Min uint64 `json:"min_ring_size"`
			Max uint64 `json:"max_ring_size"`
		} `json:"ring_shape"`
	}
	conformance.Load(t, "grpc-facts/ring_hash.json", &file)
	tally := conformance.Deciding(t, "grpc-facts/ring_hash.json")
	for _, c := range file.Pick {
		if c.Picked == nil {
			tally.Differs(t, c.Name)
			continue
		}
		// Find the ring's order, then ask with the hash of its first place.
		all := make([]Endpoint, len(c.States))
		for i := range all {
			all[i] = Endpoint{Address: strconv.Itoa(i), Weight: 1}
		}
		p := NewPicker(Policy{Kind: RingHash, Ring: Ring{MinSize: uint64(len(all)), MaxSize: uint64(len(all))}}, NewEndpoints(all, nil))
		ring := tableOf(p, healthy)
		state := map[int32]int{}
		for i, k := range ring.entries {
			state[ring.keys[k].slot] = i
		}
		for attempt := uint64(0); ; attempt++ {
			slot, _ := p.Pick(&Query{Hash: ring.positions[0], HasHash: true, Attempt: attempt}, nil)
			if c.States[state[slot]] == "TRANSIENT_FAILURE" {
				continue
			}
			if state[slot] != *c.Picked {
				tally.Fail(t, "%s: picks %d", c.Name, state[slot])
			} else {
				tally.Pass()
			}
			break
		}
	}
	for _, c := range file.Shape {
		var all []Endpoint
		sum := 0.0
		for _, e := range c.Endpoints {
			all = append(all, Endpoint{Address: e.Key, Weight: e.Weight})
			sum += float64(e.Weight)
		}
		ring := tableOf(NewPicker(Policy{Kind: RingHash, Ring: Ring{MinSize: c.Min, MaxSize: c.Max}}, NewEndpoints(all, nil)), healthy)
		n, ok := len(ring.entries), true
		for i := range ring.keys {
			count := 0
			for _, k := range ring.entries {
				if int(k) == i {
					count++
				}
			}
			want := float64(c.Endpoints[i].Weight) / sum
			ok = ok && math.Abs(float64(count)/float64(n)-want) <= .25*want+1e-9
		}
		if !ok || n < int(c.Min) || n > int(c.Max) {
			tally.Fail(t, "%+v: a ring of %d", c, n)
			continue
		}
		tally.Pass()
	}
	for range len(file.Keys) + len(file.Hash) {
		tally.RunIn(t, "routing", "TestRecordedGRPCHashes") // the key of a request is the route's hash policy
	}
	for _, c := range file.Aggregate {
		tally.Differs(t, "aggregate_state "+c.Name)
	}
	for range file.Config {
		tally.RunIn(t, "internal/xds/compile", "TestConformanceRingHashConfig")
	}
	tally.Check(t, "grpc-facts/ring_hash.json", 6, 3+len(file.Keys)+len(file.Hash)+len(file.Aggregate)+len(file.Config))
}
