package meshgrpc

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// pinging is a client's HTTP/2 connection that ends when the other end does not
// answer (connection_keepalive). gRPC has such pings as a setting of the whole
// channel, made before there is policy, and here they are of each cluster; so the
// frame is put between gRPC's own. What gRPC reads of an answer to a ping that
// it has not sent it lets be.
type pinging struct {
	net.Conn
	policy snapshot.HTTP2Ping
	heard  atomic.Bool // something was read since this was last set to false
	due    atomic.Bool // the frame is to be written

	timing sync.Mutex // guards what follows; nobody blocks while he holds it
	timer  *time.Timer
	asked  bool // an answer is waited for
	closed bool

	mu      sync.Mutex
	preface int     // bytes of the client's preface, which is no frame, that were not written yet
	frames  framing // written
	failed  bool    // a frame was not written whole: nothing may follow
}

// ping is a PING with eight bytes of its own (RFC 9113, 6.7).
var ping = []byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 's', 'i', 'n', 'e', 'w', 0, 0, 0}

// prefaceLen is that of "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" (RFC 9113, 3.4).
const prefaceLen = 24

// pinged returns a connection on which the other end is asked for an answer when
// nothing was read for the interval, as over HTTP.
func pinged(conn net.Conn, policy snapshot.HTTP2Ping) net.Conn {
	if policy.Interval <= 0 || policy.Timeout <= 0 {
		return conn
	}
	p := &pinging{Conn: conn, policy: policy, preface: prefaceLen}
	p.timing.Lock()
	defer p.timing.Unlock()
	p.timer = time.AfterFunc(policy.Interval, p.tick)
	return p
}

// tick comes after the interval and, where an answer is waited for, the timeout.
func (p *pinging) tick() {
	if !p.next() {
		return
	}
	p.due.Store(true)
	// Who holds the lock writes, and then says it; it may be blocked.
	if p.mu.TryLock() {
		p.say()
		p.mu.Unlock()
	}
}

// next sets the timer anew, and reports whether the other end is to be asked.
// Where it has not answered the connection ends.
func (p *pinging) next() (ask bool) {
	p.timing.Lock()
	defer p.timing.Unlock()
	heard := p.heard.Swap(false)
	switch {
	case p.closed:
		return false
	case !heard && p.asked:
		_ = p.Conn.Close() // whoever reads or writes notices
		return false
	case heard:
		p.asked = false
		p.timer.Reset(p.policy.Interval)
		return false
	default:
		p.asked = true
		p.timer.Reset(p.policy.Timeout)
		return true
	}
}

// say writes the frame if it is due and may stand here. The caller holds mu.
func (p *pinging) say() {
	if p.failed || p.preface > 0 || !p.frames.between() || !p.due.Swap(false) {
		return
	}
	if _, err := p.Conn.Write(ping); err != nil {
		p.failed = true
	}
}

// Write implements net.Conn.
func (p *pinging) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := p.Conn.Write(b)
	written := b[:n]
	skip := min(p.preface, n)
	p.preface -= skip
	p.frames.follow(written[skip:])
	if err != nil {
		p.failed = true
		return n, err
	}
	p.say()
	return n, nil
}

// Read implements net.Conn.
func (p *pinging) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if n > 0 {
		p.heard.Store(true)
	}
	return n, err
}

// Close implements net.Conn.
func (p *pinging) Close() error {
	p.timing.Lock()
	p.closed = true
	p.timer.Stop()
	p.timing.Unlock()
	return p.Conn.Close()
}
