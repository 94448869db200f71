package client

import (
	"context"
	"crypto/x509"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

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
		_, before := e.count()
		lostBefore := lost.Load() // a server without delta has ended one stream
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
		refuse.Store(false)
		time.Sleep(20 * time.Second)
		e.set(edsOf("e-a", 9))
		e.want("a:80", "c-a=9")
	})
}
