package meshhttp

import (
	"math/rand/v2"
	"sync"
	"time"
)

// clock rings alarms when their time has come. It exists because a runtime
// timer for each request costs more than its 100 ns: starting one wakes a
// processor that has nothing to do. Nearly every request ends long before its
// limits, so a shard has one timer for all of its alarms, set for the
// earliest that it has seen; it is set anew only when it fires, or for an
// earlier alarm.
type clock struct {
	shards [8]shard
}

// shard is a share of the alarms, so that requests seldom meet at a lock.
type shard struct {
	mu    sync.Mutex
	first *alarm      // a list through alarm.next
	timer *time.Timer // nil until it is needed
	set   time.Time   // what timer is set for; zero where it is not
	_     [64]byte    // keeps shards from sharing a cache line
}

// alarm is a time at which a clock calls something. It is a part of what it calls.
type alarm struct {
	at    time.Time
	rings ringer

	shard          *shard
	next, previous *alarm
}

// ringer is what an alarm calls, without locks, once its time has come.
type ringer interface{ ring() }

// add has a.rings called at a.at, unless remove comes before. An alarm that has
// rung may be added again.
func (c *clock) add(a *alarm) {
	s := a.shard
	if s == nil {
		s = &c.shards[rand.Uint32()%uint32(len(c.shards))]
	}
	s.mu.Lock()
	a.shard, a.next = s, s.first
	if s.first != nil {
		s.first.previous = a
	}
	s.first = a
	if s.set.IsZero() || a.at.Before(s.set) {
		s.start(a.at)
	}
	s.mu.Unlock()
}

// remove takes an alarm off its list, if it was added and is still on it. It and
// add are not called at the same time.
func (a *alarm) remove() {
	s := a.shard
	if s == nil {
		return
	}
	a.shard = nil // so that the next call need not lock
	s.mu.Lock()
	s.unlink(a)
	s.mu.Unlock()
}

// unlink takes an alarm off the list. The caller holds mu.
func (s *shard) unlink(a *alarm) {
	switch {
	case a.previous != nil:
		a.previous.next = a.next
	case s.first == a:
		s.first = a.next
	default:
		return
	}
	if a.next != nil {
		a.next.previous = a.previous
	}
	a.next, a.previous = nil, nil
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

// fire rings the alarms whose time has come and sets the timer for the next.
func (s *shard) fire() {
	var due []*alarm
	s.mu.Lock()
	now, earliest := time.Now(), time.Time{}
	for a := s.first; a != nil; {
		next := a.next
		switch {
		case !a.at.After(now):
			s.unlink(a)
			due = append(due, a)
		case earliest.IsZero() || a.at.Before(earliest):
			earliest = a.at
		}
		a = next
	}
	if s.set = earliest; !earliest.IsZero() {
		s.start(earliest)
	}
	s.mu.Unlock()
	for _, a := range due {
		a.rings.ring()
	}
}
