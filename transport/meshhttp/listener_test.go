package meshhttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// TestListenerMatrix: what each kind of client gets under each mode, over HTTP/1.1 and HTTP/2.
func TestListenerMatrix(t *testing.T) {
	const web = "spiffe://cluster.local/ns/default/sa/web"
	modes := map[string]*snapshot.Inbound{"STRICT": strict(nil), "PERMISSIVE": permissive(nil), "DISABLE": plain(nil)}
	for mode, in := range modes {
		t.Run(mode, func(t *testing.T) {
			leak.Check(t)
			h := newHouse(t, in, http.HandlerFunc(who), nil)
			stranger := newTrustDomainCA(t, "cluster.local")
			elsewhere := newTrustDomainCA(t, "evil.example")
			for _, c := range []struct {
				name      string
				config    *tls.Config
				handshake string // the rule that refuses the handshake; "" if it succeeds
				id        string
			}{
				{"plaintext", nil, "", ""},
				{"mutual TLS", h.as(t, h.ca.issue(t, "web", time.Hour)), "", web},
				{"TLS without a certificate", h.as(t, nil), "certificate-present", ""},
				{"signed by another root", h.as(t, stranger.issue(t, "web", time.Hour)), "chain", ""},
				{"of another trust domain", h.as(t, elsewhere.issue(t, "web", time.Hour)), "trust-domain", ""},
				{"expired", presenting(h.as(t, h.ca.issue(t, "web", time.Hour)), h.ca.issue(t, "web", -time.Minute)), "expired", ""},
			} {
				for _, h2 := range []bool{false, true} {
					proto := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2]
					t.Run(c.name+" "+proto, func(t *testing.T) {
						h.seen.mu.Lock()
						h.seen.handshakes = nil
						h.seen.mu.Unlock()
						target := "http://" + h.address + "/"
						if c.config != nil {
							target = "https://" + h.address + "/"
						}
						code, body, err := get(t, h.client(t, c.config, h2), request(t, "GET", target, nil))
						switch {
						case c.config != nil && mode == "DISABLE":
							// The application's server is given the TLS bytes, which it does not understand.
							if err == nil && code == 200 {
								t.Errorf("served %q", body)
							}
						case c.handshake != "":
							if err == nil {
								t.Fatalf("%d %q, want that the handshake fails", code, body)
							}
							if got := h.seen.failed(t); got != c.handshake {
								t.Errorf("handshake failed by %q, want %q", got, c.handshake)
							}
						case c.config == nil && mode == "STRICT":
							if err != nil || code != 403 || !strings.Contains(body, "plaintext_refused") {
								t.Errorf("%d %q %v, want 403", code, body, err)
							}
						default:
							if err != nil || code != 200 || body != proto+" "+c.id {
								t.Errorf("%d %q %v, want 200 %q", code, body, err, c.id)
							}
						}
					})
				}
			}
			if err := h.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFragments: however the first bytes are cut into packets, a connection is
// what it is.
func TestFragments(t *testing.T) {
	leak.Check(t)
	h := newHouse(t, permissive(nil), http.HandlerFunc(who), nil)
	for name, c := range map[string]struct {
		config *tls.Config
		h2     bool
		want   string
	}{
		"HTTP/1.1": {nil, false, "HTTP/1.1 "},
		"h2c":      {nil, true, "HTTP/2.0 "},
		"TLS 1.3":  {h.as(t, h.ca.issue(t, "web", time.Hour)), true, "HTTP/2.0 spiffe://cluster.local/ns/default/sa/web"},
	} {
		t.Run(name, func(t *testing.T) {
			client := h.client(t, c.config, c.h2)
			transport := client.Transport.(*http.Transport)
			transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				return &byteWise{Conn: conn, left: 64}, err
			}
			scheme := "http://"
			if c.config != nil {
				scheme = "https://"
			}
			if code, body, err := get(t, client, request(t, "GET", scheme+h.address+"/", nil)); err != nil || code != 200 || body != c.want {
				t.Errorf("%d %q %v", code, body, err)
			}
		})
	}
}

// byteWise sends its first bytes each in a packet of its own.
type byteWise struct {
	net.Conn
	left int
}

func (c *byteWise) Write(b []byte) (int, error) {
	sent := 0
	for ; sent < len(b) && c.left > 0; c.left-- {
		n, err := c.Conn.Write(b[sent : sent+1])
		if sent += n; err != nil {
			return sent, err
		}
	}
	n, err := c.Conn.Write(b[sent:])
	return sent + n, err
}

// TestLocalAddrIsTheConnections: each connection has an address of its own to be found by.
func TestLocalAddrIsTheConnections(t *testing.T) {
	leak.Check(t)
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	defer e.Close()
	raw := must(net.Listen("tcp", "127.0.0.1:0"))
	lis := NewListener(e, raw, nil)
	e.Install(policies(map[string]*snapshot.Inbound{raw.Addr().String(): plain(nil)}))
	var addresses []*net.TCPAddr
	for range 2 {
		out := must(net.Dial("tcp", raw.Addr().String()))
		defer out.Close()
		in := must(lis.Accept())
		defer in.Close()
		at, ok := in.LocalAddr().(*net.TCPAddr)
		if !ok || in.LocalAddr() != net.Addr(at) || at.String() != raw.Addr().String() {
			t.Fatalf("local address %v", in.LocalAddr())
		}
		if remote, ok := in.RemoteAddr().(*net.TCPAddr); !ok || remote.String() != out.LocalAddr().String() {
			t.Errorf("remote address %v", in.RemoteAddr())
		}
		c := e.Conn(at)
		if c == nil || c.TLS || c.Local.String() != at.String() || c.Remote.String() != out.LocalAddr().String() {
			t.Errorf("connection %+v", c)
		}
		if e.Conn(&net.TCPAddr{IP: at.IP, Port: at.Port}) != nil {
			t.Error("an equal address of another connection finds it")
		}
		addresses = append(addresses, at)
	}
	if addresses[0] == addresses[1] {
		t.Error("two connections have one address")
	}
	in := e.Conn(addresses[0])
	in.CloseAfter(0)
	lis.Close()
	if _, err := lis.Accept(); err != net.ErrClosed {
		t.Errorf("Accept after Close: %v", err)
	}
}

// TestClosedConnectionIsNobodys: a request whose connection is gone is not taken
// for one on somebody else's listener, where every peer is plaintext.
func TestClosedConnectionIsNobodys(t *testing.T) {
	leak.Check(t)
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	defer e.Close()
	raw := must(net.Listen("tcp", "127.0.0.1:0"))
	lis := NewListener(e, raw, nil)
	e.Install(policies(map[string]*snapshot.Inbound{raw.Addr().String(): plain(nil)}))
	out := must(net.Dial("tcp", raw.Addr().String()))
	defer out.Close()
	in := must(lis.Accept())
	local := in.LocalAddr()
	admit := func() error {
		r := inbound.Request{Local: local, Conn: e.Conn(local)}
		r.Access.Path = "/"
		return e.Admit(t.Context(), &r, new(inbound.Admission))
	}
	if err := admit(); err != nil {
		t.Errorf("open: %v", err)
	}
	in.Close()
	if err := admit(); err == nil || !strings.Contains(err.Error(), "(peer)") {
		t.Errorf("closed: %v, want a refusal", err)
	}
	// Somebody else's listener at another address is as it was.
	lis.Close()
	if err := admit(); err != nil {
		t.Errorf("after the listener: %v", err)
	}
}

// memoryListener is a listener in memory whose connections are a loopback address's.
func memoryListener(t *testing.T, in *snapshot.Inbound, most int) (*pipeListener, net.Listener, *observed, *inbound.Engine) {
	seen := &observed{}
	e := inbound.New(inbound.Options{Subscribe: func(string) {}, Observer: seen})
	inner := newPipeListener()
	lis := NewListener(e, inner, slog.New(slog.DiscardHandler))
	lis.(*listener).most = most
	if in != nil {
		e.Install(policies(map[string]*snapshot.Inbound{"127.0.0.1:1": in}))
	}
	return inner, lis, seen, e
}

// TestSlowClients: a client that says nothing, or begins a handshake and stops,
// is cut off, and stands in nobody's way meanwhile.
func TestSlowClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &house{ca: newTrustDomainCA(t, "cluster.local")}
		seen := &observed{}
		e := inbound.New(inbound.Options{Subscribe: func(string) {}, Observer: seen, Source: staticSource(t, h.ca, time.Hour)})
		defer e.Close()
		inner := newPipeListener()
		lis := NewListener(e, inner, slog.New(slog.DiscardHandler))
		e.Install(policies(map[string]*snapshot.Inbound{"127.0.0.1:1": permissive(nil)}))
		began := time.Now()
		var running sync.WaitGroup
		for name, first := range map[string]string{"silent": "", "one byte of TLS": "\x16", "a record's beginning": "\x16\x03\x01\x40\x00\x01"} {
			conn := inner.dial()
			running.Go(func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, first)
				_, _ = io.Copy(io.Discard, conn)
				if took := time.Since(began); took != 10*time.Second {
					t.Errorf("%s: cut off after %s, want 10 s", name, took)
				}
			})
		}
		// In pace: one byte each second. The limit is on the whole handshake.
		conn := inner.dial()
		running.Go(func() {
			defer conn.Close()
			for range 20 {
				if _, err := conn.Write([]byte{0x16}); err != nil {
					break
				}
				time.Sleep(time.Second)
			}
			if took := time.Since(began); took > 12*time.Second {
				t.Errorf("a slow handshake lasted %s", took)
			}
		})
		synctest.Wait()
		ours := inner.dial()
		go func() { _, _ = io.WriteString(ours, "GET / HTTP/1.1\r\n") }()
		in, err := lis.Accept()
		if err != nil || time.Since(began) != 0 {
			t.Fatalf("a request behind them: %v after %s", err, time.Since(began))
		}
		first := make([]byte, 16)
		if _, err := io.ReadFull(in, first); err != nil || string(first) != "GET / HTTP/1.1\r\n" {
			t.Errorf("read %q %v", first, err)
		}
		in.Close()
		ours.Close()
		running.Wait()
		lis.Close()
		for _, rule := range seen.handshakes {
			if rule != inbound.HandshakeTimeout && rule != inbound.HandshakeProtocol {
				t.Errorf("handshake failed by %q", rule)
			}
		}
		if len(seen.handshakes) != 4 {
			t.Errorf("failed handshakes %q, want 4", seen.handshakes)
		}
	})
}

// TestCrowd: when too many are on their way the oldest goes.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, lis, seen, e := memoryListener(t, nil, 3)
		defer e.Close()
		var conns []net.Conn
		for range 5 {
			conns = append(conns, inner.dial())
			synctest.Wait()
		}
		for i, c := range conns {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			_, err := c.Read(make([]byte, 1))
			if closed := err == io.EOF; closed != (i < 2) {
				t.Errorf("connection %d: %v", i, err)
			}
		}
		if got := strings.Join(seen.handshakes, " "); got != "crowded crowded" {
			t.Errorf("reported %q", got)
		}
		// One that is ready but not accepted counts too, and does not come out afterwards.
		go func() { _, _ = conns[2].Write([]byte("G")) }()
		synctest.Wait()
		conns = append(conns, inner.dial())
		synctest.Wait()
		go func() { _, _ = conns[3].Write([]byte("H")) }()
		in, err := lis.Accept()
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(in, first); err != nil || first[0] != 'H' {
			t.Errorf("accepted %q %v, want the one that was not closed", first, err)
		}
		in.Close()
		lis.Close()
		for i, c := range conns[2:] {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after Close connection %d is open: %v", i+2, err)
			}
			c.Close()
		}
	})
}

// TestHandshakeSize: what a client can make the server read before its handshake is bounded.
func TestHandshakeSize(t *testing.T) {
	ours, theirs := net.Pipe()
	c := &conn{Conn: theirs, budget: 10}
	go func() {
		_, _ = ours.Write(bytes.Repeat([]byte("x"), 100))
		ours.Close()
	}()
	got, err := io.ReadAll(c)
	if err != errHandshakeSize || len(got) != 10 {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if n, err := c.Read(make([]byte, 5)); n > 1 || err != errHandshakeSize && err != io.EOF && n == 0 {
		t.Errorf("then %d %v", n, err)
	}
	theirs.Close()
}

// TestHandshakeWaitsForPolicy: TLS waits for the listener's policy, and fails
// without one; plaintext is answered.
func TestHandshakeWaitsForPolicy(t *testing.T) {
	leak.Check(t)
	h := newHouse(t, nil, http.HandlerFunc(who), func(o *inbound.Options) { o.PolicyWait = 100 * time.Millisecond })
	config := h.as(t, h.ca.issue(t, "web", time.Hour))
	if code, body, err := get(t, h.client(t, config, false), request(t, "GET", "https://"+h.address+"/", nil)); err == nil {
		t.Errorf("without policy: %d %q", code, body)
	}
	if got := h.seen.failed(t); got != inbound.HandshakeNotReady {
		t.Errorf("failed by %q", got)
	}
	if code, body, err := get(t, h.client(t, nil, false), request(t, "GET", "http://"+h.address+"/", nil)); err != nil || code != 503 || !strings.Contains(body, "not_ready") {
		t.Errorf("plaintext without policy: %d %q %v", code, body, err)
	}

	patient := newHouse(t, nil, http.HandlerFunc(who), func(o *inbound.Options) { o.PolicyWait = time.Minute })
	answer := make(chan string, 1)
	client := patient.client(t, patient.as(t, patient.ca.issue(t, "web", time.Hour)), false)
	go func() {
		_, body, err := get(t, client, request(t, "GET", "https://"+patient.address+"/", nil))
		if err != nil {
			body = err.Error()
		}
		answer <- body
	}()
	// The handshake is on its way, or will be: either is served once the policy is there.
	patient.install(strict(nil))
	if got := <-answer; got != "HTTP/1.1 spiffe://cluster.local/ns/default/sa/web" {
		t.Errorf("with policy in time: %q", got)
	}
}

// TestCloseEndsWhatIsOnItsWay: no goroutine and no connection is left.
func TestCloseEndsWhatIsOnItsWay(t *testing.T) {
	leak.Check(t)
	e := inbound.New(inbound.Options{Subscribe: func(string) {}, PolicyWait: time.Hour})
	defer e.Close()
	raw := must(net.Listen("tcp", "127.0.0.1:0"))
	lis := NewListener(e, raw, slog.New(slog.DiscardHandler))
	var conns []net.Conn
	for _, first := range []string{"", "G", "\x16", "\x16\x03\x01"} {
		c := must(net.Dial("tcp", raw.Addr().String()))
		_, _ = io.WriteString(c, first)
		conns = append(conns, c)
	}
	lis.Close()
	lis.Close() // again is nothing
	for i, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("connection %d: %v", i, err)
		}
		c.Close()
	}
}

// TestWithoutControlPlane: the listener is the one that was given.
func TestWithoutControlPlane(t *testing.T) {
	lis := newPipeListener()
	if got := NewListener(inbound.New(inbound.Options{}), lis, nil); got != net.Listener(lis) {
		t.Errorf("%T", got)
	}
}

// TestSpeaksFirst: where policy has no TLS nothing is waited for.
func TestSpeaksFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, lis, _, e := memoryListener(t, plain(nil), 10)
		defer e.Close()
		ours := inner.dial()
		in, err := lis.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = in.Write([]byte("220 ready")) }()
		b := make([]byte, 9)
		if _, err := io.ReadFull(ours, b); err != nil || string(b) != "220 ready" {
			t.Errorf("%q %v", b, err)
		}
		in.Close()
		ours.Close()
		lis.Close()
	})
}

// TestAcceptErrors: what the inner listener says reaches the caller, who goes on
// if it was passing.
func TestAcceptErrors(t *testing.T) {
	leak.Check(t)
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	defer e.Close()
	inner := &failingListener{pipeListener: newPipeListener(), failures: 2}
	lis := NewListener(e, inner, nil)
	for range 2 {
		if _, err := lis.Accept(); err != errAccept {
			t.Errorf("%v", err)
		}
	}
	go func() { inner.dial().Write([]byte("G")) }()
	in, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	lis.Close()
}

type failingListener struct {
	*pipeListener
	failures int
}

var errAccept = &net.OpError{Op: "accept", Err: io.ErrNoProgress}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, errAccept
	}
	return l.pipeListener.Accept()
}

// TestExpiredConnection: a connection is good until its peer's certificate is
// in the last tenth of its validity, asks to be replaced from then on, and
// carries nothing after the end.
func TestExpiredConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &house{ca: newTrustDomainCA(t, "cluster.local")}
		e := inbound.New(inbound.Options{Subscribe: func(string) {}, Source: staticSource(t, h.ca, 100*time.Hour)})
		inner := newPipeListener()
		lis := NewListener(e, inner, slog.New(slog.DiscardHandler))
		e.Install(policies(map[string]*snapshot.Inbound{"127.0.0.1:1": strict(nil)}))
		// Valid since an hour ago, for 10 hours in all.
		ours := tls.Client(inner.dial(), h.as(t, h.ca.issue(t, "web", 9*time.Hour)))
		go func() { _ = ours.Handshake() }()
		in := must(lis.Accept())
		began := time.Now()
		for _, c := range []struct {
			at     time.Duration
			closes bool
			denied bool
		}{
			{0, false, false},
			{8*time.Hour - time.Second, false, false},
			{8*time.Hour + time.Second, true, false},
			{9*time.Hour - time.Second, true, false},
			{9 * time.Hour, true, true},
			{20 * time.Hour, true, true},
		} {
			time.Sleep(time.Until(began.Add(c.at)))
			r := inbound.Request{Local: in.LocalAddr(), Conn: e.Conn(in.LocalAddr())}
			r.Access.Path = "/"
			var a inbound.Admission
			err := e.Admit(t.Context(), &r, &a)
			if (err != nil) != c.denied || a.CloseConnection != c.closes || err == nil && a.Peer.ID.String() != "spiffe://cluster.local/ns/default/sa/web" {
				t.Errorf("after %s: %v, closes %v", c.at, err, a.CloseConnection)
			}
		}
		// The client has nobody who reads its farewell.
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		in.Close()
		ours.Close()
		lis.Close()
		e.Close()
	})
}
