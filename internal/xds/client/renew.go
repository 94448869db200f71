package client

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"

	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// A server closes a connection when the certificate expires that it was made
// with. So the stream moves to a new connection as soon as there is a new
// certificate: it is opened beside the old one, which ends only then, and the
// server sends nothing again that it has sent before.

// presenter is what channel credentials are whose own certificate is renewed.
type presenter interface {
	// Certificate returns what a handshake would present now, nil if nothing, and
	// a channel that is closed when that may have changed.
	Certificate() (*x509.Certificate, <-chan struct{})
}

// ownCertificate knows which certificate the last connection was made with.
type ownCertificate struct {
	from      presenter
	presented atomic.Pointer[x509.Certificate]
}

// replaced reports whether there is another certificate than the one in use;
// changed is closed when that may have become so.
func (o *ownCertificate) replaced() (changed <-chan struct{}, replaced bool) {
	if o == nil {
		return nil, false
	}
	now, changed := o.from.Certificate()
	old := o.presented.Load()
	return changed, now != nil && old != nil && !now.Equal(old)
}

// watching has the server see which certificates provider's credentials present.
func (s *server) watching(provider bootstrap.CredentialsFunc) bootstrap.CredentialsFunc {
	if provider == nil {
		return nil
	}
	return func(c bootstrap.ChannelCreds) (credentials.TransportCredentials, error) {
		creds, err := provider(c)
		if p, ok := creds.(presenter); ok && err == nil {
			s.own = &ownCertificate{from: p}
			return &presentingCredentials{creds, s.own}, nil
		}
		return creds, err
	}
}

// presentingCredentials note the certificate of each handshake.
type presentingCredentials struct {
	credentials.TransportCredentials
	own *ownCertificate
}

func (c *presentingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	// One that is renewed meanwhile looks replaced, which costs a connection; the
	// contrary would cost a stream.
	leaf, _ := c.own.from.Certificate()
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err == nil {
		if leaf == nil { // it came while the handshake waited for it
			leaf, _ = c.own.from.Certificate()
		}
		c.own.presented.Store(leaf)
	}
	return conn, info, err
}

func (c *presentingCredentials) Clone() credentials.TransportCredentials {
	return &presentingCredentials{c.TransportCredentials.Clone(), c.own}
}

// line is a channel to a server, over which loads are reported too.
type line struct {
	cc        *grpc.ClientConn
	stop      context.CancelFunc
	reporting sync.WaitGroup
}

func (c *Client) openLine(ctx context.Context, s *server) (*line, error) {
	cc, err := grpc.NewClient(target(s.config.URI), s.dial...)
	if err != nil {
		return nil, err
	}
	l := &line{cc: cc}
	ctx, l.stop = context.WithCancel(ctx)
	l.reporting.Go(func() { c.reportLoads(ctx, cc) })
	return l, nil
}

func (l *line) close() {
	l.stop()
	l.reporting.Wait()
	l.cc.Close()
}

// running is a stream that is being read.
type running struct {
	st   *stream
	done chan struct{}
	err  error // why it ended; set when done is closed
}

func (c *Client) begin(ctx context.Context, s *server, l *line, sotw bool) *running {
	r := &running{st: newStream(ctx, s, sotw), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = r.st.run(c, discovery.NewAggregatedDiscoveryServiceClient(l.cc))
	}()
	return r
}

// renewPause bounds how often a new connection is tried where it does not come about.
const renewPause = 5 * time.Second

// follow waits for the end of a stream, which moves to another line with each new
// certificate. It returns the line and the stream that it was in the end.
func (c *Client) follow(ctx context.Context, s *server, l *line, r *running) (*line, *running) {
	for {
		changed, replaced := s.own.replaced()
		if !replaced {
			select {
			case <-r.done:
				return l, r
			case <-changed:
			}
			continue
		}
		if !sleep(r.done, rand.N(reconnectJitter)) {
			return l, r
		}
		if fresh, next := c.move(ctx, s, r); next != nil {
			r.st.cancel()
			<-r.done
			l.close()
			l, r = fresh, next
		} else if !sleep(r.done, renewPause) {
			return l, r
		}
	}
}

// move opens a stream like r over a new connection. It returns nil if r ends
// before that stands, or if the server does not take it.
func (c *Client) move(ctx context.Context, s *server, r *running) (*line, *running) {
	l, err := c.openLine(ctx, s)
	if err != nil {
		return nil, nil
	}
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.st.life, cancel)()
	if !ready(within, l.cc) {
		l.close()
		return nil, nil
	}
	next := c.begin(ctx, s, l, r.st.sotw)
	if !next.stands() {
		l.close()
		return nil, nil
	}
	// From here on the loop takes only what the new stream brings.
	return l, next
}

// stands waits until the stream is open, and reports whether it ever was: then
// the loop knows of it, also where it has ended by now.
func (r *running) stands() bool {
	select {
	case <-r.st.opened:
	case <-r.done:
	}
	select {
	case <-r.st.opened:
		return true
	default:
		return false
	}
}

// ready waits for a connection.
func ready(ctx context.Context, cc *grpc.ClientConn) bool {
	for {
		state := cc.GetState()
		switch state {
		case connectivity.Ready:
			return true
		case connectivity.Idle:
			cc.Connect()
		}
		if !cc.WaitForStateChange(ctx, state) {
			return false
		}
	}
}
