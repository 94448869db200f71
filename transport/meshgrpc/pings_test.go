package meshgrpc

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// TestMeshPings: where a cluster asks for it, a connection whose other end does
// not answer ends, and its RPCs with it; one whose end answers stays.
func TestMeshPings(t *testing.T) {
	inBubble(t, func(t *testing.T, w *bubble) {
		var answers atomic.Bool
		var pings atomic.Int64
		answers.Store(true)
		address, lis := w.listen()
		var conns sync.WaitGroup
		conns.Go(func() {
			for {
				conn, err := lis.Accept()
				if err != nil {
					return
				}
				conns.Go(func() {
					frameServer(conn, func(f *http2.Framer, frame http2.Frame) {
						if ping, ok := frame.(*http2.PingFrame); ok && !ping.IsAck() {
							pings.Add(1)
							if answers.Load() {
								_ = f.WritePing(true, ping.Data)
							}
						}
					})
				})
			}
		})
		t.Cleanup(func() {
			lis.Close()
			conns.Wait()
		})
		c := mcluster("c", address)
		c.HTTP2Ping = snapshot.HTTP2Ping{Interval: 20 * time.Second, Timeout: 2 * time.Second}
		w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
		result := make(chan error, 1)
		began := time.Now()
		client := w.dial(t)
		go func() {
			_, err := client.UnaryCall(t.Context(), &pb.SimpleRequest{})
			result <- err
		}()
		// Something is heard in the first 20 s, and then what answers the pings
		// after 40 s, 62 s and 84 s, each of which has 2 s for it.
		time.Sleep(85 * time.Second)
		select {
		case err := <-result:
			t.Fatalf("an RPC on a connection that answers: %v", err)
		default:
		}
		if n := pings.Load(); n != 3 {
			t.Errorf("%d pings", n)
		}
		answers.Store(false)
		wantCode(t, <-result, codes.Unavailable)
		if took := time.Since(began); took != (106+2)*time.Second {
			t.Errorf("ended after %s", took)
		}
		w.quiet(t)
		if w.failures() != 1 {
			t.Errorf("%d failures of the endpoint", w.failures())
		}
	})
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
