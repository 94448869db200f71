package meshhttp

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// TestServerWithoutCertificate: a server that gets no certificate in time says so in TLS, so
// that the client does not take it for a broken network, and counts the handshake.
func TestServerWithoutCertificate(t *testing.T) {
	leak.Check(t)
	h := newHouse(t, strict(nil), http.HandlerFunc(who), func(o *inbound.Options) {
		o.PolicyWait = 50 * time.Millisecond
		o.Source = func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) {
			return source.NewStatic(nil)
		}
	})
	d := &tls.Dialer{Config: h.as(t, h.ca.issue(t, "client", time.Hour), "h2")}
	conn, err := d.DialContext(t.Context(), "tcp", h.address)
	if err == nil {
		conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "remote error: tls: internal error") {
		t.Errorf("error %v, want the server's alert", err)
	}
	if rule := h.seen.failed(t); rule != inbound.HandshakeNotReady {
		t.Errorf("counted as %q, want %q", rule, inbound.HandshakeNotReady)
	}
}

// TestFirstCertificate: whoever comes before the server's first certificate waits for it.
func TestFirstCertificate(t *testing.T) {
	leak.Check(t)
	first, err := source.NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, strict(nil), http.HandlerFunc(who), func(o *inbound.Options) {
		o.PolicyWait = time.Minute
		o.Source = func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return first, nil }
	})
	connected := make(chan error, 1)
	d := &tls.Dialer{Config: h.as(t, h.ca.issue(t, "client", time.Hour), "h2")}
	go func() {
		conn, err := d.DialContext(t.Context(), "tcp", h.address)
		if err == nil {
			conn.Close()
		}
		connected <- err
	}()
	select {
	case err := <-connected:
		t.Fatalf("before the certificate: %v", err)
	case <-time.After(50 * time.Millisecond): // it may not have come so far, but not further
	}
	m, err := h.source.Current()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Set(m); err != nil {
		t.Fatal(err)
	}
	if err := <-connected; err != nil {
		t.Error(err)
	}
}
