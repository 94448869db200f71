package meshgrpc

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// When policy begins to ask for TLS, or ceases to, gRPC makes its new
// connections accordingly and keeps those that it has. A channel in use would go
// on in plaintext for as long as it lives, and be refused when the server asks for
// mutual TLS. So connections of the other kind are replaced here when policy
// changes, without loss: gRPC is told by a frame put between the server's own that
// the connection takes no further RPCs, as servers tell it before they stop.
// It connects anew, and closes the old connection after its last RPC.

// following are the connections of the channels that share their dial options.
type following struct {
	mu    sync.Mutex
	conns map[*followed]struct{}
}

func newFollowing() *following { return &following{conns: make(map[*followed]struct{})} }

// changed replaces connections of another kind than policy now asks for.
func (f *following) changed() {
	f.mu.Lock()
	conns := make([]*followed, 0, len(f.conns))
	for c := range f.conns {
		conns = append(conns, c)
	}
	f.mu.Unlock()
	for _, c := range conns {
		c.compare()
	}
}

// followingCredentials remember which kind of connection each handshake has made.
type followingCredentials struct {
	credentials.TransportCredentials // gRPC's xDS credentials, with fallbacks of kindCredentials
	all                              *following
}

// kind is what a handshake tells of itself, by the key kindKey of its context.
type kind struct {
	plain bool // policy asks for no TLS
	probe bool // nothing but that is asked
}

type kindKey struct{}

// withKind returns the kind that a context carries, or a context that carries one.
func withKind(ctx context.Context) (context.Context, *kind) {
	if of, ok := ctx.Value(kindKey{}).(*kind); ok {
		return ctx, of
	}
	of := new(kind)
	return context.WithValue(ctx, kindKey{}, of), of
}

// kindCredentials are what xDS credentials use where policy asks for no TLS.
type kindCredentials struct {
	credentials.TransportCredentials
}

var errProbe = errors.New("mesh: no handshake was wanted")

// ClientHandshake implements credentials.TransportCredentials.
func (k kindCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if of, ok := ctx.Value(kindKey{}).(*kind); ok {
		of.plain = true
		if of.probe {
			return nil, nil, errProbe
		}
	}
	return k.TransportCredentials.ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (k kindCredentials) Clone() credentials.TransportCredentials {
	return kindCredentials{k.TransportCredentials.Clone()}
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *followingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, made := withKind(ctx)
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	f := &followed{Conn: conn, all: c.all, plain: made.plain}
	// What policy asks for is found by what gRPC has put into the context.
	asked := context.WithoutCancel(ctx) // asks puts a kind of its own into it
	f.asks = func() bool { return c.asks(asked, authority) }
	c.all.mu.Lock()
	c.all.conns[f] = struct{}{}
	c.all.mu.Unlock()
	f.compare() // policy may have changed since the handshake began
	return f, info, nil
}

// asks reports whether a connection made now would be plaintext.
func (c *followingCredentials) asks(ctx context.Context, authority string) (plain bool) {
	// TLS goes no further than to a context that has ended and a connection that is closed.
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	raw, other := net.Pipe()
	raw.Close()
	other.Close()
	asked := kind{probe: true}
	_, _, _ = c.TransportCredentials.ClientHandshake(context.WithValue(ctx, kindKey{}, &asked), authority, raw)
	return asked.plain
}

// Clone implements credentials.TransportCredentials.
func (c *followingCredentials) Clone() credentials.TransportCredentials {
	return &followingCredentials{c.TransportCredentials.Clone(), c.all}
}

// UsesXDS tells gRPC's balancer to give the credentials what policy says.
func (*followingCredentials) UsesXDS() bool { return true }

// followed is a connection of a gRPC client. Read is called from one goroutine.
type followed struct {
	net.Conn
	all   *following
	plain bool
	asks  func() bool // whether policy asks for plaintext

	frames framing // that were read
	rest   []byte  // of the frame that is put in
	said   bool

	mu       sync.Mutex
	wanted   bool      // it is to be replaced
	waking   bool      // a read that waits is interrupted
	deadline time.Time // of reading, as gRPC has set it
}

// compare has the connection replaced if policy asks for the other kind.
func (c *followed) compare() {
	if c.asks() == c.plain {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.wanted {
		c.wanted, c.waking = true, true
		_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// awake reports whether the connection is to be replaced, and ends the interruption.
func (c *followed) awake() (wanted, woken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if woken = c.waking; woken {
		c.waking = false
		_ = c.Conn.SetReadDeadline(c.deadline)
	}
	return c.wanted, woken
}

// Read implements net.Conn.
func (c *followed) Read(b []byte) (int, error) {
	for {
		if !c.said && len(b) > 0 && c.frames.between() {
			if wanted, _ := c.awake(); wanted {
				c.said, c.rest = true, goAway
			}
		}
		if len(c.rest) > 0 {
			n := copy(b, c.rest)
			c.rest = c.rest[n:]
			return n, nil
		}
		n, err := c.Conn.Read(b)
		c.frames.follow(b[:n])
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			if _, woken := c.awake(); woken {
				if n > 0 {
					return n, nil
				}
				continue
			}
		}
		return n, err
	}
}

// SetReadDeadline implements net.Conn.
func (c *followed) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deadline = t; c.waking {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline implements net.Conn.
func (c *followed) SetDeadline(t time.Time) error {
	if err := c.Conn.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// Close implements net.Conn.
func (c *followed) Close() error {
	c.all.mu.Lock()
	delete(c.all.conns, c)
	c.all.mu.Unlock()
	return c.Conn.Close()
}
