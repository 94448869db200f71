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

// wire holds the connections to one cluster: one http.Transport for plaintext,
// one for each way in which policy secures connections and the server name
// with it, and one for each server name where the caller's URL asks for TLS.
// The endpoint is the address in the request's URL, chosen before.
type wire struct {
	config *snapshot.Cluster
	plain  http.RoundTripper // an *http.Transport
	gate   *gate             // nil where policy sets no limit
	// maxRequests closes a connection after so many requests; below 2 there is
	// nothing to count.
	maxRequests uint32
	// identities are those of all wires.
	identities *identities
	// secured has an entry for each TLS of config; it does not change.
	secured map[*snapshot.ClientTLS]*secured

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
func NewWire(sources Sources) func(*snapshot.Cluster) outbound.Wire {
	all := &identities{open: sources}
	return func(config *snapshot.Cluster) outbound.Wire { return newWire(config, all) }
}

func newWire(config *snapshot.Cluster, all *identities) *wire {
	plain := newTransport(config, all.network)
	w := &wire{config: config, plain: plain, maxRequests: config.MaxRequestsPerConnection, identities: all}
	if config.HTTP2 {
		plain.Protocols = new(http.Protocols)
		plain.Protocols.SetUnencryptedHTTP2(true)
	} else if config.Limits.MaxConnections != math.MaxUint32 {
		// A connection of HTTP/2 carries many requests, and net/http opens one
		// for each endpoint: only HTTP/1.1 can reach the limit.
		w.gate = newGate(config.Limits)
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

// newTransport returns connections to a cluster; network is nil for the machine's.
func newTransport(config *snapshot.Cluster, network dialFunc) *http.Transport {
	if network == nil {
		network = (&net.Dialer{Timeout: config.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext
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
	return t
}

// transport returns the connections for a request's URL to an endpoint that
// policy does not secure.
func (w *wire) transport(u *url.URL) http.RoundTripper {
	if u.Scheme == "http" {
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
	t := newTransport(w.config, w.identities.network)
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
	w.mu.Unlock()
	w.closeIdle()
	for _, later := range retireAgain {
		time.AfterFunc(later, w.closeIdle)
	}
	for _, s := range w.secured {
		s.retire()
	}
}

func (w *wire) closeIdle() {
	w.plain.(*http.Transport).CloseIdleConnections()
	w.tls.Range(func(_, t any) bool {
		t.(*http.Transport).CloseIdleConnections()
		return true
	})
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
