package envoy_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/transport/outbound"
)

// seen is what an endpoint saw of a request.
type seen struct {
	Port   int
	Method string
	Target string
	Host   string
	Header map[string][]string
	Body   string
	Mirror string // of whose endpoint it is; "" for none
}

// observation is what came of a request.
type observation struct {
	Status   int
	Location string
	Header   map[string][]string // of the response
	Seen     *seen               // nil where no endpoint answered
	Body     string              // of the response, where policy gave it
	Attempts int                 // that endpoints counted
	Ports    []int               // of the endpoints, attempt by attempt
	Sticks   string              // what came of the same request with the cookie that was issued; "" where none was
	Copies   []seen              // that mirrors got
	Err      string
}

// upstream answers as the request's x-script asks, on several ports.
type upstream struct {
	mirrors sync.Map // of a mirror's name, by port

	mu    sync.Mutex
	known map[string]*known // by request
}

// known is what endpoints know of a request.
type known struct {
	ports  []int
	copies []seen
}

func newUpstream() *upstream { return &upstream{known: make(map[string]*known)} }

// listen opens a port until the test ends. What comes there is a copy where mirror is not "".
func (u *upstream) listen(t *testing.T, mirror string) int {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := lis.Addr().(*net.TCPAddr).Port
	if mirror != "" {
		u.mirrors.Store(port, mirror)
	}
	server := &http.Server{Handler: u}
	go func() { _ = server.Serve(lis) }()
	t.Cleanup(func() { _ = server.Close() })
	return port
}

// of returns what is known of a request, for change with the lock held.
func (u *upstream) of(id string) *known {
	k := u.known[id]
	if k == nil {
		k = new(known)
		u.known[id] = k
	}
	return k
}

// attempt notes an attempt, and returns its number.
func (u *upstream) attempt(id string, port int) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	k := u.of(id)
	k.ports = append(k.ports, port)
	return len(k.ports)
}

func (u *upstream) ports(id string) []int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.of(id).ports)
}

// copied notes a copy.
func (u *upstream) copied(id string, s seen) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k := u.of(id)
	k.copies = append(k.copies, s)
}

// copies returns the copies of a request, in an order that does not depend on when they came.
func (u *upstream) copies(id string) []seen {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := slices.Clone(u.of(id).copies)
	slices.SortFunc(out, func(a, b seen) int { return strings.Compare(asJSON(a), asJSON(b)) })
	return out
}

func asJSON(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	port := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr).Port
	s := seen{Port: port, Method: r.Method, Target: r.RequestURI, Host: r.Host, Header: relevant(r.Header), Body: string(body)}
	if len(s.Body) > 100 {
		s.Body = fmt.Sprintf("%d bytes, %x", len(s.Body), sha256.Sum256(body))
	}
	id := r.Header.Get("X-Test-Id")
	if mirror, ok := u.mirrors.Load(port); ok {
		s.Mirror = mirror.(string)
		u.copied(id, s)
		return
	}
	n := u.attempt(id, port)
	status := http.StatusOK
	if script := r.Header.Get("X-Script"); script != "" {
		steps := strings.Split(script, ",")
		switch step := steps[min(n, len(steps))-1]; step {
		case "slow": // longer than any time limit, unless the caller goes first
			select {
			case <-r.Context().Done():
			case <-time.After(6 * shortTime):
			}
		case "reset":
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.(*net.TCPConn).SetLinger(0)
				_ = conn.Close()
			}
			return
		case "retry-me":
			w.Header().Set("X-Retry-Me", "1")
		default:
			_, _ = fmt.Sscan(step, &status)
		}
	}
	b, _ := json.Marshal(s)
	w.Header().Set("X-Seen", base64.StdEncoding.EncodeToString(b))
	w.Header().Set("X-Up-1", "one")
	w.Header().Set("X-Up-2", "two")
	w.Header()["X-Many"] = []string{"1", "2"}
	w.WriteHeader(status)
}

// skipped are headers that say nothing of a route: transport, and what each
// side adds about itself.
var skipped = map[string]bool{
	"user-agent": true, "accept-encoding": true, "content-length": true, "transfer-encoding": true, "connection": true, "date": true,
	"server": true, "traceparent": true, "tracestate": true, "x-request-id": true, "x-forwarded-proto": true, "x-seen": true,
	"x-envoy-expected-rq-timeout-ms": true, "x-envoy-upstream-service-time": true, "x-envoy-internal": true, "x-test-id": true,
	"location": true, "x-forwarded-for": true,
}

func relevant(h http.Header) map[string][]string {
	out := make(map[string][]string)
	for name, values := range h {
		if name = strings.ToLower(name); !skipped[name] {
			out[name] = append(out[name], values...)
		}
	}
	return out
}

// outgoing is the request for a client that sends to host.
func (r *request) outgoing(host string) (*http.Request, error) {
	path, query, hasQuery := strings.Cut(r.target, "?")
	u := &url.URL{Scheme: "http", Host: host, RawPath: path, RawQuery: query, ForceQuery: hasQuery && query == ""}
	var err error
	if u.Path, err = url.PathUnescape(path); err != nil {
		return nil, err
	}
	var body io.Reader
	if r.body != "" {
		body = strings.NewReader(r.body)
	}
	out, err := http.NewRequestWithContext(context.Background(), r.method, "http://"+host, body)
	if err != nil {
		return nil, err
	}
	out.URL, out.Host = u, r.authority
	for name, values := range r.header {
		out.Header[http.CanonicalHeaderKey(name)] = slices.Clone(values)
	}
	out.Header.Set("X-Test-Id", r.id)
	out.Header.Set("User-Agent", "test")
	// A request of the mesh's own: Envoy takes X-Envoy- headers from no other.
	out.Header.Set("X-Forwarded-For", "10.0.0.1")
	return out, nil
}

// observe sends the request and says what came of it.
func observe(rt http.RoundTripper, u *upstream, r *request, host string) observation {
	out, err := r.outgoing(host)
	if err != nil {
		return observation{Err: err.Error()}
	}
	var o observation
	resp, err := rt.RoundTrip(out)
	if err != nil {
		o.Status, o.Err = statusOf(err), err.Error()
	} else {
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		o.Status, o.Location, o.Header = resp.StatusCode, resp.Header.Get("Location"), relevant(resp.Header)
		if b, err := base64.StdEncoding.DecodeString(resp.Header.Get("X-Seen")); err == nil && len(b) > 0 {
			o.Seen = new(seen)
			_ = json.Unmarshal(b, o.Seen)
		} else {
			o.Body = string(body)
		}
	}
	o.Ports = u.ports(r.id)
	o.Attempts = len(o.Ports)
	if cookie := o.issued(); cookie != "" && !r.again {
		o.sticks(observe(rt, u, r.with(cookie), host))
	}
	return o
}

// issued returns the cookie that a hash policy has issued, as a request has it,
// and takes its value, which is as good as any other, from the header.
func (o *observation) issued() (cookie string) {
	cookies := o.Header["set-cookie"]
	for i, c := range cookies {
		name, rest, _ := strings.Cut(c, "=")
		if name != issued {
			continue
		}
		value, attributes, _ := strings.Cut(rest, ";")
		cookies[i] = name + "=...;" + attributes
		cookie = name + "=" + strings.Trim(value, `"`) // the last is that of the last attempt
	}
	return cookie
}

// with is the request with one cookie more, under an id of its own.
func (r *request) with(cookie string) *request {
	c := *r
	c.id, c.again, c.header = r.id+"-again", true, maps.Clone(r.header)
	if own := r.header["cookie"]; len(own) > 0 {
		cookie = own[0] + "; " + cookie
	}
	c.header["cookie"] = []string{cookie}
	return &c
}

// sticks says whether the endpoint was the same with the cookie.
func (o *observation) sticks(again observation) {
	switch {
	case len(o.Ports) == 0 || len(again.Ports) == 0:
		o.Sticks = "no endpoint"
	case len(o.Ports) > 1:
		o.Sticks = "tried again" // maybe elsewhere
	case o.Ports[0] == again.Ports[0]:
		o.Sticks = "same endpoint"
	default:
		o.Sticks = "another endpoint"
	}
	if again.issued() != "" {
		o.Sticks += ", issued again"
	}
}

// asGRPC is what a caller of gRPC learns where no endpoint answered: Envoy puts
// the code beside the status 200, and gRPC clients make one from any other
// status (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
func (o *observation) asGRPC() {
	if o.Seen != nil {
		return
	}
	code := "2"
	if v := o.Header["grpc-status"]; o.Status == http.StatusOK && len(v) > 0 {
		code = v[0]
	} else {
		switch o.Status {
		case 400:
			code = "13"
		case 401:
			code = "16"
		case 403:
			code = "7"
		case 404:
			code = "12"
		case 429, 502, 503, 504:
			code = "14"
		}
	}
	o.Status, o.Header, o.Body = 0, map[string][]string{"grpc-status": {code}}, ""
}

// isGRPC reports whether the request is one of gRPC.
func (r *request) isGRPC() bool {
	v := r.header["content-type"]
	return len(v) > 0 && (v[0] == "application/grpc" || strings.HasPrefix(v[0], "application/grpc+"))
}

// statusOf is the status that Envoy answers with where the mesh has an error
// for its caller, who is in the same process.
func statusOf(err error) int {
	var noRoute *outbound.NoRouteError
	var timeout *outbound.TimeoutError
	switch {
	case errors.As(err, &noRoute):
		return http.StatusNotFound
	case errors.As(err, &timeout):
		return http.StatusGatewayTimeout
	default:
		return http.StatusServiceUnavailable
	}
}
