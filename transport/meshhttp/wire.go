package meshhttp

import (
	"context"
	"crypto/tls"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

const (
	// maxIdlePerEndpoint is how many idle connections one endpoint keeps.
	maxIdlePerEndpoint = 256
	// maxIdleTime bounds how long an idle connection stays, whatever policy
	// allows: endpoints that have left the cluster are let go with it.
	maxIdleTime = 90 * time.Second
)

// carrier carries requests to the endpoints of a cluster in one way:
// an *http.Transport for HTTP/1.1 and for URLs whose TLS negotiates the version,
// *streams for HTTP/2.
type carrier interface {
	http.RoundTripper
	CloseIdleConnections()
}

// wire holds the connections to one cluster: those for plaintext, those for each
// way in which policy secures connections and the server name with it, and those
// for each server name where the caller's URL asks for TLS.
// The endpoint is the address in the request's URL, chosen before.
type wire struct {
	config        *snapshot.Cluster
	plain, plain2 carrier // without TLS, for HTTP/1.1 and HTTP/2
	// gates are for connections of HTTP/1.1, by priority; nil where policy sets no limit.
	gates [resilience.Priorities]*gate
	room  *room // for those of HTTP/2
	// maxRequests closes a connection after so many requests; below 2 there is
	// nothing to count.
	maxRequests uint32
	with        *connecting // of all wires
	// secured has an entry for each TLS of config; it does not change.
	secured map[*snapshot.ClientTLS]*secured

	checks atomic.Pointer[wire] // for health checks; nil before the first

	mu      sync.Mutex
	tls     sync.Map // server name -> *http.Transport
	retired bool
}

// NewWire returns what makes the connections' home for a cluster, for
// outbound.Options.NewWire. sources may be nil: then requests that policy wants
// to be secured fail.
//
// When a source changes, new requests use new connections, made with what it
// has then. Connections from before close when they are idle, at the latest
// after they have been so for 90 s.
func NewWire(sources outbound.Sources) func(*snapshot.Cluster) outbound.Wire {
	with := &connecting{identities: outbound.NewIdentities(sources)}
	return func(config *snapshot.Cluster) outbound.Wire { return newWire(config, with) }
}

func newWire(config *snapshot.Cluster, with *connecting) *wire {
	w := &wire{config: config, maxRequests: config.MaxRequestsPerConnection, with: with, room: newRoom(config)}
	w.plain, w.plain2 = newTransport(config, with.network), w.newStreams(newTransport(config, with.network), "http")
	if !config.HTTP2 {
		for p, limits := range w.room.limits {
			if limits.MaxConnections != math.MaxUint32 {
				w.gates[p] = newGate(limits)
			}
		}
	}
	for i := -1; i < len(config.Sockets); i++ {
		policy := config.TLS
		if i >= 0 {
			policy = config.Sockets[i].TLS
		}
		if policy != nil && w.secured[policy] == nil {
			if w.secured == nil {
				w.secured = make(map[*snapshot.ClientTLS]*secured)
			}
			w.secured[policy] = newSecured(w, policy)
		}
	}
	return w
}

func newRoom(config *snapshot.Cluster) *room {
	r := &room{}
	r.limits[resilience.DefaultPriority], r.limits[resilience.HighPriority] = config.Limits, config.HighLimits
	if config.HighLimits == (resilience.Limits{}) {
		// A cluster that nobody compiled from policy, such as one of the default policy.
		r.limits[resilience.HighPriority] = config.Limits
	}
	return r
}

// newStreams has a transport, which nothing else uses, make connections of HTTP/2.
func (w *wire) newStreams(t *http.Transport, scheme string) *streams {
	t.Protocols = new(http.Protocols)
	if scheme == "http" {
		t.Protocols.SetUnencryptedHTTP2(true)
		t.DialContext = remember(t.DialContext)
	} else {
		t.Protocols.SetHTTP2(true)
		t.DialTLSContext = remember(t.DialTLSContext)
	}
	t.DisableKeepAlives = false // streams counts the requests
	return newStreams(t, scheme, w.config.ConnectTimeout, w.config.MaxConcurrentStreams, w.config.MaxRequestsPerConnection, w.room)
}

// usesHTTP2 reports whether a request goes by HTTP/2, as policy asks: always,
// or where the request that is being served meanwhile came by it. Inside a
// caller's own TLS the two ends agree on the version.
func (w *wire) usesHTTP2(ctx context.Context) bool {
	return w.config.HTTP2 || w.config.ClientProtocol && servesHTTP2(ctx)
}

// newTransport returns connections to a cluster; network is nil for the machine's.
func newTransport(config *snapshot.Cluster, network dialFunc) *http.Transport {
	if network == nil {
		network = dialer(config)
	}
	idle := maxIdleTime
	if config.IdleTimeout > 0 && config.IdleTimeout < idle {
		idle = config.IdleTimeout
	}
	dial := markDialErrors(network)
	if config.MaxRequestsPerConnection > 1 {
		dial = countRequests(dial)
	}
	t := &http.Transport{
		DialContext:           dial,
		MaxIdleConnsPerHost:   maxIdlePerEndpoint,
		IdleConnTimeout:       idle,
		TLSHandshakeTimeout:   config.ConnectTimeout,
		ExpectContinueTimeout: time.Second,
		DisableKeepAlives:     config.MaxRequestsPerConnection == 1,
	}
	if n := config.Limits.MaxConnections; n < maxIdlePerEndpoint {
		t.MaxIdleConns = int(max(n, 1))
	}
	if ping := config.HTTP2Ping; ping.Interval > 0 {
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: ping.Interval, PingTimeout: ping.Timeout}
	}
	return t
}

// dialer dials as the cluster's configuration says. A name is looked up at each
// connection, which is what policy asks for with the discovery LOGICAL_DNS.
func dialer(config *snapshot.Cluster) dialFunc {
	d := &net.Dialer{Timeout: config.ConnectTimeout, KeepAlive: 30 * time.Second}
	if k := config.KeepAlive; k != nil {
		// Below zero leaves the operating system's value.
		d.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: -1, Interval: -1, Count: -1}
		if k.Idle > 0 {
			d.KeepAliveConfig.Idle = k.Idle
		}
		if k.Interval > 0 {
			d.KeepAliveConfig.Interval = k.Interval
		}
		if k.Probes > 0 {
			d.KeepAliveConfig.Count = k.Probes
		}
	}
	family := "tcp"
	if config.Discovery == snapshot.LogicalDNS && config.DNS != nil {
		switch config.DNS.Family {
		case "ip4":
			family = "tcp4"
		case "ip6":
			family = "tcp6"
		}
	}
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		return d.DialContext(ctx, family, address)
	}
}

// transport returns the connections for a request's URL to an endpoint that
// policy does not secure.
func (w *wire) transport(u *url.URL, http2 bool) carrier {
	if u.Scheme == "http" {
		if http2 {
			return w.plain2
		}
		return w.plain
	}
	name := u.Hostname()
	if t, ok := w.tls.Load(name); ok {
		return t.(*http.Transport)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if t, ok := w.tls.Load(name); ok {
		return t.(*http.Transport)
	}
	t := newTransport(w.config, w.with.network)
	t.ForceAttemptHTTP2 = true
	t.TLSClientConfig = clientTLS(name)
	t.DialTLSContext = dialTLS(t.DialContext, t.TLSClientConfig, w.config.ConnectTimeout, false)
	if w.retired {
		t.DisableKeepAlives = true
	}
	w.tls.Store(name, t)
	return t
}

// Retire implements outbound.Wire; see generation.retire for why it looks again later.
func (w *wire) Retire() {
	w.mu.Lock()
	w.retired = true
	checks := w.checks.Load()
	w.mu.Unlock()
	if checks != nil {
		checks.Retire()
	}
	w.closeIdle()
	for _, later := range retireAgain {
		time.AfterFunc(later, w.closeIdle)
	}
	for _, s := range w.secured {
		s.retire()
	}
}

func (w *wire) closeIdle() {
	for _, c := range []carrier{w.plain, w.plain2} {
		letGo(c)
	}
	w.tls.Range(func(_, t any) bool {
		t.(*http.Transport).CloseIdleConnections()
		return true
	})
}

// letGo closes connections that are not used now; those of HTTP/2 that are, after their last stream.
func letGo(c carrier) {
	switch c := c.(type) {
	case nil:
	case *streams:
		c.retire()
	default:
		c.CloseIdleConnections()
	}
}

// gate bounds the connections of a cluster that carry HTTP/1.1, where each
// request in flight has one, and how many requests wait for one.
type gate struct {
	busy    chan struct{}
	waiting atomic.Int64
	limits  resilience.Limits
}

// newGate lets one request through even where policy allows no connection, as Envoy does.
func newGate(limits resilience.Limits) *gate {
	return &gate{busy: make(chan struct{}, max(limits.MaxConnections, 1)), limits: limits}
}

// enter takes a connection's place, waiting for one if policy lets so many
// wait. It returns "" or the name of the limit that forbids it.
func (g *gate) enter(ctx context.Context) string {
	select {
	case g.busy <- struct{}{}:
		return ""
	default:
	}
	if others := g.waiting.Add(1) - 1; !g.limits.AllowsPending(others) {
		g.waiting.Add(-1)
		return "max_pending_requests"
	}
	defer g.waiting.Add(-1)
	select {
	case g.busy <- struct{}{}:
		return ""
	case <-ctx.Done():
		return "max_connections"
	}
}

// refusal is the error of a request that enter did not let in.
func (g *gate) refusal(ctx context.Context, limit string, at outbound.Place) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	n := uint32(cap(g.busy))
	if limit == "max_pending_requests" {
		n = g.limits.MaxPendingRequests
	}
	return &outbound.LimitError{Place: at, Limit: limit, Max: n}
}

func (g *gate) leave() { <-g.busy }

// counted is a connection that knows how many requests it has carried.
type counted struct {
	net.Conn
	requests atomic.Uint32
}

func countRequests(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &counted{Conn: conn}, nil
	}
}

// lastOfConnection prepares a request so that it asks for its connection to be
// closed where it is the limit's last. Which connection carries the request is
// known only when net/http has chosen one, just before the header is written:
// so the trace's hook adds to the header, of which the request has its own copy.
func lastOfConnection(req *http.Request, limit uint32) *http.Request {
	header := req.Header.Clone()
	if header == nil {
		header = make(http.Header)
	}
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		conn := info.Conn
		for {
			secure, ok := conn.(*tls.Conn)
			if !ok {
				break
			}
			conn = secure.NetConn()
		}
		if c, ok := conn.(*counted); ok && c.requests.Add(1) >= limit {
			header.Set("Connection", "close")
		}
	}}))
	req.Header = header
	return req
}
