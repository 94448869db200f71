// Package inbound takes one inbound request through a snapshot: the listener
// that it came in on decides whether it reaches the user's handler. HTTP and
// gRPC servers pass through the same code.
//
// A request passes, in this order: the kind of its connection (plaintext or
// mutual TLS) and whether its peer is still believed, its deadline, the
// normalisation of its host and path, the external authorizer where a CUSTOM rule
// matches, the verification of its tokens, the rules of access (AUDIT, DENY,
// ALLOW), its deadline again, rate limits, and the queue of the process where it
// sheds load. Adaptive concurrency stands before the host or after the rate
// limits, as policy says. Whatever can not be decided is refused.
package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// Options configure an Engine.
type Options struct {
	// Subscribe asks the control plane for the listener at an address; it
	// returns at once and may be called again. nil means that there is no
	// control plane, and every request is let in.
	Subscribe func(address string)
	// Trouble returns the control plane's present trouble, or nil, for errors.
	Trouble func() error
	// PolicyWait limits how long a request waits for its listener's policy; zero means 15 s.
	PolicyWait time.Duration
	// Source returns what a listener proves its identity with and verifies
	// clients with, which the engine closes when no listener uses it any more.
	// nil refuses every listener with TLS.
	Source func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error)
	// HTTP carries ext_authz over HTTP: its requests go out through the mesh. nil
	// means that it can not be had, so that what depends on it is refused.
	HTTP http.RoundTripper
	// DialGRPC connects to "host:port" through the mesh, for ext_authz over
	// gRPC. nil means that it can not be had.
	DialGRPC func(target string) (grpc.ClientConnInterface, io.Closer, error)
	// KeyRanges are ranges of addresses that issuers' keys are fetched from though
	// they are not public. By default keys come from public addresses only, because
	// whoever may write policy for one workload must not make it call whatever it can reach.
	KeyRanges []netip.Prefix
	// Shedding bounds the handlers that run at one time, with a control plane or
	// without; nil does not.
	Shedding *Shedding
	// Observer is told of decisions; nil for none.
	Observer Observer
	// Log is told of keys that can not be fetched and of authorizers that do not
	// answer. nil means slog.Default().
	Log *slog.Logger
}

// Engine is the inbound side of a process.
type Engine struct {
	options Options
	view    atomic.Pointer[view]
	changed atomic.Pointer[chan struct{}] // closed and replaced by each change of view
	closed  chan struct{}
	once    sync.Once

	conns  sync.Map // *net.TCPAddr of LocalAddr to *Conn
	sweeps atomic.Int64
	owned  sync.Map // ownKey of a listener to *atomic.Int64: it and its connections

	keys    *keyRing
	shedder *shedder // nil without Options.Shedding

	mu          sync.Mutex // serialises changes of view, and guards the rest
	credentials map[credentialKey]*credential
	authorizers map[string]*authorizer // by host
}

// view is a snapshot's listeners in the form that a connection's address finds.
type view struct {
	listeners map[netip.AddrPort]*listener
	// wildcards has the address of each listener of this process that
	// accepts on every address, by port.
	wildcards map[uint16]netip.AddrPort
}

const defaultPolicyWait = 15 * time.Second

// New returns an engine without policy.
func New(o Options) *Engine {
	if o.PolicyWait == 0 {
		o.PolicyWait = defaultPolicyWait
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	e := &Engine{options: o, closed: make(chan struct{}), credentials: make(map[credentialKey]*credential), authorizers: make(map[string]*authorizer)}
	if o.Shedding != nil {
		e.shedder = newShedder(o.Shedding)
	}
	e.keys = newKeyRing(fetchRules{Allowed: o.KeyRanges}, o.Log)
	e.view.Store(&view{})
	changed := make(chan struct{})
	e.changed.Store(&changed)
	return e
}

// Governs reports whether there is a control plane whose policy decides on
// requests; else everything is let in.
func (e *Engine) Governs() bool { return e.options.Subscribe != nil }

// Install makes a snapshot the policy of requests that come in from now on.
// What lives longer than a snapshot is carried over: the levels of rate limits,
// verified tokens, issuers' keys and counts.
func (e *Engine) Install(s *snapshot.Snapshot) {
	e.mu.Lock()
	select {
	case <-e.closed:
		e.mu.Unlock()
		return
	default:
	}
	old := e.view.Load()
	now := time.Now()
	listeners := make(map[netip.AddrPort]*listener, len(s.Inbound))
	for name, in := range s.Inbound {
		// Names are addresses that this engine has asked for, so they parse.
		address, err := netip.ParseAddrPort(name)
		if err != nil {
			continue
		}
		at := unmap(address)
		before := old.listeners[at]
		if before != nil && before.policy == in {
			listeners[at] = before
			continue
		}
		listeners[at] = e.listener(at.String(), in, before, now)
	}
	e.keys.use(allTokens(listeners))
	e.publish(&view{listeners: listeners, wildcards: old.wildcards})
	done := e.unused(listeners)
	e.mu.Unlock()
	done()
	e.sweepSoon()
}

// unused forgets what no listener uses any more, and returns what ends it. e.mu
// is held, but not for what is returned.
func (e *Engine) unused(listeners map[netip.AddrPort]*listener) func() {
	credentials, authorizers := e.dropCredentials(listeners), e.dropAuthorizers(listeners)
	return func() {
		for _, c := range credentials {
			c.close()
		}
		for _, a := range authorizers {
			a.close()
		}
	}
}

func (e *Engine) publish(v *view) {
	e.view.Store(v)
	changed := make(chan struct{})
	close(*e.changed.Swap(&changed))
}

// unmap makes an IPv4 address that came as IPv6 an IPv4 address, and drops the
// zone, so that an address has one spelling.
func unmap(at netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

// Close makes requests that wait for policy fail, and ends what the engine does by itself.
func (e *Engine) Close() {
	e.once.Do(func() {
		e.mu.Lock()
		close(e.closed)
		done := e.unused(nil)
		e.mu.Unlock()
		done()
		e.keys.close()
	})
}

// Listening tells the engine of a listener before its first connection, so
// that its policy is asked for early, and so that connections to any address of
// a listener on all of them share one policy.
func (e *Engine) Listening(address net.Addr) {
	if e.options.Subscribe == nil {
		return
	}
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return
	}
	at := unmap(tcp.AddrPort())
	if at.Addr().IsUnspecified() {
		e.mu.Lock()
		old := e.view.Load()
		wildcards := maps.Clone(old.wildcards)
		if wildcards == nil {
			wildcards = make(map[uint16]netip.AddrPort)
		}
		wildcards[at.Port()] = at
		e.publish(&view{listeners: old.listeners, wildcards: wildcards})
		e.mu.Unlock()
	}
	e.options.Subscribe(at.String())
}

// listener returns the address of the listener behind a connection's local address.
func (v *view) listener(local netip.AddrPort) netip.AddrPort {
	if at, ok := v.wildcards[local.Port()]; ok {
		return at
	}
	return local
}

// policy returns the policy of the listener behind a connection's local
// address. It waits for one that has not come yet. Where there is none that could
// be used it returns the error beside what there is. The error is a *NotReadyError.
func (e *Engine) policy(ctx context.Context, local netip.AddrPort) (*listener, error) {
	v := e.view.Load()
	if l := v.listeners[v.listener(local)]; l != nil {
		return l, l.err
	}
	return e.await(ctx, local)
}

func (e *Engine) await(ctx context.Context, local netip.AddrPort) (*listener, error) {
	timer := time.NewTimer(e.options.PolicyWait)
	defer timer.Stop()
	asked := false
	for {
		// The channel first: a change after this line closes it.
		changed := *e.changed.Load()
		v := e.view.Load()
		at := v.listener(local)
		if l := v.listeners[at]; l != nil {
			return l, l.err
		}
		if !asked && e.options.Subscribe != nil {
			asked = true
			e.options.Subscribe(at.String())
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, &NotReadyError{Address: at.String(), Err: errors.Join(ctx.Err(), e.trouble())}
		case <-timer.C:
			return nil, &NotReadyError{Address: at.String(), Err: e.trouble()}
		case <-e.closed:
			return nil, &NotReadyError{Address: at.String(), Err: errClosed}
		}
	}
}

func (e *Engine) trouble() error {
	if e.options.Trouble == nil {
		return nil
	}
	return e.options.Trouble()
}

// tcpAddress returns a local address as rules see it.
func tcpAddress(a net.Addr) (netip.AddrPort, error) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || tcp == nil {
		return netip.AddrPort{}, &NotReadyError{Address: fmt.Sprint(a), Err: errNoAddress}
	}
	return unmap(tcp.AddrPort()), nil
}
