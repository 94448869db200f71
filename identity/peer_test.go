package identity

import (
	"fmt"
	"testing"
)

// TestPeerText: a peer in a log line says who it is, and nothing of its certificate.
func TestPeerText(t *testing.T) {
	id, err := ParseID("spiffe://cluster.local/ns/shop/sa/web")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		peer *Peer
		want string
	}{
		"identity":         {&Peer{TLS: true, ID: id}, "spiffe://cluster.local/ns/shop/sa/web"},
		"no certificate":   {PeerOfChain(nil), "TLS without identity"},
		"another identity": {&Peer{TLS: true, DNSNames: []string{"a.example"}}, "TLS without identity"},
		"plaintext":        {PlaintextPeer(), "plaintext"},
		"none":             {nil, "no peer"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := fmt.Sprintf("%v", test.peer); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
