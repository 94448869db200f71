package meshgrpc

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// scripted is a connection that gives its bytes in pieces, and runs a function
// before one of them.
type scripted struct {
	net.Conn
	r      *rand.Rand
	rest   []byte
	at     int // in bytes that are left
	do     func()
	past   bool // its deadline of reading has passed
	closed bool
}

func (s *scripted) Read(b []byte) (int, error) {
	if s.do != nil && len(s.rest) <= s.at {
		do := s.do
		s.do = nil
		do()
	}
	if s.past {
		return 0, os.ErrDeadlineExceeded
	}
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.rest[:min(len(s.rest), 1+s.r.IntN(40))])
	s.rest = s.rest[n:]
	return n, nil
}

func (s *scripted) SetReadDeadline(t time.Time) error {
	s.past = !t.IsZero() && t.Before(time.Now())
	return nil
}

func (s *scripted) Close() error {
	s.closed = true
	return nil
}

// TestFollowedConnection: whatever way the server's frames arrive, and whenever
// policy asks for another kind of connection, the client reads one GOAWAY more,
// where a frame may stand, and all else as it was sent.
func TestFollowedConnection(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		var sent bytes.Buffer
		f := http2.NewFramer(&sent, nil)
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 14})
		for range r.IntN(8) {
			switch r.IntN(3) {
			case 0:
				_ = f.WriteData(1, false, make([]byte, r.IntN(300)))
			case 1:
				_ = f.WritePing(true, [8]byte{1})
			case 2:
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: make([]byte, r.IntN(20))})
				_ = f.WriteContinuation(3, true, nil)
			}
		}
		want := frames(t, sent.Bytes())
		asks := true
		raw := &scripted{r: r, rest: bytes.Clone(sent.Bytes()), at: r.IntN(sent.Len() + 1)}
		c := &followed{Conn: raw, all: newFollowing(), plain: true, asks: func() bool { return asks }}
		c.all.conns[c] = struct{}{}
		c.all.changed()
		raw.do = func() {
			asks = false
			c.all.changed()
			c.all.changed()
		}
		var read bytes.Buffer
		for b := make([]byte, 60); ; {
			n, err := c.Read(b[:1+r.IntN(len(b))])
			read.Write(b[:n])
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		got := frames(t, read.Bytes())
		away := slices.Index(got, goAwayFrame)
		if away <= 0 {
			t.Fatalf("seed %d: GOAWAY at %d of %v", seed, away, got)
		}
		if rest := slices.Delete(slices.Clone(got), away, away+1); !slices.Equal(rest, want) {
			t.Fatalf("seed %d: %v, want %v and a GOAWAY", seed, got, want)
		}
		if c.Close(); !raw.closed || len(c.all.conns) != 0 {
			t.Fatal("not closed, or not forgotten")
		}
	}
}

// TestFollowedConnectionKeepsItsDeadline: the interruption of a read neither
// shows nor loses the deadline that gRPC has set.
func TestFollowedConnectionKeepsItsDeadline(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	c := &followed{Conn: client, all: newFollowing(), asks: func() bool { return true }}
	defer c.Close()
	go func() { _ = http2.NewFramer(server, nil).WriteSettings() }()
	b := make([]byte, 100)
	if n, err := io.ReadFull(c, b[:9]); err != nil {
		t.Fatalf("SETTINGS: %d %v", n, err)
	}
	type result struct {
		n   int
		err error
	}
	waits := make(chan result)
	read := func() {
		n, err := c.Read(b)
		waits <- result{n, err}
	}
	go read()
	c.compare()
	if r := <-waits; r.err != nil || !bytes.Equal(b[:r.n], goAway) {
		t.Errorf("%d %v: want the frame, though the server sends nothing", r.n, r.err)
	}
	go read()
	if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if r := <-waits; !errors.Is(r.err, os.ErrDeadlineExceeded) {
		t.Errorf("%d %v: want gRPC's own deadline to pass", r.n, r.err)
	}
}
