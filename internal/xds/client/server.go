package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/cenkalti/backoff/v4"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

const (
	// reconnectJitter is the longest random pause before a stream is made
	// again where no backoff is due. It spreads the clients of a server that restarted.
	reconnectJitter = 200 * time.Millisecond
	// connectMaxDelay bounds the pause between attempts to connect, so that a
	// server that comes back after a long outage is found within seconds.
	connectMaxDelay = 3 * time.Second
	// connectTimeout limits one attempt to connect, TLS included.
	connectTimeout = 5 * time.Second
	// Keepalive notices a half-open connection while nothing is sent. A server
	// that finds the pings too many says so, and grpc then doubles the interval.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 20 * time.Second
	// maxResponse bounds one response. gRPC's default of 4 MiB is too small
	// for a state-of-the-world response of a large mesh.
	maxResponse = 64 << 20
)

// server is one xDS server of the bootstrap and the stream to it.
type server struct {
	index  int
	config *bootstrap.Server
	dial   []grpc.DialOption
	own    *ownCertificate // nil where the credentials have none that is renewed

	// What follows belongs to the loop.

	stop   context.CancelFunc // of the goroutine that keeps the stream
	stream *stream            // nil while there is none
	failed bool               // the last attempt ended without any response
	err    error              // why
	logged string             // the text of err that was logged last; a response clears it
	// version is the last accepted of each kind (state of the world). It outlives streams.
	version [kinds]string
}

func newServer(i int, config *bootstrap.Server, provider bootstrap.CredentialsFunc, extra []grpc.DialOption) (*server, error) {
	s := &server{index: i, config: config}
	creds, err := config.DialOption(s.watching(provider))
	if err != nil {
		return nil, fmt.Errorf("xds client: server %q: %w", config.URI, err)
	}
	s.dial = append([]grpc.DialOption{
		creds,
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: connectMaxDelay},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)),
		grpc.WithIdleTimeout(0),
		// The control plane's own configuration must not come from a TXT record.
		grpc.WithDisableServiceConfig(),
	}, extra...)
	cc, err := grpc.NewClient(target(config.URI), s.dial...)
	if err != nil {
		return nil, fmt.Errorf("xds client: server %q: %w", config.URI, err)
	}
	cc.Close()
	return s, nil
}

// target is the gRPC target for a server. A name without a scheme is resolved
// for each attempt to connect: gRPC's own resolver for such names waits at
// least 30 s between two look-ups, and backs off up to two minutes when one
// fails, which is too long for a control plane that comes back elsewhere.
func target(uri string) string {
	if u, err := url.Parse(uri); err == nil && resolver.Get(u.Scheme) != nil {
		return uri
	}
	return "passthrough:///" + uri
}

// openNext starts to use the next server.
func (c *Client) openNext() {
	s := c.servers[c.open]
	c.open++
	ctx, stop := context.WithCancel(c.ctx)
	s.stop, s.failed, s.err = stop, false, nil
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.serve(ctx, s)
	}()
}

// closeAfter stops to use the servers after s, which has answered (gRFC A71).
// What they sent stays in force until s sends it too.
func (c *Client) closeAfter(s *server) {
	for c.open > s.index+1 {
		c.open--
		lower := c.servers[c.open]
		lower.stop()
		if st := lower.stream; st != nil {
			lower.stream = nil
			c.stopTimers(st)
		}
		c.log.Info("xds: fallback server is not needed any more", "server", lower.config.URI)
	}
}

// fallback opens the next server where the last one in use can not be
// reached and a resource is missing (gRFC A71).
func (c *Client) fallback() {
	if c.open == len(c.servers) || !c.servers[c.open-1].failed {
		return
	}
	for _, m := range c.resources {
		for _, r := range m {
			if r.pending() && len(r.users) > 0 {
				c.log.Warn("xds: using a fallback server", "server", c.servers[c.open].config.URI)
				c.openNext()
				return
			}
		}
	}
}

// unreachable is why no server can be reached; nil if one can, or if it is not known yet.
func (c *Client) unreachable() error {
	errs := []error{errors.New("xds: no server can be reached")}
	for _, s := range c.servers[:c.open] {
		if !s.failed {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", s.config.URI, s.err))
	}
	if c.open < len(c.servers) {
		return nil
	}
	return errors.Join(errs...)
}

// newBackoff is that of streams that fail before any response (gRFC A57 and A27).
func newBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(time.Second),
		backoff.WithMultiplier(1.6),
		backoff.WithRandomizationFactor(0.2),
		backoff.WithMaxInterval(120*time.Second),
		backoff.WithMaxElapsedTime(0),
	)
}

// serve keeps a stream to the server until ctx ends. It speaks the delta
// protocol, and state of the world from when the server says that it does not
// know delta.
//
// A stream that brought a response is made again at once when it ends. One
// that did not, on a working connection, backs off. Where there is no
// connection the channel's own backoff, which is shorter, decides.
//
// Where the certificate that the connection was made with is replaced, the
// stream moves to a new connection (renew.go).
func (c *Client) serve(ctx context.Context, s *server) {
	l, err := c.openLine(ctx, s)
	if err != nil { // newServer has tried the same
		c.mail.post(func() { c.ended(newStream(ctx, s, false), err, false) })
		return
	}
	defer func() { l.close() }()
	b := newBackoff()
	sotw := false
	for {
		r := c.begin(ctx, s, l, sotw)
		l, r = c.follow(ctx, s, l, r)
		err := r.err
		if ctx.Err() != nil {
			return
		}
		st := r.st
		answered := st.responses > 0
		if !answered && status.Code(err) == codes.Unimplemented {
			sotw = !sotw
			if sotw {
				c.mail.post(func() { c.ended(st, err, true) })
				continue
			}
		}
		c.mail.post(func() { c.ended(st, err, answered) })
		var pause time.Duration
		switch {
		case answered:
			b.Reset()
			pause = rand.N(reconnectJitter)
		case l.cc.GetState() == connectivity.TransientFailure:
			// The state stays until a connection is made.
			if !l.cc.WaitForStateChange(ctx, connectivity.TransientFailure) {
				return
			}
			pause = rand.N(reconnectJitter)
		default:
			pause = b.NextBackOff()
		}
		if !sleep(ctx.Done(), pause) {
			return
		}
	}
}

// sleep pauses; false if end is closed before.
func sleep(end <-chan struct{}, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-end:
		return false
	case <-timer.C:
		return true
	}
}

// ended notes that a stream ended or could not be made. answered reports that
// it is no failure: the server had sent something.
func (c *Client) ended(st *stream, err error, answered bool) {
	if st.ctx.Err() != nil {
		return
	}
	s := st.server
	s.stream = nil
	c.stopTimers(st)
	s.err = err
	if !answered {
		s.failed = true
	}
	if text := err.Error(); text != s.logged {
		s.logged = text
		c.log.Warn("xds: stream ended", "server", s.config.URI, "error", err)
	}
	if f := c.opts.Events.Disconnected; f != nil {
		f(s.config.URI, err)
	}
	if !answered {
		c.outOfReach()
	}
}

// stopTimers stops the timers of resources that were asked for on a stream
// that ended. They start again on the next; another server's stream that is
// open takes over at once.
func (c *Client) stopTimers(st *stream) {
	var other *stream
	for _, s := range c.servers[:c.open] {
		if s.stream != nil && s.stream != st {
			other = s.stream
		}
	}
	for k := range c.resources {
		for _, r := range c.resources[k] {
			if r.timed != st {
				continue
			}
			r.stopTimer()
			if other != nil && other.subs[k].sent[r.name] == r {
				c.startTimer(r, other, other.timeout())
			}
		}
	}
}
