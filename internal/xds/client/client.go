// Package client is the xDS client: it keeps streams to the control plane,
// asks for the resources that the hosts in use need, and yields snapshots in
// which every host is complete and consistent.
//
// One goroutine, the loop, owns all state. Streams, timers and callers post
// what happened to its mailbox; after each batch the loop resolves what
// changed, sends requests and publishes at most one snapshot. Nothing here is
// on the path of a request: the engine reads the published snapshot.
//
//	mailbox -> resources (store, versions, ACK or NACK)
//	        -> graph     (listener -> routes -> clusters -> endpoints, per host)
//	        -> servers   (fallback, requests)
//	        -> snapshot
//
// The behaviour follows the xDS protocol specification of Envoy and gRFCs
// A27, A46 (bad resources beside good ones), A53 and A88 (deletions and data
// errors), A57 (timers), A71 (fallback) and A74 (consistent configurations).
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// Defaults of Options.
const (
	DefaultIdleTimeout      = 10 * time.Minute
	DefaultMaxSubscriptions = 10_000
	DefaultReadyWait        = 15 * time.Second
)

// UserAgent is the node's user_agent_name.
const UserAgent = "sinew"

// Options configure a client.
type Options struct {
	// Bootstrap names the servers and this node. Required.
	Bootstrap *bootstrap.Config
	// OnSnapshot receives each new snapshot, in order and never concurrently.
	// It runs on the client's loop: it must be quick, and must not call Status
	// or Close. Required.
	OnSnapshot func(*snapshot.Snapshot)
	// Log receives what an operator wants to know. Default: discarded.
	Log *slog.Logger
	// Events are callbacks for telemetry.
	Events Events
	// IdleTimeout ends the subscription of a host that no request used for so
	// long (up to a quarter longer, the interval of the sweep). Default 10 min.
	IdleTimeout time.Duration
	// MaxSubscriptions bounds the hosts subscribed at one time. Beyond it the
	// host unused for longest makes room; where every host was used since the
	// last sweep, the new one is refused for a short time. Default 10,000.
	MaxSubscriptions int
	// ReadyWait is how long a host stays without an answer while no server can
	// be reached, before it is published with an error. Until then requests
	// to it wait. Negative means that it fails as soon as the servers are
	// known to be out of reach, as gRPC does. Default 15 s.
	ReadyWait time.Duration
	// UserAgentVersion is the node's user_agent_version. Default: as in the bootstrap.
	UserAgentVersion string
	// Credentials makes the channel credentials of a server whose first known
	// ones are of type "certificate_provider" (bootstrap.ParseProviderCreds
	// reads their configuration). It is called in New, once for each such
	// server. Default: such a server is an error.
	Credentials bootstrap.CredentialsFunc
	// Loads returns what the process has counted since it was called last; it is
	// asked at the interval that a server with a load reporting service wants.
	// Default: nothing is reported.
	Loads func() []Load
	// DialOptions are added after the client's own, so they win.
	DialOptions []grpc.DialOption
}

// Events are callbacks for telemetry; each may be nil. They run on the
// client's loop, one at a time, under the same conditions as OnSnapshot.
type Events struct {
	// Connected reports a new stream; protocol is "delta" or "sotw".
	Connected func(server, protocol string)
	// Disconnected reports a stream that ended or could not be made.
	Disconnected func(server string, err error)
	// Update reports an accepted resource that is new or differs from the one before.
	Update func(typeURL, name, version string)
	// NACK reports a response that was refused in whole or in part.
	NACK func(server, typeURL, version string, err error)
	// Missing reports a resource that does not exist: the server said so or
	// it did not come in time.
	Missing func(typeURL, name string, err error)
}

// Client is an xDS client. Its methods may be called concurrently.
type Client struct {
	opts Options
	log  *slog.Logger
	node *corev3.Node

	decode decoders
	mail   mailbox
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}  // closed when the loop has ended
	wg     sync.WaitGroup // the servers' goroutines

	// What follows belongs to the loop.

	resources [kinds]map[string]*resource
	orphans   map[*resource]struct{} // perhaps without users
	hosts     map[string]*host
	inbounds  map[string]*inbound
	clusters  map[string]*cluster
	demands   map[string]*demand // clusters that requests named

	dirtyHosts    map[*host]struct{}
	dirtyInbounds map[*inbound]struct{}
	dirtyClusters map[*cluster]struct{}
	unanswered    map[*host]struct{} // hosts that were never published

	refused      map[string]*snapshot.Host // hosts over the limit
	refusedEnds  map[string]*time.Timer    // of refused
	refusedOrder []string

	refusedClusters map[string]*snapshot.Cluster // demands over the limit

	servers []*server // as in the bootstrap
	open    int       // servers[:open] are in use

	published                                      *snapshot.Snapshot
	hostsChanged, clustersChanged, inboundsChanged bool
}

// New starts a client. It connects at once and asks for nothing until
// Subscribe. An error means that the bootstrap can not be used; a server that
// can not be reached is not an error.
func New(o Options) (*Client, error) { return newClient(o, compiled) }

func newClient(o Options, d decoders) (*Client, error) {
	c, err := newState(o, d)
	if err != nil {
		return nil, err
	}
	c.openNext()
	go c.loop()
	return c, nil
}

// newState is a client whose loop does not run yet.
func newState(o Options, d decoders) (*Client, error) {
	if o.Bootstrap == nil || len(o.Bootstrap.Servers) == 0 {
		return nil, errors.New("xds client: no server in the bootstrap")
	}
	if o.OnSnapshot == nil {
		return nil, errors.New("xds client: Options.OnSnapshot is nil")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = DefaultIdleTimeout
	}
	if o.MaxSubscriptions <= 0 {
		o.MaxSubscriptions = DefaultMaxSubscriptions
	}
	if o.ReadyWait == 0 {
		o.ReadyWait = DefaultReadyWait
	}
	if err := oneAuthority(o.Bootstrap); err != nil {
		return nil, err
	}
	c := &Client{
		opts:          o,
		log:           o.Log,
		node:          node(o),
		decode:        d,
		done:          make(chan struct{}),
		orphans:       map[*resource]struct{}{},
		hosts:         map[string]*host{},
		inbounds:      map[string]*inbound{},
		clusters:      map[string]*cluster{},
		demands:       map[string]*demand{},
		dirtyHosts:    map[*host]struct{}{},
		dirtyInbounds: map[*inbound]struct{}{},
		dirtyClusters: map[*cluster]struct{}{},
		unanswered:    map[*host]struct{}{},
		refused:       map[string]*snapshot.Host{},
		refusedEnds:   map[string]*time.Timer{},

		refusedClusters: map[string]*snapshot.Cluster{},
		published: &snapshot.Snapshot{
			Hosts:    map[string]*snapshot.Host{},
			Clusters: map[string]*snapshot.Cluster{},
			Inbound:  map[string]*snapshot.Inbound{},
		},
	}
	for k := range c.resources {
		c.resources[k] = map[string]*resource{}
	}
	for i := range o.Bootstrap.Servers {
		s, err := newServer(i, &o.Bootstrap.Servers[i], o.Credentials, o.DialOptions)
		if err != nil {
			return nil, err
		}
		c.servers = append(c.servers, s)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.mail.init()
	return c, nil
}

// oneAuthority refuses a bootstrap whose listener names belong to servers of
// another authority (gRFC A47): asking the wrong servers would make every host absent.
func oneAuthority(b *bootstrap.Config) error {
	names := []string{b.ListenerName("host:80")}
	if b.InboundTemplate != "" {
		name, err := b.InboundName("127.0.0.1:80")
		if err != nil {
			return fmt.Errorf("xds client: %w", err)
		}
		names = append(names, name)
	}
	for _, name := range names {
		servers, err := b.ServersFor(name)
		if err != nil {
			return fmt.Errorf("xds client: %w", err)
		}
		if len(servers) == 0 || len(servers) != len(b.Servers) || servers[0].URI != b.Servers[0].URI {
			return fmt.Errorf("xds client: resource name %q: an authority with servers of its own is not supported", name)
		}
	}
	return nil
}

// node is the bootstrap's node with what this client knows of itself.
func node(o Options) *corev3.Node {
	n := &corev3.Node{}
	if o.Bootstrap.Node != nil {
		n = proto.Clone(o.Bootstrap.Node).(*corev3.Node)
	}
	n.UserAgentName = UserAgent
	if o.UserAgentVersion != "" {
		n.UserAgentVersionType = &corev3.Node_UserAgentVersion{UserAgentVersion: o.UserAgentVersion}
	}
	const inSotW = "xds.config.resource-in-sotw" // the server may wrap resources in discovery.v3.Resource
	for _, f := range n.ClientFeatures {
		if f == inSotW {
			return n
		}
	}
	n.ClientFeatures = append(n.ClientFeatures, inSotW)
	return n
}

// Subscribe asks for the policy of a host, "host:port" with 80 and 443 filled
// in. The host appears in a later snapshot, complete, absent or with an error.
// It does not block; for a host that is subscribed already it counts as a use.
func (c *Client) Subscribe(host string) { c.mail.postHost(host) }

// SubscribeInbound asks for the policy of requests that arrive at addr,
// "ip:port". It is in force until Close.
func (c *Client) SubscribeInbound(addr string) {
	c.mail.post(func() { c.subscribeInbound(addr) })
}

// Close ends the client's streams and goroutines and returns when they are
// gone. No callback runs after it. It must not be called from a callback.
func (c *Client) Close() {
	c.cancel()
	<-c.done
	c.wg.Wait()
}

func (c *Client) loop() {
	defer close(c.done)
	defer c.mail.close()
	sweep := time.NewTicker(c.opts.IdleTimeout / 4)
	defer sweep.Stop()
	for {
		select {
		case <-c.ctx.Done():
			for _, m := range c.resources {
				for _, r := range m {
					r.stopTimer()
				}
			}
			for h := range c.unanswered {
				h.ready.Stop()
			}
			for _, d := range c.demands {
				d.ready.Stop()
			}
			return
		case <-c.mail.wake:
			c.batch()
		case <-sweep.C:
			c.sweep()
		}
		c.settle()
		c.fallback()
		c.flush()
		c.purge()
		c.publish()
	}
}

// batch handles everything that is in the mailbox now. What arrives meanwhile
// waits for the next batch, so a steady flow can not hold back a snapshot.
func (c *Client) batch() {
	events, hosts, clusters := c.mail.take()
	for _, event := range events {
		if c.ctx.Err() != nil {
			return
		}
		event()
	}
	for _, host := range hosts {
		c.subscribe(host)
	}
	for _, cluster := range clusters {
		c.demandCluster(cluster)
	}
}

// mailbox carries events to the loop. It is unbounded, but what feeds it is
// not: a stream has a window, and a name waits in it only once.
type mailbox struct {
	wake chan struct{}

	mu       sync.Mutex
	events   []func()
	hosts    names
	clusters names
	closed   bool
}

// names are what callers ask for, each once.
type names struct {
	list   []string
	queued map[string]struct{}
}

func (n *names) add(name string) (fresh bool) {
	if _, twice := n.queued[name]; twice {
		return false
	}
	if n.queued == nil {
		n.queued = map[string]struct{}{}
	}
	n.queued[name] = struct{}{}
	n.list = append(n.list, name)
	return true
}

func (n *names) take() []string {
	list := n.list
	n.list = nil
	clear(n.queued)
	return list
}

func (m *mailbox) init() { m.wake = make(chan struct{}, 1) }

func (m *mailbox) post(event func()) {
	m.mu.Lock()
	if !m.closed {
		m.events = append(m.events, event)
	}
	m.mu.Unlock()
	m.signal()
}

func (m *mailbox) postHost(host string) { m.ask(&m.hosts, host) }

func (m *mailbox) postCluster(cluster string) { m.ask(&m.clusters, cluster) }

func (m *mailbox) ask(list *names, name string) {
	m.mu.Lock()
	fresh := !m.closed && list.add(name)
	m.mu.Unlock()
	if fresh {
		m.signal()
	}
}

func (m *mailbox) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() (events []func(), hosts, clusters []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	events, m.events = m.events, nil
	return events, m.hosts.take(), m.clusters.take()
}

func (m *mailbox) close() {
	m.mu.Lock()
	m.closed = true
	m.events, m.hosts, m.clusters = nil, names{}, names{}
	m.mu.Unlock()
}
