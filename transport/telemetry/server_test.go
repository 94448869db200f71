package telemetry

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// serve gives one request to a handler behind the middleware.
func serve(tel *Telemetry, r *http.Request, next http.HandlerFunc) (*httptest.ResponseRecorder, any) {
	w := httptest.NewRecorder()
	var panicked any
	func() {
		defer func() { panicked = recover() }()
		tel.Handler(next).ServeHTTP(w, r)
	}()
	return w, panicked
}

func TestServedRequests(t *testing.T) {
	mux := func(pattern string, h http.HandlerFunc) http.HandlerFunc {
		m := http.NewServeMux()
		m.HandleFunc(pattern, h)
		return m.ServeHTTP
	}
	for _, c := range []struct {
		name, method string
		handler      http.HandlerFunc
		span         string
		want         map[string]string // of span and metric
		panics       bool
	}{
		{"route", "GET", mux("GET example.com/items/{id}", func(w http.ResponseWriter, _ *http.Request) {}), "GET /items/{id}",
			map[string]string{"http.route": "/items/{id}", "http.response.status_code": "200", "error.type": "", "http.request.method": "GET"}, false},
		{"no route", "GET", mux("/other", nothing), "GET",
			map[string]string{"http.route": "", "http.response.status_code": "404", "error.type": ""}, false},
		{"unknown method", "FETCH", mux("/", nothing), "HTTP /",
			map[string]string{"http.route": "/", "http.request.method": "_OTHER"}, false},
		{"lower case method", "get", nothing, "HTTP", map[string]string{"http.request.method": "_OTHER"}, false},
		{"503", "GET", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503); w.WriteHeader(200) }, "GET",
			map[string]string{"http.response.status_code": "503", "error.type": "503"}, false},
		{"informational first", "GET", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(404) }, "GET",
			map[string]string{"http.response.status_code": "404", "error.type": ""}, false},
		{"implicit", "GET", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x"); w.WriteHeader(500) }, "GET",
			map[string]string{"http.response.status_code": "200", "error.type": ""}, false},
		{"panic", "GET", func(http.ResponseWriter, *http.Request) { panic("x") }, "GET",
			map[string]string{"http.response.status_code": "500", "error.type": "500"}, true},
		{"panic after the header", "GET", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206); panic(http.ErrAbortHandler) }, "GET",
			map[string]string{"http.response.status_code": "206", "error.type": "aborted"}, true},
		{"status that does not exist", "GET", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(12) }, "GET",
			map[string]string{"http.response.status_code": "500", "error.type": "500"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, sdktrace.AlwaysSample())
			req := httptest.NewRequest(c.method, "http://example.com/items/7?a=1", nil)
			_, panicked := serve(r.Telemetry, req, c.handler)
			if (panicked != nil) != c.panics {
				t.Fatalf("panic: %v", panicked)
			}
			spans := r.ended(trace.SpanKindServer)
			if len(spans) != 1 || spans[0].Name() != c.span {
				t.Fatalf("spans %v", spans)
			}
			attrs := attrsOf(spans[0].Attributes())
			check(t, "span", attrs, c.want)
			check(t, "span", attrs, map[string]string{
				"url.path": "/items/7", "url.query": "a=1", "url.scheme": "http", "server.address": "example.com", "server.port": "80",
				"network.peer.address": "192.0.2.1", "network.peer.port": "1234", "client.address": "192.0.2.1", "network.protocol.version": "1.1",
			})
			if errored := spans[0].Status().Code.String() == "Error"; errored != (c.want["error.type"] != "") {
				t.Errorf("span's status %v", spans[0].Status())
			}
			p := r.only(t, "http.server.request.duration")
			check(t, "metric", p.attrs, c.want)
			check(t, "metric", p.attrs, map[string]string{"url.scheme": "http", "network.protocol.version": "1.1", "server.address": "", "url.path": ""})
			if p.count != 1 {
				t.Errorf("counted %d", p.count)
			}
		})
	}
}

func nothing(http.ResponseWriter, *http.Request) {}

func TestServerSpanHasItsParent(t *testing.T) {
	r := newRig(t, sdktrace.ParentBased(sdktrace.NeverSample()))
	req := httptest.NewRequest("GET", "/", nil)
	req.Header.Set("Traceparent", sampled)
	var inside trace.SpanContext
	serve(r.Telemetry, req, func(_ http.ResponseWriter, r *http.Request) { inside = trace.SpanContextFromContext(r.Context()) })
	spans := r.ended(trace.SpanKindServer)
	if len(spans) != 1 || !spans[0].Parent().IsRemote() || spans[0].Parent().SpanID().String() != "00f067aa0ba902b7" || !inside.Equal(spans[0].SpanContext()) {
		t.Fatalf("spans %v, inside %v", spans, inside)
	}
}

func TestServerAsksTheSamplerOnce(t *testing.T) {
	s := &countingSampler{Sampler: sdktrace.NeverSample()}
	r := newRig(t, s)
	serve(r.Telemetry, httptest.NewRequest("GET", "/healthz", nil), nothing)
	if s.asked != 1 {
		t.Errorf("asked %d times", s.asked)
	}
	check(t, "sampler", attrsOf(s.last.Attributes), map[string]string{"url.path": "/healthz", "http.request.method": "GET", "url.scheme": "http"})
}

// The request is handed on as it is where there is nothing to add.
func TestNothingInstalledCopiesNothing(t *testing.T) {
	tel, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		req := httptest.NewRequest("GET", "/", nil)
		serve(tel, req, func(_ http.ResponseWriter, got *http.Request) {
			if tel.tracing.Load().silent.Load() && got != req {
				t.Error("another request")
			}
		})
	}
}

func TestRoutesAreBounded(t *testing.T) {
	r := newRig(t, sdktrace.NeverSample())
	h := r.Handler(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		req.Pattern = req.URL.Path // as a careless router may do
		w.WriteHeader(200 + len(req.URL.Path)%300)
	}))
	visit := func(i int) {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", fmt.Sprintf("/%d%s", i, strings.Repeat("x", i%250)), nil))
	}
	for i := range 5000 {
		visit(i)
	}
	before := len(r.points(t, "http.server.request.duration"))
	for i := range 20_000 {
		visit(i)
	}
	points := r.points(t, "http.server.request.duration")
	var total uint64
	for _, p := range points {
		total += p.count
	}
	if len(points) > maxServerSets+maxOtherSets+1 || len(points) < maxServerSets || before > len(points) || total != 25_000 {
		t.Errorf("%d series, then %d; %d requests", before, len(points), total)
	}
}

// Every optional interface is there if and only if the writer below has it.
func TestOptionalInterfaces(t *testing.T) {
	type f = interface{ Flush() }
	type h = http.Hijacker
	type p = http.Pusher
	for i, below := range []http.ResponseWriter{
		plain{}, struct {
			plain
			flusher
		}{}, struct {
			plain
			hijacker
		}{}, struct {
			plain
			pusher
		}{}, struct {
			plain
			flusher
			hijacker
		}{}, struct {
			plain
			flusher
			pusher
		}{}, struct {
			plain
			hijacker
			pusher
		}{}, struct {
			plain
			flusher
			hijacker
			pusher
		}{},
	} {
		w := (&writer{ResponseWriter: below}).as()
		_, belowF := below.(f)
		_, belowH := below.(h)
		_, belowP := below.(p)
		_, hasF := w.(f)
		_, hasH := w.(h)
		_, hasP := w.(p)
		_, hasE := w.(interface{ FlushError() error })
		if hasF != belowF || hasE != belowF || hasH != belowH || hasP != belowP {
			t.Errorf("%d: flusher %v, hijacker %v, pusher %v", i, hasF, hasH, hasP)
		}
		if u, ok := w.(interface{ Unwrap() http.ResponseWriter }); !ok || u.Unwrap() != below {
			t.Errorf("%d: does not unwrap", i)
		}
	}
}

type (
	plain    struct{}
	flusher  struct{}
	hijacker struct{}
	pusher   struct{}
)

func (plain) Header() http.Header         { return nil }
func (plain) Write(p []byte) (int, error) { return len(p), nil }
func (plain) WriteHeader(int)             {}
func (flusher) Flush()                    {}
func (hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, nil
}
func (pusher) Push(string, *http.PushOptions) error { return nil }

func TestOverRealServer(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	mux := http.NewServeMux()
	mux.HandleFunc("/copy", func(w http.ResponseWriter, _ *http.Request) {
		if _, ok := w.(io.ReaderFrom); !ok {
			t.Error("no io.ReaderFrom")
		}
		n, err := io.Copy(w, strings.NewReader(strings.Repeat("x", 100_000)))
		if n != 100_000 || err != nil {
			t.Error(n, err)
		}
	})
	mux.HandleFunc("/flush", func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		w.WriteHeader(500) // too late
	})
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
		conn.Close()
	})
	done := make(chan struct{}, 1)
	h := r.Handler(mux)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		defer func() { done <- struct{}{} }()
		h.ServeHTTP(w, req)
	}))
	defer server.Close()
	for path, want := range map[string]string{"/copy": "200", "/flush": "200", "/hijack": ""} {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(path, err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || (path == "/copy" && n != 100_000) {
			t.Error(path, n, err)
		}
		<-done
		spans := r.ended(trace.SpanKindServer)
		check(t, path, attrsOf(spans[len(spans)-1].Attributes()), map[string]string{"http.route": path, "http.response.status_code": want, "error.type": ""})
	}
}

// ReadFrom reaches the writer below, which may know a faster way.
func TestReadFromIsHandedOn(t *testing.T) {
	below := &readerFrom{}
	w := (&writer{ResponseWriter: below}).as()
	if n, err := io.Copy(w, struct{ io.Reader }{strings.NewReader("abc")}); n != 3 || err != nil || below.String() != "abc" || !below.used {
		t.Error(n, err, below.used)
	}
}

type readerFrom struct {
	bytes.Buffer
	used bool
}

func (*readerFrom) Header() http.Header { return nil }
func (*readerFrom) WriteHeader(int)     {}
func (r *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	r.used = true
	return r.Buffer.ReadFrom(src)
}

// Secrets of a request come out nowhere.
func TestSecretsStayIn(t *testing.T) {
	const canary = "canary-9f3b"
	r := newRig(t, sdktrace.AlwaysSample())
	rt := client(t, r.Telemetry, nil, 0, transport(func(req *http.Request) (*http.Response, error) {
		if req.Header.Get("Authorization") == "" {
			t.Error("the header did not arrive")
		}
		if strings.Contains(req.URL.Path, "fail") {
			return nil, fmt.Errorf("failed at %s", canary)
		}
		resp := answer(500)
		resp.Header.Set("Set-Cookie", canary)
		return resp, nil
	}))
	secret := func(h http.Header) {
		h.Set("Authorization", "Bearer "+canary)
		h.Set("Cookie", "session="+canary)
		h.Set("X-Api-Key", canary)
		h.Set("Proxy-Authorization", canary)
	}
	h := r.Handler(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		for _, path := range []string{"/ok", "/fail"} {
			req := request(t, in.Context(), "GET", "http://user:"+canary+"@a.example"+path+"?token="+canary+"&x=1&to=%2F%3Fsecret%3D"+canary)
			secret(req.Header)
			_, _ = send(t, rt, req)
			req = request(t, in.Context(), "GET", "http://a.example"+path)
			req.Host = "user:" + canary + "@a.example"
			secret(req.Header)
			_, _ = send(t, rt, req)
		}
		w.Header().Set("Set-Cookie", canary)
		panic(canary)
	}))
	req := httptest.NewRequest("GET", "/?access_token="+canary, nil)
	req.Host = "user:" + canary + "@example.com"
	secret(req.Header)
	func() {
		defer func() { _ = recover() }()
		h.ServeHTTP(httptest.NewRecorder(), req)
	}()
	spans := r.spans.Ended()
	if len(spans) != 9 {
		t.Fatalf("%d spans", len(spans))
	}
	for _, s := range spans {
		all := fmt.Sprint(s.Name(), s.Status(), s.Events(), s.Links())
		for _, kv := range s.Attributes() {
			all += " " + string(kv.Key) + "=" + kv.Value.String()
		}
		if strings.Contains(all, canary) {
			t.Errorf("a span shows a secret: %s", all)
		}
	}
	for name, m := range r.metrics(t) {
		for _, p := range pointsOf(m) {
			for key, v := range p.attrs {
				if strings.Contains(v.String(), canary) {
					t.Errorf("%s: %s shows a secret", name, key)
				}
			}
		}
	}
}
