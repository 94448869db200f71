package inbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/textproto"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// listener is the policy of one address with the state that belongs to it. It
// is made when policy comes; nothing in it but live and the credentials changes.
type listener struct {
	name   string
	policy *snapshot.Inbound
	// err says why nothing can be let in: a *NotReadyError.
	err        error
	tls, plain *chain
	live       *live
	limits     *limits
}

// chain is a FilterChain with what its requests need.
type chain struct {
	policy     *snapshot.FilterChain
	credential *credential // nil for plaintext
	config     *tls.Config // of the handshake; nil for plaintext
	// authorizer carries the gRPC protocol of the external authorizer; nil for the HTTP protocol.
	authorizer grpc.ClientConnInterface
	// adaptive bounds the requests by their latency; nil does not.
	adaptive *outbound.Adaptive
	// outputs are the headers that tokens set, which no caller may bring along.
	outputs []outputHeader
}

// outputHeader is a header's name in both spellings.
type outputHeader struct{ canonical, lower string }

// live is what belongs to a listener for as long as it has policy.
type live struct {
	usage  *usage
	tokens *tokenStore
}

// rememberedTokens is how many verified tokens a listener remembers.
const rememberedTokens = 4096

var errNoChain = errors.New("its policy takes no connections")

// listener makes a listener of its policy. before is the one that it replaces, or nil.
func (e *Engine) listener(name string, in *snapshot.Inbound, before *listener, now time.Time) *listener {
	l := &listener{name: name, policy: in}
	var levels *limits
	if before != nil {
		l.live, levels = before.live, before.limits
	} else {
		l.live = &live{usage: newUsage(), tokens: newTokenStore(rememberedTokens)}
	}
	l.limits = carryLimits(levels, in, now)
	switch {
	case in.Err != nil:
		l.err = &NotReadyError{Address: name, Err: in.Err}
	case in.Absent:
		l.err = &NotReadyError{Address: name, Err: errAbsent}
	case in.TLS == nil && in.Plain == nil:
		l.err = &NotReadyError{Address: name, Err: errNoChain}
	}
	if l.err != nil {
		return l
	}
	var beforeTLS, beforePlain *chain
	if before != nil {
		beforeTLS, beforePlain = before.tls, before.plain
	}
	if in.TLS != nil {
		l.tls = e.chain(in.TLS, beforeTLS, now)
		l.tls.credential = e.credential(in.TLS.Socket)
		l.tls.config = serverConfig(l.tls.credential, in.TLS.Socket)
	}
	if in.Plain != nil {
		l.plain = e.chain(in.Plain, beforePlain, now)
	}
	return l
}

func (e *Engine) chain(p *snapshot.FilterChain, before *chain, now time.Time) *chain {
	c := &chain{policy: p, authorizer: e.authorizer(p), adaptive: adaptive(p, before, now)}
	if p.Tokens != nil {
		for _, name := range p.Tokens.Authenticator.OutputHeaders() {
			c.outputs = append(c.outputs, outputHeader{textproto.CanonicalMIMEHeaderKey(name), strings.ToLower(name)})
		}
	}
	return c
}

func serverConfig(c *credential, s *snapshot.ServerTLS) *tls.Config {
	if c.source == nil || s == nil {
		return nil
	}
	o := tlsconfig.ServerOptions{Peer: tlsconfig.Peer{SANs: s.SANs}, MinVersion: s.MinVersion, Protocols: s.Protocols}
	if !s.RequireClientCertificate {
		o.Client = tlsconfig.CertificateOptional
	}
	return tlsconfig.Server(c.source, o)
}

// verify holds a chain that was presented in an earlier handshake to the rules of now.
func (c *chain) verify(presented []*x509.Certificate, m *source.Material, now time.Time) error {
	if len(presented) == 0 {
		if c.policy.Socket.RequireClientCertificate {
			return &identity.VerifyError{Rule: identity.RulePresent, Detail: "the client presented no certificate when it connected"}
		}
		return nil
	}
	if _, err := identity.VerifySVID(presented, m.Bundles, now, identity.UsageClient); err != nil {
		return err
	}
	return identity.MatchSANs(presented[0], c.policy.Socket.SANs)
}

// credentialKey tells sources apart.
type credentialKey struct {
	certificate snapshot.CertificateSource
	trust       snapshot.TrustSource
}

// credential is a source with what it has in force at hand, so that requests
// take no lock of its own.
type credential struct {
	source   source.Source // nil where there is none
	err      error
	material atomic.Pointer[source.Material] // nil while there is none in force
	stop     chan struct{}
	done     chan struct{}
}

var errNoSource = errors.New("there is no identity source")

// credential returns the credential of a socket. e.mu is held.
func (e *Engine) credential(s *snapshot.ServerTLS) *credential {
	if s == nil {
		return &credential{err: errNoSource}
	}
	key := credentialKey{s.Certificate, s.Trust}
	if known := e.credentials[key]; known != nil {
		return known
	}
	c := &credential{err: errNoSource, stop: make(chan struct{}), done: make(chan struct{})}
	if e.options.Source != nil {
		c.source, c.err = e.options.Source(s.Certificate, s.Trust)
	}
	if c.err != nil {
		// It is asked again when the policy changes next.
		c.source = nil
		close(c.done)
		return c
	}
	c.load()
	e.credentials[key] = c
	go c.watch(e.sweepSoon)
	return c
}

// load puts what the source has in force and returns what announces the next change.
func (c *credential) load() <-chan struct{} {
	changed := c.source.Changed()
	m, err := c.source.Current()
	if err != nil {
		m = nil
	}
	c.material.Store(m)
	return changed
}

// watch keeps what the source has in force at hand, and says when it is another.
func (c *credential) watch(another func()) {
	defer close(c.done)
	for {
		changed := c.load()
		select {
		case <-changed:
			c.load()
			another()
		case <-c.stop:
			return
		}
	}
}

// current returns what is in force. The error is a *NotReadyError. A source may
// say nothing when its certificate ends.
func (c *credential) current(listener string, now time.Time) (*source.Material, error) {
	if m := c.material.Load(); m != nil && (m.NotAfter.IsZero() || now.Before(m.NotAfter)) {
		return m, nil
	}
	err := c.err
	if c.source != nil {
		// What has come a moment ago may not have been noticed yet.
		m, e := c.source.Current()
		if e == nil {
			return m, nil
		}
		err = e
	}
	return nil, &NotReadyError{Address: listener, Err: fmt.Errorf("identity: %w", err)}
}

// await is current for a certificate that may still be on its way: a server that
// has just started must not turn away whom it would take a moment later. One that has
// expired or was withdrawn is not waited for.
func (c *credential) await(ctx context.Context, listener string, limit time.Duration) (*source.Material, error) {
	m, err := c.current(listener, time.Now())
	if err == nil || c.source == nil {
		return m, err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		// The channel first: a change after this line closes it.
		changed := c.source.Changed()
		m, err := c.current(listener, time.Now())
		var missing *source.NotReadyError
		if err == nil || !errors.As(err, &missing) || !missing.Expired.IsZero() || missing.Revoked {
			return m, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, err
		case <-timer.C:
			return nil, err
		case <-c.stop:
			return nil, err
		}
	}
}

func (c *credential) close() {
	close(c.stop)
	<-c.done
	_ = c.source.Close() // its material stays readable for handshakes under way
}

// dropCredentials forgets and returns credentials that no listener uses. e.mu is held.
func (e *Engine) dropCredentials(listeners map[netip.AddrPort]*listener) []*credential {
	used := make(map[*credential]bool)
	for _, l := range listeners {
		if l.tls != nil {
			used[l.tls.credential] = true
		}
	}
	var unused []*credential
	for key, c := range e.credentials {
		if !used[c] {
			delete(e.credentials, key)
			unused = append(unused, c)
		}
	}
	return unused
}

// allTokens returns what the listeners ask of tokens, so that keys are fetched for all of it.
func allTokens(listeners map[netip.AddrPort]*listener) []*snapshot.Tokens {
	var out []*snapshot.Tokens
	for _, l := range listeners {
		for _, c := range [...]*chain{l.tls, l.plain} {
			if c != nil && c.policy.Tokens != nil {
				out = append(out, c.policy.Tokens)
			}
		}
	}
	return out
}
