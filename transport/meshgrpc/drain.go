package meshgrpc

import (
	"net"
	"sync"
	"sync/atomic"
)

// drainable is a connection of a gRPC server that can be asked to take no
// further RPCs. gRPC's server can say so only to all of its connections
// (GracefulStop, MaxConnectionAge), so the frame that says it is put between
// the server's own: a GOAWAY without an error for the highest stream there can
// be (RFC 9113, 6.8). The client makes its next RPCs on another connection, and
// closes this one when its last has ended; the server need not know.
type drainable struct {
	net.Conn
	local net.Addr
	all   *sync.Map
	asked atomic.Bool

	mu     sync.Mutex
	frames framing // written
	wanted bool
	said   bool
	failed bool // a frame was not written whole: nothing may follow
}

// Write implements net.Conn.
func (d *drainable) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.Conn.Write(b)
	d.frames.follow(b[:n])
	if err != nil {
		d.failed = true
		return n, err
	}
	d.say()
	return n, nil
}

// say writes the frame if it is wanted and may stand here.
func (d *drainable) say() {
	if !d.wanted || d.said || d.failed || !d.frames.between() {
		return
	}
	d.said = true
	if _, err := d.Conn.Write(goAway); err != nil {
		d.failed = true
	}
}

// drain asks the client to make no further RPCs on the connection. It may be
// called again. It returns at once: a client that reads nothing blocks the
// writing of the frame.
func (d *drainable) drain() {
	if d.asked.Swap(true) {
		return
	}
	go func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.wanted = true
		d.say()
	}()
}

// Close implements net.Conn.
func (d *drainable) Close() error {
	d.all.Delete(d.local)
	return d.Conn.Close()
}
