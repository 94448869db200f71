package meshhttp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/hostile"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

func TestMutualTLS(t *testing.T) {
	for _, c := range []struct {
		name   string
		http2  bool
		policy *snapshot.ClientTLS
		url    string
		want   string
	}{
		{"HTTP/1.1", false, mutual(reviewsID), "http://svc/x?y", "HTTP/1.1 svc /x?y TLS outbound_.80_._.svc.shop http/1.1 " + webID},
		{"HTTP/2", true, mutual(reviewsID), "http://svc/x?y", "HTTP/2.0 svc /x?y TLS outbound_.80_._.svc.shop h2 " + webID},
		{"the host's name as SNI", false, &snapshot.ClientTLS{Certificate: ownCertificate, Trust: meshTrust}, "http://svc/", "HTTP/1.1 svc / TLS svc http/1.1 " + webID},
		{"policy's own ALPN list", true, &snapshot.ClientTLS{Certificate: ownCertificate, Trust: meshTrust, Protocols: []string{"istio-peer-exchange", "http/1.1", "istio"}}, "http://svc/", "HTTP/2.0 svc / TLS svc h2 " + webID},
		{"a name, with our certificate", false, &snapshot.ClientTLS{Certificate: ownCertificate, Trust: meshTrust, Verify: snapshot.VerifyName, ServerName: "reviews.example"}, "http://svc/", "HTTP/1.1 svc / TLS reviews.example http/1.1 " + webID},
		{"SANs", true, &snapshot.ClientTLS{Certificate: ownCertificate, Trust: meshTrust, Verify: snapshot.VerifySANs, SANs: mutual(reviewsID).SANs}, "http://svc/", "HTTP/2.0 svc / TLS svc h2 " + webID},
	} {
		t.Run(c.name, func(t *testing.T) {
			ca := newAuthority(t)
			server := mutualServer(t, static(t, ca.material(t, ca.issue(t, reviewsID, "reviews.example"))), seen)
			src := &counting{Source: static(t, ca.material(t, ca.issue(t, webID)))}
			w := securedWorld(t, &recorder{}, src.open, server, func(cl *snapshot.Cluster) { cl.HTTP2, cl.TLS = c.http2, c.policy })
			for range 3 {
				resp, err := w.client.Do(request(t, "GET", c.url, nil))
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if string(body) != c.want {
					t.Errorf("the server saw %q, want %q", body, c.want)
				}
				if resp.Request.URL.String() != c.url || resp.TLS == nil {
					t.Errorf("the caller is given the URL %s, TLS %v", resp.Request.URL, resp.TLS)
				}
			}
			if u := w.engine.Usage(); len(u) != 1 || u[0] != (outbound.ClusterUsage{Cluster: "c", MutualTLS: 3}) {
				t.Errorf("usage %+v", u)
			}
			w.engine.Close()
			if src.opened.Load() != 1 || src.closed.Load() != 1 {
				t.Errorf("the source was opened %d times and closed %d times", src.opened.Load(), src.closed.Load())
			}
		})
	}
}

// TestSimpleTLS: no certificate of ours is presented where policy names none.
func TestSimpleTLS(t *testing.T) {
	ca := newAuthority(t)
	src := static(t, ca.material(t, ca.issue(t, "", "reviews.example")))
	server := secureServer(t, tlsconfig.Server(src, tlsconfig.ServerOptions{Client: tlsconfig.CertificateOptional, Protocols: []string{"h2", "http/1.1"}}), seen)
	client := func(cert snapshot.CertificateSource, _ snapshot.TrustSource) (source.Source, error) {
		if cert != (snapshot.CertificateSource{}) {
			t.Errorf("asked for the certificate %+v", cert)
		}
		return static(t, ca.material(t, ca.issue(t, webID))), nil
	}
	rec := &recorder{}
	w := securedWorld(t, rec, client, server, func(c *snapshot.Cluster) {
		c.TLS = &snapshot.ClientTLS{Trust: snapshot.TrustSource{CAFile: "ca.pem"}, Verify: snapshot.VerifyName, ServerName: "reviews.example"}
	})
	if code, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || code != 200 || body != "HTTP/1.1 svc / TLS reviews.example http/1.1 " {
		t.Errorf("%d %q %v", code, body, err)
	}
	if u := w.engine.Usage(); u[0] != (outbound.ClusterUsage{Cluster: "c", TLS: 1}) {
		t.Errorf("usage %+v", u)
	}
	// The caller's own TLS inside it is nothing that a server of the web expects.
	_, _, err := get(t, w.client, request(t, "GET", "https://svc/", nil))
	var refused *outbound.TLSError
	if !errors.As(err, &refused) || refused.Cluster != "c" || !errors.Is(err, errTLSTwice) {
		t.Errorf("error %v", err)
	}
}

// TestTLSInMutualTLS: a caller's https URL keeps its own TLS, end to end, inside the mesh's.
func TestTLSInMutualTLS(t *testing.T) {
	ca := newAuthority(t)
	outer := static(t, ca.material(t, ca.issue(t, reviewsID)))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inner := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto+" "+r.TLS.ServerName+" "+r.Host)
	}))
	inner.Listener.Close()
	inner.Listener = tls.NewListener(lis, tlsconfig.Server(outer, tlsconfig.ServerOptions{}))
	inner.Config.ErrorLog = discardLog
	inner.EnableHTTP2 = true
	inner.StartTLS() // with httptest's certificate, for example.com
	t.Cleanup(inner.Close)
	rec := &recorder{}
	w := securedWorld(t, rec, (&counting{Source: static(t, ca.material(t, ca.issue(t, webID)))}).open, inner, func(c *snapshot.Cluster) { c.TLS = mutual(reviewsID) })
	w.snap.Hosts["example.com:443"] = &snapshot.Host{Name: "example.com:443", VirtualHost: w.snap.Hosts["svc:80"].VirtualHost}
	roots := x509.NewCertPool()
	roots.AddCert(inner.Certificate())
	w.rebuild(t, rec, func(c *snapshot.Cluster) outbound.Wire {
		wire := NewWire((&counting{Source: static(t, ca.material(t, ca.issue(t, webID)))}).open)(c).(*wire)
		s := wire.secured[c.TLS]
		src, err := s.source()
		if err != nil {
			t.Fatal(err)
		}
		s.transport(src, "example.com", "example.com", false).(*http.Transport).TLSClientConfig.RootCAs = roots
		return wire
	})
	if code, body, err := get(t, w.client, request(t, "GET", "https://example.com/", nil)); err != nil || code != 200 || body != "HTTP/2.0 example.com example.com" {
		t.Errorf("%d %q %v", code, body, err)
	}
	// The inner name is verified as ever.
	if _, _, err := get(t, w.client, request(t, "GET", "https://svc/", nil)); !errors.As(err, new(x509.HostnameError)) {
		t.Errorf("error %v", err)
	}
}

// TestEndpointsByMetadata: one cluster has endpoints with and without TLS.
func TestEndpointsByMetadata(t *testing.T) {
	ca := newAuthority(t)
	secure := mutualServer(t, static(t, ca.material(t, ca.issue(t, reviewsID))), seen)
	plain := httptest.NewServer(http.HandlerFunc(seen))
	t.Cleanup(plain.Close)
	src := &counting{Source: static(t, ca.material(t, ca.issue(t, webID)))}
	rec := &recorder{}
	w := securedWorld(t, rec, src.open, secure, func(c *snapshot.Cluster) {
		c.Sockets = []snapshot.SocketMatch{{Criteria: map[string]string{"tlsMode": "istio"}, TLS: mutual(reviewsID)}, {}}
		c.Endpoints = lb.NewEndpoints([]lb.Endpoint{
			{Address: secure.Listener.Addr().String(), Weight: 1, Socket: map[string]string{"tlsMode": "istio"}},
			{Address: plain.Listener.Addr().String(), Weight: 1},
		}, nil)
	})
	count := map[string]int{}
	for range 10 {
		_, body, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
		if err != nil {
			t.Fatal(err)
		}
		count[body]++
	}
	if count["HTTP/1.1 svc / plaintext"] != 5 || count["HTTP/1.1 svc / TLS outbound_.80_._.svc.shop http/1.1 "+webID] != 5 {
		t.Errorf("servers saw %v", count)
	}
	// The plaintext endpoint gets its label: the wire stays, the way to it changes.
	next := *w.cluster
	next.Sockets = []snapshot.SocketMatch{{Criteria: map[string]string{"tlsMode": "istio"}, TLS: mutual(reviewsID)}, {}}
	next.Endpoints = lb.NewEndpoints([]lb.Endpoint{{Address: plain.Listener.Addr().String(), Weight: 1, Socket: map[string]string{"tlsMode": "istio"}}}, nil)
	w.engine.Install(&snapshot.Snapshot{Hosts: w.snap.Hosts, Clusters: map[string]*snapshot.Cluster{"c": &next}})
	_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
	var refused *outbound.TLSError
	if !errors.As(err, &refused) {
		t.Errorf("a server without TLS: %v", err)
	}
	if u := w.engine.Usage(); u[0] != (outbound.ClusterUsage{Cluster: "c", MutualTLS: 5, Plaintext: 5}) {
		t.Errorf("usage %+v", u)
	}
}

// TestHostileServers: nothing of a request reaches a server whose certificate is bad.
func TestHostileServers(t *testing.T) {
	m := hostile.New(t, time.Now())
	src := &counting{Source: static(t, &source.Material{Certificate: m.Victim, Bundles: m.Bundles})}
	for _, http2 := range []bool{false, true} {
		for i := range m.Cases {
			c := &m.Cases[i]
			t.Run(map[bool]string{false: "HTTP1/", true: "HTTP2/"}[http2]+c.Name, func(t *testing.T) {
				var handled atomic.Int64
				server := secureServer(t, c.Attacker(), func(http.ResponseWriter, *http.Request) { handled.Add(1) })
				rec := &recorder{}
				w := securedWorld(t, rec, src.open, server, func(cl *snapshot.Cluster) {
					cl.HTTP2, cl.TLS = http2, &snapshot.ClientTLS{Certificate: ownCertificate, Trust: meshTrust}
				})
				code, _, err := get(t, w.client, request(t, "POST", "http://svc/", strings.NewReader("secret")))
				if c.Good() {
					if err != nil || code != 200 {
						t.Errorf("%d %v", code, err)
					}
					return
				}
				var refused *outbound.TLSError
				if !errors.As(err, &refused) || refused.Endpoint == "" {
					t.Fatalf("error %v", err)
				}
				var verify *identity.VerifyError
				if !c.ByTLS && (!errors.As(err, &verify) || verify.Rule != c.Rule || !strings.Contains(err.Error(), string(c.Rule))) {
					t.Errorf("error %v, want the rule %q", err, c.Rule)
				}
				if f := rec.failures(); !slices.Equal(f, []resilience.Failure{resilience.ConnectFailure}) {
					t.Errorf("attempts ended with %v", f)
				}
				if handled.Load() != 0 {
					t.Error("the server got the request")
				}
			})
		}
	}
}

// TestServerRefusesUs: with TLS 1.3 the client hears of it after its request.
func TestServerRefusesUs(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP1", true: "HTTP2"}[http2], func(t *testing.T) {
			ca, other := newAuthority(t), newAuthority(t)
			var handled atomic.Int64
			server := lingeringServer(t, tlsconfig.Server(static(t, ca.material(t, ca.issue(t, reviewsID))), tlsconfig.ServerOptions{Protocols: []string{"h2", "http/1.1"}}),
				func(http.ResponseWriter, *http.Request) { handled.Add(1) })
			ours := other.issue(t, webID)
			src := &counting{Source: static(t, &source.Material{Certificate: ours, Bundles: ca.bundles(t)})}
			rec := &recorder{}
			w := securedWorld(t, rec, src.open, server, func(c *snapshot.Cluster) { c.HTTP2, c.TLS = http2, mutual(reviewsID) })
			alerts := 0
			for range 20 {
				_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
				switch {
				case errors.As(err, new(*outbound.TLSError)) && refusedHandshake(err):
					alerts++
				case !http2 && errors.Is(err, net.ErrClosed):
					// net/http has read the alert and closed the connection before the
					// request was written, and tells only that.
				default:
					t.Errorf("error %v", err)
				}
			}
			connect := 0
			for _, f := range rec.failures() {
				if f == resilience.ConnectFailure {
					connect++
				}
			}
			if alerts == 0 || connect != alerts || handled.Load() != 0 {
				t.Errorf("%d alerts and %d connect failures of 20, %d handled", alerts, connect, handled.Load())
			}
		})
	}
}

// TestRefusalBeforeTheRequest: with HTTP/2 the alert may come before the request
// has a stream, and net/http has another error then. It is told all the same, and
// the request is not sent on another connection that would be refused too.
func TestRefusalBeforeTheRequest(t *testing.T) {
	ca := newAuthority(t)
	refuse := make(chan struct{})
	server := lingeringServer(t, &tls.Config{
		Certificates: []tls.Certificate{*ca.issue(t, reviewsID)}, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert,
		VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error {
			<-refuse
			return errors.New("refused")
		},
	}, func(http.ResponseWriter, *http.Request) { t.Error("the request was handled") })
	rec := &recorder{}
	w := securedWorld(t, rec, (&counting{Source: static(t, ca.material(t, ca.issue(t, webID)))}).open, server, func(c *snapshot.Cluster) { c.HTTP2, c.TLS = true, mutual(reviewsID) })
	connections := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if connections++; connections > 1 {
			return
		}
		close(refuse)
		conn := info.Conn.(*tls.Conn).NetConn()
		eventually(t, "the connection is closed", func() bool { return errors.Is(conn.SetDeadline(time.Time{}), net.ErrClosed) })
	}})
	_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil).WithContext(ctx))
	if !errors.As(err, new(*outbound.TLSError)) || !refusedHandshake(err) || connections != 1 {
		t.Errorf("error %v with %d connections", err, connections)
	}
	if f := rec.failures(); !slices.Equal(f, []resilience.Failure{resilience.ConnectFailure}) {
		t.Errorf("attempts ended with %v", f)
	}
}

func TestNoCertificate(t *testing.T) {
	ca := newAuthority(t)
	server := mutualServer(t, static(t, ca.material(t, ca.issue(t, reviewsID))), seen)
	use := func(c *snapshot.Cluster) { c.TLS = mutual(reviewsID) }
	broken := errors.New("no such provider")
	t.Run("comes while the request waits", func(t *testing.T) {
		src := static(t, nil)
		w := securedWorld(t, &recorder{}, (&counting{Source: src}).open, server, use)
		time.AfterFunc(20*time.Millisecond, func() { _ = src.Set(ca.material(t, ca.issue(t, webID))) })
		if code, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || code != 200 {
			t.Errorf("%d %v", code, err)
		}
	})
	expired := ca.sign(t, &x509.Certificate{
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{{Scheme: "spiffe", Host: "td.example", Path: "/ns/shop/sa/web"}},
	})
	for _, c := range []struct {
		name string
		open outbound.Sources
		want func(error) bool
	}{
		{"never comes", (&counting{Source: static(t, nil)}).open, func(err error) bool {
			return errors.Is(err, source.ErrNotReady) && errors.Is(err, context.DeadlineExceeded)
		}},
		{"expired", (&counting{Source: static(t, ca.material(t, expired))}).open, func(err error) bool {
			return errors.Is(err, source.ErrNotReady) && !errors.Is(err, context.DeadlineExceeded)
		}},
		{"trust without a certificate", (&counting{Source: static(t, ca.material(t, nil))}).open, func(err error) bool {
			return strings.Contains(err.Error(), "no certificate")
		}},
		{"no source", func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return nil, broken }, func(err error) bool {
			return errors.Is(err, broken) && errors.As(err, new(*outbound.TLSError))
		}},
		{"no sources at all", nil, func(err error) bool { return errors.Is(err, outbound.ErrNoSources) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{}
			w := securedWorld(t, rec, c.open, server, use)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if c.name != "never comes" {
				ctx = t.Context()
			}
			defer cancel()
			closed := make(chan struct{})
			body := &closing{strings.NewReader("body"), sync.OnceFunc(func() { close(closed) })}
			_, _, err := get(t, w.client, request(t, "POST", "http://svc/", body).WithContext(ctx))
			var notReady *outbound.NotReadyError
			if err == nil || !c.want(err) {
				t.Fatalf("error %v", err)
			}
			if errors.Is(err, source.ErrNotReady) && (!errors.As(err, &notReady) || notReady.Missing != "certificate" || notReady.Cluster != "c") {
				t.Errorf("error %#v", err)
			}
			<-closed
			// Nothing was tried, so no endpoint is to blame.
			if f := rec.failures(); len(f) != 0 {
				t.Errorf("attempts ended with %v", f)
			}
		})
	}
	t.Run("a source that can be opened later", func(t *testing.T) {
		var ready atomic.Bool
		src := &counting{Source: static(t, ca.material(t, ca.issue(t, webID)))}
		w := securedWorld(t, &recorder{}, func(c snapshot.CertificateSource, tr snapshot.TrustSource) (source.Source, error) {
			if !ready.Load() {
				return nil, broken
			}
			return src.open(c, tr)
		}, server, use)
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
		ready.Store(true)
		if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil {
			t.Error(err)
		}
	})
}

type closing struct {
	io.Reader
	close func()
}

func (c *closing) Close() error {
	c.close()
	return nil
}

// open counts the server's connections that are open at present.
func (c *connections) now() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// TestRotation: after a change of our certificate or of trust new requests use
// new connections; the idle close, and busy ones end with their requests.
func TestRotation(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP1", true: "HTTP2"}[http2], func(t *testing.T) {
			ca := newAuthority(t)
			hold, held := make(chan struct{}), make(chan struct{}, 1)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/hold" {
					held <- struct{}{}
					<-hold
				}
				_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].SerialNumber.String())
			}))
			count := &connections{}
			server.Config.ConnState = count.state
			server.TLS = tlsconfig.Server(static(t, ca.material(t, ca.issue(t, reviewsID))), tlsconfig.ServerOptions{Protocols: []string{"h2", "http/1.1"}})
			server.EnableHTTP2 = true
			server.StartTLS()
			t.Cleanup(server.Close)
			first, second := ca.issue(t, webID), ca.issue(t, webID)
			src := static(t, ca.material(t, first))
			w := securedWorld(t, &recorder{}, (&counting{Source: src}).open, server, func(c *snapshot.Cluster) { c.HTTP2, c.TLS = http2, mutual(reviewsID) })
			ask := func(path string) string {
				t.Helper()
				_, body, err := get(t, w.client, request(t, "GET", "http://svc"+path, nil))
				if err != nil {
					t.Error(err)
				}
				return body
			}
			busy := make(chan string, 1)
			go func() { busy <- ask("/hold") }()
			<-held
			if got := ask("/"); got != first.Leaf.SerialNumber.String() {
				t.Errorf("presented %s first", got)
			}
			if err := src.Set(ca.material(t, second)); err != nil {
				t.Fatal(err)
			}
			// The watcher notices a moment later.
			for deadline := time.Now().Add(10 * time.Second); ask("/") != second.Leaf.SerialNumber.String(); {
				if time.Now().After(deadline) {
					t.Fatal("the old certificate is still presented")
				}
				time.Sleep(time.Millisecond)
			}
			close(hold)
			if got := <-busy; got != first.Leaf.SerialNumber.String() {
				t.Errorf("the busy connection presented %s", got)
			}
			// A request that began beside the change may have connected with the new
			// certificate and in vain, so there is one more each time.
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if got := ask("/"); got != second.Leaf.SerialNumber.String() {
					t.Fatalf("presented %s again", got)
				}
				n := count.now()
				if n == 1 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d connections are open, want the new one", n)
				}
			}
		})
	}
}

// TestPolicyOfConnectionsChanges: what was connected under other rules is not used again.
func TestPolicyOfConnectionsChanges(t *testing.T) {
	ca := newAuthority(t)
	server := mutualServer(t, static(t, ca.material(t, ca.issue(t, reviewsID))), seen)
	src := &counting{Source: static(t, ca.material(t, ca.issue(t, webID)))}
	w := securedWorld(t, &recorder{}, src.open, server, func(c *snapshot.Cluster) { c.TLS = mutual(reviewsID) })
	if _, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil {
		t.Fatal(err)
	}
	next := *w.cluster
	next.TLS = mutual("spiffe://td.example/ns/shop/sa/other")
	w.engine.Install(&snapshot.Snapshot{Hosts: w.snap.Hosts, Clusters: map[string]*snapshot.Cluster{"c": &next}})
	_, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil))
	var verify *identity.VerifyError
	if !errors.As(err, &verify) || verify.Rule != identity.RulePeerSAN {
		t.Errorf("error %v", err)
	}
	again := next
	again.TLS = nil
	w.engine.Install(&snapshot.Snapshot{Hosts: w.snap.Hosts, Clusters: map[string]*snapshot.Cluster{"c": &again}})
	if code, _, err := get(t, w.client, request(t, "GET", "http://svc/", nil)); err != nil || code != http.StatusBadRequest {
		t.Errorf("%d %v, want the server's refusal of plaintext", code, err)
	}
	if src.opened.Load() != src.closed.Load() {
		t.Errorf("opened %d times, closed %d times", src.opened.Load(), src.closed.Load())
	}
}

// TestRetryAfterFailedHandshake: another endpoint gets the request.
func TestRetryAfterFailedHandshake(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	good := mutualServer(t, static(t, ca.material(t, ca.issue(t, reviewsID))), status(200, "good"))
	bad := mutualServer(t, static(t, other.material(t, other.issue(t, reviewsID))), status(200, "bad"))
	src := &counting{Source: static(t, ca.material(t, ca.issue(t, webID)))}
	w := securedWorld(t, &recorder{}, src.open, good, func(c *snapshot.Cluster) {
		c.TLS = mutual(reviewsID)
		c.Endpoints = lb.NewEndpoints([]lb.Endpoint{
			{Address: good.Listener.Addr().String(), Weight: 1}, {Address: bad.Listener.Addr().String(), Weight: 1},
		}, nil)
	})
	w.route.Retry = retryOn(t, "connect-failure", 2)
	w.engine.Install(w.snap)
	for range 10 {
		if _, body, err := get(t, w.client, request(t, "POST", "http://svc/", bytes.NewReader([]byte("x")))); err != nil || body != "good" {
			t.Fatalf("%q %v", body, err)
		}
	}
}

// TestHTTP2IsAgreed: a server that does not speak HTTP/2 is not sent it.
func TestHTTP2IsAgreed(t *testing.T) {
	ca := newAuthority(t)
	src := static(t, ca.material(t, ca.issue(t, reviewsID)))
	config := tlsconfig.Server(src, tlsconfig.ServerOptions{})
	config.NextProtos = nil // it does not know ALPN
	lis, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	got := make(chan error, 1)
	go func() {
		conn, err := lis.Accept()
		if err == nil {
			_, err = bufio.NewReader(conn).Peek(1)
			conn.Close()
		}
		got <- err
	}()
	server := &httptest.Server{Listener: lis}
	w := securedWorld(t, &recorder{}, (&counting{Source: src}).open, server, func(c *snapshot.Cluster) { c.HTTP2, c.TLS = true, mutual(reviewsID) })
	_, _, err = get(t, w.client, request(t, "GET", "http://svc/", nil))
	if !errors.As(err, new(*outbound.TLSError)) || !strings.Contains(err.Error(), "HTTP/2") {
		t.Errorf("error %v", err)
	}
	if err := <-got; err == nil {
		t.Error("something was sent")
	}
}
