package meshgrpc

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// maxReplay is how many bytes of messages a stream holds to send them again,
// or to send them to a mirror. It is below 64 KiB, the window of HTTP/2's flow
// control: with more, a server that sends much before it reads would hold up
// both sides for ever.
const maxReplay = 64<<10 - 1

// replay are the messages that a stream has sent, copies of the caller's: it may
// change its own. Messages that are not of protocol buffers can not be copied
// here, and end the holding.
type replay struct {
	again    bool // for another attempt
	mirrored bool // for mirrors
	over     bool // not all messages are held
	closed   bool // CloseSend was called
	messages []any
	size     int
}

func (r *replay) begin(again, mirrored bool) { r.again, r.mirrored = again, mirrored }

// hold keeps a message if it can be. It reports whether the stream can be sent again.
func (r *replay) hold(m any) bool {
	if !r.again && !r.mirrored || r.over {
		return false
	}
	size, copied := copyMessage(m)
	if copied == nil || r.size+size > maxReplay {
		r.over = true // what is held may be on its way to another attempt
		return false
	}
	r.size += size
	r.messages = append(r.messages, copied)
	return r.again
}

// copyMessage returns the message's size and a copy; nil where it can not be copied.
func copyMessage(m any) (int, any) {
	switch m := m.(type) {
	case proto.Message:
		return proto.Size(m) + 5, proto.Clone(m) // with gRPC's prefix
	case protoadapt.MessageV1:
		v2 := protoadapt.MessageV2Of(m)
		return proto.Size(v2) + 5, protoadapt.MessageV1Of(proto.Clone(v2))
	}
	return 0, nil
}

// at returns the i-th message. Without one, more is false and closed says whether no other follows.
func (r *replay) at(i int) (m any, closed, more bool) {
	if i < len(r.messages) {
		return r.messages[i], false, true
	}
	return nil, r.closed, false
}

// commit ends the holding for another attempt.
func (r *replay) commit() {
	r.again = false
	if !r.mirrored {
		r.messages = nil
	}
}

// copies returns all messages, for mirrors, and ends the holding for them.
func (r *replay) copies() []any {
	all := r.messages
	r.mirrored = false
	if !r.again {
		r.messages = nil
	}
	return all
}

func (r *replay) drop() { r.again, r.mirrored, r.over, r.messages = false, false, true, nil }
