package ads

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// door is how clients come in: one for each gRPC server that the services are
// registered with.
type door struct {
	server *Server
	trust  source.Source // nil where nobody proves who it is
}

// gate is the aggregated discovery service behind a door.
type gate struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	door
}

// caller is who opened a stream; the zero value is somebody without a proof.
type caller struct {
	id       identity.ID
	address  string
	notAfter time.Time // of the certificate; zero without one
}

// caller reads and verifies the certificate of a stream's connection. The
// handshake has done so before, but streams are opened much later too, when the
// certificate may have expired or its root be gone.
func (d *door) caller(ctx context.Context) (caller, error) {
	var c caller
	p, ok := peer.FromContext(ctx)
	if ok && p.Addr != nil {
		c.address = p.Addr.String()
	}
	if d.trust == nil {
		return c, nil
	}
	var chain []*x509.Certificate
	if ok {
		if info, isTLS := p.AuthInfo.(credentials.TLSInfo); isTLS {
			chain = info.State.PeerCertificates
		}
	}
	if len(chain) == 0 {
		return c, status.Error(codes.Unauthenticated, "this stream needs a connection with a client certificate")
	}
	m, err := d.trust.Current()
	if err != nil {
		return c, status.Error(codes.Unavailable, "the server has no trust bundle now")
	}
	id, err := identity.VerifySVID(chain, m.Bundles, time.Now(), identity.UsageClient)
	if err != nil {
		if v, isVerify := errors.AsType[*identity.VerifyError](err); isVerify && v.Rule == identity.RuleExpired {
			return c, status.Error(codes.Unavailable, expiredText)
		}
		return c, status.Errorf(codes.Unauthenticated, "the client certificate is refused: %v", err)
	}
	c.id, c.notAfter = id, end(chain)
	return c, nil
}

// end is when the first certificate of a chain expires.
func end(chain []*x509.Certificate) time.Time {
	t := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(t) {
			t = c.NotAfter
		}
	}
	return t
}

const expiredText = "the client certificate of this connection has expired: connect again with the next one"

// admit holds a node against the caller's certificate: a client gets what is
// meant for its own namespace and service account, and nobody else's. A node
// that names no service account claims none.
func (c *caller) admit(client *translate.Client) error {
	if c.id.IsZero() {
		return nil
	}
	ns, sa, ok := c.id.Istio()
	switch {
	case !ok:
		return status.Errorf(codes.PermissionDenied, "node %q: the client certificate is for %s, which names no namespace and service account (/ns/NAMESPACE/sa/NAME)", client.ID, c.id)
	case client.Namespace != ns:
		return status.Errorf(codes.PermissionDenied, "node %q: its namespace is %q, and the client certificate is for %s", client.ID, client.Namespace, c.id)
	case client.ServiceAccount != "" && client.ServiceAccount != sa:
		return status.Errorf(codes.PermissionDenied, "node %q: its service account is %q, and the client certificate is for %s", client.ID, client.ServiceAccount, c.id)
	}
	client.ServiceAccount = sa
	client.Verified = policy.ServiceAccount{Namespace: ns, Name: sa}
	return nil
}

// until gives the context of a stream, which ends with the certificate behind it.
func (c *caller) until(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.notAfter.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, c.notAfter)
}

// DeltaAggregatedResources serves an incremental stream.
func (g *gate) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return g.serve(s.Context(), true, func(ctx context.Context, x *session) error {
		return delta.NewServer(ctx, x, x.stream).DeltaStreamHandler(s, resource.AnyType)
	})
}

// StreamAggregatedResources serves a state-of-the-world stream.
func (g *gate) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return g.serve(s.Context(), false, func(ctx context.Context, x *session) error {
		// Ordered streams send responses in the order they were made, across types.
		return sotw.NewServer(ctx, x, x.stream, sotw.WithOrderedADS()).StreamHandler(s, resource.AnyType)
	})
}

// serve runs one stream. Each has a handler of its own, so that the handler's
// cache knows who is at the other end.
func (g *gate) serve(stream context.Context, isDelta bool, run func(context.Context, *session) error) error {
	c, err := g.caller(stream)
	if err != nil {
		g.server.refused(&c, nil, err)
		return err
	}
	ctx, cancel := c.until(g.server.ctx)
	defer cancel()
	x := &session{store: g.server.store, stream: g.server.ledger.newStream(isDelta, &c), caller: &c}
	err = run(ctx, x)
	switch {
	case err == nil && g.server.ctx.Err() != nil:
		return status.Error(codes.Unavailable, "the server stops")
	case err == nil && ctx.Err() != nil:
		return status.Error(codes.Unavailable, expiredText)
	case status.Code(err) == codes.PermissionDenied, status.Code(err) == codes.InvalidArgument:
		g.server.refused(&c, x.node, err)
	}
	return err
}

// session is one stream's view of the store. It implements go-control-plane's
// cache; its methods are called by the stream's own goroutine.
type session struct {
	*store
	stream *stream
	caller *caller

	node   *corev3.Node // the last one that was held against the certificate
	client *translate.Client
}

// clientOf gives what is known of the client. A later request of a stream may
// bring another node, so every one is looked at.
func (x *session) clientOf(node *corev3.Node) (*translate.Client, error) {
	if node == x.node && x.client != nil {
		return x.client, nil
	}
	x.node, x.client = node, nil
	c, err := clientOf(node, x.caller)
	if err != nil {
		return nil, err
	}
	x.client = c
	x.stream.identified(c)
	return c, nil
}

// clientOf reads a node and holds it against who the caller has proved to be.
func clientOf(node *corev3.Node, by *caller) (*translate.Client, error) {
	c, err := translate.ClientOf(node)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := by.admit(c); err != nil {
		return nil, err
	}
	return c, nil
}

// CreateDeltaWatch implements go-control-plane's cache for incremental streams.
//
// Names in resource_names_subscribe are answered even if the client should have
// them, as the protocol asks, because it may have dropped them; only a stream's
// first request may say with initial_resource_versions that it still has some.
func (x *session) CreateDeltaWatch(req *cachev3.DeltaRequest, sub cachev3.Subscription, out chan cachev3.DeltaResponse) (func(), error) {
	c, err := x.clientOf(req.GetNode())
	if err != nil {
		return nil, err
	}
	names := sub.SubscribedResources()
	force := make(map[string]bool)
	for _, name := range req.GetResourceNamesSubscribe() {
		if _, has := req.GetInitialResourceVersions()[name]; !has {
			force[name] = true
		}
	}
	w := &watch{store: x.store, client: c, typeURL: req.GetTypeUrl(), known: knownOf(names, sub.ReturnedResources()),
		wildcard: sub.IsWildcard() && req.GetResponseNonce() == ""}
	w.send = func(r *reply) bool {
		return offerTo(out, cachev3.DeltaResponse(newDeltaReply(req, r)))
	}
	if !translate.Supported(req.GetTypeUrl()) {
		return x.refuseType(w, names, force)
	}
	return x.open(w, names, force)
}

// CreateWatch implements go-control-plane's cache for state-of-the-world streams.
//
// The first answer of a stream always holds everything, whatever version the
// client says it has: a version can not tell that a name was dropped and asked for again in between.
func (x *session) CreateWatch(req *cachev3.Request, sub cachev3.Subscription, out chan cachev3.Response) (func(), error) {
	c, err := x.clientOf(req.GetNode())
	if err != nil {
		return nil, err
	}
	names := sub.SubscribedResources()
	w := &watch{store: x.store, client: c, typeURL: req.GetTypeUrl(), known: knownOf(names, sub.ReturnedResources()),
		wildcard: sub.IsWildcard() && req.GetResponseNonce() == ""}
	w.send = func(r *reply) bool {
		return offerTo(out, cachev3.Response(newStateReply(req, w, r)))
	}
	if !translate.Supported(req.GetTypeUrl()) {
		return x.refuseType(w, names, nil)
	}
	return x.open(w, names, nil)
}

// maxRefusals is how many refused streams and connections are remembered for the status page, and how
// many are logged in a second: anyone who reaches the port can cause them.
const maxRefusals = 20

// Refusal is a stream that was not served, or a connection whose handshake failed.
type Refusal struct {
	At       time.Time `json:"at"`
	Address  string    `json:"address"`
	Identity string    `json:"identity,omitempty"` // verified
	Node     string    `json:"node,omitempty"`     // as the client says
	Reason   string    `json:"reason"`
}

// refused logs a stream that is not served and remembers it for the status page.
func (s *Server) refused(c *caller, node *corev3.Node, err error) {
	r := Refusal{Address: c.address, Identity: c.id.String(), Node: node.GetId(), Reason: status.Convert(err).Message()}
	if len(r.Node) > maxText {
		r.Node = fmt.Sprintf("%.*s...", maxText, r.Node)
	}
	s.remember("stream refused", r)
}

// remember logs a refusal, unless there are too many, and keeps it for the status page.
func (s *Server) remember(what string, r Refusal) {
	r.At = time.Now()
	s.refusals.mu.Lock()
	defer s.refusals.mu.Unlock()
	if r.At.Sub(s.refusals.second) >= time.Second {
		s.refusals.second, s.refusals.inSecond = r.At, 0
	}
	if s.refusals.inSecond++; s.refusals.inSecond <= maxRefusals {
		s.log.Warn(what, "address", r.Address, "identity", r.Identity, "node", r.Node, "reason", r.Reason)
	}
	s.refusals.last = append(s.refusals.last, r)
	if n := len(s.refusals.last) - maxRefusals; n > 0 {
		s.refusals.last = slices.Delete(s.refusals.last, 0, n)
	}
}

// maxText bounds what is kept of a client's own words.
const maxText = 256
