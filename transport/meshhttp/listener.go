package meshhttp

import (
	"container/list"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

const (
	// firstByteLimit is how long a client may take for its first byte, and
	// handshakeLimit for its TLS handshake after that (and after the policy has come).
	firstByteLimit = 10 * time.Second
	handshakeLimit = 10 * time.Second
	// maxHandshakeBytes is how much a client may send before its handshake is complete.
	maxHandshakeBytes = 512 << 10
	// maxPending is how many connections may be on their way to Accept at a time.
	maxPending = 4096
	// tlsHandshakeRecord is the first byte of a TLS connection (RFC 8446, 5.1).
	// No HTTP request begins with it.
	tlsHandshakeRecord = 0x16
)

// NewListener returns a listener that accepts connections from lis and
// terminates mutual TLS on them as the policy of their local address says.
//
// A connection that begins with a TLS handshake is accepted as *tls.Conn, its
// handshake complete, which is the type that net/http needs for HTTP/2; or, where
// policy has the application terminate TLS, as it is. A handshake waits for policy, and
// one that fails closes the connection: it never becomes plaintext. Every other
// connection is accepted as it is, for Handler or a gRPC server with the mesh's
// options to decide on its requests: a server without either lets plaintext in whatever policy says.
//
// Each connection is looked at in a goroutine of its own. The client has 10 s
// for its first byte, so that a protocol in which the server speaks first works
// only where policy, when the connection is made, has no TLS; then 10 s for its
// handshake, of at most 512 KiB. 4,096 connections may be on their way at a
// time. One more closes the oldest of them: what takes its time is what an
// attacker sends, and a client that is closed connects again.
//
// LocalAddr of a connection is a *net.TCPAddr of its own, by which the engine
// finds what it knows of the connection. Close closes lis and the connections that were
// not accepted yet. log may be nil. Without a control plane the result is lis.
func NewListener(e *inbound.Engine, lis net.Listener, log *slog.Logger) net.Listener {
	if !e.Governs() {
		return lis
	}
	if log == nil {
		log = slog.Default()
	}
	l := &listener{
		Listener: lis, engine: e, log: log, most: maxPending,
		ready: make(chan *prepared), failed: make(chan error),
		release: e.Own(lis.Addr()),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.running.Go(l.accept)
	return l
}

type listener struct {
	net.Listener
	engine  *inbound.Engine
	log     *slog.Logger
	most    int // connections on their way
	release func()

	ready  chan *prepared
	failed chan error      // what Accept of the inner listener says
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	once   sync.Once
	err    error // of Close

	running sync.WaitGroup
	mu      sync.Mutex
	pending list.List // of *conn: those on their way, the oldest first
}

// prepared is a connection that can be accepted.
type prepared struct {
	conn *conn
	as   net.Conn
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for l.ctx.Err() == nil {
		select {
		case p := <-l.ready:
			if l.arrived(p.conn) {
				return p.as, nil
			}
			_ = p.conn.Close()
		case err := <-l.failed:
			return nil, err
		case <-l.ctx.Done():
		}
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.cancel()
		l.err = l.Listener.Close()
		l.mu.Lock()
		for at := l.pending.Front(); at != nil; at = at.Next() {
			at.Value.(*conn).abandon()
		}
		l.mu.Unlock()
		l.running.Wait()
		l.release()
	})
	return l.err
}

// accept takes connections until the listener is closed.
func (l *listener) accept() {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			// The caller of Accept paces what comes after a failure, as net/http does.
			select {
			case l.failed <- err:
				if errors.Is(err, net.ErrClosed) {
					return
				}
				continue
			case <-l.ctx.Done():
				return
			}
		}
		c := l.open(raw)
		l.mu.Lock()
		c.at = l.pending.PushBack(c)
		var oldest *conn
		if l.pending.Len() > l.most {
			oldest = l.pending.Front().Value.(*conn)
			l.leave(oldest)
		}
		l.mu.Unlock()
		if oldest != nil {
			if oldest.entry != nil {
				oldest.entry.HandshakeFailed(inbound.HandshakeCrowded)
			}
			oldest.abandon()
		}
		if l.ctx.Err() != nil { // Close may have looked at the list before c was in it
			c.abandon()
		}
		l.running.Go(func() {
			defer c.cancel()
			l.prepare(c)
		})
	}
}

// arrived takes a connection out of those on their way. It reports false where
// it was not among them any more: it has been closed.
func (l *listener) arrived(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leave(c)
}

// leave is arrived with l.mu held.
func (l *listener) leave(c *conn) bool {
	if c.at == nil {
		return false
	}
	l.pending.Remove(c.at)
	c.at = nil
	return true
}

// open wraps a connection and tells the engine of it.
func (l *listener) open(raw net.Conn) *conn {
	c := &conn{Conn: raw, local: raw.LocalAddr()}
	c.ctx, c.cancel = context.WithCancel(l.ctx)
	tcp, ok := c.local.(*net.TCPAddr)
	if !ok {
		// A connection in memory belongs to its listener's address.
		if tcp, ok = l.Addr().(*net.TCPAddr); !ok {
			return c
		}
	}
	own := &net.TCPAddr{IP: tcp.IP, Port: tcp.Port, Zone: tcp.Zone}
	c.local = own
	c.entry = l.engine.Open(own, raw.RemoteAddr(), raw.Close)
	return c
}

// prepare brings a connection to where it can be accepted, and delivers it.
func (l *listener) prepare(c *conn) {
	ready, err := l.terminate(c)
	if err != nil {
		var refused *identity.VerifyError
		level := slog.LevelDebug
		if errors.As(err, &refused) {
			level = slog.LevelInfo
		}
		l.log.Log(l.ctx, level, "connection closed before its first request", "listener", l.Addr(), "peer", c.RemoteAddr(), "error", err)
		l.arrived(c)
		_ = c.Close()
		return
	}
	select {
	case l.ready <- &prepared{c, ready}:
	case <-c.ctx.Done():
		l.arrived(c)
		_ = ready.Close()
	}
}

// terminate terminates TLS where the client speaks it and policy wants that.
func (l *listener) terminate(c *conn) (net.Conn, error) {
	if c.entry == nil || !c.entry.MayBeTLS() {
		return c, nil
	}
	if err := c.peek(); err != nil {
		// A client that closes without a word, as health checks do, is no failure.
		var network net.Error
		if errors.As(err, &network) && network.Timeout() {
			c.entry.HandshakeFailed(inbound.HandshakeTimeout)
		}
		return nil, err
	}
	if c.first[0] != tlsHandshakeRecord {
		return c, nil
	}
	c.budget = maxHandshakeBytes
	secured, err := c.entry.Handshake(c.ctx, c, handshakeLimit)
	c.budget = 0
	switch {
	case err != nil:
		return nil, err
	case secured == nil:
		return c, nil
	}
	return secured, nil
}

// conn is a connection whose first bytes were read and are read again.
type conn struct {
	net.Conn
	local net.Addr
	entry *inbound.Conn // nil where the connection has no TCP address

	// What follows is the listener's, until the connection is accepted.
	ctx    context.Context
	cancel context.CancelFunc
	at     *list.Element // in listener.pending; nil if it is not there. listener.mu guards it.

	first  []byte // what was read before the connection was accepted
	room   [1]byte
	budget int // how much may be read until the handshake is complete; 0: no limit
}

// abandon closes a connection that is on its way, whatever it waits for.
func (c *conn) abandon() {
	c.cancel()
	_ = c.Conn.Close()
}

var errHandshakeSize = errors.New("the handshake is too large")

// peek reads the first byte.
func (c *conn) peek() error {
	if err := c.Conn.SetReadDeadline(time.Now().Add(firstByteLimit)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.Conn, c.room[:]); err != nil {
		return err
	}
	c.first = c.room[:]
	return c.Conn.SetReadDeadline(time.Time{})
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.first) > 0 && len(b) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	if c.budget <= 0 {
		return c.Conn.Read(b)
	}
	n, err := c.Conn.Read(b[:min(len(b), c.budget)])
	if c.budget -= n; c.budget <= 0 && err == nil {
		c.budget, err = 1, errHandshakeSize
	}
	return n, err
}

// LocalAddr implements net.Conn: it is the same pointer each time, and no other connection's.
func (c *conn) LocalAddr() net.Addr { return c.local }

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	if c.entry != nil {
		c.entry.Closed()
	}
	return err
}

// ReadFrom implements io.ReaderFrom, so that a file is sent as on a bare connection.
func (c *conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite closes the sending side, as *net.TCPConn does.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn implements syscall.Conn where the connection does.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
