package meshhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// streams are connections of HTTP/2 to the endpoints of a cluster, all made by
// one transport. It takes the place of the transport's own pool, which repeats
// a request without a body that an endpoint refuses (REFUSED_STREAM) by itself,
// six times over a minute, so that no rule of policy learns of it; which has no
// limit on the streams of a connection; and which does not count connections.
//
// What it repeats by itself, at once, is a request that a closing connection did
// not take (the connection chosen has gone in that moment, or its GOAWAY leaves
// the stream out), and one that was or may have been among too many on a new
// connection, whose server had not yet said how many it takes.
type streams struct {
	transport *http.Transport
	scheme    string
	limit     time.Duration // to make one connection; zero means none
	most      uint32        // streams on one connection; zero means the server's bound
	requests  uint32        // on one connection; zero means no bound
	room      *room
	retired   atomic.Bool

	mu    sync.Mutex // serialises changes of hosts
	hosts atomic.Pointer[map[string]*streamHost]
}

// room is what the limits of a cluster on connections and on requests that wait
// for one count, for all of the cluster's streams.
type room struct {
	limits  [resilience.Priorities]resilience.Limits
	open    atomic.Int64
	waiting [resilience.Priorities]atomic.Int64
}

// streamHost is the connections to one endpoint.
type streamHost struct {
	streams *streams
	address string

	mu      sync.Mutex
	conns   []*streamConn // those that take requests
	dial    *dialing      // nil while no connection is being made
	users   int           // in acquire
	bound   int           // streams that a connection's server takes, by the last one that said so; 0 if unknown
	removed bool          // from streams.hosts

	waiters atomic.Int32
	wakeMu  sync.Mutex // never held while a connection is asked anything
	wake    chan struct{}
}

type streamConn struct {
	host *streamHost
	cc   *http.ClientConn
	conn net.Conn // for traces
	// draining takes no more requests: it closes with its last stream.
	draining atomic.Bool
	settled  atomic.Bool

	// Guarded by host.mu.
	active   int    // places that are taken
	used     uint32 // places that were ever taken
	capacity int    // streams that the server takes; 0 until that is known
	heard    bool   // the server has answered, and so has said before how many it takes
}

// dialing is a connection that is being made, for all who wait for one.
type dialing struct {
	done chan struct{}
	err  error
}

func newStreams(t *http.Transport, scheme string, limit time.Duration, most, requests uint32, r *room) *streams {
	s := &streams{transport: t, scheme: scheme, limit: limit, most: most, requests: requests, room: r}
	s.hosts.Store(&map[string]*streamHost{})
	return s
}

// RoundTrip implements http.RoundTripper.
func (s *streams) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, c, err := s.send(req, resilience.DefaultPriority)
	if err == nil {
		resp.Body = &streamBody{ReadCloser: resp.Body, conn: c}
	}
	return resp, err
}

// streamBody gives its place on the connection back with Close.
type streamBody struct {
	io.ReadCloser
	conn *streamConn
	once sync.Once
}

// Close implements io.Closer.
func (b *streamBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.conn.release)
	return err
}

// send puts a request on a connection, whose place the caller gives back with
// release when it is done with the response. The error may be an
// *outbound.LimitError without a place.
func (s *streams) send(req *http.Request, priority resilience.Priority) (*http.Response, *streamConn, error) {
	ctx := req.Context()
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.GetConn != nil {
		trace.GetConn(req.URL.Host)
	}
	for again := 0; ; again++ {
		p, err := s.acquire(ctx, req.URL.Host, priority)
		if err != nil {
			closeBody(req.Body)
			return nil, nil, err
		}
		if trace != nil && trace.GotConn != nil {
			trace.GotConn(httptrace.GotConnInfo{Conn: p.conn.conn, Reused: p.reused})
		}
		resp, err := p.conn.cc.RoundTrip(req)
		if p.early {
			p.conn.answered(err)
		}
		if err == nil {
			return resp, p.conn, nil
		}
		err = p.conn.reason(err)
		p.conn.release()
		if ctx.Err() != nil || again == maxAgain || !(again < maxMoved && notTaken(err) || p.early && (isRefused(err) || tooMany(req, err))) {
			return nil, nil, err
		}
		if hasBody(req) {
			if req.GetBody == nil {
				return nil, nil, err
			}
			body, failed := req.GetBody()
			if failed != nil {
				return nil, nil, err
			}
			fresh := *req
			fresh.Body, req = body, &fresh
		}
	}
}

const (
	// maxAgain bounds how often a request is repeated, and maxMoved how often because
	// connections that close have not taken it: while certificates change, several do
	// in a row.
	maxAgain = 8
	maxMoved = 3
	// unsaid is the number of streams that net/http takes a server to allow before
	// its settings have come.
	unsaid = 100
)

// place is a place for one request on a connection.
type place struct {
	conn   *streamConn
	reused bool
	early  bool // the server had not said how many streams it takes
}

func isRefused(err error) bool {
	var stream streamError
	return errors.As(err, &stream) && stream.Code == refusedStream
}

// tooMany reports whether a stream may have been one too many to a server that had
// not been heard: it may say so by PROTOCOL_ERROR too (RFC 9113, section 5.1.2), which
// says nothing of whether the request was processed. So the request must be one
// that may come twice.
func tooMany(req *http.Request, err error) bool {
	var stream streamError
	if !errors.As(err, &stream) || stream.Code != protocolError {
		return false
	}
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return !hasBody(req)
	}
	return false
}

// notTaken reports whether a closing connection left the request out.
func notTaken(err error) bool {
	return unusable(err) || strings.HasPrefix(err.Error(), "http2: Transport received Server's graceful shutdown GOAWAY")
}

// unusable reports that the connection went before the request was sent.
func unusable(err error) bool {
	switch err.Error() {
	case "http2: client conn not usable", "http2: client conn could not be established":
		return true
	}
	return false
}

// reason returns the alert that has ended a TLS connection where net/http says
// no more than that the connection can not be used: a server that refuses our
// certificate may say so before the first request has a stream.
func (c *streamConn) reason(err error) error {
	secure, ok := c.conn.(*tls.Conn)
	if !ok || !unusable(err) || c.cc.Err() == nil {
		return err
	}
	// net/http has closed it and reads no more; crypto/tls repeats what its last read met.
	if _, alert := secure.Read(make([]byte, 1)); refusedHandshake(alert) {
		return alert
	}
	return err
}

// host returns the connections to an address, with a user counted.
func (s *streams) host(address string) *streamHost {
	for {
		h := (*s.hosts.Load())[address]
		if h == nil {
			s.mu.Lock()
			old := *s.hosts.Load()
			if h = old[address]; h == nil {
				h = &streamHost{streams: s, address: address}
				next := maps.Clone(old)
				next[address] = h
				s.hosts.Store(&next)
			}
			s.mu.Unlock()
		}
		h.mu.Lock()
		if !h.removed {
			h.users++
			h.mu.Unlock()
			return h
		}
		h.mu.Unlock()
	}
}

// acquire reserves a place for one request on a connection, which it makes or
// waits for if need be.
func (s *streams) acquire(ctx context.Context, address string, priority resilience.Priority) (place, error) {
	h := s.host(address)
	defer h.leave()
	if p := h.reserve(); p.conn != nil {
		return p, nil
	}
	waiting := &s.room.waiting[priority]
	limits := &s.room.limits[priority]
	if others := waiting.Add(1) - 1; !limits.AllowsPending(others) {
		waiting.Add(-1)
		return place{}, &outbound.LimitError{Limit: "max_pending_requests", Max: limits.MaxPendingRequests}
	}
	defer waiting.Add(-1)
	h.waiters.Add(1)
	defer h.waiters.Add(-1)
	for {
		// The channel first: what becomes free after this line closes it.
		woken := h.awaken()
		if p := h.reserve(); p.conn != nil {
			return p, nil
		}
		d := h.connect(limits)
		var made chan struct{}
		if d != nil {
			made = d.done
		}
		select {
		case <-made:
			if d.err != nil {
				return place{}, d.err
			}
		case <-woken:
		case <-ctx.Done():
			return place{}, context.Cause(ctx)
		}
	}
}

func (h *streamHost) leave() {
	h.mu.Lock()
	h.users--
	h.prune()
	h.mu.Unlock()
}

// prune forgets the host where nothing is left of it. The caller holds mu.
func (h *streamHost) prune() {
	if h.users > 0 || len(h.conns) > 0 || h.dial != nil || h.removed {
		return
	}
	h.removed = true
	s := h.streams
	s.mu.Lock()
	next := maps.Clone(*s.hosts.Load())
	delete(next, h.address)
	s.hosts.Store(&next)
	s.mu.Unlock()
}

// awaken returns a channel that is closed when there may be a place.
func (h *streamHost) awaken() <-chan struct{} {
	h.wakeMu.Lock()
	defer h.wakeMu.Unlock()
	if h.wake == nil {
		h.wake = make(chan struct{})
	}
	return h.wake
}

func (h *streamHost) signal() {
	if h.waiters.Load() == 0 {
		return
	}
	h.wakeMu.Lock()
	if h.wake != nil {
		close(h.wake)
		h.wake = nil
	}
	h.wakeMu.Unlock()
}

// reserve takes a place on a connection that has one; without a connection if none has.
//
// The places are counted here, and not with net/http's Reserve: reservations
// beyond what the server's settings, which come later, allow would wait for each
// other for ever.
func (h *streamHost) reserve() place {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := 0; i < len(h.conns); {
		c := h.conns[i]
		if c.cc.Err() != nil {
			h.conns = slices.Delete(h.conns, i, i+1)
			continue
		}
		free, busy, steady := c.room()
		if c.heard && steady && free > 0 {
			c.capacity, h.bound = busy+free, busy+free
		}
		limit := spare(c.capacity)
		switch {
		case limit == 0 && h.bound > 0:
			limit = min(spare(h.bound), unsaid)
		case limit == 0:
			limit = unsaid
		case steady && free == 0 && busy < c.capacity:
			// It has had room for more: it is going away.
			h.drain(i)
			continue
		}
		if most := int(h.streams.most); most > 0 {
			limit = min(limit, most)
		}
		if free == 0 || c.active >= limit {
			i++
			continue
		}
		p := place{conn: c, reused: c.used > 0, early: !c.heard}
		c.active++
		c.used++
		if h.streams.requests > 0 && c.used >= h.streams.requests || h.streams.retired.Load() {
			h.drain(i)
		}
		return p
	}
	return place{}
}

// spare returns how many streams are used at a time of those that a server takes:
// one less, but one. A stream has ended for the client when its last frame is
// read, and for the server when it has noted that it was written; a server may
// answer what comes in between, and is one too many to it, by PROTOCOL_ERROR (RFC
// 9113, section 5.1.2), which is no sign that the request was not processed.
func spare(capacity int) int {
	if capacity > 1 {
		return capacity - 1
	}
	return capacity
}

// release gives a place back.
func (c *streamConn) release() {
	h := c.host
	h.mu.Lock()
	c.active--
	h.mu.Unlock()
	c.changed()
}

// answered notes what the answers to the first requests on a connection show:
// the server's settings have come before them.
func (c *streamConn) answered(err error) {
	h := c.host
	h.mu.Lock()
	defer h.mu.Unlock()
	refused := isRefused(err)
	c.heard = c.heard || err == nil || refused
	free, busy, steady := c.room()
	switch {
	case refused && c.capacity == 0:
		// Too many, by far perhaps: those that are refused still count among the busy.
		if busy = max(1, busy); h.bound == 0 || busy < h.bound {
			h.bound = busy
		}
	case err == nil && steady && free > 0:
		c.capacity, h.bound = busy+free, busy+free
	}
}

// room returns how many streams more the connection takes and how many it has.
// It is steady where none began or ended meanwhile, so that the sum is what the server takes.
func (c *streamConn) room() (free, busy int, steady bool) {
	for range 3 {
		before := c.cc.InFlight()
		free = c.cc.Available()
		if busy = c.cc.InFlight(); busy == before {
			return free, busy, true
		}
	}
	return free, busy, false
}

// drain takes a connection out of use; it closes with its last stream. The caller holds mu.
func (h *streamHost) drain(i int) {
	c := h.conns[i]
	h.conns = slices.Delete(h.conns, i, i+1)
	c.draining.Store(true)
	if c.active == 0 && c.cc.InFlight() == 0 {
		go c.settle()
	}
}

// connect returns the connection that is being made, which it begins to make
// where the limit allows one more, as it always does for an endpoint that has
// none (Envoy). The caller waits for it, or where it is nil for a place.
func (h *streamHost) connect(limits *resilience.Limits) *dialing {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dial != nil {
		return h.dial
	}
	open := &h.streams.room.open
	if others := open.Add(1) - 1; limits.MaxConnections != resilience.NoLimit && others >= int64(limits.MaxConnections) && len(h.conns) > 0 {
		open.Add(-1)
		return nil
	}
	h.dial = &dialing{done: make(chan struct{})}
	go h.make(h.dial)
	return h.dial
}

type dialedKey struct{}

// make makes a connection. No caller's context ends it: others may be waiting for it too.
func (h *streamHost) make(d *dialing) {
	s := h.streams
	c := &streamConn{host: h}
	ctx := context.WithValue(context.Background(), dialedKey{}, &c.conn)
	if s.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.limit)
		defer cancel()
	}
	cc, err := s.transport.NewClientConn(ctx, s.scheme, h.address)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		var dial *dialError
		var secure *tlsError
		if !errors.As(err, &dial) && !errors.As(err, &secure) {
			err = &dialError{err}
		}
	}
	if err == nil {
		c.cc = cc
		// Before anyone has the connection: an end that came first would not be told.
		cc.SetStateHook(func(*http.ClientConn) { c.changed() })
	}
	h.mu.Lock()
	h.dial, d.err = nil, err
	if err == nil {
		h.conns = append(h.conns, c)
	} else {
		s.room.open.Add(-1)
		h.prune()
	}
	h.mu.Unlock()
	close(d.done)
	if err == nil && s.retired.Load() {
		// Whoever waited for it takes it first, where there is one.
		time.AfterFunc(retireAgain[0], s.CloseIdleConnections)
	}
	h.signal()
}

// remember keeps the connection that a dial function makes for a streamConn.
func remember(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if at, ok := ctx.Value(dialedKey{}).(*net.Conn); ok && err == nil {
			*at = conn
		}
		return conn, err
	}
}

// changed is called when a place was given back, or by net/http when a stream
// or the connection has ended: perhaps from a call that host.mu is held for.
func (c *streamConn) changed() {
	if (c.draining.Load() || c.cc.Err() != nil) && !c.settled.Load() {
		go c.settle()
	}
	c.host.signal()
}

// settle closes the connection and forgets it, if nothing needs it any more.
func (c *streamConn) settle() {
	h := c.host
	h.mu.Lock()
	ended := c.cc.Err() != nil || c.draining.Load() && c.active == 0 && c.cc.InFlight() == 0
	if !ended || c.settled.Swap(true) {
		h.mu.Unlock()
		return
	}
	if i := slices.Index(h.conns, c); i >= 0 {
		h.conns = slices.Delete(h.conns, i, i+1)
	}
	h.streams.room.open.Add(-1)
	h.prune()
	h.mu.Unlock()
	_ = c.cc.Close()
	h.signal()
}

// CloseIdleConnections closes the connections that carry no stream.
func (s *streams) CloseIdleConnections() {
	for _, h := range *s.hosts.Load() {
		h.mu.Lock()
		for i := len(h.conns) - 1; i >= 0; i-- {
			if h.conns[i].active == 0 && h.conns[i].cc.InFlight() == 0 {
				h.drain(i)
			}
		}
		h.mu.Unlock()
	}
}

// retire has connections close with their last stream: those that there are,
// and those that a request which still has the streams makes.
func (s *streams) retire() {
	s.retired.Store(true)
	for _, h := range *s.hosts.Load() {
		h.mu.Lock()
		for i := len(h.conns) - 1; i >= 0; i-- {
			h.drain(i)
		}
		h.mu.Unlock()
	}
}
