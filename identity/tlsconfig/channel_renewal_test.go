package tlsconfig

import (
	"crypto/x509"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
)

// Who keeps a connection for long learns of a new certificate.
func TestChannelTellsItsCertificate(t *testing.T) {
	root := newRoot(t, "root")
	first, second := sign(t, leafTemplate(t, "spiffe://td/ns/a/sa/b"), root), sign(t, leafTemplate(t, "spiffe://td/ns/a/sa/b"), root)
	src := holder(t, pair(first), root)
	creds, ok := ChannelCredentials(src, identity.ID{}, "").(interface {
		Certificate() (*x509.Certificate, <-chan struct{})
	})
	if !ok {
		t.Fatal("the credentials do not tell")
	}
	leaf, changed := creds.Certificate()
	if leaf == nil || !leaf.Equal(first.cert) {
		t.Fatalf("%v", leaf)
	}
	select {
	case <-changed:
		t.Fatal("changed without a change")
	default:
	}
	if err := src.Set(material(t, pair(second), root)); err != nil {
		t.Fatal(err)
	}
	<-changed
	if leaf, _ := creds.Certificate(); leaf == nil || !leaf.Equal(second.cert) {
		t.Errorf("%v", leaf)
	}
	if err := src.Set(material(t, nil, root)); err != nil {
		t.Fatal(err)
	}
	if leaf, _ := creds.Certificate(); leaf != nil {
		t.Errorf("%v", leaf)
	}
}
