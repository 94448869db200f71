package mesh

import (
	"log/slog"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// TestOwnIdentityIsWithdrawn: after Close nothing in the process can open the
// caller's source through the bootstrap that gRPC was given.
func TestOwnIdentityIsWithdrawn(t *testing.T) {
	src, err := source.NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bootstrap.Parse([]byte(`{"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}], "node": {"id": "a"}}`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := newIdentities(&config{identity: src, log: slog.Default()}, b)
	if err != nil {
		t.Fatal(err)
	}
	own := s.providers["default"]
	if use, err := s.source(snapshot.CertificateSource{Instance: "default"}, snapshot.TrustSource{Instance: "default"}); err != nil {
		t.Fatal(err)
	} else if err := use.Close(); err != nil {
		t.Fatal(err)
	}
	s.close()
	if use, err := source.Shared(own.Plugin, own.Config, slog.Default()); err == nil {
		_ = use.Close()
		t.Error("the source can still be opened")
	}
}

func TestAddress(t *testing.T) {
	for _, c := range []struct{ id, ips, want string }{
		{"sidecar~10.0.0.7~a.default~x", "10.0.0.9, 10.0.0.10", "10.0.0.9"},
		{"sidecar~10.0.0.7~a.default~x", "", "10.0.0.7"},
		{"sidecar~10.0.0.7~a.default~x", "none", "10.0.0.7"},
		{"somebody", "", "somebody"},
		{"a~b~c~d", "", "a~b~c~d"},
	} {
		node := &corev3.Node{Id: c.id, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"INSTANCE_IPS": structpb.NewStringValue(c.ips)}}}
		if got := address(node); got != c.want {
			t.Errorf("%q, %q: %q, want %q", c.id, c.ips, got, c.want)
		}
	}
}
