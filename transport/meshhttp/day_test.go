package meshhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
)

// memory is a listener in memory with an address of its own.
type memory struct {
	*bufconn.Listener
	address *net.TCPAddr
}

func (m *memory) Addr() net.Addr { return m.address }

func (m *memory) Accept() (net.Conn, error) {
	c, err := m.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return patient{c}, nil
}

// patient is a connection that can be read again when a deadline has passed, as
// one of the network: crypto/tls goes by net.Error's Temporary, which is true there.
type patient struct{ net.Conn }

func (p patient) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// day is a mesh of one client and one server, without a network.
type day struct {
	t         *testing.T
	authority *ca.CA
	down      atomic.Bool // the authority can not be reached

	in       *inbound.Engine
	out      *outbound.Engine
	client   *http.Client
	accepted atomic.Int64 // connections
	close    []func()
}

const dayServer = "192.0.2.1:80"

func newDay(t *testing.T, dir string) *day {
	d := &day{t: t}
	var err error
	d.authority, err = ca.Open(t.Context(), filepath.Join(dir, "ca"), ca.Options{
		TrustDomain: "td.example", WorkloadTTL: 2 * time.Hour, MaxTTL: 2 * time.Hour, CATTL: 5 * time.Hour, RootTTL: 14 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(64 << 10)
	service := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return d.authority.ServerCertificate("/ns/sinew-system/sa/xdsserver", nil, 0)
		},
	})))
	ca.NewService(d.authority).Register(service)
	go func() { _ = service.Serve(l) }()
	d.later(func() {
		service.Stop()
		d.authority.Close()
	})
	server, client := d.join(dir, reviewsID, l), d.join(dir, webID, l)

	synctest.Wait() // both have their certificates
	quiet := slog.New(slog.DiscardHandler)
	d.in = inbound.New(inbound.Options{Subscribe: func(string) {}, PolicyWait: 10 * time.Second, Log: quiet, Source: func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return server, nil }})
	at := &memory{bufconn.Listen(64 << 10), must(net.ResolveTCPAddr("tcp", dayServer))}
	lis := NewListener(d.in, at, quiet)
	d.in.Listening(lis.Addr())
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, lis, Handler(d.in, quiet, http.HandlerFunc(who)), time.Minute) }()

	network := func(ctx context.Context, _, _ string) (net.Conn, error) {
		d.accepted.Add(1)
		return at.DialContext(ctx)
	}
	with := &connecting{network: network, identities: outbound.NewIdentities(func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return client, nil })}
	d.out = outbound.New(outbound.Options{Subscribe: func(string) {}, PolicyWait: 10 * time.Second, NewWire: func(c *snapshot.Cluster) outbound.Wire { return newWire(c, with) }})
	rt := NewRoundTripper(d.out, ClientOptions{})
	d.client = &http.Client{Transport: rt}
	d.later(func() {
		d.out.Close()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		d.in.Close()
		server.Close()
		client.Close()
	})
	return d
}

func (d *day) later(f func()) { d.close = append(d.close, f) }

func (d *day) end() {
	for i := len(d.close) - 1; i >= 0; i-- {
		d.close[i]()
	}
	synctest.Wait()
}

// join makes a member of the mesh by a token.
func (d *day) join(dir, id string, l *bufconn.Listener) source.Source {
	file := filepath.Join(dir, filepath.Base(id))
	token, err := d.authority.Tokens().Create(id, 0)
	if err == nil {
		err = os.WriteFile(file, []byte(token.Reveal()), 0o600)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	s, err := source.NewCA(source.CAConfig{
		Address: "ca.test:15012", ServerID: must(identity.ParseID("spiffe://td.example/ns/sinew-system/sa/xdsserver")),
		RootFingerprint: ca.Fingerprint(d.authority.Bundle().Roots[0]), JoinTokenFile: file, TTL: 2 * time.Hour,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			if d.down.Load() {
				return nil, errors.New("connection refused")
			}
			return l.DialContext(ctx)
		},
	}, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// outside is the client's policy: two hosts on one server, by HTTP version.
func (d *day) outside(version int) *snapshot.Snapshot {
	s := &snapshot.Snapshot{Hosts: map[string]*snapshot.Host{}, Clusters: map[string]*snapshot.Cluster{}}
	for name, http2 := range map[string]bool{"one": false, "two": true} {
		vh := &snapshot.VirtualHost{Routes: []snapshot.Route{{
			Name: fmt.Sprint("version ", version), Match: routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix, Value: "/"}},
			Clusters: must(routing.NewWeighted([]routing.WeightedCluster{{Name: name, Weight: 1}})), Timeout: 10 * time.Second,
		}}}
		s.Hosts[name+":80"] = &snapshot.Host{Name: name + ":80", VirtualHost: vh}
		s.Clusters[name] = &snapshot.Cluster{
			Name: name, ConnectTimeout: 5 * time.Second, LB: lb.Policy{Kind: lb.RoundRobin}, Limits: unlimited, HTTP2: http2,
			TLS: mutual(reviewsID), Endpoints: lb.NewEndpoints([]lb.Endpoint{{Address: dayServer, Weight: 1}}, nil),
		}
	}
	return s
}

// inside is the server's policy: it lets the client in by rules that differ.
func (d *day) inside(version int) *snapshot.Snapshot {
	chain := &snapshot.FilterChain{}
	if version%3 > 0 {
		chain.Authorizer = authorizer(d.t, ruled(d.t, identity.Allow, rule(fmt.Sprint("version ", version), nil, nil)))
	}
	in := strict(chain)
	if version%2 > 0 {
		in = permissive(chain)
	}
	return policies(map[string]*snapshot.Inbound{dayServer: in})
}

// get calls one of the hosts.
func (d *day) get(host string) error {
	resp, err := d.client.Get("http://" + host + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	want := map[string]string{"one": "HTTP/1.1 ", "two": "HTTP/2.0 "}[host] + webID
	if err == nil && (resp.StatusCode != http.StatusOK || string(body) != want) {
		err = fmt.Errorf("%s: %d %q, want %q", host, resp.StatusCode, body, want)
	}
	return err
}

// saysWhy reports whether an error tells that certificates have expired. The
// server tells a client only that it can not shake hands, or not with it, and on
// a connection that there is that it is not ready.
func saysWhy(err error) bool {
	for _, why := range []string{"expired", "not accepted any more", `503 "{\"code\":\"not_ready\"`, "remote error: tls: internal error", "remote error: tls: bad certificate"} {
		if strings.Contains(err.Error(), why) {
			return true
		}
	}
	return false
}

// TestDay: 24 virtual hours of a client and a server, both with certificates of two
// hours from an authority that changes its root and is away for three quarters
// of an hour now and then, while policy changes at both ends. Requests every
// minute over kept connections, HTTP/1.1 and HTTP/2: not one fails. Then the
// authority stays away: requests fail once the certificates have expired, and
// not before, and when it is back and gives out tokens they succeed again.
func TestDay(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := newDay(t, dir)
		defer d.end()
		d.in.Install(d.inside(0))
		d.out.Install(d.outside(0))
		roots := map[string]bool{}
		requests := 0
		tick := func() {
			t.Helper()
			if err := d.authority.Tick(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
			for _, r := range d.authority.Bundle().Roots {
				roots[ca.Fingerprint(r)] = true
			}
			time.Sleep(time.Minute)
		}
		for minute := range 24 * 60 {
			d.down.Store(minute%300 >= 200 && minute%300 < 245)
			if minute%20 == 7 {
				d.in.Install(d.inside(minute / 20))
			}
			if minute%20 == 17 {
				d.out.Install(d.outside(minute / 20))
			}
			for _, host := range []string{"one", "two"} {
				if err := d.get(host); err != nil {
					t.Fatalf("minute %d: %v", minute, err)
				}
				requests++
			}
			tick()
		}
		// A connection lasts for as long as its certificates, not for one request.
		if n := d.accepted.Load(); len(roots) < 3 || n < 40 || n > int64(requests)/10 {
			t.Errorf("%d roots, %d connections for %d requests", len(roots), n, requests)
		}

		d.down.Store(false)
		for range 65 {
			tick()
		}
		d.down.Store(true)
		var failed error
		lasted := 0
		for ; failed == nil && lasted < 180; lasted++ {
			failed = errors.Join(d.get("one"), d.get("two"))
			tick()
		}
		// Both were renewed at most 66 minutes before.
		if failed == nil || lasted < 54 || lasted > 121 {
			t.Errorf("the first failure after %d minutes: %v", lasted, failed)
		} else if !saysWhy(failed) {
			t.Errorf("the error does not say what is wrong: %v", failed)
		}
		for range 70 {
			tick() // until nobody has a certificate
		}
		for _, host := range []string{"one", "two"} {
			if err := d.get(host); err == nil || !strings.Contains(err.Error(), "expired") {
				t.Errorf("%s without certificates: %v", host, err)
			}
		}

		for _, id := range []string{webID, reviewsID} {
			token, err := d.authority.Tokens().Create(id, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(id)), []byte(token.Reveal()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d.down.Store(false)
		for range 4 {
			tick()
		}
		for _, host := range []string{"one", "two"} {
			if err := d.get(host); err != nil {
				t.Errorf("%s does not recover: %v", host, err)
			}
		}
	})
}
