package meshhttp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// rawHTTP2 speaks HTTP/2 by hand: handle is called when a request's header and
// body have come, with the connection's number, and ends the connection by
// returning false.
func rawHTTP2(handle func(f *http2.Framer, conn int, stream uint32) bool) func(n int, conn net.Conn) {
	return func(n int, conn net.Conn) {
		r := bufio.NewReader(conn)
		if _, err := io.ReadFull(r, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := http2.NewFramer(conn, r)
		_ = f.WriteSettings()
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			ended := false
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if !frame.IsAck() {
					_ = f.WriteSettingsAck()
				}
			case *http2.PingFrame:
				if !frame.IsAck() {
					_ = f.WritePing(true, frame.Data)
				}
			case *http2.HeadersFrame:
				ended = frame.StreamEnded()
			case *http2.DataFrame:
				ended = frame.StreamEnded()
			}
			if ended && !handle(f, n, frame.Header().StreamID) {
				return
			}
		}
	}
}

// answerHTTP2 sends a 200; with body it leaves the stream open after a part.
func answerHTTP2(f *http2.Framer, stream uint32, part string) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: part == ""})
	if part != "" {
		_ = f.WriteData(stream, false, []byte(part))
	}
}

func reset(code http2.ErrCode) func(*http2.Framer, int, uint32) bool {
	return func(f *http2.Framer, _ int, stream uint32) bool {
		_ = f.WriteRSTStream(stream, code)
		return true
	}
}

// goAway says that streams up to last may have been processed, and hangs up.
func goAway(last uint32, code http2.ErrCode) func(*http2.Framer, int, uint32) bool {
	return func(f *http2.Framer, _ int, _ uint32) bool {
		_ = f.WriteGoAway(last, code, nil)
		return false
	}
}

// readHeader reads a request's header, and hangs up after it has said something.
func thenSay(answer string) func(int, net.Conn) {
	return func(_ int, conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			_, _ = io.WriteString(conn, answer)
		}
	}
}

// once is a body that can not be had again, and that net/http does not know.
func once(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) }

// TestClassify holds what an attempt is said to have come to against what
// really goes wrong on the wire, with net/http's own errors.
func TestClassify(t *testing.T) {
	silent := func(_ int, conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	for _, c := range []struct {
		name   string
		h2     bool
		body   io.Reader // nil: GET, else POST
		serve  func(int, net.Conn)
		change func(*world)
		want   resilience.Failure
	}{
		{name: "hangs up at once", serve: func(int, net.Conn) {}, want: resilience.Reset},
		{name: "hangs up after the request", serve: thenSay(""), want: resilience.Reset},
		{name: "hangs up in the header", serve: thenSay("HTTP/1.1 200 OK\r\nX-A: "), want: resilience.Reset},
		{name: "speaks something else", serve: thenSay("220 mail.example\r\n"), want: resilience.Reset},
		{name: "says nothing", serve: silent, want: resilience.PerTryTimeout, change: func(w *world) {
			w.route.Retry = retryOn(t, "connect-failure", 0)
			w.route.Retry.PerTryTimeout = 20 * time.Millisecond
		}},
		{name: "says nothing for the route's time", serve: silent, want: resilience.RouteTimeout, change: func(w *world) {
			w.route.Timeout = 20 * time.Millisecond
		}},
		{name: "no HTTP/2 there", h2: true, serve: thenSay("HTTP/1.1 400 Bad Request\r\n\r\n"), want: resilience.Reset},

		// net/http repeats by itself what it can; what it can not shows here.
		{name: "REFUSED_STREAM", h2: true, body: once("body"), serve: rawHTTP2(reset(http2.ErrCodeRefusedStream)), want: resilience.RefusedStream},
		{name: "INTERNAL_ERROR", h2: true, serve: rawHTTP2(reset(http2.ErrCodeInternal)), want: resilience.Reset},
		{name: "CANCEL", h2: true, body: once("body"), serve: rawHTTP2(reset(http2.ErrCodeCancel)), want: resilience.Reset},
		{name: "GOAWAY before the stream", h2: true, body: once("body"), serve: rawHTTP2(goAway(0, http2.ErrCodeNo)), want: resilience.RefusedStream},
		{name: "GOAWAY before the stream, with an error", h2: true, serve: rawHTTP2(goAway(0, http2.ErrCodeEnhanceYourCalm)), want: resilience.RefusedStream},
		{name: "GOAWAY after the stream", h2: true, serve: rawHTTP2(goAway(1, http2.ErrCodeNo)), want: resilience.Reset},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{}
			var address string
			w := newWorld(t, ClientOptions{Observer: rec}, func(w *world) {
				address = rawServer(t, c.serve)
				only(address)(w)
				w.cluster.HTTP2 = c.h2
				if c.change != nil {
					c.change(w)
				}
			})
			method := "GET"
			if c.body != nil {
				method = "POST"
			}
			_, _, err := get(t, w.client, request(t, method, "http://svc/", c.body))
			if err == nil || !strings.Contains(err.Error(), address) {
				t.Errorf("error %v, want one that names the endpoint", err)
			}
			if f := rec.failures(); len(f) != 1 || f[0] != c.want {
				t.Errorf("attempts ended with %v, want %v: %v", f, c.want, err)
			}
		})
	}
}

// TestRefusedElsewhere: a request that a server has refused unprocessed is sent
// to another endpoint under refused-stream, whatever its method and body.
func TestRefusedElsewhere(t *testing.T) {
	for name, refuse := range map[string]func(*http2.Framer, int, uint32) bool{
		"REFUSED_STREAM":       reset(http2.ErrCodeRefusedStream),
		"GOAWAY":               goAway(0, http2.ErrCodeNo),
		"GOAWAY with an error": goAway(0, http2.ErrCodeEnhanceYourCalm),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, ClientOptions{}, func(w *world) {
				w.cluster.HTTP2 = true
				w.route.Retry = retryOn(t, "refused-stream", 1)
				good := w.servers[0].Listener.Addr().String()
				bad := rawServer(t, rawHTTP2(refuse))
				w.cluster.Endpoints = lb.NewEndpoints([]lb.Endpoint{{Address: bad, Weight: 1}, {Address: good, Weight: 1}}, nil)
			}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
			for range 4 {
				if code, body, err := get(t, w.client, request(t, "POST", "http://svc/", once("payload"))); err != nil || code != 200 || body != "payload" {
					t.Fatalf("%d %q %v", code, body, err)
				}
			}
		})
	}
}

// TestRepeatedWithinAnAttempt: one attempt may be sent twice, where a closing
// connection has left it out, or the request is idempotent and a
// kept connection breaks.
func TestRepeatedWithinAnAttempt(t *testing.T) {
	for _, c := range []struct {
		name   string
		h2     bool
		method string
		key    bool
		first  func(*http2.Framer, int, uint32) bool
		want   resilience.Failure
	}{
		{name: "GET refused once", h2: true, method: "GET", first: reset(http2.ErrCodeRefusedStream), want: resilience.RefusedStream},
		{name: "POST without a body refused once", h2: true, method: "POST", first: reset(http2.ErrCodeRefusedStream), want: resilience.RefusedStream},
		{name: "GET after GOAWAY", h2: true, method: "GET", first: goAway(0, http2.ErrCodeNo)},
		{name: "GET on a kept connection that breaks", method: "GET"},
		{name: "POST on a kept connection that breaks", method: "POST", want: resilience.Reset},
		{name: "POST with an Idempotency-Key on a kept connection that breaks", method: "POST", key: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{}
			var requests atomic.Int32
			serve := rawHTTP2(func(f *http2.Framer, n int, stream uint32) bool {
				if requests.Add(1) == 2 {
					return c.first(f, n, stream)
				}
				answerHTTP2(f, stream, "")
				return true
			})
			if !c.h2 {
				serve = func(_ int, conn net.Conn) {
					for r := bufio.NewReader(conn); ; {
						if _, err := http.ReadRequest(r); err != nil || requests.Add(1) == 2 {
							return
						}
						_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}
			}
			w := newWorld(t, ClientOptions{Observer: rec}, func(w *world) {
				w.cluster.HTTP2 = c.h2
				only(rawServer(t, serve))(w)
			})
			if _, _, err := get(t, w.client, request(t, "GET", "http://svc/first", nil)); err != nil {
				t.Fatal(err)
			}
			req := request(t, c.method, "http://svc/second", nil)
			if c.key {
				req.Header.Set("Idempotency-Key", "1")
			}
			_, _, err := get(t, w.client, req)
			f := rec.failures()
			if len(f) != 2 || f[1] != c.want || (err == nil) != (c.want == resilience.NoFailure) {
				t.Errorf("attempts ended with %v, %v, want %v", f, err, c.want)
			}
			if want := map[bool]int32{true: 3, false: 2}[c.want == resilience.NoFailure]; requests.Load() != want {
				t.Errorf("the server saw %d requests, want %d", requests.Load(), want)
			}
		})
	}
}

// TestRefusedForEver: a request without a body that a server refuses is seen to
// be refused at once, and goes elsewhere only as policy says: net/http's own
// connections would repeat it for a minute.
func TestRefusedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		e := outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: func(s *snapshot.Cluster) outbound.Wire {
			return newWire(s, &connecting{network: func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					conn := buffered(theirs)
					rawHTTP2(reset(http2.ErrCodeRefusedStream))(0, conn)
					conn.Close()
				}()
				return ours, nil
			}})
		}})
		defer e.Close()
		snap := routed(0, "192.0.2.1:80")
		for i := range snap.Hosts["reviews:9080"].VirtualHost.Routes {
			snap.Hosts["reviews:9080"].VirtualHost.Routes[i].Retry = retryOn(t, "refused-stream", 2)
		}
		for _, cluster := range snap.Clusters {
			cluster.HTTP2 = true
		}
		e.Install(snap)
		client := &http.Client{Transport: NewRoundTripper(e, ClientOptions{Observer: rec})}
		began := time.Now()
		_, _, err := get(t, client, request(t, "GET", "http://reviews:9080/", nil))
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("took %s, want the pauses of the policy alone", took)
		}
		if f := rec.failures(); err == nil || len(f) != 3 || f[0] != resilience.RefusedStream || f[2] != resilience.RefusedStream {
			t.Errorf("attempts ended with %v, %v", f, err)
		}
	})
}

// buffered lets the peer of a pipe write without waiting for its reader.
func buffered(conn net.Conn) *bufferedConn {
	b := &bufferedConn{Conn: conn, out: make(chan []byte, 1024)}
	go func() {
		for p := range b.out {
			_, _ = conn.Write(p)
		}
	}()
	return b
}

type bufferedConn struct {
	net.Conn
	out chan []byte
}

func (b *bufferedConn) Close() error {
	close(b.out)
	return b.Conn.Close()
}

func (b *bufferedConn) Write(p []byte) (int, error) {
	b.out <- bytes.Clone(p)
	return len(p), nil
}

// TestBrokenBodies: what goes wrong after the headers ends the call, and not
// the attempt, with what came before in the caller's hands.
func TestBrokenBodies(t *testing.T) {
	for _, c := range []struct {
		name  string
		h2    bool
		serve func(int, net.Conn)
	}{
		{"HTTP/1.1, too short", false, thenSay("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart")},
		{"HTTP/1.1, no last chunk", false, thenSay("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")},
		{"HTTP/2, RST_STREAM", true, rawHTTP2(func(f *http2.Framer, _ int, stream uint32) bool {
			answerHTTP2(f, stream, "part")
			_ = f.WriteRSTStream(stream, http2.ErrCodeInternal)
			return true
		})},
		// What was refused was not processed, but this has been answered.
		{"HTTP/2, REFUSED_STREAM", true, rawHTTP2(func(f *http2.Framer, _ int, stream uint32) bool {
			answerHTTP2(f, stream, "part")
			_ = f.WriteRSTStream(stream, http2.ErrCodeRefusedStream)
			return true
		})},
		{"HTTP/2, connection lost", true, rawHTTP2(func(f *http2.Framer, _ int, stream uint32) bool {
			answerHTTP2(f, stream, "part")
			return false
		})},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{}
			w := newWorld(t, ClientOptions{Observer: rec}, func(w *world) {
				w.cluster.HTTP2 = c.h2
				w.route.Retry = retryOn(t, "5xx,reset,refused-stream,connect-failure", 3)
				only(rawServer(t, c.serve))(w)
			})
			w.rebuild(t, rec, NewWire(nil))
			code, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
			if err == nil || code != 200 || body != "part" {
				t.Errorf("%d %q %v, want what came and an error", code, body, err)
			}
			rec.mu.Lock()
			defer rec.mu.Unlock()
			if len(rec.attempts) != 1 || rec.attempts[0].Failure != resilience.NoFailure || rec.attempts[0].Status != 200 {
				t.Errorf("attempts %+v, want one that succeeded", rec.attempts)
			}
			if len(rec.calls) != 1 || rec.calls[0].Failure == resilience.NoFailure || rec.calls[0].Status != 200 {
				t.Errorf("calls %+v, want one that failed in its body", rec.calls)
			}
		})
	}
}

// TestGRPCStatus reads what net/http may hand over.
func TestGRPCStatus(t *testing.T) {
	for _, c := range []struct {
		header http.Header
		want   int
	}{
		{nil, -1},
		{http.Header{}, -1},
		{http.Header{"Grpc-Status": {}}, -1},
		{http.Header{"Grpc-Status": {"0"}}, 0},
		{http.Header{"Grpc-Status": {"14", "0"}}, 14},
		{http.Header{"Grpc-Status": {"unavailable"}}, -1},
	} {
		if got := grpcStatus(c.header); got != c.want {
			t.Errorf("%v: %d, want %d", c.header, got, c.want)
		}
	}
}

// TestPerTryThenElsewhere: an attempt that hangs is given up after its time,
// and the next goes to the other endpoint with the whole body.
func TestPerTryThenElsewhere(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a server of HTTP/1.1 sees only then that the client has gone
		<-r.Context().Done()
	}
	limited := func(w *world) {
		w.route.Retry = retryOn(t, "reset", 1)
		w.route.Retry.PerTryTimeout = 50 * time.Millisecond
	}
	echo := func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }
	inBubble(t, ClientOptions{}, limited, []http.HandlerFunc{hang, echo}, func(t *testing.T, w *world) {
		for range 4 {
			if code, body, err := get(t, w.client, request(t, "POST", "http://svc/", once("payload"))); err != nil || code != 200 || body != "payload" {
				t.Fatalf("%d %q %v", code, body, err)
			}
		}
	})
	inBubble(t, ClientOptions{}, limited, []http.HandlerFunc{hang}, func(t *testing.T, w *world) {
		var timeout *outbound.TimeoutError
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); !errors.As(err, &timeout) || timeout.Limit != "per_try_timeout" {
			t.Errorf("error %v", err)
		}
	})
}
