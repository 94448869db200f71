package inbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/hostile"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// TestOwnIdentity follows a connection of a member through the life of our own
// certificate: when it was renewed the connection is to be replaced, and when it has
// ended requests are refused as those that come before the first. Nobody tells
// the peer then that it is not believed.
func TestOwnIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		certificates := hostile.New(t, time.Now())
		static := sure(source.NewStatic(&source.Material{Certificate: certificates.Victim, Bundles: certificates.Bundles}))
		e := New(Options{Subscribe: func(string) {}, Log: slog.New(slog.DiscardHandler), Source: func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) {
			return static, nil
		}})
		defer e.Close()
		e.Install(&snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{"10.0.0.7:9080": {TLS: &snapshot.FilterChain{
			Socket: &snapshot.ServerTLS{RequireClientCertificate: true, Certificate: snapshot.CertificateSource{Instance: "default"}},
		}}}})
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		local := at(t, "10.0.0.7:9080")
		c := e.Open(local, remoteAddr(), server.Close)
		go func() {
			conn := tls.Client(client, (&hostile.Case{Certificate: certificates.Cases[0].Certificate}).Attacker())
			_ = conn.Handshake()
			_, _ = conn.Read(make([]byte, 1))
		}()
		if _, err := c.Handshake(t.Context(), server, time.Minute); err != nil {
			t.Fatal(err)
		}
		admit := func() (closing bool, err error) {
			r, a := incoming("/", map[string][]string{"X-Forwarded-Client-Cert": {"forged"}, "X-Envoy-Original-Path": {"/kept"}}), new(Admission)
			r.Conn = e.Conn(local)
			err = e.Admit(t.Context(), r, a)
			if got := fmt.Sprint(r.Access.Header); err == nil && got != "map[X-Envoy-Original-Path:[/kept]]" {
				t.Errorf("the handler gets %s", got)
			}
			return a.CloseConnection, err
		}
		if closing, err := admit(); err != nil || closing {
			t.Fatalf("closing %v, %v", closing, err)
		}
		if err := static.Set(&source.Material{Certificate: certificates.Cases[0].Certificate, Bundles: certificates.Bundles}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if closing, err := admit(); err != nil || !closing {
			t.Errorf("with another certificate: closing %v, %v", closing, err)
		}
		time.Sleep(time.Until(sure(static.Current()).NotAfter) + time.Second)
		closing, err := admit()
		var notReady *NotReadyError
		var denied *DeniedError
		if !errors.As(err, &notReady) || notReady.Address != "10.0.0.7:9080" || errors.As(err, &denied) || !errors.Is(err, source.ErrNotReady) || !closing {
			t.Errorf("without an identity: %v, closing %v", err, closing)
		}
	})
}

// TestOpenConnectionsAreHeldToPolicy: a connection that makes no further request
// is closed a grace after it has become one that would not be accepted, unless
// it has become acceptable again.
func TestOpenConnectionsAreHeldToPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		certificates := hostile.New(t, time.Now())
		own := &source.Material{Certificate: certificates.Victim, Bundles: certificates.Bundles}
		static := sure(source.NewStatic(own))
		e := New(Options{Subscribe: func(string) {}, Log: slog.New(slog.DiscardHandler), Source: func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) {
			return static, nil
		}})
		defer e.Close()
		secure := &snapshot.FilterChain{Socket: &snapshot.ServerTLS{RequireClientCertificate: true, Certificate: snapshot.CertificateSource{Instance: "default"}}}
		install := func(plain bool) {
			in := &snapshot.Inbound{TLS: secure}
			if plain {
				in.Plain = &snapshot.FilterChain{}
			}
			e.Install(&snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{"10.0.0.7:9080": in}})
			synctest.Wait()
		}
		install(true)
		connect := func(certificate *tls.Certificate) (closed *atomic.Bool) {
			closed = new(atomic.Bool)
			local, client, server := at(t, "10.0.0.7:9080"), net.Conn(nil), net.Conn(nil)
			client, server = net.Pipe()
			t.Cleanup(func() { client.Close(); server.Close() })
			c := e.Open(local, remoteAddr(), func() error { closed.Store(true); return server.Close() })
			if certificate == nil {
				return closed
			}
			go func() {
				conn := tls.Client(client, (&hostile.Case{Certificate: certificate}).Attacker())
				_ = conn.Handshake()
				_, _ = conn.Read(make([]byte, 1))
			}()
			if _, err := c.Handshake(context.Background(), server, time.Second); err != nil {
				t.Fatal(err)
			}
			return closed
		}
		var good *tls.Certificate
		for i := range certificates.Cases {
			if certificates.Cases[i].Good() {
				good = certificates.Cases[i].Certificate
				break
			}
		}
		plaintext, secured := connect(nil), connect(good)

		install(false)
		time.Sleep(sweepGrace / 2)
		install(true)
		time.Sleep(sweepGrace)
		if plaintext.Load() || secured.Load() {
			t.Fatal("closed, though both are acceptable again")
		}
		install(false)
		time.Sleep(sweepGrace - time.Second)
		if plaintext.Load() {
			t.Error("plaintext is closed before the grace is over")
		}
		time.Sleep(2 * time.Second)
		if !plaintext.Load() || secured.Load() {
			t.Errorf("after STRICT: plaintext closed %v, mutual TLS closed %v", plaintext.Load(), secured.Load())
		}
		// The roots of the peer's trust domain are replaced by others.
		foreign := hostile.New(t, time.Now())
		own2 := *own
		own2.Bundles = identity.BundleSet{}
		for td, b := range foreign.Bundles {
			own2.Bundles[td] = b
		}
		if err := static.Set(&own2); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if secured.Load() {
			t.Error("mutual TLS is closed before the grace is over")
		}
		time.Sleep(sweepGrace + time.Second)
		if !secured.Load() {
			t.Error("a peer whose root is gone keeps its connection")
		}
	})
}
