package tlsconfig

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
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
)

const authorityID = "spiffe://td.example/ns/sinew-system/sa/xdsserver"

// TestDayWithAuthority: 24 virtual hours of the server's own authority and two
// workloads that joined with a token and renew every hour, through changes of
// the issuing certificate, of the root and outages of three quarters of an
// hour. Every three minutes they meet, and every twelve they make requests over
// HTTP/1.1, HTTP/2 and gRPC, on connections that stay and on new ones. None ever fails.
func TestDayWithAuthority(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		authority, err := ca.Open(t.Context(), filepath.Join(dir, "ca"), ca.Options{
			TrustDomain: "td.example", WorkloadTTL: 2 * time.Hour, MaxTTL: 2 * time.Hour, CATTL: 5 * time.Hour, RootTTL: 14 * time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer authority.Close()
		first := authority.Bundle().Roots[0]
		var down atomic.Bool
		l := bufconn.Listen(64 << 10)
		server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return authority.ServerCertificate("/ns/sinew-system/sa/xdsserver", nil, 0)
			},
		})))
		ca.NewService(authority).Register(server)
		go func() { _ = server.Serve(l) }()

		join := func(name, workload string) source.Source {
			token, err := authority.Tokens().Create(workload, 0)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(token.Reveal()), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := source.NewCA(source.CAConfig{
				Address: "ca.test:15012", ServerID: id(t, authorityID), RootFingerprint: ca.Fingerprint(first), JoinTokenFile: path, TTL: 2 * time.Hour,
				Dial: func(ctx context.Context, _ string) (net.Conn, error) {
					if down.Load() {
						return nil, errors.New("connection refused")
					}
					return l.DialContext(ctx)
				},
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		cs, ss := join("client-token", clientID), join("server-token", serverID)
		synctest.Wait()
		client, serving := Client(cs, ClientOptions{}), Server(ss, ServerOptions{})
		request, stop := requests(t, client, serving)
		defer stop()
		roots, rotations := map[string]bool{}, 0
		var last *tls.Certificate
		for minute := 0; minute < 24*60; minute += 3 {
			if err := authority.Tick(t.Context(), time.Now()); err != nil {
				t.Fatalf("minute %d: %v", minute, err)
			}
			down.Store(minute%300 >= 200 && minute%300 < 245)
			for _, r := range authority.Bundle().Roots {
				roots[ca.Fingerprint(r)] = true
			}
			_, s, cerr, serr := meet(client, serving)
			if cerr != nil || serr != nil {
				t.Fatalf("minute %d: %v, %v", minute, cerr, serr)
			}
			if got := PeerOf(&s).ID.String(); got != clientID {
				t.Fatalf("minute %d: the client is %q", minute, got)
			}
			if minute%12 == 0 {
				if err := request(); err != nil {
					t.Fatalf("minute %d: %v", minute, err)
				}
			}
			m, err := cs.Current()
			if err != nil {
				t.Fatal(err)
			}
			if m.Certificate != last {
				last = m.Certificate
				rotations++
			}
			time.Sleep(3 * time.Minute)
		}
		if len(roots) < 3 || rotations < 22 {
			t.Errorf("%d roots and %d certificates in a day: too few to prove anything", len(roots), rotations)
		}
		stop()
		// The authority stays away: the last certificates hold to their end, and not
		// longer. Both were renewed at most 66 minutes ago, so they last for 54 more.
		down.Store(false)
		time.Sleep(65 * time.Minute)
		down.Store(true)
		time.Sleep(50 * time.Minute)
		if _, _, cerr, serr := meet(client, serving); cerr != nil || serr != nil {
			t.Errorf("before expiry: %v, %v", cerr, serr)
		}
		time.Sleep(2 * time.Hour)
		if _, _, cerr, serr := meet(client, serving); cerr == nil || serr == nil {
			t.Errorf("after expiry: %v, %v", cerr, serr)
		}
		for _, s := range []source.Source{cs, ss} {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		server.Stop()
		synctest.Wait()
	})
}

// requests serves over a network in memory and returns what makes one request of
// each kind: over HTTP/1.1 and HTTP/2 by net/http's client and by gRPC's, each on a
// connection that stays and on a new one.
func requests(t *testing.T, client, server *tls.Config) (request func() error, stop func()) {
	t.Helper()
	l, gl := bufconn.Listen(64<<10), bufconn.Listen(64<<10)
	config := server.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto+" "+PeerOf(r.TLS).ID.String())
	}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = web.Serve(tls.NewListener(l, config)) }()
	gs := grpc.NewServer(grpc.Creds(credentials.NewTLS(server)))
	healthpb.RegisterHealthServer(gs, health.NewServer())
	go func() { _ = gs.Serve(gl) }()

	var ends []func()
	var calls []func() error
	for _, protocol := range []string{"http/1.1", "h2"} {
		for _, fresh := range []bool{false, true} {
			config := client.Clone()
			config.NextProtos = []string{protocol}
			transport := &http.Transport{
				DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) },
				TLSClientConfig:   config,
				ForceAttemptHTTP2: protocol == "h2", DisableKeepAlives: fresh,
			}
			ends = append(ends, transport.CloseIdleConnections)
			want := map[string]string{"http/1.1": "HTTP/1.1 ", "h2": "HTTP/2.0 "}[protocol] + clientID
			calls = append(calls, func() error {
				resp, err := (&http.Client{Transport: transport}).Get("https://server/")
				if err != nil {
					return fmt.Errorf("%s: %w", protocol, err)
				}
				defer resp.Body.Close()
				if body, err := io.ReadAll(resp.Body); err != nil || string(body) != want {
					return fmt.Errorf("%s: %q, %v", protocol, body, err)
				}
				return nil
			})
		}
	}
	dial := func() *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///server", grpc.WithTransportCredentials(credentials.NewTLS(client)),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return gl.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	check := func(conn *grpc.ClientConn) error {
		_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		return err
	}
	kept := dial()
	ends = append(ends, func() { kept.Close() })
	calls = append(calls, func() error { return check(kept) }, func() error {
		conn := dial()
		defer conn.Close()
		return check(conn)
	})
	return func() error {
			for _, call := range calls {
				if err := call(); err != nil {
					return err
				}
			}
			return nil
		}, sync.OnceFunc(func() {
			for _, end := range ends {
				end()
			}
			gs.Stop()
			web.Close()
			synctest.Wait()
		})
}
