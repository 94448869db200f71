package meshhttp

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// mirroring is a world whose engine has room for one copy at a time, and its mirror.
func mirroring(t *testing.T, observer outbound.Observer) (rt *RoundTripper, copies chan string) {
	copies = make(chan string, 1000)
	mirror := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		copies <- r.RequestURI + " " + string(b)
	}))
	t.Cleanup(mirror.Close)
	w := newWorld(t, ClientOptions{}, mirrored(mirror.Listener.Addr().String()), status(200, "ok"))
	made := NewWire(nil)
	engine := outbound.New(outbound.Options{
		Subscribe: func(string) {}, PolicyWait: time.Second, MaxShadows: 1, Observer: observer,
		NewWire: func(c *snapshot.Cluster) outbound.Wire { return made(c) },
	})
	engine.Install(w.snap)
	rt = NewRoundTripper(engine, ClientOptions{Observer: observer})
	t.Cleanup(func() {
		rt.Close()
		engine.Close()
	})
	return rt, copies
}

// TestCopiesThatAreNotSentMakeRoom: a copy that can not be sent does not take the place of others.
func TestCopiesThatAreNotSentMakeRoom(t *testing.T) {
	rt, copies := mirroring(t, nil)
	large := strings.Repeat("x", maxMirrored+1)
	for name, next := range map[string]func() *http.Request{
		"a body that can not be had again after all": func() *http.Request {
			req := request(t, "POST", "http://svc/dropped", strings.NewReader("payload"))
			req.GetBody = func() (io.ReadCloser, error) { return nil, errors.New("the file is gone") }
			return req
		},
		"a body that says it is long": func() *http.Request {
			req := request(t, "POST", "http://svc/dropped", once(large))
			req.ContentLength = int64(len(large))
			return req
		},
		"a long body": func() *http.Request { return request(t, "POST", "http://svc/dropped", once(large)) },
		"a body that fails": func() *http.Request {
			return request(t, "POST", "http://svc/dropped", io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("the disk is gone"))))
		},
		"a tunnel": func() *http.Request {
			req := request(t, "GET", "http://svc/dropped", nil)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "websocket")
			return req
		},
	} {
		t.Run(name, func(t *testing.T) {
			if resp, err := rt.RoundTrip(next()); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			// The copy before this one may still be under way.
			eventually(t, "another request has a copy", func() bool {
				resp, err := rt.RoundTrip(request(t, "GET", "http://svc/copied", nil))
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				select {
				case got := <-copies:
					if !strings.HasPrefix(got, "/copied") {
						t.Fatalf("the copy is %q", got)
					}
					return true
				case <-time.After(10 * time.Millisecond):
					return false
				}
			})
		})
	}
}

// TestCopyOfTheLongestBody: as much is kept for a mirror as is said, and not one byte more.
func TestCopyOfTheLongestBody(t *testing.T) {
	whole := strings.Repeat("x", maxMirrored)
	for _, length := range []int64{0, maxMirrored} {
		rt, copies := mirroring(t, nil)
		req := request(t, "POST", "http://svc/", once(whole))
		req.ContentLength = length
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		select {
		case got := <-copies:
			if got != "/ "+whole {
				t.Errorf("length %d: the copy has %d bytes", length, len(got))
			}
		case <-time.After(30 * time.Second):
			t.Errorf("length %d: no copy", length)
		}
	}
}

// TestCopiesAfterClose: what was prepared for a copy is given back, and the copy's end is told.
func TestCopiesAfterClose(t *testing.T) {
	rec := &recorder{}
	rt, copies := mirroring(t, rec)
	rt.copies.close()
	body := &closeCounter{Reader: strings.NewReader("payload")}
	req := request(t, "POST", "http://svc/", strings.NewReader("payload"))
	req.GetBody = func() (io.ReadCloser, error) { return body, nil }
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if body.closed.Load() != 1 {
		t.Error("the copy's body is not closed")
	}
	rec.mu.Lock()
	if n := len(rec.calls); n != 2 {
		t.Errorf("%d calls have ended, want the request and its copy", n)
	}
	rec.mu.Unlock()
	if len(copies) != 0 {
		t.Error("a copy was sent")
	}
}
