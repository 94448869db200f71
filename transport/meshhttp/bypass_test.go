package meshhttp

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// Each class of requests that have stepped around rules of access in other
// systems is generated here and sent as bytes, as no client that cleans up would
// send it, through listener, handler and a real server. A class has a property
// that must hold whatever comes, and a naive guard with a hole of the
// class: if nothing that was generated gets through that, the class finds nothing.

// generated is how many requests each class sends at least.
const generated = 400

// draws is the same sequence in each run, so that a failure comes again.
func draws(class uint64) *rand.Rand { return rand.New(rand.NewPCG(class, 20)) }

// talker sends requests over one connection after the other.
type talker struct {
	t       *testing.T
	address string
	conn    net.Conn
	r       *bufio.Reader
}

// ask sends one HTTP/1.1 request and returns the answer's status; 0 for none.
func (k *talker) ask(method, target string, header ...string) int {
	k.t.Helper()
	if k.conn == nil {
		conn, err := net.Dial("tcp", k.address)
		if err != nil {
			k.t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		k.conn, k.r = conn, bufio.NewReader(conn)
	}
	if _, err := io.WriteString(k.conn, lines(method+" "+target+" HTTP/1.1", header...)); err != nil {
		k.close()
		return 0
	}
	resp, err := http.ReadResponse(k.r, &http.Request{Method: method})
	if err != nil {
		k.close()
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.Close || method == "CONNECT" {
		k.close()
	}
	return resp.StatusCode
}

func (k *talker) close() {
	if k.conn != nil {
		k.conn.Close()
		k.conn = nil
	}
}

// askHTTP2 sends one request in HTTP/2 frames on a connection of its own, with
// exactly these header fields in this order. 0 is no answer.
func askHTTP2(t *testing.T, address string, fields ...hpack.HeaderField) int {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		_ = encoder.WriteField(f)
	}
	f := http2.NewFramer(conn, conn)
	_, _ = io.WriteString(conn, http2.ClientPreface)
	_ = f.WriteSettings()
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return 0
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			code := 0
			_, _ = fmt.Sscan(frame.PseudoValue("status"), &code)
			return code
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0
		}
	}
}

// get2 are the header fields of a GET.
func get2(target, authority string, more ...hpack.HeaderField) []hpack.HeaderField {
	return append([]hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: authority}, {Name: ":path", Value: target}}, more...)
}

// guarded serves a handler behind our own guard and the same handler behind a naive one.
type guarded struct {
	ours, naive *house
}

func newGuarded(t *testing.T, in *snapshot.Inbound, handler http.Handler, naive func(http.Handler) http.Handler) *guarded {
	t.Helper()
	return &guarded{
		ours:  newHouse(t, in, handler, nil),
		naive: newHouse(t, permissive(nil), naive(handler), nil),
	}
}

// spell writes a path in one of its many spellings.
func spell(r *rand.Rand, p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		c := p[i]
		switch {
		case c == '/' && r.IntN(4) == 0:
			b.WriteString([]string{"//", "/./", "/x/../", "/%2e/", "/x/%2E%2e/", "%2f", "%2F", `\`, "%5c", "/;/", "///", "/x/..;/", "/%2e%2e/"}[r.IntN(13)])
		case c != '/' && r.IntN(6) == 0:
			fmt.Fprintf(&b, []string{"%%%02x", "%%%02X", "%%25%02x"}[r.IntN(3)], c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String() + []string{"", "", "", "", "?", "?a=/public", "#", "#/public", ";x", "/", "%20", "%00", "/.", "/..", "%23x", "%3fx"}[r.IntN(16)]
}

// TestBypassByPath: whatever the spelling, a handler that dispatches by the path
// that it is given is not reached where a DENY rule names that path, and an
// ALLOW rule lets only its own paths through.
func TestBypassByPath(t *testing.T) {
	leak.Check(t)
	admin := must(identity.AnyOf(identity.PathIs("/admin"), identity.PathBegins("/admin/")))
	public := must(identity.AnyOf(identity.PathIs("/public"), identity.PathBegins("/public/")))
	var reached atomic.Int64
	secret := func(http.ResponseWriter, *http.Request) { reached.Add(1) }
	mux := http.NewServeMux()
	mux.HandleFunc("/admin", secret)
	mux.HandleFunc("/admin/", secret)
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	is := func(p string) bool { return p == "/admin" || strings.HasPrefix(p, "/admin/") }
	by := func(reading func(*http.Request) string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if is(reading(r)) {
				secret(w, r)
			}
		})
	}
	uri := func(r *http.Request) string {
		p, _, _ := strings.Cut(r.RequestURI, "?")
		return p
	}
	for _, c := range []struct {
		name    string
		handler http.Handler
		options []string // the normalisations under which the property must hold
	}{
		{"http.ServeMux", mux, []string{"NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"}},
		{"URL.Path", by(func(r *http.Request) string { return r.URL.Path }), []string{"NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"}},
		{"URL.EscapedPath", by(func(r *http.Request) string { return r.URL.EscapedPath() }), []string{"NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"}},
		{"RequestURI", by(uri), []string{"NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"}},
		// A handler that cleans the path itself needs policy that cleans as much.
		{"path.Clean", by(func(r *http.Request) string { return path.Clean(r.URL.Path) }), []string{"DECODE_AND_MERGE_SLASHES"}},
	} {
		for _, option := range c.options {
			t.Run(c.name+" "+option, func(t *testing.T) {
				r := draws(1)
				options := must(identity.NamedPathOptions(option))
				deny := authorizer(t, ruled(t, identity.Deny, rule("admin", &admin, nil)))
				allow := authorizer(t, ruled(t, identity.Allow, rule("public", &public, nil)))
				g := newGuarded(t, nil, c.handler, func(next http.Handler) http.Handler {
					// The hole: the path as it is on the wire, and no second reading.
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						p, _, _ := strings.Cut(r.RequestURI, "?")
						if deny.Decide(&identity.AccessRequest{Request: routing.Request{Path: p}}).Reason != identity.RefusedByRule {
							next.ServeHTTP(w, r)
						}
					})
				})
				ours, naive := &talker{t: t, address: g.ours.address}, &talker{t: t, address: g.naive.address}
				defer ours.close()
				defer naive.close()
				bypassed := int64(0)
				for i := range generated {
					authorizer := deny
					if i%2 == 1 {
						authorizer = allow
					}
					if i < 2 || i == generated/2 {
						reached.Store(0)
					}
					g.ours.install(plain(&snapshot.FilterChain{Paths: options, Authorizer: authorizer}))
					target := spell(r, []string{"/admin", "/admin/users", "/public/../admin/x", "/public/admin/../../admin"}[r.IntN(4)])
					method := []string{"GET", "POST", "HEAD", "OPTIONS", "CONNECT"}[r.IntN(5)]
					switch r.IntN(8) {
					case 0:
						target = "http://reviews" + target
					case 1:
						target = "https://admin:80@reviews" + target
					}
					before := reached.Load()
					ours.ask(method, target, "Host: reviews", "Content-Length: 0")
					if reached.Load() != before {
						t.Errorf("HTTP/1.1 %s %s reached the handler", method, target)
					}
					if i%4 == 0 {
						before = reached.Load()
						askHTTP2(t, g.ours.address, get2(target, "reviews")...)
						if reached.Load() != before {
							t.Errorf("HTTP/2 %s reached the handler", target)
						}
					}
					before = reached.Load()
					naive.ask(method, target, "Host: reviews", "Content-Length: 0")
					bypassed += reached.Load() - before
				}
				// What is the same for the guard and the handler can not be bypassed.
				if bypassed == 0 && c.name != "RequestURI" {
					t.Error("nothing that was generated gets past a guard with a hole")
				}
			})
		}
	}
}

// TestBypassByPathAllowed: the spellings do reach what they may, so that the
// suite above does not hold because nothing gets through.
func TestBypassByPathAllowed(t *testing.T) {
	var reached atomic.Int64
	public := must(identity.AnyOf(identity.PathIs("/public"), identity.PathBegins("/public/")))
	h := newHouse(t, plain(&snapshot.FilterChain{
		Paths:      must(identity.NamedPathOptions("DECODE_AND_MERGE_SLASHES")),
		Authorizer: authorizer(t, ruled(t, identity.Allow, rule("public", &public, nil))),
	}), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		if p := path.Clean(r.URL.Path); p != "/public" && !strings.HasPrefix(p, "/public/") {
			t.Errorf("reached with %q", r.URL.Path)
		}
	}), nil)
	r := draws(2)
	k := &talker{t: t, address: h.address}
	defer k.close()
	for range generated {
		k.ask("GET", spell(r, "/public/books"), "Host: reviews")
	}
	if n := reached.Load(); n < generated/8 {
		t.Errorf("%d of %d reached the handler", n, generated)
	}
}

// TestBypassByHost: a rule on a host holds for every spelling of it, and for the
// host that the handler is given, wherever else in the request another stands.
func TestBypassByHost(t *testing.T) {
	leak.Check(t)
	bare := func(h string) string { // as http.ServeMux has it, which takes no port for one
		if name, _, err := net.SplitHostPort(h); err == nil {
			h = name
		}
		return strings.TrimSuffix(strings.ToLower(h), ".")
	}
	var secret, other atomic.Int64
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		for _, h := range append([]string{r.Host}, r.Header["Host"]...) {
			switch bare(h) {
			case "admin.internal":
				secret.Add(1)
			case "public.internal":
			default:
				other.Add(1)
			}
		}
	})
	condition := func(host string) identity.Condition {
		return must(identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(":authority"), String: routing.Exact(host, true)}))
	}
	deny := authorizer(t, ruled(t, identity.Deny, rule("admin", ptr(condition("admin.internal")), nil)))
	allow := authorizer(t, ruled(t, identity.Allow, rule("public", ptr(condition("public.internal")), nil)))
	g := newGuarded(t, nil, handler, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Host != "admin.internal" { // the hole: one spelling
				next.ServeHTTP(w, r)
			}
		})
	})
	ours, naive := &talker{t: t, address: g.ours.address}, &talker{t: t, address: g.naive.address}
	defer ours.close()
	defer naive.close()
	r := draws(3)
	host := func() string {
		b := []byte([]string{"admin.internal", "public.internal", "admin.internal", "public.internal.evil", "xpublic.internal", "evil.example", ""}[r.IntN(7)])
		for i, c := range b {
			if 'a' <= c && c <= 'z' && r.IntN(5) == 0 {
				b[i] = c - 32
			}
		}
		return string(b) + []string{"", "", ".", ":80", ".:80", ":", ":x", ".:", ":0080", ":65536", ".."}[r.IntN(11)]
	}
	bypassed, through := int64(0), 0
	for i := range generated {
		authorizer := deny
		if i%2 == 1 {
			authorizer = allow
		}
		g.ours.install(plain(&snapshot.FilterChain{Paths: identity.PathOptions{Normalize: true}, Authorizer: authorizer}))
		target, inHeader := "/", host()
		if r.IntN(3) == 0 {
			target = "http://" + host() + "/"
		}
		header := []string{"Host: " + inHeader}
		if r.IntN(8) == 0 {
			header = append(header, "Host: "+host())
		}
		check := func(what string, code int) {
			t.Helper()
			if code == 200 {
				through++
			}
			if n := secret.Swap(0); n > 0 {
				t.Errorf("%s %s %q reached the denied host", what, target, header)
			}
			if n := other.Swap(0); n > 0 && authorizer == allow {
				t.Errorf("%s %s %q reached a host that is not allowed", what, target, header)
			}
		}
		check("HTTP/1.1", ours.ask("GET", target, header...))
		if i%2 == 0 {
			check("HTTP/2", askHTTP2(t, g.ours.address, get2(target, inHeader, hpack.HeaderField{Name: "host", Value: host()})...))
			check("HTTP/2 without :authority", askHTTP2(t, g.ours.address,
				hpack.HeaderField{Name: ":method", Value: "GET"}, hpack.HeaderField{Name: ":scheme", Value: "http"}, hpack.HeaderField{Name: ":path", Value: "/"},
				hpack.HeaderField{Name: "host", Value: inHeader}))
		}
		naive.ask("GET", target, header...)
		bypassed += secret.Swap(0)
		other.Store(0)
	}
	if bypassed == 0 || through == 0 {
		t.Errorf("%d got past a guard with a hole, %d through ours", bypassed, through)
	}
}

// TestBypassByHeader: a rule on a header holds for each of its values, however
// they are sent.
func TestBypassByHeader(t *testing.T) {
	leak.Check(t)
	var denied, foreign atomic.Int64
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			if !strings.EqualFold(name, "x-role") {
				continue
			}
			for _, v := range values {
				if v == "admin" {
					denied.Add(1)
				} else if v != "user" {
					foreign.Add(1)
				}
			}
		}
	})
	condition := func(m routing.StringMatch) *identity.Condition {
		return ptr(must(identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName("X-Role"), String: m})))
	}
	deny := authorizer(t, ruled(t, identity.Deny, rule("admin", condition(routing.Exact("admin", false)), nil)))
	allow := authorizer(t, ruled(t, identity.Allow, rule("user", condition(routing.Exact("user", false)), nil)))
	g := newGuarded(t, nil, handler, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Join(r.Header["X-Role"], ",") != "admin" { // the hole: all values in one
				next.ServeHTTP(w, r)
			}
		})
	})
	ours, naive := &talker{t: t, address: g.ours.address}, &talker{t: t, address: g.naive.address}
	defer ours.close()
	defer naive.close()
	r := draws(4)
	bypassed, through := int64(0), 0
	for i := range generated {
		authorizer := deny
		if i%2 == 1 {
			authorizer = allow
		}
		g.ours.install(plain(&snapshot.FilterChain{Authorizer: authorizer}))
		header := []string{"Host: reviews"}
		fields := get2("/", "reviews")
		for range 1 + r.IntN(3) {
			name := []string{"x-role", "X-Role", "X-ROLE", "x-rOLE", "X-Role ", " x-role", "x_role"}[min(r.IntN(12), 6)]
			value := []string{"admin", "user", "user", "", "ADMIN", "admin,user", "user,admin"}[r.IntN(7)]
			header = append(header, name+":"+[]string{"", " ", "\t", "  "}[r.IntN(4)]+value+[]string{"", " ", "\t "}[r.IntN(3)])
			fields = append(fields, hpack.HeaderField{Name: strings.ToLower(name), Value: value})
		}
		if r.IntN(4) == 0 {
			header = append(header, "Connection: X-Role") // nobody between us takes it for a hop's own
		}
		check := func(what string, code int) {
			t.Helper()
			if code == 200 {
				through++
			}
			if denied.Swap(0) > 0 {
				t.Errorf("%s %q reached the handler", what, header)
			}
			if foreign.Swap(0) > 0 && authorizer == allow {
				t.Errorf("%s %q reached the handler", what, header)
			}
		}
		check("HTTP/1.1", ours.ask("GET", "/", header...))
		if i%2 == 0 {
			check("HTTP/2", askHTTP2(t, g.ours.address, fields...))
		}
		naive.ask("GET", "/", header...)
		bypassed += denied.Swap(0)
		foreign.Store(0)
	}
	if bypassed == 0 || through == 0 {
		t.Errorf("%d got past a guard with a hole, %d through ours", bypassed, through)
	}
}
