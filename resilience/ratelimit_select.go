package resilience

import (
	"encoding/binary"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/sinew-mesh/sinew/routing"
)

// LimitRequest is what rate limits know of a request. It is a plain value of the
// caller's.
type LimitRequest struct {
	*routing.Request
	// RemoteIP is the client on whose behalf the peer calls; a zero address makes no entry.
	RemoteIP netip.Addr
	// Principal is the SPIFFE ID that the peer has proved; "" without one.
	Principal string
}

// LimitUse is one bucket that a request takes tokens from.
type LimitUse struct {
	// Bucket is how the bucket fills.
	Bucket *Bucket
	// Slot says which of the limit's buckets it is, from 0.
	Slot int
	// Tokens is how many are taken.
	Tokens uint32
	// Open says that there is a bucket for each LimitUses.Key under the slot.
	Open bool
	// Shadow says that a lack of tokens refuses nothing.
	Shadow bool

	from, to int // of the key
}

// LimitUses are the buckets that a request takes tokens from, in order. It can be used again.
type LimitUses struct {
	Uses []LimitUse
	keys []byte
}

// Key returns the key of use i among the buckets of its slot, which holds what
// the client sent and is valid until the next Select. Two requests
// have one key if and only if they share a bucket.
func (u *LimitUses) Key(i int) []byte { return u.keys[u.Uses[i].from:u.Uses[i].to] }

// Slots returns the number of slots.
func (l *RateLimit) Slots() int { return len(l.slots) }

// Open reports whether a slot has a bucket for each key.
func (l *RateLimit) Open(slot int) bool {
	return slot == l.principal || slices.Contains(l.open, slot)
}

// Select puts the buckets that a request takes tokens from into u. The first
// that lacks tokens refuses the request, unless it is a shadow; tokens that were
// taken before stay taken. As in Envoy the slowest bucket comes first and that
// for all requests last, so that who has used up their own share takes nothing
// from the others'. It allocates only to grow u, and for values that have to be decoded.
func (l *RateLimit) Select(r *LimitRequest, u *LimitUses) {
	u.Uses, u.keys = u.Uses[:0], u.keys[:0]
	for i := range l.config.Actions {
		l.describe(r, &l.config.Actions[i], u)
	}
	matched := len(u.Uses) > 0
	if slot, ok := l.principals[r.Principal]; ok {
		l.use(u, LimitUse{Slot: slot, Tokens: 1})
	} else if l.principal >= 0 {
		from := len(u.keys)
		u.keys = append(u.keys, r.Principal...)
		l.use(u, LimitUse{Slot: l.principal, Tokens: 1, Open: true, from: from, to: len(u.keys)})
	}
	if len(u.Uses) > 1 {
		slices.SortStableFunc(u.Uses, func(a, b LimitUse) int {
			switch {
			case a.Bucket.cost > b.Bucket.cost:
				return -1
			case a.Bucket.cost < b.Bucket.cost:
				return 1
			}
			return 0
		})
	}
	if l.unmatched >= 0 && !(matched && l.config.OnlyUnmatched) {
		l.use(u, LimitUse{Slot: l.unmatched, Tokens: 1})
	}
}

func (l *RateLimit) use(u *LimitUses, use LimitUse) {
	use.Bucket = &l.slots[use.Slot]
	u.Uses = append(u.Uses, use)
}

// describe adds the bucket of the descriptor that the actions make.
func (l *RateLimit) describe(r *LimitRequest, list *LimitActions, u *LimitUses) {
	from := len(u.keys)
	var room [8]LimitEntry
	entries := room[:0]
	for i := range list.Actions {
		a := &list.Actions[i]
		value, ok := a.value(r)
		if !ok {
			if a.SkipIfAbsent {
				continue
			}
			u.keys = u.keys[:from]
			return
		}
		entries = append(entries, LimitEntry{a.Key, value})
		u.keys = appendEntry(u.keys, a.Key, value)
	}
	if slot, ok := l.exact[string(u.keys[from:])]; ok {
		u.keys = u.keys[:from]
		l.use(u, LimitUse{Slot: slot, Tokens: list.Hits, Shadow: l.config.Descriptors[slot].Shadow})
		return
	}
	for _, slot := range l.open {
		if d := &l.config.Descriptors[slot]; d.fits(entries) {
			l.use(u, LimitUse{Slot: slot, Tokens: list.Hits, Shadow: d.Shadow, Open: true, from: from, to: len(u.keys)})
			return
		}
	}
	u.keys = u.keys[:from]
}

func (d *LimitDescriptor) fits(entries []LimitEntry) bool {
	if len(entries) != len(d.Entries) {
		return false
	}
	for i, e := range d.Entries {
		if e.Key != entries[i].Key || e.Value != "" && e.Value != entries[i].Value {
			return false
		}
	}
	return true
}

// appendEntry encodes an entry so that different entries never look the same.
func appendEntry(b []byte, key, value string) []byte {
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// value returns what an action finds in the request, and whether it finds anything.
func (a *LimitAction) value(r *LimitRequest) (string, bool) {
	switch a.Kind {
	case LimitGenericKey:
		return a.Value, true
	case LimitRequestHeader:
		switch a.Header.String() {
		case ":method":
			return r.Method, r.Method != ""
		case ":authority", "host":
			return r.Authority, r.Authority != ""
		case ":scheme":
			return r.Scheme, r.Scheme != ""
		case ":path":
			if r.RawQuery != "" {
				return r.Path + "?" + r.RawQuery, true
			}
			return r.Path, r.Path != ""
		}
		if values := a.Header.In(r.Header, r.Form); len(values) > 0 {
			return values[0], true
		}
		return "", false
	case LimitQueryParameter:
		return parameter(r.RawQuery, a.Parameter)
	case LimitRemoteAddress:
		if !r.RemoteIP.IsValid() {
			return "", false
		}
		return r.RemoteIP.Unmap().WithZone("").String(), true
	case LimitMaskedAddress:
		at, bits := r.RemoteIP.Unmap().WithZone(""), a.Bits6
		if at.Is4() {
			bits = a.Bits4
		}
		p, err := at.Prefix(bits)
		if err != nil || !p.IsValid() {
			return "", false
		}
		return p.String(), true
	case LimitHeaderMatch:
		for i := range a.Headers {
			if !a.Headers[i].Matches(r.Request) {
				return a.Value, a.Invert
			}
		}
		return a.Value, !a.Invert
	case LimitQueryMatch:
		for i := range a.Query {
			m := &a.Query[i]
			v, ok := parameter(r.RawQuery, m.Name)
			if m.Kind == routing.QueryPresent {
				ok = ok == m.Present
			} else {
				ok = ok && m.String.Matches(v)
			}
			if !ok {
				return a.Value, a.Invert
			}
		}
		return a.Value, !a.Invert
	case LimitAddressMatch:
		at := r.RemoteIP.Unmap().WithZone("")
		if !at.IsValid() {
			return "", false
		}
		for _, p := range a.Ranges {
			if p.Contains(at) {
				return a.Value, !a.Invert
			}
		}
		return a.Value, a.Invert
	}
	return "", false
}

// parameter returns the first value of a parameter, with escapes undone as
// handlers do, so that another spelling is not another value.
func parameter(query, name string) (string, bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		if k, v, _ := strings.Cut(pair, "="); unescape(k) == name {
			return unescape(v), true
		}
	}
	return "", false
}

func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s
	}
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return s
}
