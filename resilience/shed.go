package resilience

import (
	"strings"
	"time"
)

// ShedReason says why a server refuses a request that it could only answer too late.
type ShedReason uint8

const (
	// NotShed lets the request in.
	NotShed ShedReason = iota
	// ShedDeadline: the time of the request has passed already.
	ShedDeadline
	// ShedWait: the wait for its turn would take longer than the time that it has left.
	ShedWait
	// ShedQueue: as many requests wait as may at its urgency.
	ShedQueue
)

var shedReasons = [...]string{NotShed: "", ShedDeadline: "deadline passed", ShedWait: "wait longer than the time left", ShedQueue: "queue full"}

// String returns the reason in words; "" for NotShed.
func (r ShedReason) String() string {
	if int(r) < len(shedReasons) {
		return shedReasons[r]
	}
	return "unknown"
}

// Shedding says which requests a server refuses rather than lets wait. What a
// server does for a request whose caller has given up is lost for the others:
// under overload that alone can keep it from ever recovering.
type Shedding struct {
	// Queue is how many requests may wait at one time. Less urgent ones may fill
	// only a part of it. Default 40.
	Queue int
}

// DefaultShedding lets 40 requests wait.
var DefaultShedding = Shedding{Queue: 40}

// ServerLoad is what a server knows of its load.
type ServerLoad struct {
	Waiting int           // requests that wait for their turn before this one
	Workers int           // how many are served at one time
	Service time.Duration // how long one is served on average; 0 where nothing is known
}

// Wait returns how long a request waits for its turn: until those before it
// have been served, by all workers side by side.
func (l ServerLoad) Wait() time.Duration {
	if l.Workers <= 0 || l.Waiting <= 0 {
		return 0
	}
	return time.Duration(float64(l.Service) * float64(l.Waiting) / float64(l.Workers))
}

// Decide decides about a request that has to wait. left is the time that it has
// left where limited is set; urgency is as Urgency reads it.
//
// The queue is shared by urgency: a request of urgency 0 may take any place,
// one of urgency 7 only the first eighth of them. So those who are least urgent
// are refused first.
func (s *Shedding) Decide(l ServerLoad, left time.Duration, limited bool, urgency uint8) ShedReason {
	switch {
	case limited && left <= 0:
		return ShedDeadline
	case l.Waiting >= s.places(urgency):
		return ShedQueue
	case limited && l.Wait()+l.Service > left:
		return ShedWait
	}
	return NotShed
}

// places returns how many of the queue's places a request of the urgency may take.
func (s *Shedding) places(urgency uint8) int {
	queue := s.Queue
	if queue == 0 {
		queue = DefaultShedding.Queue
	}
	return (queue*int(8-min(urgency, MaxUrgency)) + 7) / 8
}

const (
	// DefaultUrgency is that of a request that says nothing of it (RFC 9218, section 4.1).
	DefaultUrgency uint8 = 3
	// MaxUrgency is the least urgent.
	MaxUrgency uint8 = 7
)

// Urgency reads the urgency of a request from the values of its Priority
// header: 0, the most urgent, to 7 (RFC 9218, section 4.1). The last member "u"
// counts. A value that is missing, or is none of these, means 3.
func Urgency(values []string) uint8 {
	urgency := DefaultUrgency
	for _, value := range values {
		for member := range strings.SplitSeq(value, ",") {
			key, v, ok := strings.Cut(strings.Trim(member, " \t"), "=")
			if key != "u" {
				continue
			}
			urgency = DefaultUrgency
			v, _, _ = strings.Cut(v, ";")
			if v = strings.TrimRight(v, " \t"); ok && len(v) == 1 && v[0] >= '0' && v[0] <= '7' {
				urgency = v[0] - '0'
			}
		}
	}
	return urgency
}
