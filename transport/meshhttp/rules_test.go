package meshhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// before puts a route for a path prefix before the world's own.
func before(prefix string, r snapshot.Route) func(*world) {
	return func(w *world) {
		vh := w.snap.Hosts["svc:80"].VirtualHost
		r.Match = routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix, Value: prefix}}
		if r.Redirect == nil && r.Direct == nil {
			r.Clusters = w.route.Clusters
		}
		vh.Routes = []snapshot.Route{r, *w.route}
	}
}

func headerChange(t *testing.T, name, value string, action routing.HeaderAction) routing.HeaderChange {
	t.Helper()
	c, err := routing.NewHeaderChange(name, value, action, false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// describe answers with what came: method, host, target, chosen headers and body.
func describe(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s %q %s", r.Method, r.Host, r.RequestURI, r.Header.Values("X-Rule"), body)
}

// TestPolicyAnswers: a redirect is followed through the mesh as any server's,
// and direct responses and faults are responses, not errors.
func TestPolicyAnswers(t *testing.T) {
	abort := &resilience.Fault{Abort: &resilience.FaultAbort{Status: 418, GRPC: -1, Fraction: routing.Fraction{PerMillion: 1_000_000}}}
	for _, c := range []struct {
		name, method string
		body         func() io.Reader
		route        snapshot.Route
		status       int
		want         string
	}{
		{"301 makes a GET", "POST", func() io.Reader { return strings.NewReader("x") }, snapshot.Route{Redirect: &routing.Redirect{Path: "/new", Status: 301}}, 200, `GET svc /new [] `},
		{"303", "POST", func() io.Reader { return strings.NewReader("x") }, snapshot.Route{Redirect: &routing.Redirect{Path: "/new", Status: 303}}, 200, `GET svc /new [] `},
		{"307 keeps method and body", "POST", func() io.Reader { return strings.NewReader("payload") }, snapshot.Route{Redirect: &routing.Redirect{Path: "/new", Status: 307}}, 200, `POST svc /new [] payload`},
		{"308 keeps method and body", "PUT", func() io.Reader { return strings.NewReader("payload") }, snapshot.Route{Redirect: &routing.Redirect{Path: "/new", Status: 308}}, 200, `PUT svc /new [] payload`},
		{"308 with a body that can not be had again", "PUT", func() io.Reader { return once("payload") }, snapshot.Route{Redirect: &routing.Redirect{Path: "/new", Status: 308}}, 308, ""},
		{"to another host", "GET", nil, snapshot.Route{Redirect: &routing.Redirect{Host: "svc:80", Path: "/new", Status: 302}}, 200, `GET svc:80 /new [] `},
		{"direct response", "GET", nil, snapshot.Route{Direct: &routing.DirectResponse{Status: 503, Body: "closed"}}, 503, "closed"},
		{"direct response to HEAD", "HEAD", nil, snapshot.Route{Direct: &routing.DirectResponse{Status: 200, Body: "body"}}, 200, ""},
		{"fault", "GET", nil, snapshot.Route{Fault: abort}, 418, "fault filter abort"},
		{"fault with a body", "POST", func() io.Reader { return once("payload") }, snapshot.Route{Fault: abort}, 418, "fault filter abort"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, ClientOptions{}, before("/old", c.route), describe)
			var body io.Reader
			if c.body != nil {
				body = c.body()
			}
			code, answer, err := get(t, w.client, request(t, c.method, "http://svc/old", body))
			if err != nil || code != c.status || answer != c.want {
				t.Errorf("%d %q %v, want %d %q", code, answer, err, c.status, c.want)
			}
		})
	}
}

// TestFaultDelay: a request is held for the delay before its time limit begins,
// and the caller need not wait for its end.
func TestFaultDelay(t *testing.T) {
	always := routing.Fraction{PerMillion: 1_000_000}
	synctest.Test(t, func(t *testing.T) {
		e := outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: func(c *snapshot.Cluster) outbound.Wire {
			return &wire{config: c, plain: &stub{resp: http.Response{StatusCode: 200, Header: http.Header{}}}}
		}})
		defer e.Close()
		snap := routed(time.Second, "192.0.2.1:80")
		for i := range snap.Hosts["reviews:9080"].VirtualHost.Routes {
			snap.Hosts["reviews:9080"].VirtualHost.Routes[i].Fault = &resilience.Fault{Delay: &resilience.FaultDelay{Fixed: 5 * time.Second, Fraction: always}}
		}
		e.Install(snap)
		rt := NewRoundTripper(e, ClientOptions{})
		defer rt.Close()
		client := &http.Client{Transport: rt}
		began := time.Now()
		if code, _, err := get(t, client, request(t, "GET", "http://reviews:9080/", nil)); err != nil || code != 200 || time.Since(began) != 5*time.Second {
			t.Errorf("%d %v after %s", code, err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		body := &closeCounter{Reader: strings.NewReader("x")}
		_, _, err := get(t, client, request(t, "POST", "http://reviews:9080/", body).WithContext(ctx))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second || body.closed.Load() == 0 {
			t.Errorf("%v after %s, body closed %d times", err, time.Since(began), body.closed.Load())
		}
	})
}

// TestWhatIsSent: path, query, authority and headers are those that policy makes
// of the request, on both versions of HTTP, and the caller's request stays as it is.
func TestWhatIsSent(t *testing.T) {
	rule := []routing.HeaderChanges{{Set: []routing.HeaderChange{headerChange(t, "x-rule", "added", routing.AppendOrAdd)}}}
	for _, c := range []struct {
		name, target string
		route        snapshot.Route
		want         string
	}{
		{"prefix", "/old/a%2Fb?q=%20", snapshot.Route{Rewrite: routing.Rewrite{HasPrefix: true, Prefix: "/new"}}, `GET svc /new/a%2Fb?q=%20 [] `},
		{"prefix to an escaped one", "/old/x", snapshot.Route{Rewrite: routing.Rewrite{HasPrefix: true, Prefix: "/n%2Fw"}}, `GET svc /n%2Fw/x [] `},
		{"host", "/old", snapshot.Route{Rewrite: routing.Rewrite{Host: "other:81"}}, `GET other:81 /old [] `},
		{"header", "/old", snapshot.Route{RequestHeaders: rule}, `GET svc /old ["added"] `},
		{"nothing", "/old//x;y?&", snapshot.Route{}, `GET svc /old//x;y?& [] `},
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %t", c.name, h2), func(t *testing.T) {
				w := newWorld(t, ClientOptions{}, func(w *world) {
					before("/old", c.route)(w)
					w.cluster.HTTP2 = h2
				}, describe)
				req := request(t, "GET", "http://svc"+c.target, nil)
				resp, err := w.client.Transport.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if resp.Body.Close(); err != nil || string(body) != c.want {
					t.Errorf("%q %v, want %q", body, err, c.want)
				}
				if u := "http://svc" + c.target; req.URL.String() != u || len(req.Header) != 0 || resp.Request != req {
					t.Errorf("the caller's request is now %s %v", req.URL, req.Header)
				}
			})
		}
	}
}

func TestResponseHeaders(t *testing.T) {
	w := newWorld(t, ClientOptions{}, func(w *world) {
		w.route.ResponseHeaders = []routing.HeaderChanges{{
			Remove: []routing.HeaderName{routing.NewHeaderName("x-inner")},
			Set:    []routing.HeaderChange{headerChange(t, "x-rule", "added", routing.AppendOrAdd)},
		}}
		w.route.Retry = retryOn(t, "5xx", 1)
		w.route.AttemptCountResponse = true
	}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Inner", "secret")
		w.WriteHeader(503)
	})
	resp, err := w.client.Do(request(t, "GET", "http://svc/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if h := resp.Header; h.Get("X-Inner") != "" || len(h.Values("X-Rule")) != 1 || h.Get("X-Envoy-Attempt-Count") != "2" {
		t.Errorf("header %v", h)
	}
}

// TestIdleLimits: what ends a request on which nothing moves, at each stage.
func TestIdleLimits(t *testing.T) {
	const limit = 60 * time.Millisecond
	route := func(w *world) { w.route.IdleTimeout = limit }
	perTry := func(w *world) {
		w.route.Retry = retryOn(t, "reset", 0)
		w.route.Retry.PerTryIdleTimeout = limit
	}
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	half := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		change  func(*world)
		limit   string
		body    string
	}{
		{"route, before the headers", hang, route, "idle_timeout", ""},
		{"route, in the body", half, route, "idle_timeout", "half"},
		{"attempt, before the headers", hang, perTry, "per_try_idle_timeout", ""},
		{"attempt, in the body", half, perTry, "per_try_idle_timeout", "half"},
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %t", c.name, h2), func(t *testing.T) {
				inBubble(t, ClientOptions{}, func(w *world) {
					c.change(w)
					w.cluster.HTTP2 = h2
				}, []http.HandlerFunc{c.handler}, func(t *testing.T, w *world) {
					_, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
					var timeout *outbound.TimeoutError
					if !errors.As(err, &timeout) || timeout.Limit != c.limit || timeout.After != limit || body != c.body {
						t.Errorf("%q, error %v, want %s", body, err, c.limit)
					}
					var u *url.Error
					if errors.As(err, &u) && !u.Timeout() {
						t.Errorf("%v does not say that it is a timeout", err)
					}
				})
			})
		}
	}
	t.Run("what moves goes on", func(t *testing.T) {
		inBubble(t, ClientOptions{}, func(w *world) {
			w.route.IdleTimeout = time.Second
			w.route.Retry = retryOn(t, "reset", 0)
			w.route.Retry.PerTryIdleTimeout = time.Second
			w.cluster.HTTP2 = true
		}, []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }}, func(t *testing.T, w *world) {
			read, write := io.Pipe()
			go func() {
				for range 30 {
					time.Sleep(900 * time.Millisecond)
					_, _ = io.WriteString(write, ".")
				}
				write.Close()
			}()
			if _, body, err := get(t, w.client, request(t, "POST", "http://svc/", read)); err != nil || len(body) != 30 {
				t.Errorf("%d bytes, %v", len(body), err)
			}
		})
	})
}
