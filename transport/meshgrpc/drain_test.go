package meshgrpc

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// written is a connection that keeps what is written to it.
type written struct {
	net.Conn
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *written) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(b)
}

func (w *written) Close() error { return nil }

// TestDrain: whatever way the server's frames are cut into writes, and whenever
// the drain is asked for, there is one GOAWAY more, between two frames, not the
// first and not within a header block, and all else is as it was.
func TestDrain(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		var plain bytes.Buffer
		f := http2.NewFramer(&plain, nil)
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 14})
		for range 1 + r.IntN(8) {
			switch r.IntN(4) {
			case 0:
				_ = f.WriteData(1, false, make([]byte, r.IntN(300)))
			case 1:
				_ = f.WritePing(true, [8]byte{1})
			case 2:
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: make([]byte, r.IntN(20)), EndHeaders: true})
			case 3:
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: make([]byte, r.IntN(20))})
				_ = f.WriteContinuation(3, false, make([]byte, r.IntN(20)))
				_ = f.WriteContinuation(3, true, nil)
			}
		}
		want := frames(t, plain.Bytes())
		out := &written{}
		d := &drainable{Conn: out, all: new(sync.Map)}
		at := r.IntN(plain.Len() + 1)
		for rest := plain.Bytes(); ; {
			if at >= 0 && plain.Len()-len(rest) >= at {
				at = -1
				d.mu.Lock() // as drain's goroutine does, but at a known moment
				d.wanted = true
				d.say()
				d.mu.Unlock()
			}
			if len(rest) == 0 {
				break
			}
			n := min(len(rest), 1+r.IntN(40))
			if _, err := d.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		got, away := frames(t, out.buf.Bytes()), -1
		for i, g := range got {
			if g == goAwayFrame {
				if away >= 0 {
					t.Fatalf("seed %d: two GOAWAYs", seed)
				}
				away = i
			}
		}
		if away <= 0 {
			t.Fatalf("seed %d: GOAWAY at %d of %v", seed, away, got)
		}
		if rest := append(append([]string{}, got[:away]...), got[away+1:]...); fmt.Sprint(rest) != fmt.Sprint(want) {
			t.Fatalf("seed %d: %v, want %v and a GOAWAY", seed, got, want)
		}
	}
}

const goAwayFrame = "GOAWAY 2147483647 NO_ERROR"

// frames describes each frame. The framer itself refuses a frame within a header block.
func frames(t *testing.T, b []byte) []string {
	t.Helper()
	f := http2.NewFramer(io.Discard, bytes.NewReader(b))
	var list []string
	for {
		frame, err := f.ReadFrame()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if g, ok := frame.(*http2.GoAwayFrame); ok {
			list = append(list, fmt.Sprintf("GOAWAY %d %s", g.LastStreamID, g.ErrCode))
			continue
		}
		h := frame.Header()
		list = append(list, fmt.Sprintf("%s %d %d %d", h.Type, h.Flags, h.StreamID, h.Length))
	}
}
