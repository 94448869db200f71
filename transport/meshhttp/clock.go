package meshhttp

import (
	"math/rand/v2"
	"sync"
	"time"
)

// clock ends deadlines when their time has come. It exists because a runtime
// timer for each request costs more than its 100 ns: starting one wakes a
// processor that has nothing to do. Nearly every request ends long before its
// limit, so a shard has one timer for all of its deadlines, set for the
// earliest that it has seen; it is set anew only when it fires, or for an
// earlier deadline.
type clock struct {
	shards [8]shard
}

// shard is a share of the deadlines, so that requests seldom meet at a lock.
type shard struct {
	mu    sync.Mutex
	first *deadline   // a list through deadline.next
	timer *time.Timer // nil until it is needed
	set   time.Time   // what timer is set for; zero where it is not
	_     [64]byte    // keeps shards from sharing a cache line
}

// add has d.expire called at d.at, unless remove comes before.
func (c *clock) add(d *deadline) {
	s := &c.shards[rand.Uint32()%uint32(len(c.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	d.shard, d.next = s, s.first
	if s.first != nil {
		s.first.previous = d
	}
	s.first = d
	if s.set.IsZero() || d.at.Before(s.set) {
		s.start(d.at)
	}
}

// remove takes a deadline off its list, if it was added and is still on it.
func (d *deadline) remove() {
	s := d.shard
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlink(d)
}

// unlink takes a deadline off the list. The caller holds mu.
func (s *shard) unlink(d *deadline) {
	switch {
	case d.previous != nil:
		d.previous.next = d.next
	case s.first == d:
		s.first = d.next
	default:
		return
	}
	if d.next != nil {
		d.next.previous = d.previous
	}
	d.next, d.previous = nil, nil
}

// start sets the timer. The caller holds mu.
func (s *shard) start(at time.Time) {
	s.set = at
	if wait := time.Until(at); s.timer == nil {
		s.timer = time.AfterFunc(wait, s.fire)
	} else {
		s.timer.Reset(wait)
	}
}

// fire ends the deadlines whose time has come and sets the timer for the next.
func (s *shard) fire() {
	var due []*deadline
	s.mu.Lock()
	now, earliest := time.Now(), time.Time{}
	for d := s.first; d != nil; {
		next := d.next
		switch {
		case !d.at.After(now):
			s.unlink(d)
			due = append(due, d)
		case earliest.IsZero() || d.at.Before(earliest):
			earliest = d.at
		}
		d = next
	}
	if s.set = earliest; !earliest.IsZero() {
		s.start(earliest)
	}
	s.mu.Unlock()
	for _, d := range due {
		d.expire()
	}
}
