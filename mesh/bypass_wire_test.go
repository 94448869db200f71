package mesh_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
)

// What comes before a request is understood has been a way around rules of access
// in other systems: the first bytes, by which TLS is told from plaintext, and
// HTTP/2's frames. Both are generated here and sent to a server of the mesh, and
// a careless reading of the same bytes shows that they can do harm.

// openings is how many connections each of the tests makes at least.
const openings = 400

// request1 is what an opening tries to have understood.
func request1(path string) []byte {
	return []byte("GET " + path + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
}

// hello returns the first flight of a TLS client.
func hello(t *testing.T, r *rand.Rand) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	config := &tls.Config{InsecureSkipVerify: true, ServerName: []string{"", "one", "evil.example"}[r.IntN(3)], MinVersion: tls.VersionTLS12}
	if r.IntN(2) == 0 {
		config.MinVersion = tls.VersionTLS13
	}
	if protocols := [][]string{nil, {"istio"}, {"h2"}, {"http/1.1"}, {"istio-peer-exchange", "istio"}}; r.IntN(4) > 0 {
		config.NextProtos = protocols[r.IntN(len(protocols))]
	}
	go func() {
		_ = tls.Client(client, config).Handshake()
		client.Close()
	}()
	header := make([]byte, 5)
	if _, err := io.ReadFull(server, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	return append(header, body...)
}

// record frames bytes as a TLS record.
func record(kind byte, version uint16, body []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{kind}, version)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
}

// request2 is the request in HTTP/2 frames, as h2c begins.
func request2(path string) []byte {
	var block, b bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "h"}, {":path", path}} {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	b.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&b, nil)
	_ = framer.WriteSettings()
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	return b.Bytes()
}

// opening generates the bytes of a connection whose opening may be misread.
func opening(t *testing.T, r *rand.Rand, path string) []byte {
	request := request1(path)
	if r.IntN(3) == 0 {
		request = request2(path)
	}
	version := []uint16{0x0301, 0x0303, 0x0300, 0x0200, 0x0304, 0xffff}[r.IntN(6)]
	junk := make([]byte, r.IntN(40))
	for i := range junk {
		junk[i] = byte(r.Uint32())
	}
	switch r.IntN(9) {
	case 0: // plaintext as it is
		return request
	case 1: // something in front of it that a server might skip
		return append([]byte([]string{"\r\n", "\n", " ", "\x00", "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", "\r\n\r\n\r\n", "\xef\xbb\xbf", "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x20\x00\x00\x00"}[r.IntN(8)]), request...)
	case 2: // the request inside a record
		return record([]byte{0x14, 0x15, 0x16, 0x17, 0x18}[r.IntN(5)], version, request)
	case 3: // after a record that says nothing
		return append(record([]byte{0x14, 0x15, 0x16, 0x17}[r.IntN(4)], version, junk), request...)
	case 4: // after a client's hello, in place of its next flight
		return append(hello(t, r), request...)
	case 5: // after a hello that is cut off, or longer than it says
		h := hello(t, r)
		return append(h[:1+r.IntN(len(h)-1)], request...)
	case 6: // after a hello with a broken byte
		h := hello(t, r)
		h[5+r.IntN(len(h)-5)] ^= 1 << r.IntN(8)
		return append(h, request...)
	case 7: // SSL 2's hello, which has another header
		return append([]byte{0x80, 0x2e, 0x01, 0x03, 0x01}, request...)
	default: // half of HTTP/2's preface, then HTTP/1.1
		return append([]byte(http2.ClientPreface[:1+r.IntN(len(http2.ClientPreface)-1)]), request...)
	}
}

// send writes the bytes in pieces and waits until the server has had its say.
func send(t *testing.T, r *rand.Rand, address string, b []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	for len(b) > 0 {
		n := min(len(b), 1+r.IntN(len(b)))
		if _, err := conn.Write(b[:n]); err != nil {
			return // the server has closed it
		}
		b = b[n:]
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
}

// TestBypassByOpening: under STRICT no bytes but a full handshake with a good
// certificate reach the handler; under PERMISSIVE what began as TLS never becomes
// plaintext, and nobody gets an identity by it.
func TestBypassByOpening(t *testing.T) {
	leak.Check(t)
	var mu sync.Mutex
	reached := map[string]string{} // by path, whom the handler takes the caller for
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		peer, _ := identity.PeerFromContext(r.Context())
		mu.Lock()
		defer mu.Unlock()
		if reached[r.URL.Path] = "plaintext"; peer.Authenticated() {
			reached[r.URL.Path] = peer.ID.String()
		}
	})
	// The careless server skips records that are no handshake for it, and refuses
	// as plaintext only what looks like HTTP/1.1.
	careless := httptest.NewUnstartedServer(handler)
	careless.Config.Protocols = new(http.Protocols)
	careless.Config.Protocols.SetHTTP1(true)
	careless.Config.Protocols.SetUnencryptedHTTP2(true)
	careless.Start()
	defer careless.Close()
	skip := func(b []byte) []byte {
		for len(b) >= 5 && b[0] >= 0x14 && b[0] <= 0x18 {
			b = b[min(len(b), 5+int(binary.BigEndian.Uint16(b[3:]))):]
		}
		return b
	}
	for _, mode := range []string{"STRICT", "PERMISSIVE"} {
		t.Run(mode, func(t *testing.T) {
			s := newSite(t, map[string]string{"mode.yaml": strings.Replace(strictMesh, "STRICT", mode, 1)})
			at := s.serveHTTP(s.join("one"), handler)
			s.declare(instance{app: "one", protocol: "http", at: at, label: true})
			member := s.join("member").Client()
			settles(t, "a member", answers(member, "http://one/", 200, ""))
			sent := map[string][]byte{}
			for i := range openings {
				try := func(address, path string, change func([]byte) []byte) {
					r := rand.New(rand.NewPCG(31, uint64(i)))
					b := opening(t, r, path)
					sent[path] = b
					send(t, r, address, change(b))
				}
				ours := fmt.Sprintf("/%s/%d", mode, i)
				try(at.String(), ours, bytes.Clone)
				if b := sent[ours]; mode == "STRICT" && !bytes.HasPrefix(b, []byte("GET ")) || b[0] == 0x16 {
					try(careless.Listener.Addr().String(), fmt.Sprintf("/%s/careless/%d", mode, i), skip)
				}
			}
			if code, body := ask(member, "http://one/"); code != 200 {
				t.Errorf("a member afterwards: %d %s", code, body)
			}
			through, served := 0, 0
			mu.Lock()
			defer mu.Unlock()
			for path, peer := range reached {
				b, ok := sent[path]
				switch {
				case !ok: // the member's
				case strings.HasPrefix(path, "/"+mode+"/careless/"):
					through++
				case peer != "plaintext" || mode == "STRICT" || b[0] == 0x16:
					t.Errorf("%q reached the handler as %s", b, peer)
				default:
					served++
				}
			}
			if through < 10 {
				t.Errorf("a careless server lets %d of %d through: they prove nothing", through, openings)
			}
			if mode == "PERMISSIVE" && served < 10 {
				t.Errorf("%d of the plaintext is served: the test would not see what gets through", served)
			}
			t.Logf("%d openings, %d served; a careless server lets %d through", openings, served, through)
		})
	}
}

const denyFrames = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: frames}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: [/admin*]}}]
  - when: [{key: "request.headers[x-role]", values: [admin]}]
`

// frames writes a request as HTTP/2 allows it to be written: its fields in
// HEADERS and any number of CONTINUATIONs, padded or not, from a table that
// earlier requests have filled, and between other frames.
type frames struct {
	r       *rand.Rand
	conn    net.Conn
	framer  *http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
	stream  uint32
	reading sync.WaitGroup
	ended   chan uint32 // streams that the server has ended
}

func openFrames(t *testing.T, r *rand.Rand, address string) *frames {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	f := &frames{r: r, conn: conn, stream: 1, ended: make(chan uint32, 10000)}
	w := bufio.NewWriter(conn)
	_, _ = w.WriteString(http2.ClientPreface)
	_ = w.Flush()
	f.framer = http2.NewFramer(conn, conn)
	f.encoder = hpack.NewEncoder(&f.block)
	_ = f.framer.WriteSettings()
	f.reading.Go(func() {
		defer close(f.ended)
		in := http2.NewFramer(io.Discard, conn)
		for {
			frame, err := in.ReadFrame()
			if err != nil {
				return
			}
			switch frame := frame.(type) {
			case *http2.HeadersFrame:
				if frame.StreamEnded() {
					f.ended <- frame.StreamID
				}
			case *http2.DataFrame:
				if frame.StreamEnded() {
					f.ended <- frame.StreamID
				}
			case *http2.RSTStreamFrame:
				f.ended <- frame.StreamID
			case *http2.GoAwayFrame:
				return
			}
		}
	})
	return f
}

func (f *frames) close() {
	f.conn.Close()
	f.reading.Wait()
}

// request sends one and returns the first fragment of its fields.
func (f *frames) request(fields []hpack.HeaderField) (first []byte) {
	f.block.Reset()
	for _, field := range fields {
		_ = f.encoder.WriteField(field)
	}
	rest := bytes.Clone(f.block.Bytes())
	first = rest
	if f.r.IntN(4) > 0 {
		first = rest[:1+f.r.IntN(len(rest))]
	}
	rest = rest[len(first):]
	p := http2.HeadersFrameParam{StreamID: f.stream, BlockFragment: first, EndStream: true, EndHeaders: len(rest) == 0, PadLength: uint8(f.r.IntN(3) * f.r.IntN(80))}
	if f.r.IntN(4) == 0 {
		p.Priority = http2.PriorityParam{StreamDep: 0, Weight: uint8(f.r.IntN(256))}
	}
	_ = f.framer.WriteHeaders(p)
	for len(rest) > 0 {
		n := 1 + f.r.IntN(len(rest))
		_ = f.framer.WriteContinuation(f.stream, n == len(rest), rest[:n])
		rest = rest[n:]
	}
	if f.r.IntN(4) == 0 {
		_ = f.framer.WritePing(false, [8]byte{1})
	}
	return first
}

// wait returns when the server has ended the stream, or the connection.
func (f *frames) wait() {
	for id := range f.ended {
		if id == f.stream {
			break
		}
	}
	f.stream += 2
}

// TestBypassByFrames: however HTTP/2 carries a request, the rules see what the
// handler is given.
func TestBypassByFrames(t *testing.T) {
	leak.Check(t)
	var reached, forbidden atomic.Int64
	denied := func(path string, roles []string) bool {
		for _, role := range roles {
			if role == "admin" {
				return true
			}
		}
		return strings.HasPrefix(path, "/admin")
	}
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		if denied(r.URL.Path, r.Header["X-Role"]) {
			forbidden.Add(1)
		}
	})
	s := newSite(t, map[string]string{"rules.yaml": denyFrames})
	at := s.serveHTTP(s.join("one"), handler)
	s.declare(instance{app: "one", protocol: "http", at: at})
	outside := outsider(t)
	settles(t, "the rule", answers(outside, "http://"+at.String()+"/admin", 403, ""))
	settles(t, "the others", answers(outside, "http://"+at.String()+"/open", 200, ""))
	unguarded := httptest.NewUnstartedServer(handler)
	unguarded.Config.Protocols = new(http.Protocols)
	unguarded.Config.Protocols.SetUnencryptedHTTP2(true)
	unguarded.Start()
	defer unguarded.Close()

	bypassed, served := 0, 0
	ours, theirs := rand.New(rand.NewPCG(32, 1)), rand.New(rand.NewPCG(32, 1))
	what := rand.New(rand.NewPCG(32, 2))
	for range openings / 8 {
		a, b := openFrames(t, ours, at.String()), openFrames(t, theirs, unguarded.Listener.Addr().String())
		for range 8 {
			pick := func(of ...string) string { return of[what.IntN(len(of))] }
			fields := []hpack.HeaderField{
				{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "h"},
				{Name: ":path", Value: pick("/admin", "/admin/x?a=b", "/open", "/open", "/%61dmin", "/open?/admin")},
			}
			what.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
			for range what.IntN(4) {
				fields = append(fields, hpack.HeaderField{Name: pick("x-role", "x-role", "x-other"), Value: pick("user", "admin", "guest"), Sensitive: what.IntN(3) == 0})
			}
			if what.IntN(10) == 0 { // pseudo-fields again: a server that took the last would see another path
				fields = append(fields, hpack.HeaderField{Name: ":path", Value: pick("/open", "/admin")})
			}
			forbidden.Store(0)
			reached.Store(0)
			a.request(fields)
			a.wait()
			if forbidden.Load() > 0 {
				t.Errorf("%v reached the handler", fields)
			}
			served += int(reached.Load())
			// A careless guard looks into the first frame, and knows no table.
			forbidden.Store(0)
			first := b.request(fields)
			b.wait()
			refuses := false
			decoder := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
				refuses = refuses || f.Name == ":path" && denied(f.Value, nil) || f.Name == "x-role" && f.Value == "admin"
			})
			_, _ = decoder.Write(first)
			if forbidden.Load() > 0 && !refuses {
				bypassed++
			}
		}
		a.close()
		b.close()
	}
	if bypassed < 10 || served < 10 {
		t.Errorf("%d get past a careless guard and %d were served: they prove nothing", bypassed, served)
	}
	t.Logf("%d requests, %d served; a careless guard lets %d through", openings, served, bypassed)
}

// TestResetsDoNotMultiplyHandlers: a client that opens streams and resets them at
// once, which frees its places and not the handlers', does not get more handlers
// than the server offers streams (CVE-2023-39325).
func TestResetsDoNotMultiplyHandlers(t *testing.T) {
	leak.Check(t)
	var running, most atomic.Int64
	release := make(chan struct{})
	s := newSite(t, map[string]string{"rules.yaml": denyFrames})
	at := s.serveHTTP(s.join("one"), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
	}))
	defer close(release)
	s.declare(instance{app: "one", protocol: "http", at: at})
	settles(t, "the rule", answers(outsider(t), "http://"+at.String()+"/admin", 403, ""))
	f := openFrames(t, rand.New(rand.NewPCG(33, 1)), at.String())
	defer f.close()
	fields := []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "h"}, {Name: ":path", Value: "/open"}}
	for range 5000 {
		f.request(fields)
		if err := f.framer.WriteRSTStream(f.stream, http2.ErrCodeCancel); err != nil {
			break
		}
		f.stream += 2
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		<-ctx.Done()
		f.conn.Close()
	}()
	for range f.ended { // until the server closes the connection
	}
	if ctx.Err() != nil {
		t.Errorf("the server has let it happen; %d handlers run", running.Load())
	}
	if n := most.Load(); n == 0 || n > 250 {
		t.Errorf("%d handlers ran at a time", n)
	}
	t.Log(fmt.Sprint(most.Load(), " handlers at most"))
}
