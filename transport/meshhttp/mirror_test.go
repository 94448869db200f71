package meshhttp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

var always = routing.Fraction{PerMillion: 1_000_000}

// mirrored adds a mirror to the world's route, whose cluster has the one address.
func mirrored(address string) func(*world) {
	return func(w *world) {
		w.route.Mirrors = []routing.Mirror{{Cluster: "m", Fraction: always, KeepHost: true}}
		w.snap.Clusters["m"] = &snapshot.Cluster{
			Name: "m", ConnectTimeout: 20 * time.Second, LB: lb.Policy{Kind: lb.RoundRobin}, Limits: unlimited,
			Endpoints: lb.NewEndpoints([]lb.Endpoint{{Address: address, Weight: 1}}, nil),
		}
	}
}

// TestMirror: the copy is the request, whole, or there is none; the request
// itself is answered the same either way.
func TestMirror(t *testing.T) {
	large := strings.Repeat("x", maxMirrored+1)
	for _, c := range []struct {
		name, method string
		body         func() io.Reader
		length       int64
		fails        bool
		want         string // "": no copy
	}{
		{name: "GET", method: "GET", want: "GET svc /x?q "},
		{name: "body with GetBody", method: "POST", body: func() io.Reader { return strings.NewReader("payload") }, want: "POST svc /x?q payload"},
		{name: "large body with GetBody", method: "POST", body: func() io.Reader { return strings.NewReader(large) }, want: "POST svc /x?q " + large},
		{name: "body that is kept", method: "POST", body: func() io.Reader { return once("payload") }, want: "POST svc /x?q payload"},
		{name: "body of known length that is kept", method: "POST", body: func() io.Reader { return once("payload") }, length: 7, want: "POST svc /x?q payload"},
		{name: "large body that would have to be kept", method: "POST", body: func() io.Reader { return once(large) }},
		{name: "large body that says so", method: "POST", body: func() io.Reader { return once(large) }, length: int64(len(large))},
		{name: "body that fails", method: "POST", fails: true, body: func() io.Reader {
			return io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("the disk is gone")))
		}},
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(c.name+map[bool]string{false: "", true: ", HTTP/2"}[h2], func(t *testing.T) {
				copies := make(chan string, 4)
				mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					copies <- r.Method + " " + r.Host + " " + r.RequestURI + " " + string(b)
					w.WriteHeader(500) // nobody sees it
				}))
				defer mirror.Close()
				w := newWorld(t, ClientOptions{}, func(w *world) {
					mirrored(mirror.Listener.Addr().String())(w)
					w.cluster.HTTP2 = h2
					w.route.Retry = retryOn(t, "5xx", 1)
				}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
				var body io.Reader
				if c.body != nil {
					body = c.body()
				}
				req := request(t, c.method, "http://svc/x?q", body)
				if c.length > 0 {
					req.ContentLength = c.length
				}
				code, _, err := get(t, w.client, req)
				if (err != nil) != c.fails || err == nil && code != 200 {
					t.Fatalf("%d %v", code, err)
				}
				if c.want != "" {
					if got := <-copies; got != c.want {
						t.Errorf("the copy is %.60q, want %.60q", got, c.want)
					}
				}
				w.client.Transport.(*RoundTripper).Close()
				select {
				case got := <-copies:
					t.Errorf("a copy too many: %.60q", got)
				default:
				}
			})
		}
	}
}

// TestMirrorIsOnlyAMirror: whatever becomes of the copy, the request is
// answered, and what is under way ends with Close.
func TestMirrorIsOnlyAMirror(t *testing.T) {
	hang := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begun")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	hang.Start()
	defer hang.Close()
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for block := bytes.Repeat([]byte("x"), 32<<10); r.Context().Err() == nil; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}))
	defer endless.Close()
	for name, address := range map[string]string{"nobody there": "127.0.0.1:1", "hangs": hang.Listener.Addr().String(), "never ends": endless.Listener.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, ClientOptions{}, mirrored(address), func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					for _, body := range []io.Reader{strings.NewReader("payload"), once("payload")} {
						if code, got, err := get(t, w.client, request(t, "POST", "http://svc/", body)); err != nil || code != 200 || got != "payload" {
							t.Errorf("%d %q %v", code, got, err)
						}
					}
				})
			}
			all.Wait()
			began := time.Now()
			w.client.Transport.(*RoundTripper).Close()
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("Close took %s", took)
			}
			// After Close there are no copies, and requests go on.
			if code, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || code != 200 {
				t.Errorf("after Close: %d %v", code, err)
			}
		})
	}
}

// TestMirrorNeedsAnEndpoint: a request that goes nowhere has no copies.
func TestMirrorNeedsAnEndpoint(t *testing.T) {
	asked := make(chan string, 4)
	mirror := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.RequestURI }))
	defer mirror.Close()
	w := newWorld(t, ClientOptions{}, mirrored(mirror.Listener.Addr().String())) // without a server
	for _, body := range []io.Reader{nil, strings.NewReader("payload"), once("payload")} {
		if code, _, err := get(t, w.client, request(t, "POST", "http://svc/", body)); err == nil {
			t.Errorf("status %d of no server", code)
		}
	}
	w.client.Transport.(*RoundTripper).Close()
	select {
	case uri := <-asked:
		t.Errorf("the mirror was asked for %s", uri)
	default:
	}
}
