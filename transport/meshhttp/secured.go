package meshhttp

import (
	"crypto/tls"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// secured holds the connections to those endpoints of a cluster that policy
// secures in one way.
type secured struct {
	wire   *wire
	policy *snapshot.ClientTLS

	// connections are those that new requests use: made with what the source
	// has had in force since its last change.
	connections atomic.Pointer[generation]

	mu      sync.Mutex // guards what follows
	held    atomic.Pointer[outbound.Identity]
	retired bool
}

// generation is the connections that were made between two changes of the source.
type generation struct {
	mu         sync.Mutex
	transports sync.Map // generationKey -> carrier
}

// generationKey tells the transports of a generation apart.
type generationKey struct {
	serverName string // sent as SNI
	// inner is the host of a caller's https URL, whose own TLS travels inside
	// policy's; "" without.
	inner string
	http2 bool
}

func newSecured(w *wire, policy *snapshot.ClientTLS) *secured {
	s := &secured{wire: w, policy: policy}
	s.connections.Store(&generation{})
	// Early, so that the certificate may be there when the first request comes.
	// The error is of no use yet: source asks again.
	_, _ = s.source()
	return s
}

// source returns the identity source, which it opens if need be.
func (s *secured) source() (*outbound.Identity, error) {
	if h := s.held.Load(); h != nil {
		return h, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held.Load(); h != nil {
		return h, nil
	}
	if s.retired {
		return nil, errors.New("the cluster's connection settings have changed")
	}
	h, err := s.wire.with.identities.Hold(s.policy, s.renew)
	if err == nil {
		s.held.Store(h)
	}
	return h, err
}

// mutual reports whether our certificate is presented.
func (s *secured) mutual() bool { return outbound.Mutual(s.policy) }

// renew has new requests make new connections. Those that are idle close, and
// those that are busy when they have become idle.
func (s *secured) renew() {
	s.connections.Swap(&generation{}).retire()
}

// retire ends the use of the source; see wire.Retire.
func (s *secured) retire() {
	s.mu.Lock()
	s.retired = true
	h := s.held.Load()
	s.mu.Unlock()
	if h != nil {
		_ = h.Close()
	}
	s.connections.Load().retire()
}

// retire closes the connections that are idle, and again later: an HTTP/2
// connection whose last stream has just ended, or not yet, does not count as
// idle. What is busy still longer closes when it has been idle for its time.
func (g *generation) retire() {
	g.closeIdle()
	for _, later := range retireAgain {
		time.AfterFunc(later, g.closeIdle)
	}
}

var retireAgain = []time.Duration{50 * time.Millisecond, time.Second, 10 * time.Second}

func (g *generation) closeIdle() {
	g.transports.Range(func(_, t any) bool {
		letGo(t.(carrier))
		return true
	})
}

// transport returns the connections for the host that a request calls; inner
// is the host of an https URL.
func (s *secured) transport(src *outbound.Identity, host, inner string, http2 bool) carrier {
	key := generationKey{serverName: outbound.ServerName(s.policy, host), inner: inner, http2: http2 && inner == ""}
	g := s.connections.Load()
	if t, ok := g.transports.Load(key); ok {
		return t.(carrier)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if t, ok := g.transports.Load(key); ok {
		return t.(carrier)
	}
	t := newTransport(s.wire.config, s.wire.with.network)
	limit := s.wire.config.ConnectTimeout
	var made carrier = t
	switch {
	case inner != "":
		t.ForceAttemptHTTP2 = true
		t.TLSClientConfig = clientTLS(inner)
		outer := s.config(src, key.serverName, http2)
		outer.NextProtos = slices.DeleteFunc(outer.NextProtos, func(p string) bool {
			return p == tlsconfig.ProtocolHTTP1 || p == tlsconfig.ProtocolHTTP2
		})
		t.DialTLSContext = dialTLS(dialTLS(t.DialContext, outer, limit, false), t.TLSClientConfig, limit, false)
	case http2:
		t.DialTLSContext = dialTLS(t.DialContext, s.config(src, key.serverName, true), limit, true)
		made = s.wire.newStreams(t, "https")
	default:
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
		t.DialTLSContext = dialTLS(t.DialContext, s.config(src, key.serverName, false), limit, false)
	}
	g.transports.Store(key, made)
	return made
}

// config is the policy for crypto/tls.
func (s *secured) config(src *outbound.Identity, host string, http2 bool) *tls.Config {
	protocol := tlsconfig.ProtocolHTTP1
	if http2 {
		protocol = tlsconfig.ProtocolHTTP2
	}
	return outbound.ClientTLS(src, s.policy, host, protocol)
}
