package meshgrpc

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// pingServer accepts streams and answers none; it answers pings while it is told to.
type pingServer struct {
	answers atomic.Bool
	pings   atomic.Int64
	conns   sync.WaitGroup
	lis     net.Listener
}

func newPingServer(t *testing.T) *pingServer {
	s := &pingServer{lis: listen(t)}
	s.conns.Add(1)
	go func() {
		defer s.conns.Done()
		for {
			conn, err := s.lis.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			go s.serve(conn)
		}
	}()
	t.Cleanup(func() {
		s.lis.Close()
		s.conns.Wait()
	})
	return s
}

func (s *pingServer) serve(conn net.Conn) {
	defer s.conns.Done()
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(conn, conn)
	_ = f.WriteSettings()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if frame.IsAck() {
				continue
			}
			s.pings.Add(1)
			if s.answers.Load() {
				_ = f.WritePing(true, frame.Data)
			}
		}
	}
}

// TestMeshPings: where a cluster asks for it, a connection whose other end does
// not answer ends, and its RPCs with it; one whose end answers stays.
func TestMeshPings(t *testing.T) {
	leak.Check(t)
	s := newPingServer(t)
	s.answers.Store(true)
	w := newMeshWorld(t)
	c := mcluster("c", s.lis.Addr().String())
	c.HTTP2Ping = snapshot.HTTP2Ping{Interval: 20 * time.Millisecond, Timeout: 2 * time.Second}
	w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
	client, _ := w.dial(t)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	result := make(chan error, 1)
	go func() {
		_, err := client.UnaryCall(ctx, &pb.SimpleRequest{})
		result <- err
	}()
	eventually(t, func() string {
		if s.pings.Load() < 3 {
			return "fewer than three pings"
		}
		return ""
	})
	select {
	case err := <-result:
		t.Fatalf("an RPC on a connection that answers: %v", err)
	default:
	}
	s.answers.Store(false)
	wantCode(t, <-result, codes.Unavailable)
	w.quiet(t)
	if w.failures() != 1 {
		t.Errorf("%d failures of the endpoint", w.failures())
	}
}

// TestPingsBetweenFrames: with a ping due all the time, what is written is still
// whole frames in order, whatever the pieces that it is written in.
func TestPingsBetweenFrames(t *testing.T) {
	near, far := net.Pipe()
	p := pinged(near, snapshot.HTTP2Ping{Interval: time.Hour, Timeout: time.Hour}).(*pinging)
	defer p.Close()
	var sent []byte
	sent = append(sent, http2.ClientPreface...)
	sent = append(sent, 0, 0, 0, 4, 0, 0, 0, 0, 0)
	for i := range 50 {
		sent = append(sent, 0, 0, byte(i), 0, 0, 0, 0, 0, 1)
		for range i {
			sent = append(sent, byte(i))
		}
	}
	go func() {
		rest, n := sent, 1
		for len(rest) > 0 {
			p.due.Store(true)
			n = min(n%37+1, len(rest))
			if _, err := p.Write(rest[:n]); err != nil {
				t.Error(err)
			}
			rest = rest[n:]
		}
		p.Close()
	}()
	if _, err := io.ReadFull(far, make([]byte, len(http2.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(io.Discard, far)
	pings, frames := 0, 0
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			break
		}
		switch frame := frame.(type) {
		case *http2.PingFrame:
			pings++
		case *http2.DataFrame:
			if n := len(frame.Data()); n != frames || n > 0 && frame.Data()[n-1] != byte(n) {
				t.Fatalf("frame %d has %d bytes", frames, n)
			}
			frames++
		}
	}
	if pings == 0 || frames != 50 {
		t.Errorf("%d pings among %d frames", pings, frames)
	}
}
