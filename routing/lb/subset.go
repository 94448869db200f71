package lb

import (
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// DefaultSubsetSize is how many endpoints of a cluster one client uses at most
// where policy names no number. Connections, health checks and memory of a
// client are bounded by it; 100 are enough to spread its load and to fail over.
const DefaultSubsetSize = 100

// SubsetSize returns how many endpoints a client uses at most; 0 means all.
func (p *Policy) SubsetSize() int {
	switch {
	case p.Kind.hashes():
		return 0 // all clients must agree on whose key it is
	case p.Subset == 0 && p.Subsets != nil:
		return 0 // a request may want the very endpoints that would be left out
	case p.Subset == 0:
		return DefaultSubsetSize
	default:
		return int(min(p.Subset, 1<<30))
	}
}

// Score ranks an address for a client: the lowest scores are its endpoints
// (rendezvous hashing; Thaler and Ravishankar, 1996). So when an endpoint comes
// or goes, a client changes at most one, and clients spread over all of them.
func Score(client, address string) uint64 {
	var d xxhash.Digest
	d.Reset()
	d.WriteString(client)
	d.WriteString("\x00")
	d.WriteString(address)
	return d.Sum64()
}

// Subsetter chooses a client's endpoints. It keeps its memory between choices
// and is not safe for concurrent use.
type Subsetter struct {
	groups map[subsetGroup]*subsetPart
	prios  [maxPriority + 1]struct{ n, quota int }
	order  []*subsetPart
}

type subsetGroup struct {
	priority uint32
	locality Locality
}

type subsetPart struct {
	subsetGroup
	n, quota int
	heap     []scored // the lowest scores so far, the highest of them first
}

type scored struct {
	score uint64
	i     int
}

// Choose calls use for size of the n endpoints, in no particular order. Each
// priority gets the same number, as far as it has so many, so that there is
// always somewhere to fail over to; within a priority localities get theirs in
// proportion to their endpoints, and each at least one while the number lasts.
func (s *Subsetter) Choose(n, size int, at func(i int) (score uint64, priority uint32, locality Locality), use func(i int)) {
	if n <= size {
		for i := range n {
			use(i)
		}
		return
	}
	if s.groups == nil {
		s.groups = make(map[subsetGroup]*subsetPart)
	}
	clear(s.groups)
	clear(s.prios[:])
	parts := s.order[:0]
	for i := range n {
		_, priority, locality := at(i)
		g := subsetGroup{min(priority, maxPriority), locality}
		part := s.groups[g]
		if part == nil {
			if len(parts) < cap(parts) {
				parts = parts[:len(parts)+1]
				if part = parts[len(parts)-1]; part == nil {
					part = &subsetPart{}
				}
				*part = subsetPart{subsetGroup: g, heap: part.heap[:0]}
				parts[len(parts)-1] = part
			} else {
				part = &subsetPart{subsetGroup: g}
				parts = append(parts, part)
			}
			s.groups[g] = part
		}
		part.n++
		s.prios[g.priority].n++
	}
	s.order = parts
	s.share(size)
	for i := range n {
		score, priority, locality := at(i)
		s.groups[subsetGroup{min(priority, maxPriority), locality}].offer(scored{score, i})
	}
	for _, part := range parts {
		for _, e := range part.heap {
			use(e.i)
		}
	}
}

// share sets the quotas.
func (s *Subsetter) share(size int) {
	// Priorities first: those with less than an even share leave the rest to the others.
	for left := size; left > 0; {
		open := 0
		for i := range s.prios {
			if s.prios[i].quota < s.prios[i].n {
				open++
			}
		}
		if open == 0 {
			break
		}
		even := max(1, left/open)
		for i := range s.prios {
			p := &s.prios[i]
			give := min(even, p.n-p.quota, left)
			p.quota += give
			left -= give
		}
	}
	slices.SortFunc(s.order, func(a, b *subsetPart) int {
		if a.priority != b.priority {
			return int(a.priority) - int(b.priority)
		}
		return compareLocality(a.locality, b.locality)
	})
	for begin := 0; begin < len(s.order); {
		end := begin
		for end < len(s.order) && s.order[end].priority == s.order[begin].priority {
			end++
		}
		p := s.prios[s.order[begin].priority]
		shareParts(s.order[begin:end], p.n, p.quota)
		begin = end
	}
}

func shareParts(parts []*subsetPart, n, quota int) {
	left := quota
	for _, part := range parts {
		part.quota = int(int64(quota) * int64(part.n) / int64(n))
		left -= part.quota
	}
	// First to those that have none, then to the largest remainders.
	for _, part := range parts {
		if left > 0 && part.quota == 0 {
			part.quota++
			left--
		}
	}
	for left > 0 {
		var most *subsetPart
		remainder := int64(-1)
		for _, part := range parts {
			r := int64(quota)*int64(part.n) - int64(part.quota)*int64(n)
			if part.quota < part.n && (most == nil || r > remainder) {
				most, remainder = part, r
			}
		}
		most.quota++
		left--
	}
}

func compareLocality(a, b Locality) int {
	if c := strings.Compare(a.Region, b.Region); c != 0 {
		return c
	}
	if c := strings.Compare(a.Zone, b.Zone); c != 0 {
		return c
	}
	return strings.Compare(a.SubZone, b.SubZone)
}

func (a scored) above(b scored) bool { return a.score > b.score || a.score == b.score && a.i > b.i }

// offer keeps the endpoint if it is among the lowest quota scores.
func (p *subsetPart) offer(e scored) {
	switch {
	case p.quota == 0:
	case len(p.heap) < p.quota:
		p.heap = append(p.heap, e)
		for i := len(p.heap) - 1; i > 0; {
			up := (i - 1) / 2
			if !p.heap[i].above(p.heap[up]) {
				break
			}
			p.heap[i], p.heap[up] = p.heap[up], p.heap[i]
			i = up
		}
	case p.heap[0].above(e):
		p.heap[0] = e
		for i := 0; ; {
			top, left := i, 2*i+1
			for _, down := range [...]int{left, left + 1} {
				if down < len(p.heap) && p.heap[down].above(p.heap[top]) {
					top = down
				}
			}
			if top == i {
				break
			}
			p.heap[i], p.heap[top] = p.heap[top], p.heap[i]
			i = top
		}
	}
}

// Has reports whether an endpoint's metadata has all of the wanted.
func Has(metadata, want map[string]string) bool {
	for k, v := range want {
		if have, ok := metadata[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// Selects reports whether a selector has exactly the keys of what a request
// wants, so that there is a subset for it, and what the request gets where that
// subset has no endpoint; without a selector it gets that in any case
// (Envoy's subset load balancer). The fallback is never UseClusterFallback.
func (s *Subsets) Selects(want map[string]string) (fallback SubsetFallback, selects bool) {
	if len(want) > 0 {
		for i := range s.Selectors {
			selector := &s.Selectors[i]
			if !selector.has(want) {
				continue
			}
			if selector.Fallback == UseClusterFallback {
				return s.Fallback, true
			}
			return selector.Fallback, true
		}
	}
	return s.Fallback, false
}

func (s *SubsetSelector) has(want map[string]string) bool {
	if len(want) != len(s.Keys) {
		return false
	}
	for _, k := range s.Keys {
		if _, ok := want[k]; !ok {
			return false
		}
	}
	return true
}
