package client

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// renewable are credentials in plain text with a certificate that changes.
type renewable struct {
	credentials.TransportCredentials

	mu      sync.Mutex
	leaf    *x509.Certificate
	changed chan struct{}
}

func (c *renewable) Certificate() (*x509.Certificate, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaf, c.changed
}

func (c *renewable) Clone() credentials.TransportCredentials { return c }

// renew takes another certificate, or tells of a change that is none for an empty serial.
func (c *renewable) renew(serial string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if serial != "" {
		c.leaf = &x509.Certificate{Raw: []byte(serial)}
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// withRenewal opens a client whose certificates the returned credentials renew.
func withRenewal(e *env, change ...func(*Options)) *renewable {
	creds := &renewable{TransportCredentials: insecure.NewCredentials(), changed: make(chan struct{})}
	creds.renew("1")
	e.config.Servers[0].ChannelCreds = []bootstrap.ChannelCreds{{Type: bootstrap.CertificateProviderCreds}}
	e.up(append(change, func(o *Options) {
		o.Credentials = func(bootstrap.ChannelCreds) (credentials.TransportCredentials, error) { return creds, nil }
	})...)
	return creds
}

func (f *fake) count() (open, made int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.streams), f.opened
}

func TestStreamMovesWithItsCertificate(t *testing.T) {
	both(t, 1, func(e *env) {
		var lost, found atomic.Int32
		creds := withRenewal(e, func(o *Options) {
			o.Events.Connected = func(string, string) { found.Add(1) }
			o.Events.Disconnected = func(string, error) { lost.Add(1) }
		})
		const before = 1
		lostBefore := lost.Load() // a server without delta has ended one stream
		time.Sleep(time.Minute)
		if _, made := e.count(); made != before {
			e.Errorf("%d streams were made before there was another certificate", made)
		}
		for i, serial := range []string{"2", "3"} {
			creds.renew(serial)
			time.Sleep(time.Second)
			synctest.Wait()
			if open, made := e.count(); open != 1 || made != before+i+1 {
				e.Fatalf("%d streams are open and %d were made, want 1 and %d", open, made, before+i+1)
			}
			e.set(edsOf("e-a", 10+i))
			e.want("a:80", []string{"c-a=10", "c-a=11"}[i])
		}
		// Other changes, such as of trust, concern no connection.
		creds.renew("")
		creds.renew("3")
		time.Sleep(time.Minute)
		if _, made := e.count(); made != before+2 {
			e.Errorf("%d streams were made, want %d", made, before+2)
		}
		if lost.Load() != lostBefore || e.log.count("stream ended") != int(lostBefore) {
			e.Errorf("the client believes that it lost %d streams: %s", lost.Load(), e.log.b.String())
		}
		if found.Load() < 3 {
			e.Errorf("%d streams were reported", found.Load())
		}
	})
}

// The old stream must not end before the new one stands.
func TestStreamStaysUntilTheNextStands(t *testing.T) {
	in(t, 1, false, func(e *env) {
		var refuse atomic.Bool
		creds := withRenewal(e, func(o *Options) {
			o.DialOptions = []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				if refuse.Load() {
					return nil, net.ErrClosed
				}
				return e.servers[0].dial(ctx)
			})}
		})
		_, before := e.count()
		refuse.Store(true)
		creds.renew("2")
		time.Sleep(20 * time.Second)
		if open, made := e.count(); open != 1 || made != before {
			e.Fatalf("%d streams are open and %d were made", open, made)
		}
		e.set(edsOf("e-a", 7))
		e.want("a:80", "c-a=7")
		refuse.Store(false)
		time.Sleep(20 * time.Second)
		if open, made := e.count(); open != 1 || made != before+1 {
			e.Fatalf("%d streams are open and %d were made", open, made)
		}
		e.set(edsOf("e-a", 8))
		e.want("a:80", "c-a=8")
		// The server ends the old stream while the next connection does not come about.
		refuse.Store(true)
		creds.renew("3")
		time.Sleep(2 * time.Second)
		e.breakStreams(nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if open, _ := e.count(); open != 1 {
			e.Errorf("%d streams are open, want one on the connection that there is", open)
		}
		refuse.Store(false)
		time.Sleep(20 * time.Second)
		e.set(edsOf("e-a", 9))
		e.want("a:80", "c-a=9")
	})
}

// A server that ends the next stream as soon as it stands costs no update: the
// client must not believe that stream to be the present one.
func TestNextStreamEndsAtOnce(t *testing.T) {
	in(t, 1, false, func(e *env) {
		creds := withRenewal(e)
		for i := range 20 {
			e.mu.Lock()
			e.fake.fail = status.Error(codes.Unavailable, "not now")
			e.mu.Unlock()
			creds.renew(fmt.Sprint("next ", i))
			time.Sleep(time.Second)
			synctest.Wait()
			e.mu.Lock()
			e.fake.fail = nil
			e.mu.Unlock()
			time.Sleep(150 * time.Second) // the longest pause
			e.snap().Hosts["a:80"].Used.Store(true)
			e.set(edsOf("e-a", 100+i))
			e.want("a:80", fmt.Sprint("c-a=", 100+i))
		}
	})
}

// The certificate that was presented is known also where the handshake had to wait for it.
func TestCertificateThatComesInTheHandshake(t *testing.T) {
	creds := &renewable{changed: make(chan struct{})}
	own := &ownCertificate{from: creds}
	creds.TransportCredentials = handshaking{insecure.NewCredentials(), func() { creds.renew("1") }}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if _, _, err := (&presentingCredentials{creds, own}).ClientHandshake(t.Context(), "", near); err != nil {
		t.Fatal(err)
	}
	if _, replaced := own.replaced(); replaced || own.presented.Load() == nil {
		t.Errorf("presented %v, replaced %v", own.presented.Load(), replaced)
	}
	creds.renew("2")
	if _, replaced := own.replaced(); !replaced {
		t.Error("another certificate is not noticed")
	}
}

// handshaking are credentials that do something in the handshake.
type handshaking struct {
	credentials.TransportCredentials
	meanwhile func()
}

func (h handshaking) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	h.meanwhile()
	return h.TransportCredentials.ClientHandshake(ctx, authority, raw)
}
