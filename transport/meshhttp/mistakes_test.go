package meshhttp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// closeCounter is a body that counts how often it is closed.
type closeCounter struct {
	io.Reader
	closed atomic.Int32
}

func (c *closeCounter) Close() error { c.closed.Add(1); return nil }

func TestRequestBodyIsAlwaysClosed(t *testing.T) {
	for _, c := range []struct {
		name, target string
		change       func(*world)
	}{
		{"sent", "http://svc/", nil},
		{"retried", "http://svc/", func(w *world) { w.route.Retry = retryOn(t, "5xx", 2) }},
		{"nobody listens", "http://svc/", func(w *world) {
			w.cluster.Endpoints = lb.NewEndpoints([]lb.Endpoint{{Address: deadAddress, Weight: 1}}, nil)
			w.route.Retry = retryOn(t, "connect-failure", 2)
		}},
		{"no endpoint", "http://svc/", func(w *world) { w.cluster.Endpoints = lb.NewEndpoints(nil, nil) }},
		{"limit", "http://svc/", func(w *world) { w.cluster.Limits.MaxRequests = 0 }},
		{"no authority", "http://svc/", func(w *world) { w.route.Rewrite.Host = "a b" }},
		{"no route", "http://svc/", func(w *world) { w.route.Match.Path.Value = "/other" }},
		{"no policy", "http://unknown/", nil},
		{"not http", "ftp://svc/", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, ClientOptions{}, c.change, status(503, ""))
			body := &closeCounter{Reader: strings.NewReader("payload")}
			req := request(t, "POST", c.target, body)
			resp, err := w.client.Transport.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			// The transport may close it a little after RoundTrip has returned.
			for deadline := time.Now().Add(20 * time.Second); body.closed.Load() == 0 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			if body.closed.Load() == 0 {
				t.Error("the body was not closed")
			}
		})
	}
}

// TestCallersMistakes: a request that can not be sent is sent once, fails, and
// does not count against the endpoint.
func TestCallersMistakes(t *testing.T) {
	broken := errors.New("the disk is gone")
	failing := func() io.Reader { return io.MultiReader(strings.NewReader("half"), iotest.ErrReader(broken)) }
	for _, c := range []struct {
		name    string
		request func(*http.Request)
		h2      bool
		mayPass bool // where the answer comes before the mistake is seen
	}{
		{"header value", func(r *http.Request) { r.Header.Set("User", "a\nb") }, false, false},
		{"header name", func(r *http.Request) { r.Header["Us er"] = []string{"a"} }, false, false},
		{"no header", func(r *http.Request) { r.Header = nil }, false, false},
		{"method", func(r *http.Request) { r.Method = "GE T" }, false, false},
		{"kept body fails", func(r *http.Request) { r.Body = io.NopCloser(failing()) }, false, false},
		{"streamed body fails", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, 128<<10)), failing())), 1<<20
		}, false, false},
		{"streamed body fails, HTTP/2", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, 128<<10)), failing())), 1<<20
		}, true, false},
		{"body too short", func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("ab")), 5 }, false, false},
		{"body too long", func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("abcdef")), 5 }, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, ClientOptions{}, func(w *world) {
				w.route.Retry = retryOn(t, "5xx,reset,connect-failure,refused-stream", 3)
				w.cluster.HTTP2 = c.h2
				w.cluster.Outlier = &resilience.DefaultOutlier
			}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
			req := request(t, "POST", "http://svc/", nil)
			c.request(req)
			resp, err := w.client.Transport.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
				if c.mayPass {
					return
				}
				t.Fatal("no error")
			}
			e := w.engine.Status().Clusters[0].Endpoints[0]
			if e.Requests != 1 || e.Failures != 0 {
				t.Errorf("%d attempts and %d failures of the endpoint, want 1 and 0; the error is %v", e.Requests, e.Failures, err)
			}
		})
	}
	t.Run("GetBody fails", func(t *testing.T) {
		w := newWorld(t, ClientOptions{}, func(w *world) { w.route.Retry = retryOn(t, "5xx", 3) }, status(503, ""))
		req := request(t, "POST", "http://svc/", strings.NewReader("x"))
		req.GetBody = func() (io.ReadCloser, error) { return nil, broken }
		if _, err := w.client.Transport.RoundTrip(req); !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
		if e := w.engine.Status().Clusters[0].Endpoints[0]; e.Failures != 1 {
			t.Errorf("%d failures, want only the 503", e.Failures)
		}
	})
}
