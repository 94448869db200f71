package meshgrpc

import (
	"context"
	"testing"
	"time"

	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/resilience"
)

// message is one that a stream holds as so many bytes.
func message(t *testing.T, size int) *pb.Payload {
	t.Helper()
	m := &pb.Payload{Body: make([]byte, size-5-4)}
	for proto.Size(m)+5 < size {
		m.Body = append(m.Body, 0)
	}
	if got := proto.Size(m) + 5; got != size {
		t.Fatalf("a message of %d bytes, want %d", got, size)
	}
	return m
}

// TestReplayBound: messages are held up to the bound, and when one is beyond it
// there is no other attempt.
func TestReplayBound(t *testing.T) {
	for _, c := range []struct {
		name  string
		sizes []int
		held  bool
	}{
		{"one", []int{1000}, true},
		{"one of the bound", []int{maxReplay}, true},
		{"one beyond it", []int{maxReplay + 1}, false},
		{"two of the bound", []int{maxReplay - 1000, 1000}, true},
		{"two beyond it", []int{maxReplay - 1000, 1001}, false},
		{"a small one after one that was too large", []int{maxReplay + 1, 1000}, false},
	} {
		var r replay
		r.begin(true, false)
		held := true
		for _, size := range c.sizes {
			held = r.hold(message(t, size))
		}
		if held != c.held || r.over == c.held {
			t.Errorf("%s: held %v, over %v", c.name, held, r.over)
		}
	}
}

// TestReplayKeepsCopies: the caller may change its message, and what can not be copied is not held.
func TestReplayKeepsCopies(t *testing.T) {
	var r replay
	r.begin(true, true)
	m := &pb.Payload{Body: []byte("as it was")}
	r.hold(m)
	m.Body = []byte("changed")
	if got, _, more := r.at(0); !more || string(got.(*pb.Payload).Body) != "as it was" {
		t.Errorf("held %v", got)
	}
	if _, closed, more := r.at(1); closed || more {
		t.Error("there is one more")
	}
	r.closed = true
	if _, closed, more := r.at(1); !closed || more {
		t.Error("nothing says that there is no other")
	}
	r.commit()
	if len(r.copies()) != 1 || r.messages != nil {
		t.Error("what mirrors want is lost, or kept for nobody")
	}
	var other replay
	other.begin(true, false)
	if other.hold("text") || !other.over {
		t.Error("a message that can not be copied is held")
	}
}

// TestDelayIsOverBeforeTheCall: an injected delay counts among the active faults while it lasts, and not after it.
func TestDelayIsOverBeforeTheCall(t *testing.T) {
	inBubble(t, func(t *testing.T, w *bubble) {
		entered, leave := make(chan struct{}), make(chan struct{})
		back := w.backend(t, func(context.Context, int64) error {
			entered <- struct{}{}
			<-leave
			return nil
		})
		one := uint32(1)
		r := mroute(t, "c")
		r.Fault = &resilience.Fault{MaxActive: &one, Delay: &resilience.FaultDelay{Fixed: time.Second, Fraction: always()}}
		w.only(back, r)
		client := w.dial(t)
		results := make(chan error, 2)
		for range 2 {
			began := time.Now()
			go func() {
				_, err := client.UnaryCall(testContext(t), &pb.SimpleRequest{})
				results <- err
			}()
			<-entered
			if took := time.Since(began); took < time.Second {
				t.Errorf("the server has the call after %v: it was not delayed", took)
			}
		}
		close(leave)
		for range 2 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}
