package meshgrpc

// goAway is a frame that asks for no further streams: a GOAWAY with the last
// stream ID 2^31-1 and the error code NO_ERROR (RFC 9113, 6.8).
var goAway = []byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0}

// framing follows one direction of an HTTP/2 connection, so that a frame can be
// put between others.
type framing struct {
	header [9]byte // of the frame that is passing (RFC 9113, 4.1)
	have   int     // of header
	left   int     // of the frame's payload
}

// follow notes where in a frame the bytes end. A client's connection begins with
// a preface that is no frame (RFC 9113, 3.4): this is for what servers send.
func (f *framing) follow(b []byte) {
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, len(b))
			f.left -= n
			b = b[n:]
			continue
		}
		n := copy(f.header[f.have:], b)
		f.have += n
		b = b[n:]
		if f.have == len(f.header) {
			f.have, f.left = 0, int(f.header[0])<<16|int(f.header[1])<<8|int(f.header[2])
		}
	}
}

const (
	frameHeaders      = 1
	frameContinuation = 9
	flagEndHeaders    = 4
)

// between reports whether a frame may stand here: not before the first one,
// which must be SETTINGS, and not inside of one. A header block that takes several
// frames is one for this: no other may stand inside it.
func (f *framing) between() bool {
	if f.have > 0 || f.left > 0 || f.header == [9]byte{} {
		return false
	}
	kind, flags := f.header[3], f.header[4]
	return kind != frameHeaders && kind != frameContinuation || flags&flagEndHeaders != 0
}
