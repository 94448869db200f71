package outbound

import (
	"slices"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

func TestProtocols(t *testing.T) {
	const one, two = tlsconfig.ProtocolHTTP1, tlsconfig.ProtocolHTTP2
	for _, c := range []struct {
		protocol string
		verify   snapshot.Verification
		listed   []string
		want     string
	}{
		{one, snapshot.VerifySPIFFE, nil, "http/1.1 istio"},
		{two, snapshot.VerifySPIFFE, nil, "h2 istio"},
		{two, snapshot.VerifySPIFFE, []string{"istio-peer-exchange", "istio", "h2"}, "h2 istio-peer-exchange istio"},
		{one, snapshot.VerifySPIFFE, []string{"istio-h2", "istio-http/1.1", "istio", "http/1.1"}, "http/1.1 istio"},
		{one, snapshot.VerifyName, nil, "http/1.1"},
		{two, snapshot.VerifySANs, []string{"h2", "http/1.1", "own"}, "h2 own"},
	} {
		policy := &snapshot.ClientTLS{Verify: c.verify, Protocols: c.listed}
		got := strings.Join(ClientTLS(source.System(), policy, "svc", c.protocol).NextProtos, " ")
		if got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// TestClientTLS: each field of policy has its effect on the connection.
func TestClientTLS(t *testing.T) {
	src, err := source.NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	policy := full(t)
	policy.Protocols = []string{"own"}
	got := ClientTLS(src, policy, "host.example", tlsconfig.ProtocolHTTP2)
	if got.ServerName != policy.ServerName || got.MinVersion != policy.MinVersion || !slices.Equal(got.NextProtos, []string{"h2", "own"}) {
		t.Errorf("SNI %q, TLS %#x, ALPN %q", got.ServerName, got.MinVersion, got.NextProtos)
	}
	// A certificate that policy asks for and that has not come is no connection.
	if c, err := got.GetClientCertificate(nil); err == nil {
		t.Errorf("presents %v", c)
	}
	policy.Certificate, policy.ServerName = snapshot.CertificateSource{}, ""
	got = ClientTLS(src, policy, "host.example", tlsconfig.ProtocolHTTP2)
	if c, err := got.GetClientCertificate(nil); err != nil || len(c.Certificate) != 0 || got.ServerName != "host.example" {
		t.Errorf("presents %v, %v, SNI %q", c, err, got.ServerName)
	}
}
