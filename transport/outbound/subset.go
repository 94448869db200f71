package outbound

import (
	"slices"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// subset is the endpoints with some metadata, kept up to date with the cluster.
type subset struct {
	want     map[string]string
	builder  *lb.Builder
	fallback lb.SubsetFallback // for a request that finds it empty
}

// put brings an endpoint into the subset, or takes it out. The caller holds the cluster's mutex.
func (s *subset) put(e *Endpoint, m lb.Member) {
	if lb.Has(e.spec.Load().Metadata, s.want) {
		s.builder.Put(e.slot, m)
	} else {
		s.builder.Remove(e.slot)
	}
}

// maxSubsets bounds the subsets of a cluster that are kept. They come from
// routes, so that there are few.
const maxSubsets = 1024

// subsetKey appends a name for the metadata to dst.
func subsetKey(dst []byte, want map[string]string) []byte {
	var few [8]string
	keys := few[:0]
	for k := range want {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		dst = append(append(append(append(dst, k...), 0), want[k]...), 0)
	}
	return dst
}

// subsetOf returns the picker for a request that wants endpoints with such
// metadata; nil if it is to have none. A subset is built when it is first asked
// for; then *s is the state that has it.
func (c *Cluster) subsetOf(s **clusterState, want map[string]string) *lb.Picker {
	var few [128]byte
	key := subsetKey(few[:0], want)
	picker, ok := (*s).subsets[string(key)]
	if !ok {
		*s = c.addSubset(string(key), want)
		picker = (*s).subsets[string(key)]
	}
	return picker
}

// addSubset returns the current state with a subset more.
func (c *Cluster) addSubset(key string, want map[string]string) *clusterState {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.current.Load()
	if _, ok := s.subsets[key]; ok || s.config.LB.Subsets == nil {
		return s
	}
	if len(c.subsets) >= maxSubsets {
		c.subsets = nil
	}
	if c.subsets == nil {
		c.subsets = make(map[string]*subset)
	}
	config := s.config.LB.Subsets
	fallback, selects := config.Selects(want)
	sub := &subset{want: want, fallback: fallback, builder: c.builder.Part()}
	if !selects {
		sub.want = nil // the fallback decides
	}
	c.subsets[key] = sub
	// What a fallback to the default subset needs is kept under its own name.
	if def := string(subsetKey(nil, config.Default)) + "\x01"; fallback == lb.DefaultSubset && c.subsets[def] == nil {
		c.subsets[def] = &subset{want: config.Default, builder: c.builder.Part()}
	}
	for _, e := range c.known {
		c.put(e)
	}
	next := *s
	c.publish(&next)
	return &next
}

// publishSubsets gives a state the pickers of the subsets. The caller holds mu.
func (c *Cluster) publishSubsets(s *clusterState) {
	s.subsets = nil
	if len(c.subsets) == 0 || s.config.LB.Subsets == nil {
		return
	}
	s.subsets = make(map[string]*lb.Picker, len(c.subsets))
	var def *lb.Picker
	if sub := c.subsets[string(subsetKey(nil, s.config.LB.Subsets.Default))+"\x01"]; sub != nil && sub.builder.Len() > 0 {
		def = sub.builder.Picker().Warm(c.oldest, c.newest)
	}
	for key, sub := range c.subsets {
		switch {
		case sub.want != nil && sub.builder.Len() > 0:
			s.subsets[key] = sub.builder.Picker().Warm(c.oldest, c.newest)
		case sub.fallback == lb.AnyEndpoint:
			s.subsets[key] = s.picker
		case sub.fallback == lb.DefaultSubset:
			s.subsets[key] = def
		default:
			s.subsets[key] = nil
		}
	}
}
