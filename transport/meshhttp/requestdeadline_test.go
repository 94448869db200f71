package meshhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

func TestTimeLimit(t *testing.T) {
	const none = time.Duration(-1)
	grpc := "application/grpc+proto"
	for _, tt := range []struct {
		expected, grpcTimeout []string
		content               string
		want                  time.Duration
	}{
		{nil, nil, "", none},
		{[]string{"1500"}, nil, "", 1500 * time.Millisecond},
		{[]string{"0"}, nil, "", 0},
		{[]string{"007"}, nil, "", 7 * time.Millisecond},
		{[]string{"20", "10"}, nil, "", 10 * time.Millisecond},
		{[]string{"x", "10"}, nil, "", 10 * time.Millisecond},
		{[]string{""}, nil, "", none},
		{[]string{"-1"}, nil, "", none},
		{[]string{"+1"}, nil, "", none},
		{[]string{"1.5"}, nil, "", none},
		{[]string{" 1"}, nil, "", none},
		{[]string{"10,20"}, nil, "", none},
		{[]string{"999999999999999999"}, nil, "", none}, // more than a decade
		{[]string{"9223372036854775808"}, nil, "", none},
		{[]string{"18446744073709551617"}, nil, "", none},
		{nil, []string{"2S"}, "", none}, // not gRPC
		{nil, []string{"2S"}, "application/json", none},
		{nil, []string{"2S"}, grpc, 2 * time.Second},
		{nil, []string{"1H"}, grpc, time.Hour},
		{nil, []string{"1M"}, grpc, time.Minute},
		{nil, []string{"0m"}, grpc, 0},
		{nil, []string{"5u"}, grpc, 5 * time.Microsecond},
		{nil, []string{"12345678n"}, grpc, 12345678},
		{nil, []string{"123456789n"}, grpc, none},
		{nil, []string{"99999999H"}, grpc, none},
		{nil, []string{"5"}, grpc, none},
		{nil, []string{"S"}, grpc, none},
		{nil, []string{"5h"}, grpc, none},
		{nil, []string{""}, grpc, none},
		{[]string{"3000"}, []string{"2S"}, grpc, 2 * time.Second},
		{[]string{"1000"}, []string{"2S"}, grpc, time.Second},
	} {
		h := http.Header{"Content-Type": {tt.content}}
		if tt.expected != nil {
			h[expectedTimeout] = tt.expected
		}
		if tt.grpcTimeout != nil {
			h[grpcTimeout] = tt.grpcTimeout
		}
		got, ok := timeLimit(h)
		if !ok {
			got = none
		}
		if got != tt.want {
			t.Errorf("%q %q %q: %v, want %v", tt.expected, tt.grpcTimeout, tt.content, got, tt.want)
		}
	}
	for name := range map[string]bool{expectedTimeout: true, grpcTimeout: true} {
		if http.CanonicalHeaderKey(name) != name {
			t.Errorf("%q is not how net/http spells it", name)
		}
	}
}

func FuzzTimeLimit(f *testing.F) {
	for _, v := range []string{"", "0", "15", "2S", "99999999H", "-1", "9223372036854775807"} {
		f.Add(v, v)
	}
	f.Fuzz(func(t *testing.T, expected, grpc string) {
		h := http.Header{expectedTimeout: {expected}, grpcTimeout: {grpc}, "Content-Type": {"application/grpc"}}
		if d, ok := timeLimit(h); d < 0 || d > longestTimeout || !ok && d != 0 {
			t.Errorf("%q %q: %v %v", expected, grpc, d, ok)
		}
	})
}

// TestRequestDeadline: the handler's context ends when the caller's patience does, whoever the caller is.
func TestRequestDeadline(t *testing.T) {
	leak.Check(t)
	type seen struct {
		deadline bool
		left     time.Duration
		peer     bool
		header   string
	}
	var got seen
	h := newHouse(t, plain(nil), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, ok := r.Context().Deadline()
		_, peer := identity.PeerFromContext(r.Context())
		got = seen{ok, time.Until(at), peer, r.Header.Get(expectedTimeout)}
		if r.URL.Path != "/wait" {
			return
		}
		derived, cancel := context.WithCancel(r.Context())
		defer cancel()
		<-derived.Done()
		_, _ = io.WriteString(w, fmt.Sprint(r.Context().Err(), ", ", derived.Err()))
	}), nil)
	for _, h2 := range []bool{false, true} {
		client := h.client(t, nil, h2)
		get := func(path string, header ...string) (int, string) {
			r := must(http.NewRequest(http.MethodGet, "http://"+h.address+path, nil))
			for i := 0; i < len(header); i += 2 {
				r.Header.Add(header[i], header[i+1])
			}
			resp := must(client.Do(r))
			defer resp.Body.Close()
			return resp.StatusCode, string(must(io.ReadAll(resp.Body)))
		}
		if code, _ := get("/"); code != 200 || got.deadline || !got.peer {
			t.Errorf("without a header: %d %+v", code, got)
		}
		// A plaintext caller has no identity: it may shorten its own time, but its header goes no further.
		if code, _ := get("/", "x-envoy-expected-rq-timeout-ms", "3600000"); code != 200 || !got.deadline || got.left > time.Hour || got.left < 50*time.Minute || !got.peer || got.header != "3600000" {
			t.Errorf("an hour: %d %+v", code, got)
		}
		if code, _ := get("/", "grpc-timeout", "1H"); code != 200 || got.deadline {
			t.Errorf("grpc-timeout of a request that is not gRPC: %d %+v", code, got)
		}
		if _, _ = get("/", "grpc-timeout", "1H", "content-type", "application/grpc"); !got.deadline {
			t.Errorf("grpc-timeout: %+v", got)
		}
		if !h2 {
			if _, _ = get("/", "x-envoy-expected-rq-timeout-ms", "3600000", "connection", "upgrade", "upgrade", "websocket"); got.deadline {
				t.Errorf("an upgrade: %+v", got)
			}
		}
		if code, body := get("/wait", "x-envoy-expected-rq-timeout-ms", "20"); code != 200 || body != "context deadline exceeded, context deadline exceeded" {
			t.Errorf("when it passes: %d %q", code, body)
		}
		got = seen{}
		code, body := get("/", "x-envoy-expected-rq-timeout-ms", "0")
		if code != http.StatusGatewayTimeout || !strings.Contains(body, `"code":"deadline"`) || got.peer {
			t.Errorf("0: %d %s %+v", code, body, got)
		}
		if o := h.seen.last(); o.Reason != inbound.ReasonDeadline {
			t.Errorf("outcome %+v", o)
		}
	}
}

// TestRequestDeadlineWhileWaiting: no policy comes, and the caller waits less than we would.
func TestRequestDeadlineWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := inbound.New(inbound.Options{Subscribe: func(string) {}, Log: slog.New(slog.DiscardHandler)})
		defer e.Close()
		handler := Handler(e, slog.New(slog.DiscardHandler), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler runs") }))
		for _, tt := range []struct {
			limit string
			code  int
			took  time.Duration
		}{{"2000", 504, 2 * time.Second}, {"20000", 503, 15 * time.Second}} {
			r := atLocal(httptest.NewRequest(http.MethodGet, "/", nil))
			r.Header.Set(expectedTimeout, tt.limit)
			w, began := httptest.NewRecorder(), time.Now()
			handler.ServeHTTP(w, r)
			if took := time.Since(began); w.Code != tt.code || took != tt.took {
				t.Errorf("%s ms: %d after %v, want %d after %v", tt.limit, w.Code, took, tt.code, tt.took)
			}
		}
	})
}

func atLocal(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9080})))
}

// TestRequestDeadlineCostsNoGoroutine: contexts that a handler derives hang on the
// deadline by its list, not by a goroutine each.
func TestRequestDeadlineCostsNoGoroutine(t *testing.T) {
	e := inbound.New(inbound.Options{})
	defer e.Close()
	handler := Handler(e, slog.New(slog.DiscardHandler), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		before := runtime.NumGoroutine()
		for range 100 {
			_, cancel := context.WithCancel(r.Context())
			defer cancel()
		}
		if n := runtime.NumGoroutine() - before; n > 10 {
			t.Errorf("%d goroutines for 100 contexts", n)
		}
	}))
	r := atLocal(httptest.NewRequest(http.MethodGet, "/", nil))
	r.Header.Set(expectedTimeout, "60000")
	handler.ServeHTTP(httptest.NewRecorder(), r)
}

// TestServedContext: it ends once, with the first of its deadline, the context above and the
// end of the request, whoever asks first and in whatever way.
func TestServedContext(t *testing.T) {
	type key struct{}
	for _, end := range []string{"deadline", "above", "above's deadline", "request"} {
		for _, ask := range []string{"before", "after", "err only"} {
			synctest.Test(t, func(t *testing.T) {
				above, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, 1))
				defer cancel()
				want := context.Canceled
				limit := time.Hour
				switch end {
				case "deadline":
					limit, want = time.Second, context.DeadlineExceeded
				case "above's deadline":
					var free func()
					above, free = context.WithTimeout(above, time.Second)
					defer free()
					want = context.DeadlineExceeded
				}
				var c clock
				ctx := &admittedContext{values: context.WithValue(above, key{}, 2)}
				s := &ctx.served
				s.begin(&c, above, time.Now(), limit)
				defer s.end()
				if ctx.Value(key{}) != 2 || s.Value(key{}) != 1 {
					t.Errorf("values %v %v", ctx.Value(key{}), s.Value(key{}))
				}
				at, _ := ctx.Deadline()
				if left := time.Until(at); end == "deadline" && left != time.Second || end == "above" && left != time.Hour || end == "above's deadline" && left != time.Second {
					t.Errorf("%s: %v left", end, left)
				}
				var done <-chan struct{}
				derived, cancelDerived := context.Background(), context.CancelFunc(func() {})
				if ask == "before" {
					done = ctx.Done()
					derived, cancelDerived = context.WithCancel(ctx)
				}
				defer cancelDerived()
				if err := ctx.Err(); err != nil {
					t.Errorf("%s, %s: %v at the start", end, ask, err)
				}
				switch end {
				case "above":
					cancel()
				case "request":
					s.end()
				default:
					time.Sleep(time.Second)
					synctest.Wait()
				}
				if ask != "before" {
					if err := ctx.Err(); ask == "err only" && !errors.Is(err, want) {
						t.Errorf("%s, %s: %v at once", end, ask, err)
					}
					done = ctx.Done()
					derived, cancelDerived = context.WithCancel(ctx)
				}
				defer cancelDerived()
				synctest.Wait()
				select {
				case <-done:
				default:
					t.Errorf("%s, %s: not done", end, ask)
				}
				if err := ctx.Err(); !errors.Is(err, want) || !errors.Is(derived.Err(), want) {
					t.Errorf("%s, %s: %v and %v, want %v", end, ask, err, derived.Err(), want)
				}
			})
		}
	}
}

// TestHoldsEnd: every place comes back, however a handler ends, and who finds none is told so.
func TestHoldsEnd(t *testing.T) {
	leak.Check(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	h := newHouse(t, plain(nil), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/hijack":
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			rw.Flush()
			conn.Close()
		case "/wait":
			entered <- struct{}{}
			<-leave
		case "/gone":
			entered <- struct{}{}
			<-r.Context().Done()
		}
	}), func(o *inbound.Options) { o.Shedding = &inbound.Shedding{MaxConcurrent: 1, MaxQueue: -1} })
	for _, h2 := range []bool{false, true} {
		client := h.client(t, nil, h2)
		get := func(ctx context.Context, path string) (*http.Response, error) {
			resp, err := client.Do(must(http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.address+path, nil)))
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			return resp, err
		}
		// Without a queue each of these needs the one place; it may come back a moment after the answer.
		free := func(after string) {
			t.Helper()
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				if resp, err := get(t.Context(), "/"); err == nil && resp.StatusCode == 200 {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("after %s the place is not free", after)
				}
			}
		}
		free("nothing")
		if _, err := get(t.Context(), "/panic"); err == nil {
			t.Error("a panic gives an answer")
		}
		free("a panic")
		if !h2 {
			if _, err := get(t.Context(), "/hijack"); err != nil {
				t.Error(err)
			}
			free("a connection taken over")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _, _ = get(ctx, "/gone") }()
		<-entered
		cancel()
		<-done
		free("a caller that has gone")

		done = make(chan struct{})
		go func() { defer close(done); _, _ = get(t.Context(), "/wait") }()
		<-entered
		resp, err := get(t.Context(), "/")
		if err != nil || resp.StatusCode != 503 || resp.Header.Get("x-envoy-overloaded") != "true" || resp.Header.Get("Retry-After") != "" {
			t.Errorf("beyond the limit: %+v %v", resp, err)
		}
		if o := h.seen.last(); o.Reason != inbound.ReasonOverload {
			t.Errorf("outcome %+v", o)
		}
		leave <- struct{}{}
		<-done
		free("an ordinary request")
	}
}

// TestClaimsInContext: a handler finds the claims of the verified token, and only of that.
func TestClaimsInContext(t *testing.T) {
	leak.Check(t)
	iss := newIssuer(t, "https://issuer.example")
	a := must(identity.NewJWTAuthenticator(identity.JWTConfig{Providers: []identity.JWTProvider{iss.provider()}, Rules: []identity.JWTRule{
		{Requires: ptr(identity.RequireAny(identity.RequireProvider(iss.name), identity.AllowMissing()))},
	}}))
	h := newHouse(t, plain(&snapshot.FilterChain{Tokens: &snapshot.Tokens{Authenticator: a}}), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, ok := identity.ClaimsFromContext(r.Context())
		_, _ = fmt.Fprintf(w, "%v %v %v", ok, claims.Values()["sub"], claims.Values()["groups"])
	}), nil)
	for _, c := range []struct{ token, limit, want string }{
		{"", "", "false <nil> <nil>"},
		{iss.token(t, map[string]any{"groups": []string{"a", "b"}}), "", "true alice [a b]"},
		{iss.token(t, map[string]any{"sub": "bob"}), "60000", "true bob <nil>"},
	} {
		for _, h2 := range []bool{false, true} {
			r := must(http.NewRequest(http.MethodGet, "http://"+h.address+"/", nil))
			if c.token != "" {
				r.Header.Set("Authorization", "Bearer "+c.token)
			}
			if c.limit != "" {
				r.Header.Set(expectedTimeout, c.limit)
			}
			resp := must(h.client(t, nil, h2).Do(r))
			body := must(io.ReadAll(resp.Body))
			resp.Body.Close()
			if string(body) != c.want {
				t.Errorf("%v %q: %q, want %q", h2, c.limit, body, c.want)
			}
		}
	}
}

// TestHostSpelling: rules, r.Host and a mux see one host.
func TestHostSpelling(t *testing.T) {
	leak.Check(t)
	mux := http.NewServeMux()
	var got *http.Request
	note := func(w http.ResponseWriter, r *http.Request) { got = r }
	mux.HandleFunc("secret.example/", note)
	mux.HandleFunc("/", note)
	h := newHouse(t, plain(nil), mux, nil)
	secret := must(identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(":authority"), String: routing.Exact("secret.example", true)}))
	allowed := must(identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(":authority"), String: routing.Exact("open.example", true)}))
	for _, c := range []struct {
		options     identity.HostOptions
		action      identity.Action
		target      string
		host        string
		code        int
		seen, where string // r.Host and r.URL.Host
	}{
		{identity.HostOptions{Dot: true}, identity.Deny, "/", "secret.example.", 403, "", ""},
		{identity.HostOptions{Dot: true, Port: identity.StripAnyPort}, identity.Deny, "/", "SECRET.example.:81", 403, "", ""},
		{identity.HostOptions{Dot: true, Port: identity.StripAnyPort}, identity.Deny, "http://secret.example.:81/", "other.example", 403, "", ""},
		{identity.HostOptions{Dot: true, Port: identity.StripAnyPort}, identity.Deny, "/", "other.example.:81", 200, "other.example", ""},
		{identity.HostOptions{Dot: true, Port: identity.StripAnyPort}, identity.Deny, "http://other.example.:81/x?y", "secret.example", 200, "other.example", "other.example"},
		{identity.HostOptions{}, identity.Allow, "/", "open.example:81", 403, "", ""},
		{identity.HostOptions{Port: identity.StripAnyPort}, identity.Allow, "/", "open.example:81", 200, "open.example", ""},
		{identity.HostOptions{Port: identity.StripOwnPort}, identity.Allow, "/", "open.example:81", 403, "", ""},
		{identity.HostOptions{Port: identity.StripOwnPort}, identity.Allow, "/", "open.example:" + portOf(h.address), 200, "open.example", ""},
	} {
		condition := secret
		if c.action == identity.Allow {
			condition = allowed
		}
		h.install(plain(&snapshot.FilterChain{Hosts: c.options, Authorizer: authorizer(t, ruled(t, c.action, rule("r", &condition, nil)))}))
		got = nil
		code, _ := h.raw(t, nil, lines("GET "+c.target+" HTTP/1.1", "Host: "+c.host, "Connection: close"))
		if code != c.code || (got != nil) != (code == 200) {
			t.Errorf("%+v: %d", c, code)
			continue
		}
		if got != nil && (got.Host != c.seen || got.URL.Host != c.where || got.URL.RequestURI() != "/" && got.RequestURI != "/x?y") {
			t.Errorf("%+v: the handler sees %q %q %q", c, got.Host, got.URL.Host, got.RequestURI)
		}
	}
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// BenchmarkHandlerDeadline shows what a deadline and a place among the handlers cost beside neither.
func BenchmarkHandlerDeadline(b *testing.B) {
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, c := range []struct {
		name     string
		shedding *inbound.Shedding
		limit    string
	}{{"neither", nil, ""}, {"deadline", nil, "60000"}, {"shedding", &inbound.Shedding{MaxConcurrent: 100}, ""}, {"both", &inbound.Shedding{MaxConcurrent: 100}, "60000"}} {
		b.Run(c.name, func(b *testing.B) {
			e := inbound.New(inbound.Options{Subscribe: func(string) {}, Shedding: c.shedding})
			defer e.Close()
			e.Install(policies(map[string]*snapshot.Inbound{"127.0.0.1:9080": plain(nil)}))
			handler := Handler(e, slog.New(slog.DiscardHandler), next)
			r := atLocal(httptest.NewRequest(http.MethodGet, "/reviews/0", nil))
			// As net/http has it: a context that ends with the connection.
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			r = r.WithContext(ctx)
			if c.limit != "" {
				r.Header.Set(expectedTimeout, c.limit)
			}
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				handler.ServeHTTP(w, r)
			}
		})
	}
}
