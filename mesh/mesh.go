// Package mesh is the face of Sinew: a service mesh that a Go service imports
// instead of running a sidecar. One Mesh per process gives an HTTP client, an
// HTTP middleware and server, gRPC dial and server options, all under the
// policy that a management server sends over xDS.
//
//	m, err := mesh.New(ctx)
//	defer m.Close()
//	resp, err := m.Client().Get("http://reviews:9080/reviews/0")
//	err = m.Serve(ctx, ":9080", handler)
//
// Under it the house has four floors, and a package imports only downwards:
//
//	transport/meshhttp, meshgrpc, telemetry              adapters: the wire
//	transport/outbound, inbound                          engines: live state, the steps of one request
//	internal/snapshot, internal/xds/..., identity/...    policy: xDS resources, compiled and immutable; certificates
//	routing, routing/lb, resilience, identity            rules: pure values and functions
//
// A program meets three of these packages: mesh, identity (who calls:
// identity.PeerFromContext), and identity/source where it brings certificates
// of its own. Package mesh/meshtest is for its tests.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/internal/xds/client"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/meshhttp"
	"github.com/sinew-mesh/sinew/transport/outbound"
	"github.com/sinew-mesh/sinew/transport/telemetry"
)

// Mesh is one process's part in the mesh. Its methods may be called concurrently.
type Mesh struct {
	config    *config
	log       *slog.Logger
	bootstrap *bootstrap.Config // nil without a control plane
	xds       *client.Client    // nil without a control plane
	telemetry *telemetry.Telemetry
	outbound  *outbound.Engine
	inbound   *inbound.Engine
	transport *meshhttp.RoundTripper
	identity  *identities
	loads     loads
	reporting sync.Mutex            // held while loads are taken
	trouble   atomic.Pointer[error] // why the control plane is out of reach
	connected atomic.Bool           // to a control plane, at present or once
	close     sync.Once
}

// New joins the mesh. It returns at once: policy comes over xDS when it is
// first asked for, and requests wait for it (see WithPolicyWait). The context
// bounds only New itself; Close ends the Mesh.
//
// The bootstrap is the first of WithBootstrap, WithBootstrapFile, the file
// that $GRPC_XDS_BOOTSTRAP names and the content of
// $GRPC_XDS_BOOTSTRAP_CONFIG. Without any, and without WithoutControlPlane,
// the error is ErrNoBootstrap.
func New(ctx context.Context, options ...Option) (*Mesh, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	config, err := newConfig(options)
	if err != nil {
		return nil, err
	}
	m := &Mesh{config: config, log: config.log}
	if m.bootstrap, err = config.readBootstrap(); err != nil {
		return nil, err
	}
	m.telemetry, err = telemetry.New(telemetry.Options{
		TracerProvider: config.tracerProvider,
		MeterProvider:  config.meterProvider,
	})
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	if m.identity, err = newIdentities(config, m.bootstrap); err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	out := outbound.Options{
		PolicyWait: config.policyWait,
		NewWire:    meshhttp.NewWire(m.identity.source),
		Checker:    meshhttp.Checker{},
		Observer:   m.telemetry.Observer(),
	}
	in := inbound.Options{
		PolicyWait: config.policyWait,
		Source:     m.identity.source,
		DialGRPC:   m.dialAuthorizer,
		KeyRanges:  config.keyNetworks,
		Shedding:   config.shedding,
		Observer:   m.telemetry.InboundObserver(),
		Log:        m.log,
	}
	if config.external == PassExternal {
		// The route's name stands in errors, where it tells who has misspelt a
		// service that the control plane knows no such host.
		route := outbound.PassRoute
		if m.bootstrap != nil {
			route = outbound.OutsideRoute
		}
		out.External = func(host string) (*snapshot.Host, *snapshot.Cluster) { return config.policy.host(host, route) }
	}
	if m.bootstrap != nil {
		node := m.bootstrap.Node
		out.Client = node.GetId()
		out.Source.Address = address(node)
		out.Locality = lb.Locality{Region: node.GetLocality().GetRegion(), Zone: node.GetLocality().GetZone(), SubZone: node.GetLocality().GetSubZone()}
		out.Subscribe = func(host string) { m.xds.Subscribe(host) }
		out.SubscribeCluster = func(name string) { m.xds.SubscribeCluster(name) }
		out.Trouble, in.Trouble = m.controlPlaneTrouble, m.controlPlaneTrouble
		if m.bootstrap.InboundTemplate != "" {
			in.Subscribe = func(address string) { m.xds.SubscribeInbound(address) }
		}
	}
	m.outbound = outbound.New(out)
	m.transport = meshhttp.NewRoundTripper(m.outbound, meshhttp.ClientOptions{
		Observer: out.Observer,
		Inject:   m.telemetry.Inject,
		Replay:   config.replay,
	})
	in.HTTP = m.transport
	m.inbound = inbound.New(in)
	m.loads = loads{inbound: m.inbound, outbound: m.outbound}
	if m.bootstrap != nil {
		m.xds, err = client.New(client.Options{
			Bootstrap:  m.bootstrap,
			Log:        m.log,
			OnSnapshot: m.install,
			Events:     m.events(),
			// Requests wait by themselves, each up to its own deadline.
			ReadyWait:   math.MaxInt64,
			Credentials: m.identity.channel,
			Loads:       m.takeLoads,
		})
		if err != nil {
			m.inbound.Close()
			m.outbound.Close()
			m.identity.close()
			return nil, fmt.Errorf("mesh: %w", err)
		}
	}
	return m, nil
}

// address returns this process's own address, for hashes of the source: the
// first that the control plane is told of, else the node's name, which tells
// processes apart as well.
func address(node *corev3.Node) string {
	fields := node.GetMetadata().GetFields()
	first, _, _ := strings.Cut(fields["INSTANCE_IPS"].GetStringValue(), ",")
	if ip, err := netip.ParseAddr(strings.TrimSpace(first)); err == nil {
		return ip.String()
	}
	// Istio's form of a name is "sidecar~10.0.0.7~reviews-v1.default~default.svc.cluster.local".
	if parts := strings.Split(node.GetId(), "~"); len(parts) == 4 {
		if ip, err := netip.ParseAddr(parts[1]); err == nil {
			return ip.String()
		}
	}
	return node.GetId()
}

func (c *config) readBootstrap() (*bootstrap.Config, error) {
	var b *bootstrap.Config
	var err error
	switch {
	case c.standalone:
		return nil, nil
	case c.bootstrap != nil:
		b, err = bootstrap.Parse(c.bootstrap)
	case c.bootstrapFile != "":
		b, err = bootstrap.FromFile(c.bootstrapFile)
	default:
		b, err = bootstrap.FromEnvironment()
		if errors.Is(err, bootstrap.ErrNone) {
			return nil, ErrNoBootstrap
		}
	}
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	return b, nil
}

// dialAuthorizer connects to an external authorizer, which is a service of the
// mesh: it is called with all the policy that it has as such.
func (m *Mesh) dialAuthorizer(target string) (grpc.ClientConnInterface, io.Closer, error) {
	conn, err := grpc.NewClient("mesh:///"+target, m.DialOptions()...)
	if err != nil {
		return nil, nil, err
	}
	return conn, conn, nil
}

// takeLoads is asked by each control plane in use; what one takes the others do not get.
func (m *Mesh) takeLoads() []client.Load {
	m.reporting.Lock()
	defer m.reporting.Unlock()
	return m.loads.take()
}

// install gives a new snapshot to both engines.
func (m *Mesh) install(s *snapshot.Snapshot) {
	m.outbound.Install(s)
	m.inbound.Install(s)
}

// events keeps the control plane's state for errors, and counts for telemetry.
func (m *Mesh) events() client.Events {
	return client.Events{
		Connected: func(string, string) {
			m.trouble.Store(nil)
			m.connected.Store(true)
			m.telemetry.XDSConnected(true)
		},
		Disconnected: func(server string, err error) {
			if err == nil {
				err = errors.New("the stream ended")
			}
			err = fmt.Errorf("control plane %s: %w", server, err)
			m.trouble.Store(&err)
			m.telemetry.XDSConnected(false)
		},
		Update: func(typeURL, _, _ string) { m.telemetry.XDSUpdate(typeURL) },
		NACK:   func(_, typeURL, _ string, _ error) { m.telemetry.XDSNack(typeURL) },
	}
}

// controlPlaneTrouble says why there is no policy. While there has been no
// connection it may be for want of a certificate to make one with.
func (m *Mesh) controlPlaneTrouble() error {
	var err error
	switch t := m.trouble.Load(); {
	case t != nil:
		err = *t
	case m.connected.Load():
		return nil
	}
	return errors.Join(err, m.identity.trouble())
}

// Close leaves the mesh: the control plane's stream ends, requests that wait
// for policy fail with ErrClosed, connections close when they are idle.
// Requests in flight go on. Servers are the caller's to stop first: Serve by its
// context. It may be called again; the error is always nil.
func (m *Mesh) Close() error {
	m.close.Do(func() {
		if m.xds != nil {
			m.xds.Close()
		}
		m.outbound.Close()
		m.inbound.Close()
		m.transport.Close()
		m.identity.close()
	})
	return nil
}

// Client returns a new *http.Client on RoundTripper. It has no timeout of its
// own: routes have theirs.
func (m *Mesh) Client() *http.Client { return &http.Client{Transport: m.transport} }

// RoundTripper returns the client side for an *http.Client of your own. The
// host of a request's URL is the service; Host, if it differs, is sent as it is.
func (m *Mesh) RoundTripper() http.RoundTripper { return m.transport }

// Handler wraps a server's handler: spans and metrics of requests, and the
// policy of the listener that they came in on. It finds the listener by the
// connection's local address (http.LocalAddrContextKey), so it works under any
// *http.Server. The handler it wraps finds the caller by identity.PeerFromContext.
//
// A request that policy does not let in is answered with JSON, a
// meshhttp.Refusal: 403 for a caller that may not call, 401 for a token that is
// missing or bad, 429 beyond a rate limit, 503 where the listener's policy has
// not come (see WithPolicyWait) or there is too much to do, 504 where the
// request's time has passed.
//
// A plain http.Server accepts HTTP/2 without TLS (h2c) only where its
// Protocols have SetUnencryptedHTTP2(true); Serve sets that.
func (m *Mesh) Handler(next http.Handler) http.Handler {
	return m.telemetry.Handler(meshhttp.Handler(m.inbound, m.log, next))
}

// Listen announces on the local network address as net.Listen does, and asks
// for the listener's policy, which says whether connections must be mutual TLS
// (STRICT), may be (PERMISSIVE) or are plaintext. Serve HTTP through Handler, or
// gRPC with ServerOptions, on it: the listener sees to TLS, and they to who may
// call. Connections with TLS are *tls.Conn whose handshake is complete, so that
// net/http serves HTTP/2 on them. The context bounds only Listen itself.
func (m *Mesh) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	m.inbound.Listening(lis.Addr())
	return meshhttp.NewListener(m.inbound, lis, m.log), nil
}

// Serve listens on the TCP address and serves the handler, wrapped by Handler,
// until the context ends; then it drains (see WithDrainTimeout). HTTP/1.1 and
// HTTP/2 share the port, with TLS or without. It returns nil after a full drain,
// context.DeadlineExceeded where requests were cut off, and at once the error of
// an address that can not be listened on.
func (m *Mesh) Serve(ctx context.Context, address string, handler http.Handler) error {
	lis, err := m.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return m.ServeListener(ctx, lis, handler)
}

// ServeListener is Serve on a listener of Listen: for a port that the system
// chooses, whose number is needed before requests come. It closes the listener.
func (m *Mesh) ServeListener(ctx context.Context, lis net.Listener, handler http.Handler) error {
	if err := meshhttp.Serve(ctx, lis, m.Handler(handler), m.config.drain); err != nil {
		return fmt.Errorf("mesh: serving %s: %w", lis.Addr(), err)
	}
	return nil
}
