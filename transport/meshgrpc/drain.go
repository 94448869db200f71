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
	header [9]byte // of the frame that is being written (RFC 9113, 4.1)
	have   int     // of header
	left   int     // of the frame's payload
	wanted bool
	said   bool
	failed bool // a frame was not written whole: nothing may follow
}

// goAway has last stream ID 2^31-1 and the error code NO_ERROR.
var goAway = []byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0}

// Write implements net.Conn.
func (d *drainable) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.Conn.Write(b)
	d.follow(b[:n])
	if err != nil {
		d.failed = true
		return n, err
	}
	d.say()
	return n, nil
}

// follow notes where in a frame the written bytes end.
func (d *drainable) follow(b []byte) {
	for len(b) > 0 {
		if d.left > 0 {
			n := min(d.left, len(b))
			d.left -= n
			b = b[n:]
			continue
		}
		n := copy(d.header[d.have:], b)
		d.have += n
		b = b[n:]
		if d.have == len(d.header) {
			d.have, d.left = 0, int(d.header[0])<<16|int(d.header[1])<<8|int(d.header[2])
		}
	}
}

// say writes the frame if it is wanted and this is between two others. A header
// block that takes several frames is one for this: gRPC's server writes such a
// block at once, and no frame may stand inside it, so it must have ended.
func (d *drainable) say() {
	if !d.wanted || d.said || d.failed || d.have > 0 || d.left > 0 || !d.started() || d.inBlock() {
		return
	}
	d.said = true
	if _, err := d.Conn.Write(goAway); err != nil {
		d.failed = true
	}
}

const (
	frameHeaders      = 1
	frameContinuation = 9
	flagEndHeaders    = 4
)

// started reports whether a frame has been written: SETTINGS must be the first.
func (d *drainable) started() bool { return d.header != [9]byte{} }

// inBlock reports whether the last frame leaves a header block open.
func (d *drainable) inBlock() bool {
	kind, flags := d.header[3], d.header[4]
	return (kind == frameHeaders || kind == frameContinuation) && flags&flagEndHeaders == 0
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
