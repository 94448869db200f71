package meshgrpc

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/peer"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// sharedSource lets a source of the test's be opened and closed by the channels.
func sharedSource(src source.Source, opened *atomic.Int64) func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) {
	return func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) {
		opened.Add(1)
		return &countedSource{src, opened}, nil
	}
}

type countedSource struct {
	source.Source
	opened *atomic.Int64
}

func (c *countedSource) Close() error {
	c.opened.Add(-1)
	return nil
}

func mutualTLS(sans ...string) *snapshot.ClientTLS {
	p := &snapshot.ClientTLS{Certificate: snapshot.CertificateSource{Instance: "default"}, Trust: snapshot.TrustSource{Instance: "default"}}
	for _, s := range sans {
		p.SANs = append(p.SANs, identity.SANExact(identity.SANURI, s))
	}
	return p
}

func TestMeshTLS(t *testing.T) {
	leak.Check(t)
	ca := newAuthority(t)
	client, server := static(t, ca.material(t, ca.issue(t, webID))), static(t, ca.material(t, ca.issue(t, reviewsID)))
	secure, open := newGoverned(t, false, server, strict(), nil), newBackend(t, "open", nil)
	var opened atomic.Int64
	w := newMeshWorld(t)
	mixed := mcluster("c", secure.address, open.address)
	mixed.Sockets = []snapshot.SocketMatch{{Criteria: map[string]string{"tlsMode": "istio"}, TLS: mutualTLS(reviewsID)}, {}}
	mixed.Endpoints = lb.NewEndpoints([]lb.Endpoint{
		{Address: secure.address, Weight: 1, Socket: map[string]string{"tlsMode": "istio"}},
		{Address: open.address, Weight: 1},
	}, nil)
	w.set([]*snapshot.Cluster{mixed}, mroute(t, "c"))
	cc, conn := dial(t, "mesh:///"+meshHost, w.options(sharedSource(client, &opened))...)

	// One channel: a secured endpoint and one in plaintext.
	kinds := map[string]int{}
	for range 10 {
		var p peer.Peer
		if _, err := cc.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.Peer(&p)); err != nil {
			t.Fatal(err)
		}
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			if p.Addr.String() != secure.address || info.SPIFFEID.String() != reviewsID {
				t.Errorf("TLS with %v as %v", p.Addr, info.SPIFFEID)
			}
			kinds["tls"]++
		} else if p.Addr.String() == open.address {
			kinds["plain"]++
		}
	}
	if kinds["tls"] != 5 || kinds["plain"] != 5 {
		t.Errorf("%v", kinds)
	}

	// Another name is refused, and nothing was sent.
	before := secure.calls.Load()
	other := mcluster("c", secure.address)
	other.TLS = mutualTLS("spiffe://td.example/ns/shop/sa/other")
	w.set([]*snapshot.Cluster{other}, mroute(t, "c"))
	_, err := cc.UnaryCall(testContext(t), &pb.SimpleRequest{})
	wantCode(t, err, codes.Unavailable)
	var refused *outbound.TLSError
	var verify *identity.VerifyError
	if !errors.As(err, &refused) || !errors.As(err, &verify) || refused.Endpoint != secure.address {
		t.Errorf("%T %v", err, err)
	}
	// Plaintext to a server that wants TLS, and TLS to one without: neither works.
	w.set([]*snapshot.Cluster{mcluster("c", secure.address)}, mroute(t, "c"))
	_, err = cc.UnaryCall(testContext(t), &pb.SimpleRequest{})
	wantCode(t, err, codes.PermissionDenied)
	toOpen := mcluster("c", open.address)
	toOpen.TLS = mutualTLS()
	opencalls := open.calls.Load()
	w.set([]*snapshot.Cluster{toOpen}, mroute(t, "c"))
	_, err = cc.UnaryCall(testContext(t), &pb.SimpleRequest{})
	wantCode(t, err, codes.Unavailable)
	if secure.calls.Load() != before || open.calls.Load() != opencalls {
		t.Error("a refused connection has carried an RPC")
	}
	// And back: what policy asks for now counts.
	right := mcluster("c", secure.address)
	right.TLS = mutualTLS(reviewsID)
	w.set([]*snapshot.Cluster{right}, mroute(t, "c"))
	if _, err := cc.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
		t.Error(err)
	}
	w.quiet(t)
	conn.Close()
	eventually(t, func() string {
		if opened.Load() != 0 {
			return "identity sources are left open"
		}
		return ""
	})
}

// TestMeshCredentialsReplaced: with other credentials on the channel nothing
// goes to an endpoint that policy wants secured, whatever they are.
func TestMeshCredentialsReplaced(t *testing.T) {
	leak.Check(t)
	open := newBackend(t, "open", nil)
	w := newMeshWorld(t)
	c := mcluster("c", open.address)
	c.TLS = mutualTLS(reviewsID)
	w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
	var opened atomic.Int64
	cc, _ := dial(t, "mesh:///"+meshHost, append(w.options(sharedSource(static(t, nil), &opened)), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	_, err := cc.UnaryCall(testContext(t), &pb.SimpleRequest{})
	wantCode(t, err, codes.Unavailable)
	var refused *outbound.TLSError
	if !errors.As(err, &refused) || open.calls.Load() != 0 {
		t.Errorf("%T %v, %d calls", err, err, open.calls.Load())
	}
	// Without sources neither.
	cc, _ = w.dial(t)
	if _, err = cc.UnaryCall(testContext(t), &pb.SimpleRequest{}); !errors.As(err, &refused) || open.calls.Load() != 0 {
		t.Errorf("%T %v, %d calls", err, err, open.calls.Load())
	}
	w.set([]*snapshot.Cluster{mcluster("c", open.address)}, mroute(t, "c"))
	if _, err = cc.UnaryCall(testContext(t), &pb.SimpleRequest{}); err != nil {
		t.Error(err)
	}
}

// TestMeshFirstCertificate: an RPC waits for a certificate that is on its way.
func TestMeshFirstCertificate(t *testing.T) {
	leak.Check(t)
	ca := newAuthority(t)
	client, server := static(t, nil), static(t, ca.material(t, ca.issue(t, reviewsID)))
	secure := newGoverned(t, false, server, strict(), nil)
	w := newMeshWorld(t)
	c := mcluster("c", secure.address)
	c.TLS = mutualTLS(reviewsID)
	w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
	var opened atomic.Int64
	cc, _ := dial(t, "mesh:///"+meshHost, w.options(sharedSource(client, &opened))...)
	done := make(chan error)
	go func() {
		_, err := cc.UnaryCall(testContext(t), &pb.SimpleRequest{})
		done <- err
	}()
	eventually(t, func() string {
		if opened.Load() == 0 {
			return "no source was opened"
		}
		return ""
	})
	if err := client.Set(ca.material(t, ca.issue(t, webID))); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestMeshRotation: after a rotation RPCs go over new connections, with the new
// certificate, while open streams go on over the old one and none fails.
func TestMeshRotation(t *testing.T) {
	leak.Check(t)
	ca := newAuthority(t)
	client, server := static(t, ca.material(t, ca.issue(t, webID))), static(t, ca.material(t, ca.issue(t, reviewsID)))
	secure := newGoverned(t, false, server, strict(), nil)
	w := newMeshWorld(t)
	c := mcluster("c", secure.address)
	c.TLS = mutualTLS(reviewsID)
	w.set([]*snapshot.Cluster{c}, mroute(t, "c"))
	var opened atomic.Int64
	cc, _ := dial(t, "mesh:///"+meshHost, w.options(sharedSource(client, &opened))...)
	local := func() string {
		var p peer.Peer
		if _, err := cc.UnaryCall(testContext(t), &pb.SimpleRequest{}, grpc.Peer(&p)); err != nil {
			t.Fatal(err)
		}
		return p.LocalAddr.String()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := cc.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(s); err != nil {
		t.Fatal(err)
	}
	before := local()
	if before != local() {
		t.Error("two connections without a reason")
	}
	if err := client.Set(ca.material(t, ca.issue(t, webID))); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if local() == before {
			return "RPCs still use the connection of the old certificate"
		}
		return ""
	})
	if err := exchange(s); err != nil {
		t.Errorf("the open stream: %v", err)
	}
	_ = s.CloseSend()
	cancel()
	w.quiet(t)
}
