package meshhttp

import (
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// pieces is a body of so many bytes, which come in pieces of generated sizes; it
// holds none of them, so that whatever is held is not its doing.
type pieces struct {
	left int
	size func() int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), p.left, max(1, p.size()))
	clear(b[:n])
	p.left -= n
	return n, nil
}

func (p *pieces) Close() error { return nil }

// generatedBody returns a body at and beyond a limit, in pieces of one byte, of
// many, or of both, and its length.
func generatedBody(r *rand.Rand, limit int) (*pieces, int) {
	length := []int{1, limit - 1, limit, limit + 1, 2 * limit, 5 * limit, r.IntN(4 * limit)}[r.IntN(7)]
	sizes := []func() int{func() int { return 1 }, func() int { return 1 << 20 }, func() int { return r.IntN(limit / 16) }, func() int { return []int{1, limit / 8}[r.IntN(2)] }}
	return &pieces{length, sizes[r.IntN(len(sizes))]}, length
}

// mostKept reads a body as attempts do, some of which are given up on the way,
// and returns the most bytes that were held for another one at any time.
func mostKept(t *testing.T, r *rand.Rand, usual int, limit int64) (most int) {
	t.Helper()
	body, length := generatedBody(r, usual)
	p := newReplay(body, limit)
	v := p.reader()
	buffer := make([]byte, 1+r.IntN(2*usual))
	for read := 0; ; {
		n, err := v.Read(buffer)
		read += n
		most = max(most, cap(p.kept))
		switch {
		case err == io.EOF:
			if p.whole() && read != length {
				t.Fatalf("%d bytes of %d", read, length)
			}
			p.settle()
			return most
		case err != nil:
			t.Fatal(err)
		case p.whole() && r.IntN(64) == 0: // the attempt is given up
			v.Close()
			v, read = p.reader(), 0
		}
	}
}

// TestBodiesThatAreKeptAreBounded: what is kept of a body for another attempt,
// and for mirrors, is bounded whatever its length and however it comes.
func TestBodiesThatAreKeptAreBounded(t *testing.T) {
	const bodies, limit = 300, 4 << 10
	// Slices grow in steps; none of these is larger than what they hold.
	const bound = 2 * limit
	r := rand.New(rand.NewPCG(1, 44))
	most, careless, copied := 0, 0, 0
	for i := range bodies {
		n := mostKept(t, r, limit, limit)
		if most = max(most, n); n > bound {
			t.Errorf("%d bytes are kept for another attempt", n)
		}
		// The mistake: what is kept has no limit.
		if n := mostKept(t, r, limit, math.MaxInt64); n > bound {
			careless++
		}
		body, length := generatedBody(r, maxMirrored)
		if i%30 > 0 {
			body.size = func() int { return r.IntN(1 << 14) }
		}
		var got []byte
		dropped := false
		m := &tee{ReadCloser: body, want: -1, complete: func(b []byte) { got = b }, drop: func() { dropped = true }}
		buffer := make([]byte, 1<<10+r.IntN(32<<10))
		for {
			_, err := m.Read(buffer)
			if cap(m.kept) > 2*maxMirrored {
				t.Errorf("%d bytes are kept for a mirror", cap(m.kept))
			}
			if err != nil {
				break
			}
		}
		m.Close()
		if whole := length <= maxMirrored; dropped == whole || whole && len(got) != length || m.kept != nil {
			t.Errorf("a body of %d bytes: dropped %v, the copy has %d, %d are still kept", length, dropped, len(got), len(m.kept))
		}
		if !dropped {
			copied++
		}
	}
	if careless < 50 || copied < 50 || copied > bodies-50 {
		t.Errorf("without a limit %d bodies are found; %d of %d were copied", careless, copied, bodies)
	}
	t.Logf("%d bodies each, at most %d bytes kept; without a limit %d are found", bodies, most, careless)
}

// TestManyLargeBodies has 300 large bodies under way at once, with retries and a
// mirror: all together occupy no more than the bounds of each.
func TestManyLargeBodies(t *testing.T) {
	const requests, size = 300, 512 << 10
	const bound = requests * (defaultReplay + maxMirrored + 200<<10) // buffers of four connections' ends too
	occupied := func(t *testing.T, replay int64) (bytes int64) {
		var arrived sync.WaitGroup
		arrived.Add(requests)
		goOn := make(chan struct{})
		mirror := status(200, "")
		serve := func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			arrived.Done()
			<-goOn
		}
		w := newWorld(t, ClientOptions{Replay: replay}, func(w *world) {
			w.route.Retry = retryOn(t, "5xx", 2)
			mirrored(w.servers[1].Listener.Addr().String())(w)
			// The second server is the mirror's alone.
			w.cluster.Endpoints = lb.NewEndpoints(w.cluster.Endpoints.All[:1], nil)
		}, serve, mirror)
		before := live()
		var all sync.WaitGroup
		var failed atomic.Int64
		for range requests {
			all.Go(func() {
				req := request(t, "POST", "http://svc/", &pieces{size, func() int { return 1 << 20 }})
				code, _, err := get(t, w.client, req)
				if err != nil || code != 200 {
					failed.Add(1)
				}
			})
		}
		arrived.Wait()
		bytes = live() - before
		close(goOn)
		all.Wait()
		if n := failed.Load(); n > 0 {
			t.Errorf("%d requests failed", n)
		}
		return bytes
	}
	for name, c := range map[string]struct {
		replay int64
		within bool
	}{"bounded": {0, true}, "without a bound": {1 << 30, false}} {
		t.Run(name, func(t *testing.T) {
			n := occupied(t, c.replay)
			if t.Logf("%d bodies of %d kB occupy %.1f MB", requests, size>>10, float64(n)/1e6); (n <= bound) != c.within {
				t.Errorf("%d bytes, the bound is %d", n, bound)
			}
		})
	}
}

// live is what live objects occupy.
func live() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
