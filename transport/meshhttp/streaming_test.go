package meshhttp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
)

// arms are the rules that must not get into the way of a stream: each alone, and all.
func arms(t *testing.T) map[string]func(*world) {
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	t.Cleanup(sink.Close)
	retries := func(w *world) {
		w.route.Retry = retryOn(t, "5xx,reset,refused-stream,connect-failure,reset-before-request", 2)
	}
	hedges := func(w *world) { w.route.Hedge = &resilience.Hedge{Initial: 2, OnPerTryTimeout: true} }
	limits := func(w *world) {
		w.route.Timeout, w.route.IdleTimeout = 2*time.Minute, time.Minute
		if w.route.Retry == nil {
			retries(w)
		}
		w.route.Retry.PerTryIdleTimeout = time.Minute
		w.cluster.Outlier = &resilience.DefaultOutlier
	}
	mirrors := mirrored(sink.Listener.Addr().String())
	return map[string]func(*world){
		"nothing": nil, "retries": retries, "limits": limits, "mirrors": mirrors, "hedges": hedges,
		"everything": func(w *world) {
			for _, arm := range []func(*world){retries, limits, mirrors, hedges} {
				arm(w)
			}
		},
	}
}

// stream is a way of using HTTP that is more than a request and its answer.
type stream struct {
	name    string
	version int // 1 or 2 where it exists in one only
	handler func(step chan struct{}, w http.ResponseWriter, r *http.Request)
	use     func(t *testing.T, w *world)
}

var streamsOfHTTP = []stream{
	{"WebSocket-like upgrade", 1, func(_ chan struct{}, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			line, err := buf.ReadString('\n')
			if err != nil {
				return
			}
			if _, err := io.WriteString(conn, "echo "+line); err != nil {
				return
			}
		}
	}, func(t *testing.T, w *world) {
		req := request(t, "GET", "http://svc/", nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "websocket")
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		rw, ok := resp.Body.(io.ReadWriteCloser)
		if !ok || resp.StatusCode != 101 {
			t.Fatalf("%d with a %T", resp.StatusCode, resp.Body)
		}
		lines := bufio.NewReader(rw)
		for _, word := range []string{"a", "b", strings.Repeat("c", 100_000)} {
			if _, err := io.WriteString(rw, word+"\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := lines.ReadString('\n'); err != nil || line != "echo "+word+"\n" {
				t.Fatalf("%.20q %v", line, err)
			}
		}
	}},
	{"server-sent events", 0, func(step chan struct{}, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n", i)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-step: // only when the client has the event
			case <-r.Context().Done():
				return
			}
		}
	}, func(t *testing.T, w *world) {
		resp, err := w.client.Do(request(t, "POST", "http://svc/", nil)) // not hedged: there is one turn to take
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for i := range 3 {
			if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) {
				t.Fatalf("%q %v", lines.Text(), lines.Err())
			}
			w.step <- struct{}{}
		}
		if lines.Scan() || lines.Err() != nil {
			t.Errorf("more came: %q %v", lines.Text(), lines.Err())
		}
	}},
	{"trailers both ways", 0, func(_ chan struct{}, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d", n)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Sent"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "late")
	}, func(t *testing.T, w *world) {
		req := request(t, "POST", "http://svc/", nil)
		req.Trailer = http.Header{"X-Sent": nil}
		req.Body, req.ContentLength = io.NopCloser(&onEOF{once("payload"), func() { req.Trailer.Set("X-Sent", "7 bytes") }}), -1
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != "7" || resp.Trailer.Get("X-Sum") != "7 bytes" || resp.Trailer.Get("X-Late") != "late" {
			t.Errorf("%q %v, trailer %v", body, err, resp.Trailer)
		}
	}},
	{"100-continue", 0, func(_ chan struct{}, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Refuse") != "" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		_, _ = io.Copy(w, r.Body)
	}, func(t *testing.T, w *world) {
		for _, refuse := range []bool{false, true} {
			var continued atomic.Bool
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { continued.Store(true) }})
			var read atomic.Bool
			req := request(t, "POST", "http://svc/", nil).WithContext(ctx)
			req.Body, req.ContentLength = io.NopCloser(&noted{once("payload"), &read}), 7
			req.Header.Set("Expect", "100-continue")
			if refuse {
				req.Header.Set("Refuse", "yes")
			}
			code, body, err := get(t, w.client, req)
			if err != nil || refuse && (code != 417 || read.Load()) || !refuse && (code != 200 || body != "payload" || !continued.Load()) {
				t.Errorf("refused %t: %d %q %v, continued %t, body read %t", refuse, code, body, err, continued.Load(), read.Load())
			}
		}
	}},
	{"early hints", 0, func(_ chan struct{}, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "ok")
	}, func(t *testing.T, w *world) {
		var hints atomic.Int32
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == 103 && h.Get("Link") == "</style.css>" {
				hints.Add(1)
			}
			return nil
		}})
		if code, body, err := get(t, w.client, request(t, "POST", "http://svc/", nil).WithContext(ctx)); err != nil || code != 200 || body != "ok" || hints.Load() != 1 {
			t.Errorf("%d %q %v, %d hints", code, body, err, hints.Load())
		}
	}},
	{"full duplex", 2, func(_ chan struct{}, w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			fmt.Fprintln(w, "echo", lines.Text())
			_ = http.NewResponseController(w).Flush()
		}
	}, func(t *testing.T, w *world) {
		read, write := io.Pipe()
		resp, err := w.client.Do(request(t, "POST", "http://svc/", read))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answers := bufio.NewScanner(resp.Body)
		for _, word := range []string{"a", "b", strings.Repeat("c", 20_000)} {
			if _, err := fmt.Fprintln(write, word); err != nil {
				t.Fatal(err)
			}
			if !answers.Scan() || answers.Text() != "echo "+word {
				t.Fatalf("%.20q %v", answers.Text(), answers.Err())
			}
		}
		write.Close()
		if answers.Scan() {
			t.Errorf("more came: %q", answers.Text())
		}
	}},
	{"64 MB each way", 0, func(_ chan struct{}, w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	}, func(t *testing.T, w *world) {
		const size = 64 << 20
		var before, now runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		sent, got := sha256.New(), sha256.New()
		req := request(t, "POST", "http://svc/", io.TeeReader(io.LimitReader(&pattern{}, size), sent))
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		most, buf := uint64(0), make([]byte, 64<<10)
		for n := 0; ; n++ {
			k, err := resp.Body.Read(buf)
			got.Write(buf[:k])
			if n%512 == 0 {
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapInuse)
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			t.Error("what came back is not what was sent")
		}
		if grown := int64(most) - int64(before.HeapInuse); grown > 16<<20 {
			t.Errorf("the heap grew by %d MB", grown>>20)
		}
	}},
}

// onEOF calls f before it says that there is no more.
type onEOF struct {
	io.Reader
	f func()
}

func (o *onEOF) Read(p []byte) (int, error) {
	n, err := o.Reader.Read(p)
	if err == io.EOF {
		o.f()
	}
	return n, err
}

// noted notes that it was read.
type noted struct {
	io.Reader
	read *atomic.Bool
}

func (n *noted) Read(p []byte) (int, error) {
	n.read.Store(true)
	return n.Reader.Read(p)
}

// pattern is an endless stream that repeats only after 256 KiB.
type pattern struct{ n uint32 }

func (c *pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c.n) ^ byte(c.n>>10)
		c.n++
	}
	return len(p), nil
}

// TestStreamingHonesty: whatever rules are armed, HTTP is what it is without a mesh.
func TestStreamingHonesty(t *testing.T) {
	all := arms(t)
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, s := range streamsOfHTTP {
		for _, version := range []int{1, 2} {
			if s.version != 0 && s.version != version {
				continue
			}
			for _, name := range names {
				if strings.HasPrefix(s.name, "64 MB") && name != "nothing" && name != "everything" {
					continue
				}
				t.Run(fmt.Sprintf("%s, HTTP/%d, %s", s.name, version, name), func(t *testing.T) {
					step := make(chan struct{})
					w := newWorld(t, ClientOptions{}, func(w *world) {
						w.step = step
						w.cluster.HTTP2 = version == 2
						if arm := all[name]; arm != nil {
							arm(w)
						}
					}, func(w http.ResponseWriter, r *http.Request) { s.handler(step, w, r) })
					s.use(t, w)
				})
			}
		}
	}
}

// TestCancelAtEachStage: the caller's cancellation ends the request wherever it
// is, its bodies are closed and nothing is left behind.
func TestCancelAtEachStage(t *testing.T) {
	all := arms(t)
	for _, arm := range []string{"nothing", "everything"} {
		for _, h2 := range []bool{false, true} {
			for _, stage := range []string{"before the headers", "in the body"} {
				t.Run(fmt.Sprintf("%s, HTTP/2 %t, %s", stage, h2, arm), func(t *testing.T) {
					step := make(chan struct{}, 8)
					w := newWorld(t, ClientOptions{}, func(w *world) {
						w.cluster.HTTP2 = h2
						if all[arm] != nil {
							all[arm](w)
						}
					}, func(w http.ResponseWriter, r *http.Request) {
						if stage == "in the body" {
							_, _ = io.WriteString(w, "half")
							_ = http.NewResponseController(w).Flush()
						}
						step <- struct{}{}
						<-r.Context().Done()
					})
					ctx, cancel := context.WithCancel(t.Context())
					go func() {
						<-step
						cancel()
					}()
					_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil).WithContext(ctx))
					if !errors.Is(err, context.Canceled) {
						t.Errorf("error %v", err)
					}
				})
			}
		}
	}
}
